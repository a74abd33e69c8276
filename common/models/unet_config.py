"""The configuration of the U-Net, and the two configurations that the course trains."""

from dataclasses import dataclass, replace

from common.errors import UserError


@dataclass(frozen=True)
class UNetConfig:
    """The architecture of a UNet. Resolutions are counted from the highest; each is half the one before."""

    size: int = 28  # pixels a side of the training images; the network accepts any size
    in_channels: int = 1  # channels of the input (9 for Stable Diffusion inpainting)
    out_channels: int = 1  # channels of the output
    channels: tuple[int, ...] = (32, 64, 64)  # width at each resolution
    attention: tuple[bool, ...] = (False, False, True)  # whether the blocks at each resolution have attention
    layers: int = 1  # ResBlocks at each resolution on the way down; one more on the way up
    head_dim: int | None = None  # width of an attention head in a network without text; None: one head
    heads: tuple[int, ...] | None = None  # number of attention heads at each resolution in a network with text
    text_dim: int | None = None  # width of the text embeddings; None: no cross-attention
    classes: int | None = None  # number of class labels; None: no class embedding
    depth: int = 1  # transformer blocks in each TextAttention2d
    linear_projection: bool = False  # Linear around the transformer blocks (Stable Diffusion 2), not 1x1 convolutions
    scale_shift: bool = False  # the timestep embedding scales and shifts the features instead of being added to them
    mid_attention: bool = True  # attention in the mid block
    dropout: float = 0.0
    groups: int = 32  # of every GroupNorm
    eps: float = 1e-5  # of every GroupNorm
    sin_first: bool = False  # order of sine and cosine in the timestep embedding; the DDPM paper's code has sine first
    freq_shift: int = 0  # 1 in the DDPM paper's code
    symmetric_padding: bool = True  # False: pad right and bottom only before halving, as the DDPM paper's code


def small_unet(
    size: int,
    channels: int,
    widths: tuple[int, ...],
    layers: int = 1,
    classes: int | None = None,
    out: int | None = None,
    groups: int = 8,
) -> UNetConfig:
    """The course's U-Net for images of size x size pixels with the given channels, one width for each resolution.

    Only the lowest resolution has attention: at higher ones it costs more than it gains. `out` is the number of output
    channels, by default that of the images. UserError where widths and size do not fit.
    """
    check_widths(widths, groups)
    if size < 2 ** len(widths):
        raise UserError(
            f"{len(widths)} resolutions need images of at least {2 ** len(widths)} pixels a side, not {size}; "
            "give fewer --channels, or a larger --size"
        )
    return UNetConfig(
        size=size,
        in_channels=channels,
        out_channels=out or channels,
        channels=widths,
        attention=(False,) * (len(widths) - 1) + (True,),
        layers=layers,
        classes=classes,
        scale_shift=True,
        groups=groups,
    )


def check_widths(widths: tuple[int, ...], groups: int) -> None:
    """Refuse widths that a GroupNorm cannot divide into this many groups."""
    if not widths or any(width < groups or width % groups for width in widths):
        raise UserError(
            f"--channels must be one or more multiples of {groups}, not {' '.join(map(str, widths)) or 'none'}"
        )


def text_unet(size: int, channels: int, widths: tuple[int, ...], text_dim: int, layers: int = 1) -> UNetConfig:
    """`small_unet` with cross-attention to text embeddings (B, M, text_dim) at the two lowest resolutions.

    Its heads are 32 wide. With cross-attention at the lowest resolution alone, the captions are learned at half the
    speed: see chapter 2's RESULTS.md.
    """
    heads = tuple(max(1, width // 32) for width in widths)
    attention = tuple(level >= len(widths) - 2 for level in range(len(widths)))
    return replace(small_unet(size, channels, widths, layers), attention=attention, text_dim=text_dim, heads=heads)
