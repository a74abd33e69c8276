"""Sets of the Hugging Face hub: from a local copy, from the hub's cache, or downloaded from one of several ids."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.data.dataset import Images, first_existing
from common.data.sources.local import load_local
from common.data.sources.rows import from_rows
from common.errors import UserError
from common.io import hub

PREFIX = "hub:"  # --data hub:owner/name or hub:owner/name@revision is any set of the hub


# Ids on the hub, tried in this order; after @ the revision, if not the newest.
HUB_SETS = {
    "pokemon": (
        "svjack/pokemon-blip-captions-en-zh@4b2859096f19a75f613a7a63183a9fadaa48ba3f",  # the only one with Chinese captions
        "reach-vb/pokemon-blip-captions@3790f29981f74ca26bf11662048342e19c5b615e",
        "diffusers/pokemon-gpt4-captions@6dc8154426e8a36ecc22b0001bb01a5ad78309c7",
    ),
    "butterflies": ("huggan/smithsonian_butterflies_subset@3cdedf844922ab40393d46d4c7f81c596e1c6d45",),
    # the first two: one set, moved
    "oxford_flowers": ("nkirschi/oxford-flowers", "nelorth/oxford-flowers", "huggan/flowers-102-categories"),
}
OTHER_FOLDERS = {"oxford_flowers": ("flowers",)}  # further names that a local copy in --data-dir may have


def load_named(name: str, data_dir: Path, split: str, size: int, channels: int | None = None) -> Images:
    """One of HUB_SETS: a local copy, else the hub's."""
    folders = (name, *OTHER_FOLDERS.get(name, ()))
    places = [place / folder for folder in folders for place in (data_dir, data_dir / "data")]
    itself = data_dir.is_dir() and (data_dir.name in folders or any(data_dir.glob("metadata.*")))
    local = data_dir if itself else first_existing(*places)
    if local:
        return load_local(local, name, split, size, size, channels)
    advice = (
        f"put a copy in {places[0]} or name another folder with --data-dir (or use --data creatures, which is drawn)"
    )
    return _from_hub(name, HUB_SETS[name], split, size, channels, f"{name} is not in {data_dir}", advice)


def load_hub(name: str, split: str, size: int, channels: int | None = None) -> Images:
    """Any set of the hub: "hub:owner/name" or "hub:owner/name@revision"."""
    wanted = name.removeprefix(PREFIX)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", wanted):
        raise UserError(f"'{name}' names no set of the hub; type {PREFIX}owner/name, or {PREFIX}owner/name@revision")
    what, advice = f"{wanted} is a set of the hub", "give the path of a copy"
    return _from_hub(wanted, (wanted,), split, size, channels, what, advice)


def _from_hub(
    name: str, ids: tuple[str, ...], split: str, size: int, channels: int | None, what: str, advice: str
) -> Images:
    """The first of several ids that is available. With no network, what an earlier run left in the hub's cache."""
    silence, reasons, unfit = hub.silent(), [], []
    for hub_id in ids:
        try:
            return from_rows(name, f"{hub_id} of the hub", _fetch(hub_id, not silence), split, size, channels)
        # the hub's own errors, those of its network library, pyarrow's; and columns we cannot use
        except Exception as problem:
            reasons.append(f"{hub_id.split('@')[0]} ({hub.why(problem, hub_id)})")
            unfit += reasons[-1:] if isinstance(problem, UserError) else []
    advice += f", or {hub.MIRROR}"
    if silence:
        found = f"not in the hub's cache ({', '.join(hub_id.split('@')[0] for hub_id in ids)})"
        if unfit:
            found = f"the copy in the hub's cache cannot be used ({'; '.join(unfit)})"
        raise UserError(f"{what}, {found}, and {silence}; {advice}")
    raise UserError(f"{what}, and could not be had from {hub.endpoint()}: {'; '.join(reasons)}; {advice}")


def _fetch(hub_id: str, online: bool) -> Any:
    """The set's splits, {"train": rows, ...}, through `datasets`."""
    from datasets import load_dataset

    name, _, revision = hub_id.partition("@")
    with _mode(online):
        return load_dataset(name, revision=revision or None)


@contextmanager
def _mode(online: bool) -> Iterator[None]:
    """With no network, `datasets` is told so:
    it goes to its cache at once, where it would else try, wait and try again.
    """
    import datasets.config

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not online
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
