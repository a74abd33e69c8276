"""The flags of the programs that draw a sheet of creatures or dishes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


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
