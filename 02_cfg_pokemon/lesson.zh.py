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
# # 第 2 章 · 无分类器引导的文生图
#
# [English](lesson.ipynb) · 中文
#
# 第 1 章请网络画一个数字。这一章用文字请它画图：*a red fire creature with bat wings*，或者“一只红色的火属性小怪兽，长着蝙蝠翅膀”。
#
# 这需要三样东西。**文本编码器**（text encoder）把文本描述（caption，以下简称描述）变成向量；**交叉注意力**（cross-attention）让每个像素读取这些向量。训练时，每十句描述中有一句换成空文本，于是同一个网络既学会某句描述的图像，*又*学会全体图像。采样时，**无分类器引导**（classifier-free guidance）放大这两者之差。几乎所有的文生图模型都是这样工作的。
#
# 在本章中，你将
#
# 1. 看一看数据：画出来的小怪兽，各个属性都是已知的；
# 2. 把文本变成向量；
# 3. 用**交叉注意力**让像素读取文本；
# 4. 随机丢弃描述，让一个网络学会两个分布；
# 5. 训练一个小型文生图模型，并测量描述在哪些噪声水平上起作用；
# 6. 推导**引导**（guidance）并使用它；
# 7. 准确地看清引导采样的是什么分布，不是什么分布；
# 8. 用别的梯度来引导：一个分类器，或者一个要求某种颜色的损失；
# 9. 测量图像是否画出了提示词所要求的内容；
# 10. 使用**负面提示词**（negative prompts）；
# 11. 测量引导的代价，并试用各种补救办法；
# 12. 要求训练中从未出现过的组合；
# 13. 检验模型是否照搬训练图像。
#
# 请先读完第 1 章。所有代码都在笔记本电脑的 CPU 上运行，无需下载，CPU 时间不到六分钟。术语的中英文对照见[术语表](../docs/glossary.md)。
#
# > **记号。** $x_0$ 是干净图像，$\varepsilon$ 是标准正态噪声。令 $\sigma_t = \sqrt{1-\bar\alpha_t}$，第 1 章的加噪图像就是
# > $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sigma_t\, \varepsilon \qquad\text{而}\qquad p_t \text{ 是 } x_t \text{ 的分布。}$$
# > $c$ 是一句描述，$\varnothing$ 是空文本。$p_t(x)$ 是全部加噪图像的分布，$p_t(x \,|\, c)$ 是描述为 $c$ 的加噪图像的分布。在代码中，噪声水平是一个 `NoiseLevel`，它的字段有 `alpha`（即 $\sqrt{\bar\alpha_t}$）、`sigma`（即 $\sigma_t$）和 `time`（网络的输入）。

# %%
from common.grade.chapter import open_chapter  # 找不到 common？请选择课程的内核（README.zh.md）

CHAPTER = open_chapter("02_cfg_pokemon 中文")  # 本章的文件夹：从这里起可以导入其中的文件

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
    """标准正态噪声，每次运行都相同。"""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# %% [markdown]
# ## 1 · 小怪兽和它们的描述
#
# 要学会*红色*是什么意思，网络必须见过称为红色的红东西，也必须见过别的东西。所以我们需要带描述的图像。要*测量*网络是否学会了，我们还必须知道每张图像画的是什么。程序画出的小怪兽（[common/data/creatures](../common/data/creatures)）满足这两个要求。下面是三十只。

# %%
from common.data.creatures.captions import describe
from common.data.creatures.dataset import POSE, draw, load_creatures

sheet = load_creatures("train", 30, size=48)  # pixels (30, 3, 48, 48), captions, and a table of attributes
for i, caption in enumerate(sheet.captions[:5], 1):
    print(f"{i}  {caption}")
show_images(to_float(sheet.pixels), 10)

# %% [markdown]
# （打印出来的描述属于第一行的前五只小怪兽。）一只小怪兽有十一个属性，每个都随机抽取，相互独立。描述一半是英文，一半是中文。没有一句描述会说出所有属性，同一只小怪兽可以有多种描述：

# %%
for name, values in ATTRIBUTES.items():
    print(f"{name:11} {', '.join(values)}")
print(f"共 {COMBINATIONS:,} 种组合。上面的第一只小怪兽，描述六次：")
for language in ("en", "zh"):
    for k in range(3):
        print("   ", describe(sheet.attributes.of(0), language, np.random.default_rng(k)))

# %% [markdown]
# ### 留出的组合
#
# 见过红色火属性小怪兽的模型，能画出红色火属性小怪兽。它可能理解了两个词，也可能只是记住了例子。*从未*见过的组合能把两者区分开：模型知道蓝色，也知道火，那么它能画出蓝色的火属性小怪兽吗？为了这个检验，训练集里的每种元素都缺少一种颜色。这些组合是**留出的**（held out），第 12 节会回来用到它们。

# %%
held = load_creatures("heldout", 100, size=48)
firsts = [next(i for i in range(100) if held.attributes.of(i)["element"] == element) for element in NEVER_TOGETHER]
show_images(to_float(held.pixels[firsts]), 8, [f"{colour}\n{element}" for element, colour in NEVER_TOGETHER.items()])

# %% [markdown]
# ## 2 · 从文本到向量
#
# **分词器**（tokenizer）把文本切成小块，即**词元**（tokens），再查出每一块的编号。我们的分词器用字节对编码从描述中学到这些小块（[tokenizer.py](../common/models/text/tokenizer.py)）：常用的词是一个词元，一个汉字也是一个词元。从这里起，我们使用本章自带的模型（[pretrained/](pretrained)）。

# %%
from common.models.text_to_image_folder import open_pixel_pipeline

pipeline = open_pixel_pipeline(CHAPTER / "pretrained")  # U-Net、文本编码器和噪声调度
net, encoder, schedule = pipeline.unet, pipeline.text_encoder, pipeline.schedule
tokenizer, size = encoder.tokenizer, net.cfg.size
print(f"U-Net：{sum(p.numel() for p in net.parameters()):,} 个权重，{size} x {size} 像素")
print(f"文本编码器：{sum(p.numel() for p in encoder.parameters()):,} 个权重，{tokenizer.size:,} 个词元\n")


def pieces(text):
    """一段文本的词元，不含末尾的填充：名字和编号。"""
    found = tokenizer.backend.encode(text)
    names = ["开始", *(text[a:b] for a, b in found.offsets if a < b), "结束"]
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
        print("    未知的词，只能拆开拼写：", "、".join(unknown))

# %% [markdown]
# 有三点值得注意：
#
# * *turquoise* 和 *moustache* 没有在任何描述里出现过。它们被拆成更小的块，最坏的情形是拆成字母。这样能用，但是训练中从未一起出现过的小块没有多少含义。
# * **空文本**也是一段文本，与别的文本一样：有开始，有结束，中间什么也没有。它后面很重要。
# * 所有文本都用**填充**（padding）词元补到相同的长度，这样才能放进一个张量。
#
# 词元的编号本身没有含义。所以每个词元对应一个向量，即一张表中的一行，这张表是*学习*得到的。然后，一个小型的 **transformer** 让每个词元关注它之前的词元，这样 *wings* 的向量就可以取决于 *bat* 这个词（[transformer.py](../common/models/text/transformer.py)，是 CLIP 文本编码器的缩小版）。两者都与 U-Net 一起、用同一个损失训练，所以图像需要词语表示什么，词语就表示什么。

# %%
with torch.no_grad():
    text = encoder(["a red fire creature with bat wings"])
print("一句描述变成", tuple(text.shape), "个数：（描述数，词元数，宽度）")

# %% [markdown]
# 我们还需要网络的预测。这个网络预测的不是 $\varepsilon$，而是图像与噪声的另一种混合，$v = \sqrt{\bar\alpha_t}\,\varepsilon - \sigma_t\, x_0$。为什么这样，第 3 章会解释。和 $\varepsilon$ 一样，可以由它解出两个部分：
#
# $$\hat x_0 = \sqrt{\bar\alpha_t}\, x_t - \sigma_t\, \hat v \qquad\qquad \hat\varepsilon = \sigma_t\, x_t + \sqrt{\bar\alpha_t}\, \hat v$$
#
# （代入 $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sigma_t\,\varepsilon$ 和 $v$，并利用 $\bar\alpha_t + \sigma_t^2 = 1$。）


# %%
def level_at(t):
    """时间步 t（0 到 1000）的噪声水平。网络从 0 开始数时间步，所以它的时间输入是 t - 1。"""
    return NoiseLevel(float(t - 1), float(schedule.alpha[t]), float(schedule.sigma[t]))


@torch.no_grad()
def predict(x, level, captions):
    """网络对加噪图像 x (B, 3, S, S) 的预测 (x0, eps)；描述有 B 句，或者一句通用。"""
    text = encoder(captions).expand(len(x), -1, -1)  # (B, M, D)
    v = net(x, torch.full((len(x),), level.time), text=text)
    return level.alpha * x - level.sigma * v, level.sigma * x + level.alpha * v


assert pipeline.prediction == "v"

# %% [markdown]
# 词语变成了什么意思？网络从没见过词典，只见过红色的小怪兽，有的描述里写着 *red*，有的写着“红”。这两个词对*图像的效果*相同吗？我们给网络八张几乎是纯噪声的图像，配上十句英文描述和十句中文描述，它们只有颜色不同。从每个预测的 $\hat x_0$ 中减去同一语言各句描述的均值，剩下的就是颜色词的效果。然后用余弦相似度比较所有的组合；方向相同的效果，相似度为 1。

# %%
COLOURS = ATTRIBUTES["colour"]
HANZI = dict(zip(COLOURS, "红橙黄绿蓝紫粉棕白黑", strict=True))


def effects_of(captions):
    """每句描述对预测图像的改变，相对于所有描述的均值。(10, 3 S S)，长度为 1"""
    x, level = random(8, 3, size, size), level_at(900)
    x0 = torch.stack([predict(x, level, [caption])[0].mean(0).flatten() for caption in captions])
    return F.normalize(x0 - x0.mean(0), dim=1)


english = effects_of([f"a {name} creature" for name in COLOURS])
chinese = effects_of([f"一只{word}色的小怪兽" for word in HANZI.values()])
similarity = english @ chinese.T
plt.figure(figsize=(4.6, 3.8), layout="constrained")
plt.imshow(similarity, cmap="RdBu_r", vmin=-1, vmax=1)
plt.xticks(range(10), [f"{name}（中）" for name in COLOURS], rotation=60, ha="right")
plt.yticks(range(10), [f"{name}（英）" for name in COLOURS])
plt.colorbar(label="效果的余弦相似度")
plt.show()
most_similar = similarity.argmax(1)
print(f"10 个英文颜色词中，有 {int((most_similar == torch.arange(10)).sum())} 个最相似的中文词正是它的译文：")
print(", ".join(f"{name} {HANZI[COLOURS[i]]}" for name, i in zip(COLOURS, most_similar.tolist(), strict=True)))

# %% [markdown]
# 对角线上是红色的地方，网络通过图像找到了译文。对角线之外可以看到相近的颜色。这并不要求两个词的*向量*相似，因为 U-Net 可以学会以同样的方式使用不同的向量。

# %% [markdown]
# ## 3 · 交叉注意力：像素读取文本
#
# 一个词必须作用在*这里，而不是那里*：*bat wings*（蝙蝠翅膀）关系到肩部的像素，*on a mint background*（薄荷色背景）关系到周围的像素。所以每个像素应当自己选择读取哪些词元。每个像素有一个**查询**（query）向量，说明它要找什么。每个词元有一个**键**（key）向量，说明它提供什么；还有一个**值**（value）向量，就是像素得到的内容。查询与某个键匹配时，像素就更多地得到这个词元的值。
#
# 设 $h_i$ 是网络内部像素 $i$ 的特征，$c_j$ 是词元 $j$ 的向量。要学习三个矩阵：
#
# $$q_i = W_q h_i \qquad k_j = W_k c_j \qquad v_j = W_v c_j$$
#
# 内积 $q_i \cdot k_j$ 衡量查询与键有多匹配。对各个词元做 softmax，把这些得分变成权重；权重为正，总和为 1。像素得到的是各个值的加权平均：
#
# $$A_{ij} = \mathrm{softmax}_j\!\left(\frac{q_i \cdot k_j}{\sqrt d} + m_j\right) \qquad\qquad \text{像素 } i \text{ 得到 } \sum_j A_{ij}\, v_j$$
#
# * $d$ 是 $q$ 和 $k$ 的长度。$d$ 个独立随机数的内积，标准差与 $\sqrt d$ 成正比。如果不做除法，softmax 很快就会把全部权重放在一个词元上，它的梯度也就消失了。
# * $m_j$ 是可选的**掩码**（mask）：$m_j = -\infty$ 使词元 $j$ 的权重为 0，例如因为它是填充；$m_j = 0$ 则不改变什么。掩码必须在 softmax 之前加上，这样其余权重之和仍为 1。我们的 U-Net 不用掩码，所以像素也可以读取填充。
# * 几个这样的计算并列进行，每个使用 $q$、$k$ 和 $v$ 中自己的 $d$ 列。它们叫做**头**（heads）。各个头的结果拼接起来，乘以最后一个矩阵 $W_o$，再*加*到 $h$ 上。
#
# > **论文中的写法。** 把所有查询作为矩阵 $Q$ 的行，其余类推：$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(QK^\top/\sqrt{d}\right)V$（[Vaswani et al. 2017](https://arxiv.org/abs/1706.03762)，式 1）。从 U-Net 的像素到文本的注意力，见潜在扩散论文第 3.3 节（[Rombach et al. 2022](https://arxiv.org/abs/2112.10752)）。
#
# 下图画出了我们的网络中第一个交叉注意力层的各个矩阵。

# %%
layers = [module for name, module in net.named_modules() if name.endswith("attn2")]
side = size // 2 ** (len(net.cfg.channels) - 2)  # 次低分辨率下每边的像素数
show_attention_shapes(side**2, layers[0].to_q.in_features, encoder.length, encoder.dim, layers[0].heads)


# %% [markdown]
# 写成代码：


# %%
def attention_weights(layer, x, text, mask=0.0):
    """A：每个像素从每个词元读取多少。x (B, N, C)，text (B, M, D)，mask (M,) -> (B, heads, N, M)"""
    q, k = layer.to_q(x), layer.to_k(text)  # (B, N, C), (B, M, C)
    q, k = (y.unflatten(2, (layer.heads, -1)).transpose(1, 2) for y in (q, k))  # (B, heads, N 或 M, d)
    return (q @ k.transpose(2, 3) / q.shape[3] ** 0.5 + mask).softmax(dim=3)


def cross_attention(layer, x, text, mask=0.0):
    """每个像素得到什么。-> (B, N, C)"""
    v = layer.to_v(text).unflatten(2, (layer.heads, -1)).transpose(1, 2)  # (B, heads, M, d)
    received = attention_weights(layer, x, text, mask) @ v  # (B, heads, N, d)
    return layer.to_out(received.transpose(1, 2).flatten(2))  # 各个头并排，再乘 W_o


# %% [markdown]
# 我们的 U-Net 在最低的两级分辨率上有交叉注意力：下采样途中、最底部、上采样途中都有。在 [unet.py](../common/models/unet.py) 中，这些层叫做 `attn2`；`attn1` 是像素之间的自注意力。
#
# 我们的代码与网络计算的一样吗？我们画一只小怪兽，这样就知道每样东西在哪里；用 32 个不同的噪声把它加噪到一半，再让网络预测。每一层上的钩子（hook）记录它的输入和输出。

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
    """加噪图像配上这句描述时，各交叉注意力层的 [(x, text, output)]。"""
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
print(f"{len(layers)} 层，头数分别为 {'、'.join(str(layer.heads) for layer in layers)}")
print(f"我们的代码与网络的最大差别：{max(differences):.1e}")

# %% [markdown]
# ### 像素在哪里读取一个词？
#
# 对每个词元，权重 $A_{ij}$ 在各个像素 $i$ 上形成一张**注意力图**（map）。我们先把最低分辨率的注意力图放大，再对 32 个噪声、各层及各个头取平均，最后把一个短语的各词元的图相加。每张图都除以自己的均值，这样所有的图都可以用同一个色标。


# %%
@torch.no_grad()
def attention_maps(caption):
    """每个词元在每个像素上的平均权重。(M, S/2, S/2)"""
    parts = []
    for layer, (*inputs, _) in zip(layers, record(caption), strict=True):
        weights = attention_weights(layer, *inputs).mean((0, 1)).T  # (M, N)
        side = math.isqrt(weights.shape[1])
        parts.append(resized(weights.unflatten(1, (side, side)), size // 2))
    return torch.stack(parts).mean(0)


def map_of(phrase, caption, maps):
    """一个短语的注意力图：其各词元的图之和，除以均值。(S/2, S/2)"""
    begin, offsets = caption.index(phrase), tokenizer.backend.encode(caption).offsets
    total = sum(maps[j] for j, (a, b) in enumerate(offsets) if begin <= a < b <= begin + len(phrase))
    return total / total.mean()


phrases = {
    in_english: ["red", "fire", "bat wings", "antennae", "curly tail", "mint background"],
    in_chinese: ["红色", "火属性", "蝙蝠翅膀", "触角", "卷尾巴", "薄荷色背景"],
}
maps = {caption: attention_maps(caption) for caption in phrases}
drawn = [map_of(phrase, caption, maps[caption]) for caption, some in phrases.items() for phrase in some]
show_maps(x0[0], drawn, phrases[in_english] * 2, "权重 / 平均权重", 2.5, ["英文", "中文"])

for caption, each in maps.items():
    total, n = each.mean((1, 2)), len(pieces(caption)[0])
    print(
        f"全部注意力之中：开始 {total[0]:.0%}，描述的 {n - 2} 个词元 {total[1 : n - 1].sum():.0%}，结束 {total[n - 1]:.0%}，"
        f"{len(total) - n} 个填充 {total[n:].sum():.0%}"
    )

# %% [markdown]
# 把每张图与左边的小怪兽对照。有些短语正是在它所属的地方被读取，另一些却在别处亮起来。看这种图要谨慎，原因有两个。靠后的词元已经关注过它之前的所有词元，所以它的向量可能带有其他词的信息。而且，这张图是各层的平均，各层的任务可能并不相同。
#
# 再看打印出来的两行：许多注意力落在不是词语的词元上。一种解释是，*结束*和填充位于整句描述之后，起着摘要的作用。但这解释不了*开始*所占的份额：它在所有词语之前，不含描述的任何信息。语言模型中有类似的现象，叫做**注意力汇聚**（attention sink）：权重之和必须为 1，所以什么都不需要的像素也得把权重放在某个地方（[Xiao et al. 2023](https://arxiv.org/abs/2309.17453)）。这里是否也是如此，从图上看不出来。
#
# **问题。** 网络是否真的使用了它从*开始*、从词语、从结束和填充中读到的东西？怎样才能弄清楚？

# %%
n, reach = len(pieces(in_english)[0]), torch.arange(encoder.length)
groups = {"开始": reach == 0, "词语": (reach > 0) & (reach < n - 1), "结束和填充": reach >= n - 1}
before = predict(noisy, half_way, [in_english])[0]
print("像素读不到下列词元时，预测图像的平均变化：")
for name, group in groups.items():
    mask = torch.zeros(encoder.length).masked_fill(group, -math.inf)
    replace = lambda layer, inputs, output: cross_attention(layer, *inputs, mask)  # noqa: B023, E731 - 钩子可以改变输出
    hooks = [layer.register_forward_hook(replace) for layer in layers]
    print(f"{name:8} {(predict(noisy, half_way, [in_english])[0] - before).square().mean().sqrt():.4f}")
    for hook in hooks:
        hook.remove()
print(f"作为比较，空文本 {(predict(noisy, half_way, ['']))[0].sub(before).square().mean().sqrt():.4f}")

# %% [markdown]
# <details><summary>答案</summary>
#
# 用掩码屏蔽一组词元，测量预测的图像改变多少。注意力多而影响小的一组，表现得像注意力汇聚；影响大的一组，要么带有网络用到的信息，要么是训练中从未缺少过它。后一种可能正是这个实验的弱点：没有哪一层在训练时用过掩码，所以影响大并不一定说明这一组带有描述的信息。
#
# </details>
#
# ### 一个词在哪里起作用？
#
# 这种图显示一个词在哪里被*读取*，这与它在哪里*起作用*是两回事。有一个更好的实验：**换掉这个词，看预测在哪里改变。** 我们给同样的加噪图像配上另一句描述，画出预测的 $\hat x_0$ 在每个像素上改变了多少。

# %%
changes = {
    "红 → 蓝": ("red", "blue"),
    "火 → 水": ("fire", "water"),
    "无蝙蝠翅膀": ("bat wings, ", ""),
    "无触角": (", antennae", ""),
    "无卷尾巴": (" and a curly tail", ""),
    "薄荷 → 玫瑰": ("mint", "rose"),
}
effects = [
    (predict(noisy, half_way, [in_english.replace(*change)])[0] - before).square().mean((0, 1)).sqrt()
    for change in changes.values()
]
show_maps(x0[0], [effect / effect.mean() for effect in effects], list(changes), "变化 / 平均变化", 4)
print("平均变化：", "，".join(f"{name} {float(e.mean()):.3f}" for name, e in zip(changes, effects, strict=True)))

# %% [markdown]
# 词语就是这样操纵扩散模型的：每个词都把它所关系到的像素轻轻推一下。噪声还留有余地的地方，推力强；加噪图像已经决定了的地方，推力弱。要看到这一点，请把 `level_at(500)` 改成 200 和 800。

# %% [markdown]
# ## 4 · 一个网络，两个分布
#
# 训练只需要多一行代码。每一步都以概率 $p = 0.1$ 把图像的描述换成空文本，这叫做**随机丢弃文本条件**（caption dropout）。图像保持不变：
#
# $$c_i \leftarrow \varnothing \quad\text{若}\quad u_i < p, \qquad u_i \text{ 均匀分布于 } [0, 1)$$


# %%
def drop_captions(ids, empty, u, p):
    """把 u < p 的描述换成空文本。ids (B, M) 为词元编号，empty (M,)，u (B,)"""
    return torch.where((u < p)[:, None], empty, ids)


batch = list(sheet.captions[:8])
u = torch.rand(8, generator=torch.Generator().manual_seed(0))
ids = drop_captions(tokenizer(batch), tokenizer([""])[0], u, p=0.3)
for caption, number, row in zip(batch, u.tolist(), ids, strict=True):
    print(f"u = {number:.2f}  {'（空）' if torch.equal(row, tokenizer([''])[0]) else caption}")

# %% [markdown]
# （这里取 $p = 0.3$，好让你在八句描述中就能看到。）网络由此学到什么？回想第 1 章：对 $x_0$ 的最好预测，是噪声之下所有可能的干净图像的*均值*。
#
# * 有描述时，它是具有这句描述的图像的均值，$\mathbb{E}[x_0 \,|\, x_t, c]$。网络学会 $p_t(x \,|\, c)$。
# * 空文本会和各种各样的图像一起出现。所以对 $\varnothing$ 来说，最好的预测是 $\mathbb{E}[x_0 \,|\, x_t]$，网络学会 $p_t(x)$。
#
# 一组权重，两个模型：传入的描述决定用哪一个。下面是对同样的加噪图像的两种预测，以及它们的差；先是高噪声，再是较低的噪声。
#
# > **论文中的写法。** 这种训练是 [Ho & Salimans 2022](https://arxiv.org/abs/2207.12598) 的算法 1。两种预测记作 $\varepsilon_\theta(x_t, c)$ 和 $\varepsilon_\theta(x_t, \varnothing)$，后者也写成 $\varepsilon_\theta(x_t)$。

# %%
real = load_creatures("test", 6, size)
x0, rows, labels = to_float(real.pixels), [to_float(real.pixels)], ["图像"]
for t in (985, 700):
    x = add_noise(x0, random(6, 3, size, size, seed=1), level_at(t))
    cond, uncond = predict(x, level_at(t), list(real.captions))[0], predict(x, level_at(t), [""])[0]
    rows += [x, cond, uncond, cond - uncond]
    labels += [f"加噪，t = {t}", "x̂₀，有描述", "x̂₀，无描述", "两者之差"]
print("描述：", *real.captions, sep="\n    ")
show_images(torch.cat(rows), 6, down=labels)

# %% [markdown]
# 在 $t = 985$，没有描述的预测对所有图像都相近，接近全体小怪兽的均值；图像的一点色调透过噪声显了出来。描述给了它颜色和身体。在 $t = 700$，加噪图像自己显示的东西更多，描述增加的就更少。最后一行是描述带来的改变（灰色表示没有改变）。引导就建立在这一行之上。

# %% [markdown]
# ## 5 · 训练一个小型文生图模型
#
# 只学一个属性，短时间的训练就够了。所以这里只有颜色、身体和耳朵会变，图像是 $16\times16$ 像素，描述只说颜色。

# %%
rng = np.random.default_rng(0)
same = {
    "element": "rock", "tail": "none", "wings": "none", "horns": "none", "pattern": "plain", "eyes": "two", "mood": "happy",
    "background": "cream",
}  # fmt: skip
simple = [same | {name: str(rng.choice(ATTRIBUTES[name])) for name in ("colour", "body", "ears")} for _ in range(1000)]
images = to_float(torch.stack([torch.from_numpy(draw(each, 16, rng.random(POSE))) for each in simple]))
captions = [f"a {each['colour']} creature" for each in simple]  # 每张图像 (1000, 3, 16, 16) 各一句
show_images(images[:13], 13)

# %% [markdown]
# 一个两级分辨率的 U-Net，加上一个一层的 transformer，作为一个网络来训练。循环与第 1 章相同，只多一行。与 DDPM 的代码一样，每个残差分支的最后一层从零开始（`zero_init`），所以未经训练的网络预测 0。

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
average = copy.deepcopy(small)  # EMA 权重
optimizer = torch.optim.AdamW(small.parameters())
generator = torch.Generator().manual_seed(0)
root, sigma = schedule.alpha.float(), schedule.sigma.float()  # sqrt(alpha_bar_t) 和 sigma_t，(1001,)
classifier = load_creature_classifier()  # 说出小怪兽的各个属性；第 9 节检验它
COLOUR_PROMPTS = [f"a {name} creature" for name in COLOURS]


def draw_small(net, prompts, w, **more):
    """每条提示词一张 16 x 16 的图像，引导系数为 w（第 6 节）。"""
    model = TextToImagePipeline(net.unet, schedule, "v", net.text_encoder, clip_x0=True)
    return model.txt2img(prompts, SamplingConfig(guidance_scale=w, sampler="dpmpp_2m:10", **more))


STEPS, B, losses, right, snapshots, began = 320, 16, [], {}, [], time.perf_counter()
for step in range(1, STEPS + 1):
    i = torch.randint(1000, (B,), generator=generator)
    t = 1 + ((torch.arange(B) + torch.rand(B, generator=generator)) * 1000 / B).long().clamp(
        max=999
    )  # 均匀分布的噪声水平
    eps = torch.randn((B, 3, 16, 16), generator=generator)
    text = drop_captions(ids[i], empty, torch.rand(B, generator=generator), p=0.1)  # 新的一行
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
            slow.lerp_(fast, 1 - step / (step + 10))  # 大约是最近十分之一的步数的平均
    losses.append(loss.item())
    if step in (40, 80, 160, 240, 320):
        drawn = draw_small(average, COLOUR_PROMPTS * 2, w=1.0)
        found = read_attributes(classifier, drawn)[0][:, NAMES.index("colour")]
        right[step] = float((found == torch.arange(10).repeat(2)).double().mean())
        snapshots.append(drawn[:10])
average.eval()
print(f"{STEPS} 步，每步 {B} 张图像，用时 {time.perf_counter() - began:.0f} 秒，包括所有采样")
show_images(torch.cat(snapshots), 10, COLOURS, [f"第 {step} 步" for step in right])

# %%
_, (left, middle) = plt.subplots(1, 2, figsize=(9, 2.5), layout="constrained")
left.plot(losses, color="0.85", linewidth=0.5)
left.plot(range(12, STEPS - 12), np.convolve(losses, np.ones(25) / 25, "valid"), label="25 步的平均")
left.set(xlabel="训练步数", ylabel="损失", ylim=(0, 0.6))
left.legend()
middle.plot(list(right), list(right.values()), marker="o", markersize=4)
middle.axhline(0.1, color="0.6", linestyle=":", label="随机猜测")
middle.set(xlabel="训练步数", ylabel="颜色正确的比例", ylim=(0, 1.05))
middle.legend()
plt.show()

# %% [markdown]
# 先是噪声，再是没有明确颜色的小怪兽；到某个时刻，描述开始起作用。请在损失曲线上找这个时刻：什么标志也没有。损失的大小有许多原因，描述只是其中之一。
#
# ### 描述在哪些噪声水平上起作用？
#
# 这可以测量：图像和噪声始终相同，分别用正确的描述、空文本和错误的描述计算损失。“空 − 正确”之差就是描述的价值。我们把噪声水平分成五份，对小模型和自带模型各测一遍。


# %%
@torch.no_grad()
def losses_by_fifth(net, images, texts):
    """按文本的名字给出 v 的损失，噪声水平的每个五分之一为一行：{name: (5, N / 5)}"""
    n = len(images)
    t = ((torch.arange(n) + 0.5) * 1000 / n).long() + 1  # (N,)，从几乎干净到纯噪声
    alpha_t, sigma_t, eps = root[t].view(-1, 1, 1, 1), sigma[t].view(-1, 1, 1, 1), random(*images.shape)
    x_t, v = alpha_t * images + sigma_t * eps, alpha_t * eps - sigma_t * images
    found = {name: net(x_t, t - 1, text=text) - v for name, text in texts.items()}
    return {name: error.square().mean((1, 2, 3)).view(5, -1) for name, error in found.items()}


def show_gaps(title, losses):
    print(f"{title}\n噪声水平的五分之一  正确      空    错误     空 - 正确（95 %）    占全部差距的比例")
    gap = losses["空"] - losses["正确"]  # (5, N / 5)
    for k in range(5):
        means = "".join(f"{losses[name][k].mean():8.4f}" for name in ("正确", "空", "错误"))
        error = 1.96 * gap[k].std() / gap.shape[1] ** 0.5
        print(
            f"{200 * k:4} 到 {200 * k + 200:4}      {means}    {gap[k].mean():7.4f} ± {error:.4f}{gap[k].sum() / gap.sum():18.0%}"
        )
    print(f"所有水平          {''.join(f'{losses[name].mean():8.4f}' for name in ('正确', '空', '错误'))}\n")


opposite = [f"a {COLOURS[COLOURS.index(each['colour']) - 5]} creature" for each in simple[:300]]
texts = {"正确": ids[:300], "空": empty.expand(300, -1), "错误": small_encoder.tokenizer(opposite)}
show_gaps("小模型，它自己的训练图像", losses_by_fifth(average, images[:300], texts))

unseen = load_creatures("test", 150, size)  # 自带模型没有见过这些；顺序随机
shuffled = torch.randperm(150, generator=torch.Generator().manual_seed(0))
x0, right_captions = to_float(unseen.pixels[shuffled]), [unseen.captions[i] for i in shuffled]
with torch.no_grad():
    all_texts = {"正确": right_captions, "空": [""] * 150, "错误": right_captions[1:] + right_captions[:1]}
    texts = {name: encoder(some) for name, some in all_texts.items()}
show_gaps("自带模型，它没有见过的图像", losses_by_fifth(net, x0, texts))

# %% [markdown]
# **问题。** 对这两个模型，描述分别在哪几份里价值最大？两个模型为什么不同？
#
# <details><summary>答案</summary>
#
# 最后一列是各份所占的比例。在自带模型中，差距随噪声增大。噪声低时，图像自己已经显示出描述所说的内容，所以好的网络从描述中得益很少；噪声高时，描述是唯一的信息。
#
# 在小模型中正好反过来：噪声低时描述价值最大。一个可能的原因（这个实验并没有证明它）是：对固定的 $x_t$，$\hat x_0$ 的误差对应的 $\hat v$ 的误差是它的 $1/\sigma_t$ 倍，所以噪声低时，损失要求颜色非常精确。训练不多的网络还不能从图像中这么精确地读出颜色，描述就帮了它的忙。
#
# 所以差距大并不意味着样本符合描述。样本的颜色是在高噪声时决定的。正因为如此，`train.py` 在训练过程中用固定的提示词采样，第 9 节则用计数来检验。
#
# </details>

# %% [markdown]
# ## 6 · 引导
#
# 取第 4 节的两种预测。它们之差就是描述带来的改变。要让描述*更*起作用，就沿着这个方向走得比网络自己更远：
#
# $$\tilde\varepsilon = \varepsilon_\theta(x_t, \varnothing) + w\,\big(\varepsilon_\theta(x_t, c) - \varepsilon_\theta(x_t, \varnothing)\big) \tag{1}$$
#
# $w$ 叫做**引导系数**（guidance scale）。$w = 0$ 忽略描述，$w = 1$ 是有条件的预测，$w > 1$ 是外推。
#
# ### 用向量看引导
#
# 在平面上可以看清这一点，因为那里有现成的完美去噪器。设数据是三个团，都是标准差为 0.3 的正态分布，描述指定其中一个。在每个噪声水平上，最好的 $\hat x_0$ 是各团的平均，权重是加噪点 $x$ 来自这个团的概率 $p_t(k \,|\, x)$（第 1 章）。

# %%
BLOBS, WIDTH, NAMED = torch.tensor([[-1.0, -0.6], [1.0, -0.6], [0.0, 1.1]]), 0.3, 1
EVERYTHING, CAPTION = torch.tensor([1 / 3, 1 / 3, 1 / 3]), torch.tensor([0.0, 1.0, 0.0])  # 各个团的份额


def log_joint(x, level, shares):
    """log p_t(x, k)，其中 p_t(x, k) = share_k N(x; sqrt(alpha_bar) blob_k, variance I)，相差一个常数。x (N, 2) -> (N, 3)"""
    variance = (level.alpha * WIDTH) ** 2 + level.sigma**2
    return shares.log() - (x[:, None] - level.alpha * BLOBS).square().sum(2) / (2 * variance)


def perfect(x, level, shares):
    """干净点按这些份额来自各个团时，对点 x (N, 2) 的最好预测 (x0, eps)。"""
    variance = (level.alpha * WIDTH) ** 2 + level.sigma**2
    x0_of = BLOBS + level.alpha * WIDTH**2 / variance * (x[:, None] - level.alpha * BLOBS)  # (N, 3, 2)，每个团各一个
    x0 = (log_joint(x, level, shares).softmax(1)[:, :, None] * x0_of).sum(1)  # (N, 2)
    return x0, (x - level.alpha * x0) / level.sigma


point, level = torch.tensor([0.3, 1.2]), level_at(480)
uncond, cond = ([part[0] for part in perfect(point[None], level, shares)] for shares in (EVERYTHING, CAPTION))
show_vectors(point, level, uncond, cond, BLOBS, WIDTH, NAMED)

# %% [markdown]
# 左图中，三个箭头都从加噪点 $x_t$ 出发。“无条件”的箭头指向加噪数据密集的地方，“有条件”的箭头指向描述所指的加噪数据密集的地方。引导沿着从“无条件”到“有条件”的方向继续走（虚线）。右图是同一件事，用预测的干净点表示。$w = 1$ 时它在橙色的团里；$w$ 更大时，它沿直线继续移动，离开这个团，也离开所有数据。请记住这张图。
#
# ### 式 (1) 从何而来
#
# 第 1 章的**分数**是*加噪*图像密度的对数的梯度；网络的预测与分数只差一个因子：
#
# $$\nabla_x \log p_t(x) = -\frac{1}{\sigma_t}\,\mathbb{E}[\varepsilon \,|\, x_t = x] \approx -\frac{1}{\sigma_t}\,\varepsilon_\theta(x, \varnothing) \qquad\qquad \nabla_x \log p_t(x \,|\, c) \approx -\frac{1}{\sigma_t}\,\varepsilon_\theta(x, c) \tag{2}$$
#
# 对加噪图像 $x_t = x$ 和它的描述 $c$ 使用贝叶斯公式：
#
# $$p_t(c \,|\, x) = \frac{p_t(x \,|\, c)\; p(c)}{p_t(x)} \quad\Longrightarrow\quad \nabla_x \log p_t(c \,|\, x) = \nabla_x \log p_t(x \,|\, c) - \nabla_x \log p_t(x) \tag{3}$$
#
# （$p(c)$ 与 $x$ 无关，所以它的梯度为 0。）$p_t(c \,|\, x)$ 是加噪图像的**分类器**：给定这张加噪图像，这句描述的概率有多大？*它的对数的梯度*就是我们的两个分数之差，所以不必训练任何分类器。“无分类器引导”的名称由此而来。现在让分类器计入 $w$ 次：
#
# $$\nabla_x \log p_t(x) + w\, \nabla_x \log p_t(c \,|\, x) = \nabla_x \log p_t(x) + w\, \big(\nabla_x \log p_t(x \,|\, c) - \nabla_x \log p_t(x)\big) \tag{4}$$
#
# 乘以 $-\sigma_t$，再用 (2)，就得到式 (1)。所以在*每个噪声水平*上，引导都沿着 $p_t(x)\,p_t(c\,|\,x)^w$ 的分数走。至于样本是否因此服从 $p(x)\,p(c\,|\,x)^w$，那是另一个问题；第 7 节给出的回答是：不。
#
# 对固定的 $x_t$，$\varepsilon$、$x_0$ 和 $v$ 互为仿射函数（$\hat x_0 = (x_t - \sigma_t\hat\varepsilon)/\sqrt{\bar\alpha_t}$），而 (1) 中的权重 $w$ 与 $1 - w$ 之和为 1。所以 (1) 可以用于三者中的任何一个，结果相同。
#
# > **论文中的写法。** Ho & Salimans 从另一端数这个系数：$\tilde\varepsilon = (1 + w')\,\varepsilon_\theta(x_t, c) - w'\,\varepsilon_\theta(x_t, \varnothing)$（[2022](https://arxiv.org/abs/2207.12598)，式 6）。这就是 $w = 1 + w'$ 的 (1)，所以“关闭”是 $w = 1$，或者 $w' = 0$。本课程、`diffusers` 和 Stable Diffusion 都使用 $w$。比较数值之前，先弄清楚用的是哪一种。
#
# 在代码中，两半作为一个批量一起通过网络：


# %%
@torch.no_grad()
def guided_prediction(x, level, captions, w, negative=""):
    """式 (1)，用于网络的 v。x (B, 3, S, S) -> (B, 3, S, S)"""
    text = torch.cat([encoder([negative]).expand(len(x), -1, -1), encoder(captions)])  # (2 B, M, D)
    v = net(torch.cat([x, x]), torch.full((2 * len(x),), level.time), text=text)  # 所有图像，再来一遍
    uncond, cond = v.chunk(2)
    return uncond + w * (cond - uncond)


x, level, prompts = random(6, 3, size, size), level_at(800), list(real.captions)
v = guided_prediction(x, level, prompts, w=4.0)
through_v = level.alpha * x - level.sigma * v  # 先引导 v，再换算成 x0
cond, uncond = predict(x, level, prompts)[0], predict(x, level, [""])[0]
print(f"引导 v 与引导 x0 相差 {(through_v - (uncond + 4.0 * (cond - uncond))).abs().max():.1e}")
print(f"论文的写法（w' = 3）相差 {(through_v - ((1 + 3.0) * cond - 3.0 * uncond)).abs().max():.1e}")

# %% [markdown]
# [guidance.py](cfg_pokemon/guidance.py) 把这个公式写成了一个类；在采样器看来，它与别的网络没有区别。所以每种采样器都能与引导一起使用。我们用 `dpmpp_2m`，即 DPM-Solver++，它只需要评估网络很少的次数；第 3 章会推导它。下面是八条提示词，先是没有引导，再是有引导。同一列的图像从相同的噪声开始。

# %%
EVALUATIONS = 12  # 采样步数；有引导时，每步评估网络两次


def paint(prompts, w=3.0, **more):
    """每条提示词一张图像，[-1, 1] 中的 (N, 3, S, S)。不论提示词和 w 是什么，第 i 张图像都从相同的噪声开始。"""
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
short = ["红色，火\n蝙蝠翅膀", "蓝色，圆\n猫耳朵", "绿色，草\n卷尾巴", "紫色，幽灵\n2 角，3 眼",
         "黄色，条纹\n兔耳朵", "白色，毛茸茸\n冰（中文）", "粉色，妖精\n蝴蝶（中文）", "（空）\n"]  # fmt: skip
show_images(torch.cat([paint(prompts, 1.0), paint(prompts, 3.0)]), 8, short, ["w = 1", "w = 3"])

# %% [markdown]
# 逐列看一遍。提示词要求的东西，哪些在 $w = 1$ 时没有画出来，在 $w = 3$ 时画出来了？在最后一列，(1) 中的两种预测相等，所以 $w$ 不起作用。
#
# 训练从来没有超出 $w = 1$。那么 $w > 1$ 的图像来自哪个分布？

# %% [markdown]
# ## 7 · 引导采样的是哪个分布？
#
# 人们很自然地会把 (4) 理解为采样的方法，以为样本来自**倾斜分布**（tilted distribution）
#
# $$p^{(w)}(x_0) \;\propto\; p(x_0)\; p(c \,|\, x_0)^w \;\propto\; p(x_0 \,|\, c)^w\, p(x_0)^{1-w} \tag{5}$$
#
# 也就是干净图像的一种分布，其中描述计入 $w$ 次。许多文章都这样说。这是错的，在一维的例子里就能看出原因。
#
# ### 锐化与加噪不可交换
#
# 倾斜分布的采样器，需要的是它*加噪之后*的分数：先锐化，再加噪。而场 (4) 是另一个分布的分数：先加噪，得到 $p_t(x)$ 和 $p_t(c\,|\,x)$，然后锐化。下面的干净数据是两个钟形，描述指定右边的一个。对干净数据的分类器在每个钟形之内几乎是确定的，所以对干净分布做锐化，几乎不改变什么。而噪声高时，两个钟形互相重叠。

# %%
CENTRES, BELL, W = torch.tensor([-1.0, 1.0]), 0.3, 8.0
x0 = torch.linspace(-6, 6, 1201)  # 干净的点；加噪的点用同一网格
step = float(x0[1] - x0[0])


def normal(x, mean, std):
    return torch.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * (2 * torch.pi) ** 0.5)


def sharpen(of_all, of_caption):
    """p(x) p(c | x)^w，其中 p(c | x) = p(x | c) p(c) / p(x)，在网格上归一化。"""
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
        kernel = normal(x0[:, None], level.alpha * x0, level.sigma)  # q(x_t | x_0)，（加噪，干净）
        sharpened_first = kernel @ tilted * step
        noisy = [normal(x0, level.alpha * m, ((level.alpha * BELL) ** 2 + level.sigma**2) ** 0.5) for m in CENTRES]
        noised_first = sharpen((noisy[0] + noisy[1]) / 2, noisy[1])
    axis.fill_between(x0, (noisy[0] + noisy[1]) / 2, color="0.85", label="$p_t(x)$")
    axis.plot(x0, sharpened_first, color="C2", label="先锐化，再加噪")
    axis.plot(x0, noised_first, color="C0", linestyle="--", label="先加噪，再锐化")
    axis.set(title=f"t = {t}", xlim=(-2.5, 4), yticks=[], xlabel="x")
    means = [float((x0 * density).sum() * step) for density in (sharpened_first, noised_first)]
    print(f"t = {t:3}：先锐化再加噪的均值 {means[0]:.2f}，先加噪再锐化的均值 {means[1]:.2f}")
axes[0].set_ylabel("密度")
axes[3].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# 在 $t = 0$，两者相同。有噪声时，虚线偏向右边：在两个钟形重叠的地方，$p_t(c\,|\,x)$ 向右一直增长，远远超出钟形，而 $w$ 又放大了它的梯度。所以噪声高时，引导的场把样本推过了数据。后来噪声低了，$p_t(c\,|\,x)$ 几乎处处为 1，梯度消失，只剩下普通的有条件分数；它使样本移动得太少，不足以抵消先前的推力。
#
# ### 三个团
#
# 现在回到平面。我们用五行代码的确定性采样器采样：把 $x_t$ 拆成 $\hat x_0$ 和 $\hat\varepsilon$，再在下一个水平上混合（DDIM；第 3 章会推导它）。除了引导的样本，我们还画出倾斜分布 (5) 的样本：取 $p(x_0)$ 的许多干净点，再以权重 $p(c\,|\,x_0)^w$ 重新抽取。


# %%
def sample(denoise, x, steps=100):
    """从噪声 x 开始的确定性采样，denoise(x, level) -> (x0, eps)。"""
    levels = [level_at(round(1000 * (1 - i / steps))) for i in range(steps + 1)]
    for now, then in pairwise(levels):
        x0, eps = denoise(x, now)
        x = then.alpha * x0 + then.sigma * eps
    return x


def guided(w):
    """用完美去噪器的式 (1)。"""

    def denoise(x, level):
        uncond, cond = perfect(x, level, EVERYTHING), perfect(x, level, CAPTION)
        return [a + w * (b - a) for a, b in zip(uncond, cond, strict=True)]  # x0 的，和 eps 的

    return denoise


def tilted_samples(w, n=2000, many=100_000):
    """p(x0) p(c | x0)^w 的样本。"""
    blob = torch.arange(many) % 3
    x0 = BLOBS[blob] + WIDTH * random(many, 2, seed=2)
    weights = (w * log_joint(x0, level_at(0), EVERYTHING).log_softmax(1)[:, NAMED]).exp()  # p(c | x0)^w
    return x0[torch.multinomial(weights, n, generator=torch.Generator().manual_seed(0))]


SCALES = (0.0, 1.0, 2.0, 4.0, 8.0)
noise = random(2000, 2)
clouds = {"倾斜分布 (5)": {f"w = {w:g}": tilted_samples(w) for w in SCALES}}
clouds["引导的样本"] = {f"w = {w:g}": sample(guided(w), noise) for w in SCALES}
show_blobs(clouds, BLOBS, WIDTH, NAMED)
for row, some in clouds.items():
    for title, points in some.items():
        inside = ((points - BLOBS[NAMED]).norm(dim=1) < 2.448 * WIDTH).double().mean()
        x, y = points.mean(0).tolist()
        print(
            f"{row:9} {title}：{inside:4.0%} 在橙色圆内，均值 ({x:+.2f}, {y:+.2f})，标准差 {points.std(0).mean():.2f}"
        )

# %% [markdown]
# （每个圆含有该团的 95 %。）$w = 0$ 和 $w = 1$ 时，两行一致：完美的网络加上引导，画出所有的团，或者恰好画出描述指定的团。$w$ 更大时，倾斜分布仍留在橙色圆内，因为那里的每个干净点都已经完全符合描述。引导的样本却离开了它。它们*远离其他的团*，还挤在一起：它们**过冲**（overshoot），并失去**多样性**（variety）。这里的网络是完美的，所以这两点都是引导本身的效应。
#
# > **论文中的写法。** [Bradley & Nakkiran 2024](https://arxiv.org/abs/2408.09000) 证明，带引导的 DDIM 和 DDPM 都不产生倾斜分布（他们用 $\gamma$ 表示我们的 $w$，并把它叫做 gamma-powered），而且两种采样器产生的分布不同。他们还说明了引导实际上做了什么：在步长趋于零的极限下，带引导的 DDPM 等于有条件模型的一个 DDIM 步，再加上一个朝着锐化的*加噪*分布的朗之万步。
#
# ### 一个钟形的计算
#
# 差别有多大？有一种情形可以手算。设数据是数 $x_0 \sim \mathcal{N}(0, 1)$，描述是对这个数的粗略说明，使得给定 $c$ 时 $x_0$ 服从 $\mathcal{N}(m, s^2)$，其中 $s < 1$。描述*必须*比全体窄：对所有描述取平均，$m^2 + s^2$ 必须等于全体的方差 1。（如果两个钟形一样宽，一个在 0，一个在 $m \neq 0$，就违反了贝叶斯公式，因为那时 $p(c\,|\,x_0) \propto p(x_0\,|\,c)/p(x_0)$ 会无限增长。）
#
# **倾斜。** (5) 的对数是 $-\frac{w}{2}(x_0 - m)^2/s^2 - \frac{1-w}{2}x_0^2$ 加一个常数。它也是一个钟形，其
#
# $$\text{方差为 } \frac{1}{1 + w\,(1/s^2 - 1)} \qquad\qquad \text{均值为 } \frac{w\, m/s^2}{1 + w\,(1/s^2 - 1)} \tag{6}$$
#
# **引导。** 在每个水平上，$p_t(x) = \mathcal{N}(0, 1)$，$p_t(x\,|\,c) = \mathcal{N}(\sqrt{\bar\alpha_t}\, m,\; v_t)$，其中 $v_t = 1 - \bar\alpha_t (1 - s^2)$。引导的分数是 $x$ 的线性函数，所以样本始终是正态的。确定性采样器遵循一个微分方程，解这个方程，得到标准差 $s^w$。代码会检验这两个结果。
#
# <details><summary>计算过程</summary>
#
# 记 $a = \sqrt{\bar\alpha_t}$，于是 $\sigma_t^2 = 1 - a^2$；再记 $k = 1 - s^2$。对很小的一步，上面的采样器给出 $dx = \hat x_0\, da + \hat\varepsilon\, d\sigma$，其中 $d\sigma = -\frac{a}{\sigma}\, da$。代入 $\hat\varepsilon = -\sigma\, \mathrm{score}$ 和 $\hat x_0 = (x + \sigma^2\, \mathrm{score})/a$，得到 $dx/da = (x + \mathrm{score})/a$。引导的分数是 $-x + w\,\big(x - (x - a m)/v\big)$，其中 $v = 1 - a^2 k$，所以 $dx/da = w\,(m - a k x)/(1 - a^2 k)$。两个解之差满足 $d\ln|\Delta x| = -w\, \frac{a k}{1 - a^2 k}\, da = d\,\tfrac w2 \ln(1 - a^2k)$。从 $a = 0$ 到 $1$ 积分，所有的差都缩小到 $(1 - k)^{w/2} = s^w$ 倍。开始时噪声的标准差为 1，所以样本的标准差为 $s^w$。
#
# </details>

# %%
M, S = 0.7, 0.6


def bell(x, level, mean, std):
    """x0 服从 N(mean, std^2) 时的完美预测 (x0, eps)。"""
    variance = (level.alpha * std) ** 2 + level.sigma**2
    x0 = mean + level.alpha * std**2 / variance * (x - level.alpha * mean)
    return x0, (x - level.alpha * x0) / level.sigma


def guided_bell(w):
    """式 (1)，用全部数据和描述所指数据的完美去噪器。"""
    return lambda x, level: [
        a + w * (b - a) for a, b in zip(bell(x, level, 0.0, 1.0), bell(x, level, M, S), strict=True)
    ]


_, axes = plt.subplots(1, 4, figsize=(11, 2.2), layout="constrained", sharey=True)
line = torch.linspace(-3, 3, 400)
for axis, w in zip(axes, (0, 1, 2, 4), strict=True):
    x = sample(guided_bell(w), random(20_000, seed=3), steps=250)
    precision = 1 + w * (1 / S**2 - 1)
    mean, std = w * M / S**2 / precision, precision**-0.5
    axis.hist(x.numpy(), bins=80, range=(-3, 3), density=True, color="C0", alpha=0.5, label="引导的样本")
    axis.plot(line, normal(line, mean, std), color="C2", label="倾斜分布 (6)")
    axis.plot(line, normal(line, 0.0, 1.0), color="0.6", linewidth=0.8, label="全部数据")
    axis.plot(line, normal(line, M, S), color="C1", linewidth=0.8, label="描述所指的数据")
    axis.set(title=f"w = {w}", xlabel="$x_0$")
    print(
        f"w = {w}：引导：均值 {x.mean():.3f}，标准差 {x.std():.3f}（理论值 {S**w:.3f}）；倾斜：{mean:.3f} 和 {std:.3f}"
    )
axes[0].set_ylabel("密度")
axes[0].legend(fontsize=7, loc="upper left")
plt.show()

# %% [markdown]
# **问题。** 既然引导使完美的网络变差，从业者为什么还用 $w > 1$？
#
# <details><summary>答案</summary>
#
# 真实的网络在 $w = 1$ 时并不完美，能力有限的网络往往覆盖得太多：它也会产生位于各个峰之间的图像，这些图像不属于任何描述。[Karras et al. 2024](https://arxiv.org/abs/2406.02507) 认为，引导去掉了这样的图像，因为无条件模型的这种错误比有条件模型更严重，两者之差因此背离这些错误。他们的证据是：不用无条件模型，而用*同一模型的一个较差的版本*来引导，质量会提高，多样性却没有损失。此外，用户想要的往往是提示词的典型例子，而不是多样性。
#
# </details>

# %% [markdown]
# ## 8 · 别的梯度：分类器与损失
#
# ### 分类器引导
#
# 式 (4) 适用于任何对加噪图像的分类器。如果有一个网络 $p_\phi(c \,|\, x_t)$，它是在所有水平的*加噪*图像上训练的，就可以取它的梯度：
#
# $$\tilde\varepsilon = \varepsilon_\theta(x_t) - w\, \sigma_t\, \nabla_{x_t} \log p_\phi(c \,|\, x_t) \tag{7}$$
#
# > **论文中的写法。** [Dhariwal & Nichol 2021](https://arxiv.org/abs/2105.05233)，关于 DDIM 有条件采样的一节。这种方法出现得更早；后来无分类器引导取代了它，因为不必再训练第二个网络。
#
# 在平面上，精确的分类器就是对 `log_joint` 做 softmax。用它，(7) 给出的结果必须与 (1) 完全相同。


# %%
def classifier_guided(w):
    """用精确分类器的式 (7)，由自动微分求梯度。"""

    def denoise(x, level):
        x = x.detach().requires_grad_(True)
        log_p = log_joint(x, level, EVERYTHING).log_softmax(1)[:, NAMED]  # log p_t(c | x)，(N,)
        (gradient,) = torch.autograd.grad(log_p.sum(), x)  # 求和，因为每个点只依赖它自己
        x = x.detach()
        eps = perfect(x, level, EVERYTHING)[1] - w * level.sigma * gradient
        return (x - level.sigma * eps) / level.alpha, eps

    return denoise


x, level = random(2000, 2), level_at(600)
by_classifier, without = classifier_guided(4.0)(x, level)[1], guided(4.0)(x, level)[1]
print(f"引导后的 eps 的最大差别：{(by_classifier - without).abs().max():.1e}")

# %% [markdown]
# ### 损失引导
#
# 为每一个愿望都训练一个加噪图像的分类器，代价太大。但是，想要的东西往往可以写成*干净*图像的损失 $L(x_0)$：身体应当是这种颜色；图像应当在某些像素上与给定的图像一致；它的 CLIP 嵌入应当接近某段文本的嵌入。做法是，在*预测的*干净图像上计算损失 $L(\hat x_0(x_t))$，并把 $e^{-s\,L}$ 当作分类器：
#
# $$\tilde\varepsilon = \hat\varepsilon + s\, \sigma_t\, \nabla_{x_t}\, L\big(\hat x_0(x_t)\big) \qquad\qquad \hat x_0(x_t) = \frac{x_t - \sigma_t\, \hat\varepsilon(x_t)}{\sqrt{\bar\alpha_t}} \tag{8}$$
#
# 对 $x_t$ 的梯度要*穿过网络*，所以每一步还要付出一次反向传播的代价。求导的对象是 $x_t$ 而不是 $\hat x_0$，这一点很重要。对最好的去噪器来说，$\hat x_0$ 对 $x_t$ 的导数等于 $\sqrt{\bar\alpha_t}/\sigma_t^2$ 乘以给定 $x_t$ 时 $x_0$ 的协方差矩阵。代入 (8)，预测的图像移动了
#
# $$\tilde x_0 - \hat x_0 = -s\;\mathrm{Cov}[x_0 \,|\, x_t]\; \nabla L(\hat x_0) \tag{9}$$
#
# 所以，损失只能改变在噪声之下尚未确定的部分。噪声高时，可以改变整个身体的颜色；噪声低时，什么也动不了。
#
# > **论文中的写法。** (8) 就是 universal guidance 的前向引导（[Bansal et al. 2023](https://arxiv.org/abs/2302.07121)）。如果 $L = \lVert y - A(x_0)\rVert^2$ 来自一次测量，它就能求解局部重绘、去模糊之类的反问题，这叫做扩散后验采样（diffusion posterior sampling；[Chung et al. 2022](https://arxiv.org/abs/2209.14687)）。两者都是近似：$p_t(c\,|\,x_t)$ 是 $e^{-sL(x_0)}$ 对所有可能的 $x_0$ 的均值，而不是它在均值 $\hat x_0$ 处的值。
#
# 我们要求一种任何描述都没有提到的颜色，青绿色（turquoise），位置在图像中部，也就是身体所在的地方。在最初几步，因子 $1/\sqrt{\bar\alpha_t}$ 会放大网络导数的每一点误差，所以把结果截断到 $[-1, 1]$。

# %%
TURQUOISE = 2 * torch.tensor([0.15, 0.75, 0.70]) - 1  # [-1, 1] 中的红、绿、蓝
MIDDLE = slice(size * 3 // 8, size * 5 // 8)


def colour_loss(x0):
    """每张图像的中部离青绿色有多远，(B, 3, S, S) -> (B,)"""
    return (x0[:, :, MIDDLE, MIDDLE].mean((2, 3)) - TURQUOISE).square().sum(1)


def loss_guided(loss, s, caption=""):
    """式 (8)。"""
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
    print(f"s = {s:2}：样本的损失 {colour_loss(drawn.clamp(-1, 1)).mean():.3f}")
show_images(torch.cat(list(rows.values())), 5, down=[f"s = {s}" for s in rows])

# %% [markdown]
# 这里没有用任何描述，网络也从未为此训练过。身体没有变成青绿色：没有哪只小怪兽是这种颜色，而由 (9)，损失只能沿着模型认为可能的方向移动预测。它选出了可能的颜色中最接近的几种。
#
# **问题。** 如果 $s$ 大得多，会发生什么？为什么？
#
# <details><summary>答案</summary>
#
# 推力会超出 (9) 这个线性近似成立的区域。预测的图像被推出网络所熟悉的范围，于是出现伪影。可以试一试 `s = 5000`。补救办法是减小 $s$，并增加步数。
#
# </details>

# %% [markdown]
# ## 9 · 图像画出提示词要求的内容了吗？
#
# 因为训练数据是我们的程序画的，所以还可以训练一个**分类器**，让它说出一张图像的全部十一个属性（[creature_classifier.py](../common/evaluate/creature_classifier.py)）。训练它的小怪兽与训练这里各模型的不同，而且包含所有组合，所以它对蓝色火属性小怪兽没有偏见。它有多可靠？在它从未见过的真实小怪兽上：

# %%
found = read_attributes(classifier, unseen.pixels)[0]  # (150, 11)：每个属性最可能的取值
accuracy = (found == unseen.attributes.table).double().mean(0)
worst = "、".join(f"{NAMES[i]}（{accuracy[i]:.0%}）" for i in accuracy.argsort()[:3].tolist())
print(f"{accuracy.mean():.1%} 的情形判断正确；最差的是 {worst}")

# %% [markdown]
# 一张图像只按它的提示词*提到*的内容来衡量。**属性准确率**（attribute accuracy）是正确属性的比例 $k/n$：所有提示词一共提到 $n$ 个属性，分类器在图像中找到了其中的 $k$ 个。
#
# ### 一个比例有多可靠？
#
# 8 个中有 7 个正确，这样的比例可能来自一个正确率为 60 % 的模型，也可能来自 99 % 的模型。**95 % 置信区间**在 95 % 的实验中包含真实的比例。如果各次情形相互独立，就用威尔逊区间，取 $z = 1.96$：
#
# $$\frac{1}{1 + z^2/n}\left(\frac kn + \frac{z^2}{2n} \pm z \sqrt{\frac{\frac kn\left(1 - \frac kn\right)}{n} + \frac{z^2}{4n^2}}\,\right) \tag{10}$$
#
# 更简单的 $\frac kn \pm z\sqrt{\frac kn(1-\frac kn)/n}$ 在 $k = n$ 时声称完全确定。在本课程中，± 和括号总是表示 95 % 置信区间。


# %%
def wilson(k, n, z=1.96):
    """比例 k / n 及其 95 % 置信区间 (10)。"""
    share = k / n
    middle, reach = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return share, (middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)


for k, n in ((8, 8), (7, 8), (70, 80), (700, 800)):
    print("{} / {}：{:.0%}（{:.0%} 到 {:.0%}）".format(k, n, *wilson(k, n)))

# %% [markdown]
# 现在用 20 条描述测试小怪兽的提示词，一半是中文，每条画两张，引导系数有四种。先细看其中三条。

# %%
from common.evaluate.prompt_accuracy import chance_accuracy, make_prompts, pooled_accuracy

N = 20
test = make_prompts("test", N, "both", size)  # 描述，以及它们提到的属性
drawn = {w: paint(test.captions * 2, w) for w in (0.0, 1.0, 3.0, 8.0)}  # 每个系数 (2 N, 3, S, S)
found = read_attributes(classifier, drawn[3.0][:3])[0]
for i in range(3):
    print(f"{i + 1}  {test.captions[i]}")
    for k in torch.nonzero(test.mentioned[i]).flatten().tolist():
        values, wanted, seen = ATTRIBUTES[NAMES[k]], int(test.wanted[i, k]), int(found[i, k])
        print(f"      {NAMES[k]:11}{values[wanted]:11}{'正确' if wanted == seen else '分类器认为是：' + values[seen]}")
shown = torch.cat([to_float(test.real[:3]), *(some[:3] for some in drawn.values())])
show_images(shown, 3, ["提示词 1", "提示词 2", "提示词 3"], ["真实图像", *(f"w = {w:g}" for w in drawn)])

# %% [markdown]
# 同一张图像的各个属性并不独立，所以对全部属性一起用威尔逊区间会太窄。我们改用**自助法**（bootstrap）：从 20 条提示词中有放回地重新抽取 20 条，重复一千次，看结果变化多大。两个参照帮助理解这些数。*上*参照是同样描述的真实图像的准确率。*下*参照拿真实图像与彼此的描述比较；一个画得好却不看文本的模型，得到的就是这个数。


# %%
def prompt_accuracy(prompts, pictures):
    """每条提示词两张图 (2 N, 3, S, S) 的属性准确率，以及对提示词做自助法的置信区间。"""
    found = read_attributes(classifier, pictures)[0].unflatten(0, (2, -1))  # (2, N, 11)
    right = ((found == prompts.wanted) & prompts.mentioned).sum(0)  # (N, 11)：两张中有几张正确
    return pooled_accuracy(right, 2 * prompts.mentioned)


upper = prompt_accuracy(test, torch.cat([test.real, test.real])).value
lower = chance_accuracy(classifier, test)["accuracy"]
measured = {w: prompt_accuracy(test, pictures) for w, pictures in drawn.items()}
values, low, high = (
    np.array([getattr(each, name) for each in measured.values()]) for name in ("value", "low", "high")
)
plt.figure(figsize=(6, 2.8), layout="constrained")
plt.errorbar(list(drawn), values, (values - low, high - values), marker="o", capsize=3)
plt.axhline(upper, color="0.4", linestyle="--", label="真实图像")
plt.axhline(lower, color="0.4", linestyle=":", label="真实图像，别的描述")
plt.gca().set(xlabel="引导系数 w", ylabel="属性准确率", ylim=(0, 1.03), xticks=list(drawn))
plt.legend(loc="center right")
plt.show()
for w, each in measured.items():
    print(f"w = {w:g}：{each.value:.1%}（{each.low:.1%} 到 {each.high:.1%}）")
print(f"真实图像 {upper:.1%}，真实图像配别的描述 {lower:.1%}；共提到 {int(test.mentioned.sum())} 个属性")

# %% [markdown]
# 这些区间能确定无疑地说明，模型用到了描述：把 $w = 1$ 与 $w = 0$ 以及下参照相比较即可。如果两个系数的区间有相当大的重叠，就*没有*证明两者不同。要找最好的系数，需要更多的图像：`python 02_cfg_pokemon/evaluate.py` 对每一类取 200 条提示词，结果见 [RESULTS.md](RESULTS.md) 中的表。
#
# ## 10 · 负面提示词
#
# 在 (1) 中，空文本代表“任何东西”。它不一定要是空的。在那里放一句*不*想要的描述，引导就会离开它：
#
# $$\tilde\varepsilon = \varepsilon_\theta(x_t, c_{\text{neg}}) + w\,\big(\varepsilon_\theta(x_t, c) - \varepsilon_\theta(x_t, c_{\text{neg}})\big) \tag{11}$$
#
# 这就是**负面提示词**（negative prompt）。它不需要训练，也不需要新的代码：只要批量的前一半换一段文本。按 (5) 的写法，预测在每个水平上遵循 $p_t(x\,|\,c)^w / p_t(x\,|\,c_{\text{neg}})^{w-1}$：非常符合提示词、很不符合负面提示词的图像。
#
# 下面的提示词没有说有没有翅膀。要排除所有的翅膀，负面提示词必须说出数据中的每一种。第三行则把这个要求写在提示词里，说法与训练用的文本描述相同；输出的最后一行换了一种说法。同一列的图像从相同的噪声开始，所以还可以逐张比较：最后一个数是平均的变化，附有区间。如果区间不包含 0，这个变化就不是偶然。

# %%
prompt, n, wings = "a green creature", 40, NAMES.index("wings")
every_kind = "a creature with bat wings, feathered wings, butterfly wings"
rows = {
    "没有负面提示词": paint([prompt] * n),
    "负面：各种翅膀": paint([prompt] * n, negative_prompt=every_kind),
    "提示词：but without wings": paint([prompt + " but without wings"] * n),
    "另一种说法：without wings": paint([prompt + " without wings"] * n),
}
winged = {name: (read_attributes(classifier, pictures)[0][:, wings] != 0).double() for name, pictures in rows.items()}
for name, each in winged.items():
    k, difference = int(each.sum()), each - winged["没有负面提示词"]
    change = f"{difference.mean():+.0%} ± {1.96 * difference.std() / n**0.5:.0%}"
    print("{:24} 有翅膀的 {:2} / {}：{:4.0%}（{:.0%} 到 {:.0%}）；变化 {}".format(name, k, n, *wilson(k, n), change))
show_images(
    torch.cat([pictures[:8] for pictures in rows.values()][:3]),
    8,
    down=[name.replace("：", "：\n") for name in rows][:3],
)

# %% [markdown]
# **问题。** 比较各列。负面提示词还改变了什么？在提示词里写 *but without wings*（但没有翅膀），对这个模型为什么有效，而 Stable Diffusion 的用户却说效果相反？
#
# <details><summary>答案</summary>
#
# 整张图像都会远离负面描述所代表的一切，所以姿势和其他部分也会改变。它是一种推力，而不是一种保证。*But without wings* 在我们的训练描述中出现过，所以文本编码器可以学会它。去掉 *but*，这种说法就少了二十倍（20,000<!--given--> 条描述中有 61<!--given--> 条，前者有 1,213<!--given--> 条），输出中看不到超出区间的效果：编码器学到的是一些短语，而不是否定的规则。照片的描述很少说缺少什么。用照片训练的模型，读到的主要是 *wings* 这个词，这时负面提示词是更好的办法。对你自己的模型，请像我们这样测量一下。
#
# </details>
#
# ## 11 · 引导的代价与补救办法
#
# 第 7 节在完美的网络上发现了引导的两种效应：过冲和多样性的损失。图像中会出现它们吗？我们比较两个模型：第 5 节的小模型训练得很少，另一个是自带模型。

# %%
few = [0, 3, 4, 6, 7]  # 十种颜色中五种的下标
some_prompts = [COLOUR_PROMPTS[i] for i in few]
for model in ("小模型", "自带模型"):
    rows = {
        w: (draw_small(average, some_prompts, w) if model == "小模型" else paint(some_prompts, w))
        for w in (1.0, 3.0, 8.0)
    }
    print(f"{'第 5 节的小模型' if model == '小模型' else '自带模型'}：")
    display(show_images(torch.cat(list(rows.values())), 5, [COLOURS[i] for i in few], [f"w = {w:g}" for w in rows]))

# %% [markdown]
# 在小模型中，$w$ 大的影响一眼就看得出来：颜色刺眼，眼睛之类的细节消失在平涂的色块里。请在自带模型中找找同样的现象。要得到数值，我们对每张图像用四种度量：**亮度**（brightness）和**饱和度**（saturation），都是对像素的平均；**截断**（clipped）的颜色值，即 0 或 255，所占的比例；**多样性**（variety），即同一提示词的图像之间的标准差。我们画出*与 $w = 1$ 之差，提示词相同，噪声也相同*。这样成对的差，变化比度量本身小得多。


# %%
def measures(pictures, repeats):
    """P 条提示词各 repeats 张图，逐条给出亮度、饱和度、截断的比例和多样性。

    pictures：[-1, 1] 中的 (repeats P, 3, S, S) -> {name: (P,)}
    """
    p = ((pictures.clamp(-1, 1) + 1) / 2).unflatten(0, (repeats, -1))  # (repeats, P, 3, S, S)
    return {
        "亮度": p.mean((0, 2, 3, 4)),
        "饱和度": (p.amax(2) - p.amin(2)).mean((0, 2, 3)),
        "截断的比例": ((p < 1 / 510) | (p > 1 - 1 / 510)).double().mean((0, 2, 3, 4)),
        "多样性": p.var(0).mean((1, 2, 3)).sqrt(),
    }


def paired(some, others):
    """差的均值，及其 95 % 置信区间的半宽。"""
    difference = (some - others).double()
    return float(difference.mean()), float(1.96 * difference.std() / len(difference) ** 0.5)


small_drawn = {w: draw_small(average, COLOUR_PROMPTS * 4, w) for w in (1.0, 3.0, 8.0)}
models = {
    "小模型": {w: measures(pictures, 4) for w, pictures in small_drawn.items()},
    "自带模型": {w: measures(pictures, 2) for w, pictures in drawn.items() if w > 0},
}
_, axes = plt.subplots(1, 4, figsize=(11, 2.5), layout="constrained")
for axis, key in zip(axes, models["小模型"][1.0], strict=True):
    for (name, at), colour in zip(models.items(), ("C3", "C0"), strict=True):
        differences = [paired(at[w][key], at[1.0][key]) for w in at]
        axis.errorbar(
            list(at), *np.array(differences).T, color=colour, marker="o", markersize=4, capsize=2, label=name
        )
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.set(title=key, xlabel="引导系数 w", xticks=(1, 3, 8))
axes[0].set_ylabel("与 w = 1 之差")
axes[1].legend(fontsize=8)
plt.show()
for name, at in models.items():
    print(
        f"{name}，w = 8 与 w = 1 相比：",
        "，".join("{} {:+.3f} ± {:.3f}".format(key, *paired(at[8.0][key], at[1.0][key])) for key in at[8.0]),
    )

# %% [markdown]
# 误差棒不跨过 0 处的横线，就表明有差别。**问题。** 第 7 节的效应，你在哪个模型中看到了哪些？
#
# <details><summary>答案</summary>
#
# 在小模型中，大的 $w$ 使饱和度和截断的比例升高，幅度远大于自带模型。学得不多的网络会出错，它的两种预测之差就含有这些错误，而 $w$ 把它们放大。在小模型中，多样性的损失可能被掩盖，因为颜色变得更极端时，像素的标准差也会增大。在自带模型中，变化较小。请从图中判断，这么多图像究竟能证明哪些变化：误差棒跨过 0 处的横线，意思是变化*没有得到证明*，而不是没有变化。
#
# </details>
#
# ### 补救办法
#
# 最简单的补救办法是减小 $w$。其他办法保留大的 $w$，而限制它的影响：
#
# * **动态阈值**（dynamic thresholding；[Saharia et al. 2022](https://arxiv.org/abs/2205.11487)，第 2.3 节）。把 $\hat x_0$ 截断到 $[-1, 1]$，会把超出的像素全部压平。改为：设 $q$ 是 $|\hat x_0|$ 的分位数，图像中 99.5 %<!--given--> 的值在它以下，$r = \max(q, 1)$。先截断到 $[-r, r]$，再除以 $r$：
#   $$\hat x_0 \leftarrow \mathrm{clip}(\hat x_0,\, -r,\, r)\,/\,r \tag{12}$$
# * **引导重缩放**（guidance rescale；[Lin et al. 2023](https://arxiv.org/abs/2305.08891)，第 3.4 节）。引导使预测在一张图像各像素上的标准差增大。把它缩放回有条件预测的标准差，或者只缩放其中的一部分 $\phi$：
#   $$\tilde v_{\text{rescaled}} = \tilde v\; \frac{\mathrm{std}(v_{\text{cond}})}{\mathrm{std}(\tilde v)} \qquad\qquad \phi\, \tilde v_{\text{rescaled}} + (1 - \phi)\, \tilde v \tag{13}$$
# * **引导区间**（guidance interval；[Kynkäänniemi et al. 2024](https://arxiv.org/abs/2404.07724)）。只在中等的噪声水平上引导，即下限 $< \sigma_t/\sqrt{\bar\alpha_t} \le$ 上限，其他地方用 $w = 1$。在高噪声时，引导要付出多样性的代价；在低噪声时，它几乎不改变什么。这样还能少评估几次网络。
#
# 从业者常说，引导的样本偏*暗*，原因是训练数据做了增强（[出处与测量](../docs/claims.zh.md#引导的样本偏暗是因为数据增强)）。我们的训练没有用任何数据增强，所以你在这里看到的现象不可能由增强引起。第二个可疑的原因是对 $\hat x_0$ 的截断：图像过冲得越多，截断去掉的就越多。不加截断地采样，可以检验这一点。

# %%
remedies = {
    "w = 8，不截断": {"clip_x0": False},
    "w = 8，动态阈值": {"clip_x0": "dynamic"},
    "w = 8，重缩放，φ = 0.7": {"rescale": 0.7},
    "w = 8，区间 0.3 到 5": {"interval": (0.3, 5.0)},
}


def show_remedies(found, at_one):
    """found：{名称: (准确率及置信区间, 各项度量)}"""
    print(f"{'':20}{'属性正确（95 %）':>19}{'亮度':>16}{'饱和度':>15}{'多样性':>15}   （与 w = 1 之差）")
    for name, (share, each) in found.items():
        columns = "".join(
            "{:+10.3f} ± {:.3f}".format(*paired(each[key], at_one[key])) for key in ("亮度", "饱和度", "多样性")
        )
        print(f"{name:18}{share[0]:>8.0%}（{share[1]:.0%} 到 {share[2]:.0%}）{'':2}{columns}")


def right_colours(pictures):
    """COLOUR_PROMPTS * 4 的图像中，分类器认出正确颜色的比例及其置信区间。"""
    found = read_attributes(classifier, pictures)[0][:, NAMES.index("colour")]
    return wilson(int((found == torch.arange(10).repeat(4)).sum()), 40)


by_remedy = {f"w = {w:g}": pictures for w, pictures in small_drawn.items()}
by_remedy |= {name: draw_small(average, COLOUR_PROMPTS * 4, 8.0, **more) for name, more in remedies.items()}
found = {name: (right_colours(pictures), measures(pictures, 4)) for name, pictures in by_remedy.items()}
print("小模型")
show_remedies(found, found["w = 1"][1])
show_images(
    torch.cat([pictures[:10] for pictures in by_remedy.values()]),
    10,
    COLOURS,
    [name.replace("，", "，\n", 1) for name in by_remedy],
)

# %% [markdown]
# **问题。** 哪些补救办法对小模型有用？代价是什么？
#
# <details><summary>答案</summary>
#
# 动态阈值使饱和度下降，但图像变得又灰又暗。重缩放在这里没有使饱和度下降，还出现了彩色的斑点。不加截断时，饱和度仍然很高，所以截断不是偏移的唯一原因。使用引导区间时，饱和度的偏移平均来说较小，但它的 95 % 置信区间与单纯用 $w = 8$ 时的重叠，所以没有证明两者不同；准确率不变。$w = 3$ 更简单，而且这两项的平均值都好于引导区间。
#
# </details>
#
# 对自带模型也做同样的比较，只用害处最小的补救办法，即引导区间。

# %%
by_remedy = {f"w = {w:g}": pictures for w, pictures in drawn.items() if w > 0}
by_remedy["w = 8，区间 0.3 到 5"] = paint(test.captions * 2, 8.0, interval=(0.3, 5.0))
found = {name: (prompt_accuracy(test, pictures), measures(pictures, 2)) for name, pictures in by_remedy.items()}
print("自带模型")
show_remedies({name: ((a.value, a.low, a.high), each) for name, (a, each) in found.items()}, found["w = 1"][1])
visited = [
    level.sigma / level.alpha for level in pipeline.noise_levels(SamplingConfig(sampler=f"dpmpp_2m:{EVALUATIONS}"))
][:-1]
print(f"区间内的引导步数：{sum(0.3 < ratio <= 5 for ratio in visited)} / {EVALUATIONS}")

# %% [markdown]
# 请同时看两列。一种补救办法如果恢复了颜色，却失去了 $w = 8$ 的准确率，就等于什么也没有得到：减小 $w$ 也能这样。用 200 条提示词做的比较在 [RESULTS.md](RESULTS.md) 中。
#
# ## 12 · 训练中从未出现过的组合
#
# 训练集中没有*蓝色的火属性小怪兽*。它有蓝色的小怪兽，也有不是蓝色的火属性小怪兽。只靠记忆图像的网络，在这里就没有东西可画。

# %%
never = [f"a {colour} {element} creature" for element, colour in NEVER_TOGETHER.items()]
labels = [f"{colour}\n{element}" for element, colour in NEVER_TOGETHER.items()]
show_images(torch.cat([paint(never, w) for w in (1.0, 3.0)]), 8, labels, ["w = 1", "w = 3"])

# %% [markdown]
# 每张图像是否两者都有，既有颜色，*又有*元素？我们用留出的小怪兽的描述来计数（它们提到的不只是这两个词），并与测试集的描述比较，后者的组合是训练中出现过的那一类。碰巧正确的机会是：颜色为十分之一，元素为八分之一，两者都对为八十分之一。（同一提示词的两张图像不完全独立，所以这里的威尔逊区间略微偏窄。）

# %%
held = make_prompts("heldout", N, "both", size)
both = [NAMES.index("colour"), NAMES.index("element")]
print(f"{'':20}{'属性正确（95 %）':20}颜色和元素都正确（95 %）")
for name, prompts, w, pictures in [
    *(("训练过的类型", test, w, drawn[w]) for w in (1.0, 3.0)),
    *(("从未见过的组合", held, w, paint(held.captions * 2, w)) for w in (1.0, 3.0)),
]:
    each = prompt_accuracy(prompts, pictures)
    pairs = (read_attributes(classifier, pictures)[0][:, both] == prompts.wanted[:, both].repeat(2, 1)).all(1)
    k = int(pairs.sum())
    share = "{} / {}：{:.0%}（{:.0%} 到 {:.0%}）".format(k, 2 * N, *wilson(k, 2 * N))
    print(f"{name + f'，w = {w:g}':15}{f'{each.value:.1%}（{each.low:.1%} 到 {each.high:.1%}）':24}{share}")

# %% [markdown]
# **问题。** 为什么这在这里比在照片上容易？
#
# <details><summary>答案</summary>
#
# 在我们的数据中，各个属性相互独立，所以每个词都与其他属性的许多取值一起出现过，可以单独学会。在照片中，属性互相依赖：香蕉是黄的，蓝色的香蕉就很难画。图像多、描述多样，会有帮助。在 100、800 和 10,000 只小怪兽上训练的比较，见 [RESULTS.md](RESULTS.md)。
#
# </details>
#
# ## 13 · 模型照搬训练图像吗？
#
# 照搬训练图像的模型也会符合描述。所以我们为每个样本寻找最近的训练图像，先稍微模糊一下，使半个像素的位移不算数。多近才算太近？拿同样多的、模型*没有*用来训练的小怪兽作比较。如果模型照搬，大多数样本离见过的集合会比离没见过的更近。如果不照搬，两种情形各占一半。

# %%
from cfg_pokemon.memorization import blurred, nearer, nearest
from common.io.pixels import to_bytes

seen = load_creatures("train", 1000, size).pixels  # 模型训练所用图像中的前一部分
never_seen = load_creatures("train", 1000, size, seed=2).pixels  # 同样多，用另一个随机种子
samples = to_bytes(drawn[3.0])  # (2 N, 3, S, S)
distance, index = nearest(blurred(samples), blurred(seen))
elsewhere, _ = nearest(blurred(samples), blurred(never_seen))
real_distance, _ = nearest(blurred(unseen.pixels), blurred(seen))
k, n = int(nearer(distance, elsewhere).sum()), len(samples)
print("离见过的集合比离没见过的更近：{} / {} 个样本，{:.0%}（{:.0%} 到 {:.0%}）".format(k, n, *wilson(k, n)))
print(f"到见过的最近图像的距离中位数：样本 {distance.median():.3f}，新的真实小怪兽 {real_distance.median():.3f}")
first = distance.argsort()[:8]
show_images(to_float(torch.cat([samples[first], seen[index[first]]])), 8, down=["样本", "最近的训练图"])

# %% [markdown]
# 图中是距离最近的八对。它们看上去相似，因为许多属性相同。其中有没有*同一幅画*？
#
# 请把这个比例与它的区间一起看。如果区间包含 50 %，这个检验就没有发现照搬，而它所排除的只是区间之外的情形：一个每二十张照搬一张的模型也能通过。如果区间高于 50 %，样本就偏向训练集，即使没有一张是副本。这里只搜索了训练集的一部分。`python 02_cfg_pokemon/memorization.py` 搜索全部训练集，既比较像素，也比较分类器的特征。
#
# ## 现在你能够
#
# * 把描述变成词元向量，写出带多个头和掩码的交叉注意力。
# * 用有描述和没有描述的数据训练同一个网络，用引导和负面提示词采样。
# * 由加噪图像的贝叶斯公式推导引导，说明它的样本为什么不服从倾斜分布。
# * 不经训练，用分类器或损失的梯度来引导。
# * 用置信区间和两个参照测量提示词符合度，用成对的差测量引导的代价。
#
# ### 一页公式
#
# | | 公式 | 位置 |
# |---|---|---|
# | 加噪图像 | $x_t = \sqrt{\bar\alpha_t}\, x_0 + \sigma_t\, \varepsilon$，$\;\sigma_t^2 = 1 - \bar\alpha_t$ | 第 1 章 |
# | $v$ 预测 | $v = \sqrt{\bar\alpha_t}\,\varepsilon - \sigma_t\, x_0$，$\;\hat x_0 = \sqrt{\bar\alpha_t}\, x_t - \sigma_t\, \hat v$ | 第 2 节 |
# | 交叉注意力 | $\mathrm{softmax}(QK^\top/\sqrt d + m)\, V$ | 第 3 节 |
# | 随机丢弃文本条件 | $u < p$ 时 $c \leftarrow \varnothing$，逐张图像 | 第 4 节 |
# | 分数 | $\nabla_x \log p_t(x) = -\hat\varepsilon/\sigma_t$ | (2) |
# | 引导 | $\tilde\varepsilon = \varepsilon_\theta(x_t, \varnothing) + w\,(\varepsilon_\theta(x_t, c) - \varepsilon_\theta(x_t, \varnothing))$ | (1) |
# | 在每个水平上遵循 | $\nabla_x \log\, p_t(x)\, p_t(c\,\vert\,x)^w$ | (4) |
# | 采样的*不是* | $p(x_0)\, p(c\,\vert\,x_0)^w$ | (5) |
# | 倾斜的钟形 | 方差 $1/(1 + w(1/s^2 - 1))$，均值为方差乘以 $w\,m/s^2$；引导：标准差 $s^w$ | (6) |
# | 分类器引导 | $\tilde\varepsilon = \hat\varepsilon - w\,\sigma_t \nabla_{x_t} \log p_\phi(c\,\vert\,x_t)$ | (7) |
# | 损失引导 | $\tilde\varepsilon = \hat\varepsilon + s\,\sigma_t \nabla_{x_t} L(\hat x_0(x_t))$ | (8) |
# | 负面提示词 | 把 (1) 中的 $\varnothing$ 换成 $c_{\text{neg}}$ | (11) |
# | 威尔逊区间 | 公式见正文 | (10) |
# | 动态阈值 | $\mathrm{clip}(\hat x_0, -r, r)/r$，$\;r = \max(q_{0.995}(\vert\hat x_0\vert), 1)$ | (12) |
# | 引导重缩放 | $\phi\,\tilde v\,\mathrm{std}(v_{\text{cond}})/\mathrm{std}(\tilde v) + (1-\phi)\,\tilde v$ | (13) |
#
# ### 延伸阅读
#
# * [Ho & Salimans 2022](https://arxiv.org/abs/2207.12598)，*Classifier-free diffusion guidance*：短短八页，现在你能全部读懂。
# * [Dhariwal & Nichol 2021](https://arxiv.org/abs/2105.05233)，*Diffusion models beat GANs on image synthesis*：分类器引导。
# * [Bradley & Nakkiran 2024](https://arxiv.org/abs/2408.09000)，*Classifier-free guidance is a predictor-corrector*：第 7 节的一般情形。
# * [Karras et al. 2024](https://arxiv.org/abs/2406.02507)，*Guiding a diffusion model with a bad version of itself*：用较差的版本引导。
# * [Kynkäänniemi et al. 2024](https://arxiv.org/abs/2404.07724)，*Applying guidance in a limited interval improves sample and distribution quality in diffusion models*：引导区间。
# * [Bansal et al. 2023](https://arxiv.org/abs/2302.07121)，*Universal guidance for diffusion models*，以及 [Chung et al. 2022](https://arxiv.org/abs/2209.14687)，*Diffusion posterior sampling for general noisy inverse problems*：损失引导。
# * [Rombach et al. 2022](https://arxiv.org/abs/2112.10752)，*High-resolution image synthesis with latent diffusion models*：完整尺寸的文生图；第 4 章会搭建一个小型的。
#
# ### 可以在这个笔记本里试一试
#
# 每次运行之前，先写下你预计会怎样。
#
# * 第 3 节：把 `level_at(500)` 改成 200 和 800。什么时候词语只作用在所属的地方，什么时候到处都起作用？
# * 第 5 节：不丢弃描述（`p=0.0`），用 `draw_small(average, COLOUR_PROMPTS, 3.0)` 画出各种颜色。这时空文本有什么价值？
# * 第 6 节：用 $w = 0.5$ 引导。
# * 第 7 节：让描述指定两个团。点会走到哪里？
# * 第 8 节：把 `colour_loss` 换成要求上半部分暗的损失。
# * 第 12 节：用中文提示词，一只蓝色的火属性小怪兽。
#
# 然后自己动手写：[练习](exercises/README.zh.md)和它的评分器，`python -m common.grade 02`。之后可以在你自己的图片或宝可梦上训练，描述用哪种语言都行，也可以用 CLIP 作文本编码器：见[程序一览](../docs/programs.zh.md#第-2-章)。
