"""Measures whether images show what their captions say: a text-to-image model of creatures at several guidance scales.

  python 02_cfg_pokemon/evaluate.py                                               the shipped model
  python 02_cfg_pokemon/evaluate.py --model runs/02_cfg_pokemon/creatures --scales 0 1 1.5 2 3 5 8 --n 200
  python 02_cfg_pokemon/evaluate.py --rescale 0.7                                 what cures dark and burnt pictures?
  python 02_cfg_pokemon/evaluate.py --clip dynamic
  python 02_cfg_pokemon/evaluate.py --interval 0.3 5 --per-attribute

The columns accuracy, all right and pair, and their bounds, are explained in common/evaluate/prompt_accuracy.py. A
prompt starts from the same noise at every scale. Beside them stand:

    brightness   mean over all pixels, 0 to 1
    saturation   difference between the largest and the smallest colour value of a pixel, mean over all pixels, 0 to 1
    diversity    standard deviation between four images of the same prompt, 0 to 1; real: between creatures of that
                 description

Each has half of its 95 % interval beside it, over images or prompts (bootstrap). Differences between scales are more
certain than these intervals, because the prompts are the same; so is the comparison with real images of these prompts.

Drawn pictures are kept: an evaluation that was stopped continues.
"""

from cfg_pokemon.flags import PixelEvaluationFlags as Args
from common.cli import run


def main(args: Args) -> None:
    from cfg_pokemon.evaluation import evaluate_model

    evaluate_model(args)


if __name__ == "__main__":
    run(main, Args)
