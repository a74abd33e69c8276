"""DreamBooth: a handful of pictures of one subject, and a word for it. Then the model draws this very creature wherever it is wanted.

  python 05_finetune_diffusers/dreambooth.py                                       one drawn creature with a scarf, in six poses
  python 05_finetune_diffusers/dreambooth.py --prior 0                             without prior preservation: see what becomes of the others
  python 05_finetune_diffusers/dreambooth.py --subject path/to/pictures --kind dog --model stable-diffusion-v1-5/stable-diffusion-v1-5
  python 05_finetune_diffusers/dreambooth.py --rank 8                              as a LoRA, which lora.py --use opens
  python 05_finetune_diffusers/dreambooth.py --resume runs/05_finetune_diffusers/dreambooth-sks

Ruiz et al. 2022, "DreamBooth". Two things can go wrong with so few pictures. The model may forget what it knew, until every creature is this
one: against that, half of each batch are pictures that the model itself drew of "a creature" before (prior preservation). And a word with a
meaning would pull that meaning along, so a rare one is chosen: "sks". To a small vocabulary no word is impossible, for it falls
into pieces down to single bytes; what matters is that the pieces never stood in this order.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from common.cli import run
from common.errors import UserError
from common.io.ranges import Range
from finetune_diffusers.training.flags import Flags, Preset, check_flags

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Tensor

    from common.data import Images

SMALL = Preset(steps=500, batch_size=8, lr=1e-3)
LARGE = Preset(steps=400, batch_size=1, lr=2e-6)
PROMPTS = ("a {}", "a {} on a mint background", "a sleepy {}", "a {} with bat wings", "a {kind}", "a blue {kind}")


@dataclass(frozen=True)
class Args(Flags):
    subject: Path | None = None
    """A folder with a few pictures of one thing; by default a drawn creature."""
    poses: int = 6
    """Pictures of the drawn creature."""
    word: str = "sks"
    """What it is to be called: a word that means nothing yet."""
    kind: str = "creature"
    """What it is one of, in a word that the model knows."""
    prior: float = 1.0
    """Weight of prior preservation; 0 is off."""
    class_images: int = 64
    """Pictures of the kind that the model draws before it begins."""
    rank: Annotated[int, Range(0, 4096, 8)] = 0
    """Train a LoRA of this rank in place of all weights; 0 is all weights."""
    prompts: tuple[str, ...] = PROMPTS
    """Drawn before, after, and as training goes; {} stands for the word and the kind, {kind} for the kind alone."""


def main(args: Args) -> None:
    check_flags(args)
    check(args)

    from lora import ATTENTION, add_adapter, save_adapter

    from common.io.files import write_folder
    from finetune_diffusers.data.latent_dataset import Pairs, encode
    from finetune_diffusers.evaluation.evaluators import SubjectExam, introduce, show
    from finetune_diffusers.pixel_pipeline import save_model
    from finetune_diffusers.training.trainer import Tuner, begin, checked, denoising, follow, paint

    args, pipe, accelerator, size = begin(args, "dreambooth", args.word, SMALL, LARGE)
    images, quiet = subject_images(args, size), not accelerator.is_main_process
    record = checked(args, pipe, images)
    if not quiet:
        print(spelling(pipe, args.word))
    exam = SubjectExam(args, pipe, [filled(args, prompt) for prompt in args.prompts], size, accelerator)
    exam.sit("base")
    data = subject = encode(pipe, images, images.captions, quiet)
    if args.prior:
        with accelerator.main_process_first():  # the others find what it has drawn
            others = class_images(args, size, quiet, lambda prompts: paint(pipe, prompts, args, size, accelerator))
        data = Pairs(subject, encode(pipe, others, others.captions, quiet), args.prior)
    loss = denoising(pipe, subject, args)

    if args.rank:
        what = f"adapters of rank {args.rank} at {add_adapter(pipe.unet, args.rank, None, ATTENTION, args.seed, accelerator.mixed_precision)} of its layers"
    else:
        what = "all of its U-Net is trained"
        pipe.unet.requires_grad_(True)
    introduce(args, pipe, images, what, accelerator)
    tuner = Tuner(pipe.unet, data, loss, args, accelerator)
    state = follow(tuner, lambda: paint(pipe, exam.prompts, args, size, accelerator), exam.prompts, record)
    if accelerator.is_main_process:
        with tuner.averaged():
            if args.rank:
                where = {"adapter": save_adapter(pipe.unet, args.out / f"{args.word}.safetensors")}
            else:
                where = {"model": write_folder(args.out / "model", lambda folder: save_model(pipe, folder))}
            exam.sit("tuned")
        show(args, state, exam, tuner, "dreambooth.py", where)


def check(args: Args) -> None:
    for flag in ("word", "kind"):
        if not getattr(args, flag).strip():
            raise UserError(f"--{flag} must not be empty; the caption of the subject is 'a WORD KIND', for instance 'a sks creature'")
    if args.subject and not args.subject.is_dir():
        found = f"{args.subject} is not a folder" if args.subject.exists() else f"there is no folder {args.subject}"
        raise UserError(f"{found}; --subject takes a folder with a few pictures of one thing")


def filled(args: Args, prompt: str) -> str:
    """"a {} on a mint background" -> "a sks creature on a mint background"; whatever else stands in braces is left."""
    return prompt.replace("{kind}", args.kind).replace("{}", f"{args.word} {args.kind}")


# ---------------------------------------------------------------------------------------------------------------- pictures


def subject_images(args: Args, size: int) -> "Images":
    """The few pictures, each with the caption "a sks creature"."""
    from common.data import Images, load
    from finetune_diffusers.data.styles import portraits

    images = load(str(args.subject), size, channels=3) if args.subject else Images("the drawn creature", portraits(args.poses, size, args.seed))
    return replace(images, captions=(filled(args, "a {}"),) * len(images))


def class_images(args: Args, size: int, drawn: bool, draw: "Callable[[list[str]], Tensor]") -> "Images":
    """What the model draws of "a creature" before it is trained. Kept in the run folder, so that a resumed run finds the same.

    drawn: another process has drawn them already
    """
    import shutil

    from common.data import Images, load
    from common.data.export_folder import export
    from common.io.pixels import to_bytes

    folder, caption = args.out / "class_images", filled(args, "a {kind}")
    if not drawn and not (args.resume and folder.exists()):
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before it had begun
        print(f'the model draws {args.class_images} pictures of "{caption}" ...')
        pixels = to_bytes(draw([caption] * args.class_images))
        export(Images("class images", pixels), folder)
    images = load(str(folder), size, channels=3)
    return replace(images, captions=(caption,) * len(images))


def spelling(pipe: "StableDiffusionPipeline", word: str) -> str:
    """How the vocabulary writes the word, and what that means for the training."""
    tokens = pipe.tokenizer.tokenize(word)
    pieces = [token.removesuffix("</w>") for token in tokens]
    if pipe.tokenizer.unk_token in tokens:
        raise UserError(f"the model's vocabulary cannot write the word '{word}'; choose another --word, of plain letters")
    if len(tokens) == 1:
        return f"note: '{word}' is one token, so the model may know it, and what it knows may mix with the subject"
    return f"'{word}' is not in the vocabulary as a whole: it is read as {len(pieces)} pieces, {' + '.join(pieces)}"


if __name__ == "__main__":
    run(main, Args)
