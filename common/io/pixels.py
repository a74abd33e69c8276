"""Pixels as bytes, 0 to 255, and as the floats in [-1, 1] that networks compute with."""

import torch
from torch import Tensor


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]"""
    return pixels.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Float images in [-1, 1] -> uint8 0..255; values beyond are cut off."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
