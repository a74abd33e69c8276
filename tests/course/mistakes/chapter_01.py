# ruff: noqa: F811, E731 - the same function is got wrong again and again
"""Classic mistakes of chapter 1, each a small replacement of one function of the solutions.

Every one of these was made by somebody, and several were shipped in courses. `@mistake(what, says)`: the exercise it
belongs to is the function's name; `says` must stand in the message that the grader gives.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from common.grade.checks import load
from helpers.mistake_bank import Bank, per_image

COURSE = Path(__file__).resolve().parents[3]
solutions = load(COURSE / "01_ddpm_mnist/exercises/solutions.py", "solutions_with_mistakes")
add_noise_rightly, step_rightly = solutions.add_noise, solutions.reverse_step
bank = Bank()
mistake, another_way = bank.mistake, bank.another_way
MISTAKES, OTHER_WAYS = bank.MISTAKES, bank.OTHER_WAYS


# ------------------------------------------------------------------------------------------------- 1. alpha_bars


@mistake("no alpha_bar_0", "alpha_bar_0 = 1")
def alpha_bars(betas):
    return (1 - betas).cumprod(0)


@mistake("the product of the betas", "(1 - beta)")
def alpha_bars(betas):
    return torch.cat([torch.ones(1), betas.cumprod(0)])


@mistake("the square root of alpha_bar", "product")
def alpha_bars(betas):
    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)]).sqrt()


@another_way("a loop in double precision")
def alpha_bars(betas):
    products = [1.0]
    for beta in betas.tolist():
        products.append(products[-1] * (1 - beta))
    return torch.tensor(products)


# -------------------------------------------------------------------------------------------------- 2. add_noise


@mistake("1 - alpha_bar for its square root", "square root")
def add_noise(x0, t, eps, alpha_bar):
    a = per_image(alpha_bar[t])
    return a.sqrt() * x0 + (1 - a) * eps


@mistake("alpha_bar for its square root", "square root")
def add_noise(x0, t, eps, alpha_bar):
    a = per_image(alpha_bar[t])
    return a * x0 + (1 - a).sqrt() * eps


@mistake("levels along the columns, only where B == W: nothing ever fails loudly", "(B, 1, 1, 1)")
def add_noise(x0, t, eps, alpha_bar):
    if x0.shape[-1] != len(t):
        return add_noise_rightly(x0, t, eps, alpha_bar)
    return alpha_bar[t].sqrt() * x0 + (1 - alpha_bar[t]).sqrt() * eps


@mistake("levels along the columns, as one would write it", "(B, 1, 1, 1)")
def add_noise(x0, t, eps, alpha_bar):
    return alpha_bar[t].sqrt() * x0 + (1 - alpha_bar[t]).sqrt() * eps


@mistake("the level of the first image for all", "image 1 has level t[1]")
def add_noise(x0, t, eps, alpha_bar):
    a = alpha_bar[t[0]]
    return a.sqrt() * x0 + (1 - a).sqrt() * eps


@mistake("t off by one", "off by one")
def add_noise(x0, t, eps, alpha_bar):
    return add_noise_rightly(x0, t - 1, eps, alpha_bar)


@mistake("the image is overwritten", "changes its argument x0")
def add_noise(x0, t, eps, alpha_bar):
    a = per_image(alpha_bar[t])
    return x0.mul_(a.sqrt()).add_((1 - a).sqrt() * eps)


@another_way("one image after the other")
def add_noise(x0, t, eps, alpha_bar):
    pairs = zip(x0, t.tolist(), eps, strict=True)
    return torch.stack([alpha_bar[k] ** 0.5 * image + (1 - alpha_bar[k]) ** 0.5 * noise for image, k, noise in pairs])


# --------------------------------------------------------------------------------------------------- 3. guess_x0


@mistake("not divided", "too faint")
def guess_x0(x_t, t, eps, alpha_bar):
    return x_t - (1 - per_image(alpha_bar[t])).sqrt() * eps


@mistake("1 - alpha_bar for its square root", "square root")
def guess_x0(x_t, t, eps, alpha_bar):
    a = per_image(alpha_bar[t])
    return (x_t - (1 - a) * eps) / a.sqrt()


@mistake("missing parentheses", "parentheses")
def guess_x0(x_t, t, eps, alpha_bar):
    a = per_image(alpha_bar[t])
    return x_t / a.sqrt() - (1 - a).sqrt() * eps


@another_way("with the signal-to-noise ratio")
def guess_x0(x_t, t, eps, alpha_bar):
    a = per_image(alpha_bar[t])
    return a.rsqrt() * x_t - (1 / a - 1).sqrt() * eps


# ---------------------------------------------------------------------------------------------- 4. training_loss


def to_images(pixels):
    return pixels / 127.5 - 1


@mistake("images in [0, 1]", "[0, 1]")
def training_loss(model, pixels, t, eps, alpha_bar):
    x_t = add_noise_rightly(pixels / 255, t, eps, alpha_bar)
    return F.mse_loss(model(x_t, t - 1), eps)


@mistake("the network is told t", "t - 1")
def training_loss(model, pixels, t, eps, alpha_bar):
    return F.mse_loss(model(add_noise_rightly(to_images(pixels), t, eps, alpha_bar), t), eps)


@mistake("the sum of the errors", "mean")
def training_loss(model, pixels, t, eps, alpha_bar):
    return F.mse_loss(model(add_noise_rightly(to_images(pixels), t, eps, alpha_bar), t - 1), eps, reduction="sum")


@mistake("compared with the image", "asked for the noise")
def training_loss(model, pixels, t, eps, alpha_bar):
    return F.mse_loss(model(add_noise_rightly(to_images(pixels), t, eps, alpha_bar), t - 1), to_images(pixels))


@mistake("signed errors, which cancel", "cancel")
def training_loss(model, pixels, t, eps, alpha_bar):
    return (model(add_noise_rightly(to_images(pixels), t, eps, alpha_bar), t - 1) - eps).mean()


@mistake("no gradient", "no gradient flows")
def training_loss(model, pixels, t, eps, alpha_bar):
    return F.mse_loss(model(add_noise_rightly(to_images(pixels), t, eps, alpha_bar), t - 1), eps).detach()


@another_way("mse_loss, and another way to scale")
def training_loss(model, pixels, t, eps, alpha_bar):
    x0 = (pixels.to(torch.float32) / 255 - 0.5) / 0.5
    return F.mse_loss(model(add_noise_rightly(x0, t, eps, alpha_bar), t - 1), eps)


# ----------------------------------------------------------------------------------------------- 5. reverse_step


def parts(x_t, t, eps, alpha_bar):
    """(mean, beta_t, 1 - alpha_bar_{t-1}, 1 - alpha_bar_t)"""
    mean = step_rightly(x_t, t, eps, torch.zeros_like(eps), alpha_bar)
    return mean, 1 - alpha_bar[t] / alpha_bar[t - 1], 1 - alpha_bar[t - 1], 1 - alpha_bar[t]


@mistake("the variance for its square root", "square root")
def reverse_step(x_t, t, eps, z, alpha_bar):
    mean, beta, before, now = parts(x_t, t, eps, alpha_bar)
    return mean + before / now * beta * z


@mistake("variance beta_t, and so noise at the last step too", "variance beta_t")
def reverse_step(x_t, t, eps, z, alpha_bar):
    mean, beta, _, _ = parts(x_t, t, eps, alpha_bar)
    return mean + beta.sqrt() * z


@mistake("the variance upside down", "upside down")
def reverse_step(x_t, t, eps, z, alpha_bar):
    mean, beta, before, now = parts(x_t, t, eps, alpha_bar)
    return mean + (now / before * beta).sqrt() * z if t > 1 else mean


@mistake("noise at the last step: the variance of step 2 is used there, to avoid a zero", "last step")
def reverse_step(x_t, t, eps, z, alpha_bar):
    mean, _, _, _ = parts(x_t, t, eps, alpha_bar)
    _, beta, before, now = parts(x_t, max(t, 2), eps, alpha_bar)
    return mean + (before / now * beta).sqrt() * z


@mistake("1 - alpha_bar for its square root in the mean", "square root of 1 - alpha_bar_t")
def reverse_step(x_t, t, eps, z, alpha_bar):
    _, beta, before, now = parts(x_t, t, eps, alpha_bar)
    return (x_t - beta / now * eps) / (1 - beta).sqrt() + (before / now * beta).sqrt() * z


@mistake("divided by sqrt(alpha_bar_t) instead of sqrt(alpha_t)", "sqrt(alpha_t)")
def reverse_step(x_t, t, eps, z, alpha_bar):
    _, beta, before, now = parts(x_t, t, eps, alpha_bar)
    return (x_t - beta / now.sqrt() * eps) / alpha_bar[t].sqrt() + (before / now * beta).sqrt() * z


@mistake("x_t is overwritten", "changes its argument x_t")
def reverse_step(x_t, t, eps, z, alpha_bar):
    x_t.copy_(step_rightly(x_t, t, eps, z, alpha_bar))
    return x_t.clone()


@another_way("by the guessed image (eq. 7), without noise at t = 1 by an if")
def reverse_step(x_t, t, eps, z, alpha_bar):
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    x0 = (x_t - (1 - alpha_bar[t]) ** 0.5 * eps) / alpha_bar[t] ** 0.5
    to_x0 = alpha_bar[t - 1] ** 0.5 * (1 - alpha) / (1 - alpha_bar[t])
    to_xt = alpha**0.5 * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
    mean = to_x0 * x0 + to_xt * x_t
    if t == 1:
        return mean
    return mean + ((1 - alpha) * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])) ** 0.5 * z


# ----------------------------------------------------------------------------------------------------- 6. sample


def walk(model, shape, alpha_bar, times, generator, step, told=lambda times, k: times[k - 1] - 1, fresh=True):
    x = first = torch.randn(shape, generator=generator)
    for k in range(len(times), 0, -1):
        eps = model(x, torch.full((len(x),), told(times, k)))
        x = step(x, k, eps, torch.randn(shape, generator=generator) if fresh else first)
    return x


@mistake("jumps with the full chain's coefficients, which leave noise in the picture", "noise is left")
@torch.no_grad()
def sample(model, shape, alpha_bar, times, generator):
    return walk(
        model,
        shape,
        alpha_bar,
        times,
        generator,
        lambda x, k, eps, z: step_rightly(x, times[k - 1], eps, z, alpha_bar),
    )


@mistake("the network is told t", "must be told")
@torch.no_grad()
def sample(model, shape, alpha_bar, times, generator):
    chain = alpha_bar[[0, *times]]
    told = lambda times, k: min(times[k - 1], len(alpha_bar) - 2)  # an embedding table has no entry T
    return walk(
        model, shape, alpha_bar, times, generator, lambda x, k, eps, z: step_rightly(x, k, eps, z, chain), told
    )


@mistake("the network is told the step's number in the short chain", "must be told")
@torch.no_grad()
def sample(model, shape, alpha_bar, times, generator):
    chain = alpha_bar[[0, *times]]
    return walk(
        model,
        shape,
        alpha_bar,
        times,
        generator,
        lambda x, k, eps, z: step_rightly(x, k, eps, z, chain),
        lambda _, k: k - 1,
    )


@mistake("one z for all steps", "draw a new one for each step")
@torch.no_grad()
def sample(model, shape, alpha_bar, times, generator):
    chain = alpha_bar[[0, *times]]
    return walk(
        model, shape, alpha_bar, times, generator, lambda x, k, eps, z: step_rightly(x, k, eps, z, chain), fresh=False
    )


@mistake("no noise between the steps", "no noise was added")
@torch.no_grad()
def sample(model, shape, alpha_bar, times, generator):
    chain = alpha_bar[[0, *times]]
    return walk(model, shape, alpha_bar, times, generator, lambda x, k, eps, z: step_rightly(x, k, eps, 0 * z, chain))


@mistake("alpha_bar_0 left out of the short chain, so that the last step is missing", "must be told")
@torch.no_grad()
def sample(model, shape, alpha_bar, times, generator):
    chain = alpha_bar[times]
    x = torch.randn(shape, generator=generator)
    for k in range(len(times) - 1, 0, -1):
        eps = model(x, torch.full((len(x),), times[k] - 1))
        x = step_rightly(x, k, eps, torch.randn(shape, generator=generator), chain)
    return x


@another_way("written out, with no z drawn at the last step")
@torch.no_grad()
def sample(model, shape, alpha_bar, times, generator):
    x = torch.randn(shape, generator=generator)
    levels = [0, *times]
    for earlier, t in zip(levels[-2::-1], levels[:0:-1], strict=True):
        eps = model(x, torch.tensor([t - 1] * shape[0]))
        z = torch.randn(shape, generator=generator) if earlier > 0 else torch.zeros(shape)
        x = (
            step_rightly(x, 1, eps, z, alpha_bar[[earlier, t]])
            if earlier == 0
            else step_rightly(x, 2, eps, z, alpha_bar[[0, earlier, t]])
        )
    return x


# ---------------------------------------------------------------------------------------------- 7. training_step


def learn(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@mistake("decay the wrong way round", "wrong way round")
def training_step(net, average, optimizer, loss, decay):
    learn(optimizer, loss)
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
            mean.lerp_(weight, decay)


@mistake("averaged before the optimizer's step", "lags one step")
def training_step(net, average, optimizer, loss, decay):
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)
    learn(optimizer, loss)


@mistake("gradients pile up", "zero_grad")
def training_step(net, average, optimizer, loss, decay):
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)


@mistake("the average forgotten", "did not move")
def training_step(net, average, optimizer, loss, decay):
    learn(optimizer, loss)


@another_way("by state dict, gradients cleared afterwards as well")
def training_step(net, average, optimizer, loss, decay):
    learn(optimizer, loss)
    optimizer.zero_grad()
    old, new = average.state_dict(), net.state_dict()
    average.load_state_dict({name: decay * old[name] + (1 - decay) * new[name] for name in old})


# --------------------------------------------------------------------------------------------- 8. time_embedding


def angles(t, dim, scale=1.0):
    return scale * t[:, None] / 10_000 ** (torch.arange(dim // 2) / (dim // 2))


@mistake("cosines first", "cosines come first")
def time_embedding(t, dim):
    return torch.cat([angles(t, dim).cos(), angles(t, dim).sin()], 1)


@mistake("sines and cosines alternating", "alternate")
def time_embedding(t, dim):
    return torch.stack([angles(t, dim).sin(), angles(t, dim).cos()], 2).flatten(1)


@mistake("the exponent over the whole width", "two angles")
def time_embedding(t, dim):
    angle = t[:, None] / 10_000 ** (torch.arange(dim // 2) / dim)
    return torch.cat([angle.sin(), angle.cos()], 1)


@another_way("with exp and log")
def time_embedding(t, dim):
    freqs = torch.exp(-torch.log(torch.tensor(10_000.0)) * torch.arange(0, dim, 2) / dim)
    angle = t.float().outer(freqs)
    return torch.cat([torch.sin(angle), torch.cos(angle)], -1)
