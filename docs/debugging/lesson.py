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
# # How to debug a training
#
# English · [中文](lesson.zh.ipynb)
#
# A diffusion model that was trained wrongly often gives no error. The loss falls, the program ends, and the samples are bad.
# In this lesson we make sixteen faults on purpose, one at a time, in the same small training. For each fault you see the loss, the
# files of the run and the samples, and then what `python -m common.doctor` says about them.
#
# 1. **a healthy run**, and the files it leaves;
# 2. **the first batch**: wrong ranges and wrong scales, which a falling loss hides;
# 3. **the loss curve**: not finite, too high a rate, too low a rate, no gradient;
# 4. **labels**: a class without images, and labels that belong to other images;
# 5. **a good loss and bad samples**: the average, the saved model, the way from samples to the file;
# 6. **overfitting**, which samples alone cannot show;
# 7. **the cure**, which is one line;
# 8. **a quiz**: three runs without names.
#
# You need chapter 1. Everything runs on a CPU in a few minutes. [The page on debugging](../debugging.md) has all faults in one table.

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

label_language("en")  # of the words in figures
say = translator("en", COURSE / "common" / "doctor", few=0)  # puts what the doctor says into the lesson's language
torch.set_num_threads(1)  # the networks are so small that more threads would only wait for one another
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
RUNS = Path(tempfile.mkdtemp())


def train(fault, steps=120):
    """Train the recipe of common/doctor/practice.py with one fault. Returns the run's folder."""
    run = RUNS / fault
    train_recipe(FAULTS[fault][1], run, steps)
    return run


def losses(run):
    """The loss of every step, from the run's log."""
    with open(run / "metrics.csv") as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def smooth(values, width=8):
    """Mean over a window of steps, because a single batch says little."""
    return np.convolve(values, np.ones(width) / width, "valid") if len(values) > width else values


def consult(*runs):
    """Print what the doctor finds wrong in each run."""
    for run in runs:
        found = [finding for finding in of_a_run(run, RUNS) if finding.status == WRONG]
        print(f"{run.name}:" + ("" if found else " nothing is wrong"))
        for finding in found:
            print(f"    {say(finding.subject)}: {say(finding.seen)}\n        cure: {say(finding.cure)}")


def show_samples(*runs):
    """samples.png of each run, one below the other, with its name."""
    figure, axes = plt.subplots(len(runs), 1, figsize=(7, 1.95 * len(runs)), squeeze=False, layout="constrained")
    for axis, run in zip(axes.flat, runs, strict=True):
        axis.imshow(Image.open(run / "samples.png").convert("RGB"), interpolation="nearest")
        axis.set_title(run.name, fontsize=9, loc="left")
        axis.axis("off")
    plt.show()


def show_losses(*runs, log=False):
    """The smoothed losses of several runs; the healthy one is black."""
    plt.figure(figsize=(6, 2.8))
    for run in runs:
        values = smooth(losses(run))
        colour = {"color": "black"} if run.name == "healthy" else {}
        plt.plot(np.arange(len(values)), values, label=run.name, **colour)
    plt.xlabel("step")
    plt.ylabel("loss, mean of 8 steps")
    plt.yscale("log" if log else "linear")
    plt.legend(fontsize=8)
    plt.show()


# %% [markdown]
# ## 1 · A healthy run
#
# The recipe is that of chapter 1 with labels: the embedded 8×8 digits, a small U-Net, v-prediction, the cosine schedule, 200
# steps of 16 images. A fault is a `Recipe` with one changed field; `FAULTS` holds all of them with their causes.

# %%
healthy = train("healthy", 200)
print(sorted(path.name for path in healthy.iterdir() if not path.name.startswith("events")))
batch = json.loads((healthy / "batch.json").read_text())["image"]
print({name: round(batch[name], 2) for name in ("min", "max", "mean", "std")})
show_losses(healthy)
show_samples(healthy)
consult(healthy)

# %% [markdown]
# These are the files to look at, in this order. `batch.json` says what the network got in the first batch. `metrics.csv` has the
# loss of each step. `checkpoints` holds the weights, their average (EMA) and the optimizer's state. `model` is the saved model,
# and `samples.png` was drawn with it. The digits are rough because the training is short.
#
# ## 2 · Look at the first batch before you look at the loss
#
# **Question:** five trainings get wrong data: images in $[0, 1]$, images in $[0, 255]$, darkened images, latents that were not
# scaled, and latents that were scaled twice. Which of them can you tell by their losses?

# %%
data_faults = [train(name) for name in ("range-0-1", "range-0-255", "dark", "unscaled-latents", "tiny-latents")]
show_losses(healthy, *data_faults, log=True)

# %% [markdown]
# **Right:** two of them. The loss of `range-0-255` is in the thousands, and that of `unscaled-latents` is above 5, where a
# healthy loss begins below 1. The other three losses lie *below* the healthy one. A loss has no absolute value that means
# "good": it depends on the scale of the data, on the prediction and on the weights.
#
# The first batch shows all five at once.

# %%
print(f"{'run':18} {'smallest':>9} {'largest':>9} {'mean':>9} {'std':>9}")
for run in [healthy, *data_faults]:
    values = json.loads((run / "batch.json").read_text())
    values = values.get("image") or values["latent"]
    print(f"{run.name:18} " + " ".join(f"{values[name]:9.2f}" for name in ("min", "max", "mean", "std")))

# %%
consult(*data_faults)
show_samples(*data_faults[:3])

# %% [markdown]
# The schedule assumes data with a standard deviation of about 1 around 0. Data in $[0, 1]$ have no negative values: the network
# learns images whose black is grey. Data in $[0, 255]$ are so large that the noise hardly changes them. Unscaled latents (5.5)
# look clean at levels where the network should learn to remove noise, and latents that were scaled twice (0.18) look like noise
# alone. Darkened images lie in the allowed range, so the range does not show them; the doctor compares the mean brightness of the
# samples with that of the data.
#
# **Rule:** print the minimum, maximum, mean and standard deviation of the first batch, as the network gets it.
#
# ## 3 · Four loss curves that say what is wrong
#
# **Question:** here are a broken image (NaN), a learning rate a hundred times too high, one a thousand times too low, and a
# gradient that is cut off by a `detach()` too many. Two of the curves look alike. What tells them apart?

# %%
curves = [train(name, 60) for name in ("not-finite", "rate-too-high", "rate-too-low", "frozen")]
show_losses(healthy, *curves[1:])
print("not-finite: diverged.json says", say(json.loads((curves[0] / "diverged.json").read_text())["message"]))
with open(curves[3] / "metrics.csv") as file:
    print("frozen: gradient norms", sorted({float(row["grad_norm"]) for row in csv.DictReader(file)}))
with open(curves[2] / "metrics.csv") as file:
    print("rate-too-low: largest gradient norm", max(float(row["grad_norm"]) for row in csv.DictReader(file)))

# %% [markdown]
# **Right:** the training with the broken image stopped at its first step, and `diverged.json` says why, so it has no curve. With
# too low a rate and with a cut gradient, the loss is a flat line. The norm of the gradient tells them apart: it is exactly 0
# where the gradient is cut. Too high a rate makes the loss jump in the first steps; afterwards it stays on a plateau,
# and a figure that begins later would hide the cause.

# %%
consult(*curves)

# %% [markdown]
# ## 4 · Labels
#
# **Question:** in one training there is no image of class 7. In the other, every image got the label of another image of its
# batch. Columns are classes 0 to 7 in the first row, then 8, 9 and 0 to 5. Where do you see the faults?

# %%
labels = [train(name, 200) for name in ("dead-class", "ignored-labels")]
show_samples(healthy, *labels)
show_losses(healthy, *labels)

# %% [markdown]
# **Right:** hardly anywhere. The last digit in the first row of `dead-class` should be a 7, and that of the healthy run is no
# clear 7 either; the samples of `ignored-labels` are as rough as the others. The losses differ by a few hundredths, because a
# label is a small part of what the network needs. Samples of a short training cannot show these faults.
#
# Both faults have a number that shows them at once. AdamW keeps the mean squared gradient of every weight; it is exactly 0 for a row
# that was never used. A network that uses its labels gets worse when the labels are swapped.

# %%
consult(*labels)

# %% [markdown]
# ## 5 · A good loss and bad samples
#
# The next four trainings have *the same loss* as the healthy one, to the last digit.
#
# **Question:** where can the fault be, if not in the training?

# %%
after = [train(name, 200) for name in ("ema-lag", "wrong-prediction", "tinted", "collapsed")]
print("largest difference from the healthy loss:", max(abs(losses(run) - losses(healthy)).max() for run in after))
show_samples(healthy, *after)

# %% [markdown]
# **Right:** behind the loss. The samples come from the averaged weights, and an average whose memory is longer than the training
# holds mostly the first, random weights. The saved folder names the prediction, and a sampler that takes $v$ for $\varepsilon$
# computes another image. Samples are converted to pixels, and a channel can be lost there. Noise can be drawn once for all
# samples.
#
# **Rule:** evaluate the *saved* model. Its loss on training images must agree with the log.

# %%
consult(*after)

# %% [markdown]
# ## 6 · Overfitting
#
# **Question:** this training has only eight images. Its loss is far below the healthy one. What is wrong?

# %%
overfit = train("overfit", 300)
show_samples(healthy, overfit)
show_losses(healthy, overfit)

# %% [markdown]
# **Right:** the network has memorized the eight training images, and neither its loss nor its samples say so. A comparison
# does. The doctor measures the loss on images that were not in the training, and it is clearly larger. (It also says that some classes were never
# seen, since eight images do not show ten digits.)

# %%
consult(overfit)

# %% [markdown]
# ## 7 · The cure is one line
#
# Each fault is one field of the recipe. Set the field back, and the training is the healthy one.
#
# **Question:** three faulty trainings are repeated without their fault, with the same seed. How large is the difference between
# their losses and those of the healthy training?

# %%
train_recipe(Recipe(), RUNS / "healthy, 60 steps", steps=60)
print(f"{'fault':16} {'cure':28} {'largest difference':>18} {'... without the cure':>20}")
for fault, cure in (
    ("range-0-1", {"batch": lambda batch: batch}),
    ("rate-too-high", {"lr": 4e-3}),
    ("ignored-labels", {"label": lambda label, draw: label}),
):
    recipe, differences = FAULTS[fault][1], []
    for name, each in ((f"{fault}, cured", replace(recipe, **cure)), (f"{fault}, 60 steps", recipe)):
        train_recipe(each, RUNS / name, steps=60)
        differences.append(abs(losses(RUNS / name) - losses(RUNS / "healthy, 60 steps")).max())
    print(f"{fault:16} {'set the field ' + ', '.join(cure):28} {differences[0]:18.2g} {differences[1]:20.2g}")

# %% [markdown]
# **Right:** there is none, not even in the last digit: everything random is a function of the seed and the step
# (`common/random.py`), so two runs differ only by what you changed. This is the condition for debugging by comparison: change
# one thing, keep the seed, and compare.
#
# ## 8 · A quiz
#
# **Question:** here are three of the runs of this lesson without their names. Write down a diagnosis for each, with one number
# that supports it, before you run the last cell.

# %%
shown = [data_faults[3], after[0], labels[0]]
names = np.random.default_rng(3).permutation(len(shown))  # the order is random
figure, axes = plt.subplots(3, 2, figsize=(8, 5.4), layout="constrained", width_ratios=(1, 2))
for letter, index, (left, right) in zip("ABC", names, axes, strict=True):
    run = shown[index]
    values = json.loads((run / "batch.json").read_text())
    values = values.get("image") or values["latent"]
    print(letter, "first batch: " + ", ".join(f"{name} {values[name]:.2f}" for name in ("min", "max", "mean", "std")))
    left.plot(smooth(losses(run)), color="black")
    left.set(title=f"{letter}: loss", xlabel="step")
    right.imshow(Image.open(run / "samples.png").convert("RGB"), interpolation="nearest")
    right.set_title(f"{letter}: samples, classes 0 to 7, then 8, 9, 0 to 5", fontsize=9)
    right.axis("off")
plt.show()

# %%
for letter, index in zip("ABC", names, strict=True):
    print(letter, end=" = ")
    consult(shown[index])

# %% [markdown]
# ## What you can do now
#
# You can tell sixteen faults apart by the first batch, the loss curve, the gradient's norm, the weights' average, the saved model
# and the samples. You look at causes before effects: data, loss, weights, samples. You can compare two runs that differ by one
# change alone.
#
# Practise with somebody who hides a fault from you: `python -m common.doctor --practice list`. On a training of your own, begin
# with `python -m common.doctor --run runs/...`. The doctor knows these faults and no others: too small a network, too few steps
# or captions that do not describe the images are not among them.
#
# - [All faults in one table](../debugging.md)
# - [Questions that people ask](../faq.md)
# - Andrej Karpathy, [A recipe for training neural networks](https://karpathy.github.io/2019/04/25/recipe/), 2019: become one with
#   the data, overfit one batch, change one thing at a time.
