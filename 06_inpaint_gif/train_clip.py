"""Train a small Chinese CLIP: pictures of dishes and their names, until each finds the other.

  python 06_inpaint_gif/train_clip.py                                the embedded dishes, 15 minutes
  python 06_inpaint_gif/train_clip.py --data my/photos --minutes 5       photographs of your own, with Chinese captions
  python 06_inpaint_gif/train_clip.py --data my/photos --start ViT-B-16 --lr 2e-5           fine-tune a published one
  python 06_inpaint_gif/train_clip.py --resume runs/06_inpaint_gif/clip-dishes

The run folder's model/ is a ChineseCLIPModel of `transformers`, which cn_clip reads as well (model.py, convert_clip.py).
How good it is: python 06_inpaint_gif/evaluate_clip.py --clip runs/06_inpaint_gif/clip-dishes
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from common.cli import free_folder, run
from common.errors import UserError
from common.io.ranges import Range
from common.training.settings import OTHER, Presets, one_budget, resumed, with_folder, with_preset


@dataclass(frozen=True)
class Args:
    data: str = "dishes"
    """dishes, which are drawn, or a folder of images with captions, an .lmdb, hub:owner/name."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    n: int | None = None
    """Only so many images; by default 6,000 drawn dishes, or all there are."""
    start: str | None = None
    """Begin with a Chinese CLIP that is there: pretrained, a folder, a checkpoint .pt, ViT-B-16, ...; its sizes are kept."""

    size: int | None = None
    """Pixels a side that the network looks at."""
    patch: int | None = None
    """Pixels a side of a patch: the vision transformer sees (size / patch)^2 of them."""
    width: int | None = None
    """Width of the vision transformer; a head is 32 wide."""
    layers: int | None = None
    """Its layers."""
    text_width: int | None = None
    """Width of the BERT that reads; a head is 32 wide."""
    text_layers: int | None = None
    """Its layers."""
    dim: int | None = None
    """Width of the space in which they meet."""

    temperature: Annotated[float, Range(0.01, 10)] = 0.07
    """Of the comparisons at the beginning; it is learned along, and never falls below 0.01."""
    unknown: float = 0.1
    """Share of characters hidden as [UNK] while training, so that a name with an unknown character can still be understood."""
    keep: Annotated[float, Range(0, 1, above=True, hint="1 looks at every patch")] = 1.0
    """Share of the patches of a picture that a step looks at, chosen by chance: 0.5 takes about half the time."""
    augment: bool = True
    """Turn, move, mirror and light the pictures anew each time."""

    steps: int | None = None
    """Budget in optimizer steps ..."""
    minutes: float | None = None
    """... or in wall-clock time (the default). The learning rate follows the budget."""
    batch_size: Annotated[int | None, Range(2, 65_536, 96, hint="a picture is compared with the names of the others")] = None
    """Pairs per step and process; each process contrasts its own."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision. auto is bf16 where the device is fast at it (recent GPUs, CPUs with AVX512-BF16), else no."""

    held_out: int = 400
    """Pictures of the test split to measure on."""
    out: Path | None = None
    """The run folder; by default runs/06_inpaint_gif/clip-<data>, numbered if that is taken."""
    resume: Path | None = None
    """Run folder to continue. Its settings apply; budget, device, sample pictures and the place of the data can be given anew."""
    save_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


@dataclass(frozen=True)
class Preset:
    """What suits one kind of device."""

    minutes: float
    width: int = 128
    layers: int = 4
    size: int = 64
    patch: int = 8
    text_width: int = 128
    text_layers: int = 2
    dim: int = 128
    batch_size: int = 96
    lr: float = 1e-3


PRESETS = Presets(
    cpu={OTHER: Preset(minutes=15)},  # one core
    mps={OTHER: Preset(minutes=15, width=192, layers=6, text_width=192, text_layers=3, dim=192, batch_size=192)},
    gpu={OTHER: Preset(minutes=10, width=256, layers=6, size=96, text_width=256, text_layers=4, dim=256, batch_size=512)},
)
SIZES = ("size", "patch", "width", "layers", "text_width", "text_layers", "dim")


def check_numbers(args: Args) -> None:
    one_budget(args)
    given = [name for name in SIZES if getattr(args, name) is not None]
    if args.start and given and not args.resume:
        raise UserError(f"--start keeps the sizes of that model; leave out --{given[0].replace('_', '-')}")
    for flag, width in (("width", args.width), ("text-width", args.text_width)):
        if width is not None and width % 32:
            raise UserError(f"--{flag} must be a multiple of 32, the width of an attention head, not {width}")


def new_run(args: Args) -> Args:
    """Settle every setting, so that --resume needs nothing but the folder."""
    args = replace(args, out=args.out or free_folder(Path("runs/06_inpaint_gif") / f"clip-{Path(args.data).stem}"))
    settled = with_folder(with_preset(args, PRESETS), "06_inpaint_gif")
    return replace(settled, **dict.fromkeys(SIZES)) if args.start else settled


def main(args: Args) -> None:
    check_numbers(args)
    from inpaint_gif.clip.trainer import fit_clip  # brings torch along, which --help should not wait for

    fit_clip(resumed(args) if args.resume else new_run(args))


if __name__ == "__main__":
    run(main, Args)
