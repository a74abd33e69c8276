"""What Gradescope's autograder does: from submission/ and submission_metadata.json to results.json.

The files are described in gradescope-autograders.readthedocs.io/en/latest/specs/ and .../submission_metadata/
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from common.errors import UserError
from common.grade.chapter import exercises_of
from common.grade.grader import ask, open_judge
from common.grade.marking import formats
from common.grade.marking.gradebook import Policy
from common.grade.marking.hand_ins import LARGEST, rank
from common.grade.marking.results import Limits, Outcome, Result, Work
from common.io.files import read_json, write_json

TOTAL = 480.0  # seconds for a submission as a whole; Gradescope ends the container after 10 minutes
ASK_FOR = "Hand in a Python file (.py) or a notebook (.ipynb)."


@dataclass(frozen=True)
class SubmissionMetadata:
    """What Gradescope says of a submission."""

    student: str = ""  # id, or the ids of a group
    created: datetime | None = None
    due: datetime | None = None


def read_metadata(path: Path) -> SubmissionMetadata:
    """Gradescope's submission_metadata.json. What is missing or not understood there is left empty."""
    try:
        known = read_json(path)
        users = known.get("users") or []
        student = ",".join(sorted(str(user["id"]) for user in users))
        dates = [(user.get("assignment") or {}).get("due_date") for user in users]  # with each student's extension
        due = [datetime.fromisoformat(date) for date in dates if date]
        date = (known.get("assignment") or {}).get("due_date")
        due = due or ([datetime.fromisoformat(date)] if date else [])
        return SubmissionMetadata(student, datetime.fromisoformat(known["created_at"]), max(due, default=None))
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        return SubmissionMetadata()


def find_work(folder: Path) -> Work | None:
    """The file with the answers, and the Python files beside it."""
    hidden = {"__MACOSX", ".ipynb_checkpoints", "__pycache__"}
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".py", ".ipynb")]
    found = [path for path in found if path.is_file() and not path.is_symlink() and not hidden & set(path.parts)]
    found = [path for path in found if path.stat().st_size <= LARGEST]
    if not found:
        return None
    main = max(found, key=rank)
    beside = {path.name: path.read_bytes() for path in found if path.suffix == ".py" and path.parent == main.parent}
    return Work(beside | {main.name: main.read_bytes()}, main.name, main.name)


def grade_submission(folder: Path) -> Path:
    """Grade what lies in Gradescope's folder. Returns the path of results.json."""
    settings, about = (
        read_json(folder / "source" / "autograder.json"),
        read_metadata(folder / "submission_metadata.json"),
    )
    work, chapter, path = find_work(folder / "submission"), settings["chapter"], folder / "results" / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if work is None:
        write_json(path, {"score": 0, "output": ASK_FOR, "output_format": "text"})
        return path
    secret = settings["secret"].encode() if about.student else b""
    policy = Policy(settings["seed"], secret, about.due, settings["late_per_day"], settings["late_limit"])
    limits, start = Limits(total=TOTAL, partial=settings["partial"]), time.monotonic()
    results, outcome = [], None
    with open_judge() as judge:
        for each in ask(
            judge, exercises_of(chapter), work, policy.seed_of(about.student, chapter), (), limits, canary=True
        ):
            if isinstance(each, Result):
                results.append(each)
            else:
                outcome = each
    if outcome is None or outcome.failed:
        reason = outcome.failed if outcome else "the grader gave no result"
        write_json(path, {"score": 0, "output": f"Not graded: {reason}. Your teacher has to run it again."})
        return path
    penalty = policy.penalty(about.created)
    found = formats.gradescope(
        [asdict(each) for each in results], chapter, note(penalty, outcome), time.monotonic() - start, 1 - penalty
    )
    found |= {"extra_data": extra(settings, work, about, outcome, results)}
    if settings["leaderboard"]:
        from common.teach.ranking import leaderboard_of, rank_work  # torch is needed for this alone

        found |= {"leaderboard": leaderboard_of(rank_work(chapter, work, settings["seed"]))}
    write_json(path, found)
    return path


def note(penalty: float, outcome: Outcome) -> str:
    """What the student reads above the results."""
    late = f"{penalty:.0%} of the points are lost because the file was handed in late." if penalty else ""
    return late or "Each exercise has public tests and hidden checks."


def extra(settings: dict, work: Work, about: SubmissionMetadata, outcome: Outcome, results: Sequence[Result]) -> dict:
    """What a teacher may want to know later; students do not see it."""
    return {
        "version": settings["version"],
        "sha256": work.sha256,
        "student": about.student,
        "raw_score": sum(each.points for each in results),
        "missing_protection": outcome.report.missing,
        "flags": outcome.report.flags,
        "like_the_solutions": round(outcome.report.likeness, 2),
    }
