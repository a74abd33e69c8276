"""Make a film: dish name -> CLIP -> latents -> picture -> canvas -> frames -> file."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.cli import check_writable, pick_device
from common.data.dishes.captions import names_of
from common.data.sources.decoding import decode_all
from common.diffusion.sampler_spec import Sampler
from common.errors import UserError
from common.io.pixels import to_float
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.viz import save_picture
from inpaint_gif.animation import writers
from inpaint_gif.animation.camera import CameraPath, Keyframe, Move, paint, render_frames
from inpaint_gif.animation.canvas import FilmCanvas
from inpaint_gif.animation.flags import FilmFlags
from inpaint_gif.animation.timing import check_timing, close_loop, frame_times
from inpaint_gif.clip.dish_names import DishQuery, dish_of, parse_dish_name
from inpaint_gif.clip.model import ChineseCLIP, load_clip
from inpaint_gif.clip.name_encoder import load_clip_for, open_dish_model
from inpaint_gif.inpainting.backends import DEFAULTS, BackendConfig, CompositedBackend, open_backend
from inpaint_gif.inpainting.compositing import resized, seam

SIZE = 64  # pixels a side of a given image, if --size is not given


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
    plan_path(flags, flags.size or SIZE)


# ----------------------------------------------------------------------------------------------------------- the film


def make_film(flags: FilmFlags) -> None:
    """Draw the dish, paint what the camera shows, render the frames, write the film and its contact sheet."""
    began, flags = time.perf_counter(), replace(flags, device=pick_device(flags.device))
    check_film(flags)
    models = load_models(flags)
    for remark in models.query.remarks if models.query else ():
        print(f"note: {remark}", file=sys.stderr)
    size = flags.size or (models.pipeline.size if models.pipeline else SIZE)
    # a film that needs too much memory is refused before anything is drawn
    path = plan_path(flags, size)
    backend = open_painter(flags, models.clip)
    picture = first_picture(flags, models, size)

    canvas, keyframes = FilmCanvas(picture), []
    for keyframe in paint(canvas, path, backend, painting_prompt(flags, models.query), flags.seed):
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
    side = size * flags.enlarge
    writers.check_memory(2, side, side)  # before the path is planned pixel by pixel
    path = CameraPath.plan(Move.parse(flags.camera), size, size, flags.new_fraction)
    path = path.around() if flags.loop == "round" else path
    writers.check_memory(flags.frames, side, side, len(path.stops()))
    return path


def write_frames(flags: FilmFlags, canvas: FilmCanvas, path: CameraPath) -> writers.FilmFile:
    """Render the painted canvas along the path and write the film."""
    times = frame_times(flags.frames, flags.loop, flags.chosen_ease, path.returns)
    film = close_loop(render_frames(canvas, path, times), flags.frames)
    size = (path.height * flags.enlarge, path.width * flags.enlarge)
    max_bytes = round(1000 * flags.max_kb) if flags.max_kb else None
    gif = (flags.colours, flags.palette, flags.dither)
    frames = [resized(frame, size) for frame in film]
    return writers.write_film(frames, flags.file, flags.fps, flags.loop != "once", max_bytes, *gif)


def seam_summary(keyframes: Sequence[Keyframe]) -> str:
    """The mean visibility of the edges of all holes (compositing.seam), as a line to print."""
    found = torch.tensor([seam(k.image, k.mask) for k in keyframes if 0 < k.new < 1])
    if not len(found):
        return "nothing had to be painted"
    return f"seams: {float(found.mean()):.2f} times the jumps nearby, over {len(found)} edges (1 is invisible)"


# ------------------------------------------------------------------------------------------------ models and picture


@dataclass(frozen=True)
class Models:
    """The opened models of the first picture; None for those that are not needed."""

    query: DishQuery | None
    clip: ChineseCLIP | None
    pipeline: TextToImagePipeline | None


def load_models(flags: FilmFlags) -> Models:
    """Open the CLIP and the model that draws. With --image, only RePaint with a model of text2dish needs a CLIP."""
    folder = flags.dish or DEFAULTS["repaint"]
    if flags.image:
        clip = None
        if flags.chosen_engine == "repaint" and not flags.model:
            clip = load_clip_for(folder, flags.device, flags.clip, flags.backend)
        elif flags.clip:
            clip = load_clip(flags.clip, flags.backend, flags.device)
        return Models(parse_dish_name(clip, flags.name) if clip else None, clip, None)
    clip, pipeline = open_dish_model(folder, flags.device, flags.clip, flags.backend, ", or begin with --image")
    return Models(parse_dish_name(clip, flags.name), clip, pipeline)


def open_painter(flags: FilmFlags, clip: ChineseCLIP | None) -> CompositedBackend:
    """The inpainting backend; RePaint without a model of its own uses the one that draws the dish."""
    engine, dish = flags.chosen_engine, flags.dish
    model = str(dish) if engine == "repaint" and dish and not flags.model else flags.model
    guidance = (7.5 if flags.foreign else 2.0) if flags.paint_guidance is None else flags.paint_guidance
    return open_backend(
        BackendConfig(
            engine,
            model,
            flags.controlnet,
            SamplingConfig(guidance, sampler=flags.sampler),
            flags.device,
            clip,
            flags.padding_mask_crop,
            flags.mask_blur,
            flags.jump,
            flags.resample,
        )
    )


def painting_prompt(flags: FilmFlags, query: DishQuery | None) -> str:
    """The prompt of the painting model: the name,
    and for models that are not of this course its English translation, if there is one.
    """
    if flags.prompt is not None:
        return flags.prompt
    name = query.name if query else " ".join(flags.name.split())
    dish = query.dish if query else dish_of(name)
    return names_of(dish, "en")[0] if flags.foreign and dish else name


def first_picture(flags: FilmFlags, models: Models, size: int) -> Tensor:
    """The given image, or the drawn candidate whose CLIP embedding is nearest to the name.
    (C, size, size) in [-1, 1]
    """
    if models.pipeline is None or models.clip is None or models.query is None:
        pixels, _ = decode_all([flags.image], size, channels=3)
        return to_float(pixels[0])
    name, own = models.query.name, models.pipeline.size
    sampling = SamplingConfig(flags.guidance, sampler=flags.sampler, seed=flags.seed)
    drawn = models.pipeline.txt2img([name] * flags.candidates, sampling)
    best = int((models.clip.encode_image(drawn) @ models.clip.encode_text([name])[0]).argmax())
    print(
        f"{name}: picture {best + 1} of {flags.candidates}" + (f", enlarged to {size} x {size}" if size > own else "")
    )
    return resized(drawn[best], (size, size))
