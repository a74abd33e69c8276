"""From the name of a dish to a film of it: draw the dish, move a camera over it, paint what comes into view, shoot, loop.

  python 06_inpaint_gif/make_gif.py "土鸡蛋炒番茄" --camera zoom-out
  python 06_inpaint_gif/make_gif.py "葱油生菜" --camera "right:3,zoom-out" --frames 48 --fps 16 --loop seamless --out lettuce.webp
  python 06_inpaint_gif/make_gif.py "番茄炒蛋" --camera ring --engine repaint
  python 06_inpaint_gif/make_gif.py "米饭" --camera up-left --model path/to/stable-diffusion-inpainting --size 512
  python 06_inpaint_gif/make_gif.py "我的菜" --image plate.jpg --size 128 --engine reflect

Beside the film lies a sheet of what was painted: for every keyframe what the camera still saw, the mask, the result.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from common.cli import pick_device, run
from common.errors import UserError
from common.io.ranges import Range

OUT = Path("runs/06_inpaint_gif")


@dataclass(frozen=True)
class Args:
    name: Positional[str]
    """What the dish is called, in Chinese."""
    camera: str = "zoom-out"
    """up, down, left, right, up-left, up-right, down-left, down-right, zoom-in, zoom-out, ring; a chain as in right:3,zoom-out, where
    right:3 goes three keyframes far."""
    share: Annotated[float, Range(0.01, 0.75)] = 0.25
    """How much of each keyframe is new."""

    engine: Literal["inpaint", "repaint", "controlnet", "diffusers", "nearest", "reflect"] | None = None
    """What paints: an inpainting U-Net; RePaint with any model; a model that draws, with a ControlNet; a pipeline of diffusers; or the edge
    goes on, without any network.
    By default inpaint; controlnet where --controlnet is given, else diffusers where --model is."""
    model: str | None = None
    """Where its network is: a folder, a checkpoint in one file, or for diffusers and controlnet a hub id. By default the shipped one."""
    controlnet: str | None = None
    """For the engine of that name: a run of train_controlnet.py, a folder or a hub id. By default the shipped one."""
    dish: Path | None = None
    """What draws the dish: a run of train_text2dish.py. By default the shipped one."""
    clip: str | None = None
    """What reads the name: pretrained, a run folder, a checkpoint .pt, ViT-B-16, ... By default the one that the dish was trained with."""
    backend: Literal["cn_clip", "transformers"] = "cn_clip"
    """Backend that computes the vectors; both give the same numbers, to about 1e-7."""
    image: Path | None = None
    """Begin with this picture of the dish instead of drawing one; its middle square is taken."""
    prompt: str | None = None
    """What the engine is told; by default the name, and for diffusers the English name where the menu has one."""
    candidates: int = 4
    """Pictures that are drawn of the dish; the film takes the one that the CLIP finds nearest to the name."""

    guidance: float = 5.0
    """Guidance scale while the dish is drawn; 1 is off."""
    paint_guidance: float | None = None
    """Guidance scale while keyframes are painted. By default 2, for what lies around a dish is less a matter of its name; 7.5 for models that
    are none of the course's."""
    sampler: str = "dpmpp_2m:20"
    """dpmpp_2m:20, ddim:50, ... RePaint takes its steps, and takes them several times."""
    mask_blur: float = 1.0
    """Pixels over which the edge of what is painted is softened, on its own side: known pixels stay exactly as they are."""
    padding_mask_crop: int | None = None
    """Show the engine only so many pixels around the hole, at its own size, instead of the whole keyframe."""
    jump: int = 5
    """RePaint: after so many steps it goes back by as many ..."""
    resample: int = 4
    """... and walks them so many times in all."""

    frames: int = 24
    """Of the film."""
    fps: Annotated[float, Range(0.1, 120)] = 12.0
    """Frames a second."""
    size: Annotated[int | None, Range(16, 4096, 64, unit=" pixels")] = None
    """Pixels a side of the keyframes; by default what the dish is drawn at."""
    enlarge: int = 3
    """The film shows every frame so many times larger."""
    loop: Literal["once", "pingpong", "seamless", "round"] = "pingpong"
    """There and back; seamless: its end dissolves into its beginning, or the way comes back by itself; round: the world is round."""
    ease: Literal["linear", "ends", "smooth"] = "linear"
    """Constant speed, or slower at both ends."""
    out: Path | None = None
    """NAME.gif, .webp, .png or .mp4; by default runs/06_inpaint_gif/<name>-<camera>.gif."""
    max_kb: float | None = None
    """Largest size of the file: first colours or quality are given up for it, then pixels."""
    colours: int = 256
    """GIF: colours of the palette, 4 to 256."""
    palette: Literal["global", "frame"] = "global"
    """GIF: one palette for the film, or one for each frame."""
    dither: Literal["none", "ordered", "floyd"] = "ordered"
    """GIF: how missing colours are mixed."""
    seed: int = 0
    """The same seed gives the same film."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def check(args: Args) -> None:
    """Refuse what cannot be, before anything is loaded."""
    if not args.name.strip():
        raise UserError("the name of the dish is empty; give one in Chinese, for instance 番茄炒蛋")
    if args.image and not args.image.is_file():
        raise UserError(f"there is no image file {args.image}")
    if args.image and args.dish:
        raise UserError("--image gives a picture and --dish a model that draws one; give only one of them")


def main(args: Args) -> None:
    check(args)
    from inpaint_gif.animation.render import film  # brings torch along, which --help should not wait for

    film(args, pick_device(args.device))


if __name__ == "__main__":
    run(main, Args)
