"""LoRA: the U-Net stays as it is, and beside some of its matrices W a product of two thin ones is learned: W + scale B A.

  python 05_finetune_diffusers/lora.py                                       creatures as woodcuts, an adapter of some 100 kB
  python 05_finetune_diffusers/lora.py --style blueprint --rank 8
  python 05_finetune_diffusers/lora.py --resume runs/05_finetune_diffusers/lora-creatures-woodcut
  python 05_finetune_diffusers/lora.py --use runs/05_finetune_diffusers/lora-creatures-woodcut/creatures-woodcut.safetensors
  python 05_finetune_diffusers/lora.py --use A.safetensors B.safetensors --scale 0 0.5 1      two adapters mixed, every pair of scales

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". An adapter is opened by plain diffusers:

  pipe = StableDiffusionPipeline.from_pretrained(MODEL)
  pipe.load_lora_weights("runs/05_finetune_diffusers/lora-creatures-woodcut", weight_name="creatures-woodcut.safetensors")
  pipe("a red creature, in the style of a woodcut", cross_attention_kwargs={"scale": 0.8})
"""

import itertools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune import PROMPTS, name_of

from common.cli import run
from common.errors import UserError, explain
from finetune_diffusers.models import OUT
from finetune_diffusers.training.flags import DataFlags, Preset, check_flags

if TYPE_CHECKING:
    from torch import nn

SMALL = Preset(steps=600, batch_size=16, lr=3e-3)
LARGE = Preset(steps=1500, batch_size=4, lr=1e-4)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Args(DataFlags):
    style: Literal["none", "riso", "blueprint", "woodcut", "neon"] = "woodcut"
    """Put every picture into a style that we draw ourselves, and its words at the end of every caption. none: the data as they are."""
    rank: int = 8
    """Width of the two thin matrices."""
    alpha: float | None = None
    """The product is multiplied by alpha / rank; by default alpha is the rank."""
    targets: tuple[str, ...] = ATTENTION
    """Which layers of the U-Net get an adapter, by the ends of their names."""
    prompts: tuple[str, ...] = PROMPTS
    """Drawn before, after, and as training goes; with the words of the style at their end."""

    use: tuple[Path, ...] = ()
    """Do not train: draw the prompts with these adapters: files (LoRA, LoCon, LoHa, LoKr, DoRA), run folders, or folders of PEFT."""
    scale: tuple[float, ...] = (0.0, 0.5, 1.0)
    """How strongly, with --use: 0 is the model without them."""
    sheet: Path = OUT / "lora.png"
    """Where the sheet of --use goes."""


def main(args: Args) -> None:
    check_flags(args)
    if args.use and args.resume:
        raise UserError("--resume goes on with a training and --use draws without one; give one of them")
    if args.use:
        use(args)
    else:
        train(args)


def train(args: Args) -> None:
    from finetune_diffusers.data.latent_dataset import encode
    from finetune_diffusers.data.styles import read_style
    from finetune_diffusers.evaluation.evaluators import StyleExam, captioned_in_style, introduce, show
    from finetune_diffusers.training.trainer import Tuner, begin, checked, denoising, follow, paint

    style = read_style(args.style)
    args, pipe, accelerator, size = begin(args, "lora", name_of(args), SMALL, LARGE)
    check_targets(pipe.unet, args.targets)
    images, plain = captioned_in_style(args, style, size, accelerator)
    record = checked(args, pipe, images)
    data = encode(pipe, images, images.captions, quiet=not accelerator.is_main_process)
    loss = denoising(pipe, data, args)
    exam = StyleExam(args, pipe, style, size, accelerator, loss, plain)
    exam.sit("base")

    layers = add_adapter(pipe.unet, args.rank, args.alpha, args.targets, args.seed, accelerator.mixed_precision)
    introduce(args, pipe, images, f"adapters of rank {args.rank} at {layers} of its layers", accelerator)
    tuner = Tuner(pipe.unet, data, loss, args, accelerator)
    state = follow(tuner, lambda: paint(pipe, exam.prompts, args, size, accelerator), exam.prompts, record)
    if accelerator.is_main_process:
        with tuner.averaged():
            path = save_adapter(pipe.unet, args.out / f"{name_of(args)}.safetensors")
            exam.sit("with LoRA")
        show(args, state, exam, tuner, "lora.py", {f"adapter, {path.stat().st_size / 1e3:.0f} kB": path})


# ------------------------------------------------------------------------------------------------- an adapter and its file


def check_targets(unet: "nn.Module", targets: Sequence[str]) -> None:
    if not any(name.endswith(target) for target in targets for name, _ in unet.named_modules()):
        raise UserError(f"no layer of this U-Net has a name that ends in {' or '.join(targets)}; usual are --targets {' '.join(ATTENTION)}")


def add_adapter(unet: "nn.Module", rank: int, alpha: float | None, targets: Sequence[str], seed: int, precision: str = "no") -> int:
    """Give a frozen U-Net adapters to train: A random, B zero, so that nothing is changed yet. Returns at how many layers.

    precision  "fp16" or "bf16": the frozen weights are kept in it, only the adapters in float32
    """
    import torch
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    check_targets(unet, targets)
    torch.manual_seed(seed)
    unet.to({"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32))
    try:
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha or rank, init_lora_weights="gaussian", target_modules=list(targets)))
    except ValueError as problem:  # peft: a layer of a kind that it has no adapter for
        raise UserError(f"the layers --targets {' '.join(targets)} cannot have adapters ({explain(problem)})") from problem
    cast_training_params(unet, dtype=torch.float32)
    return sum(name.endswith("lora_A") for name, _ in unet.named_modules())


def save_adapter(unet: "nn.Module", path: Path) -> Path:
    """The trained adapter, with its rank and alpha, in the layout that load_lora_weights expects."""
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    building = path.with_name(path.name + ".partial")
    try:
        shutil.rmtree(building, ignore_errors=True)  # of a run that was killed
        building.mkdir(parents=True)
        StableDiffusionPipeline.save_lora_weights(building, layers, weight_name=path.name, **_collate_lora_metadata({"unet": unet}))
        os.replace(building / path.name, path)
    except OSError as problem:
        raise UserError(f"cannot write {path} ({problem.strerror})") from problem
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return path


# --------------------------------------------------------------------------------------------------------------------- use


def use(args: Args) -> None:
    """Draw the prompts at every scale; with two adapters at every pair of scales, with more all at the same."""
    import torch
    from accelerate import Accelerator

    from common.cli import pick_device
    from common.viz import save_picture
    from finetune_diffusers.adapters import find_adapter, load_adapters
    from finetune_diffusers.data.styles import read_style, styled_caption
    from finetune_diffusers.models import native_size, sheet
    from finetune_diffusers.training.trainer import open_model, paint, shown

    device = pick_device(args.device)
    paths = [find_adapter(path) for path in args.use]
    pipe = open_model(args.model, device)
    names = load_adapters(pipe, paths)
    style = read_style(args.style)
    prompts = [styled_caption(style, prompt) if style else prompt for prompt in args.prompts]
    mixes = list(itertools.product(args.scale, repeat=2)) if len(names) == 2 else [(scale,) * len(names) for scale in args.scale]
    rows, accelerator = [], Accelerator(cpu=device == "cpu")
    for mix in mixes:
        pipe.set_adapters(names, list(mix))
        rows.append(paint(pipe, prompts, args, args.size or native_size(pipe), accelerator))
    labels = [" + ".join(f"{scale:g} {path.stem}" for scale, path in zip(mix, paths, strict=True)) for mix in mixes]
    print(save_picture(sheet(torch.stack(rows), labels, shown(prompts)), args.sheet))
    for label in labels:
        print(f"  a row: {label}")


if __name__ == "__main__":
    run(main, Args)
