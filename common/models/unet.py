"""A U-Net to be read in one sitting. Module names are those of `diffusers`, so weights load both ways.

    image --conv_in--> | down: ResBlocks, halve | ... | mid | ... | up: double, ResBlocks | --conv_out--> prediction
                             \\________________ skip connections _______________/

The noise level enters every ResBlock through a time embedding; a text, where there is one, through cross-attention.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError


@dataclass(frozen=True)
class UNetConfig:
    size: int = 28                                  # pixels a side, told to whoever loads the model; any size runs
    in_channels: int = 1                            # channels of the noisy image (9 for Stable Diffusion inpainting)
    out_channels: int = 1                           # channels of the prediction
    channels: tuple[int, ...] = (32, 64, 64)        # width of each resolution, highest resolution first
    attention: tuple[bool, ...] = (False, False, True)  # whether that resolution has attention
    layers: int = 1                                 # residual blocks at each resolution on the way down; one more up
    head_dim: int | None = None                     # width of an attention head without text; None means one head
    heads: tuple[int, ...] | None = None            # number of heads at each resolution, with text
    text_dim: int | None = None                     # width of the text's tokens: switches on cross-attention
    classes: int | None = None                      # number of class labels, if any
    depth: int = 1                                  # transformer blocks in each text attention
    linear_projection: bool = False                 # Stable Diffusion 2 projects with Linear instead of 1x1 convolution
    scale_shift: bool = False                       # time embedding scales and shifts instead of being added
    mid_attention: bool = True                      # attention in the middle
    dropout: float = 0.0
    groups: int = 32                                # of every GroupNorm
    eps: float = 1e-5                               # of every GroupNorm
    sin_first: bool = False                         # order of sine and cosine in the time embedding (DDPM: sine first)
    freq_shift: int = 0                             # 1 in the DDPM paper's own code
    symmetric_padding: bool = True                  # False pads right and bottom only, as the DDPM paper's code


def small_unet(size: int, channels: int, widths: tuple[int, ...], layers: int = 1, classes: int | None = None,
               out: int | None = None, groups: int = 8) -> UNetConfig:  # fmt: skip
    """The course's U-Net for images of size x size pixels, one width for each resolution.

    Attention stands only at the lowest resolution: elsewhere it costs more than it gives. `out` is the number of channels of the
    answer, where it is not that of the images.
    """
    if not widths or any(width < groups or width % groups for width in widths):
        raise UserError(f"--channels must be one or more multiples of {groups}, not {' '.join(map(str, widths)) or 'none'}")
    if size < 2 ** len(widths):
        raise UserError(f"{len(widths)} resolutions need images of at least {2 ** len(widths)} pixels a side, not {size}; give fewer --channels, or a larger --size")
    return UNetConfig(
        size=size, in_channels=channels, out_channels=out or channels, channels=widths,
        attention=(False,) * (len(widths) - 1) + (True,), layers=layers, classes=classes, scale_shift=True, groups=groups,
    )  # fmt: skip


def text_unet(size: int, channels: int, widths: tuple[int, ...], text_dim: int, layers: int = 1) -> UNetConfig:
    """`small_unet` that reads: at the two lowest resolutions, pixels also look at the words, with heads 32 wide.

    With the lowest alone the words are learned at half the speed: see chapter 2's README.
    """
    heads = tuple(max(1, width // 32) for width in widths)
    attention = tuple(level >= len(widths) - 2 for level in range(len(widths)))
    return replace(small_unet(size, channels, widths, layers), attention=attention, text_dim=text_dim, heads=heads)


def timestep_embedding(t: Tensor, dim: int, sin_first: bool = False, freq_shift: int = 0) -> Tensor:
    """Waves of dim/2 wavelengths from 2 pi to 20,000 pi (Vaswani et al. 2017, section 3.5). (B,) -> (B, dim)"""
    half = dim // 2
    freqs = torch.exp(-math.log(10_000) / (half - freq_shift) * torch.arange(half, device=t.device))
    angles = t.float()[:, None] * freqs                # (B, dim / 2)
    waves = [angles.sin(), angles.cos()] if sin_first else [angles.cos(), angles.sin()]
    return torch.cat(waves, dim=1)


class TimestepMLP(nn.Module):
    """(B, dim) -> (B, out)"""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(dim, out), nn.Linear(out, out)

    def forward(self, t: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(t)))


class ResBlock(nn.Module):
    """Two convolutions around the noise level, plus the input. (B, in, H, W), (B, 4 ch) -> (B, out, H, W)"""

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
        h = self.conv1(F.silu(self.norm1(x)))
        t = self.time_emb_proj(F.silu(temb))[:, :, None, None]   # (B, out or 2 out, 1, 1)
        if self.scale_shift:
            scale, shift = t.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + t)
        return self.conv_shortcut(x) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Multi-head attention from the tokens of x to the tokens of the context. (B, N, C), (B, M, context) -> (B, N, C)"""

    def __init__(self, dim: int, heads: int, context: int | None = None, bias: bool = True):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias)
        self.to_k = nn.Linear(context or dim, dim, bias)
        self.to_v = nn.Linear(context or dim, dim, bias)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Identity())

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (self.split(y) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        y = F.scaled_dot_product_attention(q, k, v)     # (B, heads, N, C / heads)
        return self.to_out(y.transpose(1, 2).flatten(2))

    def split(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SelfAttention2d(Attention):
    """Attention among all pixels. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, cfg: UNetConfig, level: int):
        dim = cfg.channels[level]
        super().__init__(dim, heads=dim // cfg.head_dim if cfg.head_dim else 1)
        self.group_norm = nn.GroupNorm(cfg.groups, dim, cfg.eps)

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)   # (B, HW, C)
        return x + super().forward(tokens, tokens).transpose(1, 2).unflatten(2, x.shape[2:])


class GEGLU(nn.Module):
    """Half of the features decide how much of the other half passes (Shazeer 2020)."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text and a feed-forward network, each added to its input. (B, N, C), (B, M, text_dim) -> (B, N, C)"""

    def __init__(self, dim: int, heads: int, text_dim: int):
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

    def __init__(self, cfg: UNetConfig, level: int):
        super().__init__()
        dim = cfg.channels[level]
        make = (lambda: nn.Linear(dim, dim)) if cfg.linear_projection else (lambda: nn.Conv2d(dim, dim, 1))
        self.linear = cfg.linear_projection
        self.norm = nn.GroupNorm(cfg.groups, dim, 1e-6)          # 1e-6 whatever cfg.eps is, as in diffusers
        self.proj_in = make()
        blocks = (TransformerBlock(dim, cfg.heads[level], cfg.text_dim) for _ in range(cfg.depth))
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = make()

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        h = self.norm(x)
        h = self.proj_in(self.tokens(h)) if self.linear else self.tokens(self.proj_in(h))   # (B, HW, C)
        for block in self.transformer_blocks:
            h = block(h, text)
        h = self.image(self.proj_out(h), x) if self.linear else self.proj_out(self.image(h, x))
        return x + h

    def tokens(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)

    def image(self, h: Tensor, x: Tensor) -> Tensor:
        return h.transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H / 2, W / 2)"""

    def __init__(self, dim: int, symmetric: bool):
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, *size). The size is that of the skip connection, so odd sizes come back whole."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class NoAttention(nn.Module):
    """Stands where a level has no attention. (B, C, H, W) -> the same"""

    def forward(self, x: Tensor, text: Tensor | None) -> Tensor:
        return x


def attention_layer(cfg: UNetConfig, level: int, wanted: bool) -> nn.Module:
    if not wanted:
        return NoAttention()
    return TextAttention2d(cfg, level) if cfg.text_dim else SelfAttention2d(cfg, level)


class DownBlock(nn.Module):
    """One level on the way down: ResBlocks, each with its attention, then half the resolution (but not at the lowest level)."""

    def __init__(self, cfg: UNetConfig, level: int, c_in: int):
        super().__init__()
        dim, lowest = cfg.channels[level], level == len(cfg.channels) - 1
        self.resnets = nn.ModuleList(ResBlock(cfg, c_in if i == 0 else dim, dim) for i in range(cfg.layers))
        self.attentions = nn.ModuleList(attention_layer(cfg, level, cfg.attention[level]) for _ in range(cfg.layers))
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
    """The lowest resolution: ResBlock, attention, ResBlock."""

    def __init__(self, cfg: UNetConfig):
        super().__init__()
        dim, lowest = cfg.channels[-1], len(cfg.channels) - 1
        self.resnets = nn.ModuleList(ResBlock(cfg, dim, dim) for _ in range(2))
        self.attentions = nn.ModuleList([attention_layer(cfg, lowest, cfg.mid_attention)])

    def forward(self, x: Tensor, temb: Tensor, text: Tensor | None) -> Tensor:
        x = self.resnets[0](x, temb)
        x = self.attentions[0](x, text)
        return self.resnets[1](x, temb)


class UpBlock(nn.Module):
    """One level on the way up: ResBlocks that also see the skip connections, then twice the resolution (but not at the highest level)."""

    def __init__(self, cfg: UNetConfig, level: int, c_in: int, skips: list[int]):
        super().__init__()
        dim = cfg.channels[level]
        self.resnets = nn.ModuleList(ResBlock(cfg, (c_in if i == 0 else dim) + skip, dim) for i, skip in enumerate(skips))
        self.attentions = nn.ModuleList(attention_layer(cfg, level, cfg.attention[level]) for _ in skips)
        self.upsamplers = nn.ModuleList([Upsample(dim)] if level > 0 else [])

    def forward(self, x: Tensor, temb: Tensor, text: Tensor | None, skips: list[Tensor]) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = torch.cat([x, skips.pop()], dim=1)
            x = attention(resnet(x, temb), text)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1].shape[2:])
        return x


class UNet(nn.Module):
    """(B, in, H, W), (B,) timesteps [, (B, M, text_dim) text] [, (B,) labels] -> (B, out, H, W)"""

    def __init__(self, cfg: UNetConfig):
        super().__init__()
        self.cfg, channels, levels = cfg, cfg.channels, range(len(cfg.channels))
        self.conv_in = nn.Conv2d(cfg.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepMLP(channels[0], 4 * channels[0])
        if cfg.classes:
            self.class_embedding = nn.Embedding(cfg.classes, 4 * channels[0])

        self.down_blocks = nn.ModuleList(DownBlock(cfg, i, channels[max(0, i - 1)]) for i in levels)
        self.mid_block = MidBlock(cfg)
        skips = [channels[0]]  # widths of what the down blocks push
        for i in levels:
            skips += [channels[i]] * (cfg.layers + (i < levels[-1]))
        self.up_blocks, dim = nn.ModuleList(), channels[-1]
        for i in reversed(levels):
            self.up_blocks.append(UpBlock(cfg, i, dim, [skips.pop() for _ in range(cfg.layers + 1)]))
            dim = channels[i]

        self.conv_norm_out = nn.GroupNorm(cfg.groups, channels[0], cfg.eps)
        self.conv_out = nn.Conv2d(channels[0], cfg.out_channels, 3, padding=1)

    def embed(self, t: Tensor, label: Tensor | None) -> Tensor:
        """The timestep, and the class where there is one, as one vector. (B,) -> (B, 4 ch)"""
        waves = timestep_embedding(t, self.cfg.channels[0], self.cfg.sin_first, self.cfg.freq_shift)
        temb = self.time_embedding(waves.to(self.conv_in.weight.dtype))
        return temb + self.class_embedding(label) if self.cfg.classes else temb

    def forward(self, x: Tensor, t: Tensor, text: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        temb = self.embed(t, label)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:   # push
            x = block(x, temb, text, skips)
        x = self.mid_block(x, temb, text)
        for block in self.up_blocks:     # pop
            x = block(x, temb, text, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def zero_init(net: UNet) -> UNet:
    """Start every residual block as the identity and the whole network as zero: training is calmer and faster."""
    last = [m.conv2 for m in net.modules() if isinstance(m, ResBlock)] + [net.conv_out]
    last += [m.to_out[0] for m in net.modules() if isinstance(m, Attention)]
    for layer in last:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return net
