"""What the leaderboard of chapter 5 measures: python -m common.teach.leaderboard 05 --submission mine.py"""

from pathlib import Path

import torch

from common.grade.checks import call, integer, load, parts
from common.random import generator
from common.teach.goals import Goal

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")


def weaker(ex, seed):
    """Both numbers divided by their goals; the larger one counts. The least that any answer reaches is 1 / 1.01."""
    rank = integer(generator(seed), 2, 8)
    adapters, scales = public.some_adapters(seed)
    D = public.merged(adapters, scales)
    A, B = parts(call(ex.merge_to_rank, adapters, scales, rank), 2, "A and B")
    public.expect_shape(A, (rank, D.shape[1]), "A")
    public.expect_shape(B, (D.shape[0], rank), "B")
    smallest = torch.linalg.svdvals(D)[rank:].square().sum().sqrt()
    balance = max(float(A.std() / B.std()), float(B.std() / A.std()))
    return max(float((D - B @ A).norm() / smallest) / 1.01, balance / 1.5)


GOALS = [
    Goal(
        "merge_to_rank",
        "The larger of error / smallest error / 1.01 and balance / 1.5",
        "smaller",
        1.0,
        "The best possible value is 0.9901, so several hand-ins can share the first place.",
        weaker,
    )
]
