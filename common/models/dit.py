"""A Diffusion Transformer (Peebles & Xie 2023, https://arxiv.org/abs/2212.09748) with the module names of `diffusers`.

    image -> patches -> tokens + positions -> blocks -> norm, linear -> patches -> prediction
                                                ^         ^
                               timestep and class label: they scale and shift what every norm returns

It is called as the U-Net is and can take its place. There is one size of feature maps and no skip connection; every token
sees every other in each block. Shapes: an image of H x W pixels has N = (H / p) (W / p) tokens of width D.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.models.unet import Attention, timestep_embedding, to_tokens


@dataclass(frozen=True)
class DiTConfig:
    """The architecture of a DiT. Fields that a UNetConfig has too mean the same."""

    size: int = 28  # pixels a side of the training images; the network accepts other multiples of `patch`
    in_channels: int = 1  # channels of the input
    out_channels: int = 1  # channels of the output
    patch: int = 4  # pixels a side of a patch; half of it gives four times the tokens
    dim: int = 128  # width of a token
    depth: int = 6  # number of blocks
    heads: int = 4  # attention heads of each block
    classes: int | None = None  # number of class labels; None: unconditional
    eps: float = 1e-5  # of the norm before the MLP
    text_dim: ClassVar[None] = None  # it takes no text

    def __post_init__(self) -> None:
        if self.size % self.patch:
            raise UserError(f"images of {self.size} pixels a side cannot be cut into patches of {self.patch}")
        if self.dim % 4 or self.dim % self.heads:
            raise UserError(f"a width of {self.dim} must be a multiple of 4 and of the {self.heads} heads")


def positions(rows: int, columns: int, dim: int, base: int, device: torch.device) -> Tensor:
    """Fixed sinusoidal embedding of each token's column, then of its row. -> (N, dim)

    base  rows (and columns) of the training images; other sizes are stretched over the same range
    """
    axes = [torch.arange(n, device=device) * base / n for n in (rows, columns)]
    row, column = (timestep_embedding(axis, dim // 2, sin_first=True) for axis in axes)  # (n, dim / 2) each
    return torch.cat([column.expand(rows, -1, -1), row[:, None].expand(-1, columns, -1)], dim=-1).flatten(0, 1)


class PatchEmbed(nn.Module):
    """Cut an image into patches, make each a token, add its position. (B, C, H, W) -> (B, N, D)"""

    def __init__(self, cfg: DiTConfig):
        super().__init__()
        self.base = cfg.size // cfg.patch
        self.proj = nn.Conv2d(cfg.in_channels, cfg.dim, cfg.patch, stride=cfg.patch)

    def forward(self, x: Tensor) -> Tensor:
        h = self.proj(x)  # (B, D, H / p, W / p)
        where = positions(h.shape[2], h.shape[3], h.shape[1], self.base, h.device)  # (N, D)
        return to_tokens(h) + where.to(h.dtype)


class Conditioning(nn.Module):
    """One vector for the timestep and the class label. (B,), (B,) -> (B, D)

    The last row of the table stands for "no label": for unconditional networks, and for guidance.
    """

    def __init__(self, cfg: DiTConfig):
        super().__init__()
        linear_1, linear_2 = nn.Linear(256, cfg.dim), nn.Linear(cfg.dim, cfg.dim)
        self.timestep_embedder = nn.Sequential(OrderedDict(linear_1=linear_1, act=nn.SiLU(), linear_2=linear_2))
        self.class_embedder = nn.ModuleDict({"embedding_table": nn.Embedding((cfg.classes or 0) + 1, cfg.dim)})

    def forward(self, t: Tensor, label: Tensor) -> Tensor:
        sinusoids = timestep_embedding(t, 256, freq_shift=1)  # (B, 256)
        which = self.class_embedder["embedding_table"](label)  # (B, D)
        return self.timestep_embedder(sinusoids.to(which.dtype)) + which


class AdaLayerNormZero(nn.Module):
    """LayerNorm without weights of its own, and what a block makes of the timestep and label: shifts, scales, gates.

    The linear layer begins at zero, hence the name adaLN-Zero: every gate is closed, so every block is the identity.
    As in `diffusers`, each block has an embedding of its own; the blocks of the paper share one.
    """

    def __init__(self, cfg: DiTConfig):
        super().__init__()
        self.emb = Conditioning(cfg)
        self.linear = zeroed(nn.Linear(cfg.dim, 6 * cfg.dim))
        self.norm = nn.LayerNorm(cfg.dim, 1e-6, elementwise_affine=False)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        shift, scale, *others = self.linear(F.silu(self.emb(t, label)))[:, None].chunk(6, dim=-1)  # (B, 1, D) each
        return self.norm(x) * (1 + scale) + shift, *others


class GELUFeedForward(nn.Sequential):
    """(B, N, D) -> (B, N, D)"""

    def __init__(self, dim: int):
        first = nn.Sequential(OrderedDict(proj=nn.Linear(dim, 4 * dim), act=nn.GELU("tanh")))
        super().__init__(OrderedDict(net=nn.Sequential(first, nn.Identity(), nn.Linear(4 * dim, dim))))


class DiTBlock(nn.Module):
    """Self-attention and MLP as gated residuals. (B, N, D), (B,), (B,) -> (B, N, D)"""

    def __init__(self, cfg: DiTConfig):
        super().__init__()
        self.norm1 = AdaLayerNormZero(cfg)
        self.attn1 = Attention(cfg.dim, cfg.heads)
        self.norm3 = nn.LayerNorm(cfg.dim, cfg.eps, elementwise_affine=False)
        self.ff = GELUFeedForward(cfg.dim)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        h, gate_attn, shift, scale, gate_mlp = self.norm1(x, t, label)
        x = x + gate_attn * self.attn1(h, h)
        return x + gate_mlp * self.ff(self.norm3(x) * (1 + scale) + shift)


class DiT(nn.Module):
    """x (B, in_channels, H, W) -> (B, out_channels, H, W): one of common.diffusion.denoiser.PREDICTIONS.

    t      (B,) timestep: NoiseLevel.time of the noise in x
    text   not used: here so that the call is that of the U-Net
    label  (B,) class labels, in networks with classes; None: no label
    """

    def __init__(self, cfg: DiTConfig):
        super().__init__()
        self.cfg = cfg
        self.pos_embed = PatchEmbed(cfg)
        self.transformer_blocks = nn.ModuleList(DiTBlock(cfg) for _ in range(cfg.depth))
        self.norm_out = nn.LayerNorm(cfg.dim, 1e-6, elementwise_affine=False)
        self.proj_out_1 = zeroed(nn.Linear(cfg.dim, 2 * cfg.dim))
        self.proj_out_2 = zeroed(nn.Linear(cfg.dim, cfg.patch**2 * cfg.out_channels))

    def forward(self, x: Tensor, t: Tensor, text: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        rows, columns = (side // self.cfg.patch for side in x.shape[2:])
        if label is None:
            label = torch.full_like(t, self.cfg.classes or 0, dtype=torch.long)
        h = self.pos_embed(x)  # (B, N, D)
        for block in self.transformer_blocks:
            h = block(h, t, label)
        c = cast(DiTBlock, self.transformer_blocks[0]).norm1.emb(t, label)  # (B, D)
        shift, scale = self.proj_out_1(F.silu(c))[:, None].chunk(2, dim=-1)  # (B, 1, D) each
        h = self.proj_out_2(self.norm_out(h) * (1 + scale) + shift)  # (B, N, p p C)
        return self.unpatchify(h, rows, columns)

    def unpatchify(self, h: Tensor, rows: int, columns: int) -> Tensor:
        """Lay the patches side by side. (B, N, p p C) -> (B, C, H, W)"""
        p, C = self.cfg.patch, self.cfg.out_channels
        h = h.view(-1, rows, columns, p, p, C).permute(0, 5, 1, 3, 2, 4)  # (B, C, rows, p, columns, p)
        return h.reshape(-1, C, rows * p, columns * p)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with weights and bias of zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
