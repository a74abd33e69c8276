"""The canvas: a plane with all painted pictures, which is rendered through a window at any position and scale.

The unit of the plane is a pixel of the first picture; its centre is (0, 0), x points right and y points down. All
pictures have the same number of pixels, but each may cover a larger or smaller part of the plane. A window may lie at
fractions of a pixel. It is never rotated, so resampling is separable: first along rows, then along columns.
"""

import math
from dataclasses import dataclass

import torch
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


def bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def bicubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -1/2 (Catmull-Rom): it passes through the samples and reproduces parabolas."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), torch.zeros_like(x))


KERNELS = {"bilinear": (bilinear, 1), "bicubic": (bicubic, 2), "lanczos": (lanczos, 3)}  # each with its radius


@dataclass(frozen=True)
class Taps:
    """Resampling weights that make the pixels of a window from those of a picture, along one axis.

    index, weight  (n, T) source pixels and their weights; each row sums to 1
    inside         (n,) distance of a window pixel from the edge of the picture, in window pixels; negative outside
    """

    index: Tensor
    weight: Tensor
    inside: Tensor

    def of(self, part: slice) -> "Taps":
        """The weights of some of the window's pixels, without taps that none of them uses."""
        used = (self.weight[part] != 0).any(0)
        return Taps(self.index[part][:, used], self.weight[part][:, used], self.inside[part])


def taps(n: int, window: float, scale: float, picture: float, picture_scale: float, kernel: str) -> Taps:
    """Weights for a window of n pixels centred on `window`, from a picture of n pixels centred on `picture`."""
    filter_function, radius = KERNELS[kernel]
    ratio = scale / picture_scale  # pixels of the picture under one pixel of the window
    ratio = 1.0 if abs(ratio - 1) < CLOSE / n else ratio
    shift = (window - picture) / picture_scale
    shift = float(round(shift)) if abs(shift - round(shift)) < CLOSE else shift
    # (n,) centres, in the picture's pixels
    at = (torch.arange(n, dtype=torch.float64) + 0.5 - n / 2) * ratio + n / 2 + shift
    # antialiasing: a pixel that covers several is their mean; without it small details flicker
    stretch = max(1.0, ratio)
    reach = math.ceil(radius * stretch)
    index = at.floor().long()[:, None] + torch.arange(-reach, reach + 1)  # (n, T)
    weight = filter_function((index + 0.5 - at[:, None]) / stretch) * ((index >= 0) & (index < n))
    total = weight.sum(1, keepdim=True)
    weight = torch.where(total > CLOSE, weight / total, torch.zeros_like(weight))
    inside = torch.minimum(at - ratio / 2, n - at - ratio / 2) / ratio
    return Taps(index.clamp(0, n - 1), weight.float(), inside)


def resample(image: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """(C, H, W) -> (C, h, w)"""
    part = sum(image[:, rows.index[:, t]] * rows.weight[:, t, None] for t in range(rows.index.shape[1]))  # (C, h, W)
    return sum(part[:, :, columns.index[:, t]] * columns.weight[:, t] for t in range(columns.index.shape[1]))


class FilmCanvas:
    """Painted pictures in the plane. The finest lies on top;
    among equally fine ones the oldest, because later ones contain copies of it.

    picture  (C, H, W) in [-1, 1]; it covers the window (0, 0, 1)
    kernel   "bilinear", "bicubic" or "lanczos"
    """

    def __init__(self, picture: Tensor, kernel: str = "bicubic"):
        check_picture(picture)
        if kernel not in KERNELS:
            raise UserError(f"unknown kernel '{kernel}'; choose one of {', '.join(KERNELS)}")
        self.kernel = kernel
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
            rows = taps(height, window.y, window.scale, layer.window.y, layer.window.scale, self.kernel)
            columns = taps(width, window.x, window.scale, layer.window.x, layer.window.scale, self.kernel)
            inside = torch.minimum(rows.inside[:, None], columns.inside)  # (H, W)
            wanted = (inside > -CLOSE * width) & ~hidden
            if wanted.any():
                box = span(wanted.any(1)), span(wanted.any(0))
                visible.append((box, layer.image, rows.of(box[0]), columns.of(box[1]), inside[box]))
                hidden |= inside >= FEATHER
        image, seen = torch.zeros(channels, height, width), torch.zeros(height, width, dtype=torch.bool)
        for box, picture, rows, columns, inside in reversed(visible):
            here = inside > -CLOSE * width
            weight = torch.where(seen[box], (inside / FEATHER).clamp(0, 1), 1.0) * here
            part = image[:, *box]
            # exact where both are equal
            part.copy_(torch.lerp(part, resample(picture, rows, columns), weight.float()))
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
