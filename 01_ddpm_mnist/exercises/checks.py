"""The grader's randomised checks of chapter 1:
sizes, levels and numbers are drawn anew, and compared with the solutions.

Where an answer is wrong, it is compared with the results of well-known mistakes too,
so that the message can name the mistake.
"""

import copy
import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from common.grade.checks import Exercise, call, close, expect, expect_gradients, integer, load, number, parts, uniform

right = load(Path(__file__).with_name("solutions.py"), "course_solutions")
public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")  # the goal and how it is measured


# ---------------------------------------------------------------------------------------------- random material


def chain(rng: torch.Generator, T: int) -> Tensor:
    """alpha_bar of a random diffusion whose steps differ clearly. (T + 1,)"""
    betas = 0.05 + 0.25 * torch.rand(T, generator=rng)
    return right.alpha_bars(betas)


REAL = public.CHAIN  # alpha_bar of the paper's 1,000 levels
FAR = "; on small chains your result is right, so look for a clamp, a constant or a rounding that only shows there"


def batch(rng: torch.Generator, square: bool = False, single: bool = False) -> tuple[Tensor, Tensor]:
    """Two batches of random numbers (B, C, H, W).

    square  as many images as columns of pixels, and as rows
    single  one image alone
    """
    B, C, H, W = (integer(rng, low, high) for low, high in ((2, 4), (1, 3), (5, 7), (8, 9)))
    B = 1 if single else B
    shape = (B, C, B, B) if square else (B, C, H, W)
    return torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)


def levels(rng: torch.Generator, n: int, T: int) -> Tensor:
    """Different levels for different images. (n,)"""
    return 1 + torch.randperm(T, generator=rng)[:n]


def real_levels(rng: torch.Generator, lowest: int = 1) -> Tensor:
    """Levels of the 1,000, among them both ends. (4,)"""
    return torch.tensor([1000, lowest, integer(rng, 2, 300), integer(rng, 400, 990)])


class Network(nn.Module):
    """Some function of x and t, with one weight. Remembers the x and the levels that it was given."""

    def __init__(self, rng: torch.Generator):
        super().__init__()
        self.weight = nn.Parameter(0.3 + 0.4 * torch.rand((), generator=rng))
        self.x, self.levels = [], []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert isinstance(t, Tensor) and t.shape == (len(x),), (
            "the network must be given one level for each image, as a tensor (B,)"
        )
        assert not t.is_floating_point(), f"levels are whole numbers, but the network was given {t.dtype}"
        self.x.append(x.detach().clone())
        self.levels.append(t.tolist())
        return self.weight * x + torch.cos(t.view(-1, 1, 1, 1) + 3 * x)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------ the checks


def check_alpha_bars(ex, rng):
    betas = 0.05 + 0.25 * torch.rand(integer(rng, 5, 12), generator=rng)
    alpha_bar = right.alpha_bars(betas)
    got = call(ex.alpha_bars, betas)
    if isinstance(got, Tensor):
        assert got.shape != betas.shape, (
            "alpha_bar_0 = 1 is missing in front, so that every t will be off by one"
            if got[0] != 1
            else "the last alpha_bar is missing"
        )
    wrong = {
        "you multiplied up the betas; it is the (1 - beta) that are multiplied": torch.cat(
            [torch.ones(1), betas.cumprod(0)]
        ),
        "you took the square root; alpha_bar is the plain product": alpha_bar.sqrt(),
        "you listed the (1 - beta); alpha_bar_t is the product of all of them up to t": torch.cat(
            [torch.ones(1), 1 - betas]
        ),
        "you added the betas up; the (1 - beta) are to be multiplied": torch.cat([torch.ones(1), 1 - betas.cumsum(0)]),
        "alpha_bar_0 should be 1: before any noise all of the image is there": torch.cat(
            [torch.zeros(1), alpha_bar[1:]]
        ),
    }
    expect(got, alpha_bar, "alpha_bar_t is the product of (1 - beta_1) ... (1 - beta_t), with 1 in front", wrong)
    betas = torch.linspace(1e-4, 0.02, 1000)
    got = call(ex.alpha_bars, betas)
    expect(got, REAL, f"the schedule of the paper, 1,000 levels, ends at alpha_bar = 4.04e-5{FAR}", atol=1e-7)
    one = call(ex.alpha_bars, betas[-1:])
    expect(one, torch.tensor([1, 0.98]), "a single beta of 0.02 gives two alpha_bars, 1 and 0.98")


def check_add_noise(ex, rng):
    T = integer(rng, 8, 12)
    alpha_bar = chain(rng, T)
    for square in (True, False):
        x0, eps = batch(rng, square)
        t = levels(rng, len(x0), T)
        a = alpha_bar[t].view(-1, 1, 1, 1)
        wrong = {
            "your picture is not noisy enough: did you use 1 - alpha_bar where its square root belongs?": a.sqrt() * x0
            + (1 - a) * eps,
            "your picture is too faint: did you use alpha_bar where its square root belongs?": a * x0
            + (1 - a).sqrt() * eps,
            "both square roots are missing": a * x0 + (1 - a) * eps,
            "your t is off by one: alpha_bar[t] is the entry to use, for entry 0 is the clean image": right.add_noise(
                x0, t - 1, eps, alpha_bar
            ),
            "image and noise are swapped": right.add_noise(eps, t, x0, alpha_bar),
        }
        if square:
            for axis in (2, 3):
                s = alpha_bar[t].view([-1 if i == axis else 1 for i in range(4)])
                message = f"the levels went to axis {axis} (pixels), not to the images: give alpha_bar[t] the shape (B, 1, 1, 1)"
                wrong[message] = s.sqrt() * x0 + (1 - s).sqrt() * eps
        goal = right.add_noise(x0, t, eps, alpha_bar)
        expect(call(ex.add_noise, x0, t, eps, alpha_bar), goal, "x_t is not what eq. 4 gives", wrong)
    for t in real_levels(rng, lowest=0).split(1):  # one image alone
        x0, eps = batch(rng, single=True)
        hint = f"x_t is wrong at t = {int(t)} of the paper's 1,000 levels{FAR}"
        wrong = {"at t = 0 the image is clean: x_t is x_0": right.add_noise(x0, 0 * t + 1, eps, REAL)}
        got = call(ex.add_noise, x0, t, eps, REAL)
        expect(got, right.add_noise(x0, t, eps, REAL), hint, wrong if t == 0 else {})


def check_guess_x0(ex, rng):
    T = integer(rng, 8, 12)
    alpha_bar = chain(rng, T)
    for square in (True, False):
        x0, eps = batch(rng, square)
        t = levels(rng, len(x0), T)
        a = alpha_bar[t].view(-1, 1, 1, 1)
        x_t = right.add_noise(x0, t, eps, alpha_bar)
        wrong = {
            "too much is left of the noise: did you use 1 - alpha_bar where its square root belongs?": (
                x_t - (1 - a) * eps
            )
            / a.sqrt(),
            "the noise is gone but the image is too faint: divide by sqrt(alpha_bar)": x_t - (1 - a).sqrt() * eps,
            "the noise is gone but the image is too strong: divide by the square root of alpha_bar": (
                x_t - (1 - a).sqrt() * eps
            )
            / a,
            "the division by sqrt(alpha_bar) is for the noise too: are parentheses missing?": x_t / a.sqrt()
            - (1 - a).sqrt() * eps,
            "you added the noise once more, where it should be taken away": (x_t + (1 - a).sqrt() * eps) / a.sqrt(),
            "your t is off by one: alpha_bar[t] is the entry to use": right.guess_x0(x_t, t - 1, eps, alpha_bar),
        }
        got = call(ex.guess_x0, x_t, t, eps, alpha_bar)
        expect(
            got,
            x0,
            "adding noise to an image and taking the same noise away should give the image back",
            wrong,
            atol=1e-3,
        )
    for t in real_levels(rng).split(1):
        x0, eps = batch(rng, single=True)
        x_t, root = right.add_noise(x0, t, eps, REAL), REAL[t].sqrt()
        wrong = {
            f"sqrt(alpha_bar_t) falls to 0.0064 in the paper's schedule, and you divide by no less than {least}": x0
            * root
            / max(float(root), least)
            for least in (0.1, 0.05, 0.01)
            if float(root) < least
        }
        hint = f"x_0 is wrong at t = {int(t)} of the paper's 1,000 levels{FAR}"
        expect(call(ex.guess_x0, x_t, t, eps, REAL), x0, hint, wrong, atol=2e-3)


def check_training_loss(ex, rng):
    T = integer(rng, 8, 12)
    _, eps = batch(rng)
    check_one_loss(ex, rng, eps, levels(rng, len(eps), T), chain(rng, T))
    _, eps = batch(rng, single=True)
    check_one_loss(ex, rng, eps, real_levels(rng)[integer(rng, 0, 3)][None], REAL)


def check_one_loss(ex, rng, eps, t, alpha_bar):
    pixels = torch.randint(256, eps.shape, generator=rng).to(torch.uint8)
    net = Network(rng)
    loss = call(ex.training_loss, net, pixels, t, eps, alpha_bar)
    assert len(net.levels) == 1, f"the network should be evaluated once, not {len(net.levels)} times"

    def x_t(x0: Tensor) -> Tensor:
        return right.add_noise(x0, t, eps, alpha_bar)

    wrong = {
        "your images are in [0, 1]; they should be in [-1, 1], centred as the noise is": x_t(pixels / 255),
        "the pixels are still 0 ... 255; they should become -1 ... 1": x_t(pixels.float()),
        "the network was shown the clean images": pixels / 127.5 - 1,
        "the network was shown the noise alone": eps,
    }
    seen, again = net.x[0], Network(rng)

    def seen_again() -> Tensor:
        ex.training_loss(again, pixels, t, eps, alpha_bar)
        return again.x[0]

    hint = "the network should see x_t, made by eq. 4 from images in [-1, 1]"
    expect(seen, x_t(pixels / 127.5 - 1), hint, wrong, again=seen_again)
    given, wanted = net.levels[0], (t - 1).tolist()
    assert given != t.tolist(), f"the network was given t = {given}; it counts from 0, so give it t - 1"
    assert given == wanted, f"the network was given {given}, not t - 1 = {wanted}"

    prediction, x0 = net(net.x[0], t - 1), pixels / 127.5 - 1
    error = prediction - eps
    wrong = {
        "you added up the squared errors; take their mean, or the loss depends on the size of the batch": error.square().sum(),
        "you added up the squared errors of each image; take the mean over pixels too": error.square()
        .sum((1, 2, 3))
        .mean(),
        "you compared the prediction with the image; the network predicts the noise": (prediction - x0)
        .square()
        .mean(),
        "you compared the prediction with the noisy image; the network predicts the noise": (prediction - net.x[0])
        .square()
        .mean(),
        "you took the absolute difference; eq. 14 squares it": error.abs().mean(),
        "you did not square the differences, so that errors up and down cancel": error.mean(),
        "you took the root of the mean squared error; eq. 14 does not": error.square().mean().sqrt(),
    }
    expect(loss, error.square().mean(), "the loss is the mean of (eps - model(x_t, t - 1))^2", wrong)
    expect_gradients(loss, error.square().mean(), {"the network": net.weight})


def check_reverse_step(ex, rng):
    T = integer(rng, 8, 12)
    alpha_bar = chain(rng, T)
    for t in (1, integer(rng, 2, T), T):
        check_one_step(ex, *batch(rng), torch.randn(3, 2, generator=rng), t, alpha_bar, rng)
    for t in [2, *real_levels(rng).tolist()]:
        check_one_step(ex, *batch(rng, single=True), torch.randn(3, 2, generator=rng), t, REAL, rng)


def check_one_step(ex, x, eps, points, t, alpha_bar, rng):
    """One step of images, and one of points in the plane."""
    T, far = len(alpha_bar) - 1, FAR if alpha_bar is REAL else ""
    z = torch.randn(x.shape, generator=rng)
    now, before = alpha_bar[t], alpha_bar[t - 1]
    beta = 1 - now / before
    root, sd = (1 - beta).sqrt(), ((1 - before) / (1 - now) * beta).sqrt()
    mean = right.reverse_step(x, t, eps, torch.zeros_like(x), alpha_bar)
    x0 = ((x - (1 - now).sqrt() * eps) / now.sqrt()).clamp(-1, 1)
    wrong = {
        "in the mean, the square root of 1 - alpha_bar_t is missing": (x - beta / (1 - now) * eps) / root,
        "in the mean, eps has the factor sqrt(1 - alpha_bar_t): all the noise, not one step's": (
            x - (1 - now).sqrt() * eps
        )
        / root,
        "the mean is divided by sqrt(alpha_bar_t); it should be sqrt(1 - beta_t), for one step": (
            x - beta / (1 - now).sqrt() * eps
        )
        / now.sqrt(),
        "the mean is not divided by sqrt(1 - beta_t)": mean * root,
        "you clipped the predicted x_0 to [-1, 1], as some samplers do; eq. 11 does not": (
            before.sqrt() * beta * x0 + root * (1 - before) * x
        )
        / (1 - now),
    }

    got = call(ex.reverse_step, x, t, eps, torch.zeros_like(x), alpha_bar)
    expect(got, mean, f"the mean (z = 0) is not what eq. 11 gives at t = {t} of {T}{far}", wrong)

    got = call(ex.reverse_step, x, t, eps, z, alpha_bar)
    wrong = {}
    if t > 1:
        wrong = {
            "you used the variance beta_t; eq. 7 has a factor (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) before it": mean
            + beta.sqrt() * z,
            "your factor (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) is upside down": mean
            + ((1 - now) / (1 - before) * beta).sqrt() * z,
            "you multiplied z by the variance; it takes the square root of it": mean + sd**2 * z,
            "the mean is right, but z was forgotten": mean,
        }
    elif isinstance(got, Tensor):
        assert close(got, mean), (
            "noise is added at the last step, which should end in the clean image: use eq. 7 with alpha_bar_0 = 1"
        )
    expect(got, mean + sd * z, f"the noise of x_(t-1) is not what eq. 7 gives at t = {t} of {T}{far}", wrong)
    expect(
        call(ex.reverse_step, points, t, points.cos(), points.sin(), alpha_bar),
        right.reverse_step(points, t, points.cos(), points.sin(), alpha_bar),
        "points in the plane, (B, 2), take the same step as images",
    )


def check_sample(ex, rng):
    T = integer(rng, 8, 12)
    alpha_bar, net = chain(rng, T), Network(rng)
    shape = (integer(rng, 2, 3), 1, 4, 5)
    some = sorted((1 + torch.randperm(T - 1, generator=rng)[:3]).tolist())
    for times in (list(range(1, T + 1)), [*some, T]):
        check_walk(ex.sample, net, shape, alpha_bar, times, seed=integer(rng, 0, 10**6))
    times = sorted(set(real_levels(rng).tolist()))
    check_walk(ex.sample, net, (1, *shape[1:]), REAL, times, seed=integer(rng, 0, 10**6))


def check_walk(sample, net, shape, alpha_bar, times, seed):
    net.levels.clear()
    got = call(sample, net, shape, alpha_bar, list(times), generator(seed))
    given, wanted = [row[0] for row in net.levels], [time - 1 for time in reversed(times)]
    assert given != wanted[::-1], "you walked from clean to noisy; sampling starts at the noisiest level"
    assert given != [time + 1 for time in wanted], (
        f"the network was given {given}; it counts from 0, so give it the level less 1: {wanted}"
    )
    assert given == wanted, f"visiting the levels {times}, the network must be given {wanted}, but was given {given}"

    def walk(step, new_z: bool = True) -> Tensor:
        """Algorithm 2 with step(x, k, eps, z) as the body of its loop."""
        draw = generator(seed)
        x = x_T = torch.randn(shape, generator=draw)
        with torch.no_grad():
            for k in range(len(times), 0, -1):
                eps = net(x, torch.full((len(x),), times[k - 1] - 1))
                x = step(x, k, eps, torch.randn(shape, generator=draw) if new_z else x_T)
        return x

    short = alpha_bar[[0, *times]]
    wrong = {
        "no noise was added between the steps; draw a z for each": partial(
            walk, lambda x, k, eps, z: right.reverse_step(x, k, eps, 0 * z, short)
        ),
        "the same z was used at every step; draw a new one each time": partial(
            walk, lambda x, k, eps, z: right.reverse_step(x, k, eps, z, short), new_z=False
        ),
        "each step used the full chain's coefficients, which go back one level only and leave noise in the picture; "
        "a jump needs the alpha_bar of the shorter chain, alpha_bar[[0, *times]]": partial(
            walk, lambda x, k, eps, z: right.reverse_step(x, times[k - 1], eps, z, alpha_bar)
        ),
        "you clipped x to [-1, 1] at every step; only the last image may be limited, and algorithm 2 limits nothing": partial(
            walk, lambda x, k, eps, z: right.reverse_step(x, k, eps, z, short).clamp(-1, 1)
        ),
    }
    goal = walk(lambda x, k, eps, z: right.reverse_step(x, k, eps, z, short))
    expect(
        got,
        goal,
        "algorithm 2 makes other images of these random numbers: one draw for x, then one for each step",
        wrong,
        atol=1e-3 * max(1.0, float(goal.abs().max())),
    )
    assert not got.requires_grad, (
        "the samples hold the graph of all steps, so that memory grows with every evaluation: "
        "keep @torch.no_grad() above the function"
    )


def check_training_step(ex, rng):
    check_two_steps(ex, rng, decay=uniform(rng, 0.6, 0.9))
    check_two_steps(ex, rng, decay=0.0, frozen=True)


def check_two_steps(ex, rng, decay: float, frozen: bool = False):
    """frozen: the average needs no gradients, as in training programs."""
    width, lr = integer(rng, 2, 4), 0.1
    net = nn.Linear(width, width)
    average = copy.deepcopy(net).requires_grad_(not frozen)
    with torch.no_grad():
        for p in [*net.parameters(), *average.parameters()]:
            p.copy_(torch.randn(p.shape, generator=rng))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(2):  # in the second step, the gradients of the first still lie there
        x = torch.randn(5, width, generator=rng)
        loss = net(x).square().mean()
        gradients = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
        before = [p.detach().clone() for p in net.parameters()]
        stale = [0 if p.grad is None else p.grad.clone() for p in net.parameters()]
        means = [p.detach().clone() for p in average.parameters()]
        ex.training_step(net, average, optimizer, loss, decay)
        kept_bias = torch.equal(average.bias, means[1]) and not torch.equal(average.weight, means[0])
        assert not kept_bias, (
            "the average of the weights moved, but that of the biases did not: average.parameters() has both"
        )
        for p, mean, old, g, s, m in zip(
            net.parameters(), average.parameters(), before, gradients, stale, means, strict=True
        ):
            assert not (mean.grad_fn or mean.data_ptr() == p.data_ptr()), (
                "the average must stay a separate network: copy numbers, not tensors"
            )
            new = old - lr * g
            wrong = {
                "the optimizer made no step": old,
                "the gradients of the step before were added to this one's: call optimizer.zero_grad() before backward()": old
                - lr * (g + s),
            }
            if torch.is_tensor(s):
                wrong["the optimizer used the gradients of the step before: call backward() before step()"] = (
                    old - lr * s
                )
            expect(
                p.detach(),
                new,
                "the network should make one step of the optimizer, along the gradient of this loss",
                wrong,
            )
            wrong = {
                "decay is the wrong way round: a decay near 1 should keep most of the average": (1 - decay) * m
                + decay * new,
                "the average was taken before the optimizer's step, so it lags one step behind": decay * m
                + (1 - decay) * old,
                "the average did not move": m,
                "the average became a copy of the network": new,
                "the averages are those of the gradients; average the weights": decay * m + (1 - decay) * g,
            }
            expect(
                mean.detach(),
                decay * m + (1 - decay) * new,
                "the average should become decay * average + (1 - decay) * weights",
                wrong,
            )


def check_time_embedding(ex, rng):
    check_waves(ex, torch.randint(1000, (integer(rng, 2, 5),), generator=rng), 2 * integer(rng, 3, 16))
    check_waves(ex, torch.tensor([999]), 128)


def check_waves(ex, t, dim):
    waves = right.time_embedding(t, dim)
    sin, cos = waves.chunk(2, dim=1)
    shifted = t[:, None] / 10_000 ** (torch.arange(dim // 2) / (dim // 2 - 1))
    wrong = {
        "the cosines come first; here the sines do": torch.cat([cos, sin], 1),
        "sines and cosines alternate; here all the sines come first": torch.stack([sin, cos], 2).flatten(1),
        "your slowest wave is t / 10000; the exponent is i / half, not i / (half - 1)": torch.cat(
            [shifted.sin(), shifted.cos()], 1
        ),
        "you multiplied t by 10000^(i / half) where it is divided": faster(t, dim),
    }
    expect(
        call(ex.time_embedding, t, dim),
        waves,
        "the angles are t / 10000^(i / half), i = 0 ... half - 1",
        wrong,
        atol=2e-3,
    )


def faster(t: Tensor, dim: int) -> Tensor:
    angle = t[:, None] * 10_000 ** (torch.arange(dim // 2) / (dim // 2))
    return torch.cat([angle.sin(), angle.cos()], 1)


# ------------------------------------------------------------------------------------------------------- the score


def check_score_of(ex, rng):
    T = integer(rng, 8, 12)
    alpha_bar = chain(rng, T)
    for square in (True, False):
        _, eps = batch(rng, square)
        t = levels(rng, len(eps), T)
        a = alpha_bar[t].view(-1, 1, 1, 1)
        score = right.score_of(eps, t, alpha_bar)
        wrong = {
            "the sign is wrong: the score points away from the noise": -score,
            "the standard deviation is missing: divide by sqrt(1 - alpha_bar_t)": -eps,
            "you multiplied by sqrt(1 - alpha_bar_t) where it divides": -eps * (1 - a).sqrt(),
            "you divided by the variance; one square root of it is already in x_t - sqrt(alpha_bar_t) x_0": -eps
            / (1 - a),
            "you divided by sqrt(alpha_bar_t), the weight of the image; the noise has sqrt(1 - alpha_bar_t)": -eps
            / a.sqrt(),
            "your t is off by one: alpha_bar[t] is the entry to use": -eps
            / (1 - alpha_bar[(t + 1).clamp(max=T)]).sqrt().view(-1, 1, 1, 1),
        }
        if square:
            columns = -eps / (1 - alpha_bar[t]).sqrt()
            wrong["the levels went to the columns of pixels; give alpha_bar[t] the shape (B, 1, 1, 1)"] = columns
        expect(
            call(ex.score_of, eps, t, alpha_bar),
            score,
            "the score is the gradient of log N(x_t; sqrt(alpha_bar_t) x_0, 1 - alpha_bar_t) at x_t",
            wrong,
        )
    for t in real_levels(rng).split(1):
        _, eps = batch(rng, single=True)
        sigma = float((1 - REAL[t]).sqrt())
        wrong = {
            f"sqrt(1 - alpha_bar_t) falls to 0.01 in the paper's schedule, and you divide by no less than {least}": -eps
            / least
            for least in (0.1, 0.05)
            if sigma < least
        }
        hint = f"the score is wrong at t = {int(t)} of the paper's 1,000 levels{FAR}"
        expect(call(ex.score_of, eps, t, REAL), right.score_of(eps, t, REAL), hint, wrong, atol=1e-2)


def check_langevin_step(ex, rng):
    check_one_move(ex, *batch(rng), uniform(rng, 0.05, 0.4), rng)
    check_one_move(ex, *torch.randn(2, 1, 2, generator=rng), 1e-4, rng)  # one point in the plane, and a small step


def check_one_move(ex, x, score, delta, rng):
    z, root = torch.randn(x.shape, generator=rng), delta**0.5
    wrong = {
        "the step goes against the score": x - delta / 2 * score + root * z,
        "z has the factor delta; noise of variance delta has the standard deviation sqrt(delta)": x
        + delta / 2 * score
        + delta * z,
        "the score has the factor delta; with noise of variance delta it is delta / 2": x + delta * score + root * z,
        "that is a step of size 2 delta: the score has the factor delta / 2, and z has sqrt(delta)": x
        + delta * score
        + (2 * delta) ** 0.5 * z,
        "without noise the points only climb to the nearest maximum of the density": x + delta / 2 * score,
        "that is the change alone; add it to x": delta / 2 * score + root * z,
    }
    goal = x + delta / 2 * score + root * z
    expect(
        call(ex.langevin_step, x, score, delta, z),
        goal,
        "x moves by delta / 2 times the score, and by noise of variance delta",
        wrong,
        atol=1e-5,
    )


# -------------------------------------------------------------------------------------------------- class conditioning


def check_add_class_embedding(ex, rng):
    B, D, K = integer(rng, 3, 5), integer(rng, 5, 7), integer(rng, 8, 10)
    embedding, table = torch.randn(B, D, generator=rng), torch.randn(K, D, generator=rng)
    label = 1 + torch.randperm(K - 1, generator=rng)[:B]
    wrong = {
        "every image got the class of the first one": embedding + table[label[0]],
        "the embeddings of time were lost: add the class to them": table[label],
        "you multiplied the two embeddings; the class is added": embedding * table[label],
        "your label is off by one: class 0 has row 0": embedding + table[label - 1],
        "every image got row 0, 1, 2 ... of the table, whatever its label": embedding + table[:B],
    }
    got = call(ex.add_class_embedding, embedding, label, table)
    assert not (isinstance(got, Tensor) and got.shape == (B, 2 * D)), (
        "you put the two vectors side by side; add them, so that the width stays D"
    )
    expect(got, embedding + table[label], "image i gets embedding[i] + table[label[i]]", wrong)
    for used in (label, label[:1].expand(B)):  # once several images of one class: its row gets all their gradients
        embedding, table = embedding.detach().requires_grad_(), table.detach().requires_grad_()
        inputs = {"the table of the classes' vectors": table, "the embedding of time": embedding}
        expect_gradients(ex.add_class_embedding(embedding, used, table), embedding + table[used], inputs)


# --------------------------------------------------------------------------------------------------- Frechet distance


def check_frechet_distance(ex, rng):
    D = integer(rng, 3, 5)
    N, M = integer(rng, 30, 40), integer(rng, 50, 60)

    def features(n: int) -> Tensor:
        mix = torch.randn(D, D, generator=rng, dtype=torch.float64)
        return torch.randn(n, D, generator=rng, dtype=torch.float64) @ mix + torch.randn(D, generator=rng)

    a, b = features(N), features(M)
    A, B, shift = a.T.cov(), b.T.cov(), a.mean(0) - b.mean(0)
    A_n, B_n = a.T.cov(correction=0), b.T.cov(correction=0)
    root = torch.linalg.eigvals(A @ B).real.clamp(min=0).sqrt().sum()
    root_n = torch.linalg.eigvals(A_n @ B_n).real.clamp(min=0).sqrt().sum()
    means, traces = shift.square().sum(), A.trace() + B.trace()
    wrong = {
        "the means are missing: add the squared distance between them": traces - 2 * root,
        "only the means are compared; the covariances count too": means,
        "the distance between the means is not squared": means.sqrt() + traces - 2 * root,
        "that is the square root of the distance; the Fréchet distance of FID is the squared one": (
            means + traces - 2 * root
        ).sqrt(),
        "the factor 2 before the trace of the square root is missing": means + traces - root,
        "you took the square root of each entry of A B; a matrix square root is another matrix": means
        + traces
        - 2 * (A @ B).clamp(min=0).sqrt().trace(),
        "you used only the variances (the diagonals); the covariances count too": means
        + traces
        - 2 * (A.diagonal() * B.diagonal()).sqrt().sum(),
        "the covariances are divided by N; torch.cov divides by N - 1": means + A_n.trace() + B_n.trace() - 2 * root_n,
        "the square root is missing: it is the trace of (A B)^(1/2), not of A B": means + traces - 2 * (A @ B).trace(),
    }
    got = number(call(ex.frechet_distance, a, b))
    expect(
        got, means + traces - 2 * root, "the distance is |difference of means|^2 + Tr(A + B - 2 (A B)^(1/2))", wrong
    )
    for _ in range(4):  # fewer points than dimensions, so that the covariance has no inverse
        few, many = torch.randn(4, 8, generator=rng).double(), torch.randn(40, 8, generator=rng).double()
        got = number(ex.frechet_distance(few, many))
        assert torch.isfinite(got), (
            "with fewer features than dimensions the result is not a number: set eigenvalues that are negative to 0"
        )
    got = number(ex.frechet_distance(a, a.clone()))
    expect(got, torch.zeros(()).double(), "a set has the distance 0 to itself", atol=1e-5 * max(1.0, float(A.trace())))


# -------------------------------------------------------------------------------------------------- derive and check


def check_posterior_variance(ex, rng):
    T, n = integer(rng, 8, 12), 200_000
    alpha_bar, x0, t = chain(rng, T), uniform(rng, -2, 2), integer(rng, 2, 4)
    seed = integer(rng, 0, 10**6)

    def estimate(seed: int, n: int = 2000) -> float:
        return float(
            number(call(ex.posterior_variance, x0, t, alpha_bar, n, generator(seed)), "the estimated variance")
        )

    compare_variance(estimate(seed, n), x0, t, alpha_bar)
    assert estimate(seed) == estimate(seed), (
        "two calls with the same seed give different numbers: draw with generator=generator"
    )
    assert estimate(seed) != estimate(seed + 1), (
        "two calls with different seeds give the same number: this is a formula, but the exercise asks for an estimate"
    )


def compare_variance(got: float, x0: float, t: int, alpha_bar: Tensor) -> None:
    """Compare an estimate with eq. 7, to 5 %."""
    now, before = (float(alpha_bar[k]) for k in (t, t - 1))
    beta = 1 - now / before
    right_variance = (1 - before) / (1 - now) * beta

    def near(value: float) -> bool:
        return math.isfinite(got) and abs(got / value - 1) < 0.05

    if near(right_variance):
        return
    wrong = {
        "this is the standard deviation; square it": right_variance**0.5,
        "this is the variance of x_{t-1} given x_0 alone; x_t is known too, and leaves less room": 1 - before,
        "this is the variance of x_t given x_{t-1}, beta_t, or of x_{t-1} - x_t; wanted is that of x_{t-1} given x_t and x_0": beta,
        "this is the variance of x_t given x_0; wanted is that of x_{t-1} given x_t and x_0": 1 - now,
        "you estimated as if x_{t-1} given x_t had the slope 1; fit the slope to the pairs": (1 - (1 - beta) ** 0.5)
        ** 2
        * (1 - before)
        + beta,
    }
    for message, value in wrong.items():
        assert not near(value), message
    raise AssertionError(
        f"you estimated {got:.4g}, but the variance of x_(t-1) given x_t and x_0 is {right_variance:.4g} at t = {t}"
    )


def check_tweedie_mean(ex, rng):
    check_clean_mean(ex, rng, uniform(rng, 0.3, 0.8), integer(rng, 5, 8))
    check_clean_mean(ex, rng, float(REAL[-1]), 1)  # one point in pure noise


def check_clean_mean(ex, rng, a, B):
    D, K = integer(rng, 2, 3), integer(rng, 3, 5)
    points, weight = torch.randn(K, D, generator=rng), torch.rand(K, generator=rng)
    x = 1.5 * torch.randn(B, D, generator=rng)

    def log_terms(x: Tensor) -> Tensor:
        """log of weight times density, of each clean point. (B, D) -> (B, K)"""
        squared = (x[:, None] - a**0.5 * points).square().sum(-1)
        return (weight / weight.sum()).log() - squared / (2 * (1 - a)) - D / 2 * math.log(2 * math.pi * (1 - a))

    def log_density(x: Tensor) -> Tensor:
        return log_terms(x).logsumexp(1)

    mean = log_terms(x).softmax(1) @ points
    score = (a**0.5 * mean - x) / (1 - a)
    density = log_density(x).exp()[:, None]
    wrong = {
        "the sign of the score is wrong: it points towards the clean points": (x - (1 - a) * score) / a**0.5,
        "the score has the factor sqrt(1 - alpha_bar); it should be the variance, 1 - alpha_bar": (
            x + (1 - a) ** 0.5 * score
        )
        / a**0.5,
        "the mean is that of sqrt(alpha_bar) x_0: divide by sqrt(alpha_bar)": x + (1 - a) * score,
        "you divided by alpha_bar; x_0 has the weight sqrt(alpha_bar) in x_t": (x + (1 - a) * score) / a,
        "you took the gradient of the density; the score is the gradient of its logarithm": (
            x + (1 - a) * score * density
        )
        / a**0.5,
        "your gradient is divided by the number of points: take the gradient of the sum, not of the mean": (
            x + (1 - a) * score / B
        )
        / a**0.5,
        "that is the score; the mean of the clean points follows from it": score,
        "the score has no factor; it should be 1 - alpha_bar": (x + score) / a**0.5,
    }
    got = call(ex.tweedie_mean, log_density, x, a)
    got = got.detach() if isinstance(got, Tensor) else got
    expect(
        got,
        mean,
        f"at alpha_bar_t = {a:.2g} the result is not the average of the clean points, weighted by how probable each is",
        wrong,
        5e-3,  # rounding in x_t, divided by sqrt(alpha_bar_t)
    )


# ----------------------------------------------------------------------------------------------- programs with a fault


def check_fix_last_step(ex, rng):
    T = integer(rng, 6, 9)
    alpha_bar, net, shape = chain(rng, T), Network(rng), (integer(rng, 2, 3), 1, 4, 5)
    seed = integer(rng, 0, 10**6)
    got = call(ex.fix_last_step, net, shape, alpha_bar, generator(seed))
    given, wanted = [row[0] for row in net.levels], list(range(T - 1, -1, -1))
    assert given != wanted[:-1], "the last step is missing now: its mean is needed, only its noise is too much"
    assert given == wanted, f"the network must be given the levels {wanted}, but was given {given}"

    def walk(noise, z_at_first: bool = True) -> Tensor:
        """noise(t, beta): the standard deviation of the noise of a step"""
        draw = generator(seed)
        x = torch.randn(shape, generator=draw)
        for t in range(T, 0, -1):
            with torch.no_grad():
                eps = net(x, torch.full((len(x),), t - 1))
            mean = right.reverse_step(x, t, eps, torch.zeros(shape), alpha_bar)
            z = torch.randn(shape, generator=draw) if z_at_first or t < T else torch.zeros(shape)
            x = mean + noise(t, 1 - alpha_bar[t] / alpha_bar[t - 1]) * z
        return x

    def posterior(t: int, beta: Tensor) -> Tensor:
        return ((1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta).sqrt()

    wrong = {
        "noise is still added at the last step, after which no evaluation removes it": walk(
            lambda t, beta: beta.sqrt()
        ),
        "you left out the noise of the first step; the last one, t = 1, is at fault": walk(
            lambda t, beta: beta.sqrt() * (t < T)
        ),
        "you left out the noise of the first step; the last one is at fault": walk(
            lambda t, beta: beta.sqrt(), z_at_first=False
        ),
        "no step adds noise any more; only the last one must not": walk(lambda t, beta: 0),
        "you changed the variance of all steps to that of eq. 7; keep beta_t, and leave out the noise at t = 1": walk(
            posterior
        ),
        "you left out the noise at t = 2, too": walk(lambda t, beta: beta.sqrt() * (t > 2)),
    }
    expect(
        got.detach() if isinstance(got, Tensor) else got,
        walk(lambda t, beta: beta.sqrt() * (t > 1)),
        "all steps but the last were right: variance beta_t, one draw for x and one for each step",
        wrong,
        atol=1e-3,
    )


def check_fix_range(ex, rng):
    T = integer(rng, 8, 12)
    alpha_bar = chain(rng, T)
    _, eps = batch(rng)
    pixels = torch.randint(256, eps.shape, generator=rng).to(torch.uint8)
    pixels[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    t, seen = levels(rng, len(pixels), T), []

    def perfect(x: Tensor, level: Tensor) -> Tensor:
        assert level.tolist() == (t - 1).tolist(), f"the network must be given t - 1, but was given {level.tolist()}"
        seen.append(x)
        return eps

    got = call(ex.fix_range, perfect, pixels, t, eps, alpha_bar)
    assert len(seen) == 1, f"the network should be evaluated once, not {len(seen)} times"

    def x_t(x0: Tensor) -> Tensor:
        return right.add_noise(x0, t, eps, alpha_bar)

    half = "the images are in [0, 1] on the way in and in [-1, 1] on the way out, so that black comes back as grey"
    wrong = {
        half
        if isinstance(got, Tensor) and got.min() > 100
        else "both ends agree on [0, 1] now, but images should be in [-1, 1], centred as the noise is (DDPM, section 3.3)": x_t(
            pixels / 255
        ),
        "the images that the network sees are still pixels from 0 to 255": x_t(pixels.float()),
        "255 / 128 - 1 is a little less than 1; the inverse of the last line divides by 127.5": x_t(pixels / 128 - 1),
        "the images are in [-0.5, 0.5]; the last line is for [-1, 1]": x_t(pixels / 255 - 0.5),
    }
    expect(seen[0], x_t(pixels / 127.5 - 1), "the network should see x_t made of images in [-1, 1]", wrong)
    assert isinstance(got, Tensor) and got.dtype == torch.uint8, "the pictures should be uint8"
    off = (got.int() - pixels.int()).abs().max()
    assert got.shape == pixels.shape and off <= 1, (
        f"a network that predicts the noise exactly should give the pixels back, but some differ by {off}: "
        "the way out must map -1 to 0 and 1 to 255"
    )


def check_fix_levels(ex, rng):
    T = integer(rng, 5, 8)
    alpha_bar, net = chain(rng, T), Network(rng)
    x0, _ = batch(rng)
    x0, shape, seed = x0[:2].repeat(8, 1, 1, 1), (integer(rng, 2, 3), 1, 4, 5), integer(rng, 0, 10**6)
    result = call(ex.fix_levels, net, x0, shape, alpha_bar, generator(seed))
    loss, got = parts(result, 2, "the loss and the samples")
    assert len(net.levels) == T + 1, (
        f"the network should be evaluated {T + 1} times, once for the loss and once a level, not {len(net.levels)} times"
    )
    draw = generator(seed)
    t = torch.randint(1, T + 1, (len(x0),), generator=draw)
    eps = torch.randn(x0.shape, generator=draw)
    trained, sampled = torch.tensor(net.levels[0]), [row[0] for row in net.levels[1:]]
    down = list(range(T, 0, -1))

    def noised(level: Tensor) -> bool:
        """Whether the images of the loss were noised to these levels."""
        return close(net.x[0], right.add_noise(x0, level.clamp(0, T), eps, alpha_bar))

    assert not (sampled == down and noised(trained)), (
        f"training and sampling agree now, but the network has the levels 0 to {T - 1}: training never uses {T}, which "
        "sampling begins with, and level 0 of training has no noise at all"
    )
    assert sampled == [level - 1 for level in down], (
        f"in sampling the network should be given {[level - 1 for level in down]}, but was given {sampled}"
    )
    assert not noised(trained), (
        "training gives the network level k with the noise of alpha_bar[k], sampling with that of alpha_bar[k + 1]"
    )
    assert not noised(trained - 1), (
        "training is off by one the other way now: level k has the noise of alpha_bar[k - 1]; it should be alpha_bar[k + 1]"
    )
    assert noised(trained + 1), "in training, an image of level k should be noised with alpha_bar[k + 1] and eps"
    without_one = torch.randint(1, T, (len(x0),), generator=generator(seed))
    assert trained.tolist() not in (without_one.tolist(), (without_one - 1).tolist()), (
        f"training now draws from {T - 1} levels; there are {T}, 1 to {T}, and torch.randint leaves out its upper bound"
    )
    assert trained.tolist() == (t - 1).tolist(), (
        "the levels of training are not those of the random numbers: draw the levels first, from all T, then the noise"
    )
    goal = (net(right.add_noise(x0, t, eps, alpha_bar), t - 1) - eps).square().mean()
    expect(loss, goal, "the loss is that of eq. 14")
    expect_gradients(loss, goal, {"the network": net.weight})
    x = torch.randn(shape, generator=draw)
    for level in down:
        with torch.no_grad():
            eps = net(x, torch.full((len(x),), level - 1))
        x = right.reverse_step(x, level, eps, torch.randn(shape, generator=draw), alpha_bar)
    expect(got, x, "the sampling half was right: one draw for x, then one reverse step a level", atol=1e-3)
    assert not got.requires_grad, "the samples hold a graph now: sampling needs no gradients, keep torch.no_grad()"


class TracedNetwork(Network):
    """Counts, whenever it is evaluated, how many graphs of earlier evaluations are still in memory."""

    def __init__(self, rng: torch.Generator):
        super().__init__(rng)
        self.kept = []
        public.Traced.nodes = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.kept.append(sum(node() is not None for node in public.Traced.nodes))
        return public.Traced.apply(super().forward(x, t))


def check_fix_training_log(ex, rng):
    T, steps = integer(rng, 6, 9), integer(rng, 6, 8)
    alpha_bar, net = chain(rng, T), TracedNetwork(rng)
    batches, seed = [batch(rng)[0] for _ in range(steps)], integer(rng, 0, 10**6)
    twin, start = copy.deepcopy(net), net.weight.detach().clone()

    log = ex.fix_training_log(net, torch.optim.SGD(net.parameters(), lr=0.1), batches, alpha_bar, generator(seed))
    assert log is not None, "a list was expected here, not None: is a `return` missing?"
    assert len(net.kept) == steps, f"the network should be evaluated {steps} times, not {len(net.kept)} times"
    assert not any(isinstance(each, Tensor) and each.requires_grad for each in log), (
        "the log keeps the graph of every loss: smooth is computed from the tensor loss; take the number, loss.item()"
    )
    assert max(net.kept) <= 2, (
        f"the graphs of {max(net.kept)} steps were in memory at the same time: detach inside of the loop, before the "
        "loss goes into smooth"
    )
    optimizer, smooth, right_log, plain = torch.optim.SGD(twin.parameters(), lr=0.1), 0.0, [], []
    draw = generator(seed)
    for x0 in batches:
        t = torch.randint(1, T + 1, (len(x0),), generator=draw)
        eps = torch.randn(x0.shape, generator=draw)
        loss = (twin(right.add_noise(x0, t, eps, alpha_bar), t - 1) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        smooth = 0.9 * smooth + 0.1 * loss.item()
        right_log.append(smooth)
        plain.append(loss.item())
    assert len(log) == steps, f"the log should have an entry for each of the {steps} steps, not {len(log)}"
    expect(
        net.weight.detach(),
        twin.weight.detach(),
        "the network should learn as before, step by step",
        {"the network does not learn any more": start},
    )
    expect(
        torch.tensor([float(each) for each in log]),
        torch.tensor(right_log),
        "the curve was right: 0.9 of the value before and 0.1 of the loss",
        {"the loss is not smoothed any more": torch.tensor(plain)},
    )


# ------------------------------------------------------------------------------------------------------------ the goal


def check_fifteen_evaluations(ex, rng):
    """Three sets of blobs of 4,000 points: the mean error varies by less than 0.005 between draws."""
    errors = [public.error_of_fifteen(ex, integer(rng, 0, 10**6)) for _ in range(3)]
    error = sum(errors) / len(errors)
    assert error <= public.GOAL, (
        f"the error is {error:.3f} on average over three sets of blobs, and the goal is {public.GOAL}"
    )


EXERCISES = [
    Exercise("alpha_bars", 1, check_alpha_bars),
    Exercise("add_noise", 2, check_add_noise),
    Exercise("guess_x0", 1, check_guess_x0),
    Exercise("score_of", 1, check_score_of),
    Exercise("time_embedding", 1, check_time_embedding),
    Exercise("add_class_embedding", 1, check_add_class_embedding),
    Exercise("training_loss", 3, check_training_loss),
    Exercise("training_step", 2, check_training_step),
    Exercise("langevin_step", 2, check_langevin_step),
    Exercise("reverse_step", 3, check_reverse_step),
    Exercise("sample", 4, check_sample),
    Exercise("frechet_distance", 3, check_frechet_distance),
    Exercise("posterior_variance", 3, check_posterior_variance),
    Exercise("tweedie_mean", 3, check_tweedie_mean),
    Exercise("fix_last_step", 2, check_fix_last_step),
    Exercise("fix_range", 2, check_fix_range),
    Exercise("fix_levels", 2, check_fix_levels),
    Exercise("fix_training_log", 2, check_fix_training_log),
    Exercise("fifteen_evaluations", 4, check_fifteen_evaluations, goal=True, covers_public=True),
]
