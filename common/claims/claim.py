"""A claim of docs/claims.toml, and the values that were measured for it."""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.claims.results import ROOT, number
from common.errors import UserError, explain
from common.io.tables import read_csv

FILE = ROOT / "docs" / "claims.toml"


@dataclass(frozen=True)
class Value:
    """A measured number. low, high: its 95 % interval; None where it was counted, or measured once.

    row, column  where the claim's results file has it, as its text says, together with column_low and column_high
    within       ends of what is possible, (0, 1) for shares
    """

    what: str
    value: float = math.nan
    low: float | None = None
    high: float | None = None
    unit: str = ""
    row: Mapping[str, str] = field(default_factory=dict)
    column: str = ""
    digits: int = 2  # that are shown of a value from a file
    within: tuple[float, float] = (-math.inf, math.inf)
    seeded: bool = True  # whether it changes with the seed

    def shown(self) -> str:
        """160 (158 to 163)"""
        unit = f" {self.unit}" if self.unit else ""
        interval = f" ({self.low:g} to {self.high:g})" if self.low is not None else ""
        return f"{self.value:g}{unit}{interval}"

    def read(self, path: Path) -> "Value":
        """The value with all digits of a results file. UserError if the file does not have it."""
        rows = [row for row in read_csv(path) if all(row.get(k) == v for k, v in self.row.items())]
        if len(rows) != 1 or self.column not in rows[0]:
            raise UserError(f"{path} has not exactly one value of {self.column} for {dict(self.row)}")
        value, *interval = (number(rows[0].get(self.column + end, "")) for end in ("", "_low", "_high"))
        low, high = (None if math.isnan(end) else end for end in interval)
        return replace(self, value=value, low=low, high=high)

    def rounded(self) -> "Value":
        """As it is shown."""

        def cut(number: float) -> float:
            return round(min(max(number, self.within[0]), self.within[1]), self.digits)

        low, high = (None if end is None else cut(end) for end in (self.low, self.high))
        return replace(self, value=cut(self.value), low=low, high=high)


@dataclass(frozen=True)
class Claim:
    """A claim, where it is made, and what this course measured."""

    title: str
    chapter: int
    verdict: str
    source: str  # an address, or "often heard"
    commands: tuple[str, ...]  # programs with their flags, from the project's folder
    values: tuple[Value, ...]
    seed: str = ""  # what repeats a command with the seeds {0}, {1} and {2}; "" where nothing is random
    results: str = ""  # file that the command writes into its --out, kept in the chapter's folder results/

    @property
    def anchor(self) -> str:
        """Its heading in docs/claims.md as a link names it."""
        return re.sub(r"[^\w -]", "", self.title.lower()).replace(" ", "-")

    @property
    def file(self) -> Path | None:
        """The results file that the values are read from."""
        return ROOT / Path(self.commands[0]).parts[0] / "results" / self.results if self.results else None


def read_claims(path: Path = FILE) -> list[Claim]:
    """All claims in their order, with the values of their results files. UserError for a file that cannot be read."""
    try:
        rows: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["claim"]
        claims = [
            Claim(
                **row | {"commands": tuple(row["commands"]), "values": tuple(Value(**each) for each in row["values"])}
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{path} cannot be read as a list of claims ({explain(problem)})") from problem
    return [replace(claim, values=tuple(documented(claim, value) for value in claim.values)) for claim in claims]


def documented(claim: Claim, value: Value) -> Value:
    """The value as it is shown, read from the claim's results file if it is there."""
    return value.read(claim.file).rounded() if value.column and claim.file and claim.file.exists() else value
