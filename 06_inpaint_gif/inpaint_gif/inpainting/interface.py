"""The one interface of everything that paints into a hole:
networks, pipelines of diffusers, and fills without a network.
"""

from typing import Protocol

from torch import Tensor


class InpaintingBackend(Protocol):
    """Paints into the hole of an image.

    image   (C, H, W) in [-1, 1]
    mask    (1, H, W) in {0, 1}; 1 (white) is repainted
    prompt  text for backends that are conditioned on text
    seed    random seed of the noise

    Returns (C, H, W). A backend may change known pixels too; CompositedBackend restores them.
    """

    def __call__(self, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor: ...
