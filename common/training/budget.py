"""The budget of a training, in steps or in minutes, and signals that end it early."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from common.errors import UserError


class Budget:
    """How much of the steps or minutes is used.
    The main process's clock counts for all, and a signal to any process stops all.

    seconds      of training so far, earlier parts of a resumed run included
    interrupted  a signal asked for the end
    """

    def __init__(self, steps: int | None, minutes: float | None, seconds: float, accelerator: Accelerator):
        if (steps is None) == (minutes is None):
            raise UserError("give the budget either in steps or in minutes")
        self.steps, self.minutes, self.seconds = steps, minutes, seconds
        self.accelerator, self.interrupted = accelerator, False
        self.start = time.monotonic() - seconds

    def used(self, steps: float) -> float:
        """The part of the budget that is used after so many steps; 1 is all of it."""
        return steps / self.steps if self.steps is not None else self.seconds / (60 * (self.minutes or 0))

    def update(self) -> None:
        """Read the clock, and tell the other processes."""
        self.seconds = time.monotonic() - self.start
        if self.accelerator.num_processes > 1:
            seconds = self.seconds if self.accelerator.is_main_process else 0.0
            both = torch.tensor([seconds, float(self.interrupted)], device=self.accelerator.device)
            self.seconds, interrupted = self.accelerator.reduce(both, "sum").tolist()
            self.interrupted = interrupted > 0

    @contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """Within this context a first signal sets `interrupted`; a second one ends the process at once.

        Signals are Ctrl-C; SIGTERM, which `kill`, `docker stop`, systemd and Slurm send; and SIGHUP, which a closed
        terminal sends. SIGHUP stays ignored where it is ignored (nohup). In a thread Python takes no handlers, so
        nothing is changed there.
        """
        before: dict[int, Any] = {}  # kind of signal: the handler to put back

        def put_back() -> None:
            while before:
                signal.signal(*before.popitem())

        def handle(kind: int, _: object) -> None:
            self.interrupted = True
            if kind not in (signal.SIGINT, signal.SIGTERM):  # the terminal is gone: printing to it would fail
                nothing = os.open(os.devnull, os.O_WRONLY)
                for fd in terminals:
                    os.dup2(nothing, fd)
            put_back()

        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        kinds: list[int] = [signal.SIGINT, signal.SIGTERM]
        if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
            kinds.append(hangup)
        terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        if threading.current_thread() is threading.main_thread():
            before |= {kind: signal.signal(kind, handle) for kind in kinds}
        try:
            yield
        finally:
            put_back()
