"""Draw a sheet of creatures, to look at the data before training on them.

  python -m common.data.creatures --n 100 --size 64 --out sheet.png
  python -m common.data.creatures --split heldout --captions --language zh
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import run


@dataclass(frozen=True)
class Args:
    n: int = 100
    """How many creatures."""
    size: int = 64
    """Pixels a side of each, 16 to 256."""
    out: Path = Path("runs/creatures.png")
    """Where the sheet goes."""
    seed: int = 0
    """Another seed, other creatures."""
    split: Literal["train", "test", "heldout"] = "train"
    """heldout: combinations of attributes that the other two never hold."""
    columns: int | None = None
    """Creatures in a row; by default the sheet is about square."""
    captions: bool = False
    """Also print what each creature is said to be."""
    language: Literal["en", "zh", "both"] = "both"
    """Of the captions."""


def main(args: Args) -> None:

    from common.data.creatures.dataset import load_creatures
    from common.io.pixels import to_float
    from common.viz import grid, save_picture

    data = load_creatures(args.split, args.n, args.size, args.seed, args.language)
    path = save_picture(grid(to_float(data.pixels), args.columns), args.out)
    if args.captions:
        for i, text in enumerate(data.captions):
            print(f"{i + 1:4}  {text}")
    print(f"{path}: {args.n} creatures of {args.size} x {args.size} pixels")


if __name__ == "__main__":
    run(main, Args)
