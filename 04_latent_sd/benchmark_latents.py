"""Compares cached latents with encoding on the fly:
time of an epoch, memory and disk space, measured in one run.

  python 04_latent_sd/benchmark_latents.py
  python 04_latent_sd/benchmark_latents.py --vae runs/04_latent_sd/vae-creatures-dishes --n 2000 --workers 0 1 2
  python 04_latent_sd/benchmark_latents.py --device cuda --start spawn --workers 0 2 4

An epoch here reads the latents of every image once, in the order of training, and does nothing else: this is how long
an infinitely fast network would wait for them. Each way runs in a new process of its own. Memory is the highest sum
over this process and its workers, with shared pages counted once where the system reports that (Linux); Python and
torch are part of it. Seconds are those of one machine at one moment: compare the columns of ratios.
"""

from common.cli import run
from latent_sd.flags import BenchmarkFlags as Args


def main(args: Args) -> None:
    from latent_sd.latent_benchmark import run_benchmark

    run_benchmark(args)


if __name__ == "__main__":
    run(main, Args)
