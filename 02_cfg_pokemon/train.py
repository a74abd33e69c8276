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
from common.training.settings import OTHER, Presets, one_budget, resumed, with_build, with_folder, with_preset

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
class Args:
    data: str = "creatures"
    """creatures, pokemon, or a folder of images with captions."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    language: Literal["en", "zh", "both"] | None = None
    """Of the captions; by default English and Chinese, half and half, and in a folder whatever there is."""
    n: int | None = None
    """Only the first n images."""
    size: int | None = None
    """Pixels a side."""
    image_channels: Literal[1, 3] | None = None
    """Channels of the images: 3 in colour, 1 grey; by default those of --start, else 1 where all pictures are grey."""
    augment: Literal["none", "mirror", "jitter", "turn"] = "none"
    """Change images at random: mirror them (not if a caption says left or right), jitter their brightness, or turn them a little,
    with black corners. ablations.py measures what that does to the colours."""

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
    """Width of the U-Net at each resolution, highest resolution first; the words come in at the two lowest."""
    layers: int = 1
    """Residual blocks at each resolution."""
    start: Path | None = None
    """Begin with the weights of this run or folder, and its --channels. It may have learned at another size: words are learned
    faster from small images."""
    schedule: str = "cosine"
    """linear, cosine, sigmoid, scaled_linear, linear_zero_snr, ..., edm or flow."""
    prediction: str = "v"
    """What the network predicts: eps, x0 or v (edm and flow with the schedule of that name)."""

    prompts: tuple[str, ...] = PROMPTS
    """Drawn as training goes, plain and guided side by side."""
    guidance: float = 3.0
    """Guidance scale of those pictures; 1 is off."""
    sampler: str = "dpmpp_2m:20"
    """How they are sampled."""

    out: Path | None = None
    """The run folder; by default runs/02_cfg_pokemon/<data>, numbered if that is taken."""
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


def check_numbers(args: Args) -> None:
    one_budget(args)


def new_run(args: Args) -> Args:
    """Settle every setting, so that --resume needs nothing but the folder."""
    return with_folder(with_preset(with_build(args), PRESETS), "02_cfg_pokemon")


def main(args: Args) -> None:
    check_numbers(args)
    from cfg_pokemon.trainer import teach  # brings torch along, which --help should not wait for

    teach(resumed(args) if args.resume else new_run(args))


if __name__ == "__main__":
    run(main, Args)
