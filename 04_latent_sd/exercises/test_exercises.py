"""Tests for you: each uses numbers that can be checked by hand. See README.md, "How to work".

python -m pytest 04_latent_sd/exercises -x --tb=line -q      your exercises.py, up to the first failure
EXERCISES=mine.py python -m pytest 04_latent_sd/exercises          another file
"""

import math
import os
import re
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from common.grade.checks import call, expect, expect_gradients, load, number, numbers, parts

LOG4 = math.log(4)


@pytest.fixture(scope="module")
def ex():
    """The file with the answers."""
    return load(Path(os.environ.get("EXERCISES") or Path(__file__).with_name("exercises.py")), "exercises")


def latents(*values: float, C: int = 1, h: int = 2, w: int = 5) -> torch.Tensor:
    """A latent for each value, all its components the same. (B, C, h, w)"""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).repeat(1, C, h, w)


def square_latents(*values: float) -> torch.Tensor:
    """As many rows and columns as there are latents. (B, 1, B, B)"""
    return latents(*values, h=len(values), w=len(values))


def components(*pairs: tuple[float, float]) -> torch.Tensor:
    """Latents of two components. (B, 2, 1, 1)"""
    return torch.tensor(pairs, dtype=torch.float32).view(-1, 2, 1, 1)


# ---------------------------------------------------------------------------------------------------- 1. kl


def test_1_two_images(ex):
    got = call(ex.kl, components((3, 0), (0, 0)), components((0, 0), (LOG4, 0)))
    assert not isinstance(got, torch.Tensor) or torch.isfinite(got).all(), (
        "your result holds NaN or infinity: logvar is a logarithm already, and may be 0 or below"
    )
    assert not isinstance(got, torch.Tensor) or got.shape != (), (
        "a single number for the whole batch; each image has its own KL, (B,)"
    )
    second = (3 - LOG4) / 2
    wrong = {
        "the 1/2 is missing": torch.tensor([9, 2 * second]),
        "you averaged over the components; the KL is their sum": torch.tensor([4.5, second]) / 2,
        "you averaged over the batch; each image has its own": torch.tensor(2 * [(4.5 + second) / 2]),
        "you summed over the batch; each image has its own": torch.tensor(2 * [4.5 + second]),
        "the sign is wrong: a KL is never below 0": -torch.tensor([4.5, second]),
        "the - 1 is missing: with it the KL of N(0, 1) is 0": torch.tensor([5.5, second + 1]),
        "mean should be squared": torch.tensor([1.5, second]),
        "you took exp(logvar) for the standard deviation; it is the variance": torch.tensor(
            [4.5, (15 - 2 * LOG4) / 2]
        ),
        "you took the standard deviation, exp(logvar / 2), where the variance belongs": torch.tensor(
            [4.5, (1 - LOG4) / 2]
        ),
        "this is KL(N(0, 1) || N(mean, var)); the KL asked for is the other way round": torch.tensor(
            [4.5, (LOG4 - 0.75) / 2]
        ),
        "the sign of logvar is wrong: a small variance must cost": torch.tensor([4.5, (3 + LOG4) / 2]),
        "the mean is missing: mean^2": torch.tensor([0, second]),
        "var is missing: exp(logvar)": torch.tensor([3.5, (-2 - LOG4) / 2]),
    }
    hint = (
        "the first image's mean of 3 costs 9 / 2, the second's variance of 4 costs (4 - 1 - log 4) / 2, all else is 0"
    )
    expect(got, torch.tensor([4.5, second]), hint, wrong)


def test_1_nothing_is_said(ex):
    expect(
        call(ex.kl, latents(0, 0, C=4), latents(0, 0, C=4)),
        torch.zeros(2),
        "mean 0 and logvar 0 is the standard normal itself: a KL of 0",
    )


def test_1_the_encoder_learns(ex):
    mean, logvar = components((3, 0), (0, 1)).requires_grad_(), components((0, 1), (LOG4, 0)).requires_grad_()
    right = (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2
    expect_gradients(ex.kl(mean, logvar), right, {"mean": mean, "logvar": logvar})


# ---------------------------------------------------------------------------------------- 2. reparameterise


def test_2_two_images(ex):
    mean, logvar, eps = latents(1, -2), latents(LOG4, -LOG4), latents(3, 3)  # of standard deviations 2 and 1/2
    got = call(ex.reparameterise, mean, logvar, eps)
    wrong = {
        "you multiplied eps by the variance, exp(logvar); its root is the standard deviation": latents(
            1 + 12, -2 + 0.75
        ),
        "you took logvar itself for the standard deviation": latents(1 + 3 * LOG4, -2 - 3 * LOG4),
        "std is exp(logvar / 2), not exp(2 logvar)": latents(1 + 48, -2 + 3 / 16),
        "you halved the variance; it is logvar that is halved, for std is the root of the variance": latents(
            1 + 6, -2 + 0.375
        ),
        "only eps is multiplied by std, not mean": latents(2 + 6, -1 + 1.5),
        "std is missing": latents(4, 1),
        "the sign of eps is wrong": latents(1 - 6, -2 - 1.5),
        "this is the mean, without randomness: eps is missing": mean,
        "the mean is missing": latents(6, 1.5),
    }
    own = "you draw noise of your own; it is given, as eps, so that the same eps gives the same latent"
    assert not isinstance(got, torch.Tensor) or torch.equal(got, ex.reparameterise(mean, logvar, eps)), own
    expect(
        got,
        latents(1 + 2 * 3, -2 + 0.5 * 3),
        "the variances are 4 and 1/4, so the latents are 1 + 2 * 3 and -2 + 1/2 * 3",
        wrong,
    )


def no_gradient(name: str) -> str:
    return f"no gradient reaches {name}: compute with the tensors as they come, with no detach() and no no_grad()"


def test_2_the_encoder_learns(ex):
    mean, logvar = latents(1, -2).requires_grad_(), latents(LOG4, -LOG4).requires_grad_()
    latent = ex.reparameterise(mean, logvar, latents(3, 3))
    assert latent.requires_grad, no_gradient("the encoder")
    grads = torch.autograd.grad(latent.sum(), (mean, logvar), allow_unused=True)
    for name, grad in zip(("mean", "logvar"), grads, strict=True):
        assert grad is not None, no_gradient(name)
    expect(grads[0], latents(1, 1), "the gradient that reaches mean should be 1")
    expect(grads[1], latents(2 * 3 / 2, 0.5 * 3 / 2), "the gradient that reaches logvar should be std eps / 2")


# ---------------------------------------------------------------------------------------- 3. scaling_factor


def lent(*batches: torch.Tensor):
    """One batch after the other, in the same memory."""
    memory = torch.empty_like(batches[0])
    for batch in batches:
        memory[: len(batch)] = batch
        yield memory[: len(batch)]


def scale_of(ex, *batches: torch.Tensor) -> torch.Tensor:
    try:
        got = ex.scaling_factor(lent(*batches))
    except (ZeroDivisionError, StopIteration) as problem:
        raise AssertionError(
            f"{type(problem).__name__}: the batches come once, and cannot be gone through again"
        ) from None
    return one_float(got)


def one_float(got: object) -> torch.Tensor:
    """A scaling factor that was returned as a Python float, as a tensor ()."""
    assert got is not None, "a number was expected here, not None: is a `return` missing?"
    assert not isinstance(got, torch.Tensor) or got.numel() == 1, (
        f"one number was expected for the whole set, not {tuple(got.shape)}"
    )
    assert isinstance(got, int | float), f"a Python float was expected, which JSON can store, not {type(got).__name__}"
    assert math.isfinite(got), "not a number: the batches come once, and cannot be gone through again"
    return torch.tensor(float(got))


def wrong_scales(**stds: float) -> dict[str, torch.Tensor]:
    messages = {
        "mean_of_stds": "this is 1 over the mean of the batches' standard deviations; batches differ in their means, too",
        "mean_of_variances": "the batches' variances were averaged; batches differ in their means, too",
        "mean_of_scales": "this is the mean of the batches' own scaling factors; measure the set as a whole",
        "upside_down": "this is the standard deviation: scale is 1 over it",
        "squared": "this is 1 over the variance: the root is missing",
        "no_mean": "the mean was not subtracted: the set's mean is not 0",
        "first": "this is the first batch's; the set has more",
        "last": "this is the last batch's alone (if you kept the batches, their memory is used again: add up what you need, and let each go)",
        "equal": "every batch counts the same, but the last has fewer images: count the components",
        "kept": "you kept the batches, but their memory is used again: add up what you need, and let each go",
        "channels": "this is 1 over the mean of the channels' standard deviations; all channels belong together",
        "each_channel": "this is the mean over the channels; one number for all of them, together",
    }
    return {messages[name]: torch.tensor(1 / std) for name, std in stds.items()}


def wave(middle: float, reach: float, B: int = 8, C: int = 2) -> torch.Tensor:
    """Latents half of whose components are middle - reach, and half middle + reach. (B, C, 8, 8)"""
    return middle + reach * torch.tensor([-1.0, 1]).repeat(B, C, 8, 4)


def test_3_batches_differ_in_their_means(ex):
    got = scale_of(ex, wave(0, 1), wave(6, 2))  # -1, 1, 4, 8: their mean is 3, the squares from there 16, 4, 1, 25
    wrong = wrong_scales(
        mean_of_stds=1.5,
        mean_of_variances=2.5**0.5,
        mean_of_scales=4 / 3,
        upside_down=11.5**-0.5,
        squared=11.5,
        no_mean=20.5**0.5,
        first=1,
        last=2,
    )
    hint = "the components are -1, 1, 4 and 8, equally often; their variance is (16 + 4 + 1 + 25) / 4 = 11.5"
    expect(got, torch.tensor(11.5**-0.5), hint, wrong)


def test_3_the_last_batch_is_small(ex):
    got = scale_of(ex, wave(1, 1, B=8), wave(9, 1, B=2))  # 0 and 2 in four fifths, 8 and 10 in one
    wrong = wrong_scales(
        mean_of_stds=1, equal=17**0.5, kept=16.36**0.5, no_mean=18**0.5, upside_down=11.24**-0.5, squared=11.24
    )
    hint = "a fifth of the components lies around 9, the others around 1: their mean is 2.6, and their variance 1 + 0.8 * 1.6^2 + 0.2 * 6.4^2"
    expect(got, torch.tensor(11.24**-0.5), hint, wrong)


def test_3_one_number_for_all_channels(ex):
    batch = torch.cat([wave(-2, 1, C=1), wave(2, 3, C=1)], dim=1)  # variances 1 and 9 around the channels' own means
    got = scale_of(ex, batch, batch)
    wrong = wrong_scales(channels=2, each_channel=1.5, squared=9, upside_down=1 / 3)
    expect(
        got,
        torch.tensor(1 / 3),
        "all channels together have the mean 0 and the variance (4 + 1 + 4 + 9) / 2 = 9",
        wrong,
    )


def test_3_far_from_zero(ex):
    noise = torch.randn(2, 7, 4, 8, 8, generator=torch.Generator().manual_seed(0)) / 5
    batches = 1000 + noise
    rounding = "m is far from 0 here and the variance small: add up in double precision (an error of rounding)"
    expect(scale_of(ex, *batches), 1 / batches.double().std(correction=0).float(), rounding)


# ------------------------------------------------------------------------------------------ 4. noisy_latent


def pair(got: object, what: str) -> tuple:
    return parts(got, 2, what)


def step_by_hand(z: float, eps: float, levels=((0.6, 0.8), (0.8, 0.6))) -> tuple[torch.Tensor, torch.Tensor]:
    """x and v of a scaled latent at both levels."""
    return square_latents(*(a * z + s * eps for a, s in levels)), square_latents(*(a * eps - s * z for a, s in levels))


def test_4_two_levels(ex):
    """The latent is 2 + 0.5 * 2 = 3, and scaled 0.5 * 3 = 1.5."""
    mean, std, eps_z, eps = (square_latents(value, value) for value in (2, 0.5, 2, -1))
    alpha, sigma = torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6])
    x, v = pair(call(ex.noisy_latent, mean, std, 0.5, eps_z, eps, alpha, sigma), "x and v")
    right_x, right_v = step_by_hand(1.5, -1)
    others = {
        "the latent was not scaled": 3.0,
        "you divided by scale; what the encoder gives is multiplied by it": 6.0,
        "only the mean was scaled; std is unscaled, too": 2.0,
        "only std was scaled; the mean is unscaled, too": 2.5,
        "the latent is the mean, without randomness: std eps_z is missing": 1.0,
        "eps_z was multiplied by std twice, or by the variance": 1.25,
        "the same noise was used for both: eps_z draws the latent": 0.75,
    }
    wrong = {message: step_by_hand(z, -1)[0] for message, z in others.items()}
    wrong |= {
        "you noised first and scaled then, so that the noise is scaled, too": 0.5 * step_by_hand(3, -1)[0],
        "alpha and sigma are swapped in x: it is alpha z + sigma eps": step_by_hand(1.5, -1, ((0.8, 0.6), (0.6, 0.8)))[
            0
        ],
        "x was noised with eps_z, which has drawn the latent: the other noise is eps": step_by_hand(1.5, 2)[0],
        "the two noises are swapped: eps_z draws the latent, eps noises it": step_by_hand(0.75, 2)[0],
        "you used variances where alpha and sigma belong": step_by_hand(1.5, -1, ((0.36, 0.64), (0.64, 0.36)))[0],
        "x and v are swapped": right_v,
        "the levels went to the columns, not to the latents: give alpha and sigma the shape (B, 1, 1, 1)": right_x.transpose(
            0, 3
        ),
    }
    expect(x, right_x, "z = 0.5 (2 + 0.5 * 2) = 1.5, so x should be 0.6 * 1.5 - 0.8 and 0.8 * 1.5 - 0.6", wrong)
    wrong = {f"in v, {message}": step_by_hand(z, -1)[1] for message, z in others.items()}
    wrong |= {
        "v has the wrong sign: it is alpha eps - sigma z": -right_v,
        "in v, alpha and sigma are swapped: it is alpha eps - sigma z": step_by_hand(
            1.5, -1, ((0.8, 0.6), (0.6, 0.8))
        )[1],
        "in v, latent and noise are swapped: it is alpha eps - sigma z": step_by_hand(-1, 1.5)[1],
        "v is a difference: alpha eps - sigma z": step_by_hand(-1.5, -1)[1],
        "this is eps, but the network predicts v": eps,
    }
    expect(v, right_v, "v should be alpha eps - sigma z: -0.6 - 0.8 * 1.5 and -0.8 - 0.6 * 1.5", wrong)


def test_4_pure_noise_and_no_noise(ex):
    """alpha = 0, where x is the noise and v is -z, and sigma = 0, where x is z and v is the noise."""
    mean, std, eps_z, eps = (square_latents(value, value) for value in (2, 0.5, 2, -1))
    x, v = pair(
        call(ex.noisy_latent, mean, std, 0.5, eps_z, eps, torch.tensor([0.0, 1]), torch.tensor([1.0, 0])), "x, v"
    )
    hint = "at alpha = 0 and at sigma = 0 nothing may be divided by them"
    expect(x, square_latents(-1, 1.5), f"x should be eps = -1 and z = 1.5; {hint}")
    expect(v, square_latents(-1.5, -1), f"v should be -z = -1.5 and eps = -1; {hint}")


# -------------------------------------------------------------------------------------------- 5. latent_key


def encoder() -> tuple[dict, dict, torch.Tensor]:
    """Weights, settings and images that a key may be asked for."""
    weights = {
        "conv.weight": torch.arange(1600.0).view(10, 10, 4, 4),
        "conv.bias": torch.arange(10.0),
        "norm.bias": torch.arange(10.0) + 5,
    }
    config = {"latent_channels": 4, "channels": (32, 64), "layers": 1, "act": "silu", "mid_attention": True}
    config |= {"scaling_factor": 0.5}
    return weights, config, (torch.arange(4 * 3 * 12 * 16) % 251).view(4, 3, 12, 16).to(torch.uint8)


def elsewhere(tensor: torch.Tensor) -> torch.Tensor:
    """An equal tensor that lies within a larger one, its last axis spread out."""
    store = torch.full((len(tensor) + 1, *tensor.shape[1:], 2), 7, dtype=tensor.dtype)
    store[1:, ..., 0] = tensor
    return store[1:, ..., 0]


def changed(tensor: torch.Tensor, by: float = 1) -> torch.Tensor:
    """The same but for one number in the middle."""
    tensor = tensor.clone()
    tensor.view(-1)[tensor.numel() // 2] += by
    return tensor


def test_5_what_a_key_is(ex):
    weights, config, pixels = encoder()
    key = call(ex.latent_key, weights, config, pixels)
    found = repr(key) if isinstance(key, str) else type(key).__name__
    assert not (isinstance(key, str) and re.fullmatch("[0-9a-f]{32}", key)), (
        "the key has 32 hexadecimal digits, as an MD5 has or half a SHA-256; it is a whole SHA-256, 64 digits"
    )
    assert isinstance(key, str) and re.fullmatch("[0-9a-f]{64}", key), (
        f"64 hexadecimal digits were expected, as a text, not {found}"
    )
    assert "scaling_factor" in config and config == encoder()[1], (
        "you changed config, which belongs to the caller: make a copy without the entry"
    )
    assert weights.keys() == encoder()[0].keys(), "you changed weights, which belong to the caller"


def test_5_the_same_things_have_the_same_key(ex):
    weights, config, pixels = encoder()
    key, real = ex.latent_key(weights, config, pixels), hash
    assert ex.latent_key(weights, config, pixels) == key, (
        "two calls with the same arguments give two keys: the key depends on random numbers"
    )
    with patch("builtins.hash", lambda value: real(value) ^ 1):  # what another process would do to texts
        another = ex.latent_key(weights, config, pixels)
    assert another == key, (
        "the key differs from process to process: Python's hash() of a text is salted. Take hashlib.sha256()"
    )
    same = {
        "equal tensors give different keys: the key depends on where in memory they lie": encoder(),
        "the key depends on the order of the weights: sort them by their names": (
            dict(reversed(weights.items())),
            config,
            pixels,
        ),
        "the key depends on the order of the settings: json.dumps(..., sort_keys=True)": (
            weights,
            dict(reversed(config.items())),
            pixels,
        ),
        "the key depends on the scaling factor, but the cache holds unscaled latents": (
            weights,
            config | {"scaling_factor": 0.6},
            pixels,
        ),
        "the key depends on how a tensor lies in memory: hash its numbers, not its storage": (
            {name: elsewhere(tensor) for name, tensor in weights.items()},
            config,
            elsewhere(pixels),
        ),
    }
    for message, case in same.items():
        assert ex.latent_key(*case) == key, message


def test_5_other_weights(ex):
    weights, config, pixels = encoder()
    key = ex.latent_key(weights, config, pixels)
    others = {
        "the key does not depend on the weights' numbers": weights
        | {name: tensor + 1 for name, tensor in weights.items()},
        "the key misses a change in the middle of a large tensor": weights
        | {"conv.weight": changed(weights["conv.weight"])},
        "the key misses a small change: hash all bytes of a number": weights
        | {"conv.weight": changed(weights["conv.weight"], 1e-3)},
        "two weights changed places, but the key did not change: hash the names together with the numbers": (
            weights | {"conv.bias": weights["norm.bias"], "norm.bias": weights["conv.bias"]}
        ),
        "a weight has another name, but the key did not change": {
            name.replace("norm", "norm2"): tensor for name, tensor in weights.items()
        },
        "a weight has another shape, but the key did not change: bytes do not tell": weights
        | {"conv.weight": weights["conv.weight"].view(40, 40)},
        "a weight has another dtype, but the key did not change: bytes do not tell": weights
        | {"conv.bias": weights["conv.bias"].view(torch.int32)},
    }
    for message, case in others.items():
        assert ex.latent_key(case, config, pixels) != key, message


def test_5_other_settings(ex):
    weights, config, pixels = encoder()
    key = ex.latent_key(weights, config, pixels)
    changes = {"latent_channels": 8, "channels": (64, 32), "layers": 2, "act": "relu", "mid_attention": False}
    for name, value in changes.items():
        other = ex.latent_key(weights, config | {name: value}, pixels)
        assert other != key, f"the key does not depend on all of config: {name} became {value}"
    swapped = config | {"latent_channels": config["layers"], "layers": config["latent_channels"]}
    renamed = {name.replace("layers", "depth"): value for name, value in config.items()}
    for message, other in {
        "two settings changed their values, but the key did not change: hash the names, too": swapped,
        "a setting has another name, but the key did not change: hash the names, too": renamed,
        "a new setting came, but the key did not change": config | {"groups": 8},
        "a setting is gone, but the key did not change": {
            name: value for name, value in config.items() if name != "layers"
        },
    }.items():
        assert ex.latent_key(weights, other, pixels) != key, message


def test_5_sets_have_no_order(ex):
    """Python does not promise the order of a set: it depends on the process, and on what was put in first."""
    weights, config, pixels = encoder()
    for trial in range(4):
        many = {f"setting {trial} {i * i}": i for i in range(40)}
        key = ex.latent_key(weights, many, pixels)
        assert ex.latent_key(weights, dict(reversed(many.items())), pixels) == key, (
            "the key depends on the order of the settings: sort them (a set has no order that lasts)"
        )
        layers = {f"layer.{trial}.{i * i}": torch.full((2,), float(i)) for i in range(40)}
        key = ex.latent_key(layers, config, pixels)
        assert ex.latent_key(dict(reversed(layers.items())), config, pixels) == key, (
            "the key depends on the order of the weights: sort them by their names (a set has no order that lasts)"
        )


def test_5_other_images(ex):
    weights, config, pixels = encoder()
    key = ex.latent_key(weights, config, pixels)
    others = {
        "the key does not depend on the pixels": 255 - pixels,
        "a single pixel is brighter, but the key did not change": changed(pixels),
        "the images have another order, but the key did not change": pixels[[1, 0, 2, 3]],
        "an image is gone, but the key did not change": pixels[:-1],
        "the images have another shape, but the key did not change: bytes do not tell": pixels.view(4, 3, 16, 12),
        "the pixels have another dtype, but the key did not change: bytes do not tell": pixels.view(torch.int8),
    }
    for message, case in others.items():
        assert ex.latent_key(weights, config, case) != key, message


# ----------------------------------------------------------------------------------------- 6. img2img_start

# of a sampler of 4 steps
ALPHA, SIGMA = (torch.tensor([0.0, 5 / 13, 0.6, 0.96, 1.0]), torch.tensor([1.0, 12 / 13, 0.8, 0.28, 0.0]))


def test_6_which_step(ex):
    z, eps = latents(1), latents(2)
    for N, strength, right in (
        (4, 0.8, 1),
        (4, 0.7, 1),
        (4, 0.3, 3),
        (4, 0.5, 2),
        (50, 0.58, 21),
        (4, 1.0, 0),
        (4, 0.0, 4),
    ):
        alpha = torch.linspace(0, 1, N + 1)
        first, _ = pair(call(ex.img2img_start, z, eps, strength, alpha, (1 - alpha**2).sqrt()), "first and x")
        assert isinstance(first, int), (
            f"first should be a Python int, for range() and indices, not {type(first).__name__}"
        )
        wrong = {
            "strength is the wrong way round: it is the share of the steps that are walked, not of those left out": round(
                strength * N
            ),
            "you truncated where you should round to the nearest": N - int(strength * N),
            "there are N + 1 levels, but N steps": N + 1 - round(strength * (N + 1)),
            "even at strength 0, yours walks a step": N - 1 if strength == 0 else right,
            "one step too early": right - 1,
            "one step too late": right + 1,
        }
        for message, value in wrong.items():
            assert first != value or value == right, (
                f"of {N} steps at strength {strength}, first should be {right}, not {first}: {message}"
            )
        assert first == right, (
            f"of {N} steps at strength {strength}, {strength * N:g} are walked, and so first should be {right}, not {first}"
        )


def test_6_the_half_noised_picture(ex):
    _, x = pair(call(ex.img2img_start, latents(1), latents(-1), 0.3, ALPHA, SIGMA), "first and x")
    wrong = {
        "x is the picture, not noised: the sampler expects the noise of level `first`": latents(1),
        "x is pure noise: nothing is left of the picture": latents(-1),
        "alpha and sigma are swapped": latents(0.28 - 0.96),
        "the level is counted from the wrong end: entry 0 is the noisiest": latents(5 / 13 - 12 / 13),
        "the noise is that of the level before": latents(0.6 - 0.8),
        "strength itself is taken for the noise level; the level is that of step `first`": latents(0.7 - 0.3),
        "strength itself is taken for sigma; the level is that of step `first`": latents(0.91**0.5 - 0.3),
        "you added noise to the whole of z: it has the factor alpha": latents(1 - 0.28),
        "you used variances where alpha and sigma belong": latents(0.96**2 - 0.28**2),
    }
    hint = "of 4 steps at strength 0.3, only the last one is walked; it begins at level 3, with 0.96 of z = 1 and 0.28 of eps = -1"
    expect(x, latents(0.96 - 0.28), hint, wrong)


def test_6_both_ends(ex):
    z, eps = latents(1, 3), latents(2, 5)
    expect(
        call(ex.img2img_start, z, eps, 0.0, ALPHA, SIGMA)[1], z, "at strength 0 nothing is walked, and x is z itself"
    )
    expect(
        call(ex.img2img_start, z, eps, 1.0, ALPHA, SIGMA)[1],
        eps,
        "at strength 1 all is walked, from pure noise: alpha_0 = 0 here",
    )


# ---------------------------------------------------------------------------------------- 7. decode_picture


def decode(z: torch.Tensor) -> torch.Tensor:
    """The first three channels are red, green and blue, at a tenth and a little brighter;
    every place becomes 2 x 2 pixels.
    """
    assert isinstance(z, torch.Tensor) and z.dtype == torch.float32, (
        "the decoder takes latents in float32; bytes come last"
    )
    return z[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3) / 10 + 0.2


def test_7_a_row_of_pixels(ex):
    row = torch.tensor([-17, -12.1, -7.53, -1.97, 1.7, 5.36, 8, 10.1])  # unscaled; decoded a tenth of it, and 0.2
    got = call(ex.decode_picture, 0.4 * row.repeat(2, 4, 1, 1), decode, 0.4)
    assert not isinstance(got, torch.Tensor) or got.dtype == torch.uint8, (
        f"pictures are bytes, torch.uint8, not {got.dtype}"
    )

    def picture(*bytes_: int) -> torch.Tensor:
        return torch.tensor(bytes_, dtype=torch.float32).repeat_interleave(2).repeat(2, 3, 2, 1)

    wrong = {
        "you multiplied by scale; to undo the scaling, divide": picture(118, 128, 138, 149, 156, 164, 169, 174),
        "the scaling was not undone: divide by scale": picture(66, 91, 115, 143, 162, 180, 194, 205),
        "you divided the image by scale; it is the latents that are scaled": picture(
            0, 37, 95, 166, 213, 255, 255, 255
        ),
        "latents were clipped at -1 and 1; only images are": picture(121, 121, 121, 128, 175, 185, 185, 185),
        "unscaled latents were clipped at -1 and 1; only images are": picture(140, 140, 140, 140, 166, 166, 166, 166),
        "values beyond [-1, 1] were not clipped, and wrapped around: 256 is 0 in a byte": picture(
            192, 255, 57, 128, 175, 221, 255, 26
        ),
        "values beyond [-1, 1] were neither clipped nor rounded": picture(193, 255, 56, 127, 174, 221, 255, 25),
        "the numbers were truncated, not rounded: .round() before .to(torch.uint8)": picture(
            0, 0, 56, 127, 174, 221, 255, 255
        ),
        "white should be 255: the factor is 127.5": picture(0, 0, 57, 127, 174, 220, 254, 254),
        "256 is not a byte: the factor is 127.5": picture(0, 0, 57, 128, 175, 222, 255, 255),
        "you assumed images in [0, 1]; they are in [-1, 1]": picture(0, 0, 0, 1, 94, 188, 255, 255),
        "images were clipped at 0 and 1; they are in [-1, 1]": picture(128, 128, 128, 128, 175, 221, 255, 255),
    }
    got = got.float() if isinstance(got, torch.Tensor) else got  # a byte less another byte would go round
    right = picture(0, 0, 57, 128, 175, 221, 255, 255)
    hint = "decoded, the row is -1.5, -1.01, -0.553, 0.003, 0.37, 0.736, 1 and 1.21; in bytes 0, 0, 57, 128, 175, 221, 255 and 255"
    expect(got, right, hint, wrong, atol=0.3)


# ----------------------------------------------------------------------------------------- 8. sample_latent


class Network:
    """Answers v = the caption's number for every component. Remembers what it was asked."""

    def __init__(self):
        self.x, self.t, self.text = [], [], []

    def __call__(self, x, t, text):
        assert isinstance(t, torch.Tensor) and t.shape == (len(x),), (
            f"{len(x)} latents need {len(x)} times t, as a tensor"
        )
        assert len(text) == len(x), f"the network was given {len(x)} latents and {len(text)} captions"
        self.x.append(x.clone())
        self.t.append(t.tolist())
        self.text.append(text.clone())
        return text[:, :1, :1, None].expand_as(x)


def captions(*values: float) -> torch.Tensor:
    """A caption for each value, all its numbers the same. (B, 2, 3)"""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).repeat(1, 2, 3)


TIMES, A, S = (
    torch.tensor([900.0, 500.0, 100.0]),
    torch.tensor([0.0, 0.6, 0.8, 1.0]),
    torch.tensor([1.0, 0.8, 0.6, 0.0]),
)


def test_8_one_step(ex):
    """From alpha = 0.8, sigma = 0.6 to the clean latent, which is z = 0.8 x - 0.6 v."""
    net = Network()
    got = call(ex.sample_latent, net, latents(1, 2), 2, captions(1, 1, 0.5, 0), 3.0, TIMES, A, S)
    assert all(len(seen) == 4 for seen in net.x), (
        "the network should be called once a step, with both halves as one batch of 2B"
    )
    assert len(net.x) != 3, "sampling should begin with step first = 2, not with step 0"
    assert len(net.x) == 1, f"of three steps, only the last is left from first = 2; calls made: {len(net.x)}"
    wrong = {"the latents came as 0 0 1 1; they should come as 0 1 0 1, as the captions do": latents(1, 1, 2, 2)}
    expect(net.x[0], latents(1, 2, 1, 2), "the network should see all latents, and then all of them again", wrong)
    expect(net.text[0], captions(1, 1, 0.5, 0), "the network should be given context as it is")
    assert net.t[0] == 4 * [100], f"at step 2 the network should be given times[2] = 100, not {net.t[0]}"

    def clean(first_v: float, second_v: float) -> torch.Tensor:
        return latents(0.8 - 0.6 * first_v, 1.6 - 0.6 * second_v)

    wrong = {
        "z was clipped at -1 and 1, which is for pixels: latents have no bounds": latents(1, 1),
        "the halves are swapped: the first B answers are uncond": clean(0.5 + 1.5, 0 + 3),
        "guidance leads away from the caption: v = uncond + w (cond - uncond)": clean(1 + 1.5, 1 + 3),
        "this is Ho & Salimans' w, which guides by one more": clean(1 - 2, 1 - 4),
        "this is the conditional answer, with no guidance": clean(0.5, 0),
        "v was read with the wrong sign": latents(0.8 - 0.3, 1.6 - 1.2),
        "v was read with the levels of the next step, alpha_(k+1)": latents(1, 2),
    }
    hint = "uncond is 1 and 1, cond 0.5 and 0, so with w = 3 v is -0.5 and -2, and z = 0.8 x - 0.6 v"
    expect(got, clean(-0.5, -2), hint, wrong)


def test_8_from_noise(ex):
    """w = 1: v is 1 all the way, and so x turns: from (0, 1) by the angle of the levels."""
    net = Network()
    got = call(ex.sample_latent, net, latents(0.5), 0, captions(7, 1), 1.0, TIMES, A, S)
    assert all(len(seen) == 2 for seen in net.x), (
        "the network should be called once a step, with both halves as one batch of 2B"
    )
    assert len(net.x) == 3, (
        f"three steps are walked from first = 0, and so the network is called three times; calls made: {len(net.x)}"
    )
    told = [t[0] for t in net.t]
    assert told == [900, 500, 100], f"the network should be given times[k] at step k, so 900, 500 and 100, not {told}"
    first = 0.6 * -1 + 0.8 * 0.5  # z = -1, eps = 0.5
    z, eps = 0.6 * first - 0.8, 0.8 * first + 0.6
    second = 0.8 * z + 0.6 * eps
    wrong = {
        "v was read with the wrong sign": latents(-0.6 + 0.5),
        "v was read with the levels of the next step, alpha_(k+1)": latents(
            0.6 * (0.6 * 0.5 - 0.8) + 0.8 * (0.8 * 0.5 + 0.6)
        ),
        "the halves are swapped: the first B answers are uncond": latents(0.6 * -7 + 0.8 * 0.5),
    }
    expect(
        net.x[1][:1],
        latents(first),
        "step 0 sees z = 0 x - 1 v = -1 and eps = x = 0.5, and mixes 0.6 z + 0.8 eps",
        wrong,
    )
    expect(
        net.x[2][:1],
        latents(second),
        "step 1 reads z = 0.6 x - 0.8 v and eps = 0.8 x + 0.6 v, and mixes 0.8 z + 0.6 eps",
    )
    expect(got, latents(0.8 * second - 0.6), "the last step ends in z = 0.8 x - 0.6 v")


def test_8_nothing_to_walk(ex):
    got = call(ex.sample_latent, Network(), latents(1, 2), 3, captions(0, 0, 1, 1), 3.0, TIMES, A, S)
    expect(got, latents(1, 2), "first = 3 of three steps leaves none: x stays as it is")


# --------------------------------------------------------------------------------------- 9. kl_of_gaussians


def monte_carlo_kl(mean_q: float, std_q: float, mean_p: float, std_p: float) -> torch.Tensor:
    """The mean of log q - log p over 400,000 samples of q. ()"""
    q, p = torch.distributions.Normal(mean_q, std_q), torch.distributions.Normal(mean_p, std_p)
    z = mean_q + std_q * torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    return (q.log_prob(z) - p.log_prob(z)).double().mean()


def kl_mistakes(mean_q: float, std_q: float, mean_p: float, std_p: float) -> dict[str, torch.Tensor]:
    """Well-known wrong results. {message: ()}"""

    def of(mq: float, sq: float, mp: float, sp: float) -> float:
        return math.log(sp / sq) + (sq**2 + (mq - mp) ** 2) / (2 * sp**2) - 0.5

    right, distance = of(mean_q, std_q, mean_p, std_p), (mean_q - mean_p) ** 2
    wrong = {
        "this is KL(p || q); the expected value is that under q": of(mean_p, std_p, mean_q, std_q),
        "the sign is wrong: a KL is never below 0": -right,
        "the - 1/2 is missing: the KL of two equal distributions is 0": right + 0.5,
        "the factor 1/2 is missing in the squared terms": right + (std_q**2 + distance) / (2 * std_p**2),
        "the logarithm has the wrong sign": right - 2 * math.log(std_p / std_q),
        "the means do not count yet: (mean_q - mean_p)^2 is missing": right - distance / (2 * std_p**2),
        "this is the KL to N(0, 1), whatever p is": of(mean_q, std_q, 0.0, 1.0),
        "log(std_p / std_q) is missing": right - math.log(std_p / std_q),
    }
    return {message: torch.tensor(value, dtype=torch.float64) for message, value in wrong.items()}


def two_gaussians(mean_q: float, std_q: float, mean_p: float, std_p: float) -> str:
    return f"q = N({mean_q:.2f}, {std_q:.2f}^2) and p = N({mean_p:.2f}, {std_p:.2f}^2)"


def check_kl_of_gaussians(ex, *args: float) -> None:
    got = number(call(ex.kl_of_gaussians, *args), "one number, in nats,")
    sampled = monte_carlo_kl(*args)
    if abs(got - sampled) > 0.02 * max(1.0, float(sampled)):
        for message, value in kl_mistakes(*args).items():
            assert abs(got - value) > 1e-3, message
        raise AssertionError(
            f"{two_gaussians(*args)}: the mean of log q - log p over samples of q is {float(sampled):.2f}, "
            f"and your result is {float(got):.2f}"
        )


def test_9_by_hand_and_by_monte_carlo(ex):
    check_kl_of_gaussians(ex, 0.7, 0.5, 0.0, 1.0)
    check_kl_of_gaussians(ex, -1.0, 1.5, 0.5, 0.8)
    check_kl_of_gaussians(ex, 1.0, 0.4, 0.0, 2.0)
    check_kl_of_gaussians(ex, 1.0, 2.0, 1.0, 2.0)  # equal distributions


# --------------------------------------------------------------------------------------- 10. best_posterior


def loss_of_posterior(mean, std, x: float, slope: float, r: float, beta: float):
    """Exercise 10's loss, exactly: floats or tensors."""
    reconstruction = ((x - slope * mean) ** 2 + slope**2 * std**2) / (2 * r**2)
    log = std.log() if isinstance(std, torch.Tensor) else math.log(std)
    return reconstruction + beta * (mean**2 + std**2 - 1 - 2 * log) / 2


def check_posterior(ex, x: float, slope: float, r: float, beta: float) -> None:
    mean, std = numbers(call(ex.best_posterior, x, slope, r, beta), 2, "mean and std").tolist()
    where = f"x = {x:g}, slope = {slope:g}, r = {r:g}, beta = {beta:g}"
    assert std > 0 and math.isfinite(mean), (
        f"std should be above 0 and mean a number, not {std:g} and {mean:g} (for {where})"
    )
    for factor in (0.97, 1.03):
        best = loss_of_posterior(mean, std, x, slope, r, beta)
        if loss_of_posterior(mean, factor * std, x, slope, r, beta) < best:
            for message, value in {
                "this is the variance, not the standard deviation": std**0.5,
                "this is one over the standard deviation": 1 / std,
                "beta belongs in the numerator, too: for beta -> 0 nothing keeps std from going to 0": std * beta**0.5,
            }.items():
                right = all(
                    loss_of_posterior(mean, value, x, slope, r, beta)
                    <= loss_of_posterior(mean, f * value, x, slope, r, beta)
                    for f in (0.98, 1.02)
                )
                assert not right, f"{message} (for {where})"
            raise AssertionError(
                f"std = {std:.3f} is not best: {factor} times as much has a smaller loss (for {where})"
            )
        nearby = mean + (factor - 1) * (abs(mean) + 0.1)
        if loss_of_posterior(nearby, std, x, slope, r, beta) < best:
            without = "mean = x / slope would be best without beta"
            assert abs(mean - x / slope) >= 1e-3, f"{without} (for {where})"
            raise AssertionError(f"mean = {mean:.3f} is not best: {nearby:.3f} has a smaller loss (for {where})")


def test_10_no_other_posterior_is_better(ex):
    for beta in (0.01, 1.0, 4.0, 100.0):
        check_posterior(ex, 1.2, 0.8, 0.5, beta)
    check_posterior(ex, -0.7, -1.5, 0.2, 2.0)


# -------------------------------------------------------------------------------------- 11. channels_needed


def channel_mistakes(values: torch.Tensor, psnr: float) -> dict[str, int]:
    """Well-known wrong numbers of channels. {message: c}"""

    def needed(each: torch.Tensor, error: float) -> int:
        return next((c for c in range(len(each) + 1) if float(each[c:].sum()) <= error), len(each))

    ordered, D, error = values.sort(descending=True).values, len(values), 4 / 10 ** (psnr / 10)
    return {
        "the eigenvalues are not sorted: keep the largest": needed(values, D * error),
        "you kept the smallest eigenvalues; keep the largest": needed(values.sort().values, D * error),
        "the squared error of a patch is spread over D numbers: divide the sum by D": needed(ordered, error),
        "images in [-1, 1] have a range of 2, so its square is 4": needed(ordered, D / 10 ** (psnr / 10)),
        "decibels are 10 log10 of a ratio of squares, not 20": needed(ordered, D * 4 / 10 ** (psnr / 20)),
        "one channel fewer is enough": needed(ordered, D * error) + 1,
        "one channel more is needed: the PSNR is not reached": needed(ordered, D * error) - 1,
    }


def check_channels(ex, values: torch.Tensor, psnr: float, right: int) -> None:
    got = call(ex.channels_needed, values, psnr)
    assert isinstance(got, int), f"a Python int was expected, a number of channels, not {type(got).__name__}"
    for message, value in channel_mistakes(values, psnr).items():
        assert got != value or value == right, f"of {len(values)} channels {right} are needed, not {got}: {message}"
    assert got == right, f"of {len(values)} channels {right} are needed for {psnr:g} dB, not {got}"


def test_11_a_budget(ex):
    values = torch.tensor([0.01, 0.24, 0.04, 0.03, 0.0, 0.6, 0.06, 0.02])  # D = 8, and together 1
    # 20 dB is a mean squared error of 0.04, so 0.32 for the patch: 0.01 + 0.02 + 0.03 + 0.04 + 0.06 may be dropped
    check_channels(ex, values, 20.0, 2)
    check_channels(ex, values, 25.0, 3)  # 0.0126 * 8 = 0.101, which is 0.01 + 0.02 + 0.03 + 0.04
    check_channels(ex, values, 15.0, 0)  # 0.126 * 8 = 1.01: the mean colour is enough


# ------------------------------------------------------------------------------------------ 12. anagram_eps


def flip(x: torch.Tensor) -> torch.Tensor:
    return x.flip(2)


def turn(x: torch.Tensor) -> torch.Tensor:
    return torch.rot90(x, 1, (2, 3))


def turn_back(x: torch.Tensor) -> torch.Tensor:
    return torch.rot90(x, -1, (2, 3))


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def predict_by_place(x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """A network that sees where it is: (x + the caption's number) times the row, plus the column."""
    rows, columns = torch.arange(x.shape[2]).view(-1, 1), torch.arange(x.shape[3])
    return (x + text.mean((1, 2)).view(-1, 1, 1, 1)) * (1 + rows) + 0.1 * columns


def anagram_mistakes(x, texts, views, inverses, predict=predict_by_place) -> dict[str, torch.Tensor]:
    eps = [inverse(predict(view(x), t)) for view, inverse, t in zip(views, inverses, texts, strict=True)]
    return {
        "the predictions were not turned back": torch.stack(
            [predict(view(x), t) for view, t in zip(views, texts, strict=True)]
        ).mean(0),
        "the network should see x in each view; here it saw x upright": torch.stack(
            [inverse(predict(x, t)) for inverse, t in zip(inverses, texts, strict=True)]
        ).mean(0),
        "no view was used": torch.stack([predict(x, t) for t in texts]).mean(0),
        "view and inverse are swapped": torch.stack(
            [view(predict(inverse(x), t)) for view, inverse, t in zip(views, inverses, texts, strict=True)]
        ).mean(0),
        "the predictions were transformed by the view again, not by its inverse": torch.stack(
            [view(predict(view(x), t)) for view, t in zip(views, texts, strict=True)]
        ).mean(0),
        "this is the sum of the predictions; take the mean": torch.stack(eps).sum(0),
        "all views were given the first prompt": torch.stack(
            [inverse(predict(view(x), texts[0])) for view, inverse in zip(views, inverses, strict=True)]
        ).mean(0),
        "only the first view counts": eps[0],
        "only the last view counts": eps[-1],
    }


def check_anagram(ex, x, texts, views, inverses) -> None:
    eps = [inverse(predict_by_place(view(x), t)) for view, inverse, t in zip(views, inverses, texts, strict=True)]
    right = torch.stack(eps).mean(0)
    wrong = anagram_mistakes(x, texts, views, inverses)
    got = call(ex.anagram_eps, predict_by_place, x, texts, views, inverses)
    expect(got, right, "this is not the mean of the predictions, each made in its view and turned back", wrong)


def test_12_two_views(ex):
    x = torch.arange(2 * 16.0).view(2, 1, 4, 4) / 10
    check_anagram(ex, x, [captions(0.3, 0.4), captions(-1, 2)], [same, flip], [same, flip])


def test_12_a_quarter_turn_and_three_prompts(ex):
    x = torch.arange(2 * 16.0).view(2, 1, 4, 4) / 10
    texts = [captions(0.3, 0.4), captions(-1, 2), captions(0, 1)]
    check_anagram(ex, x, texts, [same, turn, flip], [same, turn_back, flip])


# ------------------------------------------------------------------------------------------- 13. hybrid_eps


def blur(x: torch.Tensor) -> torch.Tensor:
    """A low-pass filter: the mean of 3 x 3 positions, with a border that repeats."""
    return torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular"), 3, 1)


def check_hybrid(ex, x: torch.Tensor, near: torch.Tensor, far: torch.Tensor, low_pass=blur) -> None:
    a, b = predict_by_place(x, near), predict_by_place(x, far)
    wrong = {
        "near and far are swapped: far away only the low frequencies are seen": low_pass(a) + b - low_pass(b),
        "the high frequencies are those of the far prompt, and the low ones, too": b,
        "the high frequencies are missing": low_pass(b),
        "the low frequencies are those of the near prompt, and the high ones, too": a,
        "blur(eps_near) is not subtracted: its low frequencies are still there": low_pass(b) + a,
        "these are the high frequencies alone": a - low_pass(a),
        "x was blurred, not the prediction": predict_by_place(low_pass(x), far)
        + a
        - predict_by_place(low_pass(x), near),
        "this is the mean of both predictions": (a + b) / 2,
    }
    got = call(ex.hybrid_eps, predict_by_place, x, near, far, low_pass)
    expect(got, low_pass(b) + a - low_pass(a), "this is not blur(eps_far) + eps_near - blur(eps_near)", wrong)


def test_13_low_and_high_frequencies(ex):
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    check_hybrid(ex, x, captions(0.3, 2), captions(-1, 0.5))
    one = captions(0.3, 2)
    got = call(ex.hybrid_eps, predict_by_place, x, one, one, blur)
    expect(got, predict_by_place(x, one), "with two equal prompts this is the plain prediction")


# ----------------------------------------------------------------------------------------- 14. fix_vae_loss


def vae_loss_mistakes(x, y, mean, logvar, r: float, beta: float) -> dict[str, torch.Tensor]:
    error, information = (x - y).square(), (mean.square() + logvar.exp() - 1 - logvar) / 2
    whole, n = error.flatten(1).sum(1) / (2 * r**2), mean[0].numel()
    each = information.flatten(1).sum(1)
    return {
        "the divergence is still a mean over the latents; the bound has their sum": (whole + beta * each / n).mean(),
        "both terms are means now, which changes the weight between them": (
            error.mean() / (2 * r**2) + beta * information.mean()
        ),
        "the reconstruction became a mean; the bound has the sum over all pixel values": (
            whole / x[0].numel() + beta * each
        ).mean(),
        "the divergence is that of all images together; each image has its own": (whole + beta * each.sum()).mean(),
        "the loss is the mean over the batch, not the sum": (whole + beta * each).sum(),
        "each image has a loss now; return the mean over the batch": whole + beta * each,
    }


def check_vae_loss(ex, *args) -> None:
    x, y, mean, logvar, r, beta = args
    information = (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2
    right = ((x - y).square().flatten(1).sum(1) / (2 * r**2) + beta * information).mean()
    got = call(ex.fix_vae_loss, *args)
    wrong = vae_loss_mistakes(*args)
    each = wrong.pop("each image has a loss now; return the mean over the batch")
    assert not isinstance(got, torch.Tensor) or got.shape != each.shape, "each image has a loss now; return their mean"
    expect(got, right, "this is not the mean over the batch of |x - y|^2 / (2 r^2) + beta KL", wrong, 1e-3)


def test_14_by_hand(ex):
    """Two images of 12 pixel values with an error of 1 each: 12 / 2 = 6. Means of 1 and 0: a KL of 1/2 for each of 8 latents."""
    mean = torch.cat([latents(1, C=2, h=2, w=2), latents(0, C=2, h=2, w=2)])
    x, y = torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    check_vae_loss(ex, x, y, mean, torch.zeros_like(mean), 1.0, 1.0)
    check_vae_loss(ex, x, y, mean, torch.ones_like(mean), 0.5, 3.0)


# ------------------------------------------------------------------------------------- 15. fix_latent_batch


def check_latent_batch(ex, mean, std, scale: float, alpha, sigma, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    eps_z, eps = torch.randn(mean.shape, generator=rng), torch.randn(mean.shape, generator=rng)
    a, s, unscaled = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1), mean + std * eps_z
    others = {
        "the latents are still not scaled": unscaled,
        "the latents were divided by scale; they are multiplied by it": unscaled / scale,
        "the latents are scaled twice": scale**2 * unscaled,
        "only the mean was scaled": scale * mean + std * eps_z,
    }
    wrong = {message: a * z + s * eps for message, z in others.items()}
    wrong |= {"x was scaled with its noise; scale the latents before": scale * (a * unscaled + s * eps)}
    x, v = pair(
        call(ex.fix_latent_batch, mean, std, scale, alpha, sigma, torch.Generator().manual_seed(seed)), "x and v"
    )
    z = scale * unscaled
    expect(x, a * z + s * eps, "x should be alpha z + sigma eps with z = scale (mean + std eps_z)", wrong)
    wrong = {f"in v, {message}": a * eps - s * other for message, other in others.items()}
    expect(v, a * eps - s * z, "v should be alpha eps - sigma z with the same z", wrong)


def test_15_unit_variance(ex):
    rng = torch.Generator().manual_seed(1)
    mean, std = 5 * torch.randn(3, 4, 6, 6, generator=rng), 0.1 * torch.ones(3, 4, 6, 6)
    alpha = torch.tensor([1.0, 0.8, 0.0])
    check_latent_batch(ex, mean, std, 0.2, alpha, (1 - alpha**2).sqrt(), seed=3)


# -------------------------------------------------------------------------------------- 16. fix_reconstruct


def encode_wide(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An encoder that keeps every other pixel, with a standard deviation of a half."""
    mean = 2 * x[:, :, ::2, ::2]
    return mean, torch.full_like(mean, 2 * math.log(0.5))


def decode_wide(z: torch.Tensor) -> torch.Tensor:
    return (z / 2).repeat_interleave(2, 2).repeat_interleave(2, 3)


def check_reconstruct(ex, x: torch.Tensor, eps: torch.Tensor) -> None:
    mean, logvar = encode_wide(x)
    std, right = (logvar / 2).exp(), decode_wide(mean).clamp(-1, 1)
    y, found = pair(call(ex.fix_reconstruct, x, encode_wide, decode_wide, eps), "reconstructions and PSNR")
    wrong = {
        "the latents are still drawn at random; a reconstruction takes the mode of the posterior": decode_wide(
            mean + std * eps
        ).clamp(-1, 1),
        "a constant noise is still a noise: the mode has none": decode_wide(mean + std).clamp(-1, 1),
        "this is the noise alone; decode the mean": decode_wide(std * eps).clamp(-1, 1),
        "logvar is no code; decode the mean": decode_wide(logvar).clamp(-1, 1),
        "the reconstructions are not clipped": decode_wide(mean),
    }
    expect(y, right, "the reconstruction should be that of the posterior's mean, clipped to [-1, 1]", wrong)
    decibels = 10 * torch.log10(4 / (x - right).square().mean((1, 2, 3)))
    wrong = {
        "each image has a PSNR of its own": decibels.mean().expand(len(x)),
        "the range of images in [-1, 1] is 2, so its square is 4": decibels - 10 * math.log10(4),
    }
    expect(found, decibels, "the PSNR should be 10 log10(4 / mean squared error) of each image", wrong, 1e-3)


def test_16_no_noise_in_a_reconstruction(ex):
    rng = torch.Generator().manual_seed(0)
    x = 1.2 * torch.randn(3, 3, 4, 4, generator=rng)
    check_reconstruct(ex, x, torch.randn(3, 3, 2, 2, generator=rng))


# ------------------------------------------------------------------------------------ 17. fix_text_to_image


class Reader:
    """A text encoder: each caption becomes numbers of its own. Remembers the captions."""

    def __init__(self):
        self.seen: list[str] = []

    def read(self, texts: list[str]) -> torch.Tensor:
        number_of = [sum(place * ord(letter) for place, letter in enumerate(text, 1)) for text in texts]
        return torch.tensor(number_of, dtype=torch.float32).sin().view(-1, 1, 1).repeat(1, 2, 3)

    def __call__(self, texts: list[str]) -> torch.Tensor:
        self.seen += texts
        return self.read(texts)


def shifted_v(x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    assert len(x) == len(text) == len(t), f"{len(x)} latents, {len(t)} times and {len(text)} captions do not match"
    return 0.3 * x.sin() + text.mean((1, 2)).view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1) / 1000


def text_to_image(prompts, negative: str, x, levels, mix) -> torch.Tensor:
    """The sampler of exercise 17, with mix(uncond, cond) for the guidance."""
    B, reader = len(prompts), Reader()
    for (t, alpha, sigma), (_, then_alpha, then_sigma) in zip(levels[:-1], levels[1:], strict=True):
        time = torch.full((B,), t)
        v = mix(shifted_v(x, time, reader.read([negative] * B)), shifted_v(x, time, reader.read(list(prompts))))
        z, eps = alpha * x - sigma * v, sigma * x + alpha * v
        x = then_alpha * z + then_sigma * eps
    return x


def check_text_to_image(ex, prompts: list[str], negative: str, x: torch.Tensor, w: float, levels: list) -> None:
    def run(mix, negative: str = negative) -> torch.Tensor:
        return text_to_image(prompts, negative, x, levels, mix)

    wrong = {
        "the halves are still swapped: the first half of the output is uncond": run(lambda u, c: c + w * (u - c)),
        "the negative prompt is gone": run(lambda u, c: u + w * (c - u), ""),
        "guidance leads away from the prompts": run(lambda u, c: u - w * (c - u)),
        "this is the conditional prediction, without guidance": run(lambda u, c: c),
        "this guides by one more than w": run(lambda u, c: u + (1 + w) * (c - u)),
    }
    got = call(ex.fix_text_to_image, shifted_v, Reader(), list(prompts), negative, x, w, levels)
    expect(got, run(lambda u, c: u + w * (c - u)), "this is not guided DDIM towards the prompts", wrong, 1e-3)


def test_17_towards_the_prompts(ex):
    levels = [(900.0, 0.0, 1.0), (500.0, 0.6, 0.8), (100.0, 0.96, 0.28), (0.0, 1.0, 0.0)]
    for w in (3.0, 1.0, 0.0):
        check_text_to_image(ex, ["a cat", "a dog", "fish"], "blurry", latents(0.2, -0.4, 1), w, levels)


# ------------------------------------------------------------------------------------------- 18. fix_decode


def decode_curved(z: torch.Tensor) -> torch.Tensor:
    """A decoder that is not linear: its images need latents of the right size."""
    return 1.3 * torch.tanh(z[:, :3]).repeat_interleave(2, 2).repeat_interleave(2, 3)


def check_decode(ex, z: torch.Tensor, scale: float) -> None:
    wrong = {
        "the image is still divided by scale; the latents were multiplied by it": (decode_curved(z) / scale),
        "you multiplied by scale; to undo the scaling, divide": decode_curved(z * scale),
        "the scaling is not undone at all": decode_curved(z),
        "latents have no bounds; only images are clipped": decode_curved((z / scale).clamp(-1, 1)),
        "latents have no bounds; only images are clipped, after the decoder": decode_curved(z.clamp(-1, 1) / scale),
    }
    wrong = {message: value.clamp(-1, 1) for message, value in wrong.items()}
    wrong |= {"the images are not clipped": decode_curved(z / scale)}
    expect(
        call(ex.fix_decode, z, decode_curved, scale),
        decode_curved(z / scale).clamp(-1, 1),
        "this is not decode(z / scale), clipped to [-1, 1]",
        wrong,
    )


def test_18_contrast(ex):
    z = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    check_decode(ex, z, 5.0)
    check_decode(ex, z, 0.5)


# ----------------------------------------------------------------------------------------- 19. sample_prior

DISTANCE, COPIES = 0.010, 0.30  # the goals


def arcs(n: int, rng: torch.Generator, phase: float) -> torch.Tensor:
    """Codes on two arcs of a circle of radius 2, 70 % on the longer one. (n, 2)"""
    first = torch.rand(n, generator=rng) < 0.7
    angle = torch.where(first, 1.6 * torch.rand(n, generator=rng), 3 + 0.8 * torch.rand(n, generator=rng)) + phase
    radius = 2 + 0.15 * torch.randn(n, generator=rng)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| over pairs of different points. (N, 2) and (M, 2)"""

    def within(x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float(2 * torch.cdist(a, b).mean() - within(a) - within(b))


def check_prior(ex, phase: float, seed: int, distance: float, copies: float, n: int = 2000) -> None:
    rng = torch.Generator().manual_seed(seed)
    codes, held_out = arcs(n, rng, phase), arcs(n, rng, phase)
    got = call(ex.sample_prior, codes, n, torch.Generator().manual_seed(seed + 1))
    assert isinstance(got, torch.Tensor) and got.shape == (n, 2), f"{n} codes were expected, ({n}, 2)"
    assert torch.isfinite(got).all(), "some of the codes are NaN or infinite"
    found = energy_distance(got.float().detach(), held_out)
    copied = float((torch.cdist(got.float().detach(), codes).min(1).values < 0.01).float().mean())
    numbers_ = f"distance {found:.3f}, goal {distance:g}; copies {copied:.2f}, goal {copies:g}"
    assert found <= distance or copied <= copies, f"neither goal is reached ({numbers_})"
    assert found <= distance, f"the distribution of the codes differs from that of the given ones ({numbers_})"
    assert copied <= copies, f"too many codes are copies of given ones ({numbers_})"


def test_19_both_goals(ex):
    check_prior(ex, 0.0, 0, DISTANCE, COPIES)
