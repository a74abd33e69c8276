"""Samplers. Each is a generator with one contract,

    sampler(denoise, x, path, ...) -> yields Step(x, x0, i) after every update; the last x is the sample

    denoise  (x, level) -> (x0, eps): a `Denoiser`, or any function of this shape. It may be asked at any level
    x        (B, C, H, W) pure noise, as `start` makes it
    path     the noise levels to visit

Intuition: take the noisy picture apart into image and noise, then remix the two with a little less noise.
Algebra: x_t = alpha_t x0 + sigma_t eps, so along a path dx = x0 dalpha + eps dsigma. Euler's method on that line is
DDIM; the trapezoid rule is Heun. Whatever the schedule and the prediction, the same few lines serve.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from common.errors import UserError
from common.random import Noise
from common.schedule import Level, Path, Schedule, combine

Denoise = Callable[[Tensor, Level], tuple[Tensor, Tensor]]
NoiseSource = Callable[[int, Tensor], Tensor]  # (k, x) -> noise of x's shape for step k


class Step(NamedTuple):
    x: Tensor   # (B, C, H, W) the new, less noisy picture
    x0: Tensor  # (B, C, H, W) what the network now thinks the clean picture is
    i: int      # steps done before this one


def start(path: Path, shape: tuple[int, ...], noise: NoiseSource, device="cpu") -> Tensor:
    """Pure noise at the noisiest level of the path: draw 0 of the noise source."""
    noisiest = next(iter(path))
    return noisiest.sigma * noise(0, torch.empty(shape, device=device))


@torch.no_grad()
def ddim(denoise: Denoise, x: Tensor, path: Path, eta: float = 0.0, noise: NoiseSource = Noise(1)) -> Iterator[Step]:
    """Song et al. 2021, eq. 12. eta = 0 is deterministic; eta = 1 is DDPM.

    eq. 16's fresh noise, written with the signal-to-noise ratio so that it holds for every schedule, is
    eta * sigma_next * sqrt(1 - SNR_now / SNR_next).
    """
    for i, (now, then) in enumerate(pairwise(path)):
        x0, eps = denoise(x, now)
        fresh = eta * then.sigma * math.sqrt(max(0.0, 1 - (now.alpha * then.sigma / (now.sigma * then.alpha)) ** 2))
        x = combine(then.alpha, x0, math.sqrt(then.sigma**2 - fresh**2), eps)
        if fresh > 0:  # zero at the last step: the final picture is never noised again
            x = x + fresh * noise(i + 1, x)
        yield Step(x, x0, i)


def ddpm(denoise: Denoise, x: Tensor, path: Path, noise: NoiseSource = Noise(1)) -> Iterator[Step]:
    """Ho et al. 2020, algorithm 2 with sigma_t^2 = beta_tilde_t; on a shorter path its coefficients are respaced."""
    return ddim(denoise, x, path, eta=1.0, noise=noise)


@torch.no_grad()
def heun(denoise: Denoise, x: Tensor, path: Path) -> Iterator[Step]:
    """Karras et al. 2022, algorithm 1 (deterministic): look, step, look again from there, step by the average."""
    for i, (now, then) in enumerate(pairwise(path)):
        da, ds = then.alpha - now.alpha, then.sigma - now.sigma
        x0, eps = denoise(x, now)
        ahead = x + da * x0 + ds * eps
        if then.sigma > 0:
            x0_ahead, eps_ahead = denoise(ahead, then)
            ahead = x + da / 2 * (x0 + x0_ahead) + ds / 2 * (eps + eps_ahead)
        x = ahead
        yield Step(x, x0, i)


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, x: Tensor, path: Path) -> Iterator[Step]:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2: extrapolate x0 from the last two guesses."""
    levels, x0_old = list(path), None
    for i, (now, then) in enumerate(pairwise(levels)):
        x0, _ = denoise(x, now)
        D = x0
        if x0_old is not None and then.sigma > 0:
            r = (now.lam - levels[i - 1].lam) / (then.lam - now.lam)
            D = x0 + (x0 - x0_old) / (2 * r)
        x, x0_old = exponential_step(x, D, now, then), x0
        yield Step(x, x0, i)


@torch.no_grad()
def dpmpp_2s(denoise: Denoise, x: Tensor, path: Path) -> Iterator[Step]:
    """DPM-Solver++(2S), Lu et al. 2022b, algorithm 1 with r = 1/2: two looks a step, the second half-way in lambda."""
    for i, (now, then) in enumerate(pairwise(path)):
        x0, _ = denoise(x, now)
        D = x0
        if now.alpha > 0 and then.sigma > 0:  # lambda is infinite at either end, where there is no half-way
            middle = path.schedule.at_lam((now.lam + then.lam) / 2)
            D, _ = denoise(exponential_step(x, x0, now, middle), middle)
        x = exponential_step(x, D, now, then)
        yield Step(x, x0, i)


def exponential_step(x: Tensor, x0: Tensor, now: Level, then: Level) -> Tensor:
    """Move along the path exactly, were x0 constant: sigma'/sigma x + alpha' (1 - e^-h) x0, h = lambda' - lambda."""
    return combine(then.sigma / now.sigma, x, -then.alpha * math.expm1(now.lam - then.lam), x0)


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m, "dpmpp_2s": dpmpp_2s}
EXAMPLES = "ddpm:1000, ddim:50, ddim:50:eta=0.5, heun:18, dpmpp_2m:20, dpmpp_2s:10"


@dataclass(frozen=True)
class Sampler:
    """A sampler spelled out, ready to run: Sampler.parse("ddim:50:eta=0.5")."""

    name: str
    steps: int
    options: dict[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Sampler":
        """name:steps[:eta=number]"""
        match = re.fullmatch(r"(\w+):(\d+)(?::eta=([0-9]*\.?[0-9]+))?", text.strip())
        if not match or match[1] not in SAMPLERS:
            names = ", ".join(SAMPLERS)
            raise UserError(f"cannot read the sampler '{text}'; write name:steps with one of {names} (e.g. {EXAMPLES})")
        name, steps, eta = match[1], int(match[2]), match[3]
        if eta is not None and name != "ddim":
            raise UserError(f"{name} has no eta, so '{text}' cannot be run; only ddim does (ddim:{steps}:eta={eta})")
        if eta is not None and not 0 <= float(eta) <= 1:
            raise UserError(f"eta must be between 0 and 1, not {eta}")
        return cls(name, steps, {} if eta is None else {"eta": float(eta)})

    def run(self, denoise: Denoise, schedule: Schedule, shape: tuple[int, ...], *seed: int, device="cpu") -> Iterator[Step]:
        """Sample from pure noise. Everything random follows from the seed: one number, or a seed and a batch number."""
        path, noise = schedule.path(self.steps), Noise(*seed)
        x = start(path, shape, noise, device)
        options = self.options | ({"noise": noise} if self.name in ("ddpm", "ddim") else {})
        return SAMPLERS[self.name](denoise, x, path, **options)

    def frames(self, *args, **kwargs) -> list[Tensor]:
        """Every state of `run`, pure noise excluded; the last one is the sample. Each (B, C, H, W) on the CPU."""
        return [step.x.cpu() for step in self.run(*args, **kwargs)]
