"""Data: every loader on small files written here, and every fault that files are known to have."""

import csv
import gzip
import http.server
import json
import lzma
import os
import pickle
import random
import re
import socket
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from common.data import NAMES, load
from common.data.registry import auto
from common.data.sources import torchvision_datasets as classics_module
from common.errors import UserError
from common.io.pixels import to_bytes, to_float


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(classics_module, "reachable", lambda url: False)


def write_idx(path: Path, array: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return data


def write_mnist(raw: Path, suffix: str = "", n: int = 12, size: int = 28) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size))
    for prefix in ("train", "t10k"):
        write_idx(raw / f"{prefix}-images-idx3-ubyte{suffix}", pixels)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(n) % 10)
    return pixels


def write_images(folder: Path, n: int, suffix: str = ".png", size: tuple[int, int] = (12, 10)) -> list[Path]:
    """n images, each of one grey: image k has value 10 k."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{k:03d}{suffix}" for k in range(n)]
    for k, path in enumerate(paths):
        Image.new("RGB", size, (10 * k,) * 3).save(path)
    return paths


# ------------------------------------------------------------------------------------------------------------- images


def test_bytes_and_floats_are_inverse():
    pixels = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16)
    floats = to_float(pixels)
    assert floats.dtype == torch.float32 and floats.min() == -1 and floats.max() == 1
    assert torch.equal(to_bytes(floats), pixels)
    assert to_bytes(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def test_batches_are_floats_with_labels():
    data = load("digits")
    batch = data.batch(torch.tensor([3, 1, 3]))
    assert batch["image"].shape == (3, 1, 8, 8) and batch["image"].dtype == torch.float32
    assert batch["image"].min() >= -1 and batch["image"].max() <= 1
    assert torch.equal(batch["image"][0], to_float(data.pixels[3])) and torch.equal(
        batch["label"], data.labels[[3, 1, 3]]
    )


# -------------------------------------------------------------------------------------------------------- named sets


def test_digits_are_embedded_and_split():
    train, test = load("digits"), load("digits", split="test")
    assert (len(train), len(test), train.size, train.channels) == (1498, 299, 8, 1)
    assert sorted(set(train.labels.tolist())) == list(range(10)) == sorted(set(test.labels.tolist()))
    assert train.pixels.max() == 255 and train.pixels.min() == 0  # the whole range is used
    seen = {bytes(image.numpy().tobytes()) for image in train.pixels}
    assert not any(bytes(image.numpy().tobytes()) in seen for image in test.pixels)


@pytest.mark.parametrize("size", [8, 12, 16])
def test_sizes(size):
    data = load("digits", size)
    assert (
        data.pixels.shape[1:] == (1, size, size) and data.pixels.dtype == torch.uint8 and len(data.labels) == len(data)
    )
    assert float(data.pixels.float().mean()) == pytest.approx(float(load("digits").pixels.float().mean()), rel=0.05)


@pytest.mark.parametrize("where", ["MNIST/raw", "data/MNIST/raw", "MNIST", ""])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_from_a_local_copy(tmp_path, where, suffix, offline):
    pixels = write_mnist(tmp_path / where, suffix)
    for split in ("train", "test"):
        data = load("mnist", data_dir=tmp_path, split=split)
        assert torch.equal(data.pixels[:, 0], torch.from_numpy(pixels).to(torch.uint8))
        assert data.labels.tolist() == [*range(10), 0, 1] and data.classes == tuple("0123456789")


def test_fashion_mnist_from_a_local_copy(tmp_path, offline):
    write_mnist(tmp_path / "FashionMNIST/raw")
    data = load("fashion_mnist", data_dir=tmp_path)
    assert (len(data), data.size, data.classes[0]) == (12, 28, "T-shirt")


def test_cifar10_in_the_layout_of_torchvision(tmp_path, offline, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (2, 3 * 32 * 32), dtype=np.uint8)
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [3, 7]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["x"] * 10}))
    train, test = load("cifar10", data_dir=tmp_path), load("cifar10", data_dir=tmp_path, split="test")
    assert (len(train), len(test), train.channels, train.size) == (10, 2, 3, 32)
    assert torch.equal(test.pixels, torch.from_numpy(rows).view(2, 3, 32, 32)) and test.labels.tolist() == [3, 7]


def test_cifar10_in_parquet_files(tmp_path, offline, monkeypatch):
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    pictures = [Image.new("RGB", (32, 32), (k, 0, 255)) for k in range(5)]
    rows = datasets.Dataset.from_dict({"img": pictures, "label": [4, 3, 2, 1, 0]}).cast_column("img", datasets.Image())
    (tmp_path / "cifar10/data").mkdir(parents=True)
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / f"cifar10/data/{split}-00000-of-00001.parquet")
    data = load("cifar10", data_dir=tmp_path)
    assert data.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4] and data.pixels[:, 2].min() == 255
    assert data.labels.tolist() == [4, 3, 2, 1, 0]

    (tmp_path / "cifar10/data/train-00000-of-00001.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="CIFAR-10 copy in .*cifar10 cannot be read"):
        load("cifar10", data_dir=tmp_path)


def test_flowers_from_a_local_folder(tmp_path, offline):
    write_images(tmp_path / "flowers", 20)
    train, test = load("flowers102", 16, tmp_path), load("flowers102", 16, tmp_path, "test")
    assert (len(train), len(test), train.size, train.channels) == (18, 2, 16, 3)


def write_torchvision_flowers(data_dir: Path) -> None:
    write_images(data_dir / "flowers-102/jpg", 4, ".jpg")
    for k in range(4):
        (data_dir / f"flowers-102/jpg/{k:03d}.jpg").rename(data_dir / f"flowers-102/jpg/image_{k + 1:05d}.jpg")
    scipy.io.savemat(data_dir / "flowers-102/imagelabels.mat", {"labels": np.array([[1, 2, 2, 1]])})
    scipy.io.savemat(data_dir / "flowers-102/setid.mat", {"trnid": [[1]], "valid": [[2]], "tstid": [[3, 4]]})


def test_flowers_in_the_layout_of_torchvision(tmp_path, offline, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    write_torchvision_flowers(tmp_path)
    data = load("flowers102", 8, tmp_path)  # the course trains on the large part, which is called "test" there
    assert data.labels.tolist() == [1, 0] and len(data) == 2


def test_damaged_downloads_are_called_damaged(tmp_path, offline):
    """Their checksums are wrong here, for the files were made above; that is another fault than not being there."""
    write_torchvision_flowers(tmp_path)
    with pytest.raises(UserError, match="flowers-102.*damaged"):
        load("flowers102", 8, tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(b"half a fi")
    with pytest.raises(UserError, match="cifar-10-batches-py.*damaged"):
        load("cifar10", data_dir=tmp_path)


@pytest.mark.skipif("DIFFUSION_DATA" not in os.environ, reason="set DIFFUSION_DATA to a folder with the real sets")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_sets(name):
    folder = Path(os.environ["DIFFUSION_DATA"])
    train, test = load(name, data_dir=folder), load(name, data_dir=folder, split="test")
    assert (len(train), len(test), train.size) == (60_000, 10_000, 28)
    assert torch.bincount(test.labels, minlength=10).min() > 800


# ------------------------------------------------------------------------------------------------- damaged archives


@pytest.mark.parametrize(
    ("suffix", "damage", "reason"),
    [
        ("", lambda raw: raw[:-5], r"truncated: 9403 bytes of data where its header promises \(12, 28, 28\)"),
        ("", lambda raw: raw + b"more", "9412 bytes of data where its header promises"),
        ("", lambda raw: raw[:7], "truncated"),
        ("", lambda raw: b"", "no IDX file.*nothing"),
        ("", lambda raw: b"<html>not found</html>", "no IDX file of bytes .it begins with 3c68746d"),
        (".gz", lambda raw: raw[: len(raw) // 2], "damaged .*end-of-stream"),
        (".gz", lambda raw: raw[:200] + bytes([raw[200] ^ 255]) + raw[201:], "damaged"),
        (".gz", lambda raw: raw[:-8] + b"\0\0\0\0" + raw[-4:], "damaged .*CRC"),
        (".gz", lambda raw: b"<html>not found</html>", "damaged .*gzipped"),
    ],
)
def test_a_damaged_archive_is_named_with_the_reason(tmp_path, suffix, damage, reason, offline):
    write_mnist(tmp_path, suffix)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"(?s){path.name}.*{reason}"):
        load("mnist", data_dir=tmp_path)


def test_images_and_labels_that_do_not_belong_together(tmp_path, offline):
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(11))
    with pytest.raises(UserError, match="12 images but 11 labels"):
        load("mnist", data_dir=tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="train-labels-idx1-ubyte is missing"):
        load("mnist", data_dir=tmp_path)


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_plain_folder(tmp_path):
    write_images(tmp_path / "faces", 5)
    (tmp_path / "faces/notes.md").write_text("not an image")
    data = load(str(tmp_path / "faces"), 8)
    assert data.pixels.shape == (5, 3, 8, 8) and data.pixels[:, 0, 4, 4].tolist() == [0, 10, 20, 30, 40]
    assert data.labels is None and data.captions is None and data.name == "faces"


def test_a_folder_keeps_every_tenth_image_for_testing(tmp_path):
    write_images(tmp_path, 25)
    train, test = load(str(tmp_path), 8), load(str(tmp_path), 8, split="test")
    assert (len(train), len(test)) == (23, 2) and test.pixels[:, 0, 0, 0].tolist() == [90, 190]


def test_class_folders(tmp_path):
    write_images(tmp_path / "cat", 2)
    write_images(tmp_path / "ant" / "deeper", 3, ".jpg")
    data = load(str(tmp_path), 8)
    assert data.classes == ("ant", "cat") and data.labels.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata(tmp_path, kind):
    paths = write_images(tmp_path, 3)
    rows = [
        {"file_name": path.name, "text": f"caption {k}, 红色", "label": label}
        for k, (path, label) in enumerate(zip(paths, "bab", strict=True))
    ]
    if kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text(
            "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8"
        )
    else:
        with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    data = load(str(tmp_path), 8)
    assert data.captions == ("caption 0, 红色", "caption 1, 红色", "caption 2, 红色")
    assert data.classes == ("a", "b") and data.labels.tolist() == [1, 0, 1]


def test_numbered_labels_keep_their_order(tmp_path):
    paths = write_images(tmp_path, 3)
    (tmp_path / "metadata.jsonl").write_text(
        "\n".join(
            json.dumps({"file_name": p.name, "label": label}) for p, label in zip(paths, (10, 9, 2), strict=True)
        )
    )
    data = load(str(tmp_path), 8)
    assert data.classes == ("2", "9", "10") and data.labels.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "{not json",
            r"\(line 1, column 2: Expecting property name.*every line is one JSON object, each with a file_name",
        ),
        ('{"file_name": "000.png"}\n\n{"file_name": "001.png', r"\(line 3, column 15: Unterminated string"),
        (
            '[{"file_name": "000.png"},\n{"file_name": }]',
            r"\(line 2, column 15: Expecting value.*one JSON list of objects",
        ),
        (
            '{"text": "no file name"}',
            r"\(no row names a file; its columns are text\); every row needs a file_name \(or image, file, path\)",
        ),
        ('{"file_name": "000.png"}\n{"text": "no file name"}', r"\(line 2 has no name in the column file_name\)"),
        ('{"file_name": ["000.png"]}', r"\(line 1 has no name in the column file_name\)"),
        ("[1, 2]", r"\(row 1 holds a number\); every row is an object with a file_name"),
        ("[" * 100_000, r"\(its brackets are nested too deeply\)"),
        ("1" * 5000, r"\(line 1: Exceeds the limit"),
        ("", r"\(no row names a file; it is empty\)"),
    ],
)
def test_unreadable_metadata(tmp_path, text, says):
    write_images(tmp_path, 3)
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=f"metadata.jsonl cannot be read {says}"):
        load(str(tmp_path), 8)


def test_captions_beside_the_images(tmp_path):
    for k, path in enumerate(write_images(tmp_path, 3)):
        path.with_suffix(".txt").write_text(f" 一只猫 {k}\n", encoding="utf-8")
    assert load(str(tmp_path), 8).captions == ("一只猫 0", "一只猫 1", "一只猫 2")
    (tmp_path / "001.txt").unlink()
    assert load(str(tmp_path), 8).captions is None  # captions for some are no captions


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        ("红色的猫", "gbk", "GB18030"),
        ("红色的猫", "utf-16", "UTF-16"),
        ("a red cat", "utf-16-le", "UTF-16-LE"),
        ("un café créé", "cp1252", "Windows-1252"),
        ("cafés", "cp1252", "Windows-1252"),
    ],
)
def test_captions_in_other_encodings(tmp_path, capsys, text, encoding, name):
    """As editors write them; what was recognised is said."""
    for path in write_images(tmp_path, 3):
        path.with_suffix(".txt").write_bytes(text.encode(encoding))
    assert load(str(tmp_path), 8).captions == (text,) * 3
    assert f"captions beside the images were read as {name}" in capsys.readouterr().err
    (tmp_path / "000.txt").write_bytes(b"\xff\x81\xff\x00")
    with pytest.raises(UserError, match="000.txt cannot be read as text.*save it as UTF-8"):
        load(str(tmp_path), 8)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".gif", ".tif", ".PNG", ".jpeg"])
def test_kinds_of_files(tmp_path, suffix):
    write_images(tmp_path, 3, suffix)
    data = load(str(tmp_path), 8)
    assert [round(v / 10) for v in data.pixels.float().mean((1, 2, 3)).tolist()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("L", 200), ("1", 1), ("I;16", 65535), ("CMYK", (0, 0, 0, 0)), ("LA", (9, 0)), ("RGBA", (9, 9, 9, 0))],
)
def test_modes_and_transparency(tmp_path, mode, colour):
    """Whatever the mode, three channels; what is transparent shows white."""
    path = tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    Image.new(mode, (9, 9), colour).save(path)
    assert load(str(tmp_path), 8).pixels.unique().tolist() == [200 if mode == "L" else 255]


def test_sixteen_bits_are_scaled_and_unscaled_numbers_refused(tmp_path):
    """Grey values up to 65,535 are no whiter than up to 255; of 32-bit numbers nobody says what is white."""
    grey = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert torch.equal(load(str(tmp_path), 8).pixels[0, 0], torch.from_numpy(grey))
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "a.tif")
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="32-bit numbers without a stated range"):
        load(str(tmp_path), 8)


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (9, 9), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "a.png", transparency=1)
    assert load(str(tmp_path), 8).pixels.unique().tolist() == [255]


def test_the_camera_was_held_upright(tmp_path):
    """EXIF orientation 6: the stored top row is the right edge of the picture."""
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = load(str(tmp_path), 8).pixels[0, 0]
    assert pixels[:, 6:].min() > 200 and pixels[:, :2].max() < 50


def test_the_middle_of_a_wide_picture_is_kept(tmp_path):
    image = Image.new("RGB", (40, 10), "red")
    image.paste("blue", (15, 0, 25, 10))
    image.save(tmp_path / "a.png")
    pixels = load(str(tmp_path), 8).pixels[0]
    assert pixels[2].float().mean() > 240 and pixels[0].float().mean() < 15


# ---------------------------------------------------------------------------------------------------- damaged images


def test_one_bad_image_is_skipped_and_named(tmp_path, capsys):
    paths = write_images(tmp_path, 20)
    paths[4].write_bytes(paths[4].read_bytes()[:40])
    data = load(str(tmp_path), 8)
    assert re.search(
        r"17 read, 1 left out \(1 that cannot be read\); .*; unreadable: .*004.png \(.+\)\n$", capsys.readouterr().err
    )
    assert len(data) == 17 and data.pixels[:5, 0, 0, 0].tolist() == [0, 10, 20, 30, 50]  # none takes its place


def test_labels_and_captions_stay_with_their_images(tmp_path, capsys):
    for name in ("a", "b"):
        for k, path in enumerate(write_images(tmp_path / name, 15)):
            path.with_suffix(".txt").write_text(f"{name}{k}")
    (tmp_path / "a/003.png").write_bytes(b"")
    data = load(str(tmp_path), 8)
    assert "003.png" in capsys.readouterr().err
    for grey, label, caption in zip(
        data.pixels[:, 0, 0, 0].tolist(), data.labels.tolist(), data.captions, strict=True
    ):
        assert caption == f"{data.classes[label]}{grey // 10}"


def test_many_bad_images_stop_the_run(tmp_path):
    paths = write_images(tmp_path, 20)
    for path in paths[3:6]:
        path.write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"3 of 18 images cannot be read, the first is .*003.png \(cannot identify"):
        load(str(tmp_path), 8)


@pytest.mark.filterwarnings("ignore")
def test_every_way_of_breaking_a_file_is_caught(tmp_path):
    """Truncated anywhere, or bytes turned over: skipped or read, but never another exception."""
    r = random.Random(0)
    good = write_images(tmp_path / "good", 1, size=(30, 30))[0]
    for suffix in (".png", ".jpg", ".webp", ".bmp", ".gif", ".tif"):
        folder = tmp_path / suffix[1:]
        paths = write_images(folder, 1, suffix, (30, 30))
        raw = paths[0].read_bytes()
        for k in range(30):
            broken = bytearray(raw[: r.randrange(len(raw))] if k % 2 else raw)
            for _ in range(r.choice([0, 1, 5]) if broken else 0):
                broken[r.randrange(min(len(broken), 200))] = r.randrange(256)
            (folder / "000").with_suffix(suffix).write_bytes(bytes(broken))
            try:
                load(str(folder), 8)
            except UserError as problem:
                assert "000" in str(problem)
    assert len(load(str(good.parent), 8)) == 1


def test_folders_without_a_readable_image(tmp_path):
    with pytest.raises(UserError, match=r"there is no image in .*\.png"):
        load(str(tmp_path), 8)
    (tmp_path / "readme.txt").write_text("nothing to see")
    with pytest.raises(UserError, match="there is no image in"):
        load(str(tmp_path), 8)
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="1 of 1 images cannot be read"):
        load(str(tmp_path), 8)


# ---------------------------------------------------------------------------------------------------- names and sizes


def test_unknown_data(tmp_path):
    with pytest.raises(UserError, match="unknown data 'mnits'") as problem:
        load("mnits")
    assert all(name in str(problem.value) for name in NAMES)
    with pytest.raises(UserError, match="nor an existing folder"):
        load(str(tmp_path / "missing"))
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(UserError, match="is a file; --data takes a folder"):
        load(str(tmp_path / "file.png"))


@pytest.mark.parametrize("size", [3, 1, 0, -8])
def test_impossible_sizes(tmp_path, size):
    write_images(tmp_path, 3)
    for name in ("digits", str(tmp_path)):
        with pytest.raises(UserError, match="--size must be at least 4"):
            load(name, size)


# ------------------------------------------------------------------------------------------------------- no network


def test_the_embedded_part_of_mnist(tmp_path):
    train, test = load("mnist-10k", data_dir=tmp_path), load("mnist-10k", data_dir=tmp_path, split="test")
    assert train.pixels.shape == (10_000, 1, 28, 28) and test.pixels.shape == (2_000, 1, 28, 28)
    for images in (train, test):
        assert images.labels.bincount(minlength=10).min() > 0.07 * len(images) and images.classes == tuple(
            "0123456789"
        )
        assert (images.pixels == 0).float().mean() > 0.75 and images.pixels.amax() == 255


@pytest.mark.skipif("DIFFUSION_DATA" not in os.environ, reason="set DIFFUSION_DATA to a folder with the real sets")
def test_the_embedded_part_of_mnist_is_as_its_readme_says():
    rng = np.random.default_rng(0)
    for split, total, n in (("train", 60_000, 10_000), ("test", 10_000, 2_000)):
        chosen = torch.from_numpy(np.sort(rng.permutation(total)[:n]))
        whole, part = (
            load(name, data_dir=Path(os.environ["DIFFUSION_DATA"]), split=split) for name in ("mnist", "mnist-10k")
        )
        assert torch.equal(part.pixels, whole.pixels[chosen]) and torch.equal(part.labels, whole.labels[chosen])


def test_xz_files_of_other_sets_are_read(tmp_path):
    write_mnist(tmp_path / "MNIST/raw")
    before = load("mnist", data_dir=tmp_path)
    for file in (tmp_path / "MNIST/raw").iterdir():
        (file.parent / f"{file.name}.xz").write_bytes(lzma.compress(file.read_bytes()))
        file.unlink()
    assert torch.equal(load("mnist", data_dir=tmp_path).pixels, before.pixels)
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte.xz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged"):
        load("mnist", data_dir=tmp_path)


def test_auto_takes_a_local_mnist(tmp_path):
    write_mnist(tmp_path / "MNIST/raw")
    name, why = auto(tmp_path)
    assert name == "mnist" and str(tmp_path) in why and "\n" not in why


def test_auto_falls_back_to_the_embedded_part_of_mnist(tmp_path, offline):
    name, why = auto(tmp_path)
    assert name == "mnist-10k" and "embedded" in why and "\n" not in why
    assert not list(tmp_path.iterdir())


def test_auto_says_so_when_the_local_copy_is_damaged(tmp_path, offline):
    """Falling back in silence would hide a damaged file that the user believes to be training on."""
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    name, _ = auto(tmp_path)
    with pytest.raises(UserError, match="truncated"):
        load(name, data_dir=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "flowers102"])
def test_a_set_that_is_not_here_and_cannot_be_fetched(tmp_path, name, offline):
    with pytest.raises(UserError, match="did not answer within 3 s.*--data-dir.*--data mnist-10k"):
        load(name, data_dir=tmp_path)


def test_nobody_answers(monkeypatch, tmp_path):
    """A closed port of this machine: no network is needed to find that there is none."""
    monkeypatch.setenv("no_proxy", "*")
    ask = classics_module.reachable
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(
            classics_module, "reachable", lambda url: ask(f"http://127.0.0.1:{closed.getsockname()[1]}/")
        )
        assert auto(tmp_path)[0] == "mnist-10k"


def test_a_server_that_accepts_and_then_says_nothing(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("common.io.hub.REACH_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not classics_module.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/")


def test_a_download_that_stalls(monkeypatch, tmp_path):
    """The server answers, begins to send, and says nothing more."""
    from torchvision.datasets import MNIST

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(classics_module, "reachable", lambda url: True)
    monkeypatch.setattr(classics_module, "STALLED_SECONDS", 0.3)
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        with pytest.raises(UserError, match="MNIST could not be downloaded to"):
            load("mnist", data_dir=tmp_path)
    assert socket.getdefaulttimeout() == before


def test_a_name_lookup_that_never_ends(monkeypatch):
    """It knows no time limit of its own, and with no network it can take half a minute."""
    released, ended = threading.Event(), threading.Event()

    def slow(*_, **__):
        released.wait(60)
        ended.set()
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr("common.io.hub.REACH_SECONDS", 0.3)
    assert not classics_module.reachable("http://example.invalid/")
    assert not ended.is_set(), "it answered while the lookup was still going on"
    released.set()


@pytest.mark.parametrize("answer", [200, 403])
def test_a_server_that_answers(monkeypatch, answer):
    """Even a refusal shows that there is a network."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(answer)
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "*")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert classics_module.reachable(f"http://127.0.0.1:{server.server_address[1]}/")


def test_a_download_that_fails_is_explained(tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(classics_module, "reachable", lambda url: True)
    monkeypatch.setattr("torchvision.datasets.MNIST.download", fail)
    with pytest.raises(UserError, match="MNIST could not be downloaded to .*Error downloading.*--data-dir"):
        load("mnist", data_dir=tmp_path)
    assert auto(tmp_path)[0] == "mnist-10k"
