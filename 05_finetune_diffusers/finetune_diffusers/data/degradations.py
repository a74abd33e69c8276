"""Pictures with something to repair: a mosaic, noise, or scratches; the mask that says where; and how one repaired them before.

Masks are (N, 1, H, W), 1 (white) where the picture is to be repaired. Images are (N, 3, H, W) in [-1, 1].
"""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from common.data.sources.mask import Mask
from common.errors import UserError
from common.random import EVALUATION, generator

Damage = Literal["mosaic", "noise", "scratch"]


def where(kind: Damage, n: int, height: int, width: int, share: float, scratches: int, seed: int) -> Tensor:
    """The mask of a damage: a box in the middle, a share of each side long; lines; or (noise) everywhere. (n, 1, height, width)"""
    if kind == "noise":
        return torch.ones(n, 1, height, width)
    if kind == "scratch":
        return torch.stack([lines(height, width, scratches, seed, i) for i in range(n)])
    mask = torch.zeros(n, 1, height, width)
    top, left = round(height * (1 - share) / 2), round(width * (1 - share) / 2)
    mask[..., top : height - top, left : width - left] = 1
    return mask


def lines(height: int, width: int, scratches: int, seed: int, i: int) -> Tensor:
    """Straight scratches from side to side across picture i. (1, height, width)"""
    drawing = Image.new("L", (width, height))
    for a, b in torch.rand(scratches, 2, generator=generator(EVALUATION, seed, i)).tolist():
        thick = max(1, round(min(height, width) / 48))
        ends = [(a * width, 0), (b * width, height)] if int(100 * a) % 2 else [(0, a * height), (width, b * height)]
        ImageDraw.Draw(drawing).line(ends, fill=255, width=thick)
    return tv.pil_to_tensor(drawing).float() / 255


def spoil(images: Tensor, mask: Tensor, kind: Damage, block: int, noise: float, seed: int) -> Tensor:
    """The damaged pictures; where the mask is 0 they stay exactly what they were.

    mosaic   every block of block x block pixels becomes its mean
    noise    Gaussian, of standard deviation `noise`
    scratch  white lines
    """
    if kind == "mosaic":
        worse = mosaic(images, block)
    elif kind == "noise":
        worse = (images + noise * torch.randn(images.shape, generator=generator(EVALUATION, seed))).clamp(-1, 1)
    else:
        worse = torch.ones_like(images)
    return torch.where(mask > 0, worse, images)


def mosaic(images: Tensor, block: int) -> Tensor:
    """Blocks of their mean; those at the right and bottom edge may be smaller."""
    means = F.avg_pool2d(images, block, ceil_mode=True)
    return F.interpolate(means, scale_factor=block)[..., : images.shape[-2], : images.shape[-1]]


def old_way(damaged: Tensor, mask: Tensor, kind: Damage, block: int) -> Tensor:
    """Repair without a model, which a model should beat: bicubic interpolation between the mosaic's means, a blur against
    noise, and for scratches the mean of what lies around, from the edges of the scratch inwards."""
    size = list(damaged.shape[-2:])
    if kind == "mosaic":
        means = F.avg_pool2d(damaged, block, ceil_mode=True)
        whole = [side * block for side in means.shape[-2:]]
        better = F.interpolate(means, whole, mode="bicubic", align_corners=False)[..., : size[0], : size[1]]
    elif kind == "noise":
        better = tv.gaussian_blur(damaged, [5, 5], [1.0, 1.0])
    else:
        better, known = damaged * (1 - mask), 1 - mask
        while not bool((known > 0).all()):
            around = F.avg_pool2d(F.pad(known, [1] * 4), 3, 1)
            filled = F.avg_pool2d(F.pad(better * known, [1] * 4), 3, 1) / around.clamp(min=1e-6)
            better = torch.where(known > 0, better, filled)
            known = ((known > 0) | (around > 0)).float()
    return torch.where(mask > 0, better, damaged).clamp(-1, 1)


def whole_blocks(mask: Tensor, factor: int) -> Tensor:
    """The mask grown to whole blocks of factor x factor pixels.

    Latents are that much smaller a side, and diffusers shrinks a mask by looking at one pixel of each block: a thin scratch that
    misses it would not be repainted. What is grown too far is put back afterwards, from the known pixels.
    """
    blocks = F.max_pool2d(mask, factor, ceil_mode=True)
    return F.interpolate(blocks, scale_factor=factor)[..., : mask.shape[-2], : mask.shape[-1]]


def put_back(restored: Tensor, damaged: Tensor, mask: Tensor) -> Tensor:
    """Known pixels exactly as they were: whatever a model did to them, it knew less."""
    return torch.where(mask > 0, restored, damaged)


def fitting_mask(mask: Mask, path: Path, image_path: Path, image_size: tuple[int, int]) -> Mask:
    """The mask itself, if it has the size of the image."""
    if mask.image.size != image_size:
        raise UserError(
            f"the mask {path} is {mask.image.width}x{mask.image.height} pixels and the picture {image_path} {image_size[0]}x{image_size[1]}; "
            "make a mask of the picture's size, white where it is to be repaired"
        )
    return mask
