"""Make a chapter's exercises.py from its solutions.py, by taking the solutions out.

  python -m common.grade.strip_solutions 01

In solutions.py, what stands between the lines `# --- solution` and `# --- end` of a function is the solution. What stands
between `# --- given` and `# --- end`, each line after `#| `, is the faulty program that learners get in its place.
"""

from dataclasses import dataclass

import tyro

from common.cli import run


@dataclass(frozen=True)
class Args:
    chapter: tyro.conf.Positional[str]
    """The chapter's number: 01."""
    overwrite: bool = False
    """Replace exercises.py even where it holds answers of yours."""


def main(args: Args) -> None:
    from common.grade.stubs import write_stub

    write_stub(args.chapter, args.overwrite)


if __name__ == "__main__":
    run(main, Args)
