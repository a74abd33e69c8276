"""A claim's commands run again, and their results against the documented ones."""

import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.claims.claim import Claim, Value
from common.claims.results import ROOT
from common.errors import UserError
from common.io.tables import print_table, read_csv, write_csv

REPEATED = ROOT / "docs" / "repeated_claims.csv"
RUNS = Path("runs") / "claims"  # results of commands that are run, from the project's folder


@dataclass(frozen=True)
class Repetition:
    """A value that was measured again with another seed: a row of docs/repeated_claims.csv."""

    claim: str
    what: str
    seed: int
    value: float
    low: float
    high: float
    documented: float
    documented_low: float
    documented_high: float
    agrees: str  # yes, if the 95 % interval of the difference contains 0
    inside: str  # yes, if the repeated value lies in the documented interval


def arguments(claim: Claim, seed: int | None = None, out: Path | None = None) -> list[list[str]]:
    """The words of each command. UserError where a seed is asked for and nothing is random."""
    if seed is not None and not claim.seed:
        raise UserError(f"the measurement of '{claim.title}' has no seed to change; leave out --seed")
    changes = shlex.split(claim.seed.format(seed, seed + 1, seed + 2)) if seed is not None else []
    changes += ["--out", str(out)] if out else []
    found = []
    for words in map(shlex.split, claim.commands):
        # key=value stands before the flags
        flags = next((k for k, word in enumerate(words) if word.startswith("--")), len(words))
        found.append([*words[:flags], *changes, *words[flags:]])
    return found


def repeat(position: int, claim: Claim, seed: int | None, record: bool) -> int:
    """Run the commands one after the other from the project's folder, and compare what they have written.

    record  keep the results: without a seed as the claim's results file, else as rows of docs/repeated_claims.csv
    Returns the first exit code that is not 0.
    """
    if record and not claim.results:
        raise UserError(f"the measurement of '{claim.title}' writes no results file; leave out --record")
    out = RUNS / (f"{position}" if seed is None else f"{position}-seed-{seed}") if claim.results else None
    for words in arguments(claim, seed, out):
        print(f"+ python {shlex.join(words)}", flush=True)
        if code := subprocess.run([sys.executable, *words], cwd=ROOT).returncode:
            return code
    if not out or not claim.file:
        return 0
    written = ROOT / out / claim.results
    if claim.file.exists():
        found = compare(claim, written, 0 if seed is None else seed)
        print_table([shown(each) for each in found])
        print(f"\n{summary(found)}")
        if record and seed is not None:
            kept = [row for row in read_repetitions() if (row.claim, row.seed) != (claim.title, seed)]
            write_csv(REPEATED, [asdict(row) for row in [*kept, *found]])
    if record and seed is None:
        claim.file.parent.mkdir(exist_ok=True)
        shutil.copyfile(written, claim.file)
    return 0


def compare(claim: Claim, written: Path, seed: int) -> list[Repetition]:
    """The values with an interval in the claim's results file, against those of another one."""
    assert claim.file
    found = []
    for value in claim.values:
        if not value.column or not value.seeded:
            continue
        old, new = value.read(claim.file), value.read(written)
        if old.low is None or old.high is None or new.low is None or new.high is None:
            continue
        row = (new.value, new.low, new.high, old.value, old.low, old.high)
        agrees, inside = agree(new, old), old.low <= new.value <= old.high
        found.append(
            Repetition(claim.title, value.what, seed, *row, *("yes" if each else "no" for each in (agrees, inside)))
        )
    return found


def agree(one: Value, other: Value) -> bool:
    """Whether the 95 % interval of the difference contains 0, if the two means are independent."""
    halves = [
        (value.high - value.low) / 2 for value in (one, other) if value.high is not None and value.low is not None
    ]
    return abs(one.value - other.value) <= math.hypot(*halves)


def read_repetitions() -> list[Repetition]:
    """The rows of docs/repeated_claims.csv."""
    if not REPEATED.exists():
        return []

    def typed(name: str, text: str) -> Any:
        return text if name in ("claim", "what", "agrees", "inside") else int(text) if name == "seed" else float(text)

    return [Repetition(**{name: typed(name, text) for name, text in row.items()}) for row in read_csv(REPEATED)]


def summary(rows: Sequence[Repetition]) -> str:
    """5 of 5 values agree with the documented ones; 4 of them lie within the documented interval"""
    agreeing, within = (
        sum(text == "yes" for text in texts) for texts in zip(*((r.agrees, r.inside) for r in rows), strict=True)
    )
    return f"{agreeing} of {len(rows)} values agree with the documented ones; {within} of {len(rows)} lie within the documented interval"


def summaries(claim: Claim) -> list[str]:
    """What docs/repeated_claims.csv says of a claim: a line for each seed."""
    rows = [row for row in read_repetitions() if row.claim == claim.title]
    seeds = dict.fromkeys(row.seed for row in rows)
    return [f"seed {seed}: {summary([row for row in rows if row.seed == seed])}" for seed in seeds]


def shown(row: Repetition) -> dict[str, str]:
    """A row of the printed table, and of the one in docs/claims.md."""
    return {
        "value": row.what,
        "documented": interval(row.documented, row.documented_low, row.documented_high),
        "repeated": interval(row.value, row.low, row.high),
        "seed": str(row.seed),
        "agrees": row.agrees,
        "inside": row.inside,
    }


def interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} ({low:.2f} to {high:.2f})"
