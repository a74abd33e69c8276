"""The figures of evaluate.py: every measure over the guidance scale, and a grid of images."""

import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from common import viz
from common.data.creatures.attributes import NAMES
from common.evaluate.creature_classifier import CreatureClassifier, read_attributes
from common.evaluate.prompt_accuracy import Prompts, Row

REFERENCES = {"real": ("real pictures", "--"), "chance": ("chance", ":")}  # their rows: label and style of line
SHOWN = 5  # prompts of each split in the grid


def plot_scales(rows: list[Row], title: str, path: Path) -> Path:
    """Accuracy, brightness, saturation and diversity over w, each with its interval and the value of real images."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    axes = dict(zip(("accuracy", "brightness", "saturation", "diversity"), figure.subplots(1, 4), strict=True))
    for k, split in enumerate(dict.fromkeys(row["split"] for row in rows)):
        mine = {row["w"]: row for row in rows if row["split"] == split}
        scales = sorted((w for w in mine if w not in REFERENCES), key=float)
        name, colour = {"heldout": "held out"}.get(split, split), f"C{k}"
        for key, axis in axes.items():
            value, low, high = ([mine[w][f"{key}{end}"] for w in scales] for end in ("", "_low", "_high"))
            axis.plot([float(w) for w in scales], value, marker="o", markersize=3, color=colour, label=name)
            axis.fill_between([float(w) for w in scales], low, high, color=colour, alpha=0.2, linewidth=0)
            for reference, (label, style) in REFERENCES.items():
                if (level := mine.get(reference, {}).get(key)) is not None:
                    axis.axhline(level, color=colour, linestyle=style, linewidth=1, label=label if k == 0 else None)
    for key, axis in axes.items():
        axis.set(title=key, xlabel="guidance scale w")
        axis.spines[["top", "right"]].set_visible(False)
    axes["accuracy"].set(ylim=(0, 1.02))
    axes["diversity"].set(ylim=(0, None))
    axes["accuracy"].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=9)
    return viz.save_figure(figure, path)


def plot_grid(
    classifier: CreatureClassifier, prompts: list[Prompts], shown: dict[float, list[Tensor]], path: Path
) -> Path:
    """A row for each of the first prompts, a column for each scale, the real image at the left; the attributes that
    the classifier does not find are in red below.
    shown: scale -> for each split, its first images (n, 3, S, S) uint8
    """
    columns = {"real": [p.real[:SHOWN] for p in prompts]} | {f"w = {w:g}": parts for w, parts in shown.items()}
    rows = [(k, i) for k, p in enumerate(prompts) for i in range(min(SHOWN, len(p.captions)))]
    # one image is 1 x 1, with room for text below it and at the left
    wide, high, left = (len(columns), 1.22 * len(rows), 2.6)
    figure = Figure(figsize=(1.1 * (left + wide), 1.1 * (0.25 + high)))
    axis = figure.add_axes((0, 0, 1, 1))  # one for all: eighty would take a minute
    axis.axis("off")
    for j, (title, parts) in enumerate(columns.items()):
        axis.text(j + 0.5, -0.06, title, fontsize=9, ha="center")
        read = [read_attributes(classifier, pixels)[0] for pixels in parts]
        for y, (k, i) in enumerate(rows):
            p, top = prompts[k], 1.22 * y
            axis.imshow(
                parts[k][i].permute(1, 2, 0),
                interpolation="nearest",
                extent=(j + 0.02, j + 0.98, top + 0.98, top + 0.02),
                aspect="auto",
            )
            missed = (read[k][i] != p.wanted[i]) & p.mentioned[i]  # (11,)
            wrong = [name for name, is_wrong in zip(NAMES, missed.tolist(), strict=True) if is_wrong]
            listed = ", ".join(wrong if len(wrong) < 5 else [*wrong[:3], f"{len(wrong) - 3} more"])
            axis.text(
                j + 0.5, top + 1.0, textwrap.fill(listed, 22), fontsize=5.5, color="crimson", ha="center", va="top"
            )
    for y, (k, i) in enumerate(rows):
        p = prompts[k]
        notes = ["in Chinese"] * (not p.captions[i].isascii()) + ["held out"] * (p.split == "heldout")
        text = textwrap.fill(p.english[i], 40) + (f"\n({', '.join(notes)})" if notes else "")
        axis.text(-0.1, 1.22 * y + 0.5, text, fontsize=7, ha="right", va="center")
    axis.set(xlim=(-left, wide), ylim=(high, -0.25))  # imshow changed them
    return viz.save_figure(figure, path, 130)
