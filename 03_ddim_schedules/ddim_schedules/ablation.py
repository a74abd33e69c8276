"""A study from the command line to its files: read what to vary, refuse what cannot work, estimate the cost,
run every experiment and write results.csv, plot.png, grid.png and a table with intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.cli import writable_folder
from common.diffusion.denoiser import CLIP_MODES
from common.diffusion.diffusers_scheduler import check_pair
from common.diffusion.losses import check_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import make_schedule
from common.errors import UserError
from common.evaluate.evaluator import MIN_SAMPLES, check
from common.io.tables import align, write_csv
from common.models.model_folder import load_model
from ddim_schedules import plots
from ddim_schedules.experiment import TYPES, Experiment, SamplingSettings, TrainingSettings, grid, read_axes
from ddim_schedules.networks import new_network
from ddim_schedules.runner import Runner
from ddim_schedules.studies import STUDIES, NamedStudy

CHAPTER = Path(__file__).parents[1]
MNIST_MODEL = CHAPTER.parent / "01_ddpm_mnist" / "pretrained"
OPTIMIZERS = ("adamw", "sgd", "adamw-sgd")
EVALUATION_SECONDS = 1.5  # time that the evaluator takes for one experiment


@dataclass(frozen=True)
class Plan:
    """What a command line asks for."""

    name: str  # of the study, "study" if it has none
    question: str
    measure: str  # what table and plot show
    axes: dict[str, list[Any]]  # what varies: values by setting
    experiments: list[Experiment]


def read_plan(arguments: Sequence[str], model: Path | None, measure: str | None) -> Plan:
    """The plan of a command line.

    arguments  a study's name, or what to vary as key=value,value, or both
    model      the trained network to use; None for that of the study, or for networks that are trained
    measure    a column of the results; None for that of the study
    """
    named = bool(arguments) and "=" not in arguments[0]
    name, settings = (arguments[0], arguments[1:]) if named else ("study", arguments)
    if named and name not in STUDIES:
        raise UserError(f"there is no study '{name}'; choose one of {', '.join(STUDIES)}, or write key=value,value")
    if not arguments:
        raise UserError(
            f"name what to measure: one of {', '.join(STUDIES)}, "
            "or key=value,value (e.g. sampler=ddim,heun steps=10,20)"
        )
    study = STUDIES.get(name, NamedStudy("", ""))
    axes = read_axes(study.vary.split()) | read_axes(settings)
    training = TrainingSettings()
    if model or study.pretrained:
        training = TrainingSettings(model=str(model or MNIST_MODEL), data="mnist-10k")
    experiments = grid(axes, Experiment(training, SamplingSettings()))
    return Plan(name, study.question, measure or study.measure, axes, experiments)


def run_study(plan: Plan, runner: Runner, out: Path, dry: bool = False) -> None:
    """Run all experiments of a plan and write the results to the folder `out`; with `dry`, only estimate the cost."""
    writable_folder(out)
    check_experiments(plan.experiments, runner)
    if plan.question:
        print(plan.question)
    print_forecast(plan.experiments, runner)
    if dry:
        return
    work, rows = runner.remaining_work(plan.experiments), []
    varied = [key for key, values in plan.axes.items() if len(values) > 1]
    style = {"unit": "image", "unit_scale": True, "mininterval": 1, "dynamic_ncols": True}
    with tqdm(total=round(work), disable=work == 0, **style) as bar:
        for experiment in plan.experiments:
            bar.set_postfix_str(" ".join(str(experiment.value(key)) for key in varied))
            rows.append(runner.result(experiment, bar.update))
            write_csv(out / "results.csv", rows)  # after every experiment, so that an interrupted study leaves a table
    report(plan, rows, runner, out)


def check_experiments(experiments: list[Experiment], runner: Runner) -> None:
    """Refuse experiments that cannot be run before any network is trained."""
    for model, steps in {(experiment.training.model, experiment.sampling.steps) for experiment in experiments}:
        if model:
            load_model(Path(model)).schedule.noise_levels(steps)
    for experiment in experiments:
        training, sampling = experiment.training, experiment.sampling
        if sampling.sampler != "ddpm_naive":
            Sampler.parse(sampling.spec)
        if sampling.clip not in CLIP_MODES:
            raise UserError(f"clip={sampling.clip}: choose static, none or dynamic")
        if training.model:
            continue
        check_pair(training.schedule, training.prediction)
        check_loss(training.loss, training.weight)
        if training.optimizer not in OPTIMIZERS:
            raise UserError(f"optimizer={training.optimizer}: choose adamw, sgd or adamw-sgd")
        make_schedule(training.schedule).noise_levels(sampling.steps)
        channels = runner.data(training.data).channels
        with torch.device("meta"):  # the settings of the network are checked, and no memory is filled
            new_network(training, channels)
    for data, n in {(experiment.training.data, experiment.sampling.n) for experiment in experiments}:
        check(torch.zeros(min(n, MIN_SAMPLES), 1, 8, 8), runner.data(data, "test"), runner.data(data))


def print_forecast(experiments: list[Experiment], runner: Runner) -> None:
    """Print how many experiments are left and about how long they will take."""
    missing = [experiment for experiment in experiments if runner.cached_measures(experiment) is None]
    speeds: dict[tuple, float] = {}  # seconds per image; they depend on the network's shape alone
    seconds = EVALUATION_SECONDS * len(missing)
    for training in dict.fromkeys(experiment.training for experiment in missing):
        shape = (training.model, training.data, training.size, training.network, training.channels, training.layers)
        if shape not in speeds:
            speeds[shape] = runner.seconds_per_image(training)
        mine = [experiment for experiment in missing if experiment.training == training]
        seconds += speeds[shape] * runner.remaining_work(mine)
    duration = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    print(
        f"{len(experiments)} experiments, {len(experiments) - len(missing)} of them known; "
        f"{len(runner.missing_trainings(missing))} networks to train; about {duration} on this machine"
    )


def report(plan: Plan, rows: list[dict[str, Any]], runner: Runner, out: Path) -> None:
    """Print the table of a study, and write its plot and its grid of samples."""
    measure, keys = plan.measure, plots.varied(plan.axes, plan.experiments)
    several = len(rows) > len({plots.label_of(row, keys) for row in rows})
    print(f"\n{measure}, mean ± half a 95 % interval ({'over seeds' if several else 'by bootstrap over images'})")
    lines = plots.table(rows, keys, measure)
    print(align(lines, left=len(lines[0])))
    row = next((row for row in rows if not row["diverged"]), None)
    if row:
        distance = f"{row['frechet_real']:.3g} ± {plots.NORMAL * row['frechet_real_sd']:.2g}"
        floor = f"as many real images: Frechet distance {distance} (the floor)"
        has_real_value = f"{measure}_real" in row and measure != "frechet"
        print(floor + (f", {measure} {row[f'{measure}_real']:.3g}" if has_real_value else ""))
        print(f"\nplot    {plots.plot(rows, keys, measure, out / 'plot.png')}")
    print(f"images  {plots.sample_grid(plan.experiments, rows, keys, runner.cached_images, out / 'grid.png')}")
    print(f"table   {write_csv(out / f'{plan.name}.csv', plots.summaries(rows, keys, measure))}")
    print(f"        {out / 'results.csv'}, with all measures of each experiment")


def print_studies() -> None:
    """Print the named studies and all settings that can be varied."""
    for name, study in STUDIES.items():
        print(f"{name:12} {study.question}\n{'':12} {study.vary}")
    print(f"\nWhat can be varied: {', '.join(TYPES)}")
