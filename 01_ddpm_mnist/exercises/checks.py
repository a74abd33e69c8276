"""The grader's randomised checks of chapter 1:
sizes, levels and numbers are drawn anew, and compared with the solutions.

Where an answer is wrong, it is compared with the results of well-known mistakes too,
so that the message can name the mistake.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from common.grade.checks import Exercise, call, close, expect, integer, load

right = load(Path(__file__).with_name("solutions.py"), "course_solutions")


# ---------------------------------------------------------------------------------------------- random material


def chain(rng: torch.Generator, T: int) -> Tensor:
    """alpha_bar of a random diffusion whose steps differ clearly. (T + 1,)"""
    betas = 0.05 + 0.25 * torch.rand(T, generator=rng)
    return right.alpha_bars(betas)


def batch(rng: torch.Generator, square: bool = False) -> tuple[Tensor, Tensor]:
    """Two batches of random numbers (B, C, H, W); square: as many images as columns of pixels, and as rows."""
    B, C, H, W = (integer(rng, low, high) for low, high in ((2, 4), (1, 3), (5, 7), (8, 9)))
    shape = (B, C, B, B) if square else (B, C, H, W)
    return torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)


def levels(rng: torch.Generator, n: int, T: int) -> Tensor:
    """Different levels for different images. (n,)"""
    return 1 + torch.randperm(T, generator=rng)[:n]


class Network(nn.Module):
    """Some function of x and t, with one weight. Remembers what it was shown and which levels it was told."""

    def __init__(self, rng: torch.Generator):
        super().__init__()
        self.weight = nn.Parameter(0.3 + 0.4 * torch.rand((), generator=rng))
        self.x, self.told = [], []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert isinstance(t, Tensor) and t.shape == (len(x),), (
            "the network must be told one level for each image, as a tensor (B,)"
        )
        assert not t.is_floating_point(), f"levels are whole numbers, but the network was told {t.dtype}"
        self.x.append(x.detach().clone())
        self.told.append(t.tolist())
        return self.weight * x + torch.cos(t.view(-1, 1, 1, 1) + 3 * x)


# ------------------------------------------------------------------------------------------------------ the checks


def check_alpha_bars(ex, rng):
    betas = 0.05 + 0.25 * torch.rand(integer(rng, 5, 12), generator=rng)
    alpha_bar = right.alpha_bars(betas)
    got = call(ex.alpha_bars, betas)
    assert len(got) != len(betas), (
        "alpha_bar_0 = 1 is missing in front, so that every t will be off by one"
        if got[0] != 1
        else "the last alpha_bar is missing"
    )
    wrong = {
        "you multiplied up the betas; it is the (1 - beta) that are multiplied": torch.cat(
            [torch.ones(1), betas.cumprod(0)]
        ),
        "you took the square root; alpha_bar is the plain product": alpha_bar.sqrt(),
        "you listed the alphas; alpha_bar_t is the product of all of them up to t": torch.cat(
            [torch.ones(1), 1 - betas]
        ),
        "you added the betas up; the (1 - beta) are to be multiplied": torch.cat([torch.ones(1), 1 - betas.cumsum(0)]),
        "alpha_bar_0 should be 1: before any noise all of the image is there": torch.cat(
            [torch.zeros(1), alpha_bar[1:]]
        ),
    }
    expect(got, alpha_bar, "alpha_bar_t is the product of (1 - beta_1) ... (1 - beta_t), with 1 in front", wrong)


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
        expect(
            call(ex.add_noise, x0, t, eps, alpha_bar),
            right.add_noise(x0, t, eps, alpha_bar),
            "x_t is not what eq. 4 gives",
            wrong,
        )


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


def check_training_loss(ex, rng):
    T = integer(rng, 8, 12)
    alpha_bar = chain(rng, T)
    _, eps = batch(rng)
    pixels = torch.randint(256, eps.shape, generator=rng).to(torch.uint8)
    t = levels(rng, len(pixels), T)
    net = Network(rng)
    loss = call(ex.training_loss, net, pixels, t, eps, alpha_bar)
    assert len(net.told) == 1, f"the network should be asked once, not {len(net.told)} times"

    def x_t(x0: Tensor) -> Tensor:
        return right.add_noise(x0, t, eps, alpha_bar)

    wrong = {
        "your images are in [0, 1]; they should be in [-1, 1], centred as the noise is": x_t(pixels / 255),
        "the pixels are still 0 ... 255; they should become -1 ... 1": x_t(pixels.float()),
        "the network was shown the clean images": pixels / 127.5 - 1,
        "the network was shown the noise alone": eps,
    }
    expect(
        net.x[0], x_t(pixels / 127.5 - 1), "the network should see x_t, made by eq. 4 from images in [-1, 1]", wrong
    )
    told, wanted = net.told[0], (t - 1).tolist()
    assert told != t.tolist(), f"the network was told t = {told}; it counts from 0, so tell it t - 1"
    assert told == wanted, f"the network was told {told}, not t - 1 = {wanted}"

    answer, x0 = net(net.x[0], t - 1), pixels / 127.5 - 1
    error = answer - eps
    wrong = {
        "you added up the squared errors; take their mean, or the loss depends on the size of the batch": error.square().sum(),
        "you added up the squared errors of each image; take the mean over pixels too": error.square()
        .sum((1, 2, 3))
        .mean(),
        "you compared the network's answer with the image; it is asked for the noise": (answer - x0).square().mean(),
        "you compared the network's answer with the noisy image; it is asked for the noise": (answer - net.x[0])
        .square()
        .mean(),
        "you took the absolute difference; eq. 14 squares it": error.abs().mean(),
        "you did not square the differences, so that errors up and down cancel": error.mean(),
        "you took the root of the mean squared error; eq. 14 does not": error.square().mean().sqrt(),
    }
    expect(loss, error.square().mean(), "the loss is the mean of (eps - model(x_t, t - 1))^2", wrong)
    assert loss.requires_grad, (
        "no gradient flows from the loss to the network: is there a .item(), .detach() or torch.no_grad() on the way?"
    )


def check_reverse_step(ex, rng):
    T = integer(rng, 8, 12)
    alpha_bar = chain(rng, T)
    for t in (1, integer(rng, 2, T), T):
        x, eps = batch(rng)
        z = torch.randn(x.shape, generator=rng)
        now, before = alpha_bar[t], alpha_bar[t - 1]
        alpha, beta = now / before, 1 - now / before
        mean, sd = (
            right.reverse_step(x, t, eps, torch.zeros_like(x), alpha_bar),
            ((1 - before) / (1 - now) * beta).sqrt(),
        )
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
        over_now, root = beta / (1 - now).sqrt(), alpha.sqrt()
        wrong |= {
            "in the mean, the square root of 1 - alpha_bar_t is missing": (x - beta / (1 - now) * eps) / root + sd * z,
            "in the mean, eps has the factor sqrt(1 - alpha_bar_t): all the noise, not one step's": (
                x - (1 - now).sqrt() * eps
            )
            / root
            + sd * z,
            "the mean is divided by sqrt(alpha_bar_t); it should be sqrt(alpha_t), for one step": (x - over_now * eps)
            / now.sqrt()
            + sd * z,
            "the mean is not divided by sqrt(alpha_t)": mean * root + sd * z,
        }
        got = call(ex.reverse_step, x, t, eps, z, alpha_bar)
        if t == 1 and isinstance(got, Tensor):
            again = ex.reverse_step(x, t, eps, -z, alpha_bar)
            assert close(got, again), (
                "noise is added at the last step, which should end in the clean image: use eq. 7 with alpha_bar_0 = 1"
            )
        expect(got, mean + sd * z, f"x_(t-1) is not what eq. 11 and eq. 7 give at t = {t} of {T}", wrong)


def check_sample(ex, rng):
    T = integer(rng, 8, 12)
    alpha_bar, net = chain(rng, T), Network(rng)
    shape = (integer(rng, 2, 3), 1, 4, 5)
    some = sorted((1 + torch.randperm(T - 1, generator=rng)[:3]).tolist())
    for times in (list(range(1, T + 1)), [*some, T]):
        check_walk(ex.sample, net, shape, alpha_bar, times, seed=integer(rng, 0, 10**6))


def check_walk(sample, net, shape, alpha_bar, times, seed):
    net.told.clear()
    got = call(sample, net, shape, alpha_bar, list(times), torch.Generator().manual_seed(seed))
    told, wanted = [row[0] for row in net.told], [time - 1 for time in reversed(times)]
    assert told != wanted[::-1], "you walked from clean to noisy; sampling starts at the noisiest level"
    assert told != [time + 1 for time in wanted], (
        f"the network was told {told}; it counts from 0, so tell it the level less 1: {wanted}"
    )
    assert told == wanted, f"visiting the levels {times}, the network must be told {wanted}, but was told {told}"

    def walk(step, new_z: bool = True) -> Tensor:
        """Algorithm 2 with step(x, k, eps, z) as the body of its loop."""
        draw = torch.Generator().manual_seed(seed)
        x = x_T = torch.randn(shape, generator=draw)
        with torch.no_grad():
            for k in range(len(times), 0, -1):
                eps = net(x, torch.full((len(x),), times[k - 1] - 1))
                x = step(x, k, eps, torch.randn(shape, generator=draw) if new_z else x_T)
        return x

    short = alpha_bar[[0, *times]]
    wrong = {
        "no noise was added between the steps; draw a z for each": walk(
            lambda x, k, eps, z: right.reverse_step(x, k, eps, 0 * z, short)
        ),
        "the same z was used at every step; draw a new one each time": walk(
            lambda x, k, eps, z: right.reverse_step(x, k, eps, z, short), new_z=False
        ),
        "each step used the full chain's coefficients, which go back one level only and leave noise in the picture; "
        "a jump needs the alpha_bar of the shorter chain, alpha_bar[[0, *times]]": walk(
            lambda x, k, eps, z: right.reverse_step(x, times[k - 1], eps, z, alpha_bar)
        ),
    }
    expect(
        got,
        walk(lambda x, k, eps, z: right.reverse_step(x, k, eps, z, short)),
        "algorithm 2 makes other images of these random numbers: one draw for x, then one for each step",
        wrong,
        atol=1e-3,
    )


def check_training_step(ex, rng):
    width, decay, lr = integer(rng, 2, 4), 0.6 + 0.3 * float(torch.rand((), generator=rng)), 0.1
    net = nn.Linear(width, width)
    average = copy.deepcopy(net)
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
            }
            expect(
                mean.detach(),
                decay * m + (1 - decay) * new,
                "the average should become decay * average + (1 - decay) * weights",
                wrong,
            )


def check_time_embedding(ex, rng):
    dim = 2 * integer(rng, 3, 16)
    t = torch.randint(1000, (integer(rng, 2, 5),), generator=rng)
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


EXERCISES = [
    Exercise("alpha_bars", 1, check_alpha_bars),
    Exercise("add_noise", 2, check_add_noise),
    Exercise("guess_x0", 1, check_guess_x0),
    Exercise("training_loss", 3, check_training_loss),
    Exercise("reverse_step", 3, check_reverse_step),
    Exercise("sample", 4, check_sample),
    Exercise("training_step", 2, check_training_step),
    Exercise("time_embedding", 2, check_time_embedding),
]
