"""List what practitioners say about diffusion models, with source, verdict, intervals and command, or repeat one.

  python -m common.claims                           all claims: verdict, measured values, source, commands
  python -m common.claims --run 7                   run its commands, then show the values to compare with
  python -m common.claims --run 7 --seed 1          the same with other random numbers
  python -m common.claims --run 7 --seed 1 --record and keep the comparison in docs/repeated_claims.csv
  python -m common.claims --tables                  write the tables of RESULTS.md and docs/claims.md from their files

The values are in docs/claims.toml and in results files of the chapters, and docs/claims.md explains them.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

from common.io.ranges import Range


@dataclass(frozen=True)
class Args:
    run: Annotated[int | None, Range(1, 1000, 1)] = None
    """Number of a claim whose commands are run."""
    seed: Annotated[int | None, Range(0, 2**31, 1)] = None
    """Random seed of the repetition; for trainings the first of three. By default that of the documented values."""
    record: bool = False
    """Keep the results of --run: as the claim's results file, or, with --seed, in docs/repeated_claims.csv."""
    tables: bool = False
    """Write all tables of RESULTS.md and docs/claims.md that are made from results files."""


def main(args: Args) -> None:
    from common.claims import listing

    if code := listing.answer(args.run, args.seed, args.record, args.tables):
        sys.exit(code)
