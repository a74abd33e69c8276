"""Reads adapters of every common format into one form:
for each layer a product of two low-rank factors, up @ down, added to its weight.

    LoRA    B A                         kohya's scripts and the webui, three generations of diffusers, folders of PEFT
    LoCon   the same for convolutions   LyCORIS
    LoHa    (B1 A1) * (B2 A2)           multiplied element by element; a low-rank product as well, see `hadamard`
    LoKr    K1 (x) K2                   the Kronecker product
    DoRA    m (W + B A) / |W + B A| - W     Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation"
    full    D                           the difference itself

diffusers opens the first two in most of their names; it leaves out the m of a DoRA and refuses the others. In one form
it opens them all, scales them and mixes them. The scale multiplies what is added, also for DoRA, so that 0 is the
model without the adapter.
"""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from peft.tuners.lokr.layer import make_kron, make_weight_cp
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from common.errors import UserError, explain
from common.io.files import read_json
from common.io.state_dict import read_tensors
from common.models.single_file.kinds import kind_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

# Part of an adapter -> how its names end, in the order of diffusers' generations: 2022, 2023, and PEFT's.
PARTS = {
    "up": r"lora_up\.weight|lora_linear_layer\.up\.weight|lora\.up\.weight|lora_B(\.\w+)?\.weight",
    "down": r"lora_down\.weight|lora_linear_layer\.down\.weight|lora\.down\.weight|lora_A(\.\w+)?\.weight",
    "mid": r"lora_mid\.weight",
    "alpha": r"alpha",
    "per_layer": r"dora_scale",                                       # of the webui: along the input or along the output
    "per_output": r"lora_magnitude_vector(\.\w+)?(\.weight)?",        # of PEFT: along the output
    "difference": r"diff",
    **{name: name for pair in ("hada_w1", "hada_w2", "lokr_w1", "lokr_w2") for name in (f"{pair}_a", f"{pair}_b", pair)},
    **{name: name for name in ("hada_t1", "hada_t2", "lokr_t2")},
}  # fmt: skip
KEY = re.compile(r"(?P<layer>.+?)\.(?:" + "|".join(f"(?P<{name}>{pattern})" for name, pattern in PARTS.items()) + ")")
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")  # the last of Stable Diffusion XL only
KINDS = "LoRA, LoCon, LoHa, LoKr, DoRA and full differences"
PREFIXES = (
    ("lora_unet_", "unet"),
    ("lycoris_", "unet"),
    ("unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("text_encoder_2_", "text_encoder_2"),
    ("text_encoder_", "text_encoder"),
)  # of the names of layers, with "_" for "."
OF_COMPVIS = re.compile(r"^lora_unet_(input_blocks|middle_block|output_blocks)_")
IN_DIFFUSERS = {  # the first code's names of blocks, and of layers in a residual block -> those of diffusers
    "input_blocks": "down_blocks",
    "middle_block": "mid_block",
    "output_blocks": "up_blocks",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
OF_COMPVIS_PARTS = re.compile("|".join(IN_DIFFUSERS))
FILES = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)


class AdaptedLayer(NamedTuple):
    """A layer that a file adapts: "unet" or "text_encoder", its name there, and the module;
    None if the model has no such layer.
    """

    component: str
    name: str
    module: nn.Module | None


@dataclass
class Adapter:
    """What a file holds: {layer: {part: tensor}}, and the settings beside it, such as {"r":
    4, "lora_alpha": 8}, by component.
    """

    path: Path
    layers: dict[str, dict[str, Tensor]]
    settings: dict[str, dict[str, Any]]


# ------------------------------------------------------------------------------------------------------------ the file


def find_adapter(path: Path) -> Path:
    """A file of weights, or the one in a run folder, or in a folder of PEFT or diffusers."""
    if path.is_dir():
        known = next((path / name for name in FILES if (path / name).exists()), None)
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
        # a run may hold its adapter in the webui's form as well
        found = [known] if known else [file for file in files if not file.stem.endswith("-kohya")] or files
        if len(found) != 1:
            raise UserError(
                f"{path} holds {len(found)} .safetensors files, where one adapter was expected; name the file itself"
            )
        return found[0]
    if not path.exists():
        raise UserError(
            f"there is no file {path}; --use takes the file of a LoRA, or the folder of a run that made one"
        )
    return path


def read_adapter(path: Path) -> Adapter:
    """The layers of a file. A file that holds something else, or an adapter of another kind, is refused."""
    state = {modern_name(name): value for name, value in read_tensors(path).items()}
    layers: dict[str, dict[str, Tensor]] = {}
    others = []
    for name, value in state.items():
        if found := KEY.fullmatch(name):
            layers.setdefault(found["layer"], {})[found.lastgroup] = value.float()
        else:
            others.append(name)
    if not any(set(parts) - {"alpha"} for parts in layers.values()):
        kind = kind_of(state)
        advice = "" if "lora" in kind.name or not kind.advice else f"; {kind.advice}"
        raise UserError(
            f"{path} holds no LoRA of a U-Net: it holds {kind.says}, where one of {KINDS} was expected{advice}"
        )
    if others:
        raise UserError(
            f"{path} cannot be read as a LoRA: it holds {others[0]}{f' and {len(others) - 1} more' if others[1:] else ''}, "
            f"and what is read here are {KINDS}"
        )
    return Adapter(path, layers, read_settings(path))


def modern_name(name: str) -> str:
    """'...attn1.processor.to_out_lora.up.weight' (diffusers 0.14 to 0.21) -> '...attn1.to_out.0.lora.up.weight';
    others stay as they are.
    """
    name = re.sub(r"self_attn\.to_(q|k|v|out)_lora\.", r"self_attn.\1_proj.lora.", name)
    return re.sub(r"(\.processor)?\.(to_q|to_k|to_v|to_out)_lora\.", r".\2.lora.", name).replace(
        ".to_out.lora.", ".to_out.0.lora."
    )


def read_settings(path: Path) -> dict[str, dict[str, Any]]:
    """PEFT writes rank and alpha into adapter_config.json, diffusers into the header of the file."""
    config = path.parent / "adapter_config.json"
    if path.name.startswith("adapter_model") and config.exists():
        settings = read_json(config)
        if (kind := settings.get("peft_type", "LORA")) not in ("LORA", "LOHA", "LOKR"):
            raise UserError(f"{config} describes an adapter of kind {kind}, and what is read here are {KINDS}")
        return {"unet": settings, "text_encoder": settings}
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (OSError, ValueError, SafetensorError) as problem:
        raise UserError(f"the header of {path} cannot be read ({explain(problem)})") from problem
    header = header if isinstance(header, dict) else {}
    return {
        name: {key.removeprefix(f"{name}."): value for key, value in header.items() if key.startswith(f"{name}.")}
        for name in COMPONENTS
    }


# ------------------------------------------------------------------------------------------------ one low-rank product


def low_rank_factors(
    parts: Mapping[str, Tensor], weight: Tensor, settings: Mapping[str, Any], name: str
) -> tuple[Tensor, Tensor]:
    """(down, up) of one layer, its factor alpha / rank included, for a weight (out, in) or (out, in, k, k)."""
    if "hada_w1_a" in parts:
        a1, b1, a2, b2 = (parts[f"hada_{part}"] for part in ("w1_a", "w1_b", "w2_a", "w2_b"))
        factor = scaling(parts, b1.shape[0], settings, name)
        if "hada_t1" in parts:
            down, up = exact_factors(
                make_weight_cp(parts["hada_t1"], a1, b1) * make_weight_cp(parts["hada_t2"], a2, b2)
            )
        else:
            down, up = hadamard(a1, b1, a2, b2)
    elif "lokr_w2" in parts or "lokr_w2_a" in parts:
        first, second = (kronecker_factor(parts, number) for number in (1, 2))
        ranks = [parts[f"lokr_w{number}_b"].shape[0] for number in (2, 1) if f"lokr_w{number}_b" in parts]
        # PEFT scales two whole factors as well, LyCORIS does not
        if not ranks and "alpha" not in parts and "r" in settings:
            ranks = [pattern(settings, "rank_pattern", name, settings["r"])]
        factor = scaling(parts, ranks[0], settings, name) if ranks else 1.0
        down, up = exact_factors(make_kron(first, second).reshape(weight.shape))
    elif "difference" in parts:
        factor, (down, up) = 1.0, exact_factors(parts["difference"])
    else:
        down, up = parts["down"], parts["up"]
        factor = scaling(parts, down.shape[0], settings, name)
        if "mid" in parts:
            down, up = exact_factors(make_weight_cp(parts["mid"], up.flatten(1).T, down.flatten(1)))
    down, up = match_dimensions(down, weight), match_dimensions(up, weight)
    if "per_layer" in parts or "per_output" in parts:
        check_fit(down, up, weight, name)
        magnitude = parts.get("per_output", parts.get("per_layer"))
        along_output = "per_output" in parts or magnitude.shape[0] == weight.shape[0]
        down, up = exact_factors(decomposed(weight, factor * product(down, up), magnitude, along_output))
        return down, match_dimensions(up, weight)
    return down, factor * up


def scaling(parts: Mapping[str, Tensor], rank: int, settings: Mapping[str, Any], name: str) -> float:
    """alpha / rank; alpha is in the file, or in the settings, or equal to the rank."""
    if "alpha" in parts:
        return float(parts["alpha"]) / rank
    alpha = pattern(settings, "alpha_pattern", name, settings.get("lora_alpha", settings.get("alpha", rank)))
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)


def pattern(settings: Mapping[str, Any], which: str, name: str, otherwise: float) -> float:
    """PEFT's settings for single layers: {"to_v": 2} is for all layers whose names end in to_v."""
    values = settings.get(which) or {}
    return values.get(get_pattern_key(values, name), otherwise)


def hadamard(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """(down, up) of (A1 B1) * (A2 B2), element by element,
    which is the product of the columns a1_i * a2_j and the rows b1_i * b2_j: of rank r1 r2.
    """
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1)  # (out, r1 r2)
    down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)  # (r1 r2, in k k)
    return down, up


def kronecker_factor(parts: Mapping[str, Tensor], number: int) -> Tensor:
    """K1 or K2, whole or as a product."""
    if f"lokr_w{number}" in parts:
        return parts[f"lokr_w{number}"]
    a, b = parts[f"lokr_w{number}_a"], parts[f"lokr_w{number}_b"]
    return make_weight_cp(parts["lokr_t2"], a, b) if number == 2 and "lokr_t2" in parts else a @ b


def exact_factors(delta: Tensor) -> tuple[Tensor, Tensor]:
    """(down, up) for any difference: the difference itself, and an identity."""
    if delta.ndim == 2 and delta.shape[0] > delta.shape[1]:
        return torch.eye(delta.shape[1]), delta
    return delta, torch.eye(len(delta))


def match_dimensions(matrix: Tensor, weight: Tensor) -> Tensor:
    """The same numbers with as many dimensions as the weight.
    A down matrix (r, in k k) gets the kernel's, everything else kernels of 1 x 1.
    """
    if weight.ndim == 2:
        return matrix.flatten(1)
    if matrix.ndim == weight.ndim:
        return matrix
    kernel = weight[0].numel()
    return matrix.reshape(len(matrix), *weight.shape[1:]) if matrix.shape[1] == kernel else matrix[..., None, None]


def product(down: Tensor, up: Tensor) -> Tensor:
    """up @ down, in the shape of the layer's weight."""
    return (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def decomposed(weight: Tensor, delta: Tensor, magnitude: Tensor, along_output: bool) -> Tensor:
    """What a DoRA adds to a weight: every row (or column) of W + delta gets the length that the file says."""
    moved = weight + delta
    dims = [d for d in range(moved.ndim) if d != (0 if along_output else 1)]
    length = torch.linalg.vector_norm(moved, dim=dims, keepdim=True)
    return magnitude.reshape(length.shape) * moved / length - weight


def check_fit(down: Tensor, up: Tensor, weight: Tensor, name: str) -> None:
    """Raises WidthMismatch with the first width that differs."""
    if down.shape[0] != up.shape[1]:
        raise ValueError(f"the ranks {down.shape[0]} and {up.shape[1]} differ")
    own = weight.shape
    for there, here in ((down.shape[1:2], own[1:2]), (up.shape[:1], own[:1]), (down.shape[2:], own[2:])):
        if there != here:
            raise WidthMismatch(name, " x ".join(map(str, there)), " x ".join(map(str, here)))


class WidthMismatch(Exception):
    """An adapter for a layer of another width."""


# -------------------------------------------------------------------------------------------------------- into a model


def adaptable_layers(pipe: "StableDiffusionPipeline") -> dict[str, dict[str, tuple[str, nn.Module]]]:
    """{component: {name with "_" for ".": (name, module)}} of all layers that can be adapted."""
    found: dict[str, dict[str, tuple[str, nn.Module]]] = {}
    for component in COMPONENTS:
        found[component] = {}
        network = getattr(pipe, component, None)
        for name, module in network.named_modules() if network else ():
            if isinstance(module, (nn.Linear, nn.Conv2d)) and ".lora_" not in name:
                name = name.replace(".base_layer", "")
                found[component][name.removeprefix("text_model.").replace(".", "_")] = (name, module)
    return found


def find_layer(written: str, known: dict[str, dict[str, tuple[str, nn.Module]]]) -> AdaptedLayer:
    """'lora_unet_mid_block_attentions_0_proj_in' -> AdaptedLayer("unet", "mid_block.attentions.0.proj_in", ...)"""
    flat = written.removeprefix("base_model.model.").replace(".", "_")
    for prefix, component in (*PREFIXES, *(("", component) for component in COMPONENTS)):
        if flat.startswith(prefix):
            rest = flat.removeprefix(prefix).removeprefix("text_model_")
            if place := known[component].get(rest):
                return AdaptedLayer(component, *place)
            if prefix:
                return AdaptedLayer(
                    component,
                    re.sub(r"^(base_model\.model\.|unet\.|text_encoder(_2)?\.)+", "", written).removeprefix(prefix),
                    None,
                )
    return AdaptedLayer("unet", written, None)


def diffusers_blocks(layers: Mapping[str, Any], pipe: "StableDiffusionPipeline") -> dict[str, Any]:
    """Layers of a U-Net that are numbered as in the first code of Stable Diffusion (lora_unet_input_blocks_4_1_...), as
    kohya's scripts do for XL, under the names of diffusers; others stay as they are.
    """
    if not any(OF_COMPVIS.search(name) for name in layers):
        return dict(layers)
    found = _maybe_map_sgm_blocks_to_diffusers(
        dict(layers), pipe.unet.config
    )  # numbers the blocks, and keeps their words
    return {OF_COMPVIS_PARTS.sub(lambda part: IN_DIFFUSERS[part[0]], name): value for name, value in found.items()}


def fit_to_model(pipe: "StableDiffusionPipeline", adapter: Adapter) -> dict[str, Tensor]:
    """The adapter for this model, under the names that diffusers loads. An adapter of another U-Net is refused, naming
    the first layer that differs; what was made for another text encoder is left out, and a warning says so."""
    path, known = adapter.path, adaptable_layers(pipe)
    state: dict[str, Tensor] = {}
    left_out = []
    for written, parts in sorted(diffusers_blocks(adapter.layers, pipe).items()):
        layer = find_layer(written, known)
        if layer.module is None:
            if layer.component != "unet":
                left_out.append(f"it has no layer {layer.name}")
                continue
            raise UserError(
                f"{path} was made for another model: it has an adapter for the layer {layer.name}, which this U-Net does not have"
            )
        weight = layer.module.weight.detach().float().cpu()
        try:
            down, up = low_rank_factors(parts, weight, adapter.settings.get(layer.component, {}), layer.name)
            check_fit(down, up, weight, layer.name)
        except WidthMismatch as problem:
            name, there, here = problem.args
            if layer.component != "unet":
                left_out.append(f"its {name} has a width of {here}, not {there}")
                continue
            raise UserError(
                f"{path} was made for another model: its adapter for {name} is for a width of {there}, and here the layer's is {here}; "
                "use it with the --model that it was trained on"
            ) from None
        except KeyError as problem:
            raise UserError(
                f"{path} is not whole: its adapter for {layer.name} lacks {problem.args[0]} beside {', '.join(sorted(parts))}"
            ) from problem
        except (RuntimeError, ValueError, TypeError) as problem:
            raise UserError(
                f"the adapter for {layer.name} in {path} has matrices that do not fit each other or its layer ({explain(problem)})"
            ) from problem
        prefix = f"{layer.component}.{layer.name}"
        state |= {f"{prefix}.lora_A.weight": down.contiguous(), f"{prefix}.lora_B.weight": up.contiguous()}
    if not state:
        raise UserError(f"{path} was made for the text encoder of another model: of this one {left_out[0]}")
    if left_out:
        warnings.warn(
            f"{path} was made with another text encoder ({left_out[0]}): what it has for the text encoder, {len(left_out)} layers, is left out; "
            "what it has for the U-Net is used",
            stacklevel=2,
        )
    return state


def load_adapters(pipe: "StableDiffusionPipeline", paths: Sequence[Path]) -> list[str]:
    """Load adapters beside each other; returns their names, for pipe.set_adapters(names, scales)."""
    states = [fit_to_model(pipe, read_adapter(path)) for path in paths]
    names = [f"{i}-{path.stem}".replace(".", "-") for i, path in enumerate(paths, 1)]
    for name, path, state in zip(names, paths, states, strict=True):
        try:
            pipe.load_lora_weights(state, adapter_name=name)
        except Exception as problem:  # of diffusers and peft
            raise UserError(f"diffusers cannot load the adapter in {path} ({explain(problem)})") from problem
        loaded, expected = adapted_layers(pipe, name), len(state) // 2
        if loaded != expected:
            raise UserError(
                f"diffusers has loaded {loaded} of the {expected} layers in {path}, so the pictures would not show what it was trained on"
            )
    return names


def adapted_layers(pipe: "StableDiffusionPipeline", name: str) -> int:
    """The number of layers at which the model, not the file, has this adapter."""
    return sum(
        name in getattr(module, "lora_A", {})
        for part in COMPONENTS
        if getattr(pipe, part, None) is not None
        for module in getattr(pipe, part).modules()
    )
