"""Text encoders of a U-Net: encoder(captions) -> (B, M, D) text embeddings.

    SmallText          a tokenizer and a transformer of our own, trained along with the U-Net
    CLIPTextEncoder    a CLIP or Chinese CLIP from `transformers`, frozen
    CachedTextEncoder  a frozen encoder that computes each caption once (cached.py)

The empty caption "" means "no condition" and is encoded like any other text: begin, end, padding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from common.errors import UserError, explain
from common.io.files import read_json, write_json
from common.io.state_dict import build_strictly, read_component, write_weights
from common.io.weight_files import TRANSFORMERS as WEIGHTS
from common.io.weight_files import find_weights
from common.models.text.hub import find_encoder, parts
from common.models.text.tokenizer import BOS, EOS, Tokenizer, load_tokenizer, train_tokenizer
from common.models.text.transformer import TextConfig, TextTransformer, text_from_transformers, text_to_transformers


class TextEncoder(Protocol):
    """What a pipeline needs of an encoder."""

    dim: int  # width of an embedding (D)

    def __call__(self, captions: Sequence[str]) -> Tensor: ...  # (B, M, D), float32

    def remarks(self, prompt: str) -> list[str]: ...  # warnings for the user: empty, cut off, unknown words


# ------------------------------------------------------------------------------------------------------- trained by us


class SmallText(nn.Module):
    """A tokenizer and a transformer whose parameters are trained together with those of the U-Net."""

    def __init__(self, tokenizer: Tokenizer, transformer: TextTransformer):
        super().__init__()
        cfg = transformer.cfg
        if tokenizer.size > cfg.vocab or tokenizer.length > cfg.length:
            raise UserError(
                f"the tokenizer has {tokenizer.size} tokens and a length of {tokenizer.length}, "
                f"but the text encoder has {cfg.vocab} tokens and a length of {cfg.length}"
            )
        self.tokenizer, self.transformer = tokenizer, transformer
        self.dim, self.length = cfg.dim, tokenizer.length

    def token_ids(self, captions: Sequence[str]) -> Tensor:
        """(B, M) int64 on the transformer's device. Training tokenizes its captions once with it."""
        return self.tokenizer(captions).to(self.transformer.final_layer_norm.weight.device)

    def forward(self, captions: Sequence[str] | Tensor) -> Tensor:
        """captions: texts, or their token ids (B, M)"""
        return self.transformer(captions if isinstance(captions, Tensor) else self.token_ids(captions))

    def remarks(self, prompt: str) -> list[str]:
        return self.tokenizer.remarks(prompt)


def small_text(
    captions: Sequence[str], dim: int = 128, layers: int = 2, heads: int = 4, length: int = 64
) -> SmallText:
    """An untrained encoder whose vocabulary is that of the captions."""
    tokenizer = train_tokenizer(captions, length)
    bos, eos = tokenizer.id(BOS), tokenizer.id(EOS)
    cfg = TextConfig(tokenizer.size, length, dim, layers, heads, hidden=4 * dim, bos=bos, eos=eos, pad=eos)
    return SmallText(tokenizer, TextTransformer(cfg))


# -------------------------------------------------------------------------------------------------------------- frozen

LOADERS = {
    "clip_text_model": "CLIPTextModel",
    "clip": "CLIPModel",
    "chinese_clip_text_model": "ChineseCLIPTextModel",
    "chinese_clip": "ChineseCLIPModel",
}


class CLIPTextEncoder(nn.Module):
    """A pretrained text encoder that is not trained further.

    name    a hub id, or a folder: of a CLIP or Chinese CLIP model, or of a whole diffusers model
    length  tokens of a text; by default 77 for CLIP, 52 for Chinese CLIP, as in their papers, or less if it has fewer
    """

    def __init__(self, name: str, length: int | None = None):
        super().__init__()
        self.name = name
        encoder, tokenizer_dir = find_encoder(str(name))
        self.network: Any = load_network(encoder)
        config = self.network.config
        self.chinese = config.model_type.startswith("chinese")
        self.dim = config.hidden_size
        self.length = min(length or (52 if self.chinese else 77), config.max_position_embeddings)
        self.hf_tokenizer, self.tokenizer = open_tokenizer(tokenizer_dir, self.length)

    def train(self, mode: bool = True) -> "CLIPTextEncoder":
        return super().train(False)  # frozen: no dropout, even inside a module in training mode

    def token_ids(self, captions: Sequence[str]) -> Tensor:
        """(B, M) int64"""
        return self.tokenizer(captions).to(self.network.device)

    @torch.no_grad()
    def forward(self, captions: Sequence[str] | Tensor) -> Tensor:
        """captions: texts, or their token ids (B, M)"""
        token_ids = captions if isinstance(captions, Tensor) else self.token_ids(captions)
        # Chinese CLIP has bidirectional attention and was trained with a padding mask; CLIP needs no mask (see
        # TextTransformer).
        mask = token_ids.ne(self.tokenizer.pad_id).long() if self.chinese else None
        return self.network(input_ids=token_ids, attention_mask=mask).last_hidden_state.float()

    def remarks(self, prompt: str) -> list[str]:
        return self.tokenizer.remarks(prompt)


def load_network(folder: Path) -> Any:
    """The text half of a model of `transformers`, frozen, with every weight found."""
    import transformers

    kind = read_json(folder / "config.json").get("model_type")
    if not isinstance(kind, str) or kind not in LOADERS:
        raise UserError(f"{folder} holds a text encoder of kind {kind!r}; expected {', '.join(LOADERS)}")
    transformers.utils.logging.disable_progress_bar()
    loader = getattr(transformers, LOADERS[kind])
    extra = {"add_pooling_layer": False} if kind == "chinese_clip_text_model" else {}
    variant = find_weights(folder, WEIGHTS).variant
    try:
        network, found = loader.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, variant=variant, **extra
        )
    except Exception as problem:  # OSError, RuntimeError, SafetensorError, and errors of its configuration
        raise UserError(f"the text encoder in {folder} cannot be opened ({explain(problem)})") from problem
    if found["missing_keys"]:
        raise UserError(f"the text encoder in {folder} lacks weights, for instance {min(found['missing_keys'])}")
    return getattr(network, "text_model", network).requires_grad_(False).eval()


def open_tokenizer(folder: Path, length: int) -> tuple[Any, Tokenizer]:
    """(the tokenizer of `transformers`, the same one in our interface)"""
    from transformers import AutoTokenizer

    try:
        hf_tokenizer = AutoTokenizer.from_pretrained(folder)
        return hf_tokenizer, Tokenizer(hf_tokenizer.backend_tokenizer, length, hf_tokenizer.pad_token)
    except Exception as problem:  # it has many kinds
        raise UserError(f"the tokenizer in {folder} cannot be opened ({explain(problem)})") from problem


# --------------------------------------------------------------------------------------------------------------- files


def save_text(folder: Path, encoder: SmallText | CLIPTextEncoder, dtype: torch.dtype = torch.float32) -> None:
    """Write `tokenizer/` and `text_encoder/` of a diffusers model, for CLIPTokenizer and
    CLIPTextModel.from_pretrained.
    """
    if isinstance(encoder, CLIPTextEncoder):
        encoder.network.save_pretrained(folder / "text_encoder")
        encoder.hf_tokenizer.save_pretrained(folder / "tokenizer")
        return
    encoder.tokenizer.save(folder / "tokenizer")
    write_json(folder / "text_encoder" / "config.json", text_to_transformers(encoder.transformer.cfg))
    # In files the keys begin with text_model, as in every Stable Diffusion folder; older releases of transformers
    # require it.
    state = {f"text_model.{key}": value for key, value in encoder.transformer.state_dict().items()}
    write_weights(folder / "text_encoder" / WEIGHTS, state, dtype)


def load_text(folder: Path) -> SmallText | CLIPTextEncoder:
    """Open what save_text wrote, or the text encoder of any Stable Diffusion 1.x or 2.x folder."""
    folder = Path(folder)
    found = parts(folder)
    if found is None or found == (folder, folder):
        raise UserError(
            f"{folder} holds no text encoder: {folder / 'text_encoder'} and {folder / 'tokenizer'} were expected"
        )
    config = read_json(folder / "text_encoder" / "config.json")
    if str(config.get("model_type")).startswith("chinese_clip"):
        return CLIPTextEncoder(str(folder))
    transformer = load_transformer(folder / "text_encoder", config)
    return SmallText(load_tokenizer(folder / "tokenizer", transformer.cfg.length), transformer).eval()


def load_transformer(folder: Path, config: dict) -> TextTransformer:
    """In float32, every key checked."""
    cfg = text_from_transformers(config)
    weights, source = read_component(folder, WEIGHTS)
    weights = {
        key.removeprefix("text_model."): value for key, value in weights.items() if not key.endswith("position_ids")
    }
    return build_strictly(lambda: TextTransformer(cfg), weights, source)
