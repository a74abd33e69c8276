"""Rice, noodles and everything wrapped in dough or leaves."""

import numpy as np

from common.data.creatures.shapes import box, capsule, circle, ellipse
from common.data.dishes.ingredients.forms import Paint, ball, dome, lump
from common.data.dishes.ingredients.pieces import Ingredient, Look, Pieces
from common.data.dishes.ingredients.relief import Colour, blend


def noodle(colour: Colour, other: Colour) -> Paint:
    """A strand that lies in one big curve."""

    def paint(p: Pieces) -> Look:
        bow = p.v - p.swing(0, 0.85) * (1 - p.u * p.u)
        d = np.maximum(np.abs(bow) - 0.066, np.abs(p.u) - 1)
        return Look(d, p.tones(colour, other), 1.3 * dome(d, 0.062), 0.6)

    return paint


def crescent(dough: Colour, fold: Colour, tan: Colour, share: float, gloss: float) -> Paint:
    """A dumpling: a plump half-moon, pleated along its back. tan: of the fried side, `share` of it."""

    def paint(p: Pieces) -> Look:
        u, v = p.u, p.v + 0.34
        back = ellipse(u, v * 1.08, 0.98, 0.96)
        belly = -v + 0.02 + 0.26 * u * u - 0.1
        d = np.maximum(back, belly)
        angle = np.arctan2(v, u)
        seam = np.clip(1 + back / 0.30, 0, 1)  # 1 at the edge, 0 inside
        pleats = np.cos(15 * angle) * seam
        colour = blend(p.tone(dough, 0.03), fold, np.clip(0.55 * (1 - pleats) * seam, 0, 1) * (seam > 0))
        colour = blend(colour, tan, share * np.clip(-4 * d - 0.5, 0, 1))
        return Look(d, colour, dome(d, 0.55) - 0.16 * seam * seam + 0.06 * pleats, gloss)

    return paint


def bun(dough: Colour, fold: Colour, pleats: int) -> Paint:
    """A steamed bun, its pleats twisted into a knot; no pleats: a smooth one."""

    def paint(p: Pieces) -> Look:
        r, angle = p.r(), np.arctan2(p.v, p.u)
        d = r - 0.92
        wave = np.cos(pleats * (angle + 0.9 * r) + 6.3 * p.luck[0]) if pleats else 0 * r
        near = np.clip(1.15 - r / 0.85, 0, 1) * np.clip(r / 0.12, 0, 1)
        knot = p.cover(r - 0.13, 0.08) if pleats else 0 * r
        folds = np.clip(near * (0.5 - 0.5 * wave) * 1.3 + 0.30 * np.clip(1 + 4 * d, 0, 1), 0, 1)
        colour = blend(p.tone(dough, 0.02), fold, folds)
        return Look(d, blend(colour, fold, 0.4 * knot), dome(d, 0.9) + 0.09 * wave * near - 0.05 * knot, 0.3)

    return paint


def shaomai(p: Pieces) -> Look:
    """Open at the top: a frill of yellow dough around the filling, a dot of roe."""
    r, angle = p.r(), np.arctan2(p.v, p.u)
    frill = np.cos(11 * angle + 6.3 * p.luck[0])
    d = r - 0.88 - 0.05 * frill
    filling = r - 0.56
    meat = blend((0.86, 0.58, 0.42), (0.96, 0.78, 0.60), 0.5 + 0.5 * np.sin(9 * p.u) * np.sin(9 * p.v + 6 * p.luck[1]))
    meat = blend(meat, (0.98, 0.45, 0.06), p.cover(r - 0.22, 0.06))
    colour = blend(blend((0.90, 0.68, 0.20), (1.0, 0.88, 0.44), 0.5 + 0.5 * frill), meat, p.cover(filling, 0.06))
    return Look(d, colour, dome(d, 0.4) + 0.06 * frill * (filling > 0) + 0.4 * dome(filling, 0.5), 0.5)


def wonton(p: Pieces) -> Look:
    """A knob of filling that shows through, and a wide thin skirt of dough."""
    u, v = p.warped(0.20, 3)
    skirt = np.maximum(ellipse(u - 0.15, v, 0.85, 0.62), -u - 0.6)
    filling = circle(p.u + 0.30, p.v, 0.42)
    folds = np.sin(8 * v + 4 * u + 6 * p.luck[0])
    d = np.minimum(skirt, filling)
    colour = blend((0.99, 0.93, 0.80), (0.94, 0.70, 0.54), 0.8 * p.cover(filling + 0.08, 0.3))
    return Look(d, colour, 0.3 * dome(d, 0.2) + dome(filling, 0.4) + 0.05 * folds * np.clip(u + 0.3, 0, 1), 0.6)


def spring_roll(p: Pieces) -> Look:
    d = capsule(p.u, p.v, (-0.78, 0), (0.78, 0), 0.20, 0.20)
    blister = np.sin(13 * p.u + 6 * p.luck[0]) * np.sin(16 * p.v + 6 * p.luck[1])
    blister = blister + 0.6 * np.sin(29 * p.u + 6 * p.luck[2])
    seam = p.cover(np.abs(p.v - 0.5 * p.u) - 0.015, 0.03)
    gold = p.tones((0.93, 0.62, 0.20), (0.86, 0.52, 0.14))
    colour = blend(gold, (0.66, 0.33, 0.07), np.clip(0.3 * blister + 0.15, 0, 1))
    return Look(d, blend(colour, (0.55, 0.26, 0.06), 0.6 * seam), dome(d, 0.2) + 0.012 * blister, 0.6)


def zongzi(p: Pieces) -> Look:
    """A pyramid in bamboo leaves, tied with string."""
    x = np.abs(p.v)
    d = np.maximum(0.62 * (p.u - 0.80) + 0.78 * x - 0.02, -p.u - 0.62) - 0.10
    ridge = np.abs(p.v + 0.25 * p.u)
    veins = np.cos(26 * (p.v + 0.4 * np.abs(p.u)))
    green = blend(p.tones((0.38, 0.45, 0.13), (0.30, 0.40, 0.10)), (0.52, 0.58, 0.22), np.clip(0.5 * veins, 0, 1))
    string = np.minimum(np.abs(p.u + 0.30) - 0.035, np.abs(p.u - 0.12 + 0.2 * p.v) - 0.035)
    height = 0.75 * np.clip(0.75 - ridge - 0.3 * np.abs(p.u), 0, 1) + 0.5 * dome(d, 0.2)
    on = p.cover(string, 0.02)
    return Look(d, blend(green, (0.95, 0.88, 0.72), on), height + 0.03 * on, 0.5)


def skewer(p: Pieces) -> Look:
    """Lumps of grilled meat on a stick."""
    stick = box(p.u + 0.06, p.v, 0.94, 0.022, 0.01)
    step = np.mod(p.u + 0.45, 0.30) - 0.15
    lumps = box(step, p.v + 0.012 * np.sin(9 * p.u + 6 * p.luck[0]), 0.138, 0.135, 0.05)
    lumps = np.maximum(lumps, np.abs(p.u - 0.15) - 0.60)
    char = np.sin(31 * p.u + 6 * p.luck[1]) * np.sin(35 * p.v + 6 * p.luck[2])
    meat = blend(p.tones((0.66, 0.34, 0.14), (0.58, 0.27, 0.10)), (0.26, 0.10, 0.04), np.clip(0.8 * char, 0, 1))
    meat = blend(meat, (0.92, 0.60, 0.20), 0.6 * np.clip(-1.5 * char - 0.8, 0, 1))
    on = p.cover(lumps, 0.01)
    height = np.maximum(dome(lumps, 0.08), 0.03) + 0.008 * char * on
    return Look(np.minimum(stick, lumps), blend((0.86, 0.68, 0.40), meat, on), height, 0.8)


def dip(sauce: Colour, inside: Colour = (0.97, 0.96, 0.93)) -> Paint:
    """A small bowl of sauce."""

    def paint(p: Pieces) -> Look:
        d = p.r() - 0.95
        level = p.r() - 0.72
        wall = np.clip(-d / 0.08, 0, 1) * np.clip(1 - (-d - 0.1) / 0.25, 0.35, 1)
        return Look(d, blend(inside, sauce, p.cover(level, 0.04)), 0.45 * wall, 0.9)

    return paint


WHITE, FOLD, GOLD = (1.0, 0.95, 0.85), (0.74, 0.62, 0.46), (0.72, 0.38, 0.08)
STAPLES = {
    "rice": Ingredient(ball((1.0, 0.995, 0.98), (0.84, 0.82, 0.77), 2.1, 0.35, 0.04, 0.9), 0.037),
    "fried_rice": Ingredient(ball((1.0, 0.87, 0.52), (0.90, 0.68, 0.30), 2.1, 0.4, 0.08, 0.6), 0.032),
    "noodle": Ingredient(noodle((0.99, 0.88, 0.56), (0.95, 0.78, 0.42)), 0.200, 1.05, 0.05),
    "brown_noodle": Ingredient(noodle((0.80, 0.50, 0.20), (0.68, 0.38, 0.13)), 0.200, 1.05, 0.05),
    "dumpling": Ingredient(crescent(WHITE, FOLD, WHITE, 0.0, 0.45), 0.122),
    "potsticker": Ingredient(crescent(WHITE, FOLD, GOLD, 0.95, 0.6), 0.160),
    "shrimp_dumpling": Ingredient(crescent((1.0, 0.80, 0.71), (0.88, 0.60, 0.52), WHITE, 0.0, 0.9), 0.140),
    "soup_bun": Ingredient(bun(WHITE, FOLD, 14), 0.118),
    "bun": Ingredient(bun((1.0, 0.965, 0.89), (0.84, 0.77, 0.66), 0), 0.165),
    "shaomai": Ingredient(shaomai, 0.105),
    "wonton": Ingredient(wonton, 0.110, 1.2),
    "spring_roll": Ingredient(spring_roll, 0.235),
    "zongzi": Ingredient(zongzi, 0.165, 1.15, 0.1),
    "skewer": Ingredient(skewer, 0.420, 1.03, 0.0),
    "rice_ball": Ingredient(ball((1.0, 0.99, 0.97), (0.86, 0.84, 0.80), 1.0, 0.6, 0.01), 0.072, 1.08, 0.0),
    "sesame_ball": Ingredient(ball((0.95, 0.66, 0.24), (0.72, 0.38, 0.10), 1.0, 0.6), 0.098),
    "dip": Ingredient(dip((0.16, 0.06, 0.02)), 0.098, 1.05, 0.0),
    "white_mound": Ingredient(ball((0.93, 0.92, 0.89), (0.84, 0.82, 0.78), 1.0, 0.1, 0.0, 0.24), 0.330, 1.05, 0.0),
    "gold_mound": Ingredient(ball((0.97, 0.82, 0.46), (0.90, 0.72, 0.36), 1.0, 0.1, 0.0, 0.18), 0.310, 1.05, 0.0),
    "millet": Ingredient(ball((1.0, 0.83, 0.40), (0.92, 0.62, 0.18), 1.0, 0.3), 0.016),
    "bean_sauce": Ingredient(lump((0.40, 0.19, 0.08), (0.26, 0.11, 0.04), 0.2, 0.05, 0.9, 0.3), 0.125),
}
