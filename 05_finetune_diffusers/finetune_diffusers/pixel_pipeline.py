"""Models of pixels in a pipeline for latents: with an autoencoder that leaves everything as it is, chapter 2's models fine-tune here too.

    pipe = open_pixels(Path("02_cfg_pokemon/pretrained"), "cpu")     a StableDiffusionPipeline whose latents are images
"""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.errors import UserError, explain
from finetune_diffusers.models import INDEX, quiet

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PARTS = ("unet", "scheduler", "text_encoder", "tokenizer")


class Identity(nn.Module):
    """The autoencoder of a model that needs none: f = 1, and a latent is the image."""

    config = SimpleNamespace(block_out_channels=(1,), scaling_factor=1.0, shift_factor=None)

    def __init__(self):
        super().__init__()
        self.register_buffer("nothing", torch.empty(0))  # so that it is somewhere, and of some type

    def encode(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=images, std=torch.zeros_like(images)))

    def decode(self, latents: Tensor, return_dict: bool = False, generator: torch.Generator | None = None) -> tuple[Tensor]:
        return (latents,)

    @property
    def device(self) -> torch.device:
        return self.nothing.device

    @property
    def dtype(self) -> torch.dtype:
        return self.nothing.dtype


def pixel_folder(name: str) -> Path | None:
    """The folder of a text-to-image model without an autoencoder, if that is what the name means."""
    local = Path(name).expanduser()
    for root in (local, local / "model"):
        if all((root / part).is_dir() for part in PARTS) and not (root / "vae").exists() and not (root / INDEX).exists():
            return root
    return None


def open_pixels(folder: Path, device: str) -> "StableDiffusionPipeline":
    quiet()
    from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    kinds = (UNet2DConditionModel, DDPMScheduler, CLIPTextModel, CLIPTokenizer)
    try:
        parts = {name: kind.from_pretrained(folder / name) for name, kind in zip(PARTS, kinds, strict=True)}
    except Exception as problem:  # each library has its own
        raise UserError(f"the model in {folder} cannot be opened ({explain(problem)})") from problem
    if parts["unet"].config.in_channels != 3:
        raise UserError(f"the U-Net in {folder} has {parts['unet'].config.in_channels} input channels; without an autoencoder they should be 3, red, green and blue")
    scheduler = parts.pop("scheduler")  # a pipeline for latents would turn off its clipping of x0, which is right for images
    usual = DDPMScheduler.from_config(scheduler.config, clip_sample=False, steps_offset=1)
    pipe = StableDiffusionPipeline(**parts, scheduler=usual, vae=Identity(), safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.register_modules(scheduler=scheduler)
    return pipe.to(device)


def save_model(pipe: "StableDiffusionPipeline", folder: Path) -> None:
    """The whole pipeline, as it was opened: of a model of pixels its four parts."""
    words = getattr(pipe.tokenizer, "backend_tokenizer", None)
    if words is not None:  # its file would keep how the last prompt was cut and padded
        words.no_truncation()
        words.no_padding()
    if not isinstance(pipe.vae, Identity):
        pipe.save_pretrained(folder)
        return
    for part in PARTS:
        getattr(pipe, part).save_pretrained(folder / part)
