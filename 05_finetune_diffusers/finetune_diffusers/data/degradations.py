"""Degraded pictures: a mosaic, noise, or scratches; the mask that says where; and a repair without a model.

Masks are (N, 1, H, W), 1 (white) where the picture is to be repaired. Images are (N, 3, H, W) in [-1, 1].
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from skimage.restoration import inpaint_biharmonic
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from common.data.sources.mask import Mask
from common.errors import UserError
from common.random import EVALUATION, generator


@dataclass(frozen=True)
class Degradation:
    """What is done to pictures, and where."""

    kind: Literal["mosaic", "noise", "scratch"] = "mosaic"
    block: int = 8  # side in pixels of the mosaic's blocks
    fraction: float = 0.6  # fraction of each side that the mosaic covers
    noise: float = 0.4  # standard deviation
    scratches: int = 6  # scratches per picture
    seed: int = 0

    def mask(self, n: int, height: int, width: int) -> Tensor:
        """A box in the middle (mosaic), lines (scratch), or everything (noise). (n, 1, height, width)"""
        if self.kind == "noise":
            return torch.ones(n, 1, height, width)
        if self.kind == "scratch":
            return torch.stack([scratch_mask(height, width, self.scratches, self.seed, i) for i in range(n)])
        mask = torch.zeros(n, 1, height, width)
        top, left = round(height * (1 - self.fraction) / 2), round(width * (1 - self.fraction) / 2)
        mask[..., top : height - top, left : width - left] = 1
        return mask

    def corrupt(self, images: Tensor, mask: Tensor) -> Tensor:
        """The degraded pictures; where the mask is 0 they stay exactly what they were.

        mosaic   every block of block x block pixels becomes its mean
        noise    Gaussian, of standard deviation `noise`
        scratch  white lines
        """
        if self.kind == "mosaic":
            worse = mosaic(images, self.block)
        elif self.kind == "noise":
            worse = (
                images + self.noise * torch.randn(images.shape, generator=generator(EVALUATION, self.seed))
            ).clamp(-1, 1)
        else:
            worse = torch.ones_like(images)
        return torch.where(mask > 0, worse, images)

    def classical_repair(self, damaged: Tensor, mask: Tensor) -> Tensor:
        """A repair without a model, which a model should beat.

        mosaic   bicubic interpolation between the blocks' means
        noise    a Gaussian blur
        scratch  the biharmonic equation, solved from the pixels around each scratch (Damelin & Hoang 2018). On 32
                 held-out creatures of 64 x 64 with six scratches it reaches 29.8 dB, and the mean of the neighbours,
                 filled in from the edges, 28.4 dB.
        """
        size = list(damaged.shape[-2:])
        if self.kind == "mosaic":
            means = F.avg_pool2d(damaged, self.block, ceil_mode=True)
            whole = [side * self.block for side in means.shape[-2:]]
            better = F.interpolate(means, whole, mode="bicubic", align_corners=False)[..., : size[0], : size[1]]
        elif self.kind == "noise":
            better = tv.gaussian_blur(damaged, [5, 5], [1.0, 1.0])
        else:
            better = torch.stack([fill_smoothly(image, holes[0]) for image, holes in zip(damaged, mask, strict=True)])
        return torch.where(mask > 0, better, damaged).clamp(-1, 1)


def scratch_mask(height: int, width: int, scratches: int, seed: int, i: int) -> Tensor:
    """Straight scratches from side to side across picture i. (1, height, width)"""
    drawing = Image.new("L", (width, height))
    for a, b in torch.rand(scratches, 2, generator=generator(EVALUATION, seed, i)).tolist():
        thick = max(1, round(min(height, width) / 48))
        ends = [(a * width, 0), (b * width, height)] if int(100 * a) % 2 else [(0, a * height), (width, b * height)]
        ImageDraw.Draw(drawing).line(ends, fill=255, width=thick)
    return tv.pil_to_tensor(drawing).float() / 255


def mosaic(images: Tensor, block: int) -> Tensor:
    """Blocks of their mean; those at the right and bottom edge may be smaller."""
    means = F.avg_pool2d(images, block, ceil_mode=True)
    return F.interpolate(means, scale_factor=block)[..., : images.shape[-2], : images.shape[-1]]


def fill_smoothly(image: Tensor, holes: Tensor) -> Tensor:
    """(C, H, W) with the biharmonic interpolation of its surroundings where `holes` (H, W) is above 0."""
    pixels = image.permute(1, 2, 0).cpu().double().numpy()
    return (
        torch.from_numpy(np.ascontiguousarray(inpaint_biharmonic(pixels, holes.numpy() > 0, channel_axis=-1)))
        .permute(2, 0, 1)
        .float()
    )


def grow_to_blocks(mask: Tensor, factor: int) -> Tensor:
    """The mask grown to whole blocks of factor x factor pixels.

    Latents are that much smaller a side, and diffusers shrinks a mask by looking at one pixel of each block: a thin
    scratch that misses it would not be repainted. Pixels that the mask gains are put back afterwards by `keep_known`.
    """
    blocks = F.max_pool2d(mask, factor, ceil_mode=True)
    return F.interpolate(blocks, scale_factor=factor)[..., : mask.shape[-2], : mask.shape[-1]]


def keep_known(restored: Tensor, damaged: Tensor, mask: Tensor) -> Tensor:
    """The restored pictures with every known pixel, where the mask is 0, exactly as it was."""
    return torch.where(mask > 0, restored, damaged)


def check_mask_size(mask: Mask, path: Path, image_path: Path, image_size: tuple[int, int]) -> None:
    """Refuse a mask of another size than its picture."""
    if mask.image.size != image_size:
        raise UserError(
            f"the mask {path} is {mask.image.width}x{mask.image.height} pixels and the picture {image_path} {image_size[0]}x{image_size[1]}; "
            "make a mask of the picture's size, white where it is to be repaired"
        )
