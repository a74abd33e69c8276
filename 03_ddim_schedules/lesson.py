# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Chapter 3 · Schedules and samplers: stop believing, start measuring
#
# "Use the cosine schedule." "DDIM needs fifty steps." "DDPM with fewer than a thousand steps stays noisy." Every field has its
# lore, and a part of it is wrong. In this chapter we take the machine of chapter 1 apart, derive what can be derived, and measure
# the rest.
#
# You will see that the many names of this field (DDPM, DDIM, EDM, rectified flow, Heun, DPM-Solver++) are a small vocabulary:
#
# 1. **two curves**: a noise schedule (噪声调度);
# 2. **one mixture**: what the network predicts (预测目标);
# 3. **take apart, remix**: DDIM in five lines, derived;
# 4. fewer steps done right, and a famous mistake;
# 5. better steps: Heun and DPM-Solver++;
# 6. fresh noise on the way: what it costs, and what it gives;
# 7. losses (损失) and weights (权重);
# 8. from one digit to another: **interpolation** (插值), and why it jumps;
# 9. from a digit to its noise: **inversion** (反演);
# 10. the laboratory, and the lore, measured.
#
# You should have read chapter 1. Everything runs on a laptop's CPU with no download, in two or three minutes.

# %%
from common.grade.chapter import (
    open_chapter,  # no module named common? Select the kernel in which the course is installed (README.md)
)

CHAPTER = open_chapter(
    "03_ddim_schedules"
)  # this folder: from here on its files can be imported, wherever the kernel was started

# %%
import math
import tempfile
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from common import viz
from common.data import load
from common.diffusion.denoiser import PREDICTIONS, Denoiser, Prediction, mixture, target, to_x0_eps
from common.diffusion.losses import ERRORS, loss_weight
from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import SAMPLERS
from common.diffusion.schedules import NoiseLevel, NoiseLevels, add_noise, make_schedule
from common.evaluate.evaluator import Evaluator
from common.models.model_folder import load_model
from common.random import Noise
from ddim_schedules import (
    activation_memory,  # this chapter's files: what a training step saves,
    interpolation,  # interpolation between images,
    inversion,  # the way back from an image to its noise,
    plots,  # tables of studies,
    solvers,  # the samplers, longhand,
)
from ddim_schedules.experiment import Experiment, SamplingSettings, TrainingSettings, grid, read_axes  # and studies
from ddim_schedules.runner import Runner

plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def show_images(images, columns, across=(), down=(), cell=0.75):
    """A grid of images (N, 1, H, W) in [-1, 1], with words above the columns and beside the rows."""
    picture, pitch = viz.grid(images, columns), images.shape[-1] + 2
    rows = len(images) // columns
    plt.figure(figsize=(cell * columns + 1.2 * bool(down), cell * rows + 0.3), layout="constrained")
    plt.imshow(picture, interpolation="nearest")
    plt.xticks([pitch * (i + 0.5) for i in range(len(across))], across)
    plt.yticks([pitch * (i + 0.5) for i in range(len(down))], down)
    plt.gca().tick_params(length=0, labeltop=True, labelbottom=False)
    plt.gca().spines[:].set_visible(False)
    plt.show()


def rms(x):
    """Root mean square (均方根): the size of a typical pixel."""
    return float(x.square().mean().sqrt())


digits, unseen = load("digits", size=16), load("digits", size=16, split="test")
digit = digits.batch(torch.tensor([0]))["image"]  # (1, 1, 16, 16), in [-1, 1]: a zero that we shall often spoil

# %% [markdown]
# ## 1 · Two curves
#
# Chapter 1 mixed a clean image $x_0$ with noise $\varepsilon$ (each number of it normal, with variance 1):
#
# $$x_t = \alpha_t\, x_0 + \sigma_t\, \varepsilon$$
#
# A schedule is nothing but the two curves $\alpha_t$ (how much image) and $\sigma_t$ (how much noise), from $t = 0$ (clean) to
# $t = T$ (as good as pure noise). How noisy a picture *looks* depends on their ratio alone. So we also draw
#
# $$\lambda_t = \log \frac{\alpha_t}{\sigma_t}$$
#
# (lambda), half the logarithm of the **signal-to-noise ratio** (信噪比), $\mathrm{SNR} = \alpha_t^2 / \sigma_t^2$. Large $\lambda$:
# clean. $\lambda = 0$: as much image as noise. Negative: more noise than image.
#
# Here are seven schedules. *Linear* is DDPM's; *scaled linear* is Stable Diffusion's; *cosine* and *sigmoid* change more evenly;
# *zero SNR* is linear, bent so that it ends in nothing but noise (in a moment); *EDM* (Karras et al. 2022) leaves the image as it is and
# adds noise up to $\sigma = 80$; *flow* (rectified flow, 整流流) goes straight: $\alpha = 1 - t$, $\sigma = t$.

# %%
names = ["linear", "scaled_linear", "cosine", "sigmoid", "linear_zero_snr", "edm", "flow"]
schedules = {name: make_schedule(name) for name in names}
levels = {name: s.noise_levels(1000).levels for name, s in schedules.items()}  # 1,001 levels each, noisiest first
way = torch.linspace(1, 0, 1001)  # t / T of each
colour = {name: f"C{i}" for i, name in enumerate(names)}

_, (plane, curves, ratio) = plt.subplots(1, 3, figsize=(12, 3.7), layout="constrained")
for slope in (-1, 0, 1):
    plane.plot([0, 2 * math.exp(slope)], [0, 2], color="0.85", linewidth=0.8)
    plane.text(
        *{-1: (0.42, 1.13), 0: (0.77, 0.76), 1: (0.6, 0.14)}[slope], f"$\\lambda$ = {slope}", color="0.5", fontsize=8
    )
for name in ("cosine", "flow", "edm"):
    plane.plot(
        levels[name].alpha,
        levels[name].sigma,
        color=colour[name],
        label=name if name != "cosine" else "all the others",
    )
plane.set(
    xlim=(0, 1.2),
    ylim=(0, 1.2),
    xlabel="$\\alpha$ (image)",
    ylabel="$\\sigma$ (noise)",
    aspect="equal",
    title="the road from image to noise",
)
plane.legend(loc="lower left", fontsize=8)
for name in ("linear", "scaled_linear", "cosine", "flow"):
    curves.plot(way, levels[name].alpha, color=colour[name], label=name)
    curves.plot(way, levels[name].sigma, color=colour[name], linestyle="--")
curves.set(xlabel="t / T", title="$\\alpha$ (solid) and $\\sigma$ (dashed)")
curves.legend(loc="center right", fontsize=8)
for name in names:
    ratio.plot(
        way,
        (levels[name].alpha / levels[name].sigma).log(),
        color=colour[name],
        label=name,
        linestyle="--" if "zero" in name else "-",
    )
ratio.set(xlabel="t / T", ylim=(-9, 9), title="$\\lambda$: half the log-SNR")
ratio.legend(fontsize=8, ncols=2)
plt.show()

# %% [markdown]
# * **Left**, every level is a point $(\alpha, \sigma)$, and a schedule is a road from $(1, 0)$, the clean image. Most schedules
#   walk on the same quarter of a circle, because they keep $\alpha^2 + \sigma^2 = 1$ ("variance preserving", 方差保持). Flow takes the
#   straight line; EDM goes straight up, and far out of the picture. Grey: lines of equal $\lambda$.
# * **Middle and right**, how *fast* they walk. In the middle of the way, linear has much less image left than cosine has.
#
# The three roads are more alike than they look. Points on one grey line show the same picture, only brighter or darker: divide by
# $\sqrt{\alpha^2 + \sigma^2}$, and all of them lie on the circle. We check it with one digit and one noise, at $\lambda = -0.5$:

# %%
eps = torch.randn(digit.shape, generator=torch.Generator().manual_seed(5))
alike = []
for s in schedules.values():
    level = s.at_lam(-0.5)
    alike.append(add_noise(digit, eps, level) / math.hypot(level.alpha, level.sigma))
print(f"largest difference between seven schedules at equal SNR: {max((x - alike[0]).abs().max() for x in alike):.1e}")

# %% [markdown]
# So $t$ is only a name for a level, and a schedule decides just two things: **how often training practises each SNR**, and **where a
# sampler makes its stops**. Here is the first: the levels of 100,000 training images, counted by $\lambda$.

# %%
u = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:-1]
plt.figure(figsize=(7, 2.5), layout="constrained")
for name in names:
    level = schedules[name].sample_levels(u)
    share, edges = np.histogram((level.alpha / level.sigma).log().clamp(-12, 12), bins=60, range=(-8, 8))
    plt.plot(
        (edges[1:] + edges[:-1]) / 2,
        share / len(u) / (edges[1] - edges[0]),
        color=colour[name],
        label=name,
        linestyle="--" if "zero" in name else "-",
    )
plt.gca().set(xlabel="$\\lambda$   (much noise … little noise)", ylabel="density", xlim=(-7, 7))
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# Linear spreads its practice far into the noise; scaled linear stops early; cosine and sigmoid are symmetric around $\lambda = 0$;
# EDM and flow draw their levels from a bell, so that the extremes are rare. And the peaks are not at the same place: EDM practises
# at less noise than the others do.
#
# And so it looks. One digit, one noise, the same $t$:

# %%
moments = [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
rows = ["linear", "scaled_linear", "cosine", "sigmoid"]
pictures = [add_noise(digit, eps, schedules[name].at(torch.tensor(t))) for name in rows for t in moments]
show_images(torch.cat(pictures), len(moments), across=moments, down=rows)
for name in rows:
    print(f"{name:14} as much image as noise at t = {int((schedules[name].alpha > schedules[name].sigma).sum()):4}")

# %% [markdown]
# ### Is there anything left at the end?
#
# Sampling begins with *pure* noise. So training should end there: $\alpha_T = 0$, a signal-to-noise ratio of zero. Linear and scaled linear
# stop a little short of it. How short? In one pixel nobody could see it. But a picture has many pixels, and what they share, their
# brightness (亮度), survives when noise is averaged away. We noise one digit of $512 \times 512$ pixels up to $t = T$ (upper
# row), and look at the averages of $64 \times 64$ pixels (lower row; the rightmost picture is what there was to find).

# %%
large = load("digits", size=512).batch(torch.tensor([0]))["image"]
eps = torch.randn(large.shape, generator=torch.Generator().manual_seed(0))
rows = ["linear", "scaled_linear", "scaled_linear_zero_snr"]
ends = [make_schedule(name).at(torch.tensor(1000)) for name in rows]
seen = {
    f"{name}\n$\\alpha_T$ = {end.alpha:.4f}": add_noise(large, eps, end) for name, end in zip(rows, ends, strict=True)
} | {"the image": large}
_, axes = plt.subplots(2, 4, figsize=(8, 4.2), layout="constrained")
averages = [torch.nn.functional.avg_pool2d(picture, 64)[0, 0] for picture in seen.values()]  # (8, 8) each
for (name, picture), average, (above, below) in zip(seen.items(), averages, axes.T, strict=True):
    above.imshow(picture[0, 0, ::4, ::4], cmap="gray")
    below.imshow(average, cmap="gray")
    above.set_title(name, fontsize=9)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
plt.show()
for name, average in zip(rows, averages, strict=False):
    print(
        f"{name:24} correlation of the averages with those of the image {np.corrcoef(average.flatten(), averages[-1].flatten())[0, 1]:+.2f}"
    )

# %% [markdown]
# There it is. Under scaled linear, the schedule of Stable Diffusion, "pure noise" still shows the digit to anyone who
# averages, and a network can. In training it always knew how bright the picture will be; in sampling it is given noise without any
# such hint, and so it tends to medium brightness. Let us measure the leak: the correlation (相关系数) between the
# brightness of the image and that of its noisy version at $t = T$, for 1,498 digits, enlarged to three sizes. Theory has a formula
# for it, with $s$ the deviation of the brightness between images and $N$ the number of pixels:
# $r = \alpha s / \sqrt{\alpha^2 s^2 + \sigma^2 / N}$.

# %%
print(f"{'correlation of brightness at t = T':38}" + "".join(f"{f'{size} x {size}':>20}" for size in (16, 64, 128)))
for name in ("linear", "scaled_linear", "scaled_linear_zero_snr"):
    end, found = make_schedule(name).at(torch.tensor(1000)), []
    for size in (16, 64, 128):
        x0 = load("digits", size=size).batch(torch.arange(1498))["image"]
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(size))
        bright, s = x0.mean((1, 2, 3)), x0.mean((1, 2, 3)).std()
        r = np.corrcoef(bright, add_noise(x0, eps, end).mean((1, 2, 3)))[0, 1]
        theory = end.alpha * s / (end.alpha**2 * s**2 + end.sigma**2 / size**2).sqrt()
        found.append(f"{r:.2f} (theory {theory:.2f})")
    print(f"{name:38}" + "".join(f"{text:>20}" for text in found))

# %% [markdown]
# (1,498 digits know a correlation to about ± 0.03.) The leak grows with the size of the picture: a small thing for our 16 pixels, a
# large one for photographs. If brightness is normally distributed, the samples' brightness then varies only $\sqrt{1 - r^2}$ times
# as much as it should. **Zero terminal SNR** ([Lin et al. 2023](https://arxiv.org/abs/2305.08891)) shifts and stretches the curve
# until $\alpha_T = 0$, and the leak is gone. It has a price, which we come to now: at $\alpha_T = 0$ the network must not be asked
# for $\varepsilon$.

# %% [markdown]
# ## 2 · One mixture
#
# What shall the network say about $x_t$? The noise, the image, something between? All answers in use are one thing, a mixture
#
# $$y = a\,x_0 + b\,\varepsilon$$
#
# | the network predicts | $a$ | $b$ | who |
# |---|---|---|---|
# | `eps`, the noise | $0$ | $1$ | DDPM |
# | `x0`, the image | $1$ | $0$ | |
# | `v`, the velocity (速度) on the circle | $-\sigma$ | $\alpha$ | Salimans & Ho 2022 |
# | `flow`, the velocity on the straight road | $-1$ | $1$ | rectified flow, Stable Diffusion 3, Flux |
# | `edm` | $\sigma / (\sigma_d\, n)$ | $-\sigma_d / n$ | EDM; $\sigma_d = 0.5$ is the deviation of the data, $n = \sqrt{\sigma^2 + \sigma_d^2}$ |
#
# Now think of $x_0$ and $\varepsilon$ as the two axes of a plane. The noisy picture is the arrow $(\alpha, \sigma)$, the answer is the
# arrow $(a, b)$. If the two arrows are not parallel, they span the plane, and we can solve for $x_0$ and for $\varepsilon$: two equations,
# two unknowns. [denoiser.py](../common/diffusion/denoiser.py) calls this `unmix`, and it is all that a sampler ever needs from a network.


# %%
def road(prediction):
    """The schedule that a prediction is used with."""
    return schedules[prediction if prediction in ("edm", "flow") else "cosine"]


def arrow(axis, a, b, name, color, far=1.17, **style):
    """The direction of a mixture, as an arrow of length 1."""
    a, b = a / math.hypot(a, b), b / math.hypot(a, b)
    axis.annotate("", (a, b), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color} | style)
    axis.text(far * a, far * b, name, color=color, ha="center", va="center")


_, axes = plt.subplots(1, 3, figsize=(10.5, 3.7), layout="constrained")
turn = np.linspace(0, 2 * np.pi, 200)
for axis, (title, lam) in zip(
    axes, {"little noise": 1.2, "half and half": 0.0, "much noise": -1.2}.items(), strict=True
):
    axis.plot(np.cos(turn), np.sin(turn), color="0.9")
    level = schedules["cosine"].at_lam(lam)
    arrow(axis, level.alpha, level.sigma, "$x_t$", "black", far=1.22, linewidth=2.5)
    for i, name in enumerate(PREDICTIONS):
        arrow(
            axis, *mixture(name, road(name).at_lam(lam)), name, f"C{i}", far={"flow": 1.4, "edm": 1.42}.get(name, 1.2)
        )
    axis.set(
        title=f"{title}, $\\lambda$ = {lam}",
        xlabel="amount of $x_0$",
        aspect="equal",
        xlim=(-1.6, 1.7),
        ylim=(-1.3, 1.4),
        xticks=[-1, 0, 1],
        yticks=[-1, 0, 1],
    )
axes[0].set_ylabel("amount of $\\varepsilon$")
plt.show()

# %% [markdown]
# Follow the black arrow, the noisy picture, as it turns from the image (right) to the noise (up). `eps` and `x0` stand still, so
# the black arrow comes to lie on `x0` at little noise and on `eps` at much noise: there the answer repeats what is seen already,
# and the other ingredient cannot be found any more. `v` turns along, always at a right angle: never in danger. `flow` and `edm`
# keep away from the black arrow, too. (`edm` looks the other way, which changes nothing: with $\sigma_d = 1$ it would be exactly
# $-v$. All arrows are drawn with length 1, each on the road it is used on.)
#
# First, that it works: from every answer the same two ingredients come back.

# %%
x0 = unseen.batch(torch.arange(8))["image"]
eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
print("prediction   error of x0   error of eps   (largest, over 8 digits, levels from lambda = 2 down to -2)")
for name in PREDICTIONS:
    wrong = torch.zeros(2)
    for lam in (2.0, 0.0, -2.0):
        level = schedules["cosine"].at_lam(lam)
        x, y = add_noise(x0, eps, level), target(name, x0, eps, level)
        found_x0, found_eps = to_x0_eps(name, y, x, level)
        wrong = torch.maximum(wrong, torch.stack([(found_x0 - x0).abs().max(), (found_eps - eps).abs().max()]))
    print(f"{name:10} {wrong[0]:13.1e} {wrong[1]:14.1e}")

# %% [markdown]
# Now the danger. No answer is exact. If $y$ is wrong by a small $\delta$, then $x_0$ is wrong by some multiple of $\delta$, and
# $\varepsilon$ by some other one. Solving the two equations, with $d = \alpha b - \sigma a$ (the area between the two arrows), the
# factors are $|\sigma / d|$ and $|\alpha / d|$:

# %%
lams = torch.linspace(-7, 7, 200).tolist()
_, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
for i, name in enumerate(PREDICTIONS):
    at = [road(name).at_lam(lam) for lam in lams]
    d = [level.alpha * b - level.sigma * a for level in at for a, b in [mixture(name, level)]]
    style = {"color": f"C{i}", "linestyle": "--" if name == "flow" else "-"}
    axes[0].plot(lams, [abs(level.sigma / area) for level, area in zip(at, d, strict=True)], label=name, **style)
    axes[1].plot(lams, [abs(level.alpha / area) for level, area in zip(at, d, strict=True)], label=name, **style)
for axis, what in zip(axes, ("x_0", "\\varepsilon"), strict=True):
    axis.set(
        yscale="log",
        ylim=(1e-3, 1e3),
        xlabel="$\\lambda$   (much noise … little noise)",
        title=f"error of ${what}$ for an error of 1 in the answer",
    )
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# A network that says `eps` divides by $\alpha$ to find the image: at much noise, every mistake is multiplied by a thousand. One
# that says `x0` divides by $\sigma$ to find the noise: the same at little noise. `v`, `flow` and `edm` blow up neither: their
# factors stay below 1.
#
# How bad is a factor of a thousand? We take the *true* answer, and only round it to the 8 binary digits of bfloat16, the
# number format (数据格式) in which large networks are trained. Then we look for the image.

# %%
moments, rows = [500, 900, 980, 990, 995, 998, 1000], ["eps", "x0", "v", "flow", "edm"]
pictures, lost = [], []
for name in rows:
    for t in moments:
        level = NoiseLevel(*(float(part) for part in schedules["cosine"].at(torch.tensor(t))))
        x, y = add_noise(digit, eps[:1], level), target(name, digit, eps[:1], level)
        pictures.append(to_x0_eps(name, y.bfloat16().float(), x, level)[0])
        lost.append(rms(pictures[-1] - digit))
show_images(torch.cat(pictures), len(moments), across=[f"t = {t}" for t in moments], down=rows, cell=0.8)
print("error of x0 (rms) at t =  " + "".join(f"{t:>10}" for t in moments))
for name, errors in zip(rows, np.array(lost).reshape(len(rows), -1), strict=True):
    print(f"{name:26}" + "".join(f"{error:10.4f}" for error in errors))

# %% [markdown]
# With `eps`, the error grows towards the end, and at $t = T$ nothing is left of the image, though every answer was right to two or
# three decimal digits. This is the price of zero terminal SNR: it needs `v` or one of its relatives. It is also one reason why
# networks that say `eps` tend to drift in brightness when they are not trained to the end: at high noise a tiny constant error in
# $\varepsilon$ is a large one in the picture.

# %% [markdown]
# ## 3 · DDIM: take apart, remix
#
# DDIM ([Song et al. 2021](https://arxiv.org/abs/2010.02502)) is often shown as a page of algebra. Here it is in five small steps.
#
# 1. **What training knows.** Its loss only ever saw one level at a time, $x_t = \alpha_t x_0 + \sigma_t \varepsilon$. Nothing in it
#    says how two neighbouring levels belong together. So the network serves *every* process whose single levels look like this.
# 2. **Take apart.** Ask the network, and unmix: $x_t \to (\hat x_0, \hat\varepsilon)$. (A hat marks a guess.)
# 3. **Remix.** We want a picture at an earlier, less noisy level $s$. By 1, it must be $\alpha_s$ times the image plus $\sigma_s$ times
#    *some* noise. The noise that we have will do: $x_s = \alpha_s \hat x_0 + \sigma_s \hat\varepsilon$. That is DDIM, with no dice at all.
# 4. **Or with fresh noise.** A part of the noise may be replaced by fresh noise $z$. Variances (方差) of independent noises add up,
#    so with any $f$ between $0$ and $\sigma_s$
#
#    $$x_s = \alpha_s\,\hat x_0 + \sqrt{\sigma_s^2 - f^2}\;\hat\varepsilon + f z$$
#
#    has noise of variance $(\sigma_s^2 - f^2) + f^2 = \sigma_s^2$ again: the right level, whatever $f$ is.
# 5. **How much is DDPM's?** The way up from $s$ to $t$ adds noise of variance $\sigma_t^2 - (\alpha_t / \alpha_s)^2 \sigma_s^2$
#    (what there is at $t$, less what was there already). On the way back DDPM throws fresh dice for this noise, as far as $x_t$
#    leaves them open: the share $\sigma_s^2 / \sigma_t^2$ of it. So
#
#    $$f = \eta\;\frac{\sigma_s}{\sigma_t} \sqrt{\sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2}\,\sigma_s^2}$$
#
#    with $\eta = 1$ (eta) is DDPM, with $\eta = 0$ DDIM, and between the two lies everything else.
#
# And nothing said that $s$ is $t - 1$. Steps may be skipped. In code (`now` is level $t$, `then` is level $s$):


# %%
def remix(x0, eps, now, then, eta, z):
    """Steps 3 to 5: a picture at the level `then`."""
    added = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2
    fresh = eta * then.sigma / now.sigma * math.sqrt(added)
    return then.alpha * x0 + math.sqrt(then.sigma**2 - fresh**2) * eps + fresh * z


@torch.no_grad()
def my_ddim(x, path, eta=0.0, noise=Noise(0)):
    for k, (now, then) in enumerate(pairwise(path), start=1):
        x0, eps = denoise(x, now)[:2]  # take apart
        x = remix(x0, eps, now, then, eta, noise(k, x))  # remix, with a little less noise
    return x


# %% [markdown]
# First: is step 4 true? We let $x_0$ and $\varepsilon$ be the true ones, go from $t = 600$ to $s = 300$ with 4,000 different
# noises, and measure how much image and how much noise there is then.

# %%
now, then = (NoiseLevel(*(float(part) for part in schedules["cosine"].at(torch.tensor(t)))) for t in (600, 300))
g = torch.Generator().manual_seed(0)
eps, z = torch.randn(2, 4000, 1, 16, 16, generator=g)
print(f"wanted at t = 300: image {then.alpha:.4f}, noise {then.sigma:.4f}")
for eta in (0.0, 0.5, 1.0):
    x = remix(digit, eps, now, then, eta, z)
    print(
        f"  found, eta = {eta}: image {(x.mean(0) * digit[0]).sum() / digit.square().sum():.4f}, noise {x.std(0).mean():.4f}"
    )

# %% [markdown]
# The level is right for every $\eta$. Now the network: a small U-Net trained on the embedded digits
# ([pretrained/](pretrained)), which predicts `v` on the cosine schedule. And a check that our five lines are the DDIM of
# [solvers.py](ddim_schedules/solvers.py), written as in the paper, and the one of [samplers.py](../common/diffusion/samplers.py), which the whole course uses.

# %%
net, schedule, prediction, clip_x0 = load_model(CHAPTER / "pretrained")
denoise = Denoiser(net, prediction, clip_x0)  # (x, level) -> Prediction: its estimates of x0 and eps
print(f"{sum(p.numel() for p in net.parameters()):,} weights; predicts {prediction}, schedule {schedule.name}")


def eps_model(x, t):
    """The same network in the paper's clothes: x and t, counted from 0 -> the noise."""
    level = schedule.at(t[:1] + 1)
    return denoise(x, NoiseLevel(*(float(part) for part in level))).eps


def noise_for(n, seed=0):
    """Pure noise to begin with. (n, 1, 16, 16)"""
    return Noise(seed)(0, torch.empty(n, 1, 16, 16))


def last(steps):
    """The end of a generator."""
    *_, end = steps
    return end


x, path, tau = noise_for(4), schedule.noise_levels(10), solvers.timesteps(1000, 10)
for eta in (0.0, 1.0):
    mine = my_ddim(x, path, eta)
    paper = last(solvers.ddim(eps_model, x, schedule.alpha_bar, tau, Noise(0), eta))
    course = last(SAMPLERS["ddim"](denoise, x, path, eta, Noise(0))).x
    print(
        f"eta = {eta}: largest difference to the paper's {(mine - paper).abs().max():.1e}, to the course's {(mine - course).abs().max():.1e}"
    )

# %% [markdown]
# They agree up to rounding. (The paper's form divides by $\alpha_T$ to find $x_0$, and loses some digits by it: the danger of section 2.)
#
# What does $\eta$ do? Each column below starts from the same noise.

# %%
x = noise_for(10, seed=3)
rows = {
    "$\\eta$ = 0, 20 steps": my_ddim(x, schedule.noise_levels(20)),
    "$\\eta$ = 0, 60 steps": my_ddim(x, schedule.noise_levels(60)),
    "$\\eta$ = 1, 60 steps": my_ddim(x, schedule.noise_levels(60), 1.0, Noise(1)),
    "$\\eta$ = 1, other dice": my_ddim(x, schedule.noise_levels(60), 1.0, Noise(2)),
}
show_images(torch.cat(list(rows.values())), 10, down=list(rows))
a, b, c, d = rows.values()
print(
    f"typical difference (rms of the pixels): eta = 0, 20 and 60 steps {rms(a - b):.2f};  eta = 0 and eta = 1 {rms(b - c):.2f};"
)
print(
    f"  eta = 1 with other dice {rms(c - d):.2f};  two digits that have nothing to do with each other {rms(b - b.roll(1, 0)):.2f}"
)

# %% [markdown]
# With $\eta = 0$ the start decides everything, and the number of steps only how well it is drawn: the first two rows show the same
# digits. With $\eta = 1$ the start says little: what the dice bring on the way makes another digit of it, as different as any two.
# Both are samples of the same quality, or nearly; the next section has numbers. That the start *is* the picture makes DDIM useful
# for more than speed. We use it in sections 8 and 9.

# %% [markdown]
# ## 4 · Fewer steps, done right, and a famous mistake
#
# The lore says: "DDPM needs its thousand steps. Give it fewer, and the picture stays noisy." This is claim 4 of our list, and many
# have *seen* it. What did they see?
#
# DDPM's step (chapter 1, section 6) takes away the noise that *one* step of the chain has added, $\beta_t$. Whoever wants 20 steps
# instead of 1,000 can visit only $t = 1000, 950, 900, \dots$ Between two visits lie 50 steps, and together they add much more
# noise:
#
# $$\beta_{\text{long step}} = 1 - \frac{\bar\alpha_t}{\bar\alpha_s} \qquad\text{and not}\qquad \beta_t = 1 - \frac{\bar\alpha_t}{\bar\alpha_{t-1}}$$
#
# ($\bar\alpha = \alpha^2$, the paper's letter.) Building the chain anew for the visited steps is called **respacing** (重新划分步长).
# Forget it, and each step takes away a fiftieth of the noise that should go. [solvers.py](ddim_schedules/solvers.py) has both, `ddpm_respaced` and
# `ddpm_naive`; they differ in one index.
#
# We draw 100 digits with 20 steps of each, and a few with more steps.

# %%
N = 100
evaluator = Evaluator(unseen, digits, 16, N)
x = noise_for(N, seed=7)


def drawn(solver, steps, n=N):
    """Every state of a solver. Each (n, 1, 16, 16)"""
    return list(solver(eps_model, x[:n], schedule.alpha_bar, solvers.timesteps(1000, steps), Noise(7)))


walks = {
    "DDIM, 20 steps": drawn(solvers.ddim, 20),
    "DDPM, 20 steps": drawn(solvers.ddpm_respaced, 20),
    "DDPM, 50 steps": drawn(solvers.ddpm_respaced, 50, n=10),
    "the mistake, 20": drawn(solvers.ddpm_naive, 20),
    "the mistake, 50": drawn(solvers.ddpm_naive, 50, n=10),
    "the mistake, 250": drawn(solvers.ddpm_naive, 250, n=10),
}
real = unseen.batch(torch.arange(N))["image"]
pictures = {"real": real} | {name: frames[-1] for name, frames in walks.items()}
show_images(torch.cat([images[:10] for images in pictures.values()]), 10, down=list(pictures))

# %% [markdown]
# And in numbers. The **Fréchet distance** (弗雷歇距离, chapter 1) compares the clouds of real and of drawn digits; its floor is what as
# many real digits get. The noise that is left in a picture can be estimated from how much each pixel differs from what its
# neighbours say ([Immerkær 1996](https://doi.org/10.1006/cviu.1996.0060)).

# %%
LAPLACE = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]).view(1, 1, 3, 3)


def noise_left(images):
    """Estimated deviation of the noise in images that are otherwise smooth."""
    return float(math.sqrt(math.pi / 2) / 6 * torch.nn.functional.conv2d(images, LAPLACE).abs().mean())


print(f"{'':18}{'noise left':>12}{'Fréchet distance':>20}")
for name, images in pictures.items():
    distance = ""
    if name == "real":
        distance = f"{evaluator.frechet_real.mean():.2f} ± {evaluator.frechet_real.std():.2f}  (the floor)"
    elif len(images) == N:
        report = evaluator(images)
        distance = f"{report.frechet:.2f} ± {report.frechet_sd:.2f}"
    print(f"{name:18}{noise_left(images):12.3f}{'':8}{distance}")

# %% [markdown]
# Done right, DDPM draws clean digits in 20 steps. With the mistake the pictures are noise, and still noisy after 250 steps; and
# whoever sees *that* concludes that DDPM needs its thousand. Where does the mistake lose its way? Watch the size of the pictures
# (rms of the pixels) on the way. The network is told a level at every step; a picture of that level has the size
# $\sqrt{\alpha^2\, m + \sigma^2}$, where $m$ is the mean square of a real pixel.

# %%
plt.figure(figsize=(6, 2.6), layout="constrained")
t = np.array(solvers.timesteps(1000, 50))
m = rms(real) ** 2
plt.plot(
    t,
    (schedule.alpha_bar[t] * m + 1 - schedule.alpha_bar[t]).sqrt(),
    color="0.7",
    linewidth=5,
    label="what the network expects",
)
for name in ("DDPM, 50 steps", "the mistake, 50"):
    plt.plot(t, [rms(x), *map(rms, walks[name])], label=name)
plt.gca().set(xlabel="t  (from right to left)", ylabel="size of a pixel", ylim=(0.5, None))
plt.legend()
plt.show()

# %% [markdown]
# The right chain (blue; ten digits, so it trembles) stays on the grey road. The mistake leaves it early: more noise is in the
# picture than the network is told, and at the end the excess is still there.

# %% [markdown]
# ## 5 · Better steps
#
# Without dice, a picture moves along a smooth road. If we make the steps of DDIM smaller and smaller, it becomes a differential
# equation (微分方程). From $x = \alpha x_0 + \sigma \varepsilon$, with both guesses taken from the network,
#
# $$dx = \hat x_0\, d\alpha + \hat\varepsilon\, d\sigma$$
#
# and DDIM is **Euler's method** (欧拉法) on it: look once, go straight. Halve the steps, and the error halves: it is of first order.
# Numerical mathematics has had better steps for more than a hundred years:
#
# * **Heun** (Karras et al. 2022): go there, look again, and take the mean of both looks. Second order, but two evaluations (函数求值)
#   of the network a step.
# * **DPM-Solver++(2M)** (Lu et al. 2022): *one* look a step; the second opinion is the last step's, extrapolated. It also solves
#   the part of the equation that is known exactly, so that only the change of $\hat x_0$ over $\lambda$ is left to approximate.
#
# To see the order one needs a problem whose answer is known. We take numbers instead of pictures: 30 % lie around $-0.8$, 70 %
# around $0.5$, each with deviation 0.2. For such a **mixture of Gaussians** (高斯混合) the perfect network is a formula. Noisy numbers
# are normal around $\alpha$ times each centre, so we know how likely each centre is, and what is to be expected of it.

# %%
CENTRES, SHARES, WIDTH = (
    torch.tensor([-0.8, 0.5], dtype=torch.float64),
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    0.2,
)


def centres_given(x, level):
    """How likely each centre is (N, 2), and where x0 is expected if it is the one (N, 2)."""
    variance = (level.alpha * WIDTH) ** 2 + level.sigma**2
    off = x[..., None] - level.alpha * CENTRES
    return (SHARES.log() - off**2 / (2 * variance)).softmax(-1), CENTRES + level.alpha * WIDTH**2 / variance * off


def ideal(x, level):
    """The perfect network: E[x0 | x]. (N,) -> (N,), (N,)"""
    likely, there = centres_given(x, level)
    x0 = (likely * there).sum(-1)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def even_levels(steps, first=-2.5, end=3.0):
    """Levels evenly spaced in lambda, on the cosine road; a little noise is left at the end."""
    levels = [schedule.at_lam(lam) for lam in np.linspace(first, end, steps + 1)]
    return NoiseLevels(
        NoiseLevel(*(torch.tensor(column, dtype=torch.float64) for column in zip(*levels, strict=True))), schedule
    )


solver = {"Euler = DDIM": ("ddim", 1), "Heun": ("heun", 2), "DPM-Solver++(2M)": ("dpmpp_2m", 1)}  # evaluations a step
x = torch.linspace(-2, 2, 15, dtype=torch.float64)
fine = [x, *(step.x for step in SAMPLERS["heun"](ideal, x, even_levels(1000)))]
counts, errors = [6, 12, 24, 48, 96, 192, 384], {}
for name, (method, looks) in solver.items():
    errors[name] = [
        float((last(SAMPLERS[method](ideal, x, even_levels(n // looks))).x - fine[-1]).abs().mean()) for n in counts
    ]

_, (roads, order) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
roads.plot(np.linspace(-2.5, 3, 1001), torch.stack(fine), color="0.85", linewidth=1)
roads.plot(np.linspace(-2.5, 3, 1001), torch.stack(fine)[:, [5, 8]], color="black", linewidth=1)
for i, (name, (method, looks)) in enumerate(solver.items()):
    steps = 6 // looks
    way = torch.stack([x, *(step.x for step in SAMPLERS[method](ideal, x, even_levels(steps)))])[:, [5, 8]]
    roads.plot(np.linspace(-2.5, 3, steps + 1), way, color=f"C{i}", marker="o", markersize=4, label=[name, None])
roads.set(xlabel="$\\lambda$   (from noise to data)", ylabel="x", title="six evaluations; black and grey: exact")
roads.legend(fontsize=8, loc="lower left")
for i, (name, error) in enumerate(errors.items()):
    slope = np.polyfit(np.log(counts[-3:]), np.log(error[-3:]), 1)[0]
    order.plot(counts, error, color=f"C{i}", marker="o", markersize=4, label=f"{name}: slope {slope:.2f}")
order.set(
    xscale="log",
    yscale="log",
    xlabel="evaluations of the network",
    ylabel="mean error at the end",
    xticks=counts,
    xticklabels=counts,
)
order.minorticks_off()
order.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Left**: the exact roads run together into the two centres, and somewhere between them they part. Euler's long straight steps leave
# the road where it bends. **Right**: twice the evaluations halve Euler's error (slope $-1$) and quarter that of the others (slope
# $-2$), and 2M gets there with the fewest evaluations. That is theory, and it holds.
#
# With *few* steps theory promises nothing. So: digits. All rows start from the same noise. The lowest is the road itself, walked in
# 60 steps of Heun; how far is each of the others from it?

# %%
x = noise_for(12, seed=11)
exact = last(SAMPLERS["heun"](denoise, x, schedule.noise_levels(60))).x
budget = {
    5: ("ddim:5", "heun:3", "dpmpp_2m:5"),
    10: ("ddim:10", "heun:5", "dpmpp_2m:10"),
    20: ("ddim:20", "heun:10", "dpmpp_2m:20"),
}
rows = {}
for text in (text for texts in budget.values() for text in texts):
    s = Sampler.parse(text)
    rows[f"{text} ({s.evaluations})"] = last(SAMPLERS[s.name](denoise, x, schedule.noise_levels(s.steps))).x
show_images(torch.cat([*rows.values(), exact]), 12, down=[*rows, "exact"], cell=0.62)
print("sampler (evaluations)   distance from the exact road's end (rms)")
for name, images in rows.items():
    print(f"{name:24}{rms(images - exact):8.3f}")

# %% [markdown]
# With five evaluations no row is right, and Heun, which can make only three steps of them, is worst. From ten on both methods of
# second order are ahead of DDIM. But look at the rows, not only at the numbers: all of them show good digits from ten evaluations
# on. Being far from the exact road's end is not being bad; it is only being elsewhere.

# %% [markdown]
# ## 6 · Fresh noise: what it costs, and what it gives
#
# Samplers with dice go by many names. Are they different?
#
# * **DDPM** is $\eta = 1$ in section 3.
# * **Euler ancestral** ("Euler a" in many programs) takes an Euler step to a level *below* the next one, and then adds the noise
#   that is missing.
# * **SDE** (随机微分方程, Euler–Maruyama): Song et al. 2021 wrote the limit of infinitely many steps as an equation with noise in it. It
#   is solved by taking drift and noise as constant over a step.

# %%
x, tau = noise_for(4), solvers.timesteps(1000, 10)
ends = {
    "our five lines, eta = 1": my_ddim(x, schedule.noise_levels(10), 1.0),
    "DDPM, respaced": last(solvers.ddpm_respaced(eps_model, x, schedule.alpha_bar, tau, Noise(0))),
    "Euler ancestral": last(solvers.euler_ancestral(eps_model, x, schedule.alpha_bar, tau, Noise(0))),
    "SDE": last(SAMPLERS["sde"](denoise, x, schedule.noise_levels(10), noise=Noise(0))).x,
}
for name, images in ends.items():
    print(f"{name:26} largest difference from the first {(images - ends['our five lines, eta = 1']).abs().max():.1e}")

# %% [markdown]
# The first three are one sampler under three names, up to rounding. The SDE is another, but not for long: as the steps get
# smaller, it becomes DDPM, too.
#
# What does the noise cost? Take the numbers of section 5 once more, where we know what should come out. We draw 8,000 of them with
# each sampler, sort them, and compare with the true distribution: by how much must a number be moved, on average, to make the two
# alike? (Wasserstein distance, 瓦瑟斯坦距离.)
#
# And what does it give? We spoil the network: where there is much noise ($\sigma > 0.8$), its guess of $x_0$ is always 0.3 too
# high. Real networks err, too.


# %%
def faulty(x, level):
    """The perfect network, but for an error at high noise."""
    x0 = ideal(x, level).x0 + 0.3 * (level.sigma > 0.8)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def quantiles(n=8000):
    """n numbers that lie just as the true distribution says. (n,)"""
    at = torch.linspace(-2, 2, 20_001, dtype=torch.float64)
    below = (SHARES * torch.special.ndtr((at[:, None] - CENTRES) / WIDTH)).sum(-1)
    return torch.from_numpy(np.interp((np.arange(n) + 0.5) / n, below, at))


truth = quantiles()
normal = torch.special.ndtri((torch.arange(8000, dtype=torch.float64) + 0.5) / 8000)  # the same for noise
normal = normal[torch.randperm(8000, generator=torch.Generator().manual_seed(0))]
counts = [5, 10, 20, 50, 100, 200]
_, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained", sharey=True)
for axis, net_of_1d, title in zip(
    axes, (ideal, faulty), ("a perfect network", "a network that errs at high noise"), strict=True
):
    for name in ("ddim", "dpmpp_2m", "ddpm", "sde"):
        options = {"noise": Noise(1)} if name in ("ddpm", "sde") else {}
        ends = [last(SAMPLERS[name](net_of_1d, normal, schedule.noise_levels(n), **options)).x for n in counts]
        axis.plot(
            counts,
            [(end.sort().values - truth).abs().mean() for end in ends],
            marker="o",
            markersize=4,
            label=name,
            linestyle="--" if options else "-",
        )
    axis.set(xscale="log", yscale="log", xlabel="steps", title=title, xticks=counts, xticklabels=counts)
    axis.minorticks_off()
axes[0].set_ylabel("distance from the truth")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# * **Left, the cost.** With a perfect network dice gain nothing: DDPM needs about twice as many steps as DDIM for the same
#   distance, the SDE about as many as DDIM, and 2M, from some twenty steps on, is far ahead of all.
# * **Right, the gain.** When the network errs, the samplers without dice (solid) stop getting better: they carry the early error to
#   the end, however many steps they take. Fresh noise *forgets*, in part: with enough steps the dashed lines come out at half of
#   it. (The SDE with few steps is lower still, but by luck: its own error points the other way.)
#
# So: few steps, no dice; many steps and an imperfect network, dice. And digits, from the same start:

# %%
x = noise_for(10, seed=5)
rows = {"DDPM, 20 steps": my_ddim(x, schedule.noise_levels(20), 1.0)}
rows |= {
    f"SDE, {n} steps": last(SAMPLERS["sde"](denoise, x, schedule.noise_levels(n), noise=Noise(0))).x for n in (20, 100)
}
show_images(torch.cat(list(rows.values())), 10, down=list(rows))
for name, images in rows.items():
    print(f"{name:16} noise left {noise_left(images):.3f}   (real digits {noise_left(real):.3f})")

# %% [markdown]
# With 20 steps the SDE leaves a visible rest of noise; DDPM, which knows more about each step than that drift and noise are
# constant, does not. With 100 the rest is nearly gone.

# %% [markdown]
# ## 7 · Losses and weights
#
# Training compares the answer $y$ with its target. How much a mistake costs is a choice: its square (**L2**), its size (**L1**), or
# **Huber**, a parabola for small mistakes and a straight line for large ones. And how much a *level* counts is another choice: a
# weight, as a function of the SNR.
#
# A weight alone says little, for an error in `eps` and an error in `x0` are not the same error. So we draw them all in one
# currency: what a squared error of $x_0$ costs at each level.

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(11, 3.3), layout="constrained")
e = torch.linspace(-0.5, 0.5, 201)
for name, error in ERRORS.items():
    left.plot(e, error(e, torch.zeros_like(e)), label=name)
left.set(xlabel="error of one pixel", title="what a mistake costs")
left.legend()
lams = np.linspace(-4, 4, 161)
for i, (weight, name) in enumerate(
    [("plain", "eps"), ("plain", "x0"), ("plain", "v"), ("p2", "eps"), ("min_snr", "eps")]
):
    cost = []
    for lam in lams.tolist():
        level = schedules["cosine"].at_lam(lam)
        level = NoiseLevel(level.time, torch.tensor(level.alpha), torch.tensor(level.sigma))
        a, b = mixture(name, level)
        cost.append(loss_weight(weight, name, level) * (a - b * level.alpha / level.sigma) ** 2)
    right.plot(
        lams,
        cost,
        color=f"C{i}",
        linestyle="-" if weight == "plain" else "--",
        label=f"plain, {name}" if weight == "plain" else weight,
    )
right.set(
    yscale="log",
    ylim=(1e-3, 1e3),
    xlabel="$\\lambda$   (much noise … little noise)",
    title="what a squared error of $x_0$ costs",
)
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Right**: with `eps` and no weight, an error of the image costs the SNR (a straight line here): many thousand times more at
# little noise than at much. With `x0` all levels are equal. `v` is the sum of both, SNR + 1. **P2** (Choi et al. 2022) and **min-SNR**
# (Hang et al. 2023) follow `eps` where there is much noise and flatten where there is little, P2 at 1 and min-SNR at 5: clean
# levels, whose details hardly matter, shall not drown the others. So a weight is the same kind of choice as the prediction, and as
# the schedule (section 1: how often is a level practised?). All three say one thing: which levels count.
#
# **Left**: L1 and L2 differ in more than sharpness. What answer is best for each? If a pixel may be black or white, the best answer
# for L2 is the *mean*, grey; for L1 it is the *median* (中位数), the likelier of the two. Chapter 1 said that a sampler needs the
# mean. What if it gets the median? We let a perfect network of each kind draw the numbers of section 5, of which 30 % should lie
# around $-0.8$.


# %%
def ideal_for_l1(x, level):
    """The perfect network, had it been trained with L1: the median of x0, given x, found by bisection (二分法)."""
    likely, there = centres_given(x, level)
    sd = WIDTH * level.sigma / math.hypot(level.alpha * WIDTH, level.sigma)
    low, high = there.min(-1).values - 6 * sd, there.max(-1).values + 6 * sd
    for _ in range(30):
        x0 = (low + high) / 2
        below = (likely * torch.special.ndtr((x0[:, None] - there) / sd)).sum(-1)
        low, high = torch.where(below < 0.5, x0, low), torch.where(below < 0.5, high, x0)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


print("                      lie around -0.8   deviation around 0.5")
print(f"{'the truth':22}{float(SHARES[0]):15.3f} {WIDTH:22.3f}")
for name, perfect in {"L2": ideal, "L1": ideal_for_l1}.items():
    for sampler in ("ddim", "ddpm"):
        options = {"noise": Noise(1)} if sampler == "ddpm" else {}
        end = last(SAMPLERS[sampler](perfect, normal[:4000], schedule.noise_levels(100), **options)).x
        print(
            f"{f'{name}, {sampler}:100':22}{float((end < -0.15).double().mean()):15.3f} {float(end[end > -0.15].std()):22.3f}"
        )

# %% [markdown]
# The L1 network prefers what is frequent: the small group loses members, and both groups get narrower. So the deeper trouble with
# L1 is not a question of sharp or smooth. It draws *another distribution*, poorer than the data. (Whether one *sees* it in digits
# is claim 3, in section 10.)
#
# **Learned variance.** DDPM's fresh noise has a fixed size. A network with twice the output channels can learn it, pixel by pixel;
# a loss for it is the **variational bound** (变分下界, VLB): how many bits the true step costs to whom believes the network's step
# ([vlb.py](../common/diffusion/vlb.py)). The lore says (claim 11) that this term costs a third of the batch size in memory. Memory in
# training is what autograd (自动求导) keeps for the backward pass, and that can be counted, byte for byte:

# %%
plain, hybrid, twice = (
    activation_memory.saved_bytes(loss, size=16, channels=(24, 48), batch_size=16) for loss in activation_memory.LOSSES
)
print(
    f"kept for 16 images: without the bound {plain / 1e6:.1f} MB, with it {hybrid / 1e6:.1f} MB ({hybrid / plain - 1:+.1%}), "
    f"if it asks the network again {twice / 1e6:.1f} MB (x {twice / plain:.2f})"
)

# %% [markdown]
# The bound reuses the answer that is there already and costs next to nothing. Only an implementation that asks the network a second
# time pays, and then it pays double, not a third.

# %% [markdown]
# ## 8 · From one digit to another
#
# Take two real digits, $a$ and $b$, and walk from one to the other, so that every picture on the way is a digit, too. Mixing the
# pixels gives two ghosts on top of each other. So one mixes in the space of noise, and draws from there. Two ways (and some
# relatives, in [interpolation.py](ddim_schedules/interpolation.py)):
#
# * **DDPM latents** (潜变量; section 4.3 of the DDPM paper). Noise both up to a level $t$, mix the two noisy pictures linearly, and
#   walk back with DDPM. $t / T$ is called the *strength* (强度).
# * **DDIM latents.** Walk both *backwards* along DDIM's road up to pure noise (section 9 says how), mix there, and draw with DDIM.
#
# Pure noise must be mixed with care. Taken as one arrow, the 256 numbers of a noise have nearly always the length
# $\sqrt{256}$, so noises lie on a sphere. The straight line between two of them cuts through its inside; **slerp** (球面线性插值) follows the sphere instead.

# %%
a, b = noise_for(200, seed=1), noise_for(200, seed=2)
print(
    f"deviation of a noise {a.std():.2f}; half-way on the line {interpolation.lerp(a, b, 0.5).std():.2f}; half-way on the sphere {solvers.slerp(a, b, 0.5).std():.2f}"
)

# %% [markdown]
# Claim 7 of the lore: *interpolation jumps abruptly in the middle, instead of changing gradually.* We let 16 pairs of digits walk
# in five ways, eleven frames each (with the same dice for all frames of a walk). The strip shows one pair; the first and the last
# column are the real digits. The plot shows how much the picture changes from frame to frame, to the eye of the evaluator's
# network.

# %%
free = Denoiser(net, prediction, clip_x0=False)  # to walk backwards: what is clipped cannot be brought back
labels = unseen.batch(torch.arange(len(unseen)))["label"]
drawn_pairs = np.random.default_rng(0).integers(0, len(unseen), (40, 2)).tolist()
pairs = [(3, 8), *((i, j) for i, j in drawn_pairs if labels[i] != labels[j])][:16]
ways = {  # name: (method, strength)
    "DDPM, strength 0.3": ("ddpm", 0.3),
    "DDPM, strength 0.6": ("ddpm", 0.6),
    "DDPM, 0.6, shared": ("ddpm_shared", 0.6),
    "DDPM, strength 0.9": ("ddpm", 0.9),
    "DDIM, slerp": ("ddim_slerp", 1.0),
}
path, shares, strips, changes, off = schedule.noise_levels(12), np.linspace(0, 1, 11).tolist(), [], {}, {}
for name, (method, strength) in ways.items():
    changes[name], off[name] = [], []
    for seed, pair in enumerate(pairs):
        a, b = unseen.batch(torch.tensor(pair))["image"].split(1)
        walk = interpolation.interpolate(method, denoise, free, path, a, b, shares, strength, seed)  # (11, 1, 16, 16)
        changes[name].append(interpolation.frame_changes(walk))
        off[name].append((rms(walk[:1] - a) + rms(walk[-1:] - b)) / 2)
        strips += [a, walk, b] if seed == 0 else []
show_images(torch.cat(strips), 13, across=["$a$", *(f"{w:.1f}" for w in shares), "$b$"], down=list(ways))

plt.figure(figsize=(7, 2.8), layout="constrained")
for name, each in changes.items():
    plt.plot(
        np.arange(10) / 10 + 0.05,
        torch.stack(each).mean(0),
        marker="o",
        markersize=3,
        label=name,
        linestyle="--" if "shared" in name else "-",
    )
plt.gca().set(xlabel="share of $b$", ylabel="change (mean of 16 pairs)", ylim=(0, None))
plt.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
print(f"{'':20}{'largest change / mean change':>30}{'ends off by (rms)':>20}")
for name, each in changes.items():
    jump = torch.tensor([interpolation.peak_to_mean(change) for change in each])
    print(f"{name:20}{f'{jump.mean():.1f} ± {jump.std() / len(jump) ** 0.5:.1f}':>30}{np.mean(off[name]):20.2f}")

# %% [markdown]
# (1 would be a perfectly even walk, 10 one single jump; ± is the error of the mean over pairs.) Nearly every walk has some large
# step: digits are of ten kinds, and between two kinds there is not always something. But *where* it comes differs. The claim is
# right for DDPM latents that keep the images: at strength 0.3 the change sits in the middle. With more strength it spreads; at
# strength 0.9 there is no peak any more, but then the walk begins and ends at *other* digits (two unrelated digits are about 0.6
# apart). DDIM with slerp keeps the ends *and* spreads the change over the way.
#
# ### Why?
#
# Put yourself in the place of a perfect network that knows only two images, $a$ and $b$. It sees
# $x = \alpha\,[(1-w)\,a + w\,b] + \sigma\varepsilon$ and asks which of the two it was. With $d = b - a$, and the normal
# distribution written out, almost everything cancels:
#
# $$\log \frac{P(b \mid x)}{P(a \mid x)} = \mathrm{SNR}\;|d|^2 \left(w - \tfrac12\right) + \sqrt{\mathrm{SNR}}\;\varepsilon \cdot d$$
#
# The first term crosses zero at $w = \frac12$, by symmetry, and it does so *steeply*, because $|d|^2$ sums over all 256 pixels:
# they decide together. The second term, the noise, only moves the place, by about $1 / (\sqrt{\mathrm{SNR}}\,|d|)$. Here is that
# probability for the pair of the strip, with eight noises at each strength:

# %%
a, b = unseen.batch(torch.tensor(pairs[0]))["image"]
d, w = (b - a).flatten(), torch.linspace(0, 1, 201)
_, axes = plt.subplots(1, 3, figsize=(10, 2.4), layout="constrained", sharey=True)
for axis, strength in zip(axes, (0.3, 0.6, 0.9), strict=True):
    level = schedule.at(torch.tensor(round(1000 * strength)))
    snr = float((level.alpha / level.sigma) ** 2)
    for seed in range(8):
        odds = snr * d.square().sum() * (w - 0.5) + math.sqrt(snr) * Noise(seed)(0, d).dot(d)
        axis.plot(w, odds.sigmoid(), color="C0", linewidth=0.8)
    axis.set(title=f"strength {strength}: steepness {snr * float(d.square().sum()):.0f}", xlabel="w")
axes[0].set_ylabel("P(b | x)")
plt.show()

# %% [markdown]
# This explains what we saw. At low strength the SNR is high, the switch is sharp and in the middle. With more strength the noise
# moves it to and fro, so the peak of the *mean* gets lower and wider. At strength 0.9 hardly anything is decided by $a$ and $b$,
# but by the noise: no jump, and no $a$ or $b$ either. In DDIM latents the images are not *under* the noise, they are *in* it; the
# walk leads over the ground of other digits, and changes a little here and there.
#
# Two other explanations are in use, and can be tested. *"The two images got different noises"*: with shared noise the formula stays
# the same, and the jumps stay, too. With 36 pairs and paths of 20 steps the largest change at strength 0.6 was 4.5 ± 0.3 times the
# mean with two noises, and 4.0 ± 0.2 with a shared one: a small gain at most. *"The mixture of two noises is too short in the
# middle"* (0.7 instead of 1, as we saw; so it moves the switch less, and more walks jump at the very middle): with the noises mixed
# by slerp it was 4.1 ± 0.3, the same as with a shared one. So each contributes a little, and neither is the cause.

# %% [markdown]
# ## 9 · Inversion: from a digit to its noise, and back
#
# A DDIM walk has no dice, so it can be walked backwards: from a real digit up to the noise that it would be drawn from. That was
# the way into the space of noise in section 8, and it is the beginning of many methods of image editing (图像编辑). One question of
# principle: to undo a step exactly, one would have to know what the network *will* say about the noisier picture, which is not
# there yet. Inversion takes what it says about the picture at hand. For small steps that is nearly the same. How small?

# %%
x0, counts = unseen.batch(torch.arange(8))["image"], [5, 10, 20, 50, 100]
rows, errors, noises = [x0], [], []
for steps in counts:
    noise, again = inversion.reconstruct(denoise, free, schedule.noise_levels(steps), x0)
    errors.append((again - x0).square().mean((1, 2, 3)).sqrt())
    noises.append(noise)
    rows += [noise / 2, again] if steps in (5, 20, 100) else []
show_images(torch.cat(rows), 8, down=["real", *(f"{what}, {n}" for n in (5, 20, 100) for what in ("noise", "again"))])

plt.figure(figsize=(5.5, 2.5), layout="constrained")
plt.errorbar(counts, [e.mean() for e in errors], [e.std() for e in errors], marker="o", markersize=4, capsize=2)
plt.plot(counts, [float(errors[1].mean()) * 10 / n for n in counts], color="0.7", linestyle=":", label="1 / steps")
plt.gca().set(
    xscale="log", yscale="log", xlabel="steps (each way)", ylabel="error (rms)", xticks=counts, xticklabels=counts
)
plt.minorticks_off()
plt.legend()
plt.show()
neighbours = [float((n[..., 1:] * n[..., :-1]).mean() / n.square().mean()) for n in noises]
for steps, e, n, c in zip(counts, errors, noises, neighbours, strict=True):
    print(
        f"{steps:4} steps: error of the image {e.mean():.3f}; the noise: deviation {n.std():.2f}, correlation of neighbours {c:+.2f}"
    )

# %% [markdown]
# (Bars: one deviation between the eight digits.) The error falls with the number of steps, but more slowly than $1/\text{steps}$
# (dotted), the rule of a method of first order.
#
# And is the noise that was found noise? Real noise has deviation 1, and its neighbouring pixels know nothing of each other. What
# inversion finds, with few steps above all, has too small a deviation and neighbours that agree: one sees the digit in it. One
# reason for both is the very first step. There the network is asked about a *clean* picture as if it were a noisy one, which it never
# saw in training. It looks for noise, and finds little, because there is none:

# %%
level = NoiseLevel(*(float(part) for part in schedule.at(torch.tensor(50))))
noisy = add_noise(x0, Noise(0)(0, x0), level)
with torch.no_grad():
    print(
        f"asked at t = 50: deviation of the noise found in noisy digits {free(noisy, level).eps.std():.2f}, in clean digits {free(x0, level).eps.std():.2f}"
    )

# %% [markdown]
# So methods that edit an image from its inverted noise begin at a place where the network is not quite at home. More steps help;
# better inversions are a field of research.

# %% [markdown]
# ## 10 · The laboratory
#
# A claim about diffusion models is easily made: train twice, look at two grids, believe. [ablate.py](ablate.py) is there to do
# better. It takes words such as `loss=l2,l1 seed=0,1,2`, trains and samples with every combination, judges each beside its floor,
# and gives means with error bars *over seeds*. Whatever is done is kept, so that a study can be stopped and continued.
#
# A tiny one, live, without training: with 5 and with 10 steps, is DPM-Solver++(2M) better than DDIM on our network? 128 digits
# each, two seeds of noise.

# %%
folder = tempfile.TemporaryDirectory()  # goes away with the notebook
runner = Runner(Path(folder.name), device="cpu", precision="no")
axes = read_axes(["sampler=ddim,dpmpp_2m", "steps=5,10", "n=128", "seed=0,1"])
experiments = grid(axes, Experiment(TrainingSettings(model=str(CHAPTER / "pretrained")), SamplingSettings()))
results = [runner.result(experiment) for experiment in experiments]  # a dictionary for each experiment
for measure in ("frechet", "sharpness"):
    print(measure)
    for line in plots.table(results, plots.varied(axes, experiments), measure):
        print("   " + "".join(f"{word:18}" for word in line))
    print(f"   {'real digits':18}{results[0][f'{measure}_real']:.3g}\n")

# %% [markdown]
# What may one conclude? Look at the ± (one deviation between seeds; here there are only two of them). A difference that is clearly
# larger is a result, for this network and these data; any other is none. (Much of the lore has never had a ± at all.) The studies behind the next table use three seeds, and train where training is the question; they run for
# minutes to hours:
#
# ```sh
# python 03_ddim_schedules/ablate.py --list                  # all studies
# python 03_ddim_schedules/ablate.py losses                  # one of them, on the embedded digits
# python 03_ddim_schedules/ablate.py samplers --data-dir data
# python 03_ddim_schedules/ablate.py schedule=linear,cosine sampler=ddim,dpmpp_2m steps=5,10,20 seed=0,1,2 --dry
# ```

# %% [markdown]
# ## The lore, measured
#
# | # | the claim | measured with | what came out | verdict |
# |---|---|---|---|---|
# | 1 | SGD cannot train a diffusion model from scratch; AdamW at 1e-4 can; larger rates end in NaN; AdamW first, then SGD at 1e-6, polishes | `ablate.py optimizers`, `ablate.py polish` | SGD with momentum: 126 ± 13 at 1e-4, 27.8 ± 6.4 at 2e-3, 6.31 ± 0.33 at 0.1; AdamW: 58.6 ± 2.0, 3.64 ± 0.24, 91.8 ± 19, and never a NaN, for the gradient is clipped; polish: 3.54 ± 0.24 before, 3.54 ± 0.23 after; floor 0.77 ± 0.32 | **SGD can**, and no NaN was seen; AdamW is better. (400 steps say nothing of what AdamW reaches at 1e-4 in many more) |
# | 2 | Linear and cosine schedules are the same on one-channel digits; on colour images linear gives whitish pictures | `ablate.py schedules`, `ablate.py colour` | digits: linear 5.01 ± 0.45, cosine 3.64 ± 0.24, sigmoid 3.23 ± 0.19, zero terminal SNR 4.96 ± 0.44, floor 0.77 ± 0.32; brightness in colour (v): linear 0.467 ± 0.010, cosine 0.469 ± 0.010, real 0.478 (with eps 0.491 ± 0.007 and 0.495 ± 0.015) | **does not hold**, in either half: to the eye the digits are alike, by number they are not; in colour it is the prediction that shows, not the schedule |
# | 3 | L2 is sharper, L1 smoother | `ablate.py losses` | sharpness: L2 0.105, L1 0.105, Huber 0.105 (all within ± 0.0005), real 0.107; Fréchet distance: 3.64 ± 0.24, 3.19 ± 0.43, 3.03 ± 0.26 | **does not hold**. Section 7: with a perfect network L1 draws another distribution |
# | 4 | DDPM with fewer than 1,000 steps stays noisy, while DDIM with 50 is fine | section 4; `ablate.py respacing` | 50 steps: DDPM 1.23 ± 0.28, DDIM 1.39 ± 0.23, with the mistake 160 ± 1, floor 1.27 ± 0.40 | **does not hold**: the noise comes from keeping the full chain's coefficients (section 4) |
# | 5 | DDIM at 50 steps is 20 times faster at like quality; $\eta = 0$ and $\eta = 1$ look alike | section 3; `ablate.py speed`, `ablate.py eta` | 50 steps: $\eta = 0$ 1.39 ± 0.23, $\eta = 1$ 1.23 ± 0.28; 10 steps: 1.79 ± 0.15, 1.63 ± 0.29; DDPM at 1,000: 1.58 ± 0.50; floor 1.27 ± 0.40 | **holds**: a twentieth of the evaluations, the same quality |
# | 6 | EMA, P2 weighting and clipping $x_0$ make no visible difference | `ablate.py ema`, `weights`, `clip` | EMA yes, no: after 100 steps 10.1 ± 1.7, 10.1 ± 1.8, after 400 3.64 ± 0.24, 3.54 ± 0.24; plain, P2, min-SNR (with eps): 9.1 ± 2.5, 9.5 ± 3.1, 7.7 ± 2.9; clip none, static, dynamic: with eps 37.7 ± 3.6, 9.1 ± 2.5, 51 ± 7, with v 3.26 ± 0.24, 3.64 ± 0.24, 18.6 ± 1.8 | **depends**: EMA and weights make none here; clipping decides everything for eps, nothing for v |
# | 7 | Interpolation jumps abruptly in the middle instead of changing gradually | section 8; `interpolate.py --pairs 12` | the largest of 15 changes is 5.1 ± 2.4 times the mean and lies, on average, at 0.41 ± 0.22 of the way (deviation between 12 pairs, whatever their classes); with shared noise 5.3 ± 2.6, with DDIM and slerp 4.5 ± 1.8 | **holds for DDPM latents** of strengths that keep the images; the pixels decide together (section 8). DDIM latents are no cure for every pair: their gain is smaller than the spread |
# | 10 | Deeper and wider networks improve samples markedly | `ablate.py width`, `ablate.py depth` | channels 8-16, 16-32, 24-48: 5.40 ± 0.98, 3.64 ± 0.24, 2.73 ± 0.15; one block at each resolution, two: 3.64 ± 0.24, 3.49 ± 0.30 | **holds for width**, at equal steps, not for depth |
# | 11 | The VLB term costs a third of the batch size in memory | section 7; `activation_memory.py` | +0.7 % at 28 × 28 in grey, +1.2 % at 32 × 32 in colour; twice as much if the bound asks the network again | **does not hold** |
#
# (All numbers are Fréchet distances unless it is said otherwise, mean ± one deviation over three seeds; claims 4 and 5 on the shipped network, the others on small networks after 400 steps. Distances compare within a row. Claims 8, 9, 12 and 13 belong to other chapters.)
#
# Of these nine pieces of lore, five do not hold, and two do only in part. The largest differences were made by what nobody argues about: the coefficients of a respaced chain, the learning rate of SGD, and clipping a network that says `eps`.

# %% [markdown]
# ## Where to go from here
#
# What you have seen: two curves, one mixture, and one move: take apart, remix. All the rest is *how carefully* the move is made.
#
# Things to try in this notebook, each a change of a word or two:
#
# * In section 4, let the mistake have 1,000 steps. Why is it right then?
# * In section 5, draw with `dpmpp_2s:5`, and with `heun:2`. What is the least number of evaluations that you would accept?
# * In section 6, move the network's error to little noise (`level.sigma < 0.3`). Do dice still help?
# * In section 8, change the strength to 0.1 and to 0.95. What is interpolated then, and what jumps?
#
# Then build it yourself: eight [exercises](exercises/README.md), from a respaced chain to DPM-Solver++(2M), with a grader:
# `python -m common.grade 03`. And with your own pictures, or MNIST: [README](README.md).
#
# The next chapter moves all of this into a smaller space, and so to larger images.
