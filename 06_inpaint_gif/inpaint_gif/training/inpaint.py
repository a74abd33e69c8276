"""Training of the inpainting U-Net (train_inpaint.py):
windows with holes become latents, and the widened U-Net learns to fill them.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from common.cli import pick_device
from common.data.dataset import Images
from common.diffusion.schedules import DiscreteSchedule
from common.errors import UserError
from common.io.pixels import to_float
from common.io.progress import with_progress
from common.io.state_dict import count_parameters
from common.models.find_model import find_root
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.text.conditional import ConditionalUNet
from common.models.text_to_image_folder import save_pipeline
from common.models.unet import UNet
from common.training.latents import encode_images, encoder_batch
from common.training.loop import State
from common.training.record import start_of
from common.training.run import loss_curve_and_model, make_accelerator, run_training
from inpaint_gif.clip.name_encoder import open_model
from inpaint_gif.inpainting.backends import InpaintBackend, inpainting_channels
from inpaint_gif.training.flags import HoleFlags
from inpaint_gif.training.hole_masks import random_holes
from inpaint_gif.training.holes import HoleTestSet, hole_loss, hole_test_set, load_training_views, save_comparison
from inpaint_gif.training.latent_dataset import ConditionedLatents, encode_text, to_half


def train_inpaint(flags: HoleFlags) -> None:
    """Train with settled flags."""
    device = pick_device(flags.device)
    pipeline = starting_model(flags, device)
    views, captions, record = load_training_views(flags, pipeline)
    accelerator = make_accelerator(flags.precision, device)
    data = encode_views(pipeline, views, captions, flags.holes, flags.seed)
    test = hole_test_set(flags, pipeline.size) if accelerator.is_main_process else None
    sampling = SamplingConfig(flags.guidance, sampler=flags.sampler)

    def trained(state: State) -> TextToImagePipeline:
        return replace(pipeline, unet=state.ema.unet)

    def draw(state: State, path: Path) -> Path:
        return draw_holes(trained(state), sampling, flags.seed, test, path)

    def finish(state: State) -> dict[str, object]:
        film = f'python 06_inpaint_gif/make_gif.py "番茄炒蛋" --engine inpaint --model {flags.run_dir}'
        return {
            "test holes": draw(state, flags.run_dir / "samples.png"),
            **loss_curve_and_model(flags.run_dir),
            "a film": film,
        }

    run_training(
        "06_inpaint_gif/train_inpaint.py",
        flags,
        ConditionalUNet(pipeline.unet),
        data,
        hole_loss(pipeline, flags.caption_dropout, lambda batch, hole: {"extra": hole}),
        accelerator,
        record,
        introduction(flags, views, pipeline, device),
        save=lambda state, folder: save_inpaint(folder, trained(state)),
        draw=draw,
        finish=finish,
        save_start=lambda folder: save_inpaint(folder, pipeline),
    )


def introduction(flags: HoleFlags, views: Tensor, pipeline: TextToImagePipeline, device: str) -> str:
    c, pixels, side = pipeline.latent_channels, views.shape[-1], views.shape[-1] // pipeline.factor
    return (
        f"{flags.data}: {len(views):,} windows of {pixels}x{pixels} with {flags.holes} holes each, as latents {c} x {side} x {side}; "
        f"U-Net with {count_parameters(pipeline.unet):,} weights, begun from {flags.model}, on {device}"
    )


# -------------------------------------------------------------------------------------------------------- the network


def starting_model(flags: HoleFlags, device: str) -> TextToImagePipeline:
    """The model to begin with, its U-Net widened; a resumed run has a copy of it."""
    root = start_of(flags, flags.model)
    pipeline = open_model(root, device)
    lacks = {"an autoencoder": pipeline.vae is None, "a text encoder": not (find_root(root) / "text_encoder").is_dir()}
    if any(lacks.values()):
        missing = " and ".join(what for what, absent in lacks.items() if absent)
        raise UserError(f"{flags.model} is no Stable Diffusion folder: it lacks {missing}; choose another --model")
    if not isinstance(pipeline.schedule, DiscreteSchedule):
        raise UserError(
            f"the schedule '{pipeline.schedule.name}' of {flags.model} has no discrete timesteps, "
            "which a Stable Diffusion folder stores; choose another --model"
        )
    return pipeline if pipeline.is_inpainting else replace(pipeline, unet=widened(pipeline.unet).to(device))


def widened(unet: UNet) -> UNet:
    """The same network with input channels for a mask and c latents more;
    their weights are zero, so its output is unchanged.
    """
    c = unet.cfg.in_channels
    wide = UNet(replace(unet.cfg, in_channels=2 * c + 1))
    state = unet.state_dict()
    old = state["conv_in.weight"]  # (width, c, 3, 3)
    wide.load_state_dict(state | {"conv_in.weight": torch.cat([old, old.new_zeros(len(old), c + 1, 3, 3)], dim=1)})
    return wide


def save_inpaint(folder: Path, pipeline: TextToImagePipeline, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder for StableDiffusionInpaintPipeline.from_pretrained, each file whole or not at all."""
    save_pipeline(folder, pipeline, dtype, "StableDiffusionInpaintPipeline")


# ----------------------------------------------------------------------------------------------------------- the data


@torch.no_grad()
def encode_views(
    pipeline: TextToImagePipeline, views: Tensor, captions: list[str], holes: int, seed: int
) -> ConditionedLatents:
    """Everything that the training needs, encoded once; otherwise every epoch would encode every masked image again.

    A batch holds "holes" (B, K, 1 + c, h, w), see inpainting_channels, and "text" (B, M, D).
    """
    masks = random_holes(holes * len(views), *views.shape[2:], seed).view(len(views), holes, 1, *views.shape[2:])
    at_a_time = encoder_batch(views, holes)
    batches = zip(views.split(at_a_time), masks.split(at_a_time), strict=True)
    encoded = []
    for some, mask in with_progress("encoding with holes", batches, -(-len(views) // at_a_time), "batch"):
        repeated = to_float(some).repeat_interleave(holes, 0)
        channels = to_half(inpainting_channels(pipeline, repeated, mask.flatten(0, 1).float()))
        encoded.append(channels.unflatten(0, (len(some), holes)))
    channels, text = torch.cat(encoded), encode_text(pipeline, captions)  # (N, K, 1 + c, h, w) float16
    latents = encode_images(pipeline.vae, Images("views", views))
    return ConditionedLatents(latents, {"holes": lambda i: channels[i].float(), "text": lambda i: text.batch(i)[:, 0]})


def draw_holes(
    pipeline: TextToImagePipeline, sampling: SamplingConfig, seed: int, test: HoleTestSet, path: Path
) -> Path:
    """Inpaint the test holes and save the comparison."""
    painted = InpaintBackend(pipeline, sampling).paint(test.images, test.masks, test.captions, seed)
    return save_comparison(test, painted, path)
