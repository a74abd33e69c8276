"""Measures whether a model repeats its training images: the nearest training image of each sample.

  python 02_cfg_pokemon/memorization.py                                                      the shipped model, captions of the test split
  python 02_cfg_pokemon/memorization.py --model runs/02_cfg_pokemon/hundred --n-train 100    a model of the first 100 creatures
  python 02_cfg_pokemon/memorization.py --n-train 100 --prompts train                        does a training caption bring its image back?

Two distances. `pixels`: root mean square difference, 0 to 1, after a light blur, so that a shift of half a pixel does
not count. `features`: between features of the classifier in common/evaluate/creature_classifier.py, where creatures of
like attributes are close. A distance alone says nothing: among ten thousand creatures, one is always rather near. So
the same is measured for real images that the model has never seen, the test split, and two shares are reported:

    too near      share of samples nearer to a training image than 1 % of the test images are; without memorization it
                  is 1 %
    nearer than   share of samples whose nearest training image is nearer than the nearest of as many creatures that
                  the model was NOT trained on; without memorization it is 50 %. This corrects for what the first share
                  does not: smooth, typical images are nearer to everything, seen or unseen. (Means of eight like
                  creatures: 11 % are too near, 47 % nearer than unseen. Blends of a training image and a new one, half
                  and half: 13 % and 83 %)

A model that copies gives 100 % twice. The intervals assume different samples:
if all are alike, they count as one sample.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import run
from common.errors import UserError

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Args:
    model: Path = PRETRAINED
    """Run folder of this chapter, or folder of a text-to-image model of pixels."""
    n_train: int = 10_000
    """Number of creatures that it was trained on: the first ones of the train split."""
    n: int = 200
    """Number of images to draw."""
    prompts: Literal["test", "train", "heldout"] = "test"
    """Captions to draw: of creatures that it has not seen, of those that it was trained on,
    or of held-out combinations.
    """
    language: Literal["en", "zh", "both"] = "both"
    """Language of the captions; both is half and half."""
    w: float = 3.0
    """Guidance scale; 1 is off."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and number of steps: dpmpp_2m:20, ddim:50, ..."""
    seed: int = 0
    """Random seed of the initial noise."""
    out: Path | None = None
    """Folder of the numbers and figures; by default runs/02_cfg_pokemon/memorization/<model>/<prompts>-w=<w>."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    if args.prompts == "train" and args.n > args.n_train:
        raise UserError(
            f"there are only {args.n_train} training captions (--n-train); give --n {args.n_train} or fewer"
        )
    from cfg_pokemon.memorization import SamplingConfig, report

    config = SamplingConfig(args.w, sampler=args.sampler, seed=args.seed)
    report(args.model, args.n_train, args.n, args.prompts, args.language, config, args.out, args.device)


if __name__ == "__main__":
    run(main, Args)
