"""The grader's randomised checks of chapter 3:
sizes, levels and numbers are drawn anew, and compared with the solutions.

Where an answer is wrong, it is compared with the results of well-known mistakes too,
so that the message can name the mistake.
"""

import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from common.grade.checks import (
    Exercise,
    call,
    close,
    expect,
    expect_gradients,
    integer,
    load,
    make_level,
    parts,
    tensor,
    uniform,
)

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")
right = load(Path(__file__).with_name("solutions.py"), "course_solutions")


# ---------------------------------------------------------------------------------------------- random material


REAL = torch.cat([torch.ones(1), (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)])  # DDPM, section 4
FAR = "; elsewhere your result is right, so look for a clamp, a constant or a threshold that only shows here"


def chain(rng: torch.Generator) -> Tensor:
    """alpha_bar of a random diffusion of 8 to 12 steps that differ clearly. (T + 1,)"""
    betas = 0.05 + 0.25 * torch.rand(integer(rng, 8, 12), generator=rng)
    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)])


def batch(rng: torch.Generator, n: int = 2, square: bool = False, single: bool = False) -> list[Tensor]:
    """n batches of random numbers (B, C, H, W).

    square  as many images as columns of pixels, and as rows
    single  one image alone
    """
    B, C, H, W = (integer(rng, low, high) for low, high in ((2, 4), (2, 3), (5, 7), (8, 9)))
    B = 1 if single else B
    shape = (B, C, B, B) if square else (B, C, H, W)
    return [torch.randn(shape, generator=rng) for _ in range(n)]


def descent(ex, rng: torch.Generator, n: int) -> list:
    """n levels, of the submission's own class, with less and less noise, on a schedule with alpha^2 + sigma^2 = 1 or one with alpha = 1."""
    lam, levels, preserving = uniform(rng, -1.2, -0.8), [], integer(rng, 0, 1)
    long_first = integer(rng, 0, 1)
    for k in range(n):
        levels.append(
            level(ex, 1 / math.sqrt(1 + math.exp(-2 * lam)), 1 / math.sqrt(1 + math.exp(2 * lam)))
            if preserving
            else level(ex, 1.0, math.exp(-lam))
        )
        lam += uniform(rng, 0.8, 1.1) if k % 2 != long_first else uniform(rng, 0.3, 0.5)  # no two steps alike
    return levels


def level(ex, alpha: float, sigma: float):
    return make_level(ex, alpha, sigma, right.Level)


class Denoiser:
    """Predicts some image in x, and the rest as noise. Remembers x and the level of each call."""

    def __init__(self, rng: torch.Generator):
        self.w, self.x, self.levels = uniform(rng, 0.5, 1.5), [], []

    def predict(self, x: Tensor, level) -> tuple[Tensor, Tensor]:
        x0 = torch.cos(self.w * x + 2 * level[1])
        return x0, (x - level[0] * x0) / level[1]

    def __call__(self, x: Tensor, level) -> tuple[Tensor, Tensor]:
        assert isinstance(level, tuple) and len(level) == 2, (
            "denoise needs a level: denoise(x, now) or denoise(ahead, then)"
        )
        assert level[1] > 0, (
            "denoise was evaluated at sigma' = 0, where there is no noise: the last step is Euler's, with one evaluation"
        )
        self.x.append(x.clone())
        self.levels.append(tuple(level))
        return self.predict(x, level)


# ------------------------------------------------------------------------------------------------------ the checks


def check_respace(ex, rng):
    alpha_bar = chain(rng)
    T = len(alpha_bar) - 1
    times = sorted((1 + torch.randperm(T - 1, generator=rng)[: integer(rng, 2, 4)]).tolist()) + [T]
    got = call(ex.respace, alpha_bar, list(times))
    assert not isinstance(got, Tensor) or got.shape != (len(times) - 1,), (
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
    for times in (list(range(20, 1001, 20)), [1, integer(rng, 300, 600), 1000], [1000]):
        got = call(ex.respace, REAL, list(times))
        goal = right.respace(REAL, times)
        hint = f"the betas of the paper's 1,000 levels, visiting {len(times)}, are others{FAR}"
        wrong = {
            "no beta may be cut off at 0.999: a single step over all levels has 0.99996": goal.clamp(max=0.999),
            "no beta may be cut off at 0.02, the largest of the full chain": goal.clamp(max=0.02),
        }
        wrong = {message: value for message, value in wrong.items() if not torch.equal(value, goal)}
        expect(
            10_000 * (1 - tensor(got, goal)),
            10_000 * (1 - goal),
            hint,
            {m: 10_000 * (1 - v) for m, v in wrong.items()},
            0.05,
        )
        expect(got, goal, hint, wrong, atol=1e-6)


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
    assert not isinstance(got, Tensor) or got.shape != (len(alpha_bar) - 1,), (
        "alpha_bar_0 = 1, the clean image, is missing in front"
    )
    expect(
        got,
        right.zero_terminal_snr(alpha_bar),
        "sqrt(alpha_bar) should be shifted and stretched, first kept and last 0",
        wrong,
    )
    assert abs(got[-1]) < 1e-12, f"the last entry must be exactly 0, not {got[-1].item():.3g}"
    got = call(ex.zero_terminal_snr, REAL)
    expect(got, right.zero_terminal_snr(REAL), f"the paper's 1,000 levels become other ones{FAR}", atol=1e-6)
    assert abs(got[-1]) < 1e-12, f"the last entry must be exactly 0, not {got[-1].item():.3g}"


def check_v_prediction(ex, rng):
    for square in (True, False):
        x0, eps = batch(rng, square=square)
        # radians; 45 degrees would hide a swap of alpha and sigma
        angle = uniform(rng, 0.2, 0.4) + torch.arange(len(x0)) * 0.28
        alpha, sigma = angle.cos(), angle.sin()
        alpha[-1], sigma[-1] = 0, 1  # pure noise
        if not square:
            alpha[0], sigma[0] = 1, 0  # a clean image
        a, s = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
        x, v = a * x0 + s * eps, a * eps - s * x0

        got_x, got_v = parts(call(ex.v_prediction, x0, eps, alpha, sigma, False), 2, "x and v")
        wrong = {
            "x and v are swapped": v,
            "in x, alpha and sigma are swapped: it is alpha x0 + sigma eps": s * x0 + a * eps,
        }
        if square:
            wrong |= sideways(lambda a, s: a * x0 + s * eps, alpha, sigma)  # noqa: B023
        expect(got_x, x, "x should be alpha x0 + sigma eps, with the alpha and sigma of each image", wrong)
        public.expect_finite(got_v, alpha, sigma, "on the way there")
        wrong = {
            "v has the wrong sign: it is alpha eps - sigma x0": -v,
            "in v, alpha and sigma are swapped: it is alpha eps - sigma x0": s * eps - a * x0,
            "in v, image and noise are swapped: it is alpha eps - sigma x0": a * x0 - s * eps,
            "v is a difference: alpha eps - sigma x0": a * eps + s * x0,
        }
        expect(got_v, v, "v should be alpha eps - sigma x0", wrong)

        got_x0, got_eps = parts(call(ex.v_prediction, x, v, alpha, sigma, True), 2, "x0 and eps")
        for got in (got_x0, got_eps):
            public.expect_finite(got, alpha, sigma, "going back")
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
    return {
        f"the levels went to axis {axis} (pixels), not to the images: give alpha and sigma the shape (B, 1, 1, 1)": mix(
            alpha.view(shape), sigma.view(shape)
        )
        for axis, shape in shapes.items()
    }


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
        noise = torch.tensor([0.002, 0.01, 1, 80, float((1 / REAL[-1] - 1).sqrt())])  # sigma / alpha
        alphas, sigmas = 1 / (1 + noise**2).sqrt(), noise / (1 + noise**2).sqrt()
        wide = noise**-2.0
        goal = weight(wide)
        wrong = {
            f"an SNR below {least} was set to it: in pure noise the SNR is 0.00004": weight(wide.clamp(min=least))
            / goal
            for least in (0.01, 1e-3)
        } | {
            f"an SNR above {most:g} was set to it: in nearly clean images it is 250,000": weight(wide.clamp(max=most))
            / goal
            for most in (1e2, 1e3, 1e4)
        }
        wrong = {message: value for message, value in wrong.items() if not close(value, torch.ones(5), 0.05)}
        ratio = tensor(call(ex.snr_weight, alphas, sigmas, gamma, name), goal) / goal
        shares = [round(r, 3) for r in ratio.tolist()]
        hint = f'from SNR 250,000 to 0.00004 the weights for "{name}" are {shares} times the right ones{FAR}'
        expect(ratio, torch.ones(5), hint, wrong, atol=0.05)


def check_flow_matching_loss(ex, rng):
    for square in (True, False):
        x0, eps = batch(rng, square=square)
        t = 0.1 + 0.7 * (torch.randperm(len(x0), generator=rng) + torch.rand(len(x0), generator=rng)) / len(x0)
        check_flow_loss(ex, rng, x0, eps, t, square)
    for t in (0.0, 1.0):
        check_flow_loss(ex, rng, *batch(rng, single=True), torch.tensor([t]), False)


def check_flow_loss(ex, rng, x0, eps, t, square):
    time, wave, inputs = t.view(-1, 1, 1, 1), uniform(rng, 0.5, 1.5), []
    weight = torch.tensor(uniform(rng, 0.5, 1.5), requires_grad=True)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        assert isinstance(t, Tensor) and t.shape == (len(x),), "the network needs t with the shape (B,)"
        inputs.append((x.detach().clone(), t.detach().clone()))
        return weight * torch.cos(wave * x) + t.view(-1, 1, 1, 1)

    got, x_t = call(ex.flow_matching_loss, velocity, x0, eps, t), (1 - time) * x0 + time * eps
    assert len(inputs) == 1, f"the network should be called once, not {len(inputs)} times"
    wrong = {
        "the time is reversed: t = 0 should be the image x0, and t = 1 the noise": time * x0 + (1 - time) * eps,
        "this is a mixture with alpha^2 + sigma^2 = 1; a flow moves along a straight line": (1 - time).sqrt() * x0
        + time.sqrt() * eps,
    }
    if square:
        wrong |= sideways(lambda a, s: s * x0 + a * eps, t, 1 - t)
    hint = "x_t should be (1 - t) x0 + t eps, with the t of each image"
    expect(inputs[0][0], x_t, hint if square or len(t) > 1 else f"{hint}, also at t = {float(t):g}", wrong)
    expect(inputs[0][1], t, "the network gets t as it is")
    predicted = weight * torch.cos(wave * x_t) + time

    def loss(target: Tensor) -> Tensor:
        return (predicted - target).square().mean((1, 2, 3))

    wrong = {
        "the velocity points from image to noise: eps - x0, not x0 - eps": loss(x0 - eps),
        "the target is the velocity eps - x0, not the noise": loss(eps),
        "the target is the velocity eps - x0, not the image": loss(x0),
        "take the mean over channels and pixels, not the sum": loss(eps - x0) * x0[0].numel(),
        "the error is squared": (predicted - (eps - x0)).abs().mean((1, 2, 3)),
    }
    expect(got, loss(eps - x0), "the loss of each image should be the mean of |velocity - (eps - x0)|^2", wrong)
    expect_gradients(got, loss(eps - x0), {"the network": weight})


def check_reflow_pairs(ex, rng):
    check_pairs(ex, rng, *batch(rng, 1), integer(rng, 3, 6))
    check_pairs(ex, rng, *batch(rng, 1, single=True), 1)


def check_pairs(ex, rng, noise, steps):
    wave, times = uniform(rng, 0.5, 1.5), []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        assert isinstance(t, Tensor) and t.shape == (len(x),), "the network needs t as a tensor of shape (B,)"
        assert t.is_floating_point(), f"t is a number between 0 and 1, but the network was given {t.dtype}"
        times.append(float(t[0]))
        return weight * torch.cos(wave * x) + t.view(-1, 1, 1, 1)

    weight = torch.ones((), requires_grad=True)
    x0, eps = parts(call(ex.reflow_pairs, velocity, noise, steps), 2, "x0 and eps")
    x0, eps = tensor(x0, noise), tensor(eps, noise)
    assert len(times) == steps, f"{steps} steps of Euler's method take {steps} evaluations, not {len(times)}"
    goal = [1 - k / steps for k in range(steps)]
    assert not same(times, [1 - t for t in goal]), "the time is reversed: noise is at t = 1, and the image at t = 0"
    assert not same(times, [t - 1 / steps for t in goal]), (
        "each step uses the velocity at its beginning: the first one is at t = 1"
    )
    assert same(times, goal), f"the steps should evaluate at t = {goal}, not at {times}"
    assert not x0.requires_grad and not eps.requires_grad, (
        "the pairs hold the graph of all steps: they are data for the next training, so generate them within torch.no_grad()"
    )

    def walk(sign: float = -1.0, length: float = 1 / steps) -> Tensor:
        x = noise
        with torch.no_grad():
            for t in goal:
                x = x + sign * length * velocity(x, torch.full((len(x),), t))
        return x

    wrong = {
        "the sign is wrong: t falls, so a step of length h moves x by -h times the velocity": walk(1.0),
        "x0 and eps are swapped: the images come first": noise,
        "a step is 1 / steps long": walk(length=1.0),
    }
    expect(x0, walk(), f"{steps} steps of Euler's method lead elsewhere", wrong)
    expect(eps, noise, "the second result should be the noise that was given")


def same(a: list[float], b: list[float]) -> bool:
    return all(math.isclose(x, y, abs_tol=1e-4) for x, y in zip(a, b, strict=True))


def check_marginal_velocity(ex, rng):
    (x,) = batch(rng, 1)
    check_average(ex, rng, x, 0.6 + 0.4 * torch.rand(len(x), generator=rng))
    for t in (0.002, uniform(rng, 0.05, 0.9), 1.0):  # one image of 432 numbers
        check_average(ex, rng, torch.randn(1, 3, 12, 12, generator=rng), torch.tensor([t]), large=True)


def check_average(ex, rng, x, t, large=False):
    """large: the exponential of the distances is 0 in float32."""
    N, shape = integer(rng, 3, 6), x.shape
    points = 0.5 * torch.randn(N, *shape[1:], generator=rng)
    nearest = torch.randint(0, N, (len(x),), generator=rng)
    time = t.view(-1, 1, 1, 1)
    x = (1 - time) * points[nearest] + time * x
    t1, y, p = t.view(-1, 1, 1), x.flatten(1)[:, None], points.flatten(1)[None]  # (B, 1, 1), (B, 1, D), (1, N, D)

    def velocity(log_share: Tensor) -> Tensor:
        return ((x - (log_share.softmax(1) @ p[0]).view(shape)) / time).detach()

    square = (y - (1 - t1) * p).square().sum(2)  # (B, N)
    exact, t2 = -square / (2 * t1[:, 0] ** 2), t1[:, 0]
    wrong = {
        "the velocity points from image to noise: eps - x0, not x0 - eps": -velocity(exact),
        "the nearer image was taken alone; the velocity is an average, weighted by how likely each image is": velocity(
            1e6 * exact
        ),
        "all images count alike; each should count by how likely it is, given x": velocity(0 * exact),
        "the density of eps is exp(-|eps|^2 / 2); the 1/2 is missing": velocity(2 * exact),
        "the likelihood is that of eps = (x - (1 - t) x0) / t; you did not divide by t": velocity(exact * t2**2),
        "the likelihood is that of eps = (x - (1 - t) x0) / t; (1 - t) is missing before x0": velocity(
            -(y - p).square().sum(2) / (2 * t2**2)
        ),
        "the likelihood is that of eps: the square of t belongs below, not t": velocity(exact * t2),
        "this is E[x0 | x_t]; the velocity is E[eps - x0 | x_t]": (exact.softmax(1) @ p[0]).view(shape),
        "this is E[eps | x_t]; the velocity is E[eps - x0 | x_t]": (
            x - (1 - time) * (exact.softmax(1) @ p[0]).view(shape)
        )
        / time,
    }
    got = call(ex.marginal_velocity, x, t, points)
    if large and isinstance(got, Tensor) and got.shape == shape:
        assert torch.isfinite(got).all(), (
            f"NaN at t = {float(t):.2g}: for an image of {x[0].numel()} numbers exp(-|eps|^2 / 2) is 0 in float32, and 0 / 0 "
            "is NaN; subtract the largest exponent first, as softmax does"
        )
    hint = f"this is not the average of eps - x0 over all images of the data set{FAR if large else ''}"
    expect(got, velocity(exact), hint, wrong, atol=1e-3 if t.min() > 0.01 else 1e-2)


def check_matching_losses(ex, rng):
    for B in (integer(rng, 4, 8), 1):
        check_both_losses(ex, rng, B)


def check_both_losses(ex, rng, B):
    points = torch.randn(integer(rng, 3, 5), 1, 1, 2, generator=rng)
    x0 = points[torch.randint(0, len(points), (B,), generator=rng)]
    eps, t = torch.randn(x0.shape, generator=rng), 0.3 + 0.6 * torch.rand(B, generator=rng)
    a = torch.tensor(uniform(rng, 0.5, 1.5), requires_grad=True)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (len(x),), "the network needs t with the shape (B,)"
        return a * torch.cos(x) + t.view(-1, 1, 1, 1)

    learns = right.matching_losses(velocity, x0, eps, t, points)
    goal = [loss.detach() for loss in learns]
    got = parts(call(ex.matching_losses, velocity, x0, eps, t, points), 2, "conditional and marginal")
    got = [tensor(loss, each) for loss, each in zip(got, goal, strict=True)]
    sums = "take the mean over the batch, channels and pixels, not the sum"
    wrong = {"conditional and marginal are swapped": goal[1], sums: goal[0] * x0.numel()}
    expect(got[0].detach(), goal[0], "the conditional loss should be the mean of |velocity - (eps - x0)|^2", wrong)
    wrong = {"this is the conditional loss again": goal[0], sums: goal[1] * x0.numel()}
    expect(got[1].detach(), goal[1], "the marginal loss should compare with marginal_velocity(x_t, t, points)", wrong)
    for loss, each, name in zip(got, learns, ("conditional", "marginal"), strict=True):
        hint = f"the {name} loss is right, but its gradient is not: is a part of the prediction detached?"
        expect_gradients(loss, each, {"the network": a}, hint)


def check_ddim_step(ex, rng):
    alpha_bar = chain(rng)
    T = len(alpha_bar) - 1
    for t_next in (0, integer(rng, 1, 2), integer(rng, 3, T - 3)):
        for eta in (0.0, uniform(rng, 0.4, 0.7), 1.0):
            check_one_ddim_step(ex, rng, alpha_bar, integer(rng, t_next + 2, T), t_next, eta)
    for t, t_next in ((1000, integer(rng, 700, 990)), (integer(rng, 20, 300), 1), (2, 1), (1, 0)):
        check_one_ddim_step(ex, rng, REAL, t, t_next, 1.0 if t_next else 0.0)


def check_one_ddim_step(ex, rng, alpha_bar, t, t_next, eta):
    real = alpha_bar is REAL
    x, eps, z = batch(rng, 3, single=real)
    now, then = alpha_bar[t], alpha_bar[t_next]
    x0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
    full = ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
    fresh = eta * full
    old = (1 - then - fresh**2).sqrt()
    image = then.sqrt() * x0
    other = ((1 - then) * (1 - now / then)).sqrt() * eta
    sharp = then.sqrt() * x0.clamp(-1, 1)
    wrong = {
        "you clipped the predicted x0 to [-1, 1], as some samplers do; eq. 12 does not": lambda z: (
            sharp + old * eps + fresh * z
        ),
        "you stepped to the level t - 1; a step goes to t_next, any number of levels below": lambda z: right.ddim_step(
            x, eps, t, t - 1, eta, z, alpha_bar
        ),
        "the fresh noise is not taken away from the old: eps has the factor sqrt(1 - alpha_bar' - fresh^2)": lambda z: (
            image + (1 - then).sqrt() * eps + fresh * z
        ),
        "you multiplied z by the square of `fresh`": lambda z: image + old * eps + fresh**2 * z,
        "the square root of 1 - alpha_bar' - fresh^2 is missing": lambda z: image + old**2 * eps + fresh * z,
        "fresh is taken from sqrt(1 - alpha_bar') itself; it is the squares, the variances, that are subtracted": lambda z: (
            image + ((1 - then).sqrt() - fresh) * eps + fresh * z
        ),
        "fresh should be squared where it is taken from 1 - alpha_bar'": lambda z: (
            image + (1 - then - fresh).sqrt() * eps + fresh * z
        ),
        "eta belongs to the fresh noise, before the root of eq. 16; you put it before eps": lambda z: (
            image + eta * (1 - then - full**2).sqrt() * eps + full * z
        ),
        "eta stands under the square root; eq. 16 has it in front": lambda z: right.ddim_step(
            x, eps, t, t_next, eta**0.5, z, alpha_bar
        ),
        "eta is missing in eq. 16": lambda z: right.ddim_step(x, eps, t, t_next, 1.0, z, alpha_bar),
        "z was forgotten": lambda z: image + old * eps,
        "in eq. 16, the factor (1 - alpha_bar') / (1 - alpha_bar) is missing its denominator": lambda z: (
            image + (1 - then - other**2).sqrt() * eps + other * z
        ),
        "did you use alpha_bar' where its square root belongs?": lambda z: then * x0 + old * eps + fresh * z,
        "x0 is too faint: divide x - sqrt(1 - alpha_bar) eps by sqrt(alpha_bar)": lambda z: (
            then.sqrt() * now.sqrt() * x0 + old * eps + fresh * z
        ),
        "in x0, did you use 1 - alpha_bar where its square root belongs?": lambda z: (
            then.sqrt() * (x - (1 - now) * eps) / now.sqrt() + old * eps + fresh * z
        ),
    }
    mean = call(ex.ddim_step, x, eps, t, t_next, eta, torch.zeros_like(z), alpha_bar)
    far = FAR if real else ""
    hint = (
        f"without fresh noise (z = 0), x' is not what eq. 12 gives from t = {t} to {t_next} with eta = {eta:.2g}{far}"
    )
    if t_next > 0:  # the deterministic part first: of two mistakes this is the one to repair first
        expect(mean, image + old * eps, hint, {message: partial(value, 0 * z) for message, value in wrong.items()})
    got = call(ex.ddim_step, x, eps, t, t_next, eta, z, alpha_bar)
    if t_next == 0 and t > 1 and isinstance(got, Tensor):
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
        f"x' is not what eq. 12 gives from t = {t} to {t_next} with eta = {eta:.2g}{far}",
        {message: partial(value, z) for message, value in wrong.items()},
    )


def check_heun_step(ex, rng):
    (x,) = batch(rng, 1)
    now, then = descent(ex, rng, 2)
    check_one_heun_step(ex, rng, x, now, then)
    (x,) = batch(rng, 1, single=True)
    for sigma, smaller in ((80.0, 40.0), (0.02, 0.002)):  # both ends of the levels of Karras et al. 2022
        check_one_heun_step(ex, rng, sigma * x, level(ex, 1.0, sigma), level(ex, 1.0, smaller))
    denoise, now, then = Denoiser(rng), level(ex, 1.0, 0.002), level(ex, 1.0, 0.0)
    got = call(ex.heun_step, denoise, x, now, then)
    x0, eps = denoise.predict(x, now)
    expect(got, x - 0.002 * eps, "the step to sigma' = 0 is Euler's: x + x0 dalpha + eps dsigma")


def check_one_heun_step(ex, rng, x, now, then):
    denoise = Denoiser(rng)
    got = call(ex.heun_step, denoise, x, now, then)
    assert len(denoise.x) == 2, (
        f"Heun's method evaluates the network twice, not {len(denoise.x)} times, in a step to sigma' = {then.sigma:.2g}; "
        "only the step to exactly 0 is Euler's"
    )

    def slope(x0_eps) -> Tensor:
        """The step of Euler's method from this prediction."""
        return x0_eps[0] * (then.alpha - now.alpha) + x0_eps[1] * (then.sigma - now.sigma)

    first = slope(denoise.predict(x, now))
    ahead = x + first
    expect(denoise.x[0], x, "the first evaluation is at x")
    wrong = {
        "the second evaluation was at x again; it is at `ahead`, where Euler's step leads": x,
        "Euler's step goes the wrong way: dalpha is alpha' - alpha, dsigma is sigma' - sigma": x - first,
    }
    expect(denoise.x[1], ahead, "the second evaluation is at ahead = x + x0 dalpha + eps dsigma", wrong)
    assert denoise.levels[0] == tuple(now), "the first evaluation is at the level now"
    assert denoise.levels[1] != tuple(now), (
        "the second evaluation was at the old level; `ahead` is as noisy as the level then"
    )
    assert denoise.levels[1] == tuple(then), "the second evaluation is at the level then"

    second = slope(denoise.predict(ahead, then))
    wrong = {
        "this is Euler's step; the second evaluation was not used": ahead,
        "the averaged step starts at x, not at `ahead`": ahead + (first + second) / 2,
        "you added up both evaluations; take their average": x + first + second,
        "you used the second evaluation alone; take the average of both": x + second,
        "you averaged `ahead` with a step from there; average the evaluations, and step from x": ahead + second / 2,
    }
    expect(got, x + (first + second) / 2, "x' should be x and the average of both steps", wrong)

    denoise, then = Denoiser(rng), level(ex, 1.0, 0.0)
    got = call(ex.heun_step, denoise, x, now, then)
    expect(got, x + slope(denoise.predict(x, now)), "the step to sigma' = 0 is Euler's: x + x0 dalpha + eps dsigma")


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
            "and where the angle is nearly 0 take the straight line"
        )
        expect(got, (1 - w) * many + w * other, "between parallel noises the arc is a straight line", atol=1e-3)

    public.check_angles(ex, rng, w)

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


def check_dpmpp_2m_step(ex, rng):
    check_multistep(ex, batch(rng, 3), *descent(ex, rng, 3))
    for sigmas in ((80.0, 35.0, 20.0), (0.5, 0.2, 0.07), (0.03, 0.01, 0.002)):
        check_multistep(ex, batch(rng, 3, single=True), *(level(ex, 1.0, sigma) for sigma in sigmas), far=FAR)
    x, x0, x0_old = batch(rng, 3)
    before, now = descent(ex, rng, 2)
    clean = level(ex, uniform(rng, 0.5, 1), 0.0)  # any alpha', so that forgetting it shows
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


def check_multistep(ex, images, before, now, then, far=""):
    x, x0, x0_old = images
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
        early = f"only at sigma' = 0 x' is alpha' x0, but you took it at sigma' = {then.sigma:.2g}"
        wrong[early] = then.alpha * x0
        hint = "x' is not what algorithm 2 gives from two predictions" if history else "without history, D is x0"
        hint = f"{hint}, from sigma = {now.sigma:.2g} to {then.sigma:.2g}{far}"
        expect(got, step(D), hint, wrong)


def check_fix_respaced_ddpm(ex, rng):
    alpha_bar, (x, z) = chain(rng), batch(rng)
    T = len(alpha_bar) - 1
    times = [T, integer(rng, 5, T - 2), integer(rng, 2, 3), 0]

    def noise(k: int, x: Tensor) -> Tensor:
        return (1 + k) * z

    public.check_respaced(ex, x, times, alpha_bar, noise, f"the steps through the levels {times} are wrong")
    every = list(range(T, -1, -1))
    public.check_respaced(ex, x, every, alpha_bar, noise, "with all levels the chain was right before: is it still?")
    times = [1000, integer(rng, 300, 700), 20, 1, 0]
    public.check_respaced(ex, x[:1], times, REAL, lambda k, x: z[:1], f"the steps through {times} of 1,000 are wrong")


def check_fix_heun_sampling(ex, rng):
    (x,), clean = batch(rng, 1), level(ex, 1.0, 0.0)
    public.check_heun_sampling(ex, x, [*descent(ex, rng, integer(rng, 3, 5)), clean])
    levels = [level(ex, 1.0, sigma) for sigma in (80.0, 10.0, 0.5, 0.02, 0.002)]
    public.check_heun_sampling(ex, 80 * x[:1], [*levels, clean])


def check_fix_flow_sampling(ex, rng):
    check_one_flow(ex, rng, *batch(rng, 1), integer(rng, 2, 5))
    check_one_flow(ex, rng, *batch(rng, 1, single=True), 1)


def check_one_flow(ex, rng, x, steps):
    wave = uniform(rng, 0.5, 1.5)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        assert isinstance(t, Tensor) and t.shape == (len(x),), "the network needs t of shape (B,)"
        return torch.cos(wave * x) + (1 + t.view(-1, 1, 1, 1)) ** 2

    goal = right.fix_flow_sampling(velocity, x, steps)
    got = call(ex.fix_flow_sampling, velocity, x, steps)
    hint = f"{steps} steps of Euler's method from t = 1 to t = 0 lead elsewhere"
    expect(got, goal, hint, public.flow_mistakes(velocity, x, steps))


def check_fix_consistency_loss(ex, rng):
    x0, eps = batch(rng)
    now = 0.5 + torch.rand(len(x0), generator=rng)
    then = now * (0.4 + 0.5 * torch.rand(len(x0), generator=rng))
    for n in (len(x0), 1):
        f = public.OneWeight(uniform(rng, 0.5, 1.5))
        public.check_consistency(ex, f, x0[:n], eps[:n], now[:n], then[:n])


def check_ten_evaluations(ex, rng):
    n, turn, seed = integer(rng, 4, 6), uniform(rng, 0, 6.28), integer(rng, 1, 10**6)
    public.check_error(ex.ten_evaluations, public.blobs(n, turn), seed, public.ERROR)


EXERCISES = [
    Exercise("respace", 1, check_respace),
    Exercise("zero_terminal_snr", 2, check_zero_terminal_snr),
    Exercise("v_prediction", 2, check_v_prediction),
    Exercise("snr_weight", 2, check_snr_weight),
    Exercise("flow_matching_loss", 2, check_flow_matching_loss),
    Exercise("ddim_step", 3, check_ddim_step),
    Exercise("heun_step", 3, check_heun_step),
    Exercise("slerp", 3, check_slerp),
    Exercise("reflow_pairs", 2, check_reflow_pairs),
    Exercise("marginal_velocity", 4, check_marginal_velocity),
    Exercise("matching_losses", 2, check_matching_losses),
    Exercise("dpmpp_2m_step", 4, check_dpmpp_2m_step),
    Exercise("fix_respaced_ddpm", 2, check_fix_respaced_ddpm),
    Exercise("fix_heun_sampling", 2, check_fix_heun_sampling),
    Exercise("fix_flow_sampling", 2, check_fix_flow_sampling),
    Exercise("fix_consistency_loss", 2, check_fix_consistency_loss),
    Exercise("ten_evaluations", 4, check_ten_evaluations, goal=True, covers_public=True),
]
