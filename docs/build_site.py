"""The website of the course: every page and every lesson with its outputs, in both languages, with search.

    pip install -r docs/requirements.txt
    python docs/build_site.py                     # writes build/site; a broken link or a missing picture is an error
    python -m http.server -d build/site           # look at it

The pages stay where they are. This script copies them to build/pages, turns the lessons into pages, and lets links to code lead to the
repository, whose address is read from the environment variable REPO_URL. Then MkDocs builds the site.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"
PICTURES = {".png", ".gif", ".webp", ".jpg", ".svg"}
LINK = re.compile(r"(\]\()([^()\s]+)(\))")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
PAGES_BESIDE_CHAPTERS = [
    "docs/start",
    "docs/faq",
    "docs/teaching",
    "docs/debugging",
    "docs/demo",
    "docs/programs",
    "common/data/README",
    "docs/models",
    "docs/derivations",
    "docs/glossary",
    "docs/claims",
    "docs/budget",
    "CONTRIBUTING",
]
ENGLISH = {
    "README.md": "Overview",
    "lesson.md": "Lesson",
    "exercises/README.md": "Exercises",
    "exercises/written.md": "Written questions",
    "RESULTS.md": "Results",
    "pretrained/README.md": "Shipped weights",
}
CHINESE = dict(zip(ENGLISH, ["概览", "教程", "练习", "书面题", "结果", "自带权重"], strict=True))


def pages() -> list[Path]:
    """The Markdown files of the course, relative to its folder."""
    found = [
        path
        for pattern in (
            "*.md",
            "docs/*.md",
            "0*/*.md",
            "0*/*/README*.md",
            "0*/exercises/written*.md",
            "common/**/*.md",
            "bench/*.md",
        )
        for path in ROOT.glob(pattern)
    ]
    return sorted({path.relative_to(ROOT) for path in found})


def lessons() -> list[Path]:
    """The notebooks of the lessons in both languages, relative to the course's folder."""
    found = [path for pattern in ("0*/lesson*.ipynb", "docs/*/lesson*.ipynb") for path in ROOT.glob(pattern)]
    return sorted(path.relative_to(ROOT) for path in found)


def target(link: str, page: Path, repository: str) -> str:
    """Where a link of a page leads on the site: to a page, to a picture, and otherwise to the repository.

    page        relative to the course's folder, as are all results that lead to the repository
    repository  its address, or "" where there is none: then such a link leads nowhere but to the top of the page
    """
    name, hash_mark, anchor = link.partition("#")
    if not name or re.match(r"[a-z]+:", link):
        return link
    place = Path(os.path.normpath(page.parent / name))
    if (ROOT / place / "README.md").exists():
        return os.path.relpath(place / "README.md", page.parent) + hash_mark + anchor
    if place.name in ("lesson.ipynb", "lesson.zh.ipynb"):
        return os.path.relpath(place.with_suffix(".md"), page.parent) + hash_mark + anchor
    if place in pages() or place.suffix in PICTURES:
        return link
    kind = "tree" if (ROOT / place).is_dir() else "blob"
    return f"{repository}/{kind}/main/{place.as_posix()}{hash_mark}{anchor}" if repository else "#"


def relinked(text: str, page: Path, repository: str) -> str:
    """The text of a page with the links that the site needs; code is left alone."""
    parts = CODE.split(text)  # a link around code, [`x`](y), has its target outside of the code
    replace = lambda match: match[1] + target(match[2], page, repository) + match[3]  # noqa: E731
    return "".join(part if CODE.fullmatch(part) else LINK.sub(replace, part) for part in parts)


def lesson_page(notebook: Path) -> str:
    """A lesson as Markdown, with its text outputs; its pictures are written beside it."""
    from nbconvert import MarkdownExporter

    name = notebook.parent.name
    exporter = MarkdownExporter()
    text, resources = exporter.from_filename(
        str(ROOT / notebook), resources={"output_files_dir": f"{notebook.stem}_files", "unique_key": name}
    )
    folder = PAGES / notebook.parent
    for file, data in resources["outputs"].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    return text


def collect(repository: str) -> None:
    """Fill build/pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    known = pages()
    for page in known:
        (PAGES / page).parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / page).read_text(encoding="utf-8")
        (PAGES / page).write_text(relinked(text, page, repository), encoding="utf-8")
    for notebook in lessons():
        page = notebook.with_suffix(".md")
        (PAGES / page).write_text(relinked(lesson_page(notebook), page, repository), encoding="utf-8")
    for folder in {page.parent for page in known} | {page.parent / "figures" for page in known}:
        for picture in (ROOT / folder).glob("*"):
            if picture.suffix in PICTURES:
                (PAGES / folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(picture, PAGES / folder / picture.name)


def title(page: Path) -> str:
    """The first heading of a page."""
    return re.search(r"^# (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)[1]


def chapters(names: dict[str, str], suffix: str) -> list[dict]:
    """The contents of every chapter in one language, as far as its pages exist.

    names   what the contents call each page of a chapter
    suffix  ".md", or ".zh.md" for Chinese
    """
    contents = []
    for folder in sorted({notebook.parent for notebook in lessons() if notebook.parts[0] != "docs"}):
        files = {name: folder / file.replace(".md", suffix) for file, name in names.items()}
        found = [{name: file.as_posix()} for name, file in files.items() if has_source(file)]
        contents.append({title(folder / f"README{suffix}"): found})
    return contents


def pages_beside_chapters(suffix: str, lesson: str) -> list[dict]:
    """The contents besides the chapters in one language, as far as its pages exist; a page's lesson follows it."""
    contents = []
    for name in PAGES_BESIDE_CHAPTERS:
        page, notebook_page = Path(f"{name}{suffix}"), Path(name) / f"lesson{suffix}"
        if has_source(page):
            contents.append({title(page): page.as_posix()})
        if has_source(notebook_page):
            contents.append({lesson.format(title(page)): notebook_page.as_posix()})
    return contents


def has_source(page: Path) -> bool:
    """Whether a page of the site has a file that it is made from: itself, or the notebook of a lesson."""
    return any((ROOT / source).exists() for source in (page, page.with_suffix(".ipynb")))


def navigation() -> list[dict]:
    """The contents of the site: chapters and other pages in English, then both in Chinese."""
    chinese = [{"首页": "README.zh.md"}, {"各章": chapters(CHINESE, ".zh.md")}]
    return [
        {"Home": "README.md"},
        {"Chapters": chapters(ENGLISH, ".md")},
        {"Pages": pages_beside_chapters(".md", "{}: the lesson")},
        {"中文": [*chinese, {"其他页面": pages_beside_chapters(".zh.md", "{}：教程")}]},
    ]


def config(repository: str) -> dict:
    """The settings of MkDocs. Anchors are made as GitHub makes them, so that links hold in both places."""
    return {
        "site_name": "Diffusion models, from the first formula to Stable Diffusion",
        "docs_dir": str(PAGES),
        "site_dir": str(SITE),
        "repo_url": repository or None,
        "theme": {"name": "material", "features": ["navigation.tabs", "navigation.top", "content.code.copy", "search.highlight"]},
        "plugins": [{"search": {"lang": ["en", "zh"], "separator": "[\\s\\u200b\\-]+"}}],  # jieba splits Chinese at \u200b
        "markdown_extensions": [
            "tables", "attr_list", "md_in_html", "pymdownx.superfences", "pymdownx.highlight", {"pymdownx.arithmatex": {"generic": True}},
            {"toc": {"permalink": True, "toc_depth": 3, "slugify": "SLUGIFY"}},
        ],
        "extra_javascript": ["https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-mml-chtml.js"],
        "validation": {"links": {"not_found": "warn", "anchors": "warn", "absolute_links": "warn", "unrecognized_links": "warn"}},
        "nav": navigation(),
    }  # fmt: skip


def main() -> None:
    repository = os.environ.get("REPO_URL", "").rstrip("/")
    collect(repository)
    settings = json.dumps(config(repository), ensure_ascii=False, indent=1)  # JSON is YAML
    slugify = "!!python/object/apply:pymdownx.slugs.slugify {kwds: {case: lower}}"
    path = ROOT / "build" / "mkdocs.yml"
    path.write_text(settings.replace('"SLUGIFY"', slugify), encoding="utf-8")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "-f", path], env=environment)
    missing = missing_files(SITE) if built.returncode == 0 else []
    print(
        *(f"error: {page} needs {file}, which does not exist" for page, file in missing),
        sep="\n",
        end="\n" * bool(missing),
    )
    sys.exit(built.returncode or bool(missing))


def missing_files(site: Path) -> list[tuple[str, str]]:
    """(page, file) of every picture, script and page of the built site that does not exist; other sites are not asked."""
    missing = []
    for page in site.rglob("*.html"):
        for link in re.findall(r'(?:src|href)="([^"]+)"', page.read_text(encoding="utf-8")):
            name = unquote(re.split("[#?]", link)[0])
            if not name or re.match(r"[a-z]+:", link):
                continue
            place = site / name.lstrip("/") if name.startswith("/") else page.parent / name
            if not place.exists():
                missing.append((page.relative_to(site).as_posix(), name))
    return missing


if __name__ == "__main__":
    main()
