"""What the trainings of the inpainting U-Net and of the ControlNet share:
windows onto pictures, their captions, loss and test holes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import viz
from common.data import Images, load
from common.data.dishes.captions import describe
from common.data.dishes.dataset import dish
from common.data.drawn import CAPTION, generator
from common.data.registry import DRAWN
from common.diffusion.guidance import drop_captions
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.io.pixels import to_float
from common.models.pipeline import TextToImagePipeline
from common.random import BatchRandom
from common.training.latents import check_fit, check_fit_before, sample
from common.training.loop import Loss, LossTerms
from common.training.record import check_record, record_of
from inpaint_gif.clip.trainer import one_of_each
from inpaint_gif.inpainting.compositing import overlay
from inpaint_gif.training.flags import HoleFlags
from inpaint_gif.training.hole_masks import camera_holes
from inpaint_gif.training.scenes import drawn_views, views_of

SCENES = 1500  # default of --n
SHOWN = 8  # test windows in the sample pictures


def load_views(
    flags: HoleFlags, size: int, split: str, n: int | None = None, windows: int | None = None
) -> tuple[Tensor, list[str]]:
    """Windows onto pictures, (N, C, size, size) uint8, and a caption for each:
    of drawn dishes alternately Chinese and English.
    """
    windows = windows or flags.windows
    if flags.data == "dishes":
        n = n or flags.n or SCENES
        dishes = [(dish(0, split, i)[0], generator(CAPTION, flags.seed, split, i)) for i in range(n)]
        captions = [
            describe(attributes, ("zh", "en")[k % 2], rng) for attributes, rng in dishes for k in range(windows)
        ]
        return drawn_views(split, n, size, windows, flags.seed), captions
    drawn = (n or flags.n) if flags.data in DRAWN else None  # no more are drawn than are used
    images = load(flags.data, 2 * size, flags.data_dir, split, n=drawn, channels=3, captions=True)
    images = images.first(min(n or flags.n or len(images), len(images)))
    return views_of(images, size, windows, flags.seed), [
        text for text in images.need_captions() for _ in range(windows)
    ]


def load_training_views(
    flags: HoleFlags, pipeline: TextToImagePipeline, **frozen: str
) -> tuple[Tensor, list[str], dict[str, Any]]:
    """Windows and captions of the training, and the record of both (record.record_of) with fingerprints of `frozen`
    models. What the model cannot process, and what a resumed run was not trained on, is refused.
    """
    pipeline.schedule.noise_levels(Sampler.parse_plain(flags.sampler).steps)  # refuses impossible numbers of steps now
    check_fit_before(pipeline.vae, (flags.data,), pipeline.size, "--model")
    views, captions = load_views(flags, pipeline.size, "train")
    record = record_of(views, captions) | frozen
    check_record(flags, record)
    check_fit(pipeline.vae, Images(flags.data, views), "--model")
    return views, captions, record


# (batch, one hole for each image) -> arguments of the network
Condition = Callable[[dict[str, Tensor], Tensor], dict[str, Any]]


def hole_loss(pipeline: TextToImagePipeline, caption_dropout: float, condition: Condition) -> Loss:
    """The diffusion loss, with one of its holes for each image and with captions dropped at random.

    The batch holds "latent" and "std", "text" (B, M, D), and "holes" (B, K, ...),
    of which `condition` gets one for each image.
    """
    with torch.no_grad():
        empty = pipeline.text_encoder([""])[0].cpu()  # (M, D)

    def loss(net: nn.Module, batch: dict[str, Tensor], draw: BatchRandom) -> LossTerms:
        z0, text = sample(batch, draw), batch["text"]  # (B, c, h, w), (B, M, D)
        hole = one_of_each(batch["holes"], draw)  # (B, ...)
        u, eps = draw.stratified(len(z0)), draw.randn(z0.shape)
        text = drop_captions(text, empty.to(text), draw.rand(len(z0)), caption_dropout)
        arguments = {"text": text, **condition(batch, hole)}
        return LossTerms(diffusion_loss(net, pipeline.schedule, pipeline.prediction, z0, u, eps, **arguments), u)

    return loss


@dataclass(frozen=True)
class HoleTestSet:
    """Windows onto pictures of the test split, with the holes of camera moves, and captions."""

    images: Tensor  # (N, C, H, W) in [-1, 1]
    masks: Tensor  # (N, 1, H, W)
    captions: list[str]


def hole_test_set(flags: HoleFlags, size: int, n: int = SHOWN) -> HoleTestSet:
    """n windows of flags.data, of this size in pixels."""
    views, captions = load_views(flags, size, "test", n, 1)
    bank = camera_holes(*views.shape[2:])
    chosen = np.random.default_rng(flags.seed).choice(len(bank), len(views))
    return HoleTestSet(to_float(views), bank[chosen], captions)


def save_comparison(test: HoleTestSet, painted: Tensor, path: Path) -> Path:
    """One row each: the picture; with its hole; the network's output; the output with every known pixel restored."""
    composited = torch.stack([overlay(*parts) for parts in zip(test.images, painted, test.masks, strict=True)])
    rows = torch.cat([test.images, test.images * (1 - test.masks), painted, composited])
    return viz.save_picture(viz.grid(rows, len(test.images), 520), path)
