"""What the trainings of text-to-image models share: opening the model, and running, logging and reporting a training.

run = setup(args, "lora-creatures", PRESETS)
... what is trained, on what data, and how it is evaluated
train_and_report(run, trainer, evaluator, record, save, ...)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import nn

from common.cli import pick_device, pick_precision
from common.data import Images
from common.errors import UserError
from common.io.files import write_folder
from common.io.state_dict import count_parameters, fingerprint
from common.training.record import check_record, record_of
from common.training.run import print_rows
from finetune_diffusers.data.latent_dataset import count_truncated
from finetune_diffusers.evaluation.evaluators import TuningEvaluator
from finetune_diffusers.images import contact_sheet, prompt_labels
from finetune_diffusers.models import native_size, open_for_training
from finetune_diffusers.pixel_pipeline import save_model
from finetune_diffusers.training.flags import ATTENTION, SizePresets, Tuning, settled
from finetune_diffusers.training.lora import add_adapter, save_adapter
from finetune_diffusers.training.trainer import Tuner, same_folder


@dataclass(frozen=True)
class RunContext(Generic[Tuning]):
    """What a training works with, once its flags are settled."""

    args: Tuning
    pipe: StableDiffusionPipeline  # float32, nothing in it requires a gradient
    accelerator: Accelerator
    size: int  # side of the images in pixels

    @property
    def quiet(self) -> bool:
        """Whether another process writes and prints."""
        return not self.accelerator.is_main_process


def setup(args: Tuning, name: str, presets: SizePresets) -> RunContext[Tuning]:
    """Open the model and settle every setting. name: of the run folder, where none is given"""
    device = pick_device(args.device)
    if args.optimizer == "8bit" and not device.startswith("cuda"):
        raise UserError(f"--optimizer 8bit works on CUDA only, not on {device}; use --optimizer fused")
    precision = pick_precision(args.precision, device)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation, mixed_precision=precision, cpu=device == "cpu"
    )
    pipe = open_for_training(args.model, str(accelerator.device))
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    if args.checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    if not args.resume:
        args = settled(args, name, presets, count_parameters(pipe.unet), device)
        accelerator.gradient_accumulation_steps = args.gradient_accumulation
    size, f = args.size or native_size(pipe), pipe.vae_scale_factor
    if size % f:  # refused before any images are read
        raise UserError(
            f"the autoencoder downsamples images {f} times; give a --size that is a multiple of {f}, not {size}"
        )
    return RunContext(same_folder(args), pipe, accelerator, size)


def checked_record(run: RunContext[Any], images: Images) -> dict[str, Any]:
    """A record of the model and the images, for data.json; a resumed run with others is refused.
    Call it before the model is changed.
    """
    pipe = run.pipe
    record = record_of(images.pixels, images.captions) | {"model": fingerprint(pipe.unet, pipe.vae, pipe.text_encoder)}
    check_record(run.args, record)
    return record


def introduce(run: RunContext[Any], images: Images, what: str) -> None:
    """Print what is about to be done."""
    if run.quiet:
        return
    args, pipe, size = run.args, run.pipe, images.size
    weights, side = count_parameters(pipe.unet), size // pipe.vae_scale_factor
    print(
        f"{images.name}: {len(images):,} images of {size}x{size}, latents of {side}x{side}; "
        f"{args.model}: {weights:,} weights, {what}, on {run.accelerator.device}"
    )
    images_per_step = args.batch_size * args.gradient_accumulation * run.accelerator.num_processes
    print(
        f'{args.steps} steps of {images_per_step} images, learning rate {args.lr:g}; the first caption is "{images.captions[0]}"'
    )
    if longer := count_truncated(pipe, images.captions):
        print(
            f"note: {longer} of {len(images):,} captions have more than {pipe.tokenizer.model_max_length} tokens, and their ends are not read"
        )


def unfreeze(
    run: RunContext[Any],
    images: Images,
    name: str,  # of the adapter's file
    rank: int,  # of a LoRA in place of all weights; 0 is all weights
    alpha: float | None = None,
    targets: Sequence[str] = ATTENTION,
) -> Callable[[], dict[str, Path]]:
    """Make all of the U-Net trainable, or new adapters beside it, and say so.
    Returns what saves them: {what it is: where}.
    """
    args, pipe = run.args, run.pipe
    if not rank:
        pipe.unet.requires_grad_(True)
        introduce(run, images, "all of its U-Net is trained")
        return lambda: {"model": write_folder(args.out / "model", lambda folder: save_model(pipe, folder))}
    layers = add_adapter(pipe.unet, rank, alpha, targets, args.seed, run.accelerator.mixed_precision)
    introduce(run, images, f"adapters of rank {rank} at {layers} of its layers")

    def save() -> dict[str, Path]:
        path = save_adapter(pipe.unet, args.out / f"{name}.safetensors")
        return {f"adapter, {path.stat().st_size / 1e3:.0f} kB": path}

    return save


def train_and_report(
    run: RunContext[Any],
    trainer: Tuner,
    evaluator: TuningEvaluator,
    record: dict[str, Any],  # what checked_record() returned
    save: Callable[
        [], dict[str, Path]
    ],  # writes what was learned, with the averaged weights in the network; {what it is: where}
    stages: tuple[str, ...],  # evaluated at the end
    program: str,  # "lora.py", to resume with
) -> None:
    """Train to the end with a log and validation pictures, then save, evaluate and report.
    Other processes only train.
    """

    def draw(net: nn.Module) -> Image.Image:
        pictures = evaluator.validation_pictures()
        return contact_sheet(pictures[None], [""], prompt_labels(evaluator.prompts[: len(pictures)]))

    state = trainer.follow(f"05_finetune_diffusers/{program}", record, draw)
    if run.quiet:
        return
    with trainer.averaged():
        results = save()
        for stage in stages:
            evaluator.evaluate(stage)
    step, seconds = trainer.progress.step, trainer.progress.seconds
    print(
        f"{step} steps in {seconds:.0f} s of training"
        if state
        else f"nothing was left to do: all {step} steps are done"
    )
    pictures = {"before and after": evaluator.contact_sheet(run.args.out / "before_after.png")}
    if table := evaluator.table():
        print(f"\nmeasured on {run.args.measure} pictures, with 95 % intervals\n{table}")
        if references := evaluator.references():
            print(f"  {references}")
    measures = {
        stage: {name: estimate._asdict() for name, estimate in found.items()}
        for stage, found in evaluator.found.items()
    }
    trainer.report(state is not None, measures=measures)
    print_rows(pictures | results)
