"""Pictures as latents, held in memory: encoded once, before a training begins. (Chapter 4 keeps them in files, and weighs both ways.)"""

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from common.data import Images
from common.errors import UserError
from common.models.vae import AutoencoderKL
from common.training.latents import BATCH, encode, scaled


class LatentSet(NamedTuple):
    """What the encoder says of each picture, times the scaling factor. Each (N, c, h, w)"""

    mean: Tensor
    std: Tensor

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"latent": self.mean[indices].float(), "std": self.std[indices].float()}


def encoded(vae: AutoencoderKL, images: Images) -> LatentSet:
    """In half precision, for there may be many."""
    parts = []
    for z in tqdm(encode(vae, images), "encoding", -(-len(images) // BATCH), disable=len(images) < 1000, leave=False):
        batch = scaled(z, vae.cfg.scaling_factor)
        parts.append((half(batch["latent"]), half(batch["std"])))
    return LatentSet(*map(torch.cat, zip(*parts, strict=True)))


def half(z: Tensor) -> Tensor:
    """To float16 on the CPU, whose largest number is 65,504: what does not fit is refused."""
    y = z.to("cpu", torch.float16)
    if not y.isfinite().all():
        raise UserError(f"these latents or embeddings do not fit into half precision (the largest is {float(z.abs().max()):g}); choose another autoencoder or text encoder")
    return y
