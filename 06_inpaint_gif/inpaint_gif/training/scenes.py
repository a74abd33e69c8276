"""More than the picture shows: the table goes on beyond its edges, and a window is looked through at a random place.

An inpainting network that is to follow a camera must have seen what a camera sees: a plate that leaves the picture at one side, a
table with nothing on it, a dish far away. A drawn dish fills its picture, and so all of that lies outside of it. But what it lies on is drawn
from formulas that know no edges, so the table can be drawn as wide as one likes, and the picture laid into the middle of it.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from tqdm import tqdm

from common.data import Images
from common.data.dishes.dataset import dish, draw
from common.data.dishes.draw import FINEST, shrunk
from common.data.dishes.ingredients.relief import RED, Relief
from common.data.dishes.tableware.tables import lay_table
from common.data.dishes.tableware.vessels import lay_vessel

SIDES = 2         # how many times as wide and high as the picture a scene is
DARKEST = 0.7     # of the light's falling off towards a corner: within the picture it never comes to that
FURTHEST = 1.8    # as much of the plane as a window may show, in sides of the picture
PLACE = 4         # what a generator of random numbers is for (common.data.dishes has its own)


def wide_scene(attributes: Mapping[str, str], size: int, pose: int) -> np.ndarray:
    """The dish with the table around it: (3, SIDES size, SIDES size) uint8, the middle of which is draw(attributes, size, pose)."""
    rng = np.random.default_rng(pose)  # table and vessel take the same random numbers as in `draw`
    factor = max(2, -(-FINEST // size))
    relief = blank(size * factor)
    lay_table(relief, attributes["table"], rng.random(6).tolist())
    light = 1.04 - 0.16 * (relief.x - relief.y + 0.2) - 0.25 * (relief.x**2 + relief.y**2)  # as lay_table has it
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


def view(scene: Tensor, size: int, luck: np.ndarray, furthest: float = FURTHEST) -> Tensor:
    """What a window at a random place of the scene shows. (C, H, W) uint8 -> (C, size, size) uint8

    luck  3 numbers in [0, 1): how much it shows, from one side of the picture up to `furthest`; and where
    """
    height, width = scene.shape[1:]
    side = min(height, width, round(size * furthest ** luck[0]))
    share = np.clip(0.5 + 1.6 * (luck[1:] - 0.5), 0, 1)  # now and then at the very edge, as far as two keyframes go
    top, left = (int(round(s * (whole - side))) for s, whole in zip(share, (height, width), strict=True))
    return tv.resize(scene[:, top : top + side, left : left + side], [size, size], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)


def drawn_views(split: str, n: int, size: int, windows: int = 1, seed: int = 0) -> Tensor:
    """Random windows onto each of n dishes: drawing takes long, looking does not. (n windows, 3, size, size) uint8"""
    views = torch.empty(n, windows, 3, size, size, dtype=torch.uint8)
    for i in tqdm(range(n), "drawing scenes", disable=n < 200, leave=False):
        attributes, pose = dish(0, split, i)
        scene = torch.from_numpy(wide_scene(attributes, size, pose))
        for k in range(windows):
            views[i, k] = view(scene, size, place(seed, split, i * windows + k))
    return views.flatten(0, 1)


def views_of(images: Images, size: int, windows: int = 1, seed: int = 0) -> Tensor:
    """The same from pictures that end at their edges, such as photographs: windows onto parts of them."""
    return torch.stack([view(pixels, size, place(seed, images.name, i * windows + k), images.size / size)
                        for i, pixels in enumerate(images.pixels) for k in range(windows)])  # fmt: skip


def place(seed: int, name: str, i: int) -> np.ndarray:
    """Random numbers for one picture that depend on nothing drawn before."""
    return np.random.default_rng([PLACE, abs(seed), i, *name.encode()]).random(3)
