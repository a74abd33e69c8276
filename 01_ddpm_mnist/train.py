"""Train a DDPM: digits out of noise.

  python 01_ddpm_mnist/train.py                                    MNIST if it can be had, else the embedded digits
  python 01_ddpm_mnist/train.py --data cifar10 --minutes 60
  python 01_ddpm_mnist/train.py --data path/to/faces --size 64
  python 01_ddpm_mnist/train.py --resume runs/01_ddpm_mnist/mnist
  python 01_ddpm_mnist/train.py --data mnist --start 01_ddpm_mnist/pretrained --minutes 60     go on from a trained model, with a new budget
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from common.cli import is_main_process, run
from common.training.settings import OTHER, Presets, one_budget, resumed, with_build, with_folder, with_preset


@dataclass(frozen=True)
class Args:
    data: str = "auto"
    """auto, digits, mnist, fashion_mnist, cifar10, flowers102, hub:owner/name, or a folder or file of your own (common/data/README.md)."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    size: int | None = None
    """Pixels a side; by default the data's own."""
    image_channels: Literal[1, 3] | None = None
    """Channels of the images: 3 in colour, 1 grey; by default those of --start, else 1 where all pictures are grey."""
    class_conditional: bool = False
    """Also tell the network the label, so that samples can be asked for by class."""
    flip: bool | None = None
    """Mirror images at random (no for digits and clothes, yes for photographs)."""

    steps: int | None = None
    """Budget in optimizer steps ..."""
    minutes: float | None = None
    """... or in wall-clock time (the default). The learning rate follows the budget."""
    batch_size: int | None = None
    """Images per step and process."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    gradient_accumulation: int = 1
    """Batches per optimizer step."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision. auto is bf16 where the device is fast at it (recent GPUs, CPUs with AVX512-BF16), else no."""

    channels: tuple[int, ...] | None = None
    """Width of the U-Net at each resolution, highest resolution first."""
    layers: int = 1
    """Residual blocks at each resolution."""
    start: Path | None = None
    """Begin with the weights of this run or folder, a U-Net of the same build; its widths are taken over."""
    schedule: str = "cosine"
    """linear, cosine, sigmoid, scaled_linear, edm or flow."""
    prediction: str = "v"
    """What the network predicts: eps, x0 or v (edm and flow with the schedule of that name)."""

    out: Path | None = None
    """The run folder; by default runs/01_ddpm_mnist/<data>, numbered if that is taken."""
    resume: Path | None = None
    """Run folder to continue. Its settings apply; budget, device, sample pictures and the place of the data can be given anew."""
    save_every: int = 200
    """Steps between checkpoints."""
    sample_every: int | None = None
    """Steps between sample pictures; by default at each tenth of the budget."""
    sampler: str = "dpmpp_2m:20"
    """How to sample at the end: dpmpp_2m:20, ddim:50, ddpm:1000, heun:18, ..."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


@dataclass(frozen=True)
class Preset:
    """What suits a data set on one kind of device."""

    minutes: float
    channels: tuple[int, ...]
    size: int | None = None
    batch_size: int = 32
    lr: float = 2e-3
    flip: bool = False


PRESETS = Presets(
    cpu={
        "digits": Preset(minutes=2, channels=(16, 32), size=16, lr=3e-3),
        "mnist": Preset(minutes=5, channels=(16, 32, 64), lr=3e-3),
        "fashion_mnist": Preset(minutes=5, channels=(16, 32, 64), lr=3e-3),
        "cifar10": Preset(minutes=60, channels=(64, 128, 128), flip=True),
        "flowers102": Preset(minutes=60, channels=(32, 64, 128, 128), size=64, flip=True),
        OTHER: Preset(minutes=60, channels=(32, 64, 128, 128), size=64, flip=True),
    },
    mps={
        "digits": Preset(minutes=1, channels=(32, 64), size=16, batch_size=64, lr=3e-3),
        "mnist": Preset(minutes=5, channels=(32, 64, 128), batch_size=64, lr=2e-3),
        "fashion_mnist": Preset(minutes=5, channels=(32, 64, 128), batch_size=64, lr=2e-3),
        "cifar10": Preset(minutes=60, channels=(64, 128, 256), batch_size=64, lr=1e-3, flip=True),
        "flowers102": Preset(minutes=60, channels=(64, 64, 128, 256), size=64, batch_size=32, lr=1e-3, flip=True),
        OTHER: Preset(minutes=60, channels=(64, 64, 128, 256), size=64, batch_size=32, lr=1e-3, flip=True),
    },
    gpu={
        "digits": Preset(minutes=1, channels=(32, 64), size=16, batch_size=128, lr=3e-3),
        "mnist": Preset(minutes=5, channels=(64, 128, 256), batch_size=256, lr=1e-3),
        "fashion_mnist": Preset(minutes=5, channels=(64, 128, 256), batch_size=256, lr=1e-3),
        "cifar10": Preset(minutes=120, channels=(128, 256, 256), batch_size=256, lr=5e-4, flip=True),
        "flowers102": Preset(minutes=120, channels=(128, 128, 256, 256), size=64, batch_size=64, lr=3e-4, flip=True),
        OTHER: Preset(minutes=120, channels=(128, 128, 256, 256), size=64, batch_size=64, lr=3e-4, flip=True),
    },
)


def check_numbers(args: Args) -> None:
    one_budget(args)


def new_run(args: Args) -> Args:
    """Settle every setting, so that --resume needs nothing but the folder."""
    if args.data == "auto":
        from common.data.registry import auto

        name, why = auto(args.data_dir)
        if is_main_process():
            print(why)
        args = replace(args, data=name)
    return with_folder(with_preset(with_build(args), PRESETS), "01_ddpm_mnist")


def main(args: Args) -> None:
    check_numbers(args)
    from ddpm_mnist.trainer import fit  # brings torch along, which --help should not wait for

    fit(resumed(args) if args.resume else new_run(args))


if __name__ == "__main__":
    run(main, Args)
