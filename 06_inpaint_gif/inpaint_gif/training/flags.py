"""The flags of the training programs that draw and inpaint, and their presets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.training.flags import SampleFlags
from common.training.settings import OTHER, Presets

CHAPTER_4 = Path(__file__).parents[3] / "04_latent_sd" / "pretrained"
# training holds out the second and the last but one
NAMES = ("土鸡蛋炒番茄", "番茄炒鸡蛋", "葱油生菜", "米饭", "红烧鱼", "一碗馄饨，木桌", "番茄龙虾", "")


@dataclass(frozen=True)
class Text2DishFlags(SampleFlags):
    """Flags of train_text2dish.py."""

    data: str = "dishes"
    """Data set: dishes, which are drawn, or a folder of images with Chinese captions, an .lmdb, hub:owner/name."""
    n: int | None = None
    """Number of images; by default 8,000 drawn dishes, or the whole set."""
    clip: str = "pretrained"
    """CLIP that encodes the names: pretrained, a run folder, a folder of transformers,
    a checkpoint .pt, ViT-B-16, ...
    """
    backend: Literal["cn_clip", "transformers"] = "cn_clip"
    """Library that computes the CLIP embeddings; both give the same numbers, to about 1e-7."""
    model: Path = CHAPTER_4
    """Model with which the training begins. Weights that depend on the text encoder begin anew,
    unless the model was trained with the same --clip.
    """
    vae: Path | None = None
    """Autoencoder: a run of chapter 4's train_vae.py, or a folder with one in it; by default that of --model."""
    size: int | None = None
    """Pixels a side; by default the size that the autoencoder was trained for."""
    scratch: bool = False
    """Begin with an untrained U-Net of these --widths instead."""
    widths: tuple[int, ...] | None = None
    """Width of the U-Net at each resolution of the latents, highest first; by default those of --model, or 32 64 with
    --scratch. With one more in front, as wide as the next, the U-Net grows by one resolution, for larger images."""
    guidance: float = 3.0
    """Guidance scale of the sample pictures; 1 is off."""
    names: tuple[str, ...] = NAMES
    """Names of the sample pictures, drawn without and with guidance."""


@dataclass(frozen=True)
class HoleFlags(SampleFlags):
    """Flags of train_inpaint.py and train_controlnet.py."""

    data: str = "dishes"
    """Data set: dishes, which are drawn, or a folder of images with captions, an .lmdb, hub:owner/name."""
    n: int | None = None
    """Number of images; by default 1,500 drawn scenes, or the whole set."""
    windows: int = 3
    """Random windows onto each image."""
    holes: int = 4
    """Random holes in each window. All are made, and encoded, before the training begins."""
    model: Path = CHAPTER_4
    """Stable Diffusion folder or file to begin with; autoencoder and text encoder are not trained."""
    guidance: float = 2.0
    """Guidance scale of the sample pictures; 1 is off."""


@dataclass(frozen=True)
class LatentPreset:
    """Defaults for a data set on one kind of device."""

    minutes: float
    batch_size: int = 32
    lr: float = 1e-3


TEXT2DISH_PRESETS = Presets(  # the dishes as latents of 32 x 32
    cpu={"dishes": LatentPreset(minutes=30, batch_size=16), OTHER: LatentPreset(minutes=60, lr=5e-4)},
    mps={"dishes": LatentPreset(minutes=20, batch_size=64), OTHER: LatentPreset(minutes=45, batch_size=64, lr=5e-4)},
    gpu={"dishes": LatentPreset(minutes=15, batch_size=256), OTHER: LatentPreset(minutes=30, batch_size=128, lr=5e-4)},
)
HOLE_PRESETS = Presets(
    cpu={"dishes": LatentPreset(minutes=30, batch_size=16), OTHER: LatentPreset(minutes=60, lr=5e-4)},
    mps={"dishes": LatentPreset(minutes=20, batch_size=64), OTHER: LatentPreset(minutes=60, lr=3e-4)},
    gpu={"dishes": LatentPreset(minutes=15, batch_size=256), OTHER: LatentPreset(minutes=60, batch_size=32, lr=1e-4)},
)
