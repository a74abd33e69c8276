"""Make a film: dish name -> CLIP -> latents -> picture -> canvas -> frames -> file.

make_gif.py turns its flags into a FilmConfig, which has one part for each of these stages.
"""

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from inpaint_gif.animation.timing import check_timing, close_loop, frame_times
from inpaint_gif.clip.dish_names import DishQuery, dish_of, parse_dish_name
from inpaint_gif.clip.model import ChineseCLIP, load_clip
from inpaint_gif.clip.name_encoder import check_draws, load_clip_for, open_model
from inpaint_gif.inpainting.backends import BLUR, DEFAULTS, BackendConfig, CompositedBackend, open_backend
from inpaint_gif.inpainting.compositing import resized, seam
from inpaint_gif.inpainting.repaint import JUMP, TIMES

OUT = Path("runs/06_inpaint_gif")
SIZE = 64  # pixels a side of a given image, if --size is not given

# ------------------------------------------------------------------------------------------------------ configuration


@dataclass(frozen=True)
class DishConfig:
    """The first picture: drawn from the name of a dish, or given."""

    name: str  # as the user typed it
    image: Path | None = None  # a given picture; then nothing is drawn
    model: Path | None = None  # a run of train_text2dish.py; by default the shipped one
    clip: str | None = None  # what load_clip opens; by default the CLIP that the model was trained with
    clip_backend: str = "cn_clip"  # library that computes the embeddings
    candidates: int = 4  # number of pictures, of which the CLIP chooses one
    sampling: SamplingConfig = SamplingConfig()


@dataclass(frozen=True)
class PaintingConfig:
    """How keyframes are painted; None is a default that depends on the other fields."""

    engine: str | None = None  # one of backends.ENGINES
    model: str | None = None
    controlnet: str | None = None
    prompt: str | None = None  # by default the name of the dish, in English for models that are not of this course
    guidance: float | None = None  # by default 2, or 7.5 for models that are not of this course
    sampler: str = "dpmpp_2m:20"
    mask_blur: float = BLUR
    padding_mask_crop: int | None = None
    jump: int = JUMP
    resample: int = TIMES

    @property
    def chosen_engine(self) -> str:
        """The engine, or the default that goes with the models that are given."""
        return self.engine or ("controlnet" if self.controlnet else "diffusers" if self.model else "inpaint")

    @property
    def foreign(self) -> bool:
        """Whether the painting model is most likely not one of this course:
        then it reads English, and needs more guidance.
        """
        return self.chosen_engine == "diffusers" or (self.chosen_engine == "controlnet" and self.model is not None)


@dataclass(frozen=True)
class CameraConfig:
    """The path of the camera, and its timing."""

    move: Move
    new_fraction: float = 0.25  # part of each keyframe that is new
    frames: int = 24
    loop: str = "pingpong"  # one of timing.LOOPS
    ease: str = "linear"  # one of timing.EASES
    size: int | None = None  # pixels a side of the keyframes; by default that of the first picture


@dataclass(frozen=True)
class FileConfig:
    """The film file."""

    out: Path
    fps: float = 12.0
    enlarge: int = 3  # factor between keyframes and the film
    max_kb: float | None = None
    colours: int = 256  # this and the two below: GIF only
    palette: str = "global"
    dither: str = "ordered"

    @property
    def sheet(self) -> Path:
        """The file of the contact sheet of keyframes."""
        return self.out.with_name(f"{self.out.stem}-sheet.png")

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of the writer of this format."""
        gif = {"colours": self.colours, "palette": self.palette, "dither": self.dither}
        return gif if self.out.suffix.lower() == ".gif" else {}


@dataclass(frozen=True)
class FilmConfig:
    """Everything that determines a film."""

    dish: DishConfig
    painting: PaintingConfig
    camera: CameraConfig
    file: FileConfig
    seed: int = 0
    device: str = "cpu"


def default_file(name: str, camera: str) -> Path:
    """The film file of a dish and a move, if the user names none."""
    return OUT / f"{file_name(name)}-{file_name(camera)}.gif"


def file_name(text: str) -> str:
    """The part of a text that fits into a file name.
    File systems allow 255 bytes, and a Chinese character takes three.
    """
    return re.sub(r"[^\w-]+", "-", text.strip()).strip("-").encode()[:100].decode(errors="ignore") or "dish"


def check_film(cfg: FilmConfig) -> None:
    """Refuse what can be refused before a network is opened."""
    dish, camera, file = cfg.dish, cfg.camera, cfg.file
    if not dish.name.strip():
        raise UserError("the name of the dish is empty; give one in Chinese, for instance 番茄炒蛋")
    if dish.image and not dish.image.is_file():
        raise UserError(f"there is no image file {dish.image}")
    if dish.image and dish.model:
        raise UserError("--image gives a picture and --dish a model that draws one; give only one of them")
    check_timing(camera.frames, camera.loop, camera.ease)
    if file.out.suffix.lower() not in writers.WRITERS:
        raise UserError(
            f"cannot tell the kind of film from the name {file.out.name}; end it in {', '.join(writers.WRITERS)}"
        )
    check_place(file.out)
    if dish.image and dish.image.resolve() in (file.out.resolve(), file.sheet.resolve()):
        raise UserError(f"the film or its sheet would be written over {dish.image}; choose another --out")
    writers.milliseconds(2, file.fps)
    if file.out.suffix.lower() == ".gif":
        writers.check_gif(camera.frames, file.fps, **file.options)
    elif file.out.suffix.lower() == ".mp4":
        writers.check_ffmpeg()
    Sampler.parse(dish.sampling.sampler)
    plan_path(camera, camera.size or SIZE, file.enlarge)


def check_place(out: Path) -> None:
    """Refuse a path that cannot be written, before minutes are spent on the film."""
    if os.path.isdir(out):
        raise UserError(f"{out} is a folder; give --out the name of a file, such as {out / 'film.gif'}")
    above = next(folder for folder in out.absolute().parents if os.path.exists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"cannot write {out}: {above} is not a folder with write permission; choose another --out")


# ----------------------------------------------------------------------------------------------------------- the film


def make_film(cfg: FilmConfig) -> None:
    """Draw the dish, paint what the camera shows, render the frames, write the film and its contact sheet."""
    began = time.perf_counter()
    check_film(cfg)
    models = load_models(cfg)
    for remark in models.query.remarks if models.query else ():
        print(f"note: {remark}", file=sys.stderr)
    size = cfg.camera.size or (models.pipeline.size if models.pipeline else SIZE)
    # a film that needs too much memory is refused before anything is drawn
    path = plan_path(cfg.camera, size, cfg.file.enlarge)
    backend = open_painter(cfg, models.clip)
    picture = first_picture(cfg, models, size)

    canvas, keyframes = FilmCanvas(picture), []
    for keyframe in paint(canvas, path, backend, painting_prompt(cfg, models.query), cfg.seed):
        keyframes.append(keyframe)
        if keyframe.new:
            corner = " corner" if keyframe.stop.corner else ""
            print(f"  painted {keyframe.stop.name}{corner}: {max(1, round(100 * keyframe.new))} % new")
    painted = time.perf_counter()
    written = write_frames(cfg, canvas, path)
    sheet = save_picture(writers.contact_sheet(picture, keyframes), cfg.file.sheet)
    print(f"{written}\n{sheet}")
    print(seam_summary(keyframes))
    total = time.perf_counter() - began
    print(f"{total:.1f} s in all, {painted - began:.1f} s of them until everything was painted, on {cfg.device}")


def plan_path(camera: CameraConfig, size: int, enlarge: int) -> CameraPath:
    """The path of the camera; a film that needs too much memory is refused."""
    side = size * enlarge
    writers.check_memory(2, side, side)  # before the path is planned pixel by pixel
    path = CameraPath.plan(camera.move, size, size, camera.new_fraction)
    path = path.around() if camera.loop == "round" else path
    writers.check_memory(camera.frames, side, side, len(path.stops()))
    return path


def write_frames(cfg: FilmConfig, canvas: FilmCanvas, path: CameraPath) -> writers.FilmFile:
    """Render the painted canvas along the path and write the film."""
    camera, file = cfg.camera, cfg.file
    times = frame_times(camera.frames, camera.loop, camera.ease, path.returns)
    frames = [enlarged(frame, file.enlarge) for frame in close_loop(render_frames(canvas, path, times), camera.frames)]
    max_bytes = round(1000 * file.max_kb) if file.max_kb else None
    return writers.write_film(frames, file.out, file.fps, camera.loop != "once", max_bytes, **file.options)


def enlarged(frame: Tensor, factor: int) -> Tensor:
    return resized(frame, (frame.shape[1] * factor, frame.shape[2] * factor))


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


def load_models(cfg: FilmConfig) -> Models:
    """Open the CLIP and the model that draws. With --image, only RePaint with a model of text2dish needs a CLIP."""
    dish, folder = cfg.dish, cfg.dish.model or DEFAULTS["repaint"]
    if dish.image:
        clip = None
        if cfg.painting.chosen_engine == "repaint" and not cfg.painting.model:
            clip = load_clip_for(folder, cfg.device, dish.clip, dish.clip_backend)
        elif dish.clip:
            clip = load_clip(dish.clip, dish.clip_backend, cfg.device)
        return Models(parse_dish_name(clip, dish.name) if clip else None, clip, None)
    if not folder.exists():
        raise UserError(
            f"{folder} is missing; train it with python 06_inpaint_gif/train_text2dish.py and give the run with --dish, "
            "or begin with --image"
        )
    clip = load_clip_for(folder, cfg.device, dish.clip, dish.clip_backend)
    pipeline = open_model(folder, cfg.device, clip)
    check_draws(folder, pipeline)
    return Models(parse_dish_name(clip, dish.name), clip, pipeline)


def open_painter(cfg: FilmConfig, clip: ChineseCLIP | None) -> CompositedBackend:
    """The inpainting backend; RePaint without a model of its own uses the one that draws the dish."""
    painting, dish = cfg.painting, cfg.dish.model
    engine = painting.chosen_engine
    model = str(dish) if engine == "repaint" and dish and not painting.model else painting.model
    guidance = (7.5 if painting.foreign else 2.0) if painting.guidance is None else painting.guidance
    return open_backend(
        BackendConfig(
            engine,
            model,
            painting.controlnet,
            SamplingConfig(guidance, sampler=painting.sampler),
            cfg.device,
            clip,
            painting.padding_mask_crop,
            painting.mask_blur,
            painting.jump,
            painting.resample,
        )
    )


def painting_prompt(cfg: FilmConfig, query: DishQuery | None) -> str:
    """The prompt of the painting model: the name,
    and for models that are not of this course its English translation, if there is one.
    """
    if cfg.painting.prompt is not None:
        return cfg.painting.prompt
    name = query.name if query else " ".join(cfg.dish.name.split())
    dish = query.dish if query else dish_of(name)
    return names_of(dish, "en")[0] if cfg.painting.foreign and dish else name


def first_picture(cfg: FilmConfig, models: Models, size: int) -> Tensor:
    """The given image, or the drawn candidate whose CLIP embedding is nearest to the name.
    (C, size, size) in [-1, 1]
    """
    dish = cfg.dish
    if models.pipeline is None or models.clip is None or models.query is None:
        pixels, _ = decode_all([dish.image], size, channels=3)
        return to_float(pixels[0])
    name, own = models.query.name, models.pipeline.size
    drawn = models.pipeline.txt2img([name] * dish.candidates, replace(dish.sampling, seed=cfg.seed))
    best = int((models.clip.encode_image(drawn) @ models.clip.encode_text([name])[0]).argmax())
    print(
        f"{name}: picture {best + 1} of {dish.candidates}" + (f", enlarged to {size} x {size}" if size > own else "")
    )
    return resized(drawn[best], (size, size))
