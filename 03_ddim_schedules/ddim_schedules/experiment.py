"""What a study consists of: experiments. An experiment is one way to train, one way to sample, and nothing else. Two
experiments with equal settings are the same experiment, so each is computed once, whichever study asks for it.

    grid(read_axes(["schedule=linear,cosine", "steps=10,50", "seed=0,1,2"]))  ->  12 experiments with 6 trainings
"""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from common.diffusion.sampler_spec import Sampler
from common.errors import UserError
from common.io.ranges import check_number


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained. With `model`, a trained network is loaded and the other settings are not used."""

    model: str = ""  # a run folder or any diffusers folder
    data: str = "digits"
    size: int = 16  # pixels a side
    network: str = "unet"  # or dit-PATCH-WIDTH-DEPTH, as in dit-4-128-6
    channels: str = "16-32"  # width of the U-Net at each resolution
    layers: int = 1  # residual blocks of the U-Net at each resolution
    schedule: str = "cosine"
    prediction: str = "v"
    loss: str = "l2"  # l2, l1, huber
    weight: str = "plain"  # plain, p2, min_snr
    learned_variance: bool = False
    optimizer: str = "adamw"  # adamw, sgd, or adamw-sgd: a second training with SGD that starts where AdamW ended
    lr: float = 2e-3  # in adamw-sgd, the learning rate of SGD
    batch_size: int = 32
    train_steps: int = 400
    minutes: float = 0.0  # of training, in the place of train_steps; 0: train_steps count
    stop: float = 1.0  # part of the training that is done; below 1 it ends while the learning rate is still high
    seed: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """`channels` as numbers."""
        return tuple(int(width) for width in self.channels.split("-"))


@dataclass(frozen=True)
class SamplingSettings:
    """How images are sampled from the network."""

    sampler: str = "ddim"  # any sampler of common/diffusion, or ddpm_naive (solvers.py)
    steps: int = 20
    eta: float | None = None  # for ddim
    variance: str = ""  # for ddpm: small, large, learned
    ema: bool = True  # the averaged weights, or the last ones
    clip: str = "static"  # static, none, dynamic
    n: int = 200  # number of images
    noise_seed: int = 0  # seed of the initial noise

    @property
    def spec(self) -> str:
        """The sampler as Sampler.parse reads it, for instance ddim:20:eta=0.5."""
        eta = "" if self.eta is None else f":eta={self.eta:g}"
        return f"{self.sampler}:{self.steps}{eta}" + (f":variance={self.variance}" if self.variance else "")

    @property
    def evaluations(self) -> int:
        """Network evaluations for one image."""
        return self.steps if self.sampler == "ddpm_naive" else Sampler.parse(self.spec).evaluations


@dataclass(frozen=True)
class Experiment:
    training: TrainingSettings
    sampling: SamplingSettings

    def value(self, key: str) -> Any:
        return getattr(self.training if key in TRAINING_KEYS else self.sampling, key)

    def settings(self) -> dict[str, Any]:
        """All settings by name."""
        return asdict(self.training) | asdict(self.sampling)


TRAINING_KEYS = [field.name for field in fields(TrainingSettings)]
SAMPLING_KEYS = [field.name for field in fields(SamplingSettings)]
TYPES: dict[str, Any] = {
    field.name: field.type for field in (*fields(TrainingSettings), *fields(SamplingSettings))
} | {"eta": float}


def short_hash(settings: Any) -> str:
    """The first 12 hexadecimal digits of a hash of JSON values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def training_key(training: TrainingSettings) -> str:
    """The name under which a trained network is cached. For a model folder it depends on the content of the files."""
    if not training.model:
        return short_hash(asdict(training))
    files = sorted(path for path in Path(training.model).rglob("*") if path.suffix in (".json", ".safetensors"))
    return short_hash([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])


# ------------------------------------------------------------------------------------------- reading key=value,value


def read_value(key: str, text: str) -> Any:
    """The value of a setting from its text, for instance 0.5 from "0.5". UserError if it is not of the right type."""
    if key not in TYPES:
        raise UserError(f"'{key}' cannot be varied; choose one of {', '.join(TYPES)}")
    try:
        if TYPES[key] is bool:
            return {"yes": True, "no": False, "true": True, "false": False, "1": True, "0": False}[text.lower()]
        value = TYPES[key](text)
    except (ValueError, KeyError):
        kind = {bool: "yes or no", int: "a whole number", float: "a number"}[TYPES[key]]
        raise UserError(f"{key}={text}: {key} must be {kind}") from None
    if key == "channels" and not all(width.isdecimal() and 0 < int(width) <= 4096 for width in text.split("-")):
        raise UserError(f"channels={text}: write the width at each resolution, multiples of 8, as in channels=16-32")
    if key == "network" and not re.fullmatch(r"unet|dit(-[1-9]\d{0,3}){3}", text):
        raise UserError(f"network={text}: write unet, or the patch, width and depth of a DiT, as in dit-4-128-6")
    if key == "stop" and not 0 < value <= 1:
        raise UserError(f"stop={text}: the part of the training that is done must be above 0 and at most 1")
    # lr=0 is the control of a study: the weights stay as they are; minutes=0 leaves the budget to train_steps
    if isinstance(value, (int, float)) and (key, value) not in (("lr", 0), ("minutes", 0)):
        check_number("seed" if key == "noise_seed" else key, value)
    return value


def read_axes(arguments: Sequence[str]) -> dict[str, list[Any]]:
    """["steps=10,50", "seed=0,1"] -> {"steps": [10, 50], "seed": [0, 1]}"""
    axes = {}
    for argument in arguments:
        key, _, values = argument.partition("=")
        if not values:
            raise UserError(
                f"cannot read '{argument}'; write what to vary as key=value,value, for instance steps=10,20,50"
            )
        axes[key] = [read_value(key, value) for value in values.split(",")]
    return axes


def read_schedule(text: str) -> dict[str, Any]:
    """Training settings from a schedule, or from a schedule and its prediction as in flow:flow and cosine:v."""
    schedule, _, prediction = text.partition(":")
    return {"schedule": schedule} | ({"prediction": prediction} if prediction else {})


def read_sampler(text: str) -> dict[str, Any]:
    """Sampling settings from a sampler as on other command lines, or without its steps as in ddim:eta=0.5."""
    name, *rest = text.split(":")
    if name == "ddpm_naive":
        return {"sampler": name} | ({"steps": read_value("steps", rest[0])} if rest else {})
    has_steps = rest[0].isdigit() if rest else text.startswith(("DDIM_", "DDPM_"))
    if not has_steps and (not rest or "=" in rest[0]):
        text = ":".join([name, "1", *rest])  # the parser needs a number
    parsed = Sampler.parse(text)
    return {"sampler": parsed.name} | ({"steps": parsed.steps} if has_steps else {}) | parsed.options


def grid(axes: dict[str, list[Any]], base: Experiment | None = None) -> list[Experiment]:
    """One experiment for every combination of values. Combinations that differ only in unused settings are merged."""
    base = base or Experiment(TrainingSettings(), SamplingSettings())
    if base.training.model and (
        wrong := [key for key in axes if key in TRAINING_KEYS and key not in ("seed", "data")]
    ):
        raise UserError(f"{', '.join(wrong)} cannot be varied with --model, because its network is already trained")
    combinations = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    return list(dict.fromkeys(with_settings(base, settings) for settings in combinations))


def with_settings(base: Experiment, settings: dict[str, Any]) -> Experiment:
    """The experiment with other settings. Those that its sampler does not use (eta, variance) are reset."""
    settings = settings | (read_sampler(settings["sampler"]) if "sampler" in settings else {})
    settings |= read_schedule(settings["schedule"]) if "schedule" in settings else {}
    if base.training.model and "seed" in settings:  # nothing is trained, so the seed is that of the initial noise
        settings["noise_seed"] = settings.pop("seed")
    training = replace(base.training, **{key: value for key, value in settings.items() if key in TRAINING_KEYS})
    sampling = replace(base.sampling, **{key: value for key, value in settings.items() if key in SAMPLING_KEYS})
    if sampling.sampler != "ddim":
        sampling = replace(sampling, eta=None)
    if sampling.sampler != "ddpm":
        sampling = replace(sampling, variance="")
    return Experiment(training, sampling)
