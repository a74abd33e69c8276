"""Random numbers as a function of (stream, seed, step), not of what was drawn before.

A resumed run therefore draws exactly what an uninterrupted run would have drawn. Processes that share a batch draw
what one process with the whole batch would have drawn.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# Stream ids: the first element of every seed tuple.
ORDER, TRAINING, DROPOUT, SAMPLING, EVALUATION, AUGMENTATION = range(6)

Device = str | torch.device
NoiseSource = Callable[[int, Tensor], Tensor]  # (k, x) -> draw number k of standard normal noise, shaped like x


def generator(*key: int, device: Device = "cpu") -> torch.Generator:
    """A generator for one seed tuple, such as (TRAINING, seed, step). Different tuples give independent numbers."""
    entropy = [len(key), *(abs(int(part)) for part in key)]  # the length, because numpy takes (1, 2) for (1, 2, 0)
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


class Noise:
    """The NoiseSource of the course: noise(k, x) is standard normal, of x's shape, and depends on (seed, k) alone.

    seed  one number, or a seed and the number of the batch

    It is drawn on the CPU, so that one seed gives the same image on every device.
    """

    def __init__(self, *seed: int):
        self.seed = seed

    def __call__(self, k: int, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator(SAMPLING, *self.seed, k)).to(x)


class BatchRandom:
    """The random numbers of one training step, on the training device.

    Each method draws for the whole batch, which `world` processes share, and returns the part of process `rank`.
    """

    def __init__(self, seed: int, step: int, rank: int = 0, world: int = 1, device: Device = "cpu"):
        self.generator = generator(TRAINING, seed, step, device=device)
        self.rank = rank
        self.world = world
        self.device = device

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal; shape (B, ...) is that of this process's part."""
        whole = torch.randn(self.world * shape[0], *shape[1:], generator=self.generator, device=self.device)
        return whole.chunk(self.world)[self.rank]

    def rand(self, n: int) -> Tensor:
        """Uniform in [0, 1). (n,)"""
        return torch.rand(self.world * n, generator=self.generator, device=self.device).chunk(self.world)[self.rank]

    def stratified(self, n: int) -> Tensor:
        """Uniform in [0, 1), one number in each of n equal intervals: every batch has all noise levels. (n,)"""
        whole = torch.rand(self.world * n, generator=self.generator, device=self.device)
        u = (torch.arange(len(whole), device=self.device) + whole) / len(whole)
        return u.clamp(max=1 - 2**-24).chunk(self.world)[self.rank]


@lru_cache(maxsize=2)
def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """The order of n images in one epoch. (n,)"""
    return torch.randperm(n, generator=generator(ORDER, seed, epoch))


def batch_indices(n: int, size: int, k: int, seed: int) -> Tensor:
    """The images of batch k: every epoch a new order, every image at most once an epoch. (size,)"""
    if n < size:  # fewer images than one batch holds: draw with repetition
        return torch.randint(n, (size,), generator=generator(ORDER, seed, k))
    epoch, first = divmod(k, n // size)
    return shuffled(n, seed, epoch)[first * size : (first + 1) * size]
