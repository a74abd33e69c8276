"""Noise schedules. Every one is a pair of curves alpha(t), sigma(t):

    x_t = alpha_t * x0 + sigma_t * eps          eps ~ N(0, 1)

`alpha` says how much of the image is left and `sigma` how much noise there is. Three families cover the field:
`DiscreteSchedule` (DDPM and its descendants), `EDMSchedule` and `FlowSchedule`. All of them answer the same questions:

    schedule.sample_levels(u)      noise levels for a training batch, from uniform random numbers u
    schedule.noise_levels(steps)   the noise levels a sampler visits, noisiest first
    schedule.at_lam(lam)           the level with a given half-log-SNR, for solvers that look between the points of a path
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError

T_DEFAULT = 1000  # the number of steps of the DDPM paper


class NoiseLevel(NamedTuple):
    """One noise level. Plain numbers while sampling; tensors of shape (B,) while training."""

    time: float | Tensor   # what the network is told
    alpha: float | Tensor  # how much of the image is left
    sigma: float | Tensor  # how much noise there is

    @property
    def lam(self) -> float:
        """Half the log signal-to-noise ratio, log(alpha / sigma): the lambda of DPM-Solver. Infinite at either end."""
        if self.sigma == 0 or self.alpha == 0:
            return math.inf if self.sigma == 0 else -math.inf
        return math.log(self.alpha / self.sigma)

    def like(self, x: Tensor) -> "NoiseLevel":
        """The same (B,) levels on x's device, alpha and sigma shaped (B, 1, 1, 1) so that they multiply images.

        They get x's precision on the CPU, since Apple's MPS has no float64, and cross to the device as one tensor.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)  # in half precision, neighbouring timesteps would be equal
        time, alpha, sigma = torch.stack([c.to(dtype) for c in (self.time, self.alpha, self.sigma)]).to(x.device)  # each (B,)
        return NoiseLevel(time.float(), column(alpha, x), column(sigma, x))


def column(values: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1) in x's precision, so that it multiplies images x (B, C, H, W)."""
    return values.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class NoiseLevels:
    """The levels a sampler visits, noisiest first, clean last."""

    levels: NoiseLevel         # each field (steps + 1,) in float64
    schedule: "Schedule"  # where a solver finds the levels between two points: levels.schedule.at_lam(lam)

    def __len__(self) -> int:
        return len(self.levels.time) - 1

    def after(self, steps: int) -> "NoiseLevels":
        """What is left of the path when some steps are done, for beginning with a half-noised image."""
        return NoiseLevels(NoiseLevel(*(column[steps:] for column in self.levels)), self.schedule)

    def __iter__(self) -> Iterator[NoiseLevel]:
        return map(NoiseLevel, *(column.tolist() for column in self.levels))


def add_noise(x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
    """Noise an image in one shot: x_t = alpha_t x0 + sigma_t eps (DDPM eq. 4). (B, C, H, W) in and out."""
    return level.alpha * x0 + level.sigma * eps


def combine(a: float | Tensor, x: Tensor, b: float | Tensor, y: Tensor) -> Tensor:
    """a x + b y, in the precision of x. With plain numbers, as while sampling, two passes over memory instead of three."""
    return x.mul(a).add_(y, alpha=b) if isinstance(b, float) else a * x + b * y


# ------------------------------------------------------------------------------------------------ DDPM and descendants


def linear_betas(T: int = T_DEFAULT, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Ho et al. 2020, section 4. (T,)"""
    return torch.linspace(start, end, T, dtype=torch.float64)


def scaled_linear_betas(T: int = T_DEFAULT, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Linear in sqrt(beta): Stable Diffusion's. (T,)"""
    return torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2


def cosine_betas(T: int = T_DEFAULT, offset: float = 0.008) -> Tensor:
    """Nichol & Dhariwal 2021, eq. 17: alpha_bar follows a squared cosine; beta is kept below 0.999. (T,)"""
    return _betas(lambda t: torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2, T)


def sigmoid_betas(T: int = T_DEFAULT, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    """Jabri et al. 2022, algorithm 1: alpha_bar follows a sigmoid. (T,)"""
    return _betas(lambda t: torch.tensor(end / tau).sigmoid() - ((t * (end - start) + start) / tau).sigmoid(), T)


def sigmoid_beta_betas(T: int = T_DEFAULT, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """GeoDiff's sigmoid, where beta itself follows the curve; `diffusers` calls this one "sigmoid". (T,)"""
    return torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid() * (end - start) + start


def _betas(alpha_bar, T: int) -> Tensor:
    """Betas whose running product of (1 - beta) is the curve alpha_bar(t), t in [0, 1], up to a constant factor."""
    curve = alpha_bar(torch.linspace(0, 1, T + 1, dtype=torch.float64))
    return (1 - curve[1:] / curve[:-1]).clamp(max=0.999)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Lin et al. 2023, algorithm 1: shift and stretch sqrt(alpha_bar) so that at t = T nothing is left of the image.

    Linear and scaled-linear betas end a little short of pure noise, while a sampler begins with pure noise: the network has
    never seen it, and keeps the mean brightness that it always saw shining through. sqrt(alpha_bar_1) stays as it was. (T,)
    """
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    ratio = (root[1:] / root[:-1]) ** 2
    return 1 - torch.cat([root[:1] ** 2, ratio])


def linear_zero_snr_betas(T: int = T_DEFAULT, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """`linear_betas`, rescaled by `zero_terminal_snr`. (T,)"""
    return zero_terminal_snr(linear_betas(T, start, end))


def scaled_linear_zero_snr_betas(T: int = T_DEFAULT, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """`scaled_linear_betas`, rescaled by `zero_terminal_snr`. (T,)"""
    return zero_terminal_snr(scaled_linear_betas(T, start, end))


BETAS = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "cosine": cosine_betas,
    "sigmoid": sigmoid_betas,
    "sigmoid_beta": sigmoid_beta_betas,
    "linear_zero_snr": linear_zero_snr_betas,
    "scaled_linear_zero_snr": scaled_linear_zero_snr_betas,
}


class DiscreteSchedule:
    """A schedule of T steps, variance preserving: alpha_t^2 + sigma_t^2 = 1.

    alpha_bar_0 = 1 is put in front, so that index 0 is the clean image and t = 1..T is the t of the DDPM paper.
    The network counts from zero: it is told t - 1.
    """

    def __init__(self, betas: Tensor, name: str = "custom"):
        self.name, self.betas, self.T = name, betas.double(), len(betas)
        self.alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - self.betas).cumprod(0)])  # (T + 1,)
        self.alpha, self.sigma = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()                    # (T + 1,)

    def at(self, t: Tensor) -> NoiseLevel:
        """The level of step t (the paper's t, 0..T). (B,) -> (B,)"""
        return NoiseLevel(t - 1, self.alpha[t], self.sigma[t])

    def at_lam(self, lam: float) -> NoiseLevel:
        """Between two steps the network is told a fraction, found by interpolating t over lambda."""
        lams = (self.alpha[1:] / self.sigma[1:]).log().numpy()[::-1]  # lambda of t = T..1, increasing
        finite = np.isfinite(lams)  # with zero terminal SNR, lambda_T is minus infinity
        time = float(np.interp(lam, lams[finite], np.arange(self.T)[::-1][finite]))
        return NoiseLevel(time, 1 / math.sqrt(1 + math.exp(-2 * lam)), 1 / math.sqrt(1 + math.exp(2 * lam)))

    def sample_levels(self, u: Tensor) -> NoiseLevel:
        """u uniform in [0, 1) -> t uniform in 1..T. (B,) -> (B,)"""
        return self.at((u.cpu().double() * self.T).long() + 1)

    def noise_levels(self, steps: int, spacing: str = "trailing") -> NoiseLevels:
        """The steps a sampler visits, out of T. `spacing` as in Lin et al. 2023, table 2 (and in `diffusers`):

        trailing  T, T - T/steps, ...  always begins at pure noise; best with few steps
        leading   ..., 1 + T/steps, 1  begins a little short of pure noise
        linspace  evenly from T down to 1
        """
        t = torch.cat([self._visit(steps, spacing), torch.zeros(1, dtype=torch.long)])
        return NoiseLevels(self.at(t), self)

    def _visit(self, steps: int, spacing: str) -> Tensor:
        if not 1 <= steps <= self.T:
            raise UserError(f"a sampler on this schedule takes 1 to {self.T} steps, not {steps}")
        if spacing == "trailing":
            return torch.from_numpy(np.arange(self.T, 0, -self.T / steps).round().astype(np.int64))[:steps]
        if spacing == "leading":
            return torch.arange(steps).flip(0) * (self.T // steps) + 1
        if spacing == "linspace":
            return torch.from_numpy(np.linspace(0, self.T - 1, steps).round().astype(np.int64)).flip(0) + 1
        raise UserError(f"unknown spacing '{spacing}'; choose trailing, leading or linspace")


# ------------------------------------------------------------------------------------------- continuous-time schedules


class EDMSchedule:
    """Karras et al. 2022: no shrinking (alpha = 1), and the noise level sigma itself is the time."""

    name = "edm"

    def __init__(self, sigma_min=0.002, sigma_max=80.0, rho=7.0, mean=-1.2, std=1.2):
        self.sigma_min, self.sigma_max, self.rho, self.mean, self.std = sigma_min, sigma_max, rho, mean, std

    def at(self, sigma: Tensor) -> NoiseLevel:
        """The network is told log(sigma) / 4 (table 1, c_noise)."""
        return NoiseLevel(sigma.log() / 4, torch.ones_like(sigma), sigma)

    def at_lam(self, lam: float) -> NoiseLevel:
        return NoiseLevel(-lam / 4, 1.0, math.exp(-lam))

    def sample_levels(self, u: Tensor) -> NoiseLevel:
        """log(sigma) is normal with mean -1.2 and deviation 1.2 (table 1). (B,) -> (B,)"""
        normal = torch.special.ndtri(u.cpu().double().clamp(1e-6, 1 - 1e-6))
        return self.at((self.mean + self.std * normal).exp())

    def noise_levels(self, steps: int, spacing: str = "karras") -> NoiseLevels:
        """Noise levels dense near the clean end (eq. 5)."""
        if steps < 1:
            raise UserError(f"a sampler takes at least 1 step, not {steps}")
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        lo, hi = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        sigma = torch.cat([(hi + ramp * (lo - hi)) ** self.rho, torch.zeros(1, dtype=torch.float64)])
        return NoiseLevels(self.at(sigma), self)


class FlowSchedule:
    """Rectified flow (Liu et al. 2022; Lipman et al. 2023): a straight line from image (t = 0) to noise (t = 1)."""

    name = "flow"

    def __init__(self, shift: float = 1.0):
        self.shift = shift  # > 1 spends more time near the noise, for large images (Esser et al. 2024, eq. 23)

    def at(self, t: Tensor) -> NoiseLevel:
        """The network is told 1000 t."""
        t = self.shift * t / (1 + (self.shift - 1) * t)
        return NoiseLevel(T_DEFAULT * t, 1 - t, t)

    def at_lam(self, lam: float) -> NoiseLevel:
        sigma = 1 / (1 + math.exp(lam))
        return NoiseLevel(T_DEFAULT * sigma, 1 - sigma, sigma)

    def sample_levels(self, u: Tensor) -> NoiseLevel:
        """Logit-normal times: the middle is the hard part (Esser et al. 2024, section 3.1). (B,) -> (B,)"""
        return self.at(torch.special.ndtri(u.cpu().double().clamp(1e-6, 1 - 1e-6)).sigmoid())

    def noise_levels(self, steps: int, spacing: str = "linear") -> NoiseLevels:
        if steps < 1:
            raise UserError(f"a sampler takes at least 1 step, not {steps}")
        return NoiseLevels(self.at(torch.linspace(1, 0, steps + 1, dtype=torch.float64)), self)


Schedule = DiscreteSchedule | EDMSchedule | FlowSchedule
SCHEDULES = (*BETAS, "edm", "flow")


def make_schedule(name: str, T: int = T_DEFAULT) -> Schedule:
    """A schedule by name: one of SCHEDULES."""
    if name in BETAS:
        return DiscreteSchedule(BETAS[name](T), name)
    if name in ("edm", "flow"):
        return EDMSchedule() if name == "edm" else FlowSchedule()
    raise UserError(f"unknown schedule '{name}'; choose one of {', '.join(SCHEDULES)}")
