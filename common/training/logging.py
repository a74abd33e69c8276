"""What a training run writes while it goes: metrics.csv, TensorBoard events, and a progress bar."""

import contextlib
import csv
import errno
from collections.abc import Generator, Iterator
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from common.errors import UserError, explain
from common.io.files import write_json
from common.io.progress import refresh_interval
from common.io.tables import read_csv, write_csv
from common.training.loop import State
from common.training.optimization import Diverged

BINS = 10  # the noise range in tenths: loss_0 is the loss on nearly clean images, loss_9 on nearly pure noise
COLUMNS = ["step", "loss", "lr", "grad_norm", "images_per_second", "seconds", *(f"loss_{i}" for i in range(BINS))]


def logged(states: Iterator[State], out: Path, total: int | None, quiet: bool = False) -> Generator[State, None, None]:
    """Pass every State through, writing a row of metrics.csv for it.
    total: optimizer steps, where known in advance.
    """
    log = None
    try:
        for state in states:
            log = log or RunLog(out, state.step - 1, total, quiet)
            try:
                log.write(state)
            except OSError as problem:
                advice = "make room, then" if problem.errno == errno.ENOSPC else "when that is mended,"
                raise UserError(
                    f"cannot write {log.path} ({explain(problem)}); {advice} go on with --resume {out}"
                ) from problem
            yield state
    except Diverged as problem:
        write_json(out / "diverged.json", {"message": str(problem)})
        raise
    finally:
        if log:
            log.close()  # also ends the line of the progress bar, before an error is printed


class Due:
    """Whether a sample picture is due: every `steps` steps, or at each tenth of the budget."""

    def __init__(self, steps: int | None):
        self.steps = steps
        self.tenth: int | None = None  # tenths of the budget that were done at the last call

    def __call__(self, state: State) -> bool:
        if self.steps is not None:
            return state.step % self.steps == 0
        before = self.tenth
        # a resumed run: what was due after its last checkpoint may not have been done
        if before is None and state.step > 1:
            before = int(10 * state.progress * (state.step - 1) / state.step + 1e-9)
        self.tenth = tenth = int(10 * state.progress + 1e-9)
        return before is not None and tenth > before


class RunLog:
    def __init__(self, out: Path, first_step: int, total: int | None, quiet: bool):
        self.path = out / "metrics.csv"
        keep_rows_until(self.path, first_step)
        (out / "diverged.json").unlink(missing_ok=True)  # a resumed run has got past it
        try:
            self.file = open(self.path, "a", newline="", encoding="utf-8")
        except OSError as problem:
            raise UserError(f"cannot write {self.path} ({explain(problem)})") from problem
        self.csv = csv.writer(self.file)
        if self.file.tell() == 0:
            self.csv.writerow(COLUMNS)
        self.board = SummaryWriter(str(out), purge_step=first_step + 1)
        self.total = total
        self.bar = tqdm(
            total=total or 100,  # percent, where the budget is in minutes
            initial=first_step if total else 0,
            bar_format=None if total else "{l_bar}{bar}| {elapsed}{postfix}",
            mininterval=refresh_interval(),
            dynamic_ncols=True,
            disable=quiet,
        )

    def write(self, state: State) -> None:
        rate = state.images / max(state.took, 1e-9)
        rounded = f"{state.lr:.6g}", f"{state.grad_norm:.6g}", f"{rate:.1f}", f"{state.seconds:.3f}"
        self.csv.writerow([state.step, repr(state.loss), *rounded, *loss_by_noise(state)])
        self.file.flush()  # so that a checkpoint never knows of steps that the log does not
        self.board.add_scalar("loss", state.loss, state.step)
        self.board.add_scalar("lr", state.lr, state.step)
        self.bar.set_postfix(
            {"step": state.step, "loss": f"{state.loss:.4f}", "images/s": f"{rate:.0f}"}, refresh=False
        )
        self.bar.update((state.step if self.total else int(100 * min(1.0, state.progress))) - self.bar.n)

    def close(self) -> None:
        for file in (self.file, self.board):
            with contextlib.suppress(OSError):  # a full disk, which writing a row has reported
                file.close()
        self.bar.refresh()
        self.bar.close()


def loss_by_noise(state: State) -> list[str]:
    """Mean error in each tenth of the noise range; empty where the batch had no image there."""
    tenth = (state.terms.u * BINS).long()
    total = torch.zeros(BINS).index_add_(0, tenth.cpu(), state.terms.per_sample.float().cpu())
    number = torch.bincount(tenth.cpu(), minlength=BINS)
    return [f"{t / n:.6g}" if n else "" for t, n in zip(total.tolist(), number.tolist(), strict=True)]


def keep_rows_until(path: Path, step: int) -> None:
    """After `kill -9` the log may hold steps beyond the checkpoint, and half a row: cut both off."""
    if not path.exists():
        return
    write_csv(path, [row for row in read_csv(path) if row["step"].isdigit() and int(row["step"]) <= step], COLUMNS)
