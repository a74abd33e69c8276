"""The judge of creatures, and the programs of chapter 2 that ask it: guidance measured, memorising measured."""

import csv
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cfg_pokemon import evaluation, memorization
from common.data.creatures.attributes import NAMES, VALUES, is_held_out
from common.data.creatures.dataset import CREATURE_IMAGES, caption, creature, load_creatures, mentioned
from common.data.drawn import LENGTH
from common.diffusion.schedules import make_schedule
from common.errors import UserError
from common.evaluate.classifiers import save_weights
from common.evaluate.creature_classifier import (
    CREATURE_WEIGHTS,
    FEATURES,
    KINDS,
    SIZE,
    accuracies,
    accuracy,
    all_right,
    chance,
    classify,
    corrupt,
    load_creature_classifier,
    mentioned_table,
    preprocess,
    read_attributes,
    training_set,
)
from common.evaluate.prompt_accuracy import VARIANTS, chance_accuracy, make_prompts, pooled_accuracy
from common.evaluate.train_creature_classifier import Args, main
from common.io.pixels import to_bytes, to_float
from common.io.tables import read_csv
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.text.encoders import small_text
from common.models.text_to_image_folder import open_pixel_pipeline, save_pipeline
from common.models.unet import UNet
from common.models.unet_config import UNetConfig
from common.random import generator
from helpers.creature_captions import claims

EVALUATE, MEMORIZATION = "02_cfg_pokemon/evaluate.py", "02_cfg_pokemon/memorization.py"


@pytest.fixture(scope="module")
def judge():
    return load_creature_classifier()


@pytest.fixture(scope="module")
def creatures():
    """Split -> 100 creatures that the judge never saw."""
    return {split: load_creatures(split, 100) for split in ("test", "heldout")}


@pytest.fixture(scope="module")
def prompts():
    return make_prompts("test", 30, "both", SIZE, evaluation.WITH_VARIANTS)


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    """A model that has learned nothing, 16 x 16 pixels."""
    torch.manual_seed(0)
    encoder = small_text([caption(0, "train", i) for i in range(40)], dim=16, layers=1, heads=2, length=32)
    cfg = UNetConfig(
        size=16,
        in_channels=3,
        out_channels=3,
        channels=(8, 16),
        attention=(False, True),
        heads=(2, 2),
        text_dim=16,
        groups=4,
    )
    folder = tmp_path_factory.mktemp("painter") / "model"
    save_pipeline(folder, TextToImagePipeline(UNet(cfg), make_schedule("cosine"), "v", encoder, clip_x0=True))
    return folder


# ----------------------------------------------------------------------------------------------------------- the judge


@pytest.mark.parametrize("split", ["test", "heldout"])
def test_the_judge_knows_creatures_that_it_never_saw(judge, creatures, split):
    data = creatures[split]
    read, probability = read_attributes(judge, to_float(data.pixels))
    assert read.shape == probability.shape == (100, 11) and read.dtype == torch.int64
    right = accuracies(read, data.attributes.table)
    assert float(right.mean()) > 0.97 and float(right.min()) > 0.85
    assert float(probability[read == data.attributes.table].mean()) > 0.95
    wrong = read != data.attributes.table
    # it knows when it guesses
    assert not wrong.any() or float(probability[wrong].mean()) < float(probability[~wrong].mean())


def test_the_judge_forgives_what_generated_pictures_look_like(judge, creatures):
    data = creatures["test"]
    assert (
        accuracy(read_attributes(judge, corrupt(to_float(data.pixels), generator(5)))[0], data.attributes.table) > 0.96
    )


def test_a_held_out_pair_is_judged_by_the_picture_alone(judge, creatures):
    """A judge without held-out creatures in its training might deny what it had never seen:
    here colour and element are as sure.
    """
    k = [NAMES.index("colour"), NAMES.index("element")]
    for data in creatures.values():
        assert accuracy(read_attributes(judge, data.pixels)[0][:, k], data.attributes.table[:, k]) > 0.985


def test_the_judge_at_other_sizes(judge):
    for size, least in ((64, 0.97), (48, 0.95)):
        data = load_creatures("test", 20, size)
        assert accuracy(read_attributes(judge, data.pixels)[0], data.attributes.table) > least, size


def test_bytes_and_floats_are_judged_alike(judge, creatures):
    pixels = creatures["test"].pixels[:8]
    (features, probabilities), (again, _) = classify(judge, pixels), classify(judge, to_float(pixels), batch=3)
    assert features.shape == (8, FEATURES) and [p.shape for p in probabilities] == [(8, kinds) for kinds in KINDS]
    torch.testing.assert_close(features, again, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(probabilities[0].sum(1), torch.ones(8))
    assert preprocess(5 * to_float(pixels)).abs().max() == 1  # what leaves the range is seen as it would be saved
    with pytest.raises(UserError, match=r"RGB images \(N, 3, S, S\), not \(8, 1, 32, 32\)"):
        classify(judge, pixels[:, :1])


def test_the_weights_are_small_and_half_precision(judge, tmp_path):
    assert CREATURE_WEIGHTS.stat().st_size < 700_000
    assert {v.dtype for v in load_file(CREATURE_WEIGHTS).values() if v.is_floating_point()} == {torch.float16}
    save_weights(judge, tmp_path / "again.safetensors")
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            judge.state_dict().values(),
            load_creature_classifier(tmp_path / "again.safetensors").state_dict().values(),
            strict=True,
        )
    )
    (tmp_path / "half.safetensors").write_bytes(CREATURE_WEIGHTS.read_bytes()[:1000])
    for broken in ("half.safetensors", "missing.safetensors"):
        with pytest.raises(
            UserError,
            match=f"{broken}, cannot be loaded .* train it again: python -m common.evaluate.train_creature_classifier",
        ):
            load_creature_classifier(tmp_path / broken)


def test_the_training_set_holds_every_combination_and_none_of_the_test_creatures(creatures):
    pixels, table = training_set(60, seed=1)
    assert pixels.shape == (60, 3, SIZE, SIZE) and table.shape == (60, 11)
    assert sum(is_held_out(CREATURE_IMAGES.to_names(row)) for row in table) == 6
    for split in creatures:
        assert not any(torch.equal(a, b) for a in creatures[split].pixels for b in pixels)


def test_corruption_is_mild_and_different_for_each(creatures):
    x = to_float(creatures["test"].pixels[:1]).expand(60, -1, -1, -1)
    corrupted = corrupt(x, generator(1))
    assert corrupted.shape == x.shape and corrupted.abs().max() <= 1
    assert torch.equal(corrupted, corrupt(x, generator(1))) and not torch.equal(corrupted, corrupt(x, generator(2)))
    moved = (corrupted - x).square().mean((1, 2, 3)).sqrt()
    assert moved.unique().numel() == 60 and 0.05 < moved.mean() < 0.4 < 2 * (x - x.mean()).std()


def test_the_judges_program(tmp_path, monkeypatch, capsys):
    for split in LENGTH:
        monkeypatch.setitem(LENGTH, split, 20)
    main(Args(check_only=True))
    out = capsys.readouterr().out
    assert all(word in out for word in ("heldout, corrupted", "mood", "mean"))
    weights = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="is below the 98% that evaluations need"):  # it learned next to nothing
        main(Args(weights, n=40, epochs=1, batch_size=16))
    assert not weights.exists()
    for wrong, said in (
        ({"seed": 0}, "seed 0 draws the creatures that the classifier is tested on"),
        ({"n": 100}, "100 creatures do not fill a batch of 128"),
    ):
        with pytest.raises(UserError, match=said):
            main(Args(weights, **wrong))
    with pytest.raises(UserError, match=r"w.safetensors, cannot be loaded"):
        main(Args(weights, check_only=True))


# ---------------------------------------------------------------------------------------------- what captions speak of


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("split", ["test", "heldout"])
def test_mentioned_is_what_a_reader_finds_in_the_caption(split, language):
    """The reader of test_creatures, written without a look at the program that writes captions."""
    for i in range(150):
        attributes = creature(0, split, i)[0]
        said = claims(caption(0, split, i, language), language)
        assert {claim for claim in said if claim[1] != "any"} == {
            (name, attributes[name]) for name in mentioned(0, split, i)
        }


def test_mentioned_depends_on_its_place_alone():
    assert mentioned(3, "test", 5) == mentioned(3, "test", 5) and mentioned(3, "test", 5)
    assert len({tuple(mentioned(3, "test", i)) for i in range(30)}) > 20
    table = mentioned_table([mentioned(3, "test", i) for i in range(4)])
    assert table.shape == (4, 11) and [NAMES[k] for k in table[2].nonzero().flatten()] == mentioned(3, "test", 2)


# ---------------------------------------------------------------------------------------------------------- the shares


def test_shares_by_hand():
    wanted = torch.zeros(2, 11, dtype=torch.int64)
    read, said = wanted.clone(), torch.zeros(2, 11, dtype=torch.bool)
    read[0, 0] = read[1, 1] = 1  # two mistakes, one of them nobody asked about
    said[0, :4] = said[1, 2:6] = True
    assert accuracy(read, wanted, said) == 7 / 8 and accuracy(read, wanted) == 20 / 22
    each = accuracies(read, wanted, said)
    assert each[:6].tolist() == [0, 1, 1, 1, 1, 1] and each[6:].isnan().all()
    assert all_right(read, wanted, said).tolist() == [False, True] and not all_right(read, wanted).any()
    # each picture with the other's caption: the second is right about colour, the first about all that the second asks
    # for
    assert chance(read, wanted, said)[:6].tolist() == [1, 0, 1, 1, 1, 1]


def test_chance_is_what_shuffled_pictures_get(creatures):
    table = creatures["test"].attributes.table
    said = mentioned_table([mentioned(0, "test", i) for i in range(100)])
    rolled = torch.stack([accuracies(table.roll(shift, 0), table, said) for shift in range(1, 100)]).mean(0)
    torch.testing.assert_close(chance(table, table, said), rolled)
    assert 0.05 < float(chance(table, table, said)[0]) < 0.15  # ten colours


def test_perfect_pictures_are_perfect_and_shuffled_ones_are_at_chance(judge, prompts):
    perfect = evaluation.measure(judge, prompts, prompts.real, prompts.variants)
    shuffled = evaluation.measure(judge, prompts, prompts.real.roll(7, 0), prompts.variants)
    expected = chance_accuracy(judge, prompts)["accuracy"]
    assert perfect["accuracy"] > 0.97 and perfect["pair"] > 0.95 and perfect["all_right"] > 0.7
    assert perfect["accuracy_low"] <= perfect["accuracy"] <= perfect["accuracy_high"] <= 1
    assert shuffled["accuracy"] == pytest.approx(expected, abs=0.12) and shuffled["accuracy_high"] < 0.5
    assert shuffled["pair"] < 0.2 and shuffled["brightness"] == pytest.approx(perfect["brightness"], abs=1e-6)


def test_darker_paler_and_uniform_pictures_are_told(judge, prompts):
    real, dark = prompts.real, prompts.real // 2
    grey = real.float().mean(1, keepdim=True).expand_as(real).to(torch.uint8)
    plain, darker, pale = (evaluation.measure(judge, prompts, p, prompts.variants) for p in (real, dark, grey))
    assert darker["brightness"] == pytest.approx(plain["brightness"] / 2, abs=0.01)
    assert pale["saturation"] == 0 < plain["saturation"] and pale["brightness"] == pytest.approx(
        plain["brightness"], abs=0.01
    )
    assert (
        evaluation.measure(judge, prompts, real, prompts.variants[:1].expand_as(prompts.variants))["diversity"]
        == 0
        < plain["diversity"]
    )
    assert evaluation.measure(judge, prompts, torch.full_like(real, 255), prompts.variants)["burnt"] == 1


def test_every_colour_measure_has_the_interval_of_its_images(judge, prompts):
    """Half of each interval is about 1.96 standard errors; that of the diversity is one over prompts."""
    row, values = evaluation.measure(judge, prompts, prompts.real, prompts.variants), prompts.real.double() / 255
    each = {"brightness": values.mean((1, 2, 3)), "saturation": (values.amax(1) - values.amin(1)).mean((1, 2))}
    for name, some in each.items():
        half = 1.96 * float(some.std()) / len(some) ** 0.5
        assert row[name] == pytest.approx(float(some.mean()), abs=1e-6)
        assert (row[f"{name}_high"] - row[f"{name}_low"]) / 2 == pytest.approx(half, rel=0.2)
    spread = (prompts.variants.double() / 255).var(0).mean((1, 2, 3))  # a variance for each prompt
    half = 1.96 * float(spread.std()) / len(spread) ** 0.5 / (2 * row["diversity"])  # of its root
    assert row["diversity"] == pytest.approx(float(spread.mean().sqrt()), abs=1e-6)
    assert (row["diversity_high"] - row["diversity_low"]) / 2 == pytest.approx(half, rel=0.25)


def test_the_interval_is_about_right():
    """For independent coin tosses, one for each prompt, theory gives the interval: p ± 1.96 sqrt(p (1 - p) / N)."""
    right = torch.zeros(400, 11, dtype=torch.bool)
    right[:300, 0] = True
    said = torch.zeros_like(right)
    said[:, 0] = True
    found = pooled_accuracy(right, said)
    assert found.value == 0.75 and found.sd == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.1)


# --------------------------------------------------------------------------------------------------------- the prompts


def test_every_prompt_asks_for_a_combination():
    for split in ("test", "heldout"):
        p = make_prompts(split, 30, "both", 16, evaluation.WITH_VARIANTS)
        rows = [CREATURE_IMAGES.to_names(row) for row in p.wanted]
        assert p.mentioned[:, [NAMES.index("colour"), NAMES.index("element")]].all()
        assert all(is_held_out(row) == (split == "heldout") for row in rows)
        assert 5 < sum(text.isascii() for text in p.captions) < 25 and all(text.isascii() for text in p.english)
        for text, row, said in zip(p.captions, rows, p.mentioned, strict=True):
            claimed = {claim for claim in claims(text, "en" if text.isascii() else "zh") if claim[1] != "any"}
            assert claimed == {(n, row[n]) for n, is_said in zip(NAMES, said, strict=True) if is_said}
        assert p.real.shape == (30, 3, 16, 16) and p.variants.shape == (VARIANTS, evaluation.WITH_VARIANTS, 3, 16, 16)


def test_creatures_alike_share_what_the_caption_says(judge, prompts):
    """What must be there is there in all of them; what was left open differs."""
    n = prompts.variants.shape[1]
    read = torch.stack([read_attributes(judge, pixels)[0] for pixels in prompts.variants])  # (VARIANTS, A, 11)
    said, wanted = prompts.mentioned[:n], prompts.wanted[:n]
    assert float((read == wanted)[:, said].double().mean()) > 0.97
    assert float((read == wanted)[:, ~said].double().mean()) < 0.6


# --------------------------------------------------------------------------------------------------------- evaluate.py


def rows_of(folder):
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_evaluate_measures_every_scale(command_line, painter, tmp_path, monkeypatch):
    flags = [
        "--model",
        painter,
        "--n",
        12,
        "--sampler",
        "ddim:2",
        "--out",
        tmp_path,
        "--device",
        "cpu",
        "--per-attribute",
    ]
    code, out, err = command_line(EVALUATE, *flags, "--scales", 0, 3)
    assert code == 0, err
    rows = rows_of(tmp_path)
    assert [(row["w"], row["split"]) for row in rows] == [
        (w, s) for w in ("real", "chance", "0", "3") for s in ("test", "heldout")
    ]
    of = {(row["w"], row["split"]): row for row in rows}
    for row in (row for row in rows if row["w"] != "chance"):
        for key in (
            "accuracy",
            "accuracy_low",
            "accuracy_high",
            "all_right",
            "pair",
            "brightness",
            "saturation",
            "burnt",
            "diversity",
            "colour",
        ):
            assert 0 <= float(row[key]) <= 1, key
        assert (row["n"], row["sampler"], row["clip"], row["rescale"]) == ("12", "ddim:2", "static", "0.0")
        assert set(NAMES) <= row.keys()
    for split in ("test", "heldout"):
        real, chance, drawn = (float(of[w, split]["accuracy"]) for w in ("real", "chance", "3"))
        assert drawn < 0.5 < real and chance < 0.4
    assert all(
        word in out for word in ("held-out combinations", "real", "chance", "brightness", "background", "w = 3")
    )
    for name in ("plot.png", "grid.png"):
        assert np.asarray(Image.open(tmp_path / name)).std() > 10

    monkeypatch.setattr(evaluation, "draw", lambda *args: pytest.fail("what was drawn is drawn again"))
    monkeypatch.setattr(evaluation, "plot_scales", lambda *args: "")
    monkeypatch.setattr(evaluation, "plot_grid", lambda *args: "")
    assert command_line(EVALUATE, *flags, "--scales", 3, 0, 3)[0] == 0  # another order, one scale twice: all is known
    assert [row["w"] for row in rows_of(tmp_path)[4:]] == ["3", "3", "0", "0"]


def test_the_cures_reach_the_sampler(command_line, painter, tmp_path, monkeypatch):
    seen = []

    def draw(_, captions, config, title):
        seen.append(config)
        return torch.zeros(len(captions), 3, 16, 16, dtype=torch.uint8)

    monkeypatch.setattr(evaluation, "draw", draw)
    code, out, err = command_line(
        EVALUATE,
        "--model",
        painter,
        "--n",
        2,
        "--scales",
        4,
        "--splits",
        "heldout",
        "--rescale",
        0.7,
        "--clip",
        "none",
        "--interval",
        0.2,
        5,
        "--negative",
        "红色",
        "--seed",
        3,
        "--device",
        "cpu",
        "--out",
        tmp_path,
    )
    assert code == 0, err
    (used,) = seen
    assert (used.guidance_scale, used.rescale, used.clip_x0, used.interval, used.negative_prompt, used.seed) == (
        4,
        0.7,
        False,
        (0.2, 5),
        "红色",
        3,
    )
    assert "rescale=0.7,clip=none,interval=0.2-5,negative=红色,seed=3" in out
    assert [(row["w"], row["split"], row["negative"], row["interval_high"]) for row in rows_of(tmp_path)] == [
        (w, "heldout", "红色", "5.0") for w in ("real", "chance", "4")
    ]


def test_a_prompt_begins_with_the_same_noise_whatever_the_scale(painter):
    opened = open_pixel_pipeline(painter)
    one, other, again = (
        evaluation.draw(opened, ["a red monster"] * 3, SamplingConfig(w, sampler="ddim:1"), "")
        for w in (1.0, 1.5, 1.0)
    )
    assert torch.equal(one, again) and not torch.equal(one[0], one[1])
    assert torch.equal(one, to_bytes(opened.txt2img(["a red monster"] * 3, SamplingConfig(1.0, sampler="ddim:1"))))
    assert float((one.float() - other.float()).abs().mean()) < 0.2 * float(
        (one[0].float() - one[1].float()).abs().mean()
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--n", 0], "--n must be above 0"),
        (["--model", "nowhere"], "there is no folder nowhere"),
        (["--scales", 3, -1], "--scales must be 0 or more, not -1"),
        (["--scales"], "--scales needs at least one value"),
        (["--rescale", 2], "--rescale must be at least 0 and at most 1, not 2"),
        (["--interval", 5, 1], "the guidance interval must be two noise levels"),
        (["--sampler", "dimm:3"], "cannot read the sampler 'dimm:3'"),
        (["--clip", "hard"], ""),
    ],
)
def test_evaluate_refuses(command_line, painter, tmp_path, flags, said):
    code, _, err = command_line(EVALUATE, "--model", painter, "--out", tmp_path / "out", "--device", "cpu", *flags)
    assert code == 2 and said in err and "Traceback" not in err and not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------- memorization.py


def test_copies_are_caught_and_fresh_creatures_are_not(judge):
    train, unseen, test, fresh = (
        load_creatures(split, n, seed=seed).pixels
        for split, n, seed in (("train", 120, 0), ("train", 120, 2), ("test", 200, 0), ("test", 100, 5))
    )
    copies = (train[:100].float() * 0.97 + 2).to(torch.uint8)
    for name, view in memorization.views(judge).items():
        copied, distance, index = memorization.compare(*(view(x) for x in (copies, test, train, unseen)))
        assert copied["too_near"] > 0.95 and copied["nearer"] > 0.97, name
        assert (
            float((index == torch.arange(100)).double().mean()) > 0.95
            and float(distance.max()) < copied["median_test"]
        )
        honest, *_ = memorization.compare(*(view(x) for x in (fresh, test, train, unseen)))
        assert honest["too_near"] < 0.06 and 0.3 < honest["nearer"] < 0.7, name
        assert honest["nearer_test"] == pytest.approx(0.5, abs=0.12)


def test_smooth_pictures_are_nearer_to_everything_but_blends_to_what_was_seen():
    """Why there are two questions: an average of like creatures is near to seen and unseen ones,
    half a copy to a seen one.
    """
    train, unseen, others, test = (
        memorization.blurred(load_creatures(split, 120, seed=seed).pixels)
        for split, seed in (("train", 0), ("train", 2), ("train", 3), ("test", 0))
    )
    alike = others[torch.cdist(test, others).topk(8, largest=False).indices].mean(1)
    smooth, half = (memorization.compare(x, test, train, unseen)[0] for x in (alike, 0.5 * train + 0.5 * test))
    for found in (smooth, half):
        assert found["median"] < 0.9 * found["median_test"] and found["too_near"] > 0.02
    assert 0.35 < smooth["nearer"] < 0.65 and half["nearer"] > 0.75


def test_distances_by_hand():
    black, white = torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    distance, index = memorization.nearest(
        memorization.blurred(black), memorization.blurred(torch.cat([white, black, white]))
    )
    assert (float(distance), int(index)) == (pytest.approx(0, abs=1e-6), 1)
    assert float(memorization.nearest(memorization.blurred(black), memorization.blurred(white))[0]) == pytest.approx(
        1, abs=1e-5
    )
    assert memorization.nearer(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 1.0, 2.0])).tolist() == [1, 0, 0.5]


def test_memorization_runs(command_line, painter, tmp_path, monkeypatch):
    monkeypatch.setattr(memorization, "TEST", 60)
    code, out, err = command_line(
        MEMORIZATION,
        "--model",
        painter,
        "--n",
        9,
        "--n-train",
        30,
        "--prompts",
        "train",
        "--sampler",
        "ddim:2",
        "--device",
        "cpu",
        "--out",
        tmp_path,
    )
    assert code == 0, err
    found = {row["distance"]: row for row in read_csv(tmp_path / "memorization.csv")}
    assert found.keys() == {"pixels", "features"}
    for name, row in found.items():
        assert row["n_train"] == "30" and 0 <= float(row["own_picture"]) <= 1 and float(row["median"]) > 0
        assert 0 <= float(row["too_near"]) <= 1 and 0 <= float(row["nearer"]) <= 1
        assert np.asarray(Image.open(tmp_path / f"nearest_by_{name}.png")).std() > 10
    assert "30 training pictures" in out and "that of the same caption" in out and "real" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--n-train", 0], "--n-train must be above 0"),
        (["--n", 20, "--n-train", 10, "--prompts", "train"], "only 10 training captions .* give --n 10 or fewer"),
        (["--model", "nowhere"], "there is no folder nowhere"),
        (["--w", -1, "--n-train", 10], "--w must be 0 or more"),
    ],
)
def test_memorization_refuses(command_line, painter, tmp_path, flags, said):
    code, _, err = command_line(
        MEMORIZATION, "--model", painter, "--n", 4, "--out", tmp_path, "--device", "cpu", *flags
    )
    assert code == 2 and re.search(said, err) and "Traceback" not in err


def test_values_of_the_table_are_those_of_the_heads(judge):
    assert (
        list(judge.heads) == list(NAMES)
        and [head.out_features for head in judge.heads.values()] == [len(v) for v in VALUES] == KINDS
    )
