"""What creatures and dishes share: the same picture wherever it is drawn, loading, refusals, and the sheets."""

import re
import runpy
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import load
from common.data.creatures import attributes as creature_attributes
from common.data.creatures import program as creature_program
from common.data.creatures.dataset import CREATURE_IMAGES
from common.data.dishes import attributes as dish_attributes
from common.data.dishes import program as dish_program
from common.data.dishes.dataset import DISH_IMAGES
from common.data.drawn import LENGTH, DrawnDataset
from common.errors import UserError


class Case(NamedTuple):
    set: DrawnDataset
    attributes: ModuleType
    program: ModuleType

    def drawn(self, seed: int, split: str, index: int, size: int) -> np.ndarray:
        attributes, pose = self.set.sample(seed, split, index)
        return self.set.draw(attributes, size, pose)


CASES = [
    Case(CREATURE_IMAGES, creature_attributes, creature_program),
    Case(DISH_IMAGES, dish_attributes, dish_program),
]


@pytest.fixture(params=CASES, ids=lambda case: case.set.name)
def case(request) -> Case:
    return request.param


# ------------------------------------------------------------------------------------------------------------- the set


def test_a_picture_depends_on_seed_split_and_index_alone(case):
    few, many = case.set.load(n=5, size=16, seed=3), case.set.load(n=12, size=16, seed=3)
    assert torch.equal(few.pixels, many.pixels[:5]) and few.captions == many.captions[:5]
    assert torch.equal(few.attributes.table, many.attributes.table[:5])
    for i in (11, 0, 7):  # in any order, alone
        assert np.array_equal(case.drawn(3, "train", i, 16), many.pixels[i].numpy())
    for seed, split in ((4, "train"), (3, "test"), (3, "heldout")):
        assert not torch.equal(case.set.load(split, 5, 16, seed).attributes.table, few.attributes.table)


def test_no_global_random_state_is_read_or_changed(case):
    np.random.seed(1)
    before, image = np.random.get_state()[1].copy(), case.drawn(0, "train", 1, 16)
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    assert np.array_equal(case.drawn(0, "train", 1, 16), image)


def test_rows_and_names_are_inverse(case):
    for i in range(20):
        attributes = case.set.sample(1, "test", i)[0]
        assert case.set.to_names(case.set.to_row(attributes)) == attributes
        assert tuple(attributes) == case.attributes.NAMES


def test_languages_are_mixed_half_and_half(case):
    both, en, zh = (case.set.load(n=8, size=16, language=language) for language in ("both", "en", "zh"))
    assert both.captions == tuple((en if i % 2 == 0 else zh).captions[i] for i in range(8))
    assert all(text.isascii() for text in en.captions) and not any(re.search("[a-z]", text) for text in zh.captions)
    assert torch.equal(en.pixels, zh.pixels)  # a language changes no picture


# ------------------------------------------------------------------------------------------------------------- loading


def test_load_by_name(monkeypatch, case):
    for split in LENGTH:
        monkeypatch.setitem(LENGTH, split, 6)
    name, held_out = case.set.name, case.attributes.is_held_out
    train, large, test = load(name), load(name, 48), load(name, split="test")
    assert train.pixels.shape == (6, 3, case.set.size, case.set.size)
    assert train.pixels.dtype == torch.uint8 and len(train.captions) == 6
    assert np.array_equal(large.pixels[2].numpy(), case.drawn(0, "train", 2, 48))  # drawn at this size, not enlarged
    assert not torch.equal(train.attributes.table, test.attributes.table)
    heldout = load(name, 16, split="heldout", language="zh", n=3)
    assert len(heldout) == 3 and all(held_out(heldout.attributes.of(i)) for i in range(3))
    assert heldout.captions == tuple(case.set.caption(0, "heldout", i, "zh") for i in range(3))


def test_the_usual_lengths_and_sizes():
    assert LENGTH == {"train": 10_000, "test": 1_000, "heldout": 1_000}
    assert (CREATURE_IMAGES.size, DISH_IMAGES.size) == (32, 64)


def test_attributes_stay_with_their_images(case):
    data = case.set.load(n=4, size=16)
    assert (
        data.attributes.table.shape == (4, len(case.attributes.NAMES)) and data.attributes.table.dtype == torch.int64
    )
    assert data.attributes.of(2) == case.set.sample(0, "train", 2)[0]
    small = data.resized(8)
    assert (
        small.pixels.shape == (4, 3, 8, 8) and small.attributes is data.attributes and small.captions == data.captions
    )
    assert load("digits").attributes is None


def test_the_label_of_a_dish():
    data = DISH_IMAGES.load(n=4, size=16)
    names = [DISH_IMAGES.sample(0, "train", i)[0]["dish"] for i in range(4)]
    assert [data.classes[i] for i in data.labels.tolist()] == names
    creatures = CREATURE_IMAGES.load(n=1, size=16)
    assert creatures.labels is None and creatures.classes == ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"split": "valid"}, "no split 'valid'; choose one of train, test, heldout"),
        ({"size": 15}, "--size of {name} must be 16 to 256 pixels, not 15"),
        ({"size": 257}, "16 to 256 pixels, not 257"),
        ({"language": "fr"}, "unknown language 'fr'; choose one of en, zh, both"),
        ({"n": 0}, "--n must be above 0"),
        ({"seed": -1}, "--seed must be 0 or more"),
    ],
)
def test_what_cannot_be_drawn(case, wrong, message):
    with pytest.raises(UserError, match=message.format(name=case.set.name)):
        case.set.load(**{"n": 1, "size": 16} | wrong)
    with pytest.raises(UserError, match="no split 'all'"):
        case.set.sample(0, "all", 0)


# --------------------------------------------------------------------------------------------------------- the command


def test_the_sheet(tmp_path, capsys, case):
    flags = {"n": 6, "size": 20, "columns": 3, "seed": 4, "split": "heldout", "captions": True, "language": "zh"}
    mention = None
    if case.set is DISH_IMAGES:
        flags, mention = flags | {"name_only": True}, ()
    main: Callable = case.program.main
    main(case.program.Args(**flags, out=tmp_path / "a/sheet.png"))
    picture = np.asarray(Image.open(tmp_path / "a/sheet.png"))
    assert picture.shape == (2 * 22 + 2, 3 * 22 + 2, 3)
    assert np.array_equal(picture[24:44, 46:66].transpose(2, 0, 1), case.drawn(4, "heldout", 5, 20))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[5].split(maxsplit=1) == ["6", case.set.caption(4, "heldout", 5, "zh", mention)]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_command_line(tmp_path, monkeypatch, capsys, case):
    """`python -m common.data.creatures` in this process: a good call, and one that cannot be drawn."""
    monkeypatch.setattr("warnings.showwarning", None)  # cli.run replaces it; this puts it back after the test
    command = [case.set.name, "--n", "2", "--out", str(tmp_path / "sheet.png"), "--size"]
    monkeypatch.setattr(sys, "argv", [*command, "8"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module(f"common.data.{case.set.name}", run_name="__main__", alter_sys=True)
    error = capsys.readouterr().err
    assert error.startswith(f"error: --size of {case.set.name} must be 16 to 256 pixels, not 8")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", [*command, "16"])
    runpy.run_module(f"common.data.{case.set.name}", run_name="__main__", alter_sys=True)
    assert (tmp_path / "sheet.png").exists()


def test_every_public_function_is_explained(case):
    for function in (case.set.sample, case.set.caption, case.set.load, case.set.draw, case.set.describe):
        assert function.__doc__
