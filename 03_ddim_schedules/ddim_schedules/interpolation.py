"""Real images in the space of noise: how to get there, how to walk there, and how to come back.

A walk from image a to image b has three choices to make, and the names below say which were made:

    ddpm          noise both to one level, each with noise of its own, mix linearly, denoise with DDPM (Ho et al. 2020, section 4.3)
    ddpm_shared   the same, but both get the same noise
    ddpm_slerp    the same as ddpm, but the two noises are mixed along the sphere, so that their mixture is as long as they are
    ddim_lerp     invert both to pure noise with DDIM, mix linearly, draw with DDIM
    ddim_slerp    the same, mixed along the sphere (Song et al. 2021, section 5.3)
"""

from collections.abc import Callable

import torch
from torch import Tensor

from common.diffusion.samplers import ddim, ddim_inverse, ddpm
from common.diffusion.schedules import NoiseLevel, NoiseLevels, add_noise
from common.errors import UserError
from common.io.progress import with_progress
from common.random import Noise
from ddim_schedules.solvers import slerp

METHODS = ("ddpm", "ddpm_shared", "ddpm_slerp", "ddim_lerp", "ddim_slerp")


def last(steps, total: int) -> Tensor:
    """The end of `total` steps."""
    *_, step = with_progress("sampling", steps, total, unit="step")
    return step.x


def first_level(path: NoiseLevels) -> NoiseLevel:
    return next(iter(path))


def begin_at(path: NoiseLevels, strength: float) -> NoiseLevels:
    """The part of a path that is left when it begins with an image noised half-way. strength 1 is pure noise, 0 no noise."""
    if (done := round((1 - strength) * len(path))) == len(path):
        raise UserError(f"--strength {strength:g} of {len(path)} steps is less than one step; give a larger --strength, or more --steps")
    return path.after(done)


def same_dice(noise: Callable[[int, Tensor], Tensor]) -> Callable[[int, Tensor], Tensor]:
    """One throw of the dice for all images of a batch: what then differs between them comes from the latents alone."""
    return lambda k, x: noise(k, x[:1]).expand_as(x)


def lerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    return (1 - share) * a + share * b


def walk(method: str, denoise, free: Callable, path: NoiseLevels, a: Tensor, b: Tensor, shares: list[float], strength: float, seed: int) -> Tensor:
    """Pictures on the way from a to b, each (1, C, H, W). -> (len(shares), C, H, W)

    denoise   the denoiser to draw with;  free  the same without clipping, to invert with
    strength  of the ddpm walks: how far up the images are noised
    """
    if method.startswith("ddim"):
        ends = [last(ddim_inverse(free, x, path), len(path)) for x in (a, b)]
        along = slerp if method == "ddim_slerp" else lerp
        return last(ddim(denoise, torch.cat([along(*ends, share) for share in shares]), path), len(path))
    rest, noise = begin_at(path, strength), Noise(seed)
    level = first_level(rest)
    eps_a, eps_b = noise(0, a), noise(0, a) if method == "ddpm_shared" else noise(10**6, a)
    if method == "ddpm_slerp":
        latents = [add_noise(lerp(a, b, share), slerp(eps_a, eps_b, share), level) for share in shares]
    else:
        latents = [lerp(add_noise(a, eps_a, level), add_noise(b, eps_b, level), share) for share in shares]
    return last(ddpm(denoise, torch.cat(latents), rest, same_dice(Noise(seed + 1))), len(rest))


def changes(pictures: Tensor) -> Tensor:
    """How much each picture differs from the one before, to the eye of the evaluator's network: the distance of its features.
    (N, C, H, W) -> (N - 1,)"""
    from common.evaluate.digit_classifier import load_classifier, look

    features, _ = look(load_classifier(), pictures.clamp(-1, 1))
    return (features[1:] - features[:-1]).norm(dim=1)


def jumpiness(steps: Tensor) -> Tensor:
    """The largest change of each walk in units of its mean change: 1 is a perfectly even walk, F - 1 one single jump.
    (..., F - 1) -> (...)"""
    return steps.amax(-1) / steps.mean(-1)


def reconstruct(denoise, free: Callable, path: NoiseLevels, x: Tensor) -> tuple[Tensor, Tensor]:
    """(noise, image): DDIM inversion, and what DDIM draws from it."""
    noise = last(ddim_inverse(free, x, path), len(path))
    return noise, last(ddim(denoise, noise, path), len(path))
