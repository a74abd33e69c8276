"""The flags of train.py. ablations.py trains with them, too."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.training.flags import TextToImageFlags

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
