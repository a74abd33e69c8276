"""Draw a sheet of creatures, to look at the data before training on them.

python -m common.data.creatures --n 100 --size 64 --out sheet.png
python -m common.data.creatures --split heldout --captions --language zh
"""

from dataclasses import dataclass
from pathlib import Path

from common.data.sheet import SheetArgs


@dataclass(frozen=True)
class Args(SheetArgs):
    out: Path = Path("runs/creatures.png")
    """Output file."""


def main(args: Args) -> None:
    from common.data.creatures.dataset import CREATURE_IMAGES

    CREATURE_IMAGES.save_sheet(args)
