"""Results in the formats of schools' platforms.

gradescope  results.json of an autograder    gradescope-autograders.readthedocs.io/en/latest/specs/
github      the result of a test of GitHub Classroom (classroom-resources/autograding-command-grader, src/main.js)
moodle      a CSV file for Moodle's grade import, by email address or ID number
nbgrader    grades.csv of `nbgrader export` (nbgrader/plugins/export.py)
"""

import base64
import csv
import io
import json
import re
from collections.abc import Iterable, Sequence

NBGRADER = (
    "assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email", "raw_score",
    "late_submission_penalty", "score", "max_score",
)  # fmt: skip
MOODLE = ("Email address", "ID number", "Full name", "Grade", "Maximum Grade", "Feedback comments")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def safe(value: object) -> object:
    """A cell that no spreadsheet takes for a formula, and no terminal for a command."""
    if not isinstance(value, str):
        return value
    value = CONTROL.sub("", value)
    return "'" + value if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def csv_text(columns: Sequence[str], rows: Iterable[dict]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: safe(value) for key, value in row.items()} for row in rows)
    return file.getvalue()


def nbgrader(rows: Iterable[dict]) -> str:
    return csv_text(NBGRADER, rows)


def moodle(rows: Iterable[dict], feedback: dict[str, str]) -> str:
    """One line for each student and chapter; feedback: {student: text}."""
    return csv_text(
        MOODLE,
        (
            {
                "Email address": row["email"],
                "ID number": row["student_id"],
                "Full name": row["name"],
                "Grade": row["score"],
                "Maximum Grade": row["max_score"],
                "Feedback comments": feedback.get(row["student_id"], ""),
            }
            for row in rows
        ),
    )


def gradescope(exercises: Sequence[dict], chapter: str, note: str, seconds: float, factor: float = 1.0) -> dict:
    """results.json. factor: what is left of the points after a penalty for lateness."""
    tests = [
        {
            "score": round(each["points"] * factor, 2),
            "max_score": each["possible"],
            "status": "failed" if each["message"] else "passed",
            "name": each["name"],
            "name_format": "text",
            "number": f"{int(chapter)}.{each['number']}",
            "output": each["message"] or "passed",
            "output_format": "text",
            "visibility": "visible",
        }
        for each in exercises
    ]
    return {
        "score": round(sum(each["points"] for each in exercises) * factor, 2),
        "execution_time": round(seconds),
        "output": note,
        "output_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
    }


def github(exercises: Sequence[dict], chapter: str) -> dict:
    """The result of an autograding test of GitHub Classroom."""
    passed = not any(each["message"] for each in exercises)
    return {
        "version": 1,
        "status": "pass" if passed else "fail",
        "max_score": sum(each["possible"] for each in exercises),
        "tests": [
            {
                "name": f"{int(chapter)}.{each['number']} {each['name']}",
                "status": "fail" if each["message"] else "pass",
                "score": each["points"],
                "message": each["message"],
                "test_code": f"python -m common.grade {chapter} --only {each['number']}",
                "filename": "",
                "line_no": 0,
                "duration": 0,
            }
            for each in exercises
        ],
    }


def github_output(result: dict) -> str:
    """The line that a step of a workflow appends to the file $GITHUB_OUTPUT."""
    return f"result={base64.b64encode(json.dumps(result).encode()).decode()}\n"
