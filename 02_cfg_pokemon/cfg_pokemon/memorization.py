"""What memorization.py does: distances from samples to training images,
and the shares that say whether they are copies.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from cfg_pokemon.flags import MemorizationFlags
from common import viz
from common.cli import pick_device, writable_folder
from common.data.creatures.dataset import load_creatures
from common.evaluate.creature_classifier import CreatureClassifier, classify, load_creature_classifier
from common.evaluate.distances import bootstrap, one_thread, share
from common.evaluate.prompt_accuracy import check_creature_size
from common.io.files import from_here
from common.io.pixels import to_bytes
from common.io.tables import write_csv
from common.models.pipeline import SamplingConfig
from common.models.text_to_image_folder import open_pixel_pipeline

UNSEEN = 2  # seed of creatures that nothing was trained on: models are trained on seed 0, the classifier on seed 1
TEST = 1000  # test images, for the percentile
TOO_NEAR = 0.01  # the percentile, as a share
SETTINGS = ("model", "n_train", "n", "prompts", "language", "w", "sampler", "seed")  # flags that the results repeat
SHOWN = 12  # samples in the figure, those nearest to the training set first

# ------------------------------------------------------------------------------------------------------- the distances


def blurred(pixels: Tensor) -> Tensor:
    """(N, 3, S, S) uint8 -> (N, 3 S S), in units in which the distance of two rows is their root mean
    square difference, 0 to 1
    """
    soft = tv.gaussian_blur(pixels.float() / 255, [5, 5], [0.8, 0.8]).flatten(1)
    return soft / soft.shape[1] ** 0.5


def views(classifier: CreatureClassifier) -> dict[str, Callable[[Tensor], Tensor]]:
    """The two ways to describe images (N, 3, S, S) uint8 by rows of numbers (N, D)."""
    return {"pixels": blurred, "features": lambda pixels: classify(classifier, pixels)[0]}


def nearest(some: Tensor, others: Tensor, chunk: int = 100) -> tuple[Tensor, Tensor]:
    """For each of some (N, D), the distance to the nearest of others (M, D) and its index. Each (N,)"""
    found = [torch.cdist(part, others).min(1) for part in some.split(chunk)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def nearer(seen: Tensor, unseen: Tensor) -> Tensor:
    """1 where the seen set is nearer than the unseen one, 0 where it is farther,
    1/2 where both are equally near. (N,) float64
    """
    return ((unseen - seen).sign().cpu().double() + 1) / 2


def compare(samples: Tensor, test: Tensor, train: Tensor, unseen: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
    """All numbers of one view; each argument is (N, D).
    Also the distance to and index of the nearest training image, (N,).
    """
    with one_thread():
        distance, index = nearest(samples, train)
        test_distance, _ = nearest(test, train)
        limit = test_distance.quantile(TOO_NEAR)
        closer = nearer(distance, nearest(samples, unseen)[0])  # with halves, so not a share of hits
        found = {
            "too_near": share(distance < limit),
            "nearer": bootstrap(lambda x: float(x.mean()), closer, times=1000),
        }
    numbers = {"median": float(distance.median()), "median_test": float(test_distance.median()), "limit": float(limit)}
    for key, estimate in found.items():
        numbers |= {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": min(estimate.high, 1.0)}
    numbers["nearer_test"] = float(nearer(test_distance, nearest(test, unseen)[0]).mean())
    return numbers, distance, index


def compare_views(
    classifier: CreatureClassifier, samples: Tensor, train: Tensor, n_test: int
) -> dict[str, tuple[dict[str, float], Tensor, Tensor]]:
    """compare() in each of the views.
    samples, train: (N, 3, S, S) uint8, train being the first creatures of the train split.
    """
    size = samples.shape[-1]
    unseen = load_creatures("train", len(train), size, UNSEEN).pixels
    sets = (samples, load_creatures("test", n_test, size).pixels, train, unseen)
    return {name: compare(*map(view, sets)) for name, view in views(classifier).items()}


# ---------------------------------------------------------------------------------------------------------- the report


def report(flags: MemorizationFlags) -> None:
    """Draw images, compare them with the training set, and print and save the numbers and the nearest pairs."""
    pipeline = open_pixel_pipeline(flags.model, pick_device(flags.device))
    check_creature_size(flags.model, pipeline)
    n, split, size = flags.n, flags.prompts, pipeline.size
    folder = Path("runs/02_cfg_pokemon/memorization") / flags.model.resolve().name / f"{split}-w={flags.w:g}"
    out = writable_folder(flags.out or folder)
    captions = load_creatures(split, n, size, language=flags.language).captions
    samples = to_bytes(pipeline.txt2img(captions, SamplingConfig(flags.w, sampler=flags.sampler, seed=flags.seed)))
    train = load_creatures("train", flags.n_train, size).pixels

    print(f"{n} pictures of {flags.model}, w = {flags.w:g}, captions of {split}; {len(train):,} training pictures\n")
    print(f"{'':10}{'median':>12}{'too near':>12}{'(95 %)':^18}{'nearer than unseen':>14}  (95 %)")
    found = compare_views(load_creature_classifier(), samples, train, TEST)
    for name, (numbers, _, _) in found.items():
        print(table_lines(name, numbers))
    print(f"\nreal: the {TEST:,} test pictures. Without memorization the shares are {TOO_NEAR:.0%} and 50 %")
    settings = {name: getattr(flags, name) for name in SETTINGS} | {"model": from_here(flags.model)}
    rows = [{"distance": name} | settings | numbers for name, (numbers, _, _) in found.items()]
    if split == "train":
        for row, (_, _, index) in zip(rows, found.values(), strict=True):
            row["own_picture"] = float((index == torch.arange(n)).cpu().double().mean())
        shares = ", ".join(f"{row['own_picture']:.1%} by {row['distance']}" for row in rows)
        print(f"the nearest training picture is that of the same caption: {shares}")
    write_csv(out / "memorization.csv", rows)
    for name, (_, distance, index) in found.items():
        first = distance.argsort()[:SHOWN]
        print(plot_pairs(samples[first], train[index[first]], distance[first], out / f"nearest_by_{name}.png"))
    print(out / "memorization.csv")


def table_lines(name: str, r: dict[str, float]) -> str:
    """The two lines of one view: the samples, and real images."""
    return (
        f"{name:10}{r['median']:>12.4f}{r['too_near']:>12.1%}  ({r['too_near_low']:.1%} to {r['too_near_high']:.1%})"
        f"{r['nearer']:>12.1%}  ({r['nearer_low']:.1%} to {r['nearer_high']:.1%})\n"
        f"{'  real':10}{r['median_test']:>12.4f}{TOO_NEAR:>12.1%}{'':18}{r['nearer_test']:>12.1%}"
    )


def plot_pairs(samples: Tensor, train: Tensor, distances: Tensor, path: Path) -> Path:
    """Each sample beside its nearest training image, with their distance.
    samples, train: (n, 3, S, S) uint8; distances: (n,)
    """
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
    return viz.save_figure(figure, path)
