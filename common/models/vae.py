"""An autoencoder to be read in one sitting (Kingma & Welling 2014; Rombach et al. 2022). Module names are those of
`diffusers`.

    image --encoder--> mean, logvar --sample--> z --decoder--> image
    (B, 3, H, W)      (B, 4, H / f, W / f)                    (B, 3, H, W)

The diffusion model of chapter 4 works on z, which is f times smaller a side;
the decoder turns the latents it generates into images.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.models.unet import Downsample, SelfAttention2d, Upsample
from common.models.unet_config import check_widths

LOGVAR_RANGE = -30.0, 20.0  # limits of the predicted log variance, so that exp() stays finite


@dataclass(frozen=True)
class VAEConfig:
    size: int = 64  # side of the training images in pixels, kept with the model; any multiple of `factor` runs
    image_channels: int = 3  # channels of the images, of the input and of the output
    latent_channels: int = 4  # channels of z
    # width of each resolution, highest resolution first; each step halves the image
    channels: tuple[int, ...] = (32, 64, 64)
    layers: int = 1  # residual blocks at each resolution of the encoder; the decoder has one more
    mid_attention: bool = True  # attention at the lowest resolution
    groups: int = 32  # groups of every GroupNorm
    scaling_factor: float = 1.0  # z times this has unit variance; measured after the training

    eps: ClassVar[float] = 1e-6  # added to every GroupNorm's variance; diffusers has no setting for it either

    @property
    def factor(self) -> int:
        """How many times smaller than the image z is, a side."""
        return 2 ** (len(self.channels) - 1)


def small_vae(
    size: int, image_channels: int, widths: tuple[int, ...], latent_channels: int = 4, layers: int = 1, groups: int = 8
) -> VAEConfig:
    """The course's autoencoder for images of size x size pixels, one width for each resolution."""
    check_widths(widths, groups)
    cfg = VAEConfig(size, image_channels, latent_channels, widths, layers, groups=groups)
    if size < cfg.factor or size % cfg.factor:
        raise UserError(
            f"{len(widths)} resolutions need images whose side is a multiple of {cfg.factor}, not {size} pixels; give fewer --channels, or another --size"
        )
    return cfg


class Gaussian(NamedTuple):
    """The encoder's output: a diagonal Gaussian over z. Each (B, C, h, w)"""

    mean: Tensor
    logvar: Tensor  # log of the variance

    def sample(self, eps: Tensor) -> Tensor:
        """z = mean + std eps with eps standard normal,
        so that gradients reach mean and std (Kingma & Welling 2014, section 2.4).
        """
        return self.mean + (self.logvar / 2).exp() * eps

    def mode(self) -> Tensor:
        """The most probable z."""
        return self.mean

    def kl(self) -> Tensor:
        """KL(this || N(0, 1)) in nats, summed over the components (Kingma & Welling 2014, appendix B). -> (B,)"""
        mean, logvar = self.mean.float(), self.logvar.float()
        return (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2


class VAEResBlock(nn.Module):
    """Two convolutions, plus the input: the U-Net's block without a timestep. (B, c_in, H, W) -> (B, c_out, H, W)"""

    def __init__(self, cfg: VAEConfig, c_in: int, c_out: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(cfg.groups, c_in, cfg.eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(cfg.groups, c_out, cfg.eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


def res_blocks(cfg: VAEConfig, c_in: int, c_out: int, n: int) -> nn.Sequential:
    return nn.Sequential(*(VAEResBlock(cfg, a, b) for a, b in pairwise([c_in] + n * [c_out])))


class EncoderBlock(nn.Module):
    """Residual blocks, then half the resolution, except at the last level.
    (B, c_in, H, W) -> (B, c_out, H / 2, W / 2)
    """

    def __init__(self, cfg: VAEConfig, c_in: int, c_out: int, last: bool):
        super().__init__()
        self.resnets = res_blocks(cfg, c_in, c_out, cfg.layers)
        self.downsamplers = nn.Sequential(*[] if last else [Downsample(c_out, symmetric=False)])

    def forward(self, x: Tensor) -> Tensor:
        return self.downsamplers(self.resnets(x))


class DecoderBlock(nn.Module):
    """Residual blocks, then twice the resolution, except at the last level. (B, c_in, H, W) -> (B, c_out, 2 H, 2 W)"""

    def __init__(self, cfg: VAEConfig, c_in: int, c_out: int, last: bool):
        super().__init__()
        self.resnets = res_blocks(cfg, c_in, c_out, cfg.layers + 1)
        self.upsamplers = nn.Sequential(*[] if last else [Upsample(c_out)])

    def forward(self, x: Tensor) -> Tensor:
        return self.upsamplers(self.resnets(x))


def make_blocks(
    Block: type[EncoderBlock] | type[DecoderBlock], cfg: VAEConfig, channels: tuple[int, ...]
) -> nn.Sequential:
    """One block for each width, in the order in which the image passes them."""
    pairs = enumerate(pairwise(channels[:1] + channels), start=1)
    return nn.Sequential(*(Block(cfg, c_in, c_out, last=i == len(channels)) for i, (c_in, c_out) in pairs))


class VAEMidBlock(nn.Module):
    """The lowest resolution: residual block, attention, residual block. (B, C, h, w) -> (B, C, h, w)"""

    def __init__(self, cfg: VAEConfig, dim: int):
        super().__init__()
        self.resnets = res_blocks(cfg, dim, dim, 2)
        self.attentions = nn.Sequential(*[SelfAttention2d(dim, 1, cfg.groups, cfg.eps)] if cfg.mid_attention else [])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions(self.resnets[0](x)))


class Encoder(nn.Module):
    """(B, image_channels, H, W) -> (B, 2 latent_channels, H / f, W / f)"""

    def __init__(self, cfg: VAEConfig):
        super().__init__()
        first, last = cfg.channels[0], cfg.channels[-1]
        self.conv_in = nn.Conv2d(cfg.image_channels, first, 3, padding=1)
        self.down_blocks = make_blocks(EncoderBlock, cfg, cfg.channels)
        self.mid_block = VAEMidBlock(cfg, last)
        self.conv_norm_out = nn.GroupNorm(cfg.groups, last, cfg.eps)
        self.conv_out = nn.Conv2d(last, 2 * cfg.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.down_blocks(self.conv_in(x)))  # (B, last, H / f, W / f)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """(B, latent_channels, h, w) -> (B, image_channels, f h, f w)"""

    def __init__(self, cfg: VAEConfig):
        super().__init__()
        first, last = cfg.channels[0], cfg.channels[-1]
        self.conv_in = nn.Conv2d(cfg.latent_channels, last, 3, padding=1)
        self.mid_block = VAEMidBlock(cfg, last)
        self.up_blocks = make_blocks(DecoderBlock, cfg, cfg.channels[::-1])
        self.conv_norm_out = nn.GroupNorm(cfg.groups, first, cfg.eps)
        self.conv_out = nn.Conv2d(first, cfg.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.up_blocks(self.mid_block(self.conv_in(z)))  # (B, first, f h, f w)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """encode: image -> Gaussian over z; decode: z -> image;
    called as a whole: image, eps -> (reconstruction, Gaussian).
    """

    def __init__(self, cfg: VAEConfig):
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quant_conv = nn.Conv2d(2 * cfg.latent_channels, 2 * cfg.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(cfg.latent_channels, cfg.latent_channels, 1)

    def encode(self, x: Tensor) -> Gaussian:
        """(B, image_channels, H, W) in [-1, 1], H and W multiples of f -> Gaussian of (B,
        latent_channels, H / f, W / f)
        """
        f, c = self.cfg.factor, self.cfg.image_channels
        if x.ndim != 4 or x.shape[1] != c or x.shape[2] % f or x.shape[3] % f:
            raise UserError(
                f"the autoencoder takes images (N, {c}, H, W) with H and W multiples of {f}, not {tuple(x.shape)}"
            )
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return Gaussian(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode(self, z: Tensor) -> Tensor:
        """(B, latent_channels, h, w), unscaled -> (B, image_channels, f h, f w), about [-1, 1]"""
        if z.ndim != 4 or z.shape[1] != self.cfg.latent_channels:
            raise UserError(
                f"the autoencoder decodes latents (N, {self.cfg.latent_channels}, h, w), not {tuple(z.shape)}"
            )
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Gaussian]:
        """Reconstruction and posterior, as training needs them. eps: standard normal, of the shape of z"""
        z = self.encode(x)
        return self.decode(z.sample(eps)), z

    def scale(self, z: Tensor) -> Tensor:
        """The encoder's z -> the latents of a diffusion model, of unit variance."""
        return z * self.cfg.scaling_factor

    def unscale(self, z: Tensor) -> Tensor:
        """The latents of a diffusion model -> z as the decoder takes it."""
        return z / self.cfg.scaling_factor


def measure_scaling_factor(z: Tensor) -> float:
    """One over the standard deviation of all components of many latents (Rombach et al. 2022, appendix G)."""
    return 1 / float(z.cpu().double().std(correction=0))
