"""Diffusion in the plane: a cloud of points is noised, and a tiny network learns to bring the points back.

  python 01_ddpm_mnist/toy_2d.py
  python 01_ddpm_mnist/toy_2d.py --shape swiss_roll --out runs/01_ddpm_mnist/roll.gif

Schedule, loss and samplers are those of the images, unchanged: a point (x, y) is a picture of two numbers.
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run


@dataclass(frozen=True)
class Args:
    shape: str = "dinosaur"
    """Shape of the data: dinosaur, swiss_roll, two_moons or letter."""
    steps: int = 3000
    """Training steps; 3000 take some fifteen seconds."""
    sampler: str = "ddpm:250"
    """Sampler and steps: ddpm:250, ddim:50, heun:18, ..."""
    n: int = 4000
    """Number of points to sample."""
    seed: int = 0
    """Random seed of data, network, training and sampling."""
    out: Path = Path("runs/01_ddpm_mnist/toy.png")
    """File of the result: a row of moments if it ends in .png, an animation if in .gif."""


def main(args: Args) -> None:
    from ddpm_mnist.toy import run_toy  # brings torch along, which --help should not wait for

    run_toy(args.shape, args.steps, args.sampler, args.n, args.seed, args.out)


if __name__ == "__main__":
    run(main, Args)
