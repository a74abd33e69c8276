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

from cfg_pokemon.flags import MemorizationFlags as Args
from common.cli import run
from common.errors import UserError


def main(args: Args) -> None:
    if args.prompts == "train" and args.n > args.n_train:
        raise UserError(
            f"there are only {args.n_train} training captions (--n-train); give --n {args.n_train} or fewer"
        )
    from cfg_pokemon.memorization import report

    report(args)


if __name__ == "__main__":
    run(main, Args)
