"""Captioned images as a frozen autoencoder and a frozen text encoder see them: each is asked once, before the training.

    data = encode(pipe, images, captions)
    data.batch(indices)  -> {"mean": (B, C, h, w), "std": (B, C, h, w), "words": (B, M, D)}

What never changes need not be computed again in every epoch. The autoencoder's answer is a distribution, so both its mean and its
standard deviation are kept, and every step draws other latents from it. All is held in memory: 10,000 images of 64 x 64 with f = 4 take
82 MB, 833 images of 512 x 512 with f = 8 take 109 MB and their captions 197 MB.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from common.data import Images, load
from common.errors import UserError
from common.io.pixels import to_float

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

BATCH = 16  # images, or captions, at a time


@dataclass(frozen=True)
class Encoded:
    """N images with their captions.

    mean, std  (N, C, h, w) of the latents, scaled as the U-Net expects them
    words      (K, M, D) embeddings of the K different captions
    row        (N,) which of them belongs to each image
    empty      (M, D) of the empty caption
    extra      more columns, (N, ...) each, that come along in every batch
    """

    mean: Tensor
    std: Tensor
    words: Tensor
    row: Tensor
    empty: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.mean)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        columns = {name: column[indices] for name, column in self.extra.items()}
        return {"mean": self.mean[indices], "std": self.std[indices], "words": self.words[self.row[indices]]} | columns


@dataclass(frozen=True)
class Pairs:
    """For DreamBooth: each item is an image of the subject and one of its kind, whose error weighs `prior` as much.

    A batch of B pairs has 2B rows, subject and kind by turns: Draw.stratified deals out noise levels in the order of the rows, and one
    kind after the other would give all the low levels to the subject.
    """

    subject: Encoded
    kind: Encoded
    prior: float

    def __len__(self) -> int:
        return len(self.subject) * len(self.kind)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        subject, kind = self.subject.batch(indices % len(self.subject)), self.kind.batch(indices // len(self.subject))
        weight = torch.tensor([1.0, self.prior]).repeat(len(indices))
        return {name: torch.stack([subject[name], kind[name]], 1).flatten(0, 1) for name in subject} | {"weight": weight}


def encode(pipe: "StableDiffusionPipeline", images: Images, captions: Sequence[str], quiet: bool = False, **extra: Tensor) -> Encoded:
    """Encode each image with the pipeline's autoencoder and each caption with its text encoder."""
    distinct = sorted({"", *captions})
    words = encode_texts(pipe, distinct)
    mean, std = encode_images(pipe, images.pixels, quiet)
    place = {caption: i for i, caption in enumerate(distinct)}
    return Encoded(mean, std, words, torch.tensor([place[caption] for caption in captions]), words[place[""]], extra)


@torch.no_grad()
def encode_images(pipe: "StableDiffusionPipeline", pixels: Tensor, quiet: bool = False) -> tuple[Tensor, Tensor]:
    """(N, 3, H, W) uint8 -> mean and standard deviation of their latents, (N, C, h, w) float32 on the CPU.

    In float32 and not in mixed precision: encoders are known to overflow in half precision, and a latent that is NaN once would be
    NaN in every epoch.
    """
    vae, means, stds = pipe.vae, [], []
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    for part in tqdm(pixels.split(BATCH), "encoding images", disable=quiet or len(pixels) < 200, leave=False):
        z = vae.encode(to_float(part).to(vae.device)).latent_dist
        means.append(((z.mean - shift) * vae.config.scaling_factor).cpu())
        stds.append((z.std * vae.config.scaling_factor).cpu())
    mean, std = torch.cat(means), torch.cat(stds)
    broken = (~(mean + std).isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if broken:
        raise UserError(f"the autoencoder encodes image {broken[0]} to NaN or infinity ({len(broken)} such images); remove these images from the data")
    return mean, std


@torch.no_grad()
def encode_texts(pipe: "StableDiffusionPipeline", captions: Sequence[str]) -> Tensor:
    """(K, M, D) float32 on the CPU, just as the pipeline encodes a prompt."""
    parts = [list(captions[i : i + BATCH]) for i in range(0, len(captions), BATCH)]
    return torch.cat([pipe.encode_prompt(part, pipe.device, 1, False)[0].float().cpu() for part in parts])


def cut(pipe: "StableDiffusionPipeline", captions: Sequence[str]) -> int:
    """How many captions are longer than the model reads."""
    longest = pipe.tokenizer.model_max_length
    return sum(len(ids) > longest for ids in pipe.tokenizer(list(captions)).input_ids)


def load_captioned(args, size: int, split: str = "train", n: int | None = None) -> Images:
    """The data that the flags ask for, in colour and with captions."""
    images = load(args.data, size, args.data_dir, split, args.language, n, channels=3)
    return replace(images, captions=images.need_captions(args.language))
