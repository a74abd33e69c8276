"""Repairs damaged pictures with img2img or inpainting, over a grid of settings, and measures each of them.

results = repair(pipe, damaged, RepairSettings("inpaint", strength=0.6, guidance=3.0, steps=30), "dpm++", seed=0)
"""

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps
from torch import Tensor

from common.cli import pick_device
from common.data import load
from common.data.sources.decoding import open_rgb
from common.data.sources.mask import Mask, read_mask
from common.errors import UserError, enough_memory
from common.io.files import write_atomically
from common.io.pixels import to_float
from common.io.progress import with_progress
from common.io.tables import print_table, write_csv
from common.viz import save_picture
from finetune_diffusers.data.degradations import Degradation, check_mask_size, grow_to_blocks, keep_known
from finetune_diffusers.evaluation.metrics import csv_columns, format_mean, plot_curves, rms_distance, similarity
from finetune_diffusers.flags import RestoreFlags
from finetune_diffusers.generation import PipelineSettings, call_pipeline, check_strength, run_pipeline
from finetune_diffusers.images import column_sheet, read_size, to_tensor
from finetune_diffusers.models import as_task, native_size, need_unet, open_pipeline, reconstruct
from finetune_diffusers.schedulers import check_schedulers, use_scheduler
from finetune_diffusers.training.loop.memory_usage import time_and_memory

Method = Literal["img2img", "inpaint"]
SECOND_STRENGTH = 0.3  # of a second pass
AUTOENCODER = "through the autoencoder"  # a bound for every repair, far outside the scale of the plot
CLASSICAL = "classical"  # a repair without a model: Degradation.classical_repair
Measures = dict[str, Tensor]  # by name, each (N,)


class RepairSettings(NamedTuple):
    """One cell of the grid."""

    method: Method
    strength: float
    guidance: float
    steps: int


class DamagedImages(NamedTuple):
    """What there is to repair."""

    damaged: Tensor  # (N, 3, H, W) in [-1, 1]
    mask: Tensor  # (N, 1, H, W), 1 where it is to be repaired
    prompts: list[str]  # N
    truth: Tensor | None  # (N, 3, H, W), where it is known


def restore(args: RestoreFlags) -> None:
    """Repair with every setting of the grid, measure, and write tables and pictures."""
    check_schedulers([args.scheduler])
    check_strength(min(args.steps), min(args.strength))
    if args.image and args.damaged and args.mask is None and "inpaint" in args.method:
        raise UserError("inpainting must know where the picture is damaged: give --mask, or only --method img2img")
    device, began = pick_device(args.device), time.monotonic()
    size = read_size(args.size) if args.size else None
    # damaged files are refused before a model is opened
    image, mask = read_files(args.image, args.mask) if args.image else (None, None)
    pipe = open_pipeline(args.model, "inpaint", device)
    need_unet(pipe, args.model)
    use_scheduler(pipe, args.scheduler)
    block = args.block or max(1, min(size or (native_size(pipe),)) // 8)
    degradation = Degradation(args.damage, block, args.mosaic_fraction, args.noise, args.scratches, args.seed)
    if image:
        work = own_picture(args, image, mask, size or (native_size(pipe),) * 2, degradation)
        if mask:
            write_mask(mask, args.out)
    else:
        work = damaged_creatures(args.n, args.split, native_size(pipe), degradation)
    # every combination, in the order of the tables
    grid = [
        RepairSettings(m, s, w, k)
        for m, k, w, s in itertools.product(dict.fromkeys(args.method), args.steps, args.guidance, args.strength)
    ]
    study(pipe, work, fitting(pipe, args.model, grid, work), degradation, args.scheduler, args.out, device)
    print(time_and_memory(time.monotonic() - began, torch.device(device)))


# ------------------------------------------------------------------------------------------------------ what to repair


def damaged_creatures(n: int, split: str, size: int, degradation: Degradation) -> DamagedImages:
    """Drawn creatures that no model of the course was trained on, damaged, with their captions."""
    images = load("creatures", size, split=split, language="en", n=n)
    truth = to_float(images.pixels)
    mask = degradation.mask(n, *truth.shape[-2:])
    return DamagedImages(degradation.corrupt(truth, mask), mask, list(images.captions), truth)


def read_files(path: Path, mask_path: Path | None) -> tuple[Image.Image, Mask | None]:
    """The picture and, where one is given, its mask."""
    image, mask = open_rgb(path), read_mask(mask_path) if mask_path else None
    if mask and mask_path:
        check_mask_size(mask, mask_path, path, image.size)
    return image, mask


def write_mask(mask: Mask, out: Path) -> None:
    """Show how the mask was understood: its share in words, and a picture of it beside the results."""
    for note in mask.notes:
        print(f"note: {note}", file=sys.stderr)
    path = out / "mask.png"
    write_atomically(path, lambda file: mask.image.save(file, "PNG"))
    print(f"{path}: {mask}")


def own_picture(
    args: RestoreFlags, image: Image.Image, mask: Mask | None, size: tuple[int, int], degradation: Degradation
) -> DamagedImages:
    """The picture cut to the size, n times: each attempt has a seed of its own."""
    n = args.n
    pixels = to_tensor(ImageOps.fit(image, size, Image.Resampling.LANCZOS)).repeat(n, 1, 1, 1)
    if mask:
        area = (to_tensor(ImageOps.fit(mask.image, size, Image.Resampling.BOX)) > -0.99).float().repeat(n, 1, 1, 1)
    elif args.damaged:
        area = torch.ones_like(pixels[:, :1])
    else:
        area = degradation.mask(1, *pixels.shape[-2:]).repeat(n, 1, 1, 1)
    prompts = [args.prompt] * n
    if args.damaged:
        return DamagedImages(pixels, area, prompts, None)
    return DamagedImages(degradation.corrupt(pixels, area), area, prompts, pixels)


# -------------------------------------------------------------------------------------------------------- repairing it


def repair(
    pipe: DiffusionPipeline,
    work: DamagedImages,
    cell: RepairSettings,
    scheduler: str,
    seed: int,
    start: Tensor | None = None,
) -> Tensor:
    """(N, 3, H, W) in [-1, 1] on the CPU, with known pixels put back.

    start  what to begin from instead of the damaged pictures: pictures (N, 3, H, W) in [-1, 1], or latents
    """
    settings = PipelineSettings(scheduler, cell.steps, cell.guidance, seed)
    other, inputs = repair_call(pipe, work, cell, start)
    return keep_known(run_pipeline(other, settings, len(work.prompts), **inputs), work.damaged, work.mask)


def repair_to_latents(
    pipe: DiffusionPipeline, work: DamagedImages, cell: RepairSettings, scheduler: str, seed: int
) -> Tensor:
    """The same without decoding, as another pipeline takes it for its `image`. (N, C, h, w)"""
    settings = PipelineSettings(scheduler, cell.steps, cell.guidance, seed)
    other, inputs = repair_call(pipe, work, cell)
    return call_pipeline(other, settings, len(work.prompts), "latent", **inputs)


def repair_call(
    pipe: DiffusionPipeline, work: DamagedImages, cell: RepairSettings, start: Tensor | None = None
) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """The pipeline of the method, and what it is given."""
    begin = work.damaged if start is None else start
    if begin.shape[1] == 3:
        begin = (begin + 1) / 2  # diffusers takes tensors of pictures in [0, 1]
    inputs: dict[str, Any] = {"prompt": work.prompts, "image": begin, "strength": cell.strength}
    if cell.method == "inpaint":
        size = dict(zip(("height", "width"), work.damaged.shape[-2:], strict=True))
        return pipe, inputs | size | {"mask_image": grow_to_blocks(work.mask, pipe.vae_scale_factor)}
    other = as_task(pipe, "image")
    other.set_progress_bar_config(disable=True)
    return other, inputs


def fitting(
    pipe: DiffusionPipeline, model: str, grid: Sequence[RepairSettings], work: DamagedImages
) -> list[RepairSettings]:
    """The cells of the grid that this model can do and that differ from each other."""
    methods = {cell.method for cell in grid}
    if "img2img" in methods and pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise UserError(
            f"{model} is an inpainting model ({pipe.unet.config.in_channels} channels); give --method inpaint"
        )
    if methods == {"img2img", "inpaint"} and bool((work.mask > 0).all()):
        print("note: everything is to be repaired, so inpainting would be the same as img2img and is left out")
        return [cell for cell in grid if cell.method == "img2img"]
    return list(grid)


def study(
    pipe: DiffusionPipeline,
    work: DamagedImages,
    grid: Sequence[RepairSettings],
    degradation: Degradation,
    scheduler: str,
    out: Path,
    device: str,
) -> None:
    """Repair with every setting, measure, and write tables and pictures."""
    results, scores = {}, {}
    pipe.set_progress_bar_config(disable=True)
    for cell in with_progress("settings", grid, unit="setting"):
        with enough_memory(device, "--n, or --size of your picture"):
            results[cell] = repair(pipe, work, cell, scheduler, degradation.seed)
        scores[cell] = measure(results[cell], work)
    references = make_references(pipe, work, degradation)
    compared = {label: measure(pictures, work) for label, pictures in references.items()}
    if work.truth is not None:
        damaged, *others = *compared.values(), *scores.values()
        for measures in others:
            measures["gain"] = measures["psnr"] - damaged["psnr"]
    best = report(scores, compared, work)
    rows = [{"method": label} | csv_columns(measures) for label, measures in compared.items()]
    rows += [cell._asdict() | csv_columns(measures) for cell, measures in scores.items()]
    print(write_csv(out / "study.csv", rows, list(rows[-1])))
    columns = {label: pictures for label, pictures in references.items() if label != AUTOENCODER}
    if work.truth is not None:
        print(plot_study(scores, {label: compared[label] for label in columns}, best, out / "study.png"))
        columns = {"the truth": work.truth} | columns
    strengths = dict.fromkeys(cell.strength for cell in grid)
    columns |= {f"strength {s:g}": results[best._replace(strength=s)] for s in strengths}
    print(save_picture(column_sheet(columns, 6), out / "grid.png"))
    print(f"  (the grid: {best.method}, w = {best.guidance:g}, {best.steps} steps)")
    passes = compare_second_passes(pipe, work, best, min(cell.steps for cell in grid), scheduler, degradation.seed)
    if passes:
        print(write_csv(out / "passes.csv", passes))


def measure(pictures: Tensor, work: DamagedImages) -> Measures:
    """How far each picture is from the damaged one, and, where the truth is known, how close to it."""
    moved = {"moved": rms_distance(pictures, work.damaged)}
    return moved if work.truth is None else similarity(pictures, work.truth) | moved


def make_references(pipe: DiffusionPipeline, work: DamagedImages, degradation: Degradation) -> dict[str, Tensor]:
    """What to compare with: the damaged pictures, a repair without a model,
    and the truth sent through the autoencoder.

    The last is what latents can represent of a picture at all; known pixels are put back there, too.
    """
    pictures = {"damaged": work.damaged}
    if work.truth is not None:
        pictures[CLASSICAL] = degradation.classical_repair(work.damaged, work.mask)
        pictures[AUTOENCODER] = keep_known(reconstruct(pipe.vae, work.truth), work.damaged, work.mask)
    return pictures


# -------------------------------------------------------------------------------------------------------- reporting it


def plot_study(
    scores: dict[RepairSettings, Measures], references: dict[str, Measures], best: RepairSettings, path: Path
) -> Path:
    """Every measure against the strength, a curve for each method and guidance scale, at the best number of steps."""
    strengths = sorted({cell.strength for cell in scores})
    kinds = dict.fromkeys((cell.method, cell.guidance) for cell in scores)
    panels, lines = {}, {}
    for name in ("psnr", "ssim", "perceptual"):
        panels[name] = {
            f"{m}, w = {w:g}": [(s, scores[RepairSettings(m, s, w, best.steps)][name]) for s in strengths]
            for m, w in kinds
        }
        lines[name] = {label: float(measures[name].mean()) for label, measures in references.items()}
    return plot_curves(panels, lines, f"strength ({best.steps} steps)", path)


def report(
    scores: dict[RepairSettings, Measures], references: dict[str, Measures], work: DamagedImages
) -> RepairSettings:
    """Print the tables; returns the best setting by PSNR (without a truth: the one in the middle)."""
    grid = list(scores)
    if work.truth is None:
        for cell in grid:
            moved = format_mean(scores[cell]["moved"], 3)
            print(
                f"{cell.method}, strength {cell.strength:g}, w = {cell.guidance:g}, {cell.steps} steps: moved {moved}"
            )
        return grid[len(grid) // 2]
    digits = {"psnr": 2, "ssim": 3, "perceptual": 3}
    print_table(
        {"": label} | {name: format_mean(measures[name], d) for name, d in digits.items()}
        for label, measures in references.items()
    )
    for method, steps in dict.fromkeys((cell.method, cell.steps) for cell in grid):
        mine = [cell for cell in grid if (cell.method, cell.steps) == (method, steps)]
        for name, title in (("psnr", "PSNR in dB"), ("ssim", "SSIM")):
            print(f"\n{method}, {steps} steps: {title}, mean ± standard error over {len(work.prompts)} pictures")
            rows: dict[float, dict[str, str]] = {c.guidance: {"guidance": f"w = {c.guidance:g}"} for c in mine}
            for c in mine:
                rows[c.guidance][f"strength {c.strength:g}"] = format_mean(scores[c][name], digits[name])
            print_table(rows.values())
    best = max(grid, key=lambda cell: float(scores[cell]["psnr"].mean()))
    print(
        f"\nthe best of {len(grid)} settings (chosen on these same pictures): {best.method}, strength {best.strength:g}, "
        f"w = {best.guidance:g}, {best.steps} steps"
    )
    for label in ("damaged", CLASSICAL):
        print(
            f"  PSNR against {label}: {format_mean(scores[best]['psnr'] - references[label]['psnr'])} dB, picture by picture"
        )
    return best


def compare_second_passes(
    pipe: DiffusionPipeline, work: DamagedImages, best: RepairSettings, least_steps: int, scheduler: str, seed: int
) -> list[dict[str, Any]]:
    """What a second, gentle pass after the first gives, handed on as pictures or as latents: printed, and as rows.

    Latents save a decoding and an encoding, and what these lose: `output_type="latent"` gives them as the next
    pipeline's `image` takes them.
    """
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        return []  # the second pass is img2img
    again = RepairSettings("img2img", max(SECOND_STRENGTH, 1 / least_steps), best.guidance, best.steps)
    second = as_task(pipe, "inpaint")
    use_scheduler(second, scheduler)

    def two_passes(start: Tensor) -> Tensor:
        return repair(second, work, again, scheduler, seed + 1, start)

    passes = {
        "one pass": lambda: repair(pipe, work, best, scheduler, seed),
        "two, by pictures": lambda: two_passes(repair(pipe, work, best, scheduler, seed)),
        "two, by latents": lambda: two_passes(repair_to_latents(pipe, work, best, scheduler, seed)),
    }
    rows, lines, once = [], [], None
    for label, run in passes.items():
        began = time.perf_counter()
        pictures = run()
        seconds = time.perf_counter() - began
        once = pictures if once is None else once
        measures = measure(pictures, work) | {"changed": rms_distance(pictures, once)}
        rows.append({"passes": label} | csv_columns(measures))
        line = {"": label, "seconds": f"{seconds:.2f}", "from one pass": format_mean(measures["changed"], 3)}
        lines.append(line if work.truth is None else line | {"psnr": format_mean(measures["psnr"])})
    print(f"\na second pass of strength {again.strength:g}, in the space of pictures or of latents")
    print_table(lines)
    return rows
