"""load(name): the named sets, `auto`, or any folder of images."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.data import captioned, classics, lmdb_file
from common.data.creatures import SPLITS, caption, load_creatures
from common.data.dishes import dishes
from common.data.images import Images
from common.data.texts import Texts, check_language
from common.errors import UserError


def _creatures(data_dir: Path, split: str, size: int, n: int | None = None) -> Images:
    """Drawn, with their captions in both languages. They need no data_dir."""
    images = load_creatures(split, n, size, language="en")
    chinese = tuple(caption(0, split, i, "zh") for i in range(len(images)))
    return replace(images, texts=Texts("creatures", {"en": images.captions, "zh": chinese}, default="both"))


LOADERS: dict[str, Callable[..., Images]] = {
    "digits": classics.digits,
    "mnist": classics.mnist,
    "fashion_mnist": classics.fashion_mnist,
    "cifar10": classics.cifar10,
    "flowers102": classics.flowers102,
    "creatures": _creatures,
    "dishes": dishes,
    **{name: partial(captioned.load_named, name) for name in captioned.HUB_SETS},
}
NAMES = tuple(LOADERS)
DRAWN = ("creatures", "dishes")  # as many as one likes, and a split of combinations never trained on
NATIVE_SIZE = {"digits": 8, "mnist": 28, "fashion_mnist": 28, "cifar10": 32}  # the rest comes at any size
DEFAULT_SIZE = {"creatures": 32}  # of those; 64 where nothing is said


def load(
    name: str,
    size: int | None = None,
    data_dir: Path = Path("data"),
    split: str = "train",
    language: str | None = None,
    n: int | None = None,
) -> Images:
    """A data set by name, or a path to a folder of images or an .lmdb, or hub:owner/name.

    size      pixels a side; None keeps the set's own size (64 for photographs, 32 for creatures)
    data_dir  where local copies are looked for, and where downloads go
    split     "train" or "test" (creatures and dishes also "heldout"); a folder has no test split of its own, every tenth image serves
    language  of the captions: "en", "zh" or "both", half and half; a set that lacks them is refused.
              None takes the captions there are, if any
    n         only the first n images; creatures and dishes are drawn as many as that
    """
    check_language(language)
    if not name.strip():
        raise UserError(f"--data is empty; give one of {', '.join(NAMES)}, or a folder of images")
    return _load(name, size, Path(data_dir), split, n).first(n).in_language(language)


def _load(name: str, size: int | None, data_dir: Path, split: str, n: int | None) -> Images:
    """The whole set. Only what is drawn heeds n: there is no end of them."""
    photo_size = DEFAULT_SIZE.get(name, 64) if size is None else size
    if name in LOADERS:
        more = ({} if name in NATIVE_SIZE else {"size": photo_size}) | ({"n": n} if name in DRAWN else {})
        return LOADERS[name](data_dir, split, **more).resized(size)
    if name.startswith(captioned.PREFIX):
        return captioned.load_hub(name, split, photo_size)
    if Path(name).suffix == ".lmdb":
        return lmdb_file.read_lmdb(Path(name), split).resized(size)
    if Path(name).is_dir():
        return captioned.load_copy(Path(name), Path(name).name, split, photo_size)
    if Path(name).exists():
        raise UserError(f"{name} is a file; --data takes a folder of images, an .lmdb, or one of {', '.join(NAMES)}")
    raise UserError(f"unknown data '{name}': it is neither one of auto, {', '.join(NAMES)} nor an existing folder, .lmdb or hub:owner/name")


def is_place(name: str) -> bool:
    """Whether load() takes it for a file or a folder: it is no name of a set, and no id of the hub."""
    return name not in (*NAMES, "auto") and not name.startswith(captioned.PREFIX)


def splits_of(name: str) -> tuple[str, ...]:
    """The splits that a data set has."""
    return SPLITS if name in DRAWN else ("train", "test")


def auto(data_dir: Path) -> tuple[str, str]:
    """MNIST where it can be had, else the embedded digits. Returns (name, a sentence that says why)."""
    where = classics.find_mnist(data_dir, "MNIST", "train")
    if where:
        return "mnist", f"data: MNIST from {where}"
    try:
        classics.mnist(data_dir, "train")
        return "mnist", f"data: MNIST, downloaded to {data_dir}"
    except UserError:
        return "digits", f"data: the embedded 8x8 digits (no MNIST in {data_dir}, and none could be downloaded)"
