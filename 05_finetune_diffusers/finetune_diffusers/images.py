"""Pictures: between PIL and tensors, their sizes and seeds, and contact sheets.

images = pipe(prompt, generator=generators(seed=0, n=1), output_type="pt").images * 2 - 1    # (1, 3, H, W)
contact_sheet(images[None], rows=[""], columns=["seed 0"]).save("red.png")
"""

import math
from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from common import viz
from common.errors import UserError
from common.io.pixels import to_bytes, to_float
from common.io.ranges import PIXELS


def generators(seed: int, n: int) -> list[torch.Generator]:
    """One generator per picture, with seeds seed, seed + 1, ...,
    so that a picture does not depend on the others in its batch.

    They are on the CPU, so that a seed means the same picture on every device.
    """
    return [torch.Generator("cpu").manual_seed(seed + i) for i in range(n)]


def images_at_once(pixels: int) -> int:
    """How many images of so many pixels a network takes at a time: one of 512 x 512, 16 of 128 x 128 or smaller.
    Their activations, not the weights, are what fills a GPU.
    """
    return max(1, min(16, 512 * 512 // pixels))


def read_size(text: str) -> tuple[int, int]:
    """'64' or '96x64' (width x height) -> (width, height); multiples of 8, as diffusers wants them."""
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"cannot read --size {text}; write 64, or 96x64 for width x height")
    width, height = int(parts[0]), int(parts[-1])
    if max(width, height) not in PIXELS:
        raise UserError(f"--size must be {PIXELS.refusal(max(width, height))}, not {text}")
    if min(width, height) < 8 or width % 8 or height % 8:
        raise UserError(f"--size must be multiples of 8 pixels, not {text}")
    return width, height


def to_tensor(picture: Image.Image) -> Tensor:
    """PIL -> (C, H, W) float32 in [-1, 1]"""
    return to_float(tv.pil_to_tensor(picture))


def to_pil(image: Tensor) -> Image.Image:
    """(C, H, W) in [-1, 1] -> PIL"""
    return tv.to_pil_image(to_bytes(image.cpu()))


def contact_sheet(
    images: Tensor, rows: Sequence[str], columns: Sequence[str], height: int = 128, gap: int = 4
) -> Image.Image:
    """A contact sheet with its labels, on white.

    images         (R, C, 3, H, W) in [-1, 1]
    rows, columns  R and C labels in any script; a column's breaks into lines. Without words there is no margin
    height         small pictures are enlarged by a whole factor to about as many pixels
    """
    factor = max(1, round(height / images.shape[-2]))
    h, w = images.shape[-2] * factor, images.shape[-1] * factor
    above = [viz.wrapped(label, w) for label in columns]
    left = gap + max(math.ceil(viz.label_size(label, viz.POINTS)[0]) for label in rows) + (2 * gap if any(rows) else 0)
    top = gap + max(math.ceil(viz.label_size(label, viz.POINTS)[1]) + 3 if label else 0 for label in above)
    picture = Image.new("RGB", (left + len(columns) * (w + gap), top + len(rows) * (h + gap)), "white")
    draw = ImageDraw.Draw(picture)
    for j, label in enumerate(above):
        viz.draw_label(draw, (left + j * (w + gap) + w / 2, top - 3), label, "md", viz.POINTS)
    for i, label in enumerate(rows):
        viz.draw_label(draw, (left - 2 * gap, top + i * (h + gap) + h / 2), label, "rm", viz.POINTS)
        for j in range(len(columns)):
            cell = to_pil(images[i, j]).resize((w, h), Image.Resampling.NEAREST)
            picture.paste(cell, (left + j * (w + gap), top + i * (h + gap)))
    return picture


def column_sheet(columns: Mapping[str, Tensor], n: int) -> Image.Image:
    """The first n pictures of every column, (N, 3, H, W) each, in a row for each picture, named by the column."""
    table = torch.stack([images[:n] for images in columns.values()], 1)  # (n, columns, 3, H, W)
    return contact_sheet(table, [""] * len(table), list(columns), height=96)
