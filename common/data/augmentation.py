"""Changes to batches of training images, by random numbers that the caller gives."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def affine(
    x: Tensor,
    angle: Tensor,
    scale: Tensor | float = 1.0,
    shift: Tensor | None = None,
    mirror: Tensor | float = 1.0,
    outside: Literal["black", "reflection"] = "black",
) -> Tensor:
    """Turn, scale, shift and mirror each image by its own amount, with bilinear interpolation.

    x        (B, C, H, W) in [-1, 1]
    angle    (B,) radians
    scale    (B,) or one number: the share of the image that the result shows; below 1 enlarges
    shift    (B, 2) by how much the shown part is moved, right and down, in halves of the image; none by default
    mirror   (B,) or one number: -1 mirrors left and right, 1 does not
    outside  what the result shows beyond the borders of the image
    """
    cos, sin = scale * angle.cos(), scale * angle.sin()
    dx, dy = (torch.zeros_like(angle),) * 2 if shift is None else shift.unbind(1)
    theta = torch.stack([mirror * cos, -sin, dx, mirror * sin, cos, dy], 1).view(-1, 2, 3)  # (B, 2, 3)
    places = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)  # (B, H, W, 2)
    if outside == "reflection":
        return F.grid_sample(x, places, padding_mode="reflection", align_corners=False)
    return F.grid_sample(x + 1, places, align_corners=False) - 1  # outside is 0 there, which is black here
