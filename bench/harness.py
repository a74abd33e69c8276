"""What the benchmarks share: interleaved timing, programs run as a user runs them, and the report.

Candidates are measured in one run, turn by turn (A, B, A, B, ...), and compared by their medians. A machine that is
busy with other work then slows all of them, and the ratio stays meaningful.
"""

import os
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.io.files import write_json
from common.training.settings import settle

ROOT = Path(__file__).parents[1]
CHAPTER_1 = ROOT / "01_ddpm_mnist"
TRAIN, SAMPLE = "01_ddpm_mnist/train.py", "01_ddpm_mnist/sample.py"

if str(CHAPTER_1) not in sys.path:
    # as `python 01_ddpm_mnist/train.py` does, so that its package ddpm_mnist can be imported
    sys.path.append(str(CHAPTER_1))


# ------------------------------------------------------------------------------------------------------------ timing


def interleaved_medians(
    candidates: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of a call of each candidate over `rounds` turns, after one turn of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, call in candidates.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    medians = {name: statistics.median(each[1:]) or statistics.fmean(each[1:]) for name, each in seconds.items()}
    return {name: median or 1e-9 for name, median in medians.items()}  # a clock may be coarser than a call


# -------------------------------------------------------------------------------------------- programs of the course


def load_program(script: str) -> dict[str, Any]:
    """What a chapter's program defines, without running it. (A folder named 01_ddpm_mnist cannot be imported.)"""
    return runpy.run_path(str(ROOT / script))


@contextmanager
def training_flags(**flags: object) -> Iterator[Any]:
    """The flags of a new run of chapter 1's train.py on the CPU, completed by its presets;
    its run folder is a temporary one.
    """
    program = load_program(TRAIN)
    with tempfile.TemporaryDirectory() as folder:
        yield settle(program["Args"](device="cpu", out=Path(folder), **flags), program["PRESETS"], "bench")


class ProgramRun(NamedTuple):
    seconds: float
    peak_mb: float  # largest memory in use
    output: str


def run_python(*arguments: object) -> ProgramRun:
    """Run `python arguments...` from the project's root. Raises UserError where it fails.

    On Linux a child starts with the peak memory of the process that forked it,
    so measure memory before importing torch here.
    """
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    output = child.stdout.read() if child.stdout else ""
    _, status, usage = os.wait4(child.pid, 0)
    seconds, child.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        last = output.strip().splitlines()[-1:] or ["it printed nothing"]
        raise UserError(
            f"`python {' '.join(map(str, arguments))}` failed with exit code {child.returncode} ({last[0]})"
        )
    return ProgramRun(seconds, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), output)


# ------------------------------------------------------------------------------------------------------------ report


def machine() -> dict[str, object]:
    """The machine and the versions that a figure depends on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),  # processes that wanted to run in the last minute, this one included
        "python": platform.python_version(),
    } | {name: version(name) for name in ("torch", "diffusers", "denoising_diffusion_pytorch")}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def report(title: str, figures: Mapping[str, object], json: Path | None) -> None:
    """Print figures under a title, with the machine, and write both to a JSON file if one is named.

    figures  numbers, texts, or pairs of a number and its standard deviation, by name
    """
    details = machine()
    print(f"\n{title}\n({', '.join(f'{key} {value}' for key, value in details.items())})\n")
    for name, value in figures.items():
        print(f"  {name:64} {as_text(value)}")
    if json:
        write_json(json, {"title": title, "machine": details, "figures": figures})
        print(json)


def as_text(value: object) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:.2f} ± {value[1]:.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
