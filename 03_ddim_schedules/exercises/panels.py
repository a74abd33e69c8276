"""What chapter 3's exercises look like when they are right: a panel for each, drawn by common.grade.show_exercises.

Each panel is a function of (ex, right, axis): the answers to show, the solutions, and where to draw. No network is
needed: the data are points in the plane, images of two pixels,
made by a mixture of Gaussians whose ideal denoiser is known exactly.
"""

import math
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from common.grade.checks import load

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")

BETAS = torch.linspace(1e-4, 0.02, 1000)  # DDPM, section 4
ALPHA_BAR = torch.cat([torch.ones(1), (1 - BETAS).cumprod(0)])
ANGLES = torch.arange(5) * (2 * math.pi / 5) + math.pi / 2
CENTRES = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)  # (5, 2) the data: five blobs on a circle
WIDTH = 0.25  # of each blob
GREY = "0.7"


def ideal(x: Tensor, level) -> tuple[Tensor, Tensor]:
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
    """How far two solvers, functions of the number of steps, end from where 300 right steps lead."""
    counts, exact = [10, 20, 40, 80], rightly(300)

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
        label="1 / steps$^2$",
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
    axis.set(xlabel="t", ylabel="alpha_bar", ylim=(-0.05, 1.05), title="20 steps add as much noise as 1000")
    axis.legend(frameon=False)


def ddim_step(ex, right, axis):
    times = [*range(1000, 0, -40), 0]
    for place, eta in enumerate((0.0, 0.7)):
        x = noise(3000, 1, 1, 2)
        for t, t_next in pairwise(times):
            _, eps = ideal(x, (ALPHA_BAR[t].sqrt(), (1 - ALPHA_BAR[t]).sqrt()))
            x = ex.ddim_step(x, eps, t, t_next, eta, noise(*x.shape, seed=t), ALPHA_BAR)
        axis.plot(x[:, 0, 0, 0] + 3.2 * place, x[:, 0, 0, 1], ",", color="tab:blue")
        for centre in CENTRES.tolist():
            circle(axis, centre[0] + 3.2 * place, centre[1])
        axis.text(3.2 * place, -1.7, f"eta = {eta:g}", ha="center", va="center")
    plane(axis)
    axis.set(xlim=(-1.8, 5), ylim=(-1.9, 1.8), title="both fill the circles of the data")


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
                x = step(ideal, x, now, then)
            return x

        return to_the_end

    def euler(denoise, x, now, then):
        return right.heun_step(lambda *_: denoise(x, now), x, now, then)  # the second evaluation repeats the first one

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
    axis.set(xlabel="t", ylabel="sqrt(alpha_bar)", title="entries 0 and 1 stay, and the end is 0")
    axis.legend(frameon=False)


def dpmpp_2m_step(ex, right, axis):
    def walk(step):
        def to_the_end(steps: int) -> Tensor:
            x, x0_old, before = noise(300, 1, 1, 2), None, None
            for now, then in pairwise(path(right, steps)):
                x0, _ = ideal(x, now)
                x = step(x, x0, now, then, x0_old, before)
                x0_old, before = x0, now
            return x

        return to_the_end

    def ddim(x, x0, now, then, *history):
        return right.dpmpp_2m_step(x, x0, now, then, None, None)

    compare(axis, ("DDIM", "2M"), walk(ddim), walk(ex.dpmpp_2m_step), walk(right.dpmpp_2m_step))
    axis.set(title="as steep as Heun's line, half the evaluations")


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """The exact velocity of the flow to the blobs. (B, 1, 1, 2), (B,) all alike -> (B, 1, 1, 2)"""
    now = min(max(float(t[0]), 1e-3), 1 - 1e-6)
    x0, eps = ideal(x, (1 - now, now))
    return eps - x0


def data(n: int, seed: int = 1) -> Tensor:
    """Points of the data set. (n, 1, 1, 2)"""
    rng = torch.Generator().manual_seed(seed)
    blob = torch.randint(0, len(CENTRES), (n,), generator=rng)
    return CENTRES[blob].view(-1, 1, 1, 2) + WIDTH * torch.randn(n, 1, 1, 2, generator=rng)


def flow_matching_loss(ex, right, axis):
    x0, eps, times = data(4000), noise(4000, 1, 1, 2), torch.linspace(0.05, 0.95, 19)
    for label, model, style in (
        ("the exact velocity", velocity, "o-"),
        ("always 0", lambda x, t: 0 * x, "s--"),
        ("always the mean, x / t", lambda x, t: x / t.view(-1, 1, 1, 1), "^:"),
    ):
        losses = [ex.flow_matching_loss(model, x0, eps, torch.full((4000,), t)).mean() for t in times.tolist()]
        axis.plot(times, losses, style, markersize=4, label=label)
    axis.set(xlabel="t", ylabel="loss", ylim=(0, 3.2), title="no network gets below the exact velocity")
    axis.legend(frameon=False, fontsize=8)


def reflow_pairs(ex, right, axis):
    eps = noise(16, 1, 1, 2).clamp(-1.9, 1.9)
    for place, steps in enumerate((1, 50)):
        x0, start = ex.reflow_pairs(velocity, eps, steps)
        shift = torch.tensor([4.2 * place, 0.0])
        for a, b in zip(start.view(-1, 2) + shift, x0.view(-1, 2) + shift, strict=True):
            axis.plot(*torch.stack([a, b]).T, color=GREY, linewidth=0.8)
        draw(axis, start + shift, "o", color="tab:green", markersize=3)
        draw(axis, x0 + shift, "o", color="tab:blue", markersize=3)
        for centre in CENTRES.tolist():
            circle(axis, centre[0] + 4.2 * place, centre[1])
        axis.text(4.2 * place, -2.3, f"steps: {steps}", ha="center", va="center")
    plane(axis)
    axis.set(xlim=(-2.1, 6.3), ylim=(-2.6, 2.1), title="noise (green) and its image (blue)")


def marginal_velocity(ex, right, axis):
    points = torch.tensor([[-1.0, -0.5], [1.0, -0.5], [0.0, 1.0]]).view(3, 1, 1, 2)
    across = torch.linspace(-1.8, 1.8, 13)
    x = torch.cartesian_prod(across, across).view(-1, 1, 1, 2)
    v = ex.marginal_velocity(x, torch.full((len(x),), 0.5), points)
    length = v.flatten(1).norm(dim=1)
    arrows = -v.view(-1, 2) / length[:, None].clamp(min=0.3)
    axis.quiver(
        *x.view(-1, 2).T, *arrows.T, length, cmap="viridis_r", angles="xy", scale_units="xy", scale=4, width=0.007
    )
    draw(axis, points, "*", color="tab:orange", markersize=13)
    draw(axis, points / 2, "o", color="tab:orange", fillstyle="none", markersize=9)
    plane(axis)
    axis.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), title="sampling at t = 0.5: from noise to the stars")


def matching_losses(ex, right, axis):
    points = torch.tensor([[-1.0, -0.5], [1.0, -0.5], [0.0, 1.0]]).view(3, 1, 1, 2)
    rng = torch.Generator().manual_seed(0)
    x0 = points[torch.randint(0, 3, (4000,), generator=rng)]
    eps, t = torch.randn(x0.shape, generator=rng), 0.1 + 0.9 * torch.rand(4000, generator=rng)
    scales = torch.linspace(-0.5, 1.5, 9)
    losses = torch.tensor(
        [
            [float(loss) for loss in ex.matching_losses(lambda x, t, a=a: a * x, x0, eps, t, points)]
            for a in scales.tolist()
        ]
    )
    for label, line, color in zip(("conditional", "marginal"), losses.T, ("tab:blue", "tab:orange"), strict=True):
        axis.plot(scales, line, "o-", color=color, label=label)
    axis.plot(scales, losses[:, 0] - losses[:, 1], "x--", color=GREY, label="difference")
    axis.set(
        xlabel="a, in velocity(x, t) = a x", ylabel="loss", ylim=(0, 3.2), title="the difference hardly depends on a"
    )
    axis.legend(frameon=False, loc="upper right")


def fix_respaced_ddpm(ex, right, axis):
    def predict_eps(x: Tensor, t: int) -> Tensor:
        return ideal(x, (ALPHA_BAR[t].sqrt(), (1 - ALPHA_BAR[t]).sqrt()))[1]

    for place, steps in enumerate((20, 100)):
        times = [round(1000 * (1 - k / steps)) for k in range(steps + 1)]
        x = ex.fix_respaced_ddpm(
            predict_eps, noise(3000, 1, 1, 2), times, ALPHA_BAR, lambda k, x: noise(*x.shape, seed=k + 1)
        )
        shift = torch.tensor([3.2 * place, 0.0])
        draw(axis, x + shift, ",", color="tab:blue")
        for centre in CENTRES.tolist():
            circle(axis, centre[0] + 3.2 * place, centre[1])
        axis.text(3.2 * place, -1.7, f"steps: {steps}", ha="center", va="center")
    plane(axis)
    axis.set(xlim=(-1.8, 5), ylim=(-1.9, 1.8), title="the circles are full with 20 steps too")


def fix_heun_sampling(ex, right, axis):
    def sampled(sampler):
        return lambda steps: sampler(ideal, noise(300, 1, 1, 2), path(right, steps))

    def euler(denoise, x, levels):
        for now, then in pairwise(levels):
            x0, eps = denoise(x, now)
            x = x + x0 * (then.alpha - now.alpha) + eps * (then.sigma - now.sigma)
        return x

    compare(axis, ("Euler", "Heun"), sampled(euler), sampled(ex.fix_heun_sampling), sampled(right.fix_heun_sampling))
    axis.set(title="as steep as the grey line")


def fix_flow_sampling(ex, right, axis):
    for place, steps in enumerate((5, 50)):
        x = ex.fix_flow_sampling(velocity, noise(3000, 1, 1, 2), steps)
        draw(axis, x + torch.tensor([3.2 * place, 0.0]), ",", color="tab:blue")
        for centre in CENTRES.tolist():
            circle(axis, centre[0] + 3.2 * place, centre[1])
        axis.text(3.2 * place, -1.7, f"steps: {steps}", ha="center", va="center")
    plane(axis)
    axis.set(xlim=(-1.8, 5), ylim=(-1.9, 1.8), title="more steps fill the circles better")


def fix_consistency_loss(ex, right, axis):
    """Data N(0, 1): f(x, sigma) = x / (1 + sigma^2)^(a / 2) is exact at a = 1. Gradient descent on a."""

    def trained(loss) -> list[float]:
        a, rng, course = torch.tensor(0.5, requires_grad=True), torch.Generator().manual_seed(0), []
        levels = torch.linspace(0, 2, 31)

        def f(x: Tensor, sigma: Tensor) -> Tensor:
            return x * (1 + sigma.view(-1, 1, 1, 1) ** 2) ** (-a / 2)

        for _ in range(120):
            k = torch.randint(0, 30, (512,), generator=rng)
            x0, eps = torch.randn(2, 512, 1, 1, 1, generator=rng)
            value = loss(f, x0, eps, levels[k + 1], levels[k])
            (slope,) = torch.autograd.grad(value, a)
            with torch.no_grad():
                a -= 12 * slope
            course.append(a.item())
        return course

    def leaking(f, x0, eps, now, then):
        return (f(x0 + now.view(-1, 1, 1, 1) * eps, now) - f(x0 + then.view(-1, 1, 1, 1) * eps, then)).square().mean()

    axis.axhline(1, color="tab:orange", label="exact")
    axis.plot(trained(leaking), "--", color=GREY, label="the target moves too")
    axis.plot(trained(ex.fix_consistency_loss), color="tab:blue", label="yours")
    axis.set(xlabel="training step", ylabel="a", title="the weight settles at the exact value")
    axis.legend(frameon=False, loc="lower right")


def ten_evaluations(ex, right, axis):
    centres = public.blobs()
    x = public.SIGMA_MAX * noise(400, 1, 1, 2)
    exact = public.exact_points(public.IdealDenoiser(centres), x)
    denoise = public.IdealDenoiser(centres)
    got = ex.ten_evaluations(denoise, x, public.SIGMA_MAX)
    for a, b in zip(exact.view(-1, 2), got.view(-1, 2), strict=True):
        axis.plot(*torch.stack([a, b]).T, color="tab:red", linewidth=0.8)
    draw(axis, exact, "o", color=GREY, markersize=4)
    draw(axis, got, ".", color="tab:blue", markersize=3)
    plane(axis)
    error = (got - exact).flatten(1).norm(dim=1).mean()
    axis.set(title=f"{denoise.evaluations} evaluations: mean error {error:.3f} (goal {public.ERROR:g})")
