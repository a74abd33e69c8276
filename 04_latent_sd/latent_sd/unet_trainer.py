"""What train.py does once its flags are settled:
images become latents, and a U-Net and its text encoder are trained on them.
"""

from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from common.cli import pick_device
from common.data import Images, load
from common.diffusion.diffusers_scheduler import check_pair
from common.diffusion.guidance import drop_captions
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import Schedule, make_schedule
from common.errors import UserError
from common.models.model_folder import load_vae, save_vae
from common.models.pipeline import TextToImagePipeline
from common.models.text_to_image_folder import check_schedule, open_latent_pipeline, save_pipeline
from common.models.unet_config import text_unet
from common.models.vae import AutoencoderKL
from common.random import BatchRandom
from common.training.checkpoint import checkpoints, load_checkpoint
from common.training.latents import LatentDataset, check_fit, check_fit_before, sample
from common.training.loop import LossTerms, State
from common.training.record import check_record, record_of, start_of
from common.training.run import make_accelerator
from common.training.text_conditioning import (
    Captioned,
    empty_text,
    make_network,
    make_text_encoder,
    open_clip,
    train_text_to_image,
)
from latent_sd.concat_dataset import joined
from latent_sd.flags import LatentModelFlags
from latent_sd.latent_dataset import OnTheFly, cached_latents, latent_fingerprint, training_order

HEIGHT = 260  # pixels of the sample pictures


def train_model(flags: LatentModelFlags) -> None:
    """Train with settled flags."""
    check_pair(flags.schedule, flags.prediction)
    schedule, sampler = make_schedule(flags.schedule), Sampler.parse_plain(flags.sampler)
    check_schedule(schedule)
    schedule.noise_levels(sampler.steps)  # an impossible number of steps is refused now, not after the training
    device = pick_device(flags.device)
    vae = load_vae(start_of(flags, flags.vae), device)
    # a resumed run has its own copy
    start = open_latent_pipeline(start_of(flags, flags.start)) if flags.start else None
    clip = open_clip(flags.text, device)  # models that cannot be opened are refused before any data are drawn
    size = flags.size or vae.cfg.size
    check_fit_before(vae, flags.data, size)
    images = load_captioned(flags.data, size, flags.data_dir, flags.language, flags.n, vae.cfg.image_channels)
    record = record_of(images.pixels, images.captions)
    check_record(flags, record)
    check_fit(vae, images)
    torch.manual_seed(flags.seed)
    encoder = make_text_encoder(images.captions, flags.text_dim, start, clip, flags.cache)
    c, side = vae.cfg.latent_channels, images.size // vae.cfg.factor
    net = make_network(text_unet(side, c, flags.channels, encoder.dim, flags.layers), encoder, start, flags.start)
    accelerator = make_accelerator(flags.precision, device)
    loss = LatentTextLoss(
        schedule, flags.prediction, empty_text(encoder), flags.caption_dropout, vae, images, flags.run_dir
    )
    if flags.resume and (kept := checkpoints(flags.run_dir)):
        # another autoencoder is refused before it encodes anything
        loss.load_state_dict(load_checkpoint(kept[-1])["loss"])
    with accelerator.main_process_first():  # the others find the file
        latents = make_latents(flags, vae, images, accelerator)

    def pipeline_of(state: State) -> TextToImagePipeline:
        return TextToImagePipeline(state.ema.unet, schedule, flags.prediction, state.ema.text_encoder or encoder, vae)

    what = f"{' + '.join(flags.data)}: {len(images):,} images of {images.size}x{images.size} as latents {c} x {side} x {side}"
    captions = images.captions
    del images  # latents in a file need no pixels any more: a GB for 20,000 images of 128x128
    with closing(latents) if isinstance(latents, OnTheFly) else nullcontext():
        train_text_to_image(
            "04_latent_sd/train.py",
            flags,
            net,
            Captioned(latents, captions, encoder),
            loss,
            accelerator,
            record,
            what,
            pipeline_of,
            HEIGHT,
            save_start=lambda folder: (
                save_pipeline(folder, replace(start, vae=vae)) if start else save_vae(folder / "vae", vae)
            ),
        )


def load_captioned(
    names: Sequence[str],
    size: int,
    data_dir: Path,
    language: str | None = None,
    n: int | None = None,
    channels: int | None = None,
) -> Images:
    """All sets as one, with a caption for each image. Raises UserError for a set that has none.
    n: the first n images of each set
    """
    wanted = {"language": language, "n": n, "channels": channels, "captions": True}
    sets = (load(name, size, data_dir, **wanted) for name in names)
    return joined(replace(images, captions=images.need_captions(language)) for images in sets)


def make_latents(
    flags: LatentModelFlags, vae: AutoencoderKL, images: Images, accelerator: Accelerator
) -> LatentDataset | OnTheFly:
    """The latents from their file, or encoded on the fly in the order in which the training,
    or the rest of it, reads them.
    """
    if flags.latents == "cached":
        return cached_latents(vae, images, flags.cache)
    kept = checkpoints(flags.run_dir) if flags.resume else []
    first = int(kept[-1].stem.removeprefix("step-")) * flags.gradient_accumulation if kept else 0
    order = training_order(
        len(images), flags.batch_size, flags.seed, first, accelerator.process_index, accelerator.num_processes
    )
    return OnTheFly(vae, images, flags.workers, order, str(accelerator.device))


class LatentTextLoss:
    """Chapter 2's loss, on latents. Checkpoints remember which latents (training.Stateful): a run does not continue
    with those of another autoencoder, or of other images, because the U-Net has learned to denoise these."""

    def __init__(
        self,
        schedule: Schedule,
        prediction: str,
        empty: Tensor,
        caption_dropout: float,
        vae: AutoencoderKL,
        images: Images,
        run: Path | None = None,
    ):
        self.schedule, self.prediction, self.caption_dropout, self.run = schedule, prediction, caption_dropout, run
        self.empty = empty  # the empty caption, (M,) token ids or (M, D) embeddings
        self.latents = {"made_by": latent_fingerprint(vae, images), "scaling_factor": vae.cfg.scaling_factor}

    def __call__(self, net: nn.Module, batch: dict[str, Tensor], draw: BatchRandom) -> LossTerms:
        z0, text = sample(batch, draw), batch["text"]  # (B, c, h, w), (B, M) or (B, M, D)
        u, eps = draw.stratified(len(z0)), draw.randn(z0.shape)
        text = drop_captions(text, self.empty.to(text), draw.rand(len(z0)), self.caption_dropout)
        return LossTerms(diffusion_loss(net, self.schedule, self.prediction, z0, u, eps, text=text), u)

    def state_dict(self) -> dict[str, Any]:
        return self.latents

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state != self.latents:
            raise UserError(
                f"{self.run} was trained on the latents of another autoencoder, or of other images, than it would continue with; "
                f"put back {self.run}/start/vae and the images as they were, or begin a new run"
            )
