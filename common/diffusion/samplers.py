"""Samplers. Each is a generator with one contract,

    sampler(denoise, x, path, ...) -> yields Step(x, x0, i) after every update; the last x is the sample

    denoise  (x, level) -> Prediction: a `Denoiser`, or any function that returns a pair (x0, eps). It must accept any level
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

from common.diffusion.denoiser import Prediction
from common.diffusion.schedules import NoiseLevel, NoiseLevels, Schedule, combine
from common.diffusion.vlb import log_variance, step_variances
from common.errors import UserError
from common.io.memory import need
from common.random import Noise

Denoise = Callable[[Tensor, NoiseLevel], Prediction | tuple[Tensor, Tensor]]
NoiseSource = Callable[[int, Tensor], Tensor]  # (k, x) -> noise of x's shape for step k


class Step(NamedTuple):
    x: Tensor   # (B, C, H, W) the new, less noisy picture
    x0: Tensor  # (B, C, H, W) what the network now thinks the clean picture is
    i: int      # steps done before this one


def start(path: NoiseLevels, shape: tuple[int, ...], noise: NoiseSource, device="cpu") -> Tensor:
    """Pure noise at the noisiest level of the path: draw 0 of the noise source."""
    noisiest = next(iter(path))
    return noisiest.sigma * noise(0, torch.empty(shape, device=device))


@torch.no_grad()
def ddim(denoise: Denoise, x: Tensor, path: NoiseLevels, eta: float = 0.0, noise: NoiseSource = Noise(1)) -> Iterator[Step]:
    """Song et al. 2021, eq. 12. eta = 0 is deterministic; eta = 1 is DDPM.

    The deviation of the fresh noise is eta sqrt(beta_tilde) (eq. 16).
    """
    for i, (now, then) in enumerate(pairwise(path)):
        x0, eps = denoise(x, now)[:2]
        fresh = eta * math.sqrt(max(0.0, step_variances(now, then)[1]))
        x = combine(then.alpha, x0, math.sqrt(then.sigma**2 - fresh**2), eps)
        if fresh > 0:  # zero at the last step: the final picture is never noised again
            x = x + fresh * noise(i + 1, x)
        yield Step(x, x0, i)


@torch.no_grad()
def ddpm(denoise: Denoise, x: Tensor, path: NoiseLevels, noise: NoiseSource = Noise(1), variance: str | None = None) -> Iterator[Step]:
    """Ho et al. 2020, algorithm 2. On a shorter path its coefficients are respaced: they are those of the steps it takes.

    variance  of the fresh noise: "small" is beta_tilde, right if the data were one image; "large" is beta, right if they were
              pure noise (section 3.2); "learned" is the network's own opinion, taken where it has one
    """
    for i, (now, then) in enumerate(pairwise(path)):
        x0, eps, v = Prediction(*denoise(x, now))
        beta, beta_tilde = step_variances(now, then)
        x = combine(then.alpha, x0, math.sqrt(max(0.0, then.sigma**2 - beta_tilde)), eps)  # the mean is the same for all
        if then.sigma > 0:
            x = x + deviation(variance, beta, beta_tilde, v) * noise(i + 1, x)
        yield Step(x, x0, i)


def deviation(variance: str | None, beta: float, beta_tilde: float, v: Tensor | None) -> float | Tensor:
    """Standard deviation of the noise that `ddpm` adds."""
    if variance == "learned" and v is None:
        raise UserError("this network predicts no variance; choose variance=small or variance=large")
    if v is not None and variance in (None, "learned"):
        return (log_variance(v, math.log(beta), math.log(beta_tilde)) / 2).exp()
    return math.sqrt(beta if variance == "large" else beta_tilde)


def euler_a(denoise: Denoise, x: Tensor, path: NoiseLevels, noise: NoiseSource = Noise(1)) -> Iterator[Step]:
    """Euler ancestral, as the samplers' folklore has it (Karras et al.'s coordinates, code by K. Crowson): a step of the ODE
    down to a level below the next one, then noise up to the next. It is DDIM with eta = 1, and so DDPM, to the last digit;
    03_ddim_schedules/ddim_schedules/solvers.py writes it out in its own coordinates.
    """
    return ddim(denoise, x, path, eta=1.0, noise=noise)


@torch.no_grad()
def sde(denoise: Denoise, x: Tensor, path: NoiseLevels, noise: NoiseSource = Noise(1)) -> Iterator[Step]:
    """Euler-Maruyama on the reverse-time SDE (Song et al. 2021b, eq. 6), whose forward one is dx = f x dt + g dw.

        dx = (f x - g^2 score) dt + g dw        score = -eps / sigma,  f = d log(alpha) / dt,  g^2 = d(sigma^2)/dt - 2 f sigma^2

    Drift and noise are taken as constant over a step, and so it needs many: what DDPM knows of the step in between is lost.
    """
    for i, (now, then) in enumerate(pairwise(path)):
        x0, eps = denoise(x, now)[:2]
        if now.alpha == 0:  # the drift is infinite where nothing of the image is left: there the ODE steps in
            x = combine(then.alpha, x0, then.sigma, eps)
        else:
            f = math.log(then.alpha / now.alpha)                        # f dt; time runs backwards, so it is above zero
            g2 = now.sigma**2 - then.sigma**2 + 2 * f * now.sigma**2    # g^2 |dt|
            x = combine(1 + f, x, -g2 / now.sigma, eps)
            if then.sigma > 0:
                x = x + math.sqrt(g2) * noise(i + 1, x)
        yield Step(x, x0, i)


@torch.no_grad()
def heun(denoise: Denoise, x: Tensor, path: NoiseLevels) -> Iterator[Step]:
    """Karras et al. 2022, algorithm 1 (deterministic): look, step, look again from there, step by the average."""
    for i, (now, then) in enumerate(pairwise(path)):
        da, ds = then.alpha - now.alpha, then.sigma - now.sigma
        x0, eps = denoise(x, now)[:2]
        ahead = x + da * x0 + ds * eps
        if then.sigma > 0:
            x0_ahead, eps_ahead = denoise(ahead, then)[:2]
            ahead = x + da / 2 * (x0 + x0_ahead) + ds / 2 * (eps + eps_ahead)
        x = ahead
        yield Step(x, x0, i)


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, x: Tensor, path: NoiseLevels) -> Iterator[Step]:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2: extrapolate x0 from the last two guesses."""
    levels, x0_old = list(path), None
    for i, (now, then) in enumerate(pairwise(levels)):
        x0 = denoise(x, now)[0]
        D = x0
        if x0_old is not None and then.sigma > 0:
            r = (now.lam - levels[i - 1].lam) / (then.lam - now.lam)
            D = x0 + (x0 - x0_old) / (2 * r)
        x, x0_old = exponential_step(x, D, now, then), x0
        yield Step(x, x0, i)


@torch.no_grad()
def dpmpp_2s(denoise: Denoise, x: Tensor, path: NoiseLevels) -> Iterator[Step]:
    """DPM-Solver++(2S), Lu et al. 2022b, algorithm 1 with r = 1/2: two looks a step, the second half-way in lambda."""
    for i, (now, then) in enumerate(pairwise(path)):
        x0 = denoise(x, now)[0]
        D = x0
        if now.alpha > 0 and then.sigma > 0:  # lambda is infinite at either end, where there is no half-way
            middle = path.schedule.at_lam((now.lam + then.lam) / 2)
            D = denoise(exponential_step(x, x0, now, middle), middle)[0]
        x = exponential_step(x, D, now, then)
        yield Step(x, x0, i)


def exponential_step(x: Tensor, x0: Tensor, now: NoiseLevel, then: NoiseLevel) -> Tensor:
    """Move along the path exactly, were x0 constant: sigma'/sigma x + alpha' (1 - e^-h) x0, h = lambda' - lambda."""
    return combine(then.sigma / now.sigma, x, -then.alpha * math.expm1(now.lam - then.lam), x0)


@torch.no_grad()
def ddim_inverse(denoise: Denoise, x: Tensor, path: NoiseLevels) -> Iterator[Step]:
    """DDIM backwards: from the clean image x to the noise that `ddim` would draw it from (Song et al. 2021, section 4.3).

    To undo a step exactly one would need the noise that the network sees in the picture one is about to make; what it sees in
    the picture at hand, asked at the level to come, stands in for it. So this is the inverse only in the limit of many steps.
    Ask a denoiser that does not clip: what is cut off cannot be brought back.
    """
    for i, (now, then) in enumerate(pairwise(reversed(list(path)))):
        x0, eps = denoise(x, then)[:2]
        x = combine(then.alpha / now.alpha, x, then.sigma - then.alpha / now.alpha * now.sigma, eps)
        yield Step(x, x0, i)


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m, "dpmpp_2s": dpmpp_2s, "euler_a": euler_a, "sde": sde}
RANDOM = ("ddpm", "ddim", "euler_a", "sde")  # these draw fresh noise as they go
EXAMPLES = "ddpm:1000, ddim:50, ddim:50:eta=0.5, heun:18, dpmpp_2m:20, dpmpp_2s:10, euler_a:30, sde:500"


def read_eta(value: str, text: str) -> float:
    try:
        eta = float(value)
    except ValueError:
        raise UserError(f"cannot read the sampler '{text}': eta must be a number between 0 and 1, as in ddim:50:eta=0.5") from None
    if not 0 <= eta <= 1:
        raise UserError(f"eta must be between 0 and 1, not {value}")
    return eta


def read_variance(value: str, text: str) -> str:
    if value not in ("small", "large", "learned"):
        raise UserError(f"cannot read the sampler '{text}': variance is small, large or learned, as in ddpm:1000:variance=large")
    return value


OPTIONS = {"ddim": {"eta": read_eta}, "ddpm": {"variance": read_variance}}  # what can stand behind the steps


@dataclass(frozen=True)
class Sampler:
    """A sampler spelled out, ready to run: Sampler.parse("ddim:50:eta=0.5")."""

    name: str
    steps: int
    options: dict[str, float | str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Sampler":
        """name:steps[:option=value], or the older spelling DDIM_50_0p5."""
        older = re.fullmatch(r"(DDIM|DDPM)_(\d+)(?:_(\d+)p(\d+))?", text.strip())
        words = text.strip().split(":")
        if older:
            name, steps, whole, tenths = older.groups()
            words = [name.lower(), steps] + ([f"eta={whole}.{tenths}"] if whole and name == "DDIM" else [])
        name, steps, options = words[0], (words + [""])[1], words[2:]
        write = f"write name:steps with one of {', '.join(SAMPLERS)} (e.g. {EXAMPLES})"
        if name not in SAMPLERS:
            raise UserError(f"cannot read the sampler '{text}': there is none called '{name}'; {write}")
        if not re.fullmatch(r"\d+", steps):
            raise UserError(f"cannot read the sampler '{text}': after {name} comes a number of steps, not '{steps}'; {write}")
        read = {}
        for option in options:
            key, _, value = option.partition("=")
            if key not in ("eta", "variance") or key in read:
                raise UserError(f"cannot read the sampler '{text}': '{option}' means nothing after {name}:{steps}; {write}")
            if key not in OPTIONS.get(name, {}):
                only = next(other for other in OPTIONS if key in OPTIONS[other])
                raise UserError(f"{name} has no {key}, so '{text}' cannot be run; only {only} does ({only}:{steps}:{option})")
            read[key] = OPTIONS[name][key](value, text)
        return cls(name, int(steps), read)

    @classmethod
    def parse_plain(cls, text: str) -> "Sampler":
        """The same for a network that is yet to be trained, and will not have learned a variance."""
        sampler = cls.parse(text)
        if sampler.options.get("variance") == "learned":
            raise UserError(f"this training learns no variance, so '{text}' cannot sample with its network; choose variance=small or variance=large")
        return sampler

    def __str__(self) -> str:
        return ":".join([self.name, str(self.steps), *(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                                                      for key, value in self.options.items())])  # fmt: skip

    @property
    def evaluations(self) -> int:
        """How often the network is asked for one picture: the fair measure of a sampler's cost."""
        return 2 * self.steps - 1 if self.name in ("heun", "dpmpp_2s") else self.steps

    def run(self, denoise: Denoise, schedule: Schedule, shape: tuple[int, ...], *seed: int, device="cpu") -> Iterator[Step]:
        """Sample from pure noise. Everything random follows from the seed: one number, or a seed and a batch number."""
        path, noise = schedule.noise_levels(self.steps), Noise(*seed)
        x = start(path, shape, noise, device)
        options = self.options | ({"noise": noise} if self.name in RANDOM else {})
        return SAMPLERS[self.name](denoise, x, path, **options)

    def frames(self, *args, **kwargs) -> list[Tensor]:
        """Every state of `run`, pure noise excluded; the last one is the sample. Each (B, C, H, W) on the CPU."""
        frames = []
        for step in self.run(*args, **kwargs):
            if not frames:
                need(4 * step.x.numel() * self.steps, f"all {self.steps:,} moments of {len(step.x):,} pictures", "the number of pictures, or the steps of the sampler")
            frames.append(step.x.cpu())
        return frames
