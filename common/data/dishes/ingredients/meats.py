"""Meat, eggs and tofu."""

import numpy as np

from common.data.creatures.shapes import box, capsule, circle, ellipse, together
from common.data.dishes.ingredients.forms import Paint, chunk, dome, lump, meat_slice, shred
from common.data.dishes.ingredients.pieces import Ingredient, Look, Pieces
from common.data.dishes.ingredients.relief import Colour, blend

# ---------------------------------------------------------------------------------------------------------------- eggs


def curd(p: Pieces) -> Look:
    """Scrambled egg: a soft cloud, golden in its hollows."""
    u, v = p.warped(0.24, 3.0)
    d = np.sqrt(u * u + v * v * (1 + 0.5 * p.luck[1])) - 0.80
    wave = np.sin(4.5 * u + 6.3 * p.luck[2]) * np.sin(4.0 * v + 6.3 * p.luck[3])
    colour = blend(p.tones((1.0, 0.77, 0.22), (1.0, 0.83, 0.38)), (0.96, 0.57, 0.07), np.clip(0.2 - 0.9 * wave, 0, 1))
    return Look(d, colour, dome(d, 0.6) + 0.12 * wave, 0.45)


def ribbon(p: Pieces) -> Look:
    """Egg poured into soup: a thin torn veil."""
    u, v = p.warped(0.35, 3.6)
    d = (np.sqrt(u * u + 7 * v * v) - 0.8) / 1.8
    return Look(d, p.tones((1.0, 0.86, 0.36), (1.0, 0.94, 0.62)), 0.10 + 0.5 * dome(d, 0.15), 0.5, 0.95)


def fried_egg(p: Pieces) -> Look:
    u, v = p.warped(0.10, 3.5)
    d = np.sqrt(u * u + v * v) - 0.88
    yolk = circle(p.u - 0.08, p.v - 0.05, 0.40)
    white = blend((0.74, 0.42, 0.12), (1.0, 0.98, 0.93), np.clip(-9 * d, 0, 1))
    colour = blend(white, blend((0.98, 0.52, 0.04), (1.0, 0.74, 0.10), np.clip(-4 * yolk, 0, 1)), p.cover(yolk, 0.03))
    return Look(d, colour, 0.10 + 0.3 * dome(d, 0.2) + dome(yolk, 0.36) + 0.02 * np.sin(6 * u) * np.sin(5 * v), 0.85)


def half_egg(white: Colour, rim: Colour, yolk: Colour, heart: Colour) -> Paint:
    """Half an egg, cut side up."""

    def paint(p: Pieces) -> Look:
        d = ellipse(p.u, p.v, 0.95, 0.72)
        middle = ellipse(p.u - 0.08, p.v, 0.50, 0.44)
        colour = blend(white, rim, 1 - p.cover(d + 0.11, 0.08))
        colour = blend(colour, blend(yolk, heart, np.clip(-3.2 * middle, 0, 1)), p.cover(middle, 0.05))
        return Look(d, colour, dome(d, 0.18) + 0.3 * dome(middle, 0.3), 0.8)

    return paint


# ------------------------------------------------------------------------------------------------------------ the land


def braised_pork(p: Pieces) -> Look:
    """A cube of belly: skin like caramel, amber fat, lean meat, and all of it shining."""
    u, v = p.warped(0.05, 2)
    d = box(u, v, 0.80, 0.74, 0.22)
    colour = p.tone((0.46, 0.11, 0.03))
    layers = {-0.36: (0.85, 0.47, 0.17), -0.04: (0.47, 0.16, 0.06), 0.22: (0.78, 0.40, 0.15), 0.42: (0.42, 0.13, 0.05)}
    for edge, shade in layers.items():
        colour = blend(colour, p.tone(shade), p.cover(-(v - edge - p.swing(2, 0.08)), 0.12))
    return Look(d, colour, 1.3 * dome(d, 0.34), 1.0)


def belly_slice(p: Pieces) -> Look:
    """A thin slice of pork belly, curled: lean and fat in stripes."""
    v = p.v - p.swing(0, 0.3) * (1 - p.u * p.u)
    d = box(p.u, v, 0.95, 0.46, 0.12)
    stripes = np.cos(13 * v + 6 * p.luck[1])
    colour = blend(p.tones((0.76, 0.40, 0.20), (0.66, 0.30, 0.14)), (0.99, 0.86, 0.64), p.cover(stripes, 0.6))
    colour = blend(colour, (0.50, 0.18, 0.07), p.cover(-(v - 0.36), 0.08))
    return Look(d, colour, 0.5 * dome(d, 0.12) + 0.25 * p.swing(2) * p.u * p.u, 0.9)


def wing(p: Pieces) -> Look:
    """The middle joint of a chicken's wing, with a bend."""
    d = together(
        capsule(p.u, p.v, (-0.62, -0.12), (0.10, 0.18), 0.33, 0.39),
        capsule(p.u, p.v, (0.10, 0.18), (0.70, -0.22), 0.39, 0.24),
    )
    colour = blend((0.45, 0.15, 0.03), p.tones((0.78, 0.38, 0.09), (0.68, 0.28, 0.06)), np.clip(-3.4 * d, 0, 1))
    return Look(d, colour, 1.2 * dome(d, 0.32), 1.0)


def rib(meat: Colour, dark: Colour, gloss: float) -> Paint:
    """A piece of rib: meat around a bone that looks out at the end."""

    def paint(p: Pieces) -> Look:
        u, v = p.warped(0.09, 2.6)
        flesh = box(u + 0.08, v, 0.74, 0.48, 0.32)
        bone = together(capsule(p.u, p.v, (0.3, 0), (0.86, 0), 0.17, 0.19), circle(p.u - 0.86, p.v, 0.22))
        colour = blend(p.tone(dark), p.tone(meat), np.clip(-3.2 * flesh, 0, 1))
        colour = blend((0.96, 0.88, 0.74), colour, p.cover(flesh, 0.04))
        return Look(np.minimum(flesh, bone), colour, np.maximum(1.1 * dome(flesh, 0.42), dome(bone, 0.2)), gloss)

    return paint


def wedge(jelly: Colour, yolk: Colour) -> Paint:
    """A wedge of century egg: dark jelly around a grey-green yolk."""

    def paint(p: Pieces) -> Look:
        d = np.maximum(ellipse(p.u, p.v + 0.3, 0.98, 0.95), -p.v - 0.22)
        middle = np.maximum(ellipse(p.u, p.v + 0.25, 0.55, 0.52), -p.v - 0.24)
        return Look(d, blend(jelly, yolk, p.cover(middle, 0.08)), dome(d, 0.35), 1.0)

    return paint


def fried_tofu(p: Pieces) -> Look:
    """A triangle, golden, brown at the edges."""
    x = np.abs(p.v)
    d = np.maximum(0.72 * (p.u - 0.75) + 0.69 * x + 0.02, -p.u - 0.62) - 0.06
    colour = blend((0.66, 0.34, 0.08), p.tones((0.97, 0.72, 0.28), (0.93, 0.64, 0.22)), np.clip(-4.5 * d, 0, 1))
    return Look(d, colour, dome(d, 0.25), 0.6)


MEATS = {
    "egg": Ingredient(curd, 0.090, 1.2),
    "egg_bits": Ingredient(curd, 0.038, 1.2),
    "egg_ribbon": Ingredient(ribbon, 0.120, 1.3),
    "fried_egg": Ingredient(fried_egg, 0.255, 1.15, 0.0),
    "brown_egg": Ingredient(half_egg((0.97, 0.90, 0.78), (0.62, 0.36, 0.16), (0.96, 0.56, 0.10), (1.0, 0.70, 0.16)), 0.105, 1.08, 0.1),
    "century_egg": Ingredient(wedge((0.16, 0.11, 0.08), (0.33, 0.36, 0.26)), 0.078),
    "braised_pork": Ingredient(braised_pork, 0.086),
    "pork_shred": Ingredient(shred((0.84, 0.58, 0.38), (0.72, 0.44, 0.25), 0.16, 0.35, 0.6), 0.080),
    "belly_slice": Ingredient(belly_slice, 0.098),
    "beef": Ingredient(meat_slice((0.56, 0.29, 0.17), (0.38, 0.16, 0.08), None, 0.7), 0.082),
    "beef_cube": Ingredient(chunk((0.54, 0.25, 0.11), (0.30, 0.11, 0.04), 0.8, 0.7, 0.25, 0.35, 0.85, 0.7), 0.076),
    "mince": Ingredient(lump((0.50, 0.24, 0.11), (0.34, 0.14, 0.06), 0.3, 0.1), 0.022, 1.2),
    "chicken_dice": Ingredient(chunk((0.86, 0.54, 0.25), (0.62, 0.31, 0.10), 0.8, 0.68, 0.3, 0.4, 0.85, 0.6), 0.056),
    "crisp_chicken": Ingredient(chunk((0.90, 0.56, 0.18), (0.62, 0.29, 0.06), 0.8, 0.7, 0.35, 0.4, 0.6, 1.2), 0.056),
    "chicken_chunk": Ingredient(chunk((0.90, 0.62, 0.26), (0.64, 0.36, 0.11), 0.85, 0.7, 0.35, 0.45, 0.9, 0.7), 0.078),
    "white_chicken": Ingredient(meat_slice((0.99, 0.92, 0.78), (0.95, 0.84, 0.64), (0.99, 0.82, 0.40), 0.8, 0.0), 0.112),
    "duck": Ingredient(meat_slice((0.95, 0.78, 0.55), (0.90, 0.68, 0.44), (0.50, 0.17, 0.03), 1.0, 0.50), 0.112),
    "wing": Ingredient(wing, 0.128),
    "rib": Ingredient(rib((0.66, 0.24, 0.07), (0.42, 0.10, 0.03), 1.0), 0.090),
    "pale_rib": Ingredient(rib((0.80, 0.60, 0.48), (0.62, 0.42, 0.32), 0.5), 0.080),
    "sweet_pork": Ingredient(chunk((0.96, 0.46, 0.12), (0.74, 0.22, 0.04), 0.92, 0.42, 0.3, 0.4, 1.0, 0.8), 0.086),
    "meatball": Ingredient(lump((0.80, 0.48, 0.20), (0.64, 0.32, 0.11), 0.07, 0.06, 0.9, 0.8), 0.150),
    "sausage": Ingredient(chunk((0.80, 0.24, 0.14), (0.52, 0.10, 0.06), 0.85, 0.5, 0.4, 0.2, 0.9), 0.056),
    "pork_slice": Ingredient(meat_slice((0.84, 0.58, 0.38), (0.72, 0.44, 0.26), None, 0.6), 0.078),
    "tofu": Ingredient(chunk((1.0, 0.96, 0.86), (0.84, 0.72, 0.52), 0.76, 0.74, 0.14, 0.30, 0.6), 0.082, 1.08, 0.12),
    "tofu_slab": Ingredient(chunk((1.0, 0.98, 0.93), (0.90, 0.86, 0.78), 0.95, 0.72, 0.10, 0.12, 0.7), 0.235, 1.05, 0.0),
    "fried_tofu": Ingredient(fried_tofu, 0.092),
    "brown_tofu": Ingredient(chunk((0.80, 0.58, 0.34), (0.55, 0.32, 0.14), 0.95, 0.28, 0.08, 0.15), 0.078),
    "tofu_shred": Ingredient(shred((1.0, 0.96, 0.86), (0.94, 0.86, 0.72), 0.12, 0.2), 0.060),
}  # fmt: skip
