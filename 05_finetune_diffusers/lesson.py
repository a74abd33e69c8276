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
# # Chapter 5 · The professional tools
#
# Chapter 4 built a small Stable Diffusion by hand. Few people do that for a living: they take a model that others trained for months, use
# it with care, or teach it one thing more. The libraries for it are `diffusers`, `accelerate`, `peft`, Compel and
# `denoising_diffusion_pytorch`. We take each of them, and look inside until we could have written its core ourselves:
#
# 1. a **pipeline** (管线), and its loop in ten lines;
# 2. **schedulers** (调度器) exchanged, seeds, and guidance;
# 3. from a picture to a picture: **img2img** and its strength (重绘强度);
# 4. a mosaic taken away, and measured; two passes in latent space;
# 5. **inpainting** (局部重绘): the same, under a mask;
# 6. **prompt weights** (提示词权重): Compel, and the same in ten lines;
# 7. one training step of somebody else's package;
# 8. **LoRA** (低秩适配): a style, learned in a minute, kept in a small file;
# 9. what a training costs in memory (显存), counted;
# 10. **DreamBooth**: one creature, and how not to forget the others;
# 11. **ControlNet**: lines that pictures follow.
#
# You should have read chapter 4. Everything runs on a laptop's CPU with no download, in about three minutes. Each section names the program that
# does the same in earnest, with your pictures and any model: `--model stable-diffusion-v1-5/stable-diffusion-v1-5`.

# %%
from common.grade.chapter import (
    open_chapter,  # no module named common? Select the kernel in which the course is installed (README.md)
)

CHAPTER = open_chapter(
    "05_finetune_diffusers"
)  # this folder: from here on its files can be imported, wherever the kernel was started

# %%
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel

from common import viz
from common.data import load
from common.data.image_export import export
from common.io.pixels import to_float
from common.random import BatchRandom, batch_indices
from finetune_diffusers.data.degradations import (
    Degradation,
    grow_to_blocks,
    keep_known,
)  # what can happen to pictures,
from finetune_diffusers.data.edges import agreement, edges
from finetune_diffusers.data.latent_dataset import encode  # pictures as the frozen networks see them,
from finetune_diffusers.data.styles import STYLES, stray, styled_caption, styled_pixels
from finetune_diffusers.data.subject import portraits  # what no model has seen yet,
from finetune_diffusers.evaluation.metrics import rms_distance, similarity  # how near are pictures to others,
from finetune_diffusers.images import generators
from finetune_diffusers.models import as_task, native_size, open_pipeline, reconstruct  # pipelines,
from finetune_diffusers.prompt_weights import embed_by_compel, read_weights, weigh
from finetune_diffusers.schedulers import make_scheduler, use_scheduler
from finetune_diffusers.training.controlnet import (  # lines that are followed,
    edges_of,
    new_controlnet,
    predict_with_controlnet,
    with_controlnet,
)
from finetune_diffusers.training.ddpm_package_trainer import make_diffusion, step_by_hand  # somebody else's package,
from finetune_diffusers.training.flags import ATTENTION, PackageFlags
from finetune_diffusers.training.lora import add_adapter, save_adapter  # thin matrices,
from finetune_diffusers.training.loss import LatentDenoising, min_snr_weights  # and what is minimised

plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
MODEL = CHAPTER.parent / "04_latent_sd" / "pretrained"  # chapter 4's; or the folder of any Stable Diffusion 1.x
STEPS = 12  # of a picture
LORA_STEPS, CONTROL_STEPS = 120, 320  # of the two trainings: enough to see that they work, far from enough to be good


def show_images(images, columns, across=(), down=(), cell=0.9):
    """A grid of images (N, 1 or 3, S, S) in [-1, 1], with words above the columns and beside the rows."""
    picture, pitch = viz.grid(images, columns), images.shape[-1] + 2
    rows = len(images) // columns
    plt.figure(figsize=(cell * columns + 1.5 * bool(down), cell * rows + 0.3), layout="constrained")
    plt.imshow(picture, interpolation="nearest")
    plt.xticks([pitch * (i + 0.5) for i in range(len(across))], across)
    plt.yticks([pitch * (i + 0.5) for i in range(len(down))], down)
    plt.gca().tick_params(length=0, labeltop=True, labelbottom=False)
    plt.gca().spines[:].set_visible(False)
    plt.show()


def mean_and_error(values):
    return f"{float(values.mean()):.2f} ± {float(values.std() / len(values) ** 0.5):.2f}"


# %% [markdown]
# ## 1 · A pipeline
#
# `diffusers` calls a model with everything that it needs a **pipeline**: networks, a tokenizer, and a scheduler, which knows the noise levels and
# how to step from one to the next. On disk it is a folder with a folder for each part, and a `model_index.json` that says what they are. (Ours: `generate.py`.)

# %%
pipe = open_pipeline(MODEL)
pipe.set_progress_bar_config(disable=True)
size, f = native_size(pipe), pipe.vae_scale_factor
for name, part in pipe.components.items():
    weights = sum(p.numel() for p in part.parameters()) if hasattr(part, "parameters") else 0
    if part is not None:
        print(f"{name:14}{type(part).__name__:24}{f'{weights:>12,} weights' if weights else ''}")
print(
    f"pictures of {size} x {size}, latents of {pipe.unet.config.in_channels} x {size // f} x {size // f}; it predicts {pipe.scheduler.config.prediction_type}"
)

# %% [markdown]
# You call it with words, and it gives pictures. What it does is chapter 4's loop. Here it is with the library's own parts, and then the proof that there
# is no more to it:

# %%
PROMPT, W = "a red creature with wings", 4.0


@torch.no_grad()
def draw_by_hand(prompt, seed):
    words = torch.cat([pipe.encode_prompt([text], "cpu", 1, False)[0] for text in ("", prompt)])  # (2, M, D)
    pipe.scheduler.set_timesteps(STEPS)
    x = torch.randn(
        (1, pipe.unet.config.in_channels, size // f, size // f), generator=torch.Generator().manual_seed(seed)
    )
    x = x * pipe.scheduler.init_noise_sigma
    for t in pipe.scheduler.timesteps:
        both = pipe.scheduler.scale_model_input(torch.cat([x, x]), t)  # (2, C, h, w)
        uncond, cond = pipe.unet(both, t, words, return_dict=False)[0].chunk(2)
        x = pipe.scheduler.step(uncond + W * (cond - uncond), t, x, return_dict=False)[0]
    return pipe.vae.decode(x / pipe.vae.config.scaling_factor, return_dict=False)[0].clamp(-1, 1)


def draw(prompts, seed=0, pipe=pipe, **more):
    """A picture of each prompt; picture i has the seed seed + i. (N, 3, S, S) in [-1, 1]"""
    wish = {
        "num_inference_steps": STEPS,
        "guidance_scale": W,
        "generator": generators(seed, len(prompts)),
        "output_type": "pt",
    }
    return pipe(list(prompts), **wish | more).images * 2 - 1


use_scheduler(pipe, "ddim")
ours, theirs = draw_by_hand(PROMPT, seed=0), draw([PROMPT])
print(f"largest difference between the two pictures: {float((ours - theirs).abs().max()):.1e}")

# %% [markdown]
# ## 2 · Schedulers exchanged, seeds, guidance
#
# A scheduler is *how* one samples, not *what* was learned, so any of them goes with any model of one kind. One exchanges it with
# `pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)`: the configuration says how the model was trained (its noise levels, what it predicts),
# and the class says how to walk. A trap lies in that line: some settings, once set, travel on in the configuration. After a scheduler with the spacing of
# Karras et al. (its noise levels lie closer to each other towards the end), every later one has that spacing too, unless one takes the setting out (`make_scheduler` in `models.py`).
#
# A row for each scheduler, a column for each seed: the same seed gives the same first noise, whatever scheduler walks from it.

# %%
names, rows = ["ddim", "euler", "dpm++", "unipc", "euler-a"], []
for name in names:
    use_scheduler(pipe, name)
    rows.append(draw([PROMPT] * 4))
show_images(torch.cat(rows), 4, [f"seed {i}" for i in range(4)], names)

# %% [markdown]
# The first four add no noise on their way, so from the same first noise they go to nearly the same picture. Euler ancestral (`euler-a`) adds fresh noise at every step, and goes elsewhere.
#
# Two more things that one sets. **Guidance** (引导强度) $w$ extrapolates from the answer without words to the answer with them; a **negative prompt** (反向提示词) takes the
# place of the empty one, so that the picture is led away from it. Each row has one seed; in the last column *red* is not wanted, though the prompt still asks for it:

# %%
use_scheduler(pipe, "dpm++")
scales = [1.0, 3.0, 8.0, 20.0]
columns = [draw([PROMPT] * 3, guidance_scale=w) for w in scales]
columns.append(draw([PROMPT] * 3, negative_prompt=["red"] * 3))
show_images(torch.stack(columns, 1).flatten(0, 1), 5, [f"w = {w:g}" for w in scales] + ["not red"])

# %% [markdown]
# ## 3 · From a picture to a picture
#
# `img2img` begins with a picture instead of with noise. The picture is encoded, taken back to noise a part of the way (the **strength**), and drawn
# again from there, as the prompt says. A strength of 0.4 with 20 steps takes the last 8 of them.
#
# You can read that *lower strength keeps the picture, and higher strength follows the prompt* ([claims](../docs/claims.md#strength-trades-the-image-against-the-prompt)). We let creatures be redrawn with a prompt that is not theirs, *a blue creature with horns*, at five strengths $s$:

# %%
image_pipe = as_task(pipe, "image")  # the same networks, in a pipeline for another task: no weight is copied
image_pipe.set_progress_bar_config(disable=True)
creatures = load("creatures", size, split="test", language="en", n=24)
some, strengths = to_float(creatures.pixels[:4]), [0.2, 0.4, 0.6, 0.8, 1.0]
redrawn = [
    draw(["a blue creature with horns"] * 4, pipe=image_pipe, image=(some + 1) / 2, strength=s, num_inference_steps=20)
    for s in strengths
]
show_images(torch.stack([some, *redrawn], 1).flatten(0, 1), 6, ["the picture"] + [f"s = {s:g}" for s in strengths])
print("how far from the picture (root mean square, of pixels from -1 to 1):")
for s, images in zip(strengths, redrawn, strict=True):
    print(f"  strength {s:g}: {mean_and_error(rms_distance(images, some))}")

# %% [markdown]
# That says how far the pixels have moved, and not whether the picture now *is* what the prompt says. `studies/strength.py` asks the course's judge of creatures about that (chapter 2), attribute
# by attribute, over many pictures; and it looks at what ever more guidance does to pictures. What came out stands at the end of this lesson.
#
# ## 4 · A mosaic taken away
#
# Now something useful. A creature that no model of the course was trained on is hidden under a mosaic. Every block is the mean of what was there, so
# the mosaic is one hint of what it looked like, and the prompt (its true caption) another. Too little strength leaves the mosaic; too much invents another creature. We know
# the truth, so we can measure: **PSNR** (峰值信噪比; chapter 4) in decibels, the larger the nearer.


# %%
def repaired(strength, w=2.0, **more):
    images = draw(
        list(creatures.captions[:6]),
        pipe=image_pipe,
        image=(hidden + 1) / 2,
        strength=strength,
        guidance_scale=w,
        num_inference_steps=20,
        **more,
    )
    return keep_known(images, hidden, mask)  # known pixels exactly as they were


truth = to_float(creatures.pixels[:6])
mosaic = Degradation("mosaic", block=8, fraction=0.6)
mask = mosaic.mask(6, size, size)
hidden = mosaic.corrupt(truth, mask)
results = {"the truth": truth, "mosaic": hidden, "bicubic": mosaic.classical_repair(hidden, mask)}
results |= {f"s = {s:g}": repaired(s) for s in (0.2, 0.4, 0.6)}
show_images(torch.stack(list(results.values()), 1).flatten(0, 1), len(results), list(results))
for name, images in list(results.items())[1:]:
    print(f"{name:14} PSNR {mean_and_error(similarity(images, truth)['psnr'])} dB")

# %% [markdown]
# Bicubic interpolation between the block means is *the old way*, and hard to beat in PSNR. For PSNR counts squared errors, and who does not know where an eye is makes the smallest squared error with
# the mean of all eyes that could be there: a blur (chapter 1). So look at the pictures, too. `restore.py` does the whole study: strength × guidance × steps, with noise and scratches, tables and curves.
#
# **Two passes.** Does a second, gentle pass take away what the first has left? Handing on pictures means decoding and encoding in between, and both
# lose something. With `output_type="latent"` a pipeline gives its latents, and the next one takes them as they are:

# %%
latents = image_pipe(
    list(creatures.captions[:6]),
    image=(hidden + 1) / 2,
    strength=0.4,
    guidance_scale=2.0,
    num_inference_steps=20,
    generator=generators(0, 6),
    output_type="latent",
).images
again = draw(
    list(creatures.captions[:6]),
    seed=6,
    pipe=image_pipe,
    image=latents,
    strength=0.2,
    guidance_scale=2.0,
    num_inference_steps=20,
)
print(f"handed on: latents {tuple(latents.shape)}")
for name, images in (("one pass", results["s = 0.4"]), ("two passes", keep_known(again, hidden, mask))):
    print(f"{name:14} PSNR {mean_and_error(similarity(images, truth)['psnr'])} dB")

# %% [markdown]
# ## 5 · Inpainting
#
# The mosaic hid a box, and the rest of the picture was known. `img2img` draws everything anew and puts the known pixels back afterwards; the network never
# sees that they were right. **Inpainting** puts them back *at every step*, as noisy as the picture is at that step, so that what it draws fits to what is there.
# Exercise 8 is this loop.
#
# With thin scratches one detail decides. Latents are $f = 4$ times smaller a side, so the mask must shrink, too. `diffusers` looks at one pixel of each block of $4 \times 4$, and misses a line that
# passes through the block elsewhere. So we grow the mask to whole blocks first, and count what would have been missed:

# %%
scratch = Degradation("scratch", scratches=5)
scratches = scratch.mask(4, size, size)
scratched = scratch.corrupt(truth[:4], scratches)
inpaint_pipe = as_task(pipe, "inpaint")
inpaint_pipe.set_progress_bar_config(disable=True)
filled = keep_known(
    draw(
        list(creatures.captions[:4]),
        pipe=inpaint_pipe,
        image=(scratched + 1) / 2,
        mask_image=grow_to_blocks(scratches, f),
        strength=0.7,
        guidance_scale=2.0,
        num_inference_steps=20,
        height=size,
        width=size,
    ),
    scratched,
    scratches,
)
shrunk = torch.nn.functional.interpolate(scratches, (size // f, size // f))
grown = torch.nn.functional.interpolate(grow_to_blocks(scratches, f), (size // f, size // f))
show_images(torch.stack([truth[:4], scratched, filled], 1).flatten(0, 1), 3, ["the truth", "scratched", "inpainted"])
print(
    f"places that a scratch passes through: {int(grown.sum())}; places that the plain mask would have repainted: {int(shrunk.sum())}"
)
print(
    f"PSNR scratched {mean_and_error(similarity(scratched, truth[:4])['psnr'])}, inpainted {mean_and_error(similarity(filled, truth[:4])['psnr'])} dB"
)

# %% [markdown]
# (Models made for inpainting, with 9 input channels instead of 4, are shown mask and known picture as well. `restore.py` and `generate.py` tell you which kind you have.)
#
# ## 6 · Prompt weights
#
# `red++` counts more, `(wings)0.5` less: that is the language of **Compel**. A prompt becomes one vector for each token. A weight moves a word's vectors $z$ away from those of the
# *empty* prompt, or towards them:
#
# $$z' = z_\varnothing + s\,(z - z_\varnothing)$$
#
# Below 1 there is one thing more: the other words have looked at this word already, so what they are without it is mixed in. Exercise 6 has the formula;
# `weigh` in `finetune_diffusers/prompt_weights.py` is ten lines. Are they Compel's?

# %%
weighted = "a red creature with (wings)1.6 and (horns)0.4"
fragments = read_weights(weighted)
theirs, ours = embed_by_compel(pipe, weighted).tokens, weigh(pipe.tokenizer, pipe.text_encoder, fragments)
print("  ".join(f"{text} ({weight:g})" for text, weight in fragments))
print(f"largest difference between Compel's vectors and ours: {float((theirs - ours).abs().max()):.1e}")

nothing = weigh(pipe.tokenizer, pipe.text_encoder, [("", 1.0)]).expand(4, -1, -1)
rows, weights_of_wings = [], [0.0, 0.5, 1.0, 1.5]
for weight in weights_of_wings:
    z = weigh(pipe.tokenizer, pipe.text_encoder, [("a red creature with", 1.0), ("wings", weight)]).expand(4, -1, -1)
    images = pipe(
        prompt_embeds=z,
        negative_prompt_embeds=nothing,
        num_inference_steps=STEPS,
        guidance_scale=W,
        generator=generators(0, 4),
        output_type="pt",
    ).images
    rows.append(images * 2 - 1)
show_images(torch.cat(rows), 4, [f"seed {i}" for i in range(4)], [f"(wings){weight:g}" for weight in weights_of_wings])

# %% [markdown]
# ## 7 · One step of somebody else's package
#
# `denoising_diffusion_pytorch` trains on a folder of pictures in six lines: a `Unet`, a `GaussianDiffusion` around it, a `Trainer` around both. When you meet a package like
# this, do **one step by hand** first, and compare its loss with yours: then you know what it does with your pictures.

# %%
folder = tempfile.TemporaryDirectory()  # goes away with the notebook
here = Path(folder.name)
export(load("creatures", 32, n=8), here / "pictures")
diffusion = make_diffusion(PackageFlags(size=32, dim=8, seed=0))
loss_by_hand = step_by_hand(diffusion, here / "pictures", seed=0)

# %% [markdown]
# These are chapter 1's six steps in other words. `ddpm_package.py` goes on with the Trainer (EMA, accumulation, half precision on a GPU); `train_unconditional.py` does the
# same with `diffusers` and `accelerate`, where one sees every line, and can be stopped and resumed to the bit.
#
# ## 8 · A style in a small file: LoRA
#
# To fine-tune a model one may go on training all of it. Or one leaves it alone: beside some of its matrices $W$ (those of the attention) stand two thin ones,
# and only these learn:
#
# $$W' = W + \frac{\alpha}{r}\, B A, \qquad A \in \mathbb{R}^{r \times \text{in}},\; B \in \mathbb{R}^{\text{out} \times r}$$
#
# The **rank** $r$ says how thin they are, and $\alpha$ how loud; here both are 8. $B$ begins at zero, so in the beginning nothing is changed (exercises 1 and 2). `peft` puts the two
# matrices into the U-Net. What shall it learn? A **woodcut**: two inks, dark and light. As we draw the style ourselves, we can measure it: in the style, every colour lies on the line between the two inks, and how far a picture *strays* from that line is a number.

# %%
style, data_set = STYLES["woodcut"], load("creatures", size, language="en", n=200)
pixels = styled_pixels(style, data_set.pixels)
captions = [styled_caption(style, caption) for caption in data_set.captions]
show_images(torch.cat([to_float(data_set.pixels[:6]), to_float(pixels[:6])]), 6, down=["before", "in the style"])
print(captions[0])

# %% [markdown]
# The autoencoder and the text encoder are frozen, so what they say of a picture and a caption never changes, and is computed once (`encode`). Then comes a training loop of a few lines: `batch_indices` chooses the
# pictures of step $k$, and `BatchRandom` gives its random numbers, both from a seed and $k$ alone. The noise levels are weighed by **min-SNR** (chapter 3): the nearly clean ones, which are many and easy, do not drown the others.

# %%
data = encode(pipe, replace(data_set, pixels=pixels), captions, quiet=True)
noise = make_scheduler("ddpm", dict(pipe.scheduler.config))
loss = LatentDenoising(noise, min_snr_weights(noise, 5.0), data.empty, caption_dropout=0.1)
asked = [
    f"{prompt}, {style.words}"
    for prompt in (
        "a red creature with wings",
        "a blue round creature",
        "a green creature with a long tail",
        "a purple creature with horns",
    )
]
before = draw(asked)

pipe.unet.requires_grad_(False)
layers = add_adapter(pipe.unet, rank=8, alpha=None, targets=ATTENTION, seed=0)
trained = [weight for weight in pipe.unet.parameters() if weight.requires_grad]
print(
    f"adapters at {layers} layers: {sum(w.numel() for w in trained):,} weights are trained, {sum(w.numel() for w in pipe.unet.parameters()):,} there are"
)
print(f"new adapters change nothing: largest difference {float((draw(asked) - before).abs().max()):g}")

optimizer, losses, began = torch.optim.AdamW(trained, 3e-3), [], time.perf_counter()
for k in range(LORA_STEPS):
    batch = data.batch(batch_indices(len(data), 8, k, seed=0))
    error = loss(pipe.unet, batch, BatchRandom(0, k)).per_sample.mean()
    error.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(float(error.detach()))
print(
    f"{LORA_STEPS} steps of 8 pictures in {time.perf_counter() - began:.0f} s; loss {np.mean(losses[:20]):.3f} in the first 20, {np.mean(losses[-20:]):.3f} in the last"
)

# %% [markdown]
# The adapter is saved as a file that plain `diffusers` opens, and loaded into a fresh pipeline. Its **scale** turns it up and down: at 0 the model is the one it was, to the bit.

# %%
path = save_adapter(pipe.unet, here / "woodcut.safetensors")
print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
fresh = open_pipeline(MODEL)
fresh.set_progress_bar_config(disable=True)
use_scheduler(fresh, "dpm++")
fresh.load_lora_weights(here, weight_name="woodcut.safetensors", adapter_name="woodcut")
rows, loudness = [], [0.0, 0.5, 1.0]
for scale in loudness:
    fresh.set_adapters(["woodcut"], [scale])
    rows.append(draw(asked, pipe=fresh))
    print(f"scale {scale:g}: stray from the style {mean_and_error(stray(style, rows[-1]))}")
print(f"at scale 0, the difference from the model without it is {float((rows[0] - before).abs().max()):g}")
show_images(torch.cat(rows), 4, down=[f"scale {scale:g}" for scale in loudness])

# %% [markdown]
# In earnest: `lora.py` (more steps, an average of the weights as in exercise 4, validation pictures, resume, several adapters mixed) and `finetune.py` (all weights).
#
# ## 9 · What a training costs in memory
#
# Bytes can be counted. A weight in float32 takes 4. One that is trained has a gradient (4), two numbers of AdamW's (8) and, where one keeps an average, that as well (4). What a step needs for
# its activations comes on top, and depends on the batch.


# %%
def counted(trained, there):
    return {"weights": 4 * there, "gradients": 4 * trained, "AdamW": 8 * trained, "average": 4 * trained}


def lora_weights(unet, rank=8):
    """A has rank x in weights, B out x rank."""
    layers = [layer for name, layer in unet.named_modules() if name.endswith(ATTENTION)]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


with torch.device(
    "meta"
):  # shapes without numbers: Stable Diffusion 1.5's U-Net, which nobody need download to count it
    large = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
costs = {}
for name, unet in (("ours", fresh.unet), ("SD 1.5", large)):
    n, k = sum(w.numel() for key, w in unet.named_parameters() if "lora" not in key), lora_weights(unet)
    costs |= {f"{name}, all {n:,}": counted(n, n), f"{name}, a LoRA's {k:,}": counted(k, n + k)}
print(
    f"{'weights trained':26}"
    + "".join(f"{name:>12}" for name in ("weights", "gradients", "AdamW", "average"))
    + f"{'together':>12}"
)
for name, parts in costs.items():
    print(f"{name:26}" + "".join(f"{b / 1e6:9.1f} MB" for b in (*parts.values(), sum(parts.values()))))

# %% [markdown]
# So all of Stable Diffusion 1.5 in float32, with an average, does not fit into 16 GB before it has seen a picture; a LoRA does. The programs print such a table with what the system or
# the card really held. What helps, in this order: accumulate gradients over smaller batches (exercise 3), gradient checkpointing, an optimizer in 8 bits, a LoRA.
#
# ## 10 · DreamBooth: this one
#
# Five pictures of one dog, and a word for it that means nothing yet: "sks". After some hundred steps "a sks dog on the moon" should show that very dog. Two things go wrong easily. First, with so few pictures the model
# forgets what other dogs look like. Against that, every batch also has pictures that the model itself drew of "a dog" *before* the training: **prior preservation** (先验保留),
#
# $$L = \text{mean}_{\text{subject}}(\text{error}) + \lambda\, \text{mean}_{\text{kind}}(\text{error})$$
#
# with a weight $\lambda$, usually 1 (exercise 5). Second, the word must really be new: where the vocabulary knows it, its old meaning is mixed in. Our subject has a scarf, which no caption has a word for:

# %%
fresh.unload_lora_weights()  # the model as it came
kind = draw(["a creature"] * 6, seed=100, pipe=fresh)
show_images(torch.cat([to_float(portraits(6, size)), kind]), 6, down=["the subject", "its kind, drawn"])
for word in ("sks", "red"):
    print(f"'{word}' is read as {' + '.join(token.removesuffix('</w>') for token in pipe.tokenizer.tokenize(word))}")

# %% [markdown]
# A word that is read in pieces is one that the vocabulary does not know. `dreambooth.py` trains, in some minutes, and measures: the attributes of the subject, and its scarf, where it is asked for and where it is not; and how
# different from each other the pictures of "a creature" still are, with prior preservation and without (`--prior 0`).
#
# ## 11 · ControlNet: where the lines are to be
#
# Words do not say *where*. A **ControlNet** is a copy of the U-Net's first half that sees a picture of lines as well. What it has to say is added to the U-Net's features, through convolutions that are
# **zero in the beginning** (零卷积): so at the first step nothing is changed, and yet they learn (exercise 7). The U-Net itself is frozen.

# %%
fresh.unet.requires_grad_(False)
plain_set = load("creatures", size, language="en", n=200)
data = encode(fresh, plain_set, plain_set.captions, quiet=True, edges=edges_of(plain_set.pixels, 0.2))
net = new_controlnet(fresh.unet, fresh.vae_scale_factor, seed=0)
controlled = with_controlnet(fresh, net)
controlled.set_progress_bar_config(disable=True)
test, wanted = list(creatures.captions[:6]), edges(to_float(creatures.pixels[:6]), 0.2)
lines = wanted.expand(-1, 3, -1, -1)
without = draw(test, pipe=fresh)
untrained = draw(test, pipe=controlled, image=lines)
print(f"untrained it is not heard: largest difference {float((untrained - without).abs().max()):.1e}")

loss = LatentDenoising(
    noise,
    min_snr_weights(noise, 5.0),
    data.empty,
    caption_dropout=0.5,
    predict=predict_with_controlnet(fresh.unet, Accelerator(cpu=True)),
)
optimizer, began = torch.optim.AdamW(net.parameters(), 1e-3), time.perf_counter()
net.train()
for k in range(CONTROL_STEPS):
    error = loss(net, data.batch(batch_indices(len(data), 8, k, seed=0)), BatchRandom(1, k)).per_sample.mean()
    error.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
net.eval()
with_lines = draw(test, pipe=controlled, image=lines)
print(f"{CONTROL_STEPS} steps in {time.perf_counter() - began:.0f} s")
show_images(torch.cat([2 * lines - 1, without, with_lines]), 6, down=["lines", "without", "with lines"])
marks = {
    "another picture": to_float(creatures.pixels[:6]).roll(1, 0),
    "the picture, only through the autoencoder": reconstruct(fresh.vae, to_float(creatures.pixels[:6])),
}
print("how well edges agree with those wanted (F1): to the pixel, and where one pixel aside counts")
for name, images in (marks | {"without": without, "with lines": with_lines}).items():
    print(
        f"  {name:44}"
        + "   ".join(mean_and_error(agreement(edges(images, 0.2), wanted, tolerance)) for tolerance in (0, 1))
    )

# %% [markdown]
# **F1** is 1 where all edges are where they were wanted, and there are no others; one edge too many and one too few count alike. The first two rows are what to compare with: a picture that knows nothing of the lines,
# and the best that latents can say. Lines are dense in small pictures, so where an edge one pixel aside counts, any two creatures agree; look at the first column.
#
# So short a training only begins to listen. `controlnet.py` trains longer (900 steps of 16), and measures the agreement with intervals.
#
# ## What was measured
#
# With the programs' defaults on the course's model, as the [README](README.md) says in full:
#
# | question | command | answer |
# |---|---|---|
# | does lower strength keep the picture, and higher follow the prompt? does very high guidance give artefacts? | `studies/strength.py` | yes: at 0.2 three quarters of what differs is kept, at 0.8 nothing, and 94 % is as the prompt says. Artefacts come at 32; what is lost before is fine detail |
# | is a style learned, and only where it is asked for? | `lora.py`, `finetune.py` | learned, nearly as far as the autoencoder lets it; and it is everywhere, for no training picture was without it |
# | does prior preservation keep the others as they were? | `dreambooth.py`, with and without `--prior 0` | yes: the subject's attributes in "a creature" go from 0.32 to 0.33 with it, to 0.95 without |
# | do pictures follow lines? | `controlnet.py` | yes: to the pixel 0.33 of the edges agree without it, 0.48 with it (0.25 is another picture, 0.87 the autoencoder's limit) |
# | is a repaired picture nearer to the truth than a mosaic, and than bicubic? | `restore.py` | yes, by 1.1 ± 0.3 dB at strength 0.4; from 0.8 on no more, though it looks better |
#
# ## Where to go from here
#
# Things to try in this notebook, each a change of a word or two:
#
# * In section 2, give `ddim` 4 steps and `dpm++` 4 steps. Which needs fewer?
# * In section 4, repair with the prompt of another creature. What decides, the mosaic or the words?
# * In section 8, set the scale to 2, and to -1. What is the opposite of a woodcut?
# * In section 11, set `controlnet_conditioning_scale=0.5` in `draw`.
#
# Then write the hearts of the tools yourself: eight [exercises](exercises/README.md), with a grader: `python -m common.grade 05`.
#
# The next chapter lets a Chinese dish name become a moving picture.
