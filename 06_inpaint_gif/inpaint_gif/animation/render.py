"""What make_gif.py does once its flags are checked: order, draw, paint, shoot."""

import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.data.dishes.menu import DISHES
from common.data.sources.decoding import decode_all
from common.diffusion.sampler_spec import Sampler
from common.errors import UserError
from common.io.pixels import to_float
from common.viz import save_picture
from inpaint_gif.animation import writers as reel
from inpaint_gif.animation.camera import Keyframe, Move, paint, shoot
from inpaint_gif.animation.camera import Path as Way
from inpaint_gif.animation.canvas import World
from inpaint_gif.animation.timing import check as check_loop
from inpaint_gif.animation.timing import clock, close
from inpaint_gif.clip.dish_names import Order, dish_of, take_order
from inpaint_gif.clip.model import ChineseClip, load_clip
from inpaint_gif.inpainting.backends import DEFAULTS, Settings, open_engine
from inpaint_gif.inpainting.compositing import resized, seam
from inpaint_gif.inpainting.pipeline import Artist, How, check_draws, clip_of, open_artist

OUT = Path("runs/06_inpaint_gif")
GUIDANCE = {False: 2.0, True: 7.5}  # of what is painted, where nothing else is said: by the course's models, by others
PLAIN = 64  # pixels a side of a picture that is given with --image, if nothing else says


@dataclass(frozen=True)
class Cast:
    """Everything that takes part.

    order   the name and what it means; None where no CLIP was needed
    artist  draws the dish; None where its picture is given
    """

    order: Order | None
    clip: ChineseClip | None
    artist: Artist | None


def film(args, device: str) -> None:
    """Make the film as `args` (make_gif.Args, checked) says."""
    began = time.perf_counter()
    move, out = Move.parse(args.camera), args.out or OUT / f"{file_name(args.name)}-{file_name(str(args.camera))}.gif"
    check_film(args, move, out)
    cast = gather(args, device)
    for remark in cast.order.remarks if cast.order else ():
        print(f"note: {remark}", file=sys.stderr)
    size = args.size or (cast.artist.size if cast.artist else PLAIN)
    way = planned(args, move, size)  # refused now, if it needs too much memory
    engine = open_engine(settings(args, cast, device))
    picture = picture_of(args, cast, size)

    world, keyframes = World(picture), []
    for keyframe in paint(world, way, engine, prompt_of(args, cast), args.seed):
        keyframes.append(keyframe)
        if keyframe.new:
            print(f"  painted {keyframe.stop.name}{' corner' if keyframe.stop.corner else ''}: {max(1, round(100 * keyframe.new))} % new")
    painted = time.perf_counter()
    times = clock(args.frames, args.loop, args.ease, way.returns)
    frames = [enlarged(frame, args.enlarge) for frame in close(shoot(world, way, times), args.frames)]
    written = reel.save_film(frames, out, args.fps, args.loop != "once", args.max_kb and round(1000 * args.max_kb), **gif_options(args, out))
    sheet = save_picture(reel.contact_sheet(picture, keyframes), sheet_of(out))
    print(f"{written}\n{sheet}")
    print(seams(keyframes))
    print(f"{time.perf_counter() - began:.1f} s in all, {painted - began:.1f} s of them until everything was painted, on {device}")


# ------------------------------------------------------------------------------------------------------------- before


def check_film(args, move: Move, out: Path) -> None:
    """Refuse what no network is needed to see."""
    check_loop(args.frames, args.loop, args.ease)
    if out.suffix.lower() not in reel.WRITERS:
        raise UserError(f"cannot tell the kind of film from the name {out.name}; end it in {', '.join(reel.WRITERS)}")
    check_place(out)
    if args.image and args.image.resolve() in (out.resolve(), sheet_of(out).resolve()):
        raise UserError(f"the film or its sheet would be written over {args.image}; choose another --out")
    reel.milliseconds(2, args.fps)
    if out.suffix.lower() == ".gif":
        reel.check_gif(args.frames, args.fps, **gif_options(args, out))
    elif out.suffix.lower() == ".mp4":
        reel.need_ffmpeg()
    Sampler.parse(args.sampler)
    planned(args, move, args.size or 64)


def sheet_of(out: Path) -> Path:
    """Where the keyframes of a film are shown."""
    return out.with_name(f"{out.stem}-sheet.png")


def check_place(out: Path) -> None:
    """Refuse a name that no file can have, before minutes are spent on the film."""
    if os.path.isdir(out):
        raise UserError(f"{out} is a folder; give --out the name of a file, such as {out / 'film.gif'}")
    above = next(folder for folder in out.absolute().parents if os.path.exists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"cannot write {out}: {above} is not a folder with write permission; choose another --out")


def planned(args, move: Move, size: int) -> Way:
    """The way of the camera, and a look at the memory that the film will take."""
    side = size * args.enlarge
    reel.check_memory(2, side, side)  # before anything is counted pixel by pixel
    way = Way.plan(move, size, size, args.share)
    way = way.around() if args.loop == "round" else way
    reel.check_memory(args.frames, side, side, len(way.stops()))
    return way


def gather(args, device: str) -> Cast:
    """Open the CLIP and what draws, as far as they are needed: with --image, nobody need read the name unless RePaint does."""
    folder = args.dish or DEFAULTS["repaint"]
    if args.image:
        reads = engine_of(args) == "repaint" and not args.model
        clip = clip_of(folder, device, args.clip, args.backend) if reads else load_clip(args.clip, args.backend, device) if args.clip else None
        return Cast(take_order(clip, args.name) if clip else None, clip, None)
    if not folder.exists():
        raise UserError(f"{folder} is missing; train it with python 06_inpaint_gif/train_text2dish.py and give the run with --dish, or begin with --image")
    clip = clip_of(folder, device, args.clip, args.backend)
    artist = open_artist(folder, device, clip)
    check_draws(folder, artist)
    return Cast(take_order(clip, args.name), clip, artist)


def settings(args, cast: Cast, device: str) -> Settings:
    name = engine_of(args)
    model = str(args.dish) if name == "repaint" and args.dish and not args.model else args.model
    w = GUIDANCE[foreign(args)] if args.paint_guidance is None else args.paint_guidance
    how = How(w, sampler=args.sampler)
    return Settings(name, model, args.controlnet, how, device, cast.clip, args.padding_mask_crop, args.mask_blur, args.jump, args.resample)


def prompt_of(args, cast: Cast) -> str:
    """What the engine is told: a pipeline of diffusers most likely reads English."""
    if args.prompt is not None:
        return args.prompt
    name = cast.order.name if cast.order else " ".join(args.name.split())
    dish = cast.order.dish if cast.order else dish_of(name)
    return DISHES[dish].english[0] if foreign(args) and dish else name


def engine_of(args) -> str:
    return args.engine or ("controlnet" if args.controlnet else "diffusers" if args.model else "inpaint")


def foreign(args) -> bool:
    """Whether what paints is most likely none of the course's models."""
    return engine_of(args) == "diffusers" or (engine_of(args) == "controlnet" and args.model is not None)


# ---------------------------------------------------------------------------------------------------------- the picture


def picture_of(args, cast: Cast, size: int) -> Tensor:
    """What the camera begins with, (C, size, size) in [-1, 1]: the given picture, or the best of some that are drawn."""
    if args.image:
        pixels, _ = decode_all([args.image], size, channels=3)
        return to_float(pixels[0])
    drawn = cast.artist.draw([cast.order.name] * args.candidates, How(args.guidance, sampler=args.sampler), args.seed)
    best = best_of(cast, drawn)
    print(f"{cast.order.name}: picture {best + 1} of {args.candidates}" + (f", enlarged to {size} x {size}" if size > cast.artist.size else ""))
    return resized(drawn[best], (size, size))


def best_of(cast: Cast, drawn: Tensor) -> int:
    """Which picture the CLIP finds nearest to the name."""
    return int((cast.clip.encode_image(drawn) @ cast.clip.encode_text([cast.order.name])[0]).argmax())


# -------------------------------------------------------------------------------------------------------------- the film


def enlarged(frame: Tensor, factor: int) -> Tensor:
    return resized(frame, (frame.shape[1] * factor, frame.shape[2] * factor))


def gif_options(args, out: Path) -> dict[str, Any]:
    return {"colours": args.colours, "palette": args.palette, "dither": args.dither} if out.suffix.lower() == ".gif" else {}


def seams(keyframes: list[Keyframe]) -> str:
    """How visible the edges are: see masks.seam."""
    found = torch.tensor([seam(k.image, k.mask) for k in keyframes if 0 < k.new < 1])
    return f"seams: {float(found.mean()):.2f} times the jumps nearby, over {len(found)} edges (1 is invisible)" if len(found) else "nothing had to be painted"


def file_name(text: str) -> str:
    """What of a name can stand in a file's name, of which file systems allow 255 bytes: a Chinese character takes three."""
    return re.sub(r"[^\w-]+", "-", text.strip()).strip("-").encode()[:100].decode(errors="ignore") or "dish"
