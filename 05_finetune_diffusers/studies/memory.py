"""What the trainings of this chapter cost, side by side:
weights, memory, time, and the size of what they leave behind.

  python 05_finetune_diffusers/studies/memory.py                                    every run in runs/05_finetune_diffusers
  python 05_finetune_diffusers/studies/memory.py RUN RUN                            these

Each training leaves results.json in its run folder; this reads them and trains nothing.
The table is written in Markdown.
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


def main(args: Args) -> None:
    from finetune_diffusers.evaluation.cost_table import print_costs

    print_costs(args.runs)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # where the package is
    run(main, Args)
