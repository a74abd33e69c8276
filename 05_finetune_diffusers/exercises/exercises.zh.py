"""第 5 章，亲手实现：专业工具背后的十七个函数，从一个 LoRA 到合并后的文件。

第一级（练习 1 到 13）要你写出公式，其中三题的公式要自己推导。第二级（14 到 16）给出一段有一处错误的短程序，
请你找到并改正。第三级（17）给出一个用数字衡量的目标。在本文件中作答；solutions.py 给出一种做法。各题互不依赖。
需要提示时运行 python -m common.grade 05 --lang zh --hint 3

约定与教程相同：
  W          (out, in) 线性层的矩阵，该层计算 W x
  A, B       (r, in) 和 (out, r)，秩为 r 的 LoRA 的两个细长矩阵；它的 alpha 是一个数
  z          (B, C, h, w) 干净的潜变量，已缩放
  x          加噪的潜变量，x = alpha_t z + sigma_t eps；sigma_t^2 = 1 - alpha_t^2
  alpha_bar  alpha_t^2
  mask       需要重画的地方为 1，已知的地方为 0
除非文档字符串另有说明，任何函数都不改动传给它的张量和列表。
"""

import math  # noqa: F401 - 供作答时使用，torch 也是
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: F401
from torch import Tensor

Adapter = tuple[Tensor, Tensor, float]  # A (r, in)，B (out, r)，alpha
Error = Callable[[Tensor, Tensor], Tensor]  # (D,) 权重，(n, ...) 图像 -> (n,) 每张图像的误差
Gradient = Callable[[Tensor, int], Tensor]  # (D,) 权重，批的编号 -> (D,) 该批平均误差的梯度
Step = Callable[[Tensor, int], Tensor]  # 水平 k 的 x，k -> 水平 k + 1 的 x
PredictEps = Callable[[Tensor, int], Tensor]  # x_t，t -> 对其中噪声的预测


# ------------------------------------------------------------------------------------------------------ 第一级：写公式


def new_adapter(W: Tensor, rank: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """练习 1：什么都还没学的 LoRA：冻结的矩阵旁边加上两个细长的矩阵。

    W' = W + alpha / r B A                                                    （Hu et al. 2021，第 4.1 节）

    B 为零，所以开始时 W' = W。A 是随机的；如果 A 和 B 都为零，两者永远得不到梯度。论文要求用高斯分布，没有给出标准差。
    这里取 1 / r，与 peft 的 init_lora_weights="gaussian" 相同。

    W        (out, in) 冻结的矩阵
    rank     r
    rng      随机数的来源，torch.randn(..., generator=rng)：同一个种子给出同一个适配器，全局的随机数生成器不受影响
    返回     A (r, in) 和 B (out, r)，float32，是需要梯度的叶张量，可以直接交给优化器
    """
    raise NotImplementedError("exercise 1: new_adapter")


def merge_adapters(W: Tensor, adapters: list[Adapter], scales: list[float]) -> Tensor:
    """练习 2：把适配器合并到它旁边的矩阵里，使用时就不再多花时间。

    W' = W + sum_k scale_k alpha_k / r_k B_k A_k

    每个适配器有自己的秩和自己的 alpha。系数 scale 为 0 表示不起作用，为 1 表示作用与训练时相同。
    把所有系数取负再合并一次，就得回 W。

    W         (out, in)
    adapters  K 个三元组：A (r_k, in)，B (out, r_k)，alpha_k；K 可以为 0
    scales    K 个数
    返回      (out, in)，一个新矩阵，K = 0 时也是如此
    """
    raise NotImplementedError("exercise 2: merge_adapters")


def accumulate(error: Error, weights: Tensor, parts: list[Tensor]) -> Tensor:
    """练习 3：用小批的内存求大批的梯度：梯度累积。

    g = d/dweights 1/N sum error_i                                            对所有部分的全部 N 张图像求和

    error    调用方式 error(weights, part)，返回 (n,)，该部分的每张图像一个数
    weights  (D,)，需要梯度；weights.grad 里可能还留着上一步的梯度，可以覆盖
    parts    张量 (n, ...)；最后一个的图像可能比其他的少
    返回     (D,) 梯度，与把所有部分合成一批时相同

    每个部分都要在计算下一个部分之前调用 backward()，并且不用 retain_graph：这样才会释放该部分占用的内存。
    各部分大小不同时，“均值的均值”是另一个数。
    """
    raise NotImplementedError("exercise 3: accumulate")


@torch.no_grad()
def write(weights: list[Tensor], values: list[Tensor]) -> None:
    """把数值复制到权重里：已经写好，供练习 4 使用。"""
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)


def averaged(weights: list[Tensor], averages: list[Tensor], draw: Callable[[], object]) -> object:
    """练习 4：用滑动平均的权重（EMA）画一张验证图像，然后照原样继续训练。

    复制权重的数值，把平均值写入权重，调用 draw()，再把原来的数值写回去。不论 draw 里发生什么，都要写回：
    错误必须传给调用者，但到那时权重必须已经还原。Ctrl-C 引发 KeyboardInterrupt，`except Exception` 捕获不到它。

    weights   网络自己的张量，需要梯度。像上面的 write() 那样写入其中：网络和优化器持有的正是这些张量
    averages  同样多、同样形状的平均值；保持不变
    draw      调用一次，不带参数；它用持有这些张量的网络来画
    返回      draw() 返回的东西
    """
    raise NotImplementedError("exercise 4: averaged")


def prior_loss(each: Tensor, is_class: Tensor, prior: float) -> Tensor:
    """练习 5：DreamBooth 的损失：学会一个特定对象，又不忘记它所属的类别。

    loss = 特定对象的误差的均值 + prior * 类别图像的误差的均值              （Ruiz et al. 2022，式 2）

    each      (N,) 每张图像的误差，带梯度
    is_class  (N,) bool：True 是类别图像，由模型自己画出；False 是特定对象的图像
    prior     先验保留的权重；0 表示不用
    返回      损失，带梯度的标量；没有图像的一组贡献为 0

    两组的大小可以不同，权重不得随大小而变。
    """
    raise NotImplementedError("exercise 5: prior_loss")


def weigh_word(z: Tensor, empty: Tensor, hidden: Tensor, word: Tensor, w: float) -> Tensor:
    """练习 6：Compel 的提示词权重：提示词中的一个词算多重。

    moved(v) = empty + s (v - empty)      在这个词自己的词元处 s = w，在其他词元处 s = 1

    w >= 1：  moved(z)
    w < 1：   (moved(z) + r moved(hidden)) / (1 + r)，   r = tan((1 - w) pi / 2)

    权重大于 1，使这个词的嵌入远离空提示词的嵌入；小于 1，则使它靠近。靠近时其他词元也有影响，因为它们已经注意过这个词；
    所以还要混入没有这个词的嵌入，w = 1/2 时它们占一半的权重。

    z        (M, D) 提示词的嵌入，每个词元一个
    empty    (M, D) 空提示词的嵌入
    hidden   (M, D) 任何词元都不能注意到这个词时，提示词的嵌入
    word     (M,) bool，在这个词的词元处为 True
    w        不小于 0
    返回     (M, D)
    """
    raise NotImplementedError("exercise 6: weigh_word")


def controlled(
    features: list[Tensor], residuals: list[Tensor], kernels: list[Tensor], biases: list[Tensor], scale: float
) -> list[Tensor]:
    """练习 7：ControlNet 怎样作用于它所复制的 U-Net：通过从零开始的卷积。

    features_k + scale (K_k * residual_k + b_k)               （Zhang et al. 2023，第 3.2 节；* 是卷积）

    卷积都是 1 x 1 的。训练之前它们的卷积核和偏置为零，所以开始时 U-Net 不变。
    卷积核要能学习；产生 residual 的 ControlNet 也要能通过它们学习。

    features   张量 (B, C_k, h_k, w_k)，U-Net 前半部分在各分辨率上的特征
    residuals  同样多、同样形状的张量，来自 ControlNet
    kernels    张量 (C_k, C_k, 1, 1)，次序与 F.conv2d 一致：输出通道、输入通道
    biases     张量 (C_k,)
    scale      控制系数；0 使 U-Net 保持原样
    返回       新特征的列表，(B, C_k, h_k, w_k)，带梯度
    """
    raise NotImplementedError("exercise 7: controlled")


def inpaint(
    step: Step, x: Tensor, z: Tensor, eps: Tensor, mask: Tensor, f: int, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """练习 8：用没有为局部重绘训练过的模型做局部重绘：每一步之后，把已知部分放回去。

    只做一次：              潜变量的一个位置对应 f x f 个像素，其中有任何一个被遮住，m = 1，否则 m = 0
    对 k = 0 ... N - 1：    x     = step(x, k)                                从水平 k 走到水平 k + 1
                            known = alpha_(k+1) z + sigma_(k+1) eps           已知的潜变量在该水平上的值
                            x     = m x + (1 - m) known

    这里所有水平共用一个噪声 eps，与 diffusers 的管线相同，那里的步骤通常是确定性的。
    RePaint（Lugmayr et al. 2022，式 8）每一步重新抽取噪声，第 6 章也这样做。
    两种做法都使已知部分在各水平上有正确的分布。

    step          调用方式 step(x, k)，按次序调用 N 次
    x             (B, C, h, w)，位于水平 0，即最嘈杂的水平
    z             (B, C, h, w) 图像的干净潜变量
    eps           (B, C, h, w) 为它们准备的噪声，各水平相同
    mask          (B, 1, f h, f w)，以像素为单位：1 表示重画，0 表示已知
    f             自编码器的下采样倍数（边长缩小的倍数）
    alpha, sigma  (N + 1,) 各水平，最嘈杂的在前；alpha_N = 1，sigma_N = 0
    返回          (B, C, h, w)，位于水平 N；m 为 0 的地方恰好等于 z
    """
    raise NotImplementedError("exercise 8: inpaint")


def img2img_start(
    z: Tensor, eps: Tensor, times: list[int], alpha_bar: Tensor, strength: float
) -> tuple[Tensor, list[int]]:
    """练习 9：图生图从哪里开始：加噪的潜变量，以及剩下的时间步。

    n = min(int(strength N), N)           N 个时间步中，只走最后 n 个
    x = alpha_t z + sigma_t eps           位于其中的第一个时间步

    z          (B, C, h, w) 图像的干净潜变量
    eps        (B, C, h, w) 标准正态噪声
    times      采样器的 N 个时间步，递减
    alpha_bar  (T,) 每个时间步 0 ... T - 1 的 alpha_t^2
    strength   在 0 与 1 之间
    返回       (x, 剩下的 n 个时间步的列表)；n = 0 时是 z 和空列表

    请照 int(strength * N) 计算，包括它的取整：在浮点数中 0.58 * 50 略小于 29，所以 diffusers 走 28 步。
    """
    raise NotImplementedError("exercise 9: img2img_start")


def from_kohya(file: dict[str, Tensor], layers: list[str]) -> dict[str, Adapter]:
    """练习 10：读取 kohya 脚本格式的 LoRA。

    文件把层 "mid_block.attentions.0.to_q" 叫作 "lora_unet_mid_block_attentions_0_to_q"，并为它保存
        <name>.lora_down.weight   A (r, in)
        <name>.lora_up.weight     B (out, r)
        <name>.alpha              含一个数的张量；有些程序不写它，这时 alpha 等于 r

    "." 和 "_" 都变成了 "_"，所以要还原名字，必须知道模型各层的名字。

    file     {文件中的名字: 张量}
    layers   模型所有层的名字；文件可能只调整其中几层
    返回     {层的名字: (A, B, alpha)}，只含文件里有的层，alpha 为浮点数

    如果文件调整了模型没有的层，就引发 KeyError，并在其中写出这一层的名字。
    """
    raise NotImplementedError("exercise 10: from_kohya")


def first_update(G: Tensor, A: Tensor, alpha: float, lr: float) -> Tensor:
    """练习 11：推导并检验：LoRA 的第一步使 W 移动多远。

    W' = W + alpha / r B A，其中 B = 0。设 G = dL/dW' 是对整个矩阵的梯度。用链式法则推导 dL/dA 和 dL/dB，
    用学习率 lr 对两者做一步普通的梯度下降，再求这一步之后的 W' 减去 W。测试用 autograd 走这一步。

    G        (out, in)
    A        (r, in)
    alpha    LoRA 的 alpha
    lr       学习率
    返回     (out, in)，W' 的改变量

    如果秩加倍，A 的标准差仍为 1 / r，而 alpha 不变，结果会怎样？如果 alpha = r 呢？
    """
    raise NotImplementedError("exercise 11: first_update")


def merged_std(ranks: list[int], alphas: list[float], stds: list[tuple[float, float]], scales: list[float]) -> float:
    """练习 12：推导并检验：几个适配器之和有多大。

    A_k 和 B_k 的元素相互独立，均值为 0，标准差为 a_k 和 b_k。推导 sum_k scale_k alpha_k / r_k B_k A_k
    的一个元素的标准差。测试用蒙特卡洛方法检验。

    ranks    K 个秩 r_k
    alphas   K 个数
    stds     K 对 (a_k, b_k)
    scales   K 个数
    返回     标准差，浮点数

    那么，为什么系数各为 1 的两种风格叠加后常常显得过火？怎样的系数能使总和与其中一种同样大？
    """
    raise NotImplementedError("exercise 12: merged_std")


def ema_half_life(decay: float) -> float:
    """练习 13：推导并检验：权重的滑动平均能记住多久。

    average <- decay * average + (1 - decay) * weights            每一步之后

    多少步之后，初始值所占的比例降到一半？结果不必是整数。

    decay    在 0 与 1 之间，不含两端
    返回     步数，浮点数

    然后回答：训练 600 步，如果要使前一半训练在平均值中所占的比例不到 1 %，decay 取多少合适？
    """
    raise NotImplementedError("exercise 13: ema_half_life")


# ------------------------------------------------------------------------------------------------------ 第二级：找错误


def fix_training_loop(
    gradient: Gradient, weights: Tensor, steps: int, accumulation: int, lr: float, decay: float
) -> tuple[Tensor, Tensor]:
    """练习 14：找错误。带累积和权重平均的梯度下降。

    现象：把 accumulation 从 1 改为 4，每批的大小减为四分之一，原来稳定的学习率就使权重发散。

    gradient      调用方式 gradient(weights, k)，批的编号 k = 0, 1, ...；返回第 k 批平均误差的梯度
    weights       (D,) 初始的权重
    steps         优化器的步数；每步用 `accumulation` 个大小相同的批
    lr            普通梯度下降的学习率
    decay         滑动平均的衰减率；平均值开始时是权重的副本
    返回          最后一步之后的 (weights, average)，都是新张量
    """
    average, k = weights.clone(), 0
    for _ in range(steps):
        total = torch.zeros_like(weights)
        for _ in range(accumulation):
            total = total + gradient(weights, k)
            k += 1
        weights = weights - lr * total
        average = decay * average + (1 - decay) * weights
    return weights, average


def fix_img2img(
    predict_eps: PredictEps, z: Tensor, eps: Tensor, times: list[int], alpha_bar: Tensor, n: int
) -> Tensor:
    """练习 15：找错误。从一张图像出发的 DDIM，走过采样器的最后 n 个时间步。

    现象：重绘强度低时，结果是带噪点的原图；强度为 1 时一切正常。

    predict_eps  调用方式 predict_eps(x, t)
    z            (B, C, h, w) 干净的潜变量；eps (B, C, h, w) 噪声
    times        N 个时间步，递减；最后一个之后就是干净的图像
    alpha_bar    (T,) 每个时间步 0 ... T - 1 的值
    n            要走的时间步数，在 1 与 N 之间
    返回         (B, C, h, w)，在干净的一端
    """
    a = alpha_bar[times[0]]
    times = times[len(times) - n :]
    x = a.sqrt() * z + (1 - a).sqrt() * eps
    for i, t in enumerate(times):
        a, noise = alpha_bar[t], predict_eps(x, t)
        x0 = (x - (1 - a).sqrt() * noise) / a.sqrt()
        b = alpha_bar[times[i + 1]] if i + 1 < len(times) else torch.ones(())
        x = b.sqrt() * x0 + (1 - b).sqrt() * noise
    return x


def fix_min_snr(alpha_bar: Tensor, gamma: float, prediction: str) -> Tensor:
    """练习 16：找错误。按 min-SNR 给各噪声水平的平方误差加权。

    现象：用预测 v 的模型，接近干净的水平几乎学不到东西，损失由最嘈杂的水平主导。用预测 eps 的模型则一切正常。

    x0 的误差应有的权重是 min(SNR, gamma)，其中 SNR = alpha^2 / sigma^2（Hang et al. 2023）。
    网络训练时用的是它自己的预测的平方误差，所以权重要换算：当 eps（或 v）的误差为 1 时，x0 的误差有多大？

    alpha_bar   (T,) alpha_t^2，都在 0 与 1 之间，不含两端
    gamma       通常为 5
    prediction  "eps" 或 "v"
    返回        (T,) 预测的平方误差的权重
    """
    snr = alpha_bar / (1 - alpha_bar)
    if prediction == "v":
        return snr.clamp(max=gamma) / (snr * (snr + 1))
    return snr.clamp(max=gamma) / snr


# ---------------------------------------------------------------------------------------------------- 第三级：达到目标


def merge_to_rank(adapters: list[Adapter], scales: list[float], rank: int) -> tuple[Tensor, Tensor]:
    """练习 17：达到目标：把同一层的几个 LoRA 合并成一个秩较小的 LoRA。

    D = sum_k scale_k alpha_k / r_k B_k A_k 的秩最大可达 sum r_k。你要得到一个秩为 `rank` 的文件，alpha = rank，
    使 B A 尽可能接近 D。测量两个数：

    误差    |D - B A| / |D|（平方和的平方根）                      至多为任何 B 和 A 所能达到的最小值的 1.01 倍
    平衡    A 和 B 的标准差中，较大的除以较小的                    至多 1.5，使两者都能用半精度保存

    这一层的 out = in，各适配器的矩阵大小相差悬殊。把各适配器并排放在一起，再截去 A 的最后几行和 B 的最后几列，
    误差会大得多。
    先用奇异值写出最小误差是多少（Eckart & Young 1936），再动手。

    adapters  K 个三元组：A (r_k, in)，B (out, r_k)，alpha_k
    scales    K 个数
    rank      小于各秩之和
    返回      A (rank, in)，B (out, rank)
    """
    raise NotImplementedError("exercise 17: merge_to_rank")
