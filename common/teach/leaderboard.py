"""Rank the open-ended exercises of a chapter: measured values under a fixed budget, with fixed seeds.

  python -m common.teach.leaderboard 01 --class hand-ins --roster roster.csv --out board
  python -m common.teach.leaderboard 01 --class hand-ins --out board --hide-names --secret secret.txt
  python -m common.teach.leaderboard 01 --submission mine.py

Written are leaderboard.md for learners, and leaderboard.csv for the teacher. Each hand-in runs in a process of its own, as
it does for grading; the networks that it calls count their evaluations outside of it. The same files and the same seed
give the same table.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from common.cli import run
from common.errors import UserError
from common.io.ranges import Range


@dataclass(frozen=True)
class Args:
    chapter: tyro.conf.Positional[str]
    """The chapter's number: 01."""
    hand_ins: Annotated[Path | None, tyro.conf.arg(name="class")] = None
    """Folder with the hand-ins of a class."""
    roster: Path | None = None
    """CSV file of the class with the column id; by default all hand-ins."""
    out: Path | None = None
    """Folder for leaderboard.md and leaderboard.csv."""
    submission: Path | None = None
    """A single file to measure, instead of a class."""
    hide_names: bool = False
    """Show pseudonyms to learners; leaderboard.csv says whose they are."""
    secret: Path | None = None
    """File with a secret text, from which pseudonyms follow; without it they are new each time."""
    seed: Annotated[int, Range(0, 2**31)] = 1000
    """First seed of the measurements. Choose one that learners do not know for the last ranking."""
    rounds: Annotated[int, Range(1, 100)] = 5
    """Number of seeds, of which the mean counts."""
    several: bool = False
    """Whether the folder holds hand-ins of several chapters; then the chapter's number must be in a file's path."""


def main(args: Args) -> None:
    from common.teach import ranking

    if (args.hand_ins is None) == (args.submission is None):
        raise UserError("name either the folder of a class after --class, or one file after --submission")
    if args.submission:
        one(args, args.submission)
        return
    if args.out is None or args.hand_ins is None:
        raise UserError("--class needs a folder for the leaderboard; name it after --out")
    try:
        secret = args.secret.read_bytes().strip() if args.secret else b""
    except OSError as problem:
        raise UserError(f"the secret {args.secret} cannot be read ({problem.strerror})") from None
    entries = ranking.rank_class(args.chapter, args.hand_ins, args.roster, args.seed, args.rounds, args.several)
    names = ranking.pseudonyms(entries, secret) if args.hide_names else {}
    ranking.write_board(entries, args.out, names, args.rounds)
    print(args.out / "leaderboard.md")


def one(args: Args, path: Path) -> None:
    """Measure one file, and print what was measured."""
    from common.grade.marking.results import Work
    from common.teach import ranking

    if not path.is_file():
        raise UserError(f"there is no file {path}; name the Python file or the notebook with the answers")
    for entry in ranking.rank_work(
        args.chapter, Work({path.name: path.read_bytes()}, path.name), args.seed, args.rounds
    ):
        goal = entry.goal
        value = entry.problem or f"{entry.value:.4g}, goal {goal.target:g}, {goal.better} is better"
        print(f"{goal.name}: {goal.quantity} {value}" if not entry.problem else f"{goal.name}: {value}")


if __name__ == "__main__":
    run(main, Args)
