"""Any folder of images: class subfolders, a metadata.jsonl/.csv (Hugging Face imagefolder), .txt captions, or nothing."""

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from common.data.images import Images, explain
from common.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
BAD_SHARE = 0.1  # more unreadable images than this stop the run


def load_folder(folder: Path, size: int, split: str = "train") -> Images:
    """All images below a folder, centre-cropped to a square and resized to size x size, RGB.

    The test split is every tenth image in the order of the file names.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"there is no image in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    paths = [p for i, p in enumerate(paths) if len(paths) < 10 or (i % 10 == 9) == (split == "test")]
    pixels, kept = decode_all(paths, size)
    rows = read_metadata(folder)
    names = [paths[i].relative_to(folder).as_posix() for i in kept]
    labels, classes = _labels(names, rows)
    return Images(folder.name, pixels, labels, classes, _captions(folder, names, rows))


def decode_all(paths: list[Path], size: int) -> tuple[Tensor, list[int]]:
    """Read every image; unreadable ones are named and left out. Returns pixels (N, 3, size, size) and their indices."""
    if size < 4:
        raise UserError(f"--size must be at least 4 pixels, not {size}")
    pixels, kept, bad = np.empty((len(paths), 3, size, size), np.uint8), [], []
    for i, path in enumerate(tqdm(paths, "reading images", disable=len(paths) < 1000, leave=False)):
        try:
            pixels[len(kept)] = _decode(path, size)
            kept.append(i)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as problem:
            bad.append(f"{path} ({explain(problem)})")
    if len(bad) > BAD_SHARE * len(paths):
        raise UserError(f"{len(bad)} of {len(paths)} images cannot be read, the first is {bad[0]}")
    if bad:
        warnings.warn(f"skipped {len(bad)} of {len(paths)} images that cannot be read: {'; '.join(bad[:5])}", stacklevel=2)
    return torch.from_numpy(pixels[: len(kept)]), kept


def _decode(path: Path, size: int) -> np.ndarray:
    """(3, size, size) uint8. Transparency is put on white; the rotation noted by a camera is applied."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def read_metadata(folder: Path) -> dict[str, dict]:
    """{file name: row} of metadata.jsonl or metadata.csv; empty where there is neither."""
    path = next((p for p in (folder / "metadata.jsonl", folder / "metadata.csv") if p.exists()), None)
    if path is None:
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()] if path.suffix == ".jsonl" else list(csv.DictReader(file))
        return {row["file_name"]: row for row in rows}
    except (ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{path} cannot be read ({type(problem).__name__}: {explain(problem)}); every row needs a file_name") from problem


def _labels(names: list[str], rows: dict[str, dict]) -> tuple[Tensor | None, tuple[str, ...]]:
    """From the column `label`, else from the first folder in the path, else none."""
    given = [rows.get(name, {}).get("label") for name in names]
    if all(label is not None for label in given):
        keys = {str(label): str(rows[name].get("name", label)) for name, label in zip(names, given, strict=True)}
        order = sorted(keys, key=lambda key: (len(key), key))
        return torch.tensor([order.index(str(label)) for label in given]), tuple(keys[key] for key in order)
    parents = [name.split("/")[0] if "/" in name else "" for name in names]
    order = sorted(set(parents))
    return (torch.tensor([order.index(p) for p in parents]), tuple(order)) if len(order) > 1 else (None, ())


def _captions(folder: Path, names: list[str], rows: dict[str, dict]) -> tuple[str, ...] | None:
    """From the column `text` (or `caption`), else from .txt files beside the images, else none."""
    found = []
    for name in names:
        row = rows.get(name, {})
        found.append(row.get("text", row.get("caption")) or _text_beside((folder / name).with_suffix(".txt")))
    return tuple(found) if all(found) else None


def _text_beside(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() if path.exists() else None
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read as UTF-8 text ({explain(problem)})") from problem
