"""What the leaderboard of chapter 1 measures: python -m common.teach.leaderboard 01 --submission mine.py"""

from pathlib import Path

from common.grade.checks import load
from common.teach.goals import Goal

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")


def error(ex, seed):
    """The error of 20,000 samples of blobs that this seed draws."""
    return public.error_of_fifteen(ex, seed, n=20_000)


GOALS = [
    Goal(
        "fifteen_evaluations",
        "Error of the samples",
        "smaller",
        public.GOAL,
        "The network may be evaluated 15 times for each set of blobs.",
        error,
    )
]
