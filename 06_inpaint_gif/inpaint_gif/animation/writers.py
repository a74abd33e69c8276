"""Film files: GIF, animated WebP, animated PNG, MP4; and the contact sheet of keyframes and masks.

A GIF has at most 256 colours, so its quality depends on the palette and on dithering:

  palette  global  one palette for all frames: the same content keeps its colour
           frame   one palette per frame: smaller error in each frame, but flat areas flicker, and the file is larger
  dither   none     smooth gradients become steps; smallest file
           ordered  a fixed pattern of 8 x 8 pixels hides the steps and does not move with the content
           floyd    error diffusion (Floyd and Steinberg 1976): best in a single picture, but in a film its noise
                    changes from frame to frame and compresses badly
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from common.errors import UserError, explain
from common.io.files import write_atomically
from common.io.pixels import to_bytes
from common.viz import draw_label, encode_animation, words
from inpaint_gif.animation.camera import Keyframe

PALETTES = ("global", "frame")
DITHERS = ("none", "ordered", "floyd")
FORMATS = (".gif", ".webp", ".png", ".apng", ".mp4")
WEBP_QUALITIES = (85, 70, 50, 30)  # these and the two below: tried in this order to keep a film below max_bytes
RATE_FACTORS = (18, 23, 28, 33)  # of x264: 18 is nearly without loss, 6 more halve the file
SCALES = (1.0, 0.8, 0.65, 0.5, 0.35, 0.25)
MEMORY = 2 * 2**30  # bytes of memory that a film may need


@dataclass(frozen=True)
class FilmFile:
    """A written film; `note` says how it was reduced to stay below max_bytes, if it was."""

    path: Path
    bytes: int
    frames: int
    width: int
    height: int
    note: str = ""

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        return f"{self.path} ({self.frames} frames of {self.width} x {self.height}, {self.bytes / 1000:.0f} kB{note})"


def write_film(
    frames: Sequence[Tensor],
    path: Path,
    fps: float = 12,
    loop: bool = True,
    max_bytes: int | None = None,
    colours: int = 256,
    palette: str = "global",
    dither: str = "ordered",
) -> FilmFile:
    """Write the film in the format of the suffix: .gif, .webp, .png or .apng, .mp4. frames: each (C, H, W) in [-1, 1]

    To stay below max_bytes, first the colours of a GIF or the quality of a WebP or an MP4 are reduced, then the size.
    colours, palette, dither: GIF only
    """
    kind, n = film_format(path), len(frames)
    if kind == ".gif":
        durations = check_gif(n, fps, colours, palette, dither)
        fewer = [each for each in (128, 64, 32) if each < colours]
        encode = partial(gif_bytes, durations=durations, loop=loop, palette=palette, dither=dither)
        return fit(
            frames,
            path,
            encode,
            max_bytes,
            words("{} instead of {} colours", "{} 色，而不是 {} 色"),
            [colours, *fewer],
        )
    if kind == ".mp4":
        milliseconds(n, fps)  # refuses other speeds
        check_ffmpeg()
        change = words("rate factor {} instead of {}", "码率因子 {}，而不是 {}")
        return fit(frames, path, partial(mp4_bytes, fps=fps), max_bytes, change, RATE_FACTORS)
    encode, settings = (webp_bytes, WEBP_QUALITIES) if kind == ".webp" else (apng_bytes, [100])
    encode = partial(encode, durations=milliseconds(n, fps), loop=loop)
    return fit(frames, path, encode, max_bytes, words("quality {} instead of {}", "质量 {}，而不是 {}"), settings)


def film_format(path: Path) -> str:
    """The suffix in lower case; one that is no format of a film is refused."""
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise UserError(f"cannot tell the kind of film from the name {path.name}; end it in {', '.join(FORMATS)}")
    return kind


def check_gif(
    frames: int, fps: float, colours: int = 256, palette: str = "global", dither: str = "ordered"
) -> list[int]:
    """Duration of each frame in milliseconds; options that a GIF cannot have are refused,
    also before any frame exists.
    """
    if palette not in PALETTES or dither not in DITHERS:
        raise UserError(f"the palette must be one of {', '.join(PALETTES)} and the dither one of {', '.join(DITHERS)}")
    if not 4 <= colours <= 256:
        raise UserError(f"a GIF has 4 to 256 colours, not {colours}")
    durations = milliseconds(frames, fps, unit=10)  # a GIF counts in hundredths of a second
    if min(durations, default=20) < 20:
        raise UserError(
            f"a GIF cannot show more than 50 frames a second, not {fps:g}; choose a smaller --fps, or .webp or .mp4"
        )
    return durations


def gif_bytes(pixels: np.ndarray, colours: int, durations: list[int], loop: bool, palette: str, dither: str) -> bytes:
    """pixels (N, H, W, 3) uint8, here and below"""
    pictures = quantized(pixels, colours, palette, dither)
    options: dict[str, Any] = {"loop": 0} if loop else {}
    if palette == "global":
        options["palette"] = bytes(pictures[0].getpalette())  # otherwise Pillow writes it again for every frame
    return encode_animation(pictures, "GIF", duration=durations, optimize=False, disposal=1, **options)


def webp_bytes(pixels: np.ndarray, quality: int, durations: list[int], loop: bool) -> bytes:
    """An animated WebP: all colours in a small file."""
    options = {"duration": durations, "loop": 0 if loop else 1, "quality": quality, "method": 4}
    return encode_animation([Image.fromarray(frame) for frame in pixels], "WEBP", **options)


def apng_bytes(pixels: np.ndarray, _: int, durations: list[int], loop: bool) -> bytes:
    """An animated PNG: all colours without loss, a large file."""
    pictures = [Image.fromarray(frame) for frame in pixels]
    return encode_animation(pictures, "PNG", duration=durations, loop=0 if loop else 1)


def mp4_bytes(pixels: np.ndarray, rate_factor: int, fps: float) -> bytes:
    """H.264 with half the colour resolution. The format stores no `loop`; the player decides.
    An odd width or height is padded with a copy of the last column or row, because H.264 needs even sizes.
    """
    _, height, width, _ = pixels.shape
    try:
        return imageio.imwrite(
            "<bytes>",
            np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge"),
            extension=".mp4",
            plugin="FFMPEG",
            fps=fps,
            codec="libx264",
            quality=None,
            macro_block_size=2,
            output_params=f"-crf {rate_factor} -preset slow -movflags +faststart -threads 2".split(),
            ffmpeg_log_level="error",
        )
    except (OSError, RuntimeError) as problem:
        raise UserError(
            f"ffmpeg could not write the film ({explain(problem)}); end the name in .gif or .webp instead"
        ) from problem


def check_ffmpeg() -> None:
    """Refuse MP4 if the package imageio-ffmpeg and its program ffmpeg are missing."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as problem:
        raise UserError(
            f"MP4 needs ffmpeg, which the package imageio-ffmpeg did not provide ({explain(problem)}); "
            "install it with pip install imageio-ffmpeg, or end the name in .gif or .webp"
        ) from problem


def fit(
    frames: Sequence[Tensor],
    path: Path,
    encode: Callable[[np.ndarray, int], bytes],
    max_bytes: int | None,
    change: str,  # describes a setting and the first one, for the note
    settings: Sequence[int],
) -> FilmFile:
    """Write the film with the first of these settings that stays below max_bytes,
    at full size if possible, else at smaller sizes.
    """
    pixels, sizes = to_pixels(frames), []
    for scale, setting in product(SCALES, settings):
        small = shrunk(pixels, scale)
        data = encode(small, setting)
        sizes.append(len(data))
        if max_bytes is None or len(data) <= max_bytes:
            reduced = [change.format(setting, settings[0])] if setting != settings[0] else []
            reduced += [words(f"{scale:.0%} of its size", f"缩小到 {scale:.0%}")] if scale < 1 else []
            reason = words(f"to stay below {max_bytes} bytes: ", f"为了不超过 {max_bytes} 字节：")
            note = reason + words(", ", "；").join(reduced) if reduced else ""
            write_atomically(path, lambda file, data=data: file.write(data))
            return FilmFile(path, len(data), len(small), small.shape[2], small.shape[1], note)
    raise UserError(
        f"{len(frames)} frames do not fit into {max_bytes} bytes: the smallest try had {min(sizes)}; "
        "choose fewer --frames, a smaller --size, or a larger --max-kb"
    )


def to_pixels(frames: Sequence[Tensor]) -> np.ndarray:
    """Frames (C, H, W) in [-1, 1] -> (N, H, W, 3) uint8"""
    if len(frames) < 2:
        raise UserError(f"a film needs at least 2 frames, not {len(frames)}")
    if len({frame.shape for frame in frames}) > 1:
        raise UserError("the frames of a film must all have the same size")
    pixels = torch.stack([to_bytes(frame.cpu()) for frame in frames])
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def shrunk(pixels: np.ndarray, scale: float) -> np.ndarray:
    """Every frame reduced by the same factor. (N, H, W, 3)"""
    if scale == 1:
        return pixels
    _, height, width, _ = pixels.shape
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in pixels])


def milliseconds(frames: int, fps: float, unit: int = 1) -> list[int]:
    """Duration of each frame in milliseconds, as whole multiples of `unit`, so that the whole film has the right
    length: at 24 frames per second the frames of a GIF last 40, 40, 40, 40, 50 ... ms."""
    if not 0.1 <= fps <= 120:
        raise UserError(f"--fps must be from 0.1 to 120, not {fps:g}")
    moments = [round(k * 1000 / fps / unit) for k in range(frames + 1)]
    return [(b - a) * unit for a, b in zip(moments, moments[1:], strict=False)]


def quantized(pixels: np.ndarray, colours: int, palette: str = "global", dither: str = "ordered") -> list[Image.Image]:
    """Reduce frames to a palette: (N, H, W, 3) uint8 -> N pictures of mode P."""
    shared = chosen_palette(pixels.reshape(-1, pixels.shape[2], 3), colours) if palette == "global" else None
    result = []
    for frame in pixels:
        own = shared or chosen_palette(frame, colours)
        if dither == "ordered":
            frame = (
                np.clip(frame + bayer_pattern(frame.shape[0], frame.shape[1], palette_step(own)), 0, 255)
                .round()
                .astype(np.uint8)
            )
        spread = Image.Dither.FLOYDSTEINBERG if dither == "floyd" else Image.Dither.NONE
        result.append(Image.fromarray(frame).quantize(palette=own, dither=spread))
    return result


def chosen_palette(rgb: np.ndarray, colours: int, sample: int = 40_000) -> Image.Image:
    """A palette for these pixels: maximum coverage, refined by k-means. rgb (H, W, 3) uint8"""
    flat = rgb.reshape(-1, 3)
    flat = np.ascontiguousarray(flat[:: max(1, len(flat) // sample)])
    reduced = Image.fromarray(flat[None]).quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=3)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.unique(np.array(reduced.getpalette(), np.uint8).reshape(-1, 3), axis=0).tobytes())
    return palette


def palette_step(palette: Image.Image) -> float:
    """Median distance between neighbouring colours of the palette, in one channel."""
    colours = np.unique(np.array(palette.getpalette(), float).reshape(-1, 3), axis=0)
    if len(colours) < 2:
        return 0.0
    distance = np.linalg.norm(colours[:, None] - colours, axis=-1) + np.eye(len(colours)) * 1e9
    return float(np.median(distance.min(1))) / np.sqrt(3)


def bayer_pattern(height: int, width: int, step: float) -> np.ndarray:
    """Bayer's 8 x 8 matrix, (height, width, 1), from -step / 2 to step / 2 with mean 0."""
    bayer = np.zeros((1, 1))
    for _ in range(3):
        bayer = np.block([[4 * bayer, 4 * bayer + 2], [4 * bayer + 3, 4 * bayer + 1]])
    tiles = np.tile((bayer + 0.5) / 64 - 0.5, (-(-height // 8), -(-width // 8)))
    return step * tiles[:height, :width, None]


def check_memory(frames: int, height: int, width: int, keyframes: int = 0, budget: int = MEMORY) -> int:
    """Bytes of memory that a film needs; more than the budget is refused before anything is painted.

    Each frame is held as float32, as bytes, and twice more while it is encoded;
    each keyframe as three float32 pictures.
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


def contact_sheet(
    picture: Tensor, keyframes: Iterable[Keyframe], height: int = 128, columns: int = 8, gap: int = 6
) -> Image.Image:
    """The picture, and below it for each painted window: the known part, the mask, the result.

    The title of each names its move and the fraction that is new; a + marks a corner. Windows that needed no painting
    are left out.
    height   height of one tile in pixels; tiles are enlarged by a whole factor to about this height
    columns  windows in a row
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
        draw_label(write, (left, top + head / 2), title, "lm", 10)
        for j, tile in enumerate(tiles):
            pixels = to_bytes(tile).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
            corner = (left, top + head + j * (tall + gap))
            # the border of white tiles
            write.rectangle((corner[0] - 1, corner[1] - 1, corner[0] + wide, corner[1] + tall), outline="grey")
            sheet.paste(Image.fromarray(pixels).resize((wide, tall), Image.Resampling.NEAREST), corner)

    place(words("the picture", "原图"), [picture], gap, gap)
    for i, k in enumerate(painted):
        name, new = f"{i + 1} {k.stop.name}{' +' if k.stop.corner else ''}", max(1, round(100 * k.new))
        title = words(f"{name}: {new} % new", f"{name}：新增 {new} %")
        top = gap + head + tall + gap + i // columns * (block + gap)
        place(title, [k.moved, k.mask * 2 - 1, k.image], gap + i % columns * (wide + gap), top)
    return sheet
