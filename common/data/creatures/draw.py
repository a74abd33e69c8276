"""One creature from its attributes: the same at every size,
because it is a drawing in coordinates and not in pixels.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from common.data.creatures.attributes import check_attributes
from common.data.creatures.canvas import Canvas, mix
from common.data.creatures.face import face
from common.data.creatures.motifs import BEHIND, IN_FRONT, scatter
from common.data.creatures.parts import EARS_BEHIND, EARS_IN_FRONT, HORNS, TAILS, WINGS, Build, Paint, attach
from common.data.creatures.shapes import box, capsule, circle, ellipse, together

POSE = 20  # numbers in [0, 1) that vary what is no attribute: tilt, proportions, gaze, tint; 0.5 is the middle
FINEST = (
    64  # smaller pictures are drawn with at least so many points a side and averaged, so that thin lines stay thin
)
SCALE = 1.07  # of creatures in the picture
GROUND = 0.125  # height of the ground in the picture

PAINTS = {
    "red": Paint((0.93, 0.21, 0.20), (0.54, 0.02, 0.10), (1.0, 0.82, 0.72), (0.40, 0.04, 0.08)),
    "orange": Paint((1.0, 0.56, 0.12), (0.70, 0.24, 0.02), (1.0, 0.92, 0.74), (0.50, 0.20, 0.02)),
    "yellow": Paint((1.0, 0.86, 0.22), (0.76, 0.46, 0.05), (1.0, 0.99, 0.88), (0.50, 0.36, 0.04)),
    "green": Paint((0.36, 0.76, 0.32), (0.08, 0.40, 0.14), (0.90, 0.98, 0.74), (0.06, 0.30, 0.12)),
    "blue": Paint((0.26, 0.50, 0.95), (0.06, 0.17, 0.56), (0.84, 0.93, 1.0), (0.06, 0.14, 0.42)),
    "purple": Paint((0.60, 0.34, 0.82), (0.28, 0.06, 0.46), (0.93, 0.85, 1.0), (0.22, 0.08, 0.38)),
    "pink": Paint((1.0, 0.58, 0.76), (0.80, 0.18, 0.47), (1.0, 0.93, 0.93), (0.55, 0.12, 0.32)),
    "brown": Paint((0.60, 0.40, 0.25), (0.31, 0.16, 0.07), (0.94, 0.83, 0.66), (0.22, 0.12, 0.06)),
    "white": Paint((0.98, 0.97, 0.96), (0.46, 0.49, 0.58), (1.0, 0.80, 0.52), (0.31, 0.32, 0.39)),
    "black": Paint((0.25, 0.25, 0.29), (0.62, 0.62, 0.69), (0.86, 0.84, 0.82), (0.07, 0.07, 0.09)),
}
BUILDS = {
    "round": Build(top=0.485, ear=(0.155, 0.40), side=0.23, shoulder=0.20, eyes=0.305, foot=0.11),
    "tall": Build(top=0.575, ear=(0.115, 0.49), side=0.17, shoulder=0.16, eyes=0.385, foot=0.085),
    "wide": Build(top=0.395, ear=(0.19, 0.31), side=0.265, shoulder=0.205, eyes=0.245, foot=0.16),
    "square": Build(top=0.445, ear=(0.15, 0.40), side=0.205, shoulder=0.19, eyes=0.285, foot=0.125),
    "pear": Build(top=0.555, ear=(0.11, 0.48), side=0.205, shoulder=0.15, eyes=0.375, foot=0.11),
    "fluffy": Build(top=0.49, ear=(0.15, 0.41), side=0.225, shoulder=0.20, eyes=0.30, foot=0.11),
}
BACKGROUNDS = {
    "cream": (1.0, 0.95, 0.80),
    "sky": (0.72, 0.88, 1.0),
    "mint": (0.76, 0.95, 0.80),
    "rose": (1.0, 0.80, 0.84),
    "lilac": (0.86, 0.80, 0.99),
}


def draw(attributes: Mapping[str, str], size: int, pose: Sequence[float] | None = None) -> np.ndarray:
    """A creature as an image, (3, size, size) uint8.

    attributes  the name of a value for each of ATTRIBUTES
    pose        POSE numbers in [0, 1) for what is no attribute; None is the neutral pose
    """
    check_attributes(attributes)
    shift = [2 * p - 1 for p in pose] if pose is not None else [0.0] * POSE  # in [-1, 1)
    factor = max(1, -(-FINEST // size))
    picture = Canvas.blank(size * factor)
    backdrop(picture, attributes["background"])
    scatter(picture, attributes["element"], BEHIND, shift[0:4])
    figure(picture, attributes, shift[4:14])
    scatter(picture, attributes["element"], IN_FRONT, shift[14:20])
    fine = picture.rgb.reshape(3, size, factor, size, factor).mean((2, 4)) if factor > 1 else picture.rgb
    return np.rint(fine * 255).astype(np.uint8)


def backdrop(c: Canvas, background: str) -> None:
    """A pale wall, lighter in the middle, and a floor a little darker."""
    tint = BACKGROUNDS[background]
    c.rgb[:] = np.array(tint, np.float32)[:, None, None]
    c.fill(circle(c.x - 0.5, c.y - 0.5, 0.36), (1.0, 1.0, 1.0), opacity=0.5, blur=0.35)
    c.fill(c.y - 0.16 - 0.04 * np.sin(3 * c.x), mix(tint, (0.45, 0.38, 0.50), 0.22), blur=0.01)


def figure(picture: Canvas, a: Mapping[str, str], shift: list[float]) -> None:
    """The creature itself, from back to front."""
    c = posed(picture, tilt=0.09 * shift[0], squash=0.05 * shift[1], aside=0.02 * shift[2])
    build, paint = BUILDS[a["body"]], tinted(PAINTS[a["colour"]], shift[7:10])
    c.fill(ellipse(c.x, c.y, build.foot + 0.17, 0.035), (0.25, 0.18, 0.30), opacity=0.35, blur=0.04)
    about_ears = c.crop((-0.42, 0.42), (build.ear[1] - 0.24, build.ear[1] + 0.31))
    attach(WINGS, a["wings"], c, build, paint)
    attach(TAILS, a["tail"], c.crop((build.side - 0.13, build.side + 0.28), (-0.04, 0.42)), build, paint)
    attach(EARS_BEHIND, a["ears"], about_ears, build, paint)
    attach(HORNS, a["horns"], c.crop((-0.16, 0.16), (build.top - 0.1, build.top + 0.23)), build, paint)
    outline = body(c, a["body"])
    c.outlined(outline, shaded(c, paint, build), paint.line)
    pattern(c, outline, a["pattern"], build, paint)
    c.fill(
        ellipse(c.x + 0.5 * build.side, c.y - build.top + 0.075, 0.055, 0.03), (1.0, 1.0, 1.0), opacity=0.55, blur=0.04
    )
    middle = c.crop((-0.4, 0.4), (0.05, 0.23))
    arms = capsule(np.abs(middle.x), middle.y, (build.side - 0.02, 0.165), (build.side + 0.025, 0.125), 0.03, 0.034)
    middle.outlined(arms, paint.main, paint.line, 0.017)
    floor = c.crop((-0.3, 0.3), (-0.06, 0.1))
    feet = ellipse(np.abs(floor.x) - build.foot - 0.012 * shift[3], floor.y - 0.02, 0.066, 0.042)
    floor.outlined(feet, mix(paint.main, paint.mark, 0.30), paint.line, 0.018)
    attach(EARS_IN_FRONT, a["ears"], about_ears, build, paint)
    face(c, build, paint, a["eyes"], a["mood"], (shift[4], shift[5]), 1 + 0.07 * shift[6])


def posed(picture: Canvas, tilt: float, squash: float, aside: float) -> Canvas:
    """The same pixels in creature coordinates: x from the middle line, y from the ground.

    tilt    the creature leans to the right by this angle, in radians
    squash  it is wider by this share, and as much lower
    """
    x, y = picture.x - 0.5 - aside, picture.y - GROUND
    x, y = (x - tilt * y) / SCALE / (1 + squash), (y + tilt * x) / SCALE * (1 + squash)
    return Canvas(x, y, picture.rgb, picture.pixel / SCALE)


def tinted(paint: Paint, shift: list[float]) -> Paint:
    """A little more or less red, green and blue: no two creatures have quite the same skin."""
    red, green, blue = (min(1.0, max(0.0, value + 0.025 * s)) for value, s in zip(paint.main, shift, strict=True))
    return Paint((red, green, blue), paint.mark, paint.light, paint.line)


def body(c: Canvas, kind: str) -> np.ndarray:
    """Signed distance of the body."""
    x, y = c.x, c.y
    if kind == "round":
        return circle(x, y - 0.25, 0.238)
    if kind == "tall":
        return ellipse(x, y - 0.295, 0.185, 0.282)
    if kind == "wide":
        return ellipse(x, y - 0.205, 0.295, 0.19)
    if kind == "square":
        return box(x, y - 0.23, 0.215, 0.215, 0.075)
    if kind == "pear":
        return capsule(x, y, (0, 0.215), (0, 0.42), 0.21, 0.132)
    angle = np.arctan2(x, y - 0.25)  # fluffy: a cloud of eleven round tufts
    return circle(x, y - 0.25, 0.205) - 0.05 * np.abs(np.cos(5.5 * angle))


def shaded(c: Canvas, paint: Paint, build: Build) -> np.ndarray:
    """The skin as light from the upper left sees it. (3, H, W)"""
    light = 0.5 + 0.9 * (c.y - 0.5 * build.top) - 0.6 * c.x
    np.clip(light, 0, 1, out=light)
    dark, bright = (
        np.array(mix(paint.main, end, share), np.float32)[:, None, None]
        for end, share in ((paint.line, 0.18), ((1.0, 1.0, 1.0), 0.14))
    )
    return dark + light * (bright - dark)


def pattern(c: Canvas, outline: np.ndarray, kind: str, build: Build, paint: Paint) -> None:
    """Stripes, spots or a light belly, inside the outline."""
    inside = outline + 0.004
    if kind == "belly":
        c.fill(np.maximum(inside, ellipse(c.x, c.y - 0.11, 0.66 * build.side + 0.02, 0.13)), paint.light)
    elif kind == "stripes":
        wave = c.y + 0.25 * np.abs(c.x)
        period = 0.135
        bands = np.abs((wave + 0.03) % period - period / 2) - 0.035
        c.fill(np.maximum(inside, bands), paint.mark)
    elif kind == "spots":
        w, t = build.side, build.top
        places = (
            (-0.72, 0.33, 0.05),
            (-0.2, 0.16, 0.046),
            (0.42, 0.2, 0.05),
            (0.8, 0.44, 0.046),
            (-0.42, 0.86, 0.046),
            (0.34, 0.9, 0.052),
        )
        dots = together(*(circle(c.x - u * w, c.y - v * t, r) for u, v, r in places))
        c.fill(np.maximum(inside, dots), paint.light)
