# ruff: noqa: F811 - the same function is got wrong again and again
"""Classic mistakes of chapter 3, each a small replacement of one function of the solutions.

`@mistake(what, says)`: the exercise it belongs to is the function's name;
`says` must stand in the message that the grader gives.
"""

import math
from pathlib import Path

import torch

from common.grade.checks import load
from helpers.mistake_bank import Bank, per_image

COURSE = Path(__file__).resolve().parents[3]
solutions = load(COURSE / "03_ddim_schedules/exercises/solutions.py", "solutions_with_mistakes")
ddim_rightly, v_rightly, heun_rightly = solutions.ddim_step, solutions.v_prediction, solutions.heun_step
weight_rightly, slerp_rightly, multistep_rightly = solutions.snr_weight, solutions.slerp, solutions.dpmpp_2m_step
bank = Bank()
mistake, another_way = bank.mistake, bank.another_way
MISTAKES, OTHER_WAYS = bank.MISTAKES, bank.OTHER_WAYS


# ---------------------------------------------------------------------------------------------------- 1. respace


@mistake("the full chain's betas at the visited levels", "full chain's betas")
def respace(alpha_bar, times):
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    return betas[[t - 1 for t in times]]


@mistake("no division by the level before", "did not divide")
def respace(alpha_bar, times):
    return 1 - alpha_bar[times]


@mistake("the clean image is not in front, so that a beta is missing", "before the first visited level")
def respace(alpha_bar, times):
    visited = alpha_bar[times]
    return 1 - visited[1:] / visited[:-1]


@mistake("the ratio upside down", "upside down")
def respace(alpha_bar, times):
    visited = alpha_bar[[0, *times]]
    return 1 - visited[:-1] / visited[1:]


@mistake("the alphas instead of the betas", "beta is 1 - alpha")
def respace(alpha_bar, times):
    visited = alpha_bar[[0, *times]]
    return visited[1:] / visited[:-1]


@another_way("from the betas of the full chain, multiplying up the steps that are skipped")
def respace(alpha_bar, times):
    alphas = (alpha_bar[1:] / alpha_bar[:-1]).tolist()
    ends = [0, *times]
    return torch.tensor([1 - math.prod(alphas[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)])


# -------------------------------------------------------------------------------------------------- 2. ddim_step


def parts(x, eps, t, t_next, alpha_bar):
    """(alpha_bar', x0, fresh at eta = 1)"""
    now, then = alpha_bar[t], alpha_bar[t_next]
    x0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
    return then, x0, ((1 - then) / (1 - now) * (1 - now / then)).sqrt()


@mistake("fresh noise added without taking it out of the direction term", "not taken away from the old")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    then, x0, fresh = parts(x, eps, t, t_next, alpha_bar)
    return then.sqrt() * x0 + (1 - then).sqrt() * eps + eta * fresh * z


@mistake("the variance for its square root", "square of `fresh`")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    then, x0, fresh = parts(x, eps, t, t_next, alpha_bar)
    variance = (eta * fresh) ** 2
    return then.sqrt() * x0 + (1 - then - variance).sqrt() * eps + variance * z


@mistake("eta before the direction term", "eta is missing in eq. 16")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    then, x0, fresh = parts(x, eps, t, t_next, alpha_bar)
    if eta == 0:
        return ddim_rightly(x, eps, t, t_next, eta, z, alpha_bar)
    return then.sqrt() * x0 + eta * (1 - then - fresh**2).sqrt() * eps + fresh * z


@mistake("eta under the square root", "in front")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    return ddim_rightly(x, eps, t, t_next, eta**0.5, z, alpha_bar)


@mistake("the square root of the direction term forgotten", "square root of 1 - alpha_bar' - fresh^2")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    then, x0, fresh = parts(x, eps, t, t_next, alpha_bar)
    return then.sqrt() * x0 + (1 - then - (eta * fresh) ** 2) * eps + eta * fresh * z


@mistake("alpha_bar for its square root", "where its square root belongs")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    then, x0, fresh = parts(x, eps, t, t_next, alpha_bar)
    return then * x0 + (1 - then - (eta * fresh) ** 2).sqrt() * eps + eta * fresh * z


@mistake("to the level t - 1 instead of the next one visited", "t_next, any number of levels below")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    return ddim_rightly(x, eps, t, t - 1, eta, z, alpha_bar)


@mistake("the chain stops at level 1, as if there were no alpha_bar_0", "the last step should end in the clean image")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    return ddim_rightly(x, eps, t, max(t_next, 1), eta, z, alpha_bar)


@mistake("z is overwritten", "changes its argument z")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    x = ddim_rightly(x, eps, t, t_next, eta, z, alpha_bar)
    z.zero_()
    return x


@another_way("with signal and noise, the fresh noise by the signal-to-noise ratio, no noise drawn at the end by an if")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    alpha, sigma = alpha_bar[t].item() ** 0.5, (1 - alpha_bar[t].item()) ** 0.5
    alpha_next, sigma_next = alpha_bar[t_next].item() ** 0.5, (1 - alpha_bar[t_next].item()) ** 0.5
    x0 = x / alpha - sigma / alpha * eps
    if t_next == 0:
        return x0
    fresh = eta * sigma_next * (1 - (alpha * sigma_next / (sigma * alpha_next)) ** 2) ** 0.5
    return alpha_next * x0 + (sigma_next**2 - fresh**2) ** 0.5 * eps + fresh * z


# ----------------------------------------------------------------------------------------------- 3. v_prediction


@mistake("v with the wrong sign there", "wrong sign")
def v_prediction(first, second, alpha, sigma, back):
    if back:
        return v_rightly(first, second, alpha, sigma, back)
    x, v = v_rightly(first, second, alpha, sigma, back)
    return x, -v


@mistake("alpha and sigma swapped in v", "alpha and sigma are swapped")
def v_prediction(first, second, alpha, sigma, back):
    if back:
        return v_rightly(first, second, alpha, sigma, back)
    x, _ = v_rightly(first, second, alpha, sigma, back)
    return x, per_image(sigma) * second - per_image(alpha) * first


@mistake("the way there both times", "is this the way there")
def v_prediction(first, second, alpha, sigma, back):
    return v_rightly(first, second, alpha, sigma, False)


@mistake("a sign wrong in eps on the way back", "eps has a wrong sign")
def v_prediction(first, second, alpha, sigma, back):
    one, two = v_rightly(first, second, alpha, sigma, back)
    return one, per_image(alpha) * second - per_image(sigma) * first if back else two


@mistake("divided by alpha, which is 0 in pure noise", "divide by alpha")
def v_prediction(first, second, alpha, sigma, back):
    if not back:
        return v_rightly(first, second, alpha, sigma, back)
    a, s = per_image(alpha), per_image(sigma)
    eps = s * first + a * second
    return (first - s * eps) / a, eps


@mistake("levels along the columns, only where B == W", "(B, 1, 1, 1)")
def v_prediction(first, second, alpha, sigma, back):
    if first.shape[-1] != len(alpha):
        return v_rightly(first, second, alpha, sigma, back)
    if back:
        return alpha * first - sigma * second, sigma * first + alpha * second
    return alpha * first + sigma * second, alpha * second - sigma * first


@another_way("a rotation by an angle, back by the opposite one")
def v_prediction(first, second, alpha, sigma, back):
    angle = torch.atan2(sigma, alpha) * (-1 if back else 1)
    cos, sin = per_image(angle.cos()), per_image(angle.sin())
    return cos * first + sin * second, cos * second - sin * first


# -------------------------------------------------------------------------------------------------- 4. heun_step


def look(denoise, x, level, now, then):
    """The step of Euler's method that a look at x suggests."""
    x0, eps = denoise(x, level)
    return x0 * (then.alpha - now.alpha) + eps * (then.sigma - now.sigma)


@mistake("Euler's method", "looks twice")
def heun_step(denoise, x, now, then):
    return x + look(denoise, x, now, now, then)


@mistake("the second look at the old level", "at the old level")
def heun_step(denoise, x, now, then):
    first = look(denoise, x, now, now, then)
    return (
        x + (first + look(denoise, x + first, now if then.sigma else then, now, then)) / 2 if then.sigma else x + first
    )


@mistake("the second look at x again", "at x again")
def heun_step(denoise, x, now, then):
    first = look(denoise, x, now, now, then)
    return x + (first + look(denoise, x, then, now, then)) / 2 if then.sigma else x + first


@mistake("the averaged step made from ahead", "starts at x")
def heun_step(denoise, x, now, then):
    first = look(denoise, x, now, now, then)
    return x + first + (first + look(denoise, x + first, then, now, then)) / 2 if then.sigma else x + first


@mistake("the states averaged instead of the looks", "average the looks")
def heun_step(denoise, x, now, then):
    ahead = x + look(denoise, x, now, now, then)
    return (ahead + ahead + look(denoise, ahead, then, now, then)) / 2 if then.sigma else ahead


@mistake("the sum of both looks", "take their average")
def heun_step(denoise, x, now, then):
    first = look(denoise, x, now, now, then)
    return x + first + look(denoise, x + first, then, now, then) if then.sigma else x + first


@mistake("a second look at the last step too", "no noise to see")
def heun_step(denoise, x, now, then):
    first = look(denoise, x, now, now, then)
    return x + (first + look(denoise, x + first, then, now, then)) / 2


@another_way("half-way between x and two steps of Euler's")
def heun_step(denoise, x, now, then):
    ahead = x + look(denoise, x, now, now, then)
    return (x + ahead + look(denoise, ahead, then, now, then)) / 2 if then.sigma > 0 else ahead


# ------------------------------------------------------------------------------------------------- 5. snr_weight


def weigh(snr, capped, prediction):
    return capped / {"x0": 1, "eps": snr, "v": snr + 1}[prediction]


@mistake("the SNR without the square", "ratio of the squares")
def snr_weight(alpha, sigma, gamma, prediction):
    snr = alpha / sigma
    return weigh(snr, snr.clamp(max=gamma), prediction)


@mistake("max for min", "it is the smaller")
def snr_weight(alpha, sigma, gamma, prediction):
    snr = (alpha / sigma) ** 2
    return weigh(snr, snr.clamp(min=gamma), prediction)


@mistake("the SNR upside down", "upside down")
def snr_weight(alpha, sigma, gamma, prediction):
    return weight_rightly(sigma, alpha, gamma, prediction)


@mistake("the weight of x0 used for eps", "weight for x0")
def snr_weight(alpha, sigma, gamma, prediction):
    return weight_rightly(alpha, sigma, gamma, "x0" if prediction == "eps" else prediction)


@mistake("the weight of eps used for v", "divide by SNR + 1")
def snr_weight(alpha, sigma, gamma, prediction):
    return weight_rightly(alpha, sigma, gamma, "eps" if prediction == "v" else prediction)


@mistake("SNR / (SNR + 1) for v, without gamma", "without gamma")
def snr_weight(alpha, sigma, gamma, prediction):
    snr = (alpha / sigma) ** 2
    return snr / (snr + 1) if prediction == "v" else weight_rightly(alpha, sigma, gamma, prediction)


@another_way("with alpha and sigma alone, and minimum")
def snr_weight(alpha, sigma, gamma, prediction):
    top = torch.minimum(alpha**2, gamma * sigma**2)
    return top / {"x0": sigma**2, "eps": alpha**2, "v": alpha**2 + sigma**2}[prediction]


# ------------------------------------------------------------------------------------------------------ 6. slerp


def arc(a, b, w, angle):
    return (((1 - w) * angle).sin() * a + (w * angle).sin() * b) / angle.sin()


def cosine(a, b, dims=(1, 2, 3)):
    return (a * b).sum(dims, keepdim=True) / (
        a.square().sum(dims, keepdim=True) * b.square().sum(dims, keepdim=True)
    ).sqrt()


@mistake("lerp", "straight line")
def slerp(a, b, w):
    return (1 - w) * a + w * b


@mistake("one angle for the whole batch", "whole batch")
def slerp(a, b, w):
    angle = cosine(a, b, (0, 1, 2, 3)).clamp(-1, 1).acos()
    return arc(a, b, w, angle) if angle > 1e-3 else (1 - w) * a + w * b


@mistake("an angle for each pixel", "one long vector")
def slerp(a, b, w):
    if a.shape[1] == 1:  # elsewhere a pixel has no angle
        return slerp_rightly(a, b, w)
    angle = cosine(a, b, (1,)).clamp(-1, 1).acos()
    return torch.where(angle < 1e-3, (1 - w) * a + w * b, arc(a, b, w, angle)).nan_to_num()


@mistake("no fall-back", "straight line")
def slerp(a, b, w):
    return arc(a, b, w, cosine(a, b).clamp(-1, 1).acos())


@mistake("no clamp of the cosine", "clamp the cosine")
def slerp(a, b, w):
    angle = cosine(a, b).acos()
    return torch.where(angle < 1e-3, (1 - w) * a + w * b, arc(a, b, w, angle))


@mistake("a small number added to sin(angle), so that equal noises vanish", "the same noise")
def slerp(a, b, w):
    angle = cosine(a, b).clamp(-1, 1).acos()
    return (((1 - w) * angle).sin() * a + (w * angle).sin() * b) / (angle.sin() + 1e-7)


@mistake("one parallel pair decides for the whole batch", "the whole batch along the straight line")
def slerp(a, b, w):
    angle = cosine(a, b).clamp(-1, 1).acos()
    return (1 - w) * a + w * b if (angle < 1e-3).any() else arc(a, b, w, angle)


@mistake("a and b swapped", "swapped")
def slerp(a, b, w):
    return slerp_rightly(b, a, w)


@another_way("one image after the other, in double precision, turning a towards b in their plane")
def slerp(a, b, w):
    results = []
    for p, q in zip(a.double(), b.double(), strict=True):
        length, across = p.norm(), q - (p * q).sum() / (p * p).sum() * p
        if across.norm() < 1e-4 * q.norm():
            results.append((1 - w) * p + w * q)
            continue
        angle = math.atan2(across.norm(), (p * q).sum() / length)
        unit_p, unit_q = p / length, q / q.norm()
        turned = [math.sin((1 - w) * angle) / math.sin(angle), math.sin(w * angle) / math.sin(angle)]
        results.append(turned[0] * length * unit_p + turned[1] * q.norm() * unit_q)
    return torch.stack(results).float()


# ------------------------------------------------------------------------------------------ 7. zero_terminal_snr


def with_clean(values):
    return torch.cat([torch.ones(1), values])


@mistake("alpha_bar rescaled instead of its root", "with its square root")
def zero_terminal_snr(alpha_bar):
    a = alpha_bar[1:]
    return with_clean((a - a[-1]) * a[0] / (a[0] - a[-1]))


@mistake("the first entry not kept: shifted only", "without stretching")
def zero_terminal_snr(alpha_bar):
    return with_clean((alpha_bar[1:].sqrt() - alpha_bar[-1].sqrt()) ** 2)


@mistake("the first entry stretched to 1", "stretched to 1")
def zero_terminal_snr(alpha_bar):
    root = alpha_bar[1:].sqrt() - alpha_bar[-1].sqrt()
    return with_clean((root / root[0]) ** 2)


@mistake("not shifted: the last entry just set to 0", "without shifting")
def zero_terminal_snr(alpha_bar):
    return torch.cat([alpha_bar[:-1], torch.zeros(1)])


@mistake("not squared again", "square them again")
def zero_terminal_snr(alpha_bar):
    root = alpha_bar[1:].sqrt()
    return with_clean((root - root[-1]) * root[0] / (root[0] - root[-1]))


@mistake("entry 0 taken for the paper's first", "held entry 0")
def zero_terminal_snr(alpha_bar):
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@mistake("alpha_bar is overwritten", "changes its argument alpha_bar")
def zero_terminal_snr(alpha_bar):
    root = alpha_bar[1:].sqrt()
    alpha_bar[1:] = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return alpha_bar.clone()


@another_way("a straight map between two points, in double precision")
def zero_terminal_snr(alpha_bar):
    root = alpha_bar.double().sqrt()
    first, last = root[1].item(), root[-1].item()
    slope = first / (first - last)
    new = (slope * (root - last)).square()
    new[0] = 1
    return new.float()


# ---------------------------------------------------------------------------------------------- 8. dpmpp_2m_step


def half_log_snr(level):
    return math.log(level.alpha / level.sigma)


def multistep(
    x, x0, now, then, x0_old, before, lam=half_log_snr, correct=lambda x0, change, r: x0 + change / (2 * r), sign=1
):
    if then.sigma == 0:
        return then.alpha * x0
    h, D = lam(then) - lam(now), x0
    if before is not None:
        D = correct(x0, x0 - x0_old, (lam(now) - lam(before)) / h)
    return then.sigma / now.sigma * x - sign * then.alpha * math.expm1(-h) * D


@mistake("r upside down", "r is upside down")
def dpmpp_2m_step(*args):
    return multistep(*args, correct=lambda x0, change, r: x0 + change * r / 2)


@mistake("the sign of expm1", "sign before alpha'")
def dpmpp_2m_step(*args):
    return multistep(*args, sign=-1)


@mistake("history dropped", "history was not used")
def dpmpp_2m_step(*args):
    return multistep(*args, correct=lambda x0, change, r: x0)


@mistake("history used twice", "counts twice")
def dpmpp_2m_step(*args):
    return multistep(*args, correct=lambda x0, change, r: x0 + change / r)


@mistake("the difference the wrong way round", "wrong way round")
def dpmpp_2m_step(*args):
    return multistep(*args, correct=lambda x0, change, r: x0 - change / (2 * r))


@mistake("lambda without the half", "it is half of that")
def dpmpp_2m_step(*args):
    return multistep(*args, lam=lambda level: 2 * half_log_snr(level))


@mistake("a missing guess taken for zero", "a missing guess for 0")
def dpmpp_2m_step(x, x0, now, then, x0_old, before):
    if before is None:  # as if the step before had been as long as this one
        h = half_log_snr(then) - half_log_snr(now)
        x0_old, before = torch.zeros_like(x0), solutions.Level(1.0, math.exp(h - half_log_snr(now)))
    return multistep(x, x0, now, then, x0_old, before)


@mistake("the formula at the last step too", "lambda' is infinite")
def dpmpp_2m_step(x, x0, now, then, x0_old, before):
    if then.sigma > 0:
        return multistep_rightly(x, x0, now, then, x0_old, before)
    h = half_log_snr(then) - half_log_snr(now)
    return then.sigma / now.sigma * x - then.alpha * math.expm1(-h) * x0


@another_way("as the paper writes D, with the image and noise that Euler's method would mix")
def dpmpp_2m_step(x, x0, now, then, x0_old, before):
    if then.sigma == 0:
        return then.alpha * x0
    D = x0
    if x0_old is not None:
        lam_before, lam, lam_then = map(half_log_snr, (before, now, then))
        r = (lam - lam_before) / (lam_then - lam)
        D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_old
    return then.alpha * D + then.sigma * (x - now.alpha * D) / now.sigma
