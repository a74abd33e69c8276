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
# # 第 4 章 · 潜在扩散：一个小型 Stable Diffusion
#
# [English](lesson.ipynb) · 中文
#
# 第 1 章到第 3 章的扩散模型在像素上工作，而像素很贵：边长加倍，数就变成四倍，采样器的每一步都是如此。
# 这些数大多是多余的，因为相邻的像素很相似。
#
# 因此，**潜在扩散**（latent diffusion，[Rombach et al. 2022](https://arxiv.org/abs/2112.10752)）使用两个模型。
# **自编码器**（autoencoder）把图像压缩成较少的数，即**潜变量**（latents），再由潜变量重建图像。扩散模型则生成潜变量，从不接触像素。
# 以文本为条件，这就是 Stable Diffusion。本章的模型很小，但组成部分和文件格式都与它相同。
#
# 在本章中，你将
#
# 1. 编码一张图像，观察潜变量，再解码；
# 2. 测量像素在时间和内存上的代价；
# 3. 推导**变分自编码器**（variational autoencoder，VAE），并弄清楚它为什么要靠第二个模型来生成；
# 4. 训练一个图像自编码器；
# 5. 在压缩率与质量之间取舍；
# 6. 看看潜变量里有什么；
# 7. 测量**缩放因子**（scaling factor）；
# 8. 给潜变量加噪声；
# 9. 写出潜在扩散的训练与采样；
# 10. 由文本生成图像，并数一数提示词起了多少作用；
# 11. 从一张图像而不是从噪声开始：**图生图**（img2img）；
# 12. 用 `diffusers` 打开同一个文件夹；
# 13. 比较缓存潜变量与训练时编码。
#
# 你应当已经读过第 1 章和第 2 章。全部代码在笔记本电脑的 CPU 上运行，无需下载，CPU 时间不到六分钟。
# 全部术语的中英对照见[术语表](../docs/glossary.md)。
#
# > **记号**：$x$ 是图像，$z$ 是它的潜变量。编码器 $q_\phi(z\,|\,x)$、解码器 $p_\theta(x\,|\,z)$ 和先验
# > $p(z) = \mathcal{N}(0, I)$ 是第 3 节中的密度。$z_0$ 是干净的潜变量，已缩放到单位方差，而
# > $$z_t = \sqrt{\bar\alpha_t}\, z_0 + \sigma_t\, \varepsilon \qquad\text{其中}\qquad \sigma_t = \sqrt{1-\bar\alpha_t}$$
# > 是加噪的潜变量，与第 1 章和第 2 章相同，只是把 $x$ 换成 $z$。$f$ 是编码器把图像边长缩小的倍数，$c$ 是潜变量的通道数。

# %%
from common.grade.chapter import open_chapter  # 找不到 common 模块？请选择本课程的内核（README.zh.md）

CHAPTER = open_chapter("04_latent_sd 中文")  # 本章的文件夹；从这里开始可以导入其中的文件

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
MODEL = CHAPTER / "pretrained"  # 本章自带的模型；换成你自己训练的结果也可以


def random(*shape, seed=0):
    """标准正态噪声，每次运行都相同。"""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# %% [markdown]
# ## 1 · 编码、观察、解码
#
# 我们打开模型，取四张训练时没有见过的图像，让它们通过自编码器。

# %%
pipeline = open_latent_diffusion(MODEL)
vae, net, schedule, encoder = pipeline.vae, pipeline.unet, pipeline.schedule, pipeline.text_encoder
f, c, size = vae.cfg.factor, vae.cfg.latent_channels, pipeline.size  # f，潜变量的通道数，边长的像素数
side = size // f  # 潜变量每边的位置数
SHOWN = 6 if size <= 64 else 3  # 较大的图的列数

test = {name: to_float(load(name, size, split="test", n=32).pixels) for name in ("creatures", "dishes")}
x = torch.cat([test["creatures"][:2], test["dishes"][:2]])  # (4, 3, S, S)，取值在 [-1, 1]
with torch.no_grad():
    z = vae.scale(vae.encode(x).mode())  # 编码：(4, c, S / f, S / f)
    y = vae.decode(vae.unscale(z)).clamp(-1, 1)  # 解码：(4, 3, S, S)


def enlarged(z, channel):
    """把潜变量的一个通道画成与 x 同样大小的灰度图：达到 2.5 个标准差就是黑或白。"""
    grey = (z[:, channel : channel + 1] / (2.5 * z[:, channel].std())).clamp(-1, 1)
    return F.interpolate(grey, scale_factor=float(f)).expand(-1, 3, -1, -1)


print(f"图像 {tuple(x.shape[1:])}：{x[0].numel():,} 个数")
print(f"潜变量 {tuple(z.shape[1:])}：{z[0].numel():,} 个数，是图像的 {x[0].numel() / z[0].numel():.0f} 分之一")
rows = [x, *(enlarged(z, i) for i in range(c)), y, (3 * (y - x)).clamp(-1, 1)]
show_images(torch.cat(rows), 4, down=["图像", *(f"潜变量通道 {i + 1}" for i in range(c)), "解码", "差别\n（3 倍）"])

# %% [markdown]
# 边长缩小到 $f$ 分之一，通道不是三个而是 $c$ 个。潜变量看起来像同一场景的奇怪小图：每个位置代表一块 $f \times f$ 的像素。
# 解码器把它们变回图像，与原图很接近。
#
# **问题**：哪里的差别最大（灰色表示没有差别）？
#
# <details><summary>答案</summary>
#
# 在食物的细小纹理上：米粒、叶子、种子。其次是边缘和眼睛之类的小部位；大片的纯色几乎能精确重建。
# 自编码器不能重建的内容，扩散模型也不能生成，因为它没有对应的潜变量。
#
# </details>
#
# 误差通常用**峰值信噪比**（peak signal-to-noise ratio，PSNR）来衡量，单位是分贝。$[-1, 1]$ 内的图像，取值范围（峰值）是 2：
#
# $$\mathrm{PSNR} = 10 \log_{10} \frac{2^2}{\text{均方误差}} \tag{1}$$
#
# 20 dB 时，误差是取值范围的十分之一；再多 6 dB，误差就减半。作为对照，我们用一种简单的压缩，数的个数相同：把图像缩小，再放大。


# %%
def psnr(x, y):
    """公式 (1)，逐张图像计算。两个 (N, 3, S, S) -> (N,)"""
    return 10 * torch.log10(4 / (x - y).square().mean((1, 2, 3)))


def shrunk(x, n):
    """缩小到 n x n 像素，再放大。"""
    return F.interpolate(F.interpolate(x, n, mode="area"), x.shape[-1], mode="bicubic").clamp(-1, 1)


same_size = round((c * side**2 / 3) ** 0.5)  # 与潜变量的数一样多的 RGB 图像，边长的像素数
for name, images in test.items():
    found = psnr(images, pipeline.decode(pipeline.encode(images)))
    print(
        f"{name:10} 自编码器 {found.mean():.2f} dB（{len(images)} 张中最差 {found.min():.2f}），"
        f"缩小到 {same_size} x {same_size} 像素 {psnr(images, shrunk(images, same_size)).mean():.2f} dB"
    )

# %% [markdown]
# 数的个数相同，编码器比缩小图像好得多。自编码器的 PSNR 是后面一切结果的上限，也是评估潜在扩散模型时首先要测的量。

# %% [markdown]
# ## 2 · 像素的代价
#
# 我们用四张图像，测量三个网络训练一步（前向和反向）的时间：潜变量上的 U-Net；在像素上的同一个 U-Net；
# 以及一个更公平的像素 U-Net，它多两级下采样，使注意力在低分辨率上运行。
# 我们还统计**激活值**（activations），也就是前向传播必须为反向传播保存的全部字节。它们随批量增大，所以决定了内存能容纳多大的批量。

# %%
from common.models.unet import UNet
from common.models.unet_config import text_unet

widths, words = net.cfg.channels, random(4, encoder.length, encoder.dim)
candidates = {
    "潜变量，本章的网络": text_unet(side, c, widths, encoder.dim),
    "像素，用同一个网络": text_unet(size, 3, widths, encoder.dim),
    "像素，多下采样两级": text_unet(size, 3, (*widths, widths[-1], widths[-1]), encoder.dim),
}
costs = {
    name: step_cost(UNet(cfg), random(4, cfg.in_channels, cfg.size, cfg.size), words)
    for name, cfg in candidates.items()
}
print(f"{'用 4 张图像，训练一步':23}{'秒':>9}{'倍数':>6}{'激活值':>11}{'倍数':>6}")
for name, (seconds, kept) in costs.items():
    ratios = seconds / costs["潜变量，本章的网络"][0], kept / costs["潜变量，本章的网络"][1]
    print(f"{name:23}{seconds:>10.3f}{ratios[0]:>8.1f}{kept / 1e6:>11.1f} MB{ratios[1]:>8.1f}")

# %% [markdown]
# （秒数取决于运行笔记本的机器；字节是数出来的，与机器无关。）
#
# **问题**：图像的位置数是潜变量的 $f^2$ 倍。为什么第二行慢了不止 $f^2$ 倍？
#
# <details><summary>答案</summary>
#
# 注意力把每个位置与其他每个位置相比较，所以位置数变成 $f^2$ 倍，位置对就变成 $f^4$ 倍。在第二行中，注意力占了大部分时间。
# 第三行避免了这一点，是更公平的比较：它的代价仍是潜变量的几倍。
#
# </details>
#
# 自编码器也有代价。训练时，每张图像要经过编码器一次；采样时，每张图像要经过解码器一次。但是采样器要评估 U-Net 20 次或 50 次。

# %%
with torch.no_grad():
    parts = {
        "编码一次": lambda: vae.encode(x),
        "评估一次 U-Net": lambda: net(z, torch.full((4,), 500.0), text=random(4, *words.shape[1:])),
        "解码一次": lambda: vae.decode(z),
    }
    for name, work in parts.items():
        work()
        began = time.perf_counter()
        work()
        print(f"{name:16} 每张图像 {1000 * (time.perf_counter() - began) / 4:6.1f} 毫秒")

# %% [markdown]
# ## 3 · 变分自编码器
#
# 自编码器由两个网络组成。**编码器**（encoder）把图像映射成少数几个数 $z$，解码器把 $z$ 映射成图像 $y$，两者一起训练，使 $y$ 接近输入 $x$。
# 要看出还缺什么，我们取最小的例子：scikit-learn 的 $8 \times 8$ 像素数字，只用两个潜变量，这样每张图像就是平面上的一个点。
#
# ### 每张图像对应一个分布
#
# 变分自编码器（[Kingma & Welling 2014](https://arxiv.org/abs/1312.6114)）把图像编码成正态分布，每个潜变量有一个均值 $\mu$ 和一个标准差 $s$：
#
# $$q_\phi(z\,|\,x) = \mathcal{N}\big(z;\; \mu(x),\; s(x)^2\big) \qquad\qquad z = \mu(x) + s(x)\,\varepsilon \quad\text{其中}\quad \varepsilon \sim \mathcal N(0, I) \tag{2}$$
#
# 解码器必须由每一个可能的 $z$ 重建图像，所以平面上相邻的点必须表示相似的图像。
# (2) 的右边就是**重参数化技巧**（reparameterisation trick）：随机性放在单独的输入 $\varepsilon$ 中，
# $z$ 就是 $\mu$ 和 $s$ 的普通函数，梯度可以通过它。我们在答案已知的地方检验。$z^2$ 的均值是 $\mu^2 + s^2$，所以导数是 $2\mu$ 和 $2s$。

# %%
mu, s = torch.tensor(0.7, requires_grad=True), torch.tensor(0.5, requires_grad=True)
(mu + s * random(100_000)).square().mean().backward()
print(f"用重参数化技巧：        d/dmu {mu.grad:.3f}（理论值 {2 * mu:.3f}），d/ds {s.grad:.3f}（理论值 {2 * s:.3f}）")
mu.grad, s.grad = None, None
torch.normal(mu.expand(1000), s.expand(1000)).square().mean().backward()
print(f"用 torch.normal(mu, s)：d/dmu {mu.grad:.3f}，d/ds {s.grad:.3f}")

# %% [markdown]
# `torch.normal` 从相同的分布中抽样，编码器却不能从中学到任何东西。
#
# ### 损失从何而来
#
# VAE 是一个生成模型：从先验 $p(z) = \mathcal{N}(0, I)$ 中抽取 $z$，解码，再给像素加上标准差为 $r$ 的少量噪声。
# 所以 $p_\theta(x\,|\,z) = \mathcal{N}(x;\, y(z),\, r^2 I)$，其中 $y(z)$ 是解码器的输出。
# 它的密度 $p_\theta(x) = \int p_\theta(x\,|\,z)\,p(z)\,dz$ 无法计算，但有与第 1 章相同的界，只是用单个潜变量 $z$ 代替 $x_{1:T}$。
# 乘以 $q_\phi(z\,|\,x)$ 再除以它，并用詹森不等式：
#
# $$-\log p_\theta(x) = -\log \mathbb{E}_q\!\left[\frac{p_\theta(x\,|\,z)\,p(z)}{q_\phi(z\,|\,x)}\right] \;\le\; \mathbb{E}_q\!\left[-\log\frac{p_\theta(x\,|\,z)\,p(z)}{q_\phi(z\,|\,x)}\right] =: L$$
#
# $-L$ 就是**证据下界**（evidence lower bound，ELBO）。把对数拆开：含 $p_\theta(x\,|\,z)$ 的部分是平方误差，
# 其余部分是 KL 散度（Kullback–Leibler divergence）$D_{\mathrm{KL}}(q\,\|\,p) = \mathbb{E}_q[\log(q/p)]$：
#
# $$L = \underbrace{\frac{1}{2 r^2}\,\mathbb{E}_q\, |x - y(z)|^2}_{\text{重建}} \;+\; \underbrace{D_{\mathrm{KL}}\big(q_\phi(z\,|\,x)\,\|\,p(z)\big)}_{\text{存入 } z \text{ 的信息}} \;+\; \text{常数} \tag{3}$$
#
# 差距有多大？$L + \log p_\theta(x) = D_{\mathrm{KL}}\big(q_\phi(z\,|\,x)\,\|\,p_\theta(z\,|\,x)\big)$：
# 代入 $p_\theta(x\,|\,z)\,p(z) = p_\theta(z\,|\,x)\,p_\theta(x)$ 即可看出。所以编码器近似的是解码器的后验分布。
#
# 对正态分布 (2)，KL 散度有闭式表达式。对一个潜变量，略去相同的常数，$-\log q = \frac{(z-\mu)^2}{2s^2} + \log s$，$-\log p = \frac{z^2}{2}$。
# 在 $q$ 之下，$(z-\mu)^2$ 的均值是 $s^2$，$z^2$ 的均值是 $\mu^2 + s^2$。于是
#
# $$D_{\mathrm{KL}} = \mathbb{E}_q[\log q - \log p] = -\tfrac12 - \log s + \tfrac12(\mu^2 + s^2) = \tfrac12\left(\mu^2 + s^2 - 1 - \log s^2\right) \tag{4}$$
#
# 再对所有潜变量求和。单位是奈特（nat），等于 1.44<!--given--> 比特。下面用**蒙特卡洛方法**（Monte Carlo）检验，即对 $q$ 的样本求 $\log q - \log p$ 的平均：

# %%
from common.models.vae import Gaussian

posterior = Gaussian(torch.tensor([[1.2]]), torch.tensor([[0.4]]).square().log())  # 均值，方差的对数
q, p = torch.distributions.Normal(1.2, 0.4), torch.distributions.Normal(0, 1)
z = posterior.sample(random(100_000, 1))
print(f"公式 (4)：{float(posterior.kl()):.3f} 奈特，蒙特卡洛：{float((q.log_prob(z) - p.log_prob(z)).mean()):.3f}")

# %% [markdown]
# ### 权重 β
#
# 实际使用时，KL 散度带有一个权重：
#
# $$\text{损失} = \frac{1}{2 r^2}\,|x - y(z)|^2 \;+\; \beta\; D_{\mathrm{KL}}\big(q_\phi(z\,|\,x)\,\|\,\mathcal{N}(0, I)\big) \tag{5}$$
#
# 将 (5) 除以 $\beta$，第一个系数就变成 $\frac{1}{2 (\sqrt\beta\, r)^2}$。所以 (5) 的最小值点，就是解码器的像素噪声为 $\sqrt\beta\, r$ 时界 (3) 的最小值点：
# 选择 $\beta$，就是选择像素要重建得多精确。
#
# > **论文中的写法**：(4) 是 Kingma & Welling 的附录 B，重参数化在他们的第 2.4 节。权重 $\beta$ 来自 β-VAE（[Higgins et al. 2017](https://openreview.net/forum?id=Sy2fzU9gl)）。
#
# 我们训练三个自编码器，各有两个潜变量：$\beta = 0$、1 和 100。

# %%
digits = load("digits")
x_digits, labels = digits.batch(torch.arange(len(digits)))["image"].flatten(1), digits.labels  # (N, 64), (N,)
x_held_out = load("digits", split="test").batch(torch.arange(299))["image"].flatten(1)  # 未参与训练
R, BETAS = 0.4, (0, 1, 100)


def train_vae(beta, latents, steps=1000):
    """数字的自编码器，潜变量个数由参数给出。返回 encode (x -> q) 与 decode (z -> y)。"""
    torch.manual_seed(0)
    to_q = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 2 * latents))
    decode = nn.Sequential(nn.Linear(latents, 128), nn.SiLU(), nn.Linear(128, 64))
    optimizer = torch.optim.Adam([*to_q.parameters(), *decode.parameters()], 3e-3)
    for _ in range(steps):
        x = x_digits[torch.randint(len(x_digits), (128,))]
        q = Gaussian(*to_q(x).chunk(2, 1))  # 均值与方差的对数
        y = decode(q.sample(torch.randn(128, latents)))
        loss = ((x - y).square().sum(1) / (2 * R**2) + beta * q.kl()).mean()  # (5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.no_grad()(lambda x: Gaussian(*to_q(x).chunk(2, 1))), torch.no_grad()(decode)


plane = {beta: train_vae(beta, latents=2) for beta in BETAS}
show_codes({beta: encode(x_digits) for beta, (encode, _) in plane.items()}, labels)

# %% [markdown]
# 每个点是一个数字的均值 $\mu$；训练网络时没有用到标签。黑色小椭圆是一部分后验分布 $q_\phi(z\,|\,x)$（一个标准差），
# 虚线圆包含先验 $\mathcal{N}(0, I)$ 的 95 %。请注意坐标轴的刻度。
#
# * **$\beta = 0$**：编码不受任何限制。它们散布到圆外很远的地方，后验分布缩成了点。
# * **$\beta = 1$**：后验分布一个挨着一个，合起来填满了圆。
# * **$\beta = 100$**：信息太贵了。所有后验分布都变成了先验，$z$ 不再含有 $x$ 的任何信息，解码器只能用所有数字的平均来回答。
#   这就是**后验坍缩**（posterior collapse）。
#
# ### 它能生成吗？
#
# 生成的方法是从 $\mathcal{N}(0, I)$ 中抽取 $z$，再解码。两个潜变量太少，画不出好的数字，所以我们再训练三个有八个潜变量的自编码器。
# 除了看图，我们还测量一个距离：2,000 个样本与训练数字之间的弗雷歇距离（见第 1 章），直接在像素上计算。最后一行是另外一批真实数字得到的距离。

# %%
from common.evaluate.distances import Frechet

to_training_digits = Frechet(x_digits.double())
eight = {beta: train_vae(beta, latents=8) for beta in BETAS}
noise = random(2000, 8, seed=1)
rows = []
print(f"{'beta':>6}{'像素误差':>10}{'KL（奈特）':>7}{'编码的标准差':>12}{'后验的标准差':>14}{'样本的弗雷歇距离':>22}")
for beta, (encode, decode) in eight.items():
    q = encode(x_held_out)
    reconstructed, samples = decode(q.sample(random(299, 8))), decode(noise)
    error, std = (reconstructed - x_held_out).square().mean().sqrt(), (q.logvar / 2).exp().mean()
    print(
        f"{beta:>6}{error:>14.3f}{q.kl().mean():>11.2f}{q.mean.std():>18.2f}{std:>20.3f}"
        f"{to_training_digits(samples.double()):>30.2f}"
    )
    rows += [x_held_out[:12], reconstructed[:12].clamp(-1, 1), samples[:12].clamp(-1, 1)]
print(f"其他真实数字{to_training_digits(x_held_out.double()):>87.2f}")
names = [f"β = {beta}，{what}" for beta in BETAS for what in ("真实", "重建", "采样")]
show_images(torch.cat(rows).view(-1, 1, 8, 8), 12, down=names)

# %% [markdown]
# **问题**：哪个 $\beta$ 重建得最好？哪个采样得最好？为什么不是同一个？
#
# <details><summary>答案</summary>
#
# $\beta = 0$ 的像素误差最小，样本的距离却是 16<!--out-->。编码的标准差大于 2<!--out-->，而在八维空间里，$\mathcal{N}(0, I)$ 的样本很少碰到这些编码，
# 所以交给解码器的点，它在训练中从未见过。$\beta = 1$ 时，距离降到 1.9<!--out-->，像素误差则上升。$\beta = 100$ 时发生坍缩：所有样本都是同一个平均数字。
#
# </details>
#
# ### 本章思想的缩影
#
# 要重建得好，$\beta$ 就要小；要从 $\mathcal{N}(0, I)$ 采样，它就要大。潜在扩散不作这样的选择：它取很小的 $\beta$，再用第二个模型**学习编码的分布**。
# 这里的第二个模型，是八个数的扩散模型，训练方法与第 1 章和第 2 章相同，训练数据是 $\beta = 0$ 的自编码器的编码。
# 作为最简单的对照，我们还用编码的均值和协方差拟合一个正态分布。

# %%
encode, decode = eight[0]
codes = encode(x_digits).mean
mean, std = codes.mean(0), codes.std(0)
z0_digits = (codes - mean) / std  # 方差为 1，见第 7 节

torch.manual_seed(0)
denoiser = nn.Sequential(nn.Linear(8 + 16, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 8))
frequencies = torch.arange(1, 9) * math.pi / 2


def predict_v(z_t, angle):
    """编码 z_t (B, 8) 的 v，噪声水平为 sqrt(alpha_bar) = cos(angle)，sigma = sin(angle)，其中 angle (B, 1)。"""
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
    for angle, then in pairwise(torch.linspace(math.pi / 2, 0, 51)):  # 50 步的 DDIM
        v = predict_v(z_t, angle.expand(len(z_t), 1))
        z0, eps = angle.cos() * z_t - angle.sin() * v, angle.sin() * z_t + angle.cos() * v
        z_t = then.cos() * z0 + then.sin() * eps

root = torch.linalg.cholesky(torch.cov(codes.T))
sampled = {
    "z 取自标准的正态分布 N(0, I)": decode(noise),
    "z 取自拟合的正态分布": decode(mean + noise @ root.T),
    "z 取自学到的扩散模型": decode(mean + std * z_t),
}
for name, y in sampled.items():
    print(f"{name:19} 弗雷歇距离 {to_training_digits(y.double()):6.2f}")
show_images(torch.cat([y[:12].clamp(-1, 1) for y in sampled.values()]).view(-1, 1, 8, 8), 12, down=list(sampled))

# %% [markdown]
# 同一个解码器，三种选取 $z$ 的方法。拟合的正态分布好于 $\mathcal{N}(0, I)$，但十种数字的编码并不是一团正态的云。
# 扩散模型学到了它们的形状，它的样本最接近真实数字：距离为 1.0<!--out-->，而 $\beta = 1$ 的 VAE 是 1.9<!--out-->，扩散模型这边的重建也更好。
# 所以有了第二个模型，就不必再作妥协。本章余下的部分在图像上做同样的事。

# %% [markdown]
# ## 4 · 训练一个图像自编码器
#
# 对图像来说，编码器和解码器是卷积网络（[vae.py](../common/models/vae.py)），$z$ 本身也是一张有 $c$ 个通道的小图像。
# 为了在短时间内训练好，我们取 $16 \times 16$ 像素、$f = 2$、一个窄网络，以及 300 只小怪兽和 100 道菜。
#
# 损失是 (5)，两项都取像素值的平均：均方误差，加上 KL 散度的 $\lambda = 10^{-6}$ 倍。与 $\beta = 1$ 时的 (5) 比较：
# $\frac{1}{2r^2} = \frac{1}{\lambda}$，所以 $r = \sqrt{\lambda/2} = 0.0007$，相当于 256 级灰度中一级的十分之一。
# 重建要求得这样精确，编码器想传递多少信息都可以。
#
# 如果解码器无从知道某个细节，那么取所有可能的平均时平方误差最小，而这个平均是模糊的。因此 Stable Diffusion 的自编码器还有另外两项损失。
# 感知损失（perceptual）比较的是某个网络的特征，而不是像素，所以条纹错开一个像素，代价很小。
# 对抗损失（adversarial）训练第二个网络，让它区分真实图像的局部与重建图像的局部。两者都偏好逼真的图像，而不是平均的图像。
# [vae_loss.py](../common/training/vae_loss.py) 实现了这两项（`train_vae.py --perceptual 0.1`、`--adversarial 0.5`）；自带的权重和本节都没有使用。

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
    y, q = small(x, torch.randn(16, 4, 8, 8))  # 编码，按 (2) 抽取 z，解码
    terms = vae_loss(x, y, q, "l2", KL)
    optimizer.zero_grad()
    terms.total.mean().backward()
    nn.utils.clip_grad_norm_(small.parameters(), 1.0)
    optimizer.step()
    history.append((terms.pixels.mean().item(), terms.kl.mean().item()))
    if step in (20, STEPS // 8, STEPS // 3, STEPS):
        with torch.no_grad():
            snapshots[step] = small.decode(small.encode(x_test).mode())
print(f"{STEPS} 步用时 {time.perf_counter() - began:.0f} 秒；{sum(p.numel() for p in small.parameters()):,} 个权重")
for step, y in snapshots.items():
    print(f"第 {step:4} 步：未参与训练的图像的 PSNR 为 {psnr(x_test, y).mean():.1f} dB")
show_images(torch.cat([x_test, *snapshots.values()]), 12, down=["图像", *(f"第 {step} 步" for step in snapshots)])

# %%
pixel_error, kl = np.array(history).T
_, axes = plt.subplots(1, 2, figsize=(9, 2.4), layout="constrained")
for axis, values, label in zip(axes, (pixel_error, kl), ("均方误差", "KL（奈特 / 像素值）"), strict=True):
    axis.plot(values, color="0.85", linewidth=0.5)
    axis.plot(viz.smooth(values, 0.06), label="平滑后")
    axis.set(xlabel="训练步", ylabel=label)
axes[0].set_yscale("log")
axes[0].legend()
plt.show()

# %% [markdown]
# **问题**：亮度、形状、颜色和眼睛，解码器按什么次序学会？KL 散度朝哪个方向变化？
#
# <details><summary>答案</summary>
#
# 先是亮度和大的形状，再是颜色，最后才是眼睛之类的小部位。误差下降的同时，KL 散度上升：要重建得更多，编码器就必须传递得更多，而在这么小的权重下，这几乎不花代价。
#
# 学习率最后降到零，所以这样的曲线到末尾都会变平。末尾平坦，不能证明网络已经达到极限。
#
# </details>

# %% [markdown]
# ## 5 · 压缩多少合适？
#
# $f$ 和 $c$ 决定一张图像用多少个数表示。数越多，重建越好，留给扩散模型的工作也越多。为了看清这种取舍，我们用最好的线性自编码器，它不需要训练：
# 把图像切成 $f \times f$ 像素的小块，保留小块变化最大的 $c$ 个方向（**主成分分析**，principal component analysis）。


# %%
known = joined([load("creatures", size, n=120), load("dishes", size, n=120)])  # 训练图像
x_known, x_all_tests = to_float(known.pixels), torch.cat(list(test.values()))


def linear_autoencoder(f, channels):
    """用训练图像拟合最好的线性编码，对每种通道数，返回测试图像的 PSNR。"""

    def patches(x):
        return F.pixel_unshuffle(x, f).permute(0, 2, 3, 1).flatten(0, 2)  # (N 个位置, 3 f f)

    training, found = patches(x_known), []
    mean = training.mean(0)
    directions = torch.linalg.eigh(torch.cov(training.T)).eigenvectors.flip(1)  # 方差最大的在前
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
    (curve,) = plt.plot(numbers, found, marker="o", markersize=4, label=f"线性，f = {factor}")
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
    label=f"本章的自编码器，f = {f}，c = {c}",
)
plt.axvline(3 * size**2, color="0.7", linestyle=":", label="像素")
plt.gca().set(xscale="log", xlabel="每张图像的数的个数（小字：c）", ylabel="PSNR（dB）")
plt.legend(fontsize=8)
plt.show()
print(f"f = {f}，c = {c}：线性 {linear:.1f} dB，本章的自编码器 {ours:.1f} dB")

# %% [markdown]
# 沿着每条线，通道越多，用的数越多，分贝也越高。数的个数相同时，较大的小块更好，因为块越大，冗余越多。
# 大图像用 $f = 8$ 编码，这是原因之一：Stable Diffusion 用 $4 \times 64 \times 64$ 个潜变量表示 $512 \times 512$ 像素，后来的模型用 16 个通道。
#
# 星号是本章的自编码器。它不局限于线性映射，也不局限于自己的小块，在图中高出 $f$ 和 $c$ 相同的线性编码，高出多少分贝见最后一行输出。

# %% [markdown]
# ## 6 · 潜变量里有什么
#
# 潜变量有 $c$ 个通道。想不用解码器就快速看一眼，可以用最小二乘法，求出从一个位置的各通道到该小块平均颜色的最佳线性映射。
# 许多程序在采样过程中显示这种廉价的**预览**（preview）。

# %%
z_test = pipeline.encode(torch.cat([test["creatures"][:4], test["dishes"][:4]]))  # (8, c, h, w)，已缩放，见第 7 节
z_known = pipeline.encode(x_known)  # (240, c, h, w)


def with_one(z):
    """每个位置的各通道，再加一个“一”。(N, c, h, w) -> (N h w, c + 1)"""
    return F.pad(z.permute(0, 2, 3, 1).flatten(0, 2), (0, 1), value=1.0)


colours = F.avg_pool2d(x_known, f).permute(0, 2, 3, 1).flatten(0, 2)  # (N h w, 3)，每个小块的平均颜色
to_colour = torch.linalg.lstsq(with_one(z_known), colours).solution  # (c + 1, 3)


def preview(z):
    """(N, c, h, w) -> (N, 3, f h, f w)：不用解码器，由潜变量得到近似的图像。"""
    rough = (with_one(z) @ to_colour).view(len(z), *z.shape[2:], 3).permute(0, 3, 1, 2)
    return F.interpolate(rough.clamp(-1, 1), scale_factor=float(f))


decoded = pipeline.decode(z_test)
show_images(torch.cat([preview(z_test), decoded]), 8, down=["预览", "解码"])

# %% [markdown]
# 小怪兽仍在原来的位置：卷积不会移动物体。所以潜变量不是“红色、圆形、蝙蝠翅膀”这样的描述，而是换了坐标的小图像。
# 每个通道代表什么？我们取一张图像，把其中一个通道处处改变它的标准差的 $-3$ 到 $3$ 倍，再解码（**潜变量遍历**，latent traversal）。

# %%
channel_std = z_known.std((0, 2, 3), correction=0)  # (c,)
shifts = torch.linspace(-3, 3, 3)
directions = torch.diag(channel_std)[:, None, :, None, None]  # (c 行, 1, c, 1, 1)
moved = z_test[:1] + shifts.view(-1, 1, 1, 1) * directions  # (c 行, 5, c, h, w)
show_images(
    pipeline.decode(moved.flatten(0, 1)),
    3,
    across=[f"{shift:+g} 倍标准差" for shift in shifts],
    down=[f"通道 {i + 1}" for i in range(c)],
)

# %% [markdown]
# 中间一列就是普通的重建。**问题**：哪些通道改变亮度，哪些改变颜色？有没有哪个通道改变翅膀之类的属性？
#
# <details><summary>答案</summary>
#
# 用这里的权重，有一个通道主要改变亮度，其余每个通道都使所有颜色在两种相反的颜色之间移动，例如绿色与品红，或者蓝色与黄色。
# 哪个通道做什么，是训练中偶然形成的。形状都留在原处，没有哪个通道会增加或去掉一个部位。到 $\pm 3$ 时，解码器超出了训练过的范围，颜色变得极端。
#
# </details>
#
# ### 两张图像的中间
#
# 对第 3 节的平面，你可能会希望：两个数字的中点还是数字。我们比较两种过渡：混合像素（交叉淡化），以及混合潜变量再解码。

# %%
pairs, shares, rows = [(0, 1), (2, 7)], torch.linspace(0, 1, 5).view(-1, 1, 1, 1), []
for a, b in pairs:
    rows += [
        (1 - shares) * decoded[a] + shares * decoded[b],
        pipeline.decode((1 - shares) * z_test[a] + shares * z_test[b]),
    ]
for (a, b), faded, mixed in zip(pairs, rows[::2], rows[1::2], strict=True):
    middle, ends = ((u - v).square().mean().sqrt() for u, v in ((faded[2], mixed[2]), (decoded[a], decoded[b])))
    print(f"中点处，两行相差 {middle:.3f}（均方根）；两张图像相差 {ends:.3f}")
show_images(
    torch.cat(rows),
    5,
    across=[f"{float(share):.2f}" for share in shares.flatten()],
    down=["像素", "潜变量"] * len(pairs),
)

# %% [markdown]
# 混合潜变量看上去比混合像素更清晰，因为哪里有一张图像占优，解码器就在哪里画出清晰的边缘。但两行的中间都是双重曝光，而不是第三只小怪兽：
# 从打印出的数值看，两行之间的差别远小于两张图像之间的差别。$f$ 很小的自编码器只做压缩，不按含义排列图像。第 10 节改为对扩散模型的噪声做插值。

# %% [markdown]
# ## 7 · 缩放因子
#
# 噪声调度以“一”为单位来计量噪声：它假定数据的标准差约为 1。$[-1, 1]$ 内的图像接近这个条件。潜变量则不然，因为 $\beta$ 很小时，它们的大小全凭偶然。
# 所以我们在训练集上测量编码器输出的潜变量的标准差 $d$，再把潜变量乘以**缩放因子** $1/d$（Rombach et al. 2022，附录 G）：

# %%
with torch.no_grad():
    q = vae.encode(x_known)
    raw = q.sample(random(*q.mean.shape))  # 未缩放
print(f"编码器输出的潜变量的标准差 {raw.std():.3f}，所以因子为 {measure_scaling_factor(raw):.4f}")
print(f"与模型一起保存的因子（在整个训练集上测得）：{vae.cfg.scaling_factor:.4f}")
print("缩放后逐个通道：", ", ".join(f"{s:.2f}" for s in vae.scale(raw).std((0, 2, 3))))
for name, images in test.items():
    print(f"缩放后，{name} 的测试图像：{pipeline.encode(images).std():.3f}")
print(f"缩放后，后验分布的平均标准差：{vae.scale((q.logvar / 2).exp()).mean():.3f}")

# %% [markdown]
# 所有通道和所有数据集共用一个因子，没有哪个恰好是 1，但已经足够好。（Stable Diffusion 的因子是 0.18215<!--given-->，所以它的编码器输出的潜变量，标准差大于 5。）
# 最后一行说明，这个 VAE 里的 V 所剩无几：请与第 3 节中 $\beta = 1$ 的后验分布比较。
#
# 不缩放会怎样？如果潜变量的标准差为 $d$，加噪的潜变量就是 $\sqrt{\bar\alpha_t}\, d\, z_0 + \sigma_t\, \varepsilon$，信噪比是调度所假定的 $d^2$ 倍。
# 下面把同样的潜变量取五种大小，都加噪到 $t = 600$，除以 $\sqrt{\bar\alpha_t}\,d$，再解码：

# %%
from common.diffusion.schedules import NoiseLevel, add_noise

sizes, t = (0.1, 0.3, 1.0, 3.0, 10.0), 600
level = NoiseLevel(*(float(part) for part in schedule.at(torch.tensor(t))))
rows, eps = [], random(*z_test[3:5].shape, seed=3)
for d in sizes:
    noisy = add_noise(d * z_test[3:5], eps, level)
    rows.append(pipeline.decode(noisy / (d * level.alpha)))
show_images(torch.cat([decoded[3:5], *rows]), 2, down=["无噪声", *(f"d = {d:g}" for d in sizes)])

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(11, 2.7), layout="constrained")
ts = torch.arange(1, schedule.T + 1)
for d in sizes:
    signal, noise_power = (schedule.alpha[ts] * d) ** 2, schedule.sigma[ts] ** 2
    left.plot(ts, signal / (signal + noise_power), label=f"d = {d:g}")
left.set(xlabel="时间步 t", ylabel="$z_t$ 中信号的比例")
left.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
snr = (schedule.alpha[ts] / schedule.sigma[ts]).square()
useful = [float(((d**2 * snr > 1 / 20) & (d**2 * snr < 20)).double().mean()) for d in sizes]
right.bar([f"{d:g}" for d in sizes], useful)
right.set(xlabel="潜变量的标准差 d", ylabel="有用水平的比例", ylim=(0, 1))
plt.show()
print("有用的噪声水平：", ", ".join(f"d = {d:g} 时 {share:.0%}" for d, share in zip(sizes, useful, strict=True)))

# %% [markdown]
# 如果潜变量与噪声的功率相差不超过 20 倍，我们就说这个水平有用。$d$ 远离 1 时，只有一小部分水平有用。
# 潜变量太大，多数水平几乎不含噪声，而采样从纯噪声开始，这在训练中几乎没有出现过。潜变量太小，几乎所有水平都是纯噪声。
# 忘了缩放因子，只是少了一次乘法，程序不报错，只有看样本才会发现。

# %% [markdown]
# ## 8 · 像素中的噪声与潜变量中的噪声
#
# 同样的噪声水平，加在像素上（第一行），加在潜变量上再解码（第二行），以及加在潜变量上再预览（第三行）。到 $t = 1000$ 时就只剩噪声了。

# %%
moments = (0, 400, 700, 1000)
rows = {"像素": [], "潜变量，解码": [], "潜变量，预览": []}
image, latent = x_all_tests[:1], z_test[:1]
for t in moments:
    level = schedule.at(torch.tensor(t))
    noisy = add_noise(latent, random(*latent.shape, seed=1), level).float()
    rows["像素"].append(add_noise(image, random(*image.shape, seed=1), level).float().clamp(-1, 1))
    rows["潜变量，解码"].append(pipeline.decode(noisy))
    rows["潜变量，预览"].append(preview(noisy))
show_images(
    torch.cat([torch.cat(row) for row in rows.values()]),
    len(moments),
    across=[f"t = {t}" for t in moments],
    down=list(rows),
)

# %% [markdown]
# 潜变量中的噪声看上去不像雪花。解码器从未训练过这样的潜变量，把它们变成了彩色的斑块。这没有害处，因为只有干净的结果才会解码。
#
# 还有第二个差别。大的形状可以从平均值中看出，而 $n$ 个数的平均，噪声缩小到 $\sqrt n$ 分之一。
# 把图像分成 $8 \times 8$ 格求平均，每一格用到的像素很多，用到的潜变量却只有像素的 $f^2$ 分之一。我们在所有测试图像上测量干净的平均值与加噪的平均值之间的相关系数：


# %%
def correlation_of_averages(x, t, parts=8):
    """图像或潜变量 (N, C, H, W) 分块平均之后，干净的与加噪到水平 t 的相关系数。"""
    noisy = add_noise(x, random(*x.shape, seed=5), schedule.at(torch.tensor(t))).float()
    clean, noisy = (F.adaptive_avg_pool2d(y, parts) for y in (x, noisy))
    return np.corrcoef(clean.flatten(), noisy.flatten())[0, 1]


z_all_tests = pipeline.encode(x_all_tests)
for t in (700, 800, 900, 970):
    in_pixels, in_latents = correlation_of_averages(x_all_tests, t), correlation_of_averages(z_all_tests, t)
    print(f"t = {t}：加噪与干净的平均值的相关系数：像素 {in_pixels:.2f}，潜变量 {in_latents:.2f}")

# %% [markdown]
# 所以对同一张图像，同样的调度在潜变量中破坏得比在像素中多：大的形状更早丢失。在同样的水平上，较大的图像能保留更多大的形状，所以要按分辨率调整噪声调度（第 3 章）。

# %% [markdown]
# ## 9 · 在潜变量上训练与采样
#
# 与第 2 章相比，改了什么？只有一行。原来训练取 `x0 = batch["image"]`，现在取潜变量，从各自的后验分布中抽取，再缩放。
# 噪声水平、噪声、随机丢弃文本条件、$v$ 和平方误差都不变。下面用自带的网络，对 32 张图像走一个训练步。

# %%
from common.diffusion.guidance import drop_captions
from common.diffusion.losses import diffusion_loss
from common.random import BatchRandom
from common.training.latents import sample, scaled

chosen = [*range(16), *range(120, 136)]  # 16 只小怪兽和 16 道菜
with torch.no_grad():
    batch = scaled(vae.encode(x_known[chosen]), vae.cfg.scaling_factor)  # 均值与标准差，已缩放
    captions = [known.captions[i] for i in chosen]
    draw = BatchRandom(0, 0)  # 一步所用的随机数
    z0 = sample(batch, draw)  # 1. 潜变量 (B, c, h, w)：mean + std * 噪声   <- 新增
    u = draw.stratified(len(z0))  # 2. 噪声水平
    eps = draw.randn(z0.shape)  # 3. 噪声
    ids, empty = encoder.tokenizer(captions), encoder.tokenizer([""])[0]
    ids = drop_captions(ids, empty, draw.rand(len(z0)))  # 4. 随机丢弃文本条件，下面的比较没有使用
    texts = {"正确的": captions, "空的": [""] * len(z0), "错误的": captions[5:] + captions[:5]}
    print(f"潜变量 {tuple(z0.shape)}，标准差 {z0.std():.2f}")
    for name, some in texts.items():  # 5. 给潜变量加噪，预测 v，与目标比较
        error = diffusion_loss(net, schedule, pipeline.prediction, z0, u, eps, text=encoder(some))
        print(f"{name}描述：损失 {error.mean():.4f}，噪声最大的四分之一水平上 {error[24:].mean():.4f}")

# %% [markdown]
# 与第 2 章一样，正确的描述应使损失最低，在噪声大处最明显。（只有 32 张图像，每张一份噪声，小的差别可能出于偶然。）
#
# 采样在最后多一步：撤销缩放，再解码。下面是全部过程：文本编码器、引导、DDIM、解码器。
# 对 $z_0$ 的预测不截断，因为潜变量没有取值范围的限制。我们与 [pipeline.py](latent_sd/pipeline.py) 比较。

# %%
from common.models.pipeline import SamplingConfig
from common.random import Noise


@torch.no_grad()
def stable_diffusion(prompts, w, steps, z_t):
    """由提示词和噪声 z_t (B, c, h, w) 生成图像 (B, 3, S, S)。"""
    text = torch.cat([encoder([""] * len(z_t)), encoder(list(prompts))])  # (2 B, M, D)
    levels = list(schedule.noise_levels(steps))  # 噪声最大的在前，干净的在后
    for now, then in pairwise(levels):
        both = net(torch.cat([z_t, z_t]), torch.full((2 * len(z_t),), now.time), text=text)
        uncond, cond = both.chunk(2)
        v = uncond + w * (cond - uncond)  # 引导
        z0, eps = now.alpha * z_t - now.sigma * v, now.sigma * z_t + now.alpha * v
        z_t = then.alpha * z0 + then.sigma * eps  # DDIM
    return vae.decode(z_t / vae.cfg.scaling_factor).clamp(-1, 1)  # <- 新增


assert pipeline.prediction == "v"
two, z_t = ["a red fire creature with bat wings", "番茄炒蛋"], Noise(0, 0)(0, torch.empty(2, c, side, side))
mine = stable_diffusion(two, 5.0, 8, z_t)
from_pipeline = pipeline.txt2img(two, SamplingConfig(guidance_scale=5.0, sampler="ddim:8"), latents=z_t)
print(f"本单元格与 pipeline.py 的像素最多相差：{(mine - from_pipeline).abs().max():.1e}")

# %% [markdown]
# ## 10 · 由文本生成图像
#
# 一个模型，两类图像，两种语言：奇数列是英文提示词，偶数列是同样意思的中文提示词。

# %%
from common.data.creatures.attributes import ATTRIBUTES, NAMES
from common.evaluate.creature_classifier import load_creature_classifier, read_attributes
from common.evaluate.prompt_accuracy import chance_accuracy, make_prompts, measure_accuracy
from latent_sd.evaluation import reconstruct

classifier = load_creature_classifier()  # 判断小怪兽的十一个属性，见第 2 章第 9 节
EVALUATIONS = 12  # 采样步数；有引导时，每步评估网络两次


def paint(prompts, w=5.0, **more):
    """每条提示词一张图像，(N, 3, S, S)，取值在 [-1, 1]。无论提示词和 w 是什么，第 i 张图像都从相同的噪声开始。"""
    return pipeline.txt2img(list(prompts), SamplingConfig(guidance_scale=w, sampler=f"dpmpp_2m:{EVALUATIONS}", **more))


def shows(images, **wanted):
    """按分类器的判断，哪些图像具有这些属性。(N,) bool"""
    found = read_attributes(classifier, images)[0]  # (N, 11)，每个属性最可能的取值
    right = [found[:, NAMES.index(name)] == ATTRIBUTES[name].index(value) for name, value in wanted.items()]
    return torch.stack(right).all(0)


def wilson(k, n, z=1.96):
    """比例 k / n 及其 95 % 置信区间（第 2 章公式 10）。"""
    middle, reach = k / n + z**2 / (2 * n), z * math.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    return k / n, (middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)


def share(shown):
    return "{:2} / {} = {:4.0%}（{:.0%} 到 {:.0%}）".format(
        int(shown.sum()), len(shown), *wilson(int(shown.sum()), len(shown))
    )


prompts = [
    "a red fire creature with bat wings", "一只红色的火属性小怪兽，长着蝙蝠翅膀",
    "a blue round creature with cat ears, on a cream background", "一只蓝色圆圆的小怪兽，长着猫耳朵，奶油色背景",
    "stir-fried tomato and eggs", "番茄炒蛋",
    "a bowl of steamed rice on a wooden table", "木桌上的一碗米饭",
]  # fmt: skip
short = ["红色，火，\n蝙蝠翅膀", "同左\n（中文）", "蓝色，圆形，\n猫耳朵", "同左\n（中文）",
         "番茄炒蛋\n（英文）", "同左\n（中文）", "一碗米饭\n（英文）", "同左\n（中文）"]  # fmt: skip
guided = {w: paint(prompts, w) for w in (1.0, 5.0)}
for w, images in guided.items():
    red = shows(images[:2], colour="red", element="fire", wings="bat").tolist()
    blue = shows(images[2:4], colour="blue", body="round", ears="cat", background="cream").tolist()
    print(f"w = {w:g}：描述的属性是否全部出现，第 1 到 4 列 {red + blue}")
show_images(torch.cat(list(guided.values())), 8, short, [f"w = {w:g}" for w in guided])

# %% [markdown]
# 分类器只认识小怪兽，所以菜肴要用眼睛来判断。
#
# **问题**：在米饭的两列中，引导改变了什么？
#
# <details><summary>答案</summary>
#
# $w = 1$ 时，一碗是柔和的白色，另一碗却是黄色的菜，上面有深色的小块：中文提示词没有画出米饭。$w = 5$ 时，两碗都填得很均匀，一碗白，一碗黄。
# 引导夸大了模型对提示词的理解，连错误也一起夸大，还抹去了纹理。引导系数并不是对每条提示词都越大越好。
#
# </details>
#
# ### 引导系数：数一数
#
# 取二十四条描述测试小怪兽的提示词，一半是中文，用四种引导系数。每个这样的数值都应配上两个参照。
# 上面的参照是具有相同描述的真实图像，经过自编码器；下面的参照是真实图像，但描述互相调换。

# %%
N = 24
test_prompts = make_prompts("test", N, "both", size)
counted = {
    "真实图像": measure_accuracy(classifier, test_prompts, test_prompts.real),
    "VAE 重建图像": measure_accuracy(classifier, test_prompts, reconstruct(pipeline, test_prompts.real)),
}
by_scale = {w: paint(test_prompts.captions, w) for w in (0.0, 1.0, 3.0, 8.0)}
counted |= {
    f"引导系数 w = {w:g}": measure_accuracy(classifier, test_prompts, to_bytes(images))
    for w, images in by_scale.items()
}
print(f"{'':28}{'属性准确率':>13}{'95 % 置信区间':>16}")
for name, row in counted.items():
    print(f"{name:24}{row['accuracy']:>18.1%}{row['accuracy_low']:>11.1%} 到 {row['accuracy_high']:.1%}")
print(f"{'描述互换':24}{chance_accuracy(classifier, test_prompts)['accuracy']:>18.1%}")
show_images(torch.cat([images[:SHOWN] for images in by_scale.values()]), SHOWN, down=[f"w = {w:g}" for w in by_scale])

# %% [markdown]
# **问题**：$w = 0$ 与下面的参照一样好吗？自编码器会降低准确率吗？这张表说明哪些引导系数之间有差别？
#
# <details><summary>答案</summary>
#
# $w = 0$ 忽略提示词，所以准确率接近下面的参照；它还可能更低，因为没有提示词时，这个模型也会画菜肴。
# 真实图像经过自编码器，几乎没有损失，所以错误几乎都来自扩散模型。比较置信区间：$w = 1$ 及以上远高于 $w = 0$；
# 而置信区间大幅重叠，就不能说明有差别。`python 04_latent_sd/evaluate.py` 对两类图像各测量 200 条提示词。
#
# $w$ 大时，轮廓变硬，颜色变得极端。在像素上，引导后的预测截断到 $[-1, 1]$；潜变量没有取值范围的限制，所以这里什么也不截断。
#
# </details>
#
# ### 负面提示词：数一数
#
# 负面提示词取代空文本（第 2 章第 10 节）。公平的检验有两个条件：提示词没有规定这个属性，而且不用负面提示词时，这个属性很常见，否则就没有什么可去掉的。
# 同一列的两行从相同的噪声开始。

# %%
PROMPT, NEGATIVE, PROPERTY = "a creature", "a creature on a sky blue background", {"background": "sky"}
rows = {
    "没有负面提示词": paint([PROMPT] * N, 4.0),
    "使用负面提示词": paint([PROMPT] * N, 4.0, negative_prompt=NEGATIVE),
}
print(f"提示词：{PROMPT}；负面提示词：{NEGATIVE}")
for name, images in rows.items():
    print(f"{name:8} {PROPERTY}：{share(shows(images, **PROPERTY))}")
before, after = (read_attributes(classifier, images)[0] for images in rows.values())
changed = (before != after).double().mean(0)
print(
    "噪声相同而改变的比例：",
    ", ".join(f"{name} {value:.0%}" for name, value in zip(NAMES, changed.tolist(), strict=True)),
)
show_images(torch.cat([images[:SHOWN] for images in rows.values()]), SHOWN, down=list(rows))

# %% [markdown]
# **问题**：负面提示词去掉了它所说的东西吗？它还改变了什么？
#
# <details><summary>答案</summary>
#
# 去掉了：用了负面提示词，这种背景就少得多，两个置信区间也不重叠。但它改变的远不止这些。最后一行输出说明，在相同的噪声下，
# 有多少图像的颜色、身体或翅膀与原来不同。凡是负面描述与提示词不同的地方，引导都要远离，并走向其反面，所以许多背景都变成了另外同一种颜色。
# 负面提示词是对整张图像的推力，不是过滤器。
#
# </details>
#
# ### 对噪声插值
#
# 第 6 节混合两张图像，得到的是双重曝光。现在我们混合两份噪声，沿着大圆走（球面线性插值，第 3 章），使长度保持正确，并在每一站用同一条提示词采样。
# 采样器是确定性的，所以相似的噪声给出相似的图像。


# %%
def slerp(a, b, share):
    """在球面上从噪声 a 走到噪声 b。两个 (c, h, w) -> (c, h, w)"""
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


stops, rows = torch.linspace(0, 1, SHOWN).tolist(), []
for prompt, seed in (("a green grass creature", 4), ("番茄炒蛋", 8)):
    a, b = Noise(seed, 0)(0, torch.empty(2, c, side, side))
    config = SamplingConfig(guidance_scale=5.0, sampler=f"dpmpp_2m:{EVALUATIONS}")
    rows.append(pipeline.txt2img([prompt] * SHOWN, config, latents=torch.stack([slerp(a, b, stop) for stop in stops])))
print(f"既是绿色又是草属性：{share(shows(rows[0], colour='green', element='grass'))}")
show_images(torch.cat(rows), SHOWN, [f"{stop:.2f}" for stop in stops], ["绿色\n草属性", "番茄炒蛋"])

# %% [markdown]
# 每一站都是一张独立的图像，而不是双重曝光。自编码器提供了一个数很少的空间，扩散模型则知道其中哪些点是图像。

# %% [markdown]
# ## 11 · 图生图（img2img）
#
# 采样不一定要从噪声开始。先编码一张图像，把噪声加到一半，再从那里起按提示词去噪（SDEdit，[Meng et al. 2022](https://arxiv.org/abs/2108.01073)）。
# **重绘强度**（strength）$s$ 是采样器实际走的步数所占的比例。在 $N$ 步中，走的是最后 $sN$ 步，步数必须取整。
# 本课程四舍五入，`diffusers` 则截断：
#
# $$\text{第一步} = N - \mathrm{round}(sN) \qquad\qquad \texttt{diffusers}\text{：} N - \mathrm{int}(N s) \tag{6}$$

# %%
from latent_sd.pipeline import last_levels

strengths = (0.1, 0.33, 0.5, 0.58, 0.75, 1.0)
print("实际走的步数（本课程 | diffusers）\n" + " " * 8 + "".join(f"{f's = {s:g}':>11}" for s in strengths))
for steps in (15, 20, 50):
    cells = [(len(last_levels(schedule.noise_levels(steps), s)), min(int(steps * s), steps)) for s in strengths]
    print(f"  共 {steps:2} " + "".join(f"{f'{a} | {b}':>11}" for a, b in cells))

# %% [markdown]
# 这里有一个陷阱：$0.58 \cdot 50$ 等于 29，但在二进制浮点数中，它是 `28.999999999999996`，`int` 就把它变成 28。比较两个程序的图像之前，先比较步数。
#
# 取十六只红色的小怪兽和提示词 *a blue creature*（一只蓝色的小怪兽）。对每种重绘强度，分类器数出有多少只变蓝，又有多少只保住了形状，而形状是提示词没有提到的。
# （当然，网络在训练中见过红色和蓝色的小怪兽；重绘强度 0 就是编码再解码。）

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
    print(f"强度 {s:.1f}：蓝色 {share(blue[s])}，身体不变 {share(kept[s])}，PSNR {psnr(x_red, images).mean():.1f} dB")
show_images(
    torch.cat([x_red[:SHOWN], *(images[:SHOWN] for images in results.values())]),
    SHOWN,
    down=["原图", *(f"s = {s:g}" for s in results)],
)

# %%
plt.figure(figsize=(6, 2.8), layout="constrained")
for name, found in {"蓝色，符合提示词": blue, "身体与原来相同": kept}.items():
    values, low, high = np.array([wilson(int(each.sum()), 16) for each in found.values()]).T
    plt.errorbar(list(found), values, (values - low, high - values), marker="o", capsize=3, label=name)
plt.gca().set(xlabel="重绘强度", ylabel="在 16 张图像中的比例", ylim=(-0.03, 1.03))
plt.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# **问题**：你会停在哪种重绘强度？为什么没有一种重绘强度，能使颜色改变而其他一切保持不变？
#
# <details><summary>答案</summary>
#
# 停在第一条曲线已经很高、第二条还没有降多少的地方：这里是 $s = 0.9$，16 只都是蓝色，其中 8 只的身体没有变。$s = 0.8$ 时只有 1 只是蓝色，所以余地很小。原因是颜色和身体都是大尺度的特征：能让颜色改变的噪声，也会抹掉大部分形状（第 8 节）。
# 重绘强度小时，只有细节改变。$s = 1$ 时，图像几乎什么也没有留下，身体相同的比例与任意两只小怪兽差不多（身体共有六种）。
# 第 5 章介绍用其他手段保住形状的方法。
#
# </details>

# %% [markdown]
# ## 12 · 文件夹与 `diffusers`
#
# 模型是一个文件夹，布局与 Stable Diffusion 相同：

# %%
for path in sorted([*MODEL.glob("*.json"), *MODEL.glob("[a-z]*/*")]):
    print(f"{path.relative_to(MODEL)!s:52}{path.stat().st_size / 1e6:>8.2f} MB")

# %% [markdown]
# 所以 `diffusers`（[文档](https://huggingface.co/docs/diffusers)）不了解本课程也能打开它。我们给两个程序相同的提示词、相同的噪声和相同的步数。
# 它们只共用 PyTorch：U-Net、文本编码器、采样器和解码器都是不同的代码。

# %%
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(MODEL)
pipe.set_progress_bar_config(disable=True)
some = [prompts[0], prompts[5], prompts[7]]
z_t = Noise(7, 0)(0, torch.empty(len(some), c, side, side))
ours = pipeline.txt2img(some, SamplingConfig(guidance_scale=5.0, sampler="ddim:10"), latents=z_t)
theirs = 2 * pipe(some, num_inference_steps=10, guidance_scale=5.0, latents=z_t, output_type="pt").images - 1
print(" | ".join(type(part).__name__ for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.scheduler)))
print(f"像素最多相差（取值范围为 2）：{(ours - theirs).abs().max():.1e}")
show_images(torch.cat([ours, theirs]), 3, down=["本课程", "diffusers"])

# %% [markdown]
# 反过来也行：`python 04_latent_sd/sample.py "a castle" --model path/to/stable-diffusion-v1-5` 用本课程的模块，从真正的 Stable Diffusion 中采样。

# %% [markdown]
# ## 13 · 缓存潜变量，还是训练时编码？
#
# 训练 U-Net 时，自编码器不变。所以每张图像只需编码一次，把后验分布的均值和标准差用半精度**缓存**（cache）下来。
# 常有人说，“缓存潜变量占用磁盘但节省时间，训练时编码则需要工作进程”（[出处与测量](../docs/claims.zh.md#缓存潜变量占用磁盘节省时间)）。
#
# 文件名是一个哈希值，由潜变量所依赖的一切算出：自编码器的权重、配置和全部像素。换了自编码器，缓存的名字就不同，所以不会误用。
# 我们对两种方式各测量一轮中等待潜变量的时间。

# %%
from latent_sd.latent_dataset import OnTheFly, cached_latents, start_method, training_order

folder = tempfile.TemporaryDirectory()  # 随笔记本一起删除
began = time.perf_counter()
data = cached_latents(vae, known, Path(folder.name))
seconds_to_make, bytes_of_file = time.perf_counter() - began, data.path.stat().st_size
print(
    f"制作用时 {seconds_to_make:.2f} 秒；{bytes_of_file / 1e6:.2f} MB，是像素字节数的 {bytes_of_file / known.pixels.numel():.2f} 倍"
)

changed = AutoencoderKL(vae.cfg).eval()
changed.load_state_dict(vae.state_dict())
with torch.no_grad():
    changed.quant_conv.bias[0] += 0.01
other = cached_latents(changed, known, Path(folder.name)).path.name
print("改动一个权重，名字是否不同：", other != data.path.name)
changed.load_state_dict(vae.state_dict())
changed.cfg = replace(vae.cfg, scaling_factor=2 * vae.cfg.scaling_factor)
other = cached_latents(changed, known, Path(folder.name)).path.name
print("只改缩放因子，名字是否不同：", other != data.path.name)


def epoch(source, order):
    """分批取完所有潜变量所用的秒数，以及最后一批。"""
    began = time.perf_counter()
    for _ in range(len(known) // 24):
        batch = source.batch(next(order))
    return time.perf_counter() - began, batch


(seconds_file, a), (seconds_live, b) = (
    epoch(source, training_order(len(known), 24, seed=0)) for source in (data, OnTheFly(vae, known))
)
print(f"{len(known)} 张图像的一轮：缓存 {1000 * seconds_file:.1f} 毫秒，训练时编码 {1000 * seconds_live:.1f} 毫秒")
print(f"潜变量最多相差：{(a['latent'] - b['latent']).abs().max():.1e}（缓存是半精度）")

# %% [markdown]
# 即使网络无限快，也要等这么久。读取缓存的潜变量几乎不花时间，制作缓存的代价几轮就能收回。
# 缓存有三个缺点：占用磁盘；每张图像只有一个版本，所以不能随机裁剪和翻转；而且必须在训练开始之前做好。
# （名字里不含缩放因子，因为文件保存的是未缩放的潜变量。）
#
# 训练时编码，可以由**工作进程**（worker processes）编码后面的批次，同时网络学习当前的批次。
# 它们用 `fork` 启动，即复制进程；或者用 `spawn` 启动，即启动新的 Python，再把一切传给它。
# 用过 GPU 的进程不能 fork，因为副本无法使用 GPU 的上下文；这时需要 `spawn`，每个工作进程要花几秒钟和几百兆字节
# （细节见 [latent_dataset.py](latent_sd/latent_dataset.py)）。

# %%
print("工作进程的启动方式：", start_method("cpu"), "（没有 GPU 时），", start_method("cuda"), "（有 GPU 时）")

# %% [markdown]
# GPU 正忙于 U-Net，或者有空闲的核时，工作进程才有帮助。两者都不满足时，工作进程只是在同一个处理器上做同样的工作。
# `python 04_latent_sd/benchmark_latents.py --vae 04_latent_sd/pretrained/64x64 --n 1000 --workers 0 1 2` 让每种方式在各自的进程中运行，测量时间和内存，
# 结果表见 [RESULTS.md](RESULTS.md)。
#
# ## 学完之后你能够
#
# * 编码、缩放、加噪、去噪、撤销缩放、解码：用十行代码写出 Stable Diffusion。
# * 由证据下界推导 VAE 的损失，并说明 $\beta$ 与像素噪声 $r$ 有什么关系。
# * 解释为什么 $\beta$ 很小的 VAE 不能生成，以及第二个模型的用处。
# * 选择 $f$ 和 $c$，先测量自编码器的 PSNR，再测量缩放因子。
# * 用计数检验负面提示词或重绘强度的作用，给出置信区间，并从相同的噪声开始。
# * 打开和写出 `diffusers` 能读的文件夹。
#
# ### 本章公式
#
# | | 公式 | 位置 |
# |---|---|---|
# | PSNR | $10 \log_{10}(2^2/\text{均方误差})$，图像取值在 $[-1, 1]$ | (1) |
# | 重参数化 | $z = \mu(x) + s(x)\,\varepsilon$ | (2) |
# | 界 | $-\log p_\theta(x) \le \frac{1}{2r^2}\mathbb{E}_q\vert x - y(z)\vert^2 + D_{\mathrm{KL}}(q_\phi(z\vert x)\,\Vert\,p(z)) + \text{常数}$ | (3) |
# | 两个高斯分布的 KL 散度 | $\frac12\sum(\mu^2 + s^2 - 1 - \log s^2)$ 奈特 | (4) |
# | 带权重的损失 | $\frac{1}{2r^2}\vert x - y\vert^2 + \beta\, D_{\mathrm{KL}}$；像素噪声为 $\sqrt\beta\,r$ 时的界 | (5) |
# | 缩放因子 | $z_0 = z/d$，$d$ 为训练集上的标准差 | 第 7 节 |
# | 加噪的潜变量 | $z_t = \sqrt{\bar\alpha_t}\,z_0 + \sigma_t\,\varepsilon$，$\;v = \sqrt{\bar\alpha_t}\,\varepsilon - \sigma_t\,z_0$ | 第 2 章 |
# | 解码 | $y = \mathrm{decoder}(z_0 \cdot d)$，再截断到 $[-1, 1]$ | 第 9 节 |
# | 图生图（img2img） | 第一步 $= N - \mathrm{round}(sN)$ | (6) |
#
# ### 延伸阅读
#
# * [Rombach et al. 2022](https://arxiv.org/abs/2112.10752)，*High-resolution image synthesis with latent diffusion models*：本章所依据的论文。
# * [Kingma & Welling 2014](https://arxiv.org/abs/1312.6114)，*Auto-encoding variational Bayes*。
# * [Esser et al. 2021](https://arxiv.org/abs/2012.09841)，*Taming transformers for high-resolution image synthesis*：感知损失与对抗损失。
# * [Meng et al. 2022](https://arxiv.org/abs/2108.01073)，*SDEdit: guided image synthesis and editing with stochastic differential equations*：图生图（img2img）。
# * [Podell et al. 2023](https://arxiv.org/abs/2307.01952)，*SDXL: improving latent diffusion models for high-resolution image synthesis*。
# * [Geng et al. 2024](https://arxiv.org/abs/2311.17919)，*Visual anagrams: generating multi-view optical illusions with diffusion models*；练习中会做一个视觉双关图。
#
# ### 在这个笔记本中动手试试
#
# 每次运行之前，先写下你的预期。
#
# * 第 3 节：$\beta = 0.1$ 和 $\beta = 10$。坍缩从哪里开始？
# * 第 4 节：`KL = 1e-2`。重建要付出什么代价？这时潜变量有多大？
# * 第 7 节：用错误的因子采样，`vae.cfg = replace(vae.cfg, scaling_factor=2 * vae.cfg.scaling_factor)`，然后 `paint(prompts)`。
# * 第 10 节：负面提示词 "a creature with wings"。先数不用它时有多少翅膀：有东西可去掉吗？再数使用之后的。公平检验的两个条件，哪一个没有满足？
# * 第 10 节：`paint(prompts, size=size * 3 // 2)`。U-Net 在任何尺寸上都能运行；它画的是一只小怪兽还是几只？
# * 第 11 节：把一道菜变成小怪兽。重绘强度到多大时，它才成为小怪兽？
#
# 然后自己动手写：[练习](exercises/README.zh.md)由 `python -m common.grade 04` 自动评分。要用你自己的任意尺寸的图像训练，见[本章说明](README.zh.md)。
#
# 下一章用专业工具来处理这个模型：微调、LoRA、ControlNet。
