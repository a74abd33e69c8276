"""Claim 11: does the VLB term cost a third of the batch size in memory? Count what a training step keeps.

  python 03_ddim_schedules/activation_memory.py
  python 03_ddim_schedules/activation_memory.py --size 32 --image-channels 3 --channels 64 128 128 --batch-size 16

Between forward and backward, autograd keeps the activations that the gradients need. They grow with the batch, while weights and
optimizer do not, so they decide how large a batch fits. Here every tensor that is kept is counted, once, in bytes: no measurement
of a busy machine, the same number every time. Three ways to train are compared:

  plain    L_simple: the network answers with C channels
  hybrid   L_simple + 0.001 L_vlb, with 2 C channels (common/diffusion/losses.py): the bound reuses the answer, its mean detached
  twice    the same where the bound asks the network a second time, as it would with its own draw of t
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run


@dataclass(frozen=True)
class Args:
    size: int = 28
    """Pixels a side."""
    image_channels: int = 1
    """1 for grey images, 3 for colour."""
    channels: tuple[int, ...] = (32, 64, 128)
    """Width of the U-Net at each resolution; by default chapter 1's."""
    batch_size: int = 32
    """Images in the step."""
    json: Path | None = None
    """Also write the figures to this file."""


def main(args: Args) -> None:

    from common.io.files import write_json

    kept = {kind: kept_bytes(args, kind) for kind in ("plain", "hybrid", "twice")}
    print(f"kept for the backward pass of {args.batch_size} images, {args.image_channels} x {args.size} x {args.size}")
    print(f"{'':8}{'MB':>8}{'against plain':>16}{'batch that fits where plain fits ' + str(args.batch_size):>40}")
    for kind, number in kept.items():
        print(f"{kind:8}{number / 1e6:>8.1f}{number / kept['plain']:>16.3f}{int(args.batch_size * kept['plain'] / number):>40}")
    if args.json:
        write_json(args.json, {kind: number for kind, number in kept.items()})


def kept_bytes(args: Args, kind: str) -> int:
    """Bytes of all different tensors that autograd keeps for one step, weights not counted."""
    import torch

    from common.diffusion.losses import VLB_WEIGHT, diffusion_loss
    from common.diffusion.schedules import make_schedule
    from common.models.unet import UNet, small_unet, zero_init

    torch.manual_seed(0)
    out = args.image_channels * (1 if kind == "plain" else 2)
    net = zero_init(UNet(small_unet(args.size, args.image_channels, args.channels, out=out)))
    schedule, shape = make_schedule("cosine"), (args.batch_size, args.image_channels, args.size, args.size)
    x0, eps, u = torch.randn(shape).clamp(-1, 1), torch.randn(shape), torch.rand(args.batch_size)
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept = {}  # address: (bytes, the storage itself, so that no other tensor gets its address)

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = diffusion_loss(net, schedule, "eps", x0, u, eps).mean()
        if kind == "twice":
            loss = loss + VLB_WEIGHT * diffusion_loss(net, schedule, "eps", x0, u.flip(0), eps).mean()
    loss.backward()
    return sum(size for size, _ in kept.values())


if __name__ == "__main__":
    run(main, Args)
