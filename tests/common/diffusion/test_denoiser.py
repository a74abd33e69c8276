"""Predictions: what the network is asked and how its answer is read are inverse to each other, for every schedule."""

import random

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler

from common.diffusion.denoiser import PREDICTIONS, Denoiser, scale_in, target, threshold, to_x0_eps
from common.diffusion.diffusers_scheduler import check_pair
from common.diffusion.losses import diffusion_loss
from common.diffusion.schedules import SCHEDULES, NoiseLevel, add_noise, make_schedule
from common.errors import UserError


def pictures(seed: int, n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(n, 2, 3, 3, generator=g, dtype=torch.float64) * 2 - 1
    return x0, torch.randn(x0.shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_unmix_undoes_target(schedule, prediction):
    """Any pair of schedule and prediction, any noise level: both parts of the picture come back."""
    r = random.Random(schedule + prediction)
    for seed in range(5):
        x0, eps = pictures(seed)
        u = torch.tensor([r.uniform(0.02, 0.98) for _ in x0], dtype=torch.float64)
        level = make_schedule(schedule).sample_levels(u).like(x0)
        x, y = add_noise(x0, eps, level), target(prediction, x0, eps, level)
        x0_again, eps_again = to_x0_eps(prediction, y, x, level)
        torch.testing.assert_close(x0_again, x0, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(eps_again, eps, rtol=1e-6, atol=1e-6)


def test_the_targets_are_those_of_the_papers():
    x0, eps = pictures(0)
    level = NoiseLevel(0, 0.6, 0.8)
    torch.testing.assert_close(target("eps", x0, eps, level), eps)
    torch.testing.assert_close(target("x0", x0, eps, level), x0)
    torch.testing.assert_close(target("v", x0, eps, level), 0.6 * eps - 0.8 * x0)
    torch.testing.assert_close(target("flow", x0, eps, level), eps - x0)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_noising_and_velocity_of_diffusers(name):
    x0, eps = pictures(1)
    schedule, theirs = (
        make_schedule(name),
        DDPMScheduler(beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[name]),
    )
    t = torch.tensor([1, 2, 500, 1000])  # the paper's t; diffusers counts from zero
    level = schedule.at(t).like(x0)
    torch.testing.assert_close(add_noise(x0, eps, level), theirs.add_noise(x0, eps, t - 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target("v", x0, eps, level), theirs.get_velocity(x0, eps, t - 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 3.0, 80.0])
def test_edm_preconditioning_of_the_paper_and_of_diffusers(sigma):
    """Karras et al. 2022, eq. 7: D(x) = c_skip x + c_out F(c_in x, c_noise), with the coefficients of table 1."""
    g = torch.Generator().manual_seed(0)
    x = sigma * torch.randn(2, 1, 4, 4, generator=g, dtype=torch.float64)
    data, asked = 0.5, []

    def F(scaled, noise):
        asked.append((scaled, noise))
        return torch.tanh(scaled) + noise.double()[:, None, None, None]

    level = make_schedule("edm").at(torch.tensor(sigma, dtype=torch.float64))
    level = NoiseLevel(*map(float, level))
    predicted = Denoiser(F, "edm", clip_x0=False)(x, level)

    c_skip, c_out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2) ** 0.5
    c_in, c_noise = 1 / (sigma**2 + data**2) ** 0.5, torch.tensor(sigma).log() / 4
    expected = c_skip * x + c_out * (torch.tanh(c_in * x) + c_noise)
    torch.testing.assert_close(predicted.x0, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(asked[0][0], c_in * x)
    torch.testing.assert_close(asked[0][1].double(), c_noise.double().expand(2), rtol=1e-6, atol=1e-6)

    theirs = EDMEulerScheduler()
    torch.testing.assert_close(theirs.precondition_inputs(x, sigma), c_in * x)
    torch.testing.assert_close(
        theirs.precondition_outputs(x, F(c_in * x, c_noise.expand(2)), sigma), predicted.x0, rtol=1e-6, atol=1e-6
    )


def test_edm_asks_for_an_answer_of_unit_variance():
    """Appendix B.6: for data of standard deviation 0.5 the network's target has variance 1 at every noise level."""
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(50_000, 1, 1, 1, generator=g, dtype=torch.float64) for _ in range(2))
    x0 = 0.5 * x0
    for sigma in (0.01, 0.5, 20.0):
        level = NoiseLevel(0, 1.0, sigma)
        assert float(target("edm", x0, eps, level).var()) == pytest.approx(1, rel=0.02)
        assert float((scale_in("edm", level) * add_noise(x0, eps, level)).var()) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_denoiser_reads_a_perfect_network(prediction):
    x0, eps = pictures(2)
    for level in list(make_schedule("cosine").noise_levels(4))[:-1]:
        x = add_noise(x0, eps, level)
        perfect = Denoiser(lambda *_, level=level: target(prediction, x0, eps, level), prediction)
        predicted = perfect(x, level)
        torch.testing.assert_close(predicted.x0, x0, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(predicted.eps, eps, rtol=1e-6, atol=1e-6)


def test_clipping_keeps_the_picture_made_of_its_parts():
    level = NoiseLevel(10, 0.6, 0.8)
    x = torch.linspace(-3, 3, 16, dtype=torch.float64).reshape(1, 1, 4, 4)

    def net(x, t):
        return 0.1 * x

    clipped, free = Denoiser(net, "eps")(x, level), Denoiser(net, "eps", clip_x0=False)(x, level)
    assert free.x0.abs().max() > 1 and clipped.x0.abs().max() == 1
    torch.testing.assert_close(clipped.x0, free.x0.clamp(-1, 1))
    for predicted in (clipped, free):
        torch.testing.assert_close(add_noise(predicted.x0, predicted.eps, level), x)


def test_dynamic_thresholding():
    """As diffusers has it, image by image; an image within [-1, 1] is left alone,
    the brightest pixels of another are not all white.
    """
    x0 = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1.0, 3.0]).view(
        3, 1, 1, 1
    )
    # left at 1, theirs only clips
    theirs = DDPMScheduler(thresholding=True, sample_max_value=1000.0)._threshold_sample(x0)
    torch.testing.assert_close(threshold(x0), theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(threshold(x0)[0], x0[0])
    assert float(threshold(x0)[2].abs().max()) == 1 and float((threshold(x0)[2].abs() == 1).float().mean()) < 0.02
    assert float((x0[2].clamp(-1, 1).abs() == 1).float().mean()) > 0.5

    level = NoiseLevel(10, 0.6, 0.8)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    predicted = Denoiser(lambda x, t: 0.1 * x, "eps", clip_x0="dynamic")(x, level)
    torch.testing.assert_close(
        predicted.x0, threshold(Denoiser(lambda x, t: 0.1 * x, "eps", clip_x0=False)(x, level).x0)
    )
    torch.testing.assert_close(add_noise(predicted.x0, predicted.eps, level), x)


def test_a_network_with_learned_variance_is_read():
    x, level = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)), NoiseLevel(10, 0.6, 0.8)
    predicted = Denoiser(lambda x, t: torch.cat([0.1 * x, x + 7], 1), "eps", clip_x0=False)(x, level)
    torch.testing.assert_close(predicted.eps, 0.1 * x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(predicted.variance, x + 7)
    assert Denoiser(lambda x, t: 0.1 * x, "eps")(x, level).variance is None


def test_the_denoiser_passes_the_noise_level_and_the_conditions():
    seen = {}

    def net(x, t, label):
        seen.update(t=t, label=label)
        return x

    label = torch.tensor([3, 1])
    Denoiser(net, "x0", label=label)(torch.zeros(2, 1, 4, 4), NoiseLevel(17, 0.6, 0.8))
    assert seen["t"].tolist() == [17, 17] and seen["label"] is label


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow"])
def test_the_loss_is_the_mean_squared_error_of_each_image(prediction):
    x0, eps = (value.float() for value in pictures(3))
    u = torch.tensor([0.1004, 0.3004, 0.6004, 0.9004])
    schedule, seen = make_schedule("linear"), {}

    def net(x, t):
        seen.update(x=x, t=t)
        return torch.zeros_like(x)

    errors = diffusion_loss(net, schedule, prediction, x0, u, eps)
    level = schedule.sample_levels(u)
    for i in range(4):
        one = NoiseLevel(level.time[i], float(level.alpha[i]), float(level.sigma[i]))
        torch.testing.assert_close(seen["x"][i], add_noise(x0[i], eps[i], one))
        torch.testing.assert_close(errors[i], target(prediction, x0[i], eps[i], one).square().mean())
    assert seen["t"].tolist() == [100, 300, 600, 900]


def test_the_loss_is_zero_for_a_perfect_network():
    x0, eps = pictures(4)
    u = torch.tensor([0.1, 0.3, 0.6, 0.9])
    for schedule, prediction in (("cosine", "v"), ("edm", "edm"), ("flow", "flow")):
        level = make_schedule(schedule).sample_levels(u).like(x0)
        errors = diffusion_loss(
            lambda *_, y=target(prediction, x0, eps, level): y, make_schedule(schedule), prediction, x0, u, eps
        )
        assert errors.shape == (4,) and errors.max() < 1e-10


def test_unknown_prediction():
    with pytest.raises(UserError, match="unknown prediction 'noise'; choose one of eps"):
        target("noise", *pictures(0), NoiseLevel(0, 0.6, 0.8))


def test_pairs_of_schedule_and_prediction():
    for schedule in SCHEDULES:
        for prediction in PREDICTIONS:
            if schedule.endswith("zero_snr") and prediction == "eps":
                with pytest.raises(UserError, match="ends at pure noise.*choose v or x0"):
                    check_pair(schedule, prediction)
            elif (schedule if schedule in ("edm", "flow") else "") == (
                prediction if prediction in ("edm", "flow") else ""
            ):
                check_pair(schedule, prediction)
            else:
                with pytest.raises(
                    UserError, match=f"schedule '{schedule}' and prediction '{prediction}' do not go together"
                ):
                    check_pair(schedule, prediction)
    with pytest.raises(UserError, match="unknown prediction 'magic'"):
        check_pair("cosine", "magic")
