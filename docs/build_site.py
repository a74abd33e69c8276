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


def pages() -> list[Path]:
    """The Markdown files of the course, relative to its folder."""
    found = [
        path
        for pattern in (
            "*.md",
            "docs/*.md",
            "0*/*.md",
            "0*/*/README.md",
            "0*/exercises/written.md",
            "common/**/*.md",
            "bench/*.md",
        )
        for path in ROOT.glob(pattern)
    ]
    return sorted({path.relative_to(ROOT) for path in found})


def lessons() -> list[Path]:
    """The notebooks of the lessons in both languages, relative to the course's folder."""
    return sorted(path.relative_to(ROOT) for path in ROOT.glob("0*/lesson*.ipynb"))


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


def navigation() -> list[dict]:
    """The contents of the site: chapters, pages of docs/, Chinese pages."""

    def title(page: Path) -> str:
        return re.search(r"^# (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)[1]

    chapters = []
    for notebook in lessons():
        folder = notebook.parent
        if notebook.name != "lesson.ipynb":
            continue
        parts = [("Overview", "README.md"), ("Lesson", "lesson.md"), ("Exercises", "exercises/README.md")]
        parts += [("Written questions", "exercises/written.md")]
        parts += [("Results", "RESULTS.md"), ("Shipped weights", "pretrained/README.md")]
        known = [
            {name: (folder / file).as_posix()}
            for name, file in parts
            if file == "lesson.md" or (ROOT / folder / file).exists()
        ]
        chapters.append({title(folder / "README.md"): known})
    more = [
        "start",
        "faq",
        "teaching",
        "debugging",
        "demo",
        "programs",
        "models",
        "derivations",
        "glossary",
        "claims",
        "budget",
    ]
    chinese = {page: title(page) for page in pages() if page.name.endswith(".zh.md")}
    chinese |= {
        notebook.with_suffix(".md"): f"教程：{title(notebook.with_name('README.zh.md'))}"
        for notebook in lessons()
        if notebook.name == "lesson.zh.ipynb"
    }
    return [
        {"Home": "README.md"},
        {"Chapters": chapters},
        {"Pages": [{title(Path(f"docs/{name}.md")): f"docs/{name}.md"} for name in more]},
        {"中文": [{name: page.as_posix()} for page, name in sorted(chinese.items())]},
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
