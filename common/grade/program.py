"""Grade a chapter's exercises: points, and a sentence on each mistake.

  python -m common.grade 01
  python -m common.grade 01 --submission ada.py --json ada.json
  python -m common.grade 01 --submission ada.ipynb
  python -m common.grade 01 --only 5            check one exercise alone
  python -m common.grade 01 --hint 5            a question that helps with exercise 5; --step 2 and --step 3 say more

Each exercise must pass the learner's own tests (test_exercises.py) and randomised ones (checks.py). A mistake costs
the points of its own exercise only, and so does a loop that never ends.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from common.errors import UserError
from common.io.ranges import Range


@dataclass(frozen=True)
class Args:
    chapter: tyro.conf.Positional[str]
    """The chapter's number: 01."""
    submission: Path | None = None
    """The Python file or notebook to grade; by default the chapter's exercises/exercises.py."""
    only: Annotated[tuple[int, ...], Range(1, 1000)] = ()
    """Numbers of the exercises to check; by default all."""
    hint: Annotated[int | None, Range(1, 1000)] = None
    """Number of an exercise to print a hint for, instead of grading."""
    step: Literal[1, 2, 3] = 1
    """Step of the hint: 1 a question, 2 a hint, 3 a line of code."""
    json: Path | None = None
    """File for the result, for spreadsheets and scripts."""
    seconds: float = 60.0
    """Time limit for each exercise."""
    seed: int = 0
    """Random seed of the checks; the same seed gives the same checks."""


def main(args: Args) -> None:
    from common.grade import grader, stubs

    if args.hint:
        stubs.print_hint(args.chapter, args.hint, args.step)
    elif args.step > 1:
        raise UserError("--step is a step of a hint; add the number of the exercise, for instance --hint 2")
    else:
        grader.print_grades(args.chapter, args.submission, args.seed, args.seconds, args.json, args.only)
