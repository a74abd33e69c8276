"""Slides: which cells become slides, and that a page needs nothing but what lies beside it."""

import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from common.errors import UserError
from common.teach.deck import (
    LANGUAGES,
    WORDS,
    blocks_of,
    lesson_of,
    shortened,
    slides_of,
    without_links,
    words,
    write_decks,
)
from helpers.programs import ROOT

PNG = "iVBORw0KGgo="
CELLS = [
    "# Title\n\nWhat it is about.\n\nIt shows:\n\n1. one;\n2. two.",
    None,
    "## 1 · Part\n\nFirst [link](../a.md), [paper](https://b.c). \n\n$$a = b$$\n\n> **In the papers.** A box.\n\nMore.\n\n### Sub\n\nShort.",
    PNG,
    "The picture shows it. It has a second sentence.\n\n**Question.** Why?",
    "<details><summary>Answer</summary>\n\nBecause.\n\n</details>",
    PNG,
]


def cells() -> list:
    made = []
    for text in CELLS:
        if text is None:
            made.append(nbformat.v4.new_code_cell("import torch"))
        elif text == PNG:
            output = nbformat.v4.new_output("display_data", data={"image/png": PNG})
            made.append(nbformat.v4.new_code_cell("plot()", outputs=[output]))
        else:
            made.append(nbformat.v4.new_markdown_cell(text))
    return made


def test_a_table_after_a_colon_is_shown():
    table = "| a | b |\n|---|---|\n| 1 | 2 |"
    assert slides(f"## Part\n\nThese are its words:\n\n{table}") == [f"## Part\n\nThese are its words:\n\n{table}"]


def test_of_a_long_list_the_first_sentences_are_shown():
    """The whole list is in the notes."""
    items = [f"* **Item {k}** is one. {'It goes on and on. ' * 20}" for k in range(3)]
    cell = nbformat.v4.new_markdown_cell("## Part\n\nThree remedies:\n\n" + "\n".join(items))
    (slide,) = slides_of([cell])
    assert slide.text == "## Part\n\nThree remedies:\n\n" + "\n".join(f"* **Item {k}** is one." for k in range(3))
    assert len(slide.notes) == 1 and slide.notes[0].count("It goes on") == 60


def test_a_sentence_does_not_announce_what_no_slide_shows():
    code = nbformat.v4.new_code_cell("import torch")
    assert slides("## Part\n\nTwo lines compute it:", code) == ["## Part\n\nTwo lines compute it."]
    assert slides("## 部分\n\n只要两行代码：", code) == ["## 部分\n\n只要两行代码。"]


@pytest.mark.parametrize(
    ("wide", "high", "caption", "kind"),
    [(300, 600, "It shows that.", "tall"), (300, 600, "", "high"), (600, 300, "It shows that.", "alone")],
)
def test_the_caption_of_a_tall_picture_goes_beside_it(wide, high, caption, kind):
    question = "## Part\n\n**Question.** Why?"  # has no picture below it
    *_, shown = slides(question, picture(wide, high), *[caption] * bool(caption))
    assert f'class="{kind}"' in shown and shown.endswith(caption or ">")


def test_which_parts_become_slides():
    slides = slides_of(cells())
    picture = '<img src="data:image/png;base64,iVBORw0KGgo='
    assert [slide.kind for slide in slides] == ["slide", "subslide", "slide", "subslide", "subslide", "subslide"]
    texts = [slide.text for slide in slides]
    assert texts[0] == "# Title\n\nWhat it is about."
    assert texts[1] == "### Title\n\nIt shows:\n\n1. one;\n2. two."
    assert texts[2].startswith("## 1 · Part\n\nFirst [link]") and texts[2].endswith("$$a = b$$")
    assert slides[2].notes == ["> **In the papers.** A box.", "More."]
    assert (
        texts[3].startswith("### Sub\n\nShort.") and picture in texts[3] and texts[3].endswith("The picture shows it.")
    )
    assert 'alt="The picture shows it."' in texts[3]
    assert texts[4] == "### Sub\n\n**Question.** Why?" and "Because." in slides[4].notes[0]
    assert texts[5].startswith("### Sub\n\n<img")  # a question has no picture below it, which would be its answer


def picture(wide: int, high: int) -> nbformat.NotebookNode:
    file = io.BytesIO()
    Image.new("RGB", (wide, high)).save(file, "PNG")
    data = {"image/png": base64.b64encode(file.getvalue()).decode()}
    return nbformat.v4.new_code_cell("plot()", outputs=[nbformat.v4.new_output("display_data", data=data)])


def slides(*cells) -> list[str]:
    return [
        slide.text
        for slide in slides_of([nbformat.v4.new_markdown_cell(c) if isinstance(c, str) else c for c in cells])
    ]


def test_a_picture_joins_a_slide_where_it_fits():
    [one] = slides("## Part\n\nShort.\n\n$$a = b$$", picture(900, 300), "It shows this. More.")
    assert one.count("<img") == 1 and "alone" not in one and one.endswith("It shows this.")
    first, tall = slides("## Part\n\nShort.", picture(300, 600), "**Step 2: train** the network.")
    assert (
        'class="high"' in tall
        and "Step 2" not in tall
        and "In code" not in slides("## P", picture(9, 9), "In code:")[-1]
    )


def test_a_printed_table_is_shown_where_the_text_announces_it():
    cell = nbformat.v4.new_code_cell("print()", outputs=[nbformat.v4.new_output("stream", text="a 1\nb 2\n")])
    assert slides("English · [中文](lesson.zh.ipynb)", "## Part\n\nHow good is it:", cell) == [
        "## Part\n\nHow good is it:\n\n```\na 1\nb 2\n```"
    ]
    assert slides("## Part\n\nText.", cell, "The table shows:\n\n* this.")[1].startswith("### Part\n\n```\na 1")
    assert slides("## Part\n\nText.", cell) == ["## Part\n\nText."]


def test_texts():
    assert without_links(r"$\text{v\_prediction}$") == r"$\text{v_prediction}$"
    assert (
        without_links("First [link](../a.md), [paper](https://b.c), 3<!--out-->")
        == "First link, [paper](https://b.c), 3"
    )
    long = " ".join(["One two three four five six seven eight nine ten."] * 20)
    assert words(shortened(long)) == WORDS and shortened(long) in long
    assert shortened("句子是这样的。" * 30) == "句子是这样的。" * (2 * WORDS // 6)
    assert blocks_of("a\n\n```\nb\n\nc\n```\n\n<details>\n\nd\n\n</details>\n\ne") == [
        "a", "```\nb\n\nc\n```", "<details>\n\nd\n\n</details>", "e",
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(1, 7))
def test_every_lesson_makes_slides(number):
    """Each section begins a column, every figure of the lesson is shown, and no text of the lesson is lost."""
    lesson = lesson_of(f"0{number}", "en")
    notebook = nbformat.read(lesson, as_version=4)
    slides = slides_of(notebook.cells)
    headings = re.findall(
        r"^## (.+)$", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.MULTILINE
    )
    columns = [slide.text.splitlines()[0].lstrip("# ") for slide in slides if slide.kind == "slide"]
    assert columns[1:] == headings
    figures = sum(
        any(kind in output.get("data", {}) for kind in ("image/png", "image/gif", "image/jpeg"))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    shown = "\n\n".join([slide.text for slide in slides] + [note for slide in slides for note in slide.notes])
    assert shown.count("<img src=") >= figures > 5
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert [
                block
                for block in blocks_of(cell.source)
                if not block.startswith("#") and block not in shown and not LANGUAGES.fullmatch(block)
            ] == []
    bare = [slide for slide in slides if "\n" not in slide.text]  # a section that begins with the heading of a part
    assert all(slide.kind == "slide" or "Algorithm 2" in slide.text for slide in bare) and len(bare) <= 4
    assert max(words(re.sub(r"<img[^>]*>", "", slide.text)) for slide in slides) < 260


def test_a_page_without_a_network(tmp_path):
    """Everything that a page loads lies beside it, if packages are given, and otherwise on one pinned network address."""
    for place in (
        "reveal.js/dist/reveal.js",
        "reveal.js/plugin/notes/notes.js",
        "reveal.js/LICENSE",
        "mathjax/es5/tex-chtml.js",
    ):
        (tmp_path / "node_modules" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "node_modules" / place).write_text("")
    with pytest.raises(UserError, match=r"has no mathjax/es5/output/chtml/fonts; run: npm install reveal.js@"):
        write_decks("01", tmp_path / "out", tmp_path / "node_modules", "en")
    for place in ("reveal.js/dist/reveal.css", "reveal.js/dist/theme/white.css", "mathjax/LICENSE", *(f"mathjax/es5/{each}/x.js" for each in ("output/chtml/fonts", "a11y", "sre"))):  # fmt: skip
        (tmp_path / "node_modules" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "node_modules" / place).write_text("")
    [path] = write_decks("01", tmp_path / "out", tmp_path / "node_modules", "en")
    page = path.read_text(encoding="utf-8")
    loaded = [*re.findall(r'<script[^>]* src="([^"]+)"', page), *re.findall(r'<link[^>]* href="([^"]+)"', page)]
    assert len(loaded) == 5 and [each for each in loaded if not (path.parent / each).is_file()] == []
    assert not re.findall(r'<img src="(?!data:)', page)
    [path] = write_decks("01", tmp_path / "network", None, "en")
    page = path.read_text(encoding="utf-8")
    loaded = [*re.findall(r'<script[^>]* src="([^"]+)"', page), *re.findall(r'<link[^>]* href="([^"]+)"', page)]
    assert len(loaded) == 5 and all(
        re.match(r"https://cdn.jsdelivr.net/npm/(reveal.js@4\.6\.1|mathjax@3\.2\.2)/", each) for each in loaded
    )
    assert page.count("<section") > 60 and "<aside" in page


def test_a_lesson_that_does_not_exist():
    with pytest.raises(UserError, match="there is no chapter '99' with lesson.ipynb"):
        lesson_of("99", "en")
    assert lesson_of("2", "en") == ROOT / "02_cfg_pokemon" / Path("lesson.ipynb")
