"""Measure instead of believing: train and sample with every combination of settings, and compare.

  python 03_ddim_schedules/ablate.py --list                                       the studies that have a name
  python 03_ddim_schedules/ablate.py samplers --data-dir data                     8 samplers x 6 numbers of steps, chapter 1's network
  python 03_ddim_schedules/ablate.py losses                                       trains what it needs, on the embedded digits
  python 03_ddim_schedules/ablate.py losses data=mnist n=500 --data-dir data      a named study with other settings
  python 03_ddim_schedules/ablate.py schedule=linear,cosine sampler=ddim:20,dpmpp_2m:20 seed=0,1,2
  python 03_ddim_schedules/ablate.py samplers sampler=ddim steps=5,10,20,50,100,200,500,1000 --model runs/01_ddpm_mnist/mnist

Everything done is kept: stopped and started again, a study goes on; two studies share what they have in common.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from common.cli import run, writable_folder
from common.errors import UserError

OF_MNIST = Path(__file__).parents[1] / "01_ddpm_mnist" / "pretrained"  # chapter 1's network
OF_DIGITS = Path(__file__).parent / "pretrained"                        # a smaller one, of the embedded digits


@dataclass(frozen=True)
class Args:
    what: Positional[tuple[str, ...]] = ()
    """A study's name, or what to vary as key=value,value ..., or both."""
    list: bool = False
    """Print the studies that have a name, and everything that can be varied."""
    dry: bool = False
    """Only say what would be done, and about how long it would take."""
    model: Path | None = None
    """A trained network: a run folder or any diffusers folder (compared with MNIST, or say data=...). Without it, networks are trained."""
    measure: Literal["frechet", "kid", "brightness", "contrast", "sharpness", "saturation"] | None = None
    """What the table and the plot show; the CSV holds everything."""
    data_dir: Path = Path("data")
    """Where local copies of data are looked for, and where downloads go."""
    out: Path | None = None
    """Where results.csv and the pictures go; by default runs/03_ddim_schedules/<study>."""
    lab: Path = Path("runs/03_ddim_schedules/lab")
    """Where trained networks and measured cells are kept."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Of training, as in chapter 1."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def plan(args: Args):
    """(study, axes, cells) from the words of the command line."""
    from ddim_schedules.experiment import Cell, Sampling, Training, grid, read_axes
    from ddim_schedules.studies import STUDIES, Study

    words = list(args.what)
    name = words.pop(0) if words and "=" not in words[0] else "study"
    if name != "study" and name not in STUDIES:
        raise UserError(f"there is no study '{name}'; choose one of {', '.join(STUDIES)}, or write key=value,value")
    if name == "study" and not words:
        raise UserError(f"name what to measure: one of {', '.join(STUDIES)}, or key=value,value (e.g. sampler=ddim,heun steps=10,20)")
    study = STUDIES.get(name, Study("", ()))
    axes = read_axes(study.vary) | read_axes(words)
    training = Training(model=str(args.model), data="mnist") if args.model else pretrained(args.data_dir) if study.pretrained else Training()
    return replace(study, measure=args.measure or study.measure), name, axes, grid(axes, Cell(training, Sampling()))


def pretrained(data_dir: Path):
    """Chapter 1's network where MNIST is there to compare with, else this chapter's."""
    from common.data.sources.torchvision_datasets import find_mnist
    from ddim_schedules.experiment import Training

    if find_mnist(data_dir, "MNIST", "test"):
        return Training(model=str(OF_MNIST), data="mnist")
    print(f"no MNIST in {data_dir} to compare with (--data-dir): the network trained on the embedded digits is measured instead of chapter 1's")
    return Training(model=str(OF_DIGITS), data="digits")


def main(args: Args) -> None:
    if args.list:
        print_studies()
    else:
        measure(args)


def measure(args: Args) -> None:
    study, name, axes, cells = plan(args)
    out = writable_folder(args.out or Path("runs/03_ddim_schedules") / name)

    from tqdm import tqdm

    from ddim_schedules.runner import Laboratory

    lab = Laboratory(args.lab, args.data_dir, args.device, args.precision)
    refuse_early(lab, cells)
    if study.question:
        print(study.question)
    work = forecast(lab, cells)
    if args.dry:
        return
    rows = []
    with tqdm(total=round(work), unit="image", unit_scale=True, mininterval=1, dynamic_ncols=True, disable=work == 0) as bar:
        for cell in cells:
            bar.set_postfix_str(" ".join(str(cell.value(key)) for key in axes if len(axes[key]) > 1))
            rows.append(lab.result(cell, bar.update))
            save_rows(rows, out / "results.csv")  # after every cell: whoever stops here has all that was measured
    show(lab, study, axes, cells, rows, out)


def refuse_early(lab, cells) -> None:
    """What cannot be sampled is said now, not after hours of training."""
    import torch

    from common.diffusion.diffusers_scheduler import check_pair
    from common.diffusion.losses import check_loss
    from common.diffusion.sampler_spec import Sampler
    from common.diffusion.schedules import make_schedule
    from common.evaluate.evaluator import MIN_SAMPLES, check
    from common.models.model_folder import load_model
    from common.models.unet import small_unet

    for model, steps in {(cell.training.model, cell.sampling.steps) for cell in cells if cell.training.model}:
        load_model(Path(model)).schedule.noise_levels(steps)
    for cell in cells:
        training, sampling = cell.training, cell.sampling
        if sampling.sampler != "ddpm_naive":
            Sampler.parse(sampling.text)
        if sampling.clip not in ("static", "none", "dynamic"):
            raise UserError(f"clip={sampling.clip}: choose static, none or dynamic")
        if training.model:
            continue
        check_pair(training.schedule, training.prediction)
        check_loss(training.loss, training.weight)
        if training.optimizer not in ("adamw", "sgd", "adamw-sgd"):
            raise UserError(f"optimizer={training.optimizer}: choose adamw, sgd or adamw-sgd")
        make_schedule(training.schedule).noise_levels(sampling.steps)
        small_unet(training.size, lab.data(training.data).channels, tuple(map(int, training.channels.split("-"))), training.layers)
    for data, n in {(cell.training.data, cell.sampling.n) for cell in cells}:
        check(torch.zeros(min(n, MIN_SAMPLES), 1, 8, 8), lab.data(data, "test"), lab.data(data))


def forecast(lab, cells) -> float:
    """Say beforehand what it will cost. Returns the work that is left, in images through the network."""
    from ddim_schedules.experiment import key_of

    todo = [cell for cell in cells if lab.kept(cell) is None]
    trainings = {key_of(cell.training): cell.training for cell in todo if not lab.is_trained(cell.training)}
    alike = {}  # seconds per image depend on the network's shape alone
    seconds = 0.0
    for training in {cell.training for cell in todo}:
        mine = [cell for cell in todo if cell.training == training]
        shape = (training.model, training.data, training.size, training.channels, training.layers)
        alike[shape] = alike.get(shape) or lab.seconds_per_image(training)
        seconds += lab.work(mine) * alike[shape] + JUDGING * len(mine)
    long = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    print(f"{len(cells)} cells, {len(cells) - len(todo)} of them known; {len(trainings)} networks to train; about {long} on this machine")
    return lab.work(cells)


JUDGING = 1.5  # seconds that the evaluator takes for a cell


def save_rows(rows, path: Path) -> None:
    """results.csv: every setting and every measure of every cell."""
    import csv
    import io

    from common.io.files import write_atomically

    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def show(lab, study, axes, cells, rows, out: Path) -> None:
    from ddim_schedules import plots

    keys = plots.varied(axes, cells)
    lines = plots.table(rows, keys, study.measure)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    print(f"\n{study.measure}, mean ± error ({'one deviation over seeds' if len(rows) > len(plots.unique(plots.name_of(r, keys) for r in rows)) else 'bootstrap'})")
    for line in lines:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)))
    floor = next((row for row in rows if not row["diverged"]), None)
    if floor:
        print(f"as many real images: Frechet distance {floor['frechet_real']:.3g} ± {floor['frechet_real_sd']:.2g} (the floor)"
              + (f", {study.measure} {floor[f'{study.measure}_real']:.3g}" if f"{study.measure}_real" in floor and study.measure != "frechet" else ""))  # fmt: skip
        print(f"\nplot    {plots.plot(rows, keys, study.measure, out / 'plot.png')}")
    print(f"images  {plots.sample_grid(cells, rows, keys, lab.pictures, out / 'grid.png')}")
    print(f"table   {out / 'results.csv'}")


def print_studies() -> None:
    from ddim_schedules.experiment import TYPES
    from ddim_schedules.studies import STUDIES

    for name, study in STUDIES.items():
        print(f"{name:12} {study.question}\n{'':12} {' '.join(study.vary)}")
    print(f"\nWhat can be varied: {', '.join(TYPES)}")


if __name__ == "__main__":
    run(main, Args)
