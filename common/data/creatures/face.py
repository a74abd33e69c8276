"""Eyes, mouth and cheeks: how many eyes, and in what mood."""

import numpy as np

from common.data.creatures.canvas import Canvas, mix
from common.data.creatures.parts import Build, Paint
from common.data.creatures.shapes import capsule, circle, ellipse, ring, rope, together

DARK = (0.10, 0.08, 0.13)
EYES = {  # (x, y above the line of the eyes, radius) of each
    "one": ((0.0, 0.01, 0.118),),
    "two": ((-0.092, 0.0, 0.080), (0.092, 0.0, 0.080)),
    "three": ((-0.128, -0.03, 0.062), (0.128, -0.03, 0.062), (0.0, 0.065, 0.068)),
}


def face(c: Canvas, b: Build, p: Paint, eyes: str, mood: str, gaze: tuple[float, float], scale: float) -> None:
    """gaze: where it looks, each in [-1, 1]; scale: size of the eyes, about 1."""
    for x, y, r in EYES[eyes]:
        place = c.near(x, b.eyes + y, 1.3 * r * scale)
        if mood == "sleepy":
            closed_eye(place, r * scale, p)
        else:
            open_eye(place, r * scale, p, gaze)
        if mood == "angry":
            brow(place, r * scale, p, np.sign(x))
    below = b.eyes - (0.155 if eyes == "one" else 0.115)
    middle = c.crop((-0.2, 0.2), (below - 0.04, below + 0.06))
    cheeks = ellipse(np.abs(middle.x) - 0.137, middle.y - below - 0.01, 0.036, 0.024)
    middle.fill(cheeks, (1.0, 0.45, 0.50), opacity=0.55, blur=0.02)
    mouth(c.near(0, below, 0.09), mood)


def open_eye(c: Canvas, r: float, p: Paint, gaze: tuple[float, float]) -> None:
    """A white ball, a large pupil and two glints of light."""
    c.outlined(circle(c.x, c.y, r), (1.0, 1.0, 1.0), DARK, 0.014)
    x, y = c.x - 0.18 * r * gaze[0], c.y - 0.16 * r * gaze[1] + 0.04 * r
    c.fill(circle(x, y, 0.66 * r), DARK)
    c.fill(circle(x + 0.22 * r, y - 0.26 * r, 0.24 * r), (1.0, 1.0, 1.0))
    c.fill(circle(x - 0.24 * r, y + 0.24 * r, 0.11 * r), (1.0, 1.0, 1.0), opacity=0.8)


def brow(c: Canvas, r: float, p: Paint, side: float) -> None:
    """Skin over the upper part of an eye, and a dark brow that falls towards the nose;
    side: -1 left, 0 middle, 1 right.
    """
    slope = 0.6 * (c.x * side if side else np.abs(c.x))
    above = (c.y - 0.32 * r - slope) / 1.17
    lid = circle(c.x, c.y, r + 0.014)
    c.fill(np.maximum(lid, -above), mix(p.main, p.line, 0.25))
    c.fill(np.maximum(lid - 0.012, np.abs(above) - 0.018), DARK)


def closed_eye(c: Canvas, r: float, p: Paint) -> None:
    """A lid over the whole eye, and the lashes as a bow that hangs down."""
    c.outlined(circle(c.x, c.y, r), mix(p.main, p.light, 0.75), mix(p.main, p.line, 0.6), 0.012)
    c.fill(np.maximum(ring(c.x, c.y - 0.25 * r, 0.72 * r, 0.028), c.y - 0.1 * r), DARK)
    x = np.abs(c.x)
    lashes = (((0, -0.47), (0, -0.80)), ((0.42, -0.33), (0.66, -0.60)))
    c.fill(
        together(*(capsule(x, c.y, (a * r, b * r), (d * r, e * r), 0.1 * r, 0.07 * r) for (a, b), (d, e) in lashes)),
        DARK,
    )


def mouth(c: Canvas, mood: str) -> None:
    if mood == "happy":
        grin = np.maximum(ellipse(c.x, c.y - 0.012, 0.058, 0.056), c.y - 0.012)
        c.outlined(grin, (0.55, 0.08, 0.14), DARK, 0.011)
        c.fill(np.maximum(grin, ellipse(c.x, c.y + 0.045, 0.034, 0.028)), (1.0, 0.48, 0.50))
    elif mood == "sleepy":
        c.outlined(ellipse(c.x, c.y + 0.005, 0.020, 0.024), (0.55, 0.08, 0.14), DARK, 0.011)
    else:
        frown = rope(c.x, c.y, [(-0.055, -0.03), (-0.03, 0.0), (0.03, 0.0), (0.055, -0.03)], 0.012, 0.012)
        c.fill(frown, DARK)
        c.fill(capsule(np.abs(c.x), c.y, (0.03, -0.006), (0.03, -0.034), 0.014, 0.003), (1.0, 1.0, 1.0))  # fangs
