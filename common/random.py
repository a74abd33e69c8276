"""Random numbers that depend on where they are used, not on what was drawn before.

The noise of step k is a function of (seed, k). So a resumed run sees exactly what an uninterrupted one would have seen,
and two processes that share a batch draw what one process with the whole batch would have drawn.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

NoiseSource = Callable[[int, Tensor], Tensor]  # (k, x) -> standard normal noise of x's shape, draw number k

ORDER, TRAINING, DROPOUT, SAMPLING, EVALUATION, AUGMENTATION = range(6)  # the first number of a place: what the random numbers are for


def generator(*place: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator for one place, for instance (TRAINING, seed, step): different places are statistically independent."""
    entropy = [len(place), *(abs(int(p)) for p in place)]  # the length, for numpy pads with zeros: (1, 2) is (1, 2, 0) to it
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


class Noise:
    """Standard normal noise for a sampler: noise(k, x) has the shape of x and depends on (place, k) alone.

    place: a seed, or a seed and the number of the batch. Drawn on the CPU, so that the same seed gives the same picture
    on every device.
    """

    def __init__(self, *place: int):
        self.place = place

    def __call__(self, k: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator(SAMPLING, *self.place, k)).to(like)


class BatchRandom:
    """The random numbers of one training step, on the training device.

    Each draw is made for the whole batch that `world` processes share; a process keeps its own part.
    """

    def __init__(self, seed: int, step: int, rank: int = 0, world: int = 1, device: str | torch.device = "cpu"):
        self.generator = generator(TRAINING, seed, step, device=device)
        self.rank, self.world, self.device = rank, world, device

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal; shape is that of this process's part, (B, ...)."""
        whole = torch.randn(self.world * shape[0], *shape[1:], generator=self.generator, device=self.device)
        return whole.chunk(self.world)[self.rank]

    def rand(self, n: int) -> Tensor:
        """Uniform in [0, 1). (n,)"""
        return torch.rand(self.world * n, generator=self.generator, device=self.device).chunk(self.world)[self.rank]

    def stratified(self, n: int) -> Tensor:
        """Uniform in [0, 1), one number in each of n equal intervals: every batch sees every noise level. (n,)"""
        whole = torch.rand(self.world * n, generator=self.generator, device=self.device)
        u = (torch.arange(len(whole), device=self.device) + whole) / len(whole)
        return u.clamp(max=1 - 2**-24).chunk(self.world)[self.rank]
