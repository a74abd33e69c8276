"""Writing files so that a crash, a full disk or `kill -9` never leaves half a file under its real name."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Call write(file) on a temporary neighbour, then rename it: readers see the old file or the new, never a part."""
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as problem:  # torch.save reports a full disk as RuntimeError
        reason = getattr(problem, "strerror", None) or "the disk may be full"
        raise UserError(f"cannot write {path} ({reason}); what was saved before is untouched") from problem
    finally:
        with suppress(OSError):  # nothing to remove, or no folder it could be in
            temporary.unlink()


def write_json(path: Path, value: object) -> None:
    write_atomically(path, lambda file: file.write((json.dumps(value, indent=2, default=str) + "\n").encode()))


def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read as JSON ({problem})") from problem
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object {{...}}, not a {type(value).__name__}")
    return value
