"""Flags that training programs share. A program inherits them, gives its own defaults, and adds what is its own:

    @dataclass(frozen=True)
    class Args(SampleFlags):
        data: str = "creatures"
        \"\"\"creatures, pokemon, or a folder of images with captions.\"\"\"
        size: int | None = None
        ...

A flag that Args names again keeps its place in --help.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class DataFlags:
    """Flags of every program that learns from one data set, or from several together."""

    data: str | tuple[str, ...] = ""
    """Data set: a name, or a folder or file of your own (common/data/README.md)."""
    data_dir: Path = Path("data")
    """Folder of local copies and of downloads."""


@dataclass(frozen=True)
class OptimizationFlags:
    """Flags of the budget and of an optimizer step."""

    steps: int | None = None
    """Budget in optimizer steps ..."""
    minutes: float | None = None
    """... or in minutes of wall-clock time (the default). The learning rate follows the budget."""
    batch_size: int | None = None
    """Images per batch and process."""
    gradient_accumulation: int = 1
    """Batches per optimizer step."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision. auto is bf16 where the device is fast at it (recent GPUs, CPUs with AVX512-BF16), else no."""


@dataclass(frozen=True)
class RunFlags:
    """Flags of every program that writes a run folder and can resume it."""

    out: Path | None = None
    """Run folder; by default a new one below runs/, named after the chapter and the data."""
    resume: Path | None = None
    """Run folder to continue. Its settings apply; budget, device,
    sample pictures and the place of the data can be given anew.
    """
    save_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    """Random seed of everything: initial weights, order of the data, noise."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""

    @property
    def run_dir(self) -> Path:
        """The run folder. It is known once the flags are settled (settings.settle)."""
        assert self.out is not None
        return self.out


@dataclass(frozen=True)
class TrainingFlags(RunFlags, OptimizationFlags, DataFlags):
    """Flags of every program that trains with common/training/loop.py.
    (--help lists the fields of the last base first.)
    """

    sample_every: int | None = None
    """Steps between sample pictures; by default a tenth of the budget."""


@dataclass(frozen=True)
class SampleFlags(TrainingFlags):
    """Flags of a text-conditional training, which draws samples as it goes."""

    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, as classifier-free guidance needs it."""
    guidance: float = 5.0
    """Guidance scale of the sample pictures; 1 is off."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and steps of the sample pictures: dpmpp_2m:20, ddim:50, ddpm:1000, heun:18, ..."""


@dataclass(frozen=True)
class UNetFlags(TrainingFlags):
    """Flags of a training that builds a U-Net.
    A program with both inherits them as `class Args(UNetFlags, SampleFlags)`.
    """

    channels: tuple[int, ...] | None = None
    """Width of the U-Net at each resolution, highest resolution first."""
    layers: int = 1
    """Residual blocks at each resolution."""
    start: Path | None = None
    """Run or folder with a U-Net of the same build, whose weights and widths the training begins with."""
    schedule: str = "cosine"
    """Noise schedule: linear, cosine, sigmoid, scaled_linear, linear_zero_snr, ..., edm or flow."""
    prediction: str = "v"
    """Prediction of the network: eps, x0 or v (edm and flow with the schedule of that name)."""


@dataclass(frozen=True)
class TextToImageFlags(UNetFlags, SampleFlags):
    """Flags of a training of a text-to-image model on captioned images."""

    language: Literal["en", "zh", "both"] | None = None
    """Language of the captions; by default English and Chinese, half and half, and in a folder whatever there is."""
    n: int | None = None
    """Number of images of each data set, the first ones; by default all."""
    size: int | None = None
    """Pixels a side."""
    text: str = "small"
    """Text encoder: small (a transformer trained along), or a frozen CLIP as a hub id or a folder."""
    text_dim: int = 96
    """Width of the small transformer's embeddings."""
    prompts: tuple[str, ...] = ("",)
    """Prompts of the sample pictures, drawn without and with guidance side by side."""
