"""What the leaderboard of chapter 2 measures: python -m common.teach.leaderboard 02 --submission mine.py"""

import math
from pathlib import Path

from common.grade.checks import load, uniform
from common.random import generator
from common.teach.goals import Goal

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")


def weaker(ex, seed):
    """Both numbers divided by their goals; the smaller one counts."""
    turn = uniform(generator(seed), 0, 2 * math.pi)
    inside, spread = public.inside_and_spread(public.guided_points(ex.guidance_scale, 20_000, turn, seed), turn)
    return min(inside / public.INSIDE, spread / public.SPREAD)


GOALS = [
    Goal(
        "guidance_scale",
        "The smaller of inside / 0.84 and spread / 0.80",
        "larger",
        1.0,
        "DDIM samples in 30 steps.",
        weaker,
    )
]
