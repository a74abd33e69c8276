"""Draw a dish with control: other prompts in parts of the picture,
and prompts and guidance that change from step to step.

  python 06_inpaint_gif/generate.py "番茄炒蛋" --region "right:葱油生菜"                   two dishes on one plate
  python 06_inpaint_gif/generate.py "番茄炒蛋" --region "0.3,0.3,0.7,0.7:米饭" --guidance "8>2"
  python 06_inpaint_gif/generate.py "米饭" --then "0.2:番茄炒蛋"                       the table of one, the dish of another
  python 06_inpaint_gif/generate.py "a bowl of rice" --model 04_latent_sd/pretrained --sweep-then "a red fire creature"

Writes a row of pictures without control, and below it pictures from the same noise with control. --keep NAME.png keeps
the first picture of the lower row; make_gif.py --image makes a film of it.
"""

from common.cli import run
from inpaint_gif.inpainting.flags import GenerationFlags as Args


def main(args: Args) -> None:
    from inpaint_gif.inpainting.controlled_generation import generate

    generate(args)


if __name__ == "__main__":
    run(main, Args)
