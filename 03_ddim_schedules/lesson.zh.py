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
# # 第 3 章 · 噪声调度、采样器与流
#
# [English](lesson.ipynb) · 中文
#
# “用余弦调度。”“DDIM 要走五十步。”“流匹配的轨迹比扩散模型更直。”论文、代码仓库和论坛里常见这样的建议。
# 本章把第 1 章的模型拆开来看：能推导的都推导，其余的就测量。
#
# 你会发现，DDPM、DDIM、EDM、整流流、霍因法和 DPM-Solver++ 只用到很少的几个概念：
#
# 1. **两条曲线**：噪声调度；
# 2. **一种混合**：网络预测什么，以及 v 预测；
# 3. **DDIM**：把加噪图像拆开，再用少一点的噪声重新混合；
# 4. **步长重采样**：怎样正确地减少步数，以及一个常见的错误；
# 5. **概率流常微分方程与反向随机微分方程**：同一个密度，两种轨迹；
# 6. 更高阶的**求解器**：霍因法与 DPM-Solver++(2M)；
# 7. **随机还是确定**：一个小例子，以及在数字上的测量结果；
# 8. **流匹配**与再整流；
# 9. **DiT**：用 Transformer 代替 U-Net；
# 10. **蒸馏**：教出一个步数更少的学生模型；
# 11. 损失与权重；
# 12. 两个数字之间的**插值**，以及它为什么会跳变；
# 13. **反演**：由数字找回它的噪声；
# 14. 实验室，以及它测出了什么。
#
# 你需要先学过第 1 章：前向过程的闭式表达式、后验分布 $q(x_{t-1} \mid x_t, x_0)$ 和分数。
# 全部代码在笔记本电脑的 CPU 上运行，无需下载，只要几分钟。

# %%
from common.grade.chapter import open_chapter  # 找不到 common 模块？请选择装有本课程的内核（README.zh.md）

CHAPTER = open_chapter("03_ddim_schedules 中文")  # 本章的文件夹；从这里开始可以导入其中的文件

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
from torch import nn

from common import viz
from common.data import load
from common.diffusion.schedules import NoiseLevel, NoiseLevels, add_noise, make_schedule
from common.random import Noise

plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def show_images(images, columns, across=(), down=()):
    """把取值在 [-1, 1] 的图像 (N, 1, H, W) 放大两倍排成网格，并给各列各行加上标签。"""
    display(viz.labelled_grid(images, columns, across, down))


def rms(x):
    """均方根：像素的典型大小。"""
    return float(x.square().mean().sqrt())


def level_at(schedule, t):
    """噪声调度在时刻 t 的噪声水平，写成普通的数。"""
    return NoiseLevel(*(float(part) for part in schedule.at(torch.tensor(t))))


mnist, unseen = load("mnist-10k"), load("mnist-10k", split="test")  # 28 x 28，随课程提供
digit = unseen.batch(torch.tensor([2]))["image"]  # (1, 1, 28, 28)，取值在 [-1, 1]

# %% [markdown]
# ## 1 · 两条曲线
#
# 第 1 章把干净图像 $x_0$ 与标准正态噪声 $\varepsilon$ 混合起来。本章要比较好几类噪声调度，所以把两个系数写成时间的函数：
#
# $$x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon$$
#
# 噪声调度无非就是这两条曲线：$\alpha(t)$ 缩放图像，$\sigma(t)$ 是噪声的标准差。
#
# > **记号**：在第 1 章和 DDPM 论文中，$\alpha(t) = \sqrt{\bar\alpha_t}$，$\sigma(t) = \sqrt{1 - \bar\alpha_t}$，
# > 因此 $\alpha(t)^2 + \sigma(t)^2 = 1$。DDPM 所说的 $\bar\alpha_t$，DDIM 论文写作 $\alpha_t$。
# > EDM 论文写作 $x = s(t)\,(x_0 + \sigma\,\varepsilon)$：它的 $s$ 是我们的 $\alpha$，它的 $\sigma$ 是我们的 $\sigma/\alpha = e^{-\lambda}$。
# > 它自己的调度取 $s = 1$，$\sigma = t$。代码中的 `level.alpha` 和 `level.sigma` 就是这两个数。
#
# 一张图像看上去有多少噪声，只取决于这两个数之比。所以我们还画出**信噪比**（signal-to-noise ratio，SNR）
# $\mathrm{SNR}(t) = \alpha(t)^2 / \sigma(t)^2$ 的对数的一半：
#
# $$\lambda(t) = \log \frac{\alpha(t)}{\sigma(t)}$$
#
# $\lambda$ 大，图像就干净；$\lambda = 0$ 时，图像和噪声一样多；为负值时，噪声多于图像。
#
# 下面有七种调度。*linear*（线性）来自 DDPM，*scaled linear*（缩放线性）来自 Stable Diffusion。
# *cosine*（余弦，[Nichol & Dhariwal 2021](https://arxiv.org/abs/2102.09672)）
# 和 *sigmoid*（[Jabri et al. 2022](https://arxiv.org/abs/2212.11972)）变化得更均匀。
# *linear, zero SNR*（零终端信噪比的线性调度）下文再解释。
# *EDM*（[Karras et al. 2022](https://arxiv.org/abs/2206.00364)）保持 $\alpha = 1$，把噪声一直加到 $\sigma = 80$。
# *flow*（整流流，[Liu et al. 2022](https://arxiv.org/abs/2209.03003)）是一条直线：$\alpha = 1 - t$，$\sigma = t$。

# %%
names = ["linear", "scaled_linear", "cosine", "sigmoid", "linear_zero_snr", "edm", "flow"]
schedules = {name: make_schedule(name) for name in names}
levels = {name: s.noise_levels(1000).levels for name, s in schedules.items()}  # 各 1,001 个水平，噪声最大的在前
time_share = torch.linspace(1, 0, 1001)  # 每个水平的 t / T
colour = {name: f"C{i}" for i, name in enumerate(names)}

_, (plane, curves, ratio) = plt.subplots(1, 3, figsize=(12, 3.7), layout="constrained")
for slope in (-1, 0, 1):
    plane.plot([0, 2 * math.exp(slope)], [0, 2], color="0.85", linewidth=0.8)
    place = {-1: (0.42, 1.13), 0: (0.77, 0.76), 1: (0.6, 0.14)}[slope]
    plane.text(*place, f"$\\lambda$ = {slope}", color="0.5", fontsize=8)
for name in ("cosine", "flow", "edm"):
    label = name if name != "cosine" else "其余各种"
    plane.plot(levels[name].alpha, levels[name].sigma, color=colour[name], label=label)
plane.set(xlim=(0, 1.2), ylim=(0, 1.2), aspect="equal", title="从图像到噪声的曲线")
plane.set(xlabel="$\\alpha$（图像的系数）", ylabel="$\\sigma$（噪声的标准差）")
plane.legend(loc="lower left", fontsize=8)
for name in ("linear", "scaled_linear", "cosine", "flow"):
    curves.plot(time_share, levels[name].alpha, color=colour[name], label=name)
    curves.plot(time_share, levels[name].sigma, color=colour[name], linestyle="--")
curves.set(xlabel="t / T", title="$\\alpha$（实线）与 $\\sigma$（虚线）")
curves.legend(loc="center right", fontsize=8)
for name in names:
    lam = (levels[name].alpha / levels[name].sigma).log()
    ratio.plot(time_share, lam, color=colour[name], label=name, linestyle="--" if "zero" in name else "-")
ratio.set(xlabel="t / T", ylim=(-9, 9), title="$\\lambda$：对数信噪比的一半")
ratio.legend(fontsize=8, ncols=2)
plt.show()

# %% [markdown]
# * **左图**：每个噪声水平是一个点 $(\alpha, \sigma)$，每种调度是一条从干净图像 $(1, 0)$ 出发的曲线。
#   多数调度保持 $\alpha^2 + \sigma^2 = 1$，因此都落在同一段四分之一圆弧上，这叫作**方差保持**（variance preserving）。
#   flow 走的是这段弧的弦。EDM 竖直向上，一直走到图外。灰线连接 $\lambda$ 相等的点。
# * **中图与右图**：同一条曲线上的调度，差别在于快慢。到了中段，linear 剩下的图像比 cosine 少得多。
#
# 三条曲线看上去不同，其实很相似。同一条灰线上的点，画面相同，只是亮度不同。
# 除以 $\sqrt{\alpha^2 + \sigma^2}$ 之后，它们就都落在圆上。我们取一个数字和一份噪声，在 $\lambda = -0.5$ 处验证。

# %%
eps = torch.randn(digit.shape, generator=torch.Generator().manual_seed(5))
alike = []
for s in schedules.values():
    level = s.at_lam(-0.5)
    alike.append(add_noise(digit, eps, level) / math.hypot(level.alpha, level.sigma))
print(f"信噪比相同时，七种调度的图像之间的最大差别：{max((x - alike[0]).abs().max() for x in alike):.1e}")

# %% [markdown]
# 所以 $t$ 只是噪声水平的名字。一种调度决定两件事：**训练访问每个信噪比的频率**，以及**采样器沿途停在哪些地方**。
# 下一幅图说的是前者：取 100,000 张训练图像的噪声水平，按 $\lambda$ 统计。

# %%
u = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:-1]
plt.figure(figsize=(7.5, 2.6), layout="constrained")
for name in names:
    level = schedules[name].sample_levels(u)
    share, edges = np.histogram((level.alpha / level.sigma).log().clamp(-12, 12), bins=60, range=(-8, 8))
    density, style = share / len(u) / (edges[1] - edges[0]), "--" if "zero" in name else "-"
    plt.plot((edges[1:] + edges[:-1]) / 2, density, color=colour[name], label=name, linestyle=style)
plt.gca().set(xlabel="$\\lambda$（噪声多 … 噪声少）", ylabel="训练密度", xlim=(-7, 7))
plt.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# linear 的训练一直延伸到噪声很大的地方，scaled linear 则早早停下。cosine 和 sigmoid 关于 $\lambda = 0$ 对称。
# 最后两种从钟形分布中抽取噪声水平，所以极端的水平很少出现；EDM 训练时的噪声比其他调度少。
# （图中 `flow` 的钟形曲线是 Stable Diffusion 3 采用的 *logit-normal* 密度，
# 见 [Esser et al. 2024](https://arxiv.org/abs/2403.03206)；整流流本身对 $t$ 均匀抽样，第 8 节就是这样做的。）
#
# 下一幅图把四种调度用在同一个数字上，噪声也相同。

# %%
times, rows = [100, 300, 500, 700, 900, 1000], ["linear", "scaled_linear", "cosine", "flow"]
pictures = []
for name in rows:
    for t in times:
        pictures.append(add_noise(digit, eps, level_at(schedules[name], t / 1000 if name == "flow" else t)))
show_images(torch.cat(pictures), len(times), across=[f"t/T = {t / 1000}" for t in times], down=rows)

# %% [markdown]
# ### 最后一个水平只剩噪声吗？
#
# 采样从纯噪声开始，那么训练的最后一个水平也应该是纯噪声。是这样吗？我们把数字放大到 $448 \times 448$ 像素，
# 加上 $t = T$ 时的噪声，再对每个 $16 \times 16$ 的像素块求平均。
#
# **问题**：求平均不改变图像。它把噪声缩小到几分之一？


# %%
def enlarge(images, factor):
    return F.interpolate(images, scale_factor=factor, mode="nearest")


large = enlarge(digit, 16)  # (1, 1, 448, 448)
noise = torch.randn(large.shape, generator=torch.Generator().manual_seed(0))
rows = ["linear", "scaled_linear", "scaled_linear_zero_snr"]
ends = {name: level_at(make_schedule(name), 1000) for name in rows}
last_levels = {name: add_noise(large, noise, end) for name, end in ends.items()} | {"原数字": large}
_, axes = plt.subplots(2, 4, figsize=(9, 4.8), layout="constrained")
averages = [F.avg_pool2d(picture, 16)[0, 0] for picture in last_levels.values()]  # (28, 28) each
for (name, picture), average, (above, below) in zip(last_levels.items(), averages, axes.T, strict=True):
    above.imshow(picture[0, 0, ::4, ::4], cmap="gray")
    below.imshow(average, cmap="gray")
    above.set_title(name + (f"\n$\\alpha(T)$ = {ends[name].alpha:.4f}" if name in ends else "\n"), fontsize=9)
axes[0, 0].set_ylabel("t = T")
axes[1, 0].set_ylabel("块平均")
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
plt.show()
for name, average in zip(rows, averages, strict=False):
    r = np.corrcoef(average.flatten(), averages[-1].flatten())[0, 1]
    print(f"{name:24} 块平均与原数字的相关系数 {r:+.2f}")

# %% [markdown]
# <details><summary>答案</summary>
#
# 16 分之一。一块有 256 个像素，而 256 个独立噪声的平均值，标准差是原来的 $1/\sqrt{256}$。
# </details>
#
# Stable Diffusion 用的是 scaled linear。在这种调度下，最后一个水平经过平均仍能看出数字，而网络是会求平均的。
# 训练时，网络总能看出图像将有多亮；采样时，它收到的噪声里没有这样的线索，于是偏向中等亮度。
#
# 我们用相关系数来衡量这种泄漏：一边是图像的亮度，另一边是它在 $t = T$ 时的加噪图像的亮度。
# 记 $s$ 为亮度在不同图像之间的标准差，$N$ 为像素数，则理论值为
# $r = \alpha s / \sqrt{\alpha^2 s^2 + \sigma^2 / N}$。

# %%
print(f"{'t = T 时亮度的相关系数':30}" + "".join(f"{f'{28 * k} x {28 * k}':>20}" for k in (1, 4, 8)))
x0 = mnist.batch(torch.arange(1000))["image"]
brightness = x0.mean((1, 2, 3))
for name in ("linear", "scaled_linear", "scaled_linear_zero_snr"):
    end, found = level_at(make_schedule(name), 1000), []
    for k in (1, 4, 8):
        g = torch.Generator().manual_seed(k)
        noise_mean = torch.cat([torch.randn(50, (28 * k) ** 2, generator=g).mean(1) for _ in range(20)])  # (1000,)
        r = np.corrcoef(brightness, end.alpha * brightness + end.sigma * noise_mean)[0, 1]
        s = float(brightness.std())
        theory = end.alpha * s / math.sqrt(end.alpha**2 * s**2 + end.sigma**2 / (28 * k) ** 2)
        found.append(f"{r:.2f}（理论 {theory:.2f}）")
    print(f"{name:38}" + "".join(f"{text:>16}" for text in found))

# %% [markdown]
# （用 1,000 个数字时，0 附近的相关系数的 95 % 置信区间约为 ± 0.06。）图像越大，泄漏越多：
# 在 $28 \times 28$ 上很小，在照片上就很大。如果亮度服从正态分布，那么确定性采样器生成的样本，
# 亮度的波动只有数据的 $\sqrt{1 - r^2}$ 倍。随机采样器会忘掉一部分起点，所以损失小一些。
#
# **零终端信噪比**（zero terminal SNR，[Lin et al. 2023](https://arxiv.org/abs/2305.08891)，算法 1）可以消除泄漏。
# 它先把曲线 $\sqrt{\bar\alpha_t}$ 向下平移，使最后一个值为 0，再把曲线拉伸，使 $t = 1$ 处的第一个值恢复原样：
#
# $$\sqrt{\bar\alpha_t} \;\leftarrow\; \left(\sqrt{\bar\alpha_t} - \sqrt{\bar\alpha_T}\right) \frac{\sqrt{\bar\alpha_1}}{\sqrt{\bar\alpha_1} - \sqrt{\bar\alpha_T}}$$


# %%
def zero_terminal_snr(alpha_bar):
    """(T + 1,) -> (T + 1,)：第 0 项是干净图像，保持不变。"""
    root = alpha_bar[1:].sqrt()  # t = 1 ... T
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return torch.cat([alpha_bar[:1], root**2])


mine, course = zero_terminal_snr(schedules["linear"].alpha_bar), schedules["linear_zero_snr"].alpha_bar
print(f"最后一个值 {float(mine[-1]):.1f}；与课程自带的调度最多相差 {(mine - course).abs().max():.1e}")

# %% [markdown]
# > **论文中的写法**：这个条件写作 $\mathrm{SNR}(T) = 0$，等价于 $\bar\alpha_T = 0$。
#
# 这样做有代价：在 $\alpha(T) = 0$ 处，预测 $\varepsilon$ 的网络毫无贡献。下一节说明原因。

# %% [markdown]
# ## 2 · 一种混合：网络预测什么
#
# 你在第 1 章训练的网络预测噪声。（那一章自带的预训练网络预测下文要讲的 $v$，本课从第 3 节起使用它。）
# 网络也可以预测图像，或者介于两者之间的量。各种实际使用的目标，都是同样两样东西的混合：
#
# $$y = a\,x_0 + b\,\varepsilon$$
#
# | 网络预测 | $a$ | $b$ | 用于 |
# |---|---|---|---|
# | `eps`，噪声 | $0$ | $1$ | DDPM |
# | `x0`，图像 | $1$ | $0$ | DDPM 论文中的另一种选择 |
# | `v`，圆上的速度 | $-\sigma$ | $\alpha$ | [Salimans & Ho 2022](https://arxiv.org/abs/2202.00512)，Stable Diffusion 2 |
# | `flow`，直线上的速度 | $-1$ | $1$ | 整流流、Stable Diffusion 3、Flux |
# | `edm` | $\sigma / (\sigma_d\, n)$ | $-\sigma_d / n$ | EDM；$\sigma_d = 0.5$ 是数据的标准差，$n = \sqrt{\sigma^2 + \sigma_d^2}$ |
#
# `edm` 一行用于 $\alpha = 1$ 的调度。`flow` 一行只有在 $\alpha = 1 - t$ 时才是速度；有些论文的符号和时间方向与此相反（第 8 节有一张对照表）。
#
# ### v 预测
#
# 在圆上，$\alpha = \cos\varphi$，$\sigma = \sin\varphi$，角 $\varphi$ 从 $0$（干净）到 $90°$（噪声）。
# 角度增大时，加噪图像 $x = \cos\varphi\, x_0 + \sin\varphi\, \varepsilon$ 随之移动，它的速度是对 $\varphi$ 的导数：
#
# $$v = \frac{dx}{d\varphi} = \alpha\,\varepsilon - \sigma\,x_0$$
#
# 在以 $x_0$ 和 $\varepsilon$ 为坐标轴的平面上，位置 $(\alpha, \sigma)$ 与速度 $(-\sigma, \alpha)$ 互相垂直。把 $(x, v)$ 这一对往回转过这个角度，就得到图像和噪声：
#
# $$x_0 = \alpha\,x - \sigma\,v \qquad\qquad \varepsilon = \sigma\,x + \alpha\,v$$
#
# 这里没有除法，所以即使 $\alpha = 0$ 也成立。
#
# > **论文中的写法**：Salimans & Ho 2022 的第 4 节定义 $v \equiv \alpha_t\,\varepsilon - \sigma_t\,x$，
# > 其中的 $x$ 就是我们的 $x_0$，$\alpha_t$ 就是我们的 $\alpha(t)$，而不是 DDPM 的 $1 - \beta_t$。


# %%
def v_from(x0, eps, level):
    return level.alpha * eps - level.sigma * x0


def x0_eps_from_v(x, v, level):
    return level.alpha * x - level.sigma * v, level.sigma * x + level.alpha * v


for t in (100, 500, 1000):
    level = level_at(schedules["linear_zero_snr"], t)
    x, v = add_noise(digit, eps, level), v_from(digit, eps, level)
    x0_found, eps_found = x0_eps_from_v(x, v, level)
    wrong = (x0_found - digit).abs().max(), (eps_found - eps).abs().max()
    print(f"t = {t:4}, alpha = {level.alpha:.3f}：最大误差 x0 {wrong[0]:.0e}，eps {wrong[1]:.0e}")

# %% [markdown]
# ### 一张图看懂各种预测
#
# 把 $x_0$ 和 $\varepsilon$ 看成平面的两个坐标轴。加噪图像是箭头 $(\alpha, \sigma)$，网络的目标是箭头 $(a, b)$。
# 只要两个箭头不平行，就能解出 $x_0$ 和 $\varepsilon$：两个方程，两个未知数。
# [denoiser.py](../common/diffusion/denoiser.py) 中的 `to_x0_eps` 为表中每一行求解，采样器对网络的要求也仅此而已。

# %%
from common.diffusion.denoiser import PREDICTIONS, Denoiser, Prediction, mixture, target, to_x0_eps


def schedule_of(prediction):
    """这种预测所用的噪声调度。"""
    return schedules[prediction if prediction in ("edm", "flow") else "cosine"]


def arrow(axis, a, b, name, color, far=1.17, **style):
    """混合的方向，画成长度为 1 的箭头。"""
    a, b = a / math.hypot(a, b), b / math.hypot(a, b)
    axis.annotate("", (a, b), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color} | style)
    axis.text(far * a, far * b, name, color=color, ha="center", va="center")


_, axes = plt.subplots(1, 3, figsize=(10.5, 3.7), layout="constrained")
turn = np.linspace(0, 2 * np.pi, 200)
columns = {"噪声少": 1.2, "各一半": 0.0, "噪声多": -1.2}
for axis, (title, lam) in zip(axes, columns.items(), strict=True):
    axis.plot(np.cos(turn), np.sin(turn), color="0.9")
    level = schedules["cosine"].at_lam(lam)
    arrow(axis, level.alpha, level.sigma, "$x_t$", "black", far=1.22, linewidth=2.5)
    for i, name in enumerate(PREDICTIONS):
        far = {"flow": 1.4, "edm": 1.42}.get(name, 1.2)
        arrow(axis, *mixture(name, schedule_of(name).at_lam(lam)), name, f"C{i}", far=far)
    axis.set(title=f"{title}，$\\lambda$ = {lam}", xlabel="$x_0$ 的份量", aspect="equal")
    axis.set(xlim=(-1.6, 1.7), ylim=(-1.3, 1.4), xticks=[-1, 0, 1], yticks=[-1, 0, 1])
axes[0].set_ylabel("$\\varepsilon$ 的份量")
plt.show()

# %% [markdown]
# 从左到右看黑色箭头：它从图像的方向（向右）转向噪声的方向（向上），而 `eps` 和 `x0` 的箭头不动。
# 所以噪声少时黑箭头靠近 `x0`，噪声多时靠近 `eps`。这时预测只是重复输入中已有的内容，另一种成分就再也求不出来了。
# `v` 始终与黑箭头保持直角，跟着一起转。`flow` 和 `edm` 也与它保持距离。
# （`edm` 指向反方向，这没有影响。所有箭头都画成长度 1。）
#
# 预测总有误差。如果 $y$ 错了一个小量 $\delta$，那么 $x_0$ 就错 $|\sigma / d|\,\delta$，$\varepsilon$ 就错 $|\alpha / d|\,\delta$，
# 其中 $d = \alpha b - \sigma a$ 是两个箭头所张的面积。

# %%
lams = torch.linspace(-7, 7, 200).tolist()
_, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
for i, name in enumerate(PREDICTIONS):
    at = [schedule_of(name).at_lam(lam) for lam in lams]
    d = [level.alpha * b - level.sigma * a for level in at for a, b in [mixture(name, level)]]
    style = {"color": f"C{i}", "linestyle": "--" if name == "flow" else "-"}
    axes[0].plot(lams, [abs(level.sigma / area) for level, area in zip(at, d, strict=True)], label=name, **style)
    axes[1].plot(lams, [abs(level.alpha / area) for level, area in zip(at, d, strict=True)], label=name, **style)
for axis, what in zip(axes, ("x_0", "\\varepsilon"), strict=True):
    axis.set(yscale="log", ylim=(1e-3, 1e3), xlabel="$\\lambda$（噪声多 … 噪声少）")
    axis.set(title=f"$y$ 的误差为 1 时 ${what}$ 的误差", ylabel="倍数")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# 预测 `eps` 的网络要除以 $\alpha$ 才能得到图像，因此噪声多时，误差会放大上千倍。预测 `x0` 的网络要除以 $\sigma$ 才能得到噪声，
# 在噪声少时同样糟糕。`v`、`flow` 和 `edm` 两头都避开了：它们的倍数始终小于 1。
#
# 放大上千倍有多糟？我们取真正的目标，只是把它舍入成 bfloat16，这是训练大网络常用的格式，只有 8 位二进制有效数字。然后再解出图像。
#
# **问题**：你预计哪几行会丢失数字？在哪一端？

# %%
times, rows = [500, 900, 980, 990, 995, 998, 1000], ["eps", "x0", "v", "flow", "edm"]
pictures, lost = [], []
for name in rows:
    for t in times:
        level = level_at(schedules["cosine"], t)
        x, y = add_noise(digit, eps, level), target(name, digit, eps, level)
        pictures.append(to_x0_eps(name, y.bfloat16().float(), x, level)[0])
        lost.append(rms(pictures[-1] - digit))
show_images(torch.cat(pictures), len(times), across=[f"t = {t}" for t in times], down=rows)
print("x0 的均方根误差，在 t =   " + "".join(f"{t:>10}" for t in times))
for name, errors in zip(rows, np.array(lost).reshape(len(rows), -1), strict=True):
    print(f"{name:26}" + "".join(f"{error:10.4f}" for error in errors))

# %% [markdown]
# <details><summary>答案</summary>
#
# 只有 `eps` 会丢失，在噪声多的一端。图像要除以 $\alpha$ 才能求出，而它在那里接近 0，
# 尽管目标的每个数都有两三位十进制数字是对的。（`x0` 则会在干净的一端丢失噪声。）
# </details>
#
# 这就是零终端信噪比的代价：它需要 `v` 或者与 `v` 同类的预测。如果网络预测 `eps`，训练时间又太短，样本的亮度就会漂移，原因之一也在这里：
# 噪声多时，$\varepsilon$ 中一点点恒定的误差，在图像里就是很大的误差。

# %% [markdown]
# ## 3 · DDIM：拆开，再混合
#
# DDIM（[J. Song et al. 2021](https://arxiv.org/abs/2010.02502)）用很少的步数采样，还可以完全不加新噪声。
# 推导分成两部分：第一部分讨论真正的图像和真正的噪声，是精确的；第二部分换成网络的估计，这是唯一的近似。
#
# ### 第一部分：对真正的图像和噪声，结果精确
#
# 训练的损失一次只看一个噪声水平，$x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon$，从不看两个水平之间有什么关系。
# 因此，凡是单个水平符合这个式子的过程，都可以用同一个网络。
#
# 设 $s$ 是噪声比 $t$ 少的水平，不一定是 $t - 1$。我们用同一个 $x_0$、同一个 $\varepsilon$ 的一部分和新噪声 $z$ 构造 $x_s$：
#
# $$x_s = \alpha(s)\,x_0 + \sqrt{\sigma(s)^2 - f^2}\;\varepsilon + f z \tag{1}$$
#
# 给定 $x_0$，两份噪声互相独立，方差可以相加：$(\sigma(s)^2 - f^2) + f^2 = \sigma(s)^2$。所以**无论 $f$ 取 0 到 $\sigma(s)$ 之间的哪个值**，
# $x_s$ 的分布都恰好是训练时在水平 $s$ 上见过的分布。
#
# **哪个 $f$ 对应 DDPM？** DDPM 从后验分布 $q(x_s \mid x_t, x_0)$ 中采样。第 1 章把两个高斯密度相乘，对 $s = t - 1$ 推导出了它；
# 这里用同样的方法。作为 $x_s$ 的函数，这两个高斯密度是：
#
# * 来自 $x_0$：$x_s$ 在 $\alpha(s)\,x_0$ 附近，方差为 $\sigma(s)^2$；
# * 来自 $x_t$：$x_t$ 在 $\rho\,x_s$ 附近，其中 $\rho = \alpha(t)/\alpha(s)$；方差是从 $s$ 加噪到 $t$ 所增加的
#   $\beta = \sigma(t)^2 - \rho^2 \sigma(s)^2$。
#
# 高斯密度相乘，方差的倒数相加，所以后验方差 $f^2$ 满足
#
# $$\frac{1}{f^2} = \frac{1}{\sigma(s)^2} + \frac{\rho^2}{\beta} = \frac{\beta + \rho^2\sigma(s)^2}{\sigma(s)^2\,\beta} = \frac{\sigma(t)^2}{\sigma(s)^2\,\beta}
# \qquad\Longrightarrow\qquad f^2 = \frac{\sigma(s)^2}{\sigma(t)^2}\,\beta$$
#
# 当 $s = t - 1$ 时，这就是第 1 章的 $\tilde\beta_t$。再用一个系数 $\eta$（eta）在两者之间过渡：
#
# $$f = \eta\;\frac{\sigma(s)}{\sigma(t)} \sqrt{\sigma(t)^2 - \frac{\alpha(t)^2}{\alpha(s)^2}\,\sigma(s)^2} \tag{2}$$
#
# $\eta = 1$ 时，(1) 就是 DDPM。$\eta = 0$ 时不加新噪声，(1) 就是 DDIM。
#
# > **论文中的写法**：取 $s = t - 1$，(1) 就是 DDIM 的式 7，即 $q_\sigma(x_{t-1} \mid x_t, x_0)$；把第二部分的估计代入 (1)，就是式 12。
# > 取 $t = \tau_i$、$s = \tau_{i-1}$，(2) 就是式 16。论文用 $\sigma_t$ 表示我们的 $f$，用 $\alpha_t$ 表示 $\bar\alpha_t$。
# > $q(x_{t-1} \mid x_t, x_0) = \mathcal N(x_{t-1};\, \tilde\mu_t(x_t, x_0),\, \tilde\beta_t I)$ 是
# > [DDPM](https://arxiv.org/abs/2006.11239) 的式 6 和式 7。


# %%
def mix(x0, eps, now, then, eta=0.0, z=0.0):
    """式 (1) 和 (2)：由 `now` 水平的 (x0, eps) 得到 `then` 水平的图像。"""
    added = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2  # beta
    fresh = eta * then.sigma / now.sigma * math.sqrt(added)  # f
    return then.alpha * x0 + math.sqrt(then.sigma**2 - fresh**2) * eps + fresh * z


now, then = level_at(schedules["cosine"], 600), level_at(schedules["cosine"], 300)
g = torch.Generator().manual_seed(0)
eps, z = torch.randn(2, 2000, 1, 28, 28, generator=g)
print(f"s = 300 处应有：图像 {then.alpha:.4f}，噪声 {then.sigma:.4f}")
for eta in (0.0, 0.5, 1.0):
    x = mix(digit, eps, now, then, eta, z)
    image = (x.mean(0) * digit[0]).sum() / digit.square().sum()
    print(f"  测得，eta = {eta}：图像 {image:.4f}，噪声 {x.std(0).mean():.4f}")

x_s = add_noise(digit, eps, then)  # 正向的加噪链：先到 s，再到 t
rho = now.alpha / then.alpha
x_t = rho * x_s + math.sqrt(now.sigma**2 - rho**2 * then.sigma**2) * z
slope = ((x_s - x_s.mean(0)) * (x_t - x_t.mean(0))).mean() / (x_t - x_t.mean(0)).square().mean()
rest = (x_s - x_s.mean(0)) - slope * (x_t - x_t.mean(0))  # x_s 中不由 x_t 决定的部分
f = then.sigma / now.sigma * math.sqrt(now.sigma**2 - rho**2 * then.sigma**2)
print(f"给定 x_t 与 x_0，x_s 的标准差：测得 {rest.std():.4f}，按公式 (2)，eta = 1，应为 {f:.4f}")

# %% [markdown]
# 推导得出的两点在模拟中都成立：无论 $\eta$ 取多少，噪声水平都正确；后验的方差就是 (2)。
#
# ### 第二部分：网络的估计
#
# 采样时我们只知道 $x_t$。网络把它拆成两个估计 $(\hat x_0, \hat\varepsilon)$，代入 (1)。训练使平方误差最小，所以它们是条件均值：
# $\hat x_0 = \mathbb E[x_0 \mid x_t]$，$\hat\varepsilon = \mathbb E[\varepsilon \mid x_t]$。
# 许多种可能的图像平均起来是模糊的：$\hat x_0$ 的变化比真实图像小。许多种可能的噪声平均起来，方差小于 1，不过从输出看只小一点：
# $t = 900$ 时输入几乎就是噪声本身。所以走一大步并使用估计时会损失方差，主要是图像的方差。
# 步长趋于零时，关于方差的论证又变得精确，第 5 节会说明这一点。我们用第 1 章的网络（28 × 28，在 MNIST 上训练）来看这两个估计。

# %%
from common.models.model_folder import load_model

net, schedule, prediction, clip_x0 = load_model(CHAPTER.parent / "01_ddpm_mnist" / "pretrained")
denoise = Denoiser(net, prediction, clip_x0)  # (x, level) -> x0 与 eps 的估计，x0 限制在 [-1, 1]
free = Denoiser(net, prediction, clip_x0=False)  # 同上，但不加限制
print(f"{sum(p.numel() for p in net.parameters()):,} 个权重；预测 {prediction}，调度 {schedule.name}")

x0, eps = unseen.batch(torch.arange(10))["image"], Noise(1)(0, torch.empty(10, 1, 28, 28))
pictures = [x0]
for t in (300, 600, 900):
    level = level_at(schedule, t)
    with torch.no_grad():
        x0_hat, eps_hat = free(add_noise(x0, eps, level), level)[:2]
    pictures += [x0_hat]
    print(f"t = {t}：真正的噪声的方差 {eps.var():.2f}，估计的方差 {eps_hat.var():.2f}")
show_images(torch.cat(pictures), 10, down=["x₀", *(f"估计，t = {t}" for t in (300, 600, 900))])

# %% [markdown]
# 时刻越靠后，可能的图像越多，均值就越模糊，或者变成另一个数字。从 $t = 900$ 一大步走到底，得到的就是这团模糊。
#
# ### 一步的几何
#
# 在 $\hat x_0$ 与 $\hat\varepsilon$ 的平面上，一步就是把加噪图像从 $(\alpha(t), \sigma(t))$ 转向图像。

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
quarter = np.linspace(0, np.pi / 2, 100)
left.plot(np.cos(quarter), np.sin(quarter), color="0.85")
for level, name, place in ((now, "$x_t$", (-0.02, 0.05)), (then, "$x_s$, $\\eta$ = 0", (0.03, 0.03))):
    left.annotate("", (level.alpha, level.sigma), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "black"})
    left.text(level.alpha + place[0], level.sigma + place[1], name)
    left.plot([level.alpha, level.alpha], [0, level.sigma], color="0.6", linestyle=":")
    left.plot([0, level.alpha], [level.sigma, level.sigma], color="0.6", linestyle=":")
for level, letter in ((now, "t"), (then, "s")):
    left.text(level.alpha, -0.07, f"$\\alpha({letter})$", ha="center")
    left.text(-0.03, level.sigma, f"$\\sigma({letter})$", ha="right", va="center")
left.annotate("", (then.alpha, then.sigma), (now.alpha, now.sigma), arrowprops={"arrowstyle": "-|>", "color": "C0"})
left.set(xlim=(0, 1.15), ylim=(0, 1.1), aspect="equal", xticks=[], yticks=[], title="DDIM 的一步")
left.set_xlabel("$\\hat x_0$ 的份量", labelpad=18)
left.set_ylabel("$\\hat\\varepsilon$ 的份量", labelpad=28)
right.plot(then.sigma * np.cos(quarter), then.sigma * np.sin(quarter), color="0.85")
for i, eta in enumerate((0.0, 0.5, 1.0)):
    fresh = eta * f
    old = math.sqrt(then.sigma**2 - fresh**2)
    right.annotate("", (old, fresh), (0, 0), arrowprops={"arrowstyle": "-|>", "color": f"C{i}"})
    right.plot([old, old], [0, fresh], color=f"C{i}", linestyle=":")
    right.text(old + 0.01, fresh + 0.01, f"$\\eta$ = {eta:g}", color=f"C{i}")
right.text(0.02, then.sigma + 0.01, "半径 $\\sigma(s)$", color="0.5")
right.set(xlim=(0, 0.56), ylim=(0, 0.52), aspect="equal", title="$x_s$ 中的噪声：旧的与新的")
right.set(xlabel="$\\hat\\varepsilon$ 的份量 $\\sqrt{\\sigma(s)^2 - f^2}$", ylabel="新噪声 $z$ 的份量 $f$")
plt.show()

# %% [markdown]
# **左图**：从 $t = 600$ 到 $s = 300$ 的一步，两个方向不变，只改变份量：图像变多，噪声变少。
# **右图**：$x_s$ 中的噪声可以指向半径为 $\sigma(s)$ 的四分之一圆弧上的任何一处。$\eta$ 决定它从旧噪声向新噪声转过多少，
# 勾股定理保证长度不变。DDPM（$\eta = 1$）并没有走到圆弧的尽头：$x_t$ 决定了 $x_s$ 中噪声的一部分，所以旧噪声会留下一些。
#
# 现在，采样器只有五行。我们把它与另外两种写法比较：[solvers.py](ddim_schedules/solvers.py) 按论文的写法实现 DDIM，
# [samplers.py](../common/diffusion/samplers.py) 则供整个课程使用。

# %%
from common.diffusion.samplers import SAMPLERS
from ddim_schedules import solvers


@torch.no_grad()
def my_ddim(denoise, x, levels, eta=0.0, noise=Noise(0)):
    for k, (now, then) in enumerate(pairwise(levels), start=1):
        x0, eps = denoise(x, now)[:2]  # 拆开
        x = mix(x0, eps, now, then, eta, noise(k, x))  # 再混合，噪声少一点
    return x


def eps_model(x, t):
    """同一个网络，接口与论文相同：x 与从 0 数起的 t -> 噪声。"""
    return denoise(x, level_at(schedule, int(t[0]) + 1)).eps


def noise_for(n, seed=0):
    """作为起点的纯噪声。(n, 1, 28, 28)"""
    return Noise(seed)(0, torch.empty(n, 1, 28, 28))


def last(steps):
    """生成器的最后一项。"""
    *_, end = steps
    return end


x, tau = noise_for(2), solvers.timesteps(1000, 10)
for eta in (0.0, 1.0):
    mine = my_ddim(denoise, x, schedule.noise_levels(10), eta)
    paper = last(solvers.ddim(eps_model, x, schedule.alpha_bar, tau, Noise(0), eta))
    course = last(SAMPLERS["ddim"](denoise, x, schedule.noise_levels(10), eta, Noise(0))).x
    differences = (mine - paper).abs().max(), (mine - course).abs().max()
    print(f"eta = {eta}：与论文写法最多相差 {differences[0]:.1e}，与课程的采样器最多相差 {differences[1]:.1e}")

# %% [markdown]
# 除了舍入误差，三者一致。（论文的写法要除以 $\sqrt{\bar\alpha_T}$ 才能得到 $x_0$，因此损失了几位数字，原因见第 2 节。）
#
# **问题**：下图每一列都从相同的噪声开始。哪几行会画出相同的数字？

# %%
x = noise_for(10, seed=3)
rows = {
    "η = 0，15 步": my_ddim(denoise, x, schedule.noise_levels(15)),
    "η = 0，40 步": my_ddim(denoise, x, schedule.noise_levels(40)),
    "η = 1，40 步": my_ddim(denoise, x, schedule.noise_levels(40), 1.0, Noise(1)),
    "η = 1，换噪声": my_ddim(denoise, x, schedule.noise_levels(40), 1.0, Noise(2)),
}
show_images(torch.cat(list(rows.values())), 10, down=list(rows))
a, b, c, d = rows.values()
print("像素的典型差别（均方根）：")
print(f"  eta = 0，15 步与 40 步 {rms(a - b):.2f}；eta = 0 与 eta = 1 {rms(b - c):.2f}")
print(f"  eta = 1，换噪声 {rms(c - d):.2f}；两个无关的数字 {rms(b - b.roll(1, 0)):.2f}")

# %% [markdown]
# <details><summary>答案</summary>
#
# 前两行。$\eta = 0$ 时，起点决定结果，步数只影响准确到什么程度。$\eta = 1$ 时，新噪声会把它变成另一个数字，差别几乎与两个无关的数字一样大。
# </details>
#
# 起点决定图像，所以 DDIM 的用处不只是快。第 12 节和第 13 节会用到这一点。

# %% [markdown]
# ## 4 · 减少步数：步长重采样，以及一个常见的错误
#
# 你也许读到过：DDPM 非要一千步不可，步数少了样本就一直带噪点
# （出处见[经验之谈](../docs/claims.zh.md#ddpm-步数少就一直带噪点)）。确实有人见过这种现象。他们见到的究竟是什么？
#
# DDPM 的一步，去掉的是加噪链一步所加的噪声 $\beta_t$。用 20 步代替 1,000 步，采样器只访问
# $t = 1000, 950, 900, \dots$。两次访问之间隔着 50 步，合起来加的噪声要多得多。
# 按定义，$\bar\alpha_t$ 是连乘积，所以从 $s$ 直接跳到 $t$ 的链有
#
# $$\beta_{s \to t} = 1 - \frac{\bar\alpha_t}{\bar\alpha_s} \qquad\text{而不是}\qquad \beta_t = 1 - \frac{\bar\alpha_t}{\bar\alpha_{t-1}}$$
#
# 按访问的步重新计算这条链，叫作**步长重采样**（respacing）。忘了这样做，每一步就只去掉它所代表的 50 步中一步的噪声。
# [solvers.py](ddim_schedules/solvers.py) 中两种版本都有，`ddpm_respaced` 和 `ddpm_naive`，只差一个下标。
#
# > **论文中的写法**：[Nichol & Dhariwal 2021](https://arxiv.org/abs/2102.09672)，第 4 节和式 19。
#
# 我们用两种版本各走 20 步，采样 48 个数字；再用更多的步数采样几个。

# %%
visited = [0, 50, 100, 150]  # 干净图像在最前
long_betas = 1 - schedule.alpha_bar[visited[1:]] / schedule.alpha_bar[visited[:-1]]
print("大步的 beta", [f"{beta:.4f}" for beta in long_betas.tolist()])
print("单步的 beta", [f"{beta:.4f}" for beta in schedule.betas[[t - 1 for t in visited[1:]]].tolist()])

N = 48
x = noise_for(N, seed=7)


def states(solver, steps, n=N):
    """求解器的每个状态，各为 (n, 1, 28, 28)"""
    return list(solver(eps_model, x[:n], schedule.alpha_bar, solvers.timesteps(1000, steps), Noise(7)))


trajectories = {
    "DDIM，一共 20 步": states(solvers.ddim, 20),
    "DDPM，一共 20 步": states(solvers.ddpm_respaced, 20),
    "误用系数 20": states(solvers.ddpm_naive, 20),
    "误用系数 100": states(solvers.ddpm_naive, 100, n=5),  # 供下表使用
}
real = unseen.batch(torch.arange(N))["image"]
pictures = {"真实数字": real} | {name: frames[-1] for name, frames in trajectories.items()}
show_images(
    torch.cat([images[:10] for images in pictures.values() if len(images) >= 10]), 10, down=list(pictures)[:-1]
)

# %% [markdown]
# 第 1 章的**弗雷歇距离**（Fréchet distance）比较真实数字与样本的特征。它的下限，是同样多的真实数字得到的平均距离。
# 只有 48 个数字时，这个距离每次抽取都不同，所以好的样本可能低于下限，但这并不说明它们比真实数字更好。
# 图像中剩下多少噪声，可以这样估计：看每个像素与邻近像素推算出的值相差多少（[Immerkær 1996](https://doi.org/10.1006/cviu.1996.0060)）。

# %%
from common.evaluate.evaluator import Evaluator

evaluator = Evaluator(unseen, mnist, 28, N)  # N 张图像到 2,000 个测试数字的距离
LAPLACE = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]).view(1, 1, 3, 3)


def noise_left(images):
    """假定图像本身光滑，估计其中噪声的标准差。"""
    return float(math.sqrt(math.pi / 2) / 6 * F.conv2d(images, LAPLACE).abs().mean())


def frechet(images):
    """弗雷歇距离及其 95 % 置信区间（对样本用自助法）。"""
    report = evaluator(images)
    return report.frechet, *report.frechet_interval


print(f"{'':18}{'残留噪声':>8}{'弗雷歇距离（95 % 置信区间）':>27}")
for name, images in pictures.items():
    distance = ""
    if name == "真实数字":
        distance = f"{evaluator.frechet_real.mean():.1f}（下限）"
    elif len(images) == N:
        value, low, high = frechet(images)
        distance = f"{value:.1f}（{low:.1f} 到 {high:.1f}）"
    print(f"{name:14}{noise_left(images):12.3f}{distance:>35}")

# %% [markdown]
# 正确地重采样之后，DDPM 用 20 步就能画出干净的数字。误用系数时，图像只是噪声，走 100 步也仍然带噪点。
# 看着这样的图像，你就会以为 DDPM 非要一千步不可。
#
# 错误从哪里开始显现？我们在每一步之后估计图像中的噪声，与真实数字的加噪图像比较。网络训练时在这个水平上见到的正是后者。

# %%
t = solvers.timesteps(1000, 20)
expected = [noise_left(add_noise(real, Noise(8)(0, real), level_at(schedule, step))) for step in t]
plt.figure(figsize=(6.5, 2.8), layout="constrained")
plt.plot(t, expected, color="0.75", linewidth=6, label="加噪的真实数字：网络所期待的")
for name in ("DDPM，一共 20 步", "误用系数 20"):
    plt.plot(t, [noise_left(x), *map(noise_left, trajectories[name])], marker="o", markersize=3, label=name)
plt.gca().set(xlabel="时间步 t", ylabel="估计的噪声", ylim=(0, None), xlim=(1000, 0))
plt.legend(fontsize=8, loc="lower left")
plt.show()

# %% [markdown]
# 重采样后的链（蓝色）每一步的噪声都与网络期待的相同。误用系数时（橙色），图像中的噪声超出网络所得水平的部分越来越多，直到最后也没有去掉。

# %% [markdown]
# ## 5 · 概率流常微分方程与反向随机微分方程
#
# 步长越来越小，DDIM 就成为一个微分方程，DDPM 也是。网络给出的只是条件均值，为什么两者最后都到达数据分布？
# 看一维的情形就够了，因为一维的密度可以完整地画出来。
#
# ### 移动的密度
#
# 设我们的数有 30 % 在 $-0.8$ 附近，70 % 在 $0.5$ 附近，标准差都是 0.2。
# 取圆 $\alpha = \cos(\pi t / 2)$，$\sigma = \sin(\pi t / 2)$，$t$ 从 0 到 1。
# 对这样的**高斯混合**（mixture of Gaussians），加噪后的密度 $p_t(x)$ 还是高斯混合，
# 而最好的去噪器 $\mathbb E[x_0 \mid x_t]$ 可以写成公式。

# %%
CENTRES = torch.tensor([-0.8, 0.5], dtype=torch.float64)
SHARES, WIDTH = torch.tensor([0.3, 0.7], dtype=torch.float64), 0.2


def circle(t):
    return NoiseLevel(1000 * t, math.cos(math.pi * t / 2), math.sin(math.pi * t / 2))


def density(x, level):
    """p_t(x)：以 alpha 乘各个中心为均值的高斯密度之和。(N,)"""
    variance = (level.alpha * WIDTH) ** 2 + level.sigma**2
    off = x[:, None] - level.alpha * CENTRES
    return (SHARES * (-(off**2) / (2 * variance)).exp()).sum(-1) / math.sqrt(2 * math.pi * variance)


def centres_given(x, level):
    """每个中心的概率 (N, 2)，以及 x0 属于该中心时的均值 (N, 2)。"""
    variance = (level.alpha * WIDTH) ** 2 + level.sigma**2
    off = x[..., None] - level.alpha * CENTRES
    return (SHARES.log() - off**2 / (2 * variance)).softmax(-1), CENTRES + level.alpha * WIDTH**2 / variance * off


def ideal(x, level):
    """最好的去噪器 E[x0 | x] 与 E[eps | x]。(N,) -> (N,), (N,)"""
    likely, mean = centres_given(x, level)
    x0 = (likely * mean).sum(-1)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


# %% [markdown]
# 每个加噪的数都随时间移动：$x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon$ 的速度是
# $\dot x_t = \dot\alpha\,x_0 + \dot\sigma\,\varepsilon$，字母上的点表示对 $t$ 求导。
# 那么所有这些数的密度怎样移动？任取一个在远处为零的光滑函数 $h$：
#
# $$\int h(x)\,\frac{\partial p_t(x)}{\partial t}\,dx = \frac{d}{dt}\,\mathbb E[h(x_t)] = \mathbb E[h'(x_t)\,\dot x_t] = \mathbb E\big[h'(x_t)\, u_t(x_t)\big]
# = \int h'(x)\,u_t(x)\,p_t(x)\,dx$$
#
# 其中 $u_t(x) = \mathbb E[\dot x_t \mid x_t = x]$ 是**速度的条件均值**。对右边分部积分。$h$ 是任意的，于是得到**连续性方程**（continuity equation）：
#
# $$\frac{\partial p_t}{\partial t} = -\frac{\partial (u_t\,p_t)}{\partial x} \qquad\text{其中}\qquad u_t(x) = \dot\alpha\,\hat x_0(x, t) + \dot\sigma\,\hat\varepsilon(x, t) \tag{3}$$
#
# 它说的是，概率既不产生也不消失：流入多于流出的地方，密度增大。凡是以速度 $u_t$ 移动的东西，都满足这个方程。
# 因此，如果一群数起初的密度是 $p_1$，每个数都按
#
# $$dx = u_t(x)\,dt = \hat x_0\,d\alpha + \hat\varepsilon\,d\sigma \tag{4}$$
#
# 移动，那么这群数在每个时刻的密度都是 $p_t$，到 $t = 0$ 就是数据分布。这就是**概率流常微分方程**（probability-flow ODE）。
# 它只需要条件均值，而用平方误差训练出来的正是条件均值。DDIM 的一大步有误差，但分成无穷多个小步就没有误差了。
# 在圆上，$u_t = \frac{\pi}{2}\,\hat v$：第 2 节的 `v` 就是这个速度。
#
# ### 加上噪声
#
# 噪声使密度散开。如果每个数还受到方差为 $c^2\,dt$ 的噪声，密度就服从**福克–普朗克方程**（Fokker–Planck equation）：
# 散开的作用在 (3) 中增加一项 $\frac{c^2}{2}\,\partial^2 p_t / \partial x^2$。有一个漂移项恰好能把它抵消，因为
#
# $$\frac{\partial^2 p_t}{\partial x^2} = \frac{\partial}{\partial x}\left(p_t\,\frac{\partial \log p_t}{\partial x}\right)$$
#
# 形式上就是一个流，速度是分数。所以，对**任意** $c(t) \ge 0$，时间倒流、步长为 $|dt|$ 的方程
#
# $$dx = -u_t(x)\,|dt| + \underbrace{\frac{c^2}{2}\,\nabla \log p_t(x)\,|dt|}_{\text{收拢}} + \underbrace{c\,dw}_{\text{散开}}, \qquad \nabla\log p_t(x) = -\frac{\hat\varepsilon}{\sigma} \tag{5}$$
#
# 也有同样的密度 $p_t$。$c = 0$ 时它是常微分方程；$c = g$，即取前向过程的噪声时，它是**反向随机微分方程**（reverse SDE），也就是 DDPM 的极限。
# （$dw$ 是方差为 $|dt|$ 的正态噪声。最后一个等式是第 1 章给出的分数与噪声的关系。）
#
# > **论文中的写法**：[Y. Song et al. 2021](https://arxiv.org/abs/2011.13456) 把前向过程写作
# > $dx = f(x, t)\,dt + g(t)\,dw$，把反向随机微分方程写作 $dx = [f - g^2\,\nabla_x \log p_t(x)]\,dt + g\,d\bar w$（式 6）；
# > 他们的概率流常微分方程是 $dx = [f - \frac12 g^2\,\nabla_x \log p_t(x)]\,dt$。
# > 对我们的混合，$f = x\,\dot\alpha/\alpha$，$g^2 = \frac{d}{dt}\sigma^2 - 2\,\sigma^2\,\dot\alpha/\alpha$，在圆上 $g^2 = \pi\tan(\pi t/2)$。
# > 两位第一作者都姓 Song：Jiaming Song 写了 DDIM，Yang Song 写了随机微分方程的那一篇。
#
# 下面做两项检验：先在网格上用有限差分检验 (3)，再模拟 (4) 和 (5)。

# %%
grid = torch.linspace(-4, 4, 1601, dtype=torch.float64)


def velocity(x, t):
    """圆上的 u_t，见 (3)。(N,)"""
    level = circle(t)
    x0, eps = ideal(x, level)[:2]
    return math.pi / 2 * (level.alpha * eps - level.sigma * x0)


t, d = 0.5, 1e-4
change = (density(grid, circle(t + d)) - density(grid, circle(t - d))) / (2 * d)
flow_in = -torch.gradient(velocity(grid, t) * density(grid, circle(t)), spacing=(grid,))[0]
print(f"密度的最大变化：单位时间 {change.abs().max():.3f}")
print(f"(3) 的右边与它最多相差 {(change - flow_in).abs().max():.0e}")


def simulate(x, amount, steps=500, first=0.98, end=0.005, seed=0):
    """式 (5) 从 t = first 到 t = end，c^2 = amount * g^2。先给出起点 x (N,)，再给出每一步之后的 x。"""
    yield x
    times, g = torch.linspace(first, end, steps + 1).tolist(), torch.Generator().manual_seed(seed)
    for t, t_next in pairwise(times):
        level, dt = circle(t), t - t_next
        c2 = amount * math.pi * math.tan(math.pi * t / 2)
        score = -ideal(x, level).eps / level.sigma
        x = x - velocity(x, t) * dt + c2 / 2 * score * dt
        x = x + math.sqrt(c2 * dt) * torch.randn(x.shape, generator=g, dtype=x.dtype)
        yield x


def quantiles(n):
    """n 个数，位置恰好符合数据分布。(n,)"""
    below = (SHARES * torch.special.ndtr((grid[:, None] - CENTRES) / WIDTH)).sum(-1)
    return torch.from_numpy(np.interp((np.arange(n) + 0.5) / n, below, grid))


def distance(x):
    """Wasserstein 距离：要把这些数变成数据分布，平均每个数须移动多远。"""
    return float((x.sort().values - quantiles(len(x))).abs().mean())


start = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)  # 按噪声分布的数
start = start[torch.randperm(4000, generator=torch.Generator().manual_seed(0))]
for amount in (0, 0.5, 1, 2):
    name = {0: "（常微分方程）", 1: "（反向随机微分方程）"}.get(amount, "")
    print(f"c^2 = {amount:3} g^2：到数据分布的距离 {distance(last(simulate(start, amount))):.3f} {name}")
g, many = torch.Generator().manual_seed(0), quantiles(10**5)
drawn = [distance(many[torch.randint(10**5, (4000,), generator=g)]) for _ in range(20)]
print(f"直接从数据分布中抽取 4,000 个数：{np.mean(drawn):.3f}")

# %% [markdown]
# 噪声有四种大小，分布只有一种。（常微分方程的距离最小，是因为起点排得很均匀，而它保持了这种均匀。）
# 下一幅图用热图画出密度的变化过程，并从相同的起点画出两种轨迹。
#
# **问题**：常微分方程的轨迹在哪里分开？两条轨迹能相交吗？

# %%
times = np.linspace(0.005, 0.98, 196)
heat = torch.stack([density(grid, circle(t)) for t in times], 1)  # (1601, 196)
few = torch.special.ndtri(
    torch.tensor([0.03, 0.12, 0.22, 0.28, 0.32, 0.4, 0.55, 0.7, 0.85, 0.96], dtype=torch.float64)
)
_, axes = plt.subplots(1, 3, figsize=(11.5, 3.9), layout="constrained", width_ratios=[1, 1, 0.35], sharey=True)
for axis, amount, title in zip(axes, (0, 1), ("概率流常微分方程", "反向随机微分方程"), strict=False):
    picture = axis.pcolormesh(times, grid, heat.sqrt(), cmap="Blues", shading="auto", rasterized=True)
    axis.plot(
        np.linspace(0.98, 0.005, 501), torch.stack(list(simulate(few, amount, seed=3))), color="C1", linewidth=0.9
    )
    axis.set(title=title, xlabel="t（噪声 … 数据）", xlim=(0.98, 0.005), ylim=(-2.3, 2.3))
axes[0].set_ylabel("x")
plt.colorbar(picture, ax=axes[1], label="$\\sqrt{p_t(x)}$")
for amount, name in ((0, "ODE"), (1, "SDE")):
    ends = last(simulate(start, amount))
    axes[2].hist(ends, bins=60, range=(-2.3, 2.3), density=True, orientation="horizontal", histtype="step", label=name)
axes[2].plot(density(grid, circle(0.0)), grid, color="black", linewidth=0.8, label="数据")
axes[2].set(title="终点", xlabel="密度")
axes[2].legend(fontsize=7, loc="lower right")
plt.show()

# %% [markdown]
# <details><summary>答案</summary>
#
# 它们在两条色带分开的地方分开，在 $t = 0.4$ 以下。两条轨迹不可能相交：在给定的位置和时刻，常微分方程只有一个速度，
# 所以一旦相遇，此后就是同一条轨迹。因此常微分方程保持这些数的次序：噪声中最低的 30 % 变成下面那一组。
# 随机微分方程的轨迹则可以任意相交。
# </details>

# %% [markdown]
# ## 6 · 更高阶的求解器
#
# $\eta = 0$ 的 DDIM 就是用**欧拉法**（Euler's method）解 (4)：评估一次网络，然后直走。步长减半，误差也减半，所以它是一阶方法。
# 更好的方法，一百多年前就有了。
#
# **霍因法**（Heun's method，EDM 的算法 1）先走到前面，再评估一次网络，然后回到起点，用两次的平均值走这一步：
#
# $$x' = x + \hat x_0\,\Delta\alpha + \hat\varepsilon\,\Delta\sigma \qquad\qquad
# x_s = x + \tfrac12(\hat x_0 + \hat x_0')\,\Delta\alpha + \tfrac12(\hat\varepsilon + \hat\varepsilon')\,\Delta\sigma$$
#
# 它是二阶方法，每步需要两次**函数评估**（function evaluations）。最后一步 $\sigma(s) = 0$，不做第二次评估。
#
# > **论文中的写法**：取 $\alpha = 1$，$\sigma = t$，这就是 EDM 的算法 1。（在其他调度上，EDM 按 $t$ 取步，我们按 $\alpha$ 和 $\sigma$ 取步。）
# > EDM 的去噪器 $D(x; \sigma)$ 就是我们的 $\hat x_0$，所以 $dx/d\sigma = (x - D)/\sigma = \hat\varepsilon$。
# > 它的网络 $F$ 通过 $D = c_{\text{skip}}\,x + c_{\text{out}}\,F(c_{\text{in}}\,x;\, c_{\text{noise}})$ 进入，第 2 节表中的 `edm` 一行就是 $F$ 的目标。
# > DDIM 的式 14 是同一个常微分方程，适用于任何调度：$d(x/\alpha) = \hat\varepsilon\; d(\sigma/\alpha)$。
#
# **DPM-Solver++(2M)**（[Lu et al. 2022](https://arxiv.org/abs/2211.01095)）每步只评估一次，也能达到二阶。
# 它先把能精确求解的部分精确求解。将 (4) 除以 $\sigma$，并代入 $\hat\varepsilon = (x - \alpha\hat x_0)/\sigma$：
#
# $$d\!\left(\frac{x}{\sigma}\right) = \hat x_0\; d\!\left(\frac{\alpha}{\sigma}\right) = \hat x_0\,d(e^\lambda)
# \qquad\Longrightarrow\qquad \frac{x_s}{\sigma(s)} = \frac{x_t}{\sigma(t)} + \int_{\lambda(t)}^{\lambda(s)} e^\lambda\,\hat x_0\;d\lambda$$
#
# 如果 $\hat x_0$ 在这一步中不变，记 $h = \lambda(s) - \lambda(t)$，就得到
#
# $$x_s = \frac{\sigma(s)}{\sigma(t)}\,x_t - \alpha(s)\left(e^{-h} - 1\right) D \qquad\text{其中 } D = \hat x_0 \tag{6}$$
#
# 这又是 DDIM。二阶版本的 $D$，取 $\hat x_0$ 在这一步中点的值，并假定它随 $\lambda$ 的变化率与上次评估以来相同：
#
# $$D = \hat x_0 + \frac{\hat x_0 - \hat x_0^{\text{old}}}{2r} \qquad r = \frac{\lambda(t) - \lambda^{\text{old}}}{h} \tag{7}$$
#
# 第一步没有历史，用 $D = \hat x_0$。最后一步 $\sigma(s) = 0$，$e^{-h} = 0$，于是 $x_s = \alpha(s)\,\hat x_0$。
#
# > **论文中的写法**：(6) 和 (7) 是 DPM-Solver++ 的算法 2；论文把 $\hat x_0$ 叫作数据预测 $x_\theta$，时间按采样的先后编号，
# > $t_0 = T > t_1 > \dots > t_M$，一步从 $t_{i-1}$（我们的 $t$）走到 $t_i$（我们的 $s$）。


# %%
def dpmpp_2m(denoise, x, levels):
    x0_old = before = None
    for now, then in pairwise(levels):
        x0 = denoise(x, now)[0]
        if then.sigma == 0:
            yield then.alpha * x0
            return
        h, D = then.lam - now.lam, x0
        if before is not None:
            D = x0 + (x0 - x0_old) * h / (2 * (now.lam - before.lam))
        x = then.sigma / now.sigma * x - then.alpha * math.expm1(-h) * D
        x0_old, before = x0, now
        yield x


def even_levels(steps, first=-2.5, end=3.0):
    """圆上按 lambda 等距的噪声水平；终点还留有一点噪声。"""
    levels = [schedule.at_lam(lam) for lam in np.linspace(first, end, steps + 1)]
    columns = zip(*levels, strict=True)
    return NoiseLevels(NoiseLevel(*(torch.tensor(column, dtype=torch.float64) for column in columns)), schedule)


x = torch.linspace(-2, 2, 15, dtype=torch.float64)
mine, course = last(dpmpp_2m(ideal, x, even_levels(10))), last(SAMPLERS["dpmpp_2m"](ideal, x, even_levels(10))).x
print(f"与课程自带的 dpmpp_2m 最多相差：{(mine - course).abs().max():.0e}")

# %% [markdown]
# 要看出一种方法的阶，需要一个答案已知的问题。我们用第 5 节的高斯混合。

# %%
solver = {"欧拉法 = DDIM": ("ddim", 1), "霍因法": ("heun", 2), "DPM-Solver++(2M)": ("dpmpp_2m", 1)}  # 每步的评估次数
fine = [x, *(step.x for step in SAMPLERS["heun"](ideal, x, even_levels(1000)))]
counts, errors = [6, 12, 24, 48, 96, 192, 384], {}
for name, (method, each) in solver.items():
    ends = [last(SAMPLERS[method](ideal, x, even_levels(n // each))).x for n in counts]
    errors[name] = [float((end - fine[-1]).abs().mean()) for end in ends]

_, (paths, order) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
paths.plot(np.linspace(-2.5, 3, 1001), torch.stack(fine), color="0.85", linewidth=1)
paths.plot(np.linspace(-2.5, 3, 1001), torch.stack(fine)[:, [5, 8]], color="black", linewidth=1)
for i, (name, (method, each)) in enumerate(solver.items()):
    states_of = torch.stack([x, *(step.x for step in SAMPLERS[method](ideal, x, even_levels(6 // each)))])[:, [5, 8]]
    where = np.linspace(-2.5, 3, 6 // each + 1)
    paths.plot(where, states_of, color=f"C{i}", marker="o", markersize=4, label=[name, None])
paths.set(xlabel="$\\lambda$（从噪声到数据）", ylabel="x", title="评估六次；黑线与灰线是精确的轨迹")
paths.legend(fontsize=8, loc="lower left")
for i, (name, error) in enumerate(errors.items()):
    slope = np.polyfit(np.log(counts[-3:]), np.log(error[-3:]), 1)[0]
    order.plot(counts, error, color=f"C{i}", marker="o", markersize=4, label=f"{name}：斜率 {slope:.2f}")
order.set(xscale="log", yscale="log", xticks=counts, xticklabels=counts)
order.set(xlabel="网络评估次数", ylabel="终点的平均误差")
order.minorticks_off()
order.legend(fontsize=8)
plt.show()

# %% [markdown]
# **左图**：精确的轨迹最后归入两组，在途中分开。欧拉法的直线步子很长，轨迹一弯，它就走了出去。
# **右图**：评估次数加倍，欧拉法的误差减半（斜率 $-1$），另外两种减为四分之一（斜率 $-2$），其中 2M 所需的评估次数最少。
# 这是理论对步数多的情形作出的保证。步数少时，理论什么也不保证，所以我们在数字上测量。
# 所有采样器都从相同的噪声开始，参照是这条轨迹的终点，用霍因法走 40 步算出。

# %%
x = noise_for(10, seed=11)
reference = last(SAMPLERS["heun"](denoise, x, schedule.noise_levels(40))).x
runs = {"ddim": (5, 10, 20), "heun": (3, 5, 10), "dpmpp_2m": (5, 10, 20)}  # 步数
ends = {
    (name, n): last(SAMPLERS[name](denoise, x, schedule.noise_levels(n))).x
    for name, counts in runs.items()
    for n in counts
}
labels, pictures = ["参照"], [reference]
for name, n in (("ddim", 5), ("heun", 3), ("dpmpp_2m", 5)):
    labels += [f"{name}，评估 5 次", "差别"]
    pictures += [ends[name, n], (ends[name, n] - reference) / 2]
show_images(torch.cat(pictures), 10, down=labels)


def typical_difference(images):
    """各图像与参照的均方根差的中位数：个别数字变了样，不会左右结果。"""
    return float((images - reference).square().mean((1, 2, 3)).sqrt().median())


plt.figure(figsize=(5.5, 2.8), layout="constrained")
for name, counts in runs.items():
    evaluations = [2 * n - 1 if name == "heun" else n for n in counts]
    plt.plot(evaluations, [typical_difference(ends[name, n]) for n in counts], marker="o", markersize=4, label=name)
plt.gca().set(xscale="log", xticks=[5, 10, 20], xticklabels=[5, 10, 20], xlabel="网络评估次数")
plt.gca().set(ylabel="均方根差（中位数）", ylim=(0, None))
plt.minorticks_off()
plt.legend(fontsize=8)
plt.show()
for name, counts in runs.items():
    print(f"{name:10}" + "".join(f"   {n:2} 步 {typical_difference(ends[name, n]):.3f}" for n in counts))

# %% [markdown]
# 在“差别”各行中，灰色表示相同。只评估五次时，哪一种都走不到轨迹的终点；霍因法因此只能走三步，离终点最远。
# 评估次数增加后，两种二阶方法都比 DDIM 更接近终点。但是离参照远，并不等于数字画得差：请看样本本身。

# %% [markdown]
# ## 7 · 随机还是确定？
#
# 随机采样器有许多名字。哪些是真正不同的？
#
# * **DDPM** 就是第 3 节中的 $\eta = 1$。
# * **Euler ancestral**（祖先采样，许多程序里的“Euler a”）先用欧拉法走到比下一个水平更低的地方，再补上所缺的噪声。
# * **Euler–Maruyama**（欧拉–丸山法）求解反向随机微分方程，在一步之内把漂移和噪声当作常数。

# %%
x, tau = noise_for(2), solvers.timesteps(1000, 10)
ends = {
    "我们的 mix，eta = 1": my_ddim(denoise, x, schedule.noise_levels(10), 1.0),
    "重采样的 DDPM": last(solvers.ddpm_respaced(eps_model, x, schedule.alpha_bar, tau, Noise(0))),
    "祖先采样 Euler a": last(solvers.euler_ancestral(eps_model, x, schedule.alpha_bar, tau, Noise(0))),
    "欧拉–丸山": last(SAMPLERS["sde"](denoise, x, schedule.noise_levels(10), noise=Noise(0))).x,
}
for name, images in ends.items():
    print(f"{name:18} 与第一种最多相差 {(images - ends['我们的 mix，eta = 1']).abs().max():.1e}")

# %% [markdown]
# 前三种是同一个采样器的三个名字，差别只有舍入误差。Euler–Maruyama 是另一种采样器，步长越来越小时就成为 DDPM。
#
# ### 一个小例子
#
# 新噪声有什么代价，又有什么好处？先看第 5 节的那些数，它们的正确结果是已知的。
# 我们用一个完美的去噪器采样，再用一个在噪声多时出错的去噪器采样：当 $\sigma > 0.8$ 时，它对 $x_0$ 的估计总是偏高 0.3。


# %%
def faulty(x, level):
    """理想的去噪器，但噪声多时有误差。"""
    x0 = ideal(x, level).x0 + 0.3 * (level.sigma > 0.8)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


counts = [5, 10, 20, 50, 100, 200]
_, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained", sharey=True)
titles = ("完美的去噪器", "噪声多时出错的去噪器")
for axis, denoiser, title in zip(axes, (ideal, faulty), titles, strict=True):
    for name in ("ddim", "dpmpp_2m", "ddpm", "sde"):
        options = {"noise": Noise(1)} if name in ("ddpm", "sde") else {}
        ends = [last(SAMPLERS[name](denoiser, start, schedule.noise_levels(n), **options)).x for n in counts]
        axis.plot(
            counts,
            [distance(end) for end in ends],
            marker="o",
            markersize=4,
            label=name,
            linestyle="--" if options else "-",
        )
    axis.set(xscale="log", yscale="log", xlabel="网络评估次数", title=title, xticks=counts, xticklabels=counts)
    axis.minorticks_off()
axes[0].set_ylabel("到数据分布的距离")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# 在这个小例子里，去噪器完美时，最好用确定性的 2M。去噪器出错时，确定性采样器（实线）无论走多少步，都会把早期的错误一直带到最后；
# 新噪声则使采样器忘掉一部分错误。（Euler–Maruyama 步数少时还要更低，因为它自身的误差恰好方向相反。）
# 只看这个小例子，你会得出结论：步数少就用确定性采样；步数多而网络又不完美，就用随机采样。
#
# ### 数字
#
# 真正的网络也遵循这条规则吗？下一个单元格对每个点测量 48 个数字，初始噪声都相同，横轴是网络评估次数。

# %%
counts = {"ddim": (5, 10, 20), "ddpm": (5, 10, 20), "dpmpp_2m": (5, 10)}
known = {("ddim", 20): trajectories["DDIM，一共 20 步"][-1], ("ddpm", 20): trajectories["DDPM，一共 20 步"][-1]}
x, measured = noise_for(N, seed=7), {}
for name, steps in counts.items():
    for n in steps:
        options = {"noise": Noise(7)} if name == "ddpm" else {}
        images = known.get((name, n))
        if images is None:
            images = last(SAMPLERS[name](denoise, x, schedule.noise_levels(n), **options)).x
        measured[name, n] = frechet(images)

plt.figure(figsize=(6.5, 3), layout="constrained")
for i, (name, steps) in enumerate(counts.items()):
    value, low, high = np.array([measured[name, n] for n in steps]).T
    plt.plot(steps, value, color=f"C{i}", marker="o", markersize=4, label=name)
    plt.fill_between(steps, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
plt.axhline(evaluator.frechet_real.mean(), color="0.4", linestyle="--", linewidth=1, label="真实数字")
plt.gca().set(xscale="log", xticks=[5, 10, 20], xticklabels=[5, 10, 20], xlabel="网络评估次数")
plt.gca().set(ylabel="弗雷歇距离", ylim=(0, None))
plt.minorticks_off()
plt.legend(fontsize=8)
plt.show()
print("弗雷歇距离（95 % 置信区间）")
for name, steps in counts.items():
    cells = [
        f"{n:3}：{measured[name, n][0]:.1f}（{measured[name, n][1]:.1f} 到 {measured[name, n][2]:.1f}）" for n in steps
    ]
    print(f"  {name:10}" + "    ".join(cells))

# %% [markdown]
# 在评估次数相同的条件下比较 `ddim` 与 `ddpm`：三个点上，两者之差都小于两个半宽的平方和的平方根。用 48 个数字，随机采样与确定性采样的差别**在这里没有看到**，
# 无论是小例子预言的那种，还是与它相反的那种。`ablate.py samplers` 用更多的图像测量更多的采样器，结果见 [RESULTS.md](RESULTS.md)。
# 在那里，评估 5 次和 20 次时，都是 DDPM 的距离较小；只有 5 次时，差别超出它自身的置信区间（DDIM 为 13.1<!--results-->，DDPM 为 6.29<!--results-->）。
# 这只是一个种子，又做了好几次比较，所以证据很弱，而且方向与小例子的规则相反。评估 5 次时，另外两种随机采样器落后于 DDIM：Euler–Maruyama，以及用方差 $\beta_t$ 代替 $\tilde\beta_t$ 的 DDPM。
# 小例子里只有一种误差，还是人为加进去的；训练出来的网络有它自己的误差。所以从小例子得到的规则，对网络来说只是一个假设。

# %% [markdown]
# ## 8 · 流匹配
#
# 第 5 节需要两样东西：从噪声到数据的一串密度，以及沿途速度的条件均值。**流匹配**（flow matching，[Lipman et al. 2023](https://arxiv.org/abs/2210.02747)）
# 和**整流流**（rectified flow，[Liu et al. 2022](https://arxiv.org/abs/2209.03003)）直接从这两样东西出发，不需要前向过程。
# Stable Diffusion 3 和 Flux 就是这样训练的。
#
# ### 插值路径与损失
#
# 取一个数据点 $x_0$ 和一份噪声 $\varepsilon$，用直线连接，这就是**插值路径**（interpolant）：
#
# $$x_t = (1 - t)\,x_0 + t\,\varepsilon \qquad\qquad \dot x_t = \varepsilon - x_0$$
#
# 单条直线的速度是已知的。训练一个只看得到 $(x_t, t)$ 的网络 $v_\theta$ 来预测它：
#
# $$L_{\text{CFM}}(\theta) = \mathbb E_{t,\,x_0,\,\varepsilon}\, \big\lVert v_\theta(x_t, t) - (\varepsilon - x_0) \big\rVert^2 \tag{8}$$
#
# 这叫作**条件流匹配**（conditional flow matching），“条件”是指目标只属于一对数据和噪声。
# 我们想要的损失，用的是全体的速度 $u_t(x) = \mathbb E[\varepsilon - x_0 \mid x_t = x]$，它却无法计算。
# 为什么用 (8) 就够了？在平方中加上 $u_t$，再把它减去：
#
# $$\mathbb E\lVert v_\theta - (\varepsilon - x_0)\rVert^2 = \underbrace{\mathbb E\lVert v_\theta - u_t\rVert^2}_{L_{\text{FM}}(\theta)}
# \;+\; \mathbb E\lVert u_t - (\varepsilon - x_0)\rVert^2 \;+\; 2\,\mathbb E\big\langle v_\theta - u_t,\; u_t - (\varepsilon - x_0)\big\rangle$$
#
# 给定 $x_t$，最后一项的第一个因子是固定的，第二个因子的均值为 0，所以最后一项为零。中间一项与 $\theta$ 无关。
# 因此两个损失的数值虽然不同，**梯度却相同**。用 (8) 的小批量，得到的是这个梯度的无偏估计。
#
# > **论文中的写法**：Lipman et al. 把 (8) 叫作 CFM 目标，并证明它的梯度与 FM 目标的梯度相同；取直线时就是论文的式 23。
# > 他们固定的是一张图像，而不是一对：$p_t(x \mid x_1) = \mathcal N(x;\, \mu_t(x_1),\, \sigma_t(x_1)^2 I)$
# > 的速度是 $u_t(x \mid x_1) = \frac{\dot\sigma_t}{\sigma_t}(x - \mu_t) + \dot\mu_t$（定理 3）。
# > 他们的边缘速度 $u_t(x) = \int u_t(x \mid x_1)\,\frac{p_t(x \mid x_1)\,q(x_1)}{p_t(x)}\,dx_1$（式 8）就是我们的条件均值，
# > 因为其中的分式是 $x_1$ 的后验分布。论文的时间和符号与这里相反：
# >
# > | | 本课程、Stable Diffusion 3 | Lipman et al. | Liu et al. |
# > |---|---|---|---|
# > | 数据在 | $t = 0$，记作 $x_0$ | $t = 1$，记作 $x_1$ | $t = 1$，记作 $X_1$ |
# > | 噪声在 | $t = 1$，记作 $\varepsilon$ | $t = 0$，记作 $x_0$ | $t = 0$，记作 $X_0$ |
# > | 插值路径 | $(1 - t)\,x_0 + t\,\varepsilon$ | $t\,x_1 + (1 - (1 - \sigma_{\min})\,t)\,x_0$ | $t\,X_1 + (1 - t)\,X_0$ |
# > | 目标 | $\varepsilon - x_0$，指向噪声 | $x_1 - (1 - \sigma_{\min})\,x_0$，指向数据 | $X_1 - X_0$，指向数据 |
# > | 采样 | 从 $t = 1$ 到 $0$ | 从 $t = 0$ 到 $1$ | 从 $t = 0$ 到 $1$ |
#
# 图像的条件均值已知时，$u_t$ 也就知道了：把 $\varepsilon = (x_t - (1 - t)\,x_0) / t$ 代入它的定义，得到
#
# $$u_t(x) = \frac{x - \hat x_0(x, t)}{t} \qquad\text{其中}\qquad \hat x_0 = \mathbb E[x_0 \mid x_t = x]$$
#
# 对有限的数据集，$\hat x_0$ 就是第 1 章中理想去噪器给出的加权平均。下面用第 5 节的那些数检验梯度。“网络”取
# $v_\theta(x, t) = \theta_1 + \theta_2\,x + \theta_3\,t$。


# %%
def flow_matching_loss(velocity, x0, eps, t):
    """每个样本的损失 (8)。x0, eps (B, ...)；t (B,) -> (B,)"""
    share = t.view(-1, *[1] * (x0.ndim - 1))  # (B, 1, ...)
    x_t = (1 - share) * x0 + share * eps
    return (velocity(x_t, t) - (eps - x0)).square().flatten(1).mean(1)


g = torch.Generator().manual_seed(0)
theta = torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64, requires_grad=True)


def linear(x, t):
    return theta[0] + theta[1] * x + theta[2] * t[:, None]


gradients = {"条件流匹配的损失 (8)": [], "用真实速度 u 的损失": []}
for _ in range(50):
    group = (torch.rand(4000, generator=g) > SHARES[0]).long()
    x0 = CENTRES[group] + WIDTH * torch.randn(4000, generator=g, dtype=torch.float64)
    eps, t = torch.randn(4000, generator=g, dtype=torch.float64), torch.rand(4000, generator=g, dtype=torch.float64)
    x_t = (1 - t) * x0 + t * eps
    likely, mean = centres_given(x_t, NoiseLevel(t, (1 - t)[:, None], t[:, None]))
    x0_mean = (likely * mean).sum(-1)  # E[x0 | x_t]
    u = (x_t - x0_mean) / t  # E[eps - x0 | x_t]
    losses = flow_matching_loss(linear, x0[:, None], eps[:, None], t), (linear(x_t[:, None], t)[:, 0] - u).square()
    for found, loss in zip(gradients.values(), losses, strict=True):
        found.append(torch.cat([loss.mean()[None].detach(), *torch.autograd.grad(loss.mean(), [theta])]))
print(f"{'小批量的平均，50 个':16}{'损失':>6}   梯度（95 % 置信区间）")
for name, found in gradients.items():
    mean, half = torch.stack(found).mean(0), 1.96 * torch.stack(found).std(0) / 50**0.5
    print(
        f"{name:16}{mean[0]:8.3f}   "
        + "   ".join(f"{m:+.3f} ± {h:.3f}" for m, h in zip(mean[1:], half[1:], strict=True))
    )

# %% [markdown]
# 两个损失相差的是中间那一项，一个常数。梯度在置信区间内一致，而影响权重的只有梯度。
# (8) 的代价是方差：从一个小批量到下一个小批量，它的梯度波动更大。
#
# ### 平面上的例子
#
# 数据是两个弯月。网络有三个隐藏层，用 (8) 训练，$t$ 在 $[0, 1]$ 上均匀分布。


# %%
def two_moons(n, seed=0):
    """两个交错的半圆上的点。(n, 2)"""
    g = torch.Generator().manual_seed(seed)
    angle, upper = math.pi * torch.rand(n, generator=g), torch.rand(n, generator=g) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return 1.2 * torch.stack([x, y], 1) + 0.06 * torch.randn(n, 2, generator=g)


class PlaneNet(nn.Module):
    """平面上的速度场。(B, 2), (B,) -> (B, 2)"""

    def __init__(self, width=96):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.end = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, t):
        place = math.pi / 2 * torch.cat([x, 2 * x, 3 * x], 1)  # 位置与时间的正弦波：细节更容易学会
        moment = math.pi * t[:, None] * torch.tensor([1, 2, 4])
        return self.end(self.layers(torch.cat([x, place.sin(), place.cos(), moment.sin(), moment.cos()], 1)))


def fit(net, loss, steps, lr=5e-3, decay=0.99):
    """用 AdamW 和逐渐下降的学习率使 loss(net, g) 最小；返回权重的滑动平均。"""
    average, g = copy.deepcopy(net), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr)
    for k in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (k + 1) / (0.05 * steps)) * (1 + math.cos(math.pi * k / steps)) / 2
        optimizer.zero_grad()
        loss(net, g).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(weight, max(1 - decay, 1 / (k + 1)))
    return average.eval()


moons = two_moons(20_000)


def data_loss(net, g):
    x0 = moons[torch.randint(len(moons), (256,), generator=g)]
    eps, t = torch.randn(256, 2, generator=g), torch.rand(256, generator=g)
    return flow_matching_loss(net, x0, eps, t).mean()


torch.manual_seed(0)
flow = fit(PlaneNet(), data_loss, 2000)

# %% [markdown]
# 采样就是用欧拉法从 $t = 1$ 走到 $t = 0$。目标指向噪声，所以前面有负号。
#
# 插值路径是直的，轨迹就是直的吗？一个流的**直线度**（straightness），是把沿轨迹的速度与同一条轨迹的两个端点
# $x_1$（噪声）和 $x_0$ 的连线相比较；匀速走直线时，它等于 0：
#
# $$S = \int_0^1 \mathbb E\,\lVert v_\theta(x_t, t) - (x_1 - x_0) \rVert^2\,dt$$
#
# ### 再整流
#
# 在 (8) 中，每份噪声都用直线连到一个随机抽取的数据点。通往不同点的直线会相交，网络学到的是它们的平均，轨迹就弯了。
# **再整流**（reflow，Liu et al.）不用随机的配对：取一份噪声 $\varepsilon$，让训练好的流由它生成 $\hat x_0$，
# 再用这些 $(\hat x_0, \varepsilon)$ 训练第二个流。常微分方程的轨迹不会相交，所以现在每份噪声只对应一张图像。
# 这样的配对之间，直线相交的情况少得多，但并非没有，所以论文会重复这个过程。
#
# **问题**：第二个流只走一步，能达到什么程度？


# %%
@torch.no_grad()
def euler(velocity, eps, steps):
    """从 t = 1 到 t = 0。依次给出 x，先给出噪声。"""
    x = eps
    yield x
    for k in range(steps):
        t = torch.full((len(x),), 1 - k / steps)
        x = x - velocity(x, t) / steps
        yield x


def reflow_pairs(velocity, eps, steps):
    """(x0, eps)：流由每份噪声生成的结果，以及这份噪声。"""
    return last(euler(velocity, eps, steps)), eps


def pair_loss(pairs):
    def loss(net, g):
        chosen = torch.randint(len(pairs[0]), (256,), generator=g)
        return flow_matching_loss(net, pairs[0][chosen], pairs[1][chosen], torch.rand(256, generator=g)).mean()

    return loss


noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))
straight = fit(copy.deepcopy(flow), pair_loss(reflow_pairs(flow, noise, 40)), 1500)

start_2d = torch.randn(4000, 2, generator=torch.Generator().manual_seed(2))
directions = torch.stack(
    [torch.tensor([math.cos(a), math.sin(a)]) for a in np.linspace(0, np.pi, 31)[:-1]], 1
)  # (2, 30)
real_2d = two_moons(4000, seed=5)


def sliced(a, b=real_2d):
    """切片 Wasserstein 距离：第 5 节的距离，在平面的 30 个方向上取平均。"""
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).abs().mean())


def straightness(velocity, steps=50):
    frames = list(euler(velocity, start_2d, steps))
    line = frames[0] - frames[-1]
    return np.mean([float(((a - b) * steps - line).square().sum(1).mean()) for a, b in pairwise(frames)])


flows, counts = {"第一个流": flow, "再整流后": straight}, [1, 2, 4, 8, 16, 32]
_, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained", width_ratios=[1, 1, 1, 1.1])
axes[0].scatter(*real_2d.T, s=1, color="black", linewidths=0)
axes[0].set_title("数据")
for axis, (name, velocity_2d) in zip(axes[1:3], flows.items(), strict=True):
    frames = torch.stack(list(euler(velocity_2d, start_2d[:60], 50)))
    axis.scatter(*last(euler(velocity_2d, start_2d, 32)).T, s=0.6, color="0.75", linewidths=0)
    axis.plot(frames[..., 0], frames[..., 1], color="C1", linewidth=0.6)
    axis.scatter(*frames[0].T, s=4, color="C0")
    axis.scatter(*frames[-1].T, s=6, color="black", zorder=3)
    axis.set_title(f"{name}：从噪声（蓝）到数据（黑）", fontsize=9)
for axis in axes[:3]:
    axis.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(True)
table = {name: [sliced(last(euler(v, start_2d, n))) for n in counts] for name, v in flows.items()}
for name, values in table.items():
    axes[3].plot(counts, values, marker="o", markersize=4, label=name)
floor = sliced(two_moons(4000, seed=6))
axes[3].axhline(floor, color="0.4", linestyle="--", linewidth=1, label="另取真实的点")
axes[3].set(xscale="log", yscale="log", xticks=counts, xticklabels=counts)
axes[3].set(yticks=[0.03, 0.06, 0.1, 0.3, 0.6], yticklabels=["0.03", "0.06", "0.1", "0.3", "0.6"])
axes[3].set(xlabel="网络评估次数", ylabel="到数据的距离")
axes[3].minorticks_off()
axes[3].legend(fontsize=8)
plt.show()
for name, values in table.items():
    cells = ", ".join(f"{n}: {value:.3f}" for n, value in zip(counts, values, strict=True))
    print(f"{name:13} 直线度 {straightness(flows[name]):.3f}；各评估次数下的距离 {cells}；下限 {floor:.3f}")

# %% [markdown]
# <details><summary>答案</summary>
#
# 几乎与走许多步一样好。第二个流的轨迹接近直线，而在直线上，欧拉法的一步是精确的。
# 步数多时，两者都到了下限。不能指望它比第一个流更好，因为它是用那个流的样本训练的。
# </details>
#
# 第一个流的插值路径虽然是直线，轨迹却是弯的。“直”说的是训练时的配对，不是轨迹。
# 再整流换来的是评估次数少，付出的是再训练一次。
#
# ### 不用训练的数字流
#
# 第 1 节说过，$\lambda$ 相等的点，图像也相同。所以每个扩散模型都是流模型：要求直线上 $(x, t)$ 处的速度，
# 就到圆上 $\lambda$ 相同的点，让网络在那里估计 $(\hat x_0, \hat\varepsilon)$，然后返回 $\hat\varepsilon - \hat x_0$。


# %%
def velocity_of_digits(x, t):
    """把第 1 章的网络当作直线上的速度场。(B, 1, 28, 28), (B,) -> (B, 1, 28, 28)"""
    t = min(float(t[0]), 0.9999)  # t = 1 时 lambda 为无穷大
    level = schedule.at_lam(math.log((1 - t) / t))
    x0, eps = denoise(x / math.hypot(1 - t, t), level)[:2]
    return eps - x0


x = noise_for(10, seed=4)
by_flow = last(euler(velocity_of_digits, x, 10))
even_in_t = [NoiseLevel(0, 1 - t, t) for t in np.linspace(0.9999, 0, 11).tolist()]  # 同样的水平，换到圆上
on_circle = [schedule.at_lam(level.lam) if level.sigma else NoiseLevel(0, 1.0, 0.0) for level in even_in_t]
by_ddim = my_ddim(denoise, x, on_circle)
show_images(torch.cat([by_flow, by_ddim]), 10, down=["欧拉法，流", "DDIM，圆"])
print(f"均方根差 {rms(by_flow - by_ddim):.0e}")

# %% [markdown]
# 只要访问的水平相同，直线上的欧拉法与圆上的 DDIM 就是同一个采样器。（剩下的差别来自舍入误差，以及两者的起点相差万分之一。）
# 流匹配真正改变的是默认设置：训练访问哪些水平，误差怎样加权，采样器停在哪里。这些设置是否更好，要靠测量来回答：
# `ablate.py flow` 在 28 × 28 的数字上训练两者，并在评估次数相同的条件下比较。

# %% [markdown]
# ## 9 · 用 Transformer 代替 U-Net
#
# 第 1 章搭建了 U-Net。Stable Diffusion 3 和 Flux 使用**扩散 Transformer**（diffusion transformer，DiT，
# [Peebles & Xie 2023](https://arxiv.org/abs/2212.09748)）。它把图像当作一个序列：
#
# 1. **切块**（patchify）：把图像切成 $p \times p$ 像素的图像块，每块用一个线性层映射成宽度为 $d$ 的词元，再加上固定的正弦位置编码。
# 2. **Transformer 块**（block）：先在所有词元之间做自注意力，再对每个词元用一个小网络，两者都是残差连接。
# 3. **拼回**（unpatchify）：把每个词元映射回 $p \times p$ 个像素。
#
# 噪声水平通过 **adaLN-Zero** 进入每个块。由 $t$ 的嵌入出发，一个线性层为每个块算出六个向量：
# 两次归一化之后各有一个平移（shift）和一个缩放（scale），两个残差各乘一个门控（gate）。
# 这一层的初值全为零，所以一开始所有的门都关着，每个块都是恒等映射。
# [dit.py](../common/models/dit.py) 把这样的块组装起来。它沿用 `diffusers` 的模块命名，
# 那里每个块都有自己的噪声水平嵌入；在论文中，所有的块共用一个。


# %%
def patchify(x, p):
    """(B, C, H, W) -> (B, N, p p C)：N = (H / p)(W / p) 个图像块各自的像素。"""
    return F.pixel_unshuffle(x, p).flatten(2).transpose(1, 2)


def unpatchify(tokens, p):
    """(B, N, p p C) -> (B, C, H, W)，图像为正方形。"""
    side = math.isqrt(tokens.shape[1])
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), p)


def modulate(x, shift, scale):
    return x * (1 + scale) + shift


class DiTBlock(nn.Module):
    """带 adaLN-Zero 的 Transformer 块。(B, N, d), (B, d) -> (B, N, d)"""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = (nn.LayerNorm(d, eps, elementwise_affine=False) for eps in (1e-6, 1e-5))
        self.qkv, self.project = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU("tanh"), nn.Linear(4 * d, d))
        self.adaln = nn.Linear(d, 6 * d)
        nn.init.zeros_(self.adaln.weight)
        nn.init.zeros_(self.adaln.bias)

    def forward(self, x, c):
        """x：词元；c：噪声水平的嵌入。"""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaln(F.silu(c))[:, None].chunk(
            6, dim=-1
        )  # (B, 1, d)
        q, k, v = self.qkv(modulate(self.norm_1(x), shift_1, scale_1)).chunk(3, dim=-1)  # 各为 (B, N, d)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))  # (B, heads, N, d / heads)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, d)
        x = x + gate_1 * self.project(y)
        return x + gate_2 * self.mlp(modulate(self.norm_2(x), shift_2, scale_2))


from common.models.dit import DiT, DiTConfig

x = mnist.batch(torch.arange(3))["image"]
print(
    f"图像 {tuple(x.shape)} -> 词元 {tuple(patchify(x, 4).shape)}；能否还原：{bool((unpatchify(patchify(x, 4), 4) == x).all())}"
)

mine, tokens, t = DiTBlock(64, 4), torch.randn(3, 49, 64), torch.tensor([10.0, 500.0, 990.0])
course = DiT(DiTConfig(dim=64, depth=1, heads=4)).transformer_blocks[0]
label = torch.zeros(3, dtype=torch.long)  # 不分类别的网络，所有图像用同一个标签
c = course.norm1.emb(t, label)
print(f"初始时每个块都是恒等映射：{torch.equal(mine(tokens, c), tokens)}")
nn.init.normal_(course.norm1.linear.weight, std=0.1)  # 打开门控
attention, pairs_of_layers = course.attn1, [(mine.adaln, course.norm1.linear), (mine.project, course.attn1.to_out[0])]
pairs_of_layers += [(mine.mlp[0], course.ff.net[0].proj), (mine.mlp[2], course.ff.net[2])]
for ours, theirs in pairs_of_layers:
    ours.load_state_dict(theirs.state_dict())
three = (attention.to_q, attention.to_k, attention.to_v)
mine.qkv.load_state_dict({name: torch.cat([getattr(layer, name) for layer in three]) for name in ("weight", "bias")})
with torch.no_grad():
    print(f"与课程自带的块最多相差 {(mine(tokens, c) - course(tokens, t, label)).abs().max():.0e}")

# %% [markdown]
# > **论文中的写法**：Peebles & Xie 比较了给块加入条件的四种方式（第 3.2 节），其中 adaLN-Zero 最好。他们的模型在潜变量上工作，我们的在像素上工作。
#
# 我们用流匹配的损失训练一个 U-Net 和一个 DiT，数据只取 MNIST 中的零和一，因为两种数字只需短时间的训练就能学会。步数的选择使两者所用时间大致相同。
#
# **问题**：U-Net 有卷积，一开始就知道相邻的像素关系密切；DiT 连这一点都要学。用 2,000 张图像，哪一个学得更快？

# %%
two = torch.isin(mnist.labels, torch.tensor([0, 1])).nonzero()[:, 0]  # 零和一
two_unseen = torch.isin(unseen.labels, torch.tensor([0, 1])).nonzero()[:256, 0]


def digits_loss(net, g):
    x0 = mnist.batch(two[torch.randint(len(two), (16,), generator=g)])["image"]
    t = (torch.arange(16) + torch.rand(16, generator=g)) / 16  # 16 个等长区间中各取一个时刻
    return flow_matching_loss(lambda x, t: net(x, 1000 * t), x0, torch.randn(x0.shape, generator=g), t).mean()


@torch.no_grad()
def held_out_loss(net):
    """在未参与训练的数字上的损失，噪声和时刻固定；返回平均值与 95 % 置信区间的一半。"""
    x0, t = unseen.batch(two_unseen)["image"], (torch.arange(256) + 0.5) / 256
    t = t[torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    each = flow_matching_loss(lambda x, t: net(x, 1000 * t), x0, Noise(3)(0, x0), t)
    return float(each.mean()), 1.96 * float(each.std()) / 256**0.5


from common.models.unet import UNet, zero_init
from common.models.unet_config import small_unet

torch.manual_seed(0)
candidates = {  # 名称：(网络, 步数, 学习率)
    "U-Net": (zero_init(UNet(small_unet(28, 1, (8, 16, 32)))), 350, 4e-3),
    "DiT": (DiT(DiTConfig(dim=64, depth=4)), 650, 3e-3),
}
trained, samples = {}, []
for name, (candidate, steps, lr) in candidates.items():
    began = time.process_time()
    trained[name] = fit(candidate, digits_loss, steps, lr, decay=0.96)
    seconds, (loss, half) = time.process_time() - began, held_out_loss(trained[name])
    size = sum(parameter.numel() for parameter in candidate.parameters())
    print(f"{name:6} {size:7,} 个权重，{steps} 步，CPU {seconds:.0f} 秒：未见过的数字上的损失 {loss:.4f} ± {half:.4f}")
    samples.append(last(euler(lambda x, t, net=trained[name]: net(x, 1000 * t), noise_for(12, seed=6), 20)))
show_images(torch.cat([unseen.batch(two_unseen[:12])["image"], *samples]), 12, down=["真实", *trained])

# %% [markdown]
# <details><summary>答案</summary>
#
# 在这样的训练时间内，各训练一次，是 U-Net。它在未见过的数字上损失更低，差别超出置信区间（区间只反映图像，不反映随机种子），笔画也大多是连贯的。
# DiT 的样本还能看出图像块的痕迹，彼此没有接好。
# </details>
#
# 用 2,000 张图像训练这么短的时间，不足以评判 Transformer。论文中的 DiT 用超过一百万张图像训练，时间长得多，卷积的优势也就小了。
# `ablate.py dit` 在全部数字上、用三个随机种子，比较两者训练 2 分钟和 8 分钟的结果。

# %% [markdown]
# ## 10 · 蒸馏
#
# 求解器充分利用一个给定的网络，**蒸馏**（distillation）则改变网络：让学生模型学会用一步完成教师模型的几步。
# 在**渐进式蒸馏**（progressive distillation，[Salimans & Ho 2022](https://arxiv.org/abs/2202.00512)）中，
# 学生从教师的权重开始，学习用一步代替两步；然后它自己成为教师，步数再减半。
#
# 目标可以由第 3 节推出。设教师用两步从 $x_t$ 走到 $x_s$。什么样的估计，能让 DDIM 用一步走到那里？
# 需要 $x_t = \alpha(t)\,\tilde x_0 + \sigma(t)\,\tilde\varepsilon$ 和
# $x_s = \alpha(s)\,\tilde x_0 + \sigma(s)\,\tilde\varepsilon$。两个方程，两个未知数：
#
# $$\tilde x_0 = \frac{x_s - \frac{\sigma(s)}{\sigma(t)}\,x_t}{\alpha(s) - \frac{\sigma(s)}{\sigma(t)}\,\alpha(t)} \qquad\qquad \tilde\varepsilon = \frac{x_t - \alpha(t)\,\tilde x_0}{\sigma(t)} \tag{9}$$
#
# 学生的目标是 $a\,\tilde x_0 + b\,\tilde\varepsilon$，$(a, b)$ 取自第 2 节的表。
# 请注意新在哪里：普通的训练中，一个 $x_t$ 对应许多可能的图像，最好的回答是模糊的平均。
# 教师的两步是确定性的，所以学生的目标是 $x_t$ 的函数，即使在 $t = T$ 也可以是清晰的。
#
# > **论文中的写法**：(9) 就是 Salimans & Ho 的算法 2 中的目标。**一致性模型**（consistency models，[Y. Song et al. 2023](https://arxiv.org/abs/2303.01469)）
# > 由此继续：训练 $f_\theta(x_t, t)$ 在同一条轨迹的两个相邻点上返回相同的图像，这样从任何地方都能一步跳到终点。
# > 噪声较少的点上的预测作为目标，不传梯度（stop-gradient，`detach`）。
# > 否则两个预测会一起移向数据的均值，以此达成一致：损失下降了，样本却毁了。
#
# 先在平面上，从 16 步一直减到一步。


# %%
def distillation_target(x_t, x_s, now, then):
    """(9)：使 DDIM 一步从 x_t 走到 x_s 的 (x0, eps)。"""
    ratio = then.sigma / now.sigma
    x0 = (x_s - ratio * x_t) / (then.alpha - ratio * now.alpha)
    return x0, (x_t - now.alpha * x0) / now.sigma


def halve(teacher, steps):
    """由步数为两倍的教师得到步数为 `steps` 的学生。"""

    def loss(net, g):
        k = torch.randint(steps, (256, 1), generator=g)
        t = 1 - k / steps  # (256, 1) 学生的时刻
        x0, eps = moons[torch.randint(len(moons), (256,), generator=g)], torch.randn(256, 2, generator=g)
        x_t, half = (1 - t) * x0 + t * eps, 1 / (2 * steps)
        with torch.no_grad():
            x_s = x_t
            for time_now in (t, t - half):  # 教师的两步
                x_s = x_s - half * teacher(x_s, time_now[:, 0])
        levels = (NoiseLevel(t, 1 - t, t) for t in (t, t - 2 * half))
        x0_target, eps_target = distillation_target(x_t, x_s, *levels)
        return (net(x_t, t[:, 0]) - (eps_target - x0_target)).square().mean()

    return fit(copy.deepcopy(teacher), loss, 400, lr=1e-3)


teacher, students = flow, {}
for steps in (8, 4, 2, 1):
    teacher = students[steps] = halve(teacher, steps)

table["蒸馏之后"] = [sliced(last(euler(student, start_2d, n))) for n, student in sorted(students.items())]
plt.figure(figsize=(6, 2.9), layout="constrained")
for name, values in table.items():
    plt.plot(counts[: len(values)], values, marker="o", markersize=4, label=name)
plt.axhline(floor, color="0.4", linestyle="--", linewidth=1, label="另取真实的点")
plt.gca().set(xscale="log", yscale="log", xticks=counts, xticklabels=counts)
plt.gca().set(yticks=[0.03, 0.06, 0.1, 0.3, 0.6], yticklabels=["0.03", "0.06", "0.1", "0.3", "0.6"])
plt.gca().set(xlabel="网络评估次数", ylabel="到数据的距离")
plt.minorticks_off()
plt.legend(fontsize=8)
plt.show()
for name, values in table.items():
    print(f"{name:13}" + "   ".join(f"{n}: {value:.3f}" for n, value in zip(counts, values, strict=False)))

# %% [markdown]
# 最后一个学生评估一次（0.052<!--out-->），比流评估八次（0.074<!--out-->）更接近数据。
# 每次减半都会增加一点误差，因为每个学生的教师本身也只是近似。在这里，再整流做得更好（0.035<!--out-->）。
#
# 再看数字：第 1 章的网络用 DDIM 走 4 步，作为教师；学生走 2 步。学生从相同的权重开始，学习 60 步，每步 16 张图像。

# %%
fine = list(schedule.noise_levels(4))  # 教师的 5 个水平；学生隔一个访问一个


def halving_loss(net, g):
    x0 = mnist.batch(torch.randint(len(mnist), (16,), generator=g))["image"]
    i = 2 * int(torch.randint(2, (), generator=g))
    now, middle, then = fine[i : i + 3]
    x_t = add_noise(x0, torch.randn(x0.shape, generator=g), now)
    x0_target, eps_target = distillation_target(x_t, my_ddim(denoise, x_t, [now, middle, then]), now, then)
    a, b = mixture(prediction, now)
    return (net(x_t, torch.full((16,), now.time)) - (a * x0_target + b * eps_target)).square().mean()


student = Denoiser(fit(copy.deepcopy(net), halving_loss, 60, lr=2e-4, decay=0.9), prediction, clip_x0)

x = noise_for(N, seed=5)
ends = {
    "教师，4 次": my_ddim(denoise, x, fine),
    "教师，2 次": my_ddim(denoise, x, fine[::2]),
    "学生，2 次": my_ddim(student, x, fine[::2]),
}
shown = {f"{name}评估": images[:10] for name, images in ends.items()}
show_images(torch.cat(list(shown.values())), 10, down=list(shown))
for name, images in ends.items():
    (value, low, high), off = frechet(images), rms(images - ends["教师，4 次"])
    print(f"{name}评估：弗雷歇距离 {value:.1f}（{low:.1f} 到 {high:.1f}）；与第一种的均方根差 {off:.3f}")

# %% [markdown]
# 只评估两次时，教师画的笔画发灰、模糊，因为每一步用的都是许多可能图像的平均。
# 学生的笔画更清晰，弗雷歇距离更小，也更接近教师走四步的结果。
# 不过，这 60 步蒸馏还抵不上另外两次评估：Salimans & Ho 的每次减半都训练成千上万步。

# %% [markdown]
# ## 11 · 损失与权重
#
# 训练把预测 $y$ 与目标相比较。一个误差要付多少代价，可以选择：误差的平方（**L2**）、误差的绝对值（**L1**），
# 或者 **Huber**，误差小时是抛物线，误差大时是直线。一个噪声水平占多大分量，也可以选择：权重 $w(\mathrm{SNR})$。
#
# $\varepsilon$ 的误差与 $x_0$ 的误差单位不同。给定 $x_t$ 时，$x_0$ 的误差 $\delta$ 就是 $\varepsilon$ 的误差 $-\frac{\alpha}{\sigma}\delta$，
# 所以 `eps` 的平方误差是 `x0` 的平方误差的 SNR 倍。在圆上，`x0` 的平方误差是 `v` 的 $\sigma^2$ 倍，而 $1/\sigma^2 = \mathrm{SNR} + 1$。由此，一种预测的权重可以换算成另一种预测的权重：
#
# | | `x0` 的平方误差的权重 | `eps` 的 | `v` 的 |
# |---|---|---|---|
# | 不加权的 `eps` | $\mathrm{SNR}$ | $1$ | $\mathrm{SNR} / (\mathrm{SNR} + 1)$ |
# | 不加权的 `x0` | $1$ | $1 / \mathrm{SNR}$ | $1 / (\mathrm{SNR} + 1)$ |
# | 不加权的 `v` | $\mathrm{SNR} + 1$ | $(\mathrm{SNR} + 1) / \mathrm{SNR}$ | $1$ |
# | P2（[Choi et al. 2022](https://arxiv.org/abs/2204.00227)，取 $k = \gamma = 1$） | $\mathrm{SNR} / (1 + \mathrm{SNR})$ | $1 / (1 + \mathrm{SNR})$ | $\mathrm{SNR} / (1 + \mathrm{SNR})^2$ |
# | min-SNR（[Hang et al. 2023](https://arxiv.org/abs/2303.09556)，$\gamma = 5$） | $\min(\mathrm{SNR}, \gamma)$ | $\min(\mathrm{SNR}, \gamma) / \mathrm{SNR}$ | $\min(\mathrm{SNR}, \gamma) / (\mathrm{SNR} + 1)$ |
#
# 右图画出第一列。

# %%
from common.diffusion.losses import ERRORS, loss_weight

_, (left, right) = plt.subplots(1, 2, figsize=(11, 3.3), layout="constrained")
e = torch.linspace(-0.5, 0.5, 201)
for name, error in ERRORS.items():
    left.plot(e, error(e, torch.zeros_like(e)), label=name)
left.set(xlabel="一个像素的误差", ylabel="代价", title="误差的代价")
left.legend()
lams = np.linspace(-4, 4, 161)
choices = [("plain", "eps"), ("plain", "x0"), ("plain", "v"), ("p2", "eps"), ("min_snr", "eps")]
for i, (weight, name) in enumerate(choices):
    cost = []
    for lam in lams.tolist():
        level = schedules["cosine"].at_lam(lam)
        level = NoiseLevel(level.time, torch.tensor(level.alpha), torch.tensor(level.sigma))
        a, b = mixture(name, level)
        cost.append(loss_weight(weight, name, level) * (a - b * level.alpha / level.sigma) ** 2)
    style = {
        "linestyle": "-" if weight == "plain" else "--",
        "label": f"不加权，{name}" if weight == "plain" else weight,
    }
    right.plot(lams, cost, color=f"C{i}", **style)
right.set(yscale="log", ylim=(1e-3, 1e3), xlabel="$\\lambda$（噪声多 … 噪声少）", ylabel="权重")
right.set_title("$x_0$ 的平方误差的权重")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# **右图**：用 `eps` 而不加权时，图像的误差在噪声少处的分量，是噪声多处的上百万倍。用 `x0` 时，所有水平的分量相同。
# P2 和 min-SNR 在噪声多处跟随 `eps`，在噪声少处变平，使几乎干净的水平不至于占主导。
# 权重与预测、调度是同一类选择：三者都决定哪些噪声水平更重要。
#
# ### L1 与 L2
#
# 你也许读到过：L2 的图像更锐利，L1 的更平滑（[经验之谈](../docs/claims.zh.md#l2-更锐利l1-更平滑)）。
# 还有一个更根本的差别。L2 的最佳预测是条件均值，L1 的最佳预测是逐像素的条件中位数。
# 第 5 节说明了采样器需要哪一个：连续性方程由速度的条件**均值**推出，中位数没有这样的性质。
# 所以完美的 L1 网络采样得到的，应该是另一个分布。
#
# **问题**：是什么样的分布？想象一个像素，以 0.7 的概率为黑，以 0.3 的概率为白。然后我们让两种完美的网络各自采样第 5 节的数，其中 30 % 应在 $-0.8$ 附近。


# %%
def ideal_for_l1(x, level):
    """给定 x 时 x0 的中位数，用二分法求出：用 L1 训练的完美网络就预测这个值。"""
    likely, mean = centres_given(x, level)
    sd = WIDTH * level.sigma / math.hypot(level.alpha * WIDTH, level.sigma)
    low, high = mean.min(-1).values - 6 * sd, mean.max(-1).values + 6 * sd
    for _ in range(30):
        x0 = (low + high) / 2
        below = (likely * torch.special.ndtr((x0[:, None] - mean) / sd)).sum(-1)
        low, high = torch.where(below < 0.5, x0, low), torch.where(below < 0.5, high, x0)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


print("                  -0.8 附近的比例       0.5 附近的标准差")
print(f"{'数据':20}{float(SHARES[0]):11.3f} {WIDTH:22.3f}")
for name, perfect in {"L2": ideal, "L1": ideal_for_l1}.items():
    for sampler in ("ddim", "ddpm"):
        options = {"noise": Noise(1)} if sampler == "ddpm" else {}
        end = last(SAMPLERS[sampler](perfect, start, schedule.noise_levels(100), **options)).x
        share, width = float((end < -0.15).double().mean()), float(end[end > -0.15].std())
        print(f"{f'{name}, {sampler}:100':22}{share:11.3f} {width:22.3f}")

# %% [markdown]
# <details><summary>答案</summary>
#
# 中位数偏向多数。较小的一组会失去成员，较大的一组会变窄。
# </details>
#
# 这个结论说的是一维情形下的完美网络。短时间训练之后，在数字上能否看出差别，要靠实验回答；`ablate.py losses` 研究的就是这个问题。
#
# ### 学习方差
#
# DDPM 的新噪声方差是固定的。把网络的输出通道加倍，就可以逐像素地预测方差。它的损失是第 1 章的**变分下界**（variational bound，VLB）：
# 后验分布与网络的一步之间的 KL 散度之和，$D_{\text{KL}}\big(q(x_{t-1} \mid x_t, x_0)\,\|\,p_\theta(x_{t-1} \mid x_t)\big)$。
# 它表示用网络的分布来编码真正的一步，要多花多少比特（Nichol & Dhariwal 2021；[vlb.py](../common/diffusion/vlb.py)）。
#
# 有一种说法是，这一项占用内存，使批量大小减少三分之一（[经验之谈](../docs/claims.zh.md#变分下界要占去三分之一的批量)）。
# 训练留在内存里的，是自动求导为反向传播保存的内容，可以逐字节地数出来。

# %%
from ddim_schedules import activation_memory

plain, hybrid, twice = (
    activation_memory.saved_bytes(loss, size=28, channels=(16, 32), batch_size=8) for loss in activation_memory.LOSSES
)
print(
    f"8 张图像所保存的内容：不用下界 {plain / 1e6:.1f} MB，用下界 {hybrid / 1e6:.1f} MB（{hybrid / plain - 1:+.1%}），"
)
print(f"为下界再评估一次网络 {twice / 1e6:.1f} MB（{twice / plain:.2f} 倍）")

# %% [markdown]
# 下界使用的是已经算好的预测，所以几乎不花代价。如果一种实现为此再评估一次网络，代价就是双倍。

# %% [markdown]
# ## 12 · 从一个数字到另一个数字
#
# 取两个真实的数字 $a$ 和 $b$，寻找介于两者之间的图像，并且要求这些图像也是数字。混合像素，得到的是叠在一起的两个重影。
# 所以要在噪声空间里混合，再从那里采样。有两种办法（[interpolation.py](ddim_schedules/interpolation.py) 中还有几种变体）：
#
# * **DDPM 潜变量**（[DDPM](https://arxiv.org/abs/2006.11239) 第 4.4 节）：把两张图像加噪到水平 $t$，线性混合两张加噪图像，再用 DDPM 采样。
#   $t / T$ 叫作“强度”（strength）。
# * **DDIM 潜变量**：从两张图像出发，沿常微分方程倒着走到 $t = T$（结果离纯噪声有多远，见第 13 节），在那里混合，再用 DDIM 采样。
#
# 混合纯噪声要小心。把它看成 784 个数组成的向量，它的长度几乎总是 $\sqrt{784}$，所以噪声都在一个球面附近，两份噪声之间的直线却从球的内部穿过。
# **球面线性插值**（slerp）沿球面走。设 $\theta$ 是 $z_a$ 与 $z_b$ 之间的夹角，
#
# $$z(w) = \frac{\sin((1 - w)\,\theta)}{\sin\theta}\; z_a + \frac{\sin(w\,\theta)}{\sin\theta}\; z_b \qquad \cos\theta = \frac{z_a \cdot z_b}{|z_a|\,|z_b|}$$
#
# 当 $z_a$ 与 $z_b$ 几乎平行时，$\sin\theta$ 接近 0，这时改用直线，前面许多位数字都相同。
# （两份相反的噪声，$\sin\theta$ 也是 0，但那时直线经过 0，圆弧也不唯一。）

# %%
from ddim_schedules import interpolation, inversion

a, b = noise_for(200, seed=1), noise_for(200, seed=2)
halfway = interpolation.lerp(a, b, 0.5), solvers.slerp(a, b, 0.5)
print(f"噪声的标准差 {a.std():.2f}；中点在直线上 {halfway[0].std():.2f}，在球面上 {halfway[1].std():.2f}")

# %% [markdown]
# 你也许见过这种说法：“插值不是逐渐变化，而是在中间突然跳变”（[经验之谈](../docs/claims.zh.md#插值在中间突然跳变)）。
# 我们用六种方式对六对数字做插值，每次十一张图像，同一序列的所有图像使用相同的新噪声。
# 图像条画出其中一对，两端是真实的数字。曲线图画出从一帧到下一帧图像改变了多少，用评估器网络的特征来测量。

# %%
labels = unseen.labels
drawn_pairs = np.random.default_rng(0).integers(0, len(unseen), (40, 2)).tolist()
pairs = [(2, 1), *((i, j) for i, j in drawn_pairs if labels[i] != labels[j])][:6]
ways = {  # 名称：(方法, 强度)
    "DDPM，加噪强度 0.3": ("ddpm", 0.3),
    "DDPM，加噪强度 0.6": ("ddpm", 0.6),
    "0.6，共用噪声": ("ddpm_shared", 0.6),
    "0.6，噪声球面插值": ("ddpm_slerp", 0.6),
    "DDPM，加噪强度 0.9": ("ddpm", 0.9),
    "DDIM，球面插值": ("ddim_slerp", 1.0),
}
visited, shares, strips, changes, off = schedule.noise_levels(10), np.linspace(0, 1, 11).tolist(), [], {}, {}
for name, (method, strength) in ways.items():
    changes[name], off[name] = [], []
    for seed, pair in enumerate(pairs):
        a, b = unseen.batch(torch.tensor(pair))["image"].split(1)
        sequence = interpolation.interpolate(
            method, denoise, free, visited, a, b, shares, strength, seed
        )  # (11, 1, 28, 28)
        changes[name].append(interpolation.frame_changes(sequence))
        off[name].append((rms(sequence[:1] - a) + rms(sequence[-1:] - b)) / 2)
        strips += [a, sequence, b] if seed == 0 else []
show_images(torch.cat(strips), 13, across=["a", *(f"{w:.1f}" for w in shares), "b"], down=list(ways))

plt.figure(figsize=(7.5, 2.8), layout="constrained")
for name, each in changes.items():
    style = "--" if "共用" in name or "噪声" in name else "-"
    plt.plot(
        np.arange(10) / 10 + 0.05, torch.stack(each).mean(0), marker="o", markersize=3, label=name, linestyle=style
    )
plt.gca().set(xlabel="b 的比例", ylabel=f"变化（{len(pairs)} 对的平均）", ylim=(0, None))
plt.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
print(f"{'':22}{'最大变化 / 平均变化':>22}{'两端的均方根差':>13}")
for name, each in changes.items():
    peak = torch.tensor([interpolation.peak_to_mean(change) for change in each])
    print(
        f"{name:17}{f'{peak.mean():.1f} ± {1.96 * peak.std() / len(peak) ** 0.5:.1f}':>30}{np.mean(off[name]):20.2f}"
    )

# %% [markdown]
# （1 表示完全均匀，10 表示只跳一次；± 是各对平均值的 95 % 置信区间。）
#
# ### 为什么会跳变？
#
# 想象一个只知道两张图像 $a$ 和 $b$ 的完美网络。它看到 $x = \alpha\,[(1-w)\,a + w\,b] + \sigma\varepsilon$，要判断原来是哪一张。
# 记 $d = b - a$，写出正态分布，几乎所有的项都消去了：
#
# $$\log \frac{P(b \mid x)}{P(a \mid x)} = \mathrm{SNR}\;|d|^2 \left(w - \tfrac12\right) + \sqrt{\mathrm{SNR}}\;\varepsilon \cdot d$$
#
# 由对称性，第一项在 $w = \frac12$ 处过零。它过零时很陡，因为 $|d|^2$ 对全部 784 个像素求和：所有像素一起做决定。
# 第二项是噪声，只移动过零的位置，移动约 $1 / (\sqrt{\mathrm{SNR}}\,|d|)$。
# 下一幅图对图像条中的那一对画出这个概率，每种强度用八份噪声。

# %%
a, b = unseen.batch(torch.tensor(pairs[0]))["image"]
d, w = (b - a).flatten(), torch.linspace(0, 1, 401)
_, axes = plt.subplots(1, 3, figsize=(10, 2.5), layout="constrained", sharey=True)
for axis, strength in zip(axes, (0.3, 0.6, 0.9), strict=True):
    level = level_at(schedule, round(1000 * strength))
    snr = (level.alpha / level.sigma) ** 2
    for seed in range(8):
        odds = snr * d.square().sum() * (w - 0.5) + math.sqrt(snr) * Noise(seed)(0, d).dot(d)
        axis.plot(w, odds.sigmoid(), color="C0", linewidth=0.8)
    axis.set(title=f"强度 {strength}：SNR |d|² = {snr * float(d.square().sum()):.0f}", xlabel="w，b 的比例")
axes[0].set_ylabel("P(b | x)")
plt.show()

# %% [markdown]
# 强度低时，信噪比高，切换又陡又在正中，与上图中强度 0.3 的曲线一样。强度更高时，噪声使切换的位置移动，所以各对平均之后的峰变宽。
# 强度 0.9 时，噪声的作用超过 $a$ 和 $b$：任何地方都可能变化，两端也成了别的数字（两个无关的数字相差约 0.7<!--out-->）。
#
# DDIM 潜变量最能保住两端（表的最后一列），但治不了跳变：用这六对数字，以平均变化为单位，它的最大变化比 DDPM 大；
# 用十二对数字和更密的帧（[RESULTS.md](RESULTS.md)），没有看到差别。
#
# 另外还有两种常见的解释。“两张图像加的噪声不同”：共用噪声的那一行检验它。“两份噪声混合之后，中间的噪声太小”，
# 只有上面算出的 0.71<!--out--> 倍：对噪声做球面插值的那一行检验它。
# 这两行与强度 0.6 的差别都没有超出置信区间，所以用六对数字，这两种影响都没有看到。

# %% [markdown]
# ## 13 · 反演：由数字找回噪声，再返回
#
# $\eta = 0$ 的 DDIM 是确定性的，所以可以倒着走：从一个真实的数字，走到能采样出它的噪声。许多图像编辑方法都从这里开始。
# 这里有一个原则上的困难：要精确地撤销一步，需要网络对噪声更多的图像的预测，而这张图像还没有求出来。
# 反演用的是对手头这张图像的预测。步长很小时，两者几乎相同。要多小？

# %%
x0, counts = unseen.batch(torch.arange(6))["image"], [5, 10, 20, 40]
rows, found = [x0], {}
for steps in counts:
    noise, again = inversion.reconstruct(denoise, free, schedule.noise_levels(steps), x0)
    found[steps] = (noise, again)
    rows += [noise / 2, again] if steps in (5, 40) else []
down = ["真实", *(f"{what}，{n} 步" for n in (5, 40) for what in ("噪声 / 2", "重建"))]
show_images(torch.cat(rows), 6, down=down)
for steps, (noise, again) in found.items():
    neighbours = float((noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean())
    error = (again - x0).square().mean((1, 2, 3)).sqrt()
    half = 1.96 * error.std() / len(error) ** 0.5
    print(f"{steps:3} 步：图像的误差 {error.mean():.3f} ± {half:.3f}；", end=" ")
    print(f"噪声的标准差 {noise.std():.2f}，相邻像素的相关系数 {neighbours:+.2f}")

# %% [markdown]
# 找到的噪声是噪声吗？真正的噪声标准差为 1，相邻像素不相关。反演找到的“噪声”里看得出数字。
# 步数增加，相邻像素的相关系数从 0.85<!--out--> 降到 0.43<!--out-->，标准差却一直在 0.54<!--out--> 附近。
#
# 误差随步数减小，但它像一阶方法应有的那样，按 $1/\text{步数}$ 减小吗？有两件事可能拖慢它。
# (a) 采样把 $\hat x_0$ 限制在 $[-1, 1]$，反演则不限制。
# (b) 第一步把干净的图像当作加噪图像交给网络，这是训练时从未见过的。
# **问题**：是哪一个？我们先去掉 (a)，再连 (b) 也去掉，即从 $t = 50$ 的加噪图像开始，而不从干净图像开始。最后一条线则避开调度的两端。

# %%
few = x0[:3]


def levels_between(t_start, t_end, steps):
    """从 t_start 到 t_end，按 t 等距的噪声水平。"""
    return NoiseLevels(schedule.at(torch.linspace(t_start, t_end, steps + 1).round().long()), schedule)


def noised(t):
    return add_noise(few, Noise(9)(0, few), level_at(schedule, t))


settings = {  # 名称：(采样用的去噪器, 图像, 最大与最小的时间步)
    "做法与上相同": (denoise, few, 1000, 0),
    "不再限制 x0 的值": (free, few, 1000, 0),
    "不限制，t 从 50 到 1000": (free, noised(50), 1000, 50),
    "不限制，t 从 200 到 700": (free, noised(200), 700, 200),
}
plt.figure(figsize=(6.5, 2.8), layout="constrained")
for name, (sampling, image, *ends) in settings.items():
    errors = [rms(inversion.reconstruct(sampling, free, levels_between(*ends, n), image)[1] - image) for n in counts]
    slope = np.polyfit(np.log(counts[-2:]), np.log(errors[-2:]), 1)[0]
    plt.plot(counts, errors, marker="o", markersize=4, label=f"{name}（末段斜率 {slope:.2f}）")
    print(f"{name:20} 误差 " + ", ".join(f"{error:.3f}" for error in errors) + f"；末段斜率 {slope:.2f}")
plt.plot(counts, [0.2 * 5 / n for n in counts], color="0.7", linestyle=":", label="斜率 −1")
plt.gca().set(xscale="log", yscale="log", xticks=counts, xticklabels=counts)
plt.gca().set(yticks=[0.02, 0.05, 0.1], yticklabels=["0.02", "0.05", "0.1"])
plt.gca().set(xlabel="单程的网络评估次数", ylabel="误差（均方根）")
plt.minorticks_off()
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# <details><summary>答案</summary>
#
# 都不是：去掉 (a) 和 (b)，误差仍然减小得比 $1/\text{步数}$ 慢。在调度的中段，从 $t = 200$ 到 $700$，斜率接近 $-1$。
# 所以破坏一阶收敛的是两端。一个可能的原因是，那里 $\lambda$ 变化最快（第 1 节右图），按 $t$ 取相等的步长，就 $\lambda$ 而言就成了大步。
# 上图并没有检验这个原因；要检验它，可以改为按 $\lambda$ 均匀地取噪声水平。
# </details>

# %% [markdown]
# ## 14 · 实验室
#
# 关于扩散模型，得出一种说法太容易了：训练两次，看两组图，就信了。[ablate.py](ablate.py) 做得更好。
# 它读取 `loss=l2,l1 seed=0,1,2` 这样的设置，对每一种组合训练并采样，把每一组样本与真实图像比较，并列出下限，
# 最后给出平均值，以及对随机种子的 95 % 置信区间。做过的一切都会保存，所以研究可以随时停下，以后再继续。
#
# 下面是一项不用训练的小研究：评估 5 次时，DPM-Solver++(2M) 在我们的网络上比 DDIM 好吗？它用三个噪声种子，各采样 48 个数字。

# %%
import tempfile
from pathlib import Path

from ddim_schedules import plots
from ddim_schedules.experiment import Experiment, SamplingSettings, TrainingSettings, grid, read_axes
from ddim_schedules.runner import Runner

folder = tempfile.TemporaryDirectory()  # 随笔记本一起消失
runner = Runner(Path(folder.name), device="cpu", precision="no")
axes = read_axes(["sampler=ddim,dpmpp_2m", "steps=5", "n=48", "seed=0,1,2"])
trained_network = TrainingSettings(model=str(CHAPTER.parent / "01_ddpm_mnist" / "pretrained"), data="mnist-10k")
experiments = grid(axes, Experiment(trained_network, SamplingSettings()))
results = [runner.result(experiment) for experiment in experiments]  # 每项实验一个字典
for measure in ("frechet", "sharpness"):
    print(measure)
    for line in plots.table(results, plots.varied(axes, experiments), measure):
        print("   " + "".join(f"{word:18}" for word in line))
    print(f"   {'真实数字':14}{results[0][f'{measure}_real']:.3g}\n")

# %% [markdown]
# 你能得出什么结论？请看置信区间。只有三个种子时，95 % 置信区间很宽，因为三个数很难估计离散程度：
# 学生 t 分布的系数是 4.3<!--given-->，而不是 1.96<!--given-->。明显超出置信区间的差别，才是一个结果，而且只对这个网络和这些数据成立。
# 其余的只能说“在这里没有看到”，这比“不存在”要弱。
#
# ```sh
# python 03_ddim_schedules/ablate.py --list                  # 全部研究
# python 03_ddim_schedules/ablate.py flow                    # 流与扩散，评估次数相同
# python 03_ddim_schedules/ablate.py dit                     # DiT 与 U-Net，训练时间相同
# python 03_ddim_schedules/ablate.py losses                  # L1、L2 与 Huber，28 × 28 的数字
# python 03_ddim_schedules/ablate.py schedule=linear,cosine sampler=ddim,dpmpp_2m steps=5,10,20 seed=0,1,2 --dry
# ```
#
# 大部分研究的数字，连同命令和置信区间，都在 [RESULTS.md](RESULTS.md) 中；各种说法及其出处在[经验之谈](../docs/claims.zh.md)中。概括如下：
#
# | 说法 | 位置 | 看到了什么 |
# |---|---|---|
# | DDPM 少于 1,000 步时一直带噪点 | 第 4 节 | 用重采样的系数时没有；用完整链的系数时，确实如此 |
# | DDIM 用 50 步与 DDPM 用 1,000 步一样好，代价只有二十分之一 | 第 3 节、`speed` | 质量上没有看到差别 |
# | 随机采样器需要很多步 | 第 7 节、`samplers` | 在小例子里成立；在数字上，对 Euler–Maruyama 和用方差 $\beta_t$ 的 DDPM 成立；用 $\tilde\beta_t$ 的 DDPM 并不落后于 DDIM |
# | L2 更锐利，L1 更平滑 | 第 11 节、`losses` | 完美的 L1 网络采样的是另一个分布；锐利程度要看 28 × 28 的研究 |
# | VLB 一项占用内存，使批量大小减少三分之一 | 第 11 节 | 没有看到：它几乎不花代价 |
# | 插值在中间跳变 | 第 12 节 | DDPM 潜变量在保得住图像的强度下看到了，DDIM 潜变量也看到了；像素一起做决定 |
# | 流匹配的轨迹是直的 | 第 8 节 | 训练的配对是直的，轨迹是弯的；再整流使它变直 |
# | Transformer 可以代替 U-Net | 第 9 节、`dit` | 没有看到：第 9 节的短时间训练中 U-Net 领先，更长的训练由 `dit` 测量 |

# %% [markdown]
# ## 学完之后你能够
#
# * 把任何噪声调度看作两条曲线 $\alpha(t)$、$\sigma(t)$，把任何预测看作一对系数 $(a, b)$，并在各种预测之间换算。
# * 由后验分布推导 DDIM 和它的 $\eta$，并指出哪一步精确，哪一步是近似。
# * 对一条链做步长重采样，并看出忘了这样做的错误。
# * 由连续性方程推导概率流常微分方程，由福克–普朗克方程推导反向随机微分方程。
# * 用几行代码写出霍因法、DPM-Solver++(2M)、流匹配、再整流和渐进式蒸馏。
# * 解释 adaLN-Zero、min-SNR 权重、零终端信噪比，以及插值为什么会跳变。
# * 设计带有随机种子、下限和置信区间的研究，并且结论的措辞不超出它们所能支持的程度。
#
# ## 本章公式
#
# | | |
# |---|---|
# | 噪声水平 | $x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon$，$\;\lambda = \log(\alpha/\sigma)$，$\;\mathrm{SNR} = \alpha^2/\sigma^2$ |
# | v 预测 | $v = \alpha\,\varepsilon - \sigma\,x_0$，$\;x_0 = \alpha\,x - \sigma\,v$，$\;\varepsilon = \sigma\,x + \alpha\,v$ |
# | DDIM | $x_s = \alpha(s)\,\hat x_0 + \sqrt{\sigma(s)^2 - f^2}\,\hat\varepsilon + f z$，$\;f^2 = \eta^2\,\frac{\sigma(s)^2}{\sigma(t)^2}\left(\sigma(t)^2 - \frac{\alpha(t)^2}{\alpha(s)^2}\sigma(s)^2\right)$ |
# | 步长重采样 | $\beta_{s \to t} = 1 - \bar\alpha_t / \bar\alpha_s$ |
# | 连续性方程 | $\partial_t p_t = -\nabla\cdot(u_t\,p_t)$，$\;u_t(x) = \mathbb E[\dot x_t \mid x_t = x]$ |
# | 概率流常微分方程 | $dx = \hat x_0\,d\alpha + \hat\varepsilon\,d\sigma = [\mathbf f - \frac12 g^2\nabla\log p_t]\,dt$，$\;\mathbf f = x\,\dot\alpha/\alpha$ |
# | 反向随机微分方程 | $dx = [\mathbf f - g^2\nabla\log p_t]\,dt + g\,d\bar w$，$\;g^2 = \dot{(\sigma^2)}-2\sigma^2\,\dot\alpha/\alpha$ |
# | 霍因法 | $x_s = x + \frac12(\hat x_0 + \hat x_0')\,\Delta\alpha + \frac12(\hat\varepsilon + \hat\varepsilon')\,\Delta\sigma$ |
# | DPM-Solver++(2M) | $x_s = \frac{\sigma(s)}{\sigma(t)}\,x_t - \alpha(s)(e^{-h} - 1)\left[\hat x_0 + \frac{\hat x_0 - \hat x_0^{\text{old}}}{2r}\right]$，$\;h = \lambda(s) - \lambda(t)$，$\;r = (\lambda(t) - \lambda^{\text{old}})/h$ |
# | 流匹配 | $L = \mathbb E\lVert v_\theta((1-t)\,x_0 + t\,\varepsilon,\, t) - (\varepsilon - x_0)\rVert^2$，采样从 $t = 1$ 到 $0$ |
# | 蒸馏 | $\tilde x_0 = \big(x_s - \frac{\sigma(s)}{\sigma(t)}x_t\big) \big/ \big(\alpha(s) - \frac{\sigma(s)}{\sigma(t)}\alpha(t)\big)$ |
# | min-SNR | $x_0$ 的权重是 $\min(\mathrm{SNR}, \gamma)$；$\varepsilon$ 的要除以 $\mathrm{SNR}$，$v$ 的要除以 $\mathrm{SNR} + 1$ |
# | 球面线性插值 | $\big[\sin((1-w)\theta)\,z_a + \sin(w\theta)\,z_b\big] / \sin\theta$ |
#
# ## 延伸阅读
#
# * [Denoising Diffusion Implicit Models](https://arxiv.org/abs/2010.02502) 和
#   [Score-Based Generative Modeling through SDEs](https://arxiv.org/abs/2011.13456)：第 3 节和第 5 节。
# * [Elucidating the Design Space of Diffusion-Based Generative Models](https://arxiv.org/abs/2206.00364)（EDM）：对噪声调度、预条件（preconditioning）和求解器讲得最清楚。
# * [DPM-Solver++](https://arxiv.org/abs/2211.01095)：第 6 节。
# * [Flow Matching for Generative Modeling](https://arxiv.org/abs/2210.02747)、
#   [Flow Straight and Fast](https://arxiv.org/abs/2209.03003)，以及篇幅很长的
#   [Flow Matching Guide and Code](https://arxiv.org/abs/2412.06264)：第 8 节。
# * [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748) 和
#   [Scaling Rectified Flow Transformers](https://arxiv.org/abs/2403.03206)（Stable Diffusion 3）：第 9 节。
# * [Progressive Distillation](https://arxiv.org/abs/2202.00512) 和 [Consistency Models](https://arxiv.org/abs/2303.01469)：第 10 节。
#
# ## 动手试试
#
# * 第 4 节：误用系数时走 1,000 步。为什么这时它是对的？
# * 第 7 节：把去噪器的误差移到噪声少的地方（`level.sigma < 0.3`）。运行之前，先写下你的预期。
# * 第 8 节：训练第一个流时，不用独立的噪声，而用 $(x_0, -x_0)$ 配对。在 $t = \frac12$ 处会出什么问题？
# * 第 10 节：把数字的学生模型减到两步。
# * 第 12 节：把强度改成 0.1 和 0.95<!--given-->。这时插值的是什么？
#
# 然后自己动手写：[练习](exercises/README.zh.md)从步长重采样一直到流匹配，用 `python -m common.grade 03` 自动评分。
# 要用自己的图像或者全部 MNIST，见[全部命令](../docs/programs.zh.md#第-3-章)。下一章把这一切搬进一个更小的空间，从而生成更大的图像。
