"""The runner of experiments, and ablate.py: studies on tiny networks, their files, and what is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image

from ddim_schedules.experiment import grid, read_axes
from ddim_schedules.runner import Runner, image_statistics
from ddim_schedules.studies import STUDIES
from helpers.programs import ROOT, run_main

ABLATE = "03_ddim_schedules/ablate.py"
PRETRAINED = ROOT / "03_ddim_schedules" / "pretrained"
TINY = ["train_steps=4", "batch_size=8", "channels=8-16", "size=8", "n=40", "steps=2"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A small study that has been run: (folder of the lab, folder of the study, flags)."""
    folder = tmp_path_factory.mktemp("study")
    flags = [
        "loss=l2,l1",
        "seed=0,1",
        *TINY,
        "--lab",
        folder / "lab",
        "--out",
        folder / "out",
        "--device",
        "cpu",
        "--precision",
        "no",
    ]
    run_main(ABLATE, *flags)
    return folder / "lab", folder / "out", flags


def read(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_leaves_a_table_a_plot_and_pictures(done):
    _, out, _ = done
    rows = read(out / "results.csv")
    assert len(rows) == 4 and {(row["loss"], row["seed"]) for row in rows} == {
        (a, b) for a in ("l1", "l2") for b in "01"
    }
    for row in rows:
        assert float(row["frechet"]) > float(row["frechet_real"]) > 0 and float(row["frechet_sd"]) > 0
        assert 0 < float(row["brightness"]) < 1 and row["diverged"] == "False" and row["evaluations"] == "2"
    assert len({row["frechet"] for row in rows}) == 4  # four trainings, four results
    for picture in ("plot.png", "grid.png"):
        with Image.open(out / picture) as image:
            assert np.asarray(image.convert("L")).std() > 5


def test_a_study_leaves_a_table_with_intervals(done):
    """A row for each combination, over its seeds; docs/results.toml makes tables of such files."""
    _, out, _ = done
    rows, measured = read(out / "study.csv"), read(out / "results.csv")
    assert [(row["label"], row["loss"], row["seeds"], row["evaluations"]) for row in rows] == [
        ("all", "l2", "2", "2"),
        ("all", "l1", "2", "2"),
    ]
    for row in rows:
        mean, low, high = (float(row[f"frechet{end}"]) for end in ("", "_low", "_high"))
        seeds = [float(each["frechet"]) for each in measured if each["loss"] == row["loss"]]
        assert mean == pytest.approx(sum(seeds) / 2) and low < min(seeds) and high > max(seeds)
        assert float(row["frechet_real"]) > 0


def test_nothing_is_done_twice(done, command_line):
    lab, out, flags = done
    before = {path: path.stat().st_mtime_ns for path in lab.rglob("*") if path.is_file()}
    table = (out / "results.csv").read_bytes()
    code, said, _ = command_line(ABLATE, *flags)
    assert code == 0 and "4 experiments, 4 of them known; 0 networks to train" in said
    assert {path: path.stat().st_mtime_ns for path in lab.rglob("*") if path.is_file()} == before
    assert (out / "results.csv").read_bytes() == table


def test_another_study_uses_the_same_networks(done, command_line, tmp_path):
    lab, _, flags = done
    words = [flag for flag in flags if flag != "steps=2" and flag not in ("--out", done[1])]
    code, said, _ = command_line(ABLATE, "steps=3", *words, "--out", tmp_path, "--dry")
    assert code == 0 and "4 experiments, 0 of them known; 0 networks to train" in said


def test_an_interrupted_study_goes_on_and_ends_the_same(done, tmp_path):
    """Stopped in the middle of a training, and again in the middle of the pictures."""
    (experiment, *_) = grid(read_axes(["loss=l2", "seed=0", *TINY, "train_steps=4"]))
    runner = Runner(tmp_path, device="cpu", precision="no")

    class Stopped(Exception):
        pass

    def stop_after(calls):
        left = [calls]

        def on_progress(_):
            left[0] -= 1
            if left[0] == 0:
                raise Stopped

        return on_progress

    for calls in (2, 5):  # the second training step; the first step of the pictures
        with pytest.raises(Stopped):
            runner.result(experiment, stop_after(calls))
        assert runner.cached_measures(experiment) is None
    result = runner.result(experiment)
    known = Runner(done[0], device="cpu").result(experiment)
    assert {k: v for k, v in result.items() if k != "seconds"} == {k: v for k, v in known.items() if k != "seconds"}


def test_a_training_that_diverges_is_a_result_too(command_line, tmp_path):
    flags = [
        "optimizer=adamw",
        "lr=1e-3,100",
        *TINY,
        "--lab",
        tmp_path / "lab",
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
        "--precision",
        "no",
    ]
    code, said, _ = command_line(ABLATE, *flags)
    rows = {float(row["lr"]): row for row in read(tmp_path / "out" / "results.csv")}
    assert code == 0 and "diverged" in said
    assert rows[100]["diverged"] == "True" and rows[100]["frechet"] == "" and rows[1e-3]["diverged"] == "False"


def test_sgd_begins_where_adamw_ended(tmp_path):
    runner = Runner(tmp_path, device="cpu", precision="no")
    (experiment,) = grid(read_axes(["optimizer=adamw-sgd", "lr=1e-9", *TINY]))
    (first,) = grid(read_axes(["optimizer=adamw", *TINY]))
    polished, before = (
        runner.trained_model(experiment.training, ema=False),
        runner.trained_model(first.training, ema=False),
    )
    for a, b in zip(polished.net.parameters(), before.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_ema_selects_the_weights(done):
    runner = Runner(done[0], device="cpu", precision="no")
    pair = grid(read_axes(["ema=yes,no", "loss=l2", "seed=0", *TINY]))
    averaged, last = (runner.sample(experiment) for experiment in pair)
    assert not torch.equal(averaged, last)


def test_ddpm_naive_runs_on_any_prediction(done):
    runner = Runner(done[0], device="cpu", precision="no")
    (experiment,) = grid(read_axes(["sampler=ddpm_naive", "loss=l2", "seed=0", *TINY]))
    assert runner.sample(experiment).isfinite().all()


def test_the_settings_of_an_experiment_can_be_read_back(done):
    lab, _, _ = done
    for path in (lab / "cells").glob("*.json"):
        kept = json.loads(path.read_text())
        assert kept["schedule"] == "cosine" and kept["n"] == 40 and kept["frechet"] > 0


def test_image_statistics():
    grey = torch.full((2, 3, 4, 4), -1.0)
    assert image_statistics(grey) == {"brightness": 0, "contrast": 0, "sharpness": 0, "saturation": 0}
    board = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).tile(2, 2).expand(2, 1, 4, 4)
    assert image_statistics(board) == {
        "brightness": 0.5,
        "contrast": pytest.approx(0.516, abs=1e-3),
        "sharpness": 1,
        "saturation": 0,
    }
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert image_statistics(red)["saturation"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to measure: one of samplers"),
        (["sampels"], "there is no study 'sampels'; choose one of samplers"),
        (["steps"], "there is no study 'steps'"),
        (["steps=10", "eta"], "cannot read 'eta'; write what to vary as key=value"),
        (["stepps=10"], "'stepps' cannot be varied; choose one of"),
        (["steps=ten"], "steps=ten: steps must be a whole number"),
        (["sampler=ddim", "lr=nan"], "lr must be above 0, not nan"),
        (["sampler=ddim", "n=0"], "n must be above 0, not 0"),
        (["sampler=ddim", "batch_size=0"], "batch_size must be above 0"),
        (["sampler=ddim", "layers=0"], "layers must be above 0"),
        (["sampler=ddim", "channels=abc"], "channels=abc: write the width at each resolution"),
        (["sampler=ddim", "channels=12"], "multiples of 8, not 12"),
        (["sampler=ddim", "channels=8-16-16-16-16-16"], "need images of at least"),
        (["sampler=ddim", "n=1000000000"], "n must be at most 1,000,000"),
        (["sampler=ddim,dpmpp_2m", "steps=3", "n=8"], "8 samples, "),
        (["ema=maybe", "steps=10"], "ema=maybe: ema must be yes or no"),
        (["sampler=eulr", "steps=10"], "there is none called 'eulr'"),
        (["sampler=ddim:fifty"], "fifty"),
        (["steps=1001"], "takes 1 to 1000 steps, not 1001"),
        (["sampler=ddim", "eta=1.5"], "eta must be between 0 and 1"),
        (["sampler=heun:20:eta=1"], "heun has no eta"),
        (["schedule=linea"], "unknown schedule 'linea'"),
        (["loss=l3"], "unknown loss 'l3'; choose one of l2"),
        (["weight=snr"], "unknown weight 'snr'"),
        (["clip=hard"], "clip=hard: choose static, none or dynamic"),
        (["optimizer=adam"], "optimizer=adam: choose adamw"),
        (["data=nothing"], "unknown data 'nothing'"),
        (["schedule=linear_zero_snr", "prediction=eps"], "ends at pure noise"),
        (["schedule=flow:v"], "do not go together"),
        (["network=dit"], "network=dit: write unet, or the patch, width and depth of a DiT"),
        (["network=dit-3-32-1"], "images of 16 pixels a side cannot be cut into patches of 3"),
        (["stop=0"], "stop=0: the part of the training that is done must be above 0"),
    ],
)
def test_bad_arguments_of_ablate(arguments, message, command_line, tmp_path):
    code, _, err = command_line(ABLATE, *arguments, "--out", tmp_path / "out", "--lab", tmp_path / "lab")
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "lab").exists()


def test_a_table_that_cannot_be_written(command_line, tmp_path):
    (tmp_path / "out").write_text("a file where a folder should be")
    code, _, err = command_line(ABLATE, "steps=3", "--out", tmp_path / "out")
    assert code == 2 and "cannot write" in err
    (tmp_path / "folder" / "results.csv").mkdir(parents=True)
    code, _, err = command_line(
        ABLATE, *TINY, "--out", tmp_path / "folder", "--lab", tmp_path / "lab", "--device", "cpu"
    )
    assert code == 2 and "results.csv" in err


def test_what_a_model_fixes_cannot_be_varied(command_line, trained_run, tmp_path):
    code, _, err = command_line(ABLATE, "loss=l1,l2", "--model", trained_run, "--out", tmp_path)
    assert code == 2 and "loss cannot be varied with --model" in err
    code, _, err = command_line(ABLATE, "sampler=ddim", "--model", tmp_path / "none", "--out", tmp_path)
    assert code == 2 and "there is no folder" in err


def test_samplers_of_a_given_model(command_line, trained_run, tmp_path):
    flags = [
        "sampler=ddim,ddpm:variance=large,ddpm_naive",
        "steps=2,3",
        "seed=0,1",
        "n=40",
        "data=digits",
        "--model",
        trained_run,
    ]
    code, said, _ = command_line(
        ABLATE, *flags, "--out", tmp_path / "out", "--lab", tmp_path / "lab", "--device", "cpu"
    )
    rows = read(tmp_path / "out" / "results.csv")
    assert code == 0 and len(rows) == 12 and {row["noise_seed"] for row in rows} == {"0", "1"}
    assert "ddpm variance=large" in said and "half a 95 % interval (over seeds)" in said


def test_the_studies_are_complete(command_line):
    code, said, _ = command_line(ABLATE, "--list")
    assert code == 0 and all(name in said and study.question in said for name, study in STUDIES.items())
    for study in STUDIES.values():
        assert grid(read_axes(study.vary.split()))


@pytest.mark.parametrize("name", ["losses", "ema", "dit", "flow"])
def test_studies_of_what_shows_in_detail_use_28x28_digits_and_three_seeds(name):
    experiments = grid(read_axes(STUDIES[name].vary.split()))
    assert {(e.training.data, e.training.size) for e in experiments} == {("mnist-10k", 28)}
    assert {e.training.seed for e in experiments} == {0, 1, 2}


@pytest.mark.parametrize("name", ["losses", "ema", "flow"])
def test_a_study_of_28x28_digits_runs_with_a_tiny_budget(name, command_line, tmp_path):
    flags = ["train_steps=2", "batch_size=4", "channels=8-8", "n=32", "steps=2", "seed=0"]
    places = ["--out", tmp_path / "out", "--lab", tmp_path / "lab", "--device", "cpu", "--precision", "no"]
    code, _, err = command_line(ABLATE, name, *flags, *places)
    rows = read(tmp_path / "out" / "results.csv")
    assert code == 0, err
    assert len(rows) == {"losses": 3, "ema": 6, "flow": 3}[name] and all(float(row["frechet"]) > 0 for row in rows)


def test_a_dit_and_a_unet_are_trained_for_equal_times(command_line, tmp_path):
    flags = ["dit", "network=unet,dit-7-32-1", "minutes=0.01", "batch_size=4", "channels=8-8", "n=32", "steps=2"]
    places = ["--out", tmp_path / "out", "--lab", tmp_path / "lab", "--device", "cpu", "--precision", "no"]
    code, _, err = command_line(ABLATE, *flags, "seed=0", *places)
    rows = read(tmp_path / "out" / "results.csv")
    assert code == 0, err
    assert [row["network"] for row in rows] == ["unet", "dit-7-32-1"] and rows[0]["prediction"] == "flow"
    assert all(float(row["frechet"]) > 0 for row in rows)


def test_a_training_can_stop_while_its_learning_rate_is_high(tmp_path):
    runner = Runner(tmp_path, device="cpu", precision="no")
    (experiment,) = grid(read_axes([*TINY, "stop=0.5"]))
    runner.train(experiment.training)
    metrics = read(runner.run_dir(experiment.training) / "metrics.csv")
    assert [row["step"] for row in metrics] == ["1", "2"]


def test_the_shipped_network_is_small_and_opens_in_diffusers():
    folder = PRETRAINED
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2_000_000
    assert DDPMPipeline.from_pretrained(folder).unet.config.sample_size == 16


def test_the_shipped_network_knows_its_digits(command_line, tmp_path):
    """Its samples are far nearer to real digits than those of a network after a few steps, with a distance of 50."""
    flags = ["sampler=dpmpp_2m", "steps=10", "n=200", "data=digits", "--model", PRETRAINED]
    code, _, err = command_line(
        ABLATE, *flags, "--out", tmp_path / "out", "--lab", tmp_path / "lab", "--device", "cpu"
    )
    (row,) = read(tmp_path / "out" / "results.csv")
    assert code == 0, err
    assert float(row["frechet"]) < 12
