"""Dishes: drawn plates of Chinese food seen from above,
with their names in Chinese and English and a table of attributes.

The label of a picture is its dish. A caption with `mention=()` is the name of the dish and nothing else.
"""

from common.data.dishes.attributes import ATTRIBUTES, check_attributes, draw_attributes
from common.data.dishes.captions import describe
from common.data.dishes.draw import draw
from common.data.drawn import DrawnDataset

DISH_IMAGES = DrawnDataset(
    name="dishes",
    size=64,
    values=ATTRIBUTES,
    draw_attributes=draw_attributes,
    draw_pose=lambda rng: int(rng.random() * 2**32),  # a seed
    draw=draw,
    describe=describe,
    check=check_attributes,
    label="dish",
)
dish, caption, load_dishes = DISH_IMAGES.sample, DISH_IMAGES.caption, DISH_IMAGES.load
