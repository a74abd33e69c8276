"""Calls pipelines, whatever they are given, and draws pictures of prompts with several
schedulers from the same noise.
"""

import itertools
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps
from torch import Tensor

from common.cli import pick_device
from common.data.sources.decoding import open_rgb
from common.errors import UserError, enough_memory
from common.io.progress import refresh_interval
from common.viz import save_picture, wrapped
from finetune_diffusers.flags import GenerateFlags
from finetune_diffusers.images import contact_sheet, generators, read_size, to_pil
from finetune_diffusers.models import (
    count_calls,
    default_guidance,
    native_size,
    network_of,
    open_pipeline,
    prompt_notes,
)
from finetune_diffusers.schedulers import check_schedulers, explain_step_errors, use_scheduler

LABEL_WIDTH = 150  # pixels of the contact sheet for the prompt beside a row


@dataclass(frozen=True)
class PipelineSettings:
    """How a pipeline samples. The scheduler is set by `use_scheduler`; its name is for error messages."""

    scheduler: str
    steps: int  # from pure noise; with a picture and a strength s only s of them are taken
    guidance: float  # scale w; 1 is off
    seed: int  # of the first picture; picture i has seed + i


def run_pipeline(pipe: DiffusionPipeline, settings: PipelineSettings, n: int, **inputs: Any) -> Tensor:
    """n pictures, (n, 3, H, W) in [-1, 1] on the CPU.
    inputs: what the pipeline takes besides, in lists or tensors of n rows.

    Raises UserError at NaN. Euler ancestral with 3 steps of a cosine schedule gives it:
    it takes the root of a difference that rounding has made negative.
    """
    with explain_step_errors(settings.scheduler):
        images = call_pipeline(pipe, settings, n, **inputs).float().cpu() * 2 - 1
    if not bool(images.isfinite().all()):
        raise UserError(
            f"the sampled pictures hold NaN or infinity (scheduler '{settings.scheduler}'); give other --steps, or another scheduler"
        )
    return images


def call_pipeline(
    pipe: DiffusionPipeline, settings: PipelineSettings, n: int, output_type: str = "pt", **inputs: Any
) -> Tensor:
    """The pipeline's own output: (n, 3, H, W) in [0, 1], or with output_type="latent" (n, C, h, w)."""
    return pipe(
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generator=generators(settings.seed, n),
        output_type=output_type,
        **inputs,
    ).images


def check_strength(steps: int, strength: float) -> None:
    """Refuse a strength that takes no step at all."""
    if int(steps * strength) < 1:
        raise UserError(
            f"--strength {strength:g} of {steps} steps is less than one step; give more --steps, or more --strength"
        )


def generate(args: GenerateFlags) -> None:
    """Draw, and write each picture as a PNG and all of them as a contact sheet. Prints the cost of each row."""
    if not args.prompts:
        raise UserError('give a prompt, for instance "a red creature with bat wings"; "" samples without a prompt')
    if args.image:
        check_strength(args.steps, args.strength)
    schedulers = [args.scheduler] if args.compare is None else args.compare.split(",")
    check_schedulers(schedulers)
    size = read_size(args.size) if args.size else None
    device = pick_device(args.device)
    start = open_rgb(args.image) if args.image else None

    which = {"revision": args.revision, "variant": args.variant}
    pipe = open_pipeline(args.model, "image" if start else "text", device, offload=args.low_memory, **which)
    if args.low_memory:
        pipe.vae.enable_slicing()  # decodes pictures one by one; attention needs no slices, because torch's has none
    pipe.set_progress_bar_config(desc="drawing", leave=False, mininterval=refresh_interval())
    for prompt in (*args.prompts, *([args.negative] if args.negative else [])):
        for note in prompt_notes(pipe, prompt):
            print(f"note: {note}", file=sys.stderr)
    n, guidance = args.n, args.guidance if args.guidance is not None else default_guidance(pipe)
    # without one the pipeline decides: some of Stable Diffusion XL take zeros, not the embedding of ""
    inputs: dict[str, Any] = {"negative_prompt": [args.negative] * n} if args.negative else {}
    if start:
        inputs |= {"image": [cut_to(start, size, native_size(pipe))] * n, "strength": args.strength}
    else:
        inputs |= dict(zip(("width", "height"), size or [native_size(pipe)] * 2, strict=True))

    own, rows, labels = pipe.scheduler, [], []
    print(f"{'scheduler':14}{'steps':>7}{'network asked':>15}{'seconds a picture':>19}   prompt")
    for scheduler, (k, prompt) in itertools.product(schedulers, enumerate(args.prompts, 1)):
        pipe.scheduler = own
        use_scheduler(pipe, scheduler)
        settings = PipelineSettings(scheduler, args.steps, guidance, args.seed)
        began = time.perf_counter()
        with count_calls(network_of(pipe)) as calls, enough_memory(device, "--n or --size, or give --low-memory"):
            rows.append(run_pipeline(pipe, settings, n, prompt=[prompt] * n, **inputs))
        seconds = (time.perf_counter() - began) / n
        print(f"{scheduler:14}{args.steps:>7}{calls[0]:>15}{seconds:>19.2f}   {prompt or '(no words)'}")
        if black := blackened(rows[-1]):
            seeds = ", ".join(str(args.seed + i) for i in black)
            reason = "the model's safety checker blackens what it flags; " if checks_safety(pipe) else ""
            print(f"note: {len(black)} of {n} pictures are black ({reason}seed {seeds})", file=sys.stderr)
        which_scheduler, asked = [scheduler] * (len(schedulers) > 1), len(args.prompts) > 1
        labels.append("\n".join(which_scheduler + [wrapped(prompt or "(no words)", LABEL_WIDTH)] * asked))
        for i, picture in enumerate(rows[-1]):
            name = "-".join([*which_scheduler, *[f"prompt-{k}"] * asked, f"seed-{args.seed + i}"])
            save_picture(to_pil(picture), args.out / f"{name}.png")
    columns = [f"seed {args.seed + i}" for i in range(n)]
    print(save_picture(contact_sheet(torch.stack(rows), labels, columns), args.out / "sheet.png"))


def cut_to(picture: Image.Image, size: tuple[int, int] | None, native: int) -> Image.Image:
    """The picture to begin from, cut to the size (width, height), or to the nearest multiples of 8.

    A photograph has many times the pixels that the model was trained on, native x native. Beyond twice that side the
    model would need much memory and repeat its subject, so such a picture is shrunk to as many pixels.
    """
    area = picture.width * picture.height
    scale = native / area**0.5 if area > (2 * native) ** 2 else 1.0
    width, height = size or tuple(max(8, 8 * round(scale * side / 8)) for side in picture.size)
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def blackened(images: Tensor) -> list[int]:
    """Indices of pictures that are black all over, as a safety checker leaves them. images: (N, 3, H, W) in [-1, 1]"""
    return (images <= -1).flatten(1).all(1).nonzero().flatten().tolist()


def checks_safety(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline looks at its pictures, and blackens some."""
    return getattr(pipe, "safety_checker", None) is not None
