"""What chapter 1's exercises look like when they are right: a panel for each, drawn by common.grade.show_exercises.

Each panel is a function of (ex, right, axis): the answers to show, the solutions, and where to draw. For sampling no
trained network is needed: an ideal one that knows the embedded digits by heart can compute which noise is in x_t.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from common.viz import grid

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
    show(axis, torch.cat([x, guess]), 6, "x_t, and below it the best guess of the zero in it")


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
    axis.set(
        xlabel="step", ylabel="loss", ylim=(0, None), title="starts at 1, as a network that sees no noise, and falls"
    )


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


def training_step(ex, right, axis):
    net, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    optimizer, curve = torch.optim.SGD(net.parameters(), lr=0.2), []
    for step in range(300):  # the best weight is 0.5, but each step sees a noisy error
        error = (net.weight - 0.5 - noise(1, 1, seed=step)).square().sum()
        ex.training_step(net, average, optimizer, error, 0.97)
        curve.append((net.weight.item(), average.weight.item()))
    axis.plot(curve, label=["weight", "its average"])
    axis.axhline(0.5, color="0.6", linestyle=":")
    axis.set(xlabel="step", title="the average is calm, and near the best weight")
    axis.legend(frameon=False)


def time_embedding(ex, right, axis):
    axis.imshow(ex.time_embedding(torch.arange(200), 64).T, aspect="auto", cmap="RdBu")
    axis.set(xlabel="t", ylabel="dimension", title="sines above, cosines below")
