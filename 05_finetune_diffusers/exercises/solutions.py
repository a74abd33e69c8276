"""Chapter 5 with your own hands: seventeen functions behind the professional tools, from a LoRA to a merged file.

Tier 1 (exercises 1 to 13) asks for a formula, three times for one that you derive. Tier 2 (14 to 16) gives you a short
program with one bug; find and repair it. Tier 3 (17) sets a goal with a number. exercises.py is for you to fill in;
solutions.py shows one way to do it. No exercise needs another. Hints on request: python -m common.grade 05 --hint 3

The conventions are those of the lesson:
  W          (out, in) the matrix of a linear layer, which computes W x
  A, B       (r, in) and (out, r), the two thin matrices of a LoRA of rank r; its alpha is a number
  z          (B, C, h, w) a clean latent, scaled
  x          a noisy latent, x = alpha_t z + sigma_t eps; sigma_t^2 = 1 - alpha_t^2
  alpha_bar  alpha_t^2
  mask       1 where the image is to be drawn anew, 0 where it is known
Apart from what a docstring says, no function changes the tensors and lists it is given.
"""

import math  # noqa: F401 - for your answers, as torch is
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: F401
from torch import Tensor

Adapter = tuple[Tensor, Tensor, float]  # A (r, in), B (out, r), alpha
Error = Callable[[Tensor, Tensor], Tensor]  # (D,) weights, (n, ...) images -> (n,) error of each
Gradient = Callable[[Tensor, int], Tensor]  # (D,) weights, number of a batch -> (D,) gradient of its mean error
Step = Callable[[Tensor, int], Tensor]  # x at level k, k -> x at level k + 1
PredictEps = Callable[[Tensor, int], Tensor]  # x_t, t -> the predicted noise in it


# ------------------------------------------------------------------------------------- tier 1: write the formula


def new_adapter(W: Tensor, rank: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Exercise 1. A LoRA that has learned nothing yet: two thin matrices beside a frozen one.

    W' = W + alpha / r B A                                                    (Hu et al. 2021, section 4.1)

    B is zero, so W' = W at first. A is random; with A and B both zero neither would ever get a gradient. The paper asks
    for a Gaussian and names no standard deviation. Here it is 1 / r, as with init_lora_weights="gaussian" of peft.

    W        (out, in) the frozen matrix
    rank     r
    rng      source of the random numbers, torch.randn(..., generator=rng): the same seed gives the same adapter, and
             the global generator is left alone
    returns  A (r, in) and B (out, r), float32 leaves that require a gradient, as an optimizer takes them
    """
    # --- solution
    A = torch.randn(rank, W.shape[1], generator=rng) / rank
    return A.requires_grad_(), torch.zeros(W.shape[0], rank, requires_grad=True)
    # --- end


def merge_adapters(W: Tensor, adapters: list[Adapter], scales: list[float]) -> Tensor:
    """Exercise 2. Merge adapters into the matrix that they stand beside, so that they cost no time any more.

    W' = W + sum_k scale_k alpha_k / r_k B_k A_k

    Each adapter has its own rank and its own alpha. Its scale is 0 for no effect, 1 for the effect it was trained with.
    Merging again with all scales negated gives W back.

    W         (out, in)
    adapters  K triples A (r_k, in), B (out, r_k), alpha_k; K may be 0
    scales    K numbers
    returns   (out, in), a new matrix, also for K = 0
    """
    # --- solution
    merged = W.clone()
    for (A, B, alpha), scale in zip(adapters, scales, strict=True):
        merged += scale * alpha / len(A) * B @ A
    return merged
    # --- end


def accumulate(error: Error, weights: Tensor, parts: list[Tensor]) -> Tensor:
    """Exercise 3. The gradient of a large batch with the memory of a small one: gradient accumulation.

    g = d/dweights 1/N sum error_i                                            over all N images of all parts

    error    called as error(weights, part), returns (n,), one number for each image of the part
    weights  (D,) requires a gradient; weights.grad may still hold the gradient of the step before, and may be
             overwritten
    parts    tensors (n, ...); the last may have fewer images than the others
    returns  (D,) the gradient, the same as if all parts had been one batch

    Call backward() for each part before the next one is computed, and without retain_graph: this frees the memory of
    the part. The mean of the parts' means is another number where the parts differ in size.
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


def averaged(weights: list[Tensor], averages: list[Tensor], draw: Callable[[], object]) -> object:
    """Exercise 4. Draw a validation image with the averaged weights (EMA), and then go on training as before.

    Copy the numbers of the weights, write the averages into the weights, call draw(), and write the old numbers back,
    whatever happens in draw: an error must pass to the caller, but the weights must be back by then. Ctrl-C raises a
    KeyboardInterrupt, which `except Exception` does not catch.

    weights   the network's own tensors, which require a gradient. Write into them, as write() above does: the network
              and the optimizer hold these very tensors
    averages  as many, of the same shapes; they stay as they are
    draw      called once, without arguments; it draws with the network whose tensors these are
    returns   what draw() returns
    """
    # --- solution
    kept = [weight.detach().clone() for weight in weights]
    write(weights, averages)
    try:
        return draw()
    finally:
        write(weights, kept)
    # --- end


def prior_loss(each: Tensor, is_class: Tensor, prior: float) -> Tensor:
    """Exercise 5. DreamBooth's loss: learn one subject, and do not forget the class it belongs to.

    loss = mean of the subject's errors + prior * mean of the class images' errors       (Ruiz et al. 2022, eq. 2)

    each      (N,) error of each image, with its gradient
    is_class  (N,) bool: True for a class image, which the model drew itself; False for an image of the subject
    prior     weight of prior preservation; 0 is off
    returns   the loss, a scalar with its gradient; a group without images contributes 0

    The two groups may differ in size, and the weight must not depend on their sizes.
    """
    # --- solution
    means = [(weight, each[group].mean()) for weight, group in ((1.0, ~is_class), (prior, is_class)) if group.any()]
    return sum(weight * mean for weight, mean in means)
    # --- end


def weigh_word(z: Tensor, empty: Tensor, hidden: Tensor, word: Tensor, w: float) -> Tensor:
    """Exercise 6. Prompt weights as in Compel: how much one word of a prompt counts.

    moved(v) = empty + s (v - empty)      with s = w at the word's own tokens, s = 1 at all others

    w >= 1:  moved(z)
    w < 1:   (moved(z) + r moved(hidden)) / (1 + r),   r = tan((1 - w) pi / 2)

    A weight above 1 moves the word's embeddings away from those of the empty prompt. A weight below 1 moves them
    towards it. Then the other tokens count, too, because they have attended to the word; so the embeddings without the
    word are mixed in, and at w = 1/2 they have half of the weight.

    z        (M, D) embeddings of the prompt, one for each token
    empty    (M, D) those of the empty prompt
    hidden   (M, D) those of the prompt in which no token can attend to the word
    word     (M,) bool, True at the word's tokens
    w        0 or more
    returns  (M, D)
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
    features: list[Tensor], residuals: list[Tensor], kernels: list[Tensor], biases: list[Tensor], scale: float
) -> list[Tensor]:
    """Exercise 7. How a ControlNet acts on the U-Net that it was copied from: through convolutions that begin at zero.

    features_k + scale (K_k * residual_k + b_k)               (Zhang et al. 2023, section 3.2; * is a convolution)

    The convolutions are 1 x 1. Their kernels and biases are zero before training, so the U-Net is unchanged at first.
    Both the kernels and, through them, the ControlNet behind the residuals must learn.

    features   tensors (B, C_k, h_k, w_k), those of the U-Net's first half at each resolution
    residuals  as many of the same shapes, those of the ControlNet
    kernels    tensors (C_k, C_k, 1, 1), as F.conv2d takes them: channels out, channels in
    biases     tensors (C_k,)
    scale      conditioning scale; 0 leaves the U-Net as it is
    returns    a list of the new features, (B, C_k, h_k, w_k), with their gradients
    """
    # --- solution
    return [f + scale * F.conv2d(r, K, b) for f, r, K, b in zip(features, residuals, kernels, biases, strict=True)]
    # --- end


def inpaint(
    step: Step, x: Tensor, z: Tensor, eps: Tensor, mask: Tensor, f: int, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """Exercise 8. Inpainting with a model that was not trained for it: put the known part back after every step.

    Once:                   m = 1 where any of the f x f pixels of a place of the latent is masked, else 0
    For k = 0 ... N - 1:    x     = step(x, k)                                leads from level k to level k + 1
                            known = alpha_(k+1) z + sigma_(k+1) eps           the known latent at that level
                            x     = m x + (1 - m) known

    Here eps is one noise for all levels, as in the pipelines of diffusers, whose steps are usually deterministic.
    RePaint (Lugmayr et al. 2022, eq. 8) draws it anew at every step, and chapter 6 does so. Both give the known part the
    right distribution at each level.

    step          called as step(x, k), N times in order
    x             (B, C, h, w) at level 0, the noisiest
    z             (B, C, h, w) the clean latents of the image
    eps           (B, C, h, w) the noise for them, the same at all levels
    mask          (B, 1, f h, f w), in pixels: 1 is drawn anew, 0 is known
    f             factor by which the autoencoder shrinks a side
    alpha, sigma  (N + 1,) the levels, noisiest first; alpha_N = 1, sigma_N = 0
    returns       (B, C, h, w) at level N; where m is 0 it is exactly z
    """
    # --- solution
    m = F.max_pool2d(mask, f)
    for k in range(len(alpha) - 1):
        known = alpha[k + 1] * z + sigma[k + 1] * eps
        x = m * step(x, k) + (1 - m) * known
    return x
    # --- end


def img2img_start(
    z: Tensor, eps: Tensor, times: list[int], alpha_bar: Tensor, strength: float
) -> tuple[Tensor, list[int]]:
    """Exercise 9. Where img2img begins: the noisy latent, and the timesteps that remain.

    n = min(int(strength N), N)           of N timesteps, the last n are visited
    x = alpha_t z + sigma_t eps           at the first of these

    z          (B, C, h, w) clean latents of the images
    eps        (B, C, h, w) standard normal noise
    times      the N timesteps of a sampler, decreasing
    alpha_bar  (T,) alpha_t^2 at each timestep 0 ... T - 1
    strength   between 0 and 1
    returns    (x, the list of the n timesteps that remain); with n = 0 these are z and an empty list

    Use exactly int(strength * N), with its rounding: 0.58 * 50 is a little less than 29 in floating point, so diffusers
    takes 28 steps.
    """
    # --- solution
    n = min(int(strength * len(times)), len(times))
    if n == 0:
        return z.clone(), []
    rest = times[len(times) - n :]
    a = alpha_bar[rest[0]]
    return a.sqrt() * z + (1 - a).sqrt() * eps, rest
    # --- end


def from_kohya(file: dict[str, Tensor], layers: list[str]) -> dict[str, Adapter]:
    """Exercise 10. Read a LoRA in the layout of kohya's scripts.

    The file names a layer "mid_block.attentions.0.to_q" as "lora_unet_mid_block_attentions_0_to_q", and holds for it
        <name>.lora_down.weight   A (r, in)
        <name>.lora_up.weight     B (out, r)
        <name>.alpha              a tensor with one number; some programs leave it out, and then alpha is r

    "." and "_" have both become "_", so the way back needs the names of the model's layers.

    file     {name in the file: tensor}
    layers   the names of all layers of the model; the file may adapt only some of them
    returns  {name of the layer: (A, B, alpha)} of the layers in the file, alpha a float

    Raise a KeyError that names the layer if the file adapts one that the model does not have.
    """
    # --- solution
    known = {"lora_unet_" + layer.replace(".", "_"): layer for layer in layers}
    adapters = {}
    for name in {name.split(".")[0]: None for name in file}:
        if name not in known:
            raise KeyError(f"the model has no layer {name}")
        A, B = file[f"{name}.lora_down.weight"], file[f"{name}.lora_up.weight"]
        adapters[known[name]] = A, B, float(file.get(f"{name}.alpha", len(A)))
    return adapters
    # --- end


def first_update(G: Tensor, A: Tensor, alpha: float, lr: float) -> Tensor:
    """Exercise 11. Derive and check: how far the first step of a LoRA moves W.

    W' = W + alpha / r B A with B = 0. Let G = dL/dW' be the gradient with respect to the whole matrix. Derive dL/dA and
    dL/dB by the chain rule, do one step of plain gradient descent with the rate lr on both, and find W' after it minus
    W. The test does the step with autograd.

    G        (out, in)
    A        (r, in)
    alpha    of the LoRA
    lr       learning rate
    returns  (out, in), the change of W'

    What happens to it if you double the rank, with A of standard deviation 1 / r, and alpha stays? And if alpha = r?
    """
    # --- solution
    return -lr * (alpha / len(A)) ** 2 * G @ A.T @ A
    # --- end


def merged_std(ranks: list[int], alphas: list[float], stds: list[tuple[float, float]], scales: list[float]) -> float:
    """Exercise 12. Derive and check: how large the sum of several adapters is.

    The entries of A_k and B_k are independent, with mean 0 and the standard deviations a_k and b_k. Derive the standard
    deviation of one entry of sum_k scale_k alpha_k / r_k B_k A_k. The test checks it by Monte Carlo.

    ranks    K ranks r_k
    alphas   K numbers
    stds     K pairs (a_k, b_k)
    scales   K numbers
    returns  the standard deviation, a float

    So why do two styles at scale 1 each often look overdone, and which scales keep the size of one of them?
    """
    # --- solution
    variances = [
        (scale * alpha / r) ** 2 * r * (a * b) ** 2
        for r, alpha, (a, b), scale in zip(ranks, alphas, stds, scales, strict=True)
    ]
    return math.sqrt(sum(variances))
    # --- end


def ema_half_life(decay: float) -> float:
    """Exercise 13. Derive and check: how long an average of the weights remembers.

    average <- decay * average + (1 - decay) * weights            after every step

    After how many steps has the share of the initial value fallen to one half? The result need not be a whole number.

    decay    between 0 and 1, both excluded
    returns  the number of steps, a float

    Then say which decay suits a training of 600 steps, if the first half of it is to keep less than 1 % of the weight.
    """
    # --- solution
    return math.log(0.5) / math.log(decay)
    # --- end


# ------------------------------------------------------------------------------------------ tier 2: find the bug


def fix_training_loop(
    gradient: Gradient, weights: Tensor, steps: int, accumulation: int, lr: float, decay: float
) -> tuple[Tensor, Tensor]:
    """Exercise 14. Find the bug. Gradient descent with accumulation and an average of the weights.

    Symptom: with accumulation = 4 instead of 1, and batches of a quarter of the size, the weights run away at a
    learning rate that was stable before.

    gradient      called as gradient(weights, k) for batch k = 0, 1, ...; the gradient of the mean error of batch k
    weights       (D,) at the beginning
    steps         optimizer steps; each uses `accumulation` batches of equal size
    lr            learning rate of plain gradient descent
    decay         of the average, which begins as a copy of the weights
    returns       (weights, average) after the last step, new tensors
    """
    # --- solution
    average, k = weights.clone(), 0
    for _ in range(steps):
        total = torch.zeros_like(weights)
        for _ in range(accumulation):
            total = total + gradient(weights, k) / accumulation
            k += 1
        weights = weights - lr * total
        average = decay * average + (1 - decay) * weights
    return weights, average
    # --- given
    #| average, k = weights.clone(), 0
    #| for _ in range(steps):
    #|     total = torch.zeros_like(weights)
    #|     for _ in range(accumulation):
    #|         total = total + gradient(weights, k)
    #|         k += 1
    #|     weights = weights - lr * total
    #|     average = decay * average + (1 - decay) * weights
    #| return weights, average
    # --- end


def fix_img2img(
    predict_eps: PredictEps, z: Tensor, eps: Tensor, times: list[int], alpha_bar: Tensor, n: int
) -> Tensor:
    """Exercise 15. Find the bug. DDIM from an image, over the last n timesteps of a sampler.

    Symptom: at low strength the result is a grainy version of the image; at strength 1 everything is as it should be.

    predict_eps  called as predict_eps(x, t)
    z            (B, C, h, w) clean latents, eps (B, C, h, w) noise
    times        the N timesteps, decreasing; after the last one comes the clean image
    alpha_bar    (T,) at each timestep 0 ... T - 1
    n            number of timesteps to visit, between 1 and N
    returns      (B, C, h, w) at the clean end
    """
    # --- solution
    times = times[len(times) - n :]
    a = alpha_bar[times[0]]
    x = a.sqrt() * z + (1 - a).sqrt() * eps
    for i, t in enumerate(times):
        a, noise = alpha_bar[t], predict_eps(x, t)
        x0 = (x - (1 - a).sqrt() * noise) / a.sqrt()
        b = alpha_bar[times[i + 1]] if i + 1 < len(times) else torch.ones(())
        x = b.sqrt() * x0 + (1 - b).sqrt() * noise
    return x
    # --- given
    #| a = alpha_bar[times[0]]
    #| times = times[len(times) - n :]
    #| x = a.sqrt() * z + (1 - a).sqrt() * eps
    #| for i, t in enumerate(times):
    #|     a, noise = alpha_bar[t], predict_eps(x, t)
    #|     x0 = (x - (1 - a).sqrt() * noise) / a.sqrt()
    #|     b = alpha_bar[times[i + 1]] if i + 1 < len(times) else torch.ones(())
    #|     x = b.sqrt() * x0 + (1 - b).sqrt() * noise
    #| return x
    # --- end


def fix_min_snr(alpha_bar: Tensor, gamma: float, prediction: str) -> Tensor:
    """Exercise 16. Find the bug. Weights of the squared error at each noise level, after min-SNR.

    Symptom: with a model that predicts v, the nearly clean levels hardly learn, and the noisiest ones dominate the
    loss. With a model that predicts eps all is well.

    The error of x0 is to have the weight min(SNR, gamma), with SNR = alpha^2 / sigma^2 (Hang et al. 2023). The network
    is trained with the squared error of its own prediction, so the weight must be converted: how large is the error of
    x0, if the error of eps (or of v) is 1?

    alpha_bar   (T,) alpha_t^2, all between 0 and 1, both excluded
    gamma       usually 5
    prediction  "eps" or "v"
    returns     (T,) the weight of the squared error of the prediction
    """
    # --- solution
    snr = alpha_bar / (1 - alpha_bar)
    if prediction == "v":
        return snr.clamp(max=gamma) / (snr + 1)
    return snr.clamp(max=gamma) / snr
    # --- given
    #| snr = alpha_bar / (1 - alpha_bar)
    #| if prediction == "v":
    #|     return snr.clamp(max=gamma) / (snr * (snr + 1))
    #| return snr.clamp(max=gamma) / snr
    # --- end


# ------------------------------------------------------------------------------------------ tier 3: reach a goal


def merge_to_rank(adapters: list[Adapter], scales: list[float], rank: int) -> tuple[Tensor, Tensor]:
    """Exercise 17. Reach a goal: several LoRAs of a layer as one LoRA of a small rank.

    D = sum_k scale_k alpha_k / r_k B_k A_k has a rank of up to sum r_k. You want a file of rank `rank`, with alpha =
    rank, so that B A is as near to D as possible. Two numbers are measured:

    error    |D - B A| / |D| (root of the sum of squares)       at most 1.01 times the smallest that any B and A reach
    balance  the larger of the standard deviations of A and B, divided by the smaller       at most 1.5, so that both
             can be stored in half precision

    The layer has out = in, and the adapters have matrices of very different sizes. Cutting off the last rows of A and
    columns of B of the adapters side by side fails by far. Write down first how large the smallest error is, in terms
    of singular values (Eckart & Young 1936), then try.

    adapters  K triples A (r_k, in), B (out, r_k), alpha_k
    scales    K numbers
    rank      smaller than the sum of the ranks
    returns   A (rank, in), B (out, rank)
    """
    # --- solution
    D = sum(scale * alpha / len(A) * B @ A for (A, B, alpha), scale in zip(adapters, scales, strict=True))
    U, S, V = torch.linalg.svd(D, full_matrices=False)
    root = S[:rank].sqrt()
    return root[:, None] * V[:rank], U[:, :rank] * root
    # --- end
