"""Images as latents, for a diffusion model to learn from: what every training on latents shares.

    z = sample(scaled(posterior, vae.cfg.scaling_factor), draw)      -> (B, c, h, w), of unit variance over the whole
    set

Chapter 4 keeps what encode() gives in a file, or encodes on the fly, and weighs both ways;
chapter 6 holds it in memory.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from common.data.dataset import Images
from common.data.registry import DRAWN
from common.errors import UserError
from common.io.pixels import to_float
from common.models.vae import AutoencoderKL, Gaussian
from common.random import BatchRandom

BATCH = 64  # images that the encoder sees at a time


def sample(batch: dict[str, Tensor], draw: BatchRandom) -> Tensor:
    """Latents for one training step.
    Every epoch draws others from what the encoder said; the same (seed, step) draws the same.
    """
    return batch["latent"] + batch["std"] * draw.randn(batch["latent"].shape)


def scaled(z: Gaussian, scale: float) -> dict[str, Tensor]:
    """What the training loop gets: mean and standard deviation, of unit variance over the set."""
    return {"latent": z.mean * scale, "std": (z.logvar / 2).exp() * scale}


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Images) -> Iterator[Gaussian]:
    """Every image in its order, BATCH at a time, on the autoencoder's device. In float32 and not in mixed precision:
    encoders are known to overflow in half precision, and a latent that is NaN once would be NaN in every epoch."""
    check_fit(vae, images)
    device = next(vae.parameters()).device
    for pixels in images.pixels.split(BATCH):
        yield vae.encode(to_float(pixels).to(device))


def check_fit_before(vae: AutoencoderKL, names: Sequence[str], size: int, flag: str = "--size") -> None:
    """The same for sets that are drawn, whose shape is known before the minutes of drawing."""
    for name in set(names) & set(DRAWN):
        check_fit(vae, Images(name, torch.zeros(1, 3, size, size, dtype=torch.uint8)), flag)


def check_fit(vae: AutoencoderKL, images: Images, flag: str = "--size") -> None:
    """Refuse images that the autoencoder cannot take, before any process is started.
    flag: what may be wrong besides --data
    """
    f, c = vae.cfg.factor, vae.cfg.image_channels
    height, width = images.pixels.shape[2:]
    if images.channels != c or height % f or width % f:
        raise UserError(
            f"the autoencoder takes images with {c} channels and sides that are multiples of {f}, "
            f"but those of {images.name} are {images.channels} x {height} x {width}; give another {flag if images.channels == c else '--data'}"
        )
