"""第 3 章，亲手实现：十七个函数，从步数较少的链到你自己设计的采样器。

第一级（练习 1 到 12）要你写出公式。第二级（13 到 16）给出一段有一处错误的短程序，请你找到并改正。
第三级（17）给出一个用数字衡量的目标。在本文件中作答；solutions.py 给出一种做法。
除了练习 11 要用到练习 10，各题互不依赖。需要提示时运行 python -m common.grade 03 --lang zh --hint 3

约定与教程和 common/diffusion 相同：
  x0, eps     干净图像和标准正态噪声，float32，形状 (B, C, H, W)
  x           加噪图像，x = alpha x0 + sigma eps
  alpha_bar   (T + 1,) DDPM 的噪声调度：alpha = sqrt(alpha_bar_t)，sigma = sqrt(1 - alpha_bar_t)，所以
              alpha^2 + sigma^2 = 1。下标就是论文的 t：第 T 项噪声最多，第 0 项是干净图像
  Level       任意噪声调度中一个噪声水平的 alpha 和 sigma；alpha > 0
  SNR         alpha^2 / sigma^2，信噪比；lambda 是它的对数的一半
  x', alpha'  一步要到达的噪声水平处的量
  flow        流：alpha = 1 - t，sigma = t：t = 0 是干净图像，t = 1 是噪声（Lipman et al. 2023 的方向相反）。
              速度是 dx/dt = eps - x0
任何函数都不改动传给它的张量。
"""

import math  # noqa: F401 - 供作答时使用，torch 也是
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Level(NamedTuple):
    """一个噪声水平。写作 level.alpha 和 level.sigma。"""

    alpha: float
    sigma: float


Denoise = Callable[[Tensor, Level], tuple[Tensor, Tensor]]  # (B, C, H, W) x 和它的噪声水平 -> 预测的 (x0, eps)
Velocity = Callable[[Tensor, Tensor], Tensor]  # (B, C, H, W) x_t，(B,) t -> (B, C, H, W) 预测的速度


# ------------------------------------------------------------------------------------------------ 第一级：写公式


def respace(alpha_bar: Tensor, times: list[int]) -> Tensor:
    """练习 1：只经过一部分噪声水平的链的 beta。

    beta_i = 1 - alpha_bar[t_i] / alpha_bar[t_(i-1)]               （Nichol & Dhariwal 2021，公式 19）

    经过的第一个噪声水平之前是干净图像。一个长步加上它跳过的所有步的噪声。

    alpha_bar  (T + 1,) 完整的链的
    times      要经过的噪声水平，递增：t_1 ... t_K
    返回       (K,) 较短的链的 beta_1 ... beta_K
    """
    raise NotImplementedError("exercise 1: respace")


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """练习 2：让噪声调度以纯噪声结束。

    很多噪声调度在 T 处还留有图像的痕迹。训练时网络见到它，采样却从没有它的噪声开始。
    补救办法是把 sqrt(alpha_bar) 向下平移，使最后一项为 0，再拉伸，使第一项恢复原值：

    root_t <- (root_t - root_T) root_1 / (root_1 - root_T)      其中 root_t = sqrt(alpha_bar_t)，t = 1 ... T
                                                                （Lin et al. 2023，算法 1）

    alpha_bar  (T + 1,)
    返回       (T + 1,) 新噪声调度的 alpha_bar；第 0 项，即干净图像，保持不变
    """
    raise NotImplementedError("exercise 2: zero_terminal_snr")


def v_prediction(first: Tensor, second: Tensor, alpha: Tensor, sigma: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """练习 3：v，噪声与图像的一种组合，由网络来预测：训练时变过去，采样时变回来。

    变过去（back=False）  first, second = x0, eps；返回 x, v      x = alpha x0 + sigma eps，   v = alpha eps - sigma x0
    变回来（back=True）   first, second = x, v；    返回 x0, eps   由这两个方程解出 x0 和 eps
                                                                   （Salimans & Ho 2022，第 4 节）

    first, second  (B, C, H, W)
    alpha, sigma   (B,) 每张图像一个噪声水平，alpha^2 + sigma^2 = 1；纯噪声的 alpha 为 0，干净图像的 sigma 为 0
    返回           两个张量 (B, C, H, W)
    """
    raise NotImplementedError("exercise 3: v_prediction")


def snr_weight(alpha: Tensor, sigma: Tensor, gamma: float, prediction: str) -> Tensor:
    """练习 4：min-SNR 权重：训练批次中每张图像的损失有多重要。

    x0 的平方误差的权重是 min(SNR, gamma)，这样 SNR 极大的、几乎干净的噪声水平不会占主导。eps 或 v 的误差就是换了单位
    的 x0 的误差，由此得到权重

    x0    min(SNR, gamma)                  SNR = alpha^2 / sigma^2
    eps   min(SNR, gamma) / SNR            （Hang et al. 2023）
    v     min(SNR, gamma) / (SNR + 1)

    alpha, sigma  (B,) 每张图像一个噪声水平，alpha^2 + sigma^2 = 1，两者都大于 0
    gamma         实际取 5
    prediction    网络预测的是什么："eps"、"x0" 或 "v"
    返回          (B,)
    """
    raise NotImplementedError("exercise 4: snr_weight")


def flow_matching_loss(velocity: Velocity, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """练习 5：每张图像的条件流匹配损失：网络学习从噪声到图像的直线的速度。

    x_t  = (1 - t) x0 + t eps
    loss = |velocity(x_t, t) - (eps - x0)|^2 对通道和像素的平均                       （Lipman et al. 2023，公式 23，
                                                                                      时间反向）

    velocity  网络
    x0, eps   (B, C, H, W)
    t         (B,) 从 0 到 1
    返回      (B,) 损失，用它们的梯度训练网络
    """
    raise NotImplementedError("exercise 5: flow_matching_loss")


def ddim_step(x: Tensor, eps: Tensor, t: int, t_next: int, eta: float, z: Tensor, alpha_bar: Tensor) -> Tensor:
    """练习 6：DDIM 的一步：把 x 分成图像和噪声，再在较低的噪声水平上组合起来。

    x'    = sqrt(alpha_bar') x0 + sqrt(1 - alpha_bar' - fresh^2) eps + fresh z              （Song et al. 2021，DDIM，
                                                                                            公式 12）
    fresh = eta sqrt((1 - alpha_bar') / (1 - alpha_bar)) sqrt(1 - alpha_bar / alpha_bar')   （公式 16）

    其中 alpha_bar 在 t 处，alpha_bar' 在 t_next 处；x0 是把 eps 当作 x 中的噪声时剩下的图像（从 DDPM 的公式 4 解出 x0）。
    DDIM 的论文把 alpha_bar 写作 alpha，把 `fresh` 写作 sigma_t。

    x, eps     (B, C, H, W) 加噪图像，以及预测的其中的噪声
    t, t_next  x 的噪声水平，以及要到达的噪声水平，可以低任意多级；最后一步到 0
    eta        0：确定性的；1：新加的噪声与 DDPM 一样多
    z          (B, C, H, W) 新的标准正态噪声
    alpha_bar  (T + 1,)
    返回       (B, C, H, W)
    """
    raise NotImplementedError("exercise 6: ddim_step")


def heun_step(denoise: Denoise, x: Tensor, now: Level, then: Level) -> Tensor:
    """练习 7：霍因法的一步：评估，走一步，在那里再评估，然后按两次的平均走一步。

    沿轨迹，x 的变化是 dx = x0 dalpha + eps dsigma。从 now 到 then，dalpha 是 alpha' - alpha，dsigma 是 sigma' - sigma。
    欧拉法用起点处预测的 x0 和 eps。霍因法（Karras et al. 2022，算法 1）在终点处也预测一次：

    ahead = x + x0 dalpha + eps dsigma                              x0、eps 由 x 在噪声水平 now 处预测
    x'    = x + (x0 + x0') / 2 dalpha + (eps + eps') / 2 dsigma     x0'、eps' 由 ahead 在噪声水平 then 处预测

    denoise    调用方式是 denoise(x, level)，返回 (x0, eps)
    x          (B, C, H, W) 在噪声水平 now 处
    now, then  噪声水平；全部步中的最后一步 then.sigma = 0：它是欧拉法，只评估一次
    返回       (B, C, H, W) 在噪声水平 then 处
    """
    raise NotImplementedError("exercise 7: heun_step")


def slerp(a: Tensor, b: Tensor, w: float) -> Tensor:
    """练习 8：两个噪声之间的球面线性插值，它保持噪声应有的范数。

    result     = sin((1 - w) angle) / sin(angle) a + sin(w angle) / sin(angle) b        （Song et al. 2021，DDIM，附录 D.5；
                                                                                        Shoemake 1985）
    cos(angle) = a . b / (|a| |b|)

    批次中的每张图像是一个长向量，有自己的角度。a 和 b 几乎平行或方向相反时，角度的正弦小于 0.001：这时，也只有这时，
    改走直线 (1 - w) a + w b。在平行的噪声之间，两者的许多位数字都相同。在相反的噪声之间没有唯一的弧，而接近 0 的正弦
    只会留下舍入误差之比。

    a, b     (B, C, H, W) 噪声
    w        从 0（全是 a）到 1（全是 b）
    返回     (B, C, H, W)，a 和 b 是同一个噪声或方向相反时也是有限的数
    """
    raise NotImplementedError("exercise 8: slerp")


def reflow_pairs(velocity: Velocity, eps: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """练习 9：再整流（reflow）的训练样本对：噪声，以及流由它得到的图像。

    沿 dx/dt = velocity(x, t) 从 t = 1 处的 eps 走到 t = 0，用等步长的欧拉法。用这些样本对，而不是随机的配对，再训练一次
    网络，它会学到更直的轨迹（Liu et al. 2022，"Flow Straight and Fast"）。

    velocity  网络
    eps       (B, C, H, W)
    steps     步数，也就是评估次数
    返回      (x0, eps)：图像，以及它们起始的噪声；两者都不需要梯度
    """
    raise NotImplementedError("exercise 9: reflow_pairs")


def marginal_velocity(x: Tensor, t: Tensor, points: Tensor) -> Tensor:
    """练习 10：推导：流匹配从有限的数据集学到的速度。

    练习 5 的条件损失在 E[eps - x0 | x_t = x] 处最小，其中 x0 是 N 张图像之一，每张的可能性相等，eps 是标准正态噪声。
    在纸上推导：给定 x 和 t 时，每个 x0 只对应一个 eps；每个 x0 的可能性是多少？测试会进行很多次抽取，
    用其中最后接近 x 的那些对 eps - x0 取平均，再与你的结果比较。

    x        (B, C, H, W) 要求速度的位置
    t        (B,) 大于 0，不超过 1
    points   (N, C, H, W) 数据集
    返回     (B, C, H, W)                                          （Lipman et al. 2023，第 3 节，时间反向）
    """
    raise NotImplementedError("exercise 10: marginal_velocity")


def matching_losses(velocity: Velocity, x0: Tensor, eps: Tensor, t: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """练习 11：检验：为什么匹配直线的速度就够了。

    采样需要练习 10 的边缘速度，它是对整个数据集的平均。训练用的却是条件损失。对同一个 x_t = (1 - t) x0 + t eps，
    返回两个损失：

    conditional = |velocity(x_t, t) - (eps - x0)|^2 对批次、通道和像素的平均
    marginal    = |velocity(x_t, t) - marginal_velocity(x_t, t, points)|^2 的同样的平均

    两者的期望只差一个与网络无关的常数，所以它们对网络权重的梯度相等（Lipman et al. 2023，第 3 节）。
    测试用你的损失，在很多次抽取上检验这一点。

    velocity  网络
    x0        (B, C, H, W) 从 points 中抽取；eps (B, C, H, W)；t (B,) 大于 0
    points    (N, C, H, W) 数据集
    返回      (conditional, marginal)，条件损失和边缘损失，两个标量，用它们的梯度训练网络
    """
    raise NotImplementedError("exercise 11: matching_losses")


def dpmpp_2m_step(
    x: Tensor, x0: Tensor, now: Level, then: Level, x0_old: Tensor | None, before: Level | None
) -> Tensor:
    """练习 12：DPM-Solver++(2M) 的一步：只评估一次就有二阶精度，因为上一次的预测保留了下来。

    x' = sigma' / sigma x - alpha' (e^-h - 1) D           h = lambda' - lambda，   lambda = log(alpha / sigma)
    D  = x0 + (x0 - x0_old) / (2 r)                       r = (lambda - lambda_before) / h
                                                          （Lu et al. 2022，"DPM-Solver++"，算法 2）

    D 由最近的两次预测把 x0 外推到这一步的中点。

    x             (B, C, H, W) 在噪声水平 now 处
    x0            (B, C, H, W) 由它预测的图像
    now, then     这一步从 now 到 then；全部步中的最后一步 then.sigma = 0，那里 x' 是 alpha' x0
    x0_old        (B, C, H, W) 早一步、在噪声水平 before 处预测的图像；第一步时两者都是 None，D 就是 x0
    返回          (B, C, H, W) 在噪声水平 then 处
    """
    raise NotImplementedError("exercise 12: dpmpp_2m_step")


# ------------------------------------------------------------------------------------------------ 第二级：找错误


def fix_respaced_ddpm(
    predict_eps: Callable[[Tensor, int], Tensor],
    x: Tensor,
    times: list[int],
    alpha_bar: Tensor,
    noise: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """练习 13：找错误。只经过一部分噪声水平的 DDPM。

    现象：经过全部 1000 级时图像干净。经过 50 级时图像里满是噪声，经过 20 级时除了噪声什么也没有。

    predict_eps  调用方式是 predict_eps(x_t, t)，预测噪声
    x            (B, C, H, W) 噪声
    times        要经过的噪声水平，从 T 开始递减，最后一个是 0
    alpha_bar    (T + 1,)
    noise        在第 k 步以 noise(k, x) 调用，返回与 x 形状相同的新噪声
    返回         (B, C, H, W) 图像                     （Ho et al. 2020，算法 2；Nichol & Dhariwal 2021，公式 19）
    """
    for k, (t, t_next) in enumerate(pairwise(times)):
        eps = predict_eps(x, t)
        now, before = alpha_bar[t], alpha_bar[t - 1]
        beta = 1 - now / before
        x = (x - beta / (1 - now).sqrt() * eps) / (1 - beta).sqrt()
        if t_next > 0:
            x = x + ((1 - before) / (1 - now) * beta).sqrt() * noise(k, x)
    return x


def fix_heun_sampling(denoise: Denoise, x: Tensor, levels: list[Level]) -> Tensor:
    """练习 14：找错误。用霍因法采样。

    现象：每步评估两次，但步数加倍时误差只减半，与欧拉法一样。二阶方法的误差应当降到四分之一。

    denoise  调用方式是 denoise(x, level)，返回 (x0, eps)
    x        (B, C, H, W) 在第一个噪声水平处
    levels   噪声递减；最后一个 sigma = 0
    返回     (B, C, H, W) 图像                                                     （Karras et al. 2022，算法 1）
    """
    for now, then in pairwise(levels):
        dalpha, dsigma = then.alpha - now.alpha, then.sigma - now.sigma
        x0, eps = denoise(x, now)
        ahead = x + x0 * dalpha + eps * dsigma
        if then.sigma == 0:
            return ahead
        x0_ahead, eps_ahead = denoise(ahead, now)
        x = x + (x0 + x0_ahead) / 2 * dalpha + (eps + eps_ahead) / 2 * dsigma
    return x


def fix_flow_sampling(velocity: Velocity, eps: Tensor, steps: int) -> Tensor:
    """练习 15：找错误。对用练习 5 训练的流，用欧拉法采样。

    现象：训练损失低到应有的程度。但对平面上的团，样本落在各团之间，增加步数也没有用。

    velocity  网络，调用方式是 velocity(x_t, t)，t 的形状为 (B,)
    eps       (B, C, H, W) 噪声
    steps     等长的步数
    返回      (B, C, H, W) 图像
    """
    x = eps
    for k in range(steps):
        t = torch.full((len(x),), k / steps)
        x = x - velocity(x, t) / steps
    return x


def fix_consistency_loss(f: Velocity, x0: Tensor, eps: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """练习 16：找错误。一致性训练的损失：网络学习从任何噪声水平一步跳到轨迹的终点，办法是让它与自己在略低的噪声水平上的
    预测一致。

    现象：损失比预期的低。但对平面上的团，一步得到的样本向数据的均值收缩。

    f          调用方式是 f(x, sigma)，预测经过 x 的轨迹的终点，(B, C, H, W)
    x0, eps    (B, C, H, W)
    now, then  (B,) 每张图像两个相邻的噪声水平 sigma，then < now；在每一级 x = x0 + sigma eps
    返回       损失，一个标量，用它的梯度训练 f。较低的噪声水平上的预测是目标
                                                                （Song et al. 2023，"Consistency Models"）
    """
    x_now = x0 + now.view(-1, 1, 1, 1) * eps
    x_then = x0 + then.view(-1, 1, 1, 1) * eps
    target = f(x_then, then)
    return (f(x_now, now) - target).square().mean()


# ---------------------------------------------------------------------------------------------- 第三级：达到目标


def ten_evaluations(denoise: Denoise, x: Tensor, sigma_max: float) -> Tensor:
    """练习 17：达到目标：最多评估网络十次的采样器。

    数据是平面上的点，分成若干团，理想的去噪器是已知的，所以误差只来自采样器。请选择噪声水平和方法。
    误差是你得到的点，与从相同噪声出发走 200 步霍因法得到的点之间的平均距离。它必须小于 0.04；各团所在的圆半径为 1。

    欧拉法不够：十个噪声水平，不论在 t、sigma 或 lambda 上等间距，还是按 Karras et al. 2022 的间距，误差都大于 0.08。
    先写下你认为自己的哪一种求解器最好，再测量。

    denoise    调用方式是 denoise(x, level)，可以用任何 Level，返回 (x0, eps)；它会数自己被调用的次数
    x          (B, 1, 1, 2) 加噪的点，噪声水平为 alpha = 1、sigma = sigma_max
    sigma_max  20
    返回       (B, 1, 1, 2) sigma = 0 处的点
    """
    raise NotImplementedError("exercise 17: ten_evaluations")
