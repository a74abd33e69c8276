"""The training step of chapter 1's MNIST network on the CPU:
against diffusers, against the processor's peak, and its memory.

  python -m bench.step
  python -m bench.step --data-dir path/to/data      also runs train.py on MNIST for a while

1. Time and memory against diffusers' UNet2DModel with the same configuration, weights and batch; that both have equal
   outputs
   is checked. A step is forward, loss, backward and optimizer. Memory is the peak of a process that makes 20 steps,
   the median of three.
2. Arithmetic against the machine's own peak, which is that of plain 3x3 convolutions, forward and backward: the best
   of
   several shapes. torch counts the operations of a step.
3. Peak memory and speed of `train.py --data mnist` as it is: data, logging, averaging, checkpoints, final pictures.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import run


@dataclass(frozen=True)
class Args:
    rounds: int = 15
    """Turns of each candidate; the median counts."""
    batch_size: int = 32
    """Images in a step; chapter 1's default."""
    channels: tuple[int, ...] | None = None
    """Width of the U-Net at each resolution; by default chapter 1's for MNIST."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """Precision as in train.py: auto is bf16 where the processor computes it natively, else no."""
    data_dir: Path | None = None
    """Folder of MNIST, for the third measurement."""
    seconds: float = 30
    """Training time of train.py in the third measurement."""
    memory_of: Literal["ours", "diffusers", "imports"] | None = None
    """Only make 20 steps and exit: how this program measures memory, each network in a process of its own."""
    json: Path | None = None
    """JSON file for the figures."""


def main(args: Args) -> None:
    from bench.measurements import step_config, step_figures

    config = step_config.StepConfig(args.batch_size, args.channels, args.precision)
    if args.memory_of:
        step_figures.make_steps(args.memory_of, config)
    else:
        step_figures.measure_step(config, args.rounds, args.data_dir, args.seconds, args.json)


if __name__ == "__main__":
    run(main, Args)
