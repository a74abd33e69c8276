"""Checkpoints in one file, as from Civitai or the webui: what a file holds, and its conversion to a folder of
`diffusers`.

    kind_of(read_tensors(path))        FileKind("sd", "a checkpoint of Stable Diffusion 1.x (U-Net, autoencoder, text
                                       encoder)", ...)
    as_folder(path)                    runs/single_files/NAME-1a2b3c4d, which every program of the course opens

The file has the names of CompVis (input_blocks.1.0.in_layers.2.weight). The converters of diffusers rename them; this
module infers from names and shapes the configurations that they need, so that no network connection is needed.
What a file does not say:

    heads          8 at every level (Stable Diffusion 1.x), or 64 channels a head (2.x, whose projections are linear)
    prediction     of 1.x: the noise. Of 2.x: what the file's metadata, its "v_pred" or NAME.yaml beside it say, else v
    tokenizer      that of CLIP: in a folder `tokenizer` beside the file, in the cache of the hub, or on the hub
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common.diffusion.diffusers_scheduler import VERSION
from common.errors import UserError, explain
from common.io import hub
from common.io.files import write_json
from common.io.state_dict import Uninitialised, check_shapes, read_tensors
from common.io.weight_files import DIFFUSERS, TRANSFORMERS
from common.models.text.tokenizer import Tokenizer, load_tokenizer
from common.models.text.transformer import TextTransformer, text_from_transformers

SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")
CONVERTED = Path("runs/single_files")
CLIP = "openai/clip-vit-large-patch14"  # whose tokenizer Stable Diffusion has
TOKENIZERS = (
    CLIP,
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2",
)  # repositories whose copy in the cache has it
TEXT_WIDTHS = (768, 1024, 1280)  # of the text encoders of Stable Diffusion 1.x, 2.x and XL
UNET, VAE, TEXT, OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
)


@dataclass(frozen=True)
class FileKind:
    """name: one of those that kind_of returns. says: what the file holds, for a sentence.
    advice: what to do with it instead.
    """

    name: str
    says: str
    advice: str = ""


# --------------------------------------------------------------------------------------------------- what is in a file


def kind_of(state: dict[str, Tensor]) -> FileKind:
    """What the names of the weights show: sd, unet, vae, text, lora, controlnet, inversion,
    diffusers-unet, ..., other, unknown.
    """
    names = list(state)

    def some(*parts: str) -> bool:
        return any(part in name for name in names for part in parts)

    def begins(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if some(
        "lora_up",
        "lora_down",
        ".lora_A.",
        ".lora_B.",
        "_lora.up",
        "_lora.down",
        ".lora.up",
        ".lora.down",
        "lora_linear_layer",
        "hada_w1",
        "lokr_w",
    ):
        return FileKind("lora", "a LoRA or a similar adapter", "05_finetune_diffusers/lora.py --use opens it")
    if not names:
        return FileKind("unknown", "no weights")
    if begins("string_to_param", "emb_params", "string_to_token") or is_embedding(state):
        return FileKind(
            "inversion",
            "a textual inversion: the embedding of a word",
            "diffusers' load_textual_inversion adds it to a pipeline",
        )
    if begins("control_model.", "controlnet_", "input_hint_block.", "controlnet_cond_embedding."):
        return FileKind(
            "controlnet", "a ControlNet", "05_finetune_diffusers/controlnet.py --use opens the folder of one"
        )
    for name, says in (
        ("conditioner.embedders.", "Stable Diffusion XL"),
        (".joint_blocks.", "Stable Diffusion 3"),
        ("double_blocks.", "FLUX"),
    ):
        if some(name):
            return FileKind(
                "other",
                f"a checkpoint of {says}",
                "load it with from_single_file of its pipeline in diffusers, and give the folder that save_pretrained writes",
            )
    if begins(UNET):
        return sd_kind(state)
    if some("encoder.down.0.block.0.") or begins(VAE):
        return FileKind("vae", "an autoencoder alone")
    if begins("input_blocks.0."):
        return FileKind("unet", "a U-Net alone, without autoencoder and text encoder")
    if begins("encoder.down_blocks."):
        return FileKind(
            "diffusers-vae",
            "an autoencoder under the names of diffusers",
            "give the folder that holds it and its config.json",
        )
    if begins("down_blocks.", "time_embedding."):
        return FileKind(
            "diffusers-unet",
            "a U-Net under the names of diffusers",
            "give the folder that holds it and its config.json",
        )
    if some("embeddings.token_embedding.weight", "token_embedding.weight", "word_embeddings.weight"):
        return FileKind("text", "a text encoder alone")
    shown = ", ".join(sorted(names)[:2])
    return FileKind("unknown", f"weights of no kind that is known here, the first are {shown}")


def is_embedding(state: dict[str, Tensor]) -> bool:
    """Whether these are vectors of one word, for one text encoder or the two of Stable Diffusion XL, under the name of
    the word or of the encoder.

    Weights of a layer are no vectors of a word: their names have a dot, or end in weight or bias.
    """
    layers = any("." in name or name.endswith(("weight", "bias")) for name in state)
    return (
        len(state) <= 2
        and not layers
        and all(value.ndim in (1, 2) and value.shape[-1] in TEXT_WIDTHS for value in state.values())
    )


def sd_kind(state: dict[str, Tensor]) -> FileKind:
    """The kind of a file with a U-Net under CompVis's names: with an autoencoder and a text encoder, or without."""
    wanted = {"an autoencoder": (VAE,), "a text encoder": (TEXT, OPEN_CLIP)}
    lacks = [what for what, prefixes in wanted.items() if not any(name.startswith(prefixes) for name in state)]
    if "a text encoder" in lacks and not any(".attn2.to_k.weight" in name for name in state if name.startswith(UNET)):
        return FileKind("other", "a diffusion model that reads no text, under the names of CompVis")
    if f"{UNET}label_emb.weight" in state or f"{UNET}label_emb.0.0.weight" in state:
        return FileKind("other", "a U-Net that is conditioned on more than a text, such as that of an upscaler")
    version = "2.x" if f"{OPEN_CLIP}token_embedding.weight" in state else "1.x"
    if lacks:
        return FileKind(
            "unet",
            f"a U-Net of Stable Diffusion, without {' and without '.join(lacks)}",
            "take a file that has all three parts",
        )
    return FileKind("sd", f"a checkpoint of Stable Diffusion {version} (U-Net, autoencoder, text encoder)")


# ---------------------------------------------------------------------------------------------------------- the folder


def as_folder(path: Path, wanted: tuple[str, ...] = ("sd",), kept: Path | None = None) -> Path:
    """A folder with what the file holds, converted once and kept in runs/single_files under the name of the file.

    wanted  kinds that the caller can use: "sd" gives the folder of a pipeline, "vae" that of an autoencoder. Others
            are refused by name.
    """
    path = Path(path).expanduser()
    beside = path.parent / "config.json"
    if beside.exists() and path.name.startswith(("diffusion_pytorch_model", "model.", "pytorch_model")):
        return path.parent  # a part of a folder of diffusers, named by its file
    if path.parent.name == "checkpoints" and path.name.startswith("step-"):
        raise UserError(f"{path} is a checkpoint of the run {path.parent.parent}; give that folder")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path} is a file, and no file of weights by its name ({', '.join(SUFFIXES)}); give a folder or a file of weights"
        )
    about = path.stat()
    mark = hashlib.sha256(f"{path.resolve()} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()[:8]
    folder = (kept or CONVERTED) / f"{path.stem}-{mark}"
    if (folder / "config.json").exists() and "vae" in wanted or (folder / "model_index.json").exists():
        return folder
    state = read_tensors(path)
    kind = kind_of(state)
    if kind.name not in wanted:
        expected = "a checkpoint of Stable Diffusion 1.x or 2.x" + (" or an autoencoder" if "vae" in wanted else "")
        raise UserError(
            f"{path} holds {kind.says}, where {expected} was expected" + (f"; {kind.advice}" if kind.advice else "")
        )
    building = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(building, ignore_errors=True)
    try:
        if kind.name == "vae":
            write_vae(building, state, 256, path)
        else:
            write_pipeline(building, state, path)
        building.rename(folder)
    except (OSError, SafetensorError) as problem:  # a full disk is either
        if folder.exists():  # another process was faster
            return folder
        raise UserError(f"cannot write {folder} ({explain(problem)})") from problem
    finally:
        shutil.rmtree(building, ignore_errors=True)
    print(f"{path.name}: {kind.says}, converted to the folder {folder}")
    return folder


def write_pipeline(folder: Path, state: dict[str, Tensor], path: Path) -> None:
    """Write what StableDiffusionPipeline.from_pretrained(folder) opens.
    The tokenizer comes first, because it is the part that may be missing.
    """
    with_prefix = {
        re.sub(rf"^{re.escape(TEXT)}(?!text_model\.)", f"{TEXT}text_model.", name): value
        for name, value in state.items()
    }
    text = (
        open_clip_config(state, path)
        if f"{OPEN_CLIP}token_embedding.weight" in state
        else clip_config(with_prefix, path)
    )
    save_tokenizer(folder / "tokenizer", text, path)
    unet = unet_config(
        {name.removeprefix(UNET): value for name, value in state.items() if name.startswith(UNET)}, path
    )
    inpaints = unet["in_channels"] != unet["out_channels"]
    v, zero_snr = prediction_of(state, path, text["hidden_act"] == "gelu" and not inpaints)
    pixels = 768 if v and text["hidden_act"] == "gelu" else 512
    factor = write_vae(folder / "vae", state, pixels, path)
    write_unet(folder / "unet", state, unet | {"sample_size": pixels // factor}, path)
    write_text(folder / "text_encoder", with_prefix, text, path)
    scheduler = {
        "_class_name": "PNDMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction" if v else "epsilon",
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "clip_sample": False,
    }
    if zero_snr:  # PNDM has no such setting
        scheduler |= {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    parts = {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    name = "StableDiffusionInpaintPipeline" if inpaints else "StableDiffusionPipeline"
    write_json(
        folder / "model_index.json",
        {"_class_name": name, "_diffusers_version": VERSION, **parts, "requires_safety_checker": False},
    )


def prediction_of(state: dict[str, Tensor], path: Path, version_2: bool) -> tuple[bool, bool]:
    """(whether the U-Net predicts v, whether its schedule ends at pure noise).
    version_2: a text-to-image model of Stable Diffusion 2.x
    """
    named = metadata(path).get("modelspec.prediction_type", "")
    settings = path.with_suffix(".yaml")
    if "v_pred" in state:
        return True, "ztsnr" in state
    if named:
        return named.startswith("v"), False
    if settings.exists():
        return bool(
            re.search(
                r"^\s*parameterization:\s*[\"']?v[\"']?\s*$",
                settings.read_text(encoding="utf-8", errors="replace"),
                re.M,
            )
        ), False
    if version_2:
        print(
            f"{path.name} does not say what its U-Net predicts: taken for v, as in Stable Diffusion 2.1 of 768 pixels; where it predicts the noise "
            f"(2.1 base, 512 pixels), put its settings, v2-inference.yaml, beside it as {settings.name}"
        )
    return version_2, False


def metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a .safetensors file; {} for any other."""
    if path.suffix.lower() not in (".safetensors", ".sft"):
        return {}
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


# ------------------------------------------------------------------------------------------ configurations from shapes


def numbers(names: Iterable[str], pattern: str) -> list[int]:
    """The different numbers at the group of the pattern, in order."""
    return sorted({int(found[1]) for name in names if (found := re.match(pattern, name))})


@contextmanager
def every_weight_of(part: str, path: Path) -> Iterator[None]:
    """Turn the error for a missing weight, or for one of an unexpected shape, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as problem:  # KeyError where a name is missing; the converters of diffusers raise others as well
        reason = f"{problem.args[0]} is missing" if isinstance(problem, KeyError) else explain(problem)
        raise UserError(
            f"{path} is no whole checkpoint of Stable Diffusion 1.x or 2.x: the weights of its {part} cannot be converted ({reason})"
        ) from problem


def unet_config(state: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """The config.json of a UNet2DConditionModel, from its weights under the names of CompVis."""
    with every_weight_of("U-Net", path):
        levels: list[list[int]] = [[]]  # the blocks of each level
        for i in numbers(state, r"input_blocks\.(\d+)\.")[1:]:
            if f"input_blocks.{i}.0.op.weight" in state:
                levels.append([])
            else:
                levels[-1].append(i)
        widths = [state[f"input_blocks.{blocks[0]}.0.in_layers.2.weight"].shape[0] for blocks in levels]
        attention = [f"input_blocks.{blocks[0]}.1.norm.weight" in state for blocks in levels]
        first = min(
            (name for name in state if name.endswith("transformer_blocks.0.attn2.to_k.weight")),
            default="attn2.to_k.weight",
        )
        where = first.split("transformer_blocks")[0]
        linear = state[f"{where}proj_in.weight"].ndim == 2
        return {
            "_class_name": "UNet2DConditionModel",
            "in_channels": state["input_blocks.0.0.weight"].shape[1],
            "out_channels": state["out.2.weight"].shape[0],
            "block_out_channels": widths,
            "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
            "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
            "layers_per_block": len(levels[0]),
            "cross_attention_dim": state[first].shape[1],
            "transformer_layers_per_block": len(numbers(state, re.escape(where) + r"transformer_blocks\.(\d+)\.")),
            "attention_head_dim": [max(1, width // 64) for width in widths] if linear else 8,
            "use_linear_projection": linear,
        }


def vae_config(state: dict[str, Tensor], pixels: int, path: Path) -> dict[str, Any]:
    """The config.json of an AutoencoderKL, from its weights under the names of CompVis."""
    with every_weight_of("autoencoder", path):
        n = len(numbers(state, r"encoder\.down\.(\d+)\."))
        return {
            "_class_name": "AutoencoderKL",
            "sample_size": pixels,
            "in_channels": state["encoder.conv_in.weight"].shape[1],
            "out_channels": state["decoder.conv_out.weight"].shape[0],
            "latent_channels": state["post_quant_conv.weight"].shape[1],
            "block_out_channels": [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(n)],
            "down_block_types": ["DownEncoderBlock2D"] * n,
            "up_block_types": ["UpDecoderBlock2D"] * n,
            "layers_per_block": len(numbers(state, r"encoder\.down\.0\.block\.(\d+)\.")),
            "norm_num_groups": 32,
            "scaling_factor": 0.18215,
        }


def clip_config(state: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """The config.json of the CLIPTextModel of Stable Diffusion 1.x."""
    where = f"{TEXT}text_model."
    with every_weight_of("text encoder", path):
        vocabulary, dim = state[f"{where}embeddings.token_embedding.weight"].shape
        hidden = state[f"{where}encoder.layers.0.mlp.fc1.weight"].shape[0]
        length = state[f"{where}embeddings.position_embedding.weight"].shape[0]
    layers = len(numbers(state, re.escape(where) + r"encoder\.layers\.(\d+)\."))
    return text_config(vocabulary, dim, hidden, length, layers, "quick_gelu")


def open_clip_config(state: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """The same of 2.x, whose OpenCLIP is read before its last layer."""
    layers = len(numbers(state, re.escape(OPEN_CLIP) + r"transformer\.resblocks\.(\d+)\."))
    with every_weight_of("text encoder", path):
        vocabulary, dim = state[f"{OPEN_CLIP}token_embedding.weight"].shape
        return text_config(
            vocabulary, dim, 4 * dim, state[f"{OPEN_CLIP}positional_embedding"].shape[0], layers - 1, "gelu"
        )


def text_config(vocabulary: int, dim: int, hidden: int, length: int, layers: int, activation: str) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": dim,
        "intermediate_size": hidden,
        "max_position_embeddings": length,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, dim // 64),
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0 if activation == "gelu" else vocabulary - 1,
    }


# ------------------------------------------------------------------------------------------------- parts of the folder


def write_part(
    folder: Path, name: str, config: dict[str, Any], state: dict[str, Tensor], own: dict[str, Tensor], path: Path
) -> None:
    """config.json and weights of a component,
    every name and shape compared with the network that the library builds.
    """
    check_shapes(own, state, path)
    write_json(folder / "config.json", config)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / name, metadata={"format": "pt"})


def check_all_converted(given: int, converted: dict[str, Tensor], path: Path) -> None:
    """Refuse a file of which the converter left out weights,
    which it does silently for names that it does not know.
    """
    if given != len(converted):
        raise UserError(
            f"{path} holds a network of another architecture than Stable Diffusion 1.x and 2.x: "
            f"the converter of diffusers knows {len(converted)} of its {given} weights"
        )


def write_unet(folder: Path, state: dict[str, Tensor], config: dict[str, Any], path: Path) -> None:
    """Write a U-Net under the names of diffusers."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with every_weight_of("U-Net", path):
        converted = convert_ldm_unet_checkpoint(state, config)
    check_all_converted(sum(name.startswith(UNET) for name in state), converted, path)
    write_part(folder, DIFFUSERS, config, converted, on_meta(UNet2DConditionModel.from_config, config, path), path)


def write_vae(folder: Path, state: dict[str, Tensor], pixels: int, path: Path) -> int:
    """Write an autoencoder; returns f, how many times smaller a side its latents are."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    state = {name.removeprefix(VAE): value for name, value in state.items() if name.startswith(VAE)} or state
    state = {
        name: value
        for name, value in state.items()
        if name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
    }
    config = vae_config(state, pixels, path)
    with every_weight_of("autoencoder", path):
        converted = convert_ldm_vae_checkpoint(state, config)
    check_all_converted(len(state), converted, path)
    write_part(folder, DIFFUSERS, config, converted, on_meta(AutoencoderKL.from_config, config, path), path)
    return 2 ** (len(config["block_out_channels"]) - 1)


def write_text(folder: Path, state: dict[str, Tensor], config: dict[str, Any], path: Path) -> None:
    """Write a text encoder under the names of transformers."""
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    with every_weight_of("text encoder", path):
        if config["hidden_act"] == "gelu":
            state = convert_open_clip_checkpoint(
                SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"])), state, OPEN_CLIP
            )
        else:
            state = convert_ldm_clip_checkpoint(state)
    # what lies behind the last layer that is read is left out
    layers = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")
    unused = {key for key in state if (found := layers.match(key)) and int(found[1]) >= config["num_hidden_layers"]}
    state = {
        key: value
        for key, value in state.items()
        if key not in unused and key.startswith("text_model.") and not key.endswith("position_ids")
    }
    own = on_meta(lambda each: TextTransformer(text_from_transformers(each)), config, path)
    write_part(folder, TRANSFORMERS, config, state, {f"text_model.{key}": value for key, value in own.items()}, path)


def on_meta(make: Callable[[dict[str, Any]], nn.Module], config: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Names and shapes of a network, without its memory."""
    try:
        with torch.device("meta"), Uninitialised():
            return make(config).state_dict()
    except (ValueError, RuntimeError, ZeroDivisionError) as problem:
        raise UserError(f"{path} holds a network that diffusers cannot build ({explain(problem)})") from problem


def save_tokenizer(folder: Path, text: dict[str, Any], path: Path) -> None:
    """CLIP's tokenizer, which no checkpoint holds.
    Stable Diffusion 1.x pads with its end token, 2.x with '!', its token 0.
    """
    found = load_tokenizer(find_tokenizer(path), text["max_position_embeddings"])
    if found.size != text["vocab_size"]:
        raise UserError(
            f"the text encoder in {path} knows {text['vocab_size']} tokens, but the tokenizer in {find_tokenizer(path)} has {found.size}"
        )
    pad = found.backend.id_to_token(0) if text["hidden_act"] == "gelu" else None
    Tokenizer(found.backend, found.length, pad or found.pad).save(folder)


def find_tokenizer(path: Path) -> Path:
    """A folder with CLIP's tokenizer: beside the file, in the cache of the hub, or downloaded (1.4 MB)."""
    for folder in (path.parent / "tokenizer", *map(in_cache, TOKENIZERS)):
        if folder and (folder / "tokenizer_config.json").exists():
            return folder
    what = f"{path} holds no tokenizer (no checkpoint in one file does), and none is in {path.parent / 'tokenizer'} or in the cache of the hub"
    with hub.asking(
        what, CLIP, f"put a folder named tokenizer, from any Stable Diffusion folder, beside {path}"
    ) as api:
        return Path(api.snapshot_download(CLIP, allow_patterns=["tokenizer_config.json", "vocab.json", "merges.txt"]))


def in_cache(name: str) -> Path | None:
    """The folder of a repository's tokenizer in the hub's cache."""
    root = hub.cached(name, "vocab.json", "tokenizer/vocab.json")
    return root and next(folder for folder in (root / "tokenizer", root) if (folder / "vocab.json").exists())
