"""What chapter 3's exercises look like when they are right: a panel for each, drawn by common.grade.show_exercises.

Each panel is a function of (ex, right, axis): the answers to show, the solutions, and where to draw. No network is
needed: the data are points in the plane, images of two pixels,
made by a mixture of Gaussians whose ideal denoiser is known exactly.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

BETAS = torch.linspace(1e-4, 0.02, 1000)  # DDPM, section 4
ALPHA_BAR = torch.cat([torch.ones(1), (1 - BETAS).cumprod(0)])
ANGLES = torch.arange(5) * (2 * math.pi / 5) + math.pi / 2
CENTRES = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)  # (5, 2) the data: five blobs on a circle
WIDTH = 0.25  # of each blob
GREY = "0.7"


def see(x: Tensor, level) -> tuple[Tensor, Tensor]:
    """The ideal denoiser: the expected x0 given x, and the noise that is left. (B, 1, 1, 2) -> twice (B, 1, 1, 2)"""
    alpha, sigma = level
    points, variance = x.view(-1, 1, 2), alpha**2 * WIDTH**2 + sigma**2
    away = points - alpha * CENTRES  # (B, 5, 2)
    weight = (-away.square().sum(2) / (2 * variance)).softmax(1)[:, :, None]  # (B, 5, 1) how likely each blob is
    x0 = (weight * (CENTRES + alpha * WIDTH**2 / variance * away)).sum(1).view(x.shape)
    return x0, (x - alpha * x0) / sigma


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def path(right, steps: int) -> list:
    """Levels from nearly pure noise to nearly clean, evenly in lambda; the last one is clean."""
    lams = [-3 + 6 * k / (steps - 1) for k in range(steps)]
    return [
        *(right.Level((1 + math.exp(-2 * lam)) ** -0.5, (1 + math.exp(2 * lam)) ** -0.5) for lam in lams),
        right.Level(1.0, 0.0),
    ]


def compare(axis, names: tuple[str, str], first_order, yours, rightly) -> None:
    """How far two solvers, functions of the number of steps, end from where a thousand right steps lead."""
    counts, exact = [10, 20, 40, 80], rightly(1000)

    def errors(solver) -> list[float]:
        return [(solver(n) - exact).flatten(1).norm(dim=1).mean().item() for n in counts]

    axis.loglog(counts, errors(first_order), "x--", color="tab:orange", label=names[0])
    axis.loglog(counts, errors(yours), "o-", color="tab:blue", label=names[1])
    axis.loglog(
        counts,
        [errors(rightly)[-1] * (counts[-1] / n) ** 2 for n in counts],
        color=GREY,
        linewidth=4,
        zorder=0,
        label="1 / steps^2",
    )
    axis.set(xlabel="steps", ylabel="distance from the exact point")
    axis.set_ylim(bottom=1e-5)
    axis.set_xticks(counts, counts)
    axis.minorticks_off()
    axis.legend(frameon=False, loc="lower left")


def draw(axis, x: Tensor, *style, **more) -> None:
    axis.plot(x[:, 0, 0, 0], x[:, 0, 0, 1], *style, **more)


def plane(axis) -> None:
    axis.set(aspect="equal", xticks=[], yticks=[])


# -------------------------------------------------------------------------------------------------------- the panels


def respace(ex, right, axis):
    times = list(range(50, 1001, 50))
    axis.plot(ALPHA_BAR, color=GREY, label="1000 steps")
    axis.plot(times, (1 - ex.respace(ALPHA_BAR, times)).cumprod(0), "o", color="tab:blue", label="20 steps")
    axis.set(xlabel="t", ylabel="alpha_bar", ylim=(-0.05, 1.05), title="20 steps add as much noise: dots on the curve")
    axis.legend(frameon=False)


def ddim_step(ex, right, axis):
    times = [*range(1000, 0, -40), 0]
    for place, eta in enumerate((0.0, 0.7)):
        x = noise(3000, 1, 1, 2)
        for t, t_next in pairwise(times):
            _, eps = see(x, (ALPHA_BAR[t].sqrt(), (1 - ALPHA_BAR[t]).sqrt()))
            x = ex.ddim_step(x, eps, t, t_next, eta, noise(*x.shape, seed=t), ALPHA_BAR)
        axis.plot(x[:, 0, 0, 0] + 3.2 * place, x[:, 0, 0, 1], ",", color="tab:blue")
        for centre in CENTRES.tolist():
            circle(axis, centre[0] + 3.2 * place, centre[1])
        axis.text(3.2 * place, -1.7, f"eta = {eta:g}", ha="center", va="center")
    plane(axis)
    axis.set(xlim=(-1.8, 5), ylim=(-1.9, 1.8), title="with and without chance, the circles are full")


def circle(axis, x: float, y: float) -> None:
    """In which 95 of 100 points of a blob lie."""
    turn = torch.linspace(0, 2 * math.pi, 60)
    axis.plot(x + 2.45 * WIDTH * turn.cos(), y + 2.45 * WIDTH * turn.sin(), color="tab:orange", linewidth=1)


def v_prediction(ex, right, axis):
    angle = torch.linspace(0, math.pi / 2, 7)
    alpha, sigma = angle.cos(), angle.sin()
    x0, eps = torch.zeros(7, 1, 1, 2), torch.zeros(7, 1, 1, 2)
    x0[..., 0], eps[..., 1] = 1, 1
    x, v = ex.v_prediction(x0, eps, alpha, sigma, False)
    x0, eps = ex.v_prediction(x, v, alpha, sigma, True)
    arc = torch.linspace(0, math.pi / 2, 50)
    axis.plot(arc.cos(), arc.sin(), color=GREY)
    axis.quiver(*x[:, 0, 0].T, *v[:, 0, 0].T, angles="xy", scale_units="xy", scale=2.5, color="tab:blue", width=0.008)
    draw(axis, x0, "o", color="tab:orange", markersize=9)
    draw(axis, eps, "s", color="tab:green", markersize=9)
    axis.text(1.08, 0, "x0", va="center")
    axis.text(0, 0.85, "eps", ha="center", va="center")
    plane(axis)
    axis.set(xlim=(-0.6, 1.4), ylim=(-0.4, 1.4), title="arrows along the arc; back: one dot, one square")


def heun_step(ex, right, axis):
    def walk(step):
        def to_the_end(steps: int) -> Tensor:
            x = noise(300, 1, 1, 2)
            for now, then in pairwise(path(right, steps)):
                x = step(see, x, now, then)
            return x

        return to_the_end

    def euler(denoise, x, now, then):
        return right.heun_step(lambda *_: denoise(x, now), x, now, then)  # the second look sees what the first one saw

    compare(axis, ("Euler", "Heun"), walk(euler), walk(ex.heun_step), walk(right.heun_step))
    axis.set(title="twice the steps, a quarter of the error")


def snr_weight(ex, right, axis):
    snr = torch.logspace(-2, 3, 60)
    alpha, sigma = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
    # an error of x0, in the units of each
    for name, factor, style in (("x0", 1, "-"), ("eps", snr, "--"), ("v", snr + 1, ":")):
        axis.loglog(
            snr, factor * ex.snr_weight(alpha, sigma, 5.0, name), style, linewidth=6 - 2 * len(style), label=name
        )
    axis.axhline(5, color="0.3", linewidth=0.5)
    axis.set(xlabel="SNR", ylabel="weight of an error in x0", title="one curve for all three, flat from gamma = 5")
    axis.legend(frameon=False)


def slerp(ex, right, axis):
    start, turn = torch.tensor([0.2, 1.5, 3.0, 5.0]), torch.tensor([2.6, 1.6, 0.8, 0.0])
    radius = torch.tensor([1.0, 2.0, 3.0, 4.0])
    a, b = (
        torch.stack([radius * angle.cos(), radius * angle.sin()], 1).view(4, 1, 1, 2)
        for angle in (start, start + turn)
    )
    whole = torch.linspace(0, 2 * math.pi, 200)
    for r in radius:
        axis.plot(r * whole.cos(), r * whole.sin(), color=GREY, linewidth=0.7)
    for w in torch.linspace(0, 1, 9).tolist():
        draw(axis, ex.slerp(a, b, w), "o", color=(1 - w, 0.4, w), markersize=4)
    draw(axis, a, "o", color=(1, 0.4, 0), markersize=9, fillstyle="none")
    draw(axis, b, "s", color=(0, 0.4, 1), markersize=9, fillstyle="none")
    plane(axis)
    axis.set(title="four pairs, each on its own circle, red to blue")


def zero_terminal_snr(ex, right, axis):
    # a few coarse steps, to be seen
    alpha_bar = torch.cat([torch.ones(1), (1 - torch.linspace(0.2, 0.1, 12)).cumprod(0)])
    axis.plot(alpha_bar.sqrt(), "o-", color=GREY, label="before")
    axis.plot(ex.zero_terminal_snr(alpha_bar).sqrt(), ".-", color="tab:blue", label="after")
    axis.plot([0, 1, 12], [1, alpha_bar[1].sqrt(), 0], "o", color="tab:orange", fillstyle="none", markersize=11)
    axis.set(xlabel="t", ylabel="sqrt(alpha_bar)", title="0 and 1 stay where they were, and the end is 0")
    axis.legend(frameon=False)


def dpmpp_2m_step(ex, right, axis):
    def walk(step):
        def to_the_end(steps: int) -> Tensor:
            x, x0_old, before = noise(300, 1, 1, 2), None, None
            for now, then in pairwise(path(right, steps)):
                x0, _ = see(x, now)
                x = step(x, x0, now, then, x0_old, before)
                x0_old, before = x0, now
            return x

        return to_the_end

    def ddim(x, x0, now, then, *history):
        return right.dpmpp_2m_step(x, x0, now, then, None, None)

    compare(axis, ("DDIM", "2M"), walk(ddim), walk(ex.dpmpp_2m_step), walk(right.dpmpp_2m_step))
    axis.set(title="as steep as Heun's line, with half the looks")
