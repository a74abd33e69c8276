"""DreamBooth: a handful of pictures of one subject, and a word for it.
Then the model draws this very creature wherever it is wanted.

  python 05_finetune_diffusers/dreambooth.py                                       six pictures of one drawn creature with a scarf
  python 05_finetune_diffusers/dreambooth.py --prior 0                             without prior preservation: see what becomes of the others
  python 05_finetune_diffusers/dreambooth.py --subject my/dog --kind dog --instance-prompt "a photo of {}" --model stable-diffusion-v1-5/stable-diffusion-v1-5
  python 05_finetune_diffusers/dreambooth.py --rank 8                              as a LoRA, which lora.py --use opens
  python 05_finetune_diffusers/dreambooth.py --rank 16 --targets to_q to_k to_v to_out.0 conv1 conv2    a small model needs its convolutions, too
  python 05_finetune_diffusers/dreambooth.py --resume runs/05_finetune_diffusers/dreambooth-sks

Ruiz et al. 2022, "DreamBooth". Two things can go wrong with so few pictures. The model may forget what it knew, until
every creature is this one: against that, half of each batch are pictures that the model itself drew of "a creature"
before (prior preservation). And the subject's word brings along what it means already, so it should be rare: a token
of the vocabulary that the model has hardly met, such as "sks" in CLIP's. Letters typed at random are worse, because
they are read as several common tokens (section 3.2 of the paper). The small vocabulary of the course's own model reads
"sks" as two tokens, which occur in no caption of creatures.
"""

from common.cli import run
from common.errors import UserError
from finetune_diffusers.training.flags import DreamBoothFlags as Args
from finetune_diffusers.training.flags import Preset, SizePresets, checked

PRESETS = SizePresets(small=Preset(steps=1000, batch_size=8, lr=1e-3), large=Preset(steps=400, batch_size=1, lr=2e-6))
# a LoRA has few weights, which begin far from where they end
LORA_PRESETS = SizePresets(
    small=Preset(steps=1000, batch_size=8, lr=3e-3), large=Preset(steps=500, batch_size=1, lr=1e-4)
)


def main(args: Args) -> None:
    args = checked(args)
    for flag, value in (("word", args.word), ("kind", args.kind)):
        if not value.strip():
            raise UserError(
                f"--{flag} must not be empty; the caption of the subject is 'a WORD KIND', for instance 'a sks creature'"
            )
    if args.class_dir and args.class_dir.exists() and not args.class_dir.is_dir():
        raise UserError(f"{args.class_dir} is not a folder; --class-dir takes a folder of class images")
    if "{}" not in args.instance_prompt:
        raise UserError(
            f'--instance-prompt "{args.instance_prompt}" has no {{}} where the subject stands, as in "a photo of {{}}"'
        )
    if args.output_kohya_format and not args.rank:
        raise UserError("--output-kohya-format writes a LoRA, so it goes with --rank, for instance --rank 8")
    if args.subject and not args.subject.is_dir():
        found = f"{args.subject} is not a folder" if args.subject.exists() else f"there is no folder {args.subject}"
        raise UserError(f"{found}; --subject takes a folder with a few pictures of one thing")
    from finetune_diffusers.training.dreambooth import dreambooth

    dreambooth(args, LORA_PRESETS if args.rank else PRESETS)


if __name__ == "__main__":
    run(main, Args)
