"""What chapter 2's exercises look like when they are right: a panel for each, drawn by common.grade.show_exercises.

Each panel is a function of (ex, right, axis): the answers to show, the solutions, and where to draw. No network is
needed: the data of five panels are points in the plane, in five blobs, of which a caption names some; their ideal
denoiser is known exactly.
"""

import math
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from common.grade.checks import load

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")

NAMES = ("top", "left", "low-left", "low-right", "right")  # of the blobs, anticlockwise
ANGLES = torch.arange(5) * (2 * math.pi / 5) + math.pi / 2
CENTRES = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)  # (5, 2)
WIDTH = 0.3  # of each blob
LAMBDAS = torch.linspace(-3, 3, 30)  # of the noise levels visited
ALPHA = torch.cat([(1 + torch.exp(-2 * LAMBDAS)) ** -0.5, torch.ones(1)])
SIGMA = torch.cat([(1 + torch.exp(2 * LAMBDAS)) ** -0.5, torch.zeros(1)])  # the last level is clean
BLUE, ORANGE, GREY = "tab:blue", "tab:orange", "0.7"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal noise: of this shape, or of points in the plane if only their number is given. (n, 1, 1, 2)"""
    return torch.randn(shape if len(shape) > 1 else (*shape, 1, 1, 2), generator=torch.Generator().manual_seed(seed))


def encode(texts: list[str]) -> Tensor:
    """A caption as one token: the weights of the blobs that it names, or of all five if it names none. (N, 1, 5)"""
    named = [[float(name in text.replace(",", "").split()) for name in NAMES] for text in texts]
    named = torch.tensor(named)[:, None]
    return torch.where(named.sum(2, keepdim=True) > 0, named, torch.ones(5))


def predict_eps(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """The noise in points x at level t, if they come from the blobs of their captions. (B, 1, 1, 2) -> (B, 1, 1, 2)"""
    alpha, sigma = ALPHA[t].view(-1, 1, 1), SIGMA[t].view(-1, 1, 1)
    points, variance = x.view(-1, 1, 2), alpha**2 * WIDTH**2 + sigma**2
    away = points - alpha * CENTRES  # (B, 5, 2)
    weight = (text[:, 0].log() - away.square().sum(2) / (2 * variance[:, 0])).softmax(1)[:, :, None]
    x0 = (weight * (CENTRES + alpha * WIDTH**2 / variance * away)).sum(1, keepdim=True)
    return ((points - alpha * x0) / sigma).view(x.shape)


def sample(guided, context: Tensor, w: float) -> Tensor:
    """DDIM from noise to points. (2 B, 1, 5) captions of both halves -> (B, 2)"""
    B = len(context) // 2
    x = noise(B)
    for now, then in pairwise(range(len(ALPHA))):
        eps = guided(predict_eps, x, torch.full((B,), now), context, w)
        x = ALPHA[then] * (x - SIGMA[now] * eps) / ALPHA[now] + SIGMA[then] * eps
    return x.view(-1, 2)


def scenes(axis, points: list[Tensor], asked: list[tuple[str, ...]], labels: list[str]) -> None:
    """Clouds of points side by side, with the blobs as circles: orange where they were asked for."""
    turn = torch.linspace(0, 2 * math.pi, 60)
    for place, (cloud, names, label) in enumerate(zip(points, asked, labels, strict=True)):
        right = 4.6 * place
        axis.plot(cloud[:, 0] + right, cloud[:, 1], ",", color=BLUE)
        for name, (x, y) in zip(NAMES, CENTRES.tolist(), strict=True):
            color, width = (ORANGE, 1.5) if name in names else (GREY, 1)
            axis.plot(
                x + right + 2.45 * WIDTH * turn.cos(), y + 2.45 * WIDTH * turn.sin(), color=color, linewidth=width
            )  # 95 %
        axis.text(right, -2.8, label, ha="center", va="center", fontsize=9)
    axis.set(aspect="equal", xticks=[], yticks=[], xlim=(-2.2, 6.8), ylim=(-3.1, 2.4))


# -------------------------------------------------------------------------------------------------------- the panels


def caption_dropout(ex, right, axis):
    B, steps, p = 20, 12, 0.2
    text, empty, kept = torch.ones(B, 1, 1), torch.full((1, 1), 2.0), 0
    for step in range(steps):
        got = ex.caption_dropout(text, empty, random(B, seed=step), p)[:, 0, 0]
        kept += int((got == 1).sum())
        for value, style in ((1, {"color": BLUE}), (2, {"color": ORANGE, "fillstyle": "none"})):
            there = torch.nonzero(got == value)[:, 0]
            axis.plot(there, torch.full((len(there),), step), "s", markersize=7, **style)
    axis.set(xlabel="images of a batch", ylabel="training step", xticks=[], yticks=[], ylim=(steps - 0.3, -0.7))
    axis.set_title(f"captions dropped at random: {B * steps - kept} of {B * steps} (p = {p:g})")


def cross_attention(ex, right, axis):
    side = 64
    y, x = torch.meshgrid(torch.linspace(1, -1, side), torch.linspace(-1, 1, side), indexing="ij")
    sun = 1 - ((x - 0.3) ** 2 + (y + 0.1) ** 2) / 0.16  # above 0 within a disc
    zero, one = torch.zeros(side * side), torch.ones(side * side)
    pixels = torch.stack([8 * y.flatten(), one, zero, zero, 12 * sun.flatten().clamp(min=-2), one, zero, zero], 1)[
        None
    ]
    words = torch.tensor([  # the key in head 0 (two numbers), the key in head 1, then the value: red, green, blue, sun
        [1.0, 0, 0, 0, 0.25, 0.2, 0.55, 0],                                             # violet: above
        [-1, 0, 0, 0, 1.0, 0.5, 0.2, 0],                                                # orange: below
        [0, -30, 1, 0, 0, 0, 0, 1],                                                     # sun: not in head 0; in head 1 where the sun is
    ])[None]  # fmt: skip
    W_k, W_v = torch.zeros(8, 8), torch.zeros(8, 8)
    W_k[0, 0] = W_k[1, 1] = W_k[4, 2] = W_k[5, 3] = 1
    W_v[0, 4] = W_v[1, 5] = W_v[2, 6] = W_v[4, 7] = 1
    got = ex.cross_attention(pixels, words, torch.eye(8), W_k, W_v, 2)[0].view(side, side, 8)
    sky, glow = got[..., :3], got[..., 4:5]
    axis.imshow((sky * (1 - glow) + torch.tensor([1.0, 0.95, 0.6]) * glow).clamp(0, 1))
    axis.axis("off")
    axis.set_title("head 0 paints a sky, head 1 a sun")


def guided(ex, right, axis):
    asked = ("top", "left")
    context = torch.cat([encode([""] * 2500), encode(["top left"] * 2500)])
    points = [sample(ex.guided, context, w) for w in (1.0, 4.0)]
    scenes(axis, points, [asked, asked], ["w = 1", "w = 4"])
    axis.set_title("w = 1 fills two blobs; w = 4 overshoots")


def negative_prompt(ex, right, axis):
    half = 2500
    context = ex.negative_prompt(encode, ["anything"] * 2 * half, [None] * half + ["top"] * half)
    points = sample(right.guided, context, 1.6).chunk(2)
    scenes(axis, points, [NAMES, NAMES[1:]], ["anything", "negative: top"])
    axis.set_title("the negative prompt empties its blob")


def rescale(ex, right, axis):
    cond = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.5, 1.2]).view(
        2, 1, 1, 1
    )
    guided = cond * torch.tensor([5, 2.5]).view(2, 1, 1, 1)
    phis = torch.linspace(0, 1, 11).tolist()
    std = torch.stack([ex.rescale(guided, cond, phi).flatten(1).std(1) for phi in phis])  # (11, 2)
    for image, style in enumerate(("o-", "s-")):
        axis.plot(phis, std[:, image], style, color=BLUE, markersize=4, label=f"image {image + 1}")
        axis.plot([0], guided[image].std(), style[0], color=ORANGE, fillstyle="none", markersize=12)
        axis.plot([1], cond[image].std(), style[0], color=ORANGE, fillstyle="none", markersize=12)
    axis.text(-0.03, 1.75, "guided", color=ORANGE)
    axis.text(1.03, 0.12, "conditional", ha="right", color=ORANGE)
    axis.set(xlabel="phi", ylabel="standard deviation", ylim=(0, 3.3), title="from guided to conditional")
    axis.legend(frameon=False)


def dynamic_threshold(ex, right, axis):
    place = torch.linspace(0, 1, 200)
    wave = torch.sin(2 * math.pi * place)
    x0 = torch.stack([2 * wave + 0.3 * torch.sin(30 * place), 0.6 * wave]).view(2, 1, 1, 200)
    x0[0, 0, 0, 40] = 3.4  # a single hot pixel
    got = ex.dynamic_threshold(x0, 0.98)
    axis.axhspan(-1, 1, color="0.95", zorder=0)
    axis.plot(place, x0[0, 0, 0], color=GREY, label="guided")
    axis.plot(place, x0[0, 0, 0].clamp(-1, 1), "--", color=ORANGE, label="clipped at 1")
    axis.plot(place, got[0, 0, 0], color=BLUE, label="dynamic")
    axis.plot(place, x0[1, 0, 0], color=GREY, linewidth=4)
    axis.plot(place, got[1, 0, 0], color=BLUE, linewidth=1)
    axis.set(xlabel="a row of pixels", ylabel="x0", xticks=[], title="beyond 1: shrunk; within 1: unchanged")
    axis.legend(frameon=False, loc="upper right")


def attribute_accuracy(ex, right, axis):
    truth, studies, N, K, hold = 0.93, 60, 20, 4, 0
    for study, (ask, see) in enumerate(random(studies, 2, N, K)):
        asked = torch.where(ask < 0.6, 0, -1)
        found = (see > truth).long()  # 0, as asked for, or 1
        share, low, high = ex.attribute_accuracy(found, asked)
        hold += low <= truth <= high
        axis.plot([study, study], [low, high], color=BLUE if low <= truth <= high else ORANGE, linewidth=2)
        axis.plot(study, share, ".", color="black", markersize=4)
    axis.axhline(truth, color="0.3", linewidth=0.8)
    axis.axhspan(1, 1.15, color="0.9", zorder=0)
    axis.set(xlabel=f"studies of {N} images", ylabel="attribute accuracy", xticks=[], ylim=(0.55, 1.06))
    axis.set_title(f"{hold} of {studies} intervals contain the true {truth:g}")


def loss_guided_step(ex, right, axis):
    def steered(strength: float) -> Tensor:
        x, everything = noise(2000), encode([""] * 2000)
        for now, then in pairwise(range(len(ALPHA))):
            x = ex.loss_guided_step(
                lambda x, now=now: predict_eps(x, torch.full((len(x),), now), everything),
                lambda x0: (x0[:, 0, 0, 0] - 0.6).square(),  # the first coordinate should be 0.6
                x,
                float(ALPHA[now] ** 2),
                float(ALPHA[then] ** 2),
                strength,
            )
        return x.view(-1, 2)

    scenes(axis, [steered(0.0), steered(2.0)], [(), ()], ["strength 0", "strength 2"])
    for place in (0.6, 5.2):
        axis.plot([place, place], [-2.2, 2.2], color=ORANGE, linewidth=0.8)
    axis.set_title("the loss pulls points to the orange line")


def tilted_gaussian(ex, right, axis):
    m, s, w = 0.9, 0.7, 4.0
    x = noise(400_000, 1).flatten().double()
    line = torch.linspace(-3.5, 5.5, 300)
    for scale, color in ((0.0, GREY), (1.0, ORANGE), (w, BLUE)):
        weight = (scale * (x.square() / 2 - ((x - m) / s).square() / 2)).exp()
        axis.hist(x, bins=120, range=(-3.5, 5.5), weights=weight, density=True, color=color, alpha=0.35)
        mean, std = ex.tilted_gaussian(m, s, scale)
        density = (-((line - mean) / std).square() / 2).exp() / (std * math.sqrt(2 * math.pi))
        axis.plot(line, density, color=color, label=f"w = {scale:g}")

    def eps(x: Tensor, level: int, mean: float, std: float) -> Tensor:
        return SIGMA[level] * (x - ALPHA[level] * mean) / ((ALPHA[level] * std) ** 2 + SIGMA[level] ** 2)

    x = noise(100_000, 1).flatten()
    for now, then in pairwise(range(len(ALPHA))):
        guided = right_guide(eps(x, now, 0, 1), eps(x, now, m, s), w)
        x = ALPHA[then] * (x - SIGMA[now] * guided) / ALPHA[now] + SIGMA[then] * guided
    axis.hist(x, bins=120, range=(-3.5, 5.5), density=True, histtype="step", color="black", linestyle=":")
    axis.plot([], [], ":", color="black", label=f"guided, w = {w:g}")
    axis.set(xlabel="x", ylabel="density", yticks=[], title="curves on the bars; guided samples elsewhere")
    axis.legend(frameon=False, loc="upper left")


def right_guide(uncond: Tensor, cond: Tensor, w: float) -> Tensor:
    return uncond + w * (cond - uncond)


def fix_training_batch(ex, right, axis):
    B, p, batches = 8, 0.3, 400
    x0, text, empty = torch.zeros(B, 1, 1, 2), torch.ones(B, 1, 1), torch.zeros(1, 1)
    rng, counts = torch.Generator().manual_seed(0), torch.zeros(B + 1)

    def model(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        counts[int((text == 0).sum())] += 1
        return x

    for _ in range(batches):
        ex.fix_training_batch(model, x0, text, empty, torch.tensor([1.0, 0.5]), p, rng)
    axis.bar(range(B + 1), counts / batches, color=BLUE, label="measured")
    binomial = [math.comb(B, k) * p**k * (1 - p) ** (B - k) for k in range(B + 1)]
    axis.plot(range(B + 1), binomial, "o", color=ORANGE, fillstyle="none", markersize=9, label="binomial")
    axis.set(xlabel=f"dropped captions in a batch of {B}", ylabel="share of the batches")
    axis.set_title("most batches lose two or three captions (p = 0.3)")
    axis.legend(frameon=False)


def fix_guided_sampling(ex, right, axis):
    last, prompt = len(ALPHA) - 1, encode(["top"] * 1500)
    points = [
        ex.fix_guided_sampling(
            lambda x, t, text: predict_eps(x, last - t, text),
            noise(1500),
            prompt,
            encode([""])[0],
            w,
            list(range(last, -1, -1)),
            ALPHA.flip(0).square(),
        ).view(-1, 2)
        for w in (0.0, 2.0)
    ]
    scenes(axis, points, [("top",)] * 2, ["w = 0", "w = 2"])
    axis.set_title("w = 0 fills all blobs, w = 2 the one of the prompt")


def fix_masked_attention(ex, right, axis):
    def attention(function, padding: int) -> Tensor:
        q, k, v = noise(1, 1, 6, 4), noise(1, 1, 3 + padding, 4, seed=1), noise(1, 1, 3 + padding, 4, seed=2)
        k[:, :, :3], v[:, :, :3] = noise(1, 1, 3, 4, seed=3), noise(1, 1, 3, 4, seed=4)
        mask = (torch.arange(3 + padding) < 3)[None]
        return function(q, k, v, mask)[0, 0, :, 0]

    counts = list(range(0, 21, 2))
    for function, style in (
        (lambda q, k, v, mask: right.fix_masked_attention(q, k, v, mask | True), "--"),
        (ex.fix_masked_attention, "-"),
    ):
        lines = torch.stack([attention(function, n) for n in counts])
        axis.plot(counts, lines, style, color=GREY if style == "--" else BLUE)
    axis.plot([], [], "-", color=BLUE, label="masked")
    axis.plot([], [], "--", color=GREY, label="padding attended")
    axis.set(xlabel="tokens of padding", ylabel="result of six pixels", title="padding changes nothing: flat lines")
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.12))


def guidance_scale(ex, right, axis):
    points = public.guided_points(ex.guidance_scale)
    inside, spread = public.inside_and_spread(points)
    turn, blobs = torch.linspace(0, 2 * math.pi, 60), public.centres()
    axis.plot(points[:, 0], points[:, 1], ",", color=BLUE)
    for place, (x, y) in enumerate(blobs.tolist()):
        radius = 2.45 * public.WIDTH
        axis.plot(x + radius * turn.cos(), y + radius * turn.sin(), color=GREY if place else ORANGE)
    axis.set(aspect="equal", xticks=[], yticks=[], xlim=(-1.9, 4.2), ylim=(-2.2, 2.2))
    curve = axis.inset_axes((0.66, 0.2, 0.32, 0.6))
    curve.semilogx(public.NOISES, [float(ex.guidance_scale(n)) for n in public.NOISES], ".-", color=BLUE)
    curve.set_xlabel("$\\sigma / \\sqrt{\\bar\\alpha}$", fontsize=8)
    curve.set_title("w", fontsize=8)
    curve.tick_params(labelsize=7)
    axis.set_title(f"inside {inside:.2f} (goal {public.INSIDE}), spread {spread:.2f} (goal {public.SPREAD:.2f})")
