"""What the tests share: chapter programs as modules and as processes, and one tiny model trained once."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import common  # noqa: F401 - its settings must precede torch

# isort: split
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
TRAIN, SAMPLE = "01_ddpm_mnist/train.py", "01_ddpm_mnist/sample.py"
TINY = ["--data", "digits", "--size", "8", "--channels", "8", "16", "--batch", "8",
        "--device", "cpu", "--precision", "no", "--sampler", "ddim:4"]  # fmt: skip

torch.set_num_threads(1)  # networks this small only wait for each other's threads
os.environ["OMP_NUM_THREADS"] = "1"  # also for processes started here, and so that no program chooses by how busy the machine is


def load_program(path: str) -> ModuleType:
    """A program of a chapter as a module, for instance "01_ddpm_mnist/train.py" (its folder is no Python name)."""
    name = "program_" + path.removesuffix(".py").replace("/", "_")
    if name not in sys.modules:
        file = ROOT / path
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))  # as `python path` does: a program imports its neighbours by name
        spec = importlib.util.spec_from_file_location(name, file)
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
    return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def command_line(monkeypatch, capsys):
    """command_line(program, *flags) runs a program through common.cli, in this process: (exit code, stdout, stderr)."""

    def call(program: str, *flags: object) -> tuple[int, str, str]:
        from accelerate.state import AcceleratorState

        from common import cli

        module = load_program(program)
        monkeypatch.setattr(sys, "argv", [program, *map(str, flags)])
        monkeypatch.setattr("warnings.showwarning", None)  # cli.run replaces it; this puts it back after the test
        AcceleratorState._reset_state(reset_partial_state=True)
        capsys.readouterr()
        code = 0
        try:
            cli.run(module.main, module.Args)
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """A run folder of a few steps on the embedded digits. Read only: copy what you want to change."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_main(TRAIN, *TINY, "--steps", 12, "--save-every", 5, "--out", folder)
    return folder
