"""The flags of train.py, with which ablations.py trains too, and of the programs that sample and measure."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from common.training.flags import TextToImageFlags

PRETRAINED = Path(__file__).parents[1] / "pretrained"
PROMPTS = (
    "a red fire creature with bat wings",
    "a blue round creature with cat ears, on a cream background",
    "a green grass creature with a curly tail",
    "a purple ghost creature with two horns and three eyes",
    "一只黄色的电属性小怪兽，长着兔耳朵",
    "一只白色毛茸茸的冰属性怪兽，有触角",
    "a blue fire creature",  # training never sees blue and fire together
    "",
)


@dataclass(frozen=True)
class PixelModelFlags(TextToImageFlags):
    """Flags of a text-to-image model of pixels."""

    data: str = "creatures"
    """Data set: creatures, pokemon, or a folder of images with captions."""
    image_channels: Literal[1, 3] | None = None
    """Channels of the images: 3 in colour, 1 grey; by default those of --start, else 1 where all pictures are grey."""
    augment: Literal["none", "mirror", "jitter", "turn"] = "none"
    """Random changes of the images: mirrored (not if a caption says left or right), of jittered brightness, or turned
    a little, with black corners. ablations.py measures what that does to the colours."""
    channels: tuple[int, ...] | None = None
    """Width of the U-Net at each resolution, highest resolution first; the two lowest attend to the text."""
    start: Path | None = None
    """Run or folder whose weights and --channels the training begins with. It may have been trained at another size:
    captions are learned faster from small images."""
    prompts: tuple[str, ...] = PROMPTS
    """Prompts of the sample pictures, drawn without and with guidance side by side."""
    guidance: float = 3.0
    """Guidance scale of the sample pictures; 1 is off."""


@dataclass(frozen=True)
class PixelEvaluationFlags:
    """Flags of evaluate.py."""

    model: Path = PRETRAINED
    """Run folder of this chapter, or folder of a text-to-image model of pixels."""
    scales: tuple[float, ...] = (0, 1, 1.5, 2, 3, 5, 8)
    """Guidance scales to measure; 1 is off, 0 ignores the prompt."""
    n: int = 200
    """Number of prompts of each split."""
    splits: tuple[Literal["test", "heldout"], ...] = ("test", "heldout")
    """Splits of the prompts; brightness, saturation and diversity are shown for the first."""
    language: Literal["en", "zh", "both"] = "both"
    """Language of the prompts; both is half and half."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and number of steps: dpmpp_2m:20, ddim:50, ..."""
    rescale: float = 0.0
    """phi of guidance rescale, 0 to 1, against too strong contrast."""
    clip: Literal["static", "none", "dynamic"] = "static"
    """How predicted images are kept in range: clipped at black and white, not at all, or by dynamic thresholding."""
    interval: tuple[float, float] = (0.0, math.inf)
    """Noise levels sigma / alpha between which guidance is used."""
    negative: str = ""
    """Negative prompt of all pictures."""
    per_attribute: bool = False
    """Whether to print the accuracy of each attribute, too. (The CSV holds it anyway.)"""
    seed: int = 0
    """Random seed of the initial noise."""
    out: Path | None = None
    """Folder of results.csv and the figures;
    by default runs/02_cfg_pokemon/evaluate/<model>/<settings that are not the default>.
    """
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


@dataclass(frozen=True)
class MemorizationFlags:
    """Flags of memorization.py."""

    model: Path = PRETRAINED
    """Run folder of this chapter, or folder of a text-to-image model of pixels."""
    n_train: int = 10_000
    """Number of creatures that it was trained on: the first ones of the train split."""
    n: int = 200
    """Number of images to draw."""
    prompts: Literal["test", "train", "heldout"] = "test"
    """Captions to draw: of creatures that it has not seen, of those that it was trained on,
    or of held-out combinations.
    """
    language: Literal["en", "zh", "both"] = "both"
    """Language of the captions; both is half and half."""
    w: float = 3.0
    """Guidance scale; 1 is off."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and number of steps: dpmpp_2m:20, ddim:50, ..."""
    seed: int = 0
    """Random seed of the initial noise."""
    out: Path | None = None
    """Folder of the numbers and figures; by default runs/02_cfg_pokemon/memorization/<model>/<prompts>-w=<w>."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


@dataclass(frozen=True)
class AblationFlags:
    """Flags of ablations.py."""

    study: Positional[Literal["brightness", "size", "epochs"]]
    """Name of the study."""
    steps: int = 3000
    """Training steps of each network, 16 images each.
    (Not in the study of epochs, where they follow from the number of images.)
    """
    n: int = 200
    """Number of images on which each network is measured, at each guidance scale."""
    seeds: tuple[int, ...] = (0,)
    """Random seeds of the trainings; each repeats the whole study, and the table has all of them."""
    out: Path = Path("runs/02_cfg_pokemon/studies")
    """Folder of networks, images and tables."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


@dataclass(frozen=True)
class PixelSampleFlags:
    """Flags of sample.py."""

    prompts: Positional[tuple[str, ...]]
    """Prompts, in English or Chinese; n images are drawn of each. "" samples without a prompt."""
    model: Path = PRETRAINED
    """Run folder, or folder of a text-to-image model of pixels; by default the shipped model of creatures."""
    n: int = 8
    """Number of images of each prompt."""
    guidance: float = 3.0
    """Guidance scale w, 0 or more; 1 is off."""
    sweep: str | None = None
    """Several guidance scales instead of one: 1,2,4,8 draws a row for each, from the same noise."""
    negative: str = ""
    """Negative prompt: it takes the place of the empty caption."""
    rescale: float = 0.0
    """Guidance rescale, 0 (off) to 1, against too strong contrast."""
    clip: Literal["static", "none", "dynamic"] = "static"
    """How the predicted image is kept in [-1, 1]: clipped, not at all, or by dynamic thresholding."""
    interval: tuple[float, float] = (0.0, float("inf"))
    """Noise levels with guidance: low < sigma / alpha <= high."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and number of steps: dpmpp_2m:20, ddim:50, ddpm:250, heun:18, ..."""
    seed: int = 0
    """Random seed of the noise; the same seed gives the same images."""
    out: Path = Path("runs/02_cfg_pokemon/samples.png")
    """File of the grid."""
    gif: bool = False
    """Whether to write an animated GIF of the reverse process beside it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""
