"""The Chinese CLIP's loss, names, retrieval and training, and evaluate_clip.py."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from common.data import Images, load
from common.data.captions import mostly_chinese
from common.data.dishes.captions import names_of
from common.data.dishes.menu import DISHES
from common.errors import UserError
from common.io.tables import read_csv
from common.random import BatchRandom
from helpers.chapter_06 import (
    EVALUATE_CLIP,
    TINY_CLIP,
    TRAIN_CLIP,
    WEIGHTS,
    attributes_of,
    small_config,
    small_vocab,
    unit,
)
from helpers.programs import load_program, run_main
from inpaint_gif.clip import dish_names, formats, loss, model, retrieval, trainer
from inpaint_gif.clip.flags import CLIPFlags
from inpaint_gif.clip.formats import CLIPCheckpoint, CLIPConfig
from inpaint_gif.clip.model import ChineseCLIP, find_checkpoint, load_clip, preprocess


def double_loop(images, texts, dish, scale) -> list[float]:
    """The formula of loss.py, one number after another."""
    n, losses = len(dish), []
    for i in range(n):
        total = 0.0
        for mine, others in ((images, texts), (texts, images)):
            scores = [
                scale * sum(float(a) * float(b) for a, b in zip(mine[i], others[j], strict=True)) for j in range(n)
            ]
            whole = math.log(sum(math.exp(s) for s in scores))
            right = [j for j in range(n) if dish[j] == dish[i]]
            total += -sum(scores[j] - whole for j in right) / len(right) - math.log(len(right))
        losses.append(total / 2)
    return losses


def menu_clip() -> ChineseCLIP:
    """A CLIP, untrained, that has read all names it is to learn."""
    words = small_vocab([name for names in dish_names.LEARNED.values() for name in names])
    shape = small_config(words)
    torch.manual_seed(0)
    net = transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(**shape.to_transformers()))
    return ChineseCLIP(
        CLIPCheckpoint(shape, formats.from_transformers(net.state_dict()), words, "a test"), "transformers"
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """A folder of three kinds of picture, with Chinese captions."""
    path, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    rows = []
    for i in range(60):
        name, colour = (("米饭", (230, 230, 220)), ("番茄汤", (210, 60, 40)), ("青菜", (60, 150, 60)))[i % 3]
        pixels = np.clip(np.array(colour) + rng.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path / f"{i:02}.png")
        rows.append(json.dumps({"file_name": f"{i:02}.png", "text": name}, ensure_ascii=False))
    (path / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_loss_against_a_double_loop():
    x, y, dish = unit(7, 5), unit(7, 5, seed=1), torch.tensor([0, 1, 0, 2, 0, 1, 3])
    ours = loss.contrastive_loss(x, y, dish, torch.tensor(6.0))
    assert ours.tolist() == pytest.approx(double_loop(x, y, dish.tolist(), 6.0), abs=1e-5)
    assert ours.min() > 0.1


def test_loss_is_clips_where_all_dishes_differ():
    x, y = unit(6, 5), unit(6, 5, seed=1)
    logits, each = 4.0 * x @ y.T, torch.arange(6)
    theirs = (F.cross_entropy(logits, each) + F.cross_entropy(logits.T, each)) / 2
    torch.testing.assert_close(loss.contrastive_loss(x, y, each, torch.tensor(4.0)).mean(), theirs)


def test_the_same_dish_is_no_negative():
    """Two plates of one dish with the same vector: nothing to improve,
    where CLIP's own loss would push them apart for ever.
    """
    x = torch.eye(4)[[0, 0, 1, 2]].requires_grad_()
    dish = torch.tensor([0, 0, 1, 2])
    losses = loss.contrastive_loss(x, x.detach(), dish, torch.tensor(50.0))
    assert losses.abs().max() < 1e-5
    losses.mean().backward()
    assert x.grad.abs().max() < 1e-4
    logits, each = 50.0 * torch.eye(4)[[0, 0, 1, 2]] @ torch.eye(4)[[0, 0, 1, 2]].T, torch.arange(4)
    assert F.cross_entropy(logits, each, reduction="none")[0] == pytest.approx(math.log(2), abs=1e-4)


def test_the_scale_has_a_limit():
    assert float(loss.inverse_temperature(torch.tensor(9.0))) == pytest.approx(100.0)
    assert float(loss.inverse_temperature(torch.tensor(1.0))) == pytest.approx(math.e)


def test_held_out_names_are_held_out():
    """They are last other names, belong to one dish each, and are in no caption; everything else is learned."""
    held_out = set(dish_names.HELD_OUT.values())
    assert dish_names.HELD_OUT["番茄炒蛋"] == "番茄炒鸡蛋" and 20 < len(held_out) == len(dish_names.HELD_OUT)
    learned = {name for names in dish_names.LEARNED.values() for name in names}
    assert not learned & held_out
    assert learned | held_out == {name for dish in DISHES for name in names_of(dish, "zh")}
    said = set()
    for k, dish in enumerate(DISHES):
        captions = dish_names.captions_of(attributes_of(dish), 40, np.random.default_rng(k))
        said |= set(captions[::2])
        assert not any(dish_names.HELD_OUT.get(dish, "-") in text for text in captions)
        assert all(any(name in text for name in dish_names.LEARNED[dish]) for text in captions)
        assert any(text not in learned for text in captions[1::2])  # those speak of the vessel, too
    assert said == learned


def test_vocabulary_knows_its_captions_and_nothing_else(checkpoint):
    words = dish_names.vocabulary(["番茄（大）", "Thé 5%"])
    assert words[:5] == formats.SPECIAL and len(set(words)) == len(words)
    assert set("番茄（大）%") <= set(words) and {"t", "##h", "##e", "5"} <= set(words)
    clip = ChineseCLIP(checkpoint, "transformers")
    assert clip.unknown("番茄烧龘肉龘") == ["烧", "龘", "肉"] and clip.unknown("番茄 炒蛋") == []
    assert torch.equal(clip.encode_text(["番龘"]), clip.encode_text(["番肉"]))  # one [UNK] for both


def test_orders():
    """What is on the menu is served in silence; for everything else there is a sentence,
    and the best that can be done.
    """
    clip = menu_clip()
    plain = dish_names.parse_dish_name(clip, " 番茄炒蛋 ")
    assert (plain.name, plain.dish, plain.remarks) == ("番茄炒蛋", "番茄炒蛋", ()) and plain.nearest[0][1] > 0.5
    assert (
        dish_names.parse_dish_name(clip, "土鸡蛋炒番茄").dish
        == dish_names.parse_dish_name(clip, "番茄炒鸡蛋").dish
        == "番茄炒蛋"
    )
    english = dish_names.parse_dish_name(clip, "peking duck")
    assert (english.name, english.dish) == ("北京烤鸭", "北京烤鸭") and "is read as 北京烤鸭" in english.remarks[0]
    secret = dish_names.parse_dish_name(clip, "抄手")  # no character of it is known, but the menu knows the name
    assert (secret.name, secret.dish) == ("馄饨", "馄饨") and "read as 馄饨" in secret.remarks[0]
    unknown = dish_names.parse_dish_name(clip, "炸龘龘")
    assert unknown.dish is None and unknown.name == "炸龘龘" and len(unknown.nearest) == 3
    assert (
        "never read 龘," in unknown.remarks[0]
        and "best effort" in unknown.remarks[1]
        and unknown.nearest[0][0] in unknown.remarks[1]
    )
    foreign = dish_names.parse_dish_name(clip, "pizza")
    assert "is not Chinese" in foreign.remarks[0] and foreign.dish is None
    assert any("cut before" in remark for remark in dish_names.parse_dish_name(clip, "番茄" * 30).remarks)
    with pytest.raises(UserError, match="empty"):
        dish_names.parse_dish_name(clip, "  ")


def test_nearest_dishes_are_nearest():
    clip = menu_clip()
    cosines = {
        dish: float(F.normalize(clip.encode_text(names).mean(0), dim=0) @ clip.encode_text(["炒蛋"])[0])
        for dish, names in dish_names.LEARNED.items()
    }
    best = sorted(cosines, key=cosines.get, reverse=True)[:3]
    assert [dish for dish, _ in dish_names.nearest_dishes(clip, "炒蛋")] == best


def test_ranks_against_sorting():
    queries, keys, right = unit(40, 6), unit(9, 6, seed=1), torch.arange(40) % 9
    places = [sorted(range(9), key=lambda k: -float(queries[i] @ keys[k])).index(int(right[i])) for i in range(40)]
    assert retrieval.ranks(queries, keys, right).tolist() == places
    result = retrieval.retrieval_accuracy(queries, keys, right)
    assert result.top1.value == pytest.approx(np.mean([p < 1 for p in places])) and result.top5.value == pytest.approx(
        np.mean([p < 5 for p in places])
    )
    assert result.top1.low < result.top1.value < result.top1.high and (result.queries, result.choices) == (40, 9)
    same = torch.ones(1, 6) / 6**0.5
    # who says the same of all has named nothing
    assert retrieval.ranks(same, same.expand(4, -1), torch.tensor([2])).tolist() == [3]


def test_the_smaller_question():
    queries, keys, right = unit(20, 6), unit(10, 6, seed=1), torch.arange(20) % 10
    only = [7, 2, 4]
    some, few, answers = retrieval.restricted(queries, keys, right, only)
    assert torch.equal(few, keys[only]) and [only[a] for a in answers] == [k for k in right.tolist() if k in only]
    assert torch.equal(some, queries[[i for i in range(20) if i % 10 in only]])
    assert len(retrieval.FORTY) == 40


def test_centres():
    vectors = unit(6, 4)
    centre = retrieval.centroids(vectors, torch.tensor([0, 2, 0, 0, 2, 0]), 3)
    torch.testing.assert_close(centre[2], F.normalize(vectors[1] + vectors[4], dim=0))
    assert torch.equal(centre[1], torch.zeros(4))


def test_a_run_leaves_everything(clip_run):
    for name in (
        "config.json",
        "metrics.csv",
        "found.png",
        WEIGHTS,
        "model/config.json",
        "model/cn_clip.json",
        "model/vocab.txt",
    ):
        assert (clip_run / name).exists(), name
    with open(clip_run / "quality.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == trainer.COLUMNS and rows[-1]["step"] == "6" and 0 <= float(rows[-1]["pictures_top1"]) <= 1
    assert CLIPConfig(**json.loads((clip_run / "model/cn_clip.json").read_text())).vision_width == 32
    with Image.open(clip_run / "found.png") as picture:
        assert picture.width > 8 * 32


@pytest.mark.parametrize("backend", model.BACKENDS)
def test_a_run_is_opened(clip_run, backend):
    clip = load_clip(clip_run, backend)
    assert (clip.backend, clip.dim, clip.size) == (backend, 16, 32)
    torch.testing.assert_close(clip.encode_text(["番茄炒蛋"]).norm(dim=1), torch.ones(1))
    assert clip.unknown("土鸡蛋炒番茄") == [] and clip.unknown("龘") == ["龘"]


def test_a_resumed_run_is_the_same_run(clip_run, tmp_path):
    """Thrown back to its checkpoint of step 3, it ends with the same bytes."""
    again = tmp_path / "run"
    shutil.copytree(clip_run, again)
    (again / "checkpoints" / "step-00000006.pt").unlink()
    shutil.rmtree(again / "model")
    run_main(TRAIN_CLIP, "--resume", again, "--device", "cpu")
    for name in (WEIGHTS, "model/vocab.txt"):
        assert (again / name).read_bytes() == (clip_run / name).read_bytes(), name


def test_both_halves_and_the_temperature_learn(clip_run):
    args = CLIPFlags(size=32, patch=16, width=32, layers=1, text_width=32, text_layers=1, dim=16)
    before = trainer.new_checkpoint(args, tuple((clip_run / "model/vocab.txt").read_text().split())).state
    after = find_checkpoint(str(clip_run)).state
    assert before.keys() == after.keys()
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert {
        "logit_scale",
        "visual.conv1.weight",
        "visual.proj",
        "text_projection",
        "bert.embeddings.word_embeddings.weight",
    } <= set(moved)
    assert float(before["logit_scale"]) == pytest.approx(math.log(1 / 0.07)) and len(moved) > 0.9 * len(before)


def test_pictures_of_ones_own_are_learned(photographs, tmp_path, command_line):
    """From a folder: its captions make the vocabulary, equal captions belong together,
    and after 80 steps each is told from the rest.
    """
    code, out, err = command_line(
        TRAIN_CLIP, "--data", photographs, *TINY_CLIP, "--lr", 3e-3, "--steps", 80, "--out", tmp_path / "run"
    )
    assert code == 0, err
    assert "54 pictures of 3 things" in out and "held-out names" not in out
    assert "100.0% are nearest to their own name, of 3" in out
    code, out, err = command_line(EVALUATE_CLIP, "--clip", tmp_path / "run", "--data", photographs, "--device", "cpu")
    assert code == 0 and "100.0 %" in out and "3 captions" in out, err

    # fine-tuning: it starts where the first clip_run ended, sizes and vocabulary included
    code, out, err = command_line(
        TRAIN_CLIP,
        "--data",
        photographs,
        "--start",
        tmp_path / "run",
        "--steps",
        1,
        "--lr",
        1e-9,
        "--out",
        tmp_path / "more",
        "--device",
        "cpu",
    )
    assert code == 0, err
    first, second = (find_checkpoint(str(tmp_path / name)) for name in ("run", "more"))
    assert second.config == first.config and second.vocab == first.vocab
    assert max(float((first.state[key] - second.state[key]).abs().max()) for key in first.state) < 1e-4


def test_characters_are_hidden_but_never_the_frame():
    ids = torch.tensor([[2, 9, 8, 7, 3, 0, 0], [2, 9, 3, 0, 0, 0, 0]]).repeat(500, 1)
    hidden = trainer.hide_characters(
        ids, torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)), 0.25, unknown=1, end=3
    )
    inside = ids > 3
    assert torch.equal(hidden[~inside], ids[~inside])
    assert 0.2 < float((hidden[inside] == 1).float().mean()) < 0.3
    assert torch.equal(hidden[inside & (hidden != 1)], ids[inside & (hidden != 1)])
    assert torch.equal(trainer.hide_characters(ids, torch.rand(ids.shape), 0.0, unknown=1, end=3), ids)
    # its place in the published vocabulary
    assert set(trainer.hide_characters(ids, torch.zeros(ids.shape), 0.5, unknown=100, end=3)[inside].tolist()) == {100}


def test_pictures_are_seen_anew():
    """Each image in its own way, as (seed, step) say; what is in the middle stays in the picture."""
    x = torch.full((64, 3, 32, 32), -1.0)
    x[:, :, 12:20, 12:20] = 1.0
    seen = trainer.augment(x, BatchRandom(0, 0))
    assert seen.shape == x.shape and float(seen.min()) >= -1 and float(seen.max()) <= 1
    assert torch.equal(seen, trainer.augment(x, BatchRandom(0, 0))) and not torch.equal(
        seen, trainer.augment(x, BatchRandom(0, 1))
    )
    assert float((seen[0] - seen[1]).abs().max()) > 0.1
    bright = (seen.mean(1) > 0.2).flatten(1).sum(1)
    assert int(bright.min()) > 30 and int(bright.max()) < 200  # 64 pixels, nearer or further
    plain = torch.zeros(64, 3, 32, 32)
    # light and tint alone
    assert 0.05 < float((trainer.augment(plain, BatchRandom(0, 0))).abs().amax((1, 2, 3)).mean()) < 0.3


def test_a_step_may_look_at_some_patches_only(checkpoint, images):
    """All of them, in any order, are what transformers sees; of half of them each image has its own."""
    clip = model.build_transformers_clip(checkpoint)
    net, pixels = trainer.DualEncoder(clip), preprocess(images, 32)
    whole = clip.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(net.encode_image(pixels, None), whole)
    every = torch.stack([torch.randperm(16) for _ in range(5)])
    torch.testing.assert_close(net.encode_image(pixels, every), whole, atol=1e-5, rtol=1e-5)
    half = trainer.random_patches(BatchRandom(0, 0), 5, checkpoint.config, 0.5)
    assert (
        half.shape == (5, 8)
        and all(len(set(row)) == 8 and max(row) < 16 for row in half.tolist())
        and half.unique(dim=0).shape[0] == 5
    )
    # what is not looked at changes nothing
    only = pixels.clone().unfold(2, 8, 8).unfold(3, 8, 8).reshape(5, 3, 16, 8, 8)
    hidden = torch.ones(5, 16).scatter_(1, half, 0.0).bool()
    only[hidden[:, None].expand(-1, 3, -1)] = 7.0
    other = only.view(5, 3, 4, 4, 8, 8).permute(0, 1, 2, 4, 3, 5).reshape(5, 3, 32, 32)
    torch.testing.assert_close(net.encode_image(other, half), net.encode_image(pixels, half))
    assert (net.encode_image(other, None) - whole).abs().max() > 1e-3
    assert trainer.random_patches(BatchRandom(0, 0), 5, checkpoint.config, 1.0) is None


def test_each_caption_has_its_turn():
    """A step takes one of a picture's captions at random; the dish says what belongs together."""
    words = model.bert_tokenizer(small_vocab(["甲", "乙"]), 52)
    pictures = Images("x", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([5, 6]))
    material = trainer.CLIPTrainingSet(pictures, [("甲", "乙"), ("乙甲", "甲")], {}, pictures)
    paired = trainer.CaptionedImages(material, words)
    batch = paired.batch(torch.tensor([1, 0] * 100))
    assert batch["ids"].shape == (200, 2, 4) and batch["dish"].tolist() == [6, 5] * 100
    told = []

    def net(pixels, ids, kept):
        assert kept is None
        told.append(ids)
        return torch.eye(200, 300), torch.eye(200, 300), torch.tensor(1.0)

    checkpoint = CLIPCheckpoint(small_config(small_vocab(["甲", "乙"])), {}, small_vocab(["甲", "乙"]), "a test")
    trainer.make_loss(CLIPFlags(unknown=0.0), checkpoint)(net, batch, BatchRandom(0, 0))
    second = (told[0][1::2] == batch["ids"][1::2, 1, : told[0].shape[1]]).all(1).float().mean()
    assert 0.3 < float(second) < 0.7


def test_drawn_sets_give_chinese_captions_and_no_more_pictures_than_asked_for(monkeypatch):
    drawn = []
    monkeypatch.setattr(trainer, "load", lambda *args, **options: drawn.append(load(*args, **options)) or drawn[-1])
    material = trainer.load_training_set(CLIPFlags(data="creatures", n=5, held_out=3), 16)
    assert [len(images) for images in drawn] == [len(material.train), len(material.test)] == [5, 3]
    assert all(mostly_chinese([caption]) for caption in (*material.train.captions, *material.test.captions))


def test_sizes_that_do_not_fit_are_refused_before_pictures_are_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(trainer, "load_training_set", lambda *_: pytest.fail("drawn"))
    with pytest.raises(UserError, match="must be a multiple of 16"):
        program = load_program(TRAIN_CLIP)
        program.main(program.Args(size=60, patch=16, device="cpu", out=tmp_path / "run"))


def test_evaluate(clip_run, tmp_path, command_line):
    code, out, err = command_line(
        EVALUATE_CLIP, "--clip", clip_run, "--n", 30, "--out", tmp_path, "--backend", "transformers"
    )
    assert code == 0, err
    results = {row["asked"]: row for row in read_csv(tmp_path / "retrieval.csv")}
    asked = {what: int(row["queries"]) for what, row in results.items()}
    assert list(results) == [
        f"{what}, {n} dishes"
        for what in ("pictures of test", "pictures of heldout", "learned names", "held-out names")
        for n in (80, 40)
    ]
    assert asked["held-out names, 80 dishes"] == len(dish_names.HELD_OUT)
    assert asked["pictures of test, 80 dishes"] == 30 > asked["pictures of test, 40 dishes"]
    assert all(name in out for name in results)
    code, out, err = command_line(EVALUATE_CLIP, "--clip", clip_run, "--ask", "土鸡蛋炒番茄", "龘龘")
    assert code == 0 and out.count("(") >= 6 and "best effort" in out and "never read 龘" in out, err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--batch-size", 1],
            "--batch-size must be at least 2, not 1; a picture is compared with the names of the others",
        ),
        (["--seed", -1], "--seed must be 0 or more"),
        (["--unknown", 1], "--unknown must be"),
        (["--keep", 0], "--keep must be above 0"),
        (["--temperature", 0.001], "--temperature must be at least 0.01"),
        (["--width", 48], "--width must be a multiple of 32"),
        (["--size", 60, "--patch", 16], "must be a multiple of 16"),
        (["--start", "pretrained", "--layers", 2], "--start keeps the sizes"),
        (["--start", "nothing-there"], "there is no CLIP 'nothing-there'"),
        (["--steps", 1, "--minutes", 1], "not both"),
        (["--data", "no-such-folder"], "unknown data"),
        (["--resume", "no-such-run"], "config.json is missing"),
    ],
)
def test_bad_input(flags, sentence, tmp_path, command_line):
    code, _, err = command_line(
        TRAIN_CLIP,
        "--n",
        2,
        "--held-out",
        2,
        "--device",
        "cpu",
        *(flags if "--resume" in flags else [*flags, "--out", tmp_path / "run"]),
    )
    assert code == 2 and sentence in err and "Traceback" not in err
