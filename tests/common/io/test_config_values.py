"""Configurations from anywhere: every setting with every kind of wrong value is refused in one sentence,
or means a network that can be built.
"""

import json
import math
from typing import Annotated, Literal

import pytest
import torch

from common.diffusion.diffusers_scheduler import scheduler_from_diffusers, scheduler_to_diffusers
from common.diffusion.schedules import make_schedule
from common.errors import UserError
from common.io.config_values import check_values, fits, spelled
from common.io.ranges import Range
from common.io.state_dict import Uninitialised
from common.models.diffusers_configs import (
    unet_from_diffusers,
    unet_to_diffusers,
    vae_from_diffusers,
    vae_to_diffusers,
)
from common.models.text.transformer import TextConfig, TextTransformer, text_from_transformers, text_to_transformers
from common.models.unet import UNet
from common.models.unet_config import small_unet, text_unet
from common.models.vae import AutoencoderKL, small_vae
from common.training.settings import with_build
from helpers.programs import load_program

WRONG = [
    None,
    [],
    {},
    "",
    "x",
    -1,
    0,
    1,
    3,
    1.5,
    math.nan,
    math.inf,
    10**12,
    -(10**30),
    10**400,
    [[]],
    [None],
    ["x"],
    [1],
    [0],
    [-8, 8],
    [10**9, 10**9],
    [1.5, 2],
    [True, True],
    True,
    False,
    {"a": 1},
    "9" * 5000,
    "a\nb\x1b[31m",
]


def build(kind, config):
    with torch.device("meta"), Uninitialised():
        kind(config)


def sampled(config: dict) -> None:
    schedule = scheduler_from_diffusers(config)[0]
    levels = list(schedule.noise_levels(1))
    assert all(math.isfinite(float(level.alpha)) and math.isfinite(float(level.sigma)) for level in levels)


READERS = {
    "unet": (lambda c: build(UNet, unet_from_diffusers(c)), unet_to_diffusers(small_unet(8, 1, (8, 16), 1))),
    "text unet": (lambda c: build(UNet, unet_from_diffusers(c)), unet_to_diffusers(text_unet(8, 1, (32, 64), 32))),
    "vae": (lambda c: build(AutoencoderKL, vae_from_diffusers(c)), vae_to_diffusers(small_vae(16, 3, (8, 16), 4))),
    "text": (
        lambda c: build(TextTransformer, text_from_transformers(c)),
        text_to_transformers(TextConfig(100, 16, 32, 2, 2, 64)),
    ),
    "linear": (sampled, scheduler_to_diffusers(make_schedule("linear"), "eps", True)),
    "dynamic": (
        sampled,
        scheduler_to_diffusers(make_schedule("cosine"), "v", "dynamic") | {"dynamic_thresholding_ratio": 0.995},
    ),
    "zero SNR": (sampled, scheduler_to_diffusers(make_schedule("linear_zero_snr"), "v", False)),
    "flow": (sampled, scheduler_to_diffusers(make_schedule("flow"), "flow", False)),
    "edm": (sampled, scheduler_to_diffusers(make_schedule("edm"), "edm", False)),
}


@pytest.mark.parametrize("name", READERS)
def test_wrong_values(name):
    read, config = READERS[name]
    read(config)
    refused = 0
    for key in config:
        for value in WRONG:
            try:
                read(config | {key: value})
            except UserError as problem:
                refused += 1
                assert str(problem).isprintable() and len(str(problem)) < 400, (key, value)
            except Exception as problem:
                raise AssertionError(f"{key} = {value!r:.50} ends in {type(problem).__name__}") from problem
    assert refused > 5 * len(config)


@pytest.mark.parametrize("name", READERS)
def test_settings_that_are_left_out(name):
    """A default of diffusers, or a refusal."""
    read, config = READERS[name]
    for key in config:
        try:
            read({other: value for other, value in config.items() if other != key})
        except UserError as problem:
            assert str(problem).isprintable()


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("unet", {"norm_num_groups": 3}, "norm_num_groups = 3"),
        ("text unet", {"norm_num_groups": 7}, "norm_num_groups = 7"),
        (
            "unet",
            {
                "layers_per_block": 64,
                "block_out_channels": [8] * 40,
                "down_block_types": ["DownBlock2D"] * 40,
                "up_block_types": ["UpBlock2D"] * 40,
            },
            "multiply to more than",
        ),
        ("unet", {"block_out_channels": [9, 18], "norm_num_groups": 9}, "block_out_channels"),
        (
            "vae",
            {"scaling_factor": "0.18215"},
            "scaling_factor = '0.18215', where a number above 0 to 1e\\+06 was expected",
        ),
        ("vae", {"norm_num_groups": 5}, "norm_num_groups = 5"),
        (
            "linear",
            {"num_train_timesteps": 0, "trained_betas": None},
            "num_train_timesteps = 0, where a whole number from 1 to 100,000 was expected",
        ),
        ("linear", {"beta_schedule": ["linear"]}, "beta_schedule = .'linear'., where a text was expected"),
        ("zero SNR", {"trained_betas": [0.5]}, "trained_betas"),
        ("edm", {"sigma_min": 90.0}, "sigma_min = 90.0"),
        ("text", {"num_attention_heads": 5}, "5 attention heads"),
    ],
)
def test_what_is_said(name, change, says):
    read, config = READERS[name]
    with pytest.raises(UserError, match=says):
        read(config | change)


@pytest.mark.parametrize(
    ("value", "rule", "fitting"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        (True, float, False),
        (math.nan, Annotated[float, Range(0, 1)], False),
        (10**400, float, True),
        (10**400, Annotated[float, Range(0, 1)], False),
        (5, Annotated[int, Range(1, 4)], False),
        (4, Annotated[int, Range(1, 4)] | None, True),
        (None, int | None, True),
        ([1, 2], list[int], True),
        ([1, "2"], list[int], False),
        ((1, 2), tuple[int, ...], True),
        ((1, 2, 3), tuple[int, int], False),
        (0, Literal[0, 1], True),
        (False, Literal[0, 1], False),
        ([], Literal[0, 1], False),
        ("a", str, True),
        ({}, dict, True),
    ],
)
def test_types(value, rule, fitting):
    assert fits(value, rule) == fitting
    assert spelled(rule)
    if not fitting:
        with pytest.raises(UserError, match="^the file sets key = .*, where .* was expected$"):
            check_values({"key": value}, {"key": rule}, "the file")


@pytest.mark.parametrize("widths", [None, [], "abc", 8, [8, "x"], [0], [8.5], [True], {"a": 1}])
def test_the_widths_of_a_start(widths, tmp_path):
    train = load_program("01_ddpm_mnist/train.py")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"block_out_channels": widths}))
    with pytest.raises(UserError, match="does not say how wide its U-Net is"):
        with_build(train.Args(start=tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": [1]},
        {"seconds": math.nan},
        {"seconds": math.inf},
        {"seconds": "3"},
        {"steps": None},
        {"steps": -1},
        {"steps": {}},
        {"cost": 3},
        {"cost": []},
        {"cost": {"peak": "x"}},
        {"cost": {"peak": [1]}},
        {"cost": {"peak": math.nan}},
        {"cost": {"trained": math.inf}},
        {"cost": {"device": 3}},
        {"cost": {"unknown": 1}},
        {"cost": {"weights": True}},
    ],
)
def test_damaged_results(change, tmp_path, command_line):
    """What a training wrote at its end, and somebody changed."""
    good = {"cost": {"trained": 1, "weights": 2, "peak": 3}, "seconds": 61.5, "steps": 4}
    (tmp_path / "results.json").write_text(json.dumps(good))
    code, out, _ = command_line("05_finetune_diffusers/studies/runs.py", tmp_path)
    assert code == 0 and "1 of 2" in out and "1 min 2 s" in out
    (tmp_path / "results.json").write_text(json.dumps(good | change))
    code, out, err = command_line("05_finetune_diffusers/studies/runs.py", tmp_path)
    assert code == 2 and "results.json" in err and len(err.strip().splitlines()) == 1
