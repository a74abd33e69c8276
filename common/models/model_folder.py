"""A model as a folder that `diffusers` opens unchanged.

model/model_index.json, model/unet/{config.json, diffusion_pytorch_model.safetensors}, model/scheduler/...
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from common.diffusion.denoiser import ClipMode
from common.diffusion.diffusers_scheduler import VERSION, scheduler_from_diffusers, scheduler_to_diffusers
from common.diffusion.schedules import Schedule
from common.errors import UserError
from common.io.files import read_json, write_json
from common.io.state_dict import build_strictly, read_component, write_weights
from common.io.weight_files import DIFFUSERS as WEIGHTS
from common.models.diffusers_configs import unet_from_diffusers, unet_to_diffusers
from common.models.find_model import find_root, scheduler_file, unet_folder
from common.models.unet import UNet


class Model(NamedTuple):
    """A trained network and everything needed to sample from it."""

    net: UNet
    schedule: Schedule
    prediction: str
    clip_x0: ClipMode


def save_model(folder: Path, model: Model, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder for DDPMPipeline.from_pretrained(folder). Each file is replaced whole or not at all."""
    unet = unet_to_diffusers(model.net.cfg)
    learned_variance = model.net.cfg.text_dim is None and model.net.cfg.out_channels == 2 * model.net.cfg.in_channels
    scheduler = scheduler_to_diffusers(model.schedule, model.prediction, model.clip_x0, learned_variance)
    write_json(folder / "unet" / "config.json", unet)
    write_weights(folder / "unet" / WEIGHTS, model.net.state_dict(), dtype)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    unconditional = model.net.cfg.classes is None and model.net.cfg.text_dim is None
    if unconditional and model.prediction != "edm":  # DDPMPipeline knows no conditions and does not scale its input
        parts = {"unet": ["diffusers", unet["_class_name"]], "scheduler": ["diffusers", scheduler["_class_name"]]}
        write_json(folder / "model_index.json", {"_class_name": "DDPMPipeline", "_diffusers_version": VERSION} | parts)


def load_model(folder: Path, device: str | torch.device = "cpu") -> Model:
    """Open a model in any form that find_root knows; its U-Net is unconditional, class- or text-conditional."""
    root = find_root(Path(folder))
    net = load_unet(unet_folder(root)).to(device)
    return Model(net, *scheduler_from_diffusers(read_json(scheduler_file(root))))


def load_unet(folder: Path) -> UNet:
    """The U-Net of one folder (config.json and weights), in float32, every key checked."""
    cfg = unet_from_diffusers(read_json(folder / "config.json"))
    return build_strictly(lambda: UNet(cfg), *read_component(folder, WEIGHTS)).eval()


def start_from(net: UNet, other: UNet, folder: Path) -> None:
    """Copy the weights of a U-Net of the same build; the size of its images may differ."""
    if unlike := same_build(net, other):
        raise UserError(
            f"the U-Net in {folder} is of another build ({'; '.join(unlike)}); leave out --start, or give its settings"
        )
    net.load_state_dict(other.state_dict())


def same_build(net: UNet, other: UNet, free: Sequence[str] = ("size",)) -> list[str]:
    """The settings in which two networks differ, without those of `free`."""
    mine, theirs = vars(net.cfg), vars(other.cfg)
    return [
        f"{name} = {theirs[name]} against {mine[name]}"
        for name in mine
        if name not in free and mine[name] != theirs[name]
    ]
