"""What the trainings of this chapter read: latents, and what else a step needs, all encoded once before the training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from common.errors import UserError
from common.models.pipeline import TextToImagePipeline
from common.training.latents import BATCH, LatentDataset


@dataclass(frozen=True)
class ConditionedLatents:
    """Latents and their conditions, as the training loop reads them.

    conditions  {name in the batch: indices -> its tensor}
    """

    latents: LatentDataset
    conditions: Mapping[str, Callable[[Tensor], Tensor]]

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """{"latent", "std": (B, c, h, w)}, and the conditions"""
        return self.latents.batch(indices) | {name: select(indices) for name, select in self.conditions.items()}


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


@torch.no_grad()
def encode_text(pipeline: TextToImagePipeline, captions: list[str]) -> CaptionTable:
    """One caption for each image, as the pipeline's text encoder encodes it: embeddings (T, M, D) float16."""

    def encoded(texts: list[str]) -> Tensor:
        return torch.cat([to_half(pipeline.text_encoder(texts[i : i + BATCH])) for i in range(0, len(texts), BATCH)])

    return encode_captions(encoded, [(caption,) for caption in captions])
