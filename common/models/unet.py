"""A U-Net with the module names of `diffusers`, so that weights load both ways.

    image -> conv_in -> down blocks -> mid block -> up blocks -> conv_out -> prediction
                             \\______ skip connections ______/

The down blocks push what they compute on a stack; the up blocks pop it. The timestep enters every ResBlock through an
embedding, and a text enters through cross-attention. Shapes: an image has N = H W tokens, a text has M.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.models.unet_config import UNetConfig


def timestep_embedding(t: Tensor, dim: int, sin_first: bool = False, freq_shift: int = 0) -> Tensor:
    """Sinusoidal embedding with wavelengths from 2 pi to 20,000 pi (Vaswani et al. 2017, 3.5). (B,) -> (B, dim)"""
    half = dim // 2
    freqs = torch.exp(-math.log(10_000) / (half - freq_shift) * torch.arange(half, device=t.device))
    angles = t.float()[:, None] * freqs  # (B, dim / 2)
    waves = [angles.sin(), angles.cos()] if sin_first else [angles.cos(), angles.sin()]
    return torch.cat(waves, dim=1)


class ResBlock(nn.Module):
    """Two convolutions, with the timestep embedding temb between them. (B, c_in, H, W), (B, D) -> (B, c_out, H, W)"""

    def __init__(self, cfg: UNetConfig, c_in: int, c_out: int):
        super().__init__()
        self.scale_shift = cfg.scale_shift
        self.norm1 = nn.GroupNorm(cfg.groups, c_in, cfg.eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * cfg.channels[0], 2 * c_out if cfg.scale_shift else c_out)
        self.norm2 = nn.GroupNorm(cfg.groups, c_out, cfg.eps)
        self.dropout = nn.Dropout(cfg.dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, c_out, H, W)
        t = self.time_emb_proj(F.silu(temb))[:, :, None, None]  # (B, c_out or 2 c_out, 1, 1)
        if self.scale_shift:
            scale, shift = t.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + t)
        return self.conv_shortcut(x) + self.conv2(self.dropout(F.silu(h)))


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, N, C), one token for each pixel."""
    return x.flatten(2).transpose(1, 2)


def to_image(tokens: Tensor, x: Tensor) -> Tensor:
    """(B, N, C) -> (B, C, H, W), with the height and width of x."""
    return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2). (B, N, dim), (B, M, context_dim) -> (B, N, dim)"""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None, bias: bool = True):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias)
        self.to_k = nn.Linear(context_dim or dim, dim, bias)
        self.to_v = nn.Linear(context_dim or dim, dim, bias)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Identity())  # Identity: where diffusers has dropout

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (self.split_heads(y) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        y = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, dim / heads)
        return self.to_out(y.transpose(1, 2).flatten(2))

    def split_heads(self, y: Tensor) -> Tensor:
        """(B, N, dim) -> (B, heads, N, dim / heads)"""
        return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SelfAttention2d(Attention):
    """Self-attention among all pixels, added to the input. The text is not used. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, dim: int, heads: int, groups: int, eps: float):
        super().__init__(dim, heads)
        self.group_norm = nn.GroupNorm(groups, dim, eps)

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        tokens = to_tokens(self.group_norm(x))  # (B, N, C)
        return x + to_image(super().forward(tokens, tokens), x)


class GEGLU(nn.Module):
    """Gated linear unit: GELU of one half scales the other (Shazeer 2020). (B, N, dim) -> (B, N, out)"""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Sequential):
    """(B, N, dim) -> (B, N, dim)"""

    def __init__(self, dim: int):
        super().__init__(OrderedDict(net=nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, as residuals. (B, N, dim), (B, M, text_dim) -> (B, N, dim)"""

    def __init__(self, dim: int, heads: int, text_dim: int | None):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads, bias=False)
        self.attn2 = Attention(dim, heads, text_dim, bias=False)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class TextAttention2d(nn.Module):
    """Transformer blocks over the pixels, with the text as context. (B, C, H, W), (B, M, text_dim) -> (B, C, H, W)"""

    def __init__(self, dim: int, heads: int, cfg: UNetConfig):
        super().__init__()
        self.linear = cfg.linear_projection
        self.norm = nn.GroupNorm(cfg.groups, dim, 1e-6)  # 1e-6 whatever cfg.eps is, as in diffusers
        self.proj_in = nn.Linear(dim, dim) if self.linear else nn.Conv2d(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(dim, heads, cfg.text_dim) for _ in range(cfg.depth))
        self.proj_out = nn.Linear(dim, dim) if self.linear else nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        h = self.norm(x)
        h = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))  # (B, N, C)
        for block in self.transformer_blocks:
            h = block(h, text)
        return x + (to_image(self.proj_out(h), x) if self.linear else self.proj_out(to_image(h, x)))


class Downsample(nn.Module):
    """Convolution with stride 2. (B, C, H, W) -> (B, C, H / 2, W / 2)"""

    def __init__(self, dim: int, symmetric: bool):
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Upsampling, in a U-Net to the size of the next skip connection, then convolution. (B, C, H, W) -> (B, C, *size)"""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return self.conv(F.interpolate(x, size, scale_factor=None if size else 2.0, mode="nearest"))


class NoAttention(nn.Module):
    """Stands for attention in a block that has none. (B, C, H, W) -> the same"""

    def forward(self, x: Tensor, text: Tensor | None) -> Tensor:
        return x


def make_attention(cfg: UNetConfig, level: int, wanted: bool) -> nn.Module:
    """A module (B, C, H, W), text (B, M, text_dim) or None -> (B, C, H, W) for resolution number `level`."""
    if not wanted:
        return NoAttention()
    dim = cfg.channels[level]
    if cfg.text_dim and cfg.heads:
        return TextAttention2d(dim, cfg.heads[level], cfg)
    return SelfAttention2d(dim, dim // cfg.head_dim if cfg.head_dim else 1, cfg.groups, cfg.eps)


class DownBlock(nn.Module):
    """ResBlocks with attention; then Downsample, except at the lowest resolution. Pushes each result on `skips`."""

    def __init__(self, cfg: UNetConfig, level: int, c_in: int):
        super().__init__()
        dim, lowest = cfg.channels[level], level == len(cfg.channels) - 1
        self.resnets = nn.ModuleList(ResBlock(cfg, c_in if i == 0 else dim, dim) for i in range(cfg.layers))
        self.attentions = nn.ModuleList(make_attention(cfg, level, cfg.attention[level]) for _ in range(cfg.layers))
        self.downsamplers = nn.ModuleList([] if lowest else [Downsample(dim, cfg.symmetric_padding)])

    def forward(self, x: Tensor, temb: Tensor, text: Tensor | None, skips: list[Tensor]) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, temb), text)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class MidBlock(nn.Module):
    """ResBlock, attention, ResBlock at the lowest resolution. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, cfg: UNetConfig):
        super().__init__()
        dim = cfg.channels[-1]
        self.resnets = nn.ModuleList(ResBlock(cfg, dim, dim) for _ in range(2))
        self.attentions = nn.ModuleList([make_attention(cfg, len(cfg.channels) - 1, cfg.mid_attention)])

    def forward(self, x: Tensor, temb: Tensor, text: Tensor | None) -> Tensor:
        x = self.resnets[0](x, temb)
        x = self.attentions[0](x, text)
        return self.resnets[1](x, temb)


class UpBlock(nn.Module):
    """ResBlocks with attention, each fed one popped skip; then Upsample, except at the highest resolution."""

    def __init__(self, cfg: UNetConfig, level: int, c_in: int, skip_widths: list[int]):
        super().__init__()
        dim = cfg.channels[level]
        widths = [(c_in if i == 0 else dim) + skip for i, skip in enumerate(skip_widths)]
        self.resnets = nn.ModuleList(ResBlock(cfg, width, dim) for width in widths)
        self.attentions = nn.ModuleList(make_attention(cfg, level, cfg.attention[level]) for _ in skip_widths)
        self.upsamplers = nn.ModuleList([Upsample(dim)] if level > 0 else [])

    def forward(self, x: Tensor, temb: Tensor, text: Tensor | None, skips: list[Tensor]) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = torch.cat([x, skips.pop()], dim=1)
            x = attention(resnet(x, temb), text)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1].shape[2:])
        return x


class UNet(nn.Module):
    """x (B, in_channels, H, W) -> (B, out_channels, H, W): one of common.diffusion.denoiser.PREDICTIONS.

    t      (B,) timestep: NoiseLevel.time of the noise in x
    text   (B, M, text_dim) text embeddings, in networks with a text_dim
    label  (B,) class labels, in networks with classes
    """

    def __init__(self, cfg: UNetConfig):
        super().__init__()
        self.cfg = cfg
        channels, levels = cfg.channels, range(len(cfg.channels))
        self.conv_in = nn.Conv2d(cfg.in_channels, channels[0], 3, padding=1)
        linear_1, linear_2 = nn.Linear(channels[0], 4 * channels[0]), nn.Linear(4 * channels[0], 4 * channels[0])
        self.time_embedding = nn.Sequential(OrderedDict(linear_1=linear_1, act=nn.SiLU(), linear_2=linear_2))
        if cfg.classes:
            self.class_embedding = nn.Embedding(cfg.classes, 4 * channels[0])
        self.down_blocks = nn.ModuleList(DownBlock(cfg, level, channels[max(0, level - 1)]) for level in levels)
        self.mid_block = MidBlock(cfg)
        self.up_blocks = nn.ModuleList()
        skip_widths = [channels[0]]  # channels of what conv_in and the down blocks push
        for level in levels:
            skip_widths += [channels[level]] * (cfg.layers + (level < levels[-1]))
        for level in reversed(levels):
            c_in, popped = channels[min(level + 1, levels[-1])], [skip_widths.pop() for _ in range(cfg.layers + 1)]
            self.up_blocks.append(UpBlock(cfg, level, c_in, popped))
        self.conv_norm_out = nn.GroupNorm(cfg.groups, channels[0], cfg.eps)
        self.conv_out = nn.Conv2d(channels[0], cfg.out_channels, 3, padding=1)

    def embed(self, t: Tensor, label: Tensor | None) -> Tensor:
        """Embedding of the timestep, plus that of the class label if any. (B,) -> (B, D), D = 4 channels[0]"""
        sinusoids = timestep_embedding(t, self.cfg.channels[0], self.cfg.sin_first, self.cfg.freq_shift)
        temb = self.time_embedding(sinusoids.to(self.conv_in.weight.dtype))
        return temb + self.class_embedding(label) if self.cfg.classes else temb

    def forward(self, x: Tensor, t: Tensor, text: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        temb = self.embed(t, label)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:  # push
            x = block(x, temb, text, skips)
        x = self.mid_block(x, temb, text)
        for block in self.up_blocks:  # pop
            x = block(x, temb, text, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def zero_init(net: UNet) -> UNet:
    """Zero the last layer of each residual branch and of the network, as in the DDPM paper's code, for stability."""
    convolutions = [m.conv2 for m in net.modules() if isinstance(m, ResBlock)] + [net.conv_out]
    projections = [m.to_out[0] for m in net.modules() if isinstance(m, Attention)]
    for parameter in nn.ModuleList([*convolutions, *projections]).parameters():
        nn.init.zeros_(parameter)
    return net
