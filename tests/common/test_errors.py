"""What fails outside the program becomes one sentence and exit code 2; a fault of the program keeps its traceback."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError, enough_memory, sentence
from common.io.files import read_json, write_atomically, write_json
from helpers.programs import SAMPLE, TRAIN, load_program


def failure(number: int, name: str | None = "a.png") -> OSError:
    return OSError(number, os.strerror(number), name)


def caught(call) -> BaseException:
    with pytest.raises(BaseException) as problem:  # noqa: PT011 - any kind
        call()
    return problem.value


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (
            failure(errno.EACCES),
            "cannot open or write a.png (Permission denied); change its permissions, or name another",
        ),
        (
            failure(errno.ENOSPC, None),
            "cannot open or write a file (No space left on device); make room on the disk, or choose another place",
        ),
        (failure(errno.EISDIR), "cannot open or write a.png (Is a directory)"),
        (
            failure(errno.EACCES, "\udcff"),
            r"cannot open or write \udcff (Permission denied); change its permissions, or name another",
        ),
        (
            MemoryError("Unable to allocate 8 TiB"),
            "there is not enough memory (Unable to allocate 8 TiB); lower --batch-size",
        ),
        (failure(errno.ENOMEM), "there is not enough memory (Cannot allocate memory); lower --batch-size"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "there is not enough memory (CUDA out of memory); lower --batch-size",
        ),
        (
            OverflowError("int too large to convert to float"),
            "a number is too large to compute with (int too large to convert to float)",
        ),
        (
            UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed"),
            r"a text holds characters that are no Unicode (\udcff); write it again",
        ),
    ],
)
def test_sentence(problem, said):
    assert sentence(problem, "--batch-size") == said


@pytest.mark.parametrize(
    "call",
    [
        lambda: open("/" + "a" * 300),
        lambda: open("a" * 300 + "/b", "w"),
        lambda: os.mkdir("/"),
        lambda: open("/", "wb"),
        lambda: torch.empty(2**45),
        lambda: torch.empty(2**40, 2**40),
        lambda: np.empty(2**45),
        lambda: np.empty(2**62),
        lambda: float(10**400),
        lambda: json.loads("[" * 100_000),
        lambda: "\udcff".encode(),
    ],
)
def test_what_fails_outside_has_a_sentence(call):
    said = sentence(caught(call))
    assert said and "\n" not in said


def test_a_fault_of_the_program_has_none():
    def endless():
        endless()

    for problem in (
        KeyError("a"),
        TypeError("a"),
        ValueError("a"),
        RuntimeError("shape"),
        AssertionError(),
        OSError("no errno"),
        IndexError(),
        failure(errno.ECONNREFUSED),
        UnicodeEncodeError("cp1252", "番", 0, 1, "character maps to <undefined>"),
        caught(endless),
    ):
        assert sentence(problem) is None, problem


def test_enough_memory():
    with pytest.raises(UserError, match=r"not enough memory on cpu \(.*\); lower --n"), enough_memory("cpu", "--n"):
        torch.empty(2**45)
    with pytest.raises(RuntimeError, match="shape"), enough_memory("cpu", "--n"):
        torch.zeros(2, 3).view(5, 5)


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (
            failure(errno.EACCES),
            2,
            "error: cannot open or write a.png (Permission denied); change its permissions, or name another\n",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            2,
            "lower --batch-size, --size, --n\n",
        ),
    ],
)
def test_a_program_ends_with_the_sentence(command_line, monkeypatch, problem, code, said):
    def main(args):
        raise problem

    main.__module__ = load_program(SAMPLE).__name__
    monkeypatch.setattr(load_program(SAMPLE), "main", main)
    got, out, err = command_line(SAMPLE)
    assert got == code and err.endswith(said) and err.count("\n") == 1 and not out


def test_a_fault_of_the_program_keeps_its_traceback(command_line, monkeypatch):
    def main(args):
        raise KeyError("a")

    main.__module__ = load_program(TRAIN).__name__
    monkeypatch.setattr(load_program(TRAIN), "main", main)
    with pytest.raises(KeyError):
        command_line(TRAIN)


# ------------------------------------------------------------------------------------------------------- writing files


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no /dev/full")
def test_a_device_is_written_to_and_stays_a_device(tmp_path):
    with pytest.raises(UserError, match=r"cannot write /dev/full \(No space left on device\)"):
        write_json(Path("/dev/full"), {"a": 1})
    write_json(Path("/dev/null"), {"a": 1})
    # the system finds no such path, but a folder would be made on the way
    with pytest.raises(UserError, match=r"/dev/full \(No space left on device\)"):
        write_json(tmp_path / "x" / ("../" * 20) / "dev" / "full", {"a": 1})
    assert Path("/dev/full").is_char_device() and Path("/dev/null").is_char_device()
    assert not list(Path("/dev").glob("*.partial"))


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_json(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "link.json").is_symlink() and read_json(tmp_path / "real.json") == {"a": 1}


@pytest.mark.parametrize("name", [".", "folder", "a" * 300])
def test_what_cannot_be_written(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(UserError, match="is a folder, where a file is to be written|File name too long"):
        write_atomically(Path(name), lambda file: file.write(b"a"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_an_input_is_never_written_over(command_line, monkeypatch, tmp_path):
    """Also where its name is made up only later."""

    def main(args):
        write_atomically(args.model / "a.png", lambda file: file.write(b"new"))

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.chdir(tmp_path)
    module = load_program("04_latent_sd/sample.py")
    main.__module__ = module.__name__
    monkeypatch.setattr(module, "main", main)
    code, _, err = command_line("04_latent_sd/sample.py", "a", "--model", ".", "--image", "a.png")
    assert (
        code == 2 and "a.png would be written over, but --image reads it; choose another place for the output" in err
    )
    assert (tmp_path / "a.png").read_bytes() == b"old"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_json_that_is_nested_too_deeply(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="a.json is nested too deeply to be read as JSON"):
        read_json(tmp_path / "a.json")


# ------------------------------------------------------------------------------------------------ answers of a learner


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("import os\nos._exit(0)", "SystemExit"),
        ("exit()", "SystemExit"),
        ("while True:\n    pass", "your code did not end within 0.2 seconds"),
    ],
)
def test_an_answer_cannot_end_the_drawing(tmp_path, command_line, monkeypatch, answer, said):
    monkeypatch.setattr("common.grade.exercise_panels.SECONDS", 0.2)
    (tmp_path / "mine.py").write_text(answer)
    code, out, err = command_line(
        "common/grade/show_exercises.py", "01", "--submission", tmp_path / "mine.py", "--out", tmp_path / "a.png"
    )
    assert code == 0 and said in out and (tmp_path / "a.png").exists(), err
    assert os._exit.__name__ == "_exit"
