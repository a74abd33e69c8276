"""The code that a learner hands in: a Python file, or a notebook, whose code cells are run in their order.

Also what can be said of it without running it (`survey`).
"""

import ast
import codecs
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import CodeType

TIMERS = ("%%time", "%%timeit", "%%capture", "%%prun")  # magics that run the rest of their cell as Python


class UnreadableSubmission(Exception):
    """What the file is instead of Python code, in words for the learner."""


def read_code(path: Path, data: bytes | None = None) -> Iterator[CodeType]:
    """The file as compiled code: one piece, or one for each code cell of a notebook.
    Raises UnreadableSubmission or SyntaxError.

    A piece of a notebook has the file name "PATH, code cell 3", which tracebacks show.
    """
    for text, name in read_sources(path, data):
        try:
            yield compile(text, name, "exec")
        except (UnicodeDecodeError, SyntaxError) as problem:  # as SyntaxError where the bytes are within a string
            if isinstance(problem, SyntaxError) and "'utf-8' codec" not in (problem.msg or ""):
                raise
            raise UnreadableSubmission(
                "it is not Python code in UTF-8; save it as UTF-8, or hand in a notebook (.ipynb)"
            ) from problem


def steps(path: Path, data: bytes) -> Iterator[CodeType | SyntaxError]:
    """The code in pieces that can fail one by one: each statement at the top of the file or of a cell.

    A function that is not valid Python is left out, and its SyntaxError comes in its place.
    """
    import __future__

    flags = 0
    for text, name in read_sources(path, data):
        for attempt in range(20):
            try:
                tree = ast.parse(text, name)
                break
            except (SyntaxError, ValueError, UnicodeDecodeError) as problem:
                if not isinstance(problem, SyntaxError) or "'utf-8' codec" in (problem.msg or ""):
                    raise UnreadableSubmission(
                        "it is not Python code in UTF-8; save it as UTF-8, or hand in a notebook (.ipynb)"
                    ) from problem
                yield problem
                shorter = without_block(text, problem.lineno) if attempt < 19 else None
                if shorter is None:
                    tree = ast.Module([], [])
                    break
                text = shorter
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                flags |= sum(getattr(__future__, each.name).compiler_flag for each in statement.names)
                continue
            yield compile(ast.Module([statement], []), name, "exec", flags=flags, dont_inherit=True)


def without_block(text: str | bytes, line: int | None) -> str | None:
    """A source without the statement at its top level that a line belongs to. None where there is no such line."""
    try:
        lines = (text if isinstance(text, str) else text.decode("utf-8-sig")).splitlines()
    except UnicodeDecodeError:
        return None
    if line is None or not 1 <= line <= len(lines):
        return None

    def begins(number: int) -> bool:
        return bool(re.match(r"[^\s#)\]}]", lines[number]))

    first = line - 1
    while first > 0 and not begins(first):
        first -= 1
    while first > 0 and lines[first - 1].startswith("@"):
        first -= 1
    last = line
    while last < len(lines) and not begins(last):
        last += 1
    return "\n".join(["" if first <= k < last else each for k, each in enumerate(lines)]) + "\n"


def read_sources(path: Path, data: bytes | None = None) -> Iterator[tuple[str | bytes, str]]:
    """(source, file name) of each piece. data: the bytes of the file, if they are known."""
    data = path.read_bytes() if data is None else data
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode("utf-16", errors="replace").encode()
    if zipfile.is_zipfile(io.BytesIO(data)):
        raise UnreadableSubmission("it is a zip archive; unpack it, and hand in the Python file or the notebook in it")
    if data.lstrip().startswith(b"{") and b'"nbformat"' in data:
        for number, source in enumerate(code_cells(data), 1):
            yield without_magics(source), f"{path}, code cell {number}"
        return
    if b"\0" in data:
        raise UnreadableSubmission("it is not text; hand in a Python file (.py) or a notebook (.ipynb)")
    yield data, str(path)


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


# --------------------------------------------------------------------------------------------------- without running it

REACHING_OUT = {  # modules that no exercise needs
    "sys", "os", "inspect", "importlib", "ctypes", "gc", "threading", "multiprocessing", "subprocess", "socket", "common",
    "builtins", "traceback", "pathlib", "shutil", "signal", "urllib", "requests", "pickle", "marshal", "runpy", "pkgutil",
    "concurrent", "asyncio", "atexit", "faulthandler", "resource", "sandbox", "unittest", "mmap",
}  # fmt: skip
CALLS = {"exec", "eval", "compile", "open", "__import__", "globals", "input", "breakpoint", "setattr", "delattr"}
ATTRIBUTES = {
    "__globals__", "__code__", "__closure__", "__builtins__", "__subclasses__", "__torch_function__", "_getframe",
    "f_back", "f_globals", "f_locals", "gi_frame", "tb_frame", "__loader__", "__spec__", "__reduce__", "modules",
}  # fmt: skip
SUSPICIOUS = (ast.Import, ast.ImportFrom, ast.Attribute, ast.FunctionDef, ast.Call, ast.Assign, ast.AugAssign)
FOREIGN = {"torch", "np", "numpy", "math", "F", "nn", "Tensor"}


def survey(path: Path, data: bytes) -> dict:
    """What a file says without being run.

    flags     places where it does something that no exercise needs, "line 3: import os", for a teacher to look at
    digests   {function: a number for its statements}, the same for the same statements in any layout
    outlines  {function: its words, with one name for all variables}, for comparison by `likeness`
    """
    found, digests, words = [], {}, {}
    for tree, name in trees(path, data):
        for statement in tree.body:
            bodies = [walk(each) for each in statements(statement)] if isinstance(statement, ast.FunctionDef) else []
            nodes = [*walk(statement, "body"), *chain(*bodies)] if bodies else walk(statement)
            for node in nodes:
                if isinstance(node, SUSPICIOUS) and (what := unusual(node)):
                    line = getattr(node, "lineno", 0)
                    found.append((name, line, f"{place_of(name, line, path)}: {what}"))
            if isinstance(statement, ast.FunctionDef):
                digests[statement.name], words[statement.name] = digest(bodies), outline(nodes, bodies)
    return {"flags": [text for *_, text in sorted(found)][:20], "digests": digests, "outlines": words}


def trees(path: Path, data: bytes) -> Iterator[tuple[ast.Module, str]]:
    """(syntax tree, file name) of each piece that can be parsed."""
    try:
        for text, name in read_sources(path, data):
            try:
                yield ast.parse(text), name
            except (SyntaxError, ValueError, UnicodeDecodeError):
                continue
    except UnreadableSubmission:
        return


def statements(function: ast.FunctionDef) -> list[ast.stmt]:
    return function.body[1 if ast.get_docstring(function) is not None else 0 :]


def walk(node: ast.AST, without: str = "") -> list[ast.AST]:
    """A node and all below it, level by level, as ast.walk() yields them. without: a field of the node to leave out"""
    nodes, fields = [node], [name for name in node._fields if name != without]
    for each in nodes:  # which grows
        for name in fields if each is node else each._fields:
            value = getattr(each, name, None)
            if isinstance(value, ast.AST):
                nodes.append(value)
            elif isinstance(value, list):
                nodes += [item for item in value if isinstance(item, ast.AST)]
    return nodes


def digest(bodies: list[list[ast.AST]]) -> int:
    """A number for a function's statements, each with all nodes below it, without regard to their layout."""
    parts: list[str] = []
    for node in chain(*bodies):  # the number of children tells where each belongs
        parts.append(type(node).__name__)
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                parts.append(str(len(value)) if any(isinstance(item, ast.AST) for item in value) else repr(value))
            else:
                parts.append("." if isinstance(value, ast.AST) else repr(value))
    return zlib.crc32(" ".join(parts).encode())


def outline(nodes: list[ast.AST], bodies: list[list[ast.AST]]) -> list[str]:
    """The words of a function's statements, in which variables have no names. nodes: the function and all below it"""
    local = {node.arg for node in nodes if isinstance(node, ast.arg)}
    local |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    words = []
    for node in chain(*bodies):
        word = type(node).__name__
        if isinstance(node, ast.Name):
            word = "_" if node.id in local else node.id
        elif isinstance(node, ast.Attribute):
            word = node.attr
        elif isinstance(node, ast.Constant):
            word = repr(node.value)[:40]
        words.append(word)
    return words[:2000]


def likeness(one: list[str], other: list[str]) -> float:
    """How much two functions are alike, from 0 to 1: the share of runs of four words that both have."""
    runs = [{tuple(words[k : k + 4]) for k in range(max(len(words) - 3, 1))} for words in (one, other)]
    return len(runs[0] & runs[1]) / max(len(runs[0] | runs[1]), 1)


def unusual(node: ast.AST) -> str:
    """What is unusual about a node of a syntax tree; "" if nothing is."""
    if isinstance(node, ast.Import):
        names = [each.name for each in node.names if each.name.split(".")[0] in REACHING_OUT]
        return f"import {', '.join(names)}" if names else ""
    if isinstance(node, ast.ImportFrom):
        module = node.module or "."
        return f"from {module} import" if module.split(".")[0] in REACHING_OUT else ""
    if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
        return f".{node.attr}"
    if isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__torch_function__", "__eq__"):
        return f"def {node.name}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
        return f"{node.func.id}(...)"
    targets = (
        node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    )
    for target in targets:
        while isinstance(target, ast.Attribute):
            if isinstance(target.value, ast.Name) and target.value.id in FOREIGN:
                return f"assignment to an attribute of {target.value.id}"
            target = target.value
    return ""
