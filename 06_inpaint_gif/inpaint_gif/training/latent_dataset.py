"""Images as latents and captions as embeddings, held in memory: both are encoded once, before a training begins.

Chapter 4 keeps latents in files instead, and compares both ways.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from common.data import Images
from common.errors import UserError
from common.models.vae import AutoencoderKL
from common.training.latents import BATCH, encode, scaled


class LatentTable(NamedTuple):
    """Mean and standard deviation of the posterior of each image, times the scaling factor.
    Each (N, c, h, w) float16
    """

    mean: Tensor
    std: Tensor

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """{"latent": (B, c, h, w), "std": (B, c, h, w)} float32"""
        return {"latent": self.mean[indices].float(), "std": self.std[indices].float()}


def encode_images(vae: AutoencoderKL, images: Images) -> LatentTable:
    """The latents of all images."""
    parts = []
    for z in tqdm(encode(vae, images), "encoding", -(-len(images) // BATCH), disable=len(images) < 1000, leave=False):
        batch = scaled(z, vae.cfg.scaling_factor)
        parts.append((to_half(batch["latent"]), to_half(batch["std"])))
    return LatentTable(*map(torch.cat, zip(*parts, strict=True)))


class CaptionTable(NamedTuple):
    """Embeddings of all different captions, and which of them belong to each image.

    embeddings  (T, ...)
    rows        (N, K) indices of the K captions of each image
    """

    embeddings: Tensor
    rows: Tensor

    def batch(self, indices: Tensor) -> Tensor:
        """(B, K, ...) float32"""
        return self.embeddings[self.rows[indices]].float()


def encode_captions(encode_texts: Callable[[list[str]], Tensor], captions: Sequence[Sequence[str]]) -> CaptionTable:
    """Encode each different caption once. captions: K for each image"""
    number = {text: i for i, text in enumerate(dict.fromkeys(text for some in captions for text in some))}
    return CaptionTable(
        encode_texts(list(number)), torch.tensor([[number[text] for text in some] for some in captions])
    )


def to_half(z: Tensor) -> Tensor:
    """To float16 on the CPU. Numbers beyond 65,504, the largest one of float16, are refused."""
    y = z.to("cpu", torch.float16)
    if not y.isfinite().all():
        raise UserError(
            f"these latents or embeddings do not fit into half precision (the largest is {float(z.abs().max()):g}); "
            "choose another autoencoder or text encoder"
        )
    return y
