"""Tests for you: each uses numbers that can be checked by hand. See README.md, "How to work".

python -m pytest 05_finetune_diffusers/exercises -x --tb=line -q      your exercises.py, up to the first failure
EXERCISES=mine.py python -m pytest 05_finetune_diffusers/exercises          another file
"""

import os
from pathlib import Path

import pytest
import torch

from common.grade.checks import call, expect, load, parts


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
    assert A.any(), "A should be random and B zero, not the other way round: that is how everyone's adapters begin"


def test_1_how_random(ex):
    A, _ = pair(ex.new_adapter(torch.ones(3, 2000), 5, rng()), "A and B")
    assert abs(float(A.detach().mean())) < 0.02, "the mean of A should be 0: torch.randn, not torch.rand"
    std = float(A.detach().std())
    assert abs(std - 1) > 0.05, "the standard deviation of A is 1; it should be 1 / r, here 1/5"
    assert abs(std - 5**-0.5) > 0.02, "the standard deviation of A is 1 / root of r; it should be 1 / r"
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
        ex.merge_adapters(merged, adapters, [-0.5, -2.0]), W, "merged again with the signs turned, W' should become W"
    )


# ---------------------------------------------------------------------------------------------------- 3. accumulate


class SquaredError:
    """(w x - 1)^2 of each number x of a part.
    Remembers what it was asked, and which answers have not yet been derived.
    """

    def __init__(self):
        self.sizes, self.waiting, self.most = [], 0, 0

    def __call__(self, weights, part):
        self.sizes.append(len(part))
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        return Counted.apply((weights * part - 1).square(), self)


class Counted(torch.autograd.Function):
    """Nothing but a mark in the graph: is it still waiting to be derived?"""

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
    assert error.sizes == [1, 1, 1], f"of three parts the error should be asked three times, not {len(error.sizes)}"
    assert error.most == 1, (
        "backward() comes too late: it should free the memory of each part before the next one is looked at"
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


def test_4_there_and_back(ex):
    weights, averages = two_weights()
    held = list(weights)
    with ex.averaged(weights, averages):
        assert all(now is before for now, before in zip(weights, held, strict=True)), (
            "you put new tensors into the list; write into the old ones, as copy_ does"
        )
        assert same(held, AVERAGES), "within the `with`, the weights should hold the averages: 5, 6 and 7"
        assert same(averages, AVERAGES), "the averages are only lent: they should stay 5, 6 and 7"
    assert not same(held, AVERAGES), (
        "afterwards the weights still hold the averages: was it the tensors that you kept, and not their numbers?"
    )
    assert same(held, TRAINED), "afterwards the weights should be again 1, 2 and 3"
    assert same(averages, AVERAGES), "the averages are only lent: they should stay 5, 6 and 7"
    assert all(weight.requires_grad and weight.is_leaf for weight in held), (
        "the weights should go on requiring a gradient"
    )


def test_4_if_drawing_fails(ex):
    weights, averages = two_weights()
    try:
        with ex.averaged(weights, averages):
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("an error within the `with` was swallowed: `finally` lets it pass, `except` does not")
    assert same(weights, TRAINED), "where drawing fails, the weights stay the averages: put them back in `finally`"


def test_4_gradients_within(ex):
    for wanted in (True, False):
        weights, averages = two_weights()
        with torch.set_grad_enabled(wanted):
            with ex.averaged(weights, averages):
                assert torch.is_grad_enabled() == wanted, (
                    "whether gradients are recorded within the `with` is the caller's affair: `yield` outside of no_grad()"
                )
            assert torch.is_grad_enabled() == wanted, "afterwards, gradients should be recorded as before"


# ---------------------------------------------------------------------------------------------------- 5. prior_loss


def test_5_two_of_one_and_three_of_the_other(ex):
    each, kind = torch.tensor([1.0, 10, 3, 20, 60], requires_grad=True), torch.tensor([False, True, False, True, True])
    got = call(ex.prior_loss, each, kind, 0.5)
    wrong = {
        "the prior's weight is on the subject": 1 + 30,
        "the two groups are swapped: kind is True for images of the kind": 30 + 1,
        "this is one mean over all images; it should be a mean for each group": (4 + 0.5 * 90) / 5,
        "these are sums; they should be means": 4 + 0.5 * 90,
        "prior is missing": 2 + 30,
        "the whole was divided by 1 + prior": 17 / 1.5,
        "the whole was divided by 2": 17 / 2,
        "this is the subject alone": 2,
        "this is the kind alone": 15,
        "this is a mixture, (1 - prior) of the subject; the subject keeps its weight of 1": 1 + 15,
    }
    wrong = {message: torch.tensor(float(value)) for message, value in wrong.items()}
    expect(
        got,
        torch.tensor(17.0),
        "the subject's mean is (1 + 3) / 2, that of the kind (10 + 20 + 60) / 3: 2 + 0.5 * 30",
        wrong,
    )
    assert got.requires_grad, (
        "no gradient reaches the network: compute with the tensor as it comes, with no item() and no detach()"
    )
    (gradient,) = torch.autograd.grad(got, each)
    expect(
        gradient,
        torch.tensor([1 / 2, 1 / 6, 1 / 2, 1 / 6, 1 / 6]),
        "the gradient of each error should be 1/2 for the subject's, 0.5 / 3 for the kind's",
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


def test_6_louder(ex):
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


def test_6_softer(ex):
    got = call(ex.weigh_word, *prompt(), 0.5)
    moved, without = (
        torch.tensor([[1.0, 0, 0], [2, 2, 2], [3.5, 3.5, 5]]),
        torch.tensor([[1.0, 0, 0], [4, 4, 2], [2.5, 2.5, 3]]),
    )
    wrong = {
        "below 1, what the prompt is without the word must be mixed in": moved,
        "this is only what the prompt is without the word; at 1/2 it is half of it": without,
        "the sum is not divided by 1 + r": moved + without,
        "what is without the word must be moved, too": (moved + HIDDEN) / 2,
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
        "w is the share of what is with the word; it should be 1 / (1 + r)": Z + 4 / 3,
        "r is upside down: the smaller w, the more of what is without the word": Z + 4 / (1 + r),
        "r is tan(w pi / 2); it should be tan((1 - w) pi / 2)": Z + 4 * (1 / r) / (1 + 1 / r),
        "degrees are not radians: (1 - w) pi / 2": Z + 4 * 0.0052 / 1.0052,
    }
    expect(got, Z + 4 * r / (1 + r), "at weight 2/3, r = tan(30 degrees) = 0.577", wrong)


def test_6_not_at_all_and_as_it_is(ex):
    got = call(ex.weigh_word, *prompt(), 0.0)
    assert not isinstance(got, torch.Tensor) or torch.isfinite(got).all(), "at weight 0 there is infinity or NaN in it"
    right = torch.tensor([[1.0, 0, 0], [4, 4, 2], [2, 2, 2]])
    expect(got, right, "at weight 0 the word is the empty prompt's, 2 2 2, and the others have never seen it")
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
        "only the kernel's part is multiplied by strength, not the bias": feature(1 + 6.5, 2 + 19.0),
        "only the bias is multiplied by strength": feature(1 + 4.0, 2 + 8.0),
        "strength is missing": feature(1 + 3.5, 2 + 9.0),
        "the features are multiplied by strength, too; they stay as they are": feature(2 + 7.0, 4 + 18.0),
        "the features are multiplied by strength, and not what the ControlNet says": feature(2 + 3.5, 4 + 9.0),
        "this is a mixture, (1 - strength) of the features; they stay as they are": feature(-1 + 7.0, -2 + 18.0),
        "the convolution is missing: the residuals were added as they are": feature(1 + 2.0, 2 + 2.0),
        "the features are gone; what the ControlNet says is added to them": feature(7.0, 18.0),
        "the convolution was given the features; it is for the residuals": feature(1 + 11.0, 2 + 38.0),
        "the sign is wrong: it is added": feature(1 - 7.0, 2 - 18.0),
    }
    expect(
        got[0],
        feature(1 + 7.0, 2 + 18.0),
        "the kernel makes 3 and 10 of 1 and 1, the bias 3.5 and 9, strength 7 and 18; the features are 1 and 2",
        wrong,
    )
    expect(got[1], feature(3 + 20.0), "at the second level the kernel makes 10 of 2, strength 20; the feature is 3")


def test_7_untrained_it_changes_nothing_but_learns(ex):
    features, residuals, kernels, biases = two_levels()
    kernels = [torch.zeros_like(kernel).requires_grad_() for kernel in kernels]
    got = ex.controlled(features, residuals, kernels, [torch.zeros_like(bias) for bias in biases], 1.0)
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
            f"controlled changes {name}, which it was only lent"
        )


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
    assert step.k == [0, 1], f"of 2 steps, step should be asked for k = 0 and 1, not {' '.join(map(str, step.k))}"
    wrong = {"the old picture was put back before the step, too early: it comes after it": halves(7.0, -1.0)}
    expect(step.x[0], flat(7.0), "the first step begins with x as it is given", wrong)
    wrong = {
        "the mask is the wrong way round: 1 is to be drawn anew": halves(5.2, 8.0),
        "the old picture was put in without noise; it must be as noisy as level k + 1": halves(8.0, 10.0),
        "the old picture has the noise of level k, but step k leads to level k + 1": halves(8.0, -1.0),
        "alpha and sigma are swapped": halves(8.0, 0.8 * 10 - 0.6),
        "the old picture was not put back after the first step, only at the end": halves(8.0, 8.0),
        "the old picture is noise alone": halves(8.0, -0.8),
        "you used variances where alpha and sigma belong": halves(8.0, 3.6 - 0.64),
    }
    expect(
        step.x[1],
        halves(8.0, 5.2),
        "at level 1 the left should be 7 + 1, the right 0.6 * 10 + 0.8 * -1 (is it noise of your own? it is given, as eps)",
        wrong,
    )
    wrong = {
        "after the last step the old picture was not put back": halves(9.0, 6.2),
        "at the end the old picture has noise in it": halves(9.0, 5.2),
        "all is the old picture: where is what was drawn?": flat(10.0),
    }
    expect(got, halves(9.0, 10.0), "at the end the left should be 7 + 1 + 1, the right exactly 10", wrong)


def test_8_a_thin_scratch(ex):
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, 3, 2] = 1  # one pixel, in the place at the bottom right
    got = call(ex.inpaint, Steps(), flat(7.0), flat(10.0), flat(-1.0), mask, 2, ALPHA, SIGMA)
    place = torch.tensor([[0.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    wrong = {
        "a thin scratch was missed: one of its f x f pixels is enough for a place to be drawn anew (F.max_pool2d)": flat(
            10.0
        ),
        "the mask has greys in it: one of f x f pixels is enough for a place to be drawn anew, and wholly": 10
        + place * ((5.2 + 0.25 * (8 - 5.2) + 1) - 10) / 4,
    }
    expect(got, 10 + place * (9 - 10), "only the place with the scratched pixel is drawn anew, and it wholly", wrong)
