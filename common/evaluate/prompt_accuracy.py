"""Prompt adherence of a text-to-image model of creatures:
which of the attributes that a caption names are in the image?

A classifier that knows all creatures (creature_classifier.py) reads the attributes of each image; only those that the
caption mentions count. Captions describe creatures that the model has not seen: `test`, and `heldout`, combinations of
colour and element of which training held none. Every caption names both, so that a held-out prompt asks for a new
combination. Two bounds stand beside each number: real images of the same captions (the upper one), and real images
with each other's captions (chance).

    accuracy     share of the mentioned attributes that are right, with a bootstrap 95 % interval over prompts
    all right    share of images in which every mentioned attribute is right
    pair         share of images in which both colour and element are right: the combination
"""

from collections.abc import Mapping, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.data.creatures.attributes import NAMES
from common.data.creatures.dataset import CREATURE_IMAGES, caption, creature, mentioned
from common.data.creatures.draw import draw
from common.data.drawn import SIZES
from common.errors import UserError
from common.evaluate import creature_classifier
from common.evaluate.creature_classifier import CreatureClassifier, mentioned_table, read_attributes
from common.evaluate.distances import Estimate, bootstrap, one_thread
from common.models.pipeline import TextToImagePipeline

SEED = 0  # of the creatures that captions are taken from: the course's own
ASKED = ("colour", "element")  # what every prompt mentions
VARIANTS = 4  # images of each of the prompts whose diversity is measured
WIDTH = 46  # characters that a split takes in the table
SPLITS = {"test": "test", "heldout": "held-out combinations"}

Row = dict[str, Any]


class Prompts(NamedTuple):
    """Captions, and real images of what they describe."""

    split: str
    captions: list[str]  # N
    english: list[str]  # N, the same in English, for figures whose font has no Chinese
    wanted: Tensor  # (N, 11) the attributes of the creatures that are described
    mentioned: Tensor  # (N, 11) bool, which of them the captions mention
    real: Tensor  # (N, 3, S, S) uint8, those creatures
    variants: Tensor  # (VARIANTS, A, 3, S, S) uint8, for the first A prompts: other creatures that fit them as well


def make_prompts(split: str, n: int, language: str, size: int, with_variants: int = 0) -> Prompts:
    """The first n creatures of a split whose captions mention colour and element, drawn at size x size pixels.

    language       en, zh or both (half and half)
    with_variants  A, the number of prompts for which other fitting creatures are drawn, too
    """
    fitting = (i for i in count() if set(ASKED) <= set(mentioned(SEED, split, i)))
    chosen = list(islice(fitting, n))
    named = [mentioned(SEED, split, i) for i in chosen]
    found = [creature(SEED, split, i) for i in chosen]  # attributes and poses

    def variant(k: int, i: int) -> Tensor:
        """A creature that differs from the i-th in everything its caption leaves open."""
        attributes, pose = creature(SEED + 1, split, VARIANTS * i + k)
        return torch.from_numpy(draw(attributes | {name: found[i][0][name] for name in named[i]}, size, pose))

    A = min(n, with_variants)
    variants = [variant(k, i) for k in range(VARIANTS) for i in range(A)]
    return Prompts(
        split,
        [caption(SEED, split, i, language) for i in chosen],
        [caption(SEED, split, i, "en") for i in chosen],
        torch.tensor([CREATURE_IMAGES.to_row(attributes) for attributes, _ in found]),
        mentioned_table(named),
        torch.stack([torch.from_numpy(draw(attributes, size, pose)) for attributes, pose in found]),
        torch.stack(variants).unflatten(0, (VARIANTS, A))
        if variants
        else torch.empty(VARIANTS, 0, 3, size, size, dtype=torch.uint8),
    )


def check_creature_size(name: object, pipeline: TextToImagePipeline) -> None:
    """Refuse a model whose images are no creatures: they are RGB, and the classifier knows some sizes."""
    if pipeline.image_channels != 3 or pipeline.size not in SIZES:
        raise UserError(
            f"{name} draws {pipeline.image_channels} channels at {pipeline.size} pixels; "
            f"creatures are RGB and {SIZES[0]} to {SIZES[-1]} pixels a side"
        )


# --------------------------------------------------------------------------------------------------------- the numbers


def measure_accuracy(classifier: CreatureClassifier, prompts: Prompts, pixels: Tensor) -> Row:
    """accuracy with its interval, all_right, pair, and the accuracy of each attribute.
    pixels (N, 3, S, S) uint8, one for each prompt
    """
    read, _ = read_attributes(classifier, pixels)
    asked = (read, prompts.wanted, prompts.mentioned)
    right = (read == prompts.wanted) & prompts.mentioned
    accuracy = pooled_accuracy(right, prompts.mentioned)
    return {
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": min(accuracy.high, 1.0),
        "all_right": float(creature_classifier.all_right(*asked).cpu().double().mean()),
        "pair": float(right[:, [NAMES.index(name) for name in ASKED]].all(1).cpu().double().mean()),
    } | dict(zip(NAMES, creature_classifier.accuracies(*asked).tolist(), strict=True))


def pooled_accuracy(right: Tensor, mentioned: Tensor) -> Estimate:
    """The accuracy over all mentioned attributes.
    The bootstrap resamples prompts with everything they mention. Both (N, 11) bool
    """
    counts = torch.stack([right.sum(1), mentioned.sum(1)], 1).cpu().double()  # (N, 2)
    with one_thread():
        return bootstrap(lambda some: float(some[:, 0].sum() / some[:, 1].sum()), counts, times=1000)


def chance_accuracy(classifier: CreatureClassifier, prompts: Prompts) -> Row:
    """What real creatures get with each other's captions, over all attributes and for each:
    the model draws well and ignores the text.
    """
    read, _ = read_attributes(classifier, prompts.real)
    each = creature_classifier.chance(read, prompts.wanted, prompts.mentioned)  # (11,)
    counts = prompts.mentioned.cpu().double().sum(0)
    pooled = float((each.nan_to_num(0.0) * counts).sum() / counts.sum())
    return {"accuracy": pooled} | dict(zip(NAMES, each.tolist(), strict=True))


# ----------------------------------------------------------------------------------------------------------- the table


def table_header(splits: Sequence[str], left: int, *more: str) -> str:
    """Two lines: the splits, and the columns of each.
    left: width of the first column; more: what stands at the end of each line
    """
    above, below = more or ("", "")
    columns = f"{'accuracy':>10}{'(95 %)':>17}{'all right':>11}{'pair':>8}"
    titles = "".join(f"{SPLITS[split]:^{WIDTH}}" for split in splits)
    return f"{'':{left}}{titles}{above}\n{'w':>{left}}{columns * len(splits)}{below}"


def table_columns(row: Mapping[str, Any], suffix: str = "") -> str:
    """The columns of one split. suffix "" is the model's own, or of the columns that end in it;
    what was not measured stays blank.
    """
    if f"accuracy{suffix}" not in row:
        return " " * WIDTH
    if f"all_right{suffix}" not in row:
        return f"{row[f'accuracy{suffix}']:>10.1%}".ljust(WIDTH)
    interval = f"({100 * row[f'accuracy_low{suffix}']:.1f} to {100 * row[f'accuracy_high{suffix}']:.1f})"
    return f"{row[f'accuracy{suffix}']:>10.1%}{interval:>17}{row[f'all_right{suffix}']:>11.1%}{row[f'pair{suffix}']:>8.1%}"
