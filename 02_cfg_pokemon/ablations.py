"""Answers two questions that need models which were trained differently from the shipped one.

  python 02_cfg_pokemon/ablations.py brightness     why are guided images darker, or more strongly coloured?
  python 02_cfg_pokemon/ablations.py size           what do 100, 800 and 10,000 training images give?
  python 02_cfg_pokemon/ablations.py epochs         are 300 epochs as good as 2,000?

Each study trains small networks of 16 x 16 pixels that differ in one setting, as train.py does, and measures all of
them in the same way, as evaluate.py and memorization.py do.
Trained networks and drawn images are kept: a study that was stopped continues.
"""

from cfg_pokemon.flags import AblationFlags as Args
from common.cli import run


def main(args: Args) -> None:
    from cfg_pokemon.ablations import run_study

    run_study(args)


if __name__ == "__main__":
    run(main, Args)
