"""The eight elements: what grows, burns, falls or floats around a creature.

Each motif is painted on a small canvas around its own middle and reaches about r to every side.
"""

import numpy as np

from common.data.creatures.canvas import Canvas
from common.data.creatures.shapes import Array, box, capsule, circle, ellipse, polygon, together, turned


def fire(c: Canvas, r: float) -> None:
    def flame(s: float) -> Array:
        return together(
            capsule(c.x, c.y + 0.35 * r, (0, 0), (0.08 * r * s, 1.4 * r * s), 0.52 * r * s, 0.03 * r),
            capsule(c.x, c.y + 0.35 * r, (-0.35 * r * s, 0), (-0.75 * r * s, 0.85 * r * s), 0.4 * r * s, 0.02 * r),
            capsule(c.x, c.y + 0.35 * r, (0.35 * r * s, 0), (0.78 * r * s, 0.75 * r * s), 0.4 * r * s, 0.02 * r),
        )

    c.outlined(flame(1), (0.97, 0.33, 0.10), (0.70, 0.12, 0.05), 0.10 * r)
    c.fill(flame(0.6), (1.0, 0.86, 0.25))


def water(c: Canvas, r: float) -> None:
    drop = capsule(c.x, c.y, (0, -0.3 * r), (0, 0.95 * r), 0.68 * r, 0.02 * r)
    c.outlined(drop, (0.20, 0.56, 0.98), (0.05, 0.25, 0.65), 0.12 * r)
    c.fill(ellipse(c.x + 0.25 * r, c.y + 0.2 * r, 0.16 * r, 0.3 * r), (0.88, 0.96, 1.0))


def grass(c: Canvas, r: float) -> None:
    for angle, length in ((44, 0.82), (-44, 0.82), (0, 1.0)):  # length: half of it
        x, y = turned(c.x, c.y + 0.85 * r, angle)
        big = (length**2 / 0.42 + 0.42) / 2 * r  # a leaf is what two large discs have in common
        leaf = circle(np.abs(x) + big - 0.42 * r, y - length * r, big)
        c.outlined(leaf, (0.36, 0.78, 0.22), (0.08, 0.38, 0.10), 0.10 * r)
    c.fill(capsule(c.x, c.y, (0, -0.8 * r), (0, 0.9 * r), 0.05 * r, 0.05 * r), (0.72, 0.95, 0.45))


def electric(c: Canvas, r: float) -> None:
    bolt = [(0.25, 1.1), (-0.65, -0.15), (-0.08, -0.12), (-0.35, -1.1), (0.65, 0.25), (0.08, 0.22), (0.45, 1.1)]
    c.outlined(polygon(c.x, c.y, [(x * r, y * r) for x, y in bolt]), (1.0, 0.88, 0.10), (0.62, 0.42, 0.0), 0.14 * r)


def ice(c: Canvas, r: float) -> None:
    arms = []
    for angle in (0, 60, 120):
        x, y = turned(c.x, c.y, angle)
        arms.append(box(x, y, 0.10 * r, r, 0.08 * r))
        arms.append(capsule(np.abs(x), np.abs(y), (0, 0.52 * r), (0.24 * r, 0.80 * r), 0.08 * r, 0.08 * r))
    c.outlined(together(*arms), (0.93, 1.0, 1.0), (0.10, 0.58, 0.80), 0.10 * r)


def rock(c: Canvas, r: float) -> None:
    stone = [(-0.85, -0.7), (-0.95, 0.05), (-0.4, 0.75), (0.3, 0.8), (0.95, 0.15), (0.9, -0.7)]
    lit = [(-0.8, 0.05), (-0.35, 0.65), (0.3, 0.7), (0.45, 0.2), (-0.15, 0.0)]
    c.outlined(polygon(c.x, c.y, [(x * r, y * r) for x, y in stone]), (0.53, 0.52, 0.54), (0.25, 0.24, 0.27), 0.12 * r)
    c.fill(polygon(c.x, c.y, [(x * r, y * r) for x, y in lit]), (0.76, 0.75, 0.76))


def ghost(c: Canvas, r: float) -> None:
    hem = -0.75 * r + 0.17 * r * np.cos(c.x * (10 / r))
    sheet = np.maximum(capsule(c.x, c.y, (0, 0.3 * r), (0, -2 * r), 0.72 * r, 0.85 * r), hem - c.y)
    c.outlined(sheet, (0.80, 0.74, 0.98), (0.38, 0.26, 0.62), 0.12 * r)
    c.fill(ellipse(np.abs(c.x) - 0.3 * r, c.y - 0.25 * r, 0.15 * r, 0.24 * r), (0.20, 0.12, 0.35))


def fairy(c: Canvas, r: float) -> None:
    x, y = np.abs(c.x), c.y
    heart = together(
        capsule(x, y, (0.42 * r, 0.3 * r), (0.0, -0.8 * r), 0.5 * r, 0.06 * r),
        circle(x - 0.42 * r, y - 0.3 * r, 0.5 * r),
    )
    c.outlined(heart, (1.0, 0.36, 0.62), (0.66, 0.08, 0.34), 0.12 * r)
    c.fill(ellipse(c.x + 0.42 * r, c.y - 0.42 * r, 0.2 * r, 0.14 * r), (1.0, 0.85, 0.92))


MOTIFS = {
    "fire": fire,
    "water": water,
    "grass": grass,
    "electric": electric,
    "ice": ice,
    "rock": rock,
    "ghost": ghost,
    "fairy": fairy,
}

# Where motifs stand (x, y, r): large ones in the lower corners, before the creature, and small ones floating in the
# upper.
IN_FRONT = ((0.135, 0.135, 0.105), (0.285, 0.065, 0.058), (0.875, 0.13, 0.095))
BEHIND = ((0.105, 0.86, 0.066), (0.90, 0.885, 0.058))


def scatter(c: Canvas, element: str, places: tuple, nudge: list[float]) -> None:
    """Paint the element's motif at each place; nudge: two numbers in [-1, 1] per place move it a little."""
    for (x, y, r), dx, dy in zip(places, nudge[::2], nudge[1::2], strict=False):
        MOTIFS[element](c.near(x + 0.012 * dx, y + 0.012 * dy, 1.35 * r), r)
