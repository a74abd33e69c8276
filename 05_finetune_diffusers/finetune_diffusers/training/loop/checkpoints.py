"""Checkpoints of accelerate in a run folder, checkpoints/step-00000500:
written whole or not at all, and only the newest are kept.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from common.errors import UserError, explain
from common.io.files import exchange, partial, write_folder

KEEP = 2  # checkpoints of each run


class Progress:
    """How far a training has come; accelerate saves and restores it with everything else."""

    def __init__(self):
        self.step, self.seconds = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]


def save_state(accelerator: Accelerator, run: Path, step: int) -> None:
    """Save everything that accelerate has prepared or registered, and delete older checkpoints.

    All processes call it, because each writes its own random states; the main process removes leftovers before, and
    moves the folder to its place.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    if accelerator.num_processes == 1:
        write_folder(folder, accelerator.save_state)
    else:
        if accelerator.is_main_process:
            shutil.rmtree(partial(folder), ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(partial(folder))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            exchange(partial(folder), folder)
    if accelerator.is_main_process:
        for old in saved_states(run)[:-KEEP]:
            shutil.rmtree(old)


def load_state(accelerator: Accelerator, run: Path) -> None:
    """Return to the newest checkpoint of a run, if it has one."""
    kept = saved_states(run)
    if not kept:
        return
    try:
        accelerator.load_state(kept[-1])
    except UserError:
        raise
    except Exception as problem:  # accelerate, torch and safetensors raise their own exceptions
        hint = f"delete it and resume from {kept[-2].name}" if len(kept) > 1 else "there is no earlier one"
        raise UserError(f"the checkpoint {kept[-1]} is damaged ({explain(problem)}); {hint}") from problem


def saved_states(run: Path) -> list[Path]:
    """All complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))
