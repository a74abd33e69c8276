"""Pictures: grids of images, strips and GIFs of the sampling process, and plots of a run."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from common.errors import UserError
from common.io.files import write_atomically
from common.io.pixels import to_bytes
from common.io.tables import read_csv

FONT = Path(__file__).parent / "fonts" / "NotoSansSC-subset.otf"  # fonts/README.md
FONT_NAME = "Noto Sans SC Course"
CHINESE = r"\u2e80-\u9fff\uff00-\uffef"  # characters, punctuation, letters as wide as a character
POINTS = 12  # height of the letters of a label, in pixels
RUN = re.compile(f"[{CHINESE}]+|[^{CHINESE}]+")

if TYPE_CHECKING:  # loading matplotlib takes half a second, which programs without plots should not wait for
    from matplotlib.figure import Figure


def grid(images: Tensor, columns: int | None = None, height: int | None = None, gap: int = 2) -> Image.Image:
    """Images in [-1, 1], (N, C, H, W), as one picture, enlarged by a whole factor to about `height` pixels if given.

    columns  by default the grid is about square
    gap      pixels of white around each image
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    pixels = make_grid(to_bytes(images.cpu()), nrow=columns, padding=gap, pad_value=255)  # (3, H, W)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if height is None:
        return picture
    factor = max(1, round(height / picture.height))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def labelled_grid(
    images: Tensor,
    columns: int,
    across: Sequence[str] = (),
    down: Sequence[str] = (),
    scale: int = 2,
    gap: int = 2,
    points: int = POINTS,
) -> Image.Image:
    """`grid`, enlarged by a whole factor, with a label above each column and beside each row.

    across, down  labels of the columns and of the rows; a label may have several lines
    scale         pixels of the picture for each pixel of an image
    points        height of the letters in pixels
    """
    body = grid(images, columns, gap=gap)
    body = body.resize((body.width * scale, body.height * scale), Image.Resampling.NEAREST)
    sizes = [[label_size(text, points) for text in labels] for labels in (across, down)]
    top = max([points // 2 + math.ceil(height) for _, height in sizes[0]], default=0)
    left = max([points + math.ceil(width) for width, _ in sizes[1]], default=0)
    picture = Image.new("RGB", (left + body.width, top + body.height), "white")
    picture.paste(body, (left, top))
    draw, cell = ImageDraw.Draw(picture), [scale * (length + gap) for length in (images.shape[-1], images.shape[-2])]
    for i, text in enumerate(across):
        centre = left + scale * gap / 2 + (i + 0.5) * cell[0]
        draw_label(draw, (centre, top), text, "md", points)
    for i, text in enumerate(down):
        middle = top + scale * gap / 2 + (i + 0.5) * cell[1]
        draw_label(draw, (left - points // 2, middle), text, "rm", points)
    return picture


# -------------------------------------------------------------------------------------------------------------- labels

_language = "en"


def label_language(language: Literal["en", "zh"]) -> None:
    """The language of the words in figures from here on. For Chinese, matplotlib gets the font that comes with the
    course.
    """
    import matplotlib
    from matplotlib.font_manager import fontManager

    global _language
    _language = language
    family = matplotlib.rcParamsDefault["font.family"]
    if language == "zh":
        if FONT_NAME not in {font.name for font in fontManager.ttflist}:
            fontManager.addfont(FONT)
            fontManager.ttflist.append(replace(fontManager.ttflist[-1], weight=700))  # bold has the same letters
        family = [FONT_NAME, "DejaVu Sans"]  # the second has what the first lacks, such as subscripts
    matplotlib.rcParams["font.family"] = family


def words(english: str, chinese: str) -> str:
    """The words of a figure in the language of `label_language`."""
    return chinese if _language == "zh" else english


def _fonts(points: int) -> tuple[ImageFont.FreeTypeFont, ImageFont.FreeTypeFont]:
    """For Latin and Greek letters and subscripts, and for Chinese."""
    from matplotlib.font_manager import findfont

    return ImageFont.truetype(findfont("DejaVu Sans"), points), ImageFont.truetype(FONT, points + 1)


def _runs(text: str, points: int) -> list[list[tuple[str, ImageFont.FreeTypeFont, float]]]:
    """The lines of a label, each in pieces of one font: (piece, font, width)."""
    latin, chinese = _fonts(points)
    lines = []
    for line in text.split("\n"):
        pieces = [(piece, chinese if re.match(f"[{CHINESE}]", piece) else latin) for piece in RUN.findall(line)]
        lines.append([(piece, font, font.getlength(piece)) for piece, font in pieces])
    return lines


def label_size(text: str, points: int) -> tuple[float, float]:
    """Width and height of a label in pixels, as `draw_label` draws it."""
    if not re.search(f"[{CHINESE}]", text):
        box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, _fonts(points)[0])
        return box[2], box[3]
    lines = _runs(text, points)
    return max(sum(width for *_, width in line) for line in lines), len(lines) * (points + 5)


def draw_label(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: Literal["md", "rm", "lm"], points: int
) -> None:
    """Draw the lines of a label, centred, with Chinese characters in a font that has them.

    place, anchor  "md": the middle of the lower edge is at this place; "rm" and "lm": the middle of the right, the
                   left edge
    """
    if not re.search(f"[{CHINESE}]", text):
        draw.multiline_text(place, text, "black", _fonts(points)[0], anchor=anchor, align="center")
        return
    (width, height), (x, y) = label_size(text, points), place
    x -= {"md": width / 2, "rm": width, "lm": 0}[anchor]
    y -= height if anchor == "md" else height / 2
    for i, line in enumerate(_runs(text, points)):
        left = x + (width - sum(piece_width for *_, piece_width in line)) / 2
        for piece, font, piece_width in line:
            draw.text((left, y + i * (points + 5) + points), piece, "black", font, anchor="ls")
            left += piece_width


def wrapped(text: str, width: int, points: int = POINTS) -> str:
    """A label in lines of at most `width` pixels, broken at spaces and between Chinese characters.

    A longer word stays whole, and punctuation stays with the character before it.
    """
    lines = [""]
    for piece in re.findall(r"\s*(?:[\u4e00-\u9fff][^\u4e00-\u9fffA-Za-z0-9]*|[^\s\u4e00-\u9fff]+)", text.strip()):
        if lines[-1] and label_size(lines[-1] + piece, points)[0] > width:
            lines.append(piece.strip())
        else:
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def picture_format(path: Path) -> str:
    """Pillow's name of the format that the suffix says; an unknown suffix is refused."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise UserError(f"cannot tell the kind of picture from the name {path.name}; end it in .png")
    return kind


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a PNG (or what the suffix says), whole or not at all."""
    kind = picture_format(path)
    write_atomically(path, lambda file: picture.save(file, kind))
    return path


def changing_evenly(frames: Sequence[Tensor], n: int) -> list[int]:
    """n indices of frames between which the picture changes by equal amounts.

    Most steps of sampling change little and the last ones change much, so equal steps in time would show n - 2
    pictures of noise. Equal distances in pixels give coarse steps first and fine steps at the end.
    """
    moved = [0.0] + [float((b - a).square().mean().sqrt()) for a, b in zip(frames, frames[1:], strict=False)]
    distance = np.cumsum(moved)
    return [int(np.argmin(np.abs(distance - d))) for d in np.linspace(0, distance[-1], n)]


def strip(frames: Sequence[Tensor], columns: int = 10, height: int | None = None) -> Image.Image:
    """The sampling process as one picture: a row for each sample, a column for each moment chosen by
    `changing_evenly`, with the number of steps that were done above it.

    frames  the images after each step, each (N, C, H, W) in [-1, 1]
    height  of the images without the labels, about
    """
    chosen = changing_evenly(frames, columns)
    rows = torch.stack([frames[i] for i in chosen], dim=1)  # (N, columns, C, H, W)
    scale = max(1, round((height or 0) / (len(rows) * (rows.shape[-2] + 2))))
    labels = [words(f"step {i + 1}", f"第 {i + 1} 步") for i in chosen]
    if max(label_size(text, POINTS)[0] for text in labels) > scale * rows.shape[-1]:  # it would touch its neighbour
        labels = [str(i + 1) for i in chosen]
    return labelled_grid(rows.flatten(0, 1), columns, labels, scale=scale)


def save_gif(
    frames: Sequence[Tensor],
    path: Path,
    n: int = 32,
    seconds: float = 4.0,
    hold: float = 1.5,
    columns: int | None = None,
    height: int = 280,
    evenly: bool = True,
) -> Path:
    """An animated GIF of n moments of the sampling process.

    frames   each (N, C, H, W) in [-1, 1], shown as a grid with this many columns
    seconds  duration of the moments, without the last one, which is shown for `hold` seconds
    height   of the picture in pixels, about
    evenly   choose the moments by `changing_evenly`; otherwise all frames are shown for equal times
    """
    n = min(n, len(frames)) if evenly else len(frames)
    pictures = [grid(frames[i], columns, height) for i in (changing_evenly(frames, n) if evenly else range(n))]
    pictures = [picture.quantize(32, dither=Image.Dither.NONE) for picture in pictures]
    durations = [round(1000 * seconds / n)] * (n - 1) + [round(1000 * hold)]
    data = encode_animation(pictures, "GIF", duration=durations, loop=0)
    write_atomically(path, lambda file: file.write(data))
    return path


def encode_animation(pictures: Sequence[Image.Image], kind: str = "GIF", **options: Any) -> bytes:
    """The bytes of an animation. kind: a format of Pillow ("GIF", "WEBP", "PNG"); options: those of its save()."""
    file = io.BytesIO()
    pictures[0].save(file, kind, save_all=True, append_images=pictures[1:], **options)
    return file.getvalue()


def read_metrics(run: Path) -> dict[str, np.ndarray]:
    """The columns of metrics.csv, empty cells as NaN."""
    rows = read_csv(run / "metrics.csv")
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]} if rows else {}


def smooth(values: np.ndarray, share: float = 0.03) -> np.ndarray:
    """Mean over a sliding window (a share of the run), ignoring NaN; the ends use what there is."""
    width = max(1, int(len(values) * share))
    good = ~np.isnan(values)
    total = np.convolve(np.where(good, values, 0.0), np.ones(width), "same")
    number = np.convolve(good.astype(float), np.ones(width), "same")
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)


def save_figure(figure: "Figure", path: Path, dpi: int = 110) -> Path:
    """Write a figure of matplotlib as a PNG, the whole file or nothing."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=dpi))
    return path


def plot_run(run: Path, path: Path) -> Path:
    """Loss, loss by noise level and learning rate of a run, in one picture."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm
    from matplotlib.figure import Figure  # without pyplot, which would choose a screen, or change a notebook's
    from matplotlib.ticker import LogLocator, NullFormatter

    m = read_metrics(run)
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(m["step"], m["loss"], color="0.85", linewidth=0.5)
    left.plot(m["step"], smooth(m["loss"]), color="C0")
    left.set(title="loss", xlabel="step", yscale="log")
    colours = ScalarMappable(BoundaryNorm(np.linspace(0, 1, 11), 256), "viridis_r")
    for i, colour in enumerate(colours.to_rgba(np.arange(0.05, 1, 0.1))):
        middle.plot(m["step"], smooth(m[f"loss_{i}"]), color=colour)
    middle.set(title="loss by noise level", xlabel="step", yscale="log")
    figure.colorbar(colours, ax=middle, label="noise level, 0 clean, 1 pure noise", ticks=[0, 0.5, 1])
    for axis in (left, middle):
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    right.plot(m["step"], m["lr"], color="C1")
    right.set(title="learning rate", xlabel="step")
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)
