"""Writes adapters that are in a model: as a file of diffusers, as a file of kohya's scripts, or into the model's weights.

save_adapter(unet, path)                    unet.down_blocks.0....to_q.lora_A.weight, rank and alpha in the file's header
save_kohya(pipe, path)                      lora_unet_down_blocks_0_..._to_q.lora_down.weight, and an alpha for each layer
fuse(pipe, names, scales, folder)           W + scale alpha/r B A in place of W
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor, nn

from common.errors import UserError
from common.io.files import write_atomically, write_folder
from finetune_diffusers.adapters.reading import COMPONENTS
from finetune_diffusers.models import is_xl


def save_adapter(unet: nn.Module, path: Path, **text_encoders: nn.Module) -> Path:
    """The trained adapter, with its rank and alpha, in the layout that load_lora_weights expects.
    text_encoders: those that have an adapter as well, as text_encoder= and text_encoder_2=
    """
    parts = {"unet": unet, **text_encoders}
    layers = {
        f"{name}_lora_layers": convert_state_dict_to_diffusers(
            {portable(name, layer): weight for layer, weight in get_peft_model_state_dict(part).items()}
        )
        for name, part in parts.items()
    }

    def write(file: BinaryIO) -> None:  # diffusers writes into a folder; this pipeline knows all three parts
        with TemporaryDirectory() as folder:
            StableDiffusionXLPipeline.save_lora_weights(
                folder, **layers, weight_name=path.name, **_collate_lora_metadata(parts)
            )
            file.write(Path(folder, path.name).read_bytes())

    write_atomically(path, write)
    return path


def portable(component: str, name: str) -> str:
    """The name of a layer in files. Those of text encoders begin with "text_model.", which transformers 5 leaves out."""
    return name if component == "unet" else "text_model." + name.removeprefix("text_model.")


def lora_layers(network: nn.Module, adapter: str) -> Iterator[tuple[str, LoraLayer]]:
    """The layers of a network that have the adapter, by name."""
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            yield name, module


def kohya_state(pipe: DiffusionPipeline, adapter: str = "default") -> dict[str, Tensor]:
    """The adapter under the names of kohya's scripts, which the webui and ComfyUI read, with each layer's alpha."""
    state, alphas = {}, {}
    for component in COMPONENTS:
        if (network := getattr(pipe, component, None)) is None:
            continue
        for name, layer in lora_layers(network, adapter):
            written = f"{component}.{portable(component, name)}"
            state[f"{written}.lora_A.weight"] = layer.lora_A[adapter].weight
            state[f"{written}.lora_B.weight"] = layer.lora_B[adapter].weight
            alphas[written] = float(layer.lora_alpha[adapter])
    if not state:
        raise UserError(f"the model has no adapter '{adapter}' that could be written")
    # diffusers has kohya's names of Stable Diffusion XL, and takes every alpha for the rank
    found = convert_state_dict_to_kohya(state)
    for written, alpha in alphas.items():
        found[f"{kohya_prefix(written)}.alpha"] = torch.tensor(alpha)
    one_encoder = not is_xl(pipe)
    return {
        (name.replace("lora_te1_", "lora_te_", 1) if one_encoder else name): value.detach().float().cpu().contiguous()
        for name, value in found.items()
    }


def kohya_prefix(written: str) -> str:
    """'text_encoder_2.text_model.encoder.layers.0.mlp.fc1' -> 'lora_te2_text_model_encoder_layers_0_mlp_fc1'"""
    component, _, layer = written.partition(".")
    start = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[component]
    return f"{start}_{layer.replace('.', '_')}"


def save_kohya(pipe: DiffusionPipeline, path: Path, adapter: str = "default") -> Path:
    """The adapter as a file of kohya's scripts."""
    state = kohya_state(pipe, adapter)
    write_atomically(path, lambda file: file.write(save(state, metadata={"format": "pt"})))
    return path


def fuse(pipe: DiffusionPipeline, names: Sequence[str], scales: Sequence[float], folder: Path) -> Path:
    """Write the whole model to a new folder, with the adapters added to its weights: it needs no adapter any more."""
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise UserError(f"{folder} is there already; give --fuse the name of a new folder")
    pipe.set_adapters(list(names), list(scales))
    pipe.fuse_lora(adapter_names=list(names))
    pipe.unload_lora_weights()
    return write_folder(folder, pipe.save_pretrained)
