"""The grader's randomised checks of chapter 4:
sizes, latents and settings are drawn anew, and compared with the solutions.

Where an answer is wrong, it is compared with the results of well-known mistakes too,
so that the message can name the mistake.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from common.grade.checks import Exercise, call, close, expect, expect_gradients, integer, load, parts, uniform

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")
right = load(Path(__file__).with_name("solutions.py"), "course_solutions")


# ---------------------------------------------------------------------------------------------- random material


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng)


def latent_shape(rng: torch.Generator, square: bool = False) -> tuple[int, int, int, int]:
    """(B, C, h, w), no two alike; square: as many latents as rows and columns."""
    B, C, h, w = (integer(rng, low, high) for low, high in ((3, 4), (5, 6), (7, 8), (9, 10)))
    return (B, C, B, B) if square else (B, C, h, w)


def per_latent(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def posterior(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Means and log variances, those of each latent on another scale."""
    B, *rest = latent_shape(rng)
    size = per_latent(torch.linspace(0.5, 1.5, B)[torch.randperm(B, generator=rng)])
    return size * normal(rng, B, *rest) + 0.5, size * normal(rng, B, *rest) - 0.7


def levels(rng: torch.Generator, N: int) -> tuple[Tensor, Tensor]:
    """Alpha and sigma along a sampler of N steps, from pure noise to clean, no two steps alike. Each (N + 1,)"""
    angle = torch.cat([torch.zeros(1), (0.3 + torch.rand(N, generator=rng)).cumsum(0)])
    angle = (angle / angle[-1]).flip(0) * math.pi / 2
    alpha, sigma = angle.cos(), angle.sin()
    alpha[0], sigma[0], alpha[-1], sigma[-1] = 0, 1, 1, 0
    return alpha, sigma


def pair(got: object, what: str) -> tuple:
    return parts(got, 2, what)


# ------------------------------------------------------------------------------------------------------ the checks


def check_kl(ex, rng):
    mean, logvar = posterior(rng)
    B, n = len(mean), mean[0].numel()

    def summed(each: Tensor) -> Tensor:
        return each.flatten(1).sum(1) / 2

    goal = summed(mean**2 + logvar.exp() - 1 - logvar)
    wrong = {
        "the 1/2 is missing": 2 * goal,
        "you averaged over the components; the KL is their sum": goal / n,
        "you averaged over the batch; each image has its own": goal.mean().expand(B),
        "you summed over the batch; each image has its own": goal.sum().expand(B),
        "the sign is wrong: a KL is never below 0": -goal,
        "the - 1 is missing: with it the KL of N(0, 1) is 0": goal + n / 2,
        "mean should be squared": summed(mean + logvar.exp() - 1 - logvar),
        "you took exp(logvar) for the standard deviation; it is the variance": summed(
            mean**2 + (2 * logvar).exp() - 1 - 2 * logvar
        ),
        "you took the standard deviation, exp(logvar / 2), where the variance belongs": summed(
            mean**2 + (logvar / 2).exp() - 1 - logvar
        ),
        "this is KL(N(0, 1) || N(mean, var)); the KL asked for is the other way round": summed(
            (1 + mean**2) / logvar.exp() - 1 + logvar
        ),
        "the sign of logvar is wrong: a small variance must cost": summed(mean**2 + logvar.exp() - 1 + logvar),
        "the mean is missing: mean^2": summed(logvar.exp() - 1 - logvar),
        "var is missing: exp(logvar)": summed(mean**2 - 1 - logvar),
    }
    got = call(ex.kl, mean, logvar)
    assert not isinstance(got, Tensor) or torch.isfinite(got).all(), (
        "your result holds NaN or infinity: logvar is a logarithm already, and may be below 0"
    )
    assert not isinstance(got, Tensor) or got.shape != (), (
        "a single number for the whole batch; each image has its own KL, (B,)"
    )
    expect(got, goal, "this is not 1/2 sum (mean^2 + var - 1 - log var) with var = exp(logvar)", wrong)
    mean, logvar = mean.clone().requires_grad_(), logvar.clone().requires_grad_()
    expect_gradients(ex.kl(mean, logvar), right.kl(mean, logvar), {"mean": mean, "logvar": logvar})


def check_reparameterise(ex, rng):
    mean, logvar = posterior(rng)
    eps = normal(rng, *mean.shape)
    wrong = {
        "you multiplied eps by the variance, exp(logvar); its root is the standard deviation": mean
        + logvar.exp() * eps,
        "you took logvar itself for the standard deviation": mean + logvar * eps,
        "std is exp(logvar / 2), not exp(2 logvar)": mean + (2 * logvar).exp() * eps,
        "you halved the variance; it is logvar that is halved, for std is the root of the variance": mean
        + logvar.exp() / 2 * eps,
        "only eps is multiplied by std, not mean": (mean + eps) * (logvar / 2).exp(),
        "std is missing": mean + eps,
        "the sign of eps is wrong": mean - (logvar / 2).exp() * eps,
        "this is the mean, without randomness: eps is missing": mean,
        "the mean is missing": (logvar / 2).exp() * eps,
    }
    own = "you draw noise of your own; it is given, as eps, so that the same eps gives the same latent"
    got = call(ex.reparameterise, mean, logvar, eps)
    assert not isinstance(got, Tensor) or torch.equal(got, ex.reparameterise(mean, logvar, eps)), own
    expect(got, mean + (logvar / 2).exp() * eps, "a latent should be mean + exp(logvar / 2) eps", wrong)
    check_gradients(ex, mean, logvar, eps)


def check_gradients(ex, mean: Tensor, logvar: Tensor, eps: Tensor) -> None:
    mean, logvar = mean.clone().requires_grad_(), logvar.clone().requires_grad_()
    latent = ex.reparameterise(mean, logvar, eps)
    assert latent.requires_grad, public.no_gradient("the encoder")
    grads = torch.autograd.grad(latent.sum(), (mean, logvar), allow_unused=True)
    for name, grad in zip(("mean", "logvar"), grads, strict=True):
        assert grad is not None, public.no_gradient(name)
    expect(grads[0], torch.ones_like(mean), "the gradient that reaches mean is wrong")
    expect(grads[1], eps * (logvar.detach() / 2).exp() / 2, "the gradient that reaches logvar is wrong")


def lent(batches: list[Tensor]) -> Iterator[Tensor]:
    """One batch after the other, in the same memory."""
    memory = torch.empty_like(batches[0])
    for batch in batches:
        memory[: len(batch)] = batch
        yield memory[: len(batch)]


def check_scaling_factor(ex, rng):
    _, C, h, w = latent_shape(rng)
    sizes = [integer(rng, 6, 7) for _ in range(integer(rng, 3, 4))] + [integer(rng, 1, 2)]
    sizes[0] = 8  # so that none is larger than the memory
    spread = torch.linspace(0.5, 3, len(sizes))[torch.randperm(len(sizes), generator=rng)]
    place = torch.linspace(-2, 3, len(sizes))[torch.randperm(len(sizes), generator=rng)]
    channel = torch.linspace(-1, 2, C).view(-1, 1, 1)
    batches = [s * normal(rng, B, C, h, w) + p + channel for B, s, p in zip(sizes, spread, place, strict=True)]
    check_one_scale(ex, batches)
    far = uniform(rng, 300, 400)
    batches = [0.2 * normal(rng, B, C, h, w) + far for B in sizes]
    rounding = "m is far from 0 here and the variance small: add up in double precision (an error of rounding)"
    expect(public.one_float(ex.scaling_factor(lent(batches))), one_over(torch.cat(batches)), rounding)


def one_over(z: Tensor, **kw) -> Tensor:
    return (1 / z.double().std(correction=0, **kw)).float()


def check_one_scale(ex, batches: list[Tensor]) -> None:
    whole = torch.cat(batches).double()
    kept = torch.cat(list(lent(batches)))
    stds = torch.stack([b.std(correction=0) for b in batches])
    means = torch.stack([b.mean() for b in batches])
    squares = torch.stack([b.square().mean() for b in batches])
    within = sum(((b - b.mean()) ** 2).sum() for b in batches) / whole.numel()
    wrong = {
        "this is 1 over the mean of the batches' standard deviations; batches differ in their means, too": 1
        / stds.mean(),
        "this is the mean of the batches' own scaling factors; measure the set as a whole": (1 / stds).mean(),
        "these are the variances within the batches; the batches differ in their means, too": 1 / within.sqrt(),
        "the batches' variances were averaged; batches differ in their means, too": 1 / stds.square().mean().sqrt(),
        "every batch counts the same, but the last has fewer images: count the components": (
            1 / (squares.mean() - means.mean() ** 2).sqrt()
        ),
        "this is the standard deviation: scale is 1 over it": 1 / one_over(whole),
        "this is 1 over the variance: the root is missing": one_over(whole) ** 2,
        "the mean was not subtracted: the set's mean is not 0": 1 / whole.square().mean().sqrt(),
        "this is the first batch's; the set has more": one_over(batches[0]),
        "this is the last batch's; the set has more": one_over(batches[-1]),
        "this is the mean over the channels; one number for all of them, together": one_over(
            whole, dim=(0, 2, 3)
        ).mean(),
        "this is 1 over the mean of the channels' standard deviations; all channels belong together": (
            1 / whole.std((0, 2, 3), correction=0).mean()
        ),
        "you kept the batches, but their memory is used again: add up what you need, and let each go": one_over(kept),
    }
    wrong = {message: value.float() for message, value in wrong.items()}
    goal = one_over(whole)
    try:
        got = public.one_float(ex.scaling_factor(lent(batches)))
    except (ZeroDivisionError, StopIteration) as problem:
        raise AssertionError(
            f"{type(problem).__name__}: the batches come once, and cannot be gone through again"
        ) from None
    assert torch.isfinite(got), "not a number: the batches come once, and cannot be gone through again"
    expect(got, goal, "the latents of the whole set, times this, do not have unit variance", wrong)


def check_noisy_latent(ex, rng):
    for square in (False, True):
        shape, scale = latent_shape(rng, square), uniform(rng, 0.15, 0.3)
        mean, std = 5 * normal(rng, *shape), 1 + torch.rand(shape, generator=rng)
        eps_z, eps = normal(rng, *shape), normal(rng, *shape)
        # radians; 45 degrees would hide a swap of alpha and sigma
        angle = uniform(rng, 0.2, 0.4) + torch.arange(shape[0]) * 0.28
        alpha, sigma = angle.cos(), angle.sin()
        if not square:  # the ends: pure noise, and no noise
            alpha[0], sigma[0], alpha[-1], sigma[-1] = 0, 1, 1, 0
        check_one_step(ex, mean, std, scale, eps_z, eps, alpha, sigma)


def check_one_step(ex, mean, std, scale, eps_z, eps, alpha, sigma):
    a, s, unscaled = per_latent(alpha), per_latent(sigma), mean + std * eps_z
    z = scale * unscaled
    others = {  # other latents than the right one
        "the latent was not scaled": unscaled,
        "you divided by scale; what the encoder gives is multiplied by it": unscaled / scale,
        "only the mean was scaled; std is unscaled, too": scale * mean + std * eps_z,
        "only std was scaled; the mean is unscaled, too": mean + scale * std * eps_z,
        "the latent is the mean, without randomness: std eps_z is missing": scale * mean,
        "eps_z was multiplied by std twice, or by the variance": scale * (mean + std**2 * eps_z),
        "the same noise was used for both: eps_z draws the latent": scale * (mean + std * eps),
    }
    sideways = {
        f"the levels went to axis {axis} (places), not to the latents: give alpha and sigma the shape (B, 1, 1, 1)": [
            level.view([-1 if i == axis else 1 for i in range(4)]) for level in (alpha, sigma)
        ]
        for axis in (2, 3)
        if mean.shape[axis] == len(mean)
    }
    x, v = pair(call(ex.noisy_latent, mean, std, scale, eps_z, eps, alpha, sigma), "x and v")
    wrong = {message: a * other + s * eps for message, other in others.items()}
    wrong |= {message: p * z + q * eps for message, (p, q) in sideways.items()}
    wrong |= {
        "you noised first and scaled then, so that the noise is scaled, too": scale * (a * unscaled + s * eps),
        "alpha and sigma are swapped in x: it is alpha z + sigma eps": s * z + a * eps,
        "x was noised with eps_z, which has drawn the latent: the other noise is eps": a * z + s * eps_z,
        "the two noises are swapped: eps_z draws the latent, eps noises it": a * scale * (mean + std * eps)
        + s * eps_z,
        "you used variances where alpha and sigma belong": a**2 * z + s**2 * eps,
        "x and v are swapped": a * eps - s * z,
    }
    expect(x, a * z + s * eps, "x should be alpha z + sigma eps with z = scale (mean + std eps_z)", wrong)
    wrong = {f"in v, {message}": a * eps - s * other for message, other in others.items()}
    wrong |= {message: p * eps - q * z for message, (p, q) in sideways.items()}
    wrong |= {
        "v has the wrong sign: it is alpha eps - sigma z": s * z - a * eps,
        "in v, alpha and sigma are swapped: it is alpha eps - sigma z": s * eps - a * z,
        "in v, latent and noise are swapped: it is alpha eps - sigma z": a * z - s * eps,
        "v is a difference: alpha eps - sigma z": a * eps + s * z,
        "this is eps, but the network predicts v": eps,
        "v was made of x; it is alpha eps - sigma z, with the clean latent": a * eps - s * (a * z + s * eps),
    }
    expect(v, a * eps - s * z, "v should be alpha eps - sigma z", wrong)


# ---- exercise 5


def encoder(rng: torch.Generator) -> tuple[dict, dict, Tensor]:
    """Weights, settings and images that a key may be asked for."""
    a, b, c = (integer(rng, low, high) for low, high in ((8, 9), (10, 11), (12, 13)))
    weights = {
        "conv_in.weight": normal(rng, a, b, 4, 4),
        "conv_in.bias": normal(rng, a),
        "mid.weight": normal(rng, c, c),
        "mid.bias": normal(rng, c),
        "norm.weight": normal(rng, c),
        "norm.bias": normal(rng, c),
    }
    config = {
        "latent_channels": integer(rng, 3, 6),
        "channels": (8 * a, 8 * b),
        "layers": integer(rng, 1, 3),
        "mid_attention": True,
        "act": "silu",
        "scaling_factor": uniform(rng, 0.1, 2.0),
    }
    return weights, config, torch.randint(0, 255, (integer(rng, 6, 8), 3, 12, 16), generator=rng, dtype=torch.uint8)


def nudged(tensor: Tensor) -> Tensor:
    """The same but for the last bit of the number in the middle."""
    tensor = tensor.clone()
    tensor.view(-1).view(torch.int32)[tensor.numel() // 2] ^= 1
    return tensor


def brighter(pixels: Tensor) -> Tensor:
    pixels = pixels.clone()
    pixels.view(-1)[pixels.numel() // 2] += 1
    return pixels


def elsewhere(tensor: Tensor) -> Tensor:
    """An equal tensor that lies within a larger one, its last axis spread out."""
    store = torch.full((len(tensor) + 1, *tensor.shape[1:], 2), 7, dtype=tensor.dtype)
    store[1:, ..., 0] = tensor
    return store[1:, ..., 0]


def reversed_order(entries: dict) -> dict:
    return dict(reversed(entries.items()))


def check_latent_key(ex, rng):
    weights, config, pixels = encoder(rng)
    lent_weights, lent_config = dict(weights), dict(config)
    key = call(ex.latent_key, lent_weights, lent_config, pixels)
    found = repr(key) if isinstance(key, str) else type(key).__name__
    assert isinstance(key, str) and re.fullmatch("[0-9a-f]{64}", key), (
        f"64 hexadecimal digits were expected, as a text, not {found}"
    )
    assert lent_weights.keys() == weights.keys() and lent_config == config, (
        "you changed weights or config, which belong to the caller: make a copy"
    )
    stays(ex, key, weights, config, pixels)
    changes(ex, rng, key, weights, config, pixels)
    any_settings(ex, rng, weights, pixels)


def stays(ex, key: str, weights: dict, config: dict, pixels: Tensor) -> None:
    """The key of what comes to the same thing."""
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    moved = {name: elsewhere(tensor) for name, tensor in weights.items()}
    assert ex.latent_key(weights, config, pixels) == key, (
        "two calls with the same arguments give two keys: the key depends on random numbers"
    )
    real = hash
    with patch("builtins.hash", lambda value: real(value) ^ 0x5EED):  # what another process would do to texts
        another = ex.latent_key(weights, config, pixels)
    assert another == key, (
        "the key differs from process to process: Python's hash() of a text is salted. Take hashlib.sha256()"
    )
    elsewhere_too = getattr(ex, "in_another_process", None)  # the sandbox's, with another PYTHONHASHSEED
    assert elsewhere_too is None or elsewhere_too("latent_key", weights, config, pixels) == key, (
        "the key differs from process to process: Python's hash() and the order of a set depend on the process"
    )
    same = {
        "equal tensors give different keys: the key depends on where in memory they lie": (
            copies,
            config,
            pixels.clone(),
        ),
        "the key depends on the order of the weights: sort them by their names": (
            reversed_order(weights),
            config,
            pixels,
        ),
        "the key depends on the order of the settings: json.dumps(..., sort_keys=True)": (
            weights,
            reversed_order(config),
            pixels,
        ),
        "the key depends on the scaling factor, but the cache holds unscaled latents": (
            weights,
            config | {"scaling_factor": 2 * config["scaling_factor"]},
            pixels,
        ),
        "the key depends on how a tensor lies in memory: hash its numbers, not its storage": (
            moved,
            config,
            elsewhere(pixels),
        ),
    }
    for message, case in same.items():
        assert ex.latent_key(*case) == key, message


def any_settings(ex, rng: torch.Generator, weights: dict, pixels: Tensor) -> None:
    """Settings of any name: all count, names and values, in no order. Also, all digits of the key say something."""
    keys = []
    for trial in range(3):
        names = [f"setting_{i}" for i in torch.randint(10**6, (40,), generator=rng).unique().tolist()]
        values = [(3 + i, f"text {i}", (i, 8), bool(i % 2), 0.5 + i)[i % 5] for i in range(len(names))]
        order = torch.randperm(len(names), generator=rng).tolist()
        config = {names[i]: values[i] for i in order}
        key = ex.latent_key(weights, config | {"scaling_factor": 0.5}, pixels)
        assert ex.latent_key(weights, reversed_order(config), pixels) == key, (
            "the key depends on the order of the settings: sort them (a set has no order that lasts)"
        )
        layers = {name: torch.full((2,), float(i)) for i, name in enumerate(names)}
        assert trial or ex.latent_key(layers, {}, pixels) == ex.latent_key(reversed_order(layers), {}, pixels), (
            "the key depends on the order of the weights: sort them by their names (a set has no order that lasts)"
        )
        a = names[order[0]]
        number, text = (
            next(n for n in names if type(config[n]) is int),
            next(n for n in names if type(config[n]) is str),
        )
        others = {
            f"a setting of config, {number}, changed, but the key did not change": config
            | {number: config[number] + 1},
            f"a text of config, {text}, changed, but the key did not change": config | {text: config[text] + "!"},
            "two settings changed their values, but the key did not change: hash the names, too": (
                config | {number: config[text], text: config[number]}
            ),
            "a setting has another name, but the key did not change: hash the names, too": {
                (name + "_" if name == a else name): value for name, value in config.items()
            },
            "a setting is gone, but the key did not change": {
                name: value for name, value in config.items() if name != a
            },
            "a new setting came, but the key did not change": config | {f"new_{trial}": True},
        }
        for message, other in others.items():
            keys.append(ex.latent_key(weights, other, pixels))
            assert keys[-1] != key, message
    for place, digits in enumerate(zip(*keys, strict=True), 1):
        assert len(set(digits)) > 2, f"digit {place} of the key is nearly always the same: a SHA-256 has 64 digits"


def changes(ex, rng: torch.Generator, key: str, weights: dict, config: dict, pixels: Tensor) -> None:
    """The key of what does not."""
    first, second = "mid.bias", "norm.bias"
    setting = ("latent_channels", "layers")[integer(rng, 0, 1)]
    order = torch.arange(len(pixels)).roll(1)
    other = {
        "the key does not depend on the weights' numbers": weights
        | {name: tensor + 1 for name, tensor in weights.items()},
        "the key misses a change in the middle of a large tensor, or in the last bit: hash all bytes": (
            weights | {"conv_in.weight": nudged(weights["conv_in.weight"])}
        ),
        "two weights changed places, but the key did not change: hash the names together with the numbers": (
            weights | {first: weights[second], second: weights[first]}
        ),
        "a weight has another name, but the key did not change": {
            (name + "x" if name == second else name): t for name, t in weights.items()
        },
        "a weight has another shape, but the key did not change: bytes do not tell": weights
        | {"conv_in.weight": weights["conv_in.weight"].flatten(1)},
        "a weight has another dtype, but the key did not change: bytes do not tell": weights
        | {first: weights[first].view(torch.int32)},
        "a weight is gone, but the key did not change": {
            name: tensor for name, tensor in weights.items() if name != first
        },
    }
    other = {message: (changed, config, pixels) for message, changed in other.items()}
    other |= {
        f"the key does not depend on config: {setting} changed": (
            weights,
            config | {setting: config[setting] + 1},
            pixels,
        ),
        "the key does not depend on all of config: mid_attention changed": (
            weights,
            config | {"mid_attention": False},
            pixels,
        ),
        "the key does not depend on all of config: channels changed": (
            weights,
            config | {"channels": config["channels"][::-1]},
            pixels,
        ),
        "the key does not depend on the pixels": (weights, config, 255 - pixels),
        "a single pixel is brighter, but the key did not change": (weights, config, brighter(pixels)),
        "the images have another order, but the key did not change": (weights, config, pixels[order]),
        "an image is gone, but the key did not change": (weights, config, pixels[:-1]),
        "the images have another shape, but the key did not change: bytes do not tell": (
            weights,
            config,
            pixels.view(len(pixels), 3, 16, 12),
        ),
        "the pixels have another dtype, but the key did not change: bytes do not tell": (
            weights,
            config,
            pixels.view(torch.int8),
        ),
    }
    for message, case in other.items():
        assert ex.latent_key(*case) != key, message


# ---- exercises 6 to 8


def check_img2img_start(ex, rng):
    z, eps = (normal(rng, *shape) for shape in 2 * [latent_shape(rng)])
    # steps, but for rounding; never half-way between two numbers
    for walked in (uniform(rng, 2.1, 2.4), uniform(rng, 2.6, 2.9)):
        N = integer(rng, 8, 12)
        check_one_start(ex, z, eps, walked / N, *levels(rng, N))
        check_one_start(ex, z, eps, 1 - walked / N, *levels(rng, N))
    for N, strength in ((50, 0.58), (integer(rng, 7, 12), 1.0), (integer(rng, 7, 12), 0.0)):
        check_one_start(ex, z, eps, strength, *levels(rng, N))


def check_one_start(ex, z, eps, strength, alpha, sigma):
    N = len(alpha) - 1
    first, x = pair(call(ex.img2img_start, z, eps, strength, alpha, sigma), "first and x")
    assert isinstance(first, int), f"first should be a Python int, for range() and indices, not {type(first).__name__}"
    goal, asked = N - round(strength * N), f"of {N} steps at strength {strength:.3g}"
    wrong = {
        "strength is the wrong way round: it is the share of the steps that are walked, not of those left out": round(
            strength * N
        ),
        "you truncated where you should round to the nearest": N - int(strength * N),
        "there are N + 1 levels, but N steps": N + 1 - round(strength * (N + 1)),
        "even at strength 0, yours walks a step": N - 1 if strength == 0 else goal,
        "one step too early": goal - 1,
        "one step too late": goal + 1,
    }
    for message, value in wrong.items():
        assert first != value or value == goal, f"{asked}, first should be {goal}, not {first}: {message}"
    assert first == goal, f"{asked}, first should be {goal}, not {first}"

    def at(k: int) -> Tensor:
        return alpha[k] * z + sigma[k] * eps

    wrong = {
        "x is the picture, not noised: the sampler expects the noise of level `first`": z,
        "x is pure noise: nothing is left of the picture": eps,
        "alpha and sigma are swapped": sigma[goal] * z + alpha[goal] * eps,
        "the level is counted from the wrong end: entry 0 is the noisiest": at(N - goal),
        "the noise is that of the level after the first step; it is that before, of level `first`": at(
            min(goal + 1, N)
        ),
        "the noise is that of the level before": at(max(goal - 1, 0)),
        "strength itself is taken for the noise level; the level is that of step `first`": (1 - strength) * z
        + strength * eps,
        "strength itself is taken for sigma; the level is that of step `first`": (1 - strength**2) ** 0.5 * z
        + strength * eps,
        "you added noise to the whole of z: it has the factor alpha": z + sigma[goal] * eps,
        "you used variances where alpha and sigma belong": alpha[goal] ** 2 * z + sigma[goal] ** 2 * eps,
    }
    expect(x, at(goal), f"{asked}, x should be noised to level {goal}: alpha_first z + sigma_first eps", wrong)


class Decoder:
    """Mixes the channels into red, green and blue, a little brighter, and makes every place a square of pixels."""

    def __init__(self, rng: torch.Generator, channels: int):
        self.mix, self.f, self.more = (
            normal(rng, 3, channels) / channels**0.5,
            integer(rng, 2, 3),
            uniform(rng, 0.1, 0.3),
        )

    def __call__(self, z: Tensor) -> Tensor:
        assert isinstance(z, Tensor) and z.dtype == torch.float32, (
            "the decoder takes latents in float32; bytes come last"
        )
        image = torch.einsum("rc,bchw->brhw", self.mix, z) + self.more
        return image.repeat_interleave(self.f, 2).repeat_interleave(self.f, 3)


def to_bytes(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round()


def check_decode_picture(ex, rng):
    shape, scale = latent_shape(rng), uniform(rng, 0.3, 0.6)
    # decoded, most of them within [-1, 1]
    decode, z = (Decoder(rng, shape[1]), normal(rng, *shape) * uniform(rng, 0.3, 0.5))
    image = decode(z / scale)
    low, raw = image.clamp(-1, 1), (image + 1) * 127.5
    wrong = {
        "you multiplied by scale; to undo the scaling, divide": to_bytes(decode(z * scale)),
        "the scaling was not undone: divide by scale": to_bytes(decode(z)),
        "you divided the image by scale; it is the latents that are scaled": to_bytes(decode(z) / scale),
        "latents were clipped at -1 and 1; only images are": to_bytes(decode(z.clamp(-1, 1) / scale)),
        "unscaled latents were clipped at -1 and 1; only images are": to_bytes(decode((z / scale).clamp(-1, 1))),
        "values beyond [-1, 1] were not clipped, and wrapped around: 256 is 0 in a byte": raw.round()
        .to(torch.int64)
        .remainder(256),
        "values beyond [-1, 1] were neither clipped nor rounded": raw.to(torch.int64).remainder(256),
        "the numbers were truncated, not rounded: .round() before .to(torch.uint8)": ((low + 1) * 127.5).floor(),
        "white should be 255: the factor is 127.5": ((low + 1) * 127).round(),
        "you assumed images in [0, 1]; they are in [-1, 1]": (image.clamp(0, 1) * 255).round(),
        "images were clipped at 0 and 1; they are in [-1, 1]": to_bytes(image.clamp(0, 1)),
        "256 is not a byte: the factor is 127.5": ((low + 1) * 128).round().clamp(max=255),
    }
    wrong = {message: value.float() for message, value in wrong.items()}
    got = call(ex.decode_picture, z, decode, scale)
    assert not isinstance(got, Tensor) or got.dtype == torch.uint8, f"pictures are bytes, torch.uint8, not {got.dtype}"
    got = got.float() if isinstance(got, Tensor) else got  # a byte less another byte would go round
    exact = (image.double().clamp(-1, 1) + 1) * 127.5
    rounded = isinstance(got, Tensor) and got.shape == exact.shape and (got - exact).abs().max() <= 0.5 + 1e-3
    if not rounded:  # a value within 1e-3 of a half may be rounded either way
        expect(got, to_bytes(image), "these are not the decoded images, clipped and in bytes", wrong, atol=0.3)


class GuidedNetwork:
    """Some function of latent, time and caption that answers v. Remembers what it was asked."""

    def __init__(self, rng: torch.Generator):
        self.a, self.x, self.t, self.text = uniform(rng, 0.5, 1.5), [], [], []

    def look(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return torch.cos(self.a * x + per_latent(t)) + per_latent(text.mean((1, 2))) * x

    def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        assert isinstance(t, Tensor) and t.shape == (len(x),), f"{len(x)} latents need {len(x)} times t, as a tensor"
        assert len(text) == len(x), f"the network was given {len(x)} latents and {len(text)} captions"
        self.x.append(x.clone())
        self.t.append(t.clone())
        self.text.append(text.clone())
        return self.look(x, t, text)


def check_sample_latent(ex, rng):
    N = integer(rng, 5, 7)
    for first in (0, integer(rng, 1, 3), N):
        check_one_walk(ex, rng, first, *levels(rng, N))


def check_one_walk(ex, rng, first, alpha, sigma):
    shape, w, net, N = latent_shape(rng), uniform(rng, 1.5, 3), GuidedNetwork(rng), len(alpha) - 1
    x, context = normal(rng, *shape), normal(rng, 2 * shape[0], 3, 5)
    times = torch.linspace(3, 0.2, N)  # not the numbers of the steps
    got = call(ex.sample_latent, net, x, first, context, w, times, alpha, sigma)
    called, walked = len(net.x), N - first
    assert all(len(seen) == 2 * len(x) for seen in net.x), (
        "the network should be called once a step, with both halves as one batch of 2B"
    )
    assert called != N or first == 0, f"sampling should begin with step first = {first}, not with step 0"
    assert called == walked, (
        f"from step {first} to the last of {N} are {walked} steps, and so as many calls; calls made: {called}"
    )
    assert all(torch.equal(text, context) for text in net.text), "the network should be given context as it is"
    for k, told in enumerate(net.t, first):
        assert k == N - 1 or not (told == times[k + 1]).all(), (
            "the network is given the time of the next level; at step k it is times[k]"
        )
        assert (told == times[k]).all(), (
            f"at step {k} the network should be given times[{k}] = {times[k]:.3g}, not {told[0]:.3g}"
        )
    if not walked:
        return expect(got, x, "where no step is left, x stays as it is")

    wrong = {"the latents came as 0 0 1 1; they should come as 0 1 0 1, as the captions do": x.repeat_interleave(2, 0)}
    expect(
        net.x[0],
        torch.cat([x, x]),
        f"at step {first} the network should see all latents, and then all of them again",
        wrong,
    )
    step, seen = stepper(net, context, w, times, alpha, sigma), [both[: len(x)] for both in net.x]
    for k in range(1, walked):
        compare(net.x[k], step, seen[k - 1], first + k - 1, twice=True)
    return compare(got, step, seen[-1], N - 1)


WALKED_WRONGLY = {
    "z was clipped at -1 and 1, which is for pixels: latents have no bounds": {"cut": 1.0},
    "the halves are swapped: the first B answers are uncond": {"turn": lambda w: 1 - w},
    "guidance leads away from the caption: v = uncond + w (cond - uncond)": {"turn": lambda w: -w},
    "this is Ho & Salimans' w, which guides by one more": {"turn": lambda w: w + 1},
    "this is the conditional answer, with no guidance": {"turn": lambda w: 1.0},
    "v was read with the wrong sign": {"sign": -1},
    "v was read with the levels of the next step, alpha_(k+1)": {"later": 1},
}


def stepper(net: GuidedNetwork, context: Tensor, w: float, times: Tensor, alpha: Tensor, sigma: Tensor):
    """A function that does one step, rightly or with a classic mistake."""

    def step(x: Tensor, k: int, cut: float = math.inf, later: int = 0, turn=lambda w: w, sign: int = 1) -> Tensor:
        uncond, cond = net.look(torch.cat([x, x]), times[k].expand(2 * len(x)), context).chunk(2)
        v = sign * (uncond + turn(w) * (cond - uncond))
        a, s = alpha[k + later], sigma[k + later]
        z, eps = a * x - s * v, s * x + a * v
        return alpha[k + 1] * z.clamp(-cut, cut) + sigma[k + 1] * eps

    return step


def compare(got: object, step, x: Tensor, k: int, twice: bool = False) -> None:
    """Is `got` where step k leads from x? Mistakes are tried only if not: each takes a look of the network."""
    copies = 1 + twice
    goal = step(x, k).repeat(copies, 1, 1, 1)
    if isinstance(got, Tensor) and close(got, goal):
        return
    wrong = {message: step(x, k, **how).repeat(copies, 1, 1, 1) for message, how in WALKED_WRONGLY.items()}
    expect(got, goal, f"step {k} does not lead from level {k} to level {k + 1}", wrong)


# ---- exercises 9 to 13


def check_kl_of_gaussians(ex, rng):
    args = [uniform(rng, -1.5, 1.5), uniform(rng, 0.4, 2), uniform(rng, -1.5, 1.5), uniform(rng, 0.6, 2)]
    got = public.number(call(ex.kl_of_gaussians, *args), "one number, in nats,")
    goal = torch.tensor(right.kl_of_gaussians(*args), dtype=torch.float64)
    wrong = {m: v for m, v in public.kl_mistakes(*args).items() if abs(v - goal) > 1e-2}
    expect(got, goal, f"{public.two_gaussians(*args)}: this is not the mean of log q - log p under q", wrong)


def check_best_posterior(ex, rng):
    sign = (-1) ** integer(rng, 0, 1)
    for beta in (uniform(rng, 0.05, 0.2), uniform(rng, 2, 20)):
        public.check_posterior(ex, uniform(rng, -2, 2), sign * uniform(rng, 0.5, 2), uniform(rng, 0.2, 0.9), beta)


def check_channels_needed(ex, rng):
    f = integer(rng, 1, 2)
    values = torch.rand(3 * f * f, generator=rng) ** 3
    for psnr in (uniform(rng, 12, 18), uniform(rng, 18, 24), uniform(rng, 24, 30), 99.0):
        public.check_channels(ex, values, psnr, right.channels_needed(values, psnr))


def check_anagram_eps(ex, rng):
    B, side = integer(rng, 2, 3), integer(rng, 5, 6)
    x = normal(rng, B, integer(rng, 2, 4), side, side)
    views, inverses = [public.same, public.turn, public.flip], [public.same, public.turn_back, public.flip]
    for K in (2, 3):
        order = torch.randperm(3, generator=rng)[:K].tolist()
        texts = [normal(rng, B, 2, 3) for _ in range(K)]
        public.check_anagram(ex, x, texts, [views[i] for i in order], [inverses[i] for i in order])


def check_hybrid_eps(ex, rng):
    B, side = integer(rng, 2, 3), integer(rng, 5, 7)
    public.check_hybrid(ex, normal(rng, B, 4, side, side), normal(rng, B, 2, 3), normal(rng, B, 2, 3))


# ---- exercises 14 to 19


def check_fix_vae_loss(ex, rng):
    mean, logvar = posterior(rng)
    x, y = normal(rng, len(mean), 3, 8, 6), normal(rng, len(mean), 3, 8, 6)
    public.check_vae_loss(ex, x, y, mean, logvar, uniform(rng, 1, 2), uniform(rng, 0.5, 3))
    mean, logvar = mean.requires_grad_(), logvar.requires_grad_()
    args = (x, y.requires_grad_(), mean, logvar, 1.0, 1.0)
    inputs = {"y": y, "mean": mean, "logvar": logvar}
    expect_gradients(ex.fix_vae_loss(*args), right.fix_vae_loss(*args), inputs)


def check_fix_latent_batch(ex, rng):
    shape, scale = latent_shape(rng), uniform(rng, 0.15, 0.3)
    mean, std = normal(rng, *shape) / scale, 0.5 + torch.rand(shape, generator=rng)
    angle = torch.linspace(0, math.pi / 2, shape[0])
    public.check_latent_batch(ex, mean, std, scale, angle.cos(), angle.sin(), integer(rng, 0, 10**6))


def check_fix_reconstruct(ex, rng):
    B, h, w = integer(rng, 2, 4), integer(rng, 2, 3), integer(rng, 4, 5)
    public.check_reconstruct(ex, 1.2 * normal(rng, B, 3, 2 * h, 2 * w), normal(rng, B, 3, h, w))


def check_fix_text_to_image(ex, rng):
    N, words = integer(rng, 4, 6), ("a cat", "a bird", "rice", "soup", "a tree")
    alpha, sigma = levels(rng, N)
    steps = [(1000.0 - 100 * k, float(a), float(s)) for k, (a, s) in enumerate(zip(alpha, sigma, strict=True))]
    prompts = [words[i] for i in torch.randperm(5, generator=rng)[: integer(rng, 2, 4)].tolist()]
    public.check_text_to_image(ex, prompts, "dark", normal(rng, len(prompts), 4, 3, 5), uniform(rng, 2, 6), steps)


def check_fix_decode(ex, rng):
    z = normal(rng, *latent_shape(rng))
    for scale in (uniform(rng, 3, 6), uniform(rng, 0.2, 0.5)):
        public.check_decode(ex, z, scale)


def check_sample_prior(ex, rng):
    slack = 0.002, 0.02  # between one draw and the next
    public.check_prior(
        ex, uniform(rng, 0, 6.28), integer(rng, 1, 10**6), public.DISTANCE + slack[0], public.COPIES + slack[1]
    )


EXERCISES = [
    Exercise("kl", 2, check_kl),
    Exercise("reparameterise", 1, check_reparameterise),
    Exercise("scaling_factor", 2, check_scaling_factor),
    Exercise("noisy_latent", 2, check_noisy_latent),
    Exercise("latent_key", 2, check_latent_key),
    Exercise("img2img_start", 2, check_img2img_start),
    Exercise("decode_picture", 2, check_decode_picture),
    Exercise("sample_latent", 4, check_sample_latent),
    Exercise("kl_of_gaussians", 2, check_kl_of_gaussians),
    Exercise("best_posterior", 3, check_best_posterior),
    Exercise("channels_needed", 3, check_channels_needed, rounds=2),
    Exercise("anagram_eps", 3, check_anagram_eps),
    Exercise("hybrid_eps", 2, check_hybrid_eps),
    Exercise("fix_vae_loss", 2, check_fix_vae_loss),
    Exercise("fix_latent_batch", 2, check_fix_latent_batch),
    Exercise("fix_reconstruct", 2, check_fix_reconstruct),
    Exercise("fix_text_to_image", 2, check_fix_text_to_image),
    Exercise("fix_decode", 1, check_fix_decode),
    Exercise("sample_prior", 3, check_sample_prior, goal=True),
]
