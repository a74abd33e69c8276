"""Two processes with 8 images each train as one process with 16: torchrun on two CPU processes."""

import csv
from pathlib import Path

import pytest

from common.models.model_folder import load_model
from common.training.checkpoint import checkpoints
from helpers.programs import ROOT, TINY, TRAIN, run_main, run_program

STEPS = 8
# TINY says --batch-size 8; the last one counts
FLAGS = [*TINY, "--steps", STEPS, "--save-every", 4, "--sample-every", 100]


def column(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """(one process, two processes): the same training of 16 images a step."""
    folder = tmp_path_factory.mktemp("processes")
    run_main(TRAIN, *FLAGS, "--batch-size", 16, "--out", folder / "one")
    # --standalone finds a free port by itself, so that several of these can run at once
    done = run_program(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        2,
        TRAIN,
        *FLAGS,
        "--batch-size",
        8,
        "--out",
        folder / "two",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("more images") == 1  # one of them talks
    return folder / "one", folder / "two"


def test_the_loss_curve_is_the_same(runs):
    one, two = runs
    assert column(two, "step") == list(range(1, STEPS + 1))
    assert column(two, "loss") == pytest.approx(column(one, "loss"), rel=1e-4)
    assert column(two, "grad_norm") == pytest.approx(column(one, "grad_norm"), rel=1e-3)
    assert column(two, "lr") == column(one, "lr")
    assert len(set(column(one, "loss"))) == STEPS


def test_the_model_is_the_same(runs):
    import torch

    one, two = (torch.cat([p.detach().flatten() for p in load_model(run).net.parameters()]) for run in runs)
    # as a whole: Adam makes whole steps even of gradients so small that their sign is a matter of rounding
    assert float((two - one).norm() / one.norm()) < 1e-3


def test_eight_images_would_not_do(runs, tmp_path):
    """Otherwise the comparison above would have shown nothing."""
    run_main(TRAIN, *FLAGS, "--batch-size", 8, "--out", tmp_path / "small")
    assert column(tmp_path / "small", "loss") != pytest.approx(column(runs[0], "loss"), rel=1e-2)


def test_a_signal_to_one_process_stops_all(tmp_path):
    """The second process gets SIGTERM in its third step; both end after that step, and the checkpoint is whole."""
    program = tmp_path / "signalled.py"
    program.write_text(f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]  # the course too: tests/common would hide an installed `common`
from helpers.programs import run_main
import common.training.loop
check, calls = common.training.loop.check_finite, []
def signalled(*args):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    check(*args)
common.training.loop.check_finite = signalled
run_main({TRAIN!r}, *{[str(flag) for flag in FLAGS]!r}, "--out", {str(tmp_path / "run")!r})
""")
    done = run_program("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, program)
    assert done.returncode == 0 and done.stdout.count("stopped after step 3; continue with") == 1, (
        done.stdout + done.stderr
    )
    assert [path.stem for path in checkpoints(tmp_path / "run")] == ["step-00000003"]


def test_one_process_can_continue_what_two_began(runs):
    """The checkpoint is the same thing whoever wrote it."""
    _, two = runs
    run_main(TRAIN, "--resume", two, "--steps", STEPS + 2)
    assert column(two, "step") == list(range(1, STEPS + 3))
