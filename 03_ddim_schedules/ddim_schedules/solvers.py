"""DDIM derived and written longhand, the solvers that are often confused with it, and one common mistake.

Everything here uses the chain of chapter 1: alpha_bar[t] for t = 0..T with alpha_bar[0] = 1, a network
eps = model(x, t - 1), and a list of visited timesteps `tau`, noisiest first, such as [1000, 950, ..., 50, 0].
common/diffusion/samplers.py holds the same solvers for any schedule and any prediction;
a test proves that the two are equal.

The derivation (Song et al. 2021, sections 3 and 4)
---------------------------------------------------
DDPM's training never uses a pair (x_{t-1}, x_t): its loss depends only on how x_t is composed of x0 and noise,

    x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps                                                         (1)

So one network serves every process that satisfies (1) at each step, and there are many such processes. To go from t to
an earlier s, keep x0, keep a part of eps, and replace the rest by fresh noise z:

    x_s = sqrt(alpha_bar_s) x0 + sqrt(1 - alpha_bar_s - sigma^2) eps + sigma z                                     (2)

The variances of the two noises add up to 1 - alpha_bar_s for every sigma, so (1) holds again at s. The derivation does
not need s = t - 1, so steps may be skipped. With sigma = 0, (2) is DDIM, which is deterministic after the initial
noise. DDPM is (2) with

    sigma^2 = (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)                              (3)

This is beta_tilde of a chain that jumps from t to s.
`eta` interpolates between DDIM and DDPM: sigma is eta times the root of (3).
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]  # (B, C, H, W), (B,) t - 1 -> (B, C, H, W) predicted noise
NoiseSource = Callable[[int, Tensor], Tensor]  # (k, x) -> standard normal noise for step k, of x's shape


def timesteps(T: int, steps: int) -> list[int]:
    """`steps` of the timesteps 1..T, evenly spaced, noisiest first, and then 0, the clean image."""
    return [round(T - i * T / steps) for i in range(steps)] + [0]


def predict_eps(model: Model, x: Tensor, t: int) -> Tensor:
    """The network's prediction of the noise in x at timestep t. (B, C, H, W)"""
    return model(x, torch.full((len(x),), t - 1, device=x.device))


@torch.no_grad()
def ddim(
    model: Model, x: Tensor, alpha_bar: Tensor, tau: list[int], noise: NoiseSource, eta: float = 0.0
) -> Iterator[Tensor]:
    """Equation (2), once for each pair of neighbours in tau. Yields x (B, C, H, W) after every step."""
    for k, (t, s) in enumerate(pairwise(tau), start=1):
        a_t, a_s = float(alpha_bar[t]), float(alpha_bar[s])
        eps = predict_eps(model, x, t)
        x0 = (x - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)  # (1), solved for x0
        sigma = eta * math.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))  # (3)
        x = math.sqrt(a_s) * x0 + math.sqrt(1 - a_s - sigma**2) * eps  # (2)
        if s > 0:
            x = x + sigma * noise(k, x)
        yield x


@torch.no_grad()
def ddpm_respaced(model: Model, x: Tensor, alpha_bar: Tensor, tau: list[int], noise: NoiseSource) -> Iterator[Tensor]:
    """DDPM's algorithm 2 on the shorter chain of the visited timesteps (Nichol & Dhariwal 2021, section 4).

    The chain that jumps from t to s has its own beta, the variance that all skipped steps add together:
    1 - alpha_bar_t / alpha_bar_s.
    """
    for k, (t, s) in enumerate(pairwise(tau), start=1):
        a_t, a_s = float(alpha_bar[t]), float(alpha_bar[s])
        beta = 1 - a_t / a_s
        x = (x - beta / math.sqrt(1 - a_t) * predict_eps(model, x, t)) / math.sqrt(1 - beta)
        if s > 0:
            x = x + math.sqrt((1 - a_s) / (1 - a_t) * beta) * noise(k, x)
        yield x


@torch.no_grad()
def ddpm_naive(model: Model, x: Tensor, alpha_bar: Tensor, tau: list[int], noise: NoiseSource) -> Iterator[Tensor]:
    """The widely copied mistake: visit only the timesteps of tau, but with the full chain's beta_t.

    Each step removes the noise of a single timestep and skips the others, so most of the noise remains in the image.
    """
    for k, (t, s) in enumerate(pairwise(tau), start=1):
        a_t, a_before = float(alpha_bar[t]), float(alpha_bar[t - 1])  # t - 1, although the next visited step is s
        beta = 1 - a_t / a_before
        x = (x - beta / math.sqrt(1 - a_t) * predict_eps(model, x, t)) / math.sqrt(1 - beta)
        if s > 0:
            x = x + math.sqrt((1 - a_before) / (1 - a_t) * beta) * noise(k, x)
        yield x


@torch.no_grad()
def euler_ancestral(
    model: Model, x: Tensor, alpha_bar: Tensor, tau: list[int], noise: NoiseSource
) -> Iterator[Tensor]:
    """Euler ancestral in its own coordinates: x_hat = x / sqrt(alpha_bar), sigma = sqrt(1 / alpha_bar - 1).

    There x_hat = x0 + sigma eps. A step goes down to sigma_down, below the next level, and adds the missing noise:
    sigma_down^2 + sigma_up^2 = sigma_next^2. With sigma_up as below, this is (2) with (3), so it equals DDPM.
    """
    x_hat = x / math.sqrt(float(alpha_bar[tau[0]]))
    for k, (t, s) in enumerate(pairwise(tau), start=1):
        sigma, sigma_next = (math.sqrt(1 / float(alpha_bar[step]) - 1) for step in (t, s))
        eps = predict_eps(model, x_hat * math.sqrt(float(alpha_bar[t])), t)
        sigma_up = math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
        sigma_down = math.sqrt(sigma_next**2 - sigma_up**2)
        x_hat = x_hat + (sigma_down - sigma) * eps
        if s > 0:
            x_hat = x_hat + sigma_up * noise(k, x)
        yield x_hat * math.sqrt(float(alpha_bar[s]))


@torch.no_grad()
def invert(model: Model, x0: Tensor, alpha_bar: Tensor, tau: list[int]) -> Iterator[Tensor]:
    """DDIM inversion: from the image to the noise that DDIM would generate it from.

    Equation (2) with sigma = 0, solved for x_t, needs the network's prediction of eps from x_t. Only x_s is known, so
    the prediction from x_s at timestep t is used instead. The smaller the steps, the smaller the difference.
    """
    x = x0
    for s, t in pairwise(reversed(tau)):
        a_s, a_t = float(alpha_bar[s]), float(alpha_bar[t])
        eps = predict_eps(model, x, t)
        x = math.sqrt(a_t / a_s) * (x - math.sqrt(1 - a_s) * eps) + math.sqrt(1 - a_t) * eps
        yield x


def slerp(a: Tensor, b: Tensor, w: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985), image by image: along the great circle from a (w = 0) to b (w = 1).

    Noise of many pixels lies near a sphere, because its norm hardly varies. The straight line between two such noises
    cuts through the sphere, and its middle has only 0.71 of their norm. (B, C, H, W)
    """
    column = (-1,) + (1,) * (a.ndim - 1)
    cosine = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1)
    angle = cosine.arccos().view(column)
    near = angle < 1e-4  # nearly parallel: the arc is a line, and sin(angle) would divide by zero
    angle = torch.where(near, torch.ones_like(angle), angle)
    w_a = torch.where(near, 1 - w, ((1 - w) * angle).sin() / angle.sin())
    w_b = torch.where(near, w, (w * angle).sin() / angle.sin())
    return w_a * a + w_b * b
