"""Tables and pictures of a study: curves or dots with 95 % intervals, and labelled grids of samples."""

import itertools
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from PIL import Image, ImageDraw
from scipy.special import stdtrit
from torch import Tensor

from common import viz
from common.io.pixels import to_float
from ddim_schedules.experiment import Experiment

SEEDS = ("seed", "noise_seed")
NORMAL = 1.96  # standard deviations in half a 95 % interval
CELL = 112  # pixels of a cell of the grid of samples, about
X_AXES = ("steps", "minutes", "stop", "train_steps")  # numbers that are best drawn as an x axis
Row = dict[str, Any]  # settings and measures of one experiment, as Runner.result returns them
Value = TypeVar("Value", bound=Hashable)


def varied(axes: dict[str, list], experiments: list[Experiment]) -> list[str]:
    """The settings that differ between experiments, without seeds; one of X_AXES is first, if there is one."""
    settings = [experiment.settings() for experiment in experiments]
    keys = [key for key in settings[0] if key not in SEEDS and len({each[key] for each in settings}) > 1]
    keys.sort(key=lambda key: (key not in X_AXES, list(axes).index(key) if key in axes else len(axes)))
    return keys or [next((key for key in axes if key not in SEEDS), "sampler")]


def summary(rows: list[Row], measure: str) -> tuple[float, float, int]:
    """(mean, error, number of values). The error is half a 95 % interval: of the mean over seeds by Student's
    distribution, or from the evaluator's bootstrap where there is one seed.
    """
    rows = [row for row in rows if not row.get("diverged")]
    values = np.array([row[measure] for row in rows], dtype=float)
    if len(values) == 0:
        return float("nan"), float("nan"), 0
    if len(values) == 1:
        return float(values[0]), NORMAL * float(rows[0].get(f"{measure}_sd") or 0.0), 1
    return float(values.mean()), half_interval(values), len(values)


def half_interval(values: np.ndarray) -> float:
    """Half of the 95 % interval of the mean of two numbers or more, by Student's distribution. (N,)"""
    return float(stdtrit(len(values) - 1, 0.975)) * float(values.std(ddof=1)) / len(values) ** 0.5


def label_of(row: Row, keys: list[str]) -> str:
    """The settings of a row that distinguish it in its study: "ddim eta=0.5", "loss=l1"."""
    parts = []
    for key in keys:
        value = row[key]
        if value is None or value == "":  # this sampler has no eta or variance
            continue
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, float):
            value = f"{value:g}"
        parts.append(
            str(value) if key in ("sampler", "schedule", "prediction", "optimizer", "network") else f"{key}={value}"
        )
    return " ".join(parts) or "all"


def column_label(key: str, value: Any, alone: bool) -> str:
    """The heading of the column for one value of a setting. alone: no other setting varies."""
    return label_of({key: value}, [key]) if alone else f"{key} {value}"


def unique(values: Iterable[Value]) -> list[Value]:
    """Each value once, in the order of its first appearance."""
    return list(dict.fromkeys(values))


def ordered(values: Iterable[Any]) -> list[Any]:
    """Each value once: numbers by size, names in the order of their first appearance."""
    each = unique(values)
    return sorted(each) if all(isinstance(value, (int, float)) for value in each) else each


def matching(rows: list[Row], key: str, value: Any, rest: list[str], label: str) -> list[Row]:
    """The rows with this value of a setting and this label of the other settings, one for each seed."""
    return [row for row in rows if row[key] == value and label_of(row, rest) == label]


def table(rows: list[Row], keys: list[str], measure: str) -> list[list[str]]:
    """Lines of text cells, a heading first: one line for each combination of keys[1:], one column for each keys[0]."""
    x, *rest = keys
    values = ordered(row[x] for row in rows)
    lines = [[" / ".join(rest) or x, *(column_label(x, value, alone=not rest) for value in values)]]
    for label in unique(label_of(row, rest) for row in rows):
        cells = []
        for value in values:
            found = matching(rows, x, value, rest, label)
            mean, error, n = summary(found, measure)
            # a grid need not be complete
            cells.append(f"{mean:.3g} ± {error:.2g}" if n else "diverged" if found else "")
        lines.append([label if rest else measure, *cells])
    return lines


def summaries(rows: list[Row], keys: list[str], measure: str) -> list[Row]:
    """A row for each combination of settings, with the mean of its seeds and the 95 % interval; docs/results.toml
    makes tables of such files. The floor is in the column that ends in `_real`, where the measure has one.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    made = []
    for group in groups.values():
        mean, error, seeds = summary(group, measure)
        settings = {"label": label_of(group[0], keys[1:])} | {key: group[0][key] for key in keys}
        counts = {"evaluations": group[0].get("evaluations"), "images": group[0]["n"], "seeds": seeds}
        found = {measure: mean, f"{measure}_low": mean - error, f"{measure}_high": mean + error}
        ends = ("real", "real_sd")
        found |= {name: group[0][name] for end in ends if (name := f"{measure}_{end}") in group[0]}
        made.append(settings | counts | found)
    return made


def plot(rows: list[Row], keys: list[str], measure: str, path: Path) -> Path:
    """Curves over a number or dots over names, with 95 % intervals and a line for real images.

    Steps are drawn as network evaluations, because some samplers evaluate the network twice in a step.
    """
    x, *rest = keys
    values, labels = ordered(row[x] for row in rows), unique(label_of(row, rest) for row in rows)
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    curves = {}
    for label in labels:
        points = []
        for i, value in enumerate(values):
            found = matching(rows, x, value, rest, label)
            place = value if numbers else i
            if x == "steps" and found:
                place = found[0]["evaluations"]
            points.append((place, *summary(found, measure)[:2]))
        curves[label] = np.array(points, dtype=float)  # (values, 3): place, mean, error; NaN where there is no row
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axis = figure.subplots()
    if numbers:
        draw_curves(axis, curves)
    else:
        draw_dots(axis, [label_of({x: value}, [x]) for value in values], curves)
    real = np.array([row[f"{measure}_real"] for row in rows if row.get(f"{measure}_real") is not None], dtype=float)
    if len(real):
        axis.axhline(real.mean(), color="0.4", linewidth=1, linestyle="--", label="real images")
    if measure == "frechet":
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(LogFormatter())  # 20 rather than 2 x 10^1
        axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    if len(labels) > 1 or len(real):
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    seeds = len(unique(tuple(row[key] for key in SEEDS) for row in rows))
    averaged = any(summary([row for row in rows if row[x] == value], measure)[2] > 1 for value in values)
    error = f"over {seeds} seeds" if seeds > 1 and averaged else "by bootstrap over images"
    axis.set_title(f"{rows[0]['n']} images a point; bars: 95 % intervals {error}", fontsize=9)
    axis.set(
        xlabel="network evaluations" if x == "steps" else x.replace("_", " "),
        ylabel="Fréchet distance" if measure == "frechet" else measure,
    )
    axis.spines[["top", "right"]].set_visible(False)
    return viz.save_figure(figure, path)


def draw_curves(axis: Axes, curves: dict[str, np.ndarray]) -> None:
    """One curve with error bars for each label, over a logarithmic x axis. curves: (P, 3) place, mean, error"""
    for k, (label, points) in enumerate(curves.items()):
        shift = 1 + 0.012 * (k - len(curves) / 2)  # so that error bars do not hide each other
        style = {"marker": "o", "markersize": 3.5, "capsize": 2, "linewidth": 1.2}
        axis.errorbar(points[:, 0] * shift, points[:, 1], points[:, 2], label=label, **style)
    places = sorted({place for points in curves.values() for place in points[:, 0]})
    apart = [
        a for a, b in zip(places, [*places[1:], float("inf")], strict=True) if b > 1.15 * a
    ]  # labels do not touch
    axis.set(xscale="log", xticks=apart, xticklabels=[f"{place:g}" for place in apart])
    axis.minorticks_off()


def draw_dots(axis: Axes, names: list[str], curves: dict[str, np.ndarray]) -> None:
    """Dots with error bars, grouped by name; a group has one dot for each label.

    (The length of a bar would mean nothing on a logarithmic axis.)
    """
    for k, (label, points) in enumerate(curves.items()):
        offset = (k - (len(curves) - 1) / 2) * 0.5 / len(curves)
        axis.errorbar(points[:, 0] + offset, points[:, 1], points[:, 2], fmt="o", capsize=3, label=label)
    axis.set(xticks=range(len(names)), xticklabels=names, xlim=(-0.5, len(names) - 0.5))


def sample_grid(
    experiments: list[Experiment],
    rows: list[Row],
    keys: list[str],
    images_of: Callable[[Experiment], Tensor | None],
    path: Path,
    count: int = 4,
) -> Path:
    """The first images of every combination (first seed), in a labelled grid.

    rows       the results of the experiments, in the same order
    images_of  experiment -> (N, C, S, S), or None if its training diverged
    """
    x, *rest = keys
    values, labels = ordered(row[x] for row in rows), unique(label_of(row, rest) for row in rows)
    first: dict[tuple[str, Any], Experiment] = {}
    for experiment, row in zip(experiments, rows, strict=True):
        first.setdefault((label_of(row, rest), row[x]), experiment)
    drawn = {place: images_of(experiment) for place, experiment in first.items()}
    size = max((images.shape[-1] for images in drawn.values() if images is not None), default=28)
    cells = []
    for place in itertools.product(labels, values):
        cell = Image.new("RGB", (2 * size + 3,) * 2, "white")  # stays empty where a grid is not complete
        if (images := drawn.get(place)) is not None:
            cell.paste(viz.grid(images[:count], columns=2, gap=1))
        elif place in drawn:
            ImageDraw.Draw(cell).text((size + 1, size + 1), "diverged", "black", anchor="mm")
        cells.append(torch.from_numpy(np.array(cell)).permute(2, 0, 1))
    across = [column_label(x, value, alone=not rest) for value in values]
    scale = max(1, round(CELL / (2 * size)))
    picture = viz.labelled_grid(to_float(torch.stack(cells)), len(values), across, labels if rest else (), scale)
    return viz.save_picture(picture, path)
