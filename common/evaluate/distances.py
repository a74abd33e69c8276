"""Distances between two sets of features: the Frechet distance, the kernel distance, and their uncertainty.

A set of features is (N, D) float64: N images, each described by D features of a network (here the 64 of
digit_classifier.py). Both distances come from `torchmetrics`; this file feeds it features that are already computed,
and adds the statistics.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from common.random import EVALUATION, generator


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: 64 x 64 matrices are too small to share,
    and on a busy machine threads that wait for each other are ten times slower.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class PrecomputedFeatures(nn.Module):
    """The identity, in place of the network that torchmetrics applies to images:
    these features are computed already.
    """

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class Frechet:
    """Frechet distances to one reference set (Heusel et al. 2017, eq. 6), each set approximated by a Gaussian:

        ||mu_1 - mu_2||^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

    It depends on the number of samples: a small set from the very same distribution has a distance above zero
    (the floor), because a covariance estimated from few points is inaccurate. Compare distances at equal N only.
    """

    def __init__(self, reference: Tensor):
        self.metric = FrechetInceptionDistance(PrecomputedFeatures(reference.shape[1]), reset_real_features=False)
        self.metric.update(reference.cpu().double(), real=True)

    def __call__(self, features: Tensor) -> float:
        self.metric.reset()  # forgets the samples, keeps the reference
        self.metric.update(features.cpu().double(), real=False)
        return float(self.metric.compute())


def kernel_distance(
    features: Tensor, reference: Tensor, seed: int = 0, size: int | None = None, subsets: int = 30
) -> tuple[float, float]:
    """The squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, known as KID (Binkowski et al. 2018).

    Unbiased, hence about zero for sets of one distribution, and below zero as often as above.
    Returns its mean over random subsets of `size` points (by default half of the smaller set), and the standard
    deviation between them. That is more than the error of the mean: two to four times as much, when we measured it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it keeps all features in memory, and says so
        metric = KernelInceptionDistance(
            PrecomputedFeatures(features.shape[1]), subsets, size or min(len(features), len(reference)) // 2
        )
    metric.update(reference.cpu().double(), real=True)
    metric.update(features.cpu().double(), real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics picks the subsets with the global generator
        torch.manual_seed(generator(EVALUATION, seed).initial_seed())
        mean, sd = metric.compute()
    return float(mean), float(sd)


class Estimate(NamedTuple):
    value: float
    sd: float  # standard deviation of the value over new draws of the samples
    low: float  # 95 % interval
    high: float

    def columns(self, name: str) -> dict[str, float]:
        """The columns of a results file: the value and the ends of its interval."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def bootstrap(statistic: Callable[[Tensor], float], features: Tensor, seed: int = 0, times: int = 200) -> Estimate:
    """The statistic of the samples, and how much it would vary with other samples of the same number.

    Each resample draws N of the N samples with repetition. Repetitions reduce the variety of a set, so that resampled
    Frechet distances are all too large, by about as much as N samples differ from infinitely many; only their spread
    is useful. Therefore the value is that of the samples themselves, and the interval is the resamples' middle 95 %,
    shifted so that their mean equals that value (and cut off at zero). It estimates how much other draws of N samples
    from the same model would differ, with the same reference; it does not remove the floor. Compared with draws of
    real digits it is conservative: the standard deviation was 1.1 to 1.6 times the true one.
    """
    value, rng = statistic(features), generator(EVALUATION, seed)
    again = [statistic(features[torch.randint(len(features), (len(features),), generator=rng)]) for _ in range(times)]
    spread = torch.tensor(again, dtype=torch.float64)
    low, high = (spread - spread.mean() + value).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, float(spread.std()), max(0.0, low), high)


def share(hits: Tensor) -> Estimate:
    """The share of true entries with a 95 % interval of Wilson (1927). A bootstrap of entries that are all true would
    claim that no error is possible: with 400 of 400, the interval of Wilson begins at 0.990.
    """
    found = binomtest(int(hits.sum()), len(hits))
    p, interval = float(found.statistic), found.proportion_ci(0.95, method="wilson")
    return Estimate(p, (p * (1 - p) / len(hits)) ** 0.5, float(interval.low), float(interval.high))


def random_splits(features: Tensor, n: int, times: int, seed: int = 0) -> Iterator[Tensor]:
    """`times` random sets of n points: disjoint until all points are used up, then from a new permutation.

    Sets that overlap resemble each other, so their standard deviation is then an underestimate.
    features: (N, D), n <= N.
    """
    rng, order = generator(EVALUATION, seed), torch.empty(0, dtype=torch.long)
    for _ in range(times):
        if len(order) < n:
            order = torch.randperm(len(features), generator=rng)
        yield features[order[:n]]
        order = order[n:]
