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
# # Chapter 2 · Words steer the picture
#
# The network of chapter 1 drew what it liked. Now we want to say what is to be drawn: *a red fire creature with bat wings*. Or:
# 一只红色的火属性小怪兽，长着蝙蝠翅膀.
#
# It takes surprisingly little. The network gets one more input, the words; it is trained on pictures *with captions* (图像描述);
# and in one training step out of ten the words are hidden from it. From this small trick follows **classifier-free guidance**
# (无分类器引导): a knob that says how strongly the words are to be obeyed. Nearly every text-to-image model (文生图模型) has it.
#
# In this lesson we
#
# 1. look at the data: drawn creatures, of which we know every attribute (属性);
# 2. turn words into numbers;
# 3. let pixels read words: **cross-attention** (交叉注意力), and watch where they look;
# 4. hide some captions, so that one network learns two things;
# 5. train one ourselves, and see the first colours obey;
# 6. derive guidance, and turn the knob;
# 7. see in the plane, exactly, why it overshoots;
# 8. say what we do *not* want: negative prompts (负面提示词);
# 9. count how often the words were obeyed;
# 10. find out what guidance costs, and try the cures;
# 11. ask for what was never seen in training;
# 12. ask whether the network has only learned by heart.
#
# You should have read chapter 1. Everything runs on a laptop's CPU with no download, in about three minutes.

# %%
from common.grade.chapter import (
    open_chapter,  # no module named common? Select the kernel in which the course is installed (README.md)
)

CHAPTER = open_chapter(
    "02_cfg_pokemon"
)  # this folder: from here on its files can be imported, wherever the kernel was started

# %%
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from cfg_pokemon.evaluation import WITH_VARIANTS, bounds, measure  # this chapter's files: prompt adherence,
from cfg_pokemon.guidance import Guided, drop_captions, guide  # guidance, longhand,
from cfg_pokemon.memorization import blurred, nearer, nearest  # and memorization
from common import viz
from common.data.creatures.attributes import ATTRIBUTES, COMBINATIONS, NAMES, NEVER_TOGETHER
from common.data.creatures.captions import describe
from common.data.creatures.dataset import POSE, draw, load_creatures
from common.diffusion.denoiser import Denoiser
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import NoiseLevel, add_noise, make_schedule
from common.evaluate.creature_classifier import load_creature_classifier, read_attributes
from common.evaluate.prompt_accuracy import make_prompts
from common.io.pixels import to_bytes, to_float
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.text.conditional import ConditionalUNet
from common.models.text.encoders import small_text
from common.models.text_to_image_folder import open_pixel_pipeline
from common.models.unet import UNet, zero_init
from common.models.unet_config import text_unet
from common.training.loop import LossTerms, TrainConfig, train

plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def show_images(images, columns, across=(), down=(), cell=0.9):
    """A grid of images (N, 3, S, S) in [-1, 1], with words above the columns and beside the rows."""
    picture, pitch = viz.grid(images, columns), images.shape[-1] + 2
    rows = len(images) // columns
    plt.figure(figsize=(cell * columns + 2.0 * bool(down), cell * rows + 0.3), layout="constrained")
    plt.imshow(picture, interpolation="nearest")
    plt.xticks([pitch * (i + 0.5) for i in range(len(across))], across)
    plt.yticks([pitch * (i + 0.5) for i in range(len(down))], down)
    plt.gca().tick_params(length=0, labeltop=True, labelbottom=False)
    plt.gca().spines[:].set_visible(False)
    plt.show()


# %% [markdown]
# ## 1 · Creatures, and what is said of them
#
# To learn what *red* means, a network must see red things that are called red, and other things that are not. So we need pictures
# with captions. And if we want to *measure* whether it has understood, we must know what is in a picture. Both are true of creatures
# that are drawn by a program (`common/data/creatures`). Here are thirty.

# %%
sheet = load_creatures("train", 30, size=64)  # pixels (30, 3, 64, 64), captions, and a table of attributes
show_images(to_float(sheet.pixels), 10, cell=1.0)
for i, words in enumerate(sheet.captions[:8]):
    print(f"{i + 1}  {words}")

# %% [markdown]
# (The captions are those of the first eight, counted in rows.) A creature is composed of eleven attributes, each drawn by chance and
# independently of the others; whoever wants may draw another 10,000 of them. Half of the captions are English and half Chinese, and no
# caption says everything: it leaves out what it likes. The same creature can be spoken of in many ways:

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
# A model that has seen red creatures of fire can draw them. That may be understanding, or a good memory. The test is a combination that
# it has *never* seen: it knows blue, it knows fire; can it draw a blue creature of fire? So each element lacks one colour in training.
# These pairs are **held out** (留出), and we come back to them in section 11.

# %%
held = load_creatures("heldout", 100, size=64)
firsts = [next(i for i in range(100) if held.attributes.of(i)["element"] == element) for element in NEVER_TOGETHER]
show_images(
    to_float(held.pixels[firsts]),
    8,
    across=[f"{colour}\n{element}" for element, colour in NEVER_TOGETHER.items()],
    cell=1.0,
)

# %% [markdown]
# ## 2 · From words to numbers
#
# A network reads numbers. A **tokenizer** (分词器) cuts the text into pieces, and looks up the number of each. Ours has learned its
# pieces from the captions (byte-pair encoding, 字节对编码; [tokenizer.py](../common/models/text/tokenizer.py)): a word that is frequent is one
# piece, and a Chinese character is one piece.
#
# From here on we use the model that comes with this chapter ([pretrained/](pretrained)).

# %%
MODEL = CHAPTER / "pretrained"
pipeline = open_pixel_pipeline(MODEL)
net, schedule, encoder = pipeline.unet, pipeline.schedule, pipeline.text_encoder
tokenizer, size = encoder.tokenizer, net.cfg.size
print(
    f"U-Net {sum(p.numel() for p in net.parameters()):,} weights, {size} x {size} pixels, predicts {pipeline.prediction}; "
    f"reader of words {sum(p.numel() for p in encoder.parameters()):,} weights, {tokenizer.size:,} tokens\n"
)


def pieces(text):
    """What the tokenizer makes of a text, without the padding at its end: letters and numbers."""
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
    for remark in tokenizer.remarks(text):
        print("    note:", remark)

# %% [markdown]
# Three things to see:
#
# * *turquoise* and *moustache* are in no caption. Nothing breaks: they fall into smaller pieces, in the worst case into letters. But pieces
#   that were never seen together in training mean little.
# * The **empty caption** is a text like any other: begin, end, nothing between. It will be important.
# * All texts are filled up with padding (填充) to the same length, so that they fit into one tensor.
#
# Numbers like 320 and 749 have no meaning by themselves. So each token gets a vector (向量), a row of a table that is *learned*; and a small
# **transformer** lets each token look at those before it, so that *wings* knows that it stands after *bat*
# ([transformer.py](../common/models/text/transformer.py); it is the text half of CLIP, only smaller). Both are trained together with the U-Net,
# by the same loss: words come to mean what the pictures need them to mean.

# %%
with torch.no_grad():
    words = encoder(["a red fire creature with bat wings"])
print("one caption becomes", tuple(words.shape), "numbers: (captions, tokens, width)")

# %% [markdown]
# What have they come to mean? Nobody told the network that 红 is *red*. It only saw red creatures with either caption. Do the two words *do the
# same to a picture*? We show the network eight noisy pictures in which hardly anything can be seen, with ten English and ten Chinese captions that
# differ in the colour, and look at its guess of the clean picture (chapter 1). From each guess we take away the mean of its language: what is left is
# what this colour word does. Then we compare all pairs. (The similarity is the cosine of the angle, 余弦相似度: 1 is the same direction.)

# %%
COLOURS = ATTRIBUTES["colour"]
HANZI = dict(zip(COLOURS, "红橙黄绿蓝紫粉棕白黑", strict=True))
far = NoiseLevel(*(float(part) for part in schedule.at(torch.tensor(900))))
mist = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def what_words_do(captions):
    """The change that each caption makes to the guess, against the mean of all captions. (10, 3 S S), each of length 1"""
    guesses = []
    for caption in captions:
        told = encoder([caption]).expand(len(mist), -1, -1)
        guesses.append(Denoiser(net, pipeline.prediction, True, text=told)(mist, far).x0.mean(0).flatten())
    guesses = torch.stack(guesses)
    return F.normalize(guesses - guesses.mean(0), dim=1)


alike = (
    what_words_do([f"a {name} creature" for name in COLOURS])
    @ what_words_do([f"一只{word}色的小怪兽" for word in HANZI.values()]).T
)
plt.figure(figsize=(4.6, 3.8), layout="constrained")
plt.imshow(alike, cmap="RdBu_r", vmin=-1, vmax=1)
plt.xticks(range(10), [f"{name} (zh)" for name in COLOURS], rotation=60, ha="right")
plt.yticks(range(10), [f"{name} (en)" for name in COLOURS])
plt.colorbar(label="similarity")
plt.show()
nearest_word = alike.argmax(1)
print(
    f"for {int((nearest_word == torch.arange(10)).sum())} of 10 English colours the Chinese word that does most nearly the same is its translation:",
    ", ".join(f"{name} {HANZI[COLOURS[i]]}" for name, i in zip(COLOURS, nearest_word.tolist(), strict=True)),
)

# %% [markdown]
# Where the diagonal is red, the network has found a translation in the pictures. (Off the diagonal, look for neighbours: which colours does
# it take for relatives?) The *vectors* of the two words need not be alike for that; whoever reads them can learn to take both for the same.

# %% [markdown]
# ## 3 · Pixels read words: cross-attention
#
# How does a word get into a picture? It must act *here and not there*: *bat wings* concerns the pixels at the shoulders, *on a mint
# background* those around. So each place of the picture should choose which words it reads. Think of a library. Each place comes with a
# question, a **query** (查询). Each word has a label on its back, a **key** (键), and says something, its **value** (值). Where a question
# fits a label, the place listens to that word's value.
#
# All three are vectors. Let $h_i$ be what the network knows at place $i$ of the picture, and $c_j$ the vector of word $j$. Three matrices
# are learned:
#
# $$q_i = W_q h_i \qquad k_j = W_k c_j \qquad v_j = W_v c_j$$
#
# How well the question fits the label is their inner product (内积). A softmax over the words makes shares of it, which are above zero and
# add up to 1; and the place receives the values, mixed in these shares:
#
# $$A_{ij} = \mathrm{softmax}_j\!\left(\frac{q_i \cdot k_j}{\sqrt d}\right) \qquad\qquad \text{place } i \text{ receives } \sum_j A_{ij}\, v_j$$
#
# ($d$ is the length of $q$ and $k$. An inner product of $d$ random numbers grows like $\sqrt d$; without the root the softmax would soon be
# all or nothing, and nothing could be learned.) Several of these run side by side, with matrices of their own; they are called heads (注意力头). What
# comes out passes a last matrix and is *added* to $h$. That is all. In code:


# %%
def shares(layer, places, words):
    """A: how much each place listens to each word. (B, N, C), (B, M, D) -> (B, heads, N, M)"""
    q, k = (
        layer.split_heads(layer.to_q(places)),
        layer.split_heads(layer.to_k(words)),
    )  # (B, heads, N, d), (B, heads, M, d)
    return (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=3)


def cross_attention(layer, places, words):
    """What each place receives. -> (B, N, C)"""
    mixed = shares(layer, places, words) @ layer.split_heads(layer.to_v(words))  # (B, heads, N, d)
    return layer.to_out(mixed.transpose(1, 2).flatten(2))  # heads side by side, and the last matrix


# %% [markdown]
# In our U-Net this happens at the two lowest resolutions, on the way down, at the bottom, and on the way up. (Why two? With the lowest alone the
# words were learned at half the speed; the [README](README.md) has the figures. In [unet.py](../common/models/unet.py) the layers are called `attn2`; `attn1`
# lets the places look at each other.)
#
# We take a creature that we draw ourselves, so that we know where everything is, noise it half-way, and let the network look at it. A
# hook (钩子) on each layer notes what goes in. First of all: is our code what the network does?

# %%
who = {
    "colour": "red",
    "body": "round",
    "element": "fire",
    "tail": "curly",
    "ears": "none",
    "wings": "bat",
    "horns": "antennae",
    "pattern": "plain",
    "eyes": "two",
    "mood": "happy",
    "background": "mint",
}
english = "a red round fire creature with bat wings, antennae and a curly tail, on a mint background"
chinese = "一只红色圆圆的火属性小怪兽，长着蝙蝠翅膀、触角和卷尾巴，薄荷色背景"
x0 = to_float(torch.from_numpy(draw(who, size)))[None]  # (1, 3, S, S)
level = NoiseLevel(*(float(part) for part in schedule.at(torch.tensor(500))))
noises = torch.randn(32, *x0.shape[1:], generator=torch.Generator().manual_seed(0))
noisy = add_noise(x0, noises, level)  # the same creature under 32 noises
layers = [module for name, module in net.named_modules() if name.endswith("attn2")]


@torch.no_grad()
def look(text):
    """What goes into and comes out of each attn2 layer when the network sees the noisy creature with this caption."""
    seen, told = [], encoder([text]).expand(len(noisy), -1, -1)
    hooks = [layer.register_forward_hook(lambda _, inputs, output: seen.append((*inputs, output))) for layer in layers]
    net(noisy, torch.full((len(noisy),), level.time), text=told)
    for hook in hooks:
        hook.remove()
    return seen


with torch.no_grad():
    wrong = max(
        (cross_attention(layer, *inputs) - output).abs().max()
        for layer, (*inputs, output) in zip(layers, look(english), strict=True)
    )
print(
    f"{len(layers)} layers of {' '.join(str(layer.heads) for layer in layers)} heads; largest difference between our code and the network: {wrong:.1e}"
)

# %% [markdown]
# Now the shares. Each word has a **map**: how much every place listens to it. We take the mean over the 32 noises, the layers and
# their heads; the maps of the lowest resolution are blown up to the size of the others. Bright: those places listen to the word.


# %%
@torch.no_grad()
def attention_maps(text):
    """The mean share of each token at each place. (M, S/2, S/2)"""
    parts = []
    for layer, (*inputs, _) in zip(layers, look(text), strict=True):
        share = shares(layer, *inputs).mean((0, 1)).T  # (M, N)
        side = round(share.shape[1] ** 0.5)
        parts.append(F.interpolate(share.unflatten(1, (side, side))[None], size // 2)[0])
    return torch.stack(parts).mean(0)


def map_of(phrase, text, maps):
    """The map of a phrase: the shares of its tokens, added up. (S/2, S/2)"""
    begin, offsets = text.index(phrase), tokenizer.backend.encode(text).offsets
    return sum(maps[j] for j, (a, b) in enumerate(offsets) if begin <= a < b <= begin + len(phrase))


def show_maps(maps, titles, rows=1):
    """Maps (h, w) over the grey picture, each on its own scale."""
    columns = len(maps) // rows
    _, axes = plt.subplots(
        rows, columns + 1, figsize=(1.35 * (columns + 1), 1.6 * rows), layout="constrained", squeeze=False
    )
    picture = x0[0].permute(1, 2, 0) / 2 + 0.5
    for axis in axes[:, 0]:
        axis.imshow(picture)
    for axis, each, title in zip(axes[:, 1:].flat, maps, titles, strict=True):
        axis.imshow(picture.mean(2), cmap="gray", vmin=-0.6, vmax=1.2)
        axis.imshow(
            each, cmap="magma", alpha=0.65, extent=(-0.5, size - 0.5, size - 0.5, -0.5), interpolation="bilinear"
        )
        axis.set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    plt.show()


en = ["red", "fire", "bat wings", "antennae", "curly tail", "mint background"]
zh = ["红色", "火属性", "蝙蝠翅膀", "触角", "卷尾巴", "薄荷色背景"]
of = {text: attention_maps(text) for text in (english, chinese)}
maps = [map_of(word, english, of[english]) for word in en] + [map_of(word, chinese, of[chinese]) for word in zh]
show_maps(maps, en + [f"{word} (zh)" for word in en], rows=2)
print("second row:", ", ".join(zh))

for text, maps in of.items():
    total, n = maps.mean((1, 2)), len(pieces(text)[0])
    print(
        f"of all attention: begin {total[0]:.0%}, {n - 2} words {total[1 : n - 1].sum():.0%}, end {total[n - 1]:.0%}, "
        f"{len(total) - n} paddings {total[n:].sum():.0%}"
    )

# %% [markdown]
# *Red* lights up on the body, *fire* on the four flames, *bat wings* and *antennae* where they belong, and in the Chinese row the tail and the background, too. In the English row *curly tail*
# lights up the sky: a late token has read all words before it, and may speak for other places than its own. The map is also a mean over layers that have different tasks. And look at the last two lines: much of the attention goes to tokens
# that are no words at all. That is no waste. A token looks at those before it, so *end* and the paddings have read the whole sentence: they
# are its summary, and a place that needs no single word listens there.
#
# So a map shows where a word is *read*, not where it *acts*. For that there is a better question: **change the word, and see where the
# answer changes.** We give the same noisy pictures with another caption, and draw how much the network's guess of the clean image moves at
# each pixel.


# %%
@torch.no_grad()
def guess(text):
    """The network's guess of the clean image, for all 32 noisy pictures. (32, 3, S, S)"""
    told = encoder([text]).expand(len(noisy), -1, -1)
    return Denoiser(net, pipeline.prediction, True, text=told)(noisy, level).x0


changes = {
    "red: blue": ("red", "blue"),
    "fire: water": ("fire", "water"),
    "no bat wings": ("bat wings, ", ""),
    "no antennae": (", antennae", ""),
    "no curly tail": (" and a curly tail", ""),
    "mint: rose": ("mint", "rose"),
}
before = guess(english)
effects = [(guess(english.replace(*change)) - before).square().mean((0, 1)).sqrt() for change in changes.values()]
show_maps(effects, changes)
print(
    "mean change of a pixel:",
    ", ".join(f"{name} {float(e.mean()):.3f}" for name, e in zip(changes, effects, strict=True)),
)

# %% [markdown]
# This is how words steer: each is a small push at the pixels that it concerns. The push is strong where the noise leaves a question
# open, and weak where the picture answers it already.

# %% [markdown]
# ## 4 · One network that learns two things
#
# One line of training is new. From time to time the caption is thrown away and the empty one is put in its place
# (**caption dropout**, 随机丢弃描述). The picture stays.

# %%
batch = list(sheet.captions[:10])
ids, empty = tokenizer(batch), tokenizer([""])[0]  # (10, M), (M,)
u = torch.rand(10, generator=torch.Generator().manual_seed(0))
told = drop_captions(ids, empty, u, share=0.2)
for text, number, row in zip(batch, u.tolist(), told, strict=True):
    print(f"{number:.2f}  {'(nothing)' if torch.equal(row, empty) else text}")

# %% [markdown]
# (With a share of 20 %, so that one sees it; 10 % is usual.) What does a network learn from that? Recall chapter 1: its best answer is the *mean* of all
# clean pictures that could be under the noise.
#
# * With a caption: the mean of those that the caption *fits*. It learns what pictures of **this caption** look like.
# * With the empty caption: the mean of *all*. For empty captions come with pictures of every kind. It learns what **pictures** look like.
#
# Two networks in one, with the same weights, and one asks for the one or the other by the words one gives. Here are both, asked about the same noisy
# pictures, at much noise and at less: what it sees, its two guesses, and their difference.

# %%
real = load_creatures("test", 8, size)
eps = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    told = {"with caption": encoder(list(real.captions)), "without": encoder([""] * 8)}
    rows = [to_float(real.pixels)]
    for t in (970, 700):
        at = NoiseLevel(*(float(part) for part in schedule.at(torch.tensor(t))))
        x = add_noise(to_float(real.pixels), eps, at)
        both = [Denoiser(net, pipeline.prediction, True, text=text)(x, at).x0 for text in told.values()]
        rows += [x, *both, both[0] - both[1]]
names = ["the picture", *(f"{name}" for t in (970, 700) for name in (f"noisy, t = {t}", *told, "difference"))]
show_images(torch.cat(rows), 8, down=names)
for words in real.captions:
    print(words)

# %% [markdown]
# At $t = 970$ hardly anything can be seen, and the guess without words is nearly the same for all: the mean of all creatures. With words it has
# a colour, and a body. At $t = 700$ the picture itself says most of it, and the words add the rest. The last row is what the words
# *changed* (grey is nothing). Remember this row. Guidance is made of it.

# %% [markdown]
# ## 5 · Train one
#
# A small one, to see it happen. Half a minute does not suffice for eleven attributes; so here everything but colour, body and ears is always the
# same, the pictures have $16 \times 16$ pixels, and the captions speak of the colour alone.

# %%
rng = np.random.default_rng(0)
same = {
    "element": "rock",
    "tail": "none",
    "wings": "none",
    "horns": "none",
    "pattern": "plain",
    "eyes": "two",
    "mood": "happy",
    "background": "cream",
}
simple = [same | {name: str(rng.choice(ATTRIBUTES[name])) for name in ("colour", "body", "ears")} for _ in range(1000)]
pictures = to_float(
    torch.stack([torch.from_numpy(draw(attributes, 16, rng.random(POSE))) for attributes in simple])
)  # (1000, 3, 16, 16)
captions = [f"a {attributes['colour']} creature" for attributes in simple]
show_images(pictures[:14], 14, cell=0.7)

# %% [markdown]
# The six steps of chapter 1, and one more. A U-Net of two resolutions, and a transformer of one layer that reads the captions; both are trained as one network.

# %%
torch.manual_seed(0)
reader = small_text(captions, dim=32, layers=1, heads=1, length=6)
little = ConditionalUNet(zero_init(UNet(text_unet(16, 3, (16, 32), reader.dim))), reader)
cosine = make_schedule("cosine")
all_ids, empty = reader.tokenizer(captions), reader.tokenizer([""])[0]  # (1000, 6), (6,)


class ColouredCreatures:
    """What the training loop asks for."""

    def __len__(self):
        return len(pictures)

    def batch(self, indices):
        return {"image": pictures[indices], "text": all_ids[indices]}


def seven_steps(net, batch, draw):
    """The loss of one batch. `draw` gives the random numbers of this step."""
    x0 = batch["image"]  # 1. images (B, 3, 16, 16)
    u = draw.stratified(len(x0))  # 2. noise levels
    eps = draw.randn(x0.shape)  # 3. noise
    text = drop_captions(batch["text"], empty, draw.rand(len(x0)))  # NEW: one caption in ten is hidden
    each = diffusion_loss(
        net, cosine, "v", x0, u, eps, text=text
    )  # 4. noise the images, 5. predict, with the words, 6. compare
    return LossTerms(each, u)


# %% [markdown]
# While it trains we look at two things: the loss, and whether it *obeys*. For the second we ask for each of the ten colours twice,
# and let the judge of section 9 name the colour of what comes.

# %%
judge = load_creature_classifier()  # a network that names the attributes of a creature
ten = [f"a {name} creature" for name in COLOURS]
folder = tempfile.TemporaryDirectory()  # goes away with the notebook
settings = TrainConfig(out=Path(folder.name), steps=450, batch_size=16, lr=3e-3, save_every=450)

began, losses, obeyed, snapshots = time.perf_counter(), [], [], {}
for state in train(little, ColouredCreatures(), seven_steps, settings, Accelerator(cpu=True)):
    losses.append(state.loss)
    if state.step in (30, 90, 150, 210, 300, 450):
        mine = TextToImagePipeline(state.ema.unet, cosine, "v", state.ema.text_encoder, clip_x0=True)
        drawn = mine.txt2img(ten * 2, SamplingConfig(guidance_scale=2, sampler="dpmpp_2m:10"))
        obeyed.append(
            (state.step, float((read_attributes(judge, drawn)[0][:, 0] == torch.arange(10).repeat(2)).double().mean()))
        )
        snapshots[state.step] = drawn[:10]
print(f"{state.step} steps of {state.images} pictures, {time.perf_counter() - began:.0f} s with all looks")

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(9, 2.5), layout="constrained")
left.plot(losses, color="0.85", linewidth=0.5)
left.plot(viz.smooth(np.array(losses), 0.08))
left.set(xlabel="step", ylabel="loss", yscale="log")
right.plot(*zip(*obeyed, strict=True), marker="o", markersize=4)
right.axhline(0.1, color="0.6", linestyle=":", label="chance")
right.set(xlabel="step", ylabel="share in the right colour", ylim=(0, 1.02))
right.legend()
plt.show()
show_images(torch.cat(list(snapshots.values())), 10, across=COLOURS, down=[f"step {step}" for step in snapshots])

# %% [markdown]
# First noise, then a lump that has all colours and none; then, at some moment, the words take hold. Look for that moment in the loss curve! Nothing marks it. Here is why: the loss of the finished network on 300
# of its pictures, when it is told the right colour, nothing, and a wrong colour, always with the same noise.

# %%
u, eps = (torch.arange(300) + 0.5) / 300, torch.randn(300, 3, 16, 16, generator=torch.Generator().manual_seed(0))
wrong = [f"a {COLOURS[COLOURS.index(attributes['colour']) - 5]} creature" for attributes in simple[:300]]
for what, ids in {
    "the right colour": all_ids[:300],
    "nothing": empty.expand(300, -1),
    "a wrong colour": reader.tokenizer(wrong),
}.items():
    with torch.no_grad():
        told_so = diffusion_loss(state.ema, cosine, "v", pictures[:300], u, eps, text=ids)
    print(f"told {what:18} loss {told_so.mean():.4f}; in the noisiest fifth of the levels {told_so[240:].mean():.4f}")

# %% [markdown]
# At most noise levels the picture shows its colour anyway, and the word says nothing new. Only where there is much noise it is news, and there the colour of a picture is decided. So
# *listening* is a small part of the loss, and the part that matters to us. That is why `train.py` draws fixed prompts as it goes, and why section 9 counts.

# %% [markdown]
# ## 6 · Guidance: turning up the words
#
# Take the two guesses of section 4. Their difference is what the words change. If one wants the words to count *more*, why not go
# further in that direction than the network says?
#
# $$\text{guided} = \text{uncond} + w\,(\text{cond} - \text{uncond}) \tag{1}$$
#
# $w$ is the **guidance scale** (引导系数). $w = 0$ ignores the words, $w = 1$ is the network's honest answer, and $w > 1$ overdoes it.
#
# ### Where it comes from
#
# Bayes' theorem (贝叶斯定理), for a picture $x$ and a text $c$:
#
# $$p(c \mid x) = \frac{p(x \mid c)\, p(c)}{p(x)} \quad\Longrightarrow\quad \log p(c \mid x) = \log p(x \mid c) - \log p(x) + \text{something without } x$$
#
# Read from right to left: $p(c \mid x)$ is what a **classifier** says, "how well does this text fit this picture?" And its logarithm is the *difference*
# of our two networks. We need no classifier: hence the name. Now we want pictures in which the fit counts $w$ times:
#
# $$\log p(x) + w \log p(c \mid x) = \log p(x) + w\,\big(\log p(x \mid c) - \log p(x)\big) + \dots$$
#
# It remains to remember that the network's answer *is* a gradient (梯度): the noise in $x$ is $\hat\varepsilon = -\sigma\, \nabla_x \log p(x)$, the direction away from likely
# pictures. (Chapter 1's field of arrows.) Take gradients on both sides, multiply by $-\sigma$, and you have (1). The noise, the clean image and $v$ are
# straight lines of each other, so (1) holds for any of them.
#
# ### Two ways to write it
#
# The paper ([Ho & Salimans 2022](https://arxiv.org/abs/2207.12598)) counts from the other end:
#
# $$\text{guided} = (1 + w')\,\text{cond} - w'\,\text{uncond} \qquad\text{which is (1) with } w = 1 + w' \tag{2}$$
#
# "Off" is $w = 1$, but $w' = 0$. This course, `diffusers` and Stable Diffusion write (1). Before you compare a number with somebody else's, find
# out which one they mean. A check of all that, on a real answer of the network:

# %%
with torch.no_grad():
    uncond, cond = (net(x, torch.full((8,), at.time), text=text) for text in (told["without"], told["with caption"]))
for w in (0.0, 1.0, 4.0):
    other = (1 + (w - 1)) * cond - (w - 1) * uncond
    print(
        f"w = {w:g}: (1) and (2) differ by {(guide(uncond, cond, w) - other).abs().max():.1e}; "
        f"(1) is {(guide(uncond, cond, w) - cond).abs().max():.3f} from the honest answer"
    )

# %% [markdown]
# [guidance.py](cfg_pokemon/guidance.py) has the formula, in one line, and the class `Guided`, which asks the network both questions in one batch and looks to a
# sampler like any network. So all samplers of chapter 1 and 3 work, unchanged. Eight prompts, plain and guided; each column begins with the same noise.


# %%
def paint(prompts, w=3.0, **more):
    """One picture of each prompt, (N, 3, S, S) in [-1, 1]; picture i begins with the same noise whatever its prompt and w."""
    return pipeline.txt2img(prompts, SamplingConfig(guidance_scale=w, sampler="dpmpp_2m:15", **more))


wishes = [
    "a red fire creature with bat wings",
    "a blue round creature with cat ears, on a cream background",
    "a green grass creature with a curly tail",
    "a purple ghost creature with two horns and three eyes",
    "a yellow striped creature with rabbit ears",
    "一只白色毛茸茸的冰属性怪兽，有触角",
    "一只粉色的妖精属性小怪兽，长着蝴蝶翅膀",
    "",
]
began = time.perf_counter()
plain = paint(wishes, w=1)
seconds_plain, began = time.perf_counter() - began, time.perf_counter()
guided = paint(wishes, w=3)
seconds_guided = time.perf_counter() - began
show_images(torch.cat([plain, guided]), 8, across=range(1, 9), down=["plain, w = 1", "guided, w = 3"], cell=1.15)
for i, words in enumerate(wishes, 1):
    print(f"{i}  {words or '(no words)'}")
print(f"plain {seconds_plain:.1f} s, guided {seconds_guided:.1f} s: two questions instead of one")

# %% [markdown]
# Go through the columns, and read the prompt. What of it is missing in the first row, and is it there in the second? And the last column: with no
# words there is no difference to exaggerate, so $w$ does nothing.
#
# Now the knob itself. Six prompts, five scales, the same noise in each column.

# %%
SCALES = (0, 1, 2, 4, 8)
six = [wishes[i] for i in (0, 1, 2, 3, 5, 6)]
sweep = {w: paint(six, w=w) for w in SCALES}
show_images(
    torch.cat(list(sweep.values())), 6, across=(1, 2, 3, 4, 6, 7), down=[f"w = {w}" for w in SCALES], cell=1.15
)

# %% [markdown]
# * $w = 0$: creatures, but not those that were ordered. The words are not heard at all.
# * $w = 1$: the honest answer. Often right, sometimes not.
# * $w = 2$ to $4$: clear, strong, what was asked for.
# * $w = 8$: too much. Look at the colours, at the outlines and at the background.
#
# Nobody ever trained the network to do more than $w = 1$. So what is it that we see for large $w$? To understand that, we go back to the plane.

# %% [markdown]
# ## 7 · Exactly, in the plane: guidance overshoots
#
# Where the perfect network is a formula, everything that goes wrong is the fault of guidance itself. Begin with numbers instead of pictures. Let "all
# pictures" be normally distributed around 0 with deviation 1, and those of the caption around $m$, also with deviation 1. At each noise level
# (with $\alpha^2 + \sigma^2 = 1$) the noisy numbers are then normal around 0, or around $\alpha m$, again with deviation 1. The gradients of the logarithms are
#
# $$\nabla \log p(x) = -x \qquad\qquad \nabla \log p(x \mid c) = -(x - \alpha m)$$
#
# and guidance makes of them
#
# $$-x + w\,\big(-(x - \alpha m) + x\big) = -(x - \alpha\, w\, m)$$
#
# That is the gradient of a bell around $w m$. So guided samples lie **$w$ times as far out** as they should: not at what was asked for, but beyond it, where
# there may be no data at all. We check it with the machinery of this chapter: `Guided`, with a formula in place of the network.

# %%
m, w_shown = 0.7, (0, 1, 2, 4)


def one_bell(x, t, text):
    """The perfect guess of x0, if the numbers are normal around what the text says. (B, 1, 1, 1), (B,), (B, 1)"""
    alpha = float(cosine.alpha[round(float(t[0])) + 1])
    mean = text.view(-1, 1, 1, 1)
    return mean + alpha * (x - alpha * mean)


_, axes = plt.subplots(1, len(w_shown), figsize=(10, 2.1), layout="constrained", sharey=True)
line = np.linspace(-4, 6.5, 300)
for axis, w in zip(axes, w_shown, strict=True):
    denoise = Guided(one_bell, "x0", {"text": torch.full((4000, 1), m)}, {"text": torch.zeros(1, 1)}, w, clip_x0=False)
    drawn = Sampler.parse("ddim:250").frames(denoise, cosine, (4000, 1, 1, 1), 0)[-1].flatten()
    axis.hist(drawn.numpy(), bins=60, range=(-4, 6.5), density=True, color="C0", alpha=0.5)
    axis.plot(line, np.exp(-((line - w * m) ** 2) / 2) / np.sqrt(2 * np.pi), color="black", linewidth=0.8)
    axis.axvline(m, color="C1")
    axis.set(title=f"w = {w}", yticks=[])
    print(
        f"w = {w}: mean of the samples {drawn.mean():+.2f} (theory {w * m:+.2f}), deviation {drawn.std():.2f} (theory 1)"
    )
axes[0].set_ylabel("density")
plt.show()

# %% [markdown]
# (Orange: where the samples should be centred. Black: the theory.) With real data the two distributions do not have the same width, and there are many groups.
# So here is a plane with three blobs, of which the caption names one. The perfect network is again a formula: the mean over the blobs, each weighted by
# how likely it is. (At the caption's single blob there is nothing to weigh.)

# %%
BLOBS, WIDTH = torch.tensor([[-1.0, -0.6], [1.0, -0.6], [0.0, 1.1]]), 0.3


def three_blobs(x, t, text):
    """The perfect guess of x0, if points come from the blobs that the text names. (B, 2, 1, 1), (B,), (B, 3) shares of the blobs"""
    step = round(float(t[0])) + 1
    alpha, sigma = float(cosine.alpha[step]), float(cosine.sigma[step])
    variance = (alpha * WIDTH) ** 2 + sigma**2
    away = x.flatten(1)[:, None] - alpha * BLOBS  # (B, 3, 2)
    likely = (text.log() - away.square().sum(2) / (2 * variance)).softmax(1)  # (B, 3)
    x0 = BLOBS + alpha * WIDTH**2 / variance * away  # (B, 3, 2) where x0 is, if it is that blob
    return (likely[..., None] * x0).sum(1)[..., None, None]


n, turn = 2000, torch.linspace(0, 2 * torch.pi, 100)
_, axes = plt.subplots(1, len(SCALES), figsize=(11, 2.6), layout="constrained")
for axis, w in zip(axes, SCALES, strict=True):
    words = {"text": torch.tensor([[0.0, 1.0, 0.0]]).expand(n, 3)}
    denoise = Guided(three_blobs, "x0", words, {"text": torch.ones(1, 3)}, w, clip_x0=False)
    points = Sampler.parse("ddim:100").frames(denoise, cosine, (n, 2, 1, 1), 0)[-1].flatten(1)
    axis.scatter(*points.T, s=1.5, linewidths=0)
    for k, (x, y) in enumerate(BLOBS.tolist()):
        axis.plot(x + 2.45 * WIDTH * turn.cos(), y + 2.45 * WIDTH * turn.sin(), color="C1" if k == 1 else "0.7")
    axis.set(title=f"w = {w}", aspect="equal", xlim=(-1.9, 2.5), ylim=(-1.9, 2.1), xticks=[], yticks=[])
    axis.spines[:].set_visible(True)
    inside = ((points - BLOBS[1]).norm(dim=1) < 2.45 * WIDTH).double().mean()
    print(
        f"w = {w}: {inside:4.0%} inside the orange circle; mean ({points[:, 0].mean():+.2f}, {points[:, 1].mean():+.2f}), "
        f"deviation {(points - points.mean(0)).square().mean().sqrt():.2f} (of the blob: {WIDTH})"
    )
plt.show()

# %% [markdown]
# (The circles hold 95 % of each blob.) With $w = 1$ the perfect network draws exactly what was asked for. Then two things happen as $w$ grows. The points move *away from the
# other blobs*, for that is what the difference of two guesses means: not "more like this", but "less like the rest". And they crowd together: the samples become
# **alike**. Both we shall find again in pictures: exaggerated colours, and a loss of variety.
#
# Then why does anybody use $w > 1$? Because real networks are *not* perfect. What they get wrong at $w = 1$ is often in the middle between things, half red and
# half orange; pushing away from the rest removes these. Guidance buys obedience, and pays with honesty.

# %% [markdown]
# ## 8 · Saying what we do not want
#
# In (1) the empty caption stands for "anything". Nobody says that it has to be empty. Put a caption there that you do *not* want, and (1) leads away from it:
#
# $$\text{guided} = \text{negative} + w\,(\text{cond} - \text{negative})$$
#
# That is a **negative prompt**. No new training, no new code: `Guided` gets another text for its second half. Four orders below, each drawn for eight noises. In the second row
# *wings* are not wanted; in the third they are named in the prompt, as something to do without.

# %%
prompt = "a green creature"
rows = {
    "nothing said": paint([prompt] * 8),
    'negative: "wings"': paint([prompt] * 8, negative_prompt="a creature with bat wings, feathered wings"),
    '"... without wings"': paint([prompt + " without wings"] * 8),
    'negative: "spots"': paint([prompt] * 8, negative_prompt="a spotted creature with spots"),
}
show_images(torch.cat(list(rows.values())), 8, down=list(rows), cell=1.0)
wings, pattern = NAMES.index("wings"), NAMES.index("pattern")
for name, drawn in rows.items():
    read = read_attributes(judge, drawn)[0]
    print(
        f"{name:22} the judge sees wings on {int((read[:, wings] != 0).sum())} of 8, spots on {int((read[:, pattern] == 3).sum())}"
    )

# %% [markdown]
# Compare the columns. A negative prompt pushes: what it names gets rarer, and other things change along with it (the whole picture moves away from
# everything that the negative caption stands for). It is not a promise. *Without wings* works here as well, because the training captions
# say such things; a model whose captions never say what is missing knows no *without*, and reads only *wings*. For those a negative prompt is the only way.

# %% [markdown]
# ## 9 · Were the words obeyed?
#
# Looking is good, counting is better. Because we drew the training data ourselves, we could train a **judge**
# ([attributes.py](../common/evaluate/creature_classifier.py)): a small network that names all eleven attributes of a picture. It has been trained on other creatures than any model here, of all combinations,
# so that it has no prejudice against a blue one of fire. How good is it? On 200 real creatures that it has never seen:

# %%
unseen = load_creatures("test", 200, size)
read, sure = read_attributes(judge, unseen.pixels)  # each (200, 11)
right = (read == unseen.attributes.table).double().mean(0)
print(
    f"right in {right.mean():.1%} of all cases; least often about",
    ", ".join(f"{NAMES[i]} ({right[i]:.0%})" for i in right.argsort()[:3].tolist()),
)

# %% [markdown]
# What may a picture be held to? Only what its caption *speaks* of. **Attribute accuracy** (属性准确率) is the share of all mentioned attributes that the judge finds in the
# picture. Four guided pictures, and what is said of them:

# %%
N, ALIKE = 32, 8  # prompts; and how many of them are drawn three times, for the diversity of section 10
asked = {
    split: make_prompts(split, N, "both", size, WITH_VARIANTS) for split in ("test", "heldout")
}  # captions of creatures that the model has not seen
test = asked["test"]


def paint_all(prompts, w, **more):
    """A picture of each prompt, and two more of the first ALIKE. (N + 2 ALIKE, 3, S, S)"""
    return paint(prompts.captions + prompts.captions[:ALIKE] * 2, w, **more)


drawn = {w: paint_all(test, w) for w in SCALES}

read, _ = read_attributes(judge, drawn[2][:4])
show_images(torch.cat([to_float(test.real[:4]), drawn[2][:4]]), 4, down=["meant", "drawn, w = 2"], cell=1.2)
for i in range(4):
    print(test.captions[i])
    for k in torch.nonzero(test.mentioned[i]).flatten().tolist():
        values, wanted, found = ATTRIBUTES[NAMES[k]], int(test.wanted[i, k]), int(read[i, k])
        print(
            f"    {NAMES[k]:11} {values[wanted]:10} {'yes' if wanted == found else 'no, the judge sees ' + values[found]}"
        )

# %% [markdown]
# Now all 32 prompts (half English, half Chinese), for five scales, the same noise for each. Beside it, two marks without which such a number says nothing. The **ceiling**: real pictures of the same captions, judged
# in the same way. The **floor**: those real pictures with each other's captions, which is what a model gets that draws well and cannot read.


# %%
def numbers(prompts, pictures):
    """All measures of evaluate.py, for what paint_all has drawn."""
    pixels = to_bytes(pictures)
    alike = torch.cat([pixels[:ALIKE], pixels[N:]]).unflatten(0, (3, ALIKE))  # three of each of the first prompts
    return measure(judge, prompts, pixels[:N], alike)


measured = {w: numbers(test, pictures) for w, pictures in drawn.items()}
marks = bounds(judge, test)
accuracy = np.array([[measured[w][key] for key in ("accuracy", "accuracy_low", "accuracy_high")] for w in SCALES])
plt.figure(figsize=(6, 2.8), layout="constrained")
plt.errorbar(
    SCALES, accuracy[:, 0], (accuracy[:, 0] - accuracy[:, 1], accuracy[:, 2] - accuracy[:, 0]), marker="o", capsize=3
)
plt.axhline(marks["accuracy_real"], color="0.4", linestyle="--", label="real pictures")
plt.axhline(marks["accuracy_chance"], color="0.4", linestyle=":", label="real pictures, wrong captions")
plt.gca().set(xlabel="guidance scale w", ylabel="attribute accuracy", ylim=(0, 1.03), xticks=SCALES)
plt.legend(loc="center right")  # between the two marks
plt.show()
for w, (value, low, high) in zip(SCALES, accuracy, strict=True):
    print(
        f"w = {w}: {value:.1%}, between {low:.1%} and {high:.1%}; all that was asked for: {measured[w]['all_right']:.0%} of the pictures"
    )
print(
    f"{N} prompts, {int(test.mentioned.sum())} mentioned attributes; ceiling {marks['accuracy_real']:.1%}, floor {marks['accuracy_chance']:.1%}"
)

# %% [markdown]
# How sure is this? The bars are 95 % intervals (置信区间) from a **bootstrap** (自助法): draw 32 prompts again from the 32, with repetition, a thousand times, and see how much the result
# varies. With so few prompts they are wide; two scales whose bars overlap a good deal have *not* been shown to differ. What can be read off with certainty: that
# the words are heard ($w = 1$ against $w = 0$ and against the floor). For the finer question, which scale is best, take more pictures:
# `python 02_cfg_pokemon/evaluate.py` takes 200 prompts of each kind, and its table stands in the [README](README.md).

# %% [markdown]
# ## 10 · What it costs, and the cures
#
# The same pictures, other measures. **Brightness** (亮度) and **saturation** (饱和度) are means over all pixels; **burnt** (过曝) is the share of colour values at the very end of
# the range, 0 or 255; **diversity** (多样性) is how much three pictures of the same prompt differ.


# %%
def table(rows, first="w"):
    """A line for each row of measures, the real pictures last."""
    print(f"{first:22}{'accuracy':>10}{'brightness':>18}{'saturation':>18}{'burnt':>9}{'diversity':>11}")
    real = {
        key: marks[f"{key}_real"]
        for key in ("accuracy", "brightness", "brightness_sd", "saturation", "saturation_sd", "burnt", "diversity")
    }
    for name, row in (rows | {"real pictures": real}).items():
        light, colour = (f"{row[key]:.3f} ± {row[key + '_sd']:.3f}" for key in ("brightness", "saturation"))
        print(
            f"{name!s:22}{row['accuracy']:>10.1%}{light:>18}{colour:>18}{row['burnt']:>9.1%}{row['diversity']:>11.3f}"
        )


table(measured)
_, axes = plt.subplots(1, 4, figsize=(11, 2.3), layout="constrained")
for axis, key in zip(axes, ("brightness", "saturation", "burnt", "diversity"), strict=True):
    values, errors = ([measured[w].get(what, 0) for w in SCALES] for what in (key, f"{key}_sd"))
    axis.errorbar(SCALES, values, errors, marker="o", markersize=4, capsize=2)
    axis.axhline(marks[f"{key}_real"], color="0.4", linestyle="--", label="real pictures")
    axis.set(title=key, xlabel="w", xticks=SCALES)
axes[-1].legend(fontsize=8, loc="upper right")
plt.show()

# %% [markdown]
# (± and the bars are one standard error over the prompts; burnt and diversity have none. The *differences* between two scales are surer than that, because prompts and noise are the same.
# Diversity comes from eight prompts only.) Compare each curve with the dashed line. Where does it leave it, and in which direction? This is section 7 in pictures: away from the mean of all creatures, beyond what
# there is, and alike.
#
# The lore (claim 8 of this course) says that guided samples come out *dark*, and that augmentation of the training data is to blame. Our training augments nothing. So whatever drift you see above has
# another cause. Three are in question: the overshoot itself; **clipping** (裁剪): at each step the guess of the clean image is cut off at black and white, and of a picture that overshoots,
# more is cut; and a schedule that does not end in pure noise (chapter 3; our cosine nearly does). Four remedies, at $w = 8$, where they are needed:
#
# * **No clipping.** Not a remedy, but a test of the second cause.
# * **Dynamic thresholding** (动态阈值; Saharia et al. 2022): where a guess leaves $[-1, 1]$, shrink the whole picture until (nearly) all of it fits, instead of cutting it off.
# * **Guidance rescale** (引导重缩放; Lin et al. 2023): guiding makes the answer vary more than the honest one; shrink it back to its standard deviation, or 70 % of the way there.
# * **Guidance interval** (引导区间; Kynkäänniemi et al. 2024): guide only at the middle noise levels. Early it costs variety, late it does hardly anything.

# %%
cures = {
    "w = 1": {},
    "w = 8": {},
    "w = 8, no clipping": {"clip_x0": False},
    "w = 8, dynamic": {"clip_x0": "dynamic"},
    "w = 8, rescale 0.7": {"rescale": 0.7},
    "w = 8, interval": {"interval": (0.2, 2.0)},
}
results = {name: paint_all(test, 8, **more) if more else drawn[int(name[4])] for name, more in cures.items()}
table({name: numbers(test, pictures) for name, pictures in results.items()}, first="")
show_images(torch.cat([pictures[:8] for pictures in results.values()]), 8, down=list(results), cell=1.0)

# %% [markdown]
# Judge by two columns at once. A cure that brings the colours back and loses the words has cured nothing: it is a smaller $w$ under another name. And the simplest remedy is
# always there: a smaller $w$. The table in the [README](README.md) has the same with 200 prompts, over all scales, and a verdict on claim 8.

# %% [markdown]
# ## 11 · Never seen together
#
# *A blue fire creature.* In training there is no such thing. There are blue creatures, and creatures of fire, and in all of the latter the fire
# surrounds something that is not blue. A network that has learned pictures by heart has nothing to draw here. One that has taken the words apart has.

# %%
never = [f"a {colour} {element} creature" for element, colour in NEVER_TOGETHER.items()]
show_images(
    torch.cat([paint(never, w=w) for w in (1, 3)]),
    8,
    across=[f"{colour}\n{element}" for element, colour in NEVER_TOGETHER.items()],
    down=["w = 1", "w = 3"],
    cell=1.1,
)

# %% [markdown]
# Are both there, the colour *and* the element? Counted, with 32 captions of held-out creatures, which speak of more than the two words; beside it the captions of the test
# set, whose combinations are of the kind that was trained on.

# %%
held = asked["heldout"]
print(f"{'':22}{'accuracy':>10}{'(95 %)':>20}{'colour and element both right':>34}")
for name, prompts, pictures in [
    *((f"trained kind, w = {w}", test, drawn[w]) for w in (1, 4)),
    *((f"never seen, w = {w}", held, paint_all(held, w)) for w in (1, 4)),
]:
    row = numbers(prompts, pictures)
    interval, both = f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}", f"{round(N * row['pair'])} of {N}"
    print(f"{name:22}{row['accuracy']:>10.1%}{interval:>20}{both:>34}")

# %% [markdown]
# The last column is the sharp one. (By chance a colour is right once in ten, an element once in eight, and both once in eighty.) Because attributes vary independently in our data,
# the network could learn them apart. In photographs they do not: bananas are yellow, and a blue one is hard to get. What helps are many pictures and varied captions. That is
# the second half of claim 9: *800 images are far too few for words to generalise*; the [README](README.md) trains on 100, 800 and 10,000 and compares.

# %% [markdown]
# ## 12 · Learned, or learned by heart?
#
# A model that copies its training pictures obeys well, too. So we look for the nearest training picture of each sample, after a light blur, so that a shift of half a pixel does not
# count. Here the first 1,500 training pictures are searched. How near is too near? Ask the same of as many creatures that the model was *not* trained on. Who has copied is
# nearer to the seen than to the unseen; who has not is nearer to the one in half of the cases.

# %%
creatures = load_creatures("train", 1500, size)  # the first of those that the model was trained on
samples = to_bytes(drawn[2][:N])
strangers = load_creatures("train", len(creatures), size, seed=2).pixels  # as many, of another seed
distance, index = nearest(blurred(samples), blurred(creatures.pixels))
elsewhere, _ = nearest(blurred(samples), blurred(strangers))
first = distance.argsort()[:8]
show_images(
    to_float(torch.cat([samples[first], creatures.pixels[index[first]]])), 8, down=["sample", "nearest"], cell=1.0
)
floor, _ = nearest(blurred(unseen.pixels), blurred(creatures.pixels))
print(
    f"distance to the nearest training picture: samples, median {distance.median():.3f}, smallest {distance.min():.3f}; "
    f"new real creatures, {floor.median():.3f} and {floor.min():.3f}"
)
print(f"nearer to a training picture than to an unseen one: {int(nearer(distance, elsewhere).sum())} of {N} samples")

# %% [markdown]
# The pairs are the eight nearest of all: alike in kind, for the attributes are the same, but is one of them the *same drawing*? 32 samples can show a model that copies everything, and no more. The study in the
# [README](README.md) searches all training pictures, in pixels and in the judge's features, for models of 100, 800 and 10,000 pictures
# (`python 02_cfg_pokemon/memorization.py`).

# %% [markdown]
# ## Where to go from here
#
# What to remember:
#
# * Words enter by **cross-attention**: each place of the picture chooses which words it reads.
# * **Caption dropout** makes two networks of one. The difference of their answers points towards the words.
# * **Guidance** goes further in this direction: $\text{uncond} + w\,(\text{cond} - \text{uncond})$, off at $w = 1$. It buys obedience with variety and honest colours.
# * A **negative prompt** is what one leads away from.
# * Whether words are obeyed can be *counted*, with a ceiling, a floor and an interval. The loss does not tell it.
#
# Things to try in this notebook, each a change of a word or two:
#
# * In section 3, change $t = 500$ to 200 and to 800. When do words act where they are meant to, and when everywhere?
# * In section 5, drop no captions (`drop_captions(..., 0.0)`), and sample with $w = 2$. What is the empty caption then worth?
# * In section 6, guide at $w = 0.5$. What is between ignoring and listening?
# * In section 7, let the caption name two blobs. Where do the points go?
# * In section 11, ask in Chinese: 一只蓝色的火属性小怪兽.
#
# Then build it yourself: seven [exercises](exercises/README.md), from caption dropout to attribute accuracy, with a grader: `python -m common.grade 02`. Then train on your
# own pictures, or on Pokémon, with captions in either language, or let a CLIP read them: [README](README.md).
#
# The pictures of this chapter are small because every pixel costs. Chapter 4 moves all of this into a smaller space, and so makes a small Stable Diffusion of it.
