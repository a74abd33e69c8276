"""Chapter 2 with your own hands: thirteen functions, from caption dropout to a guidance scale for every noise level.

Tier 1 (exercises 1 to 9) asks for a formula. Tier 2 (10 to 12) gives you a short program with one bug; find and repair
it. Tier 3 (13) sets a goal with a number. exercises.py is for you to fill in; solutions.py shows one way to do it. No
exercise needs another. Hints on request: python -m common.grade 02 --hint 3

The conventions are those of the lesson and of guidance.py:
  images     float32 in [-1, 1], shape (B, C, H, W)
  alpha_bar  x_t = sqrt(alpha_bar_t) x0 + sigma_t eps with sigma_t = sqrt(1 - alpha_bar_t); entry 0 of the schedule is
             the clean image, alpha_bar_0 = 1
  text       (B, M, D) a caption is M tokens, each a vector of D numbers; one caption for each image
  empty      (M, D) the empty caption, "", in the same form
  cond       (B, C, H, W) the network's prediction for the caption, of eps, x0 or v; guidance is the same for all three
  uncond     its prediction for the empty caption
  w          guidance scale: 0 ignores the caption, 1 is the conditional prediction, more exaggerates it
No function changes the tensors it is given.
"""

import math  # noqa: F401 - for your answers, as torch is
from collections.abc import Callable

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, C, H, W) x, (B,) t, (B, M, D) text -> (B, C, H, W)
Encode = Callable[[list[str]], Tensor]  # N captions -> (N, M, D) text
PredictEps = Callable[[Tensor], Tensor]  # (B, C, H, W) x_t -> (B, C, H, W) the predicted noise in it
ImageLoss = Callable[[Tensor], Tensor]  # (B, C, H, W) x0 -> (B,) a number for each image, small where it is as wanted


# ------------------------------------------------------------------------------------- tier 1: write the formula


def caption_dropout(text: Tensor, empty: Tensor, u: Tensor, p: float) -> Tensor:
    """Exercise 1. Replace some captions of a training batch by the empty one, so that one network learns both
    distributions: images with their captions, and images alone.

    text_i <- empty  where u_i < p,  for each image i            (Ho & Salimans 2022, algorithm 1)

    text     (B, M, D)
    empty    (M, D)
    u        (B,) uniform random numbers in [0, 1), one for each image
    p        probability of dropping a caption, in practice 0.1 or 0.2; 0 drops none and 1 all
    returns  (B, M, D); gradients flow to text and to empty, for a text encoder learns from both
    """
    # --- solution
    return torch.where((u < p)[:, None, None], empty, text)
    # --- end


def negative_prompt(encode: Encode, prompts: list[str], negatives: list[str | None]) -> Tensor:
    """Exercise 2. The captions of a guided batch: first those that guidance leads away from, then those it leads to.

    Guidance leads away from the caption of `uncond`, whichever it is. A negative prompt takes the place of the empty
    caption: "wings" there means without wings.

    encode     called as encode(captions) with a list of strings, once for all captions, because it is a network too
    prompts    B captions
    negatives  the negative prompt of each image; None stands for the empty caption, ""
    returns    (2B, M, D) first the B captions to lead away from, then the B prompts
    """
    # --- solution
    return encode([negative or "" for negative in negatives] + list(prompts))
    # --- end


def guided(model: Model, x: Tensor, t: Tensor, context: Tensor, w: float) -> Tensor:
    """Exercise 3. Classifier-free guidance: predict with the caption and without, and exaggerate the difference.

    guided = uncond + w (cond - uncond)                           (Ho & Salimans 2022, eq. 6, with our w = 1 + their w)

    model    called as model(x, t, text), once: both halves run as one batch of 2B
    x        (B, C, H, W) noisy images
    t        (B,) their noise levels, as the network expects them
    context  (2B, M, D) first B times the empty (or negative) caption, then the B captions
    returns  (B, C, H, W) the guided prediction
    """
    # --- solution
    uncond, cond = model(torch.cat([x, x]), torch.cat([t, t]), context).chunk(2)
    return uncond + w * (cond - uncond)
    # --- end


def dynamic_threshold(x0: Tensor, share: float) -> Tensor:
    """Exercise 4. Guided predictions of x0 leave [-1, 1]. Clipping them there makes large flat areas; dynamic
    thresholding shrinks them instead.

    s  = the quantile of |x0| at `share`, but at least 1
    x0 <- clip(x0, -s, s) / s                                     (Saharia et al. 2022, section 2.3)

    x0       (B, C, H, W) predictions of the image
    share    in practice 0.995
    returns  (B, C, H, W) all within [-1, 1]

    Each image has its own s, over all its channels and pixels. An image that lies within [-1, 1] does not change.
    """
    # --- solution
    s = x0.abs().flatten(1).quantile(share, dim=1).clamp(min=1).view(-1, 1, 1, 1)  # (B, 1, 1, 1)
    return x0.clamp(-s, s) / s
    # --- end


def rescale(guided: Tensor, cond: Tensor, phi: float) -> Tensor:
    """Exercise 5. Guidance raises the standard deviation of a prediction. Guidance rescale sets it back, in part, to
    that of the conditional prediction.

    rescaled = guided * std(cond) / std(guided)                   (Lin et al. 2023, eq. 14 and 15)
    result   = phi rescaled + (1 - phi) guided                    (eq. 16)

    guided, cond  (B, C, H, W) predictions, with guidance and without
    phi           from 0, which is off, to 1
    returns       (B, C, H, W)

    Each image has its own two standard deviations, over all its channels and pixels.
    """
    # --- solution
    std_cond, std_guided = (y.flatten(1).std(1).view(-1, 1, 1, 1) for y in (cond, guided))  # (B, 1, 1, 1)
    return phi * (guided * std_cond / std_guided) + (1 - phi) * guided
    # --- end


def attribute_accuracy(found: Tensor, asked: Tensor) -> tuple[float, float, float]:
    """Exercise 6. Prompt adherence: the share of the requested attributes that the images show, with an interval.

    A caption asks for some attributes of a creature (colour: red; wings: bat) and leaves others open. A classifier
    names the value of each attribute in the image. Of n values requested in all images together, k were found. The
    share is k / n, with the 95 % interval of Wilson (1927), z = 1.96:

    (k/n + z^2/(2n) +- z sqrt(k/n (1 - k/n)/n + z^2/(4n^2))) / (1 + z^2/n)

    found    (N, K) integers: the value that the classifier names for each of K attributes in each of N images
    asked    (N, K) integers: the value that was requested, or -1 where the caption leaves it open; at least one is not
             -1
    returns  (share, low, high), three numbers between 0 and 1
    """
    # --- solution
    counts = asked >= 0
    n, k = int(counts.sum()), int((counts & (found == asked)).sum())
    z, share = 1.96, k / n
    middle = share + z**2 / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return share, (middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)
    # --- end


def loss_guided_step(
    predict_eps: PredictEps, loss: ImageLoss, x: Tensor, alpha_bar_t: float, alpha_bar_s: float, strength: float
) -> Tensor:
    """Exercise 7. One DDIM step with loss guidance: any differentiable loss of the predicted image steers the sample.

    x0_hat    = (x_t - sigma_t eps_hat) / sqrt(alpha_bar_t)           with eps_hat = predict_eps(x_t)
    eps_tilde = eps_hat + strength sigma_t grad L(x0_hat)             the gradient with respect to x_t
                                                                      (as Dhariwal & Nichol 2021, algorithm 2, with
                                                                      -strength L in the place of log p(y | x_t))
    x_s       = sqrt(alpha_bar_s) x0_tilde + sigma_s eps_tilde        x0_tilde is the image that eps_tilde leaves in x_t

    predict_eps  the network, called as predict_eps(x)
    loss         called as loss(x0), returns (B,): the loss L of each image
    x            (B, C, H, W) noisy images x_t
    alpha_bar_t, alpha_bar_s  alpha_bar at the level t of x and at the level s to step to
    strength     how far the step follows the loss; 0 is DDIM
    returns      (B, C, H, W) x_s, which needs no gradient

    The step works within torch.no_grad(), too, as samplers use it. What happens to one image does not depend on the
    others in its batch.
    """
    # --- solution
    sigma_t, sigma_s = math.sqrt(1 - alpha_bar_t), math.sqrt(1 - alpha_bar_s)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        eps = predict_eps(x)
        x0 = (x - sigma_t * eps) / math.sqrt(alpha_bar_t)
        (gradient,) = torch.autograd.grad(loss(x0).sum(), x)
    x, eps = x.detach(), eps.detach() + strength * sigma_t * gradient
    x0 = (x - sigma_t * eps) / math.sqrt(alpha_bar_t)
    return math.sqrt(alpha_bar_s) * x0 + sigma_s * eps
    # --- end


def cross_attention(x: Tensor, text: Tensor, W_q: Tensor, W_k: Tensor, W_v: Tensor, heads: int) -> Tensor:
    """Exercise 8. Cross-attention: each pixel reads from the tokens of the caption.

    Q = x W_q^T,  K = text W_k^T,  V = text W_v^T                 queries of the pixels, keys and values of the tokens
    result = softmax(Q K^T / sqrt(d)) V,  d = C / heads           (Vaswani et al. 2017, eq. 1; Rombach et al. 2022,
                                                                  section 3.3)

    Each head has its own d columns of Q, K and V: head 0 the columns 0 ... d-1, head 1 the next d, and so on. The
    results of the heads stand side by side in the same order.

    x         (B, N, C) N pixels, each a vector of C numbers
    text      (B, M, D)
    W_q       (C, C) weights as nn.Linear keeps them, (out, in)
    W_k, W_v  (C, D)
    heads     divides C
    returns   (B, N, C); gradients flow to x, to text and to all weights
    """
    # --- solution
    q, k, v = x @ W_q.T, text @ W_k.T, text @ W_v.T  # (B, N, C), twice (B, M, C)
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))  # (B, heads, N or M, d)
    attention = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)  # (B, heads, N, M)
    return (attention @ v).transpose(1, 2).flatten(2)
    # --- end


def tilted_gaussian(m: float, s: float, w: float) -> tuple[float, float]:
    """Exercise 9. Derive and check: the distribution that guidance is often said to sample.

    One-dimensional images: p(x) = N(0, 1) for all, and p(x | c) = N(m, s^2) for those of a caption. Multiply p(x) by
    p(c | x)^w, where p(c | x) is proportional to p(x | c) / p(x) (Bayes). The product is a Gaussian again. Derive its
    mean and standard deviation on paper. The test checks your result by Monte Carlo: it draws x from p(x), weights
    each with (p(x | c) / p(x))^w, and takes the weighted mean and standard deviation.

    m        mean of the caption's images
    s        their standard deviation, above 0 and below 1
    w        0 or more; at w = 0 the result is p(x), at w = 1 it is p(x | c)
    returns  (mean, standard deviation), two numbers

    The panel compares it with the samples of guided diffusion.
    """
    # --- solution
    precision = 1 - w + w / s**2  # of a product of Gaussians: the exponents add
    return w * m / s**2 / precision, precision**-0.5
    # --- end


# ------------------------------------------------------------------------------------------ tier 2: find the bug


def fix_training_batch(
    model: Model, x0: Tensor, text: Tensor, empty: Tensor, alpha_bar: Tensor, p: float, rng: torch.Generator
) -> Tensor:
    """Exercise 10. Find the bug. The loss of one training batch with caption dropout.

    Symptom: with p = 0.1 the training loss jumps up in one step out of ten, far above the loss of the steps
    between.

    model      called as model(x_t, t, text), predicts the noise
    x0         (B, C, H, W) images, text (B, M, D) their captions, empty (M, D) the empty caption
    alpha_bar  (T + 1,)
    p          probability that the caption of an image is dropped, independently of all other images
    rng        source of all random numbers
    returns    the loss, a scalar whose gradient trains the model  (Ho & Salimans 2022, algorithm 1)
    """
    B = len(x0)
    t = torch.randint(1, len(alpha_bar), (B,), generator=rng)
    eps = torch.randn(x0.shape, generator=rng)
    # --- solution
    dropped = torch.rand(B, generator=rng) < p
    text = torch.where(dropped[:, None, None], empty, text)
    # --- given
    #| if torch.rand((), generator=rng) < p:
    #|     text = empty.expand_as(text)
    # --- end
    a = alpha_bar[t].view(-1, 1, 1, 1)
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * eps
    return (model(x_t, t, text) - eps).square().mean()


def fix_guided_sampling(
    model: Model, x: Tensor, text: Tensor, empty: Tensor, w: float, times: list[int], alpha_bar: Tensor
) -> Tensor:
    """Exercise 11. Find the bug. DDIM with classifier-free guidance, from noise to images.

    Symptom: at w = 0 the images show their prompts, at w = 1 they ignore them, and at w = 3 they show
    everything but what was asked for.

    model      called as model(x_t, t, text), predicts the noise
    x          (B, C, H, W) noise, text (B, M, D) the prompts, empty (M, D) the empty caption
    w          guidance scale: 0 ignores the prompt, 1 is the conditional prediction
    times      the levels to visit, decreasing, the last one 0
    alpha_bar  (T + 1,)
    returns    (B, C, H, W)
    """
    B = len(x)
    context = torch.cat([empty.expand_as(text), text])
    for t, s in zip(times[:-1], times[1:], strict=True):
        both = model(torch.cat([x, x]), torch.full((2 * B,), t), context)
        # --- solution
        uncond, cond = both.chunk(2)
        # --- given
        #| cond, uncond = both.chunk(2)
        # --- end
        eps = uncond + w * (cond - uncond)
        x0 = (x - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()
        x = alpha_bar[s].sqrt() * x0 + (1 - alpha_bar[s]).sqrt() * eps
    return x


def fix_masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Exercise 12. Find the bug. Cross-attention in which the padding of short captions must not count.

    Symptom: the same prompt with the same noise gives another image when a longer prompt is in the
    batch, because then its caption is padded with more tokens.

    q        (B, heads, N, d) queries of N pixels
    k, v     (B, heads, M, d) keys and values of M tokens
    mask     (B, M) True for the tokens of the caption, False for padding; at least one token of each caption is True
    returns  (B, heads, N, d): softmax(Q K^T / sqrt(d)) V over the tokens of the caption alone
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, heads, N, M)
    # --- solution
    scores = scores.masked_fill(~mask[:, None, None], -math.inf)
    # --- given
    #| scores = scores * mask[:, None, None]
    # --- end
    return scores.softmax(dim=-1) @ v


# ------------------------------------------------------------------------------------------ tier 3: reach a goal


def guidance_scale(noise: float) -> float:
    """Exercise 13. Reach a goal: a guidance scale for every noise level.

    The data are points in the plane, in five Gaussian blobs on a circle of radius 1, each with a standard deviation of
    0.25. The prompt asks for one blob, but the network learned the captions badly: without guidance, only half of its
    samples belong to that blob. DDIM samples with your scale in 30 steps, from sigma / sqrt(alpha_bar) = 20 down to
    0.05. Two numbers are measured:

    inside  share of the samples within the circle that holds 95 % of the blob        at least 0.84
    spread  standard deviation of the samples whose nearest blob is the right one, divided by 0.25        at least 0.80

    No constant scale reaches both (w = 2: 0.73 and 0.84; w = 3: 0.85 and 0.72). Kynkaanniemi et al. 2024 show a way.
    Write down first which noise levels you think need guidance, then try.

    noise    sigma / sqrt(alpha_bar) of the level, between 0.05 and 20
    returns  w at this level
    """
    # --- solution
    return 8.0 if 1.5 < noise <= 4 else 1.5  # where the blobs are decided, and little elsewhere
    # --- end
