"""Train a U-Net to paint into holes, beginning with one that draws whole pictures.

  python 06_inpaint_gif/train_inpaint.py                                begins with chapter 4's small Stable Diffusion, learns on drawn dishes
  python 06_inpaint_gif/train_inpaint.py --data my/photos --model path/to/stable-diffusion-v1-5 --device cuda
  python 06_inpaint_gif/train_inpaint.py --resume runs/06_inpaint_gif/inpaint-dishes

The first layer is widened from 4 channels to 9: besides the noisy latents the U-Net is shown the mask and the latents of the picture
with its hole (Rombach et al. 2022). The new weights begin at zero, so that at the first step it is the network it was. It sees dishes
through a camera that looks anywhere (scenes.py), with holes as cameras leave them and others (hole_masks.py).

The run folder's model/ is one for diffusers' StableDiffusionInpaintPipeline.from_pretrained, and for make_gif.py --engine inpaint --model.
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run
from common.training.settings import settle
from inpaint_gif.training.flags import PRESETS, HoleFlags


@dataclass(frozen=True)
class Args(HoleFlags):
    """All flags are those of HoleFlags."""


def main(args: Args) -> None:
    from inpaint_gif.training.inpaint import fit_inpaint  # brings torch along, which --help should not wait for

    fit_inpaint(settle(args, PRESETS, f"06_inpaint_gif/inpaint-{Path(args.data).stem}"))


if __name__ == "__main__":
    run(main, Args)
