"""The command line: bad input gives one clear sentence and exit code 2; good input gives what it promises."""

import errno
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common import cli
from common.errors import UserError
from common.io.ranges import RANGES, Range
from common.training.checkpoint import checkpoints
from helpers.programs import ROOT, SAMPLE, TINY, TRAIN, environment, load_program, run_main, run_program


def refused(result: tuple[int, str, str]) -> str:
    """The one sentence of a refusal."""
    code, _, err = result
    assert code == 2, result
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and err.strip().splitlines()[-1] == lines[0], err
    return lines[0]


def flags(*more: object) -> list[object]:
    return [*TINY, "--steps", 2, *more]


# ------------------------------------------------------------------------------------------------- train.py: bad input


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--data", "mnits"], "unknown data 'mnits'.*mnist"),
        (["--data", "missing/folder"], "unknown data 'missing/folder'.*nor an existing folder"),
        (["--data", "README.md"], "README.md is a file; --data takes a folder"),
        (["--size", 3], "--size must be at least 4 pixels, not 3"),
        (["--size", -8], "--size must be at least 4 pixels, not -8"),
        (["--size", 0], "--size must be at least 4 pixels, not 0"),
        (["--steps", -5], "--steps must be above 0, not -5"),
        (["--steps", 0], "--steps must be above 0, not 0"),
        (["--minutes", 1], "either as --steps or as --minutes, not both"),
        (["--batch-size", 0], "--batch-size must be above 0, not 0"),
        (["--lr", -0.1], "--lr must be above 0, not -0.1"),
        (["--lr", "nan"], "--lr must be above 0, not nan"),
        (["--gradient-accumulation", 0], "--gradient-accumulation must be above 0"),
        (["--layers", 0], "--layers must be above 0"),
        (["--save-every", 0], "--save-every must be above 0"),
        (["--sample-every", -1], "--sample-every must be above 0"),
        (
            ["--device", "abacus"],
            "the device 'abacus' cannot be used .there is no such type.; use --device auto or cpu",
        ),
        (["--device", "cuda:99"], "the device 'cuda:99' cannot be used"),
        (["--channels", 8, 12], "--channels must be one or more multiples of 8, not 8 12"),
        (["--channels", 8, 8, 8, 8], "4 resolutions need images of at least 16 pixels a side, not 8"),
        (["--schedule", "cosinus"], "unknown schedule 'cosinus'; choose one of linear"),
        (["--prediction", "noise"], "unknown prediction 'noise'; choose one of eps"),
        (["--schedule", "edm"], "schedule 'edm' and prediction 'v' do not go together"),
        (["--prediction", "flow"], "do not go together"),
        (
            ["--sampler", "euler:20"],
            "cannot read the sampler 'euler:20': there is none called 'euler'; write name:steps",
        ),
        (["--sampler", "ddim:5000"], "1 to 1000 steps, not 5000"),
        (["--sampler", "ddim:50:eta=2"], "eta must be between 0 and 1, not 2"),
        (["--sampler", "ddpm:5:variance=learned"], "this training learns no variance"),
        (["--data", ""], "--data is empty; give one of digits"),
        (["--seed", 10**30], "--seed must be at most 999,999,999,999,999,999"),
        (["--device", "meta"], "the device 'meta' cannot be used"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_train_refuses(command_line, tmp_path, given, said):
    message = refused(command_line(TRAIN, *flags("--out", tmp_path / "run", *given)))
    with pytest.raises(UserError, match=said):
        raise UserError(message)
    assert not checkpoints(tmp_path / "run")  # before the training, not after it


def test_train_refuses_folders_without_images(command_line, tmp_path):
    assert "there is no image in" in refused(command_line(TRAIN, *flags("--data", tmp_path)))
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(b"nothing")
    assert "3 of 3 images cannot be read, the first is" in refused(command_line(TRAIN, *flags("--data", tmp_path)))


def test_train_refuses_labels_where_there_are_none(command_line, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "--class-conditional needs labels" in refused(
        command_line(TRAIN, *flags("--data", tmp_path, "--class-conditional"))
    )


def test_train_refuses_a_folder_it_cannot_write(command_line, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused(command_line(TRAIN, *flags("--out", tmp_path / "file" / "run")))
    assert "cannot write to" in message and "choose another place with --out" in message
    if Path("/proc/version").exists():  # a place where not even root can make a folder
        assert "cannot write to /proc/" in refused(command_line(TRAIN, *flags("--out", "/proc/here/run")))


def test_train_refuses_to_write_over_a_run(command_line, trained_run):
    before = {path: path.stat().st_mtime_ns for path in trained_run.rglob("*")}
    message = refused(command_line(TRAIN, *flags("--out", trained_run)))
    assert f"already holds a run; continue it with --resume {trained_run}" in message
    assert {path: path.stat().st_mtime_ns for path in trained_run.rglob("*")} == before


def test_resume_refuses(command_line, trained_run, tmp_path):
    assert "config.json is missing" in refused(command_line(TRAIN, "--resume", tmp_path / "nowhere"))
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    config = json.loads((run / "config.json").read_text())
    for given, said in [
        (["--steps", -5], "--steps must be above 0, not -5"),
        (["--steps", 0], "--steps must be above 0, not 0"),
        (["--steps", 20, "--minutes", 1], "not both"),
        (["--device", "abacus"], "the device 'abacus' cannot be used"),
    ]:
        assert said in refused(command_line(TRAIN, "--resume", run, *given)), given
    for text, said in [
        ("{", "cannot be read as JSON"),
        ("[]", "JSON object"),
        (json.dumps(config | {"colour": "red"}), "settings this program does not know: colour"),
        (json.dumps({key: value for key, value in config.items() if key != "channels"}), "channels"),
    ]:
        (run / "config.json").write_text(text)
        assert said in refused(command_line(TRAIN, "--resume", run)), text


@pytest.mark.parametrize(
    ("given", "named"), [(["--stpes", 5], "--stpes"), (["--steps", "many"], "many"), (["--precision", "fp8"], "fp8")]
)
def test_flags_that_do_not_exist_or_cannot_be_read(command_line, given, named):
    """tyro says these, in its own box, and proposes what was meant."""
    code, _, err = command_line(TRAIN, *given)
    assert code == 2 and named in err and "Traceback" not in err


def test_a_rate_far_too_high(tmp_path, monkeypatch):
    """One that no flag can name, but a network of another kind may find much smaller ones too high."""
    monkeypatch.setitem(RANGES, "lr", Range(0, 1e40))
    with pytest.raises(UserError) as problem:
        run_main(TRAIN, *flags("--steps", 20, "--lr", 1e30, "--save-every", 1, "--out", tmp_path / "run"))
    message = str(problem.value)
    assert "the loss is" in message and "try a smaller --lr (it was 1e+30)" in message
    kept = checkpoints(tmp_path / "run")
    assert kept and str(kept[-1]) in message
    assert all(torch.isfinite(value).all() for value in torch.load(kept[-1], weights_only=True)["net"].values())


def test_a_real_process_ends_with_code_2_and_one_line():
    done = run_program(TRAIN, "--data", "mnits", "--steps", 2)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: unknown data 'mnits'") and len(done.stderr.splitlines()) == 1


# ------------------------------------------------------------------------------------------------ sample.py: bad input


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--n", 0], "--n must be above 0"),
        (["--batch-size", -1], "--batch-size must be above 0"),
        (["--size", 0], "--size must be at least 4 pixels"),
        (["--label", 3], "--label 3 does not exist: .* has no classes"),
        (["--sampler", "ddim"], "cannot read the sampler 'ddim'"),
        (["--sampler", "ddim:1001"], "1 to 1000 steps, not 1001"),
        (["--device", "abacus"], "the device 'abacus' cannot be used"),
        (["--model", "nowhere"], "there is no folder nowhere"),
        (["--model", "common"], "common holds no model"),
        (["--out", "grid.xyz"], "grid.xyz; end it in .png"),
        (["--out", "grid.gif", "--gif"], "--gif would write over grid.gif, which --out names; choose another --out"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_sample_refuses(command_line, trained_run, given, said):
    message = refused(
        command_line(SAMPLE, "--model", trained_run, "--n", 2, "--sampler", "ddim:2", "--device", "cpu", *given)
    )
    with pytest.raises(UserError, match=said):
        raise UserError(message)


def test_sample_refuses_a_damaged_model(command_line, trained_run, tmp_path):
    shutil.copytree(trained_run / "model", tmp_path / "model")
    weights = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "diffusion_pytorch_model.safetensors is damaged" in refused(
        command_line(SAMPLE, "--model", tmp_path / "model")
    )


def test_sample_refuses_a_place_it_cannot_write(command_line, trained_run, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(
        command_line(SAMPLE, "--model", trained_run, "--n", 2, "--sampler", "ddim:2", "--out", tmp_path / "file/a.png")
    )


# --------------------------------------------------------------------------------------------------------- good input


def test_training_leaves_what_it_promises(trained_run):
    for name in (
        "config.json",
        "metrics.csv",
        "samples.png",
        "strip.png",
        "process.gif",
        "loss.png",
        "model/model_index.json",
    ):
        assert (trained_run / name).stat().st_size > 0, name
    assert len(list((trained_run / "samples").glob("*.png"))) >= 9  # at each tenth of the budget
    assert len(list(trained_run.glob("events.out.tfevents.*"))) == 1
    assert not list(trained_run.rglob("*.partial"))
    config = json.loads((trained_run / "config.json").read_text())
    assert config["channels"] == [8, 16] and config["lr"] > 0  # every setting is settled, also those not given
    with Image.open(trained_run / "process.gif") as gif:
        assert gif.n_frames > 1


@pytest.mark.parametrize(
    "given",
    [
        ["--schedule", "flow", "--prediction", "flow", "--sampler", "dpmpp_2m:4"],
        ["--schedule", "edm", "--prediction", "edm", "--sampler", "heun:4"],
        [
            "--schedule",
            "linear",
            "--prediction",
            "eps",
            "--sampler",
            "ddpm:4",
            "--gradient-accumulation",
            2,
            "--layers",
            2,
        ],
        [
            "--schedule",
            "sigmoid",
            "--prediction",
            "x0",
            "--sampler",
            "dpmpp_2s:4",
            "--flip",
            "True",
            "--precision",
            "bf16",
        ],
    ],
    ids=lambda given: given[1],
)
def test_train_then_sample(command_line, tmp_path, given):
    code, out, err = command_line(TRAIN, *flags("--out", tmp_path / "run", *given))
    assert code == 0 and str(tmp_path / "run" / "samples.png") in out, err
    code, out, err = command_line(
        SAMPLE,
        "--model",
        tmp_path / "run",
        "--n",
        3,
        "--sampler",
        "ddim:3",
        "--out",
        tmp_path / "s.png",
        "--device",
        "cpu",
    )
    assert code == 0 and (tmp_path / "s.png").exists(), err


def test_training_with_labels_then_asking_for_one(command_line, tmp_path):
    run = tmp_path / "run"
    assert command_line(TRAIN, *flags("--out", run, "--class-conditional"))[0] == 0
    ask = ["--model", run, "--n", 3, "--sampler", "ddim:3", "--device", "cpu", "--npy"]
    pictures = []
    for name, label in (("three", ["--label", 3]), ("seven", ["--label", 7]), ("all", [])):
        assert command_line(SAMPLE, *ask, *label, "--out", tmp_path / f"{name}.png")[0] == 0
        pictures.append(np.load(tmp_path / f"{name}.npy"))
    assert (pictures[0] != pictures[1]).any()
    assert "--label 10 does not exist" in refused(command_line(SAMPLE, *ask, "--label", 10))
    assert "--label must be 0 or more, not -1" in refused(command_line(SAMPLE, *ask, "--label", -1))


def test_training_goes_on_from_another_model(trained_run, tmp_path):
    """With its weights, as wide as it is; and --resume needs the other model no more."""
    other, run = shutil.copytree(trained_run, tmp_path / "other"), tmp_path / "run"
    widths = TINY.index("--channels")
    run_main(
        TRAIN,
        *TINY[:widths],
        *TINY[widths + 3 :],
        "--seed",
        1,
        "--start",
        other,
        "--steps",
        1,
        "--lr",
        1e-6,
        "--out",
        run,
    )
    old, new = (load_file(folder / "model/unet/diffusion_pytorch_model.safetensors") for folder in (other, run))
    assert old.keys() == new.keys() and all(float((old[key] - new[key]).abs().max()) < 1e-5 for key in old)
    shutil.rmtree(other)
    run_main(TRAIN, "--resume", run, "--steps", 2, "--device", "cpu")
    assert checkpoints(run)[-1].name == "step-00000002.pt"


def test_a_run_that_was_killed_at_once_begins_where_it_began(trained_run, tmp_path):
    """Before the first checkpoint --resume starts anew, and that is with the weights of --start."""
    run_main(TRAIN, *TINY, "--start", trained_run, "--steps", 1, "--lr", 1e-6, "--out", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.rmtree(tmp_path / "run" / "model")
    run_main(TRAIN, "--resume", tmp_path / "run", "--device", "cpu")
    old, new = (
        load_file(folder / "model/unet/diffusion_pytorch_model.safetensors")
        for folder in (trained_run, tmp_path / "run")
    )
    assert all(float((old[key] - new[key]).abs().max()) < 1e-5 for key in old)


def test_a_disk_that_fills_up_between_checkpoints(command_line, tmp_path, monkeypatch):
    from common.training import logging as runlog

    def flush():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, state, real=runlog.RunLog.write):
        if state.step == 5:
            self.file = types.SimpleNamespace(flush=flush, close=flush)
        real(self, state)

    monkeypatch.setattr(runlog.RunLog, "write", write)
    message = refused(command_line(TRAIN, *flags("--steps", 20, "--save-every", 4, "--out", tmp_path / "run")))
    assert "metrics.csv (No space left on device); make room, then go on with --resume" in message
    monkeypatch.undo()
    run_main(TRAIN, "--resume", tmp_path / "run", "--device", "cpu")
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(1, 21))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--layers", 2], "another build (layers = 1 against 2); leave out --start, or give its settings"),
        (["--class-conditional"], "another build (classes = None against 10)"),
        (["--start", "nowhere"], "there is no folder nowhere"),
        (["--prediction", "eps"], "predicts v, not eps; give --prediction v"),
    ],
)
def test_train_refuses_to_start_from(command_line, trained_run, tmp_path, given, said):
    assert said in refused(command_line(TRAIN, *flags("--start", trained_run, "--out", tmp_path / "run", *given)))
    assert not (tmp_path / "run").exists()


def test_training_on_a_folder(command_line, tmp_path):
    (tmp_path / "faces").mkdir()
    for k in range(20):
        Image.new("RGB", (20, 30), (10 * k, 0, 255)).save(tmp_path / f"faces/{k:02d}.png")
    (tmp_path / "faces/04.png").write_bytes(b"nothing")
    code, out, err = command_line(TRAIN, *flags("--data", tmp_path / "faces", "--out", tmp_path / "run"))
    assert code == 0 and "17 images of 8x8" in out, err
    assert [line for line in err.splitlines() if "1 left out (1 that cannot be read)" in line], err
    with Image.open(tmp_path / "run/samples.png") as picture:
        assert picture.mode == "RGB"


def test_auto_says_in_one_line_what_it_took(command_line, tmp_path, monkeypatch):
    monkeypatch.setattr("common.data.sources.torchvision_datasets.reachable", lambda url: False)
    code, out, _ = command_line(TRAIN, *flags("--data", "auto", "--data-dir", tmp_path, "--out", tmp_path / "run"))
    assert code == 0 and [line for line in out.splitlines() if line.startswith("data: ")] == [out.splitlines()[0]]
    assert "embedded" in out.splitlines()[0]


def test_runs_without_a_name_never_meet(command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert command_line(TRAIN, *flags())[0] == 0
    assert sorted(path.name for path in (tmp_path / "runs/01_ddpm_mnist").iterdir()) == ["digits", "digits-2"]


def test_sample_gives_as_many_as_asked(command_line, trained_run, tmp_path):
    ask = [
        "--model",
        trained_run,
        "--n",
        5,
        "--batch-size",
        2,
        "--sampler",
        "ddim:3",
        "--device",
        "cpu",
        "--npy",
        "--gif",
    ]
    assert command_line(SAMPLE, *ask, "--out", tmp_path / "a.png")[0] == 0
    assert command_line(SAMPLE, *ask, "--out", tmp_path / "b.png")[0] == 0
    assert command_line(SAMPLE, *ask, "--seed", 1, "--out", tmp_path / "c.png")[0] == 0
    a, b, c = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    assert a.shape == (5, 8, 8, 1) and a.dtype == np.uint8
    assert (a == b).all() and (a != c).any()
    assert all((a[i] != a[j]).any() for i in range(5) for j in range(i))  # no batch repeats another
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames > 1


# -------------------------------------------------------------------------------------------------- the manners of cli


@pytest.mark.parametrize(
    ("torch_version", "vision_version", "fits"),
    [
        ("2.12.1", "0.27.1", True),
        ("2.12.0+cpu", "0.27.0+cpu", True),
        ("2.11.0", "0.26.0", True),
        ("2.13.0", "0.27.1", False),
        ("2.12.1", "0.26.0", False),
        ("2.99.0", "0.99.0", True),  # unknown to us: not for us to refuse
    ],
)
def test_torch_and_torchvision_must_belong_together(monkeypatch, torch_version, vision_version, fits):
    monkeypatch.setattr(importlib.metadata, "version", {"torch": torch_version, "torchvision": vision_version}.get)
    if fits:
        cli.check_versions()
    else:
        with pytest.raises(
            UserError,
            match=f"torch {torch_version} and torchvision {vision_version} were not built for each other.*requirements.txt",
        ):
            cli.check_versions()


def test_a_mismatch_is_a_refusal(command_line, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", {"torch": "2.13.0", "torchvision": "0.27.1"}.get)
    assert "were not built for each other" in refused(command_line(TRAIN, *flags()))


@pytest.mark.parametrize("program", [TRAIN, SAMPLE])
def test_help_does_not_wait_for_torch(program):
    """It answers at once because nothing heavy is imported;
    that is what is asserted, for clocks lie on busy machines.
    """
    code = f"""
import runpy, sys
sys.argv = [{program!r}, "--help"]
sys.path.insert(0, {str(Path(program).parent)!r})  # as `python PROGRAM` does
try:
    runpy.run_path({program!r}, run_name="__main__")
except SystemExit as stop:
    print("code", stop.code or 0)
print("heavy", sorted({{"torch", "torchvision", "numpy", "accelerate", "sklearn", "PIL", "matplotlib"}} & sys.modules.keys()))
"""
    done = run_program("-c", code)
    assert done.stdout.splitlines()[-2:] == ["code 0", "heavy []"], done.stdout + done.stderr
    assert "--sampler" in done.stdout and "ddim:50" in done.stdout


def test_free_folder_numbers_what_is_taken(tmp_path):
    assert cli.free_folder(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    assert cli.free_folder(tmp_path / "run") == tmp_path / "run"  # empty is free
    (tmp_path / "run/config.json").write_text("{}")
    (tmp_path / "run-2").write_text("a file")
    assert cli.free_folder(tmp_path / "run") == tmp_path / "run-3"


def test_warnings_are_one_line(command_line, monkeypatch):
    """Without the file name and source line that Python would add."""

    def main(args) -> None:
        warnings.warn("something small", stacklevel=1)

    import conftest

    module = conftest.load_program(TRAIN)
    monkeypatch.setattr(module, "main", main)
    main.__module__ = module.__name__
    assert command_line(TRAIN) == (0, "", "warning: something small\n")


def test_help_of_every_program_shows_each_example_on_its_own_line(capsys):
    """Examples that are not indented would be filled into one paragraph."""
    programs = [
        path
        for part in ("0*_*", "bench", "common")
        for path in sorted(ROOT.glob(f"{part}/**/*.py"))
        if "    run(main, Args)\n" in path.read_text(encoding="utf-8")
    ]
    found = 0
    for path in programs:
        module = load_program(path.relative_to(ROOT).as_posix())
        description = sys.modules[module.main.__module__].__doc__ or ""  # as cli.run finds it
        examples = [line.strip() for line in description.splitlines() if line.strip().startswith("python ")]
        with pytest.raises(SystemExit):
            cli.parse(module.Args, ["--help"], description)
        shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
        assert [example for example in examples if example not in shown] == [], path
        found += len(examples)
    assert len(programs) > 40 and found > 100


def test_help_into_a_pipe_that_nobody_reads():
    """As `train.py --help | head -1` does: no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, TRAIN, "--help"],
        cwd=ROOT,
        env=environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert done.stderr == ""
