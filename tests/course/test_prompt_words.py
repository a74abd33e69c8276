"""The prompts that the course shows ask for what its models have read: a rare word teaches nothing, and its picture
would show that, not the method."""

import re
from collections import Counter
from functools import cache

from common.data.creatures.dataset import caption
from helpers.creature_captions import claims
from helpers.programs import ROOT

QUOTED = re.compile(r"""(["'`])((?:an? |一只)[^"'`\\{}\n<>|]*(?:creature|monster|怪兽|怪物)[^"'`\\{}\n<>|]*)\1""")
# Words that the shipped models have never read, in prompts that show just that.
UNKNOWN = {
    "sks": "the name that DreamBooth teaches",
    "woodcut": "a style that the LoRA teaches",
    "turquoise": "a text about an unknown colour",
    "moustache": "a text about an unknown part",
    "big": "a text about a wording",
}
# Plain words for parts, which captions use only since the models for 64 x 64 pixels were trained: those read "without
# wings" and never "with wings", so a prompt with the plain word brings none, and a negative prompt brings some.
PLAIN = re.compile(r"\bwith \(*wings\b|--(?:negative|word) [\"'`]?wings\b|[长带有]着?翅膀")
ENOUGH_CLAIMS, ENOUGH_WORDS = 1 / 100, 1 / 200  # share of the captions of one language


def creature_prompts() -> dict[str, list[str]]:
    """Each quoted prompt for a creature, and the files that quote it."""
    found: dict[str, list[str]] = {}
    files = [f for pattern in ("*.py", "*.md") for f in ROOT.glob(f"0*/**/{pattern}")]
    for file in [*files, ROOT / "README.md", ROOT / "README.zh.md"]:
        for _, prompt in QUOTED.findall(file.read_text(encoding="utf-8")):
            prompt = re.sub(r"\+\+|[()]|\)[\d.]+|(?<=\))[\d.]+|[\d.]+", "", prompt)  # the weights of words
            found.setdefault(prompt, []).append(str(file.relative_to(ROOT)))
    return found


@cache
def counts(language: str) -> tuple[Counter, Counter, int]:
    """How often each claim is made and each English word is said, in the captions that models are trained on."""
    captions = [caption(0, "train", i, language) for i in range(4000)]
    said = Counter(claim for text in captions for claim in claims(text, language))
    return said, Counter(word for text in captions for word in set(words_of(text))), len(captions)


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:-[a-z]+)*", text)


def test_prompts_are_found():
    found = creature_prompts()
    assert len(found) > 25 and any("怪兽" in prompt for prompt in found)


def test_models_have_often_read_what_prompts_say():
    rare = []
    for prompt, files in creature_prompts().items():
        language = "zh" if re.search("[一-鿿]", prompt) else "en"
        said, words, n = counts(language)
        if set(words_of(prompt)) & set(UNKNOWN):
            continue
        rare += [
            f"{claim} of '{prompt}' in {files}"
            for claim in claims(prompt, language)
            if said[claim] < n * ENOUGH_CLAIMS
        ]
        rare += [f"{word} of '{prompt}' in {files}" for word in words_of(prompt) if words[word] < n * ENOUGH_WORDS]
    assert not rare, rare


def test_programs_name_the_kind_of_wings():
    """In what they print, in their defaults and in the commands of their pages."""
    shown = [f for chapter in ("02", "04", "05") for f in ROOT.glob(f"{chapter}_*/*.py") if "lesson" not in f.name]
    shown += [
        f for chapter in ("02", "04", "05") for f in ROOT.glob(f"{chapter}_*/*/*.py") if "exercises" not in f.parts
    ]
    shown += [*ROOT.glob("docs/*.md"), *ROOT.glob("0[245]_*/README*.md"), *ROOT.glob("README*.md")]
    assert len(shown) > 60
    plain = {str(f.relative_to(ROOT)): PLAIN.findall(f.read_text(encoding="utf-8")) for f in shown}
    assert not any(plain.values()), {name: found for name, found in plain.items() if found}


def test_words_called_unknown_are_unknown():
    for word in UNKNOWN:
        assert counts("en")[1][word] == 0, word
