"""What training minimises: the error of the network's output, measured and weighted in the ways the field uses.

    loss = weight(SNR) * error(network(x_t, t), target)

`error` decides how much large errors count compared with small ones, `weight` how much each noise level counts. The
default is the squared error with equal weights, as in the DDPM paper (eq. 14).
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from common.diffusion.denoiser import mixture, scale_in, target
from common.diffusion.schedules import DiscreteSchedule, NoiseLevel, Schedule, add_noise
from common.diffusion.vlb import vlb_term
from common.errors import UserError

HUBER_DELTA = 0.1  # the Huber error is quadratic below it and linear above
GAMMA = 5.0  # min-SNR: all levels with a larger SNR have the same weight (Hang et al. 2023)
VLB_WEIGHT = 0.001  # lambda, the weight of the variational bound in L_hybrid (Nichol & Dhariwal 2021, eq. 16)

ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": lambda y, goal: (y - goal).square(),
    "l1": lambda y, goal: (y - goal).abs(),
    "huber": lambda y, goal: F.huber_loss(y, goal, reduction="none", delta=HUBER_DELTA),
}

# Weights of the squared error of x0 as functions of SNR = alpha^2 / sigma^2. The squared error of eps is SNR times it.
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "p2": lambda snr: snr / (1 + snr),  # Choi et al. 2022, with k = 1, gamma = 1
    "min_snr": lambda snr: snr.clamp(max=GAMMA),  # Hang et al. 2023
}
WEIGHT_NAMES = ("plain", *WEIGHTS)


def loss_weight(weight: str, prediction: str, level: NoiseLevel) -> Tensor | float:
    """Factor for the squared error of the output y that gives the error of x0 its weight in WEIGHTS. Shape of alpha.

    With x_t given, an error d in x0 means an error -alpha/sigma d in eps,
    and so an error (a - b alpha/sigma) d in y = a x0 + b eps.
    """
    if weight == "plain":
        return 1.0
    ratio = level.alpha / level.sigma
    a, b = mixture(prediction, level)
    return WEIGHTS[weight](ratio**2) / (a - b * ratio) ** 2


def check_loss(error: str, weight: str) -> None:
    """UserError for names that are not in ERRORS and WEIGHT_NAMES."""
    if error not in ERRORS:
        raise UserError(f"unknown loss '{error}'; choose one of {', '.join(ERRORS)}")
    if weight not in WEIGHT_NAMES:
        raise UserError(f"unknown weight '{weight}'; choose one of {', '.join(WEIGHT_NAMES)}")


def diffusion_loss(
    net: nn.Module,
    schedule: Schedule,
    prediction: str,
    x0: Tensor,
    u: Tensor,
    eps: Tensor,
    error: str = "l2",
    weight: str = "plain",
    **condition: Tensor,
) -> Tensor:
    """The loss of each image of a batch (DDPM eq. 14, for any schedule, prediction, error and weight). -> (B,)

    x0         (B, C, H, W) images in [-1, 1], or latents of unit variance
    u          (B,) uniform in [0, 1), from which the noise levels are sampled
    eps        (B, C, H, W) standard normal noise
    error      one of ERRORS
    weight     one of WEIGHT_NAMES
    condition  further keyword arguments of the network

    If the network's output has 2 C channels, it also learns the variance: L_hybrid (Nichol & Dhariwal 2021, eq. 16).
    """
    check_loss(error, weight)
    level = schedule.sample_levels(u).like(x0)
    x_t = add_noise(x0, eps, level)
    y = net(scale_in(prediction, level) * x_t, level.time, **condition).float()
    y, *v = y.split(x0.shape[1], dim=1)
    errors = ERRORS[error](y, target(prediction, x0, eps, level))  # (B, C, H, W)
    loss = (loss_weight(weight, prediction, level) * errors).flatten(1).mean(1)
    if not v:
        return loss
    L_vlb = vlb_term(schedule, prediction, x0, x_t, y.detach(), v[0], level)  # detached: it trains the variance alone
    assert isinstance(schedule, DiscreteSchedule)  # vlb_term refuses the others
    return loss + VLB_WEIGHT * schedule.T * L_vlb
