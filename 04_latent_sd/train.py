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

from common.cli import free_folder, run
from common.training.settings import OTHER, Presets, one_budget, resumed, with_build, with_folder, with_preset

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
class Args:
    data: tuple[str, ...] = ("creatures", "dishes")
    """One data set or several, trained on together: creatures, dishes, pokemon, or folders of images with captions."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    language: Literal["en", "zh", "both"] | None = None
    """Of the captions; by default English and Chinese, half and half, and in a folder whatever there is."""
    n: int | None = None
    """Only the first n images of each set."""
    size: int | None = None
    """Pixels a side; by default what the autoencoder was trained for."""

    vae: Path | None = None
    """The autoencoder: a run of train_vae.py, a folder with one in it, or a checkpoint in one file; by default that of --start, or the shipped one. It stays as it is."""
    latents: Literal["cached", "on-the-fly"] = "cached"
    """Encode all images once, into a file, or again in every epoch."""
    cache: Path = Path("runs/04_latent_sd/cache")
    """Where that file goes, and the embeddings of a frozen encoder; later runs find it there."""
    workers: int = 2
    """Processes that encode on the fly; 0 encodes in the training process."""

    text: str = "small"
    """Who reads the captions: small (a transformer trained along), or a frozen CLIP: a hub id or a folder."""
    text_dim: int = 96
    """Width of the small transformer's embeddings."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, so that guidance has something to compare with."""

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

    channels: tuple[int, ...] | None = None
    """Width of the U-Net at each resolution of the latents, highest first; the words come in at the two lowest."""
    layers: int = 1
    """Residual blocks at each resolution."""
    start: Path | None = None
    """Begin with the U-Net and the reader of this run or folder, and its --channels."""
    schedule: str = "cosine"
    """cosine, linear, scaled_linear, linear_zero_snr, ...: one that a Stable Diffusion folder has a place for."""
    prediction: str = "v"
    """What the network predicts: eps, x0 or v."""

    prompts: tuple[str, ...] = PROMPTS
    """Drawn as training goes, plain and guided side by side."""
    guidance: float = 5.0
    """Guidance scale of those pictures; 1 is off."""
    sampler: str = "dpmpp_2m:20"
    """How they are sampled."""

    out: Path | None = None
    """The run folder; by default runs/04_latent_sd/<data>, numbered if that is taken."""
    resume: Path | None = None
    """Run folder to continue. Its settings apply; budget, device, sample pictures and the place of the data can be given anew."""
    save_every: int = 500
    """Steps between checkpoints."""
    sample_every: int | None = None
    """Steps between sample pictures; by default at each tenth of the budget."""
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


def check_numbers(args: Args) -> None:
    one_budget(args)


def new_run(args: Args) -> Args:
    """Settle every setting, so that --resume needs nothing but the folder."""
    args = replace(args, vae=args.vae or args.start or PRETRAINED)
    args = replace(args, out=args.out or free_folder(Path("runs/04_latent_sd") / "-".join(Path(data).name for data in args.data)))
    return with_folder(with_preset(with_build(args), PRESETS), "04_latent_sd")


def main(args: Args) -> None:
    check_numbers(args)
    from latent_sd.unet_trainer import fit_unet  # brings torch along, which --help should not wait for

    fit_unet(resumed(args) if args.resume else new_run(args))


if __name__ == "__main__":
    run(main, Args)
