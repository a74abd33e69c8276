"""A small Stable Diffusion (Rombach et al. 2022): from words, or a picture and words, to pictures; and the folder it is kept in.

    pipeline = open_pipeline(Path("04_latent_sd/pretrained"))
    pipeline.txt2img(["番茄炒蛋"] * 4, Wish(w=5))                                  -> (4, 3, S, S) in [-1, 1]
    pipeline.img2img(images, ["a red creature with wings"] * 4, strength=0.6)      -> the same, on the way from these images

    noise ------------------------------------------------> x_T --.
    image --encoder, times the scaling factor--> z0, noised: x_t --+--> U-Net, guided, step by step --> z --decoder, of z / factor--> image
    prompts --text encoder----------------------------------------'

The folder is that of diffusers' StableDiffusionPipeline, to the last file: either opens what the other has written.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.diffusion.guidance import Guided, Scale
from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import Step, initial_noise
from common.diffusion.schedules import NoiseLevels, Schedule, add_noise
from common.errors import UserError
from common.io.weight_files import look_for_weights
from common.models.diffusers_vae import load_vae
from common.models.find_model import find_root
from common.models.model_folder import WEIGHTS, Model, load_model
from common.models.stable_diffusion_folder import check_schedule, save_folder  # noqa: F401 - check_schedule for unet_trainer.py
from common.models.text.encoders import WEIGHTS as TEXT_WEIGHTS
from common.models.text.encoders import TextEncoder, load_text
from common.models.unet import UNet
from common.models.vae import AutoencoderKL
from common.random import Noise

BATCH = 32  # pictures at a time; with guidance, the U-Net sees twice as many
FILES = (f"unet/{WEIGHTS}", "unet/config.json", f"vae/{WEIGHTS}", "vae/config.json", f"text_encoder/{TEXT_WEIGHTS}",
         "text_encoder/config.json", "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json")  # fmt: skip


@dataclass(frozen=True)
class Wish:
    """How to draw, whatever is drawn."""

    w: Scale = 5.0                                    # guidance scale; 1 is off
    negative: str = ""                                # what is not wanted
    sampler: str = "dpmpp_2m:20"
    rescale: float = 0.0                              # phi of guidance rescale; 0 is off
    interval: tuple[float, float] = (0.0, math.inf)   # guide at these noise levels only, sigma / alpha
    size: int | None = None                           # pixels a side; None is what the model was trained for
    seed: int = 0


@dataclass(frozen=True)
class Pipeline:
    """The three networks, and how the second was trained."""

    vae: AutoencoderKL
    unet: UNet
    schedule: Schedule
    prediction: str
    encoder: TextEncoder

    # ------------------------------------------------------------------------------------------------- from words alone

    def txt2img(self, prompts: Sequence[str], wish: Wish = Wish(), latents: Tensor | None = None) -> Tensor:
        """One picture of each prompt, (N, C, S, S) in [-1, 1] on the CPU. Picture i begins with the same noise whatever its prompt and w.

        latents  (N, c, h, w) to begin with, instead of the noise of wish.seed
        """
        drawn = []
        for part in batches(len(prompts)):
            given = None if latents is None else latents[part]
            *_, last = self.txt2img_steps(prompts[part], wish, part.start, given)
            drawn.append(self.decode(last.x))
        return torch.cat(drawn)

    def txt2img_steps(self, prompts: Sequence[str], wish: Wish = Wish(), first: int = 0, latents: Tensor | None = None) -> Iterator[Step]:
        """The latents of one batch, step by step; decode() shows them. first: the number of its first picture, for the noise."""
        path = self.schedule.noise_levels(Sampler.parse(wish.sampler).steps)
        side = self.latent_side(wish.size)
        x = initial_noise(path, (len(prompts), self.vae.cfg.latent_channels, side, side), Noise(wish.seed, first)) if latents is None else latents
        yield from self.reverse(x.to(self.device), path, prompts, wish, first)

    # ----------------------------------------------------------------------------------------- from a picture and words

    def img2img(self, images: Tensor, prompts: Sequence[str], strength: float, wish: Wish = Wish(), noise: Tensor | None = None) -> Tensor:
        """Pictures on the way from images to prompts (Meng et al. 2022, SDEdit): noised part of the way, denoised as the words want it.

        images    (N, C, H, W) in [-1, 1], H and W multiples of f; or (1, C, H, W) for all prompts. wish.size is not used
        strength  how far up the noise they go: 1 forgets nearly everything, 0.1 changes hardly anything
        noise     (N, c, h, w) standard normal, instead of that of wish.seed
        Returns (N, C, H, W) on the CPU.
        """
        if len(images) not in (1, len(prompts)):
            raise UserError(f"{len(images)} images do not go with {len(prompts)} prompts; give one image, or one for each prompt")
        drawn = []
        for part in batches(len(prompts)):
            given = None if noise is None else noise[part]
            *_, last = self.img2img_steps(images if len(images) == 1 else images[part], prompts[part], strength, wish, part.start, given)
            drawn.append(self.decode(last.x))
        return torch.cat(drawn)

    def img2img_steps(self, images: Tensor, prompts: Sequence[str], strength: float, wish: Wish = Wish(), first: int = 0,
                      noise: Tensor | None = None) -> Iterator[Step]:  # fmt: skip
        """The latents of one batch, step by step."""
        path = begin_at(self.schedule.noise_levels(Sampler.parse(wish.sampler).steps), strength)
        z0 = self.encode(images).expand(len(prompts), -1, -1, -1)
        noise = Noise(wish.seed, first)(0, z0) if noise is None else noise.to(self.device)
        yield from self.reverse(add_noise(z0, noise, next(iter(path))), path, prompts, wish, first)

    # ------------------------------------------------------------------------------------------------- what both share

    @torch.no_grad()
    def reverse(self, x: Tensor, path: NoiseLevels, prompts: Sequence[str], wish: Wish, first: int) -> Iterator[Step]:
        """Denoise x (B, c, h, w) along the path. Latents know no bounds, so no guess is clipped."""
        cond, uncond = ({"text": self.encoder(list(words))} for words in (prompts, [wish.negative]))
        denoise = Guided(self.unet.eval(), self.prediction, cond, uncond, wish.w, False, wish.rescale, wish.interval)
        yield from Sampler.parse(wish.sampler).trajectory(denoise, x, path, Noise(wish.seed, first))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, c, H / f, W / f) of unit variance: the most probable latents, so that the same picture is
        always the same latents."""
        return self.vae.scale(self.vae.encode(images.to(self.device)).mode())

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(B, c, h, w) of unit variance -> (B, C, f h, f w) in [-1, 1], on the CPU"""
        if not z.isfinite().all():
            raise UserError("the sampled latents hold NaN or infinite values; try a smaller guidance scale, or another model")
        return self.vae.decode(self.vae.unscale(z)).clamp(-1, 1).cpu()

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def size(self) -> int:
        """Pixels a side of what it was trained for."""
        return self.unet.cfg.size * self.vae.cfg.factor or self.vae.cfg.size

    def latent_side(self, size: int | None) -> int:
        f, size = self.vae.cfg.factor, size or self.size
        if size < f or size % f:
            raise UserError(f"--size must be a multiple of {f}, not {size}, because one latent covers {f} x {f} pixels")
        return size // f

    def remarks(self, prompt: str) -> list[str]:
        """What whoever typed this prompt should know: it is empty, cut, or holds unknown words."""
        return self.encoder.tokenizer.remarks(prompt)


def batches(n: int) -> Iterator[slice]:
    return (slice(first, min(first + BATCH, n)) for first in range(0, n, BATCH))


def begin_at(path: NoiseLevels, strength: float) -> NoiseLevels:
    """What is left of a path when the picture to begin with is noised part of the way: of 10 steps and strength 0.6 the last 6.

    Rounded to the nearest step; diffusers cuts off, so that for it 0.58 of 50 steps, in floating point, is 28.
    """
    if not 0 < strength <= 1:
        raise UserError(f"--strength must be above 0 and at most 1, not {strength:g}; 0.6 is usual")
    left = round(strength * len(path))
    if left == 0:
        raise UserError(f"--strength {strength:g} of {len(path)} steps is less than one step; take more steps, or a larger --strength")
    return path.after(len(path) - left)


# ----------------------------------------------------------------------------------------------------------- the folder


def save_pipeline(folder: Path, pipeline: Pipeline, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder for StableDiffusionPipeline.from_pretrained(folder), and diffusers' AutoPipelines. Each file whole or not at all."""
    model = Model(pipeline.unet, pipeline.schedule, pipeline.prediction, clip_x0=False)
    save_folder(folder, "StableDiffusionPipeline", model, pipeline.vae, pipeline.encoder, dtype)


def open_pipeline(folder: Path, device: str | torch.device = "cpu") -> Pipeline:
    """A run folder, or any Stable Diffusion 1.x or 2.x folder or file; float32, every key checked.

    Its safety checker, if it has one, is not part of the picture, and is not opened.
    """
    root = whole_folder(Path(folder))
    unet, schedule, prediction, _ = load_model(root, device)
    vae = load_vae(root / "vae", device)
    check_latents(folder, unet, vae)
    encoder = load_text(root).to(device).eval()
    if encoder.dim != unet.cfg.text_dim:
        raise UserError(f"the text encoder in {folder} gives embeddings of width {encoder.dim}, but its U-Net expects {unet.cfg.text_dim}")
    return Pipeline(vae, unet, schedule, prediction, encoder)


def whole_folder(folder: Path) -> Path:
    """The folder itself or its `model`, with every file there."""
    root = find_root(folder, "a Stable Diffusion model")
    if not (root / "vae").is_dir():
        raise UserError(f"{folder} holds no autoencoder: {root / 'vae'} is missing; a model that works on pixels is sampled by sample.py of chapter 1 (without text) or 2 (with text)")
    missing = [file for file in FILES if not ((root / file).exists() or (file.endswith(".safetensors") and look_for_weights((root / file).parent)))]
    if missing:
        raise UserError(f"{root} is no whole Stable Diffusion folder: it lacks {', '.join(missing)}")
    return root


def check_latents(folder: Path, unet: UNet, vae: AutoencoderKL) -> None:
    """Refuse networks that were not made for each other."""
    c, cfg = vae.cfg.latent_channels, unet.cfg
    if cfg.in_channels == 2 * c + 1:
        raise UserError(f"the U-Net in {folder} is one for inpainting, with {cfg.in_channels} input channels; use it with 06_inpaint_gif/make_gif.py --model")
    if (cfg.in_channels, cfg.out_channels) != (c, c):
        raise UserError(f"the autoencoder in {folder} makes latents with {c} channels, but its U-Net takes {cfg.in_channels} and gives {cfg.out_channels}")
    if not cfg.text_dim:
        raise UserError(f"the U-Net in {folder} is not conditioned on text; give a text-to-image model")
