"""The figures of ablations.py: one for each study, with error bars and the values of real images."""

from pathlib import Path

from matplotlib.figure import Figure

from common import viz
from common.evaluate.prompt_accuracy import Row


def lines(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of the first seed, grouped by network or remedy."""
    first = [row for row in rows if row["seed"] == rows[0]["seed"]]
    return {
        what: [row for row in first if row["what"] == what] for what in dict.fromkeys(row["what"] for row in first)
    }


def plot_brightness(rows: list[Row], real: Row, path: Path) -> Path:
    """Brightness, saturation, burnt pixels and accuracy over w: a line for each network, a star for each remedy."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axis, key in zip(figure.subplots(1, 4), ("brightness", "saturation", "burnt", "accuracy"), strict=True):
        for what, mine in lines(rows).items():
            w, values = [row["w"] for row in mine], [row[key] for row in mine]
            error = [[abs(row[key] - row[f"{key}_{end}"]) for row in mine] for end in ("low", "high")]
            marker = {"marker": "*", "markersize": 10} if len(mine) == 1 else {"marker": ".", "markersize": 5}
            axis.errorbar(w, values, error, label=what, capsize=2, linewidth=1, **marker)
        axis.axhline(real[key], color="0.3", linestyle="--", linewidth=1, label="real pictures")
        axis.set(title=key, xlabel="guidance scale w")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return viz.save_figure(figure, path, 100)


def plot_copies(rows: list[Row], path: Path) -> Path:
    """Prompt accuracy and memorization: bars for each network, light at the lower scale, dark at the higher."""
    panels = {  # key: title, and the value without memorization
        "accuracy_test": ("accuracy, trained kind", None),
        "accuracy_heldout": ("accuracy, held out", None),
        "too_near_pixels": ("too near (pixels)", 0.01),
        "nearer_pixels": ("nearer than unseen (pixels)", 0.5),
        "nearer_features": ("nearer than unseen (features)", 0.5),
    }
    found, figure = lines(rows), Figure(figsize=(13, 3.2), layout="constrained")
    for axis, (key, (title, expected)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        measure, _, where = key.rpartition("_")
        low, high = (f"{measure}_{end}_{where}" for end in ("low", "high"))
        for i, mine in enumerate(found.values()):
            for k, row in enumerate(mine):
                x, value, label = i + 0.4 * k, row[key], f"w = {row['w']:g}" if i == 0 else None
                axis.bar(x, value, 0.38, color=("#9ecae1", "#3182bd")[k], label=label)
                error = [[value - row[low]], [row[high] - value]]
                axis.errorbar(x, value, error, color="black", capsize=2, linewidth=1)
        if expected is not None:
            axis.axhline(expected, color="0.3", linestyle="--", linewidth=1)
        axis.set_title(title, fontsize=9)
        axis.set(ylim=(0, 1.02), xticks=[i + 0.2 for i in range(len(found))])
        axis.set_xticklabels([name.replace(" ", "\n") for name in found], fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return viz.save_figure(figure, path, 100)
