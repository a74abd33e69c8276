"""CLIP's text transformer (Radford et al. 2021, section 2.4), written to be read.

    ids --token + position embedding--> | LayerNorm, attention | LayerNorm, MLP | ... | LayerNorm --> embeddings

Module names are those of `transformers.CLIPTextModel`, so weights load both ways.
It is what Stable Diffusion reads prompts with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.io.config_values import Count, Setting, Share, known_settings, refuse, to_ours, to_theirs
from common.io.ranges import Range


def quick_gelu(x: Tensor) -> Tensor:
    """The activation of OpenAI's CLIP: GELU approximated by a sigmoid."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


@dataclass(frozen=True)
class TextConfig:
    """The defaults are those of `transformers.CLIPTextConfig`, so a setting left out of a file means the same here."""

    vocab: int = 49408  # number of tokens that have an embedding
    length: int = 77  # tokens a text may have at most (M)
    dim: int = 512  # width of an embedding (D)
    layers: int = 12
    heads: int = 8
    hidden: int = 2048  # width inside the MLP
    activation: str = "quick_gelu"
    eps: float = 1e-5  # of every LayerNorm
    # ids of the special tokens: begin, end, and padding; the transformer itself does not use them
    bos: int | None = 49406
    eos: int | None = 49407
    pad: int | None = 1


class CausalAttention(nn.Module):
    """Each token attends to itself and to the tokens before it. (B, M, D) -> (B, M, D)"""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.heads = cfg.heads
        self.q_proj, self.k_proj = nn.Linear(cfg.dim, cfg.dim), nn.Linear(cfg.dim, cfg.dim)
        self.v_proj, self.out_proj = nn.Linear(cfg.dim, cfg.dim), nn.Linear(cfg.dim, cfg.dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, heads, M, D / heads)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.act = ACTIVATIONS[cfg.activation]
        self.fc1, self.fc2 = nn.Linear(cfg.dim, cfg.hidden), nn.Linear(cfg.hidden, cfg.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class TextLayer(nn.Module):
    """Causal self-attention, then the MLP, each added to its input. (B, M, D) -> (B, M, D)"""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(cfg.dim, cfg.eps), CausalAttention(cfg)
        self.layer_norm2, self.mlp = nn.LayerNorm(cfg.dim, cfg.eps), MLP(cfg)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextEmbeddings(nn.Module):
    """(B, M) token ids -> (B, M, D): an embedding of the token plus one of its position."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(cfg.vocab, cfg.dim)
        self.position_embedding = nn.Embedding(cfg.length, cfg.dim)

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.token_embedding(token_ids) + self.position_embedding.weight[: token_ids.shape[1]]


class TextLayers(nn.Module):
    """All layers, one after the other. (B, M, D) -> (B, M, D)"""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.layers = nn.ModuleList(TextLayer(cfg) for _ in range(cfg.layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class TextTransformer(nn.Module):
    """(B, M) token ids -> (B, M, D) embeddings; M is at most cfg.length.

    There is no mask for the padding. Attention is causal and the padding comes last, so it does not affect the
    embeddings of words; the padding tokens attend to the words before them, and a U-Net's cross-attention sees their
    embeddings like any others. An attention mask could hide them. Stable Diffusion was trained without one, and so is
    every model here: the padding then serves as a summary of the sentence, and a mask added after training would
    change what the U-Net has learned to use.
    """

    def __init__(self, cfg: TextConfig):
        super().__init__()
        if cfg.dim % cfg.heads:
            near = [max(1, cfg.dim // cfg.heads) * cfg.heads, (cfg.dim // cfg.heads + 1) * cfg.heads]
            raise UserError(
                f"a width of {cfg.dim} cannot be divided among {cfg.heads} attention heads; try a width of {near[0]} or {near[1]}"
            )
        self.cfg = cfg
        self.embeddings = TextEmbeddings(cfg)
        self.encoder = TextLayers(cfg)
        self.final_layer_norm = nn.LayerNorm(cfg.dim, cfg.eps)
        self.initialise()

    def initialise(self) -> None:
        """Small weights in the layers, as in GPT-2 and CLIP: at first an embedding depends mostly on its own token.

        The embeddings begin large, where those of CLIP begin at 0.02. One step of Adam moves a weight by up to the
        learning rate, which is 2e-3 here, and at first all tokens move in the same direction. Small embeddings soon
        become alike, and then captions do not distinguish images: with 0.02, a U-Net of creatures had learned nothing
        from its captions when with 1 it knew colours.
        """
        nn.init.normal_(self.embeddings.token_embedding.weight, std=1.0)
        nn.init.normal_(self.embeddings.position_embedding.weight, std=0.5)
        for name, module in self.encoder.named_modules():
            if isinstance(module, nn.Linear):
                residual = name.endswith(("out_proj", "fc2"))  # the outputs of 2 x layers of these are added up
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * self.cfg.layers) if residual else 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.final_layer_norm(self.encoder(self.embeddings(token_ids)))


# ------------------------------------------------------------------------------------------------------ config.json

SETTINGS = {
    "vocab_size": Setting(TextConfig.vocab, Annotated[int, Range(1, 10_000_000)], "vocab"),
    "max_position_embeddings": Setting(TextConfig.length, Count, "length"),
    "hidden_size": Setting(TextConfig.dim, Count, "dim"),
    "num_hidden_layers": Setting(TextConfig.layers, Annotated[int, Range(1, 256)], "layers"),
    "num_attention_heads": Setting(TextConfig.heads, Count, "heads"),
    "intermediate_size": Setting(TextConfig.hidden, Annotated[int, Range(1, 1_000_000)], "hidden"),
    "hidden_act": Setting(TextConfig.activation, str, "activation"),
    "layer_norm_eps": Setting(TextConfig.eps, Share, "eps"),
    "bos_token_id": Setting(TextConfig.bos, int | None, "bos"),
    "eos_token_id": Setting(TextConfig.eos, int | None, "eos"),
    "pad_token_id": Setting(TextConfig.pad, int | None, "pad"),
}
FIXED = {
    "model_type": ("clip_text_model",),
    "attention_dropout": (0,),
    "dropout": (0,),
    "use_attention_mask": (None, False),
}
WITHOUT_EFFECT = {"architectures", "dtype", "torch_dtype", "transformers_version", "initializer_factor"}
WITHOUT_EFFECT |= {"initializer_range", "projection_dim"}


def text_to_transformers(cfg: TextConfig) -> dict[str, Any]:
    """The config.json that makes `transformers.CLIPTextModel` build the same network, and run it in float32."""
    head = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "dtype": "float32"}
    return head | {"attention_dropout": 0.0} | to_theirs(cfg, SETTINGS)


def text_from_transformers(config: dict[str, Any]) -> TextConfig:
    """The TextConfig of a CLIPTextModel's config.json; a setting that has no counterpart is refused by name."""
    config = {"model_type": None} | {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    known = known_settings(config, SETTINGS, FIXED, "text encoder")
    if known["hidden_act"] not in ACTIVATIONS:
        refuse("text encoder", "hidden_act", known["hidden_act"])
    return TextConfig(**to_ours(known, SETTINGS))
