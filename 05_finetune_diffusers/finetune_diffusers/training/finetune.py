"""Training on captioned images, in a style or as they are: every weight of the U-Net is trained, or a LoRA beside it.
The autoencoder stays as it is, and so do the text encoders unless --train-text-encoder is given.
"""

from collections.abc import Sequence
from dataclasses import replace

from finetune_diffusers.data.latent_dataset import Bucketed, encode
from finetune_diffusers.data.styles import in_style, read_style
from finetune_diffusers.data.views import shapes, views
from finetune_diffusers.evaluation.evaluators import StyleEvaluator, ValidationSampler, training_and_test_images
from finetune_diffusers.training.flags import (
    ATTENTION,
    DRAWN,
    STYLE_PROMPTS,
    SizePresets,
    Style,
    StyleFlags,
    styled_name,
)
from finetune_diffusers.training.loop.trainer import Tuner
from finetune_diffusers.training.lora import check_targets
from finetune_diffusers.training.loss import latent_denoising
from finetune_diffusers.training.tuning import checked_record, setup, train_and_report, unfreeze


def finetune(
    args: StyleFlags,
    presets: SizePresets,
    usual_style: Style,  # of creatures and dishes, where --style is not given
    rank: int = 0,  # of a LoRA in place of all weights; 0 is all weights
    alpha: float | None = None,  # of the LoRA; see add_adapter
    targets: Sequence[str] = ATTENTION,  # ends of the names of the layers that get a LoRA
) -> None:
    """Train on captioned images, and save the whole pipeline, or the adapters in one file."""
    args = replace(args, style=args.style or (usual_style if args.data in DRAWN else "none"))
    style, name, tool = read_style(args.style), styled_name(args.data, args.style), "lora" if rank else "finetune"
    run = setup(args, f"{tool}-{name}", presets)
    args, pipe = run.args, run.pipe
    if rank:
        check_targets(pipe.unet, targets)
    images, test = training_and_test_images(args, run.size, not run.quiet)
    # of the sides of a bucket: latents that the U-Net can halve from level to level
    step = pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    chosen = views(images, args.data, args.crops, args.buckets, args.random_flip, step, args.seed)
    sets = [in_style(style, some) for some in chosen]
    if args.buckets and not run.quiet:
        print(f"buckets: {shapes(sets)}")
    record = checked_record(run, *sets)
    latents = [encode(pipe, some, some.captions, run.quiet, args.train_text_encoder) for some in sets]
    data = latents[0] if len(latents) == 1 else Bucketed(latents)
    trained = unfreeze(run, sets[0], name, rank, alpha, targets)
    loss = latent_denoising(pipe, latents[0], args, trained.predict)
    sampler = ValidationSampler(pipe, args, run.size, run.accelerator)
    prompts = args.prompts or (STYLE_PROMPTS if args.data in DRAWN else tuple(dict.fromkeys(images.captions))[:4])
    evaluator = StyleEvaluator(sampler, prompts, style, loss, test, trained.net)
    evaluator.evaluate("base")
    trainer = Tuner(trained.net, data, loss, args, run.accelerator)
    stage, kind = ("with LoRA", "LoRA") if rank else ("tuned", "Fine-tuned model")
    train_and_report(run, trainer, evaluator, record, trained.save, (stage,), f"{tool}.py", kind)
