# ruff: noqa: F811 - the same function is got wrong again and again
"""Classic mistakes of chapter 5, each a small replacement of one function of the solutions.

`@mistake(what, says)`: the exercise it belongs to is the function's name;
`says` must stand in the message that the grader gives.
"""

import math
from contextlib import contextmanager, suppress
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


@mistake("A divided by the root of the rank", "1 / root of r")
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


@mistake("the scales clipped, so that nothing comes out again", "the signs turned")
def merge_adapters(W, adapters, scales):
    return merge_rightly(W, adapters, [max(scale, 0) for scale in scales])


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


@mistake("never put back", "still hold the averages")
@contextmanager
def averaged(weights, averages):
    write(weights, averages)
    yield


@mistake("the tensors kept, not their numbers", "not their numbers")
@contextmanager
def averaged(weights, averages):
    kept = list(weights)
    write(weights, averages)
    try:
        yield
    finally:
        write(weights, kept)


@mistake("detached but not cloned", "not their numbers")
@contextmanager
def averaged(weights, averages):
    kept = [weight.detach() for weight in weights]
    write(weights, averages)
    try:
        yield
    finally:
        write(weights, kept)


@mistake("no finally", "in `finally`")
@contextmanager
def averaged(weights, averages):
    kept = [weight.detach().clone() for weight in weights]
    write(weights, averages)
    yield
    write(weights, kept)


@mistake("errors swallowed", "was swallowed")
@contextmanager
def averaged(weights, averages):
    kept = [weight.detach().clone() for weight in weights]
    write(weights, averages)
    with suppress(Exception):
        yield
    write(weights, kept)


@mistake("new tensors in the list", "write into the old ones")
@contextmanager
def averaged(weights, averages):
    kept = list(weights)
    weights[:] = averages
    try:
        yield
    finally:
        weights[:] = kept


@mistake("the averages stay in the network, the weights go to the averages", "the averages are only lent")
@contextmanager
def averaged(weights, averages):
    kept = [weight.detach().clone() for weight in weights]
    write(weights, averages)
    write(averages, kept)
    try:
        yield
    finally:
        write(weights, kept)


@mistake("yield within no_grad", "the caller's affair")
@contextmanager
def averaged(weights, averages):
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        write(weights, averages)
        try:
            yield
        finally:
            write(weights, kept)


@mistake("written into while gradients are recorded", "RuntimeError")
@contextmanager
def averaged(weights, averages):
    kept = [weight.detach().clone() for weight in weights]
    for weight, average in zip(weights, averages, strict=True):
        weight.copy_(average)
    try:
        yield
    finally:
        write(weights, kept)


@mistake("half-way between the weights and the averages", "should hold the averages")
@contextmanager
def averaged(weights, averages):
    kept = [weight.detach().clone() for weight in weights]
    write(weights, [(weight + average) / 2 for weight, average in zip(weights, averages, strict=True)])
    try:
        yield
    finally:
        write(weights, kept)


@another_way("a class, and the numbers exchanged through .data")
class averaged:  # noqa: N801 - it takes the function's place
    def __init__(self, weights, averages):
        self.weights, self.averages = weights, averages

    def __enter__(self):
        self.kept = [weight.data for weight in self.weights]
        for weight, average in zip(self.weights, self.averages, strict=True):
            weight.data = average.clone()

    def __exit__(self, *_):
        for weight, old in zip(self.weights, self.kept, strict=True):
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


@mistake("below 1 the word is hidden altogether", "only what the prompt is without the word")
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


@mistake("infinite at weight 0", "there is infinity or NaN in it")
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


@mistake("strength on everything", "the features are multiplied by strength")
def controlled(features, residuals, kernels, biases, strength):
    return [strength * each for each in controlled_rightly(features, residuals, kernels, biases, 1.0)]


@mistake("strength on the features", "the features are multiplied by strength")
def controlled(features, residuals, kernels, biases, strength):
    return controlled_rightly([strength * f for f in features], residuals, kernels, biases, 1.0)


@mistake("a mixture of both", "this is a mixture")
def controlled(features, residuals, kernels, biases, strength):
    return controlled_rightly([(1 - strength) * f for f in features], residuals, kernels, biases, strength)


@mistake("strength on the kernel alone", "not the bias")
def controlled(features, residuals, kernels, biases, strength):
    return controlled_rightly(features, residuals, [strength * K for K in kernels], biases, 1.0)


@mistake("strength forgotten", "strength is missing")
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


@mistake("an activation after the convolution", "the kernel makes")
def controlled(features, residuals, kernels, biases, strength):
    return speaking(
        features, residuals, kernels, biases, lambda f, r, K, b: f + strength * F.conv2d(r, K, b).sigmoid()
    )


@mistake("residuals detached along with the kernels", "no gradient reaches the kernels")
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


@mistake("a mask with greys in it", "the mask has greys in it")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    return walk(step, x, alpha, F.avg_pool2d(mask, f), lambda k: alpha[k + 1] * z + sigma[k + 1] * eps)


@mistake("one step more than there are", "IndexError")
def inpaint(step, x, z, eps, mask, f, alpha, sigma):
    m = F.max_pool2d(mask, f)
    for k in range(len(alpha)):
        x = m * step(x, k) + (1 - m) * (alpha[k + 1] * z + sigma[k + 1] * eps)
    return x


@mistake("the first step left out", "should be asked for k = 0")
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
