"""What a creature can be: eleven attributes, and the pairs of values that training never sees together."""

from collections.abc import Iterable, Mapping

import numpy as np

from common.errors import UserError

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black"),
    "body": ("round", "tall", "wide", "square", "pear", "fluffy"),
    "element": ("fire", "water", "grass", "electric", "ice", "rock", "ghost", "fairy"),
    "tail": ("none", "long", "curly", "bushy", "pointed"),
    "ears": ("none", "cat", "bear", "rabbit", "dog"),
    "wings": ("none", "feathered", "bat", "butterfly"),
    "horns": ("none", "one", "two", "antennae"),
    "pattern": ("plain", "belly", "stripes", "spots"),
    "eyes": ("one", "two", "three"),
    "mood": ("happy", "sleepy", "angry"),
    "background": ("cream", "sky", "mint", "rose", "lilac"),
}
NAMES = tuple(ATTRIBUTES)
VALUES = tuple(ATTRIBUTES.values())
COMBINATIONS = int(np.prod([len(values) for values in VALUES], dtype=np.int64))

# Each element lacks one colour: no blue creature of fire is ever trained on, no red one of water. Whoever draws one has put
# two things together that were only ever seen apart. One colour of ten, for every element: a tenth of all combinations.
NEVER_TOGETHER: dict[str, str] = {
    "fire": "blue",
    "water": "red",
    "grass": "pink",
    "electric": "purple",
    "ice": "orange",
    "rock": "yellow",
    "ghost": "green",
    "fairy": "black",
}


def is_held_out(attributes: Mapping[str, str]) -> bool:
    """Whether this combination of attributes is kept from the train and test splits."""
    return NEVER_TOGETHER[attributes["element"]] == attributes["colour"]


def to_names(row: Iterable) -> dict[str, str]:
    """A row of the table (K,) -> {"colour": "red", "body": "round", ...}."""
    return {name: values[int(i)] for (name, values), i in zip(ATTRIBUTES.items(), row, strict=True)}


def check_attributes(attributes: Mapping[str, str]) -> None:
    """Refuse a creature with an attribute missing, or with a value that there is not."""
    for name, values in ATTRIBUTES.items():
        if attributes.get(name) not in values:
            raise UserError(f"{name} of a creature must be one of {', '.join(values)}, not '{attributes.get(name)}'")


def to_row(attributes: Mapping[str, str]) -> list[int]:
    """{"colour": "red", ...} -> the row of the table, K numbers."""
    check_attributes(attributes)
    return [values.index(attributes[name]) for name, values in ATTRIBUTES.items()]


def draw_attributes(rng: np.random.Generator, held_out: bool) -> dict[str, str]:
    """Every attribute uniformly and independently, drawn again until the combination is of the kind wanted."""
    while True:
        attributes = to_names([u * len(values) for u, values in zip(rng.random(len(VALUES)), VALUES, strict=True)])
        if is_held_out(attributes) == held_out:
            return attributes
