"""Pictures: grids of images, strips and GIFs of the sampling process, and plots of a run."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from common.errors import UserError
from common.io.files import write_atomically
from common.io.pixels import to_bytes
from common.io.tables import read_csv

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
    points: int = 12,
) -> Image.Image:
    """`grid`, enlarged by a whole factor, with a label above each column and beside each row.

    across, down  labels of the columns and of the rows; a label may have several lines
    scale         pixels of the picture for each pixel of an image
    points        height of the letters in pixels
    """
    from matplotlib.font_manager import findfont  # DejaVu Sans, which has Greek letters and subscripts

    font = ImageFont.truetype(findfont("DejaVu Sans"), points)
    body = grid(images, columns, gap=gap)
    body = body.resize((body.width * scale, body.height * scale), Image.Resampling.NEAREST)
    ruler = ImageDraw.Draw(body)
    boxes = [[ruler.multiline_textbbox((0, 0), text, font) for text in labels] for labels in (across, down)]
    top = max([points // 2 + math.ceil(box[3]) for box in boxes[0]], default=0)
    left = max([points + math.ceil(box[2]) for box in boxes[1]], default=0)
    picture = Image.new("RGB", (left + body.width, top + body.height), "white")
    picture.paste(body, (left, top))
    draw, cell = ImageDraw.Draw(picture), [scale * (length + gap) for length in (images.shape[-1], images.shape[-2])]
    for i, text in enumerate(across):
        centre = left + scale * gap / 2 + (i + 0.5) * cell[0]
        draw.multiline_text((centre, top), text, "black", font, anchor="md", align="center")
    for i, text in enumerate(down):
        middle = top + scale * gap / 2 + (i + 0.5) * cell[1]
        draw.multiline_text((left - points // 2, middle), text, "black", font, anchor="rm", align="right")
    return picture


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
    `changing_evenly`.

    frames  each (N, C, H, W) in [-1, 1]
    """
    chosen = changing_evenly(frames, columns)
    rows = torch.stack([frames[i] for i in chosen], dim=1)  # (N, columns, C, H, W)
    return grid(rows.flatten(0, 1), columns, height)


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
