"""Checkpoints, to resume a training from: checkpoints/step-00000500.pt"""

import re
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel

from common.errors import UserError
from common.io.files import write_atomically
from common.io.state_dict import load_strictly, why_unreadable


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}.pt"


def checkpoints(run: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*.pt") if re.fullmatch(r"step-\d{8}\.pt", p.name))


def save_checkpoint(run: Path, state: dict[str, Any], keep: int = 2) -> Path:
    """Write atomically, then remove all but the newest `keep`."""
    path = checkpoint_path(run, state["step"])
    write_atomically(path, lambda file: torch.save(state, file))
    for old in checkpoints(run)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint, tensors and plain values only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # torch raises RuntimeError, EOFError, UnpicklingError and more for damaged files
        earlier = [p for p in checkpoints(path.parent.parent) if p < path]
        hint = f"delete it and resume from {earlier[-1].name}" if earlier else "there is no earlier one"
        raise UserError(f"the checkpoint {path} cannot be read: {why_unreadable(path, problem)}; {hint}") from problem


# ------------------------------------------------------------------------------------------------------------ contents


@runtime_checkable
class Stateful(Protocol):
    """A loss that changes as it is used, such as one with a discriminator: checkpoints hold its state too."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def snapshot(
    step: int,
    state: dict[str, Any],
    net: nn.Module,
    ema: AveragedModel,
    optimizer: torch.optim.Optimizer,
    loss: object,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """All that the next step depends on. Random numbers need no place here, because they follow from (seed, step).

    state: what the loop knows after this step.
    It is kept because a process killed right after the checkpoint has not yet logged the step.
    """
    return {
        "step": step,
        "state": state,
        "net": accelerator.unwrap_model(net).state_dict(),
        "ema": ema.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "loss": loss.state_dict() if isinstance(loss, Stateful) else {},
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
    }


def restore(
    run: Path,
    net: nn.Module,
    ema: AveragedModel,
    optimizer: torch.optim.Optimizer,
    loss: object,
    accelerator: Accelerator,
) -> dict[str, Any] | None:
    """Load the newest checkpoint of the run, if it has one. Returns the state that snapshot() was given."""
    kept = checkpoints(run)
    if not kept:
        return None
    saved = load_checkpoint(kept[-1])
    load_strictly(net, saved["net"], kept[-1])
    load_strictly(ema.module, saved["ema"], kept[-1])
    ema.n_averaged.fill_(saved["step"])
    optimizer.load_state_dict(saved["optimizer"])
    if isinstance(loss, Stateful):
        loss.load_state_dict(saved["loss"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])
    return saved["state"]
