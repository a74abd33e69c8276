"""Train a small latent diffusion model that draws a dish from the CLIP embedding of its name.

  python 06_inpaint_gif/train_text2dish.py                             the embedded dishes, the shipped CLIP, beginning with chapter 4's U-Net
  python 06_inpaint_gif/train_text2dish.py --clip runs/06_inpaint_gif/clip-dishes      ... with a CLIP of your own
  python 06_inpaint_gif/train_text2dish.py --data my/photos --clip ViT-B-16            photographs of your own
  python 06_inpaint_gif/train_text2dish.py --scratch --widths 32 64                    begin with an untrained U-Net
  python 06_inpaint_gif/train_text2dish.py --model RUN --widths 32 32 64 --size 128    larger images: the U-Net grows
  python 06_inpaint_gif/train_text2dish.py --resume runs/06_inpaint_gif/text2dish-dishes

The CLIP is frozen: each caption is encoded once, before the training begins. The run folder's model/ holds the U-Net,
its autoencoder and the CLIP; make_gif.py --dish opens it.
"""

from pathlib import Path

from common.cli import run
from common.training.settings import settle
from inpaint_gif.training.flags import TEXT2DISH_PRESETS
from inpaint_gif.training.flags import Text2DishFlags as Args


def main(args: Args) -> None:
    from inpaint_gif.training.text2dish import train_text2dish

    train_text2dish(settle(args, TEXT2DISH_PRESETS, f"06_inpaint_gif/text2dish-{Path(args.data).stem}"))


if __name__ == "__main__":
    run(main, Args)
