"""What the leaderboard of chapter 3 measures: python -m common.teach.leaderboard 03 --submission mine.py"""

import math
from pathlib import Path

from common.grade.checks import integer, load, uniform
from common.random import generator
from common.teach.goals import Goal

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")


def error(ex, seed):
    """The mean distance of 2,000 points from the exact ones, for blobs that this seed draws."""
    rng = generator(seed)
    centres = public.blobs(integer(rng, 4, 6), uniform(rng, 0, 2 * math.pi))
    return public.sampling_error(ex.ten_evaluations, centres, seed, n=2000)


GOALS = [
    Goal(
        "ten_evaluations",
        "Mean distance from the exact points",
        "smaller",
        public.ERROR,
        "The network may be evaluated 10 times for each set of blobs.",
        error,
    )
]
