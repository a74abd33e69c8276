"""Stable Diffusion 1.x and 2.x in one file, written as the folder of a pipeline."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from common.io.files import write_json
from common.models.diffusers_configs import model_index
from common.models.single_file.kinds import OPEN_CLIP, TEXT, UNET
from common.models.single_file.parts import (
    clip_config,
    open_clip_config,
    save_tokenizer,
    unet_config,
    write_text,
    write_unet,
    write_vae,
)


def write_pipeline(folder: Path, state: dict[str, Tensor], path: Path) -> None:
    """Write what StableDiffusionPipeline.from_pretrained(folder) opens.
    The tokenizer comes first, because it is the part that may be missing.
    """
    with_prefix = {
        re.sub(rf"^{re.escape(TEXT)}(?!text_model\.)", f"{TEXT}text_model.", name): value
        for name, value in state.items()
    }
    second = f"{OPEN_CLIP}token_embedding.weight" in state
    text = open_clip_config(state, path) if second else clip_config(with_prefix, path)
    save_tokenizer(folder / "tokenizer", text, path)
    unet = unet_config(
        {name.removeprefix(UNET): value for name, value in state.items() if name.startswith(UNET)}, path
    )
    inpaints = unet.in_channels != unet.out_channels
    v, zero_snr = prediction_of(state, path, second and not inpaints)
    pixels = 768 if v and second else 512
    factor = write_vae(folder / "vae", state, pixels, path)
    write_unet(folder / "unet", state, replace(unet, size=pixels // factor), path)
    write_text(folder / "text_encoder", with_prefix, text, path)
    scheduler: dict[str, Any] = {
        "_class_name": "PNDMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction" if v else "epsilon",
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "clip_sample": False,
    }
    if zero_snr:  # PNDM has no such setting
        scheduler |= {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    name = "StableDiffusionInpaintPipeline" if inpaints else "StableDiffusionPipeline"
    write_json(folder / "model_index.json", model_index(name, scheduler["_class_name"]))


def prediction_of(state: dict[str, Tensor], path: Path, version_2: bool) -> tuple[bool, bool]:
    """(whether the U-Net predicts v, whether its schedule ends at pure noise).
    version_2: a text-to-image model of Stable Diffusion 2.x
    """
    named = metadata(path).get("modelspec.prediction_type", "")
    settings = path.with_suffix(".yaml")
    if "v_pred" in state:
        return True, "ztsnr" in state
    if named:
        return named.startswith("v"), False
    if settings.exists():
        text = settings.read_text(encoding="utf-8", errors="replace")
        return bool(re.search(r"^\s*parameterization:\s*[\"']?v[\"']?\s*$", text, re.M)), False
    if version_2:
        print(
            f"{path.name} does not say what its U-Net predicts: taken for v, as in Stable Diffusion 2.1 of 768 pixels; where it predicts the noise "
            f"(2.1 base, 512 pixels), put its settings, v2-inference.yaml, beside it as {settings.name}"
        )
    return version_2, False


def metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a .safetensors file; {} for any other."""
    if path.suffix.lower() not in (".safetensors", ".sft"):
        return {}
    with safe_open(path, "pt") as file:
        return file.metadata() or {}
