"""The training step of chapter 1's MNIST network on the CPU: against diffusers, against the processor's peak, its memory.

  python -m bench.step
  python -m bench.step --data-dir path/to/data      also runs train.py on MNIST for a while

1. Time and memory against diffusers' UNet2DModel with the same configuration, weights and batch; that both answer alike
   is checked. A step is forward, loss, backward, optimizer. Memory is the peak of a process that makes 20 steps, the
   median of three.
2. Arithmetic against the machine's own peak, which is that of plain 3x3 convolutions, forward and backward: the best of
   several shapes. torch counts the operations of a step.
3. Peak memory and speed of `train.py --data mnist` as it stands: data, logging, averaging, checkpoints, final pictures.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from bench.harness import command, report, settings_of, turns
from common.cli import pick_precision, run
from common.errors import UserError

SHAPES = [(64, 28), (96, 28), (128, 28), (64, 14), (128, 14), (256, 14)]  # channels, pixels a side
TARGETS = "targets: ours / diffusers at most 1 in time and memory, step / peak at least 0.6, train.py at most 1200 MB"


@dataclass(frozen=True)
class Args:
    rounds: int = 15
    """Turns of each rival; the median counts."""
    batch_size: int = 32
    """Images in a step; chapter 1's default."""
    channels: tuple[int, ...] | None = None
    """Width of the U-Net at each resolution; by default chapter 1's for MNIST."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """As in train.py: auto is bf16 where the processor computes it natively, else no."""
    data_dir: Path | None = None
    """Where MNIST is, for the third measurement."""
    seconds: float = 30
    """How long train.py trains in it."""
    memory_of: Literal["ours", "diffusers", "imports"] | None = None
    """Only make 20 steps and exit: how this program measures memory, each network in a process of its own."""
    json: Path | None = None
    """Also write the figures to this file."""


def main(args: Args) -> None:
    if args.memory_of:
        make_steps(args)
        return
    figures = memory(args)  # the processes that measure memory come first: see bench.command
    real = real_run(args) if args.data_dir else {"train.py on MNIST": "not measured, for want of --data-dir"}
    figures |= speed(args)
    if "train.py, images/s" in real:
        gflops = real["train.py, images/s"] * figures["step, GFLOP"] / args.batch_size
        real["train.py / convolution peak"] = gflops / figures["convolution peak, GFLOP/s"]
    report(f"Training step, batch {args.batch_size} ({TARGETS})", figures | real, args.json)


# ------------------------------------------------------------------------------------------------------ the two networks


def network(name: str, channels: tuple[int, ...] | None):
    """Chapter 1's network for MNIST (or another width of it), ours or diffusers', with the same weights."""
    import torch
    from diffusers import UNet2DModel

    from common.data import Images
    from common.models.diffusers_unet import unet_to_diffusers
    from common.models.unet import UNet
    from common.models.unet_config import small_unet

    shape_only = Images("mnist", torch.zeros(1, 1, 28, 28, dtype=torch.uint8))
    with settings_of("01_ddpm_mnist/train.py", data="mnist", channels=channels) as settings:
        config = small_unet(shape_only.size, shape_only.channels, settings.channels, settings.layers)
    torch.manual_seed(0)
    ours = UNet(config)
    if name == "ours":
        return ours
    theirs = UNet2DModel.from_config(unet_to_diffusers(config))
    theirs.load_state_dict(ours.state_dict())
    return theirs


def answer(net, x, t):
    y = net(x, t)
    return getattr(y, "sample", y)  # diffusers wraps the tensor


def training_step(net, args: Args) -> Callable[[], None]:
    """One optimizer step on a fixed batch."""
    import torch

    bf16 = pick_precision(args.precision, "cpu") == "bf16"
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)
    draw = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, args.batch_size, 1, 28, 28, generator=draw)
    t = torch.randint(1000, (args.batch_size,), generator=draw)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = answer(net, x, t)
        (y.float() - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


# ---------------------------------------------------------------------------------------------------------------- speed


def speed(args: Args) -> dict[str, object]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    nets = {name: network(name, args.channels) for name in ("ours", "diffusers")}
    check_equal(nets)
    steps = {name: training_step(net, args) for name, net in nets.items()}
    with FlopCounterMode(display=False) as counter:
        steps["ours"]()
    gflop = counter.get_total_flops() / 1e9

    dtype = torch.bfloat16 if pick_precision(args.precision, "cpu") == "bf16" else torch.float32
    convolutions = {f"{c} channels, {s} px": convolution(args.batch_size, c, s, dtype) for c, s in SHAPES}
    took = turns(steps | convolutions, args.rounds)
    peak = {name: convolution_gflop(args.batch_size, *shape) / took[name] for name, shape in zip(convolutions, SHAPES, strict=True)}
    best = max(peak, key=peak.get)
    return {
        "precision": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "ours, milliseconds a step": 1e3 * took["ours"],
        "diffusers, milliseconds a step": 1e3 * took["diffusers"],
        "ours / diffusers, time": took["ours"] / took["diffusers"],
        "step, GFLOP": gflop,
        "step, GFLOP/s": gflop / took["ours"],
        "convolution peak, GFLOP/s": peak[best],
        "convolution peak, at": best,
        "step / convolution peak": gflop / took["ours"] / peak[best],
    }


def check_equal(nets: dict, tolerance: float = 1e-4) -> None:
    """Times compare only where the same work is done."""
    import torch

    x, t = torch.randn(2, 1, 28, 28), torch.tensor([10, 900])
    with torch.no_grad():
        apart = float((answer(nets["ours"], x, t) - answer(nets["diffusers"], x, t)).abs().max())
    if not apart < tolerance:
        raise UserError(f"the two networks' answers differ by {apart:.2g}, so their times do not compare; this is a bug")


def convolution(batch: int, channels: int, size: int, dtype) -> Callable[[], object]:
    """One 3x3 convolution, forward and backward."""
    import torch

    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False, dtype=dtype)
    x = torch.randn(batch, channels, size, size, dtype=dtype, requires_grad=True)
    gradient = torch.randn_like(x)
    return lambda: torch.autograd.grad(layer(x), (x, layer.weight), gradient)


def convolution_gflop(batch: int, channels: int, size: int) -> float:
    """A multiplication and an addition for each weight at each pixel; backward is twice that (image, weights)."""
    return 3 * 2 * batch * size**2 * channels**2 * 3**2 / 1e9


# --------------------------------------------------------------------------------------------------------------- memory


def make_steps(args: Args) -> None:
    """What the measured process does. All import the same, so that the difference is the network's."""
    import diffusers.models.unets.unet_2d  # noqa: F401

    import common.models.unet  # noqa: F401

    if args.memory_of != "imports":
        step = training_step(network(args.memory_of, args.channels), args)
        for _ in range(20):
            step()


def memory(args: Args) -> dict[str, object]:
    flags = ["--batch-size", args.batch_size, "--precision", args.precision, *(["--channels", *args.channels] if args.channels else []), "--memory-of"]
    peaks = {name: [] for name in ("imports", "ours", "diffusers")}
    for _ in range(3):
        for name, each in peaks.items():
            each.append(command("-m", "bench.step", *flags, name).mb)
    mb = {name: median(each) for name, each in peaks.items()}
    return {
        **{f"{name}, peak memory in MB": value for name, value in mb.items()},
        "ours / diffusers, peak memory": mb["ours"] / mb["diffusers"],
        "ours / diffusers, without imports": (mb["ours"] - mb["imports"]) / (mb["diffusers"] - mb["imports"]),
    }


def real_run(args: Args) -> dict[str, object]:
    """Chapter 1's default MNIST run, cut short."""
    with tempfile.TemporaryDirectory() as folder:
        where = ["--data", "mnist", "--data-dir", args.data_dir.resolve(), "--out", f"{folder}/run", "--device", "cpu"]
        budget = ["--minutes", args.seconds / 60, "--precision", args.precision, *(["--channels", *args.channels] if args.channels else [])]
        mb = command("01_ddpm_mnist/train.py", *where, *budget).mb

        import numpy as np

        from common.viz import read_metrics

        rate = float(np.nanmedian(read_metrics(Path(folder) / "run")["images_per_second"]))
    return {"train.py, peak memory in MB": mb, "train.py, images/s": rate}


if __name__ == "__main__":
    run(main, Args)
