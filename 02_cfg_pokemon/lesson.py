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
# # Chapter 2 · Text to image with classifier-free guidance
#
# English · [中文](lesson.zh.ipynb)
#
# Chapter 1 asked a network for a digit. In this chapter you ask for a picture in words: *a red fire creature with bat wings*, or
# 一只红色的火属性小怪兽，长着蝙蝠翅膀.
#
# This takes three ingredients. A **text encoder** turns the caption into vectors, and **cross-attention** lets every pixel read them. During
# training, one caption in ten is replaced by the empty caption, so that a single network learns the pictures of a caption *and* all pictures. During
# sampling, **classifier-free guidance** amplifies the difference between these two. Nearly every text-to-image model works like this.
#
# In this lesson you
#
# 1. look at the data: drawn creatures with known attributes;
# 2. turn text into vectors;
# 3. let pixels read text with **cross-attention**;
# 4. drop captions, so that one network learns two distributions;
# 5. train a small text-to-image model, and measure at which noise levels the caption matters;
# 6. derive **guidance** and use it;
# 7. see exactly which distribution guidance samples, and which it does not;
# 8. guide with other gradients: a classifier, and a loss that asks for a colour;
# 9. measure whether pictures show what their prompts ask for;
# 10. use **negative prompts**;
# 11. measure what guidance costs, and try the remedies;
# 12. ask for combinations that training never showed;
# 13. test whether the model copies its training pictures.
#
# You should have read chapter 1. Everything runs on a laptop's CPU without any download, in less than six minutes of CPU time. A Chinese translation
# of all terms is in the [glossary](../docs/glossary.md).
#
# > **Notation.** $x_0$ is a clean image and $\varepsilon$ is standard normal noise. With $\sigma_t = \sqrt{1-\bar\alpha_t}$ the noisy image of chapter 1 is
# > $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sigma_t\, \varepsilon \qquad\text{and}\qquad p_t \text{ is the distribution of } x_t.$$
# > $c$ is a caption, and $\varnothing$ is the empty caption. $p_t(x)$ is the distribution of all noisy images, and $p_t(x \,|\, c)$ is that of the noisy images with caption $c$.
# > In code a noise level is a `NoiseLevel` with the fields `alpha` (the number $\sqrt{\bar\alpha_t}$), `sigma` ($\sigma_t$) and `time` (what the network receives).

# %%
from common.grade.chapter import open_chapter  # no module named common? Select the course's kernel (README.md)

CHAPTER = open_chapter("02_cfg_pokemon")  # this folder: its files can be imported from here on

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

from cfg_pokemon.pictures import resized, show_attention_shapes, show_blobs, show_images, show_maps, show_vectors
from common.data.creatures.attributes import ATTRIBUTES, COMBINATIONS, NAMES, NEVER_TOGETHER
from common.diffusion.schedules import NoiseLevel, add_noise
from common.io.pixels import to_float

plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def random(*shape, seed=0):
    """Standard normal noise that is the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# %% [markdown]
# ## 1 · Creatures and their captions
#
# To learn what *red* means, a network must see red things that are called red, and other things that are not. So we need images with
# captions. To *measure* whether the network has learned it, we must also know what each image shows. Both hold for creatures that a
# program draws ([common/data/creatures](../common/data/creatures)). Here are thirty.

# %%
from common.data.creatures.captions import describe
from common.data.creatures.dataset import POSE, draw, load_creatures

sheet = load_creatures("train", 30, size=48)  # pixels (30, 3, 48, 48), captions, and a table of attributes
for i, caption in enumerate(sheet.captions[:5], 1):
    print(f"{i}  {caption}")
show_images(to_float(sheet.pixels), 10)

# %% [markdown]
# (The captions are those of the first five creatures of the first row.) A creature has eleven attributes. Each is drawn at random, independently of the others.
# Half of the captions are English and half are Chinese. No caption names everything, and the same creature can be described in many ways:

# %%
for name, values in ATTRIBUTES.items():
    print(f"{name:11} {', '.join(values)}")
print(f"{COMBINATIONS:,} combinations. The first creature above, six times:")
for language in ("en", "zh"):
    for k in range(3):
        print("   ", describe(sheet.attributes.of(0), language, np.random.default_rng(k)))

# %% [markdown]
# ### Combinations that are held out
#
# A model that has seen red fire creatures can draw red fire creatures. It may have understood two words, or it may have memorized examples. A
# combination that it has *never* seen tells the two apart: the model knows blue and it knows fire, so can it draw a blue fire creature? For this test, each element lacks
# one colour in the training set. These pairs are **held out**, and section 12 comes back to them.

# %%
held = load_creatures("heldout", 100, size=48)
firsts = [next(i for i in range(100) if held.attributes.of(i)["element"] == element) for element in NEVER_TOGETHER]
show_images(to_float(held.pixels[firsts]), 8, [f"{colour}\n{element}" for element, colour in NEVER_TOGETHER.items()])

# %% [markdown]
# ## 2 · From text to vectors
#
# A **tokenizer** cuts a text into pieces, the **tokens**, and looks up the number of each piece. Our tokenizer has learned its pieces from the captions
# by byte-pair encoding ([tokenizer.py](../common/models/text/tokenizer.py)): a frequent word is one token, and so is a Chinese character. From here on we use the
# model that comes with this chapter ([pretrained/](pretrained)).

# %%
from common.models.text_to_image_folder import open_pixel_pipeline

pipeline = open_pixel_pipeline(CHAPTER / "pretrained")  # U-Net, text encoder and noise schedule
net, encoder, schedule = pipeline.unet, pipeline.text_encoder, pipeline.schedule
tokenizer, size = encoder.tokenizer, net.cfg.size
print(f"U-Net: {sum(p.numel() for p in net.parameters()):,} weights, {size} x {size} pixels")
print(f"text encoder: {sum(p.numel() for p in encoder.parameters()):,} weights, {tokenizer.size:,} tokens\n")


def pieces(text):
    """The tokens of a text without the padding at its end: names and numbers."""
    found = tokenizer.backend.encode(text)
    names = ["begin", *(text[a:b] for a, b in found.offsets if a < b), "end"]
    return names, found.ids[: len(names)]


for text in (
    "a red fire creature with bat wings",
    "一只红色的火属性小怪兽，长着蝙蝠翅膀",
    "a turquoise creature with a moustache",
    "",
):
    names, ids = pieces(text)
    print(" | ".join(names))
    print("   ", *ids)
    if unknown := tokenizer.unknown(text):
        print("    unknown, so spelled in pieces:", ", ".join(unknown))

# %% [markdown]
# Three things to notice:
#
# * *turquoise* and *moustache* occur in no caption. They fall into smaller pieces, in the worst case into letters. This works, but pieces that
#   were never seen together in training carry little meaning.
# * The **empty caption** is a text like any other: begin, end, nothing between. It will be important.
# * All texts are filled up with **padding** tokens to the same length, so that they fit into one tensor.
#
# The numbers of the tokens have no meaning. Therefore each token gets a vector, a row of a table that is *learned*. A small **transformer** then
# lets each token attend to the tokens before it, so that the vector of *wings* can depend on the word *bat*
# ([transformer.py](../common/models/text/transformer.py), a small version of CLIP's text encoder). Both are trained together with the U-Net by
# the same loss, so words come to mean what the images need them to mean.

# %%
with torch.no_grad():
    text = encoder(["a red fire creature with bat wings"])
print("one caption becomes", tuple(text.shape), "numbers: (captions, tokens, width)")

# %% [markdown]
# We also need the prediction of the network. This network does not predict $\varepsilon$ but another mixture of image and noise, $v = \sqrt{\bar\alpha_t}\,\varepsilon - \sigma_t\, x_0$. Chapter 3 explains why. As with $\varepsilon$, you can
# solve for both parts:
#
# $$\hat x_0 = \sqrt{\bar\alpha_t}\, x_t - \sigma_t\, \hat v \qquad\qquad \hat\varepsilon = \sigma_t\, x_t + \sqrt{\bar\alpha_t}\, \hat v$$
#
# (Put $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sigma_t\,\varepsilon$ and $v$ in, and use $\bar\alpha_t + \sigma_t^2 = 1$.)


# %%
def level_at(t):
    """The noise level of timestep t, 0 to 1000. The network counts timesteps from 0, so its time input is t - 1."""
    return NoiseLevel(float(t - 1), float(schedule.alpha[t]), float(schedule.sigma[t]))


@torch.no_grad()
def predict(x, level, captions):
    """The network's predictions (x0, eps) for noisy images x (B, 3, S, S) with these captions (B, or one for all)."""
    text = encoder(captions).expand(len(x), -1, -1)  # (B, M, D)
    v = net(x, torch.full((len(x),), level.time), text=text)
    return level.alpha * x - level.sigma * v, level.sigma * x + level.alpha * v


assert pipeline.prediction == "v"

# %% [markdown]
# What have the words come to mean? The network never saw a dictionary, only red creatures with *red* in one caption and 红 in another. Do the two words have the same
# *effect on an image*? We give the network eight images of nearly pure noise, with ten English and ten Chinese captions that differ in the colour. From each predicted
# $\hat x_0$ we subtract the mean over the captions of its language, which leaves the effect of the colour word. Then we compare all pairs by their cosine
# similarity, which is 1 for effects of the same direction.

# %%
COLOURS = ATTRIBUTES["colour"]
HANZI = dict(zip(COLOURS, "红橙黄绿蓝紫粉棕白黑", strict=True))


def effects_of(captions):
    """The change that each caption makes to the predicted image, against the mean of all. (10, 3 S S), of length 1"""
    x, level = random(8, 3, size, size), level_at(900)
    x0 = torch.stack([predict(x, level, [caption])[0].mean(0).flatten() for caption in captions])
    return F.normalize(x0 - x0.mean(0), dim=1)


english = effects_of([f"a {name} creature" for name in COLOURS])
chinese = effects_of([f"一只{word}色的小怪兽" for word in HANZI.values()])
similarity = english @ chinese.T
plt.figure(figsize=(4.6, 3.8), layout="constrained")
plt.imshow(similarity, cmap="RdBu_r", vmin=-1, vmax=1)
plt.xticks(range(10), [f"{name} (zh)" for name in COLOURS], rotation=60, ha="right")
plt.yticks(range(10), [f"{name} (en)" for name in COLOURS])
plt.colorbar(label="cosine similarity of the effects")
plt.show()
most_similar = similarity.argmax(1)
print(
    f"for {int((most_similar == torch.arange(10)).sum())} of 10 English colours the most similar Chinese word is the translation:"
)
print(", ".join(f"{name} {HANZI[COLOURS[i]]}" for name, i in zip(COLOURS, most_similar.tolist(), strict=True)))

# %% [markdown]
# Where the diagonal is red, the network has found a translation through the images. Off the diagonal you find related colours. The *vectors* of the two words need
# not be similar for this, because the U-Net can learn to use different vectors in the same way.

# %% [markdown]
# ## 3 · Cross-attention: pixels read the text
#
# A word must act *here and not there*: *bat wings* concerns the pixels at the shoulders, and *on a mint background* concerns the pixels around. So each pixel should choose which
# tokens it reads. Each pixel has a **query** vector, which says what it looks for. Each token has a **key** vector, which says what it offers, and a **value** vector, which is
# what the pixel receives. Where a query fits a key, the pixel receives much of that token's value.
#
# Let $h_i$ be the features of pixel $i$ inside the network, and let $c_j$ be the vector of token $j$. Three matrices are learned:
#
# $$q_i = W_q h_i \qquad k_j = W_k c_j \qquad v_j = W_v c_j$$
#
# The inner product $q_i \cdot k_j$ measures how well query and key fit. A softmax over the tokens turns these scores into weights, which are positive and
# sum to 1. The pixel receives the weighted mean of the values:
#
# $$A_{ij} = \mathrm{softmax}_j\!\left(\frac{q_i \cdot k_j}{\sqrt d} + m_j\right) \qquad\qquad \text{pixel } i \text{ receives } \sum_j A_{ij}\, v_j$$
#
# * $d$ is the length of $q$ and $k$. An inner product of $d$ independent random numbers has a standard deviation proportional to $\sqrt d$. Without the division the softmax would soon put all
#   weight on one token, and its gradient would vanish.
# * $m_j$ is an optional **mask**: $m_j = -\infty$ gives token $j$ the weight 0, for instance because it is padding, and $m_j = 0$ changes nothing. The mask must be added before the
#   softmax, so that the other weights still sum to 1. Our U-Net uses no mask, so pixels may read padding, too.
# * Several such computations run side by side, each with its own $d$ columns of $q$, $k$ and $v$. They are called **heads**. Their results are concatenated, multiplied by a last matrix $W_o$, and *added* to $h$.
#
# > **In the papers.** With all queries as rows of a matrix $Q$, and so on: $\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(QK^\top/\sqrt{d}\right)V$
# > ([Vaswani et al. 2017](https://arxiv.org/abs/1706.03762), eq. 1). Attention from the pixels of a U-Net to a text is section 3.3 of the latent diffusion paper
# > ([Rombach et al. 2022](https://arxiv.org/abs/2112.10752)).
#
# The figure shows the matrices of the first cross-attention layer of our network.

# %%
layers = [module for name, module in net.named_modules() if name.endswith("attn2")]
side = size // 2 ** (len(net.cfg.channels) - 2)  # pixels a side at the second lowest resolution
show_attention_shapes(side**2, layers[0].to_q.in_features, encoder.length, encoder.dim, layers[0].heads)


# %% [markdown]
# In code:


# %%
def attention_weights(layer, x, text, mask=0.0):
    """A: how much each pixel reads each token. x (B, N, C), text (B, M, D), mask (M,) -> (B, heads, N, M)"""
    q, k = layer.to_q(x), layer.to_k(text)  # (B, N, C), (B, M, C)
    q, k = (y.unflatten(2, (layer.heads, -1)).transpose(1, 2) for y in (q, k))  # (B, heads, N or M, d)
    return (q @ k.transpose(2, 3) / q.shape[3] ** 0.5 + mask).softmax(dim=3)


def cross_attention(layer, x, text, mask=0.0):
    """What each pixel receives. -> (B, N, C)"""
    v = layer.to_v(text).unflatten(2, (layer.heads, -1)).transpose(1, 2)  # (B, heads, M, d)
    received = attention_weights(layer, x, text, mask) @ v  # (B, heads, N, d)
    return layer.to_out(received.transpose(1, 2).flatten(2))  # heads side by side, then W_o


# %% [markdown]
# Our U-Net has cross-attention at its two lowest resolutions: on the way down, at the bottom, and on the way up. In [unet.py](../common/models/unet.py) these layers
# are called `attn2`, and `attn1` is self-attention among the pixels.
#
# Is our code what the network computes? We draw a creature, so that we know where everything is, noise it half-way with 32 different noises, and let the network
# predict. A hook on each layer records its inputs and its output.

# %%
attributes = {
    "colour": "red", "body": "round", "element": "fire", "tail": "curly", "ears": "none", "wings": "bat", "horns": "antennae",
    "pattern": "plain", "eyes": "two", "mood": "happy", "background": "mint",
}  # fmt: skip
in_english = "a red round fire creature with bat wings, antennae and a curly tail, on a mint background"
in_chinese = "一只红色圆圆的火属性小怪兽，长着蝙蝠翅膀、触角和卷尾巴，薄荷色背景"
x0 = to_float(torch.from_numpy(draw(attributes, size)))[None]  # (1, 3, S, S)
half_way = level_at(500)
noisy = add_noise(x0, random(32, 3, size, size), half_way)


def record(caption):
    """[(x, text, output)] of each cross-attention layer, for the noisy images with this caption."""
    seen = []
    hooks = [layer.register_forward_hook(lambda _, inputs, output: seen.append((*inputs, output))) for layer in layers]
    predict(noisy, half_way, [caption])
    for hook in hooks:
        hook.remove()
    return seen


with torch.no_grad():
    differences = [
        (cross_attention(layer, *inputs) - output).abs().max()
        for layer, (*inputs, output) in zip(layers, record(in_english), strict=True)
    ]
print(f"{len(layers)} layers with {', '.join(str(layer.heads) for layer in layers)} heads")
print(f"largest difference between our code and the network: {max(differences):.1e}")

# %% [markdown]
# ### Where do pixels read a word?
#
# For each token, the weights $A_{ij}$ form a **map** over the pixels $i$. We average over the 32 noises, the layers and their heads, after enlarging the maps of the lowest
# resolution, and add up the maps of the tokens of a phrase. Each map is divided by its mean, so that all maps fit one colour scale.


# %%
@torch.no_grad()
def attention_maps(caption):
    """The mean weight of each token at each pixel. (M, S/2, S/2)"""
    parts = []
    for layer, (*inputs, _) in zip(layers, record(caption), strict=True):
        weights = attention_weights(layer, *inputs).mean((0, 1)).T  # (M, N)
        side = math.isqrt(weights.shape[1])
        parts.append(resized(weights.unflatten(1, (side, side)), size // 2))
    return torch.stack(parts).mean(0)


def map_of(phrase, caption, maps):
    """The map of a phrase: the sum of the maps of its tokens, divided by its mean. (S/2, S/2)"""
    begin, offsets = caption.index(phrase), tokenizer.backend.encode(caption).offsets
    total = sum(maps[j] for j, (a, b) in enumerate(offsets) if begin <= a < b <= begin + len(phrase))
    return total / total.mean()


phrases = {
    in_english: ["red", "fire", "bat wings", "antennae", "curly tail", "mint background"],
    in_chinese: ["红色", "火属性", "蝙蝠翅膀", "触角", "卷尾巴", "薄荷色背景"],
}
maps = {caption: attention_maps(caption) for caption in phrases}
drawn = [map_of(phrase, caption, maps[caption]) for caption, some in phrases.items() for phrase in some]
show_maps(x0[0], drawn, phrases[in_english] * 2, "weight / mean weight", 2.5, ["English", "Chinese"])

for caption, each in maps.items():
    total, n = each.mean((1, 2)), len(pieces(caption)[0])
    print(
        f"of all attention: begin {total[0]:.0%}, {n - 2} tokens of the caption {total[1 : n - 1].sum():.0%}, end {total[n - 1]:.0%}, "
        f"{len(total) - n} paddings {total[n:].sum():.0%}"
    )

# %% [markdown]
# Compare each map with the creature on the left. Some phrases are read where they belong, and others light up elsewhere. There are two reasons to be careful with such maps. A late token has attended to all tokens before it, so its vector may carry information about other words. And
# the map is a mean over layers that may have different tasks.
#
# Look also at the two printed lines: much attention goes to tokens that are no words. One interpretation is that *end* and the paddings, which come after the whole caption,
# serve as its summary. This does not explain the share of *begin*, which comes before all words and carries no information about them. Language models show something similar, called an
# **attention sink**: the weights must sum to 1, so a pixel that needs nothing must put its weight somewhere ([Xiao et al. 2023](https://arxiv.org/abs/2309.17453)). Whether this happens here cannot be read off the maps.
#
# **Question.** How could you find out whether the network uses what it reads from *begin*, from the words, and from the end and the paddings?

# %%
n, reach = len(pieces(in_english)[0]), torch.arange(encoder.length)
groups = {"begin": reach == 0, "words": (reach > 0) & (reach < n - 1), "end and paddings": reach >= n - 1}
before = predict(noisy, half_way, [in_english])[0]
print("mean change of the predicted image when pixels cannot read ...")
for name, group in groups.items():
    mask = torch.zeros(encoder.length).masked_fill(group, -math.inf)
    replace = lambda layer, inputs, output: cross_attention(layer, *inputs, mask)  # noqa: B023, E731 - a hook may change the output
    hooks = [layer.register_forward_hook(replace) for layer in layers]
    print(f"{name:18} {(predict(noisy, half_way, [in_english])[0] - before).square().mean().sqrt():.4f}")
    for hook in hooks:
        hook.remove()
print(
    f"for comparison, the empty caption {(predict(noisy, half_way, ['']))[0].sub(before).square().mean().sqrt():.4f}"
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Mask a group of tokens, and measure how much the predicted image changes. A group with much attention and a small effect behaves like a sink; a group with a large effect carries
# information that the network uses, or its absence is something that training never showed. The second possibility is the weakness of this experiment: no layer was ever trained with a mask, so a large effect
# need not mean that the group carried information about the caption.
#
# </details>
#
# ### Where does a word act?
#
# A map shows where a word is *read*, which is not the same as where it *acts*. There is a better experiment: **change the word, and see where the prediction changes.** We give the same
# noisy images with another caption, and draw how much the predicted $\hat x_0$ changes at each pixel.

# %%
changes = {
    "red → blue": ("red", "blue"),
    "fire → water": ("fire", "water"),
    "no bat wings": ("bat wings, ", ""),
    "no antennae": (", antennae", ""),
    "no curly tail": (" and a curly tail", ""),
    "mint → rose": ("mint", "rose"),
}
effects = [
    (predict(noisy, half_way, [in_english.replace(*change)])[0] - before).square().mean((0, 1)).sqrt()
    for change in changes.values()
]
show_maps(x0[0], [effect / effect.mean() for effect in effects], list(changes), "change / mean change", 4)
print("mean change:", ", ".join(f"{name} {float(e.mean()):.3f}" for name, e in zip(changes, effects, strict=True)))

# %% [markdown]
# This is how words steer a diffusion model: each word is a small push on the pixels that it concerns. The push is strong where the noise leaves something open, and weak where
# the noisy image already decides it. To see this, change `level_at(500)` to 200 and to 800.

# %% [markdown]
# ## 4 · One network, two distributions
#
# Training needs one new line. Each image's caption is replaced by the empty caption with probability $p = 0.1$, in every step
# (**caption dropout**). The image stays:
#
# $$c_i \leftarrow \varnothing \quad\text{where}\quad u_i < p, \qquad u_i \text{ uniform in } [0, 1)$$


# %%
def drop_captions(ids, empty, u, p):
    """Replace the captions with u < p by the empty one. ids (B, M) token ids, empty (M,), u (B,)"""
    return torch.where((u < p)[:, None], empty, ids)


batch = list(sheet.captions[:8])
u = torch.rand(8, generator=torch.Generator().manual_seed(0))
ids = drop_captions(tokenizer(batch), tokenizer([""])[0], u, p=0.3)
for caption, number, row in zip(batch, u.tolist(), ids, strict=True):
    print(f"u = {number:.2f}  {'(empty)' if torch.equal(row, tokenizer([''])[0]) else caption}")

# %% [markdown]
# (With $p = 0.3$, so that you see it in eight captions.) What does a network learn from this? Recall chapter 1: the best prediction of $x_0$ is the *mean* of all clean images
# that could be under the noise.
#
# * With a caption, this is the mean over the images with that caption, $\mathbb{E}[x_0 \,|\, x_t, c]$. The network learns $p_t(x \,|\, c)$.
# * Empty captions come with images of every kind. So with $\varnothing$ the best prediction is $\mathbb{E}[x_0 \,|\, x_t]$, and the network learns $p_t(x)$.
#
# One set of weights, two models: the caption that you pass selects which one you get. Here are both predictions for the same noisy
# images, at high noise and at lower noise, and their difference.
#
# > **In the papers.** Training with dropped captions is algorithm 1 of [Ho & Salimans 2022](https://arxiv.org/abs/2207.12598). The two predictions are written
# > $\varepsilon_\theta(x_t, c)$ and $\varepsilon_\theta(x_t, \varnothing)$, or $\varepsilon_\theta(x_t)$.

# %%
real = load_creatures("test", 6, size)
x0, rows, labels = to_float(real.pixels), [to_float(real.pixels)], ["image"]
for t in (985, 700):
    x = add_noise(x0, random(6, 3, size, size, seed=1), level_at(t))
    cond, uncond = predict(x, level_at(t), list(real.captions))[0], predict(x, level_at(t), [""])[0]
    rows += [x, cond, uncond, cond - uncond]
    labels += [f"noisy, t = {t}", "x̂₀ with caption", "x̂₀ without", "difference"]
print("captions:", *real.captions, sep="\n    ")
show_images(torch.cat(rows), 6, down=labels)

# %% [markdown]
# At $t = 985$ the prediction without a caption is similar for all images and near the mean of all creatures; a tint of the image shows through the noise. The caption gives it a colour and a body. At $t = 700$
# the noisy image itself shows more, and the caption adds less. The last row is the change that the caption makes (grey is none). Guidance is built from this row.

# %% [markdown]
# ## 5 · Train a small text-to-image model
#
# A short training is enough for one attribute. So here only colour, body and ears vary, the images have $16\times16$ pixels, and the captions name
# the colour alone.

# %%
rng = np.random.default_rng(0)
same = {
    "element": "rock", "tail": "none", "wings": "none", "horns": "none", "pattern": "plain", "eyes": "two", "mood": "happy",
    "background": "cream",
}  # fmt: skip
simple = [same | {name: str(rng.choice(ATTRIBUTES[name])) for name in ("colour", "body", "ears")} for _ in range(1000)]
images = to_float(torch.stack([torch.from_numpy(draw(each, 16, rng.random(POSE))) for each in simple]))
captions = [f"a {each['colour']} creature" for each in simple]  # one for each of the images (1000, 3, 16, 16)
show_images(images[:13], 13)

# %% [markdown]
# A U-Net of two resolutions and a transformer of one layer, trained as one network. The loop is that of chapter 1 with one more line. As in DDPM's code, the last layer of
# each residual branch begins at zero (`zero_init`), so that the untrained network predicts 0.

# %%
from common.evaluate.creature_classifier import load_creature_classifier, read_attributes
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.text.conditional import ConditionalUNet
from common.models.text.encoders import small_text
from common.models.unet import UNet, zero_init
from common.models.unet_config import text_unet

torch.manual_seed(0)
small_encoder = small_text(captions, dim=32, layers=1, heads=1, length=6)
small = ConditionalUNet(zero_init(UNet(text_unet(16, 3, (16, 32), small_encoder.dim))), small_encoder)
ids, empty = small_encoder.tokenizer(captions), small_encoder.tokenizer([""])[0]  # (1000, 6), (6,)
average = copy.deepcopy(small)  # EMA weights
optimizer = torch.optim.AdamW(small.parameters())
generator = torch.Generator().manual_seed(0)
root, sigma = schedule.alpha.float(), schedule.sigma.float()  # sqrt(alpha_bar_t) and sigma_t, (1001,)
classifier = load_creature_classifier()  # names the attributes of a creature; section 9 tests it
COLOUR_PROMPTS = [f"a {name} creature" for name in COLOURS]


def draw_small(net, prompts, w, **more):
    """A 16 x 16 image of each prompt with guidance scale w (section 6)."""
    model = TextToImagePipeline(net.unet, schedule, "v", net.text_encoder, clip_x0=True)
    return model.txt2img(prompts, SamplingConfig(guidance_scale=w, sampler="dpmpp_2m:10", **more))


STEPS, B, losses, right, snapshots, began = 320, 16, [], {}, [], time.perf_counter()
for step in range(1, STEPS + 1):
    i = torch.randint(1000, (B,), generator=generator)
    t = 1 + ((torch.arange(B) + torch.rand(B, generator=generator)) * 1000 / B).long().clamp(
        max=999
    )  # evenly spread levels
    eps = torch.randn((B, 3, 16, 16), generator=generator)
    text = drop_captions(ids[i], empty, torch.rand(B, generator=generator), p=0.1)  # NEW
    alpha_t, sigma_t = (curve[t].view(-1, 1, 1, 1) for curve in (root, sigma))
    x_t, v = alpha_t * images[i] + sigma_t * eps, alpha_t * eps - sigma_t * images[i]
    loss = (small(x_t, t - 1, text=text) - v).square().mean()
    optimizer.param_groups[0]["lr"] = 4e-3 * min(1, step / 25) * (1 + math.cos(math.pi * step / STEPS)) / 2
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(small.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), small.parameters(), strict=True):
            slow.lerp_(fast, 1 - step / (step + 10))  # the mean over the last tenth of the steps, about
    losses.append(loss.item())
    if step in (40, 80, 160, 240, 320):
        drawn = draw_small(average, COLOUR_PROMPTS * 2, w=1.0)
        found = read_attributes(classifier, drawn)[0][:, NAMES.index("colour")]
        right[step] = float((found == torch.arange(10).repeat(2)).double().mean())
        snapshots.append(drawn[:10])
average.eval()
print(f"{STEPS} steps of {B} images in {time.perf_counter() - began:.0f} s, with all samples")
show_images(torch.cat(snapshots), 10, COLOURS, [f"step {step}" for step in right])

# %%
_, (left, middle) = plt.subplots(1, 2, figsize=(9, 2.5), layout="constrained")
left.plot(losses, color="0.85", linewidth=0.5)
left.plot(range(12, STEPS - 12), np.convolve(losses, np.ones(25) / 25, "valid"), label="mean of 25 steps")
left.set(xlabel="training step", ylabel="loss", ylim=(0, 0.6))
left.legend()
middle.plot(list(right), list(right.values()), marker="o", markersize=4)
middle.axhline(0.1, color="0.6", linestyle=":", label="chance")
middle.set(xlabel="training step", ylabel="share of right colours", ylim=(0, 1.05))
middle.legend()
plt.show()

# %% [markdown]
# First comes noise, then a creature of no particular colour, and at some moment the captions take effect. Look for that moment in the loss curve: nothing marks it. The loss
# is small or large for many reasons, and the caption is only one of them.
#
# ### At which noise levels does the caption matter?
#
# We can measure it: the loss with the right caption, with the empty one, and with a wrong one, always with the same images and the same noise. The difference "none − right" is what
# the caption is worth. We split the noise levels into fifths, and measure the small model and the shipped one.


# %%
@torch.no_grad()
def losses_by_fifth(net, images, texts):
    """Loss of v by name of the text, a row for each fifth of the noise levels: {name: (5, N / 5)}"""
    n = len(images)
    t = ((torch.arange(n) + 0.5) * 1000 / n).long() + 1  # (N,) from nearly clean to pure noise
    alpha_t, sigma_t, eps = root[t].view(-1, 1, 1, 1), sigma[t].view(-1, 1, 1, 1), random(*images.shape)
    x_t, v = alpha_t * images + sigma_t * eps, alpha_t * eps - sigma_t * images
    found = {name: net(x_t, t - 1, text=text) - v for name, text in texts.items()}
    return {name: error.square().mean((1, 2, 3)).view(5, -1) for name, error in found.items()}


def show_gaps(title, losses):
    print(f"{title}\nfifth of the levels   right    none   wrong    none - right (95 %)    share of the whole gap")
    gap = losses["none"] - losses["right"]  # (5, N / 5)
    for k in range(5):
        means = "".join(f"{losses[name][k].mean():8.4f}" for name in ("right", "none", "wrong"))
        error = 1.96 * gap[k].std() / gap.shape[1] ** 0.5
        print(
            f"{200 * k:4} to {200 * k + 200:4}      {means}    {gap[k].mean():7.4f} ± {error:.4f}{gap[k].sum() / gap.sum():18.0%}"
        )
    print(f"all levels        {''.join(f'{losses[name].mean():8.4f}' for name in ('right', 'none', 'wrong'))}\n")


opposite = [f"a {COLOURS[COLOURS.index(each['colour']) - 5]} creature" for each in simple[:300]]
texts = {"right": ids[:300], "none": empty.expand(300, -1), "wrong": small_encoder.tokenizer(opposite)}
show_gaps("the small model, its own images", losses_by_fifth(average, images[:300], texts))

unseen = load_creatures("test", 150, size)  # the shipped model has not seen these; in random order
shuffled = torch.randperm(150, generator=torch.Generator().manual_seed(0))
x0, right_captions = to_float(unseen.pixels[shuffled]), [unseen.captions[i] for i in shuffled]
with torch.no_grad():
    all_texts = {"right": right_captions, "none": [""] * 150, "wrong": right_captions[1:] + right_captions[:1]}
    texts = {name: encoder(some) for name, some in all_texts.items()}
show_gaps("the shipped model, images that it has not seen", losses_by_fifth(net, x0, texts))

# %% [markdown]
# **Question.** In which fifths is the caption worth most, in each of the two models? Why do the models differ?
#
# <details><summary>Answer</summary>
#
# The last column has the shares. In the shipped model the gap grows with the noise. At low noise the image itself shows what the caption says, so a good network gains little from the
# caption; at high noise the caption is the only information.
#
# In the small model it is the other way round: the caption is worth most at low noise. A likely reason, which this experiment does not prove: for a fixed $x_t$, an error in $\hat x_0$ is an error in $\hat v$ that is
# $1/\sigma_t$ times as large, so at low noise the loss demands very precise colours. A network with little training cannot yet read them from the image so precisely, and the caption helps it.
#
# So a large gap does not mean that samples follow their captions. The colour of a sample is decided at high noise. This is why `train.py` samples fixed prompts during training, and why section 9 counts.
#
# </details>

# %% [markdown]
# ## 6 · Guidance
#
# Take the two predictions of section 4. Their difference is what the caption changes. To make the caption count *more*, go further in
# this direction than the network says:
#
# $$\tilde\varepsilon = \varepsilon_\theta(x_t, \varnothing) + w\,\big(\varepsilon_\theta(x_t, c) - \varepsilon_\theta(x_t, \varnothing)\big) \tag{1}$$
#
# $w$ is the **guidance scale**. $w = 0$ ignores the caption, $w = 1$ is the conditional prediction, and $w > 1$ extrapolates.
#
# ### Guidance as vectors
#
# In the plane we can see this, because the perfect denoiser is known there. Let the data be three blobs, normal distributions of standard deviation 0.3, and let the caption name one of them. At each noise level, the best $\hat x_0$ is a mean over
# the blobs, each weighted by the probability $p_t(k \,|\, x)$ that the noisy point $x$ came from it (chapter 1).

# %%
BLOBS, WIDTH, NAMED = torch.tensor([[-1.0, -0.6], [1.0, -0.6], [0.0, 1.1]]), 0.3, 1
EVERYTHING, CAPTION = torch.tensor([1 / 3, 1 / 3, 1 / 3]), torch.tensor([0.0, 1.0, 0.0])  # shares of the blobs


def log_joint(x, level, shares):
    """log of p_t(x, k) = share_k N(x; sqrt(alpha_bar) blob_k, variance I), up to a constant. x (N, 2) -> (N, 3)"""
    variance = (level.alpha * WIDTH) ** 2 + level.sigma**2
    return shares.log() - (x[:, None] - level.alpha * BLOBS).square().sum(2) / (2 * variance)


def perfect(x, level, shares):
    """The best predictions (x0, eps) for points x (N, 2), if the clean points come from the blobs in these shares."""
    variance = (level.alpha * WIDTH) ** 2 + level.sigma**2
    x0_of = BLOBS + level.alpha * WIDTH**2 / variance * (x[:, None] - level.alpha * BLOBS)  # (N, 3, 2) for each blob
    x0 = (log_joint(x, level, shares).softmax(1)[:, :, None] * x0_of).sum(1)  # (N, 2)
    return x0, (x - level.alpha * x0) / level.sigma


point, level = torch.tensor([0.3, 1.2]), level_at(480)
uncond, cond = ([part[0] for part in perfect(point[None], level, shares)] for shares in (EVERYTHING, CAPTION))
show_vectors(point, level, uncond, cond, BLOBS, WIDTH, NAMED)

# %% [markdown]
# On the left, all three arrows begin at the noisy point $x_t$. The arrow *uncond* points to where noisy data are dense, and *cond* points to where noisy data of the caption are dense. Guidance continues the step from *uncond* to *cond* (dotted).
# On the right is the same in terms of the predicted clean point. With $w = 1$ it lies in the orange blob, and with larger $w$ it moves on along a straight line, out of the blob and of all data. Remember this picture.
#
# ### Where formula (1) comes from
#
# The **score** of chapter 1 is the gradient of the logarithm of the density of *noisy* images, and the network's prediction is the score up to a factor:
#
# $$\nabla_x \log p_t(x) = -\frac{1}{\sigma_t}\,\mathbb{E}[\varepsilon \,|\, x_t = x] \approx -\frac{1}{\sigma_t}\,\varepsilon_\theta(x, \varnothing) \qquad\qquad \nabla_x \log p_t(x \,|\, c) \approx -\frac{1}{\sigma_t}\,\varepsilon_\theta(x, c) \tag{2}$$
#
# Bayes' rule for the noisy image $x_t = x$ and its caption $c$:
#
# $$p_t(c \,|\, x) = \frac{p_t(x \,|\, c)\; p(c)}{p_t(x)} \quad\Longrightarrow\quad \nabla_x \log p_t(c \,|\, x) = \nabla_x \log p_t(x \,|\, c) - \nabla_x \log p_t(x) \tag{3}$$
#
# ($p(c)$ does not depend on $x$, so its gradient is 0.) $p_t(c \,|\, x)$ is a **classifier** of noisy images: how probable is this caption, given this noisy image? The *gradient of its logarithm* is the difference of our two
# scores, so no classifier has to be trained. Hence the name classifier-free guidance. Now let the classifier count $w$ times:
#
# $$\nabla_x \log p_t(x) + w\, \nabla_x \log p_t(c \,|\, x) = \nabla_x \log p_t(x) + w\, \big(\nabla_x \log p_t(x \,|\, c) - \nabla_x \log p_t(x)\big) \tag{4}$$
#
# Multiply by $-\sigma_t$ and use (2): this is formula (1). So at *each noise level*, guidance follows the score of $p_t(x)\,p_t(c\,|\,x)^w$. Whether the samples then come from $p(x)\,p(c\,|\,x)^w$ is another question, to which section 7 gives the answer: no.
#
# For a fixed $x_t$, the quantities $\varepsilon$, $x_0$ and $v$ are affine functions of one another ($\hat x_0 = (x_t - \sigma_t\hat\varepsilon)/\sqrt{\bar\alpha_t}$), and the weights $w$ and $1 - w$ in (1) sum to 1. So (1) may be applied to any of the three, with the same result.
#
# > **In the papers.** Ho & Salimans count the scale from the other end: $\tilde\varepsilon = (1 + w')\,\varepsilon_\theta(x_t, c) - w'\,\varepsilon_\theta(x_t, \varnothing)$
# > ([2022](https://arxiv.org/abs/2207.12598), eq. 6). This is (1) with $w = 1 + w'$, so "off" is $w = 1$ or $w' = 0$. This course, `diffusers` and Stable Diffusion use $w$. Find out which one is meant before you compare numbers.
#
# In code, both halves go through the network as one batch:


# %%
@torch.no_grad()
def guided_prediction(x, level, captions, w, negative=""):
    """Formula (1), for the network's v. x (B, 3, S, S) -> (B, 3, S, S)"""
    text = torch.cat([encoder([negative]).expand(len(x), -1, -1), encoder(captions)])  # (2 B, M, D)
    v = net(torch.cat([x, x]), torch.full((2 * len(x),), level.time), text=text)  # all images, then all of them again
    uncond, cond = v.chunk(2)
    return uncond + w * (cond - uncond)


x, level, prompts = random(6, 3, size, size), level_at(800), list(real.captions)
v = guided_prediction(x, level, prompts, w=4.0)
through_v = level.alpha * x - level.sigma * v  # guide v, then convert to x0
cond, uncond = predict(x, level, prompts)[0], predict(x, level, [""])[0]
print(f"guiding v and guiding x0 differ by {(through_v - (uncond + 4.0 * (cond - uncond))).abs().max():.1e}")
print(f"the paper's form with w' = 3 differs by {(through_v - ((1 + 3.0) * cond - 3.0 * uncond)).abs().max():.1e}")

# %% [markdown]
# [guidance.py](cfg_pokemon/guidance.py) has this formula as a class, which looks to a sampler like any other network. So every sampler works with guidance. We use `dpmpp_2m`, DPM-Solver++, which needs few network evaluations;
# chapter 3 derives it. Below are eight prompts without and with guidance. The images of a column begin with the same noise.

# %%
EVALUATIONS = 12  # sampling steps; with guidance, each evaluates the network twice


def paint(prompts, w=3.0, **more):
    """An image of each prompt, (N, 3, S, S) in [-1, 1]. Image i begins with the same noise whatever its prompt and w."""
    return pipeline.txt2img(prompts, SamplingConfig(guidance_scale=w, sampler=f"dpmpp_2m:{EVALUATIONS}", **more))


prompts = [
    "a red fire creature with bat wings",
    "a blue round creature with cat ears, on a cream background",
    "a green grass creature with a curly tail",
    "a purple ghost creature with two horns and three eyes",
    "a yellow striped creature with rabbit ears",
    "一只白色毛茸茸的冰属性怪兽，有触角",
    "一只粉色的妖精属性小怪兽，长着蝴蝶翅膀",
    "",
]
short = ["red, fire,\nbat wings", "blue, round,\ncat ears", "green, grass,\ncurly tail", "purple, ghost,\n2 horns, 3 eyes",
         "yellow, striped,\nrabbit ears", "white, fluffy,\nice (zh)", "pink, fairy,\nbutterfly (zh)", "(empty)\n"]  # fmt: skip
show_images(torch.cat([paint(prompts, 1.0), paint(prompts, 3.0)]), 8, short, ["w = 1", "w = 3"])

# %% [markdown]
# Go through the columns. What does the prompt ask for that is missing at $w = 1$, and is it there at $w = 3$? In the last column both predictions of (1) are equal, so $w$ changes nothing.
#
# Training never goes beyond $w = 1$. Which distribution do the pictures with $w > 1$ come from?

# %% [markdown]
# ## 7 · Which distribution does guidance sample?
#
# It would be natural to read (4) as a recipe for samples of the **tilted distribution**
#
# $$p^{(w)}(x_0) \;\propto\; p(x_0)\; p(c \,|\, x_0)^w \;\propto\; p(x_0 \,|\, c)^w\, p(x_0)^{1-w} \tag{5}$$
#
# of clean images in which the caption counts $w$ times. Many texts say so. It is wrong, and you can see why in one dimension.
#
# ### Sharpening and adding noise do not commute
#
# A sampler for the tilted distribution needs the score of its *noised* version: first sharpen, then add noise. The field (4) is the score of something else: first add noise, which gives $p_t(x)$ and $p_t(c\,|\,x)$, then sharpen. Below, the clean
# data are two bells, and the caption names the right one. The classifier of clean data is nearly certain within each bell, so sharpening the clean distribution changes hardly anything. At high noise the bells overlap.

# %%
CENTRES, BELL, W = torch.tensor([-1.0, 1.0]), 0.3, 8.0
x0 = torch.linspace(-6, 6, 1201)  # clean points, and noisy points on the same grid
step = float(x0[1] - x0[0])


def normal(x, mean, std):
    return torch.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * (2 * torch.pi) ** 0.5)


def sharpen(of_all, of_caption):
    """p(x) p(c | x)^w with p(c | x) = p(x | c) p(c) / p(x), normalised on the grid."""
    density = of_all * (0.5 * of_caption / of_all) ** W
    return density / (density.sum() * step)


clean = [normal(x0, centre, BELL) for centre in CENTRES]
tilted = sharpen((clean[0] + clean[1]) / 2 + 1e-30, clean[1])
_, axes = plt.subplots(1, 4, figsize=(11, 2.3), layout="constrained")
for axis, t in zip(axes, (0, 300, 600, 850), strict=True):
    level = level_at(t)
    if t == 0:
        sharpened_first, noised_first, noisy = tilted, tilted, clean
    else:
        kernel = normal(x0[:, None], level.alpha * x0, level.sigma)  # q(x_t | x_0), (noisy, clean)
        sharpened_first = kernel @ tilted * step
        noisy = [normal(x0, level.alpha * m, ((level.alpha * BELL) ** 2 + level.sigma**2) ** 0.5) for m in CENTRES]
        noised_first = sharpen((noisy[0] + noisy[1]) / 2, noisy[1])
    axis.fill_between(x0, (noisy[0] + noisy[1]) / 2, color="0.85", label="$p_t(x)$")
    axis.plot(x0, sharpened_first, color="C2", label="sharpen, then noise")
    axis.plot(x0, noised_first, color="C0", linestyle="--", label="noise, then sharpen")
    axis.set(title=f"t = {t}", xlim=(-2.5, 4), yticks=[], xlabel="x")
    means = [float((x0 * density).sum() * step) for density in (sharpened_first, noised_first)]
    print(f"t = {t:3}: mean of sharpened-then-noised {means[0]:.2f}, of noised-then-sharpened {means[1]:.2f}")
axes[0].set_ylabel("density")
axes[3].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# At $t = 0$ the two are the same. With noise, the dashed curve lies further right: where the bells overlap, $p_t(c\,|\,x)$ still grows to the right, far beyond the bell, and $w$ multiplies its gradient. So the guided
# field pushes samples past the data while the noise is high. Later, at low noise, $p_t(c\,|\,x)$ is 1 almost everywhere, its gradient vanishes, and only the ordinary conditional score is left, which moves the samples too little to undo the push.
#
# ### Three blobs
#
# Now the plane. We sample with a deterministic sampler in five lines: split $x_t$ into $\hat x_0$ and $\hat\varepsilon$, and mix the two again at the next level (DDIM; chapter 3 derives it). Beside the guided samples we
# draw samples of the tilted distribution (5): many clean points of $p(x_0)$, drawn again with weights $p(c\,|\,x_0)^w$.


# %%
def sample(denoise, x, steps=100):
    """Deterministic sampling from noise x, with denoise(x, level) -> (x0, eps)."""
    levels = [level_at(round(1000 * (1 - i / steps))) for i in range(steps + 1)]
    for now, then in pairwise(levels):
        x0, eps = denoise(x, now)
        x = then.alpha * x0 + then.sigma * eps
    return x


def guided(w):
    """Formula (1) with the perfect denoiser."""

    def denoise(x, level):
        uncond, cond = perfect(x, level, EVERYTHING), perfect(x, level, CAPTION)
        return [a + w * (b - a) for a, b in zip(uncond, cond, strict=True)]  # of x0, and of eps

    return denoise


def tilted_samples(w, n=2000, many=100_000):
    """Samples of p(x0) p(c | x0)^w."""
    blob = torch.arange(many) % 3
    x0 = BLOBS[blob] + WIDTH * random(many, 2, seed=2)
    weights = (w * log_joint(x0, level_at(0), EVERYTHING).log_softmax(1)[:, NAMED]).exp()  # p(c | x0)^w
    return x0[torch.multinomial(weights, n, generator=torch.Generator().manual_seed(0))]


SCALES = (0.0, 1.0, 2.0, 4.0, 8.0)
noise = random(2000, 2)
clouds = {"tilted distribution (5)": {f"w = {w:g}": tilted_samples(w) for w in SCALES}}
clouds["guided samples"] = {f"w = {w:g}": sample(guided(w), noise) for w in SCALES}
show_blobs(clouds, BLOBS, WIDTH, NAMED)
for row, some in clouds.items():
    for title, points in some.items():
        inside = ((points - BLOBS[NAMED]).norm(dim=1) < 2.448 * WIDTH).double().mean()
        x, y = points.mean(0).tolist()
        print(
            f"{row:24} {title}: {inside:4.0%} inside the orange circle, mean ({x:+.2f}, {y:+.2f}), standard deviation {points.std(0).mean():.2f}"
        )

# %% [markdown]
# (Each circle holds 95 % of its blob.) With $w = 0$ and $w = 1$ both rows agree: guidance with a perfect network draws all blobs, or exactly the one that the caption names. With larger $w$ the tilted distribution stays inside the orange circle, because
# every clean point there fits the caption perfectly already. The guided samples leave it. They move *away from the other blobs*, and they crowd together: they **overshoot** and they lose **variety**. The network is perfect here, so both are effects of guidance itself.
#
# > **In the papers.** [Bradley & Nakkiran 2024](https://arxiv.org/abs/2408.09000) show that neither DDIM nor DDPM with guidance generates the tilted distribution (with $\gamma$ for our $w$, they call it gamma-powered), and that the two
# > samplers generate different distributions. They show what guidance does instead: in the limit of small steps, guided DDPM is a DDIM step of the conditional model followed by a Langevin step towards a sharpened *noisy* distribution.
#
# ### One bell, calculated
#
# How large is the difference? One case can be solved by hand. Let the data be numbers $x_0 \sim \mathcal{N}(0, 1)$, and let the caption be a rough description of the number, so that $x_0$ given $c$ is $\mathcal{N}(m, s^2)$ with $s < 1$. A caption *must* be
# narrower than the whole: averaged over all captions, $m^2 + s^2$ must be the variance of the whole, 1. (A pair of equally wide bells around 0 and $m \neq 0$ violates Bayes' rule, because $p(c\,|\,x_0) \propto p(x_0\,|\,c)/p(x_0)$ then grows beyond all bounds.)
#
# **Tilted.** The logarithm of (5) is $-\frac{w}{2}(x_0 - m)^2/s^2 - \frac{1-w}{2}x_0^2$ plus a constant. This is a bell, too, with
#
# $$\text{variance } \frac{1}{1 + w\,(1/s^2 - 1)} \qquad\qquad \text{mean } \frac{w\, m/s^2}{1 + w\,(1/s^2 - 1)} \tag{6}$$
#
# **Guided.** At each level $p_t(x) = \mathcal{N}(0, 1)$ and $p_t(x\,|\,c) = \mathcal{N}(\sqrt{\bar\alpha_t}\, m,\; v_t)$ with $v_t = 1 - \bar\alpha_t (1 - s^2)$. The guided score is linear in $x$, so the samples stay normal. Solving the differential equation that the
# deterministic sampler follows gives the standard deviation $s^w$. The code checks both.
#
# <details><summary>The calculation</summary>
#
# Write $a = \sqrt{\bar\alpha_t}$, so $\sigma_t^2 = 1 - a^2$, and $k = 1 - s^2$. For a small step the sampler above gives $dx = \hat x_0\, da + \hat\varepsilon\, d\sigma$ with $d\sigma = -\frac{a}{\sigma}\, da$. With $\hat\varepsilon = -\sigma\, \mathrm{score}$ and $\hat x_0 = (x + \sigma^2\, \mathrm{score})/a$ this is $dx/da = (x + \mathrm{score})/a$.
# The guided score is $-x + w\,\big(x - (x - a m)/v\big)$ with $v = 1 - a^2 k$, so $dx/da = w\,(m - a k x)/(1 - a^2 k)$. The difference of two solutions follows $d\ln|\Delta x| = -w\, \frac{a k}{1 - a^2 k}\, da = d\,\tfrac w2 \ln(1 - a^2k)$. Integrated from $a = 0$ to $1$, all
# differences shrink by the factor $(1 - k)^{w/2} = s^w$. The noise at the start has standard deviation 1, so the samples have $s^w$.
#
# </details>

# %%
M, S = 0.7, 0.6


def bell(x, level, mean, std):
    """The perfect predictions (x0, eps) if x0 is N(mean, std^2)."""
    variance = (level.alpha * std) ** 2 + level.sigma**2
    x0 = mean + level.alpha * std**2 / variance * (x - level.alpha * mean)
    return x0, (x - level.alpha * x0) / level.sigma


def guided_bell(w):
    """Formula (1) with the perfect denoisers of all data and of the caption's data."""
    return lambda x, level: [
        a + w * (b - a) for a, b in zip(bell(x, level, 0.0, 1.0), bell(x, level, M, S), strict=True)
    ]


_, axes = plt.subplots(1, 4, figsize=(11, 2.2), layout="constrained", sharey=True)
line = torch.linspace(-3, 3, 400)
for axis, w in zip(axes, (0, 1, 2, 4), strict=True):
    x = sample(guided_bell(w), random(20_000, seed=3), steps=250)
    precision = 1 + w * (1 / S**2 - 1)
    mean, std = w * M / S**2 / precision, precision**-0.5
    axis.hist(x.numpy(), bins=80, range=(-3, 3), density=True, color="C0", alpha=0.5, label="guided samples")
    axis.plot(line, normal(line, mean, std), color="C2", label="tilted (6)")
    axis.plot(line, normal(line, 0.0, 1.0), color="0.6", linewidth=0.8, label="all data")
    axis.plot(line, normal(line, M, S), color="C1", linewidth=0.8, label="caption's data")
    axis.set(title=f"w = {w}", xlabel="$x_0$")
    print(
        f"w = {w}: guided: mean {x.mean():.3f}, standard deviation {x.std():.3f} (theory {S**w:.3f}); "
        f"tilted: {mean:.3f} and {std:.3f}"
    )
axes[0].set_ylabel("density")
axes[0].legend(fontsize=7, loc="upper left")
plt.show()

# %% [markdown]
# **Question.** Why do practitioners use $w > 1$, if guidance makes a perfect network worse?
#
# <details><summary>Answer</summary>
#
# Real networks are not perfect at $w = 1$, and a limited network tends to cover too much: it also produces images between the modes, which belong to no caption. [Karras et al. 2024](https://arxiv.org/abs/2406.02507) argue that guidance removes such images, because
# the unconditional model makes these errors more strongly than the conditional one, so that the difference points away from them. They support this by guiding with a *worse version of the same model* instead of the unconditional one, which
# improves quality without the loss of variety. In addition, users often want typical examples of a prompt more than variety.
#
# </details>

# %% [markdown]
# ## 8 · Other gradients: a classifier, and a loss
#
# ### Classifier guidance
#
# Formula (4) works with any classifier of noisy images. If you have a network $p_\phi(c \,|\, x_t)$ that was trained on *noisy* images of all levels, take its gradient:
#
# $$\tilde\varepsilon = \varepsilon_\theta(x_t) - w\, \sigma_t\, \nabla_{x_t} \log p_\phi(c \,|\, x_t) \tag{7}$$
#
# > **In the papers.** [Dhariwal & Nichol 2021](https://arxiv.org/abs/2105.05233), the section on conditional sampling for DDIM. This came first, and classifier-free guidance replaced it because no second network has to be trained.
#
# On the plane the exact classifier is a softmax of `log_joint`. With it, (7) must give exactly what (1) gives.


# %%
def classifier_guided(w):
    """Formula (7) with the exact classifier, by automatic differentiation."""

    def denoise(x, level):
        x = x.detach().requires_grad_(True)
        log_p = log_joint(x, level, EVERYTHING).log_softmax(1)[:, NAMED]  # log p_t(c | x), (N,)
        (gradient,) = torch.autograd.grad(log_p.sum(), x)  # the sum, because each point depends on itself alone
        x = x.detach()
        eps = perfect(x, level, EVERYTHING)[1] - w * level.sigma * gradient
        return (x - level.sigma * eps) / level.alpha, eps

    return denoise


x, level = random(2000, 2), level_at(600)
by_classifier, without = classifier_guided(4.0)(x, level)[1], guided(4.0)(x, level)[1]
print(f"largest difference of the guided eps: {(by_classifier - without).abs().max():.1e}")

# %% [markdown]
# ### Loss guidance
#
# Training a classifier of noisy images for each wish is expensive. But often you can write down what you want as a loss $L(x_0)$ of *clean* images: the body should have this colour; the image should agree with a given one in some pixels; its CLIP embedding should be close to that of a
# text. The idea is to evaluate the loss at the *predicted* clean image, $L(\hat x_0(x_t))$, and to treat $e^{-s\,L}$ as the classifier:
#
# $$\tilde\varepsilon = \hat\varepsilon + s\, \sigma_t\, \nabla_{x_t}\, L\big(\hat x_0(x_t)\big) \qquad\qquad \hat x_0(x_t) = \frac{x_t - \sigma_t\, \hat\varepsilon(x_t)}{\sqrt{\bar\alpha_t}} \tag{8}$$
#
# The gradient with respect to $x_t$ passes *through the network*, so each step also costs a backward pass. It matters that the gradient is taken with respect to $x_t$ and not $\hat x_0$. For the best denoiser, the derivative of $\hat x_0$ with respect to $x_t$ is
# $\sqrt{\bar\alpha_t}/\sigma_t^2$ times the covariance matrix of $x_0$ given $x_t$. Put this into (8), and the predicted image moves by
#
# $$\tilde x_0 - \hat x_0 = -s\;\mathrm{Cov}[x_0 \,|\, x_t]\; \nabla L(\hat x_0) \tag{9}$$
#
# So the loss only moves what the noise leaves open. A change of the whole body's colour is possible at high noise, and at low noise nothing moves any more.
#
# > **In the papers.** (8) is the forward guidance of universal guidance ([Bansal et al. 2023](https://arxiv.org/abs/2302.07121)). With a measurement $L = \lVert y - A(x_0)\rVert^2$ it solves inverse problems such as inpainting
# > and deblurring, which is called diffusion posterior sampling ([Chung et al. 2022](https://arxiv.org/abs/2209.14687)). Both are approximations: $p_t(c\,|\,x_t)$ is the mean of $e^{-sL(x_0)}$ over all possible $x_0$, and not its value at the mean $\hat x_0$.
#
# We ask for a colour that no caption names, turquoise, in the middle of the image, where the body is. At the first steps the factor $1/\sqrt{\bar\alpha_t}$ enlarges every error of the network's derivative, so the result is clipped to $[-1, 1]$.

# %%
TURQUOISE = 2 * torch.tensor([0.15, 0.75, 0.70]) - 1  # red, green, blue in [-1, 1]
MIDDLE = slice(size * 3 // 8, size * 5 // 8)


def colour_loss(x0):
    """How far the middle of each image is from turquoise, (B, 3, S, S) -> (B,)"""
    return (x0[:, :, MIDDLE, MIDDLE].mean((2, 3)) - TURQUOISE).square().sum(1)


def loss_guided(loss, s, caption=""):
    """Formula (8)."""
    text = encoder([caption]).detach()

    def denoise(x, level):
        x = x.detach().requires_grad_(True)
        v = net(x, torch.full((len(x),), level.time), text=text.expand(len(x), -1, -1))
        x0, eps = level.alpha * x - level.sigma * v, (level.sigma * x + level.alpha * v).detach()
        (gradient,) = torch.autograd.grad(loss(x0).sum(), x)
        x, eps = x.detach(), eps + s * level.sigma * gradient
        x0 = ((x - level.sigma * eps) / level.alpha).clamp(-1, 1)
        return x0, (x - level.alpha * x0) / level.sigma

    return denoise


rows = {s: sample(loss_guided(colour_loss, s), random(5, 3, size, size, seed=4), steps=20) for s in (0, 5, 50)}
for s, drawn in rows.items():
    print(f"s = {s:2}: loss of the samples {colour_loss(drawn.clamp(-1, 1)).mean():.3f}")
show_images(torch.cat(list(rows.values())), 5, down=[f"s = {s}" for s in rows])

# %% [markdown]
# No caption was used, and the network was never trained for this. The bodies do not become turquoise: no creature is, and by (9) the loss moves the prediction only in directions that the model holds possible. It selects those possible colours that come nearest.
#
# **Question.** What happens for a much larger $s$, and why?
#
# <details><summary>Answer</summary>
#
# The push becomes longer than the region in which (9), a linear approximation, holds. The predicted images are then pushed out of those that the network knows, and artefacts appear. Try `s = 5000`. Remedies are a smaller $s$ and more steps.
#
# </details>

# %% [markdown]
# ## 9 · Does the picture show what the prompt asks for?
#
# Because our program drew the training data, we could also train a **classifier** that names all eleven attributes of an image
# ([creature_classifier.py](../common/evaluate/creature_classifier.py)). It was trained on other creatures than the models here, and on all combinations, so that it has no bias against a blue
# fire creature. How reliable is it? On real creatures that it has never seen:

# %%
found = read_attributes(classifier, unseen.pixels)[0]  # (150, 11) the most probable value of each attribute
accuracy = (found == unseen.attributes.table).double().mean(0)
worst = ", ".join(f"{NAMES[i]} ({accuracy[i]:.0%})" for i in accuracy.argsort()[:3].tolist())
print(f"right in {accuracy.mean():.1%} of all cases; least often for {worst}")

# %% [markdown]
# A picture is measured only by what its prompt *names*. The **attribute accuracy** is the share $k/n$ of right attributes: $n$ attributes were named in all prompts together, and the classifier finds $k$ of them in the pictures.
#
# ### How sure is a share?
#
# A share of 7 out of 8 could come from a model that is right in 60 % or in 99 % of all cases. A **95 % interval** contains the true share in 95 % of all experiments. For a share of independent cases, use Wilson's interval with $z = 1.96$:
#
# $$\frac{1}{1 + z^2/n}\left(\frac kn + \frac{z^2}{2n} \pm z \sqrt{\frac{\frac kn\left(1 - \frac kn\right)}{n} + \frac{z^2}{4n^2}}\,\right) \tag{10}$$
#
# The simpler $\frac kn \pm z\sqrt{\frac kn(1-\frac kn)/n}$ claims complete certainty at $k = n$. In this course ± and brackets always mean a 95 % interval.


# %%
def wilson(k, n, z=1.96):
    """The share k / n with its 95 % interval (10)."""
    share = k / n
    middle, reach = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return share, (middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)


for k, n in ((8, 8), (7, 8), (70, 80), (700, 800)):
    print("{} of {}: {:.0%} ({:.0%} to {:.0%})".format(k, n, *wilson(k, n)))

# %% [markdown]
# Now 20 prompts that describe test creatures, half of them in Chinese, each drawn twice, at four scales. First three of them in detail.

# %%
from common.evaluate.prompt_accuracy import chance_accuracy, make_prompts, pooled_accuracy

N = 20
test = make_prompts("test", N, "both", size)  # captions, and the attributes that they name
drawn = {w: paint(test.captions * 2, w) for w in (0.0, 1.0, 3.0, 8.0)}  # (2 N, 3, S, S) at each scale
found = read_attributes(classifier, drawn[3.0][:3])[0]
for i in range(3):
    print(f"{i + 1}  {test.captions[i]}")
    for k in torch.nonzero(test.mentioned[i]).flatten().tolist():
        values, wanted, seen = ATTRIBUTES[NAMES[k]], int(test.wanted[i, k]), int(found[i, k])
        print(
            f"      {NAMES[k]:11}{values[wanted]:11}{'right' if wanted == seen else 'the classifier finds: ' + values[seen]}"
        )
shown = torch.cat([to_float(test.real[:3]), *(some[:3] for some in drawn.values())])
show_images(shown, 3, ["prompt 1", "prompt 2", "prompt 3"], ["described", *(f"w = {w:g}" for w in drawn)])

# %% [markdown]
# The attributes of one picture are not independent, so Wilson's interval would be too narrow for all of them together. Instead we use a **bootstrap**: draw 20 prompts again out of the 20, with repetition, a thousand times, and
# see how much the result varies. Two references make the numbers readable. The *upper* one is the accuracy of real pictures of the same captions. The *lower* one compares real pictures with each other's captions, which is what a model
# gets that draws well and ignores the text.


# %%
def prompt_accuracy(prompts, pictures):
    """Attribute accuracy of two pictures of each prompt, (2 N, 3, S, S), with a bootstrap interval over prompts."""
    found = read_attributes(classifier, pictures)[0].unflatten(0, (2, -1))  # (2, N, 11)
    right = ((found == prompts.wanted) & prompts.mentioned).sum(0)  # (N, 11) how many of the two are right
    return pooled_accuracy(right, 2 * prompts.mentioned)


upper = prompt_accuracy(test, torch.cat([test.real, test.real])).value
lower = chance_accuracy(classifier, test)["accuracy"]
measured = {w: prompt_accuracy(test, pictures) for w, pictures in drawn.items()}
values, low, high = (
    np.array([getattr(each, name) for each in measured.values()]) for name in ("value", "low", "high")
)
plt.figure(figsize=(6, 2.8), layout="constrained")
plt.errorbar(list(drawn), values, (values - low, high - values), marker="o", capsize=3)
plt.axhline(upper, color="0.4", linestyle="--", label="real pictures")
plt.axhline(lower, color="0.4", linestyle=":", label="real pictures, other captions")
plt.gca().set(xlabel="guidance scale w", ylabel="attribute accuracy", ylim=(0, 1.03), xticks=list(drawn))
plt.legend(loc="center right")
plt.show()
for w, each in measured.items():
    print(f"w = {w:g}: {each.value:.1%} ({each.low:.1%} to {each.high:.1%})")
print(
    f"real pictures {upper:.1%}, real pictures with other captions {lower:.1%}; {int(test.mentioned.sum())} attributes named"
)

# %% [markdown]
# What these intervals show with certainty is that the model uses its captions: compare $w = 1$ with $w = 0$ and with the lower reference. Two scales whose intervals overlap a good deal have *not* been shown to differ. For the best scale
# you need more pictures: `python 02_cfg_pokemon/evaluate.py` takes 200 prompts of each kind, and [RESULTS.md](RESULTS.md) has its table.
#
# ## 10 · Negative prompts
#
# In (1) the empty caption stands for "anything". It need not be empty. Put a caption there that you do *not* want, and guidance leads away from it:
#
# $$\tilde\varepsilon = \varepsilon_\theta(x_t, c_{\text{neg}}) + w\,\big(\varepsilon_\theta(x_t, c) - \varepsilon_\theta(x_t, c_{\text{neg}})\big) \tag{11}$$
#
# This is a **negative prompt**. It needs no training and no new code: the first half of the batch gets another text. In terms of (5), the prediction follows $p_t(x\,|\,c)^w / p_t(x\,|\,c_{\text{neg}})^{w-1}$ at each level: images that fit the prompt well and the negative prompt badly.
#
# The prompt below leaves wings open. To exclude all wings, the negative prompt must name all kinds that the data have. The third row says it in the prompt instead, as our captions do, and the last line of the output in other words. The images of a column begin with the same noise, so we can also count image by image: the last number is the mean change, with its interval. If the interval excludes 0,
# the change is more than chance.

# %%
prompt, n, wings = "a green creature", 40, NAMES.index("wings")
every_kind = "a creature with bat wings, feathered wings, butterfly wings"
rows = {
    "no negative prompt": paint([prompt] * n),
    "negative: every kind of wings": paint([prompt] * n, negative_prompt=every_kind),
    "in the prompt: but without wings": paint([prompt + " but without wings"] * n),
    "in other words: without wings": paint([prompt + " without wings"] * n),
}
winged = {name: (read_attributes(classifier, pictures)[0][:, wings] != 0).double() for name, pictures in rows.items()}
for name, each in winged.items():
    k, difference = int(each.sum()), each - winged["no negative prompt"]
    change = f"{difference.mean():+.0%} ± {1.96 * difference.std() / n**0.5:.0%}"
    print("{:32} wings on {:2} of {}: {:4.0%} ({:.0%} to {:.0%}); change {}".format(name, k, n, *wilson(k, n), change))
show_images(
    torch.cat([pictures[:8] for pictures in rows.values()][:3]),
    8,
    down=[name.replace(": ", ":\n") for name in rows][:3],
)

# %% [markdown]
# **Question.** Compare the columns. What else does the negative prompt change? And why does *but without wings* in the prompt work for this model, although users of Stable Diffusion report the opposite effect?
#
# <details><summary>Answer</summary>
#
# The whole image moves away from everything that the negative caption stands for, so poses and other parts change, too. It is a push and not a promise. *But without wings* occurs in our training captions, so the text encoder could learn
# it. Without the *but* the phrase is twenty times as rare in them (61<!--given--> against 1,213<!--given--> of 20,000<!--given--> captions), and the printed counts show no effect that exceeds its interval: the encoder has learned phrases, and not the rule of negation. Captions of photographs rarely say what is missing. A model trained on those reads mostly the word *wings*, and a negative prompt is then the better way. With your own model, measure it as we did here.
#
# </details>
#
# ## 11 · What guidance costs, and the remedies
#
# Section 7 found two effects of guidance with a perfect network: overshoot, and a loss of variety. Do they appear in pictures? We compare two models: the small one of section 5, which has seen very little training, and the shipped one.

# %%
few = [0, 3, 4, 6, 7]  # indices of five of the ten colours
some_prompts = [COLOUR_PROMPTS[i] for i in few]
for model in ("small", "shipped"):
    rows = {
        w: (draw_small(average, some_prompts, w) if model == "small" else paint(some_prompts, w))
        for w in (1.0, 3.0, 8.0)
    }
    print(f"the {'small model of section 5' if model == 'small' else 'shipped model'}:")
    display(show_images(torch.cat(list(rows.values())), 5, [COLOURS[i] for i in few], [f"w = {w:g}" for w in rows]))

# %% [markdown]
# In the small model large $w$ is plainly visible: colours become glaring, and details such as eyes disappear in flat areas. Look for the same in the shipped model. For numbers we use four measures of each picture: **brightness** and **saturation**, which are means over its pixels; the share of **clipped**
# colour values, 0 or 255; and **variety**, the standard deviation between pictures of the same prompt. We plot the *difference to $w = 1$ for the same prompt and the same noise*. Such paired differences vary much less than the
# measures themselves.


# %%
def measures(pictures, repeats):
    """Per prompt: brightness, saturation, clipped share and variety, of `repeats` pictures of each of P prompts.

    pictures (repeats P, 3, S, S) in [-1, 1] -> {name: (P,)}
    """
    p = ((pictures.clamp(-1, 1) + 1) / 2).unflatten(0, (repeats, -1))  # (repeats, P, 3, S, S)
    return {
        "brightness": p.mean((0, 2, 3, 4)),
        "saturation": (p.amax(2) - p.amin(2)).mean((0, 2, 3)),
        "clipped share": ((p < 1 / 510) | (p > 1 - 1 / 510)).double().mean((0, 2, 3, 4)),
        "variety": p.var(0).mean((1, 2, 3)).sqrt(),
    }


def paired(some, others):
    """The mean of the differences, and the half width of its 95 % interval."""
    difference = (some - others).double()
    return float(difference.mean()), float(1.96 * difference.std() / len(difference) ** 0.5)


small_drawn = {w: draw_small(average, COLOUR_PROMPTS * 4, w) for w in (1.0, 3.0, 8.0)}
models = {
    "small model": {w: measures(pictures, 4) for w, pictures in small_drawn.items()},
    "shipped model": {w: measures(pictures, 2) for w, pictures in drawn.items() if w > 0},
}
_, axes = plt.subplots(1, 4, figsize=(11, 2.5), layout="constrained")
for axis, key in zip(axes, models["small model"][1.0], strict=True):
    for (name, at), colour in zip(models.items(), ("C3", "C0"), strict=True):
        differences = [paired(at[w][key], at[1.0][key]) for w in at]
        axis.errorbar(
            list(at), *np.array(differences).T, color=colour, marker="o", markersize=4, capsize=2, label=name
        )
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.set(title=key, xlabel="guidance scale w", xticks=(1, 3, 8))
axes[0].set_ylabel("difference to w = 1")
axes[1].legend(fontsize=8)
plt.show()
for name, at in models.items():
    print(
        f"{name}, w = 8 against w = 1:",
        ", ".join("{} {:+.3f} ± {:.3f}".format(key, *paired(at[8.0][key], at[1.0][key])) for key in at[8.0]),
    )

# %% [markdown]
# A bar that does not cross the line at 0 shows a difference. **Question.** Which effects of section 7 do you find in which model?
#
# <details><summary>Answer</summary>
#
# In the small model large $w$ raises the saturation and the clipped share far more than in the shipped one. A network that has learned little makes errors, the difference of its two predictions contains them, and $w$ amplifies them. A loss of variety may be covered up there, because the standard deviation of
# pixels also grows when colours become more extreme. In the shipped model the changes are smaller. Read off the figure which of them this many pictures can show at all: a bar across the line at 0 means that a change was *not shown*, and not that there is none.
#
# </details>
#
# ### Remedies
#
# The simplest remedy is a smaller $w$. Others keep a large $w$ and limit its effect:
#
# * **Dynamic thresholding** ([Saharia et al. 2022](https://arxiv.org/abs/2205.11487), section 2.3). Clipping $\hat x_0$ to $[-1, 1]$ flattens all pixels beyond. Instead, let $q$ be the quantile of $|\hat x_0|$ below which 99.5 %<!--given--> of the image's values lie, and $r = \max(q, 1)$.
#   Then clip to $[-r, r]$ and divide by $r$:
#   $$\hat x_0 \leftarrow \mathrm{clip}(\hat x_0,\, -r,\, r)\,/\,r \tag{12}$$
# * **Guidance rescale** ([Lin et al. 2023](https://arxiv.org/abs/2305.08891), section 3.4). Guidance increases the standard deviation of a prediction over the pixels of an image. Scale it back to that of the conditional prediction, or a share $\phi$ of the way:
#   $$\tilde v_{\text{rescaled}} = \tilde v\; \frac{\mathrm{std}(v_{\text{cond}})}{\mathrm{std}(\tilde v)} \qquad\qquad \phi\, \tilde v_{\text{rescaled}} + (1 - \phi)\, \tilde v \tag{13}$$
# * **Guidance interval** ([Kynkäänniemi et al. 2024](https://arxiv.org/abs/2404.07724)). Guide only at middle noise levels, low $< \sigma_t/\sqrt{\bar\alpha_t} \le$ high, and use $w = 1$ elsewhere. At high noise guidance costs variety, and at low noise it changes hardly anything.
#   It saves network evaluations, too.
#
# Practitioners often say that guided samples come out *dark*, and that augmentation of the training data is the reason ([sources and measurements](../docs/claims.md#guided-samples-are-dark-because-of-augmentation)). Our training uses no augmentation, so augmentation cannot cause what you see here. A second suspect is the clipping of $\hat x_0$, which removes more from an image that
# overshoots. Sampling without clipping tests it.

# %%
remedies = {
    "w = 8, no clipping": {"clip_x0": False},
    "w = 8, dynamic thresholding": {"clip_x0": "dynamic"},
    "w = 8, rescale, φ = 0.7": {"rescale": 0.7},
    "w = 8, interval 0.3 to 5": {"interval": (0.3, 5.0)},
}


def show_remedies(found, at_one):
    """found: {name: (accuracy with interval, measures)}"""
    print(
        f"{'':30}{'attributes right (95 %)':>28}{'brightness':>18}{'saturation':>18}{'variety':>18}   (differences to w = 1)"
    )
    for name, (share, each) in found.items():
        columns = "".join(
            "{:+10.3f} ± {:.3f}".format(*paired(each[key], at_one[key]))
            for key in ("brightness", "saturation", "variety")
        )
        print(f"{name:30}{share[0]:>12.0%} ({share[1]:.0%} to {share[2]:.0%}){'':4}{columns}")


def right_colours(pictures):
    """Share of pictures of COLOUR_PROMPTS * 4 in which the classifier finds the right colour, with its interval."""
    found = read_attributes(classifier, pictures)[0][:, NAMES.index("colour")]
    return wilson(int((found == torch.arange(10).repeat(4)).sum()), 40)


by_remedy = {f"w = {w:g}": pictures for w, pictures in small_drawn.items()}
by_remedy |= {name: draw_small(average, COLOUR_PROMPTS * 4, 8.0, **more) for name, more in remedies.items()}
found = {name: (right_colours(pictures), measures(pictures, 4)) for name, pictures in by_remedy.items()}
print("the small model")
show_remedies(found, found["w = 1"][1])
show_images(
    torch.cat([pictures[:10] for pictures in by_remedy.values()]),
    10,
    COLOURS,
    [name.replace(", ", ",\n", 1) for name in by_remedy],
)

# %% [markdown]
# **Question.** Which remedies help the small model, and at what price?
#
# <details><summary>Answer</summary>
#
# Dynamic thresholding brings the saturation down, but the images become grey and dark. Rescale does not bring it down here, and coloured speckles appear. Without clipping the saturation stays high, so clipping is not the only cause of the drift. With
# the guidance interval the saturation drifts less on average, but its 95 % interval overlaps that of plain $w = 8$, so a difference is not shown. The accuracy is unchanged. $w = 3$ is simpler,
# and on average better than the guidance interval in both measures, accuracy and drift.
#
# </details>
#
# The same for the shipped model, with the remedy that did least harm, the interval.

# %%
by_remedy = {f"w = {w:g}": pictures for w, pictures in drawn.items() if w > 0}
by_remedy["w = 8, interval 0.3 to 5"] = paint(test.captions * 2, 8.0, interval=(0.3, 5.0))
found = {name: (prompt_accuracy(test, pictures), measures(pictures, 2)) for name, pictures in by_remedy.items()}
print("the shipped model")
show_remedies({name: ((a.value, a.low, a.high), each) for name, (a, each) in found.items()}, found["w = 1"][1])
visited = [
    level.sigma / level.alpha for level in pipeline.noise_levels(SamplingConfig(sampler=f"dpmpp_2m:{EVALUATIONS}"))
][:-1]
print(f"guided steps in the interval: {sum(0.3 < ratio <= 5 for ratio in visited)} of {EVALUATIONS}")

# %% [markdown]
# Look at two columns at once. A remedy that restores the colours and loses the accuracy of $w = 8$ has achieved nothing: a smaller $w$ does the same. [RESULTS.md](RESULTS.md) has this comparison with 200 prompts.
#
# ## 12 · Combinations that training never showed
#
# Training contains no *blue fire creature*. It contains blue creatures, and it contains fire creatures that are not blue. A network that has memorized images has nothing to draw here.

# %%
never = [f"a {colour} {element} creature" for element, colour in NEVER_TOGETHER.items()]
labels = [f"{colour}\n{element}" for element, colour in NEVER_TOGETHER.items()]
show_images(torch.cat([paint(never, w) for w in (1.0, 3.0)]), 8, labels, ["w = 1", "w = 3"])

# %% [markdown]
# Does each picture show both, the colour *and* the element? We count with captions of held-out creatures, which name more than these two words, and compare with the test captions, whose combinations are of the kind that training showed. By chance a colour is right in
# one case of ten, an element in one case of eight, and both in one case of eighty. (The two pictures of a prompt are not quite independent, so Wilson's intervals here are slightly too narrow.)

# %%
held = make_prompts("heldout", N, "both", size)
both = [NAMES.index("colour"), NAMES.index("element")]
print(f"{'':28}{'attributes right (95 %)':28}colour and element both right (95 %)")
for name, prompts, w, pictures in [
    *(("trained kind", test, w, drawn[w]) for w in (1.0, 3.0)),
    *(("never seen", held, w, paint(held.captions * 2, w)) for w in (1.0, 3.0)),
]:
    each = prompt_accuracy(prompts, pictures)
    pairs = (read_attributes(classifier, pictures)[0][:, both] == prompts.wanted[:, both].repeat(2, 1)).all(1)
    k = int(pairs.sum())
    share = "{} of {}: {:.0%} ({:.0%} to {:.0%})".format(k, 2 * N, *wilson(k, 2 * N))
    print(f"{name + f', w = {w:g}':28}{f'{each.value:.1%} ({each.low:.1%} to {each.high:.1%})':28}{share}")

# %% [markdown]
# **Question.** Why is this easier here than with photographs?
#
# <details><summary>Answer</summary>
#
# In our data the attributes are independent, so every word is seen with many values of all others and can be learned by itself. In photographs attributes depend on each other: bananas are yellow, and a blue one is hard to draw. Many images and varied captions help.
# [RESULTS.md](RESULTS.md) compares training on 100, 800 and 10,000 creatures.
#
# </details>
#
# ## 13 · Does the model copy its training pictures?
#
# A model that copies training pictures also follows its captions. So we look for the nearest training picture of each sample, after a slight blur, so that a shift of half a pixel does not count. How near is too near? Compare with
# as many creatures that the model was *not* trained on. If it copies, most samples are nearer to the seen set than to the unseen one. Without copying, this is so in half of the cases.

# %%
from cfg_pokemon.memorization import blurred, nearer, nearest
from common.io.pixels import to_bytes

seen = load_creatures("train", 1000, size).pixels  # the first of those that the model was trained on
never_seen = load_creatures("train", 1000, size, seed=2).pixels  # as many of another seed
samples = to_bytes(drawn[3.0])  # (2 N, 3, S, S)
distance, index = nearest(blurred(samples), blurred(seen))
elsewhere, _ = nearest(blurred(samples), blurred(never_seen))
real_distance, _ = nearest(blurred(unseen.pixels), blurred(seen))
k, n = int(nearer(distance, elsewhere).sum()), len(samples)
print(
    "nearer to the seen set than to the unseen one: {} of {} samples, {:.0%} ({:.0%} to {:.0%})".format(
        k, n, *wilson(k, n)
    )
)
print(
    f"median distance to the nearest seen picture: samples {distance.median():.3f}, new real creatures {real_distance.median():.3f}"
)
first = distance.argsort()[:8]
show_images(to_float(torch.cat([samples[first], seen[index[first]]])), 8, down=["sample", "nearest seen"])

# %% [markdown]
# The figure has the eight nearest pairs. They are alike in kind, because many attributes agree. Is any of them the *same drawing*?
#
# Read the share together with its interval. If the interval contains 50 %, the test has not found copying, and it excludes only what lies outside the interval: a model that copies every twentieth picture would pass. If the interval
# lies above 50 %, the samples lean towards the training set, even if no single one is a copy. Only a part of the training set is searched here. `python 02_cfg_pokemon/memorization.py` searches all of it, in pixels and in the classifier's features.
#
# ## What you can do now
#
# * Turn captions into token vectors, and write cross-attention with heads and a mask.
# * Train one network with and without captions, and sample with guidance and with negative prompts.
# * Derive guidance from Bayes' rule for noisy images, and say why its samples do not follow the tilted distribution.
# * Guide with the gradient of a classifier or of a loss, without any training.
# * Measure prompt adherence with an interval and two references, and what guidance costs with paired differences.
#
# ### The formulas on one page
#
# | | formula | where |
# |---|---|---|
# | noisy image | $x_t = \sqrt{\bar\alpha_t}\, x_0 + \sigma_t\, \varepsilon$, $\;\sigma_t^2 = 1 - \bar\alpha_t$ | chapter 1 |
# | $v$-prediction | $v = \sqrt{\bar\alpha_t}\,\varepsilon - \sigma_t\, x_0$, $\;\hat x_0 = \sqrt{\bar\alpha_t}\, x_t - \sigma_t\, \hat v$ | section 2 |
# | cross-attention | $\mathrm{softmax}(QK^\top/\sqrt d + m)\, V$ | section 3 |
# | caption dropout | $c \leftarrow \varnothing$ where $u < p$, for each image | section 4 |
# | score | $\nabla_x \log p_t(x) = -\hat\varepsilon/\sigma_t$ | (2) |
# | guidance | $\tilde\varepsilon = \varepsilon_\theta(x_t, \varnothing) + w\,(\varepsilon_\theta(x_t, c) - \varepsilon_\theta(x_t, \varnothing))$ | (1) |
# | what it follows at each level | $\nabla_x \log\, p_t(x)\, p_t(c\,\vert\,x)^w$ | (4) |
# | what it does *not* sample | $p(x_0)\, p(c\,\vert\,x_0)^w$ | (5) |
# | tilted bell | variance $1/(1 + w(1/s^2 - 1))$, mean $w\,m/s^2$ times that; guided: standard deviation $s^w$ | (6) |
# | classifier guidance | $\tilde\varepsilon = \hat\varepsilon - w\,\sigma_t \nabla_{x_t} \log p_\phi(c\,\vert\,x_t)$ | (7) |
# | loss guidance | $\tilde\varepsilon = \hat\varepsilon + s\,\sigma_t \nabla_{x_t} L(\hat x_0(x_t))$ | (8) |
# | negative prompt | $\varnothing$ in (1) replaced by $c_{\text{neg}}$ | (11) |
# | Wilson's interval | see there | (10) |
# | dynamic thresholding | $\mathrm{clip}(\hat x_0, -r, r)/r$, $\;r = \max(q_{0.995}(\vert\hat x_0\vert), 1)$ | (12) |
# | guidance rescale | $\phi\,\tilde v\,\mathrm{std}(v_{\text{cond}})/\mathrm{std}(\tilde v) + (1-\phi)\,\tilde v$ | (13) |
#
# ### Further reading
#
# * [Ho & Salimans 2022](https://arxiv.org/abs/2207.12598), *Classifier-free diffusion guidance*: eight pages that you can now read in full.
# * [Dhariwal & Nichol 2021](https://arxiv.org/abs/2105.05233), *Diffusion models beat GANs on image synthesis*: classifier guidance.
# * [Bradley & Nakkiran 2024](https://arxiv.org/abs/2408.09000), *Classifier-free guidance is a predictor-corrector*: section 7 in general.
# * [Karras et al. 2024](https://arxiv.org/abs/2406.02507), *Guiding a diffusion model with a bad version of itself*.
# * [Kynkäänniemi et al. 2024](https://arxiv.org/abs/2404.07724), *Applying guidance in a limited interval improves sample and distribution quality in diffusion models*.
# * [Bansal et al. 2023](https://arxiv.org/abs/2302.07121), *Universal guidance for diffusion models*, and [Chung et al. 2022](https://arxiv.org/abs/2209.14687), *Diffusion posterior sampling for general noisy inverse problems*.
# * [Rombach et al. 2022](https://arxiv.org/abs/2112.10752), *High-resolution image synthesis with latent diffusion models*: text to image at full size; chapter 4 builds a small one.
#
# ### Things to try in this notebook
#
# Write down what you expect before you run each.
#
# * Section 3: change `level_at(500)` to 200 and to 800. When do words act where they belong, and when everywhere?
# * Section 5: drop no captions (`p=0.0`), and draw the colours with `draw_small(average, COLOUR_PROMPTS, 3.0)`. What is the empty caption worth then?
# * Section 6: guide at $w = 0.5$.
# * Section 7: let the caption name two blobs. Where do the points go?
# * Section 8: replace `colour_loss` by one that asks for a dark upper half.
# * Section 12: ask in Chinese, 一只蓝色的火属性小怪兽.
#
# Then build it yourself with the [exercises](exercises/README.md) and their grader, `python -m common.grade 02`. Afterwards train on your own pictures or on Pokémon, with captions in either language, or with a CLIP as text encoder: see the
# [page of programs](../docs/programs.md#chapter-2).
