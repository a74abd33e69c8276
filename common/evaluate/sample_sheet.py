"""A sheet of samples: a row of images for each prompt and guidance scale, all from the same noise.
The programs sample.py of chapters 2 and 4.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from common import viz
from common.errors import UserError
from common.io.progress import with_progress
from common.models.pipeline import SamplingConfig, TextToImagePipeline, batches

LABEL_WIDTH = 150  # pixels


def parse_scales(text: str) -> tuple[float, ...]:
    """'1,2,4' -> (1.0, 2.0, 4.0), the flag --sweep"""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"cannot read --sweep {text}; write guidance scales separated by commas, as in 1,2,4,8"
        ) from None


def print_remarks(pipeline: TextToImagePipeline, prompts: Sequence[str]) -> None:
    """Warn on stderr of prompts that are empty, cut off or hold unknown words."""
    for prompt in prompts:
        for remark in pipeline.remarks(prompt):
            print(f"note: {remark}", file=sys.stderr)


def sample_sheet(
    pipeline: TextToImagePipeline,
    prompts: Sequence[str],
    n: int,  # images of each prompt at each scale
    scales: Sequence[float],  # guidance scales, a row for each
    config: SamplingConfig,  # everything else
    out: Path,  # the picture; its folder is made
    row_height: int,  # pixels of a row, about
    gif: bool = False,  # also write the reverse process beside it
    image: Tensor | None = None,  # (1, C, H, W): start from it instead of noise; it is shown at the left of each row
    strength: float = 0.6,  # how far that image is noised first
) -> None:
    """Draw the sheet, with the prompt and the scale of each row at its left, save it, and print where it is."""
    print_remarks(pipeline, [*prompts, *([config.negative_prompt] if config.negative_prompt else [])])
    rows = [(prompt, replace(config, guidance_scale=w)) for prompt in prompts for w in scales]
    began = time.perf_counter()
    drawn = [draw_frames(pipeline, [prompt] * n, each, gif, image, strength) for prompt, each in rows]
    seconds = time.perf_counter() - began

    left = 0 if image is None else 1
    frames = [
        torch.cat([row if image is None else torch.cat([image, row]) for row in parts])
        for parts in zip(*drawn, strict=True)
    ]
    scale = max(1, round(row_height / frames[-1].shape[-2]))
    labels = [row_label(prompt, w) for prompt in prompts for w in scales]
    print(viz.save_picture(viz.labelled_grid(frames[-1], n + left, down=labels, scale=scale), out))
    for number, (prompt, each) in enumerate(rows, 1):
        print(f"  row {number}: w = {each.guidance_scale:g}  {prompt or '(no words)'}")
    if gif:
        height = row_height * len(rows)
        print(viz.save_gif(frames, out.with_suffix(".gif"), columns=n + left, height=height))
    print(f"{n * len(rows)} pictures, {config.sampler}, in {seconds:.1f} s on {pipeline.device}")


def row_label(prompt: str, w: float) -> str:
    """Prompt and guidance scale of a row, in short lines."""
    return f"{viz.wrapped(prompt or '(no words)', LABEL_WIDTH)}\nw = {w:g}"


def draw_frames(
    pipeline: TextToImagePipeline,
    prompts: Sequence[str],
    config: SamplingConfig,
    every_step: bool = False,
    image: Tensor | None = None,
    strength: float = 0.6,
) -> list[Tensor]:
    """The images (N, C, S, S) after every step of the reverse process,
    or a list of those after the last step alone.
    """
    parts = []
    for batch in with_progress("drawing", batches(len(prompts)), unit="batch"):
        if image is None:
            steps = pipeline.txt2img_steps(prompts[batch], config, batch.start)
        else:
            steps = pipeline.img2img_steps(image, prompts[batch], strength, config, batch.start)
        latents = [step.x for step in steps]
        parts.append([pipeline.decode(z) for z in (latents if every_step else latents[-1:])])
    return [torch.cat(same_step) for same_step in zip(*parts, strict=True)]
