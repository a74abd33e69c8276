"""Prompt weights: how much each word counts, with the package Compel, and the same by hand.

  python 05_finetune_diffusers/studies/prompt_weighting.py "a red++ creature with (bat wings)1.5"
  python 05_finetune_diffusers/studies/prompt_weighting.py "a blue creature with (big horns)0.4 and a long tail" --n 8
  python 05_finetune_diffusers/studies/prompt_weighting.py "a green creature with bat wings" --word "bat wings" --sweep 0 0.5 1 1.5 2

word+ counts 1.1 times, word++ 1.1 x 1.1, word- 0.9 times, (several words)1.5 as much as it says. The text encoder
turns a prompt into one vector for each token, and the prompt "" into vectors as well; a weight moves a token's vector
away from that of the empty prompt, or towards it. That is all: ten lines, `weigh` in
finetune_diffusers/prompt_weights.py. Stable Diffusion XL has two text encoders, each read before its last layer; their
vectors are joined, and a pooled vector of the plain prompt goes with them. Writes pictures of the plain prompt, of
Compel's and of ours, side by side.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from common.cli import run
from common.io.ranges import SAMPLER_STEPS, Range

CHAPTER = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Args:
    prompt: Positional[str] = "a red++ creature with (bat wings)1.5"
    """Prompt with weights: red++, red-, (red wings)1.5."""
    word: str | None = None
    """Words of the prompt that get several weights, one row for each; the prompt itself has no weights then."""
    sweep: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    """Weights of --word."""
    model: str = str(CHAPTER.parent / "04_latent_sd" / "pretrained")
    """Folder of a pipeline, run folder, checkpoint in one file, or hub id."""
    n: int = 4
    """Pictures in each row."""
    scheduler: str = "own"
    """Scheduler: own is the model's; see generate.py."""
    steps: Annotated[int, SAMPLER_STEPS] = 25
    """Steps of the scheduler, from noise to picture."""
    guidance: Annotated[float, Range(1, 1000, hint="1 is off")] = 3.0
    """Guidance scale w, 1 or more."""
    seed: int = 0
    """Random seed of the first picture; the next has seed + 1."""
    out: Path = Path("runs/05_finetune_diffusers/weights")
    """Folder of the pictures."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    from finetune_diffusers.prompt_weights import PipelineSettings, compare_weights

    settings = PipelineSettings(args.scheduler, args.steps, args.guidance, args.seed)
    compare_weights(args.prompt, args.word, args.sweep, args.model, args.n, settings, args.out, args.device)


if __name__ == "__main__":
    sys.path.append(str(CHAPTER))  # where the package is
    run(main, Args)
