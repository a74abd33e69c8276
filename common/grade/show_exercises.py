"""See the answers to a chapter's exercises at work: one picture, with a panel for each.
A wrong formula often looks wrong.

  python -m common.grade.show_exercises 01
  python -m common.grade.show_exercises 01 --submission mine.py --out mine.png

Each panel (exercises/panels.py) uses your answer to its own exercise, and the solutions to all others.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from common.cli import run


@dataclass(frozen=True)
class Args:
    chapter: tyro.conf.Positional[str]
    """The chapter's number: 01."""
    submission: Path | None = None
    """The Python file or notebook with your answers; by default the chapter's exercises/exercises.py."""
    out: Path | None = None
    """Output file of the picture; by default runs/<chapter>/exercises.png."""


def main(args: Args) -> None:
    from common.grade.exercise_panels import draw_panels

    draw_panels(args.chapter, args.submission, args.out)


if __name__ == "__main__":
    run(main, Args)
