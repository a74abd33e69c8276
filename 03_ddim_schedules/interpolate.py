"""Walk from one real image to another through the space of noise, and measure how even the walk is.

  python 03_ddim_schedules/interpolate.py                              all methods, two test images
  python 03_ddim_schedules/interpolate.py --a class:3 --b class:8 --method ddim_slerp
  python 03_ddim_schedules/interpolate.py --pairs 24 --method ddpm ddpm_shared ddim_slerp
  python 03_ddim_schedules/interpolate.py --a one.png --b other.png --strength 0.5 --method ddpm ddpm_shared

Writes a picture with one row for each method, a GIF of the walks, and a plot of the change from frame to frame.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from common.cli import pick_device, run
from common.io.ranges import SAMPLER_STEPS, Range

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Args:
    a: str = "0"
    """The first image: its index in the test images, class:3 for the first one of a class, or a file."""
    b: str = "1"
    """The second image."""
    pairs: int = 1
    """Pairs of images to measure: a and b, then test images 2 and 3, 4 and 5, ..., each with noise of its own."""
    method: tuple[Literal["ddpm", "ddpm_shared", "ddpm_slerp", "ddim_lerp", "ddim_slerp"], ...] = (
        "ddpm", "ddpm_shared", "ddpm_slerp", "ddim_lerp", "ddim_slerp")  # fmt: skip
    """Ways to walk; interpolation.py says what they are."""
    frames: Annotated[int, Range(3, 1000, hint="two of them are the images themselves")] = 16
    """Pictures on the way, both ends included."""
    strength: float = 0.6
    """How far up the ddpm walks noise the images: 1 is pure noise."""
    steps: Annotated[int, SAMPLER_STEPS] = 100
    """Of the sampler, from pure noise to the image."""
    model: Path = PRETRAINED
    """A run folder, or any diffusers folder with an unconditional U-Net. By default the shipped one, of digits."""
    data: str = "digits"
    """Where indices and classes are looked up: digits, mnist, ... or a folder of images; what the model was trained on."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    seed: int = 0
    out: Path = Path("runs/03_ddim_schedules/interpolate")
    """The folder that the pictures go to."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:

    import torch

    from common import viz
    from ddim_schedules.image_selection import check_alike, find_image, open_model, wants
    from ddim_schedules.interpolation import changes, walk

    check_alike((args.a, args.b))
    device = pick_device(args.device)
    model, denoise, free = open_model(args.model, device)
    a, b = (find_image(word, wants(model), args.data, args.data_dir).to(device) for word in (args.a, args.b))
    path, shares = model.schedule.noise_levels(args.steps), torch.linspace(0, 1, args.frames).tolist()

    def walks_between(a, b, seed: int) -> dict:
        return {method: walk(method, denoise, free, path, a, b, shares, args.strength, seed).cpu() for method in args.method}

    walks = walks_between(a, b, args.seed)
    steps = {method: [changes(pictures)] for method, pictures in walks.items()}
    for k in range(1, args.pairs):
        ends = (find_image(str(i), wants(model), args.data, args.data_dir).to(device) for i in (2 * k, 2 * k + 1))
        for method, pictures in walks_between(*ends, args.seed + k).items():
            steps[method].append(changes(pictures))
    print_table({method: torch.stack(each) for method, each in steps.items()})
    rows = [torch.cat([a.cpu(), pictures, b.cpu()]) for pictures in walks.values()]
    print(viz.save_picture(viz.grid(torch.cat(rows), args.frames + 2, 60 * len(rows)), args.out / "strip.png"))
    there = [torch.stack([pictures[i] for pictures in walks.values()]) for i in range(args.frames)]
    print(viz.save_gif(there + there[-2:0:-1], args.out / "walk.gif", columns=len(walks), height=120, hold=0.3, evenly=False))
    print(plot({method: each[0] for method, each in steps.items()}, args.out / "change.png"))


def print_table(steps: dict) -> None:
    """How even each walk is. steps: for each method (pairs, frames - 1), the changes between neighbouring frames."""
    from ddim_schedules.interpolation import jumpiness

    pairs = len(next(iter(steps.values())))
    print(f"{'method':14}{'mean change':>12}{'largest':>10}{'largest / mean':>18}{'where on the way':>20}"
          + (f"   mean ± deviation over {pairs} pairs" if pairs > 1 else ""))  # fmt: skip
    for method, change in steps.items():
        even, where = jumpiness(change), (change.argmax(1) + 0.5) / change.shape[1]
        spread = [f" ± {values.std():.2f}" if pairs > 1 else "" for values in (even, where)]
        print(f"{method:14}{change.mean():>12.2f}{change.max(1).values.mean():>10.2f}{f'{even.mean():.2f}{spread[0]}':>18}"
              f"{f'{where.mean():.2f}{spread[1]}':>20}")  # fmt: skip


def plot(steps: dict, path: Path) -> Path:
    """The change between neighbouring frames, one curve for each method."""
    from matplotlib.figure import Figure

    from common.io.files import write_atomically

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axis = figure.subplots()
    for method, change in steps.items():
        axis.plot(range(1, len(change) + 1), change, marker="o", markersize=3, label=method)
    axis.set(xlabel="from frame k to k + 1", ylabel="change (distance of features)")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
    return path


if __name__ == "__main__":
    run(main, Args)
