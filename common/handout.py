"""Make the course for learners: no solutions, no hidden checks, no mistakes, no history.

  python -m common.handout --chapters 1-3 --out ../handout
  python -m common.handout --chapters 1 --out ../handout --gradescope autograder.zip

In a handout, `python -m common.grade` runs the public tests alone and says so. The handout has the workflow of GitHub
Classroom (.github/workflows/classroom.yml). The zip file for Gradescope is the teacher's: it holds the hidden checks. The
flags below --gradescope are settings of that autograder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from common.cli import run
from common.errors import UserError
from common.io.ranges import Range


@dataclass(frozen=True)
class Args:
    out: Path
    """New folder for the handout."""
    chapters: str = "1-6"
    """Chapters to hand out: 1-3 or 1,4."""
    gradescope: Path | None = None
    """Zip file to write for Gradescope's autograder, for a single chapter."""
    secret: Path | None = None
    """File with a secret text, from which the seed of each student follows."""
    late_per_day: Annotated[float, Range(0, 1)] = 0.0
    """Share of the points lost for each day after the due date that has begun."""
    late_limit: Annotated[float, Range(0, 1000)] = 365.0
    """Days after the due date from which a hand-in has no points."""
    partial: Annotated[float, Range(0, 1)] = 0.0
    """Share of the points for passing an exercise's public tests, but not the hidden checks."""
    leaderboard: bool = False
    """Put the open-ended exercises on the assignment's leaderboard."""


def main(args: Args) -> None:
    from common.grade.marking.gradebook import chapters_of
    from common.grade.marking.handing_out import Autograder, hand_out

    settings = Autograder(
        secret_of(args.secret), 0, args.late_per_day, args.late_limit, args.partial, args.leaderboard
    )
    if settings != Autograder() and not args.gradescope:
        raise UserError(
            "--secret, --late-per-day, --late-limit, --partial and --leaderboard belong to --gradescope FILE"
        )
    for folder in hand_out(chapters_of(args.chapters), args.out, args.gradescope, settings):
        print(folder)
    if args.gradescope:
        print(args.gradescope)


def secret_of(file: Path | None) -> str:
    try:
        return file.read_text(encoding="utf-8").strip() if file else ""
    except (OSError, UnicodeDecodeError):
        raise UserError(f"the secret {file} cannot be read as a text in UTF-8") from None


if __name__ == "__main__":
    run(main, Args)
