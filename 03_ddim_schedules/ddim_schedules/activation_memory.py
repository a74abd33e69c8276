"""Memory that a training step needs for activations, counted exactly.

Between forward and backward, autograd saves the tensors that the gradients need. They grow with the batch, while
weights and optimizer do not, so they decide how large a batch fits. Here each saved tensor is counted once, in bytes,
which gives the same number on every machine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from common.cli import writable_folder
from common.diffusion.losses import VLB_WEIGHT, diffusion_loss
from common.diffusion.schedules import make_schedule
from common.io.tables import print_table, write_csv
from common.models.unet import UNet, zero_init
from common.models.unet_config import small_unet


class TrainingStep(NamedTuple):
    """A network and the batch that it is trained with."""

    size: int  # pixels a side
    image_channels: int  # 1 for grey images, 3 for colour
    channels: Sequence[int]  # widths of the U-Net
    batch_size: int


DIGITS = TrainingStep(28, 1, (32, 64, 128), 32)  # chapter 1's
PHOTOGRAPHS = TrainingStep(32, 3, (64, 128, 128), 16)  # as for CIFAR-10
LOSSES = ("plain", "hybrid", "twice")  # L_simple; with the VLB term; with a VLB term that evaluates the network again


def saved_bytes(loss: str, size: int, channels: Sequence[int], batch_size: int, image_channels: int = 1) -> int:
    """Bytes of all different tensors that autograd saves in one step, without the weights.

    loss            one of LOSSES
    size            pixels a side
    channels        widths of the U-Net
    image_channels  1 for grey images, 3 for colour
    """
    torch.manual_seed(0)
    out = image_channels if loss == "plain" else 2 * image_channels
    net = zero_init(UNet(small_unet(size, image_channels, tuple(channels), out=out)))
    schedule, shape = make_schedule("cosine"), (batch_size, image_channels, size, size)
    x0, eps, u = torch.randn(shape).clamp(-1, 1), torch.randn(shape), torch.rand(batch_size)
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    saved = {}  # address -> storage; holding the storage keeps other tensors from getting its address

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        total = diffusion_loss(net, schedule, "eps", x0, u, eps).mean()
        if loss == "twice":
            total = total + VLB_WEIGHT * diffusion_loss(net, schedule, "eps", x0, u.flip(0), eps).mean()
    total.backward()
    return sum(storage.nbytes() for storage in saved.values())


def compare_losses(steps: Sequence[TrainingStep], out: Path) -> None:
    """Print the saved bytes of each loss, and write them to activation_memory.csv, a row for each training step."""
    writable_folder(out)
    rows = []
    for step in steps:
        saved = {
            loss: saved_bytes(loss, step.size, step.channels, step.batch_size, step.image_channels) for loss in LOSSES
        }
        print_losses(step, saved)
        growth, ratio = 100 * (saved["hybrid"] / saved["plain"] - 1), saved["twice"] / saved["plain"]
        megabytes = {f"{loss}_mb": count / 1e6 for loss, count in saved.items()}
        images = f"{step.image_channels}x{step.size}x{step.size}"
        shape = {"batch": step.batch_size, "images": images, "channels": " ".join(map(str, step.channels))}
        rows.append(shape | megabytes | {"hybrid_growth": growth, "twice_ratio": ratio})
    print(write_csv(out / "activation_memory.csv", rows))


def print_losses(step: TrainingStep, saved: Mapping[str, int]) -> None:
    """A line for each loss."""
    batch_size = step.batch_size
    print(f"saved for the backward pass of {batch_size} images, {step.image_channels} x {step.size} x {step.size}")
    rows, fits = [], f"batch that fits where plain fits {batch_size}"
    for loss, count in saved.items():
        row = {"": loss, "MB": f"{count / 1e6:.1f}", "against plain": f"{count / saved['plain']:.3f}"}
        rows.append(row | {fits: int(batch_size * saved["plain"] / count)})
    print_table(rows, gap=4)
