"""The settings that the trainings of bench.quality_at_time have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import pick_precision

Files = dict[tuple[str, float], Path]  # (name, minutes) -> samples


@dataclass(frozen=True)
class Budgets:
    """What both trainings have in common."""

    out: Path  # samples and weights
    data: str
    data_dir: Path
    minutes: tuple[float, ...]
    n: int  # samples of each network
    precision: Literal["auto", "no", "bf16"]
    seed: int

    @property
    def resolved_precision(self) -> str:
        """no or bf16."""
        return pick_precision(self.precision, "cpu")

    def file(self, name: str, minutes: float) -> Path:
        """The file of samples. Its name holds all that the samples depend on,
        so that samples of other settings are never reused.
        """
        settings = f"{self.resolved_precision}-seed{self.seed}-n{self.n}"
        return self.out / f"{self.data}-{minutes:g}min-{name.replace(' ', '-')}-{settings}.npy"
