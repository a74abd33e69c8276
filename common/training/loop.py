"""One training loop for every chapter. The chapter brings the loss; the loop brings everything else.

Everything random in step k is a function of (seed, k): see common/random.py. That is why a resumed run is bit-equal to
one that never stopped, and why two processes see what one process with the doubled batch would have seen.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from common.errors import UserError
from common.io.memory import need_for_batch
from common.io.state_dict import load_strictly
from common.random import DROPOUT, ORDER, BatchRandom, generator
from common.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class TrainConfig:
    out: Path                     # the run folder
    steps: int | None = None      # budget in optimizer steps, or
    minutes: float | None = None  # in wall-clock time; the learning rate follows whichever is given
    batch_size: int = 32               # images per step and process
    optimizer: str = "adamw"      # or "sgd"
    lr: float = 2e-3              # its peak learning rate
    slow: str | None = None       # weights whose names begin like this learn at a tenth of it
    warmup: float = 0.05          # fraction of the budget in which the rate rises
    gradient_accumulation: int = 1           # batches per optimizer step
    clip: float = 1.0             # largest norm of the gradient
    ema: float = 0.05             # half-life of the averaged weights, as a fraction of the steps done so far
    save_every: int = 500         # steps between checkpoints
    seed: int = 0


OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.9)}
SLOW = 0.1  # what a tenth is


class Diverged(UserError):
    """The loss or the gradient of a training is not finite any more."""


class Data(Protocol):
    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> dict[str, Tensor]: ...


class LossTerms(NamedTuple):
    """What a loss returns."""

    per_sample: Tensor  # (B,) error of each image; its mean is minimised
    u: Tensor     # (B,) where in the noise range each image was drawn: 0 nearly clean, 1 pure noise


Loss = Callable[[nn.Module, dict[str, Tensor], BatchRandom], LossTerms]  # (net, batch, random numbers) -> errors


@runtime_checkable
class Stateful(Protocol):
    """A loss that changes as it is used, such as one with a discriminator: checkpoints hold what it has become, too."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class State(NamedTuple):
    """What the loop knows after one optimizer step."""

    step: int          # optimizer steps done so far
    loss: float        # mean over the images of the step, all processes
    errors: LossTerms     # the same image by image, of this process
    lr: float          # learning rate of this step
    grad_norm: float   # before clipping
    images: int        # images in this step, all processes
    seconds: float     # of training so far, earlier parts of a resumed run included
    took: float        # seconds of this step alone, without what the caller does between steps
    progress: float    # part of the budget used, 0 to 1
    ema: nn.Module     # the averaged network, ready to sample from
    saved: bool        # a checkpoint was written after this step
    done: bool         # nothing follows: the budget is spent, or a signal asked for the end


def train(
    net: nn.Module, data: Data, loss: Loss, cfg: TrainConfig, accelerator: Accelerator, resume: bool = False
) -> Iterator[State]:
    """Train until the budget is spent, yielding a State after every step; the caller logs and samples as it likes.

    A resumed run first yields the state it was left in.
    """
    try:
        yield from steps(net, data, loss, cfg, accelerator, resume)
    finally:
        accelerator.end_training()  # a process that ends while its group still listens may abort instead


def steps(net: nn.Module, data: Data, loss: Loss, cfg: TrainConfig, accelerator: Accelerator, resume: bool) -> Iterator[State]:
    """The loop itself."""
    net.to(accelerator.device)
    ema = AveragedModel(net, multi_avg_fn=power_ema(cfg.ema))
    groups, shares = parameter_groups(net, cfg.slow)
    optimizer = OPTIMIZERS[cfg.optimizer](groups, cfg.lr)
    left = restore(cfg.out, net, ema, optimizer, loss, accelerator) if resume else None
    net, optimizer = accelerator.prepare(net, optimizer)
    budget = Budget(cfg, left.seconds if left else 0.0, accelerator)
    if left:
        progress = budget.used(left.step)
        yield left._replace(progress=progress, done=progress >= 1)
        if progress >= 1:
            return

    with budget.stop_on_signals():
        begin = left.step if left else 0
        for step in count(begin):
            began = time.perf_counter()
            lr = learning_rate(budget.used(step + 0.5), cfg.lr, cfg.warmup)
            for group, share in zip(optimizer.param_groups, shares, strict=True):
                group["lr"] = share * lr
            errors = backward(net, data, loss, cfg, step, accelerator, first=step == begin)
            grad_norm = float(accelerator.clip_grad_norm_(net.parameters(), cfg.clip))
            mean = float(accelerator.reduce(errors.per_sample.mean(), "mean"))
            check_finite(mean, grad_norm, step, cfg, accelerator)
            optimizer.step()
            optimizer.zero_grad()
            ema.update_parameters(accelerator.unwrap_model(net))  # after the step, so that it does not lag

            budget.tick()
            done = budget.used(step + 1) >= 1 or budget.interrupted
            saved = done or (step + 1) % cfg.save_every == 0
            images = cfg.batch_size * cfg.gradient_accumulation * accelerator.num_processes
            state = State(step + 1, mean, errors, lr, grad_norm, images, budget.seconds, time.perf_counter() - began,
                          budget.used(step + 1), ema.module, saved, done)  # fmt: skip
            if saved and accelerator.is_main_process:
                save_checkpoint(cfg.out, snapshot(state, net, ema, optimizer, loss, accelerator))
            yield state
            if done:
                return


def parameter_groups(net: nn.Module, slow: str | None) -> tuple[list[dict], list[float]]:
    """The weights as the optimizer wants them, and the share of the learning rate that each group gets."""
    if slow is None:
        return [{"params": list(net.parameters())}], [1.0]
    groups = [{"params": [p for name, p in net.named_parameters() if name.startswith(slow) == begins]} for begins in (False, True)]
    if not groups[1]["params"]:
        raise ValueError(f"no weight has a name that begins with {slow!r}")
    return groups, [1.0, SLOW]


def backward(net, data: Data, loss: Loss, cfg: TrainConfig, step: int, accelerator: Accelerator, first: bool = False) -> LossTerms:
    """Gradients of one step, accumulated over cfg.accumulate batches. Returns the errors of all of them.

    first: nothing has been computed in this process, so that it is not known whether a batch fits into the memory
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    net.train()
    parts = []
    for part in range(cfg.gradient_accumulation):
        k = step * cfg.gradient_accumulation + part
        indices = batch_indices(len(data), cfg.batch_size * world, k, cfg.seed).chunk(world)[rank]
        batch = {name: value.to(accelerator.device) for name, value in data.batch(indices).items()}
        if part == 0 and first and not isinstance(loss, Stateful):
            look_at_memory(net, batch, loss, cfg, accelerator)
        torch.manual_seed(generator(DROPOUT, cfg.seed, k, rank).initial_seed())  # dropout draws from the global generator
        last = part == cfg.gradient_accumulation - 1
        with nullcontext() if last else accelerator.no_sync(net):  # processes exchange gradients once a step
            errors = loss(net, batch, BatchRandom(cfg.seed, k, rank=rank, world=world, device=accelerator.device))
            accelerator.backward(errors.per_sample.mean() / cfg.gradient_accumulation)
        parts.append(LossTerms(errors.per_sample.detach(), errors.u))
    return LossTerms(*map(torch.cat, zip(*parts, strict=True)))


def look_at_memory(net, batch: dict[str, Tensor], loss: Loss, cfg: TrainConfig, accelerator: Accelerator) -> None:
    """Refuse a batch that is not going to fit. It changes no random number: those of a step follow from its place."""
    alone, device = accelerator.unwrap_model(net), accelerator.device

    def step(image: dict[str, Tensor]) -> LossTerms:
        with accelerator.autocast():
            return loss(alone, image, BatchRandom(cfg.seed, 0, device=device))

    need_for_batch(step, batch, list(alone.parameters()), str(device))


# ------------------------------------------------------------------------------------------ the order of the images


@lru_cache(maxsize=2)
def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=generator(ORDER, seed, epoch))


def batch_indices(n: int, size: int, k: int, seed: int) -> Tensor:
    """The images of batch k: every epoch a new order, every image at most once an epoch. (size,)"""
    if n < size:  # fewer images than one batch holds: draw with repetition
        return torch.randint(n, (size,), generator=generator(ORDER, seed, k))
    epoch, place = divmod(k, n // size)
    return shuffled(n, seed, epoch)[place * size : (place + 1) * size]


# ------------------------------------------------------------------------------------- learning rate, budget, averages


def learning_rate(progress: float, peak: float, warmup: float) -> float:
    """Rise linearly during warm-up, then fall along a half cosine to zero. progress in [0, 1]."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * (1 + math.cos(math.pi * (min(progress, 1.0) - warmup) / (1 - warmup))) / 2


class Budget:
    """How much of the steps or minutes is used. The main process's clock counts for all."""

    def __init__(self, cfg: TrainConfig, seconds: float, accelerator: Accelerator):
        if (cfg.steps is None) == (cfg.minutes is None):
            raise UserError("give the budget either in steps or in minutes")
        self.cfg, self.seconds, self.accelerator, self.interrupted = cfg, seconds, accelerator, False
        self.start = time.monotonic() - seconds

    def used(self, steps: float) -> float:
        return steps / self.cfg.steps if self.cfg.steps is not None else self.seconds / (60 * self.cfg.minutes)

    def tick(self) -> None:
        self.seconds = time.monotonic() - self.start
        if self.accelerator.num_processes > 1:  # the main process's clock counts, and a signal to any process stops all
            seconds = self.seconds if self.accelerator.is_main_process else 0.0
            both = torch.tensor([seconds, float(self.interrupted)], device=self.accelerator.device)
            self.seconds, interrupted = self.accelerator.reduce(both, "sum").tolist()
            self.interrupted = interrupted > 0

    def stop_on_signals(self) -> "Signals":
        """Within this context Ctrl-C, SIGTERM and a closed terminal end the run after the current step; a second signal ends it at once."""
        return Signals(self)


class Signals:
    """Ctrl-C; SIGTERM, which `kill`, `docker stop`, systemd and Slurm send; SIGHUP, which a terminal sends when it is closed.

    SIGHUP stays ignored where it is ignored (nohup). In a thread Python takes no handlers, so nothing is changed there.
    """

    def __init__(self, budget: Budget):
        self.budget, self.before = budget, {}

    def __enter__(self):
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        kinds = [signal.SIGINT, signal.SIGTERM] + [hangup] * (hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN)
        if threading.current_thread() is threading.main_thread():
            self.terminals = [fd for fd in (1, 2) if os.isatty(fd)]
            self.before = {kind: signal.signal(kind, self.handle) for kind in kinds}

    def handle(self, kind: int, _) -> None:
        self.budget.interrupted = True
        if kind not in (signal.SIGINT, signal.SIGTERM):  # the terminal is gone: printing to it would fail
            nothing = os.open(os.devnull, os.O_WRONLY)
            for fd in self.terminals:
                os.dup2(nothing, fd)
        self.__exit__()

    def __exit__(self, *_):
        while self.before:
            signal.signal(*self.before.popitem())


def power_ema(half_life: float):
    """An average whose memory grows with the run: after k steps, weights half_life * k steps old count half."""

    @torch.no_grad()
    def update(averages: list[Tensor], weights: list[Tensor], k: Tensor) -> None:
        decay = 0.5 ** (1 / max(1.0, half_life * int(k)))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    return update


def check_finite(loss: float, grad_norm: float, step: int, cfg: TrainConfig, accelerator: Accelerator) -> None:
    """Stop before a NaN reaches the weights. (With fp16, an infinite gradient is a step that the scaler skips.)"""
    if math.isfinite(loss) and (math.isfinite(grad_norm) or accelerator.scaler is not None):
        return
    kept = checkpoints(cfg.out)
    last = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint had been written yet"
    raise Diverged(
        f"step {step + 1}: the loss is {loss} and the gradient's norm {grad_norm}, so training stops ({last}); "
        f"try a smaller --lr (it was {cfg.lr:g}), --precision no, or look for broken images"
    )


# ------------------------------------------------------------------------------------------------- save and resume


def snapshot(state: State, net, ema: AveragedModel, optimizer, loss: Loss, accelerator: Accelerator) -> dict:
    """All that the next step depends on; random numbers need no place here, for they follow from (seed, step).

    The state itself is kept too: whoever is killed right after the checkpoint has not yet written its row of the log.
    """
    return {
        "step": state.step,
        "state": state._replace(errors=state.errors._asdict(), ema=None)._asdict(),
        "net": accelerator.unwrap_model(net).state_dict(),
        "ema": ema.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "loss": loss.state_dict() if isinstance(loss, Stateful) else {},
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
    }


def restore(out: Path, net, ema: AveragedModel, optimizer, loss: Loss, accelerator: Accelerator) -> State | None:
    """Load the newest checkpoint of the run, if it has one. Returns the state it was left in."""
    kept = checkpoints(out)
    if not kept:
        return None
    saved = load_checkpoint(kept[-1])
    load_strictly(net, saved["net"], kept[-1])
    load_strictly(ema.module, saved["ema"], kept[-1])
    ema.n_averaged.fill_(saved["step"])
    optimizer.load_state_dict(saved["optimizer"])
    if isinstance(loss, Stateful):
        loss.load_state_dict(saved["loss"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])
    return State(**saved["state"] | {"errors": LossTerms(**saved["state"]["errors"]), "ema": ema.module})
