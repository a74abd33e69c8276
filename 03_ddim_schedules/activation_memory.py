"""Does the VLB term cost a third of the batch size in memory? Count what autograd saves in a training step.

  python 03_ddim_schedules/activation_memory.py                    two networks, for 28x28 digits and 32x32 photographs
  python 03_ddim_schedules/activation_memory.py --size 64 --image-channels 3 --channels 64 128 256 --batch-size 8

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
    size: int | None = None
    """Pixels a side. With this or one of the next three flags a single network is measured, by default chapter 1's."""
    image_channels: int | None = None
    """Channels of the images: 1 for grey, 3 for colour."""
    channels: tuple[int, ...] | None = None
    """Width of the U-Net at each resolution."""
    batch_size: int | None = None
    """Images in the step."""
    out: Path = Path("runs/03_ddim_schedules/activation_memory")
    """Folder of activation_memory.csv."""


def main(args: Args) -> None:
    from ddim_schedules.activation_memory import DIGITS, PHOTOGRAPHS, compare_losses

    given = {name: value for name in DIGITS._fields if (value := getattr(args, name)) is not None}
    compare_losses([DIGITS._replace(**given)] if given else [DIGITS, PHOTOGRAPHS], args.out)


if __name__ == "__main__":
    run(main, Args)
