"""A training step on a machine that is busy with other work, under several settings of OpenMP.

  python -m bench.busy
  python -m bench.busy --busy 0 1 2 --rounds 3

With two threads, each part of a step ends when the slower thread ends. While the other thread waits, it can spin
(OpenMP's default: it keeps its core, which the slower thread may need) or sleep (OMP_WAIT_POLICY=passive).
GOMP_SPINCOUNT says how long GNU's OpenMP spins before it sleeps. The course sets both (common/io/process.py), and
takes as many threads as there are free cores (common.cli). Each setting is measured in a process of its own, because
OpenMP reads the variables once; the settings take turns.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import free_threads, run, use_threads


@dataclass(frozen=True)
class Args:
    rounds: int = 3
    """Turns of each setting; the median counts."""
    busy: tuple[int, ...] = (0, 1, 2)
    """Numbers of other processes that compute without a pause."""
    network: Literal["mnist", "cifar10"] = "mnist"
    """Data set of chapter 1 whose network is trained:
    a small one (0.1 s a step), or one with ten times the arithmetic.
    """
    seconds_of_steps: bool = False
    """Only make some steps, print the median seconds of a step, and exit;
    this program runs itself so for each setting.
    """
    json: Path | None = None
    """JSON file for the figures."""


def main(args: Args) -> None:
    if args.seconds_of_steps:
        use_threads(free_threads())  # before torch is loaded
    from bench.measurements import busy_machine

    if args.seconds_of_steps:
        busy_machine.print_seconds_of_steps(args.network)
    else:
        busy_machine.compare_settings(args.busy, args.rounds, args.network, args.json)


if __name__ == "__main__":
    run(main, Args)
