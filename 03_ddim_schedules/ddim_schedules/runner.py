"""Where cells are computed: train (or open) the network, draw the pictures, judge them. Whatever is done is kept in a folder
under a name made of its settings, so that a study that was stopped goes on, and two studies share what they have in common.

    lab = Laboratory(Path("runs/03_ddim_schedules/lab"))
    lab.result(cell)  ->  {"frechet": 3.1, "frechet_sd": 0.4, "frechet_real": 0.9, "brightness": 0.13, ...}
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from common.cli import pick_device, pick_precision
from common.data import Images, load
from common.diffusion.denoiser import Denoiser
from common.diffusion.diffusers_scheduler import check_pair
from common.diffusion.losses import check_loss, diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import Step, initial_noise
from common.diffusion.schedules import DiscreteSchedule, Schedule, make_schedule
from common.errors import UserError
from common.evaluate.evaluator import Evaluator, check
from common.io.files import read_json, write_atomically, write_json
from common.io.pixels import to_bytes, to_float
from common.models.model_folder import Model, load_model, save_model
from common.models.unet import UNet, small_unet, zero_init
from common.random import Noise
from common.training.logging import logged
from common.training.loop import LossTerms, TrainConfig, train
from ddim_schedules import solvers
from ddim_schedules.experiment import Cell, Sampling, Training, key_of, short_hash

BATCH = 64   # pictures drawn at a time
SHOWN = 16   # pictures kept of each cell
Tick = Callable[[float], None]  # told of work done, in images that went through the network


@dataclass
class Laboratory:
    folder: Path
    data_dir: Path = Path("data")
    device: str = "auto"
    precision: str = "auto"
    datasets: dict = field(default_factory=dict)
    judges: dict = field(default_factory=dict)

    @cached_property
    def accelerator(self) -> Accelerator:
        device = pick_device(self.device)
        return Accelerator(mixed_precision=pick_precision(self.precision, device), cpu=device == "cpu")

    # ------------------------------------------------------------------------------------------------ data and judges

    def data(self, name: str, split: str = "train") -> Images:
        if (name, split) not in self.datasets:
            self.datasets[name, split] = load(name, data_dir=self.data_dir, split=split)
        return self.datasets[name, split]

    def judge(self, name: str, samples: Tensor) -> Evaluator:
        reference, real = self.data(name, "test"), self.data(name)
        n, _ = check(samples, reference, real)
        which = (name, samples.shape[-1], n)
        if which not in self.judges:
            self.judges[which] = Evaluator(reference, real, samples.shape[-1], n)
        return self.judges[which]

    # ------------------------------------------------------------------------------------------------------ networks

    def place(self, training: Training) -> Path:
        return self.folder / "trained" / key_of(training)

    def is_trained(self, training: Training) -> bool:
        return bool(training.model) or (self.place(training) / "done.json").exists()

    def network(self, training: Training, ema: bool = True, tick: Tick = lambda work: None) -> Model | None:
        """The trained network; None where its training diverged. Trains it, or goes on training it, if that is not done."""
        if training.model:
            if not ema:
                raise UserError("ema=no needs a network that this study trains: a model folder holds one set of weights")
            return load_model(Path(training.model), self.accelerator.device)
        if not self.is_trained(training):
            self.train(training, tick)
        if read_json(self.place(training) / "done.json").get("diverged"):
            return None
        return load_model(self.place(training) / ("ema" if ema else "raw"), self.accelerator.device)

    def train(self, training: Training, tick: Tick) -> None:
        """The course's training loop with the cell's settings. Saves the averaged and the last weights."""
        check_pair(training.schedule, training.prediction)
        check_loss(training.loss, training.weight)
        folder, schedule = self.place(training), make_schedule(training.schedule)
        write_json(folder / "config.json", asdict(training))
        data = self.data(training.data).resized(training.size)
        net, optimizer, lr = self.beginning(training, data, tick)
        cfg = TrainConfig(folder, steps=training.train_steps, batch_size=training.batch_size, lr=lr, optimizer=optimizer, seed=training.seed)
        states = train(net, data, make_loss(training, schedule), cfg, self.accelerator, resume=True)
        diverged, raw = "", net
        try:
            for state in logged(states, folder, training.train_steps, quiet=True):  # noqa: B007 - the last one is needed below
                tick(3 * training.batch_size)
        except UserError as problem:
            if "the loss is" not in str(problem):
                raise
            diverged = str(problem)
        if not diverged and state.progress < 1:  # Ctrl-C: its checkpoint is written, and the next study goes on from there
            raise KeyboardInterrupt
        if not diverged:
            save_model(folder / "ema", Model(state.ema, schedule, training.prediction, True))
            save_model(folder / "raw", Model(raw, schedule, training.prediction, True))
        write_json(folder / "done.json", {"diverged": diverged})
        for checkpoint in (folder / "checkpoints").glob("*.pt"):
            checkpoint.unlink()

    def beginning(self, training: Training, data: Images, tick: Tick) -> tuple[UNet, str, float]:
        """(network, optimizer, learning rate) to begin with."""
        widths = tuple(int(width) for width in training.channels.split("-"))
        out = 2 * data.channels if training.learned_variance else None
        torch.manual_seed(training.seed)
        net = zero_init(UNet(small_unet(training.size, data.channels, widths, training.layers, out=out)))
        if training.optimizer != "adamw-sgd":
            return net, training.optimizer, training.lr
        before = self.network(replace(training, optimizer="adamw", lr=Training.lr), ema=False, tick=tick)
        net.load_state_dict(before.net.state_dict())
        return net, "sgd", training.lr

    # ------------------------------------------------------------------------------------------------------ pictures

    def draw(self, cell: Cell, tick: Tick = lambda work: None) -> Tensor | None:
        """cell.sampling.n pictures, (n, C, S, S) on the CPU; None where there is no network to draw them."""
        sampling, model = cell.sampling, self.network(cell.training, cell.sampling.ema, tick)
        if model is None:
            return None
        clip = {"static": True, "none": False, "dynamic": "dynamic"}[sampling.clip]
        size, channels, device = model.net.cfg.size, model.net.cfg.in_channels, self.accelerator.device
        pictures = []
        for first in range(0, sampling.n, BATCH):
            count = min(BATCH, sampling.n - first)
            label = {"label": torch.arange(first, first + count, device=device) % model.net.cfg.classes} if model.net.cfg.classes else {}
            denoise = Denoiser(model.net, model.prediction, clip, **label)
            seeds, shape = (sampling.noise_seed, first), (count, channels, size, size)
            for step in run(sampling, denoise, model.schedule, shape, seeds, device):
                tick(count * evaluations(sampling) / sampling.steps)
                last = step.x
            pictures.append(last.cpu())
        return torch.cat(pictures)

    def result(self, cell: Cell, tick: Tick = lambda work: None) -> dict:
        """What is measured about a cell, from the folder if it is there."""
        kept = self.kept(cell)
        if kept is None:
            kept = self.measure(cell, tick)
            write_json(self.cell_file(cell), cell.flat() | kept)
        return cell.flat() | kept

    def measure(self, cell: Cell, tick: Tick) -> dict:
        began = time.perf_counter()
        pictures = self.draw(cell, tick)
        seconds = time.perf_counter() - began
        if pictures is None or not pictures.isfinite().all():
            return {"diverged": True}
        keep = to_bytes(pictures[:SHOWN]).numpy()
        write_atomically(self.cell_file(cell).with_suffix(".npy"), lambda file: np.save(file, keep))
        report = self.judge(cell.training.data, pictures)(pictures)
        seen = {"frechet": report.frechet, "frechet_sd": report.frechet_sd, "frechet_real": report.frechet_real,
                "frechet_real_sd": report.frechet_real_sd, "kid": report.kid, "kid_sd": report.kid_sd}  # fmt: skip
        real = to_float(self.data(cell.training.data, "test").resized(pictures.shape[-1]).pixels)
        looks = look_of(pictures) | {f"{name}_real": value for name, value in look_of(real).items()}
        return seen | looks | {"evaluations": evaluations(cell.sampling), "seconds": round(seconds, 2), "diverged": False}

    def cell_file(self, cell: Cell) -> Path:
        """Its name says what network it is, by its files if it is a model folder."""
        return self.folder / "cells" / f"{short_hash([key_of(cell.training), cell.training.data, asdict(cell.sampling)])}.json"

    def kept(self, cell: Cell) -> dict | None:
        path = self.cell_file(cell)
        if not path.exists():
            return None
        return {key: value for key, value in read_json(path).items() if key not in cell.flat()}

    def pictures(self, cell: Cell) -> Tensor | None:
        """The first pictures of a cell that is done, in [-1, 1]."""
        path = self.cell_file(cell).with_suffix(".npy")
        return to_float(torch.from_numpy(np.load(path))) if path.exists() else None

    # ------------------------------------------------------------------------------------------------------ the forecast

    def work(self, cells: list[Cell]) -> float:
        """Images that must go through the network to do what is not done; a training step counts threefold."""
        todo = [cell for cell in cells if self.kept(cell) is None]
        trainings = {key_of(cell.training): cell.training for cell in todo if not self.is_trained(cell.training)}
        stages = {"adamw-sgd": 2}
        training = sum(3 * t.batch_size * t.train_steps * stages.get(t.optimizer, 1) for t in trainings.values())
        return training + sum(cell.sampling.n * evaluations(cell.sampling) for cell in todo)

    def seconds_per_image(self, training: Training) -> float:
        """One image through the network, timed on a batch; the better of two."""
        if training.model:
            net = load_model(Path(training.model), self.accelerator.device).net
        else:
            data = self.data(training.data)
            net = UNet(small_unet(training.size, data.channels, tuple(int(w) for w in training.channels.split("-")), training.layers))
            net = net.to(self.accelerator.device).eval()
        label = {"label": torch.zeros(BATCH, dtype=torch.long, device=self.accelerator.device)} if net.cfg.classes else {}
        x = torch.randn(BATCH, net.cfg.in_channels, net.cfg.size, net.cfg.size, device=self.accelerator.device)
        took = []
        with torch.no_grad():
            for _ in range(3):
                began = time.perf_counter()
                net(x, torch.zeros(BATCH, device=x.device), **label).sum().item()
                took.append(time.perf_counter() - began)
        return min(took[1:]) / BATCH


def make_loss(training: Training, schedule: Schedule):
    def loss(net, batch: dict[str, Tensor], draw) -> LossTerms:
        x0 = batch["image"]
        u, eps = draw.stratified(len(x0)), draw.randn(x0.shape)
        return LossTerms(diffusion_loss(net, schedule, training.prediction, x0, u, eps, training.loss, training.weight), u)

    return loss


def evaluations(sampling: Sampling) -> int:
    """How often the network is asked for one picture."""
    return sampling.steps if sampling.sampler == "ddpm_naive" else Sampler.parse(sampling.text).evaluations


def run(sampling: Sampling, denoise: Denoiser, schedule: Schedule, shape, seeds, device) -> Iterator[Step]:
    """common's samplers, and this chapter's mistake."""
    if sampling.sampler != "ddpm_naive":
        return Sampler.parse(sampling.text).run(denoise, schedule, shape, *seeds, device=device)
    if not isinstance(schedule, DiscreteSchedule):
        raise UserError(f"ddpm_naive needs a discrete-time schedule, which '{schedule.name}' is not")
    return naive(sampling, denoise, schedule, shape, Noise(*seeds), device)


def naive(sampling: Sampling, denoise: Denoiser, schedule: DiscreteSchedule, shape, noise: Noise, device) -> Iterator[Step]:
    """solvers.ddpm_naive, for networks that predict anything: they are asked for eps."""
    path = schedule.noise_levels(sampling.steps)
    tau, levels = [int(level.time) + 1 for level in path], iter(path)

    def eps_model(x: Tensor, _: Tensor) -> Tensor:
        """Asked once at each level of the path: its numbers need not be read back from the device."""
        return denoise(x, next(levels)).eps

    steps = solvers.ddpm_naive(eps_model, initial_noise(path, shape, noise, device), schedule.alpha_bar, tau, noise)
    yield from (Step(x, x, i) for i, x in enumerate(steps))


def look_of(pictures: Tensor) -> dict[str, float]:
    """What the eye calls bright, contrasty, sharp, colourful; each a mean over the pictures, values counted from 0 to 1."""
    grey = ((pictures.clamp(-1, 1) + 1) / 2)
    across, down = grey.diff(dim=-1).abs().mean(), grey.diff(dim=-2).abs().mean()
    saturation = (grey.amax(1) - grey.amin(1)).mean() if pictures.shape[1] == 3 else torch.tensor(0.0)
    return {"brightness": float(grey.mean()), "contrast": float(grey.flatten(1).std(1).mean()),
            "sharpness": float((across + down) / 2), "saturation": float(saturation)}  # fmt: skip
