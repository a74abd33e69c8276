"""The two checkpoint formats of a Chinese CLIP: that of the package cn_clip, and that of ChineseCLIPModel in
`transformers`.

    cn_clip        CLIP(**sizes), a checkpoint clip_cn_vit-b-16.pt with {"state_dict": ...}, weights visual.* and
                   bert.*
    transformers   a folder: config.json, model.safetensors, vocab.txt; weights vision_model.* and text_model.*

Both compute the same (Yang et al. 2022, Chinese CLIP: a vision transformer and a BERT that meet in one space), so a
CLIPConfig, the weights under cn_clip's names and the vocabulary define a model. Every reader in this file returns a
CLIPCheckpoint with these three.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.errors import UserError, explain, shown
from common.io.files import read_json, write_atomically, write_json
from common.io.ranges import fits
from common.io.state_dict import read_component, read_pickle, read_weights, tensors_of, write_weights

State = dict[str, Tensor]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, of colours from 0 to 1
ACTIVATIONS = ("gelu", "gelu_new", "relu", "swish")  # of cn_clip's BERT
WEIGHTS, VOCAB, SIZES = "model.safetensors", "vocab.txt", "cn_clip.json"


# {field of text_config or vision_config of `transformers`: field of CLIPConfig}
TEXT_FIELDS = {"vocab_size": "vocab_size"} | {
    name: f"text_{name}"
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "max_position_embeddings",
        "type_vocab_size",
        "hidden_act",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "initializer_range",
    )
}
VISION_FIELDS = {
    "hidden_size": "vision_width",
    "num_hidden_layers": "vision_layers",
    "image_size": "image_resolution",
    "patch_size": "vision_patch_size",
}


@dataclass(frozen=True)
class CLIPConfig:
    """The architecture of a model: the arguments of cn_clip.clip.model.CLIP, under its names."""

    embed_dim: int  # D, the dimension of the joint embedding space
    image_resolution: int  # pixels a side
    vision_layers: int
    vision_width: int
    vision_patch_size: int  # pixels a side
    vocab_size: int
    text_hidden_size: int
    text_intermediate_size: int
    text_num_attention_heads: int
    text_num_hidden_layers: int
    text_max_position_embeddings: int  # most tokens a text can have
    vision_head_width: int = 64
    text_type_vocab_size: int = 2
    text_hidden_act: str = "gelu"
    text_hidden_dropout_prob: float = 0.1
    text_attention_probs_dropout_prob: float = 0.1
    text_initializer_range: float = 0.02

    def __post_init__(self):
        for what, whole, part in (
            ("the size of its images", self.image_resolution, self.vision_patch_size),
            ("the width of its image network", self.vision_width, self.vision_head_width),
            ("the width of its text network", self.text_hidden_size, self.text_num_attention_heads),
        ):
            if part < 1 or whole < part or whole % part:
                raise UserError(f"{what}, {whole}, must be a multiple of {part}")
        if self.text_hidden_act not in ACTIVATIONS:
            raise UserError(f"text_hidden_act is {shown(self.text_hidden_act)}; cn_clip has {', '.join(ACTIVATIONS)}")

    def to_transformers(self) -> dict[str, Any]:
        """config.json of a ChineseCLIPModel."""
        text = {theirs: getattr(self, ours) for theirs, ours in TEXT_FIELDS.items()}
        vision = {theirs: getattr(self, ours) for theirs, ours in VISION_FIELDS.items()}
        return {
            "model_type": "chinese_clip",
            "architectures": ["ChineseCLIPModel"],
            "projection_dim": self.embed_dim,
            "text_config": text | {"layer_norm_eps": 1e-12, "pad_token_id": 0},
            "vision_config": vision
            | {
                "intermediate_size": 4 * self.vision_width,
                "num_attention_heads": self.vision_width // self.vision_head_width,
                "projection_dim": self.embed_dim,
                "hidden_act": "quick_gelu",
                "layer_norm_eps": 1e-5,
            },
        }


class CLIPCheckpoint(NamedTuple):
    """A model read from either format."""

    config: CLIPConfig
    state: State  # float32, under cn_clip's names
    vocab: tuple[str, ...]  # token k is vocab[k]
    source: str  # the file or folder that it was read from, for messages


# -------------------------------------------------------------------------------------------- reading the architecture


def config_from_transformers(config: dict[str, Any], source: str) -> CLIPConfig:
    """Read the architecture from the config.json of a ChineseCLIPModel;
    missing entries have the defaults of `transformers`.
    """
    if config.get("model_type") != "chinese_clip":
        raise UserError(
            f"{source} holds a model of kind {config.get('model_type')!r}; a Chinese CLIP has model_type 'chinese_clip'"
        )
    from transformers import ChineseCLIPConfig

    try:
        whole = ChineseCLIPConfig(**config)
    except Exception as problem:  # its checks raise their own kinds
        raise UserError(f"{source} describes no Chinese CLIP ({explain(problem)})") from problem
    text, vision = whole.text_config, whole.vision_config
    cfg = CLIPConfig(
        embed_dim=whole.projection_dim,
        vision_head_width=vision.hidden_size // max(1, vision.num_attention_heads),
        **{ours: getattr(text, theirs) for theirs, ours in TEXT_FIELDS.items()},
        **{ours: getattr(vision, theirs) for theirs, ours in VISION_FIELDS.items()},
    )
    wanted = cfg.to_transformers()
    for part, given in (("text_config", text), ("vision_config", vision)):
        for key, value in wanted[part].items():
            if key != "projection_dim" and getattr(given, key) != value:
                raise UserError(
                    f"{source} has {key} {getattr(given, key)} in its {part}; a model that cn_clip can build has {value}"
                )
    return cfg


def config_from_weights(state: State, source: str) -> CLIPConfig:
    """Infer the architecture from the weights of a cn_clip checkpoint, which contains no configuration.

    The weights do not determine the width of an attention head. It is 64 in every published model, except 80 in the
    image network of ViT-H-14.
    """
    if "visual.layer1.0.conv1.weight" in state:
        raise UserError(
            f"{source} encodes images with a ResNet, as RN50 does; this chapter reads vision transformers, such as ViT-B-16"
        )
    needed = (
        "visual.conv1.weight",
        "visual.positional_embedding",
        "visual.proj",
        "text_projection",
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.position_embeddings.weight",
        "bert.encoder.layer.0.intermediate.dense.weight",
    )
    if missing := [key for key in needed if key not in state]:
        raise UserError(f"{source} holds no Chinese CLIP: among its {len(state)} weights there is no {missing[0]}")
    if (
        state["visual.conv1.weight"].ndim != 4
        or state["text_projection"].ndim != 2
        or any(state[key].ndim < 1 for key in needed)
    ):
        raise UserError(
            f"{source} holds no Chinese CLIP: visual.conv1.weight or another weight has the wrong number of dimensions"
        )
    (width, _, patch, _), hidden = state["visual.conv1.weight"].shape, state["text_projection"].shape[0]
    grid = round(max(0, len(state["visual.positional_embedding"]) - 1) ** 0.5)
    if width not in PUBLISHED_WIDTHS or hidden not in PUBLISHED_WIDTHS:
        warnings.warn(
            f"{source} does not say how wide its attention heads are; the 64 of the published models is assumed. "
            f"If that is wrong, put the sizes of the model beside it, in {SIZES}",
            stacklevel=2,
        )
    return CLIPConfig(
        embed_dim=state["text_projection"].shape[1],
        image_resolution=grid * patch,
        vision_layers=depth(state, r"visual\.transformer\.resblocks\."),
        vision_width=width,
        vision_patch_size=patch,
        vision_head_width=80 if width == 1280 else min(64, width),
        vocab_size=len(state["bert.embeddings.word_embeddings.weight"]),
        text_hidden_size=hidden,
        text_intermediate_size=len(state["bert.encoder.layer.0.intermediate.dense.weight"]),
        text_num_attention_heads=max(1, hidden // 64),
        text_num_hidden_layers=depth(state, r"bert\.encoder\.layer\."),
        text_max_position_embeddings=len(state["bert.embeddings.position_embeddings.weight"]),
    )


def config_from_sizes(stored: Any, beside: Path) -> CLIPConfig | None:
    """Read the architecture from the arguments of CLIP, stored in a checkpoint or in a file beside it;
    None if neither has them.
    """
    sizes = stored if isinstance(stored, dict) else read_json(beside) if beside.exists() else {}
    types = {field.name: field.type for field in fields(CLIPConfig)}
    if not sizes or not all(name in types and fits(value, types[name]) for name, value in sizes.items()):
        return None
    try:
        return CLIPConfig(**sizes)
    except TypeError:  # some are missing
        return None


def depth(state: State, prefix: str) -> int:
    """Number of layers whose keys begin with this prefix."""
    return 1 + max((int(found[1]) for key in state if (found := re.match(prefix + r"(\d+)\.", key))), default=-1)


# ---------------------------------------------------------------------------------------------------- names of weights

PUBLISHED_WIDTHS = (768, 1024, 1280)  # of the image and text networks of every published model
RENAMED = {  # part of a name in cn_clip: the same part in transformers
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    ".attn.": ".self_attn.",
    "bert.": "text_model.",
}
# (in, out) is (out, in) there
TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
STACKED = re.compile(r"(vision_model\.encoder\.layers\.\d+\.self_attn\.)in_proj_(weight|bias)")
SEPARATE = re.compile(r"(vision_model\.encoder\.layers\.\d+\.self_attn\.)[qkv]_proj\.(weight|bias)")


def without_flash(state: State) -> State:
    """Rename the weights of a cn_clip training with FlashAttention to the names without it.

    FlashAttention keeps queries, keys and values in one matrix, and so does cn_clip's image network, but not its BERT.
    """
    result = {}
    for key, value in state.items():
        if key.startswith("bert.") and ".self.Wqkv." in key:
            for name, part in zip(("query", "key", "value"), value.tensor_split(3), strict=True):
                result[key.replace("Wqkv", name)] = part.contiguous()
        else:
            result[key.replace(".attn.Wqkv.", ".attn.in_proj_").replace(".self.out_proj.", ".output.dense.")] = value
    return result


def to_transformers(state: State) -> State:
    """cn_clip's names -> those of ChineseCLIPModel.
    There queries, keys and values are three matrices, here one stack of them.
    """
    result = {}
    for key, value in state.items():
        name = renamed(key, RENAMED)
        if found := STACKED.fullmatch(name):
            for letter, part in zip("qkv", value.tensor_split(3), strict=True):
                result[f"{found[1]}{letter}_proj.{found[2]}"] = part.contiguous()
        elif key in TRANSPOSED:
            result[TRANSPOSED[key]] = value.T.contiguous()
        else:
            result[name] = value
    return result


def from_transformers(state: State) -> State:
    """The names of ChineseCLIPModel -> cn_clip's: the inverse.
    What cn_clip has no use for, counters and a pooler, is left out.
    """
    back = {theirs: ours for ours, theirs in RENAMED.items()}
    transposed = {theirs: ours for ours, theirs in TRANSPOSED.items()}
    result = {}
    for key, value in state.items():
        if key in transposed:
            result[transposed[key]] = value.T.contiguous()
        elif found := SEPARATE.fullmatch(key):
            parts = [state.get(f"{found[1]}{letter}_proj.{found[2]}") for letter in "qkv"]
            if all(part is not None for part in parts):  # an incomplete stack is left out, and then missed
                result[renamed(f"{found[1]}in_proj_{found[2]}", back)] = torch.cat(parts)
        elif not key.endswith("position_ids") and "text_model.pooler." not in key:
            result[renamed(key, back)] = value
    return result


def renamed(key: str, names: dict[str, str]) -> str:
    """Replace parts of a key by the table. An unknown key stays as it is, so that a strict load names it."""
    for old, new in names.items():
        key = key.replace(old, new)
    return key


# --------------------------------------------------------------------------------------------------------------- files


def read_checkpoint(path: Path, vocab: Sequence[str] | None = None) -> CLIPCheckpoint:
    """A .pt file: published by cn_clip, fine-tuned with it, or written by save_checkpoint;
    or a .safetensors file of the same weights.

    vocab: used if neither the file nor its folder has a vocabulary
    """
    saved = read_weights(path) if path.suffix == ".safetensors" else read_pickle(path)
    # without the prefixes of DistributedDataParallel and torch.compile
    state = {re.sub(r"^((module|_orig_mod)\.)+", "", key): value for key, value in tensors(saved, path).items()}
    unused = [key for key in state if key.startswith("bert.pooler.") or key.endswith("position_ids")]
    state = without_flash({key: value for key, value in state.items() if key not in unused})
    cfg = config_from_sizes(saved.get("config"), path.parent / SIZES) or config_from_weights(state, str(path))
    choices = [
        tuple(choice)
        for choice in (saved.get("vocab"), read_vocab(path.parent), vocab)
        if isinstance(choice, (list, tuple)) and choice
    ]
    fitting = [choice for choice in choices if len(choice) == cfg.vocab_size] + choices
    return validated(CLIPCheckpoint(cfg, state, fitting[0] if fitting else (), str(path)))


def tensors(saved: Any, source: Path) -> State:
    """The state dict in a file of torch.save, in float32. It may lie in a dictionary beside other entries."""
    places = saved if isinstance(saved, dict) and "state_dict" not in saved else {}
    inner = next((places[key] for key in ("model_state_dict", "model") if isinstance(places.get(key), dict)), saved)
    return {key: value.float() for key, value in tensors_of(inner, source).items()}


def save_checkpoint(path: Path, checkpoint: CLIPCheckpoint) -> None:
    """Write a .pt file in cn_clip's format, with two entries more: its architecture and its vocabulary."""
    saved = {
        "state_dict": {key: value.contiguous() for key, value in checkpoint.state.items()},
        "config": asdict(checkpoint.config),
        "vocab": list(checkpoint.vocab),
    }
    write_atomically(path, lambda file: torch.save(saved, file))


def read_folder(folder: Path) -> CLIPCheckpoint:
    """Read a folder in the format of `transformers`."""
    cfg = config_from_transformers(read_json(folder / "config.json"), str(folder / "config.json"))
    weights, source = read_component(folder, WEIGHTS)
    return validated(CLIPCheckpoint(cfg, from_transformers(weights), read_vocab(folder) or (), str(source)))


def read_vocab(folder: Path) -> tuple[str, ...] | None:
    """The vocabulary in a folder: vocab.txt with a token a line, or tokenizer.json."""
    if (folder / VOCAB).exists():
        try:
            return tuple((folder / VOCAB).read_text(encoding="utf-8-sig").rstrip("\n").split("\n"))
        except ValueError as problem:
            raise UserError(f"{folder / VOCAB} cannot be read as UTF-8 text ({explain(problem)})") from problem
    if (folder / "tokenizer.json").exists():
        model = read_json(folder / "tokenizer.json").get("model")
        numbers = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(numbers, dict) and all(isinstance(number, int) for number in numbers.values()):
            return tuple(sorted(numbers, key=numbers.get))
    return None


def validated(checkpoint: CLIPCheckpoint) -> CLIPCheckpoint:
    """Refuse weights that are not finite, and sizes or a vocabulary that do not belong to them."""
    if broken := [key for key, value in checkpoint.state.items() if not value.isfinite().all()]:
        raise UserError(
            f"{checkpoint.source} holds infinite numbers or NaN, first in {broken[0]}; choose another checkpoint"
        )
    layers = max(checkpoint.config.vision_layers, checkpoint.config.text_num_hidden_layers)
    if layers > len(checkpoint.state):  # so that no file can ask for more than it holds
        raise UserError(
            f"{checkpoint.source} holds weights of another architecture: {len(checkpoint.state)} tensors cannot be {layers:,} layers"
        )
    if not checkpoint.vocab:
        raise UserError(
            f"{checkpoint.source} comes without a vocabulary; put the {VOCAB} that it was trained with beside it"
        )
    if len(checkpoint.vocab) != checkpoint.config.vocab_size:
        raise UserError(
            f"the vocabulary of {checkpoint.source} has {len(checkpoint.vocab)} tokens, but its weights are for {checkpoint.config.vocab_size}; "
            f"put the {VOCAB} that it was trained with beside it"
        )
    if not all(isinstance(token, str) for token in checkpoint.vocab):
        raise UserError(f"the vocabulary of {checkpoint.source} is no list of texts")
    if checkpoint.vocab[0] != SPECIAL[0] or not set(SPECIAL[:4]) <= set(checkpoint.vocab):
        raise UserError(
            f"the vocabulary of {checkpoint.source} must begin with {SPECIAL[0]} and hold {', '.join(SPECIAL[1:4])}"
        )
    return checkpoint


def save_folder(folder: Path, checkpoint: CLIPCheckpoint, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder that ChineseCLIPModel, AutoTokenizer and ChineseCLIPProcessor open,
    and cn_clip's arguments in SIZES.
    """
    from transformers import ChineseCLIPImageProcessor

    cfg = checkpoint.config
    weights = {
        key: value.detach().to("cpu", dtype).contiguous() for key, value in to_transformers(checkpoint.state).items()
    }
    if beyond := [key for key, value in weights.items() if not value.isfinite().all()]:
        raise UserError(
            f"{beyond[0]} of {checkpoint.source} holds numbers too large for half precision; store it in single precision"
        )
    side = {"height": cfg.image_resolution, "width": cfg.image_resolution}
    processor = ChineseCLIPImageProcessor(size=side, do_center_crop=False).to_dict()  # all else as in CLIP
    tokenizer = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": cfg.text_max_position_embeddings,
        **{f"{name.strip('[]').lower()}_token": name for name in SPECIAL},
    }
    write_json(folder / "config.json", cfg.to_transformers())
    write_json(folder / SIZES, asdict(cfg))
    write_json(folder / "preprocessor_config.json", processor)
    write_json(folder / "tokenizer_config.json", tokenizer)
    write_atomically(folder / VOCAB, lambda file: file.write(("\n".join(checkpoint.vocab) + "\n").encode()))
    write_weights(folder / WEIGHTS, weights)
