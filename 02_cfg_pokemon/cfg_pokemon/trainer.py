"""What train.py does once its flags are settled:
train a U-Net and its text encoder, save them, and draw sample pictures.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cfg_pokemon.augmentation import augment
from cfg_pokemon.flags import PixelModelFlags
from cfg_pokemon.guidance import drop_captions
from common.cli import pick_device
from common.data import load
from common.diffusion.diffusers_scheduler import check_pair
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import Schedule, make_schedule
from common.models.pipeline import TextToImagePipeline
from common.models.text_to_image_folder import open_pixel_pipeline, save_pipeline
from common.models.unet_config import text_unet
from common.random import BatchRandom
from common.training.loop import LossTerms, State
from common.training.record import check_record, record_of, start_of
from common.training.run import image_channels, make_accelerator
from common.training.text_conditioning import (
    Captioned,
    empty_text,
    make_network,
    make_text_encoder,
    open_clip,
    train_text_to_image,
)

TEXT_CACHE = Path("runs/02_cfg_pokemon/text_cache")  # embeddings of a frozen text encoder
HEIGHT = 200  # pixels of the sample pictures


def train_model(flags: PixelModelFlags) -> None:
    """Train with settled flags."""
    check_pair(flags.schedule, flags.prediction)
    schedule, sampler = make_schedule(flags.schedule), Sampler.parse_plain(flags.sampler)
    schedule.noise_levels(sampler.steps)  # an impossible number of steps is refused now, not after the training
    device = pick_device(flags.device)
    # a resumed run has its own copy
    start = open_pixel_pipeline(start_of(flags, flags.start)) if flags.start else None
    clip = open_clip(flags.text, device)  # models that cannot be opened are refused before any data are drawn
    channels = image_channels(flags.image_channels, start.unet.cfg.in_channels if start else None)
    wanted = {"language": flags.language, "n": flags.n, "channels": channels, "captions": True}
    images = load(flags.data, flags.size, flags.data_dir, **wanted)
    captions = images.need_captions(flags.language)
    record = record_of(images.pixels, captions)
    check_record(flags, record)
    torch.manual_seed(flags.seed)
    encoder = make_text_encoder(captions, flags.text_dim, start, clip, TEXT_CACHE)
    cfg = text_unet(images.size, images.channels, flags.channels, encoder.dim, flags.layers)
    net = make_network(cfg, encoder, start, flags.start)
    accelerator = make_accelerator(flags.precision, device)

    def pipeline_of(state: State) -> TextToImagePipeline:
        text_encoder = state.ema.text_encoder or encoder
        return TextToImagePipeline(state.ema.unet, schedule, flags.prediction, text_encoder, clip_x0=True)

    train_text_to_image(
        "02_cfg_pokemon/train.py",
        flags,
        net,
        Captioned(images, captions, encoder),
        TextLoss(schedule, flags.prediction, empty_text(encoder), flags.caption_dropout, flags.augment),
        accelerator,
        record,
        f"{flags.data}: {len(images):,} images of {images.size}x{images.size}",
        pipeline_of,
        HEIGHT,
        save_start=(lambda folder: save_pipeline(folder, start)) if start else None,
    )


@dataclass(frozen=True)
class TextLoss:
    """Chapter 1's loss with captions, of which a share is replaced by the empty one, and with augmented images."""

    schedule: Schedule
    prediction: str
    empty: Tensor  # the empty caption, (M,) token ids or (M, D) embeddings
    caption_dropout: float
    augmentation: str = "none"

    def __call__(self, net: nn.Module, batch: dict[str, Tensor], draw: BatchRandom) -> LossTerms:
        x0, text = batch["image"], batch["text"]  # (B, C, H, W), (B, M) or (B, M, D)
        u, eps = draw.stratified(len(x0)), draw.randn(x0.shape)
        if self.augmentation != "none":
            x0 = augment(self.augmentation, x0, draw.rand(len(x0)))
        text = drop_captions(text, self.empty.to(text), draw.rand(len(x0)), self.caption_dropout)
        return LossTerms(diffusion_loss(net, self.schedule, self.prediction, x0, u, eps, text=text), u)
