"""Training images for camera moves: random windows onto a scene,
in which the table continues beyond the edges of the picture.

An inpainting network for a camera must be trained on its views: a plate that is cut at one side, an empty part of the
table, a dish far away. A drawn dish fills its picture, so none of these appear in it. But the table is drawn from
formulas without edges, so it can be drawn at any width, with the picture in the middle.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from common.data import Images
from common.data.dishes.dataset import dish, draw
from common.data.dishes.draw import FINEST, shrunk
from common.data.dishes.ingredients.relief import RED, Relief
from common.data.dishes.tableware.tables import lay_table
from common.data.dishes.tableware.vessels import lay_vessel
from common.io.pixels import to_float
from common.io.progress import with_progress

SIDES = 2  # side of a scene, in sides of the picture
DARKEST = 0.7  # lower bound of the vignette; inside the picture it is not reached
FURTHEST = 1.8  # largest side of a window, in sides of the picture
STREAM = 4  # of the random numbers of windows (common.data.drawn has its own streams)


def wide_scene(attributes: Mapping[str, str], size: int, pose: int) -> np.ndarray:
    """The dish with the table around it: (3, SIDES size, SIDES size) uint8,
    the middle of which is draw(attributes, size, pose).
    """
    rng = np.random.default_rng(pose)  # the same random numbers for table and vessel as in `draw`
    factor = max(2, -(-FINEST // size))
    relief = blank(size * factor)
    lay_table(relief, attributes["table"], rng.random(6).tolist())
    # the same formula as in lay_table
    light = 1.04 - 0.16 * (relief.x - relief.y + 0.2) - 0.25 * (relief.x**2 + relief.y**2)
    relief.field[RED] *= np.maximum(light, DARKEST) / light
    lay_vessel(relief, attributes["vessel"], attributes["glaze"], rng.random(6).tolist())  # for its shadow
    scene = np.rint(shrunk(relief.lit(), factor) * 255).astype(np.uint8)
    edge = (SIDES - 1) * size // 2
    scene[:, edge : edge + size, edge : edge + size] = draw(attributes, size, pose)
    return scene


def blank(points: int) -> Relief:
    """A relief of a plane SIDES wide and high, with `points` points for each side of the picture."""
    n = SIDES * points
    ticks = (((np.arange(n, dtype=np.float32) + 0.5) / n - 0.5) * SIDES).astype(np.float32)
    x, y = np.meshgrid(ticks, -ticks)
    return Relief(x, y, np.zeros((5, n, n), np.float32), 1 / points)


def view(scene: Tensor, size: int, u: np.ndarray, furthest: float = FURTHEST) -> Tensor:
    """A random window onto the scene. (C, H, W) uint8 -> (C, size, size) uint8

    u  3 random numbers in [0, 1): the side of the window, from 1 to `furthest` sides of the picture; its position
    """
    height, width = scene.shape[1:]
    side = min(height, width, round(size * furthest ** u[0]))
    position = np.clip(0.5 + 1.6 * (u[1:] - 0.5), 0, 1)  # sometimes at the very edge, which is two keyframes away
    top, left = (int(round(s * (whole - side))) for s, whole in zip(position, (height, width), strict=True))
    return tv.resize(
        scene[:, top : top + side, left : left + side],
        [size, size],
        interpolation=tv.InterpolationMode.BICUBIC,
        antialias=True,
    )


def load_test_scenes(n: int, size: int) -> tuple[Tensor, list[str]]:
    """The first n scenes of the test split, (n, 3, SIDES size, SIDES size) in [-1, 1], and the names of their dishes."""
    dishes = [dish(0, "test", i) for i in range(n)]
    scenes = [torch.from_numpy(wide_scene(attributes, size, pose)) for attributes, pose in dishes]
    return to_float(torch.stack(scenes)), [attributes["dish"] for attributes, _ in dishes]


def drawn_views(split: str, n: int, size: int, windows: int = 1, seed: int = 0) -> Tensor:
    """Random windows onto each of n drawn scenes; several, because drawing a scene is slow.
    (n windows, 3, size, size) uint8
    """
    views = torch.empty(n, windows, 3, size, size, dtype=torch.uint8)
    for i in with_progress("drawing scenes", range(n), unit="scene"):
        attributes, pose = dish(0, split, i)
        scene = torch.from_numpy(wide_scene(attributes, size, pose))
        for k in range(windows):
            views[i, k] = view(scene, size, window_numbers(seed, split, i * windows + k))
    return views.flatten(0, 1)


def views_of(images: Images, size: int, windows: int = 1, seed: int = 0) -> Tensor:
    """The same for pictures without surroundings, such as photographs: windows onto parts of them."""
    return torch.stack(
        [
            view(pixels, size, window_numbers(seed, images.name, i * windows + k), images.size / size)
            for i, pixels in enumerate(images.pixels)
            for k in range(windows)
        ]
    )


def window_numbers(seed: int, name: str, i: int) -> np.ndarray:
    """The 3 random numbers of window i, a function of the arguments alone."""
    return np.random.default_rng([STREAM, abs(seed), i, *name.encode()]).random(3)
