"""Draw a sheet of dishes, to look at the data before training on them.

python -m common.data.dishes --n 64 --size 96 --out sheet.png
python -m common.data.dishes --split heldout --captions --language zh --name-only
"""

from dataclasses import dataclass
from pathlib import Path

from common.data.sheet import SheetArgs


@dataclass(frozen=True)
class Args(SheetArgs):
    n: int = 64
    """Number of pictures."""
    size: int = 96
    """Pixels a side of each picture, 16 to 256."""
    out: Path = Path("runs/dishes.png")
    """Output file."""
    name_only: bool = False
    """Captions that are the name of the dish and nothing else."""


def main(args: Args) -> None:
    from common.data.dishes.dataset import DISH_IMAGES

    DISH_IMAGES.save_sheet(args, () if args.name_only else None)
