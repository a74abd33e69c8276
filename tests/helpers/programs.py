"""What the tests share: programs of the course as modules and as processes."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import common  # noqa: F401 - its settings must precede torch

# isort: split
import torch

ROOT = Path(__file__).resolve().parents[2]
TRAIN, SAMPLE = "01_ddpm_mnist/train.py", "01_ddpm_mnist/sample.py"
TINY = [
    "--data",
    "digits",
    "--size",
    "8",
    "--channels",
    "8",
    "16",
    "--batch-size",
    "8",
    "--device",
    "cpu",
    "--precision",
    "no",
    "--sampler",
    "ddim:4",
]

# as `python 01_ddpm_mnist/train.py` does: a program finds the package beside it
for chapter in sorted(ROOT.glob("0[1-9]_*")):
    sys.path.append(str(chapter))

torch.set_num_threads(1)  # networks this small only wait for each other's threads
os.environ["OMP_NUM_THREADS"] = (
    "1"  # also for processes started here, and so that no program chooses by how busy the machine is
)


def load_program(path: str) -> ModuleType:
    """A program of a chapter as a module, for instance "01_ddpm_mnist/train.py":
    chapters have programs of the same names.
    """
    name = "program_" + path.removesuffix(".py").replace("/", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def run_main(program: str, *flags: object) -> None:
    """A program's main with these flags, in this process; a UserError comes through."""
    from accelerate.state import AcceleratorState

    from common import cli

    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate remembers the first settings of a process
    module = load_program(program)
    module.main(cli.parse(module.Args, [str(flag) for flag in flags]))


def run_program(*command: object, timeout: float = 600) -> subprocess.CompletedProcess:
    """Run `python command...` from the project's folder and wait for it."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
