"""Does the VLB term cost a third of the batch size in memory? Count what autograd saves in a training step.

  python 03_ddim_schedules/activation_memory.py
  python 03_ddim_schedules/activation_memory.py --size 32 --image-channels 3 --channels 64 128 128 --batch-size 16

Three losses are compared:

  plain    L_simple: the network has C output channels
  hybrid   L_simple + 0.001 L_vlb, with 2 C channels: the bound reuses the output, its mean detached
           (common/diffusion/losses.py)
  twice    the same, but the bound evaluates the network a second time, as it would for a timestep of its own
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run


@dataclass(frozen=True)
class Args:
    size: int = 28
    """Pixels a side."""
    image_channels: int = 1
    """Channels of the images: 1 for grey, 3 for colour."""
    channels: tuple[int, ...] = (32, 64, 128)
    """Width of the U-Net at each resolution; by default chapter 1's."""
    batch_size: int = 32
    """Images in the step."""
    json: Path | None = None
    """JSON file for the results."""


def main(args: Args) -> None:
    from ddim_schedules.activation_memory import compare_losses

    compare_losses(args.size, args.channels, args.batch_size, args.image_channels, args.json)


if __name__ == "__main__":
    run(main, Args)
