"""A set in one LMDB file: images as PNG, captions in every language, labels, attributes. Written by
common.data.export_lmdb.

header            JSON: format, and for each split its length and all that is said once
train/image/0     the PNG of the first image of the split "train"
train/row/0       JSON: {"label": 3, "attributes": [1, 0, 4], "en": "a caption", "zh": "...", "item": "0001.jpg"}, what
                  there is of it; "several": {"en": ["a caption", "another"]} where an image has more than one
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.data.captions import LANGUAGES, Texts
from common.data.dataset import Attributes, Images
from common.data.sources.listing import Tally
from common.errors import UserError, explain

FORMAT = "diffusion-course images, version 1"
MARK = bytes.fromhex("dec0efbe")  # of every LMDB file of a little-endian machine, at byte 16
MADE = "make it with: python -m common.data.export_lmdb DATA OUT.lmdb"


# ------------------------------------------------------------------------------------------------------------ writing


def write_lmdb(path: Path, splits: dict[str, Images]) -> None:
    """All splits into one file, whole or not at all: it gets its name when it is complete."""
    import lmdb

    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # of a run that was killed
        records = list(_records(splits))
        room = sum(2 * len(value) + 16_384 for _, value in records) + 2**20  # of the address space, not of the disk
        with (
            lmdb.open(str(temporary), map_size=room, subdir=False, lock=False) as file,
            file.begin(write=True) as transaction,
        ):
            for key, value in records:
                transaction.put(key.encode(), value)
        check_written(temporary, path, splits)
        os.replace(temporary, path)
    except (OSError, lmdb.Error) as problem:
        reason = getattr(problem, "strerror", None) or explain(problem)
        raise UserError(f"cannot write {path} ({reason}); what was there before is untouched") from problem
    finally:
        with suppress(OSError):  # nothing to remove, or no folder it could be in
            temporary.unlink()


def check_written(file: Path, path: Path, splits: dict[str, Images]) -> None:
    """Read back the header and the last record of every split,
    because some network disks lose writes without an error.
    """
    try:
        with _opened(file) as get:
            lengths = {split: said["n"] for split, said in _header(file, get("header"))["splits"].items()}
            last = [get(f"{split}/{kind}/{n - 1}") for split, n in lengths.items() for kind in ("image", "row") if n]
    except UserError as problem:
        raise UserError(
            f"cannot write {path}: what was written cannot be read back ({problem}); choose a folder on another disk"
        ) from problem
    if lengths != {split: len(images) for split, images in splits.items()} or not all(last):
        raise UserError(
            f"cannot write {path}: records are missing in what was written; choose a folder on another disk"
        )


def _records(splits: dict[str, Images]) -> Iterator[tuple[str, bytes]]:
    header = {"format": FORMAT, "splits": {split: _said_once(images) for split, images in splits.items()}}
    yield "header", _json(header)
    for split, images in splits.items():
        for i in range(len(images)):
            yield f"{split}/image/{i}", to_png(images.pixels[i])
            yield f"{split}/row/{i}", _json(_row(images, i))


def _said_once(images: Images) -> dict:
    said = {"name": images.name, "n": len(images), "shape": list(images.pixels.shape[1:]), "classes": images.classes}
    if images.attributes:
        said |= {"attributes": {"names": images.attributes.names, "values": images.attributes.values}}
    if images.texts:
        kept = asdict(replace(images.texts, by={}, items=(), several={}))
        kept |= {"by": list(images.texts.by), "items": bool(images.texts.items), "several": list(images.texts.several)}
        said |= {"texts": kept}
    return said


def _row(images: Images, i: int) -> dict:
    row: dict[str, object] = {}
    if images.labels is not None:
        row["label"] = int(images.labels[i])
    if images.attributes:
        row["attributes"] = images.attributes.table[i].tolist()
    if images.texts:
        row |= {language: texts[i] for language, texts in images.texts.by.items()}
        row |= {"item": images.texts.items[i]} if images.texts.items else {}
        several = {language: texts[i] for language, texts in images.texts.several.items()}
        row |= {"several": several} if several else {}
    return row


def to_png(pixels: torch.Tensor) -> bytes:
    """(1 or 3, H, W) uint8 -> PNG, from which the same bytes come back."""
    file = BytesIO()
    array = pixels.numpy().transpose(1, 2, 0)
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(file, "PNG")
    return file.getvalue()


def _json(value: object) -> bytes:
    # names of files may hold bytes that are no text
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


# ------------------------------------------------------------------------------------------------------------ reading


def read_lmdb(path: Path, split: str = "train") -> Images:
    """One split of a file that write_lmdb wrote, bit for bit what was written."""
    if not path.is_file():
        raise UserError(
            f"{path} is {'a folder' if path.is_dir() else 'missing'}; an LMDB of images is one file, {MADE}"
        )
    with _opened(path) as get:
        header = _header(path, get("header"))
        if split not in header["splits"]:
            raise UserError(f"{path} has no split '{split}'; it holds {', '.join(header['splits'])}")
        said = header["splits"][split]
        pixels = np.empty((said["n"], *said["shape"]), np.uint8)
        rows = []
        for i in range(said["n"]):
            pixels[i] = _from_png(get(f"{split}/image/{i}"))
            rows.append(json.loads(get(f"{split}/row/{i}")))
        images = _assemble(said, torch.from_numpy(pixels), rows)
    tally = Tally()
    tally.notes += images.texts.remarks() if images.texts else []
    tally.tell(path.name, len(images), split)
    return images


@contextmanager
def _opened(path: Path) -> Iterator:
    """A function from key to value (b"" where there is none). However the file is bad, one sentence says so."""
    import lmdb

    with open(path, "rb") as file:
        start = file.read(20)
    if start[16:] != MARK:
        raise UserError(f"{path} is no LMDB file; {MADE}")
    try:
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as file:
            # Pages that the file promises but has not would kill this process as it reads them: look before.
            promised = (file.info()["last_pgno"] + 1) * file.stat()["psize"]
            if path.stat().st_size < promised:
                raise UserError(
                    f"{path} is truncated: {path.stat().st_size} bytes of {promised}; copy it again, or {MADE}"
                )
            with file.begin() as transaction:
                yield lambda key: transaction.get(key.encode(), b"")
    except UserError:
        raise
    except Exception as problem:  # lmdb, json and PIL each raise their own
        raise UserError(f"{path} is damaged ({explain(problem)}); copy it again, or {MADE}") from problem


def _header(path: Path, value: bytes) -> dict:
    header = json.loads(value) if value.startswith(b"{") else {}
    if header.get("format") != FORMAT:
        raise UserError(f"{path} is an LMDB file of another kind; {MADE}")
    return header


def _from_png(value: bytes) -> np.ndarray:
    """PNG -> (C, H, W) uint8"""
    array = np.asarray(Image.open(BytesIO(value)))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _assemble(said: dict, pixels: torch.Tensor, rows: list[dict]) -> Images:
    labels = torch.tensor([row["label"] for row in rows]) if rows and "label" in rows[0] else None
    attributes = said.get("attributes")
    if attributes:
        table = torch.tensor([row["attributes"] for row in rows])
        attributes = Attributes(table, tuple(attributes["names"]), tuple(map(tuple, attributes["values"])))
    texts = said.get("texts")
    if texts:
        by = {language: tuple(row[language] for row in rows) for language in LANGUAGES if language in texts["by"]}
        items = tuple(row["item"] for row in rows) if texts["items"] else ()
        several = {
            language: tuple(tuple(row["several"][language]) for row in rows) for language in texts.get("several", ())
        }
        texts = Texts(**texts | {"by": by, "items": items, "several": several})
    return Images(
        said["name"], pixels, labels, tuple(said["classes"]), attributes=attributes, texts=texts
    ).in_language(None)
