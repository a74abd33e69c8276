"""DDPM written out by the paper (Ho, Jain & Abbeel 2020): everything there is to it, on one screen and a half.

The paper's symbols: beta_t, alpha_bar_t = (1 - beta_1) (1 - beta_2) ... (1 - beta_t); t runs from 1 to T.
The paper also writes alpha_t for 1 - beta_t. This course does not, because other papers use alpha for other things.
All arrays have T + 1 entries so that the paper's t is the index; entry 0 is the clean image, where alpha_bar = 1.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

EpsModel = Callable[[Tensor, Tensor], Tensor]  # (B, C, H, W), (B,) t - 1 -> (B, C, H, W) predicted noise


class DDPM:
    """The constants of a diffusion with noise rates beta_1 ... beta_T."""

    def __init__(self, betas: Tensor):
        self.T = len(betas)
        self.beta = torch.cat([torch.zeros(1), betas.float()])  # (T + 1,)
        self.alpha_bar = (1 - self.beta).cumprod(0)

    # ---- the forward process: turning images into noise -------------------------------------------------------------

    def forward_step(self, x: Tensor, t: int, eps: Tensor) -> Tensor:
        """One small step, q(x_t | x_{t-1}) (eq. 2): shrink the image a little, add a little noise."""
        return (1 - self.beta[t]).sqrt() * x + self.beta[t].sqrt() * eps

    def noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """All t steps in one shot, q(x_t | x_0) (eq. 4). x0, eps: (B, C, H, W); t: (B,), from 1 to T."""
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps

    # ---- algorithm 1: training --------------------------------------------------------------------------------------

    def loss(self, model: EpsModel, x0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One evaluation of the training loss L_simple (eq. 14), in the six steps of algorithm 1. -> ()"""
        B = len(x0)  # 1. take images x0
        t = torch.randint(1, self.T + 1, (B,), generator=generator)  # 2. a time for each of them
        eps = torch.randn(x0.shape, generator=generator)  # 3. noise
        x_t = self.noise(x0, t, eps)  # 4. noise them in one shot
        guess = model(x_t, t - 1)  # 5. let the network predict the noise
        return (guess - eps).square().mean()  # 6. how wrong was it?

    # ---- algorithm 2: sampling --------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, model: EpsModel, shape: tuple[int, ...], generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """From pure noise back to images, yielding x_{T-1}, ..., x_0. shape: (B, C, H, W)"""
        x = torch.randn(shape, generator=generator)
        for t in range(self.T, 0, -1):
            eps = model(x, torch.full((len(x),), t - 1))
            z = torch.randn(shape, generator=generator) if t > 1 else torch.zeros(shape)  # no noise at the last step
            x = self.posterior_mean(x, eps, t) + self.posterior_variance(t) ** 0.5 * z
            yield x

    def posterior_mean(self, x: Tensor, eps: Tensor, t: int) -> Tensor:
        """Mean of x_{t-1} if eps is the noise in x_t (eq. 11)."""
        return (x - self.beta[t] / (1 - self.alpha_bar[t]).sqrt() * eps) / (1 - self.beta[t]).sqrt()

    def posterior_variance(self, t: int) -> float:
        """Variance of x_{t-1} that remains if x_t and x_0 are both known (eq. 7)."""
        return float((1 - self.alpha_bar[t - 1]) / (1 - self.alpha_bar[t]) * self.beta[t])
