"""The 2-D toy: its shapes, its training, and that schedule, loss and samplers serve points as they serve images."""

import sys

import pytest
import torch
from PIL import Image

from common.diffusion.denoiser import PREDICTIONS, Denoiser, target, to_x0_eps
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import SAMPLERS
from common.diffusion.schedules import add_noise, make_schedule
from common.errors import UserError
from common.random import BatchRandom
from ddpm_mnist import toy
from helpers.programs import ROOT, run_program

TOY = "01_ddpm_mnist/toy_2d.py"
SHAPES = ("dinosaur", "swiss_roll", "two_moons", "letter")


# ---------------------------------------------------------------------------------------------------------- the shapes


@pytest.mark.parametrize("shape", SHAPES)
def test_points_fill_the_frame_and_follow_from_the_seed(shape):
    points = toy.draw_points(shape, 2000, seed=1)
    assert points.shape == (2000, 2) and points.dtype == torch.float32
    assert 0.85 < points.abs().max() < 0.95
    middle = (points.max(0).values + points.min(0).values) / 2
    assert middle.abs().max() < 0.05
    assert torch.equal(points, toy.draw_points(shape, 2000, seed=1))
    assert not torch.equal(points, toy.draw_points(shape, 2000, seed=2))


def test_moons_are_round_and_evenly_filled():
    points = toy.draw_points("two_moons", 4000, jitter=0)
    unit = 1.8 / 3  # the moons reach from -1 to 2 before they are scaled
    centres = torch.tensor([[-0.5, -0.25], [0.5, 0.25]]) * unit
    distance = torch.cdist(points, centres)
    assert (distance - unit).abs().min(dim=1).values.max() < 1e-3
    upper = points[(distance[:, 0] - unit).abs() < 1e-3] - centres[0]
    angle = torch.atan2(upper[:, 1], upper[:, 0])
    share = torch.histc(angle, 4, 0, torch.pi) / len(upper)
    assert 1800 < len(upper) < 2200 and (share - 0.25).abs().max() < 0.03


def test_jitter_is_noise_of_that_size():
    still, jittered = (toy.draw_points("letter", 4000, jitter=jitter) for jitter in (0, 0.05))
    assert (jittered - still).std() == pytest.approx(0.05, rel=0.05)


def test_unknown_shape():
    with pytest.raises(UserError, match="unknown shape 'cat'; choose one of dinosaur, swiss_roll, two_moons, letter"):
        toy.draw_points("cat", 10)


# ----------------------------------------------------------------------------------------- points are small images


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_noising_and_reading_work_on_points(prediction):
    schedule = make_schedule("cosine")
    x0, eps = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0))
    level = schedule.at(torch.arange(100, 600, 10)).like(x0)
    assert level.alpha.shape == (50, 1)
    x = add_noise(x0, eps, level)
    assert torch.allclose(x[7], schedule.alpha[170].float() * x0[7] + schedule.sigma[170].float() * eps[7])
    back = to_x0_eps(prediction, target(prediction, x0, eps, level), x, level)
    assert torch.allclose(back[0], x0, atol=1e-4) and torch.allclose(back[1], eps, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_work_on_points(name):
    """Points from a narrow normal distribution, whose perfect denoiser is known: every sampler must return to it."""
    mean, sd = torch.tensor([0.3, -0.2]), 0.1

    def perfect(x, level):
        gain = level.alpha * sd**2 / (level.alpha**2 * sd**2 + level.sigma**2)
        x0 = mean + gain * (x - level.alpha * mean)
        return x0, (x - level.alpha * x0) / level.sigma

    points = Sampler(name, 200).frames(perfect, make_schedule("cosine"), (4000, 2), 0)[-1]
    assert points.shape == (4000, 2)
    assert torch.allclose(points.mean(0), mean, atol=0.01)
    assert torch.allclose(points.std(0), torch.full((2,), sd), rtol=0.1)


# ------------------------------------------------------------------------------------------------------------ training


def nearest(a, b):
    return torch.cdist(a, b).min(dim=1).values.mean()


def test_training_brings_the_points_home():
    schedule, points = make_schedule("cosine"), toy.draw_points("two_moons", 2000)
    net = toy.make_net(width=64)
    losses = toy.train(net, points, schedule, steps=250, batch=256)
    assert len(losses) == 250 and sum(losses[-25:]) < 0.5 * sum(losses[:5]) / 5 * 25
    ends = Sampler("ddpm", 60).frames(Denoiser(net, toy.PREDICTION), schedule, (1000, 2), 0)[-1]
    assert nearest(torch.randn(1000, 2), points) > 0.4
    # near the moons, and no part of them left out
    assert nearest(ends, points) < 0.15 and nearest(points, ends) < 0.05


def test_training_minimises_the_common_loss_and_follows_from_the_seed():
    schedule, points = make_schedule("cosine"), toy.draw_points("letter", 500)
    draw, net = BatchRandom(3, 0), toy.make_net(width=16)
    x0 = points[(draw.rand(8) * 500).long()]
    first = diffusion_loss(net, schedule, "eps", x0, draw.stratified(8), draw.randn(x0.shape)).mean().item()
    losses = toy.train(net, points, schedule, steps=5, batch=8, seed=3)
    assert losses[0] == pytest.approx(first, rel=1e-6)
    assert losses == toy.train(toy.make_net(width=16), points, schedule, steps=5, batch=8, seed=3)
    assert losses != toy.train(toy.make_net(width=16), points, schedule, steps=5, batch=8, seed=4)


def test_the_network_is_told_the_time():
    net, x = toy.make_net(width=16), torch.zeros(2, 2)
    early, late = net(x, torch.tensor([10.0, 900.0]))
    assert not torch.allclose(early, late)


# -------------------------------------------------------------------------------------------------------- command line


def test_pictures(command_line, tmp_path):
    flags = ("--shape", "letter", "--steps", 5, "--n", 50, "--sampler", "ddim:50")
    code, out, err = command_line(TOY, *flags, "--out", tmp_path / "toy.png")
    assert code == 0 and "toy.png" in out and "loss" in out, err
    row = Image.open(tmp_path / "toy.png")
    assert row.width > 6 * row.height  # seven moments
    code, _, err = command_line(TOY, *flags, "--out", tmp_path / "toy.gif")
    assert code == 0 and Image.open(tmp_path / "toy.gif").n_frames > 10, err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--shape", "cat"), "unknown shape 'cat'"),
        (("--steps", 0), "--steps must be above 0"),
        (("--n", -5), "--n must be above 0"),
        (("--sampler", "walk:3"), "cannot read the sampler"),
    ],
)
def test_bad_input_is_one_sentence(command_line, tmp_path, flags, says):
    code, _, err = command_line(TOY, *flags, "--out", tmp_path / "toy.png")
    assert code == 2 and says in err and err.count("\n") == 1
    assert not (tmp_path / "toy.png").exists()


def test_help_does_not_wait_for_torch():
    program = f"import runpy, sys; runpy.run_path({str(ROOT / TOY)!r}); assert 'torch' not in sys.modules"
    assert run_program("-c", program).returncode == 0
    assert "torch" in sys.modules  # it would have been seen
