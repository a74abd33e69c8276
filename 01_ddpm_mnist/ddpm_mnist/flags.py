"""The flags of sample.py."""

from dataclasses import dataclass
from pathlib import Path

PRETRAINED = Path(__file__).parents[1] / "pretrained"


@dataclass(frozen=True)
class UnconditionalSampleFlags:
    model: Path = PRETRAINED
    """Run folder, or any diffusers folder with an unconditional U-Net; by default the shipped MNIST model."""
    n: int = 64
    """Number of images."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and steps: dpmpp_2m:20, dpmpp_2s:10, ddim:50, ddim:50:eta=1, ddpm:1000, heun:18."""
    label: int | None = None
    """Class to sample, for a class-conditional model; by default all in turn."""
    size: int | None = None
    """Pixels a side; by default those the model was trained with."""
    seed: int = 0
    """Random seed; the same seed gives the same images."""
    out: Path = Path("runs/01_ddpm_mnist/samples.png")
    """File of the grid of images."""
    strip: bool = False
    """Another picture beside it, of how the first images appeared:
    noise on the left, coarse steps first, fine steps at the end.
    """
    gif: bool = False
    """An animated GIF of the reverse process beside it."""
    npy: bool = False
    """The images as a .npy array beside it: uint8, (n, height, width, channels)."""
    batch_size: int = 64
    """Images per batch."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""
