"""Make a film: first picture -> canvas -> frames -> file."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from common.cli import check_writable, pick_device
from common.diffusion.sampler_spec import Sampler
from common.errors import UserError
from common.models.pipeline import SamplingConfig
from common.viz import save_picture
from inpaint_gif.animation import writers
from inpaint_gif.animation.camera import CameraPath, Keyframe, Move, paint, render_frames
from inpaint_gif.animation.canvas import FilmCanvas
from inpaint_gif.animation.first_picture import DishModels, english_name, first_picture, load_models
from inpaint_gif.animation.flags import FRAME, FilmFlags
from inpaint_gif.animation.timing import check_timing, close_loop, frame_times
from inpaint_gif.inpainting.backends import BackendConfig, CompositedBackend, open_backend
from inpaint_gif.inpainting.compositing import enlarged, seam
from inpaint_gif.inpainting.published import PUBLISHED_GUIDANCE, reads_english_only


def check_film(flags: FilmFlags) -> None:
    """Refuse what can be refused before a network is opened."""
    file, image = flags.file, flags.image
    if not flags.name.strip():
        raise UserError("the name of the dish is empty; give one in Chinese, for instance 番茄炒蛋")
    if image and not image.is_file():
        raise UserError(f"there is no image file {image}")
    if image and flags.dish:
        raise UserError("--image gives a picture and --dish a model that draws one; give only one of them")
    check_timing(flags.frames, flags.loop, flags.chosen_ease)
    kind = writers.film_format(file)
    if file.is_dir():
        raise UserError(f"{file} is a folder; give --out the name of a file, such as {file / 'film.gif'}")
    check_writable(file, "--out")
    if image and image.resolve() in (file.resolve(), flags.sheet.resolve()):
        raise UserError(f"the film or its sheet would be written over {image}; choose another --out")
    if kind == ".gif":
        writers.check_gif(flags.frames, flags.fps, flags.colours, flags.palette, flags.dither)
    elif kind == ".mp4":
        writers.check_ffmpeg()
    Sampler.parse(flags.sampler)
    plan_path(flags, flags.size or FRAME)


# ----------------------------------------------------------------------------------------------------------- the film


def make_film(flags: FilmFlags) -> None:
    """Draw the dish, paint what the camera shows, render the frames, write the film and its contact sheet."""
    began, flags = time.perf_counter(), replace(flags, device=pick_device(flags.device))
    check_film(flags)
    models = load_models(flags)
    for remark in models.query.remarks if models.query else ():
        print(f"note: {remark}", file=sys.stderr)
    size = flags.size or (models.dish_model.size if models.dish_model else FRAME)
    # a film that needs too much memory is refused before anything is drawn
    path = plan_path(flags, size)
    in_english = bool(flags.painting_model) and reads_english_only(str(flags.painting_model))
    backend = open_painter(flags, models, in_english)
    if backend.native and backend.native < size:
        print(f"note: the keyframes are painted at {backend.native} x {backend.native} and enlarged", file=sys.stderr)
    picture = first_picture(flags, models, size)

    canvas, keyframes = FilmCanvas(picture), []
    for keyframe in paint(canvas, path, backend, painting_prompt(flags, models, in_english), flags.seed):
        keyframes.append(keyframe)
        if keyframe.new:
            corner = " corner" if keyframe.stop.corner else ""
            print(f"  painted {keyframe.stop.name}{corner}: {max(1, round(100 * keyframe.new))} % new")
    painted = time.perf_counter()
    written = write_frames(flags, canvas, path)
    sheet = save_picture(writers.contact_sheet(picture, keyframes), flags.sheet)
    print(f"{written}\n{sheet}")
    print(seam_summary(keyframes))
    total = time.perf_counter() - began
    print(f"{total:.1f} s in all, {painted - began:.1f} s of them until everything was painted, on {flags.device}")


def plan_path(flags: FilmFlags, size: int) -> CameraPath:
    """The path of the camera; a film that needs too much memory is refused. size: side of the keyframes in pixels"""
    side = size * flags.scale(size)
    writers.check_memory(2, side, side)  # before the path is planned pixel by pixel
    path = CameraPath.plan(Move.parse(flags.camera), size, size, flags.new_fraction)
    path = path.around() if flags.loop == "round" else path
    writers.check_memory(flags.frames, side, side, len(path.stops()))
    return path


def write_frames(flags: FilmFlags, canvas: FilmCanvas, path: CameraPath) -> writers.FilmFile:
    """Render the painted canvas along the path and write the film."""
    times = frame_times(flags.frames, flags.loop, flags.chosen_ease, path.returns)
    film = close_loop(render_frames(canvas, path, times), flags.frames)
    scale = flags.scale(path.height)
    max_bytes = round(1000 * flags.max_kb) if flags.max_kb else None
    gif = (flags.colours, flags.palette, flags.dither)
    frames = [enlarged(frame, scale, flags.sharpen) for frame in film]
    return writers.write_film(frames, flags.file, flags.fps, flags.loop != "once", max_bytes, *gif)


def seam_summary(keyframes: Sequence[Keyframe]) -> str:
    """The mean visibility of the edges of all holes (compositing.seam), as a line to print."""
    found = torch.tensor([seam(k.image, k.mask) for k in keyframes if 0 < k.new < 1])
    if not len(found):
        return "nothing had to be painted"
    return f"seams: {float(found.mean()):.2f} times the jumps nearby, over {len(found)} edges (1 is invisible)"


# ------------------------------------------------------------------------------------------------ the painting model


def open_painter(flags: FilmFlags, models: DishModels, in_english: bool) -> CompositedBackend:
    """The inpainting backend; RePaint without a model of its own uses the one that draws the dish."""
    guidance = flags.paint_guidance
    if guidance is None:
        guidance = PUBLISHED_GUIDANCE if in_english else 2.0
    return open_backend(
        BackendConfig(
            flags.chosen_engine,
            flags.painting_model,
            flags.controlnet,
            SamplingConfig(guidance, sampler=flags.sampler),
            flags.device,
            models.clip,
            flags.padding_mask_crop,
            flags.mask_blur,
            flags.jump,
            flags.resample,
        )
    )


def painting_prompt(flags: FilmFlags, models: DishModels, in_english: bool) -> str:
    """The prompt of the painting model: the name, and for a model that reads English only its English translation,
    if there is one.
    """
    if flags.prompt is not None:
        return flags.prompt
    name = models.query.name if models.query else " ".join(flags.name.split())
    return english_name(models.query, name) if in_english else name
