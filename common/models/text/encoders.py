"""What the U-Net reads: encoder(captions) -> (B, M, D) embeddings.

    SmallText  a tokenizer and a transformer of our own, trained along with the U-Net
    CLIPTextEncoder  a CLIP or Chinese CLIP from `transformers`, frozen
    Cached     a frozen encoder that computes each caption once

The empty caption "" means "no condition" and is encoded like any other text: begin, end, padding.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from common.errors import UserError, explain
from common.io.files import read_json, write_atomically, write_json
from common.io.state_dict import build_strictly, read_component
from common.io.weight_files import TRANSFORMERS as WEIGHTS
from common.io.weight_files import find_weights
from common.models.text.hub import find_encoder, parts
from common.models.text.tokenizer import BOS, EOS, Tokenizer, load_tokenizer, train_tokenizer
from common.models.text.transformer import TextConfig, TextTransformer, text_from_transformers, text_to_transformers


class TextEncoder(Protocol):
    """What every encoder has."""

    dim: int  # width of an embedding (D)
    length: int  # tokens of a text (M)
    tokenizer: Tokenizer  # tokenizer.remarks(prompt) says what the user should know

    def __call__(self, captions: Sequence[str]) -> Tensor: ...  # (B, M, D), float32


# -------------------------------------------------------------------------------------------------------- trained by us


class SmallText(nn.Module):
    """Its parameters are trained with the U-Net's: the words come to mean what the pictures need them to mean."""

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

    def ids(self, captions: Sequence[str]) -> Tensor:
        """(B, M) int64 on the transformer's device. Captions that come again and again need be cut into tokens only once."""
        return self.tokenizer(captions).to(self.transformer.final_layer_norm.weight.device)

    def forward(self, captions: Sequence[str] | Tensor) -> Tensor:
        """captions: texts, or what ids() gave for them."""
        return self.transformer(captions if isinstance(captions, Tensor) else self.ids(captions))


def small_text(captions: Sequence[str], dim: int = 128, layers: int = 2, heads: int = 4, length: int = 64) -> SmallText:
    """An untrained encoder whose vocabulary is that of the captions."""
    tokenizer = train_tokenizer(captions, length)
    bos, eos = tokenizer.id(BOS), tokenizer.id(EOS)
    cfg = TextConfig(tokenizer.size, length, dim, layers, heads, hidden=4 * dim, bos=bos, eos=eos, pad=eos)
    return SmallText(tokenizer, TextTransformer(cfg))


# --------------------------------------------------------------------------------------------------------------- frozen

LOADERS = {"clip_text_model": "CLIPTextModel", "clip": "CLIPModel",
           "chinese_clip_text_model": "ChineseCLIPTextModel", "chinese_clip": "ChineseCLIPModel"}  # fmt: skip


class CLIPTextEncoder(nn.Module):
    """A pretrained text encoder that stays as it is.

    name    a hub id, or a folder: of a CLIP or Chinese CLIP model, or of a whole diffusers model
    length  tokens of a text; by default 77 for CLIP, 52 for Chinese CLIP, as in their papers, or less if it has fewer
    """

    def __init__(self, name: str, length: int | None = None):
        super().__init__()
        self.name = name
        encoder, words = find_encoder(str(name))
        self.network = load_network(encoder)
        config = self.network.config
        self.chinese = config.model_type.startswith("chinese")
        self.dim = config.hidden_size
        self.length = min(length or (52 if self.chinese else 77), config.max_position_embeddings)
        self.words, self.tokenizer = open_tokenizer(words, self.length)

    def train(self, mode: bool = True) -> "CLIPTextEncoder":
        return super().train(False)  # frozen: no dropout, whatever the modules around it do

    def ids(self, captions: Sequence[str]) -> Tensor:
        """(B, M) int64"""
        return self.tokenizer(captions).to(self.network.device)

    @torch.no_grad()
    def forward(self, captions: Sequence[str] | Tensor) -> Tensor:
        ids = captions if isinstance(captions, Tensor) else self.ids(captions)
        # Chinese CLIP looks both ways and was trained with its padding hidden; CLIP needs no mask (see TextTransformer).
        mask = (ids != self.tokenizer.id(self.tokenizer.pad)).long() if self.chinese else None
        return self.network(input_ids=ids, attention_mask=mask).last_hidden_state.float()


def load_network(folder: Path) -> nn.Module:
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
        network, found = loader.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, variant=variant, **extra)
    except Exception as problem:  # OSError, RuntimeError, SafetensorError, and errors of its configuration
        raise UserError(f"the text encoder in {folder} cannot be opened ({explain(problem)})") from problem
    if found["missing_keys"]:
        raise UserError(f"the text encoder in {folder} lacks weights, for instance {min(found['missing_keys'])}")
    return getattr(network, "text_model", network).requires_grad_(False).eval()


def open_tokenizer(folder: Path, length: int):
    """(the tokenizer of `transformers`, the same one in our interface)"""
    from transformers import AutoTokenizer

    try:
        words = AutoTokenizer.from_pretrained(folder)
        return words, Tokenizer(words.backend_tokenizer, length, words.pad_token)
    except Exception as problem:  # it has many kinds
        raise UserError(f"the tokenizer in {folder} cannot be opened ({explain(problem)})") from problem


class Cached:
    """A frozen encoder whose embeddings of the given captions are computed once, and kept on disk for the next run.

    The file's name is a hash of everything they depend on: weights, tokenizer, length, captions. It holds half-precision
    numbers, 2 N M D bytes for N different captions: 1 GB for 10,000 captions of 77 tokens, 650 wide. Other captions, such as
    prompts typed later, are computed when they come.
    """

    def __init__(self, encoder: CLIPTextEncoder, captions: Sequence[str], folder: Path, batch: int = 64):
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            raise UserError("only a frozen text encoder can be cached, because one that is trained changes with every step")
        self.encoder, self.dim, self.length, self.tokenizer = encoder, encoder.dim, encoder.length, encoder.tokenizer
        distinct = sorted({"", *captions})
        self.path = Path(folder) / f"text-{fingerprint(encoder, distinct)}.safetensors"
        self.row = {caption: i for i, caption in enumerate(distinct)}
        self.table = self._read() if self.path.exists() else None  # (N, M, D) float16
        if self.table is None:
            self.table = torch.cat([half(encoder(distinct[i : i + batch])) for i in range(0, len(distinct), batch)])
            write_atomically(self.path, lambda file: file.write(save({"embeddings": self.table})))

    def _read(self) -> Tensor | None:
        """The table of the file; None where it is damaged, for it can be computed again."""
        try:
            table = load_file(self.path)["embeddings"]
        except (SafetensorError, OSError, KeyError):
            return None
        return table if table.shape == (len(self.row), self.length, self.dim) else None

    def __call__(self, captions: Sequence[str]) -> Tensor:
        device = next(self.encoder.parameters()).device
        if all(caption in self.row for caption in captions):
            return self.table[[self.row[caption] for caption in captions]].float().to(device)
        return torch.cat([self([c]) if c in self.row else half(self.encoder([c])).float().to(device) for c in captions])


def half(x: Tensor) -> Tensor:
    """To float16 on the CPU, whose largest number is 65,504: what does not fit would come back as infinity."""
    y = x.to("cpu", torch.float16)
    if not y.isfinite().all():
        raise UserError(f"the embeddings of this text encoder do not fit into half precision, in which they are cached (the largest is {float(x.abs().max()):g}); choose another")
    return y


def fingerprint(encoder: CLIPTextEncoder, captions: Sequence[str]) -> str:
    """32 hexadecimal digits that change with the weights, the tokenizer, its length or the captions."""
    digest = hashlib.sha256()
    for name, weight in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().view(torch.uint8).numpy())
    digest.update(encoder.tokenizer.backend.to_str().encode())  # the length is in it
    digest.update(json.dumps(list(captions)).encode())
    return digest.hexdigest()[:32]


# ---------------------------------------------------------------------------------------------------------------- files


def save_text(folder: Path, encoder: SmallText | CLIPTextEncoder | Cached, dtype: torch.dtype = torch.float32) -> None:
    """Write `tokenizer/` and `text_encoder/` of a diffusers model, for CLIPTokenizer and CLIPTextModel.from_pretrained."""
    if isinstance(encoder, Cached):
        encoder = encoder.encoder
    if isinstance(encoder, CLIPTextEncoder):
        encoder.network.save_pretrained(folder / "text_encoder")
        encoder.words.save_pretrained(folder / "tokenizer")
        return
    encoder.tokenizer.save(folder / "tokenizer")
    write_json(folder / "text_encoder" / "config.json", text_to_transformers(encoder.transformer.cfg))
    # In files the keys begin with text_model, as in every Stable Diffusion folder; older releases of transformers insist on it.
    state = encoder.transformer.state_dict()
    state = {f"text_model.{key}": value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    write_atomically(folder / "text_encoder" / WEIGHTS, lambda file: file.write(save(state, metadata={"format": "pt"})))


def load_text(folder: Path) -> SmallText | CLIPTextEncoder:
    """Open what save_text wrote, or the text encoder of any Stable Diffusion 1.x or 2.x folder."""
    folder = Path(folder)
    found = parts(folder)
    if found is None or found == (folder, folder):
        raise UserError(f"{folder} holds no text encoder: {folder / 'text_encoder'} and {folder / 'tokenizer'} were expected")
    config = read_json(folder / "text_encoder" / "config.json")
    if str(config.get("model_type")).startswith("chinese_clip"):
        return CLIPTextEncoder(str(folder))
    transformer = load_transformer(folder / "text_encoder", config)
    return SmallText(load_tokenizer(folder / "tokenizer", transformer.cfg.length), transformer).eval()


def load_transformer(folder: Path, config: dict) -> TextTransformer:
    """In float32, every key checked."""
    cfg = text_from_transformers(config)
    weights, source = read_component(folder, WEIGHTS)
    weights = {key.removeprefix("text_model."): value for key, value in weights.items() if not key.endswith("position_ids")}
    return build_strictly(lambda: TextTransformer(cfg), weights, source)
