"""What a study consists of: cells. A cell is one way to train, one way to sample, and nothing else; two cells that say the
same are the same cell, so that each is computed once, whichever study asks for it.

    grid("schedule=linear,cosine", "sampler=ddim", "steps=10,50", "seed=0,1,2")  ->  12 cells, of 6 trainings
"""

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.io.ranges import check_number


@dataclass(frozen=True)
class Training:
    """How a network is made. With `model`, it is not made but opened, and the rest says nothing."""

    model: str = ""               # a run folder or any diffusers folder
    data: str = "digits"
    size: int = 16                # pixels a side
    channels: str = "16-32"       # width of the U-Net at each resolution
    layers: int = 1
    schedule: str = "cosine"
    prediction: str = "v"
    loss: str = "l2"              # l2, l1, huber
    weight: str = "plain"         # plain, p2, min_snr
    learned_variance: bool = False
    optimizer: str = "adamw"      # adamw, sgd, or adamw-sgd: a second training with SGD that begins where AdamW ended
    lr: float = 2e-3              # of SGD, in adamw-sgd
    batch_size: int = 32
    train_steps: int = 400
    seed: int = 0


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn from it."""

    sampler: str = "ddim"         # any of common/diffusion/samplers.py, or ddpm_naive (solvers.py)
    steps: int = 20
    eta: float | None = None      # of ddim
    variance: str = ""            # of ddpm: small, large, learned
    ema: bool = True              # the averaged weights, or the last ones
    clip: str = "static"          # static, none, dynamic
    n: int = 200
    noise_seed: int = 0           # of the noise the pictures begin with; the same for all, unless varied

    @property
    def text(self) -> str:
        """As Sampler.parse reads it."""
        eta = "" if self.eta is None else f":eta={self.eta:g}"
        return f"{self.sampler}:{self.steps}{eta}" + (f":variance={self.variance}" if self.variance else "")


@dataclass(frozen=True)
class Cell:
    training: Training
    sampling: Sampling

    def value(self, key: str) -> Any:
        return getattr(self.training if key in KEYS["training"] else self.sampling, key)

    def flat(self) -> dict[str, Any]:
        return asdict(self.training) | asdict(self.sampling)


KEYS = {"training": [f.name for f in fields(Training)], "sampling": [f.name for f in fields(Sampling)]}
TYPES = {f.name: f.type for f in (*fields(Training), *fields(Sampling))} | {"eta": float}


def short_hash(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def key_of(training: Training) -> str:
    """The name under which a trained network is kept. A model's own files count, not only where it lies."""
    if not training.model:
        return short_hash(asdict(training))
    files = sorted(p for p in Path(training.model).rglob("*") if p.suffix in (".json", ".safetensors"))
    return short_hash([(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])


def read_value(key: str, text: str) -> Any:
    """'0.5' -> 0.5 for a key whose values are numbers, and so on."""
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
    if isinstance(value, (int, float)) and (key, value) != ("lr", 0):  # a rate of zero is the control of a study: nothing is learned
        check_number("seed" if key == "noise_seed" else key, value)
    return value


def read_axes(words: list[str] | tuple[str, ...]) -> dict[str, list[Any]]:
    """["steps=10,50", "seed=0,1"] -> {"steps": [10, 50], "seed": [0, 1]}"""
    axes = {}
    for word in words:
        key, equals, values = word.partition("=")
        if not equals or not values:
            raise UserError(f"cannot read '{word}'; write what to vary as key=value,value, for instance steps=10,20,50")
        axes[key] = [read_value(key, value) for value in values.split(",")]
    return axes


def spell(word: str) -> dict[str, Any]:
    """A sampler may be spelled as on other command lines: ddim:50:eta=0.5, or ddim:eta=0.5 where the steps are varied apart."""
    from common.diffusion.sampler_spec import Sampler

    name, *rest = word.split(":")
    if name == "ddpm_naive":
        return {"sampler": name} | ({"steps": read_value("steps", rest[0])} if rest else {})
    if ":" not in word and not word.startswith(("DDIM_", "DDPM_")):
        word, rest = f"{word}:1", ["without steps"]
    elif rest and not rest[0].isdigit():
        word = ":".join([name, "1", *rest])
    parsed = Sampler.parse(word)
    steps = {} if rest and not rest[0].isdigit() else {"steps": parsed.steps}
    return {"sampler": parsed.name} | steps | parsed.options


def grid(axes: dict[str, list[Any]], base: Cell | None = None) -> list[Cell]:
    """One cell for every combination. What a sampler has no use for (eta, variance) is left out, and doubles are dropped."""
    base = base or Cell(Training(), Sampling())
    if base.training.model and (wrong := [key for key in axes if key in KEYS["training"] and key not in ("seed", "data")]):
        raise UserError(f"{', '.join(wrong)} cannot be varied with --model, because its network is already trained")
    cells = {}
    for values in itertools.product(*axes.values()):
        cell = cell_of(dict(zip(axes, values, strict=True)), base)
        cells[short_hash(cell.flat())] = cell
    return list(cells.values())


def cell_of(settings: dict[str, Any], base: Cell) -> Cell:
    settings = settings | (spell(settings["sampler"]) if "sampler" in settings else {})
    if base.training.model and "seed" in settings:  # no training, so that the seed can only be that of the noise
        settings["noise_seed"] = settings.pop("seed")
    training = replace(base.training, **{k: v for k, v in settings.items() if k in KEYS["training"]})
    sampling = replace(base.sampling, **{k: v for k, v in settings.items() if k in KEYS["sampling"]})
    if sampling.sampler != "ddim":
        sampling = replace(sampling, eta=None)
    if sampling.sampler != "ddpm":
        sampling = replace(sampling, variance="")
    return Cell(training, sampling)
