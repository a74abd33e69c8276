"""Diffusion in the plane with the ideal denoiser, so that everything that is shown is exact.

The data are points on a few curves, one curve for each class, blurred by a small Gaussian. For such a mixture the best
possible prediction of the clean point, E[x0 | x_t], is a formula, of all points or of those of one class. So no network
is trained, and guidance adds the vectors that it adds in an image model.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.diffusion.guidance import guide
from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import initial_noise
from common.diffusion.schedules import NoiseLevel, make_schedule
from common.errors import UserError
from common.random import Noise

SHAPES = ("moons", "spirals", "rings")
CLASSES = 2  # curves of each shape
BLUR = 0.03  # standard deviation of the data around the curves
PER_CLASS = 240
FIELD, VECTORS, REACH = 17, 6, 1.5  # arrows a side of the field, vectors a side of the other panel; both end at REACH


class PlaneMoment(NamedTuple):
    """The cloud after a step, and the vectors at its noise level. All vectors lead to a prediction of the clean point."""

    done: int
    total: int
    sigma: float  # standard deviation of the noise in x
    x: Tensor  # (n, 2) the cloud
    data: Tensor  # (N, 2) the points that the denoiser knows, scaled like the cloud
    wanted: Tensor  # (N,) bool, those of the class
    places: Tensor  # (FIELD^2, 2), a grid
    field: Tensor  # (FIELD^2, 2), guided predictions there
    corners: Tensor  # (VECTORS^2, 2), a coarser grid
    vectors: dict[str, Tensor]  # uncond, cond and guided, each (VECTORS^2, 2)


def curves(shape: str) -> tuple[Tensor, Tensor]:
    """Points evenly spread on the curves of a shape, (N, 2) within [-1, 1], and their classes (N,)."""
    if shape not in SHAPES:
        raise UserError(f"unknown shape '{shape}'; choose one of {', '.join(SHAPES)}")
    u = np.linspace(0, 1, PER_CLASS)
    if shape == "moons":
        x, y = np.cos(math.pi * u), np.sin(math.pi * u)
        parts = [np.stack([x - 0.5, y - 0.25], 1), np.stack([0.5 - x, 0.25 - y], 1)]
        parts = [0.62 * part for part in parts]
    elif shape == "rings":
        turn = 2 * math.pi * u
        parts = [radius * np.stack([np.cos(turn), np.sin(turn)], 1) for radius in (0.4, 0.9)]
    else:
        radius = 0.12 + 0.83 * np.sqrt(u)
        turns = [4.5 * radius + 2 * math.pi * k / CLASSES for k in range(CLASSES)]
        parts = [radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1) for turn in turns]
    points = torch.from_numpy(np.concatenate(parts)).float()
    return points, torch.arange(CLASSES).repeat_interleave(PER_CLASS)


def ideal_x0(x: Tensor, level: NoiseLevel[float], points: Tensor) -> Tensor:
    """E[x0 | x_t = x] if the data are Gaussians of standard deviation BLUR around the points. (n, 2), (N, 2) -> (n, 2)

    Given the point p, x_t is a Gaussian around alpha p with variance v = (alpha BLUR)^2 + sigma^2, and
    E[x0 | x_t, p] = p + alpha BLUR^2 / v (x_t - alpha p). The weights of the points are their posterior probabilities.
    """
    v = (level.alpha * BLUR) ** 2 + level.sigma**2
    weights = (-torch.cdist(x, level.alpha * points).square() / (2 * v)).softmax(1)  # (n, N)
    shrink = level.alpha * BLUR**2 / v
    mean = weights @ points
    return mean + shrink * (x - level.alpha * mean)


class IdealDenoiser:
    """(x, level) -> (x0, eps), guided towards one class.

    points, labels  (N, 2), (N,)
    label           the class; None is all points alike, and w has no effect
    w               guidance scale
    """

    def __init__(self, points: Tensor, labels: Tensor, label: int | None, w: float):
        self.points, self.w = points, w
        self.own = points if label is None else points[labels == label]

    def predictions(self, x: Tensor, level: NoiseLevel[float]) -> dict[str, Tensor]:
        """Predictions of the clean point. x0 is affine in eps at one x, so guiding x0 is guiding eps. Each (n, 2)"""
        uncond, cond = (ideal_x0(x, level, points) for points in (self.points, self.own))
        return {"uncond": uncond, "cond": cond, "guided": guide(uncond, cond, self.w)}

    def __call__(self, x: Tensor, level: NoiseLevel[float]) -> tuple[Tensor, Tensor]:
        x0 = self.predictions(x, level)["guided"]
        return x0, (x - level.alpha * x0) / level.sigma


def square_grid(side: int) -> Tensor:
    """(side^2, 2), from -REACH to REACH"""
    line = torch.linspace(-REACH, REACH, side)
    return torch.cartesian_prod(line, line)


def denoise_plane(
    shape: str, label: int | None, w: float, sampler: str, steps: int, n: int, seed: int
) -> Iterator[PlaneMoment]:
    """Denoise a cloud of n points. The first moment is the noise."""
    points, labels = curves(shape)
    denoise = IdealDenoiser(points, labels, label, w)
    wanted = torch.ones(len(points), dtype=torch.bool) if label is None else labels == label
    schedule = make_schedule("cosine")
    levels, noise = schedule.noise_levels(steps), Noise(seed)
    places, corners = square_grid(FIELD), square_grid(VECTORS)

    def moment(done: int, x: Tensor) -> PlaneMoment:
        visited = list(levels)
        level = visited[min(done, steps - 1)]  # at the clean end there is no noise to remove
        field, vectors = denoise.predictions(places, level)["guided"], denoise.predictions(corners, level)
        sigma = visited[done].sigma
        return PlaneMoment(
            done, steps, sigma, x, visited[done].alpha * points, wanted, places, field, corners, vectors
        )

    x = initial_noise(levels, (n, 2), noise)
    yield moment(0, x)
    for step in Sampler(sampler, steps).trajectory(denoise, x, levels, noise):
        yield moment(step.i + 1, step.x)
