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
# # Chapter 4 · A small Stable Diffusion
#
# The pictures of chapter 2 had $32 \times 32$ pixels, because every pixel costs. Twice the side is four times the pixels, at every one of
# a thousand levels of noise. And what for? Most pixels can be told from their neighbours: inside a red belly there is more red.
#
# So do it in two steps. First learn to write pictures down in *fewer numbers*, and to draw them again from these. Then let the diffusion
# model work on the numbers, and never on pixels. The numbers are called **latents** (潜变量), the thing that makes them an **autoencoder**
# (自编码器), and the whole is **latent diffusion** (潜在扩散; [Rombach et al. 2022](https://arxiv.org/abs/2112.10752)). With text it is Stable
# Diffusion. Ours is small, and it is built the same way to the last file: the tools of the professionals open it.
#
# In this lesson we
#
# 1. count what pixels cost, in seconds and in bytes;
# 2. learn what a **variational autoencoder** (VAE, 变分自编码器) is, where everything can be seen: in the plane;
# 3. train one for pictures, in half a minute;
# 4. see what the shipped one loses, and what $f$ and the channels have to do with it;
# 5. look at latents, walk between them, and find out what they are *not*;
# 6. measure the **scaling factor** (缩放因子), and see why it must be there;
# 7. make noise in latents and in pixels;
# 8. put chapter 2's network on top: nothing about it is new but its input;
# 9. draw creatures and dishes from words, in two languages;
# 10. begin with a picture instead of noise: **img2img** (图生图);
# 11. open the same folder with `diffusers`, and get the same picture;
# 12. keep latents in a file, or make them on the fly.
#
# You should have read chapters 1 and 2. Everything runs on a laptop's CPU with no download, in about three minutes.

# %%
from common.grade.chapter import (
    open_chapter,  # no module named common? Select the kernel in which the course is installed (README.md)
)

CHAPTER = open_chapter(
    "04_latent_sd"
)  # this folder: from here on its files can be imported, wherever the kernel was started

# %%
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common import viz
from common.data import load
from common.diffusion.denoiser import to_x0_eps
from common.diffusion.guidance import drop_captions, guide
from common.diffusion.losses import diffusion_loss
from common.diffusion.schedules import NoiseLevel, add_noise
from common.evaluate.creature_classifier import load_creature_classifier
from common.evaluate.prompt_accuracy import chance_accuracy, make_prompts, measure_accuracy
from common.io.pixels import to_bytes, to_float
from common.models.pipeline import SamplingConfig
from common.models.unet import UNet
from common.models.unet_config import text_unet
from common.models.vae import AutoencoderKL, Gaussian, measure_scaling_factor, small_vae
from common.random import BatchRandom, Noise
from common.training.latents import sample, scaled
from common.training.vae_loss import vae_loss
from latent_sd.concat_dataset import joined  # this chapter's files: two data sets as one,
from latent_sd.evaluation import reconstruct  # images through the autoencoder,
from latent_sd.latent_dataset import OnTheFly, cached_latents, start_method, training_order  # images as latents,
from latent_sd.pipeline import last_levels, open_latent_diffusion  # from text to images,
from latent_sd.vae_trainer import psnr  # and the error of reconstructions

plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
MODEL = (
    CHAPTER / "pretrained"
)  # the model that comes with this chapter; or a run of your own: CHAPTER.parent / "runs/04_latent_sd/..."


def show_images(images, columns, across=(), down=(), cell=0.85):
    """A grid of images (N, 1 or 3, S, S) in [-1, 1], with words above the columns and beside the rows."""
    picture, pitch = viz.grid(images, columns), images.shape[-1] + 2
    rows = len(images) // columns
    plt.figure(figsize=(cell * columns + 1.5 * bool(down), cell * rows + 0.3), layout="constrained")
    plt.imshow(picture, interpolation="nearest")
    plt.xticks([pitch * (i + 0.5) for i in range(len(across))], across)
    plt.yticks([pitch * (i + 0.5) for i in range(len(down))], down)
    plt.gca().tick_params(length=0, labeltop=True, labelbottom=False)
    plt.gca().spines[:].set_visible(False)
    plt.show()


def noise_like(x, seed=0):
    """Standard normal numbers of x's shape."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


# %% [markdown]
# ## 1 · What pixels cost
#
# Here is the model of this chapter. It draws pictures of $64 \times 64$ pixels, and it never sees one.

# %%
pipeline = open_latent_diffusion(MODEL)
vae, net, schedule, encoder = pipeline.vae, pipeline.unet, pipeline.schedule, pipeline.text_encoder
f, c, size = vae.cfg.factor, vae.cfg.latent_channels, pipeline.size
side = size // f


def weights_of(module):
    return sum(weight.numel() for weight in module.parameters())


print(f"autoencoder {weights_of(vae):,} weights, U-Net {weights_of(net):,}, reader of words {weights_of(encoder):,}")
print(
    f"a picture: 3 x {size} x {size} = {3 * size**2:,} numbers; its latents: {c} x {side} x {side} = {c * side**2:,}, "
    f"{3 * size**2 / (c * side**2):.0f} times fewer"
)

# %% [markdown]
# (The side is $f = 4$ times smaller, but there are 4 channels instead of 3.) What is that worth? We take one training step, forward and
# backward, with four pictures: of the U-Net that works in latents, of the *same* U-Net in pixels, and of the one that one would rather
# take for pixels, with two more resolutions, so that its expensive attention stands at small sizes as well.
#
# Two things are measured. The seconds are those of this machine. The bytes are **counted**: everything that the forward pass must keep
# until the backward pass has used it (激活值, activations). They grow with the batch, and so they decide how large a batch fits into a
# memory.


# %%
def step_cost(unet, x, text, times=2):
    """One training step: seconds (the fastest of several), and bytes that are kept for the backward pass."""
    weights, kept = {p.untyped_storage().data_ptr() for p in unet.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other tensor gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(x, torch.full((len(x),), 500.0), text=text).square().mean().backward()
    bytes_kept, seconds = sum(storage.nbytes() for storage in kept.values()), []
    kept.clear()
    for _ in range(times):
        began = time.perf_counter()
        unet(x, torch.full((len(x),), 500.0), text=text).square().mean().backward()
        seconds.append(time.perf_counter() - began)
    return min(seconds), bytes_kept


widths, text_dim = net.cfg.channels, encoder.dim
words = torch.randn(4, 24, text_dim)
candidates = {
    "latents": text_unet(side, c, widths, text_dim),
    "pixels, the same network": text_unet(size, 3, widths, text_dim),
    "pixels, two resolutions more": text_unet(size, 3, (*widths, widths[-1], widths[-1]), text_dim),
}
costs = {
    name: step_cost(UNet(cfg), torch.randn(4, cfg.in_channels, cfg.size, cfg.size), words)
    for name, cfg in candidates.items()
}
print(f"{'a training step of 4 pictures':32}{'seconds':>10}{'ratio':>8}{'kept':>12}{'ratio':>8}")
for name, (seconds, kept) in costs.items():
    print(
        f"{name:32}{seconds:>10.3f}{seconds / costs['latents'][0]:>8.1f}{kept / 1e6:>9.1f} MB{kept / costs['latents'][1]:>8.1f}"
    )

# %% [markdown]
# In the second line attention is dear: each place looks at each other place, and 16 times the places are 256 times the pairs. The third
# line is the fairer one: nobody would take the same network for pixels. Compare it with the first.
#
# And what does the autoencoder cost in return? It is used once for each picture that is trained on (and once more if nobody keeps what it
# said: section 12), and once for each picture that is drawn. A sampler asks the U-Net twenty or fifty times.

# %%
pictures = torch.randn(8, 3, size, size)
with torch.no_grad():
    for what, work in {
        "encode": lambda: vae.encode(pictures),
        "one step of the U-Net": lambda: net(
            torch.randn(8, c, side, side), torch.full((8,), 500.0), text=torch.randn(8, encoder.length, text_dim)
        ),
        "decode": lambda: vae.decode(torch.randn(8, c, side, side)),
    }.items():
        work()
        began = time.perf_counter()
        work()
        print(f"{what:24} {1000 * (time.perf_counter() - began) / 8:6.1f} ms a picture")

# %% [markdown]
# ## 2 · What the V in VAE means
#
# An autoencoder is two networks. The **encoder** (编码器) makes few numbers $z$ of a picture $x$; the **decoder** (解码器) makes a picture $y$
# of the numbers; and both are trained together so that $y$ is like $x$. The narrow place in the middle (瓶颈) forces them to write down
# what matters.
#
# Is that enough? We look at it in the plane: the real digits of chapter 1, $8 \times 8$ pixels, and **two** numbers for each. Then every
# digit is a point that we can draw. First a few formulas; they are short.
#
# A variational autoencoder ([Kingma & Welling 2014](https://arxiv.org/abs/1312.6114)) differs in one thing. Its encoder does not say *a
# point*, but *a cloud*: a mean $\mu$ and a deviation $s$ for each number. The decoder gets a random point of that cloud:
#
# $$z = \mu(x) + s(x)\,\epsilon \qquad \epsilon \sim \mathcal N(0, 1) \tag{1}$$
#
# So it has to draw a good picture from *every* point of the cloud: neighbours in the plane must mean similar pictures. To write the dice
# as a separate $\epsilon$ is the **reparameterisation trick** (重参数化技巧): $z$ is then an ordinary function of $\mu$ and $s$, and gradients
# pass. We try it where we know the answer: the mean of $z^2$ is $\mu^2 + s^2$, so its slope is $2\mu$ in $\mu$ and $2s$ in $s$. And
# without the trick?

# %%
mu, s = torch.tensor(0.7, requires_grad=True), torch.tensor(0.5, requires_grad=True)
dice = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
(mu + s * dice).square().mean().backward()
print(f"slope in mu {mu.grad:.3f} (theory {2 * mu:.3f}), in s {s.grad:.3f} (theory {2 * s:.3f})")
mu.grad, s.grad = None, None
torch.normal(mu.expand(1000), s.expand(1000)).square().mean().backward()
print(f"drawn with torch.normal(mu, s): slope in mu {mu.grad:.3f}, in s {s.grad:.3f}")

# %% [markdown]
# A lazy encoder would make all clouds tiny, and put them far apart: then the dice do no harm, and it is a plain autoencoder again. So
# there is a price, the **KL divergence** (KL 散度) of the cloud from a standard normal one. It is zero when the encoder says nothing
# ($\mu = 0$, $s = 1$ for every picture), and grows with everything it says:
#
# $$\mathrm{KL}\big(\mathcal N(\mu, s^2)\,\|\,\mathcal N(0, 1)\big) = \tfrac12 \left(\mu^2 + s^2 - 1 - \log s^2\right) \tag{2}$$
#
# summed over the numbers of $z$, in nats (奈特; a nat is 1.44 bits). It is the mean of $\log \frac{q(z)}{p(z)}$ over the cloud, so one can
# check it by dice:

# %%
cloud = Gaussian(torch.tensor([[1.2]]), torch.tensor([[0.4]]).square().log())  # mean, log of the variance
q, p = torch.distributions.Normal(1.2, 0.4), torch.distributions.Normal(0, 1)
z = cloud.sample(dice[:, None])
print(f"KL by formula {float(cloud.kl()):.3f}, by dice {float((q.log_prob(z) - p.log_prob(z)).mean()):.3f} nats")

# %% [markdown]
# ### Why exactly this price? The ELBO
#
# There is a story in which it is no trick at all. A picture is *made* like this: roll a $z$ from $\mathcal N(0, 1)$; decode it; add a
# little noise of deviation $r$ to the pixels. How likely is our picture $x$ under this story? One would have to try all $z$, which nobody
# can. But for **any** cloud $q(z)$
#
# $$\log p(x) \;\ge\; \underbrace{-\frac{1}{2 r^2}\,\mathbb E_{z \sim q}\, |x - \text{decode}(z)|^2}_{\text{how well it is given back}} \;-\; \underbrace{\mathrm{KL}(q \,\|\, \mathcal N(0,1))}_{\text{what was said}} \;+\; \text{const} \tag{3}$$
#
# and the better $q$ guesses which $z$ could have made $x$, the nearer the two sides. (It is Jensen's inequality: the logarithm of a mean
# is at least the mean of the logarithms.) The right side is the **ELBO**, the evidence lower bound (证据下界). Training makes it as large as
# it can get. So the encoder is a *guess at the cause* of a picture, and the loss is
#
# $$\text{loss} = \text{reconstruction} + \beta \cdot \mathrm{KL} \tag{4}$$
#
# with $\beta = 1$ for the true bound. But $r$ is our choice, and to change $\beta$ is to change $r$: how exactly are pixels to be given
# back? So everybody turns the knob. We turn it to zero, to one, and to a hundred.

# %%
digits = load("digits")
x_all, labels = digits.batch(torch.arange(len(digits)))["image"].flatten(1), digits.labels  # (N, 64), (N,)
R = 0.4  # the noise of the pixels in the story


def train_in_the_plane(beta, steps=1500):
    """An autoencoder with two numbers in the middle. Returns the means (N, 2), the deviations (N, 2) and the decoder."""
    torch.manual_seed(0)
    encode = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 4))
    decode = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 64))
    optimizer = torch.optim.Adam([*encode.parameters(), *decode.parameters()], 3e-3)
    for _ in range(steps):
        x = x_all[torch.randint(len(x_all), (128,))]
        q = Gaussian(*encode(x).chunk(2, 1))
        y = decode(q.sample(torch.randn(128, 2)))
        loss = ((x - y).square().sum(1) / (2 * R**2) + beta * q.kl()).mean()  # (4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        q = Gaussian(*encode(x_all).chunk(2, 1))
    return q, decode


plane, betas = {}, (0, 1, 100)
began = time.perf_counter()
for beta in betas:
    plane[beta] = train_in_the_plane(beta)
print(f"three trainings in {time.perf_counter() - began:.1f} s")

_, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
turn = torch.linspace(0, 2 * torch.pi, 60)
for axis, (beta, (q, _)) in zip(axes, plane.items(), strict=True):
    axis.scatter(*q.mean.T, s=3, c=labels, cmap="tab10", linewidths=0)
    for mean, std in zip(q.mean[::60], (q.logvar[::60] / 2).exp(), strict=True):
        axis.plot(mean[0] + std[0] * turn.cos(), mean[1] + std[1] * turn.sin(), color="black", linewidth=0.6)
    axis.plot(2.45 * turn.cos(), 2.45 * turn.sin(), color="0.6", linestyle="--")
    axis.set(title=f"$\\beta$ = {beta}", aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(True)
plt.show()

# %% [markdown]
# Each point is a digit (the colour says which; the networks were not told), the small black circles are some of the clouds, and the
# dashed circle holds 95 % of a standard normal distribution. Mind that each plot has its own scale.
#
# What does that mean for pictures? Below, for each $\beta$: six digits, given back; and what the decoder makes of six points that
# **nobody encoded**, rolled from $\mathcal N(0, 1)$. The second is what a generator has to do.

# %%
torch.manual_seed(1)
some, rolled, rows = torch.arange(0, 1400, 240)[:6], torch.randn(6, 2), []
print(
    f"{'beta':>6}{'error of a pixel':>19}{'KL, nats':>10}{'deviation of the means':>25}{'of a cloud':>13}{'ELBO, up to a constant':>25}"
)
for beta, (q, decode) in plane.items():
    with torch.no_grad():
        y = decode(q.sample(noise_like(q.mean)))
        rows += [x_all[some], y[some].clamp(-1, 1), decode(rolled).clamp(-1, 1)]
    error, kl, std = (x_all - y).square(), q.kl().mean(), (q.logvar / 2).exp().mean()
    elbo = -(error.sum(1).mean() / (2 * R**2)) - kl
    print(f"{beta:>6}{error.mean().sqrt():>19.3f}{kl:>10.2f}{q.mean.std():>25.2f}{std:>13.3f}{elbo:>25.1f}")
sheet = torch.stack(rows).view(3, 3, 6, 64).transpose(0, 1)  # (what, beta, digit, pixel)
sheet = torch.cat([sheet, torch.ones(3, 3, 1, 64)], 2).reshape(-1, 1, 8, 8)  # an empty column after each beta
show_images(
    sheet,
    21,
    across=[f"$\\beta$ = {betas[i // 7]}" if i % 7 == 3 else "" for i in range(21)],
    down=["real", "given back", "rolled"],
    cell=0.5,
)

# %% [markdown]
# What to look for:
#
# * **$\beta = 0$**: nothing is charged. Are the digits given back best? How large is the plane, and how small are the clouds? And what
#   does the decoder draw at points where nobody ever was?
# * **$\beta = 1$**: the clouds lie side by side and fill the dashed circle, so that whoever rolls a point lands where the decoder knows
#   what to do. Its ELBO should be the largest of the three.
# * **$\beta = 100$**: to say anything is too dear. If all clouds have become the same, the decoder knows nothing and draws the mean of
#   all digits: **posterior collapse** (后验坍缩).
#
# So a VAE is a generator by itself: roll, decode. Two numbers make poor digits. With many numbers the reconstructions get sharp, but then
# rolled points seldom look like anything, for the clouds do not fill a space of a thousand dimensions evenly (section 7 decodes pure
# noise: see the last column there).
#
# Latent diffusion cuts this knot. It takes **a very small $\beta$** (here of the order of $10^{-6}$ for each pixel value): enough that
# $z$ does not grow without end and has no cliffs, and far too little to make it normal. Rolling is left to somebody who can do it: a
# diffusion model, that *learns* how latents are distributed.

# %% [markdown]
# ## 3 · Train one for pictures
#
# For pictures encoder and decoder are convolutional ([vae.py](../common/models/vae.py), to be read in one sitting), and $z$ is a small picture
# itself: $h \times w$ places with $c$ channels each. Half a minute has to do, so: $16 \times 16$ pixels, $f = 2$, a narrow network, 300
# creatures and 100 dishes.
#
# The loss is (4), both terms divided by the number of pixel values: the mean squared error of the pixels, plus $10^{-6}$ times the KL.
# (By (3) this is the true bound for $r = \sqrt{10^{-6} / 2} = 0.0007$, a tenth of one grey level out of 256. Who wants pictures back that
# exactly does not mind what is said.)
#
# Where a decoder cannot know, pixels compared one by one make it answer with the mean of all that could be: blur. Against it
# [vae_loss.py](../common/training/vae_loss.py) offers two terms more, as Stable Diffusion's autoencoder had them. The *perceptual* term compares
# what the layers of another network see in both pictures instead of their pixels, so a stripe that is one pixel aside costs little. The
# *adversarial* term trains a second network to tell patches of pictures from patches of reconstructions, and the decoder to be taken for
# real. Both ask for a likely picture rather than a near one, and both cost time: `train_vae.py --perceptual 0.1`, `--adversarial 0.5`. Here
# we do without.

# %%
small = joined([load("creatures", 16, n=300), load("dishes", 16, n=100)])
unseen = joined([load("creatures", 16, split="test", n=8), load("dishes", 16, split="test", n=4)])
x_unseen = to_float(unseen.pixels)
STEPS, KL, LR = 800, 1e-6, 3e-3

torch.manual_seed(0)
tiny = AutoencoderKL(small_vae(16, 3, (16, 32)))
optimizer = torch.optim.AdamW(tiny.parameters(), LR)
history, snapshots, began = [], {}, time.perf_counter()
for step in range(1, STEPS + 1):
    optimizer.param_groups[0]["lr"] = LR * min(step / 20, math.cos(math.pi / 2 * step / STEPS) + 0.01)
    x = to_float(small.pixels[torch.randint(len(small), (16,))])  # (B, 3, 16, 16)
    y, q = tiny(x, torch.randn(16, 4, 8, 8))  # encode, draw z by (1), decode
    parts = vae_loss(x, y, q, "l2", KL)
    optimizer.zero_grad()
    parts.total.mean().backward()
    nn.utils.clip_grad_norm_(tiny.parameters(), 1.0)
    optimizer.step()
    history.append((parts.pixels.mean().item(), parts.kl.mean().item()))
    if step in (20, STEPS // 8, STEPS // 3, STEPS):
        with torch.no_grad():
            snapshots[step] = tiny.decode(tiny.encode(x_unseen).mode())
print(f"{STEPS} steps in {time.perf_counter() - began:.0f} s; {weights_of(tiny):,} weights")

# %%
pixels, kl = np.array(history).T
_, axes = plt.subplots(1, 2, figsize=(9, 2.4), layout="constrained")
for axis, values, title in zip(
    axes, (pixels, kl), ("error of the pixels (mean square)", "KL, nats a pixel value"), strict=True
):
    axis.plot(values, color="0.85", linewidth=0.5)
    axis.plot(viz.smooth(values, 0.06))
    axis.set(title=title, xlabel="step")
plt.show()
show_images(
    torch.cat([x_unseen, *snapshots.values()]),
    12,
    down=["never seen", *(f"step {step}" for step in snapshots)],
    cell=0.75,
)
for step, y in snapshots.items():
    print(f"step {step:4}: PSNR {psnr(x_unseen, y).mean():.1f} dB")

# %% [markdown]
# Read the rows from above. In which order do they come: brightness, forms, colours, eyes? The two curves pull against each other: to give
# pixels back, the encoder must say something, and the KL counts what it says. In which direction does it go here, with a $\beta$ as small
# as this one?
#
# **PSNR** (峰值信噪比) is the squared error as a number that grows with quality: $10 \log_{10} (\text{peak}^2 / \text{mean squared error})$ in
# decibels (分贝), with a peak of 2 for pictures in $[-1, 1]$. 20 dB means an error of a tenth of the range, and every 6 dB more halve the
# error. The pictures above were not trained on.

# %% [markdown]
# ## 4 · What the shipped one loses
#
# The autoencoder of this chapter was trained by the same kind of loss, for longer, at $64 \times 64$ (how:
# [pretrained/README.md](pretrained/README.md)). Real pictures that it has never seen above, what comes back below, and under that the
# difference, three times as strong (grey is none).

# %%
tests = {name: to_float(load(name, size, split="test", n=32).pixels) for name in ("creatures", "dishes")}
known = joined([load("creatures", size, n=120), load("dishes", size, n=120)])  # of those it was trained on
x0 = torch.cat([tests["creatures"][:6], tests["dishes"][:6]])
back = pipeline.decode(pipeline.encode(x0))
show_images(torch.cat([x0, back, (3 * (back - x0)).clamp(-1, 1)]), 12, down=["real", "given back", "difference"])


def shrunk(x, n):
    """Shrunk to n x n pixels and enlarged again: the simplest autoencoder."""
    return F.interpolate(F.interpolate(x, n, mode="area"), x.shape[-1], mode="bicubic").clamp(-1, 1)


room = round((c * side**2 / 3) ** 0.5)  # pixels a side that need as many numbers as the latents
for name, x in tests.items():
    found = psnr(x, pipeline.decode(pipeline.encode(x)))
    print(
        f"{name:10} PSNR {found.mean():.2f} dB (worst of {len(x)}: {found.min():.2f}); "
        f"shrunk to {room} x {room} pixels, which are as many numbers: {psnr(x, shrunk(x, room)).mean():.2f} dB"
    )

# %% [markdown]
# Where is the difference? Look at edges and at small things: eyes, the pattern of a tablecloth, sesame. What the autoencoder loses is
# lost for good. The diffusion model cannot draw a detail for which there are no latents. So the PSNR is a ceiling (上限) for everything
# that follows, and the first thing to measure of a latent diffusion model.
#
# ### $f$ and the channels
#
# $f$ says how many times smaller the side gets: each place of $z$ stands for $f \times f$ pixels. $c$ says how many numbers it has for
# them. The more numbers, the better the picture, and the harder the work that is left for the diffusion model. To see how they trade,
# take the best *linear* autoencoder, for which nobody has to train anything: cut pictures into patches of $f \times f$ pixels and keep
# the $c$ directions in which patches vary most (principal components, 主成分).


# %%
def linear_autoencoder(f, channels):
    """PSNR on the test pictures of the best linear code with so many channels, learned from the training pictures."""

    def patches(x):
        return F.pixel_unshuffle(x, f).permute(0, 2, 3, 1).flatten(0, 2)  # (N places, 3 f f)

    learn, x = patches(to_float(known.pixels)), torch.cat(list(tests.values()))
    mean = learn.mean(0)
    directions = torch.linalg.eigh((learn - mean).T @ (learn - mean)).eigenvectors.flip(
        1
    )  # the one of most variance first
    found, centred = [], patches(x) - mean
    for k in channels:
        y = (centred @ directions[:, :k]) @ directions[:, :k].T + mean
        y = F.pixel_shuffle(y.view(len(x), x.shape[2] // f, -1, 3 * f * f).permute(0, 3, 1, 2), f)
        found.append(float(psnr(x, y).mean()))
    return found


plt.figure(figsize=(6.5, 3), layout="constrained")
for factor in (2, 4, 8):
    channels = [k for k in (1, 2, 3, 4, 8, 16, 32, 64) if k < 3 * factor**2]
    numbers = [k * (size // factor) ** 2 for k in channels]
    found = linear_autoencoder(factor, channels)
    (curve,) = plt.plot(numbers, found, marker="o", markersize=4, label=f"linear, f = {factor}")
    where = (-5, 5) if factor == 8 else (4, -9)  # the uppermost curve has its figures above it
    for k, number, value in zip(channels, numbers, found, strict=True):
        plt.annotate(
            f"{k}", (number, value), textcoords="offset points", xytext=where, fontsize=7, color=curve.get_color()
        )
every = torch.cat(list(tests.values()))
ours = float(psnr(every, pipeline.decode(pipeline.encode(every))).mean())
plt.plot(
    c * side**2,
    ours,
    marker="*",
    markersize=13,
    color="black",
    linestyle="",
    label=f"the shipped one: f = {f}, c = {c}",
)
plt.axvline(3 * size**2, color="0.7", linestyle=":")
plt.gca().set(
    xscale="log", xlabel="numbers for a picture (dotted: pixels); small figures: channels", ylabel="PSNR, dB"
)
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# Two things to read off. Along each line, more channels cost numbers and buy decibels. And at the *same* amount of numbers, larger
# patches can do no worse, for a large patch can be told whole: that is one reason why large pictures are encoded with $f = 8$ (Stable Diffusion:
# $512 \times 512$ pixels, 4 channels of $64 \times 64$) and later models take 16 channels. The star is not bound to be linear, nor to see
# only its own patch. How far above the line of $f = 4$ does it lie?

# %% [markdown]
# ## 5 · What latents look like
#
# $z$ is a small picture with four channels. We show each in grey; and then all four at once, through the best linear guess of the colour
# that each place stands for (a $4 \to 3$ matrix, found by least squares, 最小二乘法). Many programs show such a cheap **preview** while they
# draw, because the decoder is slower.

# %%
z0 = pipeline.encode(x0)  # (12, 4, 16, 16), scaled: section 6
z_known = pipeline.encode(to_float(known.pixels))  # (240, 4, 16, 16)
channel_std = z_known.std((0, 2, 3), correction=0)  # (4,)


def with_one(z):
    """The channels of each place, and a one. (N, 4, h, w) -> (N h w, 5)"""
    return F.pad(z.permute(0, 2, 3, 1).flatten(0, 2), (0, 1), value=1.0)


colours = F.avg_pool2d(to_float(known.pixels), f).permute(0, 2, 3, 1).flatten(0, 2)  # (N h w, 3)
to_colour = torch.linalg.lstsq(with_one(z_known), colours).solution  # (5, 3)


def preview(z):
    """(N, 4, h, w) -> (N, 3, h, w): what the latents look like, without the decoder."""
    return (with_one(z) @ to_colour).view(len(z), *z.shape[2:], 3).permute(0, 3, 1, 2).clamp(-1, 1)


grey = [(z0[:, i : i + 1] / (2.5 * channel_std[i])).clamp(-1, 1).expand(-1, 3, -1, -1) for i in range(c)]
show_images(
    F.interpolate(torch.cat([F.avg_pool2d(x0, f), *grey, preview(z0)]), scale_factor=4.0),
    12,
    down=["shrunk", *(f"channel {i + 1}" for i in range(c)), "preview"],
    cell=0.75,
)

# %% [markdown]
# The creature is still there, at the same place: convolutions do not move things. So latents are *not* a description like "red, round,
# bat wings". They are a picture, written in another alphabet. One can see which channels speak of brightness and which of colour, by
# moving one of them. Below, each row moves one channel of one picture, everywhere at once, by $-3$ to $3$ of its deviations (**latent
# traversal**, 潜空间遍历). In the middle is the plain reconstruction.

# %%
shifts = torch.linspace(-3, 3, 7)
directions = torch.diag(channel_std)[:, None, :, None, None]  # (4 rows, 1, 4, 1, 1)
moved = z0[:1] + shifts.view(-1, 1, 1, 1) * directions  # (4 rows, 7, 4, 16, 16)
show_images(
    pipeline.decode(moved.flatten(0, 1)),
    7,
    across=[f"{shift:+g}" for shift in shifts],
    down=[f"channel {i + 1}" for i in range(c)],
)

# %% [markdown]
# ### Half-way between two pictures
#
# Of the *plane* of section 2 one could hope that half-way between two digits lies a digit. Is it so here? From one picture to another:
# mixed in pixels (a cross-fade, 叠化), and mixed in latents, then decoded.

# %%
pairs, shares = [(0, 1), (2, 7)], torch.linspace(0, 1, 7).view(-1, 1, 1, 1)
rows = []
for a, b in pairs:
    rows += [(1 - shares) * back[a] + shares * back[b], pipeline.decode((1 - shares) * z0[a] + shares * z0[b])]
show_images(
    torch.cat(rows),
    7,
    across=[f"{float(share):.2f}" for share in shares.flatten()],
    down=["pixels", "latents"] * len(pairs),
)
for (a, b), faded, walked in zip(pairs, rows[::2], rows[1::2], strict=True):
    between, apart = ((x - y).square().mean().sqrt() for x, y in ((faded[3], walked[3]), (back[a], back[b])))
    print(f"half-way, the two rows differ by {between:.3f} (rms); the ends are {apart:.3f} apart")

# %% [markdown]
# Look at the middle column. Is it a creature in between, or two pictures that shine through each other? An autoencoder that keeps places
# keeps them here, too. Whoever hopes for *meaning* in this space looks in the wrong place: it is compression. Meaning comes with the
# diffusion model, and at the end of section 9 we walk in a space where every point is a picture.

# %% [markdown]
# ## 6 · The scaling factor
#
# A noise schedule says how much noise is mixed in, in units of *one*: it counts on data whose deviation is about one. Pictures in
# $[-1, 1]$ are near that by themselves. Latents are not: with a $\beta$ as small as ours, they have whatever size the training happened
# to end with. So we measure it, and divide by it (Rombach et al. 2022, appendix G):

# %%
with torch.no_grad():
    q = vae.encode(to_float(known.pixels))
    raw = q.sample(noise_like(q.mean))  # as they come from the encoder
print(
    f"deviation of the encoder's latents {raw.std():.3f}; one over it {measure_scaling_factor(raw):.4f}; stored in the folder {vae.cfg.scaling_factor:.4f}"
)
print(
    f"scaled: over all {vae.scale(raw).std():.3f}; channel by channel",
    ", ".join(f"{s:.2f}" for s in vae.scale(raw).std((0, 2, 3))),
)
print(f"deviation of a cloud, scaled: {vae.scale((q.logvar / 2).exp()).mean():.3f}")
for name, x in tests.items():
    print(f"test pictures of {name:10} {pipeline.encode(x).std():.3f}")

# %% [markdown]
# (Stable Diffusion's is 0.18215: its encoder's latents have a deviation above 5. The stored factor was measured over all training
# pictures, ours here over 240 of them. The last two lines: one number for all channels and all sets does not make each of them exactly
# one.) The third line says how much of a VAE is left in this autoencoder: compare it with $\beta = 1$ in section 2.
#
# Why does it matter? Suppose that the latents have deviation $d$, and nobody has scaled them. A noisy latent is
# $\alpha d\, z + \sigma \epsilon$: the signal-to-noise ratio (信噪比) is $d^2$ times what the schedule believes. The same noise level,
# $t = 600$, for the same latents at five sizes:

# %%
sizes, t = (0.1, 0.3, 1.0, 3.0, 10.0), 600
level = NoiseLevel(*(float(part) for part in schedule.at(torch.tensor(t))))
rows, eps = [], noise_like(z0[:6], 3)
for d in sizes:
    noisy = add_noise(d * z0[:6], eps, level)
    rows.append(pipeline.decode(noisy / (d * level.alpha)))  # as the decoder sees it, with the size of z0 again
show_images(torch.cat([back[:6], *rows]), 6, down=["no noise", *(f"deviation {d:g}" for d in sizes)], cell=0.7)

_, (left, right) = plt.subplots(1, 2, figsize=(11, 2.7), layout="constrained")
ts = torch.arange(1, schedule.T + 1)
for d in sizes:
    signal = (schedule.alpha[ts] * d) ** 2
    noise = schedule.sigma[ts] ** 2
    left.plot(ts, signal / (signal + noise), label=f"deviation {d:g}")
left.set(xlabel="t", title="share of the signal in what the network sees")
left.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))  # beside the curves, which leave no room
snr = (schedule.alpha[ts] / schedule.sigma[ts]).square()  # of latents of deviation 1
at = [float(((d**2 * snr > 1 / 20) & (d**2 * snr < 20)).double().mean()) for d in sizes]
right.bar([f"{d:g}" for d in sizes], at)
right.set(xlabel="deviation of the latents", title="share of the levels at which there is a question")
plt.show()

# %% [markdown]
# (A question, here: neither the latents nor the noise have more than twenty times the power of the other.) If latents are too large, most
# levels hardly have noise: the network learns to answer what is plain to see, and sampling, which begins with pure noise, starts at a
# place that training barely visited. Too small, and nearly all levels are fog. In either case it shows in what comes out. It is one
# multiplication, and one of the bugs that are found last.

# %% [markdown]
# ## 7 · Noise, here and there
#
# The same level of noise in pixels and in latents. First row: noise in pixels. Second: noise in latents, decoded. Third: those latents as
# preview. (At $t = 1000$ there is nothing but noise.)

# %%
moments = (0, 200, 400, 600, 800, 900, 1000)
rows = {"pixels": [], "latents, decoded": [], "preview": []}
eps_x, eps_z = noise_like(x0[:1], 1), noise_like(z0[:1], 1)
for t in moments:
    level = schedule.at(torch.tensor(t))
    rows["pixels"].append(add_noise(x0[:1], eps_x, level).float().clamp(-1, 1))
    noisy = add_noise(z0[:1], eps_z, level).float()
    rows["latents, decoded"].append(pipeline.decode(noisy))
    rows["preview"].append(F.interpolate(preview(noisy), scale_factor=float(f)))
show_images(
    torch.cat([torch.cat(row) for row in rows.values()]),
    len(moments),
    across=[f"t = {t}" for t in moments],
    down=list(rows),
    cell=0.95,
)

# %% [markdown]
# Noise in latents does not look like snow. The decoder has never seen such latents, and makes of each some colour, as large as the patch
# that a place stands for. That is all right: nobody decodes noise but to look at it.
#
# There is a quiet difference. The large forms of a picture can be read from *averages*, and noise averages out: of $n$ numbers, to
# $1/\sqrt n$. Cut a picture into $8 \times 8$ parts: each is an average of 64 pixels, but of 4 places only. We measure how much the noisy
# averages still know of the clean ones (correlation, 相关系数), over all test pictures:


# %%
def known_of_averages(x, t, parts=8):
    """Correlation between the averages of clean and of noisy parts of pictures or latents, at level t."""
    noisy = add_noise(x, noise_like(x, 5), schedule.at(torch.tensor(t))).float()
    clean, noisy = (F.adaptive_avg_pool2d(y, parts) for y in (x, noisy))
    return np.corrcoef(clean.flatten(), noisy.flatten())[0, 1]


z_test = pipeline.encode(every)
for t in (700, 800, 900, 970):
    print(
        f"t = {t}: what noisy averages know of the clean ones: in pixels {known_of_averages(every, t):.2f}, in latents {known_of_averages(z_test, t):.2f}"
    )

# %% [markdown]
# So the same schedule is *noisier* for latents than for the pixels of the same picture: the forms are gone earlier. (Chapter 3 met the
# other side of this: the larger a picture, the more leaks through.) It is one reason why schedules are tuned to the size of what they
# noise.

# %% [markdown]
# ## 8 · Chapter 2, with another input
#
# Now the diffusion model. What has to be changed in chapter 2? One line. There it took `x0 = batch["image"]`; here it takes latents, a
# random point of each cloud, scaled. Everything else stays: levels, noise, one caption in ten hidden, `v`, the squared error. We write
# one training step down, for 32 pictures, and ask the shipped network:

# %%
chosen = [*range(16), *range(120, 136)]  # 16 creatures and 16 dishes
with torch.no_grad():
    batch = scaled(vae.encode(to_float(known.pixels[chosen])), vae.cfg.scaling_factor)
    captions = [known.captions[i] for i in chosen]
    draw = BatchRandom(0, 0)  # the random numbers of one step
    z = sample(batch, draw)  # 1. latents (B, 4, 16, 16): mean + std * noise, scaled   <- NEW
    u = draw.stratified(len(z))  # 2. noise levels
    eps = draw.randn(z.shape)  # 3. noise
    ids, empty = encoder.tokenizer(captions), encoder.tokenizer([""])[0]
    ids = drop_captions(ids, empty, draw.rand(len(z)))  # one caption in ten is hidden
    hidden = int((ids == empty).all(1).sum())
    told = {
        "the right captions": encoder(captions),
        "nothing": encoder([""] * len(z)),
        "each other's captions": encoder(captions[5:] + captions[:5]),
    }
    for what, text in told.items():  # 4. noise the latents, 5. predict, 6. compare
        error = diffusion_loss(net, schedule, pipeline.prediction, z, u, eps, text=text)
        print(f"told {what:24} loss {error.mean():.4f}; in the noisiest quarter of the levels {error[24:].mean():.4f}")
print(f"({hidden} of {len(z)} captions would have been hidden; latents {tuple(z.shape)}, deviation {z.std():.2f})")

# %% [markdown]
# If the first line is the lowest, the network listens; and as in chapter 2, it can be seen best where there is much noise. (With 32
# pictures and one noise each, small differences are luck.)
#
# To draw, one step is added at the end: undo the scaling, and decode. Here is all of it: the reader of words, guidance
# $\text{uncond} + w\,(\text{cond} - \text{uncond})$, DDIM, the decoder. No guess is clipped: latents know no bounds. Is it what
# [pipeline.py](latent_sd/pipeline.py) does?


# %%
@torch.no_grad()
def by_hand(prompts, w, steps, x):
    """Pictures from latents of noise x (B, 4, h, w): Stable Diffusion in ten lines."""
    text = torch.cat([encoder([""] * len(x)), encoder(list(prompts))])  # (2 B, M, D)
    levels = list(schedule.noise_levels(steps))  # noisiest first, clean last
    for now, then in zip(levels, levels[1:], strict=False):
        time = torch.full((2 * len(x),), now.time)
        uncond, cond = net(torch.cat([x, x]), time, text=text).chunk(2)  # one call, both answers
        z, eps = to_x0_eps(pipeline.prediction, guide(uncond, cond, w), x, now, False)  # take apart
        x = then.alpha * z + then.sigma * eps  # remix, with less noise
    return vae.decode(x / vae.cfg.scaling_factor).clamp(-1, 1)  # <- NEW


two = ["a red fire creature with bat wings", "番茄炒蛋"]
x = Noise(0, 0)(0, torch.empty(2, c, side, side))
mine, theirs = (
    by_hand(two, 5.0, 10, x),
    pipeline.txt2img(two, SamplingConfig(guidance_scale=5.0, sampler="ddim:10"), latents=x),
)
print(f"largest difference of a pixel between our ten lines and pipeline.py: {(mine - theirs).abs().max():.1e}")

# %% [markdown]
# ## 9 · From words
#
# One model, two kinds of picture, two languages. Odd columns in English, even ones in Chinese, of the same thing. Each column begins with
# the same noise.

# %%
wishes = [
    "a red fire creature with bat wings", "一只红色的火属性小怪兽，长着蝙蝠翅膀",
    "a blue round creature with cat ears, on a cream background", "一只蓝色圆圆的小怪兽，长着猫耳朵，奶油色背景",
    "stir-fried tomato and eggs", "番茄炒蛋",
    "a bowl of steamed rice on a wooden table", "木桌上的一碗米饭",
]  # fmt: skip
FAST = "dpmpp_2m:15"


def paint(prompts, w=5.0, **more):
    """One picture of each prompt, (N, 3, S, S) in [-1, 1]; picture i begins with the same noise whatever its prompt and w."""
    return pipeline.txt2img(list(prompts), SamplingConfig(guidance_scale=w, sampler=FAST, **more))


began = time.perf_counter()
plain, guided = paint(wishes, 1.0), paint(wishes, 5.0)
seconds = time.perf_counter() - began
show_images(torch.cat([plain, guided]), 8, across=range(1, 9), down=["plain, w = 1", "guided, w = 5"], cell=1.0)
for i, text in enumerate(wishes, 1):
    print(f"{i}  {text}")
    for remark in encoder.remarks(text):
        print("   note:", remark)
print(f"16 pictures of {size} x {size} in {seconds:.1f} s")

# %% [markdown]
# Go through the columns. What of each prompt is there? Are the two languages of one pair obeyed alike? (They do not begin with the same
# noise, so the pictures are two different ones.)
#
# The knob, as in chapter 2. Six prompts, five scales, the same noise in each column:

# %%
SCALES = (0, 1, 2, 5, 10)
six = [wishes[i] for i in (0, 3, 4, 5, 6)] + ["葱油生菜"]
show_images(torch.cat([paint(six, float(w)) for w in SCALES]), 6, down=[f"w = {w}" for w in SCALES], cell=0.9)
print("; ".join(six))

# %% [markdown]
# $w = 0$ does not hear the words at all: does it draw creatures *and* dishes? Somewhere in the middle the words are obeyed; and at the
# end look at the colours and the outlines. In pixels a guided guess was cut off at black and white; in latents nothing is cut off, so too
# much guidance looks different here. Compare with chapter 2.
#
# ### Counted
#
# As in chapter 2, a judge that has seen all creatures names the attributes of each picture, and only what its caption speaks of counts.
# Beside the model stand its ceiling (real pictures), *the ceiling that the autoencoder leaves of it* (the same pictures, encoded and
# decoded), and the floor (real pictures with each other's captions).

# %%
N = 24
judge, prompts = load_creature_classifier(), make_prompts("test", N, "both", size)
rows = {
    "real pictures": measure_accuracy(judge, prompts, prompts.real),
    "real, through the VAE": measure_accuracy(judge, prompts, reconstruct(pipeline, prompts.real)),
}
rows |= {
    f"drawn, w = {w}": measure_accuracy(judge, prompts, to_bytes(paint(prompts.captions, float(w)))) for w in (1, 5)
}
print(f"{'':24}{'attribute accuracy':>20}{'95 %':>20}")
for name, row in rows.items():
    print(f"{name:24}{row['accuracy']:>20.1%}{row['accuracy_low']:>13.1%} to {row['accuracy_high']:.1%}")
print(f"{'wrong captions':24}{chance_accuracy(judge, prompts)['accuracy']:>20.1%}")

# %% [markdown]
# With 24 prompts the intervals are wide; `python 04_latent_sd/evaluate.py` takes 200 of each kind, and its table stands in the
# [README](README.md). What can be seen here: that the words are heard at all, and whether the autoencoder costs the judge anything.
#
# ### A walk in the noise
#
# The promise of section 5. Two noises that become two pictures; between them a walk along the sphere (slerp, 球面插值; chapter 3), and at
# each stop the *same* prompt is drawn. DDIM-like samplers have no dice, so nearby noise becomes a nearby picture.


# %%
def slerp(a, b, share):
    """Between two noises, at their length. (C, h, w) twice -> (C, h, w)"""
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


walk = torch.linspace(0, 1, 9)
ends = {"a green grass creature": 4, "番茄炒蛋": 8}
rows = []
for prompt, seed in ends.items():
    a, b = Noise(seed, 0)(0, torch.empty(2, c, side, side))
    rows.append(
        pipeline.txt2img(
            [prompt] * 9,
            SamplingConfig(guidance_scale=5.0, sampler=FAST),
            latents=torch.stack([slerp(a, b, float(share)) for share in walk]),
        )
    )
show_images(torch.cat(rows), 9, across=[f"{share:.2f}" for share in walk.tolist()], cell=0.85)
print("rows:", "; ".join(ends))

# %% [markdown]
# Is there a double picture anywhere, as in section 5? Every stop should be a whole picture of its own, even where the walk jumps from one
# kind to another.

# %% [markdown]
# ## 10 · From a picture
#
# Sampling need not begin with noise. Take a picture, encode it, *noise it part of the way*, and let the model walk back from there, led
# by a prompt (SDEdit; [Meng et al. 2022](https://arxiv.org/abs/2108.01073)). How far up is called **strength** (强度). Little strength:
# only details are drawn anew. Much: next to nothing of the picture is left, and the prompt decides.
#
# Strength $s$ of a sampler with $N$ steps means to walk only the last $sN$ of them. But $sN$ need not be whole. Our code rounds,
# `diffusers` cuts off:
#
# $$\text{ours: first step} = N - \text{round}(sN) \qquad\qquad \texttt{diffusers}\text{: first step} = N - \text{int}(N s)$$


# %%
def theirs_walks(strength, steps):
    """How many steps diffusers walks (StableDiffusionImg2ImgPipeline.get_timesteps)."""
    return min(int(steps * strength), steps)


print("steps that are walked:" + "".join(f"{f's = {s:g}':>11}" for s in (0.1, 0.33, 0.5, 0.58, 0.75, 0.8, 1.0)))
for steps in (15, 20, 50):
    cells = [
        (len(last_levels(schedule.noise_levels(steps), s)), theirs_walks(s, steps))
        for s in (0.1, 0.33, 0.5, 0.58, 0.75, 0.8, 1.0)
    ]
    print(f"  of {steps}, ours | diffusers " + "".join(f"{f'{a} | {b}':>11}" for a, b in cells))
for steps in (20, 50):
    all_of_them = [s / 100 for s in range(5, 101)]
    unlike = [s for s in all_of_them if round(s * steps) != theirs_walks(s, steps)]
    print(
        f"of the strengths 0.05, 0.06, ... 1, {len(unlike)} of {len(all_of_them)} differ with {steps} steps, each by one step"
    )

# %% [markdown]
# Where $sN$ is a whole number the two agree, with one trap: $0.58 \cdot 50$ is 29, but computers multiply in binary, get
# 28.999999999999996, and `int` makes 28 of it. Where it is not, ours may walk one step more. (Exactly half-way Python's `round` takes the
# even number: 7.5 becomes 8, and 16.5 becomes 16.) So whoever compares pictures of two programs first compares the number of steps.
#
# Four pictures, a prompt for each, several strengths. To walk no step at all would be to encode and decode: the first column after the
# original.

# %%
strengths = (0.2, 0.4, 0.6, 0.8, 1.0)
changes = [  # which picture, and what it is to become
    ("creatures", 0, "a blue creature with bat wings"),
    ("creatures", 3, "一只绿色的草属性小怪兽"),
    ("dishes", 0, "番茄炒蛋"),
    ("dishes", 3, "a bowl of steamed rice on a red checked tablecloth"),
]
x_old, texts = torch.stack([tests[name][i] for name, i, _ in changes]), [text for *_, text in changes]
columns = [x_old, pipeline.decode(pipeline.encode(x_old))]
columns += [
    pipeline.img2img(x_old, texts, s, SamplingConfig(guidance_scale=5.0, sampler="dpmpp_2m:20")) for s in strengths
]
show_images(
    torch.stack(columns, 1).flatten(0, 1),
    len(columns),
    across=["original", "decoded", *(f"s = {s:g}" for s in strengths)],
    cell=1.0,
)
for i, text in enumerate(texts, 1):
    print(f"row {i}: {text}")
near = [
    f"{name} {psnr(x_old, y).mean():.1f} dB"
    for name, y in zip(("decoded", *map(str, strengths)), columns[1:], strict=True)
]
print("PSNR to the original, mean of the four:", ", ".join(near))

# %% [markdown]
# Follow a row from left to right. What stays longest? (Large forms and places: they are decided at much noise.) At which strength does
# the colour change, and at which the dish? At strength 1 it begins with noise: only the prompt is left. A good strength keeps what you
# like about the picture and still reaches what you ask for; chapter 5 measures it.

# %% [markdown]
# ## 11 · The folder
#
# Here is what the model is made of. It is the layout of Stable Diffusion, to the last file name.

# %%
for path in sorted(path for path in MODEL.rglob("*") if path.suffix in (".json", ".safetensors", ".txt")):
    print(f"{path.relative_to(MODEL)!s:52}{path.stat().st_size / 1e6:>8.2f} MB")

# %% [markdown]
# So `diffusers` ([its documentation](https://huggingface.co/docs/diffusers)) opens it, without knowing of this course. We give it the
# same words, the same noise and the same number of steps, and compare pixel by pixel. The two programs share PyTorch and nothing else:
# another U-Net, another reader of words, another sampler, another decoder.

# %%
from diffusers import StableDiffusionPipeline  # noqa: E402 - here and not at the top, for it takes a while

pipe = StableDiffusionPipeline.from_pretrained(MODEL)
pipe.set_progress_bar_config(disable=True)
prompts = [wishes[0], wishes[5], wishes[7]]
x = Noise(7, 0)(0, torch.empty(len(prompts), c, side, side))
ours = pipeline.txt2img(prompts, SamplingConfig(guidance_scale=5.0, sampler="ddim:20"), latents=x)
others = 2 * pipe(prompts, num_inference_steps=20, guidance_scale=5.0, latents=x, output_type="pt").images - 1
show_images(torch.cat([ours, others]), len(prompts), down=["this course", "diffusers"], cell=1.0)
print(
    f"{type(pipe.unet).__name__}, {type(pipe.vae).__name__}, {type(pipe.text_encoder).__name__}, {type(pipe.scheduler).__name__}"
)
print(f"largest difference of a pixel, of a range of 2: {(ours - others).abs().max():.1e}")

# %% [markdown]
# It also works the other way round: `python 04_latent_sd/sample.py "a castle" --model path/to/stable-diffusion-v1-5` draws with a real
# Stable Diffusion, through the modules that you have read. [README](README.md) has both, and `AutoPipelineForImage2Image` and
# `…Inpainting`.

# %% [markdown]
# ## 12 · Latents in a file, or on the fly
#
# The autoencoder does not change while the U-Net learns. So why encode the same picture in every epoch? One can encode all once and keep
# the latents in a file (**cache**, 缓存), mean and deviation of every cloud in half precision. You can read that *cached
# latents cost disk but save time, and that encoding on the fly needs worker processes* ([claims](../docs/claims.md#cached-latents-cost-disk-and-save-time)).
#
# The name of the file is a fingerprint (a hash, 哈希) of the autoencoder's weights, its build, and all pixels. So a file that was made with
# another autoencoder is never used by mistake: it simply has another name.

# %%
folder = tempfile.TemporaryDirectory()  # goes away with the notebook
began = time.perf_counter()
data = cached_latents(vae, known, Path(folder.name))
seconds_to_make, bytes_of_file = time.perf_counter() - began, data.path.stat().st_size
print(
    f"made in {seconds_to_make:.2f} s: {bytes_of_file / 1e6:.2f} MB, {bytes_of_file / known.pixels.numel():.2f} times the pixels as bytes"
)

changed = AutoencoderKL(vae.cfg).eval()
changed.load_state_dict(vae.state_dict())
with torch.no_grad():
    changed.quant_conv.bias[0] += 0.01
print(
    "another name if one weight changes:",
    cached_latents(changed, known, Path(folder.name)).path.name != data.path.name,
)
changed.cfg = replace(vae.cfg, scaling_factor=2 * vae.cfg.scaling_factor)
changed.load_state_dict(vae.state_dict())
print(
    "another name if the scaling factor changes:",
    cached_latents(changed, known, Path(folder.name)).path.name != data.path.name,
)


def epoch(source, order):
    """Seconds until every latent has been handed out once, in batches."""
    began = time.perf_counter()
    for _ in range(len(known) // 24):
        batch = source.batch(next(order))
    return time.perf_counter() - began, batch


def order():
    """Which images come when: as the training loop takes them."""
    return training_order(len(known), 24, seed=0)


live = OnTheFly(vae, known)
(seconds_file, a), (seconds_live, b) = epoch(data, order()), epoch(live, order())
print(
    f"an epoch of {len(known)} pictures: from the file {1000 * seconds_file:.1f} ms, "
    f"on the fly {1000 * seconds_live:.1f} ms: {seconds_live / seconds_file:.0f} times as long"
)
print(
    f"largest difference between the two: {(a['latent'] - b['latent']).abs().max():.1e} (the file has half precision)"
)
saved = seconds_live - seconds_file
print(
    f"the file is paid for in epoch {math.ceil(seconds_to_make / saved)}"
    if saved > 0
    else "the file saves no time here"
)

# %% [markdown]
# These are the seconds that a network would wait if it were infinitely fast. Three things the file cannot do: it takes disk (of large
# sets of photographs, a lot); its latents are of *one* version of each picture, so there is no mirroring or cropping anew; and it must be
# made before the training begins.
#
# On the fly, **worker processes** (工作进程) encode the next batches while the network learns from this one. How do they begin? `fork` copies
# the process as it stands, at once. But a process that has used a GPU must not be forked: the connection to the GPU belongs to the
# process that opened it, and the copy gets handles that lead nowhere. Then `spawn` is needed, which starts a new Python (seconds, and
# some hundred megabytes each) to which everything must be sent. ([latent_dataset.py](latent_sd/latent_dataset.py) tells the story in full.)

# %%
print(
    "on this machine workers begin by",
    start_method("cpu"),
    "without a GPU, and by",
    start_method("cuda"),
    "with one\n",
)
command = [
    "benchmark_latents.py",
    "--vae",
    "pretrained",
    "--n",
    "100",
    "--epochs",
    "2",
    "--workers",
    "0",
    "1",
    "--device",
    "cpu",
]
environment = os.environ | {"PYTHONPATH": str(CHAPTER.parent), "PYTHONIOENCODING": "utf-8"}
run = subprocess.run(
    [sys.executable, *command], cwd=CHAPTER, env=environment, capture_output=True, encoding="utf-8", check=False
)
print("python", *command, "\n")
print(run.stdout or run.stderr)

# %% [markdown]
# Each way has a process of its own here, and memory is the most that it and its workers held at one moment; Python and PyTorch are the
# larger part of it, and each worker brings them along (with `fork` they share what nobody changes). The file is mapped into memory: only
# what is asked for is read.
#
# Nothing is trained here, the batches are only waited for. So a worker has little to win: it does the same work on the same processor. It
# wins when a GPU is busy with the U-Net meanwhile, or when there are cores to spare. The table with more pictures and more workers, and
# a verdict, stand in the [README](README.md).

# %% [markdown]
# ## Where to go from here
#
# What to remember:
#
# * **Latent diffusion** is two models: one that writes pictures down in fewer numbers, and a diffusion model of these numbers. They are
#   trained one after the other, and never together.
# * A **VAE** says a cloud, not a point. The KL is the price of saying; $\beta$ decides how dear. For latent diffusion it is as good as
#   free.
# * What the autoencoder loses, nobody draws. Measure its **PSNR** first.
# * Latents of small $f$ are a picture in another alphabet, not a description.
# * Scale them to **unit variance**, before the noise; divide before the decoder; and never clip them.
# * Everything else is chapter 2: cross-attention, caption dropout, guidance.
# * **img2img** is sampling that begins half-way. Strength is where.
#
# Things to try in this notebook, each a change of a word or two:
#
# * In section 2, let $\beta$ be 0.1 and 10. Where does the collapse begin? And with `R = 0.2`?
# * In section 3, train with `KL = 1e-2`. What do the reconstructions cost, and how large are the latents then?
# * In section 5, take two dishes as a pair. Is the middle a dish?
# * In section 6, draw with a wrong factor: `vae.cfg = replace(vae.cfg, scaling_factor=2 * vae.cfg.scaling_factor)`, then `paint(wishes)`.
# * In section 9, ask for size 96: `paint(wishes, size=96)`. The U-Net runs at any size; does it draw one creature or several?
# * In section 10, change a dish into a creature. At which strength does it give in?
#
# Then build it yourself: eight [exercises](exercises/README.md), from the KL to a picture from words, with a grader: `python -m
# common.grade 04`. And with your own pictures, of any size: [README](README.md).
#
# The next chapter takes this model as it is and works on it with the tools of the professionals: fine-tuning, LoRA, ControlNet.
