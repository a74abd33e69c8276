"""Films as files: GIF, animated WebP, animated PNG, MP4; and the sheet of keyframes and masks.

A GIF has at most 256 colours, and the choice of them is what makes it look good or bad:

  palette  global  one palette for all frames: a colour that is painted once stays what it is
           frame   each frame has its own: nearer to the frame, but flat areas change from frame to frame, and the file is larger
  dither   none     smooth gradients become steps; smallest file
           ordered  a fixed pattern of 8 x 8 pixels hides the steps, and stands still while the picture moves
           floyd    errors are handed on to the neighbours (Floyd and Steinberg): best in a single picture, but in a film the
                    grain swarms, and it compresses badly
"""

import io
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.spatial import cKDTree
from torch import Tensor

from common.errors import UserError, explain
from common.io.files import write_atomically
from common.io.pixels import to_bytes
from inpaint_gif.animation.camera import Keyframe

PALETTES = ("global", "frame")
DITHERS = ("none", "ordered", "floyd")
SHRINK = (1.0, 0.8, 0.65, 0.5, 0.35, 0.25)  # what is tried, in this order, to keep a film below max_bytes
MEMORY = 2 * 2**30  # bytes that a film may take while it is made


@dataclass(frozen=True)
class Written:
    """A file, what it holds, and how it was made smaller than asked for, if it had to be."""

    path: Path
    bytes: int
    frames: int
    width: int
    height: int
    note: str = ""

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        return f"{self.path} ({self.frames} frames of {self.width} x {self.height}, {self.bytes / 1000:.0f} kB{note})"


def save_film(frames: Sequence[Tensor], path: Path, fps: float = 12, loop: bool = True, max_bytes: int | None = None,
              **options: Any) -> Written:  # fmt: skip
    """Write the film as what the name ends in: .gif, .webp, .png or .apng, .mp4. See the save_ functions for options."""
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UserError(f"cannot tell the kind of film from the name {path.name}; end it in {', '.join(WRITERS)}")
    return writer(frames, path, fps=fps, loop=loop, max_bytes=max_bytes, **options)


def save_gif(frames: Sequence[Tensor], path: Path, fps: float = 12, loop: bool = True, max_bytes: int | None = None,
             colours: int = 256, palette: str = "global", dither: str = "ordered") -> Written:  # fmt: skip
    """frames: each (C, H, W) in [-1, 1]. To keep below max_bytes, first colours are given up, then size."""
    durations = check_gif(len(frames), fps, colours, palette, dither)

    def encode(pixels: np.ndarray, colours: int) -> bytes:
        pictures = quantized(pixels, colours, palette, dither)
        ends: dict[str, Any] = {"loop": 0} if loop else {}
        if palette == "global":
            ends["palette"] = bytes(pictures[0].getpalette())  # without it Pillow writes the same palette again for every frame
        return encoded(pictures, "GIF", duration=durations, optimize=False, disposal=1, **ends)

    fewer = [n for n in (128, 64, 32) if n < colours]
    return fit(frames, path, encode, max_bytes, "colours", [colours, *fewer])


def check_gif(frames: int, fps: float, colours: int = 256, palette: str = "global", dither: str = "ordered") -> list[int]:
    """How long each frame is shown; what no GIF can be is refused, which may be asked before there are any frames."""
    if palette not in PALETTES or dither not in DITHERS:
        raise UserError(f"the palette must be one of {', '.join(PALETTES)} and the dither one of {', '.join(DITHERS)}")
    if not 4 <= colours <= 256:
        raise UserError(f"a GIF has 4 to 256 colours, not {colours}")
    durations = milliseconds(frames, fps, unit=10)  # a GIF counts in hundredths of a second
    if min(durations, default=20) < 20:
        raise UserError(f"a GIF cannot show more than 50 frames a second, not {fps:g}; choose a smaller --fps, or .webp or .mp4")
    return durations


def save_webp(frames: Sequence[Tensor], path: Path, fps: float = 12, loop: bool = True, max_bytes: int | None = None,
              quality: int = 85, lossless: bool = False) -> Written:  # fmt: skip
    """All colours, and a small file; every browser shows it. To keep below max_bytes, first quality is given up, then size."""
    durations = milliseconds(len(frames), fps)

    def encode(pixels: np.ndarray, quality: int) -> bytes:
        pictures = [Image.fromarray(frame) for frame in pixels]
        return encoded(pictures, "WEBP", duration=durations, loop=0 if loop else 1, quality=quality, lossless=lossless, method=4)

    lower = [] if lossless else [q for q in (70, 50, 30) if q < quality]
    return fit(frames, path, encode, max_bytes, "quality", [quality, *lower])


def save_apng(frames: Sequence[Tensor], path: Path, fps: float = 12, loop: bool = True, max_bytes: int | None = None) -> Written:
    """All colours, no loss, a large file. To keep below max_bytes, size is given up."""
    durations = milliseconds(len(frames), fps)

    def encode(pixels: np.ndarray, _: int) -> bytes:
        return encoded([Image.fromarray(frame) for frame in pixels], "PNG", duration=durations, loop=0 if loop else 1)

    return fit(frames, path, encode, max_bytes, "quality", [100])


def save_mp4(frames: Sequence[Tensor], path: Path, fps: float = 12, loop: bool = True, max_bytes: int | None = None,
             quality: int = 18) -> Written:  # fmt: skip
    """H.264 with half the colour resolution, which every player shows. It has no loop of its own: `loop` is up to the player.

    quality  x264's rate factor: 18 is nearly without loss, 6 more is about half the file
    An odd width or height gets one more row or column, a copy of the last: H.264 knows even sizes only.
    """
    milliseconds(len(frames), fps)
    imageio_ffmpeg = need_ffmpeg()

    def encode(pixels: np.ndarray, quality: int) -> bytes:
        _, height, width, _ = pixels.shape
        pixels = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        with tempfile.TemporaryDirectory() as folder:  # ffmpeg goes back to the head of its file at the end
            file = Path(folder) / "film.mp4"
            try:
                writer = imageio_ffmpeg.write_frames(
                    str(file), pixels.shape[2:0:-1], fps=fps, codec="libx264", quality=None, macro_block_size=2,
                    output_params=["-crf", str(quality), "-preset", "slow", "-movflags", "+faststart", "-threads", "2"],
                    ffmpeg_log_level="error")  # fmt: skip
                writer.send(None)
                for frame in pixels:
                    writer.send(np.ascontiguousarray(frame))
                writer.close()
                return file.read_bytes()
            except (OSError, RuntimeError) as problem:
                raise UserError(
                    f"ffmpeg could not write {path.name} ({explain(problem)}); end the name in .gif or .webp instead"
                ) from problem

    return fit(frames, path, encode, max_bytes, "rate factor", [quality, *(q for q in (23, 28, 33) if q > quality)])


def need_ffmpeg() -> Any:
    """The package that brings ffmpeg along, if it is there."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as problem:
        raise UserError(
            f"MP4 needs ffmpeg, which the package imageio-ffmpeg did not provide ({explain(problem)}); "
            "install it with pip install imageio-ffmpeg, or end the name in .gif or .webp"
        ) from problem
    return imageio_ffmpeg


WRITERS = {".gif": save_gif, ".webp": save_webp, ".png": save_apng, ".apng": save_apng, ".mp4": save_mp4}


def fit(frames: Sequence[Tensor], path: Path, encode: Callable[[np.ndarray, int], bytes], max_bytes: int | None,
        name: str, settings: Sequence[int]) -> Written:  # fmt: skip
    """Encode with the first of these settings, at full size, that stays below max_bytes; if none does, at smaller sizes."""
    pixels = to_pixels(frames)
    smallest = None
    for share in SHRINK:
        small = shrunk(pixels, share)
        for setting in settings:
            data = encode(small, setting)
            smallest = min(smallest or len(data), len(data))
            if max_bytes is None or len(data) <= max_bytes:
                given_up = [f"{setting} instead of {settings[0]} {name}" if name == "colours" else f"{name} {setting} instead of {settings[0]}"] \
                    if setting != settings[0] else []  # fmt: skip
                given_up += [f"{share:.0%} of its size"] if share < 1 else []
                note = f"to stay below {max_bytes} bytes: " + ", ".join(given_up) if given_up else ""
                write_atomically(path, lambda file, data=data: file.write(data))
                return Written(path, len(data), len(small), small.shape[2], small.shape[1], note)
    raise UserError(
        f"{len(frames)} frames do not fit into {max_bytes} bytes: the smallest try had {smallest}; "
        "choose fewer --frames, a smaller --size, or a larger --max-kb"
    )


def to_pixels(frames: Sequence[Tensor]) -> np.ndarray:
    """(N, H, W, 3) uint8"""
    if len(frames) < 2:
        raise UserError(f"a film needs at least 2 frames, not {len(frames)}")
    if len({frame.shape for frame in frames}) > 1:
        raise UserError("the frames of a film must all have the same size")
    pixels = torch.stack([to_bytes(frame.cpu()) for frame in frames])
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def shrunk(pixels: np.ndarray, share: float) -> np.ndarray:
    if share == 1:
        return pixels
    _, height, width, _ = pixels.shape
    size = (max(2, round(width * share)), max(2, round(height * share)))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in pixels])


def milliseconds(frames: int, fps: float, unit: int = 1) -> list[int]:
    """How long each frame is shown, in whole units, so that the whole film has the right length: at 24 frames a second a GIF
    shows them for 40, 40, 40, 40, 50 ... thousandths."""
    if not 0.1 <= fps <= 120:
        raise UserError(f"--fps must be from 0.1 to 120, not {fps:g}")
    moments = [round(k * 1000 / fps / unit) for k in range(frames + 1)]
    return [(b - a) * unit for a, b in zip(moments, moments[1:], strict=False)]


def encoded(pictures: Sequence[Image.Image], kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    pictures[0].save(file, kind, save_all=True, append_images=pictures[1:], **options)
    return file.getvalue()


def quantized(pixels: np.ndarray, colours: int, palette: str = "global", dither: str = "ordered") -> list[Image.Image]:
    """(N, H, W, 3) uint8 -> pictures with a palette."""
    shared = chosen_palette(pixels.reshape(-1, pixels.shape[2], 3), colours) if palette == "global" else None
    result = []
    for frame in pixels:
        own = shared or chosen_palette(frame, colours)
        if dither == "ordered":
            frame = np.clip(frame + pattern(frame.shape[0], frame.shape[1], step_of(own)), 0, 255).round().astype(np.uint8)
        spread = Image.Dither.FLOYDSTEINBERG if dither == "floyd" else Image.Dither.NONE
        result.append(Image.fromarray(frame).quantize(palette=own, dither=spread))
    return result


def chosen_palette(rgb: np.ndarray, colours: int, sample: int = 40_000) -> Image.Image:
    """The colours that fit these pixels best: median cut, then three rounds of k-means. rgb: (H, W, 3)."""
    flat = rgb.reshape(-1, 3)
    flat = np.ascontiguousarray(flat[:: max(1, len(flat) // sample)])
    cut = Image.fromarray(flat[None]).quantize(colours, Image.Quantize.MEDIANCUT)
    centres = np.array(cut.getpalette(), float).reshape(-1, 3)
    for _ in range(3):
        owner = cKDTree(centres).query(flat)[1]
        count = np.bincount(owner, minlength=len(centres))[:, None]
        total = np.stack([np.bincount(owner, flat[:, c], len(centres)) for c in range(3)], 1)
        centres = np.where(count, total / np.maximum(count, 1), centres)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.unique(centres.round().astype(np.uint8), axis=0).tobytes())
    return palette


def step_of(palette: Image.Image) -> float:
    """How far apart neighbouring colours of the palette are, in one channel."""
    colours = np.unique(np.array(palette.getpalette(), float).reshape(-1, 3), axis=0)
    if len(colours) < 2:
        return 0.0
    distance = np.linalg.norm(colours[:, None] - colours, axis=-1) + np.eye(len(colours)) * 1e9
    return float(np.median(distance.min(1))) / np.sqrt(3)


def pattern(height: int, width: int, step: float) -> np.ndarray:
    """Bayer's 8 x 8 matrix, (height, width, 1), from -step / 2 to step / 2 with mean 0."""
    bayer = np.zeros((1, 1))
    for _ in range(3):
        bayer = np.block([[4 * bayer, 4 * bayer + 2], [4 * bayer + 3, 4 * bayer + 1]])
    tiles = np.tile((bayer + 0.5) / 64 - 0.5, (-(-height // 8), -(-width // 8)))
    return step * tiles[:height, :width, None]


def check_memory(frames: int, height: int, width: int, keyframes: int = 0, budget: int = MEMORY) -> int:
    """The bytes that a film takes while it is made; refused before anything is painted if there are too many.

    Frames are there as float32, as bytes, and once more while they are encoded; keyframes as float32, three times each.
    """
    need = frames * height * width * 3 * (4 + 1 + 2) + keyframes * height * width * 3 * 4 * 3
    if need > budget:
        most = (budget - keyframes * height * width * 36) // (height * width * 21)
        fewer = f"at most --frames {most}" if most >= 2 else "a smaller --size"
        raise UserError(
            f"{frames} frames of {width} x {height} need about {need / 2**30:.1f} GiB of memory, and {budget / 2**30:.1f} GiB "
            f"are allowed; choose {fewer}"
        )
    return need


def contact_sheet(picture: Tensor, keyframes: Iterable[Keyframe], height: int = 128, columns: int = 8, gap: int = 6) -> Image.Image:
    """The picture, and below it for each thing that was painted: what was still seen, the mask, the result.

    Above each stands the move and how much of it is new, with a + if it is a corner that is only passed; what needed no painting is left out.
    height   of one tile, which is enlarged by a whole factor to about that
    columns  things in a row
    """
    painted = [k for k in keyframes if k.new]
    factor = max(1, round(height / picture.shape[1]))
    tall, wide, head = picture.shape[1] * factor, picture.shape[2] * factor, 16
    columns = max(1, min(columns, len(painted)))
    block = head + 3 * (tall + gap)
    rows = -(-len(painted) // columns)
    sheet = Image.new("RGB", (gap + columns * (wide + gap), gap + head + tall + gap + rows * (block + gap)), "white")
    write = ImageDraw.Draw(sheet)

    def place(title: str, tiles: Sequence[Tensor], left: int, top: int) -> None:
        write.text((left, top), title, fill="black", font_size=11)
        for j, tile in enumerate(tiles):
            pixels = to_bytes(tile).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
            corner = (left, top + head + j * (tall + gap))
            write.rectangle((corner[0] - 1, corner[1] - 1, corner[0] + wide, corner[1] + tall), outline="grey")  # white ends here
            sheet.paste(Image.fromarray(pixels).resize((wide, tall), Image.Resampling.NEAREST), corner)

    place("the picture", [picture], gap, gap)
    for i, k in enumerate(painted):
        title = f"{i + 1} {k.stop.name}{' +' if k.stop.corner else ''}: {max(1, round(100 * k.new))} % new"
        top = gap + head + tall + gap + i // columns * (block + gap)
        place(title, [k.moved, k.mask * 2 - 1, k.image], gap + i % columns * (wide + gap), top)
    return sheet
