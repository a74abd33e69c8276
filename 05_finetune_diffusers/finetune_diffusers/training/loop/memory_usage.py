"""What a training costs in memory: counted where it can be counted, measured where it cannot.

Weights, gradients, the optimizer's state and the average are tensors, so their bytes are counted. What a step needs
beside them (activations above all) shows only in the most that is held at one moment: on a GPU torch keeps that record
itself, on a CPU the system does for the whole process, Python and its libraries included. `studies/runs.py` shows
several runs in one table.
"""

import re
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

WATCHED = 10  # steps whose memory is watched
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Bytes, and numbers of weights."""

    trained: int = 0  # weights that are trained
    weights: int = 0  # weights of the network, frozen ones too
    weight_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    average_bytes: int = 0
    before: int = 0  # held before the first step
    peak: int = 0  # held at the worst moment of the first steps
    device: str = "cpu"

    @contextmanager
    def watching(self, number: int, device: torch.device) -> Iterator[None]:
        """Record the peak of step `number` of this process (0, 1, ...), if it is one of the first,
        without what is done between steps.
        """
        if number >= WATCHED:
            yield
            return
        if number == 0:
            self.device, self.before = str(device), held(device)
            self.peak = self.before  # Linux counts what is held and its record separately, exact to some pages
        reset_peak(device)
        yield
        self.peak = max(self.peak, peak(device))

    def count(self, weights: Iterable[Tensor], optimizer: torch.optim.Optimizer, averages: Iterable[Tensor]) -> None:
        """What is kept from step to step, once there has been one: before it the optimizer has no state."""
        self.weight_bytes, self.average_bytes = total(weights), total(averages)
        # AdamW keeps two numbers for every weight that it trains
        self.optimizer_bytes = total(
            value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
        )

    @property
    def kept(self) -> int:
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.average_bytes

    def table(self) -> str:
        held = "memory of the process" if self.device == "cpu" else "GPU memory"
        rows = [
            ("weights trained", f"{self.trained:,} of {self.weights:,} ({self.trained / self.weights:.1%})"),
            ("weights", format_bytes(self.weight_bytes)),
            ("gradients", format_bytes(self.gradient_bytes)),
            ("optimizer", format_bytes(self.optimizer_bytes)),
            ("average", format_bytes(self.average_bytes)),
            (f"{held}, before", format_bytes(self.before)),
            (f"{held}, peak", format_bytes(self.peak)),
        ]
        return "\n".join(f"  {name:30} {value}" for name, value in rows)


def time_and_memory(seconds: float, device: torch.device) -> str:
    """The last line of a program that draws and does not train."""
    return f"{seconds:.0f} s in all, at most {format_bytes(peak(device))} of {'memory' if device.type == 'cpu' else 'GPU memory'}"


def format_bytes(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"


def total(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def reset_peak(device: torch.device) -> None:
    """Begin a new record. Where the system does not let us (anything but Linux),
    it is that of the whole process's life.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        with suppress(OSError):
            # see proc_pid_clear_refs(5): the "high water mark" becomes what is held now
            RESET.write_text("5", encoding="ascii")


def held(device: torch.device) -> int:
    """Bytes held now."""
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def peak(device: torch.device) -> int:
    """The most bytes held at one moment since the record began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":  # it keeps no record, but what the allocator took it keeps until empty_cache()
        return torch.mps.driver_allocated_memory()
    # a line of Linux's own account of this process, which `reset_peak` begins anew: "VmHWM:  812345 kB"
    status = STATUS.read_text(encoding="utf-8", errors="replace") if STATUS.exists() else ""
    if found := re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE):
        return 1024 * int(found[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, on a Mac bytes
    return most if sys.platform == "darwin" else 1024 * most
