"""Learned variance: the variational bound, one step of it (Nichol & Dhariwal 2021, sections 2 and 3.1).

Going back one step, t -> t - 1, DDPM adds noise of a variance chosen beforehand: beta_t or beta_tilde_t. Here the network
says for every pixel where between the two, on a logarithmic scale. The squared error cannot teach it that, for no variance
occurs in it; the bound on the likelihood can: how many bits does it cost to believe the network's step and not the true one?
"""

import math

import torch
from torch import Tensor

from common.diffusion.denoiser import to_x0_eps
from common.diffusion.schedules import DiscreteSchedule, NoiseLevel, Schedule, column
from common.errors import UserError

BIN = 1 / 255  # half the distance of two grey values, where 256 of them fill [-1, 1]


def step_variances(now: NoiseLevel, then: NoiseLevel):
    """(beta, beta_tilde) of the step between two levels: forward, and backward where x0 is known (DDPM eq. 7).

    Written with both curves, so that they hold for any two levels of any schedule, respaced ones included.
    """
    beta = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2
    return beta, beta * (then.sigma / now.sigma) ** 2


def log_variance(v: Tensor, log_beta, log_beta_tilde) -> Tensor:
    """Eq. 15: the network's v in [-1, 1] chooses between the bounds. (It may go beyond: nothing holds it.)"""
    share = (v + 1) / 2
    return share * log_beta + (1 - share) * log_beta_tilde


def vlb_term(schedule: Schedule, prediction: str, x0: Tensor, x: Tensor, y: Tensor, v: Tensor, level: NoiseLevel) -> Tensor:
    """L_{t-1} of eq. 4 to 6 in bits per pixel value. -> (B,)

    x0, x, y, v  (B, C, H, W): image, noisy image, the network's answer, its opinion about the variance
    level        the noise levels of x, as `NoiseLevel.like` shapes them
    """
    if not isinstance(schedule, DiscreteSchedule):
        raise UserError(f"learned variance needs a discrete-time schedule, which '{schedule.name}' is not; choose linear or cosine")
    t = level.time.cpu().long() + 1                                   # (B,) the paper's t
    now, then = schedule.at(t), schedule.at(t - 1)
    beta, beta_tilde = step_variances(now, then)                      # (B,) in float64, like all that follows
    a = (then.sigma**2 - beta_tilde).clamp(min=0).sqrt() / now.sigma  # the step's mean is a x + b x0 (DDPM eq. 7)
    b = then.alpha - a * now.alpha
    # beta_tilde_1 is zero, for the last step ends at the image itself: beta_tilde_2 stands in for it
    log_beta_tilde = torch.where(t == 1, step_variances(schedule.at(t * 0 + 2), schedule.at(t * 0 + 1))[1], beta_tilde).log()
    first = (t == 1).to(beta.dtype)
    rows = torch.stack([a, b, beta.log(), log_beta_tilde, first]).to(x.dtype).to(x.device)  # precision first: MPS has no float64
    a, b, log_beta, log_beta_tilde, first = (column(row, x) for row in rows)

    mean = a * x + b * to_x0_eps(prediction, y, x, level)[0]
    log_var = log_variance(v, log_beta, log_beta_tilde)
    divergence = kl_of_gaussians(a * x + b * x0, log_beta_tilde, mean, log_var)
    decoder = -discrete_log_likelihood(x0, mean, log_var)
    nats = torch.where(first > 0, decoder, divergence)
    return nats.flatten(1).mean(1) / math.log(2)


def kl_of_gaussians(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """KL(N(mean1, var1) || N(mean2, var2)), in nats, pixel by pixel."""
    return 0.5 * (log_var2 - log_var1 - 1 + (log_var1 - log_var2).exp() + (mean1 - mean2).square() * (-log_var2).exp())


def discrete_log_likelihood(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log of the probability that a Gaussian gives to a grey value: its mass in the value's bin (DDPM eq. 13).

    The bins of black and white reach to infinity. A Gaussian is symmetric, so a bin above the mean has the mass of its mirror image
    below: there the distribution function is small, and a difference of small numbers keeps its digits in float32.
    """
    sd = (0.5 * log_var).exp()
    far = (x0 - mean).abs()
    inner = normal_cdf((BIN - far) / sd) - normal_cdf((-BIN - far) / sd)
    white, black = normal_cdf((mean - x0 + BIN) / sd), normal_cdf((x0 + BIN - mean) / sd)
    mass = torch.where(x0 > 1 - BIN, white, torch.where(x0 < -1 + BIN, black, inner))
    return mass.clamp(min=1e-12).log()


def normal_cdf(z: Tensor) -> Tensor:
    """The standard normal distribution function, exact to the last digits also where it is small."""
    return 0.5 * torch.special.erfc(-z * math.sqrt(0.5))
