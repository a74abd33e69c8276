"""Pixel models in a pipeline for latents: with an autoencoder that changes nothing,
chapter 2's models are fine-tuned here, too.

pipe = open_pixels(Path("02_cfg_pokemon/pretrained"), "cpu")     a StableDiffusionPipeline whose latents are images
"""

from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from common.errors import UserError, explain
from common.models.pipeline_folder import INDEX, quiet

PARTS = {
    "unet": UNet2DConditionModel,
    "scheduler": DDPMScheduler,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
}


class IdentityVAE(nn.Module):
    """The autoencoder of a model that needs none: f = 1, and a latent is the image."""

    config = SimpleNamespace(block_out_channels=(1,), scaling_factor=1.0, shift_factor=None)

    def __init__(self):
        super().__init__()
        self.register_buffer("empty", torch.empty(0))  # gives the module a device and a dtype

    def encode(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=images, std=torch.zeros_like(images)))

    def decode(
        self, latents: Tensor, return_dict: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor]:
        return (latents,)

    @property
    def device(self) -> torch.device:
        return self.empty.device

    @property
    def dtype(self) -> torch.dtype:
        return self.empty.dtype


def pixel_folder(name: str) -> Path | None:
    """The folder of a text-to-image model without an autoencoder, if the name leads to one."""
    local = Path(name).expanduser()
    for root in (local, local / "model"):
        if (
            all((root / part).is_dir() for part in PARTS)
            and not (root / "vae").exists()
            and not (root / INDEX).exists()
        ):
            return root
    return None


def open_pixels(folder: Path, device: str) -> StableDiffusionPipeline:
    """A pixel model's folder as a StableDiffusionPipeline in float32."""
    quiet()
    try:
        parts = {name: kind.from_pretrained(folder / name) for name, kind in PARTS.items()}
    except Exception as problem:  # each library raises its own exceptions
        raise UserError(f"the model in {folder} cannot be opened ({explain(problem)})") from problem
    if parts["unet"].config.in_channels != 3:
        raise UserError(
            f"the U-Net in {folder} has {parts['unet'].config.in_channels} input channels; without an autoencoder they should be 3, red, green and blue"
        )
    # a pipeline for latents would turn off its clipping of x0, which is right for images
    scheduler = parts.pop("scheduler")
    usual = DDPMScheduler.from_config(scheduler.config, clip_sample=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        **parts,
        scheduler=usual,
        vae=IdentityVAE(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.register_modules(scheduler=scheduler)
    return pipe.to(device)


def save_model(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """The whole pipeline in the form in which it was opened; of a pixel model its four parts."""
    for tokenizer in (pipe.tokenizer, getattr(pipe, "tokenizer_2", None)):
        if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
            backend.no_truncation()  # its file would keep how the last prompt was cut and padded
            backend.no_padding()
    if not isinstance(pipe.vae, IdentityVAE):
        pipe.save_pretrained(folder)
        return
    for part in PARTS:
        getattr(pipe, part).save_pretrained(folder / part)
