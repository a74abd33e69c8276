"""The folder of a Stable Diffusion as diffusers lays it out, to the last file: U-Net, scheduler, autoencoder, text encoder, tokenizer.

Chapter 4 writes one that draws, chapter 6 one that paints into holes: only the pipeline of diffusers that opens it is another.
"""

from pathlib import Path

import torch

from common.diffusion.diffusers_scheduler import VERSION, scheduler_to_diffusers
from common.diffusion.schedules import DiscreteSchedule, Schedule
from common.errors import UserError
from common.io.files import write_json
from common.models.diffusers_vae import save_vae
from common.models.model_folder import Model, save_model
from common.models.text.encoders import Cached, CLIPTextEncoder, TextEncoder, save_text
from common.models.vae import AutoencoderKL


def save_folder(folder: Path, opened_by: str, model: Model, vae: AutoencoderKL, encoder: TextEncoder, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder for from_pretrained of the pipeline `opened_by`, and diffusers' AutoPipelines. Each file whole or not at all."""
    save_model(folder, model, dtype)
    write_json(folder / "scheduler" / "scheduler_config.json", ddim_config(model.schedule, model.prediction))
    save_vae(folder / "vae", vae, dtype)
    save_text(folder, encoder, dtype)
    write_json(folder / "model_index.json", model_index(opened_by, encoder))


def ddim_config(schedule: Schedule, prediction: str) -> dict:
    """The scheduler that diffusers shall draw with if nobody chooses: DDIM is right at any number of steps."""
    check_schedule(schedule)
    config = scheduler_to_diffusers(schedule, prediction, clip_x0=False)
    del config["variance_type"]  # a matter of DDPM's
    return config | {"_class_name": "DDIMScheduler", "set_alpha_to_one": True, "steps_offset": 1}  # 1 is for "leading" alone; else it warns


def check_schedule(schedule: Schedule) -> None:
    if not isinstance(schedule, DiscreteSchedule):
        raise UserError(f"a Stable Diffusion folder has no place for the schedule '{schedule.name}'; choose cosine, linear, scaled_linear, ...")


def model_index(opened_by: str, encoder: TextEncoder) -> dict:
    """What is in the folder, and which class opens it. [null, null] is a part that there is not."""
    encoder = encoder.encoder if isinstance(encoder, Cached) else encoder
    reader, tokenizer = "CLIPTextModel", "CLIPTokenizer"
    if isinstance(encoder, CLIPTextEncoder):
        reader, tokenizer = type(encoder.network).__name__, type(encoder.words).__name__
    return {
        "_class_name": opened_by,
        "_diffusers_version": VERSION,
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", reader],
        "tokenizer": ["transformers", tokenizer],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }
