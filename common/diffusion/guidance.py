"""Classifier-free guidance (Ho & Salimans 2022). Chapter 2 derives it and writes it out in full.

    guided = uncond + w (cond - uncond)

It also serves networks with more input channels than the noisy image has (`extra`),
and scales that depend on the noise level.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.diffusion.denoiser import ClipMode, Denoiser, Prediction, to_x0_eps
from common.diffusion.schedules import NoiseLevel, append_dims
from common.errors import UserError

Condition = dict[str, Tensor]  # the network's conditioning by keyword: {"text": (B, M, D)}
Scale = float | Callable[[NoiseLevel], float]  # w, or w at each noise level


def drop_captions(text: Tensor, empty: Tensor, u: Tensor, share: float = 0.1) -> Tensor:
    """Caption dropout: replace each caption of a training batch by the empty one with probability `share`.

    text   (B, ...) token ids or embeddings
    empty  (...) the same of the empty caption
    u      (B,) uniform in [0, 1), which decides for each image
    """
    if not 0 <= share <= 1:
        raise UserError(f"the share of captions to drop must be between 0 and 1, not {share}; 0.1 is usual")
    return torch.where(append_dims(u < share, text), empty, text)


def guide(uncond: Tensor, cond: Tensor, w: float) -> Tensor:
    """uncond + w (cond - uncond), for two network outputs of one shape."""
    return uncond + w * (cond - uncond)


def rescale(guided: Tensor, cond: Tensor, phi: float) -> Tensor:
    """Scale each guided output to the standard deviation of the conditional one (Lin et al. 2023, eq. 14 to 16)."""
    sigma_pos, sigma_cfg = (y.std(dim=tuple(range(1, y.ndim)), keepdim=True) for y in (cond, guided))  # (B, 1, 1, 1)
    return phi * (sigma_pos / sigma_cfg.clamp(min=1e-8)) * guided + (1 - phi) * guided


def check_scale(w: float) -> float:
    """w itself. UserError for a negative or infinite scale."""
    if not 0 <= w < math.inf:
        raise UserError(f"the guidance scale must be 0 or more and finite, not {w}; 1 is off, and 2 to 8 is usual")
    return w


class Guided(Denoiser):
    """A guided network as a function (x, level) -> Prediction.

    net         (B, C [+ E], H, W), (B,), further keywords -> (B, C, H, W), or (B, 2 C, H, W) with learned variance
    prediction  what the network was trained to predict, one of common.diffusion.denoiser.PREDICTIONS
    cond        the conditioning of each image; every tensor (B, ...)
    uncond      the same for the empty caption or a negative prompt; (B, ...), or (1, ...) for all images alike
    w           guidance scale, at least 0: a number, or a function of the NoiseLevel. 1 is off, 0 uses `uncond` alone,
                and at both the network evaluates half as many images
    clip_x0     after guiding: True, False or "dynamic". Latents are not bounded: False
    rescale     phi, 0 to 1; 0 is off
    interval    (low, high): guide where low < sigma / alpha <= high, elsewhere w = 1 (Kynkaanniemi et al. 2024)
    extra       (B, E, H, W), or (1, E, H, W) for all images alike, or None: input channels without noise, such as the
                mask and the masked image of an inpainting network (1 + 4 channels of latents)
    """

    def __init__(
        self,
        net: nn.Module,
        prediction: str,
        cond: Condition,
        uncond: Condition,
        w: Scale,
        clip_x0: ClipMode = True,
        rescale: float = 0.0,
        interval: tuple[float, float] = (0.0, math.inf),
        extra: Tensor | None = None,
    ):
        if not callable(w):
            check_scale(w)
        if not 0 <= rescale <= 1:
            raise UserError(f"guidance rescale must be between 0 and 1, not {rescale}; 0 is off, and 0.7 is usual")
        if not 0 <= interval[0] < interval[1]:
            raise UserError(
                f"the guidance interval must be two noise levels, low and high with 0 <= low < high, not {interval}"
            )
        if cond.keys() != uncond.keys():
            raise ValueError(f"both halves need the same keywords, but have {sorted(cond)} and {sorted(uncond)}")
        super().__init__(net, prediction, clip_x0, **cond)
        self.uncond = {key: uncond[key].expand_as(cond[key]) for key in cond}
        self.both = {key: torch.cat([self.uncond[key], cond[key]]) for key in cond}  # (2 B, ...)
        self.w = w
        self.phi = rescale
        self.interval = interval
        self.extra = extra

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        w = self.scale(level)
        if w in (0, 1):
            y, *v = self.evaluate(x, level, self.condition if w == 1 else self.uncond, self.extra)
        else:
            both, *v = self.evaluate(torch.cat([x, x]), level, self.both, self.extra)  # (2 B, C, H, W)
            uncond, cond = both.chunk(2)  # each (B, C, H, W)
            y = guide(uncond, cond, w)
            if self.phi > 0:
                y = rescale(y, cond, self.phi)
            v = [each.chunk(2)[1] for each in v]  # the variance is not guided: the conditional one
        return Prediction(*to_x0_eps(self.prediction, y, x, level, self.clip_x0), *v)

    def scale(self, level: NoiseLevel) -> float:
        """w at this level, or 1 outside the interval."""
        low, high = self.interval
        sigma_over_alpha = level.sigma / level.alpha if level.alpha > 0 else math.inf
        if not low < sigma_over_alpha <= high:
            return 1.0
        return check_scale(self.w(level)) if callable(self.w) else self.w
