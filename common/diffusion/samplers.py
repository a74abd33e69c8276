"""Samplers. Each is a generator with one contract:

    sampler(denoise, x, levels, ...) -> yields Step(x, x0, i) after every update; the last x is the sample

    denoise  (x, level) -> Prediction, at any level: a `Denoiser`, or a function that returns a pair (x0, eps)
    x        (B, C, H, W) pure noise, as `initial_noise` makes it
    levels   the noise levels to visit, noisiest first

Intuition: split the noisy image into image and noise, then mix the two again with a little less noise.
Algebra: x_t = alpha_t x0 + sigma_t eps, so along a trajectory dx = x0 dalpha + eps dsigma. Euler's method on this ODE
is DDIM, and the trapezoid rule is Heun's method. The same few lines serve every schedule and every prediction.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from common.diffusion.denoiser import Prediction
from common.diffusion.schedules import NoiseLevel, NoiseLevels, combine
from common.diffusion.vlb import log_variance, step_variances
from common.errors import UserError
from common.random import Device, Noise, NoiseSource

Denoise = Callable[[Tensor, NoiseLevel[float]], Prediction | tuple[Tensor, Tensor]]
Steps = Iterator["Step"]


class Step(NamedTuple):
    x: Tensor  # (B, C, H, W) the new, less noisy image
    x0: Tensor  # (B, C, H, W) the prediction of the clean image that led to it
    i: int  # steps done before this one


def initial_noise(levels: NoiseLevels, shape: tuple[int, ...], noise: NoiseSource, device: Device = "cpu") -> Tensor:
    """Pure noise at the noisiest level, draw 0 of the noise source. shape: (B, C, H, W)"""
    return next(iter(levels)).sigma * noise(0, torch.empty(shape, device=device))


@torch.no_grad()
def ddim(denoise: Denoise, x: Tensor, levels: NoiseLevels, eta: float = 0.0, noise: NoiseSource = Noise(1)) -> Steps:
    """Song et al. 2021, eq. 12. eta = 0 is deterministic; eta = 1 is DDPM."""
    for i, (now, then) in enumerate(pairwise(levels)):
        x0, eps = denoise(x, now)[:2]
        noise_std = eta * math.sqrt(max(0.0, step_variances(now, then)[1]))  # eq. 16: eta sqrt(beta_tilde)
        x = combine(then.alpha, x0, math.sqrt(then.sigma**2 - noise_std**2), eps)
        if noise_std > 0:  # it is zero at the last step: no noise is added to the final image
            x = x + noise_std * noise(i + 1, x)
        yield Step(x, x0, i)


@torch.no_grad()
def ddpm(
    denoise: Denoise, x: Tensor, levels: NoiseLevels, noise: NoiseSource = Noise(1), variance: str | None = None
) -> Steps:
    """Ho et al. 2020, algorithm 2. With fewer than T steps the coefficients are those of the steps taken (respaced).

    variance  of the added noise: "small" is beta_tilde, optimal if the data were one image; "large" is beta, optimal
              if they were noise (section 3.2); "learned" is the network's. None: learned if possible, otherwise small
    """
    for i, (now, then) in enumerate(pairwise(levels)):
        x0, eps, v = Prediction(*denoise(x, now))
        beta, beta_tilde = step_variances(now, then)
        # eq. 7: one mean for all variances
        x = combine(then.alpha, x0, math.sqrt(max(0.0, then.sigma**2 - beta_tilde)), eps)
        if then.sigma > 0:
            x = x + ddpm_noise_std(variance, beta, beta_tilde, v) * noise(i + 1, x)
        yield Step(x, x0, i)


def ddpm_noise_std(variance: str | None, beta: float, beta_tilde: float, v: Tensor | None) -> float | Tensor:
    """Standard deviation of the noise that `ddpm` adds. UserError if `learned` is asked of a network without it."""
    if variance == "learned" and v is None:
        raise UserError("this network predicts no variance; choose variance=small or variance=large")
    if v is not None and variance in (None, "learned"):
        return (log_variance(v, math.log(beta), math.log(beta_tilde)) / 2).exp()
    return math.sqrt(beta if variance == "large" else beta_tilde)


def euler_a(denoise: Denoise, x: Tensor, levels: NoiseLevels, noise: NoiseSource = Noise(1)) -> Steps:
    """Euler ancestral (k-diffusion): DDIM with eta = 1, and so DDPM. Chapter 3's solvers.py writes it out."""
    return ddim(denoise, x, levels, eta=1.0, noise=noise)


@torch.no_grad()
def sde(denoise: Denoise, x: Tensor, levels: NoiseLevels, noise: NoiseSource = Noise(1)) -> Steps:
    """Euler-Maruyama on the reverse-time SDE (Song et al. 2021b, eq. 6), whose forward SDE is dx = f x dt + g dw.

        dx = (f x - g^2 score) dt + g dw   score = -eps / sigma, f = d log(alpha)/dt, g^2 = d(sigma^2)/dt - 2 f sigma^2

    Drift and diffusion are constant over a step here, whereas DDPM solves the step exactly. So it needs more steps.
    """
    for i, (now, then) in enumerate(pairwise(levels)):
        x0, eps = denoise(x, now)[:2]
        if now.alpha == 0:  # at pure noise the drift is infinite, so the first step is the ODE's
            x = combine(then.alpha, x0, then.sigma, eps)
        else:
            f = math.log(then.alpha / now.alpha)  # f dt, positive because time runs backwards
            g2 = now.sigma**2 - then.sigma**2 + 2 * f * now.sigma**2  # g^2 |dt|
            x = combine(1 + f, x, -g2 / now.sigma, eps)
            if then.sigma > 0:
                x = x + math.sqrt(g2) * noise(i + 1, x)
        yield Step(x, x0, i)


@torch.no_grad()
def heun(denoise: Denoise, x: Tensor, levels: NoiseLevels) -> Steps:
    """Karras et al. 2022, algorithm 1: an Euler step, then the same step with the mean of the slopes at its ends."""
    for i, (now, then) in enumerate(pairwise(levels)):
        dalpha, dsigma = then.alpha - now.alpha, then.sigma - now.sigma
        x0, eps = denoise(x, now)[:2]
        x_then = x + dalpha * x0 + dsigma * eps
        if then.sigma > 0:
            x0_then, eps_then = denoise(x_then, then)[:2]
            x_then = x + dalpha / 2 * (x0 + x0_then) + dsigma / 2 * (eps + eps_then)
        x = x_then
        yield Step(x, x0, i)


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, x: Tensor, levels: NoiseLevels) -> Steps:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2: x0 extrapolated from the predictions of the last two steps."""
    visited, x0_old = list(levels), None
    for i, (now, then) in enumerate(pairwise(visited)):
        x0 = denoise(x, now)[0]
        D = x0
        if x0_old is not None and then.sigma > 0:
            r = (now.lam - visited[i - 1].lam) / (then.lam - now.lam)
            D = x0 + (x0 - x0_old) / (2 * r)
        x, x0_old = exponential_step(x, D, now, then), x0
        yield Step(x, x0, i)


@torch.no_grad()
def dpmpp_2s(denoise: Denoise, x: Tensor, levels: NoiseLevels) -> Steps:
    """DPM-Solver++(2S), Lu et al. 2022b, algorithm 1 with r = 1/2: a second evaluation half-way in lambda."""
    for i, (now, then) in enumerate(pairwise(levels)):
        x0 = denoise(x, now)[0]
        D = x0
        if now.alpha > 0 and then.sigma > 0:  # at either end lambda is infinite, and there is no half-way
            middle = levels.schedule.at_lam((now.lam + then.lam) / 2)
            D = denoise(exponential_step(x, x0, now, middle), middle)[0]
        x = exponential_step(x, D, now, then)
        yield Step(x, x0, i)


def exponential_step(x: Tensor, x0: Tensor, now: NoiseLevel, then: NoiseLevel) -> Tensor:
    """Exact for constant x0: sigma'/sigma x + alpha' (1 - e^-h) x0, h = lambda' - lambda (Lu et al. 2022b)."""
    return combine(then.sigma / now.sigma, x, -then.alpha * math.expm1(now.lam - then.lam), x0)


@torch.no_grad()
def ddim_inverse(denoise: Denoise, x: Tensor, levels: NoiseLevels) -> Steps:
    """DDIM backwards: from the clean image x to the noise from which `ddim` generates it (Song et al. 2021, 4.3).

    eps of the noisier image is not known yet; that of the current image at the next level replaces it. The inverse is
    exact in the limit of many steps, for a denoiser that does not clip.
    """
    for i, (now, then) in enumerate(pairwise(reversed(list(levels)))):
        x0, eps = denoise(x, then)[:2]
        x = combine(then.alpha / now.alpha, x, then.sigma - then.alpha / now.alpha * now.sigma, eps)
        yield Step(x, x0, i)


SAMPLERS = {sampler.__name__: sampler for sampler in (ddpm, ddim, heun, dpmpp_2m, dpmpp_2s, euler_a, sde)}
