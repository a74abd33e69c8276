"""Data sets that are drawn: creatures and dishes. They need no file and no download.

Every picture is a function of (seed, split, index): a set of 100 is the beginning of a set of 10,000, and the same
picture can be drawn at any size. The table of attributes is the truth; pictures and captions are made from it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from common.data.captions import LANGUAGES, Texts, check_language
from common.data.dataset import Attributes, Images
from common.data.sheet import SheetArgs
from common.errors import UserError
from common.io.memory import need
from common.io.pixels import to_float
from common.io.progress import with_progress
from common.viz import grid, save_picture

LENGTH = {"train": 10_000, "test": 1_000, "heldout": 1_000}  # default number of pictures of each split
SPLITS = tuple(LENGTH)
SIZES = range(16, 257)
APPEARANCE, CAPTION = range(2)  # random streams: the wording of a caption does not change the picture

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class DrawnDataset:
    """A set of pictures that are drawn when they are asked for.

    name             "creatures"
    size             default number of pixels a side
    values           {"colour": ("red", "orange", ...), ...}: the attributes of the table and their values
    draw_attributes  (rng, held_out) -> attributes {"colour": "red", ...}; held_out asks for combinations kept from
                     training
    draw_pose        rng -> all that varies in the picture of given attributes
    draw             (attributes, size, pose) -> (3, size, size) uint8
    describe         (attributes, language, rng, mention) -> caption; mention: names of attributes, None chooses them
                     at random
    check            attributes -> None; refuses values and combinations that there are not
    label            the attribute that is also the label of the pictures, if any
    """

    name: str
    size: int
    values: Mapping[str, tuple[str, ...]]
    draw_attributes: Callable[[np.random.Generator, bool], dict[str, str]]
    draw_pose: Callable[[np.random.Generator], Any]
    draw: Callable[[Mapping[str, str], int, Any], np.ndarray]
    describe: Callable[[Mapping[str, str], str, np.random.Generator, Sequence[str] | None], str]
    check: Callable[[Mapping[str, str]], None]
    label: str | None = None

    def to_row(self, attributes: Mapping[str, str]) -> list[int]:
        """{"colour": "red", ...} -> the row of the table, K indices."""
        self.check(attributes)
        return [values.index(attributes[name]) for name, values in self.values.items()]

    def to_names(self, row: Iterable[int | torch.Tensor]) -> dict[str, str]:
        """A row of the table, (K,) -> {"colour": "red", ...}."""
        return {name: values[int(i)] for (name, values), i in zip(self.values.items(), row, strict=True)}

    def sample(self, seed: int, split: str, index: int) -> tuple[dict[str, str], Any]:
        """The attributes of one picture and its pose, for `draw`.

        split  "train" and "test" hold no combination of NEVER_TOGETHER, "heldout" holds only those
        """
        rng = generator(APPEARANCE, seed, split, index)
        pose = self.draw_pose(rng)  # first, so that it does not depend on how often attributes are drawn again
        return self.draw_attributes(rng, split == "heldout"), pose

    def caption(
        self, seed: int, split: str, index: int, language: str = "both", mention: Sequence[str] | None = None
    ) -> str:
        """The caption of one picture in "en" or "zh"; "both" is English for even indices and Chinese for odd ones."""
        attributes, _ = self.sample(seed, split, index)
        chosen = tuple(LANGUAGES)[index % 2] if language == "both" else language
        return self.describe(attributes, chosen, generator(CAPTION, seed, split, index), mention)

    def load(
        self,
        split: str = "train",
        n: int | None = None,
        size: int | None = None,
        seed: int = 0,
        language: str = "both",
        mention: Sequence[str] | None = None,
    ) -> Images:
        """Draw n pictures, (n, 3, size, size), with their captions, attributes and labels.

        split     "train", "test" (of the same distribution) or "heldout" (combinations that neither of them holds)
        n         by default 10,000 for training and 1,000 otherwise
        size      pixels a side, 16 to 256
        language  "en", "zh", or "both" in turn
        mention   the attributes that captions mention; None leaves some out at random
        """
        size = self.size if size is None else size
        self._check(split, n, size, seed, language)
        n = LENGTH[split] if n is None else n
        need(
            4.0 * n * size * size,
            f"{n:,} {self.name} of {size} x {size} pixels",
            "the number of pictures, or their size",
        )
        pixels, rows = np.empty((n, 3, size, size), np.uint8), np.empty((n, len(self.values)), np.int64)
        for i in with_progress(f"drawing {self.name}", range(n), unit="picture"):
            attributes, pose = self.sample(seed, split, i)
            pixels[i], rows[i] = self.draw(attributes, size, pose), self.to_row(attributes)
        names, table = tuple(self.values), torch.from_numpy(rows)
        captions = tuple(self.caption(seed, split, i, language, mention) for i in range(n))
        images = Images(self.name, torch.from_numpy(pixels), captions=captions)
        images = replace(images, attributes=Attributes(table, names, tuple(self.values.values())))
        if self.label is None:
            return images
        return replace(images, labels=table[:, names.index(self.label)].clone(), classes=self.values[self.label])

    def load_bilingual(self, split: str, n: int | None, size: int) -> Images:
        """The default set, seed 0, with the captions of every picture in both languages."""
        images = self.load(split, n, size, language="en")
        chinese = tuple(self.caption(0, split, i, "zh") for i in range(len(images)))
        return replace(images, texts=Texts(self.name, {"en": images.captions or (), "zh": chinese}, default="both"))

    def save_sheet(self, args: SheetArgs, mention: Sequence[str] | None = None) -> None:
        """Write a sheet of pictures; print the captions, if asked for, and where the sheet is."""
        images = self.load(args.split, args.n, args.size, args.seed, args.language, mention)
        path = save_picture(grid(to_float(images.pixels), args.columns), args.out)
        if args.captions:
            for i, text in enumerate(images.need_captions()):
                print(f"{i + 1:4}  {text}")
        print(f"{path}: {args.n} {self.name} of {args.size} x {args.size} pixels")

    def _check(self, split: str, n: int | None, size: int, seed: int, language: str) -> None:
        check_split(split)
        if n is not None and n < 1:
            raise UserError(f"--n must be above 0, not {n}")
        if size not in SIZES:
            raise UserError(f"--size of {self.name} must be {SIZES[0]} to {SIZES[-1]} pixels, not {size}")
        if seed < 0:
            raise UserError(f"--seed must be 0 or more, not {seed}")
        check_language(language)


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"drawn data has no split '{split}'; choose one of {', '.join(SPLITS)}")


def generator(stream: int, seed: int, split: str, index: int) -> np.random.Generator:
    """Random numbers that depend on these four alone. (common.random does the same with torch.)"""
    check_split(split)
    return np.random.default_rng([stream, seed, SPLITS.index(split), index])


def choose(choices: Sequence[Choice], rng: np.random.Generator) -> Choice:
    """One of these at random, from one number that is drawn."""
    return choices[int(rng.random() * len(choices))]


def check_values(item: str, values: Mapping[str, Sequence[str]], attributes: Mapping[str, str]) -> None:
    """Refuse a missing attribute, and a value that there is not. item: "a creature"."""
    for name, possible in values.items():
        if attributes.get(name) not in possible:
            raise UserError(f"{name} of {item} must be one of {', '.join(possible)}, not '{attributes.get(name)}'")


def check_description(item: str, names: Sequence[str], language: str, mention: Sequence[str] | None) -> None:
    """Refuse a language without captions, and attributes that there are not. item: "a creature"."""
    if language not in LANGUAGES:
        raise UserError(f"unknown language '{language}'; a caption can be written in en or zh")
    if unknown := set(mention or ()) - set(names):
        raise UserError(f"{item} has no attribute '{min(unknown)}'; it has {', '.join(names)}")
