"""Trainings that are ill on purpose, to practise on: one healthy recipe, and faults that change one thing each.

    python -m common.doctor --practice dark --out runs/practice/dark        trains for a minute
    python -m common.doctor --run runs/practice/dark                        says what is wrong, and the cure

The recipe is chapter 1's with labels: the embedded 8x8 digits, a small U-Net, v-prediction, a cosine schedule.
"""

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from common import viz
from common.data import Images, load
from common.diffusion.denoiser import Denoiser
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import make_schedule
from common.errors import UserError
from common.io.files import write_folder, write_json
from common.models.model_folder import Model, save_model
from common.models.unet import UNet, zero_init
from common.models.unet_config import small_unet
from common.random import BatchRandom
from common.training.logging import logged
from common.training.loop import LossTerms, State, TrainConfig, train
from common.training.optimization import Diverged
from common.training.record import record_of

SAMPLES, SAMPLER = 16, Sampler("ddim", 20)


# fmt: off
@dataclass(frozen=True)
class Recipe:
    """One training. The defaults are healthy; a fault changes one of them."""

    lr: float = 4e-3                # peak learning rate of AdamW
    ema: float = 0.05               # half-life of the averaged weights, as a fraction of the steps so far
    images: Callable[[Images], Images] = lambda images: images    # what the data set holds
    batch: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda batch: batch    # what happens to each batch on its way
    label: Callable[[Tensor, BatchRandom], Tensor] = lambda label, draw: label       # which label the network is given
    latents: float | None = None    # standard deviation of latents in place of pixels; None: pixels
    saved_as: str = "v"             # the prediction that the model's folder names; the network learns v
    frozen: bool = False            # whether the gradient is cut off
    drawn: Callable[[Tensor], Tensor] = lambda samples: samples   # what happens to samples before they are saved
# fmt: on


def image(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """A change of the images of a batch, (B, C, H, W) in [-1, 1]."""
    return lambda batch: batch | {"image": change(batch["image"])}


def without(label: int) -> Callable[[Images], Images]:
    """The set without one of its classes, which the network still has."""

    def change(images: Images) -> Images:
        assert images.labels is not None
        kept = (images.labels != label).nonzero()[:, 0]
        return replace(images, pixels=images.pixels[kept], labels=images.labels[kept])

    return change


def broken(x: Tensor) -> Tensor:
    """Images of which one holds a value that is not a number."""
    x = x.clone()
    x[0, 0, 0, 0] = torch.nan
    return x


def darkened(x: Tensor) -> Tensor:
    """Images with half of their contrast, and black where they were."""
    return 0.51 * x - 0.49


def without_blue(images: Tensor) -> Tensor:
    """Samples whose third channel is black."""
    images = images.expand(-1, 3, -1, -1).clone()
    images[:, 2] = -1
    return images


FAULTS: dict[str, tuple[str, Recipe]] = {
    "healthy": ("nothing is wrong", Recipe()),
    "healthy-latents": ("nothing is wrong, on latents instead of pixels", Recipe(latents=1.0)),
    "not-finite": ("an image holds NaN", Recipe(batch=image(broken))),
    "rate-too-high": ("the learning rate is a hundred times too high", Recipe(lr=0.4)),
    "rate-too-low": ("the learning rate is a thousand times too low", Recipe(lr=4e-6)),
    "frozen": ("the gradient does not reach the weights", Recipe(frozen=True)),
    "range-0-1": ("images lie in [0, 1] instead of [-1, 1]", Recipe(batch=image(lambda x: (x + 1) / 2))),
    "range-0-255": ("images lie in [0, 255] instead of [-1, 1]", Recipe(batch=image(lambda x: (x + 1) * 127.5))),
    "unscaled-latents": ("latents have standard deviation 5.5, as Stable Diffusion's unscaled ones", Recipe(latents=5.5)),
    "tiny-latents": ("latents are scaled twice", Recipe(latents=0.18)),
    "dead-class": ("no image of the class 7 is in the data", Recipe(images=without(7))),
    "ignored-labels": (
        "labels do not belong to their images",
        Recipe(label=lambda label, draw: label[draw.rand(len(label)).argsort()]),
    ),
    "dark": ("the images are darkened on their way to the network", Recipe(batch=image(darkened))),
    "tinted": ("the third channel of the samples is black", Recipe(drawn=without_blue)),
    "ema-lag": ("the average looks back over ten times the training", Recipe(ema=10.0)),
    "overfit": ("the data are eight images", Recipe(images=lambda images: images.first(8))),
    "wrong-prediction": ("the folder says eps, and the network has learned v", Recipe(saved_as="eps")),
    "collapsed": ("all samples are the same", Recipe(drawn=lambda samples: samples[:1].expand_as(samples))),
}  # fmt: skip


class Prepared:
    """A set as the training loop reads it, with the recipe's change of each batch."""

    def __init__(self, images: Images, recipe: Recipe):
        self.images, self.recipe = images, recipe

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        batch = self.recipe.batch(self.images.batch(indices))
        if self.recipe.latents is None:
            return batch
        z = F.pixel_unshuffle(batch.pop("image"), 2)  # (B, 4, 4, 4): an exact autoencoder
        return batch | {"latent": z * self.recipe.latents / z.std()}


def practise(name: str, run: Path, steps: int = 120, seed: int = 0) -> None:
    """Train the recipe of one name into a new run folder. UserError for an unknown name."""
    if name not in FAULTS:
        raise UserError(f"unknown fault '{name}'; choose one of {', '.join(FAULTS)}")
    train_recipe(FAULTS[name][1], run, steps, seed, name)


def train_recipe(recipe: Recipe, run: Path, steps: int = 120, seed: int = 0, name: str = "") -> None:
    """Train a recipe into a new run folder. name: its fault's, for config.json"""
    schedule = make_schedule("cosine")
    images = recipe.images(load("digits"))
    data, channels, size = Prepared(images, recipe), *((1, 8) if recipe.latents is None else (4, 4))
    torch.manual_seed(seed)
    net = zero_init(UNet(small_unet(size, channels, (16,) if size == 4 else (8, 16), 1, len(images.classes))))

    def loss(net: nn.Module, batch: dict[str, Tensor], draw: BatchRandom) -> LossTerms:
        x0 = batch["image" if recipe.latents is None else "latent"]  # (B, C, H, W)
        u, eps, label = draw.stratified(len(x0)), draw.randn(x0.shape), recipe.label(batch["label"], draw)
        each = diffusion_loss(net, schedule, "v", x0, u, eps, label=label)  # (B,)
        return LossTerms(each * 0 + each.detach() if recipe.frozen else each, u)

    def save(state: State) -> None:
        model = Model(cast(UNet, state.ema), schedule, recipe.saved_as, recipe.latents is None)
        write_folder(run / "model", lambda folder: save_model(folder, model))
        label = torch.arange(SAMPLES) % len(images.classes)
        denoise = Denoiser(state.ema.eval(), recipe.saved_as, label=label)
        x = SAMPLER.frames(denoise, schedule, (SAMPLES, channels, size, size), seed)[-1]
        x = x if recipe.latents is None else F.pixel_shuffle(x * images_std(images) / recipe.latents, 2)
        viz.save_picture(viz.grid(recipe.drawn(x), 8, 160), run / "samples.png")

    config: dict[str, Any] = {"data": "digits", "class_conditional": True, "steps": steps, "batch_size": 16}
    config |= {"lr": recipe.lr, "schedule": "cosine", "prediction": "v", "seed": seed, "fault": name}
    write_json(run / "data.json", record_of(images.pixels, images.labels))
    write_json(run / "config.json", config)
    cfg = TrainConfig(
        run, steps, batch_size=16, lr=recipe.lr, ema=recipe.ema, save_every=max(1, steps // 2), seed=seed
    )
    with suppress(Diverged), closing(logged(train(net, data, loss, cfg, Accelerator(cpu=True)), run, steps)) as states:
        for state in states:
            if state.saved:
                save(state)


def images_std(images: Images) -> float:
    """Standard deviation of all pixels, in the units of [-1, 1]."""
    return float(images.pixels.cpu().double().std() / 127.5)
