"""The flags that trainings share. A program adds its own before them:

    @dataclass(frozen=True)
    class Own: ...                        # the data, the network

    @dataclass(frozen=True)
    class Args(Drawing, Own): ...         # --help has Own's flags first, for a dataclass begins with its last base

A flag named again in Args keeps its place, with another default or another sentence.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.training.settings import one_budget


@dataclass(frozen=True)
class Training:
    """Of every training."""

    steps: int | None = None
    """Budget in optimizer steps ..."""
    minutes: float | None = None
    """... or in wall-clock time (the default). The learning rate follows the budget."""
    batch_size: int | None = None
    """Images per step and process."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision. auto is bf16 where the device is fast at it (recent GPUs, CPUs with AVX512-BF16), else no."""

    out: Path | None = None
    """The run folder; by default one named after the program and the data, numbered if that is taken."""
    resume: Path | None = None
    """Run folder to continue. Its settings apply; budget, device, sample pictures and the place of the data can be given anew."""
    save_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


@dataclass(frozen=True)
class Drawing(Training):
    """Of a training whose network is told words, and draws as it learns."""

    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, so that guidance has something to compare with."""
    guidance: float = 5.0
    """Guidance scale of the pictures drawn as training goes; 1 is off."""
    sampler: str = "dpmpp_2m:20"
    """How they are sampled."""
    sample_every: int | None = None
    """Steps between them; by default at each tenth of the budget."""


def check_flags(args: Training) -> None:
    """Refuse what cannot be, before anything is opened."""
    one_budget(args)
