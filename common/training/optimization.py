"""Optimizers, the learning rate, the average of the weights, and the check that stops a training that diverges."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from common.errors import UserError
from common.io.memory import need_for_batch
from common.random import BatchRandom

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.9),
}


def make_optimizer(name: str, net: nn.Module, lr: float, lr_scales: Mapping[str, float]) -> torch.optim.Optimizer:
    """The optimizer of all weights. lr_scales: {prefix: factor} for weights whose names begin so;
    set_learning_rate multiplies by it.
    """
    named = list(net.named_parameters())
    groups = [{"params": [p for key, p in named if not key.startswith(tuple(lr_scales))], "lr_scale": 1.0}]
    for prefix, scale in lr_scales.items():
        groups.append({"params": [p for key, p in named if key.startswith(prefix)], "lr_scale": scale})
        if not groups[-1]["params"]:
            raise ValueError(f"no weight has a name that begins with {prefix!r}")
    return OPTIMIZERS[name](groups, lr)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["lr_scale"] * lr


def learning_rate(progress: float, peak: float, warmup: float) -> float:
    """Rise linearly during warm-up, then fall along a half cosine to zero. progress in [0, 1]."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * (1 + math.cos(math.pi * (min(progress, 1.0) - warmup) / (1 - warmup))) / 2


def power_ema(half_life: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average whose memory grows with the run:
    after k steps, weights half_life * k steps old count half.

    The result is the multi_avg_fn of torch's AveragedModel.
    """

    @torch.no_grad()
    def update(averages: list[Tensor], weights: list[Tensor], k: Tensor) -> None:
        decay = 0.5 ** (1 / max(1.0, half_life * int(k)))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    return update


def need_memory(net: nn.Module, batch: dict[str, Tensor], loss: Callable[..., Any], accelerator: Accelerator) -> None:
    """Refuse a batch that is not going to fit. This changes no random number of any step."""
    alone = accelerator.unwrap_model(net)

    def forward(images: dict[str, Tensor]) -> Any:
        with accelerator.autocast():
            return loss(alone, images, BatchRandom(0, 0, device=accelerator.device))

    need_for_batch(forward, batch, list(alone.parameters()), str(accelerator.device))


class Diverged(UserError):
    """The loss or the gradient of a training is not finite any more."""


def check_finite(
    loss: float,
    grad_norm: float,
    step: int,
    lr: float,
    checkpoints: Callable[[], Sequence[Path]],
    accelerator: Accelerator,
) -> None:
    """Stop before a NaN reaches the weights. (With fp16, an infinite gradient is a step that the scaler skips.)

    checkpoints: lists those of the run, oldest first
    """
    if math.isfinite(loss) and (math.isfinite(grad_norm) or accelerator.scaler is not None):
        return
    kept = checkpoints()
    last = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint had been written yet"
    raise Diverged(
        f"step {step}: the loss is {loss} and the gradient's norm {grad_norm}, so training stops ({last}); "
        f"try a smaller --lr (it was {lr:g}), --precision no, or look for broken images"
    )
