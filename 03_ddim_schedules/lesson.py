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
# # Chapter 3 · Schedules, samplers and flows
#
# English · [中文](lesson.zh.ipynb)
#
# "Use the cosine schedule." "DDIM needs fifty steps." "Flow matching is straighter than diffusion." You will meet such advice in
# papers, repositories and forums. This chapter takes the model of chapter 1 apart, derives what can be derived, and measures the
# rest.
#
# DDPM, DDIM, EDM, rectified flow, Heun and DPM-Solver++ turn out to share a small vocabulary:
#
# 1. **two curves**: the noise schedule;
# 2. **one mixture**: what the network predicts, with *v-prediction*;
# 3. **DDIM**: split the noisy image, and mix it again with less noise;
# 4. **respacing**: fewer steps done right, and a common mistake;
# 5. **the probability-flow ODE and the reverse SDE**: one density, two kinds of trajectory;
# 6. **solvers** of higher order: Heun and DPM-Solver++(2M);
# 7. **stochastic or deterministic**: a toy, and what measurements on digits show;
# 8. **flow matching** and reflow;
# 9. **DiT**, a transformer in the place of the U-Net;
# 10. **distillation** into a student that needs fewer steps;
# 11. losses and weights;
# 12. **interpolation** between two digits, and why it jumps;
# 13. **inversion**: from a digit to its noise;
# 14. the laboratory, and what it measured.
#
# You need chapter 1: the closed form of the forward process, the posterior $q(x_{t-1} \mid x_t, x_0)$, and the score. Everything
# runs on a laptop's CPU without a download, in a few minutes.

# %%
from common.grade.chapter import (
    open_chapter,  # no module named common? Select the kernel in which the course is installed (README.md)
)

CHAPTER = open_chapter("03_ddim_schedules")  # this folder; from here on, its files can be imported

# %%
import copy
import math
import time
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from torch import nn

from common import viz
from common.data import load
from common.diffusion.schedules import NoiseLevel, NoiseLevels, add_noise, make_schedule
from common.random import Noise

plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def show_images(images, columns, across=(), down=()):
    """A grid of images (N, 1, H, W) in [-1, 1], twice as large as they are, with labelled columns and rows."""
    display(viz.labelled_grid(images, columns, across, down))


def rms(x):
    """Root mean square: the size of a typical pixel."""
    return float(x.square().mean().sqrt())


def level_at(schedule, t):
    """The noise level at time t of a schedule, as plain numbers."""
    return NoiseLevel(*(float(part) for part in schedule.at(torch.tensor(t))))


mnist, unseen = load("mnist-10k"), load("mnist-10k", split="test")  # 28 x 28, embedded in the course
digit = unseen.batch(torch.tensor([2]))["image"]  # (1, 1, 28, 28) in [-1, 1]

# %% [markdown]
# ## 1 · Two curves
#
# Chapter 1 mixed a clean image $x_0$ with standard normal noise $\varepsilon$. Here we write the two factors as functions of
# time, because this chapter compares schedules of several families:
#
# $$x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon$$
#
# A noise schedule is nothing but these two curves: $\alpha(t)$ scales the image, and $\sigma(t)$ is the standard deviation of the
# noise.
#
# > **Notation.** In chapter 1 and in the DDPM paper, $\alpha(t) = \sqrt{\bar\alpha_t}$ and $\sigma(t) = \sqrt{1 - \bar\alpha_t}$, so that
# > $\alpha(t)^2 + \sigma(t)^2 = 1$. The DDIM paper writes $\alpha_t$ for what DDPM calls $\bar\alpha_t$. The EDM paper writes
# > $x = s(t)\,(x_0 + \sigma\,\varepsilon)$: its $s$ is our $\alpha$, and its $\sigma$ is our $\sigma/\alpha = e^{-\lambda}$. Its own
# > schedule has $s = 1$ and $\sigma = t$. In code, `level.alpha` and `level.sigma` are these two numbers.
#
# How noisy an image *looks* depends only on the ratio of the two. So we also draw half the logarithm of the **signal-to-noise
# ratio**, $\mathrm{SNR}(t) = \alpha(t)^2 / \sigma(t)^2$:
#
# $$\lambda(t) = \log \frac{\alpha(t)}{\sigma(t)}$$
#
# A large $\lambda$ means a clean image. At $\lambda = 0$ there is as much image as noise, and negative values mean more noise
# than image.
#
# Seven schedules follow. *Linear* is DDPM's and *scaled linear* is Stable Diffusion's. *Cosine*
# ([Nichol & Dhariwal 2021](https://arxiv.org/abs/2102.09672)) and *sigmoid*
# ([Jabri et al. 2022](https://arxiv.org/abs/2212.11972)) change more evenly. *Linear, zero SNR* is explained below. *EDM*
# ([Karras et al. 2022](https://arxiv.org/abs/2206.00364)) keeps $\alpha = 1$ and adds noise up to $\sigma = 80$. *Flow*
# (rectified flow, [Liu et al. 2022](https://arxiv.org/abs/2209.03003)) is a straight line: $\alpha = 1 - t$ and $\sigma = t$.

# %%
names = ["linear", "scaled_linear", "cosine", "sigmoid", "linear_zero_snr", "edm", "flow"]
schedules = {name: make_schedule(name) for name in names}
levels = {name: s.noise_levels(1000).levels for name, s in schedules.items()}  # 1,001 levels each, noisiest first
time_share = torch.linspace(1, 0, 1001)  # t / T of each
colour = {name: f"C{i}" for i, name in enumerate(names)}

_, (plane, curves, ratio) = plt.subplots(1, 3, figsize=(12, 3.7), layout="constrained")
for slope in (-1, 0, 1):
    plane.plot([0, 2 * math.exp(slope)], [0, 2], color="0.85", linewidth=0.8)
    place = {-1: (0.42, 1.13), 0: (0.77, 0.76), 1: (0.6, 0.14)}[slope]
    plane.text(*place, f"$\\lambda$ = {slope}", color="0.5", fontsize=8)
for name in ("cosine", "flow", "edm"):
    label = name if name != "cosine" else "all the others"
    plane.plot(levels[name].alpha, levels[name].sigma, color=colour[name], label=label)
plane.set(xlim=(0, 1.2), ylim=(0, 1.2), aspect="equal", title="curves from image to noise")
plane.set(xlabel="$\\alpha$ (scale of the image)", ylabel="$\\sigma$ (standard deviation of the noise)")
plane.legend(loc="lower left", fontsize=8)
for name in ("linear", "scaled_linear", "cosine", "flow"):
    curves.plot(time_share, levels[name].alpha, color=colour[name], label=name)
    curves.plot(time_share, levels[name].sigma, color=colour[name], linestyle="--")
curves.set(xlabel="t / T", title="$\\alpha$ (solid) and $\\sigma$ (dashed)")
curves.legend(loc="center right", fontsize=8)
for name in names:
    lam = (levels[name].alpha / levels[name].sigma).log()
    ratio.plot(time_share, lam, color=colour[name], label=name, linestyle="--" if "zero" in name else "-")
ratio.set(xlabel="t / T", ylim=(-9, 9), title="$\\lambda$, half the log-SNR")
ratio.legend(fontsize=8, ncols=2)
plt.show()

# %% [markdown]
# * **Left:** every noise level is a point $(\alpha, \sigma)$, and a schedule is a curve that starts at the clean image $(1, 0)$.
#   Most schedules stay on the same quarter of a circle because they keep $\alpha^2 + \sigma^2 = 1$. They are called **variance
#   preserving**. Flow takes the chord. EDM goes straight up and leaves the picture. Grey lines connect points of equal $\lambda$.
# * **Middle and right:** schedules on the same curve differ in *speed*. In the middle of its range, linear has much less image
#   left than cosine.
#
# The three curves are more alike than they look. Points on one grey line show the same image at a different brightness. After
# division by $\sqrt{\alpha^2 + \sigma^2}$ all of them lie on the circle. We check this with one digit and one noise at
# $\lambda = -0.5$.

# %%
eps = torch.randn(digit.shape, generator=torch.Generator().manual_seed(5))
alike = []
for s in schedules.values():
    level = s.at_lam(-0.5)
    alike.append(add_noise(digit, eps, level) / math.hypot(level.alpha, level.sigma))
print(f"largest difference between seven schedules at equal SNR: {max((x - alike[0]).abs().max() for x in alike):.1e}")

# %% [markdown]
# So $t$ only names a noise level. A schedule decides two things: **how often training visits each SNR**, and **where a sampler
# stops on its way**. The next figure shows the first: the noise levels of 100,000 training images, counted by $\lambda$.

# %%
u = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:-1]
plt.figure(figsize=(7.5, 2.6), layout="constrained")
for name in names:
    level = schedules[name].sample_levels(u)
    share, edges = np.histogram((level.alpha / level.sigma).log().clamp(-12, 12), bins=60, range=(-8, 8))
    density, style = share / len(u) / (edges[1] - edges[0]), "--" if "zero" in name else "-"
    plt.plot((edges[1:] + edges[:-1]) / 2, density, color=colour[name], label=name, linestyle=style)
plt.gca().set(xlabel="$\\lambda$   (much noise … little noise)", ylabel="training density", xlim=(-7, 7))
plt.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Linear spreads its training far into the noise, and scaled linear stops early. Cosine and sigmoid are symmetric around
# $\lambda = 0$. The last two draw their levels from bell curves, so that extreme levels are rare, and EDM trains at less noise
# than the others. (The bell drawn for `flow` is the *logit-normal* density of Stable Diffusion 3,
# [Esser et al. 2024](https://arxiv.org/abs/2403.03206); rectified flow itself draws $t$ uniformly, as we do in section 8.)
#
# The next figure applies four schedules to the same digit with the same noise.

# %%
times, rows = [100, 300, 500, 700, 900, 1000], ["linear", "scaled_linear", "cosine", "flow"]
pictures = []
for name in rows:
    for t in times:
        pictures.append(add_noise(digit, eps, level_at(schedules[name], t / 1000 if name == "flow" else t)))
show_images(torch.cat(pictures), len(times), across=[f"t/T = {t / 1000}" for t in times], down=rows)

# %% [markdown]
# ### Does the last level contain only noise?
#
# Sampling starts from pure noise. So the last training level should be pure noise, too. Is it? We enlarge the digit to
# $448 \times 448$ pixels, add the noise of $t = T$, and then average blocks of $16 \times 16$ pixels.
#
# **Question:** averaging leaves the image unchanged. By which factor does it shrink the noise?


# %%
def enlarge(images, factor):
    return F.interpolate(images, scale_factor=factor, mode="nearest")


large = enlarge(digit, 16)  # (1, 1, 448, 448)
noise = torch.randn(large.shape, generator=torch.Generator().manual_seed(0))
rows = ["linear", "scaled_linear", "scaled_linear_zero_snr"]
ends = {name: level_at(make_schedule(name), 1000) for name in rows}
last_levels = {name: add_noise(large, noise, end) for name, end in ends.items()} | {"the digit": large}
_, axes = plt.subplots(2, 4, figsize=(9, 4.8), layout="constrained")
averages = [F.avg_pool2d(picture, 16)[0, 0] for picture in last_levels.values()]  # (28, 28) each
for (name, picture), average, (above, below) in zip(last_levels.items(), averages, axes.T, strict=True):
    above.imshow(picture[0, 0, ::4, ::4], cmap="gray")
    below.imshow(average, cmap="gray")
    above.set_title(name + (f"\n$\\alpha(T)$ = {ends[name].alpha:.4f}" if name in ends else "\n"), fontsize=9)
axes[0, 0].set_ylabel("t = T")
axes[1, 0].set_ylabel("averaged")
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
plt.show()
for name, average in zip(rows, averages, strict=False):
    r = np.corrcoef(average.flatten(), averages[-1].flatten())[0, 1]
    print(f"{name:24} correlation of the averages with the digit {r:+.2f}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# By 16: a block has 256 pixels, and the mean of 256 independent noises has $1/\sqrt{256}$ of their standard deviation.
# </details>
#
# Under scaled linear, the schedule of Stable Diffusion, the last level still shows the digit after averaging, and a network can
# average. In training it could always see how bright the image will be. In sampling it receives noise that carries no such hint,
# and therefore it tends towards a medium brightness.
#
# We measure this leak by the correlation between the brightness of an image and that of its noisy version at $t = T$. With $s$
# the standard deviation of brightness between images and $N$ the number of pixels, theory says
# $r = \alpha s / \sqrt{\alpha^2 s^2 + \sigma^2 / N}$.

# %%
print(f"{'correlation of brightness at t = T':38}" + "".join(f"{f'{28 * k} x {28 * k}':>20}" for k in (1, 4, 8)))
x0 = mnist.batch(torch.arange(1000))["image"]
brightness = x0.mean((1, 2, 3))
for name in ("linear", "scaled_linear", "scaled_linear_zero_snr"):
    end, found = level_at(make_schedule(name), 1000), []
    for k in (1, 4, 8):
        g = torch.Generator().manual_seed(k)
        noise_mean = torch.cat([torch.randn(50, (28 * k) ** 2, generator=g).mean(1) for _ in range(20)])  # (1000,)
        r = np.corrcoef(brightness, end.alpha * brightness + end.sigma * noise_mean)[0, 1]
        s = float(brightness.std())
        theory = end.alpha * s / math.sqrt(end.alpha**2 * s**2 + end.sigma**2 / (28 * k) ** 2)
        found.append(f"{r:.2f} (theory {theory:.2f})")
    print(f"{name:38}" + "".join(f"{text:>20}" for text in found))

# %% [markdown]
# (With 1,000 digits the 95 % interval of a correlation near 0 is about ± 0.06.) The leak grows with the size of the image. It is
# small at $28 \times 28$ and large for photographs. If brightness is normally distributed, the samples of a *deterministic*
# sampler then vary in brightness only $\sqrt{1 - r^2}$ times as much as the data. A stochastic sampler forgets part of its start,
# so it loses less.
#
# **Zero terminal SNR** ([Lin et al. 2023](https://arxiv.org/abs/2305.08891), algorithm 1) removes the leak. It shifts the curve
# $\sqrt{\bar\alpha_t}$ down until its last value is 0, and then stretches it until the first value, at $t = 1$, is what it was:
#
# $$\sqrt{\bar\alpha_t} \;\leftarrow\; \left(\sqrt{\bar\alpha_t} - \sqrt{\bar\alpha_T}\right) \frac{\sqrt{\bar\alpha_1}}{\sqrt{\bar\alpha_1} - \sqrt{\bar\alpha_T}}$$


# %%
def zero_terminal_snr(alpha_bar):
    """(T + 1,) -> (T + 1,): entry 0, the clean image, stays as it is."""
    root = alpha_bar[1:].sqrt()  # t = 1 ... T
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return torch.cat([alpha_bar[:1], root**2])


mine, course = zero_terminal_snr(schedules["linear"].alpha_bar), schedules["linear_zero_snr"].alpha_bar
print(
    f"last value {float(mine[-1]):.1f}; largest difference from the course's schedule {(mine - course).abs().max():.1e}"
)

# %% [markdown]
# > **In the papers** the condition is written $\mathrm{SNR}(T) = 0$, equivalently $\bar\alpha_T = 0$.
#
# This has a price: where $\alpha(T) = 0$, a network that predicts $\varepsilon$ contributes nothing. The next section shows why.

# %% [markdown]
# ## 2 · One mixture: what the network predicts
#
# The networks that you trained in chapter 1 predict the noise. (The pretrained network of that chapter, which this lesson uses from
# section 3 on, predicts $v$, explained below.) A network could as well predict the image, or something in between. All choices in
# use are mixtures of the same two things:
#
# $$y = a\,x_0 + b\,\varepsilon$$
#
# | the network predicts | $a$ | $b$ | used by |
# |---|---|---|---|
# | `eps`, the noise | $0$ | $1$ | DDPM |
# | `x0`, the image | $1$ | $0$ | DDPM's paper as an alternative |
# | `v`, the velocity on the circle | $-\sigma$ | $\alpha$ | [Salimans & Ho 2022](https://arxiv.org/abs/2202.00512), Stable Diffusion 2 |
# | `flow`, the velocity on the straight line | $-1$ | $1$ | rectified flow, Stable Diffusion 3, Flux |
# | `edm` | $\sigma / (\sigma_d\, n)$ | $-\sigma_d / n$ | EDM; $\sigma_d = 0.5$ is the standard deviation of the data, $n = \sqrt{\sigma^2 + \sigma_d^2}$ |
#
# The row `edm` belongs to the schedule with $\alpha = 1$. The row `flow` is a velocity only on $\alpha = 1 - t$, and some papers
# use the opposite sign and direction of time (section 8 has a table).
#
# ### v-prediction
#
# On the circle, $\alpha = \cos\varphi$ and $\sigma = \sin\varphi$ for an angle $\varphi$ between $0$ (clean) and $90°$ (noise).
# As the angle grows, the noisy image $x = \cos\varphi\, x_0 + \sin\varphi\, \varepsilon$ moves. Its velocity is the derivative by
# $\varphi$:
#
# $$v = \frac{dx}{d\varphi} = \alpha\,\varepsilon - \sigma\,x_0$$
#
# In the plane with the axes $x_0$ and $\varepsilon$, position $(\alpha, \sigma)$ and velocity $(-\sigma, \alpha)$ are at right angles. To get image and noise back, you turn the pair $(x, v)$ by the angle:
#
# $$x_0 = \alpha\,x - \sigma\,v \qquad\qquad \varepsilon = \sigma\,x + \alpha\,v$$
#
# Nothing is divided, so this works even where $\alpha = 0$.
#
# > **In the papers:** Salimans & Ho 2022, section 4, define $v \equiv \alpha_t\,\varepsilon - \sigma_t\,x$, where their $x$ is our $x_0$
# > and their $\alpha_t$ is our $\alpha(t)$, not DDPM's $1 - \beta_t$.


# %%
def v_from(x0, eps, level):
    return level.alpha * eps - level.sigma * x0


def x0_eps_from_v(x, v, level):
    return level.alpha * x - level.sigma * v, level.sigma * x + level.alpha * v


for t in (100, 500, 1000):
    level = level_at(schedules["linear_zero_snr"], t)
    x, v = add_noise(digit, eps, level), v_from(digit, eps, level)
    x0_found, eps_found = x0_eps_from_v(x, v, level)
    wrong = (x0_found - digit).abs().max(), (eps_found - eps).abs().max()
    print(f"t = {t:4}, alpha = {level.alpha:.3f}: largest error of x0 {wrong[0]:.0e}, of eps {wrong[1]:.0e}")

# %% [markdown]
# ### All predictions in one picture
#
# Think of $x_0$ and $\varepsilon$ as the two axes of a plane. The noisy image is the arrow $(\alpha, \sigma)$ and the network's
# target is the arrow $(a, b)$. If the two are not parallel, you can solve for $x_0$ and $\varepsilon$: two equations with two
# unknowns. [denoiser.py](../common/diffusion/denoiser.py) does this in `to_x0_eps` for every row of the table, and a sampler
# needs nothing else from a network.

# %%
from common.diffusion.denoiser import PREDICTIONS, Denoiser, Prediction, mixture, target, to_x0_eps


def schedule_of(prediction):
    """The schedule that a prediction is used with."""
    return schedules[prediction if prediction in ("edm", "flow") else "cosine"]


def arrow(axis, a, b, name, color, far=1.17, **style):
    """The direction of a mixture, as an arrow of length 1."""
    a, b = a / math.hypot(a, b), b / math.hypot(a, b)
    axis.annotate("", (a, b), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color} | style)
    axis.text(far * a, far * b, name, color=color, ha="center", va="center")


_, axes = plt.subplots(1, 3, figsize=(10.5, 3.7), layout="constrained")
turn = np.linspace(0, 2 * np.pi, 200)
columns = {"little noise": 1.2, "half and half": 0.0, "much noise": -1.2}
for axis, (title, lam) in zip(axes, columns.items(), strict=True):
    axis.plot(np.cos(turn), np.sin(turn), color="0.9")
    level = schedules["cosine"].at_lam(lam)
    arrow(axis, level.alpha, level.sigma, "$x_t$", "black", far=1.22, linewidth=2.5)
    for i, name in enumerate(PREDICTIONS):
        far = {"flow": 1.4, "edm": 1.42}.get(name, 1.2)
        arrow(axis, *mixture(name, schedule_of(name).at_lam(lam)), name, f"C{i}", far=far)
    axis.set(title=f"{title}, $\\lambda$ = {lam}", xlabel="amount of $x_0$", aspect="equal")
    axis.set(xlim=(-1.6, 1.7), ylim=(-1.3, 1.4), xticks=[-1, 0, 1], yticks=[-1, 0, 1])
axes[0].set_ylabel("amount of $\\varepsilon$")
plt.show()

# %% [markdown]
# Follow the black arrow from left to right, as it turns from the image (right) to the noise (up). The arrows of `eps` and `x0`
# stand still. So the black arrow comes close to `x0` at little noise and to `eps` at much noise. There the prediction only
# repeats what the input already shows, and the other ingredient can no longer be recovered. `v` turns with the black arrow at a
# right angle. `flow` and `edm` also keep away from it. (`edm` points the other way, which changes nothing. All arrows are drawn
# with length 1.)
#
# No prediction is exact. If $y$ is wrong by a small $\delta$, then $x_0$ is wrong by $|\sigma / d|\,\delta$ and $\varepsilon$ by
# $|\alpha / d|\,\delta$, where $d = \alpha b - \sigma a$ is the area between the two arrows.

# %%
lams = torch.linspace(-7, 7, 200).tolist()
_, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
for i, name in enumerate(PREDICTIONS):
    at = [schedule_of(name).at_lam(lam) for lam in lams]
    d = [level.alpha * b - level.sigma * a for level in at for a, b in [mixture(name, level)]]
    style = {"color": f"C{i}", "linestyle": "--" if name == "flow" else "-"}
    axes[0].plot(lams, [abs(level.sigma / area) for level, area in zip(at, d, strict=True)], label=name, **style)
    axes[1].plot(lams, [abs(level.alpha / area) for level, area in zip(at, d, strict=True)], label=name, **style)
for axis, what in zip(axes, ("x_0", "\\varepsilon"), strict=True):
    axis.set(yscale="log", ylim=(1e-3, 1e3), xlabel="$\\lambda$   (much noise … little noise)")
    axis.set(title=f"error of ${what}$ for an error of 1 in $y$", ylabel="factor")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# A network that predicts `eps` divides by $\alpha$ to find the image, so that at much noise every error is multiplied by a
# thousand. One that predicts `x0` divides by $\sigma$ to find the noise, which is as bad at little noise. `v`, `flow` and `edm`
# avoid both: their factors stay below 1.
#
# How bad is a factor of a thousand? We take the *true* target and only round it to bfloat16, a format with 8 binary digits in
# which large networks are trained. Then we solve for the image.
#
# **Question:** which rows do you expect to lose the digit, and at which end?

# %%
times, rows = [500, 900, 980, 990, 995, 998, 1000], ["eps", "x0", "v", "flow", "edm"]
pictures, lost = [], []
for name in rows:
    for t in times:
        level = level_at(schedules["cosine"], t)
        x, y = add_noise(digit, eps, level), target(name, digit, eps, level)
        pictures.append(to_x0_eps(name, y.bfloat16().float(), x, level)[0])
        lost.append(rms(pictures[-1] - digit))
show_images(torch.cat(pictures), len(times), across=[f"t = {t}" for t in times], down=rows)
print("error of x0 (rms) at t =  " + "".join(f"{t:>10}" for t in times))
for name, errors in zip(rows, np.array(lost).reshape(len(rows), -1), strict=True):
    print(f"{name:26}" + "".join(f"{error:10.4f}" for error in errors))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Only `eps` loses it, at the noisy end. The image is found by division by $\alpha$, which is nearly 0 there, although every
# number of the target was right to two or three decimal digits. (`x0` would lose the *noise*, at the clean end.)
# </details>
#
# This is the price of zero terminal SNR: it needs `v` or one of its relatives. It is also one reason why the brightness of
# samples drifts when a network predicts `eps` and is trained too briefly. At much noise a tiny constant error in $\varepsilon$ is
# a large error in the image.

# %% [markdown]
# ## 3 · DDIM: split, and mix again
#
# DDIM ([J. Song et al. 2021](https://arxiv.org/abs/2010.02502)) samples in few steps, and without fresh noise if you like. We
# derive it in two parts. The first part is about the true image and the true noise, and it is exact. The second part puts the
# network's estimates in their place, and that is the only approximation.
#
# ### Part one: exact, for the true pair
#
# The loss of training sees one noise level at a time, $x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon$. It never sees how two
# levels belong together. So one network serves *every* process whose single levels look like this.
#
# Let $s$ be a less noisy level than $t$, not necessarily $t - 1$. We build $x_s$ from the same $x_0$, a part of the same
# $\varepsilon$, and fresh noise $z$:
#
# $$x_s = \alpha(s)\,x_0 + \sqrt{\sigma(s)^2 - f^2}\;\varepsilon + f z \tag{1}$$
#
# Given $x_0$, the two noises are independent, so their variances add up to $(\sigma(s)^2 - f^2) + f^2 = \sigma(s)^2$. Therefore
# $x_s$ has exactly the distribution that training saw at level $s$, **for every $f$ between 0 and $\sigma(s)$**.
#
# **Which $f$ is DDPM's?** DDPM samples from the posterior $q(x_s \mid x_t, x_0)$. Chapter 1 derived it for $s = t - 1$ by
# multiplying two Gaussians, and the same works here. Seen as functions of $x_s$, they are
#
# * from $x_0$: $x_s$ is near $\alpha(s)\,x_0$, with variance $\sigma(s)^2$;
# * from $x_t$: $x_t$ is near $\rho\,x_s$ with $\rho = \alpha(t)/\alpha(s)$, with the variance that the noising from $s$ to $t$
#   adds, $\beta = \sigma(t)^2 - \rho^2 \sigma(s)^2$.
#
# In a product of Gaussians the inverse variances add, so the posterior variance $f^2$ follows from
#
# $$\frac{1}{f^2} = \frac{1}{\sigma(s)^2} + \frac{\rho^2}{\beta} = \frac{\beta + \rho^2\sigma(s)^2}{\sigma(s)^2\,\beta} = \frac{\sigma(t)^2}{\sigma(s)^2\,\beta}
# \qquad\Longrightarrow\qquad f^2 = \frac{\sigma(s)^2}{\sigma(t)^2}\,\beta$$
#
# For $s = t - 1$ this is the $\tilde\beta_t$ of chapter 1. A factor $\eta$ (eta) interpolates:
#
# $$f = \eta\;\frac{\sigma(s)}{\sigma(t)} \sqrt{\sigma(t)^2 - \frac{\alpha(t)^2}{\alpha(s)^2}\,\sigma(s)^2} \tag{2}$$
#
# With $\eta = 1$, (1) is DDPM. With $\eta = 0$ there is no fresh noise, and (1) is DDIM.
#
# > **In the papers:** with $s = t - 1$, (1) is DDIM's eq. 7, $q_\sigma(x_{t-1} \mid x_t, x_0)$, and (1) with the estimates of part two
# > is eq. 12. (2) is eq. 16, with $t = \tau_i$ and $s = \tau_{i-1}$. Its symbols are $\sigma_t$ for our $f$ and $\alpha_t$ for $\bar\alpha_t$. $q(x_{t-1} \mid x_t, x_0) = \mathcal N(x_{t-1};\, \tilde\mu_t(x_t, x_0),\, \tilde\beta_t I)$ is eq. 6 and 7 of
# > [DDPM](https://arxiv.org/abs/2006.11239).


# %%
def mix(x0, eps, now, then, eta=0.0, z=0.0):
    """Equations (1) and (2): from the pair (x0, eps) of level `now` to level `then`."""
    added = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2  # beta
    fresh = eta * then.sigma / now.sigma * math.sqrt(added)  # f
    return then.alpha * x0 + math.sqrt(then.sigma**2 - fresh**2) * eps + fresh * z


now, then = level_at(schedules["cosine"], 600), level_at(schedules["cosine"], 300)
g = torch.Generator().manual_seed(0)
eps, z = torch.randn(2, 2000, 1, 28, 28, generator=g)
print(f"wanted at s = 300: image {then.alpha:.4f}, noise {then.sigma:.4f}")
for eta in (0.0, 0.5, 1.0):
    x = mix(digit, eps, now, then, eta, z)
    image = (x.mean(0) * digit[0]).sum() / digit.square().sum()
    print(f"  found, eta = {eta}: image {image:.4f}, noise {x.std(0).mean():.4f}")

x_s = add_noise(digit, eps, then)  # the noising chain, forwards: first to s, then on to t
rho = now.alpha / then.alpha
x_t = rho * x_s + math.sqrt(now.sigma**2 - rho**2 * then.sigma**2) * z
slope = ((x_s - x_s.mean(0)) * (x_t - x_t.mean(0))).mean() / (x_t - x_t.mean(0)).square().mean()
rest = (x_s - x_s.mean(0)) - slope * (x_t - x_t.mean(0))  # what x_t does not determine of x_s
f = then.sigma / now.sigma * math.sqrt(now.sigma**2 - rho**2 * then.sigma**2)
print(f"standard deviation of x_s given x_t and x_0: measured {rest.std():.4f}, formula (2) with eta = 1 {f:.4f}")

# %% [markdown]
# Both halves of the derivation hold in the simulation: the noise level is right for every $\eta$, and the variance of the
# posterior is (2).
#
# ### Part two: the network's estimates
#
# In sampling we know only $x_t$. The network splits it into estimates $(\hat x_0, \hat\varepsilon)$, and (1) uses these. Since
# training minimises a squared error, they are conditional means: $\hat x_0 = \mathbb E[x_0 \mid x_t]$ and
# $\hat\varepsilon = \mathbb E[\varepsilon \mid x_t]$. A mean over many possible images is blurred: $\hat x_0$ varies
# less than real images. A mean over many possible noises has a variance below 1, but only slightly, as the output shows; at
# $t = 900$ the input is almost the noise itself. So a *long* step with estimates loses variance, above all that of the image. The
# argument becomes exact again in the limit of short steps, as section 5 shows. We look at both estimates with the network of chapter 1 (28 × 28,
# trained on MNIST).

# %%
from common.models.model_folder import load_model

net, schedule, prediction, clip_x0 = load_model(CHAPTER.parent / "01_ddpm_mnist" / "pretrained")
denoise = Denoiser(net, prediction, clip_x0)  # (x, level) -> its estimates of x0 and eps, x0 limited to [-1, 1]
free = Denoiser(net, prediction, clip_x0=False)  # the same without the limit
print(f"{sum(p.numel() for p in net.parameters()):,} weights; predicts {prediction}, schedule {schedule.name}")

x0, eps = unseen.batch(torch.arange(10))["image"], Noise(1)(0, torch.empty(10, 1, 28, 28))
pictures = [x0]
for t in (300, 600, 900):
    level = level_at(schedule, t)
    with torch.no_grad():
        x0_hat, eps_hat = free(add_noise(x0, eps, level), level)[:2]
    pictures += [x0_hat]
    print(f"t = {t}: variance of the true noise {eps.var():.2f}, of its estimate {eps_hat.var():.2f}")
show_images(torch.cat(pictures), 10, down=["x₀", *(f"estimate, t = {t}" for t in (300, 600, 900))])

# %% [markdown]
# The later the time, the more images are possible, and the more the mean is blurred or shows another digit. One long step from
# $t = 900$ would return that blur.
#
# ### The geometry of one step
#
# In the plane of $\hat x_0$ and $\hat\varepsilon$ a step turns the noisy image from $(\alpha(t), \sigma(t))$ towards the image.

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
quarter = np.linspace(0, np.pi / 2, 100)
left.plot(np.cos(quarter), np.sin(quarter), color="0.85")
for level, name, place in ((now, "$x_t$", (-0.02, 0.05)), (then, "$x_s$, $\\eta$ = 0", (0.03, 0.03))):
    left.annotate("", (level.alpha, level.sigma), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "black"})
    left.text(level.alpha + place[0], level.sigma + place[1], name)
    left.plot([level.alpha, level.alpha], [0, level.sigma], color="0.6", linestyle=":")
    left.plot([0, level.alpha], [level.sigma, level.sigma], color="0.6", linestyle=":")
for level, letter in ((now, "t"), (then, "s")):
    left.text(level.alpha, -0.07, f"$\\alpha({letter})$", ha="center")
    left.text(-0.03, level.sigma, f"$\\sigma({letter})$", ha="right", va="center")
left.annotate("", (then.alpha, then.sigma), (now.alpha, now.sigma), arrowprops={"arrowstyle": "-|>", "color": "C0"})
left.set(xlim=(0, 1.15), ylim=(0, 1.1), aspect="equal", xticks=[], yticks=[], title="one step of DDIM")
left.set_xlabel("amount of $\\hat x_0$", labelpad=18)
left.set_ylabel("amount of $\\hat\\varepsilon$", labelpad=28)
right.plot(then.sigma * np.cos(quarter), then.sigma * np.sin(quarter), color="0.85")
for i, eta in enumerate((0.0, 0.5, 1.0)):
    fresh = eta * f
    old = math.sqrt(then.sigma**2 - fresh**2)
    right.annotate("", (old, fresh), (0, 0), arrowprops={"arrowstyle": "-|>", "color": f"C{i}"})
    right.plot([old, old], [0, fresh], color=f"C{i}", linestyle=":")
    right.text(old + 0.01, fresh + 0.01, f"$\\eta$ = {eta:g}", color=f"C{i}")
right.text(0.02, then.sigma + 0.01, "radius $\\sigma(s)$", color="0.5")
right.set(xlim=(0, 0.56), ylim=(0, 0.52), aspect="equal", title="the noise in $x_s$: old and fresh")
right.set(
    xlabel="amount of $\\hat\\varepsilon$, $\\sqrt{\\sigma(s)^2 - f^2}$", ylabel="amount of fresh noise $z$, $f$"
)
plt.show()

# %% [markdown]
# **Left:** the step from $t = 600$ to $s = 300$ keeps both directions and changes their amounts: more image, less noise.
# **Right:** the noise of $x_s$ can point anywhere on the quarter circle of radius $\sigma(s)$. $\eta$ decides how far it turns
# from the old noise to the fresh one, and Pythagoras keeps its length. DDPM ($\eta = 1$) is not the end of the arc: part of the
# old noise stays, because $x_t$ determines part of the noise in $x_s$.
#
# The sampler is now five lines. We compare it with [solvers.py](ddim_schedules/solvers.py), which writes DDIM as the paper does,
# and with [samplers.py](../common/diffusion/samplers.py), which the whole course uses.

# %%
from common.diffusion.samplers import SAMPLERS
from ddim_schedules import solvers


@torch.no_grad()
def my_ddim(denoise, x, levels, eta=0.0, noise=Noise(0)):
    for k, (now, then) in enumerate(pairwise(levels), start=1):
        x0, eps = denoise(x, now)[:2]  # split
        x = mix(x0, eps, now, then, eta, noise(k, x))  # mix again, with a little less noise
    return x


def eps_model(x, t):
    """The same network with the paper's interface: x and t, counted from 0 -> the noise."""
    return denoise(x, level_at(schedule, int(t[0]) + 1)).eps


def noise_for(n, seed=0):
    """Pure noise to start from. (n, 1, 28, 28)"""
    return Noise(seed)(0, torch.empty(n, 1, 28, 28))


def last(steps):
    """The end of a generator."""
    *_, end = steps
    return end


x, tau = noise_for(2), solvers.timesteps(1000, 10)
for eta in (0.0, 1.0):
    mine = my_ddim(denoise, x, schedule.noise_levels(10), eta)
    paper = last(solvers.ddim(eps_model, x, schedule.alpha_bar, tau, Noise(0), eta))
    course = last(SAMPLERS["ddim"](denoise, x, schedule.noise_levels(10), eta, Noise(0))).x
    differences = (mine - paper).abs().max(), (mine - course).abs().max()
    print(f"eta = {eta}: largest difference to the paper's {differences[0]:.1e}, to the course's {differences[1]:.1e}")

# %% [markdown]
# They agree up to rounding. (The paper's form divides by $\sqrt{\bar\alpha_T}$ to find $x_0$ and loses some digits by it, as
# section 2 explained.)
#
# **Question:** each column below starts from the same noise. Which rows will show the same digits?

# %%
x = noise_for(10, seed=3)
rows = {
    "η = 0, 15 steps": my_ddim(denoise, x, schedule.noise_levels(15)),
    "η = 0, 40 steps": my_ddim(denoise, x, schedule.noise_levels(40)),
    "η = 1, 40 steps": my_ddim(denoise, x, schedule.noise_levels(40), 1.0, Noise(1)),
    "η = 1, other noise": my_ddim(denoise, x, schedule.noise_levels(40), 1.0, Noise(2)),
}
show_images(torch.cat(list(rows.values())), 10, down=list(rows))
a, b, c, d = rows.values()
print("typical difference of pixels (rms):")
print(f"  eta = 0, 15 and 40 steps {rms(a - b):.2f};  eta = 0 and eta = 1 {rms(b - c):.2f}")
print(f"  eta = 1 with other noise {rms(c - d):.2f};  two unrelated digits {rms(b - b.roll(1, 0)):.2f}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# The first two. With $\eta = 0$ the start determines the result, and the number of steps decides only how accurately it is
# reached. With $\eta = 1$ the fresh noise makes another digit of it, nearly as different as two unrelated digits.
# </details>
#
# That the start *determines* the image makes DDIM useful for more than speed. Sections 12 and 13 use it.

# %% [markdown]
# ## 4 · Fewer steps: respacing, and a common mistake
#
# You may have read that DDPM needs its thousand steps, and that its samples stay noisy with fewer
# ([claims.md](../docs/claims.md#ddpm-with-few-steps-stays-noisy) has the sources). People have seen this happen. What did they
# see?
#
# One step of DDPM removes the noise that *one* step of the chain has added, $\beta_t$. With 20 steps instead of 1,000, the
# sampler visits only $t = 1000, 950, 900, \dots$ Between two visits lie 50 steps, which together add much more noise. By the
# definition of $\bar\alpha_t$ as a product, the chain that jumps from $s$ to $t$ has
#
# $$\beta_{s \to t} = 1 - \frac{\bar\alpha_t}{\bar\alpha_s} \qquad\text{and not}\qquad \beta_t = 1 - \frac{\bar\alpha_t}{\bar\alpha_{t-1}}$$
#
# Computing the chain anew for the visited steps is called **respacing**. If you forget it, each step removes the noise of only
# one of the 50 steps that it stands for. [solvers.py](ddim_schedules/solvers.py) has both versions, `ddpm_respaced` and `ddpm_naive`. They differ
# in one index.
#
# > **In the papers:** [Nichol & Dhariwal 2021](https://arxiv.org/abs/2102.09672), section 4 and eq. 19.
#
# We sample 48 digits with 20 steps of each, and a few with more steps.

# %%
visited = [0, 50, 100, 150]  # the clean image comes first
long_betas = 1 - schedule.alpha_bar[visited[1:]] / schedule.alpha_bar[visited[:-1]]
print("beta of the long steps  ", [f"{beta:.4f}" for beta in long_betas.tolist()])
print("beta of the single steps", [f"{beta:.4f}" for beta in schedule.betas[[t - 1 for t in visited[1:]]].tolist()])

N = 48
x = noise_for(N, seed=7)


def states(solver, steps, n=N):
    """Every state of a solver. Each (n, 1, 28, 28)"""
    return list(solver(eps_model, x[:n], schedule.alpha_bar, solvers.timesteps(1000, steps), Noise(7)))


trajectories = {
    "DDIM, 20 steps": states(solvers.ddim, 20),
    "DDPM, 20 steps": states(solvers.ddpm_respaced, 20),
    "the mistake, 20": states(solvers.ddpm_naive, 20),
    "the mistake, 100": states(solvers.ddpm_naive, 100, n=5),  # for the table below
}
real = unseen.batch(torch.arange(N))["image"]
pictures = {"real": real} | {name: frames[-1] for name, frames in trajectories.items()}
show_images(
    torch.cat([images[:10] for images in pictures.values() if len(images) >= 10]), 10, down=list(pictures)[:-1]
)

# %% [markdown]
# The **Fréchet distance** of chapter 1 compares the features of real and of sampled digits. Its floor is the mean distance that as
# many real digits get. With 48 digits this distance varies from draw to draw, so good samples can come out below the floor. That
# does not make them better than real digits. The noise that is left in an image can be estimated from how much each pixel differs from what its
# neighbours suggest ([Immerkær 1996](https://doi.org/10.1006/cviu.1996.0060)).

# %%
from common.evaluate.evaluator import Evaluator

evaluator = Evaluator(unseen, mnist, 28, N)  # distances of N images from the 2,000 test digits
LAPLACE = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]).view(1, 1, 3, 3)


def noise_left(images):
    """Estimated standard deviation of the noise in images that are otherwise smooth."""
    return float(math.sqrt(math.pi / 2) / 6 * F.conv2d(images, LAPLACE).abs().mean())


def frechet(images):
    """The Fréchet distance and its 95 % interval (bootstrap over the samples)."""
    report = evaluator(images)
    return report.frechet, *report.frechet_interval


print(f"{'':18}{'noise left':>12}{'Fréchet distance (95 % interval)':>38}")
for name, images in pictures.items():
    distance = ""
    if name == "real":
        distance = f"{evaluator.frechet_real.mean():.1f} (the floor)"
    elif len(images) == N:
        value, low, high = frechet(images)
        distance = f"{value:.1f} ({low:.1f} to {high:.1f})"
    print(f"{name:18}{noise_left(images):12.3f}{distance:>38}")

# %% [markdown]
# Respaced correctly, DDPM draws clean digits in 20 steps. With the mistake the images are noise, and they are still noisy after
# 100 steps. From such images you would conclude that DDPM needs its thousand steps.
#
# Where does the mistake go wrong? We estimate the noise in the image after every step, and compare it with noisy versions of real
# digits, which is what the network saw in training at this level.

# %%
t = solvers.timesteps(1000, 20)
expected = [noise_left(add_noise(real, Noise(8)(0, real), level_at(schedule, step))) for step in t]
plt.figure(figsize=(6.5, 2.8), layout="constrained")
plt.plot(t, expected, color="0.75", linewidth=6, label="noisy real digits: what the network expects")
for name in ("DDPM, 20 steps", "the mistake, 20"):
    plt.plot(t, [noise_left(x), *map(noise_left, trajectories[name])], marker="o", markersize=3, label=name)
plt.gca().set(xlabel="timestep t", ylabel="estimated noise", ylim=(0, None), xlim=(1000, 0))
plt.legend(fontsize=8, loc="lower left")
plt.show()

# %% [markdown]
# The respaced chain (blue) has the noise that the network expects at every step. With the mistake (orange) the image holds more
# and more noise than the level that the network is given, and at the end the excess is still there.

# %% [markdown]
# ## 5 · The probability-flow ODE and the reverse SDE
#
# DDIM with shorter and shorter steps becomes a differential equation, and so does DDPM. Why do both end in the data distribution,
# although the network gives only conditional means? One dimension is enough to see it, because there the whole density can be
# drawn.
#
# ### A density that moves
#
# Let 30 % of our numbers lie around $-0.8$ and 70 % around $0.5$, each with standard deviation 0.2. We use the circle
# $\alpha = \cos(\pi t / 2)$, $\sigma = \sin(\pi t / 2)$ with $t$ from 0 to 1. For such a **mixture of Gaussians** the noisy
# density $p_t(x)$ is again a mixture of Gaussians, and the best possible denoiser $\mathbb E[x_0 \mid x_t]$ is a formula.

# %%
CENTRES = torch.tensor([-0.8, 0.5], dtype=torch.float64)
SHARES, WIDTH = torch.tensor([0.3, 0.7], dtype=torch.float64), 0.2


def circle(t):
    return NoiseLevel(1000 * t, math.cos(math.pi * t / 2), math.sin(math.pi * t / 2))


def density(x, level):
    """p_t(x): Gaussians around alpha times each centre. (N,)"""
    variance = (level.alpha * WIDTH) ** 2 + level.sigma**2
    off = x[:, None] - level.alpha * CENTRES
    return (SHARES * (-(off**2) / (2 * variance)).exp()).sum(-1) / math.sqrt(2 * math.pi * variance)


def centres_given(x, level):
    """How likely each centre is (N, 2), and the mean of x0 if that centre is the right one (N, 2)."""
    variance = (level.alpha * WIDTH) ** 2 + level.sigma**2
    off = x[..., None] - level.alpha * CENTRES
    return (SHARES.log() - off**2 / (2 * variance)).softmax(-1), CENTRES + level.alpha * WIDTH**2 / variance * off


def ideal(x, level):
    """The best possible denoiser, E[x0 | x] and E[eps | x]. (N,) -> (N,), (N,)"""
    likely, mean = centres_given(x, level)
    x0 = (likely * mean).sum(-1)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


# %% [markdown]
# Each noisy number moves with time: $x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon$ has the velocity
# $\dot x_t = \dot\alpha\,x_0 + \dot\sigma\,\varepsilon$, where the dot is the derivative by $t$. How does the *density* of all
# these numbers move? Take any smooth function $h$ that vanishes far away:
#
# $$\int h(x)\,\frac{\partial p_t(x)}{\partial t}\,dx = \frac{d}{dt}\,\mathbb E[h(x_t)] = \mathbb E[h'(x_t)\,\dot x_t] = \mathbb E\big[h'(x_t)\, u_t(x_t)\big]
# = \int h'(x)\,u_t(x)\,p_t(x)\,dx$$
#
# with the **conditional mean of the velocity**, $u_t(x) = \mathbb E[\dot x_t \mid x_t = x]$. Integrate the right side by parts.
# Since $h$ is arbitrary, the **continuity equation** follows:
#
# $$\frac{\partial p_t}{\partial t} = -\frac{\partial (u_t\,p_t)}{\partial x} \qquad\text{with}\qquad u_t(x) = \dot\alpha\,\hat x_0(x, t) + \dot\sigma\,\hat\varepsilon(x, t) \tag{3}$$
#
# It says that probability is neither made nor lost: where more flows in than out, the density grows. It holds for *anything* that
# moves with velocity $u_t$. So if a crowd of numbers starts with density $p_1$ and every one follows
#
# $$dx = u_t(x)\,dt = \hat x_0\,d\alpha + \hat\varepsilon\,d\sigma \tag{4}$$
#
# then the crowd has density $p_t$ at every time, and the data distribution at $t = 0$. This is the **probability-flow ODE**. It
# needs conditional means and nothing else, and conditional means are what a squared error trains. A long step of DDIM is wrong,
# but infinitely many short ones are right. On the circle, $u_t = \frac{\pi}{2}\,\hat v$: the `v` of section 2 *is* this velocity.
#
# ### With noise
#
# Noise spreads a density. If each number also receives noise of variance $c^2\,dt$, the density follows the **Fokker–Planck
# equation**: the spreading adds $\frac{c^2}{2}\,\partial^2 p_t / \partial x^2$ to (3). A drift can cancel it exactly, because
#
# $$\frac{\partial^2 p_t}{\partial x^2} = \frac{\partial}{\partial x}\left(p_t\,\frac{\partial \log p_t}{\partial x}\right)$$
#
# has the form of a flow with the score as its velocity. So, *backwards* in time with steps $|dt|$, for **every** $c(t) \ge 0$,
#
# $$dx = -u_t(x)\,|dt| + \underbrace{\frac{c^2}{2}\,\nabla \log p_t(x)\,|dt|}_{\text{pulls together}} + \underbrace{c\,dw}_{\text{spreads}}, \qquad \nabla\log p_t(x) = -\frac{\hat\varepsilon}{\sigma} \tag{5}$$
#
# has the same densities $p_t$. With $c = 0$ it is the ODE. With $c = g$, the noise of the forward process, it is the **reverse
# SDE**, the limit of DDPM. ($dw$ is normal noise of variance $|dt|$. The last equation is chapter 1's link between score and
# noise.)
#
# > **In the papers:** [Y. Song et al. 2021](https://arxiv.org/abs/2011.13456) write the forward process as
# > $dx = f(x, t)\,dt + g(t)\,dw$ and the reverse SDE as $dx = [f - g^2\,\nabla_x \log p_t(x)]\,dt + g\,d\bar w$ (eq. 6); their
# > probability-flow ODE is $dx = [f - \frac12 g^2\,\nabla_x \log p_t(x)]\,dt$. For our mixtures $f = x\,\dot\alpha/\alpha$ and
# > $g^2 = \frac{d}{dt}\sigma^2 - 2\,\sigma^2\,\dot\alpha/\alpha$, on the circle $g^2 = \pi\tan(\pi t/2)$. Two first authors are called Song:
# > Jiaming Song wrote DDIM, and Yang Song the SDE paper.
#
# Two checks follow. First (3) on a grid, by finite differences. Then (4) and (5), simulated.

# %%
grid = torch.linspace(-4, 4, 1601, dtype=torch.float64)


def velocity(x, t):
    """u_t of (3) on the circle. (N,)"""
    level = circle(t)
    x0, eps = ideal(x, level)[:2]
    return math.pi / 2 * (level.alpha * eps - level.sigma * x0)


t, d = 0.5, 1e-4
change = (density(grid, circle(t + d)) - density(grid, circle(t - d))) / (2 * d)
flow_in = -torch.gradient(velocity(grid, t) * density(grid, circle(t)), spacing=(grid,))[0]
print(f"largest change of the density {change.abs().max():.3f} per unit of time")
print(f"the right side of (3) differs from it by at most {(change - flow_in).abs().max():.0e}")


def simulate(x, amount, steps=500, first=0.98, end=0.005, seed=0):
    """Equation (5) from t = first to t = end, with c^2 = amount * g^2. Yields x (N,) at the start and after each step."""
    yield x
    times, g = torch.linspace(first, end, steps + 1).tolist(), torch.Generator().manual_seed(seed)
    for t, t_next in pairwise(times):
        level, dt = circle(t), t - t_next
        c2 = amount * math.pi * math.tan(math.pi * t / 2)
        score = -ideal(x, level).eps / level.sigma
        x = x - velocity(x, t) * dt + c2 / 2 * score * dt
        x = x + math.sqrt(c2 * dt) * torch.randn(x.shape, generator=g, dtype=x.dtype)
        yield x


def quantiles(n):
    """n numbers that lie exactly as the data distribution demands. (n,)"""
    below = (SHARES * torch.special.ndtr((grid[:, None] - CENTRES) / WIDTH)).sum(-1)
    return torch.from_numpy(np.interp((np.arange(n) + 0.5) / n, below, grid))


def distance(x):
    """Wasserstein distance: how far a number must be moved, on average, to turn these numbers into the data distribution."""
    return float((x.sort().values - quantiles(len(x))).abs().mean())


start = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)  # numbers distributed as noise
start = start[torch.randperm(4000, generator=torch.Generator().manual_seed(0))]
for amount in (0, 0.5, 1, 2):
    name = {0: "(the ODE)", 1: "(the reverse SDE)"}.get(amount, "")
    print(
        f"c^2 = {amount:3} g^2: distance from the data distribution {distance(last(simulate(start, amount))):.3f} {name}"
    )
g, many = torch.Generator().manual_seed(0), quantiles(10**5)
drawn = [distance(many[torch.randint(10**5, (4000,), generator=g)]) for _ in range(20)]
print(f"4,000 numbers drawn from the data distribution itself: {np.mean(drawn):.3f}")

# %% [markdown]
# Four amounts of noise, one distribution. (The ODE comes out lowest because its starts were spread evenly, and it keeps them so.)
# The next figure shows the history of the density as a heat map, with trajectories of both kinds from the same starts.
#
# **Question:** where do the trajectories of the ODE part? Can two of them cross?

# %%
times = np.linspace(0.005, 0.98, 196)
heat = torch.stack([density(grid, circle(t)) for t in times], 1)  # (1601, 196)
few = torch.special.ndtri(
    torch.tensor([0.03, 0.12, 0.22, 0.28, 0.32, 0.4, 0.55, 0.7, 0.85, 0.96], dtype=torch.float64)
)
_, axes = plt.subplots(1, 3, figsize=(11.5, 3.9), layout="constrained", width_ratios=[1, 1, 0.35], sharey=True)
for axis, amount, title in zip(axes, (0, 1), ("probability-flow ODE", "reverse SDE"), strict=False):
    picture = axis.pcolormesh(times, grid, heat.sqrt(), cmap="Blues", shading="auto", rasterized=True)
    axis.plot(
        np.linspace(0.98, 0.005, 501), torch.stack(list(simulate(few, amount, seed=3))), color="C1", linewidth=0.9
    )
    axis.set(title=title, xlabel="t   (noise … data)", xlim=(0.98, 0.005), ylim=(-2.3, 2.3))
axes[0].set_ylabel("x")
plt.colorbar(picture, ax=axes[1], label="$\\sqrt{p_t(x)}$")
for amount, name in ((0, "ODE"), (1, "SDE")):
    ends = last(simulate(start, amount))
    axes[2].hist(ends, bins=60, range=(-2.3, 2.3), density=True, orientation="horizontal", histtype="step", label=name)
axes[2].plot(density(grid, circle(0.0)), grid, color="black", linewidth=0.8, label="data")
axes[2].set(title="at the end", xlabel="density")
axes[2].legend(fontsize=7, loc="lower right")
plt.show()

# %% [markdown]
# <details><summary>Answer</summary>
#
# They part where the two bands separate, below $t = 0.4$. Two of them cannot cross: at a given place and time the ODE has one
# velocity, so from a crossing on both would be the same trajectory. The ODE therefore keeps the order of the numbers: the lowest
# 30 % of the noise become the lower group. Trajectories of the SDE cross freely.
# </details>

# %% [markdown]
# ## 6 · Solvers of higher order
#
# DDIM with $\eta = 0$ is **Euler's method** on (4): evaluate the network once, and go straight. With half the step length you get
# half the error, so it is of first order. Better methods are more than a century old.
#
# **Heun's method** (EDM, algorithm 1) goes ahead, evaluates the network again, and steps from the start with the mean of both:
#
# $$x' = x + \hat x_0\,\Delta\alpha + \hat\varepsilon\,\Delta\sigma \qquad\qquad
# x_s = x + \tfrac12(\hat x_0 + \hat x_0')\,\Delta\alpha + \tfrac12(\hat\varepsilon + \hat\varepsilon')\,\Delta\sigma$$
#
# It is of second order, for two **function evaluations** a step. At the last step, where $\sigma(s) = 0$, there is no second
# evaluation.
#
# > **In the papers:** with $\alpha = 1$ and $\sigma = t$ this is EDM's algorithm 1. (On other schedules EDM steps in $t$, and we step in
# > $\alpha$ and $\sigma$.) EDM's denoiser $D(x; \sigma)$ is our $\hat x_0$, so $dx/d\sigma = (x - D)/\sigma = \hat\varepsilon$. Its
# > network $F$ enters as $D = c_{\text{skip}}\,x + c_{\text{out}}\,F(c_{\text{in}}\,x;\, c_{\text{noise}})$, and the row `edm` of
# > section 2 is the target of $F$. DDIM's eq. 14 is the same ODE on any schedule: $d(x/\alpha) = \hat\varepsilon\; d(\sigma/\alpha)$.
#
# **DPM-Solver++(2M)** ([Lu et al. 2022](https://arxiv.org/abs/2211.01095)) gets second order from *one* evaluation a step. First
# it solves exactly what can be solved. Divide (4) by $\sigma$, and put in $\hat\varepsilon = (x - \alpha\hat x_0)/\sigma$:
#
# $$d\!\left(\frac{x}{\sigma}\right) = \hat x_0\; d\!\left(\frac{\alpha}{\sigma}\right) = \hat x_0\,d(e^\lambda)
# \qquad\Longrightarrow\qquad \frac{x_s}{\sigma(s)} = \frac{x_t}{\sigma(t)} + \int_{\lambda(t)}^{\lambda(s)} e^\lambda\,\hat x_0\;d\lambda$$
#
# If $\hat x_0$ were constant over the step, with $h = \lambda(s) - \lambda(t)$ this would give
#
# $$x_s = \frac{\sigma(s)}{\sigma(t)}\,x_t - \alpha(s)\left(e^{-h} - 1\right) D \qquad\text{with } D = \hat x_0 \tag{6}$$
#
# which is DDIM once more. The second-order version takes for $D$ the value that $\hat x_0$ will have in the *middle* of the step,
# if it keeps changing by $\lambda$ as it did since the last evaluation:
#
# $$D = \hat x_0 + \frac{\hat x_0 - \hat x_0^{\text{old}}}{2r} \qquad r = \frac{\lambda(t) - \lambda^{\text{old}}}{h} \tag{7}$$
#
# The first step has no history and uses $D = \hat x_0$. At the last step $\sigma(s) = 0$, $e^{-h} = 0$, and
# $x_s = \alpha(s)\,\hat x_0$.
#
# > **In the papers:** (6) and (7) are DPM-Solver++'s algorithm 2; the paper calls $\hat x_0$ the data prediction $x_\theta$ and numbers its times in the
# > order of sampling, $t_0 = T > t_1 > \dots > t_M$, so a step goes from $t_{i-1}$ (our $t$) to $t_i$ (our $s$).


# %%
def dpmpp_2m(denoise, x, levels):
    x0_old = before = None
    for now, then in pairwise(levels):
        x0 = denoise(x, now)[0]
        if then.sigma == 0:
            yield then.alpha * x0
            return
        h, D = then.lam - now.lam, x0
        if before is not None:
            D = x0 + (x0 - x0_old) * h / (2 * (now.lam - before.lam))
        x = then.sigma / now.sigma * x - then.alpha * math.expm1(-h) * D
        x0_old, before = x0, now
        yield x


def even_levels(steps, first=-2.5, end=3.0):
    """Levels evenly spaced in lambda on the circle; a little noise is left at the end."""
    levels = [schedule.at_lam(lam) for lam in np.linspace(first, end, steps + 1)]
    columns = zip(*levels, strict=True)
    return NoiseLevels(NoiseLevel(*(torch.tensor(column, dtype=torch.float64) for column in columns)), schedule)


x = torch.linspace(-2, 2, 15, dtype=torch.float64)
mine, course = last(dpmpp_2m(ideal, x, even_levels(10))), last(SAMPLERS["dpmpp_2m"](ideal, x, even_levels(10))).x
print(f"largest difference from the course's dpmpp_2m: {(mine - course).abs().max():.0e}")

# %% [markdown]
# To see the order of a method, you need a problem with a known answer. We take the mixture of section 5.

# %%
solver = {"Euler = DDIM": ("ddim", 1), "Heun": ("heun", 2), "DPM-Solver++(2M)": ("dpmpp_2m", 1)}  # evaluations a step
fine = [x, *(step.x for step in SAMPLERS["heun"](ideal, x, even_levels(1000)))]
counts, errors = [6, 12, 24, 48, 96, 192, 384], {}
for name, (method, each) in solver.items():
    ends = [last(SAMPLERS[method](ideal, x, even_levels(n // each))).x for n in counts]
    errors[name] = [float((end - fine[-1]).abs().mean()) for end in ends]

_, (paths, order) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
paths.plot(np.linspace(-2.5, 3, 1001), torch.stack(fine), color="0.85", linewidth=1)
paths.plot(np.linspace(-2.5, 3, 1001), torch.stack(fine)[:, [5, 8]], color="black", linewidth=1)
for i, (name, (method, each)) in enumerate(solver.items()):
    states_of = torch.stack([x, *(step.x for step in SAMPLERS[method](ideal, x, even_levels(6 // each)))])[:, [5, 8]]
    where = np.linspace(-2.5, 3, 6 // each + 1)
    paths.plot(where, states_of, color=f"C{i}", marker="o", markersize=4, label=[name, None])
paths.set(
    xlabel="$\\lambda$   (from noise to data)", ylabel="x", title="six evaluations; black and grey: exact trajectories"
)
paths.legend(fontsize=8, loc="lower left")
for i, (name, error) in enumerate(errors.items()):
    slope = np.polyfit(np.log(counts[-3:]), np.log(error[-3:]), 1)[0]
    order.plot(counts, error, color=f"C{i}", marker="o", markersize=4, label=f"{name}: slope {slope:.2f}")
order.set(xscale="log", yscale="log", xticks=counts, xticklabels=counts)
order.set(xlabel="network evaluations", ylabel="mean error at the end")
order.minorticks_off()
order.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Left:** the exact trajectories end in two groups and part in between. Euler's long straight steps leave the trajectory where
# it bends. **Right:** twice the evaluations halve Euler's error (slope $-1$) and quarter that of the others (slope $-2$), and 2M
# needs the fewest evaluations. That is what theory promises for *many* steps. With few steps it promises nothing, so we measure
# on digits. All samplers start from the same noise, and the reference is the end of the trajectory, computed with 40 steps of
# Heun.

# %%
x = noise_for(10, seed=11)
reference = last(SAMPLERS["heun"](denoise, x, schedule.noise_levels(40))).x
runs = {"ddim": (5, 10, 20), "heun": (3, 5, 10), "dpmpp_2m": (5, 10, 20)}  # steps
ends = {
    (name, n): last(SAMPLERS[name](denoise, x, schedule.noise_levels(n))).x
    for name, counts in runs.items()
    for n in counts
}
labels, pictures = ["reference"], [reference]
for name, n in (("ddim", 5), ("heun", 3), ("dpmpp_2m", 5)):
    labels += [f"{name}, 5 evaluations", "difference"]
    pictures += [ends[name, n], (ends[name, n] - reference) / 2]
show_images(torch.cat(pictures), 10, down=labels)


def typical_difference(images):
    """The median over images of the rms difference from the reference: a single digit that changes does not decide it."""
    return float((images - reference).square().mean((1, 2, 3)).sqrt().median())


plt.figure(figsize=(5.5, 2.8), layout="constrained")
for name, counts in runs.items():
    evaluations = [2 * n - 1 if name == "heun" else n for n in counts]
    plt.plot(evaluations, [typical_difference(ends[name, n]) for n in counts], marker="o", markersize=4, label=name)
plt.gca().set(xscale="log", xticks=[5, 10, 20], xticklabels=[5, 10, 20], xlabel="network evaluations")
plt.gca().set(ylabel="rms difference (median)", ylim=(0, None))
plt.minorticks_off()
plt.legend(fontsize=8)
plt.show()
for name, counts in runs.items():
    print(f"{name:10}" + "".join(f"   {n:2} steps {typical_difference(ends[name, n]):.3f}" for n in counts))

# %% [markdown]
# In the difference rows, grey means equal. With five evaluations none of them reaches the end of the trajectory, and Heun, which
# has only three steps for them, is the farthest from it. With more evaluations both methods of second order come closer than
# DDIM. But being far from the reference is not the same as being a bad digit: look at the samples themselves.

# %% [markdown]
# ## 7 · Stochastic or deterministic?
#
# Stochastic samplers have many names. Which of them are different?
#
# * **DDPM** is $\eta = 1$ in section 3.
# * **Euler ancestral** ("Euler a" in many programs) takes an Euler step to a level *below* the next one and adds the noise that
#   is missing.
# * **Euler–Maruyama** solves the reverse SDE with drift and noise taken as constant over a step.

# %%
x, tau = noise_for(2), solvers.timesteps(1000, 10)
ends = {
    "our mix, eta = 1": my_ddim(denoise, x, schedule.noise_levels(10), 1.0),
    "DDPM, respaced": last(solvers.ddpm_respaced(eps_model, x, schedule.alpha_bar, tau, Noise(0))),
    "Euler ancestral": last(solvers.euler_ancestral(eps_model, x, schedule.alpha_bar, tau, Noise(0))),
    "Euler–Maruyama": last(SAMPLERS["sde"](denoise, x, schedule.noise_levels(10), noise=Noise(0))).x,
}
for name, images in ends.items():
    print(f"{name:18} largest difference from the first {(images - ends['our mix, eta = 1']).abs().max():.1e}")

# %% [markdown]
# The first three are one sampler under three names, up to rounding. Euler–Maruyama is another, which becomes DDPM as its steps
# get shorter.
#
# ### A toy
#
# What does fresh noise cost, and what does it give? First the numbers of section 5, where the right result is known. We sample
# them with a perfect denoiser, and with one that errs at much noise: where $\sigma > 0.8$, its estimate of $x_0$ is always 0.3
# too high.


# %%
def faulty(x, level):
    """The ideal denoiser, with an error at high noise."""
    x0 = ideal(x, level).x0 + 0.3 * (level.sigma > 0.8)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


counts = [5, 10, 20, 50, 100, 200]
_, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained", sharey=True)
titles = ("a perfect denoiser", "a denoiser that errs at high noise")
for axis, denoiser, title in zip(axes, (ideal, faulty), titles, strict=True):
    for name in ("ddim", "dpmpp_2m", "ddpm", "sde"):
        options = {"noise": Noise(1)} if name in ("ddpm", "sde") else {}
        ends = [last(SAMPLERS[name](denoiser, start, schedule.noise_levels(n), **options)).x for n in counts]
        axis.plot(
            counts,
            [distance(end) for end in ends],
            marker="o",
            markersize=4,
            label=name,
            linestyle="--" if options else "-",
        )
    axis.set(xscale="log", yscale="log", xlabel="network evaluations", title=title, xticks=counts, xticklabels=counts)
    axis.minorticks_off()
axes[0].set_ylabel("distance from the data distribution")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# In this toy, a perfect denoiser is served best by the deterministic 2M. When the denoiser errs, the deterministic samplers
# (solid) carry the early error to the end however many steps they take, whereas fresh noise makes the sampler forget a part of
# it. (Euler–Maruyama with few steps is lower still, because its own error happens to point the other way.) From this toy alone
# you would conclude: deterministic for few steps, stochastic for many steps and an imperfect network.
#
# ### Digits
#
# Does the rule hold for a real network? The next cell measures 48 digits for each point, all from the same initial noise, against
# network evaluations.

# %%
counts = {"ddim": (5, 10, 20), "ddpm": (5, 10, 20), "dpmpp_2m": (5, 10)}
known = {("ddim", 20): trajectories["DDIM, 20 steps"][-1], ("ddpm", 20): trajectories["DDPM, 20 steps"][-1]}
x, measured = noise_for(N, seed=7), {}
for name, steps in counts.items():
    for n in steps:
        options = {"noise": Noise(7)} if name == "ddpm" else {}
        images = known.get((name, n))
        if images is None:
            images = last(SAMPLERS[name](denoise, x, schedule.noise_levels(n), **options)).x
        measured[name, n] = frechet(images)

plt.figure(figsize=(6.5, 3), layout="constrained")
for i, (name, steps) in enumerate(counts.items()):
    value, low, high = np.array([measured[name, n] for n in steps]).T
    plt.plot(steps, value, color=f"C{i}", marker="o", markersize=4, label=name)
    plt.fill_between(steps, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
plt.axhline(evaluator.frechet_real.mean(), color="0.4", linestyle="--", linewidth=1, label="real digits")
plt.gca().set(xscale="log", xticks=[5, 10, 20], xticklabels=[5, 10, 20], xlabel="network evaluations")
plt.gca().set(ylabel="Fréchet distance", ylim=(0, None))
plt.minorticks_off()
plt.legend(fontsize=8)
plt.show()
print("Fréchet distance (95 % interval)")
for name, steps in counts.items():
    cells = [
        f"{n:3}: {measured[name, n][0]:.1f} ({measured[name, n][1]:.1f} to {measured[name, n][2]:.1f})" for n in steps
    ]
    print(f"  {name:10}" + "    ".join(cells))

# %% [markdown]
# Compare `ddim` and `ddpm` at equal evaluations: at all three points the difference is smaller than the root of the sum of both
# squared half widths. With 48 digits, a difference between stochastic and deterministic sampling was **not seen here**, neither the
# one that the toy predicts nor its opposite. `ablate.py samplers` measures more samplers with more images; its results are in
# [RESULTS.md](RESULTS.md). There, DDPM has the smaller distance with 5 and with 20 evaluations. Only with 5 is the difference larger
# than its own interval (13.1<!--results--> for DDIM, 6.29<!--results--> for DDPM). This is one seed and several comparisons, so it is
# weak evidence, and it points against the toy's rule. Two other stochastic samplers are behind DDIM with 5 evaluations:
# Euler–Maruyama, and DDPM with the variance $\beta_t$ instead of $\tilde\beta_t$. The toy has one kind of error, put in by hand. A trained network has errors of its
# own, so a rule from a toy is a hypothesis about a network and nothing more.

# %% [markdown]
# ## 8 · Flow matching
#
# Section 5 needs two things: a path of densities from noise to data, and the conditional mean of the velocity along it. **Flow
# matching** ([Lipman et al. 2023](https://arxiv.org/abs/2210.02747)) and **rectified flow**
# ([Liu et al. 2022](https://arxiv.org/abs/2209.03003)) start from these two, without a forward process. Stable Diffusion 3 and
# Flux are trained this way.
#
# ### Interpolant and loss
#
# Take a data point $x_0$ and a noise $\varepsilon$, and connect them by a straight line, the **interpolant**:
#
# $$x_t = (1 - t)\,x_0 + t\,\varepsilon \qquad\qquad \dot x_t = \varepsilon - x_0$$
#
# The velocity of one line is known. A network $v_\theta$ that sees only $(x_t, t)$ is trained to predict it:
#
# $$L_{\text{CFM}}(\theta) = \mathbb E_{t,\,x_0,\,\varepsilon}\, \big\lVert v_\theta(x_t, t) - (\varepsilon - x_0) \big\rVert^2 \tag{8}$$
#
# This is **conditional flow matching**, "conditional" because the target belongs to one pair. What we *want* is a loss with the
# velocity of the whole crowd, $u_t(x) = \mathbb E[\varepsilon - x_0 \mid x_t = x]$, which we cannot compute. Why is (8) good
# enough? Add and subtract $u_t$ in the square:
#
# $$\mathbb E\lVert v_\theta - (\varepsilon - x_0)\rVert^2 = \underbrace{\mathbb E\lVert v_\theta - u_t\rVert^2}_{L_{\text{FM}}(\theta)}
# \;+\; \mathbb E\lVert u_t - (\varepsilon - x_0)\rVert^2 \;+\; 2\,\mathbb E\big\langle v_\theta - u_t,\; u_t - (\varepsilon - x_0)\big\rangle$$
#
# Given $x_t$, the first factor of the last term is fixed and the second has mean 0, so the last term vanishes. The middle term
# does not depend on $\theta$. Therefore both losses have **the same gradient**, although their values differ. A minibatch of (8)
# gives an unbiased estimate of it.
#
# > **In the papers:** Lipman et al. call (8) the CFM objective and prove that its gradient is that of the FM objective; with straight
# > lines it is their eq. 23. They fix one image instead of a pair: $p_t(x \mid x_1) = \mathcal N(x;\, \mu_t(x_1),\, \sigma_t(x_1)^2 I)$
# > has the velocity $u_t(x \mid x_1) = \frac{\dot\sigma_t}{\sigma_t}(x - \mu_t) + \dot\mu_t$ (theorem 3). Their marginal
# > $u_t(x) = \int u_t(x \mid x_1)\,\frac{p_t(x \mid x_1)\,q(x_1)}{p_t(x)}\,dx_1$ (eq. 8) is our conditional mean, because the fraction is
# > the posterior of $x_1$. Their time and sign are the other way round:
# >
# > | | this course, Stable Diffusion 3 | Lipman et al. | Liu et al. |
# > |---|---|---|---|
# > | data at | $t = 0$, called $x_0$ | $t = 1$, called $x_1$ | $t = 1$, called $X_1$ |
# > | noise at | $t = 1$, called $\varepsilon$ | $t = 0$, called $x_0$ | $t = 0$, called $X_0$ |
# > | interpolant | $(1 - t)\,x_0 + t\,\varepsilon$ | $t\,x_1 + (1 - (1 - \sigma_{\min})\,t)\,x_0$ | $t\,X_1 + (1 - t)\,X_0$ |
# > | target | $\varepsilon - x_0$, towards the noise | $x_1 - (1 - \sigma_{\min})\,x_0$, towards the data | $X_1 - X_0$, towards the data |
# > | sampling | from $t = 1$ down to $0$ | from $t = 0$ up to $1$ | from $t = 0$ up to $1$ |
#
# Where the conditional mean of the image is known, so is $u_t$: put $\varepsilon = (x_t - (1 - t)\,x_0) / t$ into its definition,
# and
#
# $$u_t(x) = \frac{x - \hat x_0(x, t)}{t} \qquad\text{with}\qquad \hat x_0 = \mathbb E[x_0 \mid x_t = x]$$
#
# For a finite data set, $\hat x_0$ is the weighted mean of chapter 1's ideal denoiser. A check of the gradients on the numbers of
# section 5 follows. The "network" is $v_\theta(x, t) = \theta_1 + \theta_2\,x + \theta_3\,t$.


# %%
def flow_matching_loss(velocity, x0, eps, t):
    """The loss (8) of each sample. x0, eps (B, ...); t (B,) -> (B,)"""
    share = t.view(-1, *[1] * (x0.ndim - 1))  # (B, 1, ...)
    x_t = (1 - share) * x0 + share * eps
    return (velocity(x_t, t) - (eps - x0)).square().flatten(1).mean(1)


g = torch.Generator().manual_seed(0)
theta = torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64, requires_grad=True)


def linear(x, t):
    return theta[0] + theta[1] * x + theta[2] * t[:, None]


gradients = {"conditional loss (8)": [], "loss with the true u": []}
for _ in range(50):
    group = (torch.rand(4000, generator=g) > SHARES[0]).long()
    x0 = CENTRES[group] + WIDTH * torch.randn(4000, generator=g, dtype=torch.float64)
    eps, t = torch.randn(4000, generator=g, dtype=torch.float64), torch.rand(4000, generator=g, dtype=torch.float64)
    x_t = (1 - t) * x0 + t * eps
    likely, mean = centres_given(x_t, NoiseLevel(t, (1 - t)[:, None], t[:, None]))
    x0_mean = (likely * mean).sum(-1)  # E[x0 | x_t]
    u = (x_t - x0_mean) / t  # E[eps - x0 | x_t]
    losses = flow_matching_loss(linear, x0[:, None], eps[:, None], t), (linear(x_t[:, None], t)[:, 0] - u).square()
    for found, loss in zip(gradients.values(), losses, strict=True):
        found.append(torch.cat([loss.mean()[None].detach(), *torch.autograd.grad(loss.mean(), [theta])]))
print(f"{'mean of 50 minibatches':24}{'loss':>8}   gradient (95 % interval)")
for name, found in gradients.items():
    mean, half = torch.stack(found).mean(0), 1.96 * torch.stack(found).std(0) / 50**0.5
    print(
        f"{name:24}{mean[0]:8.3f}   "
        + "   ".join(f"{m:+.3f} ± {h:.3f}" for m, h in zip(mean[1:], half[1:], strict=True))
    )

# %% [markdown]
# The losses differ by the middle term, a constant. The gradients agree within their intervals, and only these reach the weights.
# The price of (8) is variance: its gradient fluctuates more from one minibatch to the next.
#
# ### On the plane
#
# The data are two moons. A network of three hidden layers is trained with (8), with $t$ uniform in $[0, 1]$.


# %%
def two_moons(n, seed=0):
    """Points on two interleaved half circles. (n, 2)"""
    g = torch.Generator().manual_seed(seed)
    angle, upper = math.pi * torch.rand(n, generator=g), torch.rand(n, generator=g) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return 1.2 * torch.stack([x, y], 1) + 0.06 * torch.randn(n, 2, generator=g)


class PlaneNet(nn.Module):
    """A velocity field in the plane. (B, 2), (B,) -> (B, 2)"""

    def __init__(self, width=96):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.end = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, t):
        place = (
            math.pi / 2 * torch.cat([x, 2 * x, 3 * x], 1)
        )  # waves of place and time: fine detail is easier to learn
        moment = math.pi * t[:, None] * torch.tensor([1, 2, 4])
        return self.end(self.layers(torch.cat([x, place.sin(), place.cos(), moment.sin(), moment.cos()], 1)))


def fit(net, loss, steps, lr=5e-3, decay=0.99):
    """Minimise loss(net, g) with AdamW and a falling learning rate; returns the average of the weights."""
    average, g = copy.deepcopy(net), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr)
    for k in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (k + 1) / (0.05 * steps)) * (1 + math.cos(math.pi * k / steps)) / 2
        optimizer.zero_grad()
        loss(net, g).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(weight, max(1 - decay, 1 / (k + 1)))
    return average.eval()


moons = two_moons(20_000)


def data_loss(net, g):
    x0 = moons[torch.randint(len(moons), (256,), generator=g)]
    eps, t = torch.randn(256, 2, generator=g), torch.rand(256, generator=g)
    return flow_matching_loss(net, x0, eps, t).mean()


torch.manual_seed(0)
flow = fit(PlaneNet(), data_loss, 2000)

# %% [markdown]
# Sampling is Euler's method from $t = 1$ to $t = 0$. The target points towards the noise, hence the minus sign.
#
# Does a straight interpolant give straight trajectories? The **straightness** of a flow compares its velocity along a trajectory
# with the line between the two ends $x_1$ (the noise) and $x_0$ of the *same* trajectory; it is 0 for straight lines at constant
# speed:
#
# $$S = \int_0^1 \mathbb E\,\lVert v_\theta(x_t, t) - (x_1 - x_0) \rVert^2\,dt$$
#
# ### Reflow
#
# A straight line leads from each noise to a *randomly chosen* data point in (8). Lines to different points cross, the network
# learns their mean, and the trajectories bend. **Reflow** (Liu et al.) replaces the random pairs: take a noise $\varepsilon$, let
# the trained flow generate $\hat x_0$ from it, and train a second flow on the pairs $(\hat x_0, \varepsilon)$. Trajectories of an
# ODE cannot cross, so each noise now has one image. The straight lines between such pairs cross far less often, though not never,
# so the paper repeats the procedure.
#
# **Question:** what will the second flow reach with a single step?


# %%
@torch.no_grad()
def euler(velocity, eps, steps):
    """From t = 1 to t = 0. Yields x, the noise first."""
    x = eps
    yield x
    for k in range(steps):
        t = torch.full((len(x),), 1 - k / steps)
        x = x - velocity(x, t) / steps
        yield x


def reflow_pairs(velocity, eps, steps):
    """(x0, eps): what the flow generates from each noise, and that noise."""
    return last(euler(velocity, eps, steps)), eps


def pair_loss(pairs):
    def loss(net, g):
        chosen = torch.randint(len(pairs[0]), (256,), generator=g)
        return flow_matching_loss(net, pairs[0][chosen], pairs[1][chosen], torch.rand(256, generator=g)).mean()

    return loss


noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))
straight = fit(copy.deepcopy(flow), pair_loss(reflow_pairs(flow, noise, 40)), 1500)

start_2d = torch.randn(4000, 2, generator=torch.Generator().manual_seed(2))
directions = torch.stack(
    [torch.tensor([math.cos(a), math.sin(a)]) for a in np.linspace(0, np.pi, 31)[:-1]], 1
)  # (2, 30)
real_2d = two_moons(4000, seed=5)


def sliced(a, b=real_2d):
    """Sliced Wasserstein distance: that of section 5, averaged over 30 directions of the plane."""
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).abs().mean())


def straightness(velocity, steps=50):
    frames = list(euler(velocity, start_2d, steps))
    line = frames[0] - frames[-1]
    return np.mean([float(((a - b) * steps - line).square().sum(1).mean()) for a, b in pairwise(frames)])


flows, counts = {"flow": flow, "after reflow": straight}, [1, 2, 4, 8, 16, 32]
_, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained", width_ratios=[1, 1, 1, 1.1])
axes[0].scatter(*real_2d.T, s=1, color="black", linewidths=0)
axes[0].set_title("data")
for axis, (name, velocity_2d) in zip(axes[1:3], flows.items(), strict=True):
    frames = torch.stack(list(euler(velocity_2d, start_2d[:60], 50)))
    axis.scatter(*last(euler(velocity_2d, start_2d, 32)).T, s=0.6, color="0.75", linewidths=0)
    axis.plot(frames[..., 0], frames[..., 1], color="C1", linewidth=0.6)
    axis.scatter(*frames[0].T, s=4, color="C0")
    axis.scatter(*frames[-1].T, s=6, color="black", zorder=3)
    axis.set_title(f"{name}: from noise (blue) to data (black)", fontsize=9)
for axis in axes[:3]:
    axis.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(True)
table = {name: [sliced(last(euler(v, start_2d, n))) for n in counts] for name, v in flows.items()}
for name, values in table.items():
    axes[3].plot(counts, values, marker="o", markersize=4, label=name)
floor = sliced(two_moons(4000, seed=6))
axes[3].axhline(floor, color="0.4", linestyle="--", linewidth=1, label="other real points")
axes[3].set(xscale="log", yscale="log", xticks=counts, xticklabels=counts)
axes[3].set(yticks=[0.03, 0.06, 0.1, 0.3, 0.6], yticklabels=["0.03", "0.06", "0.1", "0.3", "0.6"])
axes[3].set(xlabel="network evaluations", ylabel="distance from the data")
axes[3].minorticks_off()
axes[3].legend(fontsize=8)
plt.show()
for name, values in table.items():
    cells = ", ".join(f"{n}: {value:.3f}" for n, value in zip(counts, values, strict=True))
    print(
        f"{name:13} straightness {straightness(flows[name]):.3f};  distance by evaluations {cells};  floor {floor:.3f}"
    )

# %% [markdown]
# <details><summary>Answer</summary>
#
# Nearly what it reaches with many. The trajectories of the second flow are almost straight, and on a straight line one step of
# Euler is exact. With many steps both are at the floor. It cannot be expected to beat the first flow, because it was trained on that
# flow's samples.
# </details>
#
# The first flow bends although its interpolants are straight lines. "Straight" describes the training pairs, not the
# trajectories. What reflow buys is few evaluations, and it pays with a second training.
#
# ### A flow of digits, without training
#
# Section 1 said that points with equal $\lambda$ show the same image. So every diffusion model *is* a flow model: to find the
# velocity at $(x, t)$ on the straight line, go to the point of the circle with the same $\lambda$, let the network estimate
# $(\hat x_0, \hat\varepsilon)$ there, and return $\hat\varepsilon - \hat x_0$.


# %%
def velocity_of_digits(x, t):
    """The network of chapter 1 as a velocity field on the straight line. (B, 1, 28, 28), (B,) -> (B, 1, 28, 28)"""
    t = min(float(t[0]), 0.9999)  # at t = 1 lambda is infinite
    level = schedule.at_lam(math.log((1 - t) / t))
    x0, eps = denoise(x / math.hypot(1 - t, t), level)[:2]
    return eps - x0


x = noise_for(10, seed=4)
by_flow = last(euler(velocity_of_digits, x, 10))
even_in_t = [NoiseLevel(0, 1 - t, t) for t in np.linspace(0.9999, 0, 11).tolist()]  # the same levels, on the circle
on_circle = [schedule.at_lam(level.lam) if level.sigma else NoiseLevel(0, 1.0, 0.0) for level in even_in_t]
by_ddim = my_ddim(denoise, x, on_circle)
show_images(torch.cat([by_flow, by_ddim]), 10, down=["Euler, flow", "DDIM, circle"])
print(f"rms difference {rms(by_flow - by_ddim):.0e}")

# %% [markdown]
# Euler's method on the straight line and DDIM on the circle are the same sampler, if they visit the same levels. (What is left is
# rounding, and the two starts, which differ by one part in ten thousand.) What flow matching really changes is the *defaults*:
# which levels training visits, how errors are weighted, and where the sampler stops. Whether these are better is a matter of
# measurement: `ablate.py flow` trains both on 28 × 28 digits and compares them at equal evaluations.

# %% [markdown]
# ## 9 · A transformer instead of a U-Net
#
# Chapter 1 built a U-Net. Stable Diffusion 3 and Flux use a **diffusion transformer**, or DiT
# ([Peebles & Xie 2023](https://arxiv.org/abs/2212.09748)). It treats an image as a sequence:
#
# 1. **Patchify:** cut the image into patches of $p \times p$ pixels, and map each by one linear layer to a token of width $d$.
#    Add a fixed sinusoidal embedding of its position.
# 2. **Blocks:** self-attention among all tokens, then a small network for each token, both as residuals.
# 3. **Unpatchify:** map each token back to $p \times p$ pixels.
#
# The noise level enters each block by **adaLN-Zero**. From the embedding of $t$, a linear layer computes six vectors for each
# block: a shift and a scale that follow each of the two normalisations, and a gate that multiplies each of the two residuals.
# This layer starts with zeros. So at the beginning all gates are closed and every block is the identity.
# [dit.py](../common/models/dit.py) puts such blocks together. It uses the module names of `diffusers`, where each block has an
# embedding of the noise level of its own; in the paper all blocks share one.


# %%
def patchify(x, p):
    """(B, C, H, W) -> (B, N, p p C): the pixels of each of N = (H / p)(W / p) patches."""
    return F.pixel_unshuffle(x, p).flatten(2).transpose(1, 2)


def unpatchify(tokens, p):
    """(B, N, p p C) -> (B, C, H, W) of a square image."""
    side = math.isqrt(tokens.shape[1])
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), p)


def modulate(x, shift, scale):
    return x * (1 + scale) + shift


class DiTBlock(nn.Module):
    """A transformer block with adaLN-Zero. (B, N, d), (B, d) -> (B, N, d)"""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = (nn.LayerNorm(d, eps, elementwise_affine=False) for eps in (1e-6, 1e-5))
        self.qkv, self.project = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU("tanh"), nn.Linear(4 * d, d))
        self.adaln = nn.Linear(d, 6 * d)
        nn.init.zeros_(self.adaln.weight)
        nn.init.zeros_(self.adaln.bias)

    def forward(self, x, c):
        """x: the tokens; c: the embedding of the noise level."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaln(F.silu(c))[:, None].chunk(
            6, dim=-1
        )  # (B, 1, d)
        q, k, v = self.qkv(modulate(self.norm_1(x), shift_1, scale_1)).chunk(3, dim=-1)  # (B, N, d) each
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))  # (B, heads, N, d / heads)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, d)
        x = x + gate_1 * self.project(y)
        return x + gate_2 * self.mlp(modulate(self.norm_2(x), shift_2, scale_2))


from common.models.dit import DiT, DiTConfig

x = mnist.batch(torch.arange(3))["image"]
print(
    f"image {tuple(x.shape)} -> tokens {tuple(patchify(x, 4).shape)}; back again: {bool((unpatchify(patchify(x, 4), 4) == x).all())}"
)

mine, tokens, t = DiTBlock(64, 4), torch.randn(3, 49, 64), torch.tensor([10.0, 500.0, 990.0])
course = DiT(DiTConfig(dim=64, depth=1, heads=4)).transformer_blocks[0]
label = torch.zeros(3, dtype=torch.long)  # a network without classes has one label for all
c = course.norm1.emb(t, label)
print(f"at the start every block is the identity: {torch.equal(mine(tokens, c), tokens)}")
nn.init.normal_(course.norm1.linear.weight, std=0.1)  # open the gates
attention, pairs_of_layers = course.attn1, [(mine.adaln, course.norm1.linear), (mine.project, course.attn1.to_out[0])]
pairs_of_layers += [(mine.mlp[0], course.ff.net[0].proj), (mine.mlp[2], course.ff.net[2])]
for ours, theirs in pairs_of_layers:
    ours.load_state_dict(theirs.state_dict())
three = (attention.to_q, attention.to_k, attention.to_v)
mine.qkv.load_state_dict({name: torch.cat([getattr(layer, name) for layer in three]) for name in ("weight", "bias")})
with torch.no_grad():
    print(f"largest difference from the course's block {(mine(tokens, c) - course(tokens, t, label)).abs().max():.0e}")

# %% [markdown]
# > **In the papers:** Peebles & Xie compare four ways to condition a block (section 3.2) and find adaLN-Zero the best. Their models work on latents; ours on pixels.
#
# We train a U-Net and a DiT with the flow-matching loss, on the zeros and ones of MNIST, because two kinds of digits can be
# learned in a short training. The numbers of steps are chosen so that both take about the same time.
#
# **Question:** the U-Net has convolutions, which know from the start that neighbouring pixels belong together. The DiT must learn
# even that. Which one learns faster from 2,000 images?

# %%
two = torch.isin(mnist.labels, torch.tensor([0, 1])).nonzero()[:, 0]  # zeros and ones
two_unseen = torch.isin(unseen.labels, torch.tensor([0, 1])).nonzero()[:256, 0]


def digits_loss(net, g):
    x0 = mnist.batch(two[torch.randint(len(two), (16,), generator=g)])["image"]
    t = (torch.arange(16) + torch.rand(16, generator=g)) / 16  # one time in each of 16 equal intervals
    return flow_matching_loss(lambda x, t: net(x, 1000 * t), x0, torch.randn(x0.shape, generator=g), t).mean()


@torch.no_grad()
def held_out_loss(net):
    """The loss on digits that were not trained on, with fixed noise and times; mean and half its 95 % interval."""
    x0, t = unseen.batch(two_unseen)["image"], (torch.arange(256) + 0.5) / 256
    t = t[torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    each = flow_matching_loss(lambda x, t: net(x, 1000 * t), x0, Noise(3)(0, x0), t)
    return float(each.mean()), 1.96 * float(each.std()) / 256**0.5


from common.models.unet import UNet, zero_init
from common.models.unet_config import small_unet

torch.manual_seed(0)
candidates = {  # name: (network, steps, learning rate)
    "U-Net": (zero_init(UNet(small_unet(28, 1, (8, 16, 32)))), 350, 4e-3),
    "DiT": (DiT(DiTConfig(dim=64, depth=4)), 650, 3e-3),
}
trained, samples = {}, []
for name, (candidate, steps, lr) in candidates.items():
    began = time.process_time()
    trained[name] = fit(candidate, digits_loss, steps, lr, decay=0.96)
    seconds, (loss, half) = time.process_time() - began, held_out_loss(trained[name])
    size = sum(parameter.numel() for parameter in candidate.parameters())
    print(
        f"{name:6} {size:7,} weights, {steps} steps, {seconds:.0f} s of CPU: loss on unseen digits {loss:.4f} ± {half:.4f}"
    )
    samples.append(last(euler(lambda x, t, net=trained[name]: net(x, 1000 * t), noise_for(12, seed=6), 20)))
show_images(torch.cat([unseen.batch(two_unseen[:12])["image"], *samples]), 12, down=["real", *trained])

# %% [markdown]
# <details><summary>Answer</summary>
#
# In this budget and with one training each, the U-Net. Its loss on unseen digits is lower, beyond the intervals (which cover the
# images, not the random seed), and its strokes are mostly connected. The samples of the DiT still show its patches, which do not fit together yet.
# </details>
#
# So short a training on 2,000 images decides nothing about transformers. The DiTs of the paper are trained far longer, on over a
# million images, where convolutions have less of an advantage. `ablate.py dit` compares both at equal times of 2 and of 8 minutes, on all
# digits and with three seeds.

# %% [markdown]
# ## 10 · Distillation
#
# A solver makes the most of a given network. **Distillation** changes the network: a *student* learns to do in one step what the
# *teacher* does in several. In **progressive distillation** ([Salimans & Ho 2022](https://arxiv.org/abs/2202.00512)) the student
# starts with the teacher's weights and learns to replace two steps by one. Then it becomes the teacher, and the number of steps
# is halved again.
#
# The target follows from section 3. Let two steps of the teacher take $x_t$ to $x_s$. Which estimates would take it there in
# *one* step of DDIM? We need $x_t = \alpha(t)\,\tilde x_0 + \sigma(t)\,\tilde\varepsilon$ and
# $x_s = \alpha(s)\,\tilde x_0 + \sigma(s)\,\tilde\varepsilon$. Two equations, two unknowns:
#
# $$\tilde x_0 = \frac{x_s - \frac{\sigma(s)}{\sigma(t)}\,x_t}{\alpha(s) - \frac{\sigma(s)}{\sigma(t)}\,\alpha(t)} \qquad\qquad \tilde\varepsilon = \frac{x_t - \alpha(t)\,\tilde x_0}{\sigma(t)} \tag{9}$$
#
# The student's target is $a\,\tilde x_0 + b\,\tilde\varepsilon$ with $(a, b)$ from the table of section 2. Note what is new:
# ordinary training has one $x_t$ and *many* possible images, so its best answer is a blurred mean. The teacher's two steps are
# deterministic, so the student's target is a *function* of $x_t$, and it can be sharp even at $t = T$.
#
# > **In the papers:** (9) is the target of Salimans & Ho's algorithm 2. **Consistency models** ([Y. Song et al. 2023](https://arxiv.org/abs/2303.01469))
# > go on from here: they train $f_\theta(x_t, t)$ to return the same image at two neighbouring points of one trajectory, and so jump to its end in
# > one step from anywhere. The prediction at the less noisy point is the target and gets no gradient (stop-gradient, `detach`). Otherwise both
# > predictions could agree by moving towards the mean of the data, which lowers the loss and ruins the samples.
#
# First on the plane, from 16 steps down to one.


# %%
def distillation_target(x_t, x_s, now, then):
    """(9): the pair (x0, eps) with which one step of DDIM goes from x_t to x_s."""
    ratio = then.sigma / now.sigma
    x0 = (x_s - ratio * x_t) / (then.alpha - ratio * now.alpha)
    return x0, (x_t - now.alpha * x0) / now.sigma


def halve(teacher, steps):
    """A student with `steps` steps from a teacher with twice as many."""

    def loss(net, g):
        k = torch.randint(steps, (256, 1), generator=g)
        t = 1 - k / steps  # (256, 1) the student's times
        x0, eps = moons[torch.randint(len(moons), (256,), generator=g)], torch.randn(256, 2, generator=g)
        x_t, half = (1 - t) * x0 + t * eps, 1 / (2 * steps)
        with torch.no_grad():
            x_s = x_t
            for time_now in (t, t - half):  # two steps of the teacher
                x_s = x_s - half * teacher(x_s, time_now[:, 0])
        levels = (NoiseLevel(t, 1 - t, t) for t in (t, t - 2 * half))
        x0_target, eps_target = distillation_target(x_t, x_s, *levels)
        return (net(x_t, t[:, 0]) - (eps_target - x0_target)).square().mean()

    return fit(copy.deepcopy(teacher), loss, 400, lr=1e-3)


teacher, students = flow, {}
for steps in (8, 4, 2, 1):
    teacher = students[steps] = halve(teacher, steps)

table["distilled"] = [sliced(last(euler(student, start_2d, n))) for n, student in sorted(students.items())]
plt.figure(figsize=(6, 2.9), layout="constrained")
for name, values in table.items():
    plt.plot(counts[: len(values)], values, marker="o", markersize=4, label=name)
plt.axhline(floor, color="0.4", linestyle="--", linewidth=1, label="other real points")
plt.gca().set(xscale="log", yscale="log", xticks=counts, xticklabels=counts)
plt.gca().set(yticks=[0.03, 0.06, 0.1, 0.3, 0.6], yticklabels=["0.03", "0.06", "0.1", "0.3", "0.6"])
plt.gca().set(xlabel="network evaluations", ylabel="distance from the data")
plt.minorticks_off()
plt.legend(fontsize=8)
plt.show()
for name, values in table.items():
    print(f"{name:13}" + "   ".join(f"{n}: {value:.3f}" for n, value in zip(counts, values, strict=False)))

# %% [markdown]
# One evaluation of the last student comes closer to the data (0.052<!--out-->) than eight of the flow (0.074<!--out-->). Each
# halving adds a small error, because each student is trained on a teacher that is itself only approximate. Reflow did better here
# (0.035<!--out-->).
#
# Now digits: the network of chapter 1 with 4 steps of DDIM is the teacher, and the student has 2. It starts from the same weights
# and learns for 60 steps of 16 images.

# %%
fine = list(schedule.noise_levels(4))  # 5 levels of the teacher; the student visits every second one


def halving_loss(net, g):
    x0 = mnist.batch(torch.randint(len(mnist), (16,), generator=g))["image"]
    i = 2 * int(torch.randint(2, (), generator=g))
    now, middle, then = fine[i : i + 3]
    x_t = add_noise(x0, torch.randn(x0.shape, generator=g), now)
    x0_target, eps_target = distillation_target(x_t, my_ddim(denoise, x_t, [now, middle, then]), now, then)
    a, b = mixture(prediction, now)
    return (net(x_t, torch.full((16,), now.time)) - (a * x0_target + b * eps_target)).square().mean()


student = Denoiser(fit(copy.deepcopy(net), halving_loss, 60, lr=2e-4, decay=0.9), prediction, clip_x0)

x = noise_for(N, seed=5)
ends = {
    "teacher, 4": my_ddim(denoise, x, fine),
    "teacher, 2": my_ddim(denoise, x, fine[::2]),
    "student, 2": my_ddim(student, x, fine[::2]),
}
shown = {f"{name} evaluations": images[:10] for name, images in ends.items()}
show_images(torch.cat(list(shown.values())), 10, down=list(shown))
for name, images in ends.items():
    (value, low, high), off = frechet(images), rms(images - ends["teacher, 4"])
    print(
        f"{name} evaluations: Fréchet distance {value:.1f} ({low:.1f} to {high:.1f}); rms difference from the first {off:.3f}"
    )

# %% [markdown]
# With two evaluations the teacher's strokes are grey and blurred, because each step uses a mean over many possible images. The
# student's are sharper, its Fréchet distance is lower, and it comes closer to the teacher's four steps. These 60 steps of
# distillation have not made up for the other two evaluations, though: Salimans & Ho train each halving for many thousands of
# steps.

# %% [markdown]
# ## 11 · Losses and weights
#
# Training compares the prediction $y$ with its target. How much an error costs is a choice: its square (**L2**), its size
# (**L1**), or **Huber**, a parabola for small errors and a straight line for large ones. How much a *noise level* counts is
# another choice: a weight $w(\mathrm{SNR})$.
#
# An error of $\varepsilon$ and an error of $x_0$ have different units. With $x_t$ given, an error $\delta$ of $x_0$ is an error
# $-\frac{\alpha}{\sigma}\delta$ of $\varepsilon$, so squared errors of `eps` are SNR times those of `x0`. On the circle, those
# of `x0` are $\sigma^2$ times those of `v`, and $1/\sigma^2 = \mathrm{SNR} + 1$. With that, weights for one prediction can be
# translated into another:
#
# | | weight of the squared error of `x0` | of `eps` | of `v` |
# |---|---|---|---|
# | plain `eps` | $\mathrm{SNR}$ | $1$ | $\mathrm{SNR} / (\mathrm{SNR} + 1)$ |
# | plain `x0` | $1$ | $1 / \mathrm{SNR}$ | $1 / (\mathrm{SNR} + 1)$ |
# | plain `v` | $\mathrm{SNR} + 1$ | $(\mathrm{SNR} + 1) / \mathrm{SNR}$ | $1$ |
# | P2 ([Choi et al. 2022](https://arxiv.org/abs/2204.00227), with $k = \gamma = 1$) | $\mathrm{SNR} / (1 + \mathrm{SNR})$ | $1 / (1 + \mathrm{SNR})$ | $\mathrm{SNR} / (1 + \mathrm{SNR})^2$ |
# | min-SNR ([Hang et al. 2023](https://arxiv.org/abs/2303.09556), $\gamma = 5$) | $\min(\mathrm{SNR}, \gamma)$ | $\min(\mathrm{SNR}, \gamma) / \mathrm{SNR}$ | $\min(\mathrm{SNR}, \gamma) / (\mathrm{SNR} + 1)$ |
#
# The right panel draws the first column.

# %%
from common.diffusion.losses import ERRORS, loss_weight

_, (left, right) = plt.subplots(1, 2, figsize=(11, 3.3), layout="constrained")
e = torch.linspace(-0.5, 0.5, 201)
for name, error in ERRORS.items():
    left.plot(e, error(e, torch.zeros_like(e)), label=name)
left.set(xlabel="error of one pixel", ylabel="cost", title="what an error costs")
left.legend()
lams = np.linspace(-4, 4, 161)
choices = [("plain", "eps"), ("plain", "x0"), ("plain", "v"), ("p2", "eps"), ("min_snr", "eps")]
for i, (weight, name) in enumerate(choices):
    cost = []
    for lam in lams.tolist():
        level = schedules["cosine"].at_lam(lam)
        level = NoiseLevel(level.time, torch.tensor(level.alpha), torch.tensor(level.sigma))
        a, b = mixture(name, level)
        cost.append(loss_weight(weight, name, level) * (a - b * level.alpha / level.sigma) ** 2)
    style = {
        "linestyle": "-" if weight == "plain" else "--",
        "label": f"plain, {name}" if weight == "plain" else weight,
    }
    right.plot(lams, cost, color=f"C{i}", **style)
right.set(yscale="log", ylim=(1e-3, 1e3), xlabel="$\\lambda$   (much noise … little noise)", ylabel="weight")
right.set_title("weight of a squared error of $x_0$")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Right:** with `eps` and no weight, an error of the image counts millions of times more at little noise than at much. With
# `x0` all levels count alike. P2 and min-SNR follow `eps` where there is much noise and flatten where there is little, so that
# nearly clean levels do not dominate. A weight is the same kind of choice as the prediction and the schedule: all three decide
# which noise levels count.
#
# ### L1 against L2
#
# You may read that L2 gives sharper images and L1 smoother ones ([claims.md](../docs/claims.md#l2-is-sharper-l1-is-smoother)).
# There is a more basic difference. The best prediction for L2 is the conditional *mean*, the best for L1 the conditional
# *median*, pixel by pixel. Section 5 showed which of the two a sampler needs: the continuity equation follows from the
# conditional **mean** of the velocity, and the median has no such property. So a perfect L1 network should sample *another
# distribution*.
#
# **Question:** which one? Think of a pixel that is black with probability 0.7 and white with 0.3. Then we let a perfect network
# of each kind sample the numbers of section 5, of which 30 % should lie around $-0.8$.


# %%
def ideal_for_l1(x, level):
    """The median of x0, given x, found by bisection: what a perfect network trained with L1 predicts."""
    likely, mean = centres_given(x, level)
    sd = WIDTH * level.sigma / math.hypot(level.alpha * WIDTH, level.sigma)
    low, high = mean.min(-1).values - 6 * sd, mean.max(-1).values + 6 * sd
    for _ in range(30):
        x0 = (low + high) / 2
        below = (likely * torch.special.ndtr((x0[:, None] - mean) / sd)).sum(-1)
        low, high = torch.where(below < 0.5, x0, low), torch.where(below < 0.5, high, x0)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


print("                      around -0.8   standard deviation around 0.5")
print(f"{'the data':22}{float(SHARES[0]):11.3f} {WIDTH:22.3f}")
for name, perfect in {"L2": ideal, "L1": ideal_for_l1}.items():
    for sampler in ("ddim", "ddpm"):
        options = {"noise": Noise(1)} if sampler == "ddpm" else {}
        end = last(SAMPLERS[sampler](perfect, start, schedule.noise_levels(100), **options)).x
        share, width = float((end < -0.15).double().mean()), float(end[end > -0.15].std())
        print(f"{f'{name}, {sampler}:100':22}{share:11.3f} {width:22.3f}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# The median favours what is frequent. The smaller group loses members, and the larger group gets narrower.
# </details>
#
# This is a statement about perfect networks in one dimension. Whether the difference is visible in digits after a short training
# is an empirical question, which `ablate.py losses` asks.
#
# ### Learned variance
#
# DDPM's fresh noise has a fixed variance. A network with twice the output channels can predict it for each pixel. Its loss is the
# **variational bound** (VLB) of chapter 1: the sum of KL divergences between the posterior and the network's step,
# $D_{\text{KL}}\big(q(x_{t-1} \mid x_t, x_0)\,\|\,p_\theta(x_{t-1} \mid x_t)\big)$. It counts the extra bits that you pay if you
# code the true step with the network's distribution (Nichol & Dhariwal 2021; [vlb.py](../common/diffusion/vlb.py)).
#
# A claim about this term is that it costs a third of the batch size in memory
# ([claims.md](../docs/claims.md#the-variational-bound-costs-a-third-of-the-batch-size)). What training keeps in memory is what
# autograd saves for the backward pass, and that can be counted byte by byte.

# %%
from ddim_schedules import activation_memory

plain, hybrid, twice = (
    activation_memory.saved_bytes(loss, size=28, channels=(16, 32), batch_size=8) for loss in activation_memory.LOSSES
)
print(
    f"saved for 8 images: without the bound {plain / 1e6:.1f} MB, with it {hybrid / 1e6:.1f} MB ({hybrid / plain - 1:+.1%}),"
)
print(f"with a second network evaluation for the bound {twice / 1e6:.1f} MB (x {twice / plain:.2f})")

# %% [markdown]
# The bound reuses the prediction that is there already, so it costs next to nothing. An implementation that evaluates the network
# a second time pays double.

# %% [markdown]
# ## 12 · From one digit to another
#
# Take two real digits $a$ and $b$, and find images between them that are digits, too. A mixture of the pixels gives two ghosts on
# top of each other. So you mix in the space of noise and sample from there. There are two ways
# ([interpolation.py](ddim_schedules/interpolation.py) has some relatives):
#
# * **DDPM latents** ([DDPM](https://arxiv.org/abs/2006.11239), section 4.4): noise both images to a level $t$, mix the two noisy
#   images linearly, and sample with DDPM. $t / T$ is called the *strength*.
# * **DDIM latents:** follow the ODE *backwards* from both images to $t = T$ (section 13 shows how far the result is from pure noise),
#   mix there, and sample with DDIM.
#
# Pure noise must be mixed with care. As a vector of 784 numbers it nearly always has the length $\sqrt{784}$, so noises lie near
# a sphere. The straight line between two of them cuts through its inside. **Slerp**, spherical interpolation, follows the sphere.
# With $\theta$ the angle between $z_a$ and $z_b$,
#
# $$z(w) = \frac{\sin((1 - w)\,\theta)}{\sin\theta}\; z_a + \frac{\sin(w\,\theta)}{\sin\theta}\; z_b \qquad \cos\theta = \frac{z_a \cdot z_b}{|z_a|\,|z_b|}$$
#
# Where $z_a$ and $z_b$ are nearly parallel, $\sin\theta$ is almost 0, and the straight line is the same to many digits. (For
# *opposite* noises $\sin\theta$ is 0 as well, but the line passes through 0, and the arc is not unique.)

# %%
from ddim_schedules import interpolation, inversion

a, b = noise_for(200, seed=1), noise_for(200, seed=2)
halfway = interpolation.lerp(a, b, 0.5), solvers.slerp(a, b, 0.5)
print(
    f"standard deviation of a noise {a.std():.2f}; half-way on the line {halfway[0].std():.2f}, on the sphere {halfway[1].std():.2f}"
)

# %% [markdown]
# A claim that you may have met: *interpolation jumps abruptly in the middle instead of changing gradually*
# ([claims.md](../docs/claims.md#interpolation-jumps-in-the-middle)). We interpolate six pairs of digits in six ways, eleven
# images each, with the same fresh noise for all images of a sequence. The strip shows one pair, with the real digits at its ends.
# The plot shows how much the image changes from one frame to the next, measured in the features of the evaluator's network.

# %%
labels = unseen.labels
drawn_pairs = np.random.default_rng(0).integers(0, len(unseen), (40, 2)).tolist()
pairs = [(2, 1), *((i, j) for i, j in drawn_pairs if labels[i] != labels[j])][:6]
ways = {  # name: (method, strength)
    "DDPM, strength 0.3": ("ddpm", 0.3),
    "DDPM, strength 0.6": ("ddpm", 0.6),
    "0.6, shared noise": ("ddpm_shared", 0.6),
    "0.6, slerp of noises": ("ddpm_slerp", 0.6),
    "DDPM, strength 0.9": ("ddpm", 0.9),
    "DDIM latents, slerp": ("ddim_slerp", 1.0),
}
visited, shares, strips, changes, off = schedule.noise_levels(10), np.linspace(0, 1, 11).tolist(), [], {}, {}
for name, (method, strength) in ways.items():
    changes[name], off[name] = [], []
    for seed, pair in enumerate(pairs):
        a, b = unseen.batch(torch.tensor(pair))["image"].split(1)
        sequence = interpolation.interpolate(
            method, denoise, free, visited, a, b, shares, strength, seed
        )  # (11, 1, 28, 28)
        changes[name].append(interpolation.frame_changes(sequence))
        off[name].append((rms(sequence[:1] - a) + rms(sequence[-1:] - b)) / 2)
        strips += [a, sequence, b] if seed == 0 else []
show_images(torch.cat(strips), 13, across=["a", *(f"{w:.1f}" for w in shares), "b"], down=list(ways))

plt.figure(figsize=(7.5, 2.8), layout="constrained")
for name, each in changes.items():
    style = "--" if "shared" in name or "noises" in name else "-"
    plt.plot(
        np.arange(10) / 10 + 0.05, torch.stack(each).mean(0), marker="o", markersize=3, label=name, linestyle=style
    )
plt.gca().set(xlabel="share of b", ylabel=f"change (mean of {len(pairs)} pairs)", ylim=(0, None))
plt.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
print(f"{'':22}{'largest change / mean change':>30}{'ends off by (rms)':>20}")
for name, each in changes.items():
    peak = torch.tensor([interpolation.peak_to_mean(change) for change in each])
    print(
        f"{name:22}{f'{peak.mean():.1f} ± {1.96 * peak.std() / len(peak) ** 0.5:.1f}':>30}{np.mean(off[name]):20.2f}"
    )

# %% [markdown]
# (1 would be perfectly even, 10 a single jump; ± is a 95 % interval of the mean over pairs.)
#
# ### Why does it jump?
#
# Imagine a perfect network that knows only two images, $a$ and $b$. It sees $x = \alpha\,[(1-w)\,a + w\,b] + \sigma\varepsilon$
# and must find out which of the two it was. With $d = b - a$ and the normal distribution written out, almost everything cancels:
#
# $$\log \frac{P(b \mid x)}{P(a \mid x)} = \mathrm{SNR}\;|d|^2 \left(w - \tfrac12\right) + \sqrt{\mathrm{SNR}}\;\varepsilon \cdot d$$
#
# The first term crosses zero at $w = \frac12$, by symmetry. It does so *steeply*, because $|d|^2$ sums over all 784 pixels: they
# decide together. The second term, the noise, only shifts the place, by about $1 / (\sqrt{\mathrm{SNR}}\,|d|)$. The next figure
# shows this probability for the pair of the strip, with eight noises at each strength.

# %%
a, b = unseen.batch(torch.tensor(pairs[0]))["image"]
d, w = (b - a).flatten(), torch.linspace(0, 1, 401)
_, axes = plt.subplots(1, 3, figsize=(10, 2.5), layout="constrained", sharey=True)
for axis, strength in zip(axes, (0.3, 0.6, 0.9), strict=True):
    level = level_at(schedule, round(1000 * strength))
    snr = (level.alpha / level.sigma) ** 2
    for seed in range(8):
        odds = snr * d.square().sum() * (w - 0.5) + math.sqrt(snr) * Noise(seed)(0, d).dot(d)
        axis.plot(w, odds.sigmoid(), color="C0", linewidth=0.8)
    axis.set(title=f"strength {strength}: SNR |d|² = {snr * float(d.square().sum()):.0f}", xlabel="w, share of b")
axes[0].set_ylabel("P(b | x)")
plt.show()

# %% [markdown]
# At low strength the SNR is high, and the switch is sharp and in the middle, as the curve of strength 0.3 in the plot above. With
# more strength the noise shifts it, so that the peak of the *mean* over pairs gets wider. At strength 0.9 the noise decides more
# than $a$ and $b$ do: changes happen anywhere, and the ends are other digits (two unrelated digits are about 0.7<!--out-->
# apart).
#
# DDIM latents keep the ends best (last column of the table), but they are no cure for jumps: with these six pairs the largest
# change, in units of the mean, is larger than with DDPM, and with twelve pairs and finer frames ([RESULTS.md](RESULTS.md)) no
# difference was seen.
#
# Two other explanations are in use. *"The two images got different noises"*: the row with shared noise tests it. *"The mixture of
# two noises is too small in the middle"*, by the factor 0.71<!--out--> computed above: the row with slerp of the noises tests it.
# Neither row differs from strength 0.6 beyond the intervals, so with six pairs no effect of either was seen.

# %% [markdown]
# ## 13 · Inversion: from a digit to its noise, and back
#
# DDIM with $\eta = 0$ is deterministic, so it can be followed backwards: from a real digit up to the noise that it would be
# sampled from. Many methods of image editing start this way. There is one difficulty of principle. To undo a step exactly, you
# need the network's prediction for the *noisier* image, which you do not have yet. Inversion uses the prediction for the image at
# hand. For short steps that is nearly the same. How short?

# %%
x0, counts = unseen.batch(torch.arange(6))["image"], [5, 10, 20, 40]
rows, found = [x0], {}
for steps in counts:
    noise, again = inversion.reconstruct(denoise, free, schedule.noise_levels(steps), x0)
    found[steps] = (noise, again)
    rows += [noise / 2, again] if steps in (5, 40) else []
down = ["real", *(f"{what}, {n} steps" for n in (5, 40) for what in ("noise / 2", "reconstruction"))]
show_images(torch.cat(rows), 6, down=down)
for steps, (noise, again) in found.items():
    neighbours = float((noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean())
    error = (again - x0).square().mean((1, 2, 3)).sqrt()
    half = 1.96 * error.std() / len(error) ** 0.5
    print(f"{steps:3} steps: error of the image {error.mean():.3f} ± {half:.3f};", end=" ")
    print(f"standard deviation of the noise {noise.std():.2f}, correlation of neighbours {neighbours:+.2f}")

# %% [markdown]
# Is the noise that was found noise? Real noise has standard deviation 1 and uncorrelated neighbours. What inversion finds
# shows the digit. More steps lower the correlation of neighbours from 0.85<!--out--> to 0.43<!--out-->, but the standard deviation
# stays near 0.54<!--out-->.
#
# The error falls with the number of steps, but does it fall like $1/\text{steps}$, as a method of first order should? Two things
# could slow it down. (a) Sampling limits $\hat x_0$ to $[-1, 1]$, and inversion does not. (b) The very first step asks the
# network about a *clean* image as if it were noisy, which it never saw in training. **Question:** which is it? We switch off (a),
# then also (b), by starting at $t = 50$ with a noisy image instead of a clean one. A last line stays away from both ends of the
# schedule.

# %%
few = x0[:3]


def levels_between(t_start, t_end, steps):
    """Levels evenly spaced in t from t_start down to t_end."""
    return NoiseLevels(schedule.at(torch.linspace(t_start, t_end, steps + 1).round().long()), schedule)


def noised(t):
    return add_noise(few, Noise(9)(0, few), level_at(schedule, t))


settings = {  # name: (sampling denoiser, image, highest and lowest timestep)
    "as above": (denoise, few, 1000, 0),
    "no limit on x0": (free, few, 1000, 0),
    "no limit, t = 50 to 1000": (free, noised(50), 1000, 50),
    "no limit, t = 200 to 700": (free, noised(200), 700, 200),
}
plt.figure(figsize=(6.5, 2.8), layout="constrained")
for name, (sampling, image, *ends) in settings.items():
    errors = [rms(inversion.reconstruct(sampling, free, levels_between(*ends, n), image)[1] - image) for n in counts]
    slope = np.polyfit(np.log(counts[-2:]), np.log(errors[-2:]), 1)[0]
    plt.plot(counts, errors, marker="o", markersize=4, label=f"{name} (last slope {slope:.2f})")
    print(f"{name:26} errors " + ", ".join(f"{error:.3f}" for error in errors) + f"; last slope {slope:.2f}")
plt.plot(counts, [0.2 * 5 / n for n in counts], color="0.7", linestyle=":", label="slope −1")
plt.gca().set(xscale="log", yscale="log", xticks=counts, xticklabels=counts)
plt.gca().set(yticks=[0.02, 0.05, 0.1], yticklabels=["0.02", "0.05", "0.1"])
plt.gca().set(xlabel="network evaluations, each way", ylabel="error (rms)")
plt.minorticks_off()
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# <details><summary>Answer</summary>
#
# Neither: without (a) and (b) the error still falls more slowly than $1/\text{steps}$. In the middle of the schedule, from
# $t = 200$ to $700$, the slope is close to $-1$. So it is the ends that spoil the order. One likely reason is that $\lambda$ changes
# fastest there (section 1, right panel), so that equal steps in $t$ are long steps in $\lambda$. The figure does not test this
# reason. To test it, space the levels evenly in $\lambda$.
# </details>

# %% [markdown]
# ## 14 · The laboratory
#
# A claim about diffusion models is easily made: train twice, look at two grids, and believe. [ablate.py](ablate.py) does better.
# It takes settings such as `loss=l2,l1 seed=0,1,2`, trains and samples with every combination, compares each with real images
# beside its floor, and reports means with 95 % intervals *over seeds*. Everything it has done is kept, so a study can be stopped
# and continued.
#
# A small study follows, without training: with 5 evaluations, is DPM-Solver++(2M) better than DDIM on our network? It samples 48
# digits with three seeds of noise.

# %%
import tempfile
from pathlib import Path

from ddim_schedules import plots
from ddim_schedules.experiment import Experiment, SamplingSettings, TrainingSettings, grid, read_axes
from ddim_schedules.runner import Runner

folder = tempfile.TemporaryDirectory()  # goes away with the notebook
runner = Runner(Path(folder.name), device="cpu", precision="no")
axes = read_axes(["sampler=ddim,dpmpp_2m", "steps=5", "n=48", "seed=0,1,2"])
trained_network = TrainingSettings(model=str(CHAPTER.parent / "01_ddpm_mnist" / "pretrained"), data="mnist-10k")
experiments = grid(axes, Experiment(trained_network, SamplingSettings()))
results = [runner.result(experiment) for experiment in experiments]  # a dictionary for each experiment
for measure in ("frechet", "sharpness"):
    print(measure)
    for line in plots.table(results, plots.varied(axes, experiments), measure):
        print("   " + "".join(f"{word:18}" for word in line))
    print(f"   {'real digits':18}{results[0][f'{measure}_real']:.3g}\n")

# %% [markdown]
# What can you conclude? Look at the intervals. With three seeds a 95 % interval is wide, because three numbers estimate a spread
# poorly: Student's distribution has the factor 4.3<!--given--> in the place of 1.96<!--given-->. A difference clearly beyond the
# intervals is a result, for this network and these data. Anything else was *not seen here*, which is less than "does not exist".
#
# ```sh
# python 03_ddim_schedules/ablate.py --list                  # all studies
# python 03_ddim_schedules/ablate.py flow                    # flow against diffusion at equal evaluations
# python 03_ddim_schedules/ablate.py dit                     # DiT against U-Net at equal training time
# python 03_ddim_schedules/ablate.py losses                  # L1, L2 and Huber on 28 × 28 digits
# python 03_ddim_schedules/ablate.py schedule=linear,cosine sampler=ddim,dpmpp_2m steps=5,10,20 seed=0,1,2 --dry
# ```
#
# The numbers of most studies, with commands and intervals, are in [RESULTS.md](RESULTS.md), and the claims with their sources in
# [claims.md](../docs/claims.md). In words:
#
# | claim | where | what was seen |
# |---|---|---|
# | DDPM with fewer than 1,000 steps stays noisy | section 4 | not with respaced coefficients; with the full chain's coefficients, yes |
# | DDIM with 50 steps is as good as DDPM with 1,000, at a twentieth of the cost | section 3, `speed` | no difference seen in quality |
# | stochastic samplers need many steps | section 7, `samplers` | true in a toy, and on digits of Euler–Maruyama and of DDPM with the variance $\beta_t$; DDPM with $\tilde\beta_t$ was not behind DDIM |
# | L2 is sharper, L1 smoother | section 11, `losses` | a perfect L1 network samples another distribution; sharpness needs the 28 × 28 study |
# | the VLB term costs a third of the batch size in memory | section 11 | not seen: it costs next to nothing |
# | interpolation jumps in the middle | section 12 | seen for DDPM latents whose strength keeps the images, and for DDIM latents; the pixels decide together |
# | flow matching gives straight trajectories | section 8 | straight training pairs, bent trajectories; reflow straightens them |
# | a transformer can replace the U-Net | section 9, `dit` | not seen: with the short training of section 9 the U-Net was ahead; `dit` measures longer ones |

# %% [markdown]
# ## What you can do now
#
# * Read any noise schedule as two curves $\alpha(t)$, $\sigma(t)$, and any prediction as a pair $(a, b)$; convert one into
#   another.
# * Derive DDIM and its $\eta$ from the posterior, and say which step is exact and which is an approximation.
# * Respace a chain, and recognise the mistake of not doing it.
# * Derive the probability-flow ODE from the continuity equation, and the reverse SDE from Fokker–Planck.
# * Write Heun, DPM-Solver++(2M), flow matching, reflow and progressive distillation, each in a few lines.
# * Explain adaLN-Zero, min-SNR weights, zero terminal SNR, and why interpolations jump.
# * Plan a study with seeds, a floor and intervals, and word its result no more strongly than they allow.
#
# ## Formulas of this chapter
#
# | | |
# |---|---|
# | noise level | $x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon$, $\;\lambda = \log(\alpha/\sigma)$, $\;\mathrm{SNR} = \alpha^2/\sigma^2$ |
# | v-prediction | $v = \alpha\,\varepsilon - \sigma\,x_0$, $\;x_0 = \alpha\,x - \sigma\,v$, $\;\varepsilon = \sigma\,x + \alpha\,v$ |
# | DDIM | $x_s = \alpha(s)\,\hat x_0 + \sqrt{\sigma(s)^2 - f^2}\,\hat\varepsilon + f z$, $\;f^2 = \eta^2\,\frac{\sigma(s)^2}{\sigma(t)^2}\left(\sigma(t)^2 - \frac{\alpha(t)^2}{\alpha(s)^2}\sigma(s)^2\right)$ |
# | respacing | $\beta_{s \to t} = 1 - \bar\alpha_t / \bar\alpha_s$ |
# | continuity equation | $\partial_t p_t = -\nabla\cdot(u_t\,p_t)$, $\;u_t(x) = \mathbb E[\dot x_t \mid x_t = x]$ |
# | probability-flow ODE | $dx = \hat x_0\,d\alpha + \hat\varepsilon\,d\sigma = [\mathbf f - \frac12 g^2\nabla\log p_t]\,dt$, $\;\mathbf f = x\,\dot\alpha/\alpha$ |
# | reverse SDE | $dx = [\mathbf f - g^2\nabla\log p_t]\,dt + g\,d\bar w$, $\;g^2 = \dot{(\sigma^2)}-2\sigma^2\,\dot\alpha/\alpha$ |
# | Heun | $x_s = x + \frac12(\hat x_0 + \hat x_0')\,\Delta\alpha + \frac12(\hat\varepsilon + \hat\varepsilon')\,\Delta\sigma$ |
# | DPM-Solver++(2M) | $x_s = \frac{\sigma(s)}{\sigma(t)}\,x_t - \alpha(s)(e^{-h} - 1)\left[\hat x_0 + \frac{\hat x_0 - \hat x_0^{\text{old}}}{2r}\right]$, $\;h = \lambda(s) - \lambda(t)$, $\;r = (\lambda(t) - \lambda^{\text{old}})/h$ |
# | flow matching | $L = \mathbb E\lVert v_\theta((1-t)\,x_0 + t\,\varepsilon,\, t) - (\varepsilon - x_0)\rVert^2$, sampling from $t = 1$ to $0$ |
# | distillation | $\tilde x_0 = \big(x_s - \frac{\sigma(s)}{\sigma(t)}x_t\big) \big/ \big(\alpha(s) - \frac{\sigma(s)}{\sigma(t)}\alpha(t)\big)$ |
# | min-SNR | weights $\min(\mathrm{SNR}, \gamma)$ for $x_0$, divided by $\mathrm{SNR}$ for $\varepsilon$ and by $\mathrm{SNR} + 1$ for $v$ |
# | slerp | $\big[\sin((1-w)\theta)\,z_a + \sin(w\theta)\,z_b\big] / \sin\theta$ |
#
# ## Further reading
#
# * [Denoising Diffusion Implicit Models](https://arxiv.org/abs/2010.02502) and
#   [Score-Based Generative Modeling through SDEs](https://arxiv.org/abs/2011.13456): sections 3 and 5.
# * [Elucidating the Design Space of Diffusion-Based Generative Models](https://arxiv.org/abs/2206.00364) (EDM): the clearest
#   account of schedules, preconditioning and solvers.
# * [DPM-Solver++](https://arxiv.org/abs/2211.01095): section 6.
# * [Flow Matching for Generative Modeling](https://arxiv.org/abs/2210.02747),
#   [Flow Straight and Fast](https://arxiv.org/abs/2209.03003), and the long
#   [Flow Matching Guide and Code](https://arxiv.org/abs/2412.06264): section 8.
# * [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748) and
#   [Scaling Rectified Flow Transformers](https://arxiv.org/abs/2403.03206) (Stable Diffusion 3): section 9.
# * [Progressive Distillation](https://arxiv.org/abs/2202.00512) and [Consistency Models](https://arxiv.org/abs/2303.01469):
#   section 10.
#
# ## Things to try
#
# * In section 4, give the mistake 1,000 steps. Why is it right then?
# * In section 7, move the denoiser's error to little noise (`level.sigma < 0.3`). Write down what you expect before you run it.
# * In section 8, train the first flow with pairs $(x_0, -x_0)$ instead of independent noise. What goes wrong at $t = \frac12$?
# * In section 10, distil the digit student to two steps.
# * In section 12, change the strength to 0.1 and to 0.95<!--given-->. What is interpolated then?
#
# Then write it yourself: the [exercises](exercises/README.md) go from a respaced chain to flow matching, with a grader,
# `python -m common.grade 03`. With your own images, or all of MNIST, see the [page of programs](../docs/programs.md#chapter-3). The next chapter moves all of
# this into a smaller space, and so to larger images.
