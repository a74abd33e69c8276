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
# # 第 6 章 · 从菜名到动画
#
# [English](lesson.ipynb) · 中文
#
# 输入“番茄炒蛋”，屏幕上就循环播放一段短片：一盘番茄炒蛋，镜头慢慢拉远，直到露出整张桌子。你看到的一切出自两个模型：一个根据菜名画出这盘菜，另一个补画镜头移动时露出来的部分。
#
# 大部分零件你已经认识：扩散（第 1、3 章）、引导（第 2 章）、潜变量（第 4 章）、ControlNet（第 5 章）。本章讲的是零件之间的接口，因为这样的系统往往就在接口处出错：
#
# 1. **中文 CLIP**：菜名变成向量；
# 2. **以一个向量为条件**：注意力为什么需要第二个词元，以及引导；
# 3. **局部重绘**（inpainting）：九个通道、RePaint，以及看不出来的边缘；
# 4. **镜头**：关键帧、始终一致的颜色，以及关键帧之间的各帧；
# 5. **动画**：循环、256 色，以及不限颜色的格式；
# 6. **采样过程中的控制**：区域提示词、中途改变的提示词和引导系数；
# 7. 用**公开的模型**替换这里的小模型。
#
# 学习本章之前，请先读第 2 章和第 4 章。所有代码都能在笔记本电脑的 CPU 上运行，不用下载任何东西，大约三分钟。

# %%
from common.grade.chapter import open_chapter  # 找不到模块 common？请选择安装了本课程的内核（README.zh.md）

CHAPTER = open_chapter("06_inpaint_gif 中文")  # 本章的文件夹；从这里起可以导入其中的文件

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
DISH, HOLES = DEFAULTS["repaint"], DEFAULTS["inpaint"]  # 随课程提供的模型，也可以是你自己训练的文件夹
BLUE = to_float(torch.tensor([31, 119, 180], dtype=torch.uint8)).view(3, 1, 1)  # 需要补画的地方


def show_images(images, columns, across=(), down=(), width=700):
    """把图像 (N, 1 或 3, S, S)（值在 [-1, 1] 内）按整数倍放大后排成网格，行和列带标签。"""
    scale = max(1, min(2, width // (columns * images.shape[-1])))
    display(viz.labelled_grid(images, columns, across, down, scale))


def label_of(dish):
    """一道菜的名字，用本课的语言。"""
    return viz.words(names_of(dish, "en")[0], dish)


def percent(found):
    return f"{found.value:.1%} ({found.low:.1%} 到 {found.high:.1%})"


# %% [markdown]
# ## 1 · 菜名变成向量
#
# **CLIP**（[Radford et al. 2021](https://arxiv.org/abs/2103.00020)）由两个网络组成。文本编码器把一段文字映射成一个向量，图像编码器把一张图像映射成一个同样长的向量。两个网络一起训练，使图像的向量与其文本描述的向量指向同一方向。**Chinese CLIP**（[Yang et al. 2022](https://arxiv.org/abs/2211.01335)，软件包 `cn_clip`）的文本编码器是一个 BERT，它把中文按字切分。我们的 CLIP 很小，用画出来的菜训练，但同一个软件包就能打开它。

# %%
from common.io.state_dict import count_parameters
from inpaint_gif.clip.name_encoder import load_clip_for

clip = load_clip_for(DISH)  # 训练随课程提供的模型时所用的 CLIP
NAME = "土鸡蛋炒番茄"  # 番茄炒蛋的另一个名字
vector = clip.encode_text([NAME])
print(
    f"{count_parameters(clip.network):,} 个权重；图像为 {clip.size} x {clip.size}；词表有 {len(clip.checkpoint.vocab)} 个词元"
)
print("词元：", " ".join(token for token in clip.tokenizer.backend.encode(NAME).tokens if token != "[PAD]"))
print(f"嵌入：{vector.shape[1]} 个数，范数 {vector.norm():.4f}，前几个数是", *(f"{v:.2f}" for v in vector[0, :6]))

# %% [markdown]
# 所有嵌入的长度都是 1，所以两个嵌入的内积就是它们的**余弦相似度**（cosine similarity）：方向相同为 1，互相垂直为 0。
#
# 下面的表比较六个名字。西红柿炒鸡蛋和西红柿鸡蛋汤的六个字里有五个相同。番茄炒蛋是西红柿炒鸡蛋的另一个名字，但与它只有“炒”和“蛋”两个字相同。训练时没有任何文本描述包含“番茄炒鸡蛋”。
#
# **问题：** 在这个 CLIP 看来，哪一对更相似？是同一道菜的两个名字，还是有五个字相同的两个名字？

# %%
names = ["番茄炒蛋", "西红柿炒鸡蛋", "番茄炒鸡蛋", "西红柿鸡蛋汤", "番茄鸡蛋面", "米饭"]
notes = [
    "番茄和鸡蛋炒的菜",
    "同一道菜换个名字",
    "同一道菜，没学过",
    "番茄和鸡蛋做的汤",
    "番茄和鸡蛋做的面",
    "一碗普通的白米饭",
]
vectors = clip.encode_text(names)
print(" " * 34 + "".join(f"{i:>7}" for i in range(1, 7)))
for i, (row, name, note) in enumerate(zip(vectors @ vectors.T, names, notes, strict=True), 1):
    print(f"{i} {note:24}" + "".join(f"{cosine:7.2f}" for cosine in row), f"  {name}")

# %% [markdown]
# <details><summary>答案</summary>
#
# 同一道菜的两个名字，嵌入几乎相同（余弦 0.99<!--out-->），尽管只有两个字相同。炒菜和汤有五个字相同，余弦却是 0.67<!--out-->。如果只比较文字，就会认为炒菜和汤更相似。这个文本编码器是和图像一起训练的，而汤看起来并不像炒菜。
# </details>
#
# 那个从未参与训练的名字，也落在它所属的那道菜旁边。
#
# ### 对比损失
#
# 取一批 $B$ 张图像，嵌入为 $x_i$；它们的 $B$ 条文本描述，嵌入为 $y_j$。算出全部 $B \times B$ 个余弦，再乘以一个可学习的数 $s$，也就是**温度**（temperature）的倒数。对第 $i$ 行做 softmax，就得到第 $j$ 条文本描述属于第 $i$ 张图像的预测概率：
#
# $$p_{ij} = \frac{e^{s\,x_i \cdot y_j}}{\sum_k e^{s\,x_i \cdot y_k}} \tag{1}$$
#
# 训练就是一个 $B$ 类的分类问题：图像 $i$ 的目标是文本描述 $i$。对各列也这样做（这条文本描述属于哪张图像？），损失是两个交叉熵的平均。
#
# > **在论文里**，这叫 InfoNCE 损失（[van den Oord et al. 2018](https://arxiv.org/abs/1807.03748)）：$\mathcal L = -\frac{1}{2B}\sum_i \left[\log p_{ii} + \log p'_{ii}\right]$，其中 $p'$ 是沿列的 softmax。Radford 等人写作 $s = e^{t}$，$t$ 是可学习的标量，代码里叫 `logit_scale`，并且限制 $s$ 不超过 100。
#
# 训练 CLIP 时，每批有 32,768 对来自网络的数据，几乎没有两条文本描述意思相同。我们的菜单只有 80 道菜，一批里常有同一道菜的两盘，这时一盘的文本描述对另一盘也是对的。所以，我们的目标是在 $P_i$（同一道菜的全部文本描述的集合）上均匀分布。再从交叉熵中减去这个目标的熵 $\log |P_i|$，使完美预测的损失仍为 0。换句话说，损失是一个 KL 散度。


# %%
from common.data import load
from inpaint_gif.clip.dish_names import LEARNED
from inpaint_gif.clip.loss import contrastive_loss


def clip_loss(logits, right):
    """目标与 softmax 之间的 KL 散度，行与列各算一次再平均。logits, right (B, B) -> (B,)"""
    target = right / right.sum(1, keepdim=True)  # 在正确的文本描述上均匀分布

    def divergence(table):
        return (target * (target.clamp(min=1e-12).log() - table.log_softmax(1))).sum(1)

    return (divergence(logits) + divergence(logits.T)) / 2


test = load("dishes", clip.size, split="test", language="zh", n=400)  # 所用的种子从未用于训练
order, labels = list(LEARNED), test.labels.tolist()
first = next(i for i, dish in enumerate(labels) if labels.count(dish) > 1)  # 一道出现两次的菜……
second = labels.index(labels[first], first + 1)
others = [labels.index(dish) for dish in dict.fromkeys(labels) if dish != labels[first]]
batch = [first, second, *others[:4]]  # ……和另外四道菜
pictures, captions, dish = to_float(test.pixels[batch]), [test.captions[i] for i in batch], test.labels[batch]

logits = clip.scale * clip.encode_image(pictures) @ clip.encode_text(captions).T  # (6, 6)
one_each, by_dish = torch.eye(6), (dish[:, None] == dish).float()
show_images(pictures, 6, across=[str(i) for i in range(1, 7)])
print("每张图像，以及它属于六条文本描述的概率（%）：")
for i, (row, text) in enumerate(zip(logits.softmax(1), captions, strict=True), 1):
    print(f"{i} " + "".join(f"{100 * p:7.1f}" for p in row), f"   {i}: {text}")
print(
    f"损失：CLIP 的 {clip_loss(logits, one_each).mean():.3f}，我们的 {clip_loss(logits, by_dish).mean():.3f}；"
    f"随机猜测时 CLIP 的损失为 {math.log(6):.3f}"
)
library = contrastive_loss(clip.encode_image(pictures), clip.encode_text(captions), dish, torch.tensor(clip.scale))
print(f"与 clip/loss.py 的最大差别：{(library - clip_loss(logits, by_dish)).abs().max():.0e}")

# %% [markdown]
# 图像 1 和 2 是两盘红烧鱼，模型认为它们都属于文本描述 2。文本描述 1 用的是“红烧鲫鱼”，这个名字没有参与训练，CLIP 误解了它（见下文），所以这里连我们的损失也有 1.288<!--out-->。CLIP 自己的损失更大，为 1.515<!--out-->，因为它还要求模型区分同一道菜的两盘。
#
# 这对嵌入有什么影响？下一个实验里没有网络，也没有图像，只有圆上的十二个向量，六个代表“图像”，六个代表“文本描述”，它们沿着损失的梯度移动。
#
# **问题：** 用 CLIP 的损失，同一道菜的两盘会移到哪里？用我们的损失呢？


# %%
def on_a_circle(right, steps=500):
    """平面上十二个自由的向量，使损失最小：(2, 6, 2)，即图像和文本描述；还有最后的损失。"""
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
targets = {"目标：只有自己的文本描述": one_each, "目标：同一道菜的所有文本描述": by_dish}
for axis, (title, right) in zip(axes, targets.items(), strict=True):
    (x, y), loss = on_a_circle(right)
    axis.plot(turn.cos(), turn.sin(), color="0.85", linewidth=0.8)
    for i in range(6):
        colour = f"C{[0, 0, 1, 2, 3, 4][i]}"
        axis.plot(*(1.0 * x[i]), "o", color=colour, markersize=9, label="图像" if i == 0 else None)
        axis.plot(*(0.86 * y[i]), "*", color=colour, markersize=10, label="文本描述" if i == 0 else None)
        axis.text(*((1.28 if i == 1 else 1.14) * x[i]), i + 1, ha="center", va="center")
    axis.set(
        title=f"{title}\n损失 {loss:.3f}", aspect="equal", xticks=[], yticks=[], xlim=(-1.4, 1.4), ylim=(-1.4, 1.4)
    )
    axis.spines[:].set_visible(False)
axes[0].legend(loc="center", fontsize=8)
plt.show()

# %% [markdown]
# <details><summary>答案</summary>
#
# 用 CLIP 的损失时（左），蓝色的两盘互相排斥，就像任意两张不同的图像。用我们的损失时（右），它们重合在一起，让出来的地方由其他菜分享。两种情况下，文本描述（星号，画得靠里一些）都与各自的图像在一起。
# </details>
#
# ### 十个名字与十张图像
#
# 现在看训练好的 CLIP。行是名字，列是它没有见过的图像，每一格是一个余弦。
#
# **问题：** 不在对角线上的格子里，你预计哪些最亮？

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
plt.imshow(viz.grid(pictures, n, gap=0), extent=(0, n, n, n + 1), interpolation="antialiased")  # 放在各列上方
for i in range(n):
    for j in range(n):
        ink = "black" if 2 * cosines[i, j] > cosines.min() + cosines.max() else "white"
        text = f"{cosines[i, j]:.1f}".replace("0.", ".")
        plt.text(j + 0.5, n - i - 0.5, text, ha="center", va="center", color=ink, fontsize=7)
plt.yticks([n - i - 0.5 for i in range(n)], [label_of(name) for name in TEN])
plt.gca().set(xlim=(0, n), ylim=(0, n + 1), xticks=[])
plt.gca().tick_params(length=0)
plt.gca().spines[:].set_visible(False)
plt.colorbar(shown, shrink=0.8, label="余弦")
plt.show()
wrong = cosines - 9 * torch.eye(n)
print("每个名字与自己的图像的余弦，以及与别的图像的最大余弦：")
for i, name in enumerate(TEN):
    j = int(wrong[i].argmax())
    print(
        f"  自己的 {cosines[i, i]:.2f}，别的最大 {cosines[i, j]:.2f}　　{label_of(name)}，最像的是{label_of(TEN[j])}"
    )

# %% [markdown]
# <details><summary>答案</summary>
#
# 看起来相像的菜：番茄炒蛋、番茄鸡蛋面和西红柿鸡蛋汤；又白又圆的米饭和小笼包；油亮的棕色的宫保鸡丁和红烧鱼。尽管如此，每一行里最大的仍是对角线上的那一格。
# </details>
#
# 明亮的格子表示两道菜看起来相像。从未参与训练的名字则可能因为用字而被误解，见下文。
#
# ### 检索准确率
#
# CLIP 把一张图像归给菜单上 80 个名字中最近的一个。反过来，它把一个名字归给图像离它最近的那道菜。第一种只要两行代码：

# %%
from inpaint_gif.clip.retrieval import evaluate_dishes, share

all_names = name_embeddings(clip, LEARNED)  # (80, D)：每道菜各个名字的平均嵌入
guess = (clip.encode_image(to_float(test.pixels)) @ all_names.T).argmax(1)
print(f"{len(test)} 张图像，{len(all_names)} 个名字，认对的比例：{percent(share(guess == test.labels))}\n")

figures = evaluate_dishes(clip, {"test": test, "heldout": load("dishes", clip.size, split="heldout", n=200)})
print(f"{'查询数':>5}{'最近的就对':>23}{'前五个里有':>23}{''}")
for what, found in figures.items():
    print(f"{found.queries:>8}{percent(found.top1):>28}{percent(found.top5):>28}　　{what}")

# %% [markdown]
# `test` 是用新种子画的图像；`heldout` 里的菜，摆在训练中从未与它们一起出现过的桌面上。对使用者来说，最重要的是**留出的名字**（held-out names）那一行。凡是有两个或更多别名的菜，最后一个别名不出现在任何训练用的文本描述里。要理解它，CLIP 必须把从其他名字里学到的字组合起来。
#
# > **为什么用这种区间。** 括号里是 95 % 的威尔逊区间，用于 $n$ 次试验中的比例。如果 $n$ 次全部成功，自助法只能从成功里重新抽样，得到宽度为 0 的区间，好像不可能出错。这时威尔逊区间的下端是 $n / (n + 3.84)$<!--given-->：400 次中 400 次成功时为 99.0 %<!--out-->。
#
# 下一个单元格列出几个留出的名字、一个菜单上没有的名字，以及一个不是中文的名字。

# %%
from inpaint_gif.clip.dish_names import HELD_OUT, parse_dish_name

for text in ["番茄炒鸡蛋", "白灼生菜", "红烧鲫鱼", "大米饭", "宫保虾仁", "steamed rice"]:
    asked = parse_dish_name(clip, text)
    meant = next((dish for dish, other in HELD_OUT.items() if other == text), None)
    kept = f"　　（留出的名字，指{label_of(meant)}）" if meant else ""
    print(f"{text}：最近的是" + "、".join(f"{label_of(dish)} {cosine:.2f}" for dish, cosine in asked.nearest) + kept)
    for remark in asked.remarks:
        print(f"    {remark}")

# %% [markdown]
# 番茄炒鸡蛋被理解了，因为它的字都出现在同一道菜的其他名字里。大米饭也被理解了：“大”虽然只出现在别的菜名里，但它包含完整的名字“米饭”。白灼生菜被当成白灼虾，因为在训练用的名字里，“白灼”只出现在那里；红烧鲫鱼被当成鲫鱼豆腐汤。少见的两字组合，影响比常见的更大。
#
# ### 两种后端
#
# 到此为止，所有嵌入都是用 `cn_clip` 计算的。`transformers` 库能读取同样的权重，只是名字不同：

# %%
from inpaint_gif.clip.model import BACKENDS, ChineseCLIP

backends = [ChineseCLIP(clip.checkpoint, backend) for backend in BACKENDS]
for backend in backends:
    print(f"{backend.backend:14}{type(backend.network.clip).__module__}.{type(backend.network.clip).__name__}")
for what, (first, second) in {
    "名字": [backend.encode_text(names) for backend in backends],
    "图像": [backend.encode_image(pictures) for backend in backends],
}.items():
    print(f"两种后端的最大差别，{what}的嵌入：{(first - second).abs().max():.0e}")

# %% [markdown]
# 差别只是单精度的舍入误差。所以你可以用公开的 ViT-B/16，或者自己微调的模型，代替我们的 CLIP，两种后端都行：`make_gif.py --clip ViT-B-16`，同时使用为它训练的画菜模型，或者公开的模型（第 7 节）。
#
# **问题：** 为什么损失既要算行，*又*要算列？如果一批只有一对数据，能学到什么？
#
# <details><summary>答案</summary>
#
# 如果只算行，每张图像只需在这一批的文本描述中偏爱自己的那一条。一条文本描述即使离所有图像都很远，只要各行里的次序是对的，就不会受罚；所以由文本描述检索图像的能力没有得到训练。如果一批只有一对，softmax 就只有一项，不论网络怎样它都是 1，所以损失为 0，梯度也为零。
# </details>

# %% [markdown]
# ## 2 · 以一个向量为条件
#
# 在第 4 章里，U-Net 得到的句子是一串嵌入，每个词元一个，潜变量图像的每个位置都去注意它需要的词元（**交叉注意力**，cross-attention）。现在整个菜名只有一个嵌入。各个位置还能选择吗？
#
# **问题：** 注意力权重是对词元做 softmax。只有一个数时，softmax 等于多少？
#
# 下面让五个位置（`q` 的各行）先注意一个词元，再注意这个词元和一个零词元：

# %%
g = torch.Generator().manual_seed(0)
q, k, v = torch.randn(5, 8, generator=g), torch.randn(1, 8, generator=g), torch.randn(1, 3, generator=g)
zero_k, zero_v = torch.zeros(1, 8), torch.zeros(1, 3)


def attend(q, k, v):
    weights = (q @ k.T / k.shape[1] ** 0.5).softmax(1)  # (位置数, 词元数)
    return weights[:, 0], weights @ v


for what, (weights, output) in {
    "只有菜名词元": attend(q, k, v),
    "菜名和零词元": attend(q, torch.cat([k, zero_k]), torch.cat([v, zero_v])),
}.items():
    print(
        f"{what:7}菜名的权重：" + " ".join(f"{w:.2f}" for w in weights),
        f"；各位置输出的标准差 {output.std(0).mean():.2f}",
    )

# %% [markdown]
# <details><summary>答案</summary>
#
# 等于 1。所以只有一个词元时，不论查询是什么，也不论是在盘子上还是桌面上，每个位置得到的都是同一个向量。
# </details>
#
# 再加一个全零的词元，每个位置就有了选择。设 $q$ 是一个位置的查询，$k$ 是菜名的键，两者都有 $d$ 个分量。零词元的键是 $W_K\,0 = 0$，因为 `to_k` 层没有偏置，所以它的 logit 是 $q \cdot 0 / \sqrt d = 0$。于是菜名的权重是
#
# $$\frac{e^{q \cdot k / \sqrt d}}{e^{q \cdot k / \sqrt d} + e^0} = \operatorname{sigmoid}\!\left(\frac{q \cdot k}{\sqrt d}\right) \tag{2}$$
#
# 每个位置自己决定菜名与它有多大关系。零词元的值是 $W_V\,0 = 0$，所以注意它什么也不会加进来。引导需要的空菜名，用两个零词元表示。
#
# > **在论文里**，注意力是 $\operatorname{softmax}(QK^\top / \sqrt d)\,V$（[Vaswani et al. 2017](https://arxiv.org/abs/1706.03762)，公式 1）。大语言模型也用类似的额外词元，叫做**注意力汇聚**（attention sink，[Xiao et al. 2023](https://arxiv.org/abs/2309.17453)）；在 softmax 的分母上加 1，效果与我们的零词元相同。
#
# 在代码里，这两个词元只要一行（[name_encoder.py](inpaint_gif/clip/name_encoder.py)）。嵌入要乘以 $\sqrt D$（$D$ 是它的分量个数，128<!--out-->），使各分量的大小符合网络的需要。

# %%
from inpaint_gif.clip.name_encoder import open_model

pipeline = open_model(DISH, clip=clip)
c, f, size = pipeline.vae.cfg.latent_channels, pipeline.factor, pipeline.size
side = size // f
print(
    f"U-Net 有 {count_parameters(pipeline.unet):,} 个权重；图像为 {size} x {size}，潜变量为 {c} x {side} x {side}；"
    f"预测的是 {pipeline.prediction}"
)
longhand = torch.stack([vector * clip.dim**0.5, 0 * vector], dim=1)  # (1, 2, D)
print(f"一个菜名的词元 {tuple(longhand.shape)}；与管线的相同：{torch.equal(pipeline.text_encoder([NAME]), longhand)}")
layers = [module for name, module in pipeline.unet.named_modules() if name.endswith("attn2")]
print(f"{len(layers)} 个交叉注意力层；它们的键的偏置：{[layer.to_k.bias for layer in layers]}")

# %% [markdown]
# 训练好的网络会用到这种选择吗？我们画三道菜，加噪，让网络评估一次，再显示它最后一个注意力层里菜名的权重。越亮，权重越大。

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
    for x in inputs:  # 每个都是 (3, 位置数, 宽度)
        q, k = layer.split_heads(layer.to_q(x)), layer.split_heads(layer.to_k(tokens))  # (3, 头数, 位置数或 2, d)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)[..., 0].mean(1)  # (3, 位置数)，各头的平均
        around = int(weights.shape[1] ** 0.5)
        rows.append(F.interpolate(2 * weights.view(3, 1, around, around) - 1, (size, size)).expand(-1, 3, -1, -1))
words = [f"σ = {level.sigma:.2f} 时的权重" for level in levels]
show_images(torch.stack(rows).flatten(0, 1), 3, across=["番茄炒蛋", "葱油生菜", "米饭"], down=["画出的菜", *words])
for row, word in zip(rows[1:], words, strict=True):
    weights = (row[:, 0].flatten(1) + 1) / 2
    means = "，".join(
        f"{name} {mean:.2f}" for name, mean in zip(("番茄", "生菜", "米饭"), weights.mean(1), strict=True)
    )
    print(f"{word}：从 {weights.amin():.2f} 到 {weights.amax():.2f}；平均 {weights.mean():.2f}（{means}）")

# %% [markdown]
# 只有在有菜的位置，菜名的权重才较大；桌面的位置几乎只注意零词元。噪声越小，权重越低，因为菜名要说的内容，图像本身已经显示得越来越多。
#
# ### 引导
#
# 无分类器引导与第 2 章相同，空菜名是两个零词元：
#
# $$\tilde\varepsilon = \varepsilon_\varnothing + w\,(\varepsilon_{\text{name}} - \varepsilon_\varnothing) \tag{3}$$
#
# **问题：** $w = 0$ 时会画出什么？$w = 10$ 时会出什么问题？每一列的噪声相同。

# %%
SCALES, asked = (0.0, 1.0, 3.0, 10.0), ["番茄炒蛋", "葱油生菜", "米饭", "红烧鱼"]
swept = {w: pipeline.txt2img(asked, SamplingConfig(guidance_scale=w, seed=3)) for w in SCALES}
show_images(
    torch.cat(list(swept.values())),
    4,
    across=["番茄炒蛋", "葱油生菜", "米饭", "红烧鱼"],
    down=[f"w = {w:g}" for w in SCALES],
)

# %% [markdown]
# <details><summary>答案</summary>
#
# $w = 0$ 时，菜名不起作用，这一行是无条件的样本。$w = 1$ 时颜色与菜名相符，鱼也已经盛在椭圆盘里。$w = 3$ 时菜更清楚，鱼成了酱汁里完整的一长条。$w = 10$ 时颜色过于饱和，质感变粗，番茄和生菜的盘子失去了带花纹的边沿。
# </details>
#
# 看一看不如数一数。40 道菜每道画一张，由 CLIP 的*图像*编码器把它们归给全部 80 个名字之一。图像编码器没有参与画图。但是画图用的条件来自文本编码器，而两个编码器是一起训练的，所以这个分类器偏宽松。测试集里的图像给出它的上限。


# %%
from inpaint_gif.clip.retrieval import FORTY


def accuracy(pictures, dishes):
    """CLIP 认对了菜的图像所占的比例，附区间。"""
    right = torch.tensor([order.index(dish) for dish in dishes])
    return share((clip.encode_image(pictures) @ all_names.T).argmax(1) == right)


print(f"{'图像':16}{'认对的比例':>24}")
for w in (1.0, 3.0, 5.0, 10.0):
    found = accuracy(pipeline.txt2img(FORTY, SamplingConfig(guidance_scale=w, seed=7)), FORTY)
    print(f"{f'画图，w = {w:g}':15}{percent(found):>28}")
print(f"{'测试集':15}{percent(share(guess == test.labels)):>28}")

# %% [markdown]
# 比例从 $w = 1$ 时的 80 %<!--out--> 升到 $w = 3$ 时的 90 %<!--out-->，到 $w = 10$ 又降到 70 %<!--out-->。只有 40 张图像，区间互相重叠，单凭这些还不能下结论。[RESULTS.md](RESULTS.md) 有更多的图像，其中 $w = 2$ 和 3 时认对的比 5 时多。
#
# 如果菜名从未出现在训练用的文本描述里，画出的菜还对吗？下面每一对从同样的噪声开始。左边用学过的名字，右边用同一道菜留出的名字。

# %%
pairs = ["番茄炒蛋", "葱油生菜", "红烧鱼", "米饭"]
unseen = [HELD_OUT.get(dish, dish) for dish in pairs]
left, right = (pipeline.txt2img(some, SamplingConfig(guidance_scale=3.0, seed=5)) for some in (pairs, unseen))
across = [
    word
    for dish in ("番茄炒蛋", "葱油生菜", "红烧鱼", "米饭")
    for word in (f"{dish}\n学过的名字", f"{dish}\n留出的名字")
]
show_images(torch.stack([left, right], 1).flatten(0, 1), 8, across=across, width=1100)
cosine = (clip.encode_text(pairs) * clip.encode_text(unseen)).sum(1)
print(
    "两个名字的余弦：", "；".join(f"{a} | {b} {value:.2f}" for a, b, value in zip(pairs, unseen, cosine, strict=True))
)

# %% [markdown]
# 两个名字的余弦接近 1 时，两张图像几乎相同，因为 U-Net 得到的输入几乎相同。余弦低时，右边画的是另一道菜，正是第 1 节预计会混淆的那一道。
#
# **问题：** 如果用菜名加*两个*零词元，公式 2 里菜名的权重是多少？
#
# <details><summary>答案</summary>
#
# 是 $e^{a}/(e^{a} + 2)$，其中 $a = q\cdot k/\sqrt d$，也就是 $\operatorname{sigmoid}(a - \log 2)$。第二个零词元只把 logit 平移一个常数，训练可以抵消这个平移。
# </details>

# %% [markdown]
# ## 3 · 局部重绘
#
# 镜头移动时，新画面里有一部分从未出现过。**局部重绘**（inpainting）补上这个空缺，使它与其余部分相接。我们的测试材料是摆在桌上的菜，桌面延伸到画面之外；我们透过位置随机的窗口去看，窗口里的空缺与镜头移动时留下的一样。

# %%
from inpaint_gif.training.flags import HoleFlags
from inpaint_gif.training.holes import hole_test_set

painter = open_model(HOLES)  # 局部重绘模型：第 4 章的 U-Net，输入通道更多，在空缺上训练
holes = hole_test_set(HoleFlags(), painter.size, 12)
images, masks, captions = holes.images, holes.masks, holes.captions  # (N, 3, S, S), (N, 1, S, S)
with_hole = images * (1 - masks) + BLUE * masks
show_images(torch.cat([images[:5], with_hole[:5]]), 5, down=["场景", "已知部分"])
print("第一张的提示词：", captions[0])

# %% [markdown]
# 有两种基线不需要网络。每个缺失的像素，或者取**最近**的已知像素的颜色，或者取它以空缺边缘为镜子的**镜像**的颜色（reflect）。
#
# ### 九个通道
#
# U-Net 怎样知道哪里有空缺？给它更多输入通道。Stable Diffusion 的局部重绘模型（[Rombach et al. 2022](https://arxiv.org/abs/2112.10752)）把三样东西拼接起来：
#
# $$\text{输入} = \big[\,x_t \;\big|\; m \;\big|\; E\big((1 - m)\,\text{图像}\big)\,\big] \tag{4}$$
#
# 即加噪的潜变量 $x_t$，4 个通道；蒙版 $m$，1 个通道，空缺处为 1；以及把空缺涂灰的图像的潜变量，4 个通道（$E$ 是自编码器的编码器）。所以输入有 9 个通道，输出仍是 4 个。

# %%
from inpaint_gif.inpainting.backends import inpainting_channels

image, mask = images[:1], masks[:1]
level = list(painter.noise_levels(SamplingConfig(sampler="ddim:20")))[10]
noisy = add_noise(painter.encode(image), Noise(0)(0, torch.empty(1, c, side, side)), level)  # (1, c, h, w)
small = F.interpolate(mask, size=(side, side))  # (1, 1, h, w)：每个潜变量位置对应一个像素
known = painter.encode(image * (1 - mask))  # (1, c, h, w)：空缺处是灰色
nine = torch.cat([noisy, small, known], dim=1)
panels = torch.cat([(noisy / 3).clamp(-1, 1), 1.4 * small - 0.7, (known / 3).clamp(-1, 1)], dim=1)[0, :, None]
panels = F.interpolate(panels, scale_factor=4, mode="nearest")
show_images(
    panels,
    2 * c + 1,
    across=[*(f"加噪 {i}" for i in range(1, c + 1)), "蒙版", *(f"已知 {i}" for i in range(1, c + 1))],
)
print(
    f"{nine.shape[1]} 个通道；后 {c + 1} 个与重绘网络自己的相同："
    f"{torch.equal(nine[:, c:], inpainting_channels(painter, image, mask))}"
)

# %% [markdown]
# （潜变量没有上下界。为了画图，这里除以 3 再截断。）
#
# ### 用零加宽网络
#
# 训练好的文生图 U-Net，第一层有 4 个输入通道，不是 9 个。下面的单元格加宽的是我们的画菜模型（重绘网络则从第 4 章的 U-Net 出发，加宽的方法相同）。卷积把每个输入通道乘以各自的权重，再把结果相加。
#
# **问题：** 如果五个新通道的权重都是 0，加宽后的层算出什么？这些权重还能学习吗？

# %%
from inpaint_gif.training.inpaint import widened

old = pipeline.unet.conv_in.weight.detach()  # (宽度, c, 3, 3)
new = torch.cat([old, torch.zeros(len(old), c + 1, 3, 3)], dim=1)  # (宽度, 2c + 1, 3, 3)
bias = pipeline.unet.conv_in.bias
wide, text, t = widened(pipeline.unet), pipeline.text_encoder([NAME]), torch.full((1,), level.time)
with torch.no_grad():
    before, after = F.conv2d(noisy, old, bias, padding=1), F.conv2d(nine, new, bias, padding=1)
    difference = (pipeline.unet(noisy, t, text=text) - wide(nine, t, text=text)).abs().max()
print(f"{tuple(old.shape)} -> {tuple(new.shape)}")
print(f"最大差别：第一层之后 {float((before - after).abs().max()):.0e}，整个网络之后 {float(difference):.0e}")

wide(nine, t, text=text).square().mean().backward()
slope = wide.conv_in.weight.grad
print(f"梯度的范数：新权重 {slope[:, c:].norm():.2e}，旧权重 {slope[:, :c].norm():.2e}")
sizes = painter.unet.conv_in.weight.detach().square().mean(dim=(0, 2, 3)).sqrt()
print("训练好的重绘网络里，每个通道的权重的均方根：")
for what, part in {
    "加噪的潜变量": sizes[:c],
    "空缺处的蒙版": sizes[c : c + 1],
    "已知的潜变量": sizes[c + 1 :],
}.items():
    print(f"  {what:7}", " ".join(f"{value:.3f}" for value in part))

# %% [markdown]
# <details><summary>答案</summary>
#
# 算出的结果与旧的层相同，只有舍入误差，所以训练从旧网络已有的能力出发。一个权重的梯度等于它的输入乘以其输出的梯度。输入不为零，所以为零的权重从第一步起就能学习。最后几行表明，在训练好的重绘网络里，这些权重已增大到其他权重的大约一半（蒙版）和五分之三（已知的潜变量）。（第 5 章 ControlNet 的零卷积用的是同样的想法。）
# </details>
#
# ### RePaint：不必为此训练的局部重绘
#
# **RePaint**（[Lugmayr et al. 2022](https://arxiv.org/abs/2201.09865)）不需要专门的网络，任何扩散模型都可以。模型对整张图像去噪；每走一步，就把已知部分换成已知的图像，并加噪到这一步到达的水平：
#
# $$x_{t-1} = m \odot x_{t-1}^{\text{unknown}} + (1 - m) \odot x_{t-1}^{\text{known}}, \qquad
# x_{t-1}^{\text{known}} = \alpha_{t-1}\,x_0 + \sigma_{t-1}\,\varepsilon \tag{5}$$
#
# 其中 $x_{t-1}^{\text{unknown}}$ 是从 $x_t$ 走一步 DDPM 的结果，$x_0$ 是已知图像的干净潜变量，空缺处 $m = 1$。（论文里的蒙版正好相反。）
#
# 这样走一遍，结果往往像是贴上去的，因为每一步画空缺内部时，还没有看到外面在下一个水平上的样子。所以 RePaint 要**重采样**（resample）：加噪退回几个水平，再走同样的步。每重复一次，内部就更适应外部。


# %%
from common.diffusion.samplers import initial_noise
from inpaint_gif.inpainting.edge_fill import nearest
from inpaint_gif.inpainting.repaint import jump_schedule, repaint


def repaint_longhand(denoise, known, hole, levels, order, noise):
    """known (B, c, h, w)：干净的潜变量；hole (B, 1, h, w)：空缺处为 1；order：依次经过的水平。"""
    x = levels[0].sigma * noise(0, known)
    for i, (now, then) in enumerate(pairwise(levels[k] for k in order)):
        if then.sigma > now.sigma:  # 退回去：加噪
            ratio = then.alpha / now.alpha
            x = ratio * x + (then.sigma**2 - (ratio * now.sigma) ** 2) ** 0.5 * noise(2 * i + 1, known)
            continue
        x0, eps = denoise(x, now)[:2]  # 往下走：内部走一步 DDPM……
        fresh = (then.sigma / now.sigma) ** 2 * (now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2)
        inside = then.alpha * x0 + max(0.0, then.sigma**2 - fresh) ** 0.5 * eps + fresh**0.5 * noise(2 * i + 1, known)
        around = then.alpha * known + then.sigma * noise(2 * i + 2, known)  # ……周围是加噪的已知图像
        x = torch.where(hole > 0, inside, around)
    return x


N, how = 4, SamplingConfig(guidance_scale=2.0)
path, noise = pipeline.noise_levels(how), Noise(0)
levels, denoise = list(path), pipeline.guided(captions[:N], how)
filled_in = torch.stack([nearest(*pair) for pair in zip(images[:N], masks[:N], strict=True)])  # 灰色会渗进来
known = pipeline.encode(filled_in)
hole = F.max_pool2d(masks[:N], f)  # 只要有一个像素缺失，这个潜变量位置就算缺失
print("走一遍经过的水平：", jump_schedule(20, 5, 1))
print("走两遍经过的水平：", jump_schedule(20, 5, 2))
with torch.no_grad():
    latents = {n: repaint_longhand(denoise, known, hole, levels, jump_schedule(20, 5, n), noise) for n in (1, 4)}
*_, library = repaint(denoise, initial_noise(path, known.shape, noise), path, known, hole, noise, 5, 1)
print(f"与 repaint.py 的最大差别：{(library.x - latents[1]).abs().max():.0e}")
filled = [torch.where(masks[:N] > 0, pipeline.decode(z), images[:N]) for z in latents.values()]
show_images(torch.cat([with_hole[:N], *filled]), N, down=["已知部分", "RePaint，1 遍", "RePaint，4 遍"])

# %% [markdown]
# 走四遍，网络评估的次数也是四倍。内部与外部因此更加吻合：看看第三张图里的格子。但这个模型是用完整的、摆在正中的盘子训练的，所以它喜欢在每个空缺里都画一道菜。
#
# ### 已知部分的噪声：只抽一次，还是每步重抽？
#
# RePaint 每一步都为已知部分抽取新的 $\varepsilon$（算法 1，第 4 行）。第 5 章的练习，以及 `diffusers` 为普通文生图模型提供的局部重绘管线，则只抽取一份 $\varepsilon$，用在所有水平上。谁对？
#
# 单看任何一个水平，两者的分布都是 $\mathcal N(\alpha_t x_0, \sigma_t^2 I)$，所以网络看到的输入都合适。区别在于两个水平之间的关系：
#
# * 用**一份噪声**时，已知部分沿着 $\alpha_t x_0 + \sigma_t\varepsilon$ 移动。这就是 DDIM 对真实的一对 $x_0$ 与噪声走出的轨迹（第 3 章第 3 节），它属于确定性采样器。
# * 用**新噪声**时，给定 $x_0$，已知部分在相邻两个水平上互相独立。这比 DDPM 一步所加的噪声更多，但它与同样抽取新噪声的采样器相配，而且每重采样一遍，内部就看到外部的另一个版本。
#
# 两者都不是精确的条件分布。要看出影响有多大，我们取一种一切都有精确解的数据：来自高斯分布的光滑闭曲线。它的理想去噪器是线性的；给定其余部分时，空缺处的均值和标准差也有线性的公式。

# %%
n, steps, B = 48, 20, 400
places = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
C = torch.exp(6 * ((places[:, None] - places).cos() - 1)) + 1e-4 * torch.eye(n, dtype=torch.float64)  # 协方差
lams = torch.linspace(-4, 5, steps, dtype=torch.float64)  # 各水平的 log(alpha / sigma)
alphas = torch.cat([torch.sigmoid(2 * lams).sqrt(), torch.ones(1)])
sigmas = torch.cat([torch.sigmoid(-2 * lams).sqrt(), torch.zeros(1)])
to_x0 = [torch.linalg.solve(a**2 * C + s**2 * torch.eye(n), a * C) for a, s in zip(alphas, sigmas, strict=True)]
g = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=g, dtype=torch.float64)


curves = normal(B, n) @ torch.linalg.cholesky(C).T  # 每个样本一条已知的曲线
missing = (torch.arange(n) >= 16) & (torch.arange(n) < 34)
gain = torch.linalg.solve(C[~missing][:, ~missing], C[~missing][:, missing])
exact_mean = curves[:, ~missing] @ gain
exact_std = (C[missing][:, missing] - C[missing][:, ~missing] @ gain).diagonal().sqrt()


def fill(stochastic, anew, passes):
    """用理想去噪器做 RePaint：内部走 DDPM 或 DDIM，周围用新噪声或一份噪声。(B, n)"""
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


print(f"{'一份噪声':>8}{'新噪声':>9}　　{'与精确均值的距离，相对于精确样本的距离'}")
for passes in (1, 4, 20):
    for stochastic in (False, True):
        found = []
        for anew in (False, True):
            away = fill(stochastic, anew, passes)[:, missing] - exact_mean
            found.append(float(away.square().mean().sqrt() / exact_std.square().mean().sqrt()))
        what = f"内部 {'DDPM' if stochastic else 'DDIM'}，{passes} 遍{'（重采样）' if passes > 1 else ''}"
        print(f"{found[0]:12.2f}{found[1]:12.2f}　　{what}")

# %% [markdown]
# （表里的数以精确样本的距离为单位：1 表示精确，更大的数表示内部与外部接不上。）
#
# * **遍数最有用。** 内部用 DDPM、周围用新噪声时，走一遍是 1.20<!--out-->，走二十遍是 1.04<!--out-->。
# * **内部用随机采样器更好**，好过确定性采样器，因为它会忘掉早先接不上的步。
# * **已知部分的噪声**，走一遍或四遍时没有明显的区别。走二十遍时，新噪声更接近精确值：内部用 DDPM 时为 1.04<!--out-->，一份噪声为 1.08<!--out-->；内部用 DDIM 时为 1.13<!--out-->，一份噪声为 1.19<!--out-->。
#
# 所以两种做法在各自的场合都对。用确定性采样器走一遍，一份噪声就够了，`diffusers` 就是这样。要重采样时，新噪声让内部在每一遍里看到外部的另一个版本，论文就是这样做的。
#
# ### 已知像素保持原样
#
# 每个后端返回的都是经过自编码器的整张图像。本应不变的像素，会改变多少？

# %%
from inpaint_gif.inpainting.backends import InpaintBackend
from inpaint_gif.inpainting.compositing import overlay

raw = InpaintBackend(painter, SamplingConfig(guidance_scale=2.0)).paint(
    images, masks, captions, seed=0
)  # (N, 3, S, S)
kept = (masks == 0).expand_as(images)
print(f"重绘网络的输出里，已知像素平均改变：255 级灰度中的 {127.5 * (raw - images).abs()[kept].mean():.1f} 级")

pasted = torch.stack([overlay(*three) for three in zip(images, raw, masks, strict=True)])
print(f"经过 overlay 之后，所有已知像素逐位相同：{torch.equal(pasted[kept], images[kept])}")

# %% [markdown]
# `overlay` 在 `torch.where(mask > 0, ...)` 里计算 `image + mask (painted - image)`，所以舍入误差碰不到已知像素。
#
# 可是现在颜色在边缘上跳变，因为一边是原图，另一边是解码出来的图像。有三种补救办法，都只改变空缺：
#
# * **匹配**（match，`compositing.matched`）：把边缘附近已知像素的改变量平滑之后，外推到空缺里；
# * **调平**（level，`compositing.levelled`）：消除边缘*两侧*颜色的差（第 4 节解释原因）；
# * **羽化**（feather，`compositing.feathered`）：空缺最外面的像素从边缘的颜色渐变进来。
#
# 通常的 *mask blur*（蒙版模糊）把边缘**两侧**的蒙版都变软。**问题：** 每种软边缘改变多少已知像素？

# %%
from inpaint_gif.inpainting.compositing import blurred, feathered

soft = {
    "硬边缘": masks,
    "模糊 2 像素": torch.stack([blurred(mask, 2) for mask in masks]),
    "羽化 2 像素": torch.stack([feathered(mask, 2) for mask in masks]),
}
_, axes = plt.subplots(1, 2, figsize=(8, 2.3), layout="constrained", gridspec_kw={"width_ratios": (1.4, 1)})
edge = torch.zeros(1, 8, 24)
edge[:, :, 12:] = 1
for name, line in zip(soft, (edge, blurred(edge, 2), feathered(edge, 2)), strict=True):
    axes[0].plot(line[0, 4], ".-", label=name)
axes[0].set(title="蒙版的一行；空缺在右边", xlabel="像素", ylabel="蒙版", yticks=[0, 1])
axes[0].legend(fontsize=8)
axes[1].axis("off")
axes[1].imshow(viz.grid(torch.stack([1.4 * soft[name][0] - 0.7 for name in soft]), 3))
axes[1].set_title("同样三种，用于第一个空缺")
plt.show()
for name, mask in soft.items():
    mixed = torch.stack([overlay(*three) for three in zip(images, raw, mask, strict=True)])
    print(f"已知的值改变了 {(mixed != images)[kept].double().mean():5.1%}   {name}")

# %% [markdown]
# <details><summary>答案</summary>
#
# 羽化的蒙版一个也不改变，因为凡是硬蒙版为 0 的地方，它也为 0。模糊的蒙版会改变它所及范围内的每一个已知像素。
# </details>
#
# 边缘有多显眼？**接缝**（seam）这个量把图像跨过边缘的跳变与附近的跳变相比。1 表示边缘与周围没有区别，硬边缘则达到 2 以上。画面里的线条可能碰巧落在边缘上，所以要对多张图像取平均，并与*未改动*的图像比较。

# %%
from inpaint_gif.inpainting.compositing import levelled, matched, seam

triples = list(zip(images, raw, masks, strict=True))
matched_only = torch.stack([overlay(a, matched(a, b, m), m) for a, b, m in triples])
level_too = [(a, levelled(a, matched(a, b, m), m), m) for a, b, m in triples]
softened = torch.stack([overlay(a, overlay(nearest(a, m), b, feathered(m, 3)), m) for a, b, m in level_too])
ways = {"未改动": images, "直接粘贴": pasted, "匹配": matched_only, "匹配、调平、\n羽化": softened}
show_images(torch.cat([part[:3] for part in ways.values()]), 3, down=list(ways))
print(f"{'接缝，95 % 区间':>7}   已知像素{''}")
for name, part in ways.items():
    found = [seam(image, mask) for image, mask in zip(part, masks, strict=True)]
    text = f"{np.mean(found):.2f} ± {2.2 * np.std(found, ddof=1) / len(found) ** 0.5:.2f}"
    print(
        f"{text:>14}   {'逐位不变' if torch.equal(part[kept], images[kept]) else '改变了　'}   {''.join(name.split())}"
    )

# %% [markdown]
# 直接粘贴会留下看得见的边缘（3.99<!--out-->）。三种补救办法都用上之后，接缝与未改动的图像相同，已知像素也一个都没有改变。
#
# ### 五种引擎
#
# 所有引擎的接口都一样，`engine(image, mask, prompt, seed) -> image`，合成的方式也一样。*误差*是空缺里与真实图像之差的绝对值的平均，取值范围的宽度是 2。一粒碎屑在哪里无从知道，但桌面的颜色可以预料。
#
# **问题：** 哪种引擎的接缝最小？哪种误差最小？

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
show_images(torch.cat([with_hole[:3], *painted.values(), images[:3]]), 3, down=["已知部分", *painted, "原图"])

floor = untouched_seam(holes)
print(f"{'':12}{'接缝':>23}{'空缺里的误差':>21}   每个空缺的秒数")
print(f"{'未改动':9}{f'{floor.value:.2f} ({floor.low:.2f} 到 {floor.high:.2f})':>24}")
for name, engine in engines.items():
    e = edge_metrics(engine, holes)
    seams, errors = (f"{x.value:.2f} ({x.low:.2f} 到 {x.high:.2f})" for x in (e.seam, e.error))
    print(f"{name:12}{seams:>24}{errors:>26}   {e.seconds:.2f}")

# %% [markdown]
# <details><summary>答案</summary>
#
# *nearest* 的接缝最小（0.70<!--out-->），*inpaint* 的误差最小（0.14<!--out-->）。*inpaint* 的接缝 0.94<!--out-->，与未改动的图像的 0.98<!--out--> 相当。
# </details>
#
# *reflect* 在桌上放了第二个盘子，*nearest* 把盘子的边沿拉成条纹，一直拉到画面边上。*repaint* 在没有菜的地方画出一道菜。*controlnet* 不改变文生图模型，而是加上第二个网络，由它来看带空缺的图像。*repaint* 的步数是 *inpaint* 的四倍，从时间上也看得出来（时间取决于机器，倍数则不然）。接缝比未改动的图像还小，并不是优点：*nearest* 延续边缘的颜色，比任何真实图像都平滑。
#
# **问题：** 在已知部分的潜变量里，空缺已经是灰色的。为什么还要给网络蒙版？
#
# <details><summary>答案</summary>
#
# 灰色也可能是图像本来的颜色，例如石板桌面。没有蒙版，网络就得猜一块灰色是已知的还是缺失的。
# </details>

# %% [markdown]
# ## 4 · 镜头
#
# 管线把这道菜画四次，CLIP 从中选出嵌入离菜名最近的一张，`make_gif.py` 也是这样做的。选中的图像放在一个无限大的平面上。镜头是一个在平面上移动的**窗口**（window），由位置 $(x, y)$ 和比例确定。窗口露出平面上没有图像的部分时，那里的蒙版为 1。

# %%
from inpaint_gif.animation.camera import MOVES, CameraPath, Move
from inpaint_gif.animation.canvas import FilmCanvas

four = pipeline.txt2img([NAME] * 4, SamplingConfig(guidance_scale=3.0, seed=0))
cosines = clip.encode_image(four) @ vector[0]
picture = four[int(cosines.argmax())]
show_images(
    four, 4, across=[f"余弦 {value:.2f}" + (" *" if i == cosines.argmax() else "") for i, value in enumerate(cosines)]
)

views, titles = [picture], ["原图"]
for name in MOVES:
    way, world = CameraPath.plan(Move.parse(name), size, size, new_fraction=0.25), FilmCanvas(picture)
    moved, seen = world.render(way.stops()[0].window)
    views.append(moved * seen + BLUE * ~seen)
    titles.append(f"{name}\n新露出 {(~seen).double().mean():.0%}")
show_images(torch.stack(views[:6]), 6, across=titles[:6], width=900)
show_images(torch.stack(views[6:]), 6, across=titles[6:], width=900)

# %% [markdown]
# （星号标出选中的那一张。）蓝色是需要补画的部分，约占每个关键帧的四分之一。`right` 指*镜头*向右移，所以盘子向左移。
#
# **问题：** `zoom-in` 时镜头明明在靠近，为什么还有一圈需要补画？
#
# <details><summary>答案</summary>
#
# 原图是整条路径上最近的画面，因为再近就需要没有画过的细节。所以 zoom-in 是倒着画的：从最后一帧（即原图）画到第一帧，第一帧露出更多桌面。
# </details>
#
# ### 关键帧
#
# 在每个**关键帧**（keyframe），程序渲染已知的部分，补画空缺，再把结果加到平面上。没有任何地方会画第二次，所以镜头回来时看到的还是同样的内容。

# %%
from inpaint_gif.animation.camera import paint
from inpaint_gif.animation.writers import contact_sheet

way, world, engine = CameraPath.plan(Move.parse("zoom-out:3"), size, size), FilmCanvas(picture), engines["inpaint"]
began = time.perf_counter()
keyframes = list(paint(world, way, engine, NAME, seed=0))
print(f"画了 {len(keyframes)} 个关键帧")
for keyframe in keyframes:
    still = (keyframe.mask == 0).expand_as(keyframe.image)
    assert torch.equal(keyframe.image[still], keyframe.moved[still])  # 已知像素逐位不变
contact_sheet(picture, keyframes)

# %% [markdown]
# 桌面带着纹理延伸出去，没有出现第二个盘子。最上面是原图；下面是每个关键帧的已知部分、蒙版和结果。
#
# ### 为什么会出现层层相套的矩形，怎样减轻
#
# 单独一个关键帧可以看起来完美，几个连起来却不行。重绘网络画出的每一圈，颜色都略有不同。每一次的差别很小，但它沿着整条边缘，所以四个关键帧之后，你会看到盘子周围有一层层相套的矩形。接缝这个量发现不了它们，因为它只比较单个像素与相邻的像素。
#
# 所以我们需要第二个量。**色调跳变**（tint step）是边缘两侧各 4 像素宽的两条带的平均颜色之差（对各边和各通道取均方根）。第三个量叫**漂移**（drift），它把每一圈的统计量与第一张图像边缘处的统计量相比，由 `evaluate_gif.py --only drift` 给出。
#
# 补救的办法（`levelled`）是比较边缘两侧的颜色。它在边缘的每一处求已知颜色与画出颜色之差，对附近的差取*中位数*，再把中位数加到这一圈上。
#
# **问题：** 为什么取中位数，而不取平均值？

# %%
from inpaint_gif.animation.canvas import Window
from inpaint_gif.evaluation.metrics import scene_view
from inpaint_gif.inpainting.compositing import tint_step
from inpaint_gif.training.scenes import load_test_scenes

scenes, names_of_scenes = load_test_scenes(10, painter.size)
chosen = [0, 4, 9]
backs_off, S = CameraPath.plan(Move.parse("zoom-out:4"), painter.size, painter.size), painter.size


def without_levelling(image, mask, prompt, seed):
    """与前面的引擎相同，但只在已知的一侧比较颜色。"""
    painted = matched(image, engine.backend(image, mask, prompt, seed), mask)
    return overlay(image, overlay(nearest(image, mask), painted, feathered(mask, 3)), mask)


rows, table = {}, []
for what, backend in {"没有调平": without_levelling, "经过调平": engine}.items():
    ends, steps_of, seams = [], [], []
    for i in chosen:
        start = scene_view(scenes[i], Window(), S)
        done = list(paint(FilmCanvas(start), backs_off, backend, names_of_scenes[i], seed=i))
        ends.append(done[-1].image)
        steps_of += [tint_step(k.image, k.mask) for k in done]
        seams += [seam(k.image, k.mask) for k in done]
    rows[what], _ = torch.stack(ends), table.append((what, np.mean(steps_of), np.mean(seams)))
rows["真实场景"] = torch.stack([scene_view(scenes[i], backs_off.keyframes[-1], S) for i in chosen])
true = [(scene_view(scenes[i], k.stop.window, S), k.mask) for i in chosen for k in done]
table.append(("真实场景", np.mean([tint_step(*each) for each in true]), np.mean([seam(*each) for each in true])))
show_images(torch.cat(list(rows.values())), 3, down=list(rows))
print(f"{'四个关键帧之后':17}{'色调跳变':>8}{'接缝':>6}")
for what, step, edge in table:
    print(f"{what:20}{step:12.3f}{edge:8.2f}")

# %% [markdown]
# <details><summary>答案</summary>
#
# 边缘有一段可能穿过某个物体，例如盘子的边沿。那里颜色相差很大，而且理应如此。平均值会把盘沿的蓝色抹到桌面上。只要物体在附近占不到一半，中位数就不理会它。
# </details>
#
# 不调平时，一圈圈颜色深浅不同。调平在亚麻桌布（右列）上最有效，木桌（左列）上仍能看出一些圈。它使色调跳变从 0.027<!--out--> 降到 0.017<!--out-->；真实场景是 0.029<!--out-->，因为真实桌面上的光线向四周逐渐变暗。接缝几乎不变，从 1.30<!--out--> 到 1.29<!--out-->，高于真实场景的 0.87<!--out-->：它测量的是另一回事，这里是桌面的纹路，重绘网络没有把纹路接上。
#
# ### 关键帧之间
#
# 关键帧之间的各帧是从平面上渲染出来的，位置可以是像素的几分之几。
#
# **问题：** 平移 64 个像素，用 24 帧，每帧移动 $64/23 \approx 2.78$<!--given--> 个像素。如果每一帧都放在最近的*整数*像素上，动画看起来会怎样？
#
# 我们在画面本身上测量运动。**相位相关**（phase correlation，[motion.py](inpaint_gif/animation/motion.py)）根据两张图像的傅里叶变换的相位求出位移，所以它对移动画面的那段代码一无所知。

# %%
from inpaint_gif.animation.camera import render_frames
from inpaint_gif.animation.motion import motion
from inpaint_gif.animation.timing import EASES, frame_times

FRAMES = 24


def speeds(frames):
    """从每一帧到下一帧的测量值：(向左的像素数, 放大的百分比)。"""
    found = [motion(a, b) for a, b in pairwise(frames)]
    return [-float(shift[0]) for shift, _ in found], [100 * growth for _, growth in found]


pan, plane = CameraPath.plan(Move.parse("right:2"), size, size), FilmCanvas(picture)
list(paint(plane, pan, engine, NAME, seed=0))
requested = pan.keyframes[-1].x / (FRAMES - 1)
times = {ease: frame_times(FRAMES, "once", ease) for ease in EASES}
whole = [plane.render(Window(float(round(pan.at(t).x)), 0.0, 1.0))[0] for t in times["linear"]]
pans = {"整数像素": speeds(whole)[0], "小数像素": speeds(list(render_frames(plane, pan, times["linear"])))[0]}
eased = {
    ease: pans["小数像素"] if ease == "linear" else speeds(list(render_frames(plane, pan, times[ease])))[0]
    for ease in EASES
}
last = way.keyframes[-1].scale
straight = [world.render(Window(0.0, 0.0, 1 + (last - 1) * t))[0] for t in times["linear"]]
zooms = {"比例等差": speeds(straight)[1], "比例等比": speeds(list(render_frames(world, way, times["linear"])))[1]}

_, axes = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained")
titles = ["right", "right，三种缓动", "zoom-out"]
units = ["每帧的像素数", "每帧的像素数", "每帧放大的百分比"]
for axis, curves, title, unit in zip(axes, (pans, eased, zooms), titles, units, strict=True):
    for name, values in curves.items():
        axis.plot(values, ".-", label=name, linewidth=1)
    axis.set(title=title, xlabel="帧", ylabel=unit)
    axis.legend(fontsize=8)
axes[0].axhline(requested, color="0.7", linewidth=0.8)
axes[0].set_ylim(0, 2.2 * requested)
axes[1].set_ylim(bottom=0)
plt.show()
for what, values in (pans | zooms).items():
    wanted = f"；要求的是 {requested:.3f}" if what in pans else ""
    print(f"{what:6}平均 {np.mean(values):7.3f}，标准差 {np.std(values):.3f}{wanted}")

# %% [markdown]
# <details><summary>答案</summary>
#
# 有的帧移动 2 个像素，有的移动 3 个。眼睛看到的是一顿一顿的（左图，蓝色），虽然每一帧单独看更清晰。
# </details>
#
# * **中图：** `linear` 突然开始，突然停止；`ends` 在时间的前五分之一加速，后五分之一减速；`smooth` 按 $3t^2 - 2t^3$ 变化。各条曲线下的面积相同，因为路径相同。
# * **右图：** 要让变焦看起来均匀，相等的时间里比例就要*乘以*相等的倍数，因为这时屏幕上各点的相对速度不变。如果比例按相等的差变化，看起来就先快后慢。（数值是负的，因为画面在缩小。）
#
# `right,zoom-out` 这样的组合含有两种运动。镜头用画面平均移动的像素数来度量它的路径（`camera.Segment.length`），并匀速走完这个长度。
#
# **问题：** `smooth` 的最高速度是 `linear` 的多少倍？什么时候达到？
#
# <details><summary>答案</summary>
#
# 导数 $6t - 6t^2$ 在 $t = \frac12$ 处最大，等于 $\frac32$。
# </details>

# %% [markdown]
# ## 5 · 动画
#
# ### 循环
#
# 网页上的动画播完就重新开始，那里如果跳一下就很显眼。有三种循环方式：
#
# * `once`：从第一帧重新开始；
# * `pingpong`：先正着放，再倒着放；
# * `seamless`：多渲染几帧，让它们逐渐融入开头，同时镜头继续移动。
#
# **问题：** 按相邻两帧之间的最大变化给它们排序，从最后一帧到第一帧的变化也算在内。


# %%
from inpaint_gif.animation.timing import close_loop, frame_changes


def film_of(plane, way, loop, ease="linear", frames=FRAMES):
    return list(close_loop(render_frames(plane, way, frame_times(frames, loop, ease, way.returns)), frames))


films = {loop: film_of(world, way, loop) for loop in ("once", "pingpong", "seamless")}
for loop, frames in films.items():
    changes = frame_changes(frames)  # 均方根，从每一帧到下一帧，以及从最后一帧到第一帧
    print(
        f"{loop:10} {len(frames)} 帧；平均变化 {np.mean(changes):.3f}，最大 {max(changes):.3f}，"
        f"从最后一帧到第一帧 {changes[-1]:.3f}"
    )
picked, two = range(3, FRAMES, 6), ("pingpong", "seamless")
show_images(
    torch.stack([films[loop][k] for loop in two for k in picked]),
    len(picked),
    across=[f"第 {k} 帧" for k in picked],
    down=two,
    width=900,
)

# %% [markdown]
# <details><summary>答案</summary>
#
# `once` 的最大变化远大于其他（0.60<!--out-->），就在它接头的地方。最大变化以 `seamless` 为最小（0.144<!--out-->），其次是 `pingpong`（0.282<!--out-->），它的速度是 `once` 的两倍。这两种循环里，从最后一帧到第一帧的变化只略大于平均值（0.125<!--out--> 和 0.242<!--out-->）。代价各不相同：`pingpong` 要把运动倒过来，`seamless` 在渐变期间会同时出现两个盘子。
# </details>
#
# 用 `linear` 速度的 `pingpong` 在折返时会猛地一顿。所以 `make_gif.py` 对 `pingpong` 和 `once` 使用 `--ease smooth`，镜头在折返点会停下来。第四种循环 `round` 在一条直线路径的尽头放上原图的副本。
#
# ### 256 色
#
# GIF 最多有 256 种颜色，所以怎样选调色板（palette）很重要。要做两个选择：
#
# * **所有帧共用一个调色板，还是每帧一个；**
# * **抖动**（dithering），即怎样近似缺少的颜色：不处理，用固定的图案（`ordered`），或者把每个像素的误差传给相邻的像素（`floyd`，得名于 Floyd 和 Steinberg 1976）。
#
# 为了看清效果，我们只用 24 种颜色：

# %%
from inpaint_gif.animation.writers import DITHERS, quantized, to_pixels
from inpaint_gif.inpainting.compositing import enlarged

factor = math.ceil(128 / size)
frames = [enlarged(frame, factor, 0.6) for frame in films["pingpong"]]
pixels = to_pixels(frames)  # (24, H, W, 3)，字节


def as_shown(colours, palette, dither):
    """GIF 显示出来的动画，(24, H, W, 3)。"""
    return np.stack([np.asarray(frame.convert("RGB")) for frame in quantized(pixels, colours, palette, dither)])


crops = [pixels[0], *(as_shown(24, "global", dither)[0] for dither in DITHERS)]
crops = torch.stack([to_float(torch.from_numpy(crop)).permute(2, 0, 1)[:, 32:96, :64] for crop in crops])
display(viz.labelled_grid(crops, 4, ["所有颜色", *(f"24 色，{dither}" for dither in DITHERS)], scale=3))

# %% [markdown]
# 单独一张图像，Floyd–Steinberg 抖动最好看。对动画还要测量**闪烁**（flicker）：一个像素的*误差*从一帧到下一帧平均变化多少。不变的误差几乎注意不到。
#
# **问题：** 哪种抖动闪烁最厉害？哪种调色板的文件更大？

# %%
from inpaint_gif.animation.writers import write_film

folder = Path(tempfile.mkdtemp())
print(f"{'24 色':29}{'误差':>6}{'闪烁':>8}{'kB':>8}    （误差和闪烁以 255 级灰度计）")
for palette in ("global", "frame"):
    for dither in DITHERS:
        error = as_shown(24, palette, dither).astype(float) - pixels
        written = write_film(frames, folder / "a.gif", colours=24, palette=palette, dither=dither)
        flicker = np.abs(np.diff(error, axis=0)).mean()
        what = f"调色板 {palette}，抖动 {dither}"
        print(f"{what:24}{np.abs(error).mean():8.2f}{flicker:10.2f}{written.bytes / 1000:8.0f}")

counts = (8, 16, 32, 64, 128, 256)
plt.figure(figsize=(5, 2.6), layout="constrained")
for dither in DITHERS:
    sizes = [write_film(frames, folder / "a.gif", colours=colours, dither=dither).bytes / 1000 for colours in counts]
    plt.plot(counts, sizes, ".-", label=dither)
plt.gca().set(xscale="log", xlabel="颜色数", ylabel="kB", ylim=(0, None), title="GIF，所有帧共用一个调色板")
plt.gca().set(xticks=counts, xticklabels=counts)
plt.minorticks_off()
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# <details><summary>答案</summary>
#
# Floyd–Steinberg 闪烁最厉害（11.43<!--out--> 级灰度，固定图案为 8.35<!--out-->），因为只要有东西移动，它的图案就完全改变。每帧一个调色板，文件略大一些，不过每一帧都更接近原图。
# </details>
#
# （逐像素来看，任何抖动的误差都比不抖动大。眼睛会把相邻像素平均起来，所以判断不同。）GIF 压缩重复的像素序列（LZW），而噪声不会重复。所以抖动使文件变大，减少颜色使文件变小。
#
# ### 成片
#
# WebP 和 MP4 不限颜色，而且比 GIF 小，所以是默认格式。放大各帧时使用**反锐化掩模**（unsharp mask）$x + a\,(x - \text{blur}(x))$，它能恢复边缘的对比度。画出来的菜可以有任意尺寸，所以我们能检验，它究竟是让放大的图像更接近真实，还是只会夸大：

# %%
from common.data.dishes.dataset import dish as looks_of
from common.data.dishes.dataset import draw as draw_dish

attributes = [looks_of(0, "test", i) for i in range(3)]  # 三道菜的 (外观, 摆放)
truths, smalls = (
    [to_float(torch.from_numpy(draw_dish(looks, s, pose))) for looks, pose in attributes] for s in (384, 128)
)
print(f"{'从 128 放大到 384':20}{'PSNR, dB':>10}{'坡度，真实为 1':>10}")
for a in (0.0, 0.3, 0.6, 1.2):
    larger = [enlarged(x, 3, a) for x in smalls]
    error = np.mean([float((x - y).square().mean()) for x, y in zip(larger, truths, strict=True)])
    slopes = [[float(x.diff(dim=2).abs().mean()) for x in some] for some in (larger, truths)]
    print(
        f"{f'反锐化掩模，a = {a}':18}{10 * math.log10(4 / error):10.2f}{np.mean(slopes[0]) / np.mean(slopes[1]):16.2f}"
    )

# %% [markdown]
# 强度 0.6 使坡度从真实值的 0.73<!--out--> 倍提高到 0.93<!--out--> 倍，PSNR 提高 0.4 dB<!--given-->。可见反锐化掩模恢复了放大时损失的对比度。强度再加一倍就夸大了，PSNR 低于直接放大的图像。

# %%
film = [enlarged(frame, math.ceil(256 / size), 0.6) for frame in film_of(world, way, "pingpong", "smooth", frames=16)]
written = write_film(film, folder / "film.webp", fps=8, max_bytes=135_000)
print(
    f"{written.frames} 帧，{written.width} x {written.height}，{written.bytes / 1000:.0f} kB"
    + (f"；{written.note}" if written.note else "")
)
Image(written.path.read_bytes(), format="png", width=512)  # WebP 动画；不论叫什么名字，浏览器都认得

# %% [markdown]
# 一条命令就能做同样的事，帧更大，旁边还有一张关键帧一览图：
#
# ```sh
# python 06_inpaint_gif/make_gif.py "土鸡蛋炒番茄" --camera zoom-out:3
# ```
#
# **问题：** 在 `pingpong` 里，除了两帧以外，所有帧都出现两次。文件能不能减小一半？
#
# <details><summary>答案</summary>
#
# 用这些格式不行：GIF 和 WebP 按播放的次序存储各帧，不能引用前面的帧。网页倒是可以只存一半的帧，正着放再倒着放。
# </details>

# %% [markdown]
# ## 6 · 采样过程中的控制
#
# 采样器只调用一个函数：输入加噪的潜变量和噪声水平，输出预测的 $(\hat x_0, \hat\varepsilon)$。要同时给出几条指令，就把几个这样的函数合成一个。
#
# ### 区域提示词
#
# 每个区域有自己的提示词和蒙版 $m_i$，区域相接的地方，对预测取平均（**MultiDiffusion**，[Bar-Tal et al. 2023](https://arxiv.org/abs/2302.08113)）。每个预测都是对*整张*图像作出的，所以各区域能够互相衔接。
#
# $$\hat x_0 = \sum_i m_i\, \hat x_0^{(i)} \qquad \hat\varepsilon = \sum_i m_i\, \hat\varepsilon^{(i)} \qquad \sum_i m_i = 1 \tag{6}$$
#
# > **在论文里**，MultiDiffusion 对各区域的采样*步*取平均，它是一个最小二乘问题的解。如果采样器的一步对 $(\hat x_0, \hat\varepsilon)$ 是线性的，例如 DDIM，那么这与对预测取平均相同。

# %%
from inpaint_gif.inpainting.regional_prompts import Region, in_regions, region_weights

K, SHOWN = 12, 3  # 每种画几张，显示其中几张
how = SamplingConfig(guidance_scale=3.0, sampler="dpmpp_2m:12")


def denoiser(prompt, w=3.0):
    """给采样器用的函数，K 张图像共用一个提示词。"""
    return pipeline.guided([prompt] * K, SamplingConfig(guidance_scale=w))


def draw_with(denoise, seed=2):
    *_, last = pipeline.from_noise(denoise, K, (side, side), how, Noise(seed, 0))
    return pipeline.decode(last.x)


tomato, lettuce = denoiser("番茄炒蛋"), denoiser("葱油生菜")
m_rest, m_right = region_weights([Region.parse("right:葱油生菜")], side, side)  # 每个都是 (1, 1, h, w)，和为 1


def two_dishes(x, level):
    a, b = tomato(x, level), lettuce(x, level)
    return m_rest * a[0] + m_right * b[0], m_rest * a[1] + m_right * b[1]


ours = draw_with(two_dishes)
library = draw_with(in_regions([(tomato, m_rest), (lettuce, m_right)]))
print(f"与 regional_prompts.py 的最大差别：{(ours - library).abs().max():.0e}")
drawings = {"番茄炒蛋": draw_with(tomato), "葱油生菜": draw_with(lettuce), "左：番茄炒蛋\n右：葱油生菜": ours}
show_images(torch.cat([part[:SHOWN] for part in drawings.values()]), SHOWN, down=list(drawings))
two_names = clip.encode_text(["番茄炒蛋", "葱油生菜"])


def halves(part):
    """每张图像的左右两半，各自用镜像补成一整盘。"""
    left, right = part.split(size // 2, dim=-1)
    return {"左半": torch.cat([left, left.flip(-1)], -1), "右半": torch.cat([right.flip(-1), right], -1)}


print(f"{K} 张图像中，被 CLIP 认作番茄炒蛋的张数（括号里是绿减红的平均，从 -2 到 2）：")
for what, part in drawings.items():
    found = []
    for name, plates in halves(part).items():
        near = clip.encode_image(plates) @ two_names.T  # 与两个菜名的余弦
        tint = float((plates[:, 1] - plates[:, 0]).mean())
        found.append(f"{name} {int((near[:, 0] > near[:, 1]).sum()):2} ({tint:+.2f})")
    print(f"  {'，'.join(found)}　　{' '.join(what.split())}")

# %% [markdown]
# 一个盘子里盛着两道菜，盘子的轮廓从一半连到另一半，但盘沿只在部分图像里是完整的。计数时，每一半都用自己的镜像补成一整盘，由 CLIP 判断它更接近哪个菜名。最后一行表明，每一半都被认作自己那道菜，颜色也是那道菜的。
#
# ### 中途改变提示词
#
# 早期的步噪声大，决定大的结构；后期的步决定细节（第 5 章，图生图）。我们从“米饭”开始，走过一部分步数之后换成“番茄炒蛋”。**问题：** 最晚什么时候换提示词，仍然能决定画的是哪道菜？

# %%
from inpaint_gif.inpainting.regional_prompts import in_stages, progress_along

progress = progress_along(pipeline.noise_levels(how))  # 到达某个噪声水平时，已经走完的步数所占的比例
rice, begins = denoiser("米饭"), (0.25, 0.1, 0.05)
drawings = {"米饭": draw_with(rice)}
for begin in begins:
    drawings[f"{begin:.0%} 的步数之后\n换成番茄"] = draw_with(in_stages([(0.0, rice), (begin, tomato)], progress))
drawings["番茄炒蛋"] = draw_with(tomato)
show_images(torch.cat([part[:SHOWN] for part in drawings.values()]), SHOWN, down=list(drawings))
both = clip.encode_text(["米饭", "番茄炒蛋"])
print(f"{'米饭':>6}{'番茄炒蛋':>8}{'更接近番茄炒蛋':>24}　　{'平均余弦，共 ' + str(K) + ' 张图像'}")
for name, part in drawings.items():
    near = clip.encode_image(part) @ both.T
    nearer = percent(share(near[:, 1] > near[:, 0]))
    print(f"{near[:, 0].mean():8.2f}{near[:, 1].mean():12.2f}{nearer:>30}　　{' '.join(name.split())}")

# %% [markdown]
# <details><summary>答案</summary>
#
# 最晚在第一步之后。走过四分之一（十二步中的三步）再换，没有一张图像更接近新的提示词：米饭变淡了，却没有别的东西来代替。走过 10 % 再换，也就是从第三步起，有 25 %<!--out--> 更接近新菜名；走过 5 % 再换，也就是从第二步起，全部都是。画的是*哪道*菜，在十二步中的头两步就定了，那时噪声最强。
# </details>
#
# ### 变化的引导系数
#
# 引导系数也可以随噪声水平变化。`5>1` 在噪声大时强引导，到末尾变弱；`1>5` 正好相反。十二步的平均都接近 3：分别是 3.17<!--given--> 和 2.83<!--given-->。从同样的噪声得到的图像成对比较，这样可以消除大部分随机波动。

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
    """成对之差的平均，附 95 % 置信区间：12 对时为平均 ± 2.20 个标准误差（学生 t 分布）。"""
    return f"{(a - b).mean():+.3f} ± {2.20 * (a - b).std() / K**0.5:.3f}"


measures = {name: (clip.encode_image(part) @ both[1], part.std(1).mean((1, 2))) for name, part in drawings.items()}
print(f"{'':14}{'与菜名的余弦':>16}{'与 w = 3 之差':>21}{'鲜艳度':>13}{'与 w = 3 之差':>21}")
for name, (near, colour) in measures.items():
    a, b = (difference(x, y) for x, y in zip((near, colour), measures["w = 3"], strict=True))
    print(f"{name:14}{near.mean():22.3f}{a:>24}{colour.mean():16.3f}{b:>24}")

# %% [markdown]
# `5>1` 与固定的系数一样符合菜名：余弦之差为 $-0.001 \pm 0.004$。它的图像更鲜艳，高出 $0.013 \pm 0.005$；`1>5` 的图像更不鲜艳，低了 $0.021 \pm 0.019$。两个区间都不包含 0：对这个模型和这个菜名来说，引导系数的变化方式会影响图像的鲜艳程度。其中一部分差别也可能来自平均系数，因为两者并不完全相等。
#
# （鲜艳度是三个通道之间的标准差，再对像素取平均。）在命令行里：
#
# ```sh
# python 06_inpaint_gif/generate.py "番茄炒蛋" --region "right:葱油生菜"
# python 06_inpaint_gif/generate.py "米饭" --then "0.05:番茄炒蛋" --guidance "8>2"
# ```
#
# 加上 `--keep plate.png` 会保存第一张图像，`make_gif.py --image plate.png` 再把它做成动画。
#
# **问题：** 两个区域每一步要评估两次网络。能不能让每个提示词只在自己的区域里评估？
#
# <details><summary>答案</summary>
#
# 卷积网络可以只在裁下的一块上评估。但这样，哪个区域都不知道另一个区域里有什么，所以盘沿不会从一边连到另一边。MultiDiffusion 画宽幅全景图时使用互相重叠的块，就是因为这个原因。
# </details>

# %% [markdown]
# ## 7 · 公开的模型
#
# 我们的模型大约有一百万个权重，画的是小图。本章的一切也适用于公开的模型，因为每个部分都按接口来用，而不认名字：
#
# | 部分 | 我们的 | 公开的 | `make_gif.py` 的参数 |
# |---|---|---|---|
# | 画菜 | `text2dish`，用中文菜名 | `diffusers` 能打开的任何文生图模型，用英文菜名 | `--dish FOLDER-OR-HUB-ID` |
# | 从候选中挑选 | 我们的 CLIP | Chinese CLIP，`cn_clip` 或 `transformers` 的格式 | `--clip ViT-B-16 --candidates 8` |
# | 补画桌面 | 九个通道 | 局部重绘模型，或者带 ControlNet 的文生图模型 | `--model FOLDER-OR-HUB-ID`、`--controlnet FOLDER-OR-HUB-ID` |
#
# ```sh
# python 06_inpaint_gif/make_gif.py "番茄炒蛋" --dish stable-diffusion-v1-5/stable-diffusion-v1-5 --clip ViT-B-16 \
#     --dish-prompt "tomato and scrambled eggs on a plate, photo from above" \
#     --model stable-diffusion-v1-5/stable-diffusion-inpainting
# ```
#
# 公开的模型学的是英文。程序从分词器就能看出这一点，因为它会把汉字切成碎片；这时程序把菜单上的名字翻译成英文，并把引导系数提高到 7.5<!--given-->。Chinese CLIP 比较候选图像时，用的仍是中文菜名。不加 `--clip` 时，由随课程提供的 CLIP 来挑选，但它只见过画出来的菜。
#
# ## 现在你能做什么
#
# * 写出 CLIP 的对比损失，并修改目标，使它适用于有多个正确答案的批。
# * 解释为什么只注意一个词元时处处相同，以及零词元改变了什么。
# * 用零加宽训练好的网络，使它从已有的能力出发。
# * 用九个通道或 RePaint 做局部重绘，并说明已知部分的噪声必须与什么一致。
# * 合成时不改变任何已知像素，并测量接缝、色调跳变和漂移。
# * 让镜头以小数像素移动，看起来匀速，并用相位相关测量它的运动。
# * 让动画循环播放，选择调色板，并知道抖动的代价。
# * 组合去噪器：分区域、分阶段、变化的引导系数。
#
# ## 本章的公式
#
# | | |
# |---|---|
# | 对比损失 | $p_{ij} = \operatorname{softmax}_j(s\,x_i \cdot y_j)$，$\;\mathcal L_i = -\frac{1}{\lvert P_i\rvert}\sum_{j \in P_i}\log p_{ij} - \log\lvert P_i\rvert$ |
# | 有零词元时菜名的权重 | $\operatorname{sigmoid}(q \cdot k / \sqrt d)$ |
# | 引导 | $\tilde\varepsilon = \varepsilon_\varnothing + w\,(\varepsilon_{\text{name}} - \varepsilon_\varnothing)$ |
# | 局部重绘 U-Net 的输入 | $[\,x_t \mid m \mid E((1 - m)\,\text{图像})\,]$ |
# | RePaint | $x_{t-1} = m \odot x_{t-1}^{\text{unknown}} + (1 - m) \odot (\alpha_{t-1} x_0 + \sigma_{t-1}\varepsilon)$ |
# | 合成 | 空缺里为 $\text{原图} + m\,(\text{画出的图} - \text{原图})$，其他地方为原图 |
# | 均匀变焦 | $\text{scale}(t) = a\,(b/a)^{s(t)}$，比例从 $a$ 变到 $b$，其中缓动 $s(t)$ 从 0 变到 1 |
# | 区域 | $\hat x_0 = \sum_i m_i\,\hat x_0^{(i)}$，$\;\hat\varepsilon = \sum_i m_i\,\hat\varepsilon^{(i)}$ |
#
# ## 延伸阅读
#
# * [Learning Transferable Visual Models From Natural Language Supervision](https://arxiv.org/abs/2103.00020)（CLIP）和 [Chinese CLIP](https://arxiv.org/abs/2211.01335)：对应第 1 节。[Supervised Contrastive Learning](https://arxiv.org/abs/2004.11362)（Khosla et al. 2020）给出有多个正确答案时的损失。
# * [High-Resolution Image Synthesis with Latent Diffusion Models](https://arxiv.org/abs/2112.10752) 第 4.5 节：局部重绘。
# * [RePaint](https://arxiv.org/abs/2201.09865)：对应第 3 节。[Blended Latent Diffusion](https://arxiv.org/abs/2206.02779) 在潜空间里合成，并讨论自编码器带来的改变。
# * [Adding Conditional Control to Text-to-Image Diffusion Models](https://arxiv.org/abs/2302.05543)（ControlNet）。
# * [MultiDiffusion](https://arxiv.org/abs/2302.08113)；关于随噪声变化的引导，见 [Applying Guidance in a Limited Interval](https://arxiv.org/abs/2404.07724)：对应第 6 节。
#
# ## 试一试
#
# * 第 1 节：在 `on_a_circle` 里把余弦乘以 1，再乘以 100。先写下来：哪一个把菜分得更开？
# * 第 2 节：不用零词元来画，给 U-Net 的是 `name_tokens(vector)[:, :1]`。
# * 第 3 节：使用 `jump_schedule(20, 5, 10)`。值得花这些时间吗？
# * 第 4 节：规划一段组合运动 `Move.parse("up-left,zoom-out:2")`，看看一览图上的四角。
# * 第 6 节：在盘子中间放另一道菜：`Region.parse("middle:米饭")`。
#
# 然后自己动手写：[练习](exercises/README.zh.md)从镜头留下的空缺开始，一直到你自己设计的镜头运动，用 `python -m common.grade 06` 评分。
#
# 用**你自己的照片**时，`make_gif.py "我的菜" --image plate.jpg` 不需要训练；加上 `--model`，则由局部重绘模型来补画桌面。一个带中文描述的图像文件夹，可以训练本章的所有网络（`train_clip.py`、`train_text2dish.py`、`train_inpaint.py`，都用 `--data my/photos`）。命令见 [README](README.zh.md)。
#
# 这是最后一章。你从噪声和一个手写数字出发，现在已经看过了从菜名到动画这套系统的每一个零件。
