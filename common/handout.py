"""Make the course for learners: no solutions, no hidden checks, no mistakes, no history.

  python -m common.handout --chapters 1-3 --out ../handout
  python -m common.handout --chapters 1 --out ../handout --gradescope autograder.zip

In a handout, `python -m common.grade` runs the public tests alone and says so. The handout has the workflow of GitHub
Classroom (.github/workflows/classroom.yml). The zip file for Gradescope is the teacher's: it holds the hidden checks.
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run


@dataclass(frozen=True)
class Args:
    out: Path
    """New folder for the handout."""
    chapters: str = "1-6"
    """Chapters to hand out: 1-3 or 1,4."""
    gradescope: Path | None = None
    """Zip file to write for Gradescope's autograder, for a single chapter."""


def main(args: Args) -> None:
    from common.grade.marking.gradebook import chapters_of
    from common.grade.marking.handing_out import hand_out

    for folder in hand_out(chapters_of(args.chapters), args.out, args.gradescope):
        print(folder)
    if args.gradescope:
        print(args.gradescope)


if __name__ == "__main__":
    run(main, Args)
