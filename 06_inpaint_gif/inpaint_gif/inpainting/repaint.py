"""RePaint (Lugmayr et al. 2022): any diffusion model can fill a hole, though nobody trained it to.

At every step the model's own x_t is kept inside the hole, and around it replaced by what it would be if all went right: the known
picture, noised to the same level (algorithm 1):

    x_known   = alpha_t x0 + sigma_t eps                       around the hole
    x_unknown = one step of DDPM from x_(t+1)                  inside
    x_t       = m x_unknown + (1 - m) x_known                  m = 1 in the hole

Done once, this pastes: the inside was drawn without knowing what would be put around it. So the paper goes back: a few steps down,
noise again, the same steps down again. Each time the inside sees a little more of the outside, and the two agree (section 4.2).
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


def walk(steps: int, jump: int = JUMP, times: int = TIMES) -> list[int]:
    """The numbers of the levels to visit, 0 the noisiest: down to `steps`, and after every `jump` steps back up by as many,
    until each such stretch has been walked down `times` times.

    walk(4, 2, 2) = [0, 1, 2, 0, 1, 2, 3, 4, 2, 3, 4]
    """
    if jump < 1 or times < 1:
        raise UserError(f"RePaint needs a jump of at least 1 step and at least 1 pass, not {jump} and {times}")
    way, left, k = [0], {}, 0
    while k < steps:
        k += 1
        way.append(k)
        if k % jump == 0 and left.setdefault(k, times - 1) > 0:
            left[k] -= 1
            k -= jump
            way.append(k)
    return way


@torch.no_grad()
def repaint(denoise: Denoise, x: Tensor, path: NoiseLevels, known: Tensor, mask: Tensor, noise: NoiseSource, jump: int = JUMP,
            times: int = TIMES) -> Iterator[Step]:  # fmt: skip
    """A sampler that leaves `known` where the mask is 0, to the last bit.

    x      (B, c, h, w) pure noise
    known  (B, c, h, w) the clean picture; what it is in the hole does not matter
    mask   (B, 1, h, w) 1 in the hole, 0 around it
    noise  (k, x) -> noise for draw k
    """
    levels = list(path)
    x0 = x
    for i, (here, there) in enumerate(pairwise(walk(len(path), jump, times))):
        now, then = levels[here], levels[there]
        if there < here:
            x = noised(x, now, then, noise(2 * i + 1, x))
        else:
            x0, eps = denoise(x, now)[:2]
            x = torch.where(mask > 0, ancestral(x0, eps, now, then, noise(2 * i + 1, x)), add_noise(known, noise(2 * i + 2, x), then))
        yield Step(x, x0, i)


def ancestral(x0: Tensor, eps: Tensor, now: NoiseLevel, then: NoiseLevel, fresh: Tensor) -> Tensor:
    """One step of DDPM: what is kept of the noise, and fresh noise of variance beta_tilde; none at the last step."""
    variance = step_variances(now, then)[1] if then.sigma > 0 else 0.0
    return combine(then.alpha, x0, math.sqrt(max(0.0, then.sigma**2 - variance)), eps) + math.sqrt(variance) * fresh


def noised(x: Tensor, now: NoiseLevel, then: NoiseLevel, fresh: Tensor) -> Tensor:
    """Back to a noisier level in one draw, for noise added in several steps is Gaussian too (DDPM eq. 4)."""
    ratio = then.alpha / now.alpha
    return combine(ratio, x, math.sqrt(max(0.0, then.sigma**2 - (ratio * now.sigma) ** 2)), fresh)
