"""What a training is measured by: the same prompts, noises and test images before and after it.

evaluator = StyleEvaluator(sampling, ...)
evaluator.evaluate("base")     ... and after the training
evaluator.evaluate("tuned")
print(evaluator.table())
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from common.data import Images
from common.errors import enough_memory
from common.evaluate.distances import Estimate, bootstrap
from common.io.pixels import to_float
from common.io.tables import format_table
from common.random import BatchRandom
from common.viz import save_picture
from finetune_diffusers.data.edges import agreement, edges
from finetune_diffusers.data.latent_dataset import encode, load_captioned
from finetune_diffusers.data.styles import DrawnStyle, in_style, stray, styled_caption
from finetune_diffusers.evaluation.subject_metrics import scarf_share, subject_attributes, variety
from finetune_diffusers.generation import PipelineSettings, call_pipeline
from finetune_diffusers.images import contact_sheet, images_at_once
from finetune_diffusers.models import reconstruct
from finetune_diffusers.schedulers import use_scheduler
from finetune_diffusers.training.flags import DRAWN, CaptionedFlags, TuningFlags
from finetune_diffusers.training.loss import LatentDenoising

COLUMNS = 8  # pictures in a sheet of edges
REPEATS = 8  # noise levels and noises at which each test image is tried
NOISES = 1_000_003  # a seed apart from that of the training, which uses other noises


@dataclass
class ValidationSampler:
    """Draws one picture of each prompt with a pipeline in training, in evaluation mode and with the scheduler of
    --scheduler, large pictures one at a time.

    Picture i has seed args.seed + i, whatever its prompt.
    """

    pipe: DiffusionPipeline
    args: TuningFlags
    size: int
    accelerator: Accelerator

    def __call__(self, prompts: Sequence[str], **inputs: Any) -> Tensor:
        """(N, 3, size, size) in [-1, 1] on the CPU. inputs: what else the pipeline takes; tensors have N rows"""
        pipe, args = self.pipe, self.args
        settings = PipelineSettings(args.scheduler, args.sample_steps, args.guidance, args.seed)
        pipe.set_progress_bar_config(disable=True)
        trained, training, parts = pipe.scheduler, pipe.unet.training, []
        use_scheduler(pipe, args.scheduler)
        pipe.unet.eval()
        few = images_at_once(self.size * self.size)
        try:
            with (
                torch.no_grad(),
                self.accelerator.autocast(),
                enough_memory(str(pipe.device), "--measure, or the number of --prompts"),
            ):
                for first in range(0, len(prompts), few):
                    batch = slice(first, first + few)
                    part, each = list(prompts[batch]), replace(settings, seed=args.seed + first)
                    rows = {k: value[batch] if isinstance(value, Tensor) else value for k, value in inputs.items()}
                    images = call_pipeline(
                        pipe, each, len(part), prompt=part, height=self.size, width=self.size, **rows
                    )
                    parts.append(images.float().cpu())
        finally:
            pipe.scheduler = trained
            pipe.unet.train(training)
        return torch.cat(parts) * 2 - 1


class TuningEvaluator(ABC):
    """Measures at several stages of a training: {"base": {"denoising error": Estimate, ...}, "tuned":
    ...}, and the pictures of each.

    prompts  the validation prompts, drawn at every stage

    A subclass says what it measures, and, where prompts alone do not say it, how pictures are drawn.
    """

    def __init__(self, sampler: ValidationSampler, prompts: Sequence[str]):
        self.sampler, self.prompts = sampler, list(prompts)
        self.pictures: dict[str, Tensor] = {}
        self.found: dict[str, dict[str, Estimate]] = {}

    def evaluate(self, stage: str) -> None:
        """Draw and measure in the main process; the others go on."""
        if self.sampler.accelerator.is_main_process:
            self.pictures[stage] = self.draw(stage)
            self.found[stage] = self.measures(self.pictures[stage]) if self.sampler.args.measure else {}

    def draw(self, stage: str) -> Tensor:
        """The pictures of a stage, one for each prompt. (N, 3, S, S)"""
        return self.sampler(self.prompts)

    def validation_pictures(self) -> Tensor:
        """Pictures to look at during the training, of the first prompts. (n, 3, S, S)"""
        return self.sampler(self.prompts)

    @abstractmethod
    def measures(self, pictures: Tensor) -> dict[str, Estimate]:
        """The measures of a stage with these pictures; more may be drawn for it."""

    def references(self) -> dict[str, dict[str, Estimate]]:
        """Values to compare the measures with, {what was measured: {measure: value}}."""
        return {}

    def contact_sheet(self, path: Path) -> Path:
        """The validation prompts, a row for each stage."""
        pictures = torch.stack(list(self.pictures.values()))
        return save_picture(contact_sheet(pictures, list(self.pictures), self.prompts), path)

    @cached_property
    def columns(self) -> dict[str, dict[str, Estimate]]:
        """What all stages measured, and the references. Only after the last stage."""
        return self.found | (self.references() if self.sampler.args.measure else {})

    def table(self) -> str:
        """A row for each measure, a column for each stage and each reference."""
        names = dict.fromkeys(measure for found in self.found.values() for measure in found)
        return format_table(
            {"": name}
            | {what: format_estimate(found[name]) if name in found else "" for what, found in self.columns.items()}
            for name in names
        )


def mean_estimate(values: Tensor) -> Estimate:
    """Mean of (N,) numbers, one for each picture, with its 95 % interval."""
    return bootstrap(lambda some: float(some.mean()), values.cpu().double(), times=1000)


def format_estimate(e: Estimate) -> str:
    return f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


# --------------------------------------------------------------------------------------------------------------- style


class StyleEvaluator(TuningEvaluator):
    """For a training on captioned pictures, put into a style or not.
    plain: test pictures without the style, where it measures
    """

    def __init__(
        self,
        sampler: ValidationSampler,
        prompts: Sequence[str],
        style: DrawnStyle | None,
        loss: LatentDenoising,
        plain: Images | None,
        net: nn.Module,  # what the loss calls: the U-Net, or a TextAndUNet
    ):
        super().__init__(sampler, [styled_caption(style, prompt) if style else prompt for prompt in prompts])
        self.style, self.loss, self.net = style, loss, net
        if plain is not None:
            self.plain, self.styled = plain, in_style(style, plain)
            as_tokens = "ids" in loss.empty
            self.test = encode(sampler.pipe, self.styled, self.styled.captions, quiet=True, as_tokens=as_tokens)

    def measures(self, pictures: Tensor) -> dict[str, Estimate]:
        found = {"denoising error of test images": mean_estimate(self.test_losses())}
        if self.style:
            found["distance from the style, asked for"] = mean_estimate(
                stray(self.style, self.sampler(self.styled.captions))
            )
            found["distance from the style, not asked for"] = mean_estimate(
                stray(self.style, self.sampler(self.plain.captions))
            )
        return found

    @torch.no_grad()
    def test_losses(self) -> Tensor:
        """Mean loss of each test image, at the same noise levels with the same noises in every stage. (N,)"""
        device = self.sampler.accelerator.device
        batch = {name: column.to(device) for name, column in self.test.batch(torch.arange(len(self.test))).items()}
        loss = replace(self.loss, caption_dropout=0.0, noise_offset=0.0)
        draws = [BatchRandom(NOISES + self.sampler.args.seed, k, device=device) for k in range(REPEATS)]
        # levels are given out in order
        orders = [torch.randperm(len(self.test), generator=draw.generator, device=device) for draw in draws]
        with self.sampler.accelerator.autocast():
            per_sample = [
                loss(self.net, {name: column[order] for name, column in batch.items()}, draw).per_sample[
                    order.argsort()
                ]
                for order, draw in zip(orders, draws, strict=True)
            ]
        return torch.stack(per_sample).mean(0).float().cpu()

    def references(self) -> dict[str, dict[str, Estimate]]:
        """The limit is that of images in the style, encoded and decoded."""
        if not self.style:
            return {}
        best = mean_estimate(stray(self.style, reconstruct(self.sampler.pipe.vae, to_float(self.styled.pixels))))
        return {"limit": {"distance from the style, asked for": best}}


def training_and_test_images(args: CaptionedFlags, size: int, main_process: bool) -> tuple[Images, Images | None]:
    """(training pictures, test pictures where this process measures): loaded, or refused, before any are encoded."""
    images = load_captioned(args, size, n=args.n)
    test = test_images(args, size) if args.measure and main_process else None
    if test is not None and args.data not in DRAWN:
        print(f"{len(test)} of the pictures are held back to measure the training with (--measure 0 measures nothing)")
    return images, test


def test_images(args: CaptionedFlags, size: int) -> Images:
    """args.measure images of the test split, or as many as it has."""
    images = load_captioned(args, size, "test", args.measure if args.data in DRAWN else None)
    return images.first(min(args.measure, len(images)))


# ------------------------------------------------------------------------------------------------------------- subject


class SubjectEvaluator(TuningEvaluator):
    """For DreamBooth: is it the subject when it is asked for, and only then?

    subject, kind  "a sks creature", "a creature"
    portraits      the training images, if they are of the drawn creature, whose attributes are known
    """

    def __init__(
        self, sampler: ValidationSampler, prompts: Sequence[str], subject: str, kind: str, portraits: Tensor | None
    ):
        super().__init__(sampler, prompts)
        self.subject, self.kind, self.portraits = subject, kind, portraits

    def measures(self, pictures: Tensor) -> dict[str, Estimate]:
        n = self.sampler.args.measure
        asked, plain = self.sampler([self.subject] * n), self.sampler([self.kind] * n)
        found = {}
        if self.portraits is not None:
            for name, images in ((self.subject, asked), (self.kind, plain)):
                found |= self.likeness(name, images)
        return found | {f"variety of '{self.kind}'": mean_estimate(variety(plain))}

    def likeness(self, name: str, images: Tensor) -> dict[str, Estimate]:
        """How far these images are of the drawn subject."""
        return {
            f"attributes of the subject in '{name}'": mean_estimate(subject_attributes(images)),
            f"scarf in '{name}'": mean_estimate(scarf_share(images)),
        }

    def references(self) -> dict[str, dict[str, Estimate]]:
        """The limit is that of the training images, encoded and decoded."""
        if self.portraits is None:
            return {}
        return {"limit": self.likeness(self.subject, reconstruct(self.sampler.pipe.vae, self.portraits))}


# --------------------------------------------------------------------------------------------------------------- edges


class EdgeEvaluator(TuningEvaluator):
    """For a ControlNet: do the edges of the pictures lie where they were wanted?

    sampler    of a pipeline with the ControlNet; evaluate("without control") and evaluate("with control") draw from
               the same noise
    images     test images whose edges are wanted and whose captions are the prompts
    threshold  of the edges
    strength   conditioning scale of the ControlNet
    control    what the ControlNet is given, (N, 1 or 3, S, S) in [0, 1]; by default the wanted edges
    wanted     (N, 1, S, S) of zeros and ones; by default the edges of the images
    """

    WITHOUT, WITH = "without control", "with control"

    def __init__(
        self,
        sampler: ValidationSampler,
        images: Images,
        threshold: float,
        strength: float,
        control: Tensor | None = None,
        wanted: Tensor | None = None,
    ):
        super().__init__(sampler, images.captions)
        self.images, self.threshold, self.strength = to_float(images.pixels), threshold, strength
        self.wanted = edges(self.images, threshold) if wanted is None else wanted
        self.control = (self.wanted if control is None else control).expand(-1, 3, -1, -1)

    def draw(self, stage: str) -> Tensor:
        scale = 0.0 if stage == self.WITHOUT else self.strength
        return self.sampler(self.prompts, image=self.control, controlnet_conditioning_scale=scale)

    def validation_pictures(self) -> Tensor:
        few = self.control[:COLUMNS]
        return self.sampler(self.prompts[:COLUMNS], image=few, controlnet_conditioning_scale=self.strength)

    def measures(self, pictures: Tensor) -> dict[str, Estimate]:
        return self.agreements(edges(pictures, self.threshold))

    def agreements(self, found: Tensor) -> dict[str, Estimate]:
        """How far these edges are where they were wanted."""
        return {
            f"agreement of edges, {how} (F1)": mean_estimate(agreement(found, self.wanted, tolerance))
            for tolerance, how in enumerate(("to the pixel", "one pixel aside counts"))
        }

    def references(self) -> dict[str, dict[str, Estimate]]:
        """Lines are so dense in small pictures that those of any two agree;
        and no picture can have what the autoencoder loses. A single picture, with several prompts, has no other.
        """
        if bool((self.wanted == self.wanted[:1]).all()):
            return {}
        again = edges(reconstruct(self.sampler.pipe.vae, self.images), self.threshold)
        return {"another image": self.agreements(self.wanted.roll(1, 0)), "limit": self.agreements(again)}

    def contact_sheet(self, path: Path) -> Path:
        """What the ControlNet is given, the pictures drawn without and with it, and the pictures that it was taken from."""
        rows = {"given": 2 * self.control - 1, **self.pictures, "their origin": self.images}
        some = torch.stack([images[:COLUMNS] for images in rows.values()])
        return save_picture(contact_sheet(some, list(rows), self.prompts[:COLUMNS]), path)
