"""Classifier-free guidance (Ho & Salimans 2022), written out in full. The lesson derives it.

Training. Some captions, about one in ten, are replaced by the empty one. So one network learns two distributions: that
of noisy images with this caption, p_t(x | c), and that of all noisy images, p_t(x). (`drop_captions`)

Sampling. Evaluate both, and move in the direction in which the caption changes the prediction:

    guided = uncond + w (cond - uncond)                                                                           (1)

w = 0 ignores the caption, w = 1 is the conditional prediction, and w > 1 extrapolates. The reason: up to the factor
-sigma_t, the predicted eps is the score, the gradient of log p_t(x). By Bayes' rule for noisy images,

    grad log p_t(c | x) = grad log p_t(x | c) - grad log p_t(x)

so at each noise level (1) follows the gradient of log p_t(x) + w log p_t(c | x). The difference of two predictions
replaces the gradient of a classifier, hence the name of the method. (`Guided`)

Two ways of writing w. Ho & Salimans (eq. 6), and papers that follow them, count from 0:

    guided = (1 + w') cond - w' uncond           which is (1) with  w = 1 + w'                                    (2)

Off is w = 1 in (1), and w' = 0 in (2). This course, `diffusers` and Stable Diffusion write (1).

In which space? The network may predict eps, x0, v, a velocity or EDM's mixture. At one x and one level, all of them are
affine functions of one another, because x = alpha x0 + sigma eps leaves one unknown, and the weights of (1), w and
1 - w, sum to 1. So guiding the predictions and then computing x0 is the same as computing x0 twice and guiding that.
(1) is applied to the output of the network, whatever it predicts. Nonlinear operations follow: images are clipped to
[-1, 1] after guidance, because the difference of two values that are both clipped at white is 0.

What w costs. For w > 1 the result is neither a sample of p(x0 | c) nor, as one might expect, of the tilted distribution
p(x0) p(c | x0)^w: noised, that distribution has other scores than p_t(x) p_t(c | x)^w (Bradley & Nakkiran 2024). With
large w, samples overshoot and lose variety even for a perfect network, and the errors of a poor network are amplified.
Four remedies:

    a smaller w
    rescale           the standard deviation of the conditional prediction (Lin et al. 2023; `rescale`)
    clip_x0="dynamic" scale images that leave [-1, 1], instead of clipping them (`common.diffusion.denoiser.threshold`)
    interval          guide at some noise levels only (Kynkaanniemi et al. 2024; `Guided`)
"""

import math

import torch
from torch import Tensor, nn

from common.diffusion.denoiser import ClipMode, Prediction, scale_in, to_x0_eps
from common.diffusion.schedules import NoiseLevel
from common.errors import UserError

Condition = dict[str, Tensor]  # what conditions the network besides x and the time, by keyword: {"text": (B, M, D)}


def drop_captions(text: Tensor, empty: Tensor, u: Tensor, share: float = 0.1) -> Tensor:
    """Replace a share of a training batch's captions by the empty one, at random for each image.

    text   (B, ...) token ids (B, M), their mask, or embeddings (B, M, D)
    empty  (...) the same of the empty caption
    u      (B,) uniform in [0, 1): draw.rand(B) of common.random's Draw, which (seed, step) decide. Draw it last, so
           that levels and noise are those of a run without dropout. Ids and mask must be dropped with the same u

    A share of 0 drops none, 1 all.
    """
    if not 0 <= share <= 1:
        raise UserError(f"the share of captions to drop must be between 0 and 1, not {share}; 0.1 is usual")
    dropped = (u < share).view(-1, *[1] * (text.ndim - 1))  # (B, 1, ...)
    return torch.where(dropped, empty, text)


def guide(uncond: Tensor, cond: Tensor, w: float) -> Tensor:
    """Equation (1), for any two predictions of one shape."""
    return uncond + w * (cond - uncond)


def rescale(guided: Tensor, cond: Tensor, phi: float) -> Tensor:
    """Scale each guided prediction to the standard deviation of the conditional one (Lin et al. 2023, section 3.4).

    sigma_pos = std(cond),  sigma_cfg = std(guided)          over all pixels and channels of one image        (eq. 14)
    rescaled  = guided * sigma_pos / sigma_cfg                                                                 (eq. 15)
    result    = phi * rescaled + (1 - phi) * guided          phi = 0 is off; the paper uses 0.7               (eq. 16)

    All (B, C, H, W). Unlike (1), this is not the same in every space: the paper's networks predict v, and so should a
    network whose predictions are rescaled. At high noise every eps, guided or not, is nearly x itself, and rescaling
    it does little.
    """
    sigma_pos, sigma_cfg = (y.std(dim=tuple(range(1, y.ndim)), keepdim=True) for y in (cond, guided))  # (B, 1, 1, 1)
    ratio = sigma_pos / sigma_cfg.clamp(min=1e-8)  # an untrained network predicts 0
    return phi * ratio * guided + (1 - phi) * guided


def noise_to_signal(level: NoiseLevel) -> float:
    """sigma / alpha: the noise level with the image at full strength, and so the same measure for every schedule."""
    return level.sigma / level.alpha if level.alpha > 0 else math.inf


class Guided:
    """A guided network as samplers need it: guided(x, level) -> Prediction, like `common.diffusion.denoiser.Denoiser`.

    net         (B, C, H, W), (B,), further keywords -> (B, C, H, W), or (B, 2 C, H, W) with learned variance
    prediction  what it was trained to predict, one of common.diffusion.denoiser.PREDICTIONS
    cond        the condition of each image, {"text": encode(prompts)}; every tensor (B, ...)
    uncond      the same with the empty caption, {"text": encode([""])}; or with a negative prompt, from which (1) then
                leads away. Tensors (B, ...), or (1, ...) for all
                images alike
    w           guidance scale, at least 0; 1 is off, and 0 uses `uncond` alone
    clip_x0     after guiding: True, False or "dynamic" (see `common.diffusion.denoiser.threshold`)
    rescale     phi, 0 to 1; see `rescale`
    interval    (low, high): guide where low < sigma / alpha <= high, and elsewhere take w = 1. Kynkaanniemi et al.
                2024 find that guidance costs variety at high noise, and changes hardly anything at low noise. For
                every schedule, sigma / alpha is the sigma of that paper

    Both halves run as one batch of 2 B. Where w is 0 or 1 one half is enough, and the network does half the work.
    """

    def __init__(
        self,
        net: nn.Module,
        prediction: str,
        cond: Condition,
        uncond: Condition,
        w: float,
        clip_x0: ClipMode = True,
        rescale: float = 0.0,
        interval: tuple[float, float] = (0.0, math.inf),
    ):
        if not 0 <= w < math.inf:
            raise UserError(f"the guidance scale must be 0 or more and finite, not {w}; 1 is off, and 2 to 8 is usual")
        if not 0 <= rescale <= 1:
            raise UserError(f"guidance rescale must be between 0 and 1, not {rescale}; 0 is off, and 0.7 is usual")
        if not 0 <= interval[0] < interval[1]:
            raise UserError(
                f"the guidance interval must be two noise levels, low and high with 0 <= low < high, not {interval}"
            )
        if cond.keys() != uncond.keys():
            raise ValueError(f"both halves need the same keywords, but have {sorted(cond)} and {sorted(uncond)}")
        self.net, self.prediction, self.w = net, prediction, w
        self.clip_x0, self.phi, self.interval = clip_x0, rescale, interval
        self.cond, self.uncond = cond, {key: uncond[key].expand_as(cond[key]) for key in cond}
        self.both = {key: torch.cat([self.uncond[key], cond[key]]) for key in cond}  # (2 B, ...)

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        w = self.scale(level)
        if w in (0, 1):
            y_guided, *variance = self.evaluate(x, level, self.cond if w == 1 else self.uncond)
        else:
            y, *v = self.evaluate(torch.cat([x, x]), level, self.both)  # (2 B, C, H, W)
            uncond, cond = y.chunk(2)  # twice (B, C, H, W)
            y_guided = guide(uncond, cond, w)
            if self.phi > 0:
                y_guided = rescale(y_guided, cond, self.phi)
            # the variance is not guided: the conditional one
            variance = [each.chunk(2)[1] for each in v]
        return Prediction(*to_x0_eps(self.prediction, y_guided, x, level, self.clip_x0), *variance)

    def scale(self, level: NoiseLevel) -> float:
        """w, or 1 outside the interval."""
        low, high = self.interval
        return self.w if low < noise_to_signal(level) <= high else 1.0

    def evaluate(self, x: Tensor, level: NoiseLevel, condition: Condition) -> tuple[Tensor, ...]:
        """The network's prediction, and its variance if it has one. Each of x's shape."""
        time = torch.full(x.shape[:1], level.time, device=x.device)
        c_in = scale_in(self.prediction, level)
        y = self.net(x if c_in == 1.0 else c_in * x, time, **condition)
        return y.split(x.shape[1], dim=1)
