"""Shapes as signed distances: below zero inside, above zero outside, in the unit of the coordinates.

Each function takes coordinates x, y (arrays of one shape) and gives the distance of every point to the edge. Two
shapes together are the smaller of their distances, one shape cut by another the larger.
(Inigo Quilez, "2D distance functions".)
"""

import numpy as np

Array = np.ndarray


def circle(x: Array, y: Array, r: float) -> Array:
    """A disc of radius r about the origin."""
    return np.sqrt(x * x + y * y) - r


def ellipse(x: Array, y: Array, rx: float, ry: float) -> Array:
    """An ellipse with half axes rx, ry; the distance is of first order,
    which is exact where it matters, at the edge.
    """
    k = np.sqrt((x / rx) ** 2 + (y / ry) ** 2)
    gradient = np.sqrt((x / rx**2) ** 2 + (y / ry**2) ** 2)
    return k * (k - 1) / (gradient + 1e-6)


def box(x: Array, y: Array, rx: float, ry: float, corner: float) -> Array:
    """A rectangle with half sides rx, ry and round corners."""
    qx, qy = np.abs(x) - (rx - corner), np.abs(y) - (ry - corner)
    outside = np.sqrt(np.maximum(qx, 0) ** 2 + np.maximum(qy, 0) ** 2)
    return outside + np.minimum(np.maximum(qx, qy), 0) - corner


def capsule(x: Array, y: Array, a: tuple[float, float], b: tuple[float, float], ra: float, rb: float) -> Array:
    """A rod from a to b, whose radius goes from ra to rb."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    x, y = x - a[0], y - a[1]
    along = (x * dx + y * dy) / (dx * dx + dy * dy)
    np.maximum(along, 0, out=along)
    np.minimum(along, 1, out=along)
    return np.sqrt((x - along * dx) ** 2 + (y - along * dy) ** 2) - (ra + (rb - ra) * along)


def rope(x: Array, y: Array, points: list[tuple[float, float]], ra: float, rb: float) -> Array:
    """Capsules through a row of points, the radius going from ra to rb."""
    radii = np.linspace(ra, rb, len(points)).tolist()
    parts = zip(points, points[1:], radii, radii[1:], strict=False)
    return together(*(capsule(x, y, a, b, r, s) for a, b, r, s in parts))


def polygon(x: Array, y: Array, points: list[tuple[float, float]]) -> Array:
    """The inside of a closed row of points."""
    nearest, sign = np.full_like(x, np.inf), np.ones_like(x)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        square = (wx - along * ex) ** 2 + (wy - along * ey) ** 2
        nearest = np.minimum(nearest, square)
        crosses = ((ay > y) != (by > y)) & ((wx * ey < ex * wy) == (ey > 0))  # a ray to the right meets this edge
        sign[crosses] *= -1
    return sign * np.sqrt(nearest)


def ring(x: Array, y: Array, r: float, width: float) -> Array:
    """A circle of radius r drawn with a pen of this width."""
    return np.abs(np.sqrt(x * x + y * y) - r) - width / 2


def together(*parts: Array) -> Array:
    """The union."""
    whole = parts[0]
    for part in parts[1:]:
        whole = np.minimum(whole, part)
    return whole


def turned(x: Array, y: Array, degrees: float) -> tuple[Array, Array]:
    """Coordinates for a shape that is turned by so many degrees from x towards y."""
    c, s = float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))
    return c * x + s * y, c * y - s * x
