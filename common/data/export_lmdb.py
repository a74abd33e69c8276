"""Write a data set into one LMDB file, which loads at once where drawing or decoding takes minutes.

python -m common.data.export_lmdb creatures creatures.lmdb --size 32
python -m common.data.export_lmdb path/to/photographs photographs.lmdb --size 64
python 01_ddpm_mnist/train.py --data photographs.lmdb
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from common.cli import run
from common.errors import UserError


@dataclass(frozen=True)
class Args:
    data: Positional[str]
    """A data set by name, or a folder of images."""
    out: Positional[Path]
    """Where the file goes; its name ends in .lmdb."""
    size: int | None = None
    """Pixels a side; by default the data's own."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""


def main(args: Args) -> None:
    if args.out.suffix != ".lmdb":
        raise UserError(
            f"the name {args.out} must end in .lmdb, by which --data recognizes such a file; write {args.out.parent / (args.out.stem or 'data')}.lmdb"
        )

    from common.data.registry import load, splits_of
    from common.data.sources.lmdb_dataset import write_lmdb

    splits = {split: load(args.data, args.size, args.data_dir, split) for split in splits_of(args.data)}
    write_lmdb(args.out, splits)
    train = splits["train"]
    counts = " + ".join(f"{len(images)} {split}" for split, images in splits.items())
    languages = ", ".join(train.texts.by) if train.texts else ""
    print(
        f"{args.out}: {counts} images of {train.size} x {train.size} pixels, captions: {languages or 'none'}, {args.out.stat().st_size:,} bytes"
    )


if __name__ == "__main__":
    run(main, Args)
