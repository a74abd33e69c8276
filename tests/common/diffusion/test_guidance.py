"""common/diffusion/guidance.py: what chapter 2 writes out longhand, to the last bit;
and two things that it has no use for.
"""

import math

import pytest
import torch
from torch import Tensor

from cfg_pokemon import guidance as longhand
from common.diffusion import guidance
from common.diffusion.denoiser import Denoiser
from common.diffusion.schedules import NoiseLevel, make_schedule
from common.errors import UserError
from common.models.unet import UNet
from common.models.unet_config import text_unet
from common.random import BatchRandom


class Network:
    """A smooth function of all it is shown, of time and text. Remembers what it was shown."""

    def __init__(self, answers: int = 4):
        self.answers, self.shown = answers, []

    def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        assert t.shape == (len(x),) and len(text) == len(x)
        self.shown.append(x)
        words = (text * torch.arange(1, 1 + text.shape[1])[:, None]).mean((1, 2)).view(-1, 1, 1, 1)
        y = torch.tanh(x + words) + words * torch.cos(x.roll(1, -1) + t.view(-1, 1, 1, 1) / 500)
        # what is joined to x counts, too
        return torch.cat([y, y.sin()], 1)[:, : self.answers] + y[:, 4:].sum(1, keepdim=True)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, TEXT, EMPTY, EXTRA = (
    numbers(3, 4, 6, 5),
    numbers(3, 2, 6, seed=1),
    numbers(1, 2, 6, seed=2),
    numbers(3, 5, 6, 5, seed=3),
)
COND, UNCOND = {"text": TEXT}, {"text": EMPTY}
LEVELS = [level for level in make_schedule("linear_zero_snr").noise_levels(7) if level.sigma > 0]
MIDDLE = LEVELS[3]
NEVER = math.nan  # of a scale that must not be asked for


def same(got, expected) -> None:
    assert torch.equal(got.x0, expected.x0) and torch.equal(got.eps, expected.eps)
    assert (got.variance is None) == (expected.variance is None)
    assert got.variance is None or torch.equal(got.variance, expected.variance)


# ------------------------------------------------------------------------------------------------ chapter 2's, exactly


@pytest.mark.parametrize("prediction", ["x0", "v", "edm", "flow"])
@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 5.0])
@pytest.mark.parametrize(
    "more", [{}, {"clip_x0": False}, {"clip_x0": "dynamic", "rescale": 0.7}, {"interval": (0.5, 3.0), "rescale": 1.0}]
)
def test_every_prediction_is_that_of_chapter_2(prediction, w, more):
    for answers in (4, 8):  # with a learned variance, too
        mine, theirs = (
            module.Guided(Network(answers), prediction, COND, UNCOND, w, **more) for module in (guidance, longhand)
        )
        for level in LEVELS:
            same(mine(X, level), theirs(X, level))


def test_so_are_the_parts():
    u, ids = BatchRandom(0, 0).rand(3), torch.arange(6).view(3, 2)
    for share in (0.0, float(u.median()), 1.0):
        for batch, empty in ((TEXT, EMPTY[0]), (ids, torch.tensor([7, 8]))):
            assert torch.equal(
                guidance.drop_captions(batch, empty, u, share), longhand.drop_captions(batch, empty, u, share)
            )
    uncond, cond = numbers(2, 3, 4, 6, 5)
    assert torch.equal(guidance.guide(uncond, cond, 3.7), longhand.guide(uncond, cond, 3.7))
    assert torch.equal(guidance.rescale(uncond, cond, 0.7), longhand.rescale(uncond, cond, 0.7))
    flat = torch.zeros(2, 4, 3, 3)
    assert torch.equal(guidance.rescale(flat, flat, 0.7), flat)  # and not NaN


@pytest.mark.parametrize(
    "flags",
    [
        {"w": -1.0},
        {"w": math.nan},
        {"w": math.inf},
        {"w": 2.0, "rescale": 1.5},
        {"w": 2.0, "interval": (2.0, 1.0)},
        {"w": 2.0, "interval": (-1.0, 1.0)},
    ],
)
def test_so_are_its_refusals(flags):
    said = []
    for module in (guidance, longhand):
        with pytest.raises(UserError) as problem:
            module.Guided(Network(), "eps", COND, UNCOND, **flags)
        said.append(str(problem.value))
    assert said[0] == said[1]
    with pytest.raises(ValueError, match="text"):
        guidance.Guided(Network(), "eps", COND, {"label": EMPTY}, 2.0)
    with pytest.raises(UserError, match="between 0 and 1"):
        guidance.drop_captions(TEXT, EMPTY[0], torch.zeros(3), 1.5)


# ----------------------------------------------------------------------------------------- more than the noisy picture


@pytest.mark.parametrize("w", [0.0, 1.0, 4.0])
def test_extra_channels_are_joined_whenever_the_network_is_asked(w):
    net = Network()
    predicted = guidance.Guided(net, "v", COND, UNCOND, w, clip_x0=False, extra=EXTRA)(X, MIDDLE)
    seen = torch.cat([X, EXTRA], 1)
    assert torch.equal(net.shown[0], seen if w in (0, 1) else torch.cat([seen, seen]))  # both halves see the same
    assert predicted.x0.shape == predicted.eps.shape == X.shape
    other = guidance.Guided(Network(), "v", COND, UNCOND, w, clip_x0=False, extra=EXTRA + 1)(X, MIDDLE)
    assert float((other.x0 - predicted.x0).abs().max()) > 0.01


def test_one_extra_for_all_images():
    several, one = (
        guidance.Guided(Network(), "v", COND, UNCOND, 4.0, extra=extra)
        for extra in (EXTRA[:1].expand(3, -1, -1, -1), EXTRA[:1])
    )
    same(one(X, MIDDLE), several(X, MIDDLE))


def test_the_extra_channels_are_not_scaled_with_the_noise():
    """EDM's network sees its noisy image divided by its size; a mask is not noisy."""
    net, level = Network(), NoiseLevel(0.3, 1.0, 5.0)
    guidance.Guided(net, "edm", COND, UNCOND, 1.0, extra=EXTRA)(X, level)
    torch.testing.assert_close(net.shown[0], torch.cat([X / math.sqrt(25.25), EXTRA], 1))


def test_an_inpainting_network_of_nine_channels():
    """Four noisy, one of the mask, four of what is to stay;
    two asked one after the other are the two asked at once.
    """
    from dataclasses import replace

    torch.manual_seed(0)
    net = UNet(replace(text_unet(8, 4, (8, 16), 6), in_channels=9)).eval()
    x, text, empty, extra = (t.float() for t in (numbers(3, 4, 8, 8), TEXT, EMPTY, numbers(3, 5, 8, 8, seed=3)))

    class Joined(torch.nn.Module):
        def forward(self, x, t, text):
            return net(torch.cat([x, extra], 1), t, text=text)

    with torch.no_grad():
        predicted = guidance.Guided(net, "eps", {"text": text}, {"text": empty}, 3.0, False, extra=extra)(x, MIDDLE)
        halves = [
            Denoiser(Joined(), "eps", False, text=words)(x, MIDDLE).eps for words in (empty.expand_as(text), text)
        ]
    torch.testing.assert_close(predicted.eps, guidance.guide(*halves, 3.0), rtol=1e-3, atol=1e-4)


# -------------------------------------------------------------------------------------------------- guidance over time


def test_a_scale_that_changes_on_the_way():
    """At every level it is the guidance of the number that the function gives there."""
    asked = []

    def w(level: NoiseLevel) -> float:
        asked.append(level)
        return [0.0, 1.0, 2.5, 4.0, 1.0, 3.0, 0.5][LEVELS.index(level)]

    net = Network()
    moving = guidance.Guided(net, "v", COND, UNCOND, w, clip_x0=False, rescale=0.3)
    for level, number in zip(LEVELS, (0.0, 1.0, 2.5, 4.0, 1.0, 3.0, 0.5), strict=True):
        same(
            moving(X, level),
            guidance.Guided(Network(), "v", COND, UNCOND, number, clip_x0=False, rescale=0.3)(X, level),
        )
        assert len(net.shown[-1]) == (3 if number in (0, 1) else 6)  # where one half is enough, it is asked alone
    assert asked == LEVELS


def test_outside_the_interval_the_function_is_not_asked():
    ratios = [level.sigma / level.alpha if level.alpha else math.inf for level in LEVELS]
    moving = guidance.Guided(
        Network(), "v", COND, UNCOND, lambda level: 3.0 if level == MIDDLE else NEVER, interval=(ratios[4], ratios[3])
    )
    for level in LEVELS:
        same(
            moving(X, level), guidance.Guided(Network(), "v", COND, UNCOND, 3.0 if level == MIDDLE else 1.0)(X, level)
        )


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf])
def test_what_a_function_may_not_say(bad):
    moving = guidance.Guided(Network(), "v", COND, UNCOND, lambda level: bad)
    with pytest.raises(UserError, match="the guidance scale must be 0 or more and finite"):
        moving(X, MIDDLE)
