# ruff: noqa: F811 - the same function is got wrong again and again
"""Classic mistakes of chapter 2, each a small replacement of one function of the solutions.

`@mistake(what, says)`: the exercise it belongs to is the function's name;
`says` must stand in the message that the grader gives.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from common.grade.checks import load, load_chapter
from helpers.mistake_bank import Bank, per_image

COURSE = Path(__file__).resolve().parents[3]
solutions = load(COURSE / "02_cfg_pokemon/exercises/solutions.py", "solutions_with_mistakes")
given = load_chapter(COURSE / "02_cfg_pokemon/exercises").stub  # with the programs that hold a bug
dropout_rightly, attention_rightly = solutions.caption_dropout, solutions.cross_attention
rescale_rightly, accuracy_rightly = solutions.rescale, solutions.attribute_accuracy
bank = Bank()
mistake, another_way = bank.mistake, bank.another_way
MISTAKES, OTHER_WAYS = bank.MISTAKES, bank.OTHER_WAYS


# -------------------------------------------------------------------------------------------------- 1. caption_dropout


@mistake("one random number for the whole batch", "one random number decided for the whole batch")
def caption_dropout(text, empty, u, p):
    return empty.expand_as(text) if u[0] < p else text


@mistake("the wrong share: kept where it should be dropped", "u is above p")
def caption_dropout(text, empty, u, p):
    return torch.where((u > p)[:, None, None], empty, text)


@mistake("the images dropped from the batch instead of their captions", "the images stay in the batch")
def caption_dropout(text, empty, u, p):
    return text[u >= p]


@mistake("zeros instead of the empty caption", "not zeros")
def caption_dropout(text, empty, u, p):
    return text * (u >= p)[:, None, None]


@mistake("random numbers lined up with the numbers of a token, only where B == D", "lines up with the last axis")
def caption_dropout(text, empty, u, p):
    return torch.where(u < p, empty, text) if len(u) == text.shape[2] else dropout_rightly(text, empty, u, p)


@mistake("random numbers lined up with the tokens, only where B == M", "first token of every caption")
def caption_dropout(text, empty, u, p):
    return (
        torch.where((u < p)[:, None], empty, text) if len(u) == text.shape[1] else dropout_rightly(text, empty, u, p)
    )


@mistake("the batch that was lent is overwritten", "changes its argument text")
def caption_dropout(text, empty, u, p):
    text[u < p] = empty
    return text.clone()


@another_way("a copy, overwritten where captions are dropped")
def caption_dropout(text, empty, u, p):
    text = text.clone()
    text[u < p] = empty
    return text


@another_way("one caption after the other")
def caption_dropout(text, empty, u, p):
    return torch.stack([empty if number < p else caption for caption, number in zip(text, u.tolist(), strict=True)])


@mistake("captions that never learn", "no gradient flows")
@torch.no_grad()
def caption_dropout(text, empty, u, p):
    return dropout_rightly(text, empty, u, p)


@mistake("the empty caption cut off: it never learns", "no gradient reaches the empty caption")
def caption_dropout(text, empty, u, p):
    return dropout_rightly(text, empty.detach(), u, p)


@mistake("the batch overwritten where captions are dropped", "changes its argument text")
def caption_dropout(text, empty, u, p):
    text.data[u < p] = empty
    return text


# -------------------------------------------------------------------------------------------------- 2. negative_prompt


def or_empty(negatives):
    return [negative or "" for negative in negatives]


@mistake("the halves swapped", "halves are swapped")
def negative_prompt(encode, prompts, negatives):
    return encode(prompts + or_empty(negatives))


@mistake("the negative prompt written into the prompt", "joined with the prompt")
def negative_prompt(encode, prompts, negatives):
    joined = [
        f"{prompt}, no {negative}" if negative else prompt for prompt, negative in zip(prompts, negatives, strict=True)
    ]
    return encode([""] * len(prompts) + joined)


@mistake("empty, negative and prompt: three parts", "three captions for each image")
def negative_prompt(encode, prompts, negatives):
    return encode([""] * len(prompts) + or_empty(negatives) + prompts)


@mistake("None given to the text encoder", "encode was given None")
def negative_prompt(encode, prompts, negatives):
    return encode(negatives + prompts)


@mistake("None turned into the word None", "None became a word")
def negative_prompt(encode, prompts, negatives):
    return encode([str(negative) for negative in negatives] + prompts)


@mistake("pairs instead of halves", "the captions alternate")
def negative_prompt(encode, prompts, negatives):
    return encode([text for pair in zip(or_empty(negatives), prompts, strict=True) for text in pair])


@mistake("one negative prompt for all images", "used for all")
def negative_prompt(encode, prompts, negatives):
    return encode(or_empty(negatives)[:1] * len(prompts) + prompts)


@mistake("negative prompts forgotten", "were not used")
def negative_prompt(encode, prompts, negatives):
    return encode([""] * len(prompts) + prompts)


@mistake("two calls of the text encoder", "called once")
def negative_prompt(encode, prompts, negatives):
    return torch.cat([encode(or_empty(negatives)), encode(prompts)])


@another_way("encoded in another order, then put into this one")
def negative_prompt(encode, prompts, negatives):
    cond, uncond = encode([*prompts, *("" if negative is None else negative for negative in negatives)]).chunk(2)
    return torch.cat([uncond, cond])


@another_way("lists joined by a loop, given to encode as a tuple")
def negative_prompt(encode, prompts, negatives):
    return encode((*("" if negative is None else negative for negative in negatives), *prompts))


@mistake("the caller's list filled up and lengthened", "changes its argument negatives")
def negative_prompt(encode, prompts, negatives):
    captions = negatives
    for i, negative in enumerate(captions):
        captions[i] = negative or ""
    captions += prompts
    return encode(captions)


@mistake("the caller's None replaced by ''", "changes its argument negatives")
def negative_prompt(encode, prompts, negatives):
    for i in range(len(negatives)):
        negatives[i] = negatives[i] or ""
    return encode(negatives + prompts)


@mistake("the negative prompts put in front of the caller's prompts", "changes its argument prompts")
def negative_prompt(encode, prompts, negatives):
    for negative in reversed(negatives):
        prompts.insert(0, negative or "")
    return encode(prompts)


@mistake("no return", "is a `return` missing?")
def negative_prompt(encode, prompts, negatives):
    encode(or_empty(negatives) + prompts)


# ----------------------------------------------------------------------------------------------------------- 3. guided


def halves(model, x, t, context):
    return model(torch.cat([x, x]), torch.cat([t, t]), context).chunk(2)


@mistake("the sign", "sign is wrong")
def guided(model, x, t, context, w):
    uncond, cond = halves(model, x, t, context)
    return uncond - w * (cond - uncond)


@mistake("w written the other way", "Ho & Salimans' w")
def guided(model, x, t, context, w):
    uncond, cond = halves(model, x, t, context)
    return (1 + w) * cond - w * uncond


@mistake("the halves swapped", "halves are swapped")
def guided(model, x, t, context, w):
    cond, uncond = halves(model, x, t, context)
    return uncond + w * (cond - uncond)


@mistake("the unconditional answer not added", "add uncond")
def guided(model, x, t, context, w):
    uncond, cond = halves(model, x, t, context)
    return w * (cond - uncond)


@mistake("two calls", "called once")
def guided(model, x, t, context, w):
    uncond, cond = (model(x, t, text) for text in context.chunk(2))
    return uncond + w * (cond - uncond)


@mistake("images doubled one by one, so that they meet the wrong captions", "0 0 1 1")
def guided(model, x, t, context, w):
    uncond, cond = model(x.repeat_interleave(2, 0), torch.cat([t, t]), context).chunk(2)
    return uncond + w * (cond - uncond)


@mistake("times doubled one by one", "t should be doubled")
def guided(model, x, t, context, w):
    uncond, cond = model(torch.cat([x, x]), t.repeat_interleave(2), context).chunk(2)
    return uncond + w * (cond - uncond)


@mistake("times not doubled", "4 images need 4 times")
def guided(model, x, t, context, w):
    uncond, cond = model(torch.cat([x, x]), t, context).chunk(2)
    return uncond + w * (cond - uncond)


@another_way("a weighted sum of both, with the halves as an axis of their own")
def guided(model, x, t, context, w):
    answers = model(x.repeat(2, 1, 1, 1), t.repeat(2), context).unflatten(0, (2, -1))
    return (answers * torch.tensor([1 - w, w]).view(2, 1, 1, 1, 1)).sum(0)


@another_way("Ho & Salimans' formula, with w less one")
def guided(model, x, t, context, w):
    uncond, cond = halves(model, x, t, context)
    return (1 + (w - 1)) * cond - (w - 1) * uncond


@mistake("the guided prediction cut off at [-1, 1]", "you clipped the result")
def guided(model, x, t, context, w):
    return solutions.guided(model, x, t, context, w).clamp(-1, 1)


@another_way("in double precision, as a method of the tensor")
def guided(model, x, t, context, w):
    uncond, cond = model(torch.cat([x, x]), torch.cat([t, t]), context).double().chunk(2)
    return uncond.lerp(cond, w)


# ------------------------------------------------------------------------------------------------ 4. dynamic_threshold


def quantiles(x0, share):
    return per_image(x0.abs().flatten(1).quantile(share, dim=1))


@mistake("a quantile over the batch", "of the whole batch")
def dynamic_threshold(x0, share):
    s = x0.abs().quantile(share).clamp(min=1)
    return x0.clamp(-s, s) / s


@mistake("no division", "division by s is missing")
def dynamic_threshold(x0, share):
    s = quantiles(x0, share).clamp(min=1)
    return x0.clamp(-s, s)


@mistake("no cut", "without clipping")
def dynamic_threshold(x0, share):
    return x0 / quantiles(x0, share).clamp(min=1)


@mistake("thresholds below 1", "s is at least 1")
def dynamic_threshold(x0, share):
    s = quantiles(x0, share)
    return x0.clamp(-s, s) / s


@mistake("max for min", "not at most")
def dynamic_threshold(x0, share):
    s = quantiles(x0, share).clamp(max=1)
    return x0.clamp(-s, s) / s


@mistake("the quantile without the absolute value", "of |x0|")
def dynamic_threshold(x0, share):
    s = per_image(x0.flatten(1).quantile(share, dim=1)).clamp(min=1)
    return x0.clamp(-s, s) / s


@mistake("the largest value", "a quantile")
def dynamic_threshold(x0, share):
    s = x0.abs().amax((1, 2, 3), keepdim=True).clamp(min=1)
    return x0.clamp(-s, s) / s


@mistake("a threshold for each channel", "changes the colours")
def dynamic_threshold(x0, share):
    s = x0.abs().flatten(2).quantile(share, dim=2)[:, :, None, None].clamp(min=1)
    return x0.clamp(-s, s) / s


@mistake("plain clipping", "clipped at -1 and 1")
def dynamic_threshold(x0, share):
    return x0.clamp(-1, 1)


@another_way("image by image, sorting, and cutting off after the division")
def dynamic_threshold(x0, share):
    results = []
    for image in x0:
        values = image.abs().flatten().sort().values
        place = share * (len(values) - 1)
        low, high = values[math.floor(place)], values[math.ceil(place)]
        s = max(1.0, (low + (place - math.floor(place)) * (high - low)).item())
        results.append((image / s).clamp(-1, 1))
    return torch.stack(results)


@mistake("a largest threshold", "it has no upper limit")
def dynamic_threshold(x0, share):
    s = per_image(x0.abs().flatten(1).quantile(share, dim=1).clamp(1, 2))
    return x0.clamp(-s, s) / s


@mistake("a NumPy array", "not a NumPy array")
def dynamic_threshold(x0, share):
    return solutions.dynamic_threshold(x0, share).numpy()


# ---------------------------------------------------------------------------------------------------------- 5. rescale


def ratio(guided, cond, dims=(1, 2, 3)):
    return cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True)


@mistake("phi forgotten", "phi was forgotten")
def rescale(guided, cond, phi):
    return guided * ratio(guided, cond)


@mistake("phi the wrong way round", "wrong way round")
def rescale(guided, cond, phi):
    return rescale_rightly(guided, cond, 1 - phi)


@mistake("standard deviation of the whole batch", "of the whole batch")
def rescale(guided, cond, phi):
    return phi * guided * cond.std() / guided.std() + (1 - phi) * guided


@mistake("a strength for each channel", "over the channels, too")
def rescale(guided, cond, phi):
    if guided.shape[1] == 1:
        return rescale_rightly(guided, cond, phi)
    return phi * guided * ratio(guided, cond, (2, 3)) + (1 - phi) * guided


@mistake("the ratio upside down", "upside down")
def rescale(guided, cond, phi):
    return phi * guided / ratio(guided, cond) + (1 - phi) * guided


@mistake("cond rescaled", "you rescaled cond")
def rescale(guided, cond, phi):
    return phi * cond / ratio(guided, cond) + (1 - phi) * guided


@mistake("mixed with cond", "mixed with cond")
def rescale(guided, cond, phi):
    return phi * guided * ratio(guided, cond) + (1 - phi) * cond


@mistake("variances", "took variances")
def rescale(guided, cond, phi):
    return phi * guided * ratio(guided, cond) ** 2 + (1 - phi) * guided


@mistake("guided is overwritten", "changes its argument guided")
def rescale(guided, cond, phi):
    guided *= phi * ratio(guided, cond) + 1 - phi
    return guided.clone()


@another_way("one factor, from root mean squares about the mean")
def rescale(guided, cond, phi):
    def strength(y):
        return (y - y.mean((1, 2, 3), keepdim=True)).square().mean((1, 2, 3), keepdim=True).sqrt()

    return (1 + phi * (strength(cond) / strength(guided) - 1)) * guided


@mistake("a hundredth added to what is divided by", "a constant")
def rescale(guided, cond, phi):
    factor = per_image(cond.flatten(1).std(1) / (guided.flatten(1).std(1) + 1e-2))
    return phi * factor * guided + (1 - phi) * guided


@another_way("a number that rounding hides is added to what is divided by")
def rescale(guided, cond, phi):
    factor = per_image(cond.flatten(1).std(1) / (guided.flatten(1).std(1) + 1e-8))
    return phi * factor * guided + (1 - phi) * guided


# ----------------------------------------------------------------------------------------------- 6. attribute_accuracy


def counted(found, asked):
    """(k, n)"""
    return int((found == asked)[asked >= 0].sum()), int((asked >= 0).sum())


def wilson(share, n, z=1.96):
    middle, reach = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return share, (middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)


@mistake("what was not asked for counted as wrong", "as if it were wrong")
def attribute_accuracy(found, asked):
    return wilson((found == asked).float().mean().item(), found.numel())


@mistake("what was not asked for counted as right", "as if it were right")
def attribute_accuracy(found, asked):
    return wilson(((found == asked) | (asked < 0)).float().mean().item(), found.numel())


@mistake("the mean of each image's share", "mean of the shares of the images")
def attribute_accuracy(found, asked):
    each = ((found == asked) & (asked >= 0)).sum(1) / (asked >= 0).sum(1)
    return wilson(each.mean().item(), int((asked >= 0).sum()))


@mistake("the share of perfect images", "everything is right")
def attribute_accuracy(found, asked):
    perfect = ((found == asked) | (asked < 0)).all(1)
    return wilson(perfect.float().mean().item(), len(found))


@mistake("the plain interval, beyond 1", "plain interval, which reaches beyond 1")
def attribute_accuracy(found, asked):
    k, n = counted(found, asked)
    reach = 1.96 * math.sqrt(k / n * (1 - k / n) / n)
    return k / n, k / n - reach, k / n + reach


@mistake("the plain interval, cut off", "plain interval, cut off at 1")
def attribute_accuracy(found, asked):
    k, n = counted(found, asked)
    reach = 1.96 * math.sqrt(k / n * (1 - k / n) / n)
    return k / n, max(0.0, k / n - reach), min(1.0, k / n + reach)


@mistake("the interval of as many questions as pictures", "not of images")
def attribute_accuracy(found, asked):
    k, n = counted(found, asked)
    return wilson(k / n, len(found))


@mistake("Wilson's formula not divided", "divided by 1 + z^2/n")
def attribute_accuracy(found, asked):
    k, n = counted(found, asked)
    share, low, high = accuracy_rightly(found, asked)
    return share, low * (1 + 1.96**2 / n), high * (1 + 1.96**2 / n)


@another_way("the interval as the solutions of a quadratic equation: (p - k/n)^2 = z^2 p (1 - p) / n")
def attribute_accuracy(found, asked):
    n = k = 0
    for see, want in zip(found.flatten().tolist(), asked.flatten().tolist(), strict=True):
        n, k = n + (want != -1), k + (want != -1 and want == see)
    a, b, c = 1 + 1.96**2 / n, -2 * k / n - 1.96**2 / n, (k / n) ** 2
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return k / n, (-b - root) / (2 * a), (-b + root) / (2 * a)


@another_way("a list instead of a tuple")
def attribute_accuracy(found, asked):
    return list(accuracy_rightly(found, asked))


@mistake("the interval without the share", "three values were expected here, share, low and high, not two")
def attribute_accuracy(found, asked):
    return accuracy_rightly(found, asked)[1:]


@mistake("in percent", "this is in percent")
def attribute_accuracy(found, asked):
    return tuple(100 * value for value in accuracy_rightly(found, asked))


@mistake("rounded", "the share was rounded")
def attribute_accuracy(found, asked):
    return tuple(round(value, 2) for value in accuracy_rightly(found, asked))


@mistake("an interval of 90 %", "z is 1.96")
def attribute_accuracy(found, asked):
    k, n = counted(found, asked)
    middle, reach = k / n + 1.645**2 / (2 * n), 1.645 * math.sqrt(k / n * (1 - k / n) / n + 1.645**2 / (4 * n**2))
    return k / n, (middle - reach) / (1 + 1.645**2 / n), (middle + reach) / (1 + 1.645**2 / n)


@another_way("a tensor of three numbers")
def attribute_accuracy(found, asked):
    return torch.tensor(accuracy_rightly(found, asked), dtype=torch.float64)


@another_way("a generator of NumPy numbers")
def attribute_accuracy(found, asked):
    return (np.float32(value) for value in accuracy_rightly(found, asked))


@mistake("the value 0 taken for an open one", "0 is a value like all others")
def attribute_accuracy(found, asked):
    counts = asked > 0
    n, k = int(counts.sum()), int((counts & (found == asked)).sum())
    return wilson(k / n, n)


# ------------------------------------------------------------------------------------------------- 7. loss_guided_step


def guided_by(
    predict_eps, loss, x, now, then, strength, through=True, of_x=True, reduce=torch.sum, power=1.0, both=(1, 1)
):
    sigma, root = math.sqrt(1 - now), math.sqrt(now)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        eps = predict_eps(x if through else x.detach())
        x0 = (x - sigma * eps) / root
        (gradient,) = torch.autograd.grad(reduce(loss(x0)), x if of_x else x0)
    change = strength * sigma**power * gradient
    x0 = (x.detach() - sigma * (eps.detach() + both[0] * change)) / root
    return math.sqrt(then) * x0 + math.sqrt(1 - then) * (eps.detach() + both[1] * change)


@mistake("the sign", "the sign is wrong")
def loss_guided_step(*args):
    return guided_by(*args[:-1], -args[-1])


@mistake("the gradient with respect to x0", "with respect to x0")
def loss_guided_step(*args):
    return guided_by(*args, of_x=False)


@mistake("the network called with a detached x", "did not run through the network")
def loss_guided_step(*args):
    return guided_by(*args, through=False)


@mistake("the mean over the batch", "averaged over the batch")
def loss_guided_step(*args):
    return guided_by(*args, reduce=torch.mean)


@mistake("no sigma_t", "sigma_t is missing")
def loss_guided_step(*args):
    return guided_by(*args, power=0.0)


@mistake("the variance for the standard deviation", "sigma_t^2 stands before the gradient")
def loss_guided_step(*args):
    return guided_by(*args, power=2.0)


@mistake("eps_hat added back instead of eps_tilde", "the noise that is added back is not")
def loss_guided_step(*args):
    return guided_by(*args, both=(1, 0))


@mistake("x0_hat kept instead of x0_tilde", "but x0 is not")
def loss_guided_step(*args):
    return guided_by(*args, both=(0, 1))


@mistake("the loss forgotten", "the gradient was not used")
def loss_guided_step(*args):
    return guided_by(*args, both=(0, 0))


@mistake("the graph of the step kept", "still holds the graph")
def loss_guided_step(predict_eps, loss, x, now, then, strength):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        eps = predict_eps(x)
        (gradient,) = torch.autograd.grad(loss((x - (1 - now) ** 0.5 * eps) / now**0.5).sum(), x, retain_graph=True)
        eps = eps + strength * (1 - now) ** 0.5 * gradient
        return then**0.5 * (x - (1 - now) ** 0.5 * eps) / now**0.5 + (1 - then) ** 0.5 * eps


@mistake("gradients switched on for the x that was lent", "requires_grad_() stays set")
def loss_guided_step(predict_eps, loss, x, now, then, strength):
    x.requires_grad_()
    return guided_by(predict_eps, loss, x, now, then, strength)


@mistake("no gradient under torch.no_grad", "torch.enable_grad()")
def loss_guided_step(predict_eps, loss, x, now, then, strength):
    x = x.detach().requires_grad_()
    eps = predict_eps(x)
    (gradient,) = torch.autograd.grad(loss((x - (1 - now) ** 0.5 * eps) / now**0.5).sum(), x)
    eps = (eps + strength * (1 - now) ** 0.5 * gradient).detach()
    return (then**0.5 * (x - (1 - now) ** 0.5 * eps) / now**0.5 + (1 - then) ** 0.5 * eps).detach()


@another_way("backward instead of grad, and one image after the other")
def loss_guided_step(predict_eps, loss, x, now, then, strength):
    results = []
    for image in x.detach().split(1):
        leaf = image.clone().requires_grad_()
        with torch.enable_grad():
            eps = predict_eps(leaf)
            loss((leaf - (1 - now) ** 0.5 * eps) / now**0.5).sum().backward()
        eps = eps.detach() + strength * (1 - now) ** 0.5 * leaf.grad
        results.append((then / now) ** 0.5 * (image - (1 - now) ** 0.5 * eps) + (1 - then) ** 0.5 * eps)
    return torch.cat(results)


@mistake("the guided image cut off at [-1, 1]", "you clipped the guided x0")
def loss_guided_step(predict_eps, loss, x, now, then, strength):
    eps = (guided_by(predict_eps, loss, x, now, 0.0, strength)).detach()  # at alpha_bar = 0 only the noise is left
    x0 = ((x - (1 - now) ** 0.5 * eps) / now**0.5).clamp(-1, 1)
    return then**0.5 * x0 + (1 - then) ** 0.5 * eps


# -------------------------------------------------------------------------------------------------- 8. cross_attention


def split(y, heads):
    return y.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(x, text, W_q, W_k, W_v, heads, scale=None, dim=-1, split=split):
    q, k, v = (split(y, heads) for y in (x @ W_q.T, text @ W_k.T, text @ W_v.T))
    attention = (q @ k.mT / (scale or math.sqrt(q.shape[-1]))).softmax(dim)
    return (attention @ v).transpose(1, 2).flatten(2)


@mistake("no division by sqrt(d)", "sqrt(d) is missing")
def cross_attention(*args):
    return attend(*args, scale=1)


@mistake("division by d", "not by d")
def cross_attention(x, text, W_q, W_k, W_v, heads):
    return attend(x, text, W_q, W_k, W_v, heads, scale=x.shape[-1] / heads)


@mistake("division by sqrt(C), as if there were one head", "divided by sqrt(C)")
def cross_attention(x, *args):
    return attend(x, *args, scale=math.sqrt(x.shape[-1]))


@mistake("softmax over the pixels", "softmax runs over the pixels")
def cross_attention(*args):
    return attend(*args, dim=-2)


@mistake("heads cut by a bare view", "a bare view mixes the pixels up")
def cross_attention(x, text, W_q, W_k, W_v, heads):
    d = x.shape[-1] // heads
    q, k, v = (y.reshape(len(y), heads, -1, d) for y in (x @ W_q.T, text @ W_k.T, text @ W_v.T))
    return ((q @ k.mT / math.sqrt(d)).softmax(-1) @ v).reshape(x.shape)


@mistake("every other column for each head", "every other column")
def cross_attention(x, text, W_q, W_k, W_v, heads):
    q, k, v = (y.unflatten(-1, (-1, heads)).movedim(-1, 1) for y in (x @ W_q.T, text @ W_k.T, text @ W_v.T))
    return ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v).movedim(1, -1).flatten(2)


@mistake("heads not moved back before they are joined", "must be moved back")
def cross_attention(x, text, W_q, W_k, W_v, heads):
    return split(attention_rightly(x, text, W_q, W_k, W_v, heads), heads).reshape(x.shape)


@mistake("one head only", "one head")
def cross_attention(x, text, W_q, W_k, W_v, heads):
    return attend(x, text, W_q, W_k, W_v, 1)


@mistake("keys and values swapped", "K and V are swapped")
def cross_attention(x, text, W_q, W_k, W_v, heads):
    return attend(x, text, W_q, W_v, W_k, heads)


@mistake("the weights transposed where that is possible", "W_q is kept as (out, in)")
def cross_attention(x, text, W_q, W_k, W_v, heads):
    return attend(x, text, W_q.T, W_k, W_v, heads)


@another_way("PyTorch's own attention")
def cross_attention(x, text, W_q, W_k, W_v, heads):
    q, k, v = (split(F.linear(y, W), heads) for y, W in ((x, W_q), (text, W_k), (text, W_v)))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@another_way("head by head, with slices of the weights and an exponential of one's own")
def cross_attention(x, text, W_q, W_k, W_v, heads):
    d, results = x.shape[-1] // heads, []
    for h in range(heads):
        q, k, v = (y @ W[h * d : (h + 1) * d].T for y, W in ((x, W_q), (text, W_k), (text, W_v)))
        scores = torch.einsum("bnd,bmd->bnm", q, k) / d**0.5
        weights = (scores - scores.amax(2, keepdim=True)).exp()
        results.append(weights / weights.sum(2, keepdim=True) @ v)
    return torch.cat(results, dim=2)


@mistake("a layer that never learns", "no gradient flows")
@torch.no_grad()
def cross_attention(*args):
    return attention_rightly(*args)


@mistake("the text cut off, so that its encoder never learns", "no gradient reaches the text")
def cross_attention(x, text, *args):
    return attention_rightly(x, text.detach(), *args)


@mistake("the attention cut off, so that queries and keys never learn", "no gradient reaches")
def cross_attention(x, text, W_q, W_k, W_v, heads):
    return attention_rightly(x.detach(), text, W_q.detach(), W_k.detach(), W_v, heads)


@mistake("the keys' share of the text's gradient missing", "its gradient with respect to the text is not")
def cross_attention(x, text, W_q, W_k, W_v, heads):
    q, k, v = (split(y @ W.T, heads) for y, W in ((x, W_q), (text.detach(), W_k), (text, W_v)))
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


@mistake("exponentials that overflow", "overflows in float32")
def cross_attention(x, text, W_q, W_k, W_v, heads):
    q, k, v = (split(y @ W.T, heads) for y, W in ((x, W_q), (text, W_k), (text, W_v)))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).exp()
    return (weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2)


@mistake("scores limited so that exponentials do not overflow", "are the scores limited?")
def cross_attention(x, text, W_q, W_k, W_v, heads):
    q, k, v = (split(y @ W.T, heads) for y, W in ((x, W_q), (text, W_k), (text, W_v)))
    scores = (q @ k.mT / q.shape[-1] ** 0.5).clamp(-40, 40)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


# -------------------------------------------------------------------------------------------------- 9. tilted_gaussian


def from_precision(precision, shift):
    return shift / precision, precision**-0.5


@mistake("the mean multiplied by w, as for Gaussians of equal width", "N(w m, s^2)")
def tilted_gaussian(m, s, w):
    return w * m, s if w else 1.0


@mistake("p(c | x) taken for p(x | c)", "did not divide by p(x)")
def tilted_gaussian(m, s, w):
    return from_precision(1 + w / s**2, w * m / s**2)


@mistake("p(x) forgotten", "p(x)^(1 - w) is missing")
def tilted_gaussian(m, s, w):
    return from_precision(w / s**2, w * m / s**2) if w else (0.0, 1.0)


@mistake("the variance returned", "this is the variance")
def tilted_gaussian(m, s, w):
    mean, std = from_precision(1 - w + w / s**2, w * m / s**2)
    return mean, std**2


@mistake("one number", "two values were expected here")
def tilted_gaussian(m, s, w):
    return w * m / (s**2 * (1 - w) + w)


@another_way("by numerical integration, as a list")
def tilted_gaussian(m, s, w):
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    weight = ((w - 1) * x.square() / 2 - w * ((x - m) / s).square() / 2).exp()
    mean = (weight * x).sum() / weight.sum()
    return [mean.item(), ((weight * (x - mean).square()).sum() / weight.sum()).sqrt().item()]


@mistake("no return", "is a `return` missing?")
def tilted_gaussian(m, s, w):
    solutions.tilted_gaussian(m, s, w)


@another_way("two tensors")
def tilted_gaussian(m, s, w):
    mean, std = solutions.tilted_gaussian(m, s, w)
    return torch.tensor(mean), torch.tensor([std])


# ---------------------------------------------------------------------------------------------- 10. fix_training_batch


mistake("the program as it is given", "one random number decided for the whole batch")(given.fix_training_batch)


def with_captions(drop):
    """A training batch in which drop(text, empty, p, rng) gives the captions."""

    def fix_training_batch(model, x0, text, empty, alpha_bar, p, rng):
        t = torch.randint(1, len(alpha_bar), (len(x0),), generator=rng)
        eps = torch.randn(x0.shape, generator=rng)
        a = per_image(alpha_bar[t])
        return (model(a.sqrt() * x0 + (1 - a).sqrt() * eps, t, drop(text, empty, p, rng)) - eps).square().mean()

    return fix_training_batch


@mistake("the wrong share", "probability 1 - p")
@with_captions
def fix_training_batch(text, empty, p, rng):
    return torch.where((torch.rand(len(text), generator=rng) > p)[:, None, None], empty, text)


@mistake("each token dropped by itself", "neither the caption of the image nor the empty caption")
@with_captions
def fix_training_batch(text, empty, p, rng):
    return torch.where((torch.rand(text.shape[:2], generator=rng) < p)[:, :, None], empty, text)


@mistake("the first captions of each batch, always", "some places in the batch")
@with_captions
def fix_training_batch(text, empty, p, rng):
    drop = torch.arange(len(text)) + torch.rand((), generator=rng) < p * len(text)
    return torch.where(drop[:, None, None], empty, text)


@mistake(
    "captions dropped only in batches that a first random number picks", "of the captions were dropped instead of"
)
@with_captions
def fix_training_batch(text, empty, p, rng):
    if torch.rand((), generator=rng) < p:
        return torch.where((torch.rand(len(text), generator=rng) < p)[:, None, None], empty, text)
    return text


@mistake("zeros for the empty caption", "neither the caption of the image nor the empty caption")
@with_captions
def fix_training_batch(text, empty, p, rng):
    return text * (torch.rand(len(text), 1, 1, generator=rng) >= p)


@mistake("the error measured against the image", "no longer the mean squared error")
def fix_training_batch(model, x0, text, empty, alpha_bar, p, rng):
    text = solutions.caption_dropout(text, empty, torch.rand(len(text), generator=rng), p)
    t = torch.randint(1, len(alpha_bar), (len(x0),), generator=rng)
    a, eps = per_image(alpha_bar[t]), torch.randn(x0.shape, generator=rng)
    return (model(a.sqrt() * x0 + (1 - a).sqrt() * eps, t, text) - x0).square().mean()


@another_way("a loop over the captions, before everything else")
def fix_training_batch(model, x0, text, empty, alpha_bar, p, rng):
    text = torch.stack([empty if torch.rand((), generator=rng) < p else caption for caption in text])
    return with_captions(lambda *_: text)(model, x0, text, empty, alpha_bar, p, rng)


@mistake("always the same number of captions", "not dropped independently")
@with_captions
def fix_training_batch(text, empty, p, rng):
    many = p * len(text)
    n = int(many) + int(torch.rand((), generator=rng) < many - int(many))
    drop = torch.randperm(len(text), generator=rng) < n
    return torch.where(drop[:, None, None], empty, text)


@mistake("the loss as a number", "no gradient flows")
def fix_training_batch(model, x0, text, empty, alpha_bar, p, rng):
    with torch.no_grad():
        return solutions.fix_training_batch(model, x0, text, empty, alpha_bar, p, rng)


# --------------------------------------------------------------------------------------------- 11. fix_guided_sampling


mistake("the program as it is given", "halves are still swapped")(given.fix_guided_sampling)


def sampler(mix):
    """The sampler with mix(uncond, cond, w) in the place of guidance."""

    def fix_guided_sampling(model, x, text, empty, w, times, alpha_bar):
        root, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        for t, s in zip(times[:-1], times[1:], strict=True):
            level = torch.full((len(x),), t)
            eps = mix(model(x, level, empty.expand_as(text)), model(x, level, text), w)
            x = root[s] * (x - sigma[t] * eps) / root[t] + sigma[s] * eps
        return x

    return fix_guided_sampling


@mistake("the sign", "the sign is wrong")
@sampler
def fix_guided_sampling(uncond, cond, w):
    return uncond - w * (cond - uncond)


@mistake("halves and formula both turned, but w counted from 0", "one more than w")
@sampler
def fix_guided_sampling(uncond, cond, w):
    return cond + w * (cond - uncond)


@mistake("no guidance", "whatever w is")
@sampler
def fix_guided_sampling(uncond, cond, w):
    return cond


@mistake("the difference alone", "add uncond")
@sampler
def fix_guided_sampling(uncond, cond, w):
    return w * (cond - uncond)


@another_way("two calls instead of one")
@sampler
def fix_guided_sampling(uncond, cond, w):
    return (1 - w) * uncond + w * cond


@another_way("the halves of the context turned round instead")
def fix_guided_sampling(model, x, text, empty, w, times, alpha_bar):
    def turned(x, t, context):
        return model(x, t, torch.cat(context.chunk(2)[::-1]))

    return given.fix_guided_sampling(turned, x, text, empty, w, times, alpha_bar)


@mistake("images cut off at every step", "you clipped x")
def fix_guided_sampling(model, x, text, empty, w, times, alpha_bar):
    for t, s in zip(times[:-1], times[1:], strict=True):
        x = solutions.fix_guided_sampling(model, x, text, empty, w, [t, s], alpha_bar).clamp(-1, 1)
    return x


# -------------------------------------------------------------------------------------------- 12. fix_masked_attention


mistake("the program as it is given", "a score of 0 is not a share of 0")(given.fix_masked_attention)


def scores_of(q, k):
    return q @ k.mT / math.sqrt(q.shape[-1])


@mistake("padding removed after the softmax", "no longer sum to 1")
def fix_masked_attention(q, k, v, mask):
    return (scores_of(q, k).softmax(-1) * mask[:, None, None]) @ v


@mistake("the mask the wrong way round", "wrong way round")
def fix_masked_attention(q, k, v, mask):
    if mask.all():
        return scores_of(q, k).softmax(-1) @ v
    return scores_of(q, k).masked_fill(mask[:, None, None], -1e9).softmax(-1) @ v


@mistake("the mask added as ones and zeros", "added as 1 and 0")
def fix_masked_attention(q, k, v, mask):
    return (scores_of(q, k) + mask[:, None, None]).softmax(-1) @ v


@mistake("no mask", "padding still gets attention")
def fix_masked_attention(q, k, v, mask):
    return scores_of(q, k).softmax(-1) @ v


@mistake("values of padding set to zero", "no longer sum to 1")
def fix_masked_attention(q, k, v, mask):
    return scores_of(q, k).softmax(-1) @ (v * mask[:, None, :, None])


@mistake("the first mask for all", "first caption was used for all")
def fix_masked_attention(q, k, v, mask):
    return scores_of(q, k).masked_fill(~mask[:1, None, None], -math.inf).softmax(-1) @ v


@another_way("PyTorch's own attention")
def fix_masked_attention(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])


@another_way("padding removed after the exponential, and then the division")
def fix_masked_attention(q, k, v, mask):
    scores = scores_of(q, k)
    weights = (scores - scores.amax(-1, keepdim=True)).exp() * mask[:, None, None]
    return weights / weights.sum(-1, keepdim=True) @ v


@mistake("a score of -100 for padding, which is not always the smallest", "all -150 here")
def fix_masked_attention(q, k, v, mask):
    return scores_of(q, k).masked_fill(~mask[:, None, None], -100).softmax(-1) @ v


@another_way("the smallest number of float32")
def fix_masked_attention(q, k, v, mask):
    scores = scores_of(q, k)
    return scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min).softmax(-1) @ v


# -------------------------------------------------------------------------------------------------- 13. guidance_scale


@mistake("no guidance", "too few samples lie in the blob")
def guidance_scale(noise):
    return 1.0


@mistake("a constant scale, too small", "too few samples lie in the blob")
def guidance_scale(noise):
    return 2.0


@mistake("a constant scale, too large", "too much alike")
def guidance_scale(noise):
    return 4.0


@mistake("guidance where there is most noise", "too few samples lie in the blob")
def guidance_scale(noise):
    return 4.0 if noise > 4 else 1.0


@mistake("guidance where there is little noise", "goal")
def guidance_scale(noise):
    return 6.0 if noise < 1 else 1.0


@another_way("a smooth bump over the logarithm of the noise, as a tensor")
def guidance_scale(noise):
    return torch.tensor(1.5 + 7 * math.exp(-((math.log(noise / 2.6) / 0.5) ** 2)))
