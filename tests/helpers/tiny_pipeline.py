"""A Stable Diffusion folder of a few random weights: everything of chapter 4's but what it has learned."""

from pathlib import Path

import torch

from common.diffusion.diffusers_scheduler import VERSION
from common.diffusion.schedules import make_schedule
from common.io.files import read_json, write_json
from common.models.model_folder import Model, save_model, save_vae
from common.models.text.encoders import save_text, small_text
from common.models.unet import UNet
from common.models.unet_config import text_unet
from common.models.vae import AutoencoderKL, small_vae

WORDS = [
    "a red creature with wings", "a blue creature with horns", "a green round creature with a long tail",
    "一只红色的小怪兽，长着翅膀", "一只蓝色的小怪兽，长着角", "番茄炒蛋", "米饭", "scrambled eggs with tomatoes", "a bowl of rice",
]  # fmt: skip
SIZE, LATENT, TOKENS = 64, 16, 64


def write_tiny_pipeline(folder: Path, seed: int = 0) -> Path:
    """Write a folder that StableDiffusionPipeline.from_pretrained opens with no part missing; returns the folder.

    Geometry of 04_latent_sd/pretrained/64x64: images of 64x64, latents of 4x16x16 (f = 4), 64 tokens, v-prediction, cosine
    schedule, trailing spacing. The weights are random and a function of the seed:
    pictures are colourful mud, and the text matters to them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = small_text(2 * WORDS, dim=32, layers=1, heads=2, length=TOKENS)
        unet = UNet(text_unet(LATENT, 4, (16, 32), text_dim=32))
        vae = AutoencoderKL(small_vae(SIZE, 3, (8, 8, 16)))
        for network in (text, unet, vae):
            shake(network)
    save_model(folder, Model(unet, make_schedule("cosine"), "v", False))
    scheduler = folder / "scheduler" / "scheduler_config.json"
    # without it diffusers says that the file is outdated
    write_json(scheduler, read_json(scheduler) | {"steps_offset": 1})
    save_vae(folder / "vae", vae)
    save_text(folder, text)
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": VERSION,
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", "DDPMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
        },
    )
    return folder


def shake(network: torch.nn.Module) -> None:
    """Move every weight by chance, those that begin at zero too: an untrained U-Net would answer with zeros."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
