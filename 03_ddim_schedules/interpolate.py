"""Interpolate between two real images through noise, and measure how evenly the image changes.

  python 03_ddim_schedules/interpolate.py                              all methods, two test images
  python 03_ddim_schedules/interpolate.py --a class:3 --b class:8 --method ddim_slerp
  python 03_ddim_schedules/interpolate.py --pairs 24 --method ddpm ddpm_shared ddim_slerp
  python 03_ddim_schedules/interpolate.py --a one.png --b other.png --strength 0.5 --method ddpm ddpm_shared

Writes a table of how evenly each method changes the image, a picture with one
row for each method, a GIF of the interpolations, and a plot of the change from
frame to frame.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from common.cli import run
from common.io.ranges import SAMPLER_STEPS, Range

PRETRAINED = Path(__file__).parent / "pretrained"
Method = Literal["ddpm", "ddpm_shared", "ddpm_slerp", "ddim_lerp", "ddim_slerp"]


@dataclass(frozen=True)
class Args:
    a: str = "0"
    """First image: its index in the test images, class:3 for the first one of a class, or a file."""
    b: str = "1"
    """Second image."""
    pairs: int = 1
    """Pairs of images to measure: a and b, then test images 2 and 3, 4 and 5, ..., each with noise of its own."""
    method: tuple[Method, ...] = ("ddpm", "ddpm_shared", "ddpm_slerp", "ddim_lerp", "ddim_slerp")
    """Interpolation methods; ddim_schedules/interpolation.py describes them."""
    frames: Annotated[int, Range(3, 1000, hint="two of them are the images themselves")] = 16
    """Images of an interpolation, both ends included."""
    strength: float = 0.6
    """Noise level of the ddpm methods, as a share of all steps: 1 is pure noise."""
    steps: Annotated[int, SAMPLER_STEPS] = 100
    """Steps of the sampler, from pure noise to the image."""
    model: Path = PRETRAINED
    """A run folder, or any diffusers folder with an unconditional U-Net. By default the shipped model of digits."""
    data: str = "digits"
    """Data set of indices and classes: digits, mnist, ... or a folder of images; what the model was trained on."""
    data_dir: Path = Path("data")
    """Folder of local copies of data, and of downloads."""
    seed: int = 0
    """Random seed of the noise."""
    out: Path = Path("runs/03_ddim_schedules/interpolate")
    """Folder of the table and pictures."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    from ddim_schedules.interpolation_study import compare_methods

    compare_methods(
        args.model,
        (args.a, args.b),
        args.method,
        args.out,
        frames=args.frames,
        steps=args.steps,
        strength=args.strength,
        seed=args.seed,
        pairs=args.pairs,
        data=args.data,
        data_dir=args.data_dir,
        device=args.device,
    )


if __name__ == "__main__":
    run(main, Args)
