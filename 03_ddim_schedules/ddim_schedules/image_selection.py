"""Real images by index, class or file, and the network to look at them with."""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from common.data import Images, load
from common.data.sources.decoding import Unreadable, decode_all, opened
from common.diffusion.denoiser import Denoiser
from common.diffusion.schedules import DiscreteSchedule
from common.errors import UserError
from common.io.pixels import to_float
from common.models.model_folder import Model, load_model


class Wanted(NamedTuple):
    size: int
    channels: int


def open_model(folder: Path, device: str) -> tuple[Model, Denoiser, Denoiser]:
    """(model, its denoiser, the same without clipping: inversion needs that)"""
    model = load_model(folder, device)
    if model.net.cfg.text_dim or model.net.cfg.classes:
        raise UserError(f"{folder} is conditional on a class or a text; this program takes unconditional models")
    if not isinstance(model.schedule, DiscreteSchedule):
        raise UserError(f"{folder} was trained on the schedule '{model.schedule.name}'; this program needs a discrete-time schedule, such as linear or cosine")
    return model, Denoiser(model.net, model.prediction, model.clip_x0), Denoiser(model.net, model.prediction, clip_x0=False)


def wants(model: Model) -> Wanted:
    return Wanted(model.net.cfg.size, model.net.cfg.in_channels)


def check_alike(words: tuple[str, ...]) -> None:
    """Image files must be of one size: each would be cut and scaled in its own way, and the walk would show that too."""
    sizes = {}
    for word in words:
        if Path(word).suffix and Path(word).is_file():
            with suppress(Unreadable), opened(word) as image:  # find_image says what is wrong with it
                sizes[word] = image.size
    if len(set(sizes.values())) > 1:
        (one, (w, h)), (other, (w2, h2)) = list(sizes.items())[:2]
        raise UserError(f"{one} is {w}x{h} pixels but {other} is {w2}x{h2}; give images of one size")


def find_image(word: str, wanted: Wanted, data: str, data_dir: Path) -> Tensor:
    """The image that a word of the command line means, as the model wants it. (1, C, S, S)"""
    path = Path(word)
    if path.suffix and path.is_file():
        return to_float(decode_all([path], wanted.size, channels=wanted.channels)[0])
    if path.suffix:
        raise UserError(f"there is no image file {word}; give an index, class:3, or the path of an image")
    images = load(data, data_dir=data_dir, split="test", channels=wanted.channels)
    index = index_of(word, images)
    return to_float(Images(data, images.pixels[index : index + 1]).resized(wanted.size).pixels)


def index_of(word: str, images) -> int:
    if word.startswith("class:"):
        wanted = word.removeprefix("class:")
        if images.labels is None or wanted not in images.classes:
            raise UserError(f"{images.name} has no class '{wanted}'; its classes are {', '.join(images.classes) or 'not known'}")
        return int(torch.nonzero(images.labels == images.classes.index(wanted))[0])
    if not word.isdigit() or int(word) >= len(images):
        raise UserError(f"'{word}' is no image: give an index from 0 to {len(images) - 1}, class:3, or the path of an image file")
    return int(word)
