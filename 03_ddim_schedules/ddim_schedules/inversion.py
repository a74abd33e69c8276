"""DDIM inversion: the noise that a real image would be sampled from, and the error of the reconstruction."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from common import viz
from common.cli import pick_device
from common.diffusion.samplers import Denoise, ddim, ddim_inverse
from common.diffusion.schedules import NoiseLevels
from common.io.tables import print_table
from ddim_schedules.image_selection import load_image, open_model
from ddim_schedules.interpolation import last_state
from ddim_schedules.plots import half_interval


def reconstruct(denoise: Denoise, denoise_unclipped: Denoise, levels: NoiseLevels, x: Tensor) -> tuple[Tensor, Tensor]:
    """(noise, reconstruction) of images x (B, C, H, W): DDIM inversion without clipping, and DDIM from its result."""
    noise = last_state(ddim_inverse(denoise_unclipped, x, levels), levels)
    return noise, last_state(ddim(denoise, noise, levels), levels)


def measure_inversion(
    model_dir: Path, names: Sequence[str], steps: Sequence[int], out: Path, *, data: str, data_dir: Path, device: str
) -> None:
    """Invert and reconstruct images with each number of steps, and write inversion.png and error.png to `out`.

    names  the images, as image_selection.load_image takes them
    """
    device = pick_device(device)
    model = open_model(model_dir, device)
    levels = [model.schedule.noise_levels(n) for n in steps]  # an impossible number is refused before the work begins
    x = torch.cat([load_image(name, model, data, data_dir) for name in names]).to(device)
    images, errors, rows = [x.cpu()], [], []
    for n, visited in zip(steps, levels, strict=True):
        found = reconstruct(model.denoise, model.denoise_unclipped, visited, x)
        noise, reconstruction = (part.cpu() for part in found)
        error = (reconstruction - images[0]).square().flatten(1).mean(1).sqrt()  # (B,) root mean square
        errors.append(error)
        cell = f"{error.mean():.4f} ± {half_of_mean(error):.4f}"
        rows.append({"steps": n, "error of the image": cell, "standard deviation of the noise": f"{noise.std():.3f}"})
        images += [noise / 2, reconstruction]
    print_table(rows, left=0)
    print("error: root mean square, mean ± half of its 95 % interval over images; pure noise has standard deviation 1")
    print(viz.save_picture(viz.grid(torch.cat(images), len(x), 34 * len(images)), out / "inversion.png"))
    print(plot_errors(steps, errors, out / "error.png"))


def half_of_mean(values: Tensor) -> float:
    """Half of the 95 % interval of the mean, and 0 for a single value."""
    return half_interval(values.numpy()) if len(values) > 1 else 0.0


def plot_errors(steps: Sequence[int], errors: list[Tensor], path: Path) -> Path:
    """The error of the reconstruction against the number of steps. errors: (B,) for each number."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    means, bars = [float(error.mean()) for error in errors], [half_of_mean(error) for error in errors]
    axis.errorbar(steps, means, bars, marker="o", markersize=4, capsize=2)
    axis.set(xscale="log", yscale="log", xticks=steps, xticklabels=steps)
    axis.set(xlabel="steps", ylabel="error of the reconstruction (rms)")
    axis.set_title(f"{len(errors[0])} images; bars: 95 % interval of the mean", fontsize=9)
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
    return viz.save_figure(figure, path)
