"""What chapter 4's exercises look like when they are right: a panel for each, drawn by common.grade.show_exercises.

Each panel is a function of (ex, right, axis): the answers to show, the solutions, and where to draw. No network is
needed: latents are drawn from Gaussians, images are painted by formulas, and in the panels of samplers latents are
points in the plane, or images that an ideal denoiser knows.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from common.grade.checks import load

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")

ANGLES = torch.arange(5) * (2 * math.pi / 5) + math.pi / 2
CENTRES = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)  # (5, 2) top, left, low-left, low-right, right
WIDTH = 0.35  # of each blob
BLUE, ORANGE, GREY = "tab:blue", "tab:orange", "0.7"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def levels(N: int) -> tuple[Tensor, Tensor]:
    """Alpha and sigma along a sampler of N steps, from pure noise to clean. Each (N + 1,)"""
    angle = torch.linspace(math.pi / 2, 0, N + 1)
    alpha, sigma = angle.cos(), angle.sin()
    alpha[0], sigma[-1] = 0, 0
    return alpha, sigma


def evening(side: int) -> Tensor:
    """A sky with a sun that is brighter than white. (1, 3, side, side), from -1 to about 1.4"""
    y, x = torch.meshgrid(torch.linspace(1, -1, side), torch.linspace(-1, 1, side), indexing="ij")
    high, low = torch.tensor([-0.5, -0.6, 0.1]).view(3, 1, 1), torch.tensor([0.9, 0.1, -0.6]).view(3, 1, 1)
    sky = low + (high - low) * (y + 1) / 2
    sun = torch.exp(-(((x - 0.3) ** 2 + (y + 0.1) ** 2) / 0.12))
    return (sky + sun * torch.tensor([1.2, 1.5, 1.6]).view(3, 1, 1))[None]


# -------------------------------------------------------------------------------------------------------- the panels


def kl(ex, right, axis):
    logvar = torch.linspace(-4, 2.5, 60).view(-1, 1, 1, 1)
    few, eps = torch.linspace(-4, 2.5, 9).view(-1, 1, 1, 1), noise(1, 20_000)
    for mean, style in ((0.0, "-"), (1.0, "--"), (2.0, ":")):
        axis.plot(
            logvar.flatten(), ex.kl(torch.full_like(logvar, mean), logvar), style, color=BLUE, label=f"mean {mean:g}"
        )
        log_q = -(few.view(-1, 1) + eps**2) / 2  # of latents drawn from the cloud, but for a constant
        log_p = -((mean + (few.view(-1, 1) / 2).exp() * eps) ** 2) / 2
        axis.plot(few.flatten(), (log_q - log_p).mean(1), "o", color=ORANGE, fillstyle="none", markersize=9)
    axis.plot(0, 0, "*", color="black", markersize=11, zorder=3)
    axis.set(xlabel="logvar", ylabel="KL in nats", ylim=(-0.4, 7))
    axis.set_title("the curves meet the circles, which are means over samples")
    axis.legend(frameon=False, loc="upper center")


def reparameterise(ex, right, axis):
    means = torch.tensor([[-3.0, 1], [0, -1.5], [3, 1]])
    stds = torch.tensor([[0.4, 1], [1, 0.3], [0.7, 0.7]])
    turn = torch.linspace(0, 2 * math.pi, 80)
    for mean, std in zip(means, stds, strict=True):
        many = mean.view(1, 2, 1, 1).expand(1000, 2, 1, 1)
        got = ex.reparameterise(many, (2 * std.log()).view(1, 2, 1, 1).expand_as(many), noise(1000, 2, 1, 1))
        axis.plot(got[:, 0, 0, 0], got[:, 1, 0, 0], ".", color=BLUE, markersize=1.5)
        axis.plot(
            mean[0] + 2.45 * std[0] * turn.cos(), mean[1] + 2.45 * std[1] * turn.sin(), color=ORANGE, linewidth=1.5
        )
    axis.set(aspect="equal", xticks=[], yticks=[], xlim=(-5.2, 5.2), ylim=(-3.2, 4.2))
    axis.set_title("each ellipse holds 95 % of an image's latents")


def scaling_factor(ex, right, axis):
    latent = 0.2 + 3 * noise(8000).sort().values  # sorted: batches that differ in their means
    scale = ex.scaling_factor(iter(latent.view(10, 50, 4, 2, 2)))
    bins = torch.linspace(-9, 9, 91)
    axis.hist(latent, bins, density=True, color=GREY, label=f"latents, std {latent.std():.2f}")
    axis.hist(
        latent * scale,
        bins,
        density=True,
        histtype="step",
        color=BLUE,
        linewidth=1.5,
        label=f"times {scale:.3f}, std {latent.std() * scale:.2f}",
    )
    place = torch.linspace(-4, 4, 100)
    axis.plot(place, torch.exp(-(place**2) / 2) / (2 * math.pi) ** 0.5, "--", color=ORANGE, label="standard normal")
    axis.set(yticks=[], ylim=(0, 0.68), title="scaled latents are as wide as the noise")
    axis.legend(frameon=False, loc="upper left", fontsize=8)


def noisy_latent(ex, right, axis):
    B, scale = 21, 0.2
    # together a standard deviation of 5
    mean, std = (5 * noise(B, 4, 16, 16) * 0.96**0.5, torch.full((B, 4, 16, 16), 1.0))
    angle = torch.linspace(0, math.pi / 2, B)
    x, v = ex.noisy_latent(
        mean, std, scale, noise(B, 4, 16, 16, seed=1), noise(B, 4, 16, 16, seed=2), angle.cos(), angle.sin()
    )
    axis.plot(angle.sin(), x.flatten(1).std(1), "o-", color=BLUE, markersize=4, label="x")
    axis.plot(angle.sin(), v.flatten(1).std(1), "s-", color="tab:green", markersize=4, label="v")
    axis.plot(angle.sin(), (25 * angle.cos() ** 2 + angle.sin() ** 2).sqrt(), "--", color=GREY, label="x, not scaled")
    axis.set(xlabel="sigma", ylabel="standard deviation", ylim=(0, 5.5), title="x and v: 1 at every noise level")
    axis.legend(frameon=False)


def latent_key(ex, right, axis):
    weights = {"conv.weight": noise(20, 20, 3, 3), "conv.bias": noise(20)}
    config, pixels = (
        {"channels": (32, 64), "layers": 1, "scaling_factor": 0.2},
        torch.arange(4 * 3 * 8 * 8).view(4, 3, 8, 8).to(torch.uint8),
    )
    one_weight, one_pixel = weights["conv.weight"].clone(), pixels.clone()
    one_weight[10, 10, 1, 1] += 1e-3
    one_pixel[2, 1, 4, 4] += 1
    rows = {
        "as they are": (weights, config, pixels),
        "other order": (dict(reversed(weights.items())), dict(reversed(config.items())), pixels),
        "other scale": (weights, config | {"scaling_factor": 0.3}, pixels),
        "one weight": (weights | {"conv.weight": one_weight}, config, pixels),
        "names": ({name + "_": weight for name, weight in weights.items()}, config, pixels),
        "one setting": (weights, config | {"layers": 2}, pixels),
        "one pixel": (weights, config, one_pixel),
        "two images": (weights, config, pixels[[1, 0, 2, 3]]),
    }
    keys = [ex.latent_key(*case) for case in rows.values()]
    axis.imshow([[int(digit, 16) for digit in key] for key in keys], cmap="tab20", vmin=0, vmax=19, aspect="auto")
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_xticks([])
    axis.axhline(2.5, color="white", linewidth=5)
    axis.set_title("digits as colours: the first three keys are equal")


def img2img_start(ex, right, axis):
    z, alpha_sigma, N = 0.75 * evening(64), levels(20), 20
    eps = noise(*z.shape)
    for place, strength in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        first, x = ex.img2img_start(z, eps, strength, *alpha_sigma)
        row, column = divmod(place, 3)
        left, top = 70 * column, -84 * row
        shown = ((x[0] + 1.2) / 2.4).clamp(0, 1).permute(1, 2, 0)
        axis.imshow(shown, extent=(left, left + 64, top - 64, top), interpolation="nearest")
        axis.text(left + 32, top - 66, f"strength {strength:g}: {N - first} steps", ha="center", va="top", fontsize=8)
    axis.set(xlim=(-2, 206), ylim=(-162, 2), aspect="equal")
    axis.axis("off")
    axis.set_title("from the picture itself to pure noise")


def decode_picture(ex, right, axis):
    mix = noise(3, 4, seed=3)
    back = torch.linalg.pinv(mix)

    def decode(latents: Tensor) -> Tensor:
        return torch.einsum("rc,bchw->brhw", mix, latents)

    z = 0.2 * torch.einsum("cr,brhw->bchw", back, evening(96))
    axis.imshow(ex.decode_picture(z, decode, 0.2)[0].permute(1, 2, 0), interpolation="nearest")
    axis.axis("off")
    axis.set_title("a white sun without dark or coloured spots")


def see(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """v of points x at the angle t, if they come from the blobs that their captions name.
    (B, 1, 1, 2) -> (B, 1, 1, 2)
    """
    alpha, sigma = t.cos().view(-1, 1, 1), t.sin().view(-1, 1, 1)
    points, variance = x.view(-1, 1, 2), alpha**2 * WIDTH**2 + sigma**2
    away = points - alpha * CENTRES  # (B, 5, 2)
    weight = (text[:, 0].log() - away.square().sum(2) / (2 * variance[:, 0])).softmax(1)[:, :, None]
    z = (weight * (CENTRES + alpha * WIDTH**2 / variance * away)).sum(1, keepdim=True)
    return ((alpha * points - z) / sigma).view(x.shape)  # x = alpha z + sigma eps, v = alpha eps - sigma z


def sample_latent(ex, right, axis):
    N, B = 40, 1500
    alpha, sigma = levels(N)
    times = torch.linspace(math.pi / 2, 0, N + 1)[:-1]
    every, asked = torch.ones(B, 1, 5), torch.tensor([0.0, 1, 1, 0, 0]).expand(B, 1, 5)
    context, z = torch.cat([every, asked]), CENTRES[0] + WIDTH * noise(B, 1, 1, 2, seed=1)
    first, half = right.img2img_start(z, noise(B, 1, 1, 2, seed=2), 0.65, alpha, sigma)
    turn = torch.linspace(0, 2 * math.pi, 60)
    for place, (x, begin, label) in enumerate(((noise(B, 1, 1, 2), 0, "from noise"), (half, first, "from the top"))):
        got = ex.sample_latent(see, x, begin, context, 1.5, times, alpha, sigma).view(-1, 2)
        axis.plot(got[:, 0] + 7 * place, got[:, 1], ".", color=BLUE, markersize=1.5)
        for k, centre in enumerate(CENTRES.tolist()):
            color = ORANGE if k in (1, 2) else GREY
            axis.plot(
                centre[0] + 7 * place + 2.45 * WIDTH * turn.cos(),
                centre[1] + 2.45 * WIDTH * turn.sin(),
                color=color,
                linewidth=1.5,
            )
        axis.text(7 * place, -3.6, label, ha="center", fontsize=9)
    axis.plot(7 + z[:200, 0, 0, 0], z[:200, 0, 0, 1], ".", color=GREY, markersize=1.5)
    axis.set(aspect="equal", xticks=[], yticks=[], xlim=(-3.4, 10.4), ylim=(-4, 3.4))
    axis.set_title("the prompt asks for left and low-left")


def kl_of_gaussians(ex, right, axis):
    means, few = torch.linspace(-2.5, 2.5, 60).tolist(), torch.linspace(-2.5, 2.5, 9).tolist()
    for std, style in ((0.5, "-"), (1.0, "--"), (2.0, ":")):
        axis.plot(
            means, [ex.kl_of_gaussians(m, std, 0.5, 1.0) for m in means], style, color=BLUE, label=f"std_q {std:g}"
        )
        sampled = [public.monte_carlo_kl(m, std, 0.5, 1.0) for m in few]
        axis.plot(few, sampled, "o", color=ORANGE, fillstyle="none", markersize=9)
    axis.set(xlabel="mean_q, for p = N(0.5, 1)", ylabel="KL in nats", ylim=(-0.2, 6))
    axis.set_title("the curves meet the circles, which are means over samples")
    axis.legend(frameon=False)


def best_posterior(ex, right, axis):
    betas = torch.logspace(-3, 3, 40).tolist()
    found = [ex.best_posterior(1.5, 1.0, 0.4, beta) for beta in betas]
    axis.semilogx(betas, [float(mean) for mean, _ in found], color=BLUE, label="mean")
    axis.semilogx(betas, [float(std) for _, std in found], "--", color=ORANGE, label="standard deviation")
    axis.axhline(1.5, color=GREY, linewidth=1, linestyle=":")
    axis.set(xlabel="beta", ylim=(-0.05, 1.7), title="from exact codes to the prior N(0, 1)")
    axis.legend(frameon=False)


def channels_needed(ex, right, axis):
    values = torch.logspace(0, -4, 48)
    decibels = torch.linspace(10, 45, 50).tolist()
    for f, style in ((4, "-"), (2, "--")):
        some = values[:: 16 // f**2]
        axis.step(
            decibels,
            [ex.channels_needed(some, each) for each in decibels],
            style,
            color=BLUE,
            label=f"directions: {len(some)}",
        )
    axis.set(xlabel="PSNR in dB", ylabel="channels", title="better reconstructions need more channels")
    axis.legend(frameon=False, loc="upper left")


def letter(which: str, side: int = 24) -> Tensor:
    """A letter, white on black. (1, 1, side, side)"""
    picture = -torch.ones(1, 1, side, side)
    picture[..., 3:-3, side // 2 - 2 : side // 2 + 2] = 1
    rows = {"T": slice(3, 7), "L": slice(side - 7, side - 3)}[which]
    picture[..., rows, 3 if which == "T" else side // 2 - 2 : side - 3] = 1
    return picture


def ideal_eps(pictures: Tensor, alpha: float, sigma: float):
    """The ideal network of a few pictures (K, 1, S, S), whose text (B, 1, K) is the share of each."""

    def predict(x: Tensor, text: Tensor) -> Tensor:
        away = (x[:, None] - alpha * pictures).square().flatten(2).sum(2)  # (B, K)
        share = (text[:, 0].log() - away / (2 * (sigma**2 + 0.3 * alpha**2))).softmax(1)
        return (x - alpha * torch.einsum("bk,kchw->bchw", share, pictures)) / sigma

    return predict


def sample_with(eps_of, pictures: Tensor) -> Tensor:
    """DDIM with eps = eps_of(predict, x), from noise. (1, 1, S, S)"""
    alpha, sigma = levels(30)
    x = noise(1, *pictures.shape[1:], seed=1)
    for k in range(1, 30):
        eps = eps_of(ideal_eps(pictures, float(alpha[k]), float(sigma[k])), x)
        x = alpha[k + 1] * (x - sigma[k] * eps) / alpha[k] + sigma[k + 1] * eps
    return x


def side_by_side(axis, pictures: list[Tensor], labels: list[str]) -> None:
    for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left = 28 * place
        axis.imshow(
            picture[0, 0], cmap="gray", vmin=-1, vmax=1, extent=(left, left + 24, 0, 24), interpolation="nearest"
        )
        axis.text(left + 12, -1, label, ha="center", va="top", fontsize=9)
    axis.set(xlim=(-2, 28 * len(pictures) - 2), ylim=(-5, 25), aspect="equal")
    axis.axis("off")


def anagram_eps(ex, right, axis):
    shapes = torch.cat([letter("T"), letter("L")])
    texts = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])]
    views = [public.same, public.turn], [public.same, public.turn_back]
    got = sample_with(lambda predict, x: ex.anagram_eps(predict, x, texts, *views), shapes)
    side_by_side(axis, [got, public.turn(got)], ["as it is: T", "turned: L"])
    axis.set_title("one image, and the same one turned")


def hybrid_eps(ex, right, axis):
    place = torch.linspace(-1, 1, 24)
    far = (1.4 * (place.view(-1, 1) ** 2 + place**2) - 0.9).clamp(-1, 1).view(1, 1, 24, 24)  # dark in the middle
    near = torch.ones(24, 24).mul((-1.0) ** torch.arange(24)).view(1, 1, 24, 24)  # stripes
    texts = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])]  # near, far

    def soft(x: Tensor) -> Tensor:
        return public.blur(public.blur(x))

    got = sample_with(lambda predict, x: ex.hybrid_eps(predict, x, *texts, soft), torch.cat([near, far]))
    side_by_side(axis, [got, soft(got)], ["from near: stripes", "blurred: a disc"])
    axis.set_title("one image, and the same one from far away")


def fix_vae_loss(ex, right, axis):
    sizes = list(range(1, 9))

    def value(function, side: int) -> float:
        mean = 0.5 * torch.ones(2, 4, side, side)
        x = torch.zeros(2, 3, side, side)
        return float(function(x, x, mean, torch.zeros_like(mean), 1.0, 1.0))

    axis.plot(sizes, [value(ex.fix_vae_loss, side) for side in sizes], "o-", color=BLUE, label="yours")
    axis.plot(sizes, [0.5 * side**2 for side in sizes], "--", color=ORANGE, label="1/8 nat for each latent")
    axis.set(xlabel="side of the latents (4 channels)", ylabel="information in nats")
    axis.set_title("twice the side holds four times the information")
    axis.legend(frameon=False)


def fix_latent_batch(ex, right, axis):
    B = 21
    mean, angle = 5 * noise(B, 4, 16, 16), torch.linspace(0, math.pi / 2, B)
    alpha, sigma = angle.cos(), angle.sin()
    x, v = ex.fix_latent_batch(mean, torch.zeros_like(mean), 0.2, alpha, sigma, torch.Generator().manual_seed(1))
    axis.plot(sigma, x.flatten(1).std(1), "o-", color=BLUE, markersize=4, label="x")
    axis.plot(sigma, v.flatten(1).std(1), "s-", color="tab:green", markersize=4, label="v")
    axis.set(xlabel="sigma", ylabel="standard deviation", ylim=(0, 5.5), title="unit variance at every noise level")
    axis.legend(frameon=False)


def fix_reconstruct(ex, right, axis):
    x = 0.5 * noise(1, 3, 8, 8)
    decibels = [
        float(ex.fix_reconstruct(x, public.encode_wide, public.decode_wide, noise(1, 3, 4, 4, seed=k))[1])
        for k in range(12)
    ]
    axis.plot(range(12), decibels, "o", color=BLUE)
    axis.set(xlabel="seed of the noise", ylabel="PSNR in dB", ylim=(0, 14), title="the same with every noise")


def fix_text_to_image(ex, right, axis):
    alpha, sigma = levels(40)
    steps = [
        (float(t), float(a), float(s))
        for t, a, s in zip(torch.linspace(math.pi / 2, 0, 41), alpha, sigma, strict=True)
    ]
    steps[0] = (steps[0][0], 1e-3, 1.0)
    shares = {"left": [0.01, 1, 0.01, 0.01, 0.01], "": [1.0] * 5, "right": [0.01, 0.01, 0.01, 0.01, 1]}

    def encode(texts: list[str]) -> Tensor:
        return torch.tensor([shares[text] for text in texts])[:, None]

    got = ex.fix_text_to_image(see, encode, ["left"] * 800, "right", noise(800, 1, 1, 2), 1.5, steps).view(-1, 2)
    axis.plot(got[:, 0], got[:, 1], ".", color=BLUE, markersize=1.5)
    turn = torch.linspace(0, 2 * math.pi, 60)
    for k, (x, y) in enumerate(CENTRES.tolist()):
        axis.plot(
            x + 2.45 * WIDTH * turn.cos(),
            y + 2.45 * WIDTH * turn.sin(),
            color=ORANGE if k == 1 else GREY,
            linewidth=1.5,
        )
    axis.set(aspect="equal", xticks=[], yticks=[], xlim=(-4.2, 3.4), ylim=(-3.2, 3.2))
    axis.set_title("prompt left, negative prompt right")


def fix_decode(ex, right, axis):
    mix = noise(3, 4, seed=3)
    back = torch.linalg.pinv(mix)
    z = 5 * torch.einsum("cr,brhw->bchw", back, torch.atanh(evening(96).clamp(-0.95, 0.95)))

    def decode(latents: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("rc,bchw->brhw", mix, latents))

    axis.imshow((ex.fix_decode(z, decode, 5.0)[0].permute(1, 2, 0) + 1) / 2, interpolation="nearest")
    axis.axis("off")
    axis.set_title("full contrast")


def sample_prior(ex, right, axis):
    rng = torch.Generator().manual_seed(0)
    codes, held_out = public.arcs(2000, rng, 0.0), public.arcs(2000, rng, 0.0)
    got = ex.sample_prior(codes, 2000, torch.Generator().manual_seed(1))
    copied = (torch.cdist(got, codes).min(1).values < 0.01).float().mean()
    axis.plot(codes[:, 0], codes[:, 1], ",", color=GREY)
    axis.plot(got[:, 0], got[:, 1], ",", color=BLUE)
    axis.set(aspect="equal", xticks=[], yticks=[], xlim=(-3.2, 3.2), ylim=(-2.6, 3.2))
    distance = public.energy_distance(got, held_out)
    axis.set_title(f"distance {distance:.3f} (goal {public.DISTANCE}), copies {copied:.2f} (goal {public.COPIES:.2f})")
