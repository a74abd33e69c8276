"""Creatures: drawn monsters with captions in English and Chinese and a table of eleven attributes."""

from common.data.creatures.attributes import ATTRIBUTES, check_attributes, draw_attributes
from common.data.creatures.captions import choose_mention, describe
from common.data.creatures.draw import POSE, draw
from common.data.drawn import CAPTION, DrawnDataset, generator

CREATURE_IMAGES = DrawnDataset(
    name="creatures",
    size=32,
    values=ATTRIBUTES,
    draw_attributes=draw_attributes,
    draw_pose=lambda rng: rng.random(POSE),
    draw=draw,
    describe=describe,
    check=check_attributes,
)
creature, caption, load_creatures = CREATURE_IMAGES.sample, CREATURE_IMAGES.caption, CREATURE_IMAGES.load


def mentioned(seed: int, split: str, index: int) -> list[str]:
    """The attributes whose value `caption` says, in either language: a picture of the caption must show these values.
    What it says by a plain word is left out: "wings" may be of any kind.
    """
    attributes, _ = creature(seed, split, index)
    return choose_mention(attributes, generator(CAPTION, seed, split, index)).exact
