"""A small Stable Diffusion (Rombach et al. 2022), written out:
text, or an image and text, become images by way of latents.

    pipeline = open_latent_diffusion(Path("04_latent_sd/pretrained"))
    pipeline.txt2img(["番茄炒蛋"] * 4, SamplingConfig(guidance_scale=5.0))                 -> (4, 3, S, S) in [-1, 1]
    pipeline.img2img(images, ["a red creature with bat wings"] * 4, strength=0.6)       -> the same, starting from these images

    noise ------------------------------------------------> x_T --.
    image --encoder, times the scaling factor--> z0, noised: x_t --+--> U-Net, guided, step by step --> z --decoder, of
    z / factor--> image prompts --text encoder----------------------------------------'

This file shows the algorithm for one batch. The programs use common/models/pipeline.py, which also splits prompts into
batches, refuses wrong input, and serves models of pixels.
tests/chapter_04/test_longhand_pipeline.py proves that both draw equal images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.diffusion.guidance import Guided
from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import initial_noise
from common.diffusion.schedules import NoiseLevels, Schedule, add_noise
from common.models.pipeline import SamplingConfig
from common.models.text.encoders import TextEncoder
from common.models.text_to_image_folder import open_latent_pipeline
from common.models.unet import UNet
from common.models.vae import AutoencoderKL
from common.random import Noise


@dataclass(frozen=True)
class LatentDiffusion:
    """The three networks, and how the second was trained."""

    vae: AutoencoderKL
    unet: UNet
    schedule: Schedule
    prediction: str
    text_encoder: TextEncoder

    def txt2img(
        self, prompts: Sequence[str], config: SamplingConfig = SamplingConfig(), latents: Tensor | None = None
    ) -> Tensor:
        """One image for each prompt, (N, C, S, S) in [-1, 1].
        latents (N, c, h, w): to start from, instead of the noise of the seed
        """
        levels = self.schedule.noise_levels(Sampler.parse(config.sampler).steps)
        side = (config.size or self.size) // self.vae.cfg.factor
        shape = (len(prompts), self.vae.cfg.latent_channels, side, side)
        x = initial_noise(levels, shape, Noise(config.seed, 0)) if latents is None else latents
        return self.decode(self.reverse(x, levels, prompts, config))

    def img2img(
        self,
        images: Tensor,
        prompts: Sequence[str],
        strength: float,
        config: SamplingConfig = SamplingConfig(),
        noise: Tensor | None = None,
    ) -> Tensor:
        """Images changed towards prompts (SDEdit, Meng et al.
        2022): noised part of the way, then denoised with the prompt.

        images (N, C, H, W) in [-1, 1], or (1, C, H, W) for all prompts; strength in (0, 1];
        noise (N, c, h, w) instead of that of the seed
        """
        levels = last_levels(self.schedule.noise_levels(Sampler.parse(config.sampler).steps), strength)
        z0 = self.encode(images).expand(len(prompts), -1, -1, -1)
        noise = Noise(config.seed, 0)(0, z0) if noise is None else noise
        return self.decode(self.reverse(add_noise(z0, noise, next(iter(levels))), levels, prompts, config))

    @torch.no_grad()
    def reverse(self, x: Tensor, levels: NoiseLevels, prompts: Sequence[str], config: SamplingConfig) -> Tensor:
        """Denoise x (N, c, h, w) along the noise levels, guided by the prompts.
        Latents have no bounds, so x0 is not clipped.
        """
        # (N or 1, M, D)
        cond, uncond = ({"text": self.text_encoder(list(texts))} for texts in (prompts, [config.negative_prompt]))
        denoise = Guided(
            self.unet.eval(),
            self.prediction,
            cond,
            uncond,
            config.guidance_scale,
            clip_x0=False,
            rescale=config.rescale,
            interval=config.interval,
        )
        *_, last = Sampler.parse(config.sampler).trajectory(denoise, x, levels, Noise(config.seed, 0))
        return last.x

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, c, H / f, W / f) of unit variance:
        the mode of the posterior, so that equal images have equal latents
        """
        return self.vae.scale(self.vae.encode(images).mode())

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(B, c, h, w) of unit variance -> (B, C, f h, f w) in [-1, 1]"""
        return self.vae.decode(self.vae.unscale(z)).clamp(-1, 1)

    @property
    def size(self) -> int:
        """Pixels a side of the images that it was trained for."""
        return self.unet.cfg.size * self.vae.cfg.factor


def last_levels(levels: NoiseLevels, strength: float) -> NoiseLevels:
    """The noise levels that img2img visits: of 10 steps and strength 0.6 the last 6, rounded to whole steps."""
    return levels.after(len(levels) - round(strength * len(levels)))


def open_latent_diffusion(folder: Path) -> LatentDiffusion:
    """The networks of a Stable Diffusion folder, on the CPU."""
    found = open_latent_pipeline(folder)
    assert found.vae and found.text_encoder  # open_latent_pipeline refuses a folder without them
    return LatentDiffusion(found.vae, found.unet, found.schedule, found.prediction, found.text_encoder)
