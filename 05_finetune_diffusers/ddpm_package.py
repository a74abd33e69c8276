"""The package denoising_diffusion_pytorch: one training step by hand, then its Trainer on a folder of images.

  python 05_finetune_diffusers/ddpm_package.py                                     drawn creatures, written to a folder first
  python 05_finetune_diffusers/ddpm_package.py --data flowers102 --size 64 --dim 32 --steps 20000
  python 05_finetune_diffusers/ddpm_package.py --data path/to/flowers --size 64
  python 05_finetune_diffusers/ddpm_package.py --resume runs/05_finetune_diffusers/package-creatures --steps 600
  python 05_finetune_diffusers/ddpm_package.py --by-hand-only                      the step, without the training

The Trainer reads a folder of .jpg, .jpeg, .png and .tiff files. A folder in which it sees all pictures is read as it is; other data are
written out as PNGs.
It keeps an average of the weights (EMA), adds gradients up over several batches, uses half precision on a GPU, and every
--save-every steps writes model-1.pt, sample-1.png, model-2.pt, ...: its milestones, from which --resume goes on. It refuses some
settings with bare assertions in the middle of its construction; here they are looked at first.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from common.cli import free_folder, pick_device, run
from common.errors import UserError
from common.training.flags import RunFlags
from common.training.settings import resumed, with_folder
from finetune_diffusers.models import OUT

LEAST_IMAGES, LEAST_BATCH = 100, 16       # below these the package's Trainer refuses to work
SUFFIXES = ("jpg", "jpeg", "png", "tiff")  # and these are the files it sees, written like that
STEPS = 2000  # under five minutes on a CPU


@dataclass(frozen=True)
class Args(RunFlags):
    data: str = "creatures"
    """A folder of images, or a data set by name: creatures, flowers102, oxford_flowers, butterflies, cifar10, ..., hub:owner/name."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    n: int | None = None
    """Of a set by name, only the first n images; by default 1,000 of a drawn set, and all of any other."""
    size: int = 16
    """Pixels a side."""
    flip: bool = True
    """Mirror images at random."""

    dim: int = 16
    """Width of the network at full resolution, a multiple of 8."""
    mults: tuple[int, ...] = (1, 2, 4)
    """Its width at each resolution, in units of --dim."""
    objective: Literal["pred_v", "pred_noise", "pred_x0"] = "pred_v"
    """What the network says."""
    schedule: Literal["sigmoid", "cosine", "linear"] = "sigmoid"
    """Of the noise."""

    steps: int | None = None
    """Optimizer steps; by default 2,000."""
    batch_size: int = 16
    """Images per batch."""
    gradient_accumulation: int = 1
    """Batches per optimizer step; batch x accumulate must be 16 at least."""
    lr: float = 1e-3
    """Learning rate of Adam; the package's own default, 8e-5, is for weeks."""
    ema: float = 0.9
    """Decay of the average that draws. The package updates it at every tenth step: its own 0.995 reaches back 2,000 steps, 0.9 a hundred."""
    amp: Literal["auto", "yes", "no"] = "auto"
    """Half precision: auto is yes on a GPU. On a CPU it is slower than none."""

    sample_steps: int = 25
    """DDIM steps of a sample; 1000 is DDPM."""
    samples: int = 16
    """Pictures in each sample, a square number."""
    save_every: int = 500
    """Steps between milestones."""
    by_hand_only: bool = False
    """Show the step, and train nothing."""
    device: Literal["auto", "cpu"] = "auto"
    """auto is a GPU where there is one: the Trainer chooses by itself."""


def check(args: Args) -> None:
    """What the package would refuse later, with its reason."""
    if args.batch_size * args.gradient_accumulation < LEAST_BATCH:
        raise UserError(
            f"--batch-size {args.batch_size} x --gradient-accumulation {args.gradient_accumulation} = {args.batch_size * args.gradient_accumulation}, but the package's Trainer wants "
            f"at least {LEAST_BATCH} images per step; give --gradient-accumulation {-(-LEAST_BATCH // args.batch_size)}"
        )
    if round(args.samples**0.5) ** 2 != args.samples:
        raise UserError(f"--samples must be a square number such as 4, 9, 16, not {args.samples}: the package lays them out in a square")
    if args.size % 2 ** (len(args.mults) - 1):
        raise UserError(f"--size must be a multiple of {2 ** (len(args.mults) - 1)} for --mults {' '.join(map(str, args.mults))}, not {args.size}: every "
                        "resolution is half of the one before")  # fmt: skip
    if args.dim % 8:
        raise UserError(f"--dim must be a multiple of 8, not {args.dim}")


def settled(args: Args) -> Args:
    """Every setting chosen, so that --resume needs nothing but the folder."""
    from common.data.registry import DRAWN

    args = replace(args, out=args.out or free_folder(OUT / f"package-{Path(args.data.replace(':', '-')).name}"))
    return with_folder(replace(args, steps=args.steps or STEPS, n=args.n or (1000 if args.data in DRAWN else None)), OUT.name)


def main(args: Args) -> None:
    check(args)
    args = resumed(args) if args.resume else settled(args)
    pick_device(args.device)
    if args.device == "cpu":
        import os

        os.environ["ACCELERATE_USE_CPU"] = "1"  # the Trainer has no flag for it
    from finetune_diffusers.training.ddpm_package_trainer import (  # brings torch along, which --help should not wait for
        by_hand,
        fit,
        make_diffusion,
        open_folder,
    )

    folder = open_folder(args)
    diffusion = make_diffusion(args)
    if not args.resume:
        by_hand(diffusion, folder, args)
    if not args.by_hand_only:
        fit(diffusion, folder, args)


if __name__ == "__main__":
    run(main, Args)
