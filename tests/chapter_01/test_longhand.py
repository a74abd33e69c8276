"""Chapter 1 writes DDPM out by the paper; `common` writes it as one case of something general.
Here the two are equal.
"""

import pytest
import torch

from common.diffusion.denoiser import Denoiser
from common.diffusion.losses import diffusion_loss
from common.diffusion.samplers import ddpm
from common.diffusion.schedules import DiscreteSchedule, add_noise, cosine_betas, linear_betas
from ddpm_mnist.ddpm import DDPM

BETAS = {"linear": linear_betas(200, 1e-4, 0.1), "cosine": cosine_betas(200)}


@pytest.fixture(params=BETAS)
def both(request):
    """(longhand, common) over the same betas."""
    return DDPM(BETAS[request.param]), DiscreteSchedule(BETAS[request.param])


def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.7 * x + 0.3 * x.roll(1, -1)) * torch.cos(t / 100).view(-1, 1, 1, 1)


def pictures(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_constants(both):
    longhand, schedule = both
    torch.testing.assert_close(longhand.alpha_bar.double(), schedule.alpha_bar, rtol=1e-4, atol=1e-6)
    assert longhand.alpha_bar[0] == 1 and len(longhand.alpha_bar) == longhand.T + 1


def test_noising_in_one_shot(both):
    longhand, schedule = both
    x0, eps = pictures(), torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([1, 2, 100, 200])
    torch.testing.assert_close(
        longhand.noise(x0, t, eps), add_noise(x0, eps, schedule.at(t).like(x0)), rtol=1e-4, atol=1e-5
    )


def test_one_shot_is_many_small_steps(both):
    """q(x_t | x_0) against t times q(x_t | x_{t-1}): the same mean and variance, followed exactly."""
    longhand, _ = both
    one = torch.ones(1, 1, 1, 1)
    mean, variance = one, 0 * one
    for t in range(1, longhand.T + 1):
        mean = longhand.forward_step(mean, t, 0 * one)
        variance = (
            longhand.forward_step(variance.sqrt(), t, 0 * one) ** 2 + longhand.forward_step(0 * one, t, one) ** 2
        )
        if t in (1, 50, 150, 200):
            at = torch.tensor([t])
            torch.testing.assert_close(mean, longhand.noise(one, at, 0 * one), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(variance, longhand.noise(0 * one, at, one) ** 2, rtol=1e-3, atol=1e-4)


def test_one_shot_is_many_small_steps_of_random_noise(both):
    longhand, _ = both
    g = torch.Generator().manual_seed(2)
    x = torch.full((20_000, 1, 1, 1), 0.8)
    for t in range(1, 51):
        x = longhand.forward_step(x, t, torch.randn(x.shape, generator=g))
    shot = longhand.noise(torch.full(x.shape, 0.8), torch.full((20_000,), 50), torch.randn(x.shape, generator=g))
    assert float(x.mean()) == pytest.approx(float(shot.mean()), abs=0.02)
    assert float(x.std()) == pytest.approx(float(shot.std()), rel=0.03)


def test_the_loss(both):
    """Algorithm 1, with the t and eps that the longhand version draws."""
    longhand, schedule = both
    x0 = pictures(16)
    loss = longhand.loss(model, x0, torch.Generator().manual_seed(3))

    g = torch.Generator().manual_seed(3)
    t = torch.randint(1, 201, (16,), generator=g)
    eps = torch.randn(x0.shape, generator=g)
    u = (t - 0.5) / 200  # schedule.sample_levels(u) is step t
    torch.testing.assert_close(diffusion_loss(model, schedule, "eps", x0, u, eps).mean(), loss, rtol=1e-4, atol=1e-6)


def test_the_loss_draws_every_step(both):
    """t from 1 to T inclusive; the network receives t - 1."""
    longhand, _ = both
    times = []
    longhand.loss(lambda x, t: times.append(t) or x, torch.zeros(20_000, 1, 1, 1), torch.Generator().manual_seed(0))
    assert sorted(set(times[0].tolist())) == list(range(200))


def test_the_whole_chain(both):
    """Algorithm 2 from pure noise to the picture, with the same noise: every x on the way is the same."""
    longhand, schedule = both
    shape = (2, 1, 4, 4)
    chain = list(longhand.sample(model, shape, torch.Generator().manual_seed(4)))

    g = torch.Generator().manual_seed(4)
    x = torch.randn(shape, generator=g)
    ours = ddpm(
        Denoiser(model, "eps", clip_x0=False),
        x,
        schedule.noise_levels(200),
        lambda k, like: torch.randn(shape, generator=g),
    )
    for i, (theirs, mine) in enumerate(zip(chain, ours, strict=True)):
        scale = theirs.abs().max()
        torch.testing.assert_close(
            mine.x / scale, theirs / scale, rtol=0, atol=1e-3, msg=lambda m, i=i: f"step {i}: {m}"
        )
    assert len(chain) == 200


def test_the_last_step_adds_no_noise(both):
    """Two chains that differ in their last noise only would differ in the picture."""
    longhand, _ = both
    *_, before, end = longhand.sample(model, (1, 1, 4, 4), torch.Generator().manual_seed(5))
    expected = longhand.posterior_mean(before, model(before, torch.tensor([0])), 1)
    assert torch.equal(end, expected) and longhand.posterior_variance(1) == 0


def test_the_posterior_is_bayes(both):
    """Eq. 7: multiply the two Gaussians q(x_t | x_{t-1}) and q(x_{t-1} | x_0) and complete the square."""
    longhand, _ = both
    for t in (2, 50, 200):
        beta, bar_before = float(longhand.beta[t]), float(longhand.alpha_bar[t - 1])
        precision = (1 - beta) / beta + 1 / (1 - bar_before)
        assert longhand.posterior_variance(t) == pytest.approx(1 / precision, rel=1e-3)
        x0, eps = torch.tensor([[[[0.3]]]]), torch.tensor([[[[-0.7]]]])
        x = longhand.noise(x0, torch.tensor([t]), eps)
        mean = ((1 - beta) ** 0.5 / beta * float(x) + bar_before**0.5 / (1 - bar_before) * float(x0)) / precision
        assert float(longhand.posterior_mean(x, eps, t)) == pytest.approx(mean, rel=2e-3, abs=2e-3)
