"""Make a film from the name of a dish: draw the dish, move a camera over it,
inpaint what comes into view, render a loop.

  python 06_inpaint_gif/make_gif.py "土鸡蛋炒番茄" --camera zoom-out
  python 06_inpaint_gif/make_gif.py "葱油生菜" --camera "right:3,zoom-out" --frames 48 --fps 16 --loop seamless --out lettuce.webp
  python 06_inpaint_gif/make_gif.py "番茄炒蛋" --camera ring --engine repaint
  python 06_inpaint_gif/make_gif.py "米饭" --camera up-left --model path/to/stable-diffusion-inpainting --size 512
  python 06_inpaint_gif/make_gif.py "我的菜" --image plate.jpg --size 128 --engine reflect

A contact sheet is written beside the film. It shows the known part, the mask and the result of every keyframe.
"""

from common.cli import run
from inpaint_gif.animation.flags import FilmFlags as Args


def main(args: Args) -> None:
    from inpaint_gif.animation.render import make_film

    make_film(args)


if __name__ == "__main__":
    run(main, Args)
