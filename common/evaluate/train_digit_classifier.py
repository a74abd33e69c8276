"""Train the digit classifier of the evaluator again, in a few minutes on a CPU.

python -m common.evaluate.train_digit_classifier --data-dir data
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run


@dataclass(frozen=True)
class Args:
    data_dir: Path = Path("data")
    """Folder in which MNIST is looked for, and to which it is downloaded."""
    epochs: int = 6
    """Passes over the 60,000 training images."""
    batch_size: int = 128
    """Images per optimizer step."""
    lr: float = 3e-3
    """Peak learning rate of AdamW; it rises, then falls to zero."""
    seed: int = 0
    """Random seed of the training."""
    out: Path = Path(__file__).parent / "weights" / "mnist_cnn.safetensors"
    """Output file of the weights."""


def main(args: Args) -> None:
    from common.evaluate.digit_classifier import train_and_save

    train_and_save(args.out, args.data_dir, args.epochs, args.batch_size, args.lr, args.seed)


if __name__ == "__main__":
    run(main, Args)
