"""The studies of strength and of prompt weights."""

import re

import pytest
import torch
from compel import Compel

from common.data.creatures.attributes import NAMES
from common.data.creatures.dataset import caption, mentioned
from common.evaluate.creature_classifier import load_creature_classifier
from finetune_diffusers import models, prompt_weights
from finetune_diffusers.evaluation import strength
from helpers.finetune_programs import PROMPT, STRENGTH, WEIGHTS, refused, silent, table


@pytest.fixture(scope="module")
def pipe(model):
    """Whoever changes its scheduler has a copy."""
    return silent(models.open_pipeline(model))


def test_what_is_asked_of_the_pictures():
    """Where the pictures are those of the prompts, all is followed and nothing kept;
    where they are unchanged, the other way round.
    """
    pairs, classifier = strength.make_pairs(12, "test", 64), load_creature_classifier()
    assert pairs.asked.any(1).all() and not (pairs.asked & (pairs.had == pairs.wanted)).any()
    for i, prompt in enumerate(pairs.prompts):
        other = (i + 1) % 12
        assert prompt == caption(0, "test", other, "en")
        assert {name for name, asked in zip(NAMES, pairs.asked[i].tolist(), strict=True) if asked} <= set(
            mentioned(0, "test", other)
        )
    unchanged = strength.measure(classifier, pairs.images, pairs)
    replaced = strength.measure(classifier, pairs.images.roll(-1, 0), pairs)
    assert unchanged["kept"].mean() > 0.97 and unchanged["followed"].mean() < 0.03 and unchanged["moved"].max() == 0
    assert replaced["followed"].mean() > 0.97 and replaced["kept"].mean() < 0.03 and replaced["moved"].min() > 0.1


def test_strength_from_the_command_line(model, tmp_path, command_line):
    code, out, _ = command_line(
        STRENGTH,
        "--model",
        model,
        "--n",
        3,
        "--strength",
        0.5,
        1,
        "--at-guidance",
        2,
        "--guidance",
        1,
        2,
        "--steps",
        2,
        "--device",
        "cpu",
        "--out",
        tmp_path,
    )
    assert code == 0 and "over 3 pictures" in out
    rows = table(tmp_path / "strength.csv")
    assert [(row["strength"], row["guidance"]) for row in rows] == [
        ("0.5", "2.0"),
        ("1.0", "2.0"),
        ("1.0", "1.0"),
        ("real creatures", ""),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {
        "strength.csv",
        "strength.png",
        "guidance.png",
        "strengths.png",
        "scales.png",
    }
    assert "at least 2" in refused(command_line(STRENGTH, "--n", 1))
    assert "--at-guidance" in refused(command_line(STRENGTH, "--at-guidance", 0))


WEIGHTED = [
    "a red creature",
    "",
    "a red++ creature with (wings)1.5",
    "a (red)0.5 creature with (wings)0.2",
    "(a blue)0 creature",
    "a red- creature with horns--",
    "一只 (红色)1.5 的小怪兽",
    "一只(红色)0.3的小怪兽，长着(翅膀)2",
    "a one-eyed creature with (long tail)++ , wings",
    "red++ " * 70,
    "it's (red)1.2",
    "a ((red)1.2 creature)1.5",
    "一只 ((红色)1.2的小怪兽)0.5 ，长着翅膀",
]


@pytest.mark.parametrize("prompt", WEIGHTED)
def test_weights_by_hand_are_those_of_compel(pipe, prompt):
    theirs, ours = (
        prompt_weights.embed_by_compel(pipe, prompt).tokens,
        prompt_weights.weigh(pipe.tokenizer, pipe.text_encoder, prompt_weights.read_weights(prompt)),
    )
    assert ours.shape == (1, 64, 32) and (ours - theirs).abs().max() <= 1e-6
    plain = prompt_weights.weigh(
        pipe.tokenizer, pipe.text_encoder, [(" ".join(text for text, _ in prompt_weights.read_weights(prompt)), 1.0)]
    )
    assert ((ours - plain).abs().max() > 0.01) == any(w != 1 for _, w in prompt_weights.read_weights(prompt))


@pytest.mark.parametrize("prompt", [prompt for prompt in WEIGHTED if prompt.isascii() and len(prompt) < 100])
def test_weights_are_read_as_compel_reads_them(prompt):
    theirs = [(part.text, part.weight) for part in Compel.parse_prompt_string(prompt).prompts[0].children]
    assert prompt_weights.read_weights(prompt) == theirs


def test_what_weights_mean():
    assert prompt_weights.read_weights("a red++ creature-") == [
        ("a", 1.0),
        ("red", pytest.approx(1.21)),
        ("creature", 0.9),
    ]
    assert prompt_weights.read_weights("一只 ((红色)1.2的鸟)1.5 好") == [
        ("一只", 1.0),
        ("红色", pytest.approx(1.8)),
        ("的鸟", 1.5),
        ("好", 1.0),
    ]


def test_without_weights_it_is_the_text_encoder(pipe):
    ids = pipe.tokenizer([PROMPT], padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        plain = pipe.text_encoder(ids).last_hidden_state
    torch.testing.assert_close(
        prompt_weights.weigh(pipe.tokenizer, pipe.text_encoder, [(PROMPT, 1.0)]), plain, atol=1e-5, rtol=0
    )


def test_a_word_of_weight_zero_is_as_good_as_not_there(pipe):
    """No other word may have looked at it: whatever it was, the others come out the same."""
    red, blue = (
        prompt_weights.weigh(pipe.tokenizer, pipe.text_encoder, [("a", 1), (word, 0.0), ("creature", 1)])
        for word in ("red", "blue")
    )
    torch.testing.assert_close(red, blue, atol=1e-4, rtol=0)
    half = prompt_weights.weigh(pipe.tokenizer, pipe.text_encoder, [("a", 1), ("red", 0.5), ("creature", 1)])
    assert (half - red).abs().max() > 0.1


def test_weights_from_the_command_line(model, tmp_path, command_line):
    flags = ["--model", model, "--n", 1, "--steps", 2, "--device", "cpu", "--out", tmp_path]
    code, out, _ = command_line(WEIGHTS, "a red++ creature with (wings)1.5", *flags)
    largest = float(re.search(r"ours: (\S+)", out)[1])
    moved = {
        line.rsplit(" differs", 1)[0].strip(): float(line.split("by ")[-1].split()[0])
        for line in out.splitlines()
        if "differs from the first" in line
    }
    assert code == 0 and largest <= 1e-6
    assert moved["no weights"] == 0 and moved["Compel"] == moved["by hand"] > 0.001
    code, out, _ = command_line(WEIGHTS, PROMPT, "--word", "wings", "--sweep", 1, 2, *flags)
    assert code == 0 and "(wings)1 " in out and "(wings)2 " in out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["a (red creature"], "close every bracket"),
        (['("a red creature", "a blue one").and()'], "cannot read the weights"),
        (["a red creature.swap(a blue one)"], "cannot read the weights"),
        (["a red+ one", "--word", "red"], "without weights"),
        ([PROMPT, "--word", "horns"], "must occur exactly once in the prompt"),
        ([PROMPT, "--word", "wings", "--sweep", -1], "--sweep"),
        ([PROMPT, "--guidance", 0], "--guidance"),
    ],
)
def test_what_weights_refuses(flags, says, model, tmp_path, command_line):
    assert says in refused(command_line(WEIGHTS, *flags, "--model", model, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
