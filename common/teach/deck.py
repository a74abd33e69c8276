"""From the cells of a lesson to slides.

Which parts of a lesson become slides, and how much of a text one slide shows, is decided by `slides_of` alone.
"""

import base64
import io
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from PIL import Image, UnidentifiedImageError

from common.errors import UserError
from common.grade.chapter import COURSE, chapter_folder
from common.io.files import write_atomically

WORDS = 60  # that a slide shows of a paragraph; a Chinese character counts as half a word
LONG_LIST = 150  # words of a list that is too long for a slide
ROWS = 18  # of a table for which a slide has room; a sentence before it takes the room of BEFORE
BEFORE = 8
BRIEF = 4  # words of a sentence that only introduces what follows, "In code:"
PRINTED, COLUMNS = 14, 90  # lines of a printed table for which a slide has room, and characters of a line
WIDTH, HEIGHT = 1100, 720  # of a slide, in pixels
LINE = 11  # words in a line
PICTURE = 390  # pixels, the height of a picture at most where it is below a text
LIST = r"(?:[*-]|\d+\.) "
NETWORK = "https://cdn.jsdelivr.net/npm/"
REVEAL, MATHJAX = "reveal.js@4.6.1", "mathjax@3.2.2"
COPIED = {  # what pages need of the packages
    "reveal.js": ("dist", "plugin/notes", "LICENSE"),
    "mathjax": ("es5/tex-chtml.js", "es5/output/chtml/fonts", "es5/a11y", "es5/sre", "LICENSE"),
}
SENTENCES = re.compile(r"(?<=[。！？])|(?<=[.!?:])\s+(?=[A-Z`*$\[(\\])")
LANGUAGES = re.compile(r"(?:English|\[English\]\(\S+\)) · (?:中文|\[中文\]\(\S+\))")
LEAD = re.compile(r"\*\*[^*]*[:：]")  # the bold beginning of a step, which is not about the picture before it
QUESTION = re.compile(r"\*\*(?:Question|Predict\w*|Exercise|问题|思考|预测)[^*]*\*\*")
TEMPLATE = """
{%- extends "index.html.j2" -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}
<script>MathJax = {tex: {inlineMath: [["$", "$"]], processEscapes: true}};</script>
<script defer src="{{ resources.mathjax_url }}"></script>
<style>
.reveal { font-family: sans-serif; font-size: 30px; --jp-content-font-size1: 23px; --jp-code-font-size: 18px; }
.reveal .slides h1, .reveal .slides h2, .reveal .slides h3 { text-transform: none; text-align: left; line-height: 1.2; }
.reveal .slides h1 { font-size: 1.7em; } .reveal .slides h2 { font-size: 1.4em; } .reveal .slides h3 { font-size: 1.15em; }
.reveal .slides section { text-align: left; }
.reveal .slides section img { display: block; margin: 0.5em auto; width: 92%; max-height: 390px; object-fit: contain; }
.reveal .slides section img.alone { max-height: 500px; }
.reveal .slides section img.high { max-height: 600px; }
.reveal .slides section img.tall { float: right; height: 600px; max-height: 600px; width: auto; max-width: 72%; margin: 0 0 0 20px; }
.reveal .slides li { line-height: 1.35; }
.reveal .slide-number { right: auto; left: 8px; }
.reveal table { font-size: 0.7em; } .reveal table code { white-space: normal; overflow-wrap: anywhere; }
.reveal pre, .reveal pre code { font-size: 18px; line-height: 1.3; width: 100%; }
.reveal pre code { box-sizing: border-box; }
.jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser { display: none; }
</style>
{%- endblock -%}
{%- block footer_js -%}
<script src="{{ resources.reveal.url_prefix }}/dist/reveal.js"></script>
<script src="{{ resources.reveal.url_prefix }}/plugin/notes/notes.js"></script>
<script>
// A formula that is wider than the slide gets smaller letters.
function fitFormulas() {
  if (!window.MathJax || !MathJax.startup) return;
  MathJax.startup.promise.then(() => {
    document.querySelectorAll(".present mjx-container[display], .print-pdf mjx-container[display]").forEach((each) => {
      const room = each.parentElement.clientWidth, needed = each.scrollWidth;
      if (room && needed > room) each.style.fontSize = (96 * room / needed) + "%";
    });
  });
}
window.addEventListener("load", fitFormulas);
Reveal.on("slidechanged", fitFormulas);
Reveal.on("pdf-ready", fitFormulas);
Reveal.initialize({hash: true, slideNumber: "c/t", width: 1100, height: 720, center: false, transition: "none",
                   plugins: [RevealNotes]});
</script>
{%- endblock -%}
"""


@dataclass
class Slide:
    text: str  # Markdown
    kind: str  # "slide" begins a column, "subslide" goes on below
    notes: list[str] = field(default_factory=list)

    def has_room(self, data: str, says: str) -> bool:
        """Whether a picture fits below the text, with the sentence that it shows below itself."""
        full = any(each in self.text for each in ("<img", "**Question", "**问题", "\n* ", "\n- ", "\n1. "))
        if full or words(self.text) > WORDS:
            return False
        heights = [
            100 if part.startswith("$$") else 25 + 33 * math.ceil(words(part) / LINE)
            for part in [*self.text.split("\n\n"), says]
        ]
        tall = full_height(data)
        return sum(heights) + min(tall, PICTURE) < HEIGHT - 40 and tall < 1.4 * PICTURE


def slides_of(cells: list[NotebookNode]) -> list[Slide]:
    """The slides of a lesson's cells.

    A heading makes a slide with the list, the table or the first sentences below it, and the first formula of its part. A
    question, a list with the sentence before it, and a picture with the sentence after it make one slide each, but a
    picture joins a slide that has room. All other text goes to the notes of the slide before it.
    """
    slides: list[Slide] = []
    title = printed = ""
    for number, cell in enumerate(cells):
        if cell.cell_type == "code":
            after = next(iter(cells[number + 1 : number + 2]), None)
            said = caption(after.source) if after is not None and after.cell_type == "markdown" else ""
            pictures, printed = list(pictures_of(cell)), printed_by(cell)
            if slides and printed and not pictures and slides[-1].text.endswith((":", "：")):
                slides[-1].text += f"\n\n{printed}"
            for place, data in enumerate(pictures, 1):
                says = said if place == len(pictures) else ""
                joins = bool(slides) and slides[-1].has_room(data, says)
                shown = f"{image(data, says or title, '' if joins else layout(data, says))}\n\n{says}".strip()
                if joins:
                    slides[-1].text += f"\n\n{shown}"
                else:
                    slides.append(Slide(f"### {title}\n\n{shown}", "subslide"))
            continue
        blocks = blocks_of(cell.source)
        while blocks:
            block = blocks.pop(0)
            if found := re.match(r"(#{1,3}) (.+)", block):
                level, title = len(found[1]), found[2]
                first, blocks = opening(blocks)
                kind = "slide" if level <= 2 else "subslide"
                slides.append(Slide("\n\n".join([f"{found[1]} {title}", *first]), kind))
            elif LANGUAGES.fullmatch(block):
                continue
            elif before_list([block, *blocks]):
                table = f"{printed}\n\n" if "\n" in printed.strip("`\n") and re.search("table|表", block) else ""
                slides.append(Slide(f"### {title}\n\n{table}{block}\n\n{brief(blocks[0])}", "subslide"))
                blocks = blocks[brief(blocks[0]) == blocks[0] :]  # what is cut short goes to the notes
            elif QUESTION.match(block):
                slides.append(Slide(f"### {title}\n\n{block}", "subslide"))
            elif slides:
                slides[-1].notes.append(block)
    for slide in slides:
        if slide.text.endswith((":", "：")):  # announces what no slide shows, such as code
            slide.notes.insert(0, slide.text.rpartition("\n\n")[2])
            slide.text = slide.text[:-1] + {":": ".", "：": "。"}[slide.text[-1]]
    return slides


def opening(blocks: list[str]) -> tuple[list[str], list[str]]:
    """What a heading's slide shows of the blocks below it, and the other blocks."""
    shown, rest = list[str](), [block for block in blocks if not LANGUAGES.fullmatch(block)]
    if before_list(rest) or (len(rest) > 1 and re.match(LIST, rest[1]) and before_list([rest[0] + ":", rest[1]])):
        return [rest[0], brief(rest[1])], rest[1 + (brief(rest[1]) == rest[1]) :]
    if rest and rest[0].startswith("|") and rest[0].count("\n") <= ROWS:
        return rest[:1], rest[1:]
    while rest and is_text(rest[0]) and not QUESTION.match(rest[0]) and not before_list(rest):
        short = shortened(rest[0])
        if shown and words(" ".join([*shown, short])) > WORDS:
            break
        shown.append(short)
        if short != rest[0]:
            break  # the whole paragraph goes to the notes
        rest.pop(0)
    formula = next((block for block in until_heading(rest) if block.startswith("$$") and block.endswith("$$")), None)
    if formula:
        shown.append(formula)
        rest.remove(formula)
    return shown, rest


def before_list(blocks: list[str]) -> bool:
    """Whether a paragraph introduces a list or a table that has room on a slide."""
    if len(blocks) < 2 or not is_text(blocks[0]) or not blocks[0].endswith((":", "：")):
        return False
    if blocks[1].startswith("|"):
        return blocks[1].count("\n") <= ROWS - BEFORE
    return bool(re.match(LIST, blocks[1])) and words(blocks[0] + brief(blocks[1])) < LONG_LIST


def brief(listing: str) -> str:
    """A list; of one that is too long for a slide, the first sentence of each item."""
    if words(listing) < LONG_LIST or not re.match(LIST, listing):
        return listing
    items = re.split(rf"\n(?={LIST})", listing)
    return "\n".join(
        f"{mark[0]}{SENTENCES.split(item[mark.end() :])[0]}" for item in items if (mark := re.match(LIST, item))
    )


def until_heading(blocks: list[str]) -> Iterator[str]:
    for block in blocks:
        if block.startswith("#"):
            return
        yield block


def is_text(block: str) -> bool:
    return not block.startswith(("#", "$$", ">", "<", "```", "|", "!"))


def blocks_of(source: str) -> list[str]:
    """The paragraphs, lists, formulas and boxes of a text. A <details> box and a code block are one block each."""
    found: list[str] = []
    waiting_for = ""
    for block in re.split(r"\n\s*\n", source.strip()):
        if waiting_for:
            found[-1] += f"\n\n{block}"
        else:
            found.append(block)
        last = found[-1]
        waiting_for = "</details>" if last.count("<details") > last.count("</details>") else ""
        waiting_for = "```" if not waiting_for and last.count("```") % 2 else waiting_for
    return [block for block in found if block]


def words(text: str) -> float:
    chinese = len(re.findall(r"[\u4e00-\u9fff]", text))
    return chinese / 2 + len(re.sub(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]", " ", text).split())


def shortened(paragraph: str) -> str:
    """The first sentences of a paragraph, as many as a slide has room for. Lists stay whole."""
    if words(paragraph) <= WORDS or re.match(LIST, paragraph):
        return paragraph
    shown = ""
    for sentence in SENTENCES.split(paragraph):
        if shown and words(f"{shown} {sentence}") > WORDS:
            break
        shown = f"{shown} {sentence}".strip() if not re.search(r"[。！？]$", shown) else shown + sentence
    return shown


def caption(source: str) -> str:
    """The sentence that follows a picture, if the text goes on there without a heading or a question."""
    first = blocks_of(source)[:1]
    if (
        not first
        or not is_text(first[0])
        or first[0].startswith("(")
        or QUESTION.match(first[0])
        or LEAD.match(first[0])
        or re.match(LIST, first[0])
    ):
        return ""
    said = SENTENCES.split(first[0])[0].strip()
    return "" if said.endswith((":", "：")) and words(said) <= BRIEF else said.rstrip(":：")


def pictures_of(cell: NotebookNode) -> Iterator[str]:
    """The pictures of a code cell's outputs, as data addresses."""
    for output in cell.get("outputs", []):
        for kind in ("image/png", "image/gif", "image/jpeg"):
            if data := output.get("data", {}).get(kind):
                yield f"data:{kind};base64,{''.join(data.split())}"
                break


def printed_by(cell: NotebookNode) -> str:
    """What a cell has printed, if it has the size of a table that a slide can show, as a block of code."""
    text = "".join(output.text for output in cell.get("outputs", []) if output.output_type == "stream").strip("\n")
    lines = text.splitlines()
    wide = max((len(line) + len(re.findall(r"[\u3000-\u9fff\uff00-\uffef]", line)) for line in lines), default=0)
    return f"```\n{text}\n```" if 0 < len(lines) <= PRINTED and wide <= COLUMNS else ""


def full_height(data: str) -> float:
    """The height of a picture that is as wide as a slide allows."""
    try:
        wide, high = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).size
    except UnidentifiedImageError:
        return PICTURE
    return 0.92 * WIDTH * high / wide


def layout(data: str, says: str) -> str:
    """The class of a picture that has a slide of its own. The caption of one that is higher than wide goes beside it."""
    if full_height(data) <= 0.92 * WIDTH:
        return "alone"
    return "tall" if says else "high"


def image(data: str, says: str, kind: str) -> str:
    plain = re.sub(r"<[^>]*>|\]\([^)]*\)|[*`\[$]", "", says)
    size = f' class="{kind}"' if kind else ""
    return f'<img src="{data}" alt="{escape(plain)}"{size}>'


def without_links(text: str) -> str:
    """A text for a slide, from which links within the course lead nowhere; their text stays."""
    text = re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^()\s]+\)", r"\1", text)
    # MathJax shows the backslash of an underscore within a formula's text
    text = re.sub(r"\\text\{[^{}]*\}", lambda found: found[0].replace(r"\_", "_"), text)
    return re.sub(r"<!--.*?-->", "", text)


def notebook_of(slides: list[Slide]) -> NotebookNode:
    """A notebook with the metadata that nbconvert reads slides from."""
    cells: list[NotebookNode] = []
    for slide in slides:
        for kind, text in ((slide.kind, slide.text), ("notes", "\n\n".join(slide.notes))):
            if text:
                cell = nbformat.v4.new_markdown_cell(without_links(text), id=f"cell-{len(cells):03}")
                cell.metadata["slideshow"] = {"slide_type": kind}
                cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


def render(slides: list[Slide], title: str, folder: Path, reveal: str, mathjax: str) -> str:
    """The page. folder: the chapter's, in which pictures of the text are."""
    exporter = SlidesExporter(
        raw_template=TEMPLATE, reveal_url_prefix=reveal, reveal_theme="white", mathjax_url=mathjax, embed_images=True
    )
    resources = {"metadata": {"name": title, "path": str(folder)}}
    return exporter.from_notebook_node(notebook_of(slides), resources)[0]


def lesson_of(chapter: str, language: str) -> Path:
    name = "lesson.ipynb" if language == "en" else f"lesson.{language}.ipynb"
    return chapter_folder(chapter, name) / name


def write_decks(chapter: str, out: Path, assets: Path | None, language: str) -> list[Path]:
    """Write the slides of a chapter, or of all, to the folder `out`."""
    numbers = [folder.name[:2] for folder in sorted(COURSE.glob("[0-9][0-9]_*"))] if chapter == "all" else [chapter]
    notebooks = [lesson_of(number, language) for number in numbers]
    reveal, mathjax = f"{NETWORK}{REVEAL}", f"{NETWORK}{MATHJAX}/es5/tex-chtml.js"
    out.mkdir(parents=True, exist_ok=True)
    if assets:
        copy_assets(assets, out / "assets")
        reveal, mathjax = "assets/reveal.js", "assets/mathjax/es5/tex-chtml.js"
    written = []
    for lesson in notebooks:
        slides = slides_of(nbformat.read(lesson, as_version=4).cells)
        page = render(slides, lesson.parent.name, lesson.parent, reveal, mathjax)
        suffix = "" if language == "en" else f".{language}"
        path = out / f"{lesson.parent.name[:2]}{suffix}.slides.html"
        write_text(path, page)
        written.append(path)
    return written


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def copy_assets(source: Path, target: Path) -> None:
    """Copy what the pages need of reveal.js and MathJax."""
    for package, parts in COPIED.items():
        for part in parts:
            place = source / package / part
            if not place.exists():
                raise UserError(f"{source} has no {package}/{part}; run: npm install {REVEAL} {MATHJAX}")
            goal = target / package / part
            goal.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir():
                shutil.copytree(place, goal, dirs_exist_ok=True)
            else:
                shutil.copyfile(place, goal)
