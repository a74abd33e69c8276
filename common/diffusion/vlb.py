"""Learned variance: one term of the variational lower bound (Nichol & Dhariwal 2021, sections 2 and 3.1).

A DDPM step from t to t - 1 adds noise of a fixed variance, beta_t or beta_tilde_t. Here the network predicts for every
pixel a variance between the two, on a logarithmic scale. The squared error does not contain the variance and cannot
train it. The bound on the log-likelihood can: it measures in bits how far the network's step is from the posterior.
"""

import math
from typing import Any

import torch
from torch import Tensor

from common.diffusion.denoiser import to_x0_eps
from common.diffusion.schedules import DiscreteSchedule, NoiseLevel, Schedule, append_dims
from common.errors import UserError

BIN = 1 / 255  # half the distance between two of the 256 pixel values in [-1, 1]


def step_variances(now: NoiseLevel, then: NoiseLevel) -> tuple[Any, Any]:
    """(beta, beta_tilde) of the step between two levels: the forward variance and that of the posterior (DDPM eq. 7).

    Written with both curves, so that they hold for any two levels of any schedule, respaced ones included.
    """
    beta = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2
    return beta, beta * (then.sigma / now.sigma) ** 2


def log_variance(v: Tensor, log_beta: float | Tensor, log_beta_tilde: float | Tensor) -> Tensor:
    """Eq. 15, with v in [-1, 1] instead of [0, 1]: -1 is log(beta_tilde), 1 is log(beta). v is not clipped."""
    fraction = (v + 1) / 2
    return fraction * log_beta + (1 - fraction) * log_beta_tilde


def vlb_term(
    schedule: Schedule, prediction: str, x0: Tensor, x: Tensor, y: Tensor, v: Tensor, level: NoiseLevel
) -> Tensor:
    """L_{t-1} of eq. 4 to 6 in bits per dimension. -> (B,)

    x0, x  (B, C, H, W) the image and the noisy image
    y, v   (B, C, H, W) the network's output: its prediction and its variance
    level  the noise levels of x, in the shapes of `NoiseLevel.like`
    """
    if not isinstance(schedule, DiscreteSchedule):
        raise UserError(
            f"learned variance needs a discrete-time schedule, which '{schedule.name}' is not; choose linear or cosine"
        )
    t = level.time.cpu().long() + 1  # (B,) the paper's t
    rows = torch.stack(step_coefficients(schedule, t)).to(x.dtype).to(x.device)  # precision first: MPS has no float64
    a, b, log_beta, log_beta_tilde, is_first = (append_dims(row, x) for row in rows)  # each (B, 1, 1, 1)

    mean = a * x + b * to_x0_eps(prediction, y, x, level)[0]
    log_var = log_variance(v, log_beta, log_beta_tilde)
    kl = gaussian_kl(a * x + b * x0, log_beta_tilde, mean, log_var)
    nll = -discrete_log_likelihood(x0, mean, log_var)
    nats = torch.where(is_first > 0, nll, kl)
    return nats.flatten(1).mean(1) / math.log(2)


def step_coefficients(schedule: DiscreteSchedule, t: Tensor) -> list[Tensor]:
    """[a, b, log(beta), log(beta_tilde), is_first] of the steps t -> t - 1, each (B,) in float64.

    a x + b x0 is the mean of the posterior (DDPM eq. 7).
    """
    now, then = schedule.at(t), schedule.at(t - 1)
    beta, beta_tilde = step_variances(now, then)
    a = (then.sigma**2 - beta_tilde).clamp(min=0).sqrt() / now.sigma
    b = then.alpha - a * now.alpha
    beta_tilde_2 = step_variances(schedule.at(t * 0 + 2), schedule.at(t * 0 + 1))[1]
    is_first = t == 1  # the step to the image itself: beta_tilde_1 is zero, and beta_tilde_2 replaces it
    log_beta_tilde = torch.where(is_first, beta_tilde_2, beta_tilde).log()
    return [a, b, beta.log(), log_beta_tilde, is_first.to(beta.dtype)]


def gaussian_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """KL(N(mean1, var1) || N(mean2, var2)) of every pixel, in nats."""
    return 0.5 * (log_var2 - log_var1 - 1 + (log_var1 - log_var2).exp() + (mean1 - mean2).square() * (-log_var2).exp())


def discrete_log_likelihood(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log of a Gaussian's probability of the pixel value x0, the integral over its bin (DDPM eq. 13). In nats.

    The bins of black and white extend to infinity. A Gaussian is symmetric, so a bin above the mean is replaced by its
    mirror image below: there the distribution function is small,
    and a difference of small numbers keeps its digits in float32.
    """
    std = (0.5 * log_var).exp()
    distance = (x0 - mean).abs()
    inner = normal_cdf((BIN - distance) / std) - normal_cdf((-BIN - distance) / std)
    white, black = normal_cdf((mean - x0 + BIN) / std), normal_cdf((x0 + BIN - mean) / std)
    probability = torch.where(x0 > 1 - BIN, white, torch.where(x0 < -1 + BIN, black, inner))
    return probability.clamp(min=1e-12).log()


def normal_cdf(z: Tensor) -> Tensor:
    """The standard normal distribution function, with full precision also where it is small."""
    return 0.5 * torch.special.erfc(-z * math.sqrt(0.5))
