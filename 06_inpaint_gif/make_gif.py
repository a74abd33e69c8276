"""Make a film from the name of a dish: draw the dish, move a camera over it,
inpaint what comes into view, render a loop.

  python 06_inpaint_gif/make_gif.py "土鸡蛋炒番茄" --camera zoom-out
  python 06_inpaint_gif/make_gif.py "葱油生菜" --camera "right:3,zoom-out" --frames 48 --fps 16 --loop seamless --out lettuce.webp
  python 06_inpaint_gif/make_gif.py "番茄炒蛋" --camera ring --engine repaint
  python 06_inpaint_gif/make_gif.py "米饭" --camera up-left --model path/to/stable-diffusion-inpainting --size 512
  python 06_inpaint_gif/make_gif.py "我的菜" --image plate.jpg --size 128 --engine reflect

A contact sheet is written beside the film. It shows the known part, the mask and the result of every keyframe.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from common.cli import pick_device, run
from common.io.ranges import Range


@dataclass(frozen=True)
class Args:
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
    dish: Path | None = None
    """Model that draws the dish, a run of train_text2dish.py; by default the shipped one."""
    clip: str | None = None
    """CLIP that encodes the name: pretrained, a run folder, a checkpoint .pt, ViT-B-16, ...; by default the one that
    the dish model was trained with."""
    backend: Literal["cn_clip", "transformers"] = "cn_clip"
    """Library that computes the CLIP embeddings; both give the same numbers, to about 1e-7."""
    image: Path | None = None
    """Picture of the dish to begin with, instead of a drawn one; its middle square is used."""
    prompt: str | None = None
    """Prompt of the engine; by default the name, and for diffusers the English name if the menu has one."""
    candidates: int = 4
    """Number of drawn pictures of the dish, of which the film uses the one that is nearest to the name in the CLIP."""

    guidance: float = 5.0
    """Guidance scale for drawing the dish; 1 is off."""
    paint_guidance: float | None = None
    """Guidance scale for painting keyframes; by default 2, because the surroundings of a dish depend little on its
    name, and 7.5 for models that are not of this course."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and number of steps: dpmpp_2m:20, ddim:50, ...
    RePaint uses the number of steps, and takes them several times.
    """
    mask_blur: float = 1.0
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
    """Side of the keyframes in pixels; by default the size at which the dish is drawn."""
    enlarge: int = 3
    """Factor by which the frames of the film are larger than the keyframes."""
    loop: Literal["once", "pingpong", "seamless", "round"] = "pingpong"
    """pingpong: to the end and back; seamless: the end dissolves into the beginning, or the path returns to its start
    by itself; round: the plane is periodic, and the camera arrives at its start."""
    ease: Literal["linear", "ends", "smooth"] = "linear"
    """Constant speed, or slower at both ends."""
    out: Path | None = None
    """Film file, NAME.gif, .webp, .png or .mp4; by default runs/06_inpaint_gif/<name>-<camera>.gif."""
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


def main(args: Args) -> None:
    from inpaint_gif.animation import render

    sampling = render.SamplingConfig(args.guidance, sampler=args.sampler)
    dish = render.DishConfig(args.name, args.image, args.dish, args.clip, args.backend, args.candidates, sampling)
    painting = render.PaintingConfig(
        args.engine,
        args.model,
        args.controlnet,
        args.prompt,
        args.paint_guidance,
        args.sampler,
        args.mask_blur,
        args.padding_mask_crop,
        args.jump,
        args.resample,
    )
    move = render.Move.parse(args.camera)
    camera = render.CameraConfig(move, args.new_fraction, args.frames, args.loop, args.ease, args.size)
    out = args.out or render.default_file(args.name, args.camera)
    file = render.FileConfig(out, args.fps, args.enlarge, args.max_kb, args.colours, args.palette, args.dither)
    render.make_film(render.FilmConfig(dish, painting, camera, file, args.seed, pick_device(args.device)))


if __name__ == "__main__":
    run(main, Args)
