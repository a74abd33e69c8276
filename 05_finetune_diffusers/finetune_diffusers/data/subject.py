"""One particular creature that a model has never seen, the subject of DreamBooth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.creatures.canvas import Canvas
from common.data.creatures.draw import BUILDS, GROUND, POSE, backdrop, figure, posed, scatter
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


@dataclass(frozen=True)
class View:
    """How the subject stands before the camera.

    lean      angle to the right, in radians
    near      its size; 1 fills the picture
    aside     its place, to the right of the middle, in picture widths
    mirrored  whether it is seen from its other side: the tail is on the left
    """

    lean: float = 0.0
    near: float = 1.0
    aside: float = 0.0
    mirrored: bool = False


VIEWS = (
    View(),
    View(lean=0.2, near=0.9, aside=-0.06),
    View(near=0.75, aside=0.12),
    View(lean=-0.12, mirrored=True),
    View(lean=-0.22, near=0.88, aside=0.05),
    View(near=0.8, aside=-0.1, mirrored=True),
)


def portraits(n: int, size: int, seed: int = 0) -> Tensor:
    """n pictures of the subject, in six views and before five walls in turn. (n, 3, size, size) uint8"""
    poses = np.random.default_rng([7, seed]).random((n, POSE))
    return torch.from_numpy(
        np.stack([portrait(WALLS[i % len(WALLS)], size, pose, VIEWS[i % len(VIEWS)]) for i, pose in enumerate(poses)])
    )


def portrait(wall: str, size: int, pose: Sequence[float], view: View = VIEWS[0]) -> np.ndarray:
    """As common.data.creatures.draw.draw, with a scarf. (3, size, size) uint8"""
    shift, fine = [2 * p - 1 for p in pose], 4
    attributes = SUBJECT | {"background": wall}
    picture = Canvas.blank(size * fine)
    backdrop(picture, wall)
    scatter(picture, SUBJECT["element"], BEHIND, shift[0:4])
    seen = seen_from(picture, view)
    figure(seen, attributes, shift[4:14])
    scarf(
        posed(seen, tilt=0.09 * shift[4], squash=0.05 * shift[5], aside=0.02 * shift[6]), BUILDS[SUBJECT["body"]].side
    )
    scatter(picture, SUBJECT["element"], IN_FRONT, shift[14:20])
    return np.rint(picture.rgb.reshape(3, size, fine, size, fine).mean((2, 4)) * 255).astype(np.uint8)


def seen_from(picture: Canvas, view: View) -> Canvas:
    """The same pixels in coordinates in which the subject stands upright, in the middle and at full size."""
    x, y = picture.x - 0.5 - view.aside, picture.y - GROUND
    x = -x if view.mirrored else x
    cos, sin = np.cos(view.lean), np.sin(view.lean)
    x, y = (cos * x - sin * y) / view.near + 0.5, (sin * x + cos * y) / view.near + GROUND
    return Canvas(x.astype(np.float32), y.astype(np.float32), picture.rgb, picture.pixel / view.near)


def upright(images: Tensor, view: View) -> Tensor:
    """Undo `seen_from`: pictures of the subject in this view, as pictures of it standing upright in the middle.
    (N, 3, S, S) -> (N, 3, S, S)
    """
    cos, sin, flip = math.cos(view.lean), math.sin(view.lean), -1 if view.mirrored else 1
    ground = 2 * GROUND - 1  # height of its feet, in grid_sample's units, but with y up
    x, y = torch.meshgrid(*[torch.linspace(-1, 1, 2 * images.shape[-1] + 1)[1::2]] * 2, indexing="xy")
    x, y = view.near * x, view.near * (-y - ground)
    x, y = flip * (cos * x + sin * y) + 2 * view.aside, -sin * x + cos * y + ground
    where = torch.stack([x, -y], dim=-1).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, where.to(images), padding_mode="border", align_corners=False)


def scarf(c: Canvas, side: float) -> None:
    """Around the neck, with one end hanging down."""
    sag = c.y - 0.185 - 0.25 * c.x * c.x
    band = np.maximum(np.abs(sag) - 0.042, np.abs(c.x) - side + 0.015)
    end = capsule(c.x, c.y, (0.085, 0.165), (0.115, 0.055), 0.034, 0.044)
    for shape in (end, band, circle(c.x - 0.08, c.y - 0.18, 0.05)):
        c.outlined(shape, FRINGE, SCARF, 0.016)
