"""The canvas: a plane with all painted pictures, which is rendered through a window at any position and scale.

The unit of the plane is a pixel of the first picture; its centre is (0, 0), x points right and y points down. All
pictures have the same number of pixels, but each may cover a larger or smaller part of the plane. A window may lie at
fractions of a pixel. It is never rotated, so Pillow can resample it as a rectangle of each picture.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.errors import UserError

FEATHER = 3.0  # pixels inside its own edge over which a picture fades into the one below it
CLOSE = 1e-6  # positions nearer than this are equal, so that rounding errors of sums do not cost a pixel


@dataclass(frozen=True)
class Window:
    """A rectangle of the plane, with the shape of the picture.

    x, y   its centre
    scale  units of the plane per pixel: 2 shows twice the width, and everything appears half as large
    """

    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0

    def same_as(self, other: "Window") -> bool:
        near = CLOSE * self.scale
        return abs(self.x - other.x) < near and abs(self.y - other.y) < near and abs(self.scale - other.scale) < near


def align(n: int, window: float, scale: float, picture: float, picture_scale: float) -> tuple[Tensor, Tensor]:
    """Where the n pixels of a window centred on `window` lie in a picture of n pixels centred on `picture`, along one
    axis: (n + 1,) their edges, in pixels of the picture, and (n,) the distance of each from the edge of the picture,
    in window pixels; negative outside.
    """
    ratio = scale / picture_scale  # pixels of the picture under one pixel of the window
    ratio = 1.0 if abs(ratio - 1) < CLOSE / n else ratio
    shift = (window - picture) / picture_scale
    shift = float(round(shift)) if abs(shift - round(shift)) < CLOSE else shift
    edges = (torch.arange(n + 1, dtype=torch.float64) - n / 2) * ratio + n / 2 + shift
    return edges, torch.minimum(edges[:-1], n - edges[1:]) / ratio


def resample(image: Tensor, rows: Tensor, columns: Tensor, box: tuple[slice, slice]) -> Tensor:
    """The part `box` of a window, whose pixels have these edges in the image. (C, H, W) -> (C, h, w)

    Pillow's bicubic filter passes through the samples. A pixel that covers several is their mean, because without
    antialiasing small details flicker.
    """
    (top, bottom), (left, right) = (
        edges[[part.start, part.stop]].clamp(0, len(edges) - 1).tolist()
        for edges, part in zip((rows, columns), box, strict=True)
    )
    size = (box[1].stop - box[1].start, box[0].stop - box[0].start)
    layers = [
        Image.fromarray(layer).resize(size, Image.Resampling.BICUBIC, (left, top, right, bottom))
        for layer in image.numpy()
    ]
    return torch.from_numpy(np.stack(layers))


class FilmCanvas:
    """Painted pictures in the plane. The finest lies on top;
    among equally fine ones the oldest, because later ones contain copies of it.

    picture  (C, H, W) in [-1, 1]; it covers the window (0, 0, 1)
    """

    def __init__(self, picture: Tensor):
        check_picture(picture)
        self.layers: list[CanvasLayer] = []  # from the top down
        self.add(Window(), picture)

    @property
    def shape(self) -> torch.Size:
        return self.layers[0].image.shape

    def add(self, window: Window, image: Tensor, copy: bool = False) -> None:
        """Add a picture. A copy of existing content goes below all others: it only joins pictures whose edges touch,
        where a pixel lies half in one picture and half in the other and would be visible in neither."""
        self.layers.append(CanvasLayer(window, image.detach().float().cpu().clamp(-1, 1), copy))
        # a stable sort keeps older layers above
        self.layers.sort(key=lambda layer: (layer.copy, round(math.log(layer.window.scale), 6)))

    def render(self, window: Window) -> tuple[Tensor, Tensor]:
        """Render the window: (image (C, H, W), seen (1, H, W) bool).

        A pixel is seen if its whole square lies inside some picture. Elsewhere the image is 0, mid-grey.
        """
        for layer in self.layers:
            if layer.window.same_as(window):
                # as painted, bit for bit
                return layer.image.clone(), torch.ones_like(layer.image[:1], dtype=torch.bool)
        channels, height, width = self.shape
        hidden = torch.zeros(height, width, dtype=torch.bool)  # covered by the layers above
        visible = []
        for layer in self.layers:
            rows, inside_y = align(height, window.y, window.scale, layer.window.y, layer.window.scale)
            columns, inside_x = align(width, window.x, window.scale, layer.window.x, layer.window.scale)
            inside = torch.minimum(inside_y[:, None], inside_x)  # (H, W)
            wanted = (inside > -CLOSE * width) & ~hidden
            if wanted.any():
                box = span(wanted.any(1)), span(wanted.any(0))
                visible.append((box, resample(layer.image, rows, columns, box), inside[box]))
                hidden |= inside >= FEATHER
        image, seen = torch.zeros(channels, height, width), torch.zeros(height, width, dtype=torch.bool)
        for box, resampled, inside in reversed(visible):
            here = inside > -CLOSE * width
            weight = torch.where(seen[box], (inside / FEATHER).clamp(0, 1), 1.0) * here
            part = image[:, *box]
            # exact where both are equal
            part.copy_(torch.lerp(part, resampled, weight.float()))
            seen[box] |= here
        return image.clamp(-1, 1), seen[None]


@dataclass(frozen=True)
class CanvasLayer:
    """A picture and the window that it covers."""

    window: Window
    image: Tensor
    copy: bool


def span(wanted: Tensor) -> slice:
    """The range from the first to the last true element."""
    where = wanted.nonzero().flatten()
    return slice(int(where[0]), int(where[-1]) + 1)


def check_picture(picture: Tensor) -> None:
    if picture.ndim != 3 or picture.shape[0] not in (1, 3):
        raise UserError(f"the picture must be (1 or 3, height, width), not {tuple(picture.shape)}")
    if min(picture.shape[1:]) < 16:
        raise UserError(
            f"the picture must be at least 16 pixels high and wide, not {picture.shape[1]} x {picture.shape[2]}"
        )
    if not picture.is_floating_point() or not picture.isfinite().all() or picture.abs().max() > 1 + CLOSE:
        raise UserError("the picture must hold numbers from -1 to 1; common.io.pixels.to_float makes them from bytes")
