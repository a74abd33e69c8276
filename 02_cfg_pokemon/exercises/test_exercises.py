"""Tests for you: each uses numbers that can be checked by hand. See README.md, "How to work".

python -m pytest 02_cfg_pokemon/exercises -x                    your exercises.py, up to the first failure
EXERCISES=mine.py python -m pytest 02_cfg_pokemon/exercises     another file
"""

import math
import os
from pathlib import Path

import pytest
import torch

from common.grade.checks import call, expect, load


@pytest.fixture(scope="module")
def ex():
    """The file with the answers."""
    return load(Path(os.environ.get("EXERCISES") or Path(__file__).with_name("exercises.py")), "exercises")


def captions(*values: float, M: int = 2, D: int = 4) -> torch.Tensor:
    """A caption for each value, all its numbers the same. (B, M, D)"""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).repeat(1, M, D)


def images(*values: float) -> torch.Tensor:
    """An image for each value, all its pixels the same. (B, 1, 2, 3)"""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).repeat(1, 1, 2, 3)


# ---------------------------------------------------------------------------------------- 1. caption_dropout


def test_1_two_of_five(ex):
    u = torch.tensor([0.05, 0.5, 0.19, 0.9, 0.3])
    got = call(ex.caption_dropout, captions(1, 2, 3, 4, 5), captions(-1)[0], u, 0.2)
    if isinstance(got, torch.Tensor):
        assert len(got) == 5, (
            f"of 5 captions you return {len(got)}: the images stay in the batch, and only their words are dropped"
        )
    wrong = {
        "one random number decided for the whole batch; each image has its own, u_i": captions(-1, -1, -1, -1, -1),
        "you dropped where u is above p, and so 80 % of the captions instead of 20 %": captions(1, -1, 3, -1, -1),
        "the empty caption is a text too, not zeros": captions(0, 2, 0, 4, 5),
        "nothing was dropped": captions(1, 2, 3, 4, 5),
    }
    expect(
        got,
        captions(-1, 2, -1, 4, 5),
        "u is below p = 0.2 at images 0 and 2; these two captions become the empty one",
        wrong,
    )


def test_1_none_and_all(ex):
    text, empty, u = captions(1, 2), captions(-1)[0], torch.tensor([0.0, 0.9])
    hint = "at p = 0 nothing is dropped, not even where u = 0: the condition is u < p"
    expect(call(ex.caption_dropout, text, empty, u, 0.0), text, hint)
    expect(
        call(ex.caption_dropout, text, empty, u, 1.0),
        captions(-1, -1),
        "at p = 1 all captions are dropped, as u is always below 1",
    )


def test_1_as_many_images_as_tokens_and_numbers(ex):
    text, empty, u = captions(1, 2, 3, M=3, D=3), captions(-1, M=3, D=3)[0], torch.tensor([0.1, 0.8, 0.9])
    columns, rows = text.clone(), text.clone()
    columns[:, :, 0], rows[:, 0] = -1, -1
    wrong = {
        "you dropped the first number of every token: u < p must have the shape (B, 1, 1), or it lines up with the last axis": columns,
        "you dropped the first token of every caption: u < p must have the shape (B, 1, 1)": rows,
    }
    expect(
        call(ex.caption_dropout, text, empty, u, 0.2),
        captions(-1, 2, 3, M=3, D=3),
        "the whole first caption is dropped, and no other",
        wrong,
    )


# ---------------------------------------------------------------------------------------- 2. cross_attention


def test_2_a_pixel_reads_two_words(ex):
    """The first pixel asks for the first word three times as much as for the second; the other pixel does not mind."""
    x = torch.tensor([[[0, 2 * math.log(3), 0, 0], [0, 0, 0, 0]]])
    text = torch.tensor([[[1.0, 0, 5, 0], [0, 0, 0, 7]]])
    W_q = torch.zeros(4, 4)
    W_q[0, 1] = 1  # what is asked is x's second number
    W_k, W_v = torch.diag(torch.tensor([1.0, 1, 0, 0])), torch.diag(torch.tensor([0.0, 0, 1, 1]))
    got = call(ex.cross_attention, x, text, W_q, W_k, W_v, 1)

    def reading(first: tuple[float, float], second: tuple[float, float] = (0.5, 0.5)) -> torch.Tensor:
        """How much each pixel reads of the two words."""
        return torch.tensor([[[0, 0, 5 * a, 7 * b] for a, b in (first, second)]])

    wrong = {
        "the division by sqrt(d) is missing; here d = 4, and so sqrt(d) = 2": reading((0.9, 0.1)),
        "divide by sqrt(d), not by d": reading((3**0.5 / (3**0.5 + 1), 1 / (3**0.5 + 1))),
        "the softmax runs over the pixels; it is over the words, so that the attention of each pixel sums to 1": reading(
            (0.75, 0.5), (0.25, 0.5)
        ),
        "without a softmax, what is asked is multiplied but not shared out": reading((math.log(3), 0), (0, 0)),
        "W_q is kept as (out, in): q = x W_q^T": reading((0.5, 0.5)),
        "K and V are swapped: words are found by K, and V is what they say": torch.tensor(
            [[[0.5, 0, 0, 0], [0.5, 0, 0, 0]]]
        ),
    }
    hint = "scores of (2 log 3) / 2 and 0 become 3/4 and 1/4 of the attention; what the words say is (0, 0, 5, 0) and (0, 0, 0, 7)"
    expect(got, reading((0.75, 0.25)), hint, wrong)


def test_2_a_single_word_has_all_the_attention(ex):
    x, text = torch.tensor([[[1.0, 2], [3, 4], [5, 6]]]), torch.tensor([[[1.0, 2, 3]]])
    W_k, W_v = torch.tensor([[0.0, 0, 1], [1, 0, 0]]), torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    got = call(ex.cross_attention, x, text, torch.eye(2), W_k, W_v, 1)
    wrong = {
        "you returned what the word is known by (K); the pixels read what it says (V)": torch.tensor([3.0, 1]).expand(
            1, 3, 2
        )
    }
    expect(
        got,
        torch.tensor([1.0, 5]).expand(1, 3, 2),
        "the only word says text W_v^T = (1, 2 + 3), to every pixel",
        wrong,
    )


def two_heads(e: float) -> torch.Tensor:
    """If the word that a head asks for has e times the attention of each other."""
    asked, other = e / (e + 2), 1 / (e + 2)
    return torch.tensor(
        [[[asked, 4 * other, 1 / 3, 8 / 3], [1 / 3, 4 / 3, asked, 8 * other], [asked, 4 * other, asked, 8 * other]]]
    )


def one_head(e: float) -> torch.Tensor:
    first, both = 1 / (e + 2), 1 / (2 * e + 1)
    return torch.tensor(
        [
            [
                [e * first, 4 * first, first, 8 * first],
                [first, 4 * first, e * first, 8 * first],
                [e * both, 4 * both, e * both, 8 * both],
            ]
        ]
    )


def test_2_two_heads(ex):
    """Head 0 (columns 0 and 1) of the first and third pixel asks for word 0;
    head 1 of the second and third for word 1.
    """
    ask = 2**0.5 * math.log(3)
    x = torch.tensor([[[ask, 0, 0, 0], [0, 0, ask, 0], [ask, 0, ask, 0]]])
    text = torch.tensor([[[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 4, 0, 8]]])
    got = call(ex.cross_attention, x, text, torch.eye(4), torch.eye(4), torch.eye(4), 2)
    alternating = torch.tensor([[[0.6, 4 / 3, 0.2, 8 / 3], [0.2, 4 / 3, 0.6, 8 / 3], [3 / 7, 4 / 3, 3 / 7, 8 / 3]]])
    bare_view = torch.tensor([[[0.6, 0, 1 / 3, 0], [1 / 3, 0, 0.6, 2.4], [0.6, 2.4, 0.6, 2.4]]])
    not_moved_back = torch.tensor([[[0.6, 0.8, 1 / 3, 4 / 3], [0.6, 0.8, 1 / 3, 8 / 3], [0.6, 1.6, 0.6, 1.6]]])
    wrong = {
        "the division by sqrt(d) is missing": two_heads(3**2**0.5),
        "you divided by sqrt(C); a head is d = C / heads numbers wide": two_heads(3**0.5**0.5),
        "this is one head, as wide as all together": one_head(3**0.5**0.5),
        "this is one head, as wide as all together, though divided by the right sqrt(d)": one_head(3),
        "a bare view mixes the pixels up: split the last axis, (B, N, heads, d), then move the axis of heads forward": bare_view,
        "the heads have every other column; head 0 should have columns 0 ... d-1": alternating,
        "the heads have every other column; head 0 should have columns 0 ... d-1, and so on": alternating[
            :, :, [0, 2, 1, 3]
        ],
        "before the heads are put side by side, their axis must be moved back behind the pixels": not_moved_back,
    }
    expect(
        got,
        two_heads(3),
        "in each head, the word asked for has 3/5 of the attention and the others 1/5; unasked, each has 1/3",
        wrong,
    )


# ------------------------------------------------------------------------------------------------- 3. guided


class Network:
    """Answers x plus the caption's number, and remembers what it was asked."""

    def __init__(self):
        self.x, self.t, self.text = [], [], []

    def __call__(self, x, t, text):
        assert isinstance(t, torch.Tensor) and t.shape == (len(x),), (
            f"{len(x)} images need {len(x)} times t, as a tensor"
        )
        assert len(text) == len(x), f"the network was given {len(x)} images and {len(text)} captions"
        self.x.append(x)
        self.t.append(t)
        self.text.append(text)
        return x + text[:, :1, :1, None]


X, T, CONTEXT = images(10, 20), torch.tensor([7, 3]), captions(1, 1, 3, 5)


def test_3_what_the_network_is_asked(ex):
    net = Network()
    call(ex.guided, net, X, T, CONTEXT, 2.0)
    assert len(net.x) == 1, f"the network should be asked once, with both halves as one batch, not {len(net.x)} times"
    wrong = {"the images came as 0 0 1 1; they should come as 0 1 0 1, as the captions do": images(10, 10, 20, 20)}
    expect(net.x[0], images(10, 20, 10, 20), "the network should see all images, and then all of them again", wrong)
    expect(net.text[0], CONTEXT, "the network should be given context as it is")
    assert net.t[0].tolist() == [7, 3, 7, 3], (
        f"t should be doubled as the images are, [7, 3, 7, 3], not {net.t[0].tolist()}"
    )


def test_3_the_formula(ex):
    got = call(ex.guided, Network(), X, T, CONTEXT, 2.0)  # uncond is 11 and 21, cond 13 and 25
    wrong = {
        "the sign is wrong: guidance leads away from the caption": images(11 - 4, 21 - 8),
        "this is Ho & Salimans' w, (1 + w) cond - w uncond, which guides by one more": images(
            3 * 13 - 2 * 11, 3 * 25 - 2 * 21
        ),
        "the halves are swapped: the first B answers are uncond": images(13 - 4, 25 - 8),
        "the difference is all that is left: add uncond": images(4, 8),
        "this is the conditional answer, with no guidance": images(13, 25),
    }
    expect(
        got, images(11 + 2 * 2, 21 + 2 * 4), "uncond is 11 and 21, cond is 13 and 25; w = 2 goes twice as far", wrong
    )


def test_3_off_and_without_words(ex):
    net = Network()
    wrong = {
        "the halves are swapped": images(11, 21),
        "w = 1 is off; with Ho & Salimans' w, 0 would be": images(15, 29),
    }
    expect(
        call(ex.guided, net, X, T, CONTEXT, 1.0), images(13, 25), "at w = 1 the answer is the conditional one", wrong
    )
    expect(call(ex.guided, net, X, T, CONTEXT, 0.0), images(11, 21), "at w = 0 the answer is the unconditional one")


# ---------------------------------------------------------------------------------------- 4. negative_prompt


class Encoder:
    """Gives every caption a number of its own, as (N, 2, 3) text. Remembers what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, texts):
        assert isinstance(texts, list), f"encode takes a list of captions, not {type(texts).__name__}"
        for text in texts:
            assert isinstance(text, str), (
                f"encode was given {text!r} as a caption; where there is no negative prompt, give it the empty one, ''"
            )
        self.calls.append(texts)
        return captions(*[float(sum(place * ord(c) for place, c in enumerate(text, 1))) for text in texts], M=2, D=3)


def test_4_one_with_and_one_without(ex):
    encode, read = Encoder(), Encoder()
    prompts, negatives = ["a red monster", "a blue monster"], ["wings", None]
    got = call(ex.negative_prompt, encode, list(prompts), list(negatives))
    for text in sum(encode.calls, []):
        assert not ("red" in text and "wings" in text), (
            f"the negative prompt was joined with the prompt, '{text}', which asks for wings; it is a caption of its own"
        )
    if isinstance(got, torch.Tensor):
        assert len(got) != 6, (
            "there are three captions for each image; the negative prompt takes the place of the empty one"
        )
        assert len(got) == 4, (
            f"two images have four captions, two to lead away from and two to lead towards, not {len(got)}"
        )
    wrong = {
        "the halves are swapped: first what to lead away from, then the prompts": read(
            ["a red monster", "a blue monster", "wings", ""]
        ),
        "the captions alternate; first come all to lead away from, then all prompts": read(
            ["wings", "a red monster", "", "a blue monster"]
        ),
        "the negative prompts were not used": read(["", "", "a red monster", "a blue monster"]),
        "the first image's negative prompt was used for all": read(
            ["wings", "wings", "a red monster", "a blue monster"]
        ),
        "None became a word; it means the empty caption, ''": read(
            ["wings", "None", "a red monster", "a blue monster"]
        ),
    }
    right = read(["wings", "", "a red monster", "a blue monster"])
    expect(
        got, right, "the captions should be 'wings', '', 'a red monster' and 'a blue monster', in this order", wrong
    )
    assert len(encode.calls) == 1, f"encode should be called once, with all captions, not {len(encode.calls)} times"


# ------------------------------------------------------------------------------------------------ 5. rescale


def test_5_two_images(ex):
    """Guided, the first image is four times as strong as without guidance, and the second half as strong."""
    cond = torch.tensor([[1.0, -1], [6, -6]]).view(2, 1, 1, 2)
    guided = torch.tensor([[14.0, 6], [3, -3]]).view(2, 1, 1, 2)  # 10 +- 4, and +- 3
    got = call(ex.rescale, guided, cond, 0.25)

    def mixed(first: float, second: float, phi: float = 0.25) -> torch.Tensor:
        return guided * (phi * torch.tensor([first, second]) + 1 - phi).view(2, 1, 1, 1)

    batch = (cond.std() / guided.std()).item()
    wrong = {
        "phi was forgotten: mix with phi rescaled + (1 - phi) guided": mixed(1 / 4, 2, phi=1),
        "phi is the wrong way round: it is the share of the rescaled answer": mixed(1 / 4, 2, phi=0.75),
        "the ratio is upside down: multiply by std(cond) and divide by std(guided)": mixed(4, 1 / 2),
        "you took variances; it is standard deviations": mixed(1 / 16, 4),
        "the standard deviation is that of the whole batch; each image has its own": mixed(batch, batch),
        "you rescaled cond; it is the guided answer that is rescaled": 0.25
        * cond
        * torch.tensor([4, 0.5]).view(2, 1, 1, 1)
        + 0.75 * guided,
        "you rescaled cond, and forgot phi; it is the guided answer that is rescaled": cond
        * torch.tensor([4, 0.5]).view(2, 1, 1, 1),
        "you mixed with cond; the other part of the mixture is guided, as it was": 0.25 * mixed(1 / 4, 2, phi=1)
        + 0.75 * cond,
    }
    right = mixed(1 / 4, 2)
    expect(
        got,
        right,
        "rescaled, the images are 1/4 and 2 times as strong; a quarter of that and three quarters of guided",
        wrong,
    )


def test_5_all_channels_together(ex):
    cond = torch.tensor([1.0, -1, 1, -1]).view(1, 2, 1, 2)
    guided = torch.tensor([1.0, -1, 7, -7]).view(1, 2, 1, 2)
    wrong = {"each channel has got a strength of its own; take the standard deviation over the channels, too": cond}
    hint = "the mean squares are 1 and (1 + 49) / 2 = 25, so that the image is five times too strong"
    expect(call(ex.rescale, guided, cond, 1.0), guided / 5, hint, wrong)


# -------------------------------------------------------------------------------------- 6. dynamic_threshold


def test_6_a_strong_image_and_a_weak_one(ex):
    steps = torch.arange(11) * torch.tensor([1.0, -1]).repeat(6)[:11]  # 0, -1, 2, -3, ... 10
    x0 = torch.stack([steps / 2, steps / 20]).view(2, 1, 1, 11)  # up to 5, and up to 0.5
    got = call(ex.dynamic_threshold, x0, 0.8)

    def shrunk(first: float, second: float = 1) -> torch.Tensor:
        s = torch.tensor([first, second]).view(2, 1, 1, 1)
        return x0.clamp(-s, s) / s

    batch, signed = x0.abs().flatten().quantile(0.8).item(), x0.flatten(1).quantile(0.8, dim=1).tolist()
    wrong = {
        "you cut off at -1 and 1 and did nothing else; cut off at s, and divide by it": x0.clamp(-1, 1),
        "the division by s is missing": torch.cat([x0[:1].clamp(-4, 4), x0[1:]]),
        "s is below 1 for the weak image, which makes it stronger; s is at least 1": shrunk(4, 0.4),
        "s is that of the whole batch; each image has its own": shrunk(max(1, batch), max(1, batch)),
        "s is that of the whole batch, and not at least 1; each image has its own": shrunk(batch, batch),
        "s is a quantile of |x0|, not of x0": shrunk(*(max(1, s) for s in signed)),
        "you divided without cutting off: 5 / 4 is still above 1": x0 / torch.tensor([4.0, 1]).view(2, 1, 1, 1),
        "s is the largest |x0|; it should be a quantile, which a few pixels cannot drive": shrunk(5),
        "s is at least 1, not at most": shrunk(1, 0.4),
    }
    expect(
        got,
        shrunk(4),
        "80 % of the first |x0| are at most s = 4; of the second they are below 1, so s = 1 and nothing changes",
        wrong,
    )


def test_6_all_channels_together(ex):
    x0 = torch.cat([torch.full((1, 1, 1, 5), 0.5), torch.full((1, 1, 1, 5), 2.0)], dim=1)
    wrong = {
        "each channel was given a threshold of its own, which changes the colours": torch.cat(
            [x0[:, :1], x0[:, 1:] / 2], dim=1
        )
    }
    expect(call(ex.dynamic_threshold, x0, 1.0), x0 / 2, "one s for all channels: the image is twice too strong", wrong)


# -------------------------------------------------------------------------------------- 7. attribute_accuracy

ASKED = torch.tensor([[1, -1, 2], [0, -1, -1], [3, 1, 0], [2, 2, -1], [-1, 0, -1]])
FOUND = torch.tensor([[1, 0, 2], [1, 1, 1], [3, 1, 2], [2, 2, 0], [0, 0, 0]])  # 7 of 9 are as asked for


def three(got: object) -> torch.Tensor:
    assert isinstance(got, tuple) and len(got) == 3, (
        "three numbers were expected here, (share, low, high): is a `return` missing?"
    )
    return torch.tensor([float(value) for value in got])


def test_7_the_share(ex):
    share = three(call(ex.attribute_accuracy, FOUND, ASKED))[0]
    wrong = {
        "what was not asked for is counted as if it were wrong: 15 answers, but 9 questions": torch.tensor(7 / 15),
        "what was not asked for is counted as if it were right: 15 answers, but 9 questions": torch.tensor(13 / 15),
        "this is the mean of each picture's share; count questions, not pictures": torch.tensor(
            (1 + 0 + 2 / 3 + 1 + 1) / 5
        ),
        "this is the share of pictures in which everything is right; count questions": torch.tensor(3 / 5),
        "this is the number that was found, not their share": torch.tensor(7.0),
    }
    expect(share, torch.tensor(7 / 9), "9 values were asked for in all, and 7 of them were found", wrong)


def test_7_the_interval(ex):
    interval = three(call(ex.attribute_accuracy, FOUND, ASKED))[1:]
    wrong = {
        "this is the plain interval, which reaches beyond 1; take Wilson's": torch.tensor([0.506161, 1.049395]),
        "this is the plain interval, cut off at 1; take Wilson's": torch.tensor([0.506161, 1.0]),
        "n is the number of questions, 9, not of pictures": torch.tensor([0.357646, 0.956525]),
        "n is the number of questions, 9, not of all answers": torch.tensor([0.525061, 0.917223]),
        "Wilson's formula is divided by 1 + z^2/n as a whole": torch.tensor([0.645766, 1.336634]),
    }
    expect(
        interval,
        torch.tensor([0.452583, 0.936777]),
        "with k = 7 and n = 9, Wilson's interval goes from 0.4526 to 0.9368",
        wrong,
    )


def test_7_everything_was_found(ex):
    got = three(call(ex.attribute_accuracy, torch.tensor([[1, 2], [0, 1]]), torch.tensor([[1, 2], [0, 1]])))
    wrong = {"this is the plain interval: 4 of 4 is no proof of 100 %": torch.ones(3)}
    expect(
        got,
        torch.tensor([1, 1 / (1 + 1.96**2 / 4), 1]),
        "4 of 4 is a share of 1, and Wilson's interval goes from 0.51 to 1",
        wrong,
    )
