"""Reads masks: white where a picture is to be repainted, or painted on a transparent layer,
or erased from the picture.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from common.data.sources.decoding import UnreadableImage, has_alpha, in_bytes, opened
from common.errors import UserError

MIDDLE = 128  # from here on a grey is white: what a scanner or JPEG leaves of black stays black
NEAR = 24  # greys so near to 0 or 255, and colours so near to each other, are the same
ADVICE = "white where it is to be repainted, black elsewhere"


class Mask(NamedTuple):
    """A mask, and how it was interpreted."""

    image: Image.Image  # mode "L": 255 is repaint, 0 is keep
    share: float  # of the picture that is repainted
    how: str  # what was taken for the hole
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.share:.1%} of the picture is to be repainted ({self.how})"


def read_mask(path: Path, soft: bool = False) -> Mask:
    """The region of a picture that is to be repainted.

    It is what is white in a mask without transparency, the strokes on a transparent layer (unless they are black), and
    the transparent part of a picture. soft: keep greys, as at the edge of a blurred mask,
    instead of a threshold in the middle
    """
    if not path.exists():
        raise UserError(f"there is no file {path}")
    try:
        with opened(path) as image:
            image = in_bytes(ImageOps.exif_transpose(image), image.format)
            alpha = np.asarray(image.convert("RGBA").getchannel("A")) if has_alpha(image) else None
            colours = np.asarray(image.convert("RGBA").convert("RGB"))
            greys = np.asarray(Image.fromarray(colours).convert("L"))
    except UnreadableImage as problem:
        raise UserError(f"the mask {path} cannot be read as a picture ({problem})") from problem
    clear = alpha is not None and bool((alpha < MIDDLE).any())
    values, how = of_layer(path, colours, greys, alpha) if alpha is not None and clear else (greys, "what is white")
    between = float(((greys > NEAR) & (greys < 255 - NEAR)).mean()) if not clear else 0.0
    notes = [f"{between:.0%} of the mask {path} is neither black nor white, as in a picture"] if between > 0.25 else []
    hole = values >= MIDDLE
    if not hole.any():
        lightest = f"nowhere lighter than grey {values.max()} of 255" if not clear else "too faint"
        raise UserError(f"the mask {path} leaves nothing to repaint: it is {lightest}; make it {ADVICE}")
    if hole.mean() > 0.9:
        notes.append(f"the mask {path} covers nearly the whole picture; if the other part was meant, invert it")
    return Mask(
        Image.fromarray(values if soft else hole.astype(np.uint8) * 255), float(hole.mean()), how, tuple(notes)
    )


def of_layer(path: Path, colours: np.ndarray, greys: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, str]:
    """(values, what was taken for the hole) of a mask that is clear in part.
    colours (H, W, 3), greys and alpha (H, W)
    """
    seen = alpha >= MIDDLE
    if not seen.any():
        raise UserError(f"the mask {path} is transparent everywhere; make it {ADVICE}")
    spread = int(np.ptp(colours[seen].astype(int), axis=0).max())
    black, white = seen & (greys <= NEAR), seen & (greys >= 255 - NEAR)
    mostly = seen.mean() > 0.5
    if spread <= NEAR and not black.any() and (white.any() or not mostly):
        return alpha, "what is painted on the transparent layer"
    if (
        black | white
    ).sum() > 0.98 * seen.sum() and white.any():  # a mask in black and white, of which a part was left clear
        return (greys.astype(int) * alpha // 255).astype(np.uint8), "what is white; transparent counts as black"
    if mostly:
        return 255 - alpha, "what is transparent"
    if black.sum() > 0.98 * seen.sum():
        raise UserError(
            f"the mask {path} is painted in black on a transparent layer, which can mean either part; make it {ADVICE}"
        )
    raise UserError(
        f"the mask {path} shows several colours on a transparent layer, which can mean either part; make it {ADVICE}"
    )
