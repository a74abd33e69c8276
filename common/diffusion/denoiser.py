"""What a network predicts, and how the clean image and the noise follow from it. Each choice is a mixture of the two:

    y = a * x0 + b * eps

The table PREDICTIONS holds (a, b), which give the training target. With x_t = alpha x0 + sigma eps they make two
equations in two unknowns, and solving these recovers (x0, eps) from the output of any network.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from common.diffusion.schedules import NoiseLevel, append_dims, combine
from common.errors import UserError

SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1] that EDM assumes (Karras et al. 2022, table 1)
# what happens to predicted pixels outside [-1, 1]: nothing, clamping, or `threshold`
ClipMode = bool | Literal["dynamic"]
CLIP_MODES: dict[str, ClipMode] = {"static": True, "none": False, "dynamic": "dynamic"}  # their names on command lines


Coefficient = float | Tensor  # a number while sampling, (B, 1, 1, 1) while training
Mixture = tuple[Coefficient, Coefficient]  # (a, b)


def _edm(alpha: Coefficient, sigma: Coefficient) -> Mixture:
    norm = (sigma**2 + SIGMA_DATA**2) ** 0.5
    return sigma / SIGMA_DATA / norm, -SIGMA_DATA / norm


PREDICTIONS: dict[str, Callable[[Coefficient, Coefficient], Mixture]] = {  # name: (alpha, sigma) -> (a, b)
    "eps":  lambda alpha, sigma: (0.0, 1.0),       # Ho et al. 2020, eq. 14
    "x0":   lambda alpha, sigma: (1.0, 0.0),
    "v":    lambda alpha, sigma: (-sigma, alpha),  # Salimans & Ho 2022, section 4
    "flow": lambda alpha, sigma: (-1.0, 1.0),      # Lipman et al. 2023, eq. 23: the velocity dx/dt
    "edm":  _edm,                                  # Karras et al. 2022, eq. 8 with table 1's c_skip and c_out
}  # fmt: skip


def mixture(prediction: str, level: NoiseLevel) -> Mixture:
    """(a, b) of y = a x0 + b eps. UserError for a name that is not in PREDICTIONS."""
    if prediction not in PREDICTIONS:
        raise UserError(f"unknown prediction '{prediction}'; choose one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[prediction](level.alpha, level.sigma)


def target(prediction: str, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
    """The training target y = a x0 + b eps. (B, C, H, W)"""
    a, b = mixture(prediction, level)
    return a * x0 + b * eps


class Prediction(NamedTuple):
    """What a denoiser returns for a noisy image x_t: its estimates of the two parts. All (B, C, H, W)."""

    x0: Tensor
    eps: Tensor
    # v of `vlb.log_variance`, from a network with learned variance (Nichol & Dhariwal 2021)
    variance: Tensor | None = None


def to_x0_eps(
    prediction: str, y: Tensor, x: Tensor, level: NoiseLevel, clip_x0: ClipMode = False
) -> tuple[Tensor, Tensor]:
    """Solve  x = alpha x0 + sigma eps,  y = a x0 + b eps  for (x0, eps). All (B, C, H, W).

    If clip_x0 limits x0 to [-1, 1], eps follows from the limited x0, so that x is still the mixture of the two.
    """
    a, b = mixture(prediction, level)
    det = level.alpha * b - level.sigma * a
    x0 = combine(b / det, x, -level.sigma / det, y)
    if clip_x0:
        x0 = threshold(x0) if clip_x0 == "dynamic" else x0.clamp_(-1, 1)
        return x0, combine(1 / level.sigma, x, -level.alpha / level.sigma, x0)
    return x0, combine(-a / det, x, level.alpha / det, y)


def threshold(x0: Tensor, quantile: float = 0.995) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3). (B, C, H, W)

    Each image is clamped to [-s, s] and divided by s, where s is the given quantile of its |x0|, at least 1. Clamping
    to [-1, 1] would saturate all pixels beyond.
    """
    s = x0.float().abs().flatten(1).quantile(quantile, dim=1).clamp(min=1).to(x0.dtype)  # (B,)
    s = append_dims(s, x0)
    return x0.clamp(-s, s) / s


def scale_in(prediction: str, level: NoiseLevel) -> Coefficient:
    """c_in of EDM's table 1, which scales the network's input to unit variance (sigma reaches 80); 1 elsewhere."""
    return (level.sigma**2 + SIGMA_DATA**2) ** -0.5 if prediction == "edm" else 1.0


class Denoiser:
    """A trained network as a function (x, level) -> Prediction, which is all that a sampler needs.

    net         (B, C, H, W), (B,) -> (B, C, H, W), or (B, 2 C, H, W) with learned variance
    prediction  what the network was trained to predict, one of PREDICTIONS
    clip_x0     limit x0 to [-1, 1], the range of images: True, False or "dynamic" (see `threshold`)
    condition   further keyword arguments of the network: label=(B,), text=(B, M, D)
    """

    def __init__(self, net: nn.Module, prediction: str, clip_x0: ClipMode = True, **condition: Tensor):
        self.net = net
        self.prediction = prediction
        self.clip_x0: ClipMode = clip_x0
        self.condition = condition

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        y, *v = self.evaluate(x, level, self.condition)
        return Prediction(*to_x0_eps(self.prediction, y, x, level, self.clip_x0), *v)

    def evaluate(
        self, x: Tensor, level: NoiseLevel, condition: dict[str, Tensor], extra: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """One network evaluation: its output (y,), or (y, v) with learned variance. Each (B, C, H, W) like x.

        extra  (B', E, H, W) or None: further input channels without noise. B' divides B, and the images are repeated
        """
        time = torch.full(x.shape[:1], level.time, device=x.device)  # (B,)
        c_in = scale_in(self.prediction, level)
        x_in = x if c_in == 1.0 else c_in * x
        if extra is not None:
            x_in = torch.cat([x_in, extra.repeat(len(x) // len(extra), 1, 1, 1)], dim=1)  # (B, C + E, H, W)
        y = self.net(x_in, time, **condition)
        return (y,) if y.shape[1] == x.shape[1] else y.chunk(2, dim=1)
