"""A frozen text encoder that computes the embeddings of each caption once and keeps them in a file for later runs."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.errors import UserError
from common.io.state_dict import fingerprint, write_weights
from common.models.text.encoders import CLIPTextEncoder


class CachedTextEncoder:
    """cached(captions) -> (B, M, D) float32, like the encoder itself up to half precision.

    The file's name is a hash of everything that the embeddings depend on: weights, tokenizer, length, captions. It
    holds 2 N M D bytes for N different captions: 1 GB for 10,000 captions of 77 tokens of width 650. Other captions,
    such as prompts that a user types later, are computed when they are asked for.
    Raises UserError for an encoder with trainable weights.
    """

    def __init__(self, encoder: CLIPTextEncoder, captions: Sequence[str], folder: Path, batch: int = 64):
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            raise UserError(
                "only a frozen text encoder can be cached, because one that is trained changes with every step"
            )
        self.encoder, self.dim, self.length, self.tokenizer = encoder, encoder.dim, encoder.length, encoder.tokenizer
        distinct = sorted({"", *captions})
        self.path = (
            Path(folder) / f"text-{fingerprint(encoder, encoder.tokenizer.backend.to_str(), distinct)}.safetensors"
        )
        self.row = {caption: i for i, caption in enumerate(distinct)}
        table = self._read() if self.path.exists() else None
        if table is None:
            table = torch.cat([half(encoder(distinct[i : i + batch])) for i in range(0, len(distinct), batch)])
            write_weights(self.path, {"embeddings": table})
        self.table = table  # (N, M, D) float16

    def _read(self) -> Tensor | None:
        """The table of the file; None if it is damaged, because it can be computed again."""
        try:
            table = load_file(self.path)["embeddings"]
        except (SafetensorError, OSError, KeyError):
            return None
        return table if table.shape == (len(self.row), self.length, self.dim) else None

    def __call__(self, captions: Sequence[str]) -> Tensor:
        device = next(self.encoder.parameters()).device
        if all(caption in self.row for caption in captions):
            return self.table[[self.row[caption] for caption in captions]].float().to(device)
        return torch.cat(
            [self([c]) if c in self.row else half(self.encoder([c])).float().to(device) for c in captions]
        )

    def remarks(self, prompt: str) -> list[str]:
        return self.encoder.remarks(prompt)


def half(embeddings: Tensor) -> Tensor:
    """To float16 on the CPU. The largest number of that type is 65,504; embeddings beyond it are refused."""
    rounded = embeddings.to("cpu", torch.float16)
    if not rounded.isfinite().all():
        raise UserError(
            "the embeddings of this text encoder do not fit into half precision, in which they are cached "
            f"(the largest is {float(embeddings.abs().max()):g}); choose another"
        )
    return rounded
