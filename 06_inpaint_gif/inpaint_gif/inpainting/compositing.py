"""Masks: 1 (white) is repainted, 0 (black) is kept.
Soft edges, compositing, inpainting at the model's own size, and seams.

All functions follow one rule: where a mask is 0, the result is bit for bit the original.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as tv

from common.errors import UserError
from inpaint_gif.inpainting.edge_fill import nearest_known
from inpaint_gif.inpainting.interface import InpaintingBackend

GREY_LEVEL = 2 / 255  # the smallest difference that a byte can hold, in [-1, 1]
EDGE_PIXELS = 600  # most pixels of an edge that are compared with each other
LARGEST_TINT = 0.15  # a larger difference across the edge is an object that ends there, and not a tint


def overlay(original: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
    """original + mask (painted - original), and exactly `original` where the mask is 0,
    exactly `painted` where it is 1.

    original, painted  (C, H, W)
    mask               (1, H, W) in [0, 1]; between 0 and 1 it blends
    """
    mixed = torch.lerp(original, painted, mask.to(original))  # exact at 1; at 0 it is not if `painted` is not finite
    return torch.where(mask > 0, mixed, original)


def blurred(mask: Tensor, radius: float) -> Tensor:
    """The mask with a soft edge on both sides, from a Gaussian with this standard deviation in pixels. Near the edge
    it is no longer 0 where it was 0, so compositing with it changes known pixels."""
    return gaussian(mask.float(), radius).clamp(0, 1)


def gaussian(image: Tensor, radius: float) -> Tensor:
    """(C, H, W), blurred; the border pixels are repeated outside."""
    return torch.from_numpy(gaussian_filter(image.numpy(), (0, radius, radius), mode="nearest", truncate=3.0))


def feathered(mask: Tensor, radius: float) -> Tensor:
    """The mask with a soft edge inside the hole only: 0 where it was 0, rising to 1 over `radius` pixels inside."""
    if radius <= 0:
        return mask
    depth = torch.from_numpy(distance_to_known(mask))  # 1 for the outermost pixels of the hole
    return (depth / (radius + 1)).clamp(0, 1).float()[None]


def matched(original: Tensor, painted: Tensor, mask: Tensor, width: float = 8.0) -> Tensor:
    """`painted`, with its colours corrected towards the original along the edge of the mask.

    A latent model reproduces even the known part with slightly different colours, which would be visible as a line
    after pasting. The difference on the known side of the edge is extrapolated into the hole and fades out over
    `width` pixels.
    """
    if not (mask > 0).any() or (mask > 0).all():
        return painted
    known = (mask == 0).float()
    weight = gaussian(known, width / 2)
    # (C, H, W), its mean over known pixels
    smooth = gaussian((original - painted) * known, width / 2) / weight.clamp(min=1e-3)
    fade = torch.from_numpy(np.exp(-distance_to_known(mask) / width)).float()
    return torch.where(mask > 0, (painted + smooth * fade).clamp(-1, 1), painted)


def levelled(original: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
    """`painted`, shifted by a tint so that the colours continue across the edge of the hole.

    A network paints each hole in a slightly different shade. Over several keyframes these shades are seen as nested
    rectangles, although each single edge is hardly visible. The tint at a place of the edge is the median, over the
    pixels of the edge nearby, of known colour minus painted colour. A mean would also carry the rim of a plate into
    the table; the median follows what most of the neighbourhood shows.
    """
    known, spread = (mask == 0).float(), max(mask.shape[1:]) / 8
    if not known.any() or known.all():
        return painted
    y, x = torch.from_numpy(distance_to_known(mask) == 1).nonzero().T  # the outermost pixels of the hole, (P,)
    rows, columns = nearest_known(mask)
    outside, inside = mean_nearby(original, known, 1.5), mean_nearby(painted, 1 - known, 1.5)
    jump = outside[:, rows[y, x], columns[y, x]] - inside[:, y, x]  # (C, P)
    places = torch.stack([y, x], 1).cpu().double()
    step = -(-len(places) // EDGE_PIXELS)  # of a large picture, some pixels of the edge are enough
    weight = torch.exp(-torch.cdist(places, places[::step]).square() / (2 * spread**2))  # (P, P / step)
    tint = torch.stack([weighted_median(each, weight) for each in jump[:, ::step]])  # (C, P)
    tint = tint.clamp(-LARGEST_TINT, LARGEST_TINT)
    hole = (mask[0] > 0).nonzero()
    _, nearest_place = cKDTree(places.numpy()).query(hole.numpy())
    field = torch.zeros_like(painted)
    field[:, hole[:, 0], hole[:, 1]] = tint[:, nearest_place].to(field)
    return torch.where(mask > 0, painted + mean_nearby(field, 1 - known, spread / 3), painted).clamp(-1, 1)


def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """The median of values (P,) for each row of weights (N, P). (N,)"""
    order = values.argsort()
    passed = weights[:, order].cumsum(1)
    return values[order][(passed < passed[:, -1:] / 2).sum(1)]


def mean_nearby(image: Tensor, where: Tensor, radius: float) -> Tensor:
    """Gaussian mean over the pixels of (C, H, W) at which `where` (1, H, W) is 1."""
    return gaussian(image * where, radius) / gaussian(where, radius).clamp(min=1e-4)


def distance_to_known(mask: Tensor) -> np.ndarray:
    """Distance of each pixel to the nearest one with mask 0, which is 0 for those themselves. (H, W) float64"""
    holes = (mask[0] > 0).cpu().numpy()
    return distance_transform_edt(holes) if not holes.all() else np.full(holes.shape, np.inf)


def box_around(mask: Tensor, padding: int, ratio: float) -> tuple[slice, slice] | None:
    """Rows and columns of the smallest box of this ratio, width / height, around all white pixels and `padding` pixels
    more, cut to the image. None if the mask is black."""
    rows, columns = (mask[0] > 0).any(1).nonzero().flatten(), (mask[0] > 0).any(0).nonzero().flatten()
    if not len(rows):
        return None
    height, width = mask.shape[1:]
    top, bottom = max(0, int(rows[0]) - padding), min(height, int(rows[-1]) + 1 + padding)
    left, right = max(0, int(columns[0]) - padding), min(width, int(columns[-1]) + 1 + padding)
    top, bottom = widened(top, bottom, round((right - left) / ratio), height)
    left, right = widened(left, right, round((bottom - top) * ratio), width)
    return slice(top, bottom), slice(left, right)


def widened(start: int, stop: int, length: int, limit: int) -> tuple[int, int]:
    """The range start..stop, extended on both sides to at least `length`, then moved and cut to 0..limit."""
    length = min(max(length, stop - start), limit)
    start = min(max(0, start - (length - (stop - start)) // 2), limit - length)
    return start, start + length


def inpaint_cropped(
    backend: InpaintingBackend,
    image: Tensor,
    mask: Tensor,
    prompt: str,
    seed: int,
    size: tuple[int, int],
    padding: int = 32,
    join: Callable[[Tensor, Tensor, Tensor], Tensor] = overlay,
) -> Tensor:
    """Inpaint only the surroundings of the mask,
    enlarged (or shrunk) to the size the model was made for, and paste them back.

    image    (C, H, W) in [-1, 1], of any size
    mask     (1, H, W)
    size     height and width that the backend is given
    padding  pixels of known picture around the mask that the backend also sees
    join     (original, painted, mask) -> the composite; known pixels that it changes do change in the picture
    """
    box = box_around(mask, padding, size[1] / size[0])
    if box is None:
        return image
    part, hole = image[:, *box], mask[:, *box]
    own = (hole.shape[1], hole.shape[2])
    small_hole = interpolate((hole > 0).float()[None], size, mode="area")[0] if own != size else hole
    painted = backend(resized(part, size), (small_hole > 0).float(), prompt, seed)  # white if any part of it was
    result = image.clone()
    result[:, *box] = join(part, resized(painted.to(image), own), hole)
    return result


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) -> (C, *size), bicubic with antialiasing."""
    if image.shape[1:] == size:
        return image
    return tv.resize(image, list(size), interpolation=tv.InterpolationMode.BICUBIC, antialias=True).clamp(-1, 1)


def enlarged(image: Tensor, factor: int, sharpen: float = 0.0) -> Tensor:
    """(C, H, W) -> (C, factor H, factor W), bicubic, with an unsharp mask: x + sharpen (x - blurred x), where the blur
    has a radius of 0.6 pixels of the small image.
    """
    large = resized(image, (factor * image.shape[1], factor * image.shape[2]))
    if factor == 1 or not sharpen:
        return large
    return (large + sharpen * (large - gaussian(large, 0.6 * factor))).clamp(-1, 1)


def check_size(height: int, width: int, multiple: int) -> None:
    """Refuse a size that is not a multiple of the network's factor."""
    if height % multiple or width % multiple or min(height, width) < multiple:
        good = [max(multiple, round(n / multiple) * multiple) for n in (height, width)]
        raise UserError(
            f"--size {height} x {width} must be divisible by {multiple} for this model; try {good[0]} x {good[1]}"
        )


def tint_step(image: Tensor, mask: Tensor, wide: int = 4) -> float:
    """How far the mean colour changes across the edge of the mask: RMS, over channels and the four sides, of the
    difference between the known and the painted pixels within `wide` pixels of the edge. In [-1, 1] units.

    `seam` compares single pixels, so a shade that differs by a little along a whole side escapes it, but the eye sees
    it as a rectangle. Compare means over many pictures with those of untouched ones, whose tables vary too.
    """
    inner, outer = distance_to_known(mask), distance_to_known((mask == 0).float())
    height, width = inner.shape
    y, x = np.arange(height)[:, None] - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    side = np.where(np.abs(y) > np.abs(x), np.where(y > 0, 0, 1), np.where(x > 0, 2, 3))
    steps = []
    for k in range(4):
        new, old = ((depth > 0) & (depth <= wide) & (side == k) for depth in (inner, outer))
        if new.any() and old.any():
            steps.append(image[:, torch.from_numpy(new)].mean(1) - image[:, torch.from_numpy(old)].mean(1))
    return float(torch.stack(steps).square().mean().sqrt()) if steps else 0.0


def seam(image: Tensor, mask: Tensor, near: int = 8) -> float:
    """Visibility of the edge of the mask: the jump of the picture across it, relative to jumps nearby.

    For four pixels in a row or column, a b c d, the jump in their middle is |c - b - ((b - a) + (d - c)) / 2|: the
    step from b to c that the slopes on both sides do not explain. The result is

        mean jump across the edge / mean jump within `near` pixels of it, on both sides

    1 is an invisible edge, a hard edge is 2 and more. The value of a single picture is noisy, because lines of the
    picture may lie on the edge: over 320 pairs of a drawn dish of 64 pixels and a camera mask, the untouched pictures
    have a median of 1.1, and nine in ten lie between 0.6 and 1.9 (4.3, and 2.2 to 8.8, if the hole holds another
    dish). Compare means over many pictures with those of untouched ones. Jumps below one grey level count as one;
    without an edge the result is 1.
    """
    white = mask[0] > 0
    sums, counts = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    close = torch.from_numpy(np.maximum(distance_to_known(mask), distance_to_known((mask == 0).float())) <= near)
    for turned in (False, True):
        pixels, side, band = (x.transpose(-1, -2) if turned else x for x in (image.float(), white, close))
        a, b, c, d = (pixels[..., i : pixels.shape[-1] - 3 + i] for i in range(4))  # (C, H, W - 3)
        sa, sb, sc, sd = (side[..., i : side.shape[-1] - 3 + i] for i in range(4))
        jump = (c - b - ((b - a) + (d - c)) / 2).abs().mean(0)
        outer = (sa == sb) & (sc == sd)  # no other edge within these four pixels
        chosen = {True: outer & (sb != sc), False: outer & (sb == sc) & band[..., 1 : band.shape[-1] - 2]}
        for across, where in chosen.items():
            sums[across] += float(jump[where].cpu().double().sum())
            counts[across] += int(where.sum())
    if not counts[True] or not counts[False]:
        return 1.0
    across, nearby = (sums[key] / counts[key] for key in (True, False))
    return max(across, GREY_LEVEL) / max(nearby, GREY_LEVEL)
