"""One function lists a folder, one finds names that were written elsewhere, one chooses the split."""

import os
import unicodedata

import pytest
from PIL import Image

from common.data.sources import listing as listing_module
from common.data.sources.listing import (
    Names,
    Outside,
    Tally,
    choose_split,
    described,
    kinds,
    level_of_splits,
    list_folder,
    split_in,
    suffixes,
)
from common.errors import UserError


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


# ------------------------------------------------------------------------------------------------------------- listing


def test_hidden_and_system_files_never_count(tmp_path):
    make(
        tmp_path,
        "a.png",
        "b/c.png",
        ".ipynb_checkpoints/a-checkpoint.png",
        "b/.hidden.png",
        "__MACOSX/b/._c.png",
        "b/._c.png",
        "Thumbs.db",
        "b/thumbs.db",
        "b/desktop.ini",
        "@eaDir/a.png/x.jpg",
        "lost+found/a.png",
        "$RECYCLE.BIN/a.png",
        "System Volume Information/a.png",
        ".DS_Store",
        "c.png.partial",
        "c.png.crdownload",
        "out.partial/d.png",
        "d.png~",
        "~$notes.png",
        ".git/x.png",
        "__pycache__/x.png",
    )
    assert list_folder(tmp_path).files == ("a.png", "b/c.png")


def test_files_are_sorted_folder_by_folder_however_their_letters_are_composed(tmp_path):
    decomposed = unicodedata.normalize("NFD", "é")
    make(tmp_path, "a/z.png", "a-b/y.png", f"{decomposed}.png", "f.png", "Z.png", "êx.png")
    assert list_folder(tmp_path).files == ("Z.png", "a/z.png", "a-b/y.png", "f.png", f"{decomposed}.png", "êx.png")


def test_links_are_followed_and_circles_end(tmp_path):
    make(tmp_path, "real/faces/a.png", "set/own/b.png")
    os.symlink("../real/faces", tmp_path / "set/faces")  # a link to a folder elsewhere
    os.symlink("../../real/faces/a.png", tmp_path / "set/own/l.png")  # a link to a file
    os.symlink("..", tmp_path / "set/own/up")  # a circle
    os.symlink("own", tmp_path / "set/another")  # what is listed already
    os.symlink("nowhere.png", tmp_path / "set/broken.png")
    found = list_folder(tmp_path / "set")
    assert found.files == ("faces/a.png", "own/b.png", "own/l.png")
    assert sorted(found.links) == ["another", "broken.png", "own/up"] and "3 links that lead nowhere new" in described(
        found.holds(found.files)
    )
    os.symlink("set", tmp_path / "link")
    assert list_folder(tmp_path / "link").files == found.files  # a link as the folder itself


def test_a_folder_that_links_to_itself_in_many_ways(tmp_path):
    """Each real folder is listed once: without that, the number of ways grows as their factorial."""
    for i in range(30):
        make(tmp_path, f"{i:02d}/a.png")
        for j in range(30):
            os.symlink(tmp_path / f"{j:02d}", tmp_path / f"{i:02d}" / f"to{j:02d}")
    assert len(list_folder(tmp_path).files) == 30


def test_a_folder_without_permission(tmp_path, monkeypatch):
    make(tmp_path, "a.png", "closed/b.png")
    real = os.scandir
    monkeypatch.setattr(
        listing_module.os,
        "scandir",
        lambda path: (
            real(path)
            if "closed" not in str(path)
            else (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        ),
    )
    with pytest.raises(UserError, match="the folder .*closed cannot be listed .Permission denied."):
        list_folder(tmp_path)


def test_deep_folders_do_not_exhaust_the_stack(tmp_path):
    make(tmp_path, "/".join(["d"] * 400) + "/a.png")
    assert len(list_folder(tmp_path).files) == 1


def test_every_kind_that_pillow_opens():
    assert {
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".pgm",
        ".ppm",
        ".tga",
    } <= suffixes()
    assert not {".eps", ".ps", ".h5", ".hdf", ".mpg", ".pdf", ".txt", ".npy", ".csv", ".json"} & suffixes()
    assert "EPS" not in listing_module.formats()  # which would start Ghostscript, whatever the file is called
    assert all(kind in Image.OPEN for kind in listing_module.formats())


def test_kinds_that_a_plugin_opens_say_which():
    assert (
        described(kinds(["a.HEIC", "b.heic", "c.md", "README"]))
        == "1 without a suffix, 2 .heic: needs pillow-heif, 1 .md"
    )
    assert described(kinds([f"a.{k}" for k in "abcdefgh"])).endswith("and 2 more") and described(kinds([])) == ""


# --------------------------------------------------------------------------------------------------------------- names

FILES = (
    "a.png",
    "images/00.png",
    "images/été.png",
    "other/01.png",
    "Images2/Cat One.PNG",
    "x/dup.png",
    "y/dup.png",
    "b%20c.png",
    "d e.png",
    "two.jpg",
    "TWO.jpg",
    "back\\slash.png",
)


@pytest.mark.parametrize(
    ("written", "base", "found"),
    [
        ("a.png", "", "a.png"),
        ("./a.png", "", "a.png"),
        (" a.png ", "", "a.png"),
        ("A.PNG", "", "a.png"),
        ("a", "", "a.png"),
        ("images\\00.png", "", "images/00.png"),
        (".\\images\\00.png", "", "images/00.png"),
        ("images//00.png", "", "images/00.png"),
        ("images/../images/00.png", "", "images/00.png"),
        ("00.png", "images", "images/00.png"),
        ("../a.png", "images", "a.png"),
        ("00.png", "", "images/00.png"),
        ("data/images/00.png", "", None),
        ("00", "", "images/00.png"),
        (unicodedata.normalize("NFD", "images/été.png"), "", "images/été.png"),
        ("IMAGES/ÉTÉ.png", "", "images/été.png"),
        ("images2/cat%20one.png", "", "Images2/Cat One.PNG"),
        ("b%20c.png", "", "b%20c.png"),
        ("d%20e.png", "", "d e.png"),
        ("dup.png", "", None),
        ("x/dup.png", "", "x/dup.png"),
        ("dup.png", "y", "y/dup.png"),
        ("two.jpg", "", "two.jpg"),
        ("Two.jpg", "", None),
        ("back\\slash.png", "", "back\\slash.png"),
        ("missing.png", "", None),
        ("01.png", "images", None),
    ],
)
def test_names_written_elsewhere(written, base, found):
    assert Names(FILES).find(written, base) == found


def test_names_that_begin_with_the_folder_itself():
    names = Names(FILES, "set")
    assert (
        names.find("set/images/00.png") == names.find("set\\images\\00.png") == "images/00.png"
        and names.find("set/a.png") == "a.png"
    )
    assert names.find("other_set/a.png") is None


@pytest.mark.parametrize(
    "written",
    [
        "/etc/a.png",
        "C:\\pictures\\a.png",
        "c:/a.png",
        "\\\\server\\a.png",
        "file:///a.png",
        "../a.png",
        "images/../../a.png",
        "..\\a.png",
        "%2e%2e/a.png",
        "..%2fa.png",
    ],
)
def test_names_outside_the_folder(written):
    with pytest.raises(Outside, match="absolute path|leads out of the folder"):
        Names(FILES).find(written)


# -------------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("names", "level"),
    [
        (["train/a.png", "test/b.png"], 0),
        (["Train/cat/a.png", "VAL/dog/b.png"], 0),
        (["images/train/a.png", "images/val/b.png"], 1),
        (["cat/train/a.png", "dog/test/b.png"], 1),
        (["cat/a.png", "test/b.png"], None),
        (["train/a.png", "b.png"], None),
        (["a.png"], None),
        ([], None),
        (["training/a.png"], 0),
        (["trains/a.png", "test/b.png"], None),
    ],
)
def test_folders_named_as_splits(names, level):
    """A class called "test" beside one called "cat" is no split."""
    assert level_of_splits(names) == level


def test_the_split_that_serves():
    assert (
        choose_split("x", ["train", "test"], "test") == "test"
        and choose_split("x", ["train", "validation"], "test") == "validation"
    )
    assert choose_split("x", ["train", "test", "validation"], "validation") == "validation"
    assert (
        choose_split("x", ["train"], "test") is None and choose_split("x", ["train"], "train", tenth=False) == "train"
    )
    for there, split in ((["train", "test"], "bogus"), (["test", "validation"], "train"), (["train"], "validation")):
        with pytest.raises(UserError, match=f"x has no split '{split}'; it has"):
            choose_split("x", there, split)


def test_splits_in_the_names_of_files():
    assert [
        split_in(name)
        for name in (
            "data/train-00000-of-00001.parquet",
            "mnist_test.csv",
            "x_train",
            "val_images",
            "Testing.npz",
            "set.csv",
            "train_test.csv",
            "trainer.csv",
        )
    ] == ["train", "test", "train", "validation", "test", None, None, None]


def test_one_line_says_what_was_read(capsys, monkeypatch):
    tally = Tally()
    tally.left_out[".heic: needs pillow-heif"] += 3
    tally.note("a note")
    tally.note("a note")
    tally.tell("faces", 1200, "train")
    assert capsys.readouterr().err == "faces (train): 1,200 read, 3 left out (3 .heic: needs pillow-heif); a note\n"
    monkeypatch.setenv("RANK", "1")  # the main process alone speaks
    tally.tell("faces", 1200)
    assert capsys.readouterr().err == ""
