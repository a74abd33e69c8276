"""Measures whether a model uses its captions:
its loss with the right caption, with none, and with the caption of another image.

  python 02_cfg_pokemon/caption_sensitivity.py
  python 02_cfg_pokemon/caption_sensitivity.py --model runs/02_cfg_pokemon/creatures --n 500

Sampling takes minutes and needs a classifier; this takes seconds, works for any captioned images, and at any moment of
a training. A network that ignores its captions has the same loss three times. At low noise levels it always has,
because the noisy image itself shows what it is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from common.cli import run
from common.io.ranges import Range

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Args:
    model: Path = PRETRAINED
    """Run folder of this chapter, or folder of a text-to-image model of pixels."""
    data: str = "creatures"
    """Data set: creatures (the test split), pokemon, or a folder of images with captions."""
    data_dir: Path = Path("data")
    """Folder of local copies and of downloads."""
    language: Literal["en", "zh", "both"] | None = None
    """Language of the captions; by default both, and in a folder whatever there is."""
    n: Annotated[int, Range(2, 1_000_000, hint="each image is also paired with the caption of another")] = 300
    """Number of images, each used once in every band."""
    seed: int = 0
    """Random seed of the noise."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    from cfg_pokemon.caption_sensitivity import report

    report(args.model, args.data, args.data_dir, args.language, args.n, args.seed, args.device)


if __name__ == "__main__":
    run(main, Args)
