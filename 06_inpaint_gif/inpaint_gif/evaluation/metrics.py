"""The measurements of evaluate_gif.py: recognition of drawn dishes, visibility of edges, drift over several keyframes,
and the direction of camera moves.
"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data import load
from common.evaluate.distances import Estimate, bootstrap
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from inpaint_gif.animation.camera import PANS, ZOOMS, CameraPath, Move, paint, render_frames
from inpaint_gif.animation.canvas import FilmCanvas, Window
from inpaint_gif.animation.motion import motion
from inpaint_gif.animation.timing import frame_times
from inpaint_gif.clip.dish_names import HELD_OUT, LEARNED, name_embeddings
from inpaint_gif.clip.model import ChineseCLIP
from inpaint_gif.clip.retrieval import FORTY, RetrievalAccuracy, classify_dishes, image_embeddings
from inpaint_gif.inpainting.compositing import overlay, resized, seam, tint_step
from inpaint_gif.inpainting.interface import InpaintingBackend
from inpaint_gif.training.holes import HoleTestSet

ANGLE = 30.0  # largest error of a measured direction, in degrees; the directions of the moves differ by 45


# --------------------------------------------------------------------------------------------------------- recognition


def recognition_accuracy(
    pipeline: TextToImagePipeline, classifier: ChineseCLIP, config: SamplingConfig, n: int
) -> dict[str, RetrievalAccuracy]:
    """Accuracy of a CLIP on drawn dishes, each assigned to the dish with the nearest name,
    among all dishes and among 40.

    It is measured on n pictures of each dish drawn from a learned name and from a held-out name, and on the drawings
    of the test split, which are the upper limit of this classifier.
    """
    order, names = list(LEARNED), name_embeddings(classifier, LEARNED)
    test = load("dishes", max(16, min(classifier.size, 256)), split="test", n=max(200, n * len(FORTY)))
    vectors = image_embeddings(classifier, test)
    result = classify_dishes("drawings of the test split", vectors, test.labels.to(names.device), names)
    for what, asked in (("by their names", {dish: dish for dish in LEARNED}), ("by names never read", HELD_OUT)):
        prompts = [name for name in asked.values() for _ in range(n)]
        labels = torch.tensor([order.index(dish) for dish in asked for _ in range(n)], device=names.device)
        vectors = classifier.encode_image(pipeline.txt2img(prompts, config))
        result |= classify_dishes(f"drawn by the model {what}", vectors, labels, names)
    return result


# --------------------------------------------------------------------------------------------------------------- edges


class EdgeMetrics(NamedTuple):
    """seam     mean of compositing.seam: the jump across the edge of the hole relative to jumps nearby
    error    mean absolute difference from the true picture inside the hole
    exact    whether every known pixel is unchanged, bit for bit
    seconds  time for one hole
    """

    seam: Estimate
    error: Estimate
    exact: bool
    seconds: float


def edge_metrics(backend: InpaintingBackend, test: HoleTestSet, seed: int = 0) -> EdgeMetrics:
    """Evaluate a backend on pictures with the holes of camera moves."""
    seams, errors, exact, began = [], [], True, time.perf_counter()
    for i, (image, mask, caption) in enumerate(zip(test.images, test.masks, test.captions, strict=True)):
        painted = backend(image * (1 - mask), mask, caption, seed + i).to(image).clamp(-1, 1)
        result = overlay(image, painted, mask)
        known = (mask == 0).expand_as(image)
        exact &= torch.equal(result[known], image[known])
        seams.append(seam(result, mask))
        errors.append(float((result - image).abs().sum() / (mask.sum() * len(image))))
    return EdgeMetrics(
        mean_estimate(seams), mean_estimate(errors), bool(exact), (time.perf_counter() - began) / len(test.images)
    )


def untouched_seam(test: HoleTestSet) -> Estimate:
    """The same measure on the original pictures."""
    return mean_estimate([seam(image, mask) for image, mask in zip(test.images, test.masks, strict=True)])


def mean_estimate(values: Sequence[float]) -> Estimate:
    """The mean with a 95 % bootstrap interval."""
    return bootstrap(lambda some: float(some.mean()), torch.tensor(values, dtype=torch.float64), times=500)


# --------------------------------------------------------------------------------------------------------------- drift


class DriftMetrics(NamedTuple):
    """How far the statistics of what was painted are from those of the picture, keyframe by keyframe.

    painted    RMS difference of the statistics, in [-1, 1] units, mean over all scenes. One for each keyframe
    untouched  the same for the true scenes: the table may look different farther from the plate
    ratio      mean of all painted ones / mean of all untouched ones; 1 is as in true scenes. Less is no advantage: a fill
               that repeats known pixels is nearer to them than the truth is
    step       the same ratio of compositing.tint_step, the change of the mean colour across the edges of the holes. A
               step that follows a whole edge is seen as a rectangle, also at 1
    """

    painted: list[float]
    untouched: list[float]
    ratio: Estimate
    step: Estimate


def drift_metrics(
    backend: InpaintingBackend, scenes: Tensor, captions: Sequence[str], move: str = "zoom-out:4", seed: int = 0
) -> DriftMetrics:
    """Paint the keyframes of a move that begins in the middle of each scene, each from the ones before, and compare
    the new part of each with the border of the picture, which is known.

    scenes  (N, C, 2 S, 2 S) in [-1, 1], true pictures of all that the camera will see; the middle S x S is the first
            keyframe
    """
    size = scenes.shape[2] // 2
    path, painted, untouched, steps = CameraPath.plan(Move.parse(move), size, size), [], [], []
    border = torch.ones(1, size, size)
    border[:, size // 8 : -(size // 8), size // 8 : -(size // 8)] = 0
    for i, (scene, caption) in enumerate(zip(scenes, captions, strict=True)):
        picture = scene_view(scene, Window(), size)
        known = statistics(picture, border)
        keyframes = [
            k for k in paint(FilmCanvas(picture), path, backend, caption, seed + i) if k.new and not k.stop.corner
        ]
        painted.append([rms(statistics(k.image, k.mask) - known) for k in keyframes])
        true = [scene_view(scene, k.stop.window, size) for k in keyframes]
        untouched.append([rms(statistics(view, k.mask) - known) for view, k in zip(true, keyframes, strict=True)])
        steps.append(
            [[tint_step(k.image, k.mask), tint_step(view, k.mask)] for view, k in zip(true, keyframes, strict=True)]
        )
    both = torch.tensor([painted, untouched], dtype=torch.float64)  # (2, N, K)
    step = torch.tensor(steps, dtype=torch.float64).transpose(1, 2)  # (N, 2, K)
    return DriftMetrics(*both.mean(1).tolist(), mean_ratio(both.transpose(0, 1)), mean_ratio(step))


def mean_ratio(pairs: Tensor) -> Estimate:
    """The mean of the first rows of pairs (N, 2, K) divided by that of the second ones; the bootstrap resamples N."""
    return bootstrap(lambda some: float(some[:, 0].mean() / some[:, 1].mean()), pairs, times=500)


def statistics(image: Tensor, mask: Tensor) -> Tensor:
    """Mean and standard deviation of each channel where the mask is above 0. (C, H, W), (1, H, W) -> (2 C,)"""
    pixels = image[:, mask[0] > 0]
    return torch.cat([pixels.mean(1), pixels.std(1, correction=0)])


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def scene_view(scene: Tensor, window: Window, size: int) -> Tensor:
    """What the camera sees of a scene (C, 2 size, 2 size), whose middle is the window (0, 0, 1). (C, size, size)"""
    side = round(size * window.scale)
    top, left = (size + round(centre) - side // 2 for centre in (window.y, window.x))
    if min(top, left) < 0 or max(top, left) + side > 2 * size:
        raise ValueError("the camera leaves the scene; choose a shorter move")
    return resized(scene[:, top : top + side, left : left + side], (size, size))


# ---------------------------------------------------------------------------------------------------------- directions


class DirectionAccuracy(NamedTuple):
    """frames   number of pairs of successive frames
    right    number of pairs whose content moves in the requested direction
    exact    whether the known part of each keyframe is unchanged, bit for bit
    seconds  time to paint and to render
    """

    frames: int
    right: int
    exact: bool
    seconds: float


def direction_accuracy(
    picture: Tensor, move: str, backend: InpaintingBackend, prompt: str, frames: int = 24, seed: int = 0
) -> DirectionAccuracy:
    """Make a film of one move, and measure the motion between successive frames."""
    began = time.perf_counter()
    path, canvas = CameraPath.plan(Move.parse(move), *picture.shape[1:]), FilmCanvas(picture)
    keyframes = list(paint(canvas, path, backend, prompt, seed))
    film = list(render_frames(canvas, path, frame_times(frames)))
    pairs = zip(film, film[1:], strict=False)
    right = sum(moves_as_requested(move, k, frames - 1, *motion(a, b)) for k, (a, b) in enumerate(pairs))
    known = [(k.mask == 0).expand_as(k.image) for k in keyframes]
    exact = all(torch.equal(k.image[where], k.moved[where]) for k, where in zip(keyframes, known, strict=True))
    return DirectionAccuracy(frames - 1, right, exact, time.perf_counter() - began)


def moves_as_requested(move: str, k: int, n: int, shift: np.ndarray, growth: float) -> bool:
    """Whether the content of pair k of n moves as this move requires:
    against the camera, or growing or shrinking in a zoom.
    """
    if move in ZOOMS:
        return growth * -ZOOMS[move] > 0
    if move == "ring":
        angle = 2 * math.pi * (k + 0.5) / n  # the camera moves along (cos, sin): right first, then down
        camera = (math.cos(angle), math.sin(angle))
    else:
        camera = PANS[move]
    cosine = -shift @ np.array(camera, float) / max(1e-9, np.linalg.norm(shift) * np.linalg.norm(camera))
    return bool(cosine > math.cos(math.radians(ANGLE)))
