"""What grows: vegetables, mushrooms, nuts and herbs."""

import numpy as np

from common.data.creatures.shapes import box, circle, ellipse
from common.data.dishes.ingredients.forms import ball, bent, chunk, dome, leaf, lump, shred, slice_
from common.data.dishes.ingredients.pieces import Ingredient, Look, Pieces
from common.data.dishes.ingredients.relief import blend


def tomato(p: Pieces) -> Look:
    """A wedge: red skin along its back, paler flesh, two pockets of seeds."""
    u, v = p.u, p.v + 0.30
    back = circle(u, v * (0.95 + 0.2 * p.luck[0]), 0.98)
    d = np.maximum(back, -v + 0.12 - 0.25 * u * u)
    colour = blend(p.tones((0.93, 0.20, 0.07), (0.90, 0.30, 0.12)), (0.84, 0.07, 0.03), 1 - p.cover(back + 0.20, 0.10))
    pockets = ellipse(np.abs(u) - 0.36, v - 0.42, 0.26, 0.17)
    colour = blend(colour, (0.97, 0.48, 0.13), 0.75 * p.cover(pockets, 0.12))
    return Look(d, colour, dome(d, 0.5) - 0.10 * p.cover(pockets, 0.2), 0.75)


def lettuce(p: Pieces) -> Look:
    """A wilted leaf: a broad pale rib, and green that is all folds."""
    v = p.v * 1.35 - p.swing(0, 0.5) * (1 - p.u * p.u)
    angle, r = np.arctan2(v, p.u), np.sqrt(p.u * p.u + v * v)
    folds = np.sin(6 * angle + 6.3 * p.luck[1]) + 0.8 * np.sin(10 * angle - 5 * r + 6.3 * p.luck[2])
    d = (r - 0.86 + 0.09 * folds) / 1.35
    rib = np.exp(-((v / (0.24 - 0.12 * p.u)) ** 2)) * np.clip(0.75 - 0.8 * p.u, 0, 1)
    dark = np.clip(0.5 * r + 0.25 * folds, 0, 1)
    green = blend(p.tones((0.55, 0.78, 0.20), (0.36, 0.66, 0.13)), (0.20, 0.47, 0.08), dark)
    return Look(d, blend(green, (0.90, 0.95, 0.68), rib), 0.3 * dome(d, 0.3) + 0.13 * folds * r + 0.10 * rib, 0.75)


def bok_choy(p: Pieces) -> Look:
    """Half a head, cut lengthwise: a plump white foot and dark leaves."""
    foot = ellipse(p.u + 0.42, p.v, 0.55, 0.30)
    leaves = ellipse(p.u - 0.35, p.v + 0.10 * np.sin(9 * p.u), 0.62, 0.38)
    d = np.minimum(foot, leaves)
    ribs = np.cos(22 * p.v) * np.clip(0.5 - p.u, 0, 1)
    folds = np.sin(11 * p.u + 8 * p.v)
    green = blend(p.tones((0.16, 0.47, 0.12), (0.24, 0.56, 0.14)), (0.09, 0.32, 0.08), 0.5 + 0.5 * folds)
    colour = blend((0.88, 0.95, 0.70), green, np.clip(2.4 * (p.u + 0.22 + 0.5 * np.abs(p.v)), 0, 1))
    return Look(d, colour, dome(d, 0.3) + 0.03 * ribs + 0.03 * folds, 0.7)


def broccoli(p: Pieces) -> Look:
    """A floret from above: a cushion of buds."""
    u, v = p.warped(0.16, 4)
    d = np.minimum(np.sqrt(u * u + v * v) - 0.80, box(p.u + 0.75, p.v, 0.35, 0.22, 0.1))
    buds = np.abs(np.sin(6.5 * u + 6 * p.luck[0])) * np.abs(np.sin(6.5 * v + 6 * p.luck[1]))
    green = blend(p.tones((0.10, 0.38, 0.07), (0.15, 0.45, 0.09)), (0.42, 0.71, 0.22), buds)
    stem = p.cover(p.u + 0.66, 0.15)
    return Look(d, blend(green, (0.70, 0.85, 0.45), stem), dome(d, 0.7) + 0.22 * buds * (1 - stem), 0.45)


def shiitake(p: Pieces) -> Look:
    """A brown cap with a star cut into it."""
    d = p.r() - 0.92
    cut = np.minimum(np.abs(p.u), np.abs(p.v)) - 0.09
    star = p.cover(np.maximum(cut, p.r() - 0.62), 0.08)
    cap = blend((0.30, 0.16, 0.07), p.tone((0.50, 0.29, 0.13)), np.clip(-1.6 * d, 0, 1))
    return Look(d, blend(cap, (0.92, 0.80, 0.60), star), dome(d, 0.9) - 0.08 * star, 0.75)


def fungus(p: Pieces) -> Look:
    """Wood ear: nearly black, curled, shining where it folds."""
    u, v = p.warped(0.32, 3.4)
    d = np.sqrt(u * u + v * v) - 0.72
    folds = np.sin(5 * u + 6.3 * p.luck[0]) + np.sin(6 * v + 3 * u)
    colour = blend((0.10, 0.07, 0.06), (0.32, 0.20, 0.13), np.clip(0.3 * folds + 0.2, 0, 1))
    return Look(d, colour, 0.4 * dome(d, 0.3) + 0.11 * folds, 0.95)


def white_fungus(p: Pieces) -> Look:
    """A rosette of translucent frills."""
    angle, r = np.arctan2(p.v, p.u), p.r()
    frills = np.sin(9 * angle + 6.3 * p.luck[0] + 5 * r) + np.sin(5 * angle - 9 * r)
    d = r - 0.85 + 0.08 * frills
    colour = blend((0.93, 0.84, 0.58), (1.0, 0.97, 0.86), 0.5 + 0.3 * frills)
    return Look(d, colour, 0.4 * dome(d, 0.4) + 0.10 * frills, 0.7, 0.92)


def green_bean(p: Pieces) -> Look:
    """A bean with a wrinkled, blistered skin."""
    look = shred((0.25, 0.46, 0.10), (0.36, 0.56, 0.15), 0.12, 0.4, 0.6)(p)
    blister = np.sin(11 * p.u + 6 * p.luck[2]) * np.sin(14 * p.v + 6 * p.luck[3])
    look.colour = blend(look.colour, (0.50, 0.44, 0.16), 0.5 * np.clip(blister, 0, 1))
    look.height = look.height + 0.02 * blister
    return look


def snow_pea(p: Pieces) -> Look:
    v = p.v - p.swing(0, 0.2) * (1 - p.u * p.u)
    d = ellipse(p.u, v, 1.0, 0.33)
    peas = np.clip(np.cos(9 * p.u), 0, 1) * np.exp(-((v / 0.13) ** 2))
    colour = blend(p.tones((0.40, 0.70, 0.16), (0.52, 0.78, 0.22)), (0.70, 0.88, 0.36), 0.6 * peas)
    return Look(d, colour, 0.5 * dome(d, 0.2) + 0.09 * peas, 0.7)


def bean_sprout(p: Pieces) -> Look:
    stem = np.sqrt(np.maximum(np.abs(p.u) - 0.92, 0) ** 2 + bent(p, 0.5) ** 2) - 0.085
    head = ellipse(p.u - 0.88, p.v, 0.19, 0.14)
    d = np.minimum(stem, head)
    colour = blend(p.tones((0.97, 0.96, 0.88), (0.90, 0.91, 0.78)), (0.93, 0.78, 0.25), p.cover(head, 0.06))
    return Look(d, colour, dome(d, 0.1), 0.7)


def bitter_melon(p: Pieces) -> Look:
    """A crescent with a knobbly back."""
    r, angle = p.r(), np.arctan2(p.v, p.u)
    knobs = np.cos(13 * angle)
    d = np.maximum(np.abs(r - 0.68 - 0.04 * knobs) - 0.25, -p.v - 0.05)
    green = p.tones((0.30, 0.62, 0.16), (0.42, 0.72, 0.22))
    colour = blend((0.80, 0.92, 0.55), green, np.clip(5 * (r - 0.62), 0, 1))
    return Look(d, colour, dome(d, 0.25) + 0.03 * knobs, 0.7)


def lotus(p: Pieces) -> Look:
    """A slice of the root with its holes: seven around, one in the middle."""
    u, v = p.warped(0.04, 2)
    r, angle = np.sqrt(u * u + v * v), np.arctan2(v, u) + 6.3 * p.luck[0]
    step = 2 * np.pi / 7
    a = np.mod(angle, step) - step / 2
    holes = np.minimum(ellipse(r * np.cos(a) - 0.56, r * np.sin(a), 0.19, 0.14), r - 0.13)
    d = r - 0.95
    dark = p.cover(holes, 0.05)
    flesh = p.tones((0.97, 0.93, 0.82), (0.95, 0.88, 0.72))
    colour = blend(flesh, (0.80, 0.66, 0.45), 1 - p.cover(d + 0.08, 0.05))
    return Look(d, blend(colour, (0.42, 0.30, 0.18), dark), 0.5 * dome(d, 0.15) - 0.12 * dark, 0.6)


def corn_round(p: Pieces) -> Look:
    """A slice of the cob: a pale heart, a ring of kernels."""
    r, angle = p.r(), np.arctan2(p.v, p.u)
    kernels = np.abs(np.cos(7.5 * angle + 6 * p.luck[0]))
    d = r - 0.86 - 0.09 * kernels
    colour = blend((0.85, 0.55, 0.06), p.tone((1.0, 0.82, 0.20)), kernels)
    colour = blend(colour, (0.96, 0.90, 0.66), p.cover(r - 0.42, 0.1))
    return Look(d, colour, dome(d, 0.3) + 0.05 * kernels, 0.6)


def onion(p: Pieces) -> Look:
    """A strip of an onion's layer: a bow, violet on its back."""
    r = np.sqrt(p.u**2 + (p.v + 0.35) ** 2)
    d = np.maximum(np.abs(r - 0.85) - 0.13, -p.v - 0.15)
    violet = p.tones((0.66, 0.30, 0.52), (0.86, 0.70, 0.82))
    return Look(d, blend((0.96, 0.91, 0.93), violet, np.clip(6 * (r - 0.84), 0, 1)), dome(d, 0.14), 0.7)


def eggplant(p: Pieces) -> Look:
    """A baton: glossy purple skin on one side, soft pale brown flesh on the other."""
    u, v = p.warped(0.10, 2.5)
    d = box(u, v, 0.92, 0.40, 0.22)
    flesh, skin = p.tones((0.72, 0.50, 0.24), (0.60, 0.38, 0.17)), p.tones((0.27, 0.07, 0.33), (0.36, 0.11, 0.40), 4)
    return Look(d, blend(flesh, skin, p.cover(-(v + 0.02 + p.swing(2, 0.22)), 0.10)), dome(d, 0.38), 0.95)


VEGETABLES = {
    "tomato": Ingredient(tomato, 0.080),
    "tomato_slice": Ingredient(slice_((0.80, 0.08, 0.05), (0.93, 0.25, 0.15), (0.98, 0.52, 0.22), 0.14, 0.42, 4, 0.7), 0.098),
    "lettuce": Ingredient(lettuce, 0.165, 1.2),
    "spinach": Ingredient(leaf((0.09, 0.34, 0.07), (0.14, 0.45, 0.09), (0.40, 0.65, 0.22), 1.7, 0.07, 0.6), 0.085, 1.15),
    "bok_choy": Ingredient(bok_choy, 0.135),
    "broccoli": Ingredient(broccoli, 0.075, 1.2),
    "pepper": Ingredient(shred((0.22, 0.52, 0.08), (0.38, 0.70, 0.14), 0.21, 0.40, 0.8), 0.088),
    "red_pepper": Ingredient(shred((0.80, 0.09, 0.04), (0.92, 0.20, 0.07), 0.21, 0.40, 0.8), 0.082),
    "pepper_chunk": Ingredient(chunk((0.40, 0.68, 0.14), (0.18, 0.44, 0.06), 0.8, 0.7, 0.3, 0.3, 0.85), 0.062),
    "red_chunk": Ingredient(chunk((0.92, 0.20, 0.07), (0.70, 0.05, 0.03), 0.8, 0.7, 0.3, 0.3, 0.85), 0.058),
    "carrot": Ingredient(slice_((0.90, 0.42, 0.06), (0.98, 0.55, 0.12), (1.0, 0.68, 0.22), 0.08, 0.4, 0, 0.5), 0.058),
    "carrot_shred": Ingredient(shred((0.95, 0.45, 0.07), (1.0, 0.58, 0.14), 0.11, 0.35), 0.070),
    "carrot_dice": Ingredient(chunk((1.0, 0.56, 0.12), (0.82, 0.36, 0.05), 0.75, 0.7, 0.12), 0.027),
    "potato_shred": Ingredient(shred((0.97, 0.87, 0.50), (0.93, 0.78, 0.36), 0.085, 0.40, 0.65), 0.115),
    "potato": Ingredient(chunk((0.97, 0.79, 0.36), (0.80, 0.52, 0.16), 0.82, 0.72, 0.35, 0.5, 0.6, 0.4), 0.078),
    "eggplant": Ingredient(eggplant, 0.088),
    "cucumber": Ingredient(slice_((0.16, 0.44, 0.10), (0.72, 0.88, 0.46), (0.86, 0.94, 0.66), 0.13, 0.42, 3, 0.5), 0.060),
    "cucumber_chunk": Ingredient(chunk((0.74, 0.89, 0.46), (0.14, 0.42, 0.09), 0.9, 0.6, 0.25, 0.34, 0.75, 0.5), 0.078),
    "cucumber_shred": Ingredient(shred((0.50, 0.76, 0.28), (0.78, 0.90, 0.52), 0.10, 0.2), 0.078),
    "bean_sprout": Ingredient(bean_sprout, 0.085, 1.2),
    "green_bean": Ingredient(green_bean, 0.110),
    "snow_pea": Ingredient(snow_pea, 0.088),
    "celery": Ingredient(shred((0.62, 0.82, 0.32), (0.74, 0.90, 0.46), 0.20, 0.25, 0.6), 0.066),
    "onion": Ingredient(onion, 0.078),
    "fungus": Ingredient(fungus, 0.078, 1.25),
    "white_fungus": Ingredient(white_fungus, 0.105, 1.2),
    "shiitake": Ingredient(shiitake, 0.060),
    "corn": Ingredient(ball((1.0, 0.84, 0.22), (0.90, 0.60, 0.08), 1.2, 0.7), 0.026),
    "corn_round": Ingredient(corn_round, 0.088),
    "pea": Ingredient(ball((0.50, 0.78, 0.18), (0.28, 0.55, 0.08), 1.0, 0.7), 0.023),
    "lotus": Ingredient(lotus, 0.105),
    "bitter_melon": Ingredient(bitter_melon, 0.078),
    "winter_melon": Ingredient(chunk((0.95, 0.98, 0.90), (0.78, 0.88, 0.72), 0.8, 0.68, 0.15, 0.25, 0.7), 0.070),
    "seaweed": Ingredient(lump((0.10, 0.07, 0.13), (0.22, 0.15, 0.26), 0.38, 0.08, 0.9, 0.2), 0.085, 1.25),
    "kelp": Ingredient(shred((0.10, 0.25, 0.10), (0.22, 0.38, 0.14), 0.10, 0.55, 0.85), 0.120),
}  # fmt: skip
