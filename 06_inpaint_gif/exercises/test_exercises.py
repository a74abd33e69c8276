"""Tests for you: each uses numbers that can be checked by hand. See README.md, "How to work".

python -m pytest 06_inpaint_gif/exercises -x --tb=line -q      your exercises.py, up to the first failure
EXERCISES=mine.py python -m pytest 06_inpaint_gif/exercises          another file
"""

import math
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from common.grade.checks import call, expect, load, parts

NAN = float("nan")


@pytest.fixture(scope="module")
def ex():
    """The file with the answers."""
    return load(Path(os.environ.get("EXERCISES") or Path(__file__).with_name("exercises.py")), "exercises")


def pair(got: object, what: str) -> tuple:
    return parts(got, 2, what)


def maps(*values: float, h: int = 2, w: int = 3) -> torch.Tensor:
    """One image whose channels each have one value everywhere. (1, C, h, w)"""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1).repeat(1, 1, h, w)


# ------------------------------------------------------------------------------------------- 1. camera_move


def table(*rows: str) -> torch.Tensor:
    """A picture in which 21 is the pixel of row 2, column 1 (as 0.21), and .. one that is not seen (NaN). (3, H, W)"""
    values = [[NAN if pixel == ".." else int(pixel) / 100 for pixel in row.split()] for row in rows]
    return torch.tensor(values).repeat(3, 1, 1)


PICTURE = ("00 01 02 03", "10 11 12 13", "20 21 22 23")  # pixel 00 is mid-grey


def check_move(ex, dx: int, dy: int, right: tuple, wrong: dict[str, tuple]) -> None:
    goal = table(*right)
    try:
        moved, mask = pair(call(ex.camera_move, table(*PICTURE), dx, dy), "moved and mask")
    except (RuntimeError, IndexError) as problem:
        assert not goal.isnan().all(), (
            f"a camera that goes far enough sees nothing of the picture; your code stops with {type(problem).__name__}"
        )
        raise
    hole = goal[:1].isnan()
    others = {message: table(*rows).nan_to_num(0) for message, rows in wrong.items()}
    others["where nothing is seen it should be 0, mid-grey"] = goal.nan_to_num(-1)
    where = f"the camera moves by dx = {dx}, dy = {dy}"
    expect(moved, goal.nan_to_num(0), f"{where}, and should see {' / '.join(right)}", others)
    wrong_masks = {
        "the mask is the wrong way round: 1 is the hole, what has to be painted": (~hole).float(),
        "a pixel of the picture that is mid-grey itself is taken for a hole: the mask says where you look, not what is seen there": (
            (moved[:1] == 0).float()
        ),
    }
    expect(
        mask,
        hole.float(),
        f"{where}: the mask should be 1 where the picture has no pixel, and only there",
        wrong_masks,
    )


def test_1_right(ex):
    check_move(
        ex,
        1,
        0,
        ("01 02 03 ..", "11 12 13 ..", "21 22 23 .."),
        {
            "the picture moved the way the camera goes; where the camera goes right, things go left": (
                ".. 00 01 02",
                ".. 10 11 12",
                ".. 20 21 22",
            ),
            "dx moved the rows: x runs along the last axis": ("10 11 12 13", "20 21 22 23", ".. .. .. .."),
            "what has left at one edge came in at the other": ("01 02 03 00", "11 12 13 10", "21 22 23 20"),
            "the edge goes on into the hole; it should be 0, mid-grey": ("01 02 03 03", "11 12 13 13", "21 22 23 23"),
        },
    )


def test_1_up(ex):
    check_move(
        ex,
        0,
        -1,
        (".. .. .. ..", "00 01 02 03", "10 11 12 13"),
        {
            "y points down, so the camera goes up where dy < 0, and things go down": (
                "10 11 12 13",
                "20 21 22 23",
                ".. .. .. ..",
            ),
            "dy moved the columns: y runs along the axis before the last": (
                ".. 00 01 02",
                ".. 10 11 12",
                ".. 20 21 22",
            ),
            "what has left at one edge came in at the other": ("20 21 22 23", "00 01 02 03", "10 11 12 13"),
        },
    )


def test_1_down_left(ex):
    check_move(
        ex,
        -2,
        1,
        (".. .. 10 11", ".. .. 20 21", ".. .. .. .."),
        {
            "the picture moved the way the camera goes; where the camera goes left, things go right": (
                ".. .. .. ..",
                "02 03 .. ..",
                "12 13 .. ..",
            ),
            "y points down, so the camera goes down where dy > 0, and things go up": (
                ".. .. .. ..",
                ".. .. 00 01",
                ".. .. 10 11",
            ),
            "dx and dy are swapped": (".. .. .. ..", ".. .. .. ..", "01 02 03 .."),
        },
    )


def test_1_not_at_all_and_far_away(ex):
    check_move(ex, 0, 0, PICTURE, {})
    nothing = (".. .. .. ..",) * 3
    check_move(ex, 5, 0, nothing, {})
    check_move(ex, -1, 4, nothing, {})


# --------------------------------------------------------------------------------------------- 2. composite


def row(*values: float) -> torch.Tensor:
    """A picture of one row, in all three channels. (3, 1, W)"""
    return torch.tensor(values, dtype=torch.float32).repeat(3, 1, 1)


def known_pixels(got: object, original: torch.Tensor, mask: torch.Tensor) -> None:
    """Are they the same to the last bit?"""
    __tracebackhide__ = True
    assert isinstance(got, torch.Tensor), (
        f"a tensor was expected here, not {type(got).__name__}: is a `return` missing?"
    )
    assert got.shape == original.shape, f"the shape should be {tuple(original.shape)}, not {tuple(got.shape)}"
    known = (mask == 0).expand_as(got)
    assert not got[known].isnan().any(), (
        "what the network gave where the picture is known shows through: 0 times NaN is NaN. Choose, with torch.where"
    )
    away = (got - original)[known].abs().max()
    assert away < 1e-5, f"known pixels changed, by up to {away:.2g}: the soft edge must lie in the hole only"
    assert torch.equal(got[known], original[known]), (
        "known pixels are nearly the original, but not to the last bit: do not compute them, choose, with torch.where"
    )


def test_2_a_strip(ex):
    """The hole is the right half; from the edge on, its pixels have depth 1, 2, 3, 4, 5."""
    mask = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1.0]).view(1, 1, 9)
    got = call(ex.composite, row(*[0] * 9), row(*[1] * 9), mask, 2)
    wrong = {
        "the edge is hard: from the known pixels, depth counts 1, 2, 3, and the new picture fades in": row(
            0, 0, 0, 0, 1, 1, 1, 1, 1
        ),
        "original and painted are swapped": row(1, 1, 1, 1, 2 / 3, 1 / 3, 0, 0, 0),
        "the mask is the wrong way round: 1 is the hole": row(1, 1, 2 / 3, 1 / 3, 0, 0, 0, 0, 0),
        "the soft edge lies on the known side; it should lie in the hole": row(0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1),
        "you divided by radius: it is radius + 1, so that the new picture is alone from that depth on": row(
            0, 0, 0, 0, 1 / 2, 1, 1, 1, 1
        ),
        "soft goes on above 1: min(1, ...)": row(0, 0, 0, 0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3),
        "depth begins with 1, not with 0, at the edge of the hole": row(0, 0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1),
        "this is the original, all of it": row(*[0] * 9),
    }
    if (
        isinstance(got, torch.Tensor)
        and got.shape == (3, 1, 9)
        and not any(torch.allclose(got, value, atol=1e-3) for value in wrong.values())
    ):
        known_pixels(got, row(*[0] * 9), mask)
        first = float(got[0, 0, 4])
        assert not 0.45 < first < 0.9, (
            f"the outermost pixel of the hole is {first:.2g} of the new picture, which is still a jump: blurred and cut off?"
        )
    expect(
        got,
        row(0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1),
        "with radius 2 the new picture should be 1/3, 2/3 and then 1 of what is seen",
        wrong,
    )


def test_2_a_square(ex):
    mask = torch.zeros(1, 7, 8)
    mask[:, 1:6, 1:6] = 1
    got = call(ex.composite, torch.full((3, 7, 8), 0.2), torch.full((3, 7, 8), 1.0), mask, 3)
    depth = torch.tensor(
        [
            [0, 0, 0, 0, 0, 0, 0, 0],
            [0, 1, 1, 1, 1, 1, 0, 0],
            [0, 1, 2, 2, 2, 1, 0, 0],
            [0, 1, 2, 3, 2, 1, 0, 0],
            [0, 1, 2, 2, 2, 1, 0, 0],
            [0, 1, 1, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
        ]
    )
    known_pixels(got, torch.full((3, 7, 8), 0.2), mask)
    hint = "the depths in a hole of 5 x 5 are 1 at the rim, then 2, and 3 in the middle; soft is a quarter of that"
    expect(got, (0.2 + 0.8 * depth / 4).repeat(3, 1, 1), hint)


def test_2_around_a_corner(ex):
    """The known pixels are the upper left quarter, as after a diagonal move. Depth is the straight-line distance."""
    mask = torch.ones(1, 4, 4)
    mask[:, :2, :2] = 0
    root2, root5 = math.sqrt(2), math.sqrt(5)
    depth = torch.tensor([[0, 0, 1, 2], [0, 0, 1, 2], [1, 1, root2, root5], [2, 2, root5, 2 * root2]])
    steps = torch.tensor([[0.0, 0, 1, 2], [0, 0, 1, 2], [1, 1, 1, 2], [2, 2, 2, 2]])
    along = torch.tensor([[0.0, 0, 1, 2], [0, 0, 1, 2], [1, 1, 2, 3], [2, 2, 3, 4]])

    def mixed(depth: torch.Tensor) -> torch.Tensor:
        return (depth / 4).clamp(max=1).repeat(3, 1, 1)

    wrong = {
        "depth was counted in steps to any of the eight neighbours; it is the straight-line distance": mixed(steps),
        "depth was counted in steps along rows and columns; it is the straight-line distance": mixed(along),
    }
    got = call(ex.composite, torch.zeros(3, 4, 4), torch.ones(3, 4, 4), mask, 3)
    expect(got, mixed(depth), "around the corner the depths are 1, 1.41, 2.24 and 2.83", wrong)


def test_2_a_hard_edge(ex):
    mask = torch.tensor([1, 1, 0, 1.0]).view(1, 1, 4)
    expect(
        call(ex.composite, row(1, 2, 3, 4), row(5, 6, 7, 8), mask, 0),
        row(5, 6, 3, 8),
        "with radius 0 the whole hole is the new picture",
    )


def test_2_known_pixels_to_the_last_bit(ex):
    rng = torch.Generator().manual_seed(0)
    original, painted, mask = (
        torch.rand(3, 8, 9, generator=rng),
        torch.rand(3, 8, 9, generator=rng) - 1,
        torch.zeros(1, 8, 9),
    )
    mask[:, 2:5, 3:] = 1
    known_pixels(ex.composite(original, painted, mask, 1.5), original, mask)
    known_pixels(ex.composite(original, torch.where(mask > 0, painted, NAN), mask, 1.5), original, mask)


# --------------------------------------------------------------------------------------------- 3. clip_loss


def beaten(*ahead: float) -> float:
    """The mean of -log p where there are two choices, and the right one is ahead by so much:
    p = 1 / (1 + exp(-ahead)).
    """
    return sum(math.log1p(math.exp(-a)) for a in ahead) / len(ahead)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


def vectors(*rows: tuple) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_3_two_dishes(ex):
    """Cosines of 1, 0 / 0.6, 0.8; the vectors have lengths 2, 0.5 / 3, 1. One over the temperature is 5."""
    images, texts = vectors((2, 0), (0.3, 0.4)), vectors((3, 0), (0, 1))
    try:
        got = call(ex.clip_loss, images, texts, torch.tensor([4, 9]), number(math.log(5)))
    except IndexError:
        raise AssertionError("dish says which pairs belong together, not which column of L is right") from None
    right, s = (beaten(5, 1) + beaten(2, 4)) / 2, math.log(5)
    wrong = {
        "only images look for their texts; texts must find their images as well: the softmax down the columns": beaten(
            5, 1
        ),
        "only texts look for their images; images must find their texts as well: the softmax along the rows": beaten(
            2, 4
        ),
        "twice as large as it should be: take the mean over the pairs, and the mean of both sides": 2 * right,
        "four times as large as it should be: take the mean over the pairs, and the mean of both sides": 4 * right,
        "the cosines were multiplied by logit_scale itself; it is a logarithm": (
            beaten(s, s / 5) + beaten(s * 0.4, s * 0.8)
        )
        / 2,
        "the cosines were divided by exp(logit_scale), but that is one over the temperature already": (
            beaten(0.2, 0.04) + beaten(0.08, 0.16)
        )
        / 2,
        "the cosines were divided by logit_scale; multiply by its exponential": (
            beaten(1 / s, 0.2 / s) + beaten(0.4 / s, 0.8 / s)
        )
        / 2,
        "the temperature is missing": (beaten(1, 0.2) + beaten(0.4, 0.8)) / 2,
        "these are products of vectors as long as they come, not cosines: make them unit vectors": (
            beaten(30, -2.5) + beaten(25.5, 2)
        )
        / 2,
        "only the images were made unit vectors": (beaten(15, -5) + beaten(6, 4)) / 2,
        "only the texts were made unit vectors": (beaten(10, 0.5) + beaten(8.5, 2)) / 2,
        "the sign is wrong: a loss is never below 0": -right,
    }
    assert not isinstance(got, torch.Tensor) or got.dim() == 0, (
        f"one number was expected for the whole batch, not {tuple(got.shape)}"
    )
    hint = "times 5 the cosines are 5, 0 / 3, 4: images are right by 5 and 1, texts by 2 and 4, and so the loss is the mean of log(1 + exp(-those))"
    expect(got, number(right), hint, {message: number(value) for message, value in wrong.items()})


def test_3_two_plates_of_one_dish(ex):
    """exp(logit_scale) is log 2, so exp(L) is 2 1 1 / 1 2 2 / 1 2 2, and the first two pairs are the same dish."""
    images = texts = vectors((1, 0), (0, 1), (0, 1))
    got = call(ex.clip_loss, images, texts, torch.tensor([7, 7, 4]), number(math.log(math.log(2))))

    def logs(*numbers: float) -> torch.Tensor:
        return number(sum(map(math.log, numbers)) / 3)

    wrong = {
        "text i was taken for the only right one of image i, but two pairs are of the same dish": logs(2, 2.5, 2.5),
        "- log |P_i| is missing: where two are right, not even a perfect network could come to 0": logs(
            8**0.5, 12.5**0.5, 2.5
        ),
        "the shares do not sum to 1: divide by |P_i|, the number of those that are right": logs(4, 6.25, 2.5),
        "the shares do not sum to 1 (divide by |P_i|), and - log |P_i| is missing": logs(8, 12.5, 2.5),
        "this is the logarithm of the sum of the p that are right; it is the mean of their logarithms": logs(
            4 / 3, 5 / 3, 2.5
        ),
    }
    hint = "the first image gives 1/2, 1/4, 1/4 to the three texts, of which two are right: its loss is (log 2 + log 4) / 2 - log 2"
    expect(got, logs(2**0.5, 12.5**0.5 / 2, 2.5), hint, wrong)


def test_3_perfect(ex):
    one = vectors((1, 0), (1, 0), (0, 1))
    got = call(ex.clip_loss, one, one, torch.tensor([7, 7, 4]), number(math.log(50)))
    expect(got, number(0), "a dish's plates and names are alike, others at right angles: 0")


def test_3_at_clips_own_scale(ex):
    """1 / temperature ends at 100 in training: L is 100 or -100, and e^100 is infinite in float32."""
    images, dish = vectors((1, 0), (-1, 0)), torch.tensor([3, 5])
    problem = (
        "at exp(logit_scale) = 100 the loss is not finite: e^100 is infinite in float32, and the logarithm of a "
        "probability of 0 is minus infinity; log_softmax computes neither"
    )
    for texts, goal in ((images, 0.0), (-images, 200.0)):
        got = call(ex.clip_loss, images, texts, dish, number(math.log(100)))
        assert not isinstance(got, torch.Tensor) or got.isfinite().all(), problem
        expect(got, number(goal), f"at cosines of 1 and -1, the loss should be {goal:g}", atol=1e-2)


def no_gradient(name: str) -> str:
    return f"no gradient reaches {name}: compute with the tensors as they come, with no item(), detach() or no_grad()"


def test_3_everything_learns(ex):
    given = [tensor.requires_grad_() for tensor in (vectors((2, 1), (0.3, 0.4)), vectors((3, 0), (1, 1)), number(1.0))]
    loss = ex.clip_loss(given[0], given[1], torch.tensor([0, 1]), given[2])
    assert isinstance(loss, torch.Tensor) and loss.requires_grad, no_gradient("the networks")
    for name, grad in zip(
        ("images", "texts", "logit_scale"), torch.autograd.grad(loss, given, allow_unused=True), strict=True
    ):
        assert grad is not None, no_gradient(name)


# ----------------------------------------------------------------------------------------- 4. nine_channels


def encode(image: torch.Tensor) -> torch.Tensor:
    """An encoder of sorts: red and green as means over 2 x 2 pixels, ten times as large, 1 more.
    (B, 3, H, W) -> (B, 2, h, w)
    """
    assert isinstance(image, torch.Tensor) and image.dim() == 4 and image.shape[1] == 3, (
        "encode takes images, (B, 3, H, W)"
    )
    return 10 * torch.nn.functional.avg_pool2d(image[:, :2], 2) + 1


def test_4_the_weight(ex):
    weight = torch.arange(1.0, 109).view(6, 2, 3, 3)
    wide, _ = pair(
        call(ex.nine_channels, weight, maps(3, 4), maps(1, 1, 1, h=4, w=6), torch.zeros(1, 1, 4, 6), encode),
        "weight and input",
    )
    none = weight.new_zeros(6, 3, 3, 3)
    wrong = {
        "the old weights should come first, for the noisy latents do: then the zeros": torch.cat([none, weight], 1),
        "the old weights are gone: the network forgets what it can": torch.cat([0 * weight, none], 1),
        "the mask's weights come first; old, then zeros": torch.cat([none[:, :1], weight, none[:, 1:]], 1),
    }
    if isinstance(wide, torch.Tensor) and wide.shape == (6, 5, 3, 3):
        assert not torch.equal(wide[:, :2], weight) or not wide[:, 2:].any(), (
            "the new weights should be 0: anything else changes at once what the network predicts"
        )
    expect(
        wide,
        torch.cat([weight, none], 1),
        "the weight should be the old one, and then zeros for the c + 1 new channels",
        wrong,
    )
    half, _ = ex.nine_channels(weight.half(), maps(3, 4), maps(1, 1, 1, h=4, w=6), torch.zeros(1, 1, 4, 6), encode)
    assert half.dtype == torch.float16, (
        f"the new weight should be of the old one's dtype, torch.float16 here, not {half.dtype}"
    )


def test_4_the_input(ex):
    """The hole is the left half, and a scratch in the latent at the right,
    which misses the pixel that stands for it.
    """
    image, mask = maps(0.5, 0.1, -1, h=4, w=6), torch.zeros(1, 1, 4, 6)
    mask[..., :2], mask[..., 1, 5] = 1, 1
    asked = []

    def listening(image):
        asked.append(image)
        return encode(image)

    x = maps(3, 4)
    _, got = pair(call(ex.nine_channels, torch.ones(6, 2, 3, 3), x, image, mask, listening), "weight and input")
    assert len(asked) == 1, f"encode should be called once; it was called {len(asked)} times"
    small = torch.tensor([[1.0, 0, 0], [1, 0, 0]]).view(1, 1, 2, 3)
    red, green = (torch.tensor([[0, v, 0.75 * v], [0, v, v]]) * 10 + 1 for v in (0.5, 0.1))
    known = torch.stack([red, green])[None]
    pooled, most = small.clone(), small.clone()
    pooled[..., 0, 2], most[..., 0, 2] = 0.25, 1
    leaked = encode(image)
    wrong = {
        "the order is x, mask, known; yours is x, known, mask": torch.cat([x, known, small], 1),
        "the order is x, mask, known; yours is mask, known, x": torch.cat([small, known, x], 1),
        "the order is x, mask, known; yours is mask, x, known": torch.cat([small, x, known], 1),
        "the order is x, mask, known; yours is known, mask, x": torch.cat([known, small, x], 1),
        "the network sees the answer: empty the hole before you encode": torch.cat([x, small, leaked], 1),
        "you encoded what is in the hole; the network should see what is around it": torch.cat(
            [x, small, encode(image * mask)], 1
        ),
        "the latents were emptied, not the image: 0 is mid-grey in an image, but not in a latent, and the encoder has seen the hole": (
            torch.cat([x, small, leaked * (1 - small)], 1)
        ),
        "the hole was filled with black; it should be mid-grey, 0": torch.cat(
            [x, small, encode(torch.where(mask > 0, -1.0, image))], 1
        ),
        "the mask has greys in it: F.interpolate takes the nearest pixel if you ask for nothing else": torch.cat(
            [x, pooled, known], 1
        ),
        "the mask is 1 where any pixel is; for these networks it is F.interpolate's choice of one": torch.cat(
            [x, most, known], 1
        ),
        "the mask was inverted: 1 is the hole": torch.cat([x, 1 - small, known], 1),
        "the mask was mapped to [-1, 1]; it stays 0 and 1": torch.cat([x, 2 * small - 1, known], 1),
    }
    hint = "the input should be x, the mask 1 0 0 / 1 0 0, and encode(image with 0 in the hole)"
    expect(got, torch.cat([x, small, known], 1), hint, wrong)


# ------------------------------------------------------------------------------------------ 5. repaint_step

# from level 1 to 2, sqrt(1 - beta) is 0.6
ALPHA, SIGMA = (torch.tensor([0.0, 0.48, 0.8, 1.0]), torch.tensor([1.0, 0.7696**0.5, 0.6, 0.0]))


class Step:
    """Answers 10, then 20, then 30 ... everywhere. Remembers what it was given."""

    def __init__(self):
        self.x, self.k = [], []

    def __call__(self, x, k):
        self.x.append(x.clone())
        self.k.append(k)
        return torch.full_like(x, 10.0 * len(self.x))


def halves(hole: float, known: float) -> torch.Tensor:
    """Latents of one row: two places in the hole, and two that are known. (1, 2, 1, 4)"""
    return torch.tensor([hole, hole, known, known], dtype=torch.float32).repeat(1, 2, 1, 1)


HALF = torch.tensor([1.0, 1, 0, 0]).view(1, 1, 1, 4)
ONCE = "where the picture is known, it should be as noisy as level k + 1: 0.8 z + 0.6 eps"


def known_wrongly(z: float, eps: float, hole: float) -> dict[str, torch.Tensor]:
    """In the hole z is 99 and the noise 0; neither may show."""
    return {
        "the mask is the wrong way round: 1 is the hole here (in the paper 1 is what is known)": halves(
            0.8 * 99, hole
        ),
        "the picture was put in without noise; it should be as noisy as level k + 1": halves(hole, z),
        "the picture has the noise of level k, but step(x, k) leads to level k + 1": halves(
            hole, 0.48 * z + float(SIGMA[1]) * eps
        ),
        "in the known part alpha and sigma are swapped": halves(hole, 0.6 * z + 0.8 * eps),
        "in the known part, noise was added to the whole of z: it has the factor alpha": halves(hole, z + 0.6 * eps),
        "the known part was not put in": halves(hole, hole),
    }


def test_5_once(ex):
    net, z = Step(), halves(99, 2)
    got = call(
        ex.repaint_step, net, halves(1, 3), z, HALF, 1, ALPHA, SIGMA, halves(0, -1)[None], torch.zeros(0, 1, 2, 1, 4)
    )
    assert net.k, "step was never called"
    assert net.k[0] == 1, f"step should be called with k = 1, not {net.k[0]}"
    assert len(net.k) == 1, f"eps_known has one noise, so U = 1 and step is called once, not {len(net.k)} times"
    expect(net.x[0], halves(1, 3), "step should be given x as it came")
    expect(got, halves(10, 0.8 * 2 - 0.6), ONCE, known_wrongly(2, -1, 10))


def test_5_back_up(ex):
    """After the first time there is 10 in the hole and 0.8 * 2 - 0.6 * 1 = 1 around it;
    on the way up it gets 0.6 of that, and 0.8 eps.
    """
    net, z, eps_known, eps_back = (
        Step(),
        halves(99, 2),
        torch.stack([halves(0, -1), halves(0, -2)]),
        halves(1, 2)[None],
    )
    got = call(ex.repaint_step, net, halves(1, 3), z, HALF, 1, ALPHA, SIGMA, eps_known, eps_back)
    assert len(net.k) == 2, f"eps_known has two noises, so U = 2 and step is called twice; calls made: {len(net.k)}"
    assert net.k == [1, 1], (
        f"step leads from level k to k + 1 each time, so it is called with k = 1 twice, not {net.k}"
    )
    s = float(SIGMA[1])
    wrong = {
        "it did not go back up: the second time should begin at level k again": halves(10, 1),
        "the second time began with the x of the first": halves(1, 3),
        "only the hole went back up to level k; all of x does": halves(6.8, 1),
        "on the way up x was noised as if it were clean, alpha_k x + sigma_k eps": halves(4.8 + s, 0.48 + 2 * s),
        "on the way up the noise has the factor beta; its root is missing": halves(6 + 0.64, 0.6 + 1.28),
        "on the way up x has the factor 1 - beta; its root is missing": halves(3.6 + 0.8, 0.36 + 1.6),
        "on the way up x was multiplied by 1 - beta and eps by beta; the roots are missing": halves(
            3.6 + 0.64, 0.36 + 1.28
        ),
        "on the way up sigma_k eps is too much noise, for x has some already": halves(6 + s, 0.6 + 2 * s),
        "on the way up x must shrink: it has the factor sqrt(1 - beta)": halves(10.8, 1 + 1.6),
        "on the way up alpha_k / alpha_(k+1) is inverted": halves(10 / 0.6 + 0.8, 1 / 0.6 + 1.6),
        "on the way up x has no new noise: sqrt(beta) eps_back[u]": halves(6, 0.6),
        "on the way up the noise is eps_known; it should be eps_back": halves(6, 0.6 - 0.8),
        "the factors of the way up are swapped": halves(8 + 0.6, 0.8 + 1.2),
    }
    wrong |= {message: 0.6 * value + 0.8 * eps_back[0] for message, value in known_wrongly(2, -1, 10).items()}
    expect(
        net.x[1],
        halves(6.8, 0.6 + 1.6),
        "the second time should begin with 0.6 x + 0.8 eps_back[0], for 1 - beta = (0.48 / 0.8)^2",
        wrong,
    )
    wrong = {
        "after the last time it went back up once more; the result is at level k + 1": 0.6 * halves(20, 0.4)
        + 0.8 * eps_back[0],
        "the known part has the noise of the first time; take eps_known[u]": halves(20, 1),
        "this is the result of the first time": halves(10, 1),
    }
    hint = "the second time ends with step's result in the hole, and 0.8 z + 0.6 eps_known[1] around it"
    expect(got, halves(20, 0.8 * 2 - 1.2), hint, wrong | known_wrongly(2, -2, 20))


def test_5_nothing_is_known_of_the_hole(ex):
    z = torch.where(HALF > 0, NAN, halves(0, 2))
    got = call(
        ex.repaint_step,
        Step(),
        halves(1, 3),
        z,
        HALF,
        1,
        ALPHA,
        SIGMA,
        halves(0, -1)[None],
        torch.zeros(0, 1, 2, 1, 4),
    )
    assert not isinstance(got, torch.Tensor) or not got.isnan().any(), (
        "z is NaN in the hole, and 0 times NaN is NaN: choose with torch.where, do not multiply by the mask"
    )
    expect(got, halves(10, 0.8 * 2 - 0.6), ONCE)


def test_5_the_last_level(ex):
    z = halves(99, 2 / 3)
    got = ex.repaint_step(
        Step(), halves(1, 3), z, HALF, 2, ALPHA, SIGMA, torch.stack([halves(0, 1), halves(0, -1)]), halves(1, 2)[None]
    )
    assert isinstance(got, torch.Tensor) and torch.equal(got[..., 2:], z[..., 2:]), (
        "at level N, which is clean, what is known should be exactly z"
    )


# ------------------------------------------------------------------------------------------- 6. zoom_scales


def test_6_zoom_out(ex):
    """Eleven frames, part = 1/4, v = 4/3: s = 0, 4, 16, 35, 55, 75, 95 and so on, of 150."""
    got = call(ex.zoom_scales, 11, 1.0, 4.0, 0.25)
    assert not isinstance(got, torch.Tensor) or torch.isfinite(got).all(), "your result holds NaN or infinity"

    def scales(*numbers: int) -> torch.Tensor:
        return 4 ** (torch.tensor(numbers) / 150)

    t, s = torch.linspace(0, 1, 11), torch.tensor([0, 4, 16, 35, 55, 75, 95, 115, 134, 146, 150]) / 150
    wrong = {
        "the scale itself grows by equal amounts, which looks slower and slower: it should grow by equal factors": 1
        + 3 * s,
        "the ends are not eased, and the scale grows by equal amounts": 1 + 3 * t,
        "the ends are not eased: s should start slowly": 4**t,
        "this is 3t^2 - 2t^3, which has no constant speed anywhere": 4 ** (t * t * (3 - 2 * t)),
        "last / first is inverted": 4**-s,
        "it begins with last and ends with first": 4 ** (1 - s),
        "things grow by equal amounts (1 / scale); the scale should grow by equal factors": 1 / (1 - 0.75 * s),
        "the last frame does not arrive: it has number n - 1, so t = k / (n - 1)": 4
        ** eased(torch.arange(11) / 11, 0.25),
        "it goes back in the second half: s(t) = 1 - s(1 - t) there": scales(0, 4, 16, 35, 55, 75, 55, 35, 16, 4, 0),
        "only the beginning is eased: it should end gently, too, and at last": scales(
            0, 4, 16, 35, 55, 75, 95, 115, 135, 155, 175
        ),
        "v is missing, so the two halves do not meet": 4 ** torch.where(t > 0.5, 0.25 + 0.75 * s, 0.75 * s),
        "a 2 is missing where it gets faster, v t^2 / (2 part): it jumps where the constant speed begins": (
            scales(0, 8, 32, 35, 55, 75, 95, 115, 118, 142, 150)
        ),
        "where the speed is constant, part / 2 is missing: s(t) = v (t - part / 2)": scales(
            0, 4, 16, 60, 80, 100, 70, 90, 134, 146, 150
        ),
    }
    expect(
        got, 4**s, "s should be 0, 4, 16, 35, 55, 75, 95, 115, 134, 146 and 150, all of 150, and the scale 4^s", wrong
    )


def eased(t: torch.Tensor, part: float) -> torch.Tensor:
    """The speed, added up: it grows, stays, and falls."""
    low, high = t.clamp(max=part), (t - (1 - part)).clamp(min=0)
    return (low**2 / (2 * part) + (t.clamp(part, 1 - part) - part) + high - high**2 / (2 * part)) / (1 - part)


def test_6_zoom_in(ex):
    """Five frames, part = 1/2: s = 0, 1/8, 1/2, 7/8, 1, and from 2 to 1/2 the scale is 2 / 4^s."""
    s = torch.tensor([0, 1, 4, 7, 8]) / 8
    expect(
        call(ex.zoom_scales, 5, 2.0, 0.5, 0.5),
        2 * 4**-s,
        "a zoom in from 2 to 1/2: s is 0, 1/8, 1/2, 7/8 and 1, and the scale 2 (1/4)^s",
    )


def test_6_both_ends(ex):
    expect(
        call(ex.zoom_scales, 2, 3.0, 5.0, 0.3),
        torch.tensor([3.0, 5.0]),
        "of two frames, the first has scale first, and the second last",
    )


# ------------------------------------------------------------------------------------------------ 7. looped


def film(*values: float) -> torch.Tensor:
    """A frame for each value, all its pixels the same. (N, 3, 2, 4)"""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).repeat(1, 3, 2, 4)


def expect_film(got: object, right: tuple, hint: str, wrong: dict[str, tuple]) -> None:
    """A film of another length may be a well-known one, too."""
    __tracebackhide__ = True
    assert isinstance(got, torch.Tensor), (
        f"a tensor was expected here, not {type(got).__name__}: is a `return` missing?"
    )
    if got.shape != film(*right).shape:
        for message, values in wrong.items():
            assert got.shape != film(*values).shape or not torch.allclose(got, film(*values), atol=1e-4), message
        assert got.shape[1:] != (3, 2, 4), f"the film should have {len(right)} frames, not {len(got)}"
    expect(got, film(*right), hint, {message: film(*values) for message, values in wrong.items()})


def test_7_pingpong(ex):
    got = call(ex.looped, film(0, 1, 2, 3), "pingpong", 0)
    expect_film(
        got,
        (0, 1, 2, 3, 2, 1),
        "there and back should be 0 1 2 3 2 1",
        {
            "both ends stand still: 0 1 2 3 3 2 1 0, and then 0 again": (0, 1, 2, 3, 3, 2, 1, 0),
            "the first frame is shown twice, at the end and when it begins again: 0 1 2 3 2 1 0": (
                0,
                1,
                2,
                3,
                2,
                1,
                0,
            ),
            "the last frame is shown twice, 3 3, on the way there and on the way back": (0, 1, 2, 3, 3, 2, 1),
            "one frame too few on the way back": (0, 1, 2, 3, 2),
            "it comes back to 2 twice: the way back is 2 1": (0, 1, 2, 3, 1, 2),
            "there is no way back": (0, 1, 2, 3),
        },
    )
    expect_film(
        call(ex.looped, film(5, 6), "pingpong", 1), (5, 6), "with two frames, there and back is just these two", {}
    )


def test_7_seamless(ex):
    """Eight frames, of which two are for the dissolve: w is 1/3, 2/3; 36 (1 - 1/3) + 0 = 24 and 49 / 3 + 2/3 = 17."""
    got = call(ex.looped, film(0, 1, 4, 9, 16, 25, 36, 49), "seamless", 2)
    as_shot = (4, 9, 16, 25)
    expect_film(
        got,
        (*as_shot, 24, 17),
        "shot[2] to shot[5] should come as they are, then 2/3 * 36 + 1/3 * 0 and 1/3 * 49 + 2/3 * 1",
        {
            "the dissolve goes the wrong way: the end goes out and the beginning comes in": (*as_shot, 12, 33),
            "w begins with 0: the first of the dissolve is nothing but the end": (*as_shot, 36, 25),
            "w begins with 0 and ends with 1: in its first and last frame nothing dissolves": (*as_shot, 36, 1),
            "w ends with 1: the last of the dissolve is nothing but the beginning": (*as_shot, 18, 1),
            "w is one half all the time; it should grow": (*as_shot, 18, 25),
            "the dissolve comes first; it should come last": (24, 17, *as_shot),
            "there is no dissolve: a cut from the last frame to the first": (0, 1, 4, 9, 16, 25),
            "there is no dissolve: the film goes on to the end of the shot, and there it is cut": (*as_shot, 36, 49),
            "the film begins with shot[0], but that has been used in the dissolve: begin with shot[m]": (
                0,
                1,
                4,
                9,
                16,
                25,
                24,
                17,
            ),
            "the beginning comes in backwards: shot[n + k] and shot[k] belong together": (
                *as_shot,
                2 / 3 * 36 + 1 / 3,
                49 / 3,
            ),
            "the beginning stands still while it comes in: shot[k] moves on": (*as_shot, 24 + 4 / 3, 49 / 3 + 8 / 3),
            "the end stands still while it goes out: shot[n + k] moves on": (*as_shot, 24, 12 + 2 / 3),
        },
    )


# ------------------------------------------------------------------------------------------- 8. one_palette


def greys(*rows: tuple) -> torch.Tensor:
    """Frames of one row each, (N, 3, 1, W) uint8."""
    return torch.tensor(rows, dtype=torch.uint8)[:, None, None].repeat(1, 3, 1, 1)


def colours(*values: float) -> torch.Tensor:
    """Greys as colours of a palette. (K, 3)"""
    return torch.tensor(values, dtype=torch.float32)[:, None].repeat(1, 3)


def test_8_the_nearest_colour(ex):
    """Two frames of 2 x 3 pixels, and no rounds."""
    palette = torch.tensor([[0, 0, 0], [200, 0, 0], [0, 200, 0], [100, 90, 110.0]])
    black, red, green, mauve = (20, 10, 0), (190, 30, 20), (60, 170, 30), (20, 60, 110)  # as the palette has them
    # 90, 90, 140 from mauve but 10, 0, 250 from black; 10, 140, 0 from red but 110, 50, 110 from mauve
    blue, orange = ((10, 0, 250), (210, 140, 0))
    shot = [[black, red, green], [mauve, blue, black]], [[green, green, orange], [black, red, mauve]]
    frames = torch.tensor(shot, dtype=torch.uint8).movedim(-1, 1)
    right = torch.tensor([[[0, 1, 2], [3, 3, 0]], [[2, 2, 1], [0, 1, 3]]])
    got, index = pair(call(ex.one_palette, frames, palette, 0), "the palette and the numbers")
    expect(got, palette, "with 0 rounds the palette stays as it is")
    pixels, mixed = frames.movedim(1, -1).float(), frames.reshape(2, 2, 3, 3).float()

    def nearest(pixels: torch.Tensor, distance) -> torch.Tensor:
        return distance(pixels[..., None, :] - palette).argmin(-1)

    wrong = {
        "this is the farthest colour": nearest(pixels, lambda d: -d.square().sum(-1)),
        "red, green and blue were mixed up: they are on axis 1, and frames.reshape(-1, 3) makes pixels of three neighbours": nearest(
            mixed, lambda d: d.square().sum(-1)
        ),
        "this is the nearest in red alone": nearest(pixels, lambda d: d[..., 0].abs()),
        "the differences were added with their signs: square them": nearest(pixels, lambda d: d.sum(-1)),
        "this is the nearest in brightness; all three of red, green and blue should be near": nearest(
            pixels, lambda d: d.sum(-1).abs()
        ),
        "this uses the largest of the three differences; it is the sum of their squares": nearest(
            pixels, lambda d: d.abs().amax(-1)
        ),
        "the differences themselves were added; it is their squares": nearest(pixels, lambda d: d.abs().sum(-1)),
    }
    expect(index, right, f"the numbers should be {right.tolist()}", wrong)


def test_8_one_round(ex):
    """Over both frames, the dark pixels are 10 10 40 and 60: their mean is 30.
    The bright ones are 250, 240: 245. Nothing is near green.
    """
    palette = torch.cat([colours(0, 255), torch.tensor([[0.0, 255, 0]])])
    got, index = pair(
        call(ex.one_palette, greys((10, 10, 250), (40, 60, 240)), palette, 1), "the palette and the numbers"
    )
    green = palette[2:]
    wrong = {
        "the palette stayed as it was": palette,
        "this is the first frame's own palette; it should be one for all": torch.cat([colours(10, 250), green]),
        "this is the last frame's own palette; it should be one for all": torch.cat([colours(50, 240), green]),
        "every frame moved the palette anew; all frames together should": torch.cat([colours(50, 240), green]),
        "a colour that occurs twice should count twice: it is the mean over pixels": torch.cat(
            [colours(110 / 3, 245), green]
        ),
        "a colour that no pixel belongs to became 0; it should stay as it is": torch.cat(
            [colours(30, 245), 0 * green]
        ),
        "the palette was rounded": torch.cat([colours(30, 245), green]).round(),
        "this is the middle between the darkest and the brightest pixel; it should be the mean": torch.cat(
            [colours(35, 245), green]
        ),
    }
    if isinstance(got, torch.Tensor) and got.shape == (3, 3):
        assert not got[2].isnan().any(), (
            "a colour that no pixel belongs to became NaN, the mean of nothing; it should stay as it is"
        )
    expect(
        got,
        torch.cat([colours(30, 245), green]),
        "black should become 30, the mean of 10 10 40 60, white 245, and green stay",
        wrong,
    )
    expect(index, torch.tensor([[[0, 0, 1]], [[0, 0, 1]]]), "10 10 40 60 should have number 0, and 250 240 number 1")


def test_8_two_rounds(ex):
    """From 0 and 100: 48 is with the dark ones first. Then these are 12 and 60, and 48 changes over: 0 and 56."""
    frames = greys((0, 0, 0), (48, 60, 60))
    got, index = pair(call(ex.one_palette, frames, colours(0, 100), 1), "the palette and the numbers")
    hint = "after one round the palette should be 12 and 60, the means of 0 0 0 48 and 60 60"
    expect(got, colours(12, 60), hint, {"that is two rounds": colours(0, 56)})
    wrong = {
        "the numbers are those of the palette before its last move: look for the nearest once more": torch.tensor(
            [[[0, 0, 0]], [[0, 1, 1]]]
        )
    }
    expect(index, torch.tensor([[[0, 0, 0]], [[1, 1, 1]]]), "48 is nearer to 60 than to 12", wrong)
    got, _ = ex.one_palette(frames, colours(0, 100), 2)
    wrong = {
        "in the second round the pixels must look for the nearest colour anew (or is a round missing?)": colours(
            12, 60
        )
    }
    expect(got, colours(0, 56), "in the second round 48 belongs to 60, so the palette should be 0 and 56", wrong)


# ------------------------------------------------------------------------------------------- 9. name_weight


def test_9_three_to_one(ex):
    """With d = 4, a is q . k / 2: log 3 for the first position and 0 for the second."""
    q, k = vectors((2, 0, 0, 0), (0, 5, 0, 0)), vectors((math.log(3), 0, 0, 0))[0]
    for zeros, right, unscaled in ((1, (3 / 4, 1 / 2), (9 / 10, 1 / 2)), (3, (1 / 2, 1 / 4), (3 / 4, 1 / 4))):
        w, slope = pair(call(ex.name_weight, q, k, zeros), "w and dw/da")
        goal = torch.tensor(right)
        wrong = {
            "a is q . k / sqrt(d); the root of d is missing": torch.tensor(unscaled),
            "this is the weight of the zero tokens": 1 - goal,
            "each of the zero tokens takes its share; there are more than one": torch.tensor((3 / 4, 1 / 2)),
            "there is no zero token in this softmax, so the name has all the weight": torch.ones(2),
        }
        wrong = {message: value for message, value in wrong.items() if not torch.allclose(value, goal)}
        expect(w, goal, f"e^a is 3 and 1, so with {zeros} zero tokens w should be {right}", wrong)
        wrong = {
            "this is the derivative by q . k; a is q . k / sqrt(d)": goal * (1 - goal) / 2,
            "the derivative of a sigmoid is w (1 - w)": goal * goal,
            "the sign of the derivative is wrong: more q . k, more weight": -goal * (1 - goal),
            "this is w again, not its derivative": goal,
        }
        expect(slope, goal * (1 - goal), f"dw/da should be w (1 - w) with {zeros} zero tokens", wrong)


def test_9_large_products(ex):
    """e^200 is infinite in float32, and w is 1 all the same."""
    w, slope = pair(
        call(ex.name_weight, vectors((400, 0, 0, 0), (-400, 0, 0, 0)), vectors((1, 0, 0, 0))[0], 1), "w and dw/da"
    )
    assert w.isfinite().all() and slope.isfinite().all(), (
        "e^200 is infinite in float32, and infinity / infinity is NaN: torch.sigmoid does not compute e^a"
    )
    expect(w, torch.tensor([1.0, 0.0]), "at a = 200 the weight is 1, at a = -200 it is 0")
    expect(slope, torch.zeros(2), "at a = 200 and at a = -200 the weight does not change any more")


# -------------------------------------------------------------------------------------- 10. ideal_inpainting


def check_conditional(ex, known: torch.Tensor, C: torch.Tensor, hole: torch.Tensor) -> None:
    """The mean and the covariance of the hole, compared with the blocks of the inverse of C."""
    __tracebackhide__ = True
    precision = torch.linalg.inv(C.double())
    covariance = torch.linalg.inv(precision[hole][:, hole])
    mean = -known.double() @ (covariance @ precision[hole][:, ~hole]).T
    across, inside = C[hole][:, ~hole].double(), C[hole][:, hole].double()
    got_mean, got_covariance = pair(call(ex.ideal_inpainting, known, C, hole), "the mean and the covariance")
    wrong = {
        "the inverse of C_known is missing: correlated known pixels carry the same information twice": known.double()
        @ across.T,
        "the sign of the mean is wrong": -mean,
        "this is the mean of the known pixels, given those in the hole": torch.zeros_like(mean),
    }
    hint = "the mean should be C_hk C_kk^-1 x_known, with the blocks of C for the hole (h) and the known pixels (k)"
    expect(got_mean, mean.float(), hint, {message: value.float() for message, value in wrong.items()}, atol=2e-3)
    reduced = across @ torch.linalg.solve(C[~hole][:, ~hole].double(), across.T)
    wrong = {
        "known pixels make the hole more certain: the second term is subtracted": inside + reduced,
        "this is the covariance without knowing anything": inside,
        "this is what the known pixels explain; the covariance is what they leave": reduced,
        "this is the inverse of the covariance": precision[hole][:, hole],
        "in the second term the inverse of C_known is missing": inside - across @ across.T,
    }
    hint = "the covariance should be C_hh - C_hk C_kk^-1 C_kh"
    expect(got_covariance, covariance.float(), hint, {m: v.float() for m, v in wrong.items()}, atol=2e-3)


def test_10_two_pixels(ex):
    """Each has variance 2, and their covariance is 1. If one is 4, the other is 2 on average, with variance 3/2."""
    C, hole = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([True, False])
    check_conditional(ex, torch.tensor([[4.0], [-2.0]]), C, hole)
    mean, covariance = pair(ex.ideal_inpainting(torch.tensor([[4.0]]), C, hole), "the mean and the covariance")
    expect(mean, torch.tensor([[2.0]]), "if the known pixel is 4, the mean of the other is 1/2 of it")
    expect(covariance, torch.tensor([[1.5]]), "the variance is 2 - 1 * 1 / 2")


def test_10_pictures_that_are_drawn(ex):
    """What is left of the hole has no correlation with the known pixels, and the covariance that you give."""
    rng = torch.Generator().manual_seed(3)
    root = torch.randn(5, 5, generator=rng) + torch.eye(5)
    x = torch.randn(40_000, 5, generator=rng) @ root.T
    hole = torch.tensor([False, True, True, False, False])
    C = root @ root.T
    mean, covariance = pair(call(ex.ideal_inpainting, x[:, ~hole], C, hole), "the mean and the covariance")
    left = x[:, hole] - mean
    size = float(C.diagonal().max())
    expect(
        left.T @ x[:, ~hole] / len(x),
        torch.zeros(2, 3),
        "what is left of the hole is still correlated with the known pixels",
        atol=0.03 * size,
    )
    expect(left.T @ left / len(x), covariance, "what is left does not have this covariance", atol=0.03 * size)


# --------------------------------------------------------------------------------------- 11. fix_outpainting


def outpainting_mistakes(paint, picture: torch.Tensor, dx: int, n: int) -> dict[str, torch.Tensor]:
    """{message: film} of well-known mistakes."""

    def film(keep) -> torch.Tensor:
        views = [picture]
        for _ in range(n):
            moved = torch.zeros_like(picture)
            moved[:, :, : picture.shape[2] - dx] = views[-1][:, :, dx:]
            mask = torch.zeros_like(picture[:1])
            mask[:, :, picture.shape[2] - dx :] = 1
            views.append(keep(paint(moved, mask), moved, mask))
        return torch.stack(views)

    return {
        "the whole output of the painter goes into the film, so known pixels change again with each keyframe": film(
            lambda painted, moved, mask: painted
        ),
        "the mask is the wrong way round: 1 is the hole": film(
            lambda painted, moved, mask: torch.where(mask > 0, moved, painted)
        ),
        "nothing is painted into the hole": film(lambda painted, moved, mask: moved),
    }


def test_11_known_pixels_stay(ex):
    """The painter fills the hole with 9, and adds 0.5 to everything that it should keep."""

    def paint(moved, mask):
        return torch.where(mask > 0, torch.full_like(moved, 9.0), moved + 0.5)

    picture = row(0, 1, 2, 3)
    goal = torch.stack([row(0, 1, 2, 3), row(1, 2, 3, 9), row(2, 3, 9, 9)])
    hint = "each keyframe should have the known pixels as they were, and 9 in its hole"
    expect(call(ex.fix_outpainting, paint, picture, 1, 2), goal, hint, outpainting_mistakes(paint, picture, 1, 2))


# ---------------------------------------------------------------------------------------- 12. fix_candidates


def check_choice(ex, embeddings: torch.Tensor, text: torch.Tensor) -> None:
    """embeddings (N, D), text (D,)"""
    __tracebackhide__ = True
    cosines = torch.nn.functional.cosine_similarity(embeddings, text[None])
    best, asked = int(cosines.argmax()), []

    def encode_text(texts):
        assert not isinstance(texts, str), "encode_text takes a list of texts; a lone string is a list of characters"
        asked.append(list(texts))
        return text[None]

    got = int(
        number_of(
            call(
                ex.fix_candidates, lambda images: images.flatten(1), encode_text, embeddings[:, :, None, None], "米饭"
            )
        )
    )
    assert asked and all("米饭" in texts for texts in asked), (
        "the candidates should be compared with the name that is given"
    )
    others = {
        "the longest embedding of those in the right direction wins: its norm still counts": int(
            (embeddings @ text).argmax()
        ),
        "this is the candidate farthest from the name": int(cosines.argmin()),
        "this is the candidate with the longest embedding": int(embeddings.norm(dim=1).argmax()),
        "the columns were normalized; an embedding is a row": int(
            (embeddings / embeddings.norm(dim=0) @ text).argmax()
        ),
        "this is the nearest in distance, not in direction": int((embeddings - text).norm(dim=1).argmin()),
    }
    for message, index in others.items():
        assert got != index or index == best, message
    assert got == best, (
        f"the cosines are {', '.join(f'{c:.2f}' for c in cosines)}, so candidate {best} is the best, not {got}"
    )


def number_of(got: object) -> float:
    """A number that may also come as a tensor with one element."""
    assert got is not None, "an index was expected here, not None: is a `return` missing?"
    assert not isinstance(got, torch.Tensor) or got.numel() == 1, "one index was expected, not a tensor of several"
    return float(got)


def test_12_a_long_and_a_near_one(ex):
    """The cosines with the name (1, 0) are 0.6 and 0.96, and the norms 10 and 1. The third points away."""
    check_choice(ex, vectors((6, 8), (0.96, 0.28), (-3, 1)), vectors((1, 0))[0])


def test_12_whichever_the_name_is(ex):
    embeddings = vectors((6, 8), (0.96, 0.28), (-0.6, 0.8), (-8, -6))
    for name in ((2, 0), (0, 0.5), (-1, 2), (-0.1, -0.1), (3, 1)):
        check_choice(ex, embeddings, vectors(name)[0])


# ---------------------------------------------------------------------------------------------- 13. fix_zoom


def places(H: int, W: int) -> torch.Tensor:
    """A picture whose channels are the position of each pixel's centre, (2, H, W): x, then y; the centre is 0."""
    y, x = torch.arange(H) + 0.5 - H / 2, torch.arange(W) + 0.5 - W / 2
    return torch.stack([x.expand(H, W), y[:, None].expand(H, W)])


def check_zoom(ex, H: int, W: int, scales: list[float]) -> None:
    __tracebackhide__ = True
    picture = places(H, W)
    limit = torch.tensor([(W - 1) / 2, (H - 1) / 2]).view(2, 1, 1)

    def film(move) -> torch.Tensor:
        return torch.stack([move(picture, s).clamp(-limit, limit) for s in scales])

    goal = film(lambda p, s: p * s)
    wrong = {
        "the fixed point is the edge between two pixels plus one half, not the centre: the plate drifts": film(
            lambda p, s: (p - 0.5) * s + 0.5
        ),
        "the fixed point is half a pixel away from the centre, on the other side": film(
            lambda p, s: (p + 0.5) * s - 0.5
        ),
        "everything is shifted by half a pixel, also at scale 1": film(lambda p, s: p * s + 0.5),
        "everything is shifted by half a pixel, also at scale 1: the centre of pixel k is k + 0.5": film(
            lambda p, s: (p - 0.5) * s
        ),
        "the scale is inverted: at 2 the camera sees twice the width": film(lambda p, s: p / s),
    }
    got = call(ex.fix_zoom, picture, list(scales))
    hint = (
        f"at the scales {', '.join(f'{s:.3g}' for s in scales)}, the centre of the picture should stay in the middle"
    )
    expect(got, goal, hint, wrong, atol=1e-3)


def test_13_the_middle_stays_where_it_is(ex):
    check_zoom(ex, 8, 8, [1.0, 0.5, 0.25])
    check_zoom(ex, 6, 10, [1.0, 2.0])


# ------------------------------------------------------------------------------------------- 14. fix_regions


def constant(x0: float, eps: float):
    """A denoiser that predicts the same everywhere."""
    return lambda x, level: (torch.full_like(x, x0), torch.full_like(x, eps))


def test_14_two_regions_that_overlap(ex):
    """The weights are 1 0 / 1 1 / 0 1 in three columns; the predictions are 2 and 4, with noise 1 and 3."""
    first, second = torch.tensor([1.0, 1.0, 0.0]).view(1, 1, 1, 3), torch.tensor([0.0, 1.0, 1.0]).view(1, 1, 1, 3)
    x = torch.zeros(1, 2, 1, 3)
    parts = [(constant(2, 1), first), (constant(4, 3), second)]
    x0, eps = pair(call(ex.fix_regions, parts, x, ex.Level(0.6, 0.8)), "x0 and eps")

    def columns(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, 3).repeat(1, 2, 1, 1)

    wrong = {"where two regions overlap, the predictions are averaged, not added": columns(2, 6, 4)}
    expect(x0, columns(2, 3, 4), "in the three columns, x0 should be 2, 3 (the mean of 2 and 4) and 4", wrong)
    wrong = {"where two regions overlap, the noise counts twice: it is averaged like x0": columns(1, 4, 3)}
    expect(eps, columns(1, 2, 3), "in the three columns, eps should be 1, 2 (the mean of 1 and 3) and 3", wrong)


# ---------------------------------------------------------------------------------------------- 15. own_move


def check_own_move(function, frames: int) -> None:
    __tracebackhide__ = True
    got = call(function, frames)
    assert isinstance(got, torch.Tensor) and got.shape == (frames, 3), (
        f"a tensor ({frames}, 3) was expected: x, y and scale of each frame"
    )
    windows = got.double()
    assert windows.isfinite().all(), "your windows hold NaN or infinity"
    start = windows[0] - torch.tensor([0, 0, 1.0])
    assert start.abs().max() < 1e-3, (
        f"frame 0 should be the picture, (0, 0, 1), not {tuple(round(v, 3) for v in got[0].tolist())}"
    )
    scale = windows[:, 2]
    assert scale.min() > 1 - 1e-3, f"the scale goes down to {scale.min():.3f}; nearer than 1 there are no details"
    for name, values in (("x", windows[:, 0]), ("y", windows[:, 1])):
        wide = float(values.max() - values.min())
        assert wide >= 0.5, f"{name} covers a range of {wide:.2f} sides of the picture; 0.5 or more were asked for"
    assert scale.min() < 1.05 and scale.max() > 1.5, (
        f"the scale goes from {scale.min():.2f} to {scale.max():.2f}; from below 1.05 to above 1.5 was asked for"
    )
    after = windows.roll(-1, 0)
    step = (after - windows) / after[:, 2:] * torch.tensor([1, 1, 6**-0.5], dtype=torch.float64)
    length = step.norm(dim=1)
    uneven = (length / length.mean() - 1).abs()
    assert uneven[-1] <= 0.5, (
        f"from the last frame to the first the displacement is {length[-1] / length.mean():.2f} of the mean: "
        "in a loop frame 0 is one step further than the last frame"
    )
    turn = (step.roll(-1, 0) - step).norm(dim=1) / length.mean()
    assert turn.max() < 0.35, (
        f"after frame {int(turn.argmax())} the camera turns sharply: its step changes by {turn.max():.2f} of the mean displacement"
    )
    worst = int(uneven.argmax())
    assert uneven[worst] <= 0.03, (
        f"after frame {worst} the displacement is {length[worst] / length.mean():.2f} of the mean; within 3 % was asked for: "
        "equal steps of a parameter are not equal displacements"
    )


def test_15_the_goal(ex):
    for frames in (48, 90):
        check_own_move(ex.own_move, frames)


# ----------------------------------------------------------------------------------------- 16. fill_the_hole


class Curves:
    """Smooth closed curves of n points from a Gaussian, with their ideal denoiser, which counts its calls."""

    def __init__(self, n: int, first: int, last: int, seed: int, B: int = 300):
        rng, self.calls = torch.Generator().manual_seed(seed), 0
        self.noise = partial(torch.randn, B, n, generator=rng)
        away = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
        self.C = torch.exp(6 * ((away[:, None] - away).cos() - 1)) + 1e-4 * torch.eye(n, dtype=torch.float64)
        self.values, self.vectors = torch.linalg.eigh(self.C)
        self.hole = torch.zeros(n, dtype=torch.bool)
        self.hole[first:last] = True
        curves = torch.randn(B, n, generator=rng, dtype=torch.float64) @ torch.linalg.cholesky(self.C).T
        self.z = torch.where(self.hole, NAN, curves).float()
        across, inside = self.C[self.hole][:, ~self.hole], self.C[~self.hole][:, ~self.hole]
        gain = torch.linalg.solve(inside, across.T)
        self.mean = curves[:, ~self.hole] @ gain
        self.std = (self.C[self.hole][:, self.hole] - across @ gain).diagonal().mean().sqrt()

    def denoise(self, x: torch.Tensor, level) -> tuple[torch.Tensor, torch.Tensor]:
        alpha, sigma = (float(part) for part in level)
        assert sigma > 0, "denoise needs a level with noise, sigma > 0"
        assert abs(alpha**2 + sigma**2 - 1) < 1e-4, "the levels of this denoiser have alpha^2 + sigma^2 = 1"
        assert not x.isnan().any(), (
            "denoise was given NaN: the known curves are NaN in the hole. Choose with torch.where"
        )
        self.calls += 1
        factor = (alpha * self.values / (alpha**2 * self.values + sigma**2)).float()
        x0 = (x @ self.vectors.float() * factor) @ self.vectors.T.float()
        return x0, (x - alpha * x0) / sigma


def check_filling(function, data: Curves) -> None:
    __tracebackhide__ = True
    got = call(function, data.denoise, data.z, data.hole, data.noise)
    assert isinstance(got, torch.Tensor) and got.shape == data.z.shape, (
        f"a tensor {tuple(data.z.shape)} was expected: the curves, with their holes filled"
    )
    assert data.calls <= 200, f"the denoiser was evaluated {data.calls} times; at most 200 were allowed"
    assert torch.equal(got[:, ~data.hole], data.z[:, ~data.hole]), "the known part must be exactly z at the end"
    inside = got[:, data.hole].double()
    assert inside.isfinite().all(), "the hole holds NaN or infinity"
    bias = float((inside - data.mean).mean(0).abs().max() / data.std)
    assert bias < 0.5, f"on average your samples are {bias:.2f} standard deviations away from the exact mean"
    ratio = float((inside - data.mean).square().mean().sqrt() / data.std)
    assert ratio > 0.85, (
        f"your samples are only {ratio:.2f} times as far from the exact mean as exact samples: they vary too little. "
        "Is this the mean itself?"
    )
    assert ratio < 1.15, (
        f"your samples are {ratio:.2f} times as far from the exact mean as exact samples, with {data.calls} evaluations; "
        "below 1.15 was asked for: the inside does not match the outside yet"
    )


def test_16_the_goal(ex):
    check_filling(ex.fill_the_hole, Curves(48, 16, 34, seed=1))
