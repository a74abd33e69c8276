"""The networks of a study, U-Net or DiT: made from the settings of a training, and sampled from with the samplers of
common or with this chapter's ddpm_naive.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from common.diffusion.denoiser import CLIP_MODES, Denoiser
from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import Step, initial_noise
from common.diffusion.schedules import DiscreteSchedule, Schedule
from common.errors import UserError
from common.models.dit import DiT, DiTConfig
from common.models.model_folder import Model
from common.models.unet import UNet, zero_init
from common.models.unet_config import small_unet
from common.random import Noise
from ddim_schedules import solvers
from ddim_schedules.experiment import SamplingSettings, TrainingSettings


def new_network(training: TrainingSettings, channels: int) -> UNet | DiT:
    """An untrained network for images of `channels` channels. UserError where its settings do not fit the images."""
    out = 2 * channels if training.learned_variance else channels
    if training.network == "unet":
        return zero_init(UNet(small_unet(training.size, channels, training.widths, training.layers, out=out)))
    patch, width, depth = (int(number) for number in training.network.split("-")[1:])
    heads = max(1, width // 32)
    return DiT(DiTConfig(training.size, channels, out, patch=patch, dim=width, depth=depth, heads=heads))


def sample_batch(
    sampling: SamplingSettings, model: Model, first: int, count: int, device: torch.device
) -> Iterator[Step]:
    """Sample `count` images from number `first` on. A class-conditional model takes its classes in turn."""
    cfg = model.net.cfg
    label = {"label": torch.arange(first, first + count, device=device) % cfg.classes} if cfg.classes else {}
    denoise = Denoiser(model.net, model.prediction, CLIP_MODES[sampling.clip], **label)
    shape, seeds = (count, cfg.in_channels, cfg.size, cfg.size), (sampling.noise_seed, first)
    if sampling.sampler != "ddpm_naive":
        return Sampler.parse(sampling.spec).run(denoise, model.schedule, shape, *seeds, device=device)
    if not isinstance(model.schedule, DiscreteSchedule):
        raise UserError(f"ddpm_naive needs a discrete-time schedule, which '{model.schedule.name}' is not")
    return ddpm_naive(sampling.steps, denoise, model.schedule, shape, Noise(*seeds), device)


def ddpm_naive(
    steps: int, denoise: Denoiser, schedule: Schedule, shape: tuple[int, ...], noise: Noise, device: torch.device
) -> Iterator[Step]:
    """solvers.ddpm_naive for a network with any prediction; the denoiser converts its output to eps."""
    levels = schedule.noise_levels(steps)
    tau, remaining = [int(level.time) + 1 for level in levels], iter(levels)

    def eps_model(x: Tensor, _: Tensor) -> Tensor:
        """The solver calls this once at each level, so the timesteps need not be read back from the device."""
        return denoise(x, next(remaining)).eps

    states = solvers.ddpm_naive(eps_model, initial_noise(levels, shape, noise, device), schedule.alpha_bar, tau, noise)
    yield from (Step(x, x, i) for i, x in enumerate(states))
