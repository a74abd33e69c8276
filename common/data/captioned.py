"""Sets of the Hugging Face hub: from a local copy, from the hub's cache, or downloaded from one of several ids."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch

from common import hub
from common.data.folder import SUFFIXES, decode_all, load_folder, metadata_file
from common.data.images import Images, first_existing, in_split
from common.data.texts import COLUMNS, Texts, read_texts
from common.errors import UserError, explain

IMAGE_COLUMNS = ("image", "img", "picture", "photo")
LABEL_COLUMNS = ("label", "labels")
PREFIX = "hub:"  # --data hub:owner/name or hub:owner/name@revision is any set of the hub


@dataclass(frozen=True)
class HubSet:
    """A named set: where copies of it lie."""

    ids: tuple[str, ...]  # on the hub, tried in this order; after @ the revision, if not the newest
    folders: tuple[str, ...]  # local copies, looked for in --data-dir


HUB_SETS = {
    "pokemon": HubSet(
        ids=(
            "svjack/pokemon-blip-captions-en-zh@4b2859096f19a75f613a7a63183a9fadaa48ba3f",  # the only one with Chinese captions
            "reach-vb/pokemon-blip-captions@3790f29981f74ca26bf11662048342e19c5b615e",
            "diffusers/pokemon-gpt4-captions@6dc8154426e8a36ecc22b0001bb01a5ad78309c7",
        ),
        folders=("pokemon",),
    ),
    "butterflies": HubSet(
        ids=("huggan/smithsonian_butterflies_subset@3cdedf844922ab40393d46d4c7f81c596e1c6d45",),
        folders=("butterflies",),
    ),
    "oxford_flowers": HubSet(
        ids=("nkirschi/oxford-flowers", "nelorth/oxford-flowers", "huggan/flowers-102-categories"),  # the first two: one set, moved
        folders=("oxford_flowers", "flowers"),
    ),
}


def load_named(name: str, data_dir: Path, split: str, size: int) -> Images:
    """One of HUB_SETS: a local copy, else the hub's."""
    folders = HUB_SETS[name].folders
    places = [place / folder for folder in folders for place in (data_dir, data_dir / "data")]
    itself = data_dir.is_dir() and (metadata_file(data_dir) is not None or data_dir.name in folders)
    local = data_dir if itself else first_existing(*places)
    if local:
        return load_copy(local, name, split, size)
    advice = f"put a copy in {places[0]} or name another folder with --data-dir (or use --data creatures, which is drawn)"
    return _from_hub(name, HUB_SETS[name].ids, split, size, f"{name} is not in {data_dir}", advice)


def load_hub(name: str, split: str, size: int) -> Images:
    """Any set of the hub: "hub:owner/name" or "hub:owner/name@revision"."""
    wanted = name.removeprefix(PREFIX)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", wanted):
        raise UserError(f"'{name}' names no set of the hub; type {PREFIX}owner/name, or {PREFIX}owner/name@revision")
    return _from_hub(wanted, (wanted,), split, size, f"{wanted} is a set of the hub", "give the path of a copy")


def load_copy(folder: Path, name: str, split: str, size: int) -> Images:
    """A local copy of a hub's set: a folder of images, or the parquet files that the hub serves."""
    kinds = {path.suffix.lower() for path in folder.rglob("*")}
    if ".parquet" not in kinds or kinds & SUFFIXES:
        return load_folder(folder, size, split)
    from datasets import load_dataset

    try:
        sets = load_dataset(str(folder))
    except Exception as problem:  # pyarrow and datasets each raise their own
        raise UserError(f"the parquet files in {folder} cannot be read ({explain(problem)}); download them again") from problem
    return from_rows(name, str(folder), sets, split, size)


def _from_hub(name: str, ids: tuple[str, ...], split: str, size: int, what: str, advice: str) -> Images:
    """The first of several ids that can be had. With no network, what an earlier run left in the hub's cache."""
    silence, reasons, unfit = hub.silent(), [], []
    for hub_id in ids:
        try:
            return from_rows(name, f"{hub_id} of the hub", _fetch(hub_id, not silence), split, size)
        except Exception as problem:  # the hub's own errors, those of its network library, pyarrow's; and columns we cannot use
            reasons.append(f"{hub_id.split('@')[0]} ({hub.why(problem, hub_id)})")
            unfit += reasons[-1:] if isinstance(problem, UserError) else []
    advice += f", or {hub.MIRROR}"
    if silence:
        names = ", ".join(hub_id.split("@")[0] for hub_id in ids)
        found = f"the copy in the hub's cache cannot be used ({'; '.join(unfit)})" if unfit else f"not in the hub's cache ({names})"
        raise UserError(f"{what}, {found}, and {silence}; {advice}")
    raise UserError(f"{what}, and could not be had from {hub.endpoint()}: {'; '.join(reasons)}; {advice}")


def _fetch(hub_id: str, online: bool):
    """The set's splits, {"train": rows, ...}, through `datasets`."""
    from datasets import load_dataset

    name, _, revision = hub_id.partition("@")
    with _mode(online):
        return load_dataset(name, revision=revision or None)


@contextmanager
def _mode(online: bool) -> Iterator[None]:
    """With no network, `datasets` is told so: it goes to its cache at once, where it would else try, wait and try again."""
    import datasets.config

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not online
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


# -------------------------------------------------------------------------------------------------------- from rows


def from_rows(name: str, where: str, sets, split: str, size: int) -> Images:
    """Images, labels and captions from the splits of a `datasets` set, whose columns are found by their names."""
    rows = _of_split(sets, split)
    column = _image_column(where, rows)
    from datasets import Image

    files = rows.select_columns([column]).cast_column(column, Image(decode=False))
    pixels, kept = decode_all([f"row {i} of {where}" for i in range(len(rows))], size, lambda i: _file(files[i][column]))
    rows = rows.select(kept)
    labels, classes = _labels(rows)
    words = rows.select_columns([c for c in rows.column_names if c in COLUMNS["en"] + COLUMNS["zh"]]).to_list()
    texts = Texts(f"{where} (columns {', '.join(rows.column_names)})", read_texts(words), tuple(f"row {i}" for i in kept))
    return Images(name, pixels, labels, classes, texts=texts).in_language(None)


def _of_split(sets, split: str):
    """The split of that name; where there is only "train", every tenth row is for testing."""
    test = next((sets[key] for key in ("test", "validation", "valid") if key in sets), None)
    if split == "test" and test is not None:
        return test
    train = sets["train"] if "train" in sets else next(iter(sets.values()))
    if test is not None:
        return train
    return train.select([i for i in range(len(train)) if in_split(i, len(train), split)])


def _image_column(where: str, rows) -> str:
    from datasets import Image

    column = next((c for c in IMAGE_COLUMNS if isinstance(rows.features.get(c), Image)), None)
    if column is None:
        raise UserError(f"{where} has no column of images named {', '.join(IMAGE_COLUMNS)}; its columns are {', '.join(rows.column_names)}")
    return column


def _file(picture: dict | None) -> Path | BytesIO:
    """An undecoded image {"bytes": ..., "path": ...}; an empty one is found to be no image."""
    picture = picture or {}
    return Path(picture["path"]) if picture.get("path") and not picture.get("bytes") else BytesIO(picture.get("bytes") or b"")


def _labels(rows) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    column = next((c for c in LABEL_COLUMNS if c in rows.column_names), None)
    given = rows[column][:] if column else []
    if not given or not all(isinstance(label, (int, str)) for label in given):
        return None, ()
    names = getattr(rows.features[column], "names", None)
    if names and min(given) < 0:  # -1 is how the hub writes "not known"
        return None, ()
    if names:
        return torch.tensor(given), tuple(names)
    order = sorted(set(given))
    return torch.tensor([order.index(label) for label in given]), tuple(map(str, order))
