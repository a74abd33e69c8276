"""One data set, or several joined into one."""

from collections import deque
from collections.abc import Iterable, Sequence
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
    return joined(load(name, size, data_dir, n=n, channels=channels) for name in names)


def some_of(
    names: Sequence[str], size: int | None, data_dir: Path, split: str, n: int, channels: int | None = None
) -> Images:
    """At most n images of each set: fewer where it has no more."""
    sets = (load(name, size, data_dir, split, n=n if name in DRAWN else None, channels=channels) for name in names)
    return joined(images.first(min(n, len(images))) for images in sets)


def joined(sets: Iterable[Images]) -> Images:
    """Several sets as one: the pixels, and the captions if all have them. Grey and colour together are colour.
    A single set is returned unchanged.

    Sets that only the iterable holds, such as a generator's, are released one by one as they are copied, so that the
    peak of the memory is all images and one set, not twice all images.
    """
    parts = deque(sets)
    if not parts:
        raise UserError("--data needs at least one data set or folder, for instance --data creatures dishes")
    if len(parts) == 1:
        return parts[0]
    sizes = {images.size: images.name for images in parts}
    if len(sizes) > 1:
        described = ", ".join(f"{name} has {s}x{s} pixels" for s, name in sizes.items())
        raise UserError(f"these sets cannot be trained on together: {described}; give one --size")
    captions = (
        tuple(text for images in parts for text in images.captions)
        if all(images.captions for images in parts)
        else None
    )
    names, channels = "+".join(images.name for images in parts), max(images.channels for images in parts)
    pixels = torch.empty(sum(map(len, parts)), channels, *parts[0].pixels.shape[2:], dtype=torch.uint8)
    first = 0
    while parts:
        images = parts.popleft().in_channels(channels)
        pixels[first : first + len(images)] = images.pixels
        first += len(images)
    return Images(names, pixels, captions=captions)
