"""Pictures as latents, held in memory: encoded once, before a training begins. (Chapter 4 keeps them in files, and weighs both ways.)"""

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from common.data.images import to_float
from common.errors import UserError
from common.vae import AutoencoderKL

BATCH = 64  # images that the encoder sees at a time


class LatentSet(NamedTuple):
    """What the encoder says of each picture, times the scaling factor. Each (N, c, h, w)"""

    mean: Tensor
    std: Tensor

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"latent": self.mean[indices].float(), "std": self.std[indices].float()}


def sample(batch: dict[str, Tensor], draw) -> Tensor:
    """Latents for one training step. Every epoch draws others from what the encoder said; the same (seed, step) draws the same."""
    return batch["latent"] + batch["std"] * draw.randn(batch["latent"].shape)


@torch.no_grad()
def encoded(vae: AutoencoderKL, pixels: Tensor, what: str = "encoding") -> LatentSet:
    """pixels (N, C, H, W) uint8. In half precision, for there may be many."""
    device, parts = next(vae.parameters()).device, []
    for part in tqdm(pixels.split(BATCH), what, disable=len(pixels) < 1000, leave=False):
        z = vae.encode(to_float(part).to(device))
        parts.append((half(vae.scale(z.mean)), half(vae.scale((z.logvar / 2).exp()))))
    return LatentSet(*map(torch.cat, zip(*parts, strict=True)))


def half(z: Tensor) -> Tensor:
    """To float16 on the CPU, whose largest number is 65,504: what does not fit is refused."""
    y = z.to("cpu", torch.float16)
    if not y.isfinite().all():
        raise UserError(f"latents of these images do not fit into half precision (the largest is {float(z.abs().max()):g}); is the autoencoder trained?")
    return y


def check_fit(vae: AutoencoderKL, pixels: Tensor, name: str) -> None:
    """Refuse images that the autoencoder cannot take."""
    f, c = vae.cfg.factor, vae.cfg.image_channels
    if pixels.shape[1] != c or pixels.shape[2] % f or pixels.shape[3] % f:
        raise UserError(f"the autoencoder takes images with {c} channels and sides that are multiples of {f}, but those of {name} are "
                        f"{' x '.join(map(str, pixels.shape[1:]))}; give another --model or --data")  # fmt: skip
