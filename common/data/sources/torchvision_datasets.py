"""The classic sets: those that are embedded, and torchvision's, from a local copy or downloaded."""

import gzip
import lzma
import os
import re
import socket
import zlib
from pathlib import Path

import numpy as np
import torch

from common.data.dataset import Images, first_existing
from common.data.sources.decoding import decode_all
from common.data.sources.image_folder import load_folder
from common.data.sources.listing import Listing, Tally
from common.errors import UserError, explain
from common.io.hub import REACH_SECONDS, reachable

EMBEDDED = Path(__file__).parents[1] / "embedded"
STALLED_SECONDS = 20  # a download that brings nothing for so long is given up
DIGITS = tuple("0123456789")
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
# Kaggle's copies have a dot
IDX_NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx([13])-ubyte(\.gz|\.xz)?", re.IGNORECASE)
DECOMPRESS = {".gz": gzip.decompress, ".xz": lzma.decompress}
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def digits(data_dir: Path, split: str) -> Images:
    """1,797 handwritten 8x8 digits that scikit-learn carries: no download, ever. Every sixth is the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    test = torch.arange(len(bunch.target)) % 6 == 5
    keep = test if split == "test" else ~test
    pixels = torch.from_numpy(bunch.images / 16 * 255).round().to(torch.uint8)[:, None]
    return Images("digits", pixels[keep], torch.from_numpy(bunch.target).long()[keep], DIGITS)


def mnist_10k(data_dir: Path, split: str) -> Images:
    """10,000 training images and 2,000 test images of MNIST, embedded: no download, ever (../embedded/README.md)."""
    return read_mnist("mnist-10k", EMBEDDED / "mnist-10k", split, DIGITS, quiet=True)


# ------------------------------------------------------------------------------------------------ MNIST and its family


def mnist(data_dir: Path, split: str) -> Images:
    return _idx("mnist", "MNIST", data_dir, split, DIGITS)


def fashion_mnist(data_dir: Path, split: str) -> Images:
    return _idx("fashion_mnist", "FashionMNIST", data_dir, split, FASHION)


def find_mnist(data_dir: Path, folder: str, split: str) -> Path | None:
    """The folder with the four IDX files (plain or .gz) of torchvision's layout or Kaggle's, at or below data_dir."""
    for base in (data_dir / folder / "raw", data_dir / "data" / folder / "raw", data_dir / folder, data_dir):
        if _idx_file(base, split, "images"):
            return base
    return None


def _idx(name: str, folder: str, data_dir: Path, split: str, classes: tuple[str, ...]) -> Images:
    base = find_mnist(data_dir, folder, split)
    if base is None:
        _download(folder, data_dir, "https://ossci-datasets.s3.amazonaws.com/mnist/")
        base = data_dir / folder / "raw"
    return read_mnist(name, base, split, classes)


def load_idx(name: str, listing: Listing, files: list[str], split: str) -> Images:
    """The set in IDX files, wherever they lie in a folder."""
    bases = {os.path.dirname(file) for file in files}
    inner = next((base for base in sorted(bases) if not IDX_NAME.fullmatch(os.path.basename(base))), None)
    base = inner if inner is not None else os.path.dirname(min(bases))  # Kaggle's copy has a folder around each file
    tally = Tally()
    tally.left_out += listing.holds(files)
    return read_mnist(name, listing.folder / base, split, DIGITS, tally)


def read_mnist(
    name: str, base: Path, split: str, classes: tuple[str, ...], tally: Tally | None = None, quiet: bool = False
) -> Images:
    """The images and labels of the IDX files in a folder. quiet: print no line about how many were read"""
    pixels = read_idx(_existing(base, split, "images"))
    labels = read_idx(_existing(base, split, "labels"))
    if len(pixels) != len(labels):
        raise UserError(f"{base} holds {len(pixels)} images but {len(labels)} labels; download it again")
    if not quiet:
        (tally or Tally()).tell(name, len(pixels), split)
    return Images(name, torch.from_numpy(pixels)[:, None], torch.from_numpy(labels).long(), classes)


def _idx_file(base: Path, split: str, kind: str) -> Path | None:
    """train-images-idx3-ubyte or train-images.idx3-ubyte, plain, .gz or .xz;
    or in a folder of that name, as some programs unpack it.
    """
    stem, dimensions = f"{'t10k' if split == 'test' else 'train'}-{kind}", 3 if kind == "images" else 1
    names = [f"{stem}{dot}idx{dimensions}-ubyte{suffix}" for dot in "-." for suffix in ("", *DECOMPRESS)]
    folders = [base, *(base / name for name in names)]
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def _existing(base: Path, split: str, kind: str) -> Path:
    path = _idx_file(base, split, kind)
    if path is None:
        name = f"{'t10k' if split == 'test' else 'train'}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
        raise UserError(f"{base / name} is missing (plain or .gz)")
    return path


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes: two zero bytes, type 8, number of dimensions, their sizes, the data."""
    try:
        raw = DECOMPRESS.get(path.suffix, bytes)(path.read_bytes())
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as problem:
        raise UserError(f"{path} is damaged ({explain(problem)}); download it again") from problem
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise UserError(f"{path} is no IDX file of bytes (it begins with {raw[:4].hex() or 'nothing'})")
    shape = np.frombuffer(raw, ">i4", raw[3], offset=4) if len(raw) >= 4 + 4 * raw[3] else (-1,)
    data = raw[4 + 4 * raw[3] :]
    if len(data) != np.prod(shape, dtype=np.int64):
        raise UserError(
            f"{path} is truncated: {len(data)} bytes of data where its header promises {tuple(map(int, shape))}"
        )
    return np.frombuffer(bytearray(data), np.uint8).reshape(shape)


# --------------------------------------------------------------------------------------------------- CIFAR-10, flowers


def cifar10(data_dir: Path, split: str) -> Images:
    """torchvision's copy (cifar-10-batches-py), or a Hugging Face copy in parquet files (cifar10/data)."""
    parquet = first_existing(data_dir / "cifar10", data_dir / "data" / "cifar10")
    if parquet and list(parquet.rglob("*.parquet")):
        return _parquet(parquet, split)
    from torchvision.datasets import CIFAR10 as TorchvisionCifar

    copy = data_dir / TorchvisionCifar.base_folder
    if not copy.is_dir():
        _download("CIFAR10", data_dir, TorchvisionCifar.url)
    try:
        data = TorchvisionCifar(str(data_dir), train=split == "train")
    except (RuntimeError, OSError, EOFError, ValueError) as problem:
        raise UserError(f"{copy} is damaged ({explain(problem)}); delete it and download again") from problem
    Tally().tell("cifar10", len(data.targets), split)
    return Images(
        "cifar10", torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets), CIFAR10
    )


def _parquet(folder: Path, split: str) -> Images:
    from datasets import load_dataset

    try:
        rows = load_dataset(str(folder), split=split)
        pixels = np.stack([np.asarray(image.convert("RGB")) for image in rows["img"]])
    except Exception as problem:  # pyarrow, PIL and datasets each raise their own
        raise UserError(f"the CIFAR-10 copy in {folder} cannot be read ({explain(problem)})") from problem
    Tally().tell("cifar10", len(pixels), split)
    return Images(
        "cifar10", torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(rows["label"][:]), CIFAR10
    )


def flowers102(data_dir: Path, split: str, size: int, channels: int | None = None) -> Images:
    """torchvision's Flowers102 (flowers-102), or a local folder `flowers` of images."""
    local = first_existing(data_dir / "flowers", data_dir / "data" / "flowers")
    if local:
        return load_folder(local, size, split, channels)
    from torchvision.datasets import Flowers102

    copy = data_dir / "flowers-102"
    if not copy.is_dir():
        _download("Flowers102", data_dir, Flowers102._download_url_prefix)
    try:
        data = Flowers102(str(data_dir), split="test" if split == "train" else "train")  # its "test" is the large part
    except (RuntimeError, OSError, ValueError) as problem:
        raise UserError(f"{copy} is damaged ({explain(problem)}); delete it and download again") from problem
    tally = Tally()
    pixels, kept = decode_all([Path(p) for p in data._image_files], size, channels=channels or 3, tally=tally)
    tally.tell("flowers102", len(kept), split)
    return Images("flowers102", pixels, torch.tensor(data._labels)[kept])


# ------------------------------------------------------------------------------------------------------------ download


def _download(torchvision_name: str, data_dir: Path, url: str) -> None:
    """Download through torchvision, after a short look whether the server answers at all."""
    advice = "put a copy there, or name another folder with --data-dir (or use --data mnist-10k, which is embedded)"
    if not reachable(url):
        raise UserError(
            f"{torchvision_name} is not in {data_dir}, and {url} did not answer within {REACH_SECONDS} s; {advice}"
        )
    import torchvision.datasets

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_SECONDS)  # of silence, for urllib itself waits for ever
    try:
        getattr(torchvision.datasets, torchvision_name)(str(data_dir), download=True)
    except (OSError, RuntimeError) as problem:
        raise UserError(
            f"{torchvision_name} could not be downloaded to {data_dir} ({explain(problem)}); {advice}"
        ) from problem
    finally:
        socket.setdefaulttimeout(before)
