"""Forms that many foods share: shreds, chunks, balls, slices, leaves. Each makes a paint function out of colours."""

from collections.abc import Callable

import numpy as np

from common.data.creatures.shapes import box
from common.data.dishes.ingredients.pieces import Look, Pieces
from common.data.dishes.ingredients.relief import Array, Colour, blend

Paint = Callable[[Pieces], Look]


def dome(distance: Array, width: Array | float) -> Array:
    """Height of a body that is round at its edge, over `width`, and level inside."""
    t = np.clip(-distance / width, 0, 1)
    return width * np.sqrt(t * (2 - t))


def bent(p: Pieces, bend: float) -> Array:
    """How far each point is from a curved middle line."""
    return p.v - p.swing(0, bend) * (1 - p.u * p.u) - p.swing(1, 0.35 * bend) * np.sin(3 * p.u)


def shred(
    colour: Colour, other: Colour, width: float = 0.12, bend: float = 0.35, gloss: float = 0.5, taper: float = 0.0
) -> Paint:
    """A strip, rod or strand, more or less bent; its colour lies between two. taper: how much thinner at one end."""

    def paint(p: Pieces) -> Look:
        w = width * (1 - taper * (0.5 + 0.5 * np.clip(p.u, -1, 1)))
        beyond = np.maximum(np.abs(p.u) - 1 + width, 0)
        d = np.sqrt(beyond * beyond + bent(p, bend) ** 2) - w
        return Look(d, p.tones(colour, other), dome(d, w), gloss)

    return paint


def chunk(
    top: Colour,
    side: Colour,
    long: float = 0.8,
    wide: float = 0.6,
    corner: float = 0.15,
    bevel: float = 0.22,
    gloss: float = 0.4,
    rough: float = 0.0,
) -> Paint:
    """A block: a lighter face and darker flanks. rough: how uneven."""

    def paint(p: Pieces) -> Look:
        u, v = p.warped(0.08 + 0.1 * rough, 2.5)
        d = box(u, v, long, wide, corner) + p.swing(1, 0.06)
        bumps = 0.10 * rough * np.sin(7 * u + 6 * p.luck[2]) * np.sin(6 * v + 6 * p.luck[3]) if rough else 0
        colour = blend(p.tone(side), p.tone(top), np.clip(-d / bevel, 0, 1))
        return Look(d, colour, dome(d, bevel) * 1.3 + bumps, gloss)

    return paint


def ball(
    colour: Colour, rim: Colour, long: float = 1.0, gloss: float = 0.5, spread: float = 0.06, high: float = 1.0
) -> Paint:
    """A ball, or an egg `long` times as long as wide; darker towards its rim. high: 1, or less for something flat."""

    def paint(p: Pieces) -> Look:
        v = p.v * long
        d = (np.sqrt(p.u * p.u + v * v) - 1) / long
        body = np.clip(-d * long, 0, 1)
        shade = blend(p.tone(rim, spread), p.tone(colour, spread), np.minimum(1, 2.2 * body))
        return Look(d, shade, high * dome(d, 0.95 / long), gloss)

    return paint


def lump(
    colour: Colour,
    other: Colour,
    strength: float = 0.22,
    bumps: float = 0.0,
    gloss: float = 0.4,
    flat: float = 0.7,
    opacity: float = 1.0,
) -> Paint:
    """Something without a form of its own, in two colours that run into each other."""

    def paint(p: Pieces) -> Look:
        u, v = p.warped(strength, 3.2)
        d = np.sqrt(u * u + v * v * (1 + p.luck[1])) - 0.78
        wave = np.sin(4 * u + 6.3 * p.luck[2]) * np.sin(4 * v + 6.3 * p.luck[3])
        mixed = blend(p.tone(colour), p.tone(other), 0.5 + 0.5 * wave)
        return Look(d, mixed, dome(d, flat) + bumps * wave * np.clip(-3 * d, 0, 1), gloss, opacity)

    return paint


def slice_(
    skin: Colour,
    flesh: Colour,
    heart: Colour,
    rim: float = 0.12,
    core: float = 0.45,
    stars: int = 0,
    gloss: float = 0.4,
) -> Paint:
    """A round slice: skin, flesh, and a heart with `stars` chambers."""

    def paint(p: Pieces) -> Look:
        u, v = p.warped(0.05, 2)
        r = np.sqrt(u * u + v * v) + 1e-6
        d = r - 0.95
        inner = core * (1 + (0.35 * np.cos(stars * np.arctan2(v, u) + 6.3 * p.luck[0]) if stars else 0))
        colour = blend(p.tone(flesh), p.tone(heart), p.cover(r - inner, 0.15))
        colour = blend(colour, p.tone(skin), 1 - p.cover(d + rim, 0.08))
        return Look(d, colour, 0.5 * dome(d, 0.2) + 0.03 * np.cos(8 * r), gloss)

    return paint


def leaf(
    edge: Colour, middle: Colour, vein: Colour, long: float = 1.5, ruffle: float = 0.10, gloss: float = 0.4
) -> Paint:
    """A leaf with a ruffled edge and a rib along its middle."""

    def paint(p: Pieces) -> Look:
        v = p.v * long - p.swing(0, 0.4) * (1 - p.u * p.u)
        angle = np.arctan2(v, p.u)
        r = np.sqrt(p.u * p.u + v * v)
        folds = np.sin(7 * angle + 6.3 * p.luck[1]) + 0.7 * np.sin(11 * angle + 6.3 * p.luck[2])
        d = (r - 0.85 + ruffle * folds) / long
        rib = np.exp(-((v / 0.16) ** 2)) * np.clip(0.9 - 0.6 * p.u, 0, 1)
        colour = blend(blend(p.tone(middle, 0.08), p.tone(edge, 0.1), np.clip(r * r * 1.2, 0, 1)), vein, 0.8 * rib)
        return Look(d, colour, 0.5 * dome(d, 0.3) + 0.11 * folds * r + 0.06 * rib, gloss)

    return paint


def meat_slice(
    colour: Colour, dark: Colour, skin: Colour | None = None, gloss: float = 0.6, depth: float = 0.16
) -> Paint:
    """A flat slice with a grain; with skin along one side where it has one."""

    def paint(p: Pieces) -> Look:
        u, v = p.warped(0.10, 2.4)
        d = box(u, v, 0.88, 0.58, 0.30)
        fibre = np.sin(16 * u + 3 * np.sin(4 * v) + 6 * p.luck[0])
        shade = blend(p.tone(colour, 0.10), p.tone(dark, 0.10), np.clip(0.25 + 0.30 * fibre, 0, 1))
        if skin:
            shade = blend(shade, p.tone(skin, 0.16), p.cover(-(v + depth), 0.10))
        return Look(d, shade, 0.8 * dome(d, 0.3) + 0.008 * fibre + 0.2 * p.swing(1) * u * u, gloss)

    return paint
