"""An autoencoder as a folder that `diffusers` opens: AutoencoderKL.from_pretrained(folder), and back.

    vae/config.json, vae/diffusion_pytorch_model.safetensors

Nothing is guessed: a setting that the course's autoencoder does not have is refused by name, so that weights are never
loaded into another network.
"""

from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch

from common.diffusion.diffusers_scheduler import VERSION
from common.errors import UserError, shown
from common.io.config_values import Count, Layers, check_values, known_settings
from common.io.files import read_json, write_json
from common.io.ranges import Range
from common.io.state_dict import build_strictly, read_component, write_weights
from common.io.weight_files import look_for_weights
from common.models.model_folder import WEIGHTS
from common.models.single_file import as_folder
from common.models.vae import AutoencoderKL, VAEConfig

# Settings of diffusers' AutoencoderKL that are read at these values only.
FIXED = {
    "act_fn": ("silu", "swish"), "force_upcast": (True, False), "latents_mean": (None,), "latents_std": (None,),
    "shift_factor": (None, 0), "use_post_quant_conv": (True,), "use_quant_conv": (True,),
}  # fmt: skip

# Settings that are translated, with the values that diffusers assumes where the file leaves them out.
KNOWN = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "mid_block_add_attention": True,
}
VALUES = {
    "in_channels": Count,
    "out_channels": Count,
    "latent_channels": Count,
    "layers_per_block": Layers,
    "norm_num_groups": Count,
    "block_out_channels": list[Count],
    "down_block_types": list[str],
    "up_block_types": list[str],
    "sample_size": Count | list[Count] | None,
    "scaling_factor": Annotated[float, Range(0, 1e6, above=True)],
    "mid_block_add_attention": bool,
}


def _refuse(key: str, value: object) -> NoReturn:
    raise UserError(
        f"this autoencoder sets {key} = {shown(value)}, which the course's autoencoder does not have, so it is not loaded"
    )


def vae_from_diffusers(config: dict[str, Any]) -> VAEConfig:
    """The VAEConfig of an AutoencoderKL's config.json. Raises UserError at a setting that it cannot express."""
    if config.get("_class_name") != "AutoencoderKL":
        _refuse("_class_name", config.get("_class_name"))
    c = known_settings(config, KNOWN, FIXED, _refuse)
    check_values(c, VALUES, "this autoencoder")
    channels = c["block_out_channels"]
    if not 1 <= len(channels) <= 12:
        _refuse("block_out_channels", channels)
    if any(width % c["norm_num_groups"] for width in channels):
        _refuse("norm_num_groups", c["norm_num_groups"])
    for key, block in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if list(c[key]) != [block] * len(channels):
            _refuse(key, c[key])
    if c["out_channels"] != c["in_channels"]:
        _refuse("out_channels", c["out_channels"])
    return VAEConfig(
        size=c["sample_size"] if isinstance(c["sample_size"], int) else 0,
        image_channels=c["in_channels"],
        latent_channels=c["latent_channels"],
        channels=tuple(channels),
        layers=c["layers_per_block"],
        mid_attention=c["mid_block_add_attention"],
        groups=c["norm_num_groups"],
        scaling_factor=float(c["scaling_factor"]),
    )


def vae_to_diffusers(cfg: VAEConfig) -> dict[str, Any]:
    """The config.json that makes diffusers build the same network."""
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "sample_size": cfg.size,
        "in_channels": cfg.image_channels,
        "out_channels": cfg.image_channels,
        "latent_channels": cfg.latent_channels,
        "block_out_channels": list(cfg.channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(cfg.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(cfg.channels),
        "layers_per_block": cfg.layers,
        "mid_block_add_attention": cfg.mid_attention,
        "norm_num_groups": cfg.groups,
        "scaling_factor": cfg.scaling_factor,
    }


def save_vae(folder: Path, vae: AutoencoderKL, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder for AutoencoderKL.from_pretrained(folder). Each file is replaced whole or not at all."""
    write_json(folder / "config.json", vae_to_diffusers(vae.cfg))
    write_weights(folder / WEIGHTS, vae.state_dict(), dtype)


def load_vae(folder: Path, device: str | torch.device = "cpu") -> AutoencoderKL:
    """Open an autoencoder's folder, a run or Stable Diffusion folder that has one in it, or a file;
    float32, every key checked.
    """
    folder = Path(folder)
    if folder.is_file():
        folder = as_folder(folder, ("sd", "vae"))
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; give a run folder, or a diffusers model folder")
    root = next((f for f in (folder / "vae", folder / "model" / "vae") if f.is_dir()), folder)
    if root == folder and not (root / "config.json").exists() and look_for_weights(root) is None:
        raise UserError(
            f"{folder} holds no autoencoder: neither {folder}/config.json nor {folder}/vae nor {folder}/model/vae is there"
        )
    cfg = vae_from_diffusers(read_json(root / "config.json"))
    return build_strictly(lambda: AutoencoderKL(cfg), *read_component(root, WEIGHTS)).eval().to(device)
