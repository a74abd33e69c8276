"""Checkpoints, to resume a training from: checkpoints/step-00000500.pt"""

import re
from pathlib import Path

import torch

from common.errors import UserError
from common.io.files import write_atomically
from common.io.state_dict import why_unreadable


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}.pt"


def checkpoints(run: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*.pt") if re.fullmatch(r"step-\d{8}\.pt", p.name))


def save_checkpoint(run: Path, state: dict, keep: int = 2) -> Path:
    """Write atomically, then remove all but the newest `keep`."""
    path = checkpoint_path(run, state["step"])
    write_atomically(path, lambda file: torch.save(state, file))
    for old in checkpoints(run)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict:
    """Read one checkpoint, tensors and plain values only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # torch raises RuntimeError, EOFError, UnpicklingError and more for damaged files
        earlier = [p for p in checkpoints(path.parent.parent) if p < path]
        hint = f"delete it and resume from {earlier[-1].name}" if earlier else "there is no earlier one"
        raise UserError(f"the checkpoint {path} cannot be read: {why_unreadable(path, problem)}; {hint}") from problem
