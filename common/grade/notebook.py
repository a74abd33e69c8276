"""Lessons: lesson.py is the source; lesson.ipynb is made from it, with the outputs of a real run.

python -m common.grade.notebook build 01      run every cell of lesson.py and write lesson.ipynb
python -m common.grade.notebook sync 01       take over changed text and comments, keep the outputs, and run no cell
python -m common.grade.notebook check 01      compare the cells of the two files
python -m common.grade.notebook build 01 --lang zh    the Chinese lesson: lesson.zh.py and lesson.zh.ipynb
"""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from common.cli import run


@dataclass(frozen=True)
class Args:
    action: Positional[Literal["build", "sync", "check"]]
    """build: execute the lesson; sync: update its text; check: compare the two files."""
    chapter: Positional[str]
    """The chapter's number: 01. Or the folder of another lesson: docs/debugging."""
    lang: Literal["en", "zh"] = "en"
    """Language of the lesson. zh: lesson.zh.py, lesson.zh.ipynb."""


def main(args: Args) -> None:
    from common.grade.lessons import run_action

    run_action(args.action, args.chapter, args.lang)


if __name__ == "__main__":
    run(main, Args)
