"""What the food lies in: plates, bowls, a bamboo steamer, a clay pot, and how they are glazed."""

import math
from dataclasses import dataclass

import numpy as np

from common.data.creatures.shapes import box, capsule, circle, ellipse, turned
from common.data.dishes.ingredients.relief import Array, Relief, blend


@dataclass(frozen=True)
class Area:
    """Where food may lie: an ellipse with middle (x, y) and half axes rx, ry, turned by `turn`.

    floor  height of the bottom; brim  height up to which a soup stands; heap  how high the middle is piled
    """

    x: float
    y: float
    rx: float
    ry: float
    turn: float
    floor: float
    brim: float
    heap: float

    def local(self, relief: Relief) -> tuple[Array, Array]:
        """Coordinates along the axes of the vessel, in picture widths."""
        return turned(relief.x - self.x, relief.y - self.y, math.degrees(self.turn))

    def place(self, u: Array, v: Array) -> tuple[Array, Array]:
        """Points of the unit disc -> points of the picture."""
        u, v, c, s = u * self.rx, v * self.ry, np.cos(self.turn), np.sin(self.turn)
        return self.x + c * u - s * v, self.y + s * u + c * v


# How vessels are cut: (distance from the rim, height) of their profile; rx, ry of the food; floor, brim and heap.
PLATE = ((-0.01, 0.0), (0.0, 0.030), (0.012, 0.034), (0.070, 0.020), (0.100, 0.008), (0.5, 0.008))
BOWL = ((-0.01, 0.0), (0.0, 0.085), (0.014, 0.092), (0.030, 0.084), (0.09, 0.045), (0.18, 0.02), (0.5, 0.012))
STEAMER = ((-0.008, 0.0), (0.0, 0.075), (0.048, 0.078), (0.056, 0.030), (0.5, 0.030))
POT = ((-0.012, 0.0), (0.0, 0.085), (0.02, 0.100), (0.045, 0.098), (0.058, 0.070), (0.12, 0.04), (0.5, 0.03))
SHAPES = {  # half width, half height, profile, food (rx, ry), floor, brim, heap
    "round plate": (0.470, 0.470, PLATE, (0.400, 0.400), 0.008, 0.018, 0.050),
    "oval plate": (0.485, 0.375, PLATE, (0.420, 0.310), 0.008, 0.018, 0.045),
    "square plate": (0.425, 0.425, PLATE, (0.365, 0.365), 0.008, 0.018, 0.045),
    "bowl": (0.440, 0.440, BOWL, (0.375, 0.375), 0.030, 0.062, 0.055),
    "steamer": (0.470, 0.470, STEAMER, (0.400, 0.400), 0.030, 0.034, 0.010),
    "clay pot": (0.440, 0.440, POT, (0.350, 0.350), 0.050, 0.075, 0.045),
}
GLAZES = {  # colour of the rim, of the middle
    "white": ((0.95, 0.95, 0.94), (0.87, 0.885, 0.90)),
    "blue-and-white": ((0.93, 0.95, 0.97), (0.86, 0.89, 0.93)),
    "celadon": ((0.68, 0.81, 0.72), (0.60, 0.74, 0.65)),
    "black": ((0.17, 0.16, 0.17), (0.13, 0.12, 0.13)),
}


def lay_vessel(relief: Relief, vessel: str, glaze: str, luck: list[float]) -> Area:
    """Put a vessel on the table; luck: 6 numbers in [0, 1). Returns where the food goes."""
    rx, ry, profile, food, *levels = SHAPES[vessel]
    scale, turn = 0.95 + 0.055 * luck[0], (luck[1] - 0.5) * TURN[vessel]
    area = Area(
        0.03 * (luck[2] - 0.5), 0.03 * (luck[3] - 0.5) + 0.004, food[0] * scale, food[1] * scale, turn, *levels
    )
    u, v = area.local(relief)
    d = outline(u, v, vessel, rx * scale, ry * scale)
    share = relief.cover(d)
    inwards, up = zip(*profile, strict=True)
    heights = np.interp(-d, inwards, up).astype(np.float32)
    if vessel == "clay pot":
        handles(relief, u, v, rx * scale)
    colour, gloss = MATERIALS[vessel](u, v, d) if vessel in MATERIALS else (porcelain(u, v, d, glaze, vessel), 0.75)
    relief.lay(share, colour, heights, gloss)
    return area


TURN = {"round plate": 6.28, "oval plate": 0.9, "square plate": 0.5, "bowl": 6.28, "steamer": 0.8, "clay pot": 1.2}


def outline(u: Array, v: Array, vessel: str, rx: float, ry: float) -> Array:
    if vessel == "square plate":
        return box(u, v, rx, ry, 0.09)
    return circle(u, v, rx) if rx == ry else ellipse(u, v, rx, ry)


def porcelain(u: Array, v: Array, d: Array, glaze: str, vessel: str) -> Array:
    """(3, H, W)"""
    rim, middle = GLAZES[glaze]
    colour = blend(rim, middle, np.clip((-d - 0.03) / 0.1, 0, 1))
    if glaze == "blue-and-white":
        return blue_pattern(colour, u, v, -d, 0.070 if "plate" in vessel else 0.075)
    if glaze == "black":
        return blend(colour, (0.50, 0.28, 0.12), np.clip(1 + d / 0.016, 0, 1) * 0.85)  # the glaze runs thin at the rim
    if glaze == "celadon":
        return blend(colour, (0.80, 0.90, 0.82), np.clip(1 + d / 0.014, 0, 1))
    return blend(colour, (0.86, 0.72, 0.42), 0.55 * (np.abs(d + 0.012) < 0.006))  # white: a thread of gold


def blue_pattern(colour: Array, u: Array, v: Array, depth: Array, band: float) -> Array:
    """Cobalt on white: a line at the rim, a band of petals, a line around the well."""
    angle = np.arctan2(v, u)
    petals = depth - 0.3 * band - 0.55 * band * np.abs(np.sin(9 * angle))
    soft = 0.008
    ink = np.clip(0.5 - (np.abs(depth - 0.010) - 0.006) / soft, 0, 1)
    ink = np.maximum(ink, 0.85 * np.clip(0.5 - (np.abs(depth - 1.08 * band) - 0.004) / soft, 0, 1))
    ink = np.maximum(ink, 0.8 * np.clip(0.5 - petals / soft, 0, 1) * np.clip(0.5 + (depth - 0.022) / soft, 0, 1))
    return blend(colour, (0.09, 0.20, 0.56), ink)


def bamboo_steamer(u: Array, v: Array, d: Array) -> tuple[Array, float]:
    """A bent hoop, slats across, and a round of paper under the food."""
    r, angle = np.sqrt(u * u + v * v), np.arctan2(v, u)
    rings = 0.5 + 0.5 * np.cos((d + 0.024) * 260)
    hoop = blend((0.66, 0.44, 0.20), (0.84, 0.63, 0.34), rings)
    hoop = blend(hoop, (0.46, 0.27, 0.10), np.clip(8 * (np.abs(np.sin(1.5 * angle)) - 0.985) * 8, 0, 0.8))
    slats = np.abs(np.sin(34 * v))
    inside = blend((0.42, 0.26, 0.10), (0.80, 0.60, 0.33), np.clip(2.2 * slats, 0, 1))
    paper = np.clip(0.5 - (r - 0.365) / 0.008, 0, 1)
    inside = blend(inside, (0.93, 0.86, 0.70), 0.82 * paper)
    return blend(inside, hoop, np.clip(0.5 + (d + 0.052) / 0.005, 0, 1)), 0.15


def clay(u: Array, v: Array, d: Array) -> tuple[Array, float]:
    """Rough and sandy outside, a brown glaze inside."""
    grit = np.sin(71 * u + 3 * np.sin(40 * v)) * np.sin(67 * v)
    rim = blend((0.36, 0.22, 0.14), (0.48, 0.31, 0.20), 0.5 + 0.3 * grit)
    return blend(rim, (0.28, 0.13, 0.06), np.clip(0.5 - (d + 0.05) / 0.01, 0, 1)), 0.45


MATERIALS = {"steamer": bamboo_steamer, "clay pot": clay}


def handles(relief: Relief, u: Array, v: Array, r: float) -> None:
    ears = capsule(np.abs(u), v, (r + 0.012, -0.06), (r + 0.012, 0.06), 0.032, 0.032)
    relief.lay(relief.cover(ears), (0.36, 0.22, 0.14), 0.05, 0.2)
