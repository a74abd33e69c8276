"""Chapter 4 with your own hands: nineteen functions, from the loss of an autoencoder to visual anagrams.

Tier 1 (exercises 1 to 13) asks for a formula. Tier 2 (14 to 18) gives you a short program with one bug; find and repair
it. Tier 3 (19) sets a goal with a number. exercises.py is for you to fill in; solutions.py shows one way to do it. No
exercise needs another. Hints on request: python -m common.grade 04 --hint 3

The conventions are those of the lesson and of common/models/vae.py:
  mean, logvar  (B, C, h, w) the posterior q(z | x) that the encoder gives for B images: independent normal
                distributions. logvar is the logarithm of the variance, which is the square of the standard deviation
  latents       float32, (B, C, h, w), with C = 4 in practice, and h and w 4 or 8 times smaller than the image
  scale         the scaling factor: unscaled latents times scale have unit variance; the diffusion model sees only those
  z             scaled latents, unless a docstring says otherwise
  x             noisy latents, x = alpha z + sigma eps, with alpha = sqrt(alpha_bar) and alpha^2 + sigma^2 = 1
  images        float32 in [-1, 1], (B, 3, H, W)
No function changes the tensors, lists or dicts that it is given.
"""

import hashlib  # noqa: F401 - for your answers, as the next three are
import json  # noqa: F401
import math  # noqa: F401
from collections.abc import Callable, Iterator, Sequence

import torch  # noqa: F401
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, C, h, w) x, (B,) t, (B, M, D) text -> (B, C, h, w) v
Decode = Callable[[Tensor], Tensor]  # (B, C, h, w) unscaled latents -> (B, 3, H, W) images
Map = Callable[[Tensor], Tensor]  # (B, C, h, w) -> (B, C, h, w), linear: a flip, a rotation, a blur
PredictEps = Callable[[Tensor, Tensor], Tensor]  # (B, C, h, w) x, (B, M, D) text -> (B, C, h, w) the predicted noise


# ------------------------------------------------------------------------------------- tier 1: write the formula


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Exercise 1. The information that the latents of each image hold: how far its posterior is from the prior.

    KL(N(mean, var) || N(0, 1)) = 1/2 sum (mean^2 + var - 1 - log var)        (Kingma & Welling 2014, appendix B)

    with var = exp(logvar), and the sum over all components of one image's latents.

    mean, logvar  (B, C, h, w)
    returns       (B,) in nats, one number for each image, through which gradients reach mean and logvar
    """
    raise NotImplementedError("exercise 1: kl")


def reparameterise(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """Exercise 2. Draw latents from the posterior in such a way that gradients reach the encoder.

    latents = mean + std eps                                                  (Kingma & Welling 2014, section 2.4)

    mean, logvar  (B, C, h, w)
    eps           (B, C, h, w) standard normal noise, drawn outside
    returns       (B, C, h, w), not scaled, through which gradients reach mean and logvar
    """
    raise NotImplementedError("exercise 2: reparameterise")


def scaling_factor(batches: Iterator[Tensor]) -> float:
    """Exercise 3. Measure the factor that gives the latents of a whole data set unit variance.

    scale = 1 / sqrt(1/n sum (latent - m)^2),   m = 1/n sum latent            (Rombach et al. 2022, appendix G)

    Both sums run over all n components of the set: images, channels, positions. The result is one number.

    batches  yields tensors (B, C, h, w), unscaled latents, once, one batch after the other; the last batch may be
             smaller. The memory of a batch is used again for the next one, so batches cannot be kept
    returns  the scaling factor, a Python float

    Where m is far from 0, a small variance is the difference of two large numbers: add in double precision.
    """
    raise NotImplementedError("exercise 3: scaling_factor")


def noisy_latent(
    mean: Tensor, std: Tensor, scale: float, eps_z: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Exercise 4. One training step of latent diffusion: the input of the network, and its target.

    z = scale (mean + std eps_z)                                              scaled latents
    x = alpha z + sigma eps                                                   the input
    v = alpha eps - sigma z                                                   the target (Salimans & Ho 2022, section 4)

    mean, std     (B, C, h, w) of the posteriors, as they come from the cache: not scaled
    eps_z, eps    (B, C, h, w) two independent noises: eps_z draws the latents, eps is added to them
    alpha, sigma  (B,) one noise level for each image, with alpha^2 + sigma^2 = 1; alpha = 0 and sigma = 0 both occur
    returns       x and v, two tensors (B, C, h, w)
    """
    raise NotImplementedError("exercise 4: noisy_latent")


def latent_key(weights: dict[str, Tensor], config: dict, pixels: Tensor) -> str:
    """Exercise 5. A name for cached latents, so that a file made from anything else is never used.

    The key is a hash (SHA-256) of all that the latents depend on. It changes whenever any of that changes:

    It must change with                                             It must not change with
      any weight, its name, its shape, its dtype                      the order of the entries of weights or config
      any setting of config, its name or its value, but one           config["scaling_factor"]: the cache holds
                                                                      unscaled latents
      any pixel, the order of the images, their shape and dtype       the memory layout of a tensor
                                                                      the process: tomorrow's must find today's file

    weights  the encoder's state dict: names and tensors
    config   the encoder's settings: names, and numbers, texts, booleans or tuples of them
    pixels   (N, 3, H, W) uint8, the images
    returns  the 64 hexadecimal digits of the SHA-256

    digest = hashlib.sha256(); digest.update(bytes); digest.hexdigest() computes a hash. Python's own hash() and the
    order of a set differ from process to process.
    """
    raise NotImplementedError("exercise 5: latent_key")


def img2img_start(z: Tensor, eps: Tensor, strength: float, alpha: Tensor, sigma: Tensor) -> tuple[int, Tensor]:
    """Exercise 6. Start from an image instead of noise: add noise part of the way, and let the sampler do the rest.

    A sampler of N steps visits N + 1 levels, noisiest first; step k goes from level k to level k + 1, and level N is
    clean. Of its N steps it walks the last strength N, rounded to the nearest whole number:

    first = N - round(strength N)                                             the first step that is walked
    x     = alpha_first z + sigma_first eps                                   (Meng et al. 2022, section 3)

    z             (B, C, h, w) the latents of the images
    eps           (B, C, h, w) standard normal noise
    strength      from 0 to 1. At 1 all steps are walked; at 0 none, and x is z itself
    alpha, sigma  (N + 1,) the levels, noisiest first; alpha_N = 1, sigma_N = 0
    returns       first, a Python int, and x (B, C, h, w)
    """
    raise NotImplementedError("exercise 6: img2img_start")


def decode_picture(z: Tensor, decode: Decode, scale: float) -> Tensor:
    """Exercise 7. From sampled latents to images in bytes, for files and screens.

    1. Undo the scaling: the decoder was trained on unscaled latents.
    2. Decode: the images are in [-1, 1], or nearly so.
    3. Clip the images to [-1, 1]. Latents have no bounds and are not clipped.
    4. Map [-1, 1] to 0 ... 255, and round to the nearest whole number.

    z        (B, C, h, w)
    decode   called as decode(latents), returns (B, 3, H, W) float32
    returns  (B, 3, H, W) uint8
    """
    raise NotImplementedError("exercise 7: decode_picture")


def sample_latent(
    network: Network, x: Tensor, first: int, context: Tensor, w: float, times: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """Exercise 8. Sample latents with guidance, from noise or from the noisy latents of exercise 6.

    For k = first ... N - 1:
      v   = uncond + w (cond - uncond)           one call of the network for both      (Ho & Salimans 2022, eq. 6)
      z   = alpha_k x - sigma_k v                the predicted latents
      eps = sigma_k x + alpha_k v                and the predicted noise               (Salimans & Ho 2022, section 4)
      x  <- alpha_(k+1) z + sigma_(k+1) eps      DDIM with eta = 0                     (Song et al. 2021, eq. 12)

    network       called as network(x, t, text), predicts v; once each step, with both halves as one batch of 2B
    x             (B, C, h, w) at level `first`, which is 0 for images from text alone
    context       (2B, M, D) first B times the empty or negative caption, then the B captions
    w             guidance scale: 1 is the conditional prediction
    times         (N,) the time input of the network at each step, t = times[k], as a tensor (2B,)
    alpha, sigma  (N + 1,) the levels, noisiest first; alpha_N = 1, sigma_N = 0
    returns       (B, C, h, w) the latents at level N; they have no bounds, so nothing is clipped on the way
    """
    raise NotImplementedError("exercise 8: sample_latent")


def kl_of_gaussians(mean_q: float, std_q: float, mean_p: float, std_p: float) -> float:
    """Exercise 9. Derive and check: the KL divergence of two normal distributions.

    KL(q || p) = E_q[log q(z) - log p(z)]  for  q = N(mean_q, std_q^2)  and  p = N(mean_p, std_p^2)

    Derive it on paper as the lesson does for p = N(0, 1). The test checks your result by Monte Carlo: it draws z from
    q and takes the mean of log q(z) - log p(z).

    std_q, std_p  above 0
    returns       nats
    """
    raise NotImplementedError("exercise 9: kl_of_gaussians")


def best_posterior(x: float, slope: float, r: float, beta: float) -> tuple[float, float]:
    """Exercise 10. Derive and check: what beta does to the posterior.

    The smallest VAE has one pixel x, one latent z, and the decoder y(z) = slope z. For each x, the best posterior
    N(mean, std^2) has the smallest loss

    loss = E[(x - slope z)^2] / (2 r^2) + beta KL(N(mean, std^2) || N(0, 1)),     z = mean + std eps

    Work out the expected value, and set the derivatives with respect to mean and std to zero. The test compares your
    loss with that of other means and standard deviations. Write down first: what happens for beta -> 0, and for very
    large beta?

    slope    not 0
    r        standard deviation of the pixel noise, above 0
    beta     above 0
    returns  (mean, std)
    """
    raise NotImplementedError("exercise 10: best_posterior")


def channels_needed(eigenvalues: Tensor, psnr: float) -> int:
    """Exercise 11. Derive and check: a budget for compression.

    The best linear autoencoder cuts images into patches of D = 3 f^2 numbers and keeps the c directions in which they
    vary most. The eigenvalues of the covariance matrix of the patches are the variances along these directions. A
    dropped direction adds its variance to the squared error of the patch. How many must be kept?

    PSNR = 10 log10(4 / (mean squared error of a pixel value))       for images in [-1, 1], with a range of 2

    eigenvalues  (D,) variances, in any order, none below 0
    psnr         decibels that the reconstructions must reach at least
    returns      the smallest such c, from 0 to D, a Python int
    """
    raise NotImplementedError("exercise 11: channels_needed")


def anagram_eps(
    predict: PredictEps, x: Tensor, texts: Sequence[Tensor], views: Sequence[Map], inverses: Sequence[Map]
) -> Tensor:
    """Exercise 12. A visual anagram: an image that shows one prompt upright and another one upside down.

    eps = 1/K sum_k inverse_k(predict(view_k(x), text_k))             (Geng et al. 2024, "Visual anagrams")

    Each prompt sees the noisy latents in its own view. Its prediction is turned back before the mean is taken.

    predict         called as predict(x, text), returns the (guided) prediction of the noise
    x               (B, C, h, w) noisy latents
    texts           K prompts, each (B, M, D)
    views           K linear maps such as lambda x: x or lambda x: x.flip(2), called as view(x)
    inverses        the map that undoes each view
    returns         (B, C, h, w)
    """
    raise NotImplementedError("exercise 12: anagram_eps")


def hybrid_eps(predict: PredictEps, x: Tensor, near: Tensor, far: Tensor, blur: Map) -> Tensor:
    """Exercise 13. A hybrid image: from far away it shows one prompt, from near another one.

    eps = blur(eps_far) + eps_near - blur(eps_near)                   (Geng et al. 2024, "Factorized diffusion")

    Far away only low frequencies are seen, so the prompt `far` decides those, and the prompt `near` all others.

    predict    called as predict(x, text), returns the (guided) prediction of the noise
    x          (B, C, h, w) noisy latents
    near, far  (B, M, D) two prompts
    blur       a linear low-pass filter, called as blur(x)
    returns    (B, C, h, w)
    """
    raise NotImplementedError("exercise 13: hybrid_eps")


# ------------------------------------------------------------------------------------------ tier 2: find the bug


def fix_vae_loss(x: Tensor, y: Tensor, mean: Tensor, logvar: Tensor, r: float, beta: float) -> Tensor:
    """Exercise 14. Find the bug. The loss of a VAE, averaged over the batch.

    loss = |x - y|^2 / (2 r^2) + beta KL(N(mean, var) || N(0, 1))     for each image; lesson, formula (5)

    Symptom: with beta = 1 the reconstructions are as exact as with a beta near 0, and the latents spread far
    beyond N(0, I), so that its samples are no images. The larger the latents, the stronger the effect.

    x, y          (B, 3, H, W) images and reconstructions
    mean, logvar  (B, C, h, w)
    returns       the loss, a scalar
    """
    reconstruction = (x - y).square().sum((1, 2, 3)) / (2 * r**2)
    divergence = (mean.square() + logvar.exp() - 1 - logvar).mean((1, 2, 3)) / 2
    return (reconstruction + beta * divergence).mean()


def fix_latent_batch(mean: Tensor, std: Tensor, scale: float, alpha: Tensor, sigma: Tensor, rng: torch.Generator):
    """Exercise 15. Find the bug. A training batch of latent diffusion: input and target of the network.

    Symptom: at most levels the input hardly looks noisy, and the loss at the noisiest levels is 25 times what it
    should be. The latents of this autoencoder have a standard deviation of 5.

    mean, std     (B, C, h, w) of the posteriors, not scaled
    alpha, sigma  (B,) one noise level for each image
    rng           source of all random numbers: first the noise of the posterior, then the noise that is added
    returns       x = alpha z + sigma eps and v = alpha eps - sigma z, two tensors (B, C, h, w)
    """
    alpha, sigma = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    latents = mean + std * torch.randn(mean.shape, generator=rng)
    eps = torch.randn(mean.shape, generator=rng)
    z = latents
    return alpha * z + sigma * eps, alpha * eps - sigma * z


def fix_reconstruct(x: Tensor, encode: Callable[[Tensor], tuple[Tensor, Tensor]], decode: Decode, eps: Tensor):
    """Exercise 16. Find the bug. Reconstruct images as well as the autoencoder can, and measure it.

    Symptom: the same image gives another reconstruction and another PSNR with every noise, and img2img at strength 0
    changes the image.

    x        (B, 3, H, W) images
    encode   called as encode(images), returns mean and logvar (B, C, h, w)
    decode   called as decode(latents), returns (B, 3, H, W)
    eps      (B, C, h, w) standard normal noise, as training needs it
    returns  the reconstructions (B, 3, H, W) in [-1, 1], and their PSNR (B,) in decibels
    """
    mean, logvar = encode(x)
    y = decode(mean + (logvar / 2).exp() * eps).clamp(-1, 1)
    return y, 10 * torch.log10(4 / (x - y).square().mean((1, 2, 3)))


def fix_text_to_image(
    network: Network, encode_text, prompts: list[str], negative: str, x: Tensor, w: float, levels: list
) -> Tensor:
    """Exercise 17. Find the bug. Text to image in latents, with a negative prompt.

    Symptom: with w = 5, the images show what the negative prompt names, and nothing of their prompts.

    network      called as network(x, t, text) with 2B latents, predicts v
    encode_text  called as encode_text(captions) with a list of strings, returns (N, M, D)
    prompts      B captions; negative: what guidance leads away from, "" for nothing
    x            (B, C, h, w) noise
    levels       [(t, alpha, sigma), ...] numbers, noisiest first; the last level is clean
    returns      (B, C, h, w) scaled latents
    """
    B = len(prompts)
    text = encode_text(prompts + [negative] * B)
    for (t, alpha, sigma), (_, then_alpha, then_sigma) in zip(levels[:-1], levels[1:], strict=True):
        uncond, cond = network(torch.cat([x, x]), torch.full((2 * B,), t), text).chunk(2)
        v = uncond + w * (cond - uncond)
        z, eps = alpha * x - sigma * v, sigma * x + alpha * v
        x = then_alpha * z + then_sigma * eps
    return x


def fix_decode(z: Tensor, decode: Decode, scale: float) -> Tensor:
    """Exercise 18. Find the bug. Sampled latents become images.

    Symptom: the images are grey and without contrast, as if seen through fog. Reconstructions, which use unscaled
    latents all the way, are fine. The scaling factor of this model is 5.

    z        (B, C, h, w) scaled latents
    decode   called as decode(latents) with unscaled latents, returns (B, 3, H, W)
    returns  (B, 3, H, W) in [-1, 1]
    """
    return (decode(z) / scale).clamp(-1, 1)


# ------------------------------------------------------------------------------------------ tier 3: reach a goal


def sample_prior(codes: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Exercise 19. Reach a goal: learn the distribution of codes, as the second model of latent diffusion does.

    The codes of an autoencoder with two latents and a tiny beta lie on two arcs of a circle of radius 2, and the prior
    N(0, I) hardly meets them. Return new codes of the same distribution, by any method that needs less than 20 seconds.
    Two numbers are measured, with 2,000 codes each:

    distance  energy distance of your codes to held-out codes, 2 E|a - b| - E|a - a'| - E|b - b'|       at most 0.010
    copies    share of your codes that are nearer than 0.01 to one of `codes`                           at most 0.30

    N(0, I) has a distance of 0.63, and a normal distribution with the right mean and covariance 0.15. The codes
    themselves have a small distance, but all are copies; of really new codes, 0.21 are nearer than 0.01 to an old one.
    Write down first which of the two goals each of your ideas will miss.

    codes    (N, 2) the codes of the training images
    n        how many new codes to return
    rng      source of all random numbers
    returns  (n, 2)
    """
    raise NotImplementedError("exercise 19: sample_prior")
