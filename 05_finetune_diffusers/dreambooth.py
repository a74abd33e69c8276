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

from common.cli import run
from common.errors import UserError
from finetune_diffusers.training.flags import DreamBoothFlags as Args
from finetune_diffusers.training.flags import Preset, SizePresets, checked

PRESETS = SizePresets(small=Preset(steps=500, batch_size=8, lr=1e-3), large=Preset(steps=400, batch_size=1, lr=2e-6))


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
    from finetune_diffusers.training.dreambooth import dreambooth

    dreambooth(args, PRESETS)


if __name__ == "__main__":
    run(main, Args)
