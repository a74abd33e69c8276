"""RePaint (Lugmayr et al. 2022): inpainting with any diffusion model, without training it for inpainting.

At every step the model's x_t is kept inside the hole;
outside it is replaced by the known picture, noised to the same level (algorithm 1):

    x_known   = alpha_t x0 + sigma_t eps                       around the hole
    x_unknown = one step of DDPM from x_(t+1)                  inside
    x_t       = m x_unknown + (1 - m) x_known                  m = 1 in the hole

In a single pass the inside is denoised before it has seen the known pixels of the next level, so the two do not match.
Resampling solves this: after a few steps, add noise and take the same steps again. In each pass the inside adapts to
the outside (section 4.2).
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from common.diffusion.samplers import Denoise, Step
from common.diffusion.schedules import NoiseLevel, NoiseLevels, add_noise, combine
from common.diffusion.vlb import step_variances
from common.errors import UserError
from common.random import NoiseSource

JUMP, TIMES = 5, 4  # the paper's 10 and 10 are for 250 steps


def jump_schedule(steps: int, jump: int = JUMP, times: int = TIMES) -> list[int]:
    """Indices of the noise levels to visit, 0 is the noisiest: down to `steps`, and after every `jump` steps back up
    by as many, until each stretch of `jump` steps has been taken `times` times.

    jump_schedule(4, 2, 2) = [0, 1, 2, 0, 1, 2, 3, 4, 2, 3, 4]
    """
    if jump < 1 or times < 1:
        raise UserError(f"RePaint needs a jump of at least 1 step and at least 1 pass, not {jump} and {times}")
    visited, left, k = [0], {}, 0
    while k < steps:
        k += 1
        visited.append(k)
        if k % jump == 0 and left.setdefault(k, times - 1) > 0:
            left[k] -= 1
            k -= jump
            visited.append(k)
    return visited


@torch.no_grad()
def repaint(
    denoise: Denoise,
    x: Tensor,
    levels: NoiseLevels,
    known: Tensor,
    mask: Tensor,
    noise: NoiseSource,
    jump: int = JUMP,
    times: int = TIMES,
) -> Iterator[Step]:
    """Sample with RePaint. The result equals `known` bit for bit where the mask is 0.

    x      (B, c, h, w) pure noise
    known  (B, c, h, w) the clean picture; its values in the hole are not used
    mask   (B, 1, h, w) 1 in the hole, 0 outside
    noise  (k, x) -> noise for draw k
    jump, times  see jump_schedule
    """
    every = list(levels)
    x0 = x
    for i, (here, there) in enumerate(pairwise(jump_schedule(len(levels), jump, times))):
        now, then = every[here], every[there]
        if there < here:
            x = renoised(x, now, then, noise(2 * i + 1, x))
        else:
            x0, eps = denoise(x, now)[:2]
            x = torch.where(
                mask > 0,
                ancestral(x0, eps, now, then, noise(2 * i + 1, x)),
                add_noise(known, noise(2 * i + 2, x), then),
            )
        yield Step(x, x0, i)


def ancestral(x0: Tensor, eps: Tensor, now: NoiseLevel, then: NoiseLevel, fresh: Tensor) -> Tensor:
    """One step of DDPM with fresh noise of variance beta_tilde; the last step adds none."""
    variance = step_variances(now, then)[1] if then.sigma > 0 else 0.0
    return combine(then.alpha, x0, math.sqrt(max(0.0, then.sigma**2 - variance)), eps) + math.sqrt(variance) * fresh


def renoised(x: Tensor, now: NoiseLevel, then: NoiseLevel, fresh: Tensor) -> Tensor:
    """Return to a noisier level in one draw,
    because the sum of the noise of several steps is Gaussian too (DDPM eq. 4).
    """
    ratio = then.alpha / now.alpha
    return combine(ratio, x, math.sqrt(max(0.0, then.sigma**2 - (ratio * now.sigma) ** 2)), fresh)
