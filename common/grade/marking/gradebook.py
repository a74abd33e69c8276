"""Grades a class: every student of the roster gets a row, whatever was handed in.

Written to the folder `out`:

grades.csv            one row for each student and chapter, with nbgrader's columns first
feedback/ID.md        what the student may read
results/ID-01.json    everything known of one hand-in
report.md             what a teacher should look at
"""

import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from queue import Empty, SimpleQueue

from common.errors import UserError
from common.grade.chapter import COURSE, exercises_of
from common.grade.grader import ask, version
from common.grade.marking import formats
from common.grade.marking.hand_ins import HandIn, Student, hand_in, students_of
from common.grade.marking.messages import Language, translator
from common.grade.marking.results import Limits, Outcome, Result
from common.grade.sandbox.protocol.wire import Channel, ChannelError
from common.grade.sandbox.source import likeness
from common.grade.sandbox.warm import WarmProcess
from common.io.files import write_atomically, write_json

ALIKE = 0.95  # likeness from which a teacher should look
LONG = 150  # words of code from which two equal answers are no chance


@dataclass(frozen=True)
class Policy:
    """How a class is graded."""

    seed: int = 0
    secret: bytes = b""  # from which each student's seed follows; without one, all have `seed`
    due: datetime | None = None
    late_per_day: float = 0.0  # share of the points lost for each day that has begun
    late_limit: float = math.inf  # days after which no points are given
    limits: Limits = field(default_factory=Limits)
    only: tuple[int, ...] = ()
    lang: Language = "en"  # of the feedback and of what is printed

    def seed_of(self, student: str, chapter: str) -> int:
        if not self.secret:
            return self.seed
        return int.from_bytes(hashlib.sha256(self.secret + f"\0{student}\0{chapter}".encode()).digest()[:4], "big")

    def penalty(self, when: datetime | None) -> float:
        """The share of the points that is lost to lateness, from 0 to 1."""
        if self.due is None or when is None:
            return 0.0
        due, when = self.due.astimezone(), when.astimezone()  # without a zone: this machine's
        days = (when - due).total_seconds() / 86400
        if days <= 0:
            return 0.0
        return 1.0 if days > self.late_limit else min(1.0, self.late_per_day * math.ceil(days))


@dataclass
class Entry:
    """A student's results in one chapter."""

    student: Student
    chapter: str  # "01"
    hand: HandIn
    seed: int
    results: list[Result] = field(default_factory=list)
    outcome: Outcome | None = None
    status: str = "graded"
    flags: list[str] = field(default_factory=list)
    seconds: float = 0.0
    penalty: float = 0.0
    possible: int = 0
    classmate: str = ""  # the one whose code is most alike
    classmate_likeness: float = 0.0

    @property
    def raw(self) -> float:
        return sum(result.points for result in self.results)

    @property
    def score(self) -> float:
        return round(self.raw * (1 - self.penalty), 2)

    def columns(self, due: datetime | None) -> dict:
        """The row of grades.csv."""
        student, report = self.student, self.outcome.report if self.outcome else None
        exercises = {f"{each.number:02} {each.name}": each.points for each in self.results}
        return {
            "assignment": self.chapter,
            "duedate": due.isoformat() if due else "",
            "timestamp": self.hand.time.isoformat(timespec="seconds") if self.hand.time else "",
            "student_id": student.id,
            "last_name": student.last_name or student.name.partition(" ")[2],
            "first_name": student.first_name or student.name.partition(" ")[0],
            "email": student.email,
            "raw_score": self.raw,
            "late_submission_penalty": round(self.raw - self.score, 2),
            "score": self.score,
            "max_score": self.possible,
            "name": student.full_name,
            "status": self.status,
            "flags": "; ".join(self.flags),
            "like_the_solutions": round(report.likeness, 2) if report else "",
            "like_a_classmate": f"{self.classmate_likeness:.2f} {self.classmate}" if self.classmate else "",
            "seed": self.seed,
            "sha256": self.hand.work.sha256 if self.hand.work else "",
            "seconds": round(self.seconds, 1),
        } | exercises


def chapters_of(text: str) -> list[str]:
    """ "01", "1-3" or "1,4" as a list of two-digit numbers."""
    found = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            return [exercises_of(text).parent.name[:2]]
        found += [exercises_of(str(n)).parent.name[:2] for n in range(int(first), int(last or first) + 1)]
    return list(dict.fromkeys(found))


def grade_class(
    chapters: Sequence[str], folder: Path, roster: Path | None, policy: Policy, jobs: int
) -> tuple[list[Entry], float]:
    """A row for every student and chapter, in the roster's order, and how many seconds it took."""
    if not hasattr(os, "fork"):
        raise UserError("--class needs a system with fork, such as Linux, macOS or WSL; grade file by file here")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the folder with the hand-ins after --class")
    students, start = students_of(folder, roster), time.monotonic()
    rows = [
        Entry(student, chapter, hand, policy.seed_of(student.id, chapter), penalty=policy.penalty(hand.time))
        for student in students
        for chapter in chapters
        for hand in [hand_in(folder, student, chapter, len(chapters) > 1)]
    ]
    tasks: SimpleQueue[Entry] = SimpleQueue()
    for row in rows:
        row.possible, row.flags = 0, list(row.hand.notes)
        if row.hand.work is None:
            row.status = row.hand.status
        tasks.put(row)
    notebooks = any(row.hand.work and row.hand.work.main.endswith(".ipynb") for row in rows)
    done, lock = [0], threading.Lock()
    with WarmProcess(COURSE, ["nbformat"] if notebooks else []) as warm:

        def work() -> None:
            judge: Channel | None = None
            while True:
                try:
                    row = tasks.get_nowait()
                except Empty:
                    return
                if row.hand.work is not None:
                    with lock:
                        judge = judge or warm.judge()[0]
                    judge = grade_row(judge, row, policy)
                done[0] += 1
                print(
                    f"{done[0]:4}/{len(rows)}  {row.chapter}  {row.student.id:24.24} {line(row, policy.lang)}",
                    flush=True,
                )

        with ThreadPoolExecutor(jobs) as pool:
            for future in [pool.submit(work) for _ in range(jobs)]:
                future.result()
    possible = {row.chapter: row.possible for row in rows if row.possible}
    for row in rows:
        row.possible = row.possible or possible.get(row.chapter, 0) or points_of(row.chapter, policy.only)
    compare_classmates(rows)
    return rows, time.monotonic() - start


def points_of(chapter: str, only: Sequence[int]) -> int:
    """The points of a chapter's exercises, read without running anything."""
    text = (exercises_of(chapter) / "checks.py").read_text(encoding="utf-8")
    points = [int(number) for number in re.findall(r"^\s*Exercise\(\s*\"\w+\",\s*(\d+)", text, re.MULTILINE)]
    return sum(each for number, each in enumerate(points, 1) if not only or number in only)


def grade_row(judge: Channel, row: Entry, policy: Policy) -> Channel | None:
    """Grade one hand-in. Returns the grader, or None if it is of no use any more."""
    start = time.monotonic()
    assert row.hand.work is not None
    try:
        for each in ask(
            judge, exercises_of(row.chapter), row.hand.work, row.seed, policy.only, policy.limits, canary=True
        ):
            if isinstance(each, Result):
                row.results.append(each)
            else:
                row.outcome = each
    except ChannelError as problem:
        row.status, row.results = f"not graded: the grader's process failed ({problem.kind})", []
        return None
    finally:
        row.seconds = time.monotonic() - start
    row.possible = sum(result.possible for result in row.results)
    if row.outcome and row.outcome.failed:
        row.status, row.results = f"not graded: {row.outcome.failed}", []
    elif row.outcome:
        row.flags += row.outcome.report.flags
        if row.outcome.report.likeness >= ALIKE and sum(map(len, row.outcome.report.outlines.values())) > LONG:
            row.flags.append(f"like the course's solutions: {row.outcome.report.likeness:.2f}")
    return judge


def compare_classmates(rows: list[Entry]) -> None:
    """Find, for each hand-in, the classmate whose code is most alike."""
    for chapter in {row.chapter for row in rows}:
        graded = [row for row in rows if row.chapter == chapter and row.outcome]
        texts = {
            row.student.id: [w for words in row.outcome.report.outlines.values() for w in words]
            for row in graded
            if row.outcome
        }
        for k, row in enumerate(graded):
            for other in graded[:k]:
                mine, theirs = texts[row.student.id], texts[other.student.id]
                if min(len(mine), len(theirs)) < LONG:
                    continue
                alike = likeness(mine, theirs)
                for one, two in ((row, other), (other, row)):
                    if alike > one.classmate_likeness:
                        one.classmate, one.classmate_likeness = two.student.id, alike
        for row in graded:
            if row.classmate_likeness >= ALIKE:
                row.flags.append(f"like the code of {row.classmate}: {row.classmate_likeness:.2f}")


def line(row: Entry, lang: Language = "en") -> str:
    """A row in words, for the terminal."""
    say = translator(lang)
    if row.status != "graded":
        return say(row.status)
    late = say(f", {row.penalty:.0%} lost to lateness") if row.penalty else ""
    return f"{row.score:g}/{row.possible}{late}" + (f"  {say(f'look at: {row.flags[0]}')}" if row.flags else "")


def feedback(rows: list[Entry], lang: Language = "en") -> str:
    """What a student may read: points and a sentence for each exercise."""
    parts = [f"# {rows[0].student.full_name or rows[0].student.id}\n"]
    for row in rows:
        say = translator(lang, exercises_of(row.chapter))
        parts.append(say(f"## Chapter {int(row.chapter)}: {row.score:g} of {row.possible} points") + "\n")
        if row.status != "graded":
            status = say(row.status)
            parts.append(f"{status[:1].upper()}{status[1:]}{say('.')}\n")
            continue
        if row.penalty:
            parts.append(say(f"{row.raw:g} points, less {row.penalty:.0%} for handing in late.") + "\n")
        parts.append(say("| exercise | points | |") + "\n| --- | --- | --- |")
        for each in row.results:
            text = say(each.message).replace("|", "\\|").replace("<", "&lt;") or say("passed")
            parts.append(f"| {each.number} `{each.name}` | {each.points:g}/{each.possible} | {text} |")
        parts.append("")
    return "\n".join(parts) + "\n"


def report(rows: list[Entry], seconds: float) -> str:
    """What a teacher should know of the whole run."""
    graded = [row for row in rows if row.outcome]
    missing = sorted({each for row in graded if row.outcome for each in row.outcome.report.missing})
    parts = ["# Report\n", f"{len(rows)} rows, {len(graded)} of them graded, in {seconds:.0f} s.\n", "## Protection\n"]
    parts.append("\n".join(f"- {each}" for each in missing) or "All limits were in force.")
    parts.append("\n## Not graded\n")
    parts += [f"- {r.student.id}, chapter {r.chapter}: {r.status}" for r in rows if r.status != "graded"] or [
        "Nobody."
    ]
    parts.append("\n## To look at\n")
    parts += [f"- {r.student.id}, chapter {r.chapter}: {'; '.join(r.flags)}" for r in rows if r.flags] or ["Nothing."]
    return "\n".join(parts) + "\n"


def write_gradebook(rows: list[Entry], out: Path, policy: Policy, style: str, seconds: float) -> Path:
    """Write all files of a class. style: "csv", "moodle" or "nbgrader", the columns of grades.csv."""
    for part in ("feedback", "results"):
        (out / part).mkdir(parents=True, exist_ok=True)
    cells, course = [row.columns(policy.due) for row in rows], version()
    texts = {}
    for student in dict.fromkeys(row.student.id for row in rows):
        texts[student] = feedback([row for row in rows if row.student.id == student], policy.lang)
        write_text(out / "feedback" / f"{file_name(student)}.md", texts[student])
    for row, cell in zip(rows, cells, strict=True):
        known = {"exercises": [asdict(each) for each in row.results], "version": course, "graded": now()}
        known["missing_protection"] = row.outcome.report.missing if row.outcome else []
        write_json(out / "results" / f"{file_name(row.student.id)}-{row.chapter}.json", cell | known)
    if style == "moodle":
        text = formats.moodle(cells, texts)
    elif style == "nbgrader":
        text = formats.nbgrader(cells)
    else:
        columns = list(dict.fromkeys(name for cell in cells for name in cell))
        text = formats.csv_text(columns, cells)
    write_text(out / "grades.csv", text)
    write_text(out / "report.md", report(rows, seconds))
    return out / "grades.csv"


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def file_name(student: str) -> str:
    """A student's id as the name of a file, never of one elsewhere."""
    name = re.sub(r"[^\w.@ -]", "_", student).strip(". ") or "_"
    return name[:100]


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
