"""Lessons: lesson.py is the source, and lesson.ipynb is made from it, with the outputs of a real run."""

import ast
import base64
import io
import re
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path

import jupytext
import nbformat
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert.preprocessors import CellExecutionError, ExecutePreprocessor
from nbformat import NotebookNode
from PIL import Image

from common.errors import UserError, explain
from common.grade.chapter import COURSE, chapter_folder
from common.io.files import write_atomically

SECONDS = 1800  # time limit of a cell


def read_source(folder: Path) -> NotebookNode:
    """lesson.py as a notebook without outputs."""
    notebook = jupytext.read(folder / "lesson.py", fmt="py:percent")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        # not random, so that a rebuilt notebook differs only where it should
        cell.id, cell.metadata = (f"cell-{number:02d}", {})
    return notebook


def read_notebook(folder: Path) -> NotebookNode:
    """lesson.ipynb"""
    path = folder / "lesson.ipynb"
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it with: {command(folder)}") from None
    except OSError:  # the command line says what a file system refuses
        raise
    except Exception as problem:  # nbformat's own error, JSON's, and more
        raise UserError(
            f"{path} is no notebook ({explain(problem)}); make it again with: {command(folder)}"
        ) from problem


def command(folder: Path) -> str:
    return f"python -m common.grade.notebook build {folder.name[:2]}"


# ------------------------------------------------------------------------------------------------------------ building


def execute(notebook: NotebookNode, folder: Path, seconds: int = SECONDS, start: Path | None = None) -> NotebookNode:
    """Run all cells in a fresh kernel that starts in the folder `start`, by default the chapter's.

    Raises UserError for the first cell that fails, or takes longer than `seconds`.
    """
    runner = ExecutePreprocessor(
        timeout=seconds, startup_timeout=SECONDS, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    try:
        notebook, _ = runner.preprocess(notebook, {"metadata": {"path": str(start or folder)}})
    except CellExecutionError as problem:
        failed = next(c for c in notebook.cells if any(o.output_type == "error" for o in c.get("outputs", [])))
        raise UserError(
            f"a cell of {folder / 'lesson.py'} fails with {problem.ename} ({problem.evalue}):\n{failed.source}"
        ) from problem
    except CellTimeoutError as problem:
        raise UserError(f"a cell of {folder / 'lesson.py'} takes longer than {seconds} s") from problem
    except DeadKernelError as problem:
        raise UserError(
            f"the Python process that ran the cells of {folder / 'lesson.py'} ended; was there enough memory?"
        ) from problem
    notebook.metadata["language_info"] = {"name": "python"}  # without the version of this machine's Python
    return notebook


def tidy(notebook: NotebookNode) -> list[str]:
    """Remove from the outputs what no reader needs. Returns what the cells wrote to stderr, which is removed, too."""
    errors = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        errors += [output.text for output in cell.outputs if output.get("name") == "stderr"]
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for data in (output.data for output in cell.outputs if "data" in output):
            if "image/png" in data:
                data.pop("image/jpeg", None)  # PIL offers every picture twice
                data["image/png"] = lighter(data["image/png"])
            if "text/plain" in data:
                data["text/plain"] = re.sub(r" at 0x[0-9A-Fa-f]+", "", data["text/plain"])
    return errors


def lighter(png: str) -> str:
    """The same picture in 256 colours, in base64: notebooks are read on the web and kept in git."""
    picture, file = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    if picture.format != "PNG":  # an animated GIF under a PNG's name
        return png
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return min(png, base64.b64encode(file.getvalue()).decode(), key=len)


def machine_paths(notebook: NotebookNode) -> list[str]:
    """Words in the outputs that hold a path of this machine; a lesson prints none."""
    roots = {str(COURSE), str(Path.home()), sys.prefix, tempfile.gettempdir()}
    pattern = re.compile("|".join(re.escape(root) + r"[/\\]\S*" for root in sorted(roots, key=len, reverse=True)))
    return [found for text in output_texts(notebook) for found in pattern.findall(text)]


def output_texts(notebook: NotebookNode) -> list[str]:
    """All text in the outputs: what cells print, and their values."""
    texts = []
    for output in (o for cell in notebook.cells for o in cell.get("outputs", [])):
        texts += [output.get("text", "")] + [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return texts


def build(folder: Path) -> Path:
    """Execute lesson.py and write lesson.ipynb beside it."""
    notebook = execute(read_source(folder), folder)
    for text in tidy(notebook):
        print(f"not kept: {text.rstrip()}", file=sys.stderr)
    if paths := machine_paths(notebook):
        raise UserError(f"the lesson prints {paths[0]}, a path of this machine; let it print the file's name alone")
    return write(notebook, folder)


def write(notebook: NotebookNode, folder: Path) -> Path:
    path = folder / "lesson.ipynb"
    write_atomically(path, lambda file: file.write((nbformat.writes(notebook) + "\n").encode()))
    return path


def sync(folder: Path) -> Path:
    """Write lesson.py's cells into lesson.ipynb and keep the outputs,
    which is right as long as no code has changed.
    """
    notebook = read_source(folder)
    ours, built = (
        [cell for cell in some.cells if cell.cell_type == "code"] for some in (notebook, read_notebook(folder))
    )
    for cell, executed in zip_longest(ours, built):
        if cell is None or executed is None or meaning(cell.source) != meaning(executed.source):
            changed = f"{folder.name}: the code of lesson.py has changed ({first_line(cell or executed)})"
            raise UserError(f"{changed}, so its outputs must be made anew: {command(folder)}")
        cell.outputs, cell.execution_count = executed.outputs, executed.execution_count
    return write(notebook, folder)


def first_line(cell: NotebookNode) -> str:
    return (cell.source.splitlines() or [""])[0]


def meaning(source: str) -> str:
    """What a cell does: its code without comments and layout."""
    try:
        return ast.dump(ast.parse(source))
    except SyntaxError:  # a magic command of IPython
        return source


# ------------------------------------------------------------------------------------------------------------ checking


def check(folder: Path) -> None:
    """Raises UserError where lesson.ipynb does not hold lesson.py's cells, executed once in order."""
    ours, built = read_source(folder).cells, read_notebook(folder).cells
    for number, (a, b) in enumerate(zip_longest(ours, built), 1):
        if a is None or b is None or (a.cell_type, a.source) != (b.cell_type, b.source):
            place = f"from cell {number} on ({first_line(a or b)})"
            raise UserError(f"{folder.name}: lesson.py and lesson.ipynb differ {place}; {command(folder)}")
    code = [cell for cell in built if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        raise UserError(f"{folder.name}: lesson.ipynb was not executed from top to bottom; {command(folder)}")


def run_action(action: str, chapter: str) -> None:
    """Build, sync or check the lesson of a chapter, and print what was done."""
    folder = chapter_folder(chapter, "lesson.py")
    if action == "check":
        check(folder)
        print(f"{folder.name}: lesson.ipynb holds the cells of lesson.py, executed")
    else:
        path = build(folder) if action == "build" else sync(folder)
        print(f"{path.relative_to(COURSE)} ({path.stat().st_size / 1e6:.2f} MB)")
