"""Training steps of chapter 1 in processes with different settings of OpenMP, beside other busy processes."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator

from bench.harness import ROOT, report, training_flags
from common.data import Images
from common.diffusion.schedules import make_schedule
from common.errors import UserError
from common.models.unet import UNet, zero_init
from common.models.unet_config import small_unet
from common.training.loop import train
from common.training.run import train_config
from ddpm_mnist.trainer import make_loss

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
SETTINGS: dict[
    str, dict[str, str]
] = {  # name -> environment; the course sets OMP_WAIT_POLICY unless it is there, even if empty
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two threads, OpenMP's default": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": ""},
    "two threads, passive, no spin": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "two threads, the course's setting": {"OMP_NUM_THREADS": "2"},
    "the course's choice of threads": {},
}
TARGET = "target: two threads beside one busy process take at most 1.5 times what one thread takes alone"
STEPS = {"mnist": 25, "cifar10": 12}  # in each process; the first fifth is warm-up
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


def compare_settings(busy: Sequence[int], rounds: int, network: str, json: Path | None) -> None:
    """Measure each setting beside each number of busy processes, and report milliseconds a step and ratios."""
    seconds: dict[tuple[int, str], list[float]] = {(count, name): [] for count in busy for name in SETTINGS}
    for count in busy:
        with busy_processes(count):
            for _ in range(rounds):
                for name, variables in SETTINGS.items():
                    seconds[count, name].append(seconds_with(variables, network))
    medians = {key: median(each) for key, each in seconds.items()}
    figures: dict[str, object] = {
        f"{name}, beside {count} busy: ms a step": 1000 * value for (count, name), value in medians.items()
    }
    if alone := medians.get((0, "one thread")):
        figures |= {
            f"{name}, beside {count} busy / one thread alone": value / alone
            for (count, name), value in medians.items()
        }
    report(f"Training step of chapter 1's network for {network} ({TARGET})", figures, json)


def seconds_with(variables: dict[str, str], network: str) -> float:
    """Seconds of a step in a new process with these variables."""
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES} | variables
    command = [sys.executable, "-m", "bench.busy", "--seconds-of-steps", "--network", network]
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    if child.returncode != 0:
        raise UserError(f"the measurement failed ({(child.stderr.strip().splitlines() or ['no message'])[-1]})")
    return float(child.stdout.split()[-1])


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that compute until the context ends."""
    children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def print_seconds_of_steps(network: str) -> None:
    """Print the median seconds of some steps of the real training loop, on random images."""
    with training_flags(data=network, steps=STEPS[network], save_every=1000) as flags:
        generator = torch.Generator().manual_seed(0)
        data = Images(network, torch.randint(256, (1000, *SHAPES[network]), dtype=torch.uint8, generator=generator))
        net = zero_init(UNet(small_unet(data.size, data.channels, flags.channels, flags.layers)))
        loss = make_loss(make_schedule(flags.schedule), flags.prediction, flip=False, class_conditional=False)
        seconds = [state.took for state in train(net, data, loss, train_config(flags), Accelerator(cpu=True))]
    print(median(seconds[len(seconds) // 5 :]))
