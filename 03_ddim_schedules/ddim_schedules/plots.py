"""Pictures of a study: curves or bars with their errors, and grids of samples whose rows and columns say what they are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.io.files import write_atomically
from ddim_schedules.experiment import Cell

SEEDS = ("seed", "noise_seed")
GOODNESS = ("frechet", "kid")  # the smaller the better, down to the floor
Row = dict[str, object]


def varied(axes: dict[str, list], cells: list[Cell]) -> list[str]:
    """The keys that really differ between cells, seeds left out: steps first where they vary, for they make the best x axis."""
    keys = [key for key in cells[0].flat() if key not in SEEDS and len({cell.value(key) for cell in cells}) > 1]
    keys.sort(key=lambda key: (key != "steps", list(axes).index(key) if key in axes else 99))
    return keys or [next((key for key in axes if key not in SEEDS), "sampler")]


def summary(rows: list[Row], measure: str) -> tuple[float, float, int]:
    """(mean, error, seeds): over seeds where there are several, else with the error that the measure came with."""
    values = np.array([row[measure] for row in rows if not row.get("diverged")], dtype=float)
    if len(values) == 0:
        return float("nan"), float("nan"), 0
    if len(values) == 1:
        return float(values[0]), float(rows[0].get(f"{measure}_sd") or 0.0), 1
    return float(values.mean()), float(values.std(ddof=1)), len(values)


def name_of(row: Row, keys: list[str]) -> str:
    """'ddim eta=0.5', 'loss=l1': what tells a row of the study from the others."""
    parts = []
    for key in keys:
        value = row[key]
        if value is None or value == "":  # eta, variance: this sampler has none
            continue
        parts.append(str(value) if key in ("sampler", "schedule", "prediction", "optimizer") else
                     f"{key}={'yes' if value is True else 'no' if value is False else f'{value:g}' if isinstance(value, float) else value}")  # fmt: skip
    return " ".join(parts) or "all"


def table(rows: list[Row], keys: list[str], measure: str) -> list[list[str]]:
    """Text: one line for each setting, one column for each value of the first key."""
    x, *rest = keys
    columns = ordered(row[x] for row in rows)
    lines = [[" / ".join(rest) or x, *(f"{x} {value}" if rest else name_of({x: value}, [x]) for value in columns)]]
    for name in unique(name_of(row, rest) for row in rows):
        cells = []
        for value in columns:
            mine = [row for row in rows if row[x] == value and name_of(row, rest) == name]
            mean, error, n = summary(mine, measure)
            cells.append(f"{mean:.3g} ± {error:.2g}" if n else "diverged" if mine else "")  # not every grid has every cell
        lines.append([name if rest else measure, *cells])
    return lines


def unique(values) -> list:
    return list(dict.fromkeys(values))


def ordered(values) -> list:
    """Each value once: numbers by size, names as they come."""
    each = unique(values)
    return sorted(each) if all(isinstance(value, (int, float)) for value in each) else each


def plot(rows: list[Row], keys: list[str], measure: str, path: Path) -> Path:
    """Curves over a number, bars over names; with error bars, and the measure of real pictures as a band or line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    x, *rest = keys
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axis = figure.subplots()
    numbers = all(isinstance(row[x], (int, float)) and not isinstance(row[x], bool) for row in rows)
    places = ordered(row[x] for row in rows)
    names = unique(name_of(row, rest) for row in rows)
    for k, name in enumerate(names):
        mine = [[row for row in rows if row[x] == value and name_of(row, rest) == name] for value in places]
        stats = np.array([summary(cell, measure)[:2] if cell else (np.nan, np.nan) for cell in mine])
        if numbers:
            shift = 1 + 0.012 * (k - len(names) / 2)  # so that error bars do not hide each other
            axis.errorbar(np.array(places) * shift, stats[:, 0], stats[:, 1], label=name, marker="o", markersize=3.5, capsize=2, linewidth=1.2)
        else:
            width = 0.8 / len(names)
            axis.bar(np.arange(len(places)) + (k - (len(names) - 1) / 2) * width, stats[:, 0], 0.92 * width, yerr=stats[:, 1], capsize=3, label=name)
    real = np.array([row[f"{measure}_real"] for row in rows if row.get(f"{measure}_real") is not None], dtype=float)
    if len(real):
        axis.axhline(real.mean(), color="0.4", linewidth=1, linestyle="--", label="real pictures")
    if numbers:
        axis.set(xscale="log", xticks=places, xticklabels=[f"{value:g}" for value in places])
        axis.minorticks_off()
    else:
        axis.set(xticks=range(len(places)), xticklabels=[name_of({x: value}, [x]) for value in places])
    if measure == "frechet":
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(LogFormatter())  # 20 rather than 2 x 10^1
        axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    several = max(summary([row for row in rows if row[x] == value], measure)[2] for value in places) > 1
    axis.set(xlabel=x, ylabel={"frechet": "Fréchet distance"}.get(measure, measure))
    if len(names) > 1 or len(real):
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    seeds = len(unique(tuple(row[key] for key in SEEDS) for row in rows))
    axis.set_title(f"{rows[0]['n']} pictures a point; error bars: {f'one deviation over {seeds} seeds' if seeds > 1 and several else 'bootstrap'}", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
    return path


def sample_grid(cells: list[Cell], rows: list[Row], keys: list[str], pictures: Callable, path: Path, each: int = 4) -> Path:
    """The first pictures of every setting (first seed), in a table whose lines and columns are labelled."""
    from matplotlib.figure import Figure

    x, *rest = keys
    columns = ordered(row[x] for row in rows)
    names = unique(name_of(row, rest) for row in rows)
    figure = Figure(figsize=(1.6 + 1.25 * len(columns), 0.5 + 1.25 * len(names)))
    axes = figure.subplots(len(names), len(columns), squeeze=False)
    for i, name in enumerate(names):
        for j, value in enumerate(columns):
            axis = axes[i, j]
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            found = [cell for cell, row in zip(cells, rows, strict=True) if row[x] == value and name_of(row, rest) == name]
            shown = pictures(found[0]) if found else None
            if shown is not None:
                axis.imshow(tile(shown[:each]), interpolation="nearest")
            elif found:
                axis.text(0.5, 0.5, "diverged", ha="center", va="center", fontsize=8, transform=axis.transAxes)
            if i == 0:
                axis.set_title(f"{x} {value}" if rest else name_of({x: value}, [x]), fontsize=8)
            if j == 0:
                axis.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    figure.subplots_adjust(left=1.4 / (1.6 + 1.25 * len(columns)), right=0.995, top=1 - 0.3 / (0.5 + 1.25 * len(names)), bottom=0.01, wspace=0.05, hspace=0.05)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
    return path


def tile(pictures):
    """(4, C, S, S) -> one array of 2 x 2 pictures, (2S, 2S, 3) bytes"""
    from common.viz import grid

    return np.asarray(grid(pictures, columns=2, gap=1))
