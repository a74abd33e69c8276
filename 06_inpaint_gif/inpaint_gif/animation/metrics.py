"""What evaluate_gif.py measures: are dishes recognised, do edges show, does the camera go where it was told to?"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data import load
from common.evaluate.distances import Estimate, bootstrap
from inpaint_gif.animation.camera import PANS, ZOOMS, Move, Path, paint, shoot
from inpaint_gif.animation.canvas import World
from inpaint_gif.animation.motion import motion
from inpaint_gif.animation.timing import clock
from inpaint_gif.clip.dish_names import HELD_OUT, LEARNED, vectors_of
from inpaint_gif.clip.model import ChineseClip
from inpaint_gif.clip.retrieval import FORTY, Found, naming, picture_vectors
from inpaint_gif.inpainting.backends import Engine
from inpaint_gif.inpainting.compositing import overlay, seam
from inpaint_gif.inpainting.pipeline import Artist, How
from inpaint_gif.training.inpaint import Test

ANGLE = 30.0  # degrees by which the measured direction may miss: the directions that there are lie 45 apart


# ---------------------------------------------------------------------------------------------------------- recognised?


def recognised(artist: Artist, judge: ChineseClip, how: How, n: int, seed: int = 0) -> dict[str, Found]:
    """n pictures of each dish by its name, each given to the dish whose names lie nearest to it: among all, and among 40; the same
    of the names that no training saw; and of drawn dishes of the test split, as the judge's own limit."""
    order, names, result = list(LEARNED), vectors_of(judge, LEARNED), {}
    forty = [order.index(dish) for dish in list(LEARNED)[::2]]
    real = load("dishes", max(16, min(judge.size, 256)), split="test", n=max(200, n * len(FORTY)))
    vectors, right = picture_vectors(judge, real), real.labels.to(names.device)
    sets = {"drawings of the test split": (vectors, right)}
    for what, asked in (("by their names", {dish: dish for dish in LEARNED}), ("by names never read", HELD_OUT)):
        told = [name for name in asked.values() for _ in range(n)]
        right = torch.tensor([order.index(dish) for dish in asked for _ in range(n)], device=names.device)
        sets[f"drawn by the model {what}"] = (judge.encode_image(artist.draw(told, how, seed)), right)
    for what, (vectors, right) in sets.items():
        for only in (None, forty):
            result[f"{what}, {len(names) if only is None else len(only)} dishes"] = naming(vectors, right, names, only)
    return result


# --------------------------------------------------------------------------------------------------------------- edges?


class Edges(NamedTuple):
    """seam     mean over the holes of masks.seam: the jump across the edge against those nearby
    error    mean absolute difference, inside the hole, from what really was there: no engine can know it, but colours of the table it can
    exact    every known pixel is as it was, bit for bit
    seconds  for one hole
    """

    seam: Estimate
    error: Estimate
    exact: bool
    seconds: float


def edges(engine: Engine, test: Test, seed: int = 0) -> Edges:
    """An engine on pictures with holes as a camera leaves them."""
    seams, errors, exact, began = [], [], True, time.perf_counter()
    for i, (image, mask, caption) in enumerate(zip(test.images, test.masks, test.captions, strict=True)):
        painted = engine(image * (1 - mask), mask, caption, seed + i).to(image).clamp(-1, 1)
        together = overlay(image, painted, mask)
        exact &= torch.equal(together[(mask == 0).expand_as(image)], image[(mask == 0).expand_as(image)])
        seams.append(seam(together, mask))
        errors.append(float((together - image).abs().sum() / (mask.sum() * len(image))))
    return Edges(interval(seams), interval(errors), bool(exact), (time.perf_counter() - began) / len(test.images))


def untouched(test: Test) -> Estimate:
    """The same measure of seams where nobody has painted anything."""
    return interval([seam(image, mask) for image, mask in zip(test.images, test.masks, strict=True)])


def interval(values: Sequence[float]) -> Estimate:
    return bootstrap(lambda some: float(some.mean()), torch.tensor(values, dtype=torch.float64), times=500)


# --------------------------------------------------------------------------------------------------------- where it goes


class Went(NamedTuple):
    """frames   from one to the next, how many there are
    right    in how many of them the content moves as asked
    exact    at each keyframe what was seen before is there bit for bit
    seconds  to paint and to shoot
    """

    frames: int
    right: int
    exact: bool
    seconds: float


def went(picture: Tensor, name: str, engine: Engine, prompt: str, frames: int = 24, seed: int = 0) -> Went:
    """A film of one move, its direction measured between any two frames that follow each other."""
    began, path, world = time.perf_counter(), Path.plan(Move.parse(name), *picture.shape[1:]), World(picture)
    keyframes = list(paint(world, path, engine, prompt, seed))
    shots = list(shoot(world, path, clock(frames)))
    right = sum(as_asked(name, k, frames - 1, *motion(a, b)) for k, (a, b) in enumerate(zip(shots, shots[1:], strict=False)))
    exact = all(torch.equal(k.image[(k.mask == 0).expand_as(k.image)], k.moved[(k.mask == 0).expand_as(k.image)]) for k in keyframes)
    return Went(frames - 1, right, exact, time.perf_counter() - began)


def as_asked(name: str, k: int, n: int, shift: np.ndarray, growth: float) -> bool:
    """Whether step k of n moves the content as this move should: against the camera; a zoom grows or shrinks it."""
    if name in ZOOMS:
        return growth * -ZOOMS[name] > 0
    if name == "ring":
        angle = 2 * math.pi * (k + 0.5) / n  # the camera goes to (cos, sin): right first, then down
        camera = (math.cos(angle), math.sin(angle))
    else:
        camera = PANS[name]
    cosine = -shift @ np.array(camera, float) / max(1e-9, np.linalg.norm(shift) * np.linalg.norm(camera))
    return bool(cosine > math.cos(math.radians(ANGLE)))
