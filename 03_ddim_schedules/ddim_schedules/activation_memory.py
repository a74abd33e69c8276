"""Memory that a training step needs for activations, counted exactly.

Between forward and backward, autograd saves the tensors that the gradients need. They grow with the batch, while
weights and optimizer do not, so they decide how large a batch fits. Here each saved tensor is counted once, in bytes,
which gives the same number on every machine.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.diffusion.losses import VLB_WEIGHT, diffusion_loss
from common.diffusion.schedules import make_schedule
from common.io.files import write_json
from common.io.tables import print_table
from common.models.unet import UNet, zero_init
from common.models.unet_config import small_unet

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


def compare_losses(
    size: int, channels: Sequence[int], batch_size: int, image_channels: int, json: Path | None
) -> None:
    """Print the saved bytes of each loss, and write them to a JSON file if one is named."""
    saved = {loss: saved_bytes(loss, size, channels, batch_size, image_channels) for loss in LOSSES}
    print(f"saved for the backward pass of {batch_size} images, {image_channels} x {size} x {size}")
    rows, fits = [], f"batch that fits where plain fits {batch_size}"
    for loss, count in saved.items():
        row = {"": loss, "MB": f"{count / 1e6:.1f}", "against plain": f"{count / saved['plain']:.3f}"}
        rows.append(row | {fits: int(batch_size * saved["plain"] / count)})
    print_table(rows, gap=4)
    if json:
        write_json(json, saved)
