"""The grader's randomised checks of chapter 6:
sizes, pictures and moves are drawn anew, and compared with the solutions.

Where an answer is wrong, it is compared with the results of well-known mistakes too,
so that the message can name the mistake.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from common.grade.checks import (
    Exercise,
    call,
    close,
    expect,
    expect_gradients,
    integer,
    load,
    make_level,
    parts,
    uniform,
)

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")
right = load(Path(__file__).with_name("solutions.py"), "course_solutions")
NAN = float("nan")


# ---------------------------------------------------------------------------------------------- random material


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng)


def picture(rng: torch.Generator, *shape: int) -> Tensor:
    return 2 * torch.rand(shape, generator=rng) - 1


def pair(got: object, what: str) -> tuple:
    return parts(got, 2, what)


def different(wrong: dict[str, Tensor], right: Tensor) -> dict[str, Tensor]:
    """Those that are wrong in this case: by chance, a mistake may make no difference."""
    return {message: value for message, value in wrong.items() if not close(value, right)}


# ------------------------------------------------------------------------------------------------------ exercise 1


def check_camera_move(ex, rng):
    H, W = integer(rng, 5, 7), integer(rng, 9, 11)
    image = picture(rng, integer(rng, 2, 4), H, W)
    image[:, torch.rand(H, W, generator=rng) < 0.2] = 0  # pixels of mid-grey
    near = [integer(rng, 1, 3) for _ in range(4)]
    far = (W + near[0], 0), (near[0] - W, -H - near[3])
    for dx, dy in ((-near[2], near[3]), (near[1], -near[2]), (near[0], 0), (0, -near[1]), (0, 0), *far):
        check_one_move(ex, image, dx, dy)


def seen_from(image: Tensor, dx: int, dy: int) -> Tensor:
    """What a camera sees there, NaN where there is nothing."""
    _, H, W = image.shape
    dx, dy = max(-W, min(W, dx)), max(-H, min(H, dy))
    return F.pad(image, (W, W, H, H), value=NAN)[:, H + dy : 2 * H + dy, W + dx : 2 * W + dx]


def check_one_move(ex, image: Tensor, dx: int, dy: int) -> None:
    where = f"of a picture of {image.shape[2]} x {image.shape[1]} pixels (width x height), the camera moves by dx = {dx}, dy = {dy}"
    found = seen_from(image, dx, dy)
    hole, goal = found[:1].isnan(), found.nan_to_num(0)
    try:
        moved, mask = pair(call(ex.camera_move, image, dx, dy), "moved and mask")
    except (RuntimeError, IndexError) as problem:
        assert not hole.all(), (
            f"a camera that goes far enough sees nothing of the picture; your code stops with {type(problem).__name__}"
        )
        raise
    wrong = {
        "the picture moved the way the camera goes; where the camera goes right, things go left": seen_from(
            image, -dx, -dy
        ).nan_to_num(0),
        "y points down, so the camera goes up where dy < 0, and things go down": seen_from(image, dx, -dy).nan_to_num(
            0
        ),
        "x is the wrong way round: where the camera goes right, things go left": seen_from(image, -dx, dy).nan_to_num(
            0
        ),
        "dx and dy are swapped: y runs along the axis before the last": seen_from(image, dy, dx).nan_to_num(0),
        "what has left at one edge came in at the other": image.roll((-dy, -dx), (1, 2)),
        "where nothing is seen it should be 0, mid-grey": found.nan_to_num(-1),
    }
    expect(moved, goal, f"{where}: this is not what is still seen of it", different(wrong, goal))
    wrong = {
        "the mask is the wrong way round: 1 is the hole, what has to be painted": (~hole).float(),
        "a pixel of the picture that is mid-grey itself is taken for a hole: the mask says where you look, not what is seen there": (
            (goal[:1] == 0).float()
        ),
    }
    hint = f"{where}: the mask should be 1 where the picture has no pixel, and only there"
    expect(mask, hole.float(), hint, different(wrong, hole.float()))


# ------------------------------------------------------------------------------------------------------ exercise 2


def check_composite(ex, rng):
    C, H, W = integer(rng, 2, 4), integer(rng, 15, 17), integer(rng, 18, 20)
    mask = torch.zeros(1, H, W)
    mask[:, integer(rng, 2, 4) : integer(rng, 12, 14), integer(rng, 8, 10) :] = 1  # a hole at the right edge
    mask[:, : integer(rng, 2, 3), : integer(rng, 3, 5)] = 1  # and one in a corner
    original, painted = picture(rng, C, H, W), picture(rng, C, H, W)
    for radius in (uniform(rng, 1.5, 3), float(integer(rng, 1, 3)), 0):
        check_one_composite(ex, original, painted, mask, radius)
    check_one_composite(ex, original, painted, ragged(rng, H, W), uniform(rng, 2, 4))
    nowhere = torch.where(
        mask > 0, painted, torch.tensor([NAN, math.inf])[torch.randint(2, painted.shape, generator=rng)]
    )
    known_pixels(ex.composite(original, nowhere, mask, 2.0), original, mask)


def ragged(rng: torch.Generator, H: int, W: int) -> Tensor:
    """A hole without straight edges, with islands of known pixels. (1, H, W)"""
    waves = torch.from_numpy(gaussian_filter(torch.randn(H, W, generator=rng).numpy(), 2.5))
    mask = (waves > waves.quantile(0.25)).float()[None]
    mask[0, integer(rng, 4, H - 5), integer(rng, 4, W - 5)] = 0
    return mask


def depth_of(mask: Tensor) -> Tensor:
    return torch.from_numpy(distance_transform_edt(mask[0].numpy())).float()


def rings(mask: Tensor, diagonal: int) -> Tensor:
    """Depth as the number of steps to the nearest known pixel, with diagonal steps or without. (H, W)"""
    left, depth = mask.clone(), torch.zeros_like(mask)
    while left.any():
        depth += left
        known = F.pad(1 - left, (1, 1, 1, 1))
        H, W = mask.shape[1:]
        around = [
            known[:, 1 + y : 1 + y + H, 1 + x : 1 + x + W]
            for y in (-1, 0, 1)
            for x in (-1, 0, 1)
            if diagonal or not (x and y)
        ]
        left = left * (1 - torch.stack(around).amax(0))
    return depth[0]


def known_pixels(got: object, original: Tensor, mask: Tensor) -> None:
    """Are they the same to the last bit?"""
    __tracebackhide__ = True
    assert isinstance(got, Tensor), f"a tensor was expected here, not {type(got).__name__}: is a `return` missing?"
    assert got.shape == original.shape, f"the shape should be {tuple(original.shape)}, not {tuple(got.shape)}"
    known = (mask == 0).expand_as(got)
    assert got[known].isfinite().all(), (
        "what the network gave where the picture is known shows through: 0 times NaN is NaN. Choose, with torch.where"
    )
    away = (got - original)[known].abs().max()
    assert away < 1e-5, f"known pixels changed, by up to {away:.2g}: the soft edge must lie in the hole only"
    assert torch.equal(got[known], original[known]), (
        "known pixels are nearly the original, but not to the last bit: do not compute them, choose, with torch.where"
    )


def check_one_composite(ex, original: Tensor, painted: Tensor, mask: Tensor, radius: float) -> None:
    depth, outside = depth_of(mask), depth_of(1 - mask)

    def mixed(soft: Tensor) -> Tensor:
        return original + soft * (painted - original)

    soft = (depth / (radius + 1)).clamp(max=1)
    goal = mixed(soft)
    wrong = {
        "the edge is hard: the new picture should fade in over radius + 1 pixels": mixed(mask),
        "original and painted are swapped": mixed(1 - soft),
        "the mask is the wrong way round: 1 is the hole": mixed((outside / (radius + 1)).clamp(max=1)),
        "the soft edge lies on the known side; it should lie in the hole": mixed(
            (1 - outside / (radius + 1)).clamp(min=0)
        ),
        "soft goes on above 1: min(1, ...)": mixed(depth / (radius + 1)),
        "depth begins with 1, not with 0, at the edge of the hole": mixed(((depth - 1) / (radius + 1)).clamp(0, 1)),
        "this is the original, all of it": original,
        "depth was counted in steps to any of the eight neighbours; it is the straight-line distance": mixed(
            (rings(mask, 1) / (radius + 1)).clamp(max=1)
        ),
        "depth was counted in steps along rows and columns; it is the straight-line distance": mixed(
            (rings(mask, 0) / (radius + 1)).clamp(max=1)
        ),
    }
    if radius:
        early = "you divided by radius: it is radius + 1, so that the new picture is alone from that depth on"
        wrong[early] = mixed((depth / radius).clamp(max=1))
    got, wrong = call(ex.composite, original, painted, mask, radius), different(wrong, goal)
    if not any(isinstance(got, Tensor) and close(got, value) for value in wrong.values()):
        known_pixels(got, original, mask)
    hint = f"in the hole, with radius {radius:.3g}, this is not original + min(1, depth / (radius + 1)) (painted - original)"
    expect(got, goal, hint, wrong)


# ------------------------------------------------------------------------------------------------------ exercise 3


def check_clip_loss(ex, rng):
    B, D = integer(rng, 6, 8), integer(rng, 9, 12)
    dish = torch.randint(100, 900, (B,), generator=rng)
    check_one_loss(ex, rng, B, D, torch.arange(B) * 3 + dish[0])  # all differ: CLIP's own
    dish[1:3] = dish[0]
    dish[4] = dish[3]
    dish = dish[torch.randperm(B, generator=rng)]
    check_one_loss(ex, rng, B, D, dish)
    check_cold_loss(ex, rng, B, D, dish)


def check_cold_loss(ex, rng, B: int, D: int, dish: Tensor) -> None:
    """At CLIP's own largest scale, where e^L is infinite in float32 and some probabilities are 0."""
    images, scale = normal(rng, B, D), torch.tensor(math.log(100))
    alike = (torch.arange(B) % 2 == 0)[:, None]  # every other text is like its image, the others point away
    texts = torch.where(alike, images, -images.roll(1, 0)) + 0.05 * normal(rng, B, D)
    got, goal = call(ex.clip_loss, images, texts, dish, scale), right.clip_loss(images, texts, dish, scale)
    assert not isinstance(got, Tensor) or got.isfinite().all(), (
        "at exp(logit_scale) = 100, where CLIP's training ends, your loss is not finite: e^100 is infinite in float32, "
        "and the logarithm of a probability of 0 is minus infinity; log_softmax computes neither"
    )
    expect(got, goal, "at exp(logit_scale) = 100 this is not the loss", atol=1e-2)


def losses(L: Tensor, same: Tensor, share: Tensor, minus: bool = True) -> Tensor:
    """loss_i for each row of L. (B,)"""
    return -(share * L.log_softmax(1)).sum(1) - (same.sum(1).log() if minus else 0)


def check_one_loss(ex, rng, B: int, D: int, dish: Tensor) -> None:
    images, texts = normal(rng, B, D) * (0.5 + torch.rand(B, 1, generator=rng)), normal(rng, B, D) * 1.7
    scale = torch.tensor(uniform(rng, 1.5, 2.5))
    a, b = images / images.norm(dim=1, keepdim=True), texts / texts.norm(dim=1, keepdim=True)
    same = (dish[:, None] == dish).float()
    share = same / same.sum(1, keepdim=True)

    def loss(L: Tensor, how=share, minus: bool = True) -> Tensor:
        return (losses(L, same, how, minus) + losses(L.T, same, how, minus)).mean() / 2

    L = scale.exp() * a @ b.T
    goal = loss(L)
    wrong = {
        "only images look for their texts; texts must find their images as well: the softmax down the columns": losses(
            L, same, share
        ).mean(),
        "only texts look for their images; images must find their texts as well: the softmax along the rows": losses(
            L.T, same, share
        ).mean(),
        "twice as large as it should be: take the mean of both sides": 2 * goal,
        "summed over the batch: take the mean over the pairs": B * goal,
        "summed over the batch and over both sides: take the mean, each time": 2 * B * goal,
        "the cosines were multiplied by logit_scale itself; it is a logarithm": loss(scale * a @ b.T),
        "the cosines were divided by exp(logit_scale), but that is one over the temperature already": loss(
            a @ b.T / scale.exp()
        ),
        "the cosines were divided by logit_scale; multiply by its exponential": loss(a @ b.T / scale),
        "the temperature is missing": loss(a @ b.T),
        "these are products of vectors as long as they come, not cosines: make them unit vectors": loss(
            scale.exp() * images @ texts.T
        ),
        "only the images were made unit vectors": loss(scale.exp() * a @ texts.T),
        "only the texts were made unit vectors": loss(scale.exp() * images @ b.T),
        "the sign is wrong: a loss is never below 0": -goal,
        "text i was taken for the only right one of image i, but some pairs are of the same dish": loss(
            L, torch.eye(B), minus=False
        ),
        "- log |P_i| is missing: where two are right, not even a perfect network could come to 0": loss(
            L, minus=False
        ),
        "the shares do not sum to 1: divide by |P_i|, the number of those that are right": loss(L, same),
        "the shares do not sum to 1 (divide by |P_i|), and - log |P_i| is missing": loss(L, same, minus=False),
        "this is the logarithm of the sum of the p that are right; it is the mean of their logarithms": (
            -((L.softmax(1) * same).sum(1).log() + (L.T.softmax(1) * same).sum(1).log()).mean() / 2
        ),
    }
    try:
        got = call(ex.clip_loss, images, texts, dish, scale)
    except IndexError:
        raise AssertionError("dish says which pairs belong together, not which column of L is right") from None
    assert not isinstance(got, Tensor) or got.dim() == 0, (
        f"one number was expected for the whole batch, not {tuple(got.shape)}"
    )
    expect(
        got,
        goal,
        f"this is not the loss of {B} pairs of {len(dish.unique())} dishes, the mean of both sides",
        different(wrong, goal),
    )
    given = [tensor.clone().requires_grad_() for tensor in (images, texts, scale)]
    inputs = dict(zip(("images", "texts", "logit_scale"), given, strict=True))
    expect_gradients(
        ex.clip_loss(given[0], given[1], dish, given[2]), right.clip_loss(given[0], given[1], dish, given[2]), inputs
    )


# ------------------------------------------------------------------------------------------------------ exercise 4


class Encoder:
    """Mixes means over squares of pixels into c channels, and adds something: a grey picture is not 0.
    Counts how often it is asked.
    """

    def __init__(self, rng: torch.Generator, c: int, f: int):
        self.mix, self.more, self.f, self.asked = normal(rng, c, 3, 1, 1), normal(rng, c), f, 0

    def look(self, images: Tensor) -> Tensor:
        return F.conv2d(F.avg_pool2d(images, self.f), self.mix, self.more)

    def __call__(self, images: Tensor) -> Tensor:
        assert isinstance(images, Tensor) and images.dim() == 4 and images.shape[1] == 3, (
            "encode takes images, (B, 3, H, W)"
        )
        self.asked += 1
        return self.look(images)


def holes(rng: torch.Generator, B: int, H: int, W: int) -> Tensor:
    """A strip for each, and scratches of single pixels. (B, 1, H, W)"""
    mask = (torch.rand(B, 1, H, W, generator=rng) < 0.06).float()
    for each in mask:
        each[:, :, : integer(rng, 2, W // 2)] = 1
    return mask


def check_nine_channels(ex, rng):
    width, c, B, h, w, f = (
        integer(rng, low, high) for low, high in ((10, 12), (4, 5), (2, 3), (6, 7), (8, 9), (2, 4))
    )
    weight, x, encode = normal(rng, width, c, 3, 3), normal(rng, B, c, h, w), Encoder(rng, c, f)
    image, mask = picture(rng, B, 3, f * h, f * w), holes(rng, B, f * h, f * w)
    wide, got = pair(call(ex.nine_channels, weight, x, image, mask, encode), "weight and input")
    assert encode.asked == 1, f"encode should be called once; it was called {encode.asked} times"
    none = torch.zeros(width, c + 1, 3, 3)
    right = torch.cat([weight, none], 1)
    wrong = {
        "the old weights should come first, for the noisy latents do: then the zeros": torch.cat([none, weight], 1),
        "the old weights are gone: the network forgets what it can": torch.zeros_like(right),
        "the mask's weights come first; old, then zeros": torch.cat([none[:, :1], weight, none[:, 1:]], 1),
    }
    if isinstance(wide, Tensor) and wide.shape == right.shape:
        assert not torch.equal(wide[:, :c], weight) or not wide[:, c:].any(), (
            "the new weights should be 0: anything else changes at once what the network predicts"
        )
    expect(wide, right, "the weight should be the old one, and then zeros for the c + 1 new channels", wrong)
    half, _ = ex.nine_channels(weight.half(), x, image, mask, encode.look)
    assert half.dtype == torch.float16, (
        f"the new weight should be of the old one's dtype, torch.float16 here, not {half.dtype}"
    )

    small, known, leaked = mask[..., ::f, ::f], encode.look(torch.where(mask > 0, 0.0, image)), encode.look(image)
    pooled, most = F.avg_pool2d(mask, f), F.max_pool2d(mask, f)
    wrong = {
        "the order is x, mask, known; yours is x, known, mask": (x, known, small),
        "the order is x, mask, known; yours is mask, known, x": (small, known, x),
        "the order is x, mask, known; yours is mask, x, known": (small, x, known),
        "the order is x, mask, known; yours is known, mask, x": (known, small, x),
        "the network sees the answer: empty the hole before you encode": (x, small, leaked),
        "you encoded what is in the hole; the network should see what is around it": (
            x,
            small,
            encode.look(image * mask),
        ),
        "the latents were emptied, not the image: 0 is mid-grey in an image, but not in a latent, and the encoder has seen the hole": (
            x,
            small,
            leaked * (1 - small),
        ),
        "the hole was filled with black; it should be mid-grey, 0": (
            x,
            small,
            encode.look(torch.where(mask > 0, -1.0, image)),
        ),
        "the mask has greys in it: F.interpolate takes the nearest pixel if you ask for nothing else": (
            x,
            pooled,
            known,
        ),
        "the mask has greys in it: F.interpolate takes the nearest pixel if you do not ask for bilinear": (
            x,
            F.interpolate(mask, size=(h, w), mode="bilinear"),
            known,
        ),
        "the mask is 1 where any pixel is; for these networks it is F.interpolate's choice of one": (x, most, known),
        "the mask was inverted: 1 is the hole": (x, 1 - small, known),
        "the mask was mapped to [-1, 1]; it stays 0 and 1": (x, 2 * small - 1, known),
    }
    goal = torch.cat([x, small, known], 1)
    wrong = different({message: torch.cat(parts, 1) for message, parts in wrong.items()}, goal)
    expect(got, goal, "the input should be x, the mask, and the latents of the image with mid-grey in the hole", wrong)


# ------------------------------------------------------------------------------------------------------ exercise 5


class Walker:
    """Some function of latent and level. Remembers what it was given."""

    def __init__(self):
        self.x, self.k = [], []

    def look(self, x: Tensor, k: int) -> Tensor:
        return torch.cos(1.3 * x + k) + x / 2

    def __call__(self, x: Tensor, k: int) -> Tensor:
        self.x.append(x.clone())
        self.k.append(k)
        return self.look(x, k)


def levels(rng: torch.Generator, N: int) -> tuple[Tensor, Tensor]:
    """Alpha and sigma along a sampler of N steps, from pure noise to clean, no two steps alike. Each (N + 1,)"""
    angle = torch.cat([torch.zeros(1), (0.3 + torch.rand(N, generator=rng)).cumsum(0)])
    angle = (angle / angle[-1]).flip(0) * math.pi / 2
    alpha, sigma = angle.cos(), angle.sin()
    alpha[0], sigma[0], alpha[-1], sigma[-1] = 0, 1, 1, 0
    return alpha, sigma


def check_repaint_step(ex, rng):
    N = integer(rng, 4, 6)
    for k, U in ((integer(rng, 1, N - 2), integer(rng, 3, 4)), (integer(rng, 1, N - 2), 1), (0, 2), (N - 1, 2)):
        check_resampling(ex, rng, k, U, *levels(rng, N))


def check_resampling(ex, rng, k: int, U: int, alpha: Tensor, sigma: Tensor) -> None:
    shape, walker = (integer(rng, 2, 3), 4, integer(rng, 5, 6), integer(rng, 7, 8)), Walker()
    x, z, eps_known, eps_back = (
        normal(rng, *shape),
        normal(rng, *shape),
        normal(rng, U, *shape),
        normal(rng, U - 1, *shape),
    )
    mask = (torch.rand(shape[0], 1, *shape[2:], generator=rng) < 0.4).float()
    got = call(ex.repaint_step, walker, x, torch.where(mask > 0, NAN, z), mask, k, alpha, sigma, eps_known, eps_back)
    assert not isinstance(got, Tensor) or not got.isnan().any(), (
        "z is NaN in the hole, and 0 times NaN is NaN: choose with torch.where, do not multiply by the mask"
    )
    assert len(walker.k) == U, (
        f"eps_known has {U} noises, so U = {U} and step is called as often; calls made: {len(walker.k)}"
    )
    assert set(walker.k) == {k}, (
        f"step leads from level k to k + 1 each time, so it is called with k = {k}, not {walker.k}"
    )
    expect(walker.x[0], x, "step should be given x as it came")
    for u in range(1, U):
        check_way_up(
            walker.x[u],
            walker.x[u - 1],
            walker,
            z,
            mask,
            k,
            alpha,
            sigma,
            eps_known[u - 1],
            eps_back[u - 1],
            eps_known[0],
        )
    drawn = walker.look(walker.x[-1], k)
    goal = put(drawn, noised(z, eps_known[-1], alpha[k + 1], sigma[k + 1]), mask)
    r = alpha[k] / alpha[k + 1]
    wrong = known_wrongly(drawn, z, mask, k, alpha, sigma, eps_known[-1])
    if U > 1:
        earlier = put(drawn, noised(z, eps_known[0], alpha[k + 1], sigma[k + 1]), mask)
        wrong["the known part has the noise of the first time; take eps_known[u]"] = earlier
        wrong["after the last time it went back up once more; the result is at level k + 1"] = (
            r * goal + (1 - r**2).sqrt() * eps_back[-1]
        )
    expect(
        got,
        goal,
        "this is not step's result in the hole, and the picture at level k + 1 around it",
        different(wrong, goal),
    )
    known = (mask == 0).expand_as(z)
    assert k + 1 < len(alpha) - 1 or torch.equal(got[known], z[known]), (
        "at level N, which is clean, what is known should be exactly z"
    )


def put(hole: Tensor, around: Tensor, mask: Tensor) -> Tensor:
    return mask * hole + (1 - mask) * around


def noised(z: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return a * z + s * eps


def known_wrongly(
    drawn: Tensor, z: Tensor, mask: Tensor, k: int, alpha: Tensor, sigma: Tensor, eps: Tensor
) -> dict[str, Tensor]:
    a, s = alpha[k + 1], sigma[k + 1]
    return {
        "the mask is the wrong way round: 1 is the hole here (in the paper 1 is what is known)": put(
            noised(z, eps, a, s), drawn, mask
        ),
        "the picture was put in without noise; it should be as noisy as level k + 1": put(drawn, z, mask),
        "the picture has the noise of level k, but step(x, k) leads to level k + 1": put(
            drawn, noised(z, eps, alpha[k], sigma[k]), mask
        ),
        "in the known part alpha and sigma are swapped": put(drawn, noised(z, eps, s, a), mask),
        "in the known part, noise was added to the whole of z: it has the factor alpha": put(drawn, z + s * eps, mask),
        "the known part was not put in": drawn,
    }


def check_way_up(got: Tensor, before: Tensor, walker: Walker, z, mask, k, alpha, sigma, eps, back, eps_first) -> None:
    """Did the way up from level k + 1 begin and end as it should? `before` is what step was given the last time."""
    drawn, r, a, s = walker.look(before, k), alpha[k] / alpha[k + 1], alpha[k], sigma[k]
    x, root = put(drawn, noised(z, eps, alpha[k + 1], sigma[k + 1]), mask), (1 - r**2).sqrt()
    goal = r * x + root * back
    wrong = {
        "it did not go back up: the second time should begin at level k again": x,
        "the second time began with the x of the first": before,
        "only the hole went back up to level k; all of x does": put(goal, x, mask),
        "on the way up x was noised as if it were clean, alpha_k x + sigma_k eps": a * x + s * back,
        "on the way up the noise has the factor beta; its root is missing": r * x + root**2 * back,
        "on the way up x has the factor 1 - beta; its root is missing": r**2 * x + root * back,
        "on the way up x was multiplied by 1 - beta and eps by beta; the roots are missing": r**2 * x + root**2 * back,
        "on the way up sigma_k eps is too much noise, for x has some already": r * x + s * back,
        "on the way up x must shrink: it has the factor sqrt(1 - beta)": x + root * back,
        "on the way up x has no new noise: sqrt(beta) eps_back[u]": r * x,
        "on the way up the noise is eps_known; it should be eps_back": r * x + root * eps,
        "the factors of the way up are swapped": root * x + r * back,
    }
    earlier = put(drawn, noised(z, eps_first, alpha[k + 1], sigma[k + 1]), mask)
    wrong["the known part has the noise of the first time; take eps_known[u]"] = r * earlier + root * back
    if r > 0:
        wrong["on the way up alpha_k / alpha_(k+1) is inverted"] = x / r + root * back
    for message, value in known_wrongly(drawn, z, mask, k, alpha, sigma, eps).items():
        wrong[message] = r * value + root * back
    expect(
        got, goal, "the next time should begin with sqrt(1 - beta) x + sqrt(beta) eps_back[u]", different(wrong, goal)
    )


# ------------------------------------------------------------------------------------------------------ exercise 6


def check_zoom_scales(ex, rng):
    for first, last in ((uniform(rng, 0.5, 1), uniform(rng, 3, 6)), (uniform(rng, 3, 6), uniform(rng, 0.5, 1))):
        frames = integer(rng, 30, 41)
        check_one_zoom(ex, frames, first, last, uniform(rng, 0.15, 0.35))
    check_one_zoom(ex, integer(rng, 9, 12), 1.0, 3.0, 0.5)
    expect(
        call(ex.zoom_scales, 2, 1.5, 4.0, 0.3),
        torch.tensor([1.5, 4.0]),
        "of two frames, the first has scale first, and the second last",
    )


def eased(t: Tensor, part: float) -> Tensor:
    """The speed, added up: it grows to v, stays, and falls."""
    v = 1 / (1 - part)
    low, high = t.clamp(max=part), (t - (1 - part)).clamp(min=0)
    return v * (low**2 / (2 * part) + (t.clamp(part, 1 - part) - part) + high - high**2 / (2 * part))


def check_one_zoom(ex, frames: int, first: float, last: float, part: float) -> None:
    t = torch.linspace(0, 1, frames)
    s, v, ratio = eased(t, part), 1 / (1 - part), last / first
    fast, near = v * (t - part / 2), torch.minimum(t, 1 - t)
    double = torch.where(near < part, v * near**2 / part, v * (near - part / 2))
    ahead = torch.where(near < part, v * near**2 / (2 * part), v * near)
    double, ahead = (torch.where(t > 0.5, 1 - half, half) for half in (double, ahead))
    there = torch.minimum(s, 1 - s)
    wrong = {
        "the scale itself grows by equal amounts, which looks slower and slower: it should grow by equal factors": first
        + (last - first) * s,
        "the ends are not eased, and the scale grows by equal amounts": first + (last - first) * t,
        "the ends are not eased: s should start slowly": first * ratio**t,
        "this is 3t^2 - 2t^3, which has no constant speed anywhere": first * ratio ** (t * t * (3 - 2 * t)),
        "last / first is inverted": first / ratio**s,
        "it begins with last and ends with first": last / ratio**s,
        "things grow by equal amounts (1 / scale); the scale should grow by equal factors": 1
        / (1 / first + (1 / last - 1 / first) * s),
        "the last frame does not arrive: it has number n - 1, so t = k / (n - 1)": first
        * ratio ** eased(torch.arange(frames) / frames, part),
        "it goes back in the second half: s(t) = 1 - s(1 - t) there": first * ratio**there,
        "only the beginning is eased: it should end gently, too, and at last": first
        * ratio ** torch.where(t < part, s, fast),
        "v is missing, so the two halves do not meet": first * ratio ** torch.where(t > 0.5, 1 - there / v, there / v),
        "a 2 is missing where it gets faster, v t^2 / (2 part): it jumps where the constant speed begins": first
        * ratio**double,
        "where the speed is constant, part / 2 is missing: s(t) = v (t - part / 2)": first * ratio**ahead,
    }
    got, goal = call(ex.zoom_scales, frames, first, last, part), first * ratio**s
    assert not isinstance(got, Tensor) or torch.isfinite(got).all(), "your result holds NaN or infinity"
    hint = f"from scale {first:.3g} to {last:.3g} in {frames} frames with part = {part:.3g}, these are not the scales"
    expect(got, goal, hint, different(wrong, goal))


# ------------------------------------------------------------------------------------------------------ exercise 7


def check_looped(ex, rng):
    T, size = integer(rng, 9, 12), (3, integer(rng, 2, 3), integer(rng, 4, 5))
    shot = normal(rng, T, *size)
    check_pingpong(ex, shot, 0)
    check_pingpong(ex, shot[: integer(rng, 2, 3)], 1)
    for m in (integer(rng, 2, 3), 1, T // 2):
        check_seamless(ex, shot, m)
    check_seamless(ex, shot[:8], 4)  # no frame as it was shot


def expect_film(got: object, right: Tensor, hint: str, wrong: dict[str, Tensor]) -> None:
    """A film of another length may be a well-known one, too."""
    assert isinstance(got, Tensor), f"a tensor was expected here, not {type(got).__name__}: is a `return` missing?"
    wrong = different(wrong, right)
    if got.shape != right.shape:
        for message, value in wrong.items():
            assert not close(got, value), message
        assert got.shape[1:] != right.shape[1:], f"the film should have {len(right)} frames, not {len(got)}"
    expect(got, right, hint, wrong)


def check_pingpong(ex, shot: Tensor, m: int) -> None:
    back = shot.flip(0)
    expect_film(
        call(ex.looped, shot, "pingpong", m),
        torch.cat([shot, back[1:-1]]),
        "there and back should be 0 1 ... T - 1 ... 2 1",
        {
            "both ends stand still: T - 1 comes twice, and after the last 0 comes 0 again": torch.cat([shot, back]),
            "the first frame is shown twice, at the end and when it begins again": torch.cat([shot, back[1:]]),
            "the last frame is shown twice, on the way there and on the way back": torch.cat([shot, back[:-1]]),
            "one frame too few on the way back": torch.cat([shot, back[1:-2]]),
            "the way back goes the wrong way": torch.cat([shot, shot[1:-1]]),
            "there is no way back": shot,
        },
    )


def check_seamless(ex, shot: Tensor, m: int) -> None:
    n = len(shot) - m
    as_shot, out, into = shot[m:n], shot[n:], shot[:m]

    def dissolve(w: Tensor, out: Tensor = out, into: Tensor = into) -> Tensor:
        w = w.view(-1, 1, 1, 1)
        return out + w * (into - out)

    w = torch.arange(1, m + 1) / (m + 1)
    goal = torch.cat([as_shot, dissolve(w)])
    later = {
        "the dissolve goes the wrong way: the end goes out and the beginning comes in": dissolve(1 - w),
        "w begins with 0: the first of the dissolve is nothing but the end": dissolve(torch.arange(m) / m),
        "w begins with 0 and ends with 1: in its first and last frame nothing dissolves": dissolve(
            torch.linspace(0, 1, m)
        ),
        "w ends with 1: the last of the dissolve is nothing but the beginning": dissolve(torch.arange(1, m + 1) / m),
        "w is one half all the time; it should grow": dissolve(torch.full((m,), 0.5)),
        "there is no dissolve: the film goes on to the end of the shot, and there it is cut": out,
        "the beginning comes in backwards: shot[n + k] and shot[k] belong together": dissolve(w, into=into.flip(0)),
        "the beginning stands still while it comes in: shot[k] moves on": dissolve(w, into=shot[m : m + 1]),
        "the end stands still while it goes out: shot[n + k] moves on": dissolve(w, out=shot[n : n + 1]),
    }
    wrong = {message: torch.cat([as_shot, value]) for message, value in later.items()}
    wrong |= {
        "the dissolve comes first; it should come last": torch.cat([dissolve(w), as_shot]),
        "there is no dissolve: a cut from the last frame to the first": shot[:n],
        "the film begins with shot[0], but that has been used in the dissolve: begin with shot[m]": torch.cat(
            [shot[:n], dissolve(w)]
        ),
    }
    hint = (
        f"of {len(shot)} frames with a dissolve of {m}, this is not shot[{m}] to shot[{n - 1}] and then the dissolve"
    )
    expect_film(call(ex.looped, shot, "seamless", m), goal, hint, wrong)


# ------------------------------------------------------------------------------------------------------ exercise 8


def check_one_palette(ex, rng):
    frames, palette = frames_and_palette(rng)
    while rounding_decides(frames, palette, rounds=3):
        frames, palette = frames_and_palette(rng)
    for rounds in (0, 1, integer(rng, 2, 3)):
        check_one_choice(ex, frames, palette, rounds)


def frames_and_palette(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Frames around some colours, and a palette to begin with. (N, 3, H, W) uint8, (K + 1, 3)"""
    N, H, W, K = integer(rng, 3, 4), integer(rng, 12, 13), integer(rng, 14, 15), integer(rng, 5, 6)
    middle = 140 + 90 * torch.rand(K, 3, generator=rng)
    frames = torch.stack([clustered(rng, middle, H, W, shift) for shift in torch.linspace(-12, 12, N)])
    lonely = 25 * torch.rand(1, 3, generator=rng)  # nearly black, far from every pixel
    palette = torch.cat([middle + 20 * normal(rng, K, 3), lonely])
    return frames, palette[torch.randperm(K + 1, generator=rng)]


def rounding_decides(frames: Tensor, palette: Tensor, rounds: int) -> bool:
    """Whether some pixel is about as near to two colours in one of the rounds, so that it may be given to either."""
    pixels = frames.movedim(1, -1).reshape(-1, 3).float()
    for _ in range(rounds + 1):
        squares = gaps(pixels, palette).square().sum(2)
        nearest, second = squares.topk(2, dim=1, largest=False).values.unbind(1)
        if (second - nearest < 0.5).any():  # torch.cdist errs by about 0.05 in these
            return True
        palette = moved_to_means(pixels, palette, squares.argmin(1))
    return False


def clustered(rng: torch.Generator, middle: Tensor, H: int, W: int, shift: float) -> Tensor:
    """A frame whose pixels lie around some colours; some of them come twice and more. (3, H, W) uint8"""
    owner = torch.randint(len(middle), (H, W), generator=rng)
    pixels = (middle + shift)[owner] + 20 * normal(rng, H, W, 3)
    pixels[: H // 3] = pixels[0, 0]
    return pixels.clamp(110, 255).to(torch.uint8).movedim(-1, 0)


def gaps(pixels: Tensor, palette: Tensor) -> Tensor:
    """The differences. (P, K, 3)"""
    return pixels[:, None] - palette


def moved_to_means(pixels: Tensor, palette: Tensor, owner: Tensor, empty: Tensor | None = None) -> Tensor:
    belongs = F.one_hot(owner, len(palette)).double()
    count = belongs.sum(0)[:, None]
    means = belongs.T @ pixels.double() / count.clamp(min=1)
    return torch.where(count > 0, means, (palette if empty is None else empty).double()).float()


def means(pixels: Tensor, palette: Tensor, rounds: int) -> Tensor:
    for _ in range(rounds):
        palette = moved_to_means(pixels, palette, gaps(pixels, palette).square().sum(2).argmin(1))
    return palette


def check_one_choice(ex, frames: Tensor, palette: Tensor, rounds: int) -> None:
    pixels, each = (
        frames.movedim(1, -1).reshape(-1, 3).float(),
        [frame.movedim(0, -1).reshape(-1, 3).float() for frame in frames],
    )
    got, index = pair(call(ex.one_palette, frames, palette, rounds), "the palette and the numbers")
    goal = means(pixels, palette, rounds)
    first = gaps(pixels, palette).square().sum(2).argmin(1)
    wrong = {
        "the palette stayed as it was": palette,
        "in each round the pixels must look for the nearest colour anew (or is a round missing?)": moved_to_means(
            pixels, palette, first
        ),
        "that is one round too few": means(pixels, palette, max(0, rounds - 1)),
        "that is one round too many": means(pixels, palette, rounds + 1),
        "this is the first frame's own palette; it should be one for all": means(each[0], palette, rounds),
        "this is the last frame's own palette; it should be one for all": means(each[-1], palette, rounds),
        "a colour that occurs twice should count twice: it is the mean over pixels": means(
            pixels.unique(dim=0), palette, rounds
        ),
        "a colour that no pixel belongs to became 0; it should stay as it is": goal
        * first.bincount(minlength=len(palette)).gt(0)[:, None],
        "red, green and blue were mixed up: they are on axis 1, and frames.reshape(-1, 3) makes pixels of three neighbours": (
            means(frames.reshape(-1, 3).float(), palette, rounds)
        ),
        "the palette was rounded": goal.round(),
    }
    if isinstance(got, Tensor) and got.shape == palette.shape:
        assert not got.isnan().any(), (
            "a colour that no pixel belongs to became NaN, the mean of nothing; it should stay as it is"
        )
    wrong = {message: value for message, value in wrong.items() if not close(value, goal, 0.1)}
    expect(got, goal, f"after {rounds} rounds this is not the palette", wrong, atol=0.1)
    check_numbers(index, frames, pixels, got, palette, first)


def check_numbers(
    index: object, frames: Tensor, pixels: Tensor, palette: Tensor, before: Tensor, first: Tensor
) -> None:
    """Either of two colours that are nearly as near is accepted."""
    shape, distance = (len(frames), *frames.shape[2:]), gaps(pixels, palette)
    right = distance.square().sum(2).argmin(1)
    squares, known = distance.square().sum(2), range(len(palette))
    if (
        isinstance(index, Tensor)
        and index.shape == shape
        and index.dtype == torch.int64
        and int(index.min()) in known
        and int(index.max()) in known
    ):
        chosen = squares.gather(1, index.reshape(-1, 1))[:, 0]
        if (chosen <= squares.amin(1) + 1).all():
            return
    mixed = frames.reshape(-1, 3).float()
    wrong = {
        "this is the farthest colour": distance.square().sum(2).argmax(1),
        "red, green and blue were mixed up: they are on axis 1, and frames.reshape(-1, 3) makes pixels of three neighbours": (
            gaps(mixed, palette).square().sum(2).argmin(1)
        ),
        "this is the nearest in red alone": distance[..., 0].abs().argmin(1),
        "the differences were added with their signs: square them": distance.sum(2).argmin(1),
        "this is the nearest in brightness; all three of red, green and blue should be near": distance.sum(2)
        .abs()
        .argmin(1),
        "this uses the largest of the three differences; it is the sum of their squares": distance.abs()
        .amax(2)
        .argmin(1),
        "the differences themselves were added; it is their squares": distance.abs().sum(2).argmin(1),
        "the numbers are those of the palette before its last move: look for the nearest once more": first,
    }
    wrong = {message: value.view(shape) for message, value in wrong.items() if not torch.equal(value, right)}
    expect(
        index,
        right.view(shape),
        "these are not the numbers of the nearest colours of the palette that you return",
        wrong,
    )


# ------------------------------------------------------------------------------------------------ exercises 9 and 10


def check_name_weight(ex, rng):
    N, d, zeros = integer(rng, 4, 6), integer(rng, 5, 9), integer(rng, 2, 5)
    q, k = 3 * normal(rng, N, d), normal(rng, d)
    for number in (zeros, 1):
        a = (q @ k / math.sqrt(d)).requires_grad_()
        tokens = torch.cat([a[:, None], torch.zeros(N, number)], 1)
        goal = tokens.softmax(1)[:, 0]
        (slope,) = torch.autograd.grad(goal.sum(), a)
        goal, a = goal.detach(), a.detach()
        w, dw = pair(call(ex.name_weight, q, k, number), "w and dw/da")
        wrong = {
            "a is q . k / sqrt(d); the root of d is missing": torch.sigmoid(q @ k - math.log(number)),
            "a is q . k / sqrt(d), and you divided by d": torch.sigmoid(q @ k / d - math.log(number)),
            "each of the zero tokens takes its share: e^a / (e^a + zeros)": torch.sigmoid(a),
            "this is the weight of the zero tokens": 1 - goal,
            "zeros counts once as a logarithm: e^a / (e^a + zeros) = sigmoid(a - log zeros)": torch.sigmoid(
                a - number
            ),
            "the sign of log zeros is wrong: more zero tokens leave less for the name": torch.sigmoid(
                a + math.log(number)
            ),
        }
        expect(w, goal, f"this is not the weight of the name beside {number} zero tokens", different(wrong, goal))
        wrong = {
            "this is the derivative by q . k; a is q . k / sqrt(d)": slope / math.sqrt(d),
            "the derivative of a sigmoid is w (1 - w)": goal**2,
            "the sign of the derivative is wrong": -slope,
            "this is the derivative without the zero tokens' number": torch.sigmoid(a) * (1 - torch.sigmoid(a)),
        }
        expect(dw, slope, "this is not dw/da", different(wrong, slope))
    far = torch.tensor([[500.0] + [0.0] * (d - 1), [-500.0] + [0.0] * (d - 1)])
    w, dw = pair(ex.name_weight(far, torch.eye(d)[0], zeros), "w and dw/da")
    assert w.isfinite().all() and dw.isfinite().all(), (
        "with large products q . k the result is not finite: use torch.sigmoid"
    )
    expect(w, torch.tensor([1.0, 0.0]), "with large products the weight goes to 1 and to 0")


def check_ideal_inpainting(ex, rng):
    n, B = integer(rng, 5, 8), integer(rng, 3, 5)
    root = normal(rng, n, n) + 1.5 * torch.eye(n)
    hole = torch.zeros(n, dtype=torch.bool)
    hole[torch.randperm(n, generator=rng)[: integer(rng, 1, n - 2)]] = True
    public.check_conditional(ex, normal(rng, B, n - int(hole.sum())), root @ root.T, hole)


# ------------------------------------------------------------------------------------------- exercises 11 to 14


def check_fix_outpainting(ex, rng):
    H, W, dx, n = integer(rng, 3, 5), integer(rng, 9, 11), integer(rng, 1, 3), integer(rng, 3, 4)
    image, fill = picture(rng, 3, H, W), uniform(rng, 0.2, 0.5)

    def paint(moved: Tensor, mask: Tensor) -> Tensor:
        blurred = (moved + moved.roll(1, 2) + moved.roll(-1, 2)) / 3  # as an autoencoder does
        return torch.where(mask > 0, blurred.mean() + fill, blurred)

    hint = "each keyframe should be the painter's output in the hole, and what was seen before everywhere else"
    mistakes = public.outpainting_mistakes(paint, image, dx, n)
    expect(call(ex.fix_outpainting, paint, image, dx, n), right.fix_outpainting(paint, image, dx, n), hint, mistakes)


def check_fix_candidates(ex, rng):
    """The longest embedding is not the nearest one, nor is the nearest one the first."""
    D, N = integer(rng, 4, 6), integer(rng, 3, 5)
    text = normal(rng, D)
    cosine = torch.linspace(0.3, 0.9, N)[torch.randperm(N, generator=rng)]
    along, across = text / text.norm(), normal(rng, N, D)
    across = F.normalize(across - (across @ along)[:, None] * along, dim=1)
    embeddings = cosine[:, None] * along + (1 - cosine**2).sqrt()[:, None] * across
    embeddings = embeddings * (1 / cosine**3)[:, None]  # the farther, the longer
    public.check_choice(ex, embeddings, text)
    far = 1 + 30.0 * (torch.arange(N) == cosine.argmax())[:, None]  # the nearest direction is far away
    public.check_choice(ex, F.normalize(embeddings, dim=1) * far, along)
    public.check_choice(ex, normal(rng, N, D) * (0.2 + 3 * torch.rand(N, 1, generator=rng)), normal(rng, D))


def check_fix_zoom(ex, rng):
    scales = [1.0, uniform(rng, 0.2, 0.8), uniform(rng, 1.2, 3)]
    public.check_zoom(ex, integer(rng, 6, 9), integer(rng, 8, 12), scales)


def check_fix_regions(ex, rng):
    B, C, h, w = integer(rng, 2, 3), integer(rng, 2, 4), integer(rng, 4, 5), integer(rng, 6, 7)
    x, level = normal(rng, B, C, h, w), make_level(ex, 0.6, 0.8, right.Level)
    parts_of, predictions = [], []
    for _ in range(integer(rng, 2, 3)):
        predicted = normal(rng, B, C, h, w), normal(rng, B, C, h, w)
        weight = (torch.rand(1, 1, h, w, generator=rng) - 0.3).clamp(0, 1) + 0.05
        predictions.append((*predicted, weight))
        parts_of.append((lambda x, level, predicted=predicted: predicted, weight))
    total = sum(weight for *_, weight in predictions)
    goal = [sum(weight * p[k] for *p, weight in predictions) / total for k in (0, 1)]
    x0, eps = pair(call(ex.fix_regions, parts_of, x, level), "x0 and eps")
    for got, right_one, name in ((x0, goal[0], "x0"), (eps, goal[1], "eps")):
        wrong = {
            f"the {name} of overlapping regions is added, not averaged: divide by the sum of the weights": right_one
            * total,
            f"{name} is the plain mean; each region counts with its weight": sum(
                p[name != "x0"] for *p, _ in predictions
            )
            / len(predictions),
            "x0 and eps are swapped": goal[name == "x0"],
        }
        expect(got, right_one, f"{name} should be the mean of the predictions with the weights of the regions", wrong)


# --------------------------------------------------------------------------------------------- exercises 15 and 16


def check_own_move(ex, rng):
    public.check_own_move(ex.own_move, integer(rng, 40, 80))


def check_fill_the_hole(ex, rng):
    first, n = integer(rng, 8, 20), integer(rng, 44, 52)
    data = public.Curves(n, first, first + integer(rng, 15, 19), seed=integer(rng, 1, 10**6))
    public.check_filling(ex.fill_the_hole, data)


EXERCISES = [
    Exercise("camera_move", 2, check_camera_move),
    Exercise("composite", 2, check_composite),
    Exercise("clip_loss", 3, check_clip_loss),
    Exercise("nine_channels", 2, check_nine_channels),
    Exercise("repaint_step", 4, check_repaint_step),
    Exercise("zoom_scales", 2, check_zoom_scales),
    Exercise("looped", 2, check_looped),
    Exercise("one_palette", 3, check_one_palette),
    Exercise("name_weight", 2, check_name_weight),
    Exercise("ideal_inpainting", 4, check_ideal_inpainting),
    Exercise("fix_outpainting", 2, check_fix_outpainting),
    Exercise("fix_candidates", 2, check_fix_candidates, rounds=2),
    Exercise("fix_zoom", 2, check_fix_zoom),
    Exercise("fix_regions", 2, check_fix_regions),
    Exercise("own_move", 4, check_own_move, goal=True),
    Exercise("fill_the_hole", 4, check_fill_the_hole, goal=True, covers_public=True),
]
