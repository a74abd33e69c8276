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
# # Chapter 4 · Latent diffusion: a small Stable Diffusion
#
# English · [中文](lesson.zh.ipynb)
#
# The diffusion models of chapters 1 to 3 work on pixels, and pixels are expensive: twice the side means four times as many numbers, at every step of
# the sampler. Most of these numbers are redundant, because neighbouring pixels are similar.
#
# **Latent diffusion** ([Rombach et al. 2022](https://arxiv.org/abs/2112.10752)) therefore uses two models. An **autoencoder** compresses an image into
# fewer numbers, its **latents**, and reconstructs the image from them. A diffusion model then generates latents and never sees a pixel. With text
# as its condition this is Stable Diffusion. The model of this chapter is small, but it has the same parts and the same file format.
#
# In this lesson you
#
# 1. encode an image, look at its latents, and decode them;
# 2. measure what pixels cost, in time and memory;
# 3. derive the **variational autoencoder** (VAE), and find out why it needs a second model to generate;
# 4. train an autoencoder for images;
# 5. trade compression for quality;
# 6. find out what latents contain;
# 7. measure the **scaling factor**;
# 8. add noise to latents;
# 9. write training and sampling of latent diffusion;
# 10. generate images from text, and count what the prompts achieve;
# 11. start from an image instead of noise: **img2img**;
# 12. open the same folder with `diffusers`;
# 13. compare cached latents with encoding on the fly.
#
# You should have read chapters 1 and 2. Everything runs on a laptop's CPU without any download, in less than six minutes of CPU time. A Chinese
# translation of all terms is in the [glossary](../docs/glossary.md).
#
# > **Notation.** $x$ is an image and $z$ are its latents. The encoder $q_\phi(z\,|\,x)$, the decoder $p_\theta(x\,|\,z)$ and the prior
# > $p(z) = \mathcal{N}(0, I)$ are the densities of section 3. $z_0$ are clean latents, scaled to unit variance, and
# > $$z_t = \sqrt{\bar\alpha_t}\, z_0 + \sigma_t\, \varepsilon \qquad\text{with}\qquad \sigma_t = \sqrt{1-\bar\alpha_t}$$
# > are noisy latents, as in chapters 1 and 2 with $z$ in place of $x$. $f$ is the factor by which the encoder reduces the side of an image, and $c$ is the number of latent channels.

# %%
from common.grade.chapter import open_chapter  # no module named common? Select the course's kernel (README.md)

CHAPTER = open_chapter("04_latent_sd")  # this folder: its files can be imported from here on

# %%
import math
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common import viz
from common.data import load
from common.io.pixels import to_bytes, to_float
from latent_sd.pictures import show_codes, show_images, step_cost
from latent_sd.pipeline import open_latent_diffusion

plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
MODEL = CHAPTER / "pretrained"  # the model that comes with this chapter; a run of your own works as well


def random(*shape, seed=0):
    """Standard normal noise that is the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# %% [markdown]
# ## 1 · Encode, look, decode
#
# We open the model, take four images that it has not seen in training, and pass them through the autoencoder.

# %%
pipeline = open_latent_diffusion(MODEL)
vae, net, schedule, encoder = pipeline.vae, pipeline.unet, pipeline.schedule, pipeline.text_encoder
f, c, size = vae.cfg.factor, vae.cfg.latent_channels, pipeline.size  # f, latent channels, pixels a side
side = size // f  # positions a side of the latents
SHOWN = 6 if size <= 64 else 3  # columns of the larger figures

test = {name: to_float(load(name, size, split="test", n=32).pixels) for name in ("creatures", "dishes")}
x = torch.cat([test["creatures"][:2], test["dishes"][:2]])  # (4, 3, S, S) in [-1, 1]
with torch.no_grad():
    z = vae.scale(vae.encode(x).mode())  # encode: (4, c, S / f, S / f)
    y = vae.decode(vae.unscale(z)).clamp(-1, 1)  # decode: (4, 3, S, S)


def enlarged(z, channel):
    """One latent channel as grey images as large as x: 2.5 standard deviations are black or white."""
    grey = (z[:, channel : channel + 1] / (2.5 * z[:, channel].std())).clamp(-1, 1)
    return F.interpolate(grey, scale_factor=float(f)).expand(-1, 3, -1, -1)


print(f"image {tuple(x.shape[1:])}: {x[0].numel():,} numbers")
print(f"latents {tuple(z.shape[1:])}: {z[0].numel():,} numbers, {x[0].numel() / z[0].numel():.0f} times fewer")
rows = [x, *(enlarged(z, i) for i in range(c)), y, (3 * (y - x)).clamp(-1, 1)]
show_images(
    torch.cat(rows),
    4,
    down=["image", *(f"latent channel {i + 1}" for i in range(c)), "decoded", "difference\n(3 times)"],
)

# %% [markdown]
# The side becomes $f$ times smaller, and there are $c$ channels instead of three. The latents look like small, odd images of the same scene: each position stands for a
# patch of $f \times f$ pixels. The decoder turns them back into an image that is close to the original.
#
# **Question.** Where is the difference largest (grey means none)?
#
# <details><summary>Answer</summary>
#
# In the fine texture of the food: grains, leaves, seeds. Edges and small parts such as eyes come next, and large areas of one colour are reconstructed almost exactly. What the autoencoder
# cannot reconstruct, the diffusion model cannot generate, because there are no latents for it.
#
# </details>
#
# The usual measure of the error is the **peak signal-to-noise ratio** in decibels. Images in $[-1, 1]$ have a range (peak) of 2:
#
# $$\mathrm{PSNR} = 10 \log_{10} \frac{2^2}{\text{mean squared error}} \tag{1}$$
#
# At 20 dB the error is a tenth of the range, and 6 dB more halve the error. For comparison we use a trivial compression with as many numbers: shrink the image, and enlarge it again.


# %%
def psnr(x, y):
    """Formula (1), image by image. (N, 3, S, S) twice -> (N,)"""
    return 10 * torch.log10(4 / (x - y).square().mean((1, 2, 3)))


def shrunk(x, n):
    """Shrunk to n x n pixels and enlarged again."""
    return F.interpolate(F.interpolate(x, n, mode="area"), x.shape[-1], mode="bicubic").clamp(-1, 1)


same_size = round((c * side**2 / 3) ** 0.5)  # pixels a side of an RGB image that has as many numbers as the latents
for name, images in test.items():
    found = psnr(images, pipeline.decode(pipeline.encode(images)))
    print(
        f"{name:10} autoencoder {found.mean():.2f} dB (worst of {len(images)}: {found.min():.2f}), "
        f"shrunk to {same_size} x {same_size} pixels {psnr(images, shrunk(images, same_size)).mean():.2f} dB"
    )

# %% [markdown]
# So the encoder does much better than shrinking with the same number of values. The PSNR of the autoencoder is an upper limit for everything that follows, and the first thing to
# measure about a latent diffusion model.

# %% [markdown]
# ## 2 · What pixels cost
#
# We time one training step, forward and backward, with four images, for three networks: the latent U-Net; the *same* U-Net on pixels; and a fairer pixel U-Net with two more downsampling
# stages, so that attention runs at low resolution. We also count the **activations**: all bytes that the forward pass must keep for the backward pass. They grow with the
# batch, so they decide how large a batch fits into memory.

# %%
from common.models.unet import UNet
from common.models.unet_config import text_unet

widths, words = net.cfg.channels, random(4, encoder.length, encoder.dim)
candidates = {
    "latents": text_unet(side, c, widths, encoder.dim),
    "pixels, the same network": text_unet(size, 3, widths, encoder.dim),
    "pixels, two more stages": text_unet(size, 3, (*widths, widths[-1], widths[-1]), encoder.dim),
}
costs = {
    name: step_cost(UNet(cfg), random(4, cfg.in_channels, cfg.size, cfg.size), words)
    for name, cfg in candidates.items()
}
print(f"{'one training step of 4 images':32}{'seconds':>10}{'ratio':>8}{'activations':>14}{'ratio':>8}")
for name, (seconds, kept) in costs.items():
    ratios = seconds / costs["latents"][0], kept / costs["latents"][1]
    print(f"{name:32}{seconds:>10.3f}{ratios[0]:>8.1f}{kept / 1e6:>11.1f} MB{ratios[1]:>8.1f}")

# %% [markdown]
# (The seconds belong to the machine that ran the notebook; the bytes are counted and do not depend on it.)
#
# **Question.** The images have $f^2$ times as many positions as the latents. Why is the second row more than $f^2$ times as slow?
#
# <details><summary>Answer</summary>
#
# Attention compares every position with every other, so $f^2$ times as many positions make $f^4$ times as many pairs. In the second row attention dominates. The third row avoids it, and is
# the fairer comparison: it still costs several times as much as the latents.
#
# </details>
#
# The autoencoder has a cost, too. Training needs the encoder once for each image, and sampling needs the decoder once for each image. A sampler, however, evaluates the U-Net 20 or 50 times.

# %%
with torch.no_grad():
    parts = {
        "encode": lambda: vae.encode(x),
        "one evaluation of the U-Net": lambda: net(z, torch.full((4,), 500.0), text=random(4, *words.shape[1:])),
        "decode": lambda: vae.decode(z),
    }
    for name, work in parts.items():
        work()
        began = time.perf_counter()
        work()
        print(f"{name:28} {1000 * (time.perf_counter() - began) / 4:6.1f} ms for each image")

# %% [markdown]
# ## 3 · The variational autoencoder
#
# An autoencoder is two networks. The **encoder** maps an image to a few numbers $z$, the decoder maps $z$ to an image $y$, and both are trained together so that $y$ is close to the input $x$.
# To see what else is needed, we take the smallest example: the digits of scikit-learn with $8 \times 8$ pixels, and only two latents, so that every image is a point in the plane.
#
# ### A distribution for each image
#
# A variational autoencoder ([Kingma & Welling 2014](https://arxiv.org/abs/1312.6114)) encodes an image as a normal distribution, with a mean $\mu$ and a standard deviation $s$ for each latent:
#
# $$q_\phi(z\,|\,x) = \mathcal{N}\big(z;\; \mu(x),\; s(x)^2\big) \qquad\qquad z = \mu(x) + s(x)\,\varepsilon \quad\text{with}\quad \varepsilon \sim \mathcal N(0, I) \tag{2}$$
#
# The decoder must reconstruct the image from *every* likely $z$, so neighbouring points of the plane must mean similar images. The right-hand side of (2) is the **reparameterisation trick**:
# with the randomness in a separate input $\varepsilon$, $z$ is an ordinary function of $\mu$ and $s$, and gradients pass through it. We test it where the answer is known. The mean of $z^2$ is $\mu^2 + s^2$, so its derivatives are $2\mu$ and $2s$.

# %%
mu, s = torch.tensor(0.7, requires_grad=True), torch.tensor(0.5, requires_grad=True)
(mu + s * random(100_000)).square().mean().backward()
print(f"with the trick:           d/dmu {mu.grad:.3f} (theory {2 * mu:.3f}), d/ds {s.grad:.3f} (theory {2 * s:.3f})")
mu.grad, s.grad = None, None
torch.normal(mu.expand(1000), s.expand(1000)).square().mean().backward()
print(f"with torch.normal(mu, s): d/dmu {mu.grad:.3f}, d/ds {s.grad:.3f}")

# %% [markdown]
# `torch.normal` draws from the same distribution, but the encoder would learn nothing from it.
#
# ### Where the loss comes from
#
# The VAE is a generative model: draw $z$ from the prior $p(z) = \mathcal{N}(0, I)$, decode it, and add a little noise of standard deviation $r$ to the pixels. So $p_\theta(x\,|\,z) = \mathcal{N}(x;\, y(z),\, r^2 I)$, where $y(z)$ is the output of
# the decoder. Its density $p_\theta(x) = \int p_\theta(x\,|\,z)\,p(z)\,dz$ cannot be computed, but it has the same bound as in chapter 1, with a single latent variable $z$ in place of $x_{1:T}$. Multiply and divide by $q_\phi(z\,|\,x)$, and use Jensen's inequality:
#
# $$-\log p_\theta(x) = -\log \mathbb{E}_q\!\left[\frac{p_\theta(x\,|\,z)\,p(z)}{q_\phi(z\,|\,x)}\right] \;\le\; \mathbb{E}_q\!\left[-\log\frac{p_\theta(x\,|\,z)\,p(z)}{q_\phi(z\,|\,x)}\right] =: L$$
#
# $-L$ is the **evidence lower bound** (ELBO). Split the logarithm. The part with $p_\theta(x\,|\,z)$ is a squared error, and the rest is a Kullback–Leibler divergence $D_{\mathrm{KL}}(q\,\|\,p) = \mathbb{E}_q[\log(q/p)]$:
#
# $$L = \underbrace{\frac{1}{2 r^2}\,\mathbb{E}_q\, |x - y(z)|^2}_{\text{reconstruction}} \;+\; \underbrace{D_{\mathrm{KL}}\big(q_\phi(z\,|\,x)\,\|\,p(z)\big)}_{\text{information in } z} \;+\; \text{constant} \tag{3}$$
#
# How large is the gap? $L + \log p_\theta(x) = D_{\mathrm{KL}}\big(q_\phi(z\,|\,x)\,\|\,p_\theta(z\,|\,x)\big)$: insert $p_\theta(x\,|\,z)\,p(z) = p_\theta(z\,|\,x)\,p_\theta(x)$ to see it. So the encoder approximates the posterior of the decoder.
#
# For the normal distribution (2) the divergence has a closed form. For one latent, $-\log q = \frac{(z-\mu)^2}{2s^2} + \log s$ and $-\log p = \frac{z^2}{2}$, up to the same constant. Under $q$, the mean of $(z-\mu)^2$ is $s^2$ and the mean of $z^2$ is $\mu^2 + s^2$. So
#
# $$D_{\mathrm{KL}} = \mathbb{E}_q[\log q - \log p] = -\tfrac12 - \log s + \tfrac12(\mu^2 + s^2) = \tfrac12\left(\mu^2 + s^2 - 1 - \log s^2\right) \tag{4}$$
#
# summed over all latents. The unit is the *nat*, which is 1.44<!--given--> bits. A check by **Monte Carlo**, the mean of $\log q - \log p$ over samples of $q$:

# %%
from common.models.vae import Gaussian

posterior = Gaussian(torch.tensor([[1.2]]), torch.tensor([[0.4]]).square().log())  # mean, log of the variance
q, p = torch.distributions.Normal(1.2, 0.4), torch.distributions.Normal(0, 1)
z = posterior.sample(random(100_000, 1))
print(
    f"formula (4): {float(posterior.kl()):.3f} nats, Monte Carlo: {float((q.log_prob(z) - p.log_prob(z)).mean()):.3f}"
)

# %% [markdown]
# ### The weight β
#
# In practice the divergence gets a weight:
#
# $$\text{loss} = \frac{1}{2 r^2}\,|x - y(z)|^2 \;+\; \beta\; D_{\mathrm{KL}}\big(q_\phi(z\,|\,x)\,\|\,\mathcal{N}(0, I)\big) \tag{5}$$
#
# Divide (5) by $\beta$, and the first factor becomes $\frac{1}{2 (\sqrt\beta\, r)^2}$. So the minimum of (5) is that of the bound (3) for a decoder with pixel noise $\sqrt\beta\, r$: the choice of $\beta$ is the choice of how exactly pixels
# should be reconstructed.
#
# > **In the papers.** (4) is appendix B of Kingma & Welling, and the reparameterisation is their section 2.4. The weight $\beta$ is from the β-VAE ([Higgins et al. 2017](https://openreview.net/forum?id=Sy2fzU9gl)).
#
# We train three autoencoders with two latents each: $\beta = 0$, 1 and 100.

# %%
digits = load("digits")
x_digits, labels = digits.batch(torch.arange(len(digits)))["image"].flatten(1), digits.labels  # (N, 64), (N,)
x_held_out = load("digits", split="test").batch(torch.arange(299))["image"].flatten(1)  # not trained on
R, BETAS = 0.4, (0, 1, 100)


def train_vae(beta, latents, steps=1000):
    """An autoencoder of the digits with this many latents. Returns encode (x -> q) and decode (z -> y)."""
    torch.manual_seed(0)
    to_q = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 2 * latents))
    decode = nn.Sequential(nn.Linear(latents, 128), nn.SiLU(), nn.Linear(128, 64))
    optimizer = torch.optim.Adam([*to_q.parameters(), *decode.parameters()], 3e-3)
    for _ in range(steps):
        x = x_digits[torch.randint(len(x_digits), (128,))]
        q = Gaussian(*to_q(x).chunk(2, 1))  # mean and log variance
        y = decode(q.sample(torch.randn(128, latents)))
        loss = ((x - y).square().sum(1) / (2 * R**2) + beta * q.kl()).mean()  # (5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.no_grad()(lambda x: Gaussian(*to_q(x).chunk(2, 1))), torch.no_grad()(decode)


plane = {beta: train_vae(beta, latents=2) for beta in BETAS}
show_codes({beta: encode(x_digits) for beta, (encode, _) in plane.items()}, labels)

# %% [markdown]
# Each point is the mean $\mu$ of a digit; the networks were not given the labels. The small black ellipses are some of the posteriors $q_\phi(z\,|\,x)$ (one standard deviation), and the dashed circle holds 95 % of the prior $\mathcal{N}(0, I)$. Mind the
# scales of the axes.
#
# * **$\beta = 0$**: nothing limits the codes. They spread far beyond the circle, and the posteriors shrink to points.
# * **$\beta = 1$**: the posteriors lie side by side and together fill the circle.
# * **$\beta = 100$**: information is too expensive. All posteriors have become the prior, so $z$ contains nothing about $x$, and the decoder can only answer with the mean of all digits. This is **posterior collapse**.
#
# ### Can it generate?
#
# To generate, draw $z$ from $\mathcal{N}(0, I)$ and decode. Two latents are too few for good digits, so we train three more autoencoders with eight latents. Besides looking, we measure a distance: the Fréchet distance of chapter 1 between 2,000 samples and the
# training digits, on the pixels themselves. The last line shows what other real digits reach.

# %%
from common.evaluate.distances import Frechet

to_training_digits = Frechet(x_digits.double())
eight = {beta: train_vae(beta, latents=8) for beta in BETAS}
noise = random(2000, 8, seed=1)
rows = []
print(
    f"{'beta':>6}{'pixel error':>14}{'KL, nats':>11}{'sd of the codes':>18}{'sd of a posterior':>20}{'Fréchet distance of samples':>30}"
)
for beta, (encode, decode) in eight.items():
    q = encode(x_held_out)
    reconstructed, samples = decode(q.sample(random(299, 8))), decode(noise)
    error, std = (reconstructed - x_held_out).square().mean().sqrt(), (q.logvar / 2).exp().mean()
    print(
        f"{beta:>6}{error:>14.3f}{q.kl().mean():>11.2f}{q.mean.std():>18.2f}{std:>20.3f}"
        f"{to_training_digits(samples.double()):>30.2f}"
    )
    rows += [x_held_out[:12], reconstructed[:12].clamp(-1, 1), samples[:12].clamp(-1, 1)]
print(f"other real digits{to_training_digits(x_held_out.double()):>82.2f}")
names = [f"β = {beta}, {what}" for beta in BETAS for what in ("real", "reconstructed", "sampled")]
show_images(torch.cat(rows).view(-1, 1, 8, 8), 12, down=names)

# %% [markdown]
# **Question.** Which $\beta$ reconstructs best, and which samples best? Why not the same?
#
# <details><summary>Answer</summary>
#
# $\beta = 0$ has the smallest pixel error, and a distance of 16<!--out--> for its samples. The codes have a standard deviation above 2<!--out-->, and in eight dimensions samples of $\mathcal{N}(0, I)$ hardly meet them, so the decoder gets points that it was never trained on. With
# $\beta = 1$ the distance falls to 1.9<!--out-->, and the pixel error rises. $\beta = 100$ collapses: all samples are the same mean digit.
#
# </details>
#
# ### The idea of this chapter in miniature
#
# Good reconstructions need a small $\beta$, and sampling from $\mathcal{N}(0, I)$ needs a large one. Latent diffusion does not choose: it takes a very small $\beta$, and then **learns the distribution of the codes** with a
# second model. Here this second model is a diffusion model of eight numbers, trained as in chapters 1 and 2 on the codes of the autoencoder with $\beta = 0$. As the simplest alternative, we also fit a normal distribution with the mean and the covariance of the codes.

# %%
encode, decode = eight[0]
codes = encode(x_digits).mean
mean, std = codes.mean(0), codes.std(0)
z0_digits = (codes - mean) / std  # unit variance: section 7

torch.manual_seed(0)
denoiser = nn.Sequential(nn.Linear(8 + 16, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 8))
frequencies = torch.arange(1, 9) * math.pi / 2


def predict_v(z_t, angle):
    """v for codes z_t (B, 8) at the noise level sqrt(alpha_bar) = cos(angle), sigma = sin(angle), with angle (B, 1)."""
    return denoiser(torch.cat([z_t, (angle * frequencies).sin(), (angle * frequencies).cos()], 1))


optimizer, STEPS = torch.optim.Adam(denoiser.parameters(), 2e-3), 1200
for step in range(STEPS):
    optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / STEPS)
    z0 = z0_digits[torch.randint(len(z0_digits), (256,))]
    angle, eps = torch.rand(256, 1) * math.pi / 2, torch.randn(256, 8)
    z_t, v = angle.cos() * z0 + angle.sin() * eps, angle.cos() * eps - angle.sin() * z0
    loss = (predict_v(z_t, angle) - v).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

z_t = noise
with torch.no_grad():
    for angle, then in pairwise(torch.linspace(math.pi / 2, 0, 51)):  # DDIM with 50 steps
        v = predict_v(z_t, angle.expand(len(z_t), 1))
        z0, eps = angle.cos() * z_t - angle.sin() * v, angle.sin() * z_t + angle.cos() * v
        z_t = then.cos() * z0 + then.sin() * eps

root = torch.linalg.cholesky(torch.cov(codes.T))
sampled = {
    "z from N(0, I)": decode(noise),
    "z from a fitted normal": decode(mean + noise @ root.T),
    "z from a diffusion model": decode(mean + std * z_t),
}
for name, y in sampled.items():
    print(f"{name:28} Fréchet distance {to_training_digits(y.double()):6.2f}")
show_images(torch.cat([y[:12].clamp(-1, 1) for y in sampled.values()]).view(-1, 1, 8, 8), 12, down=list(sampled))

# %% [markdown]
# The same decoder, three ways to choose $z$. The fitted normal is better than $\mathcal{N}(0, I)$, but the codes of ten kinds of digit are not one normal cloud. The diffusion model learns their shape, and its samples come closest to the
# real digits: 1.0<!--out-->, where the VAE with $\beta = 1$ has 1.9<!--out-->, and its reconstructions are better, too. So a second model makes the compromise unnecessary. The rest of the chapter does this with images.

# %% [markdown]
# ## 4 · Train an autoencoder for images
#
# For images, encoder and decoder are convolutional ([vae.py](../common/models/vae.py)), and $z$ is a small image itself, with $c$ channels. To train one in a short time we take $16 \times 16$ pixels, $f = 2$, a narrow network, 300
# creatures and 100 dishes.
#
# The loss is (5), with both terms as means over the pixel values: the mean squared error, plus $\lambda = 10^{-6}$ times the divergence. Compare with (5) at $\beta = 1$: $\frac{1}{2r^2} = \frac{1}{\lambda}$, so $r = \sqrt{\lambda/2} = 0.0007$, a tenth of one grey level of 256. With
# reconstructions that exact, the encoder may transmit as much information as it likes.
#
# Where the decoder cannot know a detail, the squared error is smallest for the mean of all possibilities, which is a blur. Stable Diffusion's autoencoder therefore has two more terms. The *perceptual* term compares features of a network instead of pixels, so
# a stripe that is displaced by one pixel costs little. The *adversarial* term trains a second network to distinguish patches of images from patches of reconstructions. Both prefer a plausible image to the mean. [vae_loss.py](../common/training/vae_loss.py) has them
# (`train_vae.py --perceptual 0.1`, `--adversarial 0.5`); the shipped weights and this section do without.

# %%
from common.models.vae import AutoencoderKL, measure_scaling_factor, small_vae
from common.training.vae_loss import vae_loss
from latent_sd.concat_dataset import joined

small_set = joined([load("creatures", 16, n=300), load("dishes", 16, n=100)])
held_out = joined([load("creatures", 16, split="test", n=8), load("dishes", 16, split="test", n=4)])
x_test = to_float(held_out.pixels)
STEPS, KL, LR = 400, 1e-6, 3e-3

torch.manual_seed(0)
small = AutoencoderKL(small_vae(16, 3, (16, 32)))
optimizer = torch.optim.AdamW(small.parameters(), LR)
history, snapshots, began = [], {}, time.perf_counter()
for step in range(1, STEPS + 1):
    optimizer.param_groups[0]["lr"] = LR * min(step / 20, math.cos(math.pi / 2 * step / STEPS) + 0.01)
    x = to_float(small_set.pixels[torch.randint(len(small_set), (16,))])  # (B, 3, 16, 16)
    y, q = small(x, torch.randn(16, 4, 8, 8))  # encode, draw z by (2), decode
    terms = vae_loss(x, y, q, "l2", KL)
    optimizer.zero_grad()
    terms.total.mean().backward()
    nn.utils.clip_grad_norm_(small.parameters(), 1.0)
    optimizer.step()
    history.append((terms.pixels.mean().item(), terms.kl.mean().item()))
    if step in (20, STEPS // 8, STEPS // 3, STEPS):
        with torch.no_grad():
            snapshots[step] = small.decode(small.encode(x_test).mode())
print(f"{STEPS} steps in {time.perf_counter() - began:.0f} s; {sum(p.numel() for p in small.parameters()):,} weights")
for step, y in snapshots.items():
    print(f"step {step:4}: PSNR of images that it was not trained on {psnr(x_test, y).mean():.1f} dB")
show_images(torch.cat([x_test, *snapshots.values()]), 12, down=["image", *(f"step {step}" for step in snapshots)])

# %%
pixel_error, kl = np.array(history).T
_, axes = plt.subplots(1, 2, figsize=(9, 2.4), layout="constrained")
for axis, values, label in zip(
    axes, (pixel_error, kl), ("mean squared error", "KL, nats per pixel value"), strict=True
):
    axis.plot(values, color="0.85", linewidth=0.5)
    axis.plot(viz.smooth(values, 0.06), label="smoothed")
    axis.set(xlabel="training step", ylabel=label)
axes[0].set_yscale("log")
axes[0].legend()
plt.show()

# %% [markdown]
# **Question.** In which order does the decoder learn brightness, shapes, colours and eyes? And in which direction does the divergence go?
#
# <details><summary>Answer</summary>
#
# Brightness and large shapes come first, then colours, and small parts such as eyes last. The divergence *rises* while the error falls: to reconstruct more, the encoder must transmit more, and with this small weight it costs almost nothing.
#
# The learning rate falls to zero at the end, so every such curve becomes flat there. A flat end is no evidence that the network has reached a limit.
#
# </details>

# %% [markdown]
# ## 5 · How much compression?
#
# $f$ and $c$ decide how many numbers an image gets. More numbers give better reconstructions, and leave more work for the diffusion model. To see the trade, we use the best *linear* autoencoder, which needs no training: cut images into patches of $f \times f$ pixels,
# and keep the $c$ directions in which patches vary most (**principal component analysis**).


# %%
known = joined([load("creatures", size, n=120), load("dishes", size, n=120)])  # training images
x_known, x_all_tests = to_float(known.pixels), torch.cat(list(test.values()))


def linear_autoencoder(f, channels):
    """PSNR on the test images of the best linear code with each number of channels, fitted to the training images."""

    def patches(x):
        return F.pixel_unshuffle(x, f).permute(0, 2, 3, 1).flatten(0, 2)  # (N positions, 3 f f)

    training, found = patches(x_known), []
    mean = training.mean(0)
    directions = torch.linalg.eigh(torch.cov(training.T)).eigenvectors.flip(1)  # largest variance first
    centred = patches(x_all_tests) - mean
    for k in channels:
        y = (centred @ directions[:, :k]) @ directions[:, :k].T + mean
        y = y.view(len(x_all_tests), size // f, size // f, -1).permute(0, 3, 1, 2)
        found.append(float(psnr(x_all_tests, F.pixel_shuffle(y, f)).mean()))
    return found


plt.figure(figsize=(6.5, 3.2), layout="constrained")
for factor in (2, 4, 8):
    channels = [k for k in (1, 2, 3, 4, 8, 16, 32, 64) if k < 3 * factor**2]
    numbers, found = [k * (size // factor) ** 2 for k in channels], linear_autoencoder(factor, channels)
    (curve,) = plt.plot(numbers, found, marker="o", markersize=4, label=f"linear, f = {factor}")
    for k, number, value in zip(channels, numbers, found, strict=True):
        where = (-6, 5) if factor == 8 else (3, -10)
        plt.annotate(f"{k}", (number, value), where, textcoords="offset points", fontsize=7, color=curve.get_color())
    if factor == f:
        linear = found[channels.index(c)]
ours = float(psnr(x_all_tests, pipeline.decode(pipeline.encode(x_all_tests))).mean())
plt.plot(
    c * side**2,
    ours,
    marker="*",
    markersize=13,
    color="black",
    linestyle="",
    label=f"this chapter's, f = {f}, c = {c}",
)
plt.axvline(3 * size**2, color="0.7", linestyle=":", label="pixels")
plt.gca().set(xscale="log", xlabel="numbers for each image (small figures: c)", ylabel="PSNR, dB")
plt.legend(fontsize=8)
plt.show()
print(f"with f = {f} and c = {c}: linear {linear:.1f} dB, this chapter's autoencoder {ours:.1f} dB")

# %% [markdown]
# Along each line, more channels cost numbers and gain decibels. With the *same* amount of numbers larger patches are better, because a larger patch contains more redundancy. This is one reason why large images are encoded with $f = 8$: Stable Diffusion has
# $4 \times 64 \times 64$ latents for $512 \times 512$ pixels, and later models use 16 channels.
#
# The star is the autoencoder of this chapter. It is not restricted to linear maps or to its own patch, and lies above the linear code with the same $f$ and $c$ by the number of decibels that the last line gives.

# %% [markdown]
# ## 6 · What latents contain
#
# The latents have $c$ channels. For a quick look without the decoder, find the best linear map from the channels of a position to the mean colour of its patch, by least squares. Many programs show this cheap **preview** during sampling.

# %%
z_test = pipeline.encode(torch.cat([test["creatures"][:4], test["dishes"][:4]]))  # (8, c, h, w), scaled: section 7
z_known = pipeline.encode(x_known)  # (240, c, h, w)


def with_one(z):
    """The channels of each position, and a one. (N, c, h, w) -> (N h w, c + 1)"""
    return F.pad(z.permute(0, 2, 3, 1).flatten(0, 2), (0, 1), value=1.0)


colours = F.avg_pool2d(x_known, f).permute(0, 2, 3, 1).flatten(0, 2)  # (N h w, 3) mean colour of each patch
to_colour = torch.linalg.lstsq(with_one(z_known), colours).solution  # (c + 1, 3)


def preview(z):
    """(N, c, h, w) -> (N, 3, f h, f w): an approximate image of latents, without the decoder."""
    rough = (with_one(z) @ to_colour).view(len(z), *z.shape[2:], 3).permute(0, 3, 1, 2)
    return F.interpolate(rough.clamp(-1, 1), scale_factor=float(f))


decoded = pipeline.decode(z_test)
show_images(torch.cat([preview(z_test), decoded]), 8, down=["preview", "decoded"])

# %% [markdown]
# The creature is still in its place: convolutions do not move things. So latents are *not* a description such as "red, round, bat wings". They are a small image in other coordinates. What does each channel stand for? We move one channel of one image
# everywhere by $-3$ to $3$ of its standard deviations, and decode (**latent traversal**).

# %%
channel_std = z_known.std((0, 2, 3), correction=0)  # (c,)
shifts = torch.linspace(-3, 3, 3)
directions = torch.diag(channel_std)[:, None, :, None, None]  # (c rows, 1, c, 1, 1)
moved = z_test[:1] + shifts.view(-1, 1, 1, 1) * directions  # (c rows, 3, c, h, w)
show_images(
    pipeline.decode(moved.flatten(0, 1)),
    3,
    across=[f"{shift:+g} sd" for shift in shifts],
    down=[f"channel {i + 1}" for i in range(c)],
)

# %% [markdown]
# The middle column is the plain reconstruction. **Question.** Which channels change brightness, and which change colour? Does any channel change a property such as wings?
#
# <details><summary>Answer</summary>
#
# With the weights shown here, one channel mainly changes the brightness, and each of the others moves all colours between two opposites, such as green and magenta, or blue and yellow. Which channel does what is an accident of training. The shapes stay where they are, and no channel adds or
# removes a part. At $\pm 3$ the decoder leaves the range that it was trained on, and colours become extreme.
#
# </details>
#
# ### Half-way between two images
#
# In the plane of section 3 one could hope that half-way between two digits lies a digit. We compare two transitions: mixing the pixels (a cross-fade), and mixing the latents and decoding.

# %%
pairs, shares, rows = [(0, 1), (2, 7)], torch.linspace(0, 1, 5).view(-1, 1, 1, 1), []
for a, b in pairs:
    rows += [
        (1 - shares) * decoded[a] + shares * decoded[b],
        pipeline.decode((1 - shares) * z_test[a] + shares * z_test[b]),
    ]
for (a, b), faded, mixed in zip(pairs, rows[::2], rows[1::2], strict=True):
    middle, ends = ((u - v).square().mean().sqrt() for u, v in ((faded[2], mixed[2]), (decoded[a], decoded[b])))
    print(f"half-way, the two rows differ by {middle:.3f} (root mean square); the two images differ by {ends:.3f}")
show_images(
    torch.cat(rows),
    5,
    across=[f"{float(share):.2f}" for share in shares.flatten()],
    down=["pixels", "latents"] * len(pairs),
)

# %% [markdown]
# Mixed latents look sharper than mixed pixels, because the decoder draws clear edges wherever one of the two images dominates. But the middle is a double exposure in both rows, not a third creature: the printed numbers say that the rows differ much less from each other than the two images do. An autoencoder
# with small $f$ compresses; it does not arrange images by meaning. In section 10 we interpolate the *noise* of the diffusion model instead.

# %% [markdown]
# ## 7 · The scaling factor
#
# A noise schedule counts noise in units of one: it assumes data with a standard deviation of about 1. Images in $[-1, 1]$ are close to that. Latents are not, because a very small $\beta$ leaves their size to chance. So we measure the standard deviation $d$ of the encoder's
# latents over the training set, and multiply them by the **scaling factor** $1/d$ (Rombach et al. 2022, appendix G):

# %%
with torch.no_grad():
    q = vae.encode(x_known)
    raw = q.sample(random(*q.mean.shape))  # unscaled
print(f"sd of the encoder's latents {raw.std():.3f}, so the factor is {measure_scaling_factor(raw):.4f}")
print(f"factor stored with the model (measured on its whole training set) {vae.cfg.scaling_factor:.4f}")
print("scaled, channel by channel:", ", ".join(f"{s:.2f}" for s in vae.scale(raw).std((0, 2, 3))))
for name, images in test.items():
    print(f"scaled, test images of {name}: {pipeline.encode(images).std():.3f}")
print(f"mean sd of a posterior, scaled: {vae.scale((q.logvar / 2).exp()).mean():.3f}")

# %% [markdown]
# One factor for all channels and all data sets makes none of them exactly 1, which is good enough. (Stable Diffusion's factor is 0.18215<!--given-->, so its encoder's latents have a standard deviation above 5.) The last line shows how little is left of the V in this VAE: compare it
# with the posterior at $\beta = 1$ in section 3.
#
# What happens without scaling? If the latents have standard deviation $d$, then noisy latents are $\sqrt{\bar\alpha_t}\, d\, z_0 + \sigma_t\, \varepsilon$, and the signal-to-noise ratio is $d^2$ times what the schedule assumes. Below are the same latents at five sizes, all at the noise level
# $t = 600$, divided by $\sqrt{\bar\alpha_t}\,d$ and decoded:

# %%
from common.diffusion.schedules import NoiseLevel, add_noise

sizes, t = (0.1, 0.3, 1.0, 3.0, 10.0), 600
level = NoiseLevel(*(float(part) for part in schedule.at(torch.tensor(t))))
rows, eps = [], random(*z_test[3:5].shape, seed=3)
for d in sizes:
    noisy = add_noise(d * z_test[3:5], eps, level)
    rows.append(pipeline.decode(noisy / (d * level.alpha)))
show_images(torch.cat([decoded[3:5], *rows]), 2, down=["no noise", *(f"d = {d:g}" for d in sizes)])

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(11, 2.7), layout="constrained")
ts = torch.arange(1, schedule.T + 1)
for d in sizes:
    signal, noise_power = (schedule.alpha[ts] * d) ** 2, schedule.sigma[ts] ** 2
    left.plot(ts, signal / (signal + noise_power), label=f"d = {d:g}")
left.set(xlabel="timestep t", ylabel="share of the signal in $z_t$")
left.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
snr = (schedule.alpha[ts] / schedule.sigma[ts]).square()
useful = [float(((d**2 * snr > 1 / 20) & (d**2 * snr < 20)).double().mean()) for d in sizes]
right.bar([f"{d:g}" for d in sizes], useful)
right.set(xlabel="standard deviation d of the latents", ylabel="share of useful levels", ylim=(0, 1))
plt.show()
print("useful levels:", ", ".join(f"{share:.0%} at d = {d:g}" for d, share in zip(sizes, useful, strict=True)))

# %% [markdown]
# We call a level useful if neither the latents nor the noise have more than 20 times the power of the other. With $d$ far from 1 only a small part of the levels is useful. If latents are too large, most levels hardly contain noise, and sampling starts from pure noise, which training almost never
# showed. If they are too small, nearly all levels are pure noise. A forgotten factor is one multiplication, raises no error, and shows only in the samples.

# %% [markdown]
# ## 8 · Noise in pixels and in latents
#
# The same noise levels in pixels (first row) and in latents, decoded (second row) and as preview (third row). At $t = 1000$ nothing but noise is left.

# %%
moments = (0, 400, 700, 1000)
rows = {"pixels": [], "latents, decoded": [], "latents, preview": []}
image, latent = x_all_tests[:1], z_test[:1]
for t in moments:
    level = schedule.at(torch.tensor(t))
    noisy = add_noise(latent, random(*latent.shape, seed=1), level).float()
    rows["pixels"].append(add_noise(image, random(*image.shape, seed=1), level).float().clamp(-1, 1))
    rows["latents, decoded"].append(pipeline.decode(noisy))
    rows["latents, preview"].append(preview(noisy))
show_images(
    torch.cat([torch.cat(row) for row in rows.values()]),
    len(moments),
    across=[f"t = {t}" for t in moments],
    down=list(rows),
)

# %% [markdown]
# Noise in latents does not look like snow. The decoder was never trained on such latents, and makes coloured patches of them. This does no harm, because only the clean result is decoded.
#
# There is a second difference. Large shapes can be read from averages, and the noise of an average of $n$ numbers is $\sqrt n$ times smaller. An $8 \times 8$ grid of averages uses many pixels for each cell, but $f^2$ times fewer latents. We measure the correlation between clean and noisy averages over all test images:


# %%
def correlation_of_averages(x, t, parts=8):
    """Correlation between the averages of clean and of noisy parts of images or latents (N, C, H, W), at level t."""
    noisy = add_noise(x, random(*x.shape, seed=5), schedule.at(torch.tensor(t))).float()
    clean, noisy = (F.adaptive_avg_pool2d(y, parts) for y in (x, noisy))
    return np.corrcoef(clean.flatten(), noisy.flatten())[0, 1]


z_all_tests = pipeline.encode(x_all_tests)
for t in (700, 800, 900, 970):
    in_pixels, in_latents = correlation_of_averages(x_all_tests, t), correlation_of_averages(z_all_tests, t)
    print(f"t = {t}: correlation of noisy and clean averages: pixels {in_pixels:.2f}, latents {in_latents:.2f}")

# %% [markdown]
# So the same schedule destroys more in latents than in the pixels of the same image: the large shapes are lost earlier. Larger images keep more of them at the same level, which is why schedules are adapted to the resolution
# (chapter 3).

# %% [markdown]
# ## 9 · Train and sample in latents
#
# What changes in chapter 2? One line. Training took `x0 = batch["image"]`; now it takes latents, drawn from each posterior and scaled. Noise levels, noise, caption dropout, $v$ and the squared error stay the same. Here is one training step for 32 images, with the shipped network.

# %%
from common.diffusion.guidance import drop_captions
from common.diffusion.losses import diffusion_loss
from common.random import BatchRandom
from common.training.latents import sample, scaled

chosen = [*range(16), *range(120, 136)]  # 16 creatures and 16 dishes
with torch.no_grad():
    batch = scaled(vae.encode(x_known[chosen]), vae.cfg.scaling_factor)  # mean and standard deviation, scaled
    captions = [known.captions[i] for i in chosen]
    draw = BatchRandom(0, 0)  # the random numbers of one step
    z0 = sample(batch, draw)  # 1. latents (B, c, h, w): mean + std * noise   <- NEW
    u = draw.stratified(len(z0))  # 2. noise levels
    eps = draw.randn(z0.shape)  # 3. noise
    ids, empty = encoder.tokenizer(captions), encoder.tokenizer([""])[0]
    ids = drop_captions(ids, empty, draw.rand(len(z0)))  # 4. caption dropout, which the comparison below leaves out
    texts = {"right": captions, "empty": [""] * len(z0), "wrong": captions[5:] + captions[:5]}
    print(f"latents {tuple(z0.shape)}, standard deviation {z0.std():.2f}")
    for name, some in texts.items():  # 5. noise the latents, predict v, compare
        error = diffusion_loss(net, schedule, pipeline.prediction, z0, u, eps, text=encoder(some))
        print(
            f"{name} captions: loss {error.mean():.4f}, in the noisiest quarter of the levels {error[24:].mean():.4f}"
        )

# %% [markdown]
# As in chapter 2, the right captions should give the lowest loss, most clearly at high noise. (With 32 images and one noise each, small differences are chance.)
#
# Sampling gets one more step at its end: undo the scaling, and decode. Here is all of it: text encoder, guidance, DDIM, decoder. The prediction of $z_0$ is not clipped, because latents have no bounds. We compare it with [pipeline.py](latent_sd/pipeline.py).

# %%
from common.models.pipeline import SamplingConfig
from common.random import Noise


@torch.no_grad()
def stable_diffusion(prompts, w, steps, z_t):
    """Images (B, 3, S, S) of prompts, from noise z_t (B, c, h, w)."""
    text = torch.cat([encoder([""] * len(z_t)), encoder(list(prompts))])  # (2 B, M, D)
    levels = list(schedule.noise_levels(steps))  # noisiest first, clean last
    for now, then in pairwise(levels):
        both = net(torch.cat([z_t, z_t]), torch.full((2 * len(z_t),), now.time), text=text)
        uncond, cond = both.chunk(2)
        v = uncond + w * (cond - uncond)  # guidance
        z0, eps = now.alpha * z_t - now.sigma * v, now.sigma * z_t + now.alpha * v
        z_t = then.alpha * z0 + then.sigma * eps  # DDIM
    return vae.decode(z_t / vae.cfg.scaling_factor).clamp(-1, 1)  # <- NEW


assert pipeline.prediction == "v"
two, z_t = ["a red fire creature with bat wings", "番茄炒蛋"], Noise(0, 0)(0, torch.empty(2, c, side, side))
mine = stable_diffusion(two, 5.0, 8, z_t)
from_pipeline = pipeline.txt2img(two, SamplingConfig(guidance_scale=5.0, sampler="ddim:8"), latents=z_t)
print(f"largest difference of a pixel between this cell and pipeline.py: {(mine - from_pipeline).abs().max():.1e}")

# %% [markdown]
# ## 10 · Images from text
#
# One model, two kinds of image, two languages: odd columns have English prompts, even columns the same in Chinese.

# %%
from common.data.creatures.attributes import ATTRIBUTES, NAMES
from common.evaluate.creature_classifier import load_creature_classifier, read_attributes
from common.evaluate.prompt_accuracy import chance_accuracy, make_prompts, measure_accuracy
from latent_sd.evaluation import reconstruct

classifier = load_creature_classifier()  # names the eleven attributes of a creature; chapter 2, section 9
EVALUATIONS = 12  # sampling steps; with guidance, each evaluates the network twice


def paint(prompts, w=5.0, **more):
    """One image of each prompt, (N, 3, S, S) in [-1, 1]. Image i starts from the same noise whatever its prompt and w."""
    return pipeline.txt2img(list(prompts), SamplingConfig(guidance_scale=w, sampler=f"dpmpp_2m:{EVALUATIONS}", **more))


def shows(images, **wanted):
    """Which of the images show these attributes, according to the classifier. (N,) bool"""
    found = read_attributes(classifier, images)[0]  # (N, 11) the most probable value of each attribute
    right = [found[:, NAMES.index(name)] == ATTRIBUTES[name].index(value) for name, value in wanted.items()]
    return torch.stack(right).all(0)


def wilson(k, n, z=1.96):
    """The share k / n with its 95 % interval (chapter 2, formula 10)."""
    middle, reach = k / n + z**2 / (2 * n), z * math.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    return k / n, (middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)


def share(shown):
    return "{:2} of {} = {:4.0%} ({:.0%} to {:.0%})".format(
        int(shown.sum()), len(shown), *wilson(int(shown.sum()), len(shown))
    )


prompts = [
    "a red fire creature with bat wings", "一只红色的火属性小怪兽，长着蝙蝠翅膀",
    "a blue round creature with cat ears, on a cream background", "一只蓝色圆圆的小怪兽，长着猫耳朵，奶油色背景",
    "stir-fried tomato and eggs", "番茄炒蛋",
    "a bowl of steamed rice on a wooden table", "木桌上的一碗米饭",
]  # fmt: skip
short = ["red, fire,\nbat wings", "the same\n(zh)", "blue, round,\ncat ears", "the same\n(zh)",
         "tomato\nand eggs", "the same\n(zh)", "bowl of\nsteamed rice", "the same\n(zh)"]  # fmt: skip
guided = {w: paint(prompts, w) for w in (1.0, 5.0)}
for w, images in guided.items():
    red = shows(images[:2], colour="red", element="fire", wings="bat").tolist()
    blue = shows(images[2:4], colour="blue", body="round", ears="cat", background="cream").tolist()
    print(f"w = {w:g}: every attribute named is there: columns 1 to 4 {red + blue}")
show_images(torch.cat(list(guided.values())), 8, short, [f"w = {w:g}" for w in guided])

# %% [markdown]
# The classifier knows creatures only, so the dishes must be judged by eye.
#
# **Question.** What does guidance change in the columns of rice?
#
# <details><summary>Answer</summary>
#
# At $w = 1$ one bowl holds a soft white and the other a yellow dish with dark pieces: the Chinese prompt did not lead to rice. At $w = 5$ both are filled evenly, one with white and one with yellow. Guidance exaggerates what the model makes of a prompt, its mistakes as well, and removes texture.
# Larger guidance is not better for every prompt.
#
# </details>
#
# ### The guidance scale, counted
#
# Twenty-four prompts that describe test creatures, half of them in Chinese, at four scales. Two references belong to every such number. The upper one is real images of the same captions, passed through the autoencoder; the lower one is real images with each other's captions.

# %%
N = 24
test_prompts = make_prompts("test", N, "both", size)
counted = {
    "real images": measure_accuracy(classifier, test_prompts, test_prompts.real),
    "real, through the VAE": measure_accuracy(classifier, test_prompts, reconstruct(pipeline, test_prompts.real)),
}
by_scale = {w: paint(test_prompts.captions, w) for w in (0.0, 1.0, 3.0, 8.0)}
counted |= {
    f"w = {w:g}": measure_accuracy(classifier, test_prompts, to_bytes(images)) for w, images in by_scale.items()
}
print(f"{'':24}{'attributes right':>18}{'95 % interval':>20}")
for name, row in counted.items():
    print(f"{name:24}{row['accuracy']:>18.1%}{row['accuracy_low']:>11.1%} to {row['accuracy_high']:.1%}")
print(f"{'real, other captions':24}{chance_accuracy(classifier, test_prompts)['accuracy']:>18.1%}")
show_images(torch.cat([images[:SHOWN] for images in by_scale.values()]), SHOWN, down=[f"w = {w:g}" for w in by_scale])

# %% [markdown]
# **Question.** Is $w = 0$ as good as the lower reference? Does the autoencoder cost accuracy? Which scales does this table show to be different?
#
# <details><summary>Answer</summary>
#
# $w = 0$ ignores the prompt, so its accuracy is near the lower reference; it can be below it, because without a prompt this model also draws dishes. Real images lose hardly anything in the autoencoder, so nearly all errors belong to the diffusion model. Compare the intervals: $w = 1$ and more are far above $w = 0$,
# whereas intervals that overlap a good deal show no difference. `python 04_latent_sd/evaluate.py` measures 200 prompts of each kind.
#
# At large $w$ outlines become hard and colours extreme. In pixels a guided prediction was clipped to $[-1, 1]$; latents have no bounds, so nothing is clipped here.
#
# </details>
#
# ### Negative prompts, counted
#
# A negative prompt takes the place of the empty caption (chapter 2, section 10). Two conditions make a fair test. The prompt must leave the property open, and the property must be common without the negative prompt: otherwise there is nothing to remove. The two rows of a column start from the same noise.

# %%
PROMPT, NEGATIVE, PROPERTY = "a creature", "a creature on a sky blue background", {"background": "sky"}
rows = {
    "no negative prompt": paint([PROMPT] * N, 4.0),
    "negative prompt": paint([PROMPT] * N, 4.0, negative_prompt=NEGATIVE),
}
print(f"prompt: {PROMPT}; negative prompt: {NEGATIVE}")
for name, images in rows.items():
    print(f"{name:20} {PROPERTY}: {share(shows(images, **PROPERTY))}")
before, after = (read_attributes(classifier, images)[0] for images in rows.values())
changed = (before != after).double().mean(0)
print(
    "changed in the same noise:",
    ", ".join(f"{name} {value:.0%}" for name, value in zip(NAMES, changed.tolist(), strict=True)),
)
show_images(torch.cat([images[:SHOWN] for images in rows.values()]), SHOWN, down=list(rows))

# %% [markdown]
# **Question.** Does the negative prompt remove what it names? What else does it change?
#
# <details><summary>Answer</summary>
#
# It does: with the negative prompt the background occurs much less often, and the two intervals do not overlap. But it changes much more. The last printed line says how many of the images have another colour, body or wings than with the same noise before. Guidance leads away from *everything* that distinguishes the negative caption from the prompt,
# and towards its opposite, so many backgrounds now have the same other colour. A negative prompt is a push on the whole image, and not a filter.
#
# </details>
#
# ### Interpolating the noise
#
# Section 6 mixed two images and got double exposures. Now we mix two *noises*, along a great circle (slerp, chapter 3) so that their length stays right, and sample the same prompt at each stop. The sampler is deterministic, so similar noise gives similar images.


# %%
def slerp(a, b, share):
    """From noise a to noise b on the sphere. (c, h, w) twice -> (c, h, w)"""
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


stops, rows = torch.linspace(0, 1, SHOWN).tolist(), []
for prompt, seed in (("a green grass creature", 4), ("番茄炒蛋", 8)):
    a, b = Noise(seed, 0)(0, torch.empty(2, c, side, side))
    config = SamplingConfig(guidance_scale=5.0, sampler=f"dpmpp_2m:{EVALUATIONS}")
    rows.append(pipeline.txt2img([prompt] * SHOWN, config, latents=torch.stack([slerp(a, b, stop) for stop in stops])))
print(f"green and grass: {share(shows(rows[0], colour='green', element='grass'))}")
show_images(
    torch.cat(rows), SHOWN, [f"{stop:.2f}" for stop in stops], ["green grass\ncreature", "tomato and\neggs (zh)"]
)

# %% [markdown]
# Every stop is a single image of its own, and not a double exposure. The autoencoder provides a space with few numbers; the diffusion model knows which of its points are images.

# %% [markdown]
# ## 11 · img2img
#
# Sampling need not start from noise. Encode an image, add noise *part of the way*, and denoise from there with a prompt (SDEdit, [Meng et al. 2022](https://arxiv.org/abs/2108.01073)). The **strength** $s$ is the share of the sampler's steps that are walked.
# Of $N$ steps these are the last $sN$, which must be rounded. This course rounds to the nearest, and `diffusers` cuts off:
#
# $$\text{first step} = N - \mathrm{round}(sN) \qquad\qquad \texttt{diffusers}\text{: } N - \mathrm{int}(N s) \tag{6}$$

# %%
from latent_sd.pipeline import last_levels

strengths = (0.1, 0.33, 0.5, 0.58, 0.75, 1.0)
print(
    "steps that are walked (this course | diffusers)\n" + " " * 8 + "".join(f"{f's = {s:g}':>11}" for s in strengths)
)
for steps in (15, 20, 50):
    cells = [(len(last_levels(schedule.noise_levels(steps), s)), min(int(steps * s), steps)) for s in strengths]
    print(f"  of {steps:2} " + "".join(f"{f'{a} | {b}':>11}" for a, b in cells))

# %% [markdown]
# There is a trap: $0.58 \cdot 50$ is 29, but in binary floating point it is `28.999999999999996`, and `int` makes 28 of it. Before you compare the images of two programs, compare the number of steps.
#
# Sixteen red creatures, and the prompt *a blue creature*. At each strength the classifier counts how many are blue, and how many have kept their shape, which the prompt does not mention. (The network saw red and blue creatures in training, of course; strength 0 means encode and decode.)

# %%
from common.data.creatures.dataset import load_creatures

red = load_creatures("test", 400, size)
which = [i for i in range(400) if red.attributes.of(i)["colour"] == "red"][:16]
x_red, prompt = to_float(red.pixels[which]), "a blue creature"
results = {0.0: pipeline.decode(pipeline.encode(x_red))}
for s in (0.2, 0.5, 0.8, 0.9, 1.0):
    results[s] = pipeline.img2img(x_red, [prompt] * 16, s, SamplingConfig(guidance_scale=5.0, sampler="dpmpp_2m:15"))
body_before = read_attributes(classifier, x_red)[0][:, NAMES.index("body")]
blue, kept = {}, {}
for s, images in results.items():
    blue[s] = shows(images, colour="blue")
    kept[s] = read_attributes(classifier, images)[0][:, NAMES.index("body")] == body_before
    print(
        f"strength {s:.1f}: blue {share(blue[s])}, same body {share(kept[s])}, PSNR {psnr(x_red, images).mean():.1f} dB"
    )
show_images(
    torch.cat([x_red[:SHOWN], *(images[:SHOWN] for images in results.values())]),
    SHOWN,
    down=["original", *(f"s = {s:g}" for s in results)],
)

# %%
plt.figure(figsize=(6, 2.8), layout="constrained")
for name, found in {"blue, as the prompt asks": blue, "same body as before": kept}.items():
    values, low, high = np.array([wilson(int(each.sum()), 16) for each in found.values()]).T
    plt.errorbar(list(found), values, (values - low, high - values), marker="o", capsize=3, label=name)
plt.gca().set(xlabel="strength", ylabel="share of 16 images", ylim=(-0.03, 1.03))
plt.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# **Question.** At which strength would you stop, and why is there no strength at which everything is kept and the colour changes?
#
# <details><summary>Answer</summary>
#
# Stop where the first curve is high and the second has not fallen much: here at $s = 0.9$, where all 16 creatures are blue and 8 of 16 keep their body. At $s = 0.8$ one is blue, so there is little room. The reason is that colour and body are both large features: the noise that permits another colour also erases much of the shape (section 8). At small strengths only details change. At $s = 1$ hardly anything of the image is left, and the bodies agree about as often as
# those of any two creatures (there are six bodies). Chapter 5 shows methods that keep the shape by other means.
#
# </details>

# %% [markdown]
# ## 12 · The folder, and `diffusers`
#
# The model is a folder in the layout of Stable Diffusion:

# %%
for path in sorted([*MODEL.glob("*.json"), *MODEL.glob("[a-z]*/*")]):
    print(f"{path.relative_to(MODEL)!s:52}{path.stat().st_size / 1e6:>8.2f} MB")

# %% [markdown]
# So `diffusers` ([documentation](https://huggingface.co/docs/diffusers)) opens it without knowing this course. We give both programs the same prompts, the same noise and the same number of steps. They share PyTorch and nothing else: U-Net, text encoder, sampler and decoder are other code.

# %%
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(MODEL)
pipe.set_progress_bar_config(disable=True)
some = [prompts[0], prompts[5], prompts[7]]
z_t = Noise(7, 0)(0, torch.empty(len(some), c, side, side))
ours = pipeline.txt2img(some, SamplingConfig(guidance_scale=5.0, sampler="ddim:10"), latents=z_t)
theirs = 2 * pipe(some, num_inference_steps=10, guidance_scale=5.0, latents=z_t, output_type="pt").images - 1
print(" | ".join(type(part).__name__ for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.scheduler)))
print(f"largest difference of a pixel, in a range of 2: {(ours - theirs).abs().max():.1e}")
show_images(torch.cat([ours, theirs]), 3, down=["this course", "diffusers"])

# %% [markdown]
# It works the other way round, too: `python 04_latent_sd/sample.py "a castle" --model path/to/stable-diffusion-v1-5` samples from a real Stable Diffusion with the modules of this course.

# %% [markdown]
# ## 13 · Cached latents, or encoding on the fly?
#
# The autoencoder does not change while the U-Net is trained. So encode every image once, and **cache** mean and standard deviation of its posterior in half precision. Practitioners say that *cached latents cost disk but save time, and that encoding on the fly needs worker processes*
# ([sources and measurements](../docs/claims.md#cached-latents-cost-disk-and-save-time)).
#
# The name of the file is a hash of everything that the latents depend on: the weights of the autoencoder, its configuration, and all pixels. A cache of another autoencoder has another name, so it cannot be used by mistake. We measure one epoch of waiting for latents, both ways.

# %%
from latent_sd.latent_dataset import OnTheFly, cached_latents, start_method, training_order

folder = tempfile.TemporaryDirectory()  # deleted with the notebook
began = time.perf_counter()
data = cached_latents(vae, known, Path(folder.name))
seconds_to_make, bytes_of_file = time.perf_counter() - began, data.path.stat().st_size
print(
    f"made in {seconds_to_make:.2f} s; {bytes_of_file / 1e6:.2f} MB, {bytes_of_file / known.pixels.numel():.2f} times the pixels as bytes"
)

changed = AutoencoderKL(vae.cfg).eval()
changed.load_state_dict(vae.state_dict())
with torch.no_grad():
    changed.quant_conv.bias[0] += 0.01
other = cached_latents(changed, known, Path(folder.name)).path.name
print("another name if one weight changes:", other != data.path.name)
changed.load_state_dict(vae.state_dict())
changed.cfg = replace(vae.cfg, scaling_factor=2 * vae.cfg.scaling_factor)
other = cached_latents(changed, known, Path(folder.name)).path.name
print("another name if only the scaling factor changes:", other != data.path.name)


def epoch(source, order):
    """Seconds until every latent was delivered once, in batches; and the last batch."""
    began = time.perf_counter()
    for _ in range(len(known) // 24):
        batch = source.batch(next(order))
    return time.perf_counter() - began, batch


(seconds_file, a), (seconds_live, b) = (
    epoch(source, training_order(len(known), 24, seed=0)) for source in (data, OnTheFly(vae, known))
)
print(
    f"one epoch of {len(known)} images: cached {1000 * seconds_file:.1f} ms, on the fly {1000 * seconds_live:.1f} ms"
)
print(
    f"largest difference of the latents: {(a['latent'] - b['latent']).abs().max():.1e} (the cache has half precision)"
)

# %% [markdown]
# These are seconds that an infinitely fast network would wait. Delivering cached latents takes next to no time, and the cache is paid for within a few epochs. It has three disadvantages: it needs disk space; it holds *one* version of each image, so random crops and
# flips are not possible; and it must be made before training starts. (The scaling factor is not part of the name, because the file holds unscaled latents.)
#
# On the fly, **worker processes** can encode the next batches while the network learns from this one. They start by `fork`, which copies the process, or by `spawn`, which starts a new Python and sends everything to it. A process that has used a GPU must not be forked, because the
# copy cannot use the GPU's context; then `spawn` is needed, which takes seconds and some hundred megabytes for each worker ([latent_dataset.py](latent_sd/latent_dataset.py) has the details).

# %%
print("workers start by", start_method("cpu"), "without a GPU, and by", start_method("cuda"), "with one")

# %% [markdown]
# Workers help when a GPU is busy with the U-Net meanwhile, or when cores are idle. Without either, a worker does the same work on the same processor. `python 04_latent_sd/benchmark_latents.py --vae 04_latent_sd/pretrained/64x64 --n 1000 --workers 0 1 2` measures time and memory of each way in a process of its own, and
# [RESULTS.md](RESULTS.md) has its table.
#
# ## What you can do now
#
# * Encode, scale, noise, denoise, unscale and decode: Stable Diffusion in ten lines.
# * Derive the loss of a VAE from the evidence lower bound, and say what $\beta$ and the pixel noise $r$ have to do with each other.
# * Explain why a VAE with small $\beta$ cannot generate, and what the second model is for.
# * Choose $f$ and $c$, measure the PSNR of an autoencoder first, and measure its scaling factor.
# * Test a negative prompt or a strength by counting, with an interval and from equal noise.
# * Open and write folders that `diffusers` reads.
#
# ### The formulas of this chapter
#
# | | formula | where |
# |---|---|---|
# | PSNR | $10 \log_{10}(2^2/\text{mean squared error})$ for images in $[-1, 1]$ | (1) |
# | reparameterisation | $z = \mu(x) + s(x)\,\varepsilon$ | (2) |
# | bound | $-\log p_\theta(x) \le \frac{1}{2r^2}\mathbb{E}_q\vert x - y(z)\vert^2 + D_{\mathrm{KL}}(q_\phi(z\vert x)\,\Vert\,p(z)) + \text{const}$ | (3) |
# | KL of two Gaussians | $\frac12\sum(\mu^2 + s^2 - 1 - \log s^2)$ nats | (4) |
# | loss with weight | $\frac{1}{2r^2}\vert x - y\vert^2 + \beta\, D_{\mathrm{KL}}$; the bound for pixel noise $\sqrt\beta\,r$ | (5) |
# | scaling factor | $z_0 = z/d$ with $d$ the standard deviation over the training set | section 7 |
# | noisy latents | $z_t = \sqrt{\bar\alpha_t}\,z_0 + \sigma_t\,\varepsilon$, $\;v = \sqrt{\bar\alpha_t}\,\varepsilon - \sigma_t\,z_0$ | chapter 2 |
# | decode | $y = \mathrm{decoder}(z_0 \cdot d)$, then clip to $[-1, 1]$ | section 9 |
# | img2img | first step $= N - \mathrm{round}(sN)$ | (6) |
#
# ### Further reading
#
# * [Rombach et al. 2022](https://arxiv.org/abs/2112.10752), *High-resolution image synthesis with latent diffusion models*: the paper of this chapter.
# * [Kingma & Welling 2014](https://arxiv.org/abs/1312.6114), *Auto-encoding variational Bayes*.
# * [Esser et al. 2021](https://arxiv.org/abs/2012.09841), *Taming transformers for high-resolution image synthesis*: the perceptual and the adversarial term.
# * [Meng et al. 2022](https://arxiv.org/abs/2108.01073), *SDEdit: guided image synthesis and editing with stochastic differential equations*: img2img.
# * [Podell et al. 2023](https://arxiv.org/abs/2307.01952), *SDXL: improving latent diffusion models for high-resolution image synthesis*.
# * [Geng et al. 2024](https://arxiv.org/abs/2311.17919), *Visual anagrams: generating multi-view optical illusions with diffusion models*; you build one in the exercises.
#
# ### Things to try in this notebook
#
# Write down what you expect before you run each.
#
# * Section 3: $\beta = 0.1$ and $\beta = 10$. Where does the collapse begin?
# * Section 4: `KL = 1e-2`. What do the reconstructions cost, and how large are the latents then?
# * Section 7: sample with a wrong factor, `vae.cfg = replace(vae.cfg, scaling_factor=2 * vae.cfg.scaling_factor)`, and then `paint(prompts)`.
# * Section 10: the negative prompt "a creature with wings". Count the wings without it first: is there anything to remove? Count again with it. Which of the two conditions of a fair test is not met?
# * Section 10: `paint(prompts, size=size * 3 // 2)`. The U-Net runs at any size; does it draw one creature or several?
# * Section 11: change a dish into a creature. At which strength is it one?
#
# Then build it yourself with the [exercises](exercises/README.md) and their grader, `python -m common.grade 04`. Train on your own images of any size: see the [README](README.md).
#
# The next chapter takes this model and works on it with the tools of the professionals: fine-tuning, LoRA, ControlNet.
