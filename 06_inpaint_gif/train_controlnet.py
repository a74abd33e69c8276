"""Train a ControlNet for inpainting, beside a text-to-image model that is not changed.

  python 06_inpaint_gif/train_controlnet.py                             beside chapter 4's small Stable Diffusion, learns on drawn dishes
  python 06_inpaint_gif/train_controlnet.py --data my/photos --model path/to/stable-diffusion-v1-5 --device cuda
  python 06_inpaint_gif/train_controlnet.py --resume runs/06_inpaint_gif/controlnet-dishes

A copy of the U-Net's encoder receives the picture, with -1 in the hole where colours are from 0 to 1, and adds its
features to the U-Net's decoder (Zhang et al. 2023; chapter 5 trains one on edges). It does so through convolutions
that begin at zero. Scenes and holes are those of train_inpaint.py.

The run folder's model/ is opened by diffusers' ControlNetModel.from_pretrained, and by make_gif.py --engine controlnet
--controlnet.
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run
from common.training.settings import FREE, settle
from inpaint_gif.training.flags import HOLE_PRESETS, HoleFlags


@dataclass(frozen=True)
class Args(HoleFlags):
    caption_dropout: float = 0.5
    """Share of captions replaced by the empty one: half, as in the paper,
    so that the ControlNet learns to use the picture alone.
    """


def main(args: Args) -> None:
    from inpaint_gif.training.controlnet import train_controlnet

    train_controlnet(settle(args, HOLE_PRESETS, f"06_inpaint_gif/controlnet-{Path(args.data).stem}", (*FREE, "model")))


if __name__ == "__main__":
    run(main, Args)
