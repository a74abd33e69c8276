"""Any folder of images: class subfolders, a metadata.jsonl/.csv (Hugging Face imagefolder), .txt captions, or nothing."""

import csv
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from common.data.images import Images, explain, first_existing, in_split
from common.data.texts import COLUMNS, Texts, read_texts
from common.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
BAD_SHARE = 0.1  # more unreadable images than this stop the run


def load_folder(folder: Path, size: int, split: str = "train") -> Images:
    """All images below a folder, centre-cropped to a square and resized to size x size, RGB.

    The test split is every tenth image in the order of the file names, unless the metadata has a column `split`.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"there is no image in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    names, rows = [path.relative_to(folder).as_posix() for path in paths], read_metadata(folder)
    chosen = _of_split(folder, names, rows, split)
    pixels, kept = decode_all([folder / name for name in chosen], size)
    kept_names = [chosen[i] for i in kept]
    labels, classes = _labels(folder, kept_names, rows)
    texts = read_texts([_row(folder, name, rows) for name in kept_names])
    words = Texts(f"the folder {folder}", texts, tuple(kept_names), _mismatch(folder, names, rows))
    return Images(folder.name, pixels, labels, classes, texts=words).in_language(None)


def decode_all(
    paths: Sequence[Path | str], size: int, open_file: Callable[[int], Path | BinaryIO] | None = None
) -> tuple[Tensor, list[int]]:
    """Read every image; unreadable ones are named and left out. Returns pixels (N, 3, size, size) and their indices.

    Where the images lie in no files of their own, open_file(i) gives the i-th and paths are what to call them.
    """
    if size < 4:
        raise UserError(f"--size must be at least 4 pixels, not {size}")
    pixels, kept, bad = np.empty((len(paths), 3, size, size), np.uint8), [], []
    for i, path in enumerate(tqdm(paths, "reading images", disable=len(paths) < 1000, leave=False)):
        try:
            pixels[len(kept)] = _decode(open_file(i) if open_file else path, size)
            kept.append(i)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as problem:
            bad.append(f"{path} ({explain(problem)})")
    if len(bad) > BAD_SHARE * len(paths):
        raise UserError(f"{len(bad)} of {len(paths)} images cannot be read, the first is {bad[0]}")
    if bad:
        warnings.warn(f"skipped {len(bad)} of {len(paths)} images that cannot be read: {'; '.join(bad[:5])}", stacklevel=2)
    return torch.from_numpy(pixels[: len(kept)]), kept


def _decode(file: Path | BinaryIO, size: int) -> np.ndarray:
    """(3, size, size) uint8"""
    with Image.open(file) as image:
        image = ImageOps.fit(as_rgb(image), (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def as_rgb(image: Image.Image) -> Image.Image:
    """Red, green and blue, 8 bits each. The rotation noted by a camera is applied, and transparency is put on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers, of which nobody says what is white; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # Pillow would cut it off at 255
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def metadata_file(folder: Path) -> Path | None:
    return first_existing(folder / "metadata.jsonl", folder / "metadata.csv")


def read_metadata(folder: Path) -> dict[str, dict]:
    """{file name: row} of metadata.jsonl or metadata.csv; empty where there is neither."""
    path = metadata_file(folder)
    if path is None:
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # -sig: Windows editors begin a file with a mark
            rows = [json.loads(line) for line in file if line.strip()] if path.suffix == ".jsonl" else list(csv.DictReader(file))
        return {PurePosixPath(row["file_name"]).as_posix(): row for row in rows}
    except (ValueError, KeyError, TypeError, csv.Error) as problem:
        raise UserError(f"{path} cannot be read ({type(problem).__name__}: {explain(problem)}); every row needs a file_name") from problem


def _of_split(folder: Path, names: list[str], rows: dict[str, dict], split: str) -> list[str]:
    """By the column `split` where every image has one, else every tenth is for testing."""
    given = [rows.get(name, {}).get("split") for name in names]
    if not all(given):
        return [name for i, name in enumerate(names) if in_split(i, len(names), split)]
    chosen = [name for name, its in zip(names, given, strict=True) if its == split]
    if not chosen:
        raise UserError(f"{folder} has no split '{split}'; the column split of its metadata says {', '.join(sorted(set(map(str, given))))}")
    return chosen


def _labels(folder: Path, names: list[str], rows: dict[str, dict]) -> tuple[Tensor | None, tuple[str, ...]]:
    """From the column `label`, else from the first folder in the path, else none. classes.txt may name the classes 0, 1, ..."""
    given = [rows.get(name, {}).get("label") for name in names]
    if all(label is not None for label in given):
        classes = _text_of(folder / "classes.txt").splitlines()
        if classes and all(str(label).isdecimal() and int(label) < len(classes) for label in given):
            return torch.tensor([int(label) for label in given]), tuple(classes)
        keys = {str(label): str(rows[name].get("name", label)) for name, label in zip(names, given, strict=True)}
        order = sorted(keys, key=lambda key: (len(key), key))
        return torch.tensor([order.index(str(label)) for label in given]), tuple(keys[key] for key in order)
    parents = [name.split("/")[0] if "/" in name else "" for name in names]
    order = sorted(set(parents))
    return (torch.tensor([order.index(p) for p in parents]), tuple(order)) if len(order) > 1 else (None, ())


def _row(folder: Path, name: str, rows: dict[str, dict]) -> dict:
    """What the metadata says of an image; where it holds no caption, that of a .txt file beside the image."""
    row = rows.get(name, {})
    return row if any(row.get(column) for column in COLUMNS["en"]) else row | {"text": _text_of((folder / name).with_suffix(".txt"))}


def _mismatch(folder: Path, names: list[str], rows: dict[str, dict]) -> str:
    """Why the metadata and the images do not belong together, or ""."""
    there, path = set(names), metadata_file(folder)
    lost = [name for name in rows if name not in there]
    if lost:
        return f"{len(lost)} of {len(rows)} files that {path} names are no images there, the first is {lost[0]}; add them, or delete their rows"
    bare = [name for name in names if rows and name not in rows and not (folder / name).with_suffix(".txt").exists()]
    if bare:
        return f"{len(bare)} of {len(names)} images have no row in {path}, the first is {bare[0]}; add their rows, or take them out"
    return ""


def _text_of(path: Path) -> str:
    """What stands in a text file; "" where there is none."""
    try:
        return path.read_text(encoding="utf-8-sig").strip() if path.exists() else ""
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read as UTF-8 text ({explain(problem)})") from problem
