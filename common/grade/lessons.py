"""Lessons: lesson.py is the source, and lesson.ipynb is made from it, with the outputs of a real run.

The Chinese lesson, lesson.zh.py and lesson.zh.ipynb, has the same cells: `code_differences` compares the code.
"""

import ast
import base64
import copy
import io
import re
import sys
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Literal, TypeGuard, get_args

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
CHINESE = re.compile(r"[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef]")  # characters and their punctuation
NUMBER, FORMULA = re.compile(r"\d+(?:\.\d+)?"), re.compile(r"\$[^$]+\$")
FIELD = re.compile(r"(?<!\{)\{([\w.\[\]]*(?:![rsa])?(?::[^{}()]*)?)\}")  # of str.format
WIDTH = re.compile(r":[ <>^]{0,2}([+-]?)\d*(?=[,.a-z%]|$)")

Language = Literal["en", "zh"]


def source_of(folder: Path, language: Language = "en") -> Path:
    """lesson.py or lesson.zh.py"""
    return folder / ("lesson.py" if language == "en" else f"lesson.{language}.py")


def notebook_of(folder: Path, language: Language = "en") -> Path:
    """lesson.ipynb or lesson.zh.ipynb"""
    return source_of(folder, language).with_suffix(".ipynb")


def read_source(folder: Path, language: Language = "en") -> NotebookNode:
    """lesson.py as a notebook without outputs."""
    path = source_of(folder, language)
    if not path.exists():
        raise UserError(f"{path} is missing")
    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        # not random, so that a rebuilt notebook differs only where it should
        cell.id, cell.metadata = (f"cell-{number:02d}", {})
    return notebook


def read_notebook(folder: Path, language: Language = "en") -> NotebookNode:
    """lesson.ipynb"""
    path = notebook_of(folder, language)
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it with: {command(folder, language)}") from None
    except OSError:  # the command line says what a file system refuses
        raise
    except Exception as problem:  # nbformat's own error, JSON's, and more
        raise UserError(
            f"{path} is no notebook ({explain(problem)}); make it again with: {command(folder, language)}"
        ) from problem


def command(folder: Path, language: Language = "en") -> str:
    name = folder.relative_to(COURSE).as_posix() if folder.is_relative_to(COURSE) else folder.name
    name = name[:2] if name[:2].isdigit() else name
    return f"python -m common.grade.notebook build {name}" + f" --lang {language}" * (language != "en")


# ------------------------------------------------------------------------------------------------------------ building


def execute(
    notebook: NotebookNode, folder: Path, seconds: int = SECONDS, start: Path | None = None, source: Path | None = None
) -> NotebookNode:
    """Run all cells in a fresh kernel that starts in the folder `start`, by default the chapter's. Messages name the
    source, by default the chapter's lesson.py.

    Raises UserError for the first cell that fails, or takes longer than `seconds`.
    """
    source = source or source_of(folder)
    runner = ExecutePreprocessor(
        timeout=seconds, startup_timeout=SECONDS, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    try:
        notebook, _ = runner.preprocess(notebook, {"metadata": {"path": str(start or folder)}})
    except CellExecutionError as problem:
        failed = next(c for c in notebook.cells if any(o.output_type == "error" for o in c.get("outputs", [])))
        raise UserError(
            f"a cell of {source} fails with {problem.ename} ({problem.evalue}):\n{failed.source}"
        ) from problem
    except CellTimeoutError as problem:
        raise UserError(f"a cell of {source} takes longer than {seconds} s") from problem
    except DeadKernelError as problem:
        raise UserError(
            f"the Python process that ran the cells of {source} ended; was there enough memory?"
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
                kind, content = lighter(data.pop("image/png"))
                data[kind] = content
            if "text/plain" in data:
                data["text/plain"] = re.sub(r" at 0x[0-9A-Fa-f]+", "", data["text/plain"])
    return errors


def lighter(png: str) -> tuple[str, str]:
    """Kind and content, in base64, of a smaller file of the same picture: notebooks are read on the web and kept in git.

    PNG with 256 colours, which keeps a picture that has no more as it is; large grids of images, which have more, become
    JPEG where that is smaller.
    """
    file = Image.open(io.BytesIO(base64.b64decode(png)))
    if file.format != "PNG":  # an animated GIF under a PNG's name
        return "image/png", png
    picture = file.convert("RGB")
    few_colours, as_jpeg = io.BytesIO(), io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(few_colours, "PNG", optimize=True)
    picture.save(as_jpeg, "JPEG", quality=75, optimize=True)
    if picture.getcolors(256) is None and len(as_jpeg.getvalue()) < 0.9 * min(
        len(few_colours.getvalue()), 3 * len(png) // 4
    ):
        return "image/jpeg", base64.b64encode(as_jpeg.getvalue()).decode()
    return "image/png", min(png, base64.b64encode(few_colours.getvalue()).decode(), key=len)


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


def build(folder: Path, language: Language = "en") -> Path:
    """Execute lesson.py and write lesson.ipynb beside it."""
    notebook = execute(read_source(folder, language), folder, source=source_of(folder, language))
    for text in tidy(notebook):
        print(f"not kept: {text.rstrip()}", file=sys.stderr)
    if paths := machine_paths(notebook):
        raise UserError(f"the lesson prints {paths[0]}, a path of this machine; let it print the file's name alone")
    return write(notebook, folder, language)


def write(notebook: NotebookNode, folder: Path, language: Language) -> Path:
    path = notebook_of(folder, language)
    write_atomically(path, lambda file: file.write((nbformat.writes(notebook) + "\n").encode()))
    return path


def sync(folder: Path, language: Language = "en") -> Path:
    """Write lesson.py's cells into lesson.ipynb and keep the outputs,
    which is right as long as no code has changed.
    """
    notebook = read_source(folder, language)
    ours, built = (
        [cell for cell in some.cells if cell.cell_type == "code"]
        for some in (notebook, read_notebook(folder, language))
    )
    for cell, executed in zip_longest(ours, built):
        if cell is None or executed is None or meaning(cell.source) != meaning(executed.source):
            name = source_of(folder, language).name
            changed = f"{folder.name}: the code of {name} has changed ({first_line(cell or executed)})"
            raise UserError(f"{changed}, so its outputs must be made anew: {command(folder, language)}")
        cell.outputs, cell.execution_count = executed.outputs, executed.execution_count
    return write(notebook, folder, language)


def first_line(cell: NotebookNode) -> str:
    return (cell.source.splitlines() or [""])[0]


def meaning(source: str) -> str:
    """What a cell does: its code without comments, docstrings and layout."""
    try:
        code = ast.parse(source)
    except SyntaxError:  # a magic command of IPython
        return source
    for node in ast.walk(code):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(code)


# ------------------------------------------------------------------------------------------------------------ checking


def check(folder: Path, language: Language = "en") -> None:
    """Raises UserError where lesson.ipynb does not hold lesson.py's cells, executed once in order."""
    ours, built = read_source(folder, language).cells, read_notebook(folder, language).cells
    source, notebook, again = (
        source_of(folder, language).name,
        notebook_of(folder, language).name,
        command(folder, language),
    )
    for number, (a, b) in enumerate(zip_longest(ours, built), 1):
        if a is None or b is None or (a.cell_type, a.source) != (b.cell_type, b.source):
            place = f"from cell {number} on ({first_line(a or b)})"
            raise UserError(f"{folder.name}: {source} and {notebook} differ {place}; {again}")
    code = [cell for cell in built if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        raise UserError(f"{folder.name}: {notebook} was not executed from top to bottom; {again}")


def run_action(action: str, chapter: str, language: Language = "en") -> None:
    """Build, sync or check the lesson of a chapter, or of a folder such as docs/debugging, and print what was done."""
    name = source_of(Path(), language).name
    folder = COURSE / chapter if (COURSE / chapter / name).exists() else chapter_folder(chapter, name)
    if action == "check":
        check(folder, language)
        source, notebook = source_of(folder, language).name, notebook_of(folder, language).name
        print(f"{folder.name}: {notebook} holds the cells of {source}, executed")
    else:
        path = build(folder, language) if action == "build" else sync(folder, language)
        print(f"{path.relative_to(COURSE)} ({path.stat().st_size / 1e6:.2f} MB)")


# ----------------------------------------------------------------------------------------------- two languages, one code


def code_differences(english: str, chinese: str) -> list[str]:
    """What the code of a Chinese cell changes beside comments and words for a reader, each difference in a line.

    A string without Chinese may become one with Chinese that has the same numbers, formulas and {fields}. An f-string may
    also have its fields in another order. The widths of fields may differ, because a Chinese character is wide. A
    string that is Chinese in English, such as a prompt, stays. "en" may become "zh".
    """
    try:
        trees = [ast.parse(source) for source in (english, chinese)]
    except SyntaxError:  # a magic command of IPython
        return [] if english == chinese else [f"{english!r} has become {chinese!r}"]
    return list(_differences(*trees))


def _differences(a: object, b: object) -> Iterator[str]:
    """The differences of two syntax trees, or of two values in them."""
    if _is_text(a) and _is_text(b):
        if ast.dump(a) != ast.dump(b) and not _is_translation(a, b):
            yield f"line {b.lineno}: {ast.unparse(a)} has become {ast.unparse(b)}"
    elif isinstance(a, ast.AST) and isinstance(b, ast.AST):
        if type(a) is not type(b):
            yield f"line {getattr(b, 'lineno', '?')}: {ast.unparse(a)} has become {ast.unparse(b)}"
            return
        for name in a._fields:
            yield from _differences(getattr(a, name), getattr(b, name))
    elif isinstance(a, list) and isinstance(b, list):
        for one, other in zip_longest(a, b):
            if one is None or other is None:
                place = getattr(one or other, "lineno", "?")
                yield f"line {place}: {ast.unparse(one or other)} is {'new' if one is None else 'missing'}"
            else:
                yield from _differences(one, other)
    elif type(a) is not type(b) or a != b:
        yield f"{a!r} has become {b!r}"


def _is_text(node: object) -> TypeGuard[ast.Constant | ast.JoinedStr]:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_translation(english: ast.expr, chinese: ast.expr) -> bool:
    """Whether a string says in Chinese what the other says in English, as far as code can tell."""
    before, after = _words(english), _words(chinese)
    if (before, after) == get_args(Language):  # label_language("en"), label_language("zh")
        return True
    kept = CHINESE.findall(before)
    if before != after and (not CHINESE.search(after) or (kept and isinstance(english, ast.Constant))):
        return False
    if not set(kept) <= set(CHINESE.findall(after)):  # an f-string may mix English words and Chinese data
        return False
    marks = [[sorted(NUMBER.findall(FIELD.sub("", text))), sorted(FORMULA.findall(text))] for text in (before, after)]
    if isinstance(english, ast.Constant) and isinstance(
        chinese, ast.Constant
    ):  # str.format fills fields in their order
        fields = [[WIDTH.sub(r"\1", field) for field in FIELD.findall(text)] for text in (before, after)]
    else:
        fields = [sorted(_fields(english)), sorted(_fields(chinese))]
    return marks[0] == marks[1] and fields[0] == fields[1]


def _words(text: ast.expr) -> str:
    """The words of a string or f-string, those inside of its fields included."""
    if isinstance(text, ast.FormattedValue):
        return "\0" + "".join(
            _words(node) for node in ast.walk(text.value) if isinstance(node, ast.Constant) and _is_text(node)
        )
    if isinstance(text, ast.JoinedStr):
        return "".join(_words(part) for part in text.values)
    return str(getattr(text, "value", ""))


def _fields(text: ast.expr) -> list[str]:
    """The fields of an f-string: the code of each without the words in it, and its format without the width."""
    found = []
    for part in getattr(text, "values", []):
        if isinstance(part, ast.FormattedValue):
            code = ast.dump(_Wordless().visit(copy.deepcopy(part.value)))
            form = ":" + ast.unparse(part.format_spec)[2:-1] if part.format_spec else ""
            found.append(f"{code} !{part.conversion} " + WIDTH.sub(r"\1", form))
    return found


class _Wordless(ast.NodeTransformer):
    """Replaces strings by a mark, so that two expressions can be compared without them."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) else node
