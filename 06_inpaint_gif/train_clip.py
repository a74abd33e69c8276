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
from typing import Annotated

from common.cli import run
from common.errors import UserError
from common.io.ranges import Range
from common.training.flags import TrainingFlags
from common.training.settings import OTHER, Presets, settle


@dataclass(frozen=True)
class Args(TrainingFlags):
    data: str = "dishes"
    """Data set: dishes, which are drawn, or a folder of images with captions, an .lmdb, hub:owner/name."""
    n: int | None = None
    """Number of images; by default 6,000 drawn dishes, or all there are."""
    start: str | None = None
    """Chinese CLIP to begin with: pretrained, a folder, a checkpoint .pt, ViT-B-16, ...; its sizes are kept."""

    size: int | None = None
    """Pixels a side of the images that the network receives."""
    patch: int | None = None
    """Pixels a side of a patch: the vision transformer has (size / patch)^2 of them."""
    width: int | None = None
    """Width of the vision transformer; a head is 32 wide."""
    layers: int | None = None
    """Layers of the vision transformer."""
    text_width: int | None = None
    """Width of the BERT that encodes text; a head is 32 wide."""
    text_layers: int | None = None
    """Layers of the BERT."""
    dim: int | None = None
    """Width of the joint embedding space."""

    temperature: Annotated[float, Range(0.01, 10)] = 0.07
    """Initial temperature of the contrastive loss; it is learned along, and never falls below 0.01."""
    unknown: float = 0.1
    """Share of characters hidden as [UNK] while training, so that a name with an unknown character can still be understood."""
    keep: Annotated[float, Range(0, 1, above=True, hint="1 looks at every patch")] = 1.0
    """Share of the patches of an image that a step uses, chosen at random: 0.5 takes about half the time."""
    augment: bool = True
    """Whether images are randomly turned, moved, mirrored and lit anew each time."""
    batch_size: Annotated[int | None, Range(2, 65_536, 96, hint="a picture is compared with the names of the others")] = None
    """Pairs per batch and process; each process contrasts its own."""
    held_out: int = 400
    """Pictures of the test split to measure on."""
    sample_every: int | None = None
    """Steps between measurements; by default a tenth of the budget."""


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


def main(args: Args) -> None:
    from inpaint_gif.clip.trainer import fit_clip  # brings torch along, which --help should not wait for

    given = [name for name in SIZES if getattr(args, name) is not None]
    if args.start and given and not args.resume:
        raise UserError(f"--start keeps the sizes of that model; leave out --{given[0].replace('_', '-')}")
    for flag, width in (("width", args.width), ("text-width", args.text_width)):
        if width is not None and width % 32:
            raise UserError(f"--{flag} must be a multiple of 32, the width of an attention head, not {width}")
    args = settle(args, PRESETS, f"06_inpaint_gif/clip-{Path(args.data).stem}")
    fit_clip(replace(args, **dict.fromkeys(SIZES)) if args.start else args)


if __name__ == "__main__":
    run(main, Args)
