"""DDIM inversion: find the noise that a real image would be sampled from, sample from it,
and measure the error of the result.

  python 03_ddim_schedules/invert.py
  python 03_ddim_schedules/invert.py --images 0 1 2 class:7 photo.png --steps 10 50 250 1000

Writes a picture (first row: the images; then, for each number of steps, the noise and the reconstruction) and a plot
of the error against the number of steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from common.cli import run
from common.io.ranges import SAMPLER_STEPS

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Args:
    images: tuple[str, ...] = ("0", "1", "2", "3", "4", "5", "6", "7")
    """Indices of test images, class:3 for the first one of a class, or files."""
    steps: Annotated[tuple[int, ...], SAMPLER_STEPS] = (5, 10, 20, 50, 100, 200)
    """Numbers of steps to compare."""
    model: Path = PRETRAINED
    """A run folder, or any diffusers folder with an unconditional U-Net. By default the shipped model of digits."""
    data: str = "digits"
    """Data set of indices and classes: digits, mnist, ... or a folder of images; what the model was trained on."""
    data_dir: Path = Path("data")
    """Folder of local copies of data, and of downloads."""
    out: Path = Path("runs/03_ddim_schedules/invert")
    """Folder of the pictures."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    from ddim_schedules.inversion import measure_inversion

    measure_inversion(
        args.model, args.images, args.steps, args.out, data=args.data, data_dir=args.data_dir, device=args.device
    )


if __name__ == "__main__":
    run(main, Args)
