"""Classifier-free guidance longhand (Ho & Salimans 2022): how words get a grip on a picture.

Training. Some captions, about one in ten, are replaced by the empty one. So one network learns two things: the
distribution of images with this caption, and the distribution of all images. (`drop_captions`)

Sampling. Evaluate both, and move in the direction in which the caption changes the prediction:

    guided = uncond + w (cond - uncond)                                                                                 (1)

w = 0 ignores the caption, w = 1 is the conditional prediction itself, and w > 1 exaggerates it. The reason: up to a
factor -sigma, the noise eps is the gradient of log p(x), and by Bayes' rule log p(x | text) - log p(x) is log p(text |
x) plus a constant. So (1) follows the gradient of log p(x) + w log p(text | x), in which w weights the text. The
difference of two predictions replaces the gradient of an image classifier, hence the name of the method. (`Guided`)

Two ways of writing w. Ho & Salimans (eq. 6), and papers that follow them, count from 0:

    guided = (1 + w') cond - w' uncond           which is (1) with  w = 1 + w'
                                                 (2)

Off is w = 1 in (1), and w' = 0 in (2). This course, `diffusers` and Stable Diffusion write (1). A w' taken for a w
weakens guidance by one; the other mistake strengthens it by one.

In which space? The network may predict eps, x0, v, a velocity or EDM's mixture.
At one x and one level, each of them is

    answer = (a number) x0 + (something that x alone decides)           because x = alpha x0 + sigma eps leaves one
    unknown

and the weights of (1), w and 1 - w, add up to 1, so that the something passes through unchanged. Guiding the
predictions and then computing x0 from the result is therefore the same as computing x0 twice and guiding that;
likewise for eps and v. So (1) is applied to the output of the network, whatever it predicts. Nonlinear operations come
afterwards: images are clipped to [-1, 1] after guidance,
because the difference of two values that are already clipped at white is 0.

What w costs. The result is no longer a sample of p(x | text): with large w images become similar, saturated and
overexposed. If both distributions are Gaussians of equal width, samples end w times as far from the mean of all images
as they should (a test shows it). Four remedies:

    rescale           shrink the guided prediction to the standard deviation of the conditional one (Lin et al. 2023;
                      `rescale`)
    clip_x0="dynamic" shrink images that leave [-1, 1], instead of clipping them
    (`common.diffusion.denoiser.threshold`)
    interval          guide at some noise levels only (Kynkaanniemi et al. 2024; `Guided`)
    a smaller w
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
    """Shrink each guided answer until its standard deviation is that of the conditional one (Lin
    et al. 2023, section 3.4).

    sigma_pos = std(cond),  sigma_cfg = std(guided)          over all pixels and channels of one image        (eq. 14)
    rescaled  = guided * sigma_pos / sigma_cfg                                                                 (eq. 15)
    result    = phi * rescaled + (1 - phi) * guided          phi = 0 is off; the paper likes 0.7              (eq. 16)

    All (B, C, H, W). Unlike (1), this is not the same in every space: the paper's networks answer v, and so should one
    that is to be rescaled. Where there is much noise every eps, guided or not, is nearly x itself,
    and rescaling it does little.
    """
    sigma_pos, sigma_cfg = (y.std(dim=tuple(range(1, y.ndim)), keepdim=True) for y in (cond, guided))  # (B, 1, 1, 1)
    ratio = sigma_pos / sigma_cfg.clamp(min=1e-8)  # an untrained network answers 0 everywhere
    return phi * ratio * guided + (1 - phi) * guided


def noise_to_signal(level: NoiseLevel) -> float:
    """sigma / alpha: the noise level with the image at full strength, and so the same measure for every schedule."""
    return level.sigma / level.alpha if level.alpha > 0 else math.inf


class Guided:
    """A guided network as a sampler wants it: guided(x, level) -> Prediction, like
    `common.diffusion.denoiser.Denoiser`.

    net         (B, C, H, W), (B,), further keywords -> (B, C, H, W), or (B, 2 C, H, W) with learned variance
    prediction  what it was trained to say, one of common.diffusion.denoiser.PREDICTIONS
    cond        the condition of each image, {"text": encode(prompts)}; every tensor (B, ...)
    uncond      the same with the empty caption, {"text": encode([""])}; or with what is not wanted: a negative prompt
                takes the place of the empty one, so that (1) leads away from it. Tensors (B, ...), or (1, ...) for all
                images alike
    w           guidance scale, at least 0; 1 is off, and 0 listens to `uncond` alone
    clip_x0     after guiding: True, False or "dynamic" (see `common.diffusion.denoiser.threshold`)
    rescale     phi, 0 to 1; see `rescale`
    interval    (low, high): guide where low < sigma / alpha <= high, and elsewhere take w = 1. Kynkaanniemi et al.
                2024 find that guidance costs variety where there is much noise, and does hardly anything where there
                is little. For every schedule, sigma / alpha is the sigma of that paper; a share of the path would be
                other noise levels with every schedule and spacing

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
            answer, *variance = self.ask(x, level, self.cond if w == 1 else self.uncond)
        else:
            y, *v = self.ask(torch.cat([x, x]), level, self.both)  # (2 B, C, H, W)
            uncond, cond = y.chunk(2)  # twice (B, C, H, W)
            answer = guide(uncond, cond, w)
            if self.phi > 0:
                answer = rescale(answer, cond, self.phi)
            # an opinion on noise, not on the image: the conditional one stands
            variance = [each.chunk(2)[1] for each in v]
        return Prediction(*to_x0_eps(self.prediction, answer, x, level, self.clip_x0), *variance)

    def scale(self, level: NoiseLevel) -> float:
        """w, or 1 outside the interval."""
        low, high = self.interval
        return self.w if low < noise_to_signal(level) <= high else 1.0

    def ask(self, x: Tensor, level: NoiseLevel, condition: Condition) -> tuple[Tensor, ...]:
        """The network's answer, and its opinion of the variance if it has one. Each of x's shape."""
        time = torch.full(x.shape[:1], level.time, device=x.device)
        c_in = scale_in(self.prediction, level)
        y = self.net(x if c_in == 1.0 else c_in * x, time, **condition)
        return y.split(x.shape[1], dim=1)
