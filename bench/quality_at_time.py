"""Quality at equal wall-clock time: chapter 1's train.py against denoising_diffusion_pytorch,
measured by one evaluator.

  python -m bench.quality_at_time --data-dir path/to/data --minutes 5
  python -m bench.quality_at_time --data-dir path/to/data --minutes 5 10 20

Both train on the same images for the same minutes on the same cores, one after the other, and 500 samples of each are
compared with the test images by common/evaluate/evaluator.py. Ours is the command a learner types, with all defaults.
Theirs is the model and loss of its README, GaussianDiffusion(Unet(dim=32)), trained as its Trainer does. Wherever
there is a choice it gets the better one by the Frechet distance: of two learning rates (1e-4 is its default), and of
averaged and raw weights.

- Its U-Net halves the resolution three times, so it sees the images padded from 28 to 32 pixels; its samples are
  cropped again.
- Its Trainer has no limit in minutes, so its loop is written out in measurements/ddp_package.py, without its overhead:
  the images
  are in memory, nothing is logged or saved, and only training counts, neither imports nor sampling. Digits are not
  mirrored.
- It trains in the precision that train.py picks (bf16 where the processor computes it natively, as Trainer(amp=True)
  can).
- Its learning rate is constant, so one run, whose weights are kept at 5, 10 and 20 minutes, serves all budgets. The
  learning rate
  of ours follows the budget, so ours is trained anew for each.

Samples are kept in the --out folder, and an interrupted run of this program continues with what is missing.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import run


@dataclass(frozen=True)
class Args:
    minutes: tuple[float, ...] = (5.0,)
    """Budgets of training."""
    data: str = "mnist"
    """mnist or fashion_mnist."""
    data_dir: Path = Path("data")
    """Folder of local copies of data, and of downloads."""
    n: int = 500
    """Samples of each network."""
    lrs: tuple[float, ...] = (1e-4, 1e-3)
    """Learning rates for denoising_diffusion_pytorch."""
    weights: tuple[Literal["averaged", "raw"], ...] = ("averaged", "raw")
    """Weights of denoising_diffusion_pytorch to sample from, which takes longer than training them."""
    sampling_steps: int = 50
    """Steps of its own DDIM sampler. Ours uses its default, dpmpp_2m:20."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """Precision of both trainings; auto is what train.py picks."""
    only: Literal["ours", "theirs", "both"] = "both"
    """Networks to train and measure."""
    seed: int = 0
    """Random seed of training, sampling and evaluation."""
    out: Path = Path("runs/bench/quality_at_time")
    """Folder of samples and grids."""
    json: Path | None = None
    """JSON file for the figures."""


def main(args: Args) -> None:
    # before tqdm is loaded: the package draws a progress bar for every batch
    os.environ.setdefault("TQDM_MININTERVAL", "10")
    from bench.measurements import budgets, quality

    trainings = budgets.Budgets(args.out, args.data, args.data_dir, args.minutes, args.n, args.precision, args.seed)
    quality.compare_quality(trainings, args.only, args.lrs, args.weights, args.sampling_steps, args.json)


if __name__ == "__main__":
    run(main, Args)
