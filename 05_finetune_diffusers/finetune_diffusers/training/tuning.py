"""What the trainings of text-to-image models share: opening the model, and running, logging and reporting a training.

run = setup(args, "lora-creatures", PRESETS)
... what is trained, on what data, and how it is evaluated
train_and_report(run, trainer, evaluator, record, save, ...)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard
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
from finetune_diffusers.images import contact_sheet
from finetune_diffusers.models import TUNED_FAMILIES, default_guidance, native_size, open_for_training
from finetune_diffusers.pixel_pipeline import save_model
from finetune_diffusers.training.flags import ATTENTION, WORDS, SizePresets, Tuning, TuningFlags, settled
from finetune_diffusers.training.loop.trainer import Tuner, same_folder, tracker
from finetune_diffusers.training.lora import add_adapter, save_lora
from finetune_diffusers.training.loss import Predict, predict_with_unet
from finetune_diffusers.training.publishing import (
    CardFacts,
    create_repository,
    model_card,
    public_name,
    publish,
    shown_settings,
    usage,
)
from finetune_diffusers.training.text_encoders import TextAndUNet, predict_with_text


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


def setup(
    args: Tuning,
    name: str,  # of the run folder, where none is given
    presets: SizePresets,
    families: Sequence[str] = TUNED_FAMILIES,  # of pipelines that the training takes
) -> RunContext[Tuning]:
    """Open the model and settle every setting."""
    device = pick_device(args.device)
    if args.optimizer == "8bit" and not device.startswith("cuda"):
        raise UserError(f"--optimizer 8bit works on CUDA only, not on {device}; use --optimizer fused")
    precision = pick_precision(args.precision, device)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation,
        mixed_precision=precision,
        cpu=device == "cpu",
        log_with=tracker(args),
        # XL reads its first text encoder before the last layer, which then has no gradient to exchange
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=trains_text(args))],
    )
    if args.push_to_hub and accelerator.is_main_process:
        create_repository(args.push_to_hub)
    which = {"revision": args.revision, "variant": args.variant}
    pipe = open_for_training(args.model, str(accelerator.device), families, **which)
    for part in networks(pipe):
        part.requires_grad_(False)
    if args.checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    if args.guidance is None:
        args = replace(args, guidance=default_guidance(pipe))
    if not args.resume:
        args = settled(args, name, presets, count_parameters(pipe.unet), device)
        accelerator.gradient_accumulation_steps = args.gradient_accumulation
    size, f = args.size or native_size(pipe), pipe.vae_scale_factor
    if size % f:  # refused before any images are read
        raise UserError(
            f"the autoencoder downsamples images {f} times; give a --size that is a multiple of {f}, not {size}"
        )
    return RunContext(same_folder(args), pipe, accelerator, size)


def trains_text(args: TuningFlags) -> bool:
    """Whether the text encoders are trained as well; a ControlNet's training has no such flag."""
    return getattr(args, "train_text_encoder", False)


def networks(pipe: StableDiffusionPipeline) -> list[nn.Module]:
    """The pipeline's networks: the U-Net, the autoencoder, and one or two text encoders."""
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    return [part for name in names if (part := getattr(pipe, name, None)) is not None]


def checked_record(run: RunContext[Any], images: Images, *more: Images) -> dict[str, Any]:
    """A record of the model and the images, for data.json; a resumed run with others is refused.
    Call it before the model is changed.
    """
    pipe, others = run.pipe, [part for some in more for part in (some.pixels, some.captions)]
    record = record_of(images.pixels, images.captions, *others) | {"model": fingerprint(*networks(pipe))}
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


class Trained(NamedTuple):
    """What a training trains."""

    net: nn.Module  # the U-Net, or a TextAndUNet
    predict: Predict  # how the loss calls it
    save: Callable[[], dict[str, Path]]  # writes what was learned: {what it is: where}


def unfreeze(
    run: RunContext[Any],
    images: Images,
    name: str,  # of the adapter's file
    rank: int,  # of a LoRA in place of all weights; 0 is all weights
    alpha: float | None = None,
    targets: Sequence[str] = ATTENTION,
) -> Trained:
    """Make all of the U-Net trainable, or new adapters beside it, and the same of the text encoders where
    --train-text-encoder asks for it. Prints what is trained.
    """
    args, pipe = run.args, run.pipe
    texts = text_encoders(pipe) if trains_text(args) else {}
    if args.checkpointing:
        for part in texts.values():
            part.gradient_checkpointing_enable()
    if rank:
        precision = run.accelerator.mixed_precision
        layers = add_adapter(pipe.unet, rank, alpha, targets, args.seed, precision)
        words = [add_adapter(part, rank, alpha, WORDS, args.seed, precision) for part in texts.values()]
        beside = f", and at {sum(words)} of its text encoders'" if words else ""
        introduce(run, images, f"adapters of rank {rank} at {layers} of its layers{beside}")
    else:
        for part in (pipe.unet, *texts.values()):
            part.requires_grad_(True)
        introduce(run, images, f"all of its U-Net is trained{' and of its text encoders' if texts else ''}")

    def save() -> dict[str, Path]:
        if not rank:
            return {"model": write_folder(args.out / "model", lambda folder: save_model(pipe, folder))}
        return save_lora(pipe, args.out / f"{name}.safetensors", texts, args.output_kohya_format)

    if not texts:
        return Trained(pipe.unet, predict_with_unet, save)
    return Trained(TextAndUNet(pipe).to(run.accelerator.device), predict_with_text, save)


def text_encoders(pipe: StableDiffusionPipeline) -> dict[str, nn.Module]:
    """One text encoder, or the two of Stable Diffusion XL, by their names in the pipeline."""
    found = {name: getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2")}
    return {name: part for name, part in found.items() if part is not None}


def train_and_report(
    run: RunContext[Any],
    trainer: Tuner,
    evaluator: TuningEvaluator,
    record: dict[str, Any],  # what checked_record() returned
    save: Callable[[], dict[str, Path]],  # writes what was learned, the averaged weights being in the network
    stages: tuple[str, ...],  # evaluated at the end
    program: str,  # "lora.py", to resume with
    kind: str,  # of model, for its card: "LoRA"
    prompt: str | None = None,  # of the subject, for DreamBooth's card
) -> None:
    """Train to the end with a log and validation pictures, then save, evaluate and report.
    Other processes only train.
    """

    def draw(net: nn.Module) -> Image.Image:
        pictures = evaluator.validation_pictures()
        return contact_sheet(pictures[None], [""], evaluator.prompts[: len(pictures)])

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
    measures = {
        what: {name: estimate._asdict() for name, estimate in found.items()}
        for what, found in evaluator.columns.items()
    }
    trainer.report(state is not None, measures=measures)
    rows: dict[str, object] = {**pictures, **results}
    if run.args.push_to_hub and step == run.args.steps:
        card = card_of(run, evaluator, results, kind, prompt)
        files = repository_files(results) | {"before_after.png": pictures["before and after"]}
        rows["published"] = publish(run.args.push_to_hub, files, card)
    print_rows(rows)


def repository_files(results: dict[str, Path]) -> dict[str, Path]:
    """Where results go in a repository: a folder's files to its root, an adapter under its own name."""
    return {"" if path.is_dir() else path.name: path for path in results.values()}


def card_of(
    run: RunContext[Any], evaluator: TuningEvaluator, results: dict[str, Path], kind: str, prompt: str | None
) -> ModelCard:
    """The model card of a finished training."""
    settings, first = vars(run.args), next(iter(results.values()))
    base, file = public_name(run.args.model), first.name if first.is_file() else None
    use = usage(kind, type(run.pipe).__name__, run.args.push_to_hub, base, evaluator.prompts[0], file)
    data = settings.get("data") or settings.get("subject") or "the drawn subject"
    facts = CardFacts(base, kind, use, Path(str(data)).name, shown_settings(settings), evaluator.table(), prompt)
    return model_card(facts, "before_after.png")
