"""What the trainings of this chapter reached and cost, side by side: measures before and after; weights, memory, time,
and the size of what they leave behind.

  python 05_finetune_diffusers/studies/runs.py                                    every run in runs/05_finetune_diffusers
  python 05_finetune_diffusers/studies/runs.py RUN RUN                            these
  python 05_finetune_diffusers/studies/runs.py --out 05_finetune_diffusers/results    also as measures.csv and costs.csv

Each training leaves results.json in its run folder; this reads them and trains nothing.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from common.cli import run


@dataclass(frozen=True)
class Args:
    runs: Positional[tuple[Path, ...]] = ()
    """Run folders; by default all in runs/05_finetune_diffusers."""
    out: Path | None = None
    """Folder of measures.csv and costs.csv; by default nothing is written."""


def main(args: Args) -> None:
    from finetune_diffusers.evaluation.run_tables import tabulate

    tabulate(args.runs, args.out)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # where the package is
    run(main, Args)
