"""Train a ControlNet to paint into holes: the other way, in which the model that draws stays as it is.

  python 06_inpaint_gif/train_controlnet.py                             beside chapter 4's small Stable Diffusion, learns on drawn dishes
  python 06_inpaint_gif/train_controlnet.py --data my/photos --model path/to/stable-diffusion-v1-5 --device cuda
  python 06_inpaint_gif/train_controlnet.py --resume runs/06_inpaint_gif/controlnet-dishes

A copy of the U-Net's first half sees the picture, its hole marked with -1 where colours go from 0 to 1, and says to the U-Net's second half
what is to be there (Zhang et al. 2023; chapter 5 trains one on edges). It speaks through convolutions that are zero in the beginning.
The same scenes and holes as in train_inpaint.py.

The run folder's model/ is one for diffusers' ControlNetModel.from_pretrained, and for make_gif.py --engine controlnet --controlnet.
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run
from common.training.settings import FREE, settle
from inpaint_gif.training.flags import PRESETS, HoleFlags


@dataclass(frozen=True)
class Args(HoleFlags):
    caption_dropout: float = 0.5
    """Share of captions replaced by the empty one: half, as in the paper, so that the picture alone must be informative."""


def main(args: Args) -> None:
    from inpaint_gif.training.controlnet import fit_controlnet  # brings torch along, which --help should not wait for

    fit_controlnet(settle(args, PRESETS, f"06_inpaint_gif/controlnet-{Path(args.data).stem}", free=(*FREE, "model")))


if __name__ == "__main__":
    run(main, Args)
