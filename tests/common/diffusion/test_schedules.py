"""Schedules: equal to those of `diffusers` and `denoising_diffusion_pytorch`, and true to their definitions."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from denoising_diffusion_pytorch.denoising_diffusion_pytorch import cosine_beta_schedule, sigmoid_beta_schedule
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from common.diffusion.diffusers_scheduler import scheduler_from_diffusers, scheduler_to_diffusers
from common.diffusion.schedules import (
    BETAS,
    SCHEDULES,
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    add_noise,
    make_schedule,
    zero_terminal_snr,
)
from common.errors import UserError

THEIR_NAMES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
    "sigmoid_beta": "sigmoid",
}


# ------------------------------------------------------------------------------------- equal to trusted libraries


@pytest.mark.parametrize("T", [10, 137, 1000])
@pytest.mark.parametrize("name", THEIR_NAMES)
def test_betas_and_alpha_bar_of_diffusers(name, T):
    ours = make_schedule(name, T)
    ends = {"beta_start": 0.00085, "beta_end": 0.012} if name == "scaled_linear" else {}
    theirs = DDPMScheduler(T, beta_schedule=THEIR_NAMES[name], **ends)
    torch.testing.assert_close(ours.betas, theirs.betas.double(), rtol=1e-5, atol=1e-7)  # theirs are float32
    torch.testing.assert_close(ours.alpha_bar[1:], theirs.alphas_cumprod.double(), rtol=5e-5, atol=1e-6)


@pytest.mark.parametrize("T", [10, 100, 1000])
@pytest.mark.parametrize(("name", "theirs"), [("sigmoid", sigmoid_beta_schedule), ("cosine", cosine_beta_schedule)])
def test_betas_of_denoising_diffusion_pytorch(name, theirs, T):
    torch.testing.assert_close(make_schedule(name, T).betas, theirs(T), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_the_steps_visited_are_those_of_diffusers(name, spacing):
    """Also where steps does not divide T. (With trailing spacing diffusers sometimes adds a step too many, t = -1.)"""
    r = random.Random(spacing + name)
    for T, steps in [
        (1000, 1),
        (1000, 50),
        (1000, 1000),
        *((T, r.randint(2, T)) for T in (50, 333, 1000) for _ in range(15)),
    ]:
        theirs = DDIMScheduler(T, beta_schedule=THEIR_NAMES[name], timestep_spacing=spacing)
        theirs.set_timesteps(steps)
        path = make_schedule(name, T).noise_levels(steps, spacing)
        assert path.levels.time[:-1].tolist() == theirs.timesteps[:steps].tolist(), (T, steps)
        assert len(path) == steps


@pytest.mark.parametrize("steps", [2, 5, 18, 77])
def test_edm_noise_levels_of_diffusers(steps):
    theirs = EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, rho=5.0)
    theirs.set_timesteps(steps)
    levels = EDMSchedule(0.01, 50.0, rho=5.0).noise_levels(steps).levels
    torch.testing.assert_close(levels.sigma.float(), theirs.sigmas, rtol=1e-6, atol=0)
    torch.testing.assert_close(levels.time[:-1].float(), theirs.timesteps, rtol=1e-5, atol=1e-6)
    assert (levels.alpha == 1).all()


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_flow_times_of_diffusers(steps, shift):
    """Its pipelines hand it these evenly spaced sigmas; left to itself it would stop at 1/1000 and then jump."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    levels = FlowSchedule(shift).noise_levels(steps).levels
    torch.testing.assert_close(levels.sigma.float(), theirs.sigmas, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(levels.time[:-1].float(), theirs.timesteps, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("name", [*BETAS, "edm", "flow"])
def test_scheduler_configuration_round_trip(name):
    schedule = make_schedule(name, 200) if name in BETAS else make_schedule(name)
    prediction = name if name in ("edm", "flow") else "v"
    config = scheduler_to_diffusers(schedule, prediction, clip_x0=name in BETAS)
    again, prediction_again, clip = scheduler_from_diffusers(config)
    assert (prediction_again, clip) == (prediction, name in BETAS)
    for mine, other in zip(schedule.noise_levels(7).levels, again.noise_levels(7).levels, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BETAS)
def test_diffusers_reads_our_scheduler_configuration(name):
    schedule = make_schedule(name, 200)
    theirs = DDPMScheduler.from_config(scheduler_to_diffusers(schedule, "v", clip_x0=True))
    torch.testing.assert_close(schedule.alpha_bar[1:], theirs.alphas_cumprod.double(), rtol=5e-5, atol=1e-6)
    assert (theirs.config.prediction_type, theirs.config.clip_sample, len(theirs)) == ("v_prediction", True, 200)


# ------------------------------------------------------------------------------------------- true to the definitions


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("T", [20, 1000])
def test_discrete_schedules_preserve_variance_and_only_add_noise(name, T):
    schedule = make_schedule(name, T)
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(T + 1, dtype=torch.float64))
    assert schedule.alpha_bar[0] == 1 and schedule.sigma[0] == 0  # t = 0 is the clean image
    assert (schedule.alpha_bar.diff() < 0).all() and (schedule.alpha_bar[-1] == 0) == name.endswith("zero_snr")
    assert ((schedule.betas > 0) & (schedule.betas <= (1 if name.endswith("zero_snr") else 0.999))).all()
    running = 1.0
    for t in range(1, T + 1):  # alpha_bar_t is the product of the first t factors, with the paper's counting
        running *= 1 - float(schedule.betas[t - 1])
        assert math.isclose(float(schedule.alpha_bar[t]), running, rel_tol=1e-9)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_zero_terminal_snr(name):
    """Lin et al. 2023, algorithm 1, as diffusers has it:
    the first step stays, the last leaves nothing, twice changes nothing.
    """
    betas = BETAS[name](1000)
    mine = zero_terminal_snr(betas)
    torch.testing.assert_close(mine, rescale_zero_terminal_snr(betas), rtol=1e-9, atol=1e-12)
    assert mine[0] == pytest.approx(float(betas[0]), rel=1e-9) and mine[-1] == 1
    torch.testing.assert_close(zero_terminal_snr(mine), mine, rtol=1e-9, atol=1e-12)


def test_solvers_may_look_anywhere_on_a_schedule_that_ends_in_pure_noise():
    schedule = make_schedule("linear_zero_snr")
    assert schedule.at_lam(-40).time == pytest.approx(998) and schedule.at_lam(20).time == 0
    assert 0 < schedule.at_lam(0.0).time < 999


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_a_rescaled_schedule_of_diffusers_is_read(name):
    config = {
        "_class_name": "DDIMScheduler",
        "beta_schedule": name,
        "beta_start": 0.0009,
        "beta_end": 0.015,
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    }
    schedule, prediction, _ = scheduler_from_diffusers(config)
    theirs = DDIMScheduler.from_config(config)
    torch.testing.assert_close(schedule.alpha_bar[1:], theirs.alphas_cumprod.double(), rtol=5e-4, atol=1e-6)
    assert (schedule.name, prediction, float(schedule.alpha_bar[-1])) == (f"{name}_zero_snr", "v", 0.0)
    with pytest.raises(UserError, match="rescale_betas_zero_snr with prediction_type = 'epsilon'"):
        scheduler_from_diffusers(config | {"prediction_type": "epsilon"})


@pytest.mark.parametrize("clip", [True, False, "dynamic"])
def test_how_guesses_are_clipped_is_kept(clip):
    config = scheduler_to_diffusers(make_schedule("cosine"), "v", clip)
    assert scheduler_from_diffusers(config)[2] == clip
    theirs = DDPMScheduler.from_config(config).config
    assert (theirs.clip_sample, theirs.thresholding) == (clip is True, clip == "dynamic")
    with pytest.raises(UserError, match="dynamic_thresholding_ratio"):
        scheduler_from_diffusers(
            config | {"thresholding": True, "sample_max_value": 1000.0, "dynamic_thresholding_ratio": 0.9}
        )
    assert scheduler_from_diffusers(config | {"thresholding": True, "sample_max_value": 1.0})[2] is True


def test_the_cosine_follows_its_formula():
    """Nichol & Dhariwal, eq. 17, away from the end where beta is capped."""
    schedule = make_schedule("cosine", 1000)
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    for t in (1, 10, 500, 990):
        assert math.isclose(float(schedule.alpha_bar[t]), f[t] / f[0], rel_tol=1e-9)


def test_the_sigmoid_follows_its_formula():
    """Jabri et al. 2022, figure 8 with start = -3, end = 3, tau = 1."""
    schedule = make_schedule("sigmoid", 1000)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    for t in (1, 10, 500, 950):
        expected = (sigmoid(3) - sigmoid(-3 + 6 * t / 1000)) / (sigmoid(3) - sigmoid(-3))
        assert math.isclose(float(schedule.alpha_bar[t]), expected, rel_tol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [2, 13, 100])
def test_a_path_loses_noise_at_every_step_and_ends_clean(name, steps):
    levels = list(make_schedule(name).noise_levels(steps))
    clean = [level.alpha / (level.alpha + level.sigma) for level in levels]  # rises with the signal-to-noise ratio
    assert all(a < b for a, b in pairwise(clean))
    assert levels[-1].sigma == 0 and levels[-1].alpha == 1 and levels[-1].lam == math.inf
    assert len(levels) == steps + 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_at_lam_inverts_the_path(name):
    """The level with half-log-SNR lambda is the level one took lambda from."""
    schedule = make_schedule(name)
    for level in list(schedule.noise_levels(20))[:-1]:
        if level.alpha == 0:  # flow begins at pure noise, where lambda is minus infinity
            continue
        found = schedule.at_lam(level.lam)
        assert found.alpha == pytest.approx(level.alpha, rel=1e-6)
        assert found.sigma == pytest.approx(level.sigma, rel=1e-6)
        assert found.time == pytest.approx(level.time, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_at_lam_between_two_levels_lies_between(name):
    schedule = make_schedule(name)
    a, b = list(schedule.noise_levels(20))[9:11]
    middle = schedule.at_lam((a.lam + b.lam) / 2)
    assert middle.lam == pytest.approx((a.lam + b.lam) / 2)
    assert b.time < middle.time < a.time and b.sigma < middle.sigma < a.sigma


@pytest.mark.parametrize("name", BETAS)
def test_drawing_hits_every_step_equally_often(name):
    """u uniform in [0, 1) -> t uniform in 1..T, the network receives t - 1."""
    schedule = make_schedule(name, 10)
    level = schedule.sample_levels((torch.arange(1000) + 0.5) / 1000)
    assert torch.bincount(level.time, minlength=10).tolist() == [100] * 10
    torch.testing.assert_close(level.alpha, schedule.alpha[level.time + 1])
    torch.testing.assert_close(level.sigma, schedule.sigma[level.time + 1])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drawing_stands_the_ends_of_the_range(name, dtype):
    below_one = torch.nextafter(torch.tensor(1.0, dtype=dtype), torch.tensor(0.0, dtype=dtype))
    level = make_schedule(name).sample_levels(torch.stack([torch.tensor(0.0, dtype=dtype), below_one]))
    for values in level:
        assert torch.isfinite(values.double()).all()
    assert (level.sigma > 0).all() and level.sigma[0] < level.sigma[1]
    assert level.alpha[1] >= 0
    if name in BETAS:
        assert level.time.tolist() == [0, 999]


def test_drawing_follows_the_distributions_of_the_papers():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    log_sigma = make_schedule("edm").sample_levels(u).sigma.log()
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=1e-3) and float(log_sigma.std()) == pytest.approx(
        1.2, abs=1e-2
    )
    t = make_schedule("flow").sample_levels(u).sigma
    logit = (t / (1 - t)).log()
    assert float(logit.mean()) == pytest.approx(0, abs=1e-3) and float(logit.std()) == pytest.approx(1, abs=1e-2)


def test_mixing_gives_the_variance_the_level_promises():
    g = torch.Generator().manual_seed(0)
    x0 = torch.full((20_000, 1, 1, 1), 0.7, dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=g, dtype=torch.float64)
    for level in list(make_schedule("cosine").noise_levels(5))[:-1]:
        x = add_noise(x0, eps, level)
        assert float(x.mean()) == pytest.approx(0.7 * level.alpha, abs=0.03)
        assert float(x.std()) == pytest.approx(level.sigma, rel=0.02)


def test_like_shapes_the_level_for_images():
    level = make_schedule("linear").sample_levels(torch.tensor([0.1004, 0.9004])).like(torch.zeros(2, 3, 4, 4))
    assert level.alpha.shape == level.sigma.shape == (2, 1, 1, 1) and level.alpha.dtype == torch.float32
    assert level.time.tolist() == [100.0, 900.0]


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_step_counts(steps):
    with pytest.raises(UserError, match="1 to 1000 steps"):
        make_schedule("cosine").noise_levels(steps)


@pytest.mark.parametrize("name", ["edm", "flow"])
def test_no_steps_at_all(name):
    with pytest.raises(UserError, match="at least 1 step"):
        make_schedule(name).noise_levels(0)


def test_unknown_names():
    with pytest.raises(UserError, match="unknown schedule 'cosinus'.*cosine"):
        make_schedule("cosinus")
    with pytest.raises(UserError, match="unknown spacing 'even'"):
        make_schedule("cosine").noise_levels(10, "even")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"beta_schedule": "laplace"}, "beta_schedule"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"prediction_type": "flow_prediction"}, "prediction_type"),
    ],
)
def test_schedulers_we_cannot_honour_are_refused_by_name(change, named):
    with pytest.raises(UserError, match=named):
        scheduler_from_diffusers(dict(DDPMScheduler().config) | {"_class_name": "DDPMScheduler"} | change)


@pytest.mark.parametrize(
    ("kind", "clips"), [("DDPMScheduler", True), ("DDIMScheduler", True), ("PNDMScheduler", False)]
)
def test_what_a_short_configuration_leaves_out(kind, clips):
    """Old folders name only what differs from the defaults of diffusers."""
    schedule, prediction, clip_x0 = scheduler_from_diffusers({"_class_name": kind, "beta_schedule": "linear"})
    assert (schedule.T, prediction, clip_x0) == (1000, "eps", clips)
    torch.testing.assert_close(schedule.betas, make_schedule("linear").betas)
    edm, prediction, _ = scheduler_from_diffusers({"_class_name": "EDMEulerScheduler"})
    assert (edm.sigma_min, edm.sigma_max, prediction) == (0.002, 80.0, "edm")


def test_a_scheduler_without_betas_is_refused():
    with pytest.raises(UserError, match="_class_name = 'UnheardOfScheduler'"):
        scheduler_from_diffusers({"_class_name": "UnheardOfScheduler"})


def test_trained_betas_are_read():
    betas = torch.linspace(0.01, 0.3, 12, dtype=torch.float64)
    schedule, _, _ = scheduler_from_diffusers(scheduler_to_diffusers(DiscreteSchedule(betas), "eps", False))
    torch.testing.assert_close(schedule.betas, betas, rtol=0, atol=0)
