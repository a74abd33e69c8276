"""Captions: two languages, folders and hub sets that lack them, and what is written comes back the same."""

import ast
import csv
import json
import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.data import Images, export_folder, export_lmdb, image_export, load
from common.data.captions import COLUMNS, Texts, mostly_chinese, read_texts
from common.data.creatures.dataset import load_creatures
from common.data.dataset import Attributes, in_split
from common.data.drawn import DrawnDataset
from common.data.registry import NAMES
from common.data.sources import image_folder, lmdb_dataset
from common.data.sources.hub_datasets import HUB_SETS, from_rows
from common.data.sources.lmdb_dataset import FORMAT, read_lmdb, write_lmdb
from common.errors import UserError
from helpers.programs import ROOT

EN, ZH = "a red dog {}", "一只红色的狗{}"


def write_folder(folder: Path, rows: list[dict], kind: str = "jsonl") -> Path:
    """One grey picture for each row (the k-th has value k), and the rows as metadata, file_name first."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"file_name": f"{k:03d}.png"} | row for k, row in enumerate(rows)]
    for k in range(len(rows)):
        Image.new("RGB", (8, 8), (k, k, k)).save(folder / f"{k:03d}.png")
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
    else:
        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return folder


def bilingual(n: int, english: str = "text", chinese: str = "text_zh") -> list[dict]:
    return [{english: EN.format(k), chinese: ZH.format(k)} for k in range(n)]


def same(a: Images, b: Images) -> bool:
    """Everything that a program can see of them, but the name."""
    tables = [x.attributes and x.attributes.table.tolist() for x in (a, b)]
    labels = [x.labels if x.labels is None else x.labels.tolist() for x in (a, b)]
    return (
        torch.equal(a.pixels, b.pixels)
        and labels[0] == labels[1]
        and a.classes == b.classes
        and a.captions == b.captions
        and tables[0] == tables[1]
    )


# ----------------------------------------------------------------------------------------------------------- languages


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("columns", [("text", "text_zh"), ("caption", "caption_zh"), ("en_text", "zh_text")])
def test_a_folder_in_two_languages(tmp_path, kind, columns):
    folder = str(write_folder(tmp_path / "dogs", bilingual(5, *columns), kind))
    english, chinese = (tuple(words.format(k) for k in range(5)) for words in (EN, ZH))
    assert load(folder, 8).captions == load(folder, 8, language="en").captions == english
    assert load(folder, 8, language="zh").captions == chinese
    assert load(folder, 8, language="both").captions == (english[0], chinese[1], english[2], chinese[3], english[4])


def test_captions_follow_their_images_into_the_splits(tmp_path, capsys):
    folder = str(write_folder(tmp_path, bilingual(20)))
    test = load(folder, 8, split="test", language="zh")
    assert test.captions == (ZH.format(9), ZH.format(19)) and test.pixels[:, 0, 0, 0].tolist() == [9, 19]
    (tmp_path / "003.png").write_bytes(b"")
    train = load(folder, 8, language="en")
    assert "003.png" in capsys.readouterr().err
    assert train.captions == tuple(EN.format(k) for k in train.pixels[:, 0, 0, 0].tolist())


def test_a_column_named_text_may_be_chinese(tmp_path):
    """Sets of Chinese origin call their only column text."""
    folder = str(write_folder(tmp_path / "dishes", [{"text": "宫保鸡丁"}, {"text": "番茄炒蛋, hot"}]))
    assert load(folder, 8).captions == load(folder, 8, language="zh").captions == ("宫保鸡丁", "番茄炒蛋, hot")
    with pytest.raises(
        UserError, match="the folder .*dishes has no English captions, only Chinese ones.*--language zh"
    ):
        load(folder, 8, language="en")
    assert mostly_chinese(["红色的狗"]) and not mostly_chinese(["caption 0, 红色"]) and not mostly_chinese([])


@pytest.mark.parametrize("language", ["zh", "both"])
def test_a_folder_that_lacks_a_language_is_refused_by_name(tmp_path, language):
    folder = str(write_folder(tmp_path / "dogs", [{"text": "a dog"}] * 3))
    with pytest.raises(
        UserError,
        match="dogs has no Chinese captions, only English ones; add a column text_zh, or ask for --language en",
    ):
        load(folder, 8, language=language)


def test_an_unknown_language():
    for name in ("digits", "creatures", "missing"):
        with pytest.raises(UserError, match="unknown language 'fr'; choose one of en, zh, both"):
            load(name, language="fr")


def test_creatures_speak_as_they_do_elsewhere():
    for language in ("en", "zh", "both"):
        assert (
            load("creatures", 16, language=language, n=5).captions
            == load_creatures("train", 5, 16, language=language).captions
        )
    assert load("creatures", 16, n=5).captions == load_creatures("train", 5, 16).captions  # their default is both


def test_sets_without_words_say_so():
    with pytest.raises(UserError, match="digits has no captions; choose creatures, pokemon, or a folder"):
        load("digits", language="en")
    with pytest.raises(UserError, match="digits has no captions"):
        load("digits").need_captions()
    by_hand = Images("mine", torch.zeros(1, 3, 8, 8, dtype=torch.uint8), captions=("a",))
    assert by_hand.need_captions() == by_hand.in_language(None).captions == ("a",)


@pytest.mark.parametrize("wanted", [{"captions": True}, {"language": "en"}, {"language": "both"}])
def test_a_folder_without_captions_is_refused_before_its_images_are_decoded(tmp_path, monkeypatch, wanted):
    bare = write_folder(tmp_path / "bare", [{"label": "dog"} for _ in range(3)])
    chinese = write_folder(tmp_path / "chinese", [{"text": "一只狗"} for _ in range(3)])
    missing = write_folder(tmp_path / "missing", [{"text": "a dog"} for _ in range(3)])
    (missing / "001.png").rename(missing / "other.png")
    monkeypatch.setattr(image_folder, "decode_all", lambda *_, **__: pytest.fail("images were decoded"))
    for folder, sentence in {
        bare: "has no captions",
        chinese: "has no English captions",
        missing: "are not in",
    }.items():
        if folder != chinese or "language" in wanted:
            with pytest.raises(UserError, match=sentence):
                load(str(folder), 8, **wanted)


def test_captions_of_other_kinds():
    """A list holds several captions of one image; numbers are words too; null and blanks are nothing."""
    rows = [
        {"text": [" first ", "second"]},
        {"caption": 7},
        {"text": None, "prompt": "third"},
        {"text": "  "},
        {"text": {"a": 1}},
        {"text": []},
    ]
    assert read_texts(rows) == {"en": ("first", "7", "third", "", "", "")}
    assert read_texts([{"label": 1}, {}]) == {}


# --------------------------------------------------------------------------------------------------------- the first n


def test_the_first_n(tmp_path):
    folder = str(write_folder(tmp_path, [row | {"label": k % 3} for k, row in enumerate(bilingual(9))]))
    whole, four = load(folder, 8, language="both"), load(folder, 8, language="both", n=4)
    assert len(four) == len(four.captions) == len(four.labels) == len(four.texts.items) == 4
    assert (
        four.captions == whole.captions[:4]
        and torch.equal(four.pixels, whole.pixels[:4])
        and torch.equal(four.labels, whole.labels[:4])
    )
    assert four.need_captions("zh") == whole.need_captions("zh")[:4]
    assert torch.equal(four.batch(torch.tensor([3, 1]))["image"], whole.batch(torch.tensor([3, 1]))["image"])
    assert (
        same(load("digits", n=1498), load("digits"))
        and load("digits", n=3).labels.tolist() == load("digits").labels[:3].tolist()
    )


def test_creatures_are_drawn_as_many_as_that(monkeypatch):
    few, more = load("creatures", 16, n=3), load("creatures", 16, n=6)
    assert same(few, more.first(3)) and len(more.attributes.table) == 6
    drawn = []
    whole = DrawnDataset.load

    def noticing(dataset, split, n, *args, **kwargs):
        drawn.append(n)
        return whole(dataset, split, n, *args, **kwargs)

    monkeypatch.setattr(DrawnDataset, "load", noticing)
    load("creatures", 16, n=2)
    assert drawn == [2]  # not 10,000, of which two are kept


def test_n_out_of_range(tmp_path):
    folder = str(write_folder(tmp_path / "dogs", bilingual(5)))
    with pytest.raises(UserError, match="--n 6 is more than the 5 images of dogs"):
        load(folder, 8, n=6)
    for name in (folder, "digits", "creatures"):
        with pytest.raises(UserError, match="--n must be above 0, not 0"):
            load(name, 16, n=0)


# -------------------------------------------------------------------------------- captions that are not what they seem


def refusal(folder: Path, language: str | None = "en") -> str:
    """What load says where captions are needed; where they are not, it says nothing."""
    assert len(load(str(folder), 8)) > 0
    with pytest.raises(UserError) as problem:
        load(str(folder), 8, language=language) if language else load(str(folder), 8).need_captions()
    assert "\n" not in str(problem.value)
    return str(problem.value)


@pytest.mark.parametrize("language", ["en", None])
@pytest.mark.parametrize("empty", ["", "   ", None])
def test_empty_captions(tmp_path, empty, language):
    rows = [{"text": EN.format(k)} for k in range(6)]
    rows[2]["text"] = rows[4]["text"] = empty
    message = refusal(write_folder(tmp_path / "dogs", rows), language)
    assert (
        "2 of 6 images in the folder" in message
        and "no English caption" in message
        and "the first is 002.png" in message
    )
    assert load(str(tmp_path / "dogs"), 8).captions is None  # for those who can do without


def test_a_language_that_only_some_images_have(tmp_path):
    rows = bilingual(6)
    del rows[5]["text_zh"]
    write_folder(tmp_path / "dogs", rows)
    assert "1 of 6 images" in refusal(tmp_path / "dogs", "zh") and "005.png" in refusal(tmp_path / "dogs", "both")
    assert load(str(tmp_path / "dogs"), 8, language="en").captions[5] == EN.format(5)


def test_text_files_that_are_missing(tmp_path):
    write_folder(tmp_path, bilingual(3))
    (tmp_path / "metadata.jsonl").unlink()
    assert "has no captions; they are looked for in columns named text, caption" in refusal(tmp_path)
    for k in (0, 2):
        # as a Windows editor writes it
        (tmp_path / f"{k:03d}.txt").write_text(f"\ufeff{EN.format(k)}\n", encoding="utf-8")
    assert "1 of 3 images" in refusal(tmp_path) and "the first is 001.png" in refusal(tmp_path)
    (tmp_path / "001.txt").write_text(EN.format(1))
    assert load(str(tmp_path), 8, language="en").captions == tuple(EN.format(k) for k in range(3))


def test_metadata_that_names_files_that_are_not_there(tmp_path):
    write_folder(tmp_path, bilingual(6))
    for k in (1, 4):
        (tmp_path / f"{k:03d}.png").unlink()
    message = refusal(tmp_path)
    assert (
        "2 of 6 files that" in message
        and "metadata.jsonl names are not in" in message
        and "the first is 001.png" in message
    )
    # enough for those who only look
    assert load(str(tmp_path), 8).captions == tuple(EN.format(k) for k in (0, 2, 3, 5))


def test_images_without_a_row(tmp_path):
    write_folder(tmp_path, bilingual(3))
    for name in ("new", "newer"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    message = refusal(tmp_path)
    assert "2 of 5 images have no row in" in message and "the first is new.png" in message
    for name in ("new", "newer"):
        (tmp_path / f"{name}.txt").write_text("a new dog")
    assert load(str(tmp_path), 8, language="en").captions[3:] == ("a new dog", "a new dog")


def test_names_written_in_another_way(tmp_path):
    write_folder(tmp_path, [{"file_name": f"./{k:03d}.png", "text": "a dog"} for k in range(3)])
    raw = (tmp_path / "metadata.jsonl").read_bytes()
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + raw)  # the mark of a Windows editor
    assert load(str(tmp_path), 8, language="en").captions == ("a dog",) * 3


def test_a_csv_with_a_cell_too_large(tmp_path):
    write_folder(tmp_path, [{"text": "a" * (csv.field_size_limit() + 1)}], "csv")
    with pytest.raises(UserError, match="metadata.csv cannot be read .*field larger than field limit"):
        load(str(tmp_path), 8)


# ----------------------------------------------------------------------------------------------------- sets of the hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of our own: hub.sets maps ids to what load_dataset gives, or to an exception;
    hub.asked lists what was asked for.
    """
    import datasets

    class Hub:
        sets, asked, online = {}, [], True

        def load_dataset(self, name, revision=None):
            self.asked.append((name, revision, datasets.config.HF_HUB_OFFLINE))
            found = self.sets.get(name, FileNotFoundError(f"Dataset '{name}' doesn't exist"))
            if isinstance(found, Exception):
                raise found
            return found

    fake = Hub()
    fake.sets, fake.asked = {}, []
    monkeypatch.setattr("datasets.load_dataset", fake.load_dataset)
    monkeypatch.setattr(
        "common.io.hub.unanswered",
        lambda url: fake.asked.append(url) or (None if fake.online else "did not answer within 3 s"),
    )
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return fake


def rows_of(n: int = 12, image: str = "image", **columns):
    """n grey pictures (the k-th has value k) and what else there is, as `datasets` holds it."""
    import datasets

    pictures = [Image.new("RGB", (8, 8), (k, k, k)) for k in range(n)]
    return datasets.Dataset.from_dict({image: pictures} | columns).cast_column(image, datasets.Image())


FIRST, SECOND, THIRD = (hub_id.partition("@") for hub_id in HUB_SETS["pokemon"])


def test_the_names_are_known():
    assert {"pokemon", "butterflies", "oxford_flowers"} == set(HUB_SETS) and set(HUB_SETS) < set(NAMES)


def test_pokemon_from_the_hub(tmp_path, hub):
    words = {"en_text": [EN.format(k) for k in range(12)], "zh_text": [ZH.format(k) for k in range(12)]}
    hub.sets[FIRST[0]] = {"train": rows_of(**words)}
    train = load("pokemon", 8, tmp_path, language="both")
    assert hub.asked == ["https://huggingface.co", (FIRST[0], FIRST[2], False)]
    assert train.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11] and train.name == "pokemon"
    assert train.captions[:2] == (EN.format(0), ZH.format(1)) and train.captions[9] == ZH.format(10)
    test = load("pokemon", 8, tmp_path, "test", language="en")
    assert test.captions == (EN.format(9),) and test.pixels.unique().tolist() == [9]


def test_the_next_id_is_tried(tmp_path, hub):
    """The first is gone, the second has changed its columns."""
    hub.sets[SECOND[0]] = {"train": rows_of(image="scan", text=["a"] * 12)}
    hub.sets[THIRD[0]] = {"train": rows_of(text=["a dog"] * 12)}
    assert load("pokemon", 8, tmp_path, language="en").captions == ("a dog",) * 11
    assert [asked[0] for asked in hub.asked[1:]] == [FIRST[0], SECOND[0], THIRD[0]]
    with pytest.raises(
        UserError, match=rf"{THIRD[0]}.* \(columns image, text\) has no Chinese captions, only English ones"
    ):
        load("pokemon", 8, tmp_path, language="zh")


def test_no_id_can_be_had(tmp_path, hub):
    hub.sets[SECOND[0]] = {"train": rows_of(image="scan", text=["a"] * 12)}
    with pytest.raises(UserError) as problem:
        load("pokemon", 8, tmp_path)
    message = str(problem.value)
    assert (
        f"{FIRST[0]} (Dataset '{FIRST[0]}' doesn't exist)" in message
        and "its columns are scan (PIL.Image.Image), text (string)" in message
        and THIRD[0] in message
    )
    assert f"put a copy in {tmp_path / 'pokemon'}" in message and "HF_ENDPOINT" in message and "\n" not in message


def test_no_network(tmp_path, hub, monkeypatch):
    """What was loaded once is in the hub's cache; else one sentence, at once."""
    hub.online = False
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    with pytest.raises(
        UserError,
        match=r"pokemon is not in .*, not in the hub's cache .*https://mirror.example did not answer within 3 s; put",
    ):
        load("pokemon", 8, tmp_path)
    # datasets asks nobody
    assert hub.asked[0] == "https://mirror.example" and all(offline for _, _, offline in hub.asked[1:])
    hub.sets[SECOND[0]] = {"train": rows_of(text=["a dog"] * 12)}
    assert load("pokemon", 8, tmp_path).captions == ("a dog",) * 11
    import datasets

    assert datasets.config.HF_HUB_OFFLINE is False  # put back


def test_datasets_really_heeds_that_switch(tmp_path, monkeypatch):
    """With the real `datasets`: offline, it neither waits nor asks."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("common.io.hub.unanswered", lambda url: "did not answer")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    with pytest.raises(UserError, match="butterflies is not in .*not in the hub's cache"):
        load("butterflies", 8, tmp_path)


def test_any_set_of_the_hub(hub):
    hub.sets["someone/cats"] = {"train": rows_of(4, "img", prompt=["a cat"] * 4)}
    assert load("hub:someone/cats@v1.0", 8, language="en").captions == ("a cat",) * 4
    assert load("hub:someone/cats", 8).size == 8
    assert hub.asked[1] == ("someone/cats", "v1.0", False) and hub.asked[3] == ("someone/cats", None, False)
    for name in ("hub:cats", "hub:a/b/c", "hub:", "hub:../cats/x"):
        with pytest.raises(UserError, match=f"'{name}' names no set of the hub; type hub:owner/name"):
            load(name)
    with pytest.raises(
        UserError, match=r"a/b is a set of the hub, and could not be had from .*: a/b \(Dataset 'a/b' doesn't exist\)"
    ):
        load("hub:a/b")


def test_labels_and_splits_of_the_hub():
    import datasets

    rows = rows_of(4, label=[1, 0, 1, 2]).cast_column("label", datasets.ClassLabel(names=["rose", "iris", "daisy"]))
    sets = {"train": rows, "test": rows.select([3])}
    train, test = (from_rows("x", "a/b", sets, split, 8) for split in ("train", "test"))
    assert (train.labels.tolist(), train.classes) == (
        [1, 0, 1, 2],
        ("rose", "iris", "daisy"),
    ) and test.labels.tolist() == [2]
    plain = from_rows("x", "a/b", {"train": rows_of(3, label=["wolf", "cat", "wolf"])}, "train", 8)
    assert (plain.labels.tolist(), plain.classes) == ([1, 0, 1], ("cat", "wolf"))
    unknown = rows_of(2, label=[-1, -1]).cast_column("label", datasets.ClassLabel(names=["a"]))
    assert from_rows("x", "a/b", {"train": unknown}, "train", 8).labels is None


def test_a_column_that_only_names_images():
    import datasets

    rows = datasets.Dataset.from_dict({"image": ["http://a/b.png"], "text": ["a"]})
    with pytest.raises(
        UserError,
        match="a/b has no column of images named image, img.* that holds the bytes of picture files; its columns are image \\(string\\), text",
    ):
        from_rows("x", "a/b", {"train": rows}, "train", 8)


def test_an_empty_picture_of_the_hub_is_skipped(capsys):
    rows = rows_of(14, text=[EN.format(k) for k in range(14)])
    rows = rows.map(lambda row, k: {"image": None if k == 3 else row["image"]}, with_indices=True, keep_in_memory=True)
    images = from_rows("x", "a/b", {"train": rows}, "train", 8)
    assert "row 3 of a/b" in capsys.readouterr().err
    assert images.captions == tuple(EN.format(k) for k in images.pixels[:, 0, 0, 0].tolist()) and len(images) == 12


# -------------------------------------------------------------------------------------------------------- local copies


@pytest.fixture
def nobody(monkeypatch):
    monkeypatch.setattr("common.io.hub.unanswered", lambda url: pytest.fail("a local copy needs no network"))


@pytest.mark.parametrize("where", ["pokemon", "data/pokemon", ""])
def test_pokemon_from_a_local_folder(tmp_path, nobody, where):
    write_folder(tmp_path / where, bilingual(12))
    images = load("pokemon", 8, tmp_path, language="zh")
    assert len(images) == 11 and images.captions[0] == ZH.format(0)


def test_flowers_under_their_other_name(tmp_path, nobody):
    write_folder(tmp_path / "flowers", bilingual(3))
    assert len(load("oxford_flowers", 8, tmp_path)) == 3


@pytest.mark.parametrize("by_name", [True, False])
def test_a_local_copy_in_parquet_files(tmp_path, nobody, monkeypatch, by_name):
    """As a download of the whole repository leaves it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "pokemon"
    (folder / "data").mkdir(parents=True)
    rows_of(12, text=["a dog"] * 12).to_parquet(folder / "data/train-00000-of-00001.parquet")
    images = load("pokemon" if by_name else str(folder), 8, tmp_path, language="en")
    assert images.captions == ("a dog",) * 11 and images.pixels[:, 0, 0, 0].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        10,
        11,
    ]
    (folder / "data/train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="the parquet files in .*pokemon cannot be read"):
        load("pokemon", 8, tmp_path)


@pytest.mark.skipif("DIFFUSION_DATA" not in os.environ, reason="set DIFFUSION_DATA to a folder with the real sets")
def test_the_real_pokemon():
    folder = Path(os.environ["DIFFUSION_DATA"])
    train, test = (load("pokemon", 32, folder, split, "both") for split in ("train", "test"))
    assert len(train) > 500 and len(test) == (len(train) + len(test)) // 10
    assert not any(map(mostly_chinese, zip(train.captions[::2]))) and mostly_chinese(train.captions[1::2])


# ---------------------------------------------------------------------------------------------------------------- LMDB


def full(n: int = 7, channels: int = 3) -> Images:
    """Noise with everything an image can have."""
    r = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, channels, 9, 9), generator=r, dtype=torch.uint8)
    attributes = Attributes(torch.arange(n)[:, None] % 2, ("colour",), (("red", "green"),))
    texts = Texts(
        "the folder of full",
        {"en": tuple(map(EN.format, range(n))), "zh": tuple(map(ZH.format, range(n)))},
        tuple(map(str, range(n))),
    )
    return Images("full", pixels, torch.arange(n) % 3, ("a", "b", "c"), texts.need(), attributes, texts)


@pytest.mark.parametrize("channels", [1, 3])
def test_lmdb_gives_back_what_was_written(tmp_path, channels):
    images = full(channels=channels)
    write_lmdb(tmp_path / "deep/er/full.lmdb", {"train": images, "test": images.first(2)})
    assert [path.name for path in (tmp_path / "deep/er").iterdir()] == ["full.lmdb"]  # neither a lock nor a part
    back = load(str(tmp_path / "deep/er/full.lmdb"))
    assert same(images, back) and back.texts == images.texts and back.name == "full"
    assert (back.attributes.names, back.attributes.values) == (images.attributes.names, images.attributes.values)
    assert load(str(tmp_path / "deep/er/full.lmdb"), split="test", language="zh").captions == tuple(
        map(ZH.format, range(2))
    )
    assert load(str(tmp_path / "deep/er/full.lmdb"), 16, n=3).pixels.shape == (3, channels, 16, 16)
    with pytest.raises(UserError, match="full.lmdb has no split 'heldout'; it holds train, test"):
        load(str(tmp_path / "deep/er/full.lmdb"), split="heldout")


def test_a_cache_is_as_good_as_the_set(tmp_path, capsys):
    """Every split of it, and the faults of its captions."""
    rows = bilingual(20)
    rows[4]["text_zh"] = ""
    folder, out = write_folder(tmp_path / "dogs", rows), tmp_path / "dogs.lmdb"
    export_lmdb.main(export_lmdb.Args(str(folder), out, size=8))
    assert "18 train + 2 test images of 8 x 8 pixels, captions: en, zh" in capsys.readouterr().out
    for split in ("train", "test"):
        assert same(load(str(folder), 8, split=split), load(str(out), split=split))
    with pytest.raises(
        UserError, match="1 of 18 images in the folder .*dogs have no Chinese caption .*the first is 004.png"
    ):
        load(str(out), language="both")
    (folder / "000.png").unlink()
    export_lmdb.main(export_lmdb.Args(str(folder), out, size=8))  # written anew, over the old one
    with pytest.raises(UserError, match="1 of 20 files that .* names are not in .*dogs, the first is 000.png"):
        load(str(out), language="en")


def test_sets_without_captions_can_be_cached(tmp_path):
    export_lmdb.main(export_lmdb.Args("digits", tmp_path / "digits.lmdb"))
    assert same(load("digits", split="test"), load(str(tmp_path / "digits.lmdb"), split="test"))
    with pytest.raises(UserError, match="digits has no captions"):
        load(str(tmp_path / "digits.lmdb"), language="en")


def test_creatures_keep_their_languages_and_attributes(tmp_path):
    few = load("creatures", 16, n=3)
    write_lmdb(tmp_path / "few.lmdb", {"train": few})
    for language in (None, "en", "zh", "both"):
        assert same(read_lmdb(tmp_path / "few.lmdb").in_language(language), few.in_language(language))


@pytest.mark.parametrize("keep", [0, 1, 19, 20, 100, 4096, 5000, 8191, 8192, 8193, 20_000, -1])
def test_a_truncated_lmdb(tmp_path, keep):
    """A process of its own for each would be killed by what is not there, did nobody look before."""
    write_lmdb(tmp_path / "a.lmdb", {"train": full(100)})
    raw = (tmp_path / "a.lmdb").read_bytes()
    (tmp_path / "b.lmdb").write_bytes(raw[:keep])
    with pytest.raises(
        UserError,
        match=r"b.lmdb is (no LMDB file|damaged|truncated: \d+ bytes of \d+).*python -m common.data.export_lmdb",
    ):
        load(str(tmp_path / "b.lmdb"))


def test_a_damaged_lmdb(tmp_path):
    write_lmdb(tmp_path / "a.lmdb", {"train": full(100)})
    raw = bytearray((tmp_path / "a.lmdb").read_bytes())
    for match in re.finditer(b"IDAT", bytes(raw)):  # some lie where LMDB has moved on from
        raw[match.end() + 16] ^= 255
    (tmp_path / "b.lmdb").write_bytes(raw)
    with pytest.raises(UserError, match=r"b.lmdb is damaged \(.+\); copy it again"):
        load(str(tmp_path / "b.lmdb"))


def test_files_that_only_look_like_it(tmp_path):
    import lmdb

    (tmp_path / "text.lmdb").write_text("not a database, whatever its name says")
    (tmp_path / "folder.lmdb").mkdir()
    for name, key, value in (
        ("other", b"length", b"3"),
        ("newer", b"header", json.dumps({"format": FORMAT + "1"}).encode()),
    ):
        with (
            lmdb.open(str(tmp_path / f"{name}.lmdb"), subdir=False, lock=False) as file,
            file.begin(write=True) as transaction,
        ):
            transaction.put(key, value)
    reasons = {
        "text": "is no LMDB file",
        "folder": "is a folder",
        "missing": "is missing",
        "other": "is an LMDB file of another kind",
        "newer": "is an LMDB file of another kind",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=f"{name}.lmdb {reason}.*python -m common.data.export_lmdb DATA OUT.lmdb"):
            load(str(tmp_path / f"{name}.lmdb"))


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path, monkeypatch):
    import lmdb

    path = tmp_path / "a.lmdb"
    write_lmdb(path, {"train": full(3)})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            "common.data.sources.lmdb_dataset.to_png", lambda pixels: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            write_lmdb(path, {"train": full(5)})
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(
            UserError, match="cannot write .*a.lmdb .No space left on device.; what was there before is untouched"
        ):
            write_lmdb(path, {"train": full(5)})
    with monkeypatch.context() as patch:
        patch.setattr("lmdb.open", lambda *_, **__: (_ for _ in ()).throw(lmdb.DiskError("full")))
        with pytest.raises(UserError, match="cannot write .*a.lmdb .full"):
            write_lmdb(path, {"train": full(5)})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.lmdb"]
    (tmp_path / "a.lmdb.partial").write_bytes(b"what a killed process left")
    write_lmdb(path, {"train": full(5)})
    assert len(read_lmdb(path)) == 5 and [p.name for p in tmp_path.iterdir()] == ["a.lmdb"]


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("header", "cannot be read back"),
        ("test/image/1", "records are missing"),
        ("train/row/4", "records are missing"),
    ],
)
def test_a_file_that_lost_a_write_is_not_reported_as_written(lost, said, tmp_path, monkeypatch):
    records = lmdb_dataset._records
    monkeypatch.setattr(
        lmdb_dataset, "_records", lambda splits: (record for record in records(splits) if record[0] != lost)
    )
    with pytest.raises(UserError, match=f"cannot write .*a.lmdb: .*{said}"):
        write_lmdb(tmp_path / "a.lmdb", {"train": full(5), "test": full(2)})
    assert not list(tmp_path.iterdir())


def test_where_a_cache_cannot_go(tmp_path):
    with pytest.raises(UserError, match="must end in .lmdb.*cache.lmdb"):
        export_lmdb.main(export_lmdb.Args("digits", tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*a.lmdb"):
        write_lmdb(tmp_path / "file/a.lmdb", {"train": full(1)})


# -------------------------------------------------------------------------------------------------------------- export


def test_what_was_exported_comes_back(tmp_path, capsys):
    """All of it, though folders of others keep every tenth image for testing;
    and the classes that the first few do not show.
    """
    source = write_folder(
        tmp_path / "source",
        [row | {"label": k // 10, "name": f"kind {k // 10}"} for k, row in enumerate(bilingual(40))],
    )
    export_folder.main(export_folder.Args(str(source), tmp_path / "out", size=8, n=25))
    assert f"{tmp_path / 'out'}: 25 images of 8 x 8 pixels" in capsys.readouterr().out
    for language in ("en", "zh", "both"):
        assert same(load(str(source), 8, language=language, n=25), load(str(tmp_path / "out"), 8, language=language))
    assert load(str(tmp_path / "out"), 8).classes == ("kind 0", "kind 1", "kind 2", "kind 3")
    with pytest.raises(UserError, match="out has no split 'test'; the column split of its metadata says train"):
        load(str(tmp_path / "out"), 8, split="test")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_grey_pictures_come_back_grey(tmp_path):
    image_export.export(load("digits", n=30), tmp_path / "digits")
    back = load(str(tmp_path / "digits"), 8)
    assert torch.equal(back.pixels, load("digits", n=30).pixels) and torch.equal(
        back.labels, load("digits", n=30).labels
    )


def test_attributes_can_be_read_in_an_export(tmp_path):
    creatures = load("creatures", 16, n=2)
    image_export.export(creatures, tmp_path / "creatures")
    rows = [
        json.loads(line) for line in (tmp_path / "creatures/metadata.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert all(creatures.attributes.of(k).items() <= row.items() for k, row in enumerate(rows))
    assert load(str(tmp_path / "creatures"), 16, language="both").captions == creatures.captions


def test_an_export_has_a_name_that_is_read_as_a_folder(tmp_path):
    """Refused before anything is loaded: the data named here are nowhere."""
    for name, sentence in (("x.lmdb", "ends in .lmdb, but a folder is written"), (".", "is there already")):
        with pytest.raises(UserError, match=sentence):
            export_folder.main(export_folder.Args("no-such-data", tmp_path / name))


def test_an_export_goes_only_to_a_new_folder(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out is there already"):
        image_export.export(full(2), tmp_path / "out")
    monkeypatch.setattr(
        "common.data.image_export.to_png", lambda pixels: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(UserError, match="cannot write .*new .No space left on device"):
        image_export.export(full(2), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ------------------------------------------------------------------------------------------------- the house around it


def test_every_tenth():
    assert [i for i in range(25) if in_split(i, 25, "test")] == [9, 19] and sum(
        in_split(i, 25, "train") for i in range(25)
    ) == 23
    assert all(in_split(i, 9, split) for i in range(9) for split in ("train", "test"))


def test_no_column_stands_for_two_languages():
    assert not set(COLUMNS["en"]) & set(COLUMNS["zh"])


def test_nothing_heavy_is_imported_before_it_is_needed():
    for path in (ROOT / "common/data").rglob("*.py"):
        top = [
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module.split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
        assert not names & {"datasets", "lmdb", "huggingface_hub", "sklearn"}, path
