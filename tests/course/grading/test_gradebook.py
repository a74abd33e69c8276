"""A class graded in one command, and the formats of schools."""

import csv
import io
import json
import os
import zipfile
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import common.grade.program as program
from common.errors import UserError
from common.grade.chapter import exercises_of
from common.grade.checks import load_chapter
from common.grade.marking import formats, gradebook
from common.grade.marking.gradebook import Policy, chapters_of, file_name
from common.grade.marking.hand_ins import Student, hand_in, read_roster

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the warm process is forked")
SOLUTIONS = exercises_of("01") / "solutions.py"
ROSTER = """id,name,email,submitted
ada,Ada Lovelace,ada@school.edu,2026-12-01T12:00
bob,Bob Bomb,bob@school.edu,2026-12-01T12:00
cem,"=HYPERLINK(""http://x"")",cem@school.edu,2026-12-03T12:00
dan,Dan Nothing,dan@school.edu,
eva,Eva Notebook,eva@school.edu,2026-12-01T12:00
fay,Fay Zip,fay@school.edu,2026-12-01T12:00
gus,Gus Link,gus@school.edu,2026-12-01T12:00
"""


def notebook(text: str) -> str:
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None, "source": text}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]})


def zipped(**files: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"folder/{name}.py", text)
    return file.getvalue()


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A class of seven, of whom one in each way has handed in something else than a Python file."""
    folder = tmp_path_factory.mktemp("class")
    text = SOLUTIONS.read_text(encoding="utf-8")
    (folder / "hand-ins").mkdir()
    (folder / "roster.csv").write_text(ROSTER, encoding="utf-8")
    (folder / "secret").write_text("not for learners")
    (folder / "hand-ins/ada_12345_exercises.py").write_text(text, encoding="utf-8")
    (folder / "hand-ins/bob.py").write_text("import os\nos.kill(os.getppid(), 9)\nwhile True: os.fork()\n")
    (folder / "hand-ins/cem.py").write_text(
        text.replace("(1 - a).sqrt() * eps\n", "(1 - a) * eps\n"), encoding="utf-8"
    )
    (folder / "hand-ins/eva").mkdir()
    (folder / "hand-ins/eva/chapter_1.ipynb").write_text(notebook(text), encoding="utf-8")
    helper = "import torch\ndef alpha_bars(betas):\n    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)])\n"
    (folder / "hand-ins/fay.zip").write_bytes(zipped(exercises="from helper import alpha_bars\n", helper=helper))
    (folder / "hand-ins/gus.py").symlink_to(SOLUTIONS)
    args = dict(hand_ins=folder / "hand-ins", roster=folder / "roster.csv", out=folder / "grades", only=(1, 2))
    with pytest.raises(SystemExit) as ended:
        program.main(
            program.Args(
                "01",
                **args,
                secret=folder / "secret",
                due="2026-12-01T23:59",
                late_per_day=0.1,
                fail_under=1,
                seconds=20,
            )
        )
    assert ended.value.code == 1  # somebody has less than one point
    return folder / "grades"


def rows_of(graded) -> dict[str, dict]:
    return {row["student_id"]: row for row in csv.DictReader(io.StringIO((graded / "grades.csv").read_text()))}


def test_everybody_has_a_row(graded):
    rows = rows_of(graded)
    assert list(rows) == ["ada", "bob", "cem", "dan", "eva", "fay", "gus"]
    assert {name: (row["raw_score"], row["status"]) for name, row in rows.items()} == {
        "ada": ("3", "graded"),
        "bob": ("0", "graded"),
        "cem": ("1", "graded"),
        "dan": ("0", "nothing handed in"),
        "eva": ("3", "graded"),
        "fay": ("1", "graded"),
        "gus": ("0", "a link, which is not followed"),
    }
    assert {row["max_score"] for row in rows.values()} == {"3"}
    assert (rows["cem"]["score"], rows["cem"]["late_submission_penalty"]) == ("0.8", "0.2")
    assert rows["cem"]["01 alpha_bars"] == "1" and rows["cem"]["02 add_noise"] == "0"
    assert rows["cem"]["name"].startswith("'=HYPERLINK")
    assert len({row["seed"] for row in rows.values()}) == 7
    assert "import os" in rows["bob"]["flags"] and "like the course's solutions" in rows["ada"]["flags"]
    assert "ada" in rows["eva"]["like_a_classmate"] and "like the code of" in rows["eva"]["flags"]
    assert list(rows["ada"])[: len(formats.NBGRADER)] == list(formats.NBGRADER)


def test_feedback_results_and_report(graded):
    text = (graded / "feedback/cem.md").read_text(encoding="utf-8")
    assert "0.8 of 3 points" in text and "did you use 1 - alpha_bar" in text and "20%" in text
    known = json.loads((graded / "results/cem-01.json").read_text())
    assert len(known["sha256"]) == 64 and known["version"] and known["graded"] and known["exercises"][1]["message"]
    report = (graded / "report.md").read_text(encoding="utf-8")
    assert "dan, chapter 01: nothing handed in" in report and "## Protection" in report


def test_the_same_file_and_seed_have_the_same_grade():
    policy = Policy(secret=b"x")
    assert policy.seed_of("ada", "01") == policy.seed_of("ada", "01") != policy.seed_of("bob", "01")
    assert Policy(seed=5).seed_of("ada", "01") == 5


def test_lateness():
    due = datetime(2026, 12, 1, 12)
    policy = Policy(due=due, late_per_day=0.25, late_limit=3)
    hours = {-1: 0, 0: 0, 1: 0.25, 24: 0.25, 25: 0.5, 71: 0.75, 73: 1}
    assert {h: policy.penalty(due + timedelta(hours=h)) for h in hours} == hours
    assert policy.penalty(None) == 0


def test_hand_ins_are_found_where_platforms_put_them(tmp_path):
    for place in (
        "ada/01/exercises.py",
        "ada/02/exercises.py",
        "Bob Byte_77_assignsubmission_file_/answers_1.ipynb",
        "01/cem.py",
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(place)
    found = {
        student.id: hand_in(tmp_path, student, "01", several=True).work
        for student in (Student("ada"), Student("b", "Bob Byte"), Student("cem"))
    }
    assert {name: work and work.files[work.main].decode() for name, work in found.items()} == {
        "ada": "ada/01/exercises.py",
        "b": "Bob Byte_77_assignsubmission_file_/answers_1.ipynb",
        "cem": "01/cem.py",
    }
    (tmp_path / "dan.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    assert (
        hand_in(tmp_path, Student("dan"), "01", several=False).status == "dan.zip holds no Python file and no notebook"
    )


def test_bad_rosters_and_flags_are_one_sentence(tmp_path):
    for text, says in (("a,b\n1,2\n", "has no student"), ("id\nada\nada\n", "has ada twice")):
        (tmp_path / "roster.csv").write_text(text)
        with pytest.raises(UserError, match=says):
            read_roster(tmp_path / "roster.csv")
    for args, says in (
        (dict(hand_ins=tmp_path), "--class needs a folder"),
        (dict(hand_ins=tmp_path / "no", out=tmp_path / "o"), "there is no folder"),
        (dict(hand_ins=tmp_path, out=tmp_path / "o", due="soon"), "is no time"),
        (dict(format="moodle"), "is for a class"),
        (dict(format="github"), "needs a file"),
    ):
        with pytest.raises(UserError, match=says):
            program.main(program.Args("01", **args))
    assert chapters_of("1-3") == ["01", "02", "03"] and chapters_of("2,4") == ["02", "04"]
    assert file_name("../../etc/x") == "_.._etc_x"


# ------------------------------------------------------------------------------------------------------------- formats

EXERCISES = [
    {"number": 1, "name": "alpha_bars", "points": 1.0, "possible": 1, "message": ""},
    {"number": 2, "name": "add_noise", "points": 0, "possible": 2, "message": "not solved yet"},
]


def test_gradescope():
    """The keys of gradescope-autograders.readthedocs.io/en/latest/specs/."""
    found = formats.gradescope(EXERCISES, "01", "seed 0", 1.6, factor=0.5)
    top = {
        "score",
        "execution_time",
        "output",
        "output_format",
        "test_output_format",
        "test_name_format",
        "visibility",
    }
    top |= {"stdout_visibility", "extra_data", "tests", "leaderboard"}
    test = {"score", "max_score", "status", "name", "name_format", "number", "output", "output_format", "tags"}
    assert set(found) <= top and all(set(each) <= test | {"visibility", "extra_data"} for each in found["tests"])
    assert found["score"] == 0.5 and [each["status"] for each in found["tests"]] == ["passed", "failed"]
    assert found["execution_time"] == 2 and found["tests"][1]["number"] == "1.2"


def test_github():
    found = formats.github(EXERCISES, "01")
    assert set(found) == {"version", "status", "max_score", "tests"} and found["status"] == "fail"
    keys = {"name", "status", "score", "message", "test_code", "filename", "line_no", "duration"}
    assert all(set(each) == keys for each in found["tests"]) and found["max_score"] == 3
    assert formats.github(EXERCISES[:1], "01")["status"] == "pass"


def test_moodle_and_nbgrader():
    row = {key: "" for key in formats.NBGRADER} | {"student_id": "7", "email": "a@b.c", "name": "A", "score": 2}
    text = formats.moodle([row | {"max_score": 3}], {"7": "=1+1"})
    assert text.splitlines()[0] == "Email address,ID number,Full name,Grade,Maximum Grade,Feedback comments"
    assert text.splitlines()[1] == "a@b.c,7,A,2,3,'=1+1"
    assert formats.nbgrader([row]).splitlines()[0] == (
        "assignment,duedate,timestamp,student_id,last_name,first_name,email,raw_score,late_submission_penalty,score,max_score"
    )
    assert formats.safe("\x1b[2Jx") == "[2Jx"


def test_points_are_known_of_those_who_hand_in_nothing():
    points = [exercise.points for exercise in load_chapter(exercises_of("01")).exercises]
    assert gradebook.points_of("01", ()) == sum(points) and gradebook.points_of("01", (1, 3)) == points[0] + points[2]


def test_the_report_is_written_for_a_folder_of_names(tmp_path):
    assert Path(file_name("Zoë 番茄")).name == "Zoë 番茄"
