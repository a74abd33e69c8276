"""Every relative link of the READMEs and lessons leads to a file that exists, and to a heading that exists."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from helpers.programs import ROOT
from helpers.source import label, own_files

PAGES = own_files("*.md") + sorted(ROOT.glob("0*/lesson*.py"))
LINK = re.compile(r"\]\(([^()\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
COMMAND = re.compile(r"(?:\bpython3? |-- )([\w./]+\.py)\b")
MODULE = re.compile(r"python3? -m ((?:common|bench)[\w.]*)")
NAMED = re.compile(r"\b((?:common|bench|tests|0[1-9]_\w+)/[\w/-]+\.py)\b")


def links(path: Path) -> list[str]:
    """The targets of a page's links, without those to other sites."""
    text = path.read_text(encoding="utf-8")
    text = (
        CODE.sub("", text)
        if path.suffix == ".md"
        else "\n".join(line for line in text.splitlines() if line.startswith("#"))
    )
    return [target for target in LINK.findall(text) if not re.match(r"[a-z]+:", target)]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings: in lower case, spaces as hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def twin(page: Path) -> Path:
    """The Chinese file beside an English page or lesson, or the English one beside a Chinese file."""
    chinese = page.name.endswith((".zh.md", ".zh.ipynb", ".zh.py"))
    return page.with_name(page.name.replace(".zh.", ".") if chinese else f"{page.stem}.zh{page.suffix}")


def test_links_are_found():
    assert len(PAGES) > 20 and sum(len(links(path)) for path in PAGES) > 100


@pytest.mark.parametrize("path", PAGES, ids=label)
def test_every_link_leads_somewhere(path):
    broken = []
    for target in links(path):
        name, _, anchor = unquote(target).partition("#")
        found = path.parent / name if name else path
        if not found.exists() or (anchor and found.suffix == ".md" and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", own_files("*.zh.md"), ids=label)
def test_chinese_pages_link_to_chinese_pages(path):
    """Where there are any, but for the link to the page's own English twin. A folder leads to its README."""
    own, english = {twin(path).name, twin(path).with_suffix(".ipynb").name}, []
    for target in links(path):
        name = unquote(target).partition("#")[0]
        found = path.parent / name
        page = found / "README.md" if found.is_dir() else found
        if (
            name
            and name not in own
            and page.suffix in (".md", ".ipynb")
            and ".zh." not in page.name
            and twin(page).exists()
        ):
            english.append(target)
    assert english == []


@pytest.mark.parametrize("path", own_files("*.zh.md"), ids=label)
def test_chinese_pages_do_not_call_a_chinese_page_english(path):
    assert re.findall(r"\.zh\.(?:md|ipynb)[^()\s]*\)（英文）", path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", PAGES, ids=label)
def test_every_program_and_file_that_a_page_names_exists(path):
    """Commands as the reader types them in the project's folder, modules after `python -m`, and paths of files."""
    text = path.read_text(encoding="utf-8")
    files = {name for name in COMMAND.findall(text) + NAMED.findall(text) if "0N" not in name}
    missing = {name for name in files if not (ROOT / name).exists()}
    for module in MODULE.findall(text):
        place = ROOT / module.rstrip(".").replace(".", "/")
        if not (place.with_suffix(".py").exists() or (place / "__main__.py").exists()):
            missing.add(module)
    assert missing == set()
