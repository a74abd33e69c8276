"""Train a small Stable Diffusion: a text-to-image model that works in the latents of an autoencoder.

python 04_latent_sd/train.py                                            creatures and dishes together, the shipped autoencoder
python 04_latent_sd/train.py --vae runs/04_latent_sd/vae-creatures-dishes           ... or one of your own
python 04_latent_sd/train.py --latents on-the-fly --workers 2           encode during training, instead of once beforehand
python 04_latent_sd/train.py --start 04_latent_sd/pretrained            continue from a trained model, with a new budget
python 04_latent_sd/train.py --text openai/clip-vit-base-patch32        with a frozen CLIP as text encoder
python 04_latent_sd/train.py --resume runs/04_latent_sd/creatures-dishes
"""

from dataclasses import dataclass, replace
from pathlib import Path

from common.cli import run
from common.training.settings import OTHER, Presets, settle, with_build
from latent_sd.flags import PRETRAINED
from latent_sd.flags import LatentModelFlags as Args


@dataclass(frozen=True)
class Preset:
    """What suits data on one kind of device."""

    minutes: float
    channels: tuple[int, ...]
    batch_size: int = 16
    lr: float = 2e-3
    n: int | None = None


DRAWN = [("creatures", "dishes"), ("dishes", "creatures"), ("creatures",), ("dishes",)]
PRESETS = Presets(
    cpu=dict.fromkeys(DRAWN, Preset(minutes=120, channels=(32, 32, 64), n=5000))  # n: for 2 GB of memory
    | {OTHER: Preset(minutes=120, channels=(32, 32, 64), lr=1e-3)},
    mps=dict.fromkeys(DRAWN, Preset(minutes=60, channels=(64, 64, 128), batch_size=64, lr=1e-3))
    | {OTHER: Preset(minutes=120, channels=(64, 64, 128), batch_size=32, lr=5e-4)},
    gpu=dict.fromkeys(DRAWN, Preset(minutes=120, channels=(128, 256, 384), batch_size=128, lr=3e-4))
    | {OTHER: Preset(minutes=240, channels=(128, 256, 384), batch_size=64, lr=2e-4)},
)


def main(args: Args) -> None:
    from latent_sd.unet_trainer import train_model  # imports torch, for which --help should not wait

    if not args.resume:
        args = replace(args, vae=args.vae or args.start or PRETRAINED)
    train_model(settle(with_build(args), PRESETS, f"04_latent_sd/{'-'.join(Path(data).name for data in args.data)}"))


if __name__ == "__main__":
    run(main, Args)
