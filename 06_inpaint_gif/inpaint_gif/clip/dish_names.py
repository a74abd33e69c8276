"""Names of dishes: names for training, held-out names for testing, and the parsing of a name that a user types.

Most dishes of the menu have several names. If a dish has two or more other names, the last of them is held out: no
training caption contains it. So training uses 番茄炒蛋, 西红柿炒鸡蛋 and 土鸡蛋炒番茄,
and 番茄炒鸡蛋 measures generalization to an unseen name.
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
from common.data.dishes.dataset import dish
from common.data.dishes.menu import DISHES
from common.data.drawn import CAPTION, generator
from common.errors import UserError
from common.viz import words
from inpaint_gif.clip.formats import SPECIAL
from inpaint_gif.clip.model import ChineseCLIP

Names = Mapping[str, Sequence[str]]  # {label: all its names}

CHINESE = re.compile("[\u3400-\u9fff]")
VARIANTS = 8  # captions of each drawn dish; a step of a training uses one of them
NEAREST = 3  # number of nearest dishes in a query's result
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"  # always in the vocabulary, because users may type them


def held_out_names() -> dict[str, str]:
    """{dish: its held-out name}. A name that is part of a longer name of the same dish cannot be held out,
    so it is left out here.
    """
    last = {dish: names_of(dish, "zh")[-1] for dish in DISHES if len(names_of(dish, "zh")) > 2}
    return {
        dish: name for dish, name in last.items() if not any(name in other != name for other in names_of(dish, "zh"))
    }


HELD_OUT = held_out_names()
LEARNED: dict[str, tuple[str, ...]] = {
    dish: tuple(n for n in names_of(dish, "zh") if n != HELD_OUT.get(dish)) for dish in DISHES
}


def captions_of(attributes: Mapping[str, str], number: int, rng: np.random.Generator) -> list[str]:
    """Captions of one picture, none with the held-out name:
    alternately a name alone, and a name with vessel, table and so on.
    """
    held_out, captions = HELD_OUT.get(attributes["dish"]), []
    while len(captions) < number:
        text = describe(attributes, "zh", rng, () if len(captions) % 2 == 0 else None)
        if held_out is None or held_out not in text:
            captions.append(text)
    return captions


def training_captions(n: int, seed: int) -> list[list[str]]:
    """VARIANTS captions of each of the first n drawn dishes of the training split."""
    return [captions_of(dish(0, "train", i)[0], VARIANTS, generator(CAPTION, seed, "train", i)) for i in range(n)]


def vocabulary(texts: Sequence[str]) -> tuple[str, ...]:
    """All tokens of these texts: each Chinese character or punctuation mark, and each letter of other words, with ##
    before it inside a word, as in BERT. Every other character becomes [UNK].

    The 21,128 tokens of the published models would need 5 MB of weights here,
    and nearly all of them would never be trained.
    """
    clean, cut = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    pieces = {c for letter in LETTERS for c in (letter, f"##{letter}")}
    for text in texts:
        for word, _ in cut.pre_tokenize_str(clean.normalize_str(text)):
            pieces |= {word[0], *(f"##{c}" for c in word[1:])}
    return (*SPECIAL, *sorted(pieces))


# ------------------------------------------------------------------------------------------------------------- queries


def name_embeddings(clip: ChineseCLIP, names: Names) -> Tensor:
    """One unit vector per label: the normalized mean of the embeddings of its names. (C, D)"""
    vectors = clip.encode_text([name for some in names.values() for name in some])
    return F.normalize(
        torch.stack([part.mean(0) for part in vectors.split([len(some) for some in names.values()])]), dim=-1
    )


@dataclass(frozen=True)
class DishQuery:
    """A name that a user typed, and what the menu and the CLIP know about it.

    text     as it was typed
    name     the text that the CLIP encodes
    dish     the dish of the menu with this name, or None
    nearest  the dishes of the menu with the nearest name embeddings, and their cosines, nearest first
    remarks  sentences for the user
    """

    text: str
    name: str
    dish: str | None
    nearest: tuple[tuple[str, float], ...]
    remarks: tuple[str, ...]


def dish_of(text: str) -> str | None:
    """The dish of the menu that has this name, in Chinese or English; None if there is none."""
    wanted = text.strip().casefold()
    names = {
        name.casefold(): dish for dish in DISHES for language in ("zh", "en") for name in names_of(dish, language)
    }
    return names.get(wanted)


def parse_dish_name(clip: ChineseCLIP, text: str) -> DishQuery:
    """Look a name up on the menu and in the CLIP.
    Any text but an empty one is accepted; `remarks` says what the CLIP cannot use.
    """
    name = " ".join(text.split())
    if not name:
        raise UserError("the name of the dish is empty; give one in Chinese, for instance 番茄炒蛋")
    dish, unknown, remarks = dish_of(name), clip.unknown(name), []
    if dish and (unknown or not CHINESE.search(name)):
        remarks.append(words(f"{name} is read as {dish}, its name on the menu", f"“{name}”按菜单上的名字“{dish}”处理"))
        name, unknown = dish, []
    if not CHINESE.search(name):
        remarks.append(
            words(
                f"'{name}' is not Chinese, and Chinese names are what this CLIP has learned; try one such as 番茄炒蛋",
                f"“{name}”不是中文，而这个 CLIP 只学过中文菜名；请换一个，例如番茄炒蛋",
            )
        )
    elif unknown:
        characters = "、".join(unknown)
        remarks.append(
            words(
                f"this CLIP has never read {characters}, so for it the name says that much less",
                f"这个 CLIP 从没见过“{characters}”，所以名字的这一部分对它不起作用",
            )
        )
    if rest := clip.tokenizer.rest(name):
        remarks.append(
            words(
                f"the name is longer than the {clip.length - 2} characters that are read; it is cut before '{rest}'",
                f"名字超过了能读入的 {clip.length - 2} 个字，从“{rest}”起被截断",
            )
        )
    nearest = nearest_dishes(clip, name)
    if dish is None:
        english = ", ".join(f"{other} ({cosine:.2f})" for other, cosine in nearest)
        chinese = "、".join(f"{other}（{cosine:.2f}）" for other, cosine in nearest)
        remarks.append(
            words(
                f"{name} is not one of the {len(DISHES)} dishes on the menu, so the picture is a best effort; nearest to it are {english}",
                f"“{name}”不在菜单的 {len(DISHES)} 道菜之中，只能尽力去画；与它最接近的是{chinese}",
            )
        )
    return DishQuery(text, name, dish, nearest, tuple(remarks))


def nearest_dishes(clip: ChineseCLIP, name: str) -> tuple[tuple[str, float], ...]:
    """The dishes of the menu nearest to a name, by the cosine between their embeddings."""
    cosines = name_embeddings(clip, LEARNED) @ clip.encode_text([name])[0]
    best = cosines.topk(NEAREST)
    return tuple(
        (list(LEARNED)[i], round(value, 4))
        for value, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )
