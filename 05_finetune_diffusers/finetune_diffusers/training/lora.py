"""LoRA (Hu et al. 2021): beside some frozen matrices W of the U-Net,
a product of two thin ones is learned: W + scale B A.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import nn

from common.cli import pick_device
from common.errors import UserError, explain
from common.io.files import read_json
from common.viz import save_picture
from finetune_diffusers.adapters.reading import find_adapter, load_adapters
from finetune_diffusers.adapters.writing import fuse, save_adapter, save_kohya
from finetune_diffusers.data.styles import read_style, styled_caption
from finetune_diffusers.evaluation.evaluators import ValidationSampler
from finetune_diffusers.flags import PRETRAINED
from finetune_diffusers.images import contact_sheet
from finetune_diffusers.models import PRECISIONS, TUNED_FAMILIES, default_guidance, native_size, open_for_training
from finetune_diffusers.training.flags import ATTENTION, DRAWN, STYLE_PROMPTS, LoraFlags


def check_targets(unet: nn.Module, targets: Sequence[str]) -> None:
    """Refuse targets that no layer's name ends in, before any images are read."""
    if not any(name.endswith(target) for target in targets for name, _ in unet.named_modules()):
        raise UserError(
            f"no layer of this U-Net has a name that ends in {' or '.join(targets)}; usual are --targets {' '.join(ATTENTION)}"
        )


def add_adapter(
    unet: nn.Module, rank: int, alpha: float | None, targets: Sequence[str], seed: int, precision: str = "no"
) -> int:
    """Add adapters to a frozen U-Net or text encoder: A random, B zero, so that nothing is changed yet.
    Returns the number of layers that have one.

    precision  "fp16" or "bf16": the frozen weights are kept in it, only the adapters in float32
    """
    torch.manual_seed(seed)
    unet.to(PRECISIONS[precision])
    try:
        unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha or rank, init_lora_weights="gaussian", target_modules=list(targets))
        )
    except ValueError as problem:  # peft has no adapter for a layer of this kind
        raise UserError(
            f"the layers --targets {' '.join(targets)} cannot have adapters ({explain(problem)})"
        ) from problem
    cast_training_params(unet, dtype=torch.float32)
    return sum(name.endswith("lora_A") for name, _ in unet.named_modules())


def save_lora(
    pipe: StableDiffusionPipeline, path: Path, texts: Mapping[str, nn.Module], kohya: bool
) -> dict[str, Path]:
    """Write the trained adapter: {what it is: where}.

    texts  text encoders that have an adapter as well, by their names in the pipeline
    kohya  whether to write it in the form of kohya's scripts as well
    """
    saved = {f"adapter, {save_adapter(pipe.unet, path, **texts).stat().st_size / 1e3:.0f} kB": path}
    return saved | ({"for the webui": save_kohya(pipe, kohya_path(path))} if kohya else {})


# ----------------------------------------------------------------------------------------------------------------- use


def draw_with_adapters(args: LoraFlags) -> None:
    """Draw the prompts at every scale; with two adapters at every pair of scales, with more all at the same.
    With --output-kohya-format or --fuse, write the adapters in that form instead.
    """
    device = pick_device(args.device)
    paths = [find_adapter(path) for path in args.use]
    if args.fuse and len(args.scale) not in (1, len(paths)):
        raise UserError(
            f"--fuse adds each adapter at one scale: give --scale one number, or {len(paths)}, not {len(args.scale)}"
        )
    which = {"revision": args.revision, "variant": args.variant}
    pipe = open_for_training(args.model, device, TUNED_FAMILIES, **which)
    names = load_adapters(pipe, paths)
    if args.output_kohya_format:
        for name, path in zip(names, paths, strict=True):
            print(save_kohya(pipe, kohya_path(path), name))
    if args.fuse:
        scales = args.scale if len(args.scale) == len(paths) else args.scale * len(paths)
        print(fuse(pipe, names, scales, args.fuse))
    if args.output_kohya_format or args.fuse:
        return
    prompts = prompts_for_use(args, paths[0])
    pairs, same = itertools.product(args.scale, repeat=2), [(scale,) * len(names) for scale in args.scale]
    mixes = list(pairs) if len(names) == 2 else same
    settings = args if args.guidance is not None else replace(args, guidance=default_guidance(pipe))
    sample = ValidationSampler(pipe, settings, args.size or native_size(pipe), Accelerator(cpu=device == "cpu"))
    rows = []
    for mix in mixes:
        pipe.set_adapters(names, list(mix))
        rows.append(sample(prompts))
    labels = [" + ".join(f"{scale:g} {path.stem}" for scale, path in zip(mix, paths, strict=True)) for mix in mixes]
    print(save_picture(contact_sheet(torch.stack(rows), labels, prompts), args.sheet))
    for label in labels:
        print(f"  a row: {label}")


def prompts_for_use(args: LoraFlags, adapter: Path) -> list[str]:
    """The prompts, with the words of the style: what the flags name, else those of the run that the adapter is from."""
    path = adapter.parent / "config.json"
    run = read_json(path) if path.exists() else {}
    drawn = run.get("data") in DRAWN or args.model == str(PRETRAINED)
    prompts = args.prompts or tuple(run.get("prompts", ())) or (STYLE_PROMPTS if drawn else ())
    if not prompts:
        raise UserError('--prompts is missing: give what to draw with the adapter, for instance --prompts "a red fox"')
    style = read_style(args.style or run.get("style") or "none")
    return [styled_caption(style, prompt) if style else prompt for prompt in prompts]


def kohya_path(path: Path) -> Path:
    """NAME-kohya.safetensors beside NAME.safetensors."""
    return path.with_name(f"{path.stem}-kohya.safetensors")
