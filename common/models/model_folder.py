"""A model as a folder that `diffusers` opens unchanged.

model/model_index.json, model/unet/{config.json, diffusion_pytorch_model.safetensors}, model/scheduler/...
model/transformer/..., model/scheduler/...                a Diffusion Transformer (DiTTransformer2DModel)
vae/{config.json, diffusion_pytorch_model.safetensors}    an autoencoder (AutoencoderKL)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from common.diffusion.denoiser import ClipMode
from common.diffusion.diffusers_scheduler import VERSION, scheduler_from_diffusers, scheduler_to_diffusers
from common.diffusion.schedules import Schedule
from common.errors import UserError
from common.io.files import read_json, write_json
from common.io.state_dict import build_strictly, read_component, write_weights
from common.io.weight_files import DIFFUSERS as WEIGHTS
from common.io.weight_files import look_for_weights
from common.models.diffusers_configs import (
    dit_from_diffusers,
    dit_to_diffusers,
    unet_from_diffusers,
    unet_to_diffusers,
    vae_from_diffusers,
    vae_to_diffusers,
)
from common.models.dit import DiT
from common.models.find_model import find_root, is_dit, scheduler_file, unet_folder
from common.models.single_file.conversion import as_folder
from common.models.unet import ResBlock, UNet
from common.models.vae import AutoencoderKL


class Model(NamedTuple):
    """A trained network and everything needed to sample from it."""

    net: UNet | DiT
    schedule: Schedule
    prediction: str
    clip_x0: ClipMode


def save_model(folder: Path, model: Model, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder for DDPMPipeline.from_pretrained(folder). Each file is replaced whole or not at all.

    For a DiT without an autoencoder diffusers has no pipeline: its parts are written, which diffusers opens one by one.
    """
    if isinstance(model.net, DiT):
        part, config = "transformer", dit_to_diffusers(model.net.cfg)
    else:
        part, config = "unet", unet_to_diffusers(model.net.cfg)
    learned_variance = model.net.cfg.text_dim is None and model.net.cfg.out_channels == 2 * model.net.cfg.in_channels
    scheduler = scheduler_to_diffusers(model.schedule, model.prediction, model.clip_x0, learned_variance)
    write_json(folder / part / "config.json", config)
    write_weights(folder / part / WEIGHTS, model.net.state_dict(), dtype)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    unconditional = model.net.cfg.classes is None and model.net.cfg.text_dim is None
    if (
        part == "unet" and unconditional and model.prediction != "edm"
    ):  # DDPMPipeline knows no conditions and does not scale its input
        parts = {"unet": ["diffusers", config["_class_name"]], "scheduler": ["diffusers", scheduler["_class_name"]]}
        write_json(folder / "model_index.json", {"_class_name": "DDPMPipeline", "_diffusers_version": VERSION} | parts)


def load_model(folder: Path, device: str | torch.device = "cpu") -> Model:
    """Open a model in any form that find_root knows; its network is unconditional, class- or text-conditional."""
    root = find_root(Path(folder))
    net: UNet | DiT = load_dit(root / "transformer") if is_dit(root) else load_unet(unet_folder(root))
    return Model(net.to(device), *scheduler_from_diffusers(read_json(scheduler_file(root))))


def load_unet(folder: Path) -> UNet:
    """The U-Net of one folder (config.json and weights), in float32, every key checked."""
    cfg = unet_from_diffusers(read_json(folder / "config.json"))
    return build_strictly(lambda: UNet(cfg), *read_component(folder, WEIGHTS)).eval()


def load_dit(folder: Path) -> DiT:
    """The Diffusion Transformer of one folder (config.json and weights), in float32, every key checked."""
    cfg = dit_from_diffusers(read_json(folder / "config.json"))
    return build_strictly(lambda: DiT(cfg), *read_component(folder, WEIGHTS)).eval()


def start_from(net: UNet | DiT, other: UNet | DiT, folder: Path) -> None:
    """Copy the weights of a network of the same build, or of one with the highest resolution less; the size of its
    images may differ.
    """
    if isinstance(net, UNet) and isinstance(other, UNet) and is_grown(net, other):
        grow(net, other)
        return
    if unlike := same_build(net, other):
        raise UserError(
            f"the network in {folder} is of another build ({'; '.join(unlike)}); leave out --start, or give its settings"
        )
    net.load_state_dict(other.state_dict())


def same_build(net: UNet | DiT, other: UNet | DiT, free: Sequence[str] = ("size",)) -> list[str]:
    """The settings in which two networks differ, without those of `free`."""
    mine, theirs = vars(net.cfg), vars(other.cfg)
    return [
        f"{name} = {theirs.get(name)} against {mine[name]}"
        for name in mine
        if name not in free and mine[name] != theirs.get(name)
    ]


def is_grown(net: UNet, other: UNet) -> bool:
    """Whether `net` is `other` with one more resolution on top, as wide as the next and without attention."""
    mine, theirs = vars(net.cfg), vars(other.cfg)
    levels = {"channels", "attention", "heads"}
    alike = all(mine[name] == theirs[name] for name in mine if name not in {*levels, "size"})
    below = all((mine[name] or ())[1:] == (theirs[name] or ()) for name in levels)
    return alike and below and net.cfg.channels[0] == other.cfg.channels[0] and not net.cfg.attention[0]


@torch.no_grad()
def grow(net: UNet, other: UNet) -> UNet:
    """Copy the weights of `other` into `net`, for which `is_grown(net, other)` holds: `net` has one resolution more, for
    larger images, and begins with what a smaller network has learned. Returns net.

    The new resolution is the highest; the old ones keep the pixels they had, now further apart. At first it only passes
    every second pixel down and the answer up. The timesteps keep their meaning: the variance of the noise stays 1 where
    pixels are left out, and would fall where they are averaged.

    Where the convolutions at both ends look at single pixels, net(x)[..., ::2, ::2] equals other(x[..., ::2, ::2])
    exactly; otherwise they see nearer neighbours than before, which training corrects.
    """
    for name, child in other.named_children():
        if name != "down_blocks":
            net.get_submodule(name).load_state_dict(child.state_dict(), strict=name != "up_blocks")
    for i, block in enumerate(other.down_blocks):
        net.down_blocks[i + 1].load_state_dict(block.state_dict())
    levels = len(other.down_blocks)  # up blocks are counted from the lowest resolution
    for block in (net.down_blocks[0], net.up_blocks[levels]):
        for resnet in (m for m in block.modules() if isinstance(m, ResBlock)):
            for parameter in resnet.conv2.parameters():
                nn.init.zeros_(parameter)
    pass_through(net.get_submodule("down_blocks.0.downsamplers.0.conv"))
    pass_through(net.get_submodule(f"up_blocks.{levels - 1}.upsamplers.0.conv"))
    for i in range(net.cfg.layers + 1):  # reads what comes from below, followed by a skip connection
        pass_through(net.get_submodule(f"up_blocks.{levels}.resnets.{i}.conv_shortcut"))
    return net


def pass_through(convolution: nn.Module) -> None:
    """Let a convolution return the pixel at its centre, in its first channels."""
    weight, bias = convolution.parameters()
    nn.init.dirac_(weight)
    nn.init.zeros_(bias)


# -------------------------------------------------------------------------------------------------- autoencoder


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
