"""An autoencoder as a folder that `diffusers` opens: AutoencoderKL.from_pretrained(folder), and back.

vae/config.json, vae/diffusion_pytorch_model.safetensors
"""

from pathlib import Path

import torch

from common.errors import UserError
from common.io.files import read_json, write_json
from common.io.state_dict import build_strictly, read_component, write_weights
from common.io.weight_files import DIFFUSERS as WEIGHTS
from common.io.weight_files import look_for_weights
from common.models.diffusers_configs import vae_from_diffusers, vae_to_diffusers
from common.models.single_file import as_folder
from common.models.vae import AutoencoderKL


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
