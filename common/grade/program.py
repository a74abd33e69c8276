"""Grade a chapter's exercises: points, and a sentence on each mistake.

  python -m common.grade 01
  python -m common.grade 01 --submission ada.py --json ada.json
  python -m common.grade 01 --submission ada.ipynb

Each exercise must pass the learner's own tests (test_exercises.py) and randomised ones (checks.py). A mistake costs
the points of its own exercise only, and so does a loop that never ends.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Args:
    chapter: tyro.conf.Positional[str]
    """The chapter's number: 01."""
    submission: Path | None = None
    """The Python file or notebook to grade; by default the chapter's exercises/exercises.py."""
    json: Path | None = None
    """File for the result, for spreadsheets and scripts."""
    seconds: float = 60.0
    """Time limit for each exercise."""
    seed: int = 0
    """Random seed of the checks; the same seed gives the same checks."""


def main(args: Args) -> None:
    from common.grade.grader import print_grades

    print_grades(args.chapter, args.submission, args.seed, args.seconds, args.json)
