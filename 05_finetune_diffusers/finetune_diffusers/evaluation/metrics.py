"""How near are pictures to others, and do they show what their prompt says: numbers with their errors, and tables of them."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from common.io.files import write_atomically
from common.training.vae_loss import Perceptual, random_stages

EDGE = 1 / 32  # so near to the darkest or the brightest value, a channel of a pixel counts as clipped


def likeness(images: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Picture by picture, (N, 3, H, W) in [-1, 1] against (N, 3, H, W):

    psnr        peak signal-to-noise ratio in dB; the larger the nearer
    ssim        structural similarity (Wang et al. 2004), at most 1
    perceptual  distance in the features of a fixed random network (common.training.vae_loss.Perceptual): built like LPIPS but knowing nothing of
                what people notice; the smaller the nearer
    """
    images = images.clamp(-1, 1)
    perceptual = Perceptual(random_stages(images.shape[1]))
    with torch.no_grad():
        return {
            "psnr": peak_signal_noise_ratio(images, truth, data_range=(-1.0, 1.0), reduction="none", dim=(1, 2, 3)),
            "ssim": structural_similarity_index_measure(images, truth, data_range=(-1.0, 1.0), reduction="none"),
            "perceptual": perceptual(truth, images),
        }


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of the pixels, picture by picture. (N,)"""
    return (a - b).square().flatten(1).mean(1).sqrt()


def tone(images: Tensor) -> dict[str, Tensor]:
    """How a picture looks, whatever is on it. Each (N,)

    brightness  mean, 0 to 1
    saturation  of the largest over the smallest channel, mean, 0 to 1
    clipped     share of channel values at their darkest or brightest
    detail      what a blur of 3 x 3 pixels takes away, root mean square: edges, and speckles
    """
    levels = (images.clamp(-1, 1) + 1) / 2
    ends = (levels < EDGE) | (levels > 1 - EDGE)
    blurred = F.avg_pool2d(F.pad(levels, [1] * 4, mode="replicate"), 3, 1)
    return {
        "brightness": levels.mean((1, 2, 3)),
        "saturation": (levels.amax(1) - levels.amin(1)).mean((1, 2)),
        "clipped": ends.float().mean((1, 2, 3)),
        "detail": distance(levels, blurred),
    }


def mean_error(values: Tensor) -> tuple[float, float]:
    """(mean, its standard error over the pictures); the error of one picture is not known."""
    values = values[~values.isnan()].cpu().double()
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")
    return (float(values.mean()) if len(values) else float("nan")), error


def show(values: Tensor, digits: int = 2) -> str:
    """'24.31 ± 0.42'"""
    mean, error = mean_error(values)
    return f"{mean:.{digits}f}" + ("" if error != error else f" ± {error:.{digits}f}")


def print_table(rows: Sequence[dict[str, object]]) -> None:
    """Columns as wide as what stands in them; the first is aligned to the left."""
    names = list(rows[0])
    cells = [[str(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[k]) for line in cells)) for k, name in enumerate(names)]
    for line in [names, *cells]:
        print("  ".join(text.ljust(width) if k == 0 else text.rjust(width) for k, (text, width) in enumerate(zip(line, widths, strict=True))))


def write_csv(rows: Sequence[dict[str, object]], path: Path) -> Path:
    """One line a row, numbers in full."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    table.writeheader()
    table.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
    return path


def curves(panels: dict[str, dict[str, list[tuple[float, Tensor]]]], lines: dict[str, dict[str, float]], x: str, path: Path, log: bool = False) -> Path:
    """One panel for each measure, in it one curve for each name: the mean at each x with its standard error.

    panels  {"psnr": {"img2img, w = 3": [(x, values of the pictures), ...]}}; a curve that is called like its panel needs no legend
    lines   {"psnr": {"the mosaic": 21.3}}: levels to compare with, dashed
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels) + 1.4, 3.6), layout="constrained")
    for axis, (measure, named) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in named.items():
            means, errors = zip(*(mean_error(values) for _, values in points), strict=True)
            axis.errorbar([at for at, _ in points], means, errors, marker="o", markersize=3.5, capsize=2, linewidth=1.2,
                          label="" if name == measure else name)  # the panel says it already
        for k, (name, level) in enumerate(lines.get(measure, {}).items()):
            axis.axhline(level, color=f"{0.25 + 0.2 * k:.2f}", linestyle=("--", ":", "-.")[k % 3], linewidth=1.2, label=name)
        axis.set(xlabel=x, ylabel=measure)
        if log:
            axis.set_xscale("log")
            ticks = sorted({at for points in named.values() for at, _ in points})
            axis.set(xticks=ticks, xticklabels=[f"{at:g}" for at in ticks])
            axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    named = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if named:
        figure.legend(named.values(), named.keys(), frameon=False, fontsize=8, loc="outside right center")
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
    return path
