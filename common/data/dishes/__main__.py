"""Draw a sheet of dishes, to look at the data before training on them.

  python -m common.data.dishes --n 64 --size 96 --out sheet.png
  python -m common.data.dishes --split heldout --captions --language zh --name-only
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import run


@dataclass(frozen=True)
class Args:
    n: int = 64
    """How many dishes."""
    size: int = 96
    """Pixels a side of each, 16 to 256."""
    out: Path = Path("runs/dishes.png")
    """Where the sheet goes."""
    seed: int = 0
    """Another seed, other dishes."""
    split: Literal["train", "test", "heldout"] = "train"
    """heldout: dishes on tables where the other two never have them."""
    columns: int | None = None
    """Dishes in a row; by default the sheet is about square."""
    captions: bool = False
    """Also print what each dish is said to be."""
    language: Literal["en", "zh", "both"] = "both"
    """Of the captions."""
    name_only: bool = False
    """Captions are the name of the dish and nothing else."""


def main(args: Args) -> None:

    from common.data.dishes.dataset import load_dishes
    from common.io.pixels import to_float
    from common.viz import grid, save_picture

    data = load_dishes(args.split, args.n, args.size, args.seed, args.language, args.name_only)
    path = save_picture(grid(to_float(data.pixels), args.columns), args.out)
    if args.captions:
        for i, text in enumerate(data.captions):
            print(f"{i + 1:4}  {text}")
    print(f"{path}: {args.n} dishes of {args.size} x {args.size} pixels")


if __name__ == "__main__":
    run(main, Args)
