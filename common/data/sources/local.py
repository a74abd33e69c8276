"""Loads a folder or a file of data by its content:
pictures, parquet or arrow files, arrays, tables of pixels, MNIST's own files.
"""

import os
from collections.abc import Callable
from pathlib import Path

from common.data.captions import Texts
from common.data.dataset import Images
from common.data.sources import arrays, rows, torchvision_datasets
from common.data.sources.image_folder import load_folder, no_pictures
from common.data.sources.listing import Listing, list_folder, suffix_of
from common.errors import UserError

FILES = (".npz", ".csv", ".parquet")  # kinds that --data takes as single files


def load_local(
    path: Path,
    name: str,
    split: str,
    size: int | None,
    photo_size: int,
    channels: int | None = None,
    check: Callable[[Texts], object] = lambda texts: None,
) -> Images:
    """The set in a folder or a file.

    size        pixels a side of sets that have a size of their own, such as MNIST's; None keeps it
    photo_size  pixels a side of photographs
    check       refuses the captions of a folder of images, before any is decoded
    """
    if path.is_file():
        return load_file(path, split, size, photo_size, channels)
    listing = list_folder(path)
    files, pictures = listing.files, listing.pictures
    if "dataset_dict.json" in files or {"dataset_info.json", "state.json"} <= set(files):
        return rows.load_saved(listing, name, split, photo_size, channels)
    parquet = tuple(
        file for file in listing.with_suffix(".parquet") if os.path.basename(file).lower() != "metadata.parquet"
    )
    if parquet and (not pictures or images_inside(listing, parquet) >= len(pictures)):
        return rows.load_parquet(listing, parquet, name, split, photo_size, channels)
    if pictures:
        return load_folder(path, photo_size, split, channels, listing, check)
    if npz := listing.with_suffix(".npz"):
        return arrays.load_arrays(listing, npz[0], name, split, size, channels)
    if idx := [file for file in files if torchvision_datasets.IDX_NAME.fullmatch(os.path.basename(file))]:
        return torchvision_datasets.load_idx(name, listing, idx, split).resized(size)
    if tables := [file for file in listing.with_suffix(".csv") if arrays.is_pixel_table(path / file)]:
        return arrays.load_arrays(listing, tables[0], name, split, size, channels)
    raise UserError(no_pictures(listing))


def load_file(path: Path, split: str, size: int | None, photo_size: int, channels: int | None) -> Images:
    listing = Listing(path.parent, (path.name,))
    if suffix_of(path.name) == ".parquet":
        return rows.load_parquet(listing, listing.files, path.stem, split, photo_size, channels)
    if suffix_of(path.name) == ".csv" and not arrays.is_pixel_table(path):
        raise UserError(
            f"{path} is no table of pixels (a label and the values of a square image in each row); if it names pictures, give the folder that it lies in"
        )
    return arrays.load_arrays(listing, path.name, path.stem, split, size, channels)


def images_inside(listing: Listing, parquet: tuple[str, ...]) -> int:
    """How many rows the parquet files have that hold images themselves, and do not only name files."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    total = 0
    for file in parquet:
        try:
            with ParquetFile(listing.folder / file) as opened:
                kinds = [
                    field.type for field in opened.schema_arrow if field.name.strip().lower() in rows.IMAGE_COLUMNS
                ]
                total += opened.metadata.num_rows * any(not pyarrow.types.is_string(kind) for kind in kinds)
        except (OSError, pyarrow.ArrowException):  # a damaged one is not read for its pictures
            continue
    return total
