"""See the answers to a chapter's exercises at work: one picture, with a panel for each.
A wrong formula often looks wrong.

  python -m common.grade.show_exercises 01
  python -m common.grade.show_exercises 01 --submission mine.py --out mine.png
  python -m common.grade.show_exercises 01 --lang zh      in Chinese

Each panel (exercises/panels.py) uses your answer to its own exercise, and the solutions to all others.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from common.cli import run
from common.errors import UserError
from common.grade.marking.messages import Language, language, translator


@dataclass(frozen=True)
class Args:
    chapter: tyro.conf.Positional[str]
    """The chapter's number: 01."""
    submission: Path | None = None
    """The Python file or notebook with your answers; by default the chapter's exercises/exercises.py."""
    out: Path | None = None
    """Output file of the picture; by default runs/<chapter>/exercises.png."""
    lang: Language | None = None
    """Language of the picture; by default Chinese where the locale is (LC_ALL, LC_MESSAGES, LANG)."""


def main(args: Args) -> None:
    from common.grade.exercise_panels import draw_panels

    lang = language(args.lang)
    try:
        draw_panels(args.chapter, args.submission, args.out, lang)
    except UserError as problem:
        raise UserError(translator(lang)(str(problem))) from problem


if __name__ == "__main__":
    run(main, Args)
