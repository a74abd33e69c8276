"""Captioned images as latents and text embeddings, computed once before the training, because the networks that
compute them are frozen.

    data = encode(pipe, images, captions)
    data.batch(indices)  -> {"mean": (B, C, h, w), "std": (B, C, h, w), "text": (B, M, D)}

The autoencoder returns a distribution, so both its mean and its standard deviation are kept, and every step samples
other latents from it. Everything is held in memory: 10,000 images of 64 x 64 with f = 4 take 82 MB, 833 images of 512
x 512 with f = 8 take 109 MB and their captions 197 MB.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from common.data import Images, load
from common.errors import UserError
from common.io.pixels import to_float
from common.io.progress import with_progress
from finetune_diffusers.training.flags import CaptionedFlags

BATCH = 16  # images, or captions, at a time


@dataclass(frozen=True)
class CaptionedLatents:
    """N images with their captions.

    mean, std  (N, C, h, w) of the latents, scaled as the U-Net expects them
    text       (K, M, D) embeddings of the K different captions
    caption    (N,) index of each image's caption among them
    empty      (M, D) embeddings of the empty caption
    extra      more columns, (N, ...) each, that every batch has as well
    """

    mean: Tensor
    std: Tensor
    text: Tensor
    caption: Tensor
    empty: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.mean)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        columns = {name: column[indices] for name, column in self.extra.items()}
        return {
            "mean": self.mean[indices],
            "std": self.std[indices],
            "text": self.text[self.caption[indices]],
        } | columns


@dataclass(frozen=True)
class PriorPairs:
    """For DreamBooth: each item is an image of the subject and one of its kind, whose error weighs `prior` as much.

    A batch of B pairs has 2B rows, subject and kind by turns: BatchRandom.stratified gives out noise levels in the
    order of the rows, so one kind after the other would give all the low levels to the subject.
    """

    subject: CaptionedLatents
    kind: CaptionedLatents
    prior: float

    def __len__(self) -> int:
        return len(self.subject) * len(self.kind)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        subject, kind = self.subject.batch(indices % len(self.subject)), self.kind.batch(indices // len(self.subject))
        weight = torch.tensor([1.0, self.prior]).repeat(len(indices))
        return {name: torch.stack([subject[name], kind[name]], 1).flatten(0, 1) for name in subject} | {
            "weight": weight
        }


def encode(
    pipe: StableDiffusionPipeline, images: Images, captions: Sequence[str], quiet: bool = False, **extra: Tensor
) -> CaptionedLatents:
    """Encode each image with the pipeline's autoencoder and each caption with its text encoder."""
    distinct = sorted({"", *captions})
    text = encode_texts(pipe, distinct)
    mean, std = encode_images(pipe, images.pixels, quiet)
    place = {caption: i for i, caption in enumerate(distinct)}
    return CaptionedLatents(
        mean, std, text, torch.tensor([place[caption] for caption in captions]), text[place[""]], extra
    )


@torch.no_grad()
def encode_images(pipe: StableDiffusionPipeline, pixels: Tensor, quiet: bool = False) -> tuple[Tensor, Tensor]:
    """(N, 3, H, W) uint8 -> mean and standard deviation of their latents, (N, C, h, w) float32 on the CPU.

    In float32 and not in mixed precision: encoders are known to overflow in half precision, and a latent that is NaN
    once would be NaN in every epoch.
    """
    vae, means, stds = pipe.vae, [], []
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    for part in with_progress("encoding", pixels.split(BATCH), unit="batch", quiet=quiet):
        z = vae.encode(to_float(part).to(vae.device)).latent_dist
        means.append(((z.mean - shift) * vae.config.scaling_factor).cpu())
        stds.append((z.std * vae.config.scaling_factor).cpu())
    mean, std = torch.cat(means), torch.cat(stds)
    broken = (~(mean + std).isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if broken:
        raise UserError(
            f"the autoencoder encodes image {broken[0]} to NaN or infinity ({len(broken)} such images); remove these images from the data"
        )
    return mean, std


@torch.no_grad()
def encode_texts(pipe: StableDiffusionPipeline, captions: Sequence[str]) -> Tensor:
    """(K, M, D) float32 on the CPU, just as the pipeline encodes a prompt."""
    parts = [list(captions[i : i + BATCH]) for i in range(0, len(captions), BATCH)]
    return torch.cat([pipe.encode_prompt(part, pipe.device, 1, False)[0].float().cpu() for part in parts])


def count_truncated(pipe: StableDiffusionPipeline, captions: Sequence[str]) -> int:
    """The number of captions that are longer than the model reads."""
    longest = pipe.tokenizer.model_max_length
    return sum(len(ids) > longest for ids in pipe.tokenizer(list(captions)).input_ids)


def load_captioned(args: CaptionedFlags, size: int, split: str = "train", n: int | None = None) -> Images:
    """The data that the flags ask for, in colour and with captions."""
    images = load(args.data, size, args.data_dir, split, args.language, n, channels=3, captions=True)
    return replace(images, captions=images.need_captions(args.language))
