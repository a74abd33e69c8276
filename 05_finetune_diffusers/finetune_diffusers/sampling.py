"""Calls of a pipeline, whatever it is given: prompts, embeddings, pictures, masks."""

from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from common.errors import UserError
from finetune_diffusers.images import checked_images, generators
from finetune_diffusers.schedulers import explain_step_errors


@dataclass(frozen=True)
class PipelineSettings:
    """How a pipeline samples. The scheduler is set by `use_scheduler`; its name is for error messages."""

    scheduler: str
    steps: int          # from pure noise; with a picture and a strength s only s of them are taken
    guidance: float     # scale w; 1 is off
    seed: int           # of the first picture; picture i has seed + i


def run_pipeline(pipe: DiffusionPipeline, settings: PipelineSettings, n: int, **inputs: Any) -> Tensor:
    """n pictures, (n, 3, H, W) in [-1, 1] on the CPU. inputs: what the pipeline takes besides, in lists or tensors of n rows."""
    with explain_step_errors(settings.scheduler):
        images = pipe(
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=generators(settings.seed, n),
            output_type="pt",
            **inputs,
        ).images
    return checked_images(images, settings.scheduler)


def check_strength(steps: int, strength: float) -> None:
    """Refuse a strength that takes no step at all."""
    if int(steps * strength) < 1:
        raise UserError(f"--strength {strength:g} of {steps} steps is less than one step; give more --steps, or more --strength")
