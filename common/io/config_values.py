"""Which values the settings of a JSON file may have, checked before anything is computed from them:
files come from anywhere.

    check_values({"layers_per_block": "two"}, {"layers_per_block": Annotated[int, Range(1, 64)]}, "this U-Net")
    -> this U-Net sets layers_per_block = 'two', where a whole number from 1 to 64 was expected

A rule is a type hint: int, float, bool, str, None, Any, Path, Literal, list[...], tuple[...], unions, and Annotated
with a Range of common/io/ranges.py.
"""

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin

from common.errors import UserError, shown
from common.io.ranges import Range, fits, own_range, show

Count = Annotated[int, Range(1, 65_536)]  # far more than any network has,
Layers = Annotated[int, Range(1, 64)]  # and nothing that takes forever to build
Share = Annotated[float, Range(0, 1)]
NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    None: "null",
    type(None): "null",
    dict: "an object",
}


def check_values(config: Mapping[str, Any], rules: Mapping[str, Any], whose: str) -> None:
    """Refuse the first setting that its rule does not allow; settings without a rule are left alone."""
    for key, rule in rules.items():
        if key in config and not fits(config[key], rule):
            raise UserError(f"{whose} sets {key} = {shown(config[key])}, where {spelled(rule)} was expected")


class Setting(NamedTuple):
    """A setting of a library's config.json that is translated into one of ours."""

    default: Any  # what the library assumes where the file leaves it out
    rule: Any  # what it may be
    ours: str = ""  # the field of our configuration that has the same value; "" where it is translated by a function


def known_settings(
    config: Mapping[str, Any], settings: Mapping[str, Setting], fixed: Mapping[str, Sequence[Any]], whose: str
) -> dict[str, Any]:
    """The values of all settings: those of config, which are checked, else the defaults.

    fixed   settings that are understood at these values only; every other setting or value is refused
    Keys that begin with an underscore are notes of the library that wrote the file.
    """
    for key, value in config.items():
        if not key.startswith("_") and key not in settings and value not in fixed.get(key, ()):
            refuse(whose, key, value)
    known = {key: config.get(key, setting.default) for key, setting in settings.items()}
    check_values(known, {key: setting.rule for key, setting in settings.items()}, f"this {whose}")
    return known


def refuse(whose: str, key: str, value: object) -> NoReturn:
    """UserError for a setting that has no counterpart."""
    raise UserError(
        f"this {whose} sets {key} = {shown(value)}, which the course's {whose} does not have, so it is not loaded"
    )


def to_ours(known: Mapping[str, Any], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The fields of our configuration that have the same value as a setting."""
    return {setting.ours: known[key] for key, setting in settings.items() if setting.ours}


def to_theirs(ours: object, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The settings that have the same value as a field of our configuration."""
    return {key: getattr(ours, setting.ours) for key, setting in settings.items() if setting.ours}


def spelled(rule: Any) -> str:
    """A rule as an error message describes it."""
    origin, parts = get_origin(rule), get_args(rule)
    if origin is Annotated:
        if (limit := own_range(rule)) is None:
            return spelled(parts[0])
        low, high = "above" if limit.above else "from", "and below" if limit.below else "to"
        return f"{spelled(parts[0])} {low} {show(limit.low)} {high} {show(limit.high)}"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(spelled, parts)))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (list, tuple):
        return f"a list of {spelled(parts[0]).removeprefix('a ').replace('whole number', 'whole numbers').replace('text', 'texts')}"
    return NAMES.get(rule, getattr(rule, "__name__", str(rule)))
