"""The pages that people read first: one screen for a chapter, the same facts in both languages, and commands whose flags exist."""

import ast
import importlib.util
import re
import shlex
from collections import Counter

import pytest
import torch
import tyro
from safetensors.torch import save_file

from helpers.programs import ROOT, load_program
from helpers.source import label, own_files

CHAPTERS = sorted(ROOT.glob("0[1-6]_*"))
PAGES = own_files("*.md")
SCREENS = [path for chapter in CHAPTERS for path in (chapter / "README.md", chapter / "README.zh.md")]
PAIRS = [(path.with_name(path.name.replace(".zh.md", ".md")), path) for path in own_files("*.zh.md")]
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
NUMBER = re.compile(r"(?<![\w.#/-])(\d[\d,]*(?:\.\d+)?)(?:\s*(million\b|万|亿))?")
UNITS = {"": 1, "万": 10**4, "million": 10**6, "亿": 10**8}
LANGUAGE_FLAGS = {"--lang", "--overwrite"}  # feedback in Chinese, and back to the English stubs: in exercises' pages


# ------------------------------------------------------------------------------------------------------------ one screen


@pytest.mark.parametrize("path", SCREENS, ids=label)
def test_a_chapters_readme_is_one_screen(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert "](figures/" in text and "RESULTS.md" in text and "jupyter lab " in text


@pytest.mark.parametrize("path", PAGES, ids=label)
def test_cells_are_short(path):
    """No paragraph in a table: at most 120 characters a cell, as the reader sees it."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [cell for cell in cells(text) if len(cell) > 120] == []


def cells(text: str) -> list[str]:
    """The cells of all tables, with links as their words, and without markers."""
    rows = [line.strip().strip("|") for line in text.splitlines() if line.startswith("|")]
    seen = [re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"<!--.*?-->", "", row)) for row in rows]
    return [cell.strip() for row in seen for cell in re.split(r"(?<!\\)\|", row)]


# --------------------------------------------------------------------------------------------------------- two languages


def commands(text: str) -> list[str]:
    """The commands of all blocks, without comments; a Chinese lesson counts as the English one."""
    lines = "".join(BLOCK.findall(text)).replace(".zh.ipynb", ".ipynb").splitlines()
    return [" ".join(shlex.split(line, comments=True)) for line in lines]


def programs(text: str) -> list[str]:
    """The Python code of all blocks, without comments."""
    return [ast.dump(ast.parse(block)) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def flags(text: str) -> set[str]:
    """Every flag that the prose names."""
    return set(re.findall(r"--[a-z][\w-]*", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


def targets(text: str, own: str) -> Counter:
    """The targets of all links; a page and its translation count as one, and their links to each other not at all.

    own  name of the English page
    """
    pages = [target.partition("#")[0].replace(".zh.", ".") for target in LINK.findall(text)]
    return Counter(page.removesuffix("/README.md") for page in pages if page not in (own, ""))


def figures(text: str) -> Counter:
    """Every number of the prose that is larger than ten or has decimals; smaller ones may be words."""
    prose = LINK.sub("", re.sub(r"```.*?```|`[^`\n]*`|<!--.*?-->", "", text, flags=re.DOTALL))
    found = [(number.rstrip(",").replace(",", ""), UNITS[unit]) for number, unit in NUMBER.findall(prose)]
    values = [number if unit == 1 else f"{float(number) * unit:.0f}" for number, unit in found]
    return Counter(value for value in values if "." in value or float(value) > 10)


def test_numbers_are_read():
    english = "44 million weights of 3.8 million, 10,000 images, 2 GB of 2.5"
    assert figures(english) == figures("380 万中的 4400 万，10,000 张，2 GB 与 2.5")
    assert figures("3.8 million") != figures("38 万") and figures("20 steps") != figures("21 步")


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda path: label(path))
def test_both_languages_say_the_same(english, chinese):
    first, second = english.read_text(encoding="utf-8"), chinese.read_text(encoding="utf-8")
    assert commands(first) == commands(second)
    assert programs(first) == programs(second)
    assert flags(first) ^ flags(second) <= LANGUAGE_FLAGS
    assert targets(first, english.name) == targets(second, english.name)
    assert figures(first) == figures(second)
    assert first.count("\n## ") == second.count("\n## ")


# -------------------------------------------------------------------------------------------------------------- commands


PROGRAM = re.compile(r"(?:0[1-6]_\w+/)(?:studies/)?\w+\.py")
WITH_COMMANDS = [path for path in PAGES if BLOCK.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=label)
def test_every_command_is_understood(path):
    """Its flags exist, and its values have the right type; nothing is run."""
    for line in "".join(BLOCK.findall(path.read_text(encoding="utf-8"))).splitlines():
        for part in line.split("&&"):
            check_command(part)


def check_command(line: str) -> None:
    """SystemExit if a program of the course does not know a flag of this line, or cannot read its value."""
    words = shlex.split(line, comments=True)
    place = next((i for i, word in enumerate(words) if PROGRAM.fullmatch(word)), None)
    if place is None or "..." in words:
        return
    args = load_program(words[place]).Args
    parsed = tyro.cli(args, args=[word for word in words[place + 1 :] if word != "--"])
    assert isinstance(parsed, args)


# ------------------------------------------------------------------------------------------------- derivations, budgets


def script(name: str):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["derivations.md", "derivations.zh.md"])
def test_formulas_link_to_the_lines_that_compute_them(name):
    """If this fails after a change of code: python docs/link_code.py"""
    link_code, path = script("link_code"), ROOT / "docs" / name
    assert path in link_code.PAGES
    text = path.read_text(encoding="utf-8")
    relinked, lost = link_code.relinked(text, path.parent)
    assert lost == [], "quote the line as it is now"
    assert relinked == text, "run python docs/link_code.py"
    for section in text.split("\n## ")[1:]:
        assert link_code.LINK.search(section), f"no code for: {section.splitlines()[0]}"
    assert set(re.findall(r"\(([^)]*#L\d+)\)", text)) == {
        f"{name}#L{line}" for _, name, line in link_code.LINK.findall(text)
    }


def test_both_languages_have_the_same_formulas_and_lines_of_code():
    """The displayed formulas and the lines in the same order; those within sentences in any order."""
    pages = [path.read_text(encoding="utf-8") for path in script("link_code").PAGES]
    english, chinese = ([*displayed(page), *re.findall(r"\[`[^`]+`\]\([^)]+\)", page)] for page in pages)
    assert english == chinese and len(english) > 40
    english, chinese = (
        {*re.findall(r"\$([^$]+)\$", re.sub(r"\$\$.*?\$\$", "", page, flags=re.DOTALL))} for page in pages
    )
    assert english == chinese and len(english) > 80


def displayed(page: str) -> list[str]:
    """The formulas that have lines of their own, without the words and the full stops around them."""
    formulas = re.findall(r"\$\$(.*?)\$\$", page, re.DOTALL)
    return [re.sub(r"\\text\{(?:or|即)\}", "", formula).strip(" ,.") for formula in formulas]


def test_a_line_that_moved_or_vanished_is_found(tmp_path):
    relinked = script("link_code").relinked
    (tmp_path / "a.py").write_text("x = 1\n    y = 2  # two\n", encoding="utf-8")
    assert relinked("[`y = 2  # two`](a.py#L9)", tmp_path) == ("[`y = 2  # two`](a.py#L2)", [])
    assert relinked("[`y = 3`](a.py#L2)", tmp_path) == ("[`y = 3`](a.py#L2)", ["a.py: y = 3"])
    assert relinked("[`y`](b.py#L1)", tmp_path)[1] == ["b.py: y"]


@pytest.mark.parametrize(("name", "language"), [("budget.md", "en"), ("budget.zh.md", "zh")])
def test_the_page_of_budgets_is_that_of_the_table(name, language):
    """If this fails: python docs/budget.py"""
    budget = script("budget")
    assert budget.page(budget.read(), language) == (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_every_cell_of_the_budgets_is_chinese():
    """But for names of programs, which are code; and no translation is left over."""
    budget, used = script("budget"), set()
    for row in budget.read():
        for column in budget.CHINESE:
            chinese = budget.chinese(row[column], column)
            assert chinese != row[column] or re.fullmatch(r"`[^`]+`|", chinese), row[column]
            used.add(chinese)
    known = [text for texts in budget.CHINESE.values() for text in texts.values()]
    matches = [re.escape(text).replace(r"\{\}", budget.NUMBER) for text in known]
    assert [text for text in matches if not any(re.fullmatch(text, cell) for cell in used)] == []


def test_a_run_folder_gives_a_row(tmp_path):
    run = tmp_path / "04_latent_sd" / "mine"
    (run / "model").mkdir(parents=True)
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, run / "model" / "w.safetensors")
    (run / "config.json").write_text('{"batch_size": 8}', encoding="utf-8")
    (run / "metrics.csv").write_text("step,loss,seconds\n1,0.5,1\n20,0.4,90\n", encoding="utf-8")
    row = script("budget").row_of(run, "one GPU", "PSNR 30 dB")
    assert list(row.values()) == ["4", "`mine`", "17", "20", "8", "1.5", "", "one GPU", "PSNR 30 dB", ""]
    for language in ("en", "zh"):
        assert "| 4 | `mine` | 17 | 20 | 8 | 1.5 |  | one GPU | PSNR 30 dB |" in script("budget").page([row], language)
