"""DDIM derived and written longhand; the solvers that people confuse with it; and one mistake, kept for comparison.

Everything here is on the chain of chapter 1: alpha_bar[t] for t = 0..T with alpha_bar[0] = 1, a network eps = model(x, t - 1),
and a list of visited steps `tau`, noisiest first, such as [1000, 950, ..., 50]. common/diffusion/samplers.py holds the same solvers for any
schedule and any prediction; a test proves the two equal.

The derivation (Song et al. 2021, section 3 and 4)
--------------------------------------------------
DDPM's training never looks at a pair (x_{t-1}, x_t): its loss only knows that x_t is made of x0 and noise,

    x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps                                                             (1)

So the same network serves for every process that has (1) at each step, and there are many: going from t to an earlier s,
keep the x0, keep a part of the eps, and replace the rest by fresh noise z,

    x_s = sqrt(alpha_bar_s) x0 + sqrt(1 - alpha_bar_s - fresh^2) eps + fresh z                                         (2)

The variances of the two noises add up to 1 - alpha_bar_s, whatever `fresh` is: (1) holds again, at s. Nothing said that s is
t - 1, so steps may be skipped. `fresh = 0` is DDIM: no dice after the first. And DDPM is (2) with

    fresh^2 = (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)                                  (3)

which is beta_tilde of a chain that jumps from t to s. `eta` goes from the one to the other: fresh = eta * sqrt of (3).
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]  # (B, C, H, W), (B,) t - 1 -> (B, C, H, W) predicted noise
Dice = Callable[[int, Tensor], Tensor]      # (k, x) -> standard normal noise for step k, of x's shape


def visited(T: int, steps: int) -> list[int]:
    """`steps` of the T steps, evenly spaced, noisiest first; the clean image, 0, ends the list."""
    return [round(T - i * T / steps) for i in range(steps)] + [0]


def noise_in(model: Model, x: Tensor, t: int) -> Tensor:
    return model(x, torch.full((len(x),), t - 1, device=x.device))


@torch.no_grad()
def ddim(model: Model, x: Tensor, alpha_bar: Tensor, tau: list[int], dice: Dice, eta: float = 0.0) -> Iterator[Tensor]:
    """Equation (2), once for each pair of neighbours in tau. Yields x after every step."""
    for k, (t, s) in enumerate(pairwise(tau), start=1):
        a_t, a_s = float(alpha_bar[t]), float(alpha_bar[s])
        eps = noise_in(model, x, t)
        x0 = (x - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)                           # (1), solved for x0
        fresh = eta * math.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))               # (3)
        x = math.sqrt(a_s) * x0 + math.sqrt(1 - a_s - fresh**2) * eps                  # (2)
        if s > 0:
            x = x + fresh * dice(k, x)
        yield x


@torch.no_grad()
def ddpm_respaced(model: Model, x: Tensor, alpha_bar: Tensor, tau: list[int], dice: Dice) -> Iterator[Tensor]:
    """DDPM's algorithm 2 on the shorter chain of the visited steps (Nichol & Dhariwal 2021, section 4).

    The chain that jumps from t to s has its own beta, the noise of all skipped steps together: 1 - alpha_bar_t / alpha_bar_s.
    """
    for k, (t, s) in enumerate(pairwise(tau), start=1):
        a_t, a_s = float(alpha_bar[t]), float(alpha_bar[s])
        beta = 1 - a_t / a_s
        x = (x - beta / math.sqrt(1 - a_t) * noise_in(model, x, t)) / math.sqrt(1 - beta)
        if s > 0:
            x = x + math.sqrt((1 - a_s) / (1 - a_t) * beta) * dice(k, x)
        yield x


@torch.no_grad()
def ddpm_naive(model: Model, x: Tensor, alpha_bar: Tensor, tau: list[int], dice: Dice) -> Iterator[Tensor]:
    """The widely copied mistake: visit only the steps of tau, but with the full chain's beta_t.

    Each of its steps takes away one step's noise and then skips the others, so most of the noise stays in the picture.
    """
    for k, (t, s) in enumerate(pairwise(tau), start=1):
        a_t, a_before = float(alpha_bar[t]), float(alpha_bar[t - 1])  # t - 1, although the next visited step is s
        beta = 1 - a_t / a_before
        x = (x - beta / math.sqrt(1 - a_t) * noise_in(model, x, t)) / math.sqrt(1 - beta)
        if s > 0:
            x = x + math.sqrt((1 - a_before) / (1 - a_t) * beta) * dice(k, x)
        yield x


@torch.no_grad()
def euler_ancestral(model: Model, x: Tensor, alpha_bar: Tensor, tau: list[int], dice: Dice) -> Iterator[Tensor]:
    """Euler ancestral in its own coordinates: x_hat = x / sqrt(alpha_bar) and sigma = sqrt((1 - alpha_bar) / alpha_bar).

    There x_hat = x0 + sigma eps. A step goes down to sigma_down, below the next level, and adds the noise that is missing:
    sigma_down^2 + sigma_up^2 = sigma_next^2. With sigma_up as below this is (2) with (3), and so nothing but DDPM.
    """
    x_hat = x / math.sqrt(float(alpha_bar[tau[0]]))
    for k, (t, s) in enumerate(pairwise(tau), start=1):
        sigma, sigma_next = (math.sqrt(1 / float(alpha_bar[step]) - 1) for step in (t, s))
        eps = noise_in(model, x_hat * math.sqrt(float(alpha_bar[t])), t)
        sigma_up = math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
        sigma_down = math.sqrt(sigma_next**2 - sigma_up**2)
        x_hat = x_hat + (sigma_down - sigma) * eps
        if s > 0:
            x_hat = x_hat + sigma_up * dice(k, x)
        yield x_hat * math.sqrt(float(alpha_bar[s]))


@torch.no_grad()
def invert(model: Model, x0: Tensor, alpha_bar: Tensor, tau: list[int]) -> Iterator[Tensor]:
    """DDIM read backwards, from the image to the noise that leads to it.

    Equation (2) without fresh noise, solved for x_t, needs the eps that the network sees in x_t; only x_s is there yet, and so
    the eps it sees in x_s, asked at t, stands in for it. Small steps make the two alike.
    """
    x = x0
    for s, t in pairwise(reversed(tau)):
        a_s, a_t = float(alpha_bar[s]), float(alpha_bar[t])
        eps = noise_in(model, x, t)
        x = math.sqrt(a_t / a_s) * (x - math.sqrt(1 - a_s) * eps) + math.sqrt(1 - a_t) * eps
        yield x


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985), image by image: along the great circle from a (share 0) to b (share 1).

    Noise of many pixels lies near a sphere: its length hardly varies. The straight line between two noises cuts through the
    sphere, and at its middle is 1.4 times too short to be noise. (B, C, H, W)
    """
    column = (-1,) + (1,) * (a.ndim - 1)
    u, v = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(u, v).clamp(-1, 1)
    angle = cosine.arccos().view(column)
    near = angle < 1e-4  # (nearly) parallel: the circle is a line, and sin(angle) would divide by zero
    angle = torch.where(near, torch.ones_like(angle), angle)
    wa, wb = ((1 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin()
    wa, wb = torch.where(near, torch.full_like(wa, 1 - share), wa), torch.where(near, torch.full_like(wb, share), wb)
    return wa * a + wb * b
