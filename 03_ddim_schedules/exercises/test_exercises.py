"""Tests for you: each uses numbers that can be checked by hand. See README.md, "How to work".

python -m pytest 03_ddim_schedules/exercises -x                    your exercises.py, up to the first failure
EXERCISES=mine.py python -m pytest 03_ddim_schedules/exercises     another file
"""

import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from common.grade.checks import call, expect, load

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


# ------------------------------------------------------------------------------------------------- 1. respace


def test_1_two_steps_of_four(ex):
    got = call(ex.respace, torch.tensor([1.0, 0.9, 0.72, 0.36, 0.18]), [2, 4])
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


# ----------------------------------------------------------------------------------------------- 2. ddim_step


def test_2_without_chance(ex):
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


def test_2_the_last_step_adds_no_noise(ex):
    x = images(0.6 * 1 + 0.8 * 1)  # x0 = 1, eps = 1
    got = call(ex.ddim_step, x, images(1), 3, 0, 1.0, images(1), ALPHA_BAR)
    wrong = {"you stepped to the level t - 1; a step goes to t_next, any number of levels below": ddim_by_hand(3, 2)}
    expect(
        got,
        images(1),
        "the last step should end in the clean image, at alpha_bar_0 = 1: is noise left or added at t_next = 0?",
        wrong,
    )


def ddim_by_hand(t: int, t_next: int) -> torch.Tensor:
    """eta = 1, and x0, eps and z are all 1."""
    now, then = ALPHA_BAR[t].item(), ALPHA_BAR[t_next].item()
    variance = (1 - then) / (1 - now) * (1 - now / then)
    return images(then**0.5 + (1 - then - variance) ** 0.5 + variance**0.5)


def test_2_how_much_fresh_noise(ex):
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


def test_2_fresh_noise_replaces_old(ex):
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


# -------------------------------------------------------------------------------------------- 3. v_prediction


def pair(got: object) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(got, tuple) and len(got) == 2, "two tensors were expected here: is a `return` missing?"
    return got


def test_3_there(ex):
    alpha, sigma = torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6])
    x, v = pair(call(ex.v_prediction, square_images(1, 1), square_images(2, 2), alpha, sigma, False))
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
    x0, eps = pair(call(ex.v_prediction, x, v, alpha, sigma, True))
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


def test_3_the_image_is_known_even_where_x_is_all_noise(ex):
    zero, one = torch.zeros(2), torch.ones(2)
    x0, eps = pair(call(ex.v_prediction, images(2), images(-1), zero, one, True))  # x = eps = 2, v = -x0 = -1
    assert torch.isfinite(x0).all() and torch.isfinite(eps).all(), (
        "you divide by alpha, which is 0 in pure noise; going back needs no division"
    )
    expect(x0, images(1), "at alpha = 0, v is -x0")
    expect(eps, images(2), "at alpha = 0, x is eps")


# ----------------------------------------------------------------------------------------------- 4. heun_step


class Denoiser:
    """Answers the pairs (x0, eps) it was given, one after the other;
    remembers what it was shown and which level it was told.
    """

    def __init__(self, *answers: tuple[float, float]):
        self.answers, self.x, self.told = list(answers), [], []

    def __call__(self, x, level):
        assert isinstance(level, tuple) and len(level) == 2, (
            "denoise must be told a level: denoise(x, now) or denoise(ahead, then)"
        )
        assert level[1] > 0, (
            "denoise was asked at sigma' = 0, where there is no noise to see: the last step is Euler's, with one look"
        )
        assert len(self.x) < len(self.answers), f"denoise was asked more often than {len(self.answers)} times"
        x0, eps = self.answers[len(self.x)]
        self.x.append(x)
        self.told.append(tuple(level))
        return x0 * torch.ones_like(x), eps * torch.ones_like(x)


def heun_by_hand(ex) -> tuple[torch.Tensor, Denoiser]:
    """From x = 5 with dalpha = 0.2, dsigma = -0.2. The first look says a slope of -0.2, the second 0.6."""
    denoise = Denoiser((1, 2), (5, 2))
    return call(ex.heun_step, denoise, images(5), MORE_NOISE, LESS_NOISE), denoise


def test_4_where_it_looks(ex):
    _, denoise = heun_by_hand(ex)
    assert len(denoise.x) == 2, f"Heun's method looks twice; looks taken: {len(denoise.x)}"
    expect(denoise.x[0], images(5), "the first look is at x")
    wrong = {"the second look was at x again; it is at `ahead`, where Euler's step leads": images(5)}
    expect(denoise.x[1], images(4.8), "the second look is at ahead = 5 + 1 * 0.2 + 2 * (-0.2)", wrong)
    assert denoise.told != [MORE_NOISE, MORE_NOISE], (
        "the second look was at the old level; `ahead` is as noisy as the level then"
    )
    assert denoise.told == [MORE_NOISE, LESS_NOISE], (
        f"the looks should be at the levels now and then, but were at {denoise.told}"
    )


def test_4_the_average_of_both_looks(ex):
    got, _ = heun_by_hand(ex)
    wrong = {
        "this is Euler's step; the second look was not used": images(4.8),
        "the averaged step starts at x, not at `ahead`": images(4.8 + 0.2),
        "you added up both looks; take their average": images(5 + 0.4),
        "you used the second look alone; take the average of both": images(5 + 0.6),
        "you averaged `ahead` with a step from there; average the looks, and step from x": images((4.8 + 5.4) / 2),
    }
    expect(got, images(5.2), "x' = 5 + (1 + 5) / 2 * 0.2 + (2 + 2) / 2 * (-0.2)", wrong)


def test_4_the_last_step_is_eulers(ex):
    denoise = Denoiser((1, 2))
    got = call(ex.heun_step, denoise, images(5), MORE_NOISE, CLEAN)
    expect(got, images(5 + 0.4 * 1 - 0.8 * 2), "the step to sigma' = 0 is x + x0 dalpha + eps dsigma")


# ---------------------------------------------------------------------------------------------- 5. snr_weight


def weights(ex, prediction: str) -> torch.Tensor:
    """With gamma = 2, at SNR 9, 1 and 0.25."""
    alpha2 = torch.tensor([0.9, 0.5, 0.2])
    return call(ex.snr_weight, alpha2.sqrt(), (1 - alpha2).sqrt(), 2.0, prediction)


def test_5_x0(ex):
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


def test_5_eps(ex):
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


def test_5_v(ex):
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


# --------------------------------------------------------------------------------------------------- 6. slerp


def test_6_a_third_of_the_way(ex):
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


def test_6_an_image_is_one_long_vector(ex):
    a, b = torch.ones(1, 2, 2, 2), torch.tensor([3.0, 1, 1, 1, -1, -1, -1, -3]).view(1, 2, 2, 2)
    half = call(ex.slerp, a, b, 0.5)
    hint = "all eight numbers together, a . b is 0; an image is one long vector, and half of 90 degrees is (a + b) / sqrt(2)"
    expect(half, (a + b) * 0.5**0.5, hint)


def test_6_the_same_noise_twice(ex):
    a = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for strength in (1.0, 0.7):
        got = call(ex.slerp, a, strength * a, 0.5)
        assert torch.isfinite(got).all(), (
            "NaN between parallel noises: clamp the cosine, which rounding can take above 1, and where sin(angle) is 0 take the straight line"
        )
        expect(
            got,
            (1 + strength) / 2 * a,
            f"between the same noise and {strength} of it lies the same noise, {(1 + strength) / 2} as strong",
        )


def test_6_each_image_chooses_for_itself(ex):
    a, b = points((3, 4), (1, 0)), points((3, 4), (0, 1))
    got = call(ex.slerp, a, b, 0.5)
    wrong = {"one pair of parallel noises sent the whole batch along the straight line": (a + b) / 2}
    expect(
        got,
        points((3, 4), (0.5**0.5, 0.5**0.5)),
        "the first pair is equal, the second 90 degrees apart: torch.where decides for each",
        wrong,
    )


# --------------------------------------------------------------------------------------- 7. zero_terminal_snr


def test_7_three_steps(ex):
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
    assert got[-1] == 0, "the last entry must be exactly 0"


# ------------------------------------------------------------------------------------------- 8. dpmpp_2m_step


def test_8_the_first_step_has_no_history(ex):
    got = call(ex.dpmpp_2m_step, images(4), images(2), MORE_NOISE, LESS_NOISE, None, None)
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


def test_8_history(ex):
    # h = log 4, the step before log 2, so r = 1/2
    before, now, then = (Level(1.0, 8.0), Level(1.0, 4.0), Level(1.0, 1.0))
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


def test_8_the_last_step_lands_on_x0(ex):
    try:
        got = call(ex.dpmpp_2m_step, images(4), images(2), LESS_NOISE, CLEAN, images(1), MORE_NOISE)
    except (ArithmeticError, ValueError) as problem:
        raise AssertionError(
            f"at the last step sigma' = 0 and lambda' is infinite: no formula, x' is alpha' x0 (you got: {problem})"
        ) from None
    expect(got, images(2), "at the last step sigma' = 0, so x' is alpha' x0, with no history")
