"""Tests for you: each uses numbers that can be checked by hand. See README.md, "How to work".

python -m pytest 01_ddpm_mnist/exercises -x                    your exercises.py, up to the first failure
EXERCISES=mine.py python -m pytest 01_ddpm_mnist/exercises     another file
"""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from common.grade.checks import call, expect, load

ALPHA_BAR = torch.tensor([1.0, 0.64, 0.36])  # roots 1, 0.8, 0.6; and those of 1 - alpha_bar are 0, 0.6, 0.8


@pytest.fixture(scope="module")
def ex():
    """The file with the answers."""
    return load(Path(os.environ.get("EXERCISES") or Path(__file__).with_name("exercises.py")), "exercises")


def images(value: float, B: int = 2, C: int = 1, H: int = 2, W: int = 5) -> torch.Tensor:
    return torch.full((B, C, H, W), float(value))


class Network:
    """Answers `says`, and remembers what it was shown (x) and which level it was told (t)."""

    def __init__(self, says: float | torch.Tensor = 0.0):
        self.says, self.x, self.told = says, [], []

    def __call__(self, x, t):
        assert isinstance(t, torch.Tensor) and t.shape == (len(x),), (
            "the network must be told one level for each image, as a tensor (B,)"
        )
        self.x.append(x)
        self.told.append(t.tolist())
        return self.says * torch.ones_like(x)


# --------------------------------------------------------------------------------------------- 1. alpha_bars


def test_1_products(ex):
    got = call(ex.alpha_bars, torch.tensor([0.1, 0.2, 0.5]))
    assert len(got) == 4, (
        f"three betas give four alpha_bars, since alpha_bar_0 = 1 comes first, but you returned {len(got)}"
    )
    right = torch.tensor([1.0, 0.9, 0.72, 0.36])  # 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.5
    wrong = {
        "you multiplied the betas; it is the (1 - beta) that are multiplied": torch.tensor([1.0, 0.1, 0.02, 0.01])
    }
    expect(got, right, "each alpha_bar is the product of all (1 - beta) so far", wrong)


# ---------------------------------------------------------------------------------------------- 2. add_noise


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


# ----------------------------------------------------------------------------------------------- 3. guess_x0


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


# ------------------------------------------------------------------------------------------ 4. training_loss


def test_4_the_network_sees_images_from_minus_1_to_1(ex):
    black_and_white = torch.cat([images(0, B=1), images(255, B=1)]).to(torch.uint8)
    net = Network()
    call(ex.training_loss, net, black_and_white, torch.tensor([2, 2]), images(0), ALPHA_BAR)
    assert net.x, "the network was never asked"
    right = torch.cat([images(-0.6, B=1), images(0.6, B=1)])
    wrong = {
        "your images are in [0, 1]; black should be -1, so that images are centred as the noise is": (right + 0.6) / 2
    }
    expect(net.x[0], right, "the network should see x_t made by eq. 4 from images in [-1, 1]", wrong)


def test_4_the_network_counts_from_0(ex):
    net = Network()
    call(ex.training_loss, net, images(0).to(torch.uint8), torch.tensor([1, 2]), images(0), ALPHA_BAR)
    assert net.told == [[0, 1]], f"for t = [1, 2] the network must be told t - 1 = [0, 1], but was told {net.told}"


def test_4_how_wrong(ex):
    loss = call(
        ex.training_loss, Network(says=-1), images(0).to(torch.uint8), torch.tensor([1, 2]), images(2), ALPHA_BAR
    )
    wrong = {
        "you added up the squared errors; take their mean, or the loss depends on the size of the batch": torch.tensor(
            9.0 * 20
        ),
        "you compared the network's answer with the image; it is asked for the noise": torch.tensor(0.0),
        "you took the absolute difference; eq. 14 squares it": torch.tensor(3.0),
        "you did not square the differences, so that errors up and down cancel": torch.tensor(-3.0),
    }
    expect(
        loss,
        torch.tensor(9.0),
        "the noise is 2 everywhere and the network says -1, so the mean squared error is 9",
        wrong,
    )


def test_4_the_network_can_learn_from_it(ex):
    net = Network(says=torch.ones((), requires_grad=True))
    loss = call(ex.training_loss, net, images(0).to(torch.uint8), torch.tensor([1, 2]), images(2), ALPHA_BAR)
    assert getattr(loss, "requires_grad", False), (
        "no gradient flows from the loss to the network: is there an .item(), .detach() or torch.no_grad()?"
    )


# ------------------------------------------------------------------------------------------- 5. reverse_step


def test_5_the_mean(ex):
    # alpha_2 = 0.36 / 0.64 = 0.5625 (its root is 0.75), beta_2 = 0.4375
    got = call(ex.reverse_step, images(0.75), 2, images(0), images(0), ALPHA_BAR)
    wrong = {
        "the mean is divided by sqrt(alpha_bar_t); it should be sqrt(alpha_t), for one step only": images(0.75 / 0.6)
    }
    expect(got, images(1), "with eps = 0 and z = 0 the step only divides by sqrt(alpha_t) = 0.75", wrong)
    got = call(ex.reverse_step, images(0), 2, images(0.8), images(0), ALPHA_BAR)
    wrong = {"the square root of 1 - alpha_bar_t is missing in the mean": images(-0.4375 / 0.64 * 0.8 / 0.75)}
    expect(
        got,
        images(-0.4375 / 0.75),
        "in the mean, eps is multiplied by beta_t / sqrt(1 - alpha_bar_t), then all divided by sqrt(alpha_t)",
        wrong,
    )


def test_5_the_noise(ex):
    got = call(ex.reverse_step, images(0), 2, images(0), images(1), ALPHA_BAR)
    right = 0.36 / 0.64 * 0.4375  # eq. 7
    wrong = {
        "you multiplied z by the variance; it takes the square root": images(right),
        "you used the variance beta_t; eq. 7 has a factor less than 1 before it": images(0.4375**0.5),
        "your factor (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) is upside down": images((0.64 / 0.36 * 0.4375) ** 0.5),
    }
    expect(got, images(right**0.5), "z should be multiplied by the square root of eq. 7's variance", wrong)


def test_5_the_last_step_adds_no_noise(ex):
    x_1 = images(0.8 * 1 + 0.6 * 1)  # x0 = 1, eps = 1
    got = call(ex.reverse_step, x_1, 1, images(1), images(1), ALPHA_BAR)
    expect(got, images(1), "the last step should land on the clean image; is noise added at t = 1?")


# ------------------------------------------------------------------------------------------------- 6. sample


class OnePicture(Network):
    """A perfect network for a world with a single image, all of whose pixels are 0.5:
    the rest of x_t must be noise.
    """

    def __init__(self, alpha_bar: torch.Tensor):
        super().__init__()
        self.alpha_bar = alpha_bar

    def __call__(self, x, t):
        super().__call__(x, t)
        assert 0 <= int(t[0]) < len(self.alpha_bar) - 1, (
            f"the network knows the levels 0 to {len(self.alpha_bar) - 2}, but was told {int(t[0])}"
        )
        a = self.alpha_bar[t + 1].view(-1, 1, 1, 1)
        return (x - 0.5 * a.sqrt()) / (1 - a).sqrt()


def test_6_finds_the_only_picture(ex):
    walk_to_the_only_picture(ex, [1, 2, 3, 4, 5, 6])


def test_6_finds_it_in_fewer_steps(ex):
    walk_to_the_only_picture(ex, [2, 4, 6])


def walk_to_the_only_picture(ex, times):
    alpha_bar = torch.tensor([1.0, 0.95, 0.85, 0.7, 0.5, 0.3, 0.1])
    net = OnePicture(alpha_bar)
    got = call(ex.sample, net, (2, 1, 2, 5), alpha_bar, times, torch.Generator().manual_seed(0))
    told, right = [t[0] for t in net.told], [t - 1 for t in reversed(times)]
    assert told == right, f"visiting the levels {times}, the network must be told {right}, but was told {told}"
    expect(
        got,
        images(0.5),
        "noise is left in the picture: does each step use the alpha_bar of the shorter chain, and does the last one reach level 0?",
    )


def test_6_new_noise_at_each_step(ex):
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
    }
    expect(got, x_1 / 0.8, "draw x, then one z for each step, with torch.randn(shape, generator=generator)", wrong)


# ------------------------------------------------------------------------------------------ 7. training_step


def one_weight(value: float) -> nn.Linear:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, value)
    return net


def test_7_learn_then_average(ex):
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


# ----------------------------------------------------------------------------------------- 8. time_embedding


def test_8_at_time_0(ex):
    got = call(ex.time_embedding, torch.tensor([0]), 6)
    wrong = {
        "the cosines come first; here the sines do": torch.tensor([[1.0, 1, 1, 0, 0, 0]]),
        "sines and cosines alternate; here all the sines come first": torch.tensor([[0.0, 1, 0, 1, 0, 1]]),
    }
    expect(got, torch.tensor([[0.0, 0, 0, 1, 1, 1]]), "at t = 0 every sine is 0 and every cosine 1", wrong)


def test_8_fast_and_slow_waves(ex):
    got = call(ex.time_embedding, torch.tensor([3, 50]), 4)
    angles = torch.tensor([[3, 0.03], [50, 0.5]])  # 10000^(1/2) = 100
    expect(got, torch.cat([angles.sin(), angles.cos()], 1), "with dim = 4 there are two angles, t and t / 100")
