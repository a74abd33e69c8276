"""What every training program does around the loop:
settings and log, the model and samples on the way, and a summary at the end.

A chapter's trainer brings data, network and loss, and says how to save, what to draw and what to show at the end.
Chapter 1 has the same steps written out (ddpm_mnist/trainer.py).
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from common import viz
from common.cli import pick_precision
from common.io.files import write_folder
from common.training.flags import TrainingFlags
from common.training.logging import Due, logged
from common.training.loop import Data, Loss, State, TrainConfig, train
from common.training.record import keep_settings


def make_accelerator(precision: str, device: str) -> Accelerator:
    """The accelerator for --precision and a device as pick_device names it."""
    return Accelerator(mixed_precision=pick_precision(precision, device), cpu=device == "cpu")


def image_channels(given: int | None, start: int | None) -> int | None:
    """--image-channels, else the channels of the network that the run starts from,
    if they are those of colour or grey images.
    """
    return given or (start if start in (1, 3) else None)


def train_config(flags: TrainingFlags, lr_scales: Mapping[str, float] | None = None) -> TrainConfig:
    """The settings of the loop, from settled flags."""
    assert flags.batch_size is not None and flags.lr is not None
    return TrainConfig(
        out=flags.run_dir,
        steps=flags.steps,
        minutes=flags.minutes,
        batch_size=flags.batch_size,
        lr=flags.lr,
        lr_scales=lr_scales or {},
        gradient_accumulation=flags.gradient_accumulation,
        save_every=flags.save_every,
        seed=flags.seed,
    )


def run_training(
    program: str,  # its path, such as 02_cfg_pokemon/train.py
    flags: TrainingFlags,  # settled (settings.settle)
    net: nn.Module,
    data: Data,
    loss: Loss,
    accelerator: Accelerator,
    record: dict[str, Any],  # of the data, for data.json (record.record_of)
    introduction: str,  # printed before the first step
    save: Callable[[State, Path], object],  # writes the model, with the weights state.ema, into a folder
    draw: Callable[[State, Path], object],  # writes the samples of one moment to a file
    finish: Callable[[State], Mapping[str, object]],  # draws and measures at the end; returns {what: where} to print
    save_start: Callable[[Path], object] | None = None,  # writes what the run begins with into a folder, for --resume
    lr_scales: Mapping[str, float] | None = None,  # of the learning rate: see TrainConfig
    on_step: Callable[[State], object] = lambda state: None,
    draw_last: bool = False,  # draw after the last step too, where --sample-every does not ask for it
) -> None:
    """Train to the end of the budget or to a signal.
    Every process trains; the main process alone writes, draws and prints.
    """
    states = train(net, data, loss, train_config(flags, lr_scales), accelerator, resume=flags.resume is not None)
    if not accelerator.is_main_process:
        for _ in states:
            pass
        return
    run_dir = flags.run_dir
    keep_settings(flags, record, save_start)
    print(introduction)
    due = Due(flags.sample_every)
    with closing(logged(states, run_dir, flags.steps)) as states:
        for state in states:
            on_step(state)
            if state.saved:
                write_folder(run_dir / "model", partial(save, state))
            if due(state) or (draw_last and state.progress >= 1):
                draw(state, run_dir / "samples" / f"step-{state.step:06d}.png")
    if state.progress < 1:
        print(f"stopped after step {state.step}; continue with: python {program} --resume {run_dir}")
        return
    print(f"{state.step} steps in {state.seconds:.0f} s of training")
    print_rows(finish(state))


def print_rows(rows: Mapping[str, object]) -> None:
    """Print what a run has made, and where: {what: where}."""
    for what, where in rows.items():
        print(f"{what:18} {where}")


def loss_curve_and_model(run_dir: Path) -> dict[str, Path]:
    """The last rows of most summaries: the loss curve, which is drawn here, and the model."""
    return {"loss curve": viz.plot_run(run_dir, run_dir / "loss.png"), "model": run_dir / "model"}
