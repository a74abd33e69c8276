"""The runner of experiments: train (or load) the network, sample, and measure the images. Everything is cached in a
folder under a key made of the settings, so a study that was stopped continues,
and studies share what they have in common.

    runner = Runner(Path("runs/03_ddim_schedules/lab"))
    runner.result(experiment)  ->  {"frechet": 3.1, "frechet_sd": 0.4, "frechet_real": 0.9, "brightness": 0.13, ...}
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from common.cli import pick_device, pick_precision
from common.data import Images, load
from common.diffusion.diffusers_scheduler import check_pair
from common.diffusion.losses import check_loss, diffusion_loss
from common.diffusion.schedules import Schedule, make_schedule
from common.errors import UserError
from common.evaluate.evaluator import Evaluator, check
from common.io.files import read_json, write_atomically, write_json
from common.io.pixels import to_bytes, to_float
from common.models.dit import DiT
from common.models.model_folder import Model, load_model, save_model
from common.models.unet import UNet
from common.random import BatchRandom
from common.training.logging import logged
from common.training.loop import Loss, LossTerms, TrainConfig, train
from common.training.optimization import Diverged
from ddim_schedules.experiment import Experiment, TrainingSettings, short_hash, training_key
from ddim_schedules.networks import new_network, sample_batch

SAMPLE_BATCH = 64  # images sampled at a time
CACHED_IMAGES = 16  # images kept for each experiment
DISTANCES = ("frechet", "frechet_sd", "frechet_real", "frechet_real_sd", "kid", "kid_sd")  # of the evaluator's report
OnProgress = Callable[[float], object]  # called with the work that was done, in images that went through the network


def ignore(work: float) -> None:
    """The OnProgress of a caller that shows no progress."""


@dataclass
class Runner:
    folder: Path  # the cache
    data_dir: Path = Path("data")
    device: str = "auto"
    precision: str = "auto"
    datasets: dict[tuple[str, str], Images] = field(default_factory=dict)
    evaluators: dict[tuple[str, int, int], Evaluator] = field(default_factory=dict)

    @cached_property
    def accelerator(self) -> Accelerator:
        device = pick_device(self.device)
        return Accelerator(mixed_precision=pick_precision(self.precision, device), cpu=device == "cpu")

    def data(self, name: str, split: str = "train") -> Images:
        if (name, split) not in self.datasets:
            self.datasets[name, split] = load(name, data_dir=self.data_dir, split=split)
        return self.datasets[name, split]

    # ------------------------------------------------------------------------------------------------------ training

    def run_dir(self, training: TrainingSettings) -> Path:
        return self.folder / "trained" / training_key(training)

    def is_trained(self, training: TrainingSettings) -> bool:
        return bool(training.model) or (self.run_dir(training) / "done.json").exists()

    def trained_model(
        self, training: TrainingSettings, ema: bool = True, on_progress: OnProgress = ignore
    ) -> Model | None:
        """The trained network, or None if its training diverged. If it is not trained yet, it is trained first.

        ema: the averaged weights, or the last ones
        """
        if training.model:
            if not ema:
                raise UserError("ema=no needs a network of this study: a model folder holds one set of weights")
            return load_model(Path(training.model), self.accelerator.device)
        if not self.is_trained(training):
            self.train(training, on_progress)
        run_dir = self.run_dir(training)
        if read_json(run_dir / "done.json").get("diverged"):
            return None
        return load_model(run_dir / ("ema" if ema else "raw"), self.accelerator.device)

    def train(self, training: TrainingSettings, on_progress: OnProgress = ignore) -> None:
        """Train, or resume an interrupted training, and save the averaged and the last weights."""
        check_pair(training.schedule, training.prediction)
        check_loss(training.loss, training.weight)
        run_dir, schedule = self.run_dir(training), make_schedule(training.schedule)
        write_json(run_dir / "config.json", asdict(training))
        data = self.data(training.data).resized(training.size)
        net = self.initial_network(training, data, on_progress)
        steps, minutes = (None, training.minutes) if training.minutes else (training.train_steps, None)
        cfg = TrainConfig(run_dir, steps, minutes, batch_size=training.batch_size, seed=training.seed)
        cfg = replace(cfg, optimizer=training.optimizer.removeprefix("adamw-"), lr=training.lr)
        states = train(net, data, make_loss(training, schedule), cfg, self.accelerator, resume=True)
        diverged = ""
        try:
            for state in logged(states, run_dir, steps, quiet=True):
                on_progress(3 * training.batch_size)
                if state.progress >= training.stop:
                    break
        except Diverged as problem:
            diverged = str(problem)
        # Ctrl-C: the checkpoint is written, and the next study resumes from it
        if not diverged and state.progress < training.stop:
            raise KeyboardInterrupt
        if not diverged:
            save_model(run_dir / "ema", Model(state.ema, schedule, training.prediction, True))
            save_model(run_dir / "raw", Model(net, schedule, training.prediction, True))
        write_json(run_dir / "done.json", {"diverged": diverged})
        for checkpoint in (run_dir / "checkpoints").glob("*.pt"):
            checkpoint.unlink()

    def initial_network(self, training: TrainingSettings, data: Images, on_progress: OnProgress) -> UNet | DiT:
        """A network with the weights that the training starts from: new ones, or for adamw-sgd those of AdamW."""
        torch.manual_seed(training.seed)
        net = new_network(training, data.channels)
        if training.optimizer == "adamw-sgd":
            first = replace(training, optimizer="adamw", lr=TrainingSettings.lr)
            net.load_state_dict(self.trained_model(first, ema=False, on_progress=on_progress).net.state_dict())
        return net

    # ------------------------------------------------------------------------------------------- sampling, measuring

    def sample(self, experiment: Experiment, on_progress: OnProgress = ignore) -> Tensor | None:
        """The images of an experiment, (n, C, S, S) on the CPU, or None if its training diverged."""
        sampling = experiment.sampling
        model = self.trained_model(experiment.training, sampling.ema, on_progress)
        if model is None:
            return None
        batches = []
        for first in range(0, sampling.n, SAMPLE_BATCH):
            count = min(SAMPLE_BATCH, sampling.n - first)
            for step in sample_batch(sampling, model, first, count, self.accelerator.device):  # noqa: B007 - used below
                on_progress(count * sampling.evaluations / sampling.steps)
            batches.append(step.x.cpu())
        return torch.cat(batches)

    def result(self, experiment: Experiment, on_progress: OnProgress = ignore) -> dict[str, Any]:
        """The settings and measures of an experiment, from the cache if they are there."""
        measures = self.cached_measures(experiment)
        if measures is None:
            measures = self.measure(experiment, on_progress)
            write_json(self.result_file(experiment), experiment.settings() | measures)
        return experiment.settings() | measures

    def measure(self, experiment: Experiment, on_progress: OnProgress = ignore) -> dict[str, Any]:
        """Sample and compare with real images. The first images are written beside the result."""
        start = time.perf_counter()
        images = self.sample(experiment, on_progress)
        seconds = time.perf_counter() - start
        if images is None or not images.isfinite().all():
            return {"diverged": True}
        first = to_bytes(images[:CACHED_IMAGES]).numpy()
        write_atomically(self.images_file(experiment), lambda file: np.save(file, first))
        report = self.evaluator(experiment.training.data, images)(images)._asdict()
        distances = {name: report[name] for name in DISTANCES}
        real = to_float(self.data(experiment.training.data, "test").resized(images.shape[-1]).pixels)
        statistics = image_statistics(images)
        statistics |= {f"{name}_real": value for name, value in image_statistics(real).items()}
        cost = {"evaluations": experiment.sampling.evaluations, "seconds": round(seconds, 2)}
        return distances | statistics | cost | {"diverged": False}

    def evaluator(self, data: str, images: Tensor) -> Evaluator:
        """The evaluator for as many images of this size, against the test images of a data set."""
        reference, real = self.data(data, "test"), self.data(data)
        n, _ = check(images, reference, real)
        key = (data, images.shape[-1], n)
        if key not in self.evaluators:
            self.evaluators[key] = Evaluator(reference, real, images.shape[-1], n)
        return self.evaluators[key]

    # ----------------------------------------------------------------------------------------------------- the cache

    def result_file(self, experiment: Experiment) -> Path:
        key = [training_key(experiment.training), experiment.training.data, asdict(experiment.sampling)]
        return self.folder / "cells" / f"{short_hash(key)}.json"

    def images_file(self, experiment: Experiment) -> Path:
        return self.result_file(experiment).with_suffix(".npy")

    def cached_measures(self, experiment: Experiment) -> dict[str, Any] | None:
        path = self.result_file(experiment)
        if not path.exists():
            return None
        return {key: value for key, value in read_json(path).items() if key not in experiment.settings()}

    def cached_images(self, experiment: Experiment) -> Tensor | None:
        """The first images of an experiment that was measured, (CACHED_IMAGES, C, S, S) in [-1, 1]."""
        path = self.images_file(experiment)
        return to_float(torch.from_numpy(np.load(path))) if path.exists() else None

    # ------------------------------------------------------------------------------------------- estimating the cost

    def remaining_work(self, experiments: list[Experiment]) -> float:
        """Images that must still go through the network; in a training step each image counts as three."""
        missing = [experiment for experiment in experiments if self.cached_measures(experiment) is None]
        trainings = self.missing_trainings(experiments)
        work = sum(self.training_work(training) for training in trainings)
        return work + sum(experiment.sampling.n * experiment.sampling.evaluations for experiment in missing)

    def training_work(self, training: TrainingSettings) -> float:
        """Images that a training sends through the network, each counted three times; about, for a budget in minutes."""
        if training.minutes:
            return training.stop * 60 * training.minutes / self.seconds_per_image(training)
        times = 2 if training.optimizer == "adamw-sgd" else 1
        return times * training.stop * 3 * training.batch_size * training.train_steps

    def missing_trainings(self, experiments: list[Experiment]) -> list[TrainingSettings]:
        """The networks that must still be trained."""
        missing = [experiment.training for experiment in experiments if self.cached_measures(experiment) is None]
        return [training for training in dict.fromkeys(missing) if not self.is_trained(training)]

    def seconds_per_image(self, training: TrainingSettings) -> float:
        """Time of one image through the network: that of a batch, the faster of two."""
        if training.model:
            net = load_model(Path(training.model), self.accelerator.device).net
        else:
            net = new_network(training, self.data(training.data).channels).to(self.accelerator.device).eval()
        device, cfg, seconds = self.accelerator.device, net.cfg, []
        label = {"label": torch.zeros(SAMPLE_BATCH, dtype=torch.long, device=device)} if cfg.classes else {}
        x = torch.randn(SAMPLE_BATCH, cfg.in_channels, cfg.size, cfg.size, device=device)
        with torch.no_grad():
            for _ in range(3):
                start = time.perf_counter()
                net(x, torch.zeros(SAMPLE_BATCH, device=device), **label).sum().item()
                seconds.append(time.perf_counter() - start)
        return min(seconds[1:]) / SAMPLE_BATCH  # the first is slower: memory is allocated


def make_loss(training: TrainingSettings, schedule: Schedule) -> Loss:
    """The loss of a training, with a stratified noise level for each image."""

    def loss(net: torch.nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> LossTerms:
        x0 = batch["image"]
        u, eps = random.stratified(len(x0)), random.randn(x0.shape)
        each = diffusion_loss(net, schedule, training.prediction, x0, u, eps, training.loss, training.weight)
        return LossTerms(each, u)

    return loss


def image_statistics(images: Tensor) -> dict[str, float]:
    """Brightness, contrast, sharpness and saturation of images (N, C, S, S) in [-1, 1]; each is between 0 and 1."""
    values = (images.clamp(-1, 1) + 1) / 2
    horizontal, vertical = values.diff(dim=-1).abs().mean(), values.diff(dim=-2).abs().mean()
    saturation = (values.amax(1) - values.amin(1)).mean() if images.shape[1] == 3 else torch.tensor(0.0)
    return {
        "brightness": float(values.mean()),                      # mean value
        "contrast": float(values.flatten(1).std(1).mean()),      # standard deviation within an image
        "sharpness": float((horizontal + vertical) / 2),         # difference of neighbouring pixels
        "saturation": float(saturation),                         # largest minus smallest of a pixel's colours
    }  # fmt: skip
