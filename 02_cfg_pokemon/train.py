"""Train a text-to-image model of pixels: creatures from their captions.

python 02_cfg_pokemon/train.py                                        the embedded creatures, captions in two languages
python 02_cfg_pokemon/train.py --data pokemon --data-dir data --language zh
python 02_cfg_pokemon/train.py --text openai/clip-vit-base-patch32    with a frozen CLIP as text encoder
python 02_cfg_pokemon/train.py --n 800 --steps 4000                   are 800 images enough?
python 02_cfg_pokemon/train.py --size 16 --minutes 15 --out runs/02_cfg_pokemon/small      captions are learned faster from small images;
python 02_cfg_pokemon/train.py --start runs/02_cfg_pokemon/small --minutes 50             ... then continue with larger ones
python 02_cfg_pokemon/train.py --resume runs/02_cfg_pokemon/creatures
"""

from dataclasses import dataclass
from pathlib import Path

from cfg_pokemon.flags import PixelModelFlags as Args
from common.cli import run
from common.training.settings import OTHER, Presets, settle, with_build


@dataclass(frozen=True)
class Preset:
    """What suits a data set on one kind of device."""

    minutes: float
    channels: tuple[int, ...]
    size: int
    batch_size: int = 16
    lr: float = 2e-3


PRESETS = Presets(
    cpu={  # many small steps learn the captions sooner than few large ones
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
    from cfg_pokemon.trainer import train_model  # imports torch, for which --help should not wait

    train_model(settle(with_build(args), PRESETS, f"02_cfg_pokemon/{Path(args.data).name}"))


if __name__ == "__main__":
    run(main, Args)
