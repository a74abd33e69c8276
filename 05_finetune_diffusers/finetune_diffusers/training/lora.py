"""LoRA (Hu et al. 2021): beside some frozen matrices W of the U-Net,
a product of two thin ones is learned: W + scale B A.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

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
from common.io.files import write_atomically
from common.viz import save_picture
from finetune_diffusers.adapters import find_adapter, load_adapters
from finetune_diffusers.data.styles import read_style, styled_caption
from finetune_diffusers.evaluation.evaluators import ValidationSampler
from finetune_diffusers.images import contact_sheet, prompt_labels
from finetune_diffusers.models import PRECISIONS, native_size, open_for_training
from finetune_diffusers.training.flags import ATTENTION, LoraFlags

# --------------------------------------------------------------------------------------------- an adapter and its file


def check_targets(unet: nn.Module, targets: Sequence[str]) -> None:
    """Refuse targets that no layer's name ends in, before any images are read."""
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


def save_adapter(unet: nn.Module, path: Path) -> Path:
    """The trained adapter, with its rank and alpha, in the layout that load_lora_weights expects."""
    layers, settings = (
        convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)),
        _collate_lora_metadata({"unet": unet}),
    )

    def write(file: BinaryIO) -> None:  # diffusers writes into a folder
        with TemporaryDirectory() as folder:
            StableDiffusionPipeline.save_lora_weights(folder, layers, weight_name=path.name, **settings)
            file.write(Path(folder, path.name).read_bytes())

    write_atomically(path, write)
    return path


# ----------------------------------------------------------------------------------------------------------------- use


def draw_with_adapters(args: LoraFlags) -> None:
    """Draw the prompts at every scale; with two adapters at every pair of scales, with more all at the same."""
    device = pick_device(args.device)
    paths = [find_adapter(path) for path in args.use]
    pipe = open_for_training(args.model, device)
    names = load_adapters(pipe, paths)
    style = read_style(args.style)
    prompts = [styled_caption(style, prompt) if style else prompt for prompt in args.prompts]
    pairs, same = itertools.product(args.scale, repeat=2), [(scale,) * len(names) for scale in args.scale]
    mixes = list(pairs) if len(names) == 2 else same
    sample, rows = ValidationSampler(pipe, args, args.size or native_size(pipe), Accelerator(cpu=device == "cpu")), []
    for mix in mixes:
        pipe.set_adapters(names, list(mix))
        rows.append(sample(prompts))
    labels = [" + ".join(f"{scale:g} {path.stem}" for scale, path in zip(mix, paths, strict=True)) for mix in mixes]
    print(save_picture(contact_sheet(torch.stack(rows), labels, prompt_labels(prompts)), args.sheet))
    for label in labels:
        print(f"  a row: {label}")
