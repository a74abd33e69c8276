"""The attributes of a dish (its name, style, vessel, glaze and table),
and the pairs of values that training never sees together.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from common.data.dishes.menu import DISHES
from common.data.drawn import check_values
from common.errors import UserError

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "dish": tuple(DISHES),
    "style": ("stir-fried", "braised", "steamed", "boiled", "soup", "cold", "fried", "roasted"),
    "vessel": ("round plate", "oval plate", "square plate", "bowl", "steamer", "clay pot"),
    "glaze": ("white", "blue-and-white", "celadon", "black", "none"),
    "table": ("wood", "linen", "gingham", "slate", "marble", "bamboo"),
}
NAMES = tuple(ATTRIBUTES)
VALUES = tuple(ATTRIBUTES.values())
UNGLAZED = ("steamer", "clay pot")

# Each dish misses one table, the next dish of the menu the next one: a sixth of all combinations. A model that draws
# 番茄炒蛋 on wood combines two things that it was only trained on apart.
NEVER_TOGETHER: dict[str, str] = dict(zip(DISHES, itertools.cycle(ATTRIBUTES["table"])))


def is_held_out(attributes: Mapping[str, str]) -> bool:
    """Whether this combination of attributes is kept from the train and test splits."""
    return NEVER_TOGETHER[attributes["dish"]] == attributes["table"]


def check_attributes(attributes: Mapping[str, str]) -> None:
    """Refuse a dish with an attribute missing, or with a value that there is not."""
    check_values("a dish", ATTRIBUTES, attributes)
    dish = DISHES[attributes["dish"]]
    if attributes["style"] != dish.style:
        raise UserError(f"{attributes['dish']} is {dish.style}, not {attributes['style']}")
    if (attributes["vessel"] in UNGLAZED) != (attributes["glaze"] == "none"):
        raise UserError(
            f"a {attributes['vessel']} cannot have glaze '{attributes['glaze']}': a steamer and a clay pot have glaze 'none', and no other vessel has"
        )


def choose(choices: Sequence[str], u: float) -> str:
    return choices[int(u * len(choices))]


def draw_attributes(rng: np.random.Generator, held_out: bool) -> dict[str, str]:
    """A dish, one of its vessels, a glaze and a table, uniformly;
    drawn again until the combination is of the kind wanted.
    """
    while True:
        u = rng.random(4)
        name = choose(ATTRIBUTES["dish"], u[0])
        vessel = choose(DISHES[name].vessels, u[1])
        glaze = "none" if vessel in UNGLAZED else choose(ATTRIBUTES["glaze"][:-1], u[2])
        table = choose(ATTRIBUTES["table"], u[3])
        attributes = {"dish": name, "style": DISHES[name].style, "vessel": vessel, "glaze": glaze, "table": table}
        if is_held_out(attributes) == held_out:
            return attributes
