"""A text-to-image model that is ready to draw:
U-Net, noise schedule, text encoder and, for a latent model, the autoencoder.

    pipeline = open_pipeline(Path("04_latent_sd/pretrained"))                   # common/models/text_to_image_folder.py
    pipeline.txt2img(["番茄炒蛋"] * 4, SamplingConfig(guidance_scale=5.0))         -> (4, 3, S, S) in [-1, 1]
    pipeline.img2img(images, ["a red creature"] * 4, strength=0.6)              -> the same, starting from images

A model of pixels has no autoencoder: encode() and decode() then leave images as they are, and one "latent" is one
pixel. An unconditional model has no text encoder: it ignores the prompts. An inpainting U-Net takes more channels than
it returns; guided() gets them as `extra`. What other programs combine in their own way is in guided(),
from_noise() and reverse().
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.diffusion.denoiser import ClipMode
from common.diffusion.guidance import Guided, Scale
from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import Denoise, Step, initial_noise
from common.diffusion.schedules import NoiseLevels, Schedule, add_noise
from common.errors import UserError
from common.io.progress import with_progress
from common.models.text.encoders import TextEncoder
from common.models.unet import UNet
from common.models.vae import AutoencoderKL
from common.random import Noise, NoiseSource

BATCH_SIZE = 32  # images at a time; with guidance, the U-Net sees twice as many


@dataclass(frozen=True)
class SamplingConfig:
    """How images are sampled, whatever the prompt."""

    guidance_scale: Scale = 5.0  # w; 1 is off. A number, or a function of the noise level
    negative_prompt: str = ""  # takes the place of the empty caption
    sampler: str = "dpmpp_2m:20"  # as Sampler.parse reads it
    rescale: float = 0.0  # phi of guidance rescale (Lin et al. 2023); 0 is off
    # guide only where low < sigma / alpha <= high (Kynkaanniemi et al. 2024)
    interval: tuple[float, float] = (0.0, math.inf)
    clip_x0: ClipMode | None = None  # True, False or "dynamic"; None is what the model was saved with
    size: int | None = None  # pixels a side; None is the size that the model was trained for
    seed: int = 0  # of the initial noise, and of the noise that a sampler adds


@dataclass(frozen=True)
class TextToImagePipeline:
    """The networks of a model, and how its U-Net was trained."""

    unet: UNet
    schedule: Schedule
    prediction: str  # one of common.diffusion.denoiser.PREDICTIONS
    text_encoder: TextEncoder | None  # None: the model is unconditional
    vae: AutoencoderKL | None = None  # None: the model works on pixels
    clip_x0: ClipMode = False  # images are bounded by [-1, 1], latents are not

    # ------------------------------------------------------------------------------------------------- from text alone

    def txt2img(
        self, prompts: Sequence[str], config: SamplingConfig = SamplingConfig(), latents: Tensor | None = None
    ) -> Tensor:
        """One image for each prompt, (N, C, S, S) in [-1, 1] on the CPU.

        Image i starts from the same noise whatever its prompt and guidance scale.
        latents  (N, c, h, w) to start from, instead of the noise of config.seed
        """
        images = []
        for batch in with_progress("drawing", batches(len(prompts)), unit="batch"):
            *_, last = self.txt2img_steps(
                prompts[batch], config, batch.start, None if latents is None else latents[batch]
            )
            images.append(self.decode(last.x))
        return torch.cat(images)

    def txt2img_steps(
        self,
        prompts: Sequence[str],
        config: SamplingConfig = SamplingConfig(),
        first: int = 0,
        latents: Tensor | None = None,
    ) -> Iterator[Step]:
        """The latents of one batch after each step; decode() turns them into images.
        first: index of its first image, for the noise
        """
        denoise, noise = self.guided(prompts, config), Noise(config.seed, first)
        if latents is not None:
            yield from self.reverse(denoise, latents.to(self.device), self.noise_levels(config), config, noise)
        else:
            side = self.latent_side(config.size)
            yield from self.from_noise(denoise, len(prompts), (side, side), config, noise)

    # ------------------------------------------------------------------------------------------ from an image and text

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

        images    (N, C, H, W) in [-1, 1], H and W multiples of f; or (1, C, H, W) for all prompts. config.size is not
                  used
        strength  how far the images are noised: 1 keeps nearly nothing of them, 0.1 changes hardly anything
        noise     (N, c, h, w) standard normal, instead of that of config.seed
        Returns (N, C, H, W) on the CPU. Raises UserError where images and prompts do not match,
        or strength is out of range.
        """
        if len(images) not in (1, len(prompts)):
            raise UserError(
                f"{len(images)} images do not go with {len(prompts)} prompts; give one image, or one for each prompt"
            )
        drawn = []
        for batch in with_progress("drawing", batches(len(prompts)), unit="batch"):
            given = images if len(images) == 1 else images[batch]
            *_, last = self.img2img_steps(
                given, prompts[batch], strength, config, batch.start, None if noise is None else noise[batch]
            )
            drawn.append(self.decode(last.x))
        return torch.cat(drawn)

    def img2img_steps(
        self,
        images: Tensor,
        prompts: Sequence[str],
        strength: float,
        config: SamplingConfig = SamplingConfig(),
        first: int = 0,
        noise: Tensor | None = None,
    ) -> Iterator[Step]:
        """The latents of one batch after each step."""
        levels, source = last_levels(self.noise_levels(config), strength), Noise(config.seed, first)
        z0 = self.encode(images).expand(len(prompts), -1, -1, -1)
        noise = source(0, z0) if noise is None else noise.to(self.device)
        yield from self.reverse(
            self.guided(prompts, config), add_noise(z0, noise, next(iter(levels))), levels, config, source
        )

    # ------------------------------------------------------------------------------------------------- what they share

    def noise_levels(self, config: SamplingConfig) -> NoiseLevels:
        """The noise levels that the sampler visits."""
        return self.schedule.noise_levels(Sampler.parse(config.sampler).steps)

    @torch.no_grad()
    def guided(self, prompts: Sequence[str], config: SamplingConfig, extra: Tensor | None = None) -> Guided:
        """The guided denoiser of one batch.
        extra: further input channels of an inpainting U-Net, (B, E, h, w) or (1, E, h, w)
        """
        clip_x0 = self.clip_x0 if config.clip_x0 is None else config.clip_x0
        encoder, unet = self.text_encoder, self.unet.eval()
        cond, uncond = (
            {"text": encoder(list(texts)).to(self.device)} if encoder else {}
            for texts in (prompts, [config.negative_prompt])
        )
        w = config.guidance_scale if encoder else 1.0
        return Guided(unet, self.prediction, cond, uncond, w, clip_x0, config.rescale, config.interval, extra)

    def from_noise(
        self, denoise: Denoise, n: int, shape: tuple[int, int], config: SamplingConfig, noise: NoiseSource
    ) -> Iterator[Step]:
        """Sample n latents from pure noise with any denoiser. shape: their height and width"""
        levels = self.noise_levels(config)
        x = initial_noise(levels, (n, self.latent_channels, *shape), noise).to(self.device)
        yield from self.reverse(denoise, x, levels, config, noise)

    @torch.no_grad()
    def reverse(
        self, denoise: Denoise, x: Tensor, levels: NoiseLevels, config: SamplingConfig, noise: NoiseSource
    ) -> Iterator[Step]:
        """Run the sampler of the config from x (B, c, h, w), which is at the first of the levels."""
        yield from Sampler.parse(config.sampler).trajectory(denoise, x, levels, noise)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, c, H / f, W / f) of unit variance:
        the mode of the posterior, so that equal images have equal latents
        """
        images = images.to(self.device)
        return self.vae.scale(self.vae.encode(images).mode()) if self.vae else images

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(B, c, h, w) of unit variance -> (B, C, f h, f w) in [-1, 1], on the CPU.
        Raises UserError for NaN or infinite latents.
        """
        if not z.isfinite().all():
            raise UserError(
                "the sampled latents hold NaN or infinite values; try a smaller guidance scale, or another model"
            )
        return (self.vae.decode(self.vae.unscale(z)) if self.vae else z).clamp(-1, 1).cpu()

    # ------------------------------------------------------------------------------------------------ what is in there

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def factor(self) -> int:
        """f, the pixels a side that one latent covers; 1 for a model of pixels."""
        return self.vae.cfg.factor if self.vae else 1

    @property
    def latent_channels(self) -> int:
        """c; an inpainting U-Net takes more channels than it returns,
        one with learned variance returns more than it takes.
        """
        return min(self.unet.cfg.in_channels, self.unet.cfg.out_channels)

    @property
    def image_channels(self) -> int:
        """C of its images: 1 grey, 3 colour."""
        return self.vae.cfg.image_channels if self.vae else self.latent_channels

    @property
    def size(self) -> int:
        """Pixels a side of the images that it was trained for; 0 where its folder does not say."""
        return self.unet.cfg.size * self.factor or (self.vae.cfg.size if self.vae else 0)

    @property
    def is_inpainting(self) -> bool:
        """Whether its U-Net expects a mask and the known latents beside the noisy ones."""
        return self.unet.cfg.in_channels > self.unet.cfg.out_channels

    def latent_side(self, size: int | None = None) -> int:
        """Latents a side of images of this size, by default of the model's own.
        Raises UserError unless f divides it.
        """
        f, size = self.factor, size or self.size
        if size < f or size % f:
            raise UserError(
                f"--size must be a multiple of {f}, not {size}, because one latent covers {f} x {f} pixels"
            )
        return size // f

    def remarks(self, prompt: str) -> list[str]:
        """Warnings about a prompt: it is empty, is cut off, or holds unknown words."""
        return self.text_encoder.remarks(prompt) if self.text_encoder else []


def batches(n: int) -> list[slice]:
    """n images in batches of at most BATCH_SIZE."""
    return [slice(first, min(first + BATCH_SIZE, n)) for first in range(0, n, BATCH_SIZE)]


def last_levels(levels: NoiseLevels, strength: float) -> NoiseLevels:
    """The levels that img2img visits: of 10 steps and strength 0.6 the last 6.

    The number of steps is rounded; diffusers truncates, so that 0.58 of 50 steps, 28.999... in floating point, is 28
    there. Raises UserError unless 0 < strength <= 1 and at least one step is left.
    """
    if not 0 < strength <= 1:
        raise UserError(f"--strength must be above 0 and at most 1, not {strength:g}; 0.6 is usual")
    left = round(strength * len(levels))
    if left == 0:
        raise UserError(
            f"--strength {strength:g} of {len(levels)} steps is less than one step; take more steps, or a larger --strength"
        )
    return levels.after(len(levels) - left)
