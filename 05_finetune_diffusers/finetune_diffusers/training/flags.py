"""The flags that this chapter's trainings share, and how those left open are filled. Nothing heavy is imported here."""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from common.cli import free_folder
from common.errors import UserError
from common.training.flags import RunFlags
from common.training.settings import with_folder
from finetune_diffusers.models import OUT, PRETRAINED, check_schedulers

if TYPE_CHECKING:
    from torch import nn

SMALL = 50_000_000  # a U-Net with fewer weights is small: it learns at rates that would ruin a large one
DRAWN = ("creatures", "dishes")  # these have no end, so by default it is
ENOUGH = 1000                   # of them


@dataclass(frozen=True)
class Flags(RunFlags):
    model: str = str(PRETRAINED)
    """A Stable Diffusion folder, a run folder with one in it, a checkpoint in one file, or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5."""
    size: int | None = None
    """Pixels a side; by default the model's own."""

    steps: int | None = None
    """Optimizer steps. What is left open here is chosen by the size of the model."""
    batch_size: int | None = None
    """Images per batch and process."""
    gradient_accumulation: int = 1
    """Batches per optimizer step: the gradient of a large batch with the memory of a small one."""
    lr: float | None = None
    """Peak learning rate."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate goes on after the warm-up."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises."""
    optimizer: Literal["adamw", "fused", "8bit"] = "adamw"
    """fused: AdamW in one kernel. 8bit: its state in a quarter of the memory (bitsandbytes, on a GPU)."""
    checkpointing: bool = False
    """Gradient checkpointing: compute activations twice instead of keeping them; less memory, about a third more time."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision. auto is bf16 where the device is fast at it, else no."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.99
    """Largest decay of the average over the weights, which is what is saved; 0 saves the weights themselves."""
    min_snr: float = 5.0
    """Gamma of min-SNR weighting (Hang et al. 2023); 0 weighs all noise levels alike."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, which keeps guidance alive."""

    guidance: float = 3.0
    """Guidance scale of the validation pictures."""
    scheduler: str = "dpm++"
    """Scheduler of the validation pictures."""
    sample_steps: int = 20
    """Steps of the validation pictures."""
    measure: int = 24
    """Pictures drawn before and after the training to measure what it did; 0 is none."""

    save_every: int = 100
    """Steps between checkpoints."""
    sample_every: int | None = None
    """Steps between validation pictures; by default a fifth of the steps."""


@dataclass(frozen=True)
class DataFlags(Flags):
    data: str = "creatures"
    """creatures, dishes, pokemon, a folder of images with captions, or hub:owner/name."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    language: Literal["en", "zh", "both"] | None = None
    """Of the captions; by default whatever there is."""
    n: int | None = None
    """Only the first n images; by default 1,000 of a drawn set, and all of any other."""


class Preset(NamedTuple):
    """What suits a model of one size."""

    steps: int
    batch_size: int
    lr: float


Args = TypeVar("Args", bound=Flags)


def check_flags(args: Flags) -> None:
    """Refuse what cannot be, before anything is opened."""
    if args.size and args.size % 8:
        raise UserError(f"--size must be a multiple of 8 pixels, not {args.size}")
    check_schedulers([args.scheduler])
    if args.optimizer == "8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--optimizer 8bit needs the package bitsandbytes, which is not installed (pip install bitsandbytes); "
                        "or give --optimizer fused")  # fmt: skip


def settled(args: Args, program: str, name: str, small: Preset, large: Preset, unet: "nn.Module", device: str) -> Args:
    """Fill what was left open, and choose the run folder, so that --resume needs nothing but that folder."""
    preset = small if sum(p.numel() for p in unet.parameters()) < SMALL else large
    if preset is large and device.startswith("mps") and args.batch_size is None and args.gradient_accumulation == 1:
        args = replace(args, batch_size=1, gradient_accumulation=preset.batch_size)  # a laptop's memory holds one image's activations; a step sees as many images
    args = replace(args, steps=args.steps or preset.steps, batch_size=args.batch_size or preset.batch_size, lr=args.lr or preset.lr)
    args = replace(args, sample_every=args.sample_every or max(1, args.steps // 5))
    if isinstance(args, DataFlags) and args.n is None and args.data in DRAWN:
        args = replace(args, n=ENOUGH)
    return with_folder(replace(args, out=args.out or free_folder(OUT / f"{program}-{name}")), OUT.name)


def data_name(args: DataFlags) -> str:
    """Of the data, as a part of a folder's name."""
    return Path(args.data.replace(":", "-")).name

