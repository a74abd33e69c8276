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
# # 第 1 章 · DDPM：从噪声到数字
#
# [English](lesson.ipynb) · 中文
#
# 取一张图片，加一点噪声，重复一千次。最后只剩下噪声，图片已经认不出来了。
#
# 现在把过程倒过来。一下子撤销一千步是不可能的，撤销一步却可以做到：只要知道一张略带噪声的图片里哪一部分是噪声。网络可以学会预测这一点。从纯噪声出发，把它用上一千次，就画出一张新图片。这样的模型叫做**扩散模型**（diffusion model）。
#
# 本章从头搭建一个扩散模型：
#
# 1. 给平面上的一团点去噪，一切都看得见；
# 2. 把真实的数字变成噪声：**前向过程**（forward process）；
# 3. 推导后退一步的公式和训练损失：**反向过程**（reverse process）；
# 4. **分数**（score）：用梯度的语言描述同一个模型；
# 5. 写出网络，一个小型的 **U-Net**；
# 6. 把训练的六步逐一走一遍；
# 7. 训练它画出你指定的数字；
# 8. 用课程自带的较大网络采样；
# 9. 看看对权重取平均有什么作用；
# 10. 弄清楚为什么完美的网络只会照搬训练图像；
# 11. 用**弗雷歇距离**（Fréchet distance）衡量样本的好坏。
#
# 你需要懂 Python、一点 PyTorch、正态分布和贝叶斯公式。所有代码都在笔记本电脑的 CPU 上运行，无需下载，大约需要六分钟的 CPU 时间。请按顺序运行各个单元格，并动手改一改。所有术语和符号的中英文对照见[术语表](../docs/glossary.md)。

# %%
from common.grade.chapter import open_chapter  # 找不到 common？请选择课程的内核（README.zh.md）

CHAPTER = open_chapter("01_ddpm_mnist 中文")  # 本章的文件夹：从这里起可以导入其中的文件

# %%
import copy
import math
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.data import load
from ddpm_mnist import toy  # 平面上的点
from ddpm_mnist.pictures import show_arrows, show_chain, show_images, show_points, show_resblock, window

# %% [markdown]
# ## 1 · 为整个分布去噪
#
# 一张 $28\times28$ 像素的图像是 784 维空间中的一个点，这个空间画不出来。所以我们从二维开始。这时，数据集就是一团点，点团的形状就是**数据分布**（data distribution）。下面是四个例子。

# %%
shapes = ["dinosaur", "swiss_roll", "two_moons", "letter"]
show_points([toy.draw_points(shape, 2000) for shape in shapes], shapes, reach=1.2)

# %% [markdown]
# 我们的任务是造出同一分布的*新*点：不是已有点的副本，而是本来也可能出现在其中的点。对图像来说，任务也一样：画出本来也可能在数据集里的新数字。
#
# ### 加噪声
#
# 设 $x_0$ 是一个干净的点，$\varepsilon$（读作 epsilon）是**噪声**（noise）：它的分量和 $x_0$ 一样多，每个分量都取自均值为 0、方差为 1 的正态分布。把两者混合：
#
# $$x_t = \sqrt{\bar\alpha_t}\; x_0 + \sqrt{1 - \bar\alpha_t}\; \varepsilon$$
#
# **噪声水平**（noise level）$t$ 从 0（干净）数到 $T = 1000$（纯噪声）。数 $\bar\alpha_t$（读作 alpha bar）从 1 降到 0。如果数据的方差为 1，它就是总方差中来自数据的那一份。全部 $\bar\alpha_t$ 合在一起叫做**噪声调度**（noise schedule）。下面用的是*余弦*（cosine）调度；$\bar\alpha_t$ 从何而来，第 2 节会解释。

# %%
T = 1000
curve = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * math.pi / 2) ** 2
beta = torch.cat([torch.zeros(1), (1 - curve[1:] / curve[:-1]).clamp(max=0.999)])  # (T + 1,) beta[0] = 0 不使用
alpha_bar = (1 - beta).cumprod(0).float()  # (T + 1,) 下标是 t，alpha_bar[0] = 1
beta = beta.float()


def add_noise(x0, t, eps):
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps. x0、eps：(B, ...)；t：(B,)，0 到 T -> (B, ...)"""
    a = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1))  # 点为 (B, 1)，图像为 (B, 1, 1, 1)
    return a.sqrt() * x0 + (1 - a).sqrt() * eps


points = toy.draw_points("dinosaur", 3000)  # (3000, 2)
eps = torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
moments = [0, 100, 200, 400, 700, 1000]
clouds = [add_noise(points, torch.full((3000,), t), eps) for t in moments]
titles = [f"t = {t}\n$\\sqrt{{\\bar\\alpha_t}}$ = {alpha_bar[t].sqrt():.2f}" for t in moments]
show_points(clouds, titles, colours=points[:, 0])

# %% [markdown]
# 每个点的颜色始终不变，所以可以跟踪它。先消失的是细节（腿），然后是整体形状。到 $t = 1000$ 时颜色完全混在一起：从点的位置已经看不出它来自哪里。任何数据分布最后都变成同样的圆形点团。采样可以从这里开始，正是因为从圆形点团中取点很容易。
#
# > **论文中的写法。** 均值为 $\mu$、协方差为 $\Sigma$ 的正态分布记作 $\mathcal{N}(\mu, \Sigma)$，$\mathcal{N}(x;\, \mu, \Sigma)$ 是它在 $x$ 处的密度。$I$ 是单位矩阵：各个分量相互独立，方差为 1。数据分布记作 $q(x_0)$。给定 $x_0$ 时，$x_t$ 的分布记作
# > $$q(x_t \,|\, x_0) = \mathcal{N}\!\left(x_t;\; \sqrt{\bar\alpha_t}\,x_0,\; (1-\bar\alpha_t)\,I\right)$$
# > （[Ho, Jain & Abbeel 2020](https://arxiv.org/abs/2006.11239)，式 4；以下称“DDPM 论文”）。取一个 $\varepsilon$，再用我们的公式算出 $x_t$，就得到 $q(x_t\,|\,x_0)$ 的一个样本。$\mathbb{E}[\,\cdot\,]$ 是对一切随机量取平均，$\mathbb{E}[\,\cdot \,|\, x_t]$ 是对所有具有这个 $x_t$ 的情形取平均。
#
# ### 训练循环
#
# 网络 $\varepsilon_\theta(x_t, t)$ 的输入是加噪的点和它的噪声水平，输出是对其中噪声 $\varepsilon$ 的预测；$\theta$ 代表网络的权重。预测了噪声，也就预测了干净的点，因为可以从上面的公式解出 $x_0$：
#
# $$\hat x_0 = \frac{x_t - \sqrt{1-\bar\alpha_t}\;\hat\varepsilon}{\sqrt{\bar\alpha_t}} \qquad\text{（加帽子表示预测值）}$$
#
# 训练的目标是使预测噪声的平方误差最小。下面的函数 `noise_error` 计算一次训练损失，`train` 是完整的训练循环。本节的网络有三个隐藏层，每层 128 个单元（[toy.py](ddpm_mnist/toy.py)）。传给网络的噪声水平是 $t-1$，因为各种库都从 0 数到 999。


# %%
def noise_error(net, x0, generator):
    """预测噪声的平方误差；x0 的每一行各取一个随机水平和噪声。-> ()"""
    t = torch.randint(1, T + 1, (len(x0),), generator=generator)  # (B,)
    eps = torch.randn(x0.shape, generator=generator)  # (B, 2)
    return (net(add_noise(x0, t, eps), t - 1) - eps).square().mean()


def train(net, loss_of_a_batch, steps, lr):
    """把 net 的权重更新 steps 次，使损失变小。返回每一步的损失。"""
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(20 * step / steps, 1 - step / steps)  # 先升高，再慢慢降低
        loss = loss_of_a_batch()
        optimizer.zero_grad()  # 清除上一步的梯度
        loss.backward()  # 损失对每个权重的梯度
        optimizer.step()  # 每个权重沿负梯度方向移动一点
        losses.append(loss.item())  # 普通的数：保存 loss 本身会把整个计算图留在内存里
    return losses


data = toy.draw_points("dinosaur", 20_000)
toy_net, g = toy.make_net(), torch.Generator().manual_seed(0)


def toy_loss():
    x0 = data[torch.randint(len(data), (512,), generator=g)]  # 随机取 512 个点作为一个批量
    return noise_error(toy_net, x0, g)


losses = train(toy_net, toy_loss, steps=3000, lr=1.5e-2)
print(f"平均损失：前 100 步 {np.mean(losses[:100]):.3f}，后 100 步 {np.mean(losses[-100:]):.3f}")

# %% [markdown]
# ### 最好的预测是什么？
#
# 损失不再下降，但离零还很远。是网络太小吗？没有哪个预测能总是正确，因为许多不同的干净点都可能变成同一个加噪的点。哪个预测的平方误差最小？固定 $x_t$，设 $f$ 是在这里的预测。加上再减去条件均值 $m = \mathbb{E}[\varepsilon\,|\,x_t]$：
#
# $$\mathbb{E}\big[\,|\varepsilon - f|^2 \,\big|\, x_t\big] = \mathbb{E}\big[\,|\varepsilon - m|^2 \,\big|\, x_t\big] + |m - f|^2$$
#
# 由 $m$ 的定义，交叉项 $2\,(m-f)\cdot\mathbb{E}[\varepsilon - m\,|\,x_t]$ 为零。第一项与 $f$ 无关，第二项在 $f = m$ 时最小。所以**平方误差在条件均值处最小**：理想网络预测 $\mathbb{E}[\varepsilon\,|\,x_t]$，它的损失就是平均的剩余方差。预测 $x_0$ 时道理相同。（换一种误差，最优解也不同：绝对误差的最优解是条件*中位数*。）
#
# 如果干净的点只有有限个，那么在任何维度下，条件均值都有现成的公式。由贝叶斯公式，一个干净点的权重与密度 $q(x_t\,|\,x_0)$ 成正比：
#
# $$\mathbb{E}[x_0\,|\,x_t] = \sum_i w_i\, x_0^{(i)}, \qquad w_i \propto \exp\!\left(-\frac{|x_t - \sqrt{\bar\alpha_t}\,x_0^{(i)}|^2}{2\,(1-\bar\alpha_t)}\right)$$


# %%
def log_weights(x, t, clean):
    """每个干净点 x_0 的 log q(x_t | x_0)，相差一个常数。x：(N, D)，t：一个水平，clean：(M, D) -> (N, M)"""
    return -(torch.cdist(x, alpha_bar[t].sqrt() * clean) ** 2) / (2 * (1 - alpha_bar[t]))


def ideal_x0(x, t, clean):
    """数据分布是这个有限集时的 E[x_0 | x_t]。(N, D)"""
    return log_weights(x, t, clean).softmax(dim=1) @ clean


def x0_from_eps(x, t, eps):
    """由 x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps 解出 x_0。t：一个水平"""
    return (x - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()


def eps_from_x0(x, t, x0):
    """由同一个等式解出 eps。t：一个水平"""
    return (x - alpha_bar[t].sqrt() * x0) / (1 - alpha_bar[t]).sqrt()


@torch.no_grad()
def toy_eps(x, t):
    """在水平 t 上，网络对 x 中噪声的预测。(N, 2) -> (N, 2)"""
    return toy_net(x, torch.full((len(x),), t - 1))


clean = toy.draw_points("dinosaur", 5000, seed=1)
new = toy.draw_points("dinosaur", 2000, seed=2)  # 网络没有见过的点
noise = torch.randn(new.shape, generator=torch.Generator().manual_seed(2))
levels, of_network, of_ideal = range(10, 1001, 45), [], []
for t in levels:
    x = add_noise(new, torch.full((2000,), t), noise)
    of_network.append((toy_eps(x, t) - noise).square().mean().item())
    of_ideal.append((eps_from_x0(x, t, ideal_x0(x, t, clean)) - noise).square().mean().item())

plt.figure(figsize=(6, 2.6), layout="constrained")
plt.plot(levels, of_network, marker=".", label="网络")
plt.plot(levels, of_ideal, color="black", linestyle=":", label="条件均值：可能的最好结果")
plt.gca().set(xlabel="噪声水平 t", ylabel="噪声的均方误差", ylim=(0, 1))
plt.legend()
plt.show()
print(f"所有水平的平均：网络 {np.mean(of_network):.3f}，可能的最好结果 {np.mean(of_ideal):.3f}")

# %% [markdown]
# 训练更大的模型时，请记住这张图。扩散模型的损失*不会*降到零，因为其中大部分是任何网络都消除不了的不确定性。全部的学习都发生在曲线与点线之间的那一小段距离里。所以损失看上去已经持平，样本却还在变好。
#
# ### 箭头组成的场
#
# 网络学到了什么？在平面的每一处，它都预测干净的点在哪里。我们把差 $\hat x_0 - x$ 画成箭头，得到一个**向量场**（vector field）。灰色：这个水平的加噪点团。黑色：干净的点。

# %%
_, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for axis, t, reach in zip(axes, [600, 250, 80], [1.5, 1.3, 1.1], strict=True):
    line = torch.linspace(-reach, reach, 15)
    places = torch.cartesian_prod(line, line)  # (225, 2)
    cloud = add_noise(points, torch.full((3000,), t), eps)
    axis.scatter(*cloud.T, s=3, color="0.75", linewidths=0)
    axis.scatter(*points.T, s=1.5, color="black", linewidths=0)
    show_arrows(axis, places, x0_from_eps(places, t, toy_eps(places, t)) - places, reach)
    window(axis, f"t = {t}   ($\\sqrt{{\\bar\\alpha_t}}$ = {alpha_bar[t].sqrt():.2f})", 1.05 * reach)
    away = (x0_from_eps(cloud, t, toy_eps(cloud, t)) - ideal_x0(cloud, t, clean)).norm(dim=1).mean()
    print(f"t = {t}：网络的预测与最好的预测之间的平均距离 {away:.3f}")
plt.show()

# %% [markdown]
# * **t = 600，噪声很多。** 所有箭头都指向恐龙的中央，因为全体的平均就是最好的预测。
# * **t = 250，噪声较少。** 箭头指向不同的部位：左边和中间的身体，右边的脖子。
# * **t = 80，噪声很少。** 轮廓附近的每个箭头都指向轮廓上最近的部分。
#
# 所以，如果沿着最初的箭头一步跳到头，所有的点都会落到中央。采样要走许多小步，因为预测会在途中变得越来越准确。
#
# ### 采样
#
# 把加噪的点拆成干净的点和噪声，$x_t \to (\hat x_0, \hat\varepsilon)$，再把两者重新混合，*只是噪声少一点*。如此重复，直到 $t = 0$。如果混合时用的就是预测的噪声 $\hat\varepsilon$，轨迹就是**确定性的**（deterministic）：终点只取决于起点。这就是 DDIM 采样器（[Song, Meng & Ermon 2021](https://arxiv.org/abs/2010.02502)）。第 3 节将推导 DDPM 论文中**随机的**（stochastic）采样器，它每一步都加入新的噪声。
#
# 有一个细节在实践中很重要。在 $t = T$ 附近，$\hat x_0$ 的公式要除以一个接近零的数，于是 $\hat\varepsilon$ 的小误差会变成 $\hat x_0$ 的大误差。因此代码把 $\hat x_0$ 限制在数据的取值范围之内。


# %%
def ddim(predict_eps, x, levels):
    """确定性采样。predict_eps(x, t)；x 处于第一个水平，各水平依次降到 0。返回每一个状态。"""
    states = [x]
    for now, then in pairwise(levels):
        x0 = x0_from_eps(x, now, predict_eps(x, now)).clamp(-1, 1)  # 数据在 -1 和 1 之间
        eps = eps_from_x0(x, now, x0)  # 使 x 仍是两者的混合
        x = alpha_bar[then].sqrt() * x0 + (1 - alpha_bar[then]).sqrt() * eps
        states.append(x)
    return states


every_fourth = list(range(1000, -1, -4))  # 1000、996、……、4、0：250 步
start = torch.randn((2000, 2), generator=torch.Generator().manual_seed(1))
states = ddim(toy_eps, start, every_fourth)
shown = [0, 100, 150, 190, 220, 240, 250]
show_points([states[i] for i in shown], [f"t = {every_fourth[i]}" for i in shown], colours=states[-1][:, 0])

# %% [markdown]
# 每个点的颜色表示它*终点*的位置。在 $t = 1000$ 时，颜色就已经从左到右排好了，因为确定性的轨迹由起点决定。先出现的是整体形状，在 $t = 400$ 和 $t = 120$ 之间；腿之类的细节最后出现。
#
# **新的点有多好？** 需要两个数来回答。新点离真实点近不近，也就是说，有没有画错的点？真实点离新点近不近，也就是说，有没有漏掉的部分？这两个数以*另一批真实点*的结果为标尺。


# %%
def nearest(a, b):
    """a 中的点到 b 中最近点的平均距离。"""
    return torch.cdist(a, b).min(dim=1).values.mean().item()


real = toy.draw_points("dinosaur", 2000, seed=3)
clouds = {"纯噪声": start, "另一批真实点": toy.draw_points("dinosaur", 2000, seed=4)}
clouds |= {"DDIM，250 步": states[-1], "DDIM，5 步": ddim(toy_eps, start, range(1000, -1, -200))[-1]}
print("新点 -> 真实点    真实点 -> 新点")  # 数在前，名称在后：汉字的宽度因字体而异，不影响数的对齐
for name, cloud in clouds.items():
    print(f"{nearest(cloud, real):<17.4f} {nearest(real, cloud):<17.4f} {name}")

# %% [markdown]
# **问题。** 纯噪声的第一个数很差。什么样的样本第一个数完美无缺，却毫无用处？从哪一列可以看出来？
#
# <details><summary>答案</summary>
#
# 一个总是返回轮廓上同一个点的采样器。它的第一个数几乎为 0，但大多数真实点离它很远，所以第二列很大。只看一列永远不够：质量和覆盖是两回事。第 11 节的弗雷歇距离把两者合成一个数。
#
# </details>
#
# **试一试。** 在 `toy.draw_points(...)` 里换一种形状，或者减少训练步数。对应的命令是：`python 01_ddpm_mnist/toy_2d.py --shape swiss_roll`。
#
# 现在你已经看到了一个完整的扩散模型。接下来的几节解释它为什么有效，并把它用到图像上。

# %% [markdown]
# ## 2 · 前向过程
#
# 本章的数字是随课程提供的一部分 MNIST：10,000 张训练图像和 2,000 张测试图像，大小为 $28\times28$ 像素。黑色是 $-1$，白色是 $+1$。

# %%
mnist = load("mnist-10k")
test = load("mnist-10k", split="test")
x0 = mnist.batch(torch.arange(20))["image"]
print(f"{len(mnist):,} 个训练数字；一个批量：{tuple(x0.shape)}，从 {x0.min():.0f} 到 {x0.max():.0f}")
show_images(x0, 10)

# %% [markdown]
# ### 一步一步来
#
# DDPM 论文分 $T$ 个小步加入噪声。第 $t$ 步先把像素值缩小一点，再加入一点新的噪声 $\varepsilon_t$：
#
# $$x_t = \sqrt{1 - \beta_t}\; x_{t-1} + \sqrt{\beta_t}\; \varepsilon_t$$
#
# 小数 $\beta_t$（读作 beta）由噪声调度给定，它是第 $t$ 步所加噪声的方差。像素值为什么要缩小？相互独立的量，方差可以相加。如果这一步之前像素的方差为 1，那么之后的方差是 $(1-\beta_t)\cdot 1 + \beta_t = 1$。如果不缩小，方差就会一步步变大。
#
# ### 一次走完所有的步
#
# 关于 $x_t$，需要知道两件事：图像还剩多少，噪声有多少。
#
# * **图像。** 每一步都乘以 $\sqrt{1-\beta_t}$。$t$ 步之后剩下 $\sqrt{\bar\alpha_t}\,x_0$，其中 $\bar\alpha_t = (1-\beta_1)(1-\beta_2)\cdots(1-\beta_t)$。
# * **噪声。** 固定 $x_0$，设 $x_t$ 中噪声的方差为 $n_t$。这一步把旧噪声的方差乘以 $1-\beta_t$，再加上 $\beta_t$：$n_t = (1-\beta_t)\,n_{t-1} + \beta_t$，且 $n_0 = 0$。用 1 减去两边：$\;1 - n_t = (1-\beta_t)(1 - n_{t-1})$。所以 $1-n_t$ 就是前面的那个乘积，$1 - n_t = \bar\alpha_t$。
#
# 独立的正态变量之和仍是正态变量。因此，对*任何* $x_0$，不论它的方差是多少，
#
# $$x_t = \sqrt{\bar\alpha_t}\; x_0 + \sqrt{1 - \bar\alpha_t}\; \varepsilon$$
#
# 这就是前向过程的**闭式表达式**（closed form），第 1 节已经用过。训练时完全不必一步一步地走。
#
# > **论文中的写法。** 一步是 $q(x_t\,|\,x_{t-1}) = \mathcal{N}(x_t;\, \sqrt{1-\beta_t}\,x_{t-1},\, \beta_t I)$（DDPM，式 2）。这些步组成一条*马尔可夫链*（Markov chain）：每一步只依赖前一个状态，所以 $q(x_{1:T}\,|\,x_0) = \prod_t q(x_t\,|\,x_{t-1})$，其中 $x_{1:T}$ 代表 $x_1, \dots, x_T$。论文把 $1-\beta_t$ 简写为 $\alpha_t$。另一些论文的 $\alpha_t$ 却是 $\bar\alpha_t$ 或者 $\sqrt{\bar\alpha_t}$，所以本课程只写 $\bar\alpha_t$、$\sqrt{\bar\alpha_t}$ 和 $1-\beta_t$。
#
# 下面检验闭式表达式：让一个数字的 500 个副本走完 1,000 个小步，每个副本用自己的噪声。数字还剩多少（各副本的均值与原数字相比）？噪声的标准差又是多少？

# %%
digit, g = x0[:1], torch.Generator().manual_seed(0)  # (1, 1, 28, 28)
x = digit.expand(500, -1, -1, -1)
print("   t |   剩余图像：逐步，   闭式表达式 | 噪声：逐步，   闭式表达式")
for t in range(1, T + 1):
    x = (1 - beta[t]).sqrt() * x + beta[t].sqrt() * torch.randn(x.shape, generator=g)
    if t in (10, 100, 300, 500, 700, 900):
        left = (x.mean(0) * digit[0]).sum() / digit.square().sum()  # 副本均值中该数字的份额
        values = left, alpha_bar[t].sqrt(), x.std(0).mean(), (1 - alpha_bar[t]).sqrt()
        print("{:4} | {:18.3f} {:12.3f} | {:12.3f} {:12.3f}".format(t, *values))

# %% [markdown]
# ### 用哪种调度？
#
# 在 DDPM 论文中，$\beta_t$ 从 $0.0001$ 线性增加到 $0.02$（*线性*，linear）。[Nichol & Dhariwal 2021](https://arxiv.org/abs/2102.09672)（式 17）则让 $\bar\alpha_t$ 按余弦的平方变化（*余弦*，cosine）。下面是同一个数字、同样的噪声，分别用这两种调度：

# %%
linear = torch.cat([torch.ones(1), (1 - torch.linspace(1e-4, 0.02, T)).cumprod(0)])  # 线性调度的 alpha_bar
moments = [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
noise = torch.randn(digit.shape, generator=torch.Generator().manual_seed(5))
rows = [curve[t].sqrt() * digit + (1 - curve[t]).sqrt() * noise for curve in (linear, alpha_bar) for t in moments]
show_images(rows, len(moments), [f"t = {t}" for t in moments], ["线性", "余弦"])

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
for name, bars in {"线性": linear, "余弦": alpha_bar}.items():
    snr = bars[1:] / (1 - bars[1:])
    left.plot(range(T + 1), bars, label=name)
    right.plot(range(1, T + 1), snr, label=name)
    noisy = (bars[1:] < 0.02).double().mean()
    print(f"{name}：SNR = 1 在 t = {int((snr > 1).sum())}；alpha_bar 低于 0.02 的水平占 {noisy:.0%}")
left.set(ylabel="$\\bar\\alpha_t$", xlabel="噪声水平 t")
right.set(ylabel="信噪比", xlabel="噪声水平 t", yscale="log", ylim=(1e-5, 1e5))
right.axhline(1, color="0.7", linewidth=0.8)
left.legend()
plt.show()

# %% [markdown]
# **信噪比**（signal-to-noise ratio）是 $\mathrm{SNR}(t) = \bar\alpha_t/(1-\bar\alpha_t)$。线性调度更早失去图像：到 $t = 600$ 已经认不出数字，余下的 400 步看上去都是纯噪声。余弦调度把变化分配得更均匀，所以本章使用它。这个选择值多少，第 3 章会测量。
#
# **问题。** 推导中从来没有用到 $x_0$ 的方差。如果数字的像素方差是 0.4，那么在 $\bar\alpha_t = 0.5$ 的水平上，$x_t$ 的像素方差是多少？$t\to T$ 时呢？
#
# <details><summary>答案</summary>
#
# $\bar\alpha_t \cdot 0.4 + (1-\bar\alpha_t) = 0.2 + 0.5 = 0.7$。方差沿着链从 0.4 变到 1。只有数据的方差为 1 时，它才始终等于 1。不论哪种情形，$x_t$ 中噪声的方差都是 $1-\bar\alpha_t$。
#
# </details>

# %% [markdown]
# ## 3 · 反向过程
#
# 前向链是给定的。我们要找第二条链，它倒着走，从噪声走到数字，其中的每一步都要靠学习得到。

# %%
stages = [add_noise(x0[7:8], torch.tensor([t]), noise) for t in (1000, 999, 470, 440, 60, 0)]
show_chain(torch.cat(stages), ["$x_T$", "…", "$x_t$", "$x_{t-1}$", "…", "$x_0$"])

# %% [markdown]
# ### 假如知道干净图像，怎样后退一步
#
# 假设 $x_t$ 和 $x_0$ 都知道，那么 $x_{t-1}$ 在哪里？关于它有两个已知的事实：它由 $x_0$ 按闭式表达式得到；$x_t$ 又由它走一步得到。贝叶斯公式把两个密度相乘，两者都看作 $x_{t-1}$ 的函数：
#
# $$q(x_{t-1}\,|\,x_t, x_0) \;\propto\; \underbrace{q(x_{t-1}\,|\,x_0)}_{\text{来自干净图像}} \cdot \underbrace{q(x_t\,|\,x_{t-1})}_{\text{来自加噪图像}}
# \;\propto\; \exp\!\left(-\frac{(x_{t-1} - \sqrt{\bar\alpha_{t-1}}\,x_0)^2}{2\,(1-\bar\alpha_{t-1})} - \frac{(x_t - \sqrt{1-\beta_t}\,x_{t-1})^2}{2\,\beta_t}\right)$$
#
# 指数是 $x_{t-1}$ 的二次函数，所以乘积仍是高斯分布。$x_{t-1}^2$ 的系数取负再乘以二，就是**精度**（precision），也就是方差的倒数。精度可以相加：
#
# $$\frac{1}{\tilde\beta_t} = \frac{1}{1-\bar\alpha_{t-1}} + \frac{1-\beta_t}{\beta_t} = \frac{1 - \bar\alpha_t}{\beta_t\,(1-\bar\alpha_{t-1})}
# \qquad\text{所以}\qquad \tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t$$
#
# （通分之后，分子是 $\beta_t + (1-\beta_t)(1-\bar\alpha_{t-1}) = 1 - (1-\beta_t)\,\bar\alpha_{t-1} = 1-\bar\alpha_t$。）均值等于方差乘以 $x_{t-1}$ 的系数：
#
# $$\tilde\mu_t(x_t, x_0) = \tilde\beta_t\left(\frac{\sqrt{\bar\alpha_{t-1}}}{1-\bar\alpha_{t-1}}\,x_0 + \frac{\sqrt{1-\beta_t}}{\beta_t}\,x_t\right)
# = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\,x_0 + \frac{\sqrt{1-\beta_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\,x_t$$
#
# > **论文中的写法。** $q(x_{t-1}\,|\,x_t,x_0) = \mathcal{N}(x_{t-1};\,\tilde\mu_t(x_t,x_0),\,\tilde\beta_t I)$ 叫做*前向过程的后验分布*（forward process posterior；DDPM，式 7）。
#
# 图中是一个 $x_0 = 1$ 的像素。这一步取得很大，好让几条曲线分得开。作为检验，我们把前向链模拟一百万次，只留下终点在给定的 $x_t$ 附近的情形。


# %%
def posterior(x_t, x0, before, b):
    """q(x_{t-1} | x_t, x_0) 的均值和方差。before：alpha_bar_{t-1}；b：beta_t"""
    now = before * (1 - b)  # alpha_bar_t
    mean = (before**0.5 * b * x0 + (1 - b) ** 0.5 * (1 - before) * x_t) / (1 - now)
    return mean, (1 - before) / (1 - now) * b


def bell(x, mean, variance):
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / (2 * math.pi * variance) ** 0.5


before, b, pixel, seen = 0.6, 0.4, 1.0, -0.4  # alpha_bar_{t-1}, beta_t, x_0, x_t
g = torch.Generator().manual_seed(0)
x_before = before**0.5 * pixel + (1 - before) ** 0.5 * torch.randn(1_000_000, generator=g)
x_after = (1 - b) ** 0.5 * x_before + b**0.5 * torch.randn(1_000_000, generator=g)
kept = x_before[(x_after - seen).abs() < 0.02]
mean, variance = posterior(seen, pixel, before, b)
print(f"公式：均值 {mean:.3f}，方差 {variance:.3f}")
print(f"模拟：均值 {kept.mean():.3f}，方差 {kept.var():.3f}（{len(kept):,} 例）")

x = torch.linspace(-2.5, 2.7, 400)
plt.figure(figsize=(7.5, 3), layout="constrained")
plt.hist(kept.numpy(), 60, density=True, color="0.85", label="给定 $x_0$ 和 $x_t$ 时模拟的 $x_{t-1}$")
plt.plot(x, bell(x, before**0.5 * pixel, 1 - before), color="C3", label="来自干净图像：$q(x_{t-1}|x_0)$")
plt.plot(x, bell(x, seen / (1 - b) ** 0.5, b / (1 - b)), color="C2", label="来自加噪图像：$q(x_t|x_{t-1})$")
plt.plot(x, bell(x, mean, variance), color="C0", linewidth=2.5, label="乘积：$q(x_{t-1}|x_t, x_0)$")
plt.gca().set(xlabel="$x_{t-1}$", ylabel="密度", ylim=(0, 1.35))
plt.legend(ncols=2, loc="upper center", fontsize=9)
plt.show()

# %% [markdown]
# 乘积落在两个因子之间，而且比两个都窄，因为两个事实合在一起，剩下的不确定性比只有一个时更小。
#
# ### 算法 2
#
# 采样时不知道 $x_0$，由网络来预测它。把 $\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\hat\varepsilon)/\sqrt{\bar\alpha_t}$ 代入 $\tilde\mu_t$，化简得到
#
# $$x_{t-1} = \underbrace{\frac{1}{\sqrt{1-\beta_t}}\left(x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\;\hat\varepsilon\right)}_{\text{均值}} + \sqrt{\tilde\beta_t}\; z, \qquad z\sim\mathcal{N}(0, I)$$
#
# 也就是说：平均而言第 $t$ 步加了多少噪声，就减去多少；把缩小的像素值还原；再加入一点新的噪声 $z$。因为 $\tilde\mu_t$ 是 $x_0$ 的线性函数，所以对所有可能的 $x_0$ 取平均时，只需要 $x_0$ 的*均值*。采样器需要的正是条件均值，平方误差也因此是合适的误差。在最后一步，$\bar\alpha_0 = 1$，所以 $\tilde\beta_1 = 0$，不再加噪声。
#
# > **论文中的写法。** 学到的链是 $p_\theta(x_{t-1}\,|\,x_t) = \mathcal{N}(x_{t-1};\,\mu_\theta(x_t,t),\,\sigma_t^2 I)$，起点为 $p(x_T) = \mathcal{N}(0, I)$。均值 $\mu_\theta$ 就是上面的公式，其中 $\hat\varepsilon = \varepsilon_\theta(x_t,t)$（DDPM，式 11）。论文先写一般的协方差 $\Sigma_\theta(x_t,t)$，再令它等于 $\sigma_t^2 I$。$\sigma_t^2 = \tilde\beta_t$ 和 $\sigma_t^2 = \beta_t$ 两种选择论文都试过；本章取 $\tilde\beta_t$。这个循环就是论文的算法 2。


# %%
def ddpm_step(x, t, eps, z):
    """由 x_t 中的噪声和新加的噪声 z，从 x_t 到 x_{t-1}。"""
    mean = (x - beta[t] / (1 - alpha_bar[t]).sqrt() * eps) / (1 - beta[t]).sqrt()
    variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t]
    return mean + variance.sqrt() * z


def ddpm(predict_eps, x, generator, fresh=1.0):
    """算法 2：共 T 步，依次给出 x_{T-1}, ..., x_0。fresh=0 时不加新噪声。"""
    for t in range(T, 0, -1):
        x = ddpm_step(x, t, predict_eps(x, t), fresh * torch.randn(x.shape, generator=generator))
        yield x


g = torch.Generator().manual_seed(2)
with_noise = list(ddpm(toy_eps, start, g))
without = list(ddpm(toy_eps, start, g, fresh=0.0))

# %% [markdown]
# ### DDPM 为什么要加噪声？
#
# 我们本来要去掉噪声，每一步却又加一些，看起来很奇怪。原因在于，**$x_{t-1}$ 本身就含有噪声，而 $x_t$ 并不能完全决定这些噪声**。第 $t$ 步把旧噪声和新噪声混在了一起。即使知道 $x_0$，$x_{t-1}$ 仍有方差 $\tilde\beta_t$（上图中蓝色曲线的宽度）。只用均值，对水平 $t-1$ 来说噪声就太少了。用 $\hat x_0$ 和 $\hat\varepsilon$ 写出均值，就能看到这一点：
#
# $$\text{均值} = \sqrt{\bar\alpha_{t-1}}\;\hat x_0 + \sqrt{1-\bar\alpha_{t-1}-\tilde\beta_t}\;\hat\varepsilon$$
#
# 水平 $t-1$ 要求噪声的方差为 $1-\bar\alpha_{t-1}$。两种采样器用不同的办法满足它：
#
# | 采样器 | 保留的预测噪声 $\hat\varepsilon$ | 新加的噪声 | 合计 |
# |---|---|---|---|
# | DDPM | 方差 $1-\bar\alpha_{t-1}-\tilde\beta_t$ | 方差 $\tilde\beta_t$ | $1-\bar\alpha_{t-1}$ |
# | DDIM（第 1 节） | 方差 $1-\bar\alpha_{t-1}$ | 无 | $1-\bar\alpha_{t-1}$ |
# | 只用均值 | 方差 $1-\bar\alpha_{t-1}-\tilde\beta_t$ | 无 | 太少 |
#
# 所以关键不在于加不加噪声：DDIM 不加噪声，照样有效。行不通的做法，是省去新噪声，*又不*多保留一些旧噪声。

# %%
print("新点 -> 真实点    真实点 -> 新点")
every_state = {"DDPM": [start, *with_noise], "DDIM": ddim(toy_eps, start, range(T, -1, -1)), "只用均值": without}
ends = {name: states[-1] for name, states in every_state.items()}
for name, cloud in ends.items():
    print(f"{nearest(cloud, real):<17.4f} {nearest(real, cloud):<17.4f} {name + '，1000 步'}")

_, axes = plt.subplots(1, 5, figsize=(12, 2.6), layout="constrained")
for axis, (name, cloud) in zip(axes[:3], ends.items(), strict=True):
    axis.scatter(*cloud.T, s=1.5, linewidths=0)
    window(axis, name, 1.3)
for axis, name in zip(axes[3:], ["DDPM", "DDIM"], strict=True):
    paths = torch.stack(every_state[name])[80:, :5]  # (921, 5, 2)：从 t = 920 开始；最初几步很大
    axis.plot(paths[..., 0], paths[..., 1], linewidth=0.8)
    axis.scatter(*paths[-1].T, s=14, color="black", zorder=3)
    window(axis, f"{name}，t ≤ 920", 2.2)
plt.show()

# %% [markdown]
# 只用均值时，所有的点都缩成一个点。这个点离轮廓很近，所以第一列看起来极好；第二列则说明其余部分全都漏掉了。DDPM 和 DDIM 都覆盖整个轮廓。两者的轨迹不同：DDIM 的光滑，DDPM 的粗糙。
#
# ### 损失从何而来
#
# 到目前为止，损失是猜出来的：预测噪声，最小化平方误差。DDPM 论文由最大似然推导出它。模型给一张图像的概率密度是 $p_\theta(x_0) = \int p_\theta(x_{0:T})\,dx_{1:T}$，其中 $p_\theta(x_{0:T}) = p(x_T)\prod_t p_\theta(x_{t-1}\,|\,x_t)$。这个积分算不出来，但有一个界。乘以再除以 $q(x_{1:T}\,|\,x_0)$，把它写成期望，再利用对数是凹函数（詹森不等式）：
#
# $$-\log p_\theta(x_0) = -\log \mathbb{E}_q\!\left[\frac{p_\theta(x_{0:T})}{q(x_{1:T}\,|\,x_0)}\right] \;\le\; \mathbb{E}_q\!\left[-\log\frac{p_\theta(x_{0:T})}{q(x_{1:T}\,|\,x_0)}\right] =: L$$
#
# $-L$ 叫做**证据下界**（evidence lower bound，ELBO）。接着用贝叶斯公式把前向的各步掉转方向：$q(x_t\,|\,x_{t-1}) = q(x_{t-1}\,|\,x_t,x_0)\;q(x_t\,|\,x_0)\,/\,q(x_{t-1}\,|\,x_0)$。对 $t$ 连乘时，后面的分式相互抵消，只剩下 $q(x_T\,|\,x_0)$，于是 $L$ 成为一个和：
#
# $$L = \mathbb{E}_q\Big[\underbrace{D_{\mathrm{KL}}\big(q(x_T|x_0)\,\|\,p(x_T)\big)}_{\text{不含权重}} + \sum_{t=2}^{T} \underbrace{D_{\mathrm{KL}}\big(q(x_{t-1}|x_t,x_0)\,\|\,p_\theta(x_{t-1}|x_t)\big)}_{L_{t-1}} \;\underbrace{-\log p_\theta(x_0|x_1)}_{\text{最后一步}}\Big]$$
#
# $D_{\mathrm{KL}}(q\,\|\,p) = \mathbb{E}_q[\log(q/p)]$ 是 KL 散度（Kullback–Leibler divergence）；$q = p$ 时为零，否则为正。所以模型的每一步都应当模仿我们推导出的后验分布。两者都是高斯分布，方差同为 $\tilde\beta_t$；这时散度等于均值之差的平方，除以方差的两倍。两个均值形式相同，一个含 $\varepsilon$，另一个含 $\varepsilon_\theta$，所以
#
# $$L_{t-1} = \mathbb{E}\left[\frac{|\tilde\mu_t - \mu_\theta|^2}{2\,\tilde\beta_t}\right] = \mathbb{E}\Big[\underbrace{\frac{\beta_t^2}{2\,\tilde\beta_t\,(1-\beta_t)\,(1-\bar\alpha_t)}}_{w_t}\;|\varepsilon - \varepsilon_\theta(x_t,t)|^2\Big]$$
#
# 论文发现，去掉权重 $w_t$ 样本更好，于是用下面的损失训练：
#
# $$L_{\text{simple}} = \mathbb{E}_{t,\,x_0,\,\varepsilon}\left[\,|\varepsilon - \varepsilon_\theta(x_t,t)|^2\,\right]$$
#
# > **论文中的写法。** $L_{\text{simple}}$ 是 DDPM 的式 14；这个界和它的各项 $L_T$、$L_{t-1}$、$L_0$ 在论文第 2 节，加权的平方误差在第 3.2 节。因为 $w_t > 0$，两种损失的理想网络相同，都是第 1 节的条件均值。区别在于，网络不理想时，各个水平所占的分量不同。这些权重有多大？

# %%
t = torch.arange(2, T)  # 从 2 到 999
variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t]
weight = beta[t] ** 2 / (2 * variance * (1 - beta[t]) * (1 - alpha_bar[t]))
for level in (2, 10, 100, 500, 900):
    print(f"t = {level:3}：在下界中的权重 {weight[level - 2]:.5f}，在 L_simple 中为 1")

# %% [markdown]
# **问题。** 与证据下界相比，$L_{\text{simple}}$ 对高噪声水平更重视还是更不重视？为什么这样可能对样本更好？
#
# <details><summary>答案</summary>
#
# 更重视。在证据下界中，$t = 2$ 的权重是 $t = 500$ 的一百多倍，于是网络的容量都花在几乎看不见的细节上。权重相等时，网络在决定数字形状的那些水平上学得更多。（论文在式 14 之后也是这样论证的。）
#
# </details>

# %% [markdown]
# ## 4 · 分数
#
# 许多论文用**分数**（score）来描述同样的模型。分数是密度的对数的梯度，$\nabla_x \log p_t(x)$。这里 $p_t$ 是水平 $t$ 上加噪数据的分布，也就是第 1 节中的灰色点团。分数指向密度增长最快的方向。
#
# ### Tweedie 公式
#
# 加噪数据的密度是对干净数据的平均：$p_t(x_t) = \mathbb{E}_{x_0}\big[q(x_t\,|\,x_0)\big]$。对它的对数求导。因为 $\nabla q = q\,\nabla\log q$，
#
# $$\nabla \log p_t(x_t) = \frac{\mathbb{E}_{x_0}\big[q(x_t|x_0)\,\nabla\log q(x_t|x_0)\big]}{p_t(x_t)} = \mathbb{E}\big[\nabla\log q(x_t|x_0)\,\big|\,x_t\big] = -\frac{x_t - \sqrt{\bar\alpha_t}\;\mathbb{E}[x_0|x_t]}{1-\bar\alpha_t}$$
#
# 第二步用的是贝叶斯公式：$q(x_t|x_0)/p_t(x_t)$ 恰好是条件均值的权重。从中解出均值，就是 **Tweedie 公式**（Tweedie's formula）：
#
# $$\mathbb{E}[x_0\,|\,x_t] = \frac{x_t + (1-\bar\alpha_t)\,\nabla\log p_t(x_t)}{\sqrt{\bar\alpha_t}}$$
#
# 又因为 $x_t - \sqrt{\bar\alpha_t}\,x_0 = \sqrt{1-\bar\alpha_t}\,\varepsilon$，所以分数就是换了单位的预测噪声：
#
# $$\nabla\log p_t(x_t) = -\frac{\mathbb{E}[\varepsilon\,|\,x_t]}{\sqrt{1-\bar\alpha_t}} \approx -\frac{\varepsilon_\theta(x_t,t)}{\sqrt{1-\bar\alpha_t}}$$
#
# > **论文中的写法。** 预测分数的网络记作 $s_\theta(x, t)$。Tweedie 公式比扩散模型更早（[Efron 2011](https://doi.org/10.1198/jasa.2011.tm11181)）。以 $\mathbb{E}\,\big|\,s_\theta(x_t,t) + \varepsilon/\sqrt{1-\bar\alpha_t}\,\big|^2$ 为损失的训练叫做*去噪分数匹配*（denoising score matching；[Vincent 2011](https://doi.org/10.1162/NECO_a_00142)，[Song & Ermon 2019](https://arxiv.org/abs/1907.05600)）。由第 1 节，最优解是 $-\varepsilon/\sqrt{1-\bar\alpha_t}$ 的条件均值，这就是 $p_t$ 的分数，尽管损失中从未出现分数。令 $s_\theta = -\varepsilon_\theta/\sqrt{1-\bar\alpha_t}$，它就是带权重 $1/(1-\bar\alpha_t)$ 的 $L_{\text{simple}}$。
#
# 对平面上的点来说，$p_t$ 是若干高斯分布之和。我们让 PyTorch 对它的对数求导，再与 Tweedie 公式和网络比较。


# %%
def log_density(x, t, clean):
    """干净点为有限集时的 log p_t(x)。(N, D) -> (N,)"""
    constant = math.log(len(clean)) + x.shape[1] / 2 * (2 * math.pi * (1 - alpha_bar[t])).log()
    return log_weights(x, t, clean).logsumexp(dim=1) - constant


def score(eps, t):
    """由网络预测的噪声得到水平 t 的分数。"""
    return -eps / (1 - alpha_bar[t]).sqrt()


print("与 log p_t 的梯度的平均距离，除以梯度的平均长度：")
_, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
for axis, t, reach in zip(axes, [600, 250, 100], [2.2, 1.5, 1.2], strict=True):
    cloud = add_noise(points, torch.full((3000,), t), eps).requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(cloud, t, clean).sum(), cloud)
    cloud = cloud.detach()
    tweedie = score(eps_from_x0(cloud, t, ideal_x0(cloud, t, clean)), t)
    both = tweedie, score(toy_eps(cloud, t), t)
    away = [(s - gradient).norm(dim=1).mean() / gradient.norm(dim=1).mean() for s in both]
    print(f"t = {t}：Tweedie 公式 {away[0]:.5f}，网络 {away[1]:.3f}")

    line = torch.linspace(-reach, reach, 121)
    grid = torch.cartesian_prod(line, line)
    density = log_density(grid, t, clean).view(121, 121).T
    picture = axis.imshow(density, origin="lower", extent=[-reach, reach] * 2, cmap="magma", vmin=density.max() - 8)
    plt.colorbar(picture, ax=axis, shrink=0.75, label="$\\log p_t$（黑：比最大值低 8）")
    line = torch.linspace(-0.95 * reach, 0.95 * reach, 13)
    places = torch.cartesian_prod(line, line)
    arrows = score(toy_eps(places, t), t)
    arrows = 0.13 * reach * arrows / arrows.norm(dim=1, keepdim=True)
    axis.quiver(*places.T, *arrows.T, angles="xy", scale_units="xy", scale=1, width=0.005, color="white")
    window(axis, f"t = {t}", reach)
plt.show()

# %% [markdown]
# 颜色是 $\log p_t$，白色箭头是网络给出的分数的方向，它们指向上坡。与第 1 节比较：那里的箭头是 $\hat x_0 - x$；由 Tweedie 公式，它是分数与 $x$ 本身的混合。只有在 $\bar\alpha_t$ 接近 1 的地方，也就是噪声水平低的时候，两个场的方向才相同。
#
# ### 朗之万步
#
# 知道了分数，不用任何链也可以采样。步长为 $\delta$ 的一个**朗之万步**（Langevin step）先上坡一点，再加入噪声：
#
# $$x \;\leftarrow\; x + \frac{\delta}{2}\,\nabla\log p_t(x) + \sqrt{\delta}\;z$$
#
# 如果没有噪声，所有的点都会停在密度的极大值处。有了噪声，只要 $\delta$ 足够小，走过许多步之后，不论从哪里出发，点的分布都会变成 $p_t$。水平 $t$ 始终不变。
#
# > **论文中的写法。** [Song & Ermon 2019](https://arxiv.org/abs/1907.05600) 用*退火*的朗之万动力学（annealed Langevin dynamics）采样：先在高噪声水平走几步，再在低一级的水平走几步，依此类推。DDPM 的一步与此类似：它的均值使 $x_t$ 沿分数移动（把 $\hat\varepsilon = -\sqrt{1-\bar\alpha_t}\,s$ 代入算法 2 即可看出），然后加噪声。


# %%
def langevin_step(x, score, delta, z):
    """沿分数走半个步长，再加方差为 delta 的噪声。均为 (N, D)"""
    return x + delta / 2 * score + delta**0.5 * z


def langevin(x, levels, steps, generator):
    """在每个水平上走 steps 个朗之万步，步长与噪声方差成正比。"""
    for t in levels:
        for _ in range(steps):
            delta = 0.2 * (1 - alpha_bar[t]).item()
            x = langevin_step(x, score(toy_eps(x, t), t), delta, torch.randn(x.shape, generator=generator))
    return x


g = torch.Generator().manual_seed(3)
strip = torch.rand((2000, 2), generator=g) * torch.tensor([1.0, 4.0]) - 2  # 远离数据的起点
target = add_noise(points[:2000], torch.full((2000,), 150), eps[:2000])
at_150 = [langevin(strip, [150], steps, g) for steps in (10, 300)]
at_20 = langevin(strip, [20], 300, g)
annealed = langevin(strip, range(900, 0, -20), 10, g)  # 45 个水平，每个走十步
clouds = {"起点": strip, "t = 150，10 步": at_150[0], "t = 150，300 步": at_150[1]}
clouds |= {"加噪数据，t = 150": target, "t = 20，300 步": at_20, "退火，900 到 20": annealed}
show_points(list(clouds.values()), list(clouds), reach=1.8)
for name, cloud in (clouds | {"干净数据": points}).items():
    print(f"{(cloud[:, 0] > 0.35).float().mean():6.1%} 的点在 0.35 右侧（脖子）：{name}")

# %% [markdown]
# 在 $t = 150$ 上走 300 步之后，点的分布与加噪数据一样。在 $t = 20$ 上走 300 步之后，点都在轮廓上，脖子上却几乎没有：每个点都移到了轮廓上最近的部分。这个水平的步子太小，要过很久才能从那里走开。退火之所以有用，是因为在高噪声水平上没有需要跨越的空隙。扩散模型使用许多噪声水平，而不是只用一个低水平，这是原因之一。
#
# **问题。** 在水平 $t$，分数是 $-\varepsilon_\theta/\sqrt{1-\bar\alpha_t}$。噪声水平低时，与 $\varepsilon$ 相比，它通常有多长？这对步长 $\delta$ 意味着什么？
#
# <details><summary>答案</summary>
#
# 噪声水平低时，$\sqrt{1-\bar\alpha_t}$ 很小，所以分数很长：数据周围的密度下降得很陡。对高水平合适的固定 $\delta$，在那里会走过头。所以代码中的 $\delta$ 与 $1-\bar\alpha_t$ 成正比。
#
# </details>

# %% [markdown]
# ## 5 · 网络
#
# 网络预测的图像与输入一样大。它既要看细节（笔画到哪里为止？），又要看整体（这是不是 4？），还必须知道噪声水平。**U-Net** 同时满足这三个要求：
#
# * **下采样**（down）：一次次把图像缩小一半，同时增加通道。在缩小的图像上，每个像素都能看到原图的一大片区域；
# * **上采样**（up）：再一次次把图像放大一倍，直到恢复原来的大小；
# * **跳跃连接**（skip connections）：上采样的每一级还会得到下采样时在同样大小上算出的结果，所以细节不会丢失；
# * **残差块**（residual blocks）负责计算：做两次卷积，再把结果*加*到输入上。噪声水平输入到每个残差块；
# * **注意力**（attention）只用在图像最小的地方，让每个像素都能利用其他所有像素的信息。
#
# ### 用波表示噪声水平
#
# 单独一个 0 到 999 之间的数 $t$ 不适合作为网络的输入，因为网络在 $t = 10$ 和 $t = 20$ 时的行为必须很不一样。所以把 $t$ 变成 $d$ 个数，即不同波长的正弦和余弦。设 $h = d/2$：
#
# $$\phi_i = \frac{t}{10000^{\,i/h}}, \qquad i = 0,\dots,h-1 \qquad\quad \mathrm{emb}(t) = \big(\sin\phi_0,\dots,\sin\phi_{h-1},\;\cos\phi_0,\dots,\cos\phi_{h-1}\big)$$
#
# 前面的波变化快，能区分相邻的水平；后面的波变化慢，能区分高水平和低水平。
#
# > **论文中的写法。** 这就是 Transformer 的*正弦位置编码*（sinusoidal position embedding；[Vaswani et al. 2017](https://arxiv.org/abs/1706.03762)，第 3.5 节）。各种实现的细节不同：有的先写余弦，有的先写正弦；DDPM 论文的代码用 $h-1$ 而不是 $h$ 去除 $i$。


# %%
def time_embedding(t, dim):
    """t 的正弦和余弦，波长从 2 pi 到将近 20,000 pi。(B,) -> (B, dim)"""
    half = dim // 2
    angle = t.float()[:, None] / 10_000 ** (torch.arange(half) / half)  # (B, half)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


plt.figure(figsize=(7, 2.4), layout="constrained")
plt.imshow(time_embedding(torch.arange(1000), 32).T, aspect="auto", cmap="RdBu", interpolation="nearest")
plt.colorbar(label="值")
plt.gca().set(xlabel="t", ylabel="嵌入中的序号", yticks=[0, 8, 16, 24, 31])
plt.show()

# %% [markdown]
# ### 残差块
#
# 这些波先经过一个小网络（两个线性层），只算一次。然后每个残差块由这个结果算出每个通道的一个*缩放*（scale）和一个*平移*（shift），用它们改变自己的特征。卷积只看得到 $3\times3$ 像素的邻域，而缩放和平移对整张图像都相同。这样，同样的权重在不同的噪声水平上就能起不同的作用。

# %%
show_resblock()


# %%
class ResBlock(nn.Module):
    """两次卷积，中间加入嵌入。x：(B, C, H, W)，emb：(B, D) -> (B, C', H, W)"""

    def __init__(self, c_in, c_out, emb_dim=128):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_dim, 2 * c_out)
        self.norm2 = nn.GroupNorm(8, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # 新的块是恒等映射（或它的捷径），训练因此稳定
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C', H, W)
        scale, shift = self.time_emb_proj(F.silu(emb))[:, :, None, None].chunk(2, dim=1)  # 各为 (B, C', 1, 1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.conv_shortcut(x) + self.conv2(F.silu(h))


class SelfAttention(nn.Module):
    """每个像素对所有像素取加权平均。(B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x):
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)，N = H W 个像素
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        weights = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(dim=2)  # (B, N, N)：每行之和为 1
        return x + self.to_out(weights @ v).transpose(1, 2).view_as(x)


# %% [markdown]
# GroupNorm 层使特征的均值为 0、方差为 1；SiLU 是激活函数 $x\,\mathrm{sigmoid}(x)$。在注意力中，每个像素有一个*查询*（query）$q$、一个*键*（key）$k$ 和一个*值*（value）$v$：另一个像素的键与查询越匹配，它的权重就越大。（第 2 章会仔细讲注意力。）
#
# ### 完整的网络与类别标签
#
# 如果数字带有标签，网络就能学会画出你指定的数字。理论没有任何变化：所有的密度都以标签 $c$ 为条件，网络变成 $\varepsilon_\theta(x_t, t, c)$。它预测 $\mathbb{E}[\varepsilon\,|\,x_t, c]$，即只对这一类图像取的平均。**类别条件**（class conditioning）只需要一行代码：用一张表为每个类别存一个学习得到的向量，再把标签对应的向量*加*到噪声水平的嵌入上。于是标签沿着同一条路径到达每个残差块：
#
# $$e = \mathrm{MLP}\big(\mathrm{emb}(t)\big) + E_c \qquad\text{（第 } c \text{ 行，取自表 } E)$$
#
# 有两个细节能节省训练时间。第一层把每个 $2\times2$ 像素的方块变成一个有四个通道的像素，所以所有卷积都在 $14\times14$ 或 $7\times7$ 像素上进行。最后一行把输入 $x$ 加到结果上：噪声水平高时，$x_t$ 几乎全是噪声，所以预测 $\hat\varepsilon = x_t$ 是个好的起点，网络只需学习修正量。


# %%
class SmallUNet(nn.Module):
    """预测噪声。x：(B, 1, 28, 28)，t：(B,)，0 到 999，label：(B,)，0 到 9 -> (B, 1, 28, 28)"""

    def __init__(self, c=32, emb_dim=128):
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(32, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        self.table = nn.Embedding(10, emb_dim)  # 每个类别一行
        self.conv_in = nn.Conv2d(4, c, 3, padding=1)
        self.down = ResBlock(c, c)
        self.halve = nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
        self.low = ResBlock(2 * c, 2 * c)
        self.attention = SelfAttention(2 * c)
        self.middle = ResBlock(2 * c, 2 * c)
        self.up_low = ResBlock(4 * c, 2 * c)
        self.widen = nn.Conv2d(2 * c, c, 3, padding=1)
        self.up = ResBlock(2 * c, c)
        self.norm_out = nn.GroupNorm(8, c)
        self.conv_out = nn.Conv2d(c, 4, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)  # 新的网络预测 x 本身
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x, t, label):
        emb = self.time_mlp(time_embedding(t, 32)) + self.table(label)  # (B, 128)
        small = F.pixel_unshuffle(x, 2)  # (B, 4, 14, 14)
        a = self.down(self.conv_in(small), emb)  # (B, 32, 14, 14) 留给上采样路径
        b = self.low(self.halve(a), emb)  # (B, 64, 7, 7) 同样保留
        h = self.middle(self.attention(b), emb)  # (B, 64, 7, 7)
        h = self.up_low(torch.cat([h, b], dim=1), emb)  # (B, 64, 7, 7)
        h = self.widen(F.interpolate(h, scale_factor=2.0))  # (B, 32, 14, 14)
        h = self.up(torch.cat([h, a], dim=1), emb)  # (B, 32, 14, 14)
        return x + F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), 2)  # (B, 1, 28, 28)


torch.manual_seed(0)
net = SmallUNet()
for name, module in net.named_children():
    print(f"{name:10} {type(module).__name__:14} {sum(p.numel() for p in module.parameters()):8,} 个权重")
print(f"{'合计':23} {sum(p.numel() for p in net.parameters()):8,} 个权重")

# %% [markdown]
# 课程其余部分导入的 U-Net 是 [unet.py](../common/models/unet.py)，由同样的块组成，可以有任意多级分辨率。我们打开本章自带的网络，把其中一个块的权重复制到我们的 `ResBlock` 里，再比较两者。

# %%
from common.models.model_folder import load_model

shipped = load_model(CHAPTER / "pretrained").net  # 在 MNIST 的 60,000 张训练图像上训练
theirs = shipped.down_blocks[1].resnets[0]
ours = ResBlock(theirs.conv1.in_channels, theirs.conv1.out_channels)
ours.load_state_dict(theirs.state_dict())
g = torch.Generator().manual_seed(0)
x, emb = torch.randn((2, theirs.conv1.in_channels, 14, 14), generator=g), torch.randn((2, 128), generator=g)
with torch.no_grad():
    print(f"两个块的最大差别：{(ours(x, emb) - theirs(x, emb)).abs().max():.1e}")
print(f"自带网络的权重数：{sum(p.numel() for p in shipped.parameters()):,}")

# %% [markdown]
# **问题。** 不论图像多大，从 $C$ 个通道到 $C$ 个通道的卷积都有 $9\,C^2$ 个权重。我们的网络，大部分权重在哪里？大部分*计算*又在哪里？
#
# <details><summary>答案</summary>
#
# 大部分权重在 $7\times7$ 像素的块里（`low`、`middle`、`up_low`），因为这些块的通道数是两倍，每个卷积的权重就是四倍。卷积对每个像素的计算量是 $9\,C^2$。$14\times14$ 的块权重是四分之一，像素是四倍，所以两种大小上的计算量差不多相等。
#
# </details>

# %% [markdown]
# ## 6 · 训练的六步
#
# 训练就是重复六个小步。下面用新的网络逐一走一遍。
#
# **第 1 步：取图像**，这里取八张，连同标签。**第 2 步：抽取噪声水平**，每张图像一个，从 1 到 1000 等概率。**第 3 步：抽取噪声**，个数与图像的像素一样多。

# %%
g = torch.Generator().manual_seed(0)
batch = mnist.batch(torch.arange(8))  # 1
x0, label = batch["image"], batch["label"]
t = torch.randint(1, T + 1, (8,), generator=g)  # 2
eps = torch.randn(x0.shape, generator=g)  # 3
print("x0 ", tuple(x0.shape), x0.dtype, "   标签", label.tolist())
print("t  ", tuple(t.shape), t.tolist())
print("eps", tuple(eps.shape), f"均值 {eps.mean():.2f}，方差 {eps.var():.2f}")

# %% [markdown]
# **第 4 步：给图像加噪**，用闭式表达式。在 `add_noise` 中，$\bar\alpha_t$ 的形状是 (8, 1, 1, 1)，所以每张图像乘以它自己的数。

# %%
x_t = add_noise(x0, t, eps)
show_images([x0, x_t], 8, [f"t = {level}" for level in t.tolist()], ["x₀", "x_t"])

# %% [markdown]
# **第 5 步：预测噪声**，输入是 $x_t$、噪声水平和标签。**第 6 步：比较**，计算均方误差和它的梯度，再由优化器把权重改变一点。

# %%
predicted = net(x_t, t - 1, label)  # 5
loss = (predicted - eps).square().mean()  # 6
loss.backward()
norm = sum(p.grad.square().sum() for p in net.parameters() if p.grad is not None).sqrt()
print(f"预测 {tuple(predicted.shape)}，损失 {loss.item():.3f}，梯度的范数 {norm:.3f}")
net.zero_grad()

# %% [markdown]
# 新网络的最后一层为零，所以它的预测是 $\hat\varepsilon = x_t$。总是预测零的网络，损失会在 1 附近，因为噪声的方差是 1。
#
# > **论文中的写法。** 这六步就是 DDPM 论文的算法 1，损失是 $L_{\text{simple}}$（式 14）。[ddpm.py](ddpm_mnist/ddpm.py) 用一页代码写出了论文的两个算法。
#
# ### 只用一个噪声水平
#
# 如果只在一个水平上训练网络，比如 $t = 400$，会怎样？它会成为一个**去噪器**（denoiser）：评估一次，就去掉这种强度的噪声。我们训练它一小会儿，然后用在它从未见过的水平上。


# %%
def batch_of(images, size, generator):
    """一个随机批量：[-1, 1] 中的图像 (B, 1, 28, 28) 和标签 (B,)。"""
    batch = images.batch(torch.randint(len(images), (size,), generator=generator))
    return batch["image"], batch["label"]


def image_loss(net, x0, label, t, eps):
    """第 4 到 6 步。-> ()"""
    return (net(add_noise(x0, t, eps), t - 1, label) - eps).square().mean()


def one_level_loss():
    x0, label = batch_of(mnist, 16, g)
    return image_loss(one_level, x0, label, torch.full((16,), 400), torch.randn(x0.shape, generator=g))


torch.manual_seed(0)
one_level, g = SmallUNet(), torch.Generator().manual_seed(0)
losses = train(one_level, one_level_loss, 300, 2e-3)
print(f"第一步的损失 {losses[0]:.3f}，最后 50 步的平均 {np.mean(losses[-50:]):.3f}")

# %%
held_out = test.batch(torch.arange(200))  # 从不用于训练的数字
digits, labels = held_out["image"], held_out["label"]
noise = torch.randn(digits.shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def one_step(net, t):
    """加噪到水平 t 的数字，以及网络一步给出的干净数字的预测。"""
    x = add_noise(digits, torch.full((len(digits),), t), noise)
    return x, x0_from_eps(x, t, net(x, torch.full((len(x),), t - 1), labels))


levels = [100, 200, 300, 400, 500, 600, 700]
pairs = [one_step(one_level, t) for t in levels]
rows = [pair[i][3:4].clamp(-1, 1) for i in (0, 1) for pair in pairs]
show_images(rows, len(levels), [f"t = {t}" for t in levels], ["x_t", "预测的\nx₀"], scale=3)
print("像素的均方误差：")
for t, (x, x0) in zip(levels, pairs, strict=True):
    before = (x / alpha_bar[t].sqrt() - digits).square().mean()  # 只校正尺度，不去噪
    print(f"t = {t}：去噪前 {before:.3f}，一步之后 {(x0 - digits).square().mean():.3f}")

# %% [markdown]
# 在 $t = 400$，预测是一个干净的数字。在 $t = 600$ 及以上，许多噪声以亮斑的形式留了下来。在 $t = 200$ 和 $t = 300$，要去掉的噪声少得多，误差却与 $t = 400$ 时差不多。第 7 节会用一个在所有水平上训练的网络重做这张表。所以，**采样经过哪些水平，网络就必须在哪些水平上训练**。而且必须把水平*告诉*网络，因为同样的像素在不同的水平上需要不同的修正。
#
# **问题。** 上面的网络以 $t$ 为输入。为什么这在 $t = 200$ 时帮不了它？
#
# <details><summary>答案</summary>
#
# 训练时 $t$ 总是 400，所以损失中没有任何东西说明预测应当怎样随 $t$ 变化。其他水平的输入会产生训练从未触及的特征。
#
# </details>

# %% [markdown]
# ## 7 · 训练类别条件模型
#
# 现在用上所有的水平，以及每张图像的标签。循环与第 1 节相同，只多一件事：除了权重 $\theta$，还保留第二份权重 $\bar\theta$，它是前者的滑动平均，叫做 **EMA**（exponential moving average，指数移动平均）。每一步之后，
#
# $$\bar\theta \;\leftarrow\; d\,\bar\theta + (1-d)\,\theta$$
#
# 其中衰减率 $d$ 略小于 1：起作用的大约是最近 $1/(1-d)$ 步。它有什么作用，第 9 节会测量。学习率在前一半保持不变，然后降到零。


# %%
def train_with_average(net, loss_of_a_batch, steps, lr, decay):
    """每一步之后给出（已完成的步数，损失，平均权重的网络）。"""
    optimizer, average = torch.optim.AdamW(net.parameters(), lr), copy.deepcopy(net)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, 20 * (step + 1) / steps, 2 * (1 - step / steps))
        loss = loss_of_a_batch()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():  # 平均不参与梯度的计算
            for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
                mean.copy_(decay * mean + (1 - decay) * weight)
        yield step + 1, loss.item(), average


def any_level_loss():
    x0, label = batch_of(mnist, BATCH, g)  # 1. 图像
    t = torch.randint(1, T + 1, (BATCH,), generator=g)  # 2. 噪声水平
    eps = torch.randn(x0.shape, generator=g)  # 3. 噪声
    return image_loss(net, x0, label, t, eps)  # 4. 加噪，5. 预测，6. 比较


@torch.no_grad()
def losses_on_new_digits(net):
    """200 个留出数字各自的损失，噪声水平和噪声始终相同。(200,)"""
    t = torch.arange(200) * 5 + 3  # 从 3 到 998 均匀分布
    return (net(add_noise(digits, t, noise), t - 1, labels) - noise).square().flatten(1).mean(1)


STEPS, BATCH, DECAY = 2000, 16, 0.99
g, losses, history, early = torch.Generator().manual_seed(0), [], [], {}
for step, loss, average in train_with_average(net, any_level_loss, STEPS, 3e-3, DECAY):
    losses.append(loss)
    if step % 200 == 0:
        history.append((step, losses_on_new_digits(net), losses_on_new_digits(average)))
    if step == STEPS // 2:  # 恒定学习率结束之时：留给第 9 节
        early = {"原始": copy.deepcopy(net), "平均": copy.deepcopy(average)}

# %%
plt.figure(figsize=(7, 2.6), layout="constrained")
plt.plot(range(1, STEPS + 1), losses, color="0.8", linewidth=0.5, label="训练，每一步")
mean = np.convolve(losses, np.ones(50) / 50, "valid")
plt.plot(np.arange(len(mean)) + 25, mean, color="C0", label="训练，50 步的平均")
at, on_new = [step for step, *_ in history], [after.mean() for *_, after in history]
plt.plot(at, on_new, "o-", color="C1", label="新数字，平均权重")
plt.gca().set(xlabel="步数", ylabel="损失", ylim=(0, 0.3))
plt.legend()
plt.show()
print(f"结束时在新数字上的损失：{history[-1][2].mean():.4f}")

print("一步之后像素的均方误差：")
for t, (_, x0) in zip(levels, pairs, strict=True):
    error = (one_step(average, t)[1] - digits).square().mean()
    print(f"t = {t}：在所有水平上训练 {error:.3f}，只在 t = 400 上训练 {(x0 - digits).square().mean():.3f}")

# %% [markdown]
# 在 $t = 400$，两者很接近：新网络训练得更久，误差为 0.027<!--out-->，旧网络为 0.037<!--out-->。在 $t = 700$，旧网络训练时从未见过这个水平，误差分别为 0.101<!--out--> 和 0.915<!--out-->。

# %% [markdown]
# 采样时，**每一步都把同样的标签交给网络**。下面每一列要求一个数字。一行的十个样本从相同的噪声开始，所以差别只来自标签。我们使用第 1 节的确定性采样器，共 20 步。


# %%
def eps_of(net, label):
    """把网络变成采样器所用的函数 (x, t) -> 噪声。label：(B,)"""

    @torch.no_grad()
    def predict(x, t):
        return net(x, torch.full((len(x),), t - 1), label)

    return predict


def pure_noise(n, seed):
    return torch.randn((n, 1, 28, 28), generator=torch.Generator().manual_seed(seed))


every_50th = range(1000, -1, -50)  # 20 步
asked = torch.arange(40) % 10
same_noise = pure_noise(4, 0).repeat_interleave(10, dim=0)  # (40, 1, 28, 28)，每个重复十次
ours = ddim(eps_of(average, asked), same_noise, every_50th)[-1]
show_images(ours, 10, [str(c) for c in range(10)], [f"噪声 {i}" for i in range(1, 5)])

# %% [markdown]
# 在同一行里，笔画往往落在相同的位置，因为噪声相同；有哪些笔画，则由标签决定。有的样本是类别正确、可以辨认的数字，有的则不是：只训练 2,000 步、每步 16 张图像，时间太短了。模型有多少次画出了要求的数字？课程有一个在 MNIST 上训练的小型数字分类器，[digit_classifier.py](../common/evaluate/digit_classifier.py)。样本中有多大比例被它识别为要求的数字，这是由有限个样本得到的估计，所以需要一个区间。*威尔逊区间*（Wilson interval，公式见第 2 章）在大约 95 % 的实验中包含真实的比例。

# %%
from common.evaluate.digit_classifier import classify, load_digit_classifier


def wilson(share, n, z=1.96):
    """n 次独立试验中所见比例的 95 % 置信区间。"""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return middle - half, middle + half


classifier = load_digit_classifier()
asked = torch.arange(200) % 10
ours = ddim(eps_of(average, asked), pure_noise(200, 1), every_50th)[-1]
for name, images, wanted in (("样本", ours, asked), ("新的真实数字", digits, labels)):
    right = (classify(classifier, images)[1].argmax(1) == wanted).double().mean().item()
    low, high = wilson(right, len(images))
    print(f"{right:5.1%} 被识别为它的标签（95 % 置信区间 {low:.1%} 到 {high:.1%}）：{name}")

# %% [markdown]
# 没有标签时，碰巧正确的比例是 10 %。所以网络确实用到了标签，但画得还远不如人写的数字。
#
# **问题。** 用训练好的网络采样，前十步的标签是 3，后十步的标签是 8。你预计会怎样？先写下你的预测，再试一试：只要依次调用两次 `ddim`。
#
# <details><summary>答案</summary>
#
# 整体形状由轨迹的前一段决定，那里噪声水平高。后一段尽量保持这个形状，再画出另一个数字的细节。3 和 8 的大部分笔画相同，所以可以预计得到两者的混合。是否真的如此，只有实验才能回答。
#
# </details>

# %% [markdown]
# ## 8 · 用较大的模型采样
#
# 第 7 节的训练很短。本章自带的网络（第 5 节打开过它）在 MNIST 的全部 60,000 张训练图像上训练了数小时，没有用标签。它的训练目标不是噪声，而是噪声与图像的另一种线性组合，$v = \sqrt{\bar\alpha_t}\,\varepsilon - \sqrt{1-\bar\alpha_t}\,x_0$，因为在第 3 章的测试中，网络学它更快；$v$ 的含义也在那一章解释。这里我们只做换算：对 $v$ 的预测和已知的 $x_t$ 是关于 $\hat x_0$ 和 $\hat\varepsilon$ 的两个方程，解出噪声只要一行。


# %%
@torch.no_grad()
def shipped_eps(x, t):
    """自带网络在 x 中看到的噪声。(B, 1, 28, 28) -> (B, 1, 28, 28)"""
    v = shipped(x, torch.full((len(x),), t - 1))
    return (1 - alpha_bar[t]).sqrt() * x + alpha_bar[t].sqrt() * v


# %% [markdown]
# ### 从每个噪声水平走一步
#
# 我们先看单次预测。对一个加了不同噪声的数字，网络预测什么？在 100 个新数字上，它的误差有多大？

# %%
levels = [10, 50, 200, 400, 500, 600, 700, 800, 900, 1000]
noise_errors, image_errors, seen, predicted = [], [], [], []
for t in levels:
    x = add_noise(digits[:100], torch.full((100,), t), noise[:100])
    eps = shipped_eps(x, t)
    x0 = x0_from_eps(x, t, eps).clamp(-1, 1)
    noise_errors.append((eps - noise[:100]).square().mean().item())
    image_errors.append((x0 - digits[:100]).square().mean().item())
    seen.append(x[3:4].clamp(-1, 1))
    predicted.append(x0[3:4])
show_images([*seen, *predicted], len(levels), [f"t = {t}" for t in levels], ["x_t", "预测的\nx₀"])

plt.figure(figsize=(6.5, 2.7), layout="constrained")
plt.plot(levels, noise_errors, marker="o", label="噪声 $\\varepsilon$ 的误差")
plt.plot(levels, image_errors, marker="o", label="图像 $x_0$ 的误差")
plt.gca().set(xlabel="噪声水平 t", ylabel="均方误差", yscale="log", ylim=(1e-4, 2))
plt.legend()
plt.show()
average_digit = mnist.batch(torch.arange(len(mnist)))["image"].mean(0, keepdim=True)
print(f"t = 1000：预测与训练数字的平均之间的均方差别 {(x0 - average_digit).square().mean():.4f}")

# %% [markdown]
# 噪声少时，预测很清晰。噪声多时，预测是模糊的，因为它是所有可能变成这个 $x_t$ 的数字的平均。在 $t = 1000$，它是所有数字的平均。（第 1 节中的箭头指向恐龙的中央，也是这个原因。）
#
# 两种误差的难处正好相反。图像中几乎没有噪声时，噪声很难预测；只剩下噪声时，噪声很容易预测。图像则在高水平上难以预测。两条曲线描述的是同一些预测：由闭式表达式，只要没有截断，$x_0$ 的误差就是 $\varepsilon$ 的误差乘以 $(1-\bar\alpha_t)/\bar\alpha_t$。所以在高水平上，噪声的小误差就是图像的大误差，而损失几乎显示不出来。
#
# ### 一千步：算法 2

# %%
states = list(ddpm(shipped_eps, pure_noise(2, 1), torch.Generator().manual_seed(1)))  # x_999, ..., x_0

shown = [999, 800, 600, 450, 350, 250, 180, 120, 70, 30, 0]  # 先是大步，最后是小步
strip = torch.stack([states[999 - t] for t in shown], dim=1).flatten(0, 1).clamp(-1, 1)
show_images(strip, len(shown), [f"t = {t}" for t in shown])

# %% [markdown]
# 看上去，大约到 $t = 700$ 为止几乎什么都没有发生；然而数字的形状正是在那里决定的。最后的几步只是把背景清理干净。
#
# ### 五十步：更短的链
#
# 评估网络一千次很慢。可以只经过一部分水平，比如 20、40、……、1000。$\bar\alpha$ 在 0 和这些水平上的值本身就是一种噪声调度，属于一条**步子更大、更短的链**。它的 $\beta$ 由它自己的 $\bar\alpha$ 得出：
#
# $$\beta_k = 1 - \frac{\bar\alpha_{t_k}}{\bar\alpha_{t_{k-1}}}$$
#
# 采样就是用这些数做算法 2；传给网络的仍是长链的水平，因为网络是用这些水平训练的。这叫做**步长重采样**（respacing；[Nichol & Dhariwal 2021](https://arxiv.org/abs/2102.09672)，式 19）。一个典型的错误是跳过一些水平，却保留长链的 $\beta_t$：这样每一步去掉的噪声就太少。DDIM 不需要任何改动，因为它的公式里只有 $\bar\alpha$。


# %%
def ddpm_respaced(predict_eps, x, levels, generator):
    """只在水平 t_1 < t_2 < ... < t_K 上执行算法 2。返回 x_0。"""
    chain = alpha_bar[[0, *levels]]  # (K + 1,) 短链的 alpha_bar
    for k in range(len(levels), 0, -1):
        b = 1 - chain[k] / chain[k - 1]  # 这一大步的 beta
        eps = predict_eps(x, levels[k - 1])
        mean = (x - b / (1 - chain[k]).sqrt() * eps) / (1 - b).sqrt()
        variance = (1 - chain[k - 1]) / (1 - chain[k]) * b  # 最后一步为零
        x = mean + variance.sqrt() * torch.randn(x.shape, generator=generator)
    return x


fifty = ddpm_respaced(shipped_eps, pure_noise(12, 1), list(range(20, 1001, 20)), torch.Generator().manual_seed(1))
every_20th = range(1000, -1, -20)
trajectory = ddim(shipped_eps, pure_noise(12, 1), every_20th)
show_images([fifty.clamp(-1, 1), trajectory[-1]], 12, down=["DDPM，评估 50 次", "DDIM，评估 50 次"])

# %% [markdown]
# ### 途中的预测
#
# 轨迹的每一步都有一个状态 $x_t$，以及由它得到的预测 $\hat x_0$。

# %%
shown = [1000, 960, 900, 820, 740, 660, 560, 460, 340, 200, 60]
rows = [trajectory[(1000 - t) // 20][:1] for t in shown]
guesses = [x0_from_eps(x, t, shipped_eps(x, t)) for x, t in zip(rows, shown, strict=True)]
images = [x.clamp(-1, 1) for x in [*rows, *guesses]]
show_images(images, len(shown), [f"t = {t}" for t in shown], ["x_t", "预测的\nx₀"])

# %% [markdown]
# 预测一开始是所有数字的平均；当 $x_t$ 看上去还是噪声时，它已经变成了一个明确的数字。轨迹的其余部分只是使它更清晰。顺序与恐龙的例子相同：先整体形状，后细节。
#
# **问题。** 为什么不能从 $x_{1000}$ 一步跳到 $\hat x_0$？
#
# <details><summary>答案</summary>
#
# $\hat x_0$ 是条件均值，在 $t = 1000$ 时是所有数字的均值，而这个均值并不是数字。选择是在中间各步做出的：对 DDPM 来说取决于新加的噪声，对 DDIM 来说只取决于初始噪声。随着一步步采样，参与平均的数字越来越少。
#
# </details>

# %% [markdown]
# ## 9 · 对权重取平均
#
# 学习率高时，每个批量都把权重推向不同的方向，所以权重一直来回移动。第 7 节的平均权重把这种移动变平滑了。它们的预测更好吗？我们在第 7 节的训练过程中，用同样的 200 个新数字和同样的噪声，比较两个网络的损失。这些差是*成对*的，每个数字一个。区间是**自助法**（bootstrap）区间：从 200 个差中有放回地抽取 200 个，求均值，重复 1,000 次，取中间的 95 %。


# %%
def interval_of_mean(values, times=1000):
    """自助法：重采样均值的中间 95 %。values：(N,)"""
    g = torch.Generator().manual_seed(0)
    means = values[torch.randint(len(values), (times, len(values)), generator=g)].mean(1)
    return means.quantile(torch.tensor([0.025, 0.975])).tolist()


gain = [raw - mean for _, raw, mean in history]  # 正数：平均权重更好
middle, ends = np.array([d.mean() for d in gain]), np.array([interval_of_mean(d) for d in gain]).T
plt.figure(figsize=(6.5, 2.6), layout="constrained")
plt.errorbar(at, middle, [middle - ends[0], ends[1] - middle], fmt="o-", capsize=3)
plt.axhline(0, color="black", linewidth=0.8)
plt.axvspan(0, STEPS / 2, color="0.93")
plt.text(STEPS / 4, plt.ylim()[1], "恒定的学习率", ha="center", va="bottom")
plt.text(0.75 * STEPS, plt.ylim()[1], "下降的学习率", ha="center", va="bottom")
plt.gca().set(xlabel="步数", ylabel="损失，原始 − 平均")
plt.show()
for i in (4, 9):
    _, raw, mean = history[i]
    interval = f"95 % 置信区间 {ends[0][i]:.4f} 到 {ends[1][i]:.4f}"
    print(f"第 {at[i]} 步：原始 {raw.mean():.4f}，平均 {mean.mean():.4f}，差 {middle[i]:.4f}（{interval}）")

# %% [markdown]
# 在第 200 步，平均权重更差，因为平均里还含有未经训练的权重。此后，只要学习率保持不变，平均权重就更好：在第 1,000 步，损失低 0.0052<!--out-->（95 % 置信区间 0.0041<!--out--> 到 0.0065<!--out-->）。学习率下降时，差距缩小；结束时两者的损失都是 0.0559<!--out-->，因为权重几乎不再移动。
#
# 这个区间考虑了 200 个数字的选取，却没有考虑训练的偶然性：这只是一个小网络的一次训练。能够推广的是其中的道理：权重在移动时，取平均才有用。学习率恒定的长时间训练总是如此，平均的长度因而成为一个重要的设置（[Karras et al. 2024](https://arxiv.org/abs/2312.02696)）。从业者对 EMA 有哪些说法，第 3 章又测到了什么，见[经验之谈](../docs/claims.zh.md#emap2-权重和截断没有影响)。
#
# **问题。** $d = 0.99$ 时，平均记得多少步？在这次 2,000 步的训练中，$d = 0.9999$ 会怎样？
#
# <details><summary>答案</summary>
#
# 大约 $1/(1-d) = 100$ 步。$d = 0.9999$ 时是 10,000 步，所以 2,000 步之后，平均的大部分仍是未经训练的权重（$0.9999^{2000} \approx 0.82$）。因此程序一开始用较小的衰减率，在训练中逐渐增大。
#
# </details>

# %% [markdown]
# ## 10 · 理想网络照搬训练集
#
# 第 1 节推导了干净点为有限集时的理想预测，$\sum_i w_i\,x_0^{(i)}$。这个公式对图像同样成立，而第 6 节的损失也是对一个有限集取的平均：训练图像。所以，不用任何训练，就可以*直接写出*使训练损失最小的网络。它会画出什么？
#
# 对 10,000 个数字做 softmax，就是第 1 节的 `ideal_x0`；采样器也相同。

# %%
train_images = mnist.batch(torch.arange(len(mnist)))["image"]  # (10000, 1, 28, 28)


def ideal_prediction(x, t):
    """数据分布是训练数字的集合时的 E[x_0 | x_t]。(B, 1, 28, 28)"""
    return ideal_x0(x.flatten(1), t, train_images.flatten(1)).view_as(x)


def nearest_training_image(images):
    """（距离，下标）：距离是像素之差的均方根。"""
    distances, indices = torch.cdist(images.flatten(1), train_images.flatten(1)).min(dim=1)
    return distances / 28, indices


copies = ddim(lambda x, t: eps_from_x0(x, t, ideal_prediction(x, t)), pure_noise(12, 1), every_20th)[-1]
shown = {"理想网络": copies, "自带网络": trajectory[-1]}
rows, names = [], []
for name, images in shown.items():
    distances, indices = nearest_training_image(images)
    rows += [images, train_images[indices]]
    names += [name, "最近的\n训练数字"]
show_images(rows, 12, down=names)
print("到 10,000 个训练数字中最近一个的距离：")
for name, images in (shown | {"新的真实数字": digits}).items():
    distances, _ = nearest_training_image(images)
    print(f"中位数 {distances.median():.3f}，最小值 {distances.min():.3f}：{name}")

# %% [markdown]
# 理想网络的每个样本都是一个训练数字，逐个像素都相同。噪声水平高时，它的预测是许多训练数字的平均。随后权重 $w_i$ 集中到越来越少的数字上，最后只剩一个。**把训练损失降到最小的完美网络毫无用处**：直接把图像存起来就行了。
#
# 自带网络的十二个样本与所有这些训练数字都不同：它们的距离中位数是 0.363<!--out-->，新的真实数字是 0.356<!--out-->。（自带网络是在 60,000 个数字上训练的，这 10,000 个是其中的一部分。）训练出来的网络为什么不照搬？比较两者在各个水平上、在训练数字和新数字上的误差。

# %%
levels = [50, 100, 200, 300, 500, 700, 800, 900]
_, axes = plt.subplots(1, 2, figsize=(9.5, 2.9), layout="constrained", sharey=True)
for axis, (name, images) in zip(axes, {"训练数字": train_images[:100], "新数字": digits[:100]}.items(), strict=True):
    of_ideal, of_network = [], []
    for t in levels:
        x = add_noise(images, torch.full((100,), t), noise[:100])
        of_ideal.append((ideal_prediction(x, t) - images).square().mean().item())
        of_network.append((x0_from_eps(x, t, shipped_eps(x, t)) - images).square().mean().item())
    axis.plot(levels, np.maximum(of_ideal, 1e-5), "o-", color="C3", label="训练集的理想预测")
    axis.plot(levels, of_network, "o-", color="C0", label="自带网络")
    axis.set(title=name, xlabel="噪声水平 t", yscale="log", ylim=(1e-4, 1))
    print(f"t = 300 时：理想 {of_ideal[3]:.4f}，网络 {of_network[3]:.4f}：{name}")
axes[0].set_ylabel("$x_0$ 的均方误差")
axes[1].legend()
plt.show()

# %% [markdown]
# 在训练数字上，$t\le 500$ 时理想预测几乎没有误差，因为它在自己的列表里找到了这个数字。在*新*数字上，低水平时它比网络差得多，因为它用最相似的旧数字代替了新数字：在 $t = 300$，误差分别是 0.1310<!--out--> 和 0.0117<!--out-->。训练出来的网络在两者上的误差几乎相同。它学到的是笔画的样子，而不是一张列表。
#
# 为什么？通常有三种解释。网络的权重比训练集的像素少（这里是 300 万对 4,700 万）。它的卷积对所有位置一视同仁。而且，训练损失离最小值还很远时，训练就停止了。训练集足够小时，网络*确实*会照搬（[Gu et al. 2023](https://arxiv.org/abs/2310.02664)）；把一个大数据集分成两半，分别训练两个网络，它们由相同的噪声画出几乎相同的图像（[Kadkhodaie et al. 2023](https://arxiv.org/abs/2310.02557)）。网络的哪些性质最重要，目前仍是研究中的问题。
#
# **问题。** 如果训练集里恰好只有一张图像，理想预测就非常简单。它是什么？采样器画出什么？
#
# <details><summary>答案</summary>
#
# 不论 $x_t$ 是什么，在每个水平上预测都是那张图像，每个样本也都是它的副本。这时分数从各处都指向 $\sqrt{\bar\alpha_t}\,x_0$。
#
# </details>

# %% [markdown]
# ## 11 · 画得好吗？
#
# **先看一看。** 下面两行，一行是没有用来训练任何网络的真实数字，另一行是自带网络画的。哪一行是哪一种？

# %%
batches = [ddim(shipped_eps, pure_noise(50, seed), every_50th)[-1] for seed in (10, 11, 12, 13)]
samples = torch.cat(batches)  # (200, 1, 28, 28)
show_images([samples[:14], digits[40:54]], 14, down=["A", "B"])

# %% [markdown]
# <details><summary>答案</summary>
#
# A 是网络画的（上面的代码可以看出来）。
#
# </details>
#
# ### 弗雷歇距离
#
# 要比较两个模型，需要一个数。一个训练好的分类器用若干**特征**（features）描述每张图像，这里是 64 个数。在特征空间里，真实图像形成一团点，样本形成另一团。**弗雷歇距离**（Fréchet distance）把每一团近似为高斯分布，再衡量两个高斯分布相距多远。在一维情形，设两个正态分布的均值为 $\mu_1, \mu_2$，标准差为 $s_1, s_2$，那么
#
# $$d^2 = (\mu_1-\mu_2)^2 + (s_1 - s_2)^2 = (\mu_1-\mu_2)^2 + s_1^2 + s_2^2 - 2\,s_1 s_2$$
#
# 有多个特征时，方差变成协方差矩阵 $C_1, C_2$：
#
# $$d^2 = |\mu_1-\mu_2|^2 + \mathrm{Tr}\big(C_1 + C_2 - 2\,(C_1 C_2)^{1/2}\big)$$
#
# 平方根的迹等于 $C_1C_2$ 各特征值的平方根之和。所以这个数同时反映点团的位置（第一项）和形状（第二项）。
#
# > **论文中的写法。** 特征取自某个大型照片分类器（Inception）时，这就是*弗雷歇 Inception 距离*（Fréchet Inception Distance，FID；[Heusel et al. 2017](https://arxiv.org/abs/1706.08500)）。我们的特征来自一个小型的 MNIST 数字分类器，所以我们的数值不能与 FID 比较。


# %%
def frechet_distance(a, b):
    """两组特征 (N, D) 与 (M, D) 的距离，各用一个高斯分布近似。-> ()"""
    covariance_a, covariance_b = a.T.cov(), b.T.cov()  # (D, D)，分母为 N - 1
    roots = torch.linalg.eigvals(covariance_a @ covariance_b).real.clamp(min=0).sqrt()  # (D,)
    place = (a.mean(0) - b.mean(0)).square().sum()
    return place + covariance_a.trace() + covariance_b.trace() - 2 * roots.sum()


def features_of(images):
    """[-1, 1] 中的 (N, 1, 28, 28) -> (N, 64)"""
    return classify(classifier, images)[0]


from common.evaluate.evaluator import reference_for

reference = reference_for(test, 28).features  # (10000, 64)：MNIST 的 10,000 张测试图像的特征，随课程提供
real = features_of(train_images)  # (10000, 64)
drawn = features_of(samples)
print(f"自带网络的 200 个样本：{frechet_distance(drawn, reference):.2f}")
print(f"200 个真实的训练数字：{frechet_distance(real[:200], reference):.2f}")

# %% [markdown]
# 真实数字的距离也不为零。原因之一是，训练数字和测试数字出自不同的人。另一个原因在这里影响更大：**估计有偏差**。点数少时，协方差矩阵有误差；平均而言，误差只会使距离增大，不会使它减小。增大多少，取决于样本的数量。

# %%
numbers = [80, 110, 150, 200]
g = torch.Generator().manual_seed(0)


def curve_of(features, numbers, times=10):
    """对每个样本数，随机子集的平均距离。"""
    subsets = [[features[torch.randperm(len(features), generator=g)[:n]] for _ in range(times)] for n in numbers]
    return np.array([np.mean([frechet_distance(part, reference).item() for part in some]) for some in subsets])


more = [*numbers, 500, 1000, 2000, 5000]
floor, of_samples = curve_of(real, more), curve_of(drawn, numbers)
slope, limit = np.polyfit([1 / n for n in more[3:]], floor[3:], 1)  # 过 N = 200 起各点的直线
_, (left, right) = plt.subplots(1, 2, figsize=(9.5, 2.9), layout="constrained")
left.plot(more, floor, "o-", color="black", label="真实数字（下限）")
left.plot(numbers, of_samples, "o-", label="样本")
left.set(xlabel="图像数 N", ylabel="弗雷歇距离", xscale="log", ylim=(0, None))
left.legend()
right.plot([1 / n for n in more], floor, "o-", color="black")
right.plot([1 / n for n in numbers], of_samples, "o-")
right.plot([0, 1 / 80], [limit, limit + slope / 80], color="black", linestyle=":", label="N ≥ 200 的直线")
right.legend()
right.set(xlabel="1 / N", ylabel="弗雷歇距离", xlim=(0, None), ylim=(0, None))
plt.show()
for n, value in zip(more, floor, strict=True):
    print(f"{n:5} 个真实数字：{value:.2f}")
print(f"过 N = 200 起各点的直线，在 1 / N = 0 处：{limit:.2f}")

# %% [markdown]
# 不论真实数字还是样本，距离都随图像数的增加而减小。图像数达到特征数的几倍之后，把距离画成 $1/N$ 的函数，就是一条直线。由此得到三条规则：
#
# * 只比较 **$N$ 相等**时的距离。
# * 总是同时给出**下限**（floor）：同样多的真实图像得到的距离。
# * 要与另一个 $N$ 的结果比较，就外推到 $1/N \to 0$（[Chong & Forsyth 2019](https://arxiv.org/abs/1911.07023)）。斜率与模型有关，所以偏差不会相互抵消。
#
# 距离还需要一个区间。我们对图像重采样（自助法）。重复的图像使多样性降低，所有的距离都会因此变大。所以只用区间的宽度，把它放在测得的值周围。


# %%
def interval_of_distance(features, times=100):
    """距离及其 95 % 置信区间：重采样距离的中间 95 %，平移到测得的距离。"""
    g, n, value = torch.Generator().manual_seed(0), len(features), frechet_distance(features, reference).item()
    again = [frechet_distance(features[torch.randint(n, (n,), generator=g)], reference).item() for _ in range(times)]
    low, high = np.quantile(again, [0.025, 0.975]) - np.mean(again) + value
    return value, low, high


label = torch.arange(200) % 10
networks = {f"我们的，第 {STEPS // 2} 步，{name}": network for name, network in early.items()}
candidates = {name: ddim(eps_of(n, label), pure_noise(200, 1), every_50th)[-1] for name, n in networks.items()}
candidates |= {f"我们的，第 {STEPS} 步，平均": ours, "自带网络": samples}
candidates |= {"训练数字的副本": train_images[:200]}
distances = {name: interval_of_distance(features_of(images)) for name, images in candidates.items()}
floor_200 = curve_of(real, [200], times=50)[0]
print("弗雷歇距离（95 % 置信区间），各 200 张图像")
for name, (value, low, high) in distances.items():
    print(f"{value:5.2f}（{low:5.2f} 到 {high:5.2f}）  {name}")
print(f"{floor_200:5.2f}                   {'下限：200 个真实训练数字'}")

# %% [markdown]
# 从表中可以看出：
#
# * 在第 1,000 步，平均权重比原始权重好：21.66<!--out--> 对 50.33<!--out-->，而且两个区间相距很远。正是在这一步，第 9 节发现平均权重的损失更低。（再说一次，这只是一次训练。）
# * 我们的短训练结束时，距离为 10.25<!--out-->，仍远高于下限 1.31<!--out-->。自带网络为 2.15<!--out-->。它的区间从 1.31<!--out--> 开始，所以 200 个样本几乎不能断定它与真实数字有没有差别。用 1,000 个样本，差别就很清楚：距离是 1.02<!--results-->，下限是 0.30<!--results-->。
# * 副本这一行是一个警告。训练数字的*副本*达到了下限，所以这种距离发现不了照搬。正因为如此，第 10 节先检查了有没有照搬。
#
# **问题。** 一个模型画的数字都很完美，但从不画 8。弗雷歇距离能发现吗？与最近训练图像的距离呢？
#
# <details><summary>答案</summary>
#
# 弗雷歇距离能发现：没有 8，特征的均值和协方差都会改变。与最近训练图像的距离发现不了，因为它逐个检查样本。
#
# </details>
#
# 如果有 MNIST 的全部 70,000 张图像，`python -m common.evaluate 01_ddpm_mnist/pretrained --data mnist` 可以用更多样本测量自带网络。如果没有，同一条命令加上 `--data mnist-10k`，就使用随课程提供的图像。

# %% [markdown]
# ## 现在你能够
#
# * 写出前向过程、算法 1 和算法 2、带时间嵌入和类别嵌入的 U-Net，以及带 EMA 的训练循环。
# * 推导闭式表达式、后验分布 $q(x_{t-1}|x_t,x_0)$，以及由证据下界得到的损失；说明每一处近似是什么。
# * 在噪声的预测、干净图像的预测和分数之间换算；用朗之万步采样。
# * 读懂 DDPM 论文的方法部分。
# * 评估样本：用眼睛看，查最近的训练图像，用带下限和区间的弗雷歇距离。
#
# ### 本章的公式
#
# | | 公式 | 论文 |
# |---|---|---|
# | 前向一步 | $x_t = \sqrt{1-\beta_t}\,x_{t-1} + \sqrt{\beta_t}\,\varepsilon_t$ | DDPM，式 2 |
# | 调度 | $\bar\alpha_t = (1-\beta_1)\cdots(1-\beta_t)$，$\;\mathrm{SNR} = \bar\alpha_t/(1-\bar\alpha_t)$ | |
# | 闭式表达式 | $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$ | DDPM，式 4 |
# | 由噪声得到干净图像 | $\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\hat\varepsilon)/\sqrt{\bar\alpha_t}$ | DDPM，式 15 |
# | 理想预测 | $\mathbb{E}[\varepsilon\,\vert\,x_t]$；有限集时 $\mathbb{E}[x_0\,\vert\,x_t] = \sum_i w_i x_0^{(i)}$ | |
# | 后验分布 | 均值 $\frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}x_0 + \frac{\sqrt{1-\beta_t}(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}x_t$，方差 $\tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\beta_t$ | DDPM，式 7 |
# | DDPM 的一步 | $x_{t-1} = \frac{1}{\sqrt{1-\beta_t}}\big(x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\hat\varepsilon\big) + \sqrt{\tilde\beta_t}\,z$ | DDPM，式 11 和算法 2 |
# | DDIM 的一步 | $x_s = \sqrt{\bar\alpha_s}\,\hat x_0 + \sqrt{1-\bar\alpha_s}\,\hat\varepsilon$ | DDIM，式 12 |
# | 步长重采样的链 | $\beta_k = 1 - \bar\alpha_{t_k}/\bar\alpha_{t_{k-1}}$ | Nichol & Dhariwal，式 19 |
# | 损失 | $L_{\text{simple}} = \mathbb{E}\,\vert\varepsilon - \varepsilon_\theta(x_t,t)\vert^2$ | DDPM，式 14，算法 1 |
# | 分数，Tweedie 公式 | $\nabla\log p_t(x_t) = -\mathbb{E}[\varepsilon\vert x_t]/\sqrt{1-\bar\alpha_t}$，$\;\mathbb{E}[x_0\vert x_t] = \big(x_t + (1-\bar\alpha_t)\nabla\log p_t\big)/\sqrt{\bar\alpha_t}$ | Efron 2011 |
# | 朗之万步 | $x \leftarrow x + \frac{\delta}{2}\nabla\log p_t(x) + \sqrt{\delta}\,z$ | Song & Ermon 2019 |
# | 嵌入 | $\phi_i = t/10000^{i/h}$；$\;e = \mathrm{MLP}(\sin\phi, \cos\phi) + E_c$ | Vaswani et al.，3.5 |
# | EMA | $\bar\theta \leftarrow d\,\bar\theta + (1-d)\,\theta$ | |
# | 弗雷歇距离 | $\vert\mu_1-\mu_2\vert^2 + \mathrm{Tr}\big(C_1+C_2-2(C_1C_2)^{1/2}\big)$ | Heusel et al. 2017 |
#
# ### 延伸阅读
#
# * [Ho, Jain & Abbeel 2020](https://arxiv.org/abs/2006.11239)，*Denoising Diffusion Probabilistic Models*：本章的论文。它第 2 节和第 3 节的符号，现在你全都认识。
# * [Sohl-Dickstein et al. 2015](https://arxiv.org/abs/1503.03585)，*Deep Unsupervised Learning using Nonequilibrium Thermodynamics*：最早的扩散模型。
# * [Song & Ermon 2019](https://arxiv.org/abs/1907.05600)，*Generative Modeling by Estimating Gradients of the Data Distribution*：同样的模型，从分数出发。
# * [Nichol & Dhariwal 2021](https://arxiv.org/abs/2102.09672)，*Improved Denoising Diffusion Probabilistic Models*：余弦调度、步长重采样、学习方差。
# * [Luo 2022](https://arxiv.org/abs/2208.11970)，*Understanding Diffusion Models: A Unified Perspective*：所有推导，步步详细。
#
# ### 接下来
#
# 可以在这个笔记本里试一试，每项只需改一两个词：
#
# * 用 `ddim` 采样，取 5、10 或 20 步。从多少步起看不出差别？
# * 在第 7 节的训练中，把所有标签设成同一个数。网络画出什么？对其他标签又画出什么？
# * 把 `train_images[:50]` 当作理想网络的列表，看看它在 $t = 700$ 的预测。
# * 在第 1 节使用线性调度。
#
# 然后自己动手写。十九道[练习](exercises/README.zh.md)分三级：写公式、找错误、达到目标。`python -m common.grade 01` 给练习评分，`python -m common.grade 01 --hint 2` 显示提示。
#
# [train.py](train.py) 训练更大的网络，带进度条：`--data` 可以是 `mnist`、`fashion_mnist`、`cifar10`、`flowers102`，或者你自己的图片文件夹。它默认预测 $v$，因为在我们的测试中这样学得最快（`--prediction eps` 则与本章的训练方式相同）。加上 `--class-conditional`，网络会学习标签，再用 `sample.py --label 3` 指定一个。中断的训练用 `--resume RUN` 继续。全部命令见[程序一览](../docs/programs.zh.md#第-1-章)。
#
# 下一章，你将用文字描述要画什么。
