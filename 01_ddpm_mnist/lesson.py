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
# # Chapter 1 · DDPM: digits out of noise
#
# English · [中文](lesson.zh.ipynb)
#
# Take a picture and add a little noise to it, a thousand times. In the end only noise is left, and the picture cannot be recognised.
#
# Now reverse the process. Undoing all thousand steps at once is hopeless, but undoing a single step is feasible: you only need to know which part of
# a slightly noisy picture is noise. A network can learn to predict this. If you apply it a thousand times, starting from pure noise, it draws a new
# picture. Such a model is called a **diffusion model**.
#
# This lesson builds one from the beginning:
#
# 1. denoise a cloud of points in the plane, where you can see everything;
# 2. turn real digits into noise: the **forward process**;
# 3. derive one step back and the training loss: the **reverse process**;
# 4. the **score**, the same model in the language of gradients;
# 5. write the network, a small **U-Net**;
# 6. take the six steps of training, one at a time;
# 7. train it to draw the digit that you ask for;
# 8. sample from a larger network that comes with the course;
# 9. find out what averaging the weights does;
# 10. see why a perfect network would only copy its training images;
# 11. measure how good the samples are, with the **Fréchet distance**.
#
# You need Python, a little PyTorch, the normal distribution and Bayes' rule. Everything runs on a laptop's CPU without any download, in about six
# minutes of CPU time. Run the cells in order, and change them. The [glossary](../docs/glossary.md) explains all terms and symbols, in English and
# Chinese.

# %%
from common.grade.chapter import open_chapter  # no module named common? Select the course's kernel (README.md)

CHAPTER = open_chapter("01_ddpm_mnist")  # this folder: its files can be imported from here on

# %%
import copy
import math
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.data import load
from ddpm_mnist import toy  # points in the plane
from ddpm_mnist.pictures import show_arrows, show_chain, show_images, show_points, show_resblock, window

# %% [markdown]
# ## 1 · A whole distribution, denoised
#
# An image of $28\times28$ pixels is a point in a space of 784 dimensions, which cannot be drawn. We therefore begin with two dimensions. A data set
# is then a cloud of points, and the shape of the cloud is the **data distribution**. Here are four of them.

# %%
shapes = ["dinosaur", "swiss_roll", "two_moons", "letter"]
show_points([toy.draw_points(shape, 2000) for shape in shapes], shapes, reach=1.2)

# %% [markdown]
# The task is to make *new* points of the same distribution: not copies of the points we have, but points that could have been among them. For images
# the task is the same: new digits that could have been in the data set.
#
# ### Adding noise
#
# Let $x_0$ be a clean point, and let $\varepsilon$ (epsilon) be **noise**: as many numbers as $x_0$ has, each drawn from the normal distribution with
# mean 0 and variance 1. We mix the two:
#
# $$x_t = \sqrt{\bar\alpha_t}\; x_0 + \sqrt{1 - \bar\alpha_t}\; \varepsilon$$
#
# The **noise level** $t$ counts from 0 (clean) to $T = 1000$ (pure noise). The number $\bar\alpha_t$ ("alpha bar") falls from 1 to 0. It is the share
# of the variance that comes from the data, if the data have variance 1. The list of all $\bar\alpha_t$ is called the **noise schedule**. The one
# below is the *cosine* schedule; section 2 explains where $\bar\alpha_t$ comes from.

# %%
T = 1000
curve = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * math.pi / 2) ** 2
beta = torch.cat([torch.zeros(1), (1 - curve[1:] / curve[:-1]).clamp(max=0.999)])  # (T + 1,) beta[0] = 0 is not used
alpha_bar = (1 - beta).cumprod(0).float()  # (T + 1,) the index is t, and alpha_bar[0] = 1
beta = beta.float()


def add_noise(x0, t, eps):
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps. x0, eps: (B, ...); t: (B,) from 0 to T -> (B, ...)"""
    a = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1))  # (B, 1) for points, (B, 1, 1, 1) for images
    return a.sqrt() * x0 + (1 - a).sqrt() * eps


points = toy.draw_points("dinosaur", 3000)  # (3000, 2)
eps = torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
moments = [0, 100, 200, 400, 700, 1000]
clouds = [add_noise(points, torch.full((3000,), t), eps) for t in moments]
titles = [f"t = {t}\n$\\sqrt{{\\bar\\alpha_t}}$ = {alpha_bar[t].sqrt():.2f}" for t in moments]
show_points(clouds, titles, colours=points[:, 0])

# %% [markdown]
# Each point keeps its colour, so you can follow it. The fine details disappear first (the legs), and then the overall form. At $t = 1000$ the colours
# are mixed completely: the place of a point no longer says where it came from. Every data distribution ends as the same round cloud. This is why
# sampling can start there: drawing points from a round cloud is easy.
#
# > **In the papers.** The normal distribution with mean $\mu$ and covariance $\Sigma$ is written $\mathcal{N}(\mu, \Sigma)$, and
# > $\mathcal{N}(x;\, \mu, \Sigma)$ is its density at $x$. $I$ is the identity matrix: all numbers are independent with variance 1. The data
# > distribution is written $q(x_0)$. The distribution of $x_t$ for a given $x_0$ is called
# > $$q(x_t \,|\, x_0) = \mathcal{N}\!\left(x_t;\; \sqrt{\bar\alpha_t}\,x_0,\; (1-\bar\alpha_t)\,I\right)$$
# > ([Ho, Jain & Abbeel 2020](https://arxiv.org/abs/2006.11239), eq. 4; "the DDPM paper" from here on). Drawing $\varepsilon$ and computing $x_t$ by
# > our formula draws a sample of $q(x_t\,|\,x_0)$. $\mathbb{E}[\,\cdot\,]$ is an average over everything random, and $\mathbb{E}[\,\cdot \,|\, x_t]$
# > is the average over all cases with this $x_t$.
#
# ### The training loop
#
# The network $\varepsilon_\theta(x_t, t)$ receives a noisy point and its level, and predicts the noise $\varepsilon$ in it; $\theta$ stands for its
# weights. A prediction of the noise is also a prediction of the clean point, because you can solve the formula above for $x_0$:
#
# $$\hat x_0 = \frac{x_t - \sqrt{1-\bar\alpha_t}\;\hat\varepsilon}{\sqrt{\bar\alpha_t}} \qquad\text{(a hat marks a prediction)}$$
#
# Training minimises the squared error of the predicted noise. The function `noise_error` below is one evaluation of the training loss, and `train` is
# the whole training loop. The network of this section has three hidden layers of 128 units ([toy.py](ddpm_mnist/toy.py)). Levels are given to
# networks as $t-1$, because in libraries they count from 0 to 999.


# %%
def noise_error(net, x0, generator):
    """The squared error of the predicted noise, for one random level and noise for each row of x0. -> ()"""
    t = torch.randint(1, T + 1, (len(x0),), generator=generator)  # (B,)
    eps = torch.randn(x0.shape, generator=generator)  # (B, 2)
    return (net(add_noise(x0, t, eps), t - 1) - eps).square().mean()


def train(net, loss_of_a_batch, steps, lr):
    """Change the weights of net `steps` times so that the loss becomes smaller. Returns the loss of every step."""
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(20 * step / steps, 1 - step / steps)  # first up, then slowly down
        loss = loss_of_a_batch()
        optimizer.zero_grad()  # forget the gradients of the step before
        loss.backward()  # the gradient of the loss with respect to each weight
        optimizer.step()  # move each weight a little against its gradient
        losses.append(loss.item())  # a plain number: keeping `loss` itself would keep its whole graph in memory
    return losses


data = toy.draw_points("dinosaur", 20_000)
toy_net, g = toy.make_net(), torch.Generator().manual_seed(0)


def toy_loss():
    x0 = data[torch.randint(len(data), (512,), generator=g)]  # a batch of 512 random points
    return noise_error(toy_net, x0, g)


losses = train(toy_net, toy_loss, steps=3000, lr=1.5e-2)
print(f"mean loss: first 100 steps {np.mean(losses[:100]):.3f}, last 100 steps {np.mean(losses[-100:]):.3f}")

# %% [markdown]
# ### What is the best possible prediction?
#
# The loss has stopped falling and is far from zero. Is the network too small? No prediction can always be right, because many clean points could have
# become the same noisy one. Which prediction has the smallest squared error? Fix $x_t$, and let $f$ be the prediction there. Add and subtract the
# conditional mean $m = \mathbb{E}[\varepsilon\,|\,x_t]$:
#
# $$\mathbb{E}\big[\,|\varepsilon - f|^2 \,\big|\, x_t\big] = \mathbb{E}\big[\,|\varepsilon - m|^2 \,\big|\, x_t\big] + |m - f|^2$$
#
# The mixed term $2\,(m-f)\cdot\mathbb{E}[\varepsilon - m\,|\,x_t]$ is zero by the definition of $m$. The first term does not depend on $f$, and the
# second is smallest for $f = m$. So **the squared error is smallest at the conditional mean**: the ideal network predicts
# $\mathbb{E}[\varepsilon\,|\,x_t]$, and its loss is the mean variance that remains. The same argument holds for predictions of $x_0$. (Another error
# has another optimum: the absolute error leads to the conditional *median*.)
#
# For a finite set of clean points, the conditional mean is a formula in any dimension. By Bayes' rule, the weight of a clean point is proportional to
# the density $q(x_t\,|\,x_0)$:
#
# $$\mathbb{E}[x_0\,|\,x_t] = \sum_i w_i\, x_0^{(i)}, \qquad w_i \propto \exp\!\left(-\frac{|x_t - \sqrt{\bar\alpha_t}\,x_0^{(i)}|^2}{2\,(1-\bar\alpha_t)}\right)$$


# %%
def log_weights(x, t, clean):
    """log of q(x_t | x_0) for every clean x_0, up to a constant. x: (N, D), t: one level, clean: (M, D) -> (N, M)"""
    return -(torch.cdist(x, alpha_bar[t].sqrt() * clean) ** 2) / (2 * (1 - alpha_bar[t]))


def ideal_x0(x, t, clean):
    """E[x_0 | x_t] if the data distribution is this finite set. (N, D)"""
    return log_weights(x, t, clean).softmax(dim=1) @ clean


def x0_from_eps(x, t, eps):
    """Solve x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps for x_0. t: one level"""
    return (x - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()


def eps_from_x0(x, t, x0):
    """Solve the same equation for eps. t: one level"""
    return (x - alpha_bar[t].sqrt() * x0) / (1 - alpha_bar[t]).sqrt()


@torch.no_grad()
def toy_eps(x, t):
    """The network's prediction of the noise in x at one level t. (N, 2) -> (N, 2)"""
    return toy_net(x, torch.full((len(x),), t - 1))


clean = toy.draw_points("dinosaur", 5000, seed=1)
new = toy.draw_points("dinosaur", 2000, seed=2)  # points that the network has not seen
noise = torch.randn(new.shape, generator=torch.Generator().manual_seed(2))
levels, of_network, of_ideal = range(10, 1001, 45), [], []
for t in levels:
    x = add_noise(new, torch.full((2000,), t), noise)
    of_network.append((toy_eps(x, t) - noise).square().mean().item())
    of_ideal.append((eps_from_x0(x, t, ideal_x0(x, t, clean)) - noise).square().mean().item())

plt.figure(figsize=(6, 2.6), layout="constrained")
plt.plot(levels, of_network, marker=".", label="network")
plt.plot(levels, of_ideal, color="black", linestyle=":", label="conditional mean: the best possible")
plt.gca().set(xlabel="noise level t", ylabel="mean squared error of the noise", ylim=(0, 1))
plt.legend()
plt.show()
print(f"average over all levels: network {np.mean(of_network):.3f}, best possible {np.mean(of_ideal):.3f}")

# %% [markdown]
# Remember this picture when you train larger models. The loss of a diffusion model does *not* go to zero, because most of it is uncertainty that no
# network can remove. All learning takes place in the small distance to the dotted line. This is why the loss looks flat while the samples still
# improve.
#
# ### A field of arrows
#
# What has the network learned? At every place of the plane it predicts where the clean point is. We draw the difference $\hat x_0 - x$ as an arrow: a
# **vector field**. Grey: the noisy cloud of this level. Black: the clean points.

# %%
_, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for axis, t, reach in zip(axes, [600, 250, 80], [1.5, 1.3, 1.1], strict=True):
    line = torch.linspace(-reach, reach, 15)
    places = torch.cartesian_prod(line, line)  # (225, 2)
    cloud = add_noise(points, torch.full((3000,), t), eps)
    axis.scatter(*cloud.T, s=3, color="0.75", linewidths=0)
    axis.scatter(*points.T, s=1.5, color="black", linewidths=0)
    show_arrows(axis, places, x0_from_eps(places, t, toy_eps(places, t)) - places, reach)
    window(axis, f"t = {t}   ($\\sqrt{{\\bar\\alpha_t}}$ = {alpha_bar[t].sqrt():.2f})", 1.05 * reach)
    away = (x0_from_eps(cloud, t, toy_eps(cloud, t)) - ideal_x0(cloud, t, clean)).norm(dim=1).mean()
    print(f"t = {t}: mean distance between the network's prediction and the best possible one {away:.3f}")
plt.show()

# %% [markdown]
# * **t = 600, much noise.** All arrows point to the middle of the dinosaur, because the average of everything is the best prediction.
# * **t = 250, less noise.** The arrows point to different parts: a body on the left and in the middle, a neck on the right.
# * **t = 80, little noise.** Each arrow near the outline points to the nearest part of it.
#
# One jump along the first arrows would therefore take all points to the middle. Sampling takes many small steps, because the predictions become more
# precise on the way.
#
# ### Sampling
#
# Split the noisy point into a clean point and noise, $x_t \to (\hat x_0, \hat\varepsilon)$, and mix the two again *with a little less noise*. Repeat
# this down to $t = 0$. If you mix with the predicted noise $\hat\varepsilon$, the trajectory is **deterministic**: its end depends on its start
# alone. This is the DDIM sampler ([Song, Meng & Ermon 2021](https://arxiv.org/abs/2010.02502)). Section 3 derives the **stochastic** sampler of the
# DDPM paper, which adds fresh noise at each step.
#
# One detail matters in practice. Near $t = T$ the formula for $\hat x_0$ divides by a number close to zero, so a small error of $\hat\varepsilon$
# becomes a huge error of $\hat x_0$. The code therefore limits $\hat x_0$ to the range of the data.


# %%
def ddim(predict_eps, x, levels):
    """Deterministic sampling. predict_eps(x, t); x at the first of the levels, which fall to 0. Returns every state."""
    states = [x]
    for now, then in pairwise(levels):
        x0 = x0_from_eps(x, now, predict_eps(x, now)).clamp(-1, 1)  # the data lie between -1 and 1
        eps = eps_from_x0(x, now, x0)  # so that x is still the mixture of the two
        x = alpha_bar[then].sqrt() * x0 + (1 - alpha_bar[then]).sqrt() * eps
        states.append(x)
    return states


every_fourth = list(range(1000, -1, -4))  # 1000, 996, ..., 4, 0: 250 steps
start = torch.randn((2000, 2), generator=torch.Generator().manual_seed(1))
states = ddim(toy_eps, start, every_fourth)
shown = [0, 100, 150, 190, 220, 240, 250]
show_points([states[i] for i in shown], [f"t = {every_fourth[i]}" for i in shown], colours=states[-1][:, 0])

# %% [markdown]
# Each point has the colour of the place where it *ends*. The colours are sorted from left to right even at $t = 1000$, because a deterministic
# trajectory is decided by its start. The overall form appears first, between $t = 400$ and $t = 120$, and details such as the legs come last.
#
# **How good are the new points?** Two numbers are needed. Are the new points near real ones, so that none are wrong? And are real points near new
# ones, so that nothing is left out? The scale for both numbers is what *other real points* reach.


# %%
def nearest(a, b):
    """Mean distance from a point of a to the nearest point of b."""
    return torch.cdist(a, b).min(dim=1).values.mean().item()


real = toy.draw_points("dinosaur", 2000, seed=3)
clouds = {"pure noise": start, "other real points": toy.draw_points("dinosaur", 2000, seed=4)}
clouds |= {"DDIM, 250 steps": states[-1], "DDIM, 5 steps": ddim(toy_eps, start, range(1000, -1, -200))[-1]}
print("                    new -> real   real -> new")
for name, cloud in clouds.items():
    print(f"{name:18} {nearest(cloud, real):12.4f} {nearest(real, cloud):13.4f}")

# %% [markdown]
# **Question.** Pure noise has a bad first number. Which samples would have a perfect first number and still be useless? Which column shows it?
#
# <details><summary>Answer</summary>
#
# A sampler that always returns the same point of the outline. Its first number is nearly 0, but most real points are far from it, so the second
# column is large. One column alone is never enough: quality and coverage are two different things. The Fréchet distance of section 11 combines both
# in one number.
#
# </details>
#
# **Try it.** Take another shape in `toy.draw_points(...)`, or fewer steps of training. On the command line:
# `python 01_ddpm_mnist/toy_2d.py --shape swiss_roll`.
#
# You have now seen a complete diffusion model. The following sections explain why it works, and apply it to images.

# %% [markdown]
# ## 2 · The forward process
#
# The digits of this lesson are 10,000 training and 2,000 test images of MNIST with $28\times28$ pixels, which come with the course. Black is $-1$,
# and white is $+1$.

# %%
mnist = load("mnist-10k")
test = load("mnist-10k", split="test")
x0 = mnist.batch(torch.arange(20))["image"]
print(f"{len(mnist):,} training digits; a batch: {tuple(x0.shape)}, from {x0.min():.0f} to {x0.max():.0f}")
show_images(x0, 10)

# %% [markdown]
# ### Step by step
#
# The DDPM paper adds the noise in $T$ small steps. Step $t$ shrinks the image a little and adds a little fresh noise $\varepsilon_t$:
#
# $$x_t = \sqrt{1 - \beta_t}\; x_{t-1} + \sqrt{\beta_t}\; \varepsilon_t$$
#
# The small number $\beta_t$ (beta) is fixed by the schedule; it is the variance of the noise that step $t$ adds. Why does the image shrink? Variances
# of independent quantities add up. If the pixels had variance 1 before the step, they have $(1-\beta_t)\cdot 1 + \beta_t = 1$ after it. Without
# shrinking, the variance would grow in every step.
#
# ### All steps at once
#
# Two things have to be known about $x_t$: how much of the image is left, and how much noise there is.
#
# * **Image.** Each step multiplies it by $\sqrt{1-\beta_t}$. After $t$ steps, $\sqrt{\bar\alpha_t}\,x_0$ is left, with
#   $\bar\alpha_t = (1-\beta_1)(1-\beta_2)\cdots(1-\beta_t)$.
# * **Noise.** Let $n_t$ be the variance of the noise in $x_t$ when $x_0$ is fixed. The step multiplies the old noise variance by $1-\beta_t$ and adds
#   $\beta_t$: $n_t = (1-\beta_t)\,n_{t-1} + \beta_t$, with $n_0 = 0$. Subtract both sides from 1: $\;1 - n_t = (1-\beta_t)(1 - n_{t-1})$. So $1-n_t$
#   is the same product as before, $1 - n_t = \bar\alpha_t$.
#
# A sum of independent normal variables is normal. Hence, for *every* $x_0$, whatever its variance,
#
# $$x_t = \sqrt{\bar\alpha_t}\; x_0 + \sqrt{1 - \bar\alpha_t}\; \varepsilon$$
#
# This is the **closed form** of the forward process, which section 1 used. Training never has to walk through the steps.
#
# > **In the papers.** One step is $q(x_t\,|\,x_{t-1}) = \mathcal{N}(x_t;\, \sqrt{1-\beta_t}\,x_{t-1},\, \beta_t I)$ (DDPM, eq. 2). The steps form a
# > *Markov chain*: each depends only on the state before it, so $q(x_{1:T}\,|\,x_0) = \prod_t q(x_t\,|\,x_{t-1})$, where $x_{1:T}$ stands for
# > $x_1, \dots, x_T$. The paper abbreviates $1-\beta_t$ by $\alpha_t$. Other papers use $\alpha_t$ for $\bar\alpha_t$ or for $\sqrt{\bar\alpha_t}$,
# > so this course writes only $\bar\alpha_t$, $\sqrt{\bar\alpha_t}$ and $1-\beta_t$.
#
# We check the closed form: 500 copies of one digit go through 1,000 small steps, each copy with its own noise. How much of the digit is left (the
# mean over the copies, compared with the digit), and what is the standard deviation of the noise?

# %%
digit, g = x0[:1], torch.Generator().manual_seed(0)  # (1, 1, 28, 28)
x = digit.expand(500, -1, -1, -1)
print("   t | image left: steps, closed form | noise: steps, closed form")
for t in range(1, T + 1):
    x = (1 - beta[t]).sqrt() * x + beta[t].sqrt() * torch.randn(x.shape, generator=g)
    if t in (10, 100, 300, 500, 700, 900):
        left = (x.mean(0) * digit[0]).sum() / digit.square().sum()  # the digit's share in the mean of the copies
        values = left, alpha_bar[t].sqrt(), x.std(0).mean(), (1 - alpha_bar[t]).sqrt()
        print("{:4} | {:18.3f} {:12.3f} | {:12.3f} {:12.3f}".format(t, *values))

# %% [markdown]
# ### Which schedule?
#
# In the DDPM paper $\beta_t$ grows linearly from $0.0001$ to $0.02$ (*linear*). [Nichol & Dhariwal 2021](https://arxiv.org/abs/2102.09672) (eq. 17)
# let $\bar\alpha_t$ follow a squared cosine (*cosine*). The same digit and the same noise with both:

# %%
linear = torch.cat([torch.ones(1), (1 - torch.linspace(1e-4, 0.02, T)).cumprod(0)])  # alpha_bar of the linear schedule
moments = [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
noise = torch.randn(digit.shape, generator=torch.Generator().manual_seed(5))
rows = [curve[t].sqrt() * digit + (1 - curve[t]).sqrt() * noise for curve in (linear, alpha_bar) for t in moments]
show_images(rows, len(moments), [f"t = {t}" for t in moments], ["linear", "cosine"])

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
for name, bars in {"linear": linear, "cosine": alpha_bar}.items():
    snr = bars[1:] / (1 - bars[1:])
    left.plot(range(T + 1), bars, label=name)
    right.plot(range(1, T + 1), snr, label=name)
    noisy = (bars[1:] < 0.02).double().mean()
    print(f"{name}: SNR = 1 at t = {int((snr > 1).sum())}; alpha_bar is below 0.02 at {noisy:.0%} of the levels")
left.set(ylabel="$\\bar\\alpha_t$", xlabel="noise level t")
right.set(ylabel="signal-to-noise ratio", xlabel="noise level t", yscale="log", ylim=(1e-5, 1e5))
right.axhline(1, color="0.7", linewidth=0.8)
left.legend()
plt.show()

# %% [markdown]
# The **signal-to-noise ratio** is $\mathrm{SNR}(t) = \bar\alpha_t/(1-\bar\alpha_t)$. Linear loses the image earlier: at $t = 600$ you cannot
# recognise the digit any more, and the remaining 400 steps show pure noise to the eye. Cosine spreads the change more evenly, so this lesson uses it.
# Chapter 3 measures what the choice is worth.
#
# **Question.** The derivation never used the variance of $x_0$. If the pixels of the digits have variance 0.4, what is the variance of the pixels of
# $x_t$ at the level with $\bar\alpha_t = 0.5$? And for $t\to T$?
#
# <details><summary>Answer</summary>
#
# $\bar\alpha_t \cdot 0.4 + (1-\bar\alpha_t) = 0.2 + 0.5 = 0.7$. The variance moves from 0.4 to 1 along the chain. It stays at 1 all the time only if
# the data have variance 1. The noise in $x_t$ has variance $1-\bar\alpha_t$ in either case.
#
# </details>

# %% [markdown]
# ## 3 · The reverse process
#
# The forward chain is fixed. We look for a second chain that runs backwards, from noise to digits, and its steps have to be learned.

# %%
stages = [add_noise(x0[7:8], torch.tensor([t]), noise) for t in (1000, 999, 470, 440, 60, 0)]
show_chain(torch.cat(stages), ["$x_T$", "…", "$x_t$", "$x_{t-1}$", "…", "$x_0$"])

# %% [markdown]
# ### One step back, if the clean image were known
#
# Suppose you know both $x_t$ and $x_0$. Where was $x_{t-1}$? Two facts are known about it. It was made from $x_0$ by the closed form, and $x_t$ was
# made from it by one step. Bayes' rule multiplies the two densities, seen as functions of $x_{t-1}$:
#
# $$q(x_{t-1}\,|\,x_t, x_0) \;\propto\; \underbrace{q(x_{t-1}\,|\,x_0)}_{\text{from the clean image}} \cdot \underbrace{q(x_t\,|\,x_{t-1})}_{\text{from the noisy image}}
# \;\propto\; \exp\!\left(-\frac{(x_{t-1} - \sqrt{\bar\alpha_{t-1}}\,x_0)^2}{2\,(1-\bar\alpha_{t-1})} - \frac{(x_t - \sqrt{1-\beta_t}\,x_{t-1})^2}{2\,\beta_t}\right)$$
#
# The exponent is quadratic in $x_{t-1}$, so the product is a Gaussian again. Twice the negative coefficient of $x_{t-1}^2$ is the **precision** (one
# over the variance), and precisions add:
#
# $$\frac{1}{\tilde\beta_t} = \frac{1}{1-\bar\alpha_{t-1}} + \frac{1-\beta_t}{\beta_t} = \frac{1 - \bar\alpha_t}{\beta_t\,(1-\bar\alpha_{t-1})}
# \qquad\text{so}\qquad \tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t$$
#
# (The common denominator has the numerator $\beta_t + (1-\beta_t)(1-\bar\alpha_{t-1}) = 1 - (1-\beta_t)\,\bar\alpha_{t-1} = 1-\bar\alpha_t$.) The
# mean is the variance times the coefficient of $x_{t-1}$:
#
# $$\tilde\mu_t(x_t, x_0) = \tilde\beta_t\left(\frac{\sqrt{\bar\alpha_{t-1}}}{1-\bar\alpha_{t-1}}\,x_0 + \frac{\sqrt{1-\beta_t}}{\beta_t}\,x_t\right)
# = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\,x_0 + \frac{\sqrt{1-\beta_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\,x_t$$
#
# > **In the papers.** $q(x_{t-1}\,|\,x_t,x_0) = \mathcal{N}(x_{t-1};\,\tilde\mu_t(x_t,x_0),\,\tilde\beta_t I)$ is called the *forward process
# > posterior* (DDPM, eq. 7).
#
# The figure shows one pixel with $x_0 = 1$ and a large step, so that the curves differ. As a check, we simulate the forward chain a million times and
# keep the cases that end near the given $x_t$.


# %%
def posterior(x_t, x0, before, b):
    """Mean and variance of q(x_{t-1} | x_t, x_0). before: alpha_bar_{t-1}; b: beta_t"""
    now = before * (1 - b)  # alpha_bar_t
    mean = (before**0.5 * b * x0 + (1 - b) ** 0.5 * (1 - before) * x_t) / (1 - now)
    return mean, (1 - before) / (1 - now) * b


def bell(x, mean, variance):
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / (2 * math.pi * variance) ** 0.5


before, b, pixel, seen = 0.6, 0.4, 1.0, -0.4  # alpha_bar_{t-1}, beta_t, x_0, x_t
g = torch.Generator().manual_seed(0)
x_before = before**0.5 * pixel + (1 - before) ** 0.5 * torch.randn(1_000_000, generator=g)
x_after = (1 - b) ** 0.5 * x_before + b**0.5 * torch.randn(1_000_000, generator=g)
kept = x_before[(x_after - seen).abs() < 0.02]
mean, variance = posterior(seen, pixel, before, b)
print(f"formula:    mean {mean:.3f}, variance {variance:.3f}")
print(f"simulation: mean {kept.mean():.3f}, variance {kept.var():.3f} ({len(kept):,} cases)")

x = torch.linspace(-2.5, 2.7, 400)
plt.figure(figsize=(7.5, 3), layout="constrained")
plt.hist(kept.numpy(), 60, density=True, color="0.85", label="simulated $x_{t-1}$ for this $x_0$ and $x_t$")
plt.plot(x, bell(x, before**0.5 * pixel, 1 - before), color="C3", label="from the clean image: $q(x_{t-1}|x_0)$")
plt.plot(x, bell(x, seen / (1 - b) ** 0.5, b / (1 - b)), color="C2", label="from the noisy image: $q(x_t|x_{t-1})$")
plt.plot(x, bell(x, mean, variance), color="C0", linewidth=2.5, label="product: $q(x_{t-1}|x_t, x_0)$")
plt.gca().set(xlabel="$x_{t-1}$", ylabel="density", ylim=(0, 1.35))
plt.legend(ncols=2, loc="upper center", fontsize=9)
plt.show()

# %% [markdown]
# The product lies between its two factors and is narrower than both, because two facts together leave less uncertainty than one.
#
# ### Algorithm 2
#
# When sampling, $x_0$ is unknown. The network supplies a prediction of it. Put
# $\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\hat\varepsilon)/\sqrt{\bar\alpha_t}$ into $\tilde\mu_t$, and the result simplifies to
#
# $$x_{t-1} = \underbrace{\frac{1}{\sqrt{1-\beta_t}}\left(x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\;\hat\varepsilon\right)}_{\text{mean}} + \sqrt{\tilde\beta_t}\; z, \qquad z\sim\mathcal{N}(0, I)$$
#
# In words: remove the part of the noise that step $t$ has added on average, undo the shrinking, and add a little fresh noise $z$. Because
# $\tilde\mu_t$ is linear in $x_0$, its average over all possible $x_0$ needs only their *mean*: this is why the sampler needs the conditional mean,
# and why the squared error is the right one. At the last step $\bar\alpha_0 = 1$, so $\tilde\beta_1 = 0$ and no noise is added.
#
# > **In the papers.** The learned chain is $p_\theta(x_{t-1}\,|\,x_t) = \mathcal{N}(x_{t-1};\,\mu_\theta(x_t,t),\,\sigma_t^2 I)$ with
# > $p(x_T) = \mathcal{N}(0, I)$. The mean $\mu_\theta$ is the formula above with $\hat\varepsilon = \varepsilon_\theta(x_t,t)$ (DDPM, eq. 11). The
# > paper first writes a general covariance $\Sigma_\theta(x_t,t)$, then sets it to $\sigma_t^2 I$. It tries both $\sigma_t^2 = \tilde\beta_t$ and
# > $\sigma_t^2 = \beta_t$; this lesson takes $\tilde\beta_t$. The loop is the paper's Algorithm 2.


# %%
def ddpm_step(x, t, eps, z):
    """From x_t to x_{t-1}, given the noise in x_t and fresh noise z."""
    mean = (x - beta[t] / (1 - alpha_bar[t]).sqrt() * eps) / (1 - beta[t]).sqrt()
    variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t]
    return mean + variance.sqrt() * z


def ddpm(predict_eps, x, generator, fresh=1.0):
    """Algorithm 2: all T steps, yielding x_{T-1}, ..., x_0. fresh=0 leaves the fresh noise out."""
    for t in range(T, 0, -1):
        x = ddpm_step(x, t, predict_eps(x, t), fresh * torch.randn(x.shape, generator=generator))
        yield x


g = torch.Generator().manual_seed(2)
with_noise = list(ddpm(toy_eps, start, g))
without = list(ddpm(toy_eps, start, g, fresh=0.0))

# %% [markdown]
# ### Why does DDPM add noise?
#
# We want to remove noise, so adding some at each step looks strange. The reason is that **$x_{t-1}$ itself contains noise, and $x_t$ does not
# determine all of it**. Step $t$ mixed the old noise with new noise. Even if $x_0$ were known, $x_{t-1}$ would keep the variance $\tilde\beta_t$ (the
# width of the blue curve above). The mean alone has too little noise for level $t-1$. You see this when you write the mean with $\hat x_0$ and
# $\hat\varepsilon$:
#
# $$\text{mean} = \sqrt{\bar\alpha_{t-1}}\;\hat x_0 + \sqrt{1-\bar\alpha_{t-1}-\tilde\beta_t}\;\hat\varepsilon$$
#
# Level $t-1$ requires noise of variance $1-\bar\alpha_{t-1}$. Two samplers supply it in different ways:
#
# | sampler | keeps of the predicted noise $\hat\varepsilon$ | adds fresh noise | together |
# |---|---|---|---|
# | DDPM | variance $1-\bar\alpha_{t-1}-\tilde\beta_t$ | variance $\tilde\beta_t$ | $1-\bar\alpha_{t-1}$ |
# | DDIM (section 1) | variance $1-\bar\alpha_{t-1}$ | none | $1-\bar\alpha_{t-1}$ |
# | mean only | variance $1-\bar\alpha_{t-1}-\tilde\beta_t$ | none | too little |
#
# So noise as such is not the point: DDIM adds none and works. What fails is to leave out the fresh noise *without* keeping more of the old noise.

# %%
print("                         new -> real   real -> new")
every_state = {"DDPM": [start, *with_noise], "DDIM": ddim(toy_eps, start, range(T, -1, -1)), "mean only": without}
ends = {name: states[-1] for name, states in every_state.items()}
for name, cloud in ends.items():
    print(f"{name + ', 1000 steps':23} {nearest(cloud, real):12.4f} {nearest(real, cloud):13.4f}")

_, axes = plt.subplots(1, 5, figsize=(12, 2.6), layout="constrained")
for axis, (name, cloud) in zip(axes[:3], ends.items(), strict=True):
    axis.scatter(*cloud.T, s=1.5, linewidths=0)
    window(axis, name, 1.3)
for axis, name in zip(axes[3:], ["DDPM", "DDIM"], strict=True):
    paths = torch.stack(every_state[name])[80:, :5]  # (921, 5, 2): from t = 920 down; the first steps are very large
    axis.plot(paths[..., 0], paths[..., 1], linewidth=0.8)
    axis.scatter(*paths[-1].T, s=14, color="black", zorder=3)
    window(axis, f"{name}, t ≤ 920", 2.2)
plt.show()

# %% [markdown]
# With the mean only, all points collapse onto a single one. It lies near the outline, so the first column looks excellent, and the second column
# shows that everything else is left out. DDPM and DDIM both cover the whole outline. Their trajectories differ: those of DDIM are smooth, those of
# DDPM are rough.
#
# ### Where the loss comes from
#
# So far the loss was a guess: predict the noise, minimise the squared error. The DDPM paper derives it from maximum likelihood. The model assigns to
# an image the probability density $p_\theta(x_0) = \int p_\theta(x_{0:T})\,dx_{1:T}$, where
# $p_\theta(x_{0:T}) = p(x_T)\prod_t p_\theta(x_{t-1}\,|\,x_t)$. The integral cannot be computed, but it has a bound. Multiply and divide by
# $q(x_{1:T}\,|\,x_0)$ to get an expectation, and use that the logarithm is concave (Jensen's inequality):
#
# $$-\log p_\theta(x_0) = -\log \mathbb{E}_q\!\left[\frac{p_\theta(x_{0:T})}{q(x_{1:T}\,|\,x_0)}\right] \;\le\; \mathbb{E}_q\!\left[-\log\frac{p_\theta(x_{0:T})}{q(x_{1:T}\,|\,x_0)}\right] =: L$$
#
# $-L$ is called the **evidence lower bound** (ELBO). Now turn the forward steps around by Bayes' rule:
# $q(x_t\,|\,x_{t-1}) = q(x_{t-1}\,|\,x_t,x_0)\;q(x_t\,|\,x_0)\,/\,q(x_{t-1}\,|\,x_0)$. In the product over $t$ the last fractions cancel each other
# except for $q(x_T\,|\,x_0)$, and $L$ becomes a sum:
#
# $$L = \mathbb{E}_q\Big[\underbrace{D_{\mathrm{KL}}\big(q(x_T|x_0)\,\|\,p(x_T)\big)}_{\text{no weights in it}} + \sum_{t=2}^{T} \underbrace{D_{\mathrm{KL}}\big(q(x_{t-1}|x_t,x_0)\,\|\,p_\theta(x_{t-1}|x_t)\big)}_{L_{t-1}} \;\underbrace{-\log p_\theta(x_0|x_1)}_{\text{last step}}\Big]$$
#
# $D_{\mathrm{KL}}(q\,\|\,p) = \mathbb{E}_q[\log(q/p)]$ is the Kullback–Leibler divergence, which is zero if $q = p$ and positive otherwise. So each
# step of the model should imitate the posterior that we derived. Both are Gaussians with the same variance $\tilde\beta_t$, and for those the
# divergence is the squared distance of the means, divided by twice the variance. Both means have the same form, one with $\varepsilon$ and one with
# $\varepsilon_\theta$, so
#
# $$L_{t-1} = \mathbb{E}\left[\frac{|\tilde\mu_t - \mu_\theta|^2}{2\,\tilde\beta_t}\right] = \mathbb{E}\Big[\underbrace{\frac{\beta_t^2}{2\,\tilde\beta_t\,(1-\beta_t)\,(1-\bar\alpha_t)}}_{w_t}\;|\varepsilon - \varepsilon_\theta(x_t,t)|^2\Big]$$
#
# The paper found that samples are better without the weight $w_t$, and trains with
#
# $$L_{\text{simple}} = \mathbb{E}_{t,\,x_0,\,\varepsilon}\left[\,|\varepsilon - \varepsilon_\theta(x_t,t)|^2\,\right]$$
#
# > **In the papers.** $L_{\text{simple}}$ is DDPM, eq. 14; the bound and its terms $L_T$, $L_{t-1}$, $L_0$ are in the paper's section 2, the weighted
# > squared error in section 3.2. Since $w_t > 0$, both losses have the same ideal network, the conditional mean of section 1. They differ in how much
# > each level counts for a network that is not ideal. How large are the weights?

# %%
t = torch.arange(2, T)  # from 2 to 999
variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t]
weight = beta[t] ** 2 / (2 * variance * (1 - beta[t]) * (1 - alpha_bar[t]))
for level in (2, 10, 100, 500, 900):
    print(f"t = {level:3}: weight in the bound {weight[level - 2]:.5f}, in L_simple 1")

# %% [markdown]
# **Question.** Relative to the bound, does $L_{\text{simple}}$ give more or less importance to high noise levels? Why can that be better for samples?
#
# <details><summary>Answer</summary>
#
# More. The bound weights $t = 2$ more than a hundred times as much as $t = 500$, so it spends the network's capacity on details that are hardly
# visible. With equal weights the network learns more about the levels where the form of the digit is decided. (The paper argues the same way after
# its eq. 14.)
#
# </details>

# %% [markdown]
# ## 4 · The score
#
# Many papers describe the same models with the **score**: the gradient of the logarithm of the density, $\nabla_x \log p_t(x)$. Here $p_t$ is the
# distribution of the noisy data at level $t$, that is, the grey clouds of section 1. The score points to where the density grows fastest.
#
# ### Tweedie's formula
#
# The density of noisy data is an average over the clean data: $p_t(x_t) = \mathbb{E}_{x_0}\big[q(x_t\,|\,x_0)\big]$. Differentiate the logarithm.
# Since $\nabla q = q\,\nabla\log q$,
#
# $$\nabla \log p_t(x_t) = \frac{\mathbb{E}_{x_0}\big[q(x_t|x_0)\,\nabla\log q(x_t|x_0)\big]}{p_t(x_t)} = \mathbb{E}\big[\nabla\log q(x_t|x_0)\,\big|\,x_t\big] = -\frac{x_t - \sqrt{\bar\alpha_t}\;\mathbb{E}[x_0|x_t]}{1-\bar\alpha_t}$$
#
# The second step is Bayes' rule: $q(x_t|x_0)/p_t(x_t)$ are exactly the weights of the conditional mean. Solved for the mean, this is **Tweedie's
# formula**:
#
# $$\mathbb{E}[x_0\,|\,x_t] = \frac{x_t + (1-\bar\alpha_t)\,\nabla\log p_t(x_t)}{\sqrt{\bar\alpha_t}}$$
#
# And since $x_t - \sqrt{\bar\alpha_t}\,x_0 = \sqrt{1-\bar\alpha_t}\,\varepsilon$, the score is the predicted noise in another unit:
#
# $$\nabla\log p_t(x_t) = -\frac{\mathbb{E}[\varepsilon\,|\,x_t]}{\sqrt{1-\bar\alpha_t}} \approx -\frac{\varepsilon_\theta(x_t,t)}{\sqrt{1-\bar\alpha_t}}$$
#
# > **In the papers.** A network for the score is written $s_\theta(x, t)$. Tweedie's formula is older than diffusion models
# > ([Efron 2011](https://doi.org/10.1198/jasa.2011.tm11181)). Training on
# > $\mathbb{E}\,\big|\,s_\theta(x_t,t) + \varepsilon/\sqrt{1-\bar\alpha_t}\,\big|^2$ is called *denoising score matching*
# > ([Vincent 2011](https://doi.org/10.1162/NECO_a_00142); [Song & Ermon 2019](https://arxiv.org/abs/1907.05600)). By section 1, the optimum is the
# > conditional mean of $-\varepsilon/\sqrt{1-\bar\alpha_t}$, which is the score of $p_t$, although the score never appears in the loss. With
# > $s_\theta = -\varepsilon_\theta/\sqrt{1-\bar\alpha_t}$ it is $L_{\text{simple}}$ with the weight $1/(1-\bar\alpha_t)$.
#
# For the points in the plane, $p_t$ is a sum of Gaussians. We let PyTorch differentiate its logarithm and compare with Tweedie and with the network.


# %%
def log_density(x, t, clean):
    """log p_t(x) for a finite set of clean points. (N, D) -> (N,)"""
    constant = math.log(len(clean)) + x.shape[1] / 2 * (2 * math.pi * (1 - alpha_bar[t])).log()
    return log_weights(x, t, clean).logsumexp(dim=1) - constant


def score(eps, t):
    """The score at level t, from the noise that the network predicts."""
    return -eps / (1 - alpha_bar[t]).sqrt()


print("mean distance from the gradient of log p_t, relative to the mean length of the gradient:")
_, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
for axis, t, reach in zip(axes, [600, 250, 100], [2.2, 1.5, 1.2], strict=True):
    cloud = add_noise(points, torch.full((3000,), t), eps).requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(cloud, t, clean).sum(), cloud)
    cloud = cloud.detach()
    tweedie = score(eps_from_x0(cloud, t, ideal_x0(cloud, t, clean)), t)
    both = tweedie, score(toy_eps(cloud, t), t)
    away = [(s - gradient).norm(dim=1).mean() / gradient.norm(dim=1).mean() for s in both]
    print(f"t = {t}: Tweedie's formula {away[0]:.5f}, network {away[1]:.3f}")

    line = torch.linspace(-reach, reach, 121)
    grid = torch.cartesian_prod(line, line)
    density = log_density(grid, t, clean).view(121, 121).T
    picture = axis.imshow(density, origin="lower", extent=[-reach, reach] * 2, cmap="magma", vmin=density.max() - 8)
    plt.colorbar(picture, ax=axis, shrink=0.75, label="$\\log p_t$ (black: 8 below the maximum)")
    line = torch.linspace(-0.95 * reach, 0.95 * reach, 13)
    places = torch.cartesian_prod(line, line)
    arrows = score(toy_eps(places, t), t)
    arrows = 0.13 * reach * arrows / arrows.norm(dim=1, keepdim=True)
    axis.quiver(*places.T, *arrows.T, angles="xy", scale_units="xy", scale=1, width=0.005, color="white")
    window(axis, f"t = {t}", reach)
plt.show()

# %% [markdown]
# The colour is $\log p_t$, and the white arrows are the direction of the network's score. They point uphill. Compare with section 1: the arrows there
# were $\hat x_0 - x$, which Tweedie's formula turns into a mixture of the score and of $x$ itself. The two fields have the same direction only where
# $\bar\alpha_t$ is near 1, that is, at small noise levels.
#
# ### Langevin steps
#
# If you know the score, you can sample without any chain. A **Langevin step** of size $\delta$ moves uphill a little and adds noise:
#
# $$x \;\leftarrow\; x + \frac{\delta}{2}\,\nabla\log p_t(x) + \sqrt{\delta}\;z$$
#
# Without the noise all points would end at maxima of the density. With it, and for small $\delta$, the points become distributed like $p_t$ after
# many steps, wherever they started. The level $t$ stays the same all the time.
#
# > **In the papers.** [Song & Ermon 2019](https://arxiv.org/abs/1907.05600) sample by *annealed* Langevin dynamics: some steps at a high noise level,
# > some at the next lower one, and so on. A step of DDPM is similar: its mean moves $x_t$ along the score (put
# > $\hat\varepsilon = -\sqrt{1-\bar\alpha_t}\,s$ into Algorithm 2), and then it adds noise.


# %%
def langevin_step(x, score, delta, z):
    """Half a step size along the score, and noise of variance delta. All (N, D)"""
    return x + delta / 2 * score + delta**0.5 * z


def langevin(x, levels, steps, generator):
    """`steps` Langevin steps at each of the levels, with a step size in proportion to the noise variance."""
    for t in levels:
        for _ in range(steps):
            delta = 0.2 * (1 - alpha_bar[t]).item()
            x = langevin_step(x, score(toy_eps(x, t), t), delta, torch.randn(x.shape, generator=generator))
    return x


g = torch.Generator().manual_seed(3)
strip = torch.rand((2000, 2), generator=g) * torch.tensor([1.0, 4.0]) - 2  # a start that is far from the data
target = add_noise(points[:2000], torch.full((2000,), 150), eps[:2000])
at_150 = [langevin(strip, [150], steps, g) for steps in (10, 300)]
at_20 = langevin(strip, [20], 300, g)
annealed = langevin(strip, range(900, 0, -20), 10, g)  # ten steps at each of 45 levels
clouds = {"start": strip, "t = 150, 10 steps": at_150[0], "t = 150, 300 steps": at_150[1]}
clouds |= {"noisy data, t = 150": target, "t = 20, 300 steps": at_20, "annealed, 900 to 20": annealed}
show_points(list(clouds.values()), list(clouds), reach=1.8)
for name, cloud in (clouds | {"clean data": points}).items():
    print(f"{name:20} {(cloud[:, 0] > 0.35).float().mean():.1%} of the points are right of 0.35 (the neck)")

# %% [markdown]
# At $t = 150$ the points are distributed like the noisy data after 300 steps. At $t = 20$ they lie on the outline after 300 steps, but hardly any are
# on the neck: each point has moved to the nearest part of the outline. The steps at this level are so small that it would take very long to move on
# from there. Annealing helps, because at high noise levels there are no gaps to cross. This is one reason why diffusion models use many noise levels
# and not a single small one.
#
# **Question.** At level $t$ the score is $-\varepsilon_\theta/\sqrt{1-\bar\alpha_t}$. How long is it typically, compared with $\varepsilon$, at small
# noise levels? What does this mean for the step size $\delta$?
#
# <details><summary>Answer</summary>
#
# At small noise levels $\sqrt{1-\bar\alpha_t}$ is small, so the score is very long: the density falls off steeply around the data. A fixed $\delta$
# that is right for high levels would overshoot there. This is why the code takes $\delta$ in proportion to $1-\bar\alpha_t$.
#
# </details>

# %% [markdown]
# ## 5 · The network
#
# The network predicts an image of the same size as its input. It needs the details (where does a stroke end?) and the whole (is this a 4?) at once,
# and it must know the noise level. A **U-Net** meets all three demands:
#
# * **down**: it halves the image again and again, with more channels each time. On the small image, each pixel sees a large part of the original;
# * **up**: it doubles the image again until it has the original size;
# * **skip connections**: on the way up, each stage also receives what the way down had computed at this size, so no detail is lost;
# * **residual blocks** do the work: two convolutions whose result is *added* to the input. The noise level enters each of them;
# * **attention**, only where the image is smallest, lets every pixel use information from every other one.
#
# ### The noise level as waves
#
# A single number $t$ between 0 and 999 is a poor input for a network, because $t = 10$ and $t = 20$ must lead to quite different behaviour. So $t$ is
# turned into $d$ numbers, the sines and cosines of waves of different lengths. With $h = d/2$:
#
# $$\phi_i = \frac{t}{10000^{\,i/h}}, \qquad i = 0,\dots,h-1 \qquad\quad \mathrm{emb}(t) = \big(\sin\phi_0,\dots,\sin\phi_{h-1},\;\cos\phi_0,\dots,\cos\phi_{h-1}\big)$$
#
# The first waves are fast and distinguish neighbouring levels. The last ones are slow and distinguish high levels from low ones.
#
# > **In the papers.** This is the *sinusoidal position embedding* of the Transformer ([Vaswani et al. 2017](https://arxiv.org/abs/1706.03762),
# > section 3.5). Implementations differ in details: cosines first or sines first, and the code of the DDPM paper divides $i$ by $h-1$ instead of $h$.


# %%
def time_embedding(t, dim):
    """Sines and cosines of t with wavelengths from 2 pi to almost 20,000 pi. (B,) -> (B, dim)"""
    half = dim // 2
    angle = t.float()[:, None] / 10_000 ** (torch.arange(half) / half)  # (B, half)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


plt.figure(figsize=(7, 2.4), layout="constrained")
plt.imshow(time_embedding(torch.arange(1000), 32).T, aspect="auto", cmap="RdBu", interpolation="nearest")
plt.colorbar(label="value")
plt.gca().set(xlabel="t", ylabel="number in the embedding", yticks=[0, 8, 16, 24, 31])
plt.show()

# %% [markdown]
# ### The residual block
#
# A small network (two linear layers) processes the waves once. Each block then computes from the result one *scale* and one *shift* for each channel,
# and changes its features by them. Convolutions see only a neighbourhood of $3\times3$ pixels, but scale and shift are the same for the whole image.
# In this way the same weights can act differently at different noise levels.

# %%
show_resblock()


# %%
class ResBlock(nn.Module):
    """Two convolutions, with the embedding between them. x: (B, C, H, W), emb: (B, D) -> (B, C', H, W)"""

    def __init__(self, c_in, c_out, emb_dim=128):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_dim, 2 * c_out)
        self.norm2 = nn.GroupNorm(8, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # a new block is the identity (or its shortcut), which makes training stable
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C', H, W)
        scale, shift = self.time_emb_proj(F.silu(emb))[:, :, None, None].chunk(2, dim=1)  # (B, C', 1, 1) each
        h = self.norm2(h) * (1 + scale) + shift
        return self.conv_shortcut(x) + self.conv2(F.silu(h))


class SelfAttention(nn.Module):
    """Every pixel takes a weighted average over all pixels. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x):
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C) with N = H W pixels
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        weights = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(dim=2)  # (B, N, N): each row sums to 1
        return x + self.to_out(weights @ v).transpose(1, 2).view_as(x)


# %% [markdown]
# The GroupNorm layers bring the features to mean 0 and variance 1, and SiLU is the activation $x\,\mathrm{sigmoid}(x)$. In the attention, each pixel
# has a *query* $q$, a *key* $k$ and a *value* $v$: the weight of another pixel is large where its key fits the query. (Chapter 2 looks at attention
# in detail.)
#
# ### The whole network, and class labels
#
# If the digits have labels, the network can learn to draw the digit that you ask for. Nothing changes in the theory: every density is conditioned on
# the label $c$, and the network becomes $\varepsilon_\theta(x_t, t, c)$. It predicts $\mathbb{E}[\varepsilon\,|\,x_t, c]$, an average over the images
# of this class alone. **Class conditioning** needs one line: a table has one learned vector for each class, and the vector of the label is *added* to
# the embedding of the noise level. So the label reaches every block by the same path:
#
# $$e = \mathrm{MLP}\big(\mathrm{emb}(t)\big) + E_c \qquad\text{(row } c \text{ of the table } E)$$
#
# Two details save training time. The first layer turns each square of $2\times2$ pixels into one pixel with four channels, so all convolutions run on
# $14\times14$ or $7\times7$ pixels. And the last line adds the input $x$ to the result: at high noise levels $x_t$ is nearly all noise, so the
# prediction $\hat\varepsilon = x_t$ is a good start, and the network learns only the correction.


# %%
class SmallUNet(nn.Module):
    """Predicts the noise. x: (B, 1, 28, 28), t: (B,) from 0 to 999, label: (B,) from 0 to 9 -> (B, 1, 28, 28)"""

    def __init__(self, c=32, emb_dim=128):
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(32, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        self.table = nn.Embedding(10, emb_dim)  # one row for each class
        self.conv_in = nn.Conv2d(4, c, 3, padding=1)
        self.down = ResBlock(c, c)
        self.halve = nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
        self.low = ResBlock(2 * c, 2 * c)
        self.attention = SelfAttention(2 * c)
        self.middle = ResBlock(2 * c, 2 * c)
        self.up_low = ResBlock(4 * c, 2 * c)
        self.widen = nn.Conv2d(2 * c, c, 3, padding=1)
        self.up = ResBlock(2 * c, c)
        self.norm_out = nn.GroupNorm(8, c)
        self.conv_out = nn.Conv2d(c, 4, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)  # a new network predicts x itself
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x, t, label):
        emb = self.time_mlp(time_embedding(t, 32)) + self.table(label)  # (B, 128)
        small = F.pixel_unshuffle(x, 2)  # (B, 4, 14, 14)
        a = self.down(self.conv_in(small), emb)  # (B, 32, 14, 14) kept for the way up
        b = self.low(self.halve(a), emb)  # (B, 64, 7, 7) kept, too
        h = self.middle(self.attention(b), emb)  # (B, 64, 7, 7)
        h = self.up_low(torch.cat([h, b], dim=1), emb)  # (B, 64, 7, 7)
        h = self.widen(F.interpolate(h, scale_factor=2.0))  # (B, 32, 14, 14)
        h = self.up(torch.cat([h, a], dim=1), emb)  # (B, 32, 14, 14)
        return x + F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), 2)  # (B, 1, 28, 28)


torch.manual_seed(0)
net = SmallUNet()
for name, module in net.named_children():
    print(f"{name:10} {type(module).__name__:14} {sum(p.numel() for p in module.parameters()):8,} weights")
print(f"{'together':25} {sum(p.numel() for p in net.parameters()):8,} weights")

# %% [markdown]
# The U-Net that the rest of the course imports, [unet.py](../common/models/unet.py), has the same blocks, with any number of resolutions. We open the
# network that comes with this chapter, copy the weights of one of its blocks into our `ResBlock`, and compare.

# %%
from common.models.model_folder import load_model

shipped = load_model(CHAPTER / "pretrained").net  # trained on the 60,000 training images of MNIST
theirs = shipped.down_blocks[1].resnets[0]
ours = ResBlock(theirs.conv1.in_channels, theirs.conv1.out_channels)
ours.load_state_dict(theirs.state_dict())
g = torch.Generator().manual_seed(0)
x, emb = torch.randn((2, theirs.conv1.in_channels, 14, 14), generator=g), torch.randn((2, 128), generator=g)
with torch.no_grad():
    print(f"largest difference between the two blocks: {(ours(x, emb) - theirs(x, emb)).abs().max():.1e}")
print(f"weights of the shipped network: {sum(p.numel() for p in shipped.parameters()):,}")

# %% [markdown]
# **Question.** A convolution from $C$ to $C$ channels has $9\,C^2$ weights for any image size. Where are most of the weights of our network, and
# where is most of the *work*?
#
# <details><summary>Answer</summary>
#
# Most weights are in the blocks at $7\times7$ pixels (`low`, `middle`, `up_low`), because these have twice as many channels, so four times as many
# weights for each convolution. The work of a convolution is $9\,C^2$ for each pixel. The blocks at $14\times14$ have a quarter of the weights and
# four times the pixels, so the work is about equal at both sizes.
#
# </details>

# %% [markdown]
# ## 6 · Six steps of training
#
# Training repeats six small steps. Here they are, one in each cell, with the new network.
#
# **Step 1: take images**, here eight of them, with their labels. **Step 2: draw a noise level** for each, from 1 to 1000 with equal probability.
# **Step 3: draw noise**, as many numbers as the images have.

# %%
g = torch.Generator().manual_seed(0)
batch = mnist.batch(torch.arange(8))  # 1
x0, label = batch["image"], batch["label"]
t = torch.randint(1, T + 1, (8,), generator=g)  # 2
eps = torch.randn(x0.shape, generator=g)  # 3
print("x0 ", tuple(x0.shape), x0.dtype, "   label", label.tolist())
print("t  ", tuple(t.shape), t.tolist())
print("eps", tuple(eps.shape), f"mean {eps.mean():.2f}, variance {eps.var():.2f}")

# %% [markdown]
# **Step 4: noise the images** by the closed form. In `add_noise`, $\bar\alpha_t$ has the shape (8, 1, 1, 1), so each image is multiplied by its own
# number.

# %%
x_t = add_noise(x0, t, eps)
show_images([x0, x_t], 8, [f"t = {level}" for level in t.tolist()], ["x₀", "x_t"])

# %% [markdown]
# **Step 5: predict the noise** from $x_t$, the level and the label. **Step 6: compare** by the mean squared error, compute its gradient, and let the
# optimizer change the weights a little.

# %%
predicted = net(x_t, t - 1, label)  # 5
loss = (predicted - eps).square().mean()  # 6
loss.backward()
norm = sum(p.grad.square().sum() for p in net.parameters() if p.grad is not None).sqrt()
print(f"predicted {tuple(predicted.shape)}, loss {loss.item():.3f}, norm of the gradient {norm:.3f}")
net.zero_grad()

# %% [markdown]
# The last layer of the new network is zero, so it predicts $\hat\varepsilon = x_t$. A network that always predicted zero would have a loss near 1,
# because the noise has variance 1.
#
# > **In the papers.** These six steps are Algorithm 1 of the DDPM paper, and the loss is $L_{\text{simple}}$ (eq. 14). [ddpm.py](ddpm_mnist/ddpm.py)
# > holds both algorithms of the paper on one page.
#
# ### One noise level only
#
# What if the network is trained at a single level, say $t = 400$? It becomes a **denoiser**: one evaluation removes noise of this strength. We train
# it for a short time, and then use it at levels that it has never seen.


# %%
def batch_of(images, size, generator):
    """A random batch: images (B, 1, 28, 28) in [-1, 1] and labels (B,)."""
    batch = images.batch(torch.randint(len(images), (size,), generator=generator))
    return batch["image"], batch["label"]


def image_loss(net, x0, label, t, eps):
    """Steps 4 to 6. -> ()"""
    return (net(add_noise(x0, t, eps), t - 1, label) - eps).square().mean()


def one_level_loss():
    x0, label = batch_of(mnist, 16, g)
    return image_loss(one_level, x0, label, torch.full((16,), 400), torch.randn(x0.shape, generator=g))


torch.manual_seed(0)
one_level, g = SmallUNet(), torch.Generator().manual_seed(0)
losses = train(one_level, one_level_loss, 300, 2e-3)
print(f"loss of the first step {losses[0]:.3f}, mean of the last 50 steps {np.mean(losses[-50:]):.3f}")

# %%
held_out = test.batch(torch.arange(200))  # digits that are never trained on
digits, labels = held_out["image"], held_out["label"]
noise = torch.randn(digits.shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def one_step(net, t):
    """Digits noised to level t, and the network's prediction of the clean digits in one step."""
    x = add_noise(digits, torch.full((len(digits),), t), noise)
    return x, x0_from_eps(x, t, net(x, torch.full((len(x),), t - 1), labels))


levels = [100, 200, 300, 400, 500, 600, 700]
pairs = [one_step(one_level, t) for t in levels]
rows = [pair[i][3:4].clamp(-1, 1) for i in (0, 1) for pair in pairs]
show_images(rows, len(levels), [f"t = {t}" for t in levels], ["x_t", "prediction\nof x₀"], scale=3)
print("mean squared error of the pixels:")
for t, (x, x0) in zip(levels, pairs, strict=True):
    before = (x / alpha_bar[t].sqrt() - digits).square().mean()  # only the scale corrected, no noise removed
    print(f"t = {t}: before {before:.3f}, after one step {(x0 - digits).square().mean():.3f}")

# %% [markdown]
# At $t = 400$ the prediction is a clean digit. At $t = 600$ and above, much of the noise remains, as bright spots. At $t = 200$ and $t = 300$ the
# error is about the same as at $t = 400$, although there is much less noise to remove. Section 7 repeats this table with a network that was trained
# on all levels. So a network must be trained on **every level that sampling visits**. It must also be *given* the level, because the same pixels call
# for different corrections at different levels.
#
# **Question.** The network above receives $t$ as an input. Why does this not help it at $t = 200$?
#
# <details><summary>Answer</summary>
#
# In training, $t$ was always 400, so nothing in the loss said how the prediction should depend on $t$. The inputs for other levels lead to features
# that training never touched.
#
# </details>

# %% [markdown]
# ## 7 · Train a class-conditional model
#
# Now all levels, and the label of each image. The loop is the one of section 1 with one addition: beside the weights $\theta$ it keeps a second copy
# $\bar\theta$, a running average of them, which is called **EMA** (exponential moving average). After every step,
#
# $$\bar\theta \;\leftarrow\; d\,\bar\theta + (1-d)\,\theta$$
#
# with a decay $d$ a little below 1: about the last $1/(1-d)$ steps count. Section 9 measures what it does. The learning rate is constant in the first
# half and then falls to zero.


# %%
def train_with_average(net, loss_of_a_batch, steps, lr, decay):
    """Yields (number of steps done, loss, network with the averaged weights) after every step."""
    optimizer, average = torch.optim.AdamW(net.parameters(), lr), copy.deepcopy(net)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, 20 * (step + 1) / steps, 2 * (1 - step / steps))
        loss = loss_of_a_batch()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():  # the average is no part of the computation that gradients flow through
            for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
                mean.copy_(decay * mean + (1 - decay) * weight)
        yield step + 1, loss.item(), average


def any_level_loss():
    x0, label = batch_of(mnist, BATCH, g)  # 1. images
    t = torch.randint(1, T + 1, (BATCH,), generator=g)  # 2. levels
    eps = torch.randn(x0.shape, generator=g)  # 3. noise
    return image_loss(net, x0, label, t, eps)  # 4. noise the images, 5. predict, 6. compare


@torch.no_grad()
def losses_on_new_digits(net):
    """The loss of each of the 200 held-out digits, always with the same levels and the same noise. (200,)"""
    t = torch.arange(200) * 5 + 3  # spread evenly from 3 to 998
    return (net(add_noise(digits, t, noise), t - 1, labels) - noise).square().flatten(1).mean(1)


STEPS, BATCH, DECAY = 2000, 16, 0.99
g, losses, history, early = torch.Generator().manual_seed(0), [], [], {}
for step, loss, average in train_with_average(net, any_level_loss, STEPS, 3e-3, DECAY):
    losses.append(loss)
    if step % 200 == 0:
        history.append((step, losses_on_new_digits(net), losses_on_new_digits(average)))
    if step == STEPS // 2:  # the end of the constant learning rate: kept for section 9
        early = {"raw": copy.deepcopy(net), "averaged": copy.deepcopy(average)}

# %%
plt.figure(figsize=(7, 2.6), layout="constrained")
plt.plot(range(1, STEPS + 1), losses, color="0.8", linewidth=0.5, label="training, each step")
mean = np.convolve(losses, np.ones(50) / 50, "valid")
plt.plot(np.arange(len(mean)) + 25, mean, color="C0", label="training, mean of 50 steps")
at, on_new = [step for step, *_ in history], [after.mean() for *_, after in history]
plt.plot(at, on_new, "o-", color="C1", label="new digits, averaged weights")
plt.gca().set(xlabel="step", ylabel="loss", ylim=(0, 0.3))
plt.legend()
plt.show()
print(f"loss on new digits at the end: {history[-1][2].mean():.4f}")

print("mean squared error of the pixels after one step:")
for t, (_, x0) in zip(levels, pairs, strict=True):
    error = (one_step(average, t)[1] - digits).square().mean()
    print(f"t = {t}: trained on all levels {error:.3f}, on t = 400 alone {(x0 - digits).square().mean():.3f}")

# %% [markdown]
# At $t = 400$ the two are close: the error is 0.027<!--out--> for the new network, which was trained longer, and 0.037<!--out--> for the old one. At
# $t = 700$, which the old one never saw in training, the errors are 0.101<!--out--> and 0.915<!--out-->.

# %% [markdown]
# To sample, the **same label goes to the network at every step**. Each column below asks for one digit. The ten samples of a row start from the same
# noise, so they differ only by the label. We use the deterministic sampler of section 1 with 20 steps.


# %%
def eps_of(net, label):
    """The network as a function (x, t) -> noise, for the samplers. label: (B,)"""

    @torch.no_grad()
    def predict(x, t):
        return net(x, torch.full((len(x),), t - 1), label)

    return predict


def pure_noise(n, seed):
    return torch.randn((n, 1, 28, 28), generator=torch.Generator().manual_seed(seed))


every_50th = range(1000, -1, -50)  # 20 steps
asked = torch.arange(40) % 10
same_noise = pure_noise(4, 0).repeat_interleave(10, dim=0)  # (40, 1, 28, 28) ten times each
ours = ddim(eps_of(average, asked), same_noise, every_50th)[-1]
show_images(ours, 10, [str(c) for c in range(10)], [f"noise {i}" for i in range(1, 5)])

# %% [markdown]
# Within a row, strokes often lie at the same places, because the noise is the same, and the label changes which strokes there are. Some samples are
# readable digits of the right class, and others are not: 2,000 steps of 16 images are a short training. How often does the model draw the digit that it was asked
# for? The course has a small classifier of digits, [digit_classifier.py](../common/evaluate/digit_classifier.py), trained on MNIST. The share of
# samples that it recognises as the digit asked for is an estimate from a limited number of samples, so it needs an interval. The *Wilson interval*
# (chapter 2 has its formula) contains the true share in about 95 % of all experiments.

# %%
from common.evaluate.digit_classifier import classify, load_digit_classifier


def wilson(share, n, z=1.96):
    """95 % interval of a share that was seen in n independent cases."""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return middle - half, middle + half


classifier = load_digit_classifier()
asked = torch.arange(200) % 10
ours = ddim(eps_of(average, asked), pure_noise(200, 1), every_50th)[-1]
for name, images, wanted in (("samples", ours, asked), ("new real digits", digits, labels)):
    right = (classify(classifier, images)[1].argmax(1) == wanted).double().mean().item()
    low, high = wilson(right, len(images))
    print(f"{name:16} {right:.1%} are recognised as their label (95 % interval {low:.1%} to {high:.1%})")

# %% [markdown]
# Without the label, 10 % would be right by chance. So the network uses the label, and it still draws far worse digits than people do.
#
# **Question.** You use the trained network with the label 3 for the first ten steps and the label 8 for the last ten. What do you expect? Write your
# prediction down, and try it: a list of two `ddim` calls is enough.
#
# <details><summary>Answer</summary>
#
# The overall form is decided in the first part of the trajectory, which is at high noise levels. The second part keeps that form as far as it can and
# draws the details of the other digit. A 3 and an 8 share most of their strokes, so you can expect mixtures of both. Whether that is what you get,
# only the experiment can say.
#
# </details>

# %% [markdown]
# ## 8 · Sample from a larger model
#
# The training of section 7 was short. The network that comes with this chapter, which we opened in section 5, was trained for hours on all 60,000
# training images of MNIST, without labels. For its training the target was not the noise but another linear combination of noise and image,
# $v = \sqrt{\bar\alpha_t}\,\varepsilon - \sqrt{1-\bar\alpha_t}\,x_0$, because networks learned it faster in the tests of chapter 3, which explains
# $v$. Here we only convert it: a prediction of $v$ and the known $x_t$ are two equations for $\hat x_0$ and $\hat\varepsilon$, and the solution for
# the noise is one line.


# %%
@torch.no_grad()
def shipped_eps(x, t):
    """The noise that the shipped network sees in x. (B, 1, 28, 28) -> (B, 1, 28, 28)"""
    v = shipped(x, torch.full((len(x),), t - 1))
    return (1 - alpha_bar[t]).sqrt() * x + alpha_bar[t].sqrt() * v


# %% [markdown]
# ### One step from every noise level
#
# First we look at single predictions. What does the network predict from one digit at several noise levels, and how large is its error on 100 new
# digits?

# %%
levels = [10, 50, 200, 400, 500, 600, 700, 800, 900, 1000]
noise_errors, image_errors, seen, predicted = [], [], [], []
for t in levels:
    x = add_noise(digits[:100], torch.full((100,), t), noise[:100])
    eps = shipped_eps(x, t)
    x0 = x0_from_eps(x, t, eps).clamp(-1, 1)
    noise_errors.append((eps - noise[:100]).square().mean().item())
    image_errors.append((x0 - digits[:100]).square().mean().item())
    seen.append(x[3:4].clamp(-1, 1))
    predicted.append(x0[3:4])
show_images([*seen, *predicted], len(levels), [f"t = {t}" for t in levels], ["x_t", "prediction\nof x₀"])

plt.figure(figsize=(6.5, 2.7), layout="constrained")
plt.plot(levels, noise_errors, marker="o", label="of the noise $\\varepsilon$")
plt.plot(levels, image_errors, marker="o", label="of the image $x_0$")
plt.gca().set(xlabel="noise level t", ylabel="mean squared error", yscale="log", ylim=(1e-4, 2))
plt.legend()
plt.show()
average_digit = mnist.batch(torch.arange(len(mnist)))["image"].mean(0, keepdim=True)
print(
    f"t = 1000: mean squared difference of prediction and average training digit {(x0 - average_digit).square().mean():.4f}"
)

# %% [markdown]
# With little noise the prediction is sharp. With much noise it is blurred, because it is the average of all digits that could have become this $x_t$.
# At $t = 1000$ it is the average of all digits. (In section 1 the arrows pointed to the middle of the dinosaur for the same reason.)
#
# The two errors show opposite difficulties. The noise is hard to predict when there is almost none, and easy when there is nothing else. The image is
# hard to predict at high levels. Both curves describe the same predictions: by the closed form, the error of $x_0$ is the error of $\varepsilon$
# times $(1-\bar\alpha_t)/\bar\alpha_t$, as long as nothing is clipped. At high levels a small error of the noise therefore means a large error of the
# image, and the loss hardly shows it.
#
# ### A thousand steps: Algorithm 2

# %%
states = list(ddpm(shipped_eps, pure_noise(2, 1), torch.Generator().manual_seed(1)))  # x_999, ..., x_0

shown = [999, 800, 600, 450, 350, 250, 180, 120, 70, 30, 0]  # large steps first, small ones at the end
strip = torch.stack([states[999 - t] for t in shown], dim=1).flatten(0, 1).clamp(-1, 1)
show_images(strip, len(shown), [f"t = {t}" for t in shown])

# %% [markdown]
# To the eye, hardly anything happens until about $t = 700$, and yet the form of the digit is decided there. The last steps only clean the background.
#
# ### Fifty steps: a shorter chain
#
# A thousand network evaluations are slow. You can visit only some levels, say 20, 40, …, 1000. The values of $\bar\alpha$ at 0 and at these levels
# are themselves a noise schedule, that of a **shorter chain with larger steps**. Its $\beta$ follows from its own $\bar\alpha$:
#
# $$\beta_k = 1 - \frac{\bar\alpha_{t_k}}{\bar\alpha_{t_{k-1}}}$$
#
# Sampling is Algorithm 2 with these numbers, and the network still receives the levels of the long chain, because these are what it was trained with.
# This is called **respacing** ([Nichol & Dhariwal 2021](https://arxiv.org/abs/2102.09672), eq. 19). It is a classic mistake to skip levels and to
# keep the $\beta_t$ of the long chain: each step then removes too little noise. DDIM needs no change, because its formula contains only $\bar\alpha$.


# %%
def ddpm_respaced(predict_eps, x, levels, generator):
    """Algorithm 2 on the levels t_1 < t_2 < ... < t_K alone. Returns x_0."""
    chain = alpha_bar[[0, *levels]]  # (K + 1,) alpha_bar of the shorter chain
    for k in range(len(levels), 0, -1):
        b = 1 - chain[k] / chain[k - 1]  # beta of this large step
        eps = predict_eps(x, levels[k - 1])
        mean = (x - b / (1 - chain[k]).sqrt() * eps) / (1 - b).sqrt()
        variance = (1 - chain[k - 1]) / (1 - chain[k]) * b  # zero in the last step
        x = mean + variance.sqrt() * torch.randn(x.shape, generator=generator)
    return x


fifty = ddpm_respaced(shipped_eps, pure_noise(12, 1), list(range(20, 1001, 20)), torch.Generator().manual_seed(1))
every_20th = range(1000, -1, -20)
trajectory = ddim(shipped_eps, pure_noise(12, 1), every_20th)
show_images([fifty.clamp(-1, 1), trajectory[-1]], 12, down=["DDPM, 50 evaluations", "DDIM, 50 evaluations"])

# %% [markdown]
# ### The prediction on the way
#
# Each step of the trajectory has a state $x_t$ and the prediction $\hat x_0$ from it.

# %%
shown = [1000, 960, 900, 820, 740, 660, 560, 460, 340, 200, 60]
rows = [trajectory[(1000 - t) // 20][:1] for t in shown]
guesses = [x0_from_eps(x, t, shipped_eps(x, t)) for x, t in zip(rows, shown, strict=True)]
images = [x.clamp(-1, 1) for x in [*rows, *guesses]]
show_images(images, len(shown), [f"t = {t}" for t in shown], ["x_t", "prediction\nof x₀"])

# %% [markdown]
# The prediction begins as the average of all digits and becomes a definite digit while $x_t$ still looks like noise. The rest of the trajectory only
# sharpens it. It is the same order as with the dinosaur: first the overall form, then the details.
#
# **Question.** Why can you not jump from $x_{1000}$ to $\hat x_0$ in one step?
#
# <details><summary>Answer</summary>
#
# $\hat x_0$ is a conditional mean, and at $t = 1000$ the mean over all digits, which is no digit. The steps in between make the choice: with DDPM it
# depends on the fresh noise, with DDIM on the initial noise alone. Step by step, the mean is taken over fewer possible digits.
#
# </details>

# %% [markdown]
# ## 9 · Averaging the weights
#
# While the learning rate is high, the weights keep moving back and forth, because every batch pushes them in another direction. The averaged weights
# of section 7 smooth this movement. Do they predict better? We compare the loss of both networks on the same 200 new digits, with the same noise,
# during the training of section 7. The differences are *paired*, one for each digit. The interval is a **bootstrap** interval: draw 200 of the 200
# differences with repetition, take their mean, repeat this 1,000 times, and keep the middle 95 %.


# %%
def interval_of_mean(values, times=1000):
    """Bootstrap: the middle 95 % of the means of resampled values. values: (N,)"""
    g = torch.Generator().manual_seed(0)
    means = values[torch.randint(len(values), (times, len(values)), generator=g)].mean(1)
    return means.quantile(torch.tensor([0.025, 0.975])).tolist()


gain = [raw - mean for _, raw, mean in history]  # positive: the averaged weights are better
middle, ends = np.array([d.mean() for d in gain]), np.array([interval_of_mean(d) for d in gain]).T
plt.figure(figsize=(6.5, 2.6), layout="constrained")
plt.errorbar(at, middle, [middle - ends[0], ends[1] - middle], fmt="o-", capsize=3)
plt.axhline(0, color="black", linewidth=0.8)
plt.axvspan(0, STEPS / 2, color="0.93")
plt.text(STEPS / 4, plt.ylim()[1], "constant learning rate", ha="center", va="bottom")
plt.text(0.75 * STEPS, plt.ylim()[1], "falling learning rate", ha="center", va="bottom")
plt.gca().set(xlabel="step", ylabel="loss, raw − averaged")
plt.show()
for i in (4, 9):
    _, raw, mean = history[i]
    interval = f"95 % interval {ends[0][i]:.4f} to {ends[1][i]:.4f}"
    print(f"step {at[i]}: raw {raw.mean():.4f}, averaged {mean.mean():.4f}, difference {middle[i]:.4f} ({interval})")

# %% [markdown]
# At step 200 the averaged weights are worse, because the average still contains the untrained ones. After that, while the learning rate is constant,
# they are better: at step 1,000 the loss is lower by 0.0059<!--out--> (95 % interval 0.0048<!--out--> to 0.0073<!--out-->). While the learning rate
# falls, the difference shrinks, and at the end both losses are 0.0558<!--out-->, because the weights hardly move any more.
#
# The interval covers the choice of the 200 digits, but not the choice of the training: this is one training of one small network. What you can carry
# over is the reason: averaging helps while the weights move. In long trainings with a constant learning rate they always do, and the length of the
# average becomes an important setting ([Karras et al. 2024](https://arxiv.org/abs/2312.02696)). What practitioners say about EMA, and what chapter 3
# measured, is in the [list of claims](../docs/claims.md#ema-p2-weights-and-clipping-make-no-difference).
#
# **Question.** With $d = 0.99$, how many steps does the average remember? What would $d = 0.9999$ do in this training of 2,000 steps?
#
# <details><summary>Answer</summary>
#
# About $1/(1-d) = 100$ steps. With $d = 0.9999$ it would be 10,000, so after 2,000 steps the average would still consist mostly of the untrained
# weights ($0.9999^{2000} \approx 0.82$). Programs therefore start with a small decay and raise it during training.
#
# </details>

# %% [markdown]
# ## 10 · The ideal network copies its training set
#
# Section 1 derived the ideal prediction for a finite set of clean points, $\sum_i w_i\,x_0^{(i)}$. The formula holds for images as well, and the loss
# of section 6 averages over a finite set: the training images. So we can *write down* the network that minimises the training loss, without any
# training. What does it draw?
#
# The softmax over 10,000 digits is `ideal_x0` of section 1, and the sampler is the same.

# %%
train_images = mnist.batch(torch.arange(len(mnist)))["image"]  # (10000, 1, 28, 28)


def ideal_prediction(x, t):
    """E[x_0 | x_t], if the data distribution is the set of training digits. (B, 1, 28, 28)"""
    return ideal_x0(x.flatten(1), t, train_images.flatten(1)).view_as(x)


def nearest_training_image(images):
    """(distances, indices): the distance is the root mean square difference of the pixels."""
    distances, indices = torch.cdist(images.flatten(1), train_images.flatten(1)).min(dim=1)
    return distances / 28, indices


copies = ddim(lambda x, t: eps_from_x0(x, t, ideal_prediction(x, t)), pure_noise(12, 1), every_20th)[-1]
shown = {"ideal network": copies, "shipped network": trajectory[-1]}
rows, names = [], []
for name, images in shown.items():
    distances, indices = nearest_training_image(images)
    rows += [images, train_images[indices]]
    names += [name, "nearest\ntraining digit"]
show_images(rows, 12, down=names)
print("distance to the nearest of 10,000 training digits:")
for name, images in (shown | {"new real digits": digits}).items():
    distances, _ = nearest_training_image(images)
    print(f"{name:16} median {distances.median():.3f}, smallest {distances.min():.3f}")

# %% [markdown]
# Every sample of the ideal network is a training digit, pixel by pixel. At high noise levels its prediction is an average over many training digits.
# Then the weights $w_i$ concentrate on fewer and fewer, and at the end on a single one. **A network that minimised the training loss perfectly would
# be useless**: you could store the images instead.
#
# The twelve samples of the shipped network are different from all of these training digits: their median distance is 0.363<!--out-->, that of new
# real digits 0.356<!--out-->. (The shipped network was trained on 60,000 digits, of which these 10,000 are a part.) Why does a trained network not
# copy? Compare the errors of both at each level, on training digits and on new digits.

# %%
levels = [50, 100, 200, 300, 500, 700, 800, 900]
_, axes = plt.subplots(1, 2, figsize=(9.5, 2.9), layout="constrained", sharey=True)
for axis, (name, images) in zip(
    axes, {"training digits": train_images[:100], "new digits": digits[:100]}.items(), strict=True
):
    of_ideal, of_network = [], []
    for t in levels:
        x = add_noise(images, torch.full((100,), t), noise[:100])
        of_ideal.append((ideal_prediction(x, t) - images).square().mean().item())
        of_network.append((x0_from_eps(x, t, shipped_eps(x, t)) - images).square().mean().item())
    axis.plot(levels, np.maximum(of_ideal, 1e-5), "o-", color="C3", label="ideal for the training set")
    axis.plot(levels, of_network, "o-", color="C0", label="shipped network")
    axis.set(title=name, xlabel="noise level t", yscale="log", ylim=(1e-4, 1))
    print(f"{name:15} at t = 300: ideal {of_ideal[3]:.4f}, network {of_network[3]:.4f}")
axes[0].set_ylabel("mean squared error of $x_0$")
axes[1].legend()
plt.show()

# %% [markdown]
# On the training digits the ideal prediction has almost no error for $t\le 500$, because it finds the digit in its list. On *new* digits it is far
# worse than the network at low levels, because it replaces the new digit by the most similar old one: at $t = 300$ the errors are 0.1310<!--out-->
# and 0.0117<!--out-->. The trained network has nearly the same error on both. It has learned what strokes look like, not a list.
#
# Why? Three reasons are usually given. The network has fewer weights than the training set has pixels (here 3 million against 47 million). Its
# convolutions treat all places alike. And training stops long before the training loss reaches its minimum. Networks *do* copy if the training set is
# small enough ([Gu et al. 2023](https://arxiv.org/abs/2310.02664)), and two networks trained on different halves of a large set draw nearly the same
# images from the same noise ([Kadkhodaie et al. 2023](https://arxiv.org/abs/2310.02557)). Which properties of the network matter most is a current
# research question.
#
# **Question.** Exactly one image in the training set would make the ideal prediction very simple. What is it, and what does the sampler draw?
#
# <details><summary>Answer</summary>
#
# The prediction is that image at every level, whatever $x_t$ is, and every sample is a copy of it. The score then points to
# $\sqrt{\bar\alpha_t}\,x_0$ from everywhere.
#
# </details>

# %% [markdown]
# ## 11 · Is it any good?
#
# **Look first.** One of these rows shows real digits that no network was trained on. The other row was drawn by the shipped network. Which is which?

# %%
batches = [ddim(shipped_eps, pure_noise(50, seed), every_50th)[-1] for seed in (10, 11, 12, 13)]
samples = torch.cat(batches)  # (200, 1, 28, 28)
show_images([samples[:14], digits[40:54]], 14, down=["A", "B"])

# %% [markdown]
# <details><summary>Answer</summary>
#
# A is the network (the code above shows it).
#
# </details>
#
# ### The Fréchet distance
#
# To compare two models you want a number. A trained classifier describes each image by some **features**, here 64 numbers. Real images form one cloud
# in the space of features, samples form another. The **Fréchet distance** approximates each cloud by a Gaussian and measures how far apart the two
# Gaussians are. In one dimension, for two normal distributions with means $\mu_1, \mu_2$ and standard deviations $s_1, s_2$, it is
#
# $$d^2 = (\mu_1-\mu_2)^2 + (s_1 - s_2)^2 = (\mu_1-\mu_2)^2 + s_1^2 + s_2^2 - 2\,s_1 s_2$$
#
# With many features the variances become covariance matrices $C_1, C_2$:
#
# $$d^2 = |\mu_1-\mu_2|^2 + \mathrm{Tr}\big(C_1 + C_2 - 2\,(C_1 C_2)^{1/2}\big)$$
#
# The trace of the square root is the sum of the square roots of the eigenvalues of $C_1C_2$. So the number combines place (first term) and shape
# (second term) of the clouds.
#
# > **In the papers.** With the features of a certain large classifier of photographs (Inception) this is the *Fréchet Inception Distance*, FID
# > ([Heusel et al. 2017](https://arxiv.org/abs/1706.08500)). Our features are those of a small classifier of MNIST digits, so our numbers cannot be
# > compared with an FID.


# %%
def frechet_distance(a, b):
    """Distance of two sets of features, (N, D) and (M, D), each approximated by a Gaussian. -> ()"""
    covariance_a, covariance_b = a.T.cov(), b.T.cov()  # (D, D), with N - 1 in the denominator
    roots = torch.linalg.eigvals(covariance_a @ covariance_b).real.clamp(min=0).sqrt()  # (D,)
    place = (a.mean(0) - b.mean(0)).square().sum()
    return place + covariance_a.trace() + covariance_b.trace() - 2 * roots.sum()


def features_of(images):
    """(N, 1, 28, 28) in [-1, 1] -> (N, 64)"""
    return classify(classifier, images)[0]


from common.evaluate.evaluator import reference_for

reference = reference_for(
    test, 28
).features  # (10000, 64) of the 10,000 test images of MNIST, which come with the course
real = features_of(train_images)  # (10000, 64)
drawn = features_of(samples)
print(f"200 samples of the shipped network: {frechet_distance(drawn, reference):.2f}")
print(f"200 real training digits:           {frechet_distance(real[:200], reference):.2f}")

# %% [markdown]
# Real digits do not reach zero. One reason is that training and test digits were written by different people. The other is larger here: **the
# estimate is biased**. Few points give a covariance matrix with errors, and errors add to the distance, never subtract from it on average. How much
# depends on the number of samples.

# %%
numbers = [80, 110, 150, 200]
g = torch.Generator().manual_seed(0)


def curve_of(features, numbers, times=10):
    """Mean distance of random subsets for each number of samples."""
    subsets = [[features[torch.randperm(len(features), generator=g)[:n]] for _ in range(times)] for n in numbers]
    return np.array([np.mean([frechet_distance(part, reference).item() for part in some]) for some in subsets])


more = [*numbers, 500, 1000, 2000, 5000]
floor, of_samples = curve_of(real, more), curve_of(drawn, numbers)
slope, limit = np.polyfit([1 / n for n in more[3:]], floor[3:], 1)  # the line through the points from N = 200 on
_, (left, right) = plt.subplots(1, 2, figsize=(9.5, 2.9), layout="constrained")
left.plot(more, floor, "o-", color="black", label="real digits (the floor)")
left.plot(numbers, of_samples, "o-", label="samples")
left.set(xlabel="number of images N", ylabel="Fréchet distance", xscale="log", ylim=(0, None))
left.legend()
right.plot([1 / n for n in more], floor, "o-", color="black")
right.plot([1 / n for n in numbers], of_samples, "o-")
right.plot([0, 1 / 80], [limit, limit + slope / 80], color="black", linestyle=":", label="line through N ≥ 200")
right.legend()
right.set(xlabel="1 / N", ylabel="Fréchet distance", xlim=(0, None), ylim=(0, None))
plt.show()
for n, value in zip(more, floor, strict=True):
    print(f"{n:5} real digits: {value:.2f}")
print(f"straight line through the points from N = 200 on, at 1 / N = 0: {limit:.2f}")

# %% [markdown]
# The distance falls with the number of images, for real digits and for samples. Over $1/N$ it becomes a straight line once there are a few times more
# images than features. Three rules follow:
#
# * Compare distances only **at equal $N$**.
# * Always print the **floor**: what as many real images get.
# * To compare with results at another $N$, extrapolate to $1/N \to 0$ ([Chong & Forsyth 2019](https://arxiv.org/abs/1911.07023)). The slope depends
#   on the model, so the bias does not cancel.
#
# And a distance needs an interval. We resample the images (bootstrap), which makes all distances larger, because repeated images reduce the variety.
# So only the width of the interval is used, around the measured value.


# %%
def interval_of_distance(features, times=100):
    """The distance and its 95 % interval: the middle 95 % of the resampled distances, moved to the measured one."""
    g, n, value = torch.Generator().manual_seed(0), len(features), frechet_distance(features, reference).item()
    again = [frechet_distance(features[torch.randint(n, (n,), generator=g)], reference).item() for _ in range(times)]
    low, high = np.quantile(again, [0.025, 0.975]) - np.mean(again) + value
    return value, low, high


label = torch.arange(200) % 10
networks = {f"ours, step {STEPS // 2}, {name}": network for name, network in early.items()}
candidates = {name: ddim(eps_of(n, label), pure_noise(200, 1), every_50th)[-1] for name, n in networks.items()}
candidates |= {f"ours, step {STEPS}, averaged": ours, "shipped network": samples}
candidates |= {"copies of training digits": train_images[:200]}
distances = {name: interval_of_distance(features_of(images)) for name, images in candidates.items()}
floor_200 = curve_of(real, [200], times=50)[0]
print("200 images each                     Fréchet distance (95 % interval)")
for name, (value, low, high) in distances.items():
    print(f"{name:34} {value:6.2f} ({low:.2f} to {high:.2f})")
print(f"{'floor: 200 real training digits':34} {floor_200:6.2f}")

# %% [markdown]
# What the table shows:
#
# * At step 1,000 the averaged weights are better than the raw ones: 22.17<!--out--> against 58.58<!--out-->, and the intervals are far apart. This is
#   the moment at which section 9 found a lower loss. (Again, it is one training.)
# * At the end of our short training the distance is 9.76<!--out-->, still far above the floor of 1.31<!--out-->. The shipped network has
#   2.15<!--out-->. Its interval begins at 1.31<!--out-->, so 200 samples hardly decide whether it differs from real digits. With 1,000 samples the
#   difference is clear: 1.02<!--results-->, with a floor of 0.30<!--results-->.
# * The row of copies is a warning. *Copies* of training digits reach the floor, so this distance does not notice them. This is why section 10 looked for
#   copies first.
#
# **Question.** A model draws perfect digits, but never an eight. Does the Fréchet distance notice? And the nearest training image?
#
# <details><summary>Answer</summary>
#
# The Fréchet distance does: without the eights, the mean and the covariance of the features change. The nearest training image does not, because it
# looks at each sample alone.
#
# </details>
#
# Where the 70,000 images of MNIST are at hand, `python -m common.evaluate 01_ddpm_mnist/pretrained --data mnist` measures the shipped network with
# more samples. Without them, the same command with `--data mnist-10k` uses the images that come with the course.

# %% [markdown]
# ## What you can do now
#
# * Write the forward process, Algorithm 1 and Algorithm 2, a U-Net with time and class embedding, and the training loop with EMA.
# * Derive the closed form, the posterior $q(x_{t-1}|x_t,x_0)$, and the loss from the evidence lower bound; say what each approximation is.
# * Convert between predictions of the noise, predictions of the clean image, and the score; sample by Langevin steps.
# * Read the method section of the DDPM paper.
# * Evaluate samples by eye, by their nearest training images, and by a Fréchet distance with its floor and its interval.
#
# ### The formulas of this chapter
#
# | | formula | paper |
# |---|---|---|
# | forward step | $x_t = \sqrt{1-\beta_t}\,x_{t-1} + \sqrt{\beta_t}\,\varepsilon_t$ | DDPM, eq. 2 |
# | schedule | $\bar\alpha_t = (1-\beta_1)\cdots(1-\beta_t)$, $\;\mathrm{SNR} = \bar\alpha_t/(1-\bar\alpha_t)$ | |
# | closed form | $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$ | DDPM, eq. 4 |
# | clean image from noise | $\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\hat\varepsilon)/\sqrt{\bar\alpha_t}$ | DDPM, eq. 15 |
# | ideal prediction | $\mathbb{E}[\varepsilon\,\vert\,x_t]$; for a finite set $\mathbb{E}[x_0\,\vert\,x_t] = \sum_i w_i x_0^{(i)}$ | |
# | posterior | mean $\frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}x_0 + \frac{\sqrt{1-\beta_t}(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}x_t$, variance $\tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\beta_t$ | DDPM, eq. 7 |
# | DDPM step | $x_{t-1} = \frac{1}{\sqrt{1-\beta_t}}\big(x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\hat\varepsilon\big) + \sqrt{\tilde\beta_t}\,z$ | DDPM, eq. 11, alg. 2 |
# | DDIM step | $x_s = \sqrt{\bar\alpha_s}\,\hat x_0 + \sqrt{1-\bar\alpha_s}\,\hat\varepsilon$ | DDIM, eq. 12 |
# | respaced chain | $\beta_k = 1 - \bar\alpha_{t_k}/\bar\alpha_{t_{k-1}}$ | Nichol & Dhariwal, eq. 19 |
# | loss | $L_{\text{simple}} = \mathbb{E}\,\vert\varepsilon - \varepsilon_\theta(x_t,t)\vert^2$ | DDPM, eq. 14, alg. 1 |
# | score, Tweedie | $\nabla\log p_t(x_t) = -\mathbb{E}[\varepsilon\vert x_t]/\sqrt{1-\bar\alpha_t}$, $\;\mathbb{E}[x_0\vert x_t] = \big(x_t + (1-\bar\alpha_t)\nabla\log p_t\big)/\sqrt{\bar\alpha_t}$ | Efron 2011 |
# | Langevin step | $x \leftarrow x + \frac{\delta}{2}\nabla\log p_t(x) + \sqrt{\delta}\,z$ | Song & Ermon 2019 |
# | embeddings | $\phi_i = t/10000^{i/h}$; $\;e = \mathrm{MLP}(\sin\phi, \cos\phi) + E_c$ | Vaswani et al., 3.5 |
# | EMA | $\bar\theta \leftarrow d\,\bar\theta + (1-d)\,\theta$ | |
# | Fréchet distance | $\vert\mu_1-\mu_2\vert^2 + \mathrm{Tr}\big(C_1+C_2-2(C_1C_2)^{1/2}\big)$ | Heusel et al. 2017 |
#
# ### Further reading
#
# * [Ho, Jain & Abbeel 2020](https://arxiv.org/abs/2006.11239), *Denoising Diffusion Probabilistic Models*: the paper of this chapter. You know all
#   symbols of its sections 2 and 3 now.
# * [Sohl-Dickstein et al. 2015](https://arxiv.org/abs/1503.03585), *Deep Unsupervised Learning using Nonequilibrium Thermodynamics*: the first
#   diffusion model.
# * [Song & Ermon 2019](https://arxiv.org/abs/1907.05600), *Generative Modeling by Estimating Gradients of the Data Distribution*: the same models
#   from the score.
# * [Nichol & Dhariwal 2021](https://arxiv.org/abs/2102.09672), *Improved Denoising Diffusion Probabilistic Models*: cosine schedule, respacing,
#   learned variance.
# * [Luo 2022](https://arxiv.org/abs/2208.11970), *Understanding Diffusion Models: A Unified Perspective*: all derivations in small steps.
#
# ### Where to go from here
#
# Things to try in this notebook, each a change of a word or two:
#
# * Sample with `ddim` and 5, 10 or 20 steps. From how many steps on do you see no difference?
# * Set the labels of section 7 to the same number in training. What does the network draw, and what does it draw for other labels?
# * Take `train_images[:50]` as the list of the ideal network, and look at its predictions at $t = 700$.
# * Use the linear schedule in section 1.
#
# Then build it yourself. The nineteen [exercises](exercises/README.md) have three tiers: write the formula, find the bug, reach a goal.
# `python -m common.grade 01` grades them, and `python -m common.grade 01 --hint 2` shows a hint.
#
# [train.py](train.py) trains larger networks with a progress bar: `--data` takes `mnist`, `fashion_mnist`, `cifar10`, `flowers102`, or a folder of
# pictures of your own. Its default predicts $v$, because that learned fastest in our tests (`--prediction eps` trains as in this lesson). With
# `--class-conditional` the network learns labels, and `sample.py --label 3` asks for one. A run that was stopped continues with `--resume RUN`. The
# [page of programs](../docs/programs.md#chapter-1) lists all commands.
#
# In the next chapter you describe in words what the model should draw.
