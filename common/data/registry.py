"""load(name): the named sets, `auto`, or any folder of images."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common.data.captions import Texts, check_language
from common.data.creatures.dataset import CREATURE_IMAGES
from common.data.dataset import Images
from common.data.dishes.dataset import DISH_IMAGES
from common.data.drawn import SPLITS, DrawnDataset
from common.data.sources import hub_datasets, lmdb_dataset, local, torchvision_datasets
from common.errors import UserError


def _draw(dataset: DrawnDataset, data_dir: Path, split: str, size: int, n: int | None = None) -> Images:
    """A drawn set, which needs no data_dir."""
    return dataset.load_bilingual(split, n, size)


LOADERS: dict[str, Callable[..., Images]] = {
    "digits": torchvision_datasets.digits,
    "mnist-10k": torchvision_datasets.mnist_10k,
    "mnist": torchvision_datasets.mnist,
    "fashion_mnist": torchvision_datasets.fashion_mnist,
    "cifar10": torchvision_datasets.cifar10,
    "flowers102": torchvision_datasets.flowers102,
    "creatures": partial(_draw, CREATURE_IMAGES),
    "dishes": partial(_draw, DISH_IMAGES),
    **{name: partial(hub_datasets.load_named, name) for name in hub_datasets.HUB_SETS},
}
NAMES = tuple(LOADERS)
DRAWN = ("creatures", "dishes")  # as many as one likes, and a split of combinations never trained on
# the rest comes at any size
NATIVE_SIZE = {"digits": 8, "mnist-10k": 28, "mnist": 28, "fashion_mnist": 28, "cifar10": 32}
DEFAULT_SIZE = {"creatures": 32}  # of those; 64 where nothing is said


def load(
    name: str,
    size: int | None = None,
    data_dir: Path = Path("data"),
    split: str = "train",
    language: str | None = None,
    n: int | None = None,
    channels: int | None = None,
    captions: bool = False,
) -> Images:
    """A data set by name; or a path to a folder of images, parquet files or arrays, to an .lmdb, .npz, .parquet or
    .csv of pixels; or hub:owner/name.

    size      pixels a side; None keeps the set's own size (64 for photographs, 32 for creatures)
    data_dir  where local copies are looked for, and where downloads go
    split     "train" or "test" (creatures and dishes also "heldout"); where a folder has no test split of its own,
              every tenth image serves
    language  of the captions: "en", "zh" or "both", half and half; a set that lacks them is refused.
              None takes the captions there are, if any
    n         only the first n images; creatures and dishes are drawn as many as that
    channels  3 in colour, 1 grey; None is the set's own: 1 where all of its pictures are grey
    captions  whether captions are needed: a folder without any is refused before its images are decoded

    One line on standard error says how many images were read from files, and what was left out and why.
    """
    check_language(language)
    if not name.strip():
        raise UserError(f"--data is empty; give one of {', '.join(NAMES)}, or a folder of images")
    needed = captions or language is not None
    check = (lambda texts: texts.languages(language)) if needed else (lambda texts: None)
    images = _load(name, size, Path(data_dir), split, n, channels, check).first(n)
    return (images if channels is None else images.in_channels(channels)).in_language(language)


def _load(
    name: str,
    size: int | None,
    data_dir: Path,
    split: str,
    n: int | None,
    channels: int | None,
    check: Callable[[Texts], object],
) -> Images:
    """The whole set. Only what is drawn heeds n: there is no end of them."""
    if (name in LOADERS or name.startswith(hub_datasets.PREFIX)) and split not in splits_of(name):
        raise UserError(f"{name} has no split '{split}'; choose one of {', '.join(splits_of(name))}")
    photo_size = DEFAULT_SIZE.get(name, 64) if size is None else size
    if name in LOADERS:
        more = ({} if name in NATIVE_SIZE else {"size": photo_size}) | ({"n": n} if name in DRAWN else {})
        return LOADERS[name](data_dir, split, **more).resized(size)
    if name.startswith(hub_datasets.PREFIX):
        return hub_datasets.load_hub(name, split, photo_size, channels)
    path = Path(name)
    if path.suffix == ".lmdb":
        return lmdb_dataset.read_lmdb(path, split).resized(size)
    if os.path.isdir(path) or (os.path.isfile(path) and path.suffix.lower() in local.FILES):
        return local.load_local(path, path.name, split, size, photo_size, channels, check)
    if os.path.exists(path):
        raise UserError(
            f"{name} is a file; --data takes a folder of images, an .lmdb, {', '.join(local.FILES)}, or one of {', '.join(NAMES)}"
        )
    raise UserError(
        f"unknown data '{name}': it is neither one of auto, {', '.join(NAMES)} nor an existing folder, .lmdb or hub:owner/name"
    )


def is_place(name: str) -> bool:
    """Whether load() takes it for a file or a folder: it is no name of a set, and no id of the hub."""
    return name not in (*NAMES, "auto") and not name.startswith(hub_datasets.PREFIX)


def splits_of(name: str) -> tuple[str, ...]:
    """The splits that a data set has."""
    return SPLITS if name in DRAWN else ("train", "test")


def auto(data_dir: Path) -> tuple[str, str]:
    """MNIST from a local copy or a download, else the embedded part of it. Returns (name, a sentence that says why)."""
    where = torchvision_datasets.find_mnist(data_dir, "MNIST", "train")
    if where:
        return "mnist", f"data: MNIST from {where}"
    try:
        torchvision_datasets.mnist(data_dir, "train")
        return "mnist", f"data: MNIST, downloaded to {data_dir}"
    except UserError:
        return (
            "mnist-10k",
            f"data: the embedded 10,000 digits of MNIST (no MNIST in {data_dir}, and no download possible)",
        )
