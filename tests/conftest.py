"""Fixtures of all tests: a program called as on the command line, and one tiny model trained once."""

import os
import sys
from pathlib import Path

import pytest

from common.grade.marking.messages import language
from helpers.programs import TINY, TRAIN, load_program, run_main

# the tests that take longest, longest first; whatever else is tested then fills both processes to the end
LONGEST = ["test_lesson_runs", "course/test_grade.py", "chapter_05", "chapter_06", "robustness", "grading"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, tests that share fixtures go to the same process, and the longest start first."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    for item in items:
        path = item.path.relative_to(Path(__file__).parent)
        group = item.nodeid if "test_lesson_runs" in item.nodeid else path.parts[0]
        if group in ("common", "course", "robustness", "demo"):  # no fixtures in common
            group = path.as_posix()
        item.add_marker(pytest.mark.xdist_group(group.replace("/", ".")))
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))


if language() == "zh":  # the tests of the grader read its English messages
    os.environ["LC_ALL"] = "C.UTF-8"


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
