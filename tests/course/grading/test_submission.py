"""What learners hand in: Python files in any state, notebooks, and what is neither."""

import io
import json
import zipfile

import pytest

from common.errors import UserError
from common.grade.checks import explain, load
from common.grade.grader import exercises_of, grade, submission_of
from common.grade.sandbox.source import without_magics


def notebook(*cells: str, **changes) -> str:
    """Markdown between the code, sources as lists of lines: as Jupyter writes them."""
    code = [
        {
            "cell_type": "code",
            "id": f"c{i}",
            "metadata": {},
            "outputs": [],
            "execution_count": None,
            "source": cell.splitlines(keepends=True),
        }
        for i, cell in enumerate(cells)
    ]
    words = {"cell_type": "markdown", "id": "words", "metadata": {}, "source": ["# My answers"]}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [words, *code]} | changes)


def said(path, content: str | bytes) -> str:
    """What the grader says of a file when it is loaded."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        load(path, "submission")
    except BaseException as problem:
        return explain(problem, path)
    return ""


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("exercises.py", "x = 1")
    return file.getvalue()


def test_a_notebook_is_graded_as_its_code(tmp_path):
    solutions = (exercises_of("01") / "solutions.py").read_text(encoding="utf-8")
    first, second = solutions.split("\n\n\ndef ", 1)
    path = tmp_path / "answers.ipynb"
    path.write_text(
        notebook(
            "%matplotlib inline\n!pip list", first, "%%time\ndef " + second, "%%bash\nls", "alpha_bars?\ndisplay(1)"
        ),
        encoding="utf-8",
    )
    results = list(grade(exercises_of("01"), path))
    assert len(results) == 19 and {result.message for result in results} == {""}
    for name in ("answers.py", "answers.py.txt"):  # whatever its name
        assert callable(load(path.rename(tmp_path / name), "submission").alpha_bars)
        path = tmp_path / name


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["x = 1", "\n1 / 0"], "your code stopped in line 2 of code cell 2 with ZeroDivisionError: division by zero"),
        (
            ["def f():\n    return y", "%time\nf()"],
            "your code stopped in line 2 of code cell 1 with NameError: name 'y' is not defined",
        ),
        (["x = 1", "%matplotlib inline\ndef f(:\n"], "line 2 of code cell 2: invalid syntax"),
        (["x = 1", "assert x == 2, 'words'"], "your code stopped in line 1 of code cell 2 with AssertionError: words"),
    ],
)
def test_the_cell_that_fails_is_named(tmp_path, cells, message):
    assert said(tmp_path / "answers.ipynb", notebook(*cells)) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            notebook("x = 1")[:-40],
            "it is a damaged notebook (nbformat, Jupyter's reader, ends with NotJSONError); save it again",
        ),
        (
            notebook(cells=5),
            "it is a damaged notebook (nbformat, Jupyter's reader, ends with TypeError); save it again",
        ),
        (archive(), "it is a zip archive; unpack it, and hand in the Python file or the notebook in it"),
        (b"\x89PNG\r\n\x1a\n\0\0", "it is not text; hand in a Python file (.py) or a notebook (.ipynb)"),
        (b"%PDF-1.4\n%\xe2\xe3\n", "it is not Python code in UTF-8; save it as UTF-8, or hand in a notebook (.ipynb)"),
        (
            "x = '番茄'\n".encode("gbk"),
            "it is not Python code in UTF-8; save it as UTF-8, or hand in a notebook (.ipynb)",
        ),
        ("x = 1\ndef f(:\n", "line 2: invalid syntax"),
        ("x = 1\n1 / 0\n", "your code stopped in line 2 with ZeroDivisionError: division by zero"),
        ("x = 1\r\n".encode("utf-16"), ""),
        ("x = '番茄'\r\n".encode("utf-8-sig"), ""),
        ("# -*- coding: gbk -*-\nx = '番茄'\n".encode("gbk"), ""),
        (b"", ""),
    ],
)
def test_what_a_file_is_instead_of_python(tmp_path, content, message):
    assert said(tmp_path / "answers.py", content) == message


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("x = (7\n     % 4)", "x = (7\n     % 4)"),  # Python, which is never changed
        ("if True:\n    %time f()\n    !ls", "if True:\n    pass\n    pass"),
        ("f?", "pass"),
        ("%%timeit -n 1\nx = 1", "\nx = 1"),
        ("%%html\n<b>", ""),
        ("", ""),
    ],
)
def test_magics_are_left_out_and_lines_stay_where_they_are(source, left):
    assert without_magics(source) == left


def test_a_path_that_holds_no_file(tmp_path):
    with pytest.raises(UserError, match="there is no file .*mine.py; name the Python file or the notebook"):
        submission_of(tmp_path / "mine.py", tmp_path)
    with pytest.raises(UserError, match="is a folder; name the Python file or the notebook"):
        submission_of(tmp_path, tmp_path)
