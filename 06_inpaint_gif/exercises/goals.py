"""What the leaderboard of chapter 6 measures: python -m common.teach.leaderboard 06 --submission mine.py"""

from pathlib import Path

import torch

from common.grade.checks import call, integer, load, tensor
from common.random import generator
from common.teach.goals import Goal

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")


def unevenness(ex, seed):
    """How far the displacement of a frame is from the mean displacement, at most. All other rules are those of the exercise."""
    frames = integer(generator(seed), 40, 100)
    got = tensor(call(ex.own_move, frames), torch.empty(frames, 3)).detach()
    public.check_own_move(lambda n: got, frames)
    after = got.double().roll(-1, 0)
    length = ((after - got) / after[:, 2:] * torch.tensor([1, 1, 6**-0.5])).norm(dim=1)
    return float((length / length.mean() - 1).abs().max())


def wrong_spread(ex, seed):
    """By which share the samples are too near to the exact mean, or too far from it."""
    data = public.Curves(48, 16, 34, seed, B=1500)
    got = call(ex.fill_the_hole, data.denoise, data.z, data.hole, data.noise)
    got = tensor(got, data.z).detach()
    assert data.calls <= 200, f"the denoiser was evaluated {data.calls} times; at most 200 were allowed"
    assert torch.equal(got[:, ~data.hole], data.z[:, ~data.hole]), "the known part must be exactly z at the end"
    inside = got[:, data.hole].double()
    bias = float((inside - data.mean).mean(0).abs().max() / data.std)
    assert bias < 0.5, f"on average the samples are {bias:.2f} standard deviations away from the exact mean"
    return abs(float((inside - data.mean).square().mean().sqrt() / data.std) - 1)


GOALS = [
    Goal(
        "own_move",
        "Largest difference of a displacement from the mean displacement",
        "smaller",
        0.03,
        "The rules of the exercise hold for each number of frames that is drawn.",
        unevenness,
    ),
    Goal(
        "fill_the_hole",
        "Difference of the spread from the exact spread",
        "smaller",
        0.15,
        "The denoiser may be evaluated 200 times.",
        wrong_spread,
    ),
]
