"""What interpolation and inversion start from: an unconditional model, and images given by index, class or file."""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from common.data import Images, load
from common.data.sources.decoding import UnreadableImage, decode_all, opened
from common.diffusion.denoiser import Denoiser
from common.diffusion.schedules import DiscreteSchedule, Schedule
from common.errors import UserError
from common.io.pixels import to_float
from common.models.model_folder import load_model


class UnconditionalModel(NamedTuple):
    schedule: Schedule
    denoise: Denoiser
    denoise_unclipped: Denoiser  # for inversion, which cannot restore what clipping has removed
    channels: int  # of its images
    size: int  # pixels a side


def open_model(folder: Path, device: str) -> UnconditionalModel:
    """The model of a run folder or a diffusers folder. UserError if it is conditional or its schedule continuous."""
    model = load_model(folder, device)
    cfg = model.net.cfg
    if cfg.text_dim or cfg.classes:
        raise UserError(f"{folder} is conditional on a class or a text; this program takes unconditional models")
    if not isinstance(model.schedule, DiscreteSchedule):
        raise UserError(
            f"{folder} was trained on the schedule '{model.schedule.name}'; "
            "this program needs a discrete-time schedule, such as linear or cosine"
        )
    denoise, denoise_unclipped = (Denoiser(model.net, model.prediction, clip_x0) for clip_x0 in (model.clip_x0, False))
    return UnconditionalModel(model.schedule, denoise, denoise_unclipped, cfg.in_channels, cfg.size)


def check_equal_sizes(names: tuple[str, ...]) -> None:
    """Refuse image files of different sizes, because each would be cropped and scaled differently."""
    sizes = {}
    for name in names:
        if Path(name).suffix and Path(name).is_file():
            with suppress(UnreadableImage), opened(name) as image:  # load_image says what is wrong with such a file
                sizes[name] = image.size
    if len(set(sizes.values())) > 1:
        (one, (w, h)), (other, (w2, h2)) = list(sizes.items())[:2]
        raise UserError(f"{one} is {w}x{h} pixels but {other} is {w2}x{h2}; give images of one size")


def load_image(name: str, model: UnconditionalModel, data: str, data_dir: Path) -> Tensor:
    """An image as the model takes it, (1, C, S, S) in [-1, 1].

    name  index of a test image of `data`, class:3 for the first one of a class, or an image file
    """
    path = Path(name)
    if path.suffix and path.is_file():
        return to_float(decode_all([path], model.size, channels=model.channels)[0])
    if path.suffix:
        raise UserError(f"there is no image file {name}; give an index, class:3, or the path of an image")
    images = load(data, data_dir=data_dir, split="test", channels=model.channels)
    index = index_of(name, images)
    return to_float(Images(data, images.pixels[index : index + 1]).resized(model.size).pixels)


def index_of(name: str, images: Images) -> int:
    """The index that "7" or "class:3" stands for."""
    if name.startswith("class:"):
        wanted = name.removeprefix("class:")
        if images.labels is None or wanted not in images.classes:
            raise UserError(
                f"{images.name} has no class '{wanted}'; its classes are {', '.join(images.classes) or 'not known'}"
            )
        return int(torch.nonzero(images.labels == images.classes.index(wanted))[0])
    if not name.isdigit() or int(name) >= len(images):
        raise UserError(
            f"'{name}' is no image: give an index from 0 to {len(images) - 1}, class:3, or the path of an image file"
        )
    return int(name)
