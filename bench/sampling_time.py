"""How long a learner waits: 64 images with chapter 1's default sampler, and --help.

  python -m bench.sampling_time
  python -m bench.sampling_time --model runs/01_ddpm_mnist/mnist
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.harness import ROOT, chapter, command, report
from common.cli import run

TARGETS = "targets: sampling at most 6 s, --help under 1 s"


@dataclass(frozen=True)
class Args:
    model: Path | None = None
    """A model folder; by default the one that sample.py itself takes."""
    n: int = 64
    """How many images."""
    rounds: int = 3
    """Runs of each command; the median counts."""
    json: Path | None = None
    """Also write the figures to this file."""


def main(args: Args) -> None:
    model = (args.model or chapter("01_ddpm_mnist/sample.py")["PRETRAINED"]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        words = ["01_ddpm_mnist/sample.py", "--n", args.n, "--model", model, "--device", "cpu", "--out", f"{folder}/samples.png"]
        sampled, helped = [], []
        for _ in range(args.rounds):
            sampled.append(command(*words))
            helped.append(command("01_ddpm_mnist/train.py", "--help").seconds)
    figures = {
        "model": str(model.relative_to(ROOT) if model.is_relative_to(ROOT) else model),
        f"{args.n} images, seconds of sampling as sample.py says": median(said(ran.output) for ran in sampled),
        f"{args.n} images, seconds of the whole command": median(ran.seconds for ran in sampled),
        "train.py --help, seconds": median(helped),
    }
    report(f"Waiting times on the CPU ({TARGETS})", figures, args.json)


def said(output: str) -> float:
    """The seconds in "64 images with ddim:50 in 3.1 s on cpu"."""
    return float(re.search(r" in ([\d.]+) s on", output)[1])


if __name__ == "__main__":
    run(main, Args)
