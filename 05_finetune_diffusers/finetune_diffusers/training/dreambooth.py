"""DreamBooth (Ruiz et al. 2022): a few pictures of one subject, a rare word for it,
and pictures of its kind against forgetting.
"""

import shutil
from dataclasses import replace

from diffusers import StableDiffusionPipeline

from common.data import Images, load
from common.data.sources.decoding import decode_all
from common.data.sources.listing import list_folder
from common.errors import UserError
from common.io.pixels import to_float
from common.viz import save_picture
from finetune_diffusers.data.latent_dataset import PriorPairs, encode
from finetune_diffusers.data.subject import portraits
from finetune_diffusers.data.views import mirrored
from finetune_diffusers.evaluation.evaluators import SubjectEvaluator, ValidationSampler
from finetune_diffusers.images import to_pil
from finetune_diffusers.training.flags import DreamBoothFlags, SizePresets
from finetune_diffusers.training.loop.trainer import Tuner
from finetune_diffusers.training.lora import check_targets
from finetune_diffusers.training.loss import latent_denoising
from finetune_diffusers.training.tuning import RunContext, checked_record, setup, train_and_report, unfreeze


def filled(prompt: str, args: DreamBoothFlags, name: str) -> str:
    """A prompt with {kind} and {} filled in; anything else in braces is left as it is."""
    return prompt.replace("{kind}", args.kind).replace("{}", name)


def subject_images(args: DreamBoothFlags, size: int) -> Images:
    """The few pictures, each with the caption "a sks creature"."""
    images = (
        load(str(args.subject), size, channels=3)
        if args.subject
        else Images("the drawn creature", portraits(args.poses, size, args.seed))
    )
    caption = filled(args.instance_prompt, args, f"{args.word} {args.kind}")
    return replace(images, captions=(caption,) * len(images), texts=None)


def dreambooth(args: DreamBoothFlags, presets: SizePresets) -> None:
    """Train on the subject, and save the whole pipeline or the adapter."""
    run = setup(args, f"dreambooth-{args.word}", presets)
    args, pipe = run.args, run.pipe
    if args.rank:
        check_targets(pipe.unet, args.targets)
    images = subject_images(args, run.size)
    record = checked_record(run, images)
    if not run.quiet:
        print(spelling(pipe, args.word))
    sample = ValidationSampler(pipe, args, run.size, run.accelerator)
    caption, kind = images.captions[0], filled(args.instance_prompt, args, args.kind)
    prompts = [filled(prompt, args, f"{args.word} {args.kind}") for prompt in args.prompts]
    drawn = to_float(images.pixels) if args.subject is None else None
    evaluator = SubjectEvaluator(sample, prompts, caption, kind, drawn)
    evaluator.evaluate("base")
    if args.random_flip:
        images = mirrored(images)
    data = latents = encode(pipe, images, images.captions, run.quiet, args.train_text_encoder)
    if args.prior:
        with run.accelerator.main_process_first():  # the others find what it has drawn
            others = make_class_images(run, kind, sample)
        known = encode(pipe, others, others.captions, run.quiet, args.train_text_encoder)
        data = PriorPairs(latents, known, args.prior)
    trained = unfreeze(run, images, args.word, args.rank, targets=args.targets)
    loss = latent_denoising(pipe, latents, args, trained.predict)
    trainer = Tuner(trained.net, data, loss, args, run.accelerator)
    train_and_report(
        run,
        trainer,
        evaluator,
        record,
        trained.save,
        ("tuned",),
        "dreambooth.py",
        "LoRA" if args.rank else "DreamBooth",
        caption,
    )


def make_class_images(run: RunContext[DreamBoothFlags], caption: str, draw: ValidationSampler) -> Images:
    """--class-images pictures of "a creature": those of --class-dir, and what is missing there drawn by the model
    before it is trained. By default they are in the run folder, so that a resumed run finds the same.
    """
    args = run.args
    folder = args.class_dir or args.out / "class_images"
    if not run.quiet:
        if not args.class_dir and not args.resume:
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed before its first step
        there = len(list_folder(folder).pictures) if folder.exists() else 0
        if missing := max(0, args.class_images - there):
            print(f'the model draws {missing} pictures of "{caption}" for {folder} ...')
            rest = replace(draw, args=replace(args, seed=args.seed + there))
            for i, picture in enumerate(rest([caption] * missing), there):
                save_picture(to_pil(picture), folder / f"{i:05d}.png")
    # every picture counts: no split is held back
    paths = list_folder(folder).paths(list_folder(folder).pictures)[: args.class_images]
    pixels, kept = decode_all(paths, run.size, channels=3)
    return Images(folder.name, pixels, captions=(caption,) * len(kept))


def spelling(pipe: StableDiffusionPipeline, word: str) -> str:
    """The word as tokens, and what that means for the training.

    Ruiz et al. 2022 (section 3.2) take a rare token of the vocabulary: one that the model can learn anew because it has
    hardly met it. Letters typed at random are read as several pieces, each with a meaning of its own.
    """
    tokens = pipe.tokenizer.tokenize(word)
    pieces = [token.removesuffix("</w>") for token in tokens]
    if pipe.tokenizer.unk_token in tokens:
        raise UserError(
            f"the model's vocabulary cannot write the word '{word}'; choose another --word, of plain letters"
        )
    if len(tokens) == 1:
        return f"'{word}' is one token: good for a rare word; a common one would keep its own meaning"
    return (
        f"note: '{word}' is read as {len(pieces)} tokens, {' + '.join(pieces)}, and each may bring a meaning along; "
        "a rare word of one token is better where the vocabulary has one"
    )
