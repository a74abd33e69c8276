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
# # 怎样调试训练
#
# [English](lesson.ipynb) · 中文
#
# 扩散模型训练错了，往往并不报错。损失在下降，程序正常结束，样本却很差。本教程故意制造十六种故障，每次一种，都放进同一个小训练里。对每种故障，你会看到损失、训练留下的文件和样本，然后看 `python -m common.doctor` 怎样诊断。
#
# 1. **一次健康的训练**，以及它留下的文件；
# 2. **第一批数据**：取值范围和缩放的错误，下降的损失会把它们掩盖起来；
# 3. **损失曲线**：不是有限的数、学习率太高、学习率太低、没有梯度；
# 4. **标签**：有一类没有图像，或者标签属于别的图像；
# 5. **损失很好，样本很差**：滑动平均、保存的模型、从样本到文件的途中；
# 6. **过拟合**，单看样本看不出来；
# 7. **对策**，只有一行；
# 8. **测验**：三次不写名字的训练。
#
# 你需要先学第 1 章。全部内容在 CPU 上运行，只要几分钟。[调试页](../debugging.zh.md)用一张表列出所有故障。在命令行上，诊断程序的输出是英文；本教程把它译成中文。

# %%
import csv
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from common.doctor.consultation import of_a_run
from common.doctor.finding import WRONG
from common.doctor.practice import FAULTS, Recipe, train_recipe
from common.grade.chapter import COURSE
from common.grade.marking.messages import translator
from common.viz import label_language

label_language("zh")  # 图中文字的语言
say = translator("zh", COURSE / "common" / "doctor", few=0)  # 把诊断程序的话变成教程的语言
torch.set_num_threads(1)  # 网络很小，线程多了只会互相等待
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
RUNS = Path(tempfile.mkdtemp())


def train(fault, steps=120):
    """按 common/doctor/practice.py 的配方训练，带一种故障。返回训练的文件夹。"""
    run = RUNS / fault
    train_recipe(FAULTS[fault][1], run, steps)
    return run


def losses(run):
    """每一步的损失，取自训练的日志。"""
    with open(run / "metrics.csv") as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def smooth(values, width=8):
    """对连续若干步取平均，因为单独一批说明不了什么。"""
    return np.convolve(values, np.ones(width) / width, "valid") if len(values) > width else values


def consult(*runs):
    """打印诊断程序在每次训练中发现的问题。"""
    for run in runs:
        found = [finding for finding in of_a_run(run, RUNS) if finding.status == WRONG]
        print(f"{run.name}：" + ("" if found else "没有问题"))
        for finding in found:
            print(f"    {say(finding.subject)}：{say(finding.seen)}\n        对策：{say(finding.cure)}")


def show_samples(*runs):
    """各次训练的 samples.png，上下排列，标出名字。"""
    figure, axes = plt.subplots(len(runs), 1, figsize=(7, 1.95 * len(runs)), squeeze=False, layout="constrained")
    for axis, run in zip(axes.flat, runs, strict=True):
        axis.imshow(Image.open(run / "samples.png").convert("RGB"), interpolation="nearest")
        axis.set_title(run.name, fontsize=9, loc="left")
        axis.axis("off")
    plt.show()


def show_losses(*runs, log=False):
    """几次训练平滑后的损失；健康的训练是黑线。"""
    plt.figure(figsize=(6, 2.8))
    for run in runs:
        values = smooth(losses(run))
        colour = {"color": "black"} if run.name == "healthy" else {}
        plt.plot(np.arange(len(values)), values, label=run.name, **colour)
    plt.xlabel("步")
    plt.ylabel("损失，8 步的平均")
    plt.yscale("log" if log else "linear")
    plt.legend(fontsize=8)
    plt.show()


# %% [markdown]
# ## 1 · 一次健康的训练
#
# 训练配方就是第 1 章带标签的那一个：课程自带的 8×8 数字、小型 U-Net、v 预测、余弦噪声调度，200 步，每步 16 张图像。一种故障就是改了一个字段的 `Recipe`；`FAULTS` 里有全部故障和它们的原因。

# %%
healthy = train("healthy", 200)
print(sorted(path.name for path in healthy.iterdir() if not path.name.startswith("events")))
batch = json.loads((healthy / "batch.json").read_text())["image"]
print({name: round(batch[name], 2) for name in ("min", "max", "mean", "std")})
show_losses(healthy)
show_samples(healthy)
consult(healthy)

# %% [markdown]
# 要看的文件就是这些，请按这个次序看。`batch.json` 记录第一批数据送进网络时的样子。`metrics.csv` 是每一步的损失。`checkpoints` 保存权重、权重的滑动平均（EMA）和优化器的状态。`model` 是保存下来的模型，`samples.png` 就是用它画的。训练很短，所以数字还很粗糙。
#
# ## 2 · 先看第一批数据，再看损失
#
# **问题：** 有五次训练拿到了错误的数据：$[0, 1]$ 中的图像、$[0, 255]$ 中的图像、变暗的图像、没有缩放的潜变量，以及缩放了两次的潜变量。单看损失，你能认出哪几种？

# %%
data_faults = [train(name) for name in ("range-0-1", "range-0-255", "dark", "unscaled-latents", "tiny-latents")]
show_losses(healthy, *data_faults, log=True)

# %% [markdown]
# **答案：** 两种。`range-0-255` 的损失上千；`unscaled-latents` 的损失大于 5，而健康的训练从 1 以下开始。其余三条损失曲线都在健康曲线的*下方*。损失没有一个绝对的数值表示“好”：它取决于数据的缩放、预测的是什么，以及各项的权重。
#
# 第一批数据则能同时认出这五种。

# %%
print(f"{'训练':16} {'最小值':>6} {'最大值':>6} {'均值':>7} {'标准差':>6}")
for run in [healthy, *data_faults]:
    values = json.loads((run / "batch.json").read_text())
    values = values.get("image") or values["latent"]
    print(f"{run.name:18} " + " ".join(f"{values[name]:9.2f}" for name in ("min", "max", "mean", "std")))

# %%
consult(*data_faults)
show_samples(*data_faults[:3])

# %% [markdown]
# 噪声调度假定数据以 0 为中心，标准差约为 1。$[0, 1]$ 中的数据没有负值：网络学到的图像，黑色成了灰色。$[0, 255]$ 中的数据太大，噪声几乎改变不了它们。没有缩放的潜变量（5.5）在网络本该学习去噪的噪声水平上看起来是干净的；缩放了两次的潜变量（0.18）看起来只剩噪声。变暗的图像没有超出允许的范围，所以从范围看不出来；诊断程序比较的是样本与数据的平均亮度。
#
# **规则：** 打印第一批数据送进网络时的最小值、最大值、均值和标准差。
#
# ## 3 · 四条能说明问题的损失曲线
#
# **问题：** 这里有一张损坏的图像（NaN）、大了一百倍的学习率、小了一千倍的学习率，以及被多余的 `detach()` 切断的梯度。其中两条曲线看起来一样。怎样区分它们？

# %%
curves = [train(name, 60) for name in ("not-finite", "rate-too-high", "rate-too-low", "frozen")]
show_losses(healthy, *curves[1:])
print("not-finite：diverged.json 写道", say(json.loads((curves[0] / "diverged.json").read_text())["message"]))
with open(curves[3] / "metrics.csv") as file:
    print("frozen：梯度的范数", sorted({float(row["grad_norm"]) for row in csv.DictReader(file)}))
with open(curves[2] / "metrics.csv") as file:
    print("rate-too-low：最大的梯度范数", max(float(row["grad_norm"]) for row in csv.DictReader(file)))

# %% [markdown]
# **答案：** 遇到损坏图像的训练在第一步就停了，所以没有曲线；`diverged.json` 写明了原因。学习率太低时，损失是一条水平线；梯度被切断时也是如此。能区分它们的是梯度的范数：梯度被切断时，它恰好为 0。学习率太高时，损失在最初几步突然升高，之后停在一个平台上；如果图从后面画起，原因就看不见了。

# %%
consult(*curves)

# %% [markdown]
# ## 4 · 标签
#
# **问题：** 一次训练里没有第 7 类的图像。另一次训练里，每张图像都换上了同一批中另一张图像的标签。各列的类别，第一行是 0 到 7，第二行是 8、9 和 0 到 5。你在哪里看得出这两种故障？

# %%
labels = [train(name, 200) for name in ("dead-class", "ignored-labels")]
show_samples(healthy, *labels)
show_losses(healthy, *labels)

# %% [markdown]
# **答案：** 几乎哪里都看不出。`dead-class` 第一行最后一个数字应当是 7，可是健康的训练画的也不是清楚的 7；`ignored-labels` 的样本与其他训练一样粗糙。损失只相差百分之几，因为在网络需要知道的东西里，标签只占很小一部分。训练很短时，样本显示不出这两种故障。
#
# 两种故障都有一个数，一看便知。AdamW 记录每个权重的梯度平方的均值；从未用到的那一行，它恰好为 0。用到标签的网络，标签一换，损失就会变大。

# %%
consult(*labels)

# %% [markdown]
# ## 5 · 损失很好，样本很差
#
# 下面四次训练的损失与健康的训练*完全相同*，直到最后一位数字。
#
# **问题：** 如果故障不在训练里，会在哪里？

# %%
after = [train(name, 200) for name in ("ema-lag", "wrong-prediction", "tinted", "collapsed")]
print("与健康训练的损失最多相差", max(abs(losses(run) - losses(healthy)).max() for run in after))
show_samples(healthy, *after)

# %% [markdown]
# **答案：** 在损失之后。样本来自滑动平均的权重；如果平均的记忆比训练还长，它里面大部分仍是最初的随机权重。保存的文件夹里写着预测的是什么；采样器如果把 $v$ 当成 $\varepsilon$，算出的就是另一张图像。样本要转换成像素，途中可能丢掉一个通道。噪声也可能只抽取了一次，所有样本都用同一份。
#
# **规则：** 要评估*保存下来的*模型。它在训练图像上的损失必须与日志相符。

# %%
consult(*after)

# %% [markdown]
# ## 6 · 过拟合
#
# **问题：** 这次训练只有八张图像。它的损失远低于健康的训练。哪里不对？

# %%
overfit = train("overfit", 300)
show_samples(healthy, overfit)
show_losses(healthy, overfit)

# %% [markdown]
# **答案：** 网络记住了八张训练图像，而损失和样本都不会告诉你。要比较才看得出来：诊断程序在没有参加训练的图像上测量损失，它明显更大。（诊断程序还说有几个类别从未出现，因为八张图像里没有全部十个数字。）

# %%
consult(overfit)

# %% [markdown]
# ## 7 · 对策只有一行
#
# 每种故障只是训练配方的一个字段。把这个字段改回来，训练就健康了。
#
# **问题：** 三次有故障的训练，去掉故障，用相同的种子重做一遍。它们的损失与健康训练的损失相差多少？

# %%
train_recipe(Recipe(), RUNS / "healthy，60 步", steps=60)
print(f"{'故障':14} {'对策':26} {'最大的差':>14} {'不改时的差':>15}")
for fault, cure in (
    ("range-0-1", {"batch": lambda batch: batch}),
    ("rate-too-high", {"lr": 4e-3}),
    ("ignored-labels", {"label": lambda label, draw: label}),
):
    recipe, differences = FAULTS[fault][1], []
    for name, each in ((f"{fault}，已改正", replace(recipe, **cure)), (f"{fault}，60 步", recipe)):
        train_recipe(each, RUNS / name, steps=60)
        differences.append(abs(losses(RUNS / name) - losses(RUNS / "healthy，60 步")).max())
    print(f"{fault:16} {'改回字段 ' + ', '.join(cure):24} {differences[0]:18.2g} {differences[1]:20.2g}")

# %% [markdown]
# **答案：** 一点不差，连最后一位数字都相同：一切随机的量都由种子和步数决定（`common/random.py`），所以两次训练只在你改过的地方不同。靠比较来调试，前提就是这一点：只改一处，保持种子不变，再作比较。
#
# ## 8 · 测验
#
# **问题：** 这里是本教程中的三次训练，没有写名字。运行最后一个单元格之前，为每一次写下诊断，并各用一个数来支持它。

# %%
shown = [data_faults[3], after[0], labels[0]]
names = np.random.default_rng(3).permutation(len(shown))  # 次序是随机的
figure, axes = plt.subplots(3, 2, figsize=(8, 5.4), layout="constrained", width_ratios=(1, 2))
for letter, index, (left, right) in zip("ABC", names, axes, strict=True):
    run = shown[index]
    values = json.loads((run / "batch.json").read_text())
    values = values.get("image") or values["latent"]
    print(letter, "第一批数据：" + ", ".join(f"{name} {values[name]:.2f}" for name in ("min", "max", "mean", "std")))
    left.plot(smooth(losses(run)), color="black")
    left.set(title=f"{letter}：损失", xlabel="步")
    right.imshow(Image.open(run / "samples.png").convert("RGB"), interpolation="nearest")
    right.set_title(f"{letter}：样本，类别 0 到 7，然后 8、9、0 到 5", fontsize=9)
    right.axis("off")
plt.show()

# %%
for letter, index in zip("ABC", names, strict=True):
    print(letter, end=" = ")
    consult(shown[index])

# %% [markdown]
# ## 现在你会做什么
#
# 你能用第一批数据、损失曲线、梯度的范数、权重的滑动平均、保存的模型和样本区分十六种故障。你先看原因，后看结果：数据、损失、权重、样本。你会比较只差一处改动的两次训练。
#
# 请别人藏一个故障，让你来找：`python -m common.doctor --practice list`。调试自己的训练，从 `python -m common.doctor --run runs/...` 开始。诊断程序只认得这些故障，别的都认不出：网络太小、步数太少、文本描述与图像不符，都不在其中。
#
# - [所有故障的总表](../debugging.zh.md)
# - [常见问题](../faq.zh.md)
# - Andrej Karpathy，[A recipe for training neural networks](https://karpathy.github.io/2019/04/25/recipe/)，2019：与数据融为一体，先在一批数据上过拟合，每次只改一处。
