"""Chapter 4 with your own hands: eight functions, from what the encoder says of an image to a latent made from words.

Work from top to bottom. exercises.py is for you to fill in; solutions.py shows one way to do it. None needs another.

The conventions are those of common/models/vae.py and latent_dataset.py:
  mean, logvar  (B, C, h, w) what the encoder says of B images: not one latent each but a cloud, independent in every
                component. logvar is the logarithm of the variance, which is the square of the standard deviation
  latents       float32, (B, C, h, w), with C = 4 in practice and h, w some 4 or 8 times smaller than the image
  scale         the scaling factor: what the encoder gives, times scale, has unit variance; the diffusion model sees
                nothing else
  z             a latent that is scaled already, unless a docstring says otherwise
  x             a noisy latent, x = alpha z + sigma eps: alpha says how much of z is left, sigma how much noise there
                is
  images        float32 in [-1, 1], (B, 3, H, W)
No function changes the tensors it is given.
"""

import hashlib  # noqa: F401 - for your answers, as the next three are
import json  # noqa: F401
import math  # noqa: F401
from collections.abc import Callable, Iterator

import torch  # noqa: F401
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, C, h, w) x, (B,) t, (B, M, D) text -> (B, C, h, w) v


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Exercise 1. What it costs the encoder to say something:
    how far each image's cloud is from a standard normal one.

    KL(N(mean, var) || N(0, 1)) = 1/2 sum (mean^2 + var - 1 - log var)        (Kingma & Welling 2014, appendix B)

    with var = exp(logvar), and the sum over all components of one image's latent.

    mean, logvar  (B, C, h, w)
    returns       (B,) in nats, one number for each image

    Watch out: a batch that is twice as large must not cost twice as much; which axes does the sum take?
    """
    # --- solution
    return (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2
    # --- end


def reparameterise(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """Exercise 2. Draw a latent from the cloud, in such a way that the encoder can learn from what becomes of it.

    latent = mean + std eps                                                   (Kingma & Welling 2014, section 2.4)

    mean, logvar  (B, C, h, w)
    eps           (B, C, h, w) standard normal noise, drawn outside
    returns       (B, C, h, w), not scaled

    Watch out: logvar is the logarithm of the variance; what is the standard deviation? And gradients must reach both
    mean and logvar: that is what the noise from outside is for.
    Drawn with torch.normal(mean, std), the latent would teach them nothing.
    """
    # --- solution
    return mean + (logvar / 2).exp() * eps
    # --- end


def scaling_factor(batches: Iterator[Tensor]) -> float:
    """Exercise 3. Measure by what the latents of a whole set must be multiplied to have unit variance.

    scale = 1 / sqrt(1/n sum (latent - m)^2),   m = 1/n sum latent            (Rombach et al. 2022, appendix G)

    Both sums run over all n components there are: images, channels, places. One number for the whole set.

    batches  gives tensors (B, C, h, w), once, one after the other; the last may have fewer images than the others. A
             tensor is lent until you ask for the next: its memory is then used again, so no one can keep the whole set
    returns  the scaling factor

    Watch out: the mean of the batches' standard deviations is not that of the set, for batches differ in their means
    as well. Add up what you need, count, and divide in the end. Add in double precision (tensor.double()): where m is
    far from 0, a small variance is the difference of two large numbers.
    """
    # --- solution
    n, total, squares = 0, 0.0, 0.0
    for latent in batches:
        latent = latent.double()
        n, total, squares = n + latent.numel(), total + float(latent.sum()), squares + float(latent.square().sum())
    return 1 / math.sqrt(squares / n - (total / n) ** 2)
    # --- end


def noisy_latent(
    mean: Tensor, std: Tensor, scale: float, eps_z: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Exercise 4. One training step of latent diffusion:
    from what the encoder said to what the network sees and should answer.

    z = scale (mean + std eps_z)                                              a latent of unit variance
    x = alpha z + sigma eps                                                   what the network sees
    v = alpha eps - sigma z                                                   what it should answer (Salimans & Ho
                                                                              2022, section 4)

    mean, std     (B, C, h, w) of the encoder's clouds, as they come from the cache: not scaled
    eps_z, eps    (B, C, h, w) two noises that have nothing to do with each other: one draws the latent, the other
                  noises it
    alpha, sigma  (B,) one noise level for each latent, with alpha^2 + sigma^2 = 1
    returns       x and v, two tensors (B, C, h, w)

    Watch out: scale before you noise. The schedule counts on latents of unit variance: at those of Stable Diffusion,
    whose standard deviation is above 5, unscaled, its noise would hardly show. And to multiply latents, alpha needs
    the shape (B, 1, 1, 1).
    """
    # --- solution
    alpha, sigma = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    z = scale * (mean + std * eps_z)
    return alpha * z + sigma * eps, alpha * eps - sigma * z
    # --- end


def latent_key(weights: dict[str, Tensor], config: dict, pixels: Tensor) -> str:
    """Exercise 5. The name under which encoded latents are kept,
    so that a file made from anything else is never opened.

    The latents depend on the encoder's weights, on how it is built, and on the images. So the key is a hash (SHA-256)
    of all that: it changes if any of it changes, and only then. No equation here, but a list.

    The key must change with                                        It must not change with
      any weight, its name, its shape, its dtype                      the order of the entries of weights or config
      any setting in config but one                                   config["scaling_factor"]: the cache holds
                                                                      unscaled latents
      any pixel, the order of the images, their shape and dtype       where in memory a tensor lies, and how
                                                                      the process: tomorrow's must find today's file

    weights  the encoder's state dict: names and tensors
    config   the encoder's settings: names, and numbers, texts, booleans or tuples of them
    pixels   (N, 3, H, W) uint8, the images
    returns  32 hexadecimal digits

    Watch out: Python's hash() of a text is another number in every process. str(tensor) leaves out the middle of large
    tensors, and a sum does not mind the order. What does it all is hashlib.sha256(): digest.update(bytes) as often as
    you like, digest.hexdigest() in the end. tensor.contiguous().numpy().tobytes() gives the bytes of a tensor, which
    say nothing of its shape and dtype; json.dumps(config, sort_keys=True) makes a text of settings.
    weights and config are only lent, too.
    """
    # --- solution
    settings = {name: value for name, value in config.items() if name != "scaling_factor"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in [*sorted(weights.items()), ("pixels", pixels)]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
    # --- end


def img2img_start(z: Tensor, eps: Tensor, strength: float, alpha: Tensor, sigma: Tensor) -> tuple[int, Tensor]:
    """Exercise 6. Begin with a picture instead of with noise: noise it half-way, and let the sampler walk the rest.

    A sampler of N steps visits N + 1 levels, noisiest first; step k goes from level k to level k + 1, and level N is
    clean. Of its N steps, it walks the last `strength` N (rounded to the nearest whole number),
    and leaves out the others:

    first = N - strength N                                                    the first step that it walks
    x     = alpha_first z + sigma_first eps                                   (Meng et al. 2022, section 3)

    z             (B, C, h, w) the latents of the pictures to begin with
    eps           (B, C, h, w) standard normal noise
    strength      from 0 to 1. At 1 no step is left out, and little or nothing of z is seen; at 0 all are, and x is z
                  itself
    alpha, sigma  (N + 1,) the levels, noisiest first; alpha_N = 1, sigma_N = 0
    returns       first, a Python int, and x (B, C, h, w)

    Watch out: how many steps are there, if there are N + 1 levels? And round(), do not cut off: int(0.58 * 50) is 28.
    """
    # --- solution
    N = len(alpha) - 1
    first = N - round(strength * N)
    return first, alpha[first] * z + sigma[first] * eps
    # --- end


def decode_picture(z: Tensor, decode: Callable[[Tensor], Tensor], scale: float) -> Tensor:
    """Exercise 7. From a latent that a diffusion model made to pictures in bytes, for files and screens.

    1. Undo the scaling (exercise 3): the decoder was trained on latents as the encoder gives them.
    2. Decode: the images are in [-1, 1], or nearly so.
    3. Cut off what lies beyond.
    4. Take [-1, 1] to 0 ... 255, and round to the nearest whole number.

    z        (B, C, h, w)
    decode   called as decode(latents), answers (B, 3, H, W) float32
    returns  (B, 3, H, W) uint8

    Watch out: latents are not images. They have no limits, and are not cut off. Images have; without step 3, a pixel a
    little too bright becomes black, for 256 is 0 in a byte. And tensor.to(torch.uint8) does not round, it cuts off.
    """
    # --- solution
    image = decode(z / scale).clamp(-1, 1)
    return ((image + 1) * 127.5).round().to(torch.uint8)
    # --- end


def sample_latent(
    network: Network, x: Tensor, first: int, context: Tensor, w: float, times: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """Exercise 8. All together: from noise (or from exercise 6's half-noised picture) to latents, led by words.

    For k = first ... N - 1:
      v   = uncond + w (cond - uncond)           both answers from one call of the network      (Ho & Salimans 2022,
          eq. 6)
      z   = alpha_k x - sigma_k v                the latent that it sees
      eps = sigma_k x + alpha_k v                and the noise                                  (Salimans & Ho 2022,
                                                 section 4)
      x  <- alpha_(k+1) z + sigma_(k+1) eps      remixed with less noise: DDIM, eta = 0         (Song et al. 2021, eq.
         12)

    network       called as network(x, t, text); answers v. Once a step, with both halves as one batch of 2B
    x             (B, C, h, w) at level `first`, which is 0 for pictures from text alone
    context       (2B, M, D) first B times the empty or negative caption, then the B captions
    w             guidance scale: 1 is the honest answer to the captions
    times         (N,) what the network is told at each step, t = times[k], as a tensor (2B,): once for each x
    alpha, sigma  (N + 1,) the levels, noisiest first; alpha_N = 1, sigma_N = 0
    returns       (B, C, h, w) the latents at level N, ready for exercise 7

    Watch out: samplers of pixels often cut z off at -1 and 1 in each step. Latents have unit variance and no limits: a
    third of their components lie beyond, and must.
    And the latents are doubled as the captions are: 0 1 2 0 1 2, not 0 0 1 1 2 2.
    """
    # --- solution
    for k in range(first, len(times)):
        uncond, cond = network(torch.cat([x, x]), times[k].expand(2 * len(x)), context).chunk(2)
        v = uncond + w * (cond - uncond)
        z, eps = alpha[k] * x - sigma[k] * v, sigma[k] * x + alpha[k] * v
        x = alpha[k + 1] * z + sigma[k + 1] * eps
    return x
    # --- end
