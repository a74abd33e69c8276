# ruff: noqa: F811, E731 - the same function is got wrong again and again
"""Classic mistakes of chapter 1, each a small replacement of one function of the solutions.

Every one of these was made by somebody, and several were shipped in courses. `@mistake(what, says)`: the exercise it
belongs to is the function's name; `says` must stand in the message that the grader gives.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from common.grade.checks import load, load_chapter
from helpers.mistake_bank import Bank, per_image

COURSE = Path(__file__).resolve().parents[3]
solutions = load(COURSE / "01_ddpm_mnist/exercises/solutions.py", "solutions_with_mistakes")
add_noise_rightly, step_rightly = solutions.add_noise, solutions.reverse_step
chapter = load_chapter(COURSE / "01_ddpm_mnist/exercises")
bank = Bank()
mistake, another_way = bank.mistake, bank.another_way
MISTAKES, OTHER_WAYS = bank.MISTAKES, bank.OTHER_WAYS


stub = chapter.stub  # what learners get: programs with a fault, whose calls of other exercises the solutions answer
stub.add_noise, stub.guess_x0, stub.reverse_step = solutions.add_noise, solutions.guess_x0, solutions.reverse_step


# ------------------------------------------------------------------------------------------------------- 1. alpha_bars


def _products(betas: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)])


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


@mistake("no return", "is a `return` missing?")
def alpha_bars(betas):
    torch.cat([torch.ones(1), (1 - betas).cumprod(0)])


@mistake("a list of floats", "not a list of")
def alpha_bars(betas):
    products = [1.0]
    for beta in betas.tolist():
        products.append(products[-1] * (1 - beta))
    return products


@mistake("never below a thousandth", "is there a clamp")
def alpha_bars(betas):
    return torch.cat([torch.ones(1), (1 - betas).cumprod(0).clamp(min=1e-3)])


@mistake("a NumPy array", "not a NumPy array")
def alpha_bars(betas):
    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)]).numpy()


@mistake("in half precision", "the type should be torch.float32")
def alpha_bars(betas):
    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)]).half()


@another_way("in float64, in which nothing is lost")
def alpha_bars(betas):
    return torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas.double()).cumprod(0)])


bank.OTHER_WAYS.append(
    ("alpha_bars", "compiled by torch.jit, without a signature", torch.jit.trace(_products, torch.rand(3)))
)


# -------------------------------------------------------------------------------------------------------- 2. add_noise


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


@mistake("noise of its own", "no random numbers of your own")
def add_noise(x0, t, eps, alpha_bar):
    return add_noise_rightly(x0, t, torch.randn_like(x0), alpha_bar)


@mistake("cut off like an image", "you clipped the result")
def add_noise(x0, t, eps, alpha_bar):
    return add_noise_rightly(x0, t, eps, alpha_bar).clamp(-1, 1)


@mistake("the clean image noised to level 1", "at t = 0")
def add_noise(x0, t, eps, alpha_bar):
    return add_noise_rightly(x0, t.clamp(min=1), eps, alpha_bar)


@mistake("a list of images", "not a list of")
def add_noise(x0, t, eps, alpha_bar):
    return [
        alpha_bar[k] ** 0.5 * image + (1 - alpha_bar[k]) ** 0.5 * z for image, k, z in zip(x0, t, eps, strict=True)
    ]


@another_way("in double precision inside")
def add_noise(x0, t, eps, alpha_bar):
    a = per_image(alpha_bar.double()[t])
    return a.sqrt() * x0 + (1 - a).sqrt() * eps


# --------------------------------------------------------------------------------------------------------- 3. guess_x0


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


@mistake("no division by less than 0.1, of which only the long chain shows anything", "no less than 0.1")
def guess_x0(x_t, t, eps, alpha_bar):
    a = per_image(alpha_bar[t])
    return (x_t - (1 - a).sqrt() * eps) / a.sqrt().clamp(min=0.1)


@mistake("a hundredth added to what is divided by", "a clamp")
def guess_x0(x_t, t, eps, alpha_bar):
    a = per_image(alpha_bar[t])
    return (x_t - (1 - a).sqrt() * eps) / (a + 1e-5).sqrt()


@mistake("cut off at [-1, 1], as diffusers does in a sampler", "you clipped the result")
def guess_x0(x_t, t, eps, alpha_bar):
    a = per_image(alpha_bar[t])
    return ((x_t - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)


@mistake("no return", "is a `return` missing?")
def guess_x0(x_t, t, eps, alpha_bar):
    a = per_image(alpha_bar[t])
    (x_t - (1 - a).sqrt() * eps) / a.sqrt()


@another_way("a number that rounding hides is added to what is divided by")
def guess_x0(x_t, t, eps, alpha_bar):
    a = per_image(alpha_bar[t])
    return (x_t - (1 - a).sqrt() * eps) / (a.sqrt() + 1e-8)


# --------------------------------------------------------------------------------------------------------- 4. score_of


@mistake("the sign", "sign is wrong")
def score_of(eps, t, alpha_bar):
    return eps / per_image(1 - alpha_bar[t]).sqrt()


@mistake("the noise itself for the score", "standard deviation is missing")
def score_of(eps, t, alpha_bar):
    return -eps


@mistake("divided by the variance", "divided by the variance")
def score_of(eps, t, alpha_bar):
    return -eps / per_image(1 - alpha_bar[t])


@mistake("divided by the weight of the image", "weight of the image")
def score_of(eps, t, alpha_bar):
    return -eps / per_image(alpha_bar[t]).sqrt()


@mistake("multiplied where it divides", "where it divides")
def score_of(eps, t, alpha_bar):
    return -eps * per_image(1 - alpha_bar[t]).sqrt()


@mistake("levels along the columns, only where B == W", "(B, 1, 1, 1)")
def score_of(eps, t, alpha_bar):
    sd = (1 - alpha_bar[t]).sqrt()
    return -eps / (sd if eps.shape[-1] == len(t) else per_image(sd))


@another_way("one image after the other")
def score_of(eps, t, alpha_bar):
    return torch.stack([-noise * (1 - alpha_bar[k]) ** -0.5 for noise, k in zip(eps, t.tolist(), strict=True)])


@mistake("no division by less than 0.1, of which only the long chain shows anything", "no less than 0.1")
def score_of(eps, t, alpha_bar):
    return -eps / per_image(1 - alpha_bar[t]).sqrt().clamp(min=0.1)


@mistake("cut off like an image", "you clipped the result")
def score_of(eps, t, alpha_bar):
    return (-eps / per_image(1 - alpha_bar[t]).sqrt()).clamp(-1, 1)


# --------------------------------------------------------------------------------------------------- 5. time_embedding


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


@mistake("a list of rows", "not a list of")
def time_embedding(t, dim):
    return [torch.cat([angle.sin(), angle.cos()]) for angle in angles(t, dim)]


@mistake("no return", "is a `return` missing?")
def time_embedding(t, dim):
    torch.cat([angles(t, dim).sin(), angles(t, dim).cos()], 1)


# ---------------------------------------------------------------------------------------------- 6. add_class_embedding


@mistake("the class of the first image for all", "class of the first one")
def add_class_embedding(embedding, label, table):
    return embedding + table[label[0]]


@mistake("the class instead of the time", "were lost")
def add_class_embedding(embedding, label, table):
    return table[label]


@mistake("multiplied", "multiplied")
def add_class_embedding(embedding, label, table):
    return embedding * table[label]


@mistake("side by side, so that the network's width no longer fits", "side by side")
def add_class_embedding(embedding, label, table):
    return torch.cat([embedding, table[label]], 1)


@mistake("the table's numbers without its gradient: the classes never learn", "never learns")
def add_class_embedding(embedding, label, table):
    return embedding + table.detach()[label]


@mistake("no gradient at all", "no gradient flows")
@torch.no_grad()
def add_class_embedding(embedding, label, table):
    return embedding + table[label]


@another_way("with one-hot labels")
def add_class_embedding(embedding, label, table):
    return embedding + F.one_hot(label, len(table)).float() @ table


@another_way("with F.embedding")
def add_class_embedding(embedding, label, table):
    return F.embedding(label, table) + embedding


@mistake("the embedding of time cut off: it never learns", "no gradient reaches the embedding of time")
def add_class_embedding(embedding, label, table):
    return embedding.detach() + table[label]


@mistake("requires_grad_() afterwards, which is no graph", "does not bring the graph back")
def add_class_embedding(embedding, label, table):
    return (embedding + table[label]).detach().requires_grad_()


# ---------------------------------------------------------------------------------------------------- 7. training_loss


def to_images(pixels):
    return pixels / 127.5 - 1


@mistake("images in [0, 1]", "[0, 1]")
def training_loss(model, pixels, t, eps, alpha_bar):
    x_t = add_noise_rightly(pixels / 255, t, eps, alpha_bar)
    return F.mse_loss(model(x_t, t - 1), eps)


@mistake("the network is given t", "t - 1")
def training_loss(model, pixels, t, eps, alpha_bar):
    return F.mse_loss(model(add_noise_rightly(to_images(pixels), t, eps, alpha_bar), t), eps)


@mistake("the sum of the errors", "mean")
def training_loss(model, pixels, t, eps, alpha_bar):
    return F.mse_loss(model(add_noise_rightly(to_images(pixels), t, eps, alpha_bar), t - 1), eps, reduction="sum")


@mistake("compared with the image", "predicts the noise")
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


@mistake("the loss within no_grad, and requires_grad_() to silence backward()", "does not bring the graph back")
def training_loss(model, pixels, t, eps, alpha_bar):
    with torch.no_grad():
        loss = F.mse_loss(model(add_noise_rightly(to_images(pixels), t, eps, alpha_bar), t - 1), eps)
    return loss.requires_grad_()


@mistake("a new tensor made of the loss's number", "does not bring the graph back")
def training_loss(model, pixels, t, eps, alpha_bar):
    loss = F.mse_loss(model(add_noise_rightly(to_images(pixels), t, eps, alpha_bar), t - 1), eps)
    return torch.tensor(loss.item(), requires_grad=True)


@mistake("the network evaluated within no_grad, with a graph from elsewhere", "no gradient reaches the network")
def training_loss(model, pixels, t, eps, alpha_bar):
    x_t = add_noise_rightly(to_images(pixels), t, eps, alpha_bar).requires_grad_()
    with torch.no_grad():
        eps_predicted = model(x_t, t - 1)
    return F.mse_loss(eps_predicted + 0 * x_t, eps)


@mistake("half of the gradient", "its gradient with respect to the network is not")
def training_loss(model, pixels, t, eps, alpha_bar):
    error = model(add_noise_rightly(to_images(pixels), t, eps, alpha_bar), t - 1) - eps
    return (error * error.detach()).mean()


@mistake("a float", "not the number")
def training_loss(model, pixels, t, eps, alpha_bar):
    return F.mse_loss(model(add_noise_rightly(to_images(pixels), t, eps, alpha_bar), t - 1), eps).item()


@mistake("noise of its own", "no random numbers of your own")
def training_loss(model, pixels, t, eps, alpha_bar):
    eps = torch.randn_like(eps)
    return F.mse_loss(model(add_noise_rightly(to_images(pixels), t, eps, alpha_bar), t - 1), eps)


@mistake("noisy images cut off like images", "you clipped the result")
def training_loss(model, pixels, t, eps, alpha_bar):
    return F.mse_loss(model(add_noise_rightly(to_images(pixels), t, eps, alpha_bar).clamp(-1, 1), t - 1), eps)


# ---------------------------------------------------------------------------------------------------- 8. training_step


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


@mistake("biases not averaged", "that of the biases did not")
def training_step(net, average, optimizer, loss, decay):
    learn(optimizer, loss)
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
            if weight.dim() > 1:
                mean.lerp_(weight, 1 - decay)


@another_way("all parameters in one call")
def training_step(net, average, optimizer, loss, decay):
    learn(optimizer, loss)
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)


# ---------------------------------------------------------------------------------------------------- 9. langevin_step


@mistake("delta for the noise", "standard deviation sqrt(delta)")
def langevin_step(x, score, delta, z):
    return x + delta / 2 * score + delta * z


@mistake("delta for the score, as in books that write sqrt(2 delta) for the noise", "factor delta")
def langevin_step(x, score, delta, z):
    return x + delta * score + delta**0.5 * z


@mistake("down the density", "against the score")
def langevin_step(x, score, delta, z):
    return x - delta / 2 * score + delta**0.5 * z


@mistake("no noise: gradient ascent", "no noise")
def langevin_step(x, score, delta, z):
    return x + delta / 2 * score


@mistake("the change only", "add it to x")
def langevin_step(x, score, delta, z):
    return delta / 2 * score + delta**0.5 * z


@mistake("x is overwritten", "changes its argument x")
def langevin_step(x, score, delta, z):
    return x.add_(delta / 2 * score + delta**0.5 * z)


@another_way("by the variance of the noise")
def langevin_step(x, score, delta, z):
    sd = torch.tensor(delta).sqrt()
    return torch.addcmul(x, score, sd**2 / 2) + sd * z


@mistake("noise of its own", "no random numbers of your own")
def langevin_step(x, score, delta, z):
    return x + delta / 2 * score + delta**0.5 * torch.randn_like(x)


@mistake("points cut off like images", "you clipped the result")
def langevin_step(x, score, delta, z):
    return (x + delta / 2 * score + delta**0.5 * z).clamp(-1, 1)


# ---------------------------------------------------------------------------------------------------- 10. reverse_step


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


@mistake("divided by sqrt(alpha_bar_t) instead of sqrt(1 - beta_t)", "sqrt(1 - beta_t)")
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


@mistake("two mistakes at once: the mean is named first", "not divided by sqrt(1 - beta_t)")
def reverse_step(x_t, t, eps, z, alpha_bar):
    mean, beta, _, _ = parts(x_t, t, eps, alpha_bar)
    return mean * (1 - beta).sqrt() + beta.sqrt() * z


@mistake("noise of its own", "no random numbers of your own")
def reverse_step(x_t, t, eps, z, alpha_bar):
    return step_rightly(x_t, t, eps, torch.randn_like(x_t), alpha_bar)


@mistake("the predicted image cut off, as diffusers does by default", "you clipped the predicted x_0")
def reverse_step(x_t, t, eps, z, alpha_bar):
    now, before = alpha_bar[t], alpha_bar[t - 1]
    x0 = ((x_t - (1 - now).sqrt() * eps) / now.sqrt()).clamp(-1, 1)
    mean = (before.sqrt() * (1 - now / before) * x0 + (now / before).sqrt() * (1 - before) * x_t) / (1 - now)
    return mean + ((1 - before) / (1 - now) * (1 - now / before)).sqrt() * z


@mistake("the result cut off", "you clipped the result")
def reverse_step(x_t, t, eps, z, alpha_bar):
    return step_rightly(x_t, t, eps, z, alpha_bar).clamp(-1, 1)


@mistake("a smallest variance that the paper's schedule goes below", "a clamp")
def reverse_step(x_t, t, eps, z, alpha_bar):
    mean, beta, before, now = parts(x_t, t, eps, alpha_bar)
    return mean + (before / now * beta).clamp(min=1e-3).sqrt() * z if t > 1 else mean


# ---------------------------------------------------------------------------------------------------------- 11. sample


def walk(model, shape, alpha_bar, times, generator, step, level=lambda times, k: times[k - 1] - 1, fresh=True):
    x = first = torch.randn(shape, generator=generator)
    for k in range(len(times), 0, -1):
        eps = model(x, torch.full((len(x),), level(times, k)))
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


@mistake("the network is given t", "must be given")
@torch.no_grad()
def sample(model, shape, alpha_bar, times, generator):
    chain = alpha_bar[[0, *times]]
    level = lambda times, k: min(times[k - 1], len(alpha_bar) - 2)  # an embedding table has no entry T
    return walk(
        model, shape, alpha_bar, times, generator, lambda x, k, eps, z: step_rightly(x, k, eps, z, chain), level
    )


@mistake("the network is given the step's number in the short chain", "must be given")
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


@mistake("alpha_bar_0 left out of the short chain, so that the last step is missing", "must be given")
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


@mistake("no torch.no_grad(): the graph of all steps", "hold the graph of all steps")
def sample(model, shape, alpha_bar, times, generator):
    chain = alpha_bar[[0, *times]]
    return walk(model, shape, alpha_bar, times, generator, lambda x, k, eps, z: step_rightly(x, k, eps, z, chain))


@mistake("the caller's list of levels used up", "changes its argument times")
@torch.no_grad()
def sample(model, shape, alpha_bar, times, generator):
    x = torch.randn(shape, generator=generator)
    while times:
        t, chain = times.pop(), alpha_bar[[0, *times]]
        eps = model(x, torch.full((len(x),), t - 1))
        x = step_rightly(
            x, len(chain), eps, torch.randn(shape, generator=generator), torch.cat([chain, alpha_bar[[t]]])
        )
    return x


@mistake("the caller's list of levels turned round", "changes its argument times")
@torch.no_grad()
def sample(model, shape, alpha_bar, times, generator):
    times.reverse()
    return solutions.sample(model, shape, alpha_bar, times[::-1], generator)


@mistake("cut off at every step", "you clipped")
@torch.no_grad()
def sample(model, shape, alpha_bar, times, generator):
    chain = alpha_bar[[0, *times]]
    step = lambda x, k, eps, z: step_rightly(x, k, eps, z, chain).clamp(-1, 1)
    return walk(model, shape, alpha_bar, times, generator, step)


# ------------------------------------------------------------------------------------------------ 12. frechet_distance


def moments(a, b):
    return a.mean(0) - b.mean(0), a.T.cov(), b.T.cov()


def trace_of_root(A, B):
    return torch.linalg.eigvals(A @ B).real.clamp(min=0).sqrt().sum()


@mistake("the root of each entry", "square root")
def frechet_distance(a, b):
    shift, A, B = moments(a, b)
    return shift.square().sum() + (A + B - 2 * (A @ B).clamp(min=0).sqrt()).trace()


@mistake("variances only", "diagonals")
def frechet_distance(a, b):
    return (a.mean(0) - b.mean(0)).square().sum() + (a.std(0) - b.std(0)).square().sum()


@mistake("the factor 2", "factor 2")
def frechet_distance(a, b):
    shift, A, B = moments(a, b)
    return shift.square().sum() + A.trace() + B.trace() - trace_of_root(A, B)


@mistake("the length of the shift, not its square", "not squared")
def frechet_distance(a, b):
    shift, A, B = moments(a, b)
    return shift.norm() + A.trace() + B.trace() - 2 * trace_of_root(A, B)


@mistake("no means", "means are missing")
def frechet_distance(a, b):
    _, A, B = moments(a, b)
    return A.trace() + B.trace() - 2 * trace_of_root(A, B)


@mistake("means only", "covariances count")
def frechet_distance(a, b):
    return (a.mean(0) - b.mean(0)).square().sum()


@mistake("the root of the whole distance", "squared one")
def frechet_distance(a, b):
    shift, A, B = moments(a, b)
    return (shift.square().sum() + A.trace() + B.trace() - 2 * trace_of_root(A, B)).clamp(min=0).sqrt()


@mistake("covariances that divide by N", "N - 1")
def frechet_distance(a, b):
    shift, A, B = a.mean(0) - b.mean(0), a.T.cov(correction=0), b.T.cov(correction=0)
    return shift.square().sum() + A.trace() + B.trace() - 2 * trace_of_root(A, B)


@mistake("the root of eigenvalues that rounding has made negative", "not a number")
def frechet_distance(a, b):
    shift, A, B = moments(a, b)
    return shift.square().sum() + A.trace() + B.trace() - 2 * torch.linalg.eigvals(A @ B).real.sqrt().sum()


@another_way("a symmetric root of one covariance, as a float")
def frechet_distance(a, b):
    shift, A, B = moments(a, b)
    values, vectors = torch.linalg.eigh(A)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    inner = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0).sqrt().sum()
    return float(shift.square().sum() + A.trace() + B.trace() - 2 * inner)


@another_way("complex square roots, of which the imaginary parts are dropped")
def frechet_distance(a, b):
    shift, A, B = moments(a, b)
    return shift @ shift + (A + B).trace() - 2 * torch.linalg.eigvals(A @ B).sqrt().real.sum()


@another_way("as a NumPy number")
def frechet_distance(a, b):
    return solutions.frechet_distance(a, b).numpy()[()]


# ---------------------------------------------------------------------------------------------- 13. posterior_variance


def pairs(x0, t, alpha_bar, n, generator):
    now, before = alpha_bar[t], alpha_bar[t - 1]
    earlier = before.sqrt() * x0 + (1 - before).sqrt() * torch.randn(n, generator=generator)
    return earlier, (now / before).sqrt() * earlier + (1 - now / before).sqrt() * torch.randn(n, generator=generator)


def line(x, y):
    """The slope of y against x, and the residuals."""
    x, y = x - x.mean(), y - y.mean()
    slope = (x * y).sum() / (x * x).sum()
    return slope, y - slope * x


@mistake("x_t forgotten", "given x_0 alone")
def posterior_variance(x0, t, alpha_bar, n, generator):
    return pairs(x0, t, alpha_bar, n, generator)[0].var()


@mistake("the other way round: x_t given x_{t-1}", "given x_{t-1}")
def posterior_variance(x0, t, alpha_bar, n, generator):
    return line(*pairs(x0, t, alpha_bar, n, generator))[1].var()


@mistake("the variance of x_t", "variance of x_t given x_0")
def posterior_variance(x0, t, alpha_bar, n, generator):
    return pairs(x0, t, alpha_bar, n, generator)[1].var()


@mistake("the standard deviation", "standard deviation")
def posterior_variance(x0, t, alpha_bar, n, generator):
    return line(*pairs(x0, t, alpha_bar, n, generator)[::-1])[1].std()


@mistake("the formula", "estimate")
def posterior_variance(x0, t, alpha_bar, n, generator):
    now, before = alpha_bar[t], alpha_bar[t - 1]
    return (1 - before) / (1 - now) * (1 - now / before)


@mistake("random numbers of nobody's generator", "generator=generator")
def posterior_variance(x0, t, alpha_bar, n, generator):
    return line(*pairs(x0, t, alpha_bar, n, None)[::-1])[1].var()


@mistake("the difference of the two", "x_{t-1} - x_t")
def posterior_variance(x0, t, alpha_bar, n, generator):
    earlier, x_t = pairs(x0, t, alpha_bar, n, generator)
    return (earlier - x_t).var()


@another_way("pairs with x_t in a narrow window, as a float")
def posterior_variance(x0, t, alpha_bar, n, generator):
    earlier, x_t = pairs(x0, t, alpha_bar, n, generator)
    near = (x_t - x_t.mean()).abs() < 0.1 * x_t.std()
    return earlier[near].var().item()


@another_way("by the correlation")
def posterior_variance(x0, t, alpha_bar, n, generator):
    earlier, x_t = pairs(x0, t, alpha_bar, n, generator)
    return earlier.var() * (1 - torch.stack([earlier, x_t]).corrcoef()[0, 1] ** 2)


# ---------------------------------------------------------------------------------------------------- 14. tweedie_mean


def gradient(log_density, x_t):
    x = x_t.clone().requires_grad_()
    return torch.autograd.grad(log_density(x).sum(), x)[0]


@mistake("the sign", "sign of the score")
def tweedie_mean(log_density, x_t, alpha_bar_t):
    return (x_t - (1 - alpha_bar_t) * gradient(log_density, x_t)) / alpha_bar_t**0.5


@mistake("the standard deviation for the variance", "should be the variance")
def tweedie_mean(log_density, x_t, alpha_bar_t):
    return (x_t + (1 - alpha_bar_t) ** 0.5 * gradient(log_density, x_t)) / alpha_bar_t**0.5


@mistake("the mean of the shrunken point", "divide by sqrt(alpha_bar)")
def tweedie_mean(log_density, x_t, alpha_bar_t):
    return x_t + (1 - alpha_bar_t) * gradient(log_density, x_t)


@mistake("the gradient of the mean over the batch", "not of the mean")
def tweedie_mean(log_density, x_t, alpha_bar_t):
    x = x_t.clone().requires_grad_()
    log_density(x).mean().backward()
    return (x_t + (1 - alpha_bar_t) * x.grad) / alpha_bar_t**0.5


@mistake("the gradient of the density", "gradient of the density")
def tweedie_mean(log_density, x_t, alpha_bar_t):
    return (x_t + (1 - alpha_bar_t) * gradient(lambda x: log_density(x).exp(), x_t)) / alpha_bar_t**0.5


@mistake("the score alone", "that is the score")
def tweedie_mean(log_density, x_t, alpha_bar_t):
    return gradient(log_density, x_t)


@mistake("gradients switched on for the caller's points", "changes its argument x_t")
def tweedie_mean(log_density, x_t, alpha_bar_t):
    score = torch.autograd.grad(log_density(x_t.requires_grad_()).sum(), x_t)[0]
    return (x_t + (1 - alpha_bar_t) * score) / alpha_bar_t**0.5


@another_way("point by point, with a graph that is left attached")
def tweedie_mean(log_density, x_t, alpha_bar_t):
    points = [point[None].clone().requires_grad_() for point in x_t]
    scores = [torch.autograd.grad(log_density(point)[0], point)[0] for point in points]
    return torch.cat([(p + (1 - alpha_bar_t) * s) / alpha_bar_t**0.5 for p, s in zip(points, scores, strict=True)])


@mistake("no return", "is a `return` missing?")
def tweedie_mean(log_density, x_t, alpha_bar_t):
    (x_t + (1 - alpha_bar_t) * gradient(log_density, x_t)) / alpha_bar_t**0.5


# --------------------------------------------------------------------------------------------------- 15. fix_last_step


mistake("as it is given: noise at the last step", "after the last evaluation")(stub.fix_last_step)


def ancestral(model, shape, alpha_bar, generator, sd, steps=1):
    x = torch.randn(shape, generator=generator)
    for t in range(len(alpha_bar) - 1, steps - 1, -1):
        with torch.no_grad():
            eps = model(x, torch.full((len(x),), t - 1))
        mean = step_rightly(x, t, eps, torch.zeros(shape), alpha_bar)
        x = mean + sd(t, 1 - alpha_bar[t] / alpha_bar[t - 1]) * torch.randn(shape, generator=generator)
    return x


@mistake("no noise at the first step instead of the last", "after the last evaluation")
def fix_last_step(model, shape, alpha_bar, generator):
    T = len(alpha_bar) - 1
    return ancestral(model, shape, alpha_bar, generator, lambda t, beta: beta.sqrt() if t < T else 0)


@mistake("the last step left out", "last step is missing")
def fix_last_step(model, shape, alpha_bar, generator):
    return ancestral(model, shape, alpha_bar, generator, lambda t, beta: beta.sqrt(), steps=2)


@mistake("no noise at all", "no step adds noise")
def fix_last_step(model, shape, alpha_bar, generator):
    return ancestral(model, shape, alpha_bar, generator, lambda t, beta: 0)


@mistake("the variance of eq. 7 for all steps", "keep beta_t")
def fix_last_step(model, shape, alpha_bar, generator):
    def sd(t, beta):
        return ((1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta).sqrt()

    return ancestral(model, shape, alpha_bar, generator, sd)


@another_way("noise multiplied by whether a step follows")
def fix_last_step(model, shape, alpha_bar, generator):
    return ancestral(model, shape, alpha_bar, generator, lambda t, beta: beta.sqrt() * (t > 1))


# ------------------------------------------------------------------------------------------------------- 16. fix_range


mistake("as it is given: [0, 1] in, [-1, 1] out", "came back as")(stub.fix_range)


def round_trip(model, x0, t, eps, alpha_bar, back):
    x_t = add_noise_rightly(x0, t, eps, alpha_bar)
    return back(solutions.guess_x0(x_t, t, model(x_t, t - 1), alpha_bar)).round().to(torch.uint8)


@mistake("repaired at the wrong end: the network sees [0, 1]", "centred ")
def fix_range(model, pixels, t, eps, alpha_bar):
    return round_trip(model, pixels / 255, t, eps, alpha_bar, lambda x: 255 * x.clamp(0, 1))


@mistake("both ends changed: [-0.5, 0.5]", "-0.50")
def fix_range(model, pixels, t, eps, alpha_bar):
    return round_trip(model, pixels / 255 - 0.5, t, eps, alpha_bar, lambda x: 255 * (x + 0.5).clamp(0, 1))


@mistake("the way in is right, and the way out was changed too", "came back as")
def fix_range(model, pixels, t, eps, alpha_bar):
    return round_trip(model, pixels / 127.5 - 1, t, eps, alpha_bar, lambda x: 255 * x.clamp(0, 1))


@another_way("shift, then scale; rounded by adding a half")
def fix_range(model, pixels, t, eps, alpha_bar):
    x0 = 2 * (pixels.float() / 255 - 0.5)
    return round_trip(model, x0, t, eps, alpha_bar, lambda x: ((x + 1) / 2 * 255 + 0.5).floor().clamp(0, 255))


# ------------------------------------------------------------------------------------------------------ 17. fix_levels


mistake("as it is given: t off by one between training and sampling", "in sampling")(stub.fix_levels)


def train_and_sample(net, x0, shape, alpha_bar, generator, noised, seen, low=1, sampled=lambda level: level - 1):
    """noised, seen: the drawn t -> the index of alpha_bar, the level given to the network."""
    T = len(alpha_bar) - 1
    t = torch.randint(low, T + 1, (len(x0),), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    loss = F.mse_loss(net(add_noise_rightly(x0, noised(t), eps, alpha_bar), seen(t)), eps)
    x = torch.randn(shape, generator=generator)
    with torch.no_grad():
        for level in range(T, 0, -1):
            eps = net(x, torch.full((len(x),), sampled(level)))
            x = step_rightly(x, level, eps, torch.randn(shape, generator=generator), alpha_bar)
    return loss, x


@mistake("sampling adapted to training: levels 0 to T - 1 trained, 1 to T sampled", "levels 0 to")
def fix_levels(net, x0, shape, alpha_bar, generator):
    return train_and_sample(
        net, x0, shape, alpha_bar, generator, lambda t: t - 1, lambda t: t - 1, sampled=lambda level: level
    )


@mistake("the clean image avoided, the levels still off by one", "levels 0 to 3")
def fix_levels(net, x0, shape, alpha_bar, generator):
    return train_and_sample(net, x0, shape, alpha_bar, generator, lambda t: t, lambda t: t)


@mistake("off by one the other way", "in training, the network has the levels")
def fix_levels(net, x0, shape, alpha_bar, generator):
    return train_and_sample(net, x0, shape, alpha_bar, generator, lambda t: t, lambda t: (t + 1).clamp(max=len(t)))


@mistake("the noisiest level is never drawn", "in training, the network has the levels")
def fix_levels(net, x0, shape, alpha_bar, generator):
    T = len(alpha_bar) - 1
    t = torch.randint(1, T, (len(x0),), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    loss = F.mse_loss(net(add_noise_rightly(x0, t, eps, alpha_bar), t - 1), eps)
    x = torch.randn(shape, generator=generator)
    with torch.no_grad():
        for level in range(T, 0, -1):
            eps = net(x, torch.full((len(x),), level - 1))
            x = step_rightly(x, level, eps, torch.randn(shape, generator=generator), alpha_bar)
    return loss, x


@another_way("levels from 0, and the index of alpha_bar one higher, as a list")
def fix_levels(net, x0, shape, alpha_bar, generator):
    return list(train_and_sample(net, x0, shape, alpha_bar, generator, lambda t: t, lambda t: t - 1))


@mistake("the loss as a number", "no gradient flows")
def fix_levels(net, x0, shape, alpha_bar, generator):
    loss, x = train_and_sample(net, x0, shape, alpha_bar, generator, lambda t: t, lambda t: t - 1)
    return loss.detach(), x


# ------------------------------------------------------------------------------------------------ 18. fix_training_log


mistake("as it is given: the loss with its graph", "grad_fn")(stub.fix_training_log)


def train_with_log(net, optimizer, batches, alpha_bar, generator, number, smoothing=0.9):
    log, smooth = [], 0.0
    for x0 in batches:
        t = torch.randint(1, len(alpha_bar), (len(x0),), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        loss = F.mse_loss(net(add_noise_rightly(x0, t, eps, alpha_bar), t - 1), eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        smooth = smoothing * smooth + (1 - smoothing) * number(loss)
        log.append(smooth)
    return log


@mistake("detached too late: the entries are numbers, but smooth keeps the graphs", "inside of the loop")
def fix_training_log(net, optimizer, batches, alpha_bar, generator):
    return [entry.item() for entry in train_with_log(net, optimizer, batches, alpha_bar, generator, lambda loss: loss)]


@mistake("the plain loss instead of the smoothed one", "smoothed")
def fix_training_log(net, optimizer, batches, alpha_bar, generator):
    return train_with_log(net, optimizer, batches, alpha_bar, generator, torch.Tensor.item, smoothing=0.0)


@mistake("no training any more", "does not learn")
def fix_training_log(net, optimizer, batches, alpha_bar, generator):
    idle = torch.optim.SGD(net.parameters(), lr=0.0)
    return train_with_log(net, idle, batches, alpha_bar, generator, torch.Tensor.item)


@another_way("detached tensors")
def fix_training_log(net, optimizer, batches, alpha_bar, generator):
    return train_with_log(net, optimizer, batches, alpha_bar, generator, torch.Tensor.detach)


# --------------------------------------------------------------------------------------------- 19. fifteen_evaluations


def deterministic(model, x, alpha_bar, times):
    for t, earlier in zip(times, [*times[1:], 0], strict=True):
        now, before = alpha_bar[t], alpha_bar[earlier]
        eps = model(x, torch.full((len(x),), t - 1))
        x = (before / now).sqrt() * (x - (1 - now).sqrt() * eps) + (1 - before).sqrt() * eps
    return x


def spaced(power, n=15, T=1000):
    return [round(T * (k / n) ** power) for k in range(n, 0, -1)]


@mistake("fifteen reverse steps between equally spaced levels", "the error is 0.0")
def fifteen_evaluations(model, x_T, alpha_bar, generator):
    times = spaced(1)
    chain = alpha_bar[[0, *times[::-1]]]
    x = x_T
    for k, t in zip(range(15, 0, -1), times, strict=True):
        z = torch.randn(x.shape, generator=generator)
        x = step_rightly(x, k, model(x, torch.full((len(x),), t - 1)), z, chain)
    return x


@mistake("no new noise, but equally spaced levels", "the error is 0.0")
def fifteen_evaluations(model, x_T, alpha_bar, generator):
    return deterministic(model, x_T, alpha_bar, spaced(1))


@mistake("a hundred evaluations", "more than 15 times")
def fifteen_evaluations(model, x_T, alpha_bar, generator):
    return deterministic(model, x_T, alpha_bar, spaced(1, 100))


@mistake("one evaluation, and the mean of all blobs", "the error is 0.")
def fifteen_evaluations(model, x_T, alpha_bar, generator):
    return deterministic(model, x_T, alpha_bar, [1000])


@mistake("the last step left out, so that noise is left", "the error is 0.0")
def fifteen_evaluations(model, x_T, alpha_bar, generator):
    x, times = x_T, spaced(2)
    for t, earlier in zip(times[:-4], times[1:-3], strict=True):
        now, before = alpha_bar[t], alpha_bar[earlier]
        eps = model(x, torch.full((len(x),), t - 1))
        x = (before / now).sqrt() * (x - (1 - now).sqrt() * eps) + (1 - before).sqrt() * eps
    return x


@another_way("another spacing")
def fifteen_evaluations(model, x_T, alpha_bar, generator):
    return deterministic(model, x_T, alpha_bar, spaced(2.5))


@another_way("eight steps of second order")
def fifteen_evaluations(model, x_T, alpha_bar, generator):
    x, times = x_T, spaced(2, 8)
    ratio = ((1 - alpha_bar) / alpha_bar).sqrt()
    for t, earlier in zip(times, [*times[1:], 0], strict=True):
        eps = model(x, torch.full((len(x),), t - 1))
        y = x / alpha_bar[t].sqrt() + (ratio[earlier] - ratio[t]) * eps
        if earlier:
            ahead = model(y * alpha_bar[earlier].sqrt(), torch.full((len(x),), earlier - 1))
            y = y + (ratio[earlier] - ratio[t]) * (ahead - eps) / 2
        x = y * alpha_bar[earlier].sqrt()
    return x
