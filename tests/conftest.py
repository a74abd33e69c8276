"""Fixtures of all tests: a program called as on the command line, and one tiny model trained once."""

import sys
from pathlib import Path

import pytest

from helpers.programs import TINY, TRAIN, load_program, run_main


@pytest.fixture
def command_line(monkeypatch, capsys):
    """command_line(program, *flags) runs a program through common.cli, in this process:
    (exit code, stdout, stderr).
    """

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
