"""Difficulty labels: every exercise has one, its points fit it, the README shows both, and all chapters weigh the same."""

import ast
import re

import pytest

from common.grade.chapter import COURSE
from common.grade.stubs import authors, exercise_names

POINTS = {
    "easy": (1, 2),
    "middle": (2, 3),
    "hard": (3, 5),
}  # the least and the most that an exercise of this label is worth
TOTAL = 42  # of each chapter, so that a mean over chapters favours none
FOLDERS = [folder for folder in sorted(COURSE.glob("[0-9][0-9]_*/exercises")) if "DIFFICULTY" in authors(folder)]


def points_of(folder) -> dict[str, int]:
    """The points that checks.py gives, read without running it."""
    calls = [node for node in ast.walk(ast.parse((folder / "checks.py").read_text())) if isinstance(node, ast.Call)]
    return {call.args[0].value: call.args[1].value for call in calls if getattr(call.func, "id", None) == "Exercise"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name[:2])
def test_labels_fit_the_points_and_the_readme_shows_both(folder):
    labels, points = authors(folder)["DIFFICULTY"], points_of(folder)
    names = exercise_names((folder / "solutions.py").read_text())
    assert list(labels) == list(points) == names
    for name, label in labels.items():
        least, most = POINTS[label]
        assert least <= points[name] <= most, f"{name} is {label}"
    rows = re.findall(
        r"^\| (\d+) \| `(\w+)` \|.*\| (\w+) \| (\d+) \|$", (folder / "README.md").read_text(), re.MULTILINE
    )
    assert rows == [(str(k), name, labels[name], str(points[name])) for k, name in enumerate(names, 1)]
    assert sum(points.values()) == TOTAL


def test_chapters_1_to_3_have_labels():
    assert {folder.parent.name[:2] for folder in FOLDERS} >= {"01", "02", "03"}
