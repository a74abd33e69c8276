"""How far apart are two clouds of features? The Frechet distance, the kernel distance, and how sure one can be of them.

A cloud is (N, D) float64: N images, each described by D features of a network (here common/evaluate/digit_classifier.py's 64).
Both distances come from `torchmetrics`; this file feeds it features that are already computed, and adds the statistics.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from common.random import EVALUATION, generator


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices of 64 x 64 are too small to share: on a busy machine, waiting for each other makes threads ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Given(nn.Module):
    """Stands where torchmetrics expects a network that makes features out of images: they are made already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class Frechet:
    """Frechet distances to one reference cloud (Heusel et al. 2017, eq. 6), each cloud taken for a Gaussian:

        ||mu_1 - mu_2||^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

    It depends on the number of samples: a small cloud from the very same distribution lies at a distance of its own
    (the floor), because a covariance estimated from few points is off. Compare distances at equal N only.
    """

    def __init__(self, reference: Tensor):
        self.metric = FrechetInceptionDistance(Given(reference.shape[1]), reset_real_features=False)
        self.metric.update(reference.cpu().double(), real=True)

    def __call__(self, features: Tensor) -> float:
        self.metric.reset()  # forgets the samples, keeps the reference
        self.metric.update(features.cpu().double(), real=False)
        return float(self.metric.compute())


def kernel_distance(features: Tensor, reference: Tensor, seed: int = 0, size: int | None = None, subsets: int = 30) -> tuple[float, float]:
    """The squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, known as KID (Binkowski et al. 2018).

    Unbiased, hence about zero for clouds of one distribution, and below zero as often as above.
    Returns its mean over random subsets of `size` points (by default half of the smaller cloud), and the standard
    deviation between them. That is more than the error of the mean: two to four times as much, when we measured it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it keeps all features in memory, and says so
        metric = KernelInceptionDistance(Given(features.shape[1]), subsets, size or min(len(features), len(reference)) // 2)
    metric.update(reference.cpu().double(), real=True)
    metric.update(features.cpu().double(), real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics picks the subsets with the global generator
        torch.manual_seed(generator(EVALUATION, seed).initial_seed())
        mean, sd = metric.compute()
    return float(mean), float(sd)


class Estimate(NamedTuple):
    value: float
    sd: float    # standard deviation of the value, were the samples drawn anew
    low: float   # 95 % interval
    high: float


def bootstrap(statistic: Callable[[Tensor], float], features: Tensor, seed: int = 0, times: int = 200) -> Estimate:
    """The statistic of the samples, and how much it would vary with other samples of the same number.

    Each resample draws N of the N samples with repetition. Repetitions make a cloud poorer than it is, so that resampled
    Frechet distances are all too large, by about as much as N samples differ from infinitely many. What is of use in
    them is their spread. Therefore the value is the plain one, of the samples as they are, and the interval is the
    resamples' middle 95 %, shifted so that their mean falls on that value (and cut off at zero). It speaks of other draws
    of N samples from the same model, with the same reference; it does not remove the floor. Against draws of real digits
    it proved careful: the standard deviation came out 1.1 to 1.6 times the true one.
    """
    value, draw = statistic(features), generator(EVALUATION, seed)
    again = [statistic(features[torch.randint(len(features), (len(features),), generator=draw)]) for _ in range(times)]
    spread = torch.tensor(again, dtype=torch.float64)
    low, high = (spread - spread.mean() + value).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, float(spread.std()), max(0.0, low), high)


def deal(cloud: Tensor, n: int, times: int, seed: int = 0) -> Iterator[Tensor]:
    """`times` random draws of n points, like hands of cards: disjoint until the cloud is used up, then shuffled anew.

    Draws that overlap resemble each other, so their standard deviation is then an underestimate. cloud: (N, D), n <= N.
    """
    draw, deck = generator(EVALUATION, seed), torch.empty(0, dtype=torch.long)
    for _ in range(times):
        if len(deck) < n:
            deck = torch.randperm(len(cloud), generator=draw)
        yield cloud[deck[:n]]
        deck = deck[n:]
