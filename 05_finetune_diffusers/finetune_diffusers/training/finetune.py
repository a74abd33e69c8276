"""Full fine-tuning: every weight of the U-Net is trained, the autoencoder and the text encoder stay as they are."""

from collections.abc import Sequence
from pathlib import Path

from common.io.files import write_folder
from finetune_diffusers.data.latent_dataset import encode
from finetune_diffusers.data.styles import read_style
from finetune_diffusers.evaluation.evaluators import StyleEvaluator, ValidationSampler, styled_images
from finetune_diffusers.pixel_pipeline import save_model
from finetune_diffusers.training.flags import CaptionedFlags, SizePresets, styled_name
from finetune_diffusers.training.loss import latent_denoising
from finetune_diffusers.training.trainer import Tuner
from finetune_diffusers.training.tuning import checked_record, introduce, setup, train_and_report


def finetune(args: CaptionedFlags, style_name: str, prompts: Sequence[str], presets: SizePresets) -> None:
    """Train all of the U-Net on captioned images in a style, and save the whole pipeline."""
    style = read_style(style_name)
    run = setup(args, f"finetune-{styled_name(args.data, style_name)}", presets)
    args, pipe = run.args, run.pipe
    images, plain = styled_images(args, style, run.size, not run.quiet)
    record = checked_record(run, images)
    data = encode(pipe, images, images.captions, run.quiet)
    loss = latent_denoising(pipe, data, args)
    evaluator = StyleEvaluator(ValidationSampler(pipe, args, run.size, run.accelerator), prompts, style, loss, plain)
    introduce(run, images, "all of its U-Net is trained")
    evaluator.evaluate("base")

    pipe.unet.requires_grad_(True)
    trainer = Tuner(pipe.unet, data, loss, args, run.accelerator)

    def save() -> dict[str, Path]:
        return {"model": write_folder(args.out / "model", lambda folder: save_model(pipe, folder))}

    train_and_report(run, trainer, evaluator, record, save, ("tuned",), "finetune.py")
