"""--threads: every program that computes on a device has it, one place applies it, and a resumed run keeps it."""

import os
import sys
from dataclasses import dataclass, fields, replace

import pytest
import torch

from common import cli
from common.io.files import read_json, write_json
from common.training.settings import resumed, with_folder
from helpers.programs import ROOT, TRAIN, load_program

PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("0*_*", "common")
    for path in ROOT.glob(f"{folder}/**/*.py")
    if "run(main, Args)" in path.read_text(encoding="utf-8")
)


@pytest.fixture(autouse=True)
def threads_are_put_back(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_with_a_device_has_threads_beside_it(program):
    names = [field.name for field in fields(load_program(program).Args)]
    if "device" in names:
        assert names[names.index("device") + 1] == "threads"


def test_most_programs_have_a_device():
    assert sum("device" in {field.name for field in fields(load_program(program).Args)} for program in PROGRAMS) > 25


@dataclass(frozen=True)
class Args:
    threads: int | None = None


def run_with(monkeypatch, *flags: str) -> list:
    """What main sees: torch's threads, and the variable that processes started here would read."""
    seen = []
    monkeypatch.setattr(sys, "argv", ["program", *flags])
    monkeypatch.setattr("warnings.showwarning", None)  # cli.run replaces it; this puts it back after the test

    def main(_: Args) -> None:
        seen.extend([torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]])

    cli.run(main, Args)
    return seen


def test_threads_are_applied_before_main(monkeypatch):
    before = torch.get_num_threads()
    assert run_with(monkeypatch) == [before, str(before)]
    assert run_with(monkeypatch, "--threads", "3") == [3, "3"]


@pytest.mark.parametrize("given", ["0", "-1", "1025", "99999999999999999999"])
def test_numbers_that_are_refused(monkeypatch, capsys, given):
    with pytest.raises(SystemExit) as stop:
        run_with(monkeypatch, f"--threads={given}")
    assert stop.value.code == 2
    assert "--threads must be" in capsys.readouterr().err


def settled(tmp_path, **given):
    """Settings of a new run of chapter 1, as its folder holds them."""
    args = with_folder(
        load_program(TRAIN).Args(data="digits", channels=(8, 16), steps=1, out=tmp_path / "run", **given), "chapter"
    )
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", {field.name: getattr(args, field.name) for field in fields(args)})
    return args


def test_a_run_records_its_threads(tmp_path, trained_run):
    assert settled(tmp_path).threads == torch.get_num_threads()
    assert read_json(trained_run / "config.json")["threads"] == torch.get_num_threads()


def test_a_resumed_run_keeps_its_threads_and_says_so(tmp_path, capsys):
    args = settled(tmp_path, threads=torch.get_num_threads() + 1)
    torch.set_num_threads(args.threads - 1)
    resume = replace(load_program(TRAIN).Args(), resume=tmp_path / "run")
    assert resumed(resume).threads == torch.get_num_threads() == args.threads
    assert f"began with {args.threads} threads and goes on with as many" in capsys.readouterr().out
    resumed(resume)
    assert capsys.readouterr().out == ""  # nothing differs now


def test_other_threads_for_a_resumed_run(tmp_path, capsys):
    args = settled(tmp_path)
    resume = replace(load_program(TRAIN).Args(), resume=tmp_path / "run", threads=args.threads + 2)
    assert resumed(resume).threads == torch.get_num_threads() == args.threads + 2
    assert "its weights may differ in the last digits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cores", "busy_percent", "threads"), [(2, 50.0, 1), (2, 100.0, 1), (8, 30.0, 6), (8, 2.0, None), (1, 100.0, None)]
)
def test_by_default_only_free_cores_are_used(monkeypatch, capsys, cores, busy_percent, threads):
    import psutil

    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(psutil, "cpu_count", lambda: cores)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: busy_percent)
    assert cli.free_threads() == threads
    assert bool(capsys.readouterr().err) == (threads is not None), "a choice that costs speed is told"


def test_the_users_number_of_threads_wins(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert cli.free_threads() is None
