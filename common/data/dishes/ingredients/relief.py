"""A picture as a relief: every point has a colour, a height and a gloss; light falls on the whole of it at the end.

The code that places a piece of tomato gives only its curvature. Highlights, the dark side, shadows on what lies below
and the dusk between two pieces follow from the heights, so they agree in every picture,
from the table up to the sesame.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

Array = np.ndarray
Colour = tuple[float, float, float]  # red, green, blue in [0, 1]
RED, HEIGHT, GLOSS = slice(0, 3), 3, 4  # what the layers of a field are

LIGHT = np.array((-0.42, 0.48, 0.77), np.float32)  # towards the light: upper left, and well above
HALF = np.array((-0.23, 0.26, 0.94), np.float32)  # between the light and the eye, which looks straight down
HALF /= np.sqrt((HALF**2).sum())
SUN, SKY = (1.05, 1.0, 0.92), (0.96, 0.98, 1.04)  # warm light, cool shade


@dataclass
class Relief:
    """x, y   (H, W) float32, the middle of each pixel; x to the right, y UP, the picture is [-0.5, 0.5] wide and high
    field  (5, H, W) float32: red, green, blue in [0, 1], height in picture widths, gloss in [0, 1]
    pixel  width of a pixel
    """

    x: Array
    y: Array
    field: Array
    pixel: float

    @classmethod
    def blank(cls, size: int) -> "Relief":
        ticks = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        x, y = np.meshgrid(ticks, -ticks)
        return cls(x, y, np.zeros((5, size, size), np.float32), 1 / size)

    def cover(self, distance: Array, blur: float = 0) -> Array:
        """How much of each pixel lies inside a shape, 0 to 1;
        the edge is one pixel wide, or `blur` if that is wider.
        """
        return np.clip(0.5 - distance / max(self.pixel, blur), 0, 1)

    def lay(
        self, share: Array, colour: Array | Colour, height: Array | float | None = None, gloss: float | None = None
    ) -> None:
        """Lay something over the picture, `share` of it in each pixel; None leaves a height or gloss as it is."""
        for under, c in zip(self.field[:3], colour, strict=True):
            under += share * (c - under)
        for layer, value in ((HEIGHT, height), (GLOSS, gloss)):
            if value is not None:
                self.field[layer] += share * (value - self.field[layer])

    def lit(self) -> Array:
        """The picture in the light, (3, H, W) in [0, 1]."""
        height, gloss = self.field[HEIGHT], self.field[GLOSS]
        nx, ny, nz = normals(height, self.pixel)
        # 1 where the ground is level
        flat = np.maximum((nx * LIGHT[0] + ny * LIGHT[1] + nz * LIGHT[2]) / LIGHT[2], 0.22)
        dusk = np.minimum(1.2, 1 - 7.0 * (gaussian_filter(height, 0.022 / self.pixel, truncate=2.5) - height))
        sun = flat * (1 - 0.62 * self.shadow(height))
        shade = np.maximum(dusk, 0.45)
        # rice and dough are lit from within
        pale = 0.55 * np.minimum(np.minimum(self.field[0], self.field[1]), self.field[2]) ** 2
        spark = np.maximum(nx * HALF[0] + ny * HALF[1] + nz * HALF[2], 0) ** 26
        shine = 0.62 * gloss * np.maximum(spark - 0.18, 0) * np.minimum(1, sun + 0.2)
        rgb = np.empty_like(self.field[RED])
        for out, colour, sky, warm in zip(rgb, self.field, SKY, SUN, strict=False):
            light = (0.56 * sky) * shade + (0.53 * warm) * sun
            light += pale * (1.05 - light)
            np.multiply(colour, light, out=out)
            out += shine
        return graded(rgb)

    def shadow(self, height: Array) -> Array:
        """How much of the sun each point lacks, 0 to 1: something higher stands between them."""
        blocked = np.zeros_like(height)
        for step in (0.012, 0.03, 0.06):
            higher = shifted(height, step / self.pixel * 0.7071) - height - 0.8 * step
            np.maximum(blocked, higher, out=blocked)
        return np.minimum(blocked * 60, 1)


def normals(height: Array, pixel: float) -> tuple[Array, Array, Array]:
    """Which way each point of the surface looks; steep edges are made less so, whatever the size of a pixel."""
    down, right = np.gradient(height, np.float32(pixel))
    steep = np.sqrt(right * right + down * down)
    calm = 1 / (1 + 0.75 * steep)
    nx, ny = -right * calm, down * calm
    length = 1 / np.sqrt(nx * nx + ny * ny + 1)
    return nx * length, ny * length, length


def shifted(height: Array, by: float) -> Array:
    """The heights seen from `by` pixels further to the lower right."""
    whole = int(by)
    near = np.roll(height, (whole, whole), (0, 1))
    return near + (by - whole) * (np.roll(near, (1, 1), (0, 1)) - near)


def graded(rgb: Array) -> Array:
    """Highlights that run out softly, and a little more colour."""
    grey = (rgb[0] + rgb[1] + rgb[2]) * (0.12 / 3)
    rgb *= 1.12
    rgb -= grey
    over = np.maximum(rgb - 0.8, 0)
    np.minimum(rgb, 0.8, out=rgb)
    rgb += over / (1 + 5 * over)  # 0.8 and above run towards 1
    return np.clip(rgb, 0, 1, out=rgb)


def blend(a: Array | Colour, b: Array | Colour, share: Array | float) -> Array:
    """`share` of b in a, colours or images of colours; share (...) without the axis of red, green, blue."""
    a, b = (np.array(c, np.float32).reshape(3, *[1] * np.ndim(share)) if isinstance(c, tuple) else c for c in (a, b))
    return a + share * (b - a)
