"""How long a learner waits: 64 images with chapter 1's default sampler, and --help.

python -m bench.sampling_time
python -m bench.sampling_time --model runs/01_ddpm_mnist/mnist
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run


@dataclass(frozen=True)
class Args:
    model: Path | None = None
    """A model folder; by default that of sample.py."""
    n: int = 64
    """Number of images."""
    rounds: int = 3
    """Runs of each command; the median counts."""
    json: Path | None = None
    """JSON file for the figures."""


def main(args: Args) -> None:
    from bench.measurements.waiting_time import measure_waiting

    measure_waiting(args.model, args.n, args.rounds, args.json)


if __name__ == "__main__":
    run(main, Args)
