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
# # Chapter 6 · 番茄炒蛋 becomes a moving picture
#
# Somebody types the name of a dish, in Chinese. A little later a small film loops on the screen: a plate, the camera backs off, and a table
# comes into view that was not in the picture. Nobody drew the plate, and nobody drew the table.
#
# There is little in it that you have not built already. Chapters 1 to 3 were diffusion, chapter 2 taught it to listen, chapter 4 moved it
# into latents, and chapter 5 filled holes. Here the pieces meet. What is new is *how they are joined*, and most of this lesson is about
# joints: between a language and a picture, between what is known and what is painted, between one frame and the next, and between the last
# frame and the first.
#
# 1. A name becomes a vector: a **Chinese CLIP** (对比学习, contrastive learning);
# 2. the vector becomes a dish: guidance again, and why a zero must stand beside the vector;
# 3. a hole is filled: nine channels (九通道), **RePaint**, and an edge that nobody sees (**inpainting**, 局部重绘);
# 4. a camera moves: keyframes (关键帧), and what lies between them;
# 5. a film: loops (循环), and 256 colours (调色板, palette);
# 6. control while drawing: other words at other places, and at other times;
# 7. what to remember, and where to go.
#
# You should have read chapters 2 and 4. Everything runs on a laptop's CPU with no download, in about two minutes. Dish names stand in
# Chinese in the text and in English in the figures.

# %%
from common.grade.chapter import (
    open_chapter,  # no module named common? Select the kernel in which the course is installed (README.md)
)

CHAPTER = open_chapter(
    "06_inpaint_gif"
)  # this folder: from here on its files can be imported, wherever the kernel was started

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
from IPython.display import Image

from common import viz
from common.data import load
from common.data.dishes.captions import names_of
from common.diffusion.samplers import initial_noise
from common.diffusion.schedules import add_noise
from common.io.pixels import to_float
from common.io.state_dict import count_parameters
from common.models.pipeline import SamplingConfig
from common.random import Noise
from inpaint_gif.animation.camera import MOVES, CameraPath, Move, paint, render_frames  # moves,
from inpaint_gif.animation.canvas import FilmCanvas, Window
from inpaint_gif.animation.motion import motion
from inpaint_gif.animation.timing import EASES, close_loop, frame_changes, frame_times
from inpaint_gif.animation.writers import DITHERS, contact_sheet, quantized, to_pixels, write_film  # films as files,
from inpaint_gif.clip.dish_names import HELD_OUT, LEARNED, name_embeddings, parse_dish_name
from inpaint_gif.clip.loss import contrastive_loss
from inpaint_gif.clip.model import BACKENDS, ChineseCLIP  # names and pictures as vectors,
from inpaint_gif.clip.name_encoder import (  # this chapter's files: a model and all it needs to draw,
    load_clip_for,
    name_tokens,
    open_model,
)
from inpaint_gif.clip.retrieval import FORTY, evaluate_dishes
from inpaint_gif.evaluation.metrics import edge_metrics, untouched_seam  # and how good all that is
from inpaint_gif.inpainting.backends import (  # whatever paints holes,
    DEFAULTS,
    BackendConfig,
    InpaintBackend,
    inpainting_channels,
    open_backend,
)
from inpaint_gif.inpainting.compositing import blurred, feathered, matched, overlay, resized, seam
from inpaint_gif.inpainting.edge_fill import nearest
from inpaint_gif.inpainting.regional_prompts import (
    Region,
    changing_scale,
    in_regions,
    in_stages,
    progress_along,
    region_weights,
)
from inpaint_gif.inpainting.repaint import jump_schedule, repaint
from inpaint_gif.training.flags import HoleFlags
from inpaint_gif.training.holes import hole_test_set
from inpaint_gif.training.inpaint import widened

plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
DISH, HOLES = (
    DEFAULTS["repaint"],
    DEFAULTS["inpaint"],
)  # the models that come with this chapter; or runs of your own, as CHAPTER.parent / "runs/..."
BLUE = to_float(torch.tensor([31, 119, 180], dtype=torch.uint8)).view(3, 1, 1)  # where something is to be painted


def show_images(images, columns, across=(), down=(), cell=0.9):
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


def in_english(dish):
    return names_of(dish, "en")[0]


# %% [markdown]
# ## 1 · A name becomes a vector
#
# A **CLIP** ([Radford et al. 2021](https://arxiv.org/abs/2103.00020)) is two networks. One reads a text, the other looks at a picture, and
# both answer with a vector of the same length. They are trained together, so that the vectors of a picture and of its caption point in the
# same direction. A Chinese CLIP ([Yang et al. 2022](https://arxiv.org/abs/2211.01335), package `cn_clip`) reads Chinese: a BERT that cuts a
# text into characters. Ours is small, learned on drawn dishes, and opens in the same packages.

# %%
clip = load_clip_for(DISH)  # the one that the shipped model was trained with
NAME = "土鸡蛋炒番茄"  # free-range eggs fried with tomato
vector = clip.encode_text([NAME])
print(
    f"{count_parameters(clip.network):,} weights; it looks at pictures of {clip.size} x {clip.size} and knows {len(clip.checkpoint.vocab)} pieces of text"
)
print("read as", " ".join(token for token in clip.tokenizer.backend.encode(NAME).tokens if token != "[PAD]"))
print(
    f"becomes a vector of {vector.shape[1]} numbers, of length {vector.norm():.4f}; the first of them",
    *(f"{v:.2f}" for v in vector[0, :6]),
)

# %% [markdown]
# All vectors have length 1, so two of them are compared by their **cosine** (余弦): 1 is the same direction, 0 means nothing in common.
#
# A question first. Among these six names, 西红柿炒鸡蛋 (tomato and scrambled eggs) and 西红柿鸡蛋汤 (tomato and egg drop *soup*) share five of six
# characters. 番茄炒蛋 is another name of the first dish, with which it shares only 炒 and 蛋. Which pair do *you* expect to be nearer? And where
# will 番茄炒鸡蛋 be, which no caption of the training contained?

# %%
names = ["番茄炒蛋", "西红柿炒鸡蛋", "番茄炒鸡蛋", "西红柿鸡蛋汤", "番茄鸡蛋面", "米饭"]
notes = [
    "tomato and eggs",
    "the same, by another name",
    "the same, never read",
    "tomato and egg drop soup",
    "noodles with both",
    "rice",
]
vectors = clip.encode_text(names)
print(" " * 34 + "".join(f"{i:>7}" for i in range(1, 7)))
for i, (row, name, note) in enumerate(zip(vectors @ vectors.T, names, notes, strict=True), 1):
    print(f"{i} {note:32}" + "".join(f"{cosine:7.2f}" for cosine in row), f"  {name}")

# %% [markdown]
# The two names of one dish are nearly the same vector (0.99), the soup is another (0.67), and the name that was never read lies where its dish does.
# Whoever compares only characters must call the first pair alike. This reader was trained beside pictures, and a soup does not look like a
# stir-fry.
#
# ### What teaches it: one batch, longhand
#
# Take $B$ pictures $x_i$ and their $B$ captions $y_j$. Compare each with each: that is a table of $B \times B$ cosines, times a number $s$
# (one over the *temperature*, 温度, which is learned along). The softmax of a row says which caption the picture is given to:
#
# $$p_{ij} = \frac{e^{s\,x_i \cdot y_j}}{\sum_k e^{s\,x_i \cdot y_k}} \tag{1}$$
#
# The answer wanted is caption $i$ for picture $i$: a question with $B$ choices, as in a school test. The same is asked by columns (which
# picture does this caption belong to?), and the loss is the mean of both.
#
# One thing is not as in the paper. CLIP's batches were 32,768 pairs from the whole web, where few say the same. We have 80 dishes, so a
# batch often holds two plates of one dish. Is the caption of the one *wrong* for the other? No. So the answer wanted is spread evenly over
# all that are right.


# %%
def clip_loss(logits, right):
    """How far the softmax of each row, and of each column, is from the answer wanted, in nats. logits (B, B), right (B, B) of 0 and 1 -> (B,)"""
    wanted = right / right.sum(1, keepdim=True)  # equal shares of all that is right

    def named(table):
        return (wanted * (wanted.clamp(min=1e-12).log() - table.log_softmax(1))).sum(1)

    return (named(logits) + named(logits.T)) / 2


test = load("dishes", 64, split="test", language="zh", n=400)  # drawn just now, as no training has drawn them
order, labels = list(LEARNED), test.labels.tolist()
first = next(i for i, dish in enumerate(labels) if labels.count(dish) > 1)  # a dish that is there twice ...
second = labels.index(labels[first], first + 1)
batch = [first, second, *(labels.index(dish) for dish in list(dict.fromkeys(labels)) if dish != labels[first])][
    :6
]  # ... and four others
pictures, captions, dish = to_float(test.pixels[batch]), [test.captions[i] for i in batch], test.labels[batch]

logits = clip.scale * clip.encode_image(pictures) @ clip.encode_text(captions).T  # (6, 6)
one_each, by_dish = torch.eye(6), (dish[:, None] == dish).float()
show_images(pictures, 6, across=range(1, 7), cell=1.0)
print("each picture, and how it is shared out among the six captions, in per cent:")
for i, (row, text) in enumerate(zip(logits.softmax(1), captions, strict=True), 1):
    print(f"{i} " + "".join(f"{100 * p:7.1f}" for p in row), f"   {i}: {text}")
print(
    f"the loss: CLIP's {clip_loss(logits, one_each).mean():.3f}, ours {clip_loss(logits, by_dish).mean():.3f}; "
    f"guessing would cost CLIP's {math.log(6):.3f}"
)
library = contrastive_loss(clip.encode_image(pictures), clip.encode_text(captions), dish, torch.tensor(clip.scale))
print(f"loss.py says the same, to {(library - clip_loss(logits, by_dish)).abs().max():.0e}")

# %% [markdown]
# Pictures 1 and 2 are two plates of one dish, red-braised fish, and both are given to caption 2. Caption 1 says 红烧鲫鱼: a name that was kept back
# from the training, so the CLIP has never read it (more of that below). CLIP's own loss can never be 0 here, for it wants to tell apart what is the same.
#
# What would it do to the vectors? We let twelve of them be free, six pictures and six captions, each a point on a circle, and follow the
# gradient. No network, no pictures: only the loss. **Before you look:** where will the two plates of one dish go, with the one loss and
# with the other?


# %%
def on_a_circle(right, steps=500):
    """Twelve free vectors in the plane that follow the loss: (2, 6, 2), pictures and captions, and the loss at the end."""
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
for axis, (title, right) in zip(
    axes, {"only its own caption is right": one_each, "all of the same dish are right": by_dish}.items(), strict=True
):
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
# Captions (stars, drawn a little further in) lie with their pictures in both. On the left the two blue ones are pushed apart like
# strangers; on the right they are one, and the room that they needed goes to the others.
#
# ### Ten names, ten pictures
#
# Now the trained one. Rows are names, columns pictures that it has not seen, and each cell is a cosine. What do you expect of the diagonal,
# and where will the largest *wrong* cells be?

# %%
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
plt.imshow(
    viz.grid(pictures, n, gap=0), extent=(0, n, n, n + 1), interpolation="nearest"
)  # the pictures, above their columns
for i in range(n):
    for j in range(n):
        ink = "black" if 2 * cosines[i, j] > cosines.min() + cosines.max() else "white"
        plt.text(
            j + 0.5,
            n - i - 0.5,
            f"{cosines[i, j]:.1f}".replace("0.", "."),
            ha="center",
            va="center",
            color=ink,
            fontsize=7,
        )
plt.yticks([n - i - 0.5 for i in range(n)], [in_english(name) for name in TEN])
plt.gca().set(xlim=(0, n), ylim=(0, n + 1), xticks=[])
plt.gca().tick_params(length=0)
plt.gca().spines[:].set_visible(False)
plt.colorbar(shown, shrink=0.8, label="cosine")
plt.show()
print("rows:", "、".join(TEN))

# %% [markdown]
# None of these ten is mixed up. The brightest wrong cells (0.6 and 0.7) are eggs with tomato, noodles with both, and the soup of both; rice with dumplings, white and round;
# and kung pao chicken with red-braised fish, brown and glossy.
# The diagonal is a picture with its own name. Look for bright cells off it: those dishes are alike to this CLIP, and a name that is
# misunderstood is most likely taken for one of them.
#
# ### Counted
#
# A picture is *named* by the nearest of 80 names. A name *finds* the dish whose pictures lie nearest. It is two lines:

# %%
all_names = name_embeddings(clip, LEARNED)  # (80, D): the mean of what each dish is called
guess = (clip.encode_image(to_float(test.pixels)) @ all_names.T).argmax(1)
print(
    f"{(guess == test.labels).double().mean():.1%} of {len(test)} pictures are named rightly, among {len(all_names)} dishes\n"
)

figures = evaluate_dishes(clip, {"test": test, "heldout": load("dishes", 64, split="heldout", n=200)})
print(f"{'':40}{'asked':>6}{'nearest is right':>28}{'among the nearest five':>25}")
for what, found in figures.items():
    top1 = f"{found.top1.value:.1%} ({found.top1.low:.1%} to {min(1, found.top1.high):.1%})"
    print(f"{what:40}{found.queries:>6}{top1:>28}{found.top5.value:>25.1%}")

# %% [markdown]
# `test`: other drawings than those it has learned from. `heldout`: dishes on a table on which it has never seen them. And the row that
# matters to whoever types: **held-out names**. The last other name of each dish that has two or more was kept back, and stands in no caption. To
# understand it, one must put it together from characters that were met elsewhere: 番茄 from here, 鸡蛋 from there.
#
# Here are some of them, one name that means nothing on this menu, and one that is not Chinese.

# %%
for text in ["番茄炒鸡蛋", "白灼生菜", "红烧鲫鱼", "大米饭", "宫保虾仁", "steamed rice"]:
    asked = parse_dish_name(clip, text)
    meant = next((dish for dish, other in HELD_OUT.items() if other == text), None)
    kept = f"   (never read; it means {meant}, {in_english(meant)})" if meant else ""
    print(f"{text}: nearest are " + "、".join(f"{dish} {cosine:.2f}" for dish, cosine in asked.nearest) + kept)
    for remark in asked.remarks:
        print(f"    {remark}")

# %% [markdown]
# 番茄炒鸡蛋 and 大米饭 are understood: all their characters were met in the same company. 白灼生菜 (blanched lettuce) is taken for 白灼虾, shrimps, since 白灼 stood
# nowhere else, and 红烧鲫鱼 (red-braised *carp*) for a carp soup. A rare pair of characters speaks louder than a frequent one.
#
# ### Two backends
#
# `cn_clip` computed all vectors so far. The library `transformers` reads the same weights under other names. We encode the same names and
# pictures with both backends and compare the vectors:

# %%
backends = [ChineseCLIP(clip.checkpoint, backend) for backend in BACKENDS]
for backend in backends:
    print(f"{backend.backend:14}{type(backend.network.clip).__module__}.{type(backend.network.clip).__name__}")
for what, (first, second) in {
    "names": [backend.encode_text(names) for backend in backends],
    "pictures": [backend.encode_image(pictures) for backend in backends],
}.items():
    print(f"largest difference between their vectors of {what}: {(first - second).abs().max():.0e}")

# %% [markdown]
# The difference is the rounding error of single precision. A checkpoint of the published ViT-B/16, or one that you have fine-tuned, can
# therefore replace ours in either backend: `make_gif.py --clip ViT-B-16` (with a dish model that was trained for it).
#
# **For you.** Why does the loss ask by rows *and* by columns: what could a network do that was only asked by rows? And if a batch held a
# single pair, what would it teach?

# %% [markdown]
# ## 2 · The vector becomes a dish
#
# Chapter 4's U-Net read a sentence as a row of vectors, one for each token, and every place of the picture chose which tokens to look at
# (cross-attention, 交叉注意力). Now there is *one* vector for the whole name. Can a place still choose?
#
# Attention is a softmax over tokens. **Predict:** what is a softmax over one number? Five places (rows of `q`) look at one token, and then
# at the token and a zero beside it:

# %%
dice = torch.Generator().manual_seed(0)
q, k, v = torch.randn(5, 8, generator=dice), torch.randn(1, 8, generator=dice), torch.randn(1, 3, generator=dice)
nothing_k, nothing_v = torch.zeros(1, 8), torch.zeros(1, 3)


def attend(q, k, v):
    share = (q @ k.T / k.shape[1] ** 0.5).softmax(1)  # how much each place looks at each token
    return share[:, 0], share @ v


for what, (share, answer) in {
    "alone": attend(q, k, v),
    "with a zero": attend(q, torch.cat([k, nothing_k]), torch.cat([v, nothing_v])),
}.items():
    print(
        f"{what:12} five places look at the name: " + " ".join(f"{s:.2f}" for s in share),
        f"; their answers differ by {answer.std(0).mean():.2f}",
    )

# %% [markdown]
# Alone, everybody must look at it, wholly: the same is added to plate and table, whatever a place has to say about itself. With the zero,
# softmax has a second choice, and since $e^0 = 1$
#
# $$\text{share of the name} = \frac{e^{q \cdot k}}{e^{q \cdot k} + 1}$$
#
# a sigmoid: each place decides *how much* the name concerns it. To look at the zero adds nothing. And the empty name, of which guidance is
# in need, is simply twice the zero. In our code it is one line ([name_encoder.py](inpaint_gif/clip/name_encoder.py)): the vector, enlarged so that its numbers are of
# size 1, and the zero.

# %%
artist = open_model(DISH, clip=clip)
c, f, size = artist.vae.cfg.latent_channels, artist.factor, artist.size
side = size // f
print(
    f"a U-Net with {count_parameters(artist.unet):,} weights; pictures of {size} x {size}, latents of {c} x {side} x {side}; it predicts {artist.prediction}"
)
longhand = torch.stack([vector * clip.dim**0.5, 0 * vector], dim=1)  # (1, 2, D)
print(
    f"what it is told of a name: {tuple(name_tokens(vector).shape)}, the same as longhand: {torch.equal(artist.text_encoder([NAME]), longhand)}"
)

# %% [markdown]
# Does it make use of the choice? We draw three dishes, noise them half-way, ask the network once, and catch the shares in its last
# attention layer (bright: this place looks at the name).

# %%
three = ["番茄炒蛋", "葱油生菜", "米饭"]
drawn = artist.txt2img(three, SamplingConfig(guidance_scale=5.0, seed=1))
layer = [
    module for name, module in artist.unet.named_modules() if name.startswith("up_blocks") and name.endswith("attn2")
][-1]
path, told, maps = list(artist.noise_levels(SamplingConfig(sampler="ddim:20"))), artist.text_encoder(three), []
handle = layer.register_forward_hook(lambda module, inputs, output: maps.append(inputs[0].detach()))
levels = [path[k] for k in (4, 10, 16)]
with torch.no_grad():
    for level in levels:
        artist.unet(
            add_noise(artist.encode(drawn), Noise(0)(0, torch.empty(3, c, side, side)), level),
            torch.full((3,), level.time),
            text=told,
        )
    handle.remove()
    rows = [drawn]
    for x in maps:  # (3, places, width) each
        q, k = (
            layer.split_heads(layer.to_q(x)),
            layer.split_heads(layer.to_k(told)),
        )  # (3, heads, places, d), (3, heads, 2, d)
        share = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)[..., 0].mean(1)  # (3, places), the mean of the heads
        around = int(share.shape[1] ** 0.5)
        rows.append(F.interpolate(2 * share.view(3, 1, around, around) - 1, (size, size)).expand(-1, 3, -1, -1))
words = [f"share, $\\sigma$ = {level.sigma:.2f}" for level in levels]
show_images(
    torch.stack(rows).flatten(0, 1), 3, across=["tomato, egg", "lettuce", "rice"], down=["drawn", *words], cell=1.1
)
for row, word in zip(rows[1:], words, strict=True):
    shares = (row[:, 0].flatten(1) + 1) / 2
    print(
        f"{word.replace('$', '').replace(chr(92), ''):20} of the name: from {shares.amin():.2f} to {shares.amax():.2f}, mean {shares.mean():.2f}"
    )

# %% [markdown]
# The food looks at the name, at much noise nearly wholly; the table looks at the zero. And the less noise is left, the less is the name asked for. Plain rice hardly needs it.
# That is what the zero is for.
#
# ### How loud?
#
# The knob of chapter 2: $\tilde\epsilon = \epsilon_\varnothing + w\,(\epsilon_{\text{name}} - \epsilon_\varnothing)$, where the empty name
# is twice the zero. Five names in the columns, and the same noise down each column. What do you expect at $w = 0$? And at 10?

# %%
SCALES, five = (0.0, 1.0, 5.0, 10.0), ["番茄炒蛋", "葱油生菜", "麻婆豆腐", "米饭", "红烧鱼"]
swept = {w: artist.txt2img(five, SamplingConfig(guidance_scale=w, seed=3)) for w in SCALES}
show_images(torch.cat(list(swept.values())), 5, down=[f"w = {w:g}" for w in SCALES], cell=0.95)
print("columns:", "; ".join(f"{name} ({in_english(name)})" for name in five))

# %% [markdown]
# At $w = 1$ the colours are there already, at 5 the fish has its form, too. At 10 vessels lose their rims, and white or black gathers along the edge of the food.
#
# Looking is good, counting is better. One picture of each of 40 dishes, and the *image* half of the CLIP says which of all 80 it shows. It
# took no part in the drawing, but it grew up with the half that did, so it is a friendly judge. Beside it stands its own limit: drawings of
# the test split.


# %%
def named_rightly(pictures, dishes):
    right = torch.tensor([order.index(dish) for dish in dishes])
    return float(((clip.encode_image(pictures) @ all_names.T).argmax(1) == right).double().mean())


shares = {
    w: named_rightly(artist.txt2img(FORTY, SamplingConfig(guidance_scale=w, seed=7)), FORTY)
    for w in (1.0, 2.0, 5.0, 10.0)
}
limit = float((guess == test.labels).double().mean())
print(
    "named rightly, of 40 dishes drawn once each: "
    + ", ".join(f"w = {w:g} {share:.0%}" for w, share in shares.items())
)
print(
    f"real drawings: {limit:.0%}; with 40 pictures, a share of one half would be known to ± {2 * (0.25 / 40) ** 0.5:.0%} (two standard errors)"
)

# %% [markdown]
# And the names that it never read? Each pair has the same noise; on the left a name that was learned, on the right the one that was kept
# back.

# %%
pairs = ["番茄炒蛋", "葱油生菜", "红烧鱼", "米饭"]
left, right = (
    artist.txt2img(pairs, SamplingConfig(guidance_scale=5.0, seed=5)),
    artist.txt2img([HELD_OUT.get(dish, dish) for dish in pairs], SamplingConfig(guidance_scale=5.0, seed=5)),
)
show_images(torch.stack([left, right], 1).flatten(0, 1), 8, across=["learned", "kept back"] * 4, cell=1.0)
print("; ".join(f"{dish} | {HELD_OUT.get(dish, dish)}" for dish in pairs))

# %% [markdown]
# The first pair and the last show the same dish, nearly the same picture. The second has become shrimps and the third a soup, as section 1 foretold.
#
# No new code was needed for that. If the vectors of two names are near to each other, the U-Net is told nearly the same.
#
# **For you.** With the vector and *two* zeros beside it, what would the share be? And a name that lies half-way between two dishes: will
# the picture show one of them, both, or something between? (Try `tokens(F.normalize(a + b, dim=-1))`.)

# %% [markdown]
# ## 3 · A hole
#
# When the camera moves, part of the new picture has never been seen. Our material for it: dishes on tables that go on beyond the plate's
# picture, looked at through a window at any place, with holes as a camera leaves them.

# %%
painter = open_model(
    HOLES
)  # the inpainting model: chapter 4's U-Net and reader of words, widened, and trained on holes
holes = hole_test_set(HoleFlags(), painter.size, 16)
images, masks, captions = holes.images, holes.masks, holes.captions  # (16, 3, S, S), (16, 1, S, S)
with_hole = images * (1 - masks) + BLUE * masks
show_images(torch.cat([images[:5], with_hole[:5]]), 5, down=["the scene", "what is known"], cell=1.0)
print("the first is called:", captions[0])

# %% [markdown]
# Two ways need no network: each missing pixel takes the colour of the **nearest** known one, or of its **mirror image** in the edge
# (reflect). On a plain table that may be all one needs. On the rim of a plate you will see at once what they do not know.
#
# ### Nine channels
#
# How does one tell a U-Net about a hole? Simply show it more. Stable Diffusion's inpainting model ([Rombach et al.
# 2022](https://arxiv.org/abs/2112.10752)) takes, beside the noisy latents, the mask and the latents of the picture with grey in its hole:
# $4 + 1 + 4 = 9$ channels in, and as before 4 out. Here they are, half-way through the noise:

# %%
image, mask = images[:1], masks[:1]
level = list(painter.noise_levels(SamplingConfig(sampler="ddim:20")))[10]
noisy = add_noise(
    painter.encode(image), Noise(0)(0, torch.empty(1, c, side, side)), level
)  # (1, 4, h, w) what is being drawn
small = F.interpolate(mask, size=(side, side))  # (1, 1, h, w) one pixel for each latent
known = painter.encode(image * (1 - mask))  # (1, 4, h, w) grey in the hole
nine = torch.cat([noisy, small, known], dim=1)
panels = torch.cat([(noisy / 3).clamp(-1, 1), 1.4 * small - 0.7, (known / 3).clamp(-1, 1)], dim=1)[0, :, None]
show_images(
    panels, 9, across=[*(f"noisy {i}" for i in range(1, 5)), "mask", *(f"known {i}" for i in range(1, 5))], cell=1.0
)
print(
    f"{nine.shape[1]} channels; the last five are what the engine shows: {torch.equal(nine[:, c:], inpainting_channels(painter, image, mask))}"
)

# %% [markdown]
# (Latents know no bounds; for the picture they are divided by 3. The mask is 1 where it is light.) Note that the network never has to guess
# *where* the hole is, nor to find the known picture in the noise.
#
# ### Widened with zeros
#
# Chapter 4's network already knows how tables look. Must one start again because its first layer takes 4 channels, not 9? No: the first
# layer is a convolution, which multiplies each channel by its own weights and adds up. **Predict** what comes out if the weights of the
# five new channels are zero.

# %%
old = artist.unet.conv_in.weight.detach()  # (width, 4, 3, 3)
new = torch.cat([old, torch.zeros(len(old), c + 1, 3, 3)], dim=1)  # (width, 9, 3, 3)
bias = artist.unet.conv_in.bias
# the dish model stands in for chapter 4's, from which it was made: its first layer is of the same shape
wide, text, t = widened(artist.unet), artist.text_encoder([NAME]), torch.full((1,), level.time)
with torch.no_grad():
    before, after = F.conv2d(noisy, old, bias, padding=1), F.conv2d(nine, new, bias, padding=1)
    difference = (artist.unet(noisy, t, text=text) - wide(nine, t, text=text)).abs().max()
print(f"{tuple(old.shape)} -> {tuple(new.shape)}")
print(
    f"largest difference after the first layer {float((before - after).abs().max()):g}, after the whole network {float(difference):g}"
)

wide(nine, t, text=text).square().mean().backward()
slope = wide.conv_in.weight.grad
print(
    f"and yet they can learn: the gradient of the new weights is {slope[:, c:].norm():.2e} long, that of the old ones {slope[:, :c].norm():.2e}"
)

# %% [markdown]
# At step 0 the network is the one that it was (a difference of about 1e-6, if you see one, comes from adding up in another order). Zeros
# are no trap here: the gradient of a weight is what comes *in* times what is asked from above, and the input is not zero. (ControlNet's
# zero convolutions in chapter 5 are the same idea.)
#
# Has the shipped one learned to look? The size of its first layer's weights, channel by channel; the last five began at zero:

# %%
sizes = painter.unet.conv_in.weight.detach().square().mean(dim=(0, 2, 3)).sqrt()
for what, part in {"noisy latents": sizes[:c], "mask": sizes[c : c + 1], "known latents": sizes[c + 1 :]}.items():
    print(f"{what:15}", " ".join(f"{value:.3f}" for value in part))

# %% [markdown]
# ### RePaint: with a model that never saw a hole
#
# There is a way without any training ([Lugmayr et al. 2022](https://arxiv.org/abs/2201.09865)). Let *any* model denoise the whole picture,
# and after every step throw away what it drew where the truth is known: put the known picture there, as noisy as it should be at that
# level. Here is the algorithm, with the model that draws dishes from names.


# %%
def repaint_longhand(denoise, known, hole, levels, order, dice):
    """known (B, c, h, w) clean latents; hole (B, 1, h, w), 1 = repaint; order: which level to visit after which."""
    x = levels[0].sigma * dice(0, known)
    for i, (now, then) in enumerate(pairwise(levels[k] for k in order)):
        if then.sigma > now.sigma:  # back up: noise again
            ratio = then.alpha / now.alpha
            x = ratio * x + (then.sigma**2 - (ratio * now.sigma) ** 2) ** 0.5 * dice(2 * i + 1, known)
            continue
        x0, eps = denoise(x, now)[:2]  # down: a step of DDPM inside ...
        fresh = (then.sigma / now.sigma) ** 2 * (now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2)
        inside = then.alpha * x0 + max(0.0, then.sigma**2 - fresh) ** 0.5 * eps + fresh**0.5 * dice(2 * i + 1, known)
        around = then.alpha * known + then.sigma * dice(2 * i + 2, known)  # ... and around it the truth, noised
        x = torch.where(hole > 0, inside, around)
    return x


N, how = 4, SamplingConfig(guidance_scale=2.0)
path, dice = artist.noise_levels(how), Noise(0)
levels, denoise = list(path), artist.guided(captions[:N], how)
known = artist.encode(
    torch.stack([nearest(*pair) for pair in zip(images[:N], masks[:N], strict=True)])
)  # grey would shine through
hole = F.max_pool2d(masks[:N], f)  # a latent is missing if any of its pixels is
print("once:      ", jump_schedule(20, 5, 1))
print("two times: ", jump_schedule(20, 5, 2))
with torch.no_grad():
    latents = {
        times: repaint_longhand(denoise, known, hole, levels, jump_schedule(20, 5, times), dice) for times in (1, 4)
    }
*_, library = repaint(denoise, initial_noise(path, known.shape, dice), path, known, hole, dice, 5, 1)
print(f"repaint.py gives the same latents, to {(library.x - latents[1]).abs().max():.0e}")
filled = [torch.where(masks[:N] > 0, artist.decode(z), images[:N]) for z in latents.values()]
show_images(
    torch.cat([with_hole[:N], *filled]), N, down=["what is known", "RePaint, once", "RePaint, 4 times"], cell=1.05
)

# %% [markdown]
# *Once* may look pasted. Why? At each step the inside was drawn before anybody knew what would be put around it. So RePaint goes **back
# up**: it noises all of it again, by five steps, and walks them once more. Each time the inside has seen a little more of the outside. Look
# at the levels printed above: the price is the number of steps.
#
# Here the two rows differ less than one hopes. Walked four times, the inside fits better to what is around it (look at the checks of the third picture); but the strange plate in
# the first hole stays. This model has learned from whole plates in the middle of the picture, and from nothing else: it thinks a hole is where a dish must be.
#
# ### Not one known pixel
#
# Whoever paints gives back a *whole* picture: an autoencoder came in between, and it does not give back what it was given. How much does it
# change what it was told to keep?

# %%
raw = InpaintBackend(painter, SamplingConfig(guidance_scale=2.0)).paint(
    images, masks, captions, seed=0
)  # (16, 3, S, S) as the network gave it
kept = (masks == 0).expand_as(images)
print(
    f"known pixels, as the network gives them back: {127.5 * (raw - images).abs()[kept].mean():.1f} of 255 grey levels away, on the mean"
)

pasted = torch.stack([overlay(*three) for three in zip(images, raw, masks, strict=True)])
assert torch.equal(pasted[kept], images[kept])  # bit for bit
print("put back: every known pixel is what it was, bit for bit")

# %% [markdown]
# `overlay` is `image + mask (painted - image)`, and `torch.where(mask > 0, ...)` around it, so that no rounding can touch what is known.
#
# Now the colours jump at the edge: on one side the truth, on the other what an autoencoder makes of it. Two repairs, both on the *inner*
# side of the edge only:
#
# * **match**: take the difference at the edge, smooth it, and carry it into the hole, fading out (`masks.matched`);
# * **feather**: the first pixel inside is a mixture of the known colour and the painted one (`masks.feathered`).
#
# The usual *mask blur* softens the mask on **both** sides. Predict how many known pixels each of them changes:

# %%
soft = {
    "hard": masks,
    "blurred by 2 pixels": torch.stack([blurred(mask, 2) for mask in masks]),
    "feathered by 2 pixels": torch.stack([feathered(mask, 2) for mask in masks]),
}
_, axes = plt.subplots(1, 2, figsize=(8, 2.3), layout="constrained", gridspec_kw={"width_ratios": (1.4, 1)})
edge = torch.zeros(1, 8, 24)
edge[:, :, 12:] = 1
for name, line in {
    "hard": edge,
    "blurred by 2 pixels": blurred(edge, 2),
    "feathered by 2 pixels": feathered(edge, 2),
}.items():
    axes[0].plot(line[0, 4], ".-", label=name)
axes[0].set(title="a mask along one row (the hole is on the right)", xlabel="pixel", yticks=[0, 1])
axes[0].legend(fontsize=8)
axes[1].axis("off")
axes[1].imshow(viz.grid(torch.stack([1.4 * soft[name][0] - 0.7 for name in soft]), 3), interpolation="nearest")
axes[1].set_title("the same, of the first hole")
plt.show()
for name, mask in soft.items():
    mixed = torch.stack([overlay(*three) for three in zip(images, raw, mask, strict=True)])
    print(f"{name:24}{(mixed != images)[kept].double().mean():7.1%} of the known values changed")

# %% [markdown]
# How visible is an edge? We measure its **seam** (接缝): across the edge, how hard do pixels jump, compared with jumps nearby? 1 means that
# the picture goes on as if nothing had happened; a hard edge is 2 and more. One picture tells little (its own lines may lie on the edge),
# so it is a mean, and beside it stands what *untouched* pictures score.

# %%
bent = torch.stack([overlay(a, matched(a, b, m), m) for a, b, m in zip(images, raw, masks, strict=True)])
softened = torch.stack(
    [
        overlay(a, overlay(nearest(a, m), matched(a, b, m), feathered(m, 1)), m)
        for a, b, m in zip(images, raw, masks, strict=True)
    ]
)
ways = {"untouched": images, "pasted": pasted, "matched": bent, "matched and feathered": softened}
show_images(torch.cat([part[:4] for part in ways.values()]), 4, down=list(ways), cell=1.0)
for name, part in ways.items():
    found = [seam(image, mask) for image, mask in zip(part, masks, strict=True)]
    print(
        f"{name:24} seam {np.mean(found):.2f} ± {np.std(found) / len(found) ** 0.5:.2f}; known pixels exact: {torch.equal(part[kept], images[kept])}"
    )

# %% [markdown]
# ### All of them
#
# Five engines with one interface, `engine(image, mask, prompt, seed) -> image`, all joined in the same way. *Error* is the distance from
# what really was in the hole, in a range of 2: nobody can know which leaf lay where, but the colour of the table can be known. **Predict**
# the order by seam, and by error. (They need not be the same.)

# %%
engines = {
    name: open_backend(BackendConfig(name, sampling=SamplingConfig(guidance_scale=2.0), clip=clip))
    for name in ("nearest", "reflect", "repaint", "controlnet", "inpaint")
}
painted = {
    name: torch.stack([engine(images[i] * (1 - masks[i]), masks[i], captions[i], i) for i in range(4)])
    for name, engine in engines.items()
}
show_images(
    torch.cat([with_hole[:4], *painted.values(), images[:4]]),
    4,
    down=["what is known", *painted, "the truth"],
    cell=1.05,
)

floor = untouched_seam(holes)
print(f"{'':12}{'seam':>24}{'error in the hole':>26}   known pixels   seconds a hole")
print(f"{'untouched':12}{f'{floor.value:.2f} ({floor.low:.2f} to {floor.high:.2f})':>24}")
for name, engine in engines.items():
    e = edge_metrics(engine, holes)
    print(
        f"{name:12}{f'{e.seam.value:.2f} ({e.seam.low:.2f} to {e.seam.high:.2f})':>24}{f'{e.error.value:.3f} ({e.error.low:.3f} to {e.error.high:.3f})':>26}"
        f"   {'exact' if e.exact else 'CHANGED':12}   {e.seconds:.2f}"
    )

# %% [markdown]
# *inpaint* has the seam of untouched pictures and the least error. *reflect* lays a second plate onto the table, and so does *repaint*, in its own way. *nearest* draws the rim of a plate out to
# the edge in stripes. *controlnet* leaves the model that draws as it is and sets a second network beside it, which sees the picture with its hole and
# tells it what is wanted: it was trained for holes like *inpaint*, and knows better than *repaint* what belongs there.
#
# Sixteen holes make wide intervals; `evaluate_gif.py` takes more, and its table stands in the [README](README.md). Mind what a seam does
# *not* see: *nearest* is smoother across the edge than any real picture, for its colours there are the edge's own.
#
# **For you.** What would the mask channel be good for if the hole were already grey in the known latents? (What else is grey?) And with
# RePaint: why must the known part be noised *anew* at every step, and not once?

# %% [markdown]
# ## 4 · A camera
#
# We draw the dish of the title four times, and let the CLIP choose the picture that it finds nearest to the name, as `make_gif.py` does.
# Then the picture lies in an endless plane, and the camera is a **window** that moves over it: a place $(x, y)$ and a scale. Where the
# window shows what nobody has painted, there is the mask.

# %%
four = artist.txt2img([NAME] * 4, SamplingConfig(guidance_scale=5.0, seed=0))
cosines = clip.encode_image(four) @ vector[0]
picture = four[int(cosines.argmax())]
show_images(four, 4, across=[f"cosine {value:.2f}" for value in cosines], cell=1.2)

views, titles = [picture], ["the picture"]
for name in MOVES:
    way, world = CameraPath.plan(Move.parse(name), size, size, new_fraction=0.25), FilmCanvas(picture)
    moved, seen = world.render(way.stops()[0].window)
    views.append(moved * seen + BLUE * ~seen)
    titles.append(f"{name} ({(~seen).double().mean():.0%})")
_, axes = plt.subplots(2, 6, figsize=(8.4, 3.2), layout="constrained")
for axis, view, title in zip(axes.flat, views, titles, strict=True):
    axis.imshow(viz.grid(view[None], 1, gap=0), interpolation="nearest")
    axis.set_title(title, fontsize=8)
    axis.axis("off")
plt.show()

# %% [markdown]
# Blue is what has to be painted, about a quarter of each keyframe. `right` means that the *camera* goes right, so the plate goes left. (Why
# does `zoom-in` leave a frame open, too? The picture is the nearest that the camera ever comes, because nearer would need details that
# nobody drew. So a zoom-in is painted backwards, from its end to its beginning.)
#
# ### Keyframes
#
# Move, look, paint the hole, lay the result into the plane; and again. Nothing is painted twice, so a camera that comes back finds what it
# left.

# %%
way, world, engine = CameraPath.plan(Move.parse("zoom-out:3"), size, size), FilmCanvas(picture), engines["inpaint"]
began = time.perf_counter()
keyframes = list(paint(world, way, engine, NAME, seed=0))
print(f"{len(keyframes)} keyframes in {time.perf_counter() - began:.1f} s")
for keyframe in keyframes:
    still = (keyframe.mask == 0).expand_as(keyframe.image)
    assert torch.equal(keyframe.image[still], keyframe.moved[still])  # what was seen before is as it was, bit for bit
contact_sheet(picture, keyframes)

# %% [markdown]
# The wood goes on with its grain, and no second plate appears. Above, the picture; below for each keyframe what was still seen, the mask, and what was painted.
#
# ### Between the keyframes
#
# Three keyframes make no film. The frames between them are looked up in the plane, at fractions of a pixel. **Predict:** 24 frames, 32
# pixels to go. That is $32 / 23 = 1.39$ pixels a frame. What do you see if each frame stands at the nearest *whole* pixel?
#
# We do not trust our eyes, nor the code that moved the picture: **phase correlation** (相位相关, [motion.py](inpaint_gif/animation/motion.py)) measures by how much
# one frame has moved against the next, from the pixels alone.

# %%
FRAMES = 24


def speeds(frames):
    """(pixels to the left, growth in per cent) from each frame to the next, as measured."""
    found = [motion(a, b) for a, b in pairwise(frames)]
    return [-float(shift[0]) for shift, _ in found], [100 * growth for _, growth in found]


pan, plane = CameraPath.plan(Move.parse("right:2"), size, size), FilmCanvas(picture)
list(paint(plane, pan, engine, NAME, seed=0))
asked = pan.keyframes[-1].x / (FRAMES - 1)
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
titles = ["right: pixels a frame", "right, eased: pixels a frame", "zoom-out: growth a frame, per cent"]
for axis, curves, title in zip(axes, (pans, eased, zooms), titles, strict=True):
    for name, values in curves.items():
        axis.plot(values, ".-", label=name, linewidth=1)
    axis.set(title=title, xlabel="frame")
    axis.legend(fontsize=8)
axes[0].axhline(asked, color="0.7", linewidth=0.8)
axes[0].set_ylim(0, 2.2 * asked)
axes[1].set_ylim(bottom=0)
plt.show()
for what, values in (pans | zooms).items():
    print(
        f"{what:24} mean {np.mean(values):7.3f}, spread {np.std(values):.3f}"
        + (f"; asked for {asked:.3f}" if what in pans else "")
    )

# %% [markdown]
# * **Left**: whole pixels jump now by 1, now by 2. The eye sees a stutter, though every frame alone is sharper.
# * **Middle**: easing (缓动). `linear` starts and stops with a jerk; `ends` is slow in the first and last fifth; `smooth` is $3t^2 - 2t^3$.
#   The way is the same, so the area under each curve is.
# * **Right**: a zoom looks equally fast when the scale is *multiplied* by the same number in equal times: what counts is by how many pixels
#   things move on the screen. Equal *steps* of scale begin fast and end slowly. (The growth is below 0: things shrink.)
#
# A chain such as `right,zoom-out` has both, and neither may race past the other. So the camera counts *pixels that the picture moves by, on
# the mean*, and goes through them evenly (`camera.Leg.length`).
#
# **For you.** At which moment does the camera move fastest with `smooth`, and how many times faster than `linear`? And why are the frames
# between keyframes a little softer than the keyframes?

# %% [markdown]
# ## 5 · A film
#
# ### The last frame meets the first
#
# A GIF begins again when it is over, and the eye is merciless about the jump. Four ways to do it; here are the first three. **Predict** the
# largest change between two frames that follow each other, the last and the first among them:
#
# * `once`: simply begin again;
# * `pingpong`: there and back;
# * `seamless`: shoot some frames more, and let them dissolve (淡入淡出) into the beginning while the camera moves on.


# %%
def film_of(plane, way, loop, ease="linear", frames=FRAMES):
    return list(close_loop(render_frames(plane, way, frame_times(frames, loop, ease, way.returns)), frames))


films = {loop: film_of(world, way, loop) for loop in ("once", "pingpong", "seamless")}
for loop, frames in films.items():
    moved = frame_changes(frames)  # root mean square, from each frame to the next, and from the last to the first
    print(
        f"{loop:10} {len(frames)} frames; mean change {np.mean(moved):.3f}, largest {max(moved):.3f}, from the last to the first {moved[-1]:.3f}"
    )
chosen, two = range(3, FRAMES, 4), ("pingpong", "seamless")
show_images(
    torch.stack([films[loop][k] for loop in two for k in chosen]),
    len(chosen),
    across=[f"frame {k}" for k in chosen],
    down=two,
)

# %% [markdown]
# (The fourth, `round`, lays the picture at both ends of a world that is round: the camera goes straight on and arrives.)
#
# ### 256 colours
#
# A GIF has at most 256 colours, and the choice of them is what makes it look good or bad. Two questions:
#
# * **one palette for all frames, or one for each?** One for each frame lies nearer to that frame. What will happen to a table that stands
#   still?
# * **how are the missing colours mixed?** Not at all; by a fixed pattern (`ordered`); or by handing each pixel's error on to its neighbours
#   (`floyd`, Floyd and Steinberg).
#
# To see it we are mean, and allow only 24 colours:

# %%
frames = [resized(frame, (2 * size, 2 * size)) for frame in films["pingpong"]]
pixels = to_pixels(frames)  # (24, 2 S, 2 S, 3) bytes


def as_shown(colours, palette, dither):
    """The film as a GIF shows it, (24, 2 S, 2 S, 3)."""
    return np.stack([np.asarray(frame.convert("RGB")) for frame in quantized(pixels, colours, palette, dither)])


crops = [pixels[0], *(as_shown(24, "global", dither)[0] for dither in DITHERS)]
_, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
for axis, crop, title in zip(axes, crops, ["all colours", *DITHERS], strict=True):
    axis.imshow(crop[size // 2 : 3 * size // 2, :size], interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# In a single picture Floyd and Steinberg are hard to beat. In a film? **Flicker** (闪烁) is how much the *error* of a pixel changes from
# frame to frame: an error that stays where it is, nobody sees.

# %%
folder = Path(tempfile.mkdtemp())
print(f"24 colours {'':22}{'error':>8}{'flicker':>10}{'kB':>8}        (of 255 grey levels)")
for palette in ("global", "frame"):
    for dither in DITHERS:
        error = as_shown(24, palette, dither).astype(float) - pixels
        written = write_film(frames, folder / "a.gif", colours=24, palette=palette, dither=dither)
        print(
            f"{f'palette {palette}, dither {dither}':33}{np.abs(error).mean():8.2f}{np.abs(np.diff(error, axis=0)).mean():10.2f}{written.bytes / 1000:8.0f}"
        )

counts = (8, 16, 32, 64, 128, 256)
plt.figure(figsize=(5, 2.6), layout="constrained")
for dither in DITHERS:
    sizes = [write_film(frames, folder / "a.gif", colours=colours, dither=dither).bytes / 1000 for colours in counts]
    plt.plot(counts, sizes, ".-", label=dither)
plt.gca().set(
    xscale="log",
    xlabel="colours",
    ylabel="kB",
    ylim=(0, None),
    title="one palette for all frames",
    xticks=counts,
    xticklabels=counts,
)
plt.minorticks_off()
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# A palette for each frame lies hardly nearer to it, but it flickers more and makes a larger file. Floyd and Steinberg flicker most, by half. (Pixel by pixel, every mixing has a larger error than none. The
# eye, which takes the mean of neighbours, sees it otherwise: look at the crops.)
#
# GIF packs runs of like pixels (LZW). What is noisy does not pack: so fewer colours make a smaller file, and grain makes it larger.
# `make_gif.py --max-kb 200` gives up colours first, then size.
#
# ### And here it is

# %%
short = [
    resized(frame, (2 * size, 2 * size)) for frame in film_of(world, way, "pingpong", frames=16)
]  # a notebook should be light
written = write_film(short, folder / "film.gif", fps=8, max_bytes=110_000)
print(
    f"{written.frames} frames of {written.width} x {written.height}, {written.bytes / 1000:.0f} kB"
    + (f"; {written.note}" if written.note else "")
)
Image(
    written.path.read_bytes(), format="png", width=256
)  # a GIF, called PNG, because every viewer shows (and moves) it so

# %% [markdown]
# The same in one line, larger, and with a sheet of keyframes beside it:
#
# ```sh
# python 06_inpaint_gif/make_gif.py "土鸡蛋炒番茄" --camera zoom-out:3 --max-kb 400
# ```
#
# **For you.** In `pingpong` every picture but two is shown twice. Could one save half of the file? And a dissolve of a *still* picture into
# itself: does one see it?

# %% [markdown]
# ## 6 · Control while it is drawn
#
# A sampler knows nothing about words. It knows one function: noisy latents and a noise level in, $(\hat x_0, \hat\epsilon)$ out. So whoever
# wants to say several things puts several such functions into one. That is all there is to this section.
#
# ### Other words at other places
#
# Each place listens to its own words; where two meet, their guesses are averaged ([Bar-Tal et al. 2023](https://arxiv.org/abs/2302.08113)).
# Every one of them sees the *whole* picture, so that it becomes one picture.
#
# $$\hat x_0 = \sum_i m_i\, \hat x_0^{(i)} \qquad \hat\epsilon = \sum_i m_i\, \hat\epsilon^{(i)} \qquad \sum_i m_i = 1$$

# %%
K, SHOWN, how = (
    6,
    4,
    SamplingConfig(guidance_scale=5.0),
)  # so many pictures of each kind are drawn, and so many of them shown


def told(words, w=5.0):
    """What the sampler asks, if all K pictures are told these words."""
    return artist.guided([words] * K, SamplingConfig(guidance_scale=w))


def draw_with(denoise, seed=2):
    *_, last = artist.from_noise(denoise, K, (side, side), how, Noise(seed, 0))
    return artist.decode(last.x)


tomatoes, lettuce = told("番茄炒蛋"), told("葱油生菜")
m_rest, m_right = region_weights([Region.parse("right:葱油生菜")], side, side)  # (1, 1, h, w) each, together 1


def two_dishes(x, level):
    a, b = tomatoes(x, level), lettuce(x, level)
    return m_rest * a[0] + m_right * b[0], m_rest * a[1] + m_right * b[1]


ours = draw_with(two_dishes)
print(
    f"in_regions of regional_prompts.py draws the same, to {(ours - draw_with(in_regions([(tomatoes, m_rest), (lettuce, m_right)]))).abs().max():.0e}"
)
rows = {"A": draw_with(tomatoes), "B": draw_with(lettuce), "A left, B right": ours}
show_images(torch.cat([part[:SHOWN] for part in rows.values()]), SHOWN, down=list(rows), cell=1.0)
print("A: 番茄炒蛋 (tomato and scrambled eggs); B: 葱油生菜 (lettuce in scallion oil)")

# %% [markdown]
# Two dishes on one plate, with one rim around both.
#
# ### Other words from some step on
#
# At much noise the large things are settled: where the plate stands, which vessel. At little noise the small ones. So when must a word be
# said to matter? We begin with 米饭 (rice), and say 番茄炒蛋 from some share of the steps on. **Predict:** from which row on is there still a
# bowl, but no rice in it? Is there one?

# %%
progress = progress_along(artist.noise_levels(how))  # which share of the steps is done at a level
rice = told("米饭")
begins = (0.75, 0.5, 0.25)
rows = {"rice": draw_with(rice)}
rows |= {f"from {share:.0%} on": draw_with(in_stages([(0.0, rice), (share, tomatoes)], progress)) for share in begins}
rows["tomato and eggs"] = draw_with(tomatoes)
show_images(torch.cat([part[:SHOWN] for part in rows.values()]), SHOWN, down=list(rows), cell=1.0)
both = clip.encode_text(["米饭", "番茄炒蛋"])
print(f"{'cosine of the pictures with':28}{'米饭':>6}{'番茄炒蛋':>8}")
for name, part in rows.items():
    near = (clip.encode_image(part) @ both.T).mean(0)
    print(f"{name:28}{near[0]:8.2f}{near[1]:12.2f}")

# %% [markdown]
# Said at half of the time or later, the words change nothing: it stays rice. From a quarter on there is a plate without rice, and something pale on it. So *which dish it is* is settled in the first
# quarter of the steps, where the noise is nearly everything.
#
# ### Guidance that changes
#
# The scale may change from step to step as well. `8>2` is loud while the large things are settled and gentle at the end; `2>8` the other
# way round. The mean is the same. Which of them will look harsher?

# %%
kinds = {
    "w = 5": 5.0,
    "w = 8 > 2": changing_scale(8.0, 2.0, progress),
    "w = 2 > 8": changing_scale(2.0, 8.0, progress),
}
rows = {name: draw_with(told("番茄炒蛋", w)) for name, w in kinds.items()}
show_images(torch.cat([part[:SHOWN] for part in rows.values()]), SHOWN, down=list(rows), cell=1.0)
for name, part in rows.items():
    near = (clip.encode_image(part) @ both[1]).mean()
    print(
        f"{name:12} cosine with the name {near:.2f}; colourfulness (spread between channels) {part.std(1).mean():.3f}"
    )

# %% [markdown]
# `8>2` is the palest of the three, and a little farther from the name; the other two can hardly be told apart. For this model the end counts more than the beginning, but not much.
#
# From the command line: `generate.py "番茄炒蛋" --region "right:葱油生菜"`, `--then "0.4:番茄炒蛋"`, `--guidance "8>2"`; and `--keep plate.png`, with
# which `make_gif.py --image plate.png` begins a film.
#
# **For you.** Two regions cost two evaluations of the network at each step. Could one evaluate each only where it is listened to? What
# would be lost? And how late may other words come and still be heard at all?

# %% [markdown]
# ## 7 · What to remember, and where to go
#
# * **CLIP** is a school test with a batch of choices. What it asks for decides what the vectors are good for. If a batch holds two right
#   answers, the loss must know.
# * A name that was never read is understood as far as its **characters and pictures** were met elsewhere.
# * With one token, attention has no choice; a **zero** beside it gives one.
# * A network is **widened with zeros**: at step 0 it is what it was, and it learns from there. So one keeps months of training.
# * **RePaint** needs no training, but many more steps. The nine channels need a training, and then no more steps than drawing does.
# * Networks change what they are told to keep. **Put it back, bit for bit**, and soften the edge on the inner side only.
# * Measure what the eye minds: **seams** across edges, **speed** by phase correlation, **flicker** of errors.
# * Samplers ask one function. Regions, stages and schedules are other functions.
#
# Things to try in this notebook, each a change of a word or two:
#
# * In section 1, let `on_a_circle` multiply the cosines by 1, and by 100, instead of 10. How low does the loss get, and how do the points
#   lie?
# * In section 2, draw with the zero taken away: give the U-Net `tokens(vector)[:, :1]`.
# * In section 3, give RePaint `walk(20, 5, 10)`. Is it worth it?
# * In section 4, take another move, or a chain: `Move.parse("up-left,zoom-out:2")`. Look at the corners on its sheet.
# * In section 5, make the film `seamless` in 12 frames. Where does the dissolve show?
# * In section 6, tell the middle one dish and the rest another: `Place.parse("middle:米饭")`.
#
# Then build it yourself: eight [exercises](exercises/README.md), from the hole that a camera leaves open to the colours of a GIF, with a
# grader: `python -m common.grade 06`.
#
# And with **your own photographs**: a folder of pictures with Chinese captions teaches all three networks (`train_clip.py`,
# `train_text2dish.py`, `train_inpaint.py`, each with `--data my/photos`); a single picture needs no training at all, `make_gif.py "我的菜"
# --image plate.jpg --size 128`; and any Stable Diffusion inpainting model paints in place of ours, `--model
# path/to/stable-diffusion-inpainting --size 512`. The [README](README.md) has all of it.
#
# This was the last chapter. You began with noise and a handwritten digit, and end with a film from a word; in between there is nothing left
# that you have not seen from the inside.
