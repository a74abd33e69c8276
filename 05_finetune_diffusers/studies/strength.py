"""Does lower strength keep the image, and higher follow the prompt? Does very high guidance give artefacts?

  python 05_finetune_diffusers/studies/strength.py
  python 05_finetune_diffusers/studies/strength.py --n 64 --strength 0.1 0.3 0.5 0.7 0.9 --guidance 1 3 9 27

A creature that no model was trained on is redrawn by img2img as the prompt of ANOTHER creature says. A distance of
pixels tells how far the picture moves. The course's classifier of creatures tells what it becomes, by those attributes
only that the prompt names and the picture had otherwise: each of them now is as the prompt says (followed), as the
picture was (kept), or neither.

At strength 1 the same is drawn with ever more guidance, and the look of the pictures is measured beside that of the
creatures themselves: saturation, clipped channels, and fine detail.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from common.cli import run
from common.io.ranges import SAMPLER_STEPS, Range

CHAPTER = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Args:
    strength: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """How far the pictures are noised, above 0 to 1."""
    at_guidance: Annotated[float, Range(1, 1000, hint="1 is off")] = 3.0
    """Guidance scale at which strengths are compared."""
    guidance: Annotated[tuple[float, ...], Range(1, 1000, hint="1 is off")] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """Guidance scales that are compared at strength 1."""
    n: Annotated[int, Range(2, 1_000_000, hint="the prompt of each picture is another's")] = 16
    """Pictures of each setting."""
    steps: Annotated[int, SAMPLER_STEPS] = 20
    """Steps from pure noise; a strength of 0.4 takes 0.4 of them."""
    scheduler: str = "own"
    """own (the scheduler that the model was saved with), ddim, dpm++, euler-a, ...: see generate.py."""
    split: Literal["test", "heldout"] = "test"
    """Creatures that no model was trained on: new ones of known combinations, or combinations held out."""
    model: str = str(CHAPTER.parent / "04_latent_sd" / "pretrained")
    """Folder of a pipeline that draws creatures."""
    seed: int = 0
    """Random seed of the first picture; the next has seed + 1."""
    out: Path = Path("runs/05_finetune_diffusers/strength")
    """Folder of the tables and pictures."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    from finetune_diffusers.evaluation.strength import PipelineSettings, strength_study

    settings = PipelineSettings(args.scheduler, args.steps, args.at_guidance, args.seed)
    strength_study(args.model, args.strength, args.guidance, args.n, settings, args.split, args.out, args.device)


if __name__ == "__main__":
    sys.path.append(str(CHAPTER))  # where the package is
    run(main, Args)
