"""What a model has never seen, drawn by the course:
four styles, which any picture can be put into, and one particular creature.

A style is two inks and a rule that says how much of the second is in each pixel. So every pixel of a picture in that
style lies on the line between two colours, and the distance from that line tells how far a picture is from the style.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data import Images
from common.data.creatures.canvas import Canvas
from common.data.creatures.draw import BUILDS, POSE, backdrop, figure, posed, scatter
from common.data.creatures.motifs import BEHIND, IN_FRONT
from common.data.creatures.shapes import capsule, circle
from common.errors import UserError
from common.io.pixels import to_bytes, to_float
from finetune_diffusers.data.edges import gradient

BATCH = 256  # images at a time, so that only a part of a large set is ever held as floats

# -------------------------------------------------------------------------------------------------------------- styles


class DrawnStyle(NamedTuple):
    words: str  # "in the style of a blueprint"
    words_zh: str
    dark: tuple[float, float, float]  # red, green, blue of the two inks, in [-1, 1]
    light: tuple[float, float, float]
    share: Callable[[Tensor], Tensor]  # (B, 3, H, W) -> (B, 1, H, W), how much of the light ink, 0 to 1

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> the same pictures in this style."""
        dark, light = inks(self, images)
        return dark + self.share(images) * (light - dark)


def inks(style: DrawnStyle, like: Tensor) -> tuple[Tensor, Tensor]:
    """The two colours, (1, 3, 1, 1) each."""
    return tuple(torch.tensor(ink, device=like.device).view(1, 3, 1, 1) for ink in (style.dark, style.light))


def lines(images: Tensor) -> Tensor:
    """Light where colours change."""
    return (gradient(images).square().sum(1, keepdim=True).sqrt() / 0.4).clamp(0, 1)


def luminance(images: Tensor) -> Tensor:
    """How light each pixel is, in [-1, 1]."""
    return (images * torch.tensor([0.30, 0.59, 0.11], device=images.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def tones(images: Tensor) -> Tensor:
    """As light as the picture."""
    return (luminance(images) + 1) / 2


def two_tones(images: Tensor) -> Tensor:
    """Light where the picture is lighter than middle grey, with an edge as soft as a pixel wants it."""
    return (16 * luminance(images) + 1.6).clamp(0, 1)


STYLES = {
    "riso": DrawnStyle("in the style of a riso print", "孔版画", (-0.92, -0.36, -0.50), (1.0, 0.62, 0.70), tones),
    "blueprint": DrawnStyle("in the style of a blueprint", "蓝图", (-0.88, -0.56, 0.10), (0.84, 0.94, 1.0), lines),
    "woodcut": DrawnStyle("in the style of a woodcut", "木刻", (-0.80, -0.86, -0.86), (0.94, 0.84, 0.60), two_tones),
    "neon": DrawnStyle("in the style of a neon sign", "霓虹灯", (-0.96, -0.96, -0.90), (1.0, 0.10, -0.80), lines),
}


def read_style(name: str) -> DrawnStyle | None:
    """A style by name; "none" leaves pictures and captions as they are."""
    if name != "none" and name not in STYLES:
        raise UserError(f"unknown style '{name}'; choose one of none, {', '.join(STYLES)}")
    return STYLES.get(name)


def styled_pixels(style: DrawnStyle, pixels: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 -> uint8"""
    return torch.cat([to_bytes(style(to_float(part))) for part in pixels.split(BATCH)])


def styled_caption(style: DrawnStyle, caption: str) -> str:
    """The caption with the words of the style at its end, in its own language."""
    if any("\u4e00" <= letter <= "\u9fff" for letter in caption):
        return f"{caption}，{style.words_zh}"
    return f"{caption}, {style.words}" if caption else style.words


def in_style(style: DrawnStyle | None, images: Images) -> Images:
    """Pictures and captions in a style; None leaves them as they are."""
    if style is None:
        return images
    captions = tuple(styled_caption(style, caption) for caption in images.captions)
    return replace(images, pixels=styled_pixels(style, images.pixels), captions=captions)


def stray(style: DrawnStyle, images: Tensor) -> Tensor:
    """How far the colours of each picture are from the line between the style's two inks: root mean square over its
    pixels, in the units of images (black to white is 2 in each channel). (B, 3, H, W) in [-1, 1] -> (B,)"""
    dark, light = inks(style, images)
    along = light - dark
    share = ((images - dark) * along).sum(1, keepdim=True) / along.square().sum(1, keepdim=True)
    nearest = dark + share.clamp(0, 1) * along
    return (images - nearest).square().mean((1, 2, 3)).sqrt()


# ------------------------------------------------------------------------------------------------------------- subject

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


def portraits(n: int, size: int, seed: int = 0) -> Tensor:
    """n pictures of the subject in as many poses, before different walls. (n, 3, size, size) uint8"""
    poses = np.random.default_rng([7, seed]).random((n, POSE))
    return torch.from_numpy(np.stack([portrait(WALLS[i % len(WALLS)], size, pose) for i, pose in enumerate(poses)]))


def portrait(wall: str, size: int, pose: Sequence[float]) -> np.ndarray:
    """As common.data.creatures.draw.draw, with a scarf. (3, size, size) uint8"""
    shift, fine = [2 * p - 1 for p in pose], 4
    attributes = SUBJECT | {"background": wall}
    picture = Canvas.blank(size * fine)
    backdrop(picture, wall)
    scatter(picture, SUBJECT["element"], BEHIND, shift[0:4])
    figure(picture, attributes, shift[4:14])
    scarf(
        posed(picture, tilt=0.09 * shift[4], squash=0.05 * shift[5], aside=0.02 * shift[6]),
        BUILDS[SUBJECT["body"]].side,
    )
    scatter(picture, SUBJECT["element"], IN_FRONT, shift[14:20])
    return np.rint(picture.rgb.reshape(3, size, fine, size, fine).mean((2, 4)) * 255).astype(np.uint8)


def scarf(c: Canvas, side: float) -> None:
    """Around the neck, with one end hanging down."""
    sag = c.y - 0.185 - 0.25 * c.x * c.x
    band = np.maximum(np.abs(sag) - 0.042, np.abs(c.x) - side + 0.015)
    end = capsule(c.x, c.y, (0.085, 0.165), (0.115, 0.055), 0.034, 0.044)
    for shape in (end, band, circle(c.x - 0.08, c.y - 0.18, 0.05)):
        c.outlined(shape, FRINGE, SCARF, 0.016)
