"""Errors, weights, and the variational bound: equal to diffusers where it has them, and to their own definitions."""

import math

import pytest
import torch
from diffusers.training_utils import compute_snr

from common.diffusion.denoiser import target
from common.diffusion.losses import ERRORS, HUBER_DELTA, WEIGHT_NAMES, diffusion_loss, loss_weight
from common.diffusion.schedules import DiscreteSchedule, NoiseLevel, add_noise, make_schedule
from common.diffusion.vlb import discrete_log_likelihood, gaussian_kl, log_variance, step_variances, vlb_term
from common.errors import UserError


def batch(n: int = 4, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x0, u, eps) for a batch of tiny images."""
    g = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 256, (n, channels, 5, 5), generator=g) / 127.5 - 1
    return x0, (torch.arange(n) + 0.5) / n, torch.randn(x0.shape, generator=g)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    difference = torch.tensor([0.0, 0.02, -0.1, 0.5, -2.0])
    by_hand = {
        "l2": lambda d: d * d,
        "l1": abs,
        "huber": lambda d: d * d / 2 if abs(d) <= HUBER_DELTA else HUBER_DELTA * (abs(d) - HUBER_DELTA / 2),
    }[name]
    got = ERRORS[name](difference + 3, torch.full((5,), 3.0))
    torch.testing.assert_close(got, torch.tensor([by_hand(float(d)) for d in difference]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("error", ERRORS)
def test_the_loss_uses_the_error_it_is_told(error):
    x0, u, eps = batch()
    schedule = make_schedule("cosine")

    def net(x, t):
        return 0.3 * x

    level = schedule.sample_levels(u).like(x0)
    expected = ERRORS[error](0.3 * add_noise(x0, eps, level), eps).flatten(1).mean(1)
    torch.testing.assert_close(diffusion_loss(net, schedule, "eps", x0, u, eps, error=error), expected)


@pytest.mark.parametrize("flag", [{"error": "l3"}, {"weight": "snr"}])
def test_unknown_names(flag):
    with pytest.raises(UserError, match="unknown .*; choose one of"):
        diffusion_loss(lambda x, t: x, make_schedule("cosine"), "eps", *batch(), **flag)


# ------------------------------------------------------------------------------------------------------------ weights

DISCRETE = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@pytest.mark.parametrize("prediction", DISCRETE)
def test_min_snr_as_the_training_scripts_of_diffusers_have_it(prediction):
    from diffusers import DDPMScheduler

    t = torch.tensor([1, 10, 100, 500, 900, 1000])
    snr = compute_snr(DDPMScheduler(beta_schedule="linear"), t - 1).double()
    theirs = snr.clamp(max=5) / {"eps": snr, "x0": torch.ones(6), "v": snr + 1}[prediction]
    mine = loss_weight("min_snr", prediction, make_schedule("linear").at(t))
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_p2_of_the_paper():
    """Choi et al. 2022: the weight of the squared error of eps is 1 / (k + SNR)^gamma; here k = gamma = 1."""
    level = make_schedule("linear").at(torch.tensor([1, 100, 700, 1000]))
    snr = (level.alpha / level.sigma) ** 2
    torch.testing.assert_close(loss_weight("p2", "eps", level), 1 / (1 + snr))


@pytest.mark.parametrize("weight", [name for name in WEIGHT_NAMES if name != "plain"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow", "edm"])
def test_a_weight_means_the_same_whatever_is_predicted(prediction, weight):
    """The same error of x0 costs the same, whatever the network predicts."""
    level = NoiseLevel(
        torch.zeros(3),
        *(torch.tensor(c, dtype=torch.float64).view(3, 1, 1, 1) for c in ((0.95, 0.6, 0.1), (0.3, 0.8, 0.995))),
    )
    x0, eps = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrong_x0 = x0 + 0.1
    wrong_eps = (add_noise(x0, eps, level) - level.alpha * wrong_x0) / level.sigma
    error = (target(prediction, wrong_x0, wrong_eps, level) - target(prediction, x0, eps, level)).square()
    costs = (loss_weight(weight, prediction, level) * error).flatten(1).mean(1)
    snr = ((level.alpha / level.sigma) ** 2).flatten()
    expected = {"p2": snr / (1 + snr), "min_snr": snr.clamp(max=5)}[weight] * 0.1**2
    torch.testing.assert_close(costs, expected)


def test_weights_are_finite_where_nothing_is_left_of_the_image():
    level = make_schedule("linear_zero_snr").at(torch.tensor([1000]))
    for weight in ("p2", "min_snr"):
        assert float(loss_weight(weight, "v", level)) == 0


# ---------------------------------------------------------------------------------------------------- learned variance


def test_the_divergence_of_gaussians():
    mean1, log_var1, mean2, log_var2 = torch.randn(
        4, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mean1, (log_var1 / 2).exp()), normal(mean2, (log_var2 / 2).exp())
    )
    torch.testing.assert_close(gaussian_kl(mean1, log_var1, mean2, log_var2), expected)


@pytest.mark.parametrize(("mean", "log_var"), [(0.1, -2.0), (0.9, -6.0), (-1.3, 0.5), (0.2, -9.0)])
def test_the_probabilities_of_all_grey_values_add_up_to_one(mean, log_var):
    grey = torch.arange(256) / 127.5 - 1
    p = discrete_log_likelihood(grey, torch.tensor(mean), torch.tensor(log_var)).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-4)
    assert int(p.argmax()) == round((min(max(mean, -1), 1) + 1) * 127.5)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_variances_of_a_step(name):
    """On the full chain they are the paper's beta_t and beta_tilde_t (DDPM eq. 7)."""
    schedule = make_schedule(name)
    t = torch.tensor([1, 2, 500, 1000])
    beta, beta_tilde = step_variances(schedule.at(t), schedule.at(t - 1))
    bar, before = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
    torch.testing.assert_close(beta, schedule.betas[t - 1])
    torch.testing.assert_close(beta_tilde, (1 - before) / (1 - bar) * schedule.betas[t - 1])
    assert beta_tilde[0] == 0
    assert float(log_variance(torch.tensor(1.0), math.log(0.2), math.log(0.1)).exp()) == pytest.approx(0.2)
    assert float(log_variance(torch.tensor(-1.0), math.log(0.2), math.log(0.1)).exp()) == pytest.approx(0.1)


def bits(schedule: DiscreteSchedule, t: int, v: float, error: float = 0.0, prediction: str = "eps") -> float:
    """The bound's term for one level, where the network is off by `error` and always says v."""
    x0, _, eps = batch()
    level = schedule.at(torch.full((4,), t)).like(x0)
    x, y = add_noise(x0, eps, level), target(prediction, x0, eps, level) + error
    return float(vlb_term(schedule, prediction, x0, x, y, torch.full_like(x0, v), level).mean())


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_a_perfect_guess_costs_nothing_with_the_smaller_variance(prediction):
    schedule = make_schedule("linear")
    for t in (2, 100, 900):
        assert bits(schedule, t, v=-1, prediction=prediction) == pytest.approx(0, abs=1e-4)
    assert bits(schedule, 2, v=1) > 0.1  # beta_2 is much more than beta_tilde_2
    assert bits(schedule, 1, v=-1) > 0  # the last step must still choose one of 256 grey values


def test_the_more_wrong_the_guess_the_more_variance_is_best():
    """The term of the bound, worked out once more with the paper's formulas, and where its minimum lies."""
    schedule, t, error = make_schedule("linear"), 3, 0.9
    beta, bar = float(schedule.betas[t - 1]), schedule.alpha_bar
    beta_tilde = float((1 - bar[t - 1]) / (1 - bar[t]) * beta)
    off = beta / math.sqrt(float(1 - bar[t])) / math.sqrt(1 - beta) * error  # of the mean, DDPM eq. 11
    for v in (-1.0, 0.0, 1.0):
        var = beta ** ((v + 1) / 2) * beta_tilde ** ((1 - v) / 2)
        expected = 0.5 * (math.log(var / beta_tilde) - 1 + beta_tilde / var + off**2 / var) / math.log(2)
        assert bits(schedule, t, v, error) == pytest.approx(expected, rel=2e-3)
    assert bits(schedule, t, 1.0, error) < bits(schedule, t, -1.0, error)


def test_the_hybrid_loss_is_the_simple_one_plus_a_thousandth_of_the_bound():
    """And only the variance learns from the bound (Nichol & Dhariwal 2021, section 3.1)."""
    schedule = make_schedule("cosine", 100)
    x0, u, eps = batch(channels=3)
    weight = torch.tensor([0.4, 0.3], requires_grad=True)

    def net(x, t):
        return torch.cat([weight[0] * x, (weight[1] * x).tanh()], 1)

    level = schedule.sample_levels(u).like(x0)
    x = add_noise(x0, eps, level)
    simple = diffusion_loss(lambda x, t: 0.4 * x, schedule, "eps", x0, u, eps)
    bound = vlb_term(schedule, "eps", x0, x, 0.4 * x, (0.3 * x).tanh(), level)
    hybrid = diffusion_loss(net, schedule, "eps", x0, u, eps)
    torch.testing.assert_close(hybrid.detach(), simple + 0.001 * 100 * bound)
    alone = torch.autograd.grad(
        diffusion_loss(lambda x, t: weight[0] * x, schedule, "eps", x0, u, eps).mean(), weight
    )[0]
    both = torch.autograd.grad(hybrid.mean(), weight)[0]
    assert float(both[0]) == pytest.approx(float(alone[0]), rel=1e-4) and abs(float(both[1])) > 1e-6 and alone[1] == 0


def test_learned_variance_needs_single_steps():
    with pytest.raises(UserError, match="learned variance needs a discrete-time schedule, which 'edm' is not"):
        diffusion_loss(lambda x, t: torch.cat([x, x], 1), make_schedule("edm"), "edm", *batch())
