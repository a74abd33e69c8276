"""Measures whether images show what their captions say: a text-to-image model of creatures at several guidance scales.

  python 02_cfg_pokemon/evaluate.py                                               the shipped model
  python 02_cfg_pokemon/evaluate.py --model runs/02_cfg_pokemon/creatures --scales 0 1 1.5 2 3 5 8 --n 200
  python 02_cfg_pokemon/evaluate.py --rescale 0.7                                 what cures dark and burnt pictures?
  python 02_cfg_pokemon/evaluate.py --clip dynamic
  python 02_cfg_pokemon/evaluate.py --interval 0.3 5 --per-attribute

The columns accuracy, all right and pair, and their bounds, are explained in common/evaluate/prompt_accuracy.py. A
prompt starts from the same noise at every scale. Beside them stand:

    brightness, saturation   means over all pixels, 0 to 1, with their standard error. Differences between scales are
                             much more
                 certain than that, because the prompts are the same; so is the comparison with real pictures of these
                 prompts
    diversity    standard deviation between four pictures of the same prompt, 0 to 1; real: between creatures of that
                 description

Drawn pictures are kept: an evaluation that was stopped continues.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import run

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Args:
    model: Path = PRETRAINED
    """Run folder of this chapter, or folder of a text-to-image model of pixels."""
    scales: tuple[float, ...] = (0, 1, 1.5, 2, 3, 5, 8)
    """Guidance scales to measure; 1 is off, 0 ignores the prompt."""
    n: int = 200
    """Number of prompts of each split."""
    splits: tuple[Literal["test", "heldout"], ...] = ("test", "heldout")
    """Splits of the prompts; brightness, saturation and diversity are shown for the first."""
    language: Literal["en", "zh", "both"] = "both"
    """Language of the prompts; both is half and half."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and number of steps: dpmpp_2m:20, ddim:50, ..."""
    rescale: float = 0.0
    """phi of guidance rescale, 0 to 1, against too strong contrast."""
    clip: Literal["static", "none", "dynamic"] = "static"
    """How predicted images are kept in range: clipped at black and white, not at all, or by dynamic thresholding."""
    interval: tuple[float, float] = (0.0, math.inf)
    """Noise levels sigma / alpha between which guidance is used."""
    negative: str = ""
    """Negative prompt of all pictures."""
    per_attribute: bool = False
    """Whether to print the accuracy of each attribute, too. (The CSV holds it anyway.)"""
    seed: int = 0
    """Random seed of the initial noise."""
    out: Path | None = None
    """Folder of results.csv and the figures;
    by default runs/02_cfg_pokemon/evaluate/<model>/<settings that are not the default>.
    """
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    from cfg_pokemon.evaluation import SamplingConfig, evaluate_model

    config = SamplingConfig(1.0, args.negative, args.sampler, args.rescale, args.interval, seed=args.seed)
    evaluate_model(
        args.model,
        args.scales,
        args.n,
        args.splits,
        args.language,
        args.clip,
        config,
        args.per_attribute,
        args.out,
        args.device,
    )


if __name__ == "__main__":
    run(main, Args)
