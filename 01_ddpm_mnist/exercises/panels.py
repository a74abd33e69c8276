"""What chapter 1's exercises look like when they are right: a panel for each, drawn by common.grade.show_exercises.

Each panel is a function of (ex, right, axis): the answers to show, the solutions, and where to draw. For sampling no
trained network is needed: the ideal one for the embedded digits, or for points in the plane, is a formula.
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from common.grade.checks import load
from common.viz import grid

public = load(
    Path(__file__).with_name("test_exercises.py"), "course_panels_public_tests"
)  # for the blobs and the goal

PIXELS = torch.from_numpy(load_digits().images / 16 * 255).to(torch.uint8)[:, None]  # (1797, 1, 8, 8)
DIGITS = PIXELS / 127.5 - 1
BETAS = torch.linspace(1e-4, 0.02, 1000)  # DDPM, section 4
ALPHA_BAR = torch.cat([torch.ones(1), (1 - BETAS).cumprod(0)])
TIMES = torch.tensor([1, 50, 150, 300, 500, 1000])


def by_heart(x: Tensor, t: Tensor) -> Tensor:
    """The noise in x if it was made of one of the digits:
    what is left without their mean, weighted by how likely each is.
    """
    a = ALPHA_BAR[t + 1].view(-1, 1, 1, 1)
    signal_to_noise = (a / (1 - a)).flatten()[:, None]  # (B, 1)
    distance = torch.cdist((x / a.sqrt()).flatten(1), DIGITS.flatten(1))  # (B, 1797)
    weight = (-signal_to_noise / 2 * distance**2).softmax(1)
    return (x - a.sqrt() * (weight @ DIGITS.flatten(1)).view(x.shape)) / (1 - a).sqrt()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def six_of(digit: int) -> Tensor:
    return DIGITS[digit].expand(6, -1, -1, -1)


def show(axis, images: Tensor, columns: int, title: str) -> None:
    axis.imshow(grid(images.clamp(-1, 1), columns, gap=1).convert("L"), cmap="gray", vmin=0, vmax=255)
    axis.axis("off")
    axis.set_title(title)


# -------------------------------------------------------------------------------------------------------- the panels


def alpha_bars(ex, right, axis):
    axis.plot(ex.alpha_bars(BETAS))
    axis.set(xlabel="t", ylabel="alpha_bar", title="falls from 1 to almost 0")


def add_noise(ex, right, axis):
    rows = [ex.add_noise(six_of(digit), TIMES, noise(6, 1, 8, 8), ALPHA_BAR) for digit in range(3)]
    show(axis, torch.cat(rows), 6, f"noisier and noisier: t = {', '.join(map(str, TIMES.tolist()))}")


def guess_x0(ex, right, axis):
    x = right.add_noise(six_of(0), TIMES, noise(6, 1, 8, 8), ALPHA_BAR)
    guess = ex.guess_x0(x, TIMES, by_heart(x, TIMES - 1), ALPHA_BAR)
    show(axis, torch.cat([x, guess]), 6, "x_t, and below it what is left without the noise")


def score_of(ex, right, axis):
    """Scores of the blobs' density, noised to t = 150."""
    blobs = public.Blobs(3, budget=10)
    axis.scatter(*blobs.points(1500, 0).T, s=2, color="0.75", linewidths=0)
    side = torch.linspace(-1.4, 1.4, 12)
    x = torch.cartesian_prod(side, side)  # (144, 2)
    t = torch.full((len(x),), 150)
    score = ex.score_of(blobs(x, t - 1)[..., None, None], t, ALPHA_BAR).view(-1, 2)
    axis.quiver(*x.T, *score.T, angles="xy", color="tab:blue", scale=90, width=0.004)
    axis.set(title="scores at t = 150 point to the blobs", aspect="equal", xticks=[], yticks=[])


def time_embedding(ex, right, axis):
    axis.imshow(ex.time_embedding(torch.arange(200), 64).T, aspect="auto", cmap="RdBu")
    axis.set(xlabel="t", ylabel="dimension", title="sines above, cosines below")


def add_class_embedding(ex, right, axis):
    """With two numbers for an embedding, the times lie on a circle, and a class moves the circle."""
    time = right.time_embedding(torch.arange(44) * 7, 2)
    table = torch.tensor([[0.0, 0], [2.5, 0.5], [1, 2.5]])
    for label in range(3):
        points = ex.add_class_embedding(time, torch.full((44,), label), table)
        axis.scatter(*points.T, s=8)
        axis.text(*table[label], f"class {label}", ha="center", va="center", color=f"C{label}")
    axis.set(
        xlabel="first number", ylabel="second number", title="a class moves all times by its vector", aspect="equal"
    )


def training_loss(ex, right, axis):
    layers = nn.Sequential(nn.Linear(65, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64))
    optimizer, curve = torch.optim.Adam(layers.parameters(), lr=2e-3), []
    for step in range(400):
        draw = torch.Generator().manual_seed(step)
        pixels, t = (
            PIXELS[torch.randint(len(PIXELS), (64,), generator=draw)],
            torch.randint(1, 1001, (64,), generator=draw),
        )

        def net(x, t):
            return layers(torch.cat([x.flatten(1), t[:, None] / 1000], 1)).view(x.shape)

        loss = ex.training_loss(net, pixels, t, noise(64, 1, 8, 8, seed=step), ALPHA_BAR)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    axis.plot(curve)
    axis.axhline(1, color="0.6", linestyle=":")
    axis.set(xlabel="step", ylabel="loss", ylim=(0, None), title="starts at 1, as if it predicted 0, and falls")


def training_step(ex, right, axis):
    net, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    optimizer, curve = torch.optim.SGD(net.parameters(), lr=0.2), []
    for step in range(300):  # the best weight is 0.5, but each step sees a noisy error
        error = (net.weight - 0.5 - noise(1, 1, seed=step)).square().sum()
        ex.training_step(net, average, optimizer, error, 0.97)
        curve.append((net.weight.item(), average.weight.item()))
    axis.plot(curve, label=["weight", "its average"])
    axis.axhline(0.5, color="0.6", linestyle=":")
    axis.set(xlabel="step", ylim=(-1.4, 2), title="the average varies less than the weight")
    axis.legend(frameon=False, loc="lower center", ncols=2)


def langevin_step(ex, right, axis):
    """From points spread evenly to samples of the blobs, slightly noised so that there is a score everywhere."""
    blobs, draw = public.Blobs(3, budget=10_000), torch.Generator().manual_seed(0)
    x = 3 * torch.rand(800, 2, generator=draw) - 1.5
    t = torch.full((800,), 60)
    for _ in range(400):
        score = right.score_of(blobs(x, t - 1)[..., None, None], t, ALPHA_BAR).view(-1, 2)
        x = ex.langevin_step(x, score, 0.003, torch.randn(x.shape, generator=draw))
    noisy = right.add_noise(
        blobs.points(1500, 0)[..., None, None], t[:1].expand(1500), noise(1500, 2, 1, 1), ALPHA_BAR
    )
    axis.scatter(*noisy.view(-1, 2).T, s=2, color="0.75", linewidths=0)
    axis.scatter(*x.T, s=2, color="tab:blue", linewidths=0)
    axis.set(title="blue: 400 steps from an even start; grey: the density", aspect="equal", xticks=[], yticks=[])


def reverse_step(ex, right, axis):
    x, frames = noise(3, 1, 8, 8), []
    for t in range(1000, 0, -1):
        if t in TIMES:
            frames.append(x)
        x = ex.reverse_step(x, t, by_heart(x, torch.full((3,), t - 1)), noise(3, 1, 8, 8, seed=t), ALPHA_BAR)
    show(axis, torch.stack([*frames, x], 1).flatten(0, 1), 7, "digits appear, and the last column is clean")


def sample(ex, right, axis):
    images = ex.sample(by_heart, (40, 1, 8, 8), ALPHA_BAR, list(range(20, 1001, 20)), torch.Generator().manual_seed(0))
    show(axis, images, 8, "40 digits in 50 steps, with no noise left")


def frechet_distance(ex, right, axis):
    """Two sets of real digits, 20 features each, have a distance that falls with their size."""
    pixels = DIGITS.flatten(1).double()
    _, _, directions = torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    features = (pixels @ directions[:20].T)[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))]
    sizes = [25, 50, 100, 200, 400, 800]
    axis.loglog(sizes, [float(ex.frechet_distance(features[:n], features[-n:])) for n in sizes], "o-")
    axis.set_xticks(sizes, map(str, sizes), minor=False)
    axis.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    axis.minorticks_off()
    axis.set(xlabel="digits in each set", ylabel="distance", title="real against real: larger sets, smaller distance")


def posterior_variance(ex, right, axis):
    alpha_bar = right.alpha_bars(torch.linspace(0.02, 0.5, 15))
    t = torch.arange(2, 16)
    beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
    axis.plot(t, (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta, color="0.6", label="eq. 7")
    axis.plot(t, beta, color="0.6", linestyle=":", label="beta")
    draw = torch.Generator().manual_seed(0)
    axis.plot(
        t, [float(ex.posterior_variance(0.7, int(k), alpha_bar, 20_000, draw)) for k in t], "o", label="measured"
    )
    axis.set(xlabel="t", ylabel="variance", title="measured and derived agree")
    axis.legend(frameon=False)


def tweedie_mean(ex, right, axis):
    """The data are the two numbers -1 and 1."""
    x = torch.linspace(-2.5, 2.5, 101)[:, None]
    for a in (0.9, 0.6, 0.2):

        def log_density(x, a=a):
            return torch.cat([-((x - m * a**0.5) ** 2) / (2 * (1 - a)) for m in (-1, 1)], 1).logsumexp(1)

        axis.plot(x, ex.tweedie_mean(log_density, x, a).detach(), label=f"alpha_bar = {a}")
    axis.set(xlabel="x_t", ylabel="mean of x_0", title="x_0 is -1 or 1; where x_t leaves it open, the mean is 0")
    axis.legend(frameon=False, loc="lower right")


def fix_last_step(ex, right, axis):
    times = torch.arange(50, 1001, 50)
    alpha_bar = ALPHA_BAR[torch.cat([torch.zeros(1).long(), times])]
    draw = torch.Generator().manual_seed(0)
    images = ex.fix_last_step(lambda x, t: by_heart(x, times[t] - 1), (24, 1, 8, 8), alpha_bar, draw)
    show(axis, images, 8, "digits in 20 steps, without grain")


def fix_range(ex, right, axis):
    pixels, t = PIXELS[:6], torch.full((6,), 60)
    denoised = ex.fix_range(lambda x, t: noise(6, 1, 8, 8), pixels, t, noise(6, 1, 8, 8), ALPHA_BAR)
    noisy = right.add_noise(DIGITS[:6], t, noise(6, 1, 8, 8), ALPHA_BAR)
    show(axis, torch.cat([DIGITS[:6], noisy, denoised / 127.5 - 1]), 6, "digits, noised, and denoised: black is black")


def fix_levels(ex, right, axis):
    """Which noise the network is given with each level, for images that are black."""
    net = public.ByLevel()
    ex.fix_levels(net, torch.zeros(32, 1, 40, 40), (2, 1, 40, 40), public.LEVELS, torch.Generator().manual_seed(0))
    axis.scatter(
        net.levels[0],
        [float(x.std()) for x in net.x[0]],
        s=60,
        label="in training",
        facecolors="none",
        edgecolors="tab:blue",
    )
    axis.plot(
        [row[0] for row in net.levels[1:]],
        [float(x.std()) for x in net.x[1:]],
        "x",
        color="tab:orange",
        label="in sampling",
    )
    axis.set(xlabel="level given to the network", ylabel="standard deviation of the noise", ylim=(-0.05, 1.05))
    axis.set(xticks=range(4), title="training and sampling agree at every level")
    axis.legend(frameon=False, loc="lower right")


def fix_training_log(ex, right, axis):
    """How many graphs are in memory at each step, beside the curve."""
    public.Traced.nodes = []

    class Counting(public.Scale):
        graphs = []

        def forward(self, x, t):
            prediction = super().forward(x, t)
            self.graphs.append(self.kept + 1)
            return prediction

    net = Counting(1, 1, bias=False)
    optimizer, batches = torch.optim.SGD(net.parameters(), lr=0.3), DIGITS[:1600].split(40)
    log = ex.fix_training_log(net, optimizer, batches, ALPHA_BAR, torch.Generator().manual_seed(0))
    axis.plot([float(torch.as_tensor(entry).detach()) for entry in log], label="smoothed loss")
    axis.plot([graphs / 40 for graphs in net.graphs], label="graphs in memory / 40")
    axis.set(xlabel="step", ylim=(0, 1.05), title="the number of graphs in memory stays the same")
    axis.legend(frameon=False)


def fifteen_evaluations(ex, right, axis):
    blobs, draw = public.Blobs(0), torch.Generator().manual_seed(2)
    x = ex.fifteen_evaluations(
        blobs, torch.randn(4000, 2, generator=torch.Generator().manual_seed(1)), public.CHAIN, draw
    )
    data = blobs.points(40_000, 3)
    axis.scatter(*data[:4000].T, s=2, color="0.75", linewidths=0)
    axis.scatter(*x[:1500].T, s=2, color="tab:blue", linewidths=0)
    error = public.sliced_distance(x, data)
    axis.set(
        title=f"{blobs.evaluations} evaluations, error {error:.3f} (goal: {public.GOAL})",
        aspect="equal",
        xticks=[],
        yticks=[],
    )
