"""Opens pictures of every mode, bit depth and palette as RGB or grey, with 8 bits per value."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from common.data.sources.listing import Tally, formats
from common.errors import UserError, explain, is_memory, listed
from common.io.progress import with_progress

BAD_SHARE = 0.1  # more unreadable images than this stop the run

File = Path | str | BinaryIO


class UnreadableImage(ValueError):
    """Why a file is no picture that can be opened."""


@contextmanager
def opened(file: File) -> Iterator[Image.Image]:
    """The picture in a file, not yet decoded.
    Every error within this context, also while decoding, becomes UnreadableImage.
    """
    try:
        with warnings.catch_warnings():
            # twice as many pixels are refused; these are photographs
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=formats()) as image:
                yield image
    # decoders raise OSError, ValueError, SyntaxError, struct.error, DecompressionBombError and more
    except Exception as problem:
        if is_memory(problem):
            raise
        raise UnreadableImage(explain(problem)) from problem


def open_rgb(path: Path) -> Image.Image:
    """A picture file as RGB: turned as the camera noted, transparency on white.
    A UserError says why it cannot be opened.
    """
    if not os.path.exists(path):
        raise UserError(f"there is no file {path}")
    try:
        with opened(path) as picture:
            return as_rgb(picture)
    except UnreadableImage as problem:
        raise UserError(f"{path} cannot be read as a picture ({problem})") from problem


def as_rgb(image: Image.Image) -> Image.Image:
    """Red, green and blue, 8 bits each.
    The rotation noted by a camera is applied, and transparency is put on white.
    """
    return flattened(image).convert("RGB")


def flattened(image: Image.Image) -> Image.Image:
    """The picture in the mode "L" if all of it is grey, else in "RGB";
    turned as the camera noted, transparency on white.
    """
    grey = is_grey(image)
    image = in_bytes(ImageOps.exif_transpose(image), image.format)
    if has_alpha(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def in_bytes(image: Image.Image, file_format: str | None) -> Image.Image:
    """16 bits a value as 8, which Pillow would cut off at 255.
    Other wide numbers are refused, because no file says which of them is white.
    """
    # to whose 65,535 Pillow scales a .pgm
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PPM")
    if image.mode in ("I", "F") and not sixteen:
        raise ValueError("its pixels are 32-bit numbers without a stated range; save it with 8 or 16 bits")
    return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)) if sixteen else image


def has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def is_grey(image: Image.Image) -> bool:
    """Whether the file holds shades of grey only. Looks at its header, not at its pixels."""
    if image.mode == "P":
        palette = np.array(image.getpalette() or [0, 0, 255]).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")


def decode_all(
    paths: Sequence[Path | str],
    size: int,
    open_file: Callable[[int], File] | None = None,
    channels: int | None = None,
    others: Iterable[Callable[[], File]] = (),
    tally: Tally | None = None,
) -> tuple[Tensor, list[int]]:
    """Read every image; unreadable ones are left out and counted. Returns pixels (N, C, size, size) and their indices.

    open_file  gives the i-th, where the images lie in no files of their own; paths are then what to call them
    channels   1 or 3; None is 1 where all pictures are grey, those of `others` too, else 3
    others     further pictures of the set, such as those of its other split; opened only where they decide about the
               channels
    tally      counts and names those that cannot be read
    """
    if size < 4:
        raise UserError(f"--size must be at least 4 pixels, not {size}")
    pixels, grey = np.empty((len(paths), 3, size, size), np.uint8), True
    kept: list[int] = []
    bad: list[str] = []
    for i, path in enumerate(with_progress("reading images", paths, unit="image")):
        try:
            with opened(open_file(i) if open_file else path) as image:
                image = flattened(image).convert("L") if channels == 1 else flattened(image)
                array = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
                pixels[len(kept)] = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
                grey &= array.ndim == 2
            kept.append(i)
        except UnreadableImage as problem:
            bad.append(f"{path} ({problem})")
    if len(bad) > BAD_SHARE * len(paths):
        raise UserError(f"{len(bad)} of {len(paths)} images cannot be read, the first is {bad[0]}")
    if bad and tally:
        tally.left_out["that cannot be read"] += len(bad)
        tally.note(f"unreadable: {listed(bad, 5, '; ')}")
    one = channels == 1 or (channels is None and grey and all(grey_file(open_other) for open_other in others))
    used = pixels[: len(kept)]
    return torch.from_numpy(used[:, :1].copy() if one else used), kept


def grey_file(open_other: Callable[[], File]) -> bool:
    """Whether a file holds a grey picture; one that cannot be opened does not count as colour."""
    try:
        with opened(open_other()) as image:
            return is_grey(image)
    except UnreadableImage:
        return True
