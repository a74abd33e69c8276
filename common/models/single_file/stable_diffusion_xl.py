"""Stable Diffusion XL in one file, written as the folder of a pipeline of diffusers.

The file has a U-Net whose resolutions have different numbers of transformer blocks and which is also given the pooled
text and the sizes of the picture, the autoencoder of 1.x with other weights, and two text encoders. The pipelines of
diffusers run it; the course's own U-Net has no such conditioning.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from common.io.files import write_json
from common.io.weight_files import DIFFUSERS, TRANSFORMERS
from common.models.diffusers_configs import model_index
from common.models.single_file.kinds import OPEN_CLIP_XL, TEXT, TEXT_XL, UNET
from common.models.single_file.parts import (
    check_all_converted,
    clip_config,
    every_weight_of,
    numbers,
    open_clip_config,
    save_tokenizer,
    unet_config,
    write_part,
    write_text,
    write_vae,
)
from common.models.text.transformer import text_to_transformers

PIXELS, SCALING_FACTOR = 1024, 0.13025
SIZES = 6  # numbers about the picture that the U-Net is given: its original size, its crop, its size


def write_xl_pipeline(folder: Path, state: dict[str, Tensor], path: Path) -> None:
    """Write what StableDiffusionXLPipeline.from_pretrained(folder) opens."""
    first = {
        TEXT + name.removeprefix(TEXT_XL): value for name, value in state.items() if name.startswith(TEXT_XL)
    }  # under the names of 1.x
    text = clip_config(first, path)
    save_tokenizer(folder / "tokenizer", text, path)
    save_tokenizer(folder / "tokenizer_2", open_clip_config(state, path, OPEN_CLIP_XL, unread=0), path)
    write_text(folder / "text_encoder", first, text, path)
    write_second_text(folder / "text_encoder_2", state, path)
    factor = write_vae(folder / "vae", state, PIXELS, path, SCALING_FACTOR)
    channels = write_xl_unet(folder / "unet", state, PIXELS // factor, path)
    scheduler = {
        "_class_name": "EulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction" if "v_pred" in state else "epsilon",
        "rescale_betas_zero_snr": "ztsnr" in state,
        "timestep_spacing": "trailing" if "ztsnr" in state else "leading",
        "steps_offset": 1,
    }
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    name = "StableDiffusionXLInpaintPipeline" if channels == 9 else "StableDiffusionXLPipeline"
    index = model_index(name, "EulerDiscreteScheduler")
    for absent in ("safety_checker", "requires_safety_checker"):  # XL has none
        del index[absent]
    index |= {
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": index["tokenizer"],
        "force_zeros_for_empty_prompt": True,
    }
    write_json(folder / "model_index.json", index)


def write_xl_unet(folder: Path, state: dict[str, Tensor], size: int, path: Path) -> int:
    """Write the U-Net. size: a side of its latents. Returns the number of its input channels."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    own = {name.removeprefix(UNET): value for name, value in state.items() if name.startswith(UNET)}
    cfg = unet_config(own, path)
    with every_weight_of("U-Net", path):
        pooled = state[f"{OPEN_CLIP_XL}text_projection"].shape[1]
        added = own["label_emb.0.0.weight"].shape[1]
        config: dict[str, Any] = {
            "_class_name": "UNet2DConditionModel",
            "sample_size": size,
            "in_channels": cfg.in_channels,
            "out_channels": cfg.out_channels,
            "block_out_channels": list(cfg.channels),
            "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in cfg.attention],
            "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(cfg.attention)],
            "layers_per_block": cfg.layers,
            "transformer_layers_per_block": blocks_per_level(own, cfg.layers, cfg.attention),
            "attention_head_dim": [max(1, width // 64) for width in cfg.channels],  # the number of heads, by its name
            "cross_attention_dim": cfg.text_dim,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (added - pooled) // SIZES,
            "projection_class_embeddings_input_dim": added,
        }
        converted = convert_ldm_unet_checkpoint(state, config)
    check_all_converted(len(own), converted, path)
    write_part(folder, DIFFUSERS, config, converted, lambda: UNet2DConditionModel.from_config(config), path)
    return cfg.in_channels


def blocks_per_level(state: dict[str, Tensor], layers: int, attention: tuple[bool, ...]) -> list[int]:
    """The number of transformer blocks at each level; 1 where a level has none, which has no effect there."""
    first = [1 + level * (layers + 1) for level in range(len(attention))]  # the number of a level's first block
    return [
        len(numbers(state, rf"input_blocks\.{i}\.1\.transformer_blocks\.(\d+)\.")) if a else 1
        for i, a in zip(first, attention, strict=True)
    ]


def write_second_text(folder: Path, state: dict[str, Tensor], path: Path) -> None:
    """Write OpenCLIP's text encoder with the projection of its pooled output, from which nothing is left out."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    cfg = open_clip_config(state, path, OPEN_CLIP_XL, unread=0)
    with every_weight_of("text encoder", path):
        converted = convert_open_clip_checkpoint(None, state, OPEN_CLIP_XL)
        config = text_to_transformers(cfg) | {
            "architectures": ["CLIPTextModelWithProjection"],
            "projection_dim": converted["text_projection.weight"].shape[0],
        }
    converted = {key: value for key, value in converted.items() if not re.search("position_ids|logit_scale", key)}
    make = lambda: CLIPTextModelWithProjection(CLIPTextConfig.from_dict(config))  # noqa: E731
    write_part(folder, TRANSFORMERS, config, converted, make, path)
