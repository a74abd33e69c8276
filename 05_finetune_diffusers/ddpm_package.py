"""The package denoising_diffusion_pytorch: one training step by hand, then its Trainer on a folder of images.

  python 05_finetune_diffusers/ddpm_package.py                                     drawn creatures, written to a folder first
  python 05_finetune_diffusers/ddpm_package.py --data flowers102 --size 64 --dim 32 --steps 20000
  python 05_finetune_diffusers/ddpm_package.py --data path/to/flowers --size 64
  python 05_finetune_diffusers/ddpm_package.py --resume runs/05_finetune_diffusers/package-creatures --steps 600
  python 05_finetune_diffusers/ddpm_package.py --by-hand-only                      the step, without the training

The Trainer reads a folder of .jpg, .jpeg, .png and .tiff files. A folder in which it sees all pictures is read as it
is; other data are written out as PNGs.
It keeps an average of the weights (EMA), adds gradients up over several batches, uses half precision on a GPU, and
every --save-every steps writes model-1.pt, sample-1.png, model-2.pt, ...: its milestones, from which --resume goes on.
It refuses some settings with bare assertions in the middle of its construction; here they are looked at first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import run
from common.errors import UserError
from finetune_diffusers.training.flags import PackageFlags, settled_from_scratch

LEAST_BATCH = 16  # images per step, below which the package's Trainer refuses to work


@dataclass(frozen=True)
class Args(PackageFlags):
    gradient_accumulation: int = 1
    """Batches per optimizer step; batch size x accumulation must be 16 at least."""
    lr: float = 1e-3
    """Learning rate of Adam; the package's own default, 8e-5, is for weeks."""
    ema: float = 0.9
    """Decay of the averaged weights that draw.
    The package updates them at every tenth step: its own 0.995 averages 2,000 steps, 0.9 a hundred.
    """
    resume: Path | None = None
    """Run folder to continue from its newest milestone.
    Its settings apply; --steps and the place of the data can be given anew.
    """
    save_every: int = 500
    """Steps between milestones."""
    device: Literal["auto", "cpu"] = "auto"
    """auto is a GPU where there is one: the Trainer chooses by itself."""


def main(args: Args) -> None:
    batch, accumulation, halvings = args.batch_size, args.gradient_accumulation, 2 ** (len(args.mults) - 1)
    if batch * accumulation < LEAST_BATCH:  # what the package would refuse later, with its reason
        raise UserError(
            f"--batch-size {batch} x --gradient-accumulation {accumulation} = {batch * accumulation}, but the package's Trainer wants "
            f"at least {LEAST_BATCH} images per step; give --gradient-accumulation {-(-LEAST_BATCH // batch)}"
        )
    if round(args.samples**0.5) ** 2 != args.samples:
        raise UserError(
            f"--samples must be a square number such as 4, 9, 16, not {args.samples}: the package lays them out in a square"
        )
    if args.size % halvings:
        raise UserError(
            f"--size must be a multiple of {halvings} for --mults {' '.join(map(str, args.mults))}, not {args.size}: every "
            "resolution is half of the one before"
        )
    if args.dim % 8:
        raise UserError(f"--dim must be a multiple of 8, not {args.dim}")
    args = settled_from_scratch(args, "package", enough=1000)
    from finetune_diffusers.training.ddpm_package_trainer import train_with_package

    train_with_package(args)


if __name__ == "__main__":
    run(main, Args)
