"""Several views of every picture to train on: its mirror image, crops of it, or the whole of it in its own shape.

Latents are computed once before a training, so random changes are drawn once as well: each view is encoded, and a
training meets all of them in random order.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from common.data import Images
from common.data.sources.decoding import open_rgb
from common.errors import UserError
from common.io.pixels import to_bytes
from common.random import AUGMENTATION, generator
from finetune_diffusers.images import to_tensor

LONGEST = 2.0  # sides of a bucket: beyond this ratio a picture is cropped


def mirrored(images: Images) -> Images:
    """The images, and behind them their mirror images with the same captions."""
    captions = None if images.captions is None else images.captions * 2
    pixels = torch.cat([images.pixels, images.pixels.flip(-1)])
    return Images(images.name, pixels, captions=captions)


def captions_of(images: Images) -> tuple[str, ...]:
    """The captions that the flags have chosen; load_captioned sees to it that there are any."""
    assert images.captions is not None
    return images.captions


def originals(images: Images, folder: str) -> list[Path]:
    """The files that the images of a folder come from."""
    names = images.texts.items if images.texts is not None else ()
    if not Path(folder).is_dir() or not names:
        raise UserError(
            f"--crops and --buckets read the pictures' own files, and {folder} is no folder of pictures; leave them out"
        )
    return [Path(folder, name) for name in names]


def crops(images: Images, folder: str, number: int, seed: int) -> Images:
    """`number` square crops of every picture at random places, each with the picture's caption.

    Of a picture in landscape format they lie side by side, with its full height; of a square one all are the same.
    """
    found = []
    for i, path in enumerate(originals(images, folder)):
        draw = generator(AUGMENTATION, seed, i)
        picture = open_rgb(path)
        side = min(picture.size)
        for share in torch.rand(number, generator=draw).tolist():
            left, top = (round(share * (length - side)) for length in picture.size)
            square = picture.crop((left, top, left + side, top + side))
            found.append(to_bytes(to_tensor(square.resize((images.size,) * 2, Image.Resampling.BICUBIC))))
    repeated = tuple(caption for caption in captions_of(images) for _ in range(number))
    return Images(images.name, torch.stack(found), captions=repeated)


def bucket(width: int, height: int, side: int, step: int) -> tuple[int, int]:
    """The (width, height) at which a picture is trained on: its aspect ratio, about side x side pixels, sides that are
    multiples of `step`.
    """
    ratio = min(max(width / height, 1 / LONGEST), LONGEST)
    w = max(step, step * round(side * math.sqrt(ratio) / step))
    h = max(step, step * round(side / math.sqrt(ratio) / step))
    return w, h


def buckets(images: Images, folder: str, step: int) -> list[Images]:
    """The pictures in their own shape, one set for each size. step: sides are its multiples"""
    captions, found = captions_of(images), defaultdict[tuple[int, int], list[tuple[Tensor, str]]](list)
    for path, caption in zip(originals(images, folder), captions, strict=True):
        picture = open_rgb(path)
        size = bucket(*picture.size, images.size, step)
        fitted = ImageOps.fit(picture, size, Image.Resampling.BICUBIC)
        found[size].append((to_bytes(to_tensor(fitted)), caption))
    return [
        Images(
            images.name, torch.stack([pixels for pixels, _ in some]), captions=tuple(caption for _, caption in some)
        )
        for _, some in sorted(found.items())
    ]


def shapes(sets: Sequence[Images]) -> str:
    """'24 of 512x512, 9 of 640x448' (width x height)"""
    return ", ".join(f"{len(some)} of {some.pixels.shape[3]}x{some.pixels.shape[2]}" for some in sets)


def views(
    images: Images, folder: str, number_of_crops: int, in_buckets: bool, flip: bool, step: int, seed: int
) -> list[Images]:
    """The pictures to train on, a set for each size. The flags crops, buckets and random_flip say which."""
    if number_of_crops and in_buckets:
        raise UserError("--crops takes squares of the pictures and --buckets whole pictures; give one of them")
    sets = (
        buckets(images, folder, step)
        if in_buckets
        else [crops(images, folder, number_of_crops, seed) if number_of_crops else images]
    )
    return [mirrored(some) for some in sets] if flip else sets
