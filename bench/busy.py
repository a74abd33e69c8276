"""A training step on a machine that is busy with something else, under several ways of waiting for a thread.

  python -m bench.busy
  python -m bench.busy --busy 0 1 2 --rounds 3

With two threads, each part of a step ends when the slower thread ends. While the other one waits it can spin (OpenMP's default:
it keeps its core, which the slower thread may need) or sleep (OMP_WAIT_POLICY=passive). GOMP_SPINCOUNT says how long GNU's OpenMP
spins before it sleeps. The course sets both (common/__init__.py), and takes as many threads as there are free cores (common.cli).
Each setting is measured in a process of its own, since OpenMP reads it once; the settings take turns.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from bench.harness import ROOT, chapter, report, settings_of
from common.cli import free_threads, run, use_threads
from common.errors import UserError

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
SETTINGS: dict[str, dict[str, str]] = {  # name -> environment
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two threads, OpenMP's default": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "undefined"},
    "two threads, passive, no spin": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "two threads, the course's setting": {"OMP_NUM_THREADS": "2"},
    "the course's choice of threads": {},
}
TARGET = "target: two threads beside one busy process take at most 1.5 times what one thread takes alone"
STEPS = {"mnist": 25, "cifar10": 12}  # in each process; the first fifth does not count


@dataclass(frozen=True)
class Args:
    rounds: int = 3
    """Turns of each setting; the median counts."""
    busy: tuple[int, ...] = (0, 1, 2)
    """Numbers of other processes that compute without a pause."""
    network: Literal["mnist", "cifar10"] = "mnist"
    """Chapter 1's network for these images: a small one (0.1 s a step), or one with ten times the arithmetic."""
    seconds_of_steps: bool = False
    """Only make some steps, print the median seconds of one, and exit: how this program measures each setting."""
    json: Path | None = None
    """File for the figures."""


def main(args: Args) -> None:
    if args.seconds_of_steps:
        make_steps(args.network)
        return
    seconds = {(busy, name): [] for busy in args.busy for name in SETTINGS}
    for busy in args.busy:
        with busy_processes(busy):
            for _ in range(args.rounds):
                for name, variables in SETTINGS.items():
                    seconds[busy, name].append(measured(variables, args.network))
    middle = {place: median(each) for place, each in seconds.items()}
    alone = middle.get((0, "one thread"))
    figures: dict[str, object] = {f"{name}, beside {busy} busy: ms a step": 1000 * value for (busy, name), value in middle.items()}
    if alone:
        figures |= {f"{name}, beside {busy} busy / one thread alone": value / alone for (busy, name), value in middle.items()}
    report(f"Training step of chapter 1's network for {args.network} ({TARGET})", figures, args.json)


def measured(variables: dict[str, str], network: str) -> float:
    """Seconds of a step in a new process with these variables."""
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES} | variables
    if environment.get("OMP_WAIT_POLICY") == "undefined":  # the course sets it where it is missing: the empty value leaves OpenMP's default
        environment["OMP_WAIT_POLICY"] = ""
    command = [sys.executable, "-m", "bench.busy", "--seconds-of-steps", "--network", network]
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    if child.returncode != 0:
        raise UserError(f"the measurement failed ({(child.stderr.strip().splitlines() or ['no message'])[-1]})")
    return float(child.stdout.split()[-1])


@contextmanager
def busy_processes(n: int) -> Iterator[None]:
    """n processes that compute until the context ends."""
    children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def make_steps(network: str) -> None:
    """Print the median seconds of some steps of the real training loop, on random images."""
    use_threads(free_threads())
    import torch
    from accelerate import Accelerator

    from common.data import Images
    from common.diffusion.schedules import make_schedule
    from common.models.unet import UNet, zero_init
    from common.models.unet_config import small_unet
    from common.training.loop import train
    from common.training.run import train_config

    trainer = chapter("01_ddpm_mnist/ddpm_mnist/trainer.py")
    with settings_of("01_ddpm_mnist/train.py", data=network, steps=STEPS[network], save_every=1000) as settings:
        shape = (1, 28, 28) if network == "mnist" else (3, 32, 32)
        data = Images(network, torch.randint(256, (1000, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
        net = zero_init(UNet(small_unet(data.size, data.channels, settings.channels, settings.layers)))
        loss = trainer["make_loss"](make_schedule(settings.schedule), settings.prediction, flip=False, class_conditional=False)
        states = train(net, data, loss, train_config(settings), Accelerator(cpu=True))
        took = [state.took for state in states]
    print(median(took[len(took) // 5 :]))


if __name__ == "__main__":
    run(main, Args)
