"""Train a DDPM: digits out of noise.

python 01_ddpm_mnist/train.py                                    MNIST from a local copy or a download, else the embedded part of it
python 01_ddpm_mnist/train.py --data cifar10 --minutes 60
python 01_ddpm_mnist/train.py --data path/to/faces --size 64
python 01_ddpm_mnist/train.py --resume runs/01_ddpm_mnist/mnist
python 01_ddpm_mnist/train.py --data mnist --start 01_ddpm_mnist/pretrained --minutes 60     go on from a trained model, with a new budget
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import run
from common.training.flags import UNetFlags
from common.training.settings import OTHER, Presets, settle, with_auto_data, with_build


@dataclass(frozen=True)
class Args(UNetFlags):
    data: str = "auto"
    """auto, mnist, mnist-10k, fashion_mnist, cifar10, flowers102, hub:owner/name, or a path (common/data/README.md)."""
    size: int | None = None
    """Pixels a side; by default the data's own."""
    image_channels: Literal[1, 3] | None = None
    """Channels of the images: 3 in colour, 1 grey; by default those of --start, else 1 where all pictures are grey."""
    class_conditional: bool = False
    """Whether the network sees the label, so that samples of one class can be drawn."""
    flip: bool | None = None
    """Whether images are mirrored at random (by default no for digits and clothes, yes for photographs)."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and steps of the final samples: dpmpp_2m:20, ddim:50, ddpm:1000, heun:18, ..."""
    save_every: int = 200
    """Steps between checkpoints."""


@dataclass(frozen=True)
class Preset:
    """What suits a data set on one kind of device."""

    minutes: float
    channels: tuple[int, ...]
    size: int | None = None
    batch_size: int = 32
    lr: float = 2e-3
    flip: bool = False


MNIST = ("mnist", "mnist-10k")
PRESETS = Presets(
    cpu={
        "digits": Preset(minutes=2, channels=(16, 32), size=16, lr=3e-3),
        **dict.fromkeys(MNIST, Preset(minutes=5, channels=(16, 32, 64), lr=3e-3)),
        "fashion_mnist": Preset(minutes=5, channels=(16, 32, 64), lr=3e-3),
        "cifar10": Preset(minutes=60, channels=(64, 128, 128), flip=True),
        OTHER: Preset(minutes=60, channels=(32, 64, 128, 128), size=64, flip=True),
    },
    mps={
        "digits": Preset(minutes=1, channels=(32, 64), size=16, batch_size=64, lr=3e-3),
        **dict.fromkeys(MNIST, Preset(minutes=5, channels=(32, 64, 128), batch_size=64, lr=2e-3)),
        "fashion_mnist": Preset(minutes=5, channels=(32, 64, 128), batch_size=64, lr=2e-3),
        "cifar10": Preset(minutes=60, channels=(64, 128, 256), batch_size=64, lr=1e-3, flip=True),
        OTHER: Preset(minutes=60, channels=(64, 64, 128, 256), size=64, batch_size=32, lr=1e-3, flip=True),
    },
    gpu={
        "digits": Preset(minutes=1, channels=(32, 64), size=16, batch_size=128, lr=3e-3),
        **dict.fromkeys(MNIST, Preset(minutes=5, channels=(64, 128, 256), batch_size=256, lr=1e-3)),
        "fashion_mnist": Preset(minutes=5, channels=(64, 128, 256), batch_size=256, lr=1e-3),
        "cifar10": Preset(minutes=120, channels=(128, 256, 256), batch_size=256, lr=5e-4, flip=True),
        OTHER: Preset(minutes=120, channels=(128, 128, 256, 256), size=64, batch_size=64, lr=3e-4, flip=True),
    },
)


def main(args: Args) -> None:
    from ddpm_mnist.trainer import fit_ddpm  # brings torch along, which --help should not wait for

    args = with_auto_data(args)
    args = settle(with_build(args), PRESETS, f"01_ddpm_mnist/{Path(args.data).name}")
    fit_ddpm(args, args.size, args.image_channels, args.class_conditional, bool(args.flip), args.sampler)


if __name__ == "__main__":
    run(main, Args)
