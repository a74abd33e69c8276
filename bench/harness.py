"""Measurements behind the figures that the course states: python -m bench.NAME, from the project's root.

Rivals are measured in one run, turn by turn (A, B, A, B, ...), and compared by their medians: a machine that is busy with
something else then harms both alike, and the ratio stands.
"""

import os
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.io.files import write_json
from common.training.settings import settle

ROOT = Path(__file__).parent.parent


def turns(rivals: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Median seconds of each rival over `rounds` turns, after one turn that does not count."""
    seconds = {name: [] for name in rivals}
    for _ in range(rounds + 1):
        for name, call in rivals.items():
            began = clock()
            call()
            seconds[name].append(clock() - began)
    middle = {name: statistics.median(each[1:]) or statistics.fmean(each[1:]) for name, each in seconds.items()}
    return {name: value or 1e-9 for name, value in middle.items()}  # a clock may be coarser than a call


def chapter(script: str) -> dict:
    """What a chapter's script defines, without running it. (Folder names such as 01_ddpm_mnist cannot be imported.)"""
    return runpy.run_path(str(ROOT / script))


@contextmanager
def settings_of(script: str, **flags: object) -> Iterator[Any]:
    """The settings of a new run of a chapter's training program on the CPU, with its presets; its folder is a temporary one."""
    program = chapter(script)
    with tempfile.TemporaryDirectory() as folder:
        yield settle(program["Args"](device="cpu", out=Path(folder), **flags), program["PRESETS"], "bench")


class Ran(NamedTuple):
    """What a command used, and what it printed."""

    seconds: float
    mb: float  # peak of its memory
    output: str


def command(*words: object) -> Ran:
    """Run `python words...` from the project's root.

    Linux lets a child inherit the peak of the parent it was forked from: measure memory before importing torch here.
    """
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             encoding="utf-8", errors="replace", env=os.environ | {"PYTHONIOENCODING": "utf-8"})  # fmt: skip
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds, child.returncode = time.perf_counter() - began, os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        last = output.strip().splitlines()[-1:] or ["it printed nothing"]
        raise UserError(f"`python {' '.join(map(str, words))}` failed with exit code {child.returncode} ({last[0]})")
    return Ran(seconds, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), output)


def machine() -> dict[str, object]:
    """Where this was measured: a figure says little without it."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "busy": round(os.getloadavg()[0], 1),  # programs that wanted to run in the last minute, this one included
        "python": platform.python_version(),
    } | {name: version(name) for name in ("torch", "diffusers", "denoising_diffusion_pytorch")}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def report(title: str, figures: dict[str, object], json: Path | None) -> None:
    """Print figures under a title, with the machine, and write both to a JSON file where one is named.

    figures: numbers, texts, or pairs of a number and its standard deviation, by name.
    """
    where = machine()
    print(f"\n{title}\n({', '.join(f'{key} {value}' for key, value in where.items())})\n")
    for name, value in figures.items():
        print(f"  {name:64} {shown(value)}")
    if json:
        write_json(json, {"title": title, "machine": where, "figures": figures})
        print(json)


def shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:.2f} ± {value[1]:.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
