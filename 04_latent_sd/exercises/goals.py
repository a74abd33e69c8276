"""What the leaderboard of chapter 4 measures: python -m common.teach.leaderboard 04 --submission mine.py"""

import math
from pathlib import Path

import torch

from common.grade.checks import call, load, tensor, uniform
from common.random import generator
from common.teach.goals import Goal

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")
COPIES = public.COPIES + 0.02  # with room for the difference between one draw and the next


def distance(ex, seed, n=2000):
    """The energy distance of new codes to held-out codes, of which not too many may be copies."""
    rng = generator(seed)
    phase = uniform(rng, 0, 2 * math.pi)
    codes, held_out = public.arcs(n, rng, phase), public.arcs(2 * n, rng, phase)
    got = tensor(call(ex.sample_prior, codes, n, generator(seed, 1)), codes).float().detach()
    assert torch.isfinite(got).all(), "some of the codes are NaN or infinite"
    copied = float((torch.cdist(got, codes).min(1).values < 0.01).float().mean())
    assert copied <= COPIES, f"a share of {copied:.2f} of the codes are copies; at most {COPIES:.2f} are allowed"
    return public.energy_distance(got, held_out)


GOALS = [
    Goal(
        "sample_prior",
        "Energy distance to held-out codes",
        "smaller",
        public.DISTANCE,
        f"2,000 codes within 20 seconds, of which a share of {COPIES:.2f} may be copies.",
        distance,
        seconds=20.0,
    )
]
