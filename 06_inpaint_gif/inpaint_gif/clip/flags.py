"""The flags of train_clip.py, and their presets."""

from dataclasses import dataclass
from typing import Annotated

from common.io.ranges import Range
from common.training.flags import TrainingFlags
from common.training.settings import OTHER, Presets

ARCHITECTURE = ("size", "patch", "width", "layers", "text_width", "text_layers", "dim")  # flags that --start replaces


@dataclass(frozen=True)
class CLIPFlags(TrainingFlags):
    """Flags of train_clip.py."""

    data: str = "dishes"
    """Data set: dishes, which are drawn, or a folder of images with captions, an .lmdb, hub:owner/name."""
    n: int | None = None
    """Number of images; by default 6,000 drawn dishes, or the whole set."""
    start: str | None = None
    """Chinese CLIP to fine-tune: pretrained, a folder, a checkpoint .pt, ViT-B-16, ...; its architecture is kept."""

    size: int | None = None
    """Side of the images in pixels."""
    patch: int | None = None
    """Side of a patch in pixels: the vision transformer sees (size / patch)^2 of them."""
    width: int | None = None
    """Width of the vision transformer; an attention head is 32 wide."""
    layers: int | None = None
    """Layers of the vision transformer."""
    text_width: int | None = None
    """Width of the text transformer, a BERT; an attention head is 32 wide."""
    text_layers: int | None = None
    """Layers of the text transformer."""
    dim: int | None = None
    """Dimension of the joint embedding space."""

    temperature: Annotated[float, Range(0.01, 10)] = 0.07
    """Initial temperature of the softmax; it is trained, and never falls below 0.01."""
    unknown: float = 0.1
    """Share of characters replaced by [UNK] in training, so that a name with an unknown character can be encoded."""
    keep: Annotated[float, Range(0, 1, above=True, hint="1 looks at every patch")] = 1.0
    """Share of the patches of an image that a step uses, chosen at random: 0.5 takes about half the time."""
    augment: bool = True
    """Random rotation, zoom, shift, mirroring, lighting and blur of the images."""

    batch_size: Annotated[
        int | None, Range(2, 65_536, 96, hint="a picture is compared with the names of the others")
    ] = None
    """Pairs per batch and process; each process contrasts its own."""
    held_out: int = 400
    """Number of images of the test split to measure on."""


@dataclass(frozen=True)
class CLIPPreset:
    """Defaults for one kind of device."""

    minutes: float
    width: int = 128
    layers: int = 4
    size: int = 64
    patch: int = 8
    text_width: int = 128
    text_layers: int = 2
    dim: int = 128
    batch_size: int = 96
    lr: float = 1e-3


CLIP_PRESETS = Presets(
    cpu={OTHER: CLIPPreset(minutes=15)},  # one core
    mps={OTHER: CLIPPreset(minutes=15, width=192, layers=6, text_width=192, text_layers=3, dim=192, batch_size=192)},
    gpu={
        OTHER: CLIPPreset(
            minutes=10, width=256, layers=6, size=96, text_width=256, text_layers=4, dim=256, batch_size=512
        )
    },
)
