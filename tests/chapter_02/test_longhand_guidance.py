"""Classifier-free guidance: which captions are dropped, what the network is asked,
and what becomes of its two answers.
"""

import math

import pytest
import torch
from torch import Tensor

from cfg_pokemon import guidance
from common.diffusion.denoiser import Denoiser, Prediction, threshold
from common.diffusion.samplers import ddim, dpmpp_2m
from common.diffusion.schedules import NoiseLevel, NoiseLevels, make_schedule
from common.errors import UserError
from common.random import BatchRandom

drop_captions, guide, rescale, Guided = guidance.drop_captions, guidance.guide, guidance.rescale, guidance.Guided


class Network:
    """A smooth function of image, time and text. Remembers how it was asked."""

    def __init__(self, channels: int = 1):
        self.channels, self.batches, self.times, self.text = channels, [], [], []

    def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        assert t.shape == (len(x),) and len(text) == len(x)
        self.batches.append(len(x))
        self.times.append(t)
        self.text.append(text)
        words = (text * torch.arange(1, 1 + text.shape[1])[:, None]).mean((1, 2)).view(-1, 1, 1, 1)
        y = torch.tanh(x.roll(1, -1) + words) + words * torch.cos(x + t.view(-1, 1, 1, 1) / 500)
        return torch.cat([y, *[torch.sin(k * y) for k in range(1, self.channels)]], dim=1)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, TEXT, EMPTY = numbers(3, 1, 4, 5), numbers(3, 2, 6, seed=1), numbers(1, 2, 6, seed=2)
COND, UNCOND = {"text": TEXT}, {"text": EMPTY}
LEVELS = [level for level in make_schedule("cosine").noise_levels(7) if level.sigma > 0]
MIDDLE = LEVELS[3]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------- caption dropout


def test_dropped_captions_become_the_empty_one_and_the_others_stay():
    u = torch.tensor([0.05, 0.5, 0.0999])
    got = drop_captions(TEXT, EMPTY[0], u, 0.1)
    assert torch.equal(got, torch.stack([EMPTY[0], TEXT[1], EMPTY[0]]))
    assert not torch.equal(TEXT[0], EMPTY[0])  # and the batch that was lent is as it was
    ids, mask = torch.arange(6).view(3, 2), torch.ones(3, 2, dtype=torch.bool)
    assert drop_captions(ids, torch.tensor([7, 8]), u, 0.1).tolist() == [[7, 8], [2, 3], [7, 8]]
    assert drop_captions(mask, torch.tensor([True, False]), u, 0.1).tolist() == [
        [True, False],
        [True, True],
        [True, False],
    ]


def test_none_and_all():
    u = torch.tensor([0.0, 0.5, 1 - 2**-24])  # the smallest and the largest number that torch.rand can give
    assert torch.equal(drop_captions(TEXT, EMPTY[0], u, 0.0), TEXT)
    assert torch.equal(drop_captions(TEXT, EMPTY[0], u, 1.0), EMPTY.expand_as(TEXT))
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="between 0 and 1"):
            drop_captions(TEXT, EMPTY[0], u, share)


def dropped(step: int, seed: int = 0, B: int = 16, share: float = 0.2, **more) -> Tensor:
    """Which images of a training step have lost their caption. (B,)"""
    u = BatchRandom(seed, step, **more).rand(B)
    return drop_captions(torch.zeros(B, 1), torch.ones(1), u, share)[:, 0]


def test_share_and_independence():
    table = torch.stack([dropped(step) for step in range(2000)])  # (steps, B)
    assert float(table.mean()) == pytest.approx(0.2, abs=3 * math.sqrt(0.2 * 0.8 / table.numel()))
    assert ((table.mean(0) - 0.2).abs() < 4 * math.sqrt(0.2 * 0.8 / 2000)).all()  # at every place of the batch
    correlation = torch.corrcoef(table.T) - torch.eye(16)  # between places; 4.5 sd of 120 of them
    assert correlation.abs().max() < 4.5 / math.sqrt(2000)
    assert len(set(table.sum(1).tolist())) > 5  # not the same number at every step


def test_the_same_seed_and_step_drop_the_same_captions():
    """So a resumed run is the run that never stopped, and two processes are one."""
    assert torch.equal(dropped(7), dropped(7))
    assert not torch.equal(dropped(7), dropped(8)) and not torch.equal(dropped(7), dropped(7, seed=1))
    halves = [dropped(7, B=8, rank=rank, world=2) for rank in range(2)]
    assert torch.equal(torch.cat(halves), dropped(7))


# ------------------------------------------------------------------------------------------------------ the formula


def test_the_two_ways_of_writing_w():
    cond, uncond = numbers(2, 3, 4, 5)
    for w in (0.0, 0.5, 1.0, 7.5):
        other = w - 1  # Ho & Salimans' w
        close(guide(uncond, cond, w), (1 + other) * cond - other * uncond)
    assert torch.equal(guide(uncond, cond, 0.0), uncond)
    close(guide(uncond, cond, 1.0), cond)
    assert (guide(torch.zeros(1), torch.ones(1), 3.0), guide(torch.ones(1), torch.zeros(1), 3.0)) == (3, -2)


PAIRS = [
    ("eps", "linear"),
    ("x0", "cosine"),
    ("v", "linear_zero_snr"),
    ("flow", "flow"),
    ("edm", "edm"),
    ("v", "edm"),
    ("eps", "flow"),
]


@pytest.mark.parametrize(("prediction", "schedule"), PAIRS)
def test_guiding_the_answers_is_guiding_x0_or_eps_or_v(prediction, schedule):
    net, w = Network(), 4.0
    alone = {
        name: Denoiser(net, prediction, clip_x0=False, text=text)
        for name, text in (("uncond", EMPTY.expand_as(TEXT)), ("cond", TEXT))
    }
    guided = Guided(net, prediction, COND, UNCOND, w, clip_x0=False)
    for level in make_schedule(schedule).noise_levels(6):
        if level.sigma == 0 or (level.alpha == 0 and prediction == "eps"):  # pure noise tells nothing of the image
            continue
        got, (uncond, cond) = guided(X, level), [alone[name](X, level) for name in ("uncond", "cond")]
        torch.testing.assert_close(got.x0, guide(uncond.x0, cond.x0, w), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(got.eps, guide(uncond.eps, cond.eps, w), rtol=1e-7, atol=1e-7)
        v, v_uncond, v_cond = (
            level.alpha * predicted.eps - level.sigma * predicted.x0 for predicted in (got, uncond, cond)
        )
        torch.testing.assert_close(v, guide(v_uncond, v_cond, w), rtol=1e-7, atol=1e-7)


def test_clipping_comes_after_guiding():
    halves = {
        c: [Denoiser(Network(), "v", c, text=text)(X, MIDDLE).x0 for text in (EMPTY.expand_as(TEXT), TEXT)]
        for c in (True, False)
    }
    free = guide(*halves[False], 5.0)
    assert free.abs().max() > 1.5
    got = Guided(Network(), "v", COND, UNCOND, 5.0, clip_x0=True)(X, MIDDLE)
    close(got.x0, free.clamp(-1, 1))
    assert not torch.allclose(got.x0, guide(*halves[True], 5.0).clamp(-1, 1), atol=0.01)
    close(MIDDLE.alpha * got.x0 + MIDDLE.sigma * got.eps, X)  # x is still made of the two
    close(Guided(Network(), "v", COND, UNCOND, 5.0, clip_x0="dynamic")(X, MIDDLE).x0, threshold(free))


# ------------------------------------------------------------------------------------------- what the network is asked


def test_both_halves_run_as_one_batch():
    net = Network()
    Guided(net, "eps", COND, UNCOND, 3.0)(X, MIDDLE)
    assert net.batches == [6]
    assert torch.equal(net.text[0], torch.cat([EMPTY.expand_as(TEXT), TEXT]))
    assert torch.equal(net.times[0], torch.full((6,), MIDDLE.time))


@pytest.mark.parametrize("prediction", ["eps", "v", "edm"])
@pytest.mark.parametrize(("w", "text"), [(1.0, TEXT), (0.0, EMPTY.expand_as(TEXT))])
@pytest.mark.parametrize("clip", [True, "dynamic", False])
def test_with_w_1_or_0_one_half_is_enough(prediction, w, text, clip):
    net = Network()
    got = Guided(net, prediction, COND, UNCOND, w, clip, rescale=0.7)(X, MIDDLE)
    assert net.batches == [3] and torch.equal(net.text[0], text)
    expected = Denoiser(Network(), prediction, clip, text=text)(X, MIDDLE)
    assert torch.equal(got.x0, expected.x0) and torch.equal(got.eps, expected.eps)


def test_a_negative_prompt_takes_the_place_of_the_empty_one():
    negative, others = numbers(1, 2, 6, seed=3), numbers(3, 2, 6, seed=4)
    for texts in (negative, others):  # one for all images, or one for each
        net = Network()
        got = Guided(net, "x0", COND, {"text": texts}, 2.0, clip_x0=False)(X, MIDDLE).x0
        # the empty caption is not asked at all
        assert torch.equal(net.text[0], torch.cat([texts.expand_as(TEXT), TEXT]))
        time = torch.full((3,), MIDDLE.time)
        away = Network()(X, time, texts.expand_as(TEXT))
        close(got, away + 2.0 * (Network()(X, time, TEXT) - away))


def test_guidance_within_an_interval_only():
    """In sigma / alpha, above the lower end and up to the upper one;
    elsewhere the conditional answer alone, at half the work.
    """
    for name in ("cosine", "flow", "edm", "linear_zero_snr"):
        levels = list(make_schedule(name).noise_levels(9))[:-1]
        ratios = [level.sigma / level.alpha if level.alpha else math.inf for level in levels]
        low, high = ratios[6], ratios[2]
        net, guided = Network(), 0
        limited = Guided(net, "v", COND, UNCOND, 3.0, interval=(low, high))
        for level, ratio in zip(levels, ratios, strict=True):
            inside = low < ratio <= high
            guided += inside
            expected = Guided(Network(), "v", COND, UNCOND, 3.0 if inside else 1.0)(X, level)
            assert torch.equal(limited(X, level).x0, expected.x0)
            assert net.batches[-1] == (6 if inside else 3)
        assert guided == 4  # the levels 2, 3, 4 and 5
    everywhere = Network()
    Guided(everywhere, "v", COND, UNCOND, 3.0)(X, levels[0])  # pure noise, alpha = 0
    assert everywhere.batches == [6]


def test_a_network_with_learned_variance():
    """The variance is not guided: it is the conditional one."""
    time = torch.full((3,), MIDDLE.time)
    for w in (1.0, 4.0):
        got = Guided(Network(channels=2), "eps", COND, UNCOND, w)(X, MIDDLE)
        close(got.variance, Network(channels=2)(X, time, TEXT)[:, 1:])
        close(got.x0, Guided(Network(), "eps", COND, UNCOND, w)(X, MIDDLE).x0)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"w": -1.0}, "the guidance scale must be 0 or more and finite, not -1"),
        ({"w": math.nan}, "guidance scale must be"),
        ({"w": 2.0, "rescale": 1.5}, "rescale must be between 0 and 1, not 1.5"),
        ({"w": 2.0, "interval": (2.0, 1.0)}, "low < high"),
        ({"w": 2.0, "interval": (-1.0, 1.0)}, "low < high"),
    ],
)
def test_user_errors(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        Guided(Network(), "eps", COND, UNCOND, **flags)


def test_both_halves_need_the_same_keywords():
    with pytest.raises(ValueError, match="text"):
        Guided(Network(), "eps", COND, {"label": EMPTY}, 2.0)


# ----------------------------------------------------------------------------------------------------------- rescale


def test_rescale_agrees_with_diffusers():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    uncond, cond = numbers(2, 4, 3, 5, 6)
    cond = cond * torch.tensor([0.3, 1, 2, 5]).view(-1, 1, 1, 1)
    for w, phi in ((7.5, 0.7), (3.0, 1.0), (0.5, 0.2)):
        guided = guide(uncond, cond, w)
        close(rescale(guided, cond, phi), rescale_noise_cfg(guided, cond, phi))


def test_each_image_is_as_strong_as_its_conditional_answer():
    uncond, cond = numbers(2, 4, 3, 5, 6)
    cond = cond * torch.tensor([0.3, 1, 2, 5]).view(-1, 1, 1, 1)
    guided = guide(uncond, cond, 6.0)
    close(rescale(guided, cond, 1.0).flatten(1).std(1), cond.flatten(1).std(1))
    assert torch.equal(rescale(guided, cond, 0.0), guided)
    # and not NaN
    assert torch.equal(rescale(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), 0.7), torch.zeros(2, 1, 4, 4))


def test_rescaling_is_of_the_networks_answer():
    time = torch.full((3,), MIDDLE.time)
    cond, uncond = Network()(X, time, TEXT), Network()(X, time, EMPTY.expand_as(TEXT))
    for prediction, read in (("eps", lambda predicted: predicted.eps), ("x0", lambda predicted: predicted.x0)):
        got = Guided(Network(), prediction, COND, UNCOND, 5.0, clip_x0=False, rescale=0.7)(X, MIDDLE)
        close(read(got), rescale(guide(uncond, cond, 5.0), cond, 0.7))


# ----------------------------------------------------------------------------------------------------- whole samplings


def test_a_whole_sampling_written_by_hand():
    """DDIM with eps, in plain numbers, asking the network twice; rescaled, as diffusers' pipeline does it."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    schedule, w, phi, x = make_schedule("linear"), 3.0, 0.7, X
    for t, s in ((1000, 750), (750, 500), (500, 250), (250, 0)):
        a_t, a_s = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[s])
        time = torch.full((3,), float(t - 1))
        cond, uncond = Network()(x, time, TEXT), Network()(x, time, EMPTY.expand_as(TEXT))
        eps = rescale_noise_cfg((1 - w) * uncond + w * cond, cond, phi)
        x0 = (x - (1 - a_t) ** 0.5 * eps) / a_t**0.5
        x = a_s**0.5 * x0 + (1 - a_s) ** 0.5 * eps
    guided = Guided(Network(), "eps", COND, UNCOND, w, clip_x0=False, rescale=phi)
    *_, last = ddim(guided, X, schedule.noise_levels(4))
    torch.testing.assert_close(last.x, x, rtol=1e-7, atol=1e-7)


class Gaussian:
    """The exact denoiser of data N(text, 1), which says x0:
    E[x0 | x] = text + alpha (x - alpha text) / (alpha^2 + sigma^2).
    """

    def __init__(self):
        self.level = None

    def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        alpha, sigma = self.level[1:]
        mean = text.view(-1, 1, 1, 1)
        return mean + alpha * (x - alpha * mean) / (alpha**2 + sigma**2)


@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m])
def test_guided_samples_of_two_gaussians_overshoot_exactly_w_times(sampler):
    """All pictures N(0, 1), those of the caption N(m, 1):
    the gradients add up to those of N(w m, 1), whatever the level.

    That is what guidance samples, then: neither what was asked for nor anything there is.
    """
    net, m, w = Gaussian(), 0.7, 3.0
    guided = Guided(net, "x0", {"text": torch.full((4000, 1), m)}, {"text": torch.zeros(1, 1)}, w, clip_x0=False)

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        net.level = level
        return guided(x, level)

    path: NoiseLevels = make_schedule("cosine").noise_levels(200)
    *_, last = sampler(denoise, torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0)), path)
    assert float(last.x.mean()) == pytest.approx(w * m, abs=0.06)
    assert float(last.x.std()) == pytest.approx(1, abs=0.05)
