"""What the plate stands on: wood, linen, a checked cloth, slate, marble, a bamboo mat."""

import numpy as np

from common.data.creatures.shapes import turned
from common.data.dishes.ingredients.relief import GLOSS, HEIGHT, RED, Array, Relief, blend

Ground = tuple[Array, Array | float, float]  # colour (3, H, W), height (H, W), gloss


def lay_table(relief: Relief, name: str, luck: list[float]) -> None:
    """luck: 6 numbers in [0, 1)"""
    x, y = turned(relief.x, relief.y, 30 * (luck[0] - 0.5))
    colour, height, gloss = TABLES[name](x, y, [6.3 * u for u in luck[1:]])
    fade = 1.04 - 0.16 * (relief.x - relief.y + 0.2) - 0.25 * (relief.x**2 + relief.y**2)  # light from the upper left
    relief.field[RED] = colour * fade
    relief.field[HEIGHT], relief.field[GLOSS] = height, gloss


def wood(x: Array, y: Array, luck: list[float]) -> Ground:
    """Planks with a wavy grain."""
    plank = np.floor(y * 3.2 + luck[0])
    shade = 0.5 + 0.5 * np.sin(2.4 * plank + luck[1])
    grain = np.sin(38 * (y + 0.02 * np.sin(5 * x + 3 * plank + luck[2])) + 3 * np.sin(2.2 * x + 2 * plank))
    grain = grain + 0.5 * np.sin(75 * y + 4 * x + luck[3])
    gap = np.abs(np.mod(y * 3.2 + luck[0], 1) - 0.5) > 0.485
    colour = blend(blend((0.70, 0.44, 0.22), (0.78, 0.52, 0.28), shade), (0.55, 0.31, 0.14), 0.30 + 0.25 * grain)
    return blend(colour, (0.28, 0.14, 0.06), 0.8 * gap), 0.0004 * grain, 0.12


def linen(x: Array, y: Array, luck: list[float]) -> Ground:
    """A natural cloth, softly woven, with two blue-grey stripes near its edge."""
    weave = np.sin(150 * x) * np.sin(150 * y)
    slubs = np.sin(46 * y + 4 * np.sin(3 * x + luck[0])) * np.sin(7 * x + luck[1])
    colour = blend((0.90, 0.85, 0.75), (0.80, 0.73, 0.61), np.clip(0.4 + 0.25 * weave + 0.25 * slubs, 0, 1))
    stripe = np.minimum(np.abs(y + 0.37), np.abs(y + 0.43)) < 0.013
    height = 0.0005 * weave + 0.0015 * np.sin(9 * x + 5 * y + luck[2])
    return blend(colour, (0.42, 0.52, 0.62), 0.75 * stripe), height, 0.0


def gingham(x: Array, y: Array, luck: list[float]) -> Ground:
    """A red and white check."""
    across, along = (np.clip(4 * np.sin(24 * c + k) + 0.5, 0, 1) for c, k in ((x, luck[0]), (y, luck[1])))
    colour = blend((0.97, 0.93, 0.88), (0.80, 0.16, 0.16), 0.5 * across + 0.5 * along)
    return colour, 0.002 * np.sin(8 * x - 6 * y + luck[2]), 0.0


def slate(x: Array, y: Array, luck: list[float]) -> Ground:
    """Dark stone, split along its layers."""
    cloud = np.sin(7 * x + 3 * np.sin(5 * y + luck[0]) + luck[1]) + np.sin(11 * y + 2 * np.sin(7 * x + luck[2]))
    chips = np.sin(41 * x + 5 * np.sin(9 * y + luck[3])) * np.sin(37 * y + 4 * np.sin(11 * x + luck[0]))
    colour = blend((0.17, 0.19, 0.22), (0.29, 0.32, 0.35), 0.5 + 0.2 * cloud + 0.15 * chips)
    return colour, 0.0016 * chips + 0.002 * cloud, 0.15


def marble(x: Array, y: Array, luck: list[float]) -> Ground:
    """White stone with grey veins."""
    flow = 3.5 * x + 5.5 * y + 0.9 * np.sin(5 * x - 3 * y + luck[0]) + 0.5 * np.sin(11 * y + 4 * x + luck[1]) + luck[2]
    veins = np.exp(-7 * np.abs(np.sin(flow))) + 0.5 * np.exp(-14 * np.abs(np.sin(1.7 * flow - 4 * x + luck[3])))
    return blend((0.94, 0.94, 0.93), (0.52, 0.55, 0.58), np.clip(veins, 0, 0.85)), 0.0, 0.25


def bamboo(x: Array, y: Array, luck: list[float]) -> Ground:
    """A mat of thin green-gold sticks, tied in rows."""
    stick = y * 21 + luck[0]
    round_ = np.abs(np.sin(np.pi * stick))
    shade = 0.5 + 0.5 * np.sin(5.1 * np.floor(stick) + luck[1])
    tie = np.abs(np.mod(x * 3.5 + luck[2], 1) - 0.5) < 0.025
    colour = blend((0.66, 0.62, 0.30), (0.78, 0.72, 0.42), shade)
    colour = blend(colour, (0.34, 0.29, 0.12), np.clip(1 - 1.8 * round_, 0, 1))
    return blend(colour, (0.40, 0.30, 0.16), 0.85 * tie), 0.006 * np.sqrt(round_) + 0.002 * tie, 0.2


TABLES = {"wood": wood, "linen": linen, "gingham": gingham, "slate": slate, "marble": marble, "bamboo": bamboo}
