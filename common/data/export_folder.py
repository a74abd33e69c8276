"""Write a data set as a folder of PNG files with a metadata.jsonl, as other programs want it.

  python -m common.data.export_folder creatures runs/creatures --size 64 --n 500

Pictures, labels and captions come back the same from load("runs/creatures", 64).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from common.cli import run
from common.errors import UserError

if TYPE_CHECKING:
    from common.data import Images


@dataclass(frozen=True)
class Args:
    data: Positional[str]
    """A data set by name, a folder of images, or an .lmdb."""
    folder: Positional[Path]
    """A new folder."""
    size: int | None = None
    """Pixels a side; by default the data's own."""
    n: int | None = None
    """Only the first n images."""
    split: str = "train"
    """train, test (creatures also heldout)."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that is there, and a name under which load() would look for a file."""
    if folder.suffix.lower() == ".lmdb":
        raise UserError(f"{folder} ends in .lmdb, but a folder is written; choose another name, or use python -m common.data.export_lmdb")
    if folder.exists():
        raise UserError(f"{folder} is there already; name a folder that is not")


def export(images: "Images", folder: Path, split: str = "train") -> None:
    """A folder of N PNG files, metadata.jsonl and (where there are labels) classes.txt: the whole of it, or none.

    Every row says split, so that load() takes all of them for that split.
    """
    import json
    import os
    import shutil

    from common.data.sources.lmdb_dataset import to_png

    check_folder(folder)
    building = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(building, ignore_errors=True)  # of a run that was killed
        building.mkdir(parents=True)
        rows = [row_of(images, i) | {"split": split} for i in range(len(images))]
        for i, row in enumerate(rows):
            (building / str(row["file_name"])).write_bytes(to_png(images.pixels[i]))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (building / "metadata.jsonl").write_bytes(lines.encode())
        if images.classes:
            (building / "classes.txt").write_text("\n".join(images.classes) + "\n", encoding="utf-8")
        os.replace(building, folder)
    except OSError as problem:
        raise UserError(f"cannot write {folder} ({problem.strerror}); choose another folder") from problem
    finally:
        shutil.rmtree(building, ignore_errors=True)


def row_of(images: "Images", i: int) -> dict[str, object]:
    """One line of metadata.jsonl: file_name, text and text_zh, label, and what its attributes are."""
    from common.data.captions import COLUMNS

    row: dict[str, object] = {"file_name": f"{i:05d}.png"}
    if images.texts:
        row |= {COLUMNS[language][0]: texts[i] for language, texts in images.texts.by.items()}
        row |= {COLUMNS[language][0]: list(texts[i]) for language, texts in images.texts.several.items() if len(texts[i]) > 1}
    if images.attributes:
        row |= images.attributes.of(i)
    if images.labels is not None:
        row |= {"label": int(images.labels[i]), "name": images.classes[images.labels[i]] if images.classes else str(int(images.labels[i]))}
    return row


def main(args: Args) -> None:
    check_folder(args.folder)  # before anything is drawn
    from common.data.registry import load

    images = load(args.data, args.size, args.data_dir, args.split, n=args.n)
    export(images, args.folder, args.split)
    print(f"{args.folder}: {len(images)} images of {images.size} x {images.size} pixels and metadata.jsonl")


if __name__ == "__main__":
    run(main, Args)
