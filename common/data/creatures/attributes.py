"""The eleven attributes of a creature, and the pairs of values that training never sees together."""

from collections.abc import Mapping

import numpy as np

from common.data.drawn import check_values

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

# Each element lacks one colour: no blue creature of fire is ever trained on, no red one of water. A model that draws
# one combines two things that it was only trained on apart. One colour of ten for each element is a tenth of all
# combinations.
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


def check_attributes(attributes: Mapping[str, str]) -> None:
    """Refuse a creature with an attribute missing, or with a value that there is not."""
    check_values("a creature", ATTRIBUTES, attributes)


def draw_attributes(rng: np.random.Generator, held_out: bool) -> dict[str, str]:
    """Every attribute uniformly and independently, drawn again until the combination is of the kind wanted."""
    while True:
        u = rng.random(len(VALUES))
        attributes = {name: values[int(u[k] * len(values))] for k, (name, values) in enumerate(ATTRIBUTES.items())}
        if is_held_out(attributes) == held_out:
            return attributes
