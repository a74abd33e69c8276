"""The code that a learner hands in: a Python file, or a notebook, whose code cells are run in their order."""

import codecs
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

TIMERS = ("%%time", "%%timeit", "%%capture", "%%prun")  # magics that run the rest of their cell as Python


class UnreadableSubmission(Exception):
    """What the file is instead of Python code, in words for the learner."""


def read_code(path: Path) -> Iterator[CodeType]:
    """The file as compiled code: one piece, or one for each code cell of a notebook.
    Raises UnreadableSubmission or SyntaxError.

    A piece of a notebook has the file name "PATH, code cell 3", which tracebacks show.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode("utf-16", errors="replace").encode()
    if zipfile.is_zipfile(io.BytesIO(data)):
        raise UnreadableSubmission("it is a zip archive; unpack it, and hand in the Python file or the notebook in it")
    if data.lstrip().startswith(b"{") and b'"nbformat"' in data:
        for number, source in enumerate(code_cells(data), 1):
            yield compile(without_magics(source), f"{path}, code cell {number}", "exec")
        return
    if b"\0" in data:
        raise UnreadableSubmission("it is not text; hand in a Python file (.py) or a notebook (.ipynb)")
    try:
        yield compile(data, str(path), "exec")
    except (UnicodeDecodeError, SyntaxError) as problem:  # as SyntaxError where the bytes are within a string
        if isinstance(problem, SyntaxError) and "'utf-8' codec" not in problem.msg:
            raise
        raise UnreadableSubmission(
            "it is not Python code in UTF-8; save it as UTF-8, or hand in a notebook (.ipynb)"
        ) from problem


def code_cells(data: bytes) -> list[str]:
    import nbformat

    try:
        cells = nbformat.reads(data.decode("utf-8-sig"), as_version=4).cells
    # nbformat's own errors, and whatever it meets in a file that only looks like a notebook
    except Exception as problem:
        raise UnreadableSubmission(
            f"it is a damaged notebook (nbformat, Jupyter's reader, ends with {type(problem).__name__}); save it again"
        ) from problem
    return [cell.source for cell in cells if cell.cell_type == "code"]


def without_magics(source: str) -> str:
    """A cell without what only IPython understands (%matplotlib inline, !pip, %%bash),
    with every line at its place.
    """
    first, _, rest = source.lstrip("\n").partition("\n")
    if first.startswith("%%"):
        source = "\n" * source.index(first) + "\n" + rest if first.split()[0] in TIMERS else ""
    try:
        compile(source, "cell", "exec")
        return source
    except (SyntaxError, ValueError):  # only now, for a line of Python may begin with % too
        return re.sub(r"^([ \t]*)([%!?].*|.*\?)$", r"\1pass", source, flags=re.MULTILINE)


def place_of(filename: str | None, line: int | None, path: Path) -> str | None:
    """A line of the submission in words, or None for a line of another file."""
    if filename == str(path):
        return f"line {line}"
    _, found, cell = (filename or "").partition(f"{path}, ")
    return f"line {line} of {cell}" if found else None
