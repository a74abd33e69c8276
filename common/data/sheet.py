"""A sheet of drawn pictures, to look at the data before training on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.data.drawn import DrawnDataset
from common.io.pixels import to_float
from common.viz import grid, save_picture


@dataclass(frozen=True)
class SheetArgs:
    n: int = 100
    """Number of pictures."""
    size: int = 64
    """Pixels a side of each picture, 16 to 256."""
    out: Path = Path("runs/sheet.png")
    """Output file."""
    seed: int = 0
    """Seed of the set; another seed gives other pictures."""
    split: Literal["train", "test", "heldout"] = "train"
    """Split of the set; heldout has combinations of attributes that the other two never hold."""
    columns: int | None = None
    """Pictures in a row; by default the sheet is about square."""
    captions: bool = False
    """Print the caption of each picture, too."""
    language: Literal["en", "zh", "both"] = "both"
    """Language of the captions."""


def draw_sheet(dataset: DrawnDataset, args: SheetArgs, mention: Sequence[str] | None = None) -> None:
    """Write the sheet; print the captions, if asked for, and where the sheet is."""
    data = dataset.load(args.split, args.n, args.size, args.seed, args.language, mention)
    path = save_picture(grid(to_float(data.pixels), args.columns), args.out)
    if args.captions:
        for i, text in enumerate(data.need_captions()):
            print(f"{i + 1:4}  {text}")
    print(f"{path}: {args.n} {dataset.name} of {args.size} x {args.size} pixels")
