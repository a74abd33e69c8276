"""Compares cached latents with encoding on the fly:
time of an epoch, memory and disk space, measured in one run (claim 12).

  python 04_latent_sd/benchmark_latents.py
  python 04_latent_sd/benchmark_latents.py --vae runs/04_latent_sd/vae-creatures-dishes --n 2000 --workers 0 1 2
  python 04_latent_sd/benchmark_latents.py --device cuda --start spawn --workers 0 2 4

An epoch here reads the latents of every image once, in the order of training, and does nothing else: this is how long
an infinitely fast network would wait for them. Each way runs in a new process of its own. Memory is the highest sum
over this process and its workers, with shared pages counted once where the system reports that (Linux); Python and
torch are part of it. Seconds are those of one machine at one moment: compare the columns of ratios.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from common.cli import run
from common.io.ranges import Range


@dataclass(frozen=True)
class Args:
    vae: Path | None = None
    """Run folder or model folder with an autoencoder;
    by default an untrained one, which is as slow as a trained one.
    """
    data: tuple[str, ...] = ("creatures", "dishes")
    """One data set or several."""
    data_dir: Path = Path("data")
    """Folder of local copies and of downloads."""
    n: int = 256
    """Number of images of each set: the first n."""
    size: int | None = None
    """Pixels a side; by default the autoencoder's own, 64 without one."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Widths of the untrained autoencoder."""
    batch_size: int = 32
    """Images a batch."""
    epochs: Annotated[int, Range(2, 1000, hint="the first is reported by itself")] = 3
    """Number of epochs. The first, in which worker processes start, is reported by itself;
    of the others, the median is.
    """
    workers: tuple[int, ...] = (0, 2)
    """Numbers of worker processes to compare; 0 encodes in the process itself."""
    start: Literal["auto", "fork", "spawn"] = "auto"
    """Start method of worker processes; auto is spawn if a GPU is used, and else the safe one of the platform."""
    json: Path | None = None
    """File for the figures, too."""
    seed: int = 0
    """Random seed of the untrained autoencoder and of the order of images."""
    device: str = "auto"
    """Device that encodes: auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    from latent_sd.latent_benchmark import BenchmarkConfig, run_benchmark

    run_benchmark(
        BenchmarkConfig(
            args.vae,
            args.data,
            args.data_dir,
            args.n,
            args.size,
            args.channels,
            args.batch_size,
            args.epochs,
            args.workers,
            args.start,
            args.seed,
            args.device,
        ),
        args.json,
    )


if __name__ == "__main__":
    run(main, Args)
