"""Chapter 2 with your own hands: seven functions,
from dropped captions to prompt adherence.

Work from top to bottom. exercises.py is for you to fill in; solutions.py shows one way to do it. None needs another.

The conventions are those of guidance.py:
  images   float32 in [-1, 1], shape (B, C, H, W)
  text     (B, M, D) a caption is M tokens (words, more or less), each a vector of D numbers; B captions, one for each
           image
  empty    (M, D) the empty caption, "", in the same form
  answer   (B, C, H, W) what a network says of noisy images x: the noise in them, or the image, or v. Guidance does not
           mind which
  cond     its answer when it is told the caption;  uncond  when it is told the empty one
  w        guidance scale: 0 ignores the caption, 1 is the honest answer to it, more overdoes it
No function changes the tensors it is given.
"""

import math  # noqa: F401 - for your answers, as torch is
from collections.abc import Callable

import torch  # noqa: F401
from torch import Tensor

Model = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, C, H, W) x, (B,) t, (B, M, D) text -> (B, C, H, W) answer
Encode = Callable[[list[str]], Tensor]  # N captions -> (N, M, D) text


def caption_dropout(text: Tensor, empty: Tensor, u: Tensor, p: float) -> Tensor:
    """Exercise 1. Drop some captions of a training batch, so that one network learns pictures with words and without.

    text_i <- empty  where u_i < p,  for each image i            (Ho & Salimans 2022, algorithm 1)

    text     (B, M, D)
    empty    (M, D)
    u        (B,) uniform random numbers in [0, 1): a die for each image
    p        the share of captions to drop, in practice 0.1 or 0.2; 0 drops none and 1 all
    returns  (B, M, D)

    Watch out: the images stay in the batch, and so there are still B captions. And u has the shape (B,); PyTorch lines
    it up with the last axis of text, the D numbers of a token, and says nothing where B happens to equal D.
    """
    raise NotImplementedError("exercise 1: caption_dropout")


def cross_attention(x: Tensor, text: Tensor, W_q: Tensor, W_k: Tensor, W_v: Tensor, heads: int) -> Tensor:
    """Exercise 2. Let every pixel read the words that concern it.

    Q = x W_q^T,  K = text W_k^T,  V = text W_v^T                 what pixels ask, how words answer to it, what words
                  say
    result = softmax(Q K^T / sqrt(d)) V,  d = C / heads           (Vaswani et al. 2017, eq. 1; Rombach et al. 2022,
                                          section 3.3)

    This is done for each head apart, with its own d columns of Q, K and V: head 0 has the columns 0 ... d-1, head 1
    the next d, and so on. The results of the heads stand side by side in the same order.

    x         (B, N, C) N pixels, each a vector of C numbers
    text      (B, M, D)
    W_q       (C, C) weights as nn.Linear keeps them, (out, in)
    W_k, W_v  (C, D)
    heads     divides C
    returns   (B, N, C)

    Watch out: each pixel spreads 100 % of its attention over the M words, so that is where the softmax sums to 1. And
    to cut Q into heads, first split the last axis, (B, N, heads, d), then move axes;
    a bare .view(B, heads, N, d) mixes pixels up.
    """
    raise NotImplementedError("exercise 2: cross_attention")


def guided(model: Model, x: Tensor, t: Tensor, context: Tensor, w: float) -> Tensor:
    """Exercise 3. Classifier-free guidance: ask with the caption and without, and overdo the difference.

    guided = uncond + w (cond - uncond)                           (Ho & Salimans 2022, eq. 6, with our w = 1 + their w)

    model    called as model(x, t, text), and called once: both halves run as one batch of 2B
    x        (B, C, H, W) noisy images
    t        (B,) what the network is told of their noise level
    context  (2B, M, D) first B times the empty (or negative) caption, then the B captions
    returns  (B, C, H, W) the guided answer

    Watch out: the images are doubled as the captions are, all of them and then all of them again:
    0 1 2 0 1 2, not 0 0 1 1 2 2.
    """
    raise NotImplementedError("exercise 3: guided")


def negative_prompt(encode: Encode, prompts: list[str], negatives: list[str | None]) -> Tensor:
    """Exercise 4. The captions of both halves: what to lead away from, then what to lead towards.

    Guidance goes away from uncond, whatever caption that is the answer to. A negative prompt takes the place of the
    empty one: "wings" there means without wings.
    (In the prompt itself, "without wings" mostly makes a network think of wings.)

    encode     called as encode(captions) with a list of strings, and called once, with all of them: it is a network,
               too
    prompts    B captions
    negatives  for each image its negative prompt; None where there is none, which means the empty caption, ""
    returns    (2B, M, D) first the B to lead away from, then the B prompts: the context of exercise 3
    """
    raise NotImplementedError("exercise 4: negative_prompt")


def rescale(guided: Tensor, cond: Tensor, phi: float) -> Tensor:
    """Exercise 5. Guidance makes answers strong, and pictures burnt out;
    give each the strength that it would have without.

    rescaled = guided * std(cond) / std(guided)                   (Lin et al. 2023, eq. 14 and 15)
    result   = phi rescaled + (1 - phi) guided                    (eq. 16)

    guided, cond  (B, C, H, W) answers, with guidance and without
    phi           from 0, which is off, to 1
    returns       (B, C, H, W)

    Watch out: each image has its own two standard deviations, over all its channels and pixels.
    """
    raise NotImplementedError("exercise 5: rescale")


def dynamic_threshold(x0: Tensor, share: float) -> Tensor:
    """Exercise 6. Guided images leave [-1, 1].
    Cut off there, they become large flat areas; shrunk, they keep their shape.

    s  = the value that a share of all |x0| keeps below (a quantile), but at least 1
    x0 <- cut off at -s and s, then divided by s                  (Saharia et al. 2022, section 2.3)

    x0       (B, C, H, W) guesses of the image
    share    in practice 0.995
    returns  (B, C, H, W) all within [-1, 1]

    Watch out: each image has its own s. Where it would be below 1, the image is well as it is, and s = 1 changes
    nothing. (tensor.quantile(share, dim) interpolates between the two nearest values, as it should.)
    """
    raise NotImplementedError("exercise 6: dynamic_threshold")


def attribute_accuracy(found: Tensor, asked: Tensor) -> tuple[float, float, float]:
    """Exercise 7. Prompt adherence: the share of the requested attributes that the images show, with an interval.

    A caption asks for some attributes of a creature (colour: red; wings: bat) and leaves others open. A classifier
    looks at the picture and says for each attribute which value it finds. Count the questions: n values were asked for
    in all pictures together, k of them were found.
    The share is k / n, with the 95 % interval of Wilson (1927), z = 1.96:

    (k/n + z^2/(2n) +- z sqrt(k/n (1 - k/n)/n + z^2/(4n^2))) / (1 + z^2/n)

    found    (N, K) integers: the value that the classifier finds for each of K attributes in each of N pictures
    asked    (N, K) integers: the value that was asked for, or -1 where the caption leaves it open; at least one is not
             -1
    returns  (share, low, high), three floats between 0 and 1

    Watch out: what was not asked for counts neither for nor against. And the plain interval, k/n +- z sqrt(k/n (1 -
    k/n)/n), is of no use for good models: at k = n it says "100 %, and quite sure" after a single question.
    """
    raise NotImplementedError("exercise 7: attribute_accuracy")
