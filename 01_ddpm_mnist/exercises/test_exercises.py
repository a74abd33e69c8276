"""Tests for you: each uses numbers that can be checked by hand. See README.md, "How to work".

python -m pytest 01_ddpm_mnist/exercises -x --tb=line -q       your exercises.py, up to the first failure
EXERCISES=mine.py python -m pytest 01_ddpm_mnist/exercises     another file
"""

import math
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.grade.checks import call, expect, expect_gradients, load, number, parts

ALPHA_BAR = torch.tensor([1.0, 0.64, 0.36])  # roots 1, 0.8, 0.6; and those of 1 - alpha_bar are 0, 0.6, 0.8
BETAS = torch.linspace(1e-4, 0.02, 1000)  # DDPM, section 4
CHAIN = torch.cat([torch.ones(1), (1 - BETAS).cumprod(0)])  # roots 0.99995 at t = 1 and 0.00635 at t = 1000


@pytest.fixture(scope="module")
def ex():
    """The file with the answers."""
    return load(Path(os.environ.get("EXERCISES") or Path(__file__).with_name("exercises.py")), "exercises")


def images(value: float, B: int = 2, C: int = 1, H: int = 2, W: int = 5) -> torch.Tensor:
    return torch.full((B, C, H, W), float(value))


class Network:
    """Predicts `noise` everywhere, and remembers the x and the levels that it was given."""

    def __init__(self, noise: float | torch.Tensor = 0.0):
        self.noise, self.x, self.levels = noise, [], []

    def __call__(self, x, t):
        assert isinstance(t, torch.Tensor) and t.shape == (len(x),), (
            "the network must be given one level for each image, as a tensor (B,)"
        )
        self.x.append(x)
        self.levels.append(t.tolist())
        return self.noise * torch.ones_like(x)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------- 1. alpha_bars


def test_1_products(ex):
    got = call(ex.alpha_bars, torch.tensor([0.1, 0.2, 0.5]))
    if isinstance(got, torch.Tensor) and got.dim() == 1:
        assert len(got) == 4, (
            f"three betas give four alpha_bars, since alpha_bar_0 = 1 comes first, but you returned {len(got)}"
        )
    right = torch.tensor([1.0, 0.9, 0.72, 0.36])  # 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.5
    wrong = {
        "you multiplied the betas; it is the (1 - beta) that are multiplied": torch.tensor([1.0, 0.1, 0.02, 0.01])
    }
    expect(got, right, "each alpha_bar is the product of all (1 - beta) so far", wrong)


def test_1_the_schedule_of_the_paper(ex):
    got = call(ex.alpha_bars, BETAS)
    expect(
        got,
        CHAIN,
        "1,000 betas from 0.0001 to 0.02 leave alpha_bar = 4.04e-5 at the end; is there a clamp?",
        atol=1e-7,
    )


# -------------------------------------------------------------------------------------------------------- 2. add_noise


def test_2_each_image_has_its_own_level(ex):
    square = dict(B=2, H=2, W=2)
    got = call(ex.add_noise, images(1, **square), torch.tensor([1, 2]), images(0, **square), ALPHA_BAR)
    columns = torch.tensor([0.8, 0.6]).expand(2, 1, 2, 2)
    right = columns.transpose(0, 3)
    wrong = {
        "the levels went to the columns of pixels, not to the images: give alpha_bar[t] the shape (B, 1, 1, 1)": columns,
        "your image is too faint: did you use alpha_bar where its square root belongs?": right**2,
        "your t is off by one: alpha_bar[t] is the entry to use": torch.tensor([1, 0.8])
        .view(2, 1, 1, 1)
        .expand(right.shape),
    }
    expect(got, right, "image 0 has level t[0], image 1 has level t[1]", wrong)


def test_2_how_much_is_left_of_the_image(ex):
    got = call(ex.add_noise, images(1), torch.tensor([2, 2]), images(0), ALPHA_BAR)
    expect(got, images(0.6), "at alpha_bar = 0.36 the image should be 0.6 as strong")


def test_2_how_much_noise(ex):
    got = call(ex.add_noise, images(0), torch.tensor([2, 2]), images(1), ALPHA_BAR)
    expect(
        got,
        images(0.8),
        "at alpha_bar = 0.36 the noise should be 0.8 strong; did you use 1 - alpha_bar where its square root belongs?",
    )


def test_2_a_clean_image(ex):
    got = call(ex.add_noise, images(1), torch.tensor([0, 0]), images(1), ALPHA_BAR)
    wrong = {"the level 0 was taken for 1; at t = 0 there is no noise": images(1.4)}
    expect(got, images(1), "at t = 0 the image is clean: x_t is x_0", wrong)


def test_2_far_from_0(ex):
    got = call(ex.add_noise, images(1), torch.tensor([2, 2]), images(3), ALPHA_BAR)
    wrong = {"you clipped the result to [-1, 1], which is not asked for: noisy images leave that range": images(1)}
    expect(got, images(0.6 + 2.4), "x_0 = 1 and eps = 3 make 0.6 * 1 + 0.8 * 3", wrong)


# --------------------------------------------------------------------------------------------------------- 3. guess_x0


def test_3_the_noise_is_removed(ex):
    got = call(ex.guess_x0, images(0.6 + 0.8), torch.tensor([2, 2]), images(1), ALPHA_BAR)  # x0 = 1, eps = 1
    wrong = {
        "the noise is gone but the image is too faint: divide by sqrt(alpha_bar)": images(0.6),
        "too much noise is left: did you use 1 - alpha_bar where its square root belongs?": images((1.4 - 0.64) / 0.6),
        "the noise is to be divided by sqrt(alpha_bar) too: are parentheses missing?": images(1.4 / 0.6 - 0.8),
    }
    expect(got, images(1), "1.4 was made of an image of ones (0.6 * 1 + 0.8 * 1); solve eq. 4 for x_0", wrong)


def test_3_each_image_has_its_own_level(ex):
    got = call(ex.guess_x0, images(0.48), torch.tensor([1, 2]), images(0), ALPHA_BAR)
    right = torch.tensor([0.6, 0.8]).view(2, 1, 1, 1).expand(2, 1, 2, 5)  # 0.48 / 0.8 and 0.48 / 0.6
    expect(got, right, "with no noise in x_t, x_0 is x_t / sqrt(alpha_bar_t), with the t of each image")


def test_3_pure_noise(ex):
    """The last level of the paper's schedule, where sqrt(alpha_bar) is 0.00635."""
    root = CHAIN[1000].sqrt()
    got = call(ex.guess_x0, images(1, B=1) * root, torch.tensor([1000]), images(0, B=1), CHAIN)
    wrong = {
        f"sqrt(alpha_bar_t) falls to 0.0064 in the paper's schedule, and you divide by no less than {least}": images(
            1, B=1
        )
        * root
        / least
        for least in (0.1, 0.05, 0.01)
    }
    expect(got, images(1, B=1), "0.00635 was made of an image of ones; is there a clamp or a constant?", wrong)


def test_3_far_from_0(ex):
    got = call(ex.guess_x0, images(3), torch.tensor([2, 2]), images(0), ALPHA_BAR)
    hint = "you clipped the result to [-1, 1], which is not asked for: a sampler may do so, but eq. 15 does not"
    expect(got, images(5), "x_t = 3 with no noise is an image of 3 / 0.6", {hint: images(1)})


# --------------------------------------------------------------------------------------------------------- 4. score_of


def test_4_one_image(ex):
    got = call(ex.score_of, images(1.2), torch.tensor([2, 2]), ALPHA_BAR)
    wrong = {
        "the sign is wrong: the score points away from the noise, to where images are more probable": images(1.5),
        "the standard deviation is missing: divide by sqrt(1 - alpha_bar_t)": images(-1.2),
        "you multiplied by the standard deviation where it divides": images(-0.96),
        "you divided by the variance 1 - alpha_bar_t; its square root is the right divisor": images(-1.2 / 0.64),
        "you divided by sqrt(alpha_bar_t), the weight of the image; the noise has sqrt(1 - alpha_bar_t)": images(-2),
        "you clipped the result to [-1, 1], which is not asked for: a score has no range": images(-1),
    }
    expect(
        got, images(-1.5), "x_t has the mean m and the standard deviation 0.8: the score is -(x_t - m) / 0.64", wrong
    )


def test_4_each_image_has_its_own_level(ex):
    square = dict(B=2, H=2, W=2)
    got = call(ex.score_of, images(1.2, **square), torch.tensor([1, 2]), ALPHA_BAR)
    columns = torch.tensor([-2.0, -1.5]).expand(2, 1, 2, 2)  # 1.2 / 0.6 and 1.2 / 0.8
    wrong = {"the levels went to the columns of pixels: give alpha_bar[t] the shape (B, 1, 1, 1)": columns}
    expect(got, columns.transpose(0, 3), "image 0 has the standard deviation 0.6, image 1 has 0.8", wrong)


def test_4_nearly_clean(ex):
    """The first level of the paper's schedule, where sqrt(1 - alpha_bar) is 0.01."""
    got = call(ex.score_of, images(1, B=1), torch.tensor([1]), CHAIN)
    wrong = {
        f"sqrt(1 - alpha_bar_t) falls to 0.01 in the paper's schedule, and you divide by no less than {least}": images(
            -1 / least, B=1
        )
        for least in (0.1, 0.05)
    }
    expect(got, images(-100, B=1), "eps = 1 and the standard deviation 0.01 give the score -100", wrong, atol=1e-2)


# --------------------------------------------------------------------------------------------------- 5. time_embedding


def test_5_at_time_0(ex):
    got = call(ex.time_embedding, torch.tensor([0]), 6)
    wrong = {
        "the cosines come first; here the sines do": torch.tensor([[1.0, 1, 1, 0, 0, 0]]),
        "sines and cosines alternate; here all the sines come first": torch.tensor([[0.0, 1, 0, 1, 0, 1]]),
    }
    expect(got, torch.tensor([[0.0, 0, 0, 1, 1, 1]]), "at t = 0 every sine is 0 and every cosine 1", wrong)


def test_5_fast_and_slow_waves(ex):
    got = call(ex.time_embedding, torch.tensor([3, 50]), 4)
    angles = torch.tensor([[3, 0.03], [50, 0.5]])  # 10000^(1/2) = 100
    expect(got, torch.cat([angles.sin(), angles.cos()], 1), "with dim = 4 there are two angles, t and t / 100")


# ---------------------------------------------------------------------------------------------- 6. add_class_embedding


TABLE = torch.tensor([[10.0, 20], [30, 40], [50, 60]])  # three classes, two numbers for each


def test_6_each_image_gets_its_class(ex):
    got = call(ex.add_class_embedding, torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([2, 0]), TABLE)
    assert not (isinstance(got, torch.Tensor) and got.shape == (2, 4)), (
        "you put the two vectors side by side; add them, so that the width stays the same"
    )
    wrong = {
        "every image got the class of the first one": torch.tensor([[51.0, 62], [53, 64]]),
        "the embeddings of time were lost: add the class to them": torch.tensor([[50.0, 60], [10, 20]]),
        "you multiplied the two embeddings; the class is added": torch.tensor([[50.0, 120], [30, 80]]),
        "every image got row 0, 1, ... of the table, whatever its label": torch.tensor([[11.0, 22], [33, 44]]),
    }
    expect(got, torch.tensor([[51.0, 62], [13, 24]]), "image 0 gets row 2 of the table, image 1 gets row 0", wrong)


def test_6_the_table_can_learn(ex):
    table, embedding = TABLE.clone().requires_grad_(), torch.zeros(2, 2, requires_grad=True)
    got = ex.add_class_embedding(embedding, torch.tensor([2, 2]), table)
    inputs = {"the table of the classes' vectors": table, "the embedding of time": embedding}
    expect_gradients(got, embedding + table[2], inputs)  # two images of class 2: its row gets both gradients


# ---------------------------------------------------------------------------------------------------- 7. training_loss


def test_7_the_network_sees_images_from_minus_1_to_1(ex):
    black_and_white = torch.cat([images(0, B=1), images(255, B=1)]).to(torch.uint8)
    net, second = Network(), Network()
    for each in (net, second):
        call(ex.training_loss, each, black_and_white, torch.tensor([2, 2]), images(0), ALPHA_BAR)
    assert net.x, "the network was never evaluated"
    right = torch.cat([images(-0.6, B=1), images(0.6, B=1)])
    wrong = {
        "your images are in [0, 1]; black should be -1, so that images are centred as the noise is": (right + 0.6) / 2
    }
    hint = "the network should see x_t made by eq. 4 from images in [-1, 1]"
    expect(net.x[0], right, hint, wrong, again=lambda: second.x[0])


def test_7_the_network_counts_from_0(ex):
    net = Network()
    call(ex.training_loss, net, images(0).to(torch.uint8), torch.tensor([1, 2]), images(0), ALPHA_BAR)
    assert net.levels == [[0, 1]], (
        f"for t = [1, 2] the network must be given t - 1 = [0, 1], but was given {net.levels}"
    )


def test_7_how_wrong(ex):
    loss = call(
        ex.training_loss, Network(noise=-1), images(0).to(torch.uint8), torch.tensor([1, 2]), images(2), ALPHA_BAR
    )
    wrong = {
        "you added up the squared errors; take their mean, or the loss depends on the size of the batch": torch.tensor(
            9.0 * 20
        ),
        "you compared the prediction with the image; the network predicts the noise": torch.tensor(0.0),
        "you took the absolute difference; eq. 14 squares it": torch.tensor(3.0),
        "you did not square the differences, so that errors up and down cancel": torch.tensor(-3.0),
    }
    expect(
        loss,
        torch.tensor(9.0),
        "the noise is 2 everywhere and the network predicts -1, so the mean squared error is 9",
        wrong,
    )


def test_7_the_network_can_learn_from_it(ex):
    net = Network(noise=torch.ones((), requires_grad=True))
    loss = call(ex.training_loss, net, images(0).to(torch.uint8), torch.tensor([1, 2]), images(2), ALPHA_BAR)
    expect_gradients(loss, (net.noise - 2).square(), {"the network": net.noise})  # it predicts 1, and the noise is 2


def test_7_far_from_0(ex):
    net, white = Network(), images(255, B=1).to(torch.uint8)
    call(ex.training_loss, net, white, torch.tensor([2]), images(3, B=1), ALPHA_BAR)
    wrong = {
        "you clipped the result to [-1, 1], which is not asked for: noisy images leave that range": images(1, B=1)
    }
    expect(net.x[0], images(3, B=1), "the network should see 0.6 * 1 + 0.8 * 3", wrong)


# ---------------------------------------------------------------------------------------------------- 8. training_step


def one_weight(value: float) -> nn.Linear:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, value)
    return net


def test_8_learn_then_average(ex):
    net, average = one_weight(1), one_weight(3)
    net.weight.grad = torch.tensor([[100.0]])  # left over from the step before
    loss = 5 * net(torch.ones(1, 1)).sum()  # its gradient is 5
    ex.training_step(net, average, torch.optim.SGD(net.parameters(), lr=0.1), loss, decay=0.9)
    wrong = {
        "the optimizer made no step": torch.tensor([[1.0]]),
        "the gradient of the step before was added to this one's: call optimizer.zero_grad() before backward()": torch.tensor(
            [[-9.5]]
        ),
    }
    expect(net.weight.detach(), torch.tensor([[0.5]]), "the weight should go from 1 to 1 - 0.1 * 5", wrong)
    wrong = {
        "decay is the wrong way round: 0.9 should keep 0.9 of the average": torch.tensor([[0.1 * 3 + 0.9 * 0.5]]),
        "the average was taken before the optimizer's step, so it lags one step behind": torch.tensor(
            [[0.9 * 3 + 0.1 * 1]]
        ),
        "the average did not move": torch.tensor([[3.0]]),
    }
    expect(
        average.weight.detach(),
        torch.tensor([[0.9 * 3 + 0.1 * 0.5]]),
        "the average should become 0.9 * 3 + 0.1 * 0.5",
        wrong,
    )


def test_8_biases_too(ex):
    net = nn.Linear(1, 1)
    average = nn.Linear(1, 1).requires_grad_(False)  # as training programs have it
    for p, value in zip([*net.parameters(), *average.parameters()], (1.0, 1.0, 3.0, 3.0), strict=True):
        nn.init.constant_(p, value)
    ex.training_step(net, average, torch.optim.SGD(net.parameters(), lr=0.0), net(torch.ones(1, 1)).sum(), decay=0.5)
    assert not (average.bias == 3 and average.weight == 2), (
        "the average of the weights moved, but that of the biases did not: average.parameters() has both"
    )
    for p in average.parameters():
        expect(p.detach().flatten(), torch.tensor([2.0]), "half of 3 and half of 1, for weights and biases")


# ---------------------------------------------------------------------------------------------------- 9. langevin_step


def test_9_the_drift(ex):
    got = call(ex.langevin_step, images(2), images(4), 0.25, images(0))
    wrong = {
        "the step goes against the score": images(1.5),
        "the score has the factor delta; with noise of variance delta it is delta / 2": images(3),
        "that is the change alone; add it to x": images(0.5),
        "you clipped the result to [-1, 1], which is not asked for: the points have no range": images(1),
    }
    expect(got, images(2.5), "without noise, x moves by delta / 2 = 0.125 times the score", wrong)


def test_9_the_noise(ex):
    got = call(ex.langevin_step, images(0), images(0), 0.25, images(1))
    wrong = {
        "z has the factor delta; noise of variance delta has the standard deviation sqrt(delta)": images(0.25),
        "the noise has the variance 2 delta; that belongs to a score with the factor delta": images(0.5**0.5),
        "no noise was added": images(0),
    }
    expect(got, images(0.5), "noise of variance 0.25 has the standard deviation 0.5", wrong)


def test_9_many_steps_sample_the_density(ex):
    """A normal distribution of mean 1 and variance 0.25 has the score (1 - x) / 0.25."""
    x, draw = torch.zeros(5000), seeded()
    for _ in range(80):
        x = ex.langevin_step(x, (1 - x) / 0.25, 0.04, torch.randn(x.shape, generator=draw))
    assert abs(x.mean() - 1) < 0.05, f"after 80 steps the mean should be about 1, but it is {x.mean():.2f}"
    assert abs(x.var() - 0.25) < 0.03, (
        f"the variance should be about 0.25, but it is {x.var():.2f}: do the factors of score and noise fit together?"
    )


# ---------------------------------------------------------------------------------------------------- 10. reverse_step


def test_10_the_mean(ex):
    # 1 - beta_2 = 0.36 / 0.64 = 0.5625 (its root is 0.75), beta_2 = 0.4375
    got = call(ex.reverse_step, images(0.75), 2, images(0), images(0), ALPHA_BAR)
    wrong = {
        "the mean is divided by sqrt(alpha_bar_t); it should be sqrt(1 - beta_t), for one step only": images(
            0.75 / 0.6
        ),
        "the mean is not divided by sqrt(1 - beta_t)": images(0.75),
        # x_0 = 0.75 / 0.6, cut off at 1, in the mean of eq. 7: (0.8 * 0.4375 x_0 + 0.75 * 0.36 x_t) / 0.64
        "you clipped the predicted x_0 to [-1, 1], as some samplers do; eq. 11 does not": images(
            (0.8 * 0.4375 + 0.75 * 0.36 * 0.75) / 0.64
        ),
    }
    expect(got, images(1), "with eps = 0 and z = 0 the step only divides by sqrt(1 - beta_t) = 0.75", wrong)
    got = call(ex.reverse_step, images(0), 2, images(0.8), images(0), ALPHA_BAR)
    wrong = {"the square root of 1 - alpha_bar_t is missing in the mean": images(-0.4375 / 0.64 * 0.8 / 0.75)}
    expect(
        got,
        images(-0.4375 / 0.75),
        "in the mean, eps is multiplied by beta_t / sqrt(1 - alpha_bar_t), then all divided by sqrt(1 - beta_t)",
        wrong,
    )


def test_10_the_noise(ex):
    got = call(ex.reverse_step, images(0), 2, images(0), images(1), ALPHA_BAR)
    right = 0.36 / 0.64 * 0.4375  # eq. 7
    wrong = {
        "you multiplied z by the variance; it takes the square root": images(right),
        "you used the variance beta_t; eq. 7 has a factor less than 1 before it": images(0.4375**0.5),
        "your factor (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) is upside down": images((0.64 / 0.36 * 0.4375) ** 0.5),
    }
    expect(got, images(right**0.5), "z should be multiplied by the square root of eq. 7's variance", wrong)


def test_10_the_last_step_adds_no_noise(ex):
    x_1 = images(0.8 * 1 + 0.6 * 1)  # x0 = 1, eps = 1
    got = call(ex.reverse_step, x_1, 1, images(1), images(1), ALPHA_BAR)
    expect(got, images(1), "the last step should land on the clean image; is noise added at t = 1?")


def test_10_far_from_0(ex):
    got = call(ex.reverse_step, images(3), 2, images(0), images(0), ALPHA_BAR)
    wrong = {"you clipped the result to [-1, 1], which is not asked for: x_(t-1) is a noisy image": images(1)}
    expect(got, images(4), "with eps = 0 and z = 0 the step from 3 leads to 3 / 0.75", wrong)


def test_10_the_schedule_of_the_paper(ex):
    """The variance of the step from 2 to 1 is 0.0000545: below any clamp that is made for larger steps."""
    now, before = (float(CHAIN[t]) for t in (2, 1))
    sd = ((1 - before) / (1 - now) * (1 - now / before)) ** 0.5
    got = call(ex.reverse_step, images(0, B=1), 2, images(0, B=1), images(100, B=1), CHAIN)
    expect(
        got, images(100 * sd, B=1), f"x_t = eps = 0, and z = 100 has the factor {sd:.5f}; is there a clamp?", atol=5e-3
    )


# ---------------------------------------------------------------------------------------------------------- 11. sample


class OnePicture(Network):
    """A perfect network for a world with a single image, all of whose pixels are 0.5:
    the rest of x_t must be noise.
    """

    def __init__(self, alpha_bar: torch.Tensor):
        super().__init__()
        self.alpha_bar, self.weight = alpha_bar, torch.ones((), requires_grad=True)

    def __call__(self, x, t):
        super().__call__(x, t)
        assert 0 <= int(t[0]) < len(self.alpha_bar) - 1, (
            f"the network knows the levels 0 to {len(self.alpha_bar) - 2}, but was given {int(t[0])}"
        )
        a = self.alpha_bar[t + 1].view(-1, 1, 1, 1)
        return self.weight * (x - 0.5 * a.sqrt()) / (1 - a).sqrt()


def test_11_finds_the_only_picture(ex):
    walk_to_the_only_picture(ex, [1, 2, 3, 4, 5, 6])


def test_11_finds_it_in_fewer_steps(ex):
    walk_to_the_only_picture(ex, [2, 4, 6])


def walk_to_the_only_picture(ex, times):
    alpha_bar = torch.tensor([1.0, 0.95, 0.85, 0.7, 0.5, 0.3, 0.1])
    net = OnePicture(alpha_bar)
    got = call(ex.sample, net, (2, 1, 2, 5), alpha_bar, times, torch.Generator().manual_seed(0))
    given, right = [t[0] for t in net.levels], [t - 1 for t in reversed(times)]
    assert given == right, f"visiting the levels {times}, the network must be given {right}, but was given {given}"
    assert not (isinstance(got, torch.Tensor) and got.requires_grad), (
        "the samples hold the graph of all steps, so that memory grows with every evaluation: "
        "keep @torch.no_grad() above the function"
    )
    expect(
        got,
        images(0.5),
        "noise is left in the picture: does each step use the alpha_bar of the shorter chain, and does the last one reach level 0?",
    )


def test_11_new_noise_at_each_step(ex):
    shape = (2, 1, 2, 5)
    got = call(ex.sample, Network(), shape, ALPHA_BAR, [1, 2], torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(0)
    x_2, z = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    x_1 = x_2 / 0.75 + (0.36 / 0.64 * 0.4375) ** 0.5 * z  # the network sees no noise (eps = 0)
    wrong = {
        "no noise was added between the steps": x_2 / 0.75 / 0.8,
        "z is the noise that x started from; draw a new one for each step": (
            x_2 / 0.75 + (0.36 / 0.64 * 0.4375) ** 0.5 * x_2
        )
        / 0.8,
        "you clipped x to [-1, 1] at every step; algorithm 2 limits nothing": (x_1.clamp(-1, 1) / 0.8).clamp(-1, 1),
        "you clipped the result to [-1, 1], which is not asked for": (x_1 / 0.8).clamp(-1, 1),
    }
    expect(got, x_1 / 0.8, "draw x, then one z for each step, with torch.randn(shape, generator=generator)", wrong)


# ------------------------------------------------------------------------------------------------ 12. frechet_distance


def cloud(*scale: float) -> torch.Tensor:
    """200 points of mean 0 whose coordinates are uncorrelated, with these standard deviations. (200, D)"""
    x = torch.randn(200, len(scale), generator=seeded(), dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return white * torch.tensor(scale, dtype=torch.float64)


def distance_of(ex, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return number(call(ex.frechet_distance, a, b), "the distance")


def test_12_a_shifted_set(ex):
    got = distance_of(ex, cloud(1, 2), cloud(1, 2) + torch.tensor([3.0, 4]))
    wrong = {
        "the means are missing: add the squared distance between them": torch.tensor(0.0),
        "the distance between the means is not squared, or you took the square root of the whole: the Fréchet distance of FID is the squared one": torch.tensor(
            5.0
        ),
        "the factor 2 before the trace of the square root is missing": torch.tensor(30.0),
    }
    expect(got, torch.tensor(25.0).double(), "a set shifted by (3, 4) has the distance 3^2 + 4^2", wrong)


def test_12_a_wider_set(ex):
    got = distance_of(ex, cloud(1, 2), cloud(3, 5))
    wrong = {
        "only the means are compared; the covariances count too": torch.tensor(0.0),
        "the square root is missing: it is the trace of (A B)^(1/2)": torch.tensor(39.0 - 2 * 109),
        "that is the square root of the distance; the Fréchet distance of FID is the squared one": torch.tensor(
            13**0.5
        ),
        "the covariances are divided by N; torch.cov divides by N - 1": torch.tensor(13 * 199 / 200),
    }
    expect(got, torch.tensor(13.0).double(), "standard deviations 1, 2 and 3, 5 are (3-1)^2 + (5-2)^2 apart", wrong)


def test_12_turned_sets(ex):
    a = cloud(1, 3) @ torch.tensor([[0.8, 0.6], [-0.6, 0.8]]).double()
    b = cloud(1, 2) @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]]).double()
    # A = [[3.88, -3.84], [-3.84, 6.12]] and B = [[2.92, -1.44], [-1.44, 2.08]], so Tr(A + B) = 15. A B has the trace
    # 35.1184 and the determinant 36, and the trace of its root is the square root of 35.1184 + 2 * 6.
    wrong = {
        "you used only the variances (the diagonals); the covariances count too": torch.tensor(1.132379),
        "you took the square root of each entry of A B; a matrix square root is another matrix": torch.tensor(
            -1.758206
        ),
    }
    hint = "these sets are turned against each other: the trace of the square root of A B is the sum of the roots of its eigenvalues"
    expect(distance_of(ex, a, b), torch.tensor(15 - 2 * 47.1184**0.5).double(), hint, wrong)


def test_12_few_features(ex):
    """Fewer features than dimensions: most eigenvalues are 0, and rounding makes some of them negative."""
    for seed in range(8):
        a, b = (torch.randn(n, 8, generator=seeded(seed), dtype=torch.float64) for n in (3, 40))
        got = distance_of(ex, a, b)
        assert torch.isfinite(got), (
            "with fewer features than dimensions the result is not a number: set eigenvalues that are negative to 0"
        )


# ---------------------------------------------------------------------------------------------- 13. posterior_variance


def test_13_is_the_variance_of_eq_7(ex):
    # beta_2 = 1 - 0.36 / 0.64 = 0.4375, and (1 - 0.64) / (1 - 0.36) * 0.4375 = 0.246
    got = number(call(ex.posterior_variance, 1.5, 2, ALPHA_BAR, 200_000, seeded()), "the estimated variance")
    wrong = {
        "this is the variance of x_{t-1} given x_0 alone; x_t is known too, and leaves less room": 0.36,
        "this is the variance of x_t given x_{t-1}; wanted is that of x_{t-1} given x_t and x_0": 0.4375,
        "this is the variance of x_{t-1} - x_t, as if the slope were 1; fit the slope to the pairs": 0.46,
        "this is the variance of x_t given x_0; wanted is that of x_{t-1} given x_t and x_0": 0.64,
        "this is the standard deviation; square it": 0.246**0.5,
    }
    for message, value in wrong.items():
        assert abs(float(got) / value - 1) > 0.05, message
    assert abs(float(got) / 0.24609 - 1) < 0.05, f"the variance should be 0.246, but your estimate is {float(got):.3g}"


def test_13_is_an_estimate(ex):
    first, again, other = (ex.posterior_variance(1.5, 2, ALPHA_BAR, 2000, seeded(seed)) for seed in (0, 0, 1))
    assert first == again, "two calls with the same seed give different numbers: draw with generator=generator"
    assert first != other, (
        "two calls with different seeds give the same number: this is a formula, but the exercise asks for an estimate"
    )


# ---------------------------------------------------------------------------------------------------- 14. tweedie_mean


def test_14_a_normal_distribution(ex):
    """Clean points of variance 1 make noisy points of variance 1, and the best guess of x_0 is sqrt(alpha_bar) x_t."""

    def log_density(x):
        return -x.square().sum(1) / 2 - math.log(2 * math.pi)

    x = torch.tensor([[1.0, -2], [0.5, 3]])
    got = call(ex.tweedie_mean, log_density, x, 0.64)
    wrong = {
        "the sign of the score is wrong: it points towards the clean points": x * 1.36 / 0.8,
        "the score has the factor sqrt(1 - alpha_bar); it should be the variance, 1 - alpha_bar": x * 0.4 / 0.8,
        "the mean is that of sqrt(alpha_bar) x_0: divide by sqrt(alpha_bar)": x * 0.64,
        "your gradient is divided by the number of points: take the gradient of the sum, not of the mean": x
        * 0.82
        / 0.8,
        "that is the score; the mean of the clean points follows from it": -x,
        "you took the gradient of the density; the score is the gradient of its logarithm": x
        * (1 - 0.36 * log_density(x).exp()[:, None])
        / 0.8,
    }
    got = got.detach() if isinstance(got, torch.Tensor) else got
    expect(got, 0.8 * x, "with alpha_bar = 0.64 the mean is 0.8 x_t", wrong)


def test_14_a_single_clean_point(ex):
    """If there is one clean point, it is the answer everywhere."""

    def log_density(x):
        return -(x - 0.8 * torch.tensor([2.0, 1])).square().sum(1) / (2 * 0.36) - math.log(2 * math.pi * 0.36)

    x = torch.tensor([[0.0, 0], [5, -3], [1, 1]])
    got = call(ex.tweedie_mean, log_density, x, 0.64)
    got = got.detach() if isinstance(got, torch.Tensor) else got
    expect(got, torch.tensor([[2.0, 1]] * 3), "there is one clean point, (2, 1): every noisy point comes from it")


# --------------------------------------------------------------------------------------------------- 15. fix_last_step


def test_15_finds_the_only_picture(ex):
    """The network is perfect for a world with one image, so nothing but that image may be left at the end."""
    alpha_bar = torch.tensor([1.0, 0.95, 0.85, 0.7, 0.5, 0.3, 0.1])
    net = OnePicture(alpha_bar)
    got = call(ex.fix_last_step, net, (2, 1, 2, 5), alpha_bar, seeded())
    given = [t[0] for t in net.levels]
    assert given != [5, 4, 3, 2, 1], "the last step is missing now: its mean is needed, only its noise is too much"
    assert given == [5, 4, 3, 2, 1, 0], f"the network must be given the levels 5 to 0, but was given {given}"
    expect(got, images(0.5), "noise is left in the picture; which step adds it after the last evaluation?")


def test_15_all_other_steps_stay(ex):
    got = call(ex.fix_last_step, Network(), (2, 1, 2, 5), ALPHA_BAR, seeded())
    draw = seeded()
    x_2, z = torch.randn(2, 1, 2, 5, generator=draw), torch.randn(2, 1, 2, 5, generator=draw)
    right = (x_2 / 0.75 + 0.4375**0.5 * z) / 0.8  # the network sees no noise (eps = 0)
    wrong = {
        "no step adds noise any more; only the last one must not": x_2 / 0.75 / 0.8,
        "you changed the variance of all steps to that of eq. 7; keep beta_t, and leave out the noise at t = 1": (
            x_2 / 0.75 + (0.36 / 0.64 * 0.4375) ** 0.5 * z
        )
        / 0.8,
    }
    expect(got, right, "the step from 2 to 1 was right: it adds noise of variance beta_2 = 0.4375", wrong)


# ------------------------------------------------------------------------------------------------------- 16. fix_range


def test_16_black_stays_black(ex):
    pixels = torch.tensor([0, 51, 204, 255], dtype=torch.uint8).expand(2, 1, 2, 4)
    eps, net = torch.full(pixels.shape, 0.5), Network(noise=0.5)  # a network that predicts the noise exactly
    got = call(ex.fix_range, net, pixels, torch.tensor([1, 2]), eps, ALPHA_BAR)
    assert isinstance(got, torch.Tensor) and got.dtype == torch.uint8, "the pictures should be uint8"
    row = got[0, 0, 0].tolist()
    assert row[0] < 100, f"the pixels 0, 51, 204, 255 came back as {row}: which range does each end expect?"
    seen = (net.x[0] - torch.tensor([0.6, 0.8]).view(2, 1, 1, 1) * 0.5) / torch.tensor([0.8, 0.6]).view(2, 1, 1, 1)
    black, white = float(seen[0, 0, 0, 0]), float(seen[0, 0, 0, 3])
    assert abs(black + 1) < 1e-3 and abs(white - 1) < 1e-3, (
        f"both ends agree, but the network sees black as {black:.2f} and white as {white:.2f}; they should be -1 and 1, centred as the noise is"
    )
    assert (got.int() - pixels.int()).abs().max() <= 1, f"the pixels 0, 51, 204, 255 came back as {row}"


# ------------------------------------------------------------------------------------------------------ 17. fix_levels


class ByLevel(Network):
    """The noise in x if the images are black (0): x divided by the standard deviation of its level."""

    def __call__(self, x, t):
        super().__call__(x, t)
        return x / (1 - LEVELS[(t + 1).clamp(max=4)]).sqrt().view(-1, 1, 1, 1)


LEVELS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.1])


def test_17_training_shows_what_sampling_meets(ex):
    """How strong is the noise in the images that the network is given with one level?"""
    net = ByLevel()
    result = call(ex.fix_levels, net, torch.zeros(32, 1, 40, 40), (2, 1, 40, 40), LEVELS, seeded())
    loss, _ = parts(result, 2, "the loss and the samples")
    trained = dict(sorted((k, float(image.std())) for k, image in zip(net.levels[0], net.x[0], strict=True)))
    sampled = {row[0]: float(x.std()) for row, x in zip(net.levels[1:], net.x[1:], strict=True)}
    assert sorted(sampled) == [0, 1, 2, 3], (
        f"in sampling, the network has the levels 0 to 3, but was given {sorted(sampled)}"
    )
    assert list(trained) == [0, 1, 2, 3], f"in training, the network has the levels 0 to 3, not {list(trained)}"
    for level, sd in trained.items():
        in_sampling = float((1 - LEVELS[level + 1]).sqrt())  # as it should be; the samples' own is an estimate of it
        assert abs(sd - in_sampling) < 0.05, (
            f"given level {level}, the network sees noise of standard deviation {sd:.2f} in training, but "
            f"{in_sampling:.2f} in sampling: one of the two is off by one"
        )
    assert float(loss.detach()) < 1e-6, f"this network predicts the noise exactly, but the loss is {float(loss):.3f}"


def test_17_the_network_can_learn_from_it(ex):
    net = Network(noise=torch.ones((), requires_grad=True))
    result = ex.fix_levels(net, torch.zeros(8, 1, 2, 2), (2, 1, 2, 2), LEVELS, seeded())
    loss, samples = parts(result, 2, "the loss and the samples")
    assert loss.requires_grad and torch.autograd.grad(loss, net.noise, allow_unused=True)[0], (
        "no gradient flows from the loss to the network any more"
    )
    assert not samples.requires_grad, "sampling needs no gradients: keep torch.no_grad()"


# ------------------------------------------------------------------------------------------------ 18. fix_training_log


class Traced(torch.autograd.Function):
    """The identity, and a list of the places where its graphs are kept in memory."""

    nodes: list[weakref.ref] = []

    @staticmethod
    def forward(ctx, x):
        Traced.nodes.append(weakref.ref(ctx))
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Scale(nn.Linear):
    """A network with one weight, which counts the graphs of its earlier evaluations that are still in memory."""

    def forward(self, x, t):
        self.kept = sum(node() is not None for node in Traced.nodes)
        return Traced.apply(self.weight * x)


def train_three_steps(ex, lr=0.0):
    Traced.nodes = []
    net = Scale(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.5)
    log = ex.fix_training_log(
        net, torch.optim.SGD(net.parameters(), lr=lr), [torch.zeros(64, 1, 8, 8)] * 3, ALPHA_BAR, seeded()
    )
    return net, log


def test_18_the_log_holds_numbers(ex):
    _, log = train_three_steps(ex)
    assert log is not None and len(log) == 3, "the log should have one entry for each step"
    assert not any(isinstance(each, torch.Tensor) and each.grad_fn for each in log), (
        "an entry of the log is a tensor with a grad_fn: it keeps the graph of its loss and of all losses before it"
    )


def test_18_the_curve_stays(ex):
    _, log = train_three_steps(ex)
    # x_t is 0.6 eps or 0.8 eps, and half of it is predicted: the loss is about the mean of 0.7^2 and 0.6^2, 0.425
    shares = [float(entry) / 0.425 for entry in log]
    for share, right in zip(shares, (0.1, 0.19, 0.271), strict=True):  # 1 - 0.9, 1 - 0.9^2, 1 - 0.9^3
        assert abs(share - right) < 0.02, (
            "the smoothed loss should be about 0.1, 0.19 and 0.271 of the loss, and the curve was right before; is the loss still smoothed?"
        )


def test_18_the_network_still_learns(ex):
    net, _ = train_three_steps(ex, lr=0.1)
    assert net.weight.item() > 0.52, (
        "the network does not learn any more: its weight should grow, as it predicts only half of the noise"
    )


def test_18_no_graph_is_kept_in_the_loop(ex):
    net, _ = train_three_steps(ex)
    assert net.kept < 2, (
        "at the third step the graphs of both steps before are still in memory: detach inside of the loop, before the "
        "loss goes into smooth"
    )


# --------------------------------------------------------------------------------------------- 19. fifteen_evaluations


GOAL = 0.03  # the largest error that counts as reached


class Blobs:
    """Eight blobs in the plane with unequal weights, and the ideal network for them, which counts its evaluations."""

    def __init__(self, seed: int, budget: int = 15):
        draw, K = seeded(seed), 8
        self.weight = 0.3 + torch.rand(K, generator=draw)
        self.weight = self.weight / self.weight.sum()
        angle = 2 * math.pi * (torch.arange(K) + 0.6 * torch.rand(K, generator=draw)) / K
        self.centre = (0.5 + 0.5 * torch.rand(K, 1, generator=draw)) * torch.stack([angle.cos(), angle.sin()], 1)
        self.sd, self.budget, self.evaluations = 0.05, budget, 0

    def points(self, n: int, seed: int) -> torch.Tensor:
        draw = seeded(seed)
        which = torch.multinomial(self.weight, n, replacement=True, generator=draw)
        return self.centre[which] + self.sd * torch.randn(n, 2, generator=draw)

    def __call__(self, x, t):
        """The noise in x, (N, 2), at the levels t + 1."""
        self.evaluations += 1
        assert self.evaluations <= self.budget, f"the network was evaluated more than {self.budget} times"
        assert isinstance(t, torch.Tensor) and t.shape == (len(x),), "give one level for each point, as a tensor (N,)"
        assert int(t.min()) >= 0 and int(t.max()) < 1000, (
            f"the levels are 0 to 999, not {int(t.min())} to {int(t.max())}"
        )
        a = CHAIN[t + 1][:, None]
        variance = a * self.sd**2 + 1 - a  # of the noisy points of one blob
        # |x - sqrt(a) centre|^2 without |x|^2, which is the same for all blobs. (N, K)
        squared = a * self.centre.square().sum(1) - 2 * a.sqrt() * (x @ self.centre.T)
        centre = (self.weight.log() - squared / (2 * variance)).softmax(1) @ self.centre
        x0 = centre + a.sqrt() * self.sd**2 / variance * (x - a.sqrt() * centre)  # E[x_0 | x_t]
        return (x - a.sqrt() * x0) / (1 - a).sqrt()


def sliced_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far the quantiles of two sets of points are apart, on average over 16 directions. (N, 2), (M, 2)"""
    angle = math.pi * torch.arange(16) / 16
    directions = torch.stack([angle.cos(), angle.sin()], 1)

    def quantiles(points: torch.Tensor) -> np.ndarray:
        """At 200 places from 0 to 1. (16, 200)"""
        # NumPy sorts the numbers alone, which is faster than torch, where their places are sorted as well
        ordered = np.sort((directions @ points.detach().float().T).numpy(), axis=1)
        share, below = np.modf((np.arange(200) + 0.5) / 200 * (len(points) - 1))
        below = below.astype(int)
        return ordered[:, below] * (1 - share) + ordered[:, below + 1] * share

    return float(np.abs(quantiles(a) - quantiles(b)).mean())


def error_of_fifteen(ex, seed: int, n: int = 4000) -> float:
    """The error of the learner's samples of one set of blobs."""
    blobs = Blobs(seed)
    got = ex.fifteen_evaluations(blobs, torch.randn(n, 2, generator=seeded(seed + 1)), CHAIN, seeded(seed + 2))
    assert isinstance(got, torch.Tensor) and got.shape == (n, 2), f"({n}, 2) points were expected here"
    assert torch.isfinite(got).all(), "some samples are NaN or infinite"
    return sliced_distance(got, blobs.points(40_000, seed + 3))


def test_19_reaches_the_goal(ex):
    error = error_of_fifteen(ex, 0)
    assert error <= GOAL, f"the error is {error:.3f}, and the goal is {GOAL}"
