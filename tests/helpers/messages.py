"""The strings of the grader and of the exercises that learners may see, as templates, and the English that is left in a text.

python tests/helpers/messages.py 04      what chapter 4's catalogue lacks, ready to be filled in, and what is stale in it
"""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[k]) for k in (1, 2)]

from common.grade.chapter import COURSE
from common.grade.marking.messages import HIDDEN, NAME, SLOT, plain

GRADE = COURSE / "common" / "grade"
SPOKEN = (
    "program",
    "grader",
    "stubs",
    "checks",
    "exercise_panels",
    "marking/judge",
    "sandbox/guest",
    "sandbox/source",
    "sandbox/protocol/*",
)
OTHERS = (
    "chapter",
    "marking/gradebook",
    "marking/hand_ins",
    "sandbox/*",
)  # some of whose sentences are translated; of SPOKEN, all


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def templates(*paths: Path) -> set[str]:
    """All strings of files but docstrings. An f-string, or a sum of strings, is one template with numbered slots."""
    found: set[str] = set()
    for path in paths:
        visit(hints(tree(path)) if path.name == "hints.py" else tree(path), found)
    return {plain(each) for each in found}


def parts_of(texts: set[str]) -> set[str]:
    """What the grader cuts out of its texts: "E" of "E: {2}" where {2} is empty, and "cell {2}" of "{1}, cell {2}"."""
    return {re.sub(r": \{\d+\}$", "", each) for each in texts} | {each.removeprefix("{1}, ") for each in texts}


def visit(node: ast.AST, found: set[str]) -> None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if pieces := pieces_of(node):
        slots = [piece for piece in pieces if not isinstance(piece, str)]
        numbers = iter(range(1, len(slots) + 1))
        found.add("".join(piece if isinstance(piece, str) else f"{{{next(numbers)}}}" for piece in pieces))
        for slot in slots:
            visit(slot, found)
        return
    if isinstance(node, ast.keyword) and node.arg in ("loc", "textcoords"):
        return  # a name of matplotlib
    for child in ast.iter_child_nodes(node):
        visit(child, found)


def pieces_of(node: ast.AST) -> list[str | ast.AST]:
    """Texts, and the expressions between them, of a string, an f-string or a sum; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [each.value for each in node.values]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = pieces_of(node.left), pieces_of(node.right)
        return (left or [node.left]) + (right or [node.right]) if left or right else []
    return []


def hints(module: ast.Module) -> ast.Module:
    """hints.py without the third step of each hint, which is code."""
    steps = [node for node in ast.walk(module) if isinstance(node, ast.Tuple) and len(node.elts) == 3]
    return ast.Module([ast.Expr(ast.List(each.elts[:2])) for each in steps if all(map(pieces_of, each.elts))], [])


def is_sentence(template: str) -> bool:
    """Whether a string must be translated, or named as one that is not: it has two words side by side."""
    text = SLOT.sub("1", template)
    return bool(re.search(r"(?<![\w.])[A-Za-z]{2,}[,:;]? +[a-z]{2,}|\b(and|or|of|the)\b .", text))


def sources(folder: Path | None) -> dict[str, tuple[set[str], set[str]]]:
    """{catalogue: (what it must have, what it may have)} for a chapter's exercises/, or for the grader itself."""
    if folder is None:
        must, may = (
            templates(*(path for each in names for path in GRADE.glob(f"{each}.py"))) for names in (SPOKEN, OTHERS)
        )
        return {NAME: (must, must | parts_of(must) | may)}
    shown = templates(*(folder / f"{name}.py" for name in ("test_exercises", "hints", "panels")))
    hidden = templates(folder / "checks.py") - shown
    return {NAME: (shown, shown), HIDDEN: (hidden, hidden)}


def catalogue_files(folder: Path | None) -> dict[str, Path]:
    return {name: (folder or GRADE / "marking") / name.format("zh") for name in sources(folder)}


def differences(folder: Path | None) -> dict[str, tuple[list[str], list[str]]]:
    """{catalogue: (sentences that it lacks, keys that no source has)}"""
    known: set[str] = set() if folder is None else set(read_all(catalogue_files(None)[NAME]))
    found = {}
    for name, (must, may) in sources(folder).items():
        keys = set(read_all(catalogue_files(folder)[name]))
        missing = {each for each in must - known if is_sentence(each)} - keys
        found[name] = (sorted(missing), sorted(keys - may | keys & known))
    return found


def read_all(path: Path) -> list[str]:
    """The keys of a catalogue, and the strings that it names as no messages."""
    content = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [plain(each) for each in [*content.get("same", []), *content.get("messages", {})]]


# ---------------------------------------------------------------------------------------------------- is it Chinese?

CODE = re.compile(r"`[^`]*`|'[^']*'|\"[^\"]*\"|--?[\w-]+|\b\w+(?:\.\w+)*\([^()]*\)")
WORDS = """
    the this that these those it its you your they their he an each every which what where when why how of to from
    with by at be been are was were has have had do does did can cannot should must may would will here there than
    then so but because and or no on one two three four per up out off too more most less least only other another
    same both all any some use used using uses give gives given gave make makes made take takes took taken get
    gets got need needs expected returned returns draw drawn drew add added subtract divide divided multiply
    multiplied wrong right missing instead first last image images noise step steps level levels network picture
    pictures mean value values result number numbers shape
"""  # of sentences, which no code and no name has
ENGLISH = re.compile(
    rf"(?<![\w.\[(=_'\"-])(?:[A-Za-z]{{2,}}[,:;]? +[a-z]{{2,}}|{'|'.join(WORDS.split())})(?![\w.\])(=_'\"-]| *[=*/+-])"
)


def english_left(text: str, names: frozenset[str] = frozenset()) -> list[str]:
    """English words of a text that should be Chinese: two words side by side, or a word that no code has.

    names: words that may be there
    """
    found = ENGLISH.findall(CODE.sub(" # ", text))
    return [each for each in found if not names & set(re.split(r"\W+", each))]


@cache
def names_of(folder: Path | None) -> frozenset[str]:
    """The functions of an exercises folder, and their arguments."""
    if folder is None:
        return frozenset()
    found = {node.arg for node in ast.walk(tree(folder / "solutions.py")) if isinstance(node, ast.arg)}
    return frozenset(found | {node.name for node in tree(folder / "solutions.py").body if hasattr(node, "name")})


if __name__ == "__main__":
    chapter = next(COURSE.glob(f"{sys.argv[1]}*/exercises"), None) if len(sys.argv) > 1 else None
    for catalogue, (missing, stale) in differences(chapter).items():
        print(f"# {catalogue_files(chapter)[catalogue]}: {len(missing)} are missing, {len(stale)} are stale")
        for each in missing:
            print('"' + each.replace("\\", "\\\\").replace('"', '\\"') + '" = ""')
        for each in stale:
            print(f"# stale: {each}")
