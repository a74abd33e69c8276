"""Translate between our UNetConfig and the config.json of `diffusers`.

Nothing is guessed: a setting that the course's U-Net does not have is refused by name, so that weights are never
loaded into another network.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NoReturn

from common.diffusion.diffusers_scheduler import VERSION
from common.errors import UserError, shown
from common.io.config_values import Count, Layers, Share, check_values, known_settings
from common.io.ranges import Range
from common.models.unet_config import UNetConfig

# Settings of diffusers' U-Nets that are read at these values only (None: left out of the file).
FIXED = {
    "act_fn": ("silu",), "addition_embed_type": (None,), "addition_embed_type_num_heads": (64,),
    "addition_time_embed_dim": (None,), "attention_type": ("default",), "center_input_sample": (False,),
    "class_embed_type": (None,), "class_embeddings_concat": (False,), "conv_in_kernel": (3,), "conv_out_kernel": (3,),
    "cross_attention_norm": (None,), "downsample_type": ("conv",), "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,), "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,), "num_attention_heads": (None,), "num_train_timesteps": (None,),
    "only_cross_attention": (False,), "projection_class_embeddings_input_dim": (None,), "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,), "reverse_transformer_layers_per_block": (None,), "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,), "time_embedding_dim": (None,), "time_embedding_type": ("positional",),
    "timestep_post_act": (None,), "upsample_type": ("conv",), "upcast_attention": (None, False, True),
}  # fmt: skip

# Settings that are translated, with the values that diffusers assumes where the file leaves them out.
COMMON = {"sample_size": None, "down_block_types": None, "up_block_types": None,
          "block_out_channels": None, "layers_per_block": 2, "norm_num_groups": 32, "norm_eps": 1e-5, "dropout": 0.0,
          "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "num_class_embeds": None,
          "attention_head_dim": 8, "resnet_time_scale_shift": "default"}  # fmt: skip
PLAIN = COMMON | {
    "mid_block_type": "UNetMidBlock2D",
    "in_channels": 3,
    "out_channels": 3,
    "add_attention": True,
    "attn_norm_num_groups": None,
}
TEXT = COMMON | {
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 1280,
    "use_linear_projection": False,
    "transformer_layers_per_block": 1,
}
# What their values may be: far more than any network has, and nothing that would take forever to build.
VALUES = {
    "sample_size": Count | list[Count] | None, "down_block_types": list[str], "up_block_types": list[str], "mid_block_type": str | None,
    "block_out_channels": list[Count], "layers_per_block": Layers, "norm_num_groups": Count, "norm_eps": Share, "dropout": Share,
    "downsample_padding": Literal[0, 1], "flip_sin_to_cos": bool, "freq_shift": Share, "num_class_embeds": Annotated[int, Range(1, 1_000_000)] | None,
    "attention_head_dim": Count | None, "resnet_time_scale_shift": Literal["default", "scale_shift"], "in_channels": Count, "out_channels": Count,
    "add_attention": bool, "attn_norm_num_groups": Count | None, "cross_attention_dim": Count, "use_linear_projection": bool,
    "transformer_layers_per_block": Layers,
}  # fmt: skip
LARGEST = 2000  # levels x residual blocks x transformer blocks
BLOCKS = {  # block types by (has text, has attention)
    "down": {(False, False): "DownBlock2D", (False, True): "AttnDownBlock2D",
             (True, False): "DownBlock2D", (True, True): "CrossAttnDownBlock2D"},
    "up": {(False, False): "UpBlock2D", (False, True): "AttnUpBlock2D",
           (True, False): "UpBlock2D", (True, True): "CrossAttnUpBlock2D"},
}  # fmt: skip


def _refuse(key: str, value: object) -> NoReturn:
    raise UserError(
        f"this U-Net sets {key} = {shown(value)}, which the course's U-Net does not have, so it is not loaded"
    )


def unet_from_diffusers(config: dict[str, Any]) -> UNetConfig:
    """The UNetConfig of a UNet2DModel's or UNet2DConditionModel's config.json.
    Raises UserError at a setting that it cannot express.
    """
    kind = config.get("_class_name")
    if kind not in ("UNet2DModel", "UNet2DConditionModel"):
        _refuse("_class_name", kind)
    text = kind == "UNet2DConditionModel"
    c = known_settings(config, TEXT if text else PLAIN, FIXED, _refuse)
    check_values(c, VALUES | ({"attention_head_dim": Count | list[Count]} if text else {}), "this U-Net")
    if len(c["block_out_channels"]) * c["layers_per_block"] * c.get("transformer_layers_per_block", 1) > LARGEST:
        _refuse(
            "block_out_channels, layers_per_block and transformer_layers_per_block, which multiply to more than",
            LARGEST,
        )
    for key, holds in requirements(c, text):
        if not holds():
            _refuse(key, c[key])
    return UNetConfig(
        size=c["sample_size"] if isinstance(c["sample_size"], int) else 0,
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        channels=tuple(c["block_out_channels"]),
        attention=tuple("Attn" in block for block in c["down_block_types"]),
        layers=c["layers_per_block"],
        head_dim=None if text else c["attention_head_dim"],
        heads=tuple(heads_of(c)) if text else None,
        text_dim=c.get("cross_attention_dim"),
        classes=c["num_class_embeds"],
        depth=c.get("transformer_layers_per_block", 1),
        linear_projection=c.get("use_linear_projection", False),
        scale_shift=c["resnet_time_scale_shift"] == "scale_shift",
        mid_attention=c.get("add_attention", True),
        dropout=c["dropout"],
        groups=c["norm_num_groups"],
        eps=c["norm_eps"],
        sin_first=not c["flip_sin_to_cos"],
        freq_shift=c["freq_shift"],
        symmetric_padding=c["downsample_padding"] == 1,
    )


def heads_of(c: dict[str, Any]) -> list[int]:
    """Attention heads at each level.
    In UNet2DConditionModel "attention_head_dim" is, by an old mistake kept for compatibility, their number.
    """
    heads = c["attention_head_dim"]
    return list(heads) if isinstance(heads, (list, tuple)) else [heads] * len(c["block_out_channels"])


def requirements(c: dict[str, Any], text: bool) -> list[tuple[str, Callable[[], bool]]]:
    """What the course's U-Net needs of each setting, in the order of the checks: later ones rely on earlier ones."""
    widths, groups = c["block_out_channels"], c["norm_num_groups"]
    n, attention = len(widths), ["Attn" in block for block in c["down_block_types"]]
    mid_attention = c.get("add_attention", True)
    # of the attention's norm, where the file names none
    default_groups = 0 if c["resnet_time_scale_shift"] == "scale_shift" else groups

    def heads_divide_widths() -> bool:  # otherwise diffusers would build attention that is narrower than the image
        divisors = heads_of(c) if text else [c["attention_head_dim"] or 1] * n
        attended = [*attention[:-1], attention[-1] or mid_attention]
        return not any(width % divisor for width, divisor, a in zip(widths, divisors, attended, strict=True) if a)

    return [
        ("block_out_channels", lambda: n > 0),
        ("down_block_types", lambda: len(c["down_block_types"]) == n),
        ("up_block_types", lambda: len(c["up_block_types"]) == n),
        ("norm_num_groups", lambda: not any(width % groups for width in widths)),
        (
            "block_out_channels",
            lambda: widths[0] % 2 == 0 and widths[0] // 2 > c["freq_shift"],
        ),  # the width of the timestep embedding
        ("down_block_types", lambda: list(c["down_block_types"]) == [BLOCKS["down"][text, a] for a in attention]),
        ("up_block_types", lambda: list(c["up_block_types"]) == [BLOCKS["up"][text, a] for a in reversed(attention)]),
        ("mid_block_type", lambda: c["mid_block_type"] == (TEXT if text else PLAIN)["mid_block_type"]),
        (
            "attn_norm_num_groups",
            lambda: text or not mid_attention or (c["attn_norm_num_groups"] or default_groups) == groups,
        ),
        ("attention_head_dim", lambda: not text or len(heads_of(c)) == n),
        ("attention_head_dim", heads_divide_widths),
    ]


def unet_to_diffusers(cfg: UNetConfig) -> dict[str, Any]:
    """The config.json that makes diffusers build the same network."""
    text = cfg.text_dim is not None
    config = {
        "_class_name": "UNet2DConditionModel" if text else "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": cfg.size,
        "in_channels": cfg.in_channels,
        "out_channels": cfg.out_channels,
        "block_out_channels": list(cfg.channels),
        "down_block_types": [BLOCKS["down"][text, a] for a in cfg.attention],
        "up_block_types": [BLOCKS["up"][text, a] for a in reversed(cfg.attention)],
        "layers_per_block": cfg.layers,
        "attention_head_dim": list(cfg.heads or ()) if text else cfg.head_dim,
        "num_class_embeds": cfg.classes,
        "resnet_time_scale_shift": "scale_shift" if cfg.scale_shift else "default",
        "dropout": cfg.dropout,
        "norm_num_groups": cfg.groups,
        "norm_eps": cfg.eps,
        "flip_sin_to_cos": not cfg.sin_first,
        "freq_shift": cfg.freq_shift,
        "downsample_padding": int(cfg.symmetric_padding),
    }
    if text:
        return config | {
            "mid_block_type": TEXT["mid_block_type"],
            "cross_attention_dim": cfg.text_dim,
            "transformer_layers_per_block": cfg.depth,
            "use_linear_projection": cfg.linear_projection,
        }
    return config | {"add_attention": cfg.mid_attention, "attn_norm_num_groups": cfg.groups}
