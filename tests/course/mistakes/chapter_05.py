# ruff: noqa: F811 - the same function is got wrong again and again
"""Classic mistakes of chapter 5, each a small replacement of one function of the solutions.

`@mistake(what, says)`: the exercise it belongs to is the function's name;
`says` must stand in the message that the grader gives.
"""

import math
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F

from common.grade.checks import load
from helpers.mistake_bank import Bank

COURSE = Path(__file__).resolve().parents[3]
solutions = load(COURSE / "05_finetune_diffusers/exercises/solutions.py", "solutions_with_mistakes")
adapter_rightly, merge_rightly, write = solutions.new_adapter, solutions.merge_adapters, solutions.write
loss_rightly, weigh_rightly, controlled_rightly, inpaint_rightly = (
    solutions.prior_loss,
    solutions.weigh_word,
    solutions.controlled,
    solutions.inpaint,
)
bank = Bank()
mistake, another_way = bank.mistake, bank.another_way
MISTAKES, OTHER_WAYS = bank.MISTAKES, bank.OTHER_WAYS


# ------------------------------------------------------------------------------------------------ 1. new_adapter


def both(A, B):
    return A.requires_grad_(), B.requires_grad_()


@mistake("both zero", "would never learn")
def new_adapter(W, rank, rng):
    return both(torch.zeros(rank, W.shape[1]), torch.zeros(W.shape[0], rank))


@mistake("both random", "B A is not zero")
def new_adapter(W, rank, rng):
    return both(
        torch.randn(rank, W.shape[1], generator=rng) / rank, torch.randn(W.shape[0], rank, generator=rng) / rank
    )


@mistake("A zero and B random", "not the other way round")
def new_adapter(W, rank, rng):
    return both(torch.zeros(rank, W.shape[1]), torch.randn(W.shape[0], rank, generator=rng) / rank)


@mistake("A not divided by the rank", "the standard deviation of A is 1;")
def new_adapter(W, rank, rng):
    return both(torch.randn(rank, W.shape[1], generator=rng), torch.zeros(W.shape[0], rank))


@mistake("A divided by the root of the rank", "1 / sqrt(r)")
def new_adapter(W, rank, rng):
    return both(torch.randn(rank, W.shape[1], generator=rng) / rank**0.5, torch.zeros(W.shape[0], rank))


@mistake("numbers between 0 and 1", "torch.randn, not torch.rand")
def new_adapter(W, rank, rng):
    return both(torch.rand(rank, W.shape[1], generator=rng) / rank, torch.zeros(W.shape[0], rank))


@mistake("in and out swapped", "should have the shape (r, in)")
def new_adapter(W, rank, rng):
    return adapter_rightly(W.T, rank, rng)


@mistake("A and B swapped", "should have the shape (r, in)")
def new_adapter(W, rank, rng):
    return adapter_rightly(W, rank, rng)[::-1]


@mistake("stored as column vectors", "should have the shape (r, in)")
def new_adapter(W, rank, rng):
    A, B = (part.detach().T.contiguous() for part in adapter_rightly(W, rank, rng))
    return both(A, B)


@mistake("only B is trained", "both A and B are trained")
def new_adapter(W, rank, rng):
    A, B = adapter_rightly(W, rank, rng)
    return A.detach(), B


@mistake("the gradient required before the division", "should be leaves")
def new_adapter(W, rank, rng):
    A = torch.randn(rank, W.shape[1], generator=rng, requires_grad=True)
    return A / rank, torch.zeros(W.shape[0], rank, requires_grad=True)


@mistake("drawn from the global generator", "the same seed gave two adapters")
def new_adapter(W, rank, rng):
    return both(torch.randn(rank, W.shape[1]) / rank, torch.zeros(W.shape[0], rank))


@mistake("a generator of one's own", "two seeds gave the same adapter")
def new_adapter(W, rank, rng):
    return adapter_rightly(W, rank, torch.Generator().manual_seed(0))


@mistake("the global generator seeded on the way", "the global generator")
def new_adapter(W, rank, rng):
    torch.manual_seed(0)
    return adapter_rightly(W, rank, rng)


@mistake("the uniform numbers of peft's default", "that of the uniform numbers")
def new_adapter(W, rank, rng):
    bound = W.shape[1] ** -0.5
    return both((2 * torch.rand(rank, W.shape[1], generator=rng) - 1) * bound, torch.zeros(W.shape[0], rank))


@another_way("as modules' parameters, initialised in place")
def new_adapter(W, rank, rng):
    A, B = (torch.nn.Parameter(torch.empty(shape)) for shape in ((rank, W.shape[1]), (W.shape[0], rank)))
    torch.nn.init.normal_(A, std=1 / rank, generator=rng)
    torch.nn.init.zeros_(B)
    return A, B


# --------------------------------------------------------------------------------------------- 2. merge_adapters


def added(W, adapters, scales, factor=lambda alpha, r: alpha / r, product=lambda A, B: B @ A):
    for (A, B, alpha), scale in zip(adapters, scales, strict=True):
        W = W + scale * factor(alpha, len(A)) * product(A, B)
    return W


@mistake("alpha alone", "alpha is not divided by the rank")
def merge_adapters(W, adapters, scales):
    return added(W, adapters, scales, lambda alpha, r: alpha)


@mistake("neither alpha nor rank", "alpha / r is missing")
def merge_adapters(W, adapters, scales):
    return added(W, adapters, scales, lambda alpha, r: 1)


@mistake("the root of the rank", "LoRA has 1 / r")
def merge_adapters(W, adapters, scales):
    return added(W, adapters, scales, lambda alpha, r: alpha / r**0.5)


@mistake("the rank squared", "by the rank twice")
def merge_adapters(W, adapters, scales):
    return added(W, adapters, scales, lambda alpha, r: alpha / r**2)


@mistake("the rank of the first adapter for all", "the second at 5")
def merge_adapters(W, adapters, scales):
    return added(W, adapters, scales, lambda alpha, r: alpha / len(adapters[0][0]))


@mistake("the rank read off B's rows", "the rank is 1 here")
def merge_adapters(W, adapters, scales):
    for (A, B, alpha), scale in zip(adapters, scales, strict=True):
        W = W + scale * alpha / len(B) * B @ A
    return W


@mistake("A B instead of B A", "A B")
def merge_adapters(W, adapters, scales):
    def product(A, B):
        return A @ B if A.shape[0] == B.shape[0] == A.shape[1] else B @ A

    return added(W, adapters, scales, product=product)


@mistake("the scales left out", "the scale is missing")
def merge_adapters(W, adapters, scales):
    return added(W, adapters, [1.0] * len(scales))


@mistake("only the adapters, without the matrix", "where is W?")
def merge_adapters(W, adapters, scales):
    return added(torch.zeros_like(W), adapters, scales)


@mistake("taken away instead of added", "the sign is wrong")
def merge_adapters(W, adapters, scales):
    return added(W, adapters, [-scale for scale in scales])


@mistake("the mean over the adapters", "it is their sum")
def merge_adapters(W, adapters, scales):
    return added(W, adapters, [scale / len(scales) for scale in scales])


@mistake("a mixture, as of two models", "W loses what the adapter")
def merge_adapters(W, adapters, scales):
    return added((1 - sum(scales)) * W, adapters, scales)


@mistake("only the first adapter", "only the first adapter")
def merge_adapters(W, adapters, scales):
    return merge_rightly(W, adapters[:1], scales[:1])


@mistake("the matrix that was lent is overwritten", "changes its argument W")
def merge_adapters(W, adapters, scales):
    W.copy_(merge_rightly(W, adapters, scales))
    return W.clone()


@mistake("the scales clipped, so that nothing comes out again", "negated scales")
def merge_adapters(W, adapters, scales):
    return merge_rightly(W, adapters, [max(scale, 0) for scale in scales])


@mistake("the matrix itself, where there is no adapter", "not W itself")
def merge_adapters(W, adapters, scales):
    return added(W, adapters, scales)


@another_way("all adapters side by side, in one product")
def merge_adapters(W, adapters, scales):
    if not adapters:
        return W.clone()
    A = torch.cat([A for A, _, _ in adapters])
    B = torch.cat([B * (scale * alpha / B.shape[1]) for (_, B, alpha), scale in zip(adapters, scales, strict=True)], 1)
    return torch.addmm(W, B, A)


# ------------------------------------------------------------------------------------------------- 3. accumulate


def backward(weights, losses):
    weights.grad = None
    for loss in losses:
        loss.backward()
    return weights.grad


@mistake("the mean of means, as libraries had it for years", "the mean of the parts' means")
def accumulate(error, weights, parts):
    return backward(weights, (error(weights, part).mean() / len(parts) for part in parts))


@mistake("means, not divided by the number of parts", "the sum of the parts' means")
def accumulate(error, weights, parts):
    return backward(weights, (error(weights, part).mean() for part in parts))


@mistake("sums, not divided", "the sum over all images")
def accumulate(error, weights, parts):
    return backward(weights, (error(weights, part).sum() for part in parts))


@mistake("sums divided by the number of parts", "by the number of parts, not of images")
def accumulate(error, weights, parts):
    return backward(weights, (error(weights, part).sum() / len(parts) for part in parts))


@mistake("as if all parts were as large as the first", "as large as the first")
def accumulate(error, weights, parts):
    return backward(weights, (error(weights, part).sum() / (len(parts) * len(parts[0])) for part in parts))


@mistake("the gradient emptied in every part", "not added up")
def accumulate(error, weights, parts):
    N = sum(map(len, parts))
    for part in parts:
        weights.grad = None
        (error(weights, part).sum() / N).backward()
    return weights.grad


@mistake("the gradient of the step before still in it", "the step before is still in it")
def accumulate(error, weights, parts):
    N = sum(map(len, parts))
    for part in parts:
        (error(weights, part).sum() / N).backward()
    return weights.grad


@mistake("all parts put together", "the parts were put together")
def accumulate(error, weights, parts):
    return backward(weights, [error(weights, torch.cat(parts)).mean()])


@mistake("one backward at the end", "backward() comes too late")
def accumulate(error, weights, parts):
    return backward(weights, [sum(error(weights, part).sum() for part in parts) / sum(map(len, parts))])


@mistake("all errors first, then all gradients", "backward() comes too late")
def accumulate(error, weights, parts):
    N = sum(map(len, parts))
    return backward(weights, [error(weights, part).sum() / N for part in parts])


@mistake("the graphs kept", "retain_graph=True")
def accumulate(error, weights, parts):
    N, weights.grad = sum(map(len, parts)), None
    for part in parts:
        (error(weights, part).sum() / N).backward(retain_graph=True)
    return weights.grad


@mistake("the caller's parts used up", "changes its argument parts")
def accumulate(error, weights, parts):
    N, weights.grad = sum(map(len, parts)), None
    while parts:
        (error(weights, parts.pop(0)).sum() / N).backward()
    return weights.grad


@another_way("torch.autograd.grad, the sums divided at the end")
def accumulate(error, weights, parts):
    total = torch.zeros_like(weights)
    for part in parts:
        total = total + torch.autograd.grad(error(weights, part).sum(), weights)[0]
    return total / sum(map(len, parts))


@another_way("means, each with its share")
def accumulate(error, weights, parts):
    N = sum(map(len, parts))
    return backward(weights, (error(weights, part).mean() * len(part) / N for part in parts))


# --------------------------------------------------------------------------------------------------- 4. averaged


def numbers_of(weights):
    return [weight.detach().clone() for weight in weights]


@mistake("never put back", "still hold the averages")
def averaged(weights, averages, draw):
    write(weights, averages)
    return draw()


@mistake("the tensors kept, not their numbers", "a copy of their numbers")
def averaged(weights, averages, draw):
    kept = list(weights)
    write(weights, averages)
    try:
        return draw()
    finally:
        write(weights, kept)


@mistake("detached but not cloned", "a copy of their numbers")
def averaged(weights, averages, draw):
    kept = [weight.detach() for weight in weights]
    write(weights, averages)
    try:
        return draw()
    finally:
        write(weights, kept)


@mistake("no finally", "in `finally`")
def averaged(weights, averages, draw):
    kept = numbers_of(weights)
    write(weights, averages)
    picture = draw()
    write(weights, kept)
    return picture


@mistake("except Exception in the place of finally", "also runs after Ctrl-C")
def averaged(weights, averages, draw):
    kept = numbers_of(weights)
    write(weights, averages)
    try:
        picture = draw()
    except Exception:
        write(weights, kept)
        raise
    write(weights, kept)
    return picture


@mistake("errors swallowed", "was swallowed")
def averaged(weights, averages, draw):
    kept, picture = numbers_of(weights), None
    write(weights, averages)
    with suppress(BaseException):
        picture = draw()
    write(weights, kept)
    return picture


@mistake("return in finally, which swallows errors, too", "was swallowed")
def averaged(weights, averages, draw):
    kept, picture = numbers_of(weights), None
    write(weights, averages)
    try:
        picture = draw()
    finally:
        write(weights, kept)
        return picture  # noqa: B012 - the mistake


@mistake("new tensors in the list", "write into the old ones")
def averaged(weights, averages, draw):
    kept = list(weights)
    weights[:] = averages
    draw_now = draw()
    del kept
    return draw_now


@mistake("the averages drawn with, but not in the network", "should hold the averages")
def averaged(weights, averages, draw):
    kept = list(weights)
    weights[:] = averages
    try:
        return draw()
    finally:
        weights[:] = kept


@mistake("the weights go to the averages", "the averages should stay")
def averaged(weights, averages, draw):
    kept = numbers_of(weights)
    write(weights, averages)
    write(averages, kept)
    try:
        return draw()
    finally:
        write(weights, kept)


@mistake("written into while gradients are recorded", "RuntimeError")
def averaged(weights, averages, draw):
    kept = numbers_of(weights)
    for weight, average in zip(weights, averages, strict=True):
        weight.copy_(average)
    try:
        return draw()
    finally:
        write(weights, kept)


@mistake("half-way between the weights and the averages", "should hold the averages")
def averaged(weights, averages, draw):
    kept = numbers_of(weights)
    write(weights, [(weight + average) / 2 for weight, average in zip(weights, averages, strict=True)])
    try:
        return draw()
    finally:
        write(weights, kept)


@mistake("the picture is lost", "what draw returns")
def averaged(weights, averages, draw):
    kept = numbers_of(weights)
    write(weights, averages)
    try:
        draw()
    finally:
        write(weights, kept)


@mistake("drawn twice", "should be called once")
def averaged(weights, averages, draw):
    draw()
    kept = numbers_of(weights)
    write(weights, averages)
    try:
        return draw()
    finally:
        write(weights, kept)


@another_way("the numbers exchanged through .data")
def averaged(weights, averages, draw):
    kept = [weight.data for weight in weights]
    for weight, average in zip(weights, averages, strict=True):
        weight.data = average.clone()
    try:
        return draw()
    finally:
        for weight, old in zip(weights, kept, strict=True):
            weight.data = old


# ------------------------------------------------------------------------------------------------- 5. prior_loss


@mistake("the weight on the wrong group", "the prior's weight is on the subject")
def prior_loss(each, kind, prior):
    return prior * each[~kind].mean() + each[kind].mean()


@mistake("one mean over all", "one mean over all images")
def prior_loss(each, kind, prior):
    return torch.where(kind, prior * each, each).mean()


@mistake("sums", "these are sums")
def prior_loss(each, kind, prior):
    return each[~kind].sum() + prior * each[kind].sum()


@mistake("the weight forgotten", "prior is missing")
def prior_loss(each, kind, prior):
    return loss_rightly(each, kind, 1.0)


@mistake("divided by 1 + prior", "divided by 1 + prior")
def prior_loss(each, kind, prior):
    return loss_rightly(each, kind, prior) / (1 + prior)


@mistake("a mixture", "this is a mixture")
def prior_loss(each, kind, prior):
    return (
        (1 - prior) * loss_rightly(each, kind, 0.0) + loss_rightly(each, kind, prior) - loss_rightly(each, kind, 0.0)
    )


@mistake("an empty group is NaN", "its mean is NaN")
def prior_loss(each, kind, prior):
    return each[~kind].mean() + prior * each[kind].mean()


@another_way("NaN taken away")
def prior_loss(each, kind, prior):
    return each[~kind].mean().nan_to_num() + prior * each[kind].mean().nan_to_num()


@mistake("a Python number", "a tensor was expected")
def prior_loss(each, kind, prior):
    return loss_rightly(each, kind, prior).item()


@mistake("detached", "no gradient reaches the network")
def prior_loss(each, kind, prior):
    return loss_rightly(each.detach(), kind, prior)


@mistake("each image's own", "the shape should be ()")
def prior_loss(each, kind, prior):
    return torch.where(kind, prior * each, each)


@another_way("weights for all, and sums")
def prior_loss(each, kind, prior):
    subject, its = (~kind).sum().clamp(min=1), kind.sum().clamp(min=1)
    return (each * torch.where(kind, prior / its, 1 / subject)).sum()


# ------------------------------------------------------------------------------------------------- 6. weigh_word


def mixture(z, empty, hidden, word, w, move, r=None):
    r = (math.tan((1 - w) * math.pi / 2) if w < 1 else 0.0) if r is None else r
    return (move(z) + r * move(hidden)) / (1 + r)


def mover(empty, s):
    return lambda v: empty + s * (v - empty)


def tokens(word, w, others=1.0):
    return torch.where(word, w, others)[:, None]


@mistake("vectors multiplied, as some programs do", "the vectors were multiplied")
def weigh_word(z, empty, hidden, word, w):
    return mixture(z, empty, hidden, word, w, lambda v: tokens(word, w) * v)


@mistake("all tokens moved", "all vectors were moved")
def weigh_word(z, empty, hidden, word, w):
    return mixture(z, empty, hidden, word, w, mover(empty, w))


@mistake("the others moved", "the others were moved")
def weigh_word(z, empty, hidden, word, w):
    return mixture(z, empty, hidden, word, w, mover(empty, tokens(~word, w)))


@mistake("weights laid along the components", "give s the shape (M, 1)")
def weigh_word(z, empty, hidden, word, w):
    return mixture(z, empty, hidden, word, w, mover(empty, torch.where(word, w, 1.0)))


@mistake("towards the empty prompt", "towards the empty prompt")
def weigh_word(z, empty, hidden, word, w):
    return mixture(z, empty, hidden, word, w, lambda v: torch.where(word[:, None], v + w * (empty - v), v))


@mistake("added to the vector itself", "to z itself")
def weigh_word(z, empty, hidden, word, w):
    return mixture(z, empty, hidden, word, w, lambda v: torch.where(word[:, None], v + w * (v - empty), v))


@mistake("only moved, below 1 too", "must be mixed in")
def weigh_word(z, empty, hidden, word, w):
    return mover(empty, tokens(word, w))(z)


@mistake("below 1 the word is hidden altogether", "only the embeddings without the word")
def weigh_word(z, empty, hidden, word, w):
    return mover(empty, tokens(word, w))(z if w >= 1 else hidden)


@mistake("what is without the word is not moved", "must be moved, too")
def weigh_word(z, empty, hidden, word, w):
    r = math.tan((1 - w) * math.pi / 2) if w < 1 else 0.0
    return (mover(empty, tokens(word, w))(z) + r * hidden) / (1 + r)


@mistake("mixed with shares w and 1 - w", "w is the share")
def weigh_word(z, empty, hidden, word, w):
    move = mover(empty, tokens(word, w))
    return move(z) if w >= 1 else w * move(z) + (1 - w) * move(hidden)


@mistake("the ratio upside down", "r is")
def weigh_word(z, empty, hidden, word, w):
    r = math.tan(w * math.pi / 2) if 0 < w < 1 else 0.0
    return mixture(z, empty, hidden, word, w, mover(empty, tokens(word, w)), r)


@mistake("above 1 mixed, too", "above 1, nothing of hidden")
def weigh_word(z, empty, hidden, word, w):
    return mixture(z, empty, hidden, word, w, mover(empty, tokens(word, w)), math.tan((1 - w) * math.pi / 2))


@mistake("not divided by the sum of the shares", "not divided by 1 + r")
def weigh_word(z, empty, hidden, word, w):
    move = mover(empty, tokens(word, w))
    return move(z) if w >= 1 else move(z) + math.tan((1 - w) * math.pi / 2) * move(hidden)


@mistake("infinite at weight 0", "the result holds NaN or infinity")
def weigh_word(z, empty, hidden, word, w):
    r = math.inf if w == 0 else math.tan((1 - w) * math.pi / 2) if w < 1 else 0.0
    return mixture(z, empty, hidden, word, w, mover(empty, tokens(word, w)), r)


@mistake("the vectors that were lent are overwritten", "changes its argument z")
def weigh_word(z, empty, hidden, word, w):
    z.copy_(weigh_rightly(z, empty, hidden, word, w))
    return z.clone()


@another_way("as a weighted mean with an angle")
def weigh_word(z, empty, hidden, word, w):
    move, angle = mover(empty, tokens(word, w)), max(0.0, 1 - w) * math.pi / 2
    with_it, without = math.cos(angle), math.sin(angle)
    return (with_it * move(z) + without * move(hidden)) / (with_it + without)


# ------------------------------------------------------------------------------------------------- 7. controlled


def speaking(features, residuals, kernels, biases, say):
    return [say(f, r, K, b) for f, r, K, b in zip(features, residuals, kernels, biases, strict=True)]


@mistake("strength on everything", "the features are multiplied by the scale")
def controlled(features, residuals, kernels, biases, strength):
    return [strength * each for each in controlled_rightly(features, residuals, kernels, biases, 1.0)]


@mistake("strength on the features", "the features are multiplied by the scale")
def controlled(features, residuals, kernels, biases, strength):
    return controlled_rightly([strength * f for f in features], residuals, kernels, biases, 1.0)


@mistake("a mixture of both", "this is a mixture")
def controlled(features, residuals, kernels, biases, strength):
    return controlled_rightly([(1 - strength) * f for f in features], residuals, kernels, biases, strength)


@mistake("strength on the kernel alone", "not the bias")
def controlled(features, residuals, kernels, biases, strength):
    return controlled_rightly(features, residuals, [strength * K for K in kernels], biases, 1.0)


@mistake("strength forgotten", "the scale is missing")
def controlled(features, residuals, kernels, biases, strength):
    return controlled_rightly(features, residuals, kernels, biases, 1.0)


@mistake("no biases", "the biases are missing")
def controlled(features, residuals, kernels, biases, strength):
    return speaking(features, residuals, kernels, biases, lambda f, r, K, b: f + strength * F.conv2d(r, K))


@mistake("kernels transposed", "the kernel is transposed")
def controlled(features, residuals, kernels, biases, strength):
    return controlled_rightly(features, residuals, [K.transpose(0, 1) for K in kernels], biases, strength)


@mistake("no convolution", "the convolution is missing")
def controlled(features, residuals, kernels, biases, strength):
    return speaking(features, residuals, kernels, biases, lambda f, r, K, b: f + strength * r)


@mistake("the features lost", "the features are gone")
def controlled(features, residuals, kernels, biases, strength):
    return controlled_rightly([torch.zeros_like(f) for f in features], residuals, kernels, biases, strength)


@mistake("the convolution of the features", "it is for the residuals")
def controlled(features, residuals, kernels, biases, strength):
    return controlled_rightly(features, features, kernels, biases, strength)


@mistake("an activation after the convolution", "become")
def controlled(features, residuals, kernels, biases, strength):
    return speaking(
        features, residuals, kernels, biases, lambda f, r, K, b: f + strength * F.conv2d(r, K, b).sigmoid()
    )


@mistake("residuals detached along with the kernels", "no gradient")
@torch.no_grad()
def controlled(features, residuals, kernels, biases, strength):
    return controlled_rightly(features, residuals, kernels, biases, strength)


@mistake("features added in place", "controlled changes features")
def controlled(features, residuals, kernels, biases, strength):
    for k, (r, K, b) in enumerate(zip(residuals, kernels, biases, strict=True)):
        features[k] += strength * F.conv2d(r, K, b)
    return features


@mistake("only the first level", "at the second level")
def controlled(features, residuals, kernels, biases, strength):
    return controlled_rightly(features[:1], residuals[:1], kernels[:1], biases[:1], strength) + list(features[1:])


@mistake("residuals detached: the ControlNet behind the kernels never learns", "from the result to residuals")
def controlled(features, residuals, kernels, biases, strength):
    return controlled_rightly(features, [r.detach() for r in residuals], kernels, biases, strength)


@another_way("a matrix at each place")
def controlled(features, residuals, kernels, biases, strength):
    def say(f, r, K, b):
        return f + strength * (torch.einsum("oi,bihw->bohw", K[:, :, 0, 0], r) + b.view(1, -1, 1, 1))

    return speaking(features, residuals, kernels, biases, say)


# ---------------------------------------------------------------------------------------------------- 8. inpaint


def walk(step, x, alpha, m, known):
    """The walk, with room for mistakes. known: k -> the old picture for the end of step k"""
    for k in range(len(alpha) - 1):
        x = m * step(x, k) + (1 - m) * known(k)
    return x


@mistake("the mask the wrong way round", "the mask is the wrong way round")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    return walk(step, x, alpha, 1 - F.max_pool2d(mask, f), lambda k: alpha[k + 1] * z + sigma[k + 1] * eps)


@mistake("a clean patch in a noisy picture", "without noise")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    return walk(step, x, alpha, F.max_pool2d(mask, f), lambda k: z)


@mistake("the noise of the level before", "the noise of level k")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    return walk(step, x, alpha, F.max_pool2d(mask, f), lambda k: alpha[k] * z + sigma[k] * eps)


@mistake("alpha and sigma swapped", "alpha and sigma are swapped")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    return inpaint_rightly(step, x, z, eps, mask, f, sigma, alpha)


@mistake("variances", "you used variances")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    return inpaint_rightly(step, x, z, eps, mask, f, alpha**2, sigma**2)


@mistake("put back only at the end", "only at the end")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    for k in range(len(alpha) - 1):
        x = step(x, k)
    m = F.max_pool2d(mask, f)
    return m * x + (1 - m) * z


@mistake("put back at every step but the last", "after the last step")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    m = F.max_pool2d(mask, f)
    for k in range(len(alpha) - 1):
        x = step(x, k)
        if k < len(alpha) - 2:
            x = m * x + (1 - m) * (alpha[k + 1] * z + sigma[k + 1] * eps)
    return x


@mistake("put back before the step", "before the step")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    m = F.max_pool2d(mask, f)
    for k in range(len(alpha) - 1):
        x = step(m * x + (1 - m) * (alpha[k] * z + sigma[k] * eps), k)
    return m * x + (1 - m) * z


@mistake("fresh noise in every step", "noise of your own")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    return walk(step, x, alpha, F.max_pool2d(mask, f), lambda k: alpha[k + 1] * z + sigma[k + 1] * torch.randn_like(z))


@mistake("one pixel of each block looked at", "a thin scratch was missed")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    return walk(step, x, alpha, F.interpolate(mask, z.shape[-2:]), lambda k: alpha[k + 1] * z + sigma[k + 1] * eps)


@mistake("a mask with values between 0 and 1", "values between 0 and 1")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    return walk(step, x, alpha, F.avg_pool2d(mask, f), lambda k: alpha[k + 1] * z + sigma[k + 1] * eps)


@mistake("one step more than there are", "IndexError")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    m = F.max_pool2d(mask, f)
    for k in range(len(alpha)):
        x = m * step(x, k) + (1 - m) * (alpha[k + 1] * z + sigma[k + 1] * eps)
    return x


@mistake("the first step left out", "should be called with k = 0")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    m = F.max_pool2d(mask, f)
    for k in range(1, len(alpha) - 1):
        x = m * step(x, k) + (1 - m) * (alpha[k + 1] * z + sigma[k + 1] * eps)
    return x


@mistake("the latents that were lent are overwritten", "changes its argument x")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    x.copy_(inpaint_rightly(step, x, z, eps, mask, f, alpha, sigma))
    return x.clone()


@another_way("torch.where and a mask of truth values")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    B, _, height, width = mask.shape
    anew = mask.view(B, 1, height // f, f, width // f, f).bool().any(5).any(3)
    for k, (a, s) in enumerate(zip(alpha[1:].tolist(), sigma[1:].tolist(), strict=True)):
        x = torch.where(anew, step(x, k), a * z + s * eps)
    return x


# ---------------------------------------------------------------------------------------------- 9. img2img_start


def started(z, eps, rest, alpha_bar, at=None):
    if not rest:
        return z.clone(), []
    a = alpha_bar[rest[0] if at is None else at]
    return a.sqrt() * z + (1 - a).sqrt() * eps, rest


def remaining(times, n):
    return times[len(times) - n :]


@mistake("ceil in the place of int", "28 timesteps remain")
def img2img_start(z, eps, times, alpha_bar, strength):
    return started(z, eps, remaining(times, min(math.ceil(strength * len(times)), len(times))), alpha_bar)


@mistake("a small number added against rounding", "not 29")
def img2img_start(z, eps, times, alpha_bar, strength):
    return started(z, eps, remaining(times, min(int(strength * len(times) + 1e-6), len(times))), alpha_bar)


@mistake("the first timesteps, the noisiest", "the last n remain")
def img2img_start(z, eps, times, alpha_bar, strength):
    return started(z, eps, times[: int(strength * len(times))], alpha_bar)


@mistake("times[-n:], which is everything for n = 0", "times[-0:] is everything")
def img2img_start(z, eps, times, alpha_bar, strength):
    return started(z, eps, times[-int(strength * len(times)) :], alpha_bar)


@mistake("noised to the sampler's first level", "the sampler's first timestep")
def img2img_start(z, eps, times, alpha_bar, strength):
    return started(z, eps, remaining(times, int(strength * len(times))), alpha_bar, times[0])


@mistake("alpha_bar in the place of alpha", "square roots")
def img2img_start(z, eps, times, alpha_bar, strength):
    rest = remaining(times, int(strength * len(times)))
    return (alpha_bar[rest[0]] * z + (1 - alpha_bar[rest[0]]) * eps, rest) if rest else (z, [])


@mistake("noise added to the whole of z", "z must be multiplied by alpha")
def img2img_start(z, eps, times, alpha_bar, strength):
    rest = remaining(times, int(strength * len(times)))
    return (z + (1 - alpha_bar[rest[0]]).sqrt() * eps, rest) if rest else (z, [])


@another_way("a slice from the front")
def img2img_start(z, eps, times, alpha_bar, strength):
    return started(z, eps, times[len(times) - int(len(times) * strength) :], alpha_bar)


# ------------------------------------------------------------------------------------------------- 10. from_kohya


def read_file(file, layers, alpha_of, down="lora_down", up="lora_up"):
    found = {}
    for layer in layers:
        name = "lora_unet_" + layer.replace(".", "_")
        if f"{name}.lora_down.weight" in file:
            A, B = file[f"{name}.{down}.weight"], file[f"{name}.{up}.weight"]
            found[layer] = A, B, alpha_of(file, name, file[f"{name}.lora_down.weight"])
    known = {"lora_unet_" + layer.replace(".", "_") for layer in found}
    for name in file:
        if name.split(".")[0] not in known:
            raise KeyError(name)
    return found


def alpha_rightly(file, name, A):
    return float(file.get(f"{name}.alpha", len(A)))


@mistake("A and B swapped", "A and B are swapped")
def from_kohya(file, layers):
    return read_file(file, layers, alpha_rightly, "lora_up", "lora_down")


@mistake("alpha taken for the rank", "alpha of")
def from_kohya(file, layers):
    return read_file(file, layers, lambda file, name, A: float(len(A)))


@mistake("alpha divided by the rank", "alpha / r")
def from_kohya(file, layers):
    return read_file(file, layers, lambda file, name, A: alpha_rightly(file, name, A) / len(A))


@mistake("alpha 1 where there is none", "without an alpha in the file")
def from_kohya(file, layers):
    return read_file(file, layers, lambda file, name, A: float(file.get(f"{name}.alpha", 1.0)))


@mistake("alpha left a tensor", "alpha should be a float")
def from_kohya(file, layers):
    return read_file(file, layers, lambda file, name, A: file.get(f"{name}.alpha", float(len(A))))


@mistake("every _ made a . again", "your names are")
def from_kohya(file, layers):
    right = read_file(file, layers, alpha_rightly)
    return {layer.replace("_", "."): adapter for layer, adapter in right.items()}


@mistake("the names of the file kept", "your names are")
def from_kohya(file, layers):
    right = read_file(file, layers, alpha_rightly)
    return {"lora_unet_" + layer.replace(".", "_"): adapter for layer, adapter in right.items()}


@mistake("layers that the model does not have are left out", "raise KeyError")
def from_kohya(file, layers):
    known = {"lora_unet_" + layer.replace(".", "_") for layer in layers}
    return read_file({k: v for k, v in file.items() if k.split(".")[0] in known}, layers, alpha_rightly)


@mistake("None for layers without an adapter", "so it is not in the result")
def from_kohya(file, layers):
    return dict.fromkeys(layers) | read_file(file, layers, alpha_rightly)


@another_way("layer by layer of the model")
def from_kohya(file, layers):
    return read_file(file, layers, alpha_rightly)


# ----------------------------------------------------------------------------------------------- 11. first_update


@mistake("the factor only once", "enters twice")
def first_update(G, A, alpha, lr):
    return -lr * alpha / len(A) * G @ A.T @ A


@mistake("no factor", "alpha / r is missing")
def first_update(G, A, alpha, lr):
    return -lr * G @ A.T @ A


@mistake("uphill", "against the gradient")
def first_update(G, A, alpha, lr):
    return lr * (alpha / len(A)) ** 2 * G @ A.T @ A


@mistake("as full fine-tuning", "full fine-tuning")
def first_update(G, A, alpha, lr):
    return -lr * G


@mistake("alpha squared, not divided by the rank", "not divided by the rank")
def first_update(G, A, alpha, lr):
    return -lr * alpha**2 * G @ A.T @ A


@mistake("the rank read off the columns", "alpha / r is missing")
def first_update(G, A, alpha, lr):
    return -lr * (alpha / A.shape[1]) ** 2 * G @ A.T @ A


@another_way("the step itself")
def first_update(G, A, alpha, lr):
    B = -lr * alpha / len(A) * G @ A.T
    return alpha / len(A) * B @ A


# ------------------------------------------------------------------------------------------------- 12. merged_std


def each_std(ranks, alphas, stds, scales, power=0.5):
    rows = zip(ranks, alphas, stds, scales, strict=True)
    return [abs(scale) * alpha * a * b / r**power for r, alpha, (a, b), scale in rows]


@mistake("standard deviations added", "variances do")
def merged_std(ranks, alphas, stds, scales):
    return sum(each_std(ranks, alphas, stds, scales))


@mistake("the variance", "take its root")
def merged_std(ranks, alphas, stds, scales):
    return sum(each**2 for each in each_std(ranks, alphas, stds, scales))


@mistake("one product in each entry", "a sum of r products")
def merged_std(ranks, alphas, stds, scales):
    return math.hypot(*each_std(ranks, alphas, stds, scales, power=1))


@mistake("not divided by the rank", "divided by the rank")
def merged_std(ranks, alphas, stds, scales):
    return math.hypot(*each_std(ranks, alphas, stds, scales, power=-0.5))


@mistake("the scales forgotten", "the scales are missing")
def merged_std(ranks, alphas, stds, scales):
    return math.hypot(*each_std(ranks, alphas, stds, [1.0] * len(scales)))


@mistake("the mean of the adapters", "it is their sum")
def merged_std(ranks, alphas, stds, scales):
    return math.hypot(*each_std(ranks, alphas, stds, scales)) / len(ranks)


@another_way("hypot")
def merged_std(ranks, alphas, stds, scales):
    return math.hypot(*each_std(ranks, alphas, stds, scales))


# ---------------------------------------------------------------------------------------------- 13. ema_half_life


@mistake("the time after which 1/e is left", "1/e is left")
def ema_half_life(decay):
    return 1 / (1 - decay)


@mistake("a straight line", "not on a straight line")
def ema_half_life(decay):
    return 0.5 / (1 - decay)


@mistake("the share of the new weights", "you solved")
def ema_half_life(decay):
    return math.log(0.5) / math.log(1 - decay)


@mistake("negative", "the sign is wrong")
def ema_half_life(decay):
    return math.log(2) / math.log(decay)


@mistake("upside down", "inverted: it is")
def ema_half_life(decay):
    return math.log(decay) / math.log(0.5)


@mistake("a whole number", "the share is")
def ema_half_life(decay):
    return float(math.ceil(math.log(0.5) / math.log(decay)) + 1)


@another_way("logarithms to the base 2")
def ema_half_life(decay):
    return -1 / math.log2(decay)


# ------------------------------------------------------------------------------------------ 14. fix_training_loop


def descended(gradient, weights, steps, accumulation, lr, decay, share=None, lag=False, every=False, fresh=True):
    average, k = weights.clone(), 0
    total = torch.zeros_like(weights)
    for _ in range(steps):
        if fresh:
            total = torch.zeros_like(weights)
        for part in range(accumulation):
            total = total + gradient(weights, k) / (share or accumulation)
            k += 1
            if every and part < accumulation - 1:
                average = decay * average + (1 - decay) * weights
        before, weights = weights, weights - lr * total
        average = decay * average + (1 - decay) * (before if lag else weights)
    return weights, average


@mistake("still the sum", "accumulation times too long")
def fix_training_loop(*args):
    return descended(*args, share=1)


@mistake("the average before the step", "the average lags")
def fix_training_loop(*args):
    return descended(*args, lag=True)


@mistake("the average after every batch", "is updated for every batch")
def fix_training_loop(*args):
    return descended(*args, every=True)


@mistake("the gradient never emptied", "the weights are wrong")
def fix_training_loop(*args):
    return descended(*args, fresh=False)


@mistake("decay the wrong way round", "was not decayed as given")
def fix_training_loop(gradient, weights, steps, accumulation, lr, decay):
    return descended(gradient, weights, steps, accumulation, lr, 1 - decay)


@mistake("a smaller number of steps in its place", "the batches should be 0 to")
def fix_training_loop(gradient, weights, steps, accumulation, lr, decay):
    return descended(gradient, weights, max(1, steps // 2), accumulation, lr, decay)


@another_way("the learning rate divided")
def fix_training_loop(gradient, weights, steps, accumulation, lr, decay):
    average, k = weights.clone(), 0
    for _ in range(steps):
        gradients = [gradient(weights, k + part) for part in range(accumulation)]
        k += accumulation
        weights = weights - lr / accumulation * sum(gradients)
        average = average.lerp(weights, 1 - decay)
    return weights, average


# ------------------------------------------------------------------------------------------------ 15. fix_img2img


def ddim(predict_eps, z, eps, times, alpha_bar, start):
    a = alpha_bar[start]
    x = a.sqrt() * z + (1 - a).sqrt() * eps
    for i, t in enumerate(times):
        a, noise = alpha_bar[t], predict_eps(x, t)
        b = alpha_bar[times[i + 1]] if i + 1 < len(times) else torch.ones(())
        x = b.sqrt() * (x - (1 - a).sqrt() * noise) / a.sqrt() + (1 - b).sqrt() * noise
    return x


@mistake("still noised to the first of all timesteps", "too noisy for that level")
def fix_img2img(predict_eps, z, eps, times, alpha_bar, n):
    return ddim(predict_eps, z, eps, times[len(times) - n :], alpha_bar, times[0])


@mistake("all timesteps visited instead", "all timesteps are visited")
def fix_img2img(predict_eps, z, eps, times, alpha_bar, n):
    return ddim(predict_eps, z, eps, times, alpha_bar, times[0])


@mistake("the first timesteps", "the first n timesteps")
def fix_img2img(predict_eps, z, eps, times, alpha_bar, n):
    return ddim(predict_eps, z, eps, times[:n], alpha_bar, times[0])


@mistake("noised to the last timestep", "noised to the last timestep")
def fix_img2img(predict_eps, z, eps, times, alpha_bar, n):
    return ddim(predict_eps, z, eps, times[len(times) - n :], alpha_bar, times[-1])


@another_way("the steps as a function")
def fix_img2img(predict_eps, z, eps, times, alpha_bar, n):
    return ddim(predict_eps, z, eps, times[-n:], alpha_bar, times[-n])


# ------------------------------------------------------------------------------------------------ 16. fix_min_snr


@mistake("still divided by SNR", "divides by SNR as well")
def fix_min_snr(alpha_bar, gamma, prediction):
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / (snr * (snr + 1) if prediction == "v" else snr)


@mistake("the weights for eps in both cases", "v needs 1 / (SNR + 1)")
def fix_min_snr(alpha_bar, gamma, prediction):
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / snr


@mistake("no conversion for v", "without the conversion")
def fix_min_snr(alpha_bar, gamma, prediction):
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / (1 if prediction == "v" else snr)


@mistake("eps broken on the way", "the weights for eps are wrong")
def fix_min_snr(alpha_bar, gamma, prediction):
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / (snr + 1 if prediction == "v" else snr.square())


@mistake("the larger in the place of the smaller", "not the larger")
def fix_min_snr(alpha_bar, gamma, prediction):
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(min=gamma) / (snr + 1 if prediction == "v" else snr)


@another_way("sigma^2 in the place of 1 / (SNR + 1)")
def fix_min_snr(alpha_bar, gamma, prediction):
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) * (1 - alpha_bar if prediction == "v" else 1 / snr)


# ---------------------------------------------------------------------------------------------- 17. merge_to_rank


def side_by_side(adapters, scales):
    A = torch.cat([A for A, _, _ in adapters])
    B = torch.cat([s * alpha / len(A) * B for (A, B, alpha), s in zip(adapters, scales, strict=True)], 1)
    return A, B


@mistake("the first rows and columns", "not near enough")
def merge_to_rank(adapters, scales, rank):
    A, B = side_by_side(adapters, scales)
    return A[:rank], B[:, :rank]


@mistake("the largest pairs of rows and columns", "not near enough")
def merge_to_rank(adapters, scales, rank):
    A, B = side_by_side(adapters, scales)
    best = (A.norm(dim=1) * B.norm(dim=0)).topk(rank).indices
    return A[best], B[:, best]


@mistake("all singular values on one side", "differ too much in size")
def merge_to_rank(adapters, scales, rank):
    A, B = side_by_side(adapters, scales)
    U, S, V = torch.linalg.svd(B @ A)
    return V[:rank], U[:, :rank] * S[:rank]


@mistake("the smallest singular values", "not near enough")
def merge_to_rank(adapters, scales, rank):
    A, B = side_by_side(adapters, scales)
    U, S, V = torch.linalg.svd(B @ A)
    root = S[-rank:].sqrt()
    return root[:, None] * V[-rank:], U[:, -rank:] * root


@mistake("singular values forgotten", "not near enough")
def merge_to_rank(adapters, scales, rank):
    A, B = side_by_side(adapters, scales)
    U, S, V = torch.linalg.svd(B @ A)
    return V[:rank], U[:, :rank]


@mistake("the scales forgotten", "not near enough")
def merge_to_rank(adapters, scales, rank):
    return solutions.merge_to_rank(adapters, [1.0] * len(scales), rank)


@mistake("alpha not divided by the rank", "not near enough")
def merge_to_rank(adapters, scales, rank):
    return solutions.merge_to_rank([(A, B, alpha * len(A)) for A, B, alpha in adapters], scales, rank)


@mistake("A and B the other way round", "A should have the shape")
def merge_to_rank(adapters, scales, rank):
    A, B = side_by_side(adapters, scales)
    U, S, V = torch.linalg.svd(B @ A)
    return U[:, :rank] * S[:rank], V[:rank]


@mistake("of full rank", "A should have the shape")
def merge_to_rank(adapters, scales, rank):
    return side_by_side(adapters, scales)


@another_way("QR first, which never forms the large product")
def merge_to_rank(adapters, scales, rank):
    A, B = side_by_side(adapters, scales)
    (Q, R), (P, T) = torch.linalg.qr(B), torch.linalg.qr(A.T)
    U, S, V = torch.linalg.svd(R @ T.T)
    root = S[:rank].sqrt()
    return root[:, None] * V[:rank] @ P.T, Q @ U[:, :rank] * root
