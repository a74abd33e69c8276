"""What chapter 4's exercises look like when they are right: a panel for each, drawn by common.grade.show_exercises.

Each panel is a function of (ex, right, axis): the answers to show, the solutions, and where to draw. No network is
needed: latents are drawn from Gaussians, pictures are painted by formulas, and in the last panel latents are points in
the plane, in five blobs, of which a caption names some; their ideal denoiser is known exactly.
"""

import math

import torch
from torch import Tensor

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
    axis.set_title("through the circles: means over samples")
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
    axis.set_title("95 of 100 latents lie in their image's ellipse")


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
    axis.set(yticks=[], ylim=(0, 0.68), title="scaled, they are as wide as the noise will be")
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
    axis.set_title("digits as colours: the first three keys are alike")


def img2img_start(ex, right, axis):
    z, alpha_sigma, N = 0.75 * evening(64), levels(20), 20
    eps = noise(*z.shape)
    for place, strength in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        first, x = ex.img2img_start(z, eps, strength, *alpha_sigma)
        row, column = divmod(place, 3)
        left, top = 70 * column, -84 * row
        shown = ((x[0] + 1.2) / 2.4).clamp(0, 1).permute(1, 2, 0)
        axis.imshow(shown, extent=(left, left + 64, top - 64, top), interpolation="nearest")
        axis.text(left + 32, top - 66, f"{strength:g}: {N - first} steps", ha="center", va="top", fontsize=8)
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
    axis.set_title("a white sun, with no dark or gaudy spots in it")


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
    axis.set_title("left and low-left were asked for")
