"""The grader's randomised checks of chapter 3:
sizes, levels and numbers are drawn anew, and compared with the solutions.

Where an answer is wrong, it is compared with the results of well-known mistakes too,
so that the message can name the mistake.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from common.grade.checks import Exercise, call, close, expect, integer, load, uniform

right = load(Path(__file__).with_name("solutions.py"), "course_solutions")


# ---------------------------------------------------------------------------------------------- random material


def chain(rng: torch.Generator) -> Tensor:
    """alpha_bar of a random diffusion of 8 to 12 steps that differ clearly. (T + 1,)"""
    betas = 0.05 + 0.25 * torch.rand(integer(rng, 8, 12), generator=rng)
    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)])


def batch(rng: torch.Generator, n: int = 2, square: bool = False) -> list[Tensor]:
    """n batches of random numbers (B, C, H, W); square: as many images as columns of pixels, and as rows."""
    B, C, H, W = (integer(rng, low, high) for low, high in ((2, 4), (2, 3), (5, 7), (8, 9)))
    shape = (B, C, B, B) if square else (B, C, H, W)
    return [torch.randn(shape, generator=rng) for _ in range(n)]


def descent(rng: torch.Generator, n: int) -> list:
    """n levels with less and less noise, on a schedule with alpha^2 + sigma^2 = 1 or one with alpha = 1."""
    lam, levels, preserving = uniform(rng, -1.2, -0.8), [], integer(rng, 0, 1)
    long_first = integer(rng, 0, 1)
    for k in range(n):
        levels.append(
            right.Level(1 / math.sqrt(1 + math.exp(-2 * lam)), 1 / math.sqrt(1 + math.exp(2 * lam)))
            if preserving
            else right.Level(1.0, math.exp(-lam))
        )
        lam += uniform(rng, 0.8, 1.1) if k % 2 != long_first else uniform(rng, 0.3, 0.5)  # no two steps alike
    return levels


class Denoiser:
    """Sees some image in x, and takes the rest for noise. Remembers what it was shown and which level it was told."""

    def __init__(self, rng: torch.Generator):
        self.w, self.x, self.told = uniform(rng, 0.5, 1.5), [], []

    def look(self, x: Tensor, level) -> tuple[Tensor, Tensor]:
        x0 = torch.cos(self.w * x + 2 * level[1])
        return x0, (x - level[0] * x0) / level[1]

    def __call__(self, x: Tensor, level) -> tuple[Tensor, Tensor]:
        assert isinstance(level, tuple) and len(level) == 2, (
            "denoise must be told a level: denoise(x, now) or denoise(ahead, then)"
        )
        assert level[1] > 0, (
            "denoise was asked at sigma' = 0, where there is no noise to see: the last step is Euler's, with one look"
        )
        self.x.append(x.clone())
        self.told.append(tuple(level))
        return self.look(x, level)


# ------------------------------------------------------------------------------------------------------ the checks


def check_respace(ex, rng):
    alpha_bar = chain(rng)
    T = len(alpha_bar) - 1
    times = sorted((1 + torch.randperm(T - 1, generator=rng)[: integer(rng, 2, 4)]).tolist()) + [T]
    got = call(ex.respace, alpha_bar, list(times))
    assert len(got) != len(times) - 1, (
        "the first beta is missing: before the first visited level comes the clean image, alpha_bar_0 = 1"
    )
    full = 1 - alpha_bar[1:] / alpha_bar[:-1]
    ratio = alpha_bar[times] / alpha_bar[[0, *times[:-1]]]
    wrong = {
        "these are the full chain's betas at the visited levels; a long step needs the beta of all the steps it skips": full[
            [t - 1 for t in times]
        ],
        "you did not divide by the alpha_bar visited before: beta is the noise of one step, not of all up to there": 1
        - alpha_bar[times],
        "these are the alphas; beta is 1 - alpha": ratio,
        "the ratio is upside down: divide by the alpha_bar visited before": 1 - 1 / ratio,
        "beta is made of alpha_bar itself, not of its square root": 1 - ratio.sqrt(),
    }
    expect(
        got,
        right.respace(alpha_bar, times),
        "the betas of the short chain must lead to the same alpha_bar at each visited level",
        wrong,
    )


def check_ddim_step(ex, rng):
    alpha_bar = chain(rng)
    T = len(alpha_bar) - 1
    for t_next in (0, integer(rng, 1, 2), integer(rng, 3, T - 3)):
        for eta in (0.0, uniform(rng, 0.4, 0.7), 1.0):
            check_one_ddim_step(ex, rng, alpha_bar, integer(rng, t_next + 2, T), t_next, eta)


def check_one_ddim_step(ex, rng, alpha_bar, t, t_next, eta):
    x, eps, z = batch(rng, 3)
    now, then = alpha_bar[t], alpha_bar[t_next]
    x0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
    full = ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
    fresh = eta * full
    old = (1 - then - fresh**2).sqrt()
    image = then.sqrt() * x0
    other = ((1 - then) * (1 - now / then)).sqrt() * eta
    wrong = {
        "you stepped to the level t - 1; a step goes to t_next, any number of levels below": right.ddim_step(
            x, eps, t, t - 1, eta, z, alpha_bar
        ),
        "the fresh noise is not taken away from the old: eps has the factor sqrt(1 - alpha_bar' - fresh^2)": image
        + (1 - then).sqrt() * eps
        + fresh * z,
        "you multiplied z by the square of `fresh`": image + old * eps + fresh**2 * z,
        "the square root of 1 - alpha_bar' - fresh^2 is missing": image + old**2 * eps + fresh * z,
        "fresh is taken from sqrt(1 - alpha_bar') itself; it is the squares, the variances, that are subtracted": (
            image + ((1 - then).sqrt() - fresh) * eps + fresh * z
        ),
        "fresh should be squared where it is taken from 1 - alpha_bar'": image
        + (1 - then - fresh).sqrt() * eps
        + fresh * z,
        "eta belongs to the fresh noise, before the root of eq. 16; you put it before eps": (
            image + eta * (1 - then - full**2).sqrt() * eps + full * z
        ),
        "eta stands under the square root; eq. 16 has it in front": right.ddim_step(
            x, eps, t, t_next, eta**0.5, z, alpha_bar
        ),
        "eta is missing in eq. 16": right.ddim_step(x, eps, t, t_next, 1.0, z, alpha_bar),
        "z was forgotten": image + old * eps,
        "in eq. 16, the factor (1 - alpha_bar') / (1 - alpha_bar) is missing its denominator": (
            image + (1 - then - other**2).sqrt() * eps + other * z
        ),
        "did you use alpha_bar' where its square root belongs?": then * x0 + old * eps + fresh * z,
        "x0 is too faint: divide x - sqrt(1 - alpha_bar) eps by sqrt(alpha_bar)": then.sqrt() * now.sqrt() * x0
        + old * eps
        + fresh * z,
        "in x0, did you use 1 - alpha_bar where its square root belongs?": (
            then.sqrt() * (x - (1 - now) * eps) / now.sqrt() + old * eps + fresh * z
        ),
    }
    got = call(ex.ddim_step, x, eps, t, t_next, eta, z, alpha_bar)
    if t_next == 0 and isinstance(got, Tensor):
        at_1 = right.ddim_step(x, eps, t, 1, eta, z, alpha_bar)
        assert not close(got, at_1), (
            "the last step stopped at t = 1; it should end in the clean image, at alpha_bar_0 = 1"
        )
        again = ex.ddim_step(x, eps, t, t_next, eta, -z, alpha_bar)
        assert close(got, again), (
            "noise is added at the last step, which should end in the clean image: eq. 16 with alpha_bar_0 = 1 gives 0"
        )
    expect(
        got,
        image + old * eps + fresh * z,
        f"x' is not what eq. 12 gives from t = {t} to {t_next} with eta = {eta:.2g}",
        wrong,
    )


def pair(got: object) -> tuple[Tensor, Tensor]:
    assert isinstance(got, tuple) and len(got) == 2, "two tensors were expected here: is a `return` missing?"
    return got


def check_v_prediction(ex, rng):
    for square in (True, False):
        x0, eps = batch(rng, square=square)
        # radians; 45 degrees would hide a swap of alpha and sigma
        angle = uniform(rng, 0.2, 0.4) + torch.arange(len(x0)) * 0.28
        alpha, sigma = angle.cos(), angle.sin()
        alpha[-1], sigma[-1] = 0, 1  # pure noise
        a, s = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
        x, v = a * x0 + s * eps, a * eps - s * x0

        got_x, got_v = pair(call(ex.v_prediction, x0, eps, alpha, sigma, False))
        wrong = {
            "x and v are swapped": v,
            "in x, alpha and sigma are swapped: it is alpha x0 + sigma eps": s * x0 + a * eps,
        }
        if square:
            wrong |= sideways(lambda a, s: a * x0 + s * eps, alpha, sigma)  # noqa: B023
        expect(got_x, x, "x should be alpha x0 + sigma eps, with the alpha and sigma of each image", wrong)
        wrong = {
            "v has the wrong sign: it is alpha eps - sigma x0": -v,
            "in v, alpha and sigma are swapped: it is alpha eps - sigma x0": s * eps - a * x0,
            "in v, image and noise are swapped: it is alpha eps - sigma x0": a * x0 - s * eps,
            "v is a difference: alpha eps - sigma x0": a * eps + s * x0,
        }
        expect(got_v, v, "v should be alpha eps - sigma x0", wrong)

        got_x0, got_eps = pair(call(ex.v_prediction, x, v, alpha, sigma, True))
        assert torch.isfinite(got_x0).all() and torch.isfinite(got_eps).all(), (
            "you divide by alpha, which is 0 in pure noise; going back needs no division"
        )
        wrong = {
            "going back, x0 and eps are swapped": eps,
            "going back, x0 has a wrong sign (or is this the way there?): x0 is alpha x less something": a * x + s * v,
            "x lost its factor alpha: x0 is not simply x - sigma v": x - s * v,
            "going back, alpha and sigma are swapped in x0": s * x - a * v,
        }
        expect(got_x0, x0, "there and back again should give the same x0", wrong)
        wrong = {
            "going back, eps has a wrong sign: it is sigma x and something": a * v - s * x,
            "x lost its factor sigma, or v its alpha: solve for eps again": x + a * v,
            "going back, alpha and sigma are swapped in eps": a * x + s * v,
        }
        expect(got_eps, eps, "there and back again should give the same eps", wrong)


def sideways(mix, alpha: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """What comes out if the levels of the images go to the rows or columns of pixels."""
    shapes = {axis: [-1 if i == axis else 1 for i in range(4)] for axis in (2, 3)}
    message = "the levels went to axis {} (pixels), not to the images: give alpha and sigma the shape (B, 1, 1, 1)"
    return {message.format(axis): mix(alpha.view(shape), sigma.view(shape)) for axis, shape in shapes.items()}


def check_heun_step(ex, rng):
    (x,) = batch(rng, 1)
    now, then = descent(rng, 2)
    denoise = Denoiser(rng)
    got = call(ex.heun_step, denoise, x, now, then)
    assert len(denoise.x) == 2, f"Heun's method looks twice; looks taken: {len(denoise.x)}"

    def slope(x0_eps) -> Tensor:
        """The step of Euler's method that this look suggests."""
        return x0_eps[0] * (then.alpha - now.alpha) + x0_eps[1] * (then.sigma - now.sigma)

    first = slope(denoise.look(x, now))
    ahead = x + first
    expect(denoise.x[0], x, "the first look is at x")
    wrong = {
        "the second look was at x again; it is at `ahead`, where Euler's step leads": x,
        "Euler's step goes the wrong way: dalpha is alpha' - alpha, dsigma is sigma' - sigma": x - first,
    }
    expect(denoise.x[1], ahead, "the second look is at ahead = x + x0 dalpha + eps dsigma", wrong)
    assert denoise.told[0] == tuple(now), "the first look is at the level now"
    assert denoise.told[1] != tuple(now), "the second look was at the old level; `ahead` is as noisy as the level then"
    assert denoise.told[1] == tuple(then), "the second look is at the level then"

    second = slope(denoise.look(ahead, then))
    wrong = {
        "this is Euler's step; the second look was not used": ahead,
        "the averaged step starts at x, not at `ahead`": ahead + (first + second) / 2,
        "you added up both looks; take their average": x + first + second,
        "you used the second look alone; take the average of both": x + second,
        "you averaged `ahead` with a step from there; average the looks, and step from x": ahead + second / 2,
    }
    expect(got, x + (first + second) / 2, "x' should be x and the average of both looks' steps", wrong)

    denoise, then = Denoiser(rng), right.Level(1.0, 0.0)
    got = call(ex.heun_step, denoise, x, now, then)
    expect(got, x + slope(denoise.look(x, now)), "the step to sigma' = 0 is Euler's: x + x0 dalpha + eps dsigma")


def check_snr_weight(ex, rng):
    n, gamma = integer(rng, 5, 9), uniform(rng, 3, 6)
    snr = (
        gamma
        * torch.exp(torch.linspace(-4, 3, n) + 0.3 * torch.rand(n, generator=rng))[torch.randperm(n, generator=rng)]
    )
    alpha, sigma = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
    divide_by = {"x0": torch.ones_like, "eps": lambda snr: snr, "v": lambda snr: snr + 1}
    for name in torch.randperm(3, generator=rng).tolist():
        name = list(divide_by)[name]

        def weight(snr: Tensor, cut=lambda snr: snr.clamp(max=gamma), by=divide_by[name]) -> Tensor:
            return cut(snr) / by(snr)

        wrong = {
            "your SNR is alpha / sigma; it is the ratio of the squares": weight(snr.sqrt()),
            "your SNR is upside down": weight(1 / snr),
            "you took the larger of SNR and gamma; it is the smaller": weight(snr, lambda snr: snr.clamp(min=gamma)),
            "gamma was not used": weight(snr, lambda snr: snr),
            "the cut comes too late: gamma limits the SNR above, before you divide": (
                snr / divide_by[name](snr)
            ).clamp(max=gamma),
            "the cut SNR is used below as well; the division is by the SNR itself": weight(snr.clamp(max=gamma)),
        }
        for other, by in divide_by.items():
            if other != name:
                wrong[f'this is the weight for "{other}", but "{name}" was asked for'] = weight(snr, by=by)
        expect(
            call(ex.snr_weight, alpha, sigma, gamma, name),
            weight(snr),
            f'these are not the weights for "{name}"',
            wrong,
        )


def check_slerp(ex, rng):
    w = uniform(rng, 0.15, 0.4)
    a, b = batch(rng)
    apart = torch.linspace(0.3, 2, len(a)).view(-1, 1, 1, 1)  # pairs of different angles and different lengths
    b = apart * b + uniform(rng, 0.2, 0.5) * a

    def along(dims: tuple[int, ...]) -> Tensor:
        dot, length_a, length_b = ((v).sum(dims, keepdim=True) for v in (a * b, a * a, b * b))
        angle = (dot / (length_a * length_b).sqrt()).clamp(-1, 1).acos()
        return (((1 - w) * angle).sin() * a + (w * angle).sin() * b) / angle.sin()

    got, goal = call(ex.slerp, a, b, w), along((1, 2, 3))
    wrong = {
        "this is a straight line, which cuts through the inside of the sphere: the noise between becomes too weak": (
            1 - w
        )
        * a
        + w * b,
        "a and b are swapped: at w = 0 all is a": right.slerp(a, b, 1 - w),
        "the angle is that of the whole batch; each image has its own": along((0, 1, 2, 3)),
        "you took an angle for each pixel, over the channels; an image is one long vector": along((1,)),
        "you took an angle for each row of pixels; an image is one long vector": along((3,)),
    }
    expect(got, goal, "this is not on the arc from a to b", wrong)

    many = torch.randn(64, 3, 4, 4, generator=rng)
    close_by = many * uniform(rng, 0.5, 2) + 1e-6 * torch.randn(many.shape, generator=rng)
    for other in (many.clone(), close_by):
        got = call(ex.slerp, many, other, w)
        assert torch.isfinite(got).all(), (
            "NaN between two noises that are (nearly) parallel: clamp the cosine, which rounding can take above 1, "
            "and where sin(angle) is 0 take the straight line"
        )
        expect(got, (1 - w) * many + w * other, "between parallel noises the arc is a straight line", atol=1e-3)

    mixed = torch.cat([a, a]), torch.cat([b, a])
    wrong = {
        "one pair of parallel noises sent the whole batch along the straight line": (1 - w) * mixed[0] + w * mixed[1]
    }
    expect(
        call(ex.slerp, *mixed, w),
        torch.cat([goal, a]),
        "some pairs of a batch are parallel and some are not: choose for each",
        wrong,
        atol=1e-3,
    )


def check_zero_terminal_snr(ex, rng):
    alpha_bar = chain(rng)
    clean, roots = torch.ones(1), alpha_bar.sqrt()
    first, last, shifted = roots[1], roots[-1], roots[1:] - roots[-1]
    shifted_bar = alpha_bar[1:] - alpha_bar[-1]
    to_one = shifted / (first - last)
    wrong = {
        "you shifted and stretched alpha_bar; the paper does so with its square root": torch.cat(
            [clean, shifted_bar * alpha_bar[1] / (alpha_bar[1] - alpha_bar[-1])]
        ),
        "you shifted without stretching: the first step's alpha_bar should stay as it was": torch.cat(
            [clean, shifted**2]
        ),
        "you set the last entry to 0 without shifting the others, which leaves one giant step": torch.cat(
            [alpha_bar[:-1], torch.zeros(1)]
        ),
        "you stretched without shifting, so that the last entry is not 0": torch.cat(
            [clean, (roots[1:] * first / (first - last)) ** 2]
        ),
        "the first root was stretched to 1; it should be what it was": torch.cat([clean, to_one**2]),
        "these are the roots: square them again": torch.cat([clean, to_one * first]),
        "the paper's first entry is t = 1, but you held entry 0, the clean image": ((roots - last) / (1 - last)) ** 2,
        "the clean image in entry 0 was moved": torch.cat(
            [((1 - last) * first / (first - last)).view(1), to_one * first]
        )
        ** 2,
    }
    got = call(ex.zero_terminal_snr, alpha_bar)
    assert len(got) != len(alpha_bar) - 1, "alpha_bar_0 = 1, the clean image, is missing in front"
    expect(
        got,
        right.zero_terminal_snr(alpha_bar),
        "sqrt(alpha_bar) should be shifted and stretched, first kept and last 0",
        wrong,
    )
    assert got[-1] == 0, f"the last entry must be exactly 0, not {got[-1].item():.3g}"


def check_dpmpp_2m_step(ex, rng):
    x, x0, x0_old = batch(rng, 3)
    before, now, then = descent(rng, 3)
    lam_before, lam, lam_then = (math.log(level.alpha / level.sigma) for level in (before, now, then))
    h, r = lam_then - lam, (lam - lam_before) / (lam_then - lam)

    def step(D: Tensor, factor: float = -math.expm1(-h), keep: float = then.sigma / now.sigma) -> Tensor:
        return keep * x + then.alpha * factor * D

    for history in (False, True):
        change = (x0 - x0_old if history else x0) / (2 * r)
        D = x0 + change if history else x0
        wrong = {
            "the sign before alpha' is wrong: e^-h - 1 is negative, so -alpha' (e^-h - 1) is positive": step(
                D, math.expm1(-h)
            ),
            "your lambda is the logarithm of the SNR; it is half of that, log(alpha / sigma)": step(
                D, -math.expm1(-2 * h)
            ),
            "you used e^h where e^-h belongs": step(D, -math.expm1(h)),
            "sigma' / sigma is upside down": step(D, keep=now.sigma / then.sigma),
        }
        if history:
            wrong |= {
                "history was not used": step(x0),
                "history counts twice: the difference is divided by 2 r": step(x0 + 2 * change),
                "r is upside down: it is the step before divided by this one": step(x0 + r * r * change),
                "the difference is the wrong way round: x0 - x0_old goes on changing": step(x0 - change),
                "r was not used: the last step was longer or shorter than this one": step(x0 + r * change),
            }
        got = call(ex.dpmpp_2m_step, x, x0, now, then, *((x0_old, before) if history else (None, None)))
        hint = "x' is not what algorithm 2 gives from two looks" if history else "without history, D is x0"
        expect(got, step(D), hint, wrong)

    clean = right.Level(uniform(rng, 0.5, 1), 0.0)  # any alpha', so that forgetting it shows
    try:
        got = call(ex.dpmpp_2m_step, x, x0, now, clean, x0_old, before)
    except (ArithmeticError, ValueError) as problem:
        raise AssertionError(
            f"at the last step sigma' = 0 and lambda' is infinite: no formula, x' is alpha' x0 (you got: {problem})"
        ) from None
    wrong = {
        "at the last step alpha' was forgotten": x0,
        "history was used at the last step": clean.alpha * (2 * x0 - x0_old),
    }
    expect(got, clean.alpha * x0, "at the last step sigma' = 0, so x' is alpha' x0, with no history", wrong)


EXERCISES = [
    Exercise("respace", 1, check_respace),
    Exercise("ddim_step", 3, check_ddim_step),
    Exercise("v_prediction", 2, check_v_prediction),
    Exercise("heun_step", 3, check_heun_step),
    Exercise("snr_weight", 2, check_snr_weight),
    Exercise("slerp", 3, check_slerp),
    Exercise("zero_terminal_snr", 2, check_zero_terminal_snr),
    Exercise("dpmpp_2m_step", 4, check_dpmpp_2m_step),
]
