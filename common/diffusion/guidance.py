"""Classifier-free guidance (Ho & Salimans 2022), in short: chapter 2 writes it out and says why.

    guided = uncond + w (cond - uncond)

Here it also serves networks that are shown more than the noisy picture (`extra`), and scales that change on the way (w of a NoiseLevel).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.diffusion.denoiser import ClipMode, Prediction, scale_in, to_x0_eps
from common.diffusion.schedules import NoiseLevel
from common.errors import UserError

Condition = dict[str, Tensor]                # what the network is told besides x and the time: {"text": (B, M, D)}
Scale = float | Callable[[NoiseLevel], float]     # w, or w at each noise level


def drop_captions(text: Tensor, empty: Tensor, u: Tensor, share: float = 0.1) -> Tensor:
    """Replace a share of a training batch's captions by the empty one, each image with its own luck.

    text   (B, ...) token ids or embeddings
    empty  (...) the same of the empty caption
    u      (B,) uniform in [0, 1)
    """
    if not 0 <= share <= 1:
        raise UserError(f"the share of captions to drop must be between 0 and 1, not {share}; 0.1 is usual")
    return torch.where((u < share).view(-1, *[1] * (text.ndim - 1)), empty, text)


def guide(uncond: Tensor, cond: Tensor, w: float) -> Tensor:
    """Any two answers of one shape."""
    return uncond + w * (cond - uncond)


def rescale(guided: Tensor, cond: Tensor, phi: float) -> Tensor:
    """Shrink each guided answer to the standard deviation of the conditional one (Lin et al. 2023, eq. 14 to 16); phi = 0 is off."""
    sigma_pos, sigma_cfg = (y.std(dim=tuple(range(1, y.ndim)), keepdim=True) for y in (cond, guided))  # (B, 1, 1, 1)
    return phi * (sigma_pos / sigma_cfg.clamp(min=1e-8)) * guided + (1 - phi) * guided


def check_scale(w: float) -> float:
    if not 0 <= w < math.inf:
        raise UserError(f"the guidance scale must be 0 or more and finite, not {w}; 1 is off, and 2 to 8 is usual")
    return w


class Guided:
    """A guided network as a sampler wants it: guided(x, level) -> Prediction.

    net         (B, C [+ E], H, W), (B,), further keywords -> (B, C, H, W), or (B, 2 C, H, W) with learned variance
    prediction  what it was trained to say, one of common.diffusion.denoiser.PREDICTIONS
    cond        what it is told of each image; every tensor (B, ...)
    uncond      the same with the empty caption, or with what is not wanted; (B, ...), or (1, ...) for all images alike
    w           guidance scale, at least 0: a number, or a function of the NoiseLevel for guidance that changes on the way. 1 is off,
                0 listens to `uncond` alone; at both, the network does half the work
    clip_x0     after guiding: True, False or "dynamic". Latents know no bounds: False
    rescale     phi, 0 to 1
    interval    (low, high): guide where low < sigma / alpha <= high, and elsewhere take w = 1 (Kynkaanniemi et al. 2024)
    extra       (B, E, H, W), or (1, E, H, W) for all alike, or None: joined to x along the channels whenever the network is asked, and
                never noised. An inpainting network sees there the mask and what is to stay: 1 + 4 channels of latents
    """

    def __init__(
        self, net: nn.Module, prediction: str, cond: Condition, uncond: Condition, w: Scale, clip_x0: ClipMode = True,
        rescale: float = 0.0, interval: tuple[float, float] = (0.0, math.inf), extra: Tensor | None = None,
    ):  # fmt: skip
        if not callable(w):
            check_scale(w)
        if not 0 <= rescale <= 1:
            raise UserError(f"guidance rescale must be between 0 and 1, not {rescale}; 0 is off, and 0.7 is usual")
        if not 0 <= interval[0] < interval[1]:
            raise UserError(f"the guidance interval must be two noise levels, low and high with 0 <= low < high, not {interval}")
        if cond.keys() != uncond.keys():
            raise ValueError(f"both halves need the same keywords, but have {sorted(cond)} and {sorted(uncond)}")
        self.net, self.prediction, self.w, self.clip_x0, self.phi, self.interval = net, prediction, w, clip_x0, rescale, interval
        self.extra = extra
        self.cond, self.uncond = cond, {key: uncond[key].expand_as(cond[key]) for key in cond}
        self.both = {key: torch.cat([self.uncond[key], cond[key]]) for key in cond}                     # (2 B, ...)

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        w = self.scale(level)
        if w in (0, 1):
            answer, *variance = self.ask(x, level, self.cond if w == 1 else self.uncond)
        else:
            y, *v = self.ask(torch.cat([x, x]), level, self.both)                                       # (2 B, C, H, W)
            uncond, cond = y.chunk(2)                                                                   # twice (B, C, H, W)
            answer = guide(uncond, cond, w)
            if self.phi > 0:
                answer = rescale(answer, cond, self.phi)
            variance = [each.chunk(2)[1] for each in v]
        return Prediction(*to_x0_eps(self.prediction, answer, x, level, self.clip_x0), *variance)

    def scale(self, level: NoiseLevel) -> float:
        """w at this level, or 1 outside the interval."""
        low, high = self.interval
        ratio = level.sigma / level.alpha if level.alpha > 0 else math.inf
        if not low < ratio <= high:
            return 1.0
        return check_scale(self.w(level)) if callable(self.w) else self.w

    def ask(self, x: Tensor, level: NoiseLevel, condition: Condition) -> tuple[Tensor, ...]:
        """The network's answer, and its opinion of the variance if it has one. Each of x's shape."""
        time = torch.full(x.shape[:1], level.time, device=x.device)
        c_in = scale_in(self.prediction, level)
        seen = x if c_in == 1.0 else c_in * x
        if self.extra is not None:
            seen = torch.cat([seen, self.extra.repeat(len(x) // len(self.extra), 1, 1, 1)], dim=1)      # (B or 2 B, C + E, H, W)
        return self.net(seen, time, **condition).split(x.shape[1], dim=1)
