"""Translate between our UNetConfig, DiTConfig and VAEConfig and the config.json of `diffusers`, and write model_index.json.

Nothing is guessed: a setting that the course's network does not have is refused by name, so that weights are never
loaded into another network.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from common.diffusion.diffusers_scheduler import VERSION
from common.io.config_values import Count, Layers, Setting, Share, known_settings, refuse, to_ours, to_theirs
from common.io.ranges import Range
from common.models.dit import DiTConfig
from common.models.unet_config import UNetConfig
from common.models.vae import VAEConfig

# ---------------------------------------------------------------------------------------------------------- U-Net

# Settings of diffusers' U-Nets that are read at these values only (None: left out of the file).
FIXED = {
    name: values
    for values, names in (
        ((None,), "addition_embed_type addition_time_embed_dim class_embed_type encoder_hid_dim encoder_hid_dim_type"),
        (
            (None,),
            "cross_attention_norm num_attention_heads num_train_timesteps projection_class_embeddings_input_dim",
        ),
        ((None,), "reverse_transformer_layers_per_block time_cond_proj_dim time_embedding_act_fn time_embedding_dim"),
        ((None,), "timestep_post_act"),
        ((False,), "center_input_sample class_embeddings_concat dual_cross_attention only_cross_attention"),
        ((False,), "resnet_skip_time_act"),
        ((None, False), "mid_block_only_cross_attention"),
        ((None, False, True), "upcast_attention"),
        ((1,), "mid_block_scale_factor resnet_out_scale_factor"),
        ((3,), "conv_in_kernel conv_out_kernel"),
        ((64,), "addition_embed_type_num_heads"),
        (("silu",), "act_fn"),
        (("conv",), "downsample_type upsample_type"),
        (("default",), "attention_type"),
        (("positional",), "time_embedding_type"),
    )
    for name in names.split()
}

# Settings that are translated. Their limits are far beyond any network, and exclude what would take forever to build.
COMMON = {
    "sample_size": Setting(None, Count | list[Count] | None),
    "block_out_channels": Setting(None, list[Count]),
    "down_block_types": Setting(None, list[str]),
    "up_block_types": Setting(None, list[str]),
    "layers_per_block": Setting(2, Layers, "layers"),
    "norm_num_groups": Setting(32, Count, "groups"),
    "norm_eps": Setting(1e-5, Share, "eps"),
    "dropout": Setting(0.0, Share, "dropout"),
    "downsample_padding": Setting(1, Literal[0, 1]),
    "flip_sin_to_cos": Setting(True, bool),
    "freq_shift": Setting(0, Share, "freq_shift"),
    "num_class_embeds": Setting(None, Annotated[int, Range(1, 1_000_000)] | None, "classes"),
    "resnet_time_scale_shift": Setting("default", Literal["default", "scale_shift"]),
}
PLAIN = COMMON | {
    "mid_block_type": Setting("UNetMidBlock2D", str | None),
    "in_channels": Setting(3, Count, "in_channels"),
    "out_channels": Setting(3, Count, "out_channels"),
    "attention_head_dim": Setting(8, Count | None, "head_dim"),
    "add_attention": Setting(True, bool, "mid_attention"),
    "attn_norm_num_groups": Setting(None, Count | None),
}
TEXT = COMMON | {
    "mid_block_type": Setting("UNetMidBlock2DCrossAttn", str | None),
    "in_channels": Setting(4, Count, "in_channels"),
    "out_channels": Setting(4, Count, "out_channels"),
    "attention_head_dim": Setting(8, Count | list[Count]),
    "cross_attention_dim": Setting(1280, Count, "text_dim"),
    "use_linear_projection": Setting(False, bool, "linear_projection"),
    "transformer_layers_per_block": Setting(1, Layers, "depth"),
}
LARGEST = 2000  # levels x residual blocks x transformer blocks
BLOCKS = {  # block types by (has text, has attention)
    "down": {(False, False): "DownBlock2D", (False, True): "AttnDownBlock2D",
             (True, False): "DownBlock2D", (True, True): "CrossAttnDownBlock2D"},
    "up": {(False, False): "UpBlock2D", (False, True): "AttnUpBlock2D",
           (True, False): "UpBlock2D", (True, True): "CrossAttnUpBlock2D"},
}  # fmt: skip


def unet_from_diffusers(config: dict[str, Any]) -> UNetConfig:
    """The UNetConfig of a UNet2DModel's or UNet2DConditionModel's config.json.
    Raises UserError at a setting that it cannot express.
    """
    kind = config.get("_class_name")
    if kind not in ("UNet2DModel", "UNet2DConditionModel"):
        refuse("U-Net", "_class_name", kind)
    text = kind == "UNet2DConditionModel"
    settings = TEXT if text else PLAIN
    c = known_settings(config, settings, FIXED, "U-Net")
    if len(c["block_out_channels"]) * c["layers_per_block"] * c.get("transformer_layers_per_block", 1) > LARGEST:
        product = "block_out_channels, layers_per_block and transformer_layers_per_block, which multiply to more than"
        refuse("U-Net", product, LARGEST)
    for key, holds in requirements(c, text):
        if not holds():
            refuse("U-Net", key, c[key])
    return UNetConfig(
        **to_ours(c, settings),
        size=c["sample_size"] if isinstance(c["sample_size"], int) else 0,
        channels=tuple(c["block_out_channels"]),
        attention=tuple("Attn" in block for block in c["down_block_types"]),
        heads=tuple(heads_of(c)) if text else None,
        scale_shift=c["resnet_time_scale_shift"] == "scale_shift",
        sin_first=not c["flip_sin_to_cos"],
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
        # the width of the timestep embedding
        ("block_out_channels", lambda: widths[0] % 2 == 0 and widths[0] // 2 > c["freq_shift"]),
        ("down_block_types", lambda: list(c["down_block_types"]) == [BLOCKS["down"][text, a] for a in attention]),
        ("up_block_types", lambda: list(c["up_block_types"]) == [BLOCKS["up"][text, a] for a in reversed(attention)]),
        ("mid_block_type", lambda: c["mid_block_type"] == (TEXT if text else PLAIN)["mid_block_type"].default),
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
        "block_out_channels": list(cfg.channels),
        "down_block_types": [BLOCKS["down"][text, a] for a in cfg.attention],
        "up_block_types": [BLOCKS["up"][text, a] for a in reversed(cfg.attention)],
        "resnet_time_scale_shift": "scale_shift" if cfg.scale_shift else "default",
        "flip_sin_to_cos": not cfg.sin_first,
        "downsample_padding": int(cfg.symmetric_padding),
    }
    if text:
        own = {"mid_block_type": TEXT["mid_block_type"].default, "attention_head_dim": list(cfg.heads or ())}
        return config | to_theirs(cfg, TEXT) | own
    return config | to_theirs(cfg, PLAIN) | {"attn_norm_num_groups": cfg.groups}


# ------------------------------------------------------------------------------------------- Diffusion Transformer

DIT_FIXED = {
    "activation_fn": ("gelu-approximate",), "attention_bias": (True,), "dropout": (0,), "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,), "upcast_attention": (False, True),
    "norm_num_groups": range(65_537),  # there is no GroupNorm in it
    # in files of Transformer2DModel, the older class for the same network:
    "cross_attention_dim": (None,), "double_self_attention": (False,), "num_vector_embeds": (None,),
    "only_cross_attention": (False,), "use_linear_projection": (False,),
}  # fmt: skip
DIT = {
    "sample_size": Setting(32, Count, "size"),
    "in_channels": Setting(4, Count, "in_channels"),
    "out_channels": Setting(None, Count | None),
    "patch_size": Setting(2, Count, "patch"),
    "num_layers": Setting(28, Layers, "depth"),
    "num_attention_heads": Setting(16, Count, "heads"),
    "attention_head_dim": Setting(72, Count),
    "num_embeds_ada_norm": Setting(1000, Annotated[int, Range(0, 1_000_000)]),
    "norm_eps": Setting(1e-5, Share, "eps"),
}


def dit_from_diffusers(config: dict[str, Any]) -> DiTConfig:
    """The DiTConfig of a DiTTransformer2DModel's config.json. Raises UserError at a setting that it cannot express."""
    if config.get("_class_name") not in ("DiTTransformer2DModel", "Transformer2DModel"):
        refuse("DiT", "_class_name", config.get("_class_name"))
    c = known_settings(config, DIT, DIT_FIXED, "DiT")
    return DiTConfig(
        **to_ours(c, DIT),
        out_channels=c["out_channels"] or c["in_channels"],
        dim=c["num_attention_heads"] * c["attention_head_dim"],
        classes=c["num_embeds_ada_norm"] or None,
    )


def dit_to_diffusers(cfg: DiTConfig) -> dict[str, Any]:
    """The config.json that makes diffusers build the same network."""
    return {
        "_class_name": "DiTTransformer2DModel",
        "_diffusers_version": VERSION,
        "out_channels": cfg.out_channels,
        "attention_head_dim": cfg.dim // cfg.heads,
        "num_embeds_ada_norm": cfg.classes or 0,
    } | to_theirs(cfg, DIT)


# ---------------------------------------------------------------------------------------------------- autoencoder

VAE_FIXED = {
    "act_fn": ("silu", "swish"), "force_upcast": (True, False), "latents_mean": (None,), "latents_std": (None,),
    "shift_factor": (None, 0), "use_post_quant_conv": (True,), "use_quant_conv": (True,),
}  # fmt: skip
VAE = {
    "sample_size": Setting(32, Count | list[Count] | None),
    "in_channels": Setting(3, Count, "image_channels"),
    "out_channels": Setting(3, Count, "image_channels"),
    "latent_channels": Setting(4, Count, "latent_channels"),
    "block_out_channels": Setting([64], list[Count]),
    "down_block_types": Setting(["DownEncoderBlock2D"], list[str]),
    "up_block_types": Setting(["UpDecoderBlock2D"], list[str]),
    "layers_per_block": Setting(1, Layers, "layers"),
    "norm_num_groups": Setting(32, Count, "groups"),
    "scaling_factor": Setting(0.18215, Annotated[float, Range(0, 1e6, above=True)], "scaling_factor"),
    "mid_block_add_attention": Setting(True, bool, "mid_attention"),
}


def vae_from_diffusers(config: dict[str, Any]) -> VAEConfig:
    """The VAEConfig of an AutoencoderKL's config.json. Raises UserError at a setting that it cannot express."""
    if config.get("_class_name") != "AutoencoderKL":
        refuse("autoencoder", "_class_name", config.get("_class_name"))
    c = known_settings(config, VAE, VAE_FIXED, "autoencoder")
    channels = c["block_out_channels"]
    for key, fits in (
        ("block_out_channels", 1 <= len(channels) <= 12),
        ("norm_num_groups", not any(width % c["norm_num_groups"] for width in channels)),
        ("down_block_types", list(c["down_block_types"]) == ["DownEncoderBlock2D"] * len(channels)),
        ("up_block_types", list(c["up_block_types"]) == ["UpDecoderBlock2D"] * len(channels)),
        ("out_channels", c["out_channels"] == c["in_channels"]),
    ):
        if not fits:
            refuse("autoencoder", key, c[key])
    size = c["sample_size"] if isinstance(c["sample_size"], int) else 0
    return VAEConfig(**to_ours(c, VAE), size=size, channels=tuple(channels))


def vae_to_diffusers(cfg: VAEConfig) -> dict[str, Any]:
    """The config.json that makes diffusers build the same network."""
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "sample_size": cfg.size,
        "block_out_channels": list(cfg.channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(cfg.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(cfg.channels),
    } | to_theirs(cfg, VAE)


# ------------------------------------------------------------------------------------------------- model_index.json


def model_index(
    opened_by: str, scheduler: str, text_encoder: str = "CLIPTextModel", tokenizer: str = "CLIPTokenizer"
) -> dict[str, Any]:
    """The model_index.json of a Stable Diffusion: the classes of its parts. [null, null] stands for an absent part.

    opened_by  the class of diffusers whose from_pretrained opens the folder
    """
    return {
        "_class_name": opened_by,
        "_diffusers_version": VERSION,
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", text_encoder],
        "tokenizer": ["transformers", tokenizer],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", scheduler],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }
