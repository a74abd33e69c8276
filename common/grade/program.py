"""Grade a chapter's exercises: points, and a sentence on each mistake.

  python -m common.grade 01
  python -m common.grade 01 --submission ada.py --json ada.json
  python -m common.grade 01 --submission ada.ipynb
  python -m common.grade 01 --only 5            check one exercise alone
  python -m common.grade 01 --hint 5            a question that helps with exercise 5; --step 2 and --step 3 say more
  python -m common.grade 01 --lang zh           in Chinese

Each exercise must pass the learner's own tests (test_exercises.py) and randomised ones (checks.py). A mistake costs
the points of its own exercise only, and so does a loop that never ends.

For teachers:
  python -m common.grade 01 --class hand-ins --roster roster.csv --out grades
  python -m common.grade 01 --only 3 --fail-under 1      exit code 1 below one point
  python -m common.grade 01 --submission mine.py --format gradescope --out results.json

A hand-in runs in a process that holds neither solutions nor checks. Exit codes: 0 graded, 1 fewer points than
--fail-under, 2 bad input, 3 somebody's hand-in could not be graded.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import tyro

from common.errors import UserError
from common.grade.marking.messages import Language, language, translator
from common.io.ranges import Range


@dataclass(frozen=True)
class Args:
    chapter: tyro.conf.Positional[str]
    """The chapter's number: 01. With --class also several: 1-3."""
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
    total_seconds: Annotated[float, Range(1, 86400)] = 600.0
    """Time limit for a file as a whole."""
    partial: Annotated[float, Range(0, 1)] = 0.0
    """Share of the points for passing an exercise's public tests, but not the hidden checks."""
    seed: int = 0
    """Random seed of the checks; the same seed gives the same checks."""
    fail_under: Annotated[float | None, Range(0, 10000)] = None
    """Points below which the exit code is 1."""
    hand_ins: Annotated[Path | None, tyro.conf.arg(name="class")] = None
    """Folder with the hand-ins of a class, to grade all of them."""
    roster: Path | None = None
    """CSV file of the class with the column id, and perhaps name, email, submitted; by default all hand-ins."""
    out: Path | None = None
    """Folder for the gradebook of a class, or file for the result in another --format."""
    format: Literal["csv", "gradescope", "github", "moodle", "nbgrader"] = "csv"
    """Format of the result: gradescope and github for one file, csv, moodle and nbgrader for a class."""
    secret: Path | None = None
    """File with a secret text, from which the seed of each student follows."""
    due: str | None = None
    """Time at which hand-ins are due, 2026-12-01T23:59."""
    late_per_day: Annotated[float, Range(0, 1)] = 0.0
    """Share of the points lost for each day after --due that has begun."""
    late_limit: Annotated[float, Range(0, 1000)] = 365.0
    """Days after --due from which a hand-in has no points."""
    jobs: Annotated[int | None, Range(1, 256)] = None
    """Number of hand-ins graded at the same time; by default one for each core."""
    lang: Language | None = None
    """Language of messages, hints and feedback; by default Chinese where the locale is (LC_ALL, LC_MESSAGES, LANG)."""


def main(args: Args) -> None:
    lang = language(args.lang)
    try:
        answer(args, lang)
    except UserError as problem:
        raise UserError(translator(lang)(str(problem))) from problem


def answer(args: Args, lang: Language) -> None:
    if args.hint:
        from common.grade import stubs

        stubs.print_hint(args.chapter, args.hint, args.step, lang)
    elif args.step > 1:
        raise UserError("--step is a step of a hint; add the number of the exercise, for instance --hint 2")
    elif args.hand_ins:
        grade_all(args, args.hand_ins, lang)
    else:
        grade_one(args, lang)


def grade_one(args: Args, lang: Language) -> None:
    from common.grade import grader
    from common.grade.marking.results import Limits

    if args.format in ("moodle", "nbgrader"):
        raise UserError(f"--format {args.format} is for a class; name the folder of hand-ins after --class")
    if args.format == "csv" and args.out:
        raise UserError("--out is for a class or another --format; name the file for one result after --json")
    if args.format != "csv" and args.out is None:
        raise UserError(f"--format {args.format} needs a file for the result; name it after --out")
    limits = Limits(args.seconds, args.total_seconds, args.partial)
    points = grader.print_grades(
        args.chapter, args.submission, args.seed, limits, args.json, args.only, args.format, args.out, lang
    )
    fail_under(points, args.fail_under)


def grade_all(args: Args, folder: Path, lang: Language) -> None:
    from common.grade.marking import gradebook
    from common.grade.marking.results import Limits

    if args.submission or args.json or args.format in ("gradescope", "github"):
        raise UserError("--submission, --json, --format gradescope and github are for one file; leave out --class")
    if args.out is None:
        raise UserError("--class needs a folder for the gradebook; name it after --out")
    try:
        secret = args.secret.read_bytes().strip() if args.secret else b""
    except OSError as problem:
        raise UserError(f"the secret {args.secret} cannot be read ({problem.strerror})") from None
    try:
        due = datetime.fromisoformat(args.due) if args.due else None
    except ValueError:
        raise UserError(f"--due {args.due} is no time; write it as 2026-12-01T23:59") from None
    policy = gradebook.Policy(
        args.seed,
        secret,
        due,
        args.late_per_day,
        args.late_limit,
        Limits(args.seconds, args.total_seconds, args.partial),
        args.only,
        lang,
    )
    rows, seconds = gradebook.grade_class(
        gradebook.chapters_of(args.chapter), folder, args.roster, policy, args.jobs or gradebook.cores()
    )
    print(gradebook.write_gradebook(rows, args.out, policy, args.format, seconds))
    if any(row.status.startswith("not graded") for row in rows):
        raise SystemExit(3)
    fail_under(min((row.score for row in rows), default=0.0), args.fail_under)


def fail_under(points: float, limit: float | None) -> None:
    if limit is not None and points < limit:
        raise SystemExit(1)
