"""A run that was killed at any moment and resumed ends with the very same bytes as one that never stopped.

Two kinds of tests. Some start the command itself, as a user does. The others want many deaths at chosen moments, and a
fresh process spends seconds importing torch; so this file is also a program: it imports everything once and then forks a
child for every life of a run (`python tests/test_resume.py lives.json`).
"""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, TRAIN, environment, run_main, run_program

STEPS = 30
FLAGS = [*TINY, "--steps", str(STEPS), "--save-every", "7", "--sample-every", "100"]
FINAL = ["model/unet/diffusion_pytorch_model.safetensors", "model/unet/config.json", "model/scheduler/scheduler_config.json", "samples.png"]


# ------------------------------------------------------------------------------------------- the program: many lives


def die(how: str = "SIGKILL") -> None:
    os.kill(os.getpid(), getattr(signal, how))


def arrange_death(moment: str, n: int, how: str) -> None:
    """Let this process get a signal at a chosen moment: in the n-th step of this life, or around its n-th checkpoint."""
    import torch

    import common.training

    replace, save, check = os.replace, torch.save, common.training.check_finite
    count = {"save": 0, "rename": 0, "step": 0}

    def dying_replace(source, destination):
        if moment == "cutting the log" and str(destination).endswith("metrics.csv"):
            die(how)
        is_checkpoint = str(destination).endswith(".pt")
        count["rename"] += is_checkpoint
        now = is_checkpoint and count["rename"] == n
        if now and moment == "before the rename":
            die(how)
        replace(source, destination)
        if now and moment == "after the rename":
            die(how)

    def dying_save(state, file):
        count["save"] += 1
        if moment == "half-written" and count["save"] == n:
            import io

            whole = io.BytesIO()
            save(state, whole)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            die(how)
        save(state, file)

    def dying_step(*args):
        count["step"] += 1
        if moment == "in a step" and count["step"] == n:
            die(how)
        check(*args)

    os.replace, torch.save, common.training.check_finite = dying_replace, dying_save, dying_step


def live(life: dict) -> int:
    """One life of a run in a forked child. Returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        with Path(life["log"]).open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if "moment" in life:
            arrange_death(life["moment"], life["n"], life.get("how", "SIGKILL"))
        code = 1
        try:
            run_main(TRAIN, *life["flags"])
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    if "seconds" in life:
        time.sleep(life["seconds"])
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def live_all(lives: list[dict]) -> list[int]:
    import matplotlib.pyplot  # noqa: F401  (all the heavy things, before the first fork)
    import sklearn.datasets  # noqa: F401

    import common.runlog
    import common.viz  # noqa: F401

    return [live(life) for life in lives]


if __name__ == "__main__":
    print(json.dumps(live_all(json.loads(Path(sys.argv[1]).read_text()))))
    sys.exit()


# ---------------------------------------------------------------------------------------------------------- the tests


def rows(run: Path) -> list[dict]:
    """metrics.csv without the columns that tell the time."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in csv.DictReader(file)]


def same(run: Path, other: Path) -> None:
    for name in FINAL:
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert [row["step"] for row in rows(run)] == [str(k) for k in range(1, STEPS + 1)]  # none missing, none twice
    assert rows(run) == rows(other)
    assert not (run / "checkpoints/step-00000030.pt.partial").exists()


KILLS = {
    # name: how each life of the run ends; then it is resumed once more and left in peace
    "between two checkpoints": [("in a step", 10), ("in a step", 10)],
    "before the first checkpoint": [("in a step", 1), ("in a step", 5)],
    "in the middle of writing a checkpoint": [("half-written", 1), ("half-written", 2), ("half-written", 1)],
    "a checkpoint written but not yet named": [("before the rename", 2), ("before the rename", 1)],
    "a checkpoint named but its row not yet logged": [("after the rename", 1), ("after the rename", 1), ("after the rename", 2)],
    "after the last checkpoint, before the pictures": [("after the rename", 5)],
    "while the log is being cut": [("in a step", 10), ("cutting the log", 1)],
    "Ctrl-C": [("in a step", 4, "SIGINT"), ("in a step", 9, "SIGINT"), ("after the rename", 1, "SIGINT")],
    "at random": [random.Random(0).uniform(0.2, 1.5) for _ in range(4)],
}


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict:
    """Every run of KILLS, and "whole", the run that was left alone. {name: (folder, exit codes, output)}"""
    folder = tmp_path_factory.mktemp("lives")
    lives, places = [], {}

    def add(name: str, ends: list) -> None:
        run, log = folder / f"run{len(places)}", folder / f"log{len(places)}"
        places[name] = run, log, len(lives), len(ends) + 1
        for k, end in enumerate([*ends, None]):
            life = {"log": str(log), "flags": ["--resume", str(run)] if k else [*FLAGS, "--out", str(run)]}
            if isinstance(end, tuple):
                life |= dict(zip(("moment", "n", "how"), end, strict=False))
            elif end is not None and k:  # the first life is not killed before it has written its settings down
                life |= {"seconds": end}
            elif end is not None:
                life |= {"moment": "in a step", "n": 1 + int(20 * end)}
            lives.append(life)

    add("whole", [])
    for name, ends in KILLS.items():
        add(name, ends)
    (folder / "lives.json").write_text(json.dumps(lives))
    done = run_program(__file__, folder / "lives.json")
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    return {name: (run, codes[first : first + n], log.read_text()) for name, (run, log, first, n) in places.items()}


def test_the_run_left_alone(families):
    run, codes, _ = families["whole"]
    same(run, run)
    assert codes == [0] and len({row["loss"] for row in rows(run)}) == STEPS


@pytest.mark.parametrize("name", KILLS)
def test_killed_and_resumed(families, name):
    run, (*codes, last), log = families[name]
    if name == "at random":  # a life may have ended before it was to be killed
        assert set(codes) <= {-signal.SIGKILL, 0}, log
    else:
        assert set(codes) == {0 if name == "Ctrl-C" else -signal.SIGKILL}, log
    assert last == 0, log
    same(run, families["whole"][0])


def test_ctrl_c_says_how_to_go_on(families):
    run, _, log = families["Ctrl-C"]
    stops = re.findall(r"stopped after step (\d+); continue with: python 01_ddpm_mnist/train.py --resume (\S+)", log)
    assert [int(step) for step, _ in stops[:2]] == [4, 13] and {folder for _, folder in stops} == {str(run)}


def test_a_partial_file_left_behind_does_no_harm(families):
    """kill -9 in the middle of writing leaves one; it is neither read nor in the way."""
    run, _, _ = families["in the middle of writing a checkpoint"]
    assert [path.name for path in sorted((run / "checkpoints").glob("*.pt"))] == ["step-00000028.pt", "step-00000030.pt"]


def wait_for(condition, process: subprocess.Popen, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_the_command_itself(families, tmp_path):
    """As a user does it: kill -9, then Ctrl-C, then to the end; three real processes."""
    run = tmp_path / "run"

    def begin(*flags: object) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, TRAIN, *map(str, flags)], cwd=ROOT, env=environment(), text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    process = begin(*FLAGS, "--out", run)
    wait_for(lambda: list((run / "checkpoints").glob("*.pt")), process)
    process.kill()
    process.communicate()
    first = max((run / "checkpoints").glob("*.pt"))

    process = begin("--resume", run)
    wait_for(lambda: max((run / "checkpoints").glob("*.pt")) != first or process.poll() is not None, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    if (run / f"checkpoints/step-{STEPS:08d}.pt").exists():  # the training was over before the signal came
        assert process.returncode in (0, 130), err
    else:
        assert process.returncode == 0 and f"continue with: python 01_ddpm_mnist/train.py --resume {run}" in out, err
    assert "Traceback" not in err

    done = run_program(TRAIN, "--resume", run)
    assert done.returncode == 0, done.stderr
    same(run, families["whole"][0])
