"""Any folder of images: folders named as splits or classes, tables of metadata,
captions beside the images, or nothing of these.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from torch import Tensor, tensor

from common.data.captions import COLUMNS, Texts, all_texts, read_several, read_texts
from common.data.dataset import Images, in_split
from common.data.sources.decoding import decode_all
from common.data.sources.listing import (
    COMMON_KINDS,
    Listing,
    Names,
    Outside,
    Tally,
    choose_split,
    described,
    is_picture,
    kinds,
    level_of_splits,
    list_folder,
    split_named,
    suffix_of,
)
from common.data.sources.tables import KINDS, Table, read_table, read_text
from common.errors import UserError, explain

METADATA = re.compile(r"metadata\.(jsonl|ndjson|csv|tsv|json|parquet)", re.IGNORECASE)
OTHER_TABLES = re.compile(
    r"(meta|captions?|labels?|prompts?|texts?|data|dataset|index|annotations?|train|test|val|valid|validation)([-_.].*)?",
    re.IGNORECASE,
)
BESIDE = (".txt", ".caption", ".json")  # captions of NAME.png: NAME.txt, NAME.caption, NAME.json, or NAME.png.txt, ...
CLASSES = "classes.txt"
CONDITIONING = re.compile(r"conditioning_image(_file_name)?|control_image")
LABELS = ("label", "labels", "class", "category")


class Metadata(NamedTuple):
    """What tables say of pictures."""

    rows: dict[str, dict]  # by the picture's name
    lost: list[tuple[str, Path]]  # names that no picture has, and the table that they are in
    tables: tuple[str, ...]  # files that the rows came from


def load_folder(
    folder: Path,
    size: int,
    split: str = "train",
    channels: int | None = None,
    listing: Listing | None = None,
    check: Callable[[Texts], object] = lambda texts: None,
) -> Images:
    """All images below a folder, centre-cropped to a square and resized to size x size;
    grey where all of them are, else RGB.

    The splits are those of a column `split`, else folders named train, test, validation, ...; where there is neither,
    the test split is every tenth image in the order of the file names.

    check  refuses captions, before any image is decoded
    """
    listing = listing or list_folder(folder)
    if not listing.pictures:
        raise UserError(no_pictures(listing))
    tally = Tally()
    meta = read_metadata(listing, tally)
    given = set(conditioning_files(listing, meta.rows).values())  # to a ControlNet, and no images of the set
    names = tuple(name for name in listing.pictures if name not in given)
    chosen = _of_split(folder, names, meta.rows, split, tally)
    rest = set(names) - set(chosen)
    others = ((lambda path=folder / name: path) for name in names if name in rest)
    captions = _Captions(listing, tally)
    rows = [captions.row(name, meta.rows.get(name, {})) for name in chosen]
    fault = _mismatch(listing, names, meta, captions)
    texts = Texts(f"the folder {folder}", read_texts(rows), tuple(chosen), fault, several=read_several(rows))
    check(texts)
    pixels, kept = decode_all(listing.paths(chosen), size, channels=channels, others=others, tally=tally)
    labels, classes = _labels(folder, names, [chosen[i] for i in kept], meta.rows)
    rows, texts = [rows[i] for i in kept], texts.of(kept)
    bare_names = (name for name in names if not all_texts(meta.rows.get(name, {}), COLUMNS["en"]))
    beside = {file for file in map(captions.beside, bare_names) if file}
    tally.left_out += listing.holds(
        {*names, *given, *meta.tables, *beside, *([CLASSES] if CLASSES in listing.files else [])}
    )
    bare = sum(not any(all_texts(row, columns) for columns in COLUMNS.values()) for row in rows)
    if 0 < bare < len(rows):
        tally.note(f"{bare} of {len(rows)} have no caption")
    tally.notes += texts.remarks()
    tally.tell(folder.name or str(folder), len(kept), split)
    return Images(folder.name, pixels, labels, classes, texts=texts).in_language(None)


def no_pictures(listing: Listing) -> str:
    held = described(listing.holds())
    return f"there is no image in {listing.folder} (looked for {COMMON_KINDS} and other kinds that Pillow opens)" + (
        f"; it holds {held}" if held else ""
    )


# ------------------------------------------------------------------------------------------------------------ metadata


def read_metadata(listing: Listing, tally: Tally) -> Metadata:
    """The rows of every metadata.* below the folder, and of tables with other usual names;
    several rows for one picture become one.
    """
    names = Names(listing.pictures, listing.folder.resolve().name)
    found: dict[str, dict] = {}
    lost: list[tuple[str, Path]] = []
    used: list[str] = []
    for name, needed in tables_of(listing):
        try:
            table = read_table(listing.folder / name)
            if table.file_column is None:
                raise UserError(no_file_column(table))
            matched = match(table, names, name)
        except UserError as problem:
            if needed:
                raise
            tally.note(f"{name} is not used ({problem})")
            continue
        if not needed and not any(picture for picture, _, _ in matched):
            continue
        used.append(name)
        if table.encoding != "UTF-8":
            tally.note(f"{name} was read as {table.encoding}")
        if nameless := sum(picture is None for picture, _, _ in matched):
            tally.note(f"{nameless} rows of {name} name no picture that is there")
        for picture, written, cells in matched:
            if picture is None:
                lost.append((written, table.path))
            else:
                found[picture] = joined(found[picture], cells) if picture in found else cells
    return Metadata(found, lost, tuple(used))


def conditioning_files(listing: Listing, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The file that the column conditioning_image names for each picture: what a ControlNet is given with it.
    It is looked for in the picture's folder and in those above it.
    """
    files, found = set(listing.files), {}
    for name, row in rows.items():
        written = next((row[column] for column in row if CONDITIONING.fullmatch(column) and row[column]), None)
        places = (str(parent / str(written)).removeprefix("./") for parent in PurePosixPath(name).parents)
        if written and (file := next((place for place in places if place in files), None)):
            found[name] = file
    return found


def tables_of(listing: Listing) -> list[tuple[str, bool]]:
    """(file, whether it must be readable): one metadata.* of each folder;
    where the outermost one has none, tables of other usual names.
    """
    by_folder: dict[str, list[str]] = {}
    for name in listing.files:
        folder, _, file = name.rpartition("/")
        if METADATA.fullmatch(file):
            by_folder.setdefault(folder, []).append(name)
    first = [(min(names, key=lambda name: KINDS.index(suffix_of(name))), True) for names in by_folder.values()]
    if "" in by_folder:
        return first
    pictures = {os.path.splitext(name)[0] for name in listing.pictures}
    tables = [name for name in listing.with_suffix(*KINDS) if OTHER_TABLES.fullmatch(Path(name).stem)]
    near = [name for name in tables if name.count("/") < 2 and os.path.dirname(name) not in by_folder]
    return first + [(name, False) for name in near if os.path.splitext(name)[0] not in pictures]


def no_file_column(table: Table) -> str:
    there = f"its columns are {', '.join(table.columns[:10])}" if table.columns else "it is empty"
    return (
        f"{table.path} cannot be read (no row names a file; {there}); every row needs a file_name (or image, file, path), "
        "beside it text for a caption and label for a class"
    )


def match(table: Table, names: Names, file: str) -> list[tuple[str | None, str, dict]]:
    """(the picture, its name as written, the cells) of each row. Names that lead out of the folder are refused."""
    base, found = file.rpartition("/")[0], []
    inner = f"{base}/{Path(file).stem}".strip("/")  # train.csv may speak of the files in train/
    has_folder = not METADATA.fullmatch(Path(file).name) and any(name.startswith(inner + "/") for name in names.files)
    bases = (inner, base) if has_folder else (base,)
    for where, cells in table.rows:
        written = cells.get(table.file_column)
        if isinstance(written, dict):  # as datasets writes an image
            written = written.get("path") or written.get("file_name")
        if isinstance(written, bool) or not isinstance(written, (str, int)) or not str(written).strip():
            raise UserError(
                f"{table.path} cannot be read ({where} has no name in the column {table.file_column}); every row needs a file_name"
            )
        try:
            picture = next(filter(None, (names.find(str(written), base) for base in bases)), None)
        except Outside as problem:
            raise UserError(
                f"{table.path}, {where}: {written} {problem}; name files inside {table.path.parent}, relative to it"
            ) from None
        found.append((picture, str(written), cells))
    return found


def joined(first: dict, more: dict) -> dict:
    """Two rows about one picture: all their captions, and what else the first one says."""
    captions = {}
    for columns in COLUMNS.values():
        found = [(c, text) for row in (first, more) for c in columns for text in all_texts(row, (c,))]
        if found:
            captions[found[0][0]] = list(dict.fromkeys(text for _, text in found))
    return more | first | captions


# ------------------------------------------------------------------------------------------------------ splits, labels


def _of_split(folder: Path, names: Sequence[str], rows: dict[str, dict], split: str, tally: Tally) -> list[str]:
    """By the column `split` where every image has one; else by folders named as splits;
    else every tenth is for testing.
    """
    given = [rows.get(name, {}).get("split") for name in names]
    level = level_of_splits(names)
    if all(given):
        splits = [split_named(str(its)) or str(its) for its in given]
        if split not in splits and not (split == "test" and "validation" in splits):
            said = ", ".join(sorted(set(map(str, given))))
            raise UserError(f"{folder} has no split '{split}'; the column split of its metadata says {said}")
        chosen = choose_split(str(folder), splits, split, tenth=False)
    elif level is not None:
        splits = [str(split_named(name.split("/")[level])) for name in names]
        found = ", ".join(sorted({name.split("/")[level] for name in names}))
        if split == "train" and "train" not in splits and len(set(splits)) > 1:
            raise UserError(
                f"{folder} holds the splits {found} and none for training; name the folder that training takes, for instance --data {folder}/train"
            )
        chosen = choose_split(str(folder), splits, split)
        tally.note(f"its folders are splits: {found}")
    else:
        splits, chosen = [], None
        tops = sorted({name.split("/")[0] for name in names if "/" in name})
        if named := [top for top in tops if split_named(top)]:
            tally.note(f"folders named {', '.join(named)} are no splits here, because other pictures lie beside them")
    if any(given) and not all(given):
        tally.note(f"the column split is not used: {sum(not its for its in given)} images have none")
    if chosen is None:
        if split not in ("train", "test"):
            raise UserError(f"{folder} has no split '{split}'; choose train or test")
        kept = [name for i, name in enumerate(names) if in_split(i, len(names), split)]
        if len(kept) < len(names):
            tally.note(f"of its {len(names):,} every tenth belongs to the test split")
        return kept
    kept = [name for name, its in zip(names, splits, strict=True) if its == chosen]
    unused = {its: splits.count(its) for its in dict.fromkeys(splits) if its != chosen}
    if unused:
        tally.note("other splits: " + ", ".join(f"{its} ({n:,})" for its, n in unused.items()))
    if chosen != split:
        tally.note(f"the split {chosen} serves as {split}")
    return kept


def _labels(
    folder: Path, names: Sequence[str], chosen: Sequence[str], rows: dict[str, dict]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """From the column `label`, else from the first folder in the path, else none.
    classes.txt may name the classes 0, 1, ...

    The classes are those of all names, so that every split numbers them alike.
    """
    given = {
        name: next((label for c in LABELS if (label := rows.get(name, {}).get(c)) not in (None, "")), None)
        for name in names
    }
    if all(isinstance(label, (str, int, float)) for label in given.values()):
        path = folder / CLASSES
        classes = read_text(path)[0].strip().splitlines() if path.is_file() else []
        if classes and all(str(label).isdecimal() and int(str(label)) < len(classes) for label in given.values()):
            return tensor([int(str(given[name])) for name in chosen]), tuple(classes)
        keys = {str(label): str(rows[name].get("name", label)) for name, label in given.items()}
        order = sorted(keys, key=lambda key: (len(key), key))
        number = {key: i for i, key in enumerate(order)}
        return tensor([number[str(given[name])] for name in chosen]), tuple(keys[key] for key in order)
    level = level_of_splits(names)
    paths = {name: [part for i, part in enumerate(name.split("/")[:-1]) if i != level] for name in names}
    parents = {name: parts[0] if parts else "" for name, parts in paths.items()}
    order = sorted(set(parents.values()))
    return (tensor([order.index(parents[name]) for name in chosen]), tuple(order)) if len(order) > 1 else (None, ())


# ------------------------------------------------------------------------------------------------------------ captions


class _Captions:
    """Captions beside pictures: NAME.txt, NAME.caption (kohya), NAME.json (its column caption, text, ...)."""

    def __init__(self, listing: Listing, tally: Tally):
        self.folder, self.files, self.tally = listing.folder, set(listing.files), tally

    def beside(self, name: str) -> str | None:
        stems = (os.path.splitext(name)[0], name)
        names = (stem + suffix for suffix in BESIDE for stem in stems)
        return next((file for file in names if file in self.files and file != CLASSES), None)

    def row(self, name: str, row: dict) -> dict:
        """What is known of a picture; where its row holds no caption, those of the file beside it."""
        if all_texts(row, COLUMNS["en"]) or (file := self.beside(name)) is None:
            return row
        text, encoding = read_text(self.folder / file)
        if encoding != "UTF-8":
            self.tally.note(f"captions beside the images were read as {encoding}")
        if not file.endswith(".json"):
            return row | {"text": [line.strip() for line in text.splitlines() if line.strip()]}
        try:
            cells = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise UserError(
                f"{self.folder / file} cannot be read as JSON ({explain(problem)}); correct it, or take it out"
            ) from None
        return row | (cells if isinstance(cells, dict) else {})


def _mismatch(listing: Listing, names: Sequence[str], meta: Metadata, captions: _Captions) -> str:
    """Why the metadata and the images do not belong together, or ""."""
    if meta.lost:
        (first, path), total, there = meta.lost[0], len(meta.lost) + len(meta.rows), Names(listing.files)
        closed = [name for name, _ in meta.lost if there.find(name) and not is_picture(name)]
        if closed:
            kind = next(iter(kinds(closed)))
            return (
                f"{len(closed)} of {total} files that {path} names are of a kind that cannot be opened here ({kind}), "
                f"the first is {closed[0]}; convert them to .png or .jpg"
            )
        return f"{len(meta.lost)} of {total} files that {path} names are not in {listing.folder}, the first is {first}; add them, or delete their rows"
    bare = [name for name in names if meta.rows and name not in meta.rows and captions.beside(name) is None]
    if bare:
        tables = ", ".join(str(listing.folder / name) for name in meta.tables[:3])
        return f"{len(bare)} of {len(names)} images have no row in {tables}, the first is {bare[0]}; add their rows, or take them out"
    return ""
