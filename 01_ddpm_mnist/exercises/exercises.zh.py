"""第 1 章，亲手实现：从一串噪声率到由噪声生成的数字，分三级。

练习 1 到 14 要你写出公式，15 到 18 是各有一处错误的程序，19 是要达到的目标。请从上往下做。
在本文件中作答；solutions.py 给出一种做法。后面的练习可以调用前面的函数。
需要提示时运行 `python -m common.grade 01 --lang zh --hint 2`（这里是练习 2 的提示）

约定与 ddpm.py 和论文（Ho, Jain & Abbeel 2020）相同：
  images      float32，取值在 [-1, 1]，形状 (B, C, H, W)，图像
  t           噪声水平，从 1（几乎干净）到 T（纯噪声）
  beta_t      第 t 步所加噪声的方差；alpha_bar_t = (1 - beta_1) (1 - beta_2) ... (1 - beta_t)
  alpha_bar   (T + 1,)：下标就是论文的 t，第 0 项是干净图像，那里 alpha_bar = 1
  model       调用方式是 model(x_t, t - 1)，t - 1 的形状为 (B,)，因为网络的噪声水平从 0 开始数；
              它预测 x_t 中的噪声
任何函数都不改动传给它的张量。
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

EpsModel = Callable[[Tensor, Tensor], Tensor]  # (B, C, H, W)，(B,) t - 1 -> (B, C, H, W) 预测的噪声


# -------------------------------------------------------------------------------------------------- 第一级：写公式


def alpha_bars(betas: Tensor) -> Tensor:
    """练习 1：每一步之后，图像的方差还剩多大比例。

    alpha_bar_t = (1 - beta_1) (1 - beta_2) ... (1 - beta_t)        （DDPM，第 2 节，公式 4 之前）

    betas    (T,) beta_1 ... beta_T
    返回     (T + 1,) alpha_bar_0 ... alpha_bar_T
    """
    raise NotImplementedError("exercise 1: alpha_bars")


def add_noise(x0: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """练习 2：给每张图像加噪到它自己的噪声水平，一次走完全部 t 步。

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps         （DDPM，公式 4）

    x0, eps    (B, C, H, W) 图像，标准正态噪声
    t          (B,) 整数，从 0（干净图像）到 T
    alpha_bar  (T + 1,)
    返回       (B, C, H, W)
    """
    raise NotImplementedError("exercise 2: add_noise")


def guess_x0(x_t: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """练习 3：如果 eps 是 x_t 中的噪声，原来的图像是什么？

    x_t, eps   (B, C, H, W) 加噪图像，以及其中的噪声
    t          (B,) 整数，从 1 到 T
    alpha_bar  (T + 1,)
    返回       (B, C, H, W) 按公式 4 得到 x_t 的那个 x_0            （DDPM，公式 15）
    """
    raise NotImplementedError("exercise 3: guess_x0")


def score_of(eps: Tensor, t: Tensor, alpha_bar: Tensor) -> Tensor:
    """练习 4：与预测的噪声对应的分数。

    分数是 log p_t 在 x_t 处的梯度，它指向加噪图像更可能出现的方向。对一张干净图像 x_0，密度就是公式 4 的正态分布，
    它的分数是 x_t 中噪声的某个倍数。网络的预测是对 x_t 可能来自的所有图像的平均；乘以同一个倍数，就得到所有图像的分数。
    （Song & Ermon 2019，第 2.1 节；Vincent 2011）

    eps        (B, C, H, W) 预测的噪声
    t          (B,) 整数，从 1 到 T
    alpha_bar  (T + 1,)
    返回       (B, C, H, W) x_t 处的分数
    """
    raise NotImplementedError("exercise 4: score_of")


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """练习 5：把噪声水平变成网络能用的向量：快慢不同的波。

    angle_i = t / 10000^(i / half)      i = 0 ... half - 1，其中 half = dim / 2
    result  = sin(angle_0) ... sin(angle_{half-1}), cos(angle_0) ... cos(angle_{half-1})

    （Vaswani et al. 2017，第 3.5 节。与 DDPM 的代码一样，正弦在前；那份代码把 i 除以 half - 1，
    论文的公式和本练习都除以 half。）

    t        (B,) 整数
    dim      偶数
    返回     (B, dim) float32
    """
    raise NotImplementedError("exercise 5: time_embedding")


def add_class_embedding(embedding: Tensor, label: Tensor, table: Tensor) -> Tensor:
    """练习 6：类别条件：让网络知道图像属于哪一类。

    每个类别在一张表里有自己的向量，这张表与其他权重一样参与训练。把图像所属类别的向量加到噪声水平的嵌入上，
    它就会传到 U-Net 的每一个块。

    embedding  (B, D) 时间步嵌入，每张图像一个
    label      (B,) 整数，从 0 到 K - 1
    table      (K, D) 每个类别一个学习得到的向量
    返回       (B, D)；梯度传到 `table` 中用到的行，也传到 `embedding`
    """
    raise NotImplementedError("exercise 6: add_class_embedding")


def training_loss(model: EpsModel, pixels: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """练习 7：计算一次训练损失：算法 1，随机数已经给定。

    L = (eps - model(x_t, t - 1))^2 的平均                          （DDPM，公式 14）

    1. 把像素变成图像：0（黑）变成 -1，255（白）变成 1              （第 3.3 节）
    2. 每张图像的噪声水平 t 和  3. 噪声 eps：都已给定
    4. 一次给图像加好噪声（练习 2）
    5. 让网络预测噪声
    6. 对所有图像和所有像素的均方误差

    pixels     (B, C, H, W) uint8，0 到 255
    t          (B,) 整数，从 1 到 T
    eps        (B, C, H, W) 标准正态噪声
    返回       () 可以调用 .backward() 的张量
    """
    raise NotImplementedError("exercise 7: training_loss")


def training_step(
    net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, decay: float
) -> None:
    """练习 8：优化器沿这个损失的梯度更新一步，然后更新权重的平均值。

    average <- decay average + (1 - decay) weights                  （指数移动平均，EMA；DDPM，附录 B）

    采样时用平均值，它没有最后几步的抖动。

    net, average  两个网络，参数相同，次序也相同；两者都就地修改
    optimizer     net 的参数的优化器，参数里可能还存有上一步的梯度
    loss          () 由 net 算出
    decay         在 [0, 1) 中，实际约为 0.999：越接近 1，记忆越长
    """
    raise NotImplementedError("exercise 8: training_step")


def langevin_step(x: Tensor, score: Tensor, delta: float, z: Tensor) -> Tensor:
    """练习 9：朗之万动力学的一步；已知密度 p 的分数时，用它对 p 采样。

    步长为 delta 的一步沿分数方向移动，系数是 delta / 2，并加上方差为 delta 的噪声。走很多小步之后，
    点的分布就是 p。（Song & Ermon 2019，第 2.2 节）

    x        (B, ...) 点
    score    (B, ...) log p 在 x 处的梯度
    delta    步长，大于 0
    z        (B, ...) 新的标准正态噪声
    返回     (B, ...)
    """
    raise NotImplementedError("exercise 9: langevin_step")


def reverse_step(x_t: Tensor, t: int, eps: Tensor, z: Tensor, alpha_bar: Tensor) -> Tensor:
    """练习 10：往回走一步，从 x_t 到 x_{t-1}：算法 2 的循环体。

    x_{t-1}   = mean + sqrt(variance) z
    mean      = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(1 - beta_t)       （DDPM，公式 11）
    variance  = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t                    （DDPM，公式 7）

    x_t, eps   (B, ...) 加噪图像，以及网络预测的其中的噪声
    t          从 T 到 1，所有图像相同
    z          (B, ...) 新的标准正态噪声
    alpha_bar  (T + 1,) 有它就够了：beta_t 可以由其中的两项得到
    返回       (B, ...)；t = 1 时与 z 无关
    """
    raise NotImplementedError("exercise 10: reverse_step")


@torch.no_grad()
def sample(
    model: EpsModel, shape: tuple[int, ...], alpha_bar: Tensor, times: list[int], generator: torch.Generator
) -> Tensor:
    """练习 11：从纯噪声到图像：算法 2，经过所有噪声水平，或者只经过其中一些。

    从噪声开始。从 `times` 中噪声最多的一级到最干净的一级，每次让网络预测噪声，再用新的 z 往回走一步；最后一步到达
    噪声水平 0。从噪声水平 40 到 20 的一步，是一条更短、步子更大的链中的一步（Nichol & Dhariwal 2021，公式 19），
    但网络只认识长链的噪声水平。

    shape      (B, C, H, W) 要生成的图像的形状
    alpha_bar  (T + 1,)
    times      要经过的噪声水平，递增：[1, 2, ..., T] 就是算法 2 本身，[20, 40, ..., T] 快二十倍
    generator  先抽取 x，再为每一步抽取一个 z，都用 torch.randn(shape, generator=generator)
    返回       (B, C, H, W) 最后一步之后的图像
    """
    raise NotImplementedError("exercise 11: sample")


def frechet_distance(a: Tensor, b: Tensor) -> Tensor:
    """练习 12：两组特征之间的弗雷歇距离，也就是 FID 中的 F。

    每组特征用一个正态分布代替，均值和协方差与它相同（torch.cov，除以 N - 1），距离就是这两个正态分布之间的距离
    （Heusel et al. 2017；公式见教程）。两组相同时距离为 0；一组是另一组的平移时，距离为 |平移量|^2；
    一组是另一组以均值为中心缩放 s > 0 倍时，距离为 (s - 1)^2 乘以各方差之和。

    a, b     (N, D) 和 (M, D) 特征，float64
    返回     () float64
    """
    raise NotImplementedError("exercise 12: frechet_distance")


# ------------------------------------------------------------------------------------------------- 第一级：推导并检验


def posterior_variance(x0: float, t: int, alpha_bar: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """练习 13：已知 x_t 和 x_0 时，x_{t-1} 有多不确定？不用公式 7，把它测出来。

    先在纸上推导 q(x_{t-1} | x_t, x_0) 的方差：这个分布正比于两个正态密度 q(x_{t-1} | x_0) 与 q(x_t | x_{t-1}) 的乘积。
    然后模拟：用从 x0 开始的前向过程抽取 n 个数对 (x_{t-1}, x_t)，每个都是单个的数；只用这些数对，估计 x_t 相同时
    x_{t-1} 还会变化多少。检查会把你的估计与理论值比较，n = 200,000 时误差不能超过 5 %。

    x0         干净的值
    t          从 2 到 T
    alpha_bar  (T + 1,)
    n          数对的个数
    generator  所有随机数的来源
    返回       () 或一个 float：估计的方差
    """
    raise NotImplementedError("exercise 13: posterior_variance")


def tweedie_mean(log_density: Callable[[Tensor], Tensor], x_t: Tensor, alpha_bar_t: float) -> Tensor:
    """练习 14：只由加噪点的密度，求 x_t 可能来自的所有干净点的均值。

    推导：p_t(x_t) 是 p(x_0) N(x_t; sqrt(alpha_bar_t) x_0, 1 - alpha_bar_t) 对 x_0 的积分。对它的对数求梯度，
    解出 E[x_0 | x_t]（Tweedie 公式；Efron 2011）。检查知道干净的点，按它们的概率加权平均，再与你的结果比较。

    log_density  log p_t，(B, D) -> (B,)：可微，批次中的点互相独立
    x_t          (B, D) 加噪的点
    alpha_bar_t  它们的噪声水平，在 (0, 1) 中
    返回         (B, D) 每个点的 E[x_0 | x_t]
    """
    raise NotImplementedError("exercise 14: tweedie_mean")


# ------------------------------------------------------------------------------------------------------ 第二级：找错误


def fix_last_step(model: EpsModel, shape: tuple[int, ...], alpha_bar: Tensor, generator: torch.Generator) -> Tensor:
    """练习 15：找错误：每个样本都带有细小的噪点。

    这段程序是算法 2，方差用的是论文的另一种选择 beta_t，而不是公式 7（第 3.2 节）。只有一步不对。T = 1000 时
    噪点太细，看不出来，所以错误不会被发现；在只有 20 级的链中，第一张图就能看到。改正程序，保留方差 beta_t，
    并按相同的次序抽取随机数。

    shape      (B, C, H, W) 要生成的图像的形状
    alpha_bar  (T + 1,)
    返回       (B, C, H, W) 图像
    """
    x = torch.randn(shape, generator=generator)
    for t in range(len(alpha_bar) - 1, 0, -1):
        with torch.no_grad():
            eps = model(x, torch.full((len(x),), t - 1))
        beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
        mean = (x - beta / (1 - alpha_bar[t]).sqrt() * eps) / (1 - beta).sqrt()
        z = torch.randn(shape, generator=generator)
        x = mean + beta.sqrt() * z
    return x


def fix_range(model: EpsModel, pixels: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """练习 16：找错误：黑色变成了灰色。

    这段程序给图像加噪，再由一个能准确预测噪声的网络一次去掉噪声。结果应当是原来的图像。白色仍是白色，背景却是灰色，
    而且不报错。

    pixels   (B, C, H, W) uint8，0 到 255
    t        (B,) 整数，从 1 到 T
    eps      (B, C, H, W) 标准正态噪声
    返回     (B, C, H, W) uint8，去噪后的图像
    """
    x0 = pixels / 255
    x_t = add_noise(x0, t, eps, alpha_bar)
    with torch.no_grad():
        eps_predicted = model(x_t, t - 1)
    denoised = guess_x0(x_t, t, eps_predicted, alpha_bar).clamp(-1, 1)
    return ((denoised + 1) * 127.5).round().to(torch.uint8)


def fix_levels(
    net: nn.Module, x0: Tensor, shape: tuple[int, ...], alpha_bar: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """练习 17：找错误：损失很低，样本却有噪声。

    这段程序在一个批次上计算训练损失，再用同一个网络采样。T = 1000 时样本几乎正确。级数越少，样本里剩下的噪声越多，
    训练多久都没有用。改正程序，并按相同的次序抽取随机数。网络有 T 个噪声水平，0 到 T - 1。

    x0         (N, C, H, W) 用来训练的图像
    shape      (B, C, H, W) 要生成的图像的形状
    alpha_bar  (T + 1,)
    返回       () 损失，(B, C, H, W) 样本
    """
    T = len(alpha_bar) - 1
    t = torch.randint(T, (len(x0),), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    loss = (net(add_noise(x0, t, eps, alpha_bar), t) - eps).square().mean()
    x = torch.randn(shape, generator=generator)
    with torch.no_grad():
        for level in range(T, 0, -1):
            eps = net(x, torch.full((len(x),), level - 1))
            x = reverse_step(x, level, eps, torch.randn(shape, generator=generator), alpha_bar)
    return loss, x


def fix_training_log(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Tensor],
    alpha_bar: Tensor,
    generator: torch.Generator,
) -> list[float]:
    """练习 18：找错误：训练每走一步，占用的内存都会增加。

    这段程序训练一个网络，并记录平滑后的损失用来画图。网络学得正常，曲线也是对的。但内存一步一步地增加，
    训练时间一长，就会被操作系统终止。

    batches  图像 (B, C, H, W)，每一步一个批次
    返回     每一步之后的平滑损失
    """
    log, smooth = [], 0.0
    for x0 in batches:
        t = torch.randint(1, len(alpha_bar), (len(x0),), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        loss = (net(add_noise(x0, t, eps, alpha_bar), t - 1) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        smooth = 0.9 * smooth + 0.1 * loss
        log.append(smooth)
    return log


# ---------------------------------------------------------------------------------------------------- 第三级：达到目标


def fifteen_evaluations(model: EpsModel, x_T: Tensor, alpha_bar: Tensor, generator: torch.Generator) -> Tensor:
    """练习 19：达到目标：最多评估网络 15 次，得到好的样本。

    数据是平面上的点，分成八团，各团的权重不等。网络是理想的：在每个噪声水平都给出最好的噪声预测。所以误差只来自采样器。
    目标是误差不超过 0.03：误差是样本的分位数与数据的分位数之差，对各分位数和 16 个方向取平均（test_exercises.py 中的
    `sliced_distance`）。噪声水平等间距的十五个反向步，误差约为 0.06；取自数据本身的点，误差约为 0.01。

    model      调用方式是 model(x, t - 1)，点 (N, 2)，噪声水平 (N,)；第 16 次调用会报错
    x_T        (N, 2) 起始的标准正态噪声
    alpha_bar  (T + 1,)，T = 1000：DDPM 的线性噪声调度
    generator  如果需要更多噪声，从这里抽取
    返回       (N, 2) 样本
    """
    raise NotImplementedError("exercise 19: fifteen_evaluations")
