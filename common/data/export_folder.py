"""Write a data set as a folder of PNG files with a metadata.jsonl, as other programs want it.

  python -m common.data.export_folder creatures runs/creatures --size 64 --n 500

Pictures, labels and captions come back the same from load("runs/creatures", 64).
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from common.cli import run


@dataclass(frozen=True)
class Args:
    data: Positional[str]
    """A data set by name, a folder of images, or an .lmdb."""
    folder: Positional[Path]
    """A new folder."""
    size: int | None = None
    """Pixels a side; by default the data's own."""
    n: int | None = None
    """Number of images, the first ones; by default all."""
    split: str = "train"
    """Split of the set: train, test (creatures and dishes also heldout)."""
    data_dir: Path = Path("data")
    """Folder of local copies and of downloads."""


def main(args: Args) -> None:
    from common.data.image_export import export_named

    export_named(args.data, args.folder, args.size, args.n, args.split, args.data_dir)


if __name__ == "__main__":
    run(main, Args)
