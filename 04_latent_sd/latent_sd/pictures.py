"""Figures of the lesson: grids with labels, codes in the plane, and what a training step keeps in memory."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor, nn

from common import viz
from common.models.vae import Gaussian

WIDE, WIDEST = 140, 1100  # pixels: the most that one image is enlarged to, and a row of them
RADIUS_95 = 2.448  # standard deviations: this circle holds 95 % of a round normal distribution in the plane


def show_images(images: Tensor, columns: int, across: Sequence[str] = (), down: Sequence[str] = ()) -> Image.Image:
    """A grid of images (N, C, S, S) in [-1, 1] at a whole scale, with labels above the columns and beside the rows."""
    side = images.shape[-1] + 2
    scale = max(1, min(5 if side < 12 else 4 if side < 30 else 3, WIDE // side, WIDEST // (columns * side)))
    return viz.labelled_grid(images, columns, across, down, scale)


def ring(axis: Axes, centre: Tensor, std: Tensor, **style: Any) -> None:
    """The ellipse of radius one standard deviation in each direction. centre, std (2,)"""
    turn = torch.linspace(0, 2 * torch.pi, 60)
    axis.plot(centre[0] + std[0] * turn.cos(), centre[1] + std[1] * turn.sin(), **style)


def show_codes(posteriors: Mapping[float, Gaussian], labels: Tensor) -> None:
    """Codes in the plane for each beta: posterior means (N, 2) coloured by digit, some posteriors as ellipses, and the
    dashed circle that holds 95 % of the prior N(0, I).
    """
    figure, axes = plt.subplots(1, len(posteriors), figsize=(11, 3.7), layout="constrained")
    points = None
    for axis, (beta, q) in zip(axes, posteriors.items(), strict=True):
        reach = 1.1 * max(RADIUS_95, float(q.mean.abs().quantile(0.998)))
        points = axis.scatter(*q.mean.T, s=3, c=labels, cmap="tab10", vmin=-0.5, vmax=9.5, linewidths=0)
        for mean, std in zip(q.mean[::60], (q.logvar[::60] / 2).exp(), strict=True):
            ring(axis, mean, std, color="black", linewidth=0.6)
        ring(axis, torch.zeros(2), torch.full((2,), RADIUS_95), color="0.4", linestyle="--")
        title = f"$\\beta$ = {beta:g}"
        axis.set(title=title, aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach), xlabel="$z_1$")
        axis.spines[:].set_visible(True)
    axes[0].set_ylabel("$z_2$")
    assert points is not None
    figure.colorbar(points, ax=axes, label=viz.words("digit", "数字"), ticks=range(10), shrink=0.9)
    plt.show()


def step_cost(unet: nn.Module, x: Tensor, text: Tensor, times: int = 1) -> tuple[float, int]:
    """One training step, forward and backward: seconds (the fastest of several), and bytes that autograd keeps.

    x  (B, C, S, S), text (B, M, D)
    """
    weights, kept = {p.untyped_storage().data_ptr() for p in unet.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other tensor gets its address
        return tensor

    def step() -> None:
        unet(x, torch.full((len(x),), 500.0), text=text).square().mean().backward()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    bytes_kept, seconds = sum(storage.nbytes() for storage in kept.values()), []
    kept.clear()
    for _ in range(times):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return min(seconds), bytes_kept
