"""A film from the name of a dish: the dish appears out of noise, a camera leaves it, and the way is painted."""

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data.dishes.captions import names_of
from common.data.dishes.menu import DISHES
from common.demo.pictures.models import FILMS, chapter_module
from common.models.pipeline import SamplingConfig

CAMERAS = ("zoom-out", "zoom-in", "right", "left", "up", "down", "up-right", "down-left", "ring")
CANDIDATES = 4  # drawn pictures, of which the film uses the one that is nearest to the name
FRAMES_PER_SECOND = 12
LONGEST_NAME, MOST_FRAMES, MOST_STEPS = 60, 60, 50


class FilmMoment(NamedTuple):
    """The state after a step of drawing or after a painted keyframe."""

    done: int
    total: int
    stage: str  # draw, paint, or film
    pictures: Tensor  # (n, 3, H, W): the candidates, or the keyframe with its hole in grey and painted
    chosen: int | None  # which candidate the film begins with
    nearest: tuple[tuple[str, float], ...]  # the nearest dishes of the menu, with their cosines; empty for one of it
    film: bytes | None  # an animated WebP, at the end


def dish_names(language: str) -> list[str]:
    """A name of every dish of the menu. language: en or zh"""
    return [names_of(dish, language)[0] for dish in DISHES]


@cache
def chapter() -> Any:
    """What is used of chapter 6."""
    modules = {
        name: chapter_module(FILMS, f"inpaint_gif.animation.{name}")
        for name in ("camera", "canvas", "flags", "first_picture", "render", "timing", "writers")
    }
    return SimpleNamespace(**modules, compositing=chapter_module(FILMS, "inpaint_gif.inpainting.compositing"))


@cache
def opened(steps: int) -> tuple[Any, Any, Any]:
    """Flags, models and backend of chapter 6, with the shipped weights."""
    flags = chapter().flags.FilmFlags("米饭", sampler=f"dpmpp_2m:{steps}", device="cpu")
    models = chapter().first_picture.load_models(flags)
    return flags, models, chapter().render.open_painter(flags, models, False)


@torch.inference_mode()
def make_film(name: str, camera: str, frames: int, steps: int, seed: int) -> Iterator[FilmMoment]:
    """Draw candidates, choose one by its CLIP embedding, paint what the camera shows, render a loop.

    name  of the dish, in Chinese, or in English as it is on the menu
    """
    ch6 = chapter()
    flags, models, backend = opened(steps)
    dish_names_of_clip = chapter_module(FILMS, "inpaint_gif.clip.dish_names")
    query = dish_names_of_clip.parse_dish_name(models.clip, name)
    nearest = () if query.dish else query.nearest
    pipeline = models.dish_model.pipeline
    path = ch6.camera.CameraPath.plan(ch6.camera.Move.parse(camera), pipeline.size, pipeline.size, flags.new_fraction)
    total = steps + len(path.stops()) + 1

    config = SamplingConfig(ch6.first_picture.GUIDANCE, sampler=flags.sampler, seed=seed)
    for step in pipeline.txt2img_steps([query.name] * CANDIDATES, config):
        done = step.i + 1
        drawn = pipeline.decode(step.x if done == steps else step.x0)
        yield FilmMoment(done, total, "draw", drawn, None, nearest, None)
    best = int((models.clip.encode_image(drawn) @ models.clip.encode_text([query.name])[0]).argmax())
    yield FilmMoment(steps, total, "draw", drawn, best, nearest, None)

    canvas = ch6.canvas.FilmCanvas(drawn[best])
    for k, keyframe in enumerate(ch6.camera.paint(canvas, path, backend, query.name, seed), 1):
        pair = torch.stack([keyframe.moved, keyframe.image])
        yield FilmMoment(steps + k, total, "paint", pair, best, nearest, None)

    times = ch6.timing.frame_times(frames, "pingpong", "smooth", path.returns)
    film = [
        ch6.compositing.enlarged(frame, flags.scale(pipeline.size), flags.sharpen)
        for frame in ch6.timing.close_loop(ch6.camera.render_frames(canvas, path, times), frames)
    ]
    yield FilmMoment(total, total, "film", drawn[best : best + 1], best, nearest, webp(film))


def webp(frames: list[Tensor]) -> bytes:
    """The frames, each (3, H, W) in [-1, 1], as an animation that repeats."""
    writers = chapter().writers
    pixels: np.ndarray = writers.to_pixels(frames)
    durations = writers.milliseconds(len(pixels), FRAMES_PER_SECOND)
    return writers.webp_bytes(pixels, writers.WEBP_QUALITIES[0], durations, True)
