"""The glossary: its sections exist in the lessons, every row is complete, and no symbol of a paper is left open.
The claims: each has a source, a command and a finding, and no other text calls one by a number.
"""

import re

import pytest

from helpers.programs import ROOT
from helpers.source import label, own_files

CLAIMS = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
TERMS, PAPERS = GLOSSARY.split("## The symbols of five papers")
SECTIONS = {
    (folder.name[1:2], number)
    for folder in ROOT.glob("0[1-6]_*")
    for number in re.findall(r"^# ## (\d+) ·", (folder / "lesson.py").read_text(encoding="utf-8"), re.MULTILINE)
}


def rows(text: str) -> list[list[str]]:
    """The cells of all tables' rows, without headings. A bar within $...$ is \\mid or \\Vert, so it splits no cell."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "|---" not in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[-1] != "where"]


def test_tables_are_read():
    assert len(rows(TERMS)) > 100 and len(rows(PAPERS)) > 60 and len(SECTIONS) > 50


@pytest.mark.parametrize("row", rows(TERMS), ids=lambda row: row[0])
def test_a_term_has_chinese_and_a_section(row):
    term, _, chinese, where = row
    assert term and re.search(r"[\u4e00-\u9fff]|U-Net", chinese)
    assert tuple(where.split(" · ")) in SECTIONS, f"there is no section {where}"


@pytest.mark.parametrize("row", rows(PAPERS), ids=lambda row: row[0])
def test_a_papers_symbol_has_a_meaning(row):
    symbol, meaning, where = row
    assert symbol and meaning
    assert where == "–" or tuple(where.split(" · ")) in SECTIONS, f"there is no section {where}"


def test_no_term_stands_twice():
    terms = [row[0] for row in rows(TERMS)]
    assert len(terms) == len(set(terms))


def test_every_claim_is_complete():
    """And the table at the top names it."""
    claims = re.split(r"^### ", CLAIMS, flags=re.MULTILINE)
    assert len(claims) == 14
    for claim in claims[1:]:
        title = claim.splitlines()[0]
        assert f"[{title}](#" in claims[0]
        parts = re.findall(r"^\*\*(\w+)\.\*\* \S", claim, re.MULTILINE)
        assert parts == ["Claim", "Source", "Command", "Found"], title


@pytest.mark.parametrize("path", [*own_files("*.md"), *own_files("*.py")], ids=label)
def test_claims_are_named_in_words(path):
    """A number says nothing to somebody who has not read the list."""
    found = re.findall(r"\b[Cc]laims? \d+\b.*", path.read_text(encoding="utf-8"))
    assert found == []
