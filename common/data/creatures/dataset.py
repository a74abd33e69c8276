"""Creatures: drawn monsters with captions in English and Chinese and a table of attributes. No file, no download.

Every creature is a function of (seed, split, index): a set of 100 is the beginning of a set of 10,000, and the same creature
can be drawn at any size. The attributes of the table are the truth; pictures and captions are made from it.
"""

import numpy as np
import torch
from tqdm import tqdm

from common.data.creatures.attributes import NAMES, VALUES, draw_attributes, to_row
from common.data.creatures.captions import LANGUAGES, choose_mention, describe
from common.data.creatures.draw import POSE, draw
from common.data.dataset import Attributes, Images
from common.errors import UserError
from common.io.memory import need

LENGTH = {"train": 10_000, "test": 1_000, "heldout": 1_000}  # how many there are by default
SPLITS = tuple(LENGTH)
SIZES = range(16, 257)
LOOKS, WORDS = range(2)  # what random numbers are for: a caption must not change the picture


def creature(seed: int, split: str, index: int) -> tuple[dict[str, str], np.ndarray]:
    """One creature: its attributes {"colour": "red", ...} and its pose, for `draw`.

    split: "train" and "test" hold no combination of attributes.NEVER_TOGETHER, "heldout" only those.
    """
    rng = generator(LOOKS, seed, split, index)
    pose = rng.random(POSE)  # drawn first: however many attributes are drawn again, the pose is the same
    return draw_attributes(rng, held_out=split == "heldout"), pose


def caption(seed: int, split: str, index: int, language: str = "both") -> str:
    """The caption of one creature; "both" is English for even indices and Chinese for odd ones."""
    attributes, _ = creature(seed, split, index)
    chosen = LANGUAGES[index % 2] if language == "both" else language
    return describe(attributes, chosen, generator(WORDS, seed, split, index))


def mentioned(seed: int, split: str, index: int) -> list[str]:
    """The attributes that `caption` speaks of, in whichever language: what a picture of it can be held to."""
    attributes, _ = creature(seed, split, index)
    return choose_mention(attributes, generator(WORDS, seed, split, index))


def generator(use: int, seed: int, split: str, index: int) -> np.random.Generator:
    """Random numbers that depend on this place and on nothing drawn before. (common.random does the same with torch.)"""
    check_split(split)
    return np.random.default_rng([use, seed, SPLITS.index(split), index])


def load_creatures(split: str = "train", n: int | None = None, size: int = 32, seed: int = 0, language: str = "both") -> Images:
    """A set of creatures, drawn now: (n, 3, size, size), with captions and attributes.

    split     "train", "test" (both of the same kind) or "heldout" (combinations that neither of them holds)
    n         how many; None is 10,000 to train and 1,000 otherwise
    size      pixels a side, 16 to 256
    language  of the captions: "en", "zh", or "both", half and half
    """
    check(split, n, size, seed, language)
    n = LENGTH[split] if n is None else n
    need(4.0 * n * size * size, f"{n:,} creatures of {size} x {size} pixels", "the number of pictures, or their size")
    pixels, rows = np.empty((n, 3, size, size), np.uint8), np.empty((n, len(NAMES)), np.int64)
    for i in tqdm(range(n), "drawing creatures", disable=n < 1000, leave=False):
        attributes, pose = creature(seed, split, i)
        pixels[i], rows[i] = draw(attributes, size, pose), to_row(attributes)
    captions = tuple(caption(seed, split, i, language) for i in range(n))
    table = Attributes(torch.from_numpy(rows), NAMES, VALUES)
    return Images("creatures", torch.from_numpy(pixels), captions=captions, attributes=table)


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"creatures have no split '{split}'; choose one of {', '.join(SPLITS)}")


def check(split: str, n: int | None, size: int, seed: int, language: str) -> None:
    """Refuse what cannot be drawn."""
    check_split(split)
    if n is not None and n < 1:
        raise UserError(f"--n must be above 0, not {n}")
    if size not in SIZES:
        raise UserError(f"--size of creatures must be {SIZES[0]} to {SIZES[-1]} pixels, not {size}")
    if seed < 0:
        raise UserError(f"--seed must be 0 or more, not {seed}")
    if language not in (*LANGUAGES, "both"):
        raise UserError(f"unknown language '{language}'; choose one of {', '.join(LANGUAGES)}, both")
