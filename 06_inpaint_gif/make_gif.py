"""Make a film from the name of a dish: draw the dish, move a camera over it,
inpaint what comes into view, render a loop.

  python 06_inpaint_gif/make_gif.py "土鸡蛋炒番茄" --camera zoom-out
  python 06_inpaint_gif/make_gif.py "葱油生菜" --camera "right:3,zoom-out" --frames 48 --fps 16 --loop seamless --out lettuce.webp
  python 06_inpaint_gif/make_gif.py "番茄炒蛋" --camera ring --engine repaint
  python 06_inpaint_gif/make_gif.py "米饭" --dish stable-diffusion-v1-5/stable-diffusion-v1-5 --clip ViT-B-16
  python 06_inpaint_gif/make_gif.py "我的菜" --image plate.jpg --engine reflect

A contact sheet is written beside the film. It shows the known part, the mask and the result of every keyframe.
"""

from common.cli import run
from inpaint_gif.animation.flags import FilmFlags as Args


def main(args: Args) -> None:
    from inpaint_gif.animation.render import make_film

    make_film(args)


if __name__ == "__main__":
    run(main, Args)
