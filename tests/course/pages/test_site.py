"""The website: links of pages lead to pages, pictures or the repository, and every page has its place."""

import importlib.util
import os
from pathlib import Path

import pytest

from helpers.programs import ROOT

spec = importlib.util.spec_from_file_location("docs_build_site", ROOT / "docs" / "build_site.py")
build_site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_site)


@pytest.mark.parametrize(
    ("link", "page", "leads_to"),
    [
        ("docs/start.md#install", "README.md", "docs/start.md#install"),
        ("01_ddpm_mnist", "README.md", "01_ddpm_mnist/README.md"),
        ("../01_ddpm_mnist/lesson.ipynb", "docs/glossary.md", "../01_ddpm_mnist/lesson.md"),
        ("lesson.zh.ipynb", "01_ddpm_mnist/README.zh.md", "lesson.zh.md"),
        ("debugging/lesson.ipynb", "docs/debugging.md", "debugging/lesson.md"),
        ("figures/strip.png", "01_ddpm_mnist/README.md", "figures/strip.png"),
        (
            "../common/diffusion/vlb.py#L26",
            "docs/derivations.md",
            "https://a.b/c/blob/main/common/diffusion/vlb.py#L26",
        ),
        ("common/diffusion", "README.md", "https://a.b/c/tree/main/common/diffusion"),
        ("https://arxiv.org/abs/2006.11239", "README.md", "https://arxiv.org/abs/2006.11239"),
        ("#samplers", "docs/programs.md", "#samplers"),
    ],
)
def test_links_are_turned(link, page, leads_to):
    assert build_site.target(link, Path(page), "https://a.b/c") == leads_to


def test_code_is_left_alone():
    text = "[`[a](b.py)`](common/cli.py) and\n```python\nx[0](README.md)\n```\n"
    assert build_site.relinked(text, Path("README.md"), "https://a.b") == text.replace(
        "(common/cli.py)", "(https://a.b/blob/main/common/cli.py)"
    )


def test_a_missing_picture_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text('<img src="x.png"><a href="../b/#c"><a href="https://d.e">')
    assert sorted(build_site.missing_files(tmp_path)) == [("a/index.html", "../b/"), ("a/index.html", "x.png")]
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x.png").touch()
    assert build_site.missing_files(tmp_path) == []


def files(contents: list[dict] | str) -> list[str]:
    """The files that a part of the contents names, in its order."""
    if isinstance(contents, str):
        return [contents]
    return [file for entry in contents for part in entry.values() for file in files(part)]


def test_every_page_and_lesson_has_its_place_in_the_contents():
    """Once, and the Chinese ones in the Chinese part."""
    *english, chinese = build_site.navigation()
    assert list(chinese) == ["中文"]
    made = [*build_site.pages(), *(notebook.with_suffix(".md") for notebook in build_site.lessons())]
    in_chinese = {page.as_posix() for page in made if page.name.endswith(".zh.md")}
    in_english = {page.as_posix() for page in made} - in_chinese
    assert sorted(files([chinese])) == sorted(in_chinese)
    assert len(files(english)) == len(set(files(english))) and set(files(english)) <= in_english
    for page in in_english:
        if page.startswith("docs/") or page.endswith(("RESULTS.md", "lesson.md")):
            assert page in files(english)


def test_a_link_to_a_lesson_leads_to_a_page_that_is_made():
    made = {*build_site.pages(), *(notebook.with_suffix(".md") for notebook in build_site.lessons())}
    for page in build_site.pages():
        text = "".join(build_site.CODE.split((ROOT / page).read_text(encoding="utf-8"))[::2])
        for match in build_site.LINK.finditer(text):
            if match[2].endswith(".ipynb"):
                assert Path(os.path.normpath(page.parent / build_site.target(match[2], page, ""))) in made, page


def test_the_chinese_part_follows_the_order_of_the_english_one():
    *english, chinese = build_site.navigation()
    twins = [page.replace(".md", ".zh.md") for page in files(english)]
    assert files([chinese]) == [page for page in twins if page in files([chinese])]
