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
# Take a picture and spoil it with a little noise (噪声). Again, and again, a thousand times. In the end nothing is left but
# noise, and nobody can say what the picture was.
#
# Now the other way. To undo the whole thousand steps at once is hopeless. To undo *one* of them is a modest question: which part of
# this slightly noisy picture is noise? A network can learn to answer it. Ask it a thousand times, starting from pure noise, and a
# picture appears that nobody has ever drawn. That is a **diffusion model** (扩散模型), and this is all of it.
#
# In this lesson we
#
# 1. denoise a cloud of points in the plane, where everything can be seen;
# 2. turn real digits into noise: the **forward process** (前向过程);
# 3. take the six steps of training, one at a time;
# 4. look into the network, a U-Net;
# 5. train one, for less than a minute;
# 6. draw new digits: the **reverse process** (反向过程);
# 7. find out what averaging the weights is good for;
# 8. ask whether the results are any good, and how one could know.
#
# You need Python, a little PyTorch, and to know what a normal distribution (正态分布) is. Everything runs on a laptop's CPU, with
# no download, in two or three minutes. Run the cells in order, and change things: that is the best way to read.

# %%
from common.grade.chapter import (
    open_chapter,  # no module named common? Select the kernel in which the course is installed (README.md)
)

CHAPTER = open_chapter(
    "01_ddpm_mnist"
)  # this folder: from here on its files can be imported, wherever the kernel was started

# %%
import copy
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from accelerate import Accelerator
from IPython.display import Image

from common import viz
from common.data import load
from common.diffusion.denoiser import Denoiser, target, to_x0_eps
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import add_noise, make_schedule
from common.evaluate.evaluator import evaluate
from common.models.model_folder import load_model
from common.models.unet import UNet, zero_init
from common.models.unet_config import UNetConfig
from common.training.logging import logged
from common.training.loop import LossTerms, TrainConfig, train
from ddpm_mnist import toy  # chapter 1's first page: points in the plane
from ddpm_mnist.ddpm import DDPM  # chapter 1's second page: the paper, longhand

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


def window(axis, title, reach):
    """A square piece of the plane, from -reach to reach."""
    axis.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(True)


def show_points(clouds, titles, colours=None, reach=1.8):
    """A row of scatter plots. clouds: each (N, 2)"""
    _, axes = plt.subplots(1, len(clouds), figsize=(2.0 * len(clouds), 2.3), layout="constrained")
    for axis, cloud, title in zip(axes, clouds, titles, strict=True):
        axis.scatter(*cloud.T, s=1.5, c=colours, cmap=None if colours is None else "turbo", linewidths=0)
        window(axis, title, reach)
    plt.show()


# %% [markdown]
# ## 1 · A whole distribution, denoised
#
# Images have many numbers, and nobody can see in 784 dimensions. So we begin with two: a point $(x, y)$ in the plane. A data set is
# then a cloud of points, and the cloud's shape is the **data distribution** (数据分布). Here are four.

# %%
shapes = ["dinosaur", "swiss_roll", "two_moons", "letter"]
show_points([toy.draw_points(shape, 2000) for shape in shapes], shapes, reach=1.2)

# %% [markdown]
# The task: make *new* points of the same distribution. Not copies of points we have, but points that could have been there, too.
# For images it is the same task: new digits that could have been in the data set.
#
# ### Making noise
#
# Some letters. Let $x_0$ be a clean point. Let $\varepsilon$ (epsilon) be noise: as many numbers as $x_0$ has, each drawn from the
# normal distribution with mean 0 and variance 1. We mix the two:
#
# $$x_t = \alpha_t\, x_0 + \sigma_t\, \varepsilon$$
#
# $t$ is the noise level (噪声水平). It counts from 0 (clean) to $T = 1000$ (nothing but noise). $\alpha_t$ says how much of the
# point is left, and falls from 1 to 0. $\sigma_t$ says how much noise there is, and rises from 0 to 1. Two such curves are called a
# **noise schedule** (噪声调度). Here always $\alpha_t^2 + \sigma_t^2 = 1$.
#
# We give each point a colour that it keeps, so that one can see who ends up where.

# %%
schedule = make_schedule("cosine")
points = toy.draw_points("dinosaur", 3000)  # (3000, 2)
eps = torch.randn(points.shape, generator=torch.Generator().manual_seed(0))

clouds, titles = [], []
for t in [0, 100, 200, 400, 700, 1000]:
    level = schedule.at(torch.tensor(t))  # this level's alpha and sigma
    clouds.append(add_noise(points, eps, level))  # alpha * points + sigma * eps
    titles.append(f"t = {t}\n$\\alpha$ = {level.alpha:.2f}  $\\sigma$ = {level.sigma:.2f}")
show_points(clouds, titles, colours=points[:, 0])

# %% [markdown]
# First the fine details go (the legs), then the large form, and at $t = 1000$ the colours are mixed completely: where a point is now
# says nothing about where it came from. Every distribution ends as the same round cloud. That is why we can start there when we go
# back: we know how to draw points from a round cloud.
#
# ### What can be known about the noise
#
# The network sees a noisy point $x_t$ and the level $t$, and guesses the noise $\varepsilon$ in it. (A guess of the noise is also a
# guess of the clean point: solve the formula above for $x_0$.) It cannot be always right, because many clean points could have become
# this noisy one. The guess with the smallest squared error is the *average* of all of them, each weighted by how likely it is.
#
# For a cloud of known points this best guess is a formula: the weight of a point $x_0$ is $e^{-|x_t - \alpha_t x_0|^2 / 2\sigma_t^2}$.
# So in the plane, and only here, we can say what a perfect network would answer.

# %%
everybody = toy.draw_points("dinosaur", 5000, seed=1)


def best_guess(x, level):
    """The average of all clean points, weighted by how likely each became x. (N, 2) -> (N, 2)"""
    distance = torch.cdist(x / level.alpha, everybody) * level.alpha / level.sigma  # (N, 5000), in units of the noise
    return (-(distance**2) / 2).softmax(dim=1) @ everybody


# %% [markdown]
# And here is the network that has to learn it from examples: three hidden layers of 128. It is shown noisy points together with the
# noise in them, 512 at a time, 3,000 times. (We come to the steps of training in section 3; [toy.py](ddpm_mnist/toy.py) has all of it on one page.)

# %%
toy_net = toy.make_net()
began = time.perf_counter()
losses = toy.train(toy_net, toy.draw_points("dinosaur", 20_000), schedule, steps=3000)
print(f"{time.perf_counter() - began:.0f} s")

x0 = toy.draw_points("dinosaur", 4000, seed=2)  # points that it has not seen
level = schedule.at(torch.randint(1, 1001, (4000,), generator=torch.Generator().manual_seed(1))).like(x0)
noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
x = add_noise(x0, noise, level)
with torch.no_grad():
    of_network = (toy_net(x, level.time) - noise).square().mean()
of_perfection = ((x - level.alpha * best_guess(x, level)) / level.sigma - noise).square().mean()

plt.figure(figsize=(6, 2.2), layout="constrained")
plt.plot(viz.smooth(np.array(losses)), label="training")
plt.axhline(of_perfection, color="black", linestyle=":", label="the best possible")
plt.gca().set(xlabel="step", ylabel="loss", ylim=(0.15, 0.6))
plt.legend()
plt.show()
print(f"mean squared error of the guessed noise: network {of_network:.3f}, best possible {of_perfection:.3f}")

# %% [markdown]
# Remember this picture when you train larger models. The loss (损失) of a diffusion model does *not* go to zero; it cannot. Most of
# it is honest uncertainty, and all the learning hides in the small distance from the dotted line. So the loss curve
# looks flat while the samples still get better.
#
# ### The field of arrows
#
# What has it learned? At every place of the plane the network has an opinion where the clean point is. We draw it as an arrow (the
# long ones are shortened), at three noise levels: a **vector field** (向量场). Grey: the noisy cloud. Black: the clean points.

# %%
denoise = Denoiser(toy_net, toy.PREDICTION)  # turns the network's output into a Prediction (x0, eps)

_, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
for axis, t, reach in zip(axes, [800, 350, 80], [1.5, 1.5, 1.1], strict=True):
    line = torch.linspace(-reach, reach, 17)
    places = torch.cartesian_prod(line, line)  # (289, 2)
    level = schedule.at(torch.tensor(t))
    cloud = add_noise(points, eps, level)
    with torch.no_grad():
        arrows = denoise(places, level).x0 - places
        arrows = 0.2 * reach * arrows / arrows.norm(dim=1, keepdim=True).sqrt()
        off = (denoise(cloud, level).x0 - best_guess(cloud, level)).norm(dim=1).mean()
    axis.scatter(*cloud.T, s=1.5, color="0.8", linewidths=0)
    axis.scatter(*points.T, s=1.5, color="black", linewidths=0)
    axis.quiver(*places.T, *arrows.T, angles="xy", scale_units="xy", scale=1, width=0.004, color="C0")
    window(axis, f"t = {t}   ($\\sigma$ = {level.sigma:.2f})", 1.05 * reach)
    print(f"t = {t}: on average the network's guess is {off:.3f} away from the best possible guess")
plt.show()

# %% [markdown]
# Read the picture from left to right.
#
# * Much noise: all arrows point to the middle of the animal. Nothing else can be said, and the average of everything is the best guess.
# * Less noise: the arrows know the large form: a body that lies, a neck that stands.
# * Little noise: each arrow points to the nearest part of the outline.
#
# So the network is a guide whose advice gets finer, the nearer one comes. That is why we walk in many steps: one jump along the first
# arrow would take all points to the middle.
#
# ### Walking back
#
# Sampling (采样) is a walk along these arrows. Stand at a noisy point. Ask the network to take it apart into a clean point and
# noise, $x_t \to (\hat x_0, \hat\varepsilon)$. (A hat marks a guess.) Then mix the two again, *with a little less noise*. Repeat.
#
# There are two ways to mix. **DDIM** takes the same noise back: its path is smooth, and the end depends on the start alone. **DDPM**
# replaces a part of the noise by fresh noise at each step: its path trembles. Both end in the same distribution.

# %%
n = 3000
walks = {name: Sampler.parse(name).frames(denoise, schedule, (n, 2), 0) for name in ("ddpm:250", "ddim:250")}

ends = walks["ddpm:250"][-1]
shown = [0, 100, 150, 190, 220, 239, 249]
show_points([walks["ddpm:250"][i] for i in shown], [f"step {i + 1}" for i in shown], colours=ends[:, 0])

_, axes = plt.subplots(1, 2, figsize=(7, 3.7), layout="constrained")
for axis, (name, frames), some in zip(axes, walks.items(), (3, 40), strict=True):
    paths = torch.stack(frames)[:, :some]  # (250, some, 2)
    axis.plot(paths[..., 0], paths[..., 1], linewidth=0.8)
    axis.scatter(*paths[-1].T, s=12, color="black", zorder=3)
    window(axis, f"{name[:4].upper()}: the paths of {some} points", 2.2)
plt.show()

# %% [markdown]
# In the first row each point wears the colour of the place where it *ends*. Go from right to left, and you see how early that was
# decided: the large form (left or right, neck or tail) long before the details. It will be the same with digits.
#
# How good are the new points? Two numbers. Are they near real ones (no wrong points)? And are real ones near them (nothing
# left out)? As measure take what *other real* points reach.


# %%
def nearest(a, b):
    """Mean distance from a point of a to the nearest point of b."""
    return torch.cdist(a, b).min(dim=1).values.mean().item()


real = toy.draw_points("dinosaur", n, seed=3)
clouds = {"pure noise": torch.randn(n, 2), "other real points": toy.draw_points("dinosaur", n, seed=4)}
clouds |= {name: frames[-1] for name, frames in walks.items()}
print("                    new -> real   real -> new")
for name, cloud in clouds.items():
    print(f"{name:18} {nearest(cloud, real):12.4f} {nearest(real, cloud):13.4f}")

# %% [markdown]
# The points have come home. Not perfectly: where lines lie close together, as at the legs, this small network smears them, so that
# new points are farther from real ones than real ones are from each other. But nothing is left out: the second column is nearly that
# of real points. Note that one column alone would not do. Pure noise covers the animal, too; and a sampler that always gives the same
# perfect point would win the first column.
#
# **Try it:** take another shape in `toy.train(...)`, or fewer steps of training, or `ddim:5`. On the command line it is
# `python 01_ddpm_mnist/toy_2d.py --shape swiss_roll`.
#
# We have seen a whole diffusion model. What follows is the same with more numbers.

# %% [markdown]
# ## 2 · The forward process
#
# An image of $16 \times 16$ grey pixels is a list of 256 numbers: a point in a space of 256 dimensions. All handwritten digits are a
# cloud in that space, and a strange one: nearly every point of the space looks like noise, and digits are very rare in it.
#
# The digits below come with scikit-learn: 1,797 real ones, $8 \times 8$ pixels, here enlarged to $16 \times 16$. Black is $-1$,
# white is $+1$.

# %%
digits = load("digits", size=16)
held_out = load("digits", size=16, split="test").batch(torch.arange(100))["image"]  # 100 digits that we never train on
x0 = digits.batch(torch.arange(20))["image"]
print(
    f"{len(digits):,} digits to train with; a batch of images: {tuple(x0.shape)}, from {x0.min():.0f} to {x0.max():.0f}"
)
show_images(x0, 10)

# %% [markdown]
# ### Step by step
#
# The paper ([Ho, Jain & Abbeel 2020](https://arxiv.org/abs/2006.11239)) makes the noise in small steps. Step $t$ shrinks the image a
# little and adds a little fresh noise $\varepsilon_t$:
#
# $$x_t = \sqrt{1 - \beta_t}\; x_{t-1} + \sqrt{\beta_t}\; \varepsilon_t$$
#
# $\beta_t$ (beta) is a small number that the schedule fixes: how much of the variance (方差) is replaced in this step. Why shrink at
# all? Variances of independent things add up. If the pixels have variance 1 before the step, they have
# $(1 - \beta_t) \cdot 1 + \beta_t = 1$ after it. Without shrinking, the picture would grow without end.
#
# ### All steps in one shot
#
# Two steps shrink the image by $\sqrt{1-\beta_1}\sqrt{1-\beta_2}$. A thousand steps shrink it by the product of all factors. The
# paper writes $\bar\alpha_t$ ("alpha bar") for the product of the $(1 - \beta)$:
#
# $$\bar\alpha_t = (1-\beta_1)(1-\beta_2)\cdots(1-\beta_t)$$
#
# So the image that is left is $\sqrt{\bar\alpha_t}\,x_0$. And the noise? A sum of normal noises is normal noise, and the variance
# stays 1 in all, so $1 - \bar\alpha_t$ is left for it. This is the **closed form** (闭式解): any level in one shot, with no loop.
#
# $$x_t = \sqrt{\bar\alpha_t}\; x_0 + \sqrt{1 - \bar\alpha_t}\; \varepsilon$$
#
# It is the formula of section 1, with $\alpha_t = \sqrt{\bar\alpha_t}$ and $\sigma_t = \sqrt{1 - \bar\alpha_t}$. (The paper uses
# the letter $\alpha_t$ for $1 - \beta_t$, and so does [ddpm.py](ddpm_mnist/ddpm.py). All other code of this course uses $\alpha_t$ as we do here.)
#
# Do not believe it: measure it. We send 1,000 copies of one digit through 1,000 small steps, each copy with its own noise. How much
# of the digit is left (the mean over the copies, compared with the digit), and how much noise is there (their standard deviation)?

# %%
ddpm = DDPM(schedule.betas)  # the paper's constants: beta, alpha, alpha_bar
digit = x0[:1]  # (1, 1, 16, 16)
g = torch.Generator().manual_seed(0)

x = digit.expand(1000, -1, -1, -1)
print("   t | image left: steps, one shot | noise: steps, one shot")
for t in range(1, 1001):
    x = ddpm.forward_step(x, t, torch.randn(x.shape, generator=g))
    if t in (10, 100, 300, 500, 700, 900):
        left = (
            x.mean(0) * digit[0]
        ).sum() / digit.square().sum()  # how much of the digit is in the mean of the copies
        noise = x.std(0).mean()
        print(
            f"{t:4} | {left:17.3f} {ddpm.alpha_bar[t].sqrt():9.3f} | {noise:12.3f} {(1 - ddpm.alpha_bar[t]).sqrt():9.3f}"
        )

# %% [markdown]
# They agree. So training never has to walk through the steps: it jumps to any level at once.
#
# ### Which schedule?
#
# The paper of 2020 lets $\beta_t$ grow on a straight line (*linear*). A year later
# [Nichol & Dhariwal](https://arxiv.org/abs/2102.09672) let $\bar\alpha_t$ follow a cosine (*cosine*). The same digit and the same
# noise with both:

# %%
moments = [0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
eps = torch.randn(digit.shape, generator=torch.Generator().manual_seed(5))
schedules = {name: make_schedule(name) for name in ("linear", "cosine")}
rows = [add_noise(digit, eps, s.at(torch.tensor(t))) for s in schedules.values() for t in moments]
show_images(torch.cat(rows), len(moments), across=moments, down=list(schedules))

_, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
for name, s in schedules.items():
    alpha_bar = s.alpha_bar[1:]
    snr = alpha_bar / (1 - alpha_bar)
    left.plot(alpha_bar, label=name)
    right.plot(snr, label=name)
    print(
        f"{name}: half image, half noise at t = {int((snr > 1).sum())}; "
        f"{(alpha_bar < 0.02).double().mean():.0%} of the levels are more than 98 % noise"
    )
left.set(title="$\\bar\\alpha_t$: share of the image", xlabel="t")
right.set(title="signal-to-noise ratio", xlabel="t", yscale="log", ylim=(1e-5, 1e5))
right.axhline(1, color="0.7", linewidth=0.8)
left.legend()
plt.show()

# %% [markdown]
# The **signal-to-noise ratio** (信噪比) is $\bar\alpha_t / (1 - \bar\alpha_t)$: how strong the image is, compared with the noise.
# On a logarithmic scale both schedules go down steadily, but linear is early: in its last part nothing changes for the eye, and the
# steps there teach little. Cosine spreads the work more evenly, so we use it. (Chapter 3 measures what a schedule is worth.)

# %% [markdown]
# ## 3 · Six steps of training
#
# Training repeats six small steps. Here they are, one in each cell. First a network: a U-Net, fresh and knowing nothing. Section 4
# looks inside; for now it is a function that takes images and levels, and returns images.

# %%
torch.manual_seed(0)
config = UNetConfig(size=16, channels=(16, 32, 64), attention=(False, False, True), scale_shift=True, groups=8)
net = zero_init(UNet(config))
g = torch.Generator().manual_seed(0)

# %% [markdown]
# **Step 1: take images.** $x_0$, here eight of them. In real training each batch brings others.

# %%
x0 = digits.batch(torch.arange(8))["image"]
print("x0 ", tuple(x0.shape), x0.dtype)

# %% [markdown]
# **Step 2: draw a noise level for each.** $t$ between 1 and 1000, all equally likely. Every image gets its own, so that one batch
# practises many levels.

# %%
t = torch.randint(1, 1001, (8,), generator=g)
print("t  ", tuple(t.shape), t.tolist())

# %% [markdown]
# **Step 3: draw noise.** $\varepsilon$, as many numbers as the images have.

# %%
eps = torch.randn(x0.shape, generator=g)
print("eps", tuple(eps.shape), f"mean {eps.mean():.2f}, variance {eps.var():.2f}")

# %% [markdown]
# **Step 4: noise the images in one shot**, by the closed form. ($\bar\alpha_t$ gets the shape (8, 1, 1, 1), so that each
# image is multiplied by its own number.)

# %%
alpha_bar = ddpm.alpha_bar[t].view(-1, 1, 1, 1)
x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
print("x_t", tuple(x_t.shape))
show_images(torch.cat([x0, x_t]), 8, across=[f"t = {i}" for i in t.tolist()], down=["$x_0$", "$x_t$"], cell=0.9)

# %% [markdown]
# **Step 5: let the network guess the noise.** It sees $x_t$ and the level. (Networks count from 0, so it is told $t - 1$.)

# %%
guess = net(x_t, t - 1)
print("guess", tuple(guess.shape))

# %% [markdown]
# **Step 6: how wrong was it?** The mean of the squared differences is the loss. Its gradient says how to change the weights, the
# optimizer changes them a little, and we begin again with step 1.

# %%
error = (guess - eps).square().mean()
error.backward()
gradient = sum(p.grad.square().sum() for p in net.parameters() if p.grad is not None).sqrt()
print(f"loss {error.item():.3f}, norm of the gradient {gradient:.3f}")
net.zero_grad()

# %% [markdown]
# A loss near 1 is what saying nothing costs: our fresh network answers 0 everywhere, and the noise has variance 1.
#
# These six steps are Algorithm 1 of the paper. [ddpm.py](ddpm_mnist/ddpm.py) writes them as one function of six lines. With the same random
# numbers it gives the same loss:

# %%
print(
    f"Algorithm 1: {ddpm.loss(net, x0, torch.Generator().manual_seed(0)).item():.6f}   our six cells: {error.item():.6f}"
)

# %% [markdown]
# ### What should the network say?
#
# "The noise" is one possible answer. "The clean image" would be as good: $x_t = \alpha_t x_0 + \sigma_t \varepsilon$, so who
# knows one of them knows the other. A third answer has proved calmer in training, and we use it from here on. It is called $v$
# ([Salimans & Ho 2022](https://arxiv.org/abs/2202.00512)):
#
# $$v = \alpha_t\,\varepsilon - \sigma_t\,x_0$$
#
# Because $\alpha_t^2 + \sigma_t^2 = 1$, the pair $(x_t, v)$ is the pair $(x_0, \varepsilon)$ *rotated* by an angle. Rotate
# back, and you have both:
#
# $$\hat x_0 = \alpha_t\,x_t - \sigma_t\,\hat v \qquad \hat\varepsilon = \sigma_t\,x_t + \alpha_t\,\hat v$$
#
# The network that comes with this chapter (`pretrained/`) says $v$. It was trained on MNIST: 60,000 handwritten digits of
# $28 \times 28$ pixels. We open it, and let an adapter (适配器) of three lines translate its answers to noise, as the paper's algorithms want it.

# %%
mnist_net, mnist_schedule, prediction, clip_x0 = load_model(CHAPTER / "pretrained")
print(
    f"it predicts {prediction}, schedule {mnist_schedule.name}, images of {mnist_net.cfg.size} x {mnist_net.cfg.size} pixels"
)


def eps_model(x, t):
    """The v-network, read as a noise-network. x: (B, 1, 28, 28), t: (B,) counting from 0 -> (B, 1, 28, 28)"""
    level = mnist_schedule.at(t + 1).like(x)  # alpha and sigma, each (B, 1, 1, 1)
    v = mnist_net(x, t)
    return level.sigma * x + level.alpha * v


with torch.no_grad():  # the course has one function for all such translations: the two must agree
    x, t = torch.randn(4, 1, 28, 28), torch.tensor([0, 300, 600, 999])
    level = mnist_schedule.at(t + 1).like(x)
    _, eps = to_x0_eps("v", mnist_net(x, t), x, level)
    print(
        f"largest difference between our adapter and common.diffusion.denoiser.unmix: {(eps - eps_model(x, t)).abs().max():.1e}"
    )

# %% [markdown]
# ### Which levels are hard?
#
# We need clean digits to try it on. This notebook carries no MNIST, so digits that the network draws itself must stand in. (That
# flatters it a little. We look at how the error depends on the level, not at how large it is.)

# %%
denoise = Denoiser(mnist_net, prediction, clip_x0)
drawn = Sampler.parse("ddim:25").frames(denoise, mnist_schedule, (24, 1, 28, 28), 7)[-1]
eps = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0))

levels, wrong = [1, 5, 15, 30, 60, 100, 150, 200, 250, 300, 400, 500, 600, 700, 800, 900, 970, 1000], []
for t in levels:
    level = mnist_schedule.at(torch.tensor(t))
    x = add_noise(drawn, eps, level)
    with torch.no_grad():
        v = mnist_net(x, torch.full((24,), t - 1))
    x0_guess, eps_guess = to_x0_eps("v", v, x, level)
    answers = [(eps_guess, eps), (x0_guess, drawn), (v, target("v", drawn, eps, level))]
    wrong.append([(guess - truth).square().mean() for guess, truth in answers])

plt.figure(figsize=(6.5, 2.8), layout="constrained")
names = ["of the noise $\\varepsilon$", "of the image $x_0$", "of $v$"]
plt.plot(levels, wrong, marker=".", label=names)
plt.gca().set(xlabel="t", ylabel="mean squared error", yscale="log", ylim=(1e-4, 2))
plt.legend(ncols=3, loc="lower center")
plt.show()

# %% [markdown]
# One answer of the network, read in three ways.
#
# * To name the **noise** is hard when there is almost none, and very easy when there is nothing else. A network that is trained on it
#   gets almost no signal at high levels, where the large form of the digit is decided.
# * To name the **image** is the other way round.
# * The error of **$v$** is the sum of both (a rotation keeps lengths), so no level is forgotten. That is why $v$ is calmer.
#
# The same in pictures: what the network sees, and what it takes for the clean digit.

# %%
seen, guessed = [], []
moments = [50, 200, 350, 500, 600, 700, 800, 900, 1000]
for t in moments:
    level = mnist_schedule.at(torch.tensor(t))
    seen.append(add_noise(drawn[3:4], eps[3:4], level))
    with torch.no_grad():
        guessed.append(denoise(seen[-1], level).x0)
show_images(
    torch.cat(seen + guessed),
    len(moments),
    across=[f"t = {t}" for t in moments],
    down=["$x_t$", "guess of $x_0$"],
    cell=0.9,
)

# %% [markdown]
# With little noise the guess is sharp. With much noise it is blurred: the average of all digits it could be, as the
# arrows of section 1 pointed to the middle of the animal. At $t = 1000$ it is the average of all digits, and knows nothing.

# %% [markdown]
# ## 4 · The network
#
# The network must answer with a picture of the same size as its input, see details (where does the stroke end?) and the whole (is this
# a 4?) at once, and know the noise level. A **U-Net** (U 形网络) does it so:
#
# * **down**: halve the picture again and again, with more channels (通道) each time. On the small picture one pixel sees much;
# * **up**: double it again, until it has its old size;
# * **skip connections** (跳跃连接): on the way up, each stage is also given what the way down had found there, so no detail is lost;
# * **residual blocks** (残差块) do the work: two convolutions, whose result is *added* to the input. The noise level enters each of them;
# * **attention** (注意力), at the lowest stage only, lets every pixel look at every other one.
#
# We let the pretrained network tell its own shapes. A *hook* is a function that PyTorch calls whenever a module has run.

# %%
COLOURS = {"Conv2d": "0.5", "ResBlock": "C0", "SelfAttention2d": "C1", "Downsample": "C2", "Upsample": "C3"}
trace = []  # (name, kind, shape, number of weights) in the order of running


def remember(name):
    def hook(module, inputs, output):
        trace.append(
            (name, type(module).__name__, tuple(output.shape[1:]), sum(p.numel() for p in module.parameters()))
        )

    return hook


parts = [
    (name, m)
    for name, m in mnist_net.named_modules()
    if name in ("conv_in", "conv_out") or type(m).__name__ in list(COLOURS)[1:]
]
hooks = [m.register_forward_hook(remember(name)) for name, m in parts]
with torch.no_grad():
    mnist_net(torch.zeros(1, 1, 28, 28), torch.tensor([0]))
for hook in hooks:
    hook.remove()

print(f"{'':46}{'channels, height, width':>24}{'weights':>12}")
for name, kind, shape, weights in trace:
    print(f"{name:30}{kind:16}{' x '.join(map(str, shape)):>24}{weights:12,}")
print(f"{'the whole network, with the time embedding':70}{sum(p.numel() for p in mnist_net.parameters()):12,}")

# %%
_, axis = plt.subplots(figsize=(11, 3.6), layout="constrained")
for i, (_, kind, (channels, height, _), _) in enumerate(trace):
    axis.bar(i, height, 0.8, -height / 2, color=COLOURS[kind])
    axis.text(i, 0, height, ha="center", va="center", color="white")
    axis.text(i, -height / 2 - 2.5, channels, ha="center", fontsize=9)
down = [
    i
    for i, (name, *_) in enumerate(trace)
    if name.startswith(("conv_in", "down")) and trace[i + 1][1] != "SelfAttention2d"
]
up = [i for i, (name, kind, *_) in enumerate(trace) if name.startswith("up") and kind == "ResBlock"]
for i, j in zip(down[::-1], up, strict=True):  # the last thing kept is the first taken
    arrow = {"arrowstyle": "->", "color": "0.6", "connectionstyle": "arc3,rad=-0.13"}
    axis.annotate("", (j, trace[j][2][1] / 2), (i, trace[i][2][1] / 2), arrowprops=arrow)
axis.set(ylim=(-17, 25), xticks=[], yticks=[])
axis.spines[:].set_visible(False)
axis.legend(
    [plt.Rectangle((0, 0), 1, 1, color=c) for c in COLOURS.values()],
    COLOURS,
    ncols=5,
    loc="upper center",
    bbox_to_anchor=(0.5, 0),
)
plt.show()

# %% [markdown]
# Read it from left to right. The height of a bar, and the number in it, is the height of the picture at that place (28, 14 or 7 pixels);
# the number below is its channels; the grey arrows are the skip connections. This is the "U": down, through the bottom, and up.
#
# Where are the weights? Nearly all at the small sizes, where channels are many. (A convolution from $C$ to $C$ channels has
# $9\,C^2$ weights, whatever the size of the picture; but its *work* also grows with the number of pixels.) [unet.py](../common/models/unet.py) is
# written to be read; its names are those of the `diffusers` library, so weights can be carried over both ways.

# %% [markdown]
# ## 5 · Train one
#
# Now all together: the digits of section 2, the fresh network of section 3, its six steps, 700 times over, with 32 images each time. This
# takes about half a minute on two free cores. The loop itself is [loop.py](../common/training/loop.py): it computes gradients, changes the weights
# (optimizer AdamW, learning rate 学习率 first up, then slowly down to zero), and keeps an average of the weights, to which we come in
# section 7. It is a *generator* (生成器): after each step it hands us the state of things, and we do with it what we like.


# %%
def six_steps(net, batch, draw):
    """The loss of one batch. `draw` gives the random numbers of this step."""
    x0 = batch["image"]  # 1. images (B, 1, 16, 16)
    u = draw.stratified(len(x0))  # 2. B numbers between 0 and 1, spread evenly; they become the levels t
    eps = draw.randn(x0.shape)  # 3. noise
    return LossTerms(
        diffusion_loss(net, schedule, "v", x0, u, eps), u
    )  # 4. noise the images, 5. predict v, 6. compare


@torch.no_grad()
def loss_on_new_digits(net):
    """Loss on digits that were not trained on, always with the same noise: so that numbers can be compared."""
    u = torch.linspace(0, 1, len(held_out) + 1)[:-1]
    eps = torch.randn(held_out.shape, generator=torch.Generator().manual_seed(0))
    return diffusion_loss(net.eval(), schedule, "v", held_out, u, eps).mean().item()


def samples(net, n, sampler="ddim:25", seed=0):
    """n new digits. (n, 1, 16, 16)"""
    return Sampler.parse(sampler).frames(Denoiser(net.eval(), "v"), schedule, (n, 1, 16, 16), seed)[-1]


# %%
folder = tempfile.TemporaryDirectory()  # goes away with the notebook
run = Path(folder.name)
settings = TrainConfig(out=run, steps=700, batch_size=32, lr=3e-3, save_every=700)

pictures, history = {}, []
for state in logged(train(net, digits, six_steps, settings, Accelerator(cpu=True)), run, settings.steps, quiet=True):
    if state.step in (35, 105, 210, 350, 700):
        pictures[state.step] = samples(state.ema, 10)
    if state.step % 35 == 0:
        history.append((state.step, loss_on_new_digits(net), loss_on_new_digits(state.ema)))
    if state.step == 140:
        early = {"raw": copy.deepcopy(net), "averaged": copy.deepcopy(state.ema)}  # for section 7

print(f"{state.step} steps of {state.images} images in {state.seconds:.0f} s (samples and checks on the way included)")
Image(viz.plot_run(run, run / "loss.png").read_bytes(), width=900)

# %% [markdown]
# On the left the loss of each step (grey) and its running mean (blue). It jumps about, because every step sees other images, levels
# and noise; and, as in the plane, it flattens early. In the middle the same for each tenth of the noise range: nearly clean images
# and nearly pure noise are the hardest for $v$, as in section 3. On the right the learning rate.
#
# And the samples, at several moments of the training. Each column starts from the same noise.

# %%
show_images(torch.cat(list(pictures.values())), 10, down=[f"step {step}" for step in pictures])

# %% [markdown]
# First the network learns how bright a digit is and that it stands in the middle; then strokes; then which strokes belong together. The
# loss curve was nearly flat for the later rows: trust your eyes more than this curve.
#
# With more time they get better. `python 01_ddpm_mnist/train.py --data digits` takes two minutes; with MNIST, the pretrained
# network took longer. We go on with that one.

# %% [markdown]
# ## 6 · Sampling: the reverse process
#
# The paper's Algorithm 2 goes back one step at a time, from $t = T$ to $t = 1$. Let $\hat\varepsilon$ be the noise that the network sees
# in $x_t$. Then
#
# $$x_{t-1} = \frac{1}{\sqrt{1 - \beta_t}} \left( x_t - \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}}\; \hat\varepsilon \right) + \sqrt{\tilde\beta_t}\; z$$
#
# In words: take away the small part of the noise that step $t$ had added; undo the shrinking; and add a little fresh noise $z$.
# Why add noise, when we want to get rid of it? Because the bracket is an *average* over all pictures that could have been there, and averages
# are blurred. The fresh noise makes the choice: this one, not the mean of all. How much is needed also follows from the schedule:
#
# $$\tilde\beta_t = \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t}\,\beta_t$$
#
# At the last step nothing is added ($\bar\alpha_0 = 1$, so $\tilde\beta_1 = 0$). This is [ddpm.py](ddpm_mnist/ddpm.py), as in the paper:
#
# ```python
# x = torch.randn(shape)
# for t in range(T, 0, -1):
#     eps = model(x, t - 1)
#     z = torch.randn(shape) if t > 1 else 0
#     x = (x - beta[t] / (1 - alpha_bar[t]).sqrt() * eps) / alpha[t].sqrt() + posterior_variance(t).sqrt() * z
# ```
#
# A thousand steps, four digits, with the adapter of section 3 between the algorithm and our network:

# %%
began = time.perf_counter()
algorithm_2 = DDPM(mnist_schedule.betas).sample(eps_model, (4, 1, 28, 28), torch.Generator().manual_seed(1))
frames = list(algorithm_2)  # x_999, x_998, ..., x_0
seconds_ddpm = time.perf_counter() - began
print(f"{len(frames)} steps in {seconds_ddpm:.1f} s")

shown = [0, 200, 400, 550, 650, 750, 820, 880, 930, 970, 999]  # large strides first, small ones at the end
show_images(
    torch.stack([frames[i] for i in shown], dim=1).flatten(0, 1), len(shown), across=[f"t = {999 - i}" for i in shown]
)

# %% [markdown]
# The first half of the way shows hardly anything, and the form of the digit is decided there all the same. The last steps only clean
# the background. So the strip takes large strides first and small ones at the end. (`viz.strip`, which makes the strips of `train.py`,
# chooses the moments by how much the picture changes.)
#
# ### Fifty steps instead of a thousand
#
# A thousand steps are slow. **DDIM** ([Song et al. 2021](https://arxiv.org/abs/2010.02502)) is the walk of section 1 without fresh noise. Its
# path is smooth, so one may take large strides: 50 levels instead of 1,000, with the *same* network.

# %%
sampler = Sampler.parse("ddim:50")
began = time.perf_counter()
frames = sampler.frames(denoise, mnist_schedule, (4, 1, 28, 28), 0)
seconds_ddim = time.perf_counter() - began
print(
    f"four digits: DDPM with 1,000 steps {seconds_ddpm:.1f} s, DDIM with 50 steps {seconds_ddim:.1f} s: "
    f"{seconds_ddpm / seconds_ddim:.0f} times as fast"
)

steps = list(
    sampler.run(denoise, mnist_schedule, (24, 1, 28, 28), 0)
)  # every moment: what there is (x), the guess (x0)
show_images(steps[-1].x, 12)

# %%
path = viz.save_gif([step.x[:12] for step in steps], run / "process.gif", n=24, height=90)
Image(path.read_bytes(), format="png", width=400)  # a GIF, called PNG, because every viewer shows (and moves) it so

# %% [markdown]
# ### What it thinks on the way
#
# At each step the network has an opinion $\hat x_0$ of the final picture. Above, what there is; below, what it takes that for.

# %%
times = [round(level.time) + 1 for level in mnist_schedule.noise_levels(50)]  # 1000, 980, ..., 20, 0
shown = [1, 4, 7, 10, 14, 18, 24, 32, 40, 47]
for digit in (0, 1):
    rows = [steps[i - 1].x[digit] for i in shown] + [steps[i].x0[digit] for i in shown]
    show_images(
        torch.stack(rows),
        len(shown),
        across=[f"t = {times[i]}" for i in shown],
        down=["$x_t$", "guess of $x_0$"],
        cell=0.8,
    )

# %% [markdown]
# The guess begins as the average of all digits and makes up its mind while $x_t$ still looks like noise to us. The rest of the way
# only sharpens it. It is the dinosaur again: first where the animal is, then the legs.

# %% [markdown]
# ## 7 · Averaging the weights
#
# While the learning rate is high, the weights do not stand still: each batch pushes them a little to and fro. Averaging over the last steps
# takes the trembling out. This is called **EMA**, an exponential moving average (指数移动平均) of the weights. We never train the
# averaged network; we only sample from it. Does it help? We kept both, after a fifth of the training of section 5, and measured both
# all along, on 100 digits that they never saw.

# %%
at, raw, averaged = np.array(history).T
plt.figure(figsize=(6, 2.4), layout="constrained")
plt.plot(at, raw, marker=".", label="raw weights")
plt.plot(at, averaged, marker=".", label="averaged weights")
plt.gca().set(xlabel="step", ylabel="loss on new digits", ylim=(0.95 * averaged.min(), 1.05 * raw[1]))
plt.legend()
plt.show()
for step in (140, 350, 700):
    i = list(at).index(step)
    as_good = at[raw <= averaged[i]]
    when = (
        f"raw weights as good as that come at step {as_good[0]:.0f}"
        if len(as_good)
        else "no raw weights are as good as that"
    )
    print(f"step {step}: raw {raw[i]:.4f}, averaged {averaged[i]:.4f}; {when}")

rows = {
    "raw, step 140": early["raw"],
    "averaged, step 140": early["averaged"],
    "raw, the end": net,
    "averaged, the end": state.ema,
}
show_images(torch.cat([samples(n, 10, seed=3) for n in rows.values()]), 10, down=list(rows))

# %% [markdown]
# As long as the learning rate is high, the averaged weights are ahead. At the end, when the rate has come down to zero, the weights
# hardly move any more; there is nothing left to average, and both are as good. To the eye the samples are much alike all the
# time. (Section 8 has a number for the first two rows.)
#
# So the honest answer: EMA costs nearly nothing and makes a network ready at any moment, without waiting until the learning rate has fallen.
# After a full cosine schedule it matters little.

# %% [markdown]
# ## 8 · Is it any good?
#
# **Look first.** One of these rows shows real digits, from the part of the data set that we never trained on. The other row was
# drawn by the network of section 5. Which is which?

# %%
ours = samples(state.ema, 200, seed=1)
show_images(torch.cat([ours[:14], held_out[40:54]]), 14, down=["A", "B"], cell=0.65)

# %% [markdown]
# (The answer stands in the cell above.)
#
# **Are they copies?** A network that had learned its images by heart would draw perfect digits, and would be useless. So we look for the
# nearest training image of each sample. How near is too near? As measure take *real* digits that were not trained on: they are no copies
# for sure, and they have a nearest training image as well.


# %%
train_images = digits.batch(torch.arange(len(digits)))["image"]


def nearest_training_image(images):
    """(distances, indices): the distance is the root mean square difference of the pixels."""
    distances, indices = torch.cdist(images.flatten(1), train_images.flatten(1)).min(dim=1)
    return distances / images[0].numel() ** 0.5, indices


distances, indices = nearest_training_image(ours)
show_images(torch.cat([ours[:14], train_images[indices[:14]]]), 14, down=["ours", "nearest"], cell=0.65)
for name, d in {"our samples": distances, "new real digits": nearest_training_image(held_out)[0]}.items():
    print(f"{name:16} distance to the nearest training image: median {d.median():.3f}, smallest {d.min():.3f}")

# %% [markdown]
# Our samples lie farther from the training images than new real digits do. So they are no copies; the pairs show the same digit, written
# differently. (Being far is no merit, either: a clumsy stroke is far from every real one.)
#
# **A number.** To compare two networks, one wants a single number. The usual one is the **Fréchet distance** (弗雷歇距离; with a certain
# large network it is called FID). A trained classifier describes each image by some features (特征), 64 here. Real images make one cloud
# in the space of features, samples another, and the Fréchet distance says how far apart the two clouds are, in place and in
# shape. It is never zero, even for real images, because a few hundred points give a cloud only roughly. So a distance says
# nothing without its **floor**: what as many *real* images get.

# %%
reference = load("digits", size=16, split="test")
print("network                      Fréchet distance      floor (real digits)")
candidates = {f"{name}, step 140": samples(network, 200, seed=1) for name, network in early.items()}
candidates |= {"averaged, the end": ours, "copies of training images": train_images[::7][:200]}
for name, images in candidates.items():
    report = evaluate(images, reference, digits)
    print(
        f"{name:26} {report.frechet:10.2f} ± {report.frechet_sd:.2f} {report.frechet_real:16.2f} ± {report.frechet_real_sd:.2f}"
    )

# %% [markdown]
# What the table says:
#
# * After a fifth of the training, the averaged weights are clearly better than the raw ones. Here is the difference that the eye could
#   hardly see.
# * At the end the samples are much nearer to the floor, and still above it. Half a minute is not much.
# * The last row is a warning: *copies* reach the floor. The distance does not notice. That is why we looked for copies first.
#
# The ± is one standard deviation; differences smaller than that mean nothing. And the features come from a classifier of MNIST digits, to
# which these coarse digits look strange. So the numbers may compare our networks with each other, and no more.
#
# For the pretrained network such a number means more. Where MNIST is at hand, you get it with
# `python -m common.evaluate 01_ddpm_mnist/pretrained --data mnist`.

# %% [markdown]
# ## Where to go from here
#
# What you have seen: noise in one shot, a network that guesses it, and a walk back. Three formulas.
#
# Things to try in this notebook, each a change of a word or two:
#
# * Draw with `ddim:5`, `ddim:10`, `ddim:20`. From how many steps on do you see no difference? And with `heun:10`?
# * In section 5, train to predict `"eps"` instead of `"v"` (three places). Look at the brightness of the samples.
# * Use `make_schedule("linear")` in section 1 (section 5 takes the same one).
# * Train with 50 digits only, and look for copies again: `Images("few", digits.pixels[:50])` from `common.data`.
#
# Then build it yourself: eight [exercises](exercises/README.md), from $\bar\alpha_t$ to a sampler, with a grader:
# `python -m common.grade 01`.
#
# And train on more than this. [train.py](train.py) is section 5 with a progress bar. `--data` takes `digits`, `mnist`, `fashion_mnist`,
# `cifar10`, `flowers102`, or a folder of pictures of your own (faces, say). With `--class-conditional` the network is also told the label, as a
# vector that is added to that of the noise level, and `sample.py --label 3` asks for it. A run that was stopped goes on with `--resume RUN`, and a new one
# begins with the weights of another with `--start RUN`. All of it stands in the [README](README.md).
#
# The next chapter lets you say in words what is to be drawn.
