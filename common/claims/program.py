"""List what practitioners say about diffusion models, with source, verdict, intervals and command, or repeat one.

  python -m common.claims                       all claims: verdict, measured values, source, commands
  python -m common.claims --run 7               run its commands, then show the values to compare with
  python -m common.claims --run 7 --other-seed  the same with other random numbers

The values are in docs/claims.toml, and docs/claims.md explains them.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

from common.io.ranges import Range


@dataclass(frozen=True)
class Args:
    run: Annotated[int | None, Range(1, 1000, 1)] = None
    """Number of a claim whose commands are run."""
    other_seed: bool = False
    """Run with other random numbers than those of the documented values."""
    markdown: bool = False
    """Print the table of docs/claims.md."""


def main(args: Args) -> None:
    from common.claims import listing

    if code := listing.answer(args.run, args.other_seed, args.markdown):
        sys.exit(code)
