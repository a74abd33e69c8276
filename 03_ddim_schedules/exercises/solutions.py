"""Chapter 3 with your own hands: eight functions, from a chain with fewer steps to a solver of second order.

Work from top to bottom. exercises.py is for you to fill in; solutions.py shows one way to do it. None needs another.

The conventions are those of common/diffusion/schedules.py and common/diffusion/samplers.py:
  x0, eps     a clean image and standard normal noise, float32, shape (B, C, H, W)
  x           a noisy image, x = alpha x0 + sigma eps: alpha says how much of the image is left, sigma how much noise
              there is
  alpha_bar   (T + 1,) DDPM's schedule: alpha_t = sqrt(alpha_bar_t), sigma_t = sqrt(1 - alpha_bar_t), so alpha^2 +
              sigma^2 = 1. The paper's t is the index: entry T is the noisiest, and entry 0 the clean image
  Level       alpha and sigma of one noise level, of any schedule; alpha > 0
  SNR         alpha^2 / sigma^2, the signal-to-noise ratio; lambda is half its logarithm
  x', alpha'  what belongs to the level that a step goes to
No function changes the tensors it is given.
"""

import math  # noqa: F401 - for your answers, as torch is
from collections.abc import Callable
from typing import NamedTuple

import torch  # noqa: F401
from torch import Tensor


class Level(NamedTuple):
    """One noise level. Write level.alpha and level.sigma."""

    alpha: float
    sigma: float


Denoise = Callable[[Tensor, Level], tuple[Tensor, Tensor]]  # (B, C, H, W) x and its level -> its guess of (x0, eps)


def respace(alpha_bar: Tensor, times: list[int]) -> Tensor:
    """Exercise 1. The betas of a chain that visits only some of the levels.

    beta_i = 1 - alpha_bar[t_i] / alpha_bar[t_(i-1)]               (Nichol & Dhariwal 2021, eq. 19)

    alpha_bar  (T + 1,) of the full chain
    times      the levels to visit, increasing: t_1 ... t_K
    returns    (K,) beta_1 ... beta_K of the shorter chain

    Watch out: a long step adds more noise than a short one, so these are not the betas that the full chain has at t_i.
    And what comes before the first visited level?
    """
    # --- solution
    visited = alpha_bar[[0, *times]]  # (K + 1,) the clean image comes first
    return 1 - visited[1:] / visited[:-1]
    # --- end


def ddim_step(x: Tensor, eps: Tensor, t: int, t_next: int, eta: float, z: Tensor, alpha_bar: Tensor) -> Tensor:
    """Exercise 2. One step of DDIM: take x apart into image and noise, and mix them again with less noise.

    x'    = sqrt(alpha_bar') x0 + sqrt(1 - alpha_bar' - fresh^2) eps + fresh z                  (Song et al. 2021, eq.
          12)
    fresh = eta sqrt((1 - alpha_bar') / (1 - alpha_bar)) sqrt(1 - alpha_bar / alpha_bar')       (eq. 16)

    with alpha_bar at t, alpha_bar' at t_next, and x0 the image that is left if eps is the noise in x (DDPM's eq. 4
    solved for x0). (The DDIM paper writes alpha for alpha_bar, and sigma_t for `fresh`.)

    x, eps     (B, C, H, W) noisy images, the network's opinion of the noise in them
    t, t_next  the level of x, and the level to go to, any number of levels below; the last step goes to 0
    eta        0: no chance at all; 1: as much fresh noise as DDPM
    z          (B, C, H, W) fresh standard normal noise
    alpha_bar  (T + 1,)
    returns    (B, C, H, W)

    Watch out: all the noise together must be that of the next level: what is fresh is taken away from the old. The
    last step must add none; with alpha_bar_0 = 1, does it?
    """
    # --- solution
    now, then = alpha_bar[t], alpha_bar[t_next]
    x0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
    fresh = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
    return then.sqrt() * x0 + (1 - then - fresh**2).sqrt() * eps + fresh * z
    # --- end


def v_prediction(first: Tensor, second: Tensor, alpha: Tensor, sigma: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """Exercise 3. v, a mixture of noise and image for a network to predict: there for training, and back for sampling.

    there (back=False)   first, second = x0, eps;  returns x, v      x = alpha x0 + sigma eps,   v = alpha eps - sigma
                         x0
    back  (back=True)    first, second = x, v;     returns x0, eps   the two equations, solved for x0 and eps
                                                                                        (Salimans & Ho 2022, section 4)

    first, second  (B, C, H, W)
    alpha, sigma   (B,) one level for each image, with alpha^2 + sigma^2 = 1
    returns        two tensors (B, C, H, W)

    Watch out: alpha may be 0, where x is all noise. Divide by it and v is wasted: v tells the image even there. You
    need not divide at all. And to multiply images, alpha must have the shape (B, 1, 1, 1).
    """
    # --- solution
    alpha, sigma = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    if back:
        x, v = first, second
        return alpha * x - sigma * v, sigma * x + alpha * v
    x0, eps = first, second
    return alpha * x0 + sigma * eps, alpha * eps - sigma * x0
    # --- end


def heun_step(denoise: Denoise, x: Tensor, now: Level, then: Level) -> Tensor:
    """Exercise 4. One step of Heun's method: look, step, look again from there, and step by the average of both looks.

    Along a sampler's path x changes by dx = x0 dalpha + eps dsigma. From now to then, dalpha is alpha' - alpha and
    dsigma sigma' - sigma. Euler's method takes x0 and eps as seen at the start; Heun's (Karras et al.
    2022, algorithm 1) goes there:

    ahead = x + x0 dalpha + eps dsigma                              with x0, eps as seen in x at the level now
    x'    = x + (x0 + x0') / 2 dalpha + (eps + eps') / 2 dsigma     with x0', eps' as seen in ahead at the level then

    denoise    called as denoise(x, level), answers (x0, eps)
    x          (B, C, H, W) at the level now
    now, then  levels; the last step of all has then.sigma = 0
    returns    (B, C, H, W) at the level then

    Watch out: where sigma' = 0 there is no noise left to see, and no second look: that step is Euler's.
    """
    # --- solution
    dalpha, dsigma = then.alpha - now.alpha, then.sigma - now.sigma
    x0, eps = denoise(x, now)
    ahead = x + x0 * dalpha + eps * dsigma
    if then.sigma == 0:
        return ahead
    x0_ahead, eps_ahead = denoise(ahead, then)
    return x + (x0 + x0_ahead) / 2 * dalpha + (eps + eps_ahead) / 2 * dsigma
    # --- end


def snr_weight(alpha: Tensor, sigma: Tensor, gamma: float, prediction: str) -> Tensor:
    """Exercise 5. Min-SNR weights: how much each image of a training batch should count.

    The squared error of x0 gets the weight min(SNR, gamma): clean levels, where the SNR is huge, shall not drown the
    others. A network that predicts something else makes an error in x0 as well, only in other units:

    x0    min(SNR, gamma)                  SNR = alpha^2 / sigma^2
    eps   min(SNR, gamma) / SNR            (Hang et al. 2023, section 3.4)
    v     min(SNR, gamma) / (SNR + 1)

    alpha, sigma  (B,) one level for each image, with alpha^2 + sigma^2 = 1 and both above 0
    gamma         in practice 5
    prediction    what the network predicts: "eps", "x0" or "v"
    returns       (B,)
    """
    # --- solution
    snr = (alpha / sigma) ** 2
    capped = snr.clamp(max=gamma)
    if prediction == "x0":
        return capped
    return capped / snr if prediction == "eps" else capped / (snr + 1)
    # --- end


def slerp(a: Tensor, b: Tensor, w: float) -> Tensor:
    """Exercise 6. From one noise to another along the sphere,
    so that everything between them is as strong as noise is.

    result = sin((1 - w) angle) / sin(angle) a + sin(w angle) / sin(angle) b            (Song et al. 2021, appendix
    D.5; Shoemake 1985) cos(angle) = a . b / (|a| |b|)

    Each image of the batch is one long vector with an angle of its own. Where its a and b are (nearly) parallel,
    sin(angle) is 0: there, and only there, take the straight line (1 - w) a + w b, which is the same to many digits.

    a, b     (B, C, H, W) noises
    w        from 0 (all a) to 1 (all b)
    returns  (B, C, H, W)

    Watch out: by rounding, the cosine of a with itself can be 1.0000001, whose angle is NaN. And
    torch.where(condition, p, q) picks from p and q, image by image.
    """
    # --- solution
    dot, length_a, length_b = (v.flatten(1).sum(1).view(-1, 1, 1, 1) for v in (a * b, a * a, b * b))  # (B, 1, 1, 1)
    angle = (dot / (length_a * length_b).sqrt()).clamp(-1, 1).acos()
    sin = angle.sin()
    parallel = sin < 1e-3
    safe = torch.where(parallel, 1.0, sin)
    weight_a = torch.where(parallel, 1 - w, ((1 - w) * angle).sin() / safe)
    weight_b = torch.where(parallel, w, (w * angle).sin() / safe)
    return weight_a * a + weight_b * b
    # --- end


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Exercise 7. Let a schedule end in pure noise, with nothing left of the image.

    Many schedules stop short of it: at T a trace of the image is left, in training but not in sampling. The remedy:
    shift sqrt(alpha_bar) down until its last entry is 0, then stretch it until the first is what it was:

    root_t <- (root_t - root_T) root_1 / (root_1 - root_T)      with root_t = sqrt(alpha_bar_t), t = 1 ... T
                                                                (Lin et al. 2023, algorithm 1)

    alpha_bar  (T + 1,)
    returns    (T + 1,) the alpha_bar of the new schedule

    Watch out: the paper's first entry is t = 1. Ours has the clean image before it, and that stays clean.
    """
    # --- solution
    root = alpha_bar[1:].sqrt()  # (T,)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return torch.cat([alpha_bar[:1], root**2])
    # --- end


def dpmpp_2m_step(
    x: Tensor, x0: Tensor, now: Level, then: Level, x0_old: Tensor | None, before: Level | None
) -> Tensor:
    """Exercise 8. One step of DPM-Solver++(2M): a second look for free, for the last step's guess is still there.

    x' = sigma' / sigma x - alpha' (e^-h - 1) D           h = lambda' - lambda,   lambda = log(alpha / sigma)
    D  = x0 + (x0 - x0_old) / (2 r)                       r = (lambda - lambda_before) / h
                                                          (Lu et al. 2022, "DPM-Solver++", algorithm 2)

    D is where x0 will be in the middle of the step, if it goes on changing as it did between the last two looks.

    x             (B, C, H, W) at the level now
    x0            (B, C, H, W) the image seen in it
    now, then     the step goes from now to then; the last step of all has then.sigma = 0
    x0_old        (B, C, H, W) the image seen one step earlier, at the level before; at the first step both are None
    returns       (B, C, H, W) at the level then

    Watch out: without history, D is x0 alone. And where sigma' = 0, lambda' is infinite; then e^-h = 0, history counts
    for nothing, and x' is simply alpha' x0.
    """
    # --- solution
    if then.sigma == 0:
        return then.alpha * x0
    lam, lam_then = (math.log(level.alpha / level.sigma) for level in (now, then))
    h, D = lam_then - lam, x0
    if before is not None:
        r = (lam - math.log(before.alpha / before.sigma)) / h
        D = x0 + (x0 - x0_old) / (2 * r)
    return then.sigma / now.sigma * x - then.alpha * math.expm1(-h) * D
    # --- end
