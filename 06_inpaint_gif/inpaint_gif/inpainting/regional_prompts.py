"""Control while a picture is being drawn: other words for other places, other words and other guidance as it goes on.

A sampler knows nothing but a function (x, level) -> (x0, eps). Whoever wants to say different things at different places or times
puts several such functions into one:

    regions   each place is told its own words; where two overlap, their guesses are averaged (Bar-Tal et al. 2023, MultiDiffusion)
    stages    from some share of the steps on, other words: what is large is settled early, what is fine later (Hertz et al. 2022)
    guidance  a scale that changes with the noise (Kynkaanniemi et al. 2024)
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

Progress = Callable[[NoiseLevel], float]  # how far the way is gone, 0 at pure noise and 1 at the picture
SOFT = 2.0  # latents over which a region gives way to the rest
PLACES = {"left": (0, 0, 0.5, 1), "right": (0.5, 0, 1, 1), "top": (0, 0, 1, 0.5), "bottom": (0, 0.5, 1, 1), "middle": (0.25, 0.25, 0.75, 0.75)}


# ----------------------------------------------------------------------------------------------------------- in words


@dataclass(frozen=True)
class Place:
    """Some part of the picture, and what it is told. box: left, top, right, bottom, in shares of the picture."""

    box: tuple[float, float, float, float]
    words: str

    @classmethod
    def parse(cls, text: str) -> "Place":
        """ "right:米饭", or "0.5,0,1,1:米饭"."""
        where, colon, words = text.replace("：", ":").partition(":")
        if not colon:
            raise UserError(f"cannot read the region '{text}': write PLACE:WORDS with a place of {', '.join(PLACES)}, or left,top,right,bottom from 0 to 1")
        return cls(PLACES.get(where.strip()) or box_of(where, text), words.strip())


def box_of(where: str, text: str) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = map(float, where.split(","))
    except ValueError:
        raise UserError(f"cannot read the region '{text}': '{where.strip()}' is none of {', '.join(PLACES)}, nor four numbers left,top,right,bottom") from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UserError(f"the region '{text}' is not within the picture: 0 <= left < right <= 1 and 0 <= top < bottom <= 1 are expected")
    return left, top, right, bottom


def read_stage(text: str) -> tuple[float, str]:
    """ "0.4:米饭" -> (0.4, "米饭"): from two fifths of the steps on, these words."""
    share, colon, words = text.replace("：", ":").partition(":")
    try:
        start = float(share)
    except ValueError:
        start = -1.0
    if not colon or not 0 < start < 1:
        raise UserError(f"cannot read the stage '{text}': write SHARE:WORDS with a share of the steps above 0 and below 1, as in 0.4:米饭")
    return start, words.strip()


def read_guidance(text: str) -> tuple[float, float]:
    """ "5" -> (5, 5); "8>2" -> (8, 2): from 8 at the noise to 2 at the picture."""
    try:
        first, *rest = (check_scale(float(word)) for word in text.split(">"))
    except ValueError:
        raise UserError(f"cannot read the guidance '{text}': write a scale, 5, or two, 8>2, for one that changes from noise to picture") from None
    if len(rest) > 1:
        raise UserError(f"cannot read the guidance '{text}': write one scale or two, as in 8>2")
    return first, rest[0] if rest else first


# -------------------------------------------------------------------------------------------------------- as denoisers


def progress_on(path: NoiseLevels) -> Progress:
    """What share of the steps is done when a sampler asks at a level; between two levels of the path, between their shares."""
    times = path.levels.time[:-1].numpy()                         # the last level is the picture, where nobody asks
    shares = np.arange(len(times)) / len(times)
    order = np.argsort(times)
    return lambda level: float(np.interp(float(level.time), times[order], shares[order]))


def changing(first: float, last: float, progress: Progress) -> Callable[[NoiseLevel], float]:
    """A guidance scale for common.diffusion.guidance.Guided that goes evenly from one number to the other."""
    return lambda level: first + (last - first) * progress(level)


def in_stages(stages: Sequence[tuple[float, Denoise]], progress: Progress) -> Denoise:
    """The denoiser whose stage it is. stages: (from which share of the steps on, denoiser); the first begins at 0."""
    stages = sorted(stages, key=lambda stage: stage[0])
    if stages[0][0] > 0:
        raise ValueError("the first stage must begin at 0")

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction | tuple[Tensor, Tensor]:
        return [each for begin, each in stages if begin <= progress(level) + 1e-9][-1](x, level)

    return denoise


def in_regions(parts: Sequence[tuple[Denoise, Tensor]]) -> Denoise:
    """Every denoiser sees the whole picture, and is listened to where its weight is. weights (1, 1, h, w), together above 0."""
    total = sum(weight for _, weight in parts)
    if not (total > 0).all():
        raise ValueError("some place belongs to no region")

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        predictions = [(each(x, level), weight / total) for each, weight in parts]
        x0 = sum(share * prediction[0] for prediction, share in predictions)
        eps = sum(share * prediction[1] for prediction, share in predictions)
        return Prediction(x0, eps)

    return denoise


def weights(places: Sequence[Place], height: int, width: int, soft: float = SOFT) -> list[Tensor]:
    """For the rest of the picture, and then for each place, how much its words count: (1, 1, h, w) each, together 1.

    A later place lies on an earlier one; its edge is soft.
    """
    rest, result = torch.ones(1, 1, height, width), []
    for place in reversed(places):
        mine = rest * soft_box(place.box, height, width, soft)
        result.append(mine)
        rest = rest - mine
    return [rest, *reversed(result)]


def soft_box(box: tuple[float, float, float, float], height: int, width: int, soft: float) -> Tensor:
    """1 inside, 0 outside, a straight slope over `soft` latents around each edge that is not the picture's own. (h, w)"""
    left, top, right, bottom = box
    sides = []
    for n, low, high in ((height, top, bottom), (width, left, right)):
        at = torch.arange(n) + 0.5
        rising = ((at - low * n) / max(soft, 1e-6) + 0.5).clamp(0, 1) if low > 0 else torch.ones(n)
        falling = ((high * n - at) / max(soft, 1e-6) + 0.5).clamp(0, 1) if high < 1 else torch.ones(n)
        sides.append(rising * falling)
    return sides[0][:, None] * sides[1]
