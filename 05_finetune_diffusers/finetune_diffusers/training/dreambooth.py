"""DreamBooth (Ruiz et al. 2022): a few pictures of one subject, a rare word for it,
and pictures of its kind against forgetting.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from diffusers import StableDiffusionPipeline
from torch import Tensor

from common.data import Images, load
from common.data.image_export import export
from common.errors import UserError
from common.io.pixels import to_bytes
from finetune_diffusers.data.latent_dataset import PriorPairs, encode
from finetune_diffusers.data.subject import portraits
from finetune_diffusers.evaluation.evaluators import SubjectEvaluator, ValidationSampler
from finetune_diffusers.training.flags import DreamBoothFlags, SizePresets
from finetune_diffusers.training.loss import latent_denoising
from finetune_diffusers.training.trainer import Tuner
from finetune_diffusers.training.tuning import RunContext, checked_record, setup, train_and_report, unfreeze


def subject_images(args: DreamBoothFlags, size: int) -> Images:
    """The few pictures, each with the caption "a sks creature"."""
    images = (
        load(str(args.subject), size, channels=3)
        if args.subject
        else Images("the drawn creature", portraits(args.poses, size, args.seed))
    )
    return replace(images, captions=(f"a {args.word} {args.kind}",) * len(images))


def dreambooth(args: DreamBoothFlags, presets: SizePresets) -> None:
    """Train on the subject, and save the whole pipeline or the adapter."""
    run = setup(args, f"dreambooth-{args.word}", presets)
    args, pipe = run.args, run.pipe
    images = subject_images(args, run.size)
    record = checked_record(run, images)
    if not run.quiet:
        print(spelling(pipe, args.word))
    sample = ValidationSampler(pipe, args, run.size, run.accelerator)
    subject, kind = f"{args.word} {args.kind}", f"a {args.kind}"
    # anything else in braces is left as it is
    prompts = [prompt.replace("{kind}", args.kind).replace("{}", subject) for prompt in args.prompts]
    evaluator = SubjectEvaluator(sample, prompts, f"a {subject}", kind, args.subject is None)
    evaluator.evaluate("base")
    data = latents = encode(pipe, images, images.captions, run.quiet)
    if args.prior:
        with run.accelerator.main_process_first():  # the others find what it has drawn
            others = make_class_images(run, kind, args.class_images, sample)
        data = PriorPairs(latents, encode(pipe, others, others.captions, run.quiet), args.prior)
    loss = latent_denoising(pipe, latents, args)
    save = unfreeze(run, images, args.word, args.rank)
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
