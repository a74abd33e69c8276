"""docs/claims.toml, read, printed and repeated."""

import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, explain

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "claims.toml"


@dataclass(frozen=True)
class Value:
    """A measured number. low, high: its 95 % interval; None where it was counted, or measured once."""

    what: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""

    def shown(self) -> str:
        """160 (158 to 163)"""
        unit = f" {self.unit}" if self.unit else ""
        interval = f" ({self.low:g} to {self.high:g})" if self.low is not None else ""
        return f"{self.value:g}{unit}{interval}"


@dataclass(frozen=True)
class Claim:
    """A claim, where it is made, and what this course measured."""

    title: str
    chapter: int
    verdict: str
    source: str  # an address, or "often heard"
    commands: tuple[str, ...]  # programs with their flags, from the project's folder
    values: tuple[Value, ...]
    other_seed: str = ""  # what repeats a command with other random numbers; "" where nothing is random

    @property
    def anchor(self) -> str:
        """Its heading in docs/claims.md as a link names it."""
        return re.sub(r"[^\w -]", "", self.title.lower()).replace(" ", "-")


def read_claims(path: Path = FILE) -> list[Claim]:
    """All claims in their order. UserError for a file that cannot be read."""
    try:
        rows: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["claim"]
        return [
            Claim(
                **row | {"commands": tuple(row["commands"]), "values": tuple(Value(**each) for each in row["values"])}
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{path} cannot be read as a list of claims ({explain(problem)})") from problem


def answer(run: int | None, other_seed: bool, markdown: bool) -> int:
    """Do what the flags ask for. Returns the exit code of a command that was run, else 0."""
    claims = read_claims()
    if other_seed and run is None:
        raise UserError("--other-seed needs --run with the number of a claim")
    if markdown:
        print(table(claims))
    elif run is None:
        for number, claim in enumerate(claims, 1):
            print(f"{number:2}  {block(claim)}\n")
    elif not 1 <= run <= len(claims):
        raise UserError(f"there is no claim {run}; choose 1 to {len(claims)}")
    else:
        return repeat(claims[run - 1], other_seed)
    return 0


def block(claim: Claim) -> str:
    """A claim in a few lines: title, verdict, measured values with their intervals, source, commands."""
    measured = [f"{value.what}: {value.shown()}" for value in claim.values] or ["nothing yet"]
    commands = [f"python {command}" for command in claim.commands]
    named = {"verdict": [claim.verdict], "measured": measured, "source": [claim.source], "command": commands}
    lines = [f"    {'' if k else name:9} {text}" for name, texts in named.items() for k, text in enumerate(texts)]
    return "\n".join([f"{claim.title} (chapter {claim.chapter}; docs/claims.md#{claim.anchor})", *lines])


def arguments(claim: Claim, other_seed: bool = False) -> list[list[str]]:
    """The words of each command. UserError where other random numbers are asked for and nothing is random."""
    if other_seed and not claim.other_seed:
        raise UserError(f"the measurement of '{claim.title}' has no seed to change; leave out --other-seed")
    found = []
    for words in map(shlex.split, claim.commands):
        # key=value stands before the flags
        flags = next((k for k, word in enumerate(words) if word.startswith("--")), len(words))
        found.append([*words[:flags], *(shlex.split(claim.other_seed) if other_seed else []), *words[flags:]])
    return found


def repeat(claim: Claim, other_seed: bool) -> int:
    """Run the commands one after the other from the project's folder. Returns the first exit code that is not 0."""
    for words in arguments(claim, other_seed):
        print(f"+ python {shlex.join(words)}", flush=True)
        if code := subprocess.run([sys.executable, *words], cwd=ROOT).returncode:
            return code
    print(f"\nto compare with: {block(claim)}")
    return 0


def table(claims: list[Claim]) -> str:
    """The table of docs/claims.md."""
    lines = ["| claim | chapter | verdict |", "|---|---|---|"]
    return "\n".join(
        lines + [f"| [{each.title}](#{each.anchor}) | {each.chapter} | {each.verdict} |" for each in claims]
    )
