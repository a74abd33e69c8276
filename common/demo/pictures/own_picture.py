"""What can be done to a picture of one's own: img2img, the repair of a mosaic, and inpainting of what was brushed over.

Every picture is cut to a square of the model's size, 128 x 128 pixels.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from common.data.creatures.dataset import CREATURE_IMAGES
from common.data.dishes.dataset import DISH_IMAGES
from common.demo.pictures.models import FILMS, RESTORATION, chapter_module, creature_pipeline
from common.diffusion.samplers import initial_noise
from common.io.pixels import to_float
from common.models.pipeline import SamplingConfig, last_levels
from common.random import Noise

SIZE = 128
BLOCKS = (8, 16, 32)  # pixels a side of a mosaic's blocks
TASKS = ("img2img", "mosaic", "inpaint")
HOLE = 0.25  # part of a pixel that must be brushed over


class PictureMoment(NamedTuple):
    """The state after a step: pictures by name, each (3, 128, 128) in [-1, 1], in the order in which to show them."""

    done: int
    total: int
    pictures: dict[str, Tensor]  # given, and result; a mosaic and its bicubic repair; the hole


def drawn_picture(kind: str, index: int) -> Tensor:
    """A picture to try: creature or dish number `index` of the test split. (3, 128, 128) in [-1, 1]"""
    images = {"creature": CREATURE_IMAGES, "dish": DISH_IMAGES}[kind]
    attributes, pose = images.sample(0, "test", index)
    return to_float(torch.from_numpy(images.draw(attributes, SIZE, pose)))


def to_picture(image: Image.Image) -> Tensor:
    """The middle square of a picture, as the models take it. Transparent parts become white. (3, 128, 128) in [-1, 1]"""
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    square = ImageOps.fit(white.convert("RGB"), (SIZE, SIZE), Image.Resampling.LANCZOS)
    return to_float(torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1))


def to_hole(brushed: Image.Image) -> Tensor:
    """Where the brush was, from the opacity of its layer. (1, 128, 128) in {0, 1}"""
    opacity = ImageOps.fit(brushed.convert("RGBA").getchannel("A"), (SIZE, SIZE), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(opacity) > 255 * HOLE).float()[None]


def change_picture(
    picture: Tensor, prompt: str, strength: float, w: float, steps: int, seed: int
) -> Iterator[PictureMoment]:
    """img2img (SDEdit): noised part of the way, then denoised with the prompt. picture (3, 128, 128)"""
    yield from towards_prompt({"given": picture}, picture, prompt, strength, w, steps, seed)


def repair_mosaic(
    picture: Tensor, prompt: str, block: int, strength: float, w: float, steps: int, seed: int
) -> Iterator[PictureMoment]:
    """A mosaic over the whole picture, repaired without a model (bicubic) and by img2img."""
    degradation = chapter_module(RESTORATION, "finetune_diffusers.data.degradations").Degradation
    mosaic = degradation("mosaic", block, 1.0)
    mask = mosaic.mask(1, SIZE, SIZE)
    damaged = mosaic.corrupt(picture[None], mask)
    bicubic = mosaic.classical_repair(damaged, mask)
    shown = {"given": picture, "mosaic": damaged[0], "bicubic": bicubic[0]}
    yield from towards_prompt(shown, damaged[0], prompt, strength, w, steps, seed)


def towards_prompt(
    shown: dict[str, Tensor], start: Tensor, prompt: str, strength: float, w: float, steps: int, seed: int
) -> Iterator[PictureMoment]:
    """img2img from `start`, with the pictures `shown` in front of its result."""
    pipeline = creature_pipeline()
    config = SamplingConfig(w, sampler=f"dpmpp_2m:{steps}", seed=seed)
    total = len(last_levels(pipeline.noise_levels(config), strength))
    for step in pipeline.img2img_steps(start[None], [prompt], strength, config):
        last = step.i + 1 == total
        result = pipeline.decode(step.x if last else step.x0)[0]
        yield PictureMoment(step.i + 1, total, shown | {"result": result})


def repaint_hole(
    picture: Tensor, hole: Tensor, prompt: str, w: float, steps: int, seed: int
) -> Iterator[PictureMoment]:
    """RePaint with chapter 4's model. Known pixels stay exactly what they were.

    hole   (1, 128, 128), 1 is repainted
    steps  noise levels; RePaint takes most stretches of them four times
    """
    backends = chapter_module(FILMS, "inpaint_gif.inpainting.backends")
    sampling = chapter_module(FILMS, "inpaint_gif.inpainting.repaint")
    config = SamplingConfig(w, sampler=f"ddim:{steps}")
    pipeline, noise = creature_pipeline(), Noise(seed)
    backend: Any = backends.CompositedBackend(backends.RepaintBackend(pipeline, config))
    known = backend.backend.known(picture, hole)
    levels, latent_hole = pipeline.noise_levels(config), backends.latent_hole(hole, pipeline.factor)
    total = len(sampling.jump_schedule(len(levels))) - 1
    denoise, x = pipeline.guided([prompt], config), initial_noise(levels, tuple(known.shape), noise)
    grey = torch.where(hole > 0, torch.zeros_like(picture), picture)
    for step in sampling.repaint(denoise, x, levels, known, latent_hole, noise):
        last = step.i + 1 == total
        painted = pipeline.decode(step.x if last else step.x0)[0]
        result = backend.join(picture, painted, hole) if last else torch.where(hole > 0, painted, picture)
        yield PictureMoment(step.i + 1, total, {"given": picture, "hole": grey, "result": result})
