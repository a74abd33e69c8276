"""The loss of an autoencoder: the error of its reconstruction, and the information that its latents z hold.

    loss = reconstruction + kl_weight * KL [+ perceptual_weight * perceptual] [+ w * adversarial]     (Rombach et al.
    2022, eq. 25)

Reconstruction alone gives sharp images, but z cannot be sampled; with KL alone z is pure noise. Pixel errors are
smallest for the mean of all plausible details, which is blurred. The last two terms act against that blur, and both
may be left out.
"""

from collections.abc import Iterable
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from common.diffusion.losses import ERRORS, check_loss
from common.errors import UserError
from common.models.vae import Gaussian
from common.random import generator

KL_WEIGHT = 1e-6  # Rombach et al. 2022, appendix G: just enough to keep z from growing
LARGEST_WEIGHT = 1e4  # that the adversarial term can get
PERCEPTUAL = 0x1915  # the place of the perceptual network's random numbers: the same network in every run


class Parts(NamedTuple):
    """The terms of the loss, image by image, not yet weighted. Each (B,)"""

    pixels: Tensor
    kl: Tensor
    perceptual: Tensor  # zero where there is no such term
    total: Tensor  # their weighted sum: what is minimised


def vae_loss(
    x: Tensor,
    y: Tensor,
    z: Gaussian,
    error: str = "l1",
    kl_weight: float = KL_WEIGHT,
    perceptual: "Perceptual | None" = None,
    perceptual_weight: float = 1.0,
) -> Parts:
    """The error of one training batch, image by image.

    x, y    (B, C, H, W) image and reconstruction
    z       the encoder's posterior of x
    error   l1, l2 or huber, of the pixels
    """
    pixels, kl = reconstruction(x, y, error), kl_per_value(x, z)
    seen = perceptual(x, y) if perceptual else torch.zeros_like(pixels)
    return Parts(pixels, kl, seen, pixels + kl_weight * kl + perceptual_weight * seen)


def reconstruction(x: Tensor, y: Tensor, error: str = "l1") -> Tensor:
    """Mean error of the pixels. (B, C, H, W), (B, C, H, W) -> (B,)"""
    check_loss(error, "plain")
    if x.shape != y.shape:
        raise UserError(f"image and reconstruction differ in shape: {tuple(x.shape)} and {tuple(y.shape)}")
    return ERRORS[error](y.float(), x.float()).flatten(1).mean(1)


def kl_per_value(x: Tensor, z: Gaussian) -> Tensor:
    """KL of z to a standard normal, in nats for each pixel value of the image. -> (B,)

    Divided like the pixels' error, so that their balance does not depend on the size of the image. With error l2 and
    weight w the sum is, up to a factor, the bound of Kingma & Welling 2014 (eq.
    7) for pixels with Gaussian noise of variance w / 2.
    """
    return z.kl() / x[0].numel()


# --------------------------------------------------------------------------------------------------- perceptual


class Perceptual(nn.Module):
    """How differently a fixed network sees two images (Zhang et al. 2018, eq. 1, with all channels weighted alike):

        sum over stages of the mean over places of |f(x) - f(y)|^2,  features f scaled to length one at each place

    stages: modules to be applied one after the other, each a place to compare; random_stages(...) or part of a trained
    network. They are frozen.
    With random weights this is not LPIPS, which needs a network trained on a million photographs, and human ratings.
    It knows nothing of objects, nor of what people notice, and compares edges and their surroundings at a few scales.
    A blur costs more than a change of brightness with the same squared error, which is all that is needed here.
    """

    def __init__(self, stages: Iterable[nn.Module]):
        super().__init__()
        self.stages = nn.ModuleList(stages).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Perceptual":
        return super().train(False)  # a fixed network stays fixed, whatever it is a part of

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, C, H, W), (B, C, H, W) -> (B,); gradients go to y alone"""
        with torch.no_grad():
            goals = self.features(x)
        distances = (
            (f - goal).square().sum(1).flatten(1).mean(1) for f, goal in zip(self.features(y), goals, strict=True)
        )
        return reduce(torch.add, distances)

    def features(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> for each stage (B, channels, h, w), of length about one along the channels"""
        found = []
        for stage in self.stages:
            x = stage(x)
            # added inside: the root's slope stays finite at zero
            found.append(x / (x.square().sum(1, keepdim=True) + 1e-4).sqrt())
        return found


@torch.no_grad()
def random_stages(channels: int, widths: tuple[int, ...] = (16, 32, 64, 64)) -> list[nn.Sequential]:
    """Convolutions with fixed random weights (He et al. 2015), each stage at half the resolution of the one before.

    The filters of the first sum to zero, so that they see edges and no brightness: with plain ones it was left to
    chance, of twelve networks, whether a blur counted more than a change of brightness. The generator is the
    function's own: always the same network for the same arguments, and no other random number changes.
    """
    draw, stages = generator(PERCEPTUAL, channels, *widths), []
    for i, (c_in, c_out) in enumerate(pairwise((channels, *widths))):
        conv = nn.utils.skip_init(nn.Conv2d, c_in, c_out, 3, padding=1, padding_mode="replicate")
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=draw)
        nn.init.uniform_(conv.bias, -0.5, 0.5, generator=draw)  # else no contrast would be weaker than another
        if i == 0:
            conv.weight -= conv.weight.mean((2, 3), keepdim=True)
        stages.append(nn.Sequential(*[nn.AvgPool2d(2)] * (i > 0), conv, nn.ReLU()))
    return stages


# -------------------------------------------------------------------------------------------------- adversarial


class PatchDiscriminator(nn.Module):
    """Whether each patch of an image looks real: positive for yes (Isola et al. 2017, section 3.2.2).
    (B, C, H, W) -> (B, 1, h, w)

    It rates patches and not the whole image, because the reconstruction lacks texture, not layout. GroupNorm replaces
    the paper's BatchNorm, so that the output for an image does not depend on the others in the batch.
    """

    def __init__(self, channels: int, width: int = 32, layers: int = 2, groups: int = 8):
        super().__init__()
        self.smallest = 3 * 2**layers  # pixels a side
        net: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(layers):
            c_in, c_out, stride = width * min(2**i, 8), width * min(2 ** (i + 1), 8), 2 if i < layers - 1 else 1
            net += [
                nn.Conv2d(c_in, c_out, 4, stride, padding=1, bias=False),
                nn.GroupNorm(groups, c_out),
                nn.LeakyReLU(0.2),
            ]
        self.net = nn.Sequential(*net, nn.Conv2d(c_out, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.smallest:
            raise UserError(
                f"the discriminator needs images of at least {self.smallest} pixels a side, not {x.shape[2]} x {x.shape[3]}"
            )
        return self.net(x)


def discriminator_loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Hinge loss (Lim & Ye 2017): E[max(0, 1 - D(x))] / 2 + E[max(0, 1 + D(y))] / 2.
    For the discriminator's own step. -> (B,)
    """
    real, fake = net(x), net(y.detach())  # detached: the autoencoder learns nothing from it
    return (F.relu(1 - real) + F.relu(1 + fake)).flatten(1).mean(1) / 2


def adversarial_loss(net: nn.Module, y: Tensor) -> Tensor:
    """-E[D(y)], which is small where the autoencoder's images look real.
    The discriminator gets no gradient. (B, C, H, W) -> (B,)
    """
    fixed = {name: p.detach() for name, p in net.named_parameters()}
    return -functional_call(net, fixed, (y,)).flatten(1).mean(1)


def adaptive_weight(others: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """The weight at which the adversarial loss moves the decoder's last layer as much as the other terms do
    (Esser et al. 2021, eq. 7):

        w = |grad of others| / (|grad of adversarial| + 1e-6)

    others, adversarial: scalars; last: vae.decoder.conv_out.weight.
    The weight has no gradient. -> ()
    """
    grad = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (others, adversarial)]
    return (grad[0] / (grad[1] + 1e-6)).clamp(max=LARGEST_WEIGHT).detach()
