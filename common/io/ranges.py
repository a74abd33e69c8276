"""What each number on a command line may be.
common.cli checks every flag of every program by its name, before main begins.

A flag of a program that means something else than elsewhere says so itself:

    strength: Annotated[float, Range(0, 10)] = 1.0

A test checks that every number has a range. The upper limits are far above useful values; they exclude what no
computer could hold or finish. What does not fit into the memory of this computer is refused by common/io/memory.py.
"""

import math
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from common.errors import UserError


@dataclass(frozen=True)
class Range:
    """From low to high. above: low itself is excluded. below: high itself is excluded.
    usual: a value to try, where the flag has no default.
    """

    low: float
    high: float
    usual: float | None = None
    above: bool = False
    below: bool = False
    hint: str = ""  # what a value means: "1 is off"
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def refusal(self, value: float) -> str:
        """What the value must be. NaN is on neither side of a bound."""
        low = (
            f"above {show(self.low)}"
            if self.above
            else f"{show(self.low)} or more"
            if self.low == 0
            else f"at least {show(self.low)}"
        )
        high = f"{'below' if self.below else 'at most'} {show(self.high)}"
        if self.high <= 1:
            return f"{low.replace('0 or more', 'at least 0')} and {high}"
        return (high if value > self.low else low) + self.unit

    def advice(self, default: float | None = None) -> str:
        usual = self.usual if default is None or default not in self else default
        return "".join(f"; {part}" for part in (self.hint, "" if usual is None else f"{show(usual)} is usual") if part)


def positive(high: float, usual: float | None = None) -> Range:
    return Range(0, high, usual, above=True)


def share(usual: float | None = None, hint: str = "") -> Range:
    """A share that leaves something: 0 is allowed, 1 is not."""
    return Range(0, 1, usual, below=True, hint=hint)


MAY_BE_EMPTY = "may be empty"  # Annotated[tuple[...], MAY_BE_EMPTY]: no values at all mean something

SEED = Range(0, 10**18 - 1, 0)
STEPS = positive(10_000_000, 1000)  # of a training, which shows its progress
SAMPLER_STEPS = positive(1000, 20)  # of a sampler: schedules have a thousand
PIXELS = Range(4, 4096, 64, unit=" pixels")
COUNT = positive(1_000_000, 100)  # of pictures, points, prompts
SCALE = Range(0, 1000, 3, hint="1 is off")
WEIGHT = Range(0, 1e6, 1, hint="0 is off")
STRENGTH = Range(0, 1, 0.6, above=True)
WIDTH = positive(65_536, 64)
LAYERS = positive(64, 1)

GROUPS = {  # names of flags: what their numbers may be
    # trainings
    "steps train_steps save_every sample_every": STEPS,
    "minutes": positive(525_600, 5),
    "batch_size": positive(65_536, 32),
    "batches": positive(65_536, 16),
    "gradient_accumulation": positive(65_536, 1),
    "lr lrs": positive(100, 1e-3),
    "epochs": positive(100_000, 8),
    "caption_dropout unknown": share(0.1),
    "warmup": share(0.05),
    "ema": share(0.99),
    "clip": positive(1e6, 1.0),
    "min_snr kl perceptual adversarial prior": WEIGHT,
    "workers": Range(0, 64, 2),
    "threads": positive(1024, 2),
    "measure": Range(0, 10_000, 24),
    "adversarial_after": share(0.5),
    "temperature": positive(1000, 0.07),
    "held_out": positive(10_000, 200),
    "class_images": positive(100_000, 64),
    # networks
    "channels latent_channels dim text_dim width widths text_width": WIDTH,
    "image_channels enlarge": positive(64, 3),
    "layers text_layers": LAYERS,
    "mults": positive(64, 2),
    "rank block": positive(4096, 8),
    "alpha": positive(1e6, 8),
    "patch": positive(4096, 4),
    # pictures
    "n n_train samples": COUNT,
    "size": PIXELS,
    "label": Range(0, 1_000_000, 0),
    "columns": positive(10_000, 8),
    "pairs": positive(100_000, 1),
    "poses": positive(10_000, 6),
    "windows holes candidates": positive(10_000, 4),
    "scratches": positive(1000, 6),
    "share": Range(0, 1, 0.5, above=True),
    "threshold": positive(1000, 0.2),
    "mask_blur sweep": Range(0, 1000, 1.0),
    "padding_mask_crop": Range(0, 4096, 32),
    "soft": Range(0, 1000, 2.0),
    # sampling
    "guidance paint_guidance at_guidance w scales": SCALE,
    "rescale": Range(0, 1, 0.7),
    "interval": Range(0, math.inf),
    "strength": STRENGTH,
    "sample_steps sampling_steps jump": SAMPLER_STEPS,
    "resample": positive(1000, 4),
    "scale": Range(-100, 100, 1.0),
    "seed seeds": SEED,
    # films
    "frames": positive(10_000, 24),
    "fps": positive(1000, 12.0),
    "max_kb": positive(1e9, 1000),
    "colours": positive(256, 64),
    # measuring
    "seconds": positive(86_400, 60.0),
    "rounds": positive(1_000_000, 3),
    "busy": Range(0, 1000, 1),
}
RANGES = {name: limits for names, limits in GROUPS.items() for name in names.split()}


def check_numbers(args: Any) -> None:
    """Refuse every number of a program's Args that is outside its range,
    and every list that must not be empty, naming the flag.
    """
    hints = get_type_hints(type(args), include_extras=True)
    for field in fields(args):
        value, hint, flag = getattr(args, field.name), hints[field.name], "--" + field.name.replace("_", "-")
        if value == () and isinstance(field.default, tuple) and field.default and MAY_BE_EMPTY not in marks(hint):
            raise UserError(
                f"{flag} needs at least one value, for instance {flag} {' '.join(quoted(each) for each in field.default[:2])}"
            )
        limits = range_of(field.name, hint)
        if limits is None:
            continue
        for number in numbers(value):
            if number not in limits:
                raise UserError(
                    f"{flag} must be {limits.refusal(number)}, not {plain(number)}{limits.advice(next(numbers(field.default), None))}"
                )


def check_saved(args: Any, source: object) -> None:
    """Refuse settings that were read from a file and are not what a command line could have given."""
    for name, kind in get_type_hints(type(args)).items():
        if not fits(getattr(args, name), kind):
            raise UserError(
                f"{source} sets {name} to {str(getattr(args, name))[:40]!r}, which is no value for it; the file was changed, or is damaged"
            )
    try:
        check_numbers(args)
    except UserError as problem:
        raise UserError(f"{source} is damaged, or was changed: {problem}") from None


def fits(value: Any, rule: Any) -> bool:
    """Whether a value of a JSON file is of this type.
    true is no number; a whole number is also a float; NaN is in no Range.
    """
    origin, parts = get_origin(rule), get_args(rule)
    if rule is Any:
        return True
    if origin is Annotated:
        limits = own_range(rule)
        return fits(value, parts[0]) and (limits is None or value in limits)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return False
        if origin is list or parts[1:] == (...,):
            return all(fits(each, parts[0]) for each in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if rule in (None, type(None)):
        return value is None
    if rule is float:
        return type(value) in (int, float)
    if rule is Path:
        return isinstance(value, (str, Path))
    return type(value) is rule if rule in (int, bool) else isinstance(value, rule)


def check_number(name: str, value: float) -> None:
    """Refuse a number outside the range of its name; for settings that are written as name=value, as in ablate.py."""
    if name in RANGES and value not in RANGES[name]:
        raise UserError(f"{name} must be {RANGES[name].refusal(value)}, not {plain(value)}{RANGES[name].advice()}")


def range_of(name: str, hint: Any) -> Range | None:
    """The range of a field: its own, else that of its name; None where it holds no numbers."""
    return own_range(hint) or (RANGES.get(name) if {int, float} & set(leaves(hint)) else None)


def own_range(hint: Any) -> Range | None:
    """The Range in the metadata of an Annotated type."""
    return next((mark for mark in marks(hint) if isinstance(mark, Range)), None)


def marks(hint: Any) -> tuple:
    """The metadata of an Annotated type; empty for other types."""
    return getattr(hint, "__metadata__", ())


def leaves(hint: Any) -> Iterator[Any]:
    """The plain types inside a type: tuple[int, ...] | None -> int, ..., None"""
    if get_origin(hint) is Annotated:
        yield from leaves(hint.__origin__)
    elif get_origin(hint) is typing.Literal:
        return
    elif get_args(hint):
        for part in get_args(hint):
            yield from leaves(part)
    else:
        yield hint


def numbers(value: Any) -> Iterator[float]:
    """The numbers in a flag's value."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for each in value:
            yield from numbers(each)


def show(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def plain(number: float) -> str:
    """A number for a message; one with very many digits is cut."""
    text = f"{number:g}" if isinstance(number, float) else str(number)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} digits)"


def quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) and (" " in value or not value) else str(value)
