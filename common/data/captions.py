"""Captions in English and Chinese: in which columns they stand, which are asked for, and what is wrong with them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from common.errors import UserError

LANGUAGES = {"en": "English", "zh": "Chinese"}
LATER_COLUMNS = ("captions", "texts", "sentence", "sentences", "description")
COLUMNS = {
    "en": ("text", "caption", "prompt", "text_en", "caption_en", "en_text", *LATER_COLUMNS),
    "zh": ("text_zh", "caption_zh", "prompt_zh", "zh_text", "text_cn", "caption_cn"),
}


@dataclass(frozen=True)
class Texts:
    """The captions of N images in every language there is.

    where    what they are the captions of, for messages, such as "the folder data/faces"
    by       {"en": N texts, "zh": N texts}, the languages that there are; "" where an image has none
    items    what to call each image in messages; empty where a number will do
    fault    why captions and images do not belong together, or ""
    default  the language where none is asked for; None is the first there is
    several  {"en": all captions of each image}, for the languages in which any image has more than one; `by` holds the
             first of each
    """

    where: str
    by: dict[str, tuple[str, ...]] = field(default_factory=dict)
    items: tuple[str, ...] = ()
    fault: str = ""
    default: str | None = None
    several: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    def need(self, language: str | None = None) -> tuple[str, ...]:
        """N captions in "en", "zh" or "both" (English for even indices, Chinese for odd ones),
        or a UserError that says why not.
        """
        columns = [self._complete(each) for each in self.languages(language)]
        return tuple(texts[i % len(columns)] for i, texts in enumerate(zip(*columns, strict=True)))

    def languages(self, language: str | None = None) -> list[str]:
        """The languages that "en", "zh" or "both" asks for. A UserError where one of them has no caption at all,
        or captions and images do not belong together: that is known before the images are decoded.
        """
        check_language(language)
        if self.fault:
            raise UserError(self.fault)
        language = language or self.default or next(iter(self.by), "en")
        wanted = list(LANGUAGES) if language == "both" else [language]
        for each in wanted:
            if each not in self.by:
                raise UserError(self._lacks(each))
        return wanted

    def offered(self) -> tuple[str, ...] | None:
        """The captions for those who can do without: None where an image has none, and faults are let pass."""
        try:
            return replace(self, fault="").need()
        except UserError:
            return None

    def of(self, indices: Sequence[int]) -> "Texts":
        """The captions of some of the images."""
        by = {language: tuple(texts[i] for i in indices) for language, texts in self.by.items()}
        several = {language: tuple(texts[i] for i in indices) for language, texts in self.several.items()}
        several = {language: texts for language, texts in several.items() if any(len(some) > 1 for some in texts)}
        return replace(self, by=by, items=tuple(self.items[i] for i in indices if self.items), several=several)

    def remarks(self) -> list[str]:
        """What a user should know of the captions."""
        return [
            f"{sum(len(some) > 1 for some in texts):,} images have several {LANGUAGES[language]} captions, of which the first is used"
            for language, texts in self.several.items()
        ]

    def _complete(self, language: str) -> tuple[str, ...]:
        missing = [i for i, text in enumerate(self.by[language]) if not text]
        if missing:
            first = self.items[missing[0]] if self.items else f"image {missing[0]}"
            raise UserError(
                f"{len(missing)} of {len(self.by[language])} images in {self.where} have no {LANGUAGES[language]} caption "
                f"(missing or empty), the first is {first}; give each a caption, or take those images out"
            )
        return self.by[language]

    def _lacks(self, language: str) -> str:
        if not self.by:
            columns = f"columns named {', '.join(COLUMNS['en'][:3])}, {COLUMNS['zh'][0]}, ..."
            if self.where.startswith("the folder"):
                columns += ", and in NAME.txt, NAME.caption or NAME.json beside NAME.png"
            return f"{self.where} has no captions; they are looked for in {columns}"
        other = next(iter(self.by))
        return (
            f"{self.where} has no {LANGUAGES[language]} captions, only {LANGUAGES[other]} ones; "
            f"add a column {COLUMNS[language][0]}, or ask for --language {other}"
        )


def check_language(language: str | None) -> None:
    if language not in (None, *LANGUAGES, "both"):
        raise UserError(f"unknown language '{language}'; choose one of {', '.join(LANGUAGES)}, both")


def read_texts(rows: Sequence[dict]) -> dict[str, tuple[str, ...]]:
    """{"en": one text a row, "zh": ...} from the columns of rows, for each language that any row has a caption in.

    A column that names no language is English, unless most of its characters are Chinese.
    """
    found = {language: tuple(_text(row, columns) for row in rows) for language, columns in COLUMNS.items()}
    found = {language: texts for language, texts in found.items() if any(texts)}
    if list(found) == ["en"] and mostly_chinese(found["en"]):
        return {"zh": found["en"]}
    return found


def read_several(rows: Sequence[dict]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """All captions of each row, for the languages in which any row has more than one."""
    names = list(read_texts(rows))
    columns = COLUMNS["en"] if names == ["zh"] and not any(all_texts(row, COLUMNS["zh"]) for row in rows) else None
    found = {language: tuple(all_texts(row, columns or COLUMNS[language]) for row in rows) for language in names}
    return {language: texts for language, texts in found.items() if any(len(some) > 1 for some in texts)}


def _text(row: dict, columns: Sequence[str]) -> str:
    return next(iter(all_texts(row, columns)), "")


def all_texts(row: dict, columns: Sequence[str]) -> tuple[str, ...]:
    """The captions in the first of these columns that has any. Some sets give several for an image, as a list."""
    for column in columns:
        value = row.get(column)
        cells = value if isinstance(value, (list, tuple)) else [value]
        texts = [whole(cell) for cell in cells if isinstance(cell, (str, int, float)) and cell == cell]
        if any(texts):
            return tuple(filter(None, texts))
    return ()


def whole(text: str | float) -> str:
    """A caption as tokenizers take it: no blanks around it, and no half of a surrogate pair."""
    return str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()


def mostly_chinese(texts: Sequence[str]) -> bool:
    letters = "".join(texts)
    return sum("\u4e00" <= letter <= "\u9fff" for letter in letters) > len(letters) / 2
