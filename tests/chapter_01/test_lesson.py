"""What lesson 1 writes on the page is equal to the versions in `common` and in ddpm.py."""

import ast
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import ddpm
from common.diffusion.schedules import make_schedule
from common.evaluate.distances import Frechet
from common.grade.lessons import read_source
from common.models.unet import ResBlock, timestep_embedding
from common.models.unet_config import UNetConfig
from ddpm_mnist.ddpm import DDPM
from helpers.programs import ROOT

SCHEDULE = ("T", "curve", "beta", "alpha_bar")  # the cell that computes it runs as it is


@pytest.fixture(scope="module")
def page() -> dict:
    """The functions, the classes and the noise schedule of the lesson's cells, without running the rest."""
    names = {"torch": torch, "math": math, "F": F, "nn": nn, "pairwise": pairwise}
    for cell in read_source(ROOT / "01_ddpm_mnist").cells:
        if cell.cell_type == "code":
            body = ast.parse(cell.source).body
            kept = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) or of_schedule(node)]
            exec(compile(ast.Module(kept, []), "lesson.py", "exec"), names)
    return names


def of_schedule(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and all(
        isinstance(target, ast.Name) and target.id in SCHEDULE for target in node.targets
    )


def predict_eps(x: torch.Tensor, t: int) -> torch.Tensor:
    """Any smooth function will do."""
    return 0.9 * x + 0.1 * (3 * x).sin() + 0.0001 * t


def test_schedule(page):
    assert torch.allclose(page["alpha_bar"], make_schedule("cosine").alpha_bar.float(), atol=1e-6)


def test_time_embedding(page):
    t = torch.tensor([0, 1, 40, 999])
    assert torch.allclose(page["time_embedding"](t, 32), timestep_embedding(t, 32, sin_first=True), atol=1e-4)


def test_residual_block(page):
    torch.manual_seed(0)
    theirs = ResBlock(UNetConfig(channels=(32, 64), attention=(False, False), scale_shift=True, groups=8), 16, 24)
    ours = page["ResBlock"](16, 24)
    ours.load_state_dict(theirs.state_dict())
    x, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 128)
    assert torch.allclose(ours(x, emb), theirs(x, emb), atol=1e-5)


def test_new_network_predicts_its_input(page):
    net, x = page["SmallUNet"](), torch.randn(2, 1, 28, 28)
    assert torch.equal(net(x, torch.tensor([3, 700]), torch.tensor([1, 9])), x)


def test_deterministic_sampling(page):
    schedule, x = make_schedule("cosine"), torch.randn((50, 2), generator=torch.Generator().manual_seed(0))

    def denoise(x, level):
        x0 = ((x - level.sigma * predict_eps(x, level.time + 1)) / level.alpha).clamp(-1, 1)
        return x0, (x - level.alpha * x0) / level.sigma

    ours = page["ddim"](predict_eps, x, range(1000, -1, -50))
    theirs = list(Sampler("ddim", 20).trajectory(denoise, x, schedule.noise_levels(20), None))
    assert len(ours) == 21
    assert all(torch.allclose(a, b.x, atol=1e-3) for a, b in zip(ours[1:], theirs, strict=True))


def test_respaced_chain(page):
    schedule, x = make_schedule("cosine"), torch.randn((50, 2), generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)

    def denoise(x, level):
        eps = predict_eps(x, level.time + 1)
        return (x - level.sigma * eps) / level.alpha, eps

    levels = schedule.noise_levels(20).after(1)  # from t = 950 on: at t = 1000, rounding errors are divided by 0.00005
    *_, theirs = ddpm(denoise, x, levels, lambda i, x: torch.randn(x.shape, generator=g))
    ours = page["ddpm_respaced"](predict_eps, x, list(range(50, 951, 50)), torch.Generator().manual_seed(1))
    assert torch.allclose(ours, theirs.x, rtol=1e-3, atol=1e-3)


def test_one_step_and_its_posterior(page):
    longhand, x, eps, z = DDPM(page["beta"][1:]), *torch.randn((3, 20, 2), generator=torch.Generator().manual_seed(2))
    for t in (1, 2, 300, 900):
        expected = longhand.posterior_mean(x, eps, t) + longhand.posterior_variance(t) ** 0.5 * z
        assert torch.allclose(page["ddpm_step"](x, t, eps, z), expected, rtol=1e-4, atol=1e-4)
        before, b = float(page["alpha_bar"][t - 1]), float(page["beta"][t])
        x0 = page["x0_from_eps"](x, t, eps)
        mean, variance = page["posterior"](x, x0, before, b)
        assert torch.allclose(mean, longhand.posterior_mean(x, eps, t), rtol=1e-2, atol=1e-2)
        assert variance == pytest.approx(longhand.posterior_variance(t), rel=1e-2, abs=1e-6)


def test_ideal_prediction_and_score(page):
    """Tweedie's formula: the gradient of log p_t and the conditional mean say the same."""
    clean, g = torch.rand((30, 2)), torch.Generator().manual_seed(3)
    x = torch.randn((7, 2), generator=g).requires_grad_()
    (gradient,) = torch.autograd.grad(page["log_density"](x, 400, clean).sum(), x)
    eps = page["eps_from_x0"](x, 400, page["ideal_x0"](x, 400, clean))
    assert torch.allclose(page["score"](eps, 400), gradient, atol=1e-4)


def test_langevin_steps_sample_the_distribution(page):
    """Here a Gaussian with mean 1 and standard deviation 0.5, whose score is a straight line."""
    g = torch.Generator().manual_seed(4)
    x = torch.zeros((4000, 1))
    for _ in range(300):
        x = page["langevin_step"](x, (1 - x) / 0.25, 0.02, torch.randn(x.shape, generator=g))
    assert float(x.mean()) == pytest.approx(1, abs=0.05) and float(x.std()) == pytest.approx(0.5, abs=0.03)


def test_frechet_distance(page):
    g = torch.Generator().manual_seed(5)
    a = torch.randn((300, 8), generator=g, dtype=torch.float64)
    b = 1.5 * torch.randn((400, 8), generator=g, dtype=torch.float64) + 0.3
    assert float(page["frechet_distance"](a, b)) == pytest.approx(Frechet(b)(a), rel=1e-5)
