"""The run's model on images that it was trained on, on others of the same set, and with the conditions of other images.

A network that has learned the set, and not its images, has the same loss on both. One that uses its labels or captions
has a larger loss when they belong to other images. Both are measured with the same noise, so that the difference of two
losses is exact to a few percent with 64 images.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.data import Images, load
from common.data.registry import NAMES, is_place
from common.diffusion.losses import diffusion_loss
from common.doctor.finding import Finding, fine, note, skipped, wrong
from common.doctor.runs.run_files import SHORT, Run
from common.errors import UserError
from common.io.pixels import to_float
from common.models.pipeline import TextToImagePipeline
from common.models.text_to_image_folder import open_pipeline
from common.random import EVALUATION, generator

IMAGES, ROUNDS = 64, 4  # of each kind, and noise levels for each
GAP = 1.25  # loss on other images over that on training images: at most 1.02 for the shipped models
USED = 1.02  # loss with conditions of other images over that with its own: 1.8 for the shipped models, 1.09 after 120 steps
SURE = 3.0  # standard errors
# steps before labels or captions are missed: after 80 steps, a healthy network with captions still has a ratio of 1.000
EARLY = {"labels": 100, "captions": 1000}
WORSE = 1.25  # loss of the saved model over that at the end of the log: at most 1.06 in healthy trainings
LARGEST = 20_000_000  # weights of a network that is evaluated here within seconds on a CPU


class Comparison(NamedTuple):
    """Losses of a network, image by image."""

    ratio: float  # mean of the others over mean of the own
    sure: float  # difference of the means in standard errors


def findings(run: Run, data_dir: Path) -> Iterator[Finding]:
    """Overfitting, and labels or captions without effect."""
    subject = "overfitting"
    if len(run.rows) < SHORT:
        yield skipped(subject, f"{len(run.rows)} steps are too few")
        return
    try:
        pipeline, own, others = opened(run, data_dir)
    except UserError as problem:
        yield skipped(subject, str(problem))
        return
    base = losses(pipeline, own, conditions(pipeline, own))
    if found := unlike_the_log(float(base.mean()), run):
        yield found
        return
    yield overfitting(compare(base, losses(pipeline, others, conditions(pipeline, others))), len(own), run)
    if conditions(pipeline, own):
        turned = compare(base, losses(pipeline, own, conditions(pipeline, rolled(own))), paired=True)
        yield effect(turned, len(run.rows), "captions" if pipeline.text_encoder else "labels")


def unlike_the_log(loss: float, run: Run) -> Finding | None:
    """A saved model that is much worse than the training was at its end; None where it is not. loss: of the model"""
    if run.settings.get("loss", "l2") != "l2" or run.settings.get("weight", "plain") != "plain":
        return None
    last = float(run.column("loss")[-SHORT // 2 :].mean())
    if not loss > WORSE * last:
        return None
    return wrong(
        "saved model",
        f"its loss on training images is {loss:.3g}, and the training ended with {last:.3g}",
        "compare prediction and schedule in model/scheduler with the training's, and the average (EMA) with the weights",
    )


def opened(run: Run, data_dir: Path) -> tuple[TextToImagePipeline, Images, Images]:
    """The model, images that it was trained on, and others. UserError says what is missing."""
    if not (run.folder / "model" / "unet").is_dir():
        raise UserError("model/ holds no U-Net, and nothing else denoises")
    pipeline = open_pipeline(run.folder / "model")
    unet = pipeline.unet
    if sum(weight.numel() for weight in unet.parameters()) > LARGEST:
        raise UserError(f"the network has more than {LARGEST:,} weights, which takes too long here")
    channels = pipeline.vae.cfg.latent_channels if pipeline.vae else unet.cfg.out_channels
    if unet.cfg.in_channels != channels or channels != unet.cfg.out_channels:
        raise UserError("the network takes more than a noisy image")
    data = run.settings.get("data")
    name = data[0] if isinstance(data, list) and data else data
    if not isinstance(name, str) or not (name in NAMES or is_place(name)):
        raise UserError("config.json names no data set that can be opened here")
    if unet.cfg.classes and not run.settings.get("class_conditional"):
        raise UserError("config.json does not say how the network got its labels")
    size = unet.cfg.size * (pipeline.vae.cfg.factor if pipeline.vae else 1)
    image_channels = pipeline.vae.cfg.image_channels if pipeline.vae else channels
    given: dict[str, Any] = {"language": run.settings.get("language"), "channels": image_channels}
    wanted = run.optional("data.json").get("images")
    n = min(IMAGES, wanted) if isinstance(wanted, int) and wanted > 0 else IMAGES
    own, others = (
        load(name, size, Path(run.settings.get("data_dir") or data_dir), split, n=k, **given)
        for split, k in (("train", n), ("test", IMAGES))
    )
    if pipeline.text_encoder and own.captions is None:
        raise UserError(f"{name} has no captions here")
    return pipeline, own, others


def conditions(pipeline: TextToImagePipeline, images: Images) -> dict[str, Tensor]:
    """What the network gets beside a noisy image: {"text": (N, M, D)}, {"label": (N,)}, or nothing."""
    if pipeline.text_encoder:
        assert images.captions is not None
        with torch.no_grad():
            return {"text": pipeline.text_encoder(list(images.captions))}
    if pipeline.unet.cfg.classes:
        assert images.labels is not None
        return {"label": images.labels}
    return {}


def rolled(images: Images) -> Images:
    """The same images, each with label and caption of the image half the set away."""
    half = len(images) // 2
    captions = images.captions and (*images.captions[half:], *images.captions[:half])
    labels = None if images.labels is None else images.labels.roll(half)
    return replace(images, captions=captions, labels=labels)


@torch.no_grad()
def losses(pipeline: TextToImagePipeline, images: Images, condition: dict[str, Tensor]) -> Tensor:
    """Mean loss of each image over ROUNDS noise levels, the same for image i of every set. (N,)"""
    pipeline.unet.eval()
    x0 = pipeline.encode(to_float(images.pixels))  # (N, c, h, w)
    total = torch.zeros(len(x0))
    for k in range(ROUNDS):
        draw = generator(EVALUATION, k)
        u = (torch.arange(len(x0)) * 0.618 + k / ROUNDS) % 1  # evenly spread (the golden ratio)
        eps = torch.randn(IMAGES, *x0.shape[1:], generator=draw)[: len(x0)]
        total += diffusion_loss(
            pipeline.unet, pipeline.schedule, pipeline.prediction, x0, u, eps, "l2", "plain", **condition
        ).cpu()
    return total / ROUNDS


def compare(own: Tensor, others: Tensor, paired: bool = False) -> Comparison:
    """paired: both are of the same images."""
    if paired:
        apart = others - own
        error = float(apart.std() / len(apart) ** 0.5)
    else:
        error = float((own.var() / len(own) + others.var() / len(others)) ** 0.5)
    difference = float(others.mean() - own.mean())
    return Comparison(float(others.mean() / own.mean()), difference / error if error else 0.0)


def overfitting(found: Comparison, n: int, run: Run) -> Finding:
    shown = f"the loss on other images is {found.ratio:.2f} times that on training images"
    if found.ratio <= GAP or found.sure < SURE:
        return fine("overfitting", shown)
    known = run.optional("data.json").get("images", n)
    return wrong(
        "overfitting",
        f"{shown} ({known} of them)",
        "more images or augmentation (--flip), fewer --steps, or a smaller network",
    )


def effect(found: Comparison, steps: int, kind: str) -> Finding:
    """kind: labels or captions"""
    shown = f"with those of other images the loss is {found.ratio:.3f} times as large"
    if found.ratio >= USED or found.sure >= SURE:
        return fine(kind, shown)
    if steps < EARLY[kind]:
        return note(kind, f"{shown} after {steps} steps, too few to judge")
    return wrong(
        kind,
        f"{shown}: the network does not use them",
        f"check that {kind} belong to their images; if they do, train longer",
    )
