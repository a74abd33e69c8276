"""Flags and presets that the two trainings on pictures with holes share: train_inpaint.py and train_controlnet.py."""

from dataclasses import dataclass
from pathlib import Path

from common.training.flags import SampleFlags
from common.training.settings import OTHER, Presets

CHAPTER_4 = Path(__file__).parents[3] / "04_latent_sd" / "pretrained"


@dataclass(frozen=True)
class HoleFlags(SampleFlags):
    """Flags of a training on windows onto images, with random holes in them."""

    data: str = "dishes"
    """Data set: dishes, which are drawn, or a folder of images with captions, an .lmdb, hub:owner/name."""
    n: int | None = None
    """Number of images; by default 2,000 drawn scenes, or all there are."""
    windows: int = 4
    """Random windows onto each image."""
    holes: int = 4
    """Random holes in each window. All are made, and encoded, before the training begins."""
    model: Path = CHAPTER_4
    """Stable Diffusion folder or file to begin with, or to train a ControlNet beside; what is not trained stays frozen."""
    guidance: float = 2.0
    """Guidance scale of the sample pictures; 1 is off."""


@dataclass(frozen=True)
class Preset:
    """What suits data on one kind of device."""

    minutes: float
    batch_size: int = 32
    lr: float = 1e-3


PRESETS = Presets(  # of the dishes as latents of 16 x 16, on a CPU with one core
    cpu={"dishes": Preset(minutes=30, batch_size=16), OTHER: Preset(minutes=60, lr=5e-4)},
    mps={"dishes": Preset(minutes=20, batch_size=64), OTHER: Preset(minutes=60, lr=3e-4)},
    gpu={"dishes": Preset(minutes=15, batch_size=256), OTHER: Preset(minutes=60, batch_size=32, lr=1e-4)},
)
