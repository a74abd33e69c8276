"""Train a model of images without words, as practitioners do: diffusers for network and noise, accelerate for the rest.

  python 05_finetune_diffusers/train_unconditional.py                                 drawn creatures, from scratch
  python 05_finetune_diffusers/train_unconditional.py --data butterflies --size 64 --augment flip crop jitter
  python 05_finetune_diffusers/train_unconditional.py --model 01_ddpm_mnist/pretrained --data creatures       goes on from a trained one
  python 05_finetune_diffusers/train_unconditional.py --resume runs/05_finetune_diffusers/unconditional-creatures
  torchrun --nproc_per_node 2 -- 05_finetune_diffusers/train_unconditional.py --batch-size 8    two processes, or GPUs, 8 images each

(Use torchrun on a CPU: `accelerate launch --cpu --num_processes 2` starts a single process and says nothing. Without the -- before
the program, torchrun takes --n for a flag of its own.) The result is a diffusers folder: DDPMPipeline.from_pretrained("runs/.../model").
Chapter 1 trains the same thing with a loop written out.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from common.cli import free_folder, pick_device, run
from common.errors import UserError
from common.io.ranges import MAY_BE_EMPTY
from common.training.flags import RunFlags
from common.training.settings import resumed, with_folder
from finetune_diffusers.models import OUT, check_schedulers

STEPS = 2000  # under five minutes on a CPU


@dataclass(frozen=True)
class Args(RunFlags):
    data: str = "creatures"
    """creatures, butterflies, flowers102, cifar10, ..., a folder of images, or hub:owner/name."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    n: int | None = None
    """Only the first n images; by default 2,000 of a drawn set, and all of any other."""
    size: int | None = None
    """Pixels a side; by default the model's, or 32."""
    augment: Annotated[tuple[Literal["flip", "crop", "jitter"], ...], MAY_BE_EMPTY] = ("flip", "crop")
    """What is done to the images by chance."""
    workers: int = 0
    """Processes that prepare images; 0 does it in the training process."""

    model: str | None = None
    """Go on from this model instead of from scratch: a folder of chapter 1, any DDPM pipeline's, or a hub id such as google/ddpm-cifar10-32."""
    channels: tuple[int, ...] = (16, 32, 64)
    """From scratch: width of the network at each resolution, highest resolution first, multiples of 8."""
    prediction: Literal["v_prediction", "epsilon"] = "v_prediction"
    """From scratch: what the network says."""

    steps: int | None = None
    """Optimizer steps; by default 2,000."""
    batch_size: int = 16
    """Images per batch and process."""
    gradient_accumulation: int = 1
    """Batches per optimizer step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW; it rises over a twentieth of the steps, then falls along a cosine."""
    ema: float = 0.995
    """Largest decay of the average over the weights, which is what is saved."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision. auto is bf16 where the device is fast at it, else no."""

    scheduler: str = "dpm++"
    """How samples are drawn; see generate.py. The folder itself says DDPM."""
    sample_steps: int = 20
    """Its steps."""
    save_every: int = 200
    """Steps between checkpoints."""
    sample_every: int | None = None
    """Steps between sample pictures; by default at each tenth."""


def check(args: Args) -> None:
    check_schedulers([args.scheduler])
    if any(width < 8 or width % 8 for width in args.channels):
        raise UserError(f"--channels must be one or more multiples of 8, not {' '.join(map(str, args.channels))}")


def settled(args: Args) -> Args:
    """Every setting chosen, so that --resume needs nothing but the folder."""
    from common.data.registry import DRAWN

    name = Path(args.data.replace(":", "-")).name
    args = replace(args, out=args.out or free_folder(OUT / f"unconditional-{name}"))
    return with_folder(replace(args, steps=args.steps or STEPS, n=args.n or (2000 if args.data in DRAWN else None)), OUT.name)


def main(args: Args) -> None:
    check(args)
    args = resumed(args) if args.resume else settled(args)
    pick_device(args.device)
    from finetune_diffusers.training.unconditional_trainer import fit  # brings torch along, which --help should not wait for

    fit(args)


if __name__ == "__main__":
    run(main, Args)
