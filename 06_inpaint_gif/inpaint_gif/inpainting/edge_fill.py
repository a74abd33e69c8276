"""Two inpainting backends without a network: they stretch or mirror the pixels at the edge of a hole.

They make the camera testable without a trained model, and they are the baselines of the inpainting networks.
"""

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from common.errors import UserError


def nearest(image: Tensor, mask: Tensor, prompt: str = "", seed: int = 0) -> Tensor:
    """Every pixel to repaint takes the colour of the nearest one that is known."""
    rows, columns = nearest_known(mask)
    return image[:, rows, columns]


def reflect(image: Tensor, mask: Tensor, prompt: str = "", seed: int = 0) -> Tensor:
    """Every pixel to repaint takes the colour of its mirror image in the edge of the hole,
    or of the known pixel nearest to it.
    """
    rows, columns = nearest_known(mask)
    height, width = rows.shape
    y, x = torch.arange(height)[:, None], torch.arange(width)
    # a pixel's distance behind the edge
    behind_y, behind_x = (bounced(2 * rows - y, height), bounced(2 * columns - x, width))
    return image[:, rows[behind_y, behind_x], columns[behind_y, behind_x]]


def bounced(index: Tensor, n: int) -> Tensor:
    """Indices outside 0..n-1, reflected at the borders."""
    index = index.abs() % max(1, 2 * (n - 1))
    return torch.minimum(index, 2 * (n - 1) - index)


def nearest_known(mask: Tensor) -> tuple[Tensor, Tensor]:
    """For every pixel the row and the column, each (H, W), of the nearest pixel with mask 0: itself if it is one."""
    holes = mask[0].cpu().numpy() > 0
    if holes.all():
        raise UserError("the mask covers the whole picture, so there is nothing to continue; leave some of it black")
    rows, columns = distance_transform_edt(holes, return_distances=False, return_indices=True)
    return torch.from_numpy(rows.astype(np.int64)), torch.from_numpy(columns.astype(np.int64))


FILLS = {"nearest": nearest, "reflect": reflect}
