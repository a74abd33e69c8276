"""Time of a sampling step outside the network: our DDIM, diffusers' DDIMScheduler, and a plain loop.

  python -m bench.sampler_overhead

The network returns its input. diffusers is measured twice: as its pipelines call it (x0 is clipped, eps is not
changed), and so that it does the same work as ours, with eps computed from the clipped x0; that these two agree is
checked. The clock is the processor time of this process on one thread, so other programs on the machine do not count.
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run


@dataclass(frozen=True)
class Args:
    steps: int = 50
    """Steps of the sampler."""
    batches: tuple[int, ...] = (1, 16)
    """Batch sizes to compare."""
    size: int = 28
    """Pixels a side; one channel."""
    rounds: int = 200
    """Turns of each candidate; the median counts."""
    json: Path | None = None
    """JSON file for the figures."""


def main(args: Args) -> None:
    from bench.measurements.ddim_loops import measure_overhead

    measure_overhead(args.batches, args.size, args.steps, args.rounds, args.json)


if __name__ == "__main__":
    run(main, Args)
