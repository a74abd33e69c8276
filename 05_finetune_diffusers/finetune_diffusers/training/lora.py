"""LoRA (Hu et al. 2021): beside some frozen matrices W of the U-Net,
a product of two thin ones is learned: W + scale B A.
"""

import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata, cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from common.cli import pick_device
from common.errors import UserError, explain
from common.viz import save_picture
from finetune_diffusers.adapters import find_adapter, load_adapters
from finetune_diffusers.data.latent_dataset import encode
from finetune_diffusers.data.styles import read_style, styled_caption
from finetune_diffusers.evaluation.evaluators import StyleEvaluator, ValidationSampler, styled_images
from finetune_diffusers.images import contact_sheet, prompt_labels
from finetune_diffusers.models import native_size, open_for_training
from finetune_diffusers.training.flags import ATTENTION, CaptionedFlags, SizePresets, TuningFlags, styled_name
from finetune_diffusers.training.loss import latent_denoising
from finetune_diffusers.training.trainer import Tuner
from finetune_diffusers.training.tuning import checked_record, introduce, setup, train_and_report


def train_lora(
    args: CaptionedFlags,
    style_name: str,
    prompts: Sequence[str],  # for validation
    rank: int,  # width of the two thin matrices
    alpha: float | None,  # the product is multiplied by alpha / rank; None is the rank
    targets: Sequence[str],  # ends of the names of the layers that get an adapter
    presets: SizePresets,
) -> None:
    """Train adapters on captioned images in a style, and save them in one file."""
    style, name = read_style(style_name), styled_name(args.data, style_name)
    run = setup(args, f"lora-{name}", presets)
    args, pipe = run.args, run.pipe
    check_targets(pipe.unet, targets)
    images, plain = styled_images(args, style, run.size, not run.quiet)
    record = checked_record(run, images)
    data = encode(pipe, images, images.captions, run.quiet)
    loss = latent_denoising(pipe, data, args)
    evaluator = StyleEvaluator(ValidationSampler(pipe, args, run.size, run.accelerator), prompts, style, loss, plain)
    evaluator.evaluate("base")

    layers = add_adapter(pipe.unet, rank, alpha, targets, args.seed, run.accelerator.mixed_precision)
    introduce(run, images, f"adapters of rank {rank} at {layers} of its layers")
    trainer = Tuner(pipe.unet, data, loss, args, run.accelerator)

    def save() -> dict[str, Path]:
        path = save_adapter(pipe.unet, args.out / f"{name}.safetensors")
        return {f"adapter, {path.stat().st_size / 1e3:.0f} kB": path}

    train_and_report(run, trainer, evaluator, record, save, ("with LoRA",), "lora.py")


# --------------------------------------------------------------------------------------------- an adapter and its file


def check_targets(unet: nn.Module, targets: Sequence[str]) -> None:
    """Refuse targets that no layer's name ends in."""
    if not any(name.endswith(target) for target in targets for name, _ in unet.named_modules()):
        raise UserError(
            f"no layer of this U-Net has a name that ends in {' or '.join(targets)}; usual are --targets {' '.join(ATTENTION)}"
        )


def add_adapter(
    unet: nn.Module, rank: int, alpha: float | None, targets: Sequence[str], seed: int, precision: str = "no"
) -> int:
    """Add adapters to a frozen U-Net: A random, B zero, so that nothing is changed yet.
    Returns the number of layers that have one.

    precision  "fp16" or "bf16": the frozen weights are kept in it, only the adapters in float32
    """
    check_targets(unet, targets)
    torch.manual_seed(seed)
    unet.to({"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32))
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


def save_adapter(unet: nn.Module, path: Path) -> Path:
    """The trained adapter, with its rank and alpha, in the layout that load_lora_weights expects."""
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    building = path.with_name(path.name + ".partial")
    try:
        shutil.rmtree(building, ignore_errors=True)  # left by a run that was killed
        building.mkdir(parents=True)
        StableDiffusionPipeline.save_lora_weights(
            building, layers, weight_name=path.name, **_collate_lora_metadata({"unet": unet})
        )
        os.replace(building / path.name, path)
    except OSError as problem:
        raise UserError(f"cannot write {path} ({problem.strerror})") from problem
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return path


# ----------------------------------------------------------------------------------------------------------------- use


def draw_with_adapters(
    args: TuningFlags,
    adapters: Sequence[Path],  # files, run folders, or folders of PEFT
    scales: Sequence[float],  # 0 is the model without them
    style_name: str,
    prompts: Sequence[str],
    sheet: Path,  # where the contact sheet goes
) -> None:
    """Draw the prompts at every scale; with two adapters at every pair of scales, with more all at the same."""
    device = pick_device(args.device)
    paths = [find_adapter(path) for path in adapters]
    pipe = open_for_training(args.model, device)
    names = load_adapters(pipe, paths)
    style = read_style(style_name)
    prompts = [styled_caption(style, prompt) if style else prompt for prompt in prompts]
    mixes = (
        list(itertools.product(scales, repeat=2)) if len(names) == 2 else [(scale,) * len(names) for scale in scales]
    )
    sample, rows = ValidationSampler(pipe, args, args.size or native_size(pipe), Accelerator(cpu=device == "cpu")), []
    for mix in mixes:
        pipe.set_adapters(names, list(mix))
        rows.append(sample(prompts))
    labels = [" + ".join(f"{scale:g} {path.stem}" for scale, path in zip(mix, paths, strict=True)) for mix in mixes]
    print(save_picture(contact_sheet(torch.stack(rows), labels, prompt_labels(prompts)), sheet))
    for label in labels:
        print(f"  a row: {label}")
