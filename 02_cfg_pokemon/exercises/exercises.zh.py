"""第 2 章，亲手实现：十三个函数，从随机丢弃文本条件到每个噪声水平的引导系数。

第一级（练习 1 到 9）要你写出公式。第二级（10 到 12）给出一段有一处错误的短程序，请你找到并改正。
第三级（13）给出一个用数字衡量的目标。在本文件中作答；solutions.py 给出一种做法。各题互不依赖。
需要提示时运行 python -m common.grade 02 --lang zh --hint 3

约定与教程和 guidance.py 相同：
  images     float32，取值在 [-1, 1]，形状 (B, C, H, W)，图像
  alpha_bar  x_t = sqrt(alpha_bar_t) x0 + sigma_t eps，其中 sigma_t = sqrt(1 - alpha_bar_t)；噪声调度的第 0 项是
             干净图像，alpha_bar_0 = 1
  text       (B, M, D) 一条文本描述是 M 个词元，每个词元是 D 个数的向量；每张图像一条文本描述
  empty      (M, D) 空文本 ""，形式相同
  cond       (B, C, H, W) 网络在给定文本描述时的预测，可以是 eps、x0 或 v；引导对三者都一样
  uncond     网络在给定空文本时的预测
  w          引导系数：0 不理会文本描述，1 是条件预测，更大则加以夸大
任何函数都不改动传给它的张量。
"""

import math  # noqa: F401 - 供作答时使用，torch 也是
from collections.abc import Callable

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, C, H, W) x，(B,) t，(B, M, D) 文本 -> (B, C, H, W)
Encode = Callable[[list[str]], Tensor]  # N 条文本描述 -> (N, M, D) 文本
PredictEps = Callable[[Tensor], Tensor]  # (B, C, H, W) x_t -> (B, C, H, W) 预测的其中的噪声
ImageLoss = Callable[[Tensor], Tensor]  # (B, C, H, W) x0 -> (B,) 每张图像一个数，越符合要求越小


# ------------------------------------------------------------------------------------------------ 第一级：写公式


def caption_dropout(text: Tensor, empty: Tensor, u: Tensor, p: float) -> Tensor:
    """练习 1：把训练批次中的一部分文本描述换成空文本，让同一个网络学会两种分布：带文本描述的图像，和单独的图像。

    text_i <- empty  当 u_i < p，对每张图像 i                    （Ho & Salimans 2022，算法 1）

    text     (B, M, D)
    empty    (M, D)
    u        (B,) [0, 1) 上的均匀随机数，每张图像一个
    p        丢弃文本描述的概率，实际取 0.1 或 0.2；0 一条也不丢，1 全部丢弃
    返回     (B, M, D)；梯度传到 text 和 empty，因为文本编码器从两者学习
    """
    raise NotImplementedError("exercise 1: caption_dropout")


def negative_prompt(encode: Encode, prompts: list[str], negatives: list[str | None]) -> Tensor:
    """练习 2：带引导的批次的文本描述：先是引导要远离的，再是引导要靠近的。

    引导远离的是 `uncond` 的文本描述，不论它是什么。负面提示词取代空文本的位置：在那里写“wings”，意思是不要翅膀。

    encode     调用方式是 encode(captions)，参数是字符串列表；所有文本描述只调用一次，因为它也是一个网络
    prompts    B 条文本描述
    negatives  每张图像的负面提示词；None 表示空文本 ""
    返回       (2B, M, D) 先是要远离的 B 条文本描述，再是 B 条提示词
    """
    raise NotImplementedError("exercise 2: negative_prompt")


def guided(model: Model, x: Tensor, t: Tensor, context: Tensor, w: float) -> Tensor:
    """练习 3：无分类器引导：分别在有文本描述和没有文本描述时预测，再把两者之差放大。

    guided = uncond + w (cond - uncond)                           （Ho & Salimans 2022，公式 6，这里的 w = 1 + 论文的 w）

    model    调用方式是 model(x, t, text)，只调用一次：两半作为一个 2B 的批次
    x        (B, C, H, W) 加噪图像
    t        (B,) 它们的噪声水平，形式与网络要求的一致
    context  (2B, M, D) 先是 B 个空文本（或负面提示词），再是 B 条文本描述
    返回     (B, C, H, W) 引导后的预测
    """
    raise NotImplementedError("exercise 3: guided")


def dynamic_threshold(x0: Tensor, share: float) -> Tensor:
    """练习 4：引导后预测的 x0 会超出 [-1, 1]。在那里截断会产生大片单色区域；动态阈值则把取值缩小。

    s  = |x0| 在 `share` 处的分位数，但至少为 1
    x0 <- clip(x0, -s, s) / s                                     （Saharia et al. 2022，第 2.3 节）

    x0       (B, C, H, W) 对图像的预测
    share    实际取 0.995
    返回     (B, C, H, W) 全部在 [-1, 1] 内

    每张图像有自己的 s，对它的所有通道和像素计算。整张都在 [-1, 1] 内的图像不变。
    """
    raise NotImplementedError("exercise 4: dynamic_threshold")


def rescale(guided: Tensor, cond: Tensor, phi: float) -> Tensor:
    """练习 5：引导会增大预测的标准差。引导重缩放把它部分地调回条件预测的标准差。

    rescaled = guided * std(cond) / std(guided)                   （Lin et al. 2023，公式 14 和 15）
    result   = phi rescaled + (1 - phi) guided                    （公式 16）

    guided, cond  (B, C, H, W) 有引导和没有引导的预测
    phi           从 0（不起作用）到 1
    返回          (B, C, H, W)

    每张图像有自己的两个标准差，对它的所有通道和像素计算。
    """
    raise NotImplementedError("exercise 5: rescale")


def attribute_accuracy(found: Tensor, asked: Tensor) -> tuple[float, float, float]:
    """练习 6：提示词符合度：提示词要求的属性中，图像表现出来的比例，以及置信区间。

    一条文本描述要求小怪兽的某些属性（颜色：红；翅膀：蝙蝠），其余不作要求。分类器判断图像中每个属性的值。
    所有图像一共要求了 n 个值，其中找到 k 个。比例是 k / n，95 % 置信区间用 Wilson（1927）的公式，z = 1.96：

    (k/n + z^2/(2n) +- z sqrt(k/n (1 - k/n)/n + z^2/(4n^2))) / (1 + z^2/n)

    found    (N, K) 整数：分类器对 N 张图像各自的 K 个属性给出的值
    asked    (N, K) 整数：要求的值，文本描述没有要求时为 -1；至少有一个不是 -1
    返回     (share, low, high)：比例、下限和上限，三个 0 到 1 之间的数
    """
    raise NotImplementedError("exercise 6: attribute_accuracy")


def loss_guided_step(
    predict_eps: PredictEps, loss: ImageLoss, x: Tensor, alpha_bar_t: float, alpha_bar_s: float, strength: float
) -> Tensor:
    """练习 7：带损失引导的 DDIM 一步：预测图像的任何可微损失都可以引导采样。

    x0_hat    = (x_t - sigma_t eps_hat) / sqrt(alpha_bar_t)           其中 eps_hat = predict_eps(x_t)
    eps_tilde = eps_hat + strength sigma_t grad L(x0_hat)             梯度是对 x_t 的
                                                                      （同 Dhariwal & Nichol 2021，算法 2，
                                                                      用 -strength L 代替 log p(y | x_t)）
    x_s       = sqrt(alpha_bar_s) x0_tilde + sigma_s eps_tilde        x0_tilde 是 x_t 去掉 eps_tilde 之后的图像

    predict_eps  网络，调用方式是 predict_eps(x)
    loss         调用方式是 loss(x0)，返回 (B,)：每张图像的损失 L
    x            (B, C, H, W) 加噪图像 x_t
    alpha_bar_t, alpha_bar_s  x 的噪声水平 t 处的 alpha_bar，以及要走到的噪声水平 s 处的 alpha_bar
    strength     这一步跟随损失的程度；0 就是 DDIM
    返回         (B, C, H, W) x_s，不需要梯度

    采样器在 torch.no_grad() 里面运行，这一步在那里也要能用。一张图像的结果与批次中的其他图像无关。
    """
    raise NotImplementedError("exercise 7: loss_guided_step")


def cross_attention(x: Tensor, text: Tensor, W_q: Tensor, W_k: Tensor, W_v: Tensor, heads: int) -> Tensor:
    """练习 8：交叉注意力：每个像素从文本描述的词元中读取信息。

    Q = x W_q^T,  K = text W_k^T,  V = text W_v^T                 像素的查询，词元的键和值
    result = softmax(Q K^T / sqrt(d)) V,  d = C / heads           （Vaswani et al. 2017，公式 1；Rombach et al. 2022，
                                                                  第 3.3 节）

    每个头有 Q、K 和 V 中自己的 d 列：第 0 个头是第 0 ... d-1 列，第 1 个头是接下来的 d 列，依此类推。
    各个头的结果按相同的次序并排放置。

    x         (B, N, C) N 个像素，每个是 C 个数的向量
    text      (B, M, D)
    W_q       (C, C) 权重，按 nn.Linear 的方式存放，(out, in)
    W_k, W_v  (C, D)
    heads     能整除 C
    返回      (B, N, C)；梯度传到 x、text 和所有权重
    """
    raise NotImplementedError("exercise 8: cross_attention")


def tilted_gaussian(m: float, s: float, w: float) -> tuple[float, float]:
    """练习 9：推导并检验：常有人说引导就是从这个分布采样。

    一维的图像：所有图像 p(x) = N(0, 1)，符合文本描述的图像 p(x | c) = N(m, s^2)。把 p(x) 乘以 p(c | x)^w，其中
    p(c | x) 正比于 p(x | c) / p(x)（贝叶斯公式）。乘积仍是高斯分布。在纸上推导它的均值和标准差。
    测试用蒙特卡洛方法检验你的结果：从 p(x) 抽取 x，用 (p(x | c) / p(x))^w 加权，再取加权的均值和标准差。

    m        符合文本描述的图像的均值
    s        它们的标准差，大于 0 且小于 1
    w        不小于 0；w = 0 时结果是 p(x)，w = 1 时是 p(x | c)
    返回     (mean, standard deviation)：均值和标准差，两个数

    图中的这一格会把它与引导扩散的样本比较。
    """
    raise NotImplementedError("exercise 9: tilted_gaussian")


# ------------------------------------------------------------------------------------------------ 第二级：找错误


def fix_training_batch(
    model: Model, x0: Tensor, text: Tensor, empty: Tensor, alpha_bar: Tensor, p: float, rng: torch.Generator
) -> Tensor:
    """练习 10：找错误。一个训练批次的损失，随机丢弃文本条件。

    现象：p = 0.1 时，大约每十步就有一步训练损失突然变大，远高于其间各步的损失。

    model      调用方式是 model(x_t, t, text)，预测噪声
    x0         (B, C, H, W) 图像；text (B, M, D) 它们的文本描述；empty (M, D) 空文本
    alpha_bar  (T + 1,)
    p          一张图像的文本描述被丢弃的概率，与其他图像无关
    rng        所有随机数的来源
    返回       损失，一个标量，用它的梯度训练模型                （Ho & Salimans 2022，算法 1）
    """
    B = len(x0)
    t = torch.randint(1, len(alpha_bar), (B,), generator=rng)
    eps = torch.randn(x0.shape, generator=rng)
    if torch.rand((), generator=rng) < p:
        text = empty.expand_as(text)
    a = alpha_bar[t].view(-1, 1, 1, 1)
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * eps
    return (model(x_t, t, text) - eps).square().mean()


def fix_guided_sampling(
    model: Model, x: Tensor, text: Tensor, empty: Tensor, w: float, times: list[int], alpha_bar: Tensor
) -> Tensor:
    """练习 11：找错误。带无分类器引导的 DDIM，从噪声到图像。

    现象：w = 0 时图像符合提示词，w = 1 时不理会提示词，w = 3 时什么都有，就是没有提示词要求的东西。

    model      调用方式是 model(x_t, t, text)，预测噪声
    x          (B, C, H, W) 噪声；text (B, M, D) 提示词；empty (M, D) 空文本
    w          引导系数：0 不理会提示词，1 是条件预测
    times      要经过的噪声水平，递减，最后一个是 0
    alpha_bar  (T + 1,)
    返回       (B, C, H, W)
    """
    B = len(x)
    context = torch.cat([empty.expand_as(text), text])
    for t, s in zip(times[:-1], times[1:], strict=True):
        both = model(torch.cat([x, x]), torch.full((2 * B,), t), context)
        cond, uncond = both.chunk(2)
        eps = uncond + w * (cond - uncond)
        x0 = (x - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()
        x = alpha_bar[s].sqrt() * x0 + (1 - alpha_bar[s]).sqrt() * eps
    return x


def fix_masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """练习 12：找错误。交叉注意力，其中短文本描述的填充不应当起作用。

    现象：批次里有更长的提示词时，同样的提示词和同样的噪声会得到不同的图像，因为这时它的文本描述填充了更多的词元。

    q        (B, heads, N, d) N 个像素的查询
    k, v     (B, heads, M, d) M 个词元的键和值
    mask     (B, M) 文本描述的词元处为 True，填充处为 False；每条文本描述至少有一个词元为 True
    返回     (B, heads, N, d)：只对文本描述的词元计算的 softmax(Q K^T / sqrt(d)) V
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, heads, N, M)
    scores = scores * mask[:, None, None]
    return scores.softmax(dim=-1) @ v


# ---------------------------------------------------------------------------------------------- 第三级：达到目标


def guidance_scale(noise: float) -> float:
    """练习 13：达到目标：为每个噪声水平给出引导系数。

    数据是平面上的点，分成五个高斯团，排在半径为 1 的圆上，每团的标准差为 0.25。提示词要求其中一团，但网络没有学好
    文本描述：没有引导时，只有一半样本属于那一团。DDIM 用你的系数走 30 步，从 sigma / sqrt(alpha_bar) = 20 到 0.05。
    测量两个数：

    inside  落在包含该团 95 % 的圆内的样本所占的比例                                至少 0.84
    spread  最近的团是正确的那一团的样本，其标准差除以 0.25                         至少 0.80

    不变的系数不能同时达到两者（w = 2：0.73 和 0.84；w = 3：0.85 和 0.72）。Kynkaanniemi et al. 2024 给出了一种办法。
    先写下你认为哪些噪声水平需要引导，再动手试。

    noise    这个噪声水平的 sigma / sqrt(alpha_bar)，在 0.05 到 20 之间
    返回     这个噪声水平的 w
    """
    raise NotImplementedError("exercise 13: guidance_scale")
