"""Creatures and dishes from a prompt, and what a classifier reads in the pictures."""

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from torch import Tensor

from common.data.creatures.attributes import ATTRIBUTES, NAMES
from common.data.creatures.captions import CHINESE, ENGLISH
from common.demo.pictures.models import creature_classifier, creature_pipeline
from common.evaluate.creature_classifier import read_attributes
from common.models.pipeline import SamplingConfig

MOST_PICTURES, MOST_STEPS = 4, 50
WITHOUT = r"\b(without|no)\b[^,;.]*|(没有|不要)[^，。；,]*"  # what a prompt does not want


class Reading(NamedTuple):
    """One attribute of a picture, as the classifier sees it."""

    attribute: str
    value: str  # the most probable one
    probability: float
    asked: str | None  # the value that the prompt asks for, if it names one


class CreatureMoment(NamedTuple):
    """The prediction of the clean pictures after a step."""

    done: int
    total: int
    images: Tensor  # (n, 3, S, S) in [-1, 1]
    readings: list[list[Reading]]  # of every picture; empty until the last step
    unknown: list[str]  # words of the prompt that the model never read


def draw_creatures(prompt: str, negative: str, w: float, n: int, steps: int, seed: int) -> Iterator[CreatureMoment]:
    """n pictures for one prompt. The last moment holds the samples and their readings."""
    pipeline = creature_pipeline()
    config = SamplingConfig(w, negative, f"dpmpp_2m:{steps}", seed=seed)
    unknown = unknown_words(prompt)
    for step in pipeline.txt2img_steps([prompt] * n, config):
        last = step.i + 1 == steps
        images = pipeline.decode(step.x if last else step.x0)
        yield CreatureMoment(step.i + 1, steps, images, read(images, prompt) if last else [], unknown)


def read(images: Tensor, prompt: str) -> list[list[Reading]]:
    """All attributes of each picture; those that the prompt asks for come first."""
    values, probabilities = read_attributes(creature_classifier(), images)
    wanted = asked_for(prompt)
    order = sorted(NAMES, key=lambda name: name not in wanted)
    return [
        [
            Reading(name, ATTRIBUTES[name][int(row[k])], float(p[k]), wanted.get(name))
            for name in order
            for k in [NAMES.index(name)]
        ]
        for row, p in zip(values, probabilities, strict=True)
    ]


@cache
def phrases() -> list[tuple[str, str, str]]:
    """(words, attribute, value) of all captions, in both languages; longer words first."""
    found = [
        (bare(words.lower()), name, value)
        for table in (ENGLISH, CHINESE)
        for name, values in table.items()
        for value, ways in values.items()
        for place, words in ways
        if place != "lacks"
    ]
    return sorted(found, key=lambda each: -len(each[0]))


def bare(words: str) -> str:
    """Words without an article or "on", which a list of words ("red, monster, long tail") leaves out."""
    return words.removeprefix("on ").removeprefix("an ").removeprefix("a ")


def asked_for(prompt: str) -> dict[str, str]:
    """The attributes whose value a prompt names with the words of the captions: {"colour": "red", "wings": "bat"}.

    Found words are removed, so that "a light belly" does not also count as something shorter.
    """
    wanted: dict[str, str] = {}
    rest = re.sub(WITHOUT, " , ", prompt.lower())
    for words, name, value in phrases():
        pattern = re.escape(words) if not words.isascii() else rf"\b{re.escape(words)}\b"
        if name not in wanted and re.search(pattern, rest):
            wanted[name] = value
            rest = re.sub(pattern, " , ", rest)
    return wanted


def unknown_words(prompt: str) -> list[str]:
    """Words that no caption of the training had, so that they mean little to the model."""
    tokenizer = getattr(creature_pipeline().text_encoder, "tokenizer", None)
    return list(tokenizer.unknown(prompt)) if tokenizer is not None and prompt.strip() else []
