"""Control during sampling: different prompts in different regions,
and prompts and guidance that change from step to step.

A sampler only calls a function (x, level) -> (x0, eps). Several such denoisers are combined into one:

    regions   each region has its own prompt; where two overlap, their predictions are averaged (Bar-Tal et al. 2023,
              MultiDiffusion)
    stages    another prompt from some fraction of the steps on: early steps settle the layout, later ones details
              (Hertz et al. 2022)
    guidance  a guidance scale that changes with the noise level (Kynkaanniemi et al. 2024)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.diffusion.denoiser import Prediction
from common.diffusion.guidance import check_scale
from common.diffusion.samplers import Denoise
from common.diffusion.schedules import NoiseLevel, NoiseLevels
from common.errors import UserError

Progress = Callable[[NoiseLevel], float]  # fraction of the steps that are done, 0 at pure noise and 1 at the picture
SOFT = 2.0  # latents over which the edge of a region is softened
PLACES = {
    "left": (0, 0, 0.5, 1),
    "right": (0.5, 0, 1, 1),
    "top": (0, 0, 1, 0.5),
    "bottom": (0, 0.5, 1, 1),
    "middle": (0.25, 0.25, 0.75, 0.75),
}


# ------------------------------------------------------------------------------------------------------------ parsing


@dataclass(frozen=True)
class Region:
    """A part of the picture and its prompt. box: left, top, right, bottom as fractions of the picture."""

    box: tuple[float, float, float, float]
    prompt: str

    @classmethod
    def parse(cls, text: str) -> "Region":
        """ "right:米饭", or "0.5,0,1,1:米饭"."""
        where, colon, prompt = text.replace("：", ":").partition(":")
        if not colon:
            raise UserError(
                f"cannot read the region '{text}': write PLACE:PROMPT with a place of {', '.join(PLACES)}, "
                "or left,top,right,bottom from 0 to 1"
            )
        return cls(PLACES.get(where.strip()) or parse_box(where, text), prompt.strip())


def parse_box(where: str, text: str) -> tuple[float, float, float, float]:
    """ "0.5,0,1,1" -> (0.5, 0, 1, 1). text: the whole flag, for messages"""
    try:
        left, top, right, bottom = map(float, where.split(","))
    except ValueError:
        raise UserError(
            f"cannot read the region '{text}': '{where.strip()}' is none of {', '.join(PLACES)}, "
            "nor four numbers left,top,right,bottom"
        ) from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UserError(
            f"the region '{text}' is not within the picture: "
            "0 <= left < right <= 1 and 0 <= top < bottom <= 1 are expected"
        )
    return left, top, right, bottom


def parse_stage(text: str) -> tuple[float, str]:
    """ "0.4:米饭" -> (0.4, "米饭"): the prompt from two fifths of the steps on."""
    fraction, colon, prompt = text.replace("：", ":").partition(":")
    try:
        start = float(fraction)
    except ValueError:
        start = -1.0
    if not colon or not 0 < start < 1:
        raise UserError(
            f"cannot read the stage '{text}': write FRACTION:PROMPT with a fraction of the steps above 0 and below 1, "
            "as in 0.4:米饭"
        )
    return start, prompt.strip()


def parse_guidance(text: str) -> tuple[float, float]:
    """ "5" -> (5, 5); "8>2" -> (8, 2): from 8 at the noise to 2 at the picture."""
    try:
        first, *rest = (check_scale(float(part)) for part in text.split(">"))
    except ValueError:
        raise UserError(
            f"cannot read the guidance '{text}': write a scale, 5, or two, 8>2, for one that changes from noise to picture"
        ) from None
    if len(rest) > 1:
        raise UserError(f"cannot read the guidance '{text}': write one scale or two, as in 8>2")
    return first, rest[0] if rest else first


# ------------------------------------------------------------------------------------------------- combined denoisers


def progress_along(levels: NoiseLevels) -> Progress:
    """The fraction of the steps that are done at a noise level, interpolated linearly between the given levels."""
    times = levels.levels.time[:-1].numpy()  # the last level is the picture itself
    done = np.arange(len(times)) / len(times)
    order = np.argsort(times)
    return lambda level: float(np.interp(float(level.time), times[order], done[order]))


def changing_scale(first: float, last: float, progress: Progress) -> Callable[[NoiseLevel], float]:
    """A guidance scale for common.diffusion.guidance.Guided that changes linearly from `first` to `last`."""
    return lambda level: first + (last - first) * progress(level)


def in_stages(stages: Sequence[tuple[float, Denoise]], progress: Progress) -> Denoise:
    """Use each denoiser in its stage.
    stages: (fraction of the steps at which it begins, denoiser); the first begins at 0.
    """
    stages = sorted(stages, key=lambda stage: stage[0])
    if stages[0][0] > 0:
        raise ValueError("the first stage must begin at 0")

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction | tuple[Tensor, Tensor]:
        return [each for begin, each in stages if begin <= progress(level) + 1e-9][-1](x, level)

    return denoise


def in_regions(parts: Sequence[tuple[Denoise, Tensor]]) -> Denoise:
    """Average the predictions of denoisers, each for the whole picture, with weights (1, 1, h,
    w) whose sum is above 0.
    """
    total = sum(weight for _, weight in parts)
    if not (total > 0).all():
        raise ValueError("some pixel belongs to no region")

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        predictions = [(each(x, level), weight / total) for each, weight in parts]
        x0, eps = (sum(weight * prediction[k] for prediction, weight in predictions) for k in (0, 1))
        return Prediction(x0, eps)

    return denoise


def region_weights(regions: Sequence[Region], height: int, width: int, soft: float = SOFT) -> list[Tensor]:
    """Weights (1, 1, h, w) of the rest of the picture and of each region, with sum 1.

    A later region covers an earlier one; its edge is soft.
    """
    rest, result = torch.ones(1, 1, height, width), []
    for region in reversed(regions):
        mine = rest * soft_box(region.box, height, width, soft)
        result.append(mine)
        rest = rest - mine
    return [rest, *reversed(result)]


def soft_box(box: tuple[float, float, float, float], height: int, width: int, soft: float) -> Tensor:
    """1 inside, 0 outside, a linear slope over `soft` latents at each edge that is not a
    border of the picture. (h, w)
    """
    left, top, right, bottom = box
    sides = []
    for n, low, high in ((height, top, bottom), (width, left, right)):
        at = torch.arange(n) + 0.5
        rising = ((at - low * n) / max(soft, 1e-6) + 0.5).clamp(0, 1) if low > 0 else torch.ones(n)
        falling = ((high * n - at) / max(soft, 1e-6) + 0.5).clamp(0, 1) if high < 1 else torch.ones(n)
        sides.append(rising * falling)
    return sides[0][:, None] * sides[1]
