"""What the network predicts, and how to read it. Every choice is one mixture of image and noise:

    y = a * x0 + b * eps

The table gives the training target. Together with x_t = alpha x0 + sigma eps it makes two equations in two unknowns,
and solving them gives (x0, eps) back from whatever the network was trained to say.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from common.diffusion.schedules import NoiseLevel, combine
from common.errors import UserError

SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1] that EDM assumes (Karras et al. 2022, table 1)
ClipMode = bool | Literal["dynamic"]  # how guesses of the image are kept in [-1, 1]: not at all, by cutting off, by `threshold`
CLIP_MODES: dict[str, ClipMode] = {"static": True, "none": False, "dynamic": "dynamic"}  # their names on command lines


def _edm(alpha, sigma):
    norm = (sigma**2 + SIGMA_DATA**2) ** 0.5
    return sigma / SIGMA_DATA / norm, -SIGMA_DATA / norm


PREDICTIONS = {  # name: (alpha, sigma) -> (a, b)
    "eps":  lambda alpha, sigma: (0.0, 1.0),       # Ho et al. 2020, eq. 14
    "x0":   lambda alpha, sigma: (1.0, 0.0),
    "v":    lambda alpha, sigma: (-sigma, alpha),  # Salimans & Ho 2022, section 4
    "flow": lambda alpha, sigma: (-1.0, 1.0),      # Lipman et al. 2023, eq. 23: the velocity dx/dt
    "edm":  _edm,                                  # Karras et al. 2022, eq. 8 with table 1's c_skip and c_out
}  # fmt: skip


def mixture(prediction: str, level: NoiseLevel):
    """(a, b) of y = a x0 + b eps."""
    if prediction not in PREDICTIONS:
        raise UserError(f"unknown prediction '{prediction}'; choose one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[prediction](level.alpha, level.sigma)


def target(prediction: str, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
    """What the network should answer. (B, C, H, W)"""
    a, b = mixture(prediction, level)
    return a * x0 + b * eps


class Prediction(NamedTuple):
    """What a denoiser returns for a noisy image x_t: its estimates of the two parts. All (B, C, H, W)."""

    x0: Tensor
    eps: Tensor
    variance: Tensor | None = None  # the v of `vlb.log_variance`, from a network with learned variance (Nichol & Dhariwal 2021)


def to_x0_eps(prediction: str, y: Tensor, x: Tensor, level: NoiseLevel, clip_x0: ClipMode = False) -> tuple[Tensor, Tensor]:
    """Solve  x = alpha x0 + sigma eps,  y = a x0 + b eps  for (x0, eps). All (B, C, H, W).

    clip_x0 keeps the image in [-1, 1]; whatever else there is in x is then noise, so that x is still made of the two.
    """
    a, b = mixture(prediction, level)
    det = level.alpha * b - level.sigma * a
    x0 = combine(b / det, x, -level.sigma / det, y)
    if clip_x0:
        x0 = threshold(x0) if clip_x0 == "dynamic" else x0.clamp_(-1, 1)
        return x0, combine(1 / level.sigma, x, -level.alpha / level.sigma, x0)
    return x0, combine(-a / det, x, level.alpha / det, y)


def threshold(x0: Tensor, share: float = 0.995) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): cut an image off at the value that 99.5 % of its pixels keep
    within, and where that is beyond 1, shrink the image until it is 1. Cutting off at 1 would turn such pixels all white.
    (B, C, H, W)
    """
    bound = x0.float().abs().flatten(1).quantile(share, dim=1).clamp(min=1).to(x0.dtype)  # (B,)
    bound = bound.view(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-bound, bound) / bound


def scale_in(prediction: str, level: NoiseLevel):
    """EDM's noisy images reach sigma = 80, so the network sees them scaled to unit variance (c_in of table 1)."""
    return (level.sigma**2 + SIGMA_DATA**2) ** -0.5 if prediction == "edm" else 1.0


class Denoiser:
    """A network and how to read it: denoiser(x, level) -> Prediction. This is all a sampler needs to know.

    net         (B, C, H, W), (B,) -> (B, C, H, W), or (B, 2 C, H, W) with learned variance, which the Prediction then holds
    prediction  what it was trained to say, one of PREDICTIONS
    clip_x0     keep the guessed image in [-1, 1], which no true image leaves: True, False or "dynamic" (see `threshold`)
    condition   further keyword arguments of the network: label=(B,), text=(B, M, D)
    """

    def __init__(self, net: nn.Module, prediction: str, clip_x0: ClipMode = True, **condition):
        self.net, self.prediction, self.clip_x0, self.condition = net, prediction, clip_x0, condition

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        time = torch.full(x.shape[:1], level.time, device=x.device)  # (B,)
        c_in = scale_in(self.prediction, level)
        y, *variance = self.net(x if c_in == 1.0 else c_in * x, time, **self.condition).split(x.shape[1], dim=1)
        return Prediction(*to_x0_eps(self.prediction, y, x, level, self.clip_x0), *variance)
