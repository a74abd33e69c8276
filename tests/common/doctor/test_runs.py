"""`python -m common.doctor --run` recognises each seeded fault by its name, and finds nothing in healthy runs."""

import json
import re
import shutil

import pytest

from common import viz
from common.doctor.consultation import consult, of_a_run
from common.doctor.finding import NOTE, SKIPPED, WRONG, Finding
from common.doctor.practice import FAULTS, practise
from common.doctor.runs import generalization, loss_curve, training_data
from common.doctor.runs.run_files import Run, cut, open_run
from common.errors import UserError
from helpers.programs import ROOT

DIAGNOSES = {  # what is found wrong in a run with each fault, and nothing else
    "healthy": set(),
    "healthy-latents": set(),
    "not-finite": {"loss is finite", "data range"},
    "rate-too-high": {"loss"},
    "rate-too-low": {"loss"},
    "frozen": {"gradient"},
    "range-0-1": {"data range"},
    "range-0-255": {"data range"},
    "unscaled-latents": {"latents"},
    "tiny-latents": {"latents"},
    "dead-class": {"classes"},
    "ignored-labels": {"labels"},
    "dark": {"colours"},
    "tinted": {"colours"},
    "ema-lag": {"average (EMA)"},
    "overfit": {"classes", "overfitting"},  # eight digits do not have all ten labels
    "wrong-prediction": {"saved model"},
    "collapsed": {"samples"},
}
LONG = {  # faults that show in samples or weights need a network that has learned something
    "healthy", "healthy-latents", "ignored-labels", "overfit", "wrong-prediction", "dead-class", "tinted", "ema-lag",
    "collapsed",
}  # fmt: skip
SHIPPED = {
    "01_ddpm_mnist": {"data": "mnist-10k"},
    "02_cfg_pokemon": {"data": "creatures", "language": "both"},
    "03_ddim_schedules": {"data": "digits"},
    "04_latent_sd": {"data": ["creatures"], "language": "both"},
}


def wrong_subjects(findings: list[Finding]) -> set[str]:
    assert all(each.cure for each in findings if each.status == WRONG), "every diagnosis has a cure"
    return {each.subject for each in findings if each.status == WRONG}


def test_every_fault_has_a_diagnosis():
    assert set(FAULTS) == set(DIAGNOSES)
    assert len([name for name in FAULTS if not name.startswith("healthy")]) >= 12


@pytest.mark.parametrize("name", DIAGNOSES)
def test_a_seeded_fault_is_recognised_and_nothing_else(name, tmp_path):
    practise(name, tmp_path / "run", steps=120 if name in LONG else 60)
    assert wrong_subjects(list(of_a_run(tmp_path / "run", tmp_path))) == DIAGNOSES[name]


@pytest.mark.parametrize("chapter", SHIPPED)
def test_no_false_alarm_on_shipped_models(chapter, tmp_path, monkeypatch):
    """Their trainings are not in the repository, so a run folder is made of the model and the settings alone."""
    monkeypatch.setattr(generalization, "IMAGES", 16)
    shutil.copytree(ROOT / chapter / "pretrained", tmp_path / "model")
    run = Run(tmp_path, SHIPPED[chapter], [{}] * 100)  # no log is shipped
    found = list(generalization.findings(run, tmp_path))
    assert wrong_subjects(found) == set()
    assert SKIPPED not in {each.status for each in found}


def test_no_false_alarm_on_a_run_of_a_few_steps(trained_run, tmp_path):
    found = list(of_a_run(trained_run, tmp_path))
    assert wrong_subjects(found) == set()
    assert "loss" in {each.subject for each in found if each.status == SKIPPED}


# ------------------------------------------------------------------------------------------- what the files alone say


def run_with(losses, **settings) -> Run:
    rows = [{"step": str(k), "loss": str(loss), "grad_norm": "0.5"} for k, loss in enumerate(losses, 1)]
    return Run(ROOT / "no such run", settings, rows)


def test_a_loss_that_rises_before_it_is_nan_names_the_rate():
    run = run_with([1.0] * 20 + [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, float("nan")], lr=0.1)
    (found,) = loss_curve.findings(run)
    assert found.subject == "loss is finite" and "step 27" in found.seen and "--lr" in found.cure
    (found,) = loss_curve.findings(run_with([1.0] * 20 + [float("nan")], lr=0.1, precision="fp16"))
    assert "images" in found.cure and "--precision no" in found.cure


def test_a_loss_that_rises_in_its_first_steps():
    """The mean of the first five steps has risen itself; no later one is a quarter above it."""
    losses = [0.87, 1.03, 0.92, 1.03, 1.97, 1.13, 1.38, 1.02, 0.74, 0.8, 0.75, 0.78, 0.97, 0.85] + [0.7, 0.72] * 23
    (found,) = loss_curve.findings(run_with(losses, lr=0.4))
    assert found.status == WRONG and found.seen.startswith("rises from 0.95 to 1.31")


@pytest.mark.parametrize("start, status", [("models/trained", "fine"), (None, WRONG)])
def test_a_trained_network_need_not_improve(start, status):
    (found,) = loss_curve.findings(run_with([0.31, 0.29] * 50, start=start, lr=1e-4))
    assert found.status == status


def test_captions_are_missed_in_a_long_training_alone():
    unused, used = generalization.Comparison(1.0, 0.1), generalization.Comparison(1.8, 9.0)
    assert generalization.effect(unused, 80, "captions").status == NOTE
    assert generalization.effect(unused, 5000, "captions").status == WRONG
    assert generalization.effect(used, 5000, "captions").status == "fine"


def test_noise_of_small_batches_is_no_rise():
    (found,) = loss_curve.findings(run_with([0.2, 0.5, 0.1, 0.4, 0.3, 0.7, 0.2, 0.6] * 20, start="model", lr=1e-4))
    assert found.status == "fine"


def test_an_adversarial_loss_is_not_judged():
    (found,) = loss_curve.findings(run_with([1.0] * 50 + [2.0] * 50, adversarial=0.5))
    assert found.status == SKIPPED


def test_guidance_without_an_empty_caption(tmp_path):
    (tmp_path / "batch.json").write_text(json.dumps({"image": {"min": -1, "max": 1, "mean": 0, "std": 1}}))
    for dropout, expected in ((0.0, {"empty caption"}), (0.1, set())):
        run = Run(tmp_path, {"caption_dropout": dropout, "guidance": 5.0}, [])
        assert wrong_subjects(list(training_data.findings(run))) == expected


def test_the_deviation_of_a_posterior_counts():
    assert training_data.latents({"mean": 0, "std": 0.6}, {"mean": 0.8, "std": 0.0}).status == "fine"
    assert training_data.latents({"mean": 0, "std": 0.0}, None).status == WRONG


@pytest.mark.parametrize("columns, height", [(8, None), (8, 160), (4, 700)])
def test_a_sample_picture_is_cut_as_it_was_drawn(columns, height, tmp_path):
    import torch

    images = torch.rand(15, 3, 9, 9) * 1.8 - 1  # one place of the grid stays empty
    path = viz.save_picture(viz.grid(images, columns, height), tmp_path / "samples.png")
    found = cut(path, 9)
    assert found is not None and found.shape == images.shape
    assert (found - images).abs().max() <= 1 / 127.5
    assert cut(path, 5) is None


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        open_run(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no run"):
        open_run(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,loss,grad_norm\n1,abc,1\n2,0.5,1\n")
    with pytest.raises(UserError, match="no number"):
        list(of_a_run(tmp_path, tmp_path))


def test_a_run_of_which_only_the_log_is_left(tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("step,loss,grad_norm\n" + "".join(f"{k},{1 / k},1\n" for k in range(1, 101)))
    assert consult(tmp_path, None, None, tmp_path, "cpu") == 0
    assert "not seen  weights" in capsys.readouterr().out


def test_the_page_about_debugging_names_every_fault():
    page = (ROOT / "docs" / "debugging.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)
    assert named == [name for name in FAULTS if not name.startswith("healthy")]
