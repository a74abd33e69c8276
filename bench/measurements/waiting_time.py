"""Waiting times of chapter 1's programs, as a user runs them."""

import re
import tempfile
from pathlib import Path
from statistics import median

from bench.harness import ROOT, SAMPLE, TRAIN, report, run_python

TARGETS = "targets: sampling at most 6 s, --help under 1 s"


def measure_waiting(model: Path | None, n: int, rounds: int, json: Path | None) -> None:
    """Time the sampling of n images and train.py --help, turn by turn, and report the medians."""
    model = (model or ROOT / "01_ddpm_mnist/pretrained").resolve()
    with tempfile.TemporaryDirectory() as folder:
        sample = [SAMPLE, "--n", n, "--model", model, "--device", "cpu", "--out", f"{folder}/samples.png"]
        turns = [(run_python(*sample), run_python(TRAIN, "--help")) for _ in range(rounds)]
    figures = {
        "model": str(model.relative_to(ROOT) if model.is_relative_to(ROOT) else model),
        f"{n} images, seconds of sampling as sample.py says": median(
            seconds_in(sampling.output) for sampling, _ in turns
        ),
        f"{n} images, seconds of the whole command": median(sampling.seconds for sampling, _ in turns),
        "train.py --help, seconds": median(help_text.seconds for _, help_text in turns),
    }
    report(f"Waiting times on the CPU ({TARGETS})", figures, json)


def seconds_in(output: str) -> float:
    """The seconds in the output of sample.py: 3.1 in "64 images with ddim:50 in 3.1 s on cpu"."""
    found = re.search(r" in ([\d.]+) s on", output)
    if found is None:
        raise ValueError(f"sample.py did not print its seconds: {output!r}")
    return float(found[1])
