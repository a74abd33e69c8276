"""Writes a data set as a folder of PNG files with a metadata.jsonl, as other programs read it."""

import json
from pathlib import Path

from common.data.captions import COLUMNS
from common.data.dataset import Images
from common.data.registry import load
from common.data.sources.lmdb_dataset import to_png
from common.errors import UserError
from common.io.files import write_folder


def check_folder(folder: Path) -> None:
    """Refuse a folder that is there, and a name under which load() would look for a file."""
    if folder.suffix.lower() == ".lmdb":
        raise UserError(
            f"{folder} ends in .lmdb, but a folder is written; choose another name, or use python -m common.data.export_lmdb"
        )
    if folder.exists():
        raise UserError(f"{folder} is there already; name a folder that is not")


def export(images: Images, folder: Path, split: str = "train") -> None:
    """A folder of N PNG files, metadata.jsonl and (where there are labels) classes.txt: the whole of it, or none.

    Every row says split, so that load() takes all of them for that split.
    """
    check_folder(folder)

    def write(building: Path) -> None:
        rows = [row_of(images, i) | {"split": split} for i in range(len(images))]
        for i, row in enumerate(rows):
            (building / str(row["file_name"])).write_bytes(to_png(images.pixels[i]))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (building / "metadata.jsonl").write_bytes(lines.encode())
        if images.classes:
            (building / "classes.txt").write_text("\n".join(images.classes) + "\n", encoding="utf-8")

    write_folder(folder, write)


def row_of(images: Images, i: int) -> dict[str, object]:
    """One line of metadata.jsonl: file_name, text and text_zh, label, and what its attributes are."""
    row: dict[str, object] = {"file_name": f"{i:05d}.png"}
    if images.texts:
        row |= {COLUMNS[language][0]: texts[i] for language, texts in images.texts.by.items()}
        several = {COLUMNS[language][0]: list(texts[i]) for language, texts in images.texts.several.items()}
        row |= {column: texts for column, texts in several.items() if len(texts) > 1}
    if images.attributes:
        row |= images.attributes.of(i)
    if images.labels is not None:
        label = int(images.labels[i])
        row |= {"label": label, "name": images.classes[label] if images.classes else str(label)}
    return row


def export_named(data: str, folder: Path, size: int | None, n: int | None, split: str, data_dir: Path) -> None:
    """Load a data set by name and export it."""
    check_folder(folder)  # before anything is drawn
    images = load(data, size, data_dir, split, n=n)
    export(images, folder, split)
    print(f"{folder}: {len(images)} images of {images.size} x {images.size} pixels and metadata.jsonl")
