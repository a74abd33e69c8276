"""Numbers that a text quotes are the numbers that were measured.

In the prose of a lesson, in a README, in RESULTS.md or in docs/, a marker stands directly behind a quoted number and its
unit. Markers are HTML comments, which no reader sees:

    0.112<!--out-->         an output of the chapter's own notebook holds this number
    62 %<!--results-->      the chapter's RESULTS.md holds it (its README, as long as there is no RESULTS.md)
    3.4 ± 0.4<!--out-->     both numbers; so with "50.1 to 64.1"
    0.02<!--given-->        a setting, or a number of somebody else's: nothing to compare
    1.29<!--results 01-->   outside of a chapter: RESULTS.md of chapter 1

A quoted number must be a measured one, rounded to the digits that are quoted; 62 % may be 0.62 there. Where a lesson has
markers, every decimal number of its prose needs one, unless it is a setting, which the lesson's code shows, too.
"""

import json
import re
from decimal import Decimal
from functools import cache
from html import unescape
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.programs import ROOT
from helpers.source import label, own_files

CHAPTERS = sorted(ROOT.glob("[0-9][0-9]_*"))
LESSONS = [folder for folder in CHAPTERS if (folder / "lesson.py").exists()]
SOURCES = sorted(ROOT.glob("[0-9][0-9]_*/lesson*.py"))  # lesson.py, and lesson.zh.py in Chinese
PAGES = [path for path in own_files("*.md") if path.parent in (ROOT, ROOT / "docs", *CHAPTERS)]

NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
SIGNED = rf"(?<![\w.])[-−+]?{NUMBER}"
UNIT = r"[^\d<\n]{0,20}"
MARKER = re.compile(r"<!--\s*(out|results|given)(?:\s+(\d\d))?\s*-->")
TABLE = re.compile(r"<!-- (table \w+|end of table) -->")  # around a table that is made from a file
QUOTE = re.compile(rf"({SIGNED})(?:({UNIT})(?:±|\bto\b|–|[到至])\s*({SIGNED}))?({UNIT}){MARKER.pattern}")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
LINK = re.compile(r"\]\([^)\s]*\)|https?://\S+")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
MATHS = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)")
PLACE = re.compile(
    r"(?:第|式|版本?) ?$|\b(sections?|eqs?\.?|equations?|chapters?|exercises?|figures?|tables?|appendix|algorithms?|python|version)\W{0,2}$",
    re.I,
)


class Quote(NamedTuple):
    line: int
    number: str
    percent: bool
    source: str  # out, results, given
    chapter: str | None  # "01"
    text: str  # the words around it


def quotes(text: str) -> list[Quote]:
    """The marked numbers of a text. AssertionError at a marker without a number, and at an unknown one."""
    found, behind = [], set()
    for match in QUOTE.finditer(text):
        first, between, second, unit, source, chapter = match.groups()
        place = text.count("\n", 0, match.start()) + 1
        around = surrounding(text, match.start(), match.end())
        for number, its_unit in ((first, between if "%" in (between or "") else unit), (second, unit)):
            if number:
                found.append(Quote(place, number, "%" in its_unit, source, chapter, around))
        behind.add(match.end())
    for comment in COMMENT.finditer(text):
        if TABLE.fullmatch(comment[0]):
            continue
        place = f"line {text.count(chr(10), 0, comment.start()) + 1}"
        assert MARKER.fullmatch(comment[0]), f"{place}: {comment[0]} is no marker; known are out, results and given"
        assert comment.end() in behind, f"{place}: there is no number before {comment[0]}"
    return found


def surrounding(text: str, start: int, end: int) -> str:
    """Some whole words before and after a place of a text, in one line and without markers."""
    before, after = text[max(0, start - 40) : start], text[end : end + 20]
    before = before.partition(" ")[2] if start > 40 else before
    return " ".join(COMMENT.sub("", before + text[start:end] + after.rpartition(" ")[0]).split())


def value(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("−", "-"))


def half_a_digit(number: str) -> Decimal:
    """How far a number may be from one that is rounded to it: 0.112 -> 0.0005, 62 -> 0.5, 2.4e-7 -> 5e-9"""
    return Decimal(5).scaleb(value(number).as_tuple().exponent - 1)


def is_measured(quote: Quote, measured: list[Decimal]) -> bool:
    """Whether a number of the list, rounded to the digits of the quoted one, is that number."""
    quoted, margin = value(quote.number), half_a_digit(quote.number)
    candidates = measured + [100 * each for each in measured if abs(each) <= 1] if quote.percent else measured
    return any(abs(each - quoted) <= margin for each in candidates)


def numbers(text: str) -> list[Decimal]:
    """All numbers of a text, with "62 %" also as 0.62."""
    found = []
    for match in re.finditer(rf"({SIGNED})(\s?%)?", text):
        found.append(value(match[1]))
        if match[2]:
            found.append(value(match[1]) / 100)
    return found


def wrong_quotes(text: str, measured: dict[str, list[Decimal]], chapter: str | None = None) -> list[str]:
    """The quoted numbers that are not measured, each in words. measured: {"out 01": numbers, "results 01": numbers}"""
    wrong = []
    for quote in quotes(text):
        if quote.source == "given":
            continue
        where = f"{quote.source} {quote.chapter or chapter}"
        source = {"out": "an output of the notebook", "results": "RESULTS.md"}[quote.source]
        if where not in measured:
            wrong.append(f"line {quote.line}: no chapter to compare with (<!--results 01-->): {quote.text}")
        elif not is_measured(quote, measured[where]):
            wrong.append(f"line {quote.line}: {quote.number} is not in {source}: {quote.text}")
    return wrong


def unmarked(text: str, code: str) -> list[str]:
    """The decimal numbers in prose that have no marker, and that the lesson's code does not show either."""
    prose = MARKER.sub("", QUOTE.sub(lambda match: " " * len(match[0]), text))
    for pattern in (LINK, CODE, MATHS):
        prose = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), prose)
    settings = set(DECIMAL.findall(code))
    found = []
    for place, line in enumerate(prose.splitlines(), 1):
        for match in DECIMAL.finditer(line):
            if line.startswith("#") or match[0] in settings or PLACE.search(line[: match.start()]):
                continue
            found.append(f"line {place}: {match[0]} in: {surrounding(line, match.start(), match.end())}")
    return found


# -------------------------------------------------------------------------------------------------------- the course


def split(lesson: str) -> tuple[str, str]:
    """lesson.py -> its prose and its code, each with the other's lines empty, so that lines keep their numbers."""
    prose, code, in_prose = [], [], True
    for line in lesson.splitlines():
        if line.startswith("# %%"):
            in_prose = "[markdown]" in line
            line = ""
        prose.append(re.sub(r"^# ?", "", line) if in_prose else "")
        code.append("" if in_prose else line)
    return "\n".join(prose), "\n".join(code)


def output_text(notebook: dict) -> str:
    """What the cells of a notebook print or show as text; pictures are none."""
    texts = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            texts.append("".join(output.get("text", [])))
            data = output.get("data", {})
            if "text/html" in data:
                texts.append(
                    unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", "".join(data["text/html"]), flags=re.DOTALL))
                )
            elif not any(kind.startswith("image/") for kind in data):
                texts.append("".join(data.get("text/plain", [])) + "".join(data.get("text/markdown", [])))
    return "\n".join(texts)


def results_text(chapter: Path) -> str:
    """RESULTS.md, or the README as long as there is none, without commands and without what is itself quoted."""
    path = next(path for path in (chapter / "RESULTS.md", chapter / "README.md") if path.exists())
    return CODE.sub(" ", QUOTE.sub(" ", path.read_text(encoding="utf-8")))


def outputs(notebook: Path) -> list[Decimal]:
    return numbers(output_text(json.loads(notebook.read_text(encoding="utf-8"))))


@cache
def measured() -> dict[str, list[Decimal]]:
    found = {}
    for chapter in CHAPTERS:
        found[f"results {chapter.name[:2]}"] = numbers(results_text(chapter))
        if (chapter / "lesson.ipynb").exists():
            found[f"out {chapter.name[:2]}"] = outputs(chapter / "lesson.ipynb")
    return found


@pytest.mark.parametrize("source", SOURCES, ids=label)
def test_a_lesson_quotes_what_was_measured(source):
    """The outputs of a Chinese lesson are those of its own notebook."""
    prose, _ = split(source.read_text(encoding="utf-8"))
    chapter = source.parent.name[:2]
    known = measured() | {f"out {chapter}": outputs(source.with_suffix(".ipynb"))}
    assert wrong_quotes(prose, known, chapter) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_quotes_what_was_measured(path):
    text = path.read_text(encoding="utf-8")
    own = path.parent.name[:2] if path.parent in CHAPTERS else None
    known = measured()
    if own and not (path.parent / "RESULTS.md").exists():  # then this page is what the numbers would be compared with
        known = {name: values for name, values in known.items() if name != f"results {own}"}
    assert wrong_quotes(CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text), known, own) == []


@pytest.mark.parametrize("source", SOURCES, ids=label)
def test_no_decimal_number_of_a_lesson_lacks_its_marker(source):
    """In lessons that have markers. Add <!--out--> behind the number, <!--results--> or, for what nobody here has
    measured, <!--given-->.
    """
    prose, code = split(source.read_text(encoding="utf-8"))
    if MARKER.search(prose):
        assert unmarked(prose, code) == []


# ------------------------------------------------------------------------------------------------- the test is tested

OUTPUT = "loss 0.11237, right 62.4 % of 1,498; error -0.25 (2.41e-07)\nddim:50 x0 16x16"


@pytest.mark.parametrize(
    "text",
    [
        "It is 0.112<!--out-->.",
        "0.1124<!--out-->, 0.11<!-- out --> and **0.1**<!--out-->",
        "62 %<!--out--> and 62%<!--out-->, a share of 0.62<!--out-->",
        "all 1,498 digits<!--out-->, all 1498<!--out-->",
        "−0.25<!--out--> and -0.3<!--out-->",
        "2.4e-7<!--out--> with 50 steps<!--out-->",
        "| 0.112<!--out--> | 62 %<!--out--> |",
        "11 % of it<!--out-->",
        "0.02<!--given--> is a setting",
        "between 0.11 and 7, and 50<!--out-->",
        "62.4 ± 0.1<!--out--> and 0.11 to 62 %<!--out-->",
        "从 0.11 到 62 %<!--out-->，为 0.112<!--out-->",
    ],
)
def test_what_was_measured_passes(text):
    assert wrong_quotes(text, {"out 01": numbers(OUTPUT)}, "01") == []


@pytest.mark.parametrize(
    ("text", "numbers_named"),
    [
        ("It is 0.113<!--out-->.", ["0.113"]),
        ("0.1123<!--out-->", ["0.1123"]),
        ("0.1120<!--out-->", ["0.1120"]),  # more digits than are true
        ("63 %<!--out--> and 62 %<!--out-->", ["63"]),
        ("1,499<!--out-->", ["1,499"]),
        ("0.25<!--out-->", ["0.25"]),  # the sign
        ("2.5e-7<!--out-->", ["2.5e-7"]),
        ("50<!--out--> but not 51 steps<!--out-->", ["51"]),
        ("62.4 ± 0.3<!--out-->", ["0.3"]),
        ("7.1 ± 0.1<!--out-->", ["7.1"]),
        ("0.31 to 62 %<!--out-->", ["0.31"]),
        ("0.31 到 62 %<!--out-->", ["0.31"]),
    ],
)
def test_what_was_not_measured_fails(text, numbers_named):
    wrong = wrong_quotes(text, {"out 01": numbers(OUTPUT)}, "01")
    assert [line.split()[2] for line in wrong] == numbers_named
    assert all("is not in an output of the notebook" in line for line in wrong)


def test_a_wrong_number_is_found_by_its_line():
    text = "\n\nThe model reaches\n0.2<!--out--> here."
    assert wrong_quotes(text, {"out 01": []}, "01") == [
        "line 4: 0.2 is not in an output of the notebook: The model reaches 0.2"
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\nnone <!--out-->", "line 2: there is no number before <!--out-->"),
        ("0.1\n<!--out-->", "there is no number"),  # of another line
        ("0.1<!--outs-->", "<!--outs--> is no marker"),
        ("0.1<!--result-->", "known are out, results and given"),
    ],
)
def test_a_marker_belongs_to_a_number(text, says):
    with pytest.raises(AssertionError, match=re.escape(says)):
        quotes(text)


def test_results_are_compared_with_the_chapter_named():
    known = {"results 01": numbers("1.29"), "results 02": numbers("7.5"), "out 02": numbers("0.3")}
    assert wrong_quotes("1.3<!--results 01--> 7.5<!--results 02--> 0.3<!--out 02-->", known) == []
    assert wrong_quotes("7.5<!--results-->", known, "02") == []
    assert wrong_quotes("7.5<!--results 01-->", known)[0].startswith("line 1: 7.5 is not in RESULTS.md")
    assert "no chapter to compare with" in wrong_quotes("7.5<!--results-->", known)[0]


def test_decimals_without_a_marker_are_listed_with_their_line():
    code = "decay = 0.999\nloss(0.5)"
    text = """# 1.5 A heading
We use a decay of 0.999 and reach 1.29<!--out--> ± 0.07.
See section 4.4, eq. 3.2 and [this](https://arxiv.org/abs/2212.09748); $x = 0.3$ and `0.7` are no results.
The loss is 0.31 after 20 steps, and 0.02<!--given--> was set."""
    assert unmarked(text, code) == [
        "line 2: 0.07 in: of 0.999 and reach ± 0.07",
        "line 4: 0.31 in: The loss is 0.31 after 20 steps,",
    ]


def test_prose_and_code_of_a_lesson_keep_their_lines():
    lesson = "# %% [markdown]\n# Words 0.1<!--out-->\n#\n# %%\n# comment\nx = 0.3\n"
    prose, code = split(lesson)
    assert prose.split("\n") == ["", "Words 0.1<!--out-->", "", "", "", ""]
    assert code.split("\n") == ["", "", "", "", "# comment", "x = 0.3"]


def test_pictures_and_their_names_are_no_output():
    notebook = {
        "cells": [
            {"source": "9.9"},
            {
                "outputs": [
                    {"output_type": "stream", "text": ["a 1.5\n"]},
                    {"data": {"image/png": "8.8", "text/plain": "<Figure size 640x480>"}},
                    {"data": {"text/plain": "2.5"}},
                    {"data": {"text/html": ["<td style='x: 7.7'>3.5</td>"], "text/plain": "4.5"}},
                ]
            },
        ]
    }
    assert numbers(output_text(notebook)) == [Decimal("1.5"), Decimal("2.5"), Decimal("3.5")]


def test_the_course_has_numbers_to_compare_with():
    known = measured()
    assert len(LESSONS) == 6 and all(
        len(known[f"{kind} {c.name[:2]}"]) > 20 for c in LESSONS for kind in ("out", "results")
    )
