"""What swims and creeps in the water."""

import numpy as np

from common.data.creatures.shapes import capsule, circle, ellipse, together
from common.data.dishes.ingredients.forms import Paint, dome, meat_slice
from common.data.dishes.ingredients.pieces import Ingredient, Look, Pieces
from common.data.dishes.ingredients.relief import Colour, blend


def whole_shrimp(p: Pieces) -> Look:
    """Curled up: a body in segments from the head to the fan of its tail, and feelers."""
    r, angle = p.r() + 1e-6, np.arctan2(p.v, p.u)
    along = np.clip((angle + 2.3) / 4.6, 0, 1)  # 0 at the tail, 1 at the head
    thick = 0.12 + 0.24 * along**0.7
    body = np.maximum(np.abs(r - 0.60) - thick, 0.6 * (np.abs(angle) - 2.25))
    tail = ellipse(p.u + 0.46, p.v + 0.62, 0.30, 0.17)
    head = capsule(p.u, p.v, (-0.45, 0.50), (-0.95, 0.10), 0.26, 0.03)
    feelers = np.abs(circle(p.u + 0.75, p.v + 0.15, 0.50)) - 0.025
    feelers = np.maximum(np.maximum(feelers, p.u + 0.55), -p.v - 0.55)
    d = together(body, tail, head, feelers)
    rings = np.cos(15 * angle)
    pale = np.clip(0.75 * rings, 0, 1) * (along < 0.95)
    colour = blend(p.tones((0.97, 0.42, 0.17), (0.93, 0.34, 0.14)), (1.0, 0.78, 0.58), pale)
    colour = blend(colour, (0.80, 0.16, 0.07), np.maximum(p.cover(tail + 0.1, 0.1), 0.7 * p.cover(head + 0.1, 0.1)))
    eye = p.cover(circle(p.u + 0.66, p.v - 0.38, 0.07), 0.03)
    return Look(d, blend(colour, (0.05, 0.03, 0.03), eye), dome(d, 0.26) + 0.03 * rings, 0.75)


def peeled_shrimp(p: Pieces) -> Look:
    r, angle = p.r() + 1e-6, np.arctan2(p.v, p.u)
    along = np.clip((angle + 2.2) / 4.4, 0, 1)
    thick = 0.14 + 0.20 * along
    d = np.maximum(np.abs(r - 0.58) - thick, 0.6 * (np.abs(angle) - 2.2))
    stripes = np.clip(np.cos(11 * angle), 0, 1) * np.clip(4 * (r - 0.5), 0, 1)
    colour = blend(p.tones((1.0, 0.83, 0.70), (1.0, 0.74, 0.58)), (0.96, 0.42, 0.22), 0.85 * stripes)
    return Look(d, colour, dome(d, 0.3), 0.75)


def fish(back: Colour, flank: Colour, fins: Colour, gloss: float) -> Paint:
    """A whole fish that lies on its side, scored three times."""

    def paint(p: Pieces) -> Look:
        u, v = p.u, p.v - 0.05 * np.sin(3 * p.u)
        width = 0.30 * np.sqrt(np.clip((1.0 - u) * (u + 1.15), 0, None)) * np.clip(0.35 + 0.65 * (u + 0.75), 0.2, 1)
        body = 0.8 * np.maximum(np.abs(v) - np.minimum(width, 0.30), np.abs(u + 0.05) - 0.92)
        tail = np.maximum(np.abs(v) - 0.08 - 0.62 * (-0.62 - u), np.abs(u + 0.82) - 0.18)
        fin = np.maximum(ellipse(u - 0.0, v - 0.22, 0.42, 0.18), -ellipse(u + 0.5, v - 0.5, 0.3, 0.3))
        d = together(body, tail, fin, ellipse(u - 0.1, v + 0.27, 0.18, 0.10))
        flesh = blend(flank, back, np.clip(0.5 + 2.6 * v, 0, 1))
        scales = np.cos(34 * u) * np.cos(34 * v) * (u < 0.5)
        colour = blend(flesh, fins, 1 - p.cover(body, 0.03))
        cuts = np.abs(np.mod(u + 0.35 * v + 0.05, 0.30) - 0.15) - 0.022
        cut = p.cover(np.maximum(np.maximum(cuts, body + 0.07), np.abs(u + 0.05) - 0.42), 0.03)
        colour = blend(colour, (0.98, 0.94, 0.84), 0.8 * cut)
        gill = p.cover(np.maximum(np.abs(circle(u - 0.85, v, 0.33)) - 0.018, np.maximum(body + 0.03, u - 0.8)), 0.02)
        colour = blend(colour, fins, 0.8 * gill)
        colour = blend(colour, (1.0, 1.0, 0.96), p.cover(circle(u - 0.74, v - 0.08, 0.055), 0.02))
        colour = blend(colour, (0.06, 0.05, 0.05), p.cover(circle(u - 0.74, v - 0.08, 0.03), 0.02))
        return Look(d, colour, 0.7 * dome(body, 0.28) + 0.03 + 0.006 * scales - 0.03 * cut, gloss)

    return paint


def crab(p: Pieces) -> Look:
    """From above: a broad shell, two claws, six legs."""
    u, v = np.abs(p.u), p.v
    shell = ellipse(u, v + 0.04, 0.62, 0.50) + 0.02 * np.cos(14 * np.arctan2(v, u))
    legs = together(*(capsule(u, v, (0.45, y), (0.92, y - 0.18), 0.085, 0.03) for y in (0.05, -0.15, -0.34)))
    arm = together(
        capsule(u, v, (0.45, 0.22), (0.74, 0.42), 0.10, 0.10), capsule(u, v, (0.74, 0.42), (0.52, 0.80), 0.17, 0.05)
    )
    d = together(shell, legs, np.maximum(arm, -capsule(u, v, (0.52, 0.84), (0.62, 0.62), 0.045, 0.02)))
    spots = np.sin(9 * u + 2) * np.sin(8 * v)
    colour = blend(p.tones((0.95, 0.42, 0.08), (0.90, 0.35, 0.07)), (1.0, 0.66, 0.24), np.clip(0.5 * spots, 0, 1))
    colour = blend(colour, (0.70, 0.18, 0.04), p.cover(np.abs(shell) - 0.03, 0.03))
    colour = blend(colour, (0.06, 0.04, 0.04), p.cover(circle(u - 0.14, v - 0.38, 0.05), 0.02))
    return Look(d, colour, 0.5 * dome(shell, 0.4) + 0.8 * dome(d, 0.12), 0.7)


def scallop(p: Pieces) -> Look:
    """In its fan of a shell, under vermicelli, garlic and scallion."""
    angle = np.arctan2(p.v + 0.75, p.u)
    ridges = np.cos(13 * (angle - np.pi / 2))
    d = np.maximum(ellipse(p.u, p.v - 0.05, 0.95, 0.88) - 0.03 * ridges, -p.v - 0.72)
    meat = circle(p.u, p.v, 0.46)
    shell = blend(p.tones((0.86, 0.60, 0.46), (0.80, 0.48, 0.38)), (0.99, 0.90, 0.80), 0.5 + 0.5 * ridges)
    crumbs = np.sin(15 * p.u + 6 * p.luck[0]) * np.sin(14 * p.v + 6 * p.luck[1])
    top = blend((0.98, 0.90, 0.66), (0.93, 0.72, 0.30), np.clip(crumbs, 0, 1))
    top = blend(top, (0.30, 0.62, 0.14), np.clip(-2.5 * crumbs - 1.3, 0, 1))
    height = 0.4 * dome(d, 0.2) + 0.03 * ridges + 0.6 * dome(meat, 0.3) + 0.04 * crumbs * (meat < 0)
    return Look(d, blend(shell, top, p.cover(meat, 0.08)), height, 0.6)


STEAMED_FISH = fish((0.40, 0.44, 0.42), (0.90, 0.90, 0.82), (0.46, 0.46, 0.40), 0.7)
BRAISED_FISH = fish((0.42, 0.16, 0.05), (0.80, 0.43, 0.14), (0.36, 0.13, 0.04), 0.95)
SEAFOOD = {
    "shrimp": Ingredient(whole_shrimp, 0.100, 1.25),
    "peeled_shrimp": Ingredient(peeled_shrimp, 0.088),
    "fish": Ingredient(STEAMED_FISH, 0.400, 1.05, 0.0),
    "brown_fish": Ingredient(BRAISED_FISH, 0.400, 1.05, 0.0),
    "little_fish": Ingredient(fish((0.52, 0.42, 0.26), (0.90, 0.76, 0.50), (0.45, 0.33, 0.16), 0.6), 0.330, 1.05, 0.0),
    "fish_slice": Ingredient(meat_slice((1.0, 0.97, 0.90), (0.97, 0.90, 0.80), (0.80, 0.76, 0.68), 0.7), 0.090),
    "crab": Ingredient(crab, 0.205, 1.08, 0.1),
    "scallop": Ingredient(scallop, 0.118, 1.08, 0.1),
}
