"""Chapter 5 with your own hands: eight functions that the professional tools are made of, from a LoRA to inpainting.

Work from top to bottom. exercises.py is for you to fill in; solutions.py shows one way to do it. None needs another.

The conventions are those of trainer.py, lora.py and degradations.py:
  W         (out, in) the matrix of a linear layer: its answer to x is W x
  A, B      (r, in) and (out, r), the two thin matrices of an adapter of rank r; its alpha is a number
  weights   tensors that are trained: they require a gradient
  z         (B, C, h, w) a clean latent, scaled
  x         a noisy latent, x = alpha z + sigma eps: alpha says how much of z is left, sigma how much noise there is
  a mask    1 where the picture is to be drawn anew, 0 where it is known
Apart from what a docstring says, no function changes the tensors it is given.
"""

import math  # noqa: F401 - for your answers, as the others are
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: F401
from torch import Tensor

Adapter = tuple[Tensor, Tensor, float]  # A (r, in), B (out, r), alpha
Error = Callable[[Tensor, Tensor], Tensor]  # (D,) weights, (n, ...) images -> (n,) error of each
Step = Callable[[Tensor, int], Tensor]  # x at level k, k -> x at level k + 1


def new_adapter(W: Tensor, rank: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Exercise 1. A LoRA that has learned nothing yet: two thin matrices beside a frozen one.

    W' = W + alpha / r B A                                                    (Hu et al. 2021, section 4.1)

    A is random, Gaussian with mean 0 and standard deviation 1 / r, and B is zero. So W' is W in the beginning, and
    training starts with the model as it was.

    W        (out, in) the frozen matrix
    rank     r
    rng      draw from it, torch.randn(..., generator=rng), so that the same seed gives the same adapter
    returns  A (r, in) and B (out, r), float32; both are to be trained, so both require a gradient

    Watch out: with A and B both zero W' is W, too, and for ever: the gradient of each is a product with the other.
    """
    # --- solution
    A = torch.randn(rank, W.shape[1], generator=rng) / rank
    return A.requires_grad_(), torch.zeros(W.shape[0], rank, requires_grad=True)
    # --- end


def merge_adapters(W: Tensor, adapters: list[Adapter], scales: list[float]) -> Tensor:
    """Exercise 2. Bake adapters into the matrix that they stand beside: then they cost no time any more.

    W' = W + sum_k scale_k alpha_k / r_k B_k A_k

    Each adapter has its own rank and its own alpha. Its scale says how strongly it acts: 0 not at all, 1 as it was
    trained, below 0 the opposite way. Merged again with the scales' signs turned, W' becomes W.

    W         (out, in)
    adapters  K triples A (r_k, in), B (out, r_k), alpha_k; K may be 0
    scales    K numbers
    returns   (out, in), a new matrix

    Watch out: which is the product of shape (out, in),
    A B or B A? And the rank is in none of the arguments; where can you see it?
    """
    # --- solution
    for (A, B, alpha), scale in zip(adapters, scales, strict=True):
        W = W + scale * alpha / len(A) * B @ A
    return W
    # --- end


def accumulate(error: Error, weights: Tensor, parts: list[Tensor]) -> Tensor:
    """Exercise 3. The gradient of a large batch with the memory of a small one: part by part, added up.

    g = d/dweights 1/N sum error_i                                            over all N images of all parts

    error    called as error(weights, part), answers (n,), one number for each image of the part
    weights  (D,) requires a gradient; weights.grad may still hold what the step before has left there, and may be
             overwritten
    parts    tensors (n, ...); the last may have fewer images than the others
    returns  (D,) the gradient, the same as if all parts had been one batch

    Watch out: the mean of the parts' means is another number where parts are not alike; then the images of a small
    part count for more. (Large libraries had this wrong for years.) And call backward() part by part: it sets the
    memory of a part free. The sum of all errors with one backward() at the end holds all parts at
    once, and nothing is won.
    """
    # --- solution
    N = sum(len(part) for part in parts)
    weights.grad = None
    for part in parts:
        (error(weights, part).sum() / N).backward()
    return weights.grad
    # --- end


@torch.no_grad()
def write(weights: list[Tensor], values: list[Tensor]) -> None:
    """Copy numbers into the weights: given, for your answer to exercise 4."""
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)


@contextmanager
def averaged(weights: list[Tensor], averages: list[Tensor]) -> Iterator[None]:
    """Exercise 4. Borrow the averaged weights (EMA) for a validation picture,
    and go on training as if nothing had been.

        with averaged(weights, averages):     within, the network draws with the averages
            draw()
        ...                                   afterwards the weights are again what they were

    Before `yield`: keep what the weights are, and copy the averages into them. After it: put back what you kept, and
    that even if drawing fails (try: ... finally: ...), for a training may catch the error and go on.

    weights   the network's own tensors, which require a gradient. Write into them (weight.copy_), for the optimizer
              and the network hold these very tensors; new ones in the list would change nothing for them
    averages  as many, of the same shapes; they are only lent, and stay as they are

    Watch out: kept = list(weights) keeps the tensors, not their numbers. A tensor that requires a gradient can be
    written into only where no gradients are recorded, as write() above does; but whether they are within the `with` is
    the caller's own affair.
    """
    # --- solution
    kept = [weight.detach().clone() for weight in weights]
    write(weights, averages)
    try:
        yield
    finally:
        write(weights, kept)
    # --- end


def prior_loss(each: Tensor, kind: Tensor, prior: float) -> Tensor:
    """Exercise 5. DreamBooth's loss: learn this one creature, and do not forget what creatures are.

    loss = mean over the subject's images of each + prior mean over the images of its kind of each     (Ruiz et al.
    2022, eq. 2)

    each     (N,) error of each image, with its gradient
    kind     (N,) bool: True for an image of the kind, which the model drew itself; False for one of the subject
    prior    weight of prior preservation; 0 is off
    returns  a number, (), with its gradient

    Watch out: two means, for the two groups may have different sizes, and the weight must not depend on them. And the
    mean of an empty group is NaN: a group with no image adds nothing.
    """
    # --- solution
    means = [(weight, each[group].mean()) for weight, group in ((1.0, ~kind), (prior, kind)) if group.any()]
    return sum(weight * mean for weight, mean in means)
    # --- end


def weigh_word(z: Tensor, empty: Tensor, hidden: Tensor, word: Tensor, w: float) -> Tensor:
    """Exercise 6. Prompt weights as Compel has them: how much one word of a prompt counts.

    moved(v) = empty + s (v - empty)      with s = w at the word's own tokens, s = 1 at all others

    w >= 1:  moved(z)
    w < 1:   (moved(z) + r moved(hidden)) / (1 + r),   r = tan((1 - w) pi / 2)

    A weight above 1 moves the word's vectors away from those of the empty prompt. A weight below 1 moves them nearer;
    and because the other words have looked at this one, what they are without it is mixed in, all the more the smaller
    w is: at 1/2 half and half.

    z        (M, D) the text encoder's vectors of the prompt, one for each token
    empty    (M, D) those of the empty prompt
    hidden   (M, D) those of the prompt in which no token may look at the word
    word     (M,) bool, True at the word's tokens
    w        0 or more
    returns  (M, D)

    Watch out: not w z, as in some other programs: that would move the vectors away from 0, which means nothing to the
    U-Net. And to multiply vectors, a weight for each token needs the shape (M, 1).
    """
    # --- solution
    s = torch.where(word, w, 1.0)[:, None]  # (M, 1)
    moved, without = (empty + s * (v - empty) for v in (z, hidden))
    if w >= 1:
        return moved
    r = math.tan((1 - w) * math.pi / 2)
    return (moved + r * without) / (1 + r)
    # --- end


def controlled(
    features: list[Tensor], residuals: list[Tensor], kernels: list[Tensor], biases: list[Tensor], strength: float
) -> list[Tensor]:
    """Exercise 7. How a ControlNet speaks to the U-Net that it was copied from:
    through convolutions that begin at zero.

    features_k + strength (K_k * residual_k + b_k)                            (Zhang et al. 2023, section 3.2; * is a
    convolution)

    The convolutions are 1 x 1: at each place a matrix, the same at all places. Their kernels and biases are zero
    before training, so that the U-Net then draws exactly as it did; and yet they learn, for the gradient of a kernel
    is made of the residuals.

    features   tensors (B, C_k, h_k, w_k), what the U-Net's first half has to say at each resolution
    residuals  as many of the same shapes, what the ControlNet has
    kernels    tensors (C_k, C_k, 1, 1), as F.conv2d takes them: channels out, channels in
    biases     tensors (C_k,)
    strength   how loud the ControlNet is: 0 is not at all
    returns    the new features, a list of tensors (B, C_k, h_k, w_k)

    Watch out: what is strength multiplied with? At 0 nothing of the ControlNet may be left, and all of the U-Net.
    """
    # --- solution
    return [f + strength * F.conv2d(r, K, b) for f, r, K, b in zip(features, residuals, kernels, biases, strict=True)]
    # --- end


def inpaint(
    step: Step, x: Tensor, z: Tensor, eps: Tensor, mask: Tensor, f: int, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """Exercise 8. Draw a part of a picture anew, with a model that never learned to: show it the rest at every step.

    Once:                   m = 1 where any of the f x f pixels that belong to a place is to be drawn anew, else 0
    For k = 0 ... N - 1:    x     = step(x, k)                                leads from level k to level k + 1
                            known = alpha_(k+1) z + sigma_(k+1) eps           the old picture at that same level
                            x     = m x + (1 - m) known                       (Lugmayr et al. 2022, eq. 8)

    step          called as step(x, k), N times, one after the other
    x             (B, C, h, w) at level 0, the noisiest
    z             (B, C, h, w) the clean latents of the picture
    eps           (B, C, h, w) the noise for it, the same at all levels
    mask          (B, 1, f h, f w), of pixels: 1 is to be drawn anew, 0 is known
    f             how many times smaller latents are, a side
    alpha, sigma  (N + 1,) the levels, noisiest first; alpha_N = 1, sigma_N = 0
    returns       (B, C, h, w) at level N. There, where m is 0, it is exactly z

    Watch out: a thin scratch may miss the one pixel that shrinking by F.interpolate looks at; F.max_pool2d looks at
    all. And the old picture must be as noisy as what stands beside it: an unnoised patch in a noisy picture is not
    what the network was trained on.
    """
    # --- solution
    m = F.max_pool2d(mask, f)
    for k in range(len(alpha) - 1):
        known = alpha[k + 1] * z + sigma[k + 1] * eps
        x = m * step(x, k) + (1 - m) * known
    return x
    # --- end
