"""Data folders as people have them: splits, tables, captions, grey pictures, and the other forms that sets come in."""

import io
import json
import os
import struct
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import export_folder, image_export, load
from common.data.sources.decoding import decode_all
from common.data.sources.tables import read_table
from common.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def write(folder: Path, *names: str, mode: str = "RGB", first: int = 0) -> Path:
    """A picture of one colour for each name; the k-th has value first + k."""
    for k, name in enumerate(names, first):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k, k, k)).convert(mode).save(
            folder / name, None if "." in Path(name).name else "PNG"
        )
    return folder


def values(images) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


NAMES = tuple(f"{k}.png" for k in range(4))


# -------------------------------------------------------------------------------------------------------------- splits


def test_folders_that_are_splits(tmp_path, capsys):
    """train/ and test/ with classes below, as ImageFolder has them; every split numbers the classes alike."""
    write(tmp_path, "train/cat/0.png", "train/dog/1.png", "train/cat/2.png", "test/dog/3.png", "valid/dog/4.png")
    train, test, valid = (load(str(tmp_path), 8, split=split) for split in ("train", "test", "validation"))
    assert (values(train), train.labels.tolist(), train.classes) == ([0, 2, 1], [0, 0, 1], ("cat", "dog"))
    assert (values(test), test.labels.tolist(), test.classes) == ([3], [1], ("cat", "dog")) and values(valid) == [4]
    assert (
        f"{tmp_path.name} (train): 3 read, 0 left out; its folders are splits: test, train, valid; other splits: test (1), validation (1)"
        in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="has no split 'bogus'"):
        load(str(tmp_path), 8, split="bogus")


def test_metadata_in_each_split(tmp_path):
    for split, text in (("train", "a cat"), ("test", "a dog")):
        write(tmp_path / split, "0.png", "1.png")
        (tmp_path / split / "metadata.jsonl").write_text(
            "".join(json.dumps({"file_name": f"{k}.png", "text": f"{text} {k}"}) + "\n" for k in range(2))
        )
    assert load(str(tmp_path), 8, language="en").captions == ("a cat 0", "a cat 1")
    assert load(str(tmp_path), 8, split="test", language="en").captions == ("a dog 0", "a dog 1")


def test_one_table_for_all_splits(tmp_path):
    write(tmp_path, "train/0.png", "val/0.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\ntrain/0.png,a cat\nval/0.png,a dog\n")
    assert load(str(tmp_path), 8, language="en").captions == ("a cat",) and load(
        str(tmp_path), 8, split="test", language="en"
    ).captions == ("a dog",)


def test_tables_named_as_splits(tmp_path):
    """train.csv and test.csv beside train/ and test/, where the names repeat."""
    write(tmp_path, "train/0.png", "test/0.png")
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"image,caption\n0.png,of {split}\n")
    assert load(str(tmp_path), 8, language="en").captions == ("of train",) and load(
        str(tmp_path), 8, split="test", language="en"
    ).captions == ("of test",)


def test_a_validation_split_serves_as_test(tmp_path, capsys):
    write(tmp_path, "train/0.png", "val/1.png")
    assert (
        values(load(str(tmp_path), 8, split="test")) == [1]
        and "the split validation serves as test" in capsys.readouterr().err
    )


def test_a_train_folder_alone(tmp_path, capsys):
    write(tmp_path, *(f"train/{k:02d}.png" for k in range(20)))
    assert len(load(str(tmp_path), 8)) == 18 and values(load(str(tmp_path), 8, split="test")) == [9, 19]
    assert "its folders are splits: train; of its 20 every tenth belongs to the test split" in capsys.readouterr().err


def test_splits_without_one_for_training(tmp_path):
    write(tmp_path, "test/0.png", "val/1.png")
    with pytest.raises(UserError, match=f"holds the splits test, val and none for training.*--data {tmp_path}/train"):
        load(str(tmp_path), 8)


def test_a_class_called_test(tmp_path, capsys):
    write(tmp_path, "cat/0.png", "test/1.png")
    assert (
        load(str(tmp_path), 8).classes == ("cat", "test")
        and "folders named test are no splits here" in capsys.readouterr().err
    )


def test_classes_that_one_split_lacks_keep_their_numbers(tmp_path):
    """Folders that are named as splits, and a column that names them."""
    write(tmp_path / "a", "train/ant/0.png", "train/bee/1.png", "test/bee/2.png")
    assert load(str(tmp_path / "a"), 8, split="test").labels.tolist() == [1]
    write(tmp_path / "b", "0.png", "1.png")
    (tmp_path / "b/metadata.csv").write_text("file_name,label,split\n0.png,ant,training\n1.png,bee,testing\n")
    assert load(str(tmp_path / "b"), 8, split="test").labels.tolist() == [1] and load(
        str(tmp_path / "b"), 8
    ).classes == ("ant", "bee")


# -------------------------------------------------------------------------------------------------------------- tables

ROWS = [{"file_name": name, "text": f"a cat, {k}"} for k, name in enumerate(NAMES)]


def csv_of(delimiter: str, header: str = "file_name,text") -> str:
    return (
        header.replace(",", delimiter)
        + "\n"
        + "".join(f'{row["file_name"]}{delimiter}"{row["text"]}"\n' for row in ROWS)
    )


TABLES = {
    "jsonl": ("metadata.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
    "jsonl with CRLF and a mark": ("metadata.jsonl", "\ufeff" + "".join(json.dumps(row) + "\r\n\r\n" for row in ROWS)),
    "ndjson": ("metadata.ndjson", "".join(json.dumps(row) + "\n" for row in ROWS)),
    "a list called jsonl": ("metadata.jsonl", json.dumps(ROWS, indent=1)),
    "a list": ("metadata.json", json.dumps(ROWS)),
    "a list inside": ("metadata.json", json.dumps({"version": 1, "images": ROWS})),
    "columns": ("metadata.json", json.dumps({"file_name": list(NAMES), "text": [row["text"] for row in ROWS]})),
    "columns of pandas": ("metadata.json", json.dumps({key: {str(k): row[key] for k, row in enumerate(ROWS)} for key in ROWS[0]})),
    "by name, as kohya writes it": ("meta_cap.json", json.dumps({row["file_name"].removesuffix(".png"): {"caption": row["text"]} for row in ROWS})),
    "names and captions": ("captions.json", json.dumps({row["file_name"]: row["text"] for row in ROWS})),
    "csv": ("metadata.csv", csv_of(",")), "semicolons": ("metadata.csv", "\ufeff" + csv_of(";").replace("\n", "\r\n")), "tabs": ("metadata.csv", csv_of("\t")),
    "tsv": ("metadata.tsv", csv_of("\t")), "bars": ("metadata.csv", csv_of("|")), "capitals": ("metadata.csv", csv_of(",", "File Name, Text")),
    "image and prompt": ("metadata.csv", csv_of(",", "image,prompt")), "path and caption": ("captions.csv", csv_of(",", "path,caption")),
    "no header": ("metadata.csv", csv_of(",").split("\n", 1)[1]), "flickr": ("captions.txt", csv_of(",", "image,caption")), "METADATA.CSV": ("METADATA.CSV", csv_of(",")),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_in_every_form(tmp_path, name, capsys):
    file, text = TABLES[name]
    (write(tmp_path, *NAMES) / file).write_bytes(text.encode())
    assert load(str(tmp_path), 8, language="en").captions == tuple(row["text"] for row in ROWS)
    assert "4 read, 0 left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("gbk", "GB18030"),
        ("gb18030", "GB18030"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16-LE"),
        ("utf-32", "UTF-32"),
        ("utf-8-sig", ""),
        ("utf-8", ""),
    ],
)
def test_tables_in_other_encodings(tmp_path, encoding, said, capsys):
    (write(tmp_path, "0.png", "1.png") / "metadata.csv").write_bytes(
        "file_name,text\r\n0.png,番茄炒蛋\r\n1.png,宫保鸡丁\r\n".encode(encoding)
    )
    assert load(str(tmp_path), 8).captions == ("番茄炒蛋", "宫保鸡丁")
    err = capsys.readouterr().err
    assert f"metadata.csv was read as {said}" in err if said else "was read as" not in err


def test_a_parquet_table_of_names(tmp_path):
    import pandas as pd

    pd.DataFrame(ROWS).to_parquet(write(tmp_path, *NAMES) / "metadata.parquet")
    assert load(str(tmp_path), 8, language="en").captions == tuple(row["text"] for row in ROWS)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="metadata.parquet cannot be read as a parquet file"):
        load(str(tmp_path), 8)


@pytest.mark.parametrize(
    "written",
    ["pictures\\{}", "./pictures/{}", " pictures/{} ", "PICTURES/{}", "pictures%2F{}", "{}", "set/pictures/{}"],
)
def test_names_written_elsewhere(tmp_path, written):
    folder = write(tmp_path / "set", *(f"pictures/été {name}" for name in NAMES))
    rows = [
        {"file_name": written.format(unicodedata.normalize("NFD", f"été {name}")), "text": f"cat {k}"}
        for k, name in enumerate(NAMES)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(str(folder), 8, language="en").captions == tuple(f"cat {k}" for k in range(4))


@pytest.mark.parametrize(
    "written",
    ["{}/secret.png", "../secret.png", "x/../../secret.png", "..\\secret.png", "C:\\secret.png", "file:///secret.png"],
)
def test_files_outside_the_folder_are_refused_by_name(tmp_path, written):
    write(tmp_path, "secret.png")
    folder = write(tmp_path / "set", "0.png")
    written = written.format(tmp_path)
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": "a"}\n' + json.dumps({"file_name": written, "text": "b"})
    )
    with pytest.raises(UserError) as problem:
        load(str(folder), 8)
    assert f"metadata.jsonl, line 2: {written} " in str(problem.value) and "name files inside" in str(problem.value)


def test_a_table_may_name_files_of_a_neighbour_folder(tmp_path):
    write(tmp_path, "images/0.png")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/metadata.csv").write_text("file_name,text\n../images/0.png,a cat\n")
    assert load(str(tmp_path), 8, language="en").captions == ("a cat",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name;words\nzero;a\n", r"no row names a file; its columns are name, words"),
        ("file_name,text\n0.png,a red, fat cat\n", "line 2 has 3 cells and the header 2.*quotation marks"),
        ("file_name,text\n,a cat\n", "line 2 has no name in the column file_name"),
        ("a,b\0c\n", "zero bytes"),
        ('file_name,text\n0.png,"a cat\n1.png,a dog\n', "line 2: a quotation mark is opened and never closed"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, text, says):
    (write(tmp_path, "0.png") / "metadata.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        load(str(tmp_path), 8)


def test_a_table_that_is_not_for_us_is_not_used(tmp_path, capsys):
    """Other names than metadata are looked at, and left alone where they name no picture."""
    write(tmp_path, "0.png")
    (tmp_path / "data.json").write_text('{"names": ["cat"], "nc": 1}')
    (tmp_path / "labels.csv").write_text("file_name,label\nelsewhere.png,cat\n")
    assert load(str(tmp_path), 8).labels is None
    err = capsys.readouterr().err
    assert "1 read, 2 left out (1 .csv, 1 .json)" in err and "data.json is not used" in err and "\n" not in err.strip()


def test_unreadable_metadata_is_one_sentence(tmp_path, monkeypatch):
    write(tmp_path, "0.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png"}')
    real = Path.read_bytes
    monkeypatch.setattr(
        Path,
        "read_bytes",
        lambda path: (
            real(path)
            if path.name != "metadata.jsonl"
            else (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        ),
    )
    with pytest.raises(UserError, match="metadata.jsonl cannot be read .Permission denied."):
        load(str(tmp_path), 8)


def test_nan_is_an_empty_cell(tmp_path):
    write(tmp_path, "0.png", "1.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": "a"}\n{"file_name": "1.png", "text": NaN}\n'
    )
    with pytest.raises(UserError, match="1 of 2 images .* have no English caption"):
        load(str(tmp_path), 8, language="en")


def test_strings_that_hold_line_separators_stay_whole(tmp_path):
    write(tmp_path, "0.png")
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": "0.png", "text": "a\u2028b"}, ensure_ascii=False), encoding="utf-8"
    )
    assert read_table(tmp_path / "metadata.jsonl").rows[0].cells["text"] == "a\u2028b"


# ------------------------------------------------------------------------------------------------------------ captions


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".png.txt", ".json"])
def test_captions_beside_the_images(tmp_path, suffix, capsys):
    write(tmp_path, *NAMES)
    for k in range(4):
        text = json.dumps({"caption": f"cat {k}"}) if suffix == ".json" else f"cat {k}\n"
        (tmp_path / f"{k}{suffix}").write_text(text)
    assert (
        load(str(tmp_path), 8, language="en").captions == tuple(f"cat {k}" for k in range(4))
        and "0 left out" in capsys.readouterr().err
    )


def test_what_has_no_caption_is_said(tmp_path, capsys):
    write(tmp_path, *NAMES)
    (tmp_path / "1.caption").write_text("a cat")
    (tmp_path / "9.caption").write_text("of no picture")
    (tmp_path / "notes.md").write_text("")
    assert load(str(tmp_path), 8).captions is None
    assert "4 read, 2 left out (1 .caption, 1 .md); 3 of 4 have no caption" in capsys.readouterr().err
    (tmp_path / "1.caption").unlink()
    with pytest.raises(
        UserError,
        match="has no captions; they are looked for in columns named text, .* and in NAME.txt, NAME.caption or NAME.json beside NAME.png",
    ):
        load(str(tmp_path), 8, language="en")


@pytest.mark.parametrize("way", ["rows", "list", "lines"])
def test_several_captions_for_a_picture(tmp_path, way, capsys):
    """As Flickr8k, COCO and CUB have them. The first is used, the others are kept, and it is said."""
    folder = write(tmp_path / "set", "0.png", "1.png")
    if way == "rows":
        (folder / "captions.txt").write_text("image,caption\n0.png,a\n0.png,b\n1.png,c\n0.png,a\n")
    elif way == "list":
        (folder / "metadata.jsonl").write_text(
            '{"file_name": "0.png", "text": ["a", "b"]}\n{"file_name": "1.png", "text": "c"}\n'
        )
    else:
        (folder / "0.txt").write_text("a\n\nb\n")
        (folder / "1.txt").write_text("c")
    images = load(str(folder), 8, language="en")
    assert images.captions == ("a", "c") and images.texts.several == {"en": (("a", "b"), ("c",))}
    assert "1 images have several English captions, of which the first is used" in capsys.readouterr().err
    from common.data.sources.lmdb_dataset import read_lmdb, write_lmdb

    write_lmdb(tmp_path / "set.lmdb", {"train": images})
    image_export.export(images, tmp_path / "out")
    for again in (read_lmdb(tmp_path / "set.lmdb"), load(str(tmp_path / "out"), 8), load(str(folder), 8, n=2)):
        assert again.captions == images.captions and again.texts.several == images.texts.several
    assert load(str(folder), 8, n=1).texts.several == {"en": (("a", "b"),)}


def test_a_name_that_is_no_text_can_be_cached_and_a_caption_is_mended(tmp_path):
    """Half of a surrogate pair, in a caption and in the name of a file."""
    from common.data.sources.lmdb_dataset import read_lmdb, write_lmdb

    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(os.fsencode(folder) + b"/\xff.png", "PNG")
    (folder / "metadata.jsonl").write_text(
        json.dumps({"file_name": "\udcff.png", "text": "a \ud800 cat \ud83d\ude00"})
    )
    images = load(str(folder), 8, language="en")
    assert images.captions == ("a \ufffd cat \U0001f600",)
    write_lmdb(tmp_path / "set.lmdb", {"train": images})
    image_export.export(images, tmp_path / "out")
    assert (
        read_lmdb(tmp_path / "set.lmdb").texts == images.texts
        and load(str(tmp_path / "out"), 8).captions == images.captions
    )


# ------------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".jp2", ".tga", ".ppm", ".pcx", ".TIFF", ".Webp"])
def test_pictures_by_all_their_suffixes(tmp_path, suffix, capsys):
    from PIL import features

    if suffix in (".avif", ".jp2") and not features.check({".avif": "avif", ".jp2": "jpg_2000"}[suffix]):
        pytest.skip("this Pillow was built without that decoder")
    for k in range(2):
        Image.new("RGB", (16, 16), (100, 100, 100)).save(
            tmp_path / f"{k}{suffix}", {".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix)
        )
    (tmp_path / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{k}{suffix}", "text": "a cat"}) + "\n" for k in range(2))
    )
    images = load(str(tmp_path), 8, language="en")
    assert (
        len(images) == 2
        and images.pixels.float().mean() == pytest.approx(100, abs=3)
        and "2 read, 0 left out" in capsys.readouterr().err
    )


def test_kinds_that_cannot_be_opened_are_said(tmp_path, monkeypatch, capsys):
    """With metadata that names them, the refusal says so, and not that they were missing."""
    from common.data.sources import listing

    monkeypatch.setattr(listing, "suffixes", lambda: frozenset({".png"}))  # whatever plugins this machine has
    write(tmp_path, "0.png")
    (tmp_path / "1.heic").write_bytes(b"")
    load(str(tmp_path), 8)
    assert "1 read, 1 left out (1 .heic: needs pillow-heif)" in capsys.readouterr().err
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a\n1.heic,b\n")
    with pytest.raises(
        UserError,
        match=r"1 of 2 files that .* names are of a kind that cannot be opened here \(.heic: needs pillow-heif\), the first is 1.heic; convert",
    ):
        load(str(tmp_path), 8, language="en")
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match="there is no image in .*; it holds 1 .csv, 1 .heic: needs pillow-heif"):
        load(str(tmp_path), 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P"])
def test_grey_stays_grey(tmp_path, mode):
    for k in range(12):
        image = (
            Image.fromarray(np.full((8, 8), 257 * 20 * k, np.uint16))
            if mode == "I;16"
            else Image.new("L", (8, 8), 20 * k).convert(mode)
        )
        image.save(tmp_path / f"{k:02d}.png")
    train, test = load(str(tmp_path), 8), load(str(tmp_path), 8, split="test")
    assert (train.channels, test.channels) == (1, 1) and values(test) == ([255] if mode == "1" else [180])
    colour = load(str(tmp_path), 8, channels=3)
    assert torch.equal(colour.pixels, train.pixels.expand(-1, 3, -1, -1))
    # one colour picture, in the other split: still one number of channels
    Image.new("RGB", (8, 8), "red").save(tmp_path / "09.png")
    assert load(str(tmp_path), 8).channels == load(str(tmp_path), 8, split="test").channels == 3
    assert load(str(tmp_path), 8, split="test", channels=1).pixels.unique().tolist() == [76]  # its luminance


def test_a_coloured_palette_is_colour(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "a.png")
    assert load(str(tmp_path), 8).pixels[0, :, 0, 0].tolist() == [255, 0, 0]


def test_a_portable_grey_map_of_sixteen_bits(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 65535\n" + np.full(64, 257 * 90, ">u2").tobytes())
    assert load(str(tmp_path), 8).pixels.unique().tolist() == [90] and load(str(tmp_path), 8).channels == 1


def test_a_file_with_another_format_inside_never_starts_a_program(tmp_path):
    """Pillow would hand PostScript to Ghostscript, under any name."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match="1 of 1 images cannot be read"):
        load(str(tmp_path), 8)


def bomb() -> bytes:
    """The beginning of a PNG of 60,000 x 60,000 pixels."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_decompression_bombs(tmp_path):
    from common.evaluate.samples import read_folder

    (tmp_path / "a.png").write_bytes(bomb())
    for read in (
        lambda: load(str(tmp_path), 8),
        lambda: read_folder(tmp_path),
        lambda: decode_all([tmp_path / "a.png"], 8),
    ):
        with pytest.raises(UserError, match="1 of 1 images cannot be read.*exceeds limit"):
            read()


def test_evaluation_lists_folders_in_the_same_way(tmp_path, capsys):
    from common.evaluate.samples import read_folder

    write(tmp_path, "a.jfif", "b/c.png", ".ipynb_checkpoints/a.png", "__MACOSX/b.png")
    (tmp_path / "notes.md").write_text("")
    assert len(read_folder(tmp_path)) == 2 and "2 read, 1 left out (1 .md)" in capsys.readouterr().err


def test_evaluation_reads_npz(tmp_path):
    from common.evaluate.samples import read_npy

    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=x, arr_1=np.arange(3))
    assert torch.equal(
        ((read_npy(tmp_path / "a.npz") + 1) * 127.5).round().byte(), torch.from_numpy(x).permute(0, 3, 1, 2)
    )


# ------------------------------------------------------------------------------------------------- other forms of sets


def encoded(k: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (k, k, k)).convert(mode).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["bytes and path", "bytes", "paths", "paths in a dict"])
def test_parquet_that_pandas_wrote(tmp_path, kind):
    import pandas as pd

    cells = {
        "bytes and path": lambda k: {"bytes": encoded(k), "path": None},
        "bytes": encoded,
        "paths": lambda k: f"hidden\\{k}.bin",
        "paths in a dict": lambda k: {"bytes": None, "path": f"./hidden/{k}.bin"},
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "hidden").mkdir()
    for k in range(12):
        (tmp_path / f"hidden/{k}.bin").write_bytes(encoded(k))
    pd.DataFrame([{"image": cells[kind](k), "text": f"cat {k}"} for k in range(12)]).to_parquet(
        tmp_path / "data/part-0.parquet"
    )
    images = load(str(tmp_path), 8, language="en")
    assert images.captions == tuple(f"cat {k}" for k in values(images)) and len(images) == 11
    assert load(str(tmp_path / "data/part-0.parquet"), 8).captions == images.captions if "bytes" in kind else True


def test_a_parquet_that_names_files_outside(tmp_path):
    import pandas as pd

    folder = tmp_path / "set"
    folder.mkdir()
    write(tmp_path, "secret.png")
    for path in (str(tmp_path / "secret.png"), "../secret.png"):
        pd.DataFrame([{"image": {"bytes": None, "path": path}, "text": "a"}]).to_parquet(folder / "a.parquet")
        with pytest.raises(UserError, match="secret.png, which (is an absolute path|leads out of the folder)"):
            load(str(folder), 8)


def test_parquet_without_pictures_says_what_there_is(tmp_path):
    import pandas as pd

    pd.DataFrame([{"image": 3, "text": "a"}]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        UserError,
        match=r"has no column of images named image, img, picture, photo, ... that holds the bytes .*its columns are image \(int64\), text \((large_)?string\)",
    ):
        load(str(tmp_path), 8)


def test_a_picture_beside_parquet_files_does_not_replace_them(tmp_path):
    """A repository of the hub often shows one."""
    import pandas as pd

    write(tmp_path, "logo.png", first=99)
    for split, first in (("train", 0), ("test", 4)):
        pd.DataFrame([{"image": {"bytes": encoded(first + k), "path": None}} for k in range(3)]).to_parquet(
            tmp_path / f"{split}-00000-of-00001.parquet"
        )
    assert values(load(str(tmp_path), 8)) == [0, 1, 2] and values(load(str(tmp_path), 8, split="test")) == [4, 5, 6]


@pytest.mark.parametrize("splits", [False, True])
def test_what_save_to_disk_wrote(tmp_path, splits, capsys):
    import datasets

    def rows(first: int) -> datasets.Dataset:
        pictures = [Image.new("L", (8, 8), first + k) for k in range(12)]
        return datasets.Dataset.from_dict(
            {"image": pictures, "text": [f"cat {first + k}" for k in range(12)]}
        ).cast_column("image", datasets.Image())

    if splits:
        datasets.DatasetDict({"train": rows(0), "validation": rows(50)}).save_to_disk(tmp_path / "saved")
    else:
        rows(0).save_to_disk(tmp_path / "saved")
    train, test = (load(str(tmp_path / "saved"), 8, language="en", split=split) for split in ("train", "test"))
    assert train.channels == test.channels == 1 and train.captions == tuple(f"cat {k}" for k in values(train))
    assert (len(train), values(test)) == ((12, list(range(50, 62))) if splits else (11, [9]))
    assert f"saved (train): {len(train)} read" in capsys.readouterr().err
    next((tmp_path / "saved").rglob("*.arrow")).write_bytes(b"half")
    with pytest.raises(UserError, match="the set that `datasets` saved in .*saved cannot be read"):
        load(str(tmp_path / "saved"), 8)


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 6, 6), dtype=np.uint8)
LABELS = np.arange(20) % 3

ARRAYS = {
    "keras": {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS[:3], "y_test": LABELS[:3]},
    "medmnist": {"train_images": PIXELS, "train_labels": LABELS[:, None], "val_images": PIXELS[:4], "val_labels": LABELS[:4, None],
                 "test_images": PIXELS[:3], "test_labels": LABELS[:3, None]},
    "flat": {"train_images": PIXELS.reshape(20, 36), "train_labels": LABELS, "test_images": PIXELS[:3].reshape(3, 36), "test_labels": LABELS[:3]},
    "floats": {"x_train": PIXELS / 255, "y_train": LABELS, "x_test": PIXELS[:3] / 255, "y_test": LABELS[:3]},
    "floats around 0": {"x_train": (PIXELS / 127.5 - 1).astype(np.float32), "y_train": LABELS, "x_test": (PIXELS[:3] / 127.5 - 1).astype(np.float32), "y_test": LABELS[:3]},
    "floats to 255": {"x_train": PIXELS.astype(np.float32), "y_train": LABELS, "x_test": PIXELS[:3].astype(np.float32), "y_test": LABELS[:3]},
    "sixteen bits": {"x_train": PIXELS.astype(np.uint16) * 257, "y_train": LABELS, "x_test": PIXELS[:3].astype(np.uint16) * 257, "y_test": LABELS[:3]},
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_in_npz(tmp_path, name):
    np.savez_compressed(tmp_path / "set.npz", **ARRAYS[name])
    for place in (tmp_path, tmp_path / "set.npz"):
        train, test = load(str(place)), load(str(place), split="test")
        assert torch.equal(train.pixels[:, 0], torch.from_numpy(PIXELS)) and torch.equal(test.pixels, train.pixels[:3])
        assert (
            train.labels.tolist() == LABELS.tolist()
            and test.labels.tolist() == [0, 1, 2]
            and train.classes == ("0", "1", "2")
        )
    assert load(str(tmp_path), 8).size == 8 and load(str(tmp_path), channels=3).channels == 3


def test_arrays_of_other_shapes(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (20, 6, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", colour)
    images = load(str(tmp_path / "a.npz"))
    assert (
        torch.equal(
            images.pixels,
            torch.from_numpy(colour).permute(0, 3, 1, 2)[[i for i in range(20) if i % 10 != 9]][..., 2:8],
        )
        and images.labels is None
    )
    np.savez(tmp_path / "b.npz", colour.transpose(0, 3, 1, 2)[..., 2:8].reshape(20, -1))
    assert torch.equal(load(str(tmp_path / "b.npz")).pixels, images.pixels)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros(3)}, r"holds no array of images .*it holds x \(3,\)"),
        ({}, "it holds nothing"),
        ({"x": np.array([{}], object)}, "cannot be read as arrays"),
        ({"x": np.full((2, 4, 4), np.nan)}, "not all finite"),
        ({"x": np.full((2, 4, 4), 300.5)}, "run from 300.5 to 300.5"),
        ({"x": np.zeros((2, 17), np.uint8)}, "no square image"),
        ({"x": np.zeros((2, 4, 4), "U3")}, "<U3 values"),
        ({"a": np.zeros((2, 4, 4)), "b": np.zeros((2, 4, 4))}, "several arrays of images for the split train: a, b"),
        ({"x": np.zeros((2, 4, 4, 7), np.uint8)}, r"of the shape \(2, 4, 4, 7\)"),
    ],
)
def test_arrays_that_are_no_set(tmp_path, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=says):
        load(str(tmp_path))


def test_arrays_larger_than_the_memory_are_not_unpacked(tmp_path, monkeypatch):
    from common.data.sources import arrays

    np.savez_compressed(tmp_path / "a.npz", np.zeros((100, 64, 64), np.uint8))
    monkeypatch.setattr(arrays, "free_memory", lambda: 10_000)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(UserError, match=r"a.npz unpacks to 0.0 GiB, and 0.0 GiB of memory are free"):
        load(str(tmp_path))


@pytest.mark.parametrize("header", ["label,", "", "only pixels", "label last"])
def test_tables_of_pixels(tmp_path, header):
    names, flat = [f"pixel{i}" for i in range(36)], PIXELS.reshape(20, 36)
    lines = [
        ",".join(map(str, ([] if header == "only pixels" else [label]) + row.tolist()))
        for label, row in zip(LABELS, flat, strict=True)
    ]
    if header == "label last":
        lines = [",".join(map(str, [*row.tolist(), label])) for label, row in zip(LABELS, flat, strict=True)]
    first = {
        "label,": ",".join(["label", *names]),
        "only pixels": ",".join(names),
        "label last": ",".join([*names, "class"]),
    }.get(header)
    for part, rows in (("train", lines), ("test", lines[:3])):
        (tmp_path / f"mnist_{part}.csv").write_text("\n".join(([first] if first else []) + rows) + "\n")
    train, test = load(str(tmp_path)), load(str(tmp_path), split="test")
    assert torch.equal(train.pixels[:, 0], torch.from_numpy(PIXELS)) and torch.equal(test.pixels, train.pixels[:3])
    assert train.labels is None if header == "only pixels" else train.labels.tolist() == LABELS.tolist()
    (tmp_path / "mnist_train.csv").write_text("\n".join(lines) + "\n1,2,x\n")
    with pytest.raises(UserError, match="mnist_train.csv cannot be read as a table of pixels"):
        load(str(tmp_path))


def test_a_table_that_is_none_of_pixels(tmp_path):
    (tmp_path / "a.csv").write_text("file_name,text\n0.png,a\n")
    with pytest.raises(UserError, match="a.csv is no table of pixels .*give the folder that it lies in"):
        load(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("dot", [".", "-"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("by_name", [False, True])
def test_mnist_as_kaggle_has_it(tmp_path, dot, nested, by_name, monkeypatch):
    from common.data.sources import torchvision_datasets

    monkeypatch.setattr(torchvision_datasets, "reachable", lambda url: pytest.fail("a local copy needs no network"))
    for prefix, n in (("train", 20), ("t10k", 3)):
        for kind, code, data in (("images", 3, PIXELS[:n]), ("labels", 1, LABELS[:n].astype(np.uint8))):
            name = f"{prefix}-{kind}{dot}idx{code}-ubyte"
            path = tmp_path / (f"{name}/{name}" if nested else name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes([0, 0, 8, data.ndim]) + struct.pack(f">{data.ndim}i", *data.shape) + data.tobytes())
    for split, n in (("train", 20), ("test", 3)):
        images = load("mnist", data_dir=tmp_path, split=split) if by_name else load(str(tmp_path), split=split)
        assert (
            torch.equal(images.pixels[:, 0], torch.from_numpy(PIXELS[:n]))
            and images.labels.tolist() == LABELS[:n].tolist()
        )


def test_splits_that_do_not_exist_are_refused_everywhere(tmp_path):
    for name in ("digits", "creatures", "dishes", "pokemon", "hub:a/b"):
        with pytest.raises(UserError, match="has no split 'bogus'; choose one of train, test"):
            load(name, 16, split="bogus")
    with pytest.raises(UserError, match="digits has no split 'heldout'"):
        export_folder.main(export_folder.Args("digits", tmp_path / "out", split="heldout"))
    with pytest.raises(UserError, match="has no split 'heldout'; choose train or test"):
        load(str(write(tmp_path, "0.png")), 8, split="heldout")
    assert not (tmp_path / "out").exists()


def test_names_that_a_file_system_refuses():
    for name in ("a" * 5000, "a\0b"):
        with pytest.raises(UserError, match="unknown data"):
            load(name)
