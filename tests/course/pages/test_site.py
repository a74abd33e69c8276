"""The website: links of pages lead to pages, pictures or the repository, and every page has its place."""

import importlib.util
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


def test_every_page_of_docs_is_in_the_contents():
    contents = str(build_site.navigation())
    for page in build_site.pages():
        if page.parent.name == "docs" or page.name in ("RESULTS.md", "README.zh.md"):
            assert f"'{page.as_posix()}'" in contents, page
