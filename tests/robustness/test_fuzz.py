"""A sample of the fuzz of all programs (tests/robustness/fuzz/run.py), and whether it would notice."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.programs import ROOT, environment, load_program

sys.path.append(str(ROOT / "tests" / "robustness" / "fuzz"))
import calls as fuzz
import run

SAMPLE, TRAINING = "01_ddpm_mnist/sample.py", "01_ddpm_mnist/train.py"


def test_a_sample_of_all_calls():
    """The same 200 every time; a fault is printed with the number that --replay takes."""
    command = [sys.executable, "tests/robustness/fuzz/run.py", "--n", "200", "--seed", "0"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 200" in done.stdout


def test_every_program_is_called():
    assert run.programs().keys() == fuzz.VALID.keys() | fuzz.REFUSALS.keys()


def test_the_same_seed_makes_the_same_calls():
    programs = {path: load_program(path).Args for path in (SAMPLE, TRAINING, "02_cfg_pokemon/evaluate.py")}
    one, same, other = (fuzz.calls(50, seed, programs, ["nowhere"]) for seed in (0, 0, 1))
    assert one == same != other
    assert {call.must_refuse for call in one} == {True, False} and {call.program for call in one} == programs.keys()


def call(*words: str, must_refuse: bool = False, out: str = "") -> fuzz.Call:
    return fuzz.Call(SAMPLE, words, must_refuse, out, "")


@pytest.mark.parametrize(
    ("made", "code", "err", "verdict"),
    [
        (call(), 2, "warning: a\nerror: b\n", "refused"),
        (call(), 2, "╭─ Invalid choice ─╮\n", "refused"),
        (call(), 0, "", "accepted"),
        (call(out="a.png"), 0, "", "accepted"),
        (call("--list", out="b.png"), 0, "", "accepted"),
        (call(), -9, "drawing:  10%|█    | 1/10 [00:30<04:30, 30 s/it]", "announced"),
        (call(out="b.png"), 0, "", "fault"),
        (call(must_refuse=True), 0, "", "fault"),
        (call(), 1, "error: a\n", "fault"),
        (call(), 2, "", "fault"),
        (call(), 2, "error: a\nerror: b\n", "fault"),
        (call(), 2, "error: a\nand more\n", "fault"),
        (call(), 2, "Traceback (most recent call last)\nKeyError: 'a'\nerror: a\n", "fault"),
        (call(), 139, "", "fault"),
        (call(), -9, "", "fault"),
        (call(), -9, "drawing ...\n", "fault"),
    ],
)
def test_the_verdict(made, code, err, verdict, tmp_path):
    (tmp_path / "a.png").write_text("")
    assert run.verdict_of(made, code, "", err, tmp_path)[0] == verdict


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        (
            "from common.cli import run\nfrom dataclasses import dataclass\n@dataclass(frozen=True)\nclass Args:\n    n: int = 1\ndef main(args):\n    {}['a']\nrun(main, Args)",
            "fault",
        ),
        (
            "from common.errors import UserError\nimport sys\nprint('error: a', file=sys.stderr)\nsys.exit(2)",
            "refused",
        ),
        ("open('/proc/nothing', 'w')", "fault"),
        ("print('done')", "accepted"),
    ],
)
def test_a_call_from_end_to_end(source, verdict, tmp_path, monkeypatch):
    """In a child of this process, as the fuzz does it."""
    (tmp_path / "course").mkdir()
    (tmp_path / "course" / "program.py").write_text(source)
    monkeypatch.setattr(run, "ROOT", tmp_path / "course")
    assert run.attempt(fuzz.Call("program.py", (), False, "", ""), tmp_path, 0).verdict == verdict


def test_nothing_is_written_outside_the_scratch_folder(tmp_path, monkeypatch):
    """Also where root runs the fuzz, to whom everything is allowed."""
    (tmp_path / "course").mkdir()
    outside = Path(tmp_path / "outside.txt")
    (tmp_path / "course" / "program.py").write_text(f"open({str(outside)!r}, 'w').write('a')")
    monkeypatch.setattr(run, "ROOT", tmp_path / "course")
    monkeypatch.setattr(run.os, "geteuid", lambda: 0)
    outcome = run.attempt(fuzz.Call("program.py", (), False, "", ""), tmp_path, 0)
    assert outcome.verdict == "fault" and "PermissionError" in outcome.reason and not outside.exists()
