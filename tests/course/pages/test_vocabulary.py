"""Words that the prose of the course does not use, because a learner cannot carry them over to papers and libraries, or because
they make plain technical English hard to read. Checked are pages, the text of lessons, and the docstrings, help texts, comments
and messages of the code.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from helpers.source import SOURCES, label, own_files, tree

WORDS = {  # a regular expression, in any letter case: what to write instead
    r"\bhears?\b|(?<!often )\bheard\b": "conditioned on, uses",
    r"\bobey(?:s|ed|ing)?\b": "follows (a prompt), satisfies (an equation)",
    r"\blisten(?:ed|ing)?\b": "uses, attends to",
    r"\bdice\b": "random numbers; stochastic",
    r"\bwho(?:m)?ever\b": "you, we, a learner",
    r"\bnobody\b": "name the subject, or use the passive",
    r"(?:^|[.,;:] |\b(?:that|what|as|how|where|when|which) )one (?:can|may|must|could)\b": "you can",
    r"\bshall\b": "must, should",
    r"\bstands? in\b(?! the (?:way|place))": "is in, is written in",
    r"\bcan be had\b": "is available",
    r"\b(?:gives?|given|gave|giving) back\b": "returns, reconstructs",
    r"\bdear(?:er|est)?\b": "expensive",
    r"\bthe judge\b|\bjudge of\b": "the classifier",
    r"\bdoors?\b": "backend",
    r"\breaders? of words\b": "text encoder",
    r"(?<!standard )\bdeviations?\b": "standard deviation, difference",
    r"\bit is said\b": "name who says it",
    r"\bno merit\b": "no advantage",
    r"\bthe more so\b": "more strongly",
    r"\bkept back\b": "held out",
    r"\bpaint(?:s|ed)? anew\b": "repaint",
    r"\bby heart\b": "memorize",
    r"\bthe aim was\b|\bno GPU has\b|\bas it is committed\b": "the state today, without history",
    r"\bfor sure\b|\ball along\b|\bwithout a word\b": "certainly, always, silently",
}
PATTERN = re.compile("|".join(f"(?P<w{i}>{word})" for i, word in enumerate(WORDS)), re.IGNORECASE)
INLINE_CODE = re.compile(r"`[^`\n]*`|\]\([^)]*\)")
TEXTS = [path for path in [*own_files("*.md"), *SOURCES] if label(path).split("/")[0] != "tests"]


def words_of(text: str) -> list[tuple[str, str]]:
    """(word that is found, what to write) of a text, without code and targets of links."""
    found = PATTERN.finditer(INLINE_CODE.sub(" ", " ".join(text.split())))
    return [(match[0], list(WORDS.values())[int(match.lastgroup[1:])]) for match in found]


def passages(path: Path) -> list[tuple[int, str]]:
    """The prose of a file, each passage with its line: a page's paragraphs; of code, strings of four or more words and comments."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"```.*?```", lambda match: re.sub(r"[^\n]", " ", match[0]), source, flags=re.DOTALL)
        return list(enumerate(text.splitlines(), 1))
    strings = [
        (node.lineno, node.value)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value.split()) > 3
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return strings + [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


@pytest.mark.parametrize("path", TEXTS, ids=label)
def test_plain_words(path):
    found = [
        f"line {line}: {word} (better: {better})" for line, text in passages(path) for word, better in words_of(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The words are heard and obeyed.", ["heard", "obeyed"]),
        ("Often heard. Its standard deviation is 1.", []),
        ("Whoever wants may throw dice; a deviation of 2.", ["Whoever", "dice", "deviation"]),
        ("It stands in the README and in `stands in`, but a wall stands in the way.", ["stands in"]),
        ("[the page](nobody.md) of one can of paint; what one can see", ["what one can"]),
        ("One may say so, and a larger one could too.", ["One may"]),
    ],
)
def test_the_words_are_found(text, found):
    assert [word for word, _ in words_of(text)] == found
