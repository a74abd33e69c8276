"""Tests for you: each uses numbers that can be checked by hand. See README.md, "How to work".

python -m pytest 05_finetune_diffusers/exercises -x --tb=line -q      your exercises.py, up to the first failure
EXERCISES=mine.py python -m pytest 05_finetune_diffusers/exercises          another file
"""

import math
import os
from pathlib import Path

import pytest
import torch

from common.grade.checks import call, expect, expect_gradients, load, number, parts


@pytest.fixture(scope="module")
def ex():
    """The file with the answers."""
    return load(Path(os.environ.get("EXERCISES") or Path(__file__).with_name("exercises.py")), "exercises")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(got: object, what: str) -> tuple:
    return parts(got, 2, what)


# -------------------------------------------------------------------------------------------------- 1. new_adapter


def test_1_shapes_and_gradients(ex):
    A, B = pair(call(ex.new_adapter, torch.ones(6, 5), 2, rng()), "A and B")
    assert isinstance(A, torch.Tensor) and isinstance(B, torch.Tensor), "A and B should be tensors"
    assert A.shape == (2, 5), (
        f"of a matrix (6, 5) and rank 2, A should have the shape (r, in) = (2, 5), not {tuple(A.shape)}"
    )
    assert B.shape == (6, 2), (
        f"of a matrix (6, 5) and rank 2, B should have the shape (out, r) = (6, 2), not {tuple(B.shape)}"
    )
    assert A.requires_grad and B.requires_grad, "both A and B are trained: requires_grad_()"
    assert A.is_leaf and B.is_leaf, (
        "A and B should be leaves, which an optimizer takes: require the gradient last, when nothing more is computed"
    )


def test_1_nothing_is_changed_and_all_can_be(ex):
    A, B = pair(ex.new_adapter(torch.ones(6, 5), 2, rng()), "A and B")
    assert A.any() or B.any(), (
        "A and B are both zero, so the gradient of each is zero: the adapter would never learn anything"
    )
    assert not (B @ A).any(), "B A is not zero: the model would be changed before it has learned anything"
    assert A.any(), "A should be random and B zero, not the other way round: as in the paper and in peft"


def test_1_how_random(ex):
    A, _ = pair(ex.new_adapter(torch.ones(3, 2000), 5, rng()), "A and B")
    assert abs(float(A.detach().mean())) < 0.02, "the mean of A should be 0: torch.randn, not torch.rand"
    std = float(A.detach().std())
    assert abs(std - 1) > 0.05, "the standard deviation of A is 1; it should be 1 / r, here 1/5"
    assert abs(std - 5**-0.5) > 0.02, "the standard deviation of A is 1 / sqrt(r); it should be 1 / r"
    assert abs(std - 6000**-0.5) > 0.002, (
        "the standard deviation of A is that of the uniform numbers of peft's default; it should be 1 / r"
    )
    assert abs(std - 0.2) < 0.01, f"at rank 5, the standard deviation of A should be 1/5, not {std:.3g}"


def test_1_one_seed_one_adapter(ex):
    torch.manual_seed(1)
    first = ex.new_adapter(torch.ones(6, 5), 2, rng(3))[0]
    torch.manual_seed(2)
    again, other = ex.new_adapter(torch.ones(6, 5), 2, rng(3))[0], ex.new_adapter(torch.ones(6, 5), 2, rng(4))[0]
    assert torch.equal(first, again), "the same seed gave two adapters: draw from rng, torch.randn(..., generator=rng)"
    assert not torch.equal(first, other), (
        "two seeds gave the same adapter: draw from rng, torch.randn(..., generator=rng)"
    )


def test_1_the_global_generator_is_left_alone(ex):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    ex.new_adapter(torch.ones(6, 5), 2, rng(3))
    assert torch.equal(before, torch.get_rng_state()), (
        "you changed the global generator, so other random numbers of the program change: draw from rng alone"
    )


# ----------------------------------------------------------------------------------------------- 2. merge_adapters

W = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
ROW, COLUMN = torch.tensor([[1.0, 10.0]]), torch.tensor([[2.0], [3.0]])  # A and B of rank 1: B A is 2 20 / 3 30
PRODUCT = torch.tensor([[2.0, 20.0], [3.0, 30.0]])


def test_2_one_adapter(ex):
    # of rank 2, half of it unused
    A, B = (torch.cat([ROW, torch.zeros(1, 2)]), torch.cat([COLUMN, torch.zeros(2, 1)], 1))
    got = call(ex.merge_adapters, W.clone(), [(A, B, 8.0)], [0.75])
    wrong = {
        "alpha is not divided by the rank": W + 0.75 * 8 * PRODUCT,
        "alpha / r is missing": W + 0.75 * PRODUCT,
        "the scale is missing": W + 4 * PRODUCT,
        "this is A B; the product of shape (out, in) is B A": W + 3 * A @ B,
        "this is B A alone: where is W?": 3 * PRODUCT,
        "W loses what the adapter gets: W is not multiplied by anything": 0.25 * W + 3 * PRODUCT,
        "the sign is wrong": W - 3 * PRODUCT,
        "you divided by the rank twice, or by its square": W + 1.5 * PRODUCT,
        "you divided by the root of the rank; LoRA has 1 / r": W + 0.75 * 8 / 2**0.5 * PRODUCT,
        "the product is transposed": W + 3 * PRODUCT.T,
    }
    expect(got, W + 3 * PRODUCT, "alpha is 8 and the rank 2, so at scale 3/4 it should be W + 0.75 * 8 / 2 B A", wrong)


def test_2_the_rank(ex):
    got = call(ex.merge_adapters, W.clone(), [(ROW, COLUMN, 1.0)], [2.0])
    wrong = {"the rank is 1 here: the rows of A, or the columns of B": W + PRODUCT}
    expect(got, W + 2 * PRODUCT, "alpha and the rank are 1, so at scale 2 it should be W + 2 B A", wrong)


def test_2_none_and_several(ex):
    expect(call(ex.merge_adapters, W.clone(), [], []), W, "with no adapter W' should be W")
    other = (torch.eye(2), torch.eye(2), 2.0)  # of rank 2: adds the scale on the diagonal
    got = call(ex.merge_adapters, W.clone(), [(ROW, COLUMN, 1.0), other], [0.0, 5.0])
    wrong = {
        "only the first adapter is merged": W,
        "the scales are not each adapter's own": W + 5 * PRODUCT + 5 * torch.eye(2),
        "the scales are in the wrong order": W + 5 * PRODUCT,
        "at scale 0 an adapter should change nothing": W + PRODUCT + 5 * torch.eye(2),
        "the mean of the adapters was added; it is their sum": W + 2.5 * torch.eye(2),
    }
    expect(
        got,
        W + 5 * torch.eye(2),
        "the first adapter at scale 0, the second at 5: W with 5 more on the diagonal",
        wrong,
    )


def test_2_and_out_again(ex):
    adapters = [(ROW, COLUMN, 3.0), (torch.eye(2), torch.eye(2), 2.0)]
    merged = ex.merge_adapters(W.clone(), adapters, [0.5, 2.0])
    expect(
        ex.merge_adapters(merged, adapters, [-0.5, -2.0]), W, "merged again with negated scales, W' should become W"
    )


def test_2_a_new_matrix(ex):
    given = W.clone()
    for adapters, scales in (([], []), ([(ROW, COLUMN, 1.0)], [0.0])):
        assert ex.merge_adapters(given, adapters, scales) is not given, (
            "a new matrix was expected, not W itself: changing the result would change the model"
        )


# ---------------------------------------------------------------------------------------------------- 3. accumulate


class SquaredError:
    """(w x - 1)^2 of each number x of a part.
    Remembers what it was asked, its answers, and how many have not yet been differentiated.
    """

    def __init__(self):
        self.sizes, self.answers, self.waiting, self.most = [], [], 0, 0

    def __call__(self, weights, part):
        self.sizes.append(len(part))
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        self.answers.append(Counted.apply((weights * part - 1).square(), self))
        return self.answers[-1]


def is_freed(answer, weights) -> bool:
    """Whether the graph of an answer is gone, so that it cannot be differentiated again."""
    try:
        torch.autograd.grad(answer.sum(), weights)
    except RuntimeError:
        return True
    return False


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


def test_3_parts_of_unlike_sizes(ex):
    weights = torch.tensor([2.0], requires_grad=True)
    parts = [torch.tensor([1.0, 3.0]), torch.tensor([2.0])]  # gradients 2 x (2 x - 1) of the three: 2, 30, 12
    got = call(ex.accumulate, SquaredError(), weights, parts)
    wrong = {
        "this is the mean of the parts' means; all images count the same, those of a small part, too": [14.0],
        "this is the sum of the parts' means: it was divided by the size of each part, not by that of all": [28.0],
        "this is the sum over all images: divide by their number": [44.0],
        "the sums were divided by the number of parts, not of images": [22.0],
        "the sums were divided as if all parts were as large as the first": [11.0],
        "this is the last part alone": [12.0],
        "this is the last part's share alone: the gradients are not added up": [4.0],
        "this is the first part alone": [16.0],
    }
    wrong = {message: torch.tensor(value) for message, value in wrong.items()}
    expect(got, torch.tensor([44 / 3]), "the three images' gradients are 2, 30 and 12; their mean is 44 / 3", wrong)


def test_3_what_is_left_of_the_step_before(ex):
    weights = torch.tensor([2.0], requires_grad=True)
    weights.grad = torch.tensor([100.0])
    got = call(ex.accumulate, SquaredError(), weights, [torch.tensor([1.0]), torch.tensor([3.0])])
    wrong = {"the gradient of the step before is still in it: begin with weights.grad = None": torch.tensor([116.0])}
    expect(got, torch.tensor([16.0]), "the two images' gradients are 2 and 30; their mean is 16", wrong)


def test_3_one_part_at_a_time(ex):
    error, weights = SquaredError(), torch.tensor([2.0], requires_grad=True)
    ex.accumulate(error, weights, [torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([2.0])])
    assert max(error.sizes) == 1, (
        "the parts were put together; with the memory of one part, ask for the error of one part at a time"
    )
    assert error.sizes == [1, 1, 1], f"of three parts error should be called three times, not {len(error.sizes)}"
    assert error.most == 1, (
        "backward() comes too late: it should free the memory of each part before the next part is computed"
    )
    assert all(is_freed(answer, weights) for answer in error.answers), (
        "backward(retain_graph=True) keeps the memory of every part, and saving it is the purpose of accumulation"
    )


# ------------------------------------------------------------------------------------------------------ 4. averaged


def two_weights() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)], [
        torch.tensor([5.0, 6.0]),
        torch.tensor([[7.0]]),
    ]


def same(tensors, numbers) -> bool:
    return all(
        torch.equal(tensor.detach(), torch.tensor(number)) for tensor, number in zip(tensors, numbers, strict=True)
    )


TRAINED, AVERAGES = ([1.0, 2.0], [[3.0]]), ([5.0, 6.0], [[7.0]])


class Drawing:
    """Looks at the weights when it is called."""

    def __init__(self, weights, fails=None):
        self.weights, self.fails, self.seen = weights, fails, []

    def __call__(self):
        self.seen.append([weight.detach().clone().tolist() for weight in self.weights])
        if self.fails:
            raise self.fails
        return "a picture"


def test_4_there_and_back(ex):
    weights, averages = two_weights()
    held, draw = list(weights), Drawing(list(weights))
    got = ex.averaged(weights, averages, draw)
    assert len(draw.seen) == 1, f"draw should be called once, not {len(draw.seen)} times"
    assert all(now is before for now, before in zip(weights, held, strict=True)), (
        "you put new tensors into the list; write into the old ones, as copy_ does"
    )
    assert draw.seen == [list(AVERAGES)], "while draw runs, the weights should hold the averages: 5, 6 and 7"
    assert got == "a picture", "what draw returns should be returned"
    assert not same(held, AVERAGES), (
        "afterwards the weights still hold the averages: did you keep the tensors instead of a copy of their numbers?"
    )
    assert same(held, TRAINED), "afterwards the weights should be 1, 2 and 3 again"
    assert same(averages, AVERAGES), "the averages should stay 5, 6 and 7"
    assert all(weight.requires_grad and weight.is_leaf for weight in held), (
        "the weights should still require a gradient"
    )


def test_4_if_drawing_fails(ex):
    check_failing_draw(ex, ZeroDivisionError)


def test_4_if_drawing_is_interrupted(ex):
    check_failing_draw(ex, KeyboardInterrupt)


def check_failing_draw(ex, problem):
    weights, averages = two_weights()
    try:
        ex.averaged(weights, averages, Drawing(weights, problem("from draw")))
    except problem:
        pass
    else:
        raise AssertionError("an error in draw was swallowed: `finally` lets it pass, `except` does not")
    assert same(weights, TRAINED), (
        "where draw fails, the weights stay the averages: put them back in `finally`, which also runs after Ctrl-C"
    )


# ---------------------------------------------------------------------------------------------------- 5. prior_loss


def test_5_two_of_one_and_three_of_the_other(ex):
    each, kind = torch.tensor([1.0, 10, 3, 20, 60], requires_grad=True), torch.tensor([False, True, False, True, True])
    got = call(ex.prior_loss, each, kind, 0.5)
    wrong = {
        "the prior's weight is on the subject": 1 + 30,
        "the two groups are swapped: is_class is True for class images": 30 + 1,
        "this is one mean over all images; it should be a mean for each group": (4 + 0.5 * 90) / 5,
        "these are sums; they should be means": 4 + 0.5 * 90,
        "prior is missing": 2 + 30,
        "the whole was divided by 1 + prior": 17 / 1.5,
        "the whole was divided by 2": 17 / 2,
        "this is the subject alone": 2,
        "these are the class images alone": 15,
        "this is a mixture, (1 - prior) of the subject; the subject keeps its weight of 1": 1 + 15,
    }
    wrong = {message: torch.tensor(float(value)) for message, value in wrong.items()}
    expect(
        got,
        torch.tensor(17.0),
        "the subject's mean is (1 + 3) / 2, that of the class images (10 + 20 + 60) / 3: 2 + 0.5 * 30",
        wrong,
    )
    assert got.requires_grad, (
        "no gradient reaches the network: compute with the tensor as it comes, with no item() and no detach()"
    )
    (gradient,) = torch.autograd.grad(got, each)
    expect(
        gradient,
        torch.tensor([1 / 2, 1 / 6, 1 / 2, 1 / 6, 1 / 6]),
        "the gradient of each error should be 1/2 for the subject's, 0.5 / 3 for the class images'",
    )


def test_5_an_empty_group(ex):
    each, none = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([False, False])
    nan = "with no image of a group, its mean is NaN; it should add nothing"
    for kind, right in ((none, 2.0), (~none, 1.0)):
        got = call(ex.prior_loss, each, kind, 0.5)
        assert not isinstance(got, torch.Tensor) or not got.isnan().any(), nan
        expect(got, torch.tensor(right), "with images of one group only, the loss is that group's: 2, or 0.5 * 2")
        (gradient,) = torch.autograd.grad(got, each)
        assert not gradient.isnan().any(), nan


# ---------------------------------------------------------------------------------------------------- 6. weigh_word

# Three tokens, the last of which is the word; the others have another vector where they could not look at it.
Z, EMPTY = torch.tensor([[1.0, 0, 0], [2, 2, 2], [5, 5, 8]]), torch.tensor([[1.0, 0, 0], [1, 1, 1], [2, 2, 2]])
HIDDEN, WORD = torch.tensor([[1.0, 0, 0], [4, 4, 2], [3, 3, 4]]), torch.tensor([False, False, True])


def prompt() -> list[torch.Tensor]:
    """z, empty, hidden and word, as copies: so that an answer that overwrites them spoils no other test."""
    return [part.clone() for part in (Z, EMPTY, HIDDEN, WORD)]


def test_6_more(ex):
    got = call(ex.weigh_word, *prompt(), 2.0)
    wrong = {
        "the vectors were multiplied, away from 0; they should move away from those of the empty prompt": [
            Z[0],
            Z[1],
            2 * Z[2],
        ],
        "all vectors were moved, not only the word's": EMPTY + 2 * (Z - EMPTY),
        "the others were moved, and not the word": [2 * Z[0] - EMPTY[0], 2 * Z[1] - EMPTY[1], Z[2]],
        "this moves towards the empty prompt: empty + s (v - empty)": [Z[0], Z[1], Z[2] + 2 * (EMPTY[2] - Z[2])],
        "you added w times the difference to z itself; it is added to empty": [
            Z[0],
            Z[1],
            Z[2] + 2 * (Z[2] - EMPTY[2]),
        ],
        "the weights went to the components, not to the tokens: give s the shape (M, 1)": EMPTY
        + torch.tensor([1.0, 1, 2]) * (Z - EMPTY),
        "this is the prompt without weights": Z,
        "above 1, nothing of hidden should be mixed in": [HIDDEN[0], HIDDEN[1], 2 * HIDDEN[2] - EMPTY[2]],
        "the plain prompt is taken for all other tokens, but the word's vector is w (v - empty): empty is missing": [
            Z[0],
            Z[1],
            2 * (Z[2] - EMPTY[2]),
        ],
    }
    wrong = {
        message: value if isinstance(value, torch.Tensor) else torch.stack(value) for message, value in wrong.items()
    }
    right = torch.tensor([[1.0, 0, 0], [2, 2, 2], [8, 8, 14]])
    expect(got, right, "at weight 2 only the word moves, from 5 5 8 away from 2 2 2, as far again: 8 8 14", wrong)


def test_6_less(ex):
    got = call(ex.weigh_word, *prompt(), 0.5)
    moved, without = (
        torch.tensor([[1.0, 0, 0], [2, 2, 2], [3.5, 3.5, 5]]),
        torch.tensor([[1.0, 0, 0], [4, 4, 2], [2.5, 2.5, 3]]),
    )
    wrong = {
        "below 1, the embeddings without the word must be mixed in": moved,
        "these are only the embeddings without the word; at 1/2 they have half of the weight": without,
        "the sum is not divided by 1 + r": moved + without,
        "the embeddings without the word must be moved, too": (moved + HIDDEN) / 2,
        "the unmoved vectors were mixed": (Z + HIDDEN) / 2,
    }
    expect(
        got, (moved + without) / 2, "at weight 1/2, tan(pi / 4) = 1: half of moved(z), half of moved(hidden)", wrong
    )


def test_6_the_shares(ex):
    # nothing is moved, so only the mixture is seen
    got = call(ex.weigh_word, Z.clone(), Z.clone(), Z + 4, torch.tensor([False, False, False]), 2 / 3)
    r = 3**-0.5
    wrong = {
        "w is the share of the embeddings with the word; it should be 1 / (1 + r)": Z + 4 / 3,
        "r is inverted: the smaller w, the larger the share without the word": Z + 4 / (1 + r),
        "r is tan(w pi / 2); it should be tan((1 - w) pi / 2)": Z + 4 * (1 / r) / (1 + 1 / r),
        "degrees are not radians: (1 - w) pi / 2": Z + 4 * 0.0052 / 1.0052,
    }
    expect(got, Z + 4 * r / (1 + r), "at weight 2/3, r = tan(30 degrees) = 0.577", wrong)


def test_6_not_at_all_and_as_it_is(ex):
    got = call(ex.weigh_word, *prompt(), 0.0)
    assert not isinstance(got, torch.Tensor) or torch.isfinite(got).all(), (
        "at weight 0 the result holds NaN or infinity"
    )
    right = torch.tensor([[1.0, 0, 0], [4, 4, 2], [2, 2, 2]])
    expect(
        got,
        right,
        "at weight 0 the word has the empty prompt's embedding, 2 2 2, and the others are those without the word",
    )
    expect(call(ex.weigh_word, *prompt(), 1.0), Z, "at weight 1 the prompt should stay as it is: nothing of hidden")


# ---------------------------------------------------------------------------------------------------- 7. controlled


def feature(*values: float) -> torch.Tensor:
    """One picture; in each channel all places are the same. (1, C, 2, 3)"""
    return torch.tensor(values).view(1, -1, 1, 1).repeat(1, 1, 2, 3)


def two_levels() -> tuple[list, list, list, list]:
    kernel = torch.tensor([[1.0, 2.0], [0.0, 10.0]]).view(2, 2, 1, 1)
    return (
        [feature(1.0, 2.0), feature(3.0)],
        [feature(1.0, 1.0), feature(2.0)],
        [kernel, torch.full((1, 1, 1, 1), 5.0)],
        [torch.tensor([0.5, -1.0]), torch.zeros(1)],
    )


def test_7_two_levels(ex):
    got = ex.controlled(*two_levels(), 2.0)
    assert isinstance(got, list) and len(got) == 2, (
        "a list was expected here, of as many tensors as there are features: is a `return` missing?"
    )
    wrong = {
        "the kernel is transposed: F.conv2d takes channels out, channels in": feature(1 + 3.0, 2 + 22.0),
        "the biases are missing": feature(1 + 6.0, 2 + 20.0),
        "only the kernel's part is multiplied by the scale, not the bias": feature(1 + 6.5, 2 + 19.0),
        "only the bias is multiplied by the scale": feature(1 + 4.0, 2 + 8.0),
        "the scale is missing": feature(1 + 3.5, 2 + 9.0),
        "the features are multiplied by the scale, too; they stay as they are": feature(2 + 7.0, 4 + 18.0),
        "the features are multiplied by the scale, and the residuals are not": feature(2 + 3.5, 4 + 9.0),
        "this is a mixture, (1 - scale) of the features; they stay as they are": feature(-1 + 7.0, -2 + 18.0),
        "the convolution is missing: the residuals were added as they are": feature(1 + 2.0, 2 + 2.0),
        "the features are gone; the convolved residuals are added to them": feature(7.0, 18.0),
        "the convolution was given the features; it is for the residuals": feature(1 + 11.0, 2 + 38.0),
        "the sign is wrong: it is added": feature(1 - 7.0, 2 - 18.0),
    }
    expect(
        got[0],
        feature(1 + 7.0, 2 + 18.0),
        "1 and 1 become 3 and 10 by the kernel, 3.5 and 9 by the bias, 7 and 18 by the scale; the features are 1 and 2",
        wrong,
    )
    expect(
        got[1],
        feature(3 + 20.0),
        "at the second level 2 becomes 10 by the kernel and 20 by the scale; the feature is 3",
    )


def test_7_untrained_it_changes_nothing_but_learns(ex):
    features, residuals, kernels, biases = two_levels()
    kernels = [torch.zeros_like(kernel).requires_grad_() for kernel in kernels]
    got = ex.controlled(features, residuals, kernels, [torch.zeros_like(bias) for bias in biases], 1.0)
    assert isinstance(got, list), f"a list of tensors was expected, not {type(got).__name__}: is a `return` missing?"
    for new, old in zip(got, features, strict=True):
        expect(new.detach(), old, "with kernels and biases of zero the features should stay as they are")
    assert got[0].requires_grad, (
        "no gradient reaches the kernels: compute with the tensors as they come, with no detach() and no no_grad()"
    )
    (gradient,) = torch.autograd.grad(got[0].sum(), kernels[0])
    expect(
        gradient,
        torch.full((2, 2, 1, 1), 6.0),
        "the gradient of each kernel entry should be the sum of a residual's channel: 6 places of 1",
    )


def test_7_nothing_is_overwritten(ex):
    given, kept = two_levels(), two_levels()
    ex.controlled(*given, 2.0)
    for name, now, before in zip(("features", "residuals", "kernels", "biases"), given, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True)), (
            f"controlled changes {name}, which belong to the caller"
        )


def test_7_the_controlnet_behind_the_kernels_learns(ex):
    features, residuals, kernels, biases = two_levels()
    residuals = [residual.requires_grad_() for residual in residuals]
    got = ex.controlled(features, residuals, kernels, biases, 2.0)
    right = features[0] + 2 * (
        torch.einsum("oi,bihw->bohw", kernels[0][:, :, 0, 0], residuals[0]) + biases[0].view(1, -1, 1, 1)
    )
    expect_gradients(got[0], right, {"residuals": residuals[0]})


# ------------------------------------------------------------------------------------------------------- 8. inpaint

ALPHA, SIGMA = torch.tensor([0.0, 0.6, 1.0]), torch.tensor([1.0, 0.8, 0.0])  # of a sampler of two steps


def flat(value: float) -> torch.Tensor:
    return torch.full((1, 1, 2, 2), value)


class Steps:
    """Adds 1 in each step. Remembers what it was asked."""

    def __init__(self):
        self.x, self.k = [], []

    def __call__(self, x, k):
        self.x.append(x.clone())
        self.k.append(k)
        return x + 1


def left_half() -> torch.Tensor:
    """In pixels, f = 2: the left column of latents is drawn anew. (1, 1, 4, 4)"""
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    return mask


def halves(left: float, right: float) -> torch.Tensor:
    return torch.tensor([[left, right], [left, right]]).view(1, 1, 2, 2)


def test_8_two_steps(ex):
    step = Steps()
    got = call(ex.inpaint, step, flat(7.0), flat(10.0), flat(-1.0), left_half(), 2, ALPHA, SIGMA)
    assert step.k == [0, 1], f"with 2 steps, step should be called with k = 0 and 1, not {' '.join(map(str, step.k))}"
    wrong = {"the known part was put back before the step; it comes after it": halves(7.0, -1.0)}
    expect(step.x[0], flat(7.0), "the first step begins with x as it is given", wrong)
    wrong = {
        "the mask is the wrong way round: 1 is to be drawn anew": halves(5.2, 8.0),
        "the known part was put back without noise; it must be as noisy as level k + 1": halves(8.0, 10.0),
        "the known part has the noise of level k, but step k leads to level k + 1": halves(8.0, -1.0),
        "alpha and sigma are swapped": halves(8.0, 0.8 * 10 - 0.6),
        "the known part was not put back after the first step, only at the end": halves(8.0, 8.0),
        "the known part is noise alone": halves(8.0, -0.8),
        "you used variances where alpha and sigma belong": halves(8.0, 3.6 - 0.64),
    }
    expect(
        step.x[1],
        halves(8.0, 5.2),
        "at level 1 the left should be 7 + 1, the right 0.6 * 10 + 0.8 * -1 (did you draw noise of your own? it is given, as eps)",
        wrong,
    )
    wrong = {
        "after the last step the known part was not put back": halves(9.0, 6.2),
        "at the end the known part has noise in it": halves(9.0, 5.2),
        "everything is the known image: where is the drawn part?": flat(10.0),
    }
    expect(got, halves(9.0, 10.0), "at the end the left should be 7 + 1 + 1, the right exactly 10", wrong)


def test_8_a_thin_scratch(ex):
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, 3, 2] = 1  # one pixel, in the place at the bottom right
    got = call(ex.inpaint, Steps(), flat(7.0), flat(10.0), flat(-1.0), mask, 2, ALPHA, SIGMA)
    place = torch.tensor([[0.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    wrong = {
        "a thin scratch was missed: one masked pixel of f x f is enough for a place to be drawn anew (F.max_pool2d)": flat(
            10.0
        ),
        "the shrunk mask has values between 0 and 1: one masked pixel of f x f is enough for a place to be drawn anew completely": 10
        + place * ((5.2 + 0.25 * (8 - 5.2) + 1) - 10) / 4,
    }
    expect(got, 10 + place * (9 - 10), "only the place with the scratched pixel is drawn anew, and completely", wrong)


# ------------------------------------------------------------------------------------------------- 9. img2img_start

TIMES = [900, 700, 500, 300, 100]


def bars() -> torch.Tensor:
    """alpha_bar of 1,000 timesteps: 0.36 at 300, 0.81 at 100, 0.01 elsewhere."""
    alpha_bar = torch.full((1000,), 0.01)
    alpha_bar[300], alpha_bar[100] = 0.36, 0.81
    return alpha_bar


def test_9_two_of_five_steps(ex):
    got = call(ex.img2img_start, flat(10.0), flat(1.0), list(TIMES), bars(), 0.4)
    x, rest = parts(got, 2, "x and the timesteps")
    assert list(rest) != [900, 700], "these are the first timesteps, the noisiest; the last n remain"
    assert list(rest) == [300, 100], f"with strength 0.4 the last 2 of 5 timesteps remain, not {list(rest)}"
    wrong = {
        "alpha and sigma are the square roots of alpha_bar and 1 - alpha_bar": flat(3.6 + 0.64),
        "alpha and sigma are swapped": flat(8.0 + 0.6),
        "this is the level of the sampler's first timestep; the level is that of the first timestep that remains": flat(
            1.0 + 0.99**0.5
        ),
        "this is the level of the last timestep; the level is that of the first timestep that remains": flat(
            8.0 + 0.6 * 1
        ),
        "z must be multiplied by alpha": flat(10.8),
    }
    expect(x, flat(6.8), "at timestep 300, alpha is 0.6 and sigma 0.8: 0.6 * 10 + 0.8 * 1", wrong)


def test_9_int_rounds_down(ex):
    times = list(range(999, 0, -20))[:50]
    for strength, n in ((0.58, 28), (0.99, 49), (1.0, 50)):
        _, rest = parts(
            call(ex.img2img_start, flat(1.0), flat(1.0), list(times), bars(), strength), 2, "x and the timesteps"
        )
        assert len(rest) == n, f"int({strength} * 50) is {n}, so {n} timesteps remain, not {len(rest)}"


def test_9_no_step_at_all(ex):
    x, rest = parts(call(ex.img2img_start, flat(3.0), flat(1.0), list(TIMES), bars(), 0.1), 2, "x and the timesteps")
    assert list(rest) == [], (
        f"int(0.1 * 5) is 0, so no timestep remains, not {list(rest)}; mind that times[-0:] is everything"
    )
    expect(x, flat(3.0), "where no timestep remains, x is z itself")


# --------------------------------------------------------------------------------------------------- 10. from_kohya

LAYERS = ["down_blocks.0.attn_1.to_q", "mid_block.attn.to_out.0", "up_blocks.0.attn.to_v"]


def kohya(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """A file for two of three layers, of ranks 2 and 1."""
    first, second = "lora_unet_down_blocks_0_attn_1_to_q", "lora_unet_mid_block_attn_to_out_0"
    return {
        f"{first}.lora_down.weight": torch.ones(2, 3),
        f"{first}.lora_up.weight": torch.full((4, 2), 2.0),
        f"{first}.alpha": torch.tensor(0.5),
        f"{second}.lora_up.weight": torch.full((4, 1), 4.0),
        f"{second}.lora_down.weight": torch.full((1, 3), 3.0),
        f"{second}.alpha": torch.tensor(8.0),
    } | more


def test_10_two_layers(ex):
    got = call(ex.from_kohya, kohya(), list(LAYERS))
    assert isinstance(got, dict), f"a dict was expected here, not {type(got).__name__}: is a `return` missing?"
    assert "up_blocks.0.attn.to_v" not in got, (
        "the file does not adapt up_blocks.0.attn.to_v, so it is not in the result"
    )
    assert set(got) == set(LAYERS[:2]), (
        f"the file adapts {', '.join(LAYERS[:2])}; your names are {', '.join(map(str, got))}"
    )
    for layer, down, up, alpha in (
        (LAYERS[0], torch.ones(2, 3), torch.full((4, 2), 2.0), 0.5),
        (LAYERS[1], torch.full((1, 3), 3.0), torch.full((4, 1), 4.0), 8.0),
    ):
        check_one_adapter(got[layer], layer, down, up, alpha)


def check_one_adapter(got, layer, down, up, alpha):
    A, B, found = parts(got, 3, "A, B and alpha")
    assert not (isinstance(A, torch.Tensor) and A.shape == up.shape != down.shape), (
        f"A and B are swapped at {layer}: lora_down is A (r, in), and lora_up is B (out, r)"
    )
    expect(A, down, f"A of {layer} should be its lora_down.weight")
    expect(B, up, f"B of {layer} should be its lora_up.weight")
    assert not isinstance(found, torch.Tensor), "alpha should be a float, not a tensor: float(...)"
    rank, value = len(down), float(number(found, "alpha"))
    assert value != alpha / rank or rank == 1, f"alpha of {layer} is {alpha:g}; you returned alpha / r"
    assert value == alpha, f"alpha of {layer} should be {alpha:g}, not {value:g}"


def test_10_without_alpha(ex):
    file = {name: matrix for name, matrix in kohya().items() if not name.endswith(".alpha")}
    got = call(ex.from_kohya, file, list(LAYERS))
    for layer, rank in ((LAYERS[0], 2), (LAYERS[1], 1)):
        alpha = float(number(parts(got[layer], 3, "A, B and alpha")[2], "alpha"))
        assert alpha == rank, f"without an alpha in the file it is the rank, {rank}, not {alpha:g}"


def test_10_another_model(ex):
    try:
        call(ex.from_kohya, kohya(), LAYERS[1:])
    except KeyError as problem:
        assert "down_blocks" in str(problem), "the KeyError should name the layer that the model does not have"
    else:
        raise AssertionError("the file adapts a layer that the model does not have: raise KeyError with its name")


# ------------------------------------------------------------------------------------------------- 11. first_update


def by_autograd(G, A, alpha, lr):
    """One step of gradient descent on A and B, for the loss sum(G * W')."""
    A, B = A.clone().requires_grad_(), torch.zeros(len(G), len(A), requires_grad=True)
    change = alpha / len(A) * B @ A
    dA, dB = torch.autograd.grad((G * change).sum(), (A, B))
    return (alpha / len(A) * (B - lr * dB) @ (A - lr * dA)).detach()


def first_update_mistakes(G, A, alpha, lr) -> dict:
    f = alpha / len(A)
    return {
        "the factor alpha / r enters twice, in the gradient of B and in W'": -lr * f * G @ A.T @ A,
        "the factor alpha / r is missing": -lr * G @ A.T @ A,
        "the sign is wrong: the step goes against the gradient": lr * f**2 * G @ A.T @ A,
        "this is full fine-tuning, -lr G; a LoRA sees G only through A": -lr * G,
        "this is the change of full fine-tuning times a factor; a LoRA sees G only through A": -lr * f * G,
        "lr is missing": -(f**2) * G @ A.T @ A,
        "alpha is not divided by the rank": -lr * alpha**2 * G @ A.T @ A,
    }


def test_11_one_row(ex):
    G, A = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 1.0]])
    got = call(ex.first_update, G, A, 2.0, 0.1)
    right = torch.tensor([[-3.6, -1.2], [-2.4, -0.8]])  # -0.1 * 2^2 G A^T A
    expect(
        got,
        right,
        "with r = 1 and alpha = 2: dL/dB = 2 G A^T, so W' moves by 2 * (-0.1 * 2 G A^T) A",
        first_update_mistakes(G, A, 2.0, 0.1),
    )


def test_11_by_autograd(ex):
    draw = rng(1)
    G, A = torch.randn(4, 5, generator=draw), torch.randn(3, 5, generator=draw)
    expect(
        call(ex.first_update, G, A, 6.0, 0.05),
        by_autograd(G, A, 6.0, 0.05),
        "one step with autograd moves W' differently",
        first_update_mistakes(G, A, 6.0, 0.05),
    )


# --------------------------------------------------------------------------------------------------- 12. merged_std


def merged_std_mistakes(ranks, alphas, stds, scales) -> dict[str, float]:
    rows = list(zip(ranks, alphas, stds, scales, strict=True))
    each = [abs(s) * alpha * a * b / r**0.5 for r, alpha, (a, b), s in rows]
    return {
        "standard deviations of independent parts do not add up, variances do": sum(each),
        "this is the variance; take its root": sum(e**2 for e in each),
        "each entry of B A is a sum of r products, so its variance is r a^2 b^2": math.sqrt(
            sum((s * alpha / r * a * b) ** 2 for r, alpha, (a, b), s in rows)
        ),
        "alpha must be divided by the rank": math.sqrt(
            sum((s * alpha * a * b) ** 2 * r for r, alpha, (a, b), s in rows)
        ),
        "the scales are missing": math.sqrt(sum((e / s) ** 2 for e, s in zip(each, scales, strict=True))),
        "a and b are standard deviations, not variances": math.sqrt(
            sum((s * alpha) ** 2 * a * b / r for r, alpha, (a, b), s in rows)
        ),
        "this is the mean of the adapters; it is their sum": math.sqrt(sum(e**2 for e in each)) / len(each),
    }


def check_one_std(ex, ranks, alphas, stds, scales, right, hint, rel=1e-3):
    got = float(
        number(call(ex.merged_std, list(ranks), list(alphas), list(stds), list(scales)), "a standard deviation")
    )
    if math.isclose(got, right, rel_tol=rel):
        return
    for message, value in merged_std_mistakes(ranks, alphas, stds, scales).items():
        assert not math.isclose(got, value, rel_tol=1e-4), message
    raise AssertionError(f"{hint}; you return {got:.4g}")


def test_12_two_equal_ones(ex):
    one = [9], [9.0], [(0.25, 8 / 3)], [1.5]
    check_one_std(ex, *one, 3.0, "one adapter of rank 9 with factor 1: the variance is (3/2)^2 * 9 * (2/3)^2 = 9")
    check_one_std(ex, *(each * 2 for each in one), 18**0.5, "two of them: the variances add up to 18")


def test_12_by_monte_carlo(ex):
    ranks, alphas, stds, scales = [2, 8], [3.0, 4.0], [(0.5, 1.5), (0.2, 2.5)], [0.7, -1.2]
    draw, total = rng(2), torch.zeros(400, 400)
    for r, alpha, (a, b), s in zip(ranks, alphas, stds, scales, strict=True):
        A, B = a * torch.randn(r, 400, generator=draw), b * torch.randn(400, r, generator=draw)
        total += s * alpha / r * B @ A
    found = float(total.std())
    check_one_std(
        ex,
        ranks,
        alphas,
        stds,
        scales,
        found,
        f"160,000 entries of random adapters have the standard deviation {found:.3f}",
        rel=0.08,
    )


# ------------------------------------------------------------------------------------------------ 13. ema_half_life


def half_life_mistakes(decay: float) -> dict[str, float]:
    return {
        "this is 1 / (1 - decay), after which 1/e is left, and not one half": 1 / (1 - decay),
        "this is 1 / (1 - decay) / 2; the share falls as decay^n, not on a straight line": 0.5 / (1 - decay),
        "the share after n steps is decay^n; you solved (1 - decay)^n = 1/2": math.log(0.5) / math.log(1 - decay),
        "the sign is wrong": -math.log(0.5) / math.log(decay),
        "inverted: it is log(1/2) / log(decay)": math.log(decay) / math.log(0.5),
        "after so many steps 1/e is left, and not one half": -1 / math.log(decay),
    }


def check_half_life(ex, decay: float) -> None:
    share, n = 1.0, 0
    while share > 0.5:
        share, n = share * decay, n + 1
    got = float(number(call(ex.ema_half_life, decay), "a number of steps"))
    if n - 1 - 1e-6 < got <= n + 1e-6 and math.isclose(decay**got, 0.5, rel_tol=1e-4):
        return
    for message, value in half_life_mistakes(decay).items():
        assert not math.isclose(got, value, rel_tol=1e-4), message
    raise AssertionError(
        f"with decay {decay:g} the share is {share / decay:.3f} after {n - 1} steps and {share:.3f} after {n}; you return {got:.4g}"
    )


def test_13_by_doing_the_steps(ex):
    for decay in (0.9, 0.5, 0.99):
        check_half_life(ex, decay)


# -------------------------------------------------------------------------------------------- 14. fix_training_loop


def slope(weights, k):
    """Derivative of the error (w - k)^2 / 2 of batch k."""
    return weights - k


def trained(weights, steps, accumulation, lr, decay, *, mean=True, early=False, every=False, gradient=slope):
    average, k = weights.clone(), 0
    for _ in range(steps):
        total = torch.zeros_like(weights)
        for part in range(accumulation):
            total = total + gradient(weights, k) / (accumulation if mean else 1)
            k += 1
            if every and part < accumulation - 1:
                average = decay * average + (1 - decay) * weights
        if early:
            average = decay * average + (1 - decay) * weights
        weights = weights - lr * total
        if not early:
            average = decay * average + (1 - decay) * weights
    return weights, average


def check_loop(ex, gradient, weights, steps, accumulation, lr, decay):
    calls = []

    def recorded(now, k):
        calls.append(k)
        return gradient(now, k)

    got = parts(
        call(ex.fix_training_loop, recorded, weights, steps, accumulation, lr, decay), 2, "weights and average"
    )
    assert calls == list(range(steps * accumulation)), (
        f"the batches should be 0 to {steps * accumulation - 1} in order, not {calls}"
    )
    right = trained(weights, steps, accumulation, lr, decay, gradient=gradient)
    summed = trained(weights, steps, accumulation, lr, decay, mean=False, gradient=gradient)
    wrong = (
        {
            "the gradients of the batches are added, and their mean is needed: the step is accumulation times too long": summed[
                0
            ]
        }
        if accumulation > 1
        else {}
    )
    expect(got[0], right[0], "the weights are wrong", wrong)
    wrong = {
        "the average lags: update it after the step": trained(
            weights, steps, accumulation, lr, decay, early=True, gradient=gradient
        )[1],
        "the average itself was not decayed as given: decay * average + (1 - decay) * weights": trained(
            weights, steps, accumulation, lr, 1 - decay, gradient=gradient
        )[1],
    }
    if accumulation > 1:
        wrong["the average is updated for every batch; once for every optimizer step"] = trained(
            weights, steps, accumulation, lr, decay, every=True, gradient=gradient
        )[1]
    expect(got[1], right[1], "the average is wrong", wrong)


def test_14_with_and_without_accumulation(ex):
    for accumulation in (1, 4):
        check_loop(ex, slope, torch.tensor([2.0, -1.0]), 3, accumulation, 0.3, 0.8)


# -------------------------------------------------------------------------------------------------- 15. fix_img2img


def half(x, t):
    return 0.5 * x + 0.001 * t


def ddim_from(z, eps, times, alpha_bar, start=None, predict=half):
    """DDIM over all these times, beginning at the level `start`, by default that of the first."""
    a = alpha_bar[times[0] if start is None else start]
    x = a.sqrt() * z + (1 - a).sqrt() * eps
    for i, t in enumerate(times):
        a, noise = alpha_bar[t], predict(x, t)
        b = alpha_bar[times[i + 1]] if i + 1 < len(times) else torch.ones(())
        x = b.sqrt() * (x - (1 - a).sqrt() * noise) / a.sqrt() + (1 - b).sqrt() * noise
    return x


def check_img2img(ex, z, eps, times, alpha_bar, n, predict=half):
    right = ddim_from(z, eps, times[len(times) - n :], alpha_bar, predict=predict)
    wrong = {
        "the image is noised to the first of all timesteps, and denoised from the n-th last: it is too noisy for that level": ddim_from(
            z, eps, times[len(times) - n :], alpha_bar, times[0], predict
        ),
        "all timesteps are visited; only the last n": ddim_from(z, eps, times, alpha_bar, predict=predict),
        "the first n timesteps are visited; the last n": ddim_from(z, eps, times[:n], alpha_bar, predict=predict),
        "the image is noised to the last timestep; it is the first of those that are visited": ddim_from(
            z, eps, times[len(times) - n :], alpha_bar, times[-1], predict
        ),
    }
    wrong = {message: value for message, value in wrong.items() if not torch.allclose(value, right)}
    expect(
        call(ex.fix_img2img, predict, z, eps, list(times), alpha_bar, n),
        right,
        f"with n = {n} of {len(times)} timesteps the result is wrong",
        wrong,
    )


def test_15_low_and_full_strength(ex):
    alpha_bar = torch.linspace(0.98, 0.02, 1000)
    for n in (1, 2, 5):
        check_img2img(ex, flat(1.0), flat(-2.0), TIMES, alpha_bar, n)


# -------------------------------------------------------------------------------------------------- 16. fix_min_snr


def min_snr_mistakes(alpha_bar, gamma, prediction) -> dict:
    snr = alpha_bar / (1 - alpha_bar)
    capped = snr.clamp(max=gamma)
    return {
        "for v, this divides by SNR as well: a squared error of v of 1 is a squared error of x0 of sigma^2 = 1 / (SNR + 1)": capped
        / (snr * (snr + 1)),
        "these are the weights for x0 itself, without the conversion": capped,
        "these are the weights for eps; v needs 1 / (SNR + 1)": capped / snr
        if prediction == "v"
        else capped / (snr + 1),
        "it should be the smaller of SNR and gamma, not the larger": snr.clamp(min=gamma)
        / (snr + 1 if prediction == "v" else snr),
    }


def check_min_snr(ex, alpha_bar, gamma):
    for prediction in ("v", "eps"):
        snr = alpha_bar / (1 - alpha_bar)
        right = snr.clamp(max=gamma) / (snr + 1 if prediction == "v" else snr)
        expect(
            call(ex.fix_min_snr, alpha_bar, gamma, prediction),
            right,
            f"the weights for {prediction} are wrong",
            min_snr_mistakes(alpha_bar, gamma, prediction),
        )


def test_16_three_levels(ex):
    check_min_snr(ex, torch.tensor([0.9, 0.5, 0.1]), 5.0)  # SNR 9, 1 and 1/9


def test_16_the_error_of_x0_has_the_weight_that_was_asked_for(ex):
    """x0 = alpha x - sigma v, so an error e of v is an error of sigma e of x0."""
    alpha_bar = torch.linspace(0.05, 0.95, 7)
    weight = call(ex.fix_min_snr, alpha_bar, 2.0, "v")
    snr = alpha_bar / (1 - alpha_bar)
    expect(weight / (1 - alpha_bar), snr.clamp(max=2.0), "divided by sigma^2, the weights should be min(SNR, gamma)")


# ------------------------------------------------------------------------------------------------ 17. merge_to_rank


def some_adapters(seed: int, side: int = 40) -> tuple[list, list[float]]:
    """Three adapters of ranks 8, 4 and 4 whose matrices differ widely in size, and scales."""
    draw, adapters = rng(seed), []
    for r, alpha, a, b in ((8, 8.0, 0.1, 3.0), (4, 16.0, 2.0, 0.05), (4, 2.0, 1.0, 1.0)):
        decay = 0.6 ** torch.arange(r)  # the directions of an adapter are not equally important
        adapters.append(
            (a * torch.randn(r, side, generator=draw), b * torch.randn(side, r, generator=draw) * decay, alpha)
        )
    return adapters, [1.0, 0.8, 0.6]


def merged(adapters, scales) -> torch.Tensor:
    return sum(s * alpha / len(A) * B @ A for (A, B, alpha), s in zip(adapters, scales, strict=True))


def check_merged(ex, seed: int, rank: int) -> None:
    adapters, scales = some_adapters(seed)
    D = merged(adapters, scales)
    A, B = parts(call(ex.merge_to_rank, adapters, scales, rank), 2, "A and B")
    expect_shape(A, (rank, D.shape[1]), "A")
    expect_shape(B, (D.shape[0], rank), "B")
    smallest = float(torch.linalg.svdvals(D)[rank:].square().sum().sqrt() / D.norm())
    error = float((D - B @ A).norm() / D.norm())
    balance = max(float(A.std() / B.std()), float(B.std() / A.std()))
    numbers = f"error {error:.3f}, the smallest possible is {smallest:.3f}; balance {balance:.2f}, goal 1.5"
    assert error <= 1.01 * smallest + 1e-6, (
        f"B A is not near enough to D: which directions of D matter most? ({numbers})"
    )
    assert balance <= 1.5, f"A and B differ too much in size: share the singular values between them ({numbers})"


def expect_shape(got, shape, name) -> None:
    assert isinstance(got, torch.Tensor), f"{name} should be a tensor, not {type(got).__name__}"
    assert tuple(got.shape) == shape, f"{name} should have the shape {shape}, not {tuple(got.shape)}"


def test_17_both_goals(ex):
    check_merged(ex, seed=0, rank=5)
