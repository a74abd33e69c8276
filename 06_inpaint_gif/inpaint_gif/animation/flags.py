"""The flags of make_gif.py."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from common.io.ranges import Range

OUT = Path("runs/06_inpaint_gif")
FRAME = 384  # least side of a film's frames in pixels, if --enlarge is not given


@dataclass(frozen=True)
class FilmFlags:
    """Everything that determines a film."""

    name: Positional[str]
    """Name of the dish, in Chinese."""
    camera: str = "zoom-out"
    """Camera move: up, down, left, right, up-left, up-right, down-left, down-right, zoom-in, zoom-out, ring; or a
    chain such as right:3,zoom-out, where right:3 is three keyframes long."""
    new_fraction: Annotated[float, Range(0.01, 0.75)] = 0.25
    """Fraction of each keyframe that is new."""

    engine: Literal["inpaint", "repaint", "controlnet", "diffusers", "nearest", "reflect"] | None = None
    """Inpainting backend: an inpainting U-Net; RePaint with any model; a text-to-image model with a ControlNet; a
    pipeline of diffusers; or a continuation of the edge without a network (nearest, reflect).
    By default controlnet with --controlnet, diffusers with --model, else inpaint."""
    model: str | None = None
    """Network of the engine: a folder, a checkpoint file, or for diffusers and controlnet a hub id;
    by default the shipped one.
    """
    controlnet: str | None = None
    """ControlNet of the engine controlnet: a run of train_controlnet.py, a folder or a hub id;
    by default the shipped one.
    """
    dish: str | None = None
    """Model that draws the dish: a run of train_text2dish.py, or a published text-to-image model as a folder, a file or
    a hub id, which gets the English name; by default the shipped one."""
    dish_prompt: str | None = None
    """Prompt of a published model that draws the dish; by default the English name of the dish."""
    clip: str | None = None
    """CLIP that encodes the name and chooses among the candidates: pretrained, a run folder, a checkpoint .pt,
    ViT-B-16, ...; by default the one that the dish model was trained with, else the shipped one."""
    backend: Literal["cn_clip", "transformers"] = "cn_clip"
    """Library that computes the CLIP embeddings; both give the same numbers, to about 1e-7."""
    image: Path | None = None
    """Picture of the dish to begin with, instead of a drawn one; its middle square is used."""
    prompt: str | None = None
    """Prompt of the engine; by default the name, and its English translation on the menu for a model that reads
    English only."""
    candidates: Annotated[int, Range(1, 256)] = 4
    """Number of drawn pictures of the dish, of which the film uses the one that is nearest to the name in the CLIP."""

    guidance: float | None = None
    """Guidance scale for drawing the dish; 1 is off. By default 3, and 7.5 for models that read English only."""
    paint_guidance: float | None = None
    """Guidance scale for painting keyframes; by default 2, because the surroundings of a dish depend little on its
    name, and 7.5 for models that read English only."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and number of steps: dpmpp_2m:20, ddim:50, ...
    RePaint uses the number of steps, and takes them several times.
    """
    mask_blur: float = 3.0
    """Pixels over which the edge of the painted part is softened, on its own side; known pixels never change."""
    padding_mask_crop: int | None = None
    """Pixels around the hole that the engine sees, at its own size; by default the whole keyframe."""
    jump: int = 5
    """RePaint: number of steps of each resampled stretch."""
    resample: int = 4
    """RePaint: number of passes over each stretch."""

    frames: int = 24
    """Number of frames of the film."""
    fps: Annotated[float, Range(0.1, 120)] = 12.0
    """Frames per second."""
    size: Annotated[int | None, Range(16, 4096, 64, unit=" pixels")] = None
    """Side of the keyframes in pixels; by default the size at which the dish is drawn, and 384 with --image."""
    enlarge: Annotated[int | None, Range(1, 64)] = None
    """Factor by which the frames of the film are larger than the keyframes; by default the smallest that gives frames
    of at least 384 pixels."""
    sharpen: Annotated[float, Range(0, 3)] = 0.6
    """Strength of the unsharp mask that is applied to enlarged frames; 0 is off."""
    loop: Literal["once", "pingpong", "seamless", "round"] = "pingpong"
    """pingpong: to the end and back; seamless: the end dissolves into the beginning, or the path returns to its start
    by itself; round: the plane is periodic, and the camera arrives at its start."""
    ease: Literal["linear", "ends", "smooth"] | None = None
    """Constant speed, or slower at both ends. By default smooth where the camera turns or stops (once, pingpong), so
    that it does not jerk there, and linear in the other loops."""
    out: Path | None = None
    """Film file, NAME.webp, .mp4, .gif or .png; by default runs/06_inpaint_gif/<name>-<camera>.webp, in full colour."""
    max_kb: float | None = None
    """Largest file size in kB: first colours or quality are reduced, then the size of the frames."""
    colours: int = 256
    """GIF: number of colours of the palette, 4 to 256."""
    palette: Literal["global", "frame"] = "global"
    """GIF: one palette for the film, or one for each frame."""
    dither: Literal["none", "ordered", "floyd"] = "ordered"
    """GIF: dithering method."""
    seed: int = 0
    """Random seed of the film."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""

    @property
    def chosen_engine(self) -> str:
        """The engine, or the default that goes with the models that are given."""
        return self.engine or ("controlnet" if self.controlnet else "diffusers" if self.model else "inpaint")

    @property
    def chosen_ease(self) -> str:
        return self.ease or ("smooth" if self.loop in ("once", "pingpong") else "linear")

    @property
    def painting_model(self) -> str | None:
        """The network that paints keyframes, if it is not a shipped one. RePaint uses the one that draws the dish."""
        return self.model or (self.dish if self.chosen_engine == "repaint" else None)

    def scale(self, size: int) -> int:
        """Factor from keyframes of this size to the frames of the film."""
        return self.enlarge or max(1, math.ceil(FRAME / size))

    @property
    def file(self) -> Path:
        """The film file."""
        return self.out or OUT / f"{file_name(self.name)}-{file_name(self.camera)}.webp"

    @property
    def sheet(self) -> Path:
        """The file of the contact sheet of keyframes."""
        return self.file.with_name(f"{self.file.stem}-sheet.png")


def file_name(text: str) -> str:
    """The part of a text that fits into a file name.
    File systems allow 255 bytes, and a Chinese character takes three.
    """
    return re.sub(r"[^\w-]+", "-", text.strip()).strip("-").encode()[:100].decode(errors="ignore") or "dish"
