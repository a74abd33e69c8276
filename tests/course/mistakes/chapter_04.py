# ruff: noqa: F811 - the same function is got wrong again and again
"""Classic mistakes of chapter 4, each a small replacement of one function of the solutions.

`@mistake(what, says)`: the exercise it belongs to is the function's name;
`says` must stand in the message that the grader gives.
"""

import hashlib
import json
import math
from itertools import chain
from pathlib import Path

import torch

from common.grade.checks import load
from helpers.mistake_bank import Bank, per_image

COURSE = Path(__file__).resolve().parents[3]
solutions = load(COURSE / "04_latent_sd/exercises/solutions.py", "solutions_with_mistakes")
kl_rightly, draw_rightly, step_rightly = solutions.kl, solutions.reparameterise, solutions.noisy_latent
anagram_rightly, hybrid_rightly = solutions.anagram_eps, solutions.hybrid_eps
solutions_channels, image_rightly = solutions.channels_needed, solutions.fix_text_to_image
key_rightly, start_rightly, walk_rightly = solutions.latent_key, solutions.img2img_start, solutions.sample_latent
bank = Bank()
mistake, another_way = bank.mistake, bank.another_way
MISTAKES, OTHER_WAYS = bank.MISTAKES, bank.OTHER_WAYS


# --------------------------------------------------------------------------------------------------------- 1. kl


@mistake("no half", "the 1/2 is missing")
def kl(mean, logvar):
    return 2 * kl_rightly(mean, logvar)


@mistake("one number for the batch: its sum", "a single number for the whole batch")
def kl(mean, logvar):
    return kl_rightly(mean, logvar).sum()


@mistake("one number for the batch: its mean, as some write it in the loss", "a single number for the whole batch")
def kl(mean, logvar):
    return -0.5 * torch.mean(1 + logvar - mean.square() - logvar.exp())


@mistake("the mean over the components", "averaged over the components")
def kl(mean, logvar):
    return (mean.square() + logvar.exp() - 1 - logvar).flatten(1).mean(1) / 2


@mistake("the sum over the channels alone", "the shape should be (2,)")
def kl(mean, logvar):
    return (mean.square() + logvar.exp() - 1 - logvar).sum(1) / 2


@mistake("the sign of the evidence lower bound", "the sign is wrong")
def kl(mean, logvar):
    return -kl_rightly(mean, logvar)


@mistake("logvar taken for the logarithm of the standard deviation", "you took exp(logvar) for the standard deviation")
def kl(mean, logvar):
    return kl_rightly(mean, 2 * logvar)


@mistake("the standard deviation where the variance belongs", "where the variance belongs")
def kl(mean, logvar):
    return (mean.square() + (logvar / 2).exp() - 1 - logvar).flatten(1).sum(1) / 2


@mistake("logvar taken for the variance", "logvar is a logarithm already")
def kl(mean, logvar):
    return (mean.square() + logvar - 1 - logvar.log()).flatten(1).sum(1) / 2


@mistake("the - 1 forgotten", "the - 1 is missing")
def kl(mean, logvar):
    return (mean.square() + logvar.exp() - logvar).flatten(1).sum(1) / 2


@mistake("the mean not squared", "mean should be squared")
def kl(mean, logvar):
    return (mean + logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2


@mistake("the KL the other way round", "the other way round")
def kl(mean, logvar):
    return ((1 + mean.square()) / logvar.exp() - 1 + logvar).flatten(1).sum(1) / 2


@mistake("the logarithm with the wrong sign", "the sign of logvar is wrong")
def kl(mean, logvar):
    return (mean.square() + logvar.exp() - 1 + logvar).flatten(1).sum(1) / 2


@mistake("the tensor that was lent is overwritten", "changes its argument mean")
def kl(mean, logvar):
    return mean.square_().add_(logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2


@mistake("computed without gradients", "no gradient flows from the result")
@torch.no_grad()
def kl(mean, logvar):
    return kl_rightly(mean, logvar)


@mistake("numbers collected in a list, which have no gradient", "no gradient flows from the result")
def kl(mean, logvar):
    return torch.tensor([float(each) for each in kl_rightly(mean.detach(), logvar.detach())])


@mistake("the gradient switched on afterwards", "no gradient reaches mean")
def kl(mean, logvar):
    return kl_rightly(mean.detach(), logvar.detach()).requires_grad_()


@mistake("the variance detached, so that it never learns", "logvar")
def kl(mean, logvar):
    return kl_rightly(mean, logvar.detach())


@another_way("PyTorch's own")
def kl(mean, logvar):
    from torch.distributions import Normal, kl_divergence

    return kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))


@another_way("as the paper writes it, one image after the other")
def kl(mean, logvar):
    return torch.stack([-0.5 * (1 + s - m**2 - s.exp()).sum() for m, s in zip(mean, logvar, strict=True)])


# --------------------------------------------------------------------------------------------- 2. reparameterise


@mistake("noise multiplied by the variance", "you multiplied eps by the variance")
def reparameterise(mean, logvar, eps):
    return mean + logvar.exp() * eps


@mistake("logvar taken for the standard deviation", "you took logvar itself")
def reparameterise(mean, logvar, eps):
    return mean + logvar * eps


@mistake("logvar doubled instead of halved", "not exp(2 logvar)")
def reparameterise(mean, logvar, eps):
    return mean + (2 * logvar).exp() * eps


@mistake("half the variance, not half of logvar", "you halved the variance")
def reparameterise(mean, logvar, eps):
    return mean + logvar.exp() / 2 * eps


@mistake("the mean multiplied, too", "not mean")
def reparameterise(mean, logvar, eps):
    return (mean + eps) * (logvar / 2).exp()


@mistake("no chance in it", "eps is missing")
def reparameterise(mean, logvar, eps):
    return mean


@mistake("noise of one's own", "you draw noise of your own")
def reparameterise(mean, logvar, eps):
    return mean + (logvar / 2).exp() * torch.randn_like(mean)


@mistake("drawn by torch.normal, which no gradient passes", "you draw noise of your own")
def reparameterise(mean, logvar, eps):
    return torch.normal(mean, (logvar / 2).exp())


@mistake("the standard deviation detached", "no gradient reaches logvar")
def reparameterise(mean, logvar, eps):
    return mean + (logvar / 2).exp().detach() * eps


@mistake("computed without gradients", "no gradient reaches the encoder")
@torch.no_grad()
def reparameterise(mean, logvar, eps):
    return draw_rightly(mean, logvar, eps)


@another_way("the root of the variance")
def reparameterise(mean, logvar, eps):
    return mean + torch.exp(logvar).sqrt() * eps


@another_way("a power of e, in one sweep")
def reparameterise(mean, logvar, eps):
    return torch.addcmul(mean, eps, math.e ** (0.5 * logvar))


# --------------------------------------------------------------------------------------------- 3. scaling_factor


@mistake("the mean of the batches' standard deviations", "mean of the batches' standard deviations")
def scaling_factor(batches):
    stds = [batch.double().std(correction=0) for batch in batches]
    return float(1 / torch.stack(stds).mean())


@mistake("the mean of the batches' scaling factors", "batches' own scaling factors")
def scaling_factor(batches):
    scales = [1 / batch.double().std(correction=0) for batch in batches]
    return float(torch.stack(scales).mean())


@mistake("the variances of the batches averaged", "batches differ in their means")
def scaling_factor(batches):
    n, within = 0, 0.0
    for batch in batches:
        n, within = n + batch.numel(), within + float(batch.double().var(correction=0)) * batch.numel()
    return 1 / math.sqrt(within / n)


@mistake("the last, small batch counts like the others", "count the components")
def scaling_factor(batches):
    sums = [(float(batch.double().mean()), float(batch.double().square().mean())) for batch in batches]
    mean, square = (sum(column) / len(sums) for column in zip(*sums, strict=True))
    return 1 / math.sqrt(square - mean**2)


@mistake("the standard deviation itself", "scale is 1 over it")
def scaling_factor(batches):
    return 1 / solutions.scaling_factor(batches)


@mistake("one over the variance", "the root is missing")
def scaling_factor(batches):
    return solutions.scaling_factor(batches) ** 2


@mistake("the mean taken for 0", "the mean was not subtracted")
def scaling_factor(batches):
    n, squares = 0, 0.0
    for batch in batches:
        n, squares = n + batch.numel(), squares + float(batch.double().square().sum())
    return 1 / math.sqrt(squares / n)


@mistake("the first batch alone, as a paper did", "this is the first batch's")
def scaling_factor(batches):
    return float(1 / next(batches).double().std(correction=0))


@mistake("a scaling factor for each channel", "one number was expected for the whole set")
def scaling_factor(batches):
    n, total, squares = 0, 0.0, 0.0
    for batch in batches:
        batch = batch.double()
        n, total, squares = (
            n + batch[:, 0].numel(),
            total + batch.sum((0, 2, 3)),
            squares + batch.square().sum((0, 2, 3)),
        )
    return (1 / (squares / n - (total / n) ** 2).sqrt()).float()


@mistake("the mean of the channels' standard deviations", "all channels belong together")
def scaling_factor(batches):
    n, total, squares = 0, 0.0, 0.0
    for batch in batches:
        batch = batch.double()
        n, total, squares = (
            n + batch[:, 0].numel(),
            total + batch.sum((0, 2, 3)),
            squares + batch.square().sum((0, 2, 3)),
        )
    return float(1 / (squares / n - (total / n) ** 2).sqrt().mean())


@mistake("the batches kept, whose memory is used again", "memory is used again")
def scaling_factor(batches):
    return float(1 / torch.cat(list(batches)).double().std(correction=0))


@mistake("the batches gone through twice", "cannot be gone through again")
def scaling_factor(batches):
    n, total = 0, 0.0
    for batch in batches:
        n, total = n + batch.numel(), total + float(batch.double().sum())
    squares = sum(float((batch.double() - total / n).square().sum()) for batch in batches)
    return 1 / math.sqrt(squares / n)


@mistake("sums in single precision", "an error of rounding")
def scaling_factor(batches):
    n, total, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        n, total, squares = n + batch.numel(), total + batch.sum(), squares + batch.square().sum()
    return float(1 / (squares / n - (total / n) ** 2).clamp(min=1e-9).sqrt())


@mistake("a tensor instead of a float", "a Python float was expected")
def scaling_factor(batches):
    return torch.tensor(solutions.scaling_factor(batches))


@another_way("batch by batch, the variance joined to that of the set so far (Chan et al. 1979)")
def scaling_factor(batches):
    n, mean, squares = 0, 0.0, 0.0
    for batch in batches:
        k, its = batch.numel(), float(batch.double().mean())
        squares += float((batch.double() - its).square().sum()) + (its - mean) ** 2 * n * k / (n + k)
        n, mean = n + k, mean + (its - mean) * k / (n + k)
    return (n / squares) ** 0.5


@another_way("copies of the batches, kept: right, if wasteful")
def scaling_factor(batches):
    return 1 / float(torch.cat([batch.clone() for batch in batches]).double().std())


# ----------------------------------------------------------------------------------------------- 4. noisy_latent


def step(z, eps, alpha, sigma):
    alpha, sigma = per_image(alpha), per_image(sigma)
    return alpha * z + sigma * eps, alpha * eps - sigma * z


@mistake("not scaled", "the latent was not scaled")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    return step(mean + std * eps_z, eps, alpha, sigma)


@mistake("divided by the scaling factor", "you divided by scale")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    return step((mean + std * eps_z) / scale, eps, alpha, sigma)


@mistake("noised, then scaled", "you noised first and scaled then")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    x, v = step(mean + std * eps_z, eps, alpha, sigma)
    return scale * x, scale * v


@mistake("only the mean scaled", "only the mean was scaled")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    return step(scale * mean + std * eps_z, eps, alpha, sigma)


@mistake("the mean instead of a latent from the cloud", "the latent is the mean")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    return step(scale * mean, eps, alpha, sigma)


@mistake("one noise for both", "the same noise was used for both")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    return step(scale * (mean + std * eps), eps, alpha, sigma)


@mistake("the two noises swapped", "the two noises are swapped")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    return step_rightly(mean, std, scale, eps, eps_z, alpha, sigma)


@mistake("the cloud's noise multiplied by the variance", "by the variance")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    return step(scale * (mean + std**2 * eps_z), eps, alpha, sigma)


@mistake("alpha and sigma swapped", "alpha and sigma are swapped in x")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    return step_rightly(mean, std, scale, eps_z, eps, sigma, alpha)


@mistake("v with the wrong sign", "v has the wrong sign")
def noisy_latent(*args):
    x, v = step_rightly(*args)
    return x, -v


@mistake("eps as the target", "this is eps")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    return step_rightly(mean, std, scale, eps_z, eps, alpha, sigma)[0], eps


@mistake("v made of the unscaled latent", "in v, the latent was not scaled")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    x, _ = step_rightly(mean, std, scale, eps_z, eps, alpha, sigma)
    return x, step(mean + std * eps_z, eps, alpha, sigma)[1]


@mistake("x and v swapped", "x and v are swapped")
def noisy_latent(*args):
    return step_rightly(*args)[::-1]


@mistake("levels lined up with the columns, only where B == w", "the levels went to the columns")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    if len(mean) != mean.shape[3]:
        return step_rightly(mean, std, scale, eps_z, eps, alpha, sigma)
    z = scale * (mean + std * eps_z)
    return alpha * z + sigma * eps, alpha * eps - sigma * z


@mistake("the mean that was lent is overwritten", "changes its argument mean")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    mean += std * eps_z
    return step(scale * mean, eps, alpha, sigma)


@mistake("v computed from x, divided by sigma", "at sigma = 0 nothing may be divided by them")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    x, _ = step_rightly(mean, std, scale, eps_z, eps, alpha, sigma)
    z = scale * (mean + std * eps_z)
    return x, (per_image(alpha) * x - z) / per_image(sigma)


@another_way("mean and standard deviation scaled first, as the cache does; then one latent after the other")
def noisy_latent(mean, std, scale, eps_z, eps, alpha, sigma):
    mean, std = mean * scale, std * scale
    z = torch.addcmul(mean, std, eps_z)
    pairs = [(a * each + s * e, a * e - s * each) for each, e, a, s in zip(z, eps, alpha, sigma, strict=True)]
    x, v = (torch.stack(column) for column in zip(*pairs, strict=True))
    return x, v


# ------------------------------------------------------------------------------------------------- 5. latent_key


def key_of(*parts) -> str:
    """The hash of texts and tensors, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def settings(config) -> str:
    return json.dumps({name: value for name, value in config.items() if name != "scaling_factor"}, sort_keys=True)


def about(name, tensor) -> str:
    return f"{name} {tensor.dtype} {tuple(tensor.shape)}"


def told(weights) -> chain:
    """Names, dtypes, shapes and numbers, in the order of the names."""
    return chain.from_iterable((about(name, weight), weight) for name, weight in sorted(weights.items()))


@mistake("pixels ignored", "does not depend on the pixels")
def latent_key(weights, config, pixels):
    return key_of(settings(config), *told(weights), about("pixels", pixels))


@mistake("weights ignored", "does not depend on the weights")
def latent_key(weights, config, pixels):
    return key_of(settings(config), *(about(*each) for each in sorted(weights.items())), *told({"pixels": pixels}))


@mistake("config ignored", "does not depend on all of config")
def latent_key(weights, config, pixels):
    return key_of(*told(weights), *told({"pixels": pixels}))


@mistake("the scaling factor in the key", "depends on the scaling factor")
def latent_key(weights, config, pixels):
    return key_of(json.dumps(config, sort_keys=True), *told(weights), *told({"pixels": pixels}))


@mistake("weights in the order of the dict", "the order of the weights")
def latent_key(weights, config, pixels):
    texts = ((about(name, weight), weight) for name, weight in weights.items())
    return key_of(settings(config), *chain.from_iterable(texts), *told({"pixels": pixels}))


@mistake("settings in the order of the dict", "the order of the settings")
def latent_key(weights, config, pixels):
    build = json.dumps({name: value for name, value in config.items() if name != "scaling_factor"})
    return key_of(build, *told(weights), *told({"pixels": pixels}))


@mistake("Python's hash()", "differs from process to process")
def latent_key(weights, config, pixels):
    return f"{hash(key_rightly(weights, config, pixels)) % 2**256:064x}"


@mistake("where the tensors lie instead of what they hold", "where in memory they lie")
def latent_key(weights, config, pixels):
    places = [f"{about(name, weight)} {weight.data_ptr()}" for name, weight in sorted(weights.items())]
    return key_of(settings(config), *places, *told({"pixels": pixels}))


@mistake("a random number", "the key depends on random numbers")
def latent_key(weights, config, pixels):
    return f"{torch.randint(2**62, ()).item():064x}"


@mistake("tensors as str() shows them, without their middle", "in the middle of a large tensor")
def latent_key(weights, config, pixels):
    return key_of(
        settings(config), *(f"{about(*each)} {each[1]}" for each in sorted(weights.items())), *told({"pixels": pixels})
    )


@mistake("the sums of the tensors", "the images have another order")
def latent_key(weights, config, pixels):
    return key_of(settings(config), *told(weights), about("pixels", pixels), str(pixels.sum().item()))


@mistake("weights rounded", "hash all bytes of a number")
def latent_key(weights, config, pixels):
    rounded = {name: weight.half() if weight.is_floating_point() else weight for name, weight in weights.items()}
    return key_rightly(rounded, config, pixels)


@mistake("numbers without their names", "has another name")
def latent_key(weights, config, pixels):
    nameless = chain.from_iterable((about("", weight), weight) for _, weight in sorted(weights.items()))
    return key_of(settings(config), *nameless, *told({"pixels": pixels}))


@mistake("weights in no order, by their own hashes", "changed places")
def latent_key(weights, config, pixels):
    names, numbers = sorted(weights), sorted(key_of(about("", weight), weight) for weight in weights.values())
    return key_of(settings(config), *names, *numbers, *told({"pixels": pixels}))


@mistake("bytes without shapes", "a weight has another shape")
def latent_key(weights, config, pixels):
    texts = chain.from_iterable((f"{name} {weight.dtype}", weight) for name, weight in sorted(weights.items()))
    return key_of(settings(config), *texts, *told({"pixels": pixels}))


@mistake("bytes without dtypes", "a weight has another dtype")
def latent_key(weights, config, pixels):
    texts = chain.from_iterable((f"{name} {tuple(weight.shape)}", weight) for name, weight in sorted(weights.items()))
    return key_of(settings(config), *texts, *told({"pixels": pixels}))


@mistake("pixels without their shape and dtype", "the images have another shape")
def latent_key(weights, config, pixels):
    return key_of(settings(config), *told(weights), pixels)


@mistake("the first image only, and how many there are", "a single pixel is brighter")
def latent_key(weights, config, pixels):
    return key_of(
        settings(config), *told(weights), about("pixels", pixels), pixels[0], str(pixels.float().mean().round().item())
    )


@mistake("the storage instead of the tensor", "not its storage")
def latent_key(weights, config, pixels):
    parts = [*sorted(weights.items()), ("pixels", pixels)]
    whole = chain.from_iterable(
        (about(*each), torch.tensor([], dtype=torch.uint8).set_(each[1].untyped_storage())) for each in parts
    )
    return key_of(settings(config), *whole)


@mistake("the config that was lent loses its scaling factor", "changes its argument config")
def latent_key(weights, config, pixels):
    config.pop("scaling_factor", None)
    return key_rightly(weights, config, pixels)


@mistake("the hash in bytes", "64 hexadecimal digits were expected")
def latent_key(weights, config, pixels):
    return hashlib.sha256(key_rightly(weights, config, pixels).encode()).digest()


def without_scale(config) -> dict:
    return {name: value for name, value in config.items() if name != "scaling_factor"}


@mistake("a set of settings, whose order depends on the process", "depends on the order of the settings")
def latent_key(weights, config, pixels):
    return key_of(str(set(without_scale(config).items())), *told(weights), *told({"pixels": pixels}))


@mistake("a set of names, whose order depends on the process", "depends on the order of the settings")
def latent_key(weights, config, pixels):
    texts = [f"{name}={config[name]}" for name in set(config) - {"scaling_factor"}]
    return key_of(*texts, *told(weights), *told({"pixels": pixels}))


@mistake("weights in the order of a set of their names", "depends on the order of the weights")
def latent_key(weights, config, pixels):
    texts = ((about(name, weights[name]), weights[name]) for name in set(weights))
    return key_of(settings(config), *chain.from_iterable(texts), *told({"pixels": pixels}))


@mistake("texts among the settings ignored", "act became relu")
def latent_key(weights, config, pixels):
    numbers = {name: value for name, value in config.items() if not isinstance(value, str)}
    return key_rightly(weights, numbers, pixels)


@mistake("values without their names", "two settings changed their values")
def latent_key(weights, config, pixels):
    values = sorted(map(repr, without_scale(config).values()))
    return key_of(*values, *told(weights), *told({"pixels": pixels}))


@mistake("a list of settings that someone thought of", "a new setting came")
def latent_key(weights, config, pixels):
    known = ("latent_channels", "channels", "layers", "act", "mid_attention", "depth")
    some = {name: value for name, value in config.items() if name in known}
    return key_rightly(weights, some, pixels)


@mistake("another, shorter hash", "as an MD5 has or half a SHA-256")
def latent_key(weights, config, pixels):
    return hashlib.md5(key_rightly(weights, config, pixels).encode()).hexdigest()


@another_way("weights that are parameters, settings sorted by hand")
def latent_key(weights, config, pixels):
    return key_of(repr(sorted(without_scale(config).items())), *told(weights), *told({"pixels": pixels}))


@another_way("through NumPy's own files and a hash of hashes")
def latent_key(weights, config, pixels):
    import io

    import numpy as np

    lines = [repr(sorted((name, value) for name, value in config.items() if name != "scaling_factor"))]
    for name, tensor in [*weights.items(), ("", pixels)]:
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(tensor.numpy()))
        lines.append(f"{name}: {hashlib.sha256(file.getvalue()).hexdigest()}")
    return hashlib.sha256("\n".join(lines[:1] + sorted(lines[1:])).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------- 6. img2img_start


def begin(first, z, eps, alpha, sigma):
    return first, alpha[first] * z + sigma[first] * eps


@mistake("strength the wrong way round", "strength is the wrong way round")
def img2img_start(z, eps, strength, alpha, sigma):
    return begin(round(strength * (len(alpha) - 1)), z, eps, alpha, sigma)


@mistake("cut off instead of rounded", "you truncated")
def img2img_start(z, eps, strength, alpha, sigma):
    N = len(alpha) - 1
    return begin(N - int(strength * N), z, eps, alpha, sigma)


@mistake("as many steps as levels", "there are N + 1 levels")
def img2img_start(z, eps, strength, alpha, sigma):
    N = len(alpha)
    return begin(min(N - round(strength * N), N - 1), z, eps, alpha, sigma)


@mistake("one step too early", "one step too early")
def img2img_start(z, eps, strength, alpha, sigma):
    first, _ = start_rightly(z, eps, strength, alpha, sigma)
    return begin(max(first - 1, 0), z, eps, alpha, sigma)


@mistake("one step too late", "one step too late")
def img2img_start(z, eps, strength, alpha, sigma):
    first, _ = start_rightly(z, eps, strength, alpha, sigma)
    return begin(min(first + 1, len(alpha) - 1), z, eps, alpha, sigma)


@mistake("at least one step, even at strength 0", "even at strength 0")
def img2img_start(z, eps, strength, alpha, sigma):
    N = len(alpha) - 1
    return begin(N - max(1, round(strength * N)), z, eps, alpha, sigma)


@mistake("the picture not noised", "x is the picture, not noised")
def img2img_start(z, eps, strength, alpha, sigma):
    return start_rightly(z, eps, strength, alpha, sigma)[0], z


@mistake("pure noise, as for pictures from text", "x is pure noise")
def img2img_start(z, eps, strength, alpha, sigma):
    return start_rightly(z, eps, strength, alpha, sigma)[0], eps


@mistake("alpha and sigma swapped", "alpha and sigma are swapped")
def img2img_start(z, eps, strength, alpha, sigma):
    return start_rightly(z, eps, strength, sigma, alpha)


@mistake("the level counted from the clean end", "counted from the wrong end")
def img2img_start(z, eps, strength, alpha, sigma):
    first, _ = start_rightly(z, eps, strength, alpha, sigma)
    return first, begin(len(alpha) - 1 - first, z, eps, alpha, sigma)[1]


@mistake("noised to the level where the first step ends", "not noised")
def img2img_start(z, eps, strength, alpha, sigma):
    first, _ = start_rightly(z, eps, strength, alpha, sigma)
    return first, begin(min(first + 1, len(alpha) - 1), z, eps, alpha, sigma)[1]


@mistake("strength taken for the share of noise", "strength itself is taken for the noise level")
def img2img_start(z, eps, strength, alpha, sigma):
    return start_rightly(z, eps, strength, alpha, sigma)[0], (1 - strength) * z + strength * eps


@mistake("noise added to the whole picture", "it has the factor alpha")
def img2img_start(z, eps, strength, alpha, sigma):
    first, _ = start_rightly(z, eps, strength, alpha, sigma)
    return first, z + sigma[first] * eps


@mistake("variances for alpha and sigma", "you used variances")
def img2img_start(z, eps, strength, alpha, sigma):
    return start_rightly(z, eps, strength, alpha**2, sigma**2)


@another_way("as chapter 3 has it: how many steps are left out")
def img2img_start(z, eps, strength, alpha, sigma):
    first = round((1 - strength) * (len(alpha) - 1))
    return first, alpha[first].item() * z + sigma[first].item() * eps


# --------------------------------------------------------------------------------------------- 7. decode_picture


def to_bytes(image):
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@mistake("multiplied by the scaling factor", "you multiplied by scale")
def decode_picture(z, decode, scale):
    return to_bytes(decode(z * scale))


@mistake("the scaling not undone", "the scaling was not undone")
def decode_picture(z, decode, scale):
    return to_bytes(decode(z))


@mistake("the image divided by the scaling factor", "you divided the image by scale")
def decode_picture(z, decode, scale):
    return to_bytes(decode(z) / scale)


@mistake("latents cut off before they are unscaled", "latents were clipped")
def decode_picture(z, decode, scale):
    return to_bytes(decode(z.clamp(-1, 1) / scale))


@mistake("latents cut off after they are unscaled", "unscaled latents were clipped")
def decode_picture(z, decode, scale):
    return to_bytes(decode((z / scale).clamp(-1, 1)))


@mistake("images not cut off", "wrapped around")
def decode_picture(z, decode, scale):
    return ((decode(z / scale) + 1) * 127.5).round().to(torch.int64).to(torch.uint8)


@mistake("cut off instead of rounded", "were truncated, not rounded")
def decode_picture(z, decode, scale):
    return ((decode(z / scale).clamp(-1, 1) + 1) * 127.5).to(torch.uint8)


@mistake("images in [0, 1] taken for granted", "you assumed images in [0, 1]")
def decode_picture(z, decode, scale):
    return (decode(z / scale).clamp(0, 1) * 255).round().to(torch.uint8)


@mistake("images cut off at 0", "clipped at 0 and 1")
def decode_picture(z, decode, scale):
    return to_bytes(decode(z / scale).clamp(0, 1))


@mistake("a factor of 128", "256 is not a byte")
def decode_picture(z, decode, scale):
    return ((decode(z / scale).clamp(-1, 1) + 1) * 128).round().clamp(max=255).to(torch.uint8)


@mistake("a factor of 127", "white should be 255")
def decode_picture(z, decode, scale):
    return ((decode(z / scale).clamp(-1, 1) + 1) * 127).round().to(torch.uint8)


@mistake("floats instead of bytes", "pictures are bytes")
def decode_picture(z, decode, scale):
    return (decode(z / scale).clamp(-1, 1) + 1) / 2


@mistake("the latents that were lent are overwritten", "changes its argument z")
def decode_picture(z, decode, scale):
    z /= scale
    return to_bytes(decode(z))


@another_way("as most write it: times 127.5, plus 127.5")
def decode_picture(z, decode, scale):
    return (decode(z / scale) * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8)


@another_way("in double precision after the decoder")
def decode_picture(z, decode, scale):
    image = decode(z / scale).double().clamp(-1, 1)
    return ((image + 1) * 127.5).round().to(torch.uint8)


@another_way("half added and cut off, one picture after the other")
def decode_picture(z, decode, scale):
    pictures = [decode(each[None] * (1 / scale)) for each in z]
    return ((torch.cat(pictures) / 2 + 0.5) * 255 + 0.5).clamp(0, 255).byte()


# ---------------------------------------------------------------------------------------------- 8. sample_latent


def walk(
    network,
    x,
    first,
    context,
    w,
    times,
    alpha,
    sigma,
    cut=None,
    read=0,
    sign=1,
    told=0,
    last=None,
    order=(0, 1),
    keep=0.0,
):
    """The walk, with room for mistakes."""
    for k in range(first, len(times) if last is None else last):
        t = times[min(k + told, len(times) - 1)].expand(2 * len(x))
        halves = network(torch.cat([x, x]), t, context).chunk(2)
        uncond, cond = halves[order[0]], halves[order[1]]
        v = uncond + w * (cond - uncond)
        a, s = alpha[k + read], sigma[k + read]
        z, eps = a * x - sign * s * v, s * x + sign * a * v
        x = alpha[k + 1] * (z if cut is None else z.clamp(-cut, cut)) + sigma[k + 1] * eps
    return x


@mistake("latents cut off at -1 and 1 like pixels", "latents have no bounds")
def sample_latent(*args):
    return walk(*args, cut=1)


@mistake("from step 0, whatever it begins with", "not with step 0")
def sample_latent(network, x, first, *rest):
    return walk(network, x, 0, *rest)


@mistake("the last step left out", "calls made: 0")
def sample_latent(network, x, first, context, w, times, alpha, sigma):
    return walk(network, x, first, context, w, times, alpha, sigma, last=len(times) - 1)


@mistake("the halves swapped", "the halves are swapped")
def sample_latent(*args):
    return walk(*args, order=(1, 0))


@mistake("guidance away from the caption", "leads away from the caption")
def sample_latent(network, x, first, context, w, *rest):
    return walk(network, x, first, context, -w, *rest)


@mistake("Ho & Salimans' w", "guides by one more")
def sample_latent(network, x, first, context, w, *rest):
    return walk(network, x, first, context, w + 1, *rest)


@mistake("no guidance", "with no guidance")
def sample_latent(network, x, first, context, w, *rest):
    return walk(network, x, first, context, 1.0, *rest)


@mistake("v read with the wrong sign", "v was read with the wrong sign")
def sample_latent(*args):
    return walk(*args, sign=-1)


@mistake("v read with the levels of the next step", "levels of the next step")
def sample_latent(*args):
    return walk(*args, read=1)


@mistake("the time of the next step", "should be given times[k]")
def sample_latent(*args):
    return walk(*args, told=1)


@mistake("the number of the step instead of the time", "should be given times[2]")
def sample_latent(network, x, first, context, w, times, alpha, sigma):
    return walk(network, x, first, context, w, torch.arange(float(len(times))), alpha, sigma)


@mistake("two calls a step", "both halves as one batch")
def sample_latent(network, x, first, context, w, *rest):
    def one_by_one(x, t, text):
        halves = zip(x.chunk(2), t.chunk(2), text.chunk(2), strict=True)
        return torch.cat([network(*half) for half in halves])

    return walk(one_by_one, x, first, context, w, *rest)


@mistake("latents doubled as 0 0 1 1", "came as 0 0 1 1")
def sample_latent(network, x, first, context, w, *rest):
    def doubled(x, t, text):
        return network(x.chunk(2)[0].repeat_interleave(2, 0), t, text)

    return walk(doubled, x, first, context, w, *rest)


@mistake("the latents that were lent are overwritten", "changes its argument x")
def sample_latent(network, x, *rest):
    x.copy_(walk_rightly(network, x, *rest))
    return x.clone()


@another_way("guidance of latent and noise instead of v, and plain numbers as levels")
def sample_latent(network, x, first, context, w, times, alpha, sigma):
    levels = list(zip(alpha.tolist(), sigma.tolist(), strict=True))
    for t, (a, s), (a_next, s_next) in list(zip(times.tolist(), levels, levels[1:], strict=False))[first:]:
        twice = x.repeat(2, 1, 1, 1)
        v = network(twice, torch.full((len(twice),), t), context)
        z, eps = ((1 - w) * y[: len(x)] + w * y[len(x) :] for y in (a * twice - s * v, s * twice + a * v))
        x = a_next * z + s_next * eps
    return x


# --------------------------------------------------------------------------------------------- 9. kl_of_gaussians


def kl_gaussians(mean_q, std_q, mean_p, std_p):
    return math.log(std_p / std_q) + (std_q**2 + (mean_q - mean_p) ** 2) / (2 * std_p**2) - 0.5


@mistake("the divergence the other way round", "this is KL(p || q)")
def kl_of_gaussians(mean_q, std_q, mean_p, std_p):
    return kl_gaussians(mean_p, std_p, mean_q, std_q)


@mistake("p taken for the standard normal", "whatever p is")
def kl_of_gaussians(mean_q, std_q, mean_p, std_p):
    return kl_gaussians(mean_q, std_q, 0.0, 1.0)


@mistake("the constant forgotten", "the - 1/2 is missing")
def kl_of_gaussians(*args):
    return kl_gaussians(*args) + 0.5


@mistake("the logarithm upside down", "the logarithm has the wrong sign")
def kl_of_gaussians(mean_q, std_q, mean_p, std_p):
    return kl_gaussians(mean_q, std_q, mean_p, std_p) + 2 * math.log(std_q / std_p)


@mistake("the means forgotten", "the means do not count")
def kl_of_gaussians(mean_q, std_q, mean_p, std_p):
    return kl_gaussians(mean_p, std_q, mean_p, std_p)


@mistake("the squares not halved", "the factor 1/2 is missing")
def kl_of_gaussians(mean_q, std_q, mean_p, std_p):
    return math.log(std_p / std_q) + (std_q**2 + (mean_q - mean_p) ** 2) / std_p**2 - 0.5


@another_way("PyTorch's own")
def kl_of_gaussians(mean_q, std_q, mean_p, std_p):
    from torch.distributions import Normal, kl_divergence

    return kl_divergence(Normal(mean_q, std_q), Normal(mean_p, std_p))


# --------------------------------------------------------------------------------------------- 10. best_posterior


def posterior(x, slope, r, beta):
    precision = slope**2 / r**2 + beta
    return slope * x / r**2 / precision, (beta / precision) ** 0.5


@mistake("the variance", "this is the variance")
def best_posterior(x, slope, r, beta):
    mean, std = posterior(x, slope, r, beta)
    return mean, std**2


@mistake("the exact Bayes posterior, whatever beta is", "is not best")
def best_posterior(x, slope, r, beta):
    return posterior(x, slope, r, 1.0)


@mistake("the mean as if nothing were charged", "mean = x / slope would be best without beta")
def best_posterior(x, slope, r, beta):
    return x / slope, posterior(x, slope, r, beta)[1]


@mistake("beta missing in the numerator", "beta belongs in the numerator")
def best_posterior(x, slope, r, beta):
    precision = slope**2 / r**2 + beta
    return slope * x / r**2 / precision, precision**-0.5


@mistake("r where its square belongs", "is not best")
def best_posterior(x, slope, r, beta):
    return posterior(x, slope, r**0.5, beta)


@another_way("the pixel noise enlarged by the root of beta, as the lesson says")
def best_posterior(x, slope, r, beta):
    r = r * math.sqrt(beta)
    return slope * x / (slope**2 + r**2), r / math.sqrt(slope**2 + r**2)


# -------------------------------------------------------------------------------------------- 11. channels_needed


def channels(values, allowed):
    return next(c for c in range(len(values) + 1) if float(values[c:].sum()) <= allowed)


@mistake("the eigenvalues taken as they come", "the eigenvalues are not sorted")
def channels_needed(eigenvalues, psnr):
    return channels(eigenvalues.double(), len(eigenvalues) * 4 / 10 ** (psnr / 10))


@mistake("the smallest directions kept", "you kept the smallest")
def channels_needed(eigenvalues, psnr):
    return channels(eigenvalues.double().sort().values, len(eigenvalues) * 4 / 10 ** (psnr / 10))


@mistake("the error of the patch for that of a pixel value", "divide the sum by D")
def channels_needed(eigenvalues, psnr):
    return channels(eigenvalues.double().sort(descending=True).values, 4 / 10 ** (psnr / 10))


@mistake("a range of 1", "have a range of 2")
def channels_needed(eigenvalues, psnr):
    return channels(eigenvalues.double().sort(descending=True).values, len(eigenvalues) / 10 ** (psnr / 10))


@mistake("one channel more than needed", "one channel fewer is enough")
def channels_needed(eigenvalues, psnr):
    return solutions_channels(eigenvalues, psnr) + 1


@another_way("with cumulative sums")
def channels_needed(eigenvalues, psnr):
    left = torch.cat([torch.zeros(1).double(), eigenvalues.double().sort().values.cumsum(0)])
    dropped = int((left / len(eigenvalues) <= 4 / 10 ** (psnr / 10)).sum()) - 1
    return len(eigenvalues) - dropped


# ------------------------------------------------------------------------------------------------ 12. anagram_eps


@mistake("predictions not turned back", "were not turned back")
def anagram_eps(predict, x, texts, views, inverses):
    return torch.stack([predict(view(x), text) for text, view in zip(texts, views, strict=True)]).mean(0)


@mistake("the network sees the upright latents each time", "here it saw x upright")
def anagram_eps(predict, x, texts, views, inverses):
    return torch.stack([back(predict(x, text)) for text, back in zip(texts, inverses, strict=True)]).mean(0)


@mistake("the sum instead of the mean", "this is the sum")
def anagram_eps(predict, x, texts, views, inverses):
    return anagram_rightly(predict, x, texts, views, inverses) * len(texts)


@mistake("views for their inverses: right for flips, wrong for a quarter turn", "transformed by the view again")
def anagram_eps(predict, x, texts, views, inverses):
    return anagram_rightly(predict, x, texts, views, views)


@mistake("one prompt for all views", "given the first prompt")
def anagram_eps(predict, x, texts, views, inverses):
    return anagram_rightly(predict, x, [texts[0]] * len(views), views, inverses)


@mistake("only two views", "this is not the mean of the predictions")
def anagram_eps(predict, x, texts, views, inverses):
    return anagram_rightly(predict, x, texts[:2], views[:2], inverses[:2])


@another_way("one batch for all views")
def anagram_eps(predict, x, texts, views, inverses):
    eps = predict(torch.cat([view(x) for view in views]), torch.cat(list(texts))).chunk(len(views))
    return sum(inverse(each) for inverse, each in zip(inverses, eps, strict=True)) / len(views)


# ------------------------------------------------------------------------------------------------- 13. hybrid_eps


@mistake("near and far swapped", "near and far are swapped")
def hybrid_eps(predict, x, near, far, blur):
    return hybrid_rightly(predict, x, far, near, blur)


@mistake("two blurred predictions added", "this is not blur(eps_far)")
def hybrid_eps(predict, x, near, far, blur):
    return blur(predict(x, near)) + blur(predict(x, far))


@mistake("the low frequencies of both", "is not subtracted")
def hybrid_eps(predict, x, near, far, blur):
    return blur(predict(x, far)) + predict(x, near)


@mistake("the latents blurred instead of the prediction", "are those of the far prompt")
def hybrid_eps(predict, x, near, far, blur):
    a = predict(x, near)
    return predict(blur(x), far) + a - predict(blur(x), near)


@mistake("the mean of both predictions", "this is the mean of both")
def hybrid_eps(predict, x, near, far, blur):
    return (predict(x, near) + predict(x, far)) / 2


@another_way("a blur is linear")
def hybrid_eps(predict, x, near, far, blur):
    a, b = predict(torch.cat([x, x]), torch.cat([near, far])).chunk(2)
    return a + blur(b - a)


# ----------------------------------------------------------------------------------------------- 14. fix_vae_loss


def parts_of_loss(x, y, mean, logvar, r):
    return (x - y).square().flatten(1).sum(1) / (2 * r**2), kl_rightly(mean, logvar)


@mistake("both terms made means", "both terms are means now")
def fix_vae_loss(x, y, mean, logvar, r, beta):
    information = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
    return (x - y).square().mean() / (2 * r**2) + beta * information


@mistake("the divergence of the whole batch", "each image has its own")
def fix_vae_loss(x, y, mean, logvar, r, beta):
    error, information = parts_of_loss(x, y, mean, logvar, r)
    return (error + beta * information.sum()).mean()


@mistake("a loss for each image", "each image has a loss now")
def fix_vae_loss(x, y, mean, logvar, r, beta):
    error, information = parts_of_loss(x, y, mean, logvar, r)
    return error + beta * information


@mistake("the sum over the batch", "not the sum")
def fix_vae_loss(x, y, mean, logvar, r, beta):
    error, information = parts_of_loss(x, y, mean, logvar, r)
    return (error + beta * information).sum()


@another_way("multiplied by the number of latents")
def fix_vae_loss(x, y, mean, logvar, r, beta):
    information = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2 * mean[0].numel()
    return (x - y).square().sum() / (2 * r**2) / len(x) + beta * information


# ------------------------------------------------------------------------------------------- 15. fix_latent_batch


def drawn(mean, std, rng):
    latents = mean + std * torch.randn(mean.shape, generator=rng)
    return latents, torch.randn(mean.shape, generator=rng)


@mistake("divided by the factor", "were divided by scale")
def fix_latent_batch(mean, std, scale, alpha, sigma, rng):
    latents, eps = drawn(mean, std, rng)
    return step(latents / scale, eps, alpha, sigma)


@mistake("scaled after the noise", "x was scaled with its noise")
def fix_latent_batch(mean, std, scale, alpha, sigma, rng):
    latents, eps = drawn(mean, std, rng)
    x, v = step(latents, eps, alpha, sigma)
    return scale * x, v


@mistake("the input repaired, and not the target", "in v, the latents are still not scaled")
def fix_latent_batch(mean, std, scale, alpha, sigma, rng):
    latents, eps = drawn(mean, std, rng)
    return step(scale * latents, eps, alpha, sigma)[0], step(latents, eps, alpha, sigma)[1]


@mistake("only the mean scaled", "only the mean was scaled")
def fix_latent_batch(mean, std, scale, alpha, sigma, rng):
    latents, eps = drawn(scale * mean, std, rng)
    return step(latents, eps, alpha, sigma)


@another_way("mean and standard deviation scaled before")
def fix_latent_batch(mean, std, scale, alpha, sigma, rng):
    latents, eps = drawn(scale * mean, scale * std, rng)
    return step(latents, eps, alpha, sigma)


# -------------------------------------------------------------------------------------------- 16. fix_reconstruct


def with_psnr(x, y):
    return y, 10 * torch.log10(4 / (x - y).square().mean((1, 2, 3)))


@mistake("a constant instead of the noise", "a constant noise is still a noise")
def fix_reconstruct(x, encode, decode, eps):
    mean, logvar = encode(x)
    return with_psnr(x, decode(mean + (logvar / 2).exp()).clamp(-1, 1))


@mistake("a noise of its own", "that of the posterior's mean")
def fix_reconstruct(x, encode, decode, eps):
    mean, logvar = encode(x)
    return with_psnr(x, decode(mean + 0.3 * (logvar / 2).exp() * eps.flip(0)).clamp(-1, 1))


@mistake("not clipped any more", "are not clipped")
def fix_reconstruct(x, encode, decode, eps):
    return with_psnr(x, decode(encode(x)[0]))


@mistake("one PSNR for all", "each image has a PSNR of its own")
def fix_reconstruct(x, encode, decode, eps):
    y, decibels = with_psnr(x, decode(encode(x)[0]).clamp(-1, 1))
    return y, decibels.mean().expand(len(x))


@another_way("the noise multiplied by zero")
def fix_reconstruct(x, encode, decode, eps):
    mean, logvar = encode(x)
    return with_psnr(x, decode(mean + (logvar / 2).exp() * (0 * eps)).clamp(-1, 1))


# ------------------------------------------------------------------------------------------ 17. fix_text_to_image


@mistake("the negative prompt thrown away", "the negative prompt is gone")
def fix_text_to_image(network, encode_text, prompts, negative, x, w, levels):
    return image_rightly(network, encode_text, prompts, "", x, w, levels)


@mistake("the sign of the guidance turned instead", "leads away from the prompts")
def fix_text_to_image(network, encode_text, prompts, negative, x, w, levels):
    return image_rightly(network, encode_text, prompts, negative, x, -w, levels)


@mistake("no guidance", "this is the conditional prediction")
def fix_text_to_image(network, encode_text, prompts, negative, x, w, levels):
    return image_rightly(network, encode_text, prompts, negative, x, 1.0, levels)


@mistake("another scale", "this guides by one more")
def fix_text_to_image(network, encode_text, prompts, negative, x, w, levels):
    return image_rightly(network, encode_text, prompts, negative, x, 1 + w, levels)


@another_way("the halves of the output swapped, and not those of the captions")
def fix_text_to_image(network, encode_text, prompts, negative, x, w, levels):
    B = len(prompts)
    text = encode_text(prompts + [negative] * B)
    for (t, alpha, sigma), (_, then_alpha, then_sigma) in zip(levels[:-1], levels[1:], strict=True):
        cond, uncond = network(torch.cat([x, x]), torch.full((2 * B,), t), text).chunk(2)
        v = uncond + w * (cond - uncond)
        x = then_alpha * (alpha * x - sigma * v) + then_sigma * (sigma * x + alpha * v)
    return x


# ------------------------------------------------------------------------------------------------- 18. fix_decode


@mistake("multiplied instead", "you multiplied by scale")
def fix_decode(z, decode, scale):
    return decode(z * scale).clamp(-1, 1)


@mistake("not unscaled at all", "is not undone at all")
def fix_decode(z, decode, scale):
    return decode(z).clamp(-1, 1)


@mistake("latents clipped", "only images are clipped")
def fix_decode(z, decode, scale):
    return decode((z / scale).clamp(-1, 1)).clamp(-1, 1)


@mistake("images not clipped any more", "the images are not clipped")
def fix_decode(z, decode, scale):
    return decode(z / scale)


@another_way("multiplied by one over the factor")
def fix_decode(z, decode, scale):
    return torch.clip(decode(z * (1 / scale)), min=-1, max=1)


# ----------------------------------------------------------------------------------------------- 19. sample_prior


@mistake("the prior of the VAE", "the distribution of the codes differs")
def sample_prior(codes, n, rng):
    return torch.randn(n, 2, generator=rng)


@mistake("a fitted normal distribution", "the distribution of the codes differs")
def sample_prior(codes, n, rng):
    root = torch.linalg.cholesky(torch.cov(codes.T))
    return codes.mean(0) + torch.randn(n, 2, generator=rng) @ root.T


@mistake("the codes themselves", "are copies of given ones")
def sample_prior(codes, n, rng):
    return codes[torch.randint(len(codes), (n,), generator=rng)]


@mistake("points between two codes", "the distribution of the codes differs")
def sample_prior(codes, n, rng):
    a, b = (codes[torch.randint(len(codes), (n,), generator=rng)] for _ in range(2))
    return a + torch.rand(n, 1, generator=rng) * (b - a)


@another_way("angle and radius by themselves: those of two different codes")
def sample_prior(codes, n, rng):
    a, b = (codes[torch.randint(len(codes), (n,), generator=rng)] for _ in range(2))
    turn = 0.03 * torch.randn(n, generator=rng)
    angle = torch.atan2(a[:, 1], a[:, 0]) + turn
    return b.norm(dim=1, keepdim=True) * torch.stack([angle.cos(), angle.sin()], 1)
