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

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from common.cli import run
from common.errors import UserError
from common.training.settings import resumed
from finetune_diffusers.training.flags import DRAWN, BaseFlags, data_name, with_run_folder

LEAST_BATCH = 16  # images per step, below which the package's Trainer refuses to work


@dataclass(frozen=True)
class Args(BaseFlags):
    data: str = "creatures"
    """Folder of images, or a data set by name:
    creatures, flowers102, oxford_flowers, butterflies, cifar10, ..., hub:owner/name.
    """
    data_dir: Path = Path("data")
    """Folder of local copies and downloads."""
    n: int | None = None
    """Only the first n images of a data set; by default 1,000 of a drawn set, and all of any other."""
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

    gradient_accumulation: int = 1
    """Batches per optimizer step; batch size x accumulation must be 16 at least."""
    lr: float = 1e-3
    """Learning rate of Adam; the package's own default, 8e-5, is for weeks."""
    ema: float = 0.9
    """Decay of the averaged weights that draw.
    The package updates them at every tenth step: its own 0.995 averages 2,000 steps, 0.9 a hundred.
    """
    amp: Literal["auto", "yes", "no"] = "auto"
    """Half precision: auto is yes on a GPU. On a CPU it is slower than none."""

    sample_steps: int = 25
    """DDIM steps of a sample; 1000 is DDPM."""
    samples: int = 16
    """Pictures in each sample, a square number."""
    resume: Path | None = None
    """Run folder to continue from its newest milestone.
    Its settings apply; --steps and the place of the data can be given anew.
    """
    save_every: int = 500
    """Steps between milestones."""
    by_hand_only: bool = False
    """Show the step, and train nothing."""
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
    if args.resume:
        args = resumed(args)
    else:
        n = args.n or (1000 if args.data in DRAWN else None)
        # under five minutes on a CPU
        args = with_run_folder(replace(args, steps=args.steps or 2000, n=n), f"package-{data_name(args.data)}")
    from finetune_diffusers.training.ddpm_package_trainer import ImageFolder, PackageNetwork, train_with_package

    source = ImageFolder(args.data, args.data_dir, args.size, args.n)
    network = PackageNetwork(args.size, args.dim, args.mults, args.objective, args.schedule, args.sample_steps)
    train_with_package(args, source, network, args.flip, args.amp, args.samples, args.by_hand_only)


if __name__ == "__main__":
    run(main, Args)
