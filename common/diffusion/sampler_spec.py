"""Samplers written as text: "ddim:50:eta=0.5" is Sampler("ddim", 50, {"eta": 0.5}).

    name:steps[:option=value]    ddpm:1000, ddpm:250:variance=large, ddim:50:eta=0.5, heun:18

`Sampler.parse` reads this grammar, `str` writes it, and `Sampler.run` samples from pure noise.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from common.diffusion.samplers import SAMPLERS, Denoise, Steps, initial_noise
from common.diffusion.schedules import NoiseLevels, Schedule
from common.errors import UserError
from common.io.memory import need
from common.random import Device, Noise, NoiseSource

EXAMPLES = "ddpm:1000, ddim:50, ddim:50:eta=0.5, heun:18, dpmpp_2m:20, dpmpp_2s:10, euler_a:30, sde:500"
STOCHASTIC = ("ddpm", "ddim", "euler_a", "sde")  # these take a noise source
SECOND_ORDER = ("heun", "dpmpp_2s")  # these evaluate the network twice in every step but the last

HINT = f"write name:steps with one of {', '.join(SAMPLERS)} (e.g. {EXAMPLES})"

Value = float | str


@dataclass(frozen=True)
class Sampler:
    """One sampling method with its number of steps and its options, ready to run."""

    name: str  # one of SAMPLERS
    steps: int
    # keyword arguments of its function: eta of ddim, variance of ddpm
    options: dict[str, Value] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Sampler":
        """Read name:steps[:option=value], or the older spelling DDIM_50_0p5. UserError for anything else."""
        name, steps, *options = split_spec(text)
        if name not in SAMPLERS:
            raise unreadable(text, f"there is none called '{name}'; {HINT}")
        if not re.fullmatch(r"\d+", steps):
            raise unreadable(text, f"after {name} comes a number of steps, not '{steps}'; {HINT}")
        return cls(name, int(steps), parse_options(text, name, steps, options))

    @classmethod
    def parse_plain(cls, text: str) -> "Sampler":
        """The same for a network that will be trained without a learned variance."""
        sampler = cls.parse(text)
        if sampler.options.get("variance") == "learned":
            raise UserError(
                f"this training learns no variance, so '{text}' cannot sample with its network; "
                "choose variance=small or variance=large"
            )
        return sampler

    def __str__(self) -> str:
        values = {key: f"{value:g}" if isinstance(value, float) else value for key, value in self.options.items()}
        return ":".join([self.name, str(self.steps), *(f"{key}={value}" for key, value in values.items())])

    @property
    def evaluations(self) -> int:
        """Network evaluations for one sample (NFE): the fair measure of a sampler's cost."""
        return 2 * self.steps - 1 if self.name in SECOND_ORDER else self.steps

    def run(
        self, denoise: Denoise, schedule: Schedule, shape: tuple[int, ...], *seed: int, device: Device = "cpu"
    ) -> Steps:
        """Sample from pure noise. shape: (B, C, H, W); seed: one number, or a seed and a batch number."""
        levels, noise = schedule.noise_levels(self.steps), Noise(*seed)
        return self.trajectory(denoise, initial_noise(levels, shape, noise, device), levels, noise)

    def trajectory(self, denoise: Denoise, x: Tensor, levels: NoiseLevels, noise: NoiseSource) -> Steps:
        """Sample from x (B, C, H, W) at the first of the given levels, which replace the sampler's number of steps."""
        stochastic = {"noise": noise} if self.name in STOCHASTIC else {}
        return SAMPLERS[self.name](denoise, x, levels, **self.options, **stochastic)

    def frames(
        self, denoise: Denoise, schedule: Schedule, shape: tuple[int, ...], *seed: int, device: Device = "cpu"
    ) -> list[Tensor]:
        """The image after each step of `run`; the last one is the sample. Each (B, C, H, W) on the CPU."""
        frames: list[Tensor] = []
        for step in self.run(denoise, schedule, shape, *seed, device=device):
            if not frames:
                what = f"all {self.steps:,} moments of {len(step.x):,} pictures"
                need(4 * step.x.numel() * self.steps, what, "the number of pictures, or the steps of the sampler")
            frames.append(step.x.cpu())
        return frames


# ---------------------------------------------------------------------------------------------------------- the parser


def split_spec(text: str) -> list[str]:
    """The parts of a sampler's text, [name, steps, option=value, ...]; a missing number of steps is ""."""
    older = re.fullmatch(r"(DDIM|DDPM)_(\d+)(?:_(\d+)p(\d+))?", text.strip())
    if older is None:
        name, *rest = text.strip().split(":")
        return [name, *(rest or [""])]
    name, steps, whole, decimals = older.groups()
    return [name.lower(), steps, *([f"eta={whole}.{decimals}"] if whole and name == "DDIM" else [])]


def parse_options(text: str, name: str, steps: str, options: Sequence[str]) -> dict[str, Value]:
    """["eta=0.5"] -> {"eta": 0.5}. UserError for an option that is unknown, repeated, or another sampler's."""
    values: dict[str, Value] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in OPTIONS or key in values:
            raise unreadable(text, f"'{option}' means nothing after {name}:{steps}; {HINT}")
        owner, parse = OPTIONS[key]
        if name != owner:
            raise UserError(
                f"{name} has no {key}, so '{text}' cannot be run; only {owner} does ({owner}:{steps}:{option})"
            )
        values[key] = parse(value, text)
    return values


def parse_eta(value: str, text: str) -> float:
    try:
        eta = float(value)
    except ValueError:
        raise unreadable(text, "eta must be a number between 0 and 1, as in ddim:50:eta=0.5") from None
    if not 0 <= eta <= 1:
        raise UserError(f"eta must be between 0 and 1, not {value}")
    return eta


def parse_variance(value: str, text: str) -> str:
    if value not in ("small", "large", "learned"):
        raise unreadable(text, "variance is small, large or learned, as in ddpm:1000:variance=large")
    return value


# option: (the sampler that has it, the parser of its value)
OPTIONS: dict[str, tuple[str, Callable[[str, str], Value]]] = {
    "eta": ("ddim", parse_eta),
    "variance": ("ddpm", parse_variance),
}


def unreadable(text: str, problem: str) -> UserError:
    return UserError(f"cannot read the sampler '{text}': {problem}")
