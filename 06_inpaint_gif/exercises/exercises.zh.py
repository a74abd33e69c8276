"""第 6 章，亲手实现：十六个函数，从镜头留下的空缺到你自己的镜头运动。

第一级（练习 1 到 10）要你写出公式，其中最后两题要推导，由测试检验。第二级（11 到 14）给出一段有一处错误的短程序，
请你找到并改正。第三级（15 和 16）给出用数字衡量的目标。在本文件中作答；solutions.py 给出一种做法。
各题互不依赖，只有练习 11 用到练习 1。需要提示时运行 python -m common.grade 06 --lang zh --hint 3

约定与 camera.py、compositing.py、loss.py、repaint.py、timing.py 和 writers.py 相同：
  image    (C, H, W) 或 (B, C, H, W)，float32，取值在 [-1, 1]；0 是中灰。第 0 行在最上面，所以 y 向下
  mask     蒙版：空缺处为 1（白），要在那里作画；已知处为 0（黑），保持原样
  z        (B, C, h, w) 干净的潜变量，已缩放
  x        加噪的潜变量，x = alpha z + sigma eps，alpha^2 + sigma^2 = 1
  scale    一个像素覆盖平面上多大的范围：等于 2 时，镜头看到两倍的宽度，东西看起来只有一半大
  frames   (N, C, H, W) 动画的各帧，依次排列
任何函数都不改动传给它的张量。
"""

import math  # noqa: F401 - 供作答时使用，其他几个也是
from collections.abc import Callable, Sequence
from itertools import pairwise  # noqa: F401
from typing import NamedTuple

import numpy as np  # noqa: F401
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt  # noqa: F401
from torch import Tensor


class Level(NamedTuple):
    """一个噪声水平。写作 level.alpha 和 level.sigma。"""

    alpha: float
    sigma: float


Encode = Callable[[Tensor], Tensor]  # (B, 3, H, W) 图像 -> (B, c, h, w) 潜变量
Step = Callable[[Tensor, int], Tensor]  # 水平 k 的 x，k -> 水平 k + 1 的 x
Denoise = Callable[[Tensor, Level], tuple[Tensor, Tensor]]  # x 和它的噪声水平 -> 预测的 (x0, eps)


# ------------------------------------------------------------------------------------------------------ 第一级：写公式


def camera_move(image: Tensor, dx: int, dy: int) -> tuple[Tensor, Tensor]:
    """练习 1：镜头移动：还能看到什么，哪些地方要补画。

    moved(y, x) = image(y + dy, x + dx)，mask(y, x) = 0                       图像有这个像素的地方
    moved(y, x) = 0，                    mask(y, x) = 1                       图像没有这个像素的地方

    dx > 0 是向右：镜头向右走，画面中的东西就向左移，新的内容从右边缘进来。dy > 0 是向下。

    image    (C, H, W)
    dx, dy   整数个像素，正负和大小不限：镜头走得足够远，就完全看不到原图
    返回     moved (C, H, W) 和 mask (1, H, W) float32

    注意：torch.roll 会把从一边移出的内容从另一边移进来。图像本身也可能有中灰的像素：
    蒙版取决于看的是哪里，而不是在那里看到了什么。
    """
    raise NotImplementedError("exercise 1: camera_move")


def composite(original: Tensor, painted: Tensor, mask: Tensor, radius: float) -> Tensor:
    """练习 2：把已知的像素放回去，并使软边缘完全落在空缺之内。

    soft   = min(1, depth / (radius + 1))                                     depth：一个像素离最近的已知像素多远
    result = original + soft (painted - original)                             空缺内
    result = original                                                         蒙版为 0 处，逐位相同

    空缺最外圈像素的 depth 为 1；新图像从那里开始淡入，depth 达到 radius + 1 之后就只有新图像。
    depth 是像素中心之间的直线距离；空缺可以是任何形状。

    original  (C, H, W)
    painted   (C, H, W) 网络返回的图像；已知处可以是任何值，甚至是 NaN
    mask      (1, H, W) float32，只含 0 和 1；不会处处为 1
    radius    以像素为单位，不小于 0；为 0 时是硬边缘
    返回      (C, H, W)

    注意：模糊过的蒙版在边缘的已知一侧不再是 0。深度由 distance_transform_edt(array) 测量：
    对每个不为 0 的元素，给出它到最近的 0 的距离。要逐位相同的值不是算出来的，而是选出来的：
    painted + (original - painted) 不等于 original，0 乘以 NaN 是 NaN。
    """
    raise NotImplementedError("exercise 2: composite")


def clip_loss(images: Tensor, texts: Tensor, dish: Tensor, logit_scale: Tensor) -> Tensor:
    """练习 3：CLIP 的对比损失：在一批之中，每张图像要找到自己的名字，每个名字要找到自己的图像。

    L_ij   = exp(logit_scale) cos(image_i, text_j)                            （Radford et al. 2021，图 3）
    p_ij   = exp(L_ij) / sum_k exp(L_ik)                                      图像 i 有多像文本 j
    loss_i = -1/|P_i| sum_{j in P_i} log p_ij - log |P_i|                     P_i：dish_j = dish_i 的所有 j，含 i 自己

    先求一批之中 loss_i 的均值；再把两边互换，同样算一次（p 沿 L 的列归一化）；答案是这两个数的均值。
    如果各道菜都不相同，P_i 只有 i 自己，这就是 CLIP 原来的损失。如果一批之中有两盘是同一道菜，那么两个名字对两盘都算对
    （Khosla et al. 2020，L_out）；减去 log |P_i| 之后，最好的结果仍然是 0。

    images, texts  (B, D) 网络给出的向量，长度（范数）不限
    dish           (B,) 整数：这一对属于哪道菜
    logit_scale    () 一个数，也要学习：1 / 温度 的对数
    返回           () 一个数

    注意：余弦与向量的范数无关。两次的 softmax 各沿哪个轴？
    训练中 exp(logit_scale) 会增大到 100，而 exp(100) 在 float32 中是无穷大：torch 有 log_softmax。
    """
    raise NotImplementedError("exercise 3: clip_loss")


def nine_channels(weight: Tensor, x: Tensor, image: Tensor, mask: Tensor, encode: Encode) -> tuple[Tensor, Tensor]:
    """练习 4：让潜空间的 U-Net 看到空缺：c 个通道变成 2c + 1 个，4 个变成 9 个，而开始时什么也不改变。

    input  = [x | mask | encode(空缺处为中灰的图像)]                          （Rombach et al. 2022，第 4.5 节）
    weight = [weight | 0 ... 0]                                               使 conv(input) 等于原来的 conv(x)

    通道的这个次序，与 Stable Diffusion 的局部重绘网络和 diffusers 相同。

    weight   (width, c, 3, 3) U-Net 第一个卷积的权重
    x        (B, c, h, w) 加噪的潜变量
    image    (B, 3, H, W) 图像，包括要学习的那一部分：空缺里的内容就是答案
    mask     (B, 1, H, W) 只含 0 和 1
    encode   自编码器的编码器，调用一次，方式为 encode(images)
    返回     新的权重 (width, 2c + 1, 3, 3)，dtype 不变；以及输入 (B, 2c + 1, h, w)

    注意：不能让网络看到答案：编码器看到图像之前，空缺里清空了吗？用 F.interpolate 的默认方式把蒙版缩小到 (h, w)，
    它为每个潜变量取一个像素，所以结果仍是只含 0 和 1 的蒙版。
    """
    raise NotImplementedError("exercise 4: nine_channels")


def repaint_step(
    step: Step,
    x: Tensor,
    z: Tensor,
    mask: Tensor,
    k: int,
    alpha: Tensor,
    sigma: Tensor,
    eps_known: Tensor,
    eps_back: Tensor,
) -> Tensor:
    """练习 5：RePaint：降一级噪声水平，放入已知部分，再升回去，如此反复，直到边缘两侧协调一致。

    对 u = 0 ... U - 1：                                                      （Lugmayr et al. 2022，算法 1）
      known = alpha_(k+1) z + sigma_(k+1) eps_known[u]                        图像，噪声与水平 k + 1 相同
      x     = 空缺内为 step(x, k)，空缺外为 known
      如果 u < U - 1：                                                        处处回到水平 k
        x   = sqrt(1 - beta) x + sqrt(beta) eps_back[u]，   1 - beta = (alpha_k / alpha_(k+1))^2

    step          调用方式 step(x, k)，调用 U 次：从水平 k 走到水平 k + 1
    x             (B, C, h, w)，位于水平 k
    z             (B, C, h, w) 干净的图像；空缺内可以是任何值，甚至是 NaN
    mask          (B, 1, h, w)
    alpha, sigma  (N + 1,) 各水平，最嘈杂的在前；alpha_N = 1，sigma_N = 0
    eps_known     (U, B, C, h, w) 已知部分的噪声，每个 u 都是新的，与论文的算法相同
    eps_back      (U - 1, B, C, h, w) 也是噪声
    返回          (B, C, h, w)，位于水平 k + 1

    注意：论文里 m = 1 是已知部分，这里 1 是空缺。升回去时，x 已经含有噪声：
    alpha_k x + sigma_k eps 却把它当作干净的图像来加噪。
    """
    raise NotImplementedError("exercise 5: repaint_step")


def zoom_scales(frames: int, first: float, last: float, part: float) -> Tensor:
    """练习 6：没有顿挫的变焦：开始和结束都平缓，中间的视觉速度恒定。

    t        = k / (frames - 1)                                               第一帧为 0，最后一帧为 1
    s(t)     = v t^2 / (2 part)                    当 t < part                越来越快
    s(t)     = v (t - part / 2)                    当 part <= t <= 1/2        以恒定的速度 v = 1 / (1 - part)
    s(t)     = 1 - s(1 - t)                        当 t > 1/2                 前一半的倒放
    scale(t) = first (last / first)^s(t)                                      时间相等，倍数相等

    frames       不小于 2
    first, last  两端的 scale，大于 0；last < first 是推近
    part         加速所占的时间比例，大于 0，至多 1/2
    返回         (frames,) float32，每帧一个 scale

    注意：scale 从 1 到 2，东西缩小到一半；从 2 到 3，只缩小到三分之二。所以等量增大的 scale 看起来越来越慢。
    n 帧之中，最后一帧的编号是 n - 1。
    """
    raise NotImplementedError("exercise 6: zoom_scales")


def looped(shot: Tensor, loop: str, m: int = 0) -> Tensor:
    """练习 7：循环播放而看不出开头的动画。

    "pingpong"  去了再回来：0 1 2 ... T - 1 ... 2 1，之后又是 0
    "seamless"  镜头继续移动，结尾溶入开头。设动画有 n = T - m 帧：
                先是  shot[m], shot[m + 1] ... shot[n - 1]                    保持原样
                然后  (1 - w_k) shot[n + k] + w_k shot[k]                     k = 0 ... m - 1，w_k = (k + 1) / (m + 1)

    溶接的两边都在移动：shot[n + k] 淡出，shot[k] 淡入。
    最后一帧溶接之后，就是第一帧 shot[m]。

    shot     (T, C, H, W)，T >= 2
    loop     "pingpong" 或 "seamless"
    m        溶接的帧数，至少为 1，至多为 T / 2；"pingpong" 用不到它
    返回     "pingpong"：(2 T - 2, C, H, W)；"seamless"：(T - m, C, H, W)

    注意：同一帧连放两次，看起来就是停顿。0 1 2 3 3 2 1 0 里有两处停顿，因为最后一帧之后又是第一帧。
    如果某个 w_k 是 0 或 1，就完全看不到另一边。
    """
    raise NotImplementedError("exercise 7: looped")


def one_palette(frames: Tensor, palette: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """练习 8：GIF 的颜色很少。为整段动画只选一次颜色，要选得好，并指出每个像素用哪一种。

    重复 `rounds` 次：  1. 所有帧的每个像素归入最近的颜色，即 |pixel - palette_k|^2 最小的 k，
                           距离平方是红、绿、蓝三项之和
                        2. 每种颜色变成它的像素的均值                         （k 均值：Lloyd 1982）
    最后再做一次：每个像素归入此时的调色板中最近的颜色。

    没有像素归入的颜色保持不变。

    frames   (N, 3, H, W) uint8
    palette  (K, 3) float32，从 0 到 255：起始的颜色
    rounds   不小于 0
    返回     调色板 (K, 3) float32，不取整；以及颜色的编号 (N, H, W) int64

    注意：如果每帧各有自己的调色板，静止的东西也会闪烁颜色。
    frames.reshape(-1, 3) 不是像素的列表：红、绿、蓝在第 1 轴上（movedim）。
    空集的均值是 NaN。
    """
    raise NotImplementedError("exercise 8: one_palette")


def name_weight(q: Tensor, k: Tensor, zeros: int) -> tuple[Tensor, Tensor]:
    """练习 9：推导并检验。在零词元旁边，每个位置对名字的注意力有多大？

    查询为 q 的位置注意名字（它的键是 k）和 `zeros` 个零词元。产生键的层没有偏置，所以零词元的键为零。
    注意力是对各词元求 softmax(q . key / sqrt(d))（Vaswani et al. 2017，式 1）。
    设 a = q . k / sqrt(d)，推导两个关于 a 的公式，不对词元求 softmax：

    w      名字的权重
    dw/da  它的导数

    并用 torch.sigmoid 写出。测试把它们与 softmax 和 autograd 的结果比较。

    q        (N, d) N 个位置的查询；它们与 k 的内积可能很大
    k        (d,) 名字的键
    zeros    零词元的个数，至少为 1；教程里是 1
    返回     w (N,) 和 dw/da (N,)
    """
    raise NotImplementedError("exercise 9: name_weight")


def ideal_inpainting(known: Tensor, C: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
    """练习 10：推导并检验。对服从高斯分布的图像，局部重绘的精确答案。

    n 个像素的图像是 N(0, C) 的一个样本。空缺之外的像素已知。推导已知像素给定时空缺内像素的分布 p(x_hole | x_known)，
    它也是高斯分布。（用 C 的逆的分块写出 log p(x_hole, x_known)，再配方；或者找出 x_known 的线性函数，
    使误差与 x_known 不相关。）测试会抽取图像，检验这两个性质。

    known    (B, m) B 张图像的已知像素，次序与图像中相同
    C        (n, n) 协方差，对称，可逆
    hole     (n,) bool，空缺内为真；n = m + h
    返回     均值 (B, h)，以及协方差 (h, h)，后者对所有图像相同
    """
    raise NotImplementedError("exercise 10: ideal_inpainting")


# ------------------------------------------------------------------------------------------------------ 第二级：找错误


def fix_outpainting(paint: Callable[[Tensor, Tensor], Tensor], picture: Tensor, dx: int, keyframes: int) -> Tensor:
    """练习 11：找错误。镜头向右移动，每个关键帧接着前一帧画。

    现象：如果重绘函数原样返回已知像素，动画是对的。如果它在潜空间工作，每个关键帧单独看都不错，但盘子一帧比一帧模糊。

    paint      调用方式 paint(moved, mask)，返回整张图像 (C, H, W)
    picture    (C, H, W)
    dx         相邻关键帧之间的像素数
    keyframes  要画的关键帧数
    返回       (1 + keyframes, C, H, W)，原图在最前
    """
    film = [picture]
    for _ in range(keyframes):
        moved, mask = camera_move(film[-1], dx, 0)
        painted = paint(moved, mask)
        film.append(painted)
    return torch.stack(film)


def fix_candidates(
    encode_image: Callable[[Tensor], Tensor],
    encode_text: Callable[[Sequence[str]], Tensor],
    candidates: Tensor,
    name: str,
) -> int:
    """练习 12：找错误。画出的候选图像中，哪一张与名字的余弦最大？

    现象：不论名字是什么，常常选中同一张图像。那张图像的嵌入是最长的。

    encode_image  (N, C, H, W) -> (N, D) 嵌入，范数不限
    encode_text   B 个文本的列表 -> (B, D) 嵌入，范数不限
    candidates    (N, C, H, W)
    返回          最佳候选的下标，整数
    """
    images, text = encode_image(candidates), encode_text([name])[0]  # (N, D)，(D,)
    images = images / images.norm()
    return int((images @ text).argmax())


def fix_zoom(image: Tensor, scales: Sequence[float]) -> Tensor:
    """练习 13：找错误。以图像中心为中心变焦的各帧，用双线性插值。

    现象：scale 为 1 时，帧就是原图。但镜头推近时，盘子会漂移。scale 为 1/4 时，盘子的中心偏离帧的中心一个半像素。

    image    (C, H, W)
    scales   各帧的 scale：等于 2 时镜头看到两倍的宽度，等于 1/4 时看到四分之一
    返回     (N, C, H, W)；图像之外用它的边缘延续
    """
    _, H, W = image.shape
    frames = []
    for scale in scales:
        # 帧的每个像素看向图像的哪里，以图像的像素为单位；像素 k 覆盖从 k 到 k + 1 的范围
        y = (torch.arange(H) - H / 2) * scale + H / 2 + 0.5
        x = (torch.arange(W) - W / 2) * scale + W / 2 + 0.5
        grid = torch.stack(torch.broadcast_tensors(2 * x / W - 1, (2 * y / H - 1)[:, None]), -1)  # (H, W, 2)
        frames.append(F.grid_sample(image[None], grid[None], padding_mode="border", align_corners=False)[0])
    return torch.stack(frames)


def fix_regions(parts: Sequence[tuple[Denoise, Tensor]], x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """练习 14：找错误。把几个去噪器的预测合成一个，每个去噪器带有自己区域的权重。

    现象：各区域不重叠时，图像是对的。两个区域重叠的地方，图像一直有噪声。

    parts    每个区域的 (denoise, weight)，weight (1, 1, h, w) 从 0 到 1。在每个像素处以它们为权重，对各预测求加权平均；
             权重之和大于 0，不必等于 1
    x        (B, C, h, w)，位于该水平
    返回     (x0, eps)                                                     （Bar-Tal et al. 2023，"MultiDiffusion"）
    """
    total = sum(weight for _, weight in parts)
    x0, eps = torch.zeros_like(x), torch.zeros_like(x)
    for denoise, weight in parts:
        here_x0, here_eps = denoise(x, level)
        x0 = x0 + weight / total * here_x0
        eps = eps + weight * here_eps
    return x0, eps


# ---------------------------------------------------------------------------------------------------- 第三级：达到目标


def own_move(frames: int) -> Tensor:
    """练习 15：达到目标：设计你自己的镜头运动，不能是教程里那十二种。

    返回每一帧的窗口。动画是循环的，所以最后一帧之后又是第 0 帧。你的运动必须做到：

      起点      从原图开始：x = 0，y = 0，scale = 1
      游览      x 和 y 的变化范围各不小于 0.5，scale 从小于 1.05 变到大于 1.5
      不推近    scale 从不小于 1，因为更近的画面需要图像里没有的细节
      匀速      从每一帧到下一帧的位移，包括从最后一帧到第一帧的，与平均值相差不超过 3 %
      平滑      从一帧到下一帧，步向量的变化小于平均位移的 0.35 倍

    从窗口 a 到窗口 b，画面内容对所有像素的均方根位移是

    sqrt((|c_a - c_b|^2 + (s_a - s_b)^2 / 6) / s_b^2)          c = (x, y)，s = scale；1/6 是正方形内 |p|^2 的均值

    要求平滑的步向量是 ((x_b - x_a) / s_b, (y_b - y_a) / s_b, (s_b - s_a) / (sqrt(6) s_b))。

    frames   不小于 40
    返回     (frames, 3)：x、y（以图像边长为单位；y 向下）和 scale
    """

    raise NotImplementedError("exercise 15: own_move")


def fill_the_hole(denoise: Denoise, z: Tensor, hole: Tensor, noise: Callable[[], Tensor]) -> Tensor:
    """练习 16：达到目标：去噪器不知道空缺的存在，请用至多 200 次评估做局部重绘。

    数据是取自高斯分布的光滑闭曲线，`denoise` 是它们的理想去噪器。所以空缺的精确分布是已知的（练习 10），
    样本到均值的距离也是已知的。由你选择各水平、反复的次数和已知部分的噪声。你的样本到精确均值的均方根距离，
    与精确样本相比不得相差超过 15 %，已知部分必须恰好等于 z。

    用 200 个水平只走一遍 RePaint，距离会偏大 30 % 以上。先写下你的猜想：增加水平数和增加反复的次数，哪个更有用？

    denoise  调用方式 denoise(x, level)，level 是任何满足 alpha^2 + sigma^2 = 1 且 sigma > 0 的 Level；返回 (x0, eps)
    z        (B, n) 已知的曲线，空缺内为 NaN
    hole     (n,) bool，空缺内为真
    noise    调用方式 noise()，返回新的标准正态噪声 (B, n)
    返回     (B, n)
    """
    raise NotImplementedError("exercise 16: fill_the_hole")
