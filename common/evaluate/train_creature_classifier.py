"""Train the classifier of creatures again, in about ten minutes on a CPU core of its own, or check its accuracy.

python -m common.evaluate.train_creature_classifier
python -m common.evaluate.train_creature_classifier --check-only        the accuracy of the shipped weights, by attribute
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run


@dataclass(frozen=True)
class Args:
    weights: Path = Path(__file__).parent / "weights" / "creatures_cnn.safetensors"
    """File of the weights that are written, or checked."""
    check_only: bool = False
    """Accuracy of the weights that are there, without a training."""
    n: int = 24_000
    """Number of training creatures, a tenth of them held-out combinations."""
    epochs: int = 8
    """Passes over them."""
    batch_size: int = 128
    """Creatures per optimizer step."""
    lr: float = 3e-3
    """Peak learning rate of AdamW; it rises, then falls to zero."""
    seed: int = 1
    """Random seed of the creatures and of the training; not 0, which draws the creatures of the test."""


def main(args: Args) -> None:
    from common.evaluate.creature_classifier import check, load_creature_classifier, train_and_save

    if args.check_only:
        check(load_creature_classifier(args.weights))
    else:
        train_and_save(args.weights, args.n, args.epochs, args.batch_size, args.lr, args.seed)


if __name__ == "__main__":
    run(main, Args)
