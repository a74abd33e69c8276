"""Images, labels and captions from the rows of a `datasets` set:
of the hub, of parquet files, or of a folder that save_to_disk wrote.
"""

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from common.data.captions import COLUMNS, Texts, read_several, read_texts
from common.data.dataset import Images, in_split
from common.data.sources.decoding import File, decode_all
from common.data.sources.listing import Listing, Names, Outside, Tally, choose_split, split_in, split_named
from common.errors import UserError, explain

CONTENT_COLUMNS = ("image", "img", "picture", "photo", "images", "jpg", "png", "pixel_values", "bytes", "image_bytes")
IMAGE_COLUMNS = (*CONTENT_COLUMNS, "image_path", "file_name", "path")
LABEL_COLUMNS = ("label", "labels", "class", "fine_label")


def load_parquet(
    listing: Listing, files: tuple[str, ...], name: str, split: str, size: int, channels: int | None
) -> Images:
    """A folder of parquet files, as the hub serves them or as pandas writes them.
    Their names say which split each belongs to.
    """
    from datasets import load_dataset

    tally = Tally()
    parts: dict[str, list[str]] = {}
    for file in files:
        part = split_in(file) or split_named(Path(file).parent.name) or "train"
        parts.setdefault(part, []).append(str(listing.folder / file))
    try:
        sets = load_dataset("parquet", data_files=parts)
    except Exception as problem:  # pyarrow and datasets each raise their own
        raise UserError(
            f"the parquet files in {listing.folder} cannot be read ({explain(problem)}); download them again"
        ) from problem
    tally.left_out += listing.holds(files)
    return from_rows(name, str(listing.folder), sets, split, size, channels, listing, tally)


def load_saved(listing: Listing, name: str, split: str, size: int, channels: int | None) -> Images:
    """A folder that Dataset.save_to_disk or DatasetDict.save_to_disk wrote."""
    from datasets import load_from_disk

    try:
        sets = load_from_disk(str(listing.folder))
    except Exception as problem:
        raise UserError(
            f"the set that `datasets` saved in {listing.folder} cannot be read ({explain(problem)}); save it again"
        ) from problem
    sets = sets if isinstance(sets, dict) else {"train": sets}
    return from_rows(name, str(listing.folder), sets, split, size, channels, listing)


def from_rows(
    name: str,
    where: str,
    sets: Mapping,
    split: str,
    size: int,
    channels: int | None = None,
    listing: Listing | None = None,
    tally: Tally | None = None,
) -> Images:
    """Images, labels and captions from the splits of a `datasets` set, whose columns are found by their names.

    listing  the folder that it lies in, where it is a local copy: files that it names must lie there
    """
    tally = tally or Tally()
    rows, rest = _of_split(where, sets, split, tally)
    column, open_picture = _image_column(where, rows, listing)
    mine, *further = (undecoded(some, column) for some in (rows, *rest))
    others = ((lambda part=part, i=i: open_picture(part[i][column])) for part in further for i in range(len(part)))
    titles = [f"row {i} of {where}" for i in range(len(rows))]
    pixels, kept = decode_all(titles, size, lambda i: open_picture(mine[i][column]), channels, others, tally)
    labels, classes = _labels(rows.select(kept), rest)
    words = rows.select(kept).select_columns(_text_columns(rows)).to_list()
    words = [{key.strip().lower(): value for key, value in row.items()} for row in words]
    items, columns = tuple(f"row {i}" for i in kept), f"{where} (columns {', '.join(rows.column_names)})"
    texts = Texts(columns, read_texts(words), items, several=read_several(words))
    tally.notes += texts.remarks()
    tally.tell(name, len(kept), split)
    return Images(name, pixels, labels, classes, texts=texts).in_language(None)


def undecoded(rows: Any, column: str) -> Any:
    """The column alone; images stay as the bytes of their files."""
    from datasets import Image

    rows = rows.select_columns([column])
    return rows.cast_column(column, Image(decode=False)) if isinstance(rows.features[column], Image) else rows


def _of_split(where: str, sets: Mapping, split: str, tally: Tally) -> tuple:
    """(the rows of the split, the rows of the other splits);
    where there is only one, every tenth row is for testing.
    """
    names = {key: split_named(str(key)) or str(key) for key in sets}
    if "train" not in names.values():  # the first one is trained on, whatever its name
        names[next(iter(names))] = "train"
    chosen = choose_split(where, names.values(), split)
    if chosen is not None:
        key = next(key for key in sets if names[key] == chosen)
        others = {names[other]: len(sets[other]) for other in sets if other != key}
        tally.note("other splits: " + ", ".join(f"{its} ({n:,})" for its, n in others.items()))
        if chosen != split:
            tally.note(f"the split {chosen} serves as {split}")
        return sets[key], [sets[other] for other in sets if other != key]
    rows = next(iter(sets.values()))
    parts = [[i for i in range(len(rows)) if in_split(i, len(rows), its)] for its in ("train", "test")]
    if len(parts[0]) < len(rows):
        tally.note(f"of its {len(rows):,} every tenth belongs to the test split")
    mine, other = parts if split == "train" else reversed(parts)
    return rows.select(mine), [rows.select(other)] if len(parts[0]) < len(rows) else []


def _image_column(where: str, rows: Any, listing: Listing | None) -> tuple[str, Callable[[object], File]]:
    """(the column of pictures, how one of its cells is opened):
    an Image of `datasets`, or what pandas leaves of one.
    """
    from datasets import Image

    names = Names(listing.files, listing.folder.resolve().name) if listing else None
    by_name = {column.strip().lower(): column for column in rows.column_names}
    for name in IMAGE_COLUMNS:
        feature = rows.features.get(by_name.get(name, name))
        kind = getattr(feature, "dtype", "")
        is_record = isinstance(feature, Image) or (isinstance(feature, dict) and "bytes" in feature)
        if is_record or kind in ("binary", "large_binary", "binary_view"):
            return by_name[name], lambda cell: _file(cell, where, listing, names)
        if kind in ("string", "large_string") and names is not None:  # the files lie beside the table
            return by_name[name], lambda cell: _file({"path": cell}, where, listing, names)
    raise UserError(
        f"{where} has no column of images named {', '.join(IMAGE_COLUMNS[:4])}, ... that holds the bytes of picture files; "
        f"its columns are {', '.join(f'{column} ({_kind(feature)})' for column, feature in rows.features.items())}"
    )


def _kind(feature: object) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__))


def _file(picture: object, where: str, listing: Listing | None, names: Names | None) -> File:
    """An undecoded image {"bytes": ..., "path": ...} or its bytes; an empty one is found to be no image.

    A path alone, in a local copy, names a file below its folder;
    in a set of the hub, one that `datasets` has downloaded.
    """
    if isinstance(picture, bytes):
        return BytesIO(picture)
    picture = picture if isinstance(picture, dict) else {}
    path, content = picture.get("path"), picture.get("bytes")
    if content or not path:
        return BytesIO(content or b"")
    if listing is None or names is None:
        return Path(path)
    try:
        found = names.find(path)
    except Outside as problem:
        raise UserError(
            f"{where} names the file {path}, which {problem}; give a copy that holds its pictures"
        ) from None
    if found is None:
        raise FileNotFoundError(f"there is no {path} in {listing.folder}")
    return listing.folder / found


def _text_columns(rows: Any) -> list[str]:
    return [column for column in rows.column_names if column.strip().lower() in COLUMNS["en"] + COLUMNS["zh"]]


def _labels(rows: Any, rest: list) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    """The labels of rows; their classes are those of all splits, so that every split numbers them alike."""
    column = next((c for c in LABEL_COLUMNS if c in rows.column_names), None)
    given = rows[column][:] if column else []
    if not given or not all(isinstance(label, (int, str)) for label in given):
        return None, ()
    names = getattr(rows.features[column], "names", None)
    if names and min(given) < 0:  # -1 is how the hub writes "not known"
        return None, ()
    if names:
        return torch.tensor(given), tuple(names)
    everywhere = set(given).union(*(part[column][:] for part in rest if column in part.column_names))
    order = sorted(everywhere) if len({type(label) for label in everywhere}) == 1 else sorted(everywhere, key=str)
    number = {label: i for i, label in enumerate(order)}
    return torch.tensor([number[label] for label in given]), tuple(map(str, order))
