"""Figures of the lesson: grids with labels, attention, and guidance on the plane."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from common import viz
from common.diffusion.schedules import NoiseLevel

WIDE, WIDEST = 140, 1100  # pixels: the most that one image is enlarged to, and a row of them
XLIM, YLIM = (-1.9, 2.7), (-2.1, 2.0)  # the part of the plane that is shown
RADIUS_95 = 2.448  # standard deviations: this circle holds 95 % of a round normal distribution in the plane

Pair = tuple[Tensor, Tensor]  # predictions (x0, eps)


def show_images(images: Tensor, columns: int, across: Sequence[str] = (), down: Sequence[str] = ()) -> Image.Image:
    """A grid of images (N, C, S, S) in [-1, 1] at a whole scale, with labels above the columns and beside the rows."""
    side = images.shape[-1] + 2
    scale = max(1, min(4 if side < 30 else 3, WIDE // side, WIDEST // (columns * side)))
    return viz.labelled_grid(images, columns, across, down, scale)


# ----------------------------------------------------------------------------------------------------------- attention


def show_attention_shapes(N: int, C: int, M: int, D: int, heads: int) -> None:
    """Cross-attention as matrices: which is multiplied with which, and how large each one is."""
    d = C // heads
    _, axis = plt.subplots(figsize=(10.5, 4.0), layout="constrained")
    high, low, wide, narrow = 2.0, 1.1, 0.9, 0.55  # sides of the drawn boxes for N, M, C or D, and d

    def box(x: float, y: float, width: float, height: float, name: str, shape: str, colour: str) -> None:
        axis.add_patch(plt.Rectangle((x, y), width, height, facecolor=colour, edgecolor="0.3"))
        axis.text(x + width / 2, y + height / 2, name, ha="center", va="center", fontsize=13)
        axis.text(x + width / 2, y - 0.08, shape, ha="center", va="top", fontsize=9)

    def arrow(x0: float, y0: float, x1: float, y1: float, text: str = "") -> None:
        axis.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "->", "color": "0.3"})
        axis.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.08, text, ha="center", va="bottom", fontsize=9)

    pixels, text, mixed = "#cfe3f5", "#fbdcb8", "#d7ecd0"
    box(0, 3.6, wide, high, viz.words("pixels", "像素"), f"N × C = {N} × {C}", pixels)
    box(0, 0.95, wide, low, viz.words("text", "文本"), f"M × D = {M} × {D}", text)
    box(2.3, 3.6, narrow, high, "$Q$", f"N × d = {N} × {d}", pixels)
    box(2.3, 1.75, narrow, low, "$K$", f"M × d = {M} × {d}", text)
    box(2.3, 0.15, narrow, low, "$V$", f"M × d = {M} × {d}", text)
    box(5.3, 2.6, low, high, "$A$", f"N × M = {N} × {M}", mixed)
    box(7.9, 1.6, narrow, high, "$A\\,V$", f"N × d = {N} × {d}", mixed)
    box(10.2, 1.6, wide, high, viz.words("result", "结果"), f"N × C = {N} × {C}", pixels)
    arrow(wide, 4.6, 2.3, 4.6, "$W_q$")
    arrow(wide, 1.75, 2.3, 2.3, "$W_k$")
    arrow(wide, 1.25, 2.3, 0.7, "$W_v$")
    arrow(2.3 + narrow, 4.6, 5.3, 4.1)
    arrow(2.3 + narrow, 2.3, 5.3, 3.1)
    axis.text(
        4.1,
        3.55,
        viz.words("softmax over tokens\nof $Q K^\\top / \\sqrt{d}$", "对词元做 softmax：\n$Q K^\\top / \\sqrt{d}$"),
        ha="center",
        va="center",
        fontsize=9,
    )
    arrow(5.3 + low, 3.4, 7.9, 2.9)
    axis.text(
        7.3, 3.55, viz.words("weighted mean\nof the values", "值的\n加权平均"), ha="center", va="center", fontsize=9
    )
    arrow(2.3 + narrow, 0.7, 7.9, 1.9)
    arrow(
        7.9 + narrow,
        2.6,
        10.2,
        2.6,
        viz.words(f"{heads} {'head' if heads == 1 else 'heads'}, $W_o$", f"{heads} 个头，$W_o$"),
    )
    axis.set(xlim=(-0.3, 11.6), ylim=(-0.25, 5.7), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    plt.show()


def show_maps(
    picture: Tensor, maps: Sequence[Tensor], titles: Sequence[str], unit: str, top: float, rows: Sequence[str] = ("",)
) -> None:
    """Maps (h, w) over the grey picture (3, S, S), all on one colour scale from 0 to `top`.

    rows  a label for each row of maps; there are as many maps in each
    """
    size, columns = picture.shape[-1], len(maps) // len(rows)
    shape = {"figsize": (1.3 * (columns + 1) + 1, 1.55 * len(rows) + 0.2), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(len(rows), columns + 1, **shape)
    picture = picture.permute(1, 2, 0) / 2 + 0.5
    for axis, label in zip(axes[:, 0], rows, strict=True):
        axis.imshow(picture)
        axis.set_ylabel(label, fontsize=9)
    drawn = None
    for axis, each, title in zip(axes[:, 1:].flat, maps, titles, strict=True):
        axis.imshow(picture.mean(2), cmap="gray", vmin=-0.6, vmax=1.2)
        extent = (-0.5, size - 0.5, size - 0.5, -0.5)
        drawn = axis.imshow(each, cmap="magma", alpha=0.7, vmin=0, vmax=top, extent=extent)
        axis.set_title(title, fontsize=8)
    if drawn is not None:
        figure.colorbar(drawn, ax=axes, label=unit, shrink=0.9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    plt.show()


def resized(each: Tensor, side: int) -> Tensor:
    """(M, h, w) -> (M, side, side), each pixel repeated."""
    return F.interpolate(each[None], side)[0]


# ----------------------------------------------------------------------------------------------------- guidance, exact


def circle(axis: Axes, centre: Sequence[float], radius: float, **style: Any) -> None:
    """A circle, for instance one that holds 95 % of a blob."""
    turn = np.linspace(0, 2 * np.pi, 100)
    axis.plot(centre[0] + radius * np.cos(turn), centre[1] + radius * np.sin(turn), **style)


def show_vectors(
    x: Tensor, level: NoiseLevel[float], uncond: Pair, cond: Pair, blobs: Tensor, width: float, named: int
) -> None:
    """Guidance at one noisy point x (2,) of the plane: scores as arrows on the left, predicted points on the right.

    uncond, cond  predictions (x0, eps) at x, each (2,)
    blobs         (K, 2) centres of the clean blobs, of this width; `named` is the index of the caption's
    """
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    axes = [torch.linspace(low, high, 140) for low, high in (XLIM, YLIM)]
    points = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1)  # (140, 140, 2)
    variance = (level.alpha * width) ** 2 + level.sigma**2
    density = torch.exp(-(points[:, :, None] - level.alpha * blobs).square().sum(3) / (2 * variance))
    left.contourf(*axes, density.mean(2), cmap="Greys", alpha=0.45, levels=8)
    left.contour(*axes, density[..., named], colors="C1", linewidths=0.6, levels=4)
    without, with_caption = viz.words("uncond", "无条件"), viz.words("cond", "有条件")
    scores = {without: -uncond[1] / level.sigma, with_caption: -cond[1] / level.sigma}
    end = viz.words("guided, w = 3", "引导，w = 3")
    scores[end] = scores[without] + 3 * (scores[with_caption] - scores[without])
    tips = {name: x + 0.3 * score for name, score in scores.items()}
    left.plot(*torch.stack([tips[without], tips[end]]).T, color="0.3", linestyle=":", linewidth=1.2)
    for (name, tip), colour in zip(tips.items(), ("0.2", "C1", "C0"), strict=True):
        left.annotate("", tip.tolist(), x.tolist(), arrowprops={"arrowstyle": "->", "lw": 2, "color": colour})
        offset = (-48, -4) if name == without else (6, -2)
        left.annotate(name, tip.tolist(), offset, textcoords="offset points", color=colour, weight="bold")
    left.plot(*x, "ko", markersize=5)
    left.annotate("$x_t$", x.tolist(), (-17, 2), textcoords="offset points")
    left.set_title(
        viz.words(
            "scores at $x_t$ (grey: $p_t(x)$, orange: $p_t(x\\,|\\,c)$)",
            "$x_t$ 处的分数（灰：$p_t(x)$，橙：$p_t(x\\,|\\,c)$）",
        ),
        fontsize=10,
    )
    for k, centre in enumerate(blobs.tolist()):
        circle(right, centre, RADIUS_95 * width, color="C1" if k == named else "0.6")
    ends = torch.stack([uncond[0] + w * (cond[0] - uncond[0]) for w in range(3)])  # (3, 2)
    right.plot(*ends.T, color="C0", linewidth=1, marker="o", markersize=4)
    for w, point in enumerate(ends.tolist()):
        note = {0: f"w = 0: {without}", 1: f"w = 1: {with_caption}"}.get(w, f"w = {w}")
        right.annotate(note, point, (5, 4), textcoords="offset points", color="C0", fontsize=9)
    right.plot(*x, "ko", markersize=5)
    right.annotate("$x_t$", x.tolist(), (-17, 2), textcoords="offset points")
    right.set_title(
        viz.words(
            "predicted $\\hat x_0$ (circles hold 95 % of each blob)", "预测的 $\\hat x_0$（每个圆含该团的 95 %）"
        ),
        fontsize=10,
    )
    for axis in (left, right):
        axis.set(aspect="equal", xlim=XLIM, ylim=YLIM, xticks=[], yticks=[])
        axis.spines[:].set_visible(True)
    plt.show()


def show_blobs(rows: Mapping[str, Mapping[str, Tensor]], blobs: Tensor, width: float, named: int) -> None:
    """Scatter plots of points (N, 2) in rows and columns: {row: {title: points}}."""
    columns = len(next(iter(rows.values())))
    shape = {"figsize": (2.1 * columns + 0.6, 2.05 * len(rows) + 0.2), "layout": "constrained", "squeeze": False}
    _, axes = plt.subplots(len(rows), columns, **shape)
    for line, (label, clouds) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, fontsize=9)
        for axis, (title, points) in zip(line, clouds.items(), strict=True):
            axis.scatter(*points.T, s=1.2, linewidths=0)
            for k, centre in enumerate(blobs.tolist()):
                circle(axis, centre, RADIUS_95 * width, color="C1" if k == named else "0.65", linewidth=1.2)
            axis.set(title=title, aspect="equal", xlim=XLIM, ylim=YLIM, xticks=[], yticks=[])
            axis.spines[:].set_visible(True)
    plt.show()
