"""Retrieval accuracy of a CLIP in both directions:
each image to its nearest dish name, each name to the nearest images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data import Images
from common.evaluate.distances import Estimate, share
from common.io.pixels import to_float
from common.viz import words
from inpaint_gif.clip.dish_names import HELD_OUT, LEARNED, Names, name_embeddings
from inpaint_gif.clip.model import ChineseCLIP

FORTY = tuple(list(LEARNED)[::2])  # every other dish of the menu, for a smaller test


class RetrievalAccuracy(NamedTuple):
    """Shares of queries whose right answer is the nearest key (top1) or among the five nearest (top5),
    with 95 % Wilson intervals.
    """

    top1: Estimate
    top5: Estimate
    queries: int  # number of queries
    choices: int  # number of keys


def ranks(queries: Tensor, keys: Tensor, right: Tensor) -> Tensor:
    """Number of keys nearer to each query than its right key; ties count against it.
    queries (N, D), keys (C, D), right (N,) -> (N,)
    """
    cosines = queries @ keys.T  # (N, C)
    own = cosines.gather(1, right[:, None])  # (N, 1)
    return (cosines >= own).sum(1) - 1


def retrieval_accuracy(queries: Tensor, keys: Tensor, right: Tensor) -> RetrievalAccuracy:
    """Top-1 and top-5 accuracy."""
    rank = ranks(queries, keys, right)
    return RetrievalAccuracy(share(rank < 1), share(rank < 5), len(queries), len(keys))


def top1_accuracy(queries: Tensor, keys: Tensor, right: Tensor) -> float:
    """Top-1 accuracy without an interval, as a training run reports it."""
    return float((ranks(queries, keys, right) == 0).cpu().double().mean())


def classify_dishes(what: str, queries: Tensor, right: Tensor, keys: Tensor) -> dict[str, RetrievalAccuracy]:
    """Accuracy of assigning each query to the dish with the nearest key, among all dishes and among FORTY.

    what     queries, for the names of the results: "drawings", "held-out names"
    queries  (N, D) embeddings of images or names; right (N,) their dishes
    keys     (C, D) of each dish: of its names (name_embeddings) or of its images (centroids)
    """
    forty = [list(LEARNED).index(dish) for dish in FORTY]
    found = {}
    for only in (None, forty):
        n = len(keys) if only is None else len(only)
        name = words(f"{what}, {n} dishes", f"{what}，{n} 道菜")
        found[name] = retrieval_accuracy(*restricted(queries, keys, right, only))
    return found


def restricted(
    queries: Tensor, keys: Tensor, right: Tensor, only: Sequence[int] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep only these keys, and the queries whose right answer is one of them; `right` is renumbered."""
    if only is None:
        return queries, keys, right
    place = {k: i for i, k in enumerate(only)}
    kept = [i for i, k in enumerate(right.tolist()) if k in place]
    places = torch.tensor([place[k] for k in right[kept].tolist()], dtype=torch.long, device=right.device)
    return queries[kept], keys[list(only)], places


def centroids(vectors: Tensor, dish: Tensor, number: int) -> Tensor:
    """The mean direction of the images of each dish, (C, D); zero for a dish without images."""
    sums = vectors.new_zeros(number, vectors.shape[1]).index_add_(0, dish, vectors)
    return F.normalize(sums, dim=-1)


def image_embeddings(clip: ChineseCLIP, images: Images, batch: int = 128) -> Tensor:
    """Embeddings of a whole set of images. (N, D)"""
    return torch.cat([clip.encode_image(to_float(part)) for part in images.pixels.split(batch)])


# ------------------------------------------------------------------------------------------------- the drawn dishes


def name_queries(clip: ChineseCLIP, names: Names) -> tuple[Tensor, Tensor]:
    """Embeddings of names of dishes, (N, D), and the index in LEARNED of the dish of each, (N,)."""
    order = list(LEARNED)
    right = [order.index(dish) for dish, some in names.items() for _ in some]
    return clip.encode_text([name for some in names.values() for name in some]), torch.tensor(
        right, device=clip.device
    )


def held_out_queries(clip: ChineseCLIP) -> tuple[Tensor, Tensor]:
    """The same for the held-out names."""
    return name_queries(clip, {dish: (name,) for dish, name in HELD_OUT.items()})


def evaluate_dishes(clip: ChineseCLIP, sets: dict[str, Images]) -> dict[str, RetrievalAccuracy]:
    """All accuracies that this chapter reports on drawn dishes.
    sets: {"test": ..., "heldout": ...}, with the dish as label.
    """
    names, result = name_embeddings(clip, LEARNED), {}
    for split, images in sets.items():
        vectors, labels = image_embeddings(clip, images), images.labels.to(names.device)
        result |= classify_dishes(words(f"pictures of {split}", f"{split} 的图像"), vectors, labels, names)
        if split == "test":
            pictures = centroids(vectors, labels, len(LEARNED))
    if "test" in sets:
        result |= classify_dishes(words("learned names", "学过的名字"), *name_queries(clip, LEARNED), pictures)
        result |= classify_dishes(words("held-out names", "留出的名字"), *held_out_queries(clip), pictures)
    return result


# ------------------------------------------------------------------------------------------------- any other set


def caption_queries(clip: ChineseCLIP, images: Images, known: Names) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments of `retrieval_accuracy` for any captioned set:
    each image is to find its own caption among all in `known`.
    """
    order = {caption: k for k, caption in enumerate(known)}
    right = torch.tensor([order[caption] for caption in images.captions], device=clip.device)
    return image_embeddings(clip, images), name_embeddings(clip, known), right
