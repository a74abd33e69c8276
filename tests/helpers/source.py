"""The project's own source files, read as syntax trees: what the tests of structure and style look at."""

import ast
from functools import cache
from pathlib import Path

from helpers.programs import ROOT

CHAPTERS = {
    folder.name: next(each.parent.name for each in folder.glob("*/__init__.py"))
    for folder in sorted(ROOT.glob("0[1-9]_*"))
}  # folder: package
# top-level folders that may appear beside the sources
NOT_OURS = {".venv", ".git", "runs", "build", "data", "__pycache__"}


def own_files(pattern: str) -> list[Path]:
    """Files below the project's folder that match a pattern, without environments and results."""
    return [path for path in sorted(ROOT.rglob(pattern)) if not _is_foreign(path.relative_to(ROOT))]


def _is_foreign(path: Path) -> bool:
    return path.parts[0] in NOT_OURS or any(part.startswith(".") or part == "__pycache__" for part in path.parts[:-1])


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def label(path: Path) -> str:
    """A path as the messages of a test show it."""
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    """common/io/files.py -> common.io.files; 01_ddpm_mnist/ddpm_mnist/trainer.py -> ddpm_mnist.trainer;
    01_ddpm_mnist/train.py -> 01_ddpm_mnist:train.
    """
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    if parts[0] in CHAPTERS:
        chapter, *parts = parts
        # programs and exercises are imported by bare name
        return ".".join(parts) if parts[0] == CHAPTERS[chapter] else f"{chapter}:{parts[-1]}"
    return ".".join(parts)


def imported(node: ast.AST) -> set[str]:
    """The modules that one import statement names, with `from a import b` as both a and a.b;
    of any other node, none.
    """
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"relative import in line {node.lineno}"
        return {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    return set().union(*(imported(node) for node in ast.walk(tree(path))))


def imports_at_top(path: Path) -> set[str]:
    """The modules that are imported as soon as the file is."""
    return set().union(*(imported(node) for node in tree(path).body))


def is_program(path: Path) -> bool:
    """Whether a file is started from the command line: it ends with the call run(main, Args)."""
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in tree(path).body
    )


SOURCES = own_files("*.py")
# common, and the package of each chapter:
SHARED = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "common"]
PACKAGES = SHARED + [
    path
    for path in SOURCES
    if len(path.relative_to(ROOT).parts) > 2 and path.relative_to(ROOT).parts[1] in CHAPTERS.values()
]
CHAPTER_PROGRAMS = [path for path in SOURCES if path.parent.name in CHAPTERS and not path.name.startswith("lesson.")]
# without the scripts that write pages and pictures of docs/
PROGRAMS = [path for path in SOURCES if path.relative_to(ROOT).parts[0] not in ("tests", "docs") and is_program(path)]
