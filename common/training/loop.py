"""One training loop for every chapter. The chapter brings data and loss; the loop brings everything else.

Everything random in step k is a function of (seed, k): see common/random.py. That is why a resumed run is bit-equal to
one that never stopped, and why two processes see what one process with the doubled batch would have seen.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from common.random import DROPOUT, BatchRandom, batch_indices, generator
from common.training.budget import Budget
from common.training.checkpoint import checkpoints, restore, save_checkpoint, snapshot
from common.training.optimization import check_finite, learning_rate, make_optimizer, power_ema, set_learning_rate
from common.training.record import inspect_first_batch


# fmt: off
@dataclass(frozen=True)
class TrainConfig:
    out: Path                       # run folder
    steps: int | None = None        # budget in optimizer steps, or
    minutes: float | None = None    # in wall-clock time; the learning rate follows whichever is given
    batch_size: int = 32            # images per batch and process
    gradient_accumulation: int = 1  # batches per optimizer step
    optimizer: str = "adamw"        # or "sgd"
    lr: float = 2e-3                # peak learning rate
    lr_scales: Mapping[str, float] = field(default_factory=dict)  # {prefix: factor} of the learning rate, for weights whose names begin so
    warmup: float = 0.05            # fraction of the budget in which the learning rate rises
    clip: float = 1.0               # largest norm of the gradient
    ema: float = 0.05               # half-life of the averaged weights, as a fraction of the steps done so far
    save_every: int = 500           # steps between checkpoints
    seed: int = 0


class LossTerms(NamedTuple):
    """What a loss returns."""

    per_sample: Tensor  # (B,) loss of each image; its mean is minimised
    u: Tensor           # (B,) where in the noise range each image was drawn: 0 nearly clean, 1 pure noise


class State(NamedTuple):
    """What the loop knows after one optimizer step."""

    step: int          # optimizer steps done so far
    loss: float        # mean over the images of the step, all processes
    terms: LossTerms   # the same image by image, of this process
    lr: float          # learning rate of this step
    grad_norm: float   # before clipping
    images: int        # images in this step, all processes
    seconds: float     # of training so far, earlier parts of a resumed run included
    took: float        # seconds of this step alone, without what the caller does between steps
    progress: float    # part of the budget used, 0 to 1
    ema: nn.Module     # the averaged network, ready to sample from
    saved: bool        # a checkpoint was written after this step
    done: bool         # nothing follows: the budget is spent, or a signal asked for the end
# fmt: on


class Data(Protocol):
    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> dict[str, Tensor]: ...


Loss = Callable[[nn.Module, dict[str, Tensor], BatchRandom], LossTerms]  # (net, batch, random numbers) -> terms


def train(
    net: nn.Module, data: Data, loss: Loss, cfg: TrainConfig, accelerator: Accelerator, resume: bool = False
) -> Iterator[State]:
    """Yield a State after every step until the budget is spent or a signal comes; a resumed run repeats its last."""
    try:
        yield from steps(net, data, loss, cfg, accelerator, resume)
    finally:
        accelerator.end_training()  # once steps() has let go of the network: a group still in use can hang at its end


def steps(
    net: nn.Module, data: Data, loss: Loss, cfg: TrainConfig, accelerator: Accelerator, resume: bool
) -> Iterator[State]:
    """The loop itself, in a frame of its own: see train()."""
    net.to(accelerator.device)
    ema = AveragedModel(net, multi_avg_fn=power_ema(cfg.ema))
    optimizer = make_optimizer(cfg.optimizer, net, cfg.lr, cfg.lr_scales)
    left = restore(cfg.out, net, ema, optimizer, loss, accelerator) if resume else None
    net, optimizer = accelerator.prepare(net, optimizer)
    budget = Budget(cfg.steps, cfg.minutes, left["seconds"] if left else 0.0, accelerator)
    if left:
        progress = budget.used(left["step"])
        known = {"terms": LossTerms(**left["terms"]), "ema": ema.module}
        yield State(**left | known)._replace(progress=progress, done=progress >= 1)
        if progress >= 1:
            return

    first = left["step"] if left else 0
    with budget.stop_on_signals():
        for step in count(first):
            began = time.perf_counter()
            lr = learning_rate(budget.used(step + 0.5), cfg.lr, cfg.warmup)
            set_learning_rate(optimizer, lr)
            terms = backward(net, data, loss, cfg, step, accelerator, is_first=step == first)
            norm = float(accelerator.clip_grad_norm_(net.parameters(), cfg.clip))
            mean = float(accelerator.reduce(terms.per_sample.mean(), "mean"))
            check_finite(mean, norm, step + 1, cfg.lr, lambda: checkpoints(cfg.out), accelerator)
            optimizer.step()
            optimizer.zero_grad()
            ema.update_parameters(accelerator.unwrap_model(net))  # after the step, so that it does not lag

            budget.update()
            progress = budget.used(step + 1)
            done = progress >= 1 or budget.interrupted
            saved = done or (step + 1) % cfg.save_every == 0
            images = cfg.batch_size * cfg.gradient_accumulation * accelerator.num_processes
            times = budget.seconds, time.perf_counter() - began
            state = State(step + 1, mean, terms, lr, norm, images, *times, progress, ema.module, saved, done)
            if saved and accelerator.is_main_process:
                plain = state._asdict() | {"terms": terms._asdict(), "ema": None}
                save_checkpoint(cfg.out, snapshot(step + 1, plain, net, ema, optimizer, loss, accelerator))
            yield state
            if done:
                return


def backward(
    net: nn.Module, data: Data, loss: Loss, cfg: TrainConfig, step: int, accelerator: Accelerator, is_first: bool
) -> LossTerms:
    """Gradients of one step, accumulated over cfg.gradient_accumulation batches, and the loss terms of all of them."""
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    net.train()
    parts = []
    for part in range(cfg.gradient_accumulation):
        k = step * cfg.gradient_accumulation + part
        indices = batch_indices(len(data), cfg.batch_size * world, k, cfg.seed).chunk(world)[rank]
        batch = {name: value.to(device) for name, value in data.batch(indices).items()}
        if is_first and part == 0:
            inspect_first_batch(cfg.out if step == 0 else None, net, batch, loss, accelerator)
        torch.manual_seed(generator(DROPOUT, cfg.seed, k, rank).initial_seed())  # dropout uses the global generator
        last = part == cfg.gradient_accumulation - 1
        with nullcontext() if last else accelerator.no_sync(net):  # processes exchange gradients once a step
            terms = loss(net, batch, BatchRandom(cfg.seed, k, rank=rank, world=world, device=device))
            accelerator.backward(terms.per_sample.mean() / cfg.gradient_accumulation)
        parts.append(LossTerms(terms.per_sample.detach(), terms.u))
    return LossTerms(*map(torch.cat, zip(*parts, strict=True)))
