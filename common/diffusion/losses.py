"""What training minimises: the error of the network's answer, measured and weighted in the ways the field uses.

    loss = weight(SNR) * error(network(x_t, t), target)

`error` says how much large mistakes count beside small ones, `weight` how much each noise level counts. The paper's own
choice, and the default, is the squared error with equal weights (DDPM eq. 14).
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from common.diffusion.denoiser import mixture, scale_in, target
from common.diffusion.schedules import NoiseLevel, Schedule, add_noise
from common.diffusion.vlb import vlb_term
from common.errors import UserError

HUBER_DELTA = 0.1   # below it the Huber error is a parabola, above it straight lines
GAMMA = 5.0         # of min-SNR: levels cleaner than this SNR count no more (Hang et al. 2023, section 3.4)
VLB_WEIGHT = 0.001  # of the variational bound in the hybrid loss (Nichol & Dhariwal 2021, eq. 16)

ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": lambda y, goal: (y - goal).square(),
    "l1": lambda y, goal: (y - goal).abs(),
    "huber": lambda y, goal: F.huber_loss(y, goal, reduction="none", delta=HUBER_DELTA),
}

# Weights of a squared error of x0 as a function of SNR = alpha^2 / sigma^2. (An error in eps is that in x0 times SNR.)
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "p2": lambda snr: snr / (1 + snr),               # Choi et al. 2022, eq. 8 with k = 1, gamma = 1
    "min_snr": lambda snr: snr.clamp(max=GAMMA),     # Hang et al. 2023, eq. 8
}  # fmt: skip
WEIGHT_NAMES = ("plain", *WEIGHTS)


def weight_of(weight: str, prediction: str, level: NoiseLevel) -> Tensor | float:
    """By how much to multiply the squared error of the network's answer, so that x0's error has the weight of the table.

    With x_t given, x0 off by d means eps off by -alpha/sigma d, so that y = a x0 + b eps is off by (a - b alpha/sigma) d.
    """
    if weight == "plain":
        return 1.0
    ratio = level.alpha / level.sigma
    a, b = mixture(prediction, level)
    return WEIGHTS[weight](ratio**2) / (a - b * ratio) ** 2


def check_loss(error: str, weight: str) -> None:
    """Refuse unknown names before a training begins."""
    if error not in ERRORS:
        raise UserError(f"unknown loss '{error}'; choose one of {', '.join(ERRORS)}")
    if weight not in WEIGHT_NAMES:
        raise UserError(f"unknown weight '{weight}'; choose one of {', '.join(WEIGHT_NAMES)}")


def diffusion_loss(
    net: nn.Module, schedule: Schedule, prediction: str, x0: Tensor, u: Tensor, eps: Tensor,
    error: str = "l2", weight: str = "plain", **condition,
) -> Tensor:  # fmt: skip
    """The error of one training batch, image by image (DDPM eq. 14, for any schedule, prediction, error and weight). -> (B,)

    x0      (B, C, H, W) images in [-1, 1]
    u       (B,) uniform in [0, 1): becomes the noise level
    eps     (B, C, H, W) standard normal
    error   one of ERRORS
    weight  one of WEIGHT_NAMES

    A network that answers with twice the channels learns its variance too: the hybrid loss (Nichol & Dhariwal 2021, eq. 16).
    """
    check_loss(error, weight)
    level = schedule.sample_levels(u).like(x0)
    x = add_noise(x0, eps, level)
    y = net(scale_in(prediction, level) * x, level.time, **condition).float()
    y, *v = y.split(x0.shape[1], dim=1)
    each = ERRORS[error](y, target(prediction, x0, eps, level))
    loss = (weight_of(weight, prediction, level) * each).flatten(1).mean(1)
    if not v:
        return loss
    bits = vlb_term(schedule, prediction, x0, x, y.detach(), v[0], level)  # detached: it teaches the variance alone
    return loss + VLB_WEIGHT * schedule.T * bits
