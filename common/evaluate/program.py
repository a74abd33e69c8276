"""Measure how close generated images are to real ones.

  python -m common.evaluate runs/01_ddpm_mnist/mnist --data mnist --n 500      a model: it is sampled first
  python -m common.evaluate my_samples/ --data mnist                           a folder of PNGs
  python -m common.evaluate my_samples.npy --data mnist                        uint8, or floats in [-1, 1]

It prints the Frechet and the kernel distance between samples and real images, each beside its floor: the distance of
as many real images. (A model that copied its training images would reach the floor, too: look at the images as well.)
The features are those of our own small classifier of digits, so no number here is comparable with an FID.
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Args:
    samples: Positional[Path]
    """A folder of PNGs, a .npy array (N, H, W, C) or (N, C, H, W), or a model folder."""
    data: str = "auto"
    """Data set of the real images: auto, mnist, mnist-10k, fashion_mnist, cifar10, flowers102, or a folder of images.
    MNIST needs no local copy: a part of it is embedded, with the features of its test images.
    """
    data_dir: Path = Path("data")
    """Folder of local copies and of downloads."""
    n: int | None = None
    """Number of samples; by default all there are, or 500 from a model. Distances compare at equal numbers only."""
    sampler: str = "dpmpp_2m:20"
    """Sampler of a model: dpmpp_2m:20, ddim:50, ddpm:1000, heun:18, ..."""
    seed: int = 0
    """Random seed; the same seed gives the same numbers."""
    json: Path | None = None
    """File for the numbers, in addition."""
    table: Path | None = None
    """CSV file that gets a row of the numbers; a row with the same samples, data, n, sampler and seed is replaced."""
    device: str = "auto"
    """Device on which a model is sampled: auto, cpu, cuda, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or the number of free cores."""


def main(args: Args) -> None:
    from common.evaluate.report import print_report

    files = args.json, args.table
    print_report(args.samples, args.data, args.data_dir, args.n, args.sampler, args.seed, args.device, *files)
