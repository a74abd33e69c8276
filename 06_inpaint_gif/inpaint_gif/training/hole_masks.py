"""Masks for training: the holes of camera moves and other holes,
so that the network does not depend on the shape of the hole.

camera   the hole of a random move: a strip, an angle, a frame
strip    one to three sides of the picture, of different depths
box      one to three rectangles
brush    thick strokes
all      the whole picture, so that the network still draws whole pictures, as the model does from which it starts
"""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from inpaint_gif.animation.camera import MOVES, CameraPath, Move, MoveStep
from inpaint_gif.animation.canvas import FilmCanvas

KINDS = {"camera": 0.5, "strip": 0.15, "box": 0.15, "brush": 0.15, "all": 0.05}  # {kind: probability}
NEW_FRACTIONS = (0.12, 0.2, 0.25, 0.33, 0.45)  # of camera moves, see CameraPath.plan


def random_hole(rng: np.random.Generator, height: int, width: int) -> Tensor:
    """(1, H, W) float, 1 in the hole; never empty."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if kind == "camera":
        bank = camera_holes(height, width)
        return bank[int(rng.integers(len(bank)))]
    mask = MAKERS[kind](rng, height, width)
    return mask if mask.any() else torch.ones_like(mask)


def random_holes(n: int, height: int, width: int, *seed: int) -> Tensor:
    """(n, 1, H, W) uint8, a function of n and the seed."""
    rng = np.random.default_rng([n, *seed])
    return torch.stack([random_hole(rng, height, width).to(torch.uint8) for _ in range(n)])


@lru_cache(maxsize=4)
def camera_holes(height: int, width: int) -> Tensor:
    """The holes of the first keyframe of every move, for several fractions of new content. (N, 1, H, W)"""
    holes = []
    for new_fraction in NEW_FRACTIONS:
        for name in MOVES:
            path = CameraPath.plan(Move((MoveStep.parse(name),)), height, width, new_fraction)
            canvas = FilmCanvas(torch.zeros(1, height, width))
            holes.append((~canvas.render(path.stops()[0].window)[1]).float())
    return torch.stack([hole for hole in holes if hole.any()])


def strip(rng: np.random.Generator, height: int, width: int) -> Tensor:
    mask = torch.zeros(1, height, width)
    for side in rng.choice(4, size=int(rng.integers(1, 4)), replace=False):
        deep = int(rng.integers(1, max(2, (height, width)[side % 2] // 2)))
        part = (slice(deep) if side < 2 else slice(-deep, None), slice(None))
        mask[(0, *(part if side % 2 == 0 else part[::-1]))] = 1
    return mask


def box(rng: np.random.Generator, height: int, width: int) -> Tensor:
    mask = torch.zeros(1, height, width)
    for _ in range(int(rng.integers(1, 4))):
        h, w = (int(rng.integers(n // 8, max(n // 8 + 1, 5 * n // 8))) for n in (height, width))
        top, left = int(rng.integers(height - h)), int(rng.integers(width - w))
        mask[:, top : top + h, left : left + w] = 1
    return mask


def brush(rng: np.random.Generator, height: int, width: int) -> Tensor:
    picture = Image.new("L", (width, height))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 4))):
        thick = int(rng.integers(max(1, width // 12), max(2, width // 4)))
        points = [(float(x * width), float(y * height)) for x, y in rng.random((int(rng.integers(2, 5)), 2))]
        pen.line(points, fill=255, width=thick, joint="curve")
        for x, y in points:
            pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
    return (torch.from_numpy(np.array(picture)) > 127).float()[None]


def everything(rng: np.random.Generator, height: int, width: int) -> Tensor:
    return torch.ones(1, height, width)


MAKERS = {"strip": strip, "box": box, "brush": brush, "all": everything}
