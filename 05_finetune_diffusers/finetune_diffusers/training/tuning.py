"""What the trainings of text-to-image models share: opening the model, and running, logging and reporting a training.

run = setup(args, "lora-creatures", PRESETS)
... what is trained, on what data, and how it is evaluated
train_and_report(run, trainer, evaluator, record, save, ...)
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import StableDiffusionPipeline

from common.cli import pick_device, pick_precision
from common.data import Images
from common.errors import UserError
from common.io.files import write_json
from common.io.state_dict import count_parameters, fingerprint
from common.training.logging import Due, logged
from common.training.loop import State
from common.training.record import check_record, keep_settings, record_of
from common.viz import save_picture
from finetune_diffusers.data.latent_dataset import count_truncated
from finetune_diffusers.evaluation.evaluators import TuningEvaluator
from finetune_diffusers.images import contact_sheet, prompt_labels
from finetune_diffusers.models import native_size, open_for_training
from finetune_diffusers.training.flags import SizePresets, Tuning, settled
from finetune_diffusers.training.trainer import Tuner


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
    if accelerator.num_processes > 1:  # the main process chose a free folder first
        args = replace(args, out=Path(broadcast_object_list([str(args.out)])[0]))
    size = args.size or native_size(pipe)
    if size % pipe.vae_scale_factor:  # refused before any images are read
        f = pipe.vae_scale_factor
        raise UserError(
            f"the autoencoder downsamples images {f} times; give a --size that is a multiple of {f}, not {size}"
        )
    return RunContext(args, pipe, accelerator, size)


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
    if run.quiet:
        for _ in trainer.run():  # the main process alone writes and draws
            pass
        return
    keep_settings(run.args, record)
    state = follow(run, trainer, evaluator)
    with trainer.averaged():
        results = save()
        for stage in stages:
            evaluator.evaluate(stage)
    report(run, trainer, evaluator, state, program, results)


def follow(run: RunContext[Any], trainer: Tuner, evaluator: TuningEvaluator) -> State | None:
    """Run the training to its end: each step is logged,
    and validation pictures are drawn with the averaged weights as it goes.

    Returns the last State; None where nothing was left to do.
    """
    due, state = Due(run.args.sample_every), None
    with closing(logged(trainer.run(), run.args.out, run.args.steps)) as states:
        for state in states:
            if due(state) and not state.done:
                with trainer.averaged():
                    pictures = evaluator.validation_pictures()
                labels = prompt_labels(evaluator.prompts[: len(pictures)])
                save_picture(
                    contact_sheet(pictures[None], [""], labels),
                    run.args.out / "samples" / f"step-{state.step:06d}.png",
                )
    return state


def report(
    run: RunContext[Any],
    trainer: Tuner,
    evaluator: TuningEvaluator,
    state: State | None,
    program: str,
    results: dict[str, Path],
) -> None:
    """Print and write what was measured, what it cost, and where things are."""
    args, step, seconds = run.args, trainer.progress.step, trainer.progress.seconds
    if step < args.steps:
        print(f"stopped after step {step}; continue with: python 05_finetune_diffusers/{program} --resume {args.out}")
    print(
        f"{step} steps in {seconds:.0f} s of training"
        if state
        else f"nothing was left to do: all {step} steps are done"
    )
    pictures = {"before and after": evaluator.contact_sheet(args.out / "before_after.png")}
    if table := evaluator.table():
        print(f"\nmeasured on {args.measure} pictures, with 95 % intervals\n{table}")
        if references := evaluator.references():
            print(f"  {references}")
    if state:
        print(f"\nmemory\n{trainer.cost.table()}\n")
    measures = {
        stage: {name: estimate._asdict() for name, estimate in found.items()}
        for stage, found in evaluator.found.items()
    }
    write_json(
        args.out / "results.json",
        {"measures": measures, "cost": trainer.cost.as_json(), "seconds": seconds, "steps": step},
    )
    for what, path in (pictures | results).items():
        print(f"{what:18} {path}")
