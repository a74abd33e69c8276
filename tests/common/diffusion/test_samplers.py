"""Samplers: equal to those of `diffusers` step by step, and true to theory where the answer is known exactly."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from common.diffusion.denoiser import Denoiser, Prediction
from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import (
    SAMPLERS,
    ddim,
    ddim_inverse,
    ddpm,
    dpmpp_2m,
    dpmpp_2s,
    euler_a,
    heun,
    initial_noise,
    sde,
)
from common.diffusion.schedules import (
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    NoiseLevel,
    NoiseLevels,
    make_schedule,
)
from common.errors import UserError
from common.random import Noise

SHAPE = (2, 3, 4, 4)
THEIR_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
THEIR_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth function of picture, place and time: nothing cancels by accident, and no weights are needed."""
    t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1)) / 1000
    return torch.tanh(0.7 * x + 0.3 * x.roll(1, -1)) * (0.8 + 0.1 * torch.cos(3 * t)) + 0.1 * torch.sin(5 * t)


def noise_source(k: int, x: torch.Tensor) -> torch.Tensor:
    return Noise(7)(k, x)


def pure_noise(scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def last(steps) -> torch.Tensor:
    return list(steps)[-1].x


def in_double(scheduler, schedule: DiscreteSchedule):
    """diffusers computes alpha_bar in float32 (a test of its own compares that). Given our float64 numbers, any
    difference that is left is one of the update rule."""
    scheduler.alphas_cumprod = schedule.alpha_bar[1:].clone()
    return scheduler


def relative(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    assert torch.isfinite(theirs).all() and theirs.std() > 1e-2
    return float((mine - theirs).abs().max() / theirs.abs().max())


def random_case(seed: int, steps_divide_T: bool) -> dict:
    r = random.Random(seed)
    T = r.choice([60, 240, 1000])
    counts = [n for n in range(2, 61) if n <= T // 2 and (T % n == 0 or not steps_divide_T)]
    return {
        "T": T,
        "steps": r.choice(counts),
        "betas": r.choice(list(THEIR_BETAS)),
        "prediction": r.choice(list(THEIR_PREDICTIONS)),
        "clip": r.random() < 0.5,
        "spacing": r.choice(["trailing", "leading"]),
    }


def settings(case: dict) -> tuple[DiscreteSchedule, dict, Denoiser, NoiseLevels]:
    """Our side of a case, and the keyword arguments of the scheduler that is to agree."""
    schedule = make_schedule(case["betas"], case["T"])
    theirs = {
        "num_train_timesteps": case["T"],
        "beta_schedule": THEIR_BETAS[case["betas"]],
        "beta_start": float(schedule.betas[0]),
        "beta_end": float(schedule.betas[-1]),
        "prediction_type": THEIR_PREDICTIONS[case["prediction"]],
    }
    return (
        schedule,
        theirs,
        Denoiser(network, case["prediction"], case["clip"]),
        schedule.noise_levels(case["steps"], case["spacing"]),
    )


# --------------------------------------------------------------------------------------------- equal to diffusers


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_ddim(seed, eta):
    """Step counts that divide T: for others diffusers' DDIM looks for the next level at t - T // steps, which is not
    the next step it visits (and with linspace never is); the update rule is the same, the levels are not."""
    case = random_case(seed, steps_divide_T=True)
    schedule, config, denoise, path = settings(case)
    theirs = in_double(DDIMScheduler(**config, clip_sample=case["clip"], timestep_spacing=case["spacing"]), schedule)
    theirs.set_timesteps(case["steps"])
    x = pure_noise()
    for i, (t, mine) in enumerate(zip(theirs.timesteps, ddim(denoise, x, path, eta, noise_source), strict=True)):
        fresh = noise_source(i + 1, x) if eta else None
        x = theirs.step(network(x, t), int(t), x, eta, use_clipped_model_output=True, variance_noise=fresh).prev_sample
        assert relative(mine.x, x) < 1e-9, (case, i)


@pytest.mark.parametrize("seed", range(4))
def test_ddim_as_it_comes_in_float32(seed):
    """The same without our float64 numbers in it."""
    case = random_case(seed, steps_divide_T=True) | {"betas": "linear", "clip": True}
    _, config, denoise, path = settings(case)
    theirs = DDIMScheduler(**config, clip_sample=True, timestep_spacing=case["spacing"])
    theirs.set_timesteps(case["steps"])
    x = pure_noise()
    mine = last(ddim(denoise, x, path))
    for t in theirs.timesteps:
        x = theirs.step(network(x, t), int(t), x, use_clipped_model_output=True).prev_sample
    assert relative(mine, x) < 1e-4


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("seed", range(6))
def test_ddpm_respaced_to_any_number_of_steps(seed, spacing, monkeypatch):
    """diffusers' DDPM takes the next step it visits, as we do: so here steps need not divide T."""
    case = random_case(seed, steps_divide_T=False) | {"spacing": spacing}
    schedule, config, denoise, path = settings(case)
    theirs = in_double(
        DDPMScheduler(**config, clip_sample=case["clip"], timestep_spacing=spacing, variance_type="fixed_small"),
        schedule,
    )
    theirs.set_timesteps(case["steps"])
    x = pure_noise()
    for i, (t, mine) in enumerate(zip(theirs.timesteps, ddpm(denoise, x, path, noise_source), strict=True)):
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, i=i, x=x, **__: noise_source(i + 1, x)
        )
        x = theirs.step(network(x, t), int(t), x).prev_sample
        assert relative(mine.x, x) < 1e-9, (case, i)


@pytest.mark.parametrize("prediction", THEIR_PREDICTIONS)
def test_ddpm_full_chain(prediction, monkeypatch):
    """All T steps, no respacing: algorithm 2 of the paper."""
    schedule = make_schedule("linear", 50)
    theirs = in_double(DDPMScheduler(50, prediction_type=THEIR_PREDICTIONS[prediction]), schedule)
    x, mine = (
        pure_noise(),
        list(ddpm(Denoiser(network, prediction), pure_noise(), schedule.noise_levels(50), noise_source)),
    )
    for i, t in enumerate(range(49, -1, -1)):
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, i=i, x=x, **__: noise_source(i + 1, x)
        )
        x = theirs.step(network(x, t), t, x).prev_sample
        assert relative(mine[i].x, x) < 1e-9
    assert len(mine) == 50


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("seed", range(4))
def test_variances_of_ddpm(seed, variance, monkeypatch):
    """beta_tilde, beta, and the network's own choice between them, on respaced chains."""
    case = random_case(seed, steps_divide_T=False)
    schedule, config, _, path = settings(case)
    kind = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}[variance]
    theirs = in_double(
        DDPMScheduler(**config, clip_sample=case["clip"], timestep_spacing=case["spacing"], variance_type=kind),
        schedule,
    )
    theirs.set_timesteps(case["steps"])

    def net(x, t):
        y = network(x, t)
        return torch.cat([y, y.roll(1, 0).cos()], 1) if variance == "learned" else y

    x, option = pure_noise(), None if variance == "learned" else variance  # None is learned if the network predicts it
    steps = ddpm(Denoiser(net, case["prediction"], case["clip"]), x, path, noise_source, option)
    for i, (t, mine) in enumerate(zip(theirs.timesteps, steps, strict=True)):
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, i=i, x=x, **__: noise_source(i + 1, x)
        )
        x = theirs.step(net(x, t), int(t), x).prev_sample
        assert relative(mine.x, x) < 1e-9, (case, i)


def test_a_learned_variance_that_is_not_there():
    with pytest.raises(UserError, match="this network predicts no variance"):
        Sampler.parse("ddpm:5:variance=learned").frames(Denoiser(network, "v"), make_schedule("cosine"), SHAPE, 0)


@pytest.mark.parametrize("prediction", THEIR_PREDICTIONS)
@pytest.mark.parametrize("seed", range(6))
def test_euler_ancestral(seed, prediction, monkeypatch):
    """Theirs works with alpha = 1 on x / alpha; ours on the network's own x.
    Their levels are float32, hence the tolerance.
    """
    case = random_case(seed, steps_divide_T=True)
    schedule, config, _, path = settings(case)
    theirs = EulerAncestralDiscreteScheduler(
        **config | {"prediction_type": THEIR_PREDICTIONS[prediction]}, timestep_spacing=case["spacing"], steps_offset=0
    )
    theirs.set_timesteps(case["steps"])
    alpha = float(path.levels.alpha[0])
    x = pure_noise() / alpha
    if prediction == "x0":  # diffusers refuses it here ("not implemented yet: sample"), so it is given eps instead
        theirs.register_to_config(prediction_type="epsilon")
    mine = last(
        euler_a(
            Denoiser(network, "eps" if prediction == "x0" else prediction, clip_x0=False),
            pure_noise(),
            path,
            noise_source,
        )
    )
    for i, t in enumerate(theirs.timesteps):
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor",
            lambda *_, i=i, x=x, **__: noise_source(i + 1, x),
        )
        x = theirs.step(network(theirs.scale_model_input(x, t).double(), t), t, x.float()).prev_sample
    assert relative(mine, x.double()) < 1e-4, case


@pytest.mark.parametrize("steps", [4, 10, 50])
def test_ddim_inversion(steps):
    schedule = make_schedule("linear", 1000)
    theirs = in_double(DDIMInverseScheduler(1000, clip_sample=False, timestep_spacing="trailing"), schedule)
    theirs.initial_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(steps)
    x = 0.5 * pure_noise()
    mine = last(ddim_inverse(Denoiser(network, "eps", clip_x0=False), x, schedule.noise_levels(steps)))
    for t in theirs.timesteps:
        x = theirs.step(network(x, t), int(t), x).prev_sample
    assert relative(mine, x) < 1e-9


def path_over(timesteps, schedule: DiscreteSchedule) -> NoiseLevels:
    """A path through given timesteps of diffusers (which count from zero)."""
    t = torch.cat([torch.as_tensor(timesteps).long() + 1, torch.zeros(1, dtype=torch.long)])
    return NoiseLevels(schedule.at(t), schedule)


@pytest.mark.parametrize("seed", range(10))
def test_dpm_solver_pp_2m(seed):
    """Order 2, midpoint. Its levels are float32, hence the tolerance. lower_order_final: the last step, to the clean
    image, is first order; ours is too, whatever the number of steps (diffusers only below 15,
    hence final_sigmas_type zero).
    """
    # trailing is sometimes a step too long where steps do not divide T
    spacing = ["trailing", "leading", "linspace"][seed % 3]
    case = random_case(seed, steps_divide_T=spacing == "trailing") | {"spacing": spacing}
    schedule, config, _, _ = settings(case)
    theirs = DPMSolverMultistepScheduler(
        **config,
        timestep_spacing=case["spacing"],
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(case["steps"])
    x = pure_noise()
    mine = last(
        dpmpp_2m(Denoiser(network, case["prediction"], clip_x0=False), x, path_over(theirs.timesteps, schedule))
    )
    for t in theirs.timesteps:
        x = theirs.step(network(x, t), t, x).prev_sample
    assert relative(mine, x) < 1e-4, case


@pytest.mark.parametrize("steps", [4, 10, 20])
def test_dpm_solver_pp_2s(steps):
    """diffusers looks at the next of its levels where we look half-way; with levels even in lambda these are the same
    place. It makes two levels of one of our steps, and ends with one step of first order to the clean image."""
    schedule = make_schedule("linear", 1000)
    theirs = DPMSolverSinglestepScheduler(
        1000,
        use_exponential_sigmas=True,
        solver_order=2,
        algorithm_type="dpmsolver++",
        lower_order_final=True,
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(2 * steps + 1)
    sigmas = theirs.sigmas.double()[0 : 2 * steps + 1 : 2]  # of alpha = 1; ours are sigma / alpha
    alpha = (1 + sigmas**2) ** -0.5
    clean = torch.tensor([1.0]), torch.tensor([0.0])
    levels = NoiseLevel(torch.zeros(steps + 2), torch.cat([alpha, clean[0]]), torch.cat([sigmas * alpha, clean[1]]))

    def timeless(x, t):
        return network(x, torch.tensor(400.0))  # diffusers rounds its time to whole steps, so let it not matter

    x = pure_noise()
    mine = last(dpmpp_2s(Denoiser(timeless, "eps", clip_x0=False), x, NoiseLevels(levels, schedule)))
    for t in theirs.timesteps:
        x = theirs.step(timeless(x, t), t, x).prev_sample
    assert relative(mine, x) < 1e-4


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 7, 30])
def test_flow_euler(steps, shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    x = pure_noise()
    mine = last(ddim(Denoiser(network, "flow", clip_x0=False), x, FlowSchedule(shift).noise_levels(steps)))
    for t in theirs.timesteps:
        x = theirs.step(network(x.double(), t), t, x).prev_sample
    assert relative(mine, x.double()) < 1e-4


@pytest.mark.parametrize("steps", [2, 7, 30])
def test_edm_euler(steps):
    theirs = EDMEulerScheduler()
    theirs.set_timesteps(steps)
    x = pure_noise(80.0)
    mine = last(ddim(Denoiser(network, "edm", clip_x0=False), x, EDMSchedule().noise_levels(steps)))
    for t in theirs.timesteps:
        y = network(theirs.scale_model_input(x, t).double(), t)
        x = theirs.step(y, t, x).prev_sample
    assert relative(mine, x.double()) < 1e-4


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_heun(steps):
    """diffusers' Heun works with alpha = 1 whatever the training was, so that is the path it is given here."""
    theirs = HeunDiscreteScheduler(1000, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    sigma = torch.cat([theirs.sigmas[:1], theirs.sigmas[1::2]]).double()  # it stores most levels twice
    time = torch.cat([theirs.timesteps[:1], theirs.timesteps[1::2], torch.zeros(1)])[: len(sigma)].double()
    levels = NoiseLevel(time, torch.ones_like(sigma), sigma)

    def denoise(x, level):
        eps = network(x / (level.sigma**2 + 1) ** 0.5, level.time)
        return Prediction(x - level.sigma * eps, eps)

    x = pure_noise(float(sigma[0]))
    mine = last(heun(denoise, x, NoiseLevels(levels, EDMSchedule())))
    for t in theirs.timesteps:
        x = theirs.step(network(theirs.scale_model_input(x, t).double(), t), t, x).prev_sample
    assert relative(mine, x.double()) < 1e-4


# ------------------------------------------------------------------------------- theory: data that is exactly Gaussian

MEAN, STD = 0.4, 0.25


def marginal_std(level: NoiseLevel) -> float:
    return math.sqrt((level.alpha * STD) ** 2 + level.sigma**2)


def ideal(x: torch.Tensor, level: NoiseLevel) -> Prediction:
    """E[x0 | x_t] when x0 ~ N(MEAN, STD^2): what a perfectly trained network would predict."""
    shrink = level.alpha * STD**2 / marginal_std(level) ** 2
    x0 = MEAN + shrink * (x - level.alpha * MEAN)
    eps = (x - level.alpha * x0) / level.sigma if level.sigma else torch.zeros_like(x)
    return Prediction(x0, eps)


def exact(x: torch.Tensor, now: NoiseLevel, then: NoiseLevel) -> torch.Tensor:
    """The probability-flow ODE keeps every point at the same number of deviations from the mean."""
    return then.alpha * MEAN + marginal_std(then) / marginal_std(now) * (x - now.alpha * MEAN)


def even_path(schedule, steps: int) -> NoiseLevels:
    """Levels even in lambda with a little noise left at the end: the setting in which orders of convergence are
    stated. (The last step to no noise at all is exact for a constant prediction and would
    only blur the measurement.)
    """
    levels = [schedule.at_lam(lam) for lam in np.linspace(-2.0, 3.0, steps + 1)]
    return NoiseLevels(
        NoiseLevel(*(torch.tensor(column, dtype=torch.float64) for column in zip(*levels, strict=True))), schedule
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine", "edm", "flow"])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(ddim, 1), (heun, 2), (dpmpp_2m, 2), (dpmpp_2s, 2)],
    ids=lambda p: getattr(p, "__name__", str(p)),
)
def test_order_of_convergence(sampler, order, schedule):
    schedule = make_schedule(schedule)
    x = torch.linspace(-1.5, 1.5, 5, dtype=torch.float64).reshape(-1, 1, 1, 1)
    errors = []
    for steps in (40, 80, 160):
        path = even_path(schedule, steps)
        first, *_, end = list(path)
        errors.append(float((last(sampler(ideal, x, path)) - exact(x, first, end)).abs().max()))
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    assert measured[-1] == pytest.approx(order, abs=0.15), (measured, errors)


# A mixture of two Gaussians, whose ideal denoiser is known too: curved paths, as real data have them.
CENTRES, WIDTH = torch.tensor([-0.8, 0.5], dtype=torch.float64), 0.3


def ideal_of_mixture(x: torch.Tensor, level: NoiseLevel) -> Prediction:
    """E[x0 | x_t] when x0 is drawn from either N(-0.8, 0.3^2) or N(0.5, 0.3^2)."""
    variance = (level.alpha * WIDTH) ** 2 + level.sigma**2
    off = x[..., None] - level.alpha * CENTRES
    belongs = torch.softmax(-off.square() / (2 * variance), dim=-1)
    x0 = (belongs * (CENTRES + level.alpha * WIDTH**2 / variance * off)).sum(-1)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "edm", "flow", "linear_zero_snr"])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(ddim, 1), (heun, 2), (dpmpp_2m, 2), (dpmpp_2s, 2)],
    ids=lambda p: getattr(p, "__name__", str(p)),
)
def test_order_of_convergence_on_a_mixture(sampler, order, schedule):
    """No formula for the path here: a path of many more steps stands in for it."""
    schedule = make_schedule(schedule)
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64).reshape(-1, 1, 1, 1)
    true = last(heun(ideal_of_mixture, x, even_path(schedule, 4000)))
    errors = [
        float((last(sampler(ideal_of_mixture, x, even_path(schedule, steps))) - true).abs().max())
        for steps in (80, 160, 320)
    ]
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    assert measured[-1] == pytest.approx(order, abs=0.2), (measured, errors)


def deviation_after(sampler, path: NoiseLevels) -> float:
    """The exact standard deviation that a random sampler gives Gaussian data: each of its steps is linear in picture
    and noise, so two evaluations determine it, without random numbers."""
    one, nothing = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    def ideal_of_zero_mean(x, level):
        shrink = level.alpha * STD**2 / marginal_std(level) ** 2
        return Prediction(shrink * x, (1 - level.alpha * shrink) / level.sigma * x)

    levels = list(path)
    variance = marginal_std(levels[0]) ** 2
    for now, then in pairwise(levels):
        short = NoiseLevels(
            NoiseLevel(*(torch.tensor(pair, dtype=torch.float64) for pair in zip(now, then, strict=True))),
            path.schedule,
        )
        keeps = float(last(sampler(ideal_of_zero_mean, one, short, noise=lambda k, x: nothing)))
        adds = float(last(sampler(ideal_of_zero_mean, nothing, short, noise=lambda k, x: one)))
        variance = keeps**2 * variance + adds**2
    return math.sqrt(variance)


@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "flow"])
@pytest.mark.parametrize("sampler", [sde, euler_a, ddpm], ids=lambda s: s.__name__)
def test_weak_order_of_the_random_samplers(sampler, name):
    """The distribution they make comes closer in proportion to the step: order 1, as Euler-Maruyama promises."""
    schedule = make_schedule(name)
    errors = []
    for steps in (100, 200, 400):
        path = even_path(schedule, steps)
        *_, end = list(path)
        errors.append(abs(deviation_after(sampler, path) - marginal_std(end)))
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(1, abs=0.15), errors


@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "flow", "scaled_linear_zero_snr"])
def test_the_sde_arrives_at_the_data(name):
    """From the noisiest level to the clean image, also where it begins with nothing of the image left."""
    assert deviation_after(sde, make_schedule(name).noise_levels(1000)) == pytest.approx(STD, rel=0.06)


@pytest.mark.parametrize("name", ["linear", "cosine", "flow"])
def test_ddim_inversion_comes_back(name):
    """From clean points to noise and back: the error halves when the steps double."""
    schedule = make_schedule(name)
    x = torch.linspace(-1.2, 1.0, 8, dtype=torch.float64).reshape(-1, 1, 1, 1)
    errors = []
    for steps in (100, 200, 400):
        path = schedule.noise_levels(steps)
        noise = last(ddim_inverse(ideal_of_mixture, x, path))
        assert float(noise.std()) > 0.5
        errors.append(float((last(ddim(ideal_of_mixture, noise, path)) - x).abs().max()))
    assert errors[-1] < 0.02 and errors[-2] / errors[-1] > 1.6, errors


@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "flow"])
@pytest.mark.parametrize("sampler", [ddim, heun, dpmpp_2m, dpmpp_2s], ids=lambda s: s.__name__)
def test_deterministic_samplers_arrive_at_the_data(sampler, name):
    """From the noisiest level to the clean image, as on the command line: each point ends where the ODE takes it."""
    schedule = make_schedule(name)
    path = schedule.noise_levels(200)
    levels = list(path)
    x = levels[0].sigma * torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    end = last(sampler(ideal, x, path))
    torch.testing.assert_close(end, exact(x, levels[0], levels[-1]), rtol=0, atol=0.02 if sampler is ddim else 0.005)


def sample_gaussian(name: str, steps: int, sampler=ddpm, **options) -> torch.Tensor:
    x = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return last(sampler(ideal, x, make_schedule(name).noise_levels(steps), noise=noise_source, **options))


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize(("steps", "tolerance"), [(1000, 0.03), (250, 0.06), (50, 0.2)])
def test_ddpm_reproduces_mean_and_deviation(name, steps, tolerance):
    """20,000 numbers: the mean is known to 0.002, the standard deviation to 0.5 %. Fewer and longer steps lose a
    little of it, because beta_tilde is the least noise a step may add."""
    x = sample_gaussian(name, steps)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.std()) == pytest.approx(STD, rel=tolerance)


def naive_jump(denoise, x: torch.Tensor, path: NoiseLevels, noise) -> torch.Tensor:
    """The classic mistake: visit every 20th step, but with the coefficients of the full chain (eq. 11 with beta_t)."""
    schedule, times = path.schedule, [int(t) + 1 for t in path.levels.time[:-1]]
    for i, t in enumerate(times):
        beta, bar, before = schedule.betas[t - 1], schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
        eps = denoise(x, NoiseLevel(t - 1, float(schedule.alpha[t]), float(schedule.sigma[t])))[1]
        x = (x - beta / (1 - bar).sqrt() * eps) / (1 - beta).sqrt()
        x = x + ((1 - before) / (1 - bar) * beta).sqrt() * noise(i + 1, x)
    return x


def test_respacing_is_not_jumping():
    """The mistake leaves most of the noise in; the test above, with its tolerance of 20 %, can tell the two apart."""
    x = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wrong = naive_jump(ideal, x, make_schedule("linear").noise_levels(50), noise_source)
    assert float(wrong.std()) > 2 * STD
    # with every step it is the right chain
    full = naive_jump(ideal, x, make_schedule("linear").noise_levels(1000), noise_source)
    assert float(full.std()) == pytest.approx(STD, rel=0.03)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["cosine", "edm", "flow"])
def test_any_eta_keeps_the_distribution(name, eta):
    """Song et al. 2021, theorem 1: eta changes the trajectory, not the distribution of the samples.
    (On every schedule, not only DDPM's.)
    """
    path = make_schedule(name).noise_levels(250)
    x = float(path.levels.sigma[0]) * torch.randn(
        20_000, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    x = last(ddim(ideal, x, path, eta, noise_source))
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(x.std()) == pytest.approx(STD, rel=0.06)


def test_ddim_with_eta_one_is_ddpm():
    path, x = make_schedule("cosine").noise_levels(20), pure_noise()
    denoise = Denoiser(network, "v")
    for a, b in zip(ddim(denoise, x, path, 1.0, noise_source), ddpm(denoise, x, path, noise_source), strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "sampler", [lambda *a: ddim(*a, 0.7, noise_source), lambda *a: ddpm(*a, noise_source)], ids=["ddim", "ddpm"]
)
def test_the_last_step_adds_no_noise(sampler):
    """The sample is the network's last prediction of the clean image, exactly."""
    steps = list(sampler(Denoiser(network, "v"), pure_noise(), make_schedule("cosine").noise_levels(10)))
    assert torch.equal(steps[-1].x, steps[-1].x0)
    assert not torch.allclose(steps[-2].x, steps[-2].x0, atol=1e-3)


@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "flow"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_on_every_schedule_and_its_contract(sampler, name):
    """Finite everywhere, `steps` states numbered from zero, and the last of them is clean."""
    schedule, evaluated = make_schedule(name), []

    def denoise(x, level):
        evaluated.append(level)
        return ideal(x, level)

    steps = list(Sampler(sampler, 6).run(denoise, schedule, SHAPE, 0))
    assert [step.i for step in steps] == list(range(6))
    assert all(torch.isfinite(step.x).all() and step.x.shape == step.x0.shape == SHAPE for step in steps)
    # flow begins at pure noise, which has no half-way
    evaluations = {"heun": 11, "dpmpp_2s": 10 if name == "flow" else 11}
    assert len(evaluated) == evaluations.get(sampler, 6)
    assert all(level.sigma > 0 for level in evaluated)  # no sampler evaluates at the clean image
    if sampler != "sde":  # whose first steps are far too long here
        assert float(steps[-1].x.mean()) == pytest.approx(MEAN, abs=0.15)


# ---------------------------------------------------------------------------------------------------------- the noise


def test_noise_depends_on_seed_and_step_alone():
    like = torch.empty(3, 2)
    first, again = Noise(5), Noise(5)
    first(1, like), first(2, like)  # what was drawn before does not matter
    assert torch.equal(first(9, like), again(9, like))
    assert not torch.equal(first(9, like), first(8, like))
    assert not torch.equal(first(9, like), Noise(6)(9, like))
    assert not torch.equal(Noise(1)(2, like), Noise(2)(1, like))
    many = Noise(0)(0, torch.empty(100_000))
    assert float(many.mean()) == pytest.approx(0, abs=0.02) and float(many.std()) == pytest.approx(1, abs=0.02)


def test_the_fresh_noise_is_not_the_noise_one_began_with():
    path = make_schedule("cosine").noise_levels(5)
    x = initial_noise(path, SHAPE, Noise(3))
    assert all(not torch.equal(Noise(3)(k, x), x) for k in range(1, 6))
    assert float(
        initial_noise(make_schedule("edm").noise_levels(5), (1000, 1, 1, 1), Noise(0)).std()
    ) == pytest.approx(80, rel=0.1)
