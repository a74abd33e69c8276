"""The same 50 steps of DDIM by four implementations, with a network that costs nothing."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from bench.harness import interleaved_medians, report
from common.diffusion.denoiser import Denoiser
from common.diffusion.samplers import ddim
from common.diffusion.schedules import make_schedule
from common.errors import UserError

TARGET = 1 / 3  # of diffusers' time


def measure_overhead(batches: Sequence[int], size: int, steps: int, rounds: int, json: Path | None) -> None:
    """Time all implementations at each batch size, and report microseconds a step and ratios."""
    torch.set_num_threads(1)
    figures: dict[str, object] = {}
    for batch in batches:
        x = torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
        loops = implementations(x, steps)
        check_equal(loops)
        medians = interleaved_medians(loops, rounds, time.process_time)
        figures |= {
            f"batch {batch}: {name}, microseconds a step": 1e6 * seconds / steps for name, seconds in medians.items()
        }
        figures |= {
            f"batch {batch}: ours / {name}": medians["ours"] / seconds
            for name, seconds in medians.items()
            if name != "ours"
        }
        figures |= {f"batch {batch}: plain loop / diffusers": medians["plain loop"] / medians["diffusers"]}
    report(f"Sampler overhead, {steps} steps of DDIM (target: ours / diffusers at most {TARGET:.2f})", figures, json)


def implementations(x: Tensor, steps: int) -> dict[str, Callable[[], Tensor]]:
    """Four ways to sample from the noise x (B, C, H, W) with v-prediction on the cosine schedule, x0 clipped."""
    schedule = make_schedule("cosine")
    denoise = Denoiser(network, "v", clip_x0=True)
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    )

    def ours() -> Tensor:
        sample = x
        for step in ddim(denoise, x, schedule.noise_levels(steps)):
            sample = step.x
        return sample

    @torch.no_grad()
    def diffusers(same_eps: bool = False) -> Tensor:
        sample = x
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            sample = scheduler.step(network(sample, t), t, sample, use_clipped_model_output=same_eps).prev_sample
        return sample

    levels = list(schedule.noise_levels(steps))
    coefficients = [  # x' = keep * x + add * x0, where x0 = alpha * x - sigma * v
        (now.time, now.alpha, now.sigma, then.sigma / now.sigma, then.alpha - now.alpha * then.sigma / now.sigma)
        for now, then in zip(levels, levels[1:], strict=False)
    ]

    @torch.no_grad()
    def plain() -> Tensor:
        sample = x
        for t, alpha, sigma, keep, add in coefficients:
            x0 = (alpha * sample - sigma * network(sample, t)).clamp(-1, 1)
            sample = keep * sample + add * x0
        return sample

    return {"ours": ours, "diffusers": diffusers, "diffusers, same eps": lambda: diffusers(True), "plain loop": plain}


def network(x: Tensor, time: Tensor | float) -> Tensor:
    """A network that costs nothing."""
    return x


def check_equal(loops: dict[str, Callable[[], Tensor]], tolerance: float = 1e-4) -> None:
    """Refuse to compare the times of implementations that do different work."""
    ours = loops["ours"]()
    for name in ("diffusers, same eps", "plain loop"):
        if (difference := float((loops[name]() - ours).abs().max())) > tolerance:
            raise UserError(
                f"the samples of {name} and of ours differ by {difference:.2g}, "
                "so their times do not compare; this is a bug"
            )
