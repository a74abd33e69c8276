"""Train a small latent diffusion model that draws a dish from what a Chinese CLIP makes of its name.

  python 06_inpaint_gif/train_text2dish.py                             the embedded dishes, the shipped CLIP, beginning with chapter 4's U-Net
  python 06_inpaint_gif/train_text2dish.py --clip runs/06_inpaint_gif/clip-dishes      ... with a CLIP of your own
  python 06_inpaint_gif/train_text2dish.py --data my/photos --clip ViT-B-16            photographs of your own
  python 06_inpaint_gif/train_text2dish.py --scratch --widths 32 64                    begin with an untrained U-Net
  python 06_inpaint_gif/train_text2dish.py --resume runs/06_inpaint_gif/text2dish-dishes

The CLIP stays as it is: each caption becomes one vector, once, before the training begins. The run folder's model/ holds the
U-Net, its autoencoder and the CLIP; make_gif.py --dish takes it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import run
from common.training.flags import SampleFlags
from common.training.settings import OTHER, Presets, settle

CHAPTER_4 = Path(__file__).parent.parent / "04_latent_sd" / "pretrained"
NAMES = ("土鸡蛋炒番茄", "番茄炒鸡蛋", "葱油生菜", "米饭", "红烧鱼", "一碗馄饨，木桌", "番茄龙虾", "")  # the second and the last but one it has never read


@dataclass(frozen=True)
class Args(SampleFlags):
    data: str = "dishes"
    """Data set: dishes, which are drawn, or a folder of images with Chinese captions, an .lmdb, hub:owner/name."""
    n: int | None = None
    """Number of images; by default 8,000 drawn dishes, or all there are."""
    clip: str = "pretrained"
    """CLIP that encodes the names: pretrained, a run folder, a folder of transformers, a checkpoint .pt, ViT-B-16, ..."""
    backend: Literal["cn_clip", "transformers"] = "cn_clip"
    """Backend that computes the vectors; both give the same numbers, to about 1e-7."""
    model: Path = CHAPTER_4
    """Model with the autoencoder, and with the U-Net to begin with: all of its weights but those that attend to text are kept."""
    scratch: bool = False
    """Whether to begin with an untrained U-Net instead, of these --widths."""
    widths: tuple[int, ...] = (32, 64)
    """Width of the U-Net at each resolution of the latents, highest first, with --scratch."""
    names: tuple[str, ...] = NAMES
    """Names of the sample pictures, drawn without and with guidance."""
    caption_dropout: float = 0.1
    """Share of names left out, as classifier-free guidance needs it."""


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


def main(args: Args) -> None:
    from inpaint_gif.training.text2dish import fit_text2dish  # brings torch along, which --help should not wait for

    fit_text2dish(settle(args, PRESETS, f"06_inpaint_gif/text2dish-{Path(args.data).stem}"))


if __name__ == "__main__":
    run(main, Args)
