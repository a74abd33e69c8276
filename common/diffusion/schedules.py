"""Noise schedules. Each is a pair of curves alpha(t), sigma(t):

    x_t = alpha_t * x0 + sigma_t * eps          eps ~ N(0, 1)

alpha_t scales the image and sigma_t is the standard deviation of the noise. Three families cover the field:
`DiscreteSchedule` (DDPM and its descendants), `EDMSchedule` and `FlowSchedule`. All have the same methods:

    schedule.at(t)                 the noise levels at times t (timesteps, noise levels sigma or flow times)
    schedule.sample_levels(u)      noise levels for a training batch, from uniform random numbers u
    schedule.noise_levels(steps)   the noise levels that a sampler visits, noisiest first
    schedule.at_lam(lam)           the level with half-log-SNR lam, for solvers that evaluate between visited levels
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError

T_DEFAULT = 1000  # number of timesteps in the DDPM paper


Number = TypeVar("Number", bound=float | Tensor)


class NoiseLevel(NamedTuple, Generic[Number]):
    """One noise level, of plain numbers while sampling; those of a batch, tensors of shape (B,), while training."""

    time: Number  # the network's time input
    alpha: Number  # scale of the image
    sigma: Number  # standard deviation of the noise

    @property
    def lam(self) -> float:
        """Half the log signal-to-noise ratio, log(alpha / sigma): DPM-Solver's lambda. Infinite if either is zero."""
        if self.sigma == 0 or self.alpha == 0:
            return math.inf if self.sigma == 0 else -math.inf
        return math.log(float(self.alpha) / float(self.sigma))

    def like(self, x: Tensor) -> "NoiseLevel[Tensor]":
        """These (B,) levels on x's device: time (B,); alpha and sigma (B, 1, 1, 1), in x's precision.

        The precision changes on the CPU, because Apple's MPS has no float64. One tensor crosses to the device.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)  # in half precision, neighbouring timesteps would be equal
        fields = torch.stack([torch.as_tensor(field).to(dtype) for field in self])
        time, alpha, sigma = fields.to(x.device)  # each (B,)
        return NoiseLevel(time.float(), append_dims(alpha.to(x.dtype), x), append_dims(sigma.to(x.dtype), x))


def append_dims(values: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), with as many dimensions as x (B, C, H, W): one value for each image of a batch."""
    return values.view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class NoiseLevels:
    """The levels that a sampler visits, noisiest first, clean last. Iterating yields NoiseLevels of plain numbers."""

    levels: NoiseLevel[Tensor]  # each field (steps + 1,) in float64
    schedule: "Schedule"  # for solvers that evaluate between two levels: schedule.at_lam(lam)

    def __len__(self) -> int:
        """The number of steps, one less than the number of levels."""
        return len(self.levels.time) - 1

    def after(self, steps: int) -> "NoiseLevels":
        """The levels that remain after the given number of steps, to begin with a partly noised image (SDEdit)."""
        return NoiseLevels(NoiseLevel(*(field[steps:] for field in self.levels)), self.schedule)

    def __iter__(self) -> Iterator[NoiseLevel[float]]:
        return map(NoiseLevel, *(field.tolist() for field in self.levels))


def add_noise(x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
    """x_t = alpha_t x0 + sigma_t eps (DDPM eq. 4). All (B, C, H, W)."""
    return level.alpha * x0 + level.sigma * eps


def combine(a: float | Tensor, x: Tensor, b: float | Tensor, y: Tensor) -> Tensor:
    """a x + b y, in the precision of x. With plain numbers, as while sampling, in two passes over memory."""
    return x.mul(a).add_(y, alpha=b) if isinstance(b, float) else a * x + b * y


# ------------------------------------------------------------------------------------------------ DDPM and descendants


def linear_betas(T: int = T_DEFAULT, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Ho et al. 2020, section 4. (T,)"""
    return torch.linspace(start, end, T, dtype=torch.float64)


def scaled_linear_betas(T: int = T_DEFAULT, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Linear in sqrt(beta), as in Stable Diffusion (Rombach et al. 2022). (T,)"""
    return torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2


def cosine_betas(T: int = T_DEFAULT, offset: float = 0.008) -> Tensor:
    """Nichol & Dhariwal 2021, eq. 17: alpha_bar is a squared cosine, beta at most 0.999. (T,)"""
    return _betas(lambda t: torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2, T)


def sigmoid_betas(T: int = T_DEFAULT, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    """Jabri et al. 2022, figure 8: alpha_bar is a sigmoid. (T,)"""
    return _betas(lambda t: torch.tensor(end / tau).sigmoid() - ((t * (end - start) + start) / tau).sigmoid(), T)


def sigmoid_beta_betas(T: int = T_DEFAULT, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """GeoDiff's schedule, where beta itself is a sigmoid; `diffusers` calls it "sigmoid". (T,)"""
    return torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid() * (end - start) + start


def _betas(alpha_bar: Callable[[Tensor], Tensor], T: int) -> Tensor:
    """Betas whose cumulative product of (1 - beta) is the curve alpha_bar(t), t in [0, 1], up to a constant factor."""
    curve = alpha_bar(torch.linspace(0, 1, T + 1, dtype=torch.float64))
    return (1 - curve[1:] / curve[:-1]).clamp(max=0.999)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Lin et al. 2023, algorithm 1: shift and scale sqrt(alpha_bar) so that alpha_bar_T = 0; alpha_bar_1 stays. (T,)

    With linear and scaled-linear betas x_T still contains a little of the image, so training never shows pure noise to
    the network. Sampling begins with pure noise, from which the network then predicts an average brightness.
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


BETAS: dict[str, Callable[..., Tensor]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "cosine": cosine_betas,
    "sigmoid": sigmoid_betas,
    "sigmoid_beta": sigmoid_beta_betas,
    "linear_zero_snr": linear_zero_snr_betas,
    "scaled_linear_zero_snr": scaled_linear_zero_snr_betas,
}


class DiscreteSchedule:
    """A schedule of T timesteps, variance preserving: alpha_t^2 + sigma_t^2 = 1.

    alpha_bar_0 = 1 is prepended, so that index 0 is the clean image and t = 1..T is the t of the DDPM paper.
    The network's time input is t - 1, counted from 0 as in the published code.
    """

    def __init__(self, betas: Tensor, name: str = "custom"):
        self.name = name
        self.betas = betas.double()  # (T,)
        self.T = len(betas)
        self.alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - self.betas).cumprod(0)])  # (T + 1,)
        self.alpha = self.alpha_bar.sqrt()  # (T + 1,)
        self.sigma = (1 - self.alpha_bar).sqrt()  # (T + 1,)

    def at(self, t: Tensor) -> NoiseLevel[Tensor]:
        """The levels of timesteps t, the paper's t in 0..T. (B,) -> (B,)"""
        return NoiseLevel(t - 1, self.alpha[t], self.sigma[t])

    def at_lam(self, lam: float) -> NoiseLevel[float]:
        """Between two timesteps the time input is a fraction: t interpolated linearly over lambda."""
        lams = (self.alpha[1:] / self.sigma[1:]).log().numpy()[::-1]  # lambda of t = T..1, increasing
        finite = np.isfinite(lams)  # with zero terminal SNR, lambda_T is minus infinity
        time = float(np.interp(lam, lams[finite], np.arange(self.T)[::-1][finite]))
        return NoiseLevel(time, 1 / math.sqrt(1 + math.exp(-2 * lam)), 1 / math.sqrt(1 + math.exp(2 * lam)))

    def sample_levels(self, u: Tensor) -> NoiseLevel[Tensor]:
        """u uniform in [0, 1) -> t uniform in 1..T. (B,) -> (B,)"""
        return self.at((u.cpu().double() * self.T).long() + 1)

    def noise_levels(self, steps: int, spacing: str = "trailing") -> NoiseLevels:
        """The visited timesteps, `steps` out of T, then 0. `spacing` as in `diffusers` and Lin et al. 2023, table 2:

        trailing  T, T - T/steps, ...  always begins at t = T; best with few steps
        leading   ..., 1 + T/steps, 1  begins below T
        linspace  evenly from T down to 1
        """
        check_steps(steps, self.T)
        t = torch.cat([self._visited(steps, spacing), torch.zeros(1, dtype=torch.long)])
        return NoiseLevels(self.at(t), self)

    def _visited(self, steps: int, spacing: str) -> Tensor:
        """(steps,) timesteps, from the largest down."""
        if spacing == "trailing":
            return torch.from_numpy(np.arange(self.T, 0, -self.T / steps).round().astype(np.int64))[:steps]
        if spacing == "leading":
            return torch.arange(steps).flip(0) * (self.T // steps) + 1
        if spacing == "linspace":
            return torch.from_numpy(np.linspace(0, self.T - 1, steps).round().astype(np.int64)).flip(0) + 1
        raise UserError(f"unknown spacing '{spacing}'; choose trailing, leading or linspace")


# ------------------------------------------------------------------------------------------- continuous-time schedules


@dataclass(frozen=True)
class EDMSchedule:
    """Karras et al. 2022: alpha = 1 (variance exploding), and time is the noise level sigma itself."""

    name: ClassVar[str] = "edm"

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0  # larger: more of the visited levels near sigma_min (eq. 5)
    p_mean: float = -1.2  # mean and standard deviation of log(sigma) in training (table 1)
    p_std: float = 1.2

    def at(self, sigma: Tensor) -> NoiseLevel[Tensor]:
        """The levels sigma; the network's time input is c_noise = log(sigma) / 4 (table 1). (B,) -> (B,)"""
        return NoiseLevel(sigma.log() / 4, torch.ones_like(sigma), sigma)

    def at_lam(self, lam: float) -> NoiseLevel[float]:
        """sigma = e^-lambda, because alpha = 1."""
        return NoiseLevel(-lam / 4, 1.0, math.exp(-lam))

    def sample_levels(self, u: Tensor) -> NoiseLevel[Tensor]:
        """log(sigma) normal with mean p_mean and standard deviation p_std (table 1). (B,) -> (B,)"""
        return self.at((self.p_mean + self.p_std * standard_normal(u)).exp())

    def noise_levels(self, steps: int, spacing: str = "karras") -> NoiseLevels:
        """Evenly spaced in sigma^(1/rho) from sigma_max to sigma_min, then 0 (eq. 5). `spacing` has no other value."""
        check_steps(steps)
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        lo, hi = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        sigma = torch.cat([(hi + ramp * (lo - hi)) ** self.rho, torch.zeros(1, dtype=torch.float64)])
        return NoiseLevels(self.at(sigma), self)


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow (Liu et al. 2022; Lipman et al. 2023): a straight line from image (t = 0) to noise (t = 1)."""

    name: ClassVar[str] = "flow"

    shift: float = 1.0  # above 1: more steps at high noise, for large images (Esser et al. 2024, eq. 23)

    def at(self, t: Tensor) -> NoiseLevel[Tensor]:
        """The levels at times t in [0, 1], after the shift; the network's time input is 1000 t. (B,) -> (B,)"""
        t = self.shift * t / (1 + (self.shift - 1) * t)
        return NoiseLevel(T_DEFAULT * t, 1 - t, t)

    def at_lam(self, lam: float) -> NoiseLevel[float]:
        """log((1 - sigma) / sigma) = lambda solved for sigma."""
        sigma = 1 / (1 + math.exp(lam))
        return NoiseLevel(T_DEFAULT * sigma, 1 - sigma, sigma)

    def sample_levels(self, u: Tensor) -> NoiseLevel[Tensor]:
        """Logit-normal times, dense at t = 1/2, where predicting is hardest (Esser et al. 2024, 3.1). (B,) -> (B,)"""
        return self.at(standard_normal(u).sigmoid())

    def noise_levels(self, steps: int, spacing: str = "linear") -> NoiseLevels:
        """Evenly spaced times from 1 to 0, before the shift. `spacing` has no other value."""
        check_steps(steps)
        return NoiseLevels(self.at(torch.linspace(1, 0, steps + 1, dtype=torch.float64)), self)


def standard_normal(u: Tensor) -> Tensor:
    """Standard normal numbers from u uniform in [0, 1), by inverse transform. (B,) -> (B,) in float64 on the CPU"""
    return torch.special.ndtri(u.cpu().double().clamp(1e-6, 1 - 1e-6))


def check_steps(steps: int, most: int | None = None) -> None:
    """UserError unless a sampler can take this number of steps."""
    if steps < 1 or (most is not None and steps > most):
        raise UserError(
            f"a sampler on this schedule takes {f'1 to {most} steps' if most else 'at least 1 step'}, not {steps}"
        )


# ------------------------------------------------------------------------------------------------------------- by name

Schedule = DiscreteSchedule | EDMSchedule | FlowSchedule
CONTINUOUS = {schedule.name: schedule for schedule in (EDMSchedule, FlowSchedule)}
SCHEDULES = (*BETAS, *CONTINUOUS)


def make_schedule(name: str, T: int = T_DEFAULT) -> Schedule:
    """A schedule by name, one of SCHEDULES. T is the number of timesteps of a discrete schedule."""
    if name in BETAS:
        return DiscreteSchedule(BETAS[name](T), name)
    if name in CONTINUOUS:
        return CONTINUOUS[name]()
    raise UserError(f"unknown schedule '{name}'; choose one of {', '.join(SCHEDULES)}")
