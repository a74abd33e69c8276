"""Text-to-image models as folders that diffusers and transformers open unchanged.

A model of pixels (chapter 2) is unet/, scheduler/, text_encoder/ and tokenizer/. A latent model (chapters 4 and 6) is
the whole folder of a Stable Diffusion: vae/ and model_index.json too,
so that StableDiffusionPipeline.from_pretrained opens it.
"""

from pathlib import Path

import torch

from common.diffusion.diffusers_scheduler import scheduler_to_diffusers
from common.diffusion.schedules import DiscreteSchedule, Schedule
from common.errors import UserError
from common.io.files import write_json
from common.io.weight_files import DIFFUSERS, TRANSFORMERS, look_for_weights
from common.models.diffusers_configs import model_index
from common.models.find_model import find_root
from common.models.model_folder import Model, load_model, load_vae, save_model, save_vae
from common.models.pipeline import TextToImagePipeline
from common.models.text.cached import CachedTextEncoder
from common.models.text.encoders import CLIPTextEncoder, SmallText, TextEncoder, load_text, save_text
from common.models.unet import UNet
from common.models.vae import AutoencoderKL

FILES = (
    f"unet/{DIFFUSERS}", "unet/config.json", f"vae/{DIFFUSERS}", "vae/config.json", f"text_encoder/{TRANSFORMERS}",
    "text_encoder/config.json", "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- writing


def save_pipeline(
    folder: Path,
    pipeline: TextToImagePipeline,
    dtype: torch.dtype = torch.float32,
    opened_by: str = "StableDiffusionPipeline",
) -> None:
    """Write the folder of a model, each file whole or not at all.

    opened_by  the class of diffusers whose from_pretrained opens the folder of a latent model
    """
    encoder = encoder_to_save(pipeline.text_encoder)
    save_model(folder, Model(pipeline.unet, pipeline.schedule, pipeline.prediction, pipeline.clip_x0), dtype)
    save_text(folder, encoder, dtype)
    if pipeline.vae:
        write_json(folder / "scheduler" / "scheduler_config.json", ddim_config(pipeline.schedule, pipeline.prediction))
        save_vae(folder / "vae", pipeline.vae, dtype)
        text_classes: tuple[str, ...] = ()
        if isinstance(encoder, CLIPTextEncoder):
            text_classes = (type(encoder.network).__name__, type(encoder.hf_tokenizer).__name__)
        write_json(folder / "model_index.json", model_index(opened_by, "DDIMScheduler", *text_classes))


def encoder_to_save(encoder: TextEncoder | None) -> SmallText | CLIPTextEncoder:
    """The text encoder itself. Raises ValueError for one that no folder of diffusers holds."""
    inner = encoder.encoder if isinstance(encoder, CachedTextEncoder) else encoder
    if not isinstance(inner, (SmallText, CLIPTextEncoder)):
        raise ValueError("a text-to-image folder needs a SmallText or a CLIPTextEncoder")
    return inner


def ddim_config(schedule: Schedule, prediction: str) -> dict:
    """The scheduler with which diffusers draws by default: DDIM works with any number of steps."""
    check_schedule(schedule)
    config = scheduler_to_diffusers(schedule, prediction, clip_x0=False)
    del config["variance_type"]  # a setting of DDPM
    # diffusers warns without the offset
    return config | {"_class_name": "DDIMScheduler", "set_alpha_to_one": True, "steps_offset": 1}


def check_schedule(schedule: Schedule) -> None:
    """Refuse a schedule that scheduler_config.json of a Stable Diffusion folder cannot describe."""
    if not isinstance(schedule, DiscreteSchedule):
        raise UserError(
            f"a Stable Diffusion folder has no place for the schedule '{schedule.name}'; choose cosine, linear, scaled_linear, ..."
        )


# ------------------------------------------------------------------------------------------------------------- opening


def open_pipeline(
    folder: Path, device: str | torch.device = "cpu", text_encoder: TextEncoder | None = None
) -> TextToImagePipeline:
    """Any model of pixels or latents, with text or without, for drawing or inpainting; float32, every key checked.

    folder        a run folder, a model folder, or a Stable Diffusion 1.x or 2.x folder or file. A safety checker is
                  not opened
    text_encoder  in place of the folder's own
    Raises UserError for a folder without a model, and for networks that were not made for each other.
    """
    root = find_root(Path(folder))
    unet, schedule, prediction, clip_x0 = load_model(root, device)
    if not isinstance(unet, UNet):
        raise UserError(f"the network in {folder} is a Diffusion Transformer, where a U-Net was expected")
    vae = load_vae(root / "vae", device) if (root / "vae").is_dir() else None
    if not unet.cfg.text_dim:
        text_encoder = None
    elif text_encoder is None:
        text_encoder = load_text(root).to(device).eval()
    check_channels(folder, unet, vae)
    if text_encoder and text_encoder.dim != unet.cfg.text_dim:
        raise UserError(
            f"the text encoder in {folder} gives embeddings of width {text_encoder.dim}, but its U-Net expects {unet.cfg.text_dim}"
        )
    return TextToImagePipeline(unet, schedule, prediction, text_encoder, vae, clip_x0 if vae is None else False)


def open_pixel_pipeline(folder: Path, device: str | torch.device = "cpu") -> TextToImagePipeline:
    """The same for a text-to-image model of grey or RGB pixels; another kind of model is refused."""
    pipeline = open_pipeline(folder, device)
    if pipeline.text_encoder is None:
        raise UserError(
            f"{folder} holds a model that is not conditioned on text; sample from it with 01_ddpm_mnist/sample.py"
        )
    channels = pipeline.unet.cfg.in_channels
    if pipeline.vae or channels not in (1, 3):
        raise UserError(
            f"the U-Net in {folder} has {channels} input channels; this chapter samples grey or RGB images, with 1 channel or 3"
        )
    return pipeline


def open_latent_pipeline(folder: Path, device: str | torch.device = "cpu") -> TextToImagePipeline:
    """The same for a whole Stable Diffusion that draws from text;
    another kind of model, or a missing file, is refused.
    """
    check_whole(folder)
    pipeline = open_pipeline(folder, device)
    if pipeline.is_inpainting:
        raise UserError(
            f"the U-Net in {folder} is one for inpainting, with {pipeline.unet.cfg.in_channels} input channels; "
            "use it with 06_inpaint_gif/make_gif.py --model"
        )
    if pipeline.text_encoder is None:
        raise UserError(f"the U-Net in {folder} is not conditioned on text; give a text-to-image model")
    return pipeline


def check_whole(folder: Path) -> None:
    """Refuse a folder that lacks a file of a Stable Diffusion."""
    root = find_root(Path(folder), "a Stable Diffusion model")
    if not (root / "vae").is_dir():
        raise UserError(
            f"{folder} holds no autoencoder: {root / 'vae'} is missing; "
            "a model that works on pixels is sampled by sample.py of chapter 1 (without text) or 2 (with text)"
        )
    missing = [
        file
        for file in FILES
        if not (root / file).exists()
        and not (file.endswith(".safetensors") and look_for_weights((root / file).parent))
    ]
    if missing:
        raise UserError(f"{root} is no whole Stable Diffusion folder: it lacks {', '.join(missing)}")


def check_channels(folder: Path, unet: UNet, vae: AutoencoderKL | None) -> None:
    """Refuse a U-Net that was not made for these latents:
    it takes c channels, or 2 c + 1 for inpainting, and returns c.
    """
    takes, gives = unet.cfg.in_channels, unet.cfg.out_channels
    if vae is None:
        fits = takes in (gives, 2 * gives + 1) or gives == 2 * takes  # twice as many with learned variance
        if not fits:
            raise UserError(
                f"the U-Net in {folder} takes {takes} channels and gives {gives}, which no model of pixels does"
            )
    elif gives != (c := vae.cfg.latent_channels) or takes not in (c, 2 * c + 1):
        raise UserError(
            f"the autoencoder in {folder} makes latents with {c} channels, but its U-Net takes {takes} and gives {gives}; "
            f"{c} and {c} draw, {2 * c + 1} and {c} inpaint"
        )
