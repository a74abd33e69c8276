"""Tests for you: each uses numbers that can be checked by hand. See README.md, "How to work".

python -m pytest 02_cfg_pokemon/exercises -x                    your exercises.py, up to the first failure
EXERCISES=mine.py python -m pytest 02_cfg_pokemon/exercises     another file
"""

import math
import os
from pathlib import Path

import pytest
import torch

from common.grade.checks import call, expect, expect_gradients, load, numbers, tensor


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


# -------------------------------------------------------------------------------------------------- 1. caption_dropout


def test_1_two_of_five(ex):
    u = torch.tensor([0.05, 0.5, 0.19, 0.9, 0.3])
    got = call(ex.caption_dropout, captions(1, 2, 3, 4, 5), captions(-1)[0], u, 0.2)
    if isinstance(got, torch.Tensor):
        assert len(got) == 5, (
            f"of 5 captions you return {len(got)}: the images stay in the batch, and only their captions are dropped"
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


def test_1_both_can_learn(ex):
    text, empty = captions(1, 2, 3).requires_grad_(), captions(-1)[0].requires_grad_()
    got = call(ex.caption_dropout, text, empty, torch.tensor([0.1, 0.8, 0.9]), 0.2)
    expect_gradients(got, torch.cat([empty[None], text[1:]]), {"the captions": text, "the empty caption": empty})


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


# -------------------------------------------------------------------------------------------------- 2. negative_prompt


class Encoder:
    """Gives every caption a number of its own, as (N, 2, 3) text. Remembers what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, texts):
        assert isinstance(texts, list | tuple), f"encode takes a list of captions, not {type(texts).__name__}"
        for text in texts:
            assert isinstance(text, str), (
                f"encode was given {text!r} as a caption; where there is no negative prompt, give it the empty one, ''"
            )
        self.calls.append(list(texts))
        return captions(*[float(sum(place * ord(c) for place, c in enumerate(text, 1))) for text in texts], M=2, D=3)


def test_2_one_with_and_one_without(ex):
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


# ----------------------------------------------------------------------------------------------------------- 3. guided


class Network:
    """Predicts x plus the caption's number, and remembers its inputs."""

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


def test_3_what_the_network_gets(ex):
    net = Network()
    call(ex.guided, net, X, T, CONTEXT, 2.0)
    assert len(net.x) == 1, f"the network should be called once, with both halves as one batch, not {len(net.x)} times"
    wrong = {"the images came as 0 0 1 1; they should come as 0 1 0 1, as the captions do": images(10, 10, 20, 20)}
    expect(net.x[0], images(10, 20, 10, 20), "the network should get all images, and then all of them again", wrong)
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
        "the halves are swapped: the first B predictions are uncond": images(13 - 4, 25 - 8),
        "the difference is all that is left: add uncond": images(4, 8),
        "this is the conditional prediction, without guidance": images(13, 25),
        "you clipped the result to [-1, 1], which is not asked for": images(1, 1),
    }
    expect(
        got, images(11 + 2 * 2, 21 + 2 * 4), "uncond is 11 and 21, cond is 13 and 25; w = 2 goes twice as far", wrong
    )


def test_3_off_and_without_caption(ex):
    net = Network()
    wrong = {
        "the halves are swapped": images(11, 21),
        "w = 1 is off; with Ho & Salimans' w, 0 would be": images(15, 29),
    }
    expect(
        call(ex.guided, net, X, T, CONTEXT, 1.0),
        images(13, 25),
        "at w = 1 the result is the conditional prediction",
        wrong,
    )
    expect(
        call(ex.guided, net, X, T, CONTEXT, 0.0), images(11, 21), "at w = 0 the result is the unconditional prediction"
    )


# ------------------------------------------------------------------------------------------------ 4. dynamic_threshold


def test_4_one_image_beyond_1_and_one_within(ex):
    steps = torch.arange(11) * torch.tensor([1.0, -1]).repeat(6)[:11]  # 0, -1, 2, -3, ... 10
    x0 = torch.stack([steps / 2, steps / 20]).view(2, 1, 1, 11)  # up to 5, and up to 0.5
    got = call(ex.dynamic_threshold, x0, 0.8)

    def shrunk(first: float, second: float = 1) -> torch.Tensor:
        s = torch.tensor([first, second]).view(2, 1, 1, 1)
        return x0.clamp(-s, s) / s

    batch, signed = x0.abs().flatten().quantile(0.8).item(), x0.flatten(1).quantile(0.8, dim=1).tolist()
    wrong = {
        "you clipped at -1 and 1 and did nothing else; clip at s, and divide by it": x0.clamp(-1, 1),
        "the division by s is missing": torch.cat([x0[:1].clamp(-4, 4), x0[1:]]),
        "s is below 1 for the second image, which stretches it; s is at least 1": shrunk(4, 0.4),
        "s is that of the whole batch; each image has its own": shrunk(max(1, batch), max(1, batch)),
        "s is that of the whole batch, and not at least 1; each image has its own": shrunk(batch, batch),
        "s is a quantile of |x0|, not of x0": shrunk(*(max(1, s) for s in signed)),
        "you divided without clipping: 5 / 4 is still above 1": x0 / torch.tensor([4.0, 1]).view(2, 1, 1, 1),
        "s is the largest |x0|; it should be a quantile, which a few extreme pixels hardly change": shrunk(5),
        "s is at least 1, not at most": shrunk(1, 0.4),
        "s was limited to 2; it has no upper limit": shrunk(2),
        "s was limited to 3; it has no upper limit": shrunk(3),
    }
    expect(
        got,
        shrunk(4),
        "80 % of the first |x0| are at most s = 4; of the second they are below 1, so s = 1 and nothing changes",
        wrong,
    )


def test_4_all_channels_together(ex):
    x0 = torch.cat([torch.full((1, 1, 1, 5), 0.5), torch.full((1, 1, 1, 5), 2.0)], dim=1)
    wrong = {
        "each channel was given a threshold of its own, which changes the colours": torch.cat(
            [x0[:, :1], x0[:, 1:] / 2], dim=1
        )
    }
    expect(call(ex.dynamic_threshold, x0, 1.0), x0 / 2, "one s for all channels: the image reaches 2", wrong)


# ---------------------------------------------------------------------------------------------------------- 5. rescale


def test_5_two_images(ex):
    """Guidance multiplied the standard deviation of the first image by four, and halved that of the second."""
    cond = torch.tensor([[1.0, -1], [6, -6]]).view(2, 1, 1, 2)
    guided = torch.tensor([[14.0, 6], [3, -3]]).view(2, 1, 1, 2)  # 10 +- 4, and +- 3
    got = call(ex.rescale, guided, cond, 0.25)

    def mixed(first: float, second: float, phi: float = 0.25) -> torch.Tensor:
        return guided * (phi * torch.tensor([first, second]) + 1 - phi).view(2, 1, 1, 1)

    batch = (cond.std() / guided.std()).item()
    wrong = {
        "phi was forgotten: mix with phi rescaled + (1 - phi) guided": mixed(1 / 4, 2, phi=1),
        "phi is the wrong way round: it is the share of the rescaled prediction": mixed(1 / 4, 2, phi=0.75),
        "the ratio is upside down: multiply by std(cond) and divide by std(guided)": mixed(4, 1 / 2),
        "you took variances; it is standard deviations": mixed(1 / 16, 4),
        "the standard deviation is that of the whole batch; each image has its own": mixed(batch, batch),
        "you rescaled cond; it is the guided prediction that is rescaled": 0.25
        * cond
        * torch.tensor([4, 0.5]).view(2, 1, 1, 1)
        + 0.75 * guided,
        "you rescaled cond, and forgot phi; it is the guided prediction that is rescaled": cond
        * torch.tensor([4, 0.5]).view(2, 1, 1, 1),
        "you mixed with cond; the other part of the mixture is guided, as it was": 0.25 * mixed(1 / 4, 2, phi=1)
        + 0.75 * cond,
    }
    right = mixed(1 / 4, 2)
    expect(
        got,
        right,
        "rescaled, the images have 1/4 and 2 times their standard deviation; the result is a quarter of that and three quarters of guided",
        wrong,
    )


def test_5_little_contrast(ex):
    cond, guided = (torch.tensor([value, -value]).view(1, 1, 1, 2) for value in (0.01, 0.04))
    got = tensor(call(ex.rescale, guided, cond, 1.0), cond)
    expect(
        100 * got,
        100 * cond,
        "standard deviations of 0.01 and 0.04 count as well; is there a constant in the divisor?",
    )


def test_5_all_channels_together(ex):
    cond = torch.tensor([1.0, -1, 1, -1]).view(1, 2, 1, 2)
    guided = torch.tensor([1.0, -1, 7, -7]).view(1, 2, 1, 2)
    wrong = {"each channel has a factor of its own; take the standard deviation over the channels, too": cond}
    hint = "the mean squares are 1 and (1 + 49) / 2 = 25, so the standard deviation is five times that of cond"
    expect(call(ex.rescale, guided, cond, 1.0), guided / 5, hint, wrong)


# ----------------------------------------------------------------------------------------------- 6. attribute_accuracy

ASKED = torch.tensor([[1, -1, 2], [0, -1, -1], [3, 1, 0], [2, 2, -1], [-1, 0, -1]])
FOUND = torch.tensor([[1, 0, 2], [1, 1, 1], [3, 1, 2], [2, 2, 0], [0, 0, 0]])  # 7 of 9 are as asked for


def three(got: object) -> torch.Tensor:
    return numbers(got, 3, "share, low and high").float()


def test_6_the_share(ex):
    share = three(call(ex.attribute_accuracy, FOUND, ASKED))[0]
    wrong = {
        "what was not requested is counted as if it were wrong: 15 values found, 9 requested": torch.tensor(7 / 15),
        "what was not requested is counted as if it were right: 15 values found, 9 requested": torch.tensor(13 / 15),
        "this is the mean of the shares of the images; count requested values, not images": torch.tensor(
            (1 + 0 + 2 / 3 + 1 + 1) / 5
        ),
        "this is the share of images in which everything is right; count requested values": torch.tensor(3 / 5),
        "this is k, the number found, not the share k / n": torch.tensor(7.0),
        "this is in percent; the share lies between 0 and 1": torch.tensor(700 / 9),
        "0 is a value like all others; only -1 was left open": torch.tensor(6 / 6),
        "the share was rounded, so that its interval is another one": torch.tensor(0.78),
    }
    expect(share, torch.tensor(7 / 9), "9 values were requested in all, and 7 of them were found", wrong)


def test_6_the_interval(ex):
    interval = three(call(ex.attribute_accuracy, FOUND, ASKED))[1:]
    wrong = {
        "this is the plain interval, which reaches beyond 1; take Wilson's": torch.tensor([0.506161, 1.049395]),
        "this is the plain interval, cut off at 1; take Wilson's": torch.tensor([0.506161, 1.0]),
        "n is the number of requested values, 9, not of images": torch.tensor([0.357646, 0.956525]),
        "n is the number of requested values, 9, not of all found ones": torch.tensor([0.525061, 0.917223]),
        "Wilson's formula is divided by 1 + z^2/n as a whole": torch.tensor([0.645766, 1.336634]),
        "the interval was rounded": torch.tensor([0.45, 0.94]),
        "this is the interval of 90 %; for 95 %, z is 1.96": torch.tensor([0.503618, 0.923512]),
        "this is the interval of 99 %; for 95 %, z is 1.96": torch.tensor([0.364508, 0.955271]),
    }
    expect(
        interval,
        torch.tensor([0.452583, 0.936777]),
        "with k = 7 and n = 9, Wilson's interval goes from 0.4526 to 0.9368",
        wrong,
    )


def test_6_everything_was_found(ex):
    got = three(call(ex.attribute_accuracy, torch.tensor([[1, 2], [0, 1]]), torch.tensor([[1, 2], [0, 1]])))
    wrong = {"this is the plain interval: 4 of 4 do not prove 100 %": torch.ones(3)}
    expect(
        got,
        torch.tensor([1, 1 / (1 + 1.96**2 / 4), 1]),
        "4 of 4 is a share of 1, and Wilson's interval goes from 0.51 to 1",
        wrong,
    )


# ------------------------------------------------------------------------------------------------- 7. loss_guided_step


ALPHA_BAR_T, ALPHA_BAR_S = 0.36, 0.64  # square roots 0.6 and 0.8, and so sigma_t = 0.8 and sigma_s = 0.6


def linear_eps(x):
    """A network whose x0_hat is (x + 0.8 * 0.25 x) / 0.6 = 2 x."""
    return -0.25 * x


def far_from_3(x0):
    """L of each image: the sum of (x0 - 3)^2 over its pixels. (B,)"""
    return (x0 - 3).square().flatten(1).sum(1)


def ddim_by_hand(x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    return 0.8 * (x - 0.8 * eps) / 0.6 + 0.6 * eps


def clipped_by_hand(x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    return 0.8 * ((x - 0.8 * eps) / 0.6).clamp(-1, 1) + 0.6 * eps


def test_7_follows_the_gradient(ex):
    x, gradient = images(1, 2, 0.5), images(-4, 4, -8)  # x0_hat is 2, 4 and 1: 2 (2 - 3) 2 = -4, and so on
    got = call(ex.loss_guided_step, linear_eps, far_from_3, x, ALPHA_BAR_T, ALPHA_BAR_S, 0.5)

    def step(factor: float) -> torch.Tensor:
        return ddim_by_hand(x, -0.25 * x + factor * gradient)

    wrong = {
        "the sign is wrong: this step makes the loss larger": step(-0.5 * 0.8),
        "the gradient is that with respect to x0; it is with respect to x, back through the network": step(0.4 / 2),
        "the gradient did not run through the network: call predict_eps with the x that requires a gradient": step(
            0.4 / 2 / 0.6
        ),
        "sigma_t is missing before the gradient": step(0.5),
        "sigma_t^2 stands before the gradient; it is sigma_t": step(0.5 * 0.64),
        "the loss was averaged over the batch; sum it, or a larger batch weakens the guidance": step(0.4 / 3),
        "x0 is guided, but the noise that is added back is not: both come from eps_tilde": step(0.4)
        - 0.6 * 0.4 * gradient,
        "the noise is guided, but x0 is not: both come from eps_tilde": step(0) + 0.6 * 0.4 * gradient,
        "this is DDIM: the gradient was not used": step(0),
        "you clipped the guided x0 to [-1, 1], as some samplers do; this step does not": clipped_by_hand(
            x, -0.25 * x + 0.4 * gradient
        ),
    }
    hint = "eps_tilde is -0.25 x + 0.5 * 0.8 * gradient, with the gradients -4, 4 and -8"
    expect(got, step(0.4), hint, wrong)
    assert not got.requires_grad, (
        "x_s still holds the graph of this step: return it detached, or memory grows with every step"
    )


def test_7_each_image_by_itself(ex):
    one = call(ex.loss_guided_step, linear_eps, far_from_3, images(1), ALPHA_BAR_T, ALPHA_BAR_S, 0.5)
    four = call(ex.loss_guided_step, linear_eps, far_from_3, images(1, 2, 5, 7), ALPHA_BAR_T, ALPHA_BAR_S, 0.5)
    hint = "the same image comes out differently in a larger batch: was the loss averaged instead of summed?"
    expect(four[:1], one, hint)


def test_7_within_no_grad(ex):
    x = images(1, 2)
    expect(
        call(ex.loss_guided_step, linear_eps, far_from_3, x, ALPHA_BAR_T, ALPHA_BAR_S, 0.0),
        ddim_by_hand(x, -0.25 * x),
        "with strength 0 the step is DDIM's",
    )
    try:
        with torch.no_grad():
            got = call(ex.loss_guided_step, linear_eps, far_from_3, x, ALPHA_BAR_T, ALPHA_BAR_S, 0.5)
    except RuntimeError as problem:
        raise AssertionError(
            f"samplers run within torch.no_grad(); take the gradient within torch.enable_grad() ({problem})"
        ) from None
    expect(got, ddim_by_hand(x, -0.25 * x + 0.4 * images(-4, 4)), "the same step within torch.no_grad()")


# -------------------------------------------------------------------------------------------------- 8. cross_attention


def test_8_a_pixel_reads_two_tokens(ex):
    """The query of the first pixel fits the first token three times as well as the second; that of the other pixel is 0."""
    x = torch.tensor([[[0, 2 * math.log(3), 0, 0], [0, 0, 0, 0]]])
    text = torch.tensor([[[1.0, 0, 5, 0], [0, 0, 0, 7]]])
    W_q = torch.zeros(4, 4)
    W_q[0, 1] = 1  # the query is x's second number
    W_k, W_v = torch.diag(torch.tensor([1.0, 1, 0, 0])), torch.diag(torch.tensor([0.0, 0, 1, 1]))
    got = call(ex.cross_attention, x, text, W_q, W_k, W_v, 1)

    def reading(first: tuple[float, float], second: tuple[float, float] = (0.5, 0.5)) -> torch.Tensor:
        """The values of the two tokens in these shares."""
        return torch.tensor([[[0, 0, 5 * a, 7 * b] for a, b in (first, second)]])

    wrong = {
        "the division by sqrt(d) is missing; here d = 4, and so sqrt(d) = 2": reading((0.9, 0.1)),
        "divide by sqrt(d), not by d": reading((3**0.5 / (3**0.5 + 1), 1 / (3**0.5 + 1))),
        "the softmax runs over the pixels; it is over the tokens, so that the attention of each pixel sums to 1": reading(
            (0.75, 0.5), (0.25, 0.5)
        ),
        "without a softmax, the scores do not sum to 1": reading((math.log(3), 0), (0, 0)),
        "W_q is kept as (out, in): q = x W_q^T": reading((0.5, 0.5)),
        "K and V are swapped: queries are compared with K, and the result averages V": torch.tensor(
            [[[0.5, 0, 0, 0], [0.5, 0, 0, 0]]]
        ),
    }
    hint = "scores of (2 log 3) / 2 and 0 become 3/4 and 1/4 of the attention; the values are (0, 0, 5, 0) and (0, 0, 0, 7)"
    expect(got, reading((0.75, 0.25)), hint, wrong)


def test_8_a_single_token_has_all_the_attention(ex):
    x, text = torch.tensor([[[1.0, 2], [3, 4], [5, 6]]]), torch.tensor([[[1.0, 2, 3]]])
    W_k, W_v = torch.tensor([[0.0, 0, 1], [1, 0, 0]]), torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    got = call(ex.cross_attention, x, text, torch.eye(2), W_k, W_v, 1)
    wrong = {
        "you returned the key of the token (K); the result averages values (V)": torch.tensor([3.0, 1]).expand(1, 3, 2)
    }
    expect(
        got, torch.tensor([1.0, 5]).expand(1, 3, 2), "every pixel reads the only value, text W_v^T = (1, 2 + 3)", wrong
    )


def two_heads(e: float) -> torch.Tensor:
    """If the token that fits the query of a head has e times the attention of each other."""
    fits, other = e / (e + 2), 1 / (e + 2)
    return torch.tensor(
        [[[fits, 4 * other, 1 / 3, 8 / 3], [1 / 3, 4 / 3, fits, 8 * other], [fits, 4 * other, fits, 8 * other]]]
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


def test_8_two_heads(ex):
    """Head 0 (columns 0 and 1) of the first and third pixel fits token 0;
    head 1 of the second and third fits token 1.
    """
    q = 2**0.5 * math.log(3)
    x = torch.tensor([[[q, 0, 0, 0], [0, 0, q, 0], [q, 0, q, 0]]])
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
        "in each head, the token whose key fits the query has 3/5 of the attention and the others 1/5; with a query of zero each has 1/3",
        wrong,
    )


def attention_by_hand(x, text, W_q, W_k, W_v):
    """With one head, as wide as x."""
    return (x @ W_q.T @ (text @ W_k.T).mT / x.shape[-1] ** 0.5).softmax(-1) @ (text @ W_v.T)


def check_attention_learns(ex, x, text, weights, heads, attend=attention_by_hand) -> None:
    """The gradients of everything that learns, with those of `attend`."""
    inputs = [each.clone().requires_grad_() for each in (x, text, *weights)]
    named = dict(zip(("the pixels x", "the text", "W_q", "W_k", "W_v"), inputs, strict=True))
    expect_gradients(ex.cross_attention(*inputs, heads), attend(*inputs), named)


def check_large_scores(ex, x, text, weights, heads, attend=lambda x, text, W: attention_by_hand(x, text, *W)) -> None:
    """Scores of some hundreds, as trained networks have them."""
    got, right = call(ex.cross_attention, 100 * x, text, *weights, heads), attend(100 * x, text, weights)
    if isinstance(got, torch.Tensor):
        assert torch.isfinite(got).all(), (
            "scores of some hundreds give NaN: exp() overflows in float32 above 88; subtract each row's largest score "
            "first, or use softmax, which does"
        )
    expect(got, right, "with scores of some hundreds the result is another one; are the scores limited?", atol=1e-2)


def test_8_everything_learns(ex):
    rng = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 3, 4, generator=rng), torch.randn(1, 2, 4, generator=rng)
    check_attention_learns(ex, x, text, list(torch.randn(3, 4, 4, generator=rng)), 1)


def test_8_large_scores(ex):
    rng = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 6, 4, generator=rng), torch.randn(1, 4, 4, generator=rng)
    check_large_scores(ex, x, text, list(torch.randn(3, 4, 4, generator=rng)), 1)


# ------------------------------------------------------------------------------------------------- 9. tilted_gaussian


def two(got: object) -> torch.Tensor:
    return numbers(got, 2, "mean and standard deviation").float()


def test_9_off_and_plain(ex):
    expect(
        two(call(ex.tilted_gaussian, 2.0, 0.5, 0.0)),
        torch.tensor([0.0, 1.0]),
        "at w = 0 the product is p(x) = N(0, 1)",
    )
    wrong = {
        "p(c | x) is proportional to p(x | c) / p(x); you did not divide by p(x)": torch.tensor([2 * 4 / 5, 5**-0.5]),
        "the second number should be the standard deviation; this is the variance": torch.tensor([2.0, 0.25]),
    }
    expect(
        two(call(ex.tilted_gaussian, 2.0, 0.5, 1.0)),
        torch.tensor([2.0, 0.5]),
        "at w = 1 it is p(x | c) = N(2, 0.5^2)",
        wrong,
    )


def test_9_by_monte_carlo(ex):
    """Draws from p(x), weighted with (p(x | c) / p(x))^w."""
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for m, s, w in ((0.6, 0.8, 2.0), (-0.5, 0.7, 3.0)):
        weight = (w * (x.square() / 2 - ((x - m) / s).square() / 2)).exp()
        mean = (weight * x).sum() / weight.sum()
        std = ((weight * (x - mean).square()).sum() / weight.sum()).sqrt()
        wrong = {
            "this is N(w m, s^2): the product of the densities is not shifted by w": torch.tensor([w * m, s]),
            "this is p(x | c)^w; p(x)^(1 - w) is missing": torch.tensor([m, s / w**0.5]),
            "p(c | x) is proportional to p(x | c) / p(x); you did not divide by p(x)": torch.tensor(
                [w * m / s**2 / (1 + w / s**2), (1 + w / s**2) ** -0.5]
            ),
            "the second number should be the standard deviation; this is the variance": torch.tensor(
                [w * m / s**2 / (1 - w + w / s**2), 1 / (1 - w + w / s**2)]
            ),
        }
        hint = f"with m = {m}, s = {s} and w = {w:g}, Monte Carlo finds the mean {mean:.3f} and the standard deviation {std:.3f}"
        expect(two(call(ex.tilted_gaussian, m, s, w)), torch.stack([mean, std]).float(), hint, wrong, atol=0.01)


# --------------------------------------------------------------------------------------------- 10. fix_training_batch


class NoiseNetwork:
    """Predicts x_t / 2 + the caption's number, times a weight of 1, and remembers its inputs."""

    def __init__(self):
        self.x, self.t, self.text, self.weight = [], [], [], torch.ones((), requires_grad=True)

    def __call__(self, x, t, text):
        assert len(text) == len(x) == len(t), (
            f"the network got {len(x)} images, {len(t)} times and {len(text)} captions"
        )
        self.x.append(x)
        self.t.append(t)
        self.text.append(text)
        return self.weight * (x / 2 + text.mean((1, 2)).view(-1, 1, 1, 1))


def dropped_captions(ex, batches: int, B: int, p: float, seed: int) -> torch.Tensor:
    """Which captions each batch lost, after checking that each is whole and that the loss is right. (batches, B)"""
    x0, text, empty = (
        images(*[i / B for i in range(B)]),
        captions(*range(1, B + 1), M=4, D=4),
        captions(-1, M=4, D=4)[0],
    )
    alpha_bar, rng, lost = torch.tensor([1.0, 0.9, 0.5, 0.1]), torch.Generator().manual_seed(seed), []
    for _ in range(batches):
        net = NoiseNetwork()
        loss = call(ex.fix_training_batch, net, x0, text, empty, alpha_bar, p, rng)
        assert len(net.x) == 1, f"the network should be called once, not {len(net.x)} times"
        x, t, seen = net.x[0], net.t[0], net.text[0]
        assert len(seen) == B, (
            f"of {B} images only {len(seen)} stayed in the batch: it is their captions that are dropped"
        )
        is_empty, is_own = ((seen == each).flatten(1) for each in (empty, text))
        whole = is_empty.all(1) | is_own.all(1)
        assert whole.all(), "the network got something that is neither the caption of the image nor the empty caption"
        a = alpha_bar[t].view(-1, 1, 1, 1)
        eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
        right = (net.weight * (x / 2 + seen.mean((1, 2)).view(-1, 1, 1, 1)) - eps).square().mean()
        expect(loss, right, "the loss is no longer the mean squared error of the predicted noise", atol=1e-3)
        if not lost:
            expect_gradients(loss, right, {"the network": net.weight})
        lost.append(is_empty.all(1))
    return torch.stack(lost)


def check_dropped(lost: torch.Tensor, p: float) -> None:
    share, mixed = lost.float().mean().item(), (lost.any(1) & ~lost.all(1)).float().mean().item()
    assert mixed > 0, (
        "one random number decided for the whole batch: either all captions were dropped or none; each image needs its own"
    )
    assert abs(share - (1 - p)) > 0.05, (
        f"captions were dropped with probability 1 - p = {1 - p:g} instead of p = {p:g}"
    )
    assert abs(share - p) < 0.05, f"{share:.0%} of the captions were dropped instead of {p:.0%}"
    batches, B = lost.shape
    places = (lost.float().mean(0) - share).square().mean().item() / (p * (1 - p) / batches)
    assert places < 3, "some places in the batch lose their caption always, and some never; it should be random"
    spread = lost.float().sum(1).var().item() / (B * p * (1 - p))
    assert 0.25 < spread < 3, (
        "the captions of a batch are not dropped independently of each other: how many are dropped varies from batch to "
        f"batch with {spread:.2f} times the variance that it should have"
    )


def test_10_each_image_is_decided_by_itself(ex):
    dropped_captions(ex, 2, 4, 0.3, seed=0)  # as many captions as tokens and numbers
    check_dropped(dropped_captions(ex, 40, 60, 0.3, seed=0), 0.3)


# -------------------------------------------------------------------------------------------- 11. fix_guided_sampling


def shifted_eps(x, t, text):
    """A network that predicts 0.5 x + the number of the caption."""
    assert len(x) == len(t) == len(text)
    return 0.5 * x + text.mean((1, 2)).view(-1, 1, 1, 1)


def guided_sample(x, text, empty, times, alpha_bar, mix, limit=math.inf):
    """The sampler, with mix(uncond, cond) in the place of guidance, and x cut off at -limit and limit."""
    for t, s in zip(times[:-1], times[1:], strict=True):
        level = torch.full((len(x),), t)
        eps = mix(shifted_eps(x, level, empty.expand_as(text)), shifted_eps(x, level, text))
        x = (
            alpha_bar[s].sqrt() * (x - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()
            + (1 - alpha_bar[s]).sqrt() * eps
        ).clamp(-limit, limit)
    return x


CLIPPED = "you clipped x to [-1, 1] at every step, which was not the fault: noisy images leave that range"


def guided_sampling_mistakes(w: float) -> dict:
    return {
        "the halves are still swapped: context holds the empty captions first, so the first half is uncond": lambda u, c: (
            c + w * (u - c)
        ),
        "the sign is wrong: guidance leads away from the prompt": lambda u, c: u - w * (c - u),
        "this guides by one more than w: at w = 1 it should be the conditional prediction": lambda u, c: (
            u + (1 + w) * (c - u)
        ),
        "this is the conditional prediction, whatever w is": lambda u, c: c,
        "the difference alone is left: add uncond": lambda u, c: w * (c - u),
    }


def test_11_towards_the_prompt(ex):
    alpha_bar, times = torch.tensor([1.0, 0.64, 0.5, 0.36]), [3, 1, 0]
    x, text, empty = images(1, -1), captions(0.2, 0.6), captions(-0.1)[0]
    for w in (3.0, 1.0, 0.0):
        got = call(ex.fix_guided_sampling, shifted_eps, x, text, empty, w, times, alpha_bar)
        right = guided_sample(x, text, empty, times, alpha_bar, lambda u, c: u + w * (c - u))  # noqa: B023
        wrong = {
            message: guided_sample(x, text, empty, times, alpha_bar, mix)
            for message, mix in guided_sampling_mistakes(w).items()
        }
        mix = lambda u, c: u + w * (c - u)  # noqa: B023, E731
        wrong[CLIPPED] = guided_sample(x, text, empty, times, alpha_bar, mix, limit=1.0)
        what = {0.0: "without the prompt", 1.0: "with the conditional prediction", 3.0: "three times as far"}[w]
        expect(got, right, f"at w = {w:g} the samples should be made {what}", wrong)


# ------------------------------------------------------------------------------------------- 12. fix_masked_attention


def test_12_padding_changes_nothing(ex):
    """One caption of two tokens, alone and padded with three more, whose contents do not matter."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(1, 2, 3, 4, generator=rng), *torch.randn(2, 1, 2, 5, 4, generator=rng)
    right = (q @ k[:, :, :2].mT / 2).softmax(-1) @ v[:, :, :2]
    every = torch.ones(1, 2, dtype=torch.bool)
    expect(
        call(ex.fix_masked_attention, q, k[:, :, :2], v[:, :, :2], every),
        right,
        "without padding this is plain attention",
    )
    mask = torch.tensor([[True, True, False, False, False]])
    scores = q @ k.mT / 2
    wrong = {
        "a score of 0 is not a share of 0: exp(0) = 1, so padding still gets attention": (scores * mask).softmax(-1)
        @ v,
        "the padding was removed after the softmax, so the shares no longer sum to 1": (scores.softmax(-1) * mask) @ v,
        "the mask is the wrong way round: it is True for the tokens of the caption": scores.masked_fill(
            mask, -math.inf
        ).softmax(-1)
        @ v,
        "the mask was added as 1 and 0, which hardly lowers the share of padding": (scores + mask).softmax(-1) @ v,
        "padding still gets attention": scores.softmax(-1) @ v,
    }
    got = call(ex.fix_masked_attention, q, k, v, mask)
    expect(got, right, "with padding the result should be what the two tokens alone give", wrong)


def check_faint_padding(ex, q, k, v, mask) -> None:
    """Scores of -150 for the tokens of the caption: a padding of -100 would win."""
    q, k = torch.full_like(q, -150 / q.shape[-1] ** 0.5), torch.ones_like(k)
    own = mask[:, None, :, None].to(v.dtype)
    right = ((v * own).sum(2, keepdim=True) / own.sum(2, keepdim=True)).expand_as(q)
    hint = (
        "the scores of the caption's own tokens are all -150 here, and padding got attention: "
        "the score of padding should be -inf, or a number far below all scores"
    )
    expect(call(ex.fix_masked_attention, q, k, v, mask), right, hint)


def test_12_scores_of_minus_150(ex):
    v = torch.tensor([1.0, 2, 6]).view(1, 1, 3, 1).repeat(1, 1, 1, 2)
    check_faint_padding(ex, torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 3, 2), v, torch.tensor([[True, True, False]]))


def test_12_each_caption_has_its_own_mask(ex):
    q, k, v = (
        torch.zeros(2, 1, 1, 2),
        torch.zeros(2, 1, 3, 2),
        torch.tensor([1.0, 2, 6]).view(1, 1, 3, 1).repeat(2, 1, 1, 2),
    )
    mask = torch.tensor([[True, True, False], [True, True, True]])
    wrong = {
        "a score of 0 is not a share of 0: exp(0) = 1, so padding still gets attention": torch.full((2, 1, 1, 2), 3.0),
        "the mask of the first caption was used for all": torch.full((2, 1, 1, 2), 1.5),
    }
    right = torch.tensor([1.5, 3.0]).view(2, 1, 1, 1).repeat(1, 1, 1, 2)
    got = call(ex.fix_masked_attention, q, k, v, mask)
    expect(got, right, "all scores are 0: the first caption averages 1 and 2, the second 1, 2 and 6", wrong)


# ------------------------------------------------------------------------------------------------ 13. guidance_scale

BLOBS, WIDTH = 5, 0.25
LEAK = 0.25  # weight of each wrong blob in the conditional prediction; that of the right one is 1
INSIDE, SPREAD = 0.84, 0.80  # the goals
NOISES = torch.logspace(math.log10(20), math.log10(0.05), 30).tolist()  # sigma / sqrt(alpha_bar) of the levels


def centres(turn: float = 0.0) -> torch.Tensor:
    """Those of the blobs, on a circle of radius 1; the prompt asks for the first. (5, 2)"""
    angle = torch.arange(BLOBS) * (2 * math.pi / BLOBS) + turn
    return torch.stack([angle.cos(), angle.sin()], 1)


def expected_x0(y: torch.Tensor, noise: float, log_weight: torch.Tensor, blobs: torch.Tensor) -> torch.Tensor:
    """E[x0 | y] where y = x0 + noise eps, for blobs with these weights. (N, 2)"""
    variance = WIDTH**2 + noise**2
    # |y - blob|^2 without |y|^2, which is the same for all blobs
    share = (log_weight + (y @ blobs.T - blobs.square().sum(1) / 2) / variance).softmax(1)  # (N, 5)
    return noise**2 / variance * (share @ blobs) + WIDTH**2 / variance * y


def guided_points(scale, n: int = 8000, turn: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Samples of DDIM with guidance of scale(noise) at each level. (n, 2)"""
    blobs, everything = centres(turn), torch.zeros(BLOBS)
    asked = torch.full((BLOBS,), math.log(LEAK)).index_fill(0, torch.tensor(0), 0.0)
    y = NOISES[0] * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))  # y = x / sqrt(alpha_bar)
    for noise, after in zip(NOISES, [*NOISES[1:], 0.0], strict=True):
        w = float(scale(noise))
        assert math.isfinite(w), f"the scale at noise = {noise:.3g} is {w}"
        uncond, cond = (expected_x0(y, noise, weight, blobs) for weight in (everything, asked))
        x0 = uncond + w * (cond - uncond)
        y = x0 + after / noise * (y - x0)
    return y


def inside_and_spread(points: torch.Tensor, turn: float = 0.0) -> tuple[float, float]:
    blobs = centres(turn)
    inside = ((points - blobs[0]).norm(dim=1) < math.sqrt(2 * math.log(20)) * WIDTH).float().mean().item()
    right = points[(points[:, None] - blobs).norm(dim=2).argmin(1) == 0]
    return inside, (right.std(0).mean() / WIDTH).item() if len(right) > 1 else 0.0


def check_goal(scale, inside: float, spread: float, turn: float, seed: int) -> None:
    got_inside, got_spread = inside_and_spread(guided_points(scale, turn=turn, seed=seed), turn)
    numbers = f"inside {got_inside:.3f}, goal {inside}; spread {got_spread:.3f}, goal {spread}"
    assert got_inside >= inside or got_spread >= spread, f"neither goal is reached ({numbers})"
    assert got_inside >= inside, f"too few samples lie in the blob: guide more, or at other noise levels ({numbers})"
    assert got_spread >= spread, f"the samples are too much alike: guide less, or at fewer noise levels ({numbers})"


def test_13_both_goals(ex):
    check_goal(ex.guidance_scale, INSIDE, SPREAD, turn=0.0, seed=0)
