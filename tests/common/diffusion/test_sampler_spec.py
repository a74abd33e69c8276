"""Samplers as text: what is read, what is refused, and that the text and the seed decide the sample."""

import pytest
import torch

from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import make_schedule
from common.errors import UserError

SHAPE = (2, 3, 8, 8)


def denoise(x, level):
    """A plain function that returns a pair (x0, eps)."""
    x0 = (x + level.sigma).cos()
    return x0, (x - level.alpha * x0) / level.sigma


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ddim:50", Sampler("ddim", 50)),
        ("ddim:50:eta=0.5", Sampler("ddim", 50, {"eta": 0.5})),
        ("ddim:1000:eta=0", Sampler("ddim", 1000, {"eta": 0.0})),
        ("ddpm:1000", Sampler("ddpm", 1000)),
        (" heun:18 ", Sampler("heun", 18)),
        ("dpmpp_2m:20", Sampler("dpmpp_2m", 20)),
        ("dpmpp_2s:10", Sampler("dpmpp_2s", 10)),
        ("euler_a:30", Sampler("euler_a", 30)),
        ("sde:500", Sampler("sde", 500)),
        ("ddpm:50:variance=large", Sampler("ddpm", 50, {"variance": "large"})),
        ("DDIM_50_0p0", Sampler("ddim", 50, {"eta": 0.0})),
        ("DDIM_20_0p5", Sampler("ddim", 20, {"eta": 0.5})),
        ("DDIM_50", Sampler("ddim", 50)),
        ("DDPM_1000", Sampler("ddpm", 1000)),
    ],
)
def test_sampler_strings(text, expected):
    assert Sampler.parse(text) == expected
    assert Sampler.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("eulr:30", "none called 'eulr'"),
        ("ddim:fifty", "after ddim comes a number of steps, not 'fifty'"),
        ("ddpm:50:variance=big", "variance is small, large or learned"),
        ("ddim:50:steps=3", "'steps=3' means nothing after ddim:50"),
    ],
)
def test_a_malformed_sampler_string_is_told_what_was_understood(text, says):
    with pytest.raises(UserError, match=says):
        Sampler.parse(text)


@pytest.mark.parametrize("text", ["ddim:7", "ddpm:7", "heun:7", "dpmpp_2m:7", "dpmpp_2s:7", "euler_a:7", "sde:7"])
def test_the_number_of_evaluations_is_counted_rightly(text):
    evaluated = []

    def counted(x, level):
        evaluated.append(level)
        return denoise(x, level)

    sampler = Sampler.parse(text)
    sampler.frames(counted, make_schedule("cosine"), SHAPE, 0)
    assert len(evaluated) == sampler.evaluations


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ddim",
        "ddim:",
        "ddim:fifty",
        "ddim:-5",
        "ddim:5.5",
        "euler:20",
        "ddim:50:0.5",
        "ddim:50:eta=",
        "ddim:50:eta=0.5:x",
        "ddim:50:eta=0.5:eta=1",
        "DDIM_50_0.5",
        "DDIM_x",
        "ddim:50:eta=1.2.3",
        "ddim:50:eta=.",
    ],
)
def test_malformed_sampler_strings(text):
    with pytest.raises(UserError, match="cannot read the sampler.*ddim:50"):
        Sampler.parse(text)


def test_eta_where_it_does_not_belong():
    for eta in ("1.5", "-1", "nan"):
        with pytest.raises(UserError, match=f"eta must be between 0 and 1, not {eta}"):
            Sampler.parse(f"ddim:50:eta={eta}")
    with pytest.raises(UserError, match="heun has no eta.*ddim:18:eta=0.5"):
        Sampler.parse("heun:18:eta=0.5")
    with pytest.raises(UserError, match="ddim has no variance.*ddpm:18:variance=large"):
        Sampler.parse("ddim:18:variance=large")


@pytest.mark.parametrize(
    "text", ["ddim:5", "ddim:5:eta=1", "ddpm:5", "heun:5", "dpmpp_2m:5", "dpmpp_2s:5", "euler_a:5", "sde:5"]
)
def test_same_seed_same_picture(text):
    sampler, schedule = Sampler.parse(text), make_schedule("cosine")
    frames = [sampler.frames(denoise, schedule, SHAPE, seed) for seed in (4, 4, 5)]
    assert len(frames[0]) == 5
    assert all(torch.equal(a, b) for a, b in zip(frames[0], frames[1], strict=True))
    assert not torch.allclose(frames[0][-1], frames[2][-1], atol=1e-3)


@pytest.mark.parametrize("text", ["ddim:0", "ddpm:1001"])
def test_more_steps_than_the_schedule_has(text):
    with pytest.raises(UserError, match="1 to 1000 steps"):
        Sampler.parse(text).frames(denoise, make_schedule("cosine"), SHAPE, 0)
