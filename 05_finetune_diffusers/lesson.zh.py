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
# # 第 5 章 · 专业工具
#
# [English](lesson.ipynb) · 中文
#
# 第 4 章从头写出了一个小型 Stable Diffusion。实际工作中，很少有人自己训练这样的模型。大家通常拿来别人训练了几个月的模型，精细地控制它，或者再教它一样东西。做这些事的库有 `diffusers`、`accelerate`、`peft` 和 Compel。
#
# 本章逐个拆开这些工具，直到你能自己写出它们的核心。每种工具都配有思路、公式、几行代码、一张图，还有一个数字，用来检验它是否真的做到了。在本章里，你将
#
# 1. 拆开一条**管线**（pipeline），写出它的循环；
# 2. 更换**调度器**（scheduler），使用引导和**负面提示词**（negative prompt）；
# 3. 用**图生图**（img2img）从一张图像出发，并正确理解它的**重绘强度**（strength）；
# 4. 去除马赛克，并测量修复的效果；
# 5. 用一个从未为此训练过的模型做**局部重绘**（inpainting）；
# 6. 用 **Compel** 给提示词中的词加权；
# 7. **用 `accelerate` 写训练循环**；
# 8. 训练一个 **LoRA**，调节它的强弱，把它并入模型，再存成 kohya 脚本的文件格式；
# 9. 计算训练要用多少**内存**，并判断应该先省哪一部分；
# 10. 用 **DreamBooth** 教模型认识一个特定对象；
# 11. 搭建控制线条位置的 **ControlNet**，并数出它控制了什么；
# 12. 认识模型流传时所用的各种**文件格式**；
# 13. 了解换成 **Stable Diffusion XL** 和**流匹配**模型时会有哪些变化。
#
# 学习本章之前请先读第 4 章。所有代码都能在笔记本电脑的 CPU 上运行，不用下载任何东西，CPU 时间不到六分钟。每一节都会指出本章的哪个程序做同样的事，那些程序可以处理你自己的图像和任意模型。术语的中英文对照见[术语表](../docs/glossary.md)。
#
# > **记号。** $z$ 是干净的潜变量，已经缩放到 U-Net 需要的大小；$\varepsilon$ 是标准正态噪声。带噪声的潜变量是
# > $$x_t = \alpha_t\, z + \sigma_t\, \varepsilon \qquad\text{其中}\qquad \alpha_t = \sqrt{\bar\alpha_t},\quad \sigma_t = \sqrt{1-\bar\alpha_t}.$$
# > $c$ 是提示词的文本嵌入，$\varnothing$ 是空提示词的文本嵌入。$f$ 是自编码器的下采样倍数，也就是图像边长缩小的倍数。
# > 在一个线性层里，$W$ 是形状为（输出数，输入数）的矩阵，这一层计算 $Wx$。

# %%
from common.grade.chapter import open_chapter  # 找不到模块 common？请选择本课程的内核（README.zh.md）

CHAPTER = open_chapter("05_finetune_diffusers 中文")  # 本章的文件夹：从这里起可以导入其中的文件

# %%
import copy
import json
import math
import struct
import tempfile
from itertools import chain, repeat
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from scipy.special import stdtrit
from torch import nn

from common import viz
from common.data import load
from common.data.creatures.attributes import ATTRIBUTES, NAMES
from common.evaluate.creature_classifier import load_creature_classifier, read_attributes
from common.io.pixels import to_bytes, to_float
from finetune_diffusers.images import generators
from finetune_diffusers.models import as_task, native_size, open_pipeline, reconstruct
from finetune_diffusers.schedulers import use_scheduler

plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
# 第 4 章的模型；也可以是任何 Stable Diffusion 1.x 的文件夹
MODEL = CHAPTER.parent / "04_latent_sd" / "pretrained"
STEPS, W = 12, 4.0  # 采样步数和引导系数，除非另有说明
LORA_STEPS, SUBJECT_STEPS, CONTROL_STEPS = 130, 300, 200  # 三次训练的步数，这里都取得很短


def show_images(images, columns, across=(), down=()):
    """把图像 (N, C, S, S)（值在 [-1, 1] 内）按整数倍放大后排成网格，列的上方和行的左侧有标签。"""
    display(viz.labelled_grid(images, columns, across, down, max(1, 140 // images.shape[-1])))


def mean_and_interval(values):
    """每张图像一个数，求这些数的平均值，以及 95 % 置信区间（学生 t 分布）的半宽。"""
    half = float(stdtrit(len(values) - 1, 0.975) * values.std()) / len(values) ** 0.5
    return f"{float(values.mean()):.2f} ± {half:.2f}"


# %% [markdown]
# 怎样知道图像符合提示词？本课程的小怪兽都有已知的属性，第 2 章的**分类器**（classifier）能从图像中读出这些属性。因此，下面每次演示都会输出一个计数：在 $n$ 张图像里，分类器在多少张中看到了我们要的东西？和第 2 章一样，计数都附有 95 % 的威尔逊区间（Wilson interval）。如果是 16 张中有 16 张，这个区间是 81 % 到 100 %，而不是 100 % 到 100 %。

# %%
classifier = load_creature_classifier()


def count(images, **wanted):
    """分类器看到全部这些属性（例如 wings="bat"）的图像有多少张。"""
    table, _ = read_attributes(classifier, images)  # (N, 11)
    hits = [table[:, NAMES.index(name)] == ATTRIBUTES[name].index(value) for name, value in wanted.items()]
    return int(torch.stack(hits).all(0).sum())


def share(k, n, z=1.96):
    """例如“16 张中 15 张（72 % 到 99 %）”，括号里是威尔逊区间。"""
    middle, reach = k / n + z**2 / (2 * n), z * math.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * reach) / (1 + z**2 / n) for sign in (-1, 1))
    return f"{n} 张中 {k} 张（{max(low, 0):.0%} 到 {min(high, 1):.0%}）"


print(share(16, 16))

# %% [markdown]
# ## 1 · 管线
#
# 在 `diffusers` 里，一个模型连同它需要的所有部件合称一条**管线**（pipeline）：U-Net、自编码器、文本编码器及其分词器，还有**调度器**（scheduler）。调度器知道有哪些噪声水平，也知道怎样从一个水平走到下一个。在磁盘上，管线是一个文件夹，每个部件占一个子文件夹，文件 `model_index.json` 记录各部件的类名。本节对应的命令行程序是 `generate.py`。

# %%
pipe = open_pipeline(MODEL)
pipe.set_progress_bar_config(disable=True)
size, f = native_size(pipe), pipe.vae_scale_factor
channels, side = pipe.unet.config.in_channels, size // f
for name, part in pipe.components.items():
    weights = sum(p.numel() for p in part.parameters()) if hasattr(part, "parameters") else 0
    print(f"{name:18}{type(part).__name__:24}{f'{weights:>12,} 个权重' if weights else ''}")
print(
    f"图像为 {size} x {size} 像素，潜变量为 {channels} x {side} x {side}；U-Net 的预测类型是 {pipe.scheduler.config.prediction_type}"
)

# %% [markdown]
# 有三项是 `None`：这个模型没有安全检查器，也没有图像编码器（第 12 节）。
#
# 用提示词调用管线，它就返回图像。里面就是第 4 章的循环，每一步都使用**无分类器引导**（classifier-free guidance）：
#
# $$\hat y = y_\theta(x_t, \varnothing) + w\,\big(y_\theta(x_t, c) - y_\theta(x_t, \varnothing)\big) \tag{1}$$
#
# 其中 $y$ 是 U-Net 所预测的量（$\varepsilon$ 或 $v$）。下面用库里现成的部件写出这个循环。

# %%
PROMPT = "a red creature with bat wings"


@torch.no_grad()
def sample_by_hand(prompt, seed):
    text = torch.cat([pipe.encode_prompt([each], "cpu", 1, False)[0] for each in ("", prompt)])  # (2, M, D)
    x = torch.randn((1, channels, side, side), generator=torch.Generator().manual_seed(seed))
    pipe.scheduler.set_timesteps(STEPS)
    x = x * pipe.scheduler.init_noise_sigma  # 这个调度器起始时的标准差
    for t in pipe.scheduler.timesteps:
        both = pipe.scheduler.scale_model_input(torch.cat([x, x]), t)  # (2, C, h, w)
        uncond, cond = pipe.unet(both, t, text).sample.chunk(2)
        x = pipe.scheduler.step(uncond + W * (cond - uncond), t, x).prev_sample  # 先用 (1)，再走一步
    return pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)


def draw(prompts, seed=0, pipe=pipe, **settings):
    """每个提示词画一张图；第 i 张的种子是 `seed + i`。(N, 3, S, S)，值在 [-1, 1] 内"""
    settings = {"num_inference_steps": STEPS, "guidance_scale": W} | settings
    return pipe(prompts, generator=generators(seed, len(prompts)), output_type="pt", **settings).images * 2 - 1


by_hand, by_pipeline = sample_by_hand(PROMPT, 3), draw([PROMPT], seed=3)
print(f"我们的循环与管线的最大差别：{float((by_hand - by_pipeline).abs().max()):.1e}")
show_images(torch.cat([by_hand, by_pipeline]), 2, ["我们的循环", "管线"])

# %% [markdown]
# 两张图只有舍入误差上的差别，可见管线里没有别的东西。实际使用时有两个细节要注意。第一，有些调度器（Euler、Heun）用 $x_t/\alpha_t$ 代替 $x_t$ 来计算，为此才有 `init_noise_sigma` 和 `scale_model_input`。第二，**随机数生成器**（generator）放在 CPU 上，每张图有自己的种子，所以一张图的结果与设备无关，也与同一批里的其他图无关。
#
# ## 2 · 调度器、引导与负面提示词
#
# ### 调度器
#
# 调度器决定怎样*采样*，不影响模型*学到*了什么。因此不必训练就可以更换它，只要新调度器使用训练时的噪声水平和预测类型：
#
#     pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)  # 换上 Euler 调度器
#
# 噪声调度和预测类型来自配置，怎样走一步则由类决定。这里有一个陷阱：`from_config` 会把*所有*设置都传下去。一旦用过带 Karras 噪声水平的调度器，后面换上的每个调度器也都会用这些水平，除非把这项设置去掉。[schedulers.py](finetune_diffusers/schedulers.py) 里的 `make_scheduler` 会去掉这类设置。
#
# 下图每行是一种调度器，每列是一个种子。所有调度器都从相同的噪声开始。

# %%
names = ["ddim", "euler", "dpm++", "euler-a"]
rows = []
for name in names:
    use_scheduler(pipe, name)
    rows.append(draw([PROMPT] * 4))
    print(f"{name:8} 红色且有蝙蝠翅膀：{share(count(rows[-1], colour='red', wings='bat'), 4)}")
show_images(torch.cat(rows), 4, [f"种子 {i}" for i in range(4)], names)

# %% [markdown]
# 前三种调度器是**确定性的**（deterministic）。它们从同一个起点求解同一个微分方程，所以终点几乎是同一张图。Euler ancestral（`euler-a`）是**随机的**（stochastic）：它每一步都加入新的噪声，所以到达另一张图。
#
# 哪一种需要的步数更少？我们测量结果与精确解的距离，并在 U-Net 的**函数评估次数**（function evaluations）相同的条件下比较，因为计算量就花在这里。下面三种调度器每步评估一次（霍因法每步要评估两次）。


# %%
def final_latents(name, steps):
    use_scheduler(pipe, name)
    settings = {"num_inference_steps": steps, "guidance_scale": W, "output_type": "latent"}
    return pipe([PROMPT], generator=generators(0, 1), **settings).images


accurate = final_latents("dpm++", 60)
counts = [5, 10, 20, 40]
plt.figure(figsize=(5.4, 3.2), layout="constrained")
for name in ("ddim", "euler", "dpm++"):
    errors = [float((final_latents(name, n) - accurate).square().mean().sqrt()) for n in counts]
    plt.loglog(counts, errors, "o--" if name == "euler" else "o-", label=name)
    print(f"{name:6}" + "".join(f"   {n} 次评估：{error:.3f}" for n, error in zip(counts, errors, strict=True)))
plt.xticks(counts, counts)
plt.minorticks_off()
plt.yticks([0.05, 0.1, 0.2, 0.5], [0.05, 0.1, 0.2, 0.5])
plt.xlabel("U-Net 的函数评估次数（使用引导时乘以二）")
plt.ylabel("与精确潜变量的距离")
plt.legend()
plt.show()

# %% [markdown]
# `ddim` 和 `euler` 的两条曲线重合，因为 DDIM 就是换了变量之后，对同一个方程使用的欧拉法。DPM-Solver++ 是二阶方法，步长足够小之后，它的误差下降得更快。对这张图像来说，这来得很晚：评估 20 次以内，三种方法离准确的潜变量一样远；评估 40 次时，它的误差是 0.050<!--out-->，另外两种是 0.070<!--out-->。（一张图像说明不了什么；第 3 章用几千张样本比较各种采样器。）许多教程建议用 DPM-Solver++ 跑 20 到 30 步 Stable Diffusion。蒸馏模型（LCM、Turbo）需要*它们自己的*调度器，走 1 到 8 步。因此除非你另外指定，`generate.py` 会保留模型自带的调度器。
#
# ### 引导
#
# (1) 中的系数 $w$ 放大提示词带来的变化。$w = 1$ 时得到的就是条件预测。当 $w \le 1$ 时，`diffusers` 会关掉引导，省下一半的评估。

# %%
use_scheduler(pipe, "dpm++")
scales = [1.0, 3.0, 8.0, 20.0]
rows = [draw([PROMPT] * 6, guidance_scale=w) for w in scales]
for w, images in zip(scales, rows, strict=True):
    clipped = float((images.abs() > 0.98).float().mean())
    print(
        f"w = {w:<4g} 红色且有蝙蝠翅膀：{share(count(images, colour='red', wings='bat'), 6)}；纯黑或纯白的值：{clipped:.0%}"
    )
show_images(
    torch.cat([images[:4] for images in rows]), 4, [f"种子 {i}" for i in range(4)], [f"w = {w:g}" for w in scales]
)

# %% [markdown]
# 不论系数多大，甚至不用引导，分类器都满意。所以请看图像本身：系数越大，颜色越生硬；到 $w = 20$ 时，翅膀和轮廓开始瓦解，纯黑或纯白的值从 6 % 增加到 12 %<!--out-->。常用的系数，Stable Diffusion 1.5 是 7.5<!--given-->，XL 是 5 到 7，Stable Diffusion 3 是 3 到 5。它取决于具体的模型，并不是定律。
#
# ### 负面提示词
#
# **负面提示词**（negative prompt）取代 (1) 中空提示词的位置，预测会朝远离它的方向移动：
#
# $$\hat y = y_\theta(x_t, c_{\text{neg}}) + w\,\big(y_\theta(x_t, c) - y_\theta(x_t, c_{\text{neg}})\big)$$
#
# **先猜一猜。** 提示词 *a creature* 没有规定颜色，也没有规定元素。如果负面提示词是 *purple*，紫色怪兽的数量会怎样变化？其余的怪兽会是什么样子？再有，负面提示词 *bat wings* 能不能去掉 *a red creature with bat wings* 的翅膀？

# %%
n, plain = 16, "a creature"
drawn = {negative: draw([plain] * n, negative_prompt=[negative] * n) for negative in ("", "purple", "fire")}
for negative, images in drawn.items():
    print(
        f"提示词 '{plain}'，负面提示词 '{negative}'：紫 {share(count(images, colour='purple'), n)}，"
        f"黄 {share(count(images, colour='yellow'), n)}，"
        f"火 {share(count(images, element='fire'), n)}，水 {share(count(images, element='water'), n)}"
    )
show_images(
    torch.cat([images[:6] for images in drawn.values()]), 6, down=[f"负面：{name}" if name else "无" for name in drawn]
)
for negative in ("", "bat wings"):
    images = draw([PROMPT] * 8, negative_prompt=[negative] * 8)
    print(f"提示词 '{PROMPT}'，负面提示词 '{negative}'：蝙蝠翅膀 {share(count(images, wings='bat'), 8)}")

# %% [markdown]
# <details><summary>答案</summary>
#
# 负面提示词点名的颜色消失了；*fire* 本来就很少（16 张中 1 张）。但其余部分并没有保持原样。远离 *purple* 之后，怪兽变成绿色和黄色。远离 *fire* 之后，16 只全都成了水元素。公式说明了原因：预测沿着 $y_\theta(x_t, c) - y_\theta(x_t, c_{\text{neg}})$ 的方向移动，这个方向背离紫色，它的尽头是绿色和黄色，而不是*任意一种别的颜色*。所以负面提示词是朝相反方向推一把，不是过滤器。
#
# 所有图像里的翅膀都还在。提示词要求有翅膀，而在提示词与负面提示词一致的地方，这股推力很小。负面提示词只对提示词*没有规定*的东西起作用。要去掉提示词里写明的东西，就去改提示词。
#
# </details>
#
# ## 3 · 从图像到图像：重绘强度
#
# **图生图**（img2img）不从噪声出发，而从一张图像出发。先把图像编码成 $z$，加噪到噪声调度中间的某个水平，再从那里开始按提示词去噪（SDEdit，[Meng et al. 2021](https://arxiv.org/abs/2108.01073)）。**重绘强度**（strength）$s$ 决定加噪到多高的水平：
#
# $$n = \min(\mathrm{int}(s\,N),\, N) \qquad x_{t} = \alpha_t\, z + \sigma_t\, \varepsilon \quad\text{取从干净一端数起的第 } n\text{ 个时间步，共有 } N \text{ 个} \tag{2}$$
#
# 然后走 $n$ 步。由此得出三点。第一，重绘强度为 0.5、步数为 20 时，U-Net 只评估 10 步。第二，`int` 是*向下*取整。第三，$s$ 数的是步数，不是噪声的比例；它对应哪个 $\sigma_t$，要看噪声调度。

# %%
print("   N  重绘强度       s N   n       起始时间步   alpha_t   sigma_t")
for N, s in ((20, 0.2), (20, 0.4), (20, 0.6), (20, 0.8), (20, 1.0), (50, 0.58), (10, 0.09)):
    n = min(int(s * N), N)
    pipe.scheduler.set_timesteps(N)
    row = f"{N:4}{s:10g}{s * N:10.4g}{n:4}"
    if n:
        t = int(pipe.scheduler.timesteps[N - n])
        a = float(pipe.scheduler.alphas_cumprod[t])
        row += f"{t:17}{a**0.5:10.3f}{(1 - a) ** 0.5:10.3f}"
    print(row)
print(f"用浮点数计算，0.58 * 50 = {0.58 * 50!r}")

# %% [markdown]
# 最后两行是陷阱。浮点数的 $0.58 \cdot 50$ 略小于 29，所以 `int` 得到 28。而重绘强度 0.09、步数 10 的组合一步也不走。如果要比较不同的重绘强度，请让 $sN$ 取整数。
#
# 常有人说，*重绘强度低则保留原图，重绘强度高则服从提示词*（[这一说法](../docs/claims.zh.md#重绘强度在原图与提示词之间取舍)）。我们来检验它。取八只没有用于训练任何模型的怪兽，用提示词 *a blue creature with two horns* 重绘。它们原来都不是蓝色的。

# %%
image_pipe = as_task(pipe, "image")  # 同样的网络，组成完成另一种任务的管线；不复制任何权重
image_pipe.set_progress_bar_config(disable=True)
creatures = load("creatures", size, split="test", language="en", n=24)
truth = to_float(creatures.pixels)
table, _ = read_attributes(classifier, truth)
colour = NAMES.index("colour")
some = truth[table[:, colour] != ATTRIBUTES["colour"].index("blue")][:8]
own, _ = read_attributes(classifier, some)
n, strengths, rows = len(some), [0.2, 0.4, 0.6, 0.8, 1.0], [some]
for s in strengths:
    settings = {"image": (some + 1) / 2, "strength": s, "num_inference_steps": 20}
    rows.append(draw(["a blue creature with two horns"] * n, pipe=image_pipe, **settings))
    now, _ = read_attributes(classifier, rows[-1])
    kept = int((now[:, colour] == own[:, colour]).sum())
    print(f"重绘强度 {s:g}：蓝色 {share(count(rows[-1], colour='blue'), n)}，仍是原来的颜色 {share(kept, n)}")
show_images(torch.cat([images[:4] for images in rows]), 4, down=["原图"] + [f"s = {s:g}" for s in strengths])

# %% [markdown]
# 两个计数一升一降，中途相交。重绘强度低时，颜色不变，只有细节移动。重绘强度高时由提示词决定；到 $s = 1$ 时原图几乎什么也没留下，因为 $x_T$ 几乎是纯噪声。在两者之间，粗略的特征（颜色、位置）由高噪声水平决定，细微的特征由低噪声水平决定，这与第 2 章的测量一致。`studies/strength.py` 对每种属性和几种引导系数做同样的测量，结果见 [RESULTS.md](RESULTS.md)。
#
# 想要更多像素时，常见的做法是用低重绘强度（**高清修复**，hires fix）：先按训练时的尺寸画，再放大，然后用 0.4<!--given--> 左右的重绘强度重绘。这样构图不变，细节增加。
#
# ## 4 · 图像修复：去除马赛克
#
# 一只没有用于训练任何模型的怪兽藏在马赛克后面。马赛克的每一块显示块内像素的平均值，所以它是关于原图的一条线索；提示词（真实的文本描述）是另一条。我们知道原图，所以能测量修复的效果：用第 4 章的**峰值信噪比**（PSNR），单位是分贝，越大越接近原图。循环从马赛克图像出发，最后再把已知像素贴回去。

# %%
from finetune_diffusers.data.degradations import Degradation, grow_to_blocks, keep_known
from finetune_diffusers.evaluation.metrics import similarity

n = 8
truth, captions = truth[:n], list(creatures.captions[:n])
mosaic = Degradation("mosaic", block=size // 8, fraction=0.6)  # 一条边可以排下八块
mask = mosaic.mask(n, size, size)  # (N, 1, S, S)，像素被遮住的地方为 1
hidden = mosaic.corrupt(truth, mask)


def repair(image, seed=0, **settings):
    settings = {"guidance_scale": 2.0, "num_inference_steps": 20} | settings
    return draw(captions, seed, pipe=image_pipe, image=image, **settings)


results = {"原图": truth, "马赛克": hidden, "双三次": mosaic.classical_repair(hidden, mask)}
results |= {f"s = {s:g}": keep_known(repair((hidden + 1) / 2, strength=s), hidden, mask) for s in (0.2, 0.4, 0.6, 0.8)}
psnr = {name: similarity(images, truth)["psnr"] for name, images in list(results.items())[1:]}
for name, values in psnr.items():
    print(
        f"PSNR {mean_and_interval(values)} dB，与马赛克相比 {mean_and_interval(values - psnr['马赛克'])} dB   {name}"
    )
show_images(torch.stack(list(results.values()), 1)[:4].flatten(0, 1), len(results), list(results))

# %% [markdown]
# 输出中“与马赛克相比”这一列是逐张图像比较的，图像之间的差别因此抵消，所以应当看它的区间。最好的重绘强度比马赛克提高约 0.7 dB<!--out-->，双三次插值几乎没有提高；从 0.6 起，区间包含 0。再用眼睛比较一下。PSNR 偏爱小的平方误差。如果不知道眼睛在哪里，最稳妥的答案就是对所有可能的位置取平均，而那是一团模糊（第 1 章）。所以 PSNR 最高的修复不是最好看的；$s = 0.8$ 时轮廓更清楚，却是另一张脸。`restore.py` 同时研究重绘强度、引导系数和步数。如果你从许多设置中挑出最好的一个，请用没有参与挑选的图像再测一次。
#
# ### 在潜空间里走两遍
#
# 管线可以首尾相接，不必离开潜空间。设置 `output_type="latent"` 后，第一条管线返回潜变量，第二条把潜变量当作输入图像，这样省去一次解码和一次编码。Stable Diffusion XL 的精修模型（refiner）就是这样接上去的。

# %%
settings = {"guidance_scale": 2.0, "num_inference_steps": 20, "strength": 0.4, "output_type": "latent"}
latents = image_pipe(captions, image=(hidden + 1) / 2, generator=generators(0, n), **settings).images
again = keep_known(repair(latents, seed=n, strength=0.2), hidden, mask)
print(f"传给下一条管线的潜变量：{tuple(latents.shape)}")
gain = similarity(again, truth)["psnr"] - psnr["s = 0.4"]
print(f"第二遍与第一遍相比：{mean_and_interval(gain)} dB")

# %% [markdown]
# 先看区间，再看平均值。直接传递潜变量既方便又精确，但对这个任务来说，第二遍没有多大用处，因为它没有增加关于原图的信息。
#
# ## 5 · 局部重绘
#
# 图生图从*加了噪声的*受损图像出发，到最后才把已知像素贴回去。中间这段时间，已知区域会漂移，新画的部分就可能与它接不上。**局部重绘**（inpainting）在*每一步*之后都把已知部分放回去，并加噪到这一步的噪声水平。设要重画的地方 $m$ 为 1：
#
# $$x \leftarrow m \odot x + (1 - m) \odot (\alpha_s\, z + \sigma_s\, \varepsilon) \qquad\text{每走一步之后，此时水平为 } s \tag{3}$$
#
# 这个办法适用于任何模型（练习 `inpaint`）。当 U-Net 有 4 个输入通道时，`StableDiffusionInpaintPipeline` 用的就是它。
#
# > **用哪一份噪声？** (3) 中的 $\varepsilon$ 可以只抽取一次，也可以每步重新抽取。单看一步，两种都对，因为 $\alpha_s z + \sigma_s\varepsilon$ 的分布正是 U-Net 在水平 $s$ 上应当看到的。区别在于*各步之间*的关系。`diffusers` 只抽取一次 $\varepsilon$，所以已知部分沿着一条路径移动，就像在确定性采样器里那样。RePaint（[Lugmayr et al. 2022](https://arxiv.org/abs/2201.09865)，公式 8）每步重新抽取，就像 DDPM 每步加入新的噪声；此外它还跳回更高的噪声水平，重复走同样的步，让两部分有时间互相适应。第 6 章会用到它。
#
# > **专门的局部重绘模型**，U-Net 有 9 个输入通道：带噪声的潜变量（4）、蒙版（1）、被遮住的图像的潜变量（4）。这种模型*看得见*已知的部分，并且受过接着画下去的训练。手头有这样的模型，就用它。
#
# 蒙版在像素空间，(3) 在潜空间，所以蒙版要缩小为 $f$ 分之一。潜变量的一个位置对应 $f \times f$ 个像素，其中*任何*一个像素要重画，这个位置就要重画。`diffusers` 只看其中一个像素，会漏掉细的划痕。所以请先把蒙版扩大到整块。

# %%
inpaint_pipe = as_task(pipe, "inpaint")
inpaint_pipe.set_progress_bar_config(disable=True)
scratch = Degradation("scratch", scratches=5)
scratches = scratch.mask(n, size, size)
scratched = scratch.corrupt(truth, scratches)
settings = {"num_inference_steps": 20, "guidance_scale": 2.0, "strength": 0.7, "height": size, "width": size}
repaired = {"原图": truth, "有划痕的图": scratched}
for name, wanted in (("原来的蒙版", scratches), ("扩大的蒙版", grow_to_blocks(scratches, f))):
    images = draw(captions, pipe=inpaint_pipe, image=(scratched + 1) / 2, mask_image=wanted, **settings)
    repaired[name] = keep_known(images, scratched, scratches)
    places = int(F.interpolate(wanted, (side, side)).sum())
    print(f"{name:6}重绘 {places:4} 个位置；PSNR {mean_and_interval(similarity(repaired[name], truth)['psnr'])} dB")
print(f"{'有划痕的图':6}PSNR {mean_and_interval(similarity(scratched, truth)['psnr'])} dB")
show_images(torch.stack(list(repaired.values()), 1)[:4].flatten(0, 1), 4, list(repaired))

# %% [markdown]
# 使用原来的蒙版时，划痕下的大多数位置没有重画，所以划痕还留着一部分。扩大的蒙版把这些位置全部重画，只留下淡淡的痕迹。
#
# ## 6 · 提示词权重
#
# `red++` 表示这个词更重要，`(bat wings)0.5` 表示没那么重要。这是 **Compel** 的写法。文本编码器给每个词元一个向量。权重 $s$ 让一个词的向量 $z$ 远离或靠近*空*提示词的向量 $z_\varnothing$：
#
# $$z' = z_\varnothing + s\,(z - z_\varnothing) \tag{4}$$
#
# 当 $s < 1$ 时，这还不够，因为*其他*词元也曾注意到这个词。所以 Compel 还要混入另一个嵌入：在那个嵌入里，没有任何词元能注意到这个词。$s$ 越小，它占的比例越大；$s = 0$ 时只剩下它。设 $r = \tan((1-s)\,\pi/2)$，两者按 $1 : r$ 混合（练习 `weigh_word`）。$s \ge 1$ 时代码很短：

# %%
from finetune_diffusers.prompt_weights import embed_by_compel, read_weights, weigh


@torch.no_grad()
def embed_weighted(fragments):
    """[("a red creature with", 1.0), ("bat wings", 1.6)] 的嵌入，所有权重都不小于 1。(1, M, D)"""
    tokens = [
        (token, s) for text, s in fragments for token in pipe.tokenizer(text, add_special_tokens=False).input_ids
    ]
    empty = pipe.tokenizer("", padding="max_length", return_tensors="pt").input_ids  # 开始、结束、填充
    ids, scale = empty.clone(), torch.ones(empty.shape)
    row = torch.tensor([token for token, _ in tokens] + [pipe.tokenizer.eos_token_id])
    ids[0, 1 : len(row) + 1], scale[0, 1 : len(tokens) + 1] = row, torch.tensor([s for _, s in tokens])
    z, z_empty = pipe.text_encoder(ids).last_hidden_state, pipe.text_encoder(empty).last_hidden_state
    return z_empty + scale[..., None] * (z - z_empty)  # (4)


strong, weak = "a red creature with (bat wings)1.6", "a red creature with (bat wings)0.4"
for weighted in (strong, weak):
    fragments, theirs = read_weights(weighted), embed_by_compel(pipe, weighted).tokens
    ours = embed_weighted(fragments) if weighted is strong else weigh(pipe.tokenizer, pipe.text_encoder, fragments)
    print(f"{weighted}：与 Compel 的最大差别 {float((theirs - ours).abs().max()):.1e}")

# %% [markdown]
# 第二行用的是本章的完整版本，即 [prompt_weights.py](finetune_diffusers/prompt_weights.py) 里的 `weigh`。现在给 *bat wings* 四种权重，每次都用同样的 16 个种子。

# %%
nothing = weigh(pipe.tokenizer, pipe.text_encoder, [("", 1.0)]).expand(16, -1, -1)
rows, weights = [], [0.0, 0.5, 1.0, 1.5]
for s in weights:
    z = weigh(pipe.tokenizer, pipe.text_encoder, [("a red creature with", 1.0), ("bat wings", s)]).expand(16, -1, -1)
    embeddings = {"prompt_embeds": z, "negative_prompt_embeds": nothing, "generator": generators(0, 16)}
    images = pipe(**embeddings, num_inference_steps=STEPS, guidance_scale=W, output_type="pt").images * 2 - 1
    rows.append(images[:5])
    print(
        f"权重 {s:g}：蝙蝠翅膀 {share(count(images, wings='bat'), 16)}，红色 {share(count(images, colour='red'), 16)}"
    )
show_images(torch.cat(rows), 5, down=[f"(bat wings){s:g}" for s in weights])

# %% [markdown]
# 权重增大，翅膀就出现了；颜色的权重始终是 1，所以颜色不变。权重远大于 1 时，嵌入会超出 U-Net 训练时见过的范围，图像质量就会下降：请不要超过 1.5<!--given--> 左右。
#
# > **其他程序里的写法。** webui（AUTOMATIC1111）写作 `(bat wings:1.5)`，它把 $z$ 本身乘上权重，再恢复整个嵌入的平均值。所以同一个数字在那里的强弱并不相同。提示词超过 CLIP 的 77 个词元时，`diffusers` 会截断；webui，以及设了 `truncate_long_prompts=False` 的 Compel，则每 75 个词元编码一段，再把各段拼接起来。
#
# ## 7 · 用 `accelerate` 写训练循环
#
# ### 别人的软件包里的一步
#
# 遇到一个新的训练软件包，先**手算一步**，把它的损失与你算出的比较。这样你就知道它对你的图像做了什么。这里用 `denoising_diffusion_pytorch`，它用六行代码就能在一个图像文件夹上训练像素空间的模型（`ddpm_package.py`）。

# %%
from common.data.image_export import export
from finetune_diffusers.training.ddpm_package_trainer import make_diffusion, step_by_hand
from finetune_diffusers.training.flags import PackageFlags

folder = tempfile.TemporaryDirectory()  # 随笔记本一起删除
here = Path(folder.name)
export(load("creatures", 32, n=8), here / "images")
diffusion = make_diffusion(PackageFlags(size=32, dim=8, seed=0))
loss_by_hand = step_by_hand(diffusion, here / "images", seed=0)

# %% [markdown]
# 这就是第 1 章的六个步骤，只是名字不同。这个软件包把循环藏在 `Trainer` 里。代码很短，但它没有提供的东西你就改不了。所以多数微调代码都自己写循环。
#
# ### 数据只编码一次
#
# 自编码器和文本编码器是冻结的，它们对一张图像及其文本描述的输出永远不变。所以潜变量和文本嵌入只算一次，之后这两个网络就可以移出内存。

# %%
from diffusers import DDPMScheduler

noise = DDPMScheduler.from_config(pipe.scheduler.config)  # 训练时的噪声水平
with torch.no_grad():
    EMPTY = pipe.encode_prompt([""], "cpu", 1, False)[0]  # (1, M, D)


@torch.no_grad()
def encoded(pixels, captions):
    """数据集的各列：潜变量 (N, C, h, w) 和文本嵌入 (N, M, D)。"""
    latents = [pipe.vae.encode(to_float(part)).latent_dist.mean for part in pixels.split(16)]
    text = [pipe.encode_prompt(list(captions[i : i + 16]), "cpu", 1, False)[0] for i in range(0, len(captions), 16)]
    return {"latent": torch.cat(latents) * pipe.vae.config.scaling_factor, "text": torch.cat(text)}


# %% [markdown]
# ### 损失
#
# 抽取噪声水平和噪声，混合，预测，比较。（一批样本的噪声水平在整个噪声调度上均匀铺开，这样损失的波动比各自独立抽取时小。）网络应当预测什么，由模型的**预测类型**（prediction type）决定，微调时必须保持不变：
#
# $$y = \varepsilon \quad(\varepsilon\text{-prediction}) \qquad\qquad y = \alpha_t\, \varepsilon - \sigma_t\, z \quad(v\text{-prediction})$$
#
# 常用的选项有两个。**随机丢弃文本条件**（caption dropout）把十分之一的文本描述换成空文本，使引导仍然可用。**min-SNR 加权**（[Hang et al. 2023](https://arxiv.org/abs/2303.09556)）限制接近干净的水平的权重，因为这些水平数量多而且容易。记 $\mathrm{SNR} = \alpha_t^2/\sigma_t^2$，平方误差的权重是
#
# $$\frac{\min(\mathrm{SNR}, \gamma)}{\mathrm{SNR}} \quad(\varepsilon\text{-prediction}) \qquad\qquad \frac{\min(\mathrm{SNR}, \gamma)}{\mathrm{SNR} + 1} \quad(v\text{-prediction}), \qquad \gamma = 5.$$


# %%
VELOCITY = noise.config.prediction_type == "v_prediction"


def noisy(z, t):
    """时间步 t (B,) 处的带噪潜变量，以及网络应当为它预测的量。"""
    eps = torch.randn_like(z)
    x = noise.add_noise(z, eps, t)  # 即 alpha_t z + sigma_t eps
    return x, noise.get_velocity(z, eps, t) if VELOCITY else eps


def squared_errors(net, batch, caption_dropout, predict=None, gamma=5.0):
    """一批图像中每张的平方误差；gamma 不为 None 时带 min-SNR 权重。(B,)"""
    z, text = batch["latent"], batch["text"]
    u = (torch.randperm(len(z)) + torch.rand(len(z))) / len(z)  # 把 [0, 1) 分成 B 等份，每份里取一个
    t = (u * len(noise)).long()
    x, target = noisy(z, t)
    dropped = torch.rand(len(z)) < caption_dropout
    text = torch.where(dropped[:, None, None], EMPTY, text)
    y = predict(net, x, t, text, batch) if predict else net(x, t, text).sample
    errors = (y.float() - target).square().mean((1, 2, 3))
    if gamma is None:
        return errors
    snr = noise.alphas_cumprod[t] / (1 - noise.alphas_cumprod[t])
    return errors * (snr.clamp(max=gamma) / (snr + 1) if VELOCITY else (gamma / snr).clamp(max=1))


def captioned_loss(net, batch):
    return squared_errors(net, batch, caption_dropout=0.1).mean()


# %% [markdown]
# ### 循环
#
# 有了 `accelerate`，循环里就不必提到设备。同样几行代码既能在 CPU 上运行，也能用半精度在一块 GPU 上运行，还能在许多块 GPU 上运行。它提供这些操作：
#
# | | 作用 |
# |---|---|
# | `prepare` | 把网络、优化器、数据加载器和学习率调度移到设备上，并把各批数据分给各个进程 |
# | `accumulate` | 在累积够若干小批之前，跳过优化器的更新和梯度的交换；一轮结束时也会更新 |
# | `autocast` | 以选定的精度做前向传播；权重仍是 float32 |
# | `backward` | 把损失除以累积的批数，在 fp16 下放大损失，再调用 `backward()` |
# | `sync_gradients` | 这一批完成一次优化器更新时为真 |
# | `clip_grad_norm_` | 在 fp16 下先把梯度还原，再限制它的范数 |
# | `save_state`、`load_state` | 写入和读取续训所需的一切 |
#
# **权重的平均**（EMA）不在 `accelerate` 里。每次优化器更新之后，计算 $\bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta$。它大约记得最近 $1/(1-d)$ 步，半衰期是 $\ln 2/\ln(1/d)$ 步（练习 `ema_half_life`）。所以 $d$ 必须与训练的长度相配：只训练 130 步时，固定的 $d = 0.9999$<!--given--> 得到的几乎就是初始权重。因此 `diffusers` 的 `EMAModel` 从较小的值开始：第 $k$ 次更新用 $\min(d, \frac{k}{k+9})$，第一次更新直接复制权重。

# %%
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader


def train(net, columns, loss, steps, lr, batch_size=8, accumulation=1, decay=0.95, rates="cosine", state=None):
    """训练 `net` 中需要梯度的权重，结束时把它们的平均留在网络里。返回每一批的损失。"""
    set_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)  # 在 GPU 上加 mixed_precision="bf16"
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr)
    schedule = get_scheduler(rates, optimizer, num_warmup_steps=steps // 20, num_training_steps=steps)
    rows = [{name: column[i] for name, column in columns.items()} for i in range(len(columns["latent"]))]
    loader = DataLoader(rows, batch_size, shuffle=True, drop_last=True)
    net, optimizer, loader, schedule = accelerator.prepare(net, optimizer, loader, schedule)
    ema = EMAModel(weights, decay)
    accelerator.register_for_checkpointing(ema)  # save_state 只知道经过 prepare 或登记过的东西

    net.train()
    losses, step = [], 0
    for batch in chain.from_iterable(repeat(loader)):  # 一轮接一轮
        with accelerator.accumulate(net):
            with accelerator.autocast():
                error = loss(net, batch)
            accelerator.backward(error)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(float(error.detach()))
        if accelerator.sync_gradients:
            ema.step(weights)  # 在优化器更新之后，平均才不会落后一步
            step += 1
            if step == steps:
                break
    if state:
        accelerator.save_state(state)
    ema.copy_to(weights)
    net.eval()
    accelerator.free_memory()
    return losses


# %% [markdown]
# 这个循环省略了三件事，而各程序的训练器都有（[training/](finetune_diffusers/training)）。第一，*续训*时，要在 `prepare` 之后调用 `load_state`，并跳过当前这一轮里已经用过的批（`skip_first_batches`），否则它们会被用两次。第二，损失变成 NaN 时，训练必须停止，并指出最后一个完好的检查点。第三，验证图像要用平均后的权重来画：画之前换上，画完再换回来，即使画图失败也要换回来（练习 `averaged`）。
#
# ## 8 · LoRA：装进小文件的风格
#
# ### 思路
#
# 全量微调会改变所有权重，每个结果都是一个完整的模型。**低秩适配**（low-rank adaptation，[Hu et al. 2021](https://arxiv.org/abs/2106.09685)）让 $W$ 保持冻结，只学习一个改变量，它是两个瘦长矩阵的乘积，通常只加在注意力层里：
#
# $$W' = W + \frac{\alpha}{r}\, B A, \qquad A \in \mathbb{R}^{r \times \text{in}},\quad B \in \mathbb{R}^{\text{out} \times r} \tag{5}$$
#
# * **秩**（rank）$r$ 限制能学到的东西，也决定文件的大小。
# * $\alpha$ 是一个常数，*不是*网络的权重。作者除以 $r$，是为了改变 $r$ 时不必改变学习率。但如果 $\alpha$ 不变，梯度下降的第一次更新仍会随 $r$ 增大而变小（练习 `first_update`）。所以很多人取 $\alpha = r$，使这个因子等于 1；秩稳定的 LoRA 则除以 $\sqrt r$（[Kalajdzievski 2023](https://arxiv.org/abs/2312.03732)）。
# * $B$ 从零开始，所以一开始 $W' = W$。$A$ 不能也是零，因为两个矩阵的梯度里都含有另一个矩阵作为因子（练习 `new_adapter`）。
#
# > **$A$ 怎样初始化？** 论文只说用随机的高斯分布。作者的代码和 `peft` 的默认设置用均匀分布，上下界为 $\pm 1/\sqrt{\text{in}}$。`diffusers` 的训练脚本指定 `init_lora_weights="gaussian"`，在 `peft` 里这表示标准差为 $1/r$。


# %%
class LoRALinear(nn.Module):
    """旁边带有适配器的线性层：(5)。"""

    def __init__(self, layer, rank, alpha):
        super().__init__()
        self.layer, self.factor = layer.requires_grad_(False), alpha / rank
        self.A = nn.Parameter(torch.randn(rank, layer.in_features) / rank)
        self.B = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x):  # (..., in) -> (..., out)
        return self.layer(x) + self.factor * (x @ self.A.T @ self.B.T)  # 从不算出矩阵 B A


# %% [markdown]
# ### 数据
#
# 我们要让模型学会**蓝晒法**（cyanotype）的风格，这是一种只有蓝白两色的老式照片。风格由我们自己制作，所以学得好不好可以用数字衡量：每种颜色都落在两种墨色的连线上，`stray` 测量一张图像的颜色离这条线有多远（均方根，从黑到白的距离算作 2）。每条文本描述的末尾都加上这种风格的说法。

# %%
from finetune_diffusers.data.styles import STYLES, stray, styled_caption, styled_pixels, tones

style = STYLES["blueprint"]._replace(words="in the style of a cyanotype", share=tones)  # 用它的两种墨色，按明暗混合
plain_set = load("creatures", size, language="en", n=200)
styled = styled_pixels(style, plain_set.pixels)
captions = [styled_caption(style, caption) for caption in plain_set.captions]
style_columns = encoded(styled, captions)
show_images(torch.cat([to_float(plain_set.pixels[:6]), to_float(styled[:6])]), 6, down=["原图", "训练图像"])
print(f"第一条文本描述：{captions[0]}")
print(f"与两种墨色的距离：训练图像 {mean_and_interval(stray(style, to_float(styled)))}")
print(f"经过自编码器之后：{mean_and_interval(stray(style, reconstruct(pipe.vae, to_float(styled[:24]))))}")

# %% [markdown]
# 自编码器不能精确地再现这两种墨色，所以最后这个数是训练好的 U-Net 大致能达到的结果。它不是严格的界限：别的潜变量解码后可能离墨色更近一点（[RESULTS.md](RESULTS.md)）。
#
# ### 训练
#
# `peft` 把适配器装进 U-Net。只有适配器需要梯度，所以也只训练它们。

# %%
from peft import LoraConfig

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
asked = [
    f"{prompt}, {style.words}"
    for prompt in ("a red creature with bat wings", "a blue round creature", "a green creature with a long tail", "a purple creature with two horns")
] * 2  # fmt: skip
before, few = draw(asked), draw(asked[:2])

pipe.unet.requires_grad_(False)
torch.manual_seed(0)
pipe.unet.add_adapter(
    LoraConfig(r=8, lora_alpha=8, init_lora_weights="gaussian", target_modules=ATTENTION), "cyanotype"
)
trained = [weight for weight in pipe.unet.parameters() if weight.requires_grad]
total = sum(weight.numel() for weight in pipe.unet.parameters())
print(f"共 {total:,} 个权重，训练其中 {sum(weight.numel() for weight in trained):,} 个")
first = next(module for module in pipe.unet.modules() if hasattr(module, "lora_A"))
print(f"第一个 A 的标准差：{float(first.lora_A['cyanotype'].weight.detach().std()):.3f}，而 1/r = {1 / 8:g}")
print(f"新的适配器不改变结果：最大差别 {float((draw(asked[:2]) - few).abs().max()):g}")

losses = train(pipe.unet, style_columns, captioned_loss, LORA_STEPS, lr=4e-3, state=here / "state")
print(f"损失：前 20 步 {np.mean(losses[:20]):.3f}，后 20 步 {np.mean(losses[-20:]):.3f}")
print("save_state 写入的文件：")
for path in sorted((here / "state").iterdir()):
    print(f"  {path.name:36} {path.stat().st_size / 1e3:8.0f} kB")

# %% [markdown]
# 看看这份清单：网络、优化器（对每个受训权重，存其梯度的一阶矩和二阶矩的估计）、学习率调度、随机状态，还有我们登记过的 EMA。网络的文件里存着*所有*权重，冻结的也在内：对大模型来说，每个检查点就有好几 GB。所以各程序都登记了一个钩子，只保存适配器。
#
# `peft` 做的真是 (5) 吗？我们取一个训练过的层，用自己的类计算它的输出。

# %%
ours = LoRALinear(first.base_layer, 8, 8)
ours.A.data, ours.B.data = first.lora_A["cyanotype"].weight.data, first.lora_B["cyanotype"].weight.data
x = torch.randn(5, first.base_layer.in_features)
with torch.no_grad():
    print(f"peft 的层与我们的层的最大差别：{float((first(x) - ours(x)).abs().max()):.1e}")

# %% [markdown]
# ### 缩放系数
#
# 适配器保存成一个文件，`diffusers` 可以直接加载。它的**缩放系数**（scale）乘在 (5) 的因子上：0 表示没有适配器的模型，1 表示训练时的样子。

# %%
from diffusers import StableDiffusionPipeline
from peft.utils import get_peft_model_state_dict

adapter = get_peft_model_state_dict(pipe.unet, adapter_name="cyanotype")  # {"...to_q.lora_A.weight": (r, in), ...}
StableDiffusionPipeline.save_lora_weights(here, adapter, weight_name="cyanotype.safetensors")
print(f"cyanotype.safetensors：{(here / 'cyanotype.safetensors').stat().st_size / 1e3:.0f} kB")

fresh = open_pipeline(MODEL)  # 模型原来的样子
fresh.set_progress_bar_config(disable=True)
use_scheduler(fresh, "dpm++")
fresh.load_lora_weights(here, weight_name="cyanotype.safetensors", adapter_name="cyanotype")
rows, lora_scales = [], [0.0, 0.5, 1.0, 1.5]
for scale in lora_scales:
    fresh.set_adapters(["cyanotype"], [scale])
    rows.append(draw(asked, pipe=fresh))
    print(f"LoRA 系数 {scale:g}：与两种墨色的距离 {mean_and_interval(stray(style, rows[-1]))}")
print(f"系数为 0 时，与没有适配器的模型的最大差别：{float((rows[0] - before).abs().max()):g}")
show_images(torch.cat([images[:4] for images in rows]), 4, down=[f"系数 {scale:g}" for scale in lora_scales])

# %% [markdown]
# 系数为 0 时，模型没有变化，逐位相同。系数接近 1 时，颜色移向两种墨色，但没有达到自编码器允许的程度，因为训练时间很短。超过 1 就是外推，和引导一样：风格更强，形状开始瓦解。
#
# 请注意训练*没有*教会什么。每张训练图像都是蓝晒风格，所以文本描述里说明风格的词不含任何信息，不写这些词，风格也会出现（[RESULTS.md](RESULTS.md) 对 `lora.py` 测量了这一点）。要让风格只跟着这些词出现，就要混入没有这种风格的图像（**正则化集**，regularisation set）。
#
# ### 合并
#
# 几个适配器可以同时起作用，各有各的系数 $s_k$：$W' = W + \sum_k s_k \frac{\alpha_k}{r_k} B_k A_k$。**融合**（fusing）把这个和一次性加到 $W$ 上，之后适配器就不再花费时间（练习 `merge_adapters`）。

# %%
layer = next(module for module in fresh.unet.modules() if hasattr(module, "lora_A"))
A, B = layer.lora_A["cyanotype"].weight.detach(), layer.lora_B["cyanotype"].weight.detach()
expected = layer.base_layer.weight.detach() + 0.7 * 8 / 8 * B @ A
fresh.set_adapters(["cyanotype"], [1.0])
fresh.fuse_lora(lora_scale=0.7)
print(f"以系数 0.7 融合：与公式的最大差别 {float((layer.base_layer.weight - expected).abs().max()):.1e}")
fresh.unfuse_lora()

# %% [markdown]
# ### kohya 脚本的文件
#
# 网上的 LoRA 文件大多由 kohya 的训练脚本写成，webui 和 ComfyUI 也读取这种格式。里面是同样的矩阵，只是名字不同：
#
# | `peft` | kohya |
# |---|---|
# | `mid_block.attentions.0...attn1.to_q.lora_A.weight` | `lora_unet_mid_block_attentions_0_..._attn1_to_q.lora_down.weight` |
# | `mid_block.attentions.0...attn1.to_q.lora_B.weight` | `lora_unet_mid_block_attentions_0_..._attn1_to_q.lora_up.weight` |
# | 文件头或 `adapter_config.json` 里的 `lora_alpha` | `lora_unet_mid_block_attentions_0_..._attn1_to_q.alpha`，每层一个数 |

# %%
from safetensors.torch import load_file, save_file


def to_kohya(adapter, alpha):
    """peft 的名字 -> kohya 的名字，每层带一个 alpha。"""
    file = {}
    for name, matrix in adapter.items():
        layer, part, _ = name.rsplit(".", 2)  # 例如 "mid_block...to_q"、"lora_A"、"weight"
        layer = "lora_unet_" + layer.replace(".", "_")
        file[f"{layer}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = matrix.contiguous()
        file[f"{layer}.alpha"] = torch.tensor(float(alpha))
    return file


save_file(to_kohya(adapter, alpha=8), here / "cyanotype_kohya.safetensors")
print(*list(load_file(here / "cyanotype_kohya.safetensors"))[:3], sep="\n")
fresh.load_lora_weights(here, weight_name="cyanotype_kohya.safetensors", adapter_name="kohya")
pairs = [(each.lora_A, each.lora_B) for each in fresh.unet.modules() if hasattr(each, "lora_A")]
worst = max(float((m["kohya"].weight - m["cyanotype"].weight).detach().abs().max()) for pair in pairs for m in pair)
print(f"由 diffusers 读回，{len(pairs)} 层：最大差别 {worst:g}")

# %% [markdown]
# 有两个陷阱。第一，反过来转换时名字有歧义，因为 `.` 和 `_` 都变成了 `_`；读取的程序需要一份模型各层的名单（练习 `from_kohya`）。第二是 **alpha**。程序找不到 alpha 时，会取 $\alpha = r$。所以一个 $\alpha = 4$、$r = 8$ 的文件丢了 alpha，效果就会强一倍。（`diffusers` 的 `convert_state_dict_to_kohya` 不管原来的 alpha 是多少，都写成秩。）
#
# **问题。** 你用秩 32 代替 8 训练第二个 LoRA，$\alpha = 8$ 不变。一开始，它的更新大小会有什么变化？你会怎么办？
#
# <details><summary>答案</summary>
#
# 因子 $\alpha/r$ 从 1 降到四分之一。用普通的梯度下降时，它在第一次更新里出现两次：一次在 $W'$ 里，一次在梯度里（练习 `first_update` 给出推导）。AdamW 会除以梯度的大小，所以只算一次。此外，用 `"gaussian"` 时 $A$ 的初始值也更小，因为它的标准差是 $1/r$。所以适配器学得更慢。可以取 $\alpha = r$，也可以提高学习率。
#
# </details>
#
# 用自己的图像训练时，适配器用 `lora.py`；如果不用适配器而训练全部权重，用 `finetune.py`。
#
# ## 9 · 训练要用多少内存
#
# 买显卡之前就可以算出需要多少字节。float32 的一个权重占 4 字节。一个*参与训练的*权重还有梯度（4）和 AdamW 对梯度一阶矩和二阶矩的估计（8）；如果保留滑动平均，再加一个平均值（4）。这是**静态**部分：还没有看到第一张图像，它就已经在那里了。在此之上是**激活值**（activations），即前向传播为反向传播保留的数据，它随批量增大。
#
# 我们来计算自己的 U-Net，以及 Stable Diffusion 1.5 和 XL 的 U-Net。在设备 `meta` 上，张量只有形状，没有数值，所以什么也不用下载。

# %%
from diffusers import UNet2DConditionModel

with torch.device("meta"):
    unets = {"SD 1.5": UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)}
    unets["SD XL"] = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def lora_weights(unet, rank=8):
    layers = [layer for name, layer in unet.named_modules() if name.endswith(tuple(ATTENTION))]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def static_gigabytes(n):
    """{做法：GB}。n：U-Net 的权重数，以及它的 LoRA 的权重数。"""
    all_weights, k = n[0], n[1]
    return {
        "全部权重，float32，有平均": (4 + 4 + 8 + 4) * all_weights,
        "没有平均，或放到 CPU 上": (4 + 4 + 8) * all_weights,
        "AdamW 的状态改用 8 位来存储": (4 + 4 + 2) * all_weights,
        "改成训练一个秩为 8 的 LoRA": 4 * all_weights + (4 + 4 + 8 + 4) * k,
        "LoRA，冻结的权重都改用 bfloat16": 2 * all_weights + (4 + 4 + 8 + 4) * k,
    }


fresh.unload_lora_weights()  # 模型原来的样子
unets = {"我们": fresh.unet} | unets
sizes = {
    name: (sum(weight.numel() for weight in unet.parameters()), lora_weights(unet)) for name, unet in unets.items()
}
print("权重数：" + "，".join(f"{name} {n:,}（LoRA {k:,}）" for name, (n, k) in sizes.items()))
print(f"{'静态内存，单位 GB':36}" + "".join(f"{name:>10}" for name in sizes))
for row in static_gigabytes(sizes["我们"]):
    print(f"{row:36}" + "".join(f"{static_gigabytes(n)[row] / 1e9:10.2f}" for n in sizes.values()))

# %% [markdown]
# 可见，带滑动平均的 Stable Diffusion 1.5 全量微调在看到图像之前就需要 17.2 GB<!--out-->，不论批量多大，都放不进 16 GB 的显卡。如果放不下的是*静态*部分，办法就是表中这些，依次尝试：不把滑动平均放在显卡上，用 8 位优化器，改用 LoRA，冻结的权重用半精度。此外，文本编码器和自编码器的输出已经缓存，可以把它们移出显卡。
#
# 减小批量和使用梯度检查点，一个字节的静态内存也省不下来。它们减少的是激活值。能减少多少？给前向传播保存的每个张量挂上一个钩子，就能知道。


# %%
def activation_bytes(net, columns, batch_size):
    """一次前向传播为反向传播保留的字节数，不含权重。"""
    kept, weights = {}, {weight.untyped_storage().data_ptr() for weight in net.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        error = captioned_loss(net, {name: column[:batch_size] for name, column in columns.items()})
    del error
    return sum(kept.values())


net = fresh.unet.requires_grad_(True).train()
for batch_size in (8, 2):
    print(f"批量 {batch_size}：激活值 {activation_bytes(net, style_columns, batch_size) / 1e6:.1f} MB")
net.enable_gradient_checkpointing()
print(f"批量 8，使用梯度检查点：激活值 {activation_bytes(net, style_columns, 8) / 1e6:.1f} MB")
net.eval()
net.disable_gradient_checkpointing()

# %% [markdown]
# **梯度累积**（gradient accumulation）把批量为 8 的一批换成四批，每批 2 张。激活值缩小到四分之一，梯度相同（练习 `accumulate`）。**梯度检查点**（gradient checkpointing）只保留各个块的输入，其余的在反向传播时重新计算，大约多花三分之一的时间。注意力本身不需要任何处理：自 PyTorch 2 起，`diffusers` 使用融合的注意力（SDPA），从不存储注意力权重的矩阵。所以 xformers 和 *attention slicing* 已经不再需要，而且 slicing 会让 SDPA 变慢。
#
# **问题。** 在 24 GB 的显卡上，Stable Diffusion 1.5 的全量微调因*内存不足*而停止。一种情况是在优化器第一次更新时停止，另一种情况是在前向传播时停止。两种情况各应改变什么？
#
# <details><summary>答案</summary>
#
# AdamW 在第一次更新时才为每个权重建立一阶矩和二阶矩的估计。如果这里失败，说明静态部分太大：去掉滑动平均，用 8 位优化器，或者训练 LoRA。如果前向传播失败，说明激活值太大：减小批量并累积梯度，打开梯度检查点，或者用更小的图像。
#
# </details>
#
# ## 10 · DreamBooth：一个特定对象
#
# 给出某一只狗的几张照片，再用一个词称呼它：*sks*。训练几百步之后，*a photo of a sks dog on the moon* 应当画出这只狗（[Ruiz et al. 2022](https://arxiv.org/abs/2208.12242)）。有两个决定很重要。
#
# **用哪个词。** 它应当是*词表里的一个罕见词元*：只占一个词元，而且模型很少见过。常用词（*unique*、*special*）会把原来的含义一起带进来。随机的字母也不行，因为分词器会把不认识的词拆成小块，往往拆成单个字母，而单个字母各有很强的含义。大家习惯用 *sks*，是因为它在 CLIP 的词表里正好是一个罕见的词元。请用*你的*模型的分词器检查一下：

# %%
for word in ("sks", "red", "xxy5syt00"):
    print(f"我们的分词器把 '{word}' 读作 {' + '.join(pipe.tokenizer.tokenize(word))}")

# %% [markdown]
# 我们的词表是从怪兽和菜肴的文本描述中学来的，*sks* 被拆成两块。两块都不出现在怪兽的文本描述里，所以都是罕见词元，可以合在一起使用。*xxy5syt00* 则被拆成七块。如果用 CLIP，就选一个罕见的词元。
#
# **先验保留**（prior preservation）。图像这么少，模型会忘记别的狗是什么样子。所以每一批里还要加入模型在训练之前按 *a dog* 自己画的图像，文本描述也是这一句：
#
# $$L = \underset{\text{特定对象}}{\mathrm{mean}}\,(\text{误差}) + \lambda\, \underset{\text{类别图像}}{\mathrm{mean}}\,(\text{误差}), \qquad \lambda \approx 1 \tag{6}$$
#
# 这里不随机丢弃文本条件，否则*空*提示词也会学到这个对象。我们的对象是一只戴青绿色围巾的橙色怪兽。文本描述里没有表示围巾的词，其他图像里也没有围巾。它的六张图像像照片一样各不相同：有远有近，有左有右，有的歪着身子，有的从另一侧看。判定用的程序只认识站直的怪兽，所以先把每张图像转正再看（[subject_metrics.py](finetune_diffusers/evaluation/subject_metrics.py)）。我们训练全部权重，对这个小模型来说代价不高；对大模型则应训练 LoRA，并用另外的、更大的学习率。

# %%
from finetune_diffusers.data.subject import portraits
from finetune_diffusers.evaluation.subject_metrics import scarf_share, subject_attributes

portrait = portraits(6, size)
class_images = to_bytes(draw(["a creature"] * 18, seed=1000, pipe=fresh))
subject, kind = encoded(portrait, ["a sks creature"] * 6), encoded(class_images, ["a creature"] * 18)
dream_columns = {
    name: torch.cat([subject[name].repeat(3, *[1] * (subject[name].dim() - 1)), kind[name]]) for name in kind
}
dream_columns["is_class"] = torch.arange(36) >= 18
show_images(torch.cat([to_float(portrait), to_float(class_images[:6])]), 6, down=["特定对象", "类别图像"])


def dreambooth_loss(net, batch, prior=1.0):
    each, is_class = squared_errors(net, batch, caption_dropout=0.0), batch["is_class"]
    groups = [(weight, each[group].mean()) for weight, group in ((1.0, ~is_class), (prior, is_class)) if group.any()]
    return sum(weight * error for weight, error in groups)  # (6)；空的一组，平均值会是 NaN


dream_prompts = {"a sks creature": 0, "a sks creature with bat wings": 0, "a creature": 50}


def draw_subject():
    return {prompt: draw([prompt] * 6, seed=seed, pipe=fresh) for prompt, seed in dream_prompts.items()}


dream = {"训练前": draw_subject()}
fresh.unet.requires_grad_(True)
losses = train(fresh.unet, dream_columns, dreambooth_loss, SUBJECT_STEPS, lr=2e-3)
dream["训练后"] = draw_subject()
print(f"损失：前 20 步 {np.mean(losses[:20]):.3f}，后 20 步 {np.mean(losses[-20:]):.3f}")
for prompt in dream_prompts:
    for stage, drawn_by in dream.items():
        images = drawn_by[prompt]
        scarves = int((scarf_share(images) > 0.4).sum())
        print(
            f"{stage:4}'{prompt}'：对象的属性 {float(subject_attributes(images).mean()):.0%}，"
            f"围巾 {share(scarves, 6)}，蝙蝠翅膀 {share(count(images, wings='bat'), 6)}"
        )
pairs = [(stage, prompt) for prompt in dream_prompts for stage in dream]
show_images(
    torch.cat([dream[stage][prompt][:4] for stage, prompt in pairs]),
    4,
    down=[f"{prompt}\n{stage}" for stage, prompt in pairs],
)

# %% [markdown]
# 请两行一组地看。只用这么几步，*a sks creature* 就学到了这个特定对象的许多特征：颜色、兔耳朵，多数图像里还有围巾。*a sks creature with bat wings* 有了翅膀，而六张肖像中没有一张有翅膀。但训练这么短，特定对象的特征所剩不多：图中的怪兽大多是绿色或棕色。（围巾按颜色判断，绿色的身体也可能被算作围巾。）*a creature* 没有变成这个对象：图中没有一只是橙色，也没有围巾。但对象属性的比例从 30 % 升到 48 %<!--out-->，部分原因是怪兽失去了翅膀和角，而且图像彼此更像了。先验保留能限制遗忘，但不能完全防止。
#
# `dreambooth.py` 的训练步数是这里的三倍多，得到 0.879<!--results--> 的对象属性，极限是 0.933<!--results-->（[RESULTS.md](RESULTS.md)）。它也可以不用先验保留（`--prior 0`），使用你自己的类别图像文件夹，或者训练 LoRA（`--rank`）。对这个模型来说，只在注意力层上加秩为 8 的 LoRA 是不够的。对人脸来说，同时训练文本编码器也有帮助。
#
# ## 11 · ControlNet：规定线条的位置
#
# 词语说不清*在哪里*。**ControlNet**（[Zhang et al. 2023](https://arxiv.org/abs/2302.05543)）是 U-Net 前半部分的一份副本，它还能看到一张线条图。它在每个分辨率上的特征 $r_k$ 经过一个 $1 \times 1$ 卷积 $K_k$，再加到冻结的 U-Net 的特征上；这个卷积的核和偏置都从零开始：
#
# $$h_k \leftarrow h_k + s\,(K_k * r_k + b_k) \tag{7}$$
#
# $s$ 是控制系数（conditioning scale）。因为 $K_k = 0$、$b_k = 0$，模型一开始没有变化。它仍然能够学习，因为 $K_k$ 的梯度里含有 $r_k$，而 $r_k$ 不是零（练习 `controlled`）。这和 LoRA 里 $B$ 的作用一样。
#
# 有三个决定，让几百步的训练就显出效果。
#
# * **线条要说出提示词没有说的东西。** 完整的文本描述几乎说出了线条所表现的一切。所以训练时丢弃所有文本描述，画图时用提示词 *a creature*。
# * **布局在高噪声水平上决定。** 对预测 $v$ 的模型，第 7 节的 min-SNR 权重在那里趋于零，所以这里的平方误差不加权。
# * **线条要立刻到达副本。** 一个小网络 $E$ 把线条图缩小 $f$ 倍，结果加到带噪潜变量的第一层特征上。`diffusers` 让 $E$ 的最后一层也从零开始。这样就有两个零层前后相连：在 $K_k$ 变化之前，$E$ 没有梯度；在 $E$ 变化之前，$K_k$ 看不到线条。
#   我们让 $E$ 从随机权重开始，特征与其他特征大小相同。模型一开始仍然没有变化，因为 $K_k$ 为零。

# %%
from finetune_diffusers.data.edges import agreement, edges
from finetune_diffusers.training.controlnet import new_controlnet, with_controlnet

base = open_pipeline(MODEL)
base.set_progress_bar_config(disable=True)
use_scheduler(base, "dpm++")
base.unet.requires_grad_(False)
control = new_controlnet(base.unet, f, seed=0)
controlled_pipe = with_controlnet(base, control)
controlled_pipe.set_progress_bar_config(disable=True)
line_set = load("creatures", size, language="en", n=240)
control_columns = encoded(line_set.pixels, line_set.captions) | {"edges": edges(to_float(line_set.pixels), 0.2)}


@torch.no_grad()
def start_line_features(E, lines):
    """给 E(lines) 的最后一层随机权重，使它的特征与带噪潜变量的特征大小相同。"""
    E.conv_out.reset_parameters()
    ratio = base.unet.conv_in(torch.randn(len(lines), channels, side, side)).std() / E(lines).std()
    E.conv_out.weight.mul_(ratio)
    E.conv_out.bias.mul_(ratio)


def predict_with_control(net, x, t, text, batch):
    down, middle = net(x, t, text, controlnet_cond=batch["edges"].expand(-1, 3, -1, -1), return_dict=False)
    return base.unet(x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample


def control_loss(net, batch):
    return squared_errors(net, batch, caption_dropout=1.0, predict=predict_with_control, gamma=None).mean()


n = 16
source = to_float(creatures.pixels[:n])
wanted = edges(source, 0.2)  # (N, 1, S, S)，线条上为 1
lines, plain = wanted.expand(-1, 3, -1, -1), ["a creature"] * n
start_line_features(control.controlnet_cond_embedding, lines)
rows = {"不加控制": draw(plain, pipe=base, guidance_scale=2.0)}
untrained = draw(plain[:2], pipe=controlled_pipe, image=lines[:2], guidance_scale=2.0)
print(f"未经训练时不改变结果：最大差别 {float((untrained - rows['不加控制'][:2]).abs().max()):g}")
losses = train(control, control_columns, control_loss, CONTROL_STEPS, lr=2e-3, rates="constant_with_warmup")
print(f"损失：前 40 步 {np.mean(losses[:40]):.3f}，后 40 步 {np.mean(losses[-40:]):.3f}")
for s in (0.5, 1.0):
    settings = {"image": lines, "controlnet_conditioning_scale": s, "guidance_scale": 2.0}
    rows[f"系数 {s:g}"] = draw(plain, pipe=controlled_pipe, **settings)
shown = {"线条": 2 * lines - 1} | rows | {"原图": source}
show_images(torch.cat([images[:5] for images in shown.values()]), 5, down=list(shown))

DRAWN = [NAMES.index(name) for name in ("body", "ears", "horns", "tail", "wings", "element")]  # 线条能表现的属性
own, _ = read_attributes(classifier, source)
marks = {"另一只怪兽": source.roll(1, 0), "原图经过自编码器": reconstruct(base.vae, source)}
before = agreement(edges(rows["不加控制"], 0.2), wanted, 0)
for name, images in (marks | rows).items():
    f1, (seen, _) = agreement(edges(images, 0.2), wanted, 0), read_attributes(classifier, images)
    same = (seen[:, DRAWN] == own[:, DRAWN]).float().mean(1)  # (N,)
    print(
        f"ControlNet，边缘的 F1 {mean_and_interval(f1)}（与不加控制之差：{mean_and_interval(f1 - before)}），"
        f"与原图相同的属性 {mean_and_interval(same)}   {name}"
    )

unseen = encoded(creatures.pixels, creatures.captions)["latent"]
empty, all_edges = EMPTY.expand(len(unseen), -1, -1), {"edges": edges(to_float(creatures.pixels), 0.2)}
for level in (150, 400, 600, 800, 950):
    torch.manual_seed(0)
    t = torch.full((len(unseen),), level)
    x, target = noisy(unseen, t)
    with torch.no_grad():
        free = base.unet(x, t, empty).sample
        error, with_lines = (
            float((y - target).square().mean()) for y in (free, predict_with_control(control, x, t, empty, all_edges))
        )
    print(f"t = {level}：平方误差，没有线条 {error:.3f}，有线条 {with_lines:.3f}")

# %% [markdown]
# 边缘的 **F1** 等于 1，表示该有边缘的地方都有，别处都没有。*与原图相同的属性*，是六个属性（体形、耳朵、角、尾巴、翅膀、元素）中，分类器在图像和线条的原图里看到相同取值的比例。对这两种度量，以 *ControlNet* 开头的前两行都是参照：一个是对线条一无所知的图像，另一个是潜变量所能表示的最好结果。
#
# 训练之前，ControlNet 不改变任何东西：输出的差别是舍入误差，因为那两张图像是在更小的一批里画的。现在比较*不加控制*和*系数 1*。两种度量都上升，F1 逐张图像的增量，其区间在零以上。再看图的各列：角、翅膀和脚边的图案常常出现在线条所在的地方，但不是每一列都如此；颜色却不是原图的颜色，因为线条不说明颜色。系数减半，效果也变小。离自编码器的极限还很远：这次训练只有一分钟。
#
# 最后几行说明线条在哪里有用。噪声水平高时，带噪潜变量几乎不含布局的信息，所以线条把误差降得最多；噪声水平低时，U-Net 自己就看得到布局，线条几乎没有帮助。
#
# Zhang 等人报告说，在 Stable Diffusion 上，ControlNet 会在几千步之后突然开始服从条件（*sudden convergence*，突然收敛）。`controlnet.py` 训练得更久，丢弃一半的文本描述，它的 F1 见 [RESULTS.md](RESULTS.md)。这个程序还可以从 `conditioning_image` 列读取别的条件（深度、姿态、Canny 边缘）。
#
# ## 12 · 文件：模型以什么形式流传
#
# | 形式 | 内容 | 怎样打开 |
# |---|---|---|
# | `diffusers` 的**文件夹** | 每个部件一个子文件夹，外加 `model_index.json` | `from_pretrained("folder")` |
# | 模型库里的**仓库**（repository） | 同样的文件夹，带版本 | `from_pretrained("owner/name", revision="main")` |
# | **变体**（variant） | 同样的文件夹，另有半精度的权重 `diffusion_pytorch_model.fp16.safetensors` | `from_pretrained(..., variant="fp16", dtype=torch.float16)` |
# | **单文件**（single file） | 所有部件装在一个 `.safetensors` 或 `.ckpt` 里，沿用原始代码的名字 | `from_single_file("model.safetensors")` |
# | **适配器**（adapter） | 一个 LoRA，几 MB | `load_lora_weights(...)` |
#
# 在单文件里，U-Net 的名字以 `model.diffusion_model.` 开头，自编码器的以 `first_stage_model.` 开头，文本编码器的以 `cond_stage_model.` 开头。里面没有分词器，也没有配置，`diffusers` 根据名字和形状推断。能用 `.safetensors` 就不要用 `.ckpt`：后者是 pickle，加载时可以执行任意代码。
#
# 不必读取任何权重，就能知道一个 safetensors 文件里有什么：最前面八个字节是文件头的长度，接着是 JSON 格式的文件头。


# %%
def read_header(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


for path in (MODEL / "unet" / "diffusion_pytorch_model.safetensors", here / "cyanotype_kohya.safetensors"):
    tensors = {name: entry for name, entry in read_header(path).items() if name != "__metadata__"}
    name, entry = next(iter(tensors.items()))
    print(f"{path.name}：{len(tensors)} 个张量，{sum(math.prod(e['shape']) for e in tensors.values()):,} 个数")
    print(f"   第一个：{name} {entry['dtype']} {entry['shape']}")
copy.deepcopy(base.unet).half().save_pretrained(here / "half", variant="fp16")  # base.unet 没有适配器
for path in sorted((here / "half").glob("*.safetensors")):
    tensors = [entry for name, entry in read_header(path).items() if name != "__metadata__"]
    print(f"带变体的文件夹：{path.name}：{len(tensors)} 个张量，{tensors[0]['dtype']}")

# %% [markdown]
# Stable Diffusion 1.x 的**安全检查器**（safety checker）会把它认为不妥的图像换成一张*黑*图。如果你在为 DreamBooth 画类别图像，就会混进一张黑色的训练图像。所以本章的训练程序打开模型时都不带安全检查器（`safety_checker=None`）。
#
# ## 13 · Stable Diffusion XL 与流匹配模型有哪些变化
#
# **Stable Diffusion XL**（[Podell et al. 2023](https://arxiv.org/abs/2307.01952)）的思路相同，只是 U-Net 更大。
#
# | | Stable Diffusion 1.5 | XL |
# |---|---|---|
# | 文本编码器 | CLIP ViT-L 的最后一层，每个词元 768 个数 | ViT-L 和 OpenCLIP ViT-bigG 的倒数第二层，768 + 1280 = 2048 |
# | 额外的输入 | | 第二个编码器的池化嵌入，以及六个数：原始尺寸、裁剪位置、目标尺寸 |
# | 像素 | 512 × 512 | 1024 × 1024，按多种宽高比分桶 |
# | 精度 | 自编码器可以用 fp16 | 自编码器在 fp16 下会溢出：保持 float32，或者换用修正过的自编码器 |
# | LoRA | 同样的层 | 名字相同，所以 (5) 和第 8 节照样成立；两个文本编码器叫 `text_encoder` 和 `text_encoder_2` |
#
# 用随机裁剪的图像训练出来的模型，有时会把头切掉。XL 训练时知道每张图像的裁剪位置，裁剪于是成为可以选择的条件：(0, 0)（`diffusers` 的默认值）表示要一张没有裁剪过的图像。
#
# **流匹配模型**（flow-matching models，Stable Diffusion 3、FLUX）用 Transformer 代替 U-Net，从图像到噪声的路径也不同（第 3 章）：
#
# $$x_t = (1 - t)\, z + t\,\varepsilon, \qquad y = \varepsilon - z, \qquad t \in [0, 1] \tag{8}$$
#
# 所以，在 $\bar\alpha$ 噪声调度上预测 $\varepsilon$ 或 $v$ 的调度器都不适用，上面的 min-SNR 也不适用；重绘强度为 $s$ 的图生图从 $t = s$ 开始（尚未计入下面的偏移）。图像越大，遮住同样内容所需的噪声越多，所以噪声水平要**偏移**（shift）：$t' = \frac{k\,t}{1 + (k - 1)\,t}$，Stable Diffusion 3 取 $k = 3$（[Esser et al. 2024](https://arxiv.org/abs/2403.03206)）。有偏移时，图生图从 $t'$ 开始，即 $x = (1-t')\,z + t'\varepsilon$：$k = 3$ 时，重绘强度 0.6<!--given--> 对应 $t' = 0.82$<!--given-->。调度器里可以看到这个偏移：

# %%
from diffusers import FlowMatchEulerDiscreteScheduler

plt.figure(figsize=(5.4, 2.8), layout="constrained")
for k in (1.0, 3.0, 6.0):
    flow = FlowMatchEulerDiscreteScheduler(shift=k)
    flow.set_timesteps(sigmas=np.linspace(1, 0.05, 20).tolist())
    t = np.linspace(1, 0.05, 20)
    worst = float(np.abs(flow.sigmas[:-1].numpy() - k * t / (1 + (k - 1) * t)).max())
    plt.plot(flow.sigmas.numpy(), "o-", markersize=3, label=f"偏移 {k:g}")
    print(f"偏移 {k:g}：调度器与公式的最大差别 {worst:.1e}")
plt.xticks(range(0, 21, 5))
plt.xlabel("步（共 20 步）")
plt.ylabel("噪声水平 $t'$")
plt.legend()
plt.show()

# %% [markdown]
# 偏移越大，就有越多的步花在高噪声水平上，而构图正是在那里决定的。
#
# ## 现在你能做什么
#
# * 写出管线的循环，更换它的调度器，数出函数评估次数。
# * 说明负面提示词、重绘强度和提示词权重各起什么作用，并用计数和区间加以证明。
# * 用 `accelerate` 写训练循环，并说出续训需要什么。
# * 训练、缩放、融合和转换 LoRA，并解释 $\alpha/r$。
# * 计算训练所需的内存，并找到合适的办法来节省。
# * 运行带先验保留的 DreamBooth，并训练 ControlNet。
#
# ### 一页公式
#
# | | 公式 | 出处 |
# |---|---|---|
# | 引导，负面提示词 | $y_\theta(x_t, c_{\text{neg}}) + w\,(y_\theta(x_t, c) - y_\theta(x_t, c_{\text{neg}}))$ | (1) |
# | 重绘强度 | $n = \min(\mathrm{int}(sN), N)$，从 $\alpha_t z + \sigma_t \varepsilon$ 开始 | (2) |
# | 局部重绘 | $m \odot x + (1-m) \odot (\alpha_s z + \sigma_s \varepsilon)$ | (3) |
# | 提示词权重 | $z_\varnothing + s\,(z - z_\varnothing)$ | (4) |
# | min-SNR 权重 | 预测 $\varepsilon$ 时为 $\min(\mathrm{SNR},\gamma)/\mathrm{SNR}$，预测 $v$ 时为 $\min(\mathrm{SNR},\gamma)/(\mathrm{SNR}+1)$ | 第 7 节 |
# | EMA | $\bar\theta \leftarrow d\,\bar\theta + (1-d)\,\theta$，半衰期 $\ln 2/\ln(1/d)$ | 第 7 节 |
# | LoRA | $W + \frac{\alpha}{r}BA$ | (5) |
# | 多个 LoRA | $W + \sum_k s_k \frac{\alpha_k}{r_k} B_k A_k$ | 第 8 节 |
# | DreamBooth | 特定对象上的平均 $+\,\lambda\,$ 类别图像上的平均 | (6) |
# | ControlNet | $h_k + s\,(K_k * r_k + b_k)$，起初 $K_k = b_k = 0$ | (7) |
# | 流匹配 | $x_t = (1-t)\,z + t\,\varepsilon$，$y = \varepsilon - z$ | (8) |
#
# ### 延伸阅读
#
# * [Hu et al. 2021](https://arxiv.org/abs/2106.09685)，*LoRA: low-rank adaptation of large language models*：第 4 节就是 (5)。
# * [Ruiz et al. 2022](https://arxiv.org/abs/2208.12242)，*DreamBooth*：讲罕见词元和先验保留。
# * [Zhang et al. 2023](https://arxiv.org/abs/2302.05543)，*Adding conditional control to text-to-image diffusion models*。
# * [Meng et al. 2021](https://arxiv.org/abs/2108.01073)，*SDEdit*：图生图；[Lugmayr et al. 2022](https://arxiv.org/abs/2201.09865)，*RePaint*。
# * [Hang et al. 2023](https://arxiv.org/abs/2303.09556)，*Efficient diffusion training via min-SNR weighting strategy*。
# * [Podell et al. 2023](https://arxiv.org/abs/2307.01952)，*SDXL*；[Esser et al. 2024](https://arxiv.org/abs/2403.03206)，*Scaling rectified flow transformers*。
#
# ### 在本笔记本里试一试
#
# 每次运行之前，先写下你的预期。
#
# * 第 2 节：负面提示词 *green*。你预期会出现哪种颜色？
# * 第 4 节：用另一只怪兽的文本描述来修复。起决定作用的是马赛克，还是词语？
# * 第 8 节：用 `batch_size=2, accumulation=4` 训练 LoRA。输出的哪些数字应当不变？（`train` 返回的是每一批的损失，不是每一步的。）
# * 第 8 节：系数取 -1。蓝晒的反面是什么？
# * 第 10 节：在 `dreambooth_loss` 里取 `prior=0.0`。输出的哪一行变化最大？
# * 第 11 节：撤回三个决定中的一个（`caption_dropout=0.5`、`gamma=5.0`，或不用 `start_line_features`）。哪一个让增量损失最多？
#
# 接下来自己写出这些工具的核心：[练习](exercises/README.zh.md)分三级，用 `python -m common.grade 05` 评分。更久的训练、你自己的图像和其他模型，见 [README](README.zh.md)。
