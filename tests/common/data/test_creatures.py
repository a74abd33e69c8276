"""Creatures: the same one wherever it is drawn, every attribute visible, and no caption that says what is not so."""

import itertools
import re

import numpy as np
import pytest

from common.data.creatures.attributes import ATTRIBUTES, COMBINATIONS, NAMES, NEVER_TOGETHER, VALUES, is_held_out
from common.data.creatures.canvas import Canvas
from common.data.creatures.captions import describe
from common.data.creatures.dataset import CREATURE_IMAGES, caption, creature
from common.data.creatures.draw import BUILDS, GROUND, POSE, SCALE, draw
from common.data.creatures.shapes import box, capsule, circle, ellipse, polygon, ring, rope, turned
from common.data.drawn import LENGTH
from common.errors import UserError
from helpers.creature_captions import claims, is_true

PLAIN = {
    "colour": "orange", "body": "round", "element": "water", "tail": "none", "ears": "none", "wings": "none", "horns": "none",
    "pattern": "plain", "eyes": "two", "mood": "happy", "background": "sky",
}  # fmt: skip


def drawn(seed: int, split: str, index: int, size: int) -> np.ndarray:
    attributes, pose = creature(seed, split, index)
    return draw(attributes, size, pose)


def shrunk(image: np.ndarray, size: int) -> np.ndarray:
    factor = image.shape[-1] // size
    return image.reshape(3, size, factor, size, factor).mean((2, 4))


# ------------------------------------------------------------------------------------------------------------- the set


def test_the_set_is_the_one_that_was_published():
    """Shipped weights were trained on these: whoever changes the order of random draws must notice."""
    attributes, pose = creature(0, "train", 0)
    assert list(attributes.values()) == [
        "red",
        "round",
        "rock",
        "bushy",
        "rabbit",
        "feathered",
        "antennae",
        "spots",
        "three",
        "sleepy",
        "rose",
    ]
    assert pose[:2] == pytest.approx([0.63696169, 0.26978671], abs=1e-8)
    assert (
        caption(0, "train", 1, "en")
        == "a happy pear-shaped two-eyed pink monster with cat ears, surrounded by water drops"
    )
    assert caption(0, "train", 1, "zh") == "一只开心的粉色梨形怪兽，长着两只眼睛和猫耳朵，身边有水滴"


def test_there_are_very_many_of_them():
    assert COMBINATIONS == np.prod([len(v) for v in VALUES]) >= 100_000
    rows = [tuple(CREATURE_IMAGES.to_row(creature(0, "train", i)[0])) for i in range(2000)]
    assert len(set(rows)) > 1990
    for k, values in enumerate(VALUES):  # each value as often as the others; colours and elements lose a tenth each
        counts = np.bincount([row[k] for row in rows], minlength=len(values))
        assert counts.min() > 0.75 * 2000 / len(values), NAMES[k]


def test_a_tenth_of_all_combinations_is_held_out():
    pairs = list(itertools.product(ATTRIBUTES["colour"], ATTRIBUTES["element"]))
    held = [(c, e) for c, e in pairs if is_held_out({**PLAIN, "colour": c, "element": e})]
    assert len(held) / len(pairs) == 0.1 and sorted(e for _, e in held) == sorted(ATTRIBUTES["element"])
    assert set(NEVER_TOGETHER) == set(ATTRIBUTES["element"]) and set(NEVER_TOGETHER.values()) <= set(
        ATTRIBUTES["colour"]
    )
    assert ("blue", "fire") in held


def test_held_out_combinations_are_only_in_their_split():
    pairs = {
        split: {(a["colour"], a["element"]) for a in (creature(0, split, i)[0] for i in range(600))}
        for split in LENGTH
    }
    unseen = {(colour, element) for element, colour in NEVER_TOGETHER.items()}
    assert not pairs["train"] & unseen and not pairs["test"] & unseen
    assert pairs["heldout"] == unseen
    assert len(pairs["train"]) == 72  # all other pairs are trained on


# -------------------------------------------------------------------------------------------------------- the pictures


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_same_creature_at_every_size(size):
    """The large picture made small is the small picture: only the smoothing of edges differs."""
    for i in range(4):
        small = shrunk(drawn(6, "train", i, 256).astype(float), size)
        assert np.abs(small - drawn(6, "train", i, size)).mean() < 3
        assert np.abs(small - drawn(6, "train", i + 9, size)).mean() > 25


def test_odd_sizes():
    for size in (17, 33, 63, 65):
        image = drawn(0, "train", 0, size)
        assert image.shape == (3, size, size) and image.dtype == np.uint8 and len(np.unique(image)) > 50


# Where an attribute shows at 32 x 32 (rows, columns), and how many pixels it changes clearly, whatever its two values.
SHOWS = {
    "colour": (slice(2, 31), slice(2, 32), 100),
    "body": (slice(0, 31), slice(0, 32), 15),
    "element": (slice(0, 32), slice(0, 32), 60),
    "tail": (slice(13, 30), slice(20, 32), 18),
    "ears": (slice(0, 25), slice(1, 31), 22),
    "wings": (slice(7, 26), slice(0, 32), 22),
    "horns": (slice(0, 15), slice(8, 24), 16),
    "pattern": (slice(6, 29), slice(5, 27), 22),
    "eyes": (slice(8, 27), slice(6, 26), 30),
    "mood": (slice(8, 27), slice(6, 26), 22),
    "background": (slice(0, 32), slice(0, 32), 100),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_attribute_is_plainly_visible(name):
    """Two creatures that differ in this attribute alone differ in many pixels, and only where it belongs."""
    rows, columns, enough = SHOWS[name]
    for i in range(5):
        attributes, pose = creature(5, "train", i)
        images = {value: draw({**attributes, name: value}, 32, pose).astype(int) for value in ATTRIBUTES[name]}
        for a, b in itertools.combinations(images, 2):
            changed = np.abs(images[a] - images[b]).max(0) > (16 if name == "background" else 40)
            assert changed.sum() >= enough, f"{a} and {b} look alike"
            assert changed[rows, columns].sum() > 0.97 * changed.sum(), f"{a} and {b} differ outside of the {name}"


def test_an_element_is_a_motif_and_leaves_the_creature_alone():
    images = [draw({**PLAIN, "element": element}, 32).astype(int) for element in ATTRIBUTES["element"]]
    for a, b in itertools.combinations(images, 2):
        assert np.array_equal(a[:, 8:22, 8:24], b[:, 8:22, 8:24])  # face and belly
        for corner in (np.s_[:, 23:, :10], np.s_[:, 23:, 24:], np.s_[:, :10, :8], np.s_[:, :10, 24:]):
            assert (np.abs(a[corner] - b[corner]).max(0) > 40).sum() >= 3


HUES = {  # red, green, blue of the skin, about
    "red": (220, 50, 50), "orange": (240, 130, 35), "yellow": (240, 205, 60), "green": (85, 175, 80), "blue": (65, 120, 225),
    "purple": (145, 80, 195), "pink": (240, 140, 185), "brown": (140, 95, 60), "white": (240, 238, 236), "black": (62, 62, 72),
}  # fmt: skip


@pytest.mark.parametrize("body", ATTRIBUTES["body"])
def test_colours_are_what_they_are_called(body):
    row = round(64 * (1 - GROUND - SCALE * (BUILDS[body].top - 0.05)))  # of the forehead
    for colour, rgb in HUES.items():
        forehead = draw({**PLAIN, "body": body, "colour": colour}, 64)[:, row : row + 2, 32:36].mean((1, 2))
        nearest = min(HUES, key=lambda name: np.abs(forehead - HUES[name]).sum())
        assert nearest == colour and np.abs(forehead - rgb).max() < 45


def test_backgrounds_are_pale_and_told_apart():
    edges = {b: draw({**PLAIN, "background": b}, 64)[:, 24:30, :2].mean((1, 2)) for b in ATTRIBUTES["background"]}
    assert all(edge.mean() > 200 for edge in edges.values())
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(edges.values(), 2)) > 20


def test_what_is_symmetrical_is_symmetrical():
    """In the neutral pose the part above the feet, face and tail aside, is its own mirror image but for the light."""
    image = draw({**PLAIN, "ears": "rabbit", "wings": "bat", "horns": "two"}, 64).astype(int)
    wings = image[:, 24:40, :10]
    assert np.abs(wings - image[:, 24:40, :-11:-1]).mean() < 2


def test_the_pose_varies_every_number_of_it_and_no_more_than_gently():
    middle = draw(PLAIN, 64).astype(int)
    assert np.array_equal(middle, draw(PLAIN, 64, [0.5] * POSE))
    for k in range(POSE):
        moved = [
            np.abs(draw(PLAIN, 64, [0.5] * k + [end] + [0.5] * (POSE - k - 1)) - middle).mean() for end in (0, 0.999)
        ]
        assert 0 < max(moved) < 20, k  # one end may be cut off, where a colour is as bright as can be


def test_painting_only_a_part_changes_nothing(monkeypatch):
    """Parts are painted on small pieces of the picture to be quick; the pieces must be large enough."""
    quick = [drawn(3, split, i, 48) for split in ("train", "heldout") for i in range(25)]
    monkeypatch.setattr(Canvas, "crop", lambda self, wide, high: self)
    slow = [drawn(3, split, i, 48) for split in ("train", "heldout") for i in range(25)]
    assert all(np.array_equal(a, b) for a, b in zip(quick, slow, strict=True))


# ------------------------------------------------------------------------------------------------------------- shapes


def test_distances():
    x, y = np.array([0.0, 3.0, 0.0]), np.array([0.0, 4.0, 2.0])
    assert circle(x, y, 2).tolist() == [-2, 3, 0]
    assert box(x, y, 3, 2, 0).tolist() == [-2, 2, 0]
    assert box(np.array([3.0]), np.array([2.0]), 3, 2, 1) == pytest.approx(np.sqrt(2) - 1)  # the corner is cut
    assert capsule(x, y, (0, 0), (0, 2), 1, 1) == pytest.approx([-1, np.sqrt(13) - 1, -1])
    assert capsule(x, y, (0, 0), (0, 2), 1, 0.5)[2] == -0.5
    assert rope(x, y, [(0, 0), (3, 0), (3, 4)], 1, 0.25)[:2].tolist() == [-1, -0.25]
    assert ring(x, y, 2, 1).tolist() == [1.5, 2.5, -0.5]
    assert ellipse(np.array([3.0, 0.0]), np.array([0.0, 1.0]), 3, 1) == pytest.approx([0, 0], abs=1e-6)
    square = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    for points in (square, square[::-1]):
        assert polygon(x, y, points) == pytest.approx([-1, np.sqrt(13), 1])
    assert np.allclose(turned(np.array([0.0]), np.array([1.0]), 90), [[1], [0]])


def test_edges_are_one_pixel_wide():
    canvas = Canvas.blank(8)
    assert (canvas.x[0, 0], canvas.y[0, 0], canvas.pixel) == (0.0625, 0.9375, 0.125)  # y goes up
    assert canvas.cover(np.array([-1.0, -0.0625, 0.0, 0.0625, 1.0])).tolist() == [1, 1, 0.5, 0, 0]
    canvas.fill(canvas.x - 0.5, (1.0, 0.5, 0.0), opacity=0.5)
    assert canvas.rgb[:, 0, 0].tolist() == [0.5, 0.25, 0] and canvas.rgb[:, 0, 7].tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------------------------------ captions


def test_the_reader_of_captions_reads():
    """The judge of the next tests is itself judged, on sentences written here."""
    said = claims(
        "a happy little fire creature with two horns but without wings or a tail, on a sky blue background", "en"
    )
    assert said == {
        ("mood", "happy"),
        ("element", "fire"),
        ("horns", "two"),
        ("wings", "none"),
        ("tail", "none"),
        ("background", "sky"),
    }
    assert claims("一只蓝色小怪兽，有一对触角，没有角和触角，淡紫色背景", "zh") == {
        ("colour", "blue"),
        ("horns", "antennae"),
        ("horns", "none"),
        ("background", "lilac"),
    }
    with pytest.raises(AssertionError, match="what is 'hat'"):
        claims("a red creature with a hat", "en")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_captions_say_only_what_is_true(language):
    silent = set(NAMES)
    for i in range(400):
        said = claims(caption(8, "train", i, language), language)
        assert said and all(is_true(claim, creature(8, "train", i)[0]) for claim in said)
        silent &= set(NAMES) - {name for name, _ in said}
    assert not silent  # each attribute is spoken of in some caption


@pytest.mark.parametrize("language", ["en", "zh"])
def test_plain_words_are_said_with_and_without_negation(language):
    """A model that reads "wings" only in "without wings" draws none when it is asked for wings (measured once: 0 of 16)."""
    captions = [claims(caption(0, "train", i, language), language) for i in range(2000)]
    for name in ("wings", "ears", "horns", "tail", "pattern"):
        absent = "plain" if name == "pattern" else "none"
        assert sum((name, "any") in said for said in captions) >= 80, name
        assert sum((name, absent) in said for said in captions) >= 40, name


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_value_is_said_as_it_is(language):
    """All values of all attributes, in every wording: exactly what was to be mentioned, and nothing else."""
    for k, name in enumerate(NAMES):
        for value in ATTRIBUTES[name]:
            for i in range(25):
                rng = np.random.default_rng([k, i])
                attributes = {**creature(2, "test", i)[0], name: value}
                mention = [name, *(NAMES[j] for j in (rng.random(3) * len(NAMES)).astype(int))]
                assert claims(describe(attributes, language, rng, mention), language) == {
                    (n, attributes[n]) for n in mention
                }


@pytest.mark.parametrize("language", ["en", "zh"])
def test_another_table_makes_another_caption(language):
    for name, values in ATTRIBUTES.items():
        texts = {describe({**PLAIN, name: value}, language, np.random.default_rng(0), NAMES) for value in values}
        assert len(texts) == len(values), name


@pytest.mark.parametrize("language", ["en", "zh"])
def test_captions_vary(language):
    a = {**PLAIN, "wings": "feathered"}
    assert (
        len({describe(a, language, np.random.default_rng(i), ("colour", "wings", "element")) for i in range(100)}) > 15
    )
    lengths = [len(claims(caption(0, "train", i, language), language)) for i in range(100)]
    assert min(lengths) <= 4 and max(lengths) >= 8  # some leave much out


def test_english_articles():
    texts = [caption(0, "train", i, "en") for i in range(500)]
    assert not [t for t in texts if re.search(r"\ba (?:[aeiu]|o(?!ne))|\ban (?:[^aeio]|one)|\s[,;]|  ", t)]
    assert any(t.startswith("an ") for t in texts) and any(t.startswith("a one-eyed") for t in texts)


def test_a_creature_of_which_nothing_was_to_be_said():
    class Silent:
        def random(self, n=None):
            return 0.999 if n is None else np.full(n, 0.999)

    assert describe(PLAIN, "zh", Silent()) == "橙色，小怪物"


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_creature_of_no_kind():
    """A wrong value must not be left out in silence, as if the part were not there."""
    for wrong in ({"wings": "eagle"}, {"pattern": None}):
        for use in (
            lambda a: draw(a, 16),
            CREATURE_IMAGES.to_row,
            lambda a: describe(a, "en", np.random.default_rng(0)),
        ):
            with pytest.raises(
                UserError, match=r"(wings|pattern) of a creature must be one of (none|plain), .*, not '(eagle|None)'"
            ):
                use({**PLAIN, **wrong})
    with pytest.raises(UserError, match="background of a creature must be one of cream, .*, not 'None'"):
        draw({name: PLAIN[name] for name in NAMES if name != "background"}, 16)


def test_what_cannot_be_described():
    with pytest.raises(UserError, match="unknown language 'both'"):
        describe(PLAIN, "both", np.random.default_rng(0))
    with pytest.raises(UserError, match="no attribute 'hat'; it has colour"):
        describe(PLAIN, "en", np.random.default_rng(0), ("colour", "hat"))
