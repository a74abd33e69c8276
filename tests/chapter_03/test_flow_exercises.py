"""The flow-matching exercises of chapter 3 are the same mathematics as the flow schedule, targets and samplers of common."""

import torch

from common.diffusion.denoiser import Denoiser, target
from common.diffusion.samplers import ddim
from common.diffusion.schedules import FlowSchedule, add_noise
from common.grade.chapter import exercises_of
from common.grade.checks import load

solutions = load(exercises_of("03") / "solutions.py", "course_solutions")


def velocity(x, t):
    return torch.tanh(0.7 * x) + t.view(-1, 1, 1, 1)


def test_the_loss_is_the_squared_error_of_the_flow_target():
    x0, eps = torch.randn(2, 4, 1, 3, 5, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 0.2, 0.7, 1.0])
    level = FlowSchedule().at(t).like(x0)
    error = velocity(add_noise(x0, eps, level), t) - target("flow", x0, eps, level)
    torch.testing.assert_close(solutions.flow_matching_loss(velocity, x0, eps, t), error.square().mean((1, 2, 3)))


def test_reflow_pairs_are_samples_of_ddim_on_the_flow_schedule():
    """With sigma = t and alpha = 1 - t, DDIM is Euler's method for the velocity."""
    eps = torch.randn(4, 1, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoise = Denoiser(lambda x, time: velocity(x, time / 1000), "flow", clip_x0=False)
    *_, step = ddim(denoise, eps, FlowSchedule().noise_levels(6))
    x0, start = solutions.reflow_pairs(velocity, eps, 6)
    torch.testing.assert_close(x0, step.x, rtol=1e-5, atol=1e-5)
    assert torch.equal(start, eps)


def test_the_marginal_velocity_is_that_of_the_ideal_denoiser():
    """(x - E[x0 | x_t]) / t, with the posterior of a finite data set as a mixture of Gaussians."""
    rng = torch.Generator().manual_seed(0)
    points, x = torch.randn(5, 1, 1, 2, generator=rng), torch.randn(3, 1, 1, 2, generator=rng)
    t = torch.tensor([0.4, 0.7, 1.0])
    for k in range(len(x)):
        mixture = torch.distributions.Normal((1 - t[k]) * points, t[k]).log_prob(x[k]).flatten(1).sum(1)
        mean = (mixture.softmax(0).view(-1, 1, 1, 1) * points).sum(0)
        torch.testing.assert_close(solutions.marginal_velocity(x, t, points)[k], (x[k] - mean) / t[k])
