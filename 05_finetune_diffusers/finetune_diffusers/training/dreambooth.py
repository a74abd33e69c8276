"""DreamBooth (Ruiz et al. 2022): a few pictures of one subject, a rare word for it,
and pictures of its kind against forgetting.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from torch import Tensor

from common.data import Images, load
from common.data.image_export import export
from common.errors import UserError
from common.io.pixels import to_bytes
from finetune_diffusers.data.latent_dataset import PriorPairs, encode
from finetune_diffusers.data.styles import portraits
from finetune_diffusers.evaluation.evaluators import SubjectEvaluator, ValidationSampler
from finetune_diffusers.training.flags import SizePresets, TuningFlags
from finetune_diffusers.training.loss import latent_denoising
from finetune_diffusers.training.trainer import Tuner
from finetune_diffusers.training.tuning import RunContext, checked_record, setup, train_and_report, unfreeze


@dataclass(frozen=True)
class Subject:
    """What the model is to learn, and what it is called."""

    word: str  # means nothing yet: "sks"
    kind: str  # a word that the model knows: "creature"
    folder: Path | None  # a few pictures of one thing; None is a drawn creature
    poses: int  # pictures of the drawn creature

    def fill(self, prompt: str) -> str:
        """ "a {} on a mint background" -> "a sks creature on a mint background";
        anything else in braces is left as it is.
        """
        return prompt.replace("{kind}", self.kind).replace("{}", f"{self.word} {self.kind}")

    def images(self, size: int, seed: int) -> Images:
        """The few pictures, each with the caption "a sks creature"."""
        images = (
            load(str(self.folder), size, channels=3)
            if self.folder
            else Images("the drawn creature", portraits(self.poses, size, seed))
        )
        return replace(images, captions=(self.fill("a {}"),) * len(images))


def dreambooth(
    args: TuningFlags,
    subject: Subject,
    prompts: Sequence[str],  # for validation; {} stands for the word and the kind, {kind} for the kind alone
    prior: float,  # weight of prior preservation; 0 is off
    class_images: int,  # pictures of the kind that the model draws before it is trained
    rank: int,  # of a LoRA in place of all weights; 0 is all weights
    presets: SizePresets,
) -> None:
    """Train on the subject, and save the whole pipeline or the adapter."""
    run = setup(args, f"dreambooth-{subject.word}", presets)
    args, pipe = run.args, run.pipe
    images = subject.images(run.size, args.seed)
    record = checked_record(run, images)
    if not run.quiet:
        print(spelling(pipe, subject.word))
    sample = ValidationSampler(pipe, args, run.size, run.accelerator)
    evaluator = SubjectEvaluator(
        sample,
        list(map(subject.fill, prompts)),
        subject.fill("a {}"),
        subject.fill("a {kind}"),
        subject.folder is None,
    )
    evaluator.evaluate("base")
    data = latents = encode(pipe, images, images.captions, run.quiet)
    if prior:
        with run.accelerator.main_process_first():  # the others find what it has drawn
            others = make_class_images(run, subject.fill("a {kind}"), class_images, sample)
        data = PriorPairs(latents, encode(pipe, others, others.captions, run.quiet), prior)
    loss = latent_denoising(pipe, latents, args)
    save = unfreeze(run, images, subject.word, rank)
    trainer = Tuner(pipe.unet, data, loss, args, run.accelerator)
    train_and_report(run, trainer, evaluator, record, save, ("tuned",), "dreambooth.py")


def make_class_images(run: RunContext[Any], caption: str, n: int, draw: Callable[[list[str]], Tensor]) -> Images:
    """n pictures that the model draws of "a creature" before it is trained.
    Kept in the run folder, so that a resumed run finds the same.
    """
    folder = run.args.out / "class_images"
    if not run.quiet and not (run.args.resume and folder.exists()):
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed before its first step
        print(f'the model draws {n} pictures of "{caption}" ...')
        export(Images("class images", to_bytes(draw([caption] * n))), folder)
    images = load(str(folder), run.size, channels=3)
    return replace(images, captions=(caption,) * len(images))


def spelling(pipe: StableDiffusionPipeline, word: str) -> str:
    """The word as tokens, and what that means for the training."""
    tokens = pipe.tokenizer.tokenize(word)
    pieces = [token.removesuffix("</w>") for token in tokens]
    if pipe.tokenizer.unk_token in tokens:
        raise UserError(
            f"the model's vocabulary cannot write the word '{word}'; choose another --word, of plain letters"
        )
    if len(tokens) == 1:
        return f"note: '{word}' is one token, so the model may know it, and what it knows may mix with the subject"
    return f"'{word}' is not in the vocabulary as a whole: it is read as {len(pieces)} pieces, {' + '.join(pieces)}"
