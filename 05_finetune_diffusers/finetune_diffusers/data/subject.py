"""One particular creature that a model has never seen, the subject of DreamBooth."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.data.creatures.canvas import Canvas
from common.data.creatures.draw import BUILDS, POSE, backdrop, figure, posed, scatter
from common.data.creatures.motifs import BEHIND, IN_FRONT
from common.data.creatures.shapes import capsule, circle

# One creature that is always the same: no training picture has its scarf, and no caption a word for it.
SUBJECT = {
    "colour": "orange",
    "body": "pear",
    "element": "fairy",
    "tail": "curly",
    "ears": "rabbit",
    "wings": "none",
    "horns": "none",
    "pattern": "belly",
    "eyes": "two",
    "mood": "happy",
}
WALLS = ("cream", "sky", "mint", "rose", "lilac")
SCARF, FRINGE = (0.10, 0.32, 0.30), (0.16, 0.78, 0.70)  # its outline, and its wool


def portraits(n: int, size: int, seed: int = 0) -> Tensor:
    """n pictures of the subject, each tilted a little, before five walls in turn. (n, 3, size, size) uint8"""
    poses = np.random.default_rng([7, seed]).random((n, POSE))
    return torch.from_numpy(np.stack([portrait(WALLS[i % len(WALLS)], size, pose) for i, pose in enumerate(poses)]))


def portrait(wall: str, size: int, pose: Sequence[float]) -> np.ndarray:
    """As common.data.creatures.draw.draw, with a scarf. (3, size, size) uint8"""
    shift, fine = [2 * p - 1 for p in pose], 4
    attributes = SUBJECT | {"background": wall}
    picture = Canvas.blank(size * fine)
    backdrop(picture, wall)
    scatter(picture, SUBJECT["element"], BEHIND, shift[0:4])
    figure(picture, attributes, shift[4:14])
    scarf(
        posed(picture, tilt=0.09 * shift[4], squash=0.05 * shift[5], aside=0.02 * shift[6]),
        BUILDS[SUBJECT["body"]].side,
    )
    scatter(picture, SUBJECT["element"], IN_FRONT, shift[14:20])
    return np.rint(picture.rgb.reshape(3, size, fine, size, fine).mean((2, 4)) * 255).astype(np.uint8)


def scarf(c: Canvas, side: float) -> None:
    """Around the neck, with one end hanging down."""
    sag = c.y - 0.185 - 0.25 * c.x * c.x
    band = np.maximum(np.abs(sag) - 0.042, np.abs(c.x) - side + 0.015)
    end = capsule(c.x, c.y, (0.085, 0.165), (0.115, 0.055), 0.034, 0.044)
    for shape in (end, band, circle(c.x - 0.08, c.y - 0.18, 0.05)):
        c.outlined(shape, FRINGE, SCARF, 0.016)
