"""Pictures of the lesson: scatter plots in the plane, labelled rows of images, and two diagrams."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from matplotlib.axes import Axes
from torch import Tensor

from common import viz
from common.io.pixels import to_bytes

plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def show_images(
    images: Tensor | Sequence[Tensor],
    columns: int,
    across: Sequence[str] = (),
    down: Sequence[str] = (),
    scale: int = 2,
) -> None:
    """A grid of images (N, 1, H, W) in [-1, 1] with labels above the columns and beside the rows.

    scale  pixels on the screen for each pixel of an image
    """
    images = images if isinstance(images, Tensor) else torch.cat(list(images))
    display(viz.labelled_grid(images, columns, across, down, scale))


def window(axis: Axes, title: str, reach: float) -> None:
    """A square piece of the plane, from -reach to reach."""
    axis.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(True)


def show_points(
    clouds: Sequence[Tensor], titles: Sequence[str], colours: Tensor | None = None, reach: float = 1.8
) -> None:
    """A row of scatter plots. clouds: each (N, 2); colours: (N,), the same for all clouds"""
    _, axes = plt.subplots(1, len(clouds), figsize=(2.0 * len(clouds), 2.4), layout="constrained", squeeze=False)
    for axis, cloud, title in zip(axes[0], clouds, titles, strict=True):
        axis.scatter(*cloud.T, s=1.5, c=colours, cmap=None if colours is None else "turbo", linewidths=0)
        window(axis, title, reach)
    plt.show()


def show_arrows(axis: Axes, places: Tensor, arrows: Tensor, reach: float) -> None:
    """Arrows at places of the plane, coloured by their true length.
    The drawn lengths are square roots, so that short arrows remain visible. places, arrows: (N, 2)
    """
    length = arrows.norm(dim=1, keepdim=True)
    drawn = arrows / length.clamp(min=1e-9).sqrt()
    drawn = 0.2 * reach * drawn / drawn.norm(dim=1).max()
    field = axis.quiver(
        *places.T, *drawn.T, length[:, 0], angles="xy", scale_units="xy", scale=1, width=0.006, cmap="viridis_r"
    )
    plt.colorbar(field, ax=axis, shrink=0.75, label=viz.words("length of the arrow", "箭头的长度"))


# ------------------------------------------------------------------------------------------------------------ diagrams


def show_chain(images: Tensor, names: Sequence[str]) -> None:
    """The forward and the reverse chain. images: (N, 1, H, W) from noise (left) to clean (right); names: N symbols"""
    pixels, n = to_bytes(images)[:, 0].numpy(), len(images)
    _, axis = plt.subplots(figsize=(10, 2.7), layout="constrained")
    for i, (picture, name) in enumerate(zip(pixels, names, strict=True)):
        axis.imshow(np.repeat(picture[..., None], 3, 2), extent=(2 * i, 2 * i + 1, 0, 1), interpolation="nearest")
        axis.text(2 * i + 0.5, -0.15, name, ha="center", va="top", fontsize=13)
    arrow = {"arrowstyle": "-|>", "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
    for i in range(n - 1):
        dots = names[i + 1] == "…" or names[i] == "…"
        curve = {"color": "C0", "connectionstyle": "arc3,rad=-0.35"}
        axis.annotate("", (2 * i + 2, 0.72), (2 * i + 1, 0.72), arrowprops=arrow | curve)
        curve = {"color": "C3", "linestyle": "--", "connectionstyle": "arc3,rad=-0.35"}
        axis.annotate("", (2 * i + 1, 0.28), (2 * i + 2, 0.28), arrowprops=arrow | curve)
        if not dots:
            before, after = names[i].strip("$"), names[i + 1].strip("$")
            axis.text(2 * i + 1.5, 1.02, f"$p_\\theta({after}\\,|\\,{before})$", ha="center", color="C0")
            axis.text(2 * i + 1.5, -0.02, f"$q({before}\\,|\\,{after})$", ha="center", va="top", color="C3")
    axis.text(0, 1.28, viz.words("reverse process, learned", "反向过程：学习得到"), color="C0", fontsize=12)
    axis.text(0, -0.62, viz.words("forward process, fixed", "前向过程：事先给定"), color="C3", fontsize=12)
    axis.set(xlim=(-0.1, 2 * n - 0.9), ylim=(-0.75, 1.5), aspect="equal")
    axis.axis("off")
    plt.show()


def show_resblock() -> None:
    """Diagram of a residual block with its time embedding."""
    _, axis = plt.subplots(figsize=(11, 3.1), layout="constrained")

    def box(x: float, y: float, width: float, text: str, colour: str) -> None:
        axis.add_patch(plt.Rectangle((x, y - 0.32), width, 0.64, facecolor=colour, edgecolor="black", linewidth=0.8))
        axis.text(x + width / 2, y, text, ha="center", va="center", fontsize=10)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "0.3", "shrinkA": 0, "shrinkB": 0})

    conv = viz.words("3×3 conv", "3×3 卷积")
    row = [(0.9, 1.5, "GroupNorm\nSiLU", "#dce9f5"), (2.8, 1.3, conv, "#f7e3c8"), (4.5, 1.5, "GroupNorm", "#dce9f5")]
    row += [
        (6.4, 1.9, viz.words("× (1 + scale)\n+ shift", "×（1 + 缩放）\n+ 平移"), "#d8efd8"),
        (8.7, 0.9, "SiLU", "#dce9f5"),
        (10.0, 1.3, conv, "#f7e3c8"),
    ]
    for x, width, text, colour in row:
        box(x, 1.0, width, text, colour)
    for (x, width, *_), (following, *_) in zip(row, row[1:], strict=False):
        arrow((x + width, 1.0), (following, 1.0))
    axis.text(0.0, 1.0, "$x$\n(B, C, H, W)", ha="center", va="center", fontsize=10)
    arrow((0.55, 1.0), (0.9, 1.0))
    arrow((11.3, 1.0), (11.75, 1.0))
    axis.add_patch(plt.Circle((12.0, 1.0), 0.25, facecolor="white", edgecolor="black"))
    axis.text(12.0, 1.0, "+", ha="center", va="center", fontsize=14)
    arrow((12.25, 1.0), (12.7, 1.0))
    axis.text(
        12.75, 1.0, viz.words("output\n(B, C', H, W)", "输出\n(B, C', H, W)"), ha="left", va="center", fontsize=10
    )
    axis.plot([0.7, 0.7, 4.0], [1.0, 2.1, 2.1], color="0.3", linewidth=1)
    box(
        4.0,
        2.1,
        4.2,
        viz.words("shortcut: identity, or 1×1 conv if C ≠ C'", "捷径：恒等映射；C ≠ C' 时为 1×1 卷积"),
        "#eeeeee",
    )
    axis.plot([8.2, 12.0], [2.1, 2.1], color="0.3", linewidth=1)
    arrow((12.0, 2.1), (12.0, 1.25))
    steps = [
        (0.4, 1.8, viz.words("waves of $t$", "$t$ 的正弦波"), "#f2dede"),
        (2.7, 1.9, viz.words("MLP\n(once per network)", "MLP\n（全网络一次）"), "#f2dede"),
    ]
    steps += [(5.1, 2.1, viz.words("SiLU, Linear\n(in each block)", "SiLU，线性层\n（每块一次）"), "#d8efd8")]
    for x, width, text, colour in steps:
        box(x, -0.35, width, text, colour)
    axis.text(-0.1, -0.35, "$t$", ha="center", va="center", fontsize=12)
    arrow((0.05, -0.35), (0.4, -0.35))
    arrow((2.2, -0.35), (2.7, -0.35))
    arrow((4.6, -0.35), (5.1, -0.35))
    axis.text(3.65, -0.98, viz.words("+ embedding of the label", "+ 标签的嵌入"), ha="center", va="center", fontsize=9)
    axis.plot([7.2, 7.35], [-0.35, -0.35], color="0.3", linewidth=1)
    arrow((7.35, -0.35), (7.35, 0.68))
    axis.text(
        7.5,
        0.2,
        viz.words("scale, shift: (B, C', 1, 1) each", "缩放、平移：各 (B, C', 1, 1)"),
        ha="left",
        va="center",
        fontsize=9,
    )
    axis.set(xlim=(-0.7, 14.0), ylim=(-1.2, 2.6), aspect="equal")
    axis.axis("off")
    plt.show()
