"""The Chinese lessons: the cells of the English ones, with the same code, numbers, formulas and links."""

import ast
import re
from functools import cache
from itertools import zip_longest

import pytest

from common.grade import lessons
from common.grade.lessons import code_differences
from helpers.programs import ROOT
from helpers.source import own_files

CHAPTERS = sorted(path.parent for path in ROOT.glob("[0-9][0-9]_*/lesson.py"))
LESSONS = [*CHAPTERS, ROOT / "docs" / "debugging"]  # every lesson needs a Chinese one

MARKER = re.compile(r"<!--.*?-->")
QUOTED = re.compile(r"([-−+]?[\d.,]+(?:e[-−]?\d+)?)[^\d<\n]{0,20}(<!--.*?-->)")
OUTPUT = re.compile(r"[-−+]?[\d.,]+(?:e[-−]?\d+)?[^\d<\n]{0,20}<!--out-->")
CODE = re.compile(r"`[^`\n]+`")
FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
NUMBER = re.compile(r"(\d+(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?)(?: ?(million\b|万|亿))?")
IN_WORDS = {
    **{
        "one": "1",
        "two": "2",
        "three": "3",
        "four": "4",
        "five": "5",
        "six": "6",
        "seven": "7",
        "eight": "8",
        "nine": "9",
    },
    **{
        "ten": "10",
        "eleven": "11",
        "twelve": "12",
        "thirteen": "13",
        "sixteen": "16",
        "seventeen": "17",
        "nineteen": "19",
    },
    **{"twenty": "20", "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "eighty": "80", "hundred": "100"},
    **{"thousand": "1000", "million": "1000000", "first": "1", "second": "2", "third": "3"},
}


def formulas(text: str) -> set[str]:
    """The formulas of a cell, without the words in them, without spaces, and without a full stop at their end."""
    found = FORMULA.findall(quote_free(text))
    return {re.sub(r"[.,]?(\$+)$", r"\1", re.sub(r"\s|\\text\{[^{}]*\}", "", formula)) for formula in found}


def quote_free(text: str) -> str:
    """A cell without the "> " at the beginning of the lines of a quotation, which may be inside of a formula."""
    return re.sub(r"^> ?", "", text, flags=re.MULTILINE)


def links(text: str) -> set[str]:
    """The targets of a cell's links; a Chinese page counts as the English one. Its headings have anchors of their own."""
    found = LINK.findall(re.sub(r"`", "", text))
    pages = {re.sub(r"\.zh(?=\.(?:md|ipynb)\b)", "", target) for target in found}
    translated = {re.sub(r"\.zh|#.*", "", target) for target in found if ".zh.md" in target}
    return {target.partition("#")[0] if target.partition("#")[0] in translated else target for target in pages}


def same_links(english: str, chinese: str) -> bool:
    """Whether both cells link to the same pages. The anchor is compared where the Chinese cell links to the English page."""
    ours, theirs = links(english), links(chinese)
    pages = [{target.partition("#")[0] for target in some} for some in (ours, theirs)]
    return pages[0] == pages[1] and all(target in ours for target in theirs if "#" in target)


def numbers(text: str) -> set[str]:
    """The numbers in the words of a cell: 10,000 as 10000, without formulas, links and code."""
    for pattern in (OUTPUT, MARKER, FORMULA, CODE):
        text = pattern.sub(" ", text)
    text = re.sub(r"\]\([^()\s]*\)", "] ", quote_free(text))
    return {in_digits(number, unit) for number, unit in NUMBER.findall(text)}


def in_digits(number: str, unit: str) -> str:
    """3 million and 300 万 as 3000000."""
    factor = {"million": 10**6, "万": 10**4, "亿": 10**8}.get(unit)
    return f"{float(number.replace(',', '')) * factor:.0f}" if factor else number.replace(",", "")


def numbers_in_words(text: str) -> set[str]:
    return {IN_WORDS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in IN_WORDS}


def quoted(text: str) -> list[tuple[str, str]]:
    """The numbers with a marker behind them, each with its marker. An output has "out" in place of its number: each
    language quotes its own notebook, whose training may differ in the last digits (test_quoted_numbers.py).
    """
    found = [(number.strip(".,"), marker) for number, marker in QUOTED.findall(text)]
    return sorted(("out" if "out" in marker else number, marker) for number, marker in found)


def prose_differences(english: str, chinese: str) -> list[str]:
    """Where the words of a Chinese cell do not say what the English cell says, as far as numbers and symbols show it."""
    found = []
    for name, take in (("formula", formulas), ("code", lambda text: set(CODE.findall(FORMULA.sub(" ", text))))):
        found += [f"{name} is missing: {each}" for each in sorted(take(english) - take(chinese))]
        found += [f"{name} is new: {each}" for each in sorted(take(chinese) - take(english))]
    if not same_links(english, chinese):
        found.append(f"links differ: {sorted(links(english) ^ links(chinese))}")
    if quoted(english) != quoted(chinese):
        found.append(f"marked numbers differ: {quoted(english)} and {quoted(chinese)}")
    new = numbers(chinese) - numbers(english) - numbers_in_words(english)
    missing = {number for number in numbers(english) - numbers(chinese) if len(number) > 1}
    found += [f"number is new: {number}" for number in sorted(new)]
    found += [f"number is missing: {number}" for number in sorted(missing)]
    if english.count("<details>") != chinese.count("<details>"):
        found.append("an answer is missing or new")
    return found


def cells(folder, language):
    return lessons.read_source(folder, language).cells


@pytest.mark.parametrize("folder", LESSONS, ids=lambda folder: folder.name)
def test_the_code_is_the_same(folder):
    differences = []
    for number, (a, b) in enumerate(zip_longest(cells(folder, "en"), cells(folder, "zh")), 1):
        assert a is not None and b is not None and a.cell_type == b.cell_type, f"from cell {number} on"
        if a.cell_type == "code":
            differences += [f"cell {number}, {each}" for each in code_differences(a.source, b.source)]
    assert differences == []


@pytest.mark.parametrize("folder", LESSONS, ids=lambda folder: folder.name)
def test_the_prose_has_the_same_numbers_formulas_and_links(folder):
    differences = []
    for number, (a, b) in enumerate(zip_longest(cells(folder, "en"), cells(folder, "zh")), 1):
        assert a is not None and b is not None and a.cell_type == b.cell_type, f"from cell {number} on"
        if a.cell_type == "markdown":
            differences += [f"cell {number}: {each}" for each in prose_differences(a.source, b.source)]
    assert differences == []


@pytest.mark.parametrize("folder", LESSONS, ids=lambda folder: folder.name)
def test_the_prose_is_chinese(folder):
    """Every paragraph has Chinese characters, unless it is a formula or a tag."""
    for cell in cells(folder, "zh"):
        if cell.cell_type == "markdown":
            text = re.sub(r"<[^>]*>", "", FORMULA.sub("", quote_free(cell.source)))
            left = [part for part in re.split(r"\n\s*\n", text) if re.search(r"[A-Za-z]{3}", part)]
            assert [part for part in left if not lessons.CHINESE.search(part)] == []


SENTENCE = re.compile(r"(?:[A-Za-z]+[,;:]? +){3,}")  # four words or more
CAPTIONS = "data"  # of common/: its strings are prompts, which stay


def sentences(code: str) -> set[str]:
    """The English sentences that a program may print: strings, and what f-strings have between their fields."""
    return {
        node.value.strip()
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SENTENCE.search(node.value)
    }


@cache
def sentences_of_the_course() -> set[str]:
    shared = [path for path in own_files("*.py") if path.is_relative_to(ROOT / "common")]
    read = [path for path in shared if path.relative_to(ROOT / "common").parts[0] != CAPTIONS]
    return set().union(*(sentences(path.read_text(encoding="utf-8")) for path in read))


@pytest.mark.parametrize("folder", LESSONS, ids=lambda folder: folder.name)
def test_no_english_sentence_of_the_course_is_printed(folder):
    """A lesson words what it prints, because the course's own remarks and messages are English."""
    printed = "\n".join(lessons.output_texts(lessons.read_notebook(folder, "zh")))
    assert [sentence for sentence in sorted(sentences_of_the_course()) if sentence in printed] == []


# ------------------------------------------------------------------------------------------------ the tests are tested


def test_sentences_are_found():
    code = 'x = f"unknown words: {words} (spelled in pieces, so they may mean little)"\ny = "mnist"'
    assert sentences(code) == {"(spelled in pieces, so they may mean little)"}
    assert "(spelled in pieces, so they may mean little)" in sentences_of_the_course()


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("x = 1  # one", "x = 1  # 一"),
        ('label_language("en")', 'label_language("zh")'),
        ('f(label="noise level t")', 'f(label="噪声水平 t")'),
        ('print(f"{a:30} is {b:.2f}")', 'print(f"{b:.2f} 是 {a:15}")'),
        ('f"{name:11}{share:>12.0%}"', 'f"{name:8}{share:>9.0%}"'),
        ('"{:30} wings on {:2}: {:.0%}".format(*x)', '"{:20} 翅膀 {:2}：{:.0%}".format(*x)'),
        ("f\"{name + ', 1000 steps':23}\"", "f\"{name + '，1000 步':19}\""),
        ('a.replace(", ", "\\n")', 'a.replace("，", "\\n")'),
        ("f'{what} of 米饭'", "f'米饭的 {what}'"),
        ('f"error of ${x}$ for 1 in $y$"', 'f"$y$ 的误差为 1 时 ${x}$ 的误差"'),
        ('def f():\n    """{what is done: bytes}"""', 'def f():\n    """{做法：字节数}"""'),
        ('def f():\n    """Two numbers."""', 'def f():\n    """两个数。"""'),
    ],
)
def test_words_for_a_reader_may_differ(english, chinese):
    assert code_differences(english, chinese) == []


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("f(1)", "f(2)"),
        ("f(1)", "f(1, seed=2)"),
        ("x = 1\ny = 2", "x = 1"),
        ("a.mean()", "a.sum()"),
        ("a + b", "a - b"),
        ('f("mnist")', 'f("cifar10")'),
        ('f("红")', 'f("绿")'),
        ('f("红")', 'f("red")'),
        ('label_language("zh")', 'label_language("en")'),
        ('label_language("en")', 'label_language("fr")'),
        ("f'{what} of 米饭'", "f'白饭的 {what}'"),
        ('f"{a:.2f} is"', 'f"{a:.3f} 是"'),
        ('f"{a:.2f} is"', 'f"{a:.2%} 是"'),
        ('f"{a} is {b}"', 'f"{a} 是"'),
        ('f"{a} is"', 'f"{c} 是"'),
        ('f"{a:5}"', 'f"{a:05d}"'),
        ('"{:.2f} of {}"', '"{} 的 {:.2f}"'),
        ('"50 steps"', '"40 步"'),
        ('"error of $x_0$"', '"$x_1$ 的误差"'),
    ],
)
def test_everything_else_must_be_equal(english, chinese):
    assert code_differences(english, chinese) != []


ENGLISH = """Of 10,000 digits, 0.36<!--out--> or 0.5<!--results--> ([Ho 2020](https://a.org/1), [exercises](exercises/README.md#tier-1)) at $t = 3$, in twelve rows.
Set `STEPS` to 50. $$a = \\frac{1}{2} \\qquad\\text{(a hat)}$$"""
CHINESE = """10,000 个数字中，$t = 3$ 时为 0.37<!--out--> 或 0.5<!--results-->（[Ho 2020](https://a.org/1)，[练习](exercises/README.zh.md#第一级)），共 12 行。
把 `STEPS` 改成 50。$$a = \\frac{1}{2} \\qquad\\text{（帽子）}$$"""


def test_chinese_words_with_the_same_numbers_pass():
    assert prose_differences(ENGLISH, CHINESE) == []
    assert prose_differences(ENGLISH, CHINESE.replace("10,000 个", "1 万个")) == []
    assert prose_differences("3 million weights", "300 万个权重") == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("0.37<!--out-->", "0.37<!--results-->", "marked numbers differ"),
        ("<!--out-->", "", "marked numbers differ"),
        ("0.5<!--results-->", "0.6<!--results-->", "marked numbers differ"),
        ("10,000", "一万", "number is missing: 10000"),
        ("12", "13", "number is new: 13"),
        ("$t = 3$", "$t = 4$", "formula is new: $t=4$"),
        ("{1}{2}", "{1}{3}", "formula is missing"),
        ("`STEPS`", "STEPS", "code is missing: `STEPS`"),
        ("a.org/1", "a.org/2", "links differ"),
        ("，[练习](exercises/README.zh.md#第一级)", "", "links differ"),
        ("exercises/README.zh.md#第一级", "exercises/README.md#tier-2", "links differ"),
    ],
)
def test_a_drift_of_the_prose_is_found(old, new, says):
    assert old in CHINESE
    found = prose_differences(ENGLISH, CHINESE.replace(old, new))
    assert any(line.startswith(says) for line in found)
