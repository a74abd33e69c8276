"""The longhand solvers of chapter 3 equal those of common; slerp is spherical."""

import pytest
import torch

from common.diffusion.denoiser import Denoiser
from common.diffusion.samplers import ddim, ddim_inverse, ddpm, euler_a
from common.diffusion.schedules import make_schedule
from common.random import Noise
from ddim_schedules import solvers
from ddim_schedules.interpolation import lerp

SHAPE = (2, 1, 4, 4)


def network(x, t):
    return torch.tanh(0.7 * x + 0.3 * x.roll(1, -1)) * (0.8 + 0.1 * torch.cos(3 * t.double() / 1000)).view(-1, 1, 1, 1)


def noise(k, x):
    return Noise(3)(k, x)


def pure_noise():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("steps", [4, 13, 50])
@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("pair", ["ddim", "ddim eta=0.5", "ddpm", "euler", "invert"])
def test_longhand_solvers_equal_common(pair, name, steps):
    schedule, x = make_schedule(name), pure_noise()
    path, tau, bar = schedule.noise_levels(steps), solvers.timesteps(1000, steps), schedule.alpha_bar
    denoise = Denoiser(network, "eps", clip_x0=False)
    longhand, ours = {
        "ddim": lambda: (solvers.ddim(network, x, bar, tau, noise), ddim(denoise, x, path)),
        "ddim eta=0.5": lambda: (solvers.ddim(network, x, bar, tau, noise, 0.5), ddim(denoise, x, path, 0.5, noise)),
        "ddpm": lambda: (solvers.ddpm_respaced(network, x, bar, tau, noise), ddpm(denoise, x, path, noise)),
        "euler": lambda: (solvers.euler_ancestral(network, x, bar, tau, noise), euler_a(denoise, x, path, noise)),
        "invert": lambda: (solvers.invert(network, x, bar, tau), ddim_inverse(denoise, x, path)),
    }[pair]()
    for mine, step in zip(longhand, ours, strict=True):
        torch.testing.assert_close(mine, step.x, rtol=1e-7, atol=1e-7)


def test_the_mistake_is_right_on_the_full_chain_and_wrong_on_a_short_one():
    bar, x = make_schedule("linear", 40).alpha_bar, pure_noise()

    def after(solver, steps):
        *_, end = solver(network, x, bar, solvers.timesteps(40, steps), noise)
        return end

    torch.testing.assert_close(after(solvers.ddpm_naive, 40), after(solvers.ddpm_respaced, 40), rtol=1e-9, atol=1e-9)
    assert float((after(solvers.ddpm_naive, 8) - after(solvers.ddpm_respaced, 8)).abs().max()) > 0.3


def test_slerp():
    a, b = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(solvers.slerp(a, b, 0.0), a)
    torch.testing.assert_close(solvers.slerp(a, b, 1.0), b)
    unit = [x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for x in (a, b)]
    for share in (0.25, 0.5, 0.8):
        middle = solvers.slerp(*unit, share)
        torch.testing.assert_close(middle.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
        whole = (unit[0] * unit[1]).flatten(1).sum(1).arccos()
        # even in angle, image by image
        torch.testing.assert_close((unit[0] * middle).flatten(1).sum(1).arccos(), share * whole)
    torch.testing.assert_close(solvers.slerp(a, a, 0.3), a)
    assert float((lerp(a, b, 0.5)).std()) < 0.8 < float(solvers.slerp(a, b, 0.5).std())
