"""Train an inpainting U-Net, starting from a text-to-image model.

  python 06_inpaint_gif/train_inpaint.py                                begins with chapter 4's small Stable Diffusion, learns on drawn dishes
  python 06_inpaint_gif/train_inpaint.py --data my/photos --model path/to/stable-diffusion-v1-5 --device cuda
  python 06_inpaint_gif/train_inpaint.py --resume runs/06_inpaint_gif/inpaint-dishes

The first layer is widened from 4 channels to 9: beside the noisy latents the U-Net receives the mask and the latents
of the picture with its hole (Rombach et al. 2022). The new weights are zero, so that the network is unchanged at the
first step. It is trained on random windows onto dishes on a large table (scenes.py), with the holes of camera moves
and others (hole_masks.py).

The run folder's model/ is opened by diffusers' StableDiffusionInpaintPipeline.from_pretrained, and by make_gif.py
--engine inpaint --model.
"""

from pathlib import Path

from common.cli import run
from common.training.settings import settle
from inpaint_gif.training.flags import HOLE_PRESETS
from inpaint_gif.training.flags import HoleFlags as Args


def main(args: Args) -> None:
    from inpaint_gif.training.inpaint import train_inpaint

    train_inpaint(settle(args, HOLE_PRESETS, f"06_inpaint_gif/inpaint-{Path(args.data).stem}"))


if __name__ == "__main__":
    run(main, Args)
