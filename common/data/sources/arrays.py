"""Sets in arrays: .npz files, as Keras and MedMNIST have them, and tables of pixels,
as Kaggle's copies of MNIST. Never unpickled.
"""

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from common.data.dataset import Images, in_split
from common.data.sources.listing import Listing, Tally, choose_split, split_in, suffix_of
from common.errors import UserError, explain
from common.io.memory import free_memory, gib

LABEL_NAMES = re.compile(r"(^|_)(y|labels?|targets?|classes)($|_)", re.IGNORECASE)
LEAST_COLUMNS = 16  # of a table of pixels: images of 4 x 4


class Part(NamedTuple):
    """One split of a set."""

    images: np.ndarray  # (N, H, W), (N, H, W, C) or (N, C, H, W)
    labels: np.ndarray | None  # (N,)


def load_arrays(
    listing: Listing, file: str, name: str, split: str, size: int | None, channels: int | None = None
) -> Images:
    """The set in an .npz file, or in tables of pixels: `file` and those like it, one for each split."""
    tally = Tally()
    if suffix_of(file) == ".npz":
        used, parts = [file], read_npz(listing.folder / file)
    else:
        used = [other for other in listing.with_suffix(".csv") if is_pixel_table(listing.folder / other)]
        parts = {}
        for table in used:
            named = split_in(table) or "train"
            if named in parts:
                raise UserError(
                    f"{listing.folder} holds two tables of pixels for the split {named}; keep one of {', '.join(used)}"
                )
            parts[named] = read_pixel_table(listing.folder / table)
    tally.left_out += listing.holds(used)
    if set(listing.files) - set(used):
        tally.note(f"the set is read from {', '.join(used)}")
    chosen = choose_split(str(listing.folder / file), parts, split)
    part = parts[chosen] if chosen else next(iter(parts.values()))
    pixels = to_pixels(part.images, str(listing.folder / file))
    keep = torch.tensor([i for i in range(len(pixels)) if chosen or in_split(i, len(pixels), split)])
    if len(keep) < len(pixels):
        tally.note(f"of its {len(pixels):,} every tenth belongs to the test split")
    labels, classes = labels_of(part, parts)
    tally.tell(name, len(keep), split)
    images = Images(name, pixels[keep], labels if labels is None else labels[keep], classes).resized(size)
    return images if channels is None else images.in_channels(channels)


def labels_of(part: Part, parts: Mapping[str, Part]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels 0, 1, ... and the names of the classes, those of all splits."""
    if part.labels is None:
        return None, ()
    values = np.unique(np.concatenate([some.labels.astype(str) for some in parts.values() if some.labels is not None]))
    order = sorted(values.tolist(), key=lambda value: (len(value), value))
    number = {value: i for i, value in enumerate(order)}
    return torch.tensor([number[value] for value in part.labels.astype(str).tolist()]), tuple(order)


def to_pixels(images: np.ndarray, where: str) -> Tensor:
    """(N, C, S, S) uint8 from bytes, bits, 16-bit numbers or floats in a known range;
    the middle square of each image.
    """
    if images.ndim == 2:  # a row for each image
        n = images.shape[1]
        side = math.isqrt(n)
        colour = side * side != n
        if pixels_among(n) != n:
            raise UserError(
                f"{where} holds rows of {n} values, which are no square image; save images of (N, H, W) or (N, H, W, 3)"
            )
        images = images.reshape(len(images), 3, math.isqrt(n // 3), -1) if colour else images.reshape(-1, side, side)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] not in (1, 3) and images.shape[3] in (1, 3, 4):
        images = images.transpose(0, 3, 1, 2)[:, :3]
    if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape) < 1:
        raise UserError(
            f"{where} holds arrays of the shape {images.shape}; expected (N, H, W), (N, H, W, 3) or (N, 3, H, W)"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(in_bytes(images, where)))
    height, width = pixels.shape[2:]
    return pixels if height == width else tv.center_crop(pixels, [min(height, width)] * 2)


def in_bytes(images: np.ndarray, where: str) -> np.ndarray:
    """0 to 255, whichever numbers the values are."""
    if images.dtype == np.uint8:
        return images
    if images.dtype == bool:
        return images.astype(np.uint8) * 255
    if images.dtype.kind not in "iuf" or not np.isfinite(images).all():
        raise UserError(
            f"{where} holds {images.dtype} values{' that are not all finite' if images.dtype.kind == 'f' else ''}; save bytes from 0 to 255"
        )
    low, high = float(images.min()), float(images.max())
    whole = images.dtype.kind in "iu" or bool((images == np.rint(images)).all())
    if images.dtype == np.uint16 and high > 255:
        return np.rint(images / 257).astype(np.uint8)
    if low >= 0 and high <= 255 and whole and (high > 1 or images.dtype.kind in "iu"):
        return images.astype(np.uint8)
    if images.dtype.kind == "f" and low >= -1 and high <= 1:
        return np.rint((images if low >= 0 else (images + 1) / 2) * 255).astype(np.uint8)
    raise UserError(
        f"the values in {where} run from {low:.4g} to {high:.4g}; expected bytes from 0 to 255, or floats in [0, 1] or [-1, 1]"
    )


# ---------------------------------------------------------------------------------------------------------------- .npz


def read_npz(path: Path) -> dict[str, Part]:
    """{"train": Part, "test": Part}: arrays of images, and of as many labels.
    Their names say which split they belong to.
    """
    arrays = open_npz(path)
    is_set = lambda array: array.ndim in (3, 4) or (array.ndim == 2 and array.shape[1] >= LEAST_COLUMNS)  # noqa: E731
    images = {name: array for name, array in arrays.items() if is_set(array) and not LABEL_NAMES.search(name)}
    if not images:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise UserError(f"{path} holds no array of images (N, H, W), (N, H, W, 3) or (N, 3, H, W); it holds {shapes}")
    parts = {}
    for name, array in images.items():
        split = split_in(name) or "train"
        if split in parts:
            raise UserError(
                f"{path} holds several arrays of images for the split {split}: {', '.join(images)}; keep one"
            )
        rest = [other for key, other in arrays.items() if key not in images and (split_in(key) or "train") == split]
        labels = [other for other in rest if other.size == len(array)]
        parts[split] = Part(array, labels[0].reshape(-1) if len(labels) == 1 else None)
    return parts


def open_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz, without unpickling any.
    One that does not fit into the free memory is refused before it is unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > (free := free_memory()):
            raise UserError(f"{path} unpacks to {gib(size)}, and {gib(free)} of memory are free")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except UserError:
        raise
    except Exception as problem:  # zipfile, zlib and numpy each raise their own
        raise UserError(
            f"{path} cannot be read as arrays ({explain(problem)}); save it with numpy.savez, without objects"
        ) from problem


# ---------------------------------------------------------------------------------------------------- tables of pixels


def is_pixel_table(path: Path) -> bool:
    """Whether the second line of a .csv is numbers alone, as many as a square image has, with a label or without."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            header, line = file.readline(2**20), file.readline(2**20)
        cells = [float(cell) for cell in (line or header).split(",")]
    except (OSError, ValueError):
        return False
    return pixels_among(len(cells)) is not None


def pixels_among(columns: int) -> int | None:
    """How many of so many columns are pixels: all, or all but the label;
    None where that makes no square image, grey or RGB.
    """
    square = lambda n: math.isqrt(n) ** 2 == n  # noqa: E731
    return next(
        (n for n in (columns, columns - 1) if n >= LEAST_COLUMNS and (square(n) or (n % 3 == 0 and square(n // 3)))),
        None,
    )


def read_pixel_table(path: Path) -> Part:
    """A row for each image: its label, then its pixels; or pixels alone.
    The column `label` may also be the last one.
    """
    with open(path, encoding="utf-8-sig") as file:
        header = [cell.strip().strip('"').lower() for cell in file.readline().split(",")]
    named = not all(re.fullmatch(r"[-+.\de]+", cell) for cell in header)
    try:
        table = np.loadtxt(path, np.float32, delimiter=",", skiprows=int(named), ndmin=2, encoding="utf-8-sig")
    except ValueError as problem:
        raise UserError(
            f"{path} cannot be read as a table of pixels ({explain(problem)}); every row needs a label and as many numbers"
        ) from problem
    n = pixels_among(table.shape[1])
    if n is None or not len(table):
        raise UserError(
            f"{path} has {len(table)} rows of {table.shape[1]} numbers, which are no label and square image"
        )
    if n == table.shape[1]:
        return Part(table, None)
    at = next((i for i, cell in enumerate(header) if cell in ("label", "labels", "class", "y", "target")), 0)
    return Part(np.delete(table, at, 1), table[:, at].astype(np.int64))
