"""The grader's randomised checks of chapter 5:
sizes, weights and images are drawn anew, and compared with the solutions.

Where an answer is wrong, it is compared with the results of well-known mistakes too,
so that the message can name the mistake.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.grade.checks import Exercise, call, close, expect, expect_gradients, integer, load, parts, uniform

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")

# ---------------------------------------------------------------------------------------------- random material


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng)


def seeded(rng: torch.Generator, seed: int | None = None) -> torch.Generator:
    return torch.Generator().manual_seed(integer(rng, 0, 2**30) if seed is None else seed)


def pair(got: object, what: str) -> tuple:
    return parts(got, 2, what)


def unchanged(name: str, lent: list[Tensor], before: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(lent, before, strict=True)), (
        f"you changed {name}, which belong to the caller"
    )


# ------------------------------------------------------------------------------------------------- exercises 1 and 2


def check_new_adapter(ex, rng):
    out, width, r = integer(rng, 5, 6), integer(rng, 600, 800), integer(rng, 3, 4)
    W, seed = normal(rng, out, width), integer(rng, 0, 2**30)
    torch.manual_seed(integer(rng, 0, 2**30))
    A, B = pair(call(ex.new_adapter, W, r, seeded(rng, seed)), "A and B")
    assert isinstance(A, Tensor) and isinstance(B, Tensor), "A and B should be tensors"
    assert A.shape == (r, width), f"A should have the shape (r, in) = ({r}, {width}), not {tuple(A.shape)}"
    assert B.shape == (out, r), f"B should have the shape (out, r) = ({out}, {r}), not {tuple(B.shape)}"
    assert A.dtype == B.dtype == torch.float32, "A and B should be float32"
    assert A.requires_grad and B.requires_grad, "both A and B are trained: requires_grad_()"
    assert A.is_leaf and B.is_leaf, (
        "A and B should be leaves, which an optimizer takes: require the gradient last, when nothing more is computed"
    )
    assert A.any() or B.any(), (
        "A and B are both zero, so the gradient of each is zero: the adapter would never learn anything"
    )
    assert not (B @ A).any(), "B A is not zero: the model would be changed before it has learned anything"
    assert A.any(), "A should be random and B zero, not the other way round: as in the paper and in peft"
    A = A.detach()
    std, of = (
        float(A.std()),
        {
            "1": 1.0,
            "1 / sqrt(r)": r**-0.5,
            "1 / sqrt(in)": width**-0.5,
            "that of the uniform numbers of peft's default": (3 * width) ** -0.5,
        },
    )
    for name, value in of.items():
        assert abs(std / value - 1) > 0.1, f"the standard deviation of A is {name}; it should be 1 / r"
    assert abs(std * r - 1) < 0.1, f"at rank {r}, the standard deviation of A should be 1/{r}, not {std:.3g}"
    assert abs(float(A.mean())) < 0.15 / r, "the mean of A should be 0: torch.randn, not torch.rand"
    assert float((A.abs() * r > 2).float().mean()) > 0.02, (
        "the numbers of A are not Gaussian: with torch.randn, one in twenty lies beyond two standard deviations"
    )
    torch.manual_seed(integer(rng, 0, 2**30))
    state = torch.get_rng_state()
    again, other = ex.new_adapter(W, r, seeded(rng, seed))[0], ex.new_adapter(W, r, seeded(rng, seed + 1))[0]
    assert torch.equal(A, again), "the same seed gave two adapters: draw from rng, torch.randn(..., generator=rng)"
    assert not torch.equal(A, other), "two seeds gave the same adapter: draw from rng, torch.randn(..., generator=rng)"
    assert torch.equal(state, torch.get_rng_state()), (
        "you changed the global generator, so other random numbers of the program change: draw from rng alone"
    )


def check_merge_adapters(ex, rng):
    one = integer(rng, 4, 6)
    # square: A B exists, too
    for out, width, ranks in ((one, one, (one,)), (integer(rng, 5, 6), integer(rng, 7, 8), (2, 3, 4))):
        W, scales = normal(rng, out, width), [uniform(rng, 0.3, 0.8) + 0.7 * k for k in range(len(ranks))]
        adapters = [(normal(rng, r, width), normal(rng, out, r), uniform(rng, 2, 8)) for r in ranks]
        check_one_merge(ex, W, adapters, scales)
    none = call(ex.merge_adapters, W, [], [])
    expect(none, W, "with no adapter W' should be W")
    assert none is not W, "a new matrix was expected, not W itself: changing the result would change the model"
    merged = ex.merge_adapters(W, adapters, scales)
    back = ex.merge_adapters(merged, adapters, [-scale for scale in scales])
    expect(back, W, "merged again with negated scales, W' should become W", atol=1e-3)


def check_one_merge(ex, W, adapters, scales):
    def added(factor, product=lambda A, B: B @ A) -> Tensor:
        return sum(
            (
                scale * factor(alpha, len(A)) * product(A, B)
                for (A, B, alpha), scale in zip(adapters, scales, strict=True)
            ),
            torch.zeros_like(W),
        )

    def rightly(alpha, r):
        return alpha / r

    right = W + added(rightly)
    wrong = {
        "alpha is not divided by the rank": W + added(lambda alpha, r: alpha),
        "alpha / r is missing": W + added(lambda alpha, r: 1),
        "alpha is missing": W + added(lambda alpha, r: 1 / r),
        "you divided by the root of the rank; LoRA has 1 / r": W + added(lambda alpha, r: alpha / r**0.5),
        "you divided by the rank twice, or by its square": W + added(lambda alpha, r: alpha / r**2),
        "you divided by the width of the layer, not by the rank": W + added(lambda alpha, r: alpha / W.shape[1]),
        "you divided by the number of the layer's outputs, not by the rank": W
        + added(lambda alpha, r: alpha / W.shape[0]),
        "this is B A alone: where is W?": added(rightly),
        "the sign is wrong": W - added(rightly),
        "the mean of the adapters was added; it is their sum": W + added(rightly) / len(scales),
        "W loses what the adapters get: W is not multiplied by anything": (1 - sum(scales)) * W + added(rightly),
        "you divided by the sum of the scales; they need not add up to 1": W + added(rightly) / sum(scales),
        "the scale is missing": W + sum(alpha / len(A) * B @ A for A, B, alpha in adapters),
        "only the first adapter is merged": W
        + scales[0] * adapters[0][2] / len(adapters[0][0]) * adapters[0][1] @ adapters[0][0],
        "only the last adapter is merged": W
        + scales[-1] * adapters[-1][2] / len(adapters[-1][0]) * adapters[-1][1] @ adapters[-1][0],
        "all adapters were given the first one's rank": W + added(lambda alpha, r: alpha / len(adapters[0][0])),
        "the scales are in the wrong order": W
        + sum(s * alpha / len(A) * B @ A for (A, B, alpha), s in zip(adapters, scales[::-1], strict=True)),
    }
    if W.shape[0] == W.shape[1] == len(adapters[0][0]):
        wrong |= {
            "this is A B; the product of shape (out, in) is B A": W + added(rightly, lambda A, B: A @ B),
            "the product is transposed": W + added(rightly, lambda A, B: (B @ A).T),
        }
    wrong = {message: value for message, value in wrong.items() if not close(value, right)}
    lent = [tensor for A, B, _ in adapters for tensor in (A, B)]
    before = [tensor.clone() for tensor in lent]
    got = call(ex.merge_adapters, W, list(adapters), list(scales))
    unchanged("the adapters", lent, before)
    expect(got, right, "W' should be W + sum scale alpha / r B A", wrong)


# --------------------------------------------------------------------------------------------- exercises 3, 4 and 5


class Counted(torch.autograd.Function):
    """A mark in the graph: is it still waiting to be differentiated?"""

    @staticmethod
    def forward(ctx, values, error):
        ctx.error = error
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.error.waiting -= 1
        return gradient, None


class PartError:
    """Squared error of each image's prediction cos(image . weights). Remembers its answers, and which of them have not
    yet been differentiated.
    """

    def __init__(self):
        self.sizes, self.answers, self.waiting, self.most = [], [], 0, 0

    def look(self, weights: Tensor, part: Tensor) -> Tensor:
        return (torch.cos(part @ weights) - 0.3).square()

    def __call__(self, weights: Tensor, part: Tensor) -> Tensor:
        self.sizes.append(len(part))
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        self.answers.append(Counted.apply(self.look(weights, part), self))
        return self.answers[-1]


def check_accumulate(ex, rng):
    D = integer(rng, 4, 6)
    sizes = [integer(rng, 4, 6), integer(rng, 4, 6), integer(rng, 1, 2)]
    parts = [normal(rng, n, D) * (k + 1) for k, n in enumerate(sizes)]  # the small part is unlike the others
    error, weights, left = PartError(), normal(rng, D).requires_grad_(), normal(rng, D)
    weights.grad = left.clone()

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, weights)[0]

    each = [error.look(weights, part) for part in parts]
    N, K = sum(sizes), len(sizes)
    means = [gradient(e.mean()) for e in map(error.look, K * [weights], parts)]
    total = gradient(torch.cat(each).sum())
    last = gradient(error.look(weights, parts[-1]).sum())
    first = gradient(error.look(weights, parts[0]).sum())
    right = total / N
    wrong = {
        "this is the mean of the parts' means; all images count the same, those of a small part, too": sum(means) / K,
        "this is the sum of the parts' means: it was divided by the size of each part, not by that of all": sum(means),
        "this is the sum over all images: divide by their number": total,
        "the sums were divided by the number of parts, not of images": total / K,
        "the sums were divided by the size of the first part times their number": total / (K * sizes[0]),
        "this is the last part alone": last / sizes[-1],
        "this is the last part's share alone: the gradients are not added up": last / N,
        "this is the first part alone": first / sizes[0],
        "the gradient of the step before is still in it: begin with weights.grad = None": right + left,
    }
    got = call(ex.accumulate, error, weights, parts)
    expect(got, right, "this is not the gradient of the mean error over all images", wrong)
    assert max(error.sizes) <= max(sizes), (
        "the parts were put together; with the memory of one part, ask for the error of one part at a time"
    )
    assert error.sizes == sizes, f"of {K} parts error should be called {K} times, each part once, in their order"
    assert error.most == 1, (
        "backward() comes too late: it should free the memory of each part before the next part is computed"
    )
    assert all(public.is_freed(answer, weights) for answer in error.answers), (
        "backward(retain_graph=True) keeps the memory of every part, and saving it is the purpose of accumulation"
    )


def check_averaged(ex, rng):
    shapes = [(integer(rng, 2, 4), integer(rng, 2, 4)), (integer(rng, 1, 5),), ()]
    weights = [normal(rng, *shape).requires_grad_() for shape in shapes]
    averages = [normal(rng, *shape) for shape in shapes]
    held, trained, means = (list(weights), *([w.detach().clone() for w in some] for some in (weights, averages)))

    def same(tensors, numbers) -> bool:
        return all(torch.equal(tensor.detach(), number) for tensor, number in zip(tensors, numbers, strict=True))

    for problem in (None, ZeroDivisionError, KeyboardInterrupt):
        draw, given = public.Drawing(held, problem and problem("from draw")), list(weights)
        try:
            got = ex.averaged(given, averages, draw)
        except (ZeroDivisionError, KeyboardInterrupt):
            assert problem, "your function raised an error of its own"
            assert same(held, trained), (
                "where draw fails, the weights stay the averages: put them back in `finally`, which also runs after Ctrl-C"
            )
        else:
            assert not problem, "an error in draw was swallowed: `finally` lets it pass, `except` does not"
            assert got == "a picture", "what draw returns should be returned"
        assert len(draw.seen) == 1, f"draw should be called once, not {len(draw.seen)} times"
        assert all(now is old for now, old in zip(given, held, strict=True)), (
            "you put new tensors into the list; write into the old ones, as copy_ does"
        )
        assert same(map(torch.tensor, draw.seen[0]), means), "while draw runs, the weights should hold the averages"
        assert not same(held, means), (
            "afterwards the weights still hold the averages: did you keep the tensors instead of a copy of their numbers?"
        )
        assert same(held, trained), "afterwards the weights should hold again what they held before"
        assert same(averages, means), "the averages should stay as they are"
        assert torch.is_grad_enabled(), "afterwards, gradients should be recorded as before"
        assert all(weight.requires_grad and weight.is_leaf for weight in held), (
            "the weights should still require a gradient"
        )


def check_prior_loss(ex, rng):
    subject, others = integer(rng, 2, 4), integer(rng, 5, 8)
    kind = torch.cat([torch.zeros(subject), torch.ones(others)])[
        torch.randperm(subject + others, generator=rng)
    ].bool()
    prior = uniform(rng, 0.3, 0.7)
    base = torch.rand(len(kind), generator=rng) + 0.2 + kind.float()
    each = base.clone().requires_grad_()
    mean, its = base[~kind].mean(), base[kind].mean()
    wrong = {
        "the prior's weight is on the subject": prior * mean + its,
        "the two groups are swapped: is_class is True for class images": its + prior * mean,
        "this is one mean over all images; it should be a mean for each group": torch.where(
            kind, prior * base, base
        ).mean(),
        "these are sums; they should be means": base[~kind].sum() + prior * base[kind].sum(),
        "prior is missing": mean + its,
        "the whole was divided by 1 + prior": (mean + prior * its) / (1 + prior),
        "the whole was divided by 2": (mean + prior * its) / 2,
        "this is the subject alone": mean,
        "these are the class images alone": prior * its,
        "this is a mixture, (1 - prior) of the subject; the subject keeps its weight of 1": (1 - prior) * mean
        + prior * its,
    }
    got = call(ex.prior_loss, each, kind, prior)
    expect(got, mean + prior * its, "this is not the subject's mean + prior times that of the class images", wrong)
    assert got.requires_grad, (
        "no gradient reaches the network: compute with the tensor as it comes, with no item() and no detach()"
    )
    (gradient,) = torch.autograd.grad(got, each)
    expect(gradient, torch.where(kind, prior / others, 1 / subject), "the gradient of the loss is wrong")
    nan = "with no image of a group, its mean is NaN; it should add nothing"
    for some, right in ((torch.zeros_like(kind), base.mean()), (torch.ones_like(kind), prior * base.mean())):
        got = call(ex.prior_loss, each, some, prior)
        assert not isinstance(got, Tensor) or not got.isnan().any(), nan
        expect(got, right, "with images of one group only, the loss is that group's")
        assert not torch.autograd.grad(got, each)[0].isnan().any(), nan


# --------------------------------------------------------------------------------------------- exercises 6, 7 and 8


def check_weigh_word(ex, rng):
    for w in (uniform(rng, 1.3, 2.0), uniform(rng, 0.6, 0.8), uniform(rng, 0.2, 0.4), 0.0, 1.0):
        M = integer(rng, 6, 8)
        # square, so that a weight could be laid along the wrong axis
        z, empty, hidden = (normal(rng, M, M) for _ in range(3))
        begin, number = integer(rng, 1, 3), integer(rng, 1, 2)
        word = torch.zeros(M, dtype=torch.bool)
        word[begin : begin + number] = True
        check_one_weight(ex, z, empty, hidden, word, w)


def check_one_weight(ex, z, empty, hidden, word, w):
    s = torch.where(word, w, 1.0)

    def moved(v: Tensor, s: Tensor = s[:, None]) -> Tensor:
        return empty + s * (v - empty)

    r = math.tan((1 - w) * math.pi / 2) if w < 1 else 0.0
    upside_down = math.tan(w * math.pi / 2) if w < 1 else 0.0

    def mixed(first: Tensor, second: Tensor, r: float = r) -> Tensor:
        return (first + r * second) / (1 + r)

    both = (moved(z), moved(hidden))
    right = mixed(*both)
    wrong = {
        "the vectors were multiplied, away from 0; they should move away from those of the empty prompt": mixed(
            s[:, None] * z, s[:, None] * hidden
        ),
        "all vectors were moved, not only the word's": mixed(moved(z, w), moved(hidden, w)),
        "the others were moved, and not the word": mixed(
            moved(z, torch.where(word, 1.0, w)[:, None]), moved(hidden, torch.where(word, 1.0, w)[:, None])
        ),
        "the weights went to the components, not to the tokens: give s the shape (M, 1)": mixed(
            moved(z, s), moved(hidden, s)
        ),
        "below 1, the embeddings without the word must be mixed in": moved(z),
        "these are only the embeddings without the word": moved(hidden),
        "the embeddings without the word must be moved, too": mixed(moved(z), hidden),
        "the unmoved vectors were mixed": mixed(z, hidden),
        "the sum is not divided by 1 + r": moved(z) + r * moved(hidden),
        "w is the share of the embeddings with the word; it should be 1 / (1 + r)": w * both[0] + (1 - w) * both[1],
        "r is inverted: the smaller w, the larger the share without the word": mixed(*both, upside_down),
        "degrees are not radians: (1 - w) pi / 2": mixed(*both, math.tan(math.radians((1 - w) * math.pi / 2))),
        "this is the prompt without weights": z,
        "above 1, nothing of hidden should be mixed in": mixed(*both, math.tan((1 - w) * math.pi / 2)),
        "above 1, the vectors should be moved, too": z if w > 1 else right,
    }
    wrong = {message: value for message, value in wrong.items() if not close(value, right)}
    got = call(ex.weigh_word, z, empty, hidden, word, w)
    assert not isinstance(got, Tensor) or torch.isfinite(got).all(), (
        f"at weight {w:.3g} the result holds NaN or infinity"
    )
    expect(got, right, f"at weight {w:.3g} these are not the moved (and, below 1, mixed) vectors", wrong)


def check_controlled(ex, rng):
    B, levels = integer(rng, 2, 3), integer(rng, 2, 3)
    shapes = [(B, integer(rng, 3, 5), 8 >> k, 6 >> k) for k in range(levels)]
    shapes += [shapes[-1]]  # two of one shape, as the U-Net has them: a wrong order would be possible
    features, residuals = ([normal(rng, *shape) for shape in shapes] for _ in range(2))
    kernels, biases = [normal(rng, C, C, 1, 1) for _, C, _, _ in shapes], [normal(rng, C) for _, C, _, _ in shapes]
    strength = uniform(rng, 0.3, 0.7)
    given = {"features": features, "residuals": residuals, "kernels": kernels, "biases": biases}
    before = {name: [tensor.clone() for tensor in some] for name, some in given.items()}
    got = ex.controlled(*(list(some) for some in given.values()), strength)
    for name, some in given.items():
        assert all(torch.equal(a, b) for a, b in zip(some, before[name], strict=True)), (
            f"controlled changes {name}, which belong to the caller"
        )
    assert isinstance(got, list), (
        f"a list of tensors was expected here, not {type(got).__name__}: is a `return` missing?"
    )
    assert len(got) == len(shapes), f"of {len(shapes)} features there should be as many new ones, not {len(got)}"
    for k, answer in enumerate(got):
        check_one_level(answer, *(before[name][k] for name in given), strength, last=before["residuals"][::-1][k])

    none = ex.controlled(*(list(some) for some in given.values()), 0.0)
    for new, old in zip(none, features, strict=True):
        expect(new, old, "at scale 0 nothing of the ControlNet should be left, and all of the U-Net")
    learning = {name: [tensor.clone().requires_grad_() for tensor in some] for name, some in given.items()}
    answers = ex.controlled(*learning.values(), strength)
    for k, (f, residual, K, b) in enumerate(zip(*learning.values(), strict=True)):
        inputs = {"features": f, "residuals": residual, "kernels": K, "biases": b}
        expect_gradients(answers[k], f + strength * F.conv2d(residual, K, b), inputs)


def check_one_level(got, f, r, K, b, strength, last):
    said = F.conv2d(r, K, b)
    wrong = {
        "the kernel is transposed: F.conv2d takes channels out, channels in": f
        + strength * F.conv2d(r, K.transpose(0, 1), b),
        "the biases are missing": f + strength * F.conv2d(r, K),
        "only the kernel's part is multiplied by the scale, not the bias": f + F.conv2d(r, strength * K, b),
        "only the bias is multiplied by the scale": f + F.conv2d(r, K, strength * b),
        "the scale is missing": f + said,
        "the features are multiplied by the scale, too; they stay as they are": strength * (f + said),
        "the features are multiplied by the scale, and the residuals are not": strength * f + said,
        "this is a mixture, (1 - scale) of the features; they stay as they are": (1 - strength) * f + strength * said,
        "the convolution is missing: the residuals were added as they are": f + strength * r,
        "the features are gone; the convolved residuals are added to them": strength * said,
        "the convolution was given the features; it is for the residuals": f + strength * F.conv2d(f, K, b),
        "the convolution was given features and residuals; it is for the residuals": f
        + strength * F.conv2d(f + r, K, b),
        "the sign is wrong: it is added": f - strength * said,
        "values below 0 were cut off; there is no activation here": f + strength * said.relu(),
    }
    if last.shape == r.shape:
        wrong["the residuals came in the wrong order"] = f + strength * F.conv2d(last, K, b)
    expect(got, f + strength * said, "this is not features + scale (K * residual + b)", wrong)


def levels(rng: torch.Generator, N: int) -> tuple[Tensor, Tensor]:
    """Alpha and sigma along a sampler of N steps, from pure noise to clean, no two steps alike. Each (N + 1,)"""
    angle = torch.cat([torch.zeros(1), (0.3 + torch.rand(N, generator=rng)).cumsum(0)])
    angle = (angle / angle[-1]).flip(0) * math.pi / 2
    alpha, sigma = angle.cos(), angle.sin()
    alpha[0], sigma[0], alpha[-1], sigma[-1] = 0, 1, 1, 0
    return alpha, sigma


class Walker:
    """Some function of x and k, remembering what it was asked."""

    def __init__(self):
        self.x, self.k = [], []

    def look(self, x: Tensor, k: int) -> Tensor:
        return torch.cos(x + k) * 2

    def __call__(self, x: Tensor, k: int) -> Tensor:
        self.x.append(x.clone())
        self.k.append(k)
        return self.look(x, k)


def scratched(rng: torch.Generator, B: int, h: int, w: int, f: int) -> Tensor:
    """A mask of pixels: a box, and for each picture one pixel outside of it. (B, 1, f h, f w)"""
    mask = torch.zeros(B, 1, f * h, f * w)
    mask[..., : f * 2, : f * 2] = 1
    for i in range(B):
        mask[
            i,
            0,
            f * integer(rng, 3, h - 1) + integer(rng, 1, f - 1),
            f * integer(rng, 3, w - 1) + integer(rng, 1, f - 1),
        ] = 1
    return mask


def check_inpaint(ex, rng):
    B, C, h, w, f, N = (
        integer(rng, 2, 3),
        4,
        integer(rng, 5, 6),
        integer(rng, 7, 8),
        integer(rng, 2, 4),
        integer(rng, 3, 5),
    )
    x, z, eps, walker = *(normal(rng, B, C, h, w) for _ in range(3)), Walker()
    mask, (alpha, sigma) = scratched(rng, B, h, w, f), levels(rng, N)
    got = call(ex.inpaint, walker, x, z, eps, mask, f, alpha, sigma)
    assert walker.k == list(range(N)), (
        f"with {N} steps, step should be called with k = 0 to {N - 1}, once each, not with {' '.join(map(str, walker.k)) or 'none'}"
    )
    m = F.max_pool2d(mask, f)
    wrong = {
        "the known part was put back before the step; it comes after it": m * x
        + (1 - m) * (alpha[0] * z + sigma[0] * eps)
    }
    expect(walker.x[0], x, "the first step should begin with x as it is given", wrong)
    seen = [*walker.x[1:], got]
    for k, state in enumerate(seen):
        check_one_state(state, walker.look(walker.x[k], k), z, eps, mask, f, k, alpha, sigma)
    known = (m == 0).expand_as(z)
    assert torch.equal(got[known], z[known]), "at the end the known part should be exactly z: alpha_N = 1, sigma_N = 0"


def check_one_state(got, drawn, z, eps, mask, f, k, alpha, sigma):
    N, m = len(alpha) - 1, F.max_pool2d(mask, f)

    def put(known: Tensor, m: Tensor = m) -> Tensor:
        return m * drawn + (1 - m) * known

    known = alpha[k + 1] * z + sigma[k + 1] * eps
    wrong = {
        "the mask is the wrong way round: 1 is to be drawn anew": put(known, 1 - m),
        "a thin scratch was missed: one masked pixel of f x f is enough for a place to be drawn anew (F.max_pool2d)": put(
            known, F.interpolate(mask, z.shape[-2:])
        ),
        "the shrunk mask has values between 0 and 1: one masked pixel of f x f is enough for a place to be drawn anew completely": put(
            known, F.avg_pool2d(mask, f)
        ),
        "a place should be drawn anew even if some of its pixels are known": put(
            known, (F.avg_pool2d(mask, f) == 1).float()
        ),
        "the known part was not put back after the last step"
        if k == N - 1
        else "the known part was not put back after this step": drawn,
        "the known part was put back without noise; it must be as noisy as level k + 1": put(z),
        "the known part has the noise of level k, but step k leads to level k + 1": put(alpha[k] * z + sigma[k] * eps),
        "alpha and sigma are swapped": put(sigma[k + 1] * z + alpha[k + 1] * eps),
        "you used variances where alpha and sigma belong": put(alpha[k + 1] ** 2 * z + sigma[k + 1] ** 2 * eps),
        "noise was added to the whole of z: it has the factor alpha": put(z + sigma[k + 1] * eps),
        "everything is the known image: where is the drawn part?": known,
    }
    right = put(known)
    wrong = {message: value for message, value in wrong.items() if not close(value, right)}
    expect(
        got,
        right,
        f"after step {k} this is not m x + (1 - m) known (did you draw noise of your own? it is given, as eps)",
        wrong,
    )


# ------------------------------------------------------------------------------------------- exercises 9 to 13


def check_img2img_start(ex, rng):
    shape, N = (integer(rng, 2, 3), 4, integer(rng, 3, 4), 5), integer(rng, 11, 15)
    z, eps = normal(rng, *shape), normal(rng, *shape)
    times = sorted((torch.randperm(990, generator=rng)[:N] + 5).tolist(), reverse=True)
    alpha_bar = torch.linspace(0.99, 0.01, 1000)
    for strength in (uniform(rng, 0.3, 0.7), uniform(rng, 0.93, 0.99), 1.0, 0.5 / N):
        check_one_start(ex, z, eps, times, alpha_bar, strength)
    fifty = list(range(980, -1, -20))
    check_one_start(ex, z, eps, fifty, alpha_bar, 0.58)


def check_one_start(ex, z, eps, times, alpha_bar, strength):
    N = len(times)
    n = min(int(strength * N), N)
    x, rest = parts(call(ex.img2img_start, z, eps, list(times), alpha_bar, strength), 2, "x and the timesteps")
    rest = [int(t) for t in rest]
    if rest != times[N - n :]:
        assert len(rest) != n + 1, (
            f"int rounds down: with strength {strength:.3g}, {n} of {N} timesteps remain, not {n + 1}"
        )
        assert len(rest) == n, f"with strength {strength:.3g}, {n} of {N} timesteps remain, not {len(rest)}"
        raise AssertionError(f"the last {n} timesteps remain, {times[N - n :][:3]} ..., not {rest[:3]} ...")

    def at(t: int) -> Tensor:
        return alpha_bar[t].sqrt() * z + (1 - alpha_bar[t]).sqrt() * eps

    if n == 0:
        expect(x, z, "where no timestep remains, x is z itself")
        return
    a = alpha_bar[rest[0]]
    wrong = {
        "alpha and sigma are the square roots of alpha_bar and 1 - alpha_bar": a * z + (1 - a) * eps,
        "alpha and sigma are swapped": (1 - a).sqrt() * z + a.sqrt() * eps,
        "z must be multiplied by alpha": z + (1 - a).sqrt() * eps,
        "this is the level of the sampler's first timestep; the level is that of the first that remains": at(times[0]),
        "this is the level of the last timestep; the level is that of the first that remains": at(times[-1]),
        "this is the level before the first timestep that remains": at(times[max(N - n - 1, 0)]),
    }
    right = at(rest[0])
    wrong = {message: value for message, value in wrong.items() if not close(value, right)}
    expect(x, right, f"x should be at the level of timestep {rest[0]}", wrong)


WORDS = (
    "down_blocks",
    "mid_block",
    "up_blocks",
    "attentions",
    "transformer_blocks",
    "attn1",
    "attn2",
    "ff_net",
    "proj_in",
)


def check_from_kohya(ex, rng):
    layers = []
    for k in torch.randperm(9, generator=rng).tolist()[:5]:
        layers.append(f"{WORDS[k]}.{integer(rng, 0, 3)}.{WORDS[(k + 4) % 9]}.to_{'qkv'[k % 3]}")
    file, right, order = {}, {}, torch.randperm(5, generator=rng).tolist()
    for place, layer in enumerate(layers[:4]):
        r, width, out = integer(rng, 1, 4), integer(rng, 5, 6), integer(rng, 7, 8)
        A, B, alpha = normal(rng, r, width), normal(rng, out, r), float(integer(rng, 5, 9))
        name = "lora_unet_" + layer.replace(".", "_")
        matrices = [(f"{name}.lora_up.weight", B), (f"{name}.lora_down.weight", A)]
        file |= dict(matrices[:: 1 if place % 2 else -1])
        if place != 1:
            file[f"{name}.alpha"] = torch.tensor(alpha)
        right[layer] = A, B, alpha if place != 1 else float(r)
    got = call(ex.from_kohya, dict(file), [layers[k] for k in order])
    assert isinstance(got, dict), f"a dict was expected here, not {type(got).__name__}: is a `return` missing?"
    missing, more = set(right) - set(got), set(got) - set(right)
    assert not more, (
        f"{next(iter(more))} is not a layer that the file adapts, under the name that the model has for it"
    )
    assert not missing, f"the adapter of {next(iter(missing))} is missing in your result"
    for layer, (A, B, alpha) in right.items():
        public.check_one_adapter(got[layer], layer, A, B, alpha)
    try:
        ex.from_kohya(dict(file), layers[1:])
    except KeyError as problem:
        flat_name = layers[0].replace(".", "_")
        assert flat_name in str(problem) or layers[0] in str(problem), "the KeyError should name the layer"
    else:
        raise AssertionError("the file adapts a layer that the model does not have: raise KeyError with its name")


def check_first_update(ex, rng):
    out, width, r = integer(rng, 3, 5), integer(rng, 6, 7), integer(rng, 2, 3)
    G, A, alpha, lr = normal(rng, out, width), normal(rng, r, width), uniform(rng, 4, 9), uniform(rng, 0.02, 0.08)
    wrong = public.first_update_mistakes(G, A, alpha, lr)
    right = public.by_autograd(G, A, alpha, lr)
    expect(call(ex.first_update, G, A, alpha, lr), right, "one step with autograd moves W' differently", wrong)


def check_merged_std(ex, rng):
    K = integer(rng, 2, 4)
    ranks, alphas = [integer(rng, 2, 9) for _ in range(K)], [uniform(rng, 1, 8) for _ in range(K)]
    stds = [(uniform(rng, 0.1, 0.9), uniform(rng, 1.1, 2.0)) for _ in range(K)]
    scales = [uniform(rng, 0.3, 0.9) * (-1) ** k for k in range(K)]
    parts_of = [s * alpha * a * b / r**0.5 for r, alpha, (a, b), s in zip(ranks, alphas, stds, scales, strict=True)]
    public.check_one_std(
        ex,
        ranks,
        alphas,
        stds,
        scales,
        math.hypot(*parts_of),
        "this is not the standard deviation of an entry of the sum",
    )


def check_ema_half_life(ex, rng):
    public.check_half_life(ex, uniform(rng, 0.55, 0.95))
    public.check_half_life(ex, 1 - 10 ** uniform(rng, -4, -2))


# ------------------------------------------------------------------------------------------- exercises 14 to 17


def check_fix_training_loop(ex, rng):
    D, goal = integer(rng, 2, 4), normal(rng, 3, 4)

    def gradient(weights: Tensor, k: int) -> Tensor:
        return torch.tanh(weights - goal[k % 3, :D]) + 0.1 * k

    for accumulation in (1, integer(rng, 2, 5)):
        steps, lr, decay = integer(rng, 2, 5), uniform(rng, 0.1, 0.4), uniform(rng, 0.6, 0.9)
        public.check_loop(ex, gradient, normal(rng, D), steps, accumulation, lr, decay)


def check_fix_img2img(ex, rng):
    shape, N = (2, 4, integer(rng, 3, 4), 5), integer(rng, 5, 8)
    times = sorted((torch.randperm(990, generator=rng)[:N] + 5).tolist(), reverse=True)
    c = uniform(rng, 0.3, 0.7)

    def predict(x: Tensor, t: int) -> Tensor:
        return torch.sin(c * x) + 0.001 * t

    for n in (integer(rng, 1, N - 1), N):
        public.check_img2img(
            ex, normal(rng, *shape), normal(rng, *shape), times, torch.linspace(0.97, 0.03, 1000), n, predict
        )


def check_fix_min_snr(ex, rng):
    public.check_min_snr(ex, 0.02 + 0.96 * torch.rand(integer(rng, 8, 12), generator=rng), uniform(rng, 2, 6))


def check_merge_to_rank(ex, rng):
    for rank in (2, 7):
        public.check_merged(ex, integer(rng, 1, 2**20), rank)


EXERCISES = [
    Exercise("new_adapter", 2, check_new_adapter),
    Exercise("merge_adapters", 2, check_merge_adapters),
    Exercise("accumulate", 3, check_accumulate),
    Exercise("averaged", 3, check_averaged),
    Exercise("prior_loss", 2, check_prior_loss),
    Exercise("weigh_word", 3, check_weigh_word),
    Exercise("controlled", 2, check_controlled),
    Exercise("inpaint", 4, check_inpaint),
    Exercise("img2img_start", 2, check_img2img_start),
    Exercise("from_kohya", 3, check_from_kohya),
    Exercise("first_update", 3, check_first_update),
    Exercise("merged_std", 2, check_merged_std),
    Exercise("ema_half_life", 2, check_ema_half_life),
    Exercise("fix_training_loop", 2, check_fix_training_loop),
    Exercise("fix_img2img", 2, check_fix_img2img),
    Exercise("fix_min_snr", 2, check_fix_min_snr),
    Exercise("merge_to_rank", 3, check_merge_to_rank, goal=True),
]
