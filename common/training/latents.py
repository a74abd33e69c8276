"""Images as latents, for a diffusion model to learn from: what every training on latents shares.

    z = sample(scaled(posterior, vae.cfg.scaling_factor), draw)      -> (B, c, h, w), of unit variance over the whole
    set

    data = encode_images(vae, images)
    z = sample(data.batch(indices), draw)                            -> the same, of images encoded once

Chapter 6 holds the latents of encode_images() in memory. Chapter 4 keeps them in a file, or encodes on the fly, and
compares both ways.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.data.dataset import Images
from common.data.registry import DRAWN
from common.errors import UserError
from common.io.pixels import to_float
from common.io.progress import with_progress
from common.models.vae import AutoencoderKL, Gaussian
from common.random import BatchRandom

BATCH = 64  # images of 64x64 that the encoder sees at a time; of other sizes as many pixels


def sample(batch: dict[str, Tensor], draw: BatchRandom) -> Tensor:
    """Latents for one training step.
    Every epoch samples others from the posterior; the same (seed, step) samples the same.
    """
    return batch["latent"] + batch["std"] * draw.randn(batch["latent"].shape)


def scaled(z: Gaussian, scale: float) -> dict[str, Tensor]:
    """What the training loop gets: mean and standard deviation, of unit variance over the set."""
    return {"latent": z.mean * scale, "std": (z.logvar / 2).exp() * scale}


def encoder_batch(pixels: Tensor, images_each: int = 1) -> int:
    """How many of these images (N, C, H, W) the encoder sees at a time, so that the memory of its activations does not
    grow with their size. images_each: versions of each image that are encoded together
    """
    return max(1, BATCH * 64 * 64 // (pixels.shape[2] * pixels.shape[3] * images_each))


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Images) -> Iterator[Gaussian]:
    """Every image in its order, BATCH at a time, on the autoencoder's device. In float32 and not in mixed precision:
    encoders are known to overflow in half precision, and a latent that is NaN once would be NaN in every epoch."""
    check_fit(vae, images)
    device = next(vae.parameters()).device
    for pixels in with_progress("encoding", images.pixels.split(encoder_batch(images.pixels)), unit="batch"):
        yield vae.encode(to_float(pixels).to(device))


@dataclass(frozen=True)
class LatentDataset:
    """Latents of images that were encoded once, as the training loop reads them.

    table   (N, 2, C, h, w) float16: mean and log variance of each image, not scaled. An array that is mapped from a
            file stays there, and only what is asked for is read
    scale   the autoencoder's scaling factor
    path    the file of the table, if it has one
    """

    table: np.ndarray
    scale: float
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.table)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """{"latent": (B, C, h, w), "std": (B, C, h, w)}, float32, scaled"""
        rows = torch.from_numpy(np.array(self.table[indices.numpy()], np.float32))  # (B, 2, C, h, w)
        if not rows.isfinite().all():
            raise UserError(f"{self.path} holds NaN or infinite latents; delete it, and it will be made again")
        return scaled(Gaussian(*rows.unbind(1)), self.scale)


def encode_images(vae: AutoencoderKL, images: Images, advice: str = "choose another autoencoder") -> LatentDataset:
    """The latents of all images, in memory. advice: what to do about latents that do not fit into half precision"""
    f, (height, width) = vae.cfg.factor, images.pixels.shape[2:]
    # the whole table at once: a list of its parts would double the memory at the end
    table = np.empty((len(images), 2, vae.cfg.latent_channels, height // f, width // f), np.float16)
    first = 0
    for z in encode(vae, images):
        table[first : first + len(z.mean)] = to_half(z, first, advice)
        first += len(z.mean)
    return LatentDataset(table, vae.cfg.scaling_factor)


def to_half(z: Gaussian, first: int, advice: str) -> np.ndarray:
    """(B, C, h, w) twice -> (B, 2, C, h, w) float16, whose largest number is 65,504:
    what does not fit is refused, naming the image. first: index of the first image
    """
    both = torch.stack(z, dim=1).to("cpu", torch.float16)
    broken = (~both.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if broken:
        largest, image = float(torch.stack([part[broken[0]] for part in z]).abs().max()), f"image {first + broken[0]}"
        if not math.isfinite(largest):
            raise UserError(f"the autoencoder gives NaN or infinite latents for {image}; choose another autoencoder")
        raise UserError(
            f"the latents of {image} do not fit into half precision (the largest value is {largest:g}); {advice}"
        )
    return both.numpy()


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
