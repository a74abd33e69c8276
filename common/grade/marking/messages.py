"""The grader's messages in another language.

Checks and programs write English. A catalogue (messages.zh.toml) holds pairs of an English template and its translation:

    "x_t is wrong at t = {1}{2}" = "t = {1} 时 x_t 不对{2}"

{1} and {2} are the parts that an f-string fills in. A message is translated when it is shown: the template that fits is
found, and its parts are translated in turn. What no template fits, such as the text of a learner's own exception, stays
as it is. In a translation, {1!} is a part that may be such a text: only a whole message in it is translated.
"""

import os
import re
import tomllib
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, NamedTuple

Language = Literal["en", "zh"]
SLOT = re.compile(r"\{(\d+)(!?)\}")
MEET = re.compile(r"[\u4e00-\u9fff]\w|\w[\u4e00-\u9fff]", re.ASCII)
APART = re.compile(r"[\u3000-\u9fff\uff00-\uffef] [\u3000-\u9fff\uff00-\uffef]")
FEW = 12  # letters of a template that would fit too much, and so needs a known part in front
NESTED = 6  # a message within a message, and so on
NAME = "messages.{}.toml"  # the grader's own; in an exercises folder, those of the public tests and the hints
HIDDEN = "checks.{}.toml"  # in an exercises folder, what only the hidden checks say


def language(given: Language | None = None, environment: Mapping[str, str] = os.environ) -> Language:
    """The language that was asked for, or else that of the locale."""
    if given:
        return given
    names = (environment.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return "zh" if next((name for name in names if name), "").startswith("zh") else "en"


class Template(NamedTuple):
    pattern: re.Pattern[str]
    slots: list[str]  # their numbers in the order of the English text
    whole: set[str]  # those marked with ! in the translation
    translation: str
    vague: bool  # it begins with a slot and has few letters of its own
    short: bool  # it has few letters of its own


class Catalogue:
    """Translations by English template.

    few  letters of a template that would fit too much; 0 where no text is a learner's own
    """

    def __init__(self, pairs: Mapping[str, str], few: int = FEW) -> None:
        self.few = few
        self.pairs = {plain(english): translation for english, translation in pairs.items()}

    @cached_property
    def templates(self) -> list[Template]:
        """The templates with slots: first those that join two messages, then those that say the most.

        A comma alone joins as the last resort.
        """
        found = sorted((each for each in self.pairs if SLOT.search(each)), key=lambda each: (-letters(each), each))
        each_one = [
            Template(
                re.compile(pattern),
                [number for number, _ in SLOT.findall(each)],
                {number for number, mark in SLOT.findall(self.pairs[each]) if mark},
                self.pairs[each],
                letters(each) < self.few and bool(SLOT.match(each)),
                letters(each) < self.few,
            )
            for each in found
            for pattern in patterns(each)
        ]
        return sorted(each_one, key=lambda each: not each.vague if letters(each.pattern.pattern) else 2)

    def translate(self, text: str) -> str:
        """The text in the catalogue's language, as far as the catalogue knows it."""
        return self.part(text, NESTED, False)[0]

    @cache  # noqa: B019 (catalogues are few, and stay)
    def part(self, text: str, depth: int, whole: bool) -> tuple[str, int]:
        """The translation that leaves the fewest letters as they are, and how many.

        whole  accept only what is clearly a message of the grader
        """
        known, as_it_is = plain(text), (text, letters(text))
        if known in self.pairs and not SLOT.search(known):
            return (self.pairs[known], 0) if not whole or letters(known) >= self.few else as_it_is
        best = as_it_is
        for template in self.templates if depth and as_it_is[1] else ():
            if (whole and template.short) or not (found := template.pattern.fullmatch(known)):
                continue
            parts = {
                slot: self.part(part, depth - 1, slot in template.whole)
                for slot, part in zip(template.slots, found.groups(), strict=True)
            }
            left = sum(count for _, count in parts.values())
            if left < best[1] and not (template.vague and parts[template.slots[0]][0] == found[1]):
                best = filled(template.translation, {slot: part for slot, (part, _) in parts.items()}), left
        return best


def plain(text: str) -> str:
    """White space as it is in a message of one line."""
    return re.sub(r"\s+", " ", text)


def filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with these parts in its slots, and a space where Chinese and Latin letters or digits meet."""
    pieces = SLOT.split(template)
    text = pieces[0]
    for number, literal in zip(pieces[1::3], pieces[3::3], strict=True):
        for piece in (parts[number], literal):
            if piece:
                text += " " if MEET.fullmatch(text[-1:] + piece[0]) else ""
                text = text[:-1] if APART.fullmatch(text[-2:] + piece[0]) else text
                text += piece
    return text


def patterns(template: str) -> list[str]:
    """What recognises the messages that a template makes. Of two slots side by side, either the first is a word, or the
    second begins with a comma or a semicolon.
    """
    pattern = "(.*?)".join(map(re.escape, re.split(r"\{\d+\}", template)))
    if "(.*?)(.*?)" not in pattern:
        return [pattern]
    return [pattern.replace("(.*?)(.*?)", pair) for pair in (r"([^\s;,]*)(.*?)", r"(.*?)(; .*?|)", r"(.*?)(, .*?|)")]


def letters(template: str) -> int:
    """How many letters a template has of its own."""
    return len(re.findall(r"[A-Za-z]", SLOT.sub("", template)))


def read(path: Path) -> dict[str, str]:
    """The pairs of a catalogue; none where there is no such file."""
    return tomllib.loads(path.read_text(encoding="utf-8"))["messages"] if path.is_file() else {}


@cache
def catalogue(lang: Language, folder: Path | None = None, few: int = FEW) -> Catalogue:
    """The messages of the grader, and of one chapter. folder: the chapter's exercises/; few: see Catalogue"""
    pairs = read(Path(__file__).with_name(NAME.format(lang)))
    if folder:
        pairs = read(folder / HIDDEN.format(lang)) | read(folder / NAME.format(lang)) | pairs
    return Catalogue(pairs, few)


def translator(lang: Language, folder: Path | None = None, few: int = FEW) -> Callable[[str], str]:
    """What turns an English message into one in this language."""
    return catalogue(lang, folder, few).translate if lang != "en" else str


def width(text: str) -> int:
    """Columns that a text takes on a terminal, where a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def padded(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))
