"""From words to pictures: open a text-to-image folder, and draw with guidance.

    painter = open_painter(Path("02_cfg_pokemon/pretrained"))
    painter.draw(["a red fire creature with bat wings"] * 4, Wish(w=3))      -> (4, 3, S, S) in [-1, 1]
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cfg_pokemon.guidance import Guided
from common.diffusion.denoiser import ClipMode
from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import Step
from common.diffusion.schedules import Schedule
from common.errors import UserError
from common.io.progress import with_progress
from common.models.find_model import find_root
from common.models.model_folder import Model, load_model, save_model
from common.models.text.encoders import TextEncoder, load_text, save_text
from common.models.unet import UNet

BATCH = 32  # pictures at a time; with guidance, the network sees twice as many


@dataclass(frozen=True)
class Wish:
    """How to draw, whatever is drawn."""

    w: float = 3.0                                    # guidance scale; 1 is off
    negative: str = ""                                # what is not wanted
    sampler: str = "dpmpp_2m:20"
    rescale: float = 0.0                              # phi of guidance rescale; 0 is off
    interval: tuple[float, float] = (0.0, math.inf)   # guide at these noise levels only, sigma / alpha
    clip: ClipMode = True                                 # True, False or "dynamic"
    seed: int = 0


@dataclass(frozen=True)
class Painter:
    """A trained network, the encoder it was trained with, and how to sample from them."""

    net: UNet
    schedule: Schedule
    prediction: str
    encoder: TextEncoder

    def draw(self, prompts: Sequence[str], wish: Wish = Wish()) -> Tensor:
        """One picture of each prompt, (N, C, S, S) on the CPU. Picture i begins with the same noise whatever its prompt and w."""
        return self.frames(prompts, wish)[-1]

    def frames(self, prompts: Sequence[str], wish: Wish = Wish()) -> list[Tensor]:
        """Every state of the reverse process but the first; each (N, C, S, S) on the CPU."""
        batches = []
        for first in with_progress("drawing", range(0, len(prompts), BATCH), unit="batch"):
            batches.append([step.x.cpu() for step in self.steps(prompts[first : first + BATCH], wish, first)])
        return [torch.cat(parts) for parts in zip(*batches, strict=True)]

    @torch.no_grad()
    def steps(self, prompts: Sequence[str], wish: Wish = Wish(), first: int = 0) -> Iterator[Step]:
        """The reverse process of one batch of prompts, step by step. first: the number of the first picture, for its noise."""
        device, cfg = next(self.net.parameters()).device, self.net.cfg
        cond, uncond = ({"text": self.encoder(list(words))} for words in (prompts, [wish.negative]))
        denoise = Guided(self.net.eval(), self.prediction, cond, uncond, wish.w, wish.clip, wish.rescale, wish.interval)
        shape = (len(prompts), cfg.in_channels, cfg.size, cfg.size)
        yield from Sampler.parse(wish.sampler).run(denoise, self.schedule, shape, wish.seed, first, device=device)

    def remarks(self, prompt: str) -> list[str]:
        """Warnings about a prompt: it is empty, cut, or holds unknown words."""
        return self.encoder.tokenizer.remarks(prompt)


def save_painter(folder: Path, painter: Painter, dtype: torch.dtype = torch.float32) -> None:
    """Write unet/, scheduler/, text_encoder/ and tokenizer/, each as diffusers and transformers read it."""
    save_model(folder, Model(painter.net, painter.schedule, painter.prediction, clip_x0=True), dtype)
    save_text(folder, painter.encoder, dtype)


def open_painter(folder: Path, device: str | torch.device = "cpu") -> Painter:
    """A run folder, or any folder with a text-conditional U-Net for pixels, its scheduler, text encoder and tokenizer."""
    net, schedule, prediction, _ = load_model(folder, device)
    if not net.cfg.text_dim:
        raise UserError(f"{folder} holds a model that reads no text; 01_ddpm_mnist/sample.py draws with it")
    if net.cfg.in_channels not in (1, 3):
        raise UserError(f"the U-Net in {folder} has {net.cfg.in_channels} input channels; this chapter samples grey or RGB images, with 1 channel or 3")
    encoder = load_text(find_root(folder)).to(device)
    if encoder.dim != net.cfg.text_dim:
        raise UserError(f"the text encoder in {folder} is {encoder.dim} wide, but its U-Net reads embeddings of {net.cfg.text_dim}")
    return Painter(net, schedule, prediction, encoder.eval())
