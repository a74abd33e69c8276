"""The weights of the newest checkpoint: whether they are finite, the average follows them, and every class was seen."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from common.doctor.finding import Finding, fine, skipped, wrong
from common.doctor.runs.run_files import SHORT, Run

LAG = 0.1  # distance between average and weights over the weights' norm: 0.01 halfway through a healthy training, 0.001 at its end
EMBEDDING = "class_embedding.weight"


def findings(run: Run) -> Iterator[Finding]:
    """NaN in the weights, an average that lags, classes without training."""
    saved = run.checkpoint
    if saved is None:
        yield skipped("weights", "there is no checkpoint of common/training/loop.py")
        return
    broken = [name for name, value in saved["net"].items() if not value.isfinite().all()]
    if broken:
        yield wrong(
            "weights",
            f"{len(broken)} tensors hold NaN or infinity, {broken[0]} first",
            "resume from an earlier checkpoint",
        )
        return
    if saved["step"] >= SHORT:
        yield average(saved)
    if EMBEDDING in saved["net"]:
        yield classes(saved)


def average(saved: dict[str, Any]) -> Finding:
    """How far the averaged weights are from the weights themselves."""
    lag = relative_distance(saved["ema"], saved["net"])
    if lag <= LAG:
        return fine("average (EMA)", f"differs from the weights by {lag:.1%} of their norm")
    return wrong(
        "average (EMA)",
        f"differs from the weights by {lag:.0%} of their norm: it still remembers the start",
        "a shorter memory: a half-life of 5 % of the steps so far, or a decay of at most 1 - 10 / steps",
    )


def relative_distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """|one - other| / |other| over all tensors of floats."""
    names = [name for name, value in other.items() if value.is_floating_point()]
    apart = sum(float((one[name].cpu().double() - other[name].cpu().double()).square().sum()) for name in names)
    size = sum(float(other[name].cpu().double().square().sum()) for name in names)
    return (apart / size) ** 0.5 if size else 0.0


def classes(saved: dict[str, Any]) -> Finding:
    """AdamW keeps the mean square of each weight's gradient: it is exactly zero in the row of a class without images."""
    shape = saved["net"][EMBEDDING].shape
    squares = [
        state["exp_avg_sq"]
        for state in saved["optimizer"]["state"].values()
        if torch.is_tensor(state.get("exp_avg_sq")) and state["exp_avg_sq"].shape == shape
    ]
    if not squares:
        return skipped("classes", "the optimizer keeps no squares of gradients")
    unseen = sorted({row for square in squares for row in (square == 0).all(1).nonzero()[:, 0].tolist()})
    if not unseen:
        return fine("classes", f"all {shape[0]} were trained")
    return wrong(
        "classes",
        f"{', '.join(map(str, unseen[:10]))} of {shape[0]} never had a gradient: no image has this label",
        "check the labels of the data, or train with fewer classes",
    )
