"""Dishes: plates of Chinese food seen from above, drawn, with their names in Chinese and English. No file, no download.

Every picture is a function of (seed, split, index): a set of 100 is the beginning of a set of 10,000, and the same dish can be
drawn at any size. The attributes of the table are the truth; pictures and captions are made from it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.data.captions import Texts
from common.data.dataset import Attributes, Images
from common.data.dishes.attributes import NAMES, VALUES, draw_attributes, to_row
from common.data.dishes.captions import LANGUAGES, describe
from common.data.dishes.draw import draw
from common.data.dishes.menu import DISHES
from common.errors import UserError
from common.io.memory import need

__all__ = ["DISHES", "LENGTH", "SIZES", "SPLITS", "caption", "describe", "dish", "dishes", "draw", "load_dishes"]

LENGTH = {"train": 10_000, "test": 1_000, "heldout": 1_000}  # how many there are by default
SPLITS = tuple(LENGTH)
SIZES = range(16, 257)
LOOKS, WORDS = range(2)  # what random numbers are for: a caption must not change the picture


def dish(seed: int, split: str, index: int) -> tuple[dict[str, str], int]:
    """One dish: its attributes {"dish": "番茄炒蛋", "table": "wood", ...} and its pose, a seed for `draw`.

    split: "train" and "test" hold no combination of attributes.NEVER_TOGETHER, "heldout" only those.
    """
    rng = generator(LOOKS, seed, split, index)
    pose = int(rng.random() * 2**32)  # drawn first: however many attributes are drawn again, the pose is the same
    return draw_attributes(rng, held_out=split == "heldout"), pose


def caption(seed: int, split: str, index: int, language: str = "both", name_only: bool = False) -> str:
    """The caption of one dish; "both" is English for even indices and Chinese for odd ones. name_only: nothing but its name."""
    attributes, _ = dish(seed, split, index)
    chosen = LANGUAGES[index % 2] if language == "both" else language
    return describe(attributes, chosen, generator(WORDS, seed, split, index), () if name_only else None)


def generator(use: int, seed: int, split: str, index: int) -> np.random.Generator:
    """Random numbers that depend on this place and on nothing drawn before. (common.random does the same with torch.)"""
    check_split(split)
    return np.random.default_rng([use, seed, SPLITS.index(split), index])


def load_dishes(split: str = "train", n: int | None = None, size: int = 64, seed: int = 0, language: str = "both",
                name_only: bool = False) -> Images:  # fmt: skip
    """A set of dishes, drawn now: (n, 3, size, size), with captions, attributes and the dish as label.

    split      "train", "test" (both of the same kind) or "heldout" (a dish on a table where neither of them has it)
    n          how many; None is 10,000 to train and 1,000 otherwise
    size       pixels a side, 16 to 256
    language   of the captions: "en", "zh", or "both", half and half
    name_only  captions are the name of the dish and nothing else
    """
    check(split, n, size, seed, language)
    n = LENGTH[split] if n is None else n
    need(4.0 * n * size * size, f"{n:,} dishes of {size} x {size} pixels", "the number of pictures, or their size")
    pixels, rows = np.empty((n, 3, size, size), np.uint8), np.empty((n, len(NAMES)), np.int64)
    for i in tqdm(range(n), "drawing dishes", disable=n < 500, leave=False):
        attributes, pose = dish(seed, split, i)
        pixels[i], rows[i] = draw(attributes, size, pose), to_row(attributes)
    captions = tuple(caption(seed, split, i, language, name_only) for i in range(n))
    table = torch.from_numpy(rows)
    return Images("dishes", torch.from_numpy(pixels), table[:, 0].clone(), tuple(DISHES), captions, Attributes(table, NAMES, VALUES))


def dishes(data_dir: Path, split: str, size: int, n: int | None = None) -> Images:
    """For load("dishes"): the default set at this size, with its captions in both languages. It needs no data_dir."""
    images = load_dishes(split, n, size, language="en")
    chinese = tuple(caption(0, split, i, "zh") for i in range(len(images)))
    return replace(images, texts=Texts("dishes", {"en": images.captions, "zh": chinese}, default="both"))


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"dishes have no split '{split}'; choose one of {', '.join(SPLITS)}")


def check(split: str, n: int | None, size: int, seed: int, language: str) -> None:
    """Refuse what cannot be drawn."""
    check_split(split)
    if n is not None and n < 1:
        raise UserError(f"--n must be above 0, not {n}")
    if size not in SIZES:
        raise UserError(f"--size of dishes must be {SIZES[0]} to {SIZES[-1]} pixels, not {size}")
    if seed < 0:
        raise UserError(f"--seed must be 0 or more, not {seed}")
    if language not in (*LANGUAGES, "both"):
        raise UserError(f"unknown language '{language}'; choose one of {', '.join(LANGUAGES)}, both")
