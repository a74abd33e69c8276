"""Draw a sheet of creatures, to look at the data before training on them.

  python -m common.data.creatures --n 100 --size 64 --out sheet.png
  python -m common.data.creatures --split heldout --captions --language zh
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run
from common.data.sheet import SheetArgs, draw_sheet


@dataclass(frozen=True)
class Args(SheetArgs):
    out: Path = Path("runs/creatures.png")
    """Output file."""


def main(args: Args) -> None:
    from common.data.creatures.dataset import CREATURE_IMAGES

    draw_sheet(CREATURE_IMAGES, args)


if __name__ == "__main__":
    run(main, Args)
