"""Training on captioned images in a style: every weight of the U-Net is trained, or a LoRA beside it. The autoencoder
and the text encoder stay as they are.
"""

from collections.abc import Sequence

from finetune_diffusers.data.latent_dataset import encode
from finetune_diffusers.data.styles import read_style
from finetune_diffusers.evaluation.evaluators import StyleEvaluator, ValidationSampler, styled_images
from finetune_diffusers.training.flags import ATTENTION, SizePresets, StyleFlags, styled_name
from finetune_diffusers.training.lora import check_targets
from finetune_diffusers.training.loss import latent_denoising
from finetune_diffusers.training.trainer import Tuner
from finetune_diffusers.training.tuning import checked_record, setup, train_and_report, unfreeze


def finetune(
    args: StyleFlags,
    presets: SizePresets,
    rank: int = 0,  # of a LoRA in place of all weights; 0 is all weights
    alpha: float | None = None,  # of the LoRA; see add_adapter
    targets: Sequence[str] = ATTENTION,  # ends of the names of the layers that get a LoRA
) -> None:
    """Train on captioned images in a style, and save the whole pipeline, or the adapters in one file."""
    style, name, tool = read_style(args.style), styled_name(args.data, args.style), "lora" if rank else "finetune"
    run = setup(args, f"{tool}-{name}", presets)
    args, pipe = run.args, run.pipe
    if rank:
        check_targets(pipe.unet, targets)
    images, plain = styled_images(args, style, run.size, not run.quiet)
    record = checked_record(run, images)
    data = encode(pipe, images, images.captions, run.quiet)
    loss = latent_denoising(pipe, data, args)
    sampler = ValidationSampler(pipe, args, run.size, run.accelerator)
    evaluator = StyleEvaluator(sampler, args.prompts, style, loss, plain)
    evaluator.evaluate("base")
    save = unfreeze(run, images, name, rank, alpha, targets)
    trainer = Tuner(pipe.unet, data, loss, args, run.accelerator)
    train_and_report(run, trainer, evaluator, record, save, ("with LoRA" if rank else "tuned",), f"{tool}.py")
