# ruff: noqa: F811 - the same function is got wrong again and again
"""Classic mistakes of chapter 6, each a small replacement of one function of the solutions.

`@mistake(what, says)`: the exercise it belongs to is the function's name;
`says` must stand in the message that the grader gives.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt

from common.grade.checks import load
from helpers.mistake_bank import Bank

COURSE = Path(__file__).resolve().parents[3]
solutions = load(COURSE / "06_inpaint_gif/exercises/solutions.py", "solutions_with_mistakes")
move_rightly, mix_rightly, loss_rightly, widen_rightly = (
    solutions.camera_move,
    solutions.composite,
    solutions.clip_loss,
    solutions.nine_channels,
)
fill_rightly = solutions.fill_the_hole
zoom_rightly, loop_rightly, choose_rightly = solutions.zoom_scales, solutions.looped, solutions.one_palette
bank = Bank()
mistake, another_way = bank.mistake, bank.another_way
MISTAKES, OTHER_WAYS = bank.MISTAKES, bank.OTHER_WAYS


# ------------------------------------------------------------------------------------------------ 1. camera_move


@mistake("the picture moved with the camera", "the picture moved the way the camera goes")
def camera_move(image, dx, dy):
    return move_rightly(image, -dx, -dy)


@mistake("y points up", "y points down")
def camera_move(image, dx, dy):
    return move_rightly(image, dx, -dy)


@mistake("rows and columns swapped", "dx moved the rows")
def camera_move(image, dx, dy):
    return move_rightly(image, dy, dx)


@mistake("torch.roll", "came in at the other")
def camera_move(image, dx, dy):
    return image.roll((-dy, -dx), (1, 2)), move_rightly(image, dx, dy)[1]


@mistake("the edge goes on into the hole", "the edge goes on")
def camera_move(image, dx, dy):
    _, H, W = image.shape
    y, x = (torch.arange(H) + dy).clamp(0, H - 1), (torch.arange(W) + dx).clamp(0, W - 1)
    return image[:, y[:, None], x], move_rightly(image, dx, dy)[1]


@mistake("black in the hole", "it should be 0, mid-grey")
def camera_move(image, dx, dy):
    moved, mask = move_rightly(image, dx, dy)
    return moved - mask, mask


@mistake("NaN in the hole", "holds NaN")
def camera_move(image, dx, dy):
    moved, mask = move_rightly(image, dx, dy)
    return moved.masked_fill(mask > 0, math.nan), mask


@mistake("the mask black in the hole", "the mask is the wrong way round")
def camera_move(image, dx, dy):
    moved, mask = move_rightly(image, dx, dy)
    return moved, 1 - mask


@mistake("the mask read off the picture", "mid-grey itself is taken for a hole")
def camera_move(image, dx, dy):
    moved, _ = move_rightly(image, dx, dy)
    return moved, (moved == 0).all(0, keepdim=True).float()


@mistake("a mask for each channel", "the shape should be (1, 3, 4)")
def camera_move(image, dx, dy):
    moved, mask = move_rightly(image, dx, dy)
    return moved, mask.expand_as(moved)


@mistake("a mask of booleans", "the type should be torch.float32, not torch.bool")
def camera_move(image, dx, dy):
    moved, mask = move_rightly(image, dx, dy)
    return moved, mask > 0


@mistake("only what is new in both directions", "the mask should be 1 where the picture has no pixel")
def camera_move(image, dx, dy):
    moved, mask = move_rightly(image, dx, dy)
    rows, columns = move_rightly(image, 0, dy)[1], move_rightly(image, dx, 0)[1]
    return moved, rows * columns if dx and dy else mask


@mistake(
    "a strip at the right and at the bottom, wherever the camera goes",
    "the mask should be 1 where the picture has no pixel",
)
def camera_move(image, dx, dy):
    moved, _ = move_rightly(image, dx, dy)
    return moved, move_rightly(image, abs(dx), abs(dy))[1]


@mistake(
    "slices that do not end before the picture does", "sees nothing of the picture; your code stops with RuntimeError"
)
def camera_move(image, dx, dy):
    _, H, W = image.shape
    moved, mask = torch.zeros_like(image), torch.ones(1, H, W)
    to = slice(max(0, -dy), H - max(0, dy)), slice(max(0, -dx), W - max(0, dx))
    of = slice(max(0, dy), H - max(0, -dy)), slice(max(0, dx), W - max(0, -dx))
    moved[:, *to] = image[:, *of]
    mask[:, *to] = 0
    return moved, mask


@mistake("only the picture, no mask", "two values were expected")
def camera_move(image, dx, dy):
    return move_rightly(image, dx, dy)[0]


@mistake("the picture that was lent is overwritten", "changes its argument image")
def camera_move(image, dx, dy):
    moved, mask = move_rightly(image, dx, dy)
    image.copy_(moved)
    return moved, mask


@another_way("pasted into a larger picture")
def camera_move(image, dx, dy):
    C, H, W = image.shape
    dx, dy = max(-W, min(W, dx)), max(-H, min(H, dy))
    large, white = torch.zeros(C, 3 * H, 3 * W), torch.ones(1, 3 * H, 3 * W)
    large[:, H : 2 * H, W : 2 * W], white[:, H : 2 * H, W : 2 * W] = image, 0
    return large[:, H + dy : 2 * H + dy, W + dx : 2 * W + dx], white[:, H + dy : 2 * H + dy, W + dx : 2 * W + dx]


@another_way("rolled, and then emptied")
def camera_move(image, dx, dy):
    _, H, W = image.shape
    mask = torch.ones(1, H, W)
    mask[:, max(0, -dy) : max(0, H - dy), max(0, -dx) : max(0, W - dx)] = 0
    return torch.where(mask > 0, 0.0, image.roll((-dy, -dx), (1, 2))), mask


# -------------------------------------------------------------------------------------------------- 2. composite


def depth_of(mask):
    return torch.from_numpy(distance_transform_edt(mask[0].numpy())).float()


def mixed(original, painted, soft):
    return original + soft * (painted - original)


def smeared(mask, radius):
    """Blurred on both sides: a mean over a square."""
    r = max(1, round(radius))
    return F.avg_pool2d(F.pad(mask[None], (r, r, r, r), mode="replicate"), 2 * r + 1, 1)[0]


@mistake("a blurred mask, which is soft on both sides", "known pixels changed")
def composite(original, painted, mask, radius):
    return mixed(original, painted, smeared(mask, radius))


@mistake("a blurred mask, cut off at the edge of the hole", "which is still a jump")
def composite(original, painted, mask, radius):
    return torch.where(mask > 0, mixed(original, painted, smeared(mask, radius)), original)


@mistake("a hard edge", "the edge is hard")
def composite(original, painted, mask, radius):
    return torch.where(mask > 0, painted, original)


@mistake("the soft edge around the hole", "the soft edge lies on the known side")
def composite(original, painted, mask, radius):
    return mixed(original, painted, (1 - depth_of(1 - mask) / (radius + 1)).clamp(min=0))


@mistake("original and painted swapped", "original and painted are swapped")
def composite(original, painted, mask, radius):
    return mix_rightly(painted, original, mask, radius)


@mistake("the mask for what is known", "the mask is the wrong way round")
def composite(original, painted, mask, radius):
    return mixed(original, painted, (depth_of(1 - mask) / (radius + 1)).clamp(max=1))


@mistake("divided by radius alone", "you divided by radius")
def composite(original, painted, mask, radius):
    soft = (depth_of(mask) / radius).clamp(max=1) if radius else mask
    return torch.where(mask > 0, mixed(original, painted, soft), original)


@mistake("soft above 1", "soft goes on above 1")
def composite(original, painted, mask, radius):
    return torch.where(mask > 0, mixed(original, painted, depth_of(mask) / (radius + 1)), original)


@mistake("the outermost pixels not painted at all", "depth begins with 1, not with 0")
def composite(original, painted, mask, radius):
    soft = ((depth_of(mask) - 1) / (radius + 1)).clamp(0, 1)
    return torch.where(mask > 0, mixed(original, painted, soft), original)


@mistake("depth in steps along rows and columns only, in a corner too little", "the depths in a hole of 5 x 5")
def composite(original, painted, mask, radius):
    across = torch.stack(
        [torch.from_numpy(distance_transform_edt(line.numpy())) for line in F.pad(mask[0], (1, 0), value=0)]
    ).float()[:, 1:]
    return torch.where(mask > 0, mixed(original, painted, (across / (radius + 1)).clamp(max=1)), original)


@mistake("computed, so that NaN shows through", "0 times NaN is NaN")
def composite(original, painted, mask, radius):
    return mixed(original, painted, (depth_of(mask) / (radius + 1)).clamp(max=1))


@mistake("computed the other way round, so that the last bits go", "not to the last bit")
def composite(original, painted, mask, radius):
    soft = (depth_of(mask) / (radius + 1)).clamp(max=1)
    return painted.nan_to_num(0) + (1 - soft) * (original - painted.nan_to_num(0))


@mistake("the original by way of bytes and half a grey level", "known pixels changed")
def composite(original, painted, mask, radius):
    result = mix_rightly(original, painted, mask, radius)
    return ((result * 127.5 + 0.25).round() / 127.5).where(mask == 0, result)


@mistake("nothing painted", "this is the original, all of it")
def composite(original, painted, mask, radius):
    return original.clone()


@mistake("the original that was lent is overwritten", "changes its argument original")
def composite(original, painted, mask, radius):
    return original.copy_(mix_rightly(original, painted, mask, radius)).clone()


@another_way("lerp, and the known pixels copied")
def composite(original, painted, mask, radius):
    soft = torch.clamp(depth_of(mask) / (1 + radius), 0, 1).expand_as(original)
    hole, result = (mask == 1).expand_as(original), original.clone()
    result[hole] = torch.lerp(original[hole], painted[hole], soft[hole])
    return result


@another_way("painted emptied first")
def composite(original, painted, mask, radius):
    soft = torch.minimum(depth_of(mask) / (radius + 1), torch.tensor(1.0))
    return (1 - soft) * original + soft * torch.where(mask == 1, painted, 0.0)


# -------------------------------------------------------------------------------------------------- 3. clip_loss


def cosines(images, texts):
    return F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T


def contrast(L, dish, rows=0.5, minus=1.0, divide=True):
    """The loss of logits, with room for mistakes."""
    same = (dish[:, None] == dish).float()
    share = same / same.sum(1, keepdim=True) if divide else same
    both = rows * F.cross_entropy(L, share) + (1 - rows) * F.cross_entropy(L.T, share)
    return both - minus * same.sum(1).log().mean()


@mistake("images to texts only", "only images look for their texts")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(logit_scale.exp() * cosines(images, texts), dish, rows=1)


@mistake("texts to images only", "only texts look for their images")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(logit_scale.exp() * cosines(images, texts), dish, rows=0)


@mistake("both sides added", "twice as large")
def clip_loss(images, texts, dish, logit_scale):
    return 2 * loss_rightly(images, texts, dish, logit_scale)


@mistake("summed over the batch", "twice as large")
def clip_loss(images, texts, dish, logit_scale):
    return len(images) * loss_rightly(images, texts, dish, logit_scale)


@mistake("one loss for each pair", "one number was expected for the whole batch")
def clip_loss(images, texts, dish, logit_scale):
    return loss_rightly(images, texts, dish, logit_scale).expand(len(images))


@mistake("logit_scale taken for the factor", "it is a logarithm")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(logit_scale * cosines(images, texts), dish)


@mistake("divided by exp(logit_scale)", "that is one over the temperature already")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(cosines(images, texts) / logit_scale.exp(), dish)


@mistake("divided by logit_scale, as if it were the temperature", "the cosines were divided by logit_scale")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(cosines(images, texts) / logit_scale, dish)


@mistake("no temperature", "the temperature is missing")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(cosines(images, texts), dish)


@mistake("products instead of cosines", "not cosines")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(logit_scale.exp() * images @ texts.T, dish)


@mistake("only the images normalised", "only the images were made unit vectors")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(logit_scale.exp() * F.normalize(images, dim=1) @ texts.T, dish)


@mistake("only the texts normalised", "only the texts were made unit vectors")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(logit_scale.exp() * images @ F.normalize(texts, dim=1).T, dish)


@mistake("normalised along the batch", "images are right by 5 and 1")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(logit_scale.exp() * F.normalize(images, dim=0) @ F.normalize(texts, dim=0).T, dish)


@mistake("the sign", "the sign is wrong")
def clip_loss(images, texts, dish, logit_scale):
    return -loss_rightly(images, texts, dish, logit_scale)


@mistake("CLIP's own labels, 0 to B - 1", "but two pairs are of the same dish")
def clip_loss(images, texts, dish, logit_scale):
    L, labels = logit_scale.exp() * cosines(images, texts), torch.arange(len(images))
    return (F.cross_entropy(L, labels) + F.cross_entropy(L.T, labels)) / 2


@mistake("the dishes taken for labels", "not which column of L is right")
def clip_loss(images, texts, dish, logit_scale):
    L = logit_scale.exp() * cosines(images, texts)
    return (F.cross_entropy(L, dish) + F.cross_entropy(L.T, dish)) / 2


@mistake("without the last term", "- log |P_i| is missing")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(logit_scale.exp() * cosines(images, texts), dish, minus=0)


@mistake("ones instead of shares", "the shares do not sum to 1: divide by |P_i|")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(logit_scale.exp() * cosines(images, texts), dish, divide=False)


@mistake("ones instead of shares, and no last term", "the shares do not sum to 1 (divide by |P_i|)")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(logit_scale.exp() * cosines(images, texts), dish, minus=0, divide=False)


@mistake("the logarithm of the sum", "the logarithm of the sum of the p that are right")
def clip_loss(images, texts, dish, logit_scale):
    L, same = logit_scale.exp() * cosines(images, texts), dish[:, None] == dish
    return -sum((each.softmax(1) * same).sum(1).log().mean() for each in (L, L.T)) / 2


@mistake("a temperature that is not learned", "no gradient reaches logit_scale")
def clip_loss(images, texts, dish, logit_scale):
    return contrast(math.exp(logit_scale.item()) * cosines(images, texts), dish)


@mistake("computed without gradients", "no gradient reaches the networks")
@torch.no_grad()
def clip_loss(images, texts, dish, logit_scale):
    return loss_rightly(images, texts, dish, logit_scale)


@another_way("log_softmax along both axes")
def clip_loss(images, texts, dish, logit_scale):
    a, b = images / images.norm(dim=-1, keepdim=True), texts / texts.norm(dim=-1, keepdim=True)
    L = torch.einsum("id,jd->ij", a, b) * torch.exp(logit_scale)
    same = dish.unsqueeze(0) == dish.unsqueeze(1)
    n = same.sum(0)
    rows = -(L.log_softmax(1) * same).sum(1) / n - n.log()
    columns = -(L.log_softmax(0) * same).sum(0) / n - n.log()
    return torch.cat([rows, columns]).mean()


# ---------------------------------------------------------------------------------------------- 4. nine_channels


@mistake("new weights drawn at random", "the new weights should be 0")
def nine_channels(weight, x, image, mask, encode):
    wide, shown = widen_rightly(weight, x, image, mask, encode)
    wide[:, weight.shape[1] :] = 0.01 * torch.randn_like(wide[:, weight.shape[1] :])
    return wide, shown


@mistake("old weights for the known latents as well", "the new weights should be 0")
def nine_channels(weight, x, image, mask, encode):
    return torch.cat([weight, 0 * weight[:, :1], weight], 1), widen_rightly(weight, x, image, mask, encode)[1]


@mistake("old weights last", "the old weights should come first")
def nine_channels(weight, x, image, mask, encode):
    wide, shown = widen_rightly(weight, x, image, mask, encode)
    return wide.roll(-weight.shape[1], 1), shown


@mistake("the mask's weights first", "the mask's weights come first")
def nine_channels(weight, x, image, mask, encode):
    wide, shown = widen_rightly(weight, x, image, mask, encode)
    return torch.cat([wide[:, -1:], wide[:, :-1]], 1), shown


@mistake("all weights zero", "the old weights are gone")
def nine_channels(weight, x, image, mask, encode):
    wide, shown = widen_rightly(weight, x, image, mask, encode)
    return 0 * wide, shown


@mistake("widened along the wrong axis", "the shape should be (6, 5, 3, 3)")
def nine_channels(weight, x, image, mask, encode):
    shown = widen_rightly(weight, x, image, mask, encode)[1]
    return torch.cat([weight, weight.new_zeros(1 + weight.shape[1], *weight.shape[1:])]), shown


@mistake("zeros of another dtype", "of the old one's dtype")
def nine_channels(weight, x, image, mask, encode):
    wide, shown = widen_rightly(weight, x, image, mask, encode)
    return wide.float(), shown


def parts(x, image, mask, encode):
    return x, F.interpolate(mask, size=x.shape[2:]), encode(image * (mask < 0.5))


@mistake("the mask last", "yours is x, known, mask")
def nine_channels(weight, x, image, mask, encode):
    wide, (x, small, known) = solutions_weight(weight), parts(x, image, mask, encode)
    return wide, torch.cat([x, known, small], 1)


@mistake("the mask first", "yours is mask, x, known")
def nine_channels(weight, x, image, mask, encode):
    wide, (x, small, known) = solutions_weight(weight), parts(x, image, mask, encode)
    return wide, torch.cat([small, x, known], 1)


@mistake("the noise last", "yours is mask, known, x")
def nine_channels(weight, x, image, mask, encode):
    wide, (x, small, known) = solutions_weight(weight), parts(x, image, mask, encode)
    return wide, torch.cat([small, known, x], 1)


@mistake("backwards", "yours is known, mask, x")
def nine_channels(weight, x, image, mask, encode):
    wide, (x, small, known) = solutions_weight(weight), parts(x, image, mask, encode)
    return wide, torch.cat([known, small, x], 1)


def solutions_weight(weight):
    return torch.cat([weight, weight.new_zeros(len(weight), 1 + weight.shape[1], 3, 3)], 1)


def shown_wrongly(weight, x, image, mask, encode, small=None, known=None):
    """The input, with another mask or other latents in it."""
    small = F.interpolate(mask, size=x.shape[2:]) if small is None else small
    return solutions_weight(weight), torch.cat([x, small, encode(image * (mask < 0.5)) if known is None else known], 1)


@mistake("the whole picture encoded: the answer", "the network sees the answer")
def nine_channels(weight, x, image, mask, encode):
    return shown_wrongly(weight, x, image, mask, encode, known=encode(image))


@mistake("the hole encoded", "what is in the hole")
def nine_channels(weight, x, image, mask, encode):
    return shown_wrongly(weight, x, image, mask, encode, known=encode(image * mask))


@mistake("the latents emptied", "the latents were emptied, not the image")
def nine_channels(weight, x, image, mask, encode):
    small = F.interpolate(mask, size=x.shape[2:])
    return shown_wrongly(weight, x, image, mask, encode, known=encode(image) * (1 - small))


@mistake("black in the hole", "filled with black")
def nine_channels(weight, x, image, mask, encode):
    return shown_wrongly(weight, x, image, mask, encode, known=encode(torch.where(mask > 0, -1.0, image)))


@mistake("the mask shrunk to greys", "the mask has greys in it")
def nine_channels(weight, x, image, mask, encode):
    return shown_wrongly(weight, x, image, mask, encode, small=F.interpolate(mask, size=x.shape[2:], mode="area"))


@mistake("the mask shrunk bilinearly", "the mask has greys in it")
def nine_channels(weight, x, image, mask, encode):
    return shown_wrongly(weight, x, image, mask, encode, small=F.interpolate(mask, size=x.shape[2:], mode="bilinear"))


@mistake("any white pixel counts", "the mask is 1 where any pixel is")
def nine_channels(weight, x, image, mask, encode):
    return shown_wrongly(weight, x, image, mask, encode, small=F.adaptive_max_pool2d(mask, x.shape[2:]))


@mistake("1 for what is known", "the mask was inverted")
def nine_channels(weight, x, image, mask, encode):
    return shown_wrongly(weight, x, image, mask, encode, small=1 - F.interpolate(mask, size=x.shape[2:]))


@mistake("the mask as an image", "the mask was mapped to [-1, 1]")
def nine_channels(weight, x, image, mask, encode):
    return shown_wrongly(weight, x, image, mask, encode, small=2 * F.interpolate(mask, size=x.shape[2:]) - 1)


@mistake("encoded twice", "should be called once")
def nine_channels(weight, x, image, mask, encode):
    encode(image)
    return widen_rightly(weight, x, image, mask, encode)


@mistake("the picture that was lent is emptied", "changes its argument image")
def nine_channels(weight, x, image, mask, encode):
    image *= mask < 0.5
    return widen_rightly(weight, x, image, mask, encode)


@another_way("filled in from an empty weight, and every f-th pixel of the mask")
def nine_channels(weight, x, image, mask, encode):
    c, f = weight.shape[1], mask.shape[2] // x.shape[2]
    wide = torch.zeros(len(weight), 2 * c + 1, 3, 3, dtype=weight.dtype)
    wide[:, :c] = weight
    return wide, torch.cat([x, mask[:, :, ::f, ::f], encode(torch.where(mask > 0, 0.0, image))], 1)


# ----------------------------------------------------------------------------------------------- 5. repaint_step


def resample(
    step,
    x,
    z,
    mask,
    k,
    alpha,
    sigma,
    eps_known,
    eps_back,
    up=None,
    known=None,
    joined=None,
    last=False,
    noise=lambda u: u,
):
    """RePaint's step, with room for mistakes."""
    r = alpha[k] / alpha[k + 1]
    up = up or (lambda x, eps: r * x + (1 - r**2).sqrt() * eps)
    known = known or (lambda z, eps: alpha[k + 1] * z + sigma[k + 1] * eps)
    for u in range(len(eps_known)):
        drawn, around = step(x, k), known(z, eps_known[noise(u)])
        x = joined(drawn, around) if joined else torch.where(mask > 0, drawn, around)
        if u < len(eps_known) - 1 or (last and u):
            x = up(x, eps_back[min(u, len(eps_back) - 1)])
    return x


@mistake("the paper's mask", "in the paper 1 is what is known")
def repaint_step(step, x, z, mask, *rest):
    return resample(step, x, z, 1 - mask, *rest)


@mistake("the picture not noised", "put in without noise")
def repaint_step(*args):
    return resample(*args, known=lambda z, eps: z)


@mistake("the picture noised to the level where the step begins", "the noise of level k")
def repaint_step(step, x, z, mask, k, alpha, sigma, *noise):
    return resample(step, x, z, mask, k, alpha, sigma, *noise, known=lambda z, eps: alpha[k] * z + sigma[k] * eps)


@mistake("alpha and sigma swapped", "alpha and sigma are swapped")
def repaint_step(step, x, z, mask, k, alpha, sigma, *noise):
    return resample(
        step, x, z, mask, k, alpha, sigma, *noise, known=lambda z, eps: sigma[k + 1] * z + alpha[k + 1] * eps
    )


@mistake("noise added to the whole picture", "it has the factor alpha")
def repaint_step(step, x, z, mask, k, alpha, sigma, *noise):
    return resample(step, x, z, mask, k, alpha, sigma, *noise, known=lambda z, eps: z + sigma[k + 1] * eps)


@mistake("the picture not put in", "the known part was not put in")
def repaint_step(*args):
    return resample(*args, joined=lambda drawn, around: drawn)


@mistake("only once", "calls made: 1")
def repaint_step(step, x, z, mask, k, alpha, sigma, eps_known, eps_back):
    return resample(step, x, z, mask, k, alpha, sigma, eps_known[-1:], eps_back)


@mistake("not back up", "it did not go back up")
def repaint_step(*args):
    return resample(*args, up=lambda x, eps: x)


@mistake("every time from the first x", "began with the x of the first")
def repaint_step(step, x, *rest):
    return resample(step, x, *rest, up=lambda *_: x)


@mistake("only the hole goes back up", "only the hole went back up")
def repaint_step(step, x, z, mask, k, alpha, *rest):
    r = alpha[k] / alpha[k + 1]
    return resample(
        step, x, z, mask, k, alpha, *rest, up=lambda x, eps: torch.where(mask > 0, r * x + (1 - r**2).sqrt() * eps, x)
    )


@mistake("back up as if x were clean", "noised as if it were clean")
def repaint_step(step, x, z, mask, k, alpha, sigma, *noise):
    return resample(step, x, z, mask, k, alpha, sigma, *noise, up=lambda x, eps: alpha[k] * x + sigma[k] * eps)


@mistake("beta instead of its root", "the factor beta; its root is missing")
def repaint_step(step, x, z, mask, k, alpha, *rest):
    r = alpha[k] / alpha[k + 1]
    return resample(step, x, z, mask, k, alpha, *rest, up=lambda x, eps: r * x + (1 - r**2) * eps)


@mistake("1 - beta instead of its root", "the factor 1 - beta; its root is missing")
def repaint_step(step, x, z, mask, k, alpha, *rest):
    r = alpha[k] / alpha[k + 1]
    return resample(step, x, z, mask, k, alpha, *rest, up=lambda x, eps: r**2 * x + (1 - r**2).sqrt() * eps)


@mistake("no roots at all", "the roots are missing")
def repaint_step(step, x, z, mask, k, alpha, *rest):
    r = alpha[k] / alpha[k + 1]
    return resample(step, x, z, mask, k, alpha, *rest, up=lambda x, eps: r**2 * x + (1 - r**2) * eps)


@mistake("all the noise of level k on top", "too much noise")
def repaint_step(step, x, z, mask, k, alpha, sigma, *noise):
    return resample(
        step, x, z, mask, k, alpha, sigma, *noise, up=lambda x, eps: alpha[k] / alpha[k + 1] * x + sigma[k] * eps
    )


@mistake("noise on top of the whole x", "x must shrink")
def repaint_step(step, x, z, mask, k, alpha, *rest):
    r = alpha[k] / alpha[k + 1]
    return resample(step, x, z, mask, k, alpha, *rest, up=lambda x, eps: x + (1 - r**2).sqrt() * eps)


@mistake("smaller, but without noise", "has no new noise")
def repaint_step(step, x, z, mask, k, alpha, *rest):
    return resample(step, x, z, mask, k, alpha, *rest, up=lambda x, eps: alpha[k] / alpha[k + 1] * x)


@mistake("the factors swapped", "the factors of the way up are swapped")
def repaint_step(step, x, z, mask, k, alpha, *rest):
    r = alpha[k] / alpha[k + 1]
    return resample(step, x, z, mask, k, alpha, *rest, up=lambda x, eps: (1 - r**2).sqrt() * x + r * eps)


@mistake("up with the picture's noise", "the noise is eps_known")
def repaint_step(step, x, z, mask, k, alpha, sigma, eps_known, eps_back):
    return resample(step, x, z, mask, k, alpha, sigma, eps_known, eps_known)


@mistake("back up after the last time", "it went back up once more")
def repaint_step(*args):
    return resample(*args, last=True)


@mistake("the same noise for the picture each time", "the noise of the first time")
def repaint_step(*args):
    return resample(*args, noise=lambda u: 0)


@mistake("a level further each time", "it is called with k = 1")
def repaint_step(step, x, z, mask, k, alpha, sigma, *noise):
    told = iter(range(k, k + 9))
    return resample(lambda x, k: step(x, next(told)), x, z, mask, k, alpha, sigma, *noise)


@mistake("the latents that were lent are overwritten", "changes its argument x")
def repaint_step(step, x, *rest):
    return x.copy_(resample(step, x.clone(), *rest)).clone()


@another_way("as common/diffusion/schedules.py would, by variances")
def repaint_step(step, x, z, mask, k, alpha, sigma, eps_known, eps_back):
    hole, (a, s), (b, t) = mask.bool(), (alpha[k], sigma[k]), (alpha[k + 1], sigma[k + 1])
    for u, eps in enumerate(eps_known):
        if u > 0:
            x = a / b * x + (s**2 - (a / b * t) ** 2).clamp(min=0).sqrt() * eps_back[u - 1]
        x = torch.where(hole, step(x, k), b * z + t * eps)
    return x


# ------------------------------------------------------------------------------------------------ 6. zoom_scales


def share_of(frames, part, t=None, double=1.0, back=False, v=None, minus=0.5):
    """s for each frame, with room for mistakes."""
    t = torch.linspace(0, 1, frames) if t is None else t
    near, v = torch.minimum(t, 1 - t), 1 / (1 - part) if v is None else v
    s = torch.where(near < part, double * v * near**2 / (2 * part), v * (near - minus * part))
    return s if back else torch.where(t > 0.5, 1 - s, s)


@mistake("a scale that grows by equal amounts", "grows by equal amounts, which looks slower")
def zoom_scales(frames, first, last, part):
    return first + (last - first) * share_of(frames, part)


@mistake("linspace", "the ends are not eased, and the scale grows by equal amounts")
def zoom_scales(frames, first, last, part):
    return torch.linspace(first, last, frames)


@mistake("logspace: no gentle ends", "the ends are not eased: s should start slowly")
def zoom_scales(frames, first, last, part):
    return torch.logspace(math.log2(first), math.log2(last), frames, base=2)


@mistake("the smooth step", "which has no constant speed anywhere")
def zoom_scales(frames, first, last, part):
    t = torch.linspace(0, 1, frames)
    return first * (last / first) ** (t * t * (3 - 2 * t))


@mistake("the ratio upside down", "last / first is inverted")
def zoom_scales(frames, first, last, part):
    return first * (first / last) ** share_of(frames, part)


@mistake("from last to first", "it begins with last")
def zoom_scales(frames, first, last, part):
    return zoom_rightly(frames, last, first, part)


@mistake("sizes that grow by equal amounts", "things grow by equal amounts (1 / scale)")
def zoom_scales(frames, first, last, part):
    return 1 / torch.lerp(torch.tensor(1 / first), torch.tensor(1 / last), share_of(frames, part))


@mistake("k / n", "the last frame does not arrive")
def zoom_scales(frames, first, last, part):
    return first * (last / first) ** share_of(frames, part, torch.arange(frames) / frames)


@mistake("back again in the second half", "it goes back in the second half")
def zoom_scales(frames, first, last, part):
    return first * (last / first) ** share_of(frames, part, back=True)


@mistake("a gentle beginning only", "only the beginning is eased")
def zoom_scales(frames, first, last, part):
    t, v = torch.linspace(0, 1, frames), 1 / (1 - part)
    return first * (last / first) ** torch.where(t < part, v * t**2 / (2 * part), v * (t - part / 2))


@mistake("speed 1", "v is missing")
def zoom_scales(frames, first, last, part):
    return first * (last / first) ** share_of(frames, part, v=1.0)


@mistake("without the 2", "a 2 is missing")
def zoom_scales(frames, first, last, part):
    return first * (last / first) ** share_of(frames, part, double=2.0)


@mistake("without part / 2", "part / 2 is missing")
def zoom_scales(frames, first, last, part):
    return first * (last / first) ** share_of(frames, part, minus=0.0)


@mistake("one frame too many", "the shape should be (11,)")
def zoom_scales(frames, first, last, part):
    return zoom_rightly(frames + 1, first, last, part)


@mistake("a list of numbers", "a tensor was expected here, not a list")
def zoom_scales(*args):
    return zoom_rightly(*args).tolist()


@mistake("logarithms, not scales", "s should be 0, 4, 16, 35")
def zoom_scales(*args):
    return zoom_rightly(*args).log()


@another_way("frame by frame, in logarithms")
def zoom_scales(frames, first, last, part):
    def s(t):
        if t > 0.5:
            return 1 - s(1 - t)
        return t * t / (2 * part) / (1 - part) if t < part else (t - part / 2) / (1 - part)

    a, b = math.log(first), math.log(last)
    return torch.tensor([math.exp(a + (b - a) * s(k / (frames - 1))) for k in range(frames)])


# ----------------------------------------------------------------------------------------------------- 7. looped


def seamlessly(shot, m, w=None, out=None, into=None, first=None):
    """A seamless loop, with room for mistakes."""
    n = len(shot) - m
    w = (torch.arange(1, m + 1) / (m + 1) if w is None else w).view(-1, 1, 1, 1)
    out, into = shot[n:] if out is None else out, shot[:m] if into is None else into
    return torch.cat([shot[m:n] if first is None else first, (1 - w) * out + w * into])


@mistake("both ends stand still", "both ends stand still")
def looped(shot, loop, m=0):
    return torch.cat([shot, shot.flip(0)]) if loop == "pingpong" else loop_rightly(shot, loop, m)


@mistake("the first frame twice", "the first frame is shown twice")
def looped(shot, loop, m=0):
    return torch.cat([shot, shot[:-1].flip(0)]) if loop == "pingpong" else loop_rightly(shot, loop, m)


@mistake("the last frame twice", "the last frame is shown twice")
def looped(shot, loop, m=0):
    return torch.cat([shot, shot[1:].flip(0)]) if loop == "pingpong" else loop_rightly(shot, loop, m)


@mistake("a way back that is too short", "one frame too few")
def looped(shot, loop, m=0):
    return torch.cat([shot, shot[2:-1].flip(0)]) if loop == "pingpong" else loop_rightly(shot, loop, m)


@mistake("a way back that goes forwards", "comes back to 2 twice")
def looped(shot, loop, m=0):
    return torch.cat([shot, shot[1:-1]]) if loop == "pingpong" else loop_rightly(shot, loop, m)


@mistake("no way back", "there is no way back")
def looped(shot, loop, m=0):
    return shot.clone() if loop == "pingpong" else loop_rightly(shot, loop, m)


@mistake("the dissolve the wrong way", "the dissolve goes the wrong way")
def looped(shot, loop, m=0):
    w = torch.arange(m, 0, -1) / (m + 1)
    return loop_rightly(shot, loop, m) if loop == "pingpong" else seamlessly(shot, m, w)


@mistake("w from 0", "w begins with 0: the first of the dissolve")
def looped(shot, loop, m=0):
    return loop_rightly(shot, loop, m) if loop == "pingpong" else seamlessly(shot, m, torch.arange(m) / m)


@mistake("w from 0 to 1", "w begins with 0 and ends with 1")
def looped(shot, loop, m=0):
    return loop_rightly(shot, loop, m) if loop == "pingpong" else seamlessly(shot, m, torch.linspace(0, 1, m))


@mistake("w up to 1", "w ends with 1")
def looped(shot, loop, m=0):
    return loop_rightly(shot, loop, m) if loop == "pingpong" else seamlessly(shot, m, torch.arange(1, m + 1) / m)


@mistake("half of each", "w is one half all the time")
def looped(shot, loop, m=0):
    return loop_rightly(shot, loop, m) if loop == "pingpong" else seamlessly(shot, m, torch.full((m,), 0.5))


@mistake("the dissolve first", "the dissolve comes first")
def looped(shot, loop, m=0):
    return loop_rightly(shot, loop, m) if loop == "pingpong" else loop_rightly(shot, loop, m).roll(m, 0)


@mistake("a cut", "a cut from the last frame to the first")
def looped(shot, loop, m=0):
    return loop_rightly(shot, loop, m) if loop == "pingpong" else shot[: len(shot) - m].clone()


@mistake("on to the end", "the film goes on to the end of the shot")
def looped(shot, loop, m=0):
    return loop_rightly(shot, loop, m) if loop == "pingpong" else shot[m:].clone()


@mistake("the beginning twice", "begin with shot[m]")
def looped(shot, loop, m=0):
    return loop_rightly(shot, loop, m) if loop == "pingpong" else seamlessly(shot, m, first=shot[: len(shot) - m])


@mistake("the beginning backwards", "the beginning comes in backwards")
def looped(shot, loop, m=0):
    return loop_rightly(shot, loop, m) if loop == "pingpong" else seamlessly(shot, m, into=shot[:m].flip(0))


@mistake("the beginning stands still", "the beginning stands still")
def looped(shot, loop, m=0):
    return loop_rightly(shot, loop, m) if loop == "pingpong" else seamlessly(shot, m, into=shot[m : m + 1])


@mistake("the end stands still", "the end stands still")
def looped(shot, loop, m=0):
    n = len(shot) - m
    return loop_rightly(shot, loop, m) if loop == "pingpong" else seamlessly(shot, m, out=shot[n : n + 1])


@mistake("the shot that was lent is overwritten", "changes its argument shot")
def looped(shot, loop, m=0):
    film = loop_rightly(shot, loop, m)
    shot[: min(len(film), len(shot))] = film.flip(0)[: len(shot)]
    return film


@another_way("by the numbers of the frames, one after the other")
def looped(shot, loop, m=0):
    T = len(shot)
    if loop == "pingpong":
        return shot[[*range(T), *range(T - 2, 0, -1)]]
    n, film = T - m, list(shot[m : T - m])
    for k in range(m):
        film.append(torch.lerp(shot[n + k], shot[k], (k + 1) / (m + 1)))
    return torch.stack(film)


# ------------------------------------------------------------------------------------------------ 8. one_palette


def listed(frames):
    return frames.movedim(1, -1).reshape(-1, 3).float()


def nearest(pixels, palette):
    return (pixels[:, None] - palette).square().sum(2).argmin(1)


def centred(pixels, palette, owner, empty=None):
    """Every colour the mean of its pixels."""
    found = [
        pixels[owner == k].mean(0) if (owner == k).any() else (palette if empty is None else empty)[k]
        for k in range(len(palette))
    ]
    return torch.stack(found)


def fitted(pixels, palette, rounds, empty=None):
    for _ in range(rounds):
        palette = centred(pixels, palette, nearest(pixels, palette), empty)
    return palette


def numbered(frames, palette, choose=nearest, pixels=None):
    """The palette, and the number of a colour for each pixel."""
    pixels = listed(frames) if pixels is None else pixels
    return palette, choose(pixels, palette).view(len(frames), *frames.shape[2:])


@mistake("the farthest colour", "this is the farthest colour")
def one_palette(frames, palette, rounds):
    return numbered(frames, fitted(listed(frames), palette, rounds), lambda p, c: torch.cdist(p, c).argmax(1))


@mistake("pixels made of three neighbours", "red, green and blue were mixed up")
def one_palette(frames, palette, rounds):
    pixels = frames.reshape(-1, 3).float()
    return numbered(frames, fitted(pixels, palette, rounds), pixels=pixels)


@mistake("nearest in red", "nearest in red alone")
def one_palette(frames, palette, rounds):
    return numbered(
        frames, fitted(listed(frames), palette, rounds), lambda p, c: (p[:, None, 0] - c[:, 0]).abs().argmin(1)
    )


@mistake("differences with their signs", "added with their signs")
def one_palette(frames, palette, rounds):
    return numbered(frames, fitted(listed(frames), palette, rounds), lambda p, c: (p[:, None] - c).sum(2).argmin(1))


@mistake("nearest in brightness", "nearest in brightness")
def one_palette(frames, palette, rounds):
    return numbered(
        frames, fitted(listed(frames), palette, rounds), lambda p, c: (p[:, None] - c).sum(2).abs().argmin(1)
    )


@mistake("the sum of the differences", "the differences themselves were added")
def one_palette(frames, palette, rounds):
    return numbered(frames, fitted(listed(frames), palette, rounds), lambda p, c: torch.cdist(p, c, p=1).argmin(1))


@mistake("the largest difference", "the largest of the three differences")
def one_palette(frames, palette, rounds):
    return numbered(
        frames, fitted(listed(frames), palette, rounds), lambda p, c: torch.cdist(p, c, p=math.inf).argmin(1)
    )


@mistake("the palette as it came", "the palette stayed as it was")
def one_palette(frames, palette, rounds):
    return numbered(frames, palette.clone())


@mistake("the first frame's palette", "the first frame's own palette")
def one_palette(frames, palette, rounds):
    return numbered(frames, fitted(listed(frames[:1]), palette, rounds))


@mistake("a palette for each frame", "the last frame's own palette")
def one_palette(frames, palette, rounds):
    each = [numbered(frame[None], fitted(listed(frame[None]), palette, rounds)) for frame in frames]
    return each[-1][0], torch.cat([index for _, index in each])


@mistake("colours instead of pixels", "a colour that occurs twice should count twice")
def one_palette(frames, palette, rounds):
    return numbered(frames, fitted(listed(frames).unique(dim=0), palette, rounds))


@mistake("the mean of nothing", "became NaN")
def one_palette(frames, palette, rounds):
    return numbered(frames, fitted(listed(frames), palette, rounds, torch.full_like(palette, math.nan)))


@mistake("an unused colour made black", "became 0")
def one_palette(frames, palette, rounds):
    return numbered(frames, fitted(listed(frames), palette, rounds, torch.zeros_like(palette)))


@mistake("the pixels never look again", "the pixels must look for the nearest colour anew")
def one_palette(frames, palette, rounds):
    pixels = listed(frames)
    owner = nearest(pixels, palette)
    for _ in range(rounds):
        palette = centred(pixels, palette, owner)
    return numbered(frames, palette)


@mistake("the numbers of the palette before", "before its last move")
def one_palette(frames, palette, rounds):
    pixels = listed(frames)
    owner = nearest(pixels, palette)
    for _ in range(rounds):
        owner = nearest(pixels, palette)
        palette = centred(pixels, palette, owner)
    return palette, owner.view(len(frames), *frames.shape[2:])


@mistake("one round too many", "with 0 rounds the palette stays")
def one_palette(frames, palette, rounds):
    return choose_rightly(frames, palette, rounds + 1)


@mistake("bytes that go round", "the numbers should be")
def one_palette(frames, palette, rounds):
    palette = fitted(listed(frames), palette, rounds)
    small = (frames.movedim(1, -1).reshape(-1, 1, 3) - palette.to(torch.uint8)).square().sum(2)
    return palette, small.argmin(1).view(len(frames), *frames.shape[2:])


@mistake("the numbers in one long row", "the shape should be (2, 2, 3)")
def one_palette(frames, palette, rounds):
    palette, index = choose_rightly(frames, palette, rounds)
    return palette, index.flatten()


@mistake("colours instead of numbers", "the shape should be (2, 2, 3)")
def one_palette(frames, palette, rounds):
    palette, index = choose_rightly(frames, palette, rounds)
    return palette, palette[index]


@mistake("the palette that was lent is overwritten", "changes its argument palette")
def one_palette(frames, palette, rounds):
    pixels = listed(frames) + 1e-3
    for _ in range(max(1, rounds)):
        palette.copy_(centred(pixels, palette, nearest(pixels, palette)))
    return numbered(frames, palette)


@another_way("SciPy's k-means")
def one_palette(frames, palette, rounds):
    import numpy as np
    from scipy.spatial import cKDTree

    pixels, colours = listed(frames).double().numpy(), palette.double().numpy().copy()
    for _ in range(rounds):
        owner = cKDTree(colours).query(pixels)[1]
        for k in np.unique(owner):
            colours[k] = pixels[owner == k].mean(0)
    index = cKDTree(colours).query(pixels)[1].reshape(len(frames), *frames.shape[2:])
    return torch.from_numpy(colours).float(), torch.from_numpy(index.astype(np.int64))


@another_way("summed up with index_add")
def one_palette(frames, palette, rounds):
    pixels = frames.permute(0, 2, 3, 1).flatten(0, 2).float()
    for _ in range(rounds):
        owner = torch.cdist(pixels, palette, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        total = torch.zeros_like(palette).index_add(0, owner, pixels)
        count = owner.bincount(minlength=len(palette))[:, None]
        palette = torch.where(count > 0, total / count.clamp(min=1), palette)
    return palette, nearest(pixels, palette).unflatten(0, (frames.shape[0], frames.shape[2], frames.shape[3]))


# ------------------------------------------------------------------------------- 2, 3 and 5: beyond the easy range


def by_erosion(mask, kernel):
    """Depth in steps to neighbours."""
    depth, left = torch.zeros_like(mask), mask.clone()
    while left.any():
        depth, known = depth + left, F.pad(1 - left[None], (1, 1, 1, 1))
        left = left * (F.conv2d(known, kernel) == 0)[0]
    return depth


@mistake("depth in king's moves", "any of the eight neighbours")
def composite(original, painted, mask, radius):
    soft = (by_erosion(mask, torch.ones(1, 1, 3, 3)) / (radius + 1)).clamp(max=1)
    return torch.where(mask > 0, mixed(original, painted, soft), original)


@mistake("depth along rows and columns", "steps along rows and columns")
def composite(original, painted, mask, radius):
    cross = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]
    soft = (by_erosion(mask, cross) / (radius + 1)).clamp(max=1)
    return torch.where(mask > 0, mixed(original, painted, soft), original)


@mistake("softmax first, then the logarithm", "log_softmax computes neither")
def clip_loss(images, texts, dish, logit_scale):
    L, same = logit_scale.exp() * cosines(images, texts), (dish[:, None] == dish).float()
    share = same / same.sum(1, keepdim=True)
    both = sum(-(share * table.softmax(1).log()).sum(1).mean() for table in (L, L.T)) / 2
    return both - same.sum(1).log().mean()


@mistake("exponentials without the maximum", "log_softmax computes neither")
def clip_loss(images, texts, dish, logit_scale):
    L, same = logit_scale.exp() * cosines(images, texts), (dish[:, None] == dish).float()
    share = same / same.sum(1, keepdim=True)
    both = sum(-(share * (table - table.exp().sum(1, keepdim=True).log())).sum(1).mean() for table in (L, L.T)) / 2
    return both - same.sum(1).log().mean()


@another_way("logsumexp")
def clip_loss(images, texts, dish, logit_scale):
    L, same = logit_scale.exp() * cosines(images, texts), (dish[:, None] == dish).float()
    share = same / same.sum(1, keepdim=True)
    both = sum(-(share * (table - table.logsumexp(1, keepdim=True))).sum(1).mean() for table in (L, L.T)) / 2
    return both - same.sum(1).log().mean()


@mistake("gradient to the images alone", "no gradient reaches texts")
def clip_loss(images, texts, dish, logit_scale):
    return loss_rightly(images, texts.detach(), dish, logit_scale)


@mistake("multiplied by the mask", "0 times NaN is NaN")
def repaint_step(step, x, z, mask, *rest):
    return resample(step, x, z, mask, *rest, joined=lambda drawn, around: mask * drawn + (1 - mask) * around)


# ------------------------------------------------------------------------------------------------ 9. name_weight


def weight_of(a):
    w = torch.sigmoid(a)
    return w, w * (1 - w)


@mistake("without the root of d", "the root of d is missing")
def name_weight(q, k, zeros):
    return weight_of(q @ k - math.log(zeros))


@mistake("one zero token, however many there are", "each of the zero tokens takes its share")
def name_weight(q, k, zeros):
    return weight_of(q @ k / math.sqrt(len(k)))


@mistake("the weight of the zero tokens", "this is the weight of the zero tokens")
def name_weight(q, k, zeros):
    w, slope = weight_of(q @ k / math.sqrt(len(k)) - math.log(zeros))
    return 1 - w, slope


@mistake("no zero token", "so the name has all the weight")
def name_weight(q, k, zeros):
    w = (q @ k)[:, None].softmax(1)[:, 0]
    return w, 0 * w


@mistake("the derivative by the product", "this is the derivative by q . k")
def name_weight(q, k, zeros):
    w, slope = weight_of(q @ k / math.sqrt(len(k)) - math.log(zeros))
    return w, slope / math.sqrt(len(k))


@mistake("the derivative is the square", "w (1 - w)")
def name_weight(q, k, zeros):
    w, _ = weight_of(q @ k / math.sqrt(len(k)) - math.log(zeros))
    return w, w**2


@mistake("exponentials that overflow", "torch.sigmoid does not compute e^a")
def name_weight(q, k, zeros):
    e = (q @ k / math.sqrt(len(k))).exp()
    w = e / (e + zeros)
    return w, w * (1 - w)


@another_way("a softmax over tokens, and autograd")
def name_weight(q, k, zeros):
    a = (q @ k / len(k) ** 0.5).detach().requires_grad_()
    w = torch.cat([a[:, None], a.new_zeros(len(a), zeros)], 1).softmax(1)[:, 0]
    (slope,) = torch.autograd.grad(w.sum(), a)
    return w.detach(), slope


# ------------------------------------------------------------------------------------------ 10. ideal_inpainting


def gaussian(known, C, hole, sign=1.0, minus=1.0, inverse=True):
    across = C[hole][:, ~hole]
    gain = torch.linalg.solve(C[~hole][:, ~hole], across.T) if inverse else across.T
    return sign * known @ gain, C[hole][:, hole] - minus * across @ gain


@mistake("no inverse", "the inverse of C_known is missing")
def ideal_inpainting(known, C, hole):
    return gaussian(known, C, hole, inverse=False)


@mistake("the sign of the mean", "the sign of the mean is wrong")
def ideal_inpainting(known, C, hole):
    return gaussian(known, C, hole, sign=-1.0)


@mistake("less certain, the more is known", "known pixels make the hole more certain")
def ideal_inpainting(known, C, hole):
    return gaussian(known, C, hole, minus=-1.0)


@mistake("the covariance of the hole, knowing nothing", "without knowing anything")
def ideal_inpainting(known, C, hole):
    return gaussian(known, C, hole)[0], C[hole][:, hole]


@mistake("the precision", "this is the inverse of the covariance")
def ideal_inpainting(known, C, hole):
    return gaussian(known, C, hole)[0], torch.linalg.inv(C)[hole][:, hole]


@mistake("a covariance for each picture", "the shape should be")
def ideal_inpainting(known, C, hole):
    mean, covariance = gaussian(known, C, hole)
    return mean, covariance.expand(len(known), -1, -1)


@another_way("blocks of the inverse")
def ideal_inpainting(known, C, hole):
    P = torch.linalg.inv(C.double())
    covariance = torch.linalg.inv(P[hole][:, hole])
    return (-known.double() @ (covariance @ P[hole][:, ~hole]).T).float(), covariance.float()


# ------------------------------------------------------------------------------------------- 11. fix_outpainting


def travelled(paint, picture, dx, keyframes, keep):
    film = [picture]
    for _ in range(keyframes):
        moved, mask = move_rightly(film[-1], dx, 0)
        film.append(keep(paint(moved, mask), moved, mask))
    return torch.stack(film)


@mistake("nothing repaired", "the whole output of the painter goes into the film")
def fix_outpainting(paint, picture, dx, keyframes):
    return travelled(paint, picture, dx, keyframes, lambda painted, moved, mask: painted)


@mistake("the known part from the painter", "the mask is the wrong way round")
def fix_outpainting(paint, picture, dx, keyframes):
    return travelled(paint, picture, dx, keyframes, lambda painted, moved, mask: torch.where(mask > 0, moved, painted))


@mistake("only half repaired", "each keyframe should")
def fix_outpainting(paint, picture, dx, keyframes):
    return travelled(
        paint,
        picture,
        dx,
        keyframes,
        lambda painted, moved, mask: torch.where(mask > 0, painted, (painted + moved) / 2),
    )


@another_way("multiplied by the mask")
def fix_outpainting(paint, picture, dx, keyframes):
    return travelled(paint, picture, dx, keyframes, lambda painted, moved, mask: mask * painted + (1 - mask) * moved)


# -------------------------------------------------------------------------------------------- 12. fix_candidates


@mistake("the norm of the whole matrix", "its norm still counts")
def fix_candidates(encode_image, encode_text, candidates, name):
    images, text = encode_image(candidates), encode_text([name])[0]
    return int((images / images.norm() @ text).argmax())


@mistake("columns normalized", "its norm still counts")
def fix_candidates(encode_image, encode_text, candidates, name):
    images, text = encode_image(candidates), encode_text([name])[0]
    return int((F.normalize(images, dim=0) @ text).argmax())


@mistake("the text normalized instead", "its norm still counts")
def fix_candidates(encode_image, encode_text, candidates, name):
    images, text = encode_image(candidates), encode_text([name])
    return int((images @ F.normalize(text, dim=1)[0]).argmax())


@mistake("the farthest", "farthest from the name")
def fix_candidates(encode_image, encode_text, candidates, name):
    images, text = encode_image(candidates), encode_text([name])[0]
    return int((F.normalize(images, dim=1) @ text).argmin())


@mistake("distance instead of direction", "nearest in distance, not in direction")
def fix_candidates(encode_image, encode_text, candidates, name):
    return int((encode_image(candidates) - encode_text([name])).norm(dim=1).argmin())


@another_way("cosine_similarity")
def fix_candidates(encode_image, encode_text, candidates, name):
    return F.cosine_similarity(encode_image(candidates), encode_text([name])).argmax()


# -------------------------------------------------------------------------------------------------- 13. fix_zoom


def zoomed(image, scales, look):
    _, H, W = image.shape
    frames = []
    for scale in scales:
        y, x = look(torch.arange(H), H, scale), look(torch.arange(W), W, scale)
        grid = torch.stack(torch.broadcast_tensors(2 * x / W - 1, (2 * y / H - 1)[:, None]), -1)
        frames.append(F.grid_sample(image[None], grid[None], padding_mode="border", align_corners=False)[0])
    return torch.stack(frames)


@mistake("the half pixel not scaled", "the plate drifts")
def fix_zoom(image, scales):
    return zoomed(image, scales, lambda k, n, s: (k - n / 2) * s + n / 2 + 0.5)


@mistake("no half pixel at all", "shifted by half a pixel, also at scale 1")
def fix_zoom(image, scales):
    return zoomed(image, scales, lambda k, n, s: (k - n / 2) * s + n / 2)


@mistake("half a pixel twice", "shifted by half a pixel, also at scale 1")
def fix_zoom(image, scales):
    return zoomed(image, scales, lambda k, n, s: (k + 0.5 - n / 2) * s + n / 2 + 0.5)


@mistake("zooms the other way", "the scale is inverted")
def fix_zoom(image, scales):
    return zoomed(image, scales, lambda k, n, s: (k + 0.5 - n / 2) / s + n / 2)


@another_way("affine_grid")
def fix_zoom(image, scales):
    theta = torch.stack([torch.tensor([[s, 0.0, 0.0], [0.0, s, 0.0]]) for s in scales])
    many = image.expand(len(scales), -1, -1, -1)
    grid = F.affine_grid(theta, list(many.shape), align_corners=False)
    return F.grid_sample(many, grid, padding_mode="border", align_corners=False)


# ----------------------------------------------------------------------------------------------- 14. fix_regions


def joined_regions(parts, x, level, mean_x0=True, mean_eps=True):
    total = sum(weight for _, weight in parts)
    found = [(denoise(x, level), weight) for denoise, weight in parts]
    return tuple(
        sum(weight * both[k] for both, weight in found) / (total if mean else 1)
        for k, mean in ((0, mean_x0), (1, mean_eps))
    )


@mistake("the noise added", "the noise counts twice")
def fix_regions(parts, x, level):
    return joined_regions(parts, x, level, mean_eps=False)


@mistake("both added", "averaged, not added")
def fix_regions(parts, x, level):
    return joined_regions(parts, x, level, mean_x0=False, mean_eps=False)


@mistake("swapped", "x0 should be 2")
def fix_regions(parts, x, level):
    return joined_regions(parts, x, level)[::-1]


@mistake("the last region alone where two overlap", "x0 should be 2")
def fix_regions(parts, x, level):
    x0, eps = torch.zeros_like(x), torch.zeros_like(x)
    for denoise, weight in parts:
        here = denoise(x, level)
        x0, eps = (torch.where(weight > 0, new, old) for new, old in zip(here, (x0, eps), strict=True))
    return x0, eps


# --------------------------------------------------------------------------------------------------- 15. own_move


def circle(turn, high=0.25):
    return torch.stack([0.3 * turn.sin(), 0.3 * (1 - turn.cos()), torch.exp(high * (1 - turn.cos()))], 1).float()


def at_equal_lengths(curve, frames, last=True):
    """The points of a closed curve (turn -> windows) at equal displacements."""
    turn = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)
    fine = curve(turn).double()
    step = fine.diff(dim=0) / fine[1:, 2:] * torch.tensor([1, 1, 6**-0.5], dtype=torch.float64)
    passed = torch.cat([torch.zeros(1), step.norm(dim=1).cumsum(0)])
    wanted = torch.arange(frames) / (frames if last else frames - 1) * passed[-1]
    return fine[torch.searchsorted(passed, wanted.clamp(max=passed[-1]))].float()


@mistake("equal steps of the parameter", "equal steps of a parameter are not equal displacements")
def own_move(frames):
    return circle(torch.arange(frames) / frames * 2 * math.pi)


@mistake("the first frame again at the end", "one step further than the last frame")
def own_move(frames):
    return at_equal_lengths(circle, frames, last=False)


@mistake("the ring of the lesson", "the scale goes from")
def own_move(frames):
    return circle(torch.arange(frames) / frames * 2 * math.pi, high=0)


@mistake("not from the picture on", "frame 0 should be the picture")
def own_move(frames):
    return at_equal_lengths(circle, frames).roll(5, 0)


@mistake("nearer than the picture", "nearer than 1")
def own_move(frames):
    return at_equal_lengths(lambda turn: circle(turn, high=-0.25), frames)


@mistake("a square with corners", "turns sharply")
def own_move(frames):
    def square(turn):
        side = (turn / (2 * math.pi) * 4).clamp(max=4 - 1e-9)
        k, t = side.floor(), side - side.floor()
        x = torch.where(k == 0, t, torch.where(k == 1, 1.0, torch.where(k == 2, 1 - t, 0.0)))
        y = torch.where(k == 0, 0.0, torch.where(k == 1, t, torch.where(k == 2, 1.0, 1 - t)))
        return torch.stack([0.6 * x, 0.6 * y, torch.exp(0.25 * (1 - turn.cos()))], 1)

    return at_equal_lengths(square, frames)


# ------------------------------------------------------------------------------------------------ 16. fill_the_hole


def refill(denoise, z, hole, noise, levels=10, passes=20, fresh_noise=True, upwards=True):
    """RePaint with room for mistakes."""
    lams = [-4 + 9 * k / (levels - 1) for k in range(levels)]
    path = [solutions.Level((1 + math.exp(-2 * a)) ** -0.5, (1 + math.exp(2 * a)) ** -0.5) for a in lams]
    path.append(solutions.Level(1.0, 0.0))
    x, one = noise(), noise()
    for now, then in zip(path, path[1:], strict=False):
        r = now.alpha / then.alpha
        fresh = (then.sigma / now.sigma) ** 2 * (now.sigma**2 - (r * then.sigma) ** 2)
        for u in range(passes):
            if u and upwards:
                x = r * x + math.sqrt(1 - r**2) * noise()
            elif u:
                x = now.alpha * x + now.sigma * noise()
            x0, eps = denoise(x, now)
            inside = then.alpha * x0 + math.sqrt(then.sigma**2 - fresh) * eps + math.sqrt(fresh) * noise()
            x = torch.where(hole, inside, then.alpha * z + then.sigma * (noise() if fresh_noise else one))
    return x


@mistake("one pass with many levels", "below 1.15 was asked for")
def fill_the_hole(denoise, z, hole, noise):
    return refill(denoise, z, hole, noise, levels=200, passes=1)


@mistake("too many evaluations", "at most 200 were allowed")
def fill_the_hole(denoise, z, hole, noise):
    return refill(denoise, z, hole, noise, levels=15, passes=20)


@mistake("NaN given to the denoiser", "denoise was given NaN")
def fill_the_hole(denoise, z, hole, noise):
    return denoise(0.6 * z + 0.8 * noise(), solutions.Level(0.6, 0.8))[0]


@mistake("the best guess instead of a sample", "they vary too little")
def fill_the_hole(denoise, z, hole, noise):
    filled = torch.where(hole, 0.0, z)
    for _ in range(200):
        x0, _ = denoise(0.999 * filled, solutions.Level(0.999, math.sqrt(1 - 0.999**2)))
        filled = torch.where(hole, x0, z)
    return filled


@mistake("the known part not put back at the end", "the known part must be exactly z")
def fill_the_hole(denoise, z, hole, noise):
    return fill_rightly(denoise, z, hole, noise) + 1e-3


@another_way("twelve levels and sixteen passes")
def fill_the_hole(denoise, z, hole, noise):
    return refill(denoise, z, hole, noise, levels=12, passes=16)
