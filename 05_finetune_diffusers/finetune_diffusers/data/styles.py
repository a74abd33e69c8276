"""Four styles that a model has never seen, into which the course puts any picture.

A style is two inks and a rule that says how much of the second is in each pixel. So every pixel of a picture in that
style lies on the line between two colours, and the distance from that line tells how far a picture is from the style.
The strokes scale with the picture, down to the width that its pixels can show.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data import Images
from common.errors import UserError
from common.io.pixels import to_bytes, to_float
from finetune_diffusers.data.edges import gradient

BATCH = 256  # images at a time, so that only a part of a large set is ever held as floats


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


# -------------------------------------------------------------------------------------------- what the pens draw with
# All of these return shares in [0, 1], (B, 1, H, W).


def tones(images: Tensor) -> Tensor:
    """How light each pixel is: 0 is black, 1 is white."""
    weights = torch.tensor([0.30, 0.59, 0.11], device=images.device).view(1, 3, 1, 1)
    return ((images * weights).sum(1, keepdim=True) + 1) / 2


def blurred(planes: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of (B, 1, H, W); sigma in pixels."""
    reach = min(math.ceil(3 * sigma), planes.shape[-1] - 1)
    offsets = torch.arange(-reach, reach + 1, device=planes.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(planes, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def pen(images: Tensor) -> Tensor:
    """Outlines: strong where a thin line is darker than its surroundings, weaker where two areas meet.

    The first is a difference of Gaussians, which finds a drawn outline as one line and not as its two sides.
    """
    width = max(images.shape[-1] / 128, 0.5)
    drawn = 9 * (blurred(tones(images), 2.6 * width) - blurred(tones(images), 0.7 * width)) - 0.35
    between = 1.6 * gradient(images).square().sum(1, keepdim=True).sqrt() - 0.35
    return torch.maximum(drawn.clamp(0, 1), between.clamp(0, 0.55))


def places(images: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of each pixel's middle, (1, 1, H, W) each."""
    H, W = images.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(H, device=images.device) + 0.5, torch.arange(W, device=images.device) + 0.5, indexing="ij"
    )
    return x[None, None], y[None, None]


def pitch(images: Tensor, strokes: int) -> float:
    """Distance of two strokes in pixels, so that so many fit side by side; at least four pixels."""
    return max(4.0, images.shape[-1] / strokes)


# ------------------------------------------------------------------------------------------------------- the styles


def halftone(images: Tensor) -> Tensor:
    """Dots that grow where the picture is darker, on a screen turned by 45 degrees; shadows are solid."""
    p = pitch(images, 24)
    x, y = places(images)
    u, v = (turned * 2 * math.pi / (p * math.sqrt(2)) for turned in (x + y, x - y))
    screen = (2 + torch.cos(u) + torch.cos(v)) / 4  # in [0, 1]
    dots = (p / 2 * (1.15 * blurred(tones(images), p / 6) - 0.05 - screen) + 0.5).clamp(0, 1)
    paper, shadow = 8 * (tones(images) - 0.82), 8 * (tones(images) - 0.30) + 0.5
    return torch.maximum(dots, paper.clamp(0, 1)) * shadow.clamp(0, 1)


def hatched(images: Tensor) -> Tensor:
    """Parallel cuts that grow where the picture is lighter, with dark outlines."""
    p = pitch(images, 20)
    x, y = places(images)
    wave = 1 - (2 * (((0.35 * x + y) / p) % 1) - 1).abs()  # a triangle between 0 and 1
    cuts = (p / 2.2 * (1.3 * blurred(tones(images), p / 6) - 0.2 - wave) + 0.5).clamp(0, 1)
    return cuts * (1 - pen(images))


def blueprint(images: Tensor) -> Tensor:
    """White outlines over a faint grid."""
    p, width = images.shape[-1] / 8, images.shape[-1] / 128
    rulings = [(1 - ((c / p + 0.5) % 1 - 0.5).abs() * p / width).clamp(0, 1) for c in places(images)]
    return torch.maximum(pen(images), 0.2 * torch.maximum(*rulings))


def glow(images: Tensor) -> Tensor:
    """Bright outlines that light up what is near them."""
    lines, width = pen(images), images.shape[-1] / 128
    halo = 0.55 * blurred(lines, 1.5 * width) + 0.8 * blurred(lines, 5 * width)
    return torch.maximum(lines, halo.clamp(0, 0.5))


STYLES = {
    "riso": DrawnStyle("in the style of a riso print", "孔版画", (-0.92, -0.36, -0.50), (1.0, 0.62, 0.70), halftone),
    "blueprint": DrawnStyle("in the style of a blueprint", "蓝图", (-0.88, -0.56, 0.10), (0.84, 0.94, 1.0), blueprint),
    "woodcut": DrawnStyle("in the style of a woodcut", "木刻", (-0.80, -0.86, -0.86), (0.94, 0.84, 0.60), hatched),
    "neon": DrawnStyle("in the style of a neon sign", "霓虹灯", (-0.96, -0.96, -0.88), (1.0, 0.10, 0.55), glow),
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
