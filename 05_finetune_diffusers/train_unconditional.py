"""Train a model of images without text, as practitioners do: diffusers for network and noise, accelerate for the rest.

  python 05_finetune_diffusers/train_unconditional.py                                 drawn creatures, from scratch
  python 05_finetune_diffusers/train_unconditional.py --data butterflies --size 64 --augment flip crop jitter
  python 05_finetune_diffusers/train_unconditional.py --model 01_ddpm_mnist/pretrained --data creatures       goes on from a trained one
  python 05_finetune_diffusers/train_unconditional.py --resume runs/05_finetune_diffusers/unconditional-creatures
  torchrun --nproc_per_node 2 -- 05_finetune_diffusers/train_unconditional.py --batch-size 8    two processes, or GPUs, 8 images each

(Use torchrun on a CPU: `accelerate launch --cpu --num_processes 2` starts a single process and says nothing. Without
the -- before the program, torchrun reads --n as a flag of its own.) The result is a diffusers folder:
DDPMPipeline.from_pretrained("runs/.../model"). Chapter 1 trains the same thing with a loop written out.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from common.cli import run
from common.errors import UserError
from common.io.ranges import MAY_BE_EMPTY
from common.training.settings import resumed
from finetune_diffusers.schedulers import check_schedulers
from finetune_diffusers.training.flags import DRAWN, TrainerFlags, data_name, with_run_folder


@dataclass(frozen=True)
class Args(TrainerFlags):
    data: str = "creatures"
    """creatures, butterflies, flowers102, cifar10, ..., a folder of images, or hub:owner/name."""
    data_dir: Path = Path("data")
    """Folder of local copies and downloads."""
    n: int | None = None
    """Only the first n images; by default 2,000 of a drawn set, and all of any other."""
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

    lr: float = 2e-3
    """Peak learning rate of AdamW; it rises over a twentieth of the steps, then falls along a cosine."""
    ema: float = 0.995
    """Largest decay of the average over the weights, which is what is saved."""
    scheduler: str = "dpm++"
    """Scheduler of the sample pictures; see generate.py. The saved folder names DDPM."""
    save_every: int = 200
    """Steps between checkpoints."""
    sample_every: int | None = None
    """Steps between sample pictures; by default at each tenth."""


def main(args: Args) -> None:
    check_schedulers([args.scheduler])
    if any(width < 8 or width % 8 for width in args.channels):
        raise UserError(f"--channels must be one or more multiples of 8, not {' '.join(map(str, args.channels))}")
    if args.resume:
        args = resumed(args)
    else:
        n = args.n or (2000 if args.data in DRAWN else None)
        # under five minutes on a CPU
        args = with_run_folder(replace(args, steps=args.steps or 2000, n=n), f"unconditional-{data_name(args.data)}")
    from finetune_diffusers.training.unconditional_trainer import ImageData, NewNetwork, train_unconditional

    source = ImageData(args.data, args.data_dir, args.n, args.size, args.augment, args.workers)
    train_unconditional(args, source, NewNetwork(args.channels, args.prediction), args.model)


if __name__ == "__main__":
    run(main, Args)
