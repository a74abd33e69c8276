"""Writing files so that a crash, a full disk or `kill -9` never leaves half a file under its real name."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError, explain, is_memory, printable

KEPT: dict[Path, str] = {}  # what the command that runs reads, by its real path: the flag that names it


def keep_files(paths: dict[Path, str]) -> None:
    """From now on nothing is written over these files."""
    KEPT.clear()
    KEPT.update(paths)


def from_here(path: Path) -> str:
    """A path inside the current folder without the folders above, which mean nothing on another machine."""
    there, here = path.resolve(), Path.cwd()
    return (there.relative_to(here) if there.is_relative_to(here) else path).as_posix()


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call write(file) on a temporary neighbour, then rename it: readers see the old file or the new, never a part.

    A device or a pipe, such as /dev/stdout, has no neighbour and is written to as it is. The target of a link is
    replaced, not the link.
    """
    temporary = None
    try:
        place = Path(os.path.realpath(path))  # what a link leads to, and what is left of a/../b where there is no a
        if place.is_dir():
            raise UserError(f"{path} is a folder, where a file is to be written; add a name")
        if place.exists() and not place.is_file():
            with open(place, "wb") as file:
                write(file)
            return
        if flag := KEPT.get(place):
            raise UserError(f"{path} would be written over, but {flag} reads it; choose another place for the output")
        temporary = place.with_name(place.name + ".partial")
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except (OSError, RuntimeError) as problem:  # torch.save reports a full disk as RuntimeError
        if is_memory(problem):
            raise
        reason = explain(problem) + ("" if isinstance(problem, OSError) else "; the disk may be full")
        kept = "; the file that is there stays as it was" if temporary and path.is_file() else ""
        raise UserError(f"cannot write {printable(str(path))} ({reason}){kept}") from problem
    finally:
        with suppress(OSError):  # nothing to remove, or no folder it could be in
            if temporary:
                temporary.unlink()


def write_folder(folder: Path, write: Callable[[Path], object]) -> Path:
    """Call write(path) on a temporary neighbour, then give it the folder's name:
    readers see the old folder or the new, never a part.
    """
    from safetensors import SafetensorError

    building = partial(folder)
    try:
        shutil.rmtree(building, ignore_errors=True)  # left by a process that was killed
        building.mkdir(parents=True)
        write(building)
        exchange(building, folder)
    except (OSError, RuntimeError, SafetensorError) as problem:  # a full disk has many names
        if is_memory(problem):
            raise
        raise UserError(
            f"cannot write {printable(str(folder))} ({explain(problem)}); what was saved before is untouched"
        ) from problem
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def partial(folder: Path) -> Path:
    """Where a folder is built, until it is whole."""
    return folder.with_name(folder.name + ".partial")


def exchange(building: Path, folder: Path) -> None:
    """Put `building`, which is whole, in the folder's place.

    No system call replaces a folder that is not empty, so for an instant the old one is called NAME.old and the folder
    is missing. Both are whole then: a process killed at that instant has lost nothing,
    and the next call puts the old folder back first.
    """
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        building.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    write_atomically(path, lambda file: file.write((json.dumps(value, indent=2, default=str) + "\n").encode()))


def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except RecursionError as problem:
        raise UserError(f"{path} is nested too deeply to be read as JSON") from problem
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read as JSON ({explain(problem)})") from problem
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object {{...}}, not a {type(value).__name__}")
    return value
