"""Random changes of training images that keep their captions true.

The network learns the changed images, so every change can alter what it draws:
ablations.py brightness measures which of them darken it.
"""

import math

import torch
from torch import Tensor

from common.data.augmentation import affine
from common.errors import UserError

JITTER = 0.3  # share by which brightness goes up or down at most
TURN = math.radians(20)  # largest angle of a rotation


def mirror(x0: Tensor, u: Tensor) -> Tensor:
    """Half of the images are mirrored. x0: (B, C, H, W); u: (B,) uniform in [0, 1), one number for each image"""
    return torch.where(u.view(-1, 1, 1, 1) < 0.5, x0.flip(-1), x0)


def jitter(x0: Tensor, u: Tensor) -> Tensor:
    """Brightness times 0.7 to 1.3, clipped at white."""
    factor = 1 + JITTER * (2 * u.view(-1, 1, 1, 1) - 1)
    return ((x0 + 1) * factor - 1).clamp(-1, 1)


def turn(x0: Tensor, u: Tensor) -> Tensor:
    """Up to 20 degrees to either side; what lies outside the image is black,
    as in torchvision's rotations by default.
    """
    return affine(x0, TURN * (2 * u - 1))


AUGMENT = {"mirror": mirror, "jitter": jitter, "turn": turn}


def augment(name: str, x0: Tensor, u: Tensor) -> Tensor:
    """name: none, mirror, jitter or turn."""
    if name == "none":
        return x0
    if name not in AUGMENT:
        raise UserError(f"unknown augmentation '{name}'; choose one of none, {', '.join(AUGMENT)}")
    return AUGMENT[name](x0, u)
