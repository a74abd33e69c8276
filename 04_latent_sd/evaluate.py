"""Measures whether images show what their captions say, and how much the autoencoder loses.

  python 04_latent_sd/evaluate.py                                                the shipped model
  python 04_latent_sd/evaluate.py --model runs/04_latent_sd/creatures-dishes --scales 1 2 3 5 8 --n 200
  python 04_latent_sd/evaluate.py --scales                                       the autoencoder alone

Autoencoder: the PSNR of the reconstructions of images that training never saw, for each data set, and the standard
deviation of their scaled latents, which the noise schedule expects to be 1.

Prompt adherence: as in chapter 2, with the same prompts and the same classifier, which sees 32 x 32 pixels. The
columns are explained in common/evaluate/prompt_accuracy.py. A prompt starts from the same noise at every scale. Beside
the two bounds explained there stands the upper bound that the autoencoder leaves: real images, encoded and decoded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from common.cli import run
from common.io.ranges import MAY_BE_EMPTY

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Args:
    model: Path = PRETRAINED
    """Run folder of this chapter, or folder of such a model."""
    scales: Annotated[tuple[float, ...], MAY_BE_EMPTY] = (1, 2, 3, 5, 8)
    """Guidance scales to measure; 1 is off, 0 ignores the prompt. Without any, the autoencoder alone is measured."""
    n: int = 200
    """Number of prompts of each split, and of images of each set."""
    splits: tuple[Literal["test", "heldout"], ...] = ("test", "heldout")
    """Splits of the prompts."""
    data: Annotated[tuple[str, ...], MAY_BE_EMPTY] = ("creatures", "dishes")
    """Data sets with whose test images the autoencoder is measured.
    Without any, prompt adherence alone is measured.
    """
    data_dir: Path = Path("data")
    """Folder of local copies and of downloads."""
    language: Literal["en", "zh", "both"] = "both"
    """Language of the prompts; both is half and half."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and number of steps: dpmpp_2m:20, ddim:50, ..."""
    rescale: float = 0.0
    """phi of guidance rescale, 0 to 1, against too strong contrast."""
    negative: str = ""
    """Negative prompt of all pictures."""
    seed: int = 0
    """Random seed of the initial noise."""
    out: Path | None = None
    """Folder of results.csv and the figures; by default runs/04_latent_sd/evaluate/<model>."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    from latent_sd.evaluation import SamplingConfig, evaluate_model

    config = SamplingConfig(1.0, args.negative, args.sampler, args.rescale, seed=args.seed)
    evaluate_model(
        args.model,
        args.scales,
        args.n,
        args.splits,
        args.language,
        config,
        args.data,
        args.data_dir,
        args.out,
        args.device,
    )


if __name__ == "__main__":
    run(main, Args)
