"""load(name): the named sets, `auto`, or any folder of images."""

from collections.abc import Callable
from pathlib import Path

from common.data import classics, folder
from common.data.creatures import creatures
from common.data.images import Images
from common.errors import UserError

LOADERS: dict[str, Callable[[Path, str], Images]] = {
    "digits": classics.digits,
    "mnist": classics.mnist,
    "fashion_mnist": classics.fashion_mnist,
    "cifar10": classics.cifar10,
    "flowers102": classics.flowers102,
    "creatures": creatures,
}
NAMES = tuple(LOADERS)
NATIVE_SIZE = {"digits": 8, "mnist": 28, "fashion_mnist": 28, "cifar10": 32}  # the rest comes at any size
DEFAULT_SIZE = {"creatures": 32}  # of those; 64 where nothing is said


def load(name: str, size: int | None = None, data_dir: Path = Path("data"), split: str = "train") -> Images:
    """A data set by name, or a path to a folder of images.

    size      pixels a side; None keeps the set's own size (64 for photographs, 32 for creatures)
    data_dir  where local copies are looked for, and where downloads go
    split     "train" or "test" (creatures also "heldout"); a folder has no test split of its own, every tenth image serves
    """
    photo_size = DEFAULT_SIZE.get(name, 64) if size is None else size
    if name in LOADERS:
        images = LOADERS[name](Path(data_dir), split, **({} if name in NATIVE_SIZE else {"size": photo_size}))
        return images.resized(size)
    if Path(name).is_dir():
        return folder.load_folder(Path(name), photo_size, split)
    if Path(name).exists():
        raise UserError(f"{name} is a file; --data takes a folder of images, or one of {', '.join(NAMES)}")
    raise UserError(f"unknown data '{name}': it is neither one of auto, {', '.join(NAMES)} nor an existing folder")


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
