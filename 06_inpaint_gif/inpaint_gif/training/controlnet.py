"""Training of the ControlNet (train_controlnet.py):
a copy of the U-Net's encoder learns to guide it with a picture and its hole.
"""

from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from common.cli import pick_device
from common.data.dataset import Images
from common.errors import UserError, explain
from common.io.pixels import to_float
from common.io.state_dict import count_parameters, fingerprint
from common.models.find_model import find_root
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.training.latents import encode_images
from common.training.loop import State
from common.training.run import loss_curve_and_model, make_accelerator, run_training
from inpaint_gif.clip.name_encoder import open_model
from inpaint_gif.inpainting.backends import controlnet_image, open_controlnet
from inpaint_gif.training.flags import HoleFlags
from inpaint_gif.training.hole_masks import random_holes
from inpaint_gif.training.holes import HoleTestSet, hole_loss, hole_test_set, load_training_views, save_comparison
from inpaint_gif.training.latent_dataset import ConditionedLatents, encode_text

WIDTHS = {  # {f: widths of the network that reduces the picture f times}; the last is diffusers' default
    1: (16,),
    2: (16, 32),
    4: (16, 32, 64),
    8: (16, 32, 96, 256),
}


class ControlledUNet(nn.Module):
    """The ControlNet and the frozen U-Net.
    A list hides the U-Net from parameters(), so that only the ControlNet is trained.
    """

    def __init__(self, controlnet: ControlNetModel, unet: UNet2DConditionModel):
        super().__init__()
        self.controlnet, self.frozen = controlnet, [unet]

    def forward(self, x: Tensor, t: Tensor, text: Tensor, control: Tensor) -> Tensor:
        """(B, c, h, w) noisy latents, (B,) timesteps, (B, M, D) text, (B, 3, H,
        W) picture with hole -> (B, c, h, w)
        """
        down, middle = self.controlnet(x, t, text, controlnet_cond=control, return_dict=False)
        features = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.frozen[0](x, t, text, return_dict=False, **features)[0]


def train_controlnet(flags: HoleFlags) -> None:
    """Train with settled flags."""
    device = pick_device(flags.device)
    pipeline, root = open_model(flags.model, device), find_root(flags.model)
    check_model(flags.model, pipeline, root)
    views, captions, record = load_training_views(flags, pipeline, model=fingerprint(pipeline.unet, pipeline.vae))
    unet = UNet2DConditionModel.from_pretrained(root, subfolder="unet").requires_grad_(False).eval().to(device)
    net = ControlledUNet(new_controlnet(unet, pipeline.factor, flags.seed), unet)
    accelerator = make_accelerator(flags.precision, device)
    data = encode_views(pipeline, views, captions, flags.holes, flags.seed)
    test = hole_test_set(flags, pipeline.size) if accelerator.is_main_process else None
    sampling = SamplingConfig(flags.guidance, sampler=flags.sampler)

    def draw(state: State, path: Path) -> Path | None:
        if not (
            flags.run_dir / "model"
        ).is_dir():  # diffusers opens the saved ControlNet; the first save may come later
            return None
        return draw_holes(flags, sampling, state.ema.controlnet, test, device, path)

    def finish(state: State) -> dict[str, object]:
        film = f'python 06_inpaint_gif/make_gif.py "番茄炒蛋" --engine controlnet --controlnet {flags.run_dir}'
        curve = loss_curve_and_model(flags.run_dir)
        return {
            "test holes": draw_holes(flags, sampling, None, test, device, flags.run_dir / "samples.png"),
            "loss curve": curve["loss curve"],
            "ControlNet": curve["model"],
            "a film": film,
        }

    run_training(
        "06_inpaint_gif/train_controlnet.py",
        flags,
        net,
        data,
        hole_loss(pipeline, flags.caption_dropout, control_condition),
        accelerator,
        record,
        introduction(flags, views, net, unet, device),
        save=lambda state, folder: state.ema.controlnet.save_pretrained(folder),
        draw=draw,
        finish=finish,
    )


def control_condition(batch: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Arguments of ControlledUNet. mask (B, 1, H, W)"""
    return {"control": controlnet_image(batch["image"], mask.float())}


def introduction(flags: HoleFlags, views: Tensor, net: nn.Module, unet: nn.Module, device: str) -> str:
    pixels = views.shape[-1]
    return (
        f"{flags.data}: {len(views):,} windows of {pixels}x{pixels} with {flags.holes} holes each; "
        f"a ControlNet with {count_parameters(net):,} weights beside a U-Net with {count_parameters(unet):,}, that of {flags.model}, on {device}"
    )


def check_model(name: Path, pipeline: TextToImagePipeline, root: Path) -> None:
    """Refuse a model that cannot have a ControlNet."""
    lacks = {
        "an autoencoder": pipeline.vae is None,
        "a text encoder": not (root / "text_encoder").is_dir(),
        "a U-Net that takes no mask": pipeline.is_inpainting,
    }
    if any(lacks.values()):
        missing = " and ".join(what for what, absent in lacks.items() if absent)
        raise UserError(f"{name} cannot have a ControlNet: it lacks {missing}; choose another --model")
    if pipeline.image_channels != 3 or pipeline.factor not in WIDTHS:
        raise UserError(
            "a ControlNet needs images of three channels, and an autoencoder that reduces them by a factor of "
            f"{', '.join(map(str, WIDTHS))}; {name} has {pipeline.image_channels} channels and a factor of {pipeline.factor}; "
            "choose another --model"
        )


def new_controlnet(unet: UNet2DConditionModel, f: int, seed: int) -> ControlNetModel:
    """A copy of the U-Net's encoder and middle with zero convolutions, and a network that reduces pictures f times."""
    torch.manual_seed(seed)
    try:
        return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=WIDTHS[f]).requires_grad_(True)
    except Exception as problem:  # diffusers supports ControlNets for common U-Nets only
        raise UserError(f"diffusers cannot make a ControlNet for this U-Net ({explain(problem)})") from problem


def encode_views(
    pipeline: TextToImagePipeline, views: Tensor, captions: list[str], holes: int, seed: int
) -> ConditionedLatents:
    """Latents, the pictures they come from, holes and captions.

    A batch holds "image" (B, C, H, W), "holes" (B, K, 1, H, W) uint8 and "text" (B, M, D).
    """
    masks = random_holes(holes * len(views), *views.shape[2:], seed).unflatten(0, (len(views), holes))
    text = encode_text(pipeline, captions)
    conditions = {
        "image": lambda i: to_float(views[i]),
        "holes": lambda i: masks[i],
        "text": lambda i: text.batch(i)[:, 0],
    }
    return ConditionedLatents(encode_images(pipeline.vae, Images("views", views)), conditions)


def draw_holes(
    flags: HoleFlags, sampling: SamplingConfig, net: ControlNetModel | None, test: HoleTestSet, device: str, path: Path
) -> Path:
    """Inpaint the test holes with diffusers' pipeline and save the comparison.
    net: the current weights, None for the saved ones
    """
    backend = open_controlnet(str(flags.model), str(flags.run_dir), sampling, device)
    if net is not None:
        backend.pipe.register_modules(controlnet=net.eval())
    painted = torch.stack(
        [backend(*parts, flags.seed) for parts in zip(test.images, test.masks, test.captions, strict=True)]
    )
    return save_comparison(test, painted, path)
