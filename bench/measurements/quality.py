"""Samples after equal training time, and their distance to the test images."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.harness import SAMPLE, TRAIN, report, run_python
from bench.measurements.budgets import Budgets, Files
from bench.measurements.ddp_package import samples_of_package
from common import viz
from common.cli import writable_folder
from common.data import load
from common.errors import UserError
from common.evaluate.evaluator import Report, evaluate
from common.evaluate.samples import read_npy

TARGET = "target: theirs / ours at least 4 after 5 minutes"


def compare_quality(
    budgets: Budgets, only: str, lrs: Sequence[float], weights: Sequence[str], sampling_steps: int, json: Path | None
) -> None:
    """Train and sample what is missing, evaluate all samples and report the distances."""
    writable_folder(budgets.out)
    train, test = (load(budgets.data, data_dir=budgets.data_dir, split=split) for split in ("train", "test"))
    if (train.channels, train.size) != (1, 28):
        raise UserError(f"this bench takes mnist or fashion_mnist (28 pixels, one channel), not {budgets.data}")
    files = samples_of_course(budgets) if only != "theirs" else {}
    files |= samples_of_package(budgets, train, lrs, weights, sampling_steps) if only != "ours" else {}
    reports = {}
    for key, path in files.items():
        samples = read_npy(path)
        reports[key] = evaluate(samples, test, train, budgets.seed)
        viz.save_picture(viz.grid(samples[:64], 8, 480), path.with_suffix(".png"))
    figures: dict[str, object] = {
        "cores used": torch.get_num_threads(),
        "precision": budgets.resolved_precision,
        "samples": budgets.n,
    }
    for minutes in budgets.minutes:
        figures |= distances(
            minutes, {name: report for (name, budget), report in reports.items() if budget == minutes}
        )
    report(f"Frechet distance on {budgets.data} after equal training time ({TARGET})", figures, json)
    print(f"grids of 64 samples beside the samples in {budgets.out}")


def distances(minutes: float, reports: dict[str, Report]) -> dict[str, object]:
    """The figures of one budget."""
    figures: dict[str, object] = {
        f"{minutes:g} min: {name}": (report.frechet, report.frechet_sd) for name, report in reports.items()
    }
    floor = next(iter(reports.values()))
    figures[f"{minutes:g} min: real images (the floor)"] = (floor.frechet_real, floor.frechet_real_sd)
    others = {name: report.frechet for name, report in reports.items() if name != "ours"}
    if "ours" in reports and others:
        best = min(others, key=lambda name: others[name])
        figures[f"{minutes:g} min: {best} / ours"] = others[best] / reports["ours"].frechet
    return figures


def samples_of_course(budgets: Budgets) -> Files:
    """Samples of chapter 1, by the commands that a learner types."""
    files = {("ours", minutes): budgets.file("ours", minutes) for minutes in budgets.minutes}
    for (_, minutes), path in files.items():
        if path.exists():
            continue
        folder = path.with_suffix("").resolve()
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
        print(f"train.py for {minutes:g} minutes", flush=True)
        common = ["--seed", budgets.seed, "--device", "cpu"]
        run_python(
            TRAIN,
            "--data",
            budgets.data,
            "--data-dir",
            budgets.data_dir.resolve(),
            "--minutes",
            minutes,
            "--precision",
            budgets.precision,
            *common,
            "--out",
            folder,
        )
        run_python(SAMPLE, "--model", folder, "--n", budgets.n, *common, "--npy", "--out", folder / "drawn.png")
        (folder / "drawn.npy").rename(path)
    return files
