"""Pieces of food, painted all at once: a hundred grains of rice are one call, with an axis for the grain.

A kind of food is a function from `Pieces` (coordinates inside each piece, which is about 1 in every direction) to a
`Look`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.data.dishes.ingredients.relief import Array, Colour, Relief, blend

LUCK = 8  # random numbers of a piece


@dataclass
class Pieces:
    """u, v   (K, P, P) coordinates along and across each of K pieces
    luck   (LUCK, K, 1, 1) numbers in [0, 1) that make it a little different from its neighbours
    edge   (K, 1, 1) width of a pixel, in these units
    """

    u: Array
    v: Array
    luck: Array
    edge: Array

    def cover(self, distance: Array, blur: float = 0) -> Array:
        """How much of each pixel lies inside a shape, 0 to 1."""
        return np.clip(0.5 - distance / np.maximum(self.edge, blur), 0, 1)

    def swing(self, i: int, reach: float = 1) -> Array:
        """The i-th random number, from -reach to reach."""
        return (2 * self.luck[i] - 1) * reach

    def r(self) -> Array:
        return np.sqrt(self.u * self.u + self.v * self.v)

    def warped(self, strength: float = 0.2, waves: float = 3.0) -> tuple[Array, Array]:
        """Coordinates in which a round thing becomes a lumpy one."""
        a, b = 6.3 * self.luck[6], 6.3 * self.luck[7]
        return self.u + strength * np.sin(waves * self.v + a), self.v + strength * np.sin(waves * self.u + b)

    def tone(self, colour: Colour, spread: float = 0.06, i: int = 5) -> Array:
        """A colour that is a little lighter or darker in each piece. (3, K, 1, 1)"""
        return np.array(colour, np.float32)[:, None, None, None] * (1 + self.swing(i, spread))

    def tones(self, a: Colour, b: Colour, i: int = 5) -> Array:
        """A colour between a and b for each piece. (3, K, 1, 1)"""
        return blend(a, b, self.luck[i])


@dataclass
class Look:
    """distance  (K, P, P), below zero inside the piece
    colour    anything that spreads over (3, K, P, P), or one colour
    height    of its surface over where it lies, (K, P, P)
    gloss     0 to 1
    opacity   1, or how much it hides of what it lies on
    """

    distance: Array
    colour: Array | Colour
    height: Array
    gloss: Array | float = 0.4
    opacity: Array | float = 1.0


@dataclass(frozen=True)
class Ingredient:
    """A kind of food: how it is painted, half its length in picture widths, and how far it reaches beyond that."""

    paint: Callable[[Pieces], Look]
    size: float
    reach: float = 1.08
    tilt: float = 0.3  # how askew it may lie: facets that look in different directions


@dataclass
class Spots:
    """Where K pieces of one kind lie.

    x, y, size, turn, base  (K,) floats: middle, half length, angle in radians, height of the ground
    """

    x: Array
    y: Array
    size: Array
    turn: Array
    base: Array

    def __getitem__(self, which: Array | slice) -> "Spots":
        return Spots(self.x[which], self.y[which], self.size[which], self.turn[which], self.base[which])


def patches(
    relief: Relief, kind: Ingredient, spots: Spots, luck: Array, coat: tuple[Colour, float] | None
) -> tuple[list[Array], int, Array, Array]:
    """K small pictures of one kind: where each belongs, its share of every pixel, and its five layers.

    luck  (K, LUCK + 2) random numbers
    coat  a sauce over everything: its colour, and how thick
    """
    total = relief.x.shape[0]
    reach = float(kind.reach * spots.size.max())
    side = min(total, int(2 * reach / relief.pixel) + 2)
    corner = [
        np.clip(np.floor((0.5 + p - reach) / relief.pixel), 0, total - side).astype(int) for p in (spots.x, -spots.y)
    ]
    ticks = np.arange(side)
    x = relief.x[0][corner[0][:, None] + ticks][:, None, :] - column(spots.x)
    y = relief.y[:, 0][corner[1][:, None] + ticks][:, :, None] - column(spots.y)
    c, s, size = column(np.cos(spots.turn)), column(np.sin(spots.turn)), column(spots.size)
    u, v = (c * x + s * y) / size, (c * y - s * x) / size
    chance = luck.T.astype(np.float32)[:, :, None, None]
    pieces = Pieces(u, v, chance[:LUCK], relief.pixel / size)
    look = kind.paint(pieces)
    share = pieces.cover(look.distance) * look.opacity
    values = np.empty((5, *u.shape), np.float32)
    values[:3] = (
        look.colour if not isinstance(look.colour, tuple) else np.array(look.colour, np.float32)[:, None, None, None]
    )
    if coat:
        values[:3] = coated(values[:3], *coat)
    lean = kind.tilt * ((2 * chance[LUCK] - 1) * u + (2 * chance[LUCK + 1] - 1) * v)
    values[3] = column(spots.base) + size * (look.height + lean)
    values[4] = look.gloss
    return corner, side, share, values


def coated(colour: Array, sauce: Colour, thick: float) -> Array:
    """A glaze takes the light twice: what is below shows through, tinted."""
    tint = np.array(sauce, np.float32)[:, None, None, None]
    return colour + thick * ((0.35 * tint + 0.65 * tint * np.sqrt(np.maximum(colour, 0)) * 1.25) - colour)


def column(values: Array) -> Array:
    """(K,) -> (K, 1, 1)"""
    return np.asarray(values, np.float32)[:, None, None]


def lay_all(relief: Relief, batches: list, order: list[tuple[int, int]]) -> None:
    """Lay pieces down one after the other. order: (which batch, which piece of it), lowest first."""
    for which, k in order:
        (left, top), side, share, values = batches[which]
        spot = relief.field[:, top[k] : top[k] + side, left[k] : left[k] + side]
        spot += share[k] * (values[:, k] - spot)
