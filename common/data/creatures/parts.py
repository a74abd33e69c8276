"""Wings, tails, ears and horns.

Creature coordinates: x to the right of the middle line, y above the ground. What is symmetrical is drawn once, in |x|.
"""

from dataclasses import dataclass

import numpy as np

from common.data.creatures.canvas import Canvas, Colour
from common.data.creatures.shapes import capsule, circle, ellipse, polygon, rope, together, turned

CREAM = (1.0, 0.96, 0.86)


@dataclass(frozen=True)
class Paint:
    """The colours of one creature."""

    main: Colour
    mark: Colour  # stripes, spots and what should stand out
    light: Colour  # the belly
    line: Colour  # outlines


@dataclass(frozen=True)
class Build:
    """Where the parts of a body sit, in creature coordinates."""

    top: float  # height of the crown
    ear: tuple[float, float]  # where the right ear begins
    side: float  # half the width where tail and arms begin
    shoulder: float  # half the width where the wings begin
    eyes: float  # height of the eyes
    foot: float  # distance of a foot from the middle


# --------------------------------------------------------------------------------------------------------------- wings


def feathered(c: Canvas, b: Build, p: Paint) -> None:
    x, y = np.abs(c.x) - b.shoulder + 0.03, c.y - 0.62 * b.eyes - 0.08
    feathers = (((0.19, -0.06), 0.040), ((0.225, 0.03), 0.046), ((0.20, 0.13), 0.052))
    for tip, r in feathers:
        c.outlined(capsule(x, y, (0, 0), tip, 0.05, r), (1.0, 0.99, 0.96), (0.50, 0.52, 0.62), 0.015)


def bat(c: Canvas, b: Build, p: Paint) -> None:
    x, y = np.abs(c.x) - b.shoulder + 0.03, c.y - 0.62 * b.eyes - 0.08
    skin = polygon(x, y, [(0, 0.07), (0.12, 0.22), (0.27, 0.13), (0.245, -0.085), (0.0, -0.09)])
    bites = together(
        circle(x - 0.19, y + 0.125, 0.075), circle(x - 0.07, y + 0.135, 0.065), circle(x - 0.30, y - 0.005, 0.055)
    )
    c.outlined(np.maximum(skin, -bites), (0.42, 0.20, 0.50), (0.16, 0.06, 0.22), 0.014)
    bones = together(
        capsule(x, y, (0, 0.06), (0.12, 0.20), 0.012, 0.01), capsule(x, y, (0.12, 0.2), (0.145, -0.07), 0.01, 0.006)
    )
    c.fill(bones, (0.72, 0.45, 0.80))


def butterfly(c: Canvas, b: Build, p: Paint) -> None:
    x, y = np.abs(c.x) - b.shoulder + 0.02, c.y - 0.62 * b.eyes - 0.08
    upper = ellipse(*turned(x - 0.125, y - 0.10, 38), 0.145, 0.095)
    lower = circle(x - 0.11, y + 0.075, 0.075)
    c.outlined(together(upper, lower), (0.18, 0.78, 0.80), (0.05, 0.32, 0.42), 0.016)
    spots = together(ellipse(*turned(x - 0.155, y - 0.125, 38), 0.055, 0.04), circle(x - 0.125, y + 0.075, 0.03))
    c.fill(spots, (1.0, 0.93, 0.45))


# --------------------------------------------------------------------------------------------------------------- tails


def long_tail(c: Canvas, b: Build, p: Paint) -> None:
    s = b.side
    path = [
        (s + x, y)
        for x, y in (
            (-0.06, 0.09),
            (0.03, 0.06),
            (0.10, 0.065),
            (0.145, 0.11),
            (0.15, 0.18),
            (0.135, 0.25),
            (0.15, 0.32),
            (0.185, 0.35),
        )
    ]
    c.outlined(rope(c.x, c.y, path, 0.042, 0.024), p.main, p.line)


def curly_tail(c: Canvas, b: Build, p: Paint) -> None:
    x, y = c.x - b.side - 0.095, c.y - 0.18
    angles = np.radians(np.linspace(-110, 360, 16))
    path = [
        (float(r * np.cos(a)), float(r * np.sin(a))) for a, r in zip(angles, np.linspace(0.115, 0.02, 16), strict=True)
    ]
    c.outlined(rope(x, y, [(-0.15, -0.09), *path], 0.030, 0.016), p.main, p.line, 0.014)


def bushy_tail(c: Canvas, b: Build, p: Paint) -> None:
    x, y = c.x - b.side, c.y - 0.07
    brush = together(
        capsule(x, y, (-0.04, 0), (0.095, 0.10), 0.05, 0.108), capsule(x, y, (0.095, 0.10), (0.11, 0.27), 0.108, 0.015)
    )
    c.outlined(brush, p.main, p.line)
    tip = 0.145 + 0.02 * np.cos(x * 90) - y  # a wavy edge, above which the fur is light
    c.fill(np.maximum(brush, tip), CREAM)


def pointed_tail(c: Canvas, b: Build, p: Paint) -> None:
    x, y = c.x - b.side, c.y - 0.07
    c.outlined(
        rope(x, y, [(-0.05, 0.02), (0.06, 0.0), (0.12, 0.05), (0.125, 0.14)], 0.03, 0.02), p.main, p.line, 0.016
    )
    c.outlined(polygon(x, y, [(0.035, 0.13), (0.215, 0.13), (0.13, 0.27)]), p.mark, p.line, 0.018)


# ---------------------------------------------------------------------------------------------------------------- ears

INNER_EAR = (1.0, 0.68, 0.72)


def cat_ears(c: Canvas, b: Build, p: Paint) -> None:
    x, y = np.abs(c.x) - b.ear[0], c.y - b.ear[1]
    c.outlined(capsule(x, y, (-0.015, 0.0), (0.055, 0.16), 0.085, 0.012), p.main, p.line)
    c.fill(capsule(x, y, (0.0, 0.02), (0.047, 0.125), 0.045, 0.006), INNER_EAR)


def bear_ears(c: Canvas, b: Build, p: Paint) -> None:
    x, y = np.abs(c.x) - b.ear[0] - 0.02, c.y - b.ear[1] - 0.055
    c.outlined(circle(x, y, 0.085), p.main, p.line)
    c.fill(circle(x, y, 0.05), INNER_EAR)


def rabbit_ears(c: Canvas, b: Build, p: Paint) -> None:
    x, y = np.abs(c.x) - b.ear[0] + 0.008, c.y - b.ear[1]
    c.outlined(capsule(x, y, (0, 0), (0.045, 0.22), 0.045, 0.055), p.main, p.line)
    c.fill(capsule(x, y, (0.01, 0.05), (0.045, 0.22), 0.02, 0.028), INNER_EAR)


def dog_ears(c: Canvas, b: Build, p: Paint) -> None:
    x, y = np.abs(c.x) - b.ear[0] - 0.02, c.y - b.ear[1]
    c.outlined(capsule(x, y, (0.0, 0.03), (0.105, -0.13), 0.045, 0.072), p.mark, p.line)


# --------------------------------------------------------------------------------------------------------------- horns

IVORY, IVORY_LINE = (1.0, 0.93, 0.72), (0.52, 0.38, 0.18)


def one_horn(c: Canvas, b: Build, p: Paint) -> None:
    x, y = c.x, c.y - b.top
    horn = capsule(x, y, (0, -0.02), (0, 0.19), 0.062, 0.008)
    c.outlined(horn, (1.0, 0.80, 0.22), IVORY_LINE, 0.017)
    rings = np.abs(np.abs(y + 0.35 * x - 0.075) - 0.035) - 0.009
    c.fill(np.maximum(horn, rings), (0.80, 0.52, 0.10))


def two_horns(c: Canvas, b: Build, p: Paint) -> None:
    x, y = np.abs(c.x), c.y - b.top
    c.outlined(
        rope(x, y, [(0.06, -0.03), (0.095, 0.04), (0.095, 0.10), (0.065, 0.145)], 0.042, 0.008),
        IVORY,
        IVORY_LINE,
        0.017,
    )


def antennae(c: Canvas, b: Build, p: Paint) -> None:
    x, y = np.abs(c.x), c.y - b.top
    c.fill(rope(x, y, [(0.025, -0.02), (0.03, 0.07), (0.055, 0.15)], 0.014, 0.014), p.line)
    c.outlined(circle(x - 0.06, y - 0.16, 0.036), (1.0, 0.36, 0.38), (0.50, 0.08, 0.12), 0.015)


WINGS = {"feathered": feathered, "bat": bat, "butterfly": butterfly}
TAILS = {"long": long_tail, "curly": curly_tail, "bushy": bushy_tail, "pointed": pointed_tail}
EARS_BEHIND = {"cat": cat_ears, "bear": bear_ears, "rabbit": rabbit_ears}
EARS_IN_FRONT = {"dog": dog_ears}
HORNS = {"one": one_horn, "two": two_horns, "antennae": antennae}


def attach(kinds: dict, value: str, c: Canvas, b: Build, p: Paint) -> None:
    """Paint the part of this value, if there is one."""
    if value in kinds:
        kinds[value](c, b, p)
