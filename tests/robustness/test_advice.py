"""Error messages advise flags that exist: in a chapter, those of its own programs,
or of another chapter that the message names.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from helpers.programs import ROOT

FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?![\w=-])")
OF_OTHER_PROGRAMS = {"no-deps"}  # of pip
CHAPTERS = sorted(folder for folder in ROOT.glob("0[0-9]_*") if folder.is_dir())


@cache
def trees(folder: Path) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}


@cache
def flags(folder: Path) -> set[str]:
    """The names of all fields of all classes, which the flags are made from, and those given to tyro.conf.arg."""
    fields = {
        node.target.id
        for tree in trees(folder).values()
        for cls in ast.walk(tree)
        if isinstance(cls, ast.ClassDef)
        for node in cls.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    given = {
        keyword.value.value
        for tree in trees(folder).values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "arg"
        for keyword in node.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
    }
    return {name.replace("_", "-") for name in fields} | given


def advised(folder: Path) -> set[tuple[str, str, str]]:
    """(flag, file and line, sentence) for each flag that the sentence of a UserError names in full."""
    found = set()
    for path, tree in trees(folder).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                words = " ".join(
                    part.value
                    for part in ast.walk(node)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                )
                found |= {(flag, f"{path.relative_to(ROOT)}:{node.lineno}", words) for flag in FLAG.findall(words)}
    return found


COMMON = flags(ROOT / "common")


@pytest.mark.parametrize("folder", [*CHAPTERS, ROOT / "common"], ids=lambda folder: folder.name)
def test_flags_in_messages_exist(folder):
    known = COMMON | OF_OTHER_PROGRAMS | (flags(folder) if folder in CHAPTERS else set().union(*map(flags, CHAPTERS)))
    found = advised(folder)
    assert found, "the test looks at something"
    others = {chapter.name: flags(chapter) for chapter in CHAPTERS}
    wrong = {
        where: flag
        for flag, where, words in found
        if flag not in known.union(*(others[name] for name in others if name in words))
    }
    assert wrong == {}
