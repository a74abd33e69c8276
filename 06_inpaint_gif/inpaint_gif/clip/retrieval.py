"""How well names and pictures find each other: pictures named by their nearest name, names answered by the nearest pictures."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data import Images
from common.evaluate.distances import Estimate, bootstrap
from common.io.pixels import to_float
from inpaint_gif.clip.dish_names import HELD_OUT, LEARNED, Names, vectors_of
from inpaint_gif.clip.model import ChineseClip

FORTY = tuple(list(LEARNED)[::2])  # every other dish of the menu: the smaller test


class Found(NamedTuple):
    """How often the right one is the nearest (top1), or among the five nearest (top5), with 95 % bootstrap intervals."""

    top1: Estimate
    top5: Estimate
    queries: int  # how many were asked
    choices: int  # among how many


def ranks(queries: Tensor, keys: Tensor, right: Tensor) -> Tensor:
    """How many keys are nearer to each query than the right one, ties against it. queries (N, D), keys (C, D), right (N,) -> (N,)"""
    cosines = queries @ keys.T                                # (N, C)
    own = cosines.gather(1, right[:, None])                   # (N, 1)
    return (cosines >= own).sum(1) - 1


def found(queries: Tensor, keys: Tensor, right: Tensor, times: int = 1000) -> Found:
    """Top-1 and top-5, resampled over the queries."""
    place = ranks(queries, keys, right)
    top1, top5 = (bootstrap(lambda hits: float(hits.mean()), (place < k).cpu().double(), times=times) for k in (1, 5))
    return Found(top1, top5, len(queries), len(keys))


def share_found(queries: Tensor, keys: Tensor, right: Tensor) -> float:
    """Top-1 alone, without an interval: for a look on the way."""
    return float((ranks(queries, keys, right) == 0).cpu().double().mean())


def naming(vectors: Tensor, dish: Tensor, names: Tensor, only: Sequence[int] | None = None) -> Found:
    """Pictures -> the dish with the nearest name. vectors (N, D) of pictures, dish (N,), names (C, D); only: some of the dishes."""
    return found(*among(vectors, names, dish, only))


def finding(names: Tensor, dish: Tensor, pictures: Tensor, only: Sequence[int] | None = None) -> Found:
    """Names -> the dish with the nearest pictures. names (N, D), dish (N,), pictures (C, D) from `centres`."""
    return found(*among(names, pictures, dish, only))


def among(queries: Tensor, keys: Tensor, right: Tensor, only: Sequence[int] | None) -> tuple[Tensor, Tensor, Tensor]:
    """The same question put only to these keys, with those queries whose answer is one of them."""
    if only is None:
        return queries, keys, right
    place = {k: i for i, k in enumerate(only)}
    kept = [i for i, k in enumerate(right.tolist()) if k in place]
    places = torch.tensor([place[k] for k in right[kept].tolist()], dtype=torch.long, device=right.device)
    return queries[kept], keys[list(only)], places


def centres(vectors: Tensor, dish: Tensor, number: int) -> Tensor:
    """The mean direction of the pictures of each dish; zero for a dish without one. (C, D)"""
    sums = vectors.new_zeros(number, vectors.shape[1]).index_add_(0, dish, vectors)
    return F.normalize(sums, dim=-1)


def picture_vectors(clip: ChineseClip, images: Images, batch: int = 128) -> Tensor:
    """(N, D)"""
    return torch.cat([clip.encode_image(to_float(part)) for part in images.pixels.split(batch)])


# ------------------------------------------------------------------------------------------------- the drawn dishes


def held_out_queries(clip: ChineseClip) -> tuple[Tensor, Tensor]:
    """The names that training never saw, (N, D), and which dish each is of, (N,)."""
    order = list(LEARNED)
    right = torch.tensor([order.index(dish) for dish in HELD_OUT], device=clip.device)
    return clip.encode_text(list(HELD_OUT.values())), right


def learned_queries(clip: ChineseClip) -> tuple[Tensor, Tensor]:
    """The names that it did see."""
    right = [k for k, names in enumerate(LEARNED.values()) for _ in names]
    return clip.encode_text([name for names in LEARNED.values() for name in names]), torch.tensor(right, device=clip.device)


def judge(clip: ChineseClip, sets: dict[str, Images]) -> dict[str, Found]:
    """All that this chapter reports of drawn dishes. sets: {"test": ..., "heldout": ...}, with the dish as label."""
    names, forty, result = vectors_of(clip, LEARNED), [list(LEARNED).index(dish) for dish in FORTY], {}
    vectors = {split: picture_vectors(clip, images) for split, images in sets.items()}
    for split, images in sets.items():
        for only in (None, forty):
            result[f"pictures of {split}, {len(names) if only is None else len(only)} dishes"] = naming(
                vectors[split], images.labels.to(names.device), names, only
            )
    if "test" not in sets:
        return result
    pictures = centres(vectors["test"], sets["test"].labels.to(names.device), len(LEARNED))
    for what, queries in (("learned names", learned_queries(clip)), ("held-out names", held_out_queries(clip))):
        for only in (None, forty):
            result[f"{what}, {len(names) if only is None else len(only)} dishes"] = finding(*queries, pictures, only)
    return result


# ------------------------------------------------------------------------------------------------- any other set


def caption_queries(clip: ChineseClip, images: Images, known: Names) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of any set, each to be named by its own of all captions in `known`: for `found`."""
    order = {caption: k for k, caption in enumerate(known)}
    right = torch.tensor([order[caption] for caption in images.captions], device=clip.device)
    return picture_vectors(clip, images), vectors_of(clip, known), right
