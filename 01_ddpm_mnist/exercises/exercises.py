"""Chapter 1 with your own hands: eight functions, from a list of noise rates to digits out of noise.

Work from top to bottom. exercises.py is for you to fill in; solutions.py shows one way to do it. Later exercises may
call the functions of earlier ones.

The conventions are those of ddpm.py and of the paper (Ho, Jain & Abbeel 2020):
  images      float32 in [-1, 1], shape (B, C, H, W)
  t           a noise level from 1 (nearly clean) to T (pure noise)
  beta_t      how much noise step t adds;  alpha_t = 1 - beta_t;  alpha_bar_t = alpha_1 alpha_2 ... alpha_t
  alpha_bar   (T + 1,): the paper's t is the index, and entry 0 is the clean image, where nothing is noise
  model       called as model(x_t, t - 1) with t - 1 of shape (B,), because networks count from 0; says what noise is
              in x_t
No function changes the tensors it is given.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

EpsModel = Callable[[Tensor, Tensor], Tensor]  # (B, C, H, W), (B,) t - 1 -> (B, C, H, W) predicted noise


def alpha_bars(betas: Tensor) -> Tensor:
    """Exercise 1. How much of the image is left after each step.

    alpha_bar_t = (1 - beta_1) (1 - beta_2) ... (1 - beta_t)        (DDPM, section 2, above eq. 4)

    betas    (T,) beta_1 ... beta_T
    returns  (T + 1,) alpha_bar_0 ... alpha_bar_T

    Watch out: the result has one entry more than betas. What is alpha_bar_0, before any noise?
    """
    raise NotImplementedError("exercise 1: alpha_bars")


def add_noise(x0: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Exercise 2. Noise each image to its own level, all t steps in one shot.

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps         (DDPM, eq. 4)

    x0, eps    (B, C, H, W) images, standard normal noise
    t          (B,) integers from 1 to T
    alpha_bar  (T + 1,)
    returns    (B, C, H, W)

    Watch out: alpha_bar[t] has shape (B,). To multiply whole images it must be (B, 1, 1, 1); as it is, PyTorch lines
    it up with the last axis, the columns of pixels, and says nothing where B happens to equal W.
    """
    raise NotImplementedError("exercise 2: add_noise")


def guess_x0(x_t: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Exercise 3. If eps is the noise in x_t, what was the image?

    x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)     (DDPM, eq. 15: eq. 4 solved for x_0)

    x_t, eps   (B, C, H, W) noisy images, the noise in them
    t          (B,) integers from 1 to T
    alpha_bar  (T + 1,)
    returns    (B, C, H, W)
    """
    raise NotImplementedError("exercise 3: guess_x0")


def training_loss(model: EpsModel, pixels: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Exercise 4. One evaluation of the training loss: algorithm 1, with its random numbers given.

    L = mean of (eps - model(x_t, t - 1))^2                         (DDPM, eq. 14)

    1. turn the pixels into images: 0 (black) becomes -1, 255 (white) becomes 1   (section 3.3)
    2. a level t and  3. noise eps for each image: these are given
    4. noise the images in one shot (exercise 2)
    5. ask the network which noise it sees
    6. how wrong was it? The mean over all images and all pixels of the squared difference

    pixels     (B, C, H, W) uint8, 0 to 255
    t          (B,) integers from 1 to T
    eps        (B, C, H, W) standard normal noise
    returns    () a tensor that .backward() can be called on

    Watch out: the network counts levels from 0 and the paper from 1.
    """
    raise NotImplementedError("exercise 4: training_loss")


def reverse_step(x_t: Tensor, t: int, eps: Tensor, z: Tensor, alpha_bar: Tensor) -> Tensor:
    """Exercise 5. One step back, from x_t to x_{t-1}: the body of the loop of algorithm 2.

    x_{t-1}   = mean + sqrt(variance) z
    mean      = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_t)          (DDPM, eq. 11)
    variance  = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t                    (DDPM, eq. 7)

    x_t, eps   (B, C, H, W) noisy images, the network's opinion of the noise in them
    t          from T down to 1, the same for all images
    z          (B, C, H, W) fresh standard normal noise
    alpha_bar  (T + 1,) all you need: alpha_t = alpha_bar_t / alpha_bar_{t-1}, and beta_t = 1 - alpha_t
    returns    (B, C, H, W)

    Watch out: the last step (t = 1) must add no noise. With eq. 7 and alpha_bar_0 = 1, does it?
    """
    raise NotImplementedError("exercise 5: reverse_step")


@torch.no_grad()
def sample(
    model: EpsModel, shape: tuple[int, ...], alpha_bar: Tensor, times: list[int], generator: torch.Generator
) -> Tensor:
    """Exercise 6. From pure noise to images: algorithm 2, visiting all the noise levels or only some.

    x = z_0;  then, for the levels from the noisiest to the cleanest:  ask the network, take one reverse step with a
              new z

    shape      (B, C, H, W) of the images to make
    alpha_bar  (T + 1,)
    times      the levels to visit, increasing: [1, 2, ..., T] is algorithm 2 itself, [20, 40, ..., T] twenty times
               faster
    generator  draw x first and then one z for each step, all with torch.randn(shape, generator=generator)
    returns    (B, C, H, W) the image after the last step

    Watch out: a step from 40 to 20 is not the step from 40 to 39. The entries of alpha_bar at 0 and at `times` are the
    alpha_bar of a shorter chain, with larger steps; walk that one back (Nichol & Dhariwal 2021, eq. 19). The network,
    though, only knows the levels of the long chain.
    """
    raise NotImplementedError("exercise 6: sample")


def training_step(
    net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, decay: float
) -> None:
    """Exercise 7. Let the network learn from its error, then move its average a little towards it.

    average <- decay average + (1 - decay) weights                  (exponential moving average, EMA; DDPM, appendix B)

    Samples are drawn with the average: it has the same shape as the network,
    but without the jitter of the last few steps.

    net, average  two networks with the same parameters in the same order; both are changed in place
    optimizer     of net's parameters
    loss          () computed with net
    decay         in [0, 1), in practice 0.999 or so: close to 1 means a long memory

    Watch out: gradients of the step before may still lie in net's parameters, and `backward` adds to them. Averaging
    comes after the optimizer's step, or it lags.
    It is no part of the computation that gradients flow through: torch.no_grad().
    """
    raise NotImplementedError("exercise 7: training_step")


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Exercise 8. Tell a network the time in waves, some fast like a second hand, some slow like an hour hand.

    angle_i = t / 10000^(i / half)      for i = 0 ... half - 1, with half = dim / 2
    result  = sin(angle_0) ... sin(angle_{half-1}), cos(angle_0) ... cos(angle_{half-1})
                                                            (Vaswani et al. 2017, section 3.5; sines first, as in DDPM)

    t        (B,) integers
    dim      an even number
    returns  (B, dim) float32
    """
    raise NotImplementedError("exercise 8: time_embedding")
