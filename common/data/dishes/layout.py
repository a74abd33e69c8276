"""Where the pieces of a dish go: heaped, in a ring, in rows, packed in a steamer, strewn on top.

All of it in the unit disc, which the vessel then stretches:
the places of a dish are the same at any size of the picture.
"""

from dataclasses import dataclass

import numpy as np

from common.data.dishes.ingredients.relief import Array, Colour

GOLDEN = np.pi * (3 - np.sqrt(5))  # points that turn by this angle, each a little further out, fill a disc evenly


@dataclass(frozen=True)
class FoodLayer:
    """Pieces laid down together.

    how    the name of one of LAYOUTS
    what   kinds of food and how many of each
    wide   how much of the vessel they take, 1 is all
    scale  of their sizes
    """

    how: str
    what: tuple[tuple[str, int], ...]
    wide: float = 1.0
    scale: float = 1.0


@dataclass(frozen=True)
class Flood:
    """A liquid up to a level. level: 0 the floor of the vessel, 1 its brim;
    clear: how deep one sees, in picture widths.
    """

    colour: Colour
    level: float
    clear: float
    wide: float = 0.95


@dataclass
class Places:
    """u, v in the unit disc; turn in radians; lift of the ground,
    0 at the rim to 1 in the middle of a heap; kind of each.
    """

    u: Array
    v: Array
    turn: Array
    lift: Array
    kind: Array


def spiral(n: int, wide: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """n points spread evenly over a disc, each moved a little: radius and angle."""
    luck = rng.random((2, n)) - 0.5
    r = wide * np.sqrt((np.arange(n) + 0.5 + 0.8 * luck[0]) / n)
    return r, np.arange(n) * GOLDEN + rng.random() * 6.28 + 1.2 * luck[1] / np.sqrt(n)


def dealt(layer: FoodLayer, rng: np.random.Generator) -> Array:
    """Which kind each piece is, well mixed: (n,) indices into layer.what."""
    counts = [n for _, n in layer.what]
    return np.repeat(np.arange(len(counts)), counts)[np.argsort(rng.random(sum(counts)), kind="stable")]


def heap(layer: FoodLayer, rng: np.random.Generator) -> Places:
    """Every which way, piled up in the middle; pieces of the rim lie lowest."""
    kind = dealt(layer, rng)
    r, angle = spiral(len(kind), 0.90 * layer.wide, rng)
    order = np.argsort(-r + 0.5 * rng.random(len(r)), kind="stable")
    r, angle = r[order], angle[order]
    turn = rng.random(len(r)) * 6.28
    return Places(r * np.cos(angle), r * np.sin(angle), turn, 1 - (r / layer.wide) ** 2, kind)


def tangle(layer: FoodLayer, rng: np.random.Generator) -> Places:
    """As a heap, for noodles: strands lie across the middle of the vessel, in every direction."""
    places = heap(layer, rng)
    places.u, places.v = 0.76 * places.u, 0.76 * places.v
    places.turn = np.arctan2(places.v, places.u) + 1.57 + 0.9 * (rng.random(len(places.u)) - 0.5)
    return places


def ring(layer: FoodLayer, rng: np.random.Generator) -> Places:
    """Around the middle, heads outward."""
    kind = dealt(layer, rng)
    n = len(kind)
    angle = (np.arange(n) + rng.random() + 0.25 * (rng.random(n) - 0.5)) * 6.2832 / n
    r = layer.wide * (0.62 + 0.04 * (rng.random(n) - 0.5))
    return Places(r * np.cos(angle), r * np.sin(angle), angle + 0.3 * (rng.random(n) - 0.5), np.full(n, 0.3), kind)


def fan(layer: FoodLayer, rng: np.random.Generator) -> Places:
    """Slices that overlap in rows, as a cook lays them out."""
    n = sum(count for _, count in layer.what)
    rows = 1 if n < 7 else 2 if n < 15 else 3
    row, along = np.arange(n) % rows, np.arange(n) // rows
    u = layer.wide * (1.5 * (along + 0.5) / np.ceil(n / rows) - 0.75)
    v = layer.wide * (0.0 if rows == 1 else 1.0) * (row - (rows - 1) / 2) * 0.52
    turn = 1.57 + 0.16 * (rng.random(n) - 0.5) + (rng.random() < 0.5) * 0.3
    u, v = u + 0.02 * rng.random(n), v + 0.03 * rng.random(n)
    return Places(u, v, turn + 0 * u, 0.15 + 0.35 * along / n, np.sort(dealt(layer, rng)))


def pack(layer: FoodLayer, rng: np.random.Generator) -> Places:
    """Side by side, the way buns are set in a steamer: some in the middle, the rest around them."""
    kind = dealt(layer, rng)
    n = len(kind)
    inner = 0 if n < 6 else 1 if n < 9 else 3 if n < 13 else 4
    outer = n - inner
    radius = np.where(np.arange(n) < inner, 0.0 if inner == 1 else 0.27, 0.64 if n >= 6 else 0.16 + 0.085 * n)
    count = np.where(np.arange(n) < inner, max(inner, 1), outer)
    angle = 6.2832 * np.arange(n) / count + rng.random() * 6.28 + 0.12 * (rng.random(n) - 0.5)
    if n == 1:
        radius = radius * 0
    u, v = layer.wide * radius * np.cos(angle), layer.wide * radius * np.sin(angle)
    return Places(u, v, rng.random(n) * 6.28, np.zeros(n), kind)


def flower(layer: FoodLayer, rng: np.random.Generator) -> Places:
    """Packed, and each turned outward like a petal."""
    places = pack(layer, rng)
    places.turn = np.arctan2(places.v, places.u)
    return places


def one(layer: FoodLayer, rng: np.random.Generator) -> Places:
    """In the middle, along the vessel; more than one lie side by side."""
    kind = np.sort(dealt(layer, rng))
    n = len(kind)
    v = layer.wide * (np.arange(n) - (n - 1) / 2) * 1.3 / max(n, 2)
    flip = 3.1416 * (rng.random() < 0.5)
    return Places(0 * v, v, flip + 0.12 * (rng.random(n) - 0.5), np.zeros(n), kind)


def side(layer: FoodLayer, rng: np.random.Generator) -> Places:
    """A little heap at the edge of the vessel."""
    places = heap(layer, rng)
    places.u, places.v, places.lift = 0.30 * places.u, 0.30 * places.v - 0.72, 0.6 * places.lift
    return places


LAYOUTS = {
    "heap": heap, "tangle": tangle, "ring": ring, "fan": fan, "pack": pack, "flower": flower, "one": one, "side": side,
    "top": heap, "float": heap,
}  # fmt: skip
