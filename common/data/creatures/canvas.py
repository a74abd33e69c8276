"""A picture that shapes are painted on, with clean edges at any size."""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Colour = tuple[float, float, float]  # red, green, blue in [0, 1]


@dataclass
class Canvas:
    """Coordinates of every pixel's middle and the colours painted so far.

    x, y   (H, W) float32; x to the right, y UP, in picture widths
    rgb    (3, H, W) float32 in [0, 1], painted in place
    pixel  width of a pixel
    """

    x: Array
    y: Array
    rgb: Array
    pixel: float

    @classmethod
    def blank(cls, size: int) -> "Canvas":
        """size x size pixels; (0, 0) is the lower left corner, (1, 1) the upper right."""
        ticks = (np.arange(size, dtype=np.float32) + 0.5) / size
        x, y = np.meshgrid(ticks, ticks[::-1])
        return cls(x, y, np.zeros((3, size, size), np.float32), 1 / size)

    def near(self, x: float, y: float, r: float) -> "Canvas":
        """The part within r of a point, with the point as origin."""
        part = self.crop((x - r, x + r), (y - r, y + r))
        return Canvas(part.x - x, part.y - y, part.rgb, part.pixel)

    def crop(self, wide: tuple[float, float], high: tuple[float, float]) -> "Canvas":
        """The part with x and y between these bounds: painting a small thing in it is much quicker."""
        columns = between(self.x[0], self.x[-1], wide[0] - self.pixel, wide[1] + self.pixel)
        rows = between(self.y[:, 0], self.y[:, -1], high[0] - self.pixel, high[1] + self.pixel)
        return Canvas(self.x[rows, columns], self.y[rows, columns], self.rgb[:, rows, columns], self.pixel)

    def cover(self, distance: Array, blur: float = 0) -> Array:
        """How much of each pixel lies inside a shape, 0 to 1;
        the edge is one pixel wide, or `blur` if that is wider.
        """
        share = distance * (-1 / max(self.pixel, blur))
        share += 0.5
        np.maximum(share, 0, out=share)
        return np.minimum(share, 1, out=share)

    def paint(self, share: Array, colour: Colour | Array) -> None:
        """Lay a colour over the picture, `share` of it in each pixel."""
        if isinstance(colour, tuple):
            colour = np.array(colour, np.float32)[:, None, None]
        self.rgb += share * (colour - self.rgb)

    def fill(self, distance: Array, colour: Colour | Array, opacity: float = 1, blur: float = 0) -> None:
        """A shape in one colour, or in an image of colours (3, H, W)."""
        share = self.cover(distance, blur)
        self.paint(share if opacity == 1 else share * opacity, colour)

    def outlined(self, distance: Array, colour: Colour | Array, line: Colour, width: float = 0.02) -> None:
        """A filled shape with an outline around it."""
        self.paint(self.cover(distance - width), line)
        self.paint(self.cover(distance), colour)


def between(one_end: Array, other_end: Array, low: float, high: float) -> slice:
    """Rows (or columns) that reach into [low, high], given the coordinate at both their ends; they may be tilted."""
    found = np.flatnonzero((np.maximum(one_end, other_end) >= low) & (np.minimum(one_end, other_end) <= high))
    return slice(found[0], found[-1] + 1) if len(found) else slice(0, 0)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b in a."""
    red, green, blue = (p + share * (q - p) for p, q in zip(a, b, strict=True))
    return red, green, blue
