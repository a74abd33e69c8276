"""Turn a Chinese CLIP from one form into the other, and prove that nothing changed.

  python 06_inpaint_gif/convert_clip.py --clip pretrained --out clip_dishes.pt           for cn_clip
  python 06_inpaint_gif/convert_clip.py --clip my_finetuned.pt --out my_clip             a folder for transformers
  python 06_inpaint_gif/convert_clip.py --clip ViT-B-16 --out vit-b-16 --half

A name that ends in .pt becomes a checkpoint of cn_clip; CLIP(**checkpoint["config"]) with its "state_dict" is the model. Any other
name becomes a folder for ChineseCLIPModel.from_pretrained. Before anything is written, both libraries load the weights, every one of
them checked, and encode some texts and pictures; the largest difference between their unit vectors is printed.
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run
from common.errors import UserError

TEXTS = ("番茄炒蛋", "木桌上的一碗米饭，俯拍", "a bowl of rice", "龘")
SAME = 1e-5  # the largest difference that may be, of numbers up to 1
FILES = (".pth", ".bin", ".ckpt", ".safetensors")  # endings of a name that is hardly meant as that of a folder


@dataclass(frozen=True)
class Args:
    clip: str = "pretrained"
    """pretrained, a run folder, a folder of transformers, a checkpoint .pt, or ViT-B-16 and its like."""
    out: Path | None = None
    """Where the other form goes: NAME.pt, or a folder."""
    half: bool = False
    """Store half-precision numbers in a folder: half the size, about 1e-3 of accuracy."""


def main(args: Args) -> None:
    if args.out is None:
        raise UserError("say where the other form goes: --out clip.pt for cn_clip, --out FOLDER for transformers")
    if args.out.suffix in FILES:
        raise UserError(f"--out {args.out} is neither a folder for transformers nor a checkpoint for cn_clip, which ends in .pt")
    if args.half and args.out.suffix == ".pt":
        raise UserError("--half is for a folder; a checkpoint for cn_clip is stored in single precision")
    import torch

    from inpaint_gif.clip.formats import save_checkpoint, save_folder
    from inpaint_gif.clip.model import find_form

    if args.out.exists() and (args.out.suffix == ".pt" or not args.out.is_dir() or any(args.out.iterdir())):
        raise UserError(f"{args.out} exists already; choose another name")
    form = find_form(args.clip)
    compare(form)
    if args.out.suffix == ".pt":
        save_checkpoint(args.out, form)
    else:
        save_folder(args.out, form, torch.float16 if args.half else torch.float32)
    find_form(str(args.out))  # it can be read again
    print(f"{args.out}: {sum(value.numel() for value in form.state.values()):,} weights, {len(form.words):,} tokens")


def compare(form) -> None:
    """Load the weights strictly in transformers and, where it is installed, in cn_clip; refuse weights of which the vectors differ."""
    from inpaint_gif.clip.model import DOORS, INSTALL, installed

    if not installed():
        vectors(form, "transformers")
        print(f"cn_clip is not installed, so the two libraries were not compared; to do so: {INSTALL}")
        return
    first, second = (vectors(form, door) for door in DOORS)
    found = float((first - second).abs().max())
    print(f"cn_clip and transformers differ by {found:.1e} at most")
    if not found <= SAME:  # NaN is not
        raise UserError(f"the vectors of the two libraries should differ by less than {SAME:g}, so nothing was written; "
                        "compare the versions of cn_clip, torch and transformers with those in constraints.txt")  # fmt: skip


def vectors(form, door: str):
    """Unit vectors of texts and of pictures of noise."""
    import torch

    from inpaint_gif.clip.model import ChineseClip

    size = form.shape.image_resolution
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clip = ChineseClip(form, door)
    return torch.cat([clip.encode_text(TEXTS), clip.encode_image(images)])


if __name__ == "__main__":
    run(main, Args)
