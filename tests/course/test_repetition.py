"""No six lines of code stand in two places: what two programs or modules share belongs into one of them, or into
`common` (CONTRIBUTING.md says where).
"""

import ast
import tokenize
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import pytest

from helpers.source import CHAPTER_PROGRAMS, PACKAGES, label, tree

SIX = 6  # equal lines in a row that count as a repetition
DELIBERATE = {  # what a chapter writes out in full, beside the version of `common`; a test proves them equal
    ("02_cfg_pokemon/cfg_pokemon/guidance.py", "common/diffusion/guidance.py"): "chapter_02/test_longhand_guidance.py",
    ("04_latent_sd/latent_sd/pipeline.py", "common/models/pipeline.py"): "chapter_04/test_longhand_pipeline.py",
}
TEXT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of a file's lines of code, with one space between two words: without comments, docstrings,
    imports and the declarations of flags, which different programs may well have in common.
    """
    left_out = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom) or is_text(node):
            left_out |= set(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, ast.ClassDef) and (node.name == "Args" or node.name.endswith("Flags")):
            first = min(decorator.lineno for decorator in node.decorator_list)
            left_out |= set(range(first, node.end_lineno + 1))
    words = defaultdict(list)
    with open(path, "rb") as file:
        for token in list(tokenize.tokenize(file.readline))[1:]:  # the first names the encoding
            if token.type not in TEXT and token.start[0] not in left_out:
                words[token.start[0]].append(token.string)
    return [(number, " ".join(found)) for number, found in sorted(words.items())]


def is_text(node: ast.AST) -> bool:
    """A docstring, or the help of a flag."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def repetitions(files: list[Path]) -> dict[tuple[Path, Path], list[tuple[int, int]]]:
    """{(file, other file): numbers of the lines where equal six lines begin}"""
    places = defaultdict(list)
    for path in files:
        lines = code_lines(path)
        for first in range(len(lines) - SIX + 1):
            places[tuple(text for _, text in lines[first : first + SIX])].append((path, lines[first][0]))
    found = defaultdict(list)
    for where in places.values():
        for (path, line), (other, there) in combinations(where, 2):
            if path != other:
                found[path, other].append((line, there))
    return found


@pytest.fixture(scope="module")
def ours() -> dict[tuple[str, str], list[tuple[int, int]]]:
    """The repetitions in the chapters and in `common`."""
    found = repetitions(sorted({*PACKAGES, *CHAPTER_PROGRAMS}))
    return {(label(path), label(other)): lines for (path, other), lines in found.items()}


def test_repetitions_are_found(tmp_path):
    """However the lines are indented, and whatever comments and docstrings stand between them."""
    a, b, c = (tmp_path / name for name in ("a.py", "b.py", "c.py"))
    lines = [f"x{i} = f({i})" for i in range(SIX)]
    a.write_text('"""One."""\nimport math\n' + "\n".join(lines) + "\n")
    b.write_text('def g():\n    """Two."""\n    # three\n    ' + "\n\n    ".join(lines) + "\n")
    c.write_text("\n".join(lines[:-1]) + "\n")
    assert repetitions([a, b, c]) == {(a, b): [(3, 4)]}


def test_no_six_lines_stand_in_two_files(ours):
    assert [
        f"{path}:{line} and {other}:{there}"
        for (path, other), lines in ours.items()
        for line, there in lines
        if (path, other) not in DELIBERATE
    ] == []


def test_what_is_repeated_on_purpose_is_repeated(ours):
    """No entry outlives its repetition, and each names the test that proves the two equal."""
    tests = Path(__file__).parents[1]
    assert {pair: test for pair, test in DELIBERATE.items() if pair not in ours or not (tests / test).exists()} == {}
