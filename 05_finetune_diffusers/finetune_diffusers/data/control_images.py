"""What a ControlNet is given beside the text: edges of a picture, a drawing's own lines, or pictures of any other kind.

control_images("edges", pixels)                    one pixel wide, as this course trains them
control_images("canny", pixels)                    those of published ControlNets for edges
control_images("lines", pixels)                    of a drawing, whose edges would be two for every line
conditioning_images(folder, images, size)          the files that the column conditioning_image of the metadata names
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import label
from skimage.morphology import skeletonize
from torch import Tensor

from common.data import Images
from common.data.sources.decoding import decode_all
from common.data.sources.image_folder import conditioning_files, read_metadata
from common.data.sources.listing import Tally, list_folder
from common.errors import UserError
from common.io.pixels import to_float
from finetune_diffusers.data.edges import edges, gradient

CANNY_LOW, CANNY_HIGH = 100, 200  # of |Gx| + |Gy| in pictures from 0 to 255, as OpenCV's users give them
UNITS = 8 * 127.5  # those per pixel step from -1 to 1 of `gradient`, whose Sobel filter is divided by 8
NEAR = 16.0  # greys of 0 to 255 that count as one
BATCH = 64


def control_images(kind: str, pixels: Tensor, threshold: float = 0.2) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 1, H, W) uint8, 0 or 1

    kind       "edges", "canny" or "lines"
    threshold  of "edges"
    """
    if kind == "lines":
        return lines(pixels)
    detect = canny if kind == "canny" else lambda images: edges(images, threshold)
    return torch.cat([detect(to_float(part)).to(torch.uint8) for part in pixels.split(BATCH)])


def canny(images: Tensor, low: float = CANNY_LOW, high: float = CANNY_HIGH) -> Tensor:
    """Edges as OpenCV's Canny(image, 100, 200) finds them, which published ControlNets were trained on.

    Canny (1986): Sobel's gradient of the channel that changes most; thinning across the edge, in four directions;
    hysteresis, which keeps what is above `high` and what is above `low` and connected with it. On eight creatures of
    64 x 64, 17 of 32,768 pixels differ from those of OpenCV 5.0.
    (N, 3, H, W) in [-1, 1] -> (N, 1, H, W) float32, 0 or 1
    """
    N, C, H, W = images.shape
    g = gradient(images.reshape(N * C, 1, H, W)).reshape(N, C, 2, H, W) * UNITS
    strongest = g.abs().sum(2, keepdim=True).argmax(1, keepdim=True)  # (N, 1, 1, H, W), of the channels
    gx, gy = g.gather(1, strongest.expand(-1, -1, 2, -1, -1))[:, 0].split(1, 1)  # (N, 1, H, W)
    strength = gx.abs() + gy.abs()
    padded = F.pad(strength, (1, 1, 1, 1))

    def at(dy: int, dx: int) -> Tensor:
        return padded[..., 1 + dy : 1 + dy + H, 1 + dx : 1 + dx + W]

    slope = gy.abs() / gx.abs().clamp(min=1e-6)
    along_x = slope < np.tan(np.pi / 8)
    along_y = slope > np.tan(3 * np.pi / 8)
    rising = (gx * gy) > 0  # the gradient points down to the right
    crest_x = (strength > at(0, -1)) & (strength >= at(0, 1))
    crest_y = (strength > at(-1, 0)) & (strength >= at(1, 0))
    down = (strength > at(-1, -1)) & (strength > at(1, 1))
    up = (strength > at(-1, 1)) & (strength > at(1, -1))
    crest = torch.where(along_x, crest_x, torch.where(along_y, crest_y, torch.where(rising, down, up)))
    weak, strong = crest & (strength > low), crest & (strength > high)
    return torch.from_numpy(
        np.stack([connected(w, s)[None] for w, s in zip(weak[:, 0].numpy(), strong[:, 0].numpy(), strict=True)])
    ).float()


def connected(weak: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """The connected parts of `weak`, over corners as well, that hold a pixel of `strong`. (H, W) of booleans"""
    parts, number = label(weak, structure=np.ones((3, 3)))
    kept = np.zeros(number + 1, bool)
    kept[parts[strong]] = True
    kept[0] = False
    return kept[parts]


def lines(pixels: Tensor) -> Tensor:
    """The lines of drawings, thinned to one pixel, whether dark on light or light on dark.

    The paper is the commonest grey; what is more than halfway from it to the farthest grey is ink.
    (N, 3, H, W) uint8 -> (N, 1, H, W) uint8, 0 or 1
    """
    found = []
    for distance in from_paper(pixels):
        ink = distance > max(NEAR, float(distance.max()) / 2)
        found.append(skeletonize(ink.numpy()))
    return torch.from_numpy(np.stack(found)[:, None]).to(torch.uint8)


def from_paper(pixels: Tensor) -> Tensor:
    """How far the grey of each pixel is from the picture's commonest grey. (N, 3, H, W) uint8 -> (N, H, W) float32"""
    greys = pixels.float().mean(1)
    papers = [torch.bincount(grey.flatten().long(), minlength=256).argmax() for grey in greys]
    return (greys - torch.stack(papers).view(-1, 1, 1)).abs()


def looks_drawn(pixels: Tensor) -> Tensor:
    """Whether a picture looks like lines on paper: most of it has one grey. (N, 3, H, W) uint8 -> (N,) of booleans"""
    return (from_paper(pixels) < NEAR).float().mean((1, 2)) > 0.7


def conditioning_images(images: Images, folder: str, size: int) -> Tensor:
    """The picture that the metadata names for each image, in the column conditioning_image. (N, 3, S, S) uint8

    Both are cut to the square in their middle, so a pair must have one aspect ratio.
    """
    names = images.texts.items if images.texts is not None else ()
    if not Path(folder).is_dir() or not names:
        raise UserError(
            f"--control conditioning_image needs --data to be a folder with pictures and metadata; {folder} is none"
        )
    listing = list_folder(Path(folder))
    rows = read_metadata(listing, Tally()).rows
    given = conditioning_files(listing, rows)
    if missing := [name for name in names if name not in given]:
        row = rows.get(missing[0], {})
        raise UserError(
            f"{len(missing)} of {len(names)} pictures in {folder} have no conditioning image that is there, the first is {missing[0]} "
            f"(its row: {row or 'none'}); name a file for every picture in the column conditioning_image of metadata.jsonl"
        )
    pixels, kept = decode_all(listing.paths(given[name] for name in names), size, channels=3)
    if len(kept) < len(names):
        raise UserError(f"{len(names) - len(kept)} of {len(names)} conditioning images in {folder} cannot be read")
    return pixels
