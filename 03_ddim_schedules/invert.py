"""DDIM inversion: find the noise that a real image would be drawn from, draw it again, and measure what was lost on the way.

  python 03_ddim_schedules/invert.py
  python 03_ddim_schedules/invert.py --images 0 1 2 class:7 photo.png --steps 10 50 250 1000

Writes a picture (top row: the images; then, for each number of steps, the noise found and the image drawn from it) and a plot of
the error against the number of steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from common.cli import pick_device, run
from common.io.ranges import SAMPLER_STEPS

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Args:
    images: tuple[str, ...] = ("0", "1", "2", "3", "4", "5", "6", "7")
    """Indices of test images, class:3 for the first of a class, or files."""
    steps: Annotated[tuple[int, ...], SAMPLER_STEPS] = (5, 10, 20, 50, 100, 200)
    """Numbers of steps to compare."""
    model: Path = PRETRAINED
    """A run folder, or any diffusers folder with an unconditional U-Net. By default the shipped one, of digits."""
    data: str = "digits"
    """Where indices and classes are looked up: digits, mnist, ... or a folder of images; what the model was trained on."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    out: Path = Path("runs/03_ddim_schedules/invert")
    """The folder that the pictures go to."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:

    import torch

    from common import viz
    from ddim_schedules.image_selection import find_image, open_model, wants
    from ddim_schedules.interpolation import reconstruct

    device = pick_device(args.device)
    model, denoise, free = open_model(args.model, device)
    paths = [model.schedule.noise_levels(steps) for steps in args.steps]  # a number that cannot be is refused before the work begins
    x = torch.cat([find_image(word, wants(model), args.data, args.data_dir) for word in args.images]).to(device)

    rows, errors = [x.cpu()], []
    print(f"{'steps':>6}{'error of the image':>20}{'deviation of the noise':>24}   (root mean square; pure noise has deviation 1)")
    for steps, path in zip(args.steps, paths, strict=True):
        noise, again = (part.cpu() for part in reconstruct(denoise, free, path, x))
        each = (again - rows[0]).square().flatten(1).mean(1).sqrt()  # (N,)
        errors.append(each)
        print(f"{steps:>6}{each.mean():>13.4f} ± {each.std() if len(each) > 1 else 0:<5.4f}{noise.std():>18.3f}")
        rows += [noise / 2, again]
    print(viz.save_picture(viz.grid(torch.cat(rows), len(x), 34 * len(rows)), args.out / "inversion.png"))
    print(plot(args.steps, errors, args.out / "error.png"))


def plot(steps: tuple[int, ...], errors: list, path: Path) -> Path:
    from matplotlib.figure import Figure

    from common.io.files import write_atomically

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    mean, spread = [float(each.mean()) for each in errors], [float(each.std()) if len(each) > 1 else 0.0 for each in errors]
    axis.errorbar(steps, mean, spread, marker="o", markersize=4, capsize=2)
    axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="error of the reconstruction (rms)",
             xticks=steps, xticklabels=steps, title=f"{len(errors[0])} images; bars: one deviation between images")  # fmt: skip
    axis.minorticks_off()
    axis.title.set_fontsize(9)
    axis.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
    return path


if __name__ == "__main__":
    run(main, Args)
