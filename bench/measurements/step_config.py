"""The training step that bench.step measures."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class StepConfig:
    batch_size: int = 32
    channels: tuple[int, ...] | None = None  # widths of the U-Net; None for chapter 1's for MNIST
    precision: Literal["auto", "no", "bf16"] = "auto"

    def flags(self) -> list[object]:
        """The flags of train.py, and of bench.step, that build this network."""
        return ["--precision", self.precision, *(["--channels", *self.channels] if self.channels else [])]
