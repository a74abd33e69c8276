"""Measures the open-ended exercises of hand-ins, and ranks them.

A hand-in runs in a process of its own, as it does for grading. The networks that it calls, and the counters of their
evaluations, are here.
"""

import hashlib
import math
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError, printable
from common.grade.chapter import COURSE, exercises_of
from common.grade.checks import Chapter, load, load_chapter, reset_torch
from common.grade.marking.formats import csv_text
from common.grade.marking.hand_ins import hand_in, students_of
from common.grade.marking.judge import Answers, Submission, alarm, explain, failure
from common.grade.marking.results import TOTAL, Limits, Work
from common.grade.sandbox.protocol.tensors import Out
from common.grade.sandbox.protocol.wire import ChannelError
from common.grade.sandbox.warm import Forks, Spawns, WarmProcess
from common.io.files import write_atomically
from common.teach.goals import Goal

ROUNDS = 5  # seeds of which the mean counts
SOLUTION = "(the course's solution)"


@dataclass
class Standing:
    """What was measured of a hand-in in one open-ended exercise."""

    goal: Goal
    name: str  # whose hand-in it is
    values: list[float] = field(default_factory=list)
    problem: str = ""  # why it has no place
    seconds: float = 0.0
    place: int | None = None  # equal values share a place

    @property
    def value(self) -> float:
        return sum(self.values) / len(self.values)


def goals_of(folder: Path) -> list[Goal]:
    """The goals of a chapter's exercises/."""
    path = folder / "goals.py"
    if not path.is_file():
        raise UserError(f"the exercises of {folder.parent.name} have no open-ended exercise to rank")
    return list(load(path, "course_goals").GOALS)


@contextmanager
def processes() -> Iterator[Forks | Spawns]:
    """Where the processes of hand-ins come from."""
    if not hasattr(os, "fork"):
        yield Spawns(COURSE)
        return
    with WarmProcess(COURSE, ["nbformat"]) as warm:
        yield warm.forks


def measure(
    forks: Forks | Spawns, chapter: Chapter, goal: Goal, name: str, work: Work, seeds: Sequence[int]
) -> Standing:
    """Measure one open-ended exercise of one hand-in, with each seed."""
    entry, start = Standing(goal, name), time.monotonic()
    names = [exercise.name for exercise in chapter.exercises]
    earlier = names[: names.index(goal.name)]
    lent = {each: function for each in earlier if (function := getattr(chapter.solutions, each, None))}
    try:
        with Submission(forks, work, chapter, Limits(goal.seconds), start + TOTAL) as submission:
            submission.load()
            if goal.name in submission.untouched:
                entry.problem = "not solved yet"
                return entry
            for seed in seeds:
                submission.limit_time()
                reset_torch()
                submission.peer.forget()
                out = Out()
                submission.peer.ask({"op": "exercise", "lent": submission.peer.encode(lent, out)}, out)
                with alarm(submission.peer.channel.deadline):
                    entry.values.append(float(goal.measure(Answers(submission), seed)))
    except ChannelError as problem:
        entry.problem = failure(problem, goal.seconds)
    except (Exception, SystemExit) as problem:
        missing = isinstance(problem, AttributeError) and "no function named" in str(problem)
        entry.problem = str(problem) if missing else explain(problem)
    entry.seconds = time.monotonic() - start
    if not entry.problem and not math.isfinite(entry.value):
        entry.problem = "the measured value is no number"
    entry.problem = printable(entry.problem)
    return entry


def rank_work(chapter: str, work: Work, seed: int, rounds: int = ROUNDS) -> list[Standing]:
    """Measure all open-ended exercises of one hand-in."""
    folder = exercises_of(chapter)
    with processes() as forks:
        return [
            measure(forks, load_chapter(folder), goal, "", work, range(seed, seed + rounds))
            for goal in goals_of(folder)
        ]


def rank_class(
    chapter: str, hand_ins: Path, roster: Path | None, seed: int, rounds: int, several: bool
) -> list[Standing]:
    """Measure the open-ended exercises of a class, and those of the course's solutions."""
    if not hand_ins.is_dir():
        raise UserError(f"there is no folder {hand_ins}; name the folder with the hand-ins after --class")
    folder = exercises_of(chapter)
    goals, known, entries = goals_of(folder), load_chapter(folder), list[Standing]()
    works = [
        (student.id, hand.work, hand.status)
        for student in students_of(hand_ins, roster)
        for hand in [hand_in(hand_ins, student, folder.parent.name[:2], several)]
    ]
    if (path := folder / "solutions.py").is_file():
        works.append((SOLUTION, Work({path.name: path.read_bytes()}, path.name), ""))
    with processes() as forks:
        for name, work, status in works:
            for goal in goals:
                if work is None:
                    entry = Standing(goal, name, problem=status)
                else:
                    entry = measure(forks, known, goal, name, work, range(seed, seed + rounds))
                print(f"{name:24.24} {goal.name:22} {entry.problem or f'{entry.value:.4g}'}", flush=True)
                entries.append(entry)
    return place(entries)


def place(entries: list[Standing]) -> list[Standing]:
    """Give each entry its place among those of the same goal, and sort by place. What has none comes last."""
    ranked: list[Standing] = []
    for goal in dict.fromkeys(entry.goal for entry in entries):
        mine = [entry for entry in entries if entry.goal == goal]
        best = sorted((entry for entry in mine if not entry.problem), key=lambda entry: rounded(entry))
        competing = [entry for entry in best if entry.name != SOLUTION]
        for entry in competing:
            entry.place = 1 + sum(rounded(other) < rounded(entry) for other in competing)
        ranked += best + [entry for entry in mine if entry.problem]
    return ranked


def rounded(entry: Standing) -> float:
    """What entries are sorted by. Differences beyond four digits are none."""
    value = float(f"{entry.value:.4g}")
    return value if entry.goal.better == "smaller" else -value


# ----------------------------------------------------------------------------------------------------------- the table


def pseudonyms(entries: list[Standing], secret: bytes) -> dict[str, str]:
    """{student: a name that only those who know the secret can find out}. The same secret gives the same names."""
    secret = secret or secrets.token_bytes()
    names = dict.fromkeys(entry.name for entry in entries if entry.name != SOLUTION)
    return {name: hashlib.sha256(secret + b"\0name\0" + name.encode()).hexdigest()[:6] for name in names}


def table(entries: list[Standing], names: dict[str, str], rounds: int) -> str:
    """The leaderboard in Markdown. names: pseudonyms, or none where names are shown."""
    parts = []
    for goal in dict.fromkeys(entry.goal for entry in entries):
        parts.append(f"## {goal.name}\n")
        parts.append(
            f"{goal.quantity}, mean of {rounds} seeds; {goal.better} is better, the goal is {goal.target:g}. {goal.budget}\n"
        )
        parts.append("| place | name | value | goal reached |\n| --- | --- | --- | --- |")
        for entry in (each for each in entries if each.goal == goal and not each.problem):
            name = names.get(entry.name, entry.name).replace("|", "\\|").replace("<", "&lt;")
            reached = "yes" if goal.reached(entry.value) else "no"
            parts.append(f"| {entry.place or '–'} | {name} | {entry.value:.4g} | {reached} |")
        parts.append("")
    return "\n".join(parts)


def write_board(entries: list[Standing], out: Path, names: dict[str, str], rounds: int) -> None:
    """leaderboard.md for learners; for the teacher leaderboard.csv, with all values and with who has no place and why."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "exercise": entry.goal.name,
            "place": entry.place or "",
            "student_id": entry.name,
            "shown_as": names.get(entry.name, entry.name),
            "value": "" if entry.problem else float(f"{entry.value:.4g}"),
            "values": " ".join(f"{value:.4g}" for value in entry.values),
            "problem": entry.problem,
            "seconds": round(entry.seconds, 1),
        }
        for entry in entries
    ]
    text = table(entries, names, rounds)
    write_atomically(out / "leaderboard.md", lambda file: file.write(text.encode()))
    lines = csv_text(list(rows[0]), rows) if rows else ""
    write_atomically(out / "leaderboard.csv", lambda file: file.write(lines.encode()))


def leaderboard_of(entries: list[Standing]) -> list[dict]:
    """The key `leaderboard` of Gradescope's results.json. What has no value is left out."""
    return [
        {
            "name": f"{entry.goal.name}: {entry.goal.quantity}",
            "value": float(f"{entry.value:.4g}"),
            "order": "asc" if entry.goal.better == "smaller" else "desc",
        }
        for entry in entries
        if not entry.problem
    ]
