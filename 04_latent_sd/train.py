"""Train a small Stable Diffusion: a text-to-image model that works in the latents of an autoencoder.

  python 04_latent_sd/train.py                                            creatures and dishes together, the shipped autoencoder
  python 04_latent_sd/train.py --vae runs/04_latent_sd/vae-creatures-dishes           ... or one of your own
  python 04_latent_sd/train.py --latents on-the-fly --workers 2           encode while training, instead of once beforehand
  python 04_latent_sd/train.py --start 04_latent_sd/pretrained            go on from a trained model, with a new budget
  python 04_latent_sd/train.py --text openai/clip-vit-base-patch32        words read by a frozen CLIP
  python 04_latent_sd/train.py --resume runs/04_latent_sd/creatures-dishes
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from common.cli import run
from common.training.flags import SampleFlags, UNetFlags
from common.training.settings import OTHER, Presets, settle, with_build

PRETRAINED = Path(__file__).parent / "pretrained"
PROMPTS = (
    "a red fire creature with bat wings",
    "a blue round creature with cat ears, on a cream background",
    "一只黄色的电属性小怪兽，长着兔耳朵",
    "a blue fire creature",  # training never sees blue and fire together
    "番茄炒蛋",
    "白瓷圆盘里的葱油生菜，木桌",
    "a white plate of red-braised fish on a linen tablecloth",
    "",
)


@dataclass(frozen=True)
class Args(UNetFlags, SampleFlags):
    data: tuple[str, ...] = ("creatures", "dishes")
    """Data sets, one or several that are trained on together: creatures, dishes, pokemon, or folders of images with captions."""
    language: Literal["en", "zh", "both"] | None = None
    """Language of the captions; by default English and Chinese, half and half, and in a folder whatever there is."""
    n: int | None = None
    """Number of images of each set, the first ones; by default all."""
    size: int | None = None
    """Pixels a side; by default what the autoencoder was trained for."""

    vae: Path | None = None
    """Autoencoder: a run of train_vae.py, a folder with one in it, or a checkpoint in one file; by default that of --start, or the shipped one. It stays frozen."""
    latents: Literal["cached", "on-the-fly"] = "cached"
    """Encoding of the images: once, into a file, or again in every epoch."""
    cache: Path = Path("runs/04_latent_sd/cache")
    """Folder of that file, and of the embeddings of a frozen text encoder; later runs find them there."""
    workers: int = 2
    """Processes that encode on the fly; 0 encodes in the training process."""

    text: str = "small"
    """Text encoder: small (a transformer trained along), or a frozen CLIP as a hub id or a folder."""
    text_dim: int = 96
    """Width of the small transformer's embeddings."""
    channels: tuple[int, ...] | None = None
    """Width of the U-Net at each resolution of the latents, highest first; the two lowest attend to the text."""
    start: Path | None = None
    """Run or folder whose U-Net, text encoder and --channels the training begins with."""
    schedule: str = "cosine"
    """Noise schedule: cosine, linear, scaled_linear, linear_zero_snr, ..., one that a Stable Diffusion folder can store."""
    prediction: str = "v"
    """Prediction of the network: eps, x0 or v."""
    prompts: tuple[str, ...] = PROMPTS
    """Prompts of the sample pictures, drawn without and with guidance side by side."""


@dataclass(frozen=True)
class Preset:
    """What suits data on one kind of device."""

    minutes: float
    channels: tuple[int, ...]
    batch_size: int = 16
    lr: float = 2e-3


DRAWN = [("creatures", "dishes"), ("dishes", "creatures"), ("creatures",), ("dishes",)]
PRESETS = Presets(
    cpu=dict.fromkeys(DRAWN, Preset(minutes=120, channels=(32, 64))) | {OTHER: Preset(minutes=120, channels=(32, 64), lr=1e-3)},
    mps=dict.fromkeys(DRAWN, Preset(minutes=60, channels=(64, 128), batch_size=64, lr=1e-3))
    | {OTHER: Preset(minutes=120, channels=(64, 128), batch_size=32, lr=5e-4)},
    gpu=dict.fromkeys(DRAWN, Preset(minutes=30, channels=(128, 256), batch_size=256, lr=5e-4))
    | {OTHER: Preset(minutes=60, channels=(128, 256), batch_size=128, lr=3e-4)},
)


def main(args: Args) -> None:
    from latent_sd.unet_trainer import fit_unet  # brings torch along, which --help should not wait for

    if not args.resume:
        args = replace(args, vae=args.vae or args.start or PRETRAINED)
    fit_unet(settle(with_build(args), PRESETS, f"04_latent_sd/{'-'.join(Path(data).name for data in args.data)}"))


if __name__ == "__main__":
    run(main, Args)
