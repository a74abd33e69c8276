"""Interpolation between two real images through noise.

A method makes three choices: how to get from the images to noisy images or noise, how to mix, and how to denoise.

    ddpm          noise both images to one level with independent noise, mix linearly, denoise with DDPM
                  (Ho et al. 2020, section 4.4)
    ddpm_shared   the same with one noise for both images
    ddpm_slerp    the same as ddpm, but the two noises are mixed spherically, so that the mixture keeps their norm
    ddim_lerp     invert both images to pure noise with DDIM, mix linearly, sample with DDIM
    ddim_slerp    the same with spherical mixing (Song et al. 2021, section 5.3)
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from common.diffusion.samplers import Denoise, Step, ddim, ddim_inverse, ddpm
from common.diffusion.schedules import NoiseLevels, add_noise
from common.errors import UserError
from common.evaluate.digit_classifier import classify, load_digit_classifier
from common.io.progress import with_progress
from common.random import Noise, NoiseSource
from ddim_schedules.solvers import slerp

METHODS = ("ddpm", "ddpm_shared", "ddpm_slerp", "ddim_lerp", "ddim_slerp")


def last_state(steps: Iterable[Step], levels: NoiseLevels) -> Tensor:
    """Run a sampler over these levels to its end, with a progress bar. (B, C, H, W)"""
    *_, step = with_progress("sampling", steps, len(levels), unit="step")
    return step.x


def levels_from(levels: NoiseLevels, strength: float) -> NoiseLevels:
    """The levels that are left when sampling starts from a noisy image. Strength 1 is pure noise, 0 is no noise."""
    if (skipped := round((1 - strength) * len(levels))) == len(levels):
        raise UserError(
            f"--strength {strength:g} of {len(levels)} steps is less than one step; "
            "give a larger --strength, or more --steps"
        )
    return levels.after(skipped)


def shared_noise(noise: NoiseSource) -> NoiseSource:
    """The same noise for all images of a batch, so that they differ only by what the sampler starts from."""
    return lambda k, x: noise(k, x[:1]).expand_as(x)


def lerp(a: Tensor, b: Tensor, w: float) -> Tensor:
    return (1 - w) * a + w * b


def interpolate(
    method: str,
    denoise: Denoise,
    denoise_unclipped: Denoise,
    levels: NoiseLevels,
    a: Tensor,
    b: Tensor,
    weights: Sequence[float],
    strength: float,
    seed: int,
) -> Tensor:
    """Images between a and b, each (1, C, H, W). Returns (len(weights), C, H, W).

    method             one of METHODS
    denoise            the denoiser to sample with
    denoise_unclipped  the same without clipping, for the inversion
    weights            of b for each image: 0 gives a, and 1 gives b
    strength           for the ddpm methods: how far up the images are noised, in (0, 1]
    seed               for the ddpm methods: seed of all noise
    """
    if method.startswith("ddim"):
        ends = [last_state(ddim_inverse(denoise_unclipped, x, levels), levels) for x in (a, b)]
        mix = slerp if method == "ddim_slerp" else lerp
        return last_state(ddim(denoise, torch.cat([mix(*ends, w) for w in weights]), levels), levels)
    levels, noise = levels_from(levels, strength), Noise(seed)
    level = next(iter(levels))  # the noisiest one
    eps_a, eps_b = noise(0, a), noise(0 if method == "ddpm_shared" else 10**6, a)
    if method == "ddpm_slerp":
        x = [add_noise(lerp(a, b, w), slerp(eps_a, eps_b, w), level) for w in weights]
    else:
        x = [lerp(add_noise(a, eps_a, level), add_noise(b, eps_b, level), w) for w in weights]
    return last_state(ddpm(denoise, torch.cat(x), levels, shared_noise(Noise(seed + 1))), levels)


def frame_changes(images: Tensor) -> Tensor:
    """Distance of each image to the one before, in features of the evaluator's classifier. (F, C, H, W) -> (F - 1,)"""
    features, _ = classify(load_digit_classifier(), images.clamp(-1, 1))
    return (features[1:] - features[:-1]).norm(dim=1)


def peak_to_mean(changes: Tensor) -> Tensor:
    """The largest change in units of the mean change:
    1 if all changes are equal, F - 1 if there is a single jump. (..., F - 1) -> (...)
    """
    return changes.amax(-1) / changes.mean(-1)
