"""A comparison of interpolation methods: a picture, an animation, and how evenly each method changes the image."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from common import viz
from common.cli import pick_device
from common.io.tables import print_table, write_csv
from ddim_schedules.image_selection import check_equal_sizes, load_image, open_model
from ddim_schedules.interpolation import frame_changes, interpolate, peak_to_mean
from ddim_schedules.plots import half_interval


def compare_methods(
    model_dir: Path,
    names: tuple[str, str],
    methods: Sequence[str],
    out: Path,
    *,
    frames: int,
    steps: int,
    strength: float,
    seed: int,
    pairs: int,
    data: str,
    data_dir: Path,
    device: str,
) -> None:
    """Interpolate between two images with each method, and write interpolation.csv, strip.png, walk.gif and change.png to
    `out`.

    names   the two images, as image_selection.load_image takes them
    frames  images of an interpolation, both ends included
    pairs   pairs of images to measure: the named one, then test images 2 and 3, 4 and 5, ..., each with its own seed
    """
    check_equal_sizes(names)
    device = pick_device(device)
    model = open_model(model_dir, device)
    levels, weights = model.schedule.noise_levels(steps), torch.linspace(0, 1, frames).tolist()

    def load_pair(names: tuple[str, str]) -> list[Tensor]:
        return [load_image(name, model, data, data_dir).to(device) for name in names]

    def between(pair: list[Tensor], seed: int) -> dict[str, Tensor]:
        common = (model.denoise, model.denoise_unclipped, levels, *pair, weights, strength, seed)
        return {method: interpolate(method, *common).cpu() for method in methods}

    ends = load_pair(names)
    images = between(ends, seed)
    changes = {method: [frame_changes(row)] for method, row in images.items()}
    for k in range(1, pairs):
        for method, row in between(load_pair((str(2 * k), str(2 * k + 1))), seed + k).items():
            changes[method].append(frame_changes(row))
    measured = [evenness(method, torch.stack(each)) for method, each in changes.items()]
    print_evenness(measured)
    print(write_csv(out / "interpolation.csv", measured))
    a, b = (end.cpu() for end in ends)
    strip = torch.cat([torch.cat([a, row, b]) for row in images.values()])
    across = ["a", *(f"{weight:.2f}" for weight in weights), "b"]
    scale = max(1, round(60 / strip.shape[-1]))
    print(viz.save_picture(viz.labelled_grid(strip, frames + 2, across, list(images), scale), out / "strip.png"))
    forward = [torch.stack([row[i] for row in images.values()]) for i in range(frames)]
    there_and_back, shape = forward + forward[-2:0:-1], {"columns": len(images), "height": 120}
    print(viz.save_gif(there_and_back, out / "walk.gif", hold=0.3, evenly=False, **shape))
    print(plot_changes({method: each[0] for method, each in changes.items()}, out / "change.png"))


class Evenness(NamedTuple):
    """How evenly a method changes the image: means over the pairs, with 95 % intervals by Student's distribution."""

    method: str
    pairs: int
    change: float  # of neighbouring frames, mean
    largest: float  # change
    ratio: float  # largest / mean: 1 is even, the number of changes is a single jump
    ratio_low: float
    ratio_high: float
    place: float  # of the largest change, as a share of the way
    place_low: float
    place_high: float


def evenness(method: str, change: Tensor) -> Evenness:
    """change: (pairs, frames - 1). The interval of a single pair is NaN."""
    means = []
    for values in (peak_to_mean(change), (change.argmax(1) + 0.5) / change.shape[1]):
        mean, half = float(values.mean()), half_interval(values.numpy()) if len(values) > 1 else float("nan")
        means += [mean, mean - half, mean + half]
    return Evenness(method, len(change), float(change.mean()), float(change.amax(1).mean()), *means)


def print_evenness(measured: Sequence[Evenness]) -> None:
    """One line for each method."""
    pairs = measured[0].pairs
    rows = []
    for each in measured:
        halves = (
            f" ± {high - mean:.2f}" if pairs > 1 else ""
            for mean, high in ((each.ratio, each.ratio_high), (each.place, each.place_high))
        )
        ratio_half, place_half = halves
        row = {"method": each.method, "mean change": f"{each.change:.2f}", "largest": f"{each.largest:.2f}"}
        row |= {"largest / mean": f"{each.ratio:.2f}{ratio_half}", "where on the way": f"{each.place:.2f}{place_half}"}
        rows.append(row)
    print_table(rows, gap=4)
    if pairs > 1:
        print(f"mean ± half of its 95 % interval over {pairs} pairs")


def plot_changes(changes: dict[str, Tensor], path: Path) -> Path:
    """The change between neighbouring frames, one curve for each method."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axis = figure.subplots()
    for method, change in changes.items():
        axis.plot(range(1, len(change) + 1), change, marker="o", markersize=3, label=method)
    axis.set(xlabel="from frame k to k + 1", ylabel="change (distance of features)")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.spines[["top", "right"]].set_visible(False)
    return viz.save_figure(figure, path)
