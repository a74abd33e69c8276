"""Memory, disk, and the folders of data."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from common.cli import writable_folder
from common.data.sources.torchvision_datasets import find_mnist
from common.doctor.finding import Finding, fine, note, wrong
from common.errors import UserError
from common.io.memory import free_memory, gib

MEMORY = (1.2, 4)  # GiB: what chapter 1's training takes (chapter 1, RESULTS.md), and what every default fits into
DISK = (1, 8)  # GiB: checkpoints and caches of one training, and those of all chapters with hub models


def findings(data_dir: Path) -> Iterator[Finding]:
    """Memory, disk, whether runs can be written, data sets that are here."""
    yield memory(free_memory())
    yield disk(Path())
    yield writable(Path())
    yield data(data_dir)


def memory(free: float) -> Finding:
    """free: bytes"""
    least, enough = MEMORY
    if free < least * 2**30:
        return wrong(
            "memory",
            f"{gib(free)} free, and training chapter 1 takes {least:g} GiB",
            "close other programs, or lower --batch-size",
        )
    if free < enough * 2**30:
        return note(
            "memory", f"{gib(free)} free; large batches may not fit", "close other programs, or lower --batch-size"
        )
    return fine("memory", f"{gib(free)} free")


def disk(folder: Path) -> Finding:
    """Room where runs/ is written."""
    free = shutil.disk_usage(folder).free
    least, enough = DISK
    if free < least * 2**30:
        return wrong(
            "disk",
            f"{gib(free)} free in {folder.resolve()}",
            "make room: old runs are in runs/, hub models in ~/.cache/huggingface",
        )
    if free < enough * 2**30:
        return note(
            "disk", f"{gib(free)} free; models from the hub may not fit", "make room, or set HF_HOME to another disk"
        )
    return fine("disk", f"{gib(free)} free")


def writable(folder: Path) -> Finding:
    """Whether programs can write runs/ here."""
    place = folder / "runs" if (folder / "runs").exists() else folder
    try:
        writable_folder(place)
    except UserError:
        pass
    else:
        return fine("run folders", str(place.resolve()))
    return wrong(
        "run folders",
        f"{place.resolve()} cannot be written",
        "start the programs in a folder of your own, or give --out",
    )


def data(data_dir: Path) -> Finding:
    """Local copies; every chapter also has data of its own, so none is needed."""
    if not data_dir.is_dir():
        return fine(
            "data folder", f"there is no {data_dir.resolve()}: the embedded digits, creatures and dishes need none"
        )
    found = [name for name in ("MNIST", "FashionMNIST") if find_mnist(data_dir, name, "train")]
    found += sorted(
        each.name
        for each in data_dir.iterdir()
        if not each.name.startswith(".") and each.name not in ("MNIST", "FashionMNIST")
    )[:6]
    return fine("data folder", f"{data_dir.resolve()} holds {', '.join(found) or 'nothing'}")
