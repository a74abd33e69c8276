"""Train the autoencoder: images in, a latent space f times smaller a side, the same images out.

  python 04_latent_sd/train_vae.py                                  the embedded creatures and dishes together, 64x64, f = 4
  python 04_latent_sd/train_vae.py --data creatures --perceptual 0.1
  python 04_latent_sd/train_vae.py --data path/to/pictures --size 128 --channels 32 64 128 128
  python 04_latent_sd/train_vae.py --adversarial 0.5 --adversarial-after 0.5     a discriminator joins half-way
  python 04_latent_sd/train_vae.py --start runs/04_latent_sd/vae-creatures-dishes --size 128    go on with larger images
  python 04_latent_sd/train_vae.py --start 04_latent_sd/pretrained --decoder-only        better pictures from the same latents
  python 04_latent_sd/train_vae.py --resume runs/04_latent_sd/vae-creatures-dishes
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from common.cli import free_folder, run
from common.errors import UserError
from common.io.files import read_json
from common.training.settings import OTHER, Presets, image_channels, one_budget, resumed, with_folder, with_preset


@dataclass(frozen=True)
class Args:
    data: tuple[str, ...] = ("creatures", "dishes")
    """One data set or several, trained on together: creatures, dishes, ..., or folders of images."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    n: int | None = None
    """Only the first n images of each set."""
    size: int | None = None
    """Pixels a side; a multiple of f = 2^(number of channels - 1)."""
    image_channels: Literal[1, 3] | None = None
    """Channels of the images: 3 in colour, 1 grey; by default those of --start, else 1 where all pictures are grey."""
    flip: bool = False
    """Mirror images at random."""

    channels: tuple[int, ...] | None = None
    """Width of the network at each resolution, highest resolution first; one resolution more doubles f."""
    latent_channels: int = 4
    """Channels of the latents."""
    layers: int = 1
    """Residual blocks at each resolution."""
    start: Path | None = None
    """Begin with the weights of this run or folder, an autoencoder of the same build. It may have learned at another size: small
    images are learned from faster."""

    decoder_only: bool = False
    """Train the decoder alone, better pictures from the same latents: U-Nets that learned the latents of --start stay of use."""

    error: Literal["l1", "l2", "huber"] = "l1"
    """How reconstructions are compared with images, pixel by pixel."""
    kl: float = 1e-6
    """Weight of the KL term, in nats a pixel value."""
    perceptual: float = 0.0
    """Weight of the perceptual term: against blur. 0 is off."""
    adversarial: float = 0.0
    """Weight of the adversarial term, in units of what the other terms pull; against blur too. 0 is off."""
    adversarial_after: float = 0.5
    """Share of the budget after which it joins: a discriminator is of no use while images are still mud."""

    steps: int | None = None
    """Budget in optimizer steps ..."""
    minutes: float | None = None
    """... or in wall-clock time (the default). The learning rate follows the budget."""
    batch_size: int | None = None
    """Images per step and process."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    gradient_accumulation: int = 1
    """Batches per optimizer step."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision. auto is bf16 where the device is fast at it (recent GPUs, CPUs with AVX512-BF16), else no."""

    held_out: int = 200
    """Images of each set's test split to measure on."""
    out: Path | None = None
    """The run folder; by default runs/04_latent_sd/vae-<data>, numbered if that is taken."""
    resume: Path | None = None
    """Run folder to continue. Its settings apply; budget, device, sample pictures and the place of the data can be given anew."""
    save_every: int = 500
    """Steps between checkpoints."""
    sample_every: int | None = None
    """Steps between measurements and pictures; by default at each tenth of the budget."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


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


def check_numbers(args: Args) -> None:
    one_budget(args)
    if args.decoder_only and not (args.start or args.resume):
        raise UserError("--decoder-only needs a trained autoencoder; give its run or folder with --start")


def new_run(args: Args) -> Args:
    """Settle every setting, so that --resume needs nothing but the folder."""
    name = "-".join(["vae", *(Path(data).name for data in args.data)])
    args = replace(args, out=args.out or free_folder(Path("runs/04_latent_sd") / name))
    if args.start and args.image_channels is None:
        path = next((path for path in (args.start / part / "config.json" for part in ("vae", "model/vae", "")) if path.exists()), None)
        args = replace(args, image_channels=image_channels(read_json(path) if path else {}))
    return with_folder(with_preset(args, PRESETS), "04_latent_sd")


def main(args: Args) -> None:
    check_numbers(args)
    from latent_sd.vae_trainer import fit_vae  # brings torch along, which --help should not wait for

    fit_vae(resumed(args) if args.resume else new_run(args))


if __name__ == "__main__":
    run(main, Args)
