"""A run that was killed at any moment and resumed ends with the very same bytes as one that never stopped.

Two kinds of tests. Some start the command itself, as a user does. The others want many deaths at chosen moments, and a
fresh process spends seconds importing torch; so this file is also a program: it imports everything once and then forks
a child for every life of a run (`python tests/common/training/test_resume.py lives.json`).
"""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from PIL import Image

# This file is also a program, and pytest's path is not that of a program: it needs the course and tests/.
sys.path += [str(Path(__file__).parents[3]), str(Path(__file__).parents[2])]

from common.io.files import write_folder
from common.training.checkpoint import checkpoints
from helpers.programs import ROOT, TINY, TRAIN, environment, run_main, run_program

STEPS = 30
FLAGS = [*TINY, "--steps", str(STEPS), "--save-every", "7", "--sample-every", "100"]
FINAL = [
    "model/unet/diffusion_pytorch_model.safetensors",
    "model/unet/config.json",
    "model/scheduler/scheduler_config.json",
    "samples.png",
]


# ------------------------------------------------------------------------------------------- the program: many lives


def die(how: str = "SIGKILL") -> None:
    os.kill(os.getpid(), getattr(signal, how))


def arrange_death(moment: str, n: int, how: str) -> None:
    """Let this process get a signal at a chosen moment:
    in the n-th step of this life, or around its n-th checkpoint.
    """
    import torch

    import common.training.loop

    replace, save, check = os.replace, torch.save, common.training.loop.check_finite
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

    os.replace, torch.save, common.training.loop.check_finite = dying_replace, dying_save, dying_step


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

    import common.training.logging
    import common.viz  # noqa: F401

    return [live(life) for life in lives]


if __name__ == "__main__":
    print(json.dumps(live_all(json.loads(Path(sys.argv[1]).read_text()))))
    sys.exit()


# ---------------------------------------------------------------------------------------------------------- the tests


def rows(run: Path) -> list[dict]:
    """metrics.csv without the columns that tell the time."""
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {key: row[key] for key in row if key not in ("seconds", "images_per_second")}
            for row in csv.DictReader(file)
        ]


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
    "a checkpoint named but its row not yet logged": [
        ("after the rename", 1),
        ("after the rename", 1),
        ("after the rename", 2),
    ],
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
    assert [path.name for path in sorted((run / "checkpoints").glob("*.pt"))] == [
        "step-00000028.pt",
        "step-00000030.pt",
    ]


def wait_for(condition, process: subprocess.Popen) -> None:
    """Return when the condition holds.
    A process that ends before that fails the test; one that hangs is for the runner's limit.
    """
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_the_command_itself(families, tmp_path):
    """As a user does it: kill -9, then Ctrl-C, then to the end; three real processes."""
    run = tmp_path / "run"

    def begin(*flags: object) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, TRAIN, *map(str, flags)],
            cwd=ROOT,
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

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


# -------------------------------------------------------------------- flags and paths beside --resume, in this process


@pytest.fixture
def run(trained_run, tmp_path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@pytest.fixture
def folder_run(tmp_path, monkeypatch) -> Path:
    """A run on a folder of pictures that was named by a relative path."""
    monkeypatch.chdir(tmp_path)
    Path("pics").mkdir()
    Path("other").mkdir()
    for i in range(3):
        Image.new("RGB", (50, 40), (80 * i, 90, 10)).save(f"pics/{i}.png")
    run_main(TRAIN, "--data", "pics", *TINY[2:], "--steps", 4, "--save-every", 2, "--out", "run")
    return tmp_path / "run"


def settings_of(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def refused(result: tuple[int, str, str]) -> str:
    code, _, err = result
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err, result
    return err.splitlines()[-1]


def test_resume_from_another_folder(folder_run, monkeypatch):
    monkeypatch.chdir("other")
    run_main(TRAIN, "--resume", "../run", "--steps", 6)
    assert settings_of(folder_run)["steps"] == 6 and checkpoints(folder_run)[-1].stem == "step-00000006"
    monkeypatch.chdir("../run")
    run_main(TRAIN, "--resume", ".", "--steps", 7)
    assert checkpoints(folder_run)[-1].stem == "step-00000007"


def test_resume_with_moved_data(folder_run, command_line, monkeypatch):
    monkeypatch.chdir("other")
    Path("../pics").rename("../moved")
    said = refused(command_line(TRAIN, "--resume", "../run", "--steps", 6))
    assert "../run/config.json names --data" in said and "--data path/to/pics" in said
    run_main(TRAIN, "--resume", "../run", "--steps", 6, "--data", "../moved")
    assert settings_of(folder_run)["data"] == str(folder_run.parent / "moved")
    run_main(TRAIN, "--resume", "../run", "--steps", 8)  # the new place is kept
    assert checkpoints(folder_run)[-1].stem == "step-00000008"


@pytest.mark.parametrize("change", ["one more", "one less", "another"])
def test_resume_notices_other_pictures(change, folder_run, command_line):
    if change == "one more":
        shutil.copy("pics/0.png", "pics/3.png")
    elif change == "one less":
        Path("pics/2.png").unlink()
    else:
        Image.new("RGB", (50, 40), (1, 2, 3)).save("pics/1.png")
    said = refused(command_line(TRAIN, "--resume", "run", "--steps", 6))
    assert {"one more": "now holds 4", "one less": "now holds 2", "another": "differ from those"}[change] in said


@pytest.mark.parametrize(
    "flags",
    [
        ["--lr", 0.5],
        ["--batch-size", 9],
        ["--seed", 4],
        ["--channels", 8, 8],
        ["--no-class-conditional"],
        ["--flip", True],
        ["--schedule", "linear"],
        ["--prediction", "eps"],
        ["--size", 9],
        ["--gradient-accumulation", 2],
        ["--layers", 3],
        ["--precision", "bf16"],
        ["--out", "elsewhere"],
        ["--start", "01_ddpm_mnist/pretrained"],
    ],
    ids=lambda flags: flags[0],
)
def test_flags_that_would_change_what_is_learned_are_refused(flags, run, command_line):
    if flags == ["--no-class-conditional"]:
        (run / "config.json").write_text(json.dumps(settings_of(run) | {"class_conditional": True}))
    said = refused(command_line(TRAIN, "--resume", run, "--steps", 20, *flags))
    assert flags[0].replace("--no-", "--") in said and ("in the run" in said or "its own folder" in said)


def test_flags_that_repeat_the_runs_settings_are_fine(run):
    """Also a default that is typed out, and the run folder by another name."""
    run_main(
        TRAIN,
        "--resume",
        run,
        *TINY,
        "--steps",
        12,
        "--seed",
        0,
        "--gradient-accumulation",
        1,
        "--schedule",
        "cosine",
        "--out",
        run / ".." / "run",
    )


def test_a_default_that_is_typed_out_counts_as_given(run, command_line):
    (run / "config.json").write_text(json.dumps(settings_of(run) | {"layers": 2}))
    assert "--layers is 1 here and 2 in the run" in refused(command_line(TRAIN, "--resume", run, "--layers", 1))


def test_flags_that_may_change_are_applied_and_kept(run):
    run_main(
        TRAIN,
        "--resume",
        run,
        "--steps",
        14,
        "--sampler",
        "ddim:3",
        "--save-every",
        1,
        "--sample-every",
        7,
        "--device",
        "cpu",
    )
    kept = settings_of(run)
    assert (kept["steps"], kept["sampler"], kept["save_every"], kept["sample_every"], kept["device"]) == (
        14,
        "ddim:3",
        1,
        7,
        "cpu",
    )
    assert [path.stem for path in checkpoints(run)] == ["step-00000013", "step-00000014"] and (
        run / "samples" / "step-000014.png"
    ).exists()
    run_main(TRAIN, "--resume", run, "--minutes", 0.001)
    assert (settings_of(run)["steps"], settings_of(run)["minutes"]) == (None, 0.001)


@pytest.mark.parametrize(
    "part",
    [
        "checkpoints/step-00000012.pt",
        "checkpoints",
        "config.json",
        "model",
        "model/unet",
        "model/unet/config.json",
        "samples.png",
    ],
)
def test_resume_from_a_part_of_the_run(part, run):
    run_main(TRAIN, "--resume", run / part, "--steps", 13)
    assert checkpoints(run)[-1].stem == "step-00000013"


def test_a_checkpoint_must_be_the_newest(run, command_line):
    said = refused(command_line(TRAIN, "--resume", run / "checkpoints" / "step-00000010.pt"))
    assert (
        "step-00000010.pt is not the newest checkpoint" in said
        and "step-00000012.pt" in said
        and f"--resume {run}" in said
    )
    assert "there is no" in refused(command_line(TRAIN, "--resume", run / "checkpoints" / "step-00000099.pt"))
    assert "is no run folder" in refused(command_line(TRAIN, "--resume", run.parent))


def interrupt_after(n: int, patch: pytest.MonkeyPatch) -> None:
    """Let n calls of Path.rename and shutil.rmtree pass; the next one is interrupted before it does anything."""
    calls = count()
    for place, name in ((Path, "rename"), (shutil, "rmtree")):

        def call(*args, original=getattr(place, name), **more):
            if next(calls) >= n:
                raise KeyboardInterrupt  # no handler of write_folder takes it for a full disk
            return original(*args, **more)

        patch.setattr(place, name, call)


@pytest.mark.parametrize("n", range(6))
def test_a_folder_is_replaced_whole_at_every_instant(n, tmp_path):
    """Interrupted at any operation, the old folder or the new is there, and the next writing leaves nothing else."""
    model = tmp_path / "model"
    write_folder(model, lambda folder: (folder / "part").write_text("old"))
    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        interrupt_after(n, patch)
        write_folder(model, lambda folder: (folder / "part").write_text("new"))
    whole = [path for path in (model, model.with_name("model.old")) if path.exists()]
    assert whole and all((path / "part").read_text() in ("old", "new") for path in whole)
    write_folder(model, lambda folder: (folder / "part").write_text("newest"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (model / "part").read_text() == "newest"
