"""Experiments of chapter 3: grids of settings, and the keys under which results are cached."""

import shutil

import pytest

from ddim_schedules.experiment import TrainingSettings, grid, read_axes, training_key


def test_a_grid_has_every_combination_once():
    axes = read_axes(["sampler=ddim,heun", "steps=5,10", "eta=0,1", "seed=0,1"])
    assert axes["steps"] == [5, 10] and axes["eta"] == [0.0, 1.0]
    made = grid(axes)
    assert len(made) == 2 * (2 * 2 + 2)  # heun has no eta, so its two experiments are one
    assert {experiment.sampling.spec for experiment in made} == {
        "ddim:5:eta=0",
        "ddim:5:eta=1",
        "ddim:10:eta=0",
        "ddim:10:eta=1",
        "heun:5",
        "heun:10",
    }


@pytest.mark.parametrize(
    ("word", "sampler", "steps", "eta", "variance"),
    [
        ("ddim:50:eta=0.5", "ddim", 50, 0.5, ""),
        ("ddim:eta=0.5", "ddim", 20, 0.5, ""),
        ("DDIM_50_0p5", "ddim", 50, 0.5, ""),
        ("ddpm:variance=large", "ddpm", 20, None, "large"),
        ("heun:18", "heun", 18, None, ""),
        ("ddpm_naive", "ddpm_naive", 20, None, ""),
        ("ddpm_naive:50", "ddpm_naive", 50, None, ""),
        ("dpmpp_2m", "dpmpp_2m", 20, None, ""),
    ],
)
def test_samplers_are_written_as_elsewhere(word, sampler, steps, eta, variance):
    (experiment,) = grid({"sampler": [word]})
    got = experiment.sampling
    assert (got.sampler, got.steps, got.eta, got.variance) == (sampler, steps, eta, variance)


def test_a_key_is_the_same_for_the_same_settings_only():
    a, b, c = TrainingSettings(), TrainingSettings(loss="l2"), TrainingSettings(loss="l1")
    assert training_key(a) == training_key(b) != training_key(c)


def test_a_model_is_known_by_its_files(trained_run):
    model = trained_run / "model"
    copy = trained_run.parent / "copy"
    shutil.copytree(model, copy, dirs_exist_ok=True)
    assert training_key(TrainingSettings(model=str(model))) == training_key(TrainingSettings(model=str(copy)))
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon"))
    assert training_key(TrainingSettings(model=str(model))) != training_key(TrainingSettings(model=str(copy)))
