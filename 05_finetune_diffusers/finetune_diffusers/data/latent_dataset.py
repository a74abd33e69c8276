"""Captioned images as latents and text embeddings, computed once before the training, because the networks that
compute them are frozen.

    data = encode(pipe, images, captions)
    data.batch(indices)  -> {"mean": (B, C, h, w), "std": (B, C, h, w), "text": (B, M, D)}

Stable Diffusion XL has two more conditions, "pooled": (B, P) and "time_ids": (B, 6). Where the text encoders are
trained, batches hold "ids": (B, encoders, M), the captions' tokens, in place of "text" and "pooled".

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
from common.random import ORDER, generator
from finetune_diffusers.images import images_at_once
from finetune_diffusers.models import is_xl
from finetune_diffusers.training.flags import CaptionedFlags

BATCH = 16  # captions at a time


@dataclass(frozen=True)
class CaptionedLatents:
    """N images with their captions.

    mean, std  (N, C, h, w) of the latents, scaled as the U-Net expects them
    texts      columns of the K different captions, (K, ...) each: {"text": (K, M, D) embeddings}
    caption    (N,) index of each image's caption among them
    empty      the same columns of the empty caption, without the first dimension: {"text": (M, D)}
    extra      more columns, (N, ...) each, that every batch has as well
    """

    mean: Tensor
    std: Tensor
    texts: dict[str, Tensor]
    caption: Tensor
    empty: dict[str, Tensor]
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.mean)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        texts = {name: column[self.caption[indices]] for name, column in self.texts.items()}
        extra = {name: column[indices] for name, column in self.extra.items()}
        return {"mean": self.mean[indices], "std": self.std[indices]} | texts | extra


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


@dataclass(frozen=True)
class Bucketed:
    """Images of several sizes: a set for each, and every batch comes from one of them.

    An epoch goes through all batches of all sets in random order; a set's last batch is filled up from its beginning.
    """

    sets: Sequence[CaptionedLatents]

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def indices(self, size: int, k: int, seed: int) -> Tensor:
        """Places of the images of batch k, all in one set. (size,)"""
        batches = [(s, b) for s, some in enumerate(self.sets) for b in range(-(-len(some) // size))]
        epoch, number = divmod(k, len(batches))
        order = torch.randperm(len(batches), generator=generator(ORDER, seed, epoch))
        s, b = batches[order[number]]
        n, first = len(self.sets[s]), sum(map(len, self.sets[:s]))
        shuffled = torch.randperm(n, generator=generator(ORDER, seed, epoch, s))
        return first + shuffled[torch.arange(b * size, (b + 1) * size) % n]

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        first = 0
        for some in self.sets:
            if indices[0] < first + len(some):
                return some.batch(indices - first)
            first += len(some)
        raise IndexError(f"{int(indices[0])} of {first} images")


def encode(
    pipe: StableDiffusionPipeline,
    images: Images,
    captions: Sequence[str],
    quiet: bool = False,
    as_tokens: bool = False,  # keep the captions as tokens, for text encoders that are trained
    **extra: Tensor,  # more columns, (N, ...) each
) -> CaptionedLatents:
    """Encode each image with the pipeline's autoencoder and each caption with its text encoders."""
    distinct = sorted({"", *captions})
    texts = {"ids": token_ids(pipe, distinct)} if as_tokens else encode_texts(pipe, distinct)
    mean, std = encode_images(pipe, images.pixels, quiet)
    place = {caption: i for i, caption in enumerate(distinct)}
    empty = {name: column[place[""]] for name, column in texts.items()}
    if zeros_for_empty(pipe) and not as_tokens:
        empty = {name: torch.zeros_like(column) for name, column in empty.items()}
    if is_xl(pipe):  # the size before and after cropping, and where the crop begins, as the pipeline has them
        height, width = images.pixels.shape[2:]
        size = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
        extra = {"time_ids": size.expand(len(images), -1)} | extra
    return CaptionedLatents(mean, std, texts, torch.tensor([place[caption] for caption in captions]), empty, extra)


@torch.no_grad()
def encode_images(pipe: StableDiffusionPipeline, pixels: Tensor, quiet: bool = False) -> tuple[Tensor, Tensor]:
    """(N, 3, H, W) uint8 -> mean and standard deviation of their latents, (N, C, h, w) float32 on the CPU.

    In float32 and not in mixed precision: encoders are known to overflow in half precision, and a latent that is NaN
    once would be NaN in every epoch.
    """
    vae, means, stds = pipe.vae, [], []
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    few = images_at_once(pixels.shape[-2] * pixels.shape[-1])
    for part in with_progress("encoding", pixels.split(few), unit="batch", quiet=quiet):
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
def encode_texts(pipe: StableDiffusionPipeline, captions: Sequence[str]) -> dict[str, Tensor]:
    """{"text": (K, M, D)} and of XL "pooled": (K, P), float32 on the CPU, just as the pipeline encodes a prompt."""
    found: dict[str, list[Tensor]] = {}
    for i in range(0, len(captions), BATCH):
        prompt = list(captions[i : i + BATCH])
        text, _, *pooled = pipe.encode_prompt(
            prompt, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        found.setdefault("text", []).append(text)
        if pooled:  # and that of the negative prompt
            found.setdefault("pooled", []).append(pooled[0])
    return {name: torch.cat(parts).float().cpu() for name, parts in found.items()}


def token_ids(pipe: StableDiffusionPipeline, captions: Sequence[str]) -> Tensor:
    """Each caption as every text encoder reads it, padded or cut to its length. (K, encoders, M) int64"""
    found = [
        tokenizer(
            list(captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        for tokenizer in (pipe.tokenizer, getattr(pipe, "tokenizer_2", None))
        if tokenizer is not None
    ]
    return torch.stack(found, 1)


def zeros_for_empty(pipe: StableDiffusionPipeline) -> bool:
    """Whether the pipeline takes zeros for a missing negative prompt, as most of XL do,
    in place of the embedding of "".
    """
    return bool(pipe.config.get("force_zeros_for_empty_prompt"))


def count_truncated(pipe: StableDiffusionPipeline, captions: Sequence[str]) -> int:
    """The number of captions that are longer than the model reads."""
    longest = pipe.tokenizer.model_max_length
    return sum(len(ids) > longest for ids in pipe.tokenizer(list(captions)).input_ids)


def load_captioned(args: CaptionedFlags, size: int, split: str = "train", n: int | None = None) -> Images:
    """The data that the flags ask for, in colour and with captions."""
    images = load(args.data, size, args.data_dir, split, args.language, n, channels=3, captions=True)
    return replace(images, captions=images.need_captions(args.language))
