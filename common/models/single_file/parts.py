"""The parts of a checkpoint in one file: their configurations, inferred from names and shapes, and their folders."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import UserError, explain
from common.io import hub
from common.io.files import write_json
from common.io.state_dict import check_architecture
from common.io.weight_files import DIFFUSERS, TRANSFORMERS
from common.models.diffusers_configs import (
    unet_from_diffusers,
    unet_to_diffusers,
    vae_from_diffusers,
    vae_to_diffusers,
)
from common.models.single_file.kinds import OPEN_CLIP, TEXT, UNET, VAE
from common.models.text.tokenizer import Tokenizer, load_tokenizer
from common.models.text.transformer import TextConfig, TextTransformer, text_from_transformers, text_to_transformers
from common.models.unet import UNet
from common.models.unet_config import UNetConfig
from common.models.vae import AutoencoderKL, VAEConfig

CLIP = "openai/clip-vit-large-patch14"  # whose tokenizer Stable Diffusion has
TOKENIZERS = (  # repositories whose copy in the cache has it
    CLIP,
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2",
)

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
            f"{path} is no whole checkpoint of Stable Diffusion: the weights of its {part} cannot be converted ({reason})"
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


def vae_config(state: dict[str, Tensor], pixels: int, path: Path, scaling_factor: float = 0.18215) -> VAEConfig:
    """The configuration of an autoencoder, from its weights under the names of CompVis."""
    with every_weight_of("autoencoder", path):
        levels = numbers(state, r"encoder\.down\.(\d+)\.")
        return VAEConfig(
            size=pixels,
            image_channels=state["encoder.conv_in.weight"].shape[1],
            latent_channels=state["post_quant_conv.weight"].shape[1],
            channels=tuple(state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in levels),
            layers=len(numbers(state, r"encoder\.down\.0\.block\.(\d+)\.")),
            scaling_factor=scaling_factor,
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


def open_clip_config(state: dict[str, Tensor], path: Path, prefix: str = OPEN_CLIP, unread: int = 1) -> TextConfig:
    """The same of OpenCLIP. unread: layers at the end that are left out; 2.x reads its text before the last one."""
    layers = len(numbers(state, re.escape(prefix) + r"transformer\.resblocks\.(\d+)\.")) - unread
    with every_weight_of("text encoder", path):
        vocab, dim = state[f"{prefix}token_embedding.weight"].shape
        length = state[f"{prefix}positional_embedding"].shape[0]
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
            f"{path} holds a network of another architecture than Stable Diffusion's: "
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


def write_vae(folder: Path, state: dict[str, Tensor], pixels: int, path: Path, scaling_factor: float = 0.18215) -> int:
    """Write an autoencoder; returns f, how many times smaller a side its latents are."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    state = {name.removeprefix(VAE): value for name, value in state.items() if name.startswith(VAE)} or state
    state = {
        name: value
        for name, value in state.items()
        if name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
    }
    cfg = vae_config(state, pixels, path, scaling_factor)
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
