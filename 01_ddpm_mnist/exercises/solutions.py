"""Chapter 1 with your own hands: from a list of noise rates to digits out of noise, in three tiers.

Exercises 1 to 14 ask for a formula, 15 to 18 are programs with one fault each, 19 is a goal to reach. Work from top to
bottom. exercises.py is for you to fill in; solutions.py shows one way to do it. Later exercises may call the functions
of earlier ones. `python -m common.grade 01 --hint 2` gives a hint to exercise 2.

The conventions are those of ddpm.py and of the paper (Ho, Jain & Abbeel 2020):
  images      float32 in [-1, 1], shape (B, C, H, W)
  t           a noise level from 1 (nearly clean) to T (pure noise)
  beta_t      variance of the noise that step t adds;  alpha_bar_t = (1 - beta_1) (1 - beta_2) ... (1 - beta_t)
  alpha_bar   (T + 1,): the paper's t is the index, and entry 0 is the clean image, where alpha_bar = 1
  model       called as model(x_t, t - 1) with t - 1 of shape (B,), because the network counts levels from 0;
              it predicts the noise in x_t
No function changes the tensors it is given.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

EpsModel = Callable[[Tensor, Tensor], Tensor]  # (B, C, H, W), (B,) t - 1 -> (B, C, H, W) predicted noise


# --------------------------------------------------------------------------------------- tier 1: write the formula


def alpha_bars(betas: Tensor) -> Tensor:
    """Exercise 1. Which share of the image's variance is left after each step.

    alpha_bar_t = (1 - beta_1) (1 - beta_2) ... (1 - beta_t)        (DDPM, section 2, above eq. 4)

    betas    (T,) beta_1 ... beta_T
    returns  (T + 1,) alpha_bar_0 ... alpha_bar_T
    """
    # --- solution
    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)])
    # --- end


def add_noise(x0: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Exercise 2. Noise each image to its own level, all t steps in one shot.

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps         (DDPM, eq. 4)

    x0, eps    (B, C, H, W) images, standard normal noise
    t          (B,) integers from 0 (the clean image) to T
    alpha_bar  (T + 1,)
    returns    (B, C, H, W)
    """
    # --- solution
    a = alpha_bar[t].view(-1, 1, 1, 1)
    return a.sqrt() * x0 + (1 - a).sqrt() * eps
    # --- end


def guess_x0(x_t: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Exercise 3. If eps is the noise in x_t, what was the image?

    x_t, eps   (B, C, H, W) noisy images, the noise in them
    t          (B,) integers from 1 to T
    alpha_bar  (T + 1,)
    returns    (B, C, H, W) the x_0 that eq. 4 makes x_t of         (DDPM, eq. 15)
    """
    # --- solution
    a = alpha_bar[t].view(-1, 1, 1, 1)
    return (x_t - (1 - a).sqrt() * eps) / a.sqrt()
    # --- end


def score_of(eps: Tensor, t: Tensor, alpha_bar: Tensor) -> Tensor:
    """Exercise 4. The score that belongs to a predicted noise.

    The score, the gradient of log p_t at x_t, points to where noisy images are more probable. For one clean image x_0
    the density is the normal distribution of eq. 4, and its score is a multiple of the noise in x_t. The same multiple
    turns the network's prediction, an average over the images that x_t may come from, into the score of all of them.
    (Song & Ermon 2019, section 2.1; Vincent 2011)

    eps        (B, C, H, W) predicted noise
    t          (B,) integers from 1 to T
    alpha_bar  (T + 1,)
    returns    (B, C, H, W) the score at x_t
    """
    # --- solution
    return -eps / (1 - alpha_bar[t]).sqrt().view(-1, 1, 1, 1)
    # --- end


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Exercise 5. The noise level as a vector for the network: waves, fast and slow.

    angle_i = t / 10000^(i / half)      for i = 0 ... half - 1, with half = dim / 2
    result  = sin(angle_0) ... sin(angle_{half-1}), cos(angle_0) ... cos(angle_{half-1})

    (Vaswani et al. 2017, section 3.5. As in the code of DDPM the sines come first; that code divides i by half - 1,
    the formula of the paper, and this exercise, by half.)

    t        (B,) integers
    dim      an even number
    returns  (B, dim) float32
    """
    # --- solution
    half = dim // 2
    angle = t.float()[:, None] / 10_000 ** (torch.arange(half) / half)  # (B, half)
    return torch.cat([angle.sin(), angle.cos()], dim=1)
    # --- end


def add_class_embedding(embedding: Tensor, label: Tensor, table: Tensor) -> Tensor:
    """Exercise 6. Class conditioning: the network learns which class the image has.

    Each class has a vector of its own in a table that is trained like all weights. The vector of the image's class is
    added to the embedding of its noise level, and so it reaches every block of the U-Net.

    embedding  (B, D) time embeddings, one for each image
    label      (B,) integers from 0 to K - 1
    table      (K, D) a learned vector for each class
    returns    (B, D); gradients flow to the rows of `table` that were used, and to `embedding`
    """
    # --- solution
    return embedding + table[label]
    # --- end


def training_loss(model: EpsModel, pixels: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Exercise 7. One evaluation of the training loss: algorithm 1, with its random numbers given.

    L = mean of (eps - model(x_t, t - 1))^2                         (DDPM, eq. 14)

    1. turn the pixels into images: 0 (black) becomes -1, 255 (white) becomes 1   (section 3.3)
    2. a level t and  3. noise eps for each image: these are given
    4. noise the images in one shot (exercise 2)
    5. let the network predict the noise
    6. the mean squared error over all images and all pixels

    pixels     (B, C, H, W) uint8, 0 to 255
    t          (B,) integers from 1 to T
    eps        (B, C, H, W) standard normal noise
    returns    () a tensor that .backward() can be called on
    """
    # --- solution
    x0 = pixels.float() / 127.5 - 1
    x_t = add_noise(x0, t, eps, alpha_bar)
    return (model(x_t, t - 1) - eps).square().mean()
    # --- end


def training_step(
    net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, decay: float
) -> None:
    """Exercise 8. One step of the optimizer along this loss's gradient, then one of the average of the weights.

    average <- decay average + (1 - decay) weights                  (exponential moving average, EMA; DDPM, appendix B)

    Samples are drawn with the average, which lacks the jitter of the last few steps.

    net, average  two networks with the same parameters in the same order; both are changed in place
    optimizer     of net's parameters, which may hold gradients of the step before
    loss          () computed with net
    decay         in [0, 1), in practice 0.999 or so: close to 1 means a long memory
    """
    # --- solution
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
            mean.copy_(decay * mean + (1 - decay) * weight)
    # --- end


def langevin_step(x: Tensor, score: Tensor, delta: float, z: Tensor) -> Tensor:
    """Exercise 9. One step of Langevin dynamics, which samples a density p whose score you know.

    A step of size delta goes along the score, weighted by delta / 2, and adds noise of variance delta. After many
    small steps the points are distributed as p. (Song & Ermon 2019, section 2.2)

    x        (B, ...) the points
    score    (B, ...) the gradient of log p at x
    delta    size of the step, above 0
    z        (B, ...) fresh standard normal noise
    returns  (B, ...)
    """
    # --- solution
    return x + delta / 2 * score + delta**0.5 * z
    # --- end


def reverse_step(x_t: Tensor, t: int, eps: Tensor, z: Tensor, alpha_bar: Tensor) -> Tensor:
    """Exercise 10. One step back, from x_t to x_{t-1}: the body of the loop of algorithm 2.

    x_{t-1}   = mean + sqrt(variance) z
    mean      = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(1 - beta_t)       (DDPM, eq. 11)
    variance  = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t                    (DDPM, eq. 7)

    x_t, eps   (B, ...) noisy images, the network's prediction of the noise in them
    t          from T down to 1, the same for all images
    z          (B, ...) fresh standard normal noise
    alpha_bar  (T + 1,) all you need: beta_t follows from two of its entries
    returns    (B, ...); with t = 1 it does not depend on z
    """
    # --- solution
    now, before = alpha_bar[t], alpha_bar[t - 1]
    beta = 1 - now / before
    mean = (x_t - beta / (1 - now).sqrt() * eps) / (1 - beta).sqrt()
    variance = (1 - before) / (1 - now) * beta
    return mean + variance.sqrt() * z
    # --- end


@torch.no_grad()
def sample(
    model: EpsModel, shape: tuple[int, ...], alpha_bar: Tensor, times: list[int], generator: torch.Generator
) -> Tensor:
    """Exercise 11. From pure noise to images: algorithm 2, visiting all the noise levels or only some.

    Start with noise. From the noisiest level in `times` to the cleanest, let the network predict the noise and take one
    reverse step with a new z; the last step ends at level 0. A step from level 40 to level 20 is a step of a shorter
    chain with larger steps (Nichol & Dhariwal 2021, eq. 19), but the network only knows the levels of the long one.

    shape      (B, C, H, W) of the images to make
    alpha_bar  (T + 1,)
    times      the levels to visit, increasing: [1, 2, ..., T] is algorithm 2 itself, [20, 40, ..., T] twenty times
               faster
    generator  draw x first and then one z for each step, all with torch.randn(shape, generator=generator)
    returns    (B, C, H, W) the image after the last step
    """
    # --- solution
    chain = alpha_bar[[0, *times]]  # (K + 1,) a diffusion of K large steps
    x = torch.randn(shape, generator=generator)
    for k in range(len(times), 0, -1):
        eps = model(x, torch.full((len(x),), times[k - 1] - 1))
        z = torch.randn(shape, generator=generator)
        x = reverse_step(x, k, eps, z, chain)
    return x
    # --- end


def frechet_distance(a: Tensor, b: Tensor) -> Tensor:
    """Exercise 12. The Fréchet distance between two sets of features, the F of FID.

    Each set is replaced by the normal distribution with its mean and its covariance (torch.cov, which divides by
    N - 1), and the distance is that of the two normal distributions (Heusel et al. 2017; the lesson has the formula).
    It is 0 for equal sets, |shift|^2 if one set is the other one shifted, and (s - 1)^2 times the summed
    variances if one set is the other one, scaled by s > 0 about its mean.

    a, b     (N, D) and (M, D) features, float64
    returns  () float64
    """
    # --- solution
    A, B = a.T.cov(), b.T.cov()  # (D, D)
    root = torch.linalg.eigvals(A @ B).real.clamp(min=0).sqrt().sum()  # the trace of (A B)^(1/2)
    return (a.mean(0) - b.mean(0)).square().sum() + A.trace() + B.trace() - 2 * root
    # --- end


# ------------------------------------------------------------------------------------------- tier 1: derive and check


def posterior_variance(x0: float, t: int, alpha_bar: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Exercise 13. How uncertain is x_{t-1} when x_t and x_0 are known? Measure it, without eq. 7.

    Derive the variance of q(x_{t-1} | x_t, x_0) on paper first: it is proportional to the product of the two normal
    densities q(x_{t-1} | x_0) and q(x_t | x_{t-1}). Then simulate. Draw n pairs (x_{t-1}, x_t) of single numbers with
    the forward process that starts from x0, and estimate from the pairs alone how much x_{t-1} varies among those that
    have the same x_t. The check compares your estimate with theory, to 5 % for n = 200,000.

    x0         the clean value
    t          from 2 to T
    alpha_bar  (T + 1,)
    n          number of pairs
    generator  source of all random numbers
    returns    () or a float: the estimated variance
    """
    # --- solution
    now, before = alpha_bar[t], alpha_bar[t - 1]
    beta = 1 - now / before
    earlier = before.sqrt() * x0 + (1 - before).sqrt() * torch.randn(n, generator=generator)  # x_{t-1}
    x_t = (1 - beta).sqrt() * earlier + beta.sqrt() * torch.randn(n, generator=generator)
    a, b = earlier - earlier.mean(), x_t - x_t.mean()
    slope = (a * b).mean() / b.square().mean()  # the best prediction of x_{t-1} from x_t is a straight line
    return (a - slope * b).square().mean()
    # --- end


def tweedie_mean(log_density: Callable[[Tensor], Tensor], x_t: Tensor, alpha_bar_t: float) -> Tensor:
    """Exercise 14. The mean of all clean points that x_t may come from, out of the density of noisy points alone.

    Derive it: p_t(x_t) is an integral of p(x_0) N(x_t; sqrt(alpha_bar_t) x_0, 1 - alpha_bar_t) over x_0. Take the
    gradient of its logarithm, and solve for E[x_0 | x_t] (Tweedie's formula; Efron 2011). The check knows the clean
    points, computes their average weighted by how probable each is, and compares.

    log_density  log p_t, of (B, D) -> (B,): differentiable, the points of a batch independent of each other
    x_t          (B, D) noisy points
    alpha_bar_t  their noise level, in (0, 1)
    returns      (B, D) E[x_0 | x_t] for each
    """
    # --- solution
    x = x_t.detach().clone().requires_grad_()
    (score,) = torch.autograd.grad(log_density(x).sum(), x)
    return (x_t + (1 - alpha_bar_t) * score) / alpha_bar_t**0.5
    # --- end


# ------------------------------------------------------------------------------------------------ tier 2: find the bug


def fix_last_step(model: EpsModel, shape: tuple[int, ...], alpha_bar: Tensor, generator: torch.Generator) -> Tensor:
    """Exercise 15. Find the bug: every sample has a fine grain.

    The program is algorithm 2 with the paper's other choice of the variance, beta_t instead of eq. 7 (section 3.2).
    Each step but one is right. With T = 1000 the grain is too fine to be seen, so the bug stays unnoticed; in a chain
    of 20 levels you see it on the first picture. Repair the program, keep its variance beta_t, and draw the random
    numbers in the same order.

    shape      (B, C, H, W) of the images to make
    alpha_bar  (T + 1,)
    returns    (B, C, H, W) the images
    """
    x = torch.randn(shape, generator=generator)
    for t in range(len(alpha_bar) - 1, 0, -1):
        with torch.no_grad():
            eps = model(x, torch.full((len(x),), t - 1))
        beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
        mean = (x - beta / (1 - alpha_bar[t]).sqrt() * eps) / (1 - beta).sqrt()
        # --- solution
        z = torch.randn(shape, generator=generator) if t > 1 else torch.zeros(shape)
        # --- given
        #| z = torch.randn(shape, generator=generator)
        # --- end
        x = mean + beta.sqrt() * z
    return x


def fix_range(model: EpsModel, pixels: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Exercise 16. Find the bug: black comes back as grey.

    The program noises pictures, and a network that predicts the noise well removes it in one evaluation. The result
    should be the pictures. White stays white, but the background is grey, and no error is raised.

    pixels   (B, C, H, W) uint8, 0 to 255
    t        (B,) integers from 1 to T
    eps      (B, C, H, W) standard normal noise
    returns  (B, C, H, W) uint8, the denoised pictures
    """
    # --- solution
    x0 = pixels / 127.5 - 1
    # --- given
    #| x0 = pixels / 255
    # --- end
    x_t = add_noise(x0, t, eps, alpha_bar)
    with torch.no_grad():
        eps_predicted = model(x_t, t - 1)
    denoised = guess_x0(x_t, t, eps_predicted, alpha_bar).clamp(-1, 1)
    return ((denoised + 1) * 127.5).round().to(torch.uint8)


def fix_levels(
    net: nn.Module, x0: Tensor, shape: tuple[int, ...], alpha_bar: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Exercise 17. Find the bug: the loss is low, and the samples are noisy.

    The program evaluates the training loss on a batch, then draws samples with the same network. With T = 1000 the
    samples are nearly right. The fewer levels there are, the more noise is left in them, however long you train.
    Repair the program, and draw the random numbers in the same order. The network has T levels, 0 to T - 1.

    x0         (N, C, H, W) images to train on
    shape      (B, C, H, W) of the images to make
    alpha_bar  (T + 1,)
    returns    () the loss, (B, C, H, W) the samples
    """
    T = len(alpha_bar) - 1
    # --- solution
    t = torch.randint(1, T + 1, (len(x0),), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    loss = (net(add_noise(x0, t, eps, alpha_bar), t - 1) - eps).square().mean()
    # --- given
    #| t = torch.randint(T, (len(x0),), generator=generator)
    #| eps = torch.randn(x0.shape, generator=generator)
    #| loss = (net(add_noise(x0, t, eps, alpha_bar), t) - eps).square().mean()
    # --- end
    x = torch.randn(shape, generator=generator)
    with torch.no_grad():
        for level in range(T, 0, -1):
            eps = net(x, torch.full((len(x),), level - 1))
            x = reverse_step(x, level, eps, torch.randn(shape, generator=generator), alpha_bar)
    return loss, x


def fix_training_log(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Tensor],
    alpha_bar: Tensor,
    generator: torch.Generator,
) -> list[float]:
    """Exercise 18. Find the bug: the training needs more memory with every step.

    The program trains a network and keeps a smoothed loss for the plot. The network learns as it should, and the
    curve is right. But memory grows step by step, and a long run is killed by the operating system.

    batches  images (B, C, H, W), one batch for each step
    returns  the smoothed loss after each step
    """
    log, smooth = [], 0.0
    for x0 in batches:
        t = torch.randint(1, len(alpha_bar), (len(x0),), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        loss = (net(add_noise(x0, t, eps, alpha_bar), t - 1) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # --- solution
        smooth = 0.9 * smooth + 0.1 * loss.item()
        # --- given
        #| smooth = 0.9 * smooth + 0.1 * loss
        # --- end
        log.append(smooth)
    return log


# ------------------------------------------------------------------------------------------------ tier 3: reach a goal


def fifteen_evaluations(model: EpsModel, x_T: Tensor, alpha_bar: Tensor, generator: torch.Generator) -> Tensor:
    """Exercise 19. Reach a goal: good samples with at most 15 evaluations of the network.

    The data are points in the plane, in eight blobs of unequal weight. The network is ideal: it predicts the best noise
    at every level. What is left is the sampler. The goal is an error of at most 0.03: the distance by which the samples'
    quantiles miss those of the data, averaged over quantiles and over 16 directions (`sliced_distance` in
    test_exercises.py). Fifteen reverse steps between equally spaced levels have about 0.06, points of the data
    themselves 0.01.

    model      called as model(x, t - 1) with points (N, 2) and levels (N,); the 16th call raises an error
    x_T        (N, 2) standard normal noise to start from
    alpha_bar  (T + 1,) with T = 1000: the linear schedule of DDPM
    generator  source of more noise, if you want some
    returns    (N, 2) the samples
    """
    # --- solution
    T = len(alpha_bar) - 1
    times = [round(T * (k / 15) ** 2) for k in range(15, -1, -1)]  # small steps where little noise is left
    x = x_T
    for t, earlier in zip(times[:-1], times[1:], strict=True):
        now, before = alpha_bar[t], alpha_bar[earlier]
        eps = model(x, torch.full((len(x),), t - 1))
        x0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
        x = before.sqrt() * x0 + (1 - before).sqrt() * eps  # the same noise, at the lower level
    return x
    # --- end
