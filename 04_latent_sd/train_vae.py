"""Train the autoencoder: images in, a latent space f times smaller a side, the same images out.

python 04_latent_sd/train_vae.py                                  the embedded creatures and dishes together, 64x64, f = 4
python 04_latent_sd/train_vae.py --data creatures --perceptual 0.1
python 04_latent_sd/train_vae.py --data path/to/pictures --size 128 --channels 32 64 128 128
python 04_latent_sd/train_vae.py --adversarial 0.5 --adversarial-after 0.5     a discriminator joins half-way
python 04_latent_sd/train_vae.py --start runs/04_latent_sd/vae-creatures-dishes --size 128    continue with larger images
python 04_latent_sd/train_vae.py --start 04_latent_sd/pretrained --decoder-only        better pictures from the same latents
python 04_latent_sd/train_vae.py --resume runs/04_latent_sd/vae-creatures-dishes
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run
from common.errors import UserError
from common.training.settings import OTHER, Presets, settle
from latent_sd.flags import AutoencoderFlags as Args


@dataclass(frozen=True)
class Preset:
    """What suits data on one kind of device."""

    minutes: float
    channels: tuple[int, ...]
    size: int = 64
    batch_size: int = 16
    lr: float = 1e-3


DRAWN = [("creatures", "dishes"), ("dishes", "creatures"), ("creatures",), ("dishes",)]
PRESETS = Presets(
    cpu=dict.fromkeys(DRAWN, Preset(minutes=60, channels=(16, 32, 64)))
    | {OTHER: Preset(minutes=120, channels=(16, 32, 64), lr=5e-4)},
    mps=dict.fromkeys(DRAWN, Preset(minutes=30, channels=(32, 64, 128), batch_size=32, lr=5e-4))
    | {OTHER: Preset(minutes=90, channels=(32, 64, 128), batch_size=16, lr=5e-4)},
    gpu=dict.fromkeys(DRAWN, Preset(minutes=45, channels=(64, 128, 128), size=256, batch_size=16, lr=3e-4))
    | {OTHER: Preset(minutes=120, channels=(64, 128, 256), size=256, batch_size=8, lr=2e-4)},
)


def main(args: Args) -> None:
    from latent_sd.vae_trainer import train_autoencoder  # imports torch, for which --help should not wait

    if args.decoder_only and not (args.start or args.resume):
        raise UserError("--decoder-only needs a trained autoencoder; give its run or folder with --start")
    train_autoencoder(
        settle(args, PRESETS, f"04_latent_sd/{'-'.join(['vae', *(Path(data).name for data in args.data)])}")
    )


if __name__ == "__main__":
    run(main, Args)
