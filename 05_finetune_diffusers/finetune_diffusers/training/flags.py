"""The flags that this chapter's trainings share, and how those left open are filled.
Nothing heavy is imported here.
"""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

from common.errors import UserError
from common.io.ranges import MAY_BE_EMPTY, Range
from common.training.flags import RunFlags
from common.training.settings import FREE, resumed, with_folder
from finetune_diffusers.flags import OUT, PRETRAINED, SMALL
from finetune_diffusers.schedulers import check_schedulers

REPORTS = ("report_to", "push_to_hub")  # flags that a resumed run can be given anew
DRAWN = ("creatures", "dishes")  # drawn sets have no end, so by default they are cut


@dataclass(frozen=True)
class BaseFlags(RunFlags):
    """Flags of every training of the chapter."""

    steps: int | None = None
    """Optimizer steps; by default 2,000."""
    batch_size: int = 16
    """Images per batch and process."""
    gradient_accumulation: int = 1
    """Batches per optimizer step: the gradient of a large batch with the memory of a small one."""
    lr: float = 1e-3
    """Peak learning rate."""
    ema: float = 0.99
    """Largest decay of the average over the weights, which is what is saved;
    0 keeps no average, and saves the weights themselves.
    """
    sample_steps: int = 20
    """Sampling steps of the validation pictures."""
    save_every: int = 100
    """Steps between checkpoints."""


@dataclass(frozen=True)
class ImageFlags(BaseFlags):
    """Flags of the trainings that read a set of images."""

    data: str = "creatures"
    """Folder of images, or a data set by name:
    creatures, flowers102, oxford_flowers, butterflies, cifar10, ..., hub:owner/name.
    """
    data_dir: Path = Path("data")
    """Folder of local copies and downloads."""
    n: int | None = None
    """Only the first n images; by default 1,000 of a drawn set (train_unconditional.py: 2,000), and all of any other."""


@dataclass(frozen=True)
class TrainerFlags(BaseFlags):
    """Flags of the trainings with finetune_diffusers.training.loop.trainer.Trainer."""

    clip: float = 1.0
    """Largest norm of the gradient."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision. auto is bf16 where the device is fast at it, else no."""
    scheduler: str = "own"
    """Scheduler of the validation pictures: own is the model's; see generate.py."""
    sample_every: int | None = None
    """Steps between validation pictures; by default a fifth of the steps."""
    report_to: Literal["tensorboard", "wandb"] = "tensorboard"
    """Tracker of loss and validation pictures. TensorBoard's file of the loss is always in the run folder; wandb
    reports to Weights & Biases as well, or keeps a local record with WANDB_MODE=offline.
    """
    push_to_hub: str | None = None
    """Repository of the Hugging Face hub, owner/name, that receives the result and a model card at the end."""


@dataclass(frozen=True)
class UnconditionalFlags(TrainerFlags, ImageFlags):
    """Flags of train_unconditional.py."""

    size: int | None = None
    """Side of the images in pixels; by default the model's, or 32."""
    augment: Annotated[tuple[Literal["flip", "crop", "jitter"], ...], MAY_BE_EMPTY] = ("flip", "crop")
    """Random changes of the images."""
    workers: int = 0
    """Processes that prepare images; 0 does it in the training process."""

    model: str | None = None
    """Model to continue instead of training from scratch:
    a folder of chapter 1, any DDPM pipeline's, or a hub id such as google/ddpm-cifar10-32.
    """
    channels: tuple[int, ...] = (16, 32, 64)
    """From scratch: width of the network at each resolution, highest resolution first, multiples of 8."""
    prediction: Literal["v_prediction", "epsilon"] = "v_prediction"
    """From scratch: what the network predicts."""


@dataclass(frozen=True)
class PackageFlags(ImageFlags):
    """Flags of ddpm_package.py."""

    size: int = 16
    """Side of the images in pixels."""
    flip: bool = True
    """Mirror images at random."""

    dim: int = 16
    """Width of the network at full resolution, a multiple of 8."""
    mults: tuple[int, ...] = (1, 2, 4)
    """Width of the network at each resolution, in units of --dim."""
    objective: Literal["pred_v", "pred_noise", "pred_x0"] = "pred_v"
    """What the network predicts."""
    schedule: Literal["sigmoid", "cosine", "linear"] = "sigmoid"
    """Noise schedule."""

    amp: Literal["auto", "yes", "no"] = "auto"
    """Half precision: auto is yes on a GPU. On a CPU it is slower than none."""
    sample_steps: int = 25
    """DDIM steps of a sample; 1000 is DDPM."""
    samples: int = 16
    """Pictures in each sample, a square number."""
    by_hand_only: bool = False
    """Show the step, and train nothing."""


@dataclass(frozen=True)
class TuningFlags(TrainerFlags):
    """Flags of the trainings of a text-to-image model."""

    model: str = str(PRETRAINED)
    """Stable Diffusion folder, run folder with one in it, checkpoint in one file,
    or hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5.
    """
    revision: str | None = None
    """Branch, tag or commit of a repository on the hub."""
    variant: str | None = None
    """Variant of the weights, such as fp16; by default the weights without a variant, where there are any."""
    size: int | None = None
    """Side of the images in pixels; by default the model's own."""

    steps: int | None = None
    """Optimizer steps. Settings left open here are chosen by the size of the model."""
    batch_size: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride] - filled by `settled`
    """Images per batch and process."""
    lr: float | None = None  # pyright: ignore[reportIncompatibleVariableOverride] - filled by `settled`
    """Peak learning rate."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises."""
    optimizer: Literal["adamw", "fused", "8bit"] = "adamw"
    """fused: AdamW in one kernel. 8bit: its state in a quarter of the memory (bitsandbytes, on a GPU)."""
    checkpointing: bool = False
    """Gradient checkpointing: compute activations twice instead of keeping them;
    less memory, about a third more time.
    """
    min_snr: float = 5.0
    """Gamma of min-SNR weighting (Hang et al. 2023); 0 weighs all noise levels alike."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, which keeps guidance alive."""
    noise_offset: Annotated[float, Range(0, 10, 0.1, hint="0 is off")] = 0.0
    """Standard deviation of noise that is equal at all pixels of a channel, added to the noise of every pixel, so that
    the model learns to draw darker and lighter pictures; 0.05 to 0.1 is usual, 0 is off.
    """
    random_flip: bool = False
    """Train on the mirror image of every picture as well. Not for subjects with writing on them."""

    guidance: float | None = None
    """Guidance scale of the validation pictures; by default 3 for a small model, else the default of its pipeline."""
    measure: int = 24
    """Pictures drawn before and after the training to measure what it did; 0 is none."""


@dataclass(frozen=True)
class CaptionedFlags(TuningFlags, ImageFlags):
    """Flags of the trainings on captioned images."""

    data: str = "creatures"
    """creatures, dishes, pokemon, a folder of images with captions, or hub:owner/name."""
    language: Literal["en", "zh", "both"] | None = None
    """Language of the captions; by default every language there is."""


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # the layers that usually get a LoRA
WORDS = ("q_proj", "k_proj", "v_proj", "out_proj")  # the same layers of a text encoder
Style = Literal["none", "riso", "blueprint", "woodcut", "neon"]
STYLE_PROMPTS = (
    "a red fire creature with bat wings",
    "a blue round creature with cat ears",
    "a green grass creature with a curly tail",
    "a purple ghost creature with two horns",
    "a bowl of rice",
    "scrambled eggs with tomatoes",
)


@dataclass(frozen=True)
class StyleFlags(CaptionedFlags):
    """Flags of finetune.py and lora.py."""

    style: Style | None = None
    """Style that every picture is put into, with its words at the end of every caption; none is the data as they are.
    By default riso (lora.py: woodcut) for creatures and dishes, and none for any other data.
    """
    crops: Annotated[int, Range(0, 1000, 4)] = 0
    """Random square crops of each picture to train on, in place of the square at its centre (0). For folders only."""
    buckets: bool = False
    """Train on whole pictures, in batches of one aspect ratio each, with as many pixels as a square of --size has.
    For folders only.
    """
    train_text_encoder: bool = False
    """Train the text encoders as well, which helps with words that are new to the model: lora.py adapters at their
    attention, finetune.py all their weights.
    """
    prompts: Annotated[tuple[str, ...], MAY_BE_EMPTY] = ()
    """Validation prompts, drawn before, during and after the training; the words of the style are added at their end.
    By default prompts for creatures and dishes, or captions of your data.
    """


@dataclass(frozen=True)
class LoraFlags(StyleFlags):
    """Flags of lora.py."""

    rank: int = 8
    """Width of the two thin matrices."""
    alpha: float | None = None
    """Numerator of the factor alpha / rank of the product; by default alpha is the rank."""
    targets: tuple[str, ...] = ATTENTION
    """Layers of the U-Net that get an adapter, by the ends of their names."""
    output_kohya_format: bool = False
    """Write the adapter also as NAME-kohya.safetensors, under the names of kohya's scripts and the webui."""

    use: tuple[Path, ...] = ()
    """Adapters to draw the prompts with, instead of training:
    files (LoRA, LoCon, LoHa, LoKr, DoRA), run folders, or folders of PEFT.
    """
    scale: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Scales of the adapters, with --use: 0 is the model without them."""
    fuse: Path | None = None
    """With --use: new folder for the whole model with the adapters added to its weights, each at its --scale."""
    sheet: Path = OUT / "lora.png"
    """Contact sheet of --use."""


@dataclass(frozen=True)
class DreamBoothFlags(TuningFlags):
    """Flags of dreambooth.py."""

    caption_dropout: float = 0.0
    """Share of captions replaced by the empty one. Here it would teach the subject to the empty prompt, so it is off."""

    subject: Path | None = None
    """Folder with a few pictures of one thing; by default a drawn creature."""
    poses: int = 6
    """Pictures of the drawn creature."""
    word: str = "sks"
    """Name of the subject: a word that the model can read but has hardly met."""
    kind: str = "creature"
    """Kind of the subject, in a word that the model knows."""
    instance_prompt: str = "a {}"
    """Caption of the subject's pictures; {} stands for the word and the kind, and in the class images' caption for the
    kind alone. For photographs "a photo of {}" is usual.
    """
    prior: float = 1.0
    """Weight of prior preservation; 0 is off."""
    class_images: int = 64
    """Pictures of the kind, which the model draws before it is trained."""
    class_dir: Path | None = None
    """Folder of class images. If it holds fewer than --class-images, the model draws the rest into it.
    By default class_images in the run folder.
    """
    rank: Annotated[int, Range(0, 4096, 8)] = 0
    """Rank of a LoRA that is trained in place of all weights; 0 is all weights."""
    targets: tuple[str, ...] = ATTENTION
    """With --rank: layers of the U-Net that get an adapter, by the ends of their names. A small model draws a new
    subject only if its convolutions can change, too: add conv1 conv2.
    """
    train_text_encoder: bool = False
    """Train the text encoders as well: with --rank adapters at their attention, else all their weights."""
    output_kohya_format: bool = False
    """With --rank: write the adapter also as NAME-kohya.safetensors, under the names of kohya's scripts and the webui."""
    prompts: tuple[str, ...] = (
        "a {}",
        "a {} with bat wings",
        "a {} with two horns",
        "a sleepy {}",
        "a {kind}",
        "a blue {kind}",
    )
    """Validation prompts, drawn before, during and after the training;
    {} stands for the word and the kind, {kind} for the kind alone.
    """


@dataclass(frozen=True)
class ControlNetFlags(CaptionedFlags):
    """Flags of controlnet.py."""

    caption_dropout: float = 0.5
    """Share of captions replaced by the empty one: half, as in the paper,
    so that the edges alone must carry information.
    """
    threshold: float = 0.2
    """Least strength of an edge: the gradient per pixel, in pictures from -1 to 1."""
    strength: Annotated[float, Range(0, 10, hint="0 is the model without it")] = 1.0
    """Conditioning scale of the ControlNet in the pictures: 0 is the model without it."""
    control: Literal["edges", "canny", "lines", "conditioning_image"] = "edges"
    """What the ControlNet is given: edges, one pixel wide; canny, the edges of published ControlNets; lines, for
    --image: a drawing's own lines; conditioning_image, the pictures that this column of the metadata names.
    """
    measure: Annotated[int, Range(1, 10_000, hint="those pictures are the validation pictures here")] = 24
    """Pictures drawn before and after the training to measure what it did."""
    prompts: tuple[str, ...] = ()
    """With --image: prompts that are drawn along its edges.
    Otherwise the captions of test images are drawn along theirs.
    """

    use: str | None = None
    """Run, folder or hub id of a ControlNet to draw with, instead of training."""
    image: tuple[Path, ...] = ()
    """With --use: pictures to take the edges or lines of; by default the test images."""
    sheet: Path = OUT / "controlnet.png"
    """Contact sheet of --use."""


class Preset(NamedTuple):
    """What suits a model of one size."""

    steps: int
    batch_size: int
    lr: float


class SizePresets(NamedTuple):
    """Presets by the size of the model that is tuned."""

    small: Preset
    large: Preset


Tuning = TypeVar("Tuning", bound=TuningFlags)
Training = TypeVar("Training", bound=TrainerFlags)
FromScratch = TypeVar("FromScratch", UnconditionalFlags, PackageFlags)


def checked(args: Tuning) -> Tuning:
    """Refuse flags that cannot work, before anything is opened; with --resume, the settings of the run."""
    if args.size and args.size % 8:
        raise UserError(f"--size must be a multiple of 8 pixels, not {args.size}")
    check_schedulers([args.scheduler])
    if args.optimizer == "8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "--optimizer 8bit needs the package bitsandbytes, which is not installed (pip install bitsandbytes); "
            "or give --optimizer fused"
        )
    check_tracker(args)
    return resumed(args, (*FREE, "model", *REPORTS)) if args.resume else args


def check_tracker(args: TrainerFlags) -> None:
    """Refuse a tracker whose package is missing."""
    if args.report_to == "wandb" and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "--report-to wandb needs the package wandb, which is not installed (pip install wandb); "
            "it works without an account, too, where the environment variable WANDB_MODE is offline"
        )


def settled(args: Tuning, name: str, presets: SizePresets, weights: int, device: str) -> Tuning:
    """Fill what was left open, and choose the run folder,
    so that --resume needs nothing but that folder. name: of the folder; weights: their number in the U-Net
    """
    preset = presets.small if weights < SMALL else presets.large
    if (
        preset is presets.large
        and device.startswith("mps")
        and args.batch_size is None
        and args.gradient_accumulation == 1
    ):
        # a laptop's memory holds one image's activations; a step sees as many images
        args = replace(args, batch_size=1, gradient_accumulation=preset.batch_size)
    steps = args.steps or preset.steps
    args = replace(args, steps=steps, batch_size=args.batch_size or preset.batch_size, lr=args.lr or preset.lr)
    args = replace(args, sample_every=args.sample_every or max(1, steps // 5))
    if isinstance(args, CaptionedFlags) and args.n is None and args.data in DRAWN:
        args = replace(args, n=1000)
    return with_folder(args, f"{OUT.name}/{name}")


def settled_from_scratch(args: FromScratch, name: str, enough: int) -> FromScratch:
    """The settings of a training from scratch: those of the run in --resume, or the flags with what was left open.

    name    the run folder begins with it
    enough  images of a drawn set
    """
    if args.resume:
        return resumed(args, (*FREE, *REPORTS) if isinstance(args, TrainerFlags) else FREE)
    n = args.n or (enough if args.data in DRAWN else None)
    # 2,000 steps: under five minutes on a CPU
    return with_folder(replace(args, steps=args.steps or 2000, n=n), f"{OUT.name}/{name}-{data_name(args.data)}")


def data_name(data: str) -> str:
    """The data as a part of a folder's name: "hub:owner/name" -> "name"."""
    return Path(data.replace(":", "-")).name


def styled_name(data: str, style: str) -> str:
    """The data and their style as a part of a folder's name: creatures-riso."""
    return data_name(data) if style == "none" else f"{data_name(data)}-{style}"
