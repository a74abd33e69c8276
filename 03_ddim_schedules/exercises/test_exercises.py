"""Tests for you: each uses numbers that can be checked by hand. See README.md, "How to work".

python -m pytest 03_ddim_schedules/exercises -x                    your exercises.py, up to the first failure
EXERCISES=mine.py python -m pytest 03_ddim_schedules/exercises     another file
"""

import math
import os
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from common.grade.checks import call, expect, expect_gradients, load, make_level, parts, tensor

ALPHA_BAR = torch.tensor([1.0, 0.64, 0.5, 0.36])  # at t = 1: alpha = 0.8, sigma = 0.6; at t = 3 the other way round


class Level(NamedTuple):
    alpha: float
    sigma: float


MORE_NOISE, LESS_NOISE, CLEAN = Level(0.6, 0.8), Level(0.8, 0.6), Level(1.0, 0.0)


@pytest.fixture(scope="module")
def ex():
    """The file with the answers."""
    return load(Path(os.environ.get("EXERCISES") or Path(__file__).with_name("exercises.py")), "exercises")


def images(value: float, B: int = 2, C: int = 1, H: int = 2, W: int = 5) -> torch.Tensor:
    return torch.full((B, C, H, W), float(value))


def square_images(*values: float) -> torch.Tensor:
    """An image for each value, with as many rows and columns as there are images. (B, 1, B, B)"""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).repeat(1, 1, len(values), len(values))


def points(*pairs: tuple[float, float]) -> torch.Tensor:
    """Points in the plane as images of two pixels. (B, 1, 1, 2)"""
    return torch.tensor(pairs, dtype=torch.float32).view(-1, 1, 1, 2)


# ---------------------------------------------------------------------------------------------------------- 1. respace


def test_1_two_steps_of_four(ex):
    got = call(ex.respace, torch.tensor([1.0, 0.9, 0.72, 0.36, 0.18]), [2, 4])
    if isinstance(got, torch.Tensor) and got.dim() == 1:
        assert len(got) == 2, (
            f"two visited levels have two betas, but you returned {len(got)}: what comes before the first visited level?"
        )
    wrong = {
        "these are the full chain's betas at the visited levels; a long step needs the beta of all the steps it skips": torch.tensor(
            [0.2, 0.5]
        ),
        "you did not divide by the alpha_bar visited before: beta is the noise of one step, not of all up to there": torch.tensor(
            [0.28, 0.82]
        ),
        "these are the alphas; beta is 1 - alpha": torch.tensor([0.72, 0.25]),
        "the ratio is upside down: divide by the alpha_bar visited before": torch.tensor(
            [1 - 1 / 0.72, 1 - 0.72 / 0.18]
        ),
    }
    expect(
        got,
        torch.tensor([0.28, 0.75]),
        "alpha_bar goes from 1 to 0.72 to 0.18, so the betas are 1 - 0.72 and 1 - 0.18 / 0.72",
        wrong,
    )


def test_1_all_steps(ex):
    got = call(ex.respace, torch.tensor([1.0, 0.9, 0.72, 0.36, 0.18]), [1, 2, 3, 4])
    expect(
        got, torch.tensor([0.1, 0.2, 0.5, 0.5]), "where all levels are visited, the betas are those of the full chain"
    )


def test_1_one_step_over_everything(ex):
    got = call(ex.respace, torch.tensor([1.0, 0.5, 0.0001]), [2])
    wrong = {"no beta may be cut off at 0.999: a single step over all levels has 0.9999": torch.tensor([0.999])}
    expect(
        1000 * (1 - tensor(got, torch.ones(1))),
        torch.tensor([0.1]),
        "beta is 1 - 0.0001",
        {m: 1000 * (1 - v) for m, v in wrong.items()},
        1e-3,
    )


# ------------------------------------------------------------------------------------------------ 2. zero_terminal_snr


def test_2_three_steps(ex):
    got = call(ex.zero_terminal_snr, torch.tensor([1, 0.81, 0.49, 0.09]))  # roots 0.9, 0.7, 0.3
    wrong = {
        "you shifted and stretched alpha_bar; the paper does so with its square root": torch.tensor(
            [1, 0.81, 0.45, 0]
        ),
        "you shifted without stretching: the first step's alpha_bar should stay as it was": torch.tensor(
            [1, 0.36, 0.16, 0]
        ),
        "you set the last entry to 0 without shifting the others, which leaves one giant step": torch.tensor(
            [1, 0.81, 0.49, 0]
        ),
        "the first root was stretched to 1; it should be what it was": torch.tensor([1, 1, 4 / 9, 0]),
        "these are the roots: square them again": torch.tensor([1, 0.9, 0.6, 0]),
        "the paper's first entry is t = 1, but you held entry 0, the clean image": torch.tensor(
            [1, 0.734694, 0.326531, 0]
        ),
        "you stretched without shifting, so that the last entry is not 0": torch.tensor(
            [1, 0.81 * 2.25, 0.49 * 2.25, 0.09 * 2.25]
        ),
    }
    right = torch.tensor([1, 0.81, 0.36, 0])
    expect(got, right, "the roots 0.9, 0.7, 0.3 less 0.3 are 0.6, 0.4, 0; times 0.9 / 0.6 they are 0.9, 0.6, 0", wrong)
    assert abs(got[-1]) < 1e-12, f"the last entry must be exactly 0, not {float(got[-1]):.3g}"


# ----------------------------------------------------------------------------------------------------- 3. v_prediction


def test_3_there(ex):
    alpha, sigma = torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6])
    x, v = parts(call(ex.v_prediction, square_images(1, 1), square_images(2, 2), alpha, sigma, False), 2, "x and v")
    right = square_images(0.6 + 1.6, 0.8 + 1.2)
    wrong = {
        "the levels went to the columns of pixels, not to the images: give alpha and sigma the shape (B, 1, 1, 1)": right.transpose(
            0, 3
        ),
        "x and v are swapped": square_images(1.2 - 0.8, 1.6 - 0.6),
    }
    expect(x, right, "x should be alpha x0 + sigma eps, with the alpha and sigma of each image", wrong)
    wrong = {
        "v has the wrong sign: it is alpha eps - sigma x0": square_images(0.8 - 1.2, 0.6 - 1.6),
        "in v, alpha and sigma are swapped: it is alpha eps - sigma x0": square_images(1.6 - 0.6, 1.2 - 0.8),
        "v is a difference: alpha eps - sigma x0": square_images(1.2 + 0.8, 1.6 + 0.6),
    }
    expect(v, square_images(1.2 - 0.8, 1.6 - 0.6), "v should be alpha eps - sigma x0", wrong)


def test_3_back(ex):
    alpha, sigma = torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6])
    x, v = square_images(2.2, 2.0), square_images(0.4, 1.0)  # x0 = 1, eps = 2
    x0, eps = parts(call(ex.v_prediction, x, v, alpha, sigma, True), 2, "x0 and eps")
    wrong = {
        "going back, x0 and eps are swapped": square_images(2, 2),
        "going back, x0 has a wrong sign (or is this the way there?): x0 is alpha x less something": square_images(
            0.6 * 2.2 + 0.8 * 0.4, 0.8 * 2.0 + 0.6 * 1.0
        ),
        "x lost its factor alpha: x0 is not simply x - sigma v": square_images(2.2 - 0.32, 2.0 - 0.6),
    }
    expect(x0, square_images(1, 1), "x and v were made of x0 = 1 and eps = 2; solve the two equations for x0", wrong)
    wrong = {
        "going back, eps has a wrong sign: it is sigma x and something": square_images(
            0.6 * 0.4 - 0.8 * 2.2, 0.8 - 0.6 * 2.0
        ),
        "x lost its factor sigma, or v its alpha: solve for eps again": square_images(2.2 + 0.24, 2.0 + 0.8),
    }
    expect(eps, square_images(2, 2), "x and v were made of x0 = 1 and eps = 2; solve the two equations for eps", wrong)


def expect_finite(got, alpha: torch.Tensor, sigma: torch.Tensor, when: str) -> None:
    """Name the division by 0 where a result of some levels (B,) is NaN or infinite."""
    for image, a, s in zip(got if isinstance(got, torch.Tensor) else (), alpha.tolist(), sigma.tolist(), strict=False):
        if not torch.isfinite(image).all():
            divisor = "alpha, which is 0 in pure noise" if a == 0 else "sigma, which is 0 in a clean image"
            raise AssertionError(
                f"{when}, you divide by {divisor if 0 in (a, s) else 'something'}; no division is needed"
            )


def test_3_a_clean_image(ex):
    one, zero = torch.ones(1), torch.zeros(1)
    there = parts(call(ex.v_prediction, images(2, B=1), images(5, B=1), one, zero, False), 2, "x and v")
    back = parts(call(ex.v_prediction, images(2, B=1), images(5, B=1), one, zero, True), 2, "x0 and eps")
    for got, when in ((there, "on the way there"), (back, "going back")):
        for each, value in zip(got, (2, 5), strict=True):
            expect_finite(each, one, zero, when)
            expect(each, images(value, B=1), f"at alpha = 1 and sigma = 0, x is x0 and v is eps ({when})")


def test_3_the_image_is_known_even_where_x_is_all_noise(ex):
    zero, one = torch.zeros(2), torch.ones(2)
    for each in parts(call(ex.v_prediction, images(1), images(2), zero, one, False), 2, "x and v"):
        expect_finite(each, zero, one, "on the way there")
    x0, eps = parts(
        call(ex.v_prediction, images(2), images(-1), zero, one, True), 2, "x0 and eps"
    )  # x = eps = 2, v = -x0 = -1
    for each in (x0, eps):
        expect_finite(each, zero, one, "going back")
    expect(x0, images(1), "at alpha = 0, v is -x0")
    expect(eps, images(2), "at alpha = 0, x is eps")


# ------------------------------------------------------------------------------------------------------- 4. snr_weight


def weights(ex, prediction: str) -> torch.Tensor:
    """With gamma = 2, at SNR 9, 1 and 0.25."""
    alpha2 = torch.tensor([0.9, 0.5, 0.2])
    return call(ex.snr_weight, alpha2.sqrt(), (1 - alpha2).sqrt(), 2.0, prediction)


def test_4_x0(ex):
    wrong = {
        "your SNR is alpha / sigma; it is the ratio of the squares": torch.tensor([2, 1, 0.5]),
        "you took the larger of SNR and gamma; it is the smaller": torch.tensor([9.0, 2, 2]),
        "this is the weight for eps": torch.tensor([2 / 9, 1, 1]),
        "your SNR is upside down": torch.tensor([1 / 9, 1, 2]),
    }
    expect(
        weights(ex, "x0"),
        torch.tensor([2, 1, 0.25]),
        'with "x0" and gamma = 2, SNR 9 is cut to 2; SNR 1 and 0.25 stay',
        wrong,
    )


def test_4_eps(ex):
    wrong = {
        "your SNR is alpha / sigma; it is the ratio of the squares": torch.tensor([2 / 3, 1, 1]),
        "you took the larger of SNR and gamma; it is the smaller": torch.tensor([1.0, 2, 8]),
        "this is the weight for x0; for eps it is divided by the SNR": torch.tensor([2, 1, 0.25]),
        "your SNR is upside down": torch.tensor([1, 1, 0.5]),
    }
    expect(
        weights(ex, "eps"),
        torch.tensor([2 / 9, 1, 1]),
        'with "eps" and gamma = 2, SNR 9 counts 2 / 9; SNR 1 and 0.25 count 1',
        wrong,
    )


def test_4_v(ex):
    wrong = {
        "your SNR is alpha / sigma; it is the ratio of the squares": torch.tensor([2 / 4, 1 / 2, 0.5 / 1.5]),
        "you took the larger of SNR and gamma; it is the smaller": torch.tensor([0.9, 1, 1.6]),
        "for v, divide by SNR + 1; this is the weight for eps": torch.tensor([2 / 9, 1, 1]),
        "for v, divide by SNR + 1; this is the weight for x0": torch.tensor([2, 1, 0.25]),
        "this is SNR / (SNR + 1), without gamma: cut the SNR above first": torch.tensor([0.9, 0.5, 0.2]),
        "the cut comes too late: gamma limits the SNR above, before you divide by SNR + 1": torch.tensor(
            [2 / 3, 0.5, 0.2]
        ),
    }
    expect(
        weights(ex, "v"),
        torch.tensor([0.2, 0.5, 0.2]),
        'with "v" and gamma = 2, the weights are 2 / 10, 1 / 2 and 0.25 / 1.25',
        wrong,
    )


def test_4_nearly_clean_and_pure_noise(ex):
    """SNR 10,000 and 0.0001, as in the schedule of 1,000 levels."""
    alpha2 = torch.tensor([1 / 1.0001, 0.0001 / 1.0001])
    for prediction, goal in (("x0", [2, 1e-4]), ("eps", [2e-4, 1]), ("v", [2e-4, 1e-4])):
        got = call(ex.snr_weight, alpha2.sqrt(), (1 - alpha2).sqrt(), 2.0, prediction)
        ratio = tensor(got, torch.ones(2)) / torch.tensor(goal)
        hint = f'with "{prediction}" and gamma = 2, the weights at SNR 10,000 and 0.0001 are {goal}; is there a clamp?'
        expect(ratio, torch.ones(2), hint, atol=0.05)


# ----------------------------------------------------------------------------------------------- 5. flow_matching_loss


def test_5_by_hand(ex):
    x0, eps, t = square_images(1, 1, 2), square_images(3, 3, 0), torch.tensor([0.25, 1.0, 0.5])
    seen = {}

    def velocity(x, t):
        seen["x"], seen["t"] = x, t
        return torch.ones_like(x)

    got = call(ex.flow_matching_loss, velocity, x0, eps, t)
    assert seen, "the network was not called"
    assert seen["t"].shape == (3,), f"the network gets t with the shape (B,), not {tuple(seen['t'].shape)}"
    wrong = {
        "the time is reversed: t = 0 should be the image x0, and t = 1 the noise": square_images(2.5, 1, 1),
        "the levels went to the columns of pixels, not to the images: give t the shape (B, 1, 1, 1)": (1 - t) * x0
        + t * eps,
        "this is a mixture with alpha^2 + sigma^2 = 1; a flow moves along a straight line": (
            (1 - t).sqrt().view(-1, 1, 1, 1) * x0 + t.sqrt().view(-1, 1, 1, 1) * eps
        ),
    }
    expect(seen["x"], square_images(1.5, 3, 1), "x_t should be (1 - t) x0 + t eps: 1.5, 3 and 1", wrong)
    wrong = {
        "the velocity points from image to noise: eps - x0, not x0 - eps": torch.tensor([9.0, 9, 1]),
        "the target is the velocity eps - x0, not the noise": torch.tensor([4.0, 4, 1]),
        "the target is the velocity eps - x0, not the image": torch.tensor([0.0, 0, 1]),
        "take the mean over channels and pixels, not the sum": torch.tensor([9.0, 9, 81]),
    }
    expect(got, torch.tensor([1.0, 1, 9]), "the velocities are 2, 2 and -2, and the network predicts 1", wrong)


class ByItself:
    """A network that predicts its input, and remembers it."""

    def __call__(self, x, t):
        self.x = x
        return x


def test_5_both_ends(ex):
    for t, right in ((0.0, 1.0), (1.0, 3.0)):
        net = ByItself()
        call(ex.flow_matching_loss, net, images(1, B=1), images(3, B=1), torch.tensor([t]))
        expect(net.x, images(right, B=1), f"at t = {t:g} x_t is {'the image' if t == 0 else 'the noise'} itself")


def test_5_the_network_can_learn_from_it(ex):
    a = torch.ones((), requires_grad=True)
    got = ex.flow_matching_loss(lambda x, t: a * torch.ones_like(x), images(1), images(3), torch.tensor([0.5, 0.2]))
    expect_gradients(got, (a - 2).square().expand(2), {"the network": a})  # it predicts 1, and the velocity is 2


# -------------------------------------------------------------------------------------------------------- 6. ddim_step


def test_6_deterministic(ex):
    x = images(0.6 * 1 + 0.8 * 2)  # x0 = 1, eps = 2
    got = call(ex.ddim_step, x, images(2), 3, 1, 0.0, images(7), ALPHA_BAR)
    wrong = {
        "you stepped to the level t - 1; a step goes to t_next, any number of levels below": images(0.5**0.5 * 3),
        "did you use alpha_bar' where its square root belongs?": images(0.64 * 1 + 0.6 * 2),
        "the square root of 1 - alpha_bar' - fresh^2 is missing": images(0.8 * 1 + 0.36 * 2),
        "x0 is too faint: divide x - sqrt(1 - alpha_bar) eps by sqrt(alpha_bar)": images(0.8 * 0.6 + 0.6 * 2),
        "eta = 0 should add no fresh noise": images(
            0.8 * 1 + (0.36 - 0.5625 * 0.4375) ** 0.5 * 2 + (0.5625 * 0.4375) ** 0.5 * 7
        ),
    }
    expect(
        got,
        images(0.8 * 1 + 0.6 * 2),
        "x is 0.6 * 1 + 0.8 * 2, so x0 = 1; from t = 3 to 1 it becomes 0.8 * 1 + 0.6 * 2",
        wrong,
    )


def test_6_the_last_step_adds_no_noise(ex):
    x = images(0.6 * 1 + 0.8 * 1)  # x0 = 1, eps = 1
    got = call(ex.ddim_step, x, images(1), 3, 0, 1.0, images(1), ALPHA_BAR)
    wrong = {"you stepped to the level t - 1; a step goes to t_next, any number of levels below": ddim_by_hand(3, 2)}
    expect(
        got,
        images(1),
        "the last step should end in the clean image, at alpha_bar_0 = 1: is noise left or added at t_next = 0?",
        wrong,
    )


def test_6_far_from_0(ex):
    got = call(ex.ddim_step, images(3), images(0), 3, 1, 0.0, images(0), ALPHA_BAR)
    wrong = {
        "you clipped the predicted x0 to [-1, 1], as some samplers do; eq. 12 does not": images(0.8),
        "you clipped the result to [-1, 1], which is not asked for": images(1),
    }
    expect(got, images(4), "x0 is 3 / 0.6 = 5, and x' is 0.8 * 5", wrong)


def ddim_by_hand(t: int, t_next: int) -> torch.Tensor:
    """eta = 1, and x0, eps and z are all 1."""
    now, then = ALPHA_BAR[t].item(), ALPHA_BAR[t_next].item()
    variance = (1 - then) / (1 - now) * (1 - now / then)
    return images(then**0.5 + (1 - then - variance) ** 0.5 + variance**0.5)


def test_6_how_much_fresh_noise(ex):
    got = call(ex.ddim_step, images(0), images(0), 3, 1, 0.5, images(1), ALPHA_BAR)
    full = (0.36 / 0.64 * (1 - 0.36 / 0.64)) ** 0.5  # eq. 16 at eta = 1
    wrong = {
        "you multiplied z by the square of `fresh`": images((0.5 * full) ** 2),
        "eta is missing in eq. 16": images(full),
        "eta stands under the square root; eq. 16 has it in front": images(0.5**0.5 * full),
        "in eq. 16, the factor (1 - alpha_bar') / (1 - alpha_bar) is upside down": images(
            0.5 * (0.64 / 0.36 * 0.4375) ** 0.5
        ),
        "in eq. 16, the factor (1 - alpha_bar') / (1 - alpha_bar) is missing": images(0.5 * 0.4375**0.5),
    }
    expect(
        got,
        images(0.5 * full),
        "with x = eps = 0 only fresh z is left, and eq. 16 gives fresh = 0.5 sqrt(0.36 / 0.64) sqrt(1 - 0.36 / 0.64)",
        wrong,
    )


def test_6_fresh_noise_replaces_old(ex):
    got = call(ex.ddim_step, images(0.8), images(1), 3, 1, 1.0, images(0), ALPHA_BAR)  # x0 = 0
    fresh = (0.36 / 0.64 * (1 - 0.36 / 0.64)) ** 0.5
    wrong = {
        "the fresh noise is not taken away from the old: eps has the factor sqrt(1 - alpha_bar' - fresh^2)": images(
            0.6
        ),
        "the square root of 1 - alpha_bar' - fresh^2 is missing": images(0.36 - fresh**2),
        "fresh is taken from sqrt(1 - alpha_bar') itself; it is the squares, the variances, that are subtracted": images(
            0.6 - fresh
        ),
    }
    expect(
        got,
        images((0.36 - fresh**2) ** 0.5),
        "with x0 = z = 0 only eps is left, with the factor sqrt(1 - alpha_bar' - fresh^2)",
        wrong,
    )


# -------------------------------------------------------------------------------------------------------- 7. heun_step


class Denoiser:
    """Predicts the pairs (x0, eps) it was made with, one after the other; remembers x and the level of each call."""

    def __init__(self, *predictions: tuple[float, float]):
        self.predictions, self.x, self.levels = list(predictions), [], []

    def __call__(self, x, level):
        assert isinstance(level, tuple) and len(level) == 2, (
            "denoise needs a level: denoise(x, now) or denoise(ahead, then)"
        )
        assert level[1] > 0, (
            "denoise was evaluated at sigma' = 0, where there is no noise: the last step is Euler's, with one evaluation"
        )
        assert len(self.x) < len(self.predictions), (
            f"denoise was evaluated more often than {len(self.predictions)} times"
        )
        x0, eps = self.predictions[len(self.x)]
        self.x.append(x)
        self.levels.append(tuple(level))
        return x0 * torch.ones_like(x), eps * torch.ones_like(x)


def own(ex, *levels) -> list:
    """The levels as the file's own class Level has them."""
    return [make_level(ex, *level, Level) for level in levels]


def heun_by_hand(ex) -> tuple[torch.Tensor, Denoiser]:
    """From x = 5 with dalpha = 0.2, dsigma = -0.2. The first step is -0.2, the second 0.6."""
    denoise = Denoiser((1, 2), (5, 2))
    return call(ex.heun_step, denoise, images(5), *own(ex, MORE_NOISE, LESS_NOISE)), denoise


def test_7_where_it_evaluates(ex):
    _, denoise = heun_by_hand(ex)
    assert len(denoise.x) == 2, f"Heun's method evaluates the network twice, not {len(denoise.x)} times"
    expect(denoise.x[0], images(5), "the first evaluation is at x")
    wrong = {"the second evaluation was at x again; it is at `ahead`, where Euler's step leads": images(5)}
    expect(denoise.x[1], images(4.8), "the second evaluation is at ahead = 5 + 1 * 0.2 + 2 * (-0.2)", wrong)
    assert denoise.levels != [MORE_NOISE, MORE_NOISE], (
        "the second evaluation was at the old level; `ahead` is as noisy as the level then"
    )
    assert denoise.levels == [MORE_NOISE, LESS_NOISE], (
        f"the evaluations should be at the levels now and then, but were at {denoise.levels}"
    )


def test_7_the_average_of_both(ex):
    got, _ = heun_by_hand(ex)
    wrong = {
        "this is Euler's step; the second evaluation was not used": images(4.8),
        "the averaged step starts at x, not at `ahead`": images(4.8 + 0.2),
        "you added up both evaluations; take their average": images(5 + 0.4),
        "you used the second evaluation alone; take the average of both": images(5 + 0.6),
        "you averaged `ahead` with a step from there; average the evaluations, and step from x": images(
            (4.8 + 5.4) / 2
        ),
    }
    expect(got, images(5.2), "x' = 5 + (1 + 5) / 2 * 0.2 + (2 + 2) / 2 * (-0.2)", wrong)


def test_7_the_last_step_is_eulers(ex):
    denoise = Denoiser((1, 2))
    got = call(ex.heun_step, denoise, images(5), *own(ex, MORE_NOISE, CLEAN))
    expect(got, images(5 + 0.4 * 1 - 0.8 * 2), "the step to sigma' = 0 is x + x0 dalpha + eps dsigma")


def test_7_small_noise_is_not_the_end(ex):
    denoise = Denoiser((1, 2), (1, 4))
    got = call(ex.heun_step, denoise, images(5), *own(ex, Level(1.0, 1.002), Level(1.0, 0.002)))
    assert len(denoise.x) == 2, (
        "the step to sigma' = 0.002 takes two evaluations, as any other; only the step to exactly 0 is Euler's"
    )
    expect(got, images(5 - 3), "dsigma = -1, and eps is 2 and then 4, so x' = 5 - 3")


# ------------------------------------------------------------------------------------------------------------ 8. slerp


def test_8_a_third_of_the_way(ex):
    a = points((1, 0), (2, 0))
    b = points((0, 1), (-1, 3**0.5))  # 90 degrees away; 120 degrees away, at radius 2
    got = call(ex.slerp, a, b, 1 / 3)
    right = points((0.8660254, 0.5), (2 * 0.7660444, 2 * 0.6427876))
    wrong = {
        "this is a straight line, which cuts through the inside of the sphere: the noise between becomes too weak": a
        * 2
        / 3
        + b / 3,
        "a and b are swapped: at w = 0 all is a": points((0.5, 0.8660254), (2 * 0.1736482, 2 * 0.9848078)),
        "the angle is that of the whole batch; each image has its own": along(
            a, b, ((a * b).sum() / (a.norm() * b.norm())).acos()
        ),
    }
    expect(got, right, "a third of 90 degrees is 30, and a third of 120 is 40, on circles of radius 1 and 2", wrong)


def along(a, b, angle):
    return ((2 / 3 * angle).sin() * a + (1 / 3 * angle).sin() * b) / angle.sin()


def test_8_an_image_is_one_long_vector(ex):
    a, b = torch.ones(1, 2, 2, 2), torch.tensor([3.0, 1, 1, 1, -1, -1, -1, -3]).view(1, 2, 2, 2)
    half = call(ex.slerp, a, b, 0.5)
    hint = "all eight numbers together, a . b is 0; an image is one long vector, and half of 90 degrees is (a + b) / sqrt(2)"
    expect(half, (a + b) * 0.5**0.5, hint)


def test_8_the_same_noise_twice(ex):
    a = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for strength in (1.0, 0.7):
        got = call(ex.slerp, a, strength * a, 0.5)
        assert torch.isfinite(got).all(), (
            "NaN between parallel noises: clamp the cosine, which rounding can take above 1, and where the angle is nearly 0 take the straight line"
        )
        expect(
            got,
            (1 + strength) / 2 * a,
            f"between the same noise and {strength} of it lies the same noise, {(1 + strength) / 2} times",
        )


def test_8_each_image_chooses_for_itself(ex):
    a, b = points((3, 4), (1, 0)), points((3, 4), (0, 1))
    got = call(ex.slerp, a, b, 0.5)
    wrong = {"one pair of parallel noises sent the whole batch along the straight line": (a + b) / 2}
    expect(
        got,
        points((3, 4), (0.5**0.5, 0.5**0.5)),
        "the first pair is equal, the second 90 degrees apart: torch.where decides for each",
        wrong,
    )


def pairs_at(degrees: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Noises of four channels and the same length, with these angles between them. (N,) -> twice (N, 4, 3, 3)"""
    a, across = torch.randn(2, len(degrees), 36, generator=rng, dtype=torch.float64)
    across = across - (across * a).sum(1, keepdim=True) / a.square().sum(1, keepdim=True) * a
    across = across * a.norm(dim=1, keepdim=True) / across.norm(dim=1, keepdim=True)
    angle = degrees.double()[:, None].deg2rad()
    b = angle.cos() * a + angle.sin() * across
    return a.float().view(-1, 4, 3, 3), b.float().view(-1, 4, 3, 3)


def check_angles(ex, rng: torch.Generator, w: float) -> None:
    """Angles from 2 to 178 degrees, pair by pair, and opposite noises."""
    for degrees in (2.0, 10.0, 20.0, 60.0, 120.0, 170.0, 178.0):
        a, b = pairs_at(torch.tensor([degrees]), rng)
        angle = math.radians(degrees)
        right = (math.sin((1 - w) * angle) * a + math.sin(w * angle) * b) / math.sin(angle)
        wrong = {
            f"at {degrees:g} degrees you took the straight line; take it only where sin(angle) is below 0.001": (1 - w)
            * a
            + w * b
        }
        got = call(ex.slerp, a, b, w)
        expect(
            got,
            right,
            f"at {degrees:g} degrees this is not on the arc from a to b",
            wrong,
            atol=1e-3 if degrees < 150 else 2e-2,
        )
    a, _ = pairs_at(torch.tensor([90.0, 90]), rng)
    for strength in (1.0, 0.5):
        got = call(ex.slerp, a, -strength * a, w)
        hint = (
            "a and b are opposite, so sin(angle) is 0 as it is for parallel noises, and a quotient of roundings is left: "
            "take the straight line there too"
        )
        expect(got, (1 - w - w * strength) * a, hint)


def test_8_from_2_to_180_degrees(ex):
    check_angles(ex, torch.Generator().manual_seed(0), 0.25)


# ----------------------------------------------------------------------------------------------------- 9. reflow_pairs


def test_9_two_steps(ex):
    """velocity = x + t, from x = 1: two steps of Euler's method by hand."""
    times = []

    def velocity(x, t):
        assert isinstance(t, torch.Tensor) and t.shape == (len(x),), "the network needs t as a tensor of shape (B,)"
        times.append(t.tolist())
        return x + t.view(-1, 1, 1, 1)

    x0, eps = parts(call(ex.reflow_pairs, velocity, images(1), 2), 2, "x0 and eps")
    assert times != [[0.0, 0.0], [0.5, 0.5]], "the time is reversed: noise is at t = 1, and the image at t = 0"
    assert times != [[0.5, 0.5], [0.0, 0.0]], "each step uses the velocity at its beginning: the first one is at t = 1"
    assert times == [[1.0, 1.0], [0.5, 0.5]], f"two steps evaluate at t = 1 and t = 0.5, not at {times}"
    wrong = {
        "the sign is wrong: t falls, so a step of length h moves x by -h times the velocity": images(3.25),
        "x0 and eps are swapped: the images come first": images(1),
        "a step is 1 / steps long": images(0.0 - 0.5),
    }
    expect(x0, images(-0.25), "x = 1 - (1 + 1) / 2 = 0, then 0 - (0 + 0.5) / 2 = -0.25", wrong)
    expect(eps, images(1), "the second result should be the noise that was given")


def test_9_a_single_step(ex):
    def velocity(x, t):
        assert t.is_floating_point(), f"t is a number between 0 and 1, but the network was given {t.dtype}"
        return x + t.view(-1, 1, 1, 1)

    x0, _ = parts(call(ex.reflow_pairs, velocity, images(3, B=1), 1), 2, "x0 and eps")
    expect(x0, images(-1, B=1), "one step from x = 3 with the velocity 3 + 1 leads to 3 - 4")


def test_9_no_graph(ex):
    weight = torch.ones((), requires_grad=True)
    x0, eps = parts(call(ex.reflow_pairs, lambda x, t: weight * x, images(1), 4), 2, "x0 and eps")
    assert not x0.requires_grad and not eps.requires_grad, (
        "the pairs hold the graph of all steps: they are data for the next training, so generate them within torch.no_grad()"
    )


# ----------------------------------------------------------------------------------------------- 10. marginal_velocity


def on_line(*values: float) -> torch.Tensor:
    """One-dimensional images, (B, 1, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def test_10_a_single_image(ex):
    """With one x0 = 2, x = 1.5 at t = 0.5 leaves only eps = 1, so the velocity is -1."""
    wrong = {
        "the velocity points from image to noise: eps - x0, not x0 - eps": on_line(1),
        "this is E[x0 | x_t]; the velocity is E[eps - x0 | x_t]": on_line(2),
    }
    hint = "x0 = 2 and x = 0.5 x0 + 0.5 eps = 1.5 leave eps = 1, and eps - x0 = -1"
    expect(call(ex.marginal_velocity, on_line(1.5), torch.tensor([0.5]), on_line(2)), on_line(-1), hint, wrong)


def test_10_two_images(ex):
    """Images 1 and -1. At t = 0.8, x = 1.6 leaves eps = 1.75 or 2.25, so the first image is e times as likely."""
    got = call(ex.marginal_velocity, on_line(1.6, 0), torch.tensor([0.8, 1.0]), on_line(1, -1))

    def mixed(times: float) -> torch.Tensor:
        """The velocity if the first image is this many times as likely as the second."""
        return on_line((0.75 * times + 3.25) / (times + 1), 0)

    wrong = {
        "the nearer image was taken alone; the velocity is an average, weighted by how likely each image is": on_line(
            0.75, -1
        ),
        "all images count alike; each should count by how likely it is, given x": mixed(1),
        "the density of eps is exp(-|eps|^2 / 2); the 1/2 is missing": mixed(math.e**2),
        "the likelihood is that of eps = (x - (1 - t) x0) / t; you did not divide by t": mixed(math.e**0.64),
        "the likelihood is that of eps: the square of t belongs below, not t": mixed(math.e**0.8),
        "the likelihood is that of eps = (x - (1 - t) x0) / t; (1 - t) is missing before x0": mixed(math.e**5),
    }
    hint = (
        "the velocities are 1.75 - 1 and 2.25 + 1, with shares e / (1 + e) and 1 / (1 + e); "
        "in pure noise both images are equally likely"
    )
    expect(got, mixed(math.e), hint, wrong)


def test_10_an_image_of_432_pixels(ex):
    """exp(-|eps|^2 / 2) is 0 in float32, for both images; the first is the right one."""
    rng = torch.Generator().manual_seed(0)
    points, eps = torch.randn(2, 3, 12, 12, generator=rng), torch.randn(1, 3, 12, 12, generator=rng)
    got = call(ex.marginal_velocity, 0.7 * points[:1] + 0.3 * eps, torch.tensor([0.3]), points)
    if isinstance(got, torch.Tensor):
        assert torch.isfinite(got).all(), (
            "NaN: for an image of 432 numbers exp(-|eps|^2 / 2) is 0 in float32, and 0 / 0 is NaN; "
            "subtract the largest exponent first, as softmax does"
        )
    expect(got, eps - points[:1], "x was made of the first image, and the second is too far away to count", atol=1e-3)


@lru_cache
def averages_near(places: tuple[float, ...], points: tuple[float, ...], t: float) -> list[tuple[float, float, int]]:
    """The average of eps - x0 over the draws whose x_t lies in a narrow window. [(x, average, number of draws)]"""
    rng = torch.Generator().manual_seed(0)
    x0 = torch.tensor(points)[torch.randint(0, len(points), (2_000_000,), generator=rng)]
    eps = torch.randn(len(x0), generator=rng)
    x_t = (1 - t) * x0 + t * eps
    windows = [(x, (x_t - x).abs() < 0.01) for x in places]
    return [(x, float((eps - x0)[near].mean()), int(near.sum())) for x, near in windows]


def test_10_by_monte_carlo(ex):
    points, t = (-1.0, 0.4, 1.5), 0.6
    for x, average, draws in averages_near((-0.5, 0.2, 0.8), points, t):
        got = call(ex.marginal_velocity, on_line(x), torch.tensor([t]), on_line(*points))
        hint = f"at x = {x} and t = {t}, eps - x0 is {average:.2f} on average over {draws} draws"
        expect(got, on_line(average), hint, atol=0.05)


# ------------------------------------------------------------------------------------------------- 11. matching_losses


def test_11_one_image_leaves_no_difference(ex):
    """With a single image in the data set, both velocities are eps - x0."""
    x0, eps, t = on_line(2, 2), on_line(1, -1), torch.tensor([0.5, 0.25])
    got = parts(call(ex.matching_losses, lambda x, t: 0 * x, x0, eps, t, on_line(2)), 2, "conditional and marginal")
    for value, name in zip(got, ("conditional", "marginal"), strict=True):
        expect(
            value,
            torch.tensor(5.0),
            f"the velocities are -1 and -3 and the network predicts 0, so the {name} loss is (1 + 9) / 2",
        )


def test_11_two_images(ex):
    """x0 = 1 and eps = 0 give x_t = 0.5 at t = 0.5, where the images 1 and -1 have shares e^2 / (1 + e^2) and 1 / (1 + e^2)."""
    conditional, marginal = parts(
        call(ex.matching_losses, lambda x, t: 0 * x, on_line(1), on_line(0), torch.tensor([0.5]), on_line(1, -1)),
        2,
        "conditional and marginal",
    )
    share = math.e**2 / (1 + math.e**2)
    velocity = -share + 3 * (1 - share)
    wrong = {"conditional and marginal are swapped": torch.tensor(velocity**2)}
    expect(conditional, torch.tensor(1.0), "the straight line has the velocity 0 - 1", wrong)
    wrong = {"this is the conditional loss again": torch.tensor(1.0)}
    expect(
        marginal, torch.tensor(velocity**2), "the marginal velocity is the average of -1 and 3 in these shares", wrong
    )


def test_11_the_network_can_learn_from_both(ex):
    a = torch.ones((), requires_grad=True)
    x0, eps, t = on_line(2, 2), on_line(1, -1), torch.tensor([0.5, 0.25])
    got = ex.matching_losses(lambda x, t: a * torch.ones_like(x), x0, eps, t, on_line(2))
    right = ((a + 1).square() + (a + 3).square()) / 2  # the velocities are -1 and -3
    for value, name in zip(parts(got, 2, "conditional and marginal"), ("conditional", "marginal"), strict=True):
        hint = f"the {name} loss is right, but its gradient is not: is a part of the prediction detached?"
        expect_gradients(value, right, {"the network": a}, hint)


def test_11_the_gradients_are_equal(ex):
    """The network is a t x: the difference of both losses should not depend on a, so their derivatives are equal."""
    rng, points = torch.Generator().manual_seed(1), on_line(-1, 0.5, 2)
    x0 = points[torch.randint(0, 3, (50_000,), generator=rng)]
    eps, t = torch.randn(x0.shape, generator=rng), 0.05 + 0.95 * torch.rand(len(x0), generator=rng)
    a, gaps = torch.tensor(0.7, requires_grad=True), []
    losses = parts(ex.matching_losses(lambda x, t: a * t.view(-1, 1, 1, 1) * x, x0, eps, t, points), 2, "two losses")
    slopes = [torch.autograd.grad(loss, a, retain_graph=True)[0] if loss.requires_grad else None for loss in losses]
    assert None not in slopes, "a loss holds no graph back to the network: nothing can be trained with it"
    expect(
        slopes[1],
        slopes[0],
        f"the derivatives with respect to the network are {slopes[0]:.3f} and {slopes[1]:.3f}",
        atol=0.02,
    )
    for scale in (-1.0, 0.0, 2.0):
        conditional, marginal = ex.matching_losses(lambda x, t: scale * x, x0, eps, t, points)  # noqa: B023
        gaps.append((conditional - marginal).item())
    assert max(gaps) - min(gaps) < 0.05, (
        f"for three networks the losses differ by {[round(gap, 2) for gap in gaps]}; it should be one number"
    )


# --------------------------------------------------------------------------------------------------- 12. dpmpp_2m_step


def test_12_the_first_step_has_no_history(ex):
    got = call(ex.dpmpp_2m_step, images(4), images(2), *own(ex, MORE_NOISE, LESS_NOISE), None, None)
    # sigma' / sigma = 0.75; e^-h = (0.6 / 0.8) / (0.8 / 0.6) = 0.5625
    wrong = {
        "the sign before alpha' is wrong: e^-h - 1 is negative, so -alpha' (e^-h - 1) is positive": images(
            3 - 0.35 * 2
        ),
        "your lambda is the logarithm of the SNR; it is half of that, log(alpha / sigma)": images(
            3 + 0.8 * (1 - 0.5625**2) * 2
        ),
        "you used e^h where e^-h belongs": images(3 - 0.8 * (1 / 0.5625 - 1) * 2),
        "sigma' / sigma is upside down": images(4 / 0.75 + 0.35 * 2),
        "without history D is x0; did you take a missing guess for 0?": images(3 + 0.35 * 3),
    }
    expect(got, images(0.75 * 4 + 0.8 * 0.4375 * 2), "with D = x0 = 2, x' = 0.75 * 4 + 0.8 * (1 - 0.5625) * 2", wrong)


def test_12_history(ex):
    # h = log 4, the step before log 2, so r = 1/2
    before, now, then = own(ex, Level(1.0, 8.0), Level(1.0, 4.0), Level(1.0, 1.0))
    got = call(ex.dpmpp_2m_step, images(8), images(3), now, then, images(1), before)

    def step(D: float, shrink: float = 1 / 4) -> torch.Tensor:
        return images(8 / 4 + (1 - shrink) * D)

    wrong = {
        "r is upside down: it is the step before divided by this one": step(3 + 2 / 4),
        "history was not used": step(3),
        "history counts twice: the difference is divided by 2 r": step(3 + 2 / 0.5),
        "the difference is the wrong way round: x0 - x0_old goes on changing": step(3 - 2),
        "your lambda is the logarithm of the SNR; it is half of that, log(alpha / sigma)": step(3 + 2, shrink=1 / 16),
        "the sign before alpha' is wrong: e^-h - 1 is negative": images(2 - 0.75 * 5),
    }
    expect(got, step(3 + 2), "h = log 4 and r = 1/2, so D = 3 + (3 - 1) and x' = 8 / 4 + (1 - 1/4) D", wrong)


def test_12_the_last_step_lands_on_x0(ex):
    try:
        before, now, then = own(ex, MORE_NOISE, LESS_NOISE, CLEAN)
        got = call(ex.dpmpp_2m_step, images(4), images(2), now, then, images(1), before)
    except (ArithmeticError, ValueError) as problem:
        raise AssertionError(
            f"at the last step sigma' = 0 and lambda' is infinite: no formula, x' is alpha' x0 (you got: {problem})"
        ) from None
    expect(got, images(2), "at the last step sigma' = 0, so x' is alpha' x0, with no history")


def test_12_small_noise_is_not_the_end(ex):
    for sigma in (0.09, 0.004):
        got = call(
            ex.dpmpp_2m_step, images(4), images(2), *own(ex, Level(1.0, 2 * sigma), Level(1.0, sigma)), None, None
        )
        wrong = {f"only at sigma' = 0 x' is alpha' x0, but you took it at sigma' = {sigma}": images(2)}
        expect(got, images(2 + 1), f"from sigma = {2 * sigma} to {sigma}, x' is half of x and half of x0", wrong)


# ----------------------------------------------------------------------------------------------- 13. fix_respaced_ddpm


def respaced_ddpm(
    predict_eps,
    x,
    times,
    alpha_bar,
    noise,
    before=lambda t, s: s,
    spread=lambda now, then, beta: (1 - then) / (1 - now) * beta,
):
    """Algorithm 2 on a shorter chain, with variations: the level before t, and the variance of the fresh noise."""
    for k, (t, s) in enumerate(pairwise(times)):
        now, then = alpha_bar[t], alpha_bar[before(t, s)]
        beta = 1 - now / then
        x = (x - beta / (1 - now).sqrt() * predict_eps(x, t)) / (1 - beta).sqrt()
        if s > 0:
            x = x + spread(now, then, beta).sqrt() * noise(k, x)
    return x


def respacing_mistakes() -> dict:
    """What is wrong: what respaced_ddpm does then."""
    return {
        "these are the full chain's betas: a step from t to t_next should remove the noise of all levels between": {
            "before": lambda t, s: t - 1
        },
        "the fresh noise has the variance beta; it should be (1 - alpha_bar') / (1 - alpha_bar) beta, as before": {
            "spread": lambda now, then, beta: beta
        },
        "the fresh noise is missing": {"spread": lambda now, then, beta: 0 * beta},
    }


def half_noise(x, t):
    """A network that takes half of x for noise."""
    return x / 2 + 0.01 * t


def check_respaced(ex, x, times, alpha_bar, noise, hint) -> None:
    for source, wrongly in (
        (lambda k, x: 0 * x, "before any noise is added"),
        (noise, "only the fresh noise is wrong"),
    ):
        walk = partial(respaced_ddpm, half_noise, x, times, alpha_bar, source)
        wrong = {message: partial(walk, **change) for message, change in respacing_mistakes().items()}
        got = call(ex.fix_respaced_ddpm, half_noise, x, times, alpha_bar, source)
        expect(got, walk(), f"{hint} ({wrongly})", wrong)


def test_13_two_steps(ex):
    check_respaced(
        ex,
        images(1),
        [3, 1, 0],
        ALPHA_BAR,
        lambda k, x: torch.full_like(x, k + 1.0),
        "the first step goes from alpha_bar 0.36 to 0.64, so its beta is 1 - 0.36 / 0.64; the second is 1 - 0.64",
    )


def test_13_all_steps(ex):
    check_respaced(
        ex,
        images(1),
        [3, 2, 1, 0],
        ALPHA_BAR,
        lambda k, x: torch.full_like(x, k + 1.0),
        "with all levels the chain was right before: is it still?",
    )


# ----------------------------------------------------------------------------------------------- 14. fix_heun_sampling


class SmoothDenoiser:
    """Predicts cos(x + 2 sigma) as the image, and what is left as the noise. Remembers its levels."""

    def __init__(self):
        self.x, self.levels = [], []

    def predict(self, x, level):
        x0 = torch.cos(x + 2 * level.sigma)
        return x0, (x - level.alpha * x0) / level.sigma

    def __call__(self, x, level):
        assert level.sigma > 0, "denoise was evaluated at sigma = 0, where there is no noise: the last step is Euler's"
        self.x.append(x.clone())
        self.levels.append(tuple(level))
        return self.predict(x, level)


def check_heun_sampling(ex, x: torch.Tensor, levels: list) -> None:
    """Follows the calls of one's own program with the right numbers, so that the first wrong one is named."""
    denoise, right, expected = SmoothDenoiser(), x, []
    got = call(ex.fix_heun_sampling, denoise, x, levels)
    for now, then in pairwise(levels):
        dalpha, dsigma = then.alpha - now.alpha, then.sigma - now.sigma
        x0, eps = denoise.predict(right, now)
        ahead = right + x0 * dalpha + eps * dsigma
        expected.append((now, right))
        if then.sigma == 0:
            right = ahead
            break
        expected.append((then, ahead))
        x0_ahead, eps_ahead = denoise.predict(ahead, then)
        right = right + (x0 + x0_ahead) / 2 * dalpha + (eps + eps_ahead) / 2 * dsigma
    assert len(denoise.x) == len(expected), (
        f"{len(levels) - 1} steps need {len(expected)} evaluations, not {len(denoise.x)}"
    )
    for k, (level, where) in enumerate(expected):
        which = f"evaluation {k + 1} of {len(expected)}"
        assert denoise.levels[k] == tuple(level), (
            f"{which} is at the wrong level, sigma = {denoise.levels[k][1]:.2f} instead of {level.sigma:.2f}: "
            "the second evaluation of a step is at the level that the step leads to"
        )
        expect(denoise.x[k], where, f"{which} is at the right level, but at the wrong x")
    expect(got, right, "the evaluations are right, but not what is made of the last one")


def test_14_where_it_evaluates(ex):
    check_heun_sampling(ex, images(1.5), own(ex, Level(0.6, 0.8), Level(0.8, 0.6), Level(0.96, 0.28), CLEAN))
    check_heun_sampling(ex, images(1.5), own(ex, Level(1.0, 1.0), Level(1.0, 0.05), Level(1.0, 0.002), CLEAN))


# ----------------------------------------------------------------------------------------------- 15. fix_flow_sampling


def flow_mistakes(velocity, x: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    """{what is wrong: what comes out}"""

    def walk(time, sign=-1.0):
        y = x
        for k in range(steps):
            y = y + sign * velocity(y, torch.full((len(y),), time(k))) / steps
        return y

    return {
        "the network still gets the times 0, 1/steps, ... while x goes from noise (t = 1) to the image (t = 0)": walk(
            lambda k: k / steps
        ),
        "now both are reversed: x moves away from the images; only the times were wrong": walk(
            lambda k: k / steps, 1.0
        ),
        "the times are right, but x moves away from the images: with t falling, a step is -1/steps times the velocity": walk(
            lambda k: 1 - k / steps, 1.0
        ),
        "each step uses the velocity at its end; Euler's method uses that at its beginning, t = 1 - k / steps": walk(
            lambda k: 1 - (k + 1) / steps
        ),
        "the middle of each step was taken; Euler's method uses the velocity at the beginning": walk(
            lambda k: 1 - (k + 0.5) / steps
        ),
    }


def test_15_times_and_images(ex):
    def velocity(x, t):
        assert t.shape == (len(x),), "the network needs t of shape (B,)"
        return x + 2 * t.view(-1, 1, 1, 1)

    got = call(ex.fix_flow_sampling, velocity, images(1), 2)
    hint = "two steps by hand: 1 - (1 + 2) / 2 = -0.5 with t = 1, and -0.5 - (-0.5 + 1) / 2 = -0.75 with t = 0.5"
    expect(got, images(-0.75), hint, flow_mistakes(velocity, images(1), 2))


def test_15_lands_on_a_single_image(ex):
    """For a data set of one image, 3, the velocity is (x - 3) / t, and every number of steps leads to it exactly."""

    def velocity(x, t):
        return (x - 3) / t.view(-1, 1, 1, 1).clamp(min=1e-9)

    for steps in (1, 5):
        got = call(ex.fix_flow_sampling, velocity, images(-1), steps)
        expect(got, images(3), f"{steps} step(s) should lead from the noise -1 to the only image, 3", atol=1e-3)


# -------------------------------------------------------------------------------------------- 16. fix_consistency_loss


def consistency_slopes(f, x0, eps, now, then) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and its derivatives with respect to f's weight a if the gradient runs through one part or both."""
    x_now, x_then = x0 + now.view(-1, 1, 1, 1) * eps, x0 + then.view(-1, 1, 1, 1) * eps
    a, b = (torch.tensor(f.a.item(), requires_grad=True) for _ in range(2))  # weights of prediction and target
    loss = (f.predict(x_now, now, a) - f.predict(x_then, then, b)).square().mean()
    prediction, target = torch.autograd.grad(loss, (a, b))
    return loss.detach(), {"prediction": prediction, "target": target, "both": prediction + target}


class OneWeight:
    """f(x, sigma) = x / (1 + a sigma^2), with a weight a."""

    def __init__(self, a: float):
        self.a = torch.tensor(a, requires_grad=True)

    def predict(self, x, sigma, a):
        return x / (1 + a * sigma.view(-1, 1, 1, 1) ** 2)

    def __call__(self, x, sigma):
        assert sigma.shape == (len(x),), "f needs one sigma for each image, (B,)"
        return self.predict(x, sigma, self.a)


def check_consistency(ex, f, x0, eps, now, then) -> None:
    loss, slopes = consistency_slopes(f, x0, eps, now, then)
    got = tensor(call(ex.fix_consistency_loss, f, x0, eps, now, then), loss)
    expect(got.detach(), loss, "the value of the loss was right before, and should stay")
    assert got.requires_grad, "the loss has no gradient at all: only the target is fixed"
    wrong = {
        "the gradient runs through the target too: the network lowers the loss by moving the target to the prediction": slopes[
            "both"
        ],
        "the prediction was detached instead of the target: the target follows the prediction": slopes["target"],
    }
    (slope,) = torch.autograd.grad(got, f.a, allow_unused=True)
    assert slope is not None, (
        "no gradient reaches the network: requires_grad_() on a finished number does not bring the graph back"
    )
    expect(
        slope,
        slopes["prediction"],
        "the gradient should run through f(x_now, now), and through nothing else",
        wrong,
        atol=1e-5,
    )


def test_16_the_target_is_fixed(ex):
    now, then = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0])
    check_consistency(ex, OneWeight(0.8), images(1), images(0.5), now, then)


# ------------------------------------------------------------------------------------------------- 17. ten_evaluations


SIGMA_MAX, ERROR, BUDGET = 20.0, 0.04, 10


def blobs(n: int = 5, turn: float = 0.0) -> torch.Tensor:
    """Centres of n blobs on a circle of radius 1. (n, 2)"""
    angle = torch.arange(n) * (2 * math.pi / n) + turn
    return torch.stack([angle.cos(), angle.sin()], 1)


class IdealDenoiser:
    """The exact denoiser of points in Gaussian blobs, which counts its evaluations."""

    def __init__(self, centres: torch.Tensor, width: float = 0.25):
        self.centres, self.width, self.evaluations = centres, width, 0

    def __call__(self, x, level):
        alpha, sigma = float(level[0]), float(level[1])
        assert alpha > 0 and sigma > 0, (
            f"denoise was evaluated at alpha = {alpha:g} and sigma = {sigma:g}; both must be above 0"
        )
        self.evaluations += 1
        points, variance = x.reshape(-1, 2), (alpha * self.width) ** 2 + sigma**2
        # |x - alpha centre|^2 without |x|^2, which is the same for all blobs. (N, blobs)
        squared = alpha**2 * self.centres.square().sum(1) - 2 * alpha * (points @ self.centres.T)
        centre = (squared / (-2 * variance)).softmax(1) @ self.centres
        x0 = (centre + alpha * self.width**2 / variance * (points - alpha * centre)).view(x.shape)
        return x0, (x - alpha * x0) / sigma


def exact_points(denoise: IdealDenoiser, x: torch.Tensor) -> torch.Tensor:
    """Where 200 steps of Heun's method lead, along x = x0 + sigma eps."""
    sigmas = [SIGMA_MAX * (1e-3 / SIGMA_MAX) ** (k / 199) for k in range(200)]
    for now, then in pairwise(sigmas):
        _, eps = denoise(x, (1.0, now))
        _, ahead = denoise(x + (then - now) * eps, (1.0, then))
        x = x + (then - now) * (eps + ahead) / 2
    return denoise(x, (1.0, sigmas[-1]))[0]


def starts(seed: int, n: int) -> torch.Tensor:
    return SIGMA_MAX * torch.randn(n, 1, 1, 2, generator=torch.Generator().manual_seed(seed))


@lru_cache
def exact_ends(centres: tuple[tuple[float, ...], ...], seed: int, n: int) -> torch.Tensor:
    return exact_points(IdealDenoiser(torch.tensor(centres)), starts(seed, n))


def sampling_error(sampler, centres: torch.Tensor, seed: int, n: int = 500) -> float:
    """Mean distance to the exact points, after checking the number of evaluations."""
    x = starts(seed, n)
    denoise = IdealDenoiser(centres)
    got = call(sampler, denoise, x, SIGMA_MAX)
    assert isinstance(got, torch.Tensor) and got.shape == x.shape, (
        f"{n} points were expected, of the shape {tuple(x.shape)}"
    )
    assert denoise.evaluations <= BUDGET, f"{denoise.evaluations} evaluations; at most {BUDGET} are allowed"
    return (got - exact_ends(tuple(map(tuple, centres.tolist())), seed, n)).flatten(1).norm(dim=1).mean().item()


def check_error(sampler, centres: torch.Tensor, seed: int, goal: float) -> None:
    error = sampling_error(sampler, centres, seed)
    assert math.isfinite(error), "the points hold NaN or infinity"
    assert error < goal, (
        f"the mean distance to the exact points is {error:.3f}, goal {goal:g}; another solver, or other levels?"
    )


def test_17_the_error_is_small(ex):
    check_error(ex.ten_evaluations, blobs(), 0, ERROR)
