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
# # Chapter 6 · From the name of a dish to a moving picture
#
# English · [中文](lesson.zh.ipynb)
#
# You type 番茄炒蛋, and a short film loops on the screen: a plate of tomato and scrambled eggs, from which the camera moves back
# until a table comes into view. Two models make everything you see. One draws the plate from its name, and the other paints what
# the camera discovers.
#
# You know most of the parts: diffusion (chapters 1 and 3), guidance (chapter 2), latents (chapter 4), ControlNet (chapter 5). This
# chapter is about the places where the parts meet, because that is where such systems fail:
#
# 1. **a Chinese CLIP**: a name becomes a vector;
# 2. **conditioning on one vector**: why attention needs a second token, and guidance;
# 3. **inpainting**: nine channels, RePaint, and edges that cannot be seen;
# 4. **a camera**: keyframes, colours that stay the same, and the frames between keyframes;
# 5. **a film**: loops, 256 colours, and formats with all colours;
# 6. **control during sampling**: prompts for regions, prompts and guidance that change;
# 7. **published models** in the place of the small ones.
#
# You need chapters 2 and 4. Everything runs on a laptop's CPU without a download, in about three minutes. Dish names are Chinese in
# the text; in figures and in most outputs they are English.

# %%
from common.grade.chapter import (
    open_chapter,  # no module named common? Select the kernel in which the course is installed (README.md)
)

CHAPTER = open_chapter("06_inpaint_gif")  # this folder; from here on, its files can be imported

# %%
import math
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Image, display

from common import viz
from common.data.dishes.captions import names_of
from common.io.pixels import to_float
from inpaint_gif.inpainting.backends import DEFAULTS

plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
DISH, HOLES = DEFAULTS["repaint"], DEFAULTS["inpaint"]  # the shipped models, or run folders of your own
BLUE = to_float(torch.tensor([31, 119, 180], dtype=torch.uint8)).view(3, 1, 1)  # where something has to be painted


def show_images(images, columns, across=(), down=(), width=700):
    """A grid of images (N, 1 or 3, S, S) in [-1, 1], enlarged by a whole factor, with labelled columns and rows."""
    scale = max(1, min(2, width // (columns * images.shape[-1])))
    display(viz.labelled_grid(images, columns, across, down, scale))


def label_of(dish):
    """The name of a dish in the language of this lesson."""
    return viz.words(names_of(dish, "en")[0], dish)


def percent(found):
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


# %% [markdown]
# ## 1 · A name becomes a vector
#
# A **CLIP** ([Radford et al. 2021](https://arxiv.org/abs/2103.00020)) has two networks. A text encoder maps a text to a vector, and
# an image encoder maps a picture to a vector of the same length. They are trained together, so that the vectors of a picture and of
# its caption point in the same direction. **Chinese CLIP** ([Yang et al. 2022](https://arxiv.org/abs/2211.01335), package `cn_clip`)
# has a BERT as its text encoder, which splits a Chinese text into characters. Ours is small and was trained on drawn dishes; the same
# package opens it.

# %%
from common.io.state_dict import count_parameters
from inpaint_gif.clip.name_encoder import load_clip_for

clip = load_clip_for(DISH)  # the CLIP that the shipped model was trained with
NAME = "土鸡蛋炒番茄"  # free-range eggs fried with tomato
vector = clip.encode_text([NAME])
print(
    f"{count_parameters(clip.network):,} weights; images of {clip.size} x {clip.size}; {len(clip.checkpoint.vocab)} tokens"
)
print("tokens:", " ".join(token for token in clip.tokenizer.backend.encode(NAME).tokens if token != "[PAD]"))
print(
    f"embedding: {vector.shape[1]} numbers with norm {vector.norm():.4f}, first", *(f"{v:.2f}" for v in vector[0, :6])
)

# %% [markdown]
# All embeddings have length 1, so their inner product is their **cosine similarity**: 1 for the same direction, 0 for orthogonal
# vectors.
#
# The next table compares six names. 西红柿炒鸡蛋 (tomato and scrambled eggs) and 西红柿鸡蛋汤 (tomato and egg drop soup) share five of
# six characters. 番茄炒蛋 is another name for the first dish, and has only 炒 and 蛋 in common with it. No training caption contains
# 番茄炒鸡蛋.
#
# **Question:** which pair is more similar to this CLIP, the two names of one dish or the two names with five common characters?

# %%
names = ["番茄炒蛋", "西红柿炒鸡蛋", "番茄炒鸡蛋", "西红柿鸡蛋汤", "番茄鸡蛋面", "米饭"]
notes = [
    "tomato and eggs",
    "the same dish, another name",
    "the same dish, name not trained",
    "tomato and egg drop soup",
    "noodles with both",
    "rice",
]
vectors = clip.encode_text(names)
print(" " * 34 + "".join(f"{i:>7}" for i in range(1, 7)))
for i, (row, name, note) in enumerate(zip(vectors @ vectors.T, names, notes, strict=True), 1):
    print(f"{i} {note:32}" + "".join(f"{cosine:7.2f}" for cosine in row), f"  {name}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# The two names of one dish have nearly the same embedding (cosine 0.99<!--out-->), although they share two characters. The stir-fry and the
# soup share five characters and have cosine 0.67<!--out-->. A comparison of characters alone would rate the stir-fry and the soup as the more
# similar pair. This text encoder was trained together with pictures, and a soup does not look like a stir-fry.
# </details>
#
# The name that was never trained lies where its dish lies.
#
# ### The contrastive loss
#
# Take a batch of $B$ pictures with embeddings $x_i$ and their $B$ captions with embeddings $y_j$. Compute all $B \times B$ cosines and
# multiply them by a learned number $s$, the inverse **temperature**. The softmax of row $i$ is the predicted probability that caption
# $j$ belongs to picture $i$:
#
# $$p_{ij} = \frac{e^{s\,x_i \cdot y_j}}{\sum_k e^{s\,x_i \cdot y_k}} \tag{1}$$
#
# Training is classification with $B$ classes: the target of picture $i$ is caption $i$. The same is done along the columns (which
# picture belongs to this caption?), and the loss is the mean of both cross-entropies.
#
# > **In the papers** this is the InfoNCE loss ([van den Oord et al. 2018](https://arxiv.org/abs/1807.03748)),
# > $\mathcal L = -\frac{1}{2B}\sum_i \left[\log p_{ii} + \log p'_{ii}\right]$, where $p'$ is the softmax along columns. Radford et al.
# > write $s = e^{t}$ with a learned scalar $t$, `logit_scale` in code, and limit $s$ to 100.
#
# CLIP was trained with batches of 32,768 pairs from the web, in which hardly two captions mean the same. Our menu has 80 dishes, so a
# batch often holds two plates of one dish, and then the caption of one plate is also right for the other. Therefore the target is a
# uniform distribution over $P_i$, the set of all captions of the same dish. From the cross-entropy we subtract the entropy of this target,
# $\log |P_i|$, so that a perfect prediction still has loss 0. In other words, the loss is a KL divergence.


# %%
from common.data import load
from inpaint_gif.clip.dish_names import LEARNED
from inpaint_gif.clip.loss import contrastive_loss


def clip_loss(logits, right):
    """KL divergence from the targets to the softmax, of rows and of columns. logits, right (B, B) -> (B,)"""
    target = right / right.sum(1, keepdim=True)  # uniform over the right captions

    def divergence(table):
        return (target * (target.clamp(min=1e-12).log() - table.log_softmax(1))).sum(1)

    return (divergence(logits) + divergence(logits.T)) / 2


test = load("dishes", clip.size, split="test", language="zh", n=400)  # drawn from seeds that no training has used
order, labels = list(LEARNED), test.labels.tolist()
first = next(i for i, dish in enumerate(labels) if labels.count(dish) > 1)  # a dish that occurs twice ...
second = labels.index(labels[first], first + 1)
others = [labels.index(dish) for dish in dict.fromkeys(labels) if dish != labels[first]]
batch = [first, second, *others[:4]]  # ... and four other dishes
pictures, captions, dish = to_float(test.pixels[batch]), [test.captions[i] for i in batch], test.labels[batch]

logits = clip.scale * clip.encode_image(pictures) @ clip.encode_text(captions).T  # (6, 6)
one_each, by_dish = torch.eye(6), (dish[:, None] == dish).float()
show_images(pictures, 6, across=[str(i) for i in range(1, 7)])
print("each picture, and its probabilities for the six captions in per cent:")
for i, (row, text) in enumerate(zip(logits.softmax(1), captions, strict=True), 1):
    print(f"{i} " + "".join(f"{100 * p:7.1f}" for p in row), f"   {i}: {text}")
print(
    f"loss: CLIP's {clip_loss(logits, one_each).mean():.3f}, ours {clip_loss(logits, by_dish).mean():.3f}; "
    f"guessing has {math.log(6):.3f} with CLIP's"
)
library = contrastive_loss(clip.encode_image(pictures), clip.encode_text(captions), dish, torch.tensor(clip.scale))
print(f"largest difference from clip/loss.py: {(library - clip_loss(logits, by_dish)).abs().max():.0e}")

# %% [markdown]
# Pictures 1 and 2 are two plates of red-braised fish, and both are assigned to caption 2. Caption 1 uses 红烧鲫鱼, a name that was
# held out from training and that this CLIP misreads (see below). Therefore even our loss is 1.288<!--out--> here. CLIP's own loss,
# 1.515<!--out-->, is larger, because it also asks the model to tell apart two plates of the same dish.
#
# What does this do to the embeddings? In the next experiment there is no network and no picture. Twelve vectors on a circle, six
# "pictures" and six "captions", follow the gradient of the loss.
#
# **Question:** where do the two plates of one dish go with CLIP's loss, and where with ours?


# %%
def on_a_circle(right, steps=500):
    """Twelve free vectors in the plane that minimise the loss: (2, 6, 2), pictures and captions, and the last loss."""
    free = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(5)).requires_grad_()
    optimizer = torch.optim.Adam([free], 0.05)
    for _ in range(steps):
        x, y = F.normalize(free, dim=-1)
        loss = clip_loss(10 * x @ y.T, right).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return F.normalize(free, dim=-1).detach(), float(loss.detach())


_, axes = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
turn = torch.linspace(0, 2 * torch.pi, 100)
targets = {"target: only its own caption": one_each, "target: all captions of the same dish": by_dish}
for axis, (title, right) in zip(axes, targets.items(), strict=True):
    (x, y), loss = on_a_circle(right)
    axis.plot(turn.cos(), turn.sin(), color="0.85", linewidth=0.8)
    for i in range(6):
        colour = f"C{[0, 0, 1, 2, 3, 4][i]}"
        axis.plot(*(1.0 * x[i]), "o", color=colour, markersize=9, label="picture" if i == 0 else None)
        axis.plot(*(0.86 * y[i]), "*", color=colour, markersize=10, label="caption" if i == 0 else None)
        axis.text(*((1.28 if i == 1 else 1.14) * x[i]), i + 1, ha="center", va="center")
    axis.set(
        title=f"{title}\nloss {loss:.3f}", aspect="equal", xticks=[], yticks=[], xlim=(-1.4, 1.4), ylim=(-1.4, 1.4)
    )
    axis.spines[:].set_visible(False)
axes[0].legend(loc="center", fontsize=8)
plt.show()

# %% [markdown]
# <details><summary>Answer</summary>
#
# With CLIP's loss (left) the two blue plates repel each other like any two other pictures. With ours (right) they coincide, and the
# other dishes share the space that becomes free. In both cases captions (stars, drawn further in) lie with their pictures.
# </details>
#
# ### Ten names and ten pictures
#
# Now the trained CLIP. Rows are names, columns are pictures it has not seen, and each cell is a cosine.
#
# **Question:** which wrong cells do you expect to be brightest?

# %%
from inpaint_gif.clip.dish_names import name_embeddings

TEN = [
    "番茄炒蛋",
    "葱油生菜",
    "宫保鸡丁",
    "麻婆豆腐",
    "红烧鱼",
    "米饭",
    "番茄鸡蛋面",
    "西红柿鸡蛋汤",
    "小笼包",
    "荷包蛋",
]
TEN = [name for name in TEN if order.index(name) in labels]
pictures = to_float(test.pixels[[labels.index(order.index(name)) for name in TEN]])
cosines, n = name_embeddings(clip, {name: LEARNED[name] for name in TEN}) @ clip.encode_image(pictures).T, len(TEN)

plt.figure(figsize=(6.6, 5), layout="constrained")
shown = plt.imshow(cosines, cmap="viridis", extent=(0, n, 0, n))
plt.imshow(viz.grid(pictures, n, gap=0), extent=(0, n, n, n + 1), interpolation="antialiased")  # above their columns
for i in range(n):
    for j in range(n):
        ink = "black" if 2 * cosines[i, j] > cosines.min() + cosines.max() else "white"
        text = f"{cosines[i, j]:.1f}".replace("0.", ".")
        plt.text(j + 0.5, n - i - 0.5, text, ha="center", va="center", color=ink, fontsize=7)
plt.yticks([n - i - 0.5 for i in range(n)], [label_of(name) for name in TEN])
plt.gca().set(xlim=(0, n), ylim=(0, n + 1), xticks=[])
plt.gca().tick_params(length=0)
plt.gca().spines[:].set_visible(False)
plt.colorbar(shown, shrink=0.8, label="cosine")
plt.show()
wrong = cosines - 9 * torch.eye(n)
print("largest cosine of a name with a wrong picture, and the cosine with its own:")
for i, name in enumerate(TEN):
    j = int(wrong[i].argmax())
    print(f"  {label_of(name):28} {label_of(TEN[j]):28} {cosines[i, j]:.2f}, own {cosines[i, i]:.2f}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Dishes that look alike: eggs with tomato, noodles with both, and the soup of both; rice and dumplings, which are white and round;
# kung pao chicken and red-braised fish, which are brown and glossy. In every row the diagonal is still the largest entry.
# </details>
#
# A bright cell means that the two dishes look alike. A name that was never trained can be misread in another way, through its
# characters, as you will see below.
#
# ### Retrieval accuracy
#
# The CLIP assigns a picture to the nearest of the 80 names of the menu. In the other direction, it assigns a name to the dish whose
# pictures are nearest. Two lines compute the first:

# %%
from inpaint_gif.clip.retrieval import evaluate_dishes, share

all_names = name_embeddings(clip, LEARNED)  # (80, D): the mean embedding of each dish's names
guess = (clip.encode_image(to_float(test.pixels)) @ all_names.T).argmax(1)
print(
    f"pictures assigned to the right name, of {len(test)} among {len(all_names)}: {percent(share(guess == test.labels))}\n"
)

figures = evaluate_dishes(clip, {"test": test, "heldout": load("dishes", clip.size, split="heldout", n=200)})
print(f"{'':40}{'queries':>8}{'the nearest is right':>28}{'among the nearest five':>28}")
for what, found in figures.items():
    print(f"{what:40}{found.queries:>8}{percent(found.top1):>28}{percent(found.top5):>28}")

# %% [markdown]
# `test` holds drawings with new seeds, and `heldout` dishes on a table on which training never shows them. The row **held-out
# names** matters most to a user. Of every dish with two or more other names, the last one appears in no training caption. To understand it, the
# CLIP must combine characters that it knows from other names.
#
# > **Why these intervals.** Brackets are 95 % intervals of Wilson for a share of $n$ trials. Where all $n$ succeed, a bootstrap
# > resamples nothing but successes and returns an interval of width 0, as if an error were impossible. Wilson's lower end is
# > $n / (n + 3.84)$<!--given--> there: 99.0 %<!--out--> for 400 of 400.
#
# The next cell shows some held-out names, one name that is not on the menu, and one that is not Chinese.

# %%
from inpaint_gif.clip.dish_names import HELD_OUT, parse_dish_name

for text in ["番茄炒鸡蛋", "白灼生菜", "红烧鲫鱼", "大米饭", "宫保虾仁", "steamed rice"]:
    asked = parse_dish_name(clip, text)
    meant = next((dish for dish, other in HELD_OUT.items() if other == text), None)
    kept = f"   (held out; means {label_of(meant)})" if meant else ""
    print(
        f"{text}: nearest are " + ", ".join(f"{label_of(dish)} {cosine:.2f}" for dish, cosine in asked.nearest) + kept
    )
    for remark in asked.remarks:
        print(f"    {remark}")

# %% [markdown]
# 番茄炒鸡蛋 is understood, because all its characters occur in names of the same dish. 大米饭 is understood although 大 occurs in names
# of other dishes only, because it contains the whole name 米饭. 白灼生菜 (blanched lettuce) is taken
# for 白灼虾 (shrimps), because 白灼 occurs in no other training name, and 红烧鲫鱼 (red-braised carp) is taken for a carp soup. A rare
# pair of characters has more influence than a frequent one.
#
# ### Two backends
#
# So far `cn_clip` computed all embeddings. The library `transformers` reads the same weights under other names:

# %%
from inpaint_gif.clip.model import BACKENDS, ChineseCLIP

backends = [ChineseCLIP(clip.checkpoint, backend) for backend in BACKENDS]
for backend in backends:
    print(f"{backend.backend:14}{type(backend.network.clip).__module__}.{type(backend.network.clip).__name__}")
for what, (first, second) in {
    "names": [backend.encode_text(names) for backend in backends],
    "pictures": [backend.encode_image(pictures) for backend in backends],
}.items():
    print(f"largest difference between their embeddings of {what}: {(first - second).abs().max():.0e}")

# %% [markdown]
# The difference is rounding of single precision. So you can replace our CLIP by the published ViT-B/16 or by one that you have
# fine-tuned, with either backend: `make_gif.py --clip ViT-B-16`, together with a dish model that was trained for it or with a
# published one (section 7).
#
# **Question:** why does the loss use rows *and* columns? And what would a batch with a single pair teach?
#
# <details><summary>Answer</summary>
#
# With rows alone, every picture must prefer its own caption among the captions of the batch. A caption that is far from all pictures
# is never penalised for it, as long as the order within each row is right, so retrieval of pictures by captions is not trained. A
# batch with one pair has a softmax over one entry. It is 1 whatever the network does, so the loss is 0 and the gradient vanishes.
# </details>

# %% [markdown]
# ## 2 · Conditioning on one vector
#
# In chapter 4 the U-Net received a sentence as a sequence of embeddings, one for each token, and every position of the latent image
# attended to the tokens that it needed (**cross-attention**). Now there is one embedding for the whole name. Can a position still
# choose?
#
# **Question:** attention weights are a softmax over tokens. What is the softmax over a single number?
#
# Five positions (the rows of `q`) attend to one token, and then to the token and a zero token:

# %%
g = torch.Generator().manual_seed(0)
q, k, v = torch.randn(5, 8, generator=g), torch.randn(1, 8, generator=g), torch.randn(1, 3, generator=g)
zero_k, zero_v = torch.zeros(1, 8), torch.zeros(1, 3)


def attend(q, k, v):
    weights = (q @ k.T / k.shape[1] ** 0.5).softmax(1)  # (positions, tokens)
    return weights[:, 0], weights @ v


for what, (weights, output) in {
    "the name alone": attend(q, k, v),
    "name and zero token": attend(q, torch.cat([k, zero_k]), torch.cat([v, zero_v])),
}.items():
    print(
        f"{what:20} weights of the name: " + " ".join(f"{w:.2f}" for w in weights),
        f"; standard deviation of the outputs between positions {output.std(0).mean():.2f}",
    )

# %% [markdown]
# <details><summary>Answer</summary>
#
# It is 1. So with one token every position receives the same vector, on the plate and on the table, whatever its query is.
# </details>
#
# A second token that is all zeros gives each position a choice. Let $q$ be the query of a position and $k$ the key of the name, both
# with $d$ components. The key of the zero token is $W_K\,0 = 0$, because the layer `to_k` has no bias, so its logit is
# $q \cdot 0 / \sqrt d = 0$. The weight of the name is therefore
#
# $$\frac{e^{q \cdot k / \sqrt d}}{e^{q \cdot k / \sqrt d} + e^0} = \operatorname{sigmoid}\!\left(\frac{q \cdot k}{\sqrt d}\right) \tag{2}$$
#
# Each position decides how much the name concerns it. The value of the zero token is $W_V\,0 = 0$, too, so attending to it adds
# nothing. The empty name, which guidance needs, is represented by two zero tokens.
#
# > **In the papers** attention is $\operatorname{softmax}(QK^\top / \sqrt d)\,V$ ([Vaswani et al. 2017](https://arxiv.org/abs/1706.03762),
# > eq. 1). Large language models use a similar extra token, an **attention sink** ([Xiao et al.
# > 2023](https://arxiv.org/abs/2309.17453)); a softmax with an added 1 in the denominator has the same effect as ours.
#
# In code, the tokens are one line ([name_encoder.py](inpaint_gif/clip/name_encoder.py)). The embedding is multiplied by
# $\sqrt D$, where $D$ is its length (128<!--out-->), so that its components have the size that the network expects.

# %%
from inpaint_gif.clip.name_encoder import open_model

pipeline = open_model(DISH, clip=clip)
c, f, size = pipeline.vae.cfg.latent_channels, pipeline.factor, pipeline.size
side = size // f
print(
    f"U-Net with {count_parameters(pipeline.unet):,} weights; images of {size} x {size}, latents of {c} x {side} x {side}; "
    f"it predicts {pipeline.prediction}"
)
longhand = torch.stack([vector * clip.dim**0.5, 0 * vector], dim=1)  # (1, 2, D)
print(
    f"tokens of a name {tuple(longhand.shape)}; equal to the pipeline's: {torch.equal(pipeline.text_encoder([NAME]), longhand)}"
)
layers = [module for name, module in pipeline.unet.named_modules() if name.endswith("attn2")]
print(f"{len(layers)} cross-attention layers; biases of their keys: {[layer.to_k.bias for layer in layers]}")

# %% [markdown]
# Does the trained network use the choice? We draw three dishes, add noise, evaluate the network once, and show the weight of the name
# in its last attention layer. Bright means a large weight.

# %%
from common.diffusion.schedules import add_noise
from common.models.pipeline import SamplingConfig
from common.random import Noise

three = ["番茄炒蛋", "葱油生菜", "米饭"]
drawn = pipeline.txt2img(three, SamplingConfig(guidance_scale=3.0, seed=1))
layer = [
    module for name, module in pipeline.unet.named_modules() if name.startswith("up_blocks") and name.endswith("attn2")
][-1]
path, tokens, inputs = list(pipeline.noise_levels(SamplingConfig(sampler="ddim:20"))), pipeline.text_encoder(three), []
handle = layer.register_forward_hook(lambda module, given, output: inputs.append(given[0].detach()))
levels = [path[k] for k in (4, 10, 16)]
with torch.no_grad():
    for level in levels:
        noisy = add_noise(pipeline.encode(drawn), Noise(0)(0, torch.empty(3, c, side, side)), level)
        pipeline.unet(noisy, torch.full((3,), level.time), text=tokens)
    handle.remove()
    rows = [drawn]
    for x in inputs:  # (3, positions, width) each
        q, k = layer.split_heads(layer.to_q(x)), layer.split_heads(layer.to_k(tokens))  # (3, heads, positions or 2, d)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)[..., 0].mean(1)  # (3, positions), the mean of the heads
        around = int(weights.shape[1] ** 0.5)
        rows.append(F.interpolate(2 * weights.view(3, 1, around, around) - 1, (size, size)).expand(-1, 3, -1, -1))
words = [f"weight at σ = {level.sigma:.2f}" for level in levels]
show_images(torch.stack(rows).flatten(0, 1), 3, across=["tomato, egg", "lettuce", "rice"], down=["drawn", *words])
for row, word in zip(rows[1:], words, strict=True):
    weights = (row[:, 0].flatten(1) + 1) / 2
    means = ", ".join(
        f"{name} {mean:.2f}" for name, mean in zip(("tomato", "lettuce", "rice"), weights.mean(1), strict=True)
    )
    print(f"{word}: from {weights.amin():.2f} to {weights.amax():.2f}; mean {weights.mean():.2f} ({means})")

# %% [markdown]
# The weight of the name is large only where there is food. The table attends almost entirely to the zero token. The weight falls as the noise falls,
# because the picture itself shows more and more of what the name says.
#
# ### Guidance
#
# Classifier-free guidance is that of chapter 2, with two zero tokens for the empty name:
#
# $$\tilde\varepsilon = \varepsilon_\varnothing + w\,(\varepsilon_{\text{name}} - \varepsilon_\varnothing) \tag{3}$$
#
# **Question:** what does $w = 0$ show? And what goes wrong at $w = 10$? The noise is the same within each column.

# %%
SCALES, asked = (0.0, 1.0, 3.0, 10.0), ["番茄炒蛋", "葱油生菜", "米饭", "红烧鱼"]
swept = {w: pipeline.txt2img(asked, SamplingConfig(guidance_scale=w, seed=3)) for w in SCALES}
show_images(
    torch.cat(list(swept.values())),
    4,
    across=["tomato, egg", "lettuce", "rice", "fish"],
    down=[f"w = {w:g}" for w in SCALES],
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# At $w = 0$ the name has no influence, so the row shows unconditional samples. At $w = 1$ the colours fit the names, and the fish
# already lies on an oval plate. At $w = 3$ the dishes become clearer: the fish is one long piece in its sauce. At $w = 10$ colours
# saturate and textures become coarse, and the plates of tomato and lettuce lose their patterned rims.
# </details>
#
# Counting is better than looking. We draw one picture of each of 40 dishes, and the *image* encoder of the CLIP assigns it to one of
# all 80 names. The image encoder took no part in the drawing. But it was trained together with the text encoder that conditions the
# drawing, so it is a lenient classifier. Drawings of the test split give its upper limit.


# %%
from inpaint_gif.clip.retrieval import FORTY


def accuracy(pictures, dishes):
    """The share of pictures that the CLIP assigns to the right dish, with its interval."""
    right = torch.tensor([order.index(dish) for dish in dishes])
    return share((clip.encode_image(pictures) @ all_names.T).argmax(1) == right)


print(f"{'pictures':28}{'assigned to the right name':>28}")
for w in (1.0, 3.0, 5.0, 10.0):
    found = accuracy(pipeline.txt2img(FORTY, SamplingConfig(guidance_scale=w, seed=7)), FORTY)
    print(f"{f'drawn with w = {w:g}':28}{percent(found):>28}")
print(f"{'test split':28}{percent(share(guess == test.labels)):>28}")

# %% [markdown]
# The share rises from 80 %<!--out--> at $w = 1$ to 90 %<!--out--> at $w = 3$, and falls to 70 %<!--out--> at $w = 10$. With 40 pictures the intervals
# overlap, so this alone proves nothing. [RESULTS.md](RESULTS.md) has more pictures, and more of them are right at $w = 2$ and 3 than at 5.
#
# Do pictures also follow names that no training caption contained? Each pair below starts from the same noise. The left picture has a trained
# name, the right one the held-out name of the same dish.

# %%
pairs = ["番茄炒蛋", "葱油生菜", "红烧鱼", "米饭"]
unseen = [HELD_OUT.get(dish, dish) for dish in pairs]
left, right = (pipeline.txt2img(some, SamplingConfig(guidance_scale=3.0, seed=5)) for some in (pairs, unseen))
across = [
    word for dish in ("tomato, egg", "lettuce", "fish", "rice") for word in (f"{dish}\ntrained", f"{dish}\nheld out")
]
show_images(torch.stack([left, right], 1).flatten(0, 1), 8, across=across, width=1100)
cosine = (clip.encode_text(pairs) * clip.encode_text(unseen)).sum(1)
print(
    "cosine of both names:",
    "; ".join(f"{a} | {b} {value:.2f}" for a, b, value in zip(pairs, unseen, cosine, strict=True)),
)

# %% [markdown]
# Where the cosine of the two names is near 1, the pictures are nearly the same: the U-Net receives nearly the same input. Where it is
# low, the right picture shows another dish, the one for which section 1 predicted confusion.
#
# **Question:** with the name and *two* zero tokens, what is the weight of the name in equation 2?
#
# <details><summary>Answer</summary>
#
# $e^{a}/(e^{a} + 2)$ with $a = q\cdot k/\sqrt d$, which is $\operatorname{sigmoid}(a - \log 2)$. The second zero token only shifts the
# logit by a constant, and training can undo that shift.
# </details>

# %% [markdown]
# ## 3 · Inpainting
#
# When the camera moves, part of the new picture has never been seen. **Inpainting** fills this hole so that it fits to the rest. Our
# test material is dishes on tables that continue beyond the picture, seen through windows at random places, with holes that camera
# moves leave.

# %%
from inpaint_gif.training.flags import HoleFlags
from inpaint_gif.training.holes import hole_test_set

painter = open_model(HOLES)  # the inpainting model: chapter 4's U-Net with more input channels, trained on holes
holes = hole_test_set(HoleFlags(), painter.size, 12)
images, masks, captions = holes.images, holes.masks, holes.captions  # (N, 3, S, S), (N, 1, S, S)
with_hole = images * (1 - masks) + BLUE * masks
show_images(torch.cat([images[:5], with_hole[:5]]), 5, down=["scene", "known part"])
print("prompt of the first:", captions[0])

# %% [markdown]
# Two baselines need no network. Each missing pixel takes the colour of the **nearest** known pixel, or of its **mirror image** in the
# edge of the hole (reflect).
#
# ### Nine channels
#
# How does a U-Net learn of a hole? It gets more input channels. Stable Diffusion's inpainting model ([Rombach et al.
# 2022](https://arxiv.org/abs/2112.10752)) concatenates three things:
#
# $$\text{input} = \big[\,x_t \;\big|\; m \;\big|\; E\big((1 - m)\,\text{image}\big)\,\big] \tag{4}$$
#
# the noisy latents $x_t$ with 4 channels, the mask $m$ with 1, which is 1 in the hole, and the latents of the image with grey in its
# hole, with 4 ($E$ is the encoder of the autoencoder). So there are 9 channels in, and 4 out as before.

# %%
from inpaint_gif.inpainting.backends import inpainting_channels

image, mask = images[:1], masks[:1]
level = list(painter.noise_levels(SamplingConfig(sampler="ddim:20")))[10]
noisy = add_noise(painter.encode(image), Noise(0)(0, torch.empty(1, c, side, side)), level)  # (1, c, h, w)
small = F.interpolate(mask, size=(side, side))  # (1, 1, h, w): one pixel for each latent
known = painter.encode(image * (1 - mask))  # (1, c, h, w): grey in the hole
nine = torch.cat([noisy, small, known], dim=1)
panels = torch.cat([(noisy / 3).clamp(-1, 1), 1.4 * small - 0.7, (known / 3).clamp(-1, 1)], dim=1)[0, :, None]
panels = F.interpolate(panels, scale_factor=4, mode="nearest")
show_images(
    panels,
    2 * c + 1,
    across=[*(f"noisy {i}" for i in range(1, c + 1)), "mask", *(f"known {i}" for i in range(1, c + 1))],
)
print(
    f"{nine.shape[1]} channels; the last {c + 1} are the painter's own: "
    f"{torch.equal(nine[:, c:], inpainting_channels(painter, image, mask))}"
)

# %% [markdown]
# (Latents are not bounded. For the figure they are divided by 3 and clipped.)
#
# ### Widening a network with zeros
#
# The first layer of a trained text-to-image U-Net has 4 input channels, not 9. The cell widens our dish model. (The painter began
# from chapter 4's U-Net, widened in the same way.) A convolution multiplies each input channel by its own
# weights and adds the results.
#
# **Question:** what does the widened layer compute if the weights of the five new channels are 0? Can these weights still learn?

# %%
from inpaint_gif.training.inpaint import widened

old = pipeline.unet.conv_in.weight.detach()  # (width, c, 3, 3)
new = torch.cat([old, torch.zeros(len(old), c + 1, 3, 3)], dim=1)  # (width, 2c + 1, 3, 3)
bias = pipeline.unet.conv_in.bias
wide, text, t = widened(pipeline.unet), pipeline.text_encoder([NAME]), torch.full((1,), level.time)
with torch.no_grad():
    before, after = F.conv2d(noisy, old, bias, padding=1), F.conv2d(nine, new, bias, padding=1)
    difference = (pipeline.unet(noisy, t, text=text) - wide(nine, t, text=text)).abs().max()
print(f"{tuple(old.shape)} -> {tuple(new.shape)}")
print(
    f"largest difference after the first layer {float((before - after).abs().max()):.0e}, after the network {float(difference):.0e}"
)

wide(nine, t, text=text).square().mean().backward()
slope = wide.conv_in.weight.grad
print(f"norm of the gradient: new weights {slope[:, c:].norm():.2e}, old weights {slope[:, :c].norm():.2e}")
sizes = painter.unet.conv_in.weight.detach().square().mean(dim=(0, 2, 3)).sqrt()
print("root mean square of the weights of each channel in the trained painter:")
for what, part in {"noisy latents": sizes[:c], "mask": sizes[c : c + 1], "known latents": sizes[c + 1 :]}.items():
    print(f"  {what:15}", " ".join(f"{value:.3f}" for value in part))

# %% [markdown]
# <details><summary>Answer</summary>
#
# It computes what the old layer computes, up to rounding, so training starts from the abilities of the old network. The gradient of a
# weight is its input times the gradient of its output. The input is not zero, so zero weights learn from the first step on. The last
# lines show that in the trained painter they have grown to about half (mask) and three fifths (known latents) of the others. (ControlNet's zero convolutions in chapter 5 use
# the same idea.)
# </details>
#
# ### RePaint: inpainting without training for it
#
# **RePaint** ([Lugmayr et al. 2022](https://arxiv.org/abs/2201.09865)) needs no special network. Any diffusion model denoises the
# whole picture. After every step, the part that is known is replaced by the known picture, noised to the level that the step has
# reached:
#
# $$x_{t-1} = m \odot x_{t-1}^{\text{unknown}} + (1 - m) \odot x_{t-1}^{\text{known}}, \qquad
# x_{t-1}^{\text{known}} = \alpha_{t-1}\,x_0 + \sigma_{t-1}\,\varepsilon \tag{5}$$
#
# where $x_{t-1}^{\text{unknown}}$ is a DDPM step from $x_t$, $x_0$ are the clean latents of the known picture, and $m = 1$ in the hole. (The paper's mask is the other way round.)
#
# One such pass often looks pasted, because each step draws the inside before it has seen the outside of the next level. So RePaint
# **resamples**: it adds noise to go back up by some levels, and takes the same steps again. Each time, the inside adapts to the outside.


# %%
from common.diffusion.samplers import initial_noise
from inpaint_gif.inpainting.edge_fill import nearest
from inpaint_gif.inpainting.repaint import jump_schedule, repaint


def repaint_longhand(denoise, known, hole, levels, order, noise):
    """known (B, c, h, w) clean latents; hole (B, 1, h, w), 1 in the hole; order: the levels to visit."""
    x = levels[0].sigma * noise(0, known)
    for i, (now, then) in enumerate(pairwise(levels[k] for k in order)):
        if then.sigma > now.sigma:  # back up: add noise
            ratio = then.alpha / now.alpha
            x = ratio * x + (then.sigma**2 - (ratio * now.sigma) ** 2) ** 0.5 * noise(2 * i + 1, known)
            continue
        x0, eps = denoise(x, now)[:2]  # down: a DDPM step inside ...
        fresh = (then.sigma / now.sigma) ** 2 * (now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2)
        inside = then.alpha * x0 + max(0.0, then.sigma**2 - fresh) ** 0.5 * eps + fresh**0.5 * noise(2 * i + 1, known)
        around = then.alpha * known + then.sigma * noise(2 * i + 2, known)  # ... and the noised picture around it
        x = torch.where(hole > 0, inside, around)
    return x


N, how = 4, SamplingConfig(guidance_scale=2.0)
path, noise = pipeline.noise_levels(how), Noise(0)
levels, denoise = list(path), pipeline.guided(captions[:N], how)
filled_in = torch.stack([nearest(*pair) for pair in zip(images[:N], masks[:N], strict=True)])  # grey would leak
known = pipeline.encode(filled_in)
hole = F.max_pool2d(masks[:N], f)  # a latent is missing if any of its pixels is
print("levels of one pass:  ", jump_schedule(20, 5, 1))
print("levels of two passes:", jump_schedule(20, 5, 2))
with torch.no_grad():
    latents = {n: repaint_longhand(denoise, known, hole, levels, jump_schedule(20, 5, n), noise) for n in (1, 4)}
*_, library = repaint(denoise, initial_noise(path, known.shape, noise), path, known, hole, noise, 5, 1)
print(f"largest difference from repaint.py: {(library.x - latents[1]).abs().max():.0e}")
filled = [torch.where(masks[:N] > 0, pipeline.decode(z), images[:N]) for z in latents.values()]
show_images(torch.cat([with_hole[:N], *filled]), N, down=["known part", "RePaint, 1 pass", "RePaint, 4 passes"])

# %% [markdown]
# Four passes need four times as many network evaluations. The inside then fits better to the outside: look at the checks of the third
# picture. But this model was trained on whole plates in the middle of the picture, so it tends to draw a dish into every hole.
#
# ### The noise of the known part: once, or anew?
#
# RePaint draws a new $\varepsilon$ for the known part at every step (algorithm 1, line 4). Chapter 5's exercise and the inpainting
# pipelines of `diffusers` for ordinary text-to-image models draw one $\varepsilon$ and use it at all levels. Who is right?
#
# At each single level both give the same distribution, $\mathcal N(\alpha_t x_0, \sigma_t^2 I)$, so the network sees inputs of the
# right kind in both cases. They differ in how two levels are related:
#
# * With **one noise**, the known part moves along $\alpha_t x_0 + \sigma_t\varepsilon$. That is the trajectory of DDIM for the true pair
#   (chapter 3, section 3). It belongs to a deterministic sampler.
# * With **new noise**, successive levels of the known part are independent given $x_0$. That is more noise than a DDPM step adds, but it
#   goes with a sampler that also draws new noise, and each pass of resampling shows the inside another version of the outside.
#
# Neither is the exact conditional distribution. To see how much it matters, we take data for which everything is known exactly: smooth
# closed curves from a Gaussian. Their ideal denoiser is linear, and so are mean and standard deviation of the hole given the rest.

# %%
n, steps, B = 48, 20, 400
places = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
C = torch.exp(6 * ((places[:, None] - places).cos() - 1)) + 1e-4 * torch.eye(n, dtype=torch.float64)  # covariance
lams = torch.linspace(-4, 5, steps, dtype=torch.float64)  # log(alpha / sigma) of the levels
alphas = torch.cat([torch.sigmoid(2 * lams).sqrt(), torch.ones(1)])
sigmas = torch.cat([torch.sigmoid(-2 * lams).sqrt(), torch.zeros(1)])
to_x0 = [torch.linalg.solve(a**2 * C + s**2 * torch.eye(n), a * C) for a, s in zip(alphas, sigmas, strict=True)]
g = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=g, dtype=torch.float64)


curves = normal(B, n) @ torch.linalg.cholesky(C).T  # a known curve for each sample
missing = (torch.arange(n) >= 16) & (torch.arange(n) < 34)
gain = torch.linalg.solve(C[~missing][:, ~missing], C[~missing][:, missing])
exact_mean = curves[:, ~missing] @ gain
exact_std = (C[missing][:, missing] - C[missing][:, ~missing] @ gain).diagonal().sqrt()


def fill(stochastic, anew, passes):
    """RePaint with the ideal denoiser: DDPM or DDIM inside, new noise or one noise around. (B, n)"""
    x, one = normal(B, n), normal(B, n)
    for k in range(steps):
        a, s, a_next, s_next = alphas[k], sigmas[k], alphas[k + 1], sigmas[k + 1]
        ratio = a / a_next
        fresh = (s_next / s) ** 2 * (s**2 - (ratio * s_next) ** 2) if stochastic else 0 * s
        for u in range(passes):
            if u:
                x = ratio * x + (1 - ratio**2).sqrt() * normal(B, n)
            x0 = x @ to_x0[k]
            x = a_next * x0 + (s_next**2 - fresh).clamp(min=0).sqrt() * (x - a * x0) / s + fresh.sqrt() * normal(B, n)
            x = torch.where(missing, x, a_next * curves + s_next * (normal(B, n) if anew else one))
    return x


print(f"{'distance from the exact mean, relative to that of exact samples':68}{'one noise':>12}{'new noise':>12}")
for passes in (1, 4, 20):
    for stochastic in (False, True):
        found = []
        for anew in (False, True):
            away = fill(stochastic, anew, passes)[:, missing] - exact_mean
            found.append(float(away.square().mean().sqrt() / exact_std.square().mean().sqrt()))
        what = f"{'DDPM' if stochastic else 'DDIM'} inside, {passes} pass{'es' if passes > 1 else ''}"
        print(f"{what:68}{found[0]:12.2f}{found[1]:12.2f}")

# %% [markdown]
# (1 is exact. More means that the inside does not fit to the outside.)
#
# * **Passes help most.** DDPM with new noise goes from 1.20<!--out--> with one pass to 1.04<!--out--> with twenty.
# * **A stochastic sampler is better inside** than a deterministic one, because it forgets early steps that did not fit.
# * **The noise of the known part** makes no clear difference with one pass or four. With twenty passes, new noise is closer to exact:
#   1.04<!--out--> against 1.08<!--out--> with DDPM, and 1.13<!--out--> against 1.19<!--out--> with DDIM.
#
# So both are right where they are used. One noise is enough for a single pass with a deterministic sampler, as in `diffusers`. With
# resampling, new noise shows the inside another version of the outside in each pass, and that is what the paper does.
#
# ### Known pixels stay exactly as they are
#
# Every backend returns a whole picture that went through an autoencoder. How much does it change the pixels that should stay?

# %%
from inpaint_gif.inpainting.backends import InpaintBackend
from inpaint_gif.inpainting.compositing import overlay

raw = InpaintBackend(painter, SamplingConfig(guidance_scale=2.0)).paint(
    images, masks, captions, seed=0
)  # (N, 3, S, S)
kept = (masks == 0).expand_as(images)
print(
    f"mean change of the known pixels in the painter's output: {127.5 * (raw - images).abs()[kept].mean():.1f} of 255 grey levels"
)

pasted = torch.stack([overlay(*three) for three in zip(images, raw, masks, strict=True)])
print(f"after overlay, all known pixels are equal bit for bit: {torch.equal(pasted[kept], images[kept])}")

# %% [markdown]
# `overlay` computes `image + mask (painted - image)` inside `torch.where(mask > 0, ...)`, so rounding cannot reach known pixels.
#
# Now colours jump at the edge, because the original lies on one side and the decoded picture on the other. There are three repairs,
# all of which change the hole only:
#
# * **match** (`compositing.matched`): the change of known pixels near the edge, smoothed, is extrapolated into the hole;
# * **level** (`compositing.levelled`): a difference of colour *across* the edge is removed (section 4 explains why);
# * **feather** (`compositing.feathered`): the outermost pixels of the hole fade in from the colours of the edge.
#
# The usual *mask blur* softens the mask on **both** sides of the edge. **Question:** how many known pixels does each soft edge change?

# %%
from inpaint_gif.inpainting.compositing import blurred, feathered

soft = {
    "hard": masks,
    "blurred by 2 pixels": torch.stack([blurred(mask, 2) for mask in masks]),
    "feathered by 2 pixels": torch.stack([feathered(mask, 2) for mask in masks]),
}
_, axes = plt.subplots(1, 2, figsize=(8, 2.3), layout="constrained", gridspec_kw={"width_ratios": (1.4, 1)})
edge = torch.zeros(1, 8, 24)
edge[:, :, 12:] = 1
for name, line in zip(soft, (edge, blurred(edge, 2), feathered(edge, 2)), strict=True):
    axes[0].plot(line[0, 4], ".-", label=name)
axes[0].set(title="a mask along one row; the hole is on the right", xlabel="pixel", ylabel="mask", yticks=[0, 1])
axes[0].legend(fontsize=8)
axes[1].axis("off")
axes[1].imshow(viz.grid(torch.stack([1.4 * soft[name][0] - 0.7 for name in soft]), 3))
axes[1].set_title("the same, for the first hole")
plt.show()
for name, mask in soft.items():
    mixed = torch.stack([overlay(*three) for three in zip(images, raw, mask, strict=True)])
    print(f"{name:24}{(mixed != images)[kept].double().mean():7.1%} of the known values changed")

# %% [markdown]
# <details><summary>Answer</summary>
#
# The feathered mask changes none, because it is 0 wherever the hard mask is 0. The blurred mask changes every known pixel within its
# reach.
# </details>
#
# How visible is an edge? The **seam** measure compares the jump of the picture across the edge with the jumps nearby. 1 means that the
# edge is no different from its surroundings, and a hard edge has 2 and more. Lines of the picture may lie on the edge by chance, so
# we average over pictures and compare with *untouched* pictures.

# %%
from inpaint_gif.inpainting.compositing import levelled, matched, seam

triples = list(zip(images, raw, masks, strict=True))
matched_only = torch.stack([overlay(a, matched(a, b, m), m) for a, b, m in triples])
level_too = [(a, levelled(a, matched(a, b, m), m), m) for a, b, m in triples]
softened = torch.stack([overlay(a, overlay(nearest(a, m), b, feathered(m, 3)), m) for a, b, m in level_too])
ways = {"untouched": images, "pasted": pasted, "matched": matched_only, "matched, levelled,\nfeathered": softened}
show_images(torch.cat([part[:3] for part in ways.values()]), 3, down=list(ways))
print(f"{'':32}{'seam, 95 % interval':>28}   known pixels")
for name, part in ways.items():
    found = [seam(image, mask) for image, mask in zip(part, masks, strict=True)]
    text = f"{np.mean(found):.2f} ± {2.2 * np.std(found, ddof=1) / len(found) ** 0.5:.2f}"
    print(f"{' '.join(name.split()):32}{text:>28}   {'exact' if torch.equal(part[kept], images[kept]) else 'CHANGED'}")

# %% [markdown]
# Pasting alone leaves a visible edge (3.99<!--out-->). With all three repairs the seam is that of untouched pictures, and no known pixel
# has changed.
#
# ### Five engines
#
# All engines have one interface, `engine(image, mask, prompt, seed) -> image`, and are composited in the same way. *Error* is the mean
# absolute difference from the true picture in the hole, in a range of 2. The place of a crumb cannot be known, but the colour of the
# table is predictable.
#
# **Question:** which engine has the smallest seam, and which the smallest error?

# %%
from inpaint_gif.evaluation.metrics import edge_metrics, untouched_seam
from inpaint_gif.inpainting.backends import BackendConfig, open_backend

engines = {
    name: open_backend(BackendConfig(name, sampling=SamplingConfig(guidance_scale=2.0), clip=clip))
    for name in ("nearest", "reflect", "repaint", "controlnet", "inpaint")
}
painted = {
    name: torch.stack([engine(images[i] * (1 - masks[i]), masks[i], captions[i], i) for i in range(3)])
    for name, engine in engines.items()
}
show_images(torch.cat([with_hole[:3], *painted.values(), images[:3]]), 3, down=["known part", *painted, "truth"])

floor = untouched_seam(holes)
print(f"{'':12}{'seam':>24}{'error in the hole':>26}   seconds a hole")
print(f"{'untouched':12}{f'{floor.value:.2f} ({floor.low:.2f} to {floor.high:.2f})':>24}")
for name, engine in engines.items():
    e = edge_metrics(engine, holes)
    seams, errors = (f"{x.value:.2f} ({x.low:.2f} to {x.high:.2f})" for x in (e.seam, e.error))
    print(f"{name:12}{seams:>24}{errors:>26}   {e.seconds:.2f}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# *nearest* has the smallest seam (0.70<!--out-->), and *inpaint* the smallest error (0.14<!--out-->). The seam of *inpaint*, 0.94<!--out-->,
# is that of untouched pictures, 0.98<!--out-->.
# </details>
#
# *reflect* puts a second plate onto the table, and *nearest* extends the rim of a plate to the border in stripes. *repaint* draws a
# dish where there is none. *controlnet* leaves the text-to-image model unchanged and adds a second network that sees the picture with
# its hole. *repaint* takes four times as many steps as *inpaint*, which the times show (they depend on the machine, their ratio does
# not). A seam below that of untouched pictures is no advantage: *nearest* continues the colours of the edge, which is smoother than
# any real picture.
#
# **Question:** the hole is already grey in the known latents. Why does the network get the mask as well?
#
# <details><summary>Answer</summary>
#
# Grey is a possible colour of the picture, for instance of a slate table. Without the mask the network would have to guess whether a
# grey area is known or missing.
# </details>

# %% [markdown]
# ## 4 · A camera
#
# The pipeline draws the dish four times, and the CLIP chooses the candidate whose embedding is nearest to the name, as `make_gif.py`
# does. The chosen picture lies in an infinite plane, and the camera is a **window** that moves over it, with a position $(x, y)$ and a
# scale. Where the window shows a part of the plane without a picture, the mask is 1.

# %%
from inpaint_gif.animation.camera import MOVES, CameraPath, Move
from inpaint_gif.animation.canvas import FilmCanvas

four = pipeline.txt2img([NAME] * 4, SamplingConfig(guidance_scale=3.0, seed=0))
cosines = clip.encode_image(four) @ vector[0]
picture = four[int(cosines.argmax())]
show_images(
    four,
    4,
    across=[f"cosine {value:.2f}" + (" *" if i == cosines.argmax() else "") for i, value in enumerate(cosines)],
)

views, titles = [picture], ["the picture"]
for name in MOVES:
    way, world = CameraPath.plan(Move.parse(name), size, size, new_fraction=0.25), FilmCanvas(picture)
    moved, seen = world.render(way.stops()[0].window)
    views.append(moved * seen + BLUE * ~seen)
    titles.append(f"{name}\n{(~seen).double().mean():.0%} new")
show_images(torch.stack(views[:6]), 6, across=titles[:6], width=900)
show_images(torch.stack(views[6:]), 6, across=titles[6:], width=900)

# %% [markdown]
# (The star marks the chosen candidate.) Blue has to be painted, about a quarter of each keyframe. `right` means that the *camera*
# moves right, so the plate moves left.
#
# **Question:** why does `zoom-in` leave a ring to paint, although the camera comes nearer?
#
# <details><summary>Answer</summary>
#
# The picture is the nearest view of the whole path, because a nearer view would need details that were not drawn. So a zoom-in is painted
# backwards, from its last frame, which is the picture, to its first, which shows more of the table.
# </details>
#
# ### Keyframes
#
# At each **keyframe**, the program renders what is known, paints the hole, and adds the result to the plane. Nothing is painted twice,
# so a camera that returns finds the same content.

# %%
from inpaint_gif.animation.camera import paint
from inpaint_gif.animation.writers import contact_sheet

way, world, engine = CameraPath.plan(Move.parse("zoom-out:3"), size, size), FilmCanvas(picture), engines["inpaint"]
began = time.perf_counter()
keyframes = list(paint(world, way, engine, NAME, seed=0))
print(f"{len(keyframes)} keyframes painted")
for keyframe in keyframes:
    still = (keyframe.mask == 0).expand_as(keyframe.image)
    assert torch.equal(keyframe.image[still], keyframe.moved[still])  # known pixels are unchanged, bit for bit
contact_sheet(picture, keyframes)

# %% [markdown]
# The table continues with its texture, and no second plate appears. Above is the picture, and below it, for each keyframe, the known part,
# the mask, and the result.
#
# ### Why nested rectangles appear, and what reduces them
#
# One keyframe can look perfect while several in a row do not. The painter gives each ring a slightly different shade. Each step is
# small, but it follows the whole edge, so after four keyframes you see nested rectangles around the plate. The seam measure does not
# notice them, because it compares single pixels with their neighbours.
#
# So we need a second measure. The **tint step** is the difference between the mean colours of two bands, 4 pixels wide, on both sides
# of the edge (root mean square over sides and channels). And a third one, **drift**, compares the statistics of each ring with those of
# the border of the first picture; `evaluate_gif.py --only drift` reports it.
#
# The remedy (`levelled`) compares colours across the edge. At every place of the edge it takes the *median*, over the neighbourhood, of
# known colour minus painted colour, and adds it to the ring.
#
# **Question:** why the median, and not the mean?

# %%
from inpaint_gif.animation.canvas import Window
from inpaint_gif.evaluation.metrics import scene_view
from inpaint_gif.inpainting.compositing import tint_step
from inpaint_gif.training.scenes import load_test_scenes

scenes, names_of_scenes = load_test_scenes(10, painter.size)
chosen = [0, 4, 9]
backs_off, S = CameraPath.plan(Move.parse("zoom-out:4"), painter.size, painter.size), painter.size


def without_levelling(image, mask, prompt, seed):
    """The engine as before, but colours are compared on the known side only."""
    painted = matched(image, engine.backend(image, mask, prompt, seed), mask)
    return overlay(image, overlay(nearest(image, mask), painted, feathered(mask, 3)), mask)


rows, table = {}, []
for what, backend in {"without levelling": without_levelling, "with levelling": engine}.items():
    ends, steps_of, seams = [], [], []
    for i in chosen:
        start = scene_view(scenes[i], Window(), S)
        done = list(paint(FilmCanvas(start), backs_off, backend, names_of_scenes[i], seed=i))
        ends.append(done[-1].image)
        steps_of += [tint_step(k.image, k.mask) for k in done]
        seams += [seam(k.image, k.mask) for k in done]
    rows[what], _ = torch.stack(ends), table.append((what, np.mean(steps_of), np.mean(seams)))
rows["true scene"] = torch.stack([scene_view(scenes[i], backs_off.keyframes[-1], S) for i in chosen])
true = [(scene_view(scenes[i], k.stop.window, S), k.mask) for i in chosen for k in done]
table.append(("true scene", np.mean([tint_step(*each) for each in true]), np.mean([seam(*each) for each in true])))
show_images(torch.cat(list(rows.values())), 3, down=list(rows))
print(f"{'after four keyframes':24}{'tint step':>12}{'seam':>8}")
for what, step, edge in table:
    print(f"{what:24}{step:12.3f}{edge:8.2f}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Part of the edge may cross an object, such as the rim of a plate. There the difference of colour is large and means something. A mean
# would smear the blue of the rim into the table. The median ignores it as long as the object occupies less than half of the
# neighbourhood.
# </details>
#
# Without levelling, the rings differ in shade. Levelling helps most on the linen (right), whereas on the wood (left) some rings
# remain visible. It lowers the tint step from 0.027<!--out--> to
# 0.017<!--out-->; true scenes have 0.029<!--out-->, because the light on a real table falls off towards the border. The seam stays at
# 1.30<!--out--> and 1.29<!--out-->, above the 0.87<!--out--> of true scenes: it measures something else, here the lines of the table, which the
# painter does not continue.
#
# ### Between the keyframes
#
# Frames between keyframes are rendered from the plane at positions that are fractions of a pixel.
#
# **Question:** 24 frames for a pan of 64 pixels make $64/23 \approx 2.78$<!--given--> pixels a frame. What does the film look like if
# each frame is placed at the nearest *whole* pixel?
#
# We measure the motion in the frames themselves. **Phase correlation** ([motion.py](inpaint_gif/animation/motion.py)) finds the shift
# between two pictures from the phases of their Fourier transforms, so it knows nothing about the code that moved them.

# %%
from inpaint_gif.animation.camera import render_frames
from inpaint_gif.animation.motion import motion
from inpaint_gif.animation.timing import EASES, frame_times

FRAMES = 24


def speeds(frames):
    """(pixels to the left, growth in per cent) from each frame to the next, as measured."""
    found = [motion(a, b) for a, b in pairwise(frames)]
    return [-float(shift[0]) for shift, _ in found], [100 * growth for _, growth in found]


pan, plane = CameraPath.plan(Move.parse("right:2"), size, size), FilmCanvas(picture)
list(paint(plane, pan, engine, NAME, seed=0))
requested = pan.keyframes[-1].x / (FRAMES - 1)
times = {ease: frame_times(FRAMES, "once", ease) for ease in EASES}
whole = [plane.render(Window(float(round(pan.at(t).x)), 0.0, 1.0))[0] for t in times["linear"]]
pans = {"whole pixels": speeds(whole)[0], "fractions": speeds(list(render_frames(plane, pan, times["linear"])))[0]}
eased = {
    ease: pans["fractions"] if ease == "linear" else speeds(list(render_frames(plane, pan, times[ease])))[0]
    for ease in EASES
}
last = way.keyframes[-1].scale
straight = [world.render(Window(0.0, 0.0, 1 + (last - 1) * t))[0] for t in times["linear"]]
zooms = {
    "equal steps of scale": speeds(straight)[1],
    "equal ratios": speeds(list(render_frames(world, way, times["linear"])))[1],
}

_, axes = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained")
titles = ["right", "right, with three eases", "zoom-out"]
units = ["pixels per frame", "pixels per frame", "growth per frame, per cent"]
for axis, curves, title, unit in zip(axes, (pans, eased, zooms), titles, units, strict=True):
    for name, values in curves.items():
        axis.plot(values, ".-", label=name, linewidth=1)
    axis.set(title=title, xlabel="frame", ylabel=unit)
    axis.legend(fontsize=8)
axes[0].axhline(requested, color="0.7", linewidth=0.8)
axes[0].set_ylim(0, 2.2 * requested)
axes[1].set_ylim(bottom=0)
plt.show()
for what, values in (pans | zooms).items():
    wanted = f"; requested {requested:.3f}" if what in pans else ""
    print(f"{what:24} mean {np.mean(values):7.3f}, standard deviation {np.std(values):.3f}{wanted}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Some frames move by 2 pixels and others by 3. The eye sees this as stutter (left plot, blue), although each single frame is sharper.
# </details>
#
# * **Middle:** `linear` starts and stops abruptly, `ends` accelerates in the first and brakes in the last fifth of the time, and `smooth`
#   follows $3t^2 - 2t^3$. All curves have the same area, because the path is the same.
# * **Right:** a zoom looks uniform if equal times *multiply* the scale by equal factors, because then points move on the screen at
#   constant relative speed. Equal steps of scale look fast first and slow later. (The growth is negative, because things shrink.)
#
# A chain such as `right,zoom-out` contains both kinds of motion. The camera measures its path in pixels by which the picture moves on
# average (`camera.Segment.length`), and traverses this length evenly.
#
# **Question:** by which factor is the highest speed of `smooth` above that of `linear`, and when is it reached?
#
# <details><summary>Answer</summary>
#
# The derivative $6t - 6t^2$ has its maximum at $t = \frac12$, where it is $\frac32$.
# </details>

# %% [markdown]
# ## 5 · A film
#
# ### Loops
#
# A film on a web page begins again when it ends, and a jump there is conspicuous. Three ways to loop:
#
# * `once`: start again with the first frame;
# * `pingpong`: play it forwards and backwards;
# * `seamless`: render more frames, and let them dissolve into the beginning while the camera moves on.
#
# **Question:** rank them by the largest change between successive frames, including the one from the last frame to the first.


# %%
from inpaint_gif.animation.timing import close_loop, frame_changes


def film_of(plane, way, loop, ease="linear", frames=FRAMES):
    return list(close_loop(render_frames(plane, way, frame_times(frames, loop, ease, way.returns)), frames))


films = {loop: film_of(world, way, loop) for loop in ("once", "pingpong", "seamless")}
for loop, frames in films.items():
    changes = frame_changes(frames)  # root mean square, from each frame to the next, and from the last to the first
    print(
        f"{loop:10} {len(frames)} frames; mean change {np.mean(changes):.3f}, largest {max(changes):.3f}, "
        f"from the last to the first {changes[-1]:.3f}"
    )
picked, two = range(3, FRAMES, 6), ("pingpong", "seamless")
show_images(
    torch.stack([films[loop][k] for loop in two for k in picked]),
    len(picked),
    across=[f"frame {k}" for k in picked],
    down=two,
    width=900,
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# `once` has by far the largest change (0.60<!--out-->), at its cut. `seamless` has the smallest largest change (0.144<!--out-->), then
# `pingpong` (0.282<!--out-->), which moves twice as fast as `once`. In both, the change from the last frame to the first is only a
# little above the mean (0.125<!--out--> and 0.242<!--out-->). The price differs: `pingpong` reverses the motion, and `seamless` shows two plates at once during the dissolve.
# </details>
#
# `pingpong` with `linear` speed would reverse with a jolt. So `make_gif.py` uses `--ease smooth` for `pingpong` and `once`, where the
# camera comes to rest at its turning points. A fourth loop, `round`, places a copy of the picture at the end of a straight path.
#
# ### 256 colours
#
# A GIF has at most 256 colours, so the choice of its palette matters. There are two choices:
#
# * **one palette for all frames, or one for each frame;**
# * **dithering**, that is, how missing colours are approximated: not at all, by a fixed pattern (`ordered`), or by passing the error of
#   each pixel on to its neighbours (`floyd`, after Floyd and Steinberg 1976).
#
# To make the effects visible, we allow only 24 colours:

# %%
from inpaint_gif.animation.writers import DITHERS, quantized, to_pixels
from inpaint_gif.inpainting.compositing import enlarged

factor = math.ceil(128 / size)
frames = [enlarged(frame, factor, 0.6) for frame in films["pingpong"]]
pixels = to_pixels(frames)  # (24, H, W, 3) bytes


def as_shown(colours, palette, dither):
    """The film as a GIF shows it, (24, H, W, 3)."""
    return np.stack([np.asarray(frame.convert("RGB")) for frame in quantized(pixels, colours, palette, dither)])


crops = [pixels[0], *(as_shown(24, "global", dither)[0] for dither in DITHERS)]
crops = torch.stack([to_float(torch.from_numpy(crop)).permute(2, 0, 1)[:, 32:96, :64] for crop in crops])
display(viz.labelled_grid(crops, 4, ["all colours", *(f"24 colours, {dither}" for dither in DITHERS)], scale=3))

# %% [markdown]
# In a single picture, Floyd–Steinberg dithering looks best. For a film we also measure **flicker**: the mean change of a pixel's
# *error* from frame to frame. An error that stays the same is hardly noticed.
#
# **Question:** which kind of dithering flickers most, and which palette gives the larger file?

# %%
from inpaint_gif.animation.writers import write_film

folder = Path(tempfile.mkdtemp())
print(f"{'24 colours':33}{'error':>8}{'flicker':>10}{'kB':>8}        (error and flicker of 255 grey levels)")
for palette in ("global", "frame"):
    for dither in DITHERS:
        error = as_shown(24, palette, dither).astype(float) - pixels
        written = write_film(frames, folder / "a.gif", colours=24, palette=palette, dither=dither)
        flicker = np.abs(np.diff(error, axis=0)).mean()
        what = f"palette {palette}, dither {dither}"
        print(f"{what:33}{np.abs(error).mean():8.2f}{flicker:10.2f}{written.bytes / 1000:8.0f}")

counts = (8, 16, 32, 64, 128, 256)
plt.figure(figsize=(5, 2.6), layout="constrained")
for dither in DITHERS:
    sizes = [write_film(frames, folder / "a.gif", colours=colours, dither=dither).bytes / 1000 for colours in counts]
    plt.plot(counts, sizes, ".-", label=dither)
plt.gca().set(xscale="log", xlabel="colours", ylabel="kB", ylim=(0, None), title="GIF with one palette for all frames")
plt.gca().set(xticks=counts, xticklabels=counts)
plt.minorticks_off()
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# <details><summary>Answer</summary>
#
# Floyd–Steinberg flickers most (11.43<!--out--> grey levels against 8.35<!--out--> with a fixed pattern), because its pattern changes completely
# when anything moves. A palette for each frame makes a slightly larger file, although each frame is closer to the original.
# </details>
#
# (Pixel by pixel, every dithering has a larger error than none. The eye averages neighbouring pixels, so it judges differently.) GIF
# compresses repeated sequences of pixels (LZW), and noise does not repeat. So dithering makes files larger, and fewer colours make
# them smaller.
#
# ### The film
#
# WebP and MP4 have all colours, and are smaller than a GIF. So they are the default. The frames are enlarged with an **unsharp mask**,
# $x + a\,(x - \text{blur}(x))$, which restores contrast at edges. Drawn dishes exist at every size, so we can test whether it brings
# an enlarged picture closer to the truth or only exaggerates it:

# %%
from common.data.dishes.dataset import dish as looks_of
from common.data.dishes.dataset import draw as draw_dish

attributes = [looks_of(0, "test", i) for i in range(3)]  # (looks, pose) of three dishes
truths, smalls = (
    [to_float(torch.from_numpy(draw_dish(looks, s, pose))) for looks, pose in attributes] for s in (384, 128)
)
print(f"{'128 enlarged to 384':24}{'PSNR, dB':>10}{'slopes, true 1':>16}")
for a in (0.0, 0.3, 0.6, 1.2):
    larger = [enlarged(x, 3, a) for x in smalls]
    error = np.mean([float((x - y).square().mean()) for x, y in zip(larger, truths, strict=True)])
    slopes = [[float(x.diff(dim=2).abs().mean()) for x in some] for some in (larger, truths)]
    print(
        f"{f'unsharp mask, a = {a}':24}{10 * math.log10(4 / error):10.2f}{np.mean(slopes[0]) / np.mean(slopes[1]):16.2f}"
    )

# %% [markdown]
# A strength of 0.6 brings the slopes from 0.73<!--out--> of the truth to 0.93<!--out-->, and the PSNR rises by 0.4 dB<!--given-->. So the mask
# restores contrast that enlarging lost. Twice the strength exaggerates, and the PSNR falls below that of the plain picture.

# %%
film = [enlarged(frame, math.ceil(256 / size), 0.6) for frame in film_of(world, way, "pingpong", "smooth", frames=16)]
written = write_film(film, folder / "film.webp", fps=8, max_bytes=135_000)
print(
    f"{written.frames} frames of {written.width} x {written.height}, {written.bytes / 1000:.0f} kB"
    + (f"; {written.note}" if written.note else "")
)
Image(written.path.read_bytes(), format="png", width=512)  # an animated WebP; browsers recognise it under any name

# %% [markdown]
# The same in one line, with larger frames and a sheet of its keyframes beside it:
#
# ```sh
# python 06_inpaint_gif/make_gif.py "土鸡蛋炒番茄" --camera zoom-out:3
# ```
#
# **Question:** in `pingpong` all frames but two are shown twice. Could the file be half as large?
#
# <details><summary>Answer</summary>
#
# Not in these formats: a GIF or WebP stores frames in the order in which they are shown, and cannot refer to an earlier frame. A web
# page could play half of the frames forwards and backwards.
# </details>

# %% [markdown]
# ## 6 · Control during sampling
#
# A sampler calls one function: noisy latents and a noise level in, predicted $(\hat x_0, \hat\varepsilon)$ out. To give several
# instructions, we combine several such functions into one.
#
# ### Prompts for regions
#
# Each region has its own prompt and a mask $m_i$, and where regions meet, their predictions are averaged (**MultiDiffusion**,
# [Bar-Tal et al. 2023](https://arxiv.org/abs/2302.08113)). Each prediction is made for the *whole* picture, so that the regions fit
# together.
#
# $$\hat x_0 = \sum_i m_i\, \hat x_0^{(i)} \qquad \hat\varepsilon = \sum_i m_i\, \hat\varepsilon^{(i)} \qquad \sum_i m_i = 1 \tag{6}$$
#
# > **In the papers:** MultiDiffusion averages the *steps* of the sampler over regions, as the solution of a least-squares problem. For a sampler whose step is linear in $(\hat x_0, \hat\varepsilon)$, such as DDIM, this is the same as averaging
# > the predictions.

# %%
from inpaint_gif.inpainting.regional_prompts import Region, in_regions, region_weights

K, SHOWN = 12, 3  # pictures that are drawn of each kind, and how many of them are shown
how = SamplingConfig(guidance_scale=3.0, sampler="dpmpp_2m:12")


def denoiser(prompt, w=3.0):
    """The function for the sampler, with one prompt for all K pictures."""
    return pipeline.guided([prompt] * K, SamplingConfig(guidance_scale=w))


def draw_with(denoise, seed=2):
    *_, last = pipeline.from_noise(denoise, K, (side, side), how, Noise(seed, 0))
    return pipeline.decode(last.x)


tomato, lettuce = denoiser("番茄炒蛋"), denoiser("葱油生菜")
m_rest, m_right = region_weights([Region.parse("right:葱油生菜")], side, side)  # (1, 1, h, w) each, with sum 1


def two_dishes(x, level):
    a, b = tomato(x, level), lettuce(x, level)
    return m_rest * a[0] + m_right * b[0], m_rest * a[1] + m_right * b[1]


ours = draw_with(two_dishes)
library = draw_with(in_regions([(tomato, m_rest), (lettuce, m_right)]))
print(f"largest difference from regional_prompts.py: {(ours - library).abs().max():.0e}")
drawings = {"tomato, egg": draw_with(tomato), "lettuce": draw_with(lettuce), "left: tomato,\nright: lettuce": ours}
show_images(torch.cat([part[:SHOWN] for part in drawings.values()]), SHOWN, down=list(drawings))
two_names = clip.encode_text(["番茄炒蛋", "葱油生菜"])


def halves(part):
    """Both halves of each picture, completed to a whole plate by their mirror images."""
    left, right = part.split(size // 2, dim=-1)
    return {"left half": torch.cat([left, left.flip(-1)], -1), "right half": torch.cat([right.flip(-1), right], -1)}


print(f"called tomato and egg by the CLIP, of {K} pictures (and mean of green minus red, from -2 to 2):")
for what, part in drawings.items():
    found = []
    for name, plates in halves(part).items():
        near = clip.encode_image(plates) @ two_names.T  # cosines with both names
        tint = float((plates[:, 1] - plates[:, 0]).mean())
        found.append(f"{name} {int((near[:, 0] > near[:, 1]).sum()):2} ({tint:+.2f})")
    print(f"  {' '.join(what.split()):30} {', '.join(found)}")

# %% [markdown]
# Two dishes lie on one plate, whose outline continues from one half to the other. The rim is complete only in some pictures. For the count, each half is completed to a whole plate by its mirror image, and
# the CLIP says which of the two names is nearer. The last line shows that each half is read as its own dish, and has its colour.
#
# ### A prompt that changes
#
# Early steps, with much noise, settle the large structure, and late steps the details (chapter 5, img2img). We start with 米饭 (rice)
# and change to 番茄炒蛋 after a fraction of the steps. **Question:** how late can the prompt change and still decide which dish it is?

# %%
from inpaint_gif.inpainting.regional_prompts import in_stages, progress_along

progress = progress_along(pipeline.noise_levels(how))  # the fraction of the steps that are done at a noise level
rice, begins = denoiser("米饭"), (0.25, 0.1, 0.05)
drawings = {"rice": draw_with(rice)}
for begin in begins:
    drawings[f"tomato after\n{begin:.0%} of the steps"] = draw_with(
        in_stages([(0.0, rice), (begin, tomato)], progress)
    )
drawings["tomato, egg"] = draw_with(tomato)
show_images(torch.cat([part[:SHOWN] for part in drawings.values()]), SHOWN, down=list(drawings))
both = clip.encode_text(["米饭", "番茄炒蛋"])
print(f"{'mean cosine of ' + str(K) + ' pictures with':36}{'米饭':>6}{'番茄炒蛋':>8}{'nearer to 番茄炒蛋':>30}")
for name, part in drawings.items():
    near = clip.encode_image(part) @ both.T
    nearer = percent(share(near[:, 1] > near[:, 0]))
    print(f"{' '.join(name.split()):36}{near[:, 0].mean():8.2f}{near[:, 1].mean():12.2f}{nearer:>30}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Not after the first step. After a quarter of the steps (three of twelve) no picture is nearer to the new prompt: the rice fades, but nothing
# replaces it. After 10 %, which means from the third step on, 25 %<!--out--> are, and after 5 %, from the second step on, all of them. *Which*
# dish it is, is decided in the first two of twelve steps, where the noise is strongest.
# </details>
#
# ### A guidance scale that changes
#
# The scale can change with the noise level, too. `5>1` guides strongly at high noise and weakly at the end, `1>5` the other way round.
# Their means over the twelve steps are close to 3: 3.17<!--given--> and 2.83<!--given-->. Pictures from the same noise are compared in pairs, which removes most of the random variation.

# %%
from inpaint_gif.inpainting.regional_prompts import changing_scale

kinds = {
    "w = 3": 3.0,
    "w = 5 > 1": changing_scale(5.0, 1.0, progress),
    "w = 1 > 5": changing_scale(1.0, 5.0, progress),
}
drawings = {name: draw_with(denoiser("番茄炒蛋", w)) for name, w in kinds.items()}
show_images(torch.cat([part[:SHOWN] for part in drawings.values()]), SHOWN, down=list(drawings))


def difference(a, b):
    """Mean of paired differences with a 95 % interval: mean ± 2.20 standard errors for 12 pairs (Student's t)."""
    return f"{(a - b).mean():+.3f} ± {2.20 * (a - b).std() / K**0.5:.3f}"


measures = {name: (clip.encode_image(part) @ both[1], part.std(1).mean((1, 2))) for name, part in drawings.items()}
print(
    f"{'':14}{'cosine with the name':>22}{'minus that of w = 3':>24}{'colourfulness':>16}{'minus that of w = 3':>24}"
)
for name, (near, colour) in measures.items():
    a, b = (difference(x, y) for x, y in zip((near, colour), measures["w = 3"], strict=True))
    print(f"{name:14}{near.mean():22.3f}{a:>24}{colour.mean():16.3f}{b:>24}")

# %% [markdown]
# `5>1` follows the name as well as a constant scale: the difference of the cosines is $-0.001 \pm 0.004$. Its pictures are more colourful, by
# $0.013 \pm 0.005$, and those of `1>5` less, by $0.021 \pm 0.019$. Both intervals exclude 0. For this model and this name, the course of the
# scale changes how colourful a picture becomes. Part of the difference may come from the means, which are not exactly equal.
#
# (Colourfulness is the standard deviation between the three channels, averaged over pixels.) From the command line:
#
# ```sh
# python 06_inpaint_gif/generate.py "番茄炒蛋" --region "right:葱油生菜"
# python 06_inpaint_gif/generate.py "米饭" --then "0.05:番茄炒蛋" --guidance "8>2"
# ```
#
# With `--keep plate.png` the first picture is kept, and `make_gif.py --image plate.png` makes a film of it.
#
# **Question:** two regions cost two network evaluations at each step. Could each prompt be evaluated in its region only?
#
# <details><summary>Answer</summary>
#
# A convolutional network can be evaluated on a crop. But then neither region knows what the other contains, so the rim of the plate
# would not continue from one to the other. MultiDiffusion uses overlapping crops for that reason when it draws wide panoramas.
# </details>

# %% [markdown]
# ## 7 · Published models
#
# Our models have about a million weights and draw small pictures. Everything in this chapter also works with published models, because
# each part has an interface and not a name:
#
# | part | ours | published | flags of `make_gif.py` |
# |---|---|---|---|
# | draws the dish | `text2dish`, conditioned on the Chinese name | any text-to-image model that `diffusers` opens, prompted with the English name | `--dish FOLDER-OR-HUB-ID` |
# | chooses among candidates | our CLIP | Chinese CLIP, in the format of `cn_clip` or `transformers` | `--clip ViT-B-16 --candidates 8` |
# | paints the table | nine channels | an inpainting model, or a text-to-image model with a ControlNet | `--model FOLDER-OR-HUB-ID`, `--controlnet FOLDER-OR-HUB-ID` |
#
# ```sh
# python 06_inpaint_gif/make_gif.py "番茄炒蛋" --dish stable-diffusion-v1-5/stable-diffusion-v1-5 --clip ViT-B-16 \
#     --dish-prompt "tomato and scrambled eggs on a plate, photo from above" \
#     --model stable-diffusion-v1-5/stable-diffusion-inpainting
# ```
#
# A published model was trained on English captions. The program recognises this by its tokenizer, which cuts Chinese characters into
# pieces. It then translates the dish names of the menu, and raises the guidance scale to 7.5<!--given-->. The Chinese name is still what the Chinese CLIP compares the
# candidates with. Without `--clip`, the shipped CLIP chooses, but it has only seen drawings.
#
# ## What you can do now
#
# * Write CLIP's contrastive loss, and adapt its targets to batches with several right answers.
# * Explain why attention to one token is the same everywhere, and what a zero token changes.
# * Widen a trained network with zeros, so that it starts from what it can do.
# * Inpaint with nine channels or with RePaint, and say what the noise of the known part has to match.
# * Composite without changing a known pixel, and measure seam, tint step and drift.
# * Move a camera at fractions of a pixel with uniform apparent speed, and measure its motion by phase correlation.
# * Loop a film, choose a palette, and know what dithering costs.
# * Combine denoisers: regions, stages, and a guidance scale that changes.
#
# ## Formulas of this chapter
#
# | | |
# |---|---|
# | contrastive loss | $p_{ij} = \operatorname{softmax}_j(s\,x_i \cdot y_j)$, $\;\mathcal L_i = -\frac{1}{\lvert P_i\rvert}\sum_{j \in P_i}\log p_{ij} - \log\lvert P_i\rvert$ |
# | weight of the name with a zero token | $\operatorname{sigmoid}(q \cdot k / \sqrt d)$ |
# | guidance | $\tilde\varepsilon = \varepsilon_\varnothing + w\,(\varepsilon_{\text{name}} - \varepsilon_\varnothing)$ |
# | input of an inpainting U-Net | $[\,x_t \mid m \mid E((1 - m)\,\text{image})\,]$ |
# | RePaint | $x_{t-1} = m \odot x_{t-1}^{\text{unknown}} + (1 - m) \odot (\alpha_{t-1} x_0 + \sigma_{t-1}\varepsilon)$ |
# | compositing | $\text{original} + m\,(\text{painted} - \text{original})$ in the hole, the original elsewhere |
# | uniform zoom | $\text{scale}(t) = a\,(b/a)^{s(t)}$ from scale $a$ to scale $b$, with an ease $s(t)$ from 0 to 1 |
# | regions | $\hat x_0 = \sum_i m_i\,\hat x_0^{(i)}$, $\;\hat\varepsilon = \sum_i m_i\,\hat\varepsilon^{(i)}$ |
#
# ## Further reading
#
# * [Learning Transferable Visual Models From Natural Language Supervision](https://arxiv.org/abs/2103.00020) (CLIP) and
#   [Chinese CLIP](https://arxiv.org/abs/2211.01335): section 1. [Supervised Contrastive Learning](https://arxiv.org/abs/2004.11362)
#   (Khosla et al. 2020) has the loss for several right answers.
# * [High-Resolution Image Synthesis with Latent Diffusion Models](https://arxiv.org/abs/2112.10752), section 4.5: inpainting.
# * [RePaint](https://arxiv.org/abs/2201.09865): section 3. [Blended Latent Diffusion](https://arxiv.org/abs/2206.02779) composites in
#   latents and discusses what the autoencoder changes.
# * [Adding Conditional Control to Text-to-Image Diffusion Models](https://arxiv.org/abs/2302.05543) (ControlNet).
# * [MultiDiffusion](https://arxiv.org/abs/2302.08113), and
#   [Applying Guidance in a Limited Interval](https://arxiv.org/abs/2404.07724) for guidance that changes with the noise: section 6.
#
# ## Things to try
#
# * In section 1, let `on_a_circle` multiply the cosines by 1, and by 100. Write down first which of the two separates the dishes more.
# * In section 2, draw without the zero token: give the U-Net `name_tokens(vector)[:, :1]`.
# * In section 3, use `jump_schedule(20, 5, 10)`. Is it worth the time?
# * In section 4, plan a chain: `Move.parse("up-left,zoom-out:2")`, and look at the corners on its sheet.
# * In section 6, give the middle of the plate another dish: `Region.parse("middle:米饭")`.
#
# Then write it yourself: the [exercises](exercises/README.md) go from the hole that a camera leaves to a camera move of your own, with a
# grader, `python -m common.grade 06`.
#
# With **your own photographs**, `make_gif.py "我的菜" --image plate.jpg` needs no training, and with `--model` an inpainting model paints
# the table. A folder of pictures with Chinese captions trains all networks of this chapter (`train_clip.py`, `train_text2dish.py`,
# `train_inpaint.py`, each with `--data my/photos`). The [README](README.md) has the commands.
#
# This is the last chapter. You started from noise and a handwritten digit, and you have now seen every part of a system that turns a
# name into a film.
