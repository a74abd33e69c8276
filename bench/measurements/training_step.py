"""A training step of our U-Net and of diffusers', and the convolutions that it is compared with."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.harness import interleaved_medians, training_flags
from bench.measurements.step_config import StepConfig
from common.cli import pick_precision
from common.errors import UserError
from common.models.diffusers_configs import unet_to_diffusers
from common.models.unet import UNet
from common.models.unet_config import small_unet

SHAPES = [(64, 28), (96, 28), (128, 28), (64, 14), (128, 14), (256, 14)]  # convolutions: channels, pixels a side


def network(name: str, channels: tuple[int, ...] | None) -> nn.Module:
    """Chapter 1's network for MNIST (with other widths, if given),
    "ours" or that of "diffusers", with the same weights.
    """
    with training_flags(data="mnist", channels=channels) as flags:
        config = small_unet(28, 1, flags.channels, flags.layers)
    torch.manual_seed(0)
    ours = UNet(config)
    if name == "ours":
        return ours
    theirs = UNet2DModel.from_config(unet_to_diffusers(config))
    theirs.load_state_dict(ours.state_dict())
    return theirs


def output_of(net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """The output of either network; diffusers wraps it."""
    return net(x, t).sample if isinstance(net, UNet2DModel) else net(x, t)


def training_step(net: nn.Module, config: StepConfig) -> Callable[[], None]:
    """A function that makes one optimizer step on a fixed batch."""
    bf16 = pick_precision(config.precision, "cpu") == "bf16"
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, config.batch_size, 1, 28, 28, generator=generator)
    t = torch.randint(1000, (config.batch_size,), generator=generator)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = output_of(net, x, t)
        (y.float() - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_speed(config: StepConfig, rounds: int) -> dict[str, Any]:
    """Time of a step of each network, and the share of the processor's peak that ours reaches."""
    networks = {name: network(name, config.channels) for name in ("ours", "diffusers")}
    check_equal(networks)
    steps = {name: training_step(net, config) for name, net in networks.items()}
    with FlopCounterMode(display=False) as counter:
        steps["ours"]()
    gflop = counter.get_total_flops() / 1e9

    dtype = torch.bfloat16 if pick_precision(config.precision, "cpu") == "bf16" else torch.float32
    convolutions = {f"{c} channels, {s} px": convolution(config.batch_size, c, s, dtype) for c, s in SHAPES}
    seconds = interleaved_medians(steps | convolutions, rounds)
    peaks = {
        name: convolution_gflop(config.batch_size, *shape) / seconds[name]
        for name, shape in zip(convolutions, SHAPES, strict=True)
    }
    best = max(peaks, key=lambda name: peaks[name])
    return {
        "precision": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "ours, milliseconds a step": 1e3 * seconds["ours"],
        "diffusers, milliseconds a step": 1e3 * seconds["diffusers"],
        "ours / diffusers, time": seconds["ours"] / seconds["diffusers"],
        "step, GFLOP": gflop,
        "step, GFLOP/s": gflop / seconds["ours"],
        "convolution peak, GFLOP/s": peaks[best],
        "convolution peak, at": best,
        "step / convolution peak": gflop / seconds["ours"] / peaks[best],
    }


def check_equal(networks: Mapping[str, nn.Module], tolerance: float = 1e-4) -> None:
    """Refuse to compare the times of networks that have different outputs."""
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([10, 900])
    with torch.no_grad():
        difference = float((output_of(networks["ours"], x, t) - output_of(networks["diffusers"], x, t)).abs().max())
    if not difference < tolerance:
        raise UserError(
            f"the outputs of the two networks differ by {difference:.2g}, so their times do not compare; this is a bug"
        )


def convolution(batch: int, channels: int, size: int, dtype: torch.dtype) -> Callable[[], object]:
    """One 3x3 convolution, forward and backward."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, dtype=dtype)
    x = torch.randn(batch, channels, size, size, dtype=dtype, requires_grad=True)
    gradient = torch.randn_like(x)
    return lambda: torch.autograd.grad(layer(x), (x, layer.weight), gradient)


def convolution_gflop(batch: int, channels: int, size: int) -> float:
    """A multiplication and an addition for each weight at each pixel; backward is twice that (image, weights)."""
    return 3 * 2 * batch * size**2 * channels**2 * 3**2 / 1e9
