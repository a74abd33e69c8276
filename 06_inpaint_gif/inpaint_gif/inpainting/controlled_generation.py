"""Draw a row of images without control, and rows from the same noise with regions,
stages and a changing guidance scale.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from common import viz
from common.errors import UserError
from common.io.progress import with_progress
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.random import Noise
from inpaint_gif.clip.dish_names import parse_dish_name
from inpaint_gif.clip.name_encoder import CLIPNameEncoder, check_draws, load_clip_for, open_model, uses_clip
from inpaint_gif.inpainting.backends import DEFAULTS
from inpaint_gif.inpainting.regional_prompts import (
    Region,
    changing_scale,
    in_regions,
    in_stages,
    parse_guidance,
    parse_stage,
    progress_along,
    region_weights,
)

SWEEP = (0.8, 0.6, 0.4, 0.2)  # fractions of the steps at which the prompt of --sweep-then begins


@dataclass(frozen=True)
class Control:
    """What is controlled.

    guidance  (scale at the noise, scale at the picture)
    regions   their prompts replace the prompt of the image in a part of it
    stages    (fraction of the steps, prompt from there on)
    """

    guidance: tuple[float, float]
    regions: tuple[Region, ...] = ()
    stages: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class ControlledDrawing:
    """What generate.py draws.

    prompt    prompt of the image
    controls  one row of images for each
    sampling  sampler, negative prompt and seed; the guidance scale is that of the row
    n         images in a row
    soft      latents over which the edge of a region is softened
    """

    prompt: str
    controls: tuple[Control, ...]
    sampling: SamplingConfig
    n: int
    soft: float


def parse_controls(
    guidance: str, regions: Sequence[str], stages: Sequence[str], sweep_then: str | None
) -> tuple[Control, ...]:
    """Read the flags of generate.py. Raises UserError for what cannot be read or combined."""
    if sweep_then is not None and (stages or regions):
        raise UserError("--sweep-then replaces --then and --region; leave those out")
    scale = parse_guidance(guidance)
    control = Control(scale, tuple(map(Region.parse, regions)), tuple(map(parse_stage, stages)))
    if len({fraction for fraction, _ in control.stages}) < len(control.stages):
        raise UserError("two of --then begin at the same share of the steps")
    if sweep_then is None:
        return (control,)
    return tuple(Control(scale, stages=((fraction, sweep_then),)) for fraction in SWEEP)


def check_pictures(out: Path, keep: Path | None) -> None:
    """Refuse names of output files before anything is drawn."""
    kinds = (".png", ".jpg", ".jpeg", ".webp")
    for picture in (out, keep):
        if picture and picture.suffix.lower() not in kinds:
            raise UserError(
                f"cannot tell the kind of picture from the name {picture.name}; end it in {', '.join(kinds)}"
            )
    if keep and keep.resolve() == out.resolve():
        raise UserError(f"--keep {keep} would be written over the rows of --out; choose another name")


def open_drawing_model(
    folder: Path | None, device: str, clip_name: str | None, clip_backend: str
) -> TextToImagePipeline:
    """The model of this folder, by default the shipped one, which must be able to draw from text."""
    shipped = DEFAULTS["repaint"]
    if folder is None and not shipped.exists():
        raise UserError(
            f"{shipped} is missing; train it with python 06_inpaint_gif/train_text2dish.py and give the run with --model"
        )
    folder = folder or shipped
    clip = load_clip_for(folder, device, clip_name, clip_backend) if uses_clip(folder) else None
    pipeline = open_model(folder, device, clip)
    check_draws(folder, pipeline)
    return pipeline


def draw_rows(pipeline: TextToImagePipeline, drawing: ControlledDrawing, out: Path, keep: Path | None) -> list[Path]:
    """Write a row without control and one row for each control;
    `keep` gets the first controlled image. Returns the files.
    """
    plain = Control((drawing.controls[0].guidance[0],) * 2)
    rows = [draw_row(pipeline, drawing, control) for control in (plain, *drawing.controls)]
    written = [viz.save_picture(viz.grid(torch.cat(rows), drawing.n, 130 * len(rows)), out)]
    if keep:
        written.append(viz.save_picture(viz.grid(rows[1][:1], 1, gap=0), keep))
    return written


def draw_row(pipeline: TextToImagePipeline, drawing: ControlledDrawing, control: Control) -> Tensor:
    """n images with one kind of control. (n, C, S, S)"""
    first, last_scale = control.guidance
    config = replace(drawing.sampling, guidance_scale=first)
    levels, side = pipeline.noise_levels(config), pipeline.size // pipeline.factor
    progress = progress_along(levels)
    guided = (
        replace(config, guidance_scale=changing_scale(first, last_scale, progress)) if first != last_scale else config
    )

    def prompted(prompt: str):
        return pipeline.guided([prompt] * drawing.n, guided)

    rest = prompted(drawing.prompt)
    if control.stages:
        rest = in_stages([(0.0, rest), *((start, prompted(prompt)) for start, prompt in control.stages)], progress)
    weights = [weight.to(pipeline.device) for weight in region_weights(control.regions, side, side, drawing.soft)]
    denoisers = [rest, *(prompted(region.prompt) for region in control.regions)]
    denoise = in_regions([(each, weight) for each, weight in zip(denoisers, weights, strict=True) if weight.any()])
    steps = pipeline.from_noise(denoise, drawing.n, (side, side), config, Noise(config.seed, 0))
    *_, last = with_progress("drawing", steps, len(levels), unit="step")
    return pipeline.decode(last.x)


def print_name_remarks(pipeline: TextToImagePipeline, drawing: ControlledDrawing) -> None:
    """Print on stderr what the CLIP of this model cannot use of the names of dishes, each remark once."""
    if not isinstance(pipeline.text_encoder, CLIPNameEncoder):
        return
    clip, prompts = pipeline.text_encoder.clip, [drawing.prompt]
    for control in drawing.controls:
        prompts += [region.prompt for region in control.regions] + [prompt for _, prompt in control.stages]
    remarks = [remark for prompt in prompts if prompt.strip() for remark in parse_dish_name(clip, prompt).remarks]
    for remark in dict.fromkeys(remarks):
        print(f"note: {remark}", file=sys.stderr)
