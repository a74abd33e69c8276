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

from dataclasses import dataclass

from common.cli import run
from common.errors import UserError
from finetune_diffusers.schedulers import check_schedulers
from finetune_diffusers.training.flags import UnconditionalFlags, check_tracker, settled_from_scratch


@dataclass(frozen=True)
class Args(UnconditionalFlags):
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
    check_schedulers([args.scheduler], own=False)
    check_tracker(args)
    if any(width < 8 or width % 8 for width in args.channels):
        raise UserError(f"--channels must be one or more multiples of 8, not {' '.join(map(str, args.channels))}")
    args = settled_from_scratch(args, "unconditional", enough=2000)
    from finetune_diffusers.training.unconditional_trainer import train_unconditional

    train_unconditional(args)


if __name__ == "__main__":
    run(main, Args)
