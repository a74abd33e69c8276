"""Train a small latent diffusion model that draws a dish from what a Chinese CLIP makes of its name.

  python 06_inpaint_gif/train_text2dish.py                             the embedded dishes, the shipped CLIP, beginning with chapter 4's U-Net
  python 06_inpaint_gif/train_text2dish.py --clip runs/06_inpaint_gif/clip-dishes      ... with a CLIP of your own
  python 06_inpaint_gif/train_text2dish.py --data my/photos --clip ViT-B-16            photographs of your own
  python 06_inpaint_gif/train_text2dish.py --scratch --widths 32 64                    begin with an untrained U-Net
  python 06_inpaint_gif/train_text2dish.py --resume runs/06_inpaint_gif/text2dish-dishes

The CLIP stays as it is: each caption becomes one vector, once, before the training begins. The run folder's model/ holds the
U-Net, its autoencoder and the CLIP; make_gif.py --dish takes it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from common.cli import free_folder, run
from common.training.flags import Drawing, check_flags
from common.training.settings import OTHER, Presets, resumed, with_folder, with_preset

CHAPTER_4 = Path(__file__).parent.parent / "04_latent_sd" / "pretrained"
NAMES = ("土鸡蛋炒番茄", "番茄炒鸡蛋", "葱油生菜", "米饭", "红烧鱼", "一碗馄饨，木桌", "番茄龙虾", "")  # the second and the last but one it has never read


@dataclass(frozen=True)
class Own:
    """The flags of this training alone; the others are in common/training/flags.py."""

    data: str = "dishes"
    """dishes, which are drawn, or a folder of images with Chinese captions, an .lmdb, hub:owner/name."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    n: int | None = None
    """Only so many images; by default 8,000 drawn dishes, or all there are."""
    clip: str = "pretrained"
    """What reads the names: pretrained, a run folder, a folder of transformers, a checkpoint .pt, ViT-B-16, ..."""
    backend: Literal["cn_clip", "transformers"] = "cn_clip"
    """Backend that computes the vectors; both give the same numbers, to about 1e-7."""
    model: Path = CHAPTER_4
    """Where the autoencoder comes from, and the U-Net to begin with: all of it but what looks at text is kept."""
    scratch: bool = False
    """Begin with an untrained U-Net instead, of these --widths."""
    widths: tuple[int, ...] = (32, 64)
    """With --scratch: width of the U-Net at each resolution of the latents, highest first."""
    names: tuple[str, ...] = NAMES
    """Drawn as training goes, plain and guided."""


@dataclass(frozen=True)
class Args(Drawing, Own):
    caption_dropout: float = 0.1
    """Share of names left out, so that guidance has something to compare with."""


@dataclass(frozen=True)
class Preset:
    """What suits data on one kind of device."""

    minutes: float
    batch_size: int = 32
    lr: float = 1e-3


PRESETS = Presets(  # of the dishes as latents of 16 x 16, on a CPU with one core
    cpu={"dishes": Preset(minutes=30, batch_size=16), OTHER: Preset(minutes=60, lr=5e-4)},
    mps={"dishes": Preset(minutes=20, batch_size=64), OTHER: Preset(minutes=45, batch_size=64, lr=5e-4)},
    gpu={"dishes": Preset(minutes=15, batch_size=256), OTHER: Preset(minutes=30, batch_size=128, lr=5e-4)},
)


def check_numbers(args: Args) -> None:
    check_flags(args)


def new_run(args: Args) -> Args:
    """Settle every setting, so that --resume needs nothing but the folder."""
    args = replace(args, out=args.out or free_folder(Path("runs/06_inpaint_gif") / f"text2dish-{Path(args.data).stem}"))
    return with_folder(with_preset(args, PRESETS), "06_inpaint_gif")


def main(args: Args) -> None:
    check_numbers(args)
    from inpaint_gif.training.text2dish import fit_text2dish  # brings torch along, which --help should not wait for

    fit_text2dish(resumed(args) if args.resume else new_run(args))


if __name__ == "__main__":
    run(main, Args)
