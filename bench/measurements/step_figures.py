"""All figures about a training step. torch is not imported here, because memory is measured in child processes first:
on Linux a child starts with the peak memory of its parent.
"""

import tempfile
from pathlib import Path
from statistics import median
from typing import Literal

from bench.harness import TRAIN, report, run_python
from bench.measurements.step_config import StepConfig
from common.io.tables import read_csv

TARGETS = "targets: ours / diffusers at most 1 in time and memory, step / peak at least 0.6, train.py at most 1200 MB"


def measure_step(config: StepConfig, rounds: int, data_dir: Path | None, seconds: float, json: Path | None) -> None:
    """Measure memory, train.py (if there is a folder of data) and speed, and report all figures."""
    figures = measure_memory(config)
    run = (
        measure_train_program(config, data_dir, seconds)
        if data_dir
        else {"train.py on MNIST": "not measured without --data-dir"}
    )
    from bench.measurements.training_step import measure_speed  # imports torch, see above

    speed = measure_speed(config, rounds)
    if data_dir:
        gflops = run["train.py, images/s"] * speed["step, GFLOP"] / config.batch_size
        run["train.py / convolution peak"] = gflops / speed["convolution peak, GFLOP/s"]
    report(f"Training step, batch {config.batch_size} ({TARGETS})", figures | speed | run, json)


def measure_memory(config: StepConfig) -> dict[str, object]:
    """Peak memory of 20 steps of each network, each in a process of its own, and of the imports alone."""
    peaks: dict[str, list[float]] = {name: [] for name in ("imports", "ours", "diffusers")}
    for _ in range(3):
        for name, values in peaks.items():
            flags = ["--batch-size", config.batch_size, *config.flags(), "--memory-of", name]
            values.append(run_python("-m", "bench.step", *flags).peak_mb)
    mb = {name: median(values) for name, values in peaks.items()}
    return {
        **{f"{name}, peak memory in MB": value for name, value in mb.items()},
        "ours / diffusers, peak memory": mb["ours"] / mb["diffusers"],
        "ours / diffusers, without imports": (mb["ours"] - mb["imports"]) / (mb["diffusers"] - mb["imports"]),
    }


def measure_train_program(config: StepConfig, data_dir: Path, seconds: float) -> dict:
    """Peak memory and speed of chapter 1's default MNIST run, stopped after `seconds` of training."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        flags = [
            "--data",
            "mnist",
            "--data-dir",
            data_dir.resolve(),
            "--minutes",
            seconds / 60,
            "--device",
            "cpu",
            *config.flags(),
        ]
        mb = run_python(TRAIN, *flags, "--out", run_dir).peak_mb
        rates = [
            float(row["images_per_second"]) for row in read_csv(run_dir / "metrics.csv") if row["images_per_second"]
        ]
    return {"train.py, peak memory in MB": mb, "train.py, images/s": median(rates)}


def make_steps(name: Literal["ours", "diffusers", "imports"], config: StepConfig) -> None:
    """Make 20 steps in this process. All three cases import the same modules, so they differ by the network alone."""
    from bench.measurements.training_step import network, training_step

    if name != "imports":
        step = training_step(network(name, config.channels), config)
        for _ in range(20):
            step()
