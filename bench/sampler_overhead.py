"""What a sampling step costs outside the network: our DDIM, diffusers' DDIMScheduler, and a plain loop.

  python -m bench.sampler_overhead

The network is one that does nothing. diffusers is measured twice: as its pipelines call it (where x0 is clipped and eps
left as it was), and so that it does what ours does, with eps taken from the clipped x0; that these agree is checked.
The clock is this process's own, on one thread, so that other programs on the machine do not count.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.harness import report, turns
from common.cli import run
from common.errors import UserError

TARGET = 1 / 3  # of diffusers' time


@dataclass(frozen=True)
class Args:
    steps: int = 50
    """Steps of the sampler."""
    batches: tuple[int, ...] = (1, 16)
    """Images at a time."""
    size: int = 28
    """Pixels a side; one channel."""
    rounds: int = 200
    """Turns of each rival; the median counts."""
    json: Path | None = None
    """Also write the figures to this file."""


def main(args: Args) -> None:

    import torch

    torch.set_num_threads(1)
    figures = {}
    for batch in args.batches:
        x = torch.randn(batch, 1, args.size, args.size, generator=torch.Generator().manual_seed(0))
        samplers = rivals(x, args.steps)
        check_equal(samplers)
        took = {name: 1e6 * seconds / args.steps for name, seconds in turns(samplers, args.rounds, time.process_time).items()}
        figures |= {f"batch {batch}: {name}, microseconds a step": value for name, value in took.items()}
        figures |= {f"batch {batch}: ours / {name}": took["ours"] / value for name, value in took.items() if name != "ours"}
        figures |= {f"batch {batch}: plain loop / diffusers": took["plain loop"] / took["diffusers"]}
    report(f"Sampler overhead, {args.steps} steps of DDIM (target: ours / diffusers at most {TARGET:.2f})", figures, args.json)


def rivals(x, steps: int) -> dict[str, Callable]:
    """Four ways to sample from the noise x (B, C, H, W) with v-prediction on the cosine schedule, x0 clipped."""
    import torch
    from diffusers import DDIMScheduler

    from common.diffusion.denoiser import Denoiser
    from common.diffusion.samplers import ddim
    from common.diffusion.schedules import make_schedule

    def network(x, time):
        return x

    schedule, denoise = make_schedule("cosine"), Denoiser(network, "v", clip_x0=True)
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing")

    def ours():
        sample = x
        for step in ddim(denoise, x, schedule.noise_levels(steps)):
            sample = step.x
        return sample

    @torch.no_grad()
    def diffusers(same_eps: bool = False):
        sample = x
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            sample = scheduler.step(network(sample, t), t, sample, use_clipped_model_output=same_eps).prev_sample
        return sample

    levels = list(schedule.noise_levels(steps))
    table = [  # x' = keep * x + add * x0, where x0 = alpha * x - sigma * v
        (now.time, now.alpha, now.sigma, then.sigma / now.sigma, then.alpha - now.alpha * then.sigma / now.sigma)
        for now, then in zip(levels, levels[1:], strict=False)
    ]

    @torch.no_grad()
    def plain():
        sample = x
        for t, alpha, sigma, keep, add in table:
            x0 = (alpha * sample - sigma * network(sample, t)).clamp(-1, 1)
            sample = keep * sample + add * x0
        return sample

    return {"ours": ours, "diffusers": diffusers, "diffusers, same eps": lambda: diffusers(True), "plain loop": plain}


def check_equal(samplers: dict[str, Callable], tolerance: float = 1e-4) -> None:
    """Times compare only where the same work is done."""
    ours = samplers["ours"]()
    for name in ("diffusers, same eps", "plain loop"):
        if (apart := float((samplers[name]() - ours).abs().max())) > tolerance:
            raise UserError(f"the samples of {name} and of ours differ by {apart:.2g}, so their times do not compare; this is a bug")


if __name__ == "__main__":
    run(main, Args)
