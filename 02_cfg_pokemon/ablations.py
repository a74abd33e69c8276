"""Answers two questions that need models which were trained differently from the shipped one.

  python 02_cfg_pokemon/ablations.py brightness     why are guided images darker, or more strongly coloured?   (claim 8)
  python 02_cfg_pokemon/ablations.py size           what do 100, 800 and 10,000 training images give?          (claim 9)
  python 02_cfg_pokemon/ablations.py epochs         are 300 epochs as good as 2,000?                           (claim 9)

Each study trains small networks of 16 x 16 pixels that differ in one setting, as train.py does, and measures all of
them in the same way, as evaluate.py and memorization.py do.
Trained networks and drawn images are kept: a study that was stopped continues.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from common.cli import run


@dataclass(frozen=True)
class Args:
    study: Positional[Literal["brightness", "size", "epochs"]]
    """Name of the study."""
    steps: int = 3000
    """Training steps of each network, 16 images each.
    (Not in the study of epochs, where they follow from the number of images.)
    """
    n: int = 200
    """Number of images on which each network is measured, at each guidance scale."""
    seeds: tuple[int, ...] = (0,)
    """Random seeds of the trainings; each repeats the whole study, and the table has all of them."""
    out: Path = Path("runs/02_cfg_pokemon/studies")
    """Folder of networks, images and tables."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    from cfg_pokemon.ablations import AblationStudy, run_study

    run_study(AblationStudy(args.study, args.steps, args.n, args.out, args.device), args.seeds)


if __name__ == "__main__":
    run(main, Args)
