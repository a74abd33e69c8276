"""DreamBooth: a handful of pictures of one subject, and a word for it.
Then the model draws this very creature wherever it is wanted.

  python 05_finetune_diffusers/dreambooth.py                                       one drawn creature with a scarf, in six poses
  python 05_finetune_diffusers/dreambooth.py --prior 0                             without prior preservation: see what becomes of the others
  python 05_finetune_diffusers/dreambooth.py --subject path/to/pictures --kind dog --model stable-diffusion-v1-5/stable-diffusion-v1-5
  python 05_finetune_diffusers/dreambooth.py --rank 8                              as a LoRA, which lora.py --use opens
  python 05_finetune_diffusers/dreambooth.py --resume runs/05_finetune_diffusers/dreambooth-sks

Ruiz et al. 2022, "DreamBooth". Two things can go wrong with so few pictures. The model may forget what it knew, until
every creature is this one: against that, half of each batch are pictures that the model itself drew of "a creature"
before (prior preservation). And a word with a meaning would bring that meaning along, so a rare one is chosen: "sks".
A small vocabulary can write every word, because it splits words into pieces down to single bytes; what matters is that
these pieces never stood in this order.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from common.cli import run
from common.errors import UserError
from common.io.ranges import Range
from finetune_diffusers.training.flags import Preset, SizePresets, TuningFlags, checked

PRESETS = SizePresets(small=Preset(steps=500, batch_size=8, lr=1e-3), large=Preset(steps=400, batch_size=1, lr=2e-6))


@dataclass(frozen=True)
class Args(TuningFlags):
    subject: Path | None = None
    """Folder with a few pictures of one thing; by default a drawn creature."""
    poses: int = 6
    """Pictures of the drawn creature."""
    word: str = "sks"
    """Name of the subject: a word that means nothing yet."""
    kind: str = "creature"
    """Kind of the subject, in a word that the model knows."""
    prior: float = 1.0
    """Weight of prior preservation; 0 is off."""
    class_images: int = 64
    """Pictures of the kind that the model draws before it is trained."""
    rank: Annotated[int, Range(0, 4096, 8)] = 0
    """Rank of a LoRA that is trained in place of all weights; 0 is all weights."""
    prompts: tuple[str, ...] = (
        "a {}",
        "a {} on a mint background",
        "a sleepy {}",
        "a {} with bat wings",
        "a {kind}",
        "a blue {kind}",
    )
    """Validation prompts, drawn before, during and after the training;
    {} stands for the word and the kind, {kind} for the kind alone.
    """


def main(args: Args) -> None:
    args = checked(args)
    for flag, value in (("word", args.word), ("kind", args.kind)):
        if not value.strip():
            raise UserError(
                f"--{flag} must not be empty; the caption of the subject is 'a WORD KIND', for instance 'a sks creature'"
            )
    if args.subject and not args.subject.is_dir():
        found = f"{args.subject} is not a folder" if args.subject.exists() else f"there is no folder {args.subject}"
        raise UserError(f"{found}; --subject takes a folder with a few pictures of one thing")
    from finetune_diffusers.training.dreambooth import Subject, dreambooth

    subject = Subject(args.word, args.kind, args.subject, args.poses)
    dreambooth(args, subject, args.prompts, args.prior, args.class_images, args.rank, PRESETS)


if __name__ == "__main__":
    run(main, Args)
