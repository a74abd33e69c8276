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
from common.cli import pick_device
from common.errors import UserError
from common.io.progress import with_progress
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.random import Noise
from inpaint_gif.clip.dish_names import parse_dish_name
from inpaint_gif.clip.name_encoder import CLIPNameEncoder, check_draws, load_clip_for, open_model, uses_clip
from inpaint_gif.inpainting.backends import DEFAULTS
from inpaint_gif.inpainting.flags import GenerationFlags
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

SWEEP = (0.4, 0.2, 0.1, 0.05)  # fractions of the steps at which the prompt of --sweep-then begins


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


def generate(flags: GenerationFlags) -> None:
    """Write a row without control and one row for each control; --keep gets the first controlled image."""
    for picture in filter(None, (flags.out, flags.keep)):  # refused before anything is drawn
        viz.picture_format(picture)
    controls = parse_controls(flags.guidance, flags.region, flags.then, flags.sweep_then)
    pipeline = open_drawing_model(flags.model, pick_device(flags.device), flags.clip, flags.backend)
    print_name_remarks(pipeline, flags.name, controls)
    plain = Control((controls[0].guidance[0],) * 2)
    rows = [draw_row(pipeline, flags, control) for control in (plain, *controls)]
    print(viz.save_picture(viz.grid(torch.cat(rows), flags.n, 130 * len(rows)), flags.out))
    if flags.keep:
        print(viz.save_picture(viz.grid(rows[1][:1], 1, gap=0), flags.keep))


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


def draw_row(pipeline: TextToImagePipeline, flags: GenerationFlags, control: Control) -> Tensor:
    """n images with one kind of control. (n, C, S, S)"""
    first, last_scale = control.guidance
    config = SamplingConfig(first, flags.negative, flags.sampler, seed=flags.seed)
    levels, side = pipeline.noise_levels(config), pipeline.size // pipeline.factor
    progress = progress_along(levels)
    guided = (
        replace(config, guidance_scale=changing_scale(first, last_scale, progress)) if first != last_scale else config
    )

    def prompted(prompt: str):
        return pipeline.guided([prompt] * flags.n, guided)

    rest = prompted(flags.name)
    if control.stages:
        rest = in_stages([(0.0, rest), *((start, prompted(prompt)) for start, prompt in control.stages)], progress)
    weights = [weight.to(pipeline.device) for weight in region_weights(control.regions, side, side, flags.soft)]
    denoisers = [rest, *(prompted(region.prompt) for region in control.regions)]
    denoise = in_regions([(each, weight) for each, weight in zip(denoisers, weights, strict=True) if weight.any()])
    steps = pipeline.from_noise(denoise, flags.n, (side, side), config, Noise(config.seed, 0))
    *_, last = with_progress("drawing", steps, len(levels), unit="step")
    return pipeline.decode(last.x)


def print_name_remarks(pipeline: TextToImagePipeline, name: str, controls: Sequence[Control]) -> None:
    """Print on stderr what the CLIP of this model cannot use of the names of dishes, each remark once."""
    if not isinstance(pipeline.text_encoder, CLIPNameEncoder):
        return
    clip, prompts = pipeline.text_encoder.clip, [name]
    for control in controls:
        prompts += [region.prompt for region in control.regions] + [prompt for _, prompt in control.stages]
    remarks = [remark for prompt in prompts if prompt.strip() for remark in parse_dish_name(clip, prompt).remarks]
    for remark in dict.fromkeys(remarks):
        print(f"note: {remark}", file=sys.stderr)
