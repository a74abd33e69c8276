"""What dishes are called: names to learn from, names kept for testing, and what an order means.

Most dishes of the menu have several names. The last other name of every dish that has two or more is kept back: no caption of the
training holds it. So 番茄炒蛋 is learned as 番茄炒蛋, 西红柿炒鸡蛋 and 土鸡蛋炒番茄, and 番茄炒鸡蛋 shows what was understood.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import normalizers, pre_tokenizers
from torch import Tensor

from common.data.dishes.captions import describe, names_of
from common.data.dishes.menu import DISHES
from common.errors import UserError
from inpaint_gif.clip.formats import SPECIAL
from inpaint_gif.clip.model import ChineseClip

Names = Mapping[str, Sequence[str]]  # what something is -> all it is called

CHINESE = re.compile("[\u3400-\u9fff]")
KEPT = 3  # nearest dishes that are named
WHOLE = "abcdefghijklmnopqrstuvwxyz0123456789"  # known however rare they are: anybody may type them


def held_out_names() -> dict[str, str]:
    """{dish: the name that training never sees}. A name that lies within a longer one of the same dish could not be kept back."""
    last = {dish: entry.also[-1] for dish, entry in DISHES.items() if len(entry.also) > 1}
    return {dish: name for dish, name in last.items() if not any(name in other != name for other in names_of(dish, "zh"))}


HELD_OUT = held_out_names()
LEARNED: dict[str, tuple[str, ...]] = {dish: tuple(n for n in names_of(dish, "zh") if n != HELD_OUT.get(dish)) for dish in DISHES}


def captions_of(attributes: Mapping[str, str], number: int, rng: np.random.Generator) -> list[str]:
    """Captions of one picture, none with the held-out name: in turn a name alone, and one with vessel, table and the like."""
    secret, captions = HELD_OUT.get(attributes["dish"]), []
    while len(captions) < number:
        text = describe(attributes, "zh", rng, () if len(captions) % 2 == 0 else None)
        if secret is None or secret not in text:
            captions.append(text)
    return captions


def vocabulary(texts: Sequence[str]) -> tuple[str, ...]:
    """Every piece of these texts, as BERT cuts them: a Chinese character or a mark is a token; of other words every letter is
    one, with ## before it if it does not begin the word. What occurs in none of them is [UNK], one token for all the unknown.

    The 21,128 pieces of the published models would be 5 MB of weights here, nearly all of them never trained.
    """
    clean, cut = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    pieces = {c for letter in WHOLE for c in (letter, f"##{letter}")}
    for text in texts:
        for word, _ in cut.pre_tokenize_str(clean.normalize_str(text)):
            pieces |= {word[0], *(f"##{c}" for c in word[1:])}
    return (*SPECIAL, *sorted(pieces))


# -------------------------------------------------------------------------------------------------------- what is ordered


def vectors_of(clip: ChineseClip, names: Names) -> Tensor:
    """One unit vector for each: the mean of the vectors of its names. (C, D)"""
    vectors = clip.encode_text([name for some in names.values() for name in some])
    return F.normalize(torch.stack([part.mean(0) for part in vectors.split([len(some) for some in names.values()])]), dim=-1)


@dataclass(frozen=True)
class Order:
    """A dish that somebody asks for.

    text     as it was typed
    name     what the CLIP reads
    dish     the dish of the menu that is called so, or None
    nearest  the dishes of the menu whose names mean most nearly the same to this CLIP, with their cosines, nearest first
    remarks  sentences for whoever asked
    """

    text: str
    name: str
    dish: str | None
    nearest: tuple[tuple[str, float], ...]
    remarks: tuple[str, ...]


def dish_of(text: str) -> str | None:
    """The dish of the menu that has this name, in Chinese or English."""
    wanted = text.strip().casefold()
    names = {name.casefold(): dish for dish in DISHES for language in ("zh", "en") for name in names_of(dish, language)}
    return names.get(wanted)


def take_order(clip: ChineseClip, text: str) -> Order:
    """What to read for a name, and what to say about it. Any text is served as well as this CLIP can, but an empty one."""
    name = " ".join(text.split())
    if not name:
        raise UserError("the name of the dish is empty; give one in Chinese, for instance 番茄炒蛋")
    dish, unknown, remarks = dish_of(name), clip.unknown(name), []
    if dish and (unknown or not CHINESE.search(name)):
        remarks.append(f"{name} is read as {dish}, its name on the menu")
        name, unknown = dish, []
    if not CHINESE.search(name):
        remarks.append(f"'{name}' is not Chinese, and Chinese names are what this CLIP has learned; try one such as 番茄炒蛋")
    elif unknown:
        remarks.append(f"this CLIP has never read {'、'.join(unknown)}, so for it the name says that much less")
    if rest := clip.tokenizer.rest(name):
        remarks.append(f"the name is longer than the {clip.length - 2} characters that are read; it is cut before '{rest}'")
    nearest = nearest_dishes(clip, name)
    if dish is None:
        close = "、".join(f"{other} ({cosine:.2f})" for other, cosine in nearest)
        remarks.append(f"{name} is not one of the {len(DISHES)} dishes on the menu, so the picture is a best effort; nearest to it are {close}")
    return Order(text, name, dish, nearest, tuple(remarks))


def nearest_dishes(clip: ChineseClip, name: str, number: int = KEPT) -> tuple[tuple[str, float], ...]:
    """The dishes of the menu nearest to a name, by the cosine between its vector and the dish's."""
    cosines = vectors_of(clip, LEARNED) @ clip.encode_text([name])[0]
    best = cosines.topk(number)
    return tuple((list(LEARNED)[i], round(value, 4)) for value, i in zip(best.values.tolist(), best.indices.tolist(), strict=True))
