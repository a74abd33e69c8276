"""What chapter 5's exercises look like when they are right: a panel for each, drawn by common.grade.show_exercises.

Each panel is a function of (ex, right, axis): the answers to show, the solutions, and where to draw. No network is
needed: what is trained here is a matrix, or a single number, and pictures are painted by formulas.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from common.grade.checks import load

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")

BLUE, ORANGE, GREY = "tab:blue", "tab:orange", "0.7"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def grid(side: int) -> tuple[Tensor, Tensor]:
    """y and x from -1 to 1, both (side, side)"""
    return torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")


def tile(
    axis,
    image: Tensor,
    column: int,
    row: int,
    label: str,
    low: float,
    high: float,
    cmap: str = "viridis",
    side: int = 64,
) -> None:
    """One of several small pictures side by side; the label below it."""
    left, top = (side + 6) * column, -(side + 16) * row
    axis.imshow(
        image, cmap=cmap, vmin=low, vmax=high, extent=(left, left + side, top - side, top), interpolation="nearest"
    )
    axis.text(left + side / 2, top - side - 2, label, ha="center", va="top", fontsize=8)


def around(axis, columns: int, rows: int, title: str, side: int = 64) -> None:
    """Limits that hold all tiles."""
    axis.set(xlim=(-2, (side + 6) * columns - 4), ylim=(-(side + 16) * rows, 2), aspect="equal")
    axis.axis("off")
    axis.set_title(title)


# -------------------------------------------------------------------------------------------------------- the panels


def new_adapter(ex, right, axis):
    """Learn a change of rank 2 to a matrix, with adapters of several ranks."""
    W, change = torch.zeros(24, 32), noise(24, 2) @ noise(2, 32, seed=1) / 5
    for rank, color in ((1, GREY), (2, BLUE), (4, ORANGE)):
        A, B = ex.new_adapter(W, rank, torch.Generator().manual_seed(0))
        optimizer, errors = torch.optim.Adam([A, B], 0.05), []
        for _ in range(120):
            error = (B @ A - change).square().mean()
            errors.append(float(error.detach() / change.square().mean()))
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        axis.semilogy(errors, color=color, label=f"rank {rank}")
    axis.plot(0, 1, "*", color="black", markersize=11, zorder=3)
    axis.set(
        xlabel="step", ylabel="error, relative", ylim=(1e-5, 3), title="training starts at the unchanged model (star)"
    )
    axis.legend(frameon=False, loc="lower left")


def merge_adapters(ex, right, axis):
    """Two adapters, each of rank 1, are two bars of light."""
    place = torch.linspace(-1, 1, 32)
    bar, wide = torch.exp(-((place + 0.3) ** 2) / 0.03), torch.exp(-(place**2) / 0.5)
    flat, upright = (wide[None], bar[:, None], 1.0), (bar[None], wide[:, None], 1.0)
    for row, a in enumerate((0.0, 0.5, 1.0)):
        for column, b in enumerate((0.0, 0.5, 1.0)):
            picture = ex.merge_adapters(torch.zeros(32, 32), [flat, upright], [a, b])
            tile(axis, picture, column, row, f"{a:g} and {b:g}", 0, 1.6)
    around(axis, 3, 3, "scales of a horizontal and a vertical LoRA")


def accumulate(ex, right, axis):
    """Gradients in a plane: however the same images are cut into parts, the same one."""
    images, weights = noise(30, 2), torch.tensor([0.4, -0.3], requires_grad=True)
    images[20:] = images[20:] / 2 + torch.tensor([2.0, 1.0])

    def error(weights: Tensor, part: Tensor) -> Tensor:
        return (torch.cos(part @ weights) - 0.3).square()

    for mark, sizes in (("o", [10, 10, 10]), ("s", [14, 14, 2]), ("D", [20, 9, 1]), ("^", [29, 1])):
        parts = list(images.split(sizes))
        got = ex.accumulate(error, weights, parts).detach().clone()
        wrong = torch.stack([torch.autograd.grad(error(weights, part).mean(), weights)[0] for part in parts]).mean(0)
        axis.plot(*got, mark, color=BLUE, fillstyle="none", markersize=13)
        axis.plot(*wrong, mark, color=GREY, markersize=6, label="parts of " + ", ".join(map(str, sizes)))
    axis.plot(
        *torch.autograd.grad(error(weights, images).mean(), weights)[0], "*", color="black", markersize=9, zorder=3
    )
    axis.set(xticks=[], yticks=[], title="gradients on the star; grey: means of means")
    axis.margins(0.35)
    axis.legend(frameon=False, fontsize=8, loc="best")


def averaged(ex, right, axis):
    """A weight that is trained, its average, and what the network held while pictures were drawn."""
    weight, average, path, averages, seen = torch.zeros(1, requires_grad=True), torch.zeros(1), [], [], []
    for k in range(90):
        with torch.no_grad():
            weight.add_(0.12 * (1 - weight) + 0.16 * noise(1, seed=k))
        average = average + 0.08 * (weight.detach() - average)
        if k % 15 == 14:
            seen.append((k, ex.averaged([weight], [average], weight.item)))
        path.append(weight.item())
        averages.append(average.item())
    axis.plot(path, color=BLUE, linewidth=1, label="the weight")
    axis.plot(averages, color=ORANGE, label="its average")
    axis.plot(*zip(*seen, strict=True), "o", color="black", fillstyle="none", markersize=8, label="held while drawing")
    axis.set(xlabel="step", ylim=(-0.8, 2), title="circles on the average, and training goes on")
    axis.legend(frameon=False, loc="lower right")


def prior_loss(ex, right, axis):
    """One number is learned: 1 is right for the subject and 0 for its class."""
    guesses = torch.linspace(-0.2, 1.2, 1401)
    priors = torch.linspace(0, 4, 21)
    for mark, subject, others in (("o", 4, 4), ("x", 4, 64), ("+", 40, 2)):
        kind = torch.tensor([False] * subject + [True] * others)
        best = []
        for prior in priors.tolist():
            losses = torch.stack(
                [ex.prior_loss(torch.where(kind, g**2, (g - 1) ** 2), kind, prior) for g in guesses[::10]]
            )
            best.append(float(guesses[::10][losses.argmin()]))
        axis.plot(
            priors, best, mark, color=BLUE, fillstyle="none", label=f"{subject} of the subject, {others} class images"
        )
    axis.plot(priors, 1 / (1 + priors), color=ORANGE, zorder=0)
    axis.set(xlabel="prior", ylabel="number that is learned", title="independent of the numbers of images")
    axis.legend(frameon=False, fontsize=8)


def weigh_word(ex, right, axis):
    """Vectors in the plane: the word's and another's, as the weight goes from 0 to 2."""
    z, empty = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[0.5, 0.0], [0.2, 0.4]])
    hidden, word = torch.tensor([[1.4, 0.7], [2.4, 3.4]]), torch.tensor([True, False])
    weights = torch.linspace(0, 2, 41)
    got = torch.stack([ex.weigh_word(z, empty, hidden, word, w) for w in weights.tolist()])  # (41, 2, 2)
    for k, (color, name) in enumerate(((BLUE, "the word"), (ORANGE, "another word"))):
        axis.plot(got[:, k, 0], got[:, k, 1], color=color, label=name)
        axis.plot(got[::10, k, 0], got[::10, k, 1], "o", color=color)
        axis.plot(*z[k], "*", color="black", markersize=10, zorder=3)
    for w, point in zip(weights[::10].tolist(), got[::10, 0], strict=True):
        axis.annotate(f"{w:g}", point.tolist(), xytext=(6, -9), textcoords="offset points", fontsize=8)
    axis.plot(*empty[0], "s", color=GREY, label="the empty prompt's vector")
    axis.plot(*hidden[1], "D", color=GREY, label="without the word")
    axis.set(xticks=[], yticks=[], ylim=(-2, 4), title="at weight 1 the embeddings are at the stars")
    axis.margins(x=0.1)
    axis.legend(frameon=False, fontsize=8, loc="lower right")


def controlled(ex, right, axis):
    """What the U-Net sees is a blob, what the ControlNet sees a ring."""
    y, x = grid(64)
    blob, ring = torch.exp(-(x**2 + y**2) / 0.4), torch.exp(-(((x**2 + y**2).sqrt() - 0.6) ** 2) / 0.006)
    for row, kernel in enumerate((0.0, 1.0)):
        for column, scale in enumerate((0.0, 0.5, 1.0)):
            (picture,) = ex.controlled(
                [blob[None, None]], [ring[None, None]], [torch.full((1, 1, 1, 1), kernel)], [torch.zeros(1)], scale
            )
            label = f"trained, {scale:g}" if kernel else f"untrained, {scale:g}"
            tile(axis, picture[0, 0], column, row, label, 0, 1.7)
    around(axis, 3, 2, "the ring comes with training, and with the scale")


def inpaint(ex, right, axis):
    """A model that knows only stripes, a picture with a sun, and a hole in it that leaves a scratch behind."""
    y, x = grid(32)
    stripes, picture = (
        torch.sign(torch.sin(9 * (x + y))) * 0.9,
        1.6 * torch.exp(-((x - 0.3) ** 2 + (y + 0.3) ** 2) / 0.2) - 0.8,
    )
    fine_y, fine_x = grid(128)
    mask = ((fine_x + 0.35) ** 2 + (fine_y - 0.35) ** 2 < 0.16).float()
    mask[:, 113] = 1
    angle = torch.linspace(math.pi / 2, 0, 9)
    alpha, sigma = angle.cos(), angle.sin()
    alpha[0], sigma[-1] = 0, 0
    seen = []

    def step(x: Tensor, k: int) -> Tensor:
        """DDIM with a denoiser that sees stripes everywhere."""
        seen.append(x[0, 0])
        eps = (x - alpha[k] * stripes) / sigma[k]
        return alpha[k + 1] * stripes + sigma[k + 1] * eps

    got = ex.inpaint(
        step, noise(1, 1, 32, 32), picture[None, None], noise(1, 1, 32, 32, seed=1), mask[None, None], 4, alpha, sigma
    )
    frames = [(seen[k], f"level {k}") for k in (0, 3, 5, 6)] + [(got[0, 0], "level 8"), (picture, "the image")]
    for place, (frame, label) in enumerate(frames):
        tile(axis, frame, place % 3, place // 3, label, -1.5, 1.5, "RdBu_r")
    around(axis, 3, 2, "stripes in the hole and in the scratch only")


def img2img_start(ex, right, axis):
    """How noisy a picture is with which img2img begins, and how many of 50 steps remain."""
    y, x = grid(64)
    z = (1.6 * torch.exp(-((x - 0.2) ** 2 + (y + 0.2) ** 2) / 0.2) - 0.8)[None, None]
    alpha_bar = torch.linspace(1, 0, 1000).clamp(0.001, 0.999)
    for column, strength in enumerate((0.0, 0.29, 0.58, 1.0)):
        noisy, rest = ex.img2img_start(z, noise(1, 1, 64, 64), list(range(980, -1, -20)), alpha_bar, strength)
        tile(axis, noisy[0, 0], column % 2, column // 2, f"s = {strength:g}: {len(rest)} of 50", -1.5, 1.5, "RdBu_r")
    around(axis, 2, 2, "strength: noise at the start, and steps")


def from_kohya(ex, right, axis):
    """A LoRA through the file: what is read against what was written."""
    layers = [f"down_blocks.{k}.attn_1.to_q" for k in range(5)]
    adapters = {layer: (noise(2, 6, seed=k), noise(6, 2, seed=k + 9), 1.0 + k) for k, layer in enumerate(layers)}
    file = {}
    for layer, (A, B, alpha) in adapters.items():
        name = "lora_unet_" + layer.replace(".", "_")
        file |= {f"{name}.lora_up.weight": B, f"{name}.lora_down.weight": A, f"{name}.alpha": torch.tensor(alpha)}
    got = ex.from_kohya(file, layers)
    for layer, (A, B, alpha) in adapters.items():
        mine = got[layer]
        axis.plot(
            (alpha / 2 * B @ A).flatten(), (mine[2] / len(mine[0]) * mine[1] @ mine[0]).flatten(), ".", markersize=3
        )
    axis.axline((0, 0), slope=1, color=GREY, zorder=0)
    axis.set(xlabel="written", ylabel="read", title="changes of five layers on the diagonal")


def first_update(ex, right, axis):
    """Size of the first step against the rank, for two choices of alpha."""
    ranks, G = (1, 2, 4, 8, 16, 32), noise(40, 64)
    for name, alpha_of, colour in (("alpha = 8", lambda r: 8.0, ORANGE), ("alpha = r", float, BLUE)):
        sizes = [ex.first_update(G, noise(r, 64, seed=1) / r, alpha_of(r), 0.01).norm() for r in ranks]
        axis.loglog(ranks, sizes, "o-", color=colour, label=name)
    axis.set(xlabel="rank", ylabel="size of the first step", xticks=ranks, xticklabels=ranks)
    axis.minorticks_off()
    axis.set_title("A has the standard deviation 1/r")
    axis.legend(frameon=False)


def merged_std(ex, right, axis):
    """Entries of a sum of random LoRAs, and the bell with the derived width."""
    line = torch.linspace(-4, 4, 200)
    for K, colour, label in ((1, BLUE, "1 LoRA"), (4, ORANGE, "4 LoRAs")):
        total = sum(noise(300, 16, seed=k) @ noise(16, 300, seed=k + 9) / 16 for k in range(K))
        axis.hist(total.flatten(), bins=100, range=(-4, 4), density=True, color=colour, alpha=0.35)
        std = ex.merged_std([16] * K, [1.0] * K, [(1.0, 1.0)] * K, [1.0] * K)
        bell = torch.exp(-((line / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
        axis.plot(line, bell, color=colour, label=label)
    axis.set(xlabel="an entry of the change", yticks=[], xlim=(-2, 2), title="the derived curves on the bars")
    axis.legend(frameon=False)


def ema_half_life(ex, right, axis):
    """The share of the initial value, and where it is one half."""
    steps = torch.arange(0, 201)
    for decay, colour in ((0.9, BLUE), (0.97, ORANGE), (0.99, "tab:green")):
        axis.plot(steps, decay**steps, color=colour, label=f"decay {decay:g}")
        axis.plot(ex.ema_half_life(decay), 0.5, "o", color=colour, fillstyle="none", markersize=9)
    axis.axhline(0.5, color=GREY, zorder=0, linewidth=0.8)
    axis.set(xlabel="steps", ylabel="share of the initial value", title="circles where one half is left")
    axis.legend(frameon=False)


def fix_training_loop(ex, right, axis):
    """The same data in larger and smaller batches."""
    goal = noise(4000)

    def gradient(size: int):
        return lambda w, k: (w - goal[size * k : size * (k + 1)].mean()).expand(1)

    for size, accumulation, style in ((16, 1, "-"), (4, 4, "--")):
        path = [
            ex.fix_training_loop(gradient(size), torch.tensor([3.0]), n, accumulation, 0.6, 0.8) for n in range(30)
        ]
        for part, colour, name in ((0, BLUE, "weight"), (1, ORANGE, "average")):
            colour = colour if accumulation == 1 else "black"
            values = [float(each[part][0]) for each in path]
            axis.plot(values, style, color=colour, label=f"{name}, {accumulation} x {size}")
    axis.set(xlabel="optimizer step", title="4 batches of 4 act as one of 16")
    axis.legend(frameon=False, fontsize=8)


def fix_img2img(ex, right, axis):
    """A denoiser that knows the picture, and removes as much noise as the level should have."""
    y, x = grid(64)
    z = (1.6 * torch.exp(-((x - 0.2) ** 2 + (y + 0.2) ** 2) / 0.2) - 0.8)[None, None]
    alpha_bar = torch.linspace(1, 0, 1000).clamp(0.001, 0.999)

    def predict(noisy: Tensor, t: int) -> Tensor:
        eps = (noisy - alpha_bar[t].sqrt() * z) / (1 - alpha_bar[t]).sqrt()
        return eps * min(1.0, 1.1 / max(float(eps.std()), 1e-6))

    for column, n in enumerate((5, 15, 30, 50)):
        got = ex.fix_img2img(predict, z, noise(1, 1, 64, 64), list(range(980, -1, -20)), alpha_bar, n)
        tile(axis, got[0, 0], column % 2, column // 2, f"{n} of 50", -1.5, 1.5, "RdBu_r")
    around(axis, 2, 2, "steps of img2img: no grain at any strength")


def fix_min_snr(ex, right, axis):
    """The weight of the error of x0 that follows from the weights, against the SNR."""
    snr = torch.logspace(-2, 2, 100)
    alpha_bar = snr / (1 + snr)
    axis.loglog(snr, ex.fix_min_snr(alpha_bar, 5.0, "eps") * snr, color=ORANGE, linewidth=4, label="from eps")
    axis.loglog(snr, ex.fix_min_snr(alpha_bar, 5.0, "v") * (snr + 1), "--", color=BLUE, label="from v")
    axis.axhline(5, color=GREY, zorder=0, linewidth=0.8)
    axis.set(xlabel="SNR", ylabel="weight of the error of x0", title="both are min(SNR, 5)")
    axis.legend(frameon=False)


def merge_to_rank(ex, right, axis):
    """Error of the merged file against its rank."""
    adapters, scales = public.some_adapters(0)
    D, ranks = public.merged(adapters, scales), range(1, 16)
    A, B = (
        torch.cat([A for A, _, _ in adapters]),
        torch.cat([s * a / len(A) * B for (A, B, a), s in zip(adapters, scales, strict=True)], 1),
    )
    cut = [float((D - B[:, :r] @ A[:r]).norm() / D.norm()) for r in ranks]
    errors = []
    for r in ranks:
        mine = ex.merge_to_rank(adapters, scales, r)
        errors.append(float((D - mine[1] @ mine[0]).norm() / D.norm()))
    axis.plot(ranks, cut, color=GREY, label="rows and columns cut off")
    axis.plot(ranks, errors, "o", color=BLUE, fillstyle="none", label="yours")
    best = torch.linalg.svdvals(D).square().flip(0).cumsum(0).flip(0).sqrt() / D.norm()
    axis.plot(ranks, best[1:16], color=ORANGE, zorder=0, label="smallest possible")
    axis.set(xlabel="rank", ylabel="relative error", title="circles on the smallest possible error")
    axis.legend(frameon=False, fontsize=8)
