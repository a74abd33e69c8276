"""Visual anagrams and hybrid images by the chapter's model, with your answers to exercises 12 and 13.

  python 04_latent_sd/exercises/illusions.py
  python 04_latent_sd/exercises/illusions.py --submission 04_latent_sd/exercises/solutions.py --n 12
  python 04_latent_sd/exercises/illusions.py --upright "a creature with cat ears" --turned "a creature with two horns"

It writes a picture, and prints how many of the images show the attributes of each prompt: upright and turned upside
down, from near and from far.
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run
from common.grade.chapter import COURSE, open_chapter


@dataclass(frozen=True)
class Args:
    submission: Path = COURSE / "04_latent_sd/exercises/exercises.py"
    """Python file with the answers."""
    model: Path = COURSE / "04_latent_sd/pretrained"
    """Stable Diffusion folder of the model."""
    upright: str = "a creature with rabbit ears"
    """Prompt of the anagram as it is."""
    turned: str = "a creature with two horns"
    """Prompt of the anagram upside down."""
    near: str = "a creature with bear ears"
    """Prompt of the high frequencies of the hybrid image."""
    far: str = "a creature with rabbit ears"
    """Prompt of its low frequencies."""
    n: int = 8
    """Number of images."""
    guidance: float = 5.0
    """Guidance scale."""
    steps: int = 20
    """Number of sampling steps."""
    seed: int = 0
    """Random seed of the initial noise."""
    out: Path = Path("runs/04_latent_sd/illusions.png")
    """Output file of the picture."""


def main(args: Args) -> None:
    open_chapter("04_latent_sd")
    from latent_sd.illusions import draw_illusions

    draw_illusions(args)


if __name__ == "__main__":
    run(main, Args)
