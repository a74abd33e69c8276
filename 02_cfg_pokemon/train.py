"""Train a text-to-image model: creatures out of noise, as the words want them.

  python 02_cfg_pokemon/train.py                                        the embedded creatures, captions in two languages
  python 02_cfg_pokemon/train.py --data pokemon --data-dir data --language zh
  python 02_cfg_pokemon/train.py --text openai/clip-vit-base-patch32    words read by a frozen CLIP
  python 02_cfg_pokemon/train.py --n 800 --steps 4000                   how far do 800 pictures carry?
  python 02_cfg_pokemon/train.py --size 16 --minutes 15 --out runs/02_cfg_pokemon/small      words are learned sooner from small images;
  python 02_cfg_pokemon/train.py --start runs/02_cfg_pokemon/small --minutes 50             ... then go on with larger ones
  python 02_cfg_pokemon/train.py --resume runs/02_cfg_pokemon/creatures
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import run
from common.training.flags import SampleFlags, UNetFlags
from common.training.settings import OTHER, Presets, settle, with_build

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
class Args(UNetFlags, SampleFlags):
    data: str = "creatures"
    """Data set: creatures, pokemon, or a folder of images with captions."""
    language: Literal["en", "zh", "both"] | None = None
    """Language of the captions; by default English and Chinese, half and half, and in a folder whatever there is."""
    n: int | None = None
    """Number of images, the first ones of the data set; by default all."""
    size: int | None = None
    """Pixels a side."""
    image_channels: Literal[1, 3] | None = None
    """Channels of the images: 3 in colour, 1 grey; by default those of --start, else 1 where all pictures are grey."""
    augment: Literal["none", "mirror", "jitter", "turn"] = "none"
    """Random changes of the images: mirrored (not if a caption says left or right), of jittered brightness, or turned a little,
    with black corners. ablations.py measures what that does to the colours."""

    text: str = "small"
    """Text encoder: small (a transformer trained along), or a frozen CLIP as a hub id or a folder."""
    text_dim: int = 96
    """Width of the small transformer's embeddings."""
    channels: tuple[int, ...] | None = None
    """Width of the U-Net at each resolution, highest resolution first; the two lowest attend to the text."""
    start: Path | None = None
    """Run or folder whose weights and --channels the training begins with. It may have learned at another size: words are learned
    faster from small images."""
    prompts: tuple[str, ...] = PROMPTS
    """Prompts of the sample pictures, drawn without and with guidance side by side."""
    guidance: float = 3.0
    """Guidance scale of the sample pictures; 1 is off."""


@dataclass(frozen=True)
class Preset:
    """What suits a data set on one kind of device."""

    minutes: float
    channels: tuple[int, ...]
    size: int
    batch_size: int = 16
    lr: float = 2e-3


PRESETS = Presets(
    cpu={  # many small steps teach the words sooner than few large ones
        "creatures": Preset(minutes=60, channels=(16, 32, 64), size=32),
        "pokemon": Preset(minutes=60, channels=(32, 64, 128), size=32, lr=1e-3),
        OTHER: Preset(minutes=60, channels=(32, 64, 128), size=32, lr=1e-3),
    },
    mps={
        "creatures": Preset(minutes=30, channels=(32, 64, 128), size=32, batch_size=64, lr=1e-3),
        "pokemon": Preset(minutes=60, channels=(64, 128, 192), size=32, batch_size=32, lr=5e-4),
        OTHER: Preset(minutes=60, channels=(64, 128, 192), size=32, batch_size=32, lr=5e-4),
    },
    gpu={
        "creatures": Preset(minutes=30, channels=(64, 128, 192, 256), size=64, batch_size=128, lr=5e-4),
        "pokemon": Preset(minutes=60, channels=(64, 128, 192, 256), size=64, batch_size=64, lr=3e-4),
        OTHER: Preset(minutes=60, channels=(64, 128, 192, 256), size=64, batch_size=64, lr=3e-4),
    },
)


def main(args: Args) -> None:
    from cfg_pokemon.trainer import teach  # brings torch along, which --help should not wait for

    teach(settle(with_build(args), PRESETS, f"02_cfg_pokemon/{Path(args.data).name}"))


if __name__ == "__main__":
    run(main, Args)
