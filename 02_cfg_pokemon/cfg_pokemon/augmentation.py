"""Changes to training images that keep their captions true: other pictures out of the same ones.

Every one of them can leave its mark on what the network draws, since it learns the changed pictures, not the pictures: ablations.py
brightness measures which of them darken.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError

JITTER = 0.3             # share by which brightness goes up or down at most
TURN = math.radians(20)  # largest angle of a rotation


def mirror(x0: Tensor, u: Tensor) -> Tensor:
    """Left becomes right in half of the images. x0: (B, C, H, W); u: (B,) uniform in [0, 1), each image's luck."""
    return torch.where(u.view(-1, 1, 1, 1) < 0.5, x0.flip(-1), x0)


def jitter(x0: Tensor, u: Tensor) -> Tensor:
    """Light times 1 - 0.3 to 1 + 0.3, cut off at white, in [-1, 1]."""
    factor = 1 + JITTER * (2 * u.view(-1, 1, 1, 1) - 1)
    return ((x0 + 1) * factor - 1).clamp(-1, 1)


def turn(x0: Tensor, u: Tensor) -> Tensor:
    """Up to 20 degrees to either side; where the turned image shows nothing is black, as torchvision's rotations leave it by default."""
    angle = TURN * (2 * u - 1)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)  # (B, 2, 3)
    grid = F.affine_grid(theta.to(x0), list(x0.shape), align_corners=False)
    return F.grid_sample(x0 + 1, grid, padding_mode="zeros", align_corners=False) - 1  # black is -1


AUGMENT = {"mirror": mirror, "jitter": jitter, "turn": turn}


def augment(name: str, x0: Tensor, u: Tensor) -> Tensor:
    """name: none, mirror, jitter or turn."""
    if name == "none":
        return x0
    if name not in AUGMENT:
        raise UserError(f"unknown augmentation '{name}'; choose one of none, {', '.join(AUGMENT)}")
    return AUGMENT[name](x0, u)
