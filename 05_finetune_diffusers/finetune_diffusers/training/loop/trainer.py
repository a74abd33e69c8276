"""The training loop of this chapter, on accelerate.

    trainer = Tuner(unet, data, loss, args, accelerator)
    for state in trainer.run(): ...           a State after every optimizer step
    with trainer.averaged(): ...              within, the network holds the averaged weights

As in common/training/loop.py everything random in step k is a function of (seed, k), so a resumed run is bit-equal to
one that never stopped. A subclass says where batch k comes from;
the programs differ in what they train and on what, not in how.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import UserError, enough_memory, explain
from common.io.files import read_json, write_json
from common.io.state_dict import check_shapes, count_parameters
from common.random import DROPOUT, BatchRandom, batch_indices, generator
from common.training.budget import Budget
from common.training.logging import Due, logged
from common.training.loop import Data, Loss, LossTerms, State
from common.training.optimization import check_finite
from common.training.record import keep_settings
from common.viz import save_picture
from finetune_diffusers.data.latent_dataset import Bucketed
from finetune_diffusers.training.flags import TrainerFlags, Training, TuningFlags
from finetune_diffusers.training.loop.checkpoints import Progress, load_state, save_state, saved_states
from finetune_diffusers.training.loop.memory_usage import WATCHED, Cost, total

TRAINED = "trained.safetensors"
RATES = {"constant": "constant_with_warmup", "cosine": "cosine", "linear": "linear"}  # our names -> those of diffusers


def same_folder(args: Training) -> Training:
    """The run folder in all processes: the main process chose a free one first."""
    return replace(args, out=Path(broadcast_object_list([str(args.out)])[0]))


def tracker(args: TrainerFlags) -> str | None:
    """The tracker that accelerate is to keep (its argument log_with). TensorBoard's file is written by `logged`."""
    return "wandb" if args.report_to == "wandb" else None


class Trainer(ABC):
    """A network, its optimizer and the average of its weights, and how far they have come.

    net      parameters that require a gradient are trained and averaged
    loss     (net, batch, random numbers) -> per-sample losses
    args     settled: steps, out and the learning rate are known
    lower    what to lower where memory is short, for an error message
    """

    def __init__(self, net: nn.Module, loss: Loss, args: TrainerFlags, accelerator: Accelerator, lower: str):
        self.net, self.loss, self.args, self.accelerator, self.lower = net, loss, args, accelerator, lower
        self.progress = Progress()
        self.weights = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
        self.cost = Cost(trained=sum(p.numel() for p in self.weights.values()), weights=count_parameters(net))

    def prepare(
        self, optimizer: torch.optim.Optimizer, lr_schedule: str, warmup: float, ema_power: float, *loaders: Any
    ) -> list[Any]:
        """Hand everything to accelerate, and load the newest checkpoint where the run is resumed.
        Returns the prepared loaders.
        """
        args, accelerator = self.args, self.accelerator
        rises = round(warmup * args.steps)
        # not prepared: it would step once a process
        self.rates = get_scheduler(lr_schedule, optimizer, num_warmup_steps=rises, num_training_steps=args.steps)
        # without an average nothing is allocated for it
        self.ema = None
        if args.ema:
            self.ema = EMAModel(self.weights.values(), args.ema, use_ema_warmup=True, power=ema_power, foreach=True)
        self.net, self.optimizer, *prepared = accelerator.prepare(self.net.to(accelerator.device), optimizer, *loaders)
        kept = (self.rates, self.ema, self.progress)
        accelerator.register_for_checkpointing(*(part for part in kept if part is not None))
        if args.resume:
            load_state(accelerator, args.out)
        if self.ema:
            self.ema.to(accelerator.device)
        return prepared

    @abstractmethod
    def batch(self, k: int) -> dict[str, Tensor]:
        """Batch k of this process, on its device. Called for k, k + 1, ... from where the run stands."""

    def run(self) -> Iterator[State]:
        """Train to the last step, or to a signal (Ctrl-C, SIGTERM), yielding a State after every step."""
        try:
            yield from self._steps()
        finally:
            self.accelerator.end_training()  # a process that ends while its group still listens may abort instead

    def _steps(self) -> Iterator[State]:
        args, progress, accelerator = self.args, self.progress, self.accelerator
        budget = Budget(args.steps, None, progress.seconds, accelerator)
        with budget.stop_on_signals(), enough_memory(str(accelerator.device), self.lower):
            for watched in range(args.steps - progress.step):
                began, lr = time.perf_counter(), self.rates.get_last_lr()[0]
                with self.cost.watching(watched, accelerator.device):
                    losses, norm = self._optimizer_step()
                if watched < WATCHED:
                    averages = self.ema.shadow_params if self.ema else ()
                    self.cost.count(self.net.parameters(), self.optimizer.optimizer, averages)
                mean = float(accelerator.reduce(losses.per_sample.mean(), "mean"))
                self.rates.step()
                if self.ema:
                    self.ema.step(self.weights.values())  # after the step, so that it does not lag
                progress.step += 1
                budget.update()
                progress.seconds = budget.seconds
                done = budget.interrupted or progress.step == args.steps
                saved = done or progress.step % args.save_every == 0
                images = args.batch_size * args.gradient_accumulation * accelerator.num_processes
                times, part = (budget.seconds, time.perf_counter() - began), progress.step / args.steps
                yield State(progress.step, mean, losses, lr, norm, images, *times, part, self.ema, saved, done)
                if saved:  # after its row of the log is written
                    save_state(accelerator, args.out, progress.step)
                if done:
                    return

    def _optimizer_step(self) -> tuple[LossTerms, float]:
        """One optimizer step: the losses of all its images, and the gradient's norm."""
        parts, norm, accelerator, args = [], 0.0, self.accelerator, self.args
        rank, world = accelerator.process_index, accelerator.num_processes
        self.net.train()
        for part in range(args.gradient_accumulation):
            k = self.progress.step * args.gradient_accumulation + part
            batch = self.batch(k)
            torch.manual_seed(generator(DROPOUT, args.seed, k, rank).initial_seed())
            # processes exchange gradients, and the optimizer steps, at the last part only
            with accelerator.accumulate(self.net):
                losses = self.loss(self.net, batch, BatchRandom(args.seed, k, rank, world, accelerator.device))
                accelerator.backward(losses.per_sample.mean())  # divides by --gradient-accumulation
                parts.append(LossTerms(losses.per_sample.detach(), losses.u))
                if accelerator.sync_gradients:
                    norm = float(accelerator.clip_grad_norm_(list(self.weights.values()), args.clip))
                    mean = float(torch.cat([part.per_sample for part in parts]).mean())
                    check_finite(
                        mean, norm, self.progress.step + 1, args.lr, lambda: saved_states(args.out), accelerator
                    )
                self.optimizer.step()
                self.cost.gradient_bytes = total(p.grad for p in self.weights.values() if p.grad is not None)
                self.optimizer.zero_grad()
        return LossTerms(*map(torch.cat, zip(*parts, strict=True))), norm

    def follow(
        self,
        program: str,  # to resume with: "05_finetune_diffusers/lora.py"
        record: dict[str, Any],  # of the images and of a frozen model, for data.json
        draw: Callable[[nn.Module], Image.Image],  # validation pictures of the averaged network
        save: Callable[[nn.Module], object] | None = None,  # writes the averaged network, at every checkpoint
        save_start: Callable[[Path], object] | None = None,  # writes what the run begins with into a folder
    ) -> State | None:
        """Run to the end. The main process keeps the settings, logs every step, saves and draws; the others only train.

        Returns the last State; None where nothing was left to do, and in the other processes.
        """
        args, state = self.args, None
        if not self.accelerator.is_main_process:
            for _ in self.run():
                pass
            return None
        keep_settings(args, record, save_start)
        due = Due(args.sample_every)
        self._start_tracker(program)
        with closing(logged(self.run(), args.out, args.steps)) as states:
            for state in states:
                if save and state.saved:
                    with self.averaged() as net:
                        save(net)
                self.accelerator.log({"loss": state.loss, "lr": state.lr, "grad_norm": state.grad_norm}, state.step)
                if due(state) and not state.done:
                    with self.averaged() as net:
                        picture = draw(net)
                    save_picture(picture, args.out / "samples" / f"step-{state.step:06d}.png")
                    for tracker in self.accelerator.trackers:
                        tracker.log_images({"validation": [picture]}, step=state.step)
        if state is not None and state.step < args.steps:
            print(f"stopped after step {state.step}; continue with: python {program} --resume {args.out}")
        return state

    def _start_tracker(self, program: str) -> None:
        """Begin a run of the tracker that --report-to names, if accelerate is to keep one."""
        if not self.accelerator.log_with:
            return
        settings = {name: str(value) for name, value in asdict(self.args).items()}
        run = {"name": self.args.out.name, "dir": str(self.args.out), "resume": "allow"}
        try:
            self.accelerator.init_trackers(program.partition("/")[0], settings, {"wandb": run})
        except Exception as problem:  # of the tracker: no account, no network
            raise UserError(
                f"--report-to {self.args.report_to} cannot begin a run ({explain(problem)}); log in with `wandb login`, "
                "or set the environment variable WANDB_MODE to offline"
            ) from problem

    def report(self, trained: bool, **measures: object) -> None:
        """Print what the training has cost, and write it to results.json with what was measured.
        trained: whether this process has made a step; otherwise what an earlier one has cost is kept.
        """
        path = self.args.out / "results.json"
        results = (read_json(path) if path.exists() else {}) | measures
        results |= {"seconds": self.progress.seconds, "steps": self.progress.step}
        if trained:
            print(f"\nmemory\n{self.cost.table()}\n")
            results["cost"] = asdict(self.cost)
        write_json(path, results)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Within this context the network holds the averaged weights, if an average is kept. Yields the network itself."""
        if self.ema is None:
            yield self.accelerator.unwrap_model(self.net)
            return
        self.ema.store(self.weights.values())
        self.ema.copy_to(self.weights.values())
        try:
            yield self.accelerator.unwrap_model(self.net)
        finally:
            self.ema.restore(self.weights.values())


class Tuner(Trainer):
    """The trainer of finetune.py, lora.py, dreambooth.py and controlnet.py. Checkpoints hold trained weights only, so
    those of a LoRA are small.

    data is encoded once and held in memory, so a batch is a function of its number. Where accelerate's users draw
    their batches from a DataLoader, the same takes a seedable sampler, skip_first_batches, and random states restored
    after the skip: see unconditional_trainer.py.
    """

    LOWER = (
        "--batch-size (raise --gradient-accumulation as much) or --size, try --checkpointing, --ema 0 or --optimizer 8bit, "
        "or train a LoRA (lora.py)"
    )

    def __init__(self, net: nn.Module, data: Data, loss: Loss, args: TuningFlags, accelerator: Accelerator):
        super().__init__(net, loss, args, accelerator, self.LOWER)
        self.data = data
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)
        self.prepare(make_optimizer(args, self.weights.values()), RATES[args.lr_schedule], args.warmup, 2 / 3)

    def batch(self, k: int) -> dict[str, Tensor]:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        size, seed = self.args.batch_size * world, self.args.seed
        bucketed = isinstance(self.data, Bucketed)
        together = self.data.indices(size, k, seed) if bucketed else batch_indices(len(self.data), size, k, seed)
        indices = together.chunk(world)[rank]
        return {name: column.to(self.accelerator.device) for name, column in self.data.batch(indices).items()}

    def _save_weights(self, models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        """Save the trained weights in place of the whole network, which accelerate would save."""
        weights.clear()
        if self.accelerator.is_main_process:
            trained = {name: weight.detach().cpu().contiguous() for name, weight in self.weights.items()}
            save_file(trained, Path(folder) / TRAINED)

    def _load_weights(self, models: list[nn.Module], folder: str) -> None:
        models.clear()
        saved = load_file(Path(folder) / TRAINED)
        check_shapes(self.weights, saved, folder)
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(saved[name])


def make_optimizer(args: TuningFlags, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of --optimizer."""
    if args.optimizer == "8bit":
        from bitsandbytes.optim import AdamW8bit  # optional; the flags are checked, so it is there

        return AdamW8bit(list(weights), args.lr)
    return torch.optim.AdamW(weights, args.lr, fused=args.optimizer == "fused")
