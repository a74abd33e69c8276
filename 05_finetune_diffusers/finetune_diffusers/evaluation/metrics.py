"""How close pictures are to others, and how they look: numbers with their standard errors, and plots of them."""

from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.special import stdtrit
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from common.training.vae_loss import Perceptual, random_stages
from common.viz import save_figure

CURVE = {"marker": "o", "markersize": 3.5, "capsize": 2, "linewidth": 1.2}  # how a curve is drawn
CLIPPED = 1 / 32  # a channel value this close to 0 or 1 counts as clipped


def similarity(images: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Per picture, (N, 3, H, W) in [-1, 1] against (N, 3, H, W), each (N,):

    psnr        peak signal-to-noise ratio in dB; larger is closer
    ssim        structural similarity (Wang et al. 2004), at most 1
    perceptual  distance in the features of a fixed random network (common.training.vae_loss.Perceptual); built like
                LPIPS, but not fitted to what people notice; smaller is closer
    """
    images = images.clamp(-1, 1)
    perceptual = Perceptual(random_stages(images.shape[1]))
    with torch.no_grad():
        return {
            "psnr": peak_signal_noise_ratio(images, truth, data_range=(-1.0, 1.0), reduction="none", dim=(1, 2, 3)),
            "ssim": structural_similarity_index_measure(images, truth, data_range=(-1.0, 1.0), reduction="none"),
            "perceptual": perceptual(truth, images),
        }


def rms_distance(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of the pixels of each picture. (N,)"""
    return (a - b).square().flatten(1).mean(1).sqrt()


def tone(images: Tensor) -> dict[str, Tensor]:
    """How a picture looks, whatever it shows. (N, 3, H, W) in [-1, 1] -> each (N,)

    brightness  mean, 0 to 1
    saturation  largest minus smallest channel, mean, 0 to 1
    clipped     share of channel values at their darkest or brightest
    detail      what a blur of 3 x 3 pixels removes, root mean square: edges and speckles
    """
    levels = (images.clamp(-1, 1) + 1) / 2
    ends = (levels < CLIPPED) | (levels > 1 - CLIPPED)
    blurred = F.avg_pool2d(F.pad(levels, [1] * 4, mode="replicate"), 3, 1)
    return {
        "brightness": levels.mean((1, 2, 3)),
        "saturation": (levels.amax(1) - levels.amin(1)).mean((1, 2)),
        "clipped": ends.float().mean((1, 2, 3)),
        "detail": rms_distance(levels, blurred),
    }


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """(mean, its standard error over the pictures); the error over one picture is NaN. NaN values are left out."""
    values = values[~values.isnan()].cpu().double()
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")
    return (float(values.mean()) if len(values) else float("nan")), error


def format_mean(values: Tensor, digits: int = 2) -> str:
    """'24.31 ± 0.42'"""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" + ("" if error != error else f" ± {error:.{digits}f}")


def csv_columns(measures: dict[str, Tensor]) -> dict[str, float]:
    """{"psnr": (N,)} -> {"psnr": mean, "psnr_error": its standard error, and the 95 % interval of the mean by Student's
    distribution: "psnr_low", "psnr_high"}
    """
    columns = {}
    for name, values in measures.items():
        (mean, error), count = mean_and_error(values), int((~values.isnan()).sum())
        half = float(stdtrit(count - 1, 0.975)) * error if count > 1 else float("nan")
        columns |= {name: mean, f"{name}_error": error, f"{name}_low": mean - half, f"{name}_high": mean + half}
    return columns


Curve = list[tuple[float, Tensor]]  # (x, values of the pictures)


def plot_curves(
    panels: dict[str, dict[str, Curve]], lines: dict[str, dict[str, float]], x: str, path: Path, log: bool = False
) -> Path:
    """One panel for each measure, in it one curve for each name: the mean at each x with its standard error.

    panels  {"psnr": {"img2img, w = 3": [(x, values of the pictures), ...]}}; a curve with the name of its panel needs
            no legend
    lines   {"psnr": {"the mosaic": 21.3}}: levels to compare with, dashed
    """
    figure = Figure(figsize=(4.2 * len(panels) + 1.4, 3.6), layout="constrained")
    for axis, (measure, named) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in named.items():
            means, errors = zip(*(mean_and_error(values) for _, values in points), strict=True)
            places, label = [at for at, _ in points], "" if name == measure else name
            axis.errorbar(places, means, errors, label=label, **CURVE)
        for k, (name, level) in enumerate(lines.get(measure, {}).items()):
            axis.axhline(
                level, color=f"{0.25 + 0.2 * k:.2f}", linestyle=("--", ":", "-.")[k % 3], linewidth=1.2, label=name
            )
        axis.set(xlabel=x, ylabel=measure)
        if log:
            axis.set_xscale("log")
            ticks = sorted({at for points in named.values() for at, _ in points})
            axis.set(xticks=ticks, xticklabels=[f"{at:g}" for at in ticks])
            axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    handles = {
        label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), frameon=False, fontsize=8, loc="outside right center")
    return save_figure(figure, path)
