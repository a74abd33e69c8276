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
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import UserError, explain
from common.io import hub
from common.io.files import write_json
from common.io.state_dict import check_architecture, read_tensors
from common.io.weight_files import DIFFUSERS, TRANSFORMERS
from common.models.diffusers_configs import (
    model_index,
    unet_from_diffusers,
    unet_to_diffusers,
    vae_from_diffusers,
    vae_to_diffusers,
)
from common.models.text.tokenizer import Tokenizer, load_tokenizer
from common.models.text.transformer import TextConfig, TextTransformer, text_from_transformers, text_to_transformers
from common.models.unet import UNet
from common.models.unet_config import UNetConfig
from common.models.vae import AutoencoderKL, VAEConfig

SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")
CONVERTED = Path("runs/single_files")
CLIP = "openai/clip-vit-large-patch14"  # whose tokenizer Stable Diffusion has
TOKENIZERS = (  # repositories whose copy in the cache has it
    CLIP,
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2",
)
TEXT_WIDTHS = (768, 1024, 1280)  # of the text encoders of Stable Diffusion 1.x, 2.x and XL
UNET, VAE = "model.diffusion_model.", "first_stage_model."  # how the names of CompVis begin
TEXT, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."


@dataclass(frozen=True)
class FileKind:
    """name: one of those that kind_of returns. says: what the file holds, for a sentence.
    advice: what to do with it instead.
    """

    name: str
    says: str
    advice: str = ""


# --------------------------------------------------------------------------------------------------- what is in a file


INVERSION = FileKind(
    "inversion",
    "a textual inversion: the embedding of a word",
    "diffusers' load_textual_inversion adds it to a pipeline",
)
OTHER = "load it with from_single_file of its pipeline in diffusers, and give the folder that save_pretrained writes"
OF_DIFFUSERS = "give the folder that holds it and its config.json"
KINDS = (  # an expression for names of weights, and the kind of a file with such a name; the first one counts
    (
        r"lora_up|lora_down|\.lora_[AB]\.|[_.]lora\.(up|down)|lora_linear_layer|hada_w1|lokr_w",
        FileKind("lora", "a LoRA or a similar adapter", "05_finetune_diffusers/lora.py --use opens it"),
    ),
    ("^(string_to_param|emb_params|string_to_token)", INVERSION),
    (
        r"^(control_model\.|controlnet_|input_hint_block\.)",
        FileKind("controlnet", "a ControlNet", "05_finetune_diffusers/controlnet.py --use opens the folder of one"),
    ),
    (r"conditioner\.embedders\.", FileKind("other", "a checkpoint of Stable Diffusion XL", OTHER)),
    (r"\.joint_blocks\.", FileKind("other", "a checkpoint of Stable Diffusion 3", OTHER)),
    (r"double_blocks\.", FileKind("other", "a checkpoint of FLUX", OTHER)),
    (r"^model\.diffusion_model\.", FileKind("sd", "a checkpoint of Stable Diffusion")),
    (r"encoder\.down\.0\.block\.0\.|^first_stage_model\.", FileKind("vae", "an autoencoder alone")),
    (r"^input_blocks\.0\.", FileKind("unet", "a U-Net alone, without autoencoder and text encoder")),
    (
        r"^encoder\.down_blocks\.",
        FileKind("diffusers-vae", "an autoencoder under the names of diffusers", OF_DIFFUSERS),
    ),
    (
        r"^(down_blocks|time_embedding)\.",
        FileKind("diffusers-unet", "a U-Net under the names of diffusers", OF_DIFFUSERS),
    ),
    (r"token_embedding\.weight|word_embeddings\.weight", FileKind("text", "a text encoder alone")),
)


def kind_of(state: dict[str, Tensor]) -> FileKind:
    """What the names of the weights show: one of KINDS, or unknown."""
    if not state:
        return FileKind("unknown", "no weights")
    if is_embedding(state):
        return INVERSION
    for expression, kind in KINDS:
        if any(re.search(expression, name) for name in state):
            return sd_kind(state) if kind.name == "sd" else kind
    shown = ", ".join(sorted(state)[:2])
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
    second = f"{OPEN_CLIP}token_embedding.weight" in state
    text = open_clip_config(state, path) if second else clip_config(with_prefix, path)
    save_tokenizer(folder / "tokenizer", text, path)
    unet = unet_config(
        {name.removeprefix(UNET): value for name, value in state.items() if name.startswith(UNET)}, path
    )
    inpaints = unet.in_channels != unet.out_channels
    v, zero_snr = prediction_of(state, path, second and not inpaints)
    pixels = 768 if v and second else 512
    factor = write_vae(folder / "vae", state, pixels, path)
    write_unet(folder / "unet", state, replace(unet, size=pixels // factor), path)
    write_text(folder / "text_encoder", with_prefix, text, path)
    scheduler: dict[str, Any] = {
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
    name = "StableDiffusionInpaintPipeline" if inpaints else "StableDiffusionPipeline"
    write_json(folder / "model_index.json", model_index(name, scheduler["_class_name"]))


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
        text = settings.read_text(encoding="utf-8", errors="replace")
        return bool(re.search(r"^\s*parameterization:\s*[\"']?v[\"']?\s*$", text, re.M)), False
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


def unet_config(state: dict[str, Tensor], path: Path) -> UNetConfig:
    """The configuration of a U-Net, from its weights under the names of CompVis."""
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
        return UNetConfig(
            in_channels=state["input_blocks.0.0.weight"].shape[1],
            out_channels=state["out.2.weight"].shape[0],
            channels=tuple(widths),
            attention=tuple(attention),
            layers=len(levels[0]),
            heads=tuple(max(1, width // 64) if linear else 8 for width in widths),
            text_dim=state[first].shape[1],
            depth=len(numbers(state, re.escape(where) + r"transformer_blocks\.(\d+)\.")),
            linear_projection=linear,
        )


def vae_config(state: dict[str, Tensor], pixels: int, path: Path) -> VAEConfig:
    """The configuration of an autoencoder, from its weights under the names of CompVis."""
    with every_weight_of("autoencoder", path):
        levels = numbers(state, r"encoder\.down\.(\d+)\.")
        return VAEConfig(
            size=pixels,
            image_channels=state["encoder.conv_in.weight"].shape[1],
            latent_channels=state["post_quant_conv.weight"].shape[1],
            channels=tuple(state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in levels),
            layers=len(numbers(state, r"encoder\.down\.0\.block\.(\d+)\.")),
            scaling_factor=0.18215,
        )


def clip_config(state: dict[str, Tensor], path: Path) -> TextConfig:
    """The configuration of the text encoder of Stable Diffusion 1.x."""
    where = f"{TEXT}text_model."
    with every_weight_of("text encoder", path):
        vocab, dim = state[f"{where}embeddings.token_embedding.weight"].shape
        hidden = state[f"{where}encoder.layers.0.mlp.fc1.weight"].shape[0]
        length = state[f"{where}embeddings.position_embedding.weight"].shape[0]
    layers = len(numbers(state, re.escape(where) + r"encoder\.layers\.(\d+)\."))
    heads, eos = max(1, dim // 64), vocab - 1
    return TextConfig(vocab, length, dim, layers, heads, hidden, bos=vocab - 2, eos=eos, pad=eos)


def open_clip_config(state: dict[str, Tensor], path: Path) -> TextConfig:
    """The same of 2.x, whose OpenCLIP is read before its last layer."""
    layers = len(numbers(state, re.escape(OPEN_CLIP) + r"transformer\.resblocks\.(\d+)\.")) - 1
    with every_weight_of("text encoder", path):
        vocab, dim = state[f"{OPEN_CLIP}token_embedding.weight"].shape
        length = state[f"{OPEN_CLIP}positional_embedding"].shape[0]
    heads = max(1, dim // 64)
    return TextConfig(vocab, length, dim, layers, heads, 4 * dim, "gelu", bos=vocab - 2, eos=vocab - 1, pad=0)


# ------------------------------------------------------------------------------------------------- parts of the folder


def write_part(
    folder: Path,
    name: str,
    config: dict[str, Any],
    state: dict[str, Tensor],
    make: Callable[[], nn.Module],
    path: Path,
    prefix: str = "",
) -> None:
    """config.json and weights of a component, every name and shape compared with the network that make() builds.
    prefix: of the names in the file
    """
    check_architecture(make, {key.removeprefix(prefix): value for key, value in state.items()}, path)
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


def write_unet(folder: Path, state: dict[str, Tensor], cfg: UNetConfig, path: Path) -> None:
    """Write a U-Net under the names of diffusers."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = unet_to_diffusers(cfg)
    with every_weight_of("U-Net", path):
        converted = convert_ldm_unet_checkpoint(state, config)
    check_all_converted(sum(name.startswith(UNET) for name in state), converted, path)
    write_part(folder, DIFFUSERS, config, converted, lambda: UNet(unet_from_diffusers(config)), path)


def write_vae(folder: Path, state: dict[str, Tensor], pixels: int, path: Path) -> int:
    """Write an autoencoder; returns f, how many times smaller a side its latents are."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    state = {name.removeprefix(VAE): value for name, value in state.items() if name.startswith(VAE)} or state
    state = {
        name: value
        for name, value in state.items()
        if name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
    }
    cfg = vae_config(state, pixels, path)
    config = vae_to_diffusers(cfg)
    with every_weight_of("autoencoder", path):
        converted = convert_ldm_vae_checkpoint(state, config)
    check_all_converted(len(state), converted, path)
    write_part(folder, DIFFUSERS, config, converted, lambda: AutoencoderKL(vae_from_diffusers(config)), path)
    return cfg.factor


def write_text(folder: Path, state: dict[str, Tensor], cfg: TextConfig, path: Path) -> None:
    """Write a text encoder under the names of transformers."""
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    with every_weight_of("text encoder", path):
        if cfg.activation == "gelu":
            sizes = SimpleNamespace(config=SimpleNamespace(hidden_size=cfg.dim))
            state = convert_open_clip_checkpoint(sizes, state, OPEN_CLIP)
        else:
            state = convert_ldm_clip_checkpoint(state)
    # what lies behind the last layer that is read is left out
    layers = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")
    unused = {key for key in state if (found := layers.match(key)) and int(found[1]) >= cfg.layers}
    state = {
        key: value
        for key, value in state.items()
        if key not in unused and key.startswith("text_model.") and not key.endswith("position_ids")
    }
    config = text_to_transformers(cfg)
    make = lambda: TextTransformer(text_from_transformers(config))  # noqa: E731
    write_part(folder, TRANSFORMERS, config, state, make, path, prefix="text_model.")


def save_tokenizer(folder: Path, text: TextConfig, path: Path) -> None:
    """CLIP's tokenizer, which no checkpoint holds.
    Stable Diffusion 1.x pads with its end token, 2.x with '!', its token 0.
    """
    source = find_tokenizer(path)
    found = load_tokenizer(source, text.length)
    if found.size != text.vocab:
        raise UserError(
            f"the text encoder in {path} knows {text.vocab} tokens, but the tokenizer in {source} has {found.size}"
        )
    pad = found.backend.id_to_token(0) if text.pad == 0 else None
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
