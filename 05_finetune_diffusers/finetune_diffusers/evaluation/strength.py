"""What strength and guidance do in img2img, measured on drawn creatures that are redrawn as other
creatures' captions say.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from common.cli import pick_device
from common.data import load
from common.data.creatures.dataset import mentioned
from common.errors import enough_memory
from common.evaluate.creature_classifier import (
    CreatureClassifier,
    load_creature_classifier,
    mentioned_table,
    read_attributes,
)
from common.io.pixels import to_float
from common.io.progress import with_progress
from common.io.tables import print_table, write_csv
from common.viz import save_picture
from finetune_diffusers.evaluation.metrics import Curve, csv_columns, format_mean, plot_curves, rms_distance, tone
from finetune_diffusers.generation import PipelineSettings, check_strength, run_pipeline
from finetune_diffusers.images import column_sheet
from finetune_diffusers.models import native_size, open_pipeline
from finetune_diffusers.schedulers import check_schedulers, use_scheduler
from finetune_diffusers.training.loop.memory_usage import time_and_memory

BY_STRENGTH = ("moved", "kept", "followed")  # measures that strengths are compared by
BY_GUIDANCE = ("followed", "saturation", "clipped", "detail")  # measures that guidance scales are compared by
Measures = dict[str, Tensor]  # by name, each (N,)


class CrossedPairs(NamedTuple):
    """Pictures, each with the prompt of another one."""

    images: Tensor  # (N, 3, H, W) in [-1, 1]
    prompts: list[str]  # N
    had: Tensor  # (N, 11) attributes of the pictures
    wanted: Tensor  # (N, 11) attributes of the creatures that the prompts describe
    asked: Tensor  # (N, 11) bool: named in the prompt, and different in the picture


def strength_study(
    model: str,  # folder of a pipeline that draws creatures
    strengths: Sequence[float],  # compared at the guidance scale of the settings
    scales: Sequence[float],  # guidance scales, compared at strength 1
    n: int,  # pictures in each cell
    settings: PipelineSettings,
    split: str,  # of the creatures
    out: Path,  # folder of the tables and pictures
    device: str,  # as --device
) -> None:
    """Redraw at every strength and every guidance scale, measure, and write tables, plots and contact sheets."""
    check_schedulers([settings.scheduler])
    check_strength(settings.steps, min(strengths))
    at_guidance = settings.guidance
    device, began = pick_device(device), time.monotonic()
    pipe = open_pipeline(model, "image", device)
    use_scheduler(pipe, settings.scheduler)
    pipe.set_progress_bar_config(disable=True)
    pairs, classifier = make_pairs(n, split, native_size(pipe)), load_creature_classifier()
    cells = dict.fromkeys([(s, at_guidance) for s in strengths] + [(1.0, w) for w in scales])
    drawn, seen = {}, {}
    for strength, guidance in with_progress("settings", cells, unit="setting"):
        with enough_memory(device, "--n"):
            images = redraw(pipe, pairs, strength, replace(settings, guidance=guidance))
        drawn[strength, guidance], seen[strength, guidance] = images, measure(classifier, images, pairs)
    real = tone(pairs.images)

    by_strength = {s: seen[s, at_guidance] for s in strengths}
    by_guidance = {w: seen[1.0, w] for w in scales}
    print_means(by_strength, f"w = {at_guidance:g}", "strength", BY_STRENGTH, {}, n)
    print_means(by_guidance, "strength 1", "guidance", BY_GUIDANCE, real, n)
    rows = [{"strength": s, "guidance": w} | csv_columns(measures) for (s, w), measures in seen.items()]
    print(write_csv(out / "strength.csv", [*rows, {"strength": "real creatures", "guidance": ""} | csv_columns(real)]))
    print(plot_curves(panels(by_strength, BY_STRENGTH), {}, "strength", out / "strength.png"))
    lines = {name: {"real creatures": float(real[name].mean())} for name in BY_GUIDANCE if name in real}
    print(plot_curves(panels(by_guidance, BY_GUIDANCE), lines, "guidance scale", out / "guidance.png", log=True))
    few = min(n, 5)
    for name, columns in (
        ("strengths", {f"{s:g}": drawn[s, at_guidance] for s in strengths}),
        ("scales", {f"w = {w:g}": drawn[1.0, w] for w in scales}),
    ):
        print(save_picture(column_sheet({"the picture": pairs.images} | columns, few), out / f"{name}.png"))
    for i, prompt in enumerate(pairs.prompts[:few], 1):
        print(f"  row {i}: {prompt}")
    print(time_and_memory(time.monotonic() - began, torch.device(device)))


def make_pairs(n: int, split: str, size: int) -> CrossedPairs:
    """Creature i, and the caption of the creature after it."""
    images = load("creatures", size, split=split, language="en", n=n)
    order = torch.arange(n).roll(-1)
    had, named = images.attributes.table, mentioned_table([mentioned(0, split, i) for i in range(n)])
    wanted = had[order]
    return CrossedPairs(
        to_float(images.pixels), [images.captions[i] for i in order], had, wanted, named[order] & (wanted != had)
    )


def redraw(pipe: DiffusionPipeline, pairs: CrossedPairs, strength: float, settings: PipelineSettings) -> Tensor:
    """img2img of every picture with its prompt. (N, 3, H, W) in [-1, 1] on the CPU"""
    return run_pipeline(
        pipe, settings, len(pairs.prompts), prompt=pairs.prompts, image=(pairs.images + 1) / 2, strength=strength
    )


def measure(classifier: CreatureClassifier, images: Tensor, pairs: CrossedPairs) -> Measures:
    """How far the pictures moved, what they kept of what the prompt changes, what they followed, and how they look."""
    read, _ = read_attributes(classifier, images)  # (N, 11)
    asked = pairs.asked.sum(1).float()  # a picture of which nothing is asked gives NaN, and is left out of the means
    return {
        "moved": rms_distance(images, pairs.images),
        "kept": ((read == pairs.had) & pairs.asked).sum(1) / asked,
        "followed": ((read == pairs.wanted) & pairs.asked).sum(1) / asked,
        **tone(images),
    }


def panels(rows: dict[float, Measures], names: Sequence[str]) -> dict[str, dict[str, Curve]]:
    """One panel for each measure, with one curve along the axis."""
    return {name: {name: [(at, measures[name]) for at, measures in sorted(rows.items())]} for name in names}


def print_means(
    rows: dict[float, Measures], where: str, axis: str, names: tuple[str, ...], real: Measures, n: int
) -> None:
    """One line for each value of the axis: mean ± standard error."""
    print(f"\n{where}: mean ± standard error over {n} pictures")
    table = [
        {axis: f"{at:g}"} | {name: format_mean(measures[name], 3) for name in names} for at, measures in rows.items()
    ]
    if real:
        table.append({axis: "real"} | {name: format_mean(real[name], 3) if name in real else "" for name in names})
    print_table(table)
