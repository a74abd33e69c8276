"""Digits out of noise: several samplers from the same noise, with the prediction of the clean image beside each."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common.demo.pictures.models import digit_model
from common.diffusion.denoiser import Denoiser
from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import initial_noise
from common.random import Noise

CHOICES = ("ddim", "ddpm", "dpmpp_2m", "heun", "euler_a", "sde")
MOST_STEPS, MOST_DIGITS = 100, 16


class DigitMoment(NamedTuple):
    """The state of all samplers after a step."""

    done: int
    total: int
    x: dict[str, Tensor]  # by sampler, (n, 1, 28, 28): the noisy digits
    x0: dict[str, Tensor]  # by sampler, (n, 1, 28, 28): the prediction of the clean digits


@torch.no_grad()
def denoise_digits(samplers: Sequence[str], steps: int, n: int, seed: int) -> Iterator[DigitMoment]:
    """Run the samplers side by side. The first moment is the noise that all of them begin with."""
    net, schedule, prediction, clip_x0 = digit_model()
    shape = (n, net.cfg.in_channels, net.cfg.size, net.cfg.size)
    denoise = Denoiser(net.eval(), prediction, clip_x0)
    noise = initial_noise(schedule.noise_levels(steps), shape, Noise(seed))
    runs = {name: Sampler(name, steps).run(denoise, schedule, shape, seed) for name in samplers}
    yield DigitMoment(0, steps, dict.fromkeys(runs, noise), dict.fromkeys(runs, torch.zeros_like(noise)))
    for done, states in enumerate(zip(*runs.values(), strict=True), 1):
        now = dict(zip(runs, states, strict=True))
        yield DigitMoment(done, steps, {name: s.x for name, s in now.items()}, {name: s.x0 for name, s in now.items()})
