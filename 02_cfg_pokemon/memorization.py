"""Does a model invent pictures, or repeat those it was trained on? The nearest training picture of each sample.

  python 02_cfg_pokemon/memorization.py                                                      the shipped model, captions of the test split
  python 02_cfg_pokemon/memorization.py --model runs/02_cfg_pokemon/hundred --n-train 100    a model of the first 100 creatures
  python 02_cfg_pokemon/memorization.py --n-train 100 --prompts train                        does a training caption bring its picture back?

Two distances. `pixels`: root mean square difference, 0 to 1, after a light blur, so that a shift of half a pixel does not count.
`features`: in what common/evaluate/creature_classifier.py's judge understands of a picture, where creatures of like attributes lie together.
Neither number says anything alone: of ten thousand creatures one is always rather near. So the same is asked of real pictures
that the model has never seen, the test split, and each distance is answered by two shares:

    too near      share of samples nearer to a training picture than 1 % of the test pictures are; 1 % is innocent
    nearer than   share of samples whose nearest training picture is nearer than the nearest of as many creatures that the model
                  was NOT trained on; 50 % is innocent. This question forgives what the first does not: smooth, typical pictures
                  are nearer to everything, seen or unseen. (Means of eight like creatures: 11 % are too near, 47 % nearer than
                  unseen. Blends of a training picture and a new one, half and half: 13 % and 83 %)

A model that copies gives 100 % twice. The intervals suppose that the samples differ: where all are alike, it is one sample's luck.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.cli import pick_device, run, writable_folder
from common.errors import UserError

if TYPE_CHECKING:  # torch waits until it is needed
    from collections.abc import Callable

    from torch import Tensor

    from common.evaluate.creature_classifier import CreatureClassifier

PRETRAINED = Path(__file__).parent / "pretrained"
UNSEEN = 2       # seed of creatures that nobody was trained on: models are on seed 0, the judge is on seed 1
TEST = 1000      # test pictures, for the percentile
TOO_NEAR = 0.01  # the percentile, as a share
SHOWN = 12       # samples in the picture, those nearest to the training set first


@dataclass(frozen=True)
class Args:
    model: Path = PRETRAINED
    """A run folder of this chapter, or a folder that save_painter wrote."""
    n_train: int = 10_000
    """It was trained on the first so many creatures of the train split."""
    n: int = 200
    """How many pictures to draw."""
    prompts: Literal["test", "train", "heldout"] = "test"
    """Whose captions are drawn: of creatures it has not seen, of those it was trained on, or of held-out combinations."""
    language: Literal["en", "zh", "both"] = "both"
    w: float = 3.0
    """Guidance scale; 1 is off."""
    sampler: str = "dpmpp_2m:20"
    """dpmpp_2m:20, ddim:50, ..."""
    seed: int = 0
    """Of the noise."""
    out: Path | None = None
    """The folder that the numbers and pictures go to; by default runs/02_cfg_pokemon/memorise/<model>/<prompts>-w=<w>."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


# --------------------------------------------------------------------------------------------------------- the distances


def blurred(pixels: Tensor) -> Tensor:
    """(N, 3, S, S) uint8 -> (N, 3 S S), in units in which the distance of two rows is their root mean square difference, 0 to 1."""
    from torchvision.transforms.v2 import functional as tv

    soft = tv.gaussian_blur(pixels.float() / 255, [5, 5], [0.8, 0.8]).flatten(1)
    return soft / soft.shape[1] ** 0.5


def views(judge: CreatureClassifier) -> dict[str, Callable[[Tensor], Tensor]]:
    """The two ways to describe pictures (N, 3, S, S) uint8 by rows of numbers (N, D)."""
    from common.evaluate.creature_classifier import classify

    return {"pixels": blurred, "features": lambda pixels: classify(judge, pixels)[0]}


def nearest(some: Tensor, others: Tensor, chunk: int = 100) -> tuple[Tensor, Tensor]:
    """For each of some (N, D), how far the nearest of others (M, D) is and which one it is. Each (N,)."""
    import torch

    found = [torch.cdist(part, others).min(1) for part in some.split(chunk)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def nearer(seen: Tensor, unseen: Tensor) -> Tensor:
    """1 where the seen set is nearer than the unseen one, 0 where it is farther, 1/2 where both are as near. (N,) float64"""
    return ((unseen - seen).sign().cpu().double() + 1) / 2


def report(samples: Tensor, test: Tensor, train: Tensor, unseen: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
    """All numbers of one view; each argument is (N, D). Also the distance to and index of the nearest training picture, (N,)."""
    from common.evaluate.distances import bootstrap, one_thread

    with one_thread():
        distance, index = nearest(samples, train)
        floor, _ = nearest(test, train)
        limit = floor.quantile(TOO_NEAR)
        shares = {"too_near": (distance < limit).cpu().double(), "nearer": nearer(distance, nearest(samples, unseen)[0])}
        found = {key: bootstrap(lambda x: float(x.mean()), value, times=1000) for key, value in shares.items()}
    numbers = {"median": float(distance.median()), "median_test": float(floor.median()), "limit": float(limit)}
    for key, estimate in found.items():
        numbers |= {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": min(estimate.high, 1.0)}
    numbers["nearer_test"] = float(nearer(floor, nearest(test, unseen)[0]).mean())
    return numbers, distance, index


# ----------------------------------------------------------------------------------------------------------- the program


def show(name: str, r: dict[str, float]) -> str:
    """The lines of one view."""
    return (f"{name:10}{r['median']:>12.4f}{r['too_near']:>12.1%}  ({r['too_near_low']:.1%} to {r['too_near_high']:.1%})"
            f"{r['nearer']:>12.1%}  ({r['nearer_low']:.1%} to {r['nearer_high']:.1%})\n"
            f"{'  real':10}{r['median_test']:>12.4f}{TOO_NEAR:>12.1%}{'':18}{r['nearer_test']:>12.1%}")  # fmt: skip


def pairs(samples: Tensor, train: Tensor, distances: Tensor, path: Path) -> Path:
    """Sample | nearest training picture, the nearest pairs first, with their distance. samples, train: (n, 3, S, S) uint8."""
    import torch
    from matplotlib.figure import Figure

    from common.io.files import write_atomically

    columns = min(4, len(samples))
    rows, gap = -(-len(samples) // columns), samples.new_full((len(samples), 3, samples.shape[-1], 1), 255)
    both = torch.cat([samples, gap, train], 3)
    figure = Figure(figsize=(2.6 * columns, 1.55 * rows))
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for i, axis in enumerate(axes):
        axis.axis("off")
        if i < len(samples):
            axis.imshow(both[i].permute(1, 2, 0), interpolation="nearest")
            axis.set_title(f"sample | training, {distances[i]:.3f}", fontsize=7)
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.22 / (1.55 * rows), bottom=0.02, wspace=0.06, hspace=0.25)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
    return path


def main(args: Args) -> None:
    if args.prompts == "train" and args.n > args.n_train:
        raise UserError(f"there are only {args.n_train} training captions (--n-train); give --n {args.n_train} or fewer")

    import torch

    from cfg_pokemon.pipeline import Wish, open_painter
    from common.data.creatures.dataset import load_creatures
    from common.data.drawn import SIZES
    from common.evaluate.creature_classifier import load_creature_classifier
    from common.io.files import write_json
    from common.io.pixels import to_bytes

    painter, judge = open_painter(args.model, pick_device(args.device)), load_creature_classifier()
    size = painter.net.cfg.size
    if painter.net.cfg.in_channels != 3 or size not in SIZES:
        raise UserError(f"{args.model} draws {painter.net.cfg.in_channels} channels at {size} pixels; creatures are RGB and "
                        f"{SIZES[0]} to {SIZES[-1]} pixels a side")  # fmt: skip
    out = writable_folder(args.out or Path("runs/02_cfg_pokemon/memorise") / args.model.resolve().name / f"{args.prompts}-w={args.w:g}")
    prompts = load_creatures(args.prompts, args.n, size, language=args.language).captions
    samples = to_bytes(painter.draw(prompts, Wish(w=args.w, sampler=args.sampler, seed=args.seed)).nan_to_num(0.0))
    train, unseen = (load_creatures("train", args.n_train, size, seed).pixels for seed in (0, UNSEEN))
    test = load_creatures("test", TEST, size).pixels

    print(f"{args.n} pictures of {args.model}, w = {args.w:g}, captions of {args.prompts}; {args.n_train:,} training pictures\n")
    print(f"{'':10}{'median':>12}{'too near':>12}{'(95 %)':^18}{'nearer than unseen':>14}  (95 %)")
    numbers, found = {}, {}
    for name, view in views(judge).items():
        numbers[name], *found[name] = report(*(view(pixels) for pixels in (samples, test, train, unseen)))
        print(show(name, numbers[name]))
    print(f"\nreal: the {TEST:,} test pictures. Innocent are {TOO_NEAR:.0%} and 50 %")
    if args.prompts == "train":
        own = {name: float((index == torch.arange(args.n)).cpu().double().mean()) for name, (_, index) in found.items()}
        numbers["own_picture"] = own
        print("nearest of all is the training picture whose caption it was: " + ", ".join(f"{share:.1%} by {name}" for name, share in own.items()))
    write_json(out / "memorise.json", {key: getattr(args, key) for key in Args.__dataclass_fields__} | numbers)
    for name, (distance, index) in found.items():
        first = distance.argsort()[:SHOWN]
        print(pairs(samples[first], train[index[first]], distance[first], out / f"nearest_by_{name}.png"))
    print(out / "memorise.json")


if __name__ == "__main__":
    run(main, Args)
