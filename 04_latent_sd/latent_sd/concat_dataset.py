"""One data set, or several joined into one."""

from collections.abc import Sequence
from pathlib import Path

import torch

from common.data import Images, load
from common.data.registry import DRAWN
from common.errors import UserError


def load_all(
    names: Sequence[str], size: int | None, data_dir: Path, n: int | None = None, channels: int | None = None
) -> Images:
    """The training splits of all sets, one after the other. n: only the first n images of each.
    channels: 3 in colour, 1 grey, or those of the sets
    """
    return joined([load(name, size, data_dir, n=n, channels=channels) for name in names])


def some_of(
    names: Sequence[str], size: int | None, data_dir: Path, split: str, n: int, channels: int | None = None
) -> Images:
    """At most n images of each set: fewer where it has no more."""
    sets = [load(name, size, data_dir, split, n=n if name in DRAWN else None, channels=channels) for name in names]
    return joined([images.first(min(n, len(images))) for images in sets])


def joined(sets: Sequence[Images]) -> Images:
    """Several sets as one: the pixels, and the captions if all have them. Grey and colour together are colour.
    A single set is returned unchanged.
    """
    if not sets:
        raise UserError("--data needs at least one data set or folder, for instance --data creatures dishes")
    if len(sets) == 1:
        return sets[0]
    sizes = {images.size: images.name for images in sets}
    if len(sizes) > 1:
        described = ", ".join(f"{name} has {s}x{s} pixels" for s, name in sizes.items())
        raise UserError(f"these sets cannot be trained on together: {described}; give one --size")
    sets = [images.in_channels(max(images.channels for images in sets)) for images in sets]
    captions = (
        tuple(text for images in sets for text in images.captions) if all(images.captions for images in sets) else None
    )
    return Images(
        "+".join(images.name for images in sets), torch.cat([images.pixels for images in sets]), captions=captions
    )
