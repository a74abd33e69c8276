"""Train the autoencoder: images in, a latent space f times smaller a side, the same images out.

  python 04_latent_sd/train_vae.py                                  the embedded creatures and dishes together, 64x64, f = 4
  python 04_latent_sd/train_vae.py --data creatures --perceptual 0.1
  python 04_latent_sd/train_vae.py --data path/to/pictures --size 128 --channels 32 64 128 128
  python 04_latent_sd/train_vae.py --adversarial 0.5 --adversarial-after 0.5     a discriminator joins half-way
  python 04_latent_sd/train_vae.py --start runs/04_latent_sd/vae-creatures-dishes --size 128    go on with larger images
  python 04_latent_sd/train_vae.py --start 04_latent_sd/pretrained --decoder-only        better pictures from the same latents
  python 04_latent_sd/train_vae.py --resume runs/04_latent_sd/vae-creatures-dishes
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import run
from common.errors import UserError
from common.training.flags import TrainingFlags
from common.training.settings import OTHER, Presets, settle


@dataclass(frozen=True)
class Args(TrainingFlags):
    data: tuple[str, ...] = ("creatures", "dishes")
    """Data sets, one or several that are trained on together: creatures, dishes, ..., or folders of images."""
    n: int | None = None
    """Number of images of each set, the first ones; by default all."""
    size: int | None = None
    """Pixels a side; a multiple of f = 2^(number of channels - 1)."""
    image_channels: Literal[1, 3] | None = None
    """Channels of the images: 3 in colour, 1 grey; by default those of --start, else 1 where all pictures are grey."""
    flip: bool = False
    """Whether images are mirrored at random."""

    channels: tuple[int, ...] | None = None
    """Width of the network at each resolution, highest resolution first; one resolution more doubles f."""
    latent_channels: int = 4
    """Channels of the latents."""
    layers: int = 1
    """Residual blocks at each resolution."""
    start: Path | None = None
    """Run or folder with an autoencoder of the same build, whose weights the training begins with. It may have learned at another
    size: small images are learned from faster."""
    decoder_only: bool = False
    """Training of the decoder alone: better pictures from the same latents, so that U-Nets trained on the latents of --start stay usable."""

    error: Literal["l1", "l2", "huber"] = "l1"
    """Distance between reconstructions and images, pixel by pixel."""
    kl: float = 1e-6
    """Weight of the KL term, in nats a pixel value."""
    perceptual: float = 0.0
    """Weight of the perceptual term, against blur; 0 is off."""
    adversarial: float = 0.0
    """Weight of the adversarial term, relative to the gradient of the other terms, against blur as well; 0 is off."""
    adversarial_after: float = 0.5
    """Share of the budget after which it joins: a discriminator learns nothing useful while reconstructions are still blurred."""
    held_out: int = 200
    """Images of each set's test split to measure on."""
    sample_every: int | None = None
    """Steps between measurements and pictures; by default a tenth of the budget."""


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
    cpu=dict.fromkeys(DRAWN, Preset(minutes=60, channels=(16, 32, 64))) | {OTHER: Preset(minutes=120, channels=(16, 32, 64), lr=5e-4)},
    mps=dict.fromkeys(DRAWN, Preset(minutes=30, channels=(32, 64, 128), batch_size=32, lr=5e-4))
    | {OTHER: Preset(minutes=90, channels=(32, 64, 128), batch_size=16, lr=5e-4)},
    gpu=dict.fromkeys(DRAWN, Preset(minutes=20, channels=(64, 128, 128), batch_size=64, lr=5e-4))
    | {OTHER: Preset(minutes=60, channels=(64, 128, 256), batch_size=32, lr=2e-4)},
)


def main(args: Args) -> None:
    from latent_sd.vae_trainer import fit_vae  # brings torch along, which --help should not wait for

    if args.decoder_only and not (args.start or args.resume):
        raise UserError("--decoder-only needs a trained autoencoder; give its run or folder with --start")
    fit_vae(settle(args, PRESETS, f"04_latent_sd/{'-'.join(['vae', *(Path(data).name for data in args.data)])}"))


if __name__ == "__main__":
    run(main, Args)
