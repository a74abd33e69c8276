"""Full fine-tuning: every weight of the U-Net goes on learning, the autoencoder and the text encoder stay as they are.

  python 05_finetune_diffusers/finetune.py                                   creatures as riso prints, on the course's own model
  python 05_finetune_diffusers/finetune.py --style woodcut --n 200
  python 05_finetune_diffusers/finetune.py --data dishes --style none
  python 05_finetune_diffusers/finetune.py --model stable-diffusion-v1-5/stable-diffusion-v1-5 --data pokemon --style none --checkpointing
  python 05_finetune_diffusers/finetune.py --model 02_cfg_pokemon/pretrained --style neon        a model of pixels
  python 05_finetune_diffusers/finetune.py --resume runs/05_finetune_diffusers/finetune-creatures-riso
  torchrun --nproc_per_node 2 -- 05_finetune_diffusers/finetune.py --n 200     several processes or GPUs; mind the two dashes alone

Without those dashes torchrun would take --n for an option of its own.
"""

from dataclasses import dataclass
from typing import Literal

from common.cli import run
from finetune_diffusers.training.flags import DataFlags, Preset, check_flags, data_name

SMALL = Preset(steps=600, batch_size=16, lr=3e-4)
LARGE = Preset(steps=2000, batch_size=4, lr=1e-5)
PROMPTS = (
    "a red fire creature with bat wings",
    "a blue round creature with cat ears",
    "a green grass creature with a curly tail",
    "a purple ghost creature with two horns",
    "a bowl of rice",
    "scrambled eggs with tomatoes",
)


@dataclass(frozen=True)
class Args(DataFlags):
    style: Literal["none", "riso", "blueprint", "woodcut", "neon"] = "riso"
    """Put every picture into a style that we draw ourselves, and its words at the end of every caption. none: the data as they are."""
    prompts: tuple[str, ...] = PROMPTS
    """Drawn before, after, and as training goes; with the words of the style at their end."""


def main(args: Args) -> None:
    check_flags(args)

    from common.io.files import write_folder
    from finetune_diffusers.data.latent_dataset import encode
    from finetune_diffusers.data.styles import read_style
    from finetune_diffusers.evaluation.evaluators import StyleExam, captioned_in_style, introduce, show
    from finetune_diffusers.pixel_pipeline import save_model
    from finetune_diffusers.training.trainer import Tuner, begin, checked, denoising, follow, paint

    style = read_style(args.style)
    args, pipe, accelerator, size = begin(args, "finetune", name_of(args), SMALL, LARGE)
    images, plain = captioned_in_style(args, style, size, accelerator)
    record = checked(args, pipe, images)
    data = encode(pipe, images, images.captions, quiet=not accelerator.is_main_process)
    loss = denoising(pipe, data, args)
    exam = StyleExam(args, pipe, style, size, accelerator, loss, plain)
    introduce(args, pipe, images, "all of its U-Net is trained", accelerator)
    exam.sit("base")

    pipe.unet.requires_grad_(True)
    tuner = Tuner(pipe.unet, data, loss, args, accelerator)
    state = follow(tuner, lambda: paint(pipe, exam.prompts, args, size, accelerator), exam.prompts, record)
    if accelerator.is_main_process:
        with tuner.averaged():
            model = write_folder(args.out / "model", lambda folder: save_model(pipe, folder))
            exam.sit("tuned")
        show(args, state, exam, tuner, "finetune.py", {"model": model})


def name_of(args: Args) -> str:
    """Of the run: creatures-riso."""
    return data_name(args) if args.style == "none" else f"{data_name(args)}-{args.style}"


if __name__ == "__main__":
    run(main, Args)
