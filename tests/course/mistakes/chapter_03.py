# ruff: noqa: F811 - the same function is got wrong again and again
"""Classic mistakes of chapter 3, each a small replacement of one function of the solutions.

`@mistake(what, says)`: the exercise it belongs to is the function's name;
`says` must stand in the message that the grader gives.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from common.grade.checks import load, load_chapter
from helpers.mistake_bank import Bank, per_image

COURSE = Path(__file__).resolve().parents[3]
solutions = load(COURSE / "03_ddim_schedules/exercises/solutions.py", "solutions_with_mistakes")
given = load_chapter(COURSE / "03_ddim_schedules/exercises").stub  # with the programs that hold a bug
ddim_rightly, v_rightly, heun_rightly = solutions.ddim_step, solutions.v_prediction, solutions.heun_step
weight_rightly, slerp_rightly, multistep_rightly = solutions.snr_weight, solutions.slerp, solutions.dpmpp_2m_step
bank = Bank()
mistake, another_way = bank.mistake, bank.another_way
MISTAKES, OTHER_WAYS = bank.MISTAKES, bank.OTHER_WAYS


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


# ---------------------------------------------------------------------------------------------------------- 1. respace


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


@mistake("betas cut off at 0.999, as schedules are often made", "cut off at 0.999")
def respace(alpha_bar, times):
    visited = alpha_bar[[0, *times]]
    return (1 - visited[1:] / visited[:-1]).clamp(max=0.999)


@mistake("the caller's list of levels begins with 0 from now on", "changes its argument times")
def respace(alpha_bar, times):
    times.insert(0, 0)
    visited = alpha_bar[times]
    return 1 - visited[1:] / visited[:-1]


@mistake("a list of floats", "not a list of")
def respace(alpha_bar, times):
    return solutions.respace(alpha_bar, times).tolist()


@mistake("no return", "is a `return` missing?")
def respace(alpha_bar, times):
    solutions.respace(alpha_bar, times)


# ------------------------------------------------------------------------------------------------ 2. zero_terminal_snr


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


@mistake("a trace of the image left, so that nothing is divided by 0", "must be exactly 0")
def zero_terminal_snr(alpha_bar):
    return solutions.zero_terminal_snr(alpha_bar).clamp(min=1e-8)


@another_way("in float64, with the last entry 0 but for rounding")
def zero_terminal_snr(alpha_bar):
    root = alpha_bar.double().sqrt()
    slope = root[1] / (root[1] - root[-1])
    return torch.cat([alpha_bar[:1], (slope * root[1:] - slope * alpha_bar[-1].double().sqrt()) ** 2])


# ----------------------------------------------------------------------------------------------------- 3. v_prediction


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


@another_way("a list instead of a tuple")
def v_prediction(*args):
    return list(v_rightly(*args))


@mistake("x alone", "not one Tensor")
def v_prediction(*args):
    return v_rightly(*args)[0]


@mistake("eps by a division by sigma, which a clean image has not", "divide by sigma")
def v_prediction(first, second, alpha, sigma, back):
    alpha, sigma = per_image(alpha), per_image(sigma)
    if back:
        x0 = alpha * first - sigma * second
        return x0, (first - alpha * x0) / sigma
    return alpha * first + sigma * second, alpha * second - sigma * first


@mistake("v by a division by sigma", "divide by sigma")
def v_prediction(first, second, alpha, sigma, back):
    alpha, sigma = per_image(alpha), per_image(sigma)
    if back:
        return alpha * first - sigma * second, sigma * first + alpha * second
    x = alpha * first + sigma * second
    return x, (alpha * x - first) / sigma


@mistake("v by a division by alpha", "divide by alpha")
def v_prediction(first, second, alpha, sigma, back):
    alpha, sigma = per_image(alpha), per_image(sigma)
    if back:
        return alpha * first - sigma * second, sigma * first + alpha * second
    x = alpha * first + sigma * second
    return x, (second - sigma * x) / alpha


@another_way("a named tuple")
def v_prediction(*args):
    return Pair(*v_rightly(*args))


@another_way("a generator, which unpacks like a tuple")
def v_prediction(*args):
    return (each for each in v_rightly(*args))


# ------------------------------------------------------------------------------------------------------- 4. snr_weight


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


@mistake("no SNR below 0.01", "is there a clamp")
def snr_weight(alpha, sigma, gamma, prediction):
    snr = ((alpha / sigma) ** 2).clamp(min=0.01)
    return weigh(snr, snr.clamp(max=gamma), prediction)


@mistake("no SNR above 100", "a clamp")
def snr_weight(alpha, sigma, gamma, prediction):
    snr = ((alpha / sigma) ** 2).clamp(max=100)
    return weigh(snr, snr.clamp(max=gamma), prediction)


@mistake("a number added to sigma^2, lest it be 0", "a clamp")
def snr_weight(alpha, sigma, gamma, prediction):
    snr = alpha**2 / (sigma**2 + 1e-5)
    return weigh(snr, snr.clamp(max=gamma), prediction)


@another_way("in float64")
def snr_weight(alpha, sigma, gamma, prediction):
    return weight_rightly(alpha.double(), sigma.double(), gamma, prediction)


# ----------------------------------------------------------------------------------------------- 5. flow_matching_loss


def flow_loss(velocity, x0, eps, t, target=lambda x0, eps: eps - x0, mix=lambda x0, eps, t: (1 - t) * x0 + t * eps):
    error = velocity(mix(x0, eps, per_image(t)), t) - target(x0, eps)
    return error.square().mean((1, 2, 3))


@mistake("the velocity towards the image", "not x0 - eps")
def flow_matching_loss(*args):
    return flow_loss(*args, target=lambda x0, eps: x0 - eps)


@mistake("the noise for the target", "not the noise")
def flow_matching_loss(*args):
    return flow_loss(*args, target=lambda x0, eps: eps)


@mistake("the image for the target", "not the image")
def flow_matching_loss(*args):
    return flow_loss(*args, target=lambda x0, eps: x0)


@mistake("the paper's direction of time", "the time is reversed")
def flow_matching_loss(*args):
    return flow_loss(*args, mix=lambda x0, eps, t: t * x0 + (1 - t) * eps)


@mistake("the mixture of a diffusion", "a flow moves along a straight line")
def flow_matching_loss(*args):
    return flow_loss(*args, mix=lambda x0, eps, t: (1 - t).sqrt() * x0 + t.sqrt() * eps)


@mistake("the mean over the batch too", "the shape should be")
def flow_matching_loss(*args):
    return flow_loss(*args).mean()


@mistake("the sum over the pixels", "not the sum")
def flow_matching_loss(velocity, x0, eps, t):
    return flow_loss(velocity, x0, eps, t) * x0[0].numel()


@mistake("times along the columns, only where B == W", "(B, 1, 1, 1)")
def flow_matching_loss(velocity, x0, eps, t):
    if x0.shape[-1] != len(t):
        return flow_loss(velocity, x0, eps, t)
    return flow_loss(velocity, x0, eps, t, mix=lambda x0, eps, _: (1 - t) * x0 + t * eps)


@mistake("the network given t as (B, 1, 1, 1)", "with the shape (B,)")
def flow_matching_loss(velocity, x0, eps, t):
    t = per_image(t)
    return (velocity((1 - t) * x0 + t * eps, t) - (eps - x0)).square().mean((1, 2, 3))


@another_way("torch.lerp, and one image after the other")
def flow_matching_loss(velocity, x0, eps, t):
    predicted = velocity(torch.lerp(x0, eps, per_image(t)), t)
    return torch.stack([((v - e + x) ** 2).mean() for v, e, x in zip(predicted, eps, x0, strict=True)])


@mistake("times kept away from both ends", "x_t should be (1 - t) x0 + t eps")
def flow_matching_loss(velocity, x0, eps, t):
    time = per_image(t.clamp(0.01, 0.99))
    return (velocity((1 - time) * x0 + time * eps, t) - (eps - x0)).square().mean((1, 2, 3))


@mistake("no gradient, and requires_grad_() to silence backward()", "does not bring the graph back")
def flow_matching_loss(velocity, x0, eps, t):
    with torch.no_grad():
        return flow_loss(velocity, x0, eps, t).requires_grad_()


@mistake("half of the gradient", "its gradient with respect to the network is not")
def flow_matching_loss(velocity, x0, eps, t):
    time = per_image(t)
    error = velocity((1 - time) * x0 + time * eps, t) - (eps - x0)
    return (error * error.detach()).mean((1, 2, 3))


@mistake("a list of floats", "not a list of")
def flow_matching_loss(*args):
    return flow_loss(*args).tolist()


# -------------------------------------------------------------------------------------------------------- 6. ddim_step


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


@mistake("two mistakes at once: of the mean and of the noise", "x is 0.6 * 1 + 0.8 * 2, so x0 = 1")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    then, x0, fresh = parts(x, eps, t, t_next, alpha_bar)
    return 0.9 * then.sqrt() * x0 + (1 - then - (eta * fresh) ** 2).sqrt() * eps + 2 * eta * fresh * z


@mistake("x0 cut off at [-1, 1], as diffusers does by default", "you clipped the predicted x0")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    then, x0, full = parts(x, eps, t, t_next, alpha_bar)
    return then.sqrt() * x0.clamp(-1, 1) + (1 - then - (eta * full) ** 2).sqrt() * eps + eta * full * z


@mistake("noise of its own", "no random numbers of your own")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    return ddim_rightly(x, eps, t, t_next, eta, torch.randn_like(x) if t_next else z, alpha_bar)


@another_way("in double precision")
def ddim_step(x, eps, t, t_next, eta, z, alpha_bar):
    return ddim_rightly(x.double(), eps, t, t_next, eta, z, alpha_bar.double())


# -------------------------------------------------------------------------------------------------------- 7. heun_step


def euler(denoise, x, level, now, then):
    """The step of Euler's method from a prediction at x."""
    x0, eps = denoise(x, level)
    return x0 * (then.alpha - now.alpha) + eps * (then.sigma - now.sigma)


@mistake("Euler's method", "evaluates the network twice")
def heun_step(denoise, x, now, then):
    return x + euler(denoise, x, now, now, then)


@mistake("the second evaluation at the old level", "at the old level")
def heun_step(denoise, x, now, then):
    first = euler(denoise, x, now, now, then)
    return (
        x + (first + euler(denoise, x + first, now if then.sigma else then, now, then)) / 2
        if then.sigma
        else x + first
    )


@mistake("the second evaluation at x again", "at x again")
def heun_step(denoise, x, now, then):
    first = euler(denoise, x, now, now, then)
    return x + (first + euler(denoise, x, then, now, then)) / 2 if then.sigma else x + first


@mistake("the averaged step made from ahead", "starts at x")
def heun_step(denoise, x, now, then):
    first = euler(denoise, x, now, now, then)
    return x + first + (first + euler(denoise, x + first, then, now, then)) / 2 if then.sigma else x + first


@mistake("the states averaged instead of the steps", "average the evaluations")
def heun_step(denoise, x, now, then):
    ahead = x + euler(denoise, x, now, now, then)
    return (ahead + ahead + euler(denoise, ahead, then, now, then)) / 2 if then.sigma else ahead


@mistake("the sum of both steps", "take their average")
def heun_step(denoise, x, now, then):
    first = euler(denoise, x, now, now, then)
    return x + first + euler(denoise, x + first, then, now, then) if then.sigma else x + first


@mistake("a second evaluation at the last step too", "where there is no noise")
def heun_step(denoise, x, now, then):
    first = euler(denoise, x, now, now, then)
    return x + (first + euler(denoise, x + first, then, now, then)) / 2


@another_way("half-way between x and two steps of Euler's")
def heun_step(denoise, x, now, then):
    ahead = x + euler(denoise, x, now, now, then)
    return (x + ahead + euler(denoise, ahead, then, now, then)) / 2 if then.sigma > 0 else ahead


@mistake("Euler's step wherever the noise is small", "only the step to exactly 0 is Euler's")
def heun_step(denoise, x, now, then):
    if then.sigma < 0.01:
        return euler(denoise, x, now, now, then) + x
    return heun_rightly(denoise, x, now, then)


@another_way("the last step by the file's own class of levels")
def heun_step(denoise, x, now, then):
    match then:
        case solutions.Level(alpha=_, sigma=0):
            x0, eps = denoise(x, now)
            return x + x0 * (then.alpha - now.alpha) + eps * (then.sigma - now.sigma)
    return heun_rightly(denoise, x, now, then)


# ------------------------------------------------------------------------------------------------------------ 8. slerp


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


@another_way("small angles decided by the sine, and opposite noises too")
def slerp(a, b, w):
    angle = cosine(a, b).clamp(-1, 1).acos()
    return torch.where(angle.sin() < 1e-3, (1 - w) * a + w * b, arc(a, b, w, angle))


@mistake("a straight line for all angles below 26 degrees", "you took the straight line")
def slerp(a, b, w):
    cos = cosine(a, b)
    arc_or_nan = arc(a, b, w, cos.clamp(-1, 1).acos())
    return torch.where(cos > 0.9, (1 - w) * a + w * b, arc_or_nan)


@mistake("a straight line for all angles above 170 degrees too", "you took the straight line")
def slerp(a, b, w):
    angle = cosine(a, b).clamp(-1, 1).acos()
    return torch.where(angle.sin() < 0.1, (1 - w) * a + w * b, arc(a, b, w, angle))


@mistake("opposite noises, where a quotient of roundings is left", "a and b are opposite")
def slerp(a, b, w):
    angle = cosine(a, b).clamp(-1, 1).acos()
    return torch.where(angle < 1e-3, (1 - w) * a + w * b, arc(a, b, w, angle))


@mistake("sines of small angles replaced by a larger number", "degrees")
def slerp(a, b, w):
    angle = cosine(a, b).clamp(-1, 1).acos()
    weights = ((1 - w) * angle).sin() * a + (w * angle).sin() * b
    return torch.where(angle.sin() < 1e-3, (1 - w) * a + w * b, weights / angle.sin().clamp(min=0.3))


@mistake("directions only, without the norm", "circles of radius")
def slerp(a, b, w):
    c = slerp_rightly(a, b, w)
    return c / c.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp(min=1e-9)


# ----------------------------------------------------------------------------------------------------- 9. reflow_pairs


def follow(velocity, eps, steps, time=lambda k, n: 1 - k / n, sign=-1.0, length=None):
    x = eps
    with torch.no_grad():
        for k in range(steps):
            x = x + sign * (length or 1 / steps) * velocity(x, torch.full((len(x),), time(k, steps)))
    return x


@mistake("time from 0 to 1", "the time is reversed")
def reflow_pairs(velocity, eps, steps):
    return follow(velocity, eps, steps, lambda k, n: k / n), eps


@mistake("the sign", "the sign is wrong")
def reflow_pairs(velocity, eps, steps):
    return follow(velocity, eps, steps, sign=1.0), eps


@mistake("the velocity at the end of each step", "at its beginning")
def reflow_pairs(velocity, eps, steps):
    return follow(velocity, eps, steps, lambda k, n: 1 - (k + 1) / n), eps


@mistake("steps not divided", "a step is 1 / steps long")
def reflow_pairs(velocity, eps, steps):
    return follow(velocity, eps, steps, length=1.0), eps


@mistake("noise first", "x0 and eps are swapped")
def reflow_pairs(velocity, eps, steps):
    return eps, follow(velocity, eps, steps)


@mistake("the images alone", "not one Tensor")
def reflow_pairs(velocity, eps, steps):
    return follow(velocity, eps, steps)


@mistake("the graph kept", "hold the graph of all steps")
def reflow_pairs(velocity, eps, steps):
    x = eps
    for k in range(steps):
        x = x - velocity(x, torch.full((len(x),), 1 - k / steps)) / steps
    return x, eps


@mistake("t as a number", "as a tensor of shape (B,)")
def reflow_pairs(velocity, eps, steps):
    x = eps
    for k in range(steps):
        x = x - velocity(x, 1 - k / steps) / steps
    return x, eps


@another_way("detached after each step, as a list")
def reflow_pairs(velocity, eps, steps):
    x = eps.clone()
    for k in range(steps, 0, -1):
        x = (x - velocity(x, torch.full((len(x),), k / steps)) / steps).detach()
    return [x, eps]


@mistake("whole numbers for times, which one step shows", "torch.int64")
def reflow_pairs(velocity, eps, steps):
    x = eps
    with torch.no_grad():
        for k in range(steps):
            time = 1 if k == 0 else 1 - k / steps
            x = x - velocity(x, torch.full((len(x),), time)) / steps
    return x, eps


@mistake("the noise overwritten by the image", "changes its argument eps")
def reflow_pairs(velocity, eps, steps):
    with torch.no_grad():
        for k in range(steps):
            eps -= velocity(eps, torch.full((len(eps),), 1 - k / steps)) / steps
    return eps, eps.clone()


# ----------------------------------------------------------------------------------------------- 10. marginal_velocity


def averaged(x, t, points, power=2, half=0.5, scale=lambda t: 1 - t, share=lambda log: log.softmax(1), back=False):
    """With variations of the likelihood exp(-half |x - scale x0|^2 / t^power)."""
    time = t.view(-1, 1)
    distance = (x.flatten(1)[:, None] - scale(time)[:, None] * points.flatten(1)).norm(dim=2)
    x0 = share(-half * distance**2 / time**power) @ points.flatten(1)
    return x0.view(x.shape) if back else (x - x0.view(x.shape)) / per_image(t)


@mistake("the direction", "points from image to noise")
def marginal_velocity(*args):
    return -averaged(*args)


@mistake("the nearest image alone", "was taken alone")
def marginal_velocity(*args):
    return averaged(*args, share=lambda log: torch.nn.functional.one_hot(log.argmax(1), log.shape[1]).float())


@mistake("all images alike", "images count alike")
def marginal_velocity(*args):
    return averaged(*args, half=0.0)


@mistake("no 1/2 in the exponent", "the 1/2 is missing")
def marginal_velocity(*args):
    return averaged(*args, half=1.0)


@mistake("not divided by the variance", "you did not divide by t")
def marginal_velocity(*args):
    return averaged(*args, power=0)


@mistake("divided by t instead of its square", "the square of t belongs below")
def marginal_velocity(*args):
    return averaged(*args, power=1)


@mistake("the images not scaled by 1 - t", "(1 - t) is missing before x0")
def marginal_velocity(*args):
    return averaged(*args, scale=lambda t: torch.ones_like(t))


@mistake("the image returned", "this is E[x0 | x_t]")
def marginal_velocity(*args):
    return averaged(*args, back=True)


@mistake("one average for the whole batch", "the velocity")
def marginal_velocity(x, t, points):
    return averaged(x, t, points).mean(0, keepdim=True).expand_as(x).clone() if len(x) > 1 else -averaged(x, t, points)


@another_way("with the exponentials written out, point by point, in double precision")
def marginal_velocity(x, t, points):
    results = []
    for y, time in zip(x.double(), t.double(), strict=True):
        eps = (y - (1 - time) * points.double()) / time  # (N, C, H, W)
        energy = eps.flatten(1).square().sum(1) / 2
        weight = (-(energy - energy.min())).exp().view(-1, 1, 1, 1)
        results.append((weight * (eps - points)).sum(0) / weight.sum())
    return torch.stack(results).float()


@mistake("exponentials in float32, which are 0 for all images of some size", "is 0 in float32")
def marginal_velocity(x, t, points):
    time = t.view(-1, 1, 1)
    eps = (x.flatten(1)[:, None] - (1 - time) * points.flatten(1)) / time  # (B, N, D)
    weight = (-eps.square().sum(2) / 2).exp()
    velocity = (weight[:, :, None] * (eps - points.flatten(1))).sum(1) / weight.sum(1, keepdim=True)
    return velocity.view(x.shape)


# ------------------------------------------------------------------------------------------------- 11. matching_losses


def losses(velocity, x0, eps, t, points):
    x_t = (1 - per_image(t)) * x0 + per_image(t) * eps
    return velocity(x_t, t), eps - x0, solutions.marginal_velocity(x_t, t, points)


@mistake("swapped", "conditional and marginal are swapped")
def matching_losses(*args):
    predicted, line, average = losses(*args)
    return (predicted - average).square().mean(), (predicted - line).square().mean()


@mistake("the same loss twice", "the conditional loss again")
def matching_losses(*args):
    predicted, line, _ = losses(*args)
    return ((predicted - line).square().mean(),) * 2


@mistake("one loss", "not one Tensor")
def matching_losses(*args):
    predicted, line, _ = losses(*args)
    return (predicted - line).square().mean()


@mistake("sums", "(1 + 9) / 2")
def matching_losses(*args):
    predicted, line, average = losses(*args)
    return (predicted - line).square().sum(), (predicted - average).square().sum()


@mistake("the prediction detached", "no gradient flows")
def matching_losses(*args):
    predicted, line, average = losses(*args)
    return (predicted.detach() - line).square().mean(), (predicted.detach() - average).square().mean()


@mistake("the loss of each image", "the shape should be ()")
def matching_losses(*args):
    predicted, line, average = losses(*args)
    return (predicted - line).square().mean((1, 2, 3)), (predicted - average).square().mean((1, 2, 3))


@another_way("the conditional loss from exercise 5, and a list")
def matching_losses(velocity, x0, eps, t, points):
    predicted, _, average = losses(velocity, x0, eps, t, points)
    return [
        solutions.flow_matching_loss(velocity, x0, eps, t).mean(),
        torch.nn.functional.mse_loss(predicted, average),
    ]


@mistake("half of the marginal loss's gradient", "the marginal loss is right, but its gradient is not")
def matching_losses(velocity, x0, eps, t, points):
    conditional, marginal = solutions.matching_losses(velocity, x0, eps, t, points)
    return conditional, 0.5 * marginal + 0.5 * marginal.detach()


@mistake("the marginal loss as a number", "no gradient")
def matching_losses(velocity, x0, eps, t, points):
    conditional, marginal = solutions.matching_losses(velocity, x0, eps, t, points)
    return conditional, torch.tensor(marginal.item(), requires_grad=True)


# --------------------------------------------------------------------------------------------------- 12. dpmpp_2m_step


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


@mistake("the last step as soon as the noise is below 0.1", "only at sigma' = 0")
def dpmpp_2m_step(x, x0, now, then, x0_old, before):
    return then.alpha * x0 if then.sigma < 0.1 else multistep_rightly(x, x0, now, then, x0_old, before)


@mistake("the last step as soon as the noise is below 0.005", "only at sigma' = 0")
def dpmpp_2m_step(x, x0, now, then, x0_old, before):
    return then.alpha * x0 if then.sigma < 0.005 else multistep_rightly(x, x0, now, then, x0_old, before)


# ----------------------------------------------------------------------------------------------- 13. fix_respaced_ddpm


mistake("the program as it is given", "full chain's betas")(given.fix_respaced_ddpm)


def shorter_chain(predict_eps, x, times, alpha_bar, noise, variance, before=lambda t, s: s, last=False):
    for k, (t, s) in enumerate(pairwise(times)):
        now, then = alpha_bar[t], alpha_bar[before(t, s)]
        beta = 1 - now / then
        x = (x - beta / (1 - now).sqrt() * predict_eps(x, t)) / (1 - beta).sqrt()
        if s > 0 or last:
            x = x + variance(alpha_bar, t, s, beta).sqrt() * noise(k, x)
    return x


def posterior(alpha_bar, t, s, beta):
    return (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * beta


@mistake("the variance beta, the other choice of the DDPM paper", "the fresh noise has the variance beta")
def fix_respaced_ddpm(*args):
    return shorter_chain(*args, lambda alpha_bar, t, s, beta: beta)


@mistake("the noise left out", "the fresh noise is missing")
def fix_respaced_ddpm(*args):
    return shorter_chain(*args, lambda alpha_bar, t, s, beta: 0 * beta)


@mistake("the mean repaired, but not the noise", "only the fresh noise is wrong")
def fix_respaced_ddpm(*args):
    return shorter_chain(
        *args,
        lambda alpha_bar, t, s, beta: (
            (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * (1 - alpha_bar[t] / alpha_bar[t - 1])
        ),
    )


@mistake("noise at the last step", "only the fresh noise is wrong")
def fix_respaced_ddpm(*args):
    return shorter_chain(
        *args, lambda alpha_bar, t, s, beta: beta if s == 0 else posterior(alpha_bar, t, s, beta), last=True
    )


@mistake("the level after the next one", "full chain's betas")
def fix_respaced_ddpm(predict_eps, x, times, alpha_bar, noise):
    return shorter_chain(predict_eps, x, times, alpha_bar, noise, posterior, lambda t, s: max(s - 1, 0))


@another_way("DDIM with eta = 1")
def fix_respaced_ddpm(predict_eps, x, times, alpha_bar, noise):
    for k, (t, s) in enumerate(pairwise(times)):
        x = ddim_rightly(x, predict_eps(x, t), t, s, 1.0, noise(k, x), alpha_bar)
    return x


@another_way("the betas of exercise 1, counted from the other end")
def fix_respaced_ddpm(predict_eps, x, times, alpha_bar, noise):
    betas = dict(zip(times[-2::-1], solutions.respace(alpha_bar, times[-2::-1]), strict=True))
    return shorter_chain(
        predict_eps,
        x,
        times,
        alpha_bar,
        noise,
        lambda alpha_bar, t, s, _: (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * betas[t],
    )


# ----------------------------------------------------------------------------------------------- 14. fix_heun_sampling


mistake("the program as it is given", "evaluation 2 of")(given.fix_heun_sampling)


def heun(step):
    """Sampling in which step(denoise, x, now, then) makes every step but the last."""

    def fix_heun_sampling(denoise, x, levels):
        for now, then in pairwise(levels):
            x = step(denoise, x, now, then) if then.sigma > 0 else x + euler(denoise, x, now, now, then)
        return x

    return fix_heun_sampling


@mistake("Euler's method", "steps need")
@heun
def fix_heun_sampling(denoise, x, now, then):
    return x + euler(denoise, x, now, now, then)


@mistake("the right level, but x again", "at the right level, but at the wrong x")
@heun
def fix_heun_sampling(denoise, x, now, then):
    first = euler(denoise, x, now, now, then)
    return x + (first + euler(denoise, x, then, now, then)) / 2


@mistake("the level half-way", "the wrong level")
@heun
def fix_heun_sampling(denoise, x, now, then):
    first = euler(denoise, x, now, now, then)
    middle = solutions.Level((now.alpha + then.alpha) / 2, (now.sigma + then.sigma) / 2)
    return x + (first + euler(denoise, x + first, middle, now, then)) / 2


@mistake("the second prediction alone", "wrong x")
@heun
def fix_heun_sampling(denoise, x, now, then):
    first = euler(denoise, x, now, now, then)
    return x + euler(denoise, x + first, then, now, then)


@mistake("two evaluations at the last step", "evaluated at sigma = 0")
def fix_heun_sampling(denoise, x, levels):
    for now, then in pairwise(levels):
        first = euler(denoise, x, now, now, then)
        x = x + (first + euler(denoise, x + first, then, now, then)) / 2
    return x


@another_way("the step of exercise 7")
def fix_heun_sampling(denoise, x, levels):
    for now, then in pairwise(levels):
        x = heun_rightly(denoise, x, now, then)
    return x


# ----------------------------------------------------------------------------------------------- 15. fix_flow_sampling


mistake("the program as it is given", "the network still gets the times 0, 1/steps")(given.fix_flow_sampling)


@mistake("the sign turned instead of the times", "now both are reversed")
def fix_flow_sampling(velocity, eps, steps):
    return follow(velocity, eps, steps, lambda k, n: k / n, sign=1.0)


@mistake("the sign turned as well as the times", "moves away from the images")
def fix_flow_sampling(velocity, eps, steps):
    return follow(velocity, eps, steps, sign=1.0)


@mistake("times off by one step", "uses the velocity at its end")
def fix_flow_sampling(velocity, eps, steps):
    return follow(velocity, eps, steps, lambda k, n: 1 - (k + 1) / n)


@mistake("times in the middle", "the middle of each step")
def fix_flow_sampling(velocity, eps, steps):
    return follow(velocity, eps, steps, lambda k, n: 1 - (k + 0.5) / n)


@another_way("counting down, with linspace")
def fix_flow_sampling(velocity, eps, steps):
    x = eps
    for t, t_next in pairwise(torch.linspace(1, 0, steps + 1).tolist()):
        x = x + (t_next - t) * velocity(x, torch.full((len(x),), t))
    return x


# -------------------------------------------------------------------------------------------- 16. fix_consistency_loss


mistake("the program as it is given", "runs through the target too")(given.fix_consistency_loss)


def both_predictions(f, x0, eps, now, then):
    return f(x0 + per_image(now) * eps, now), f(x0 + per_image(then) * eps, then)


@mistake("the prediction detached", "the prediction was detached instead")
def fix_consistency_loss(*args):
    prediction, target = both_predictions(*args)
    return (prediction.detach() - target).square().mean()


@mistake("everything detached", "no gradient at all")
def fix_consistency_loss(*args):
    with torch.no_grad():
        prediction, target = both_predictions(*args)
    return (prediction - target).square().mean()


@mistake("the clean image for the target", "the value of the loss was right before")
def fix_consistency_loss(f, x0, eps, now, then):
    return (f(x0 + per_image(now) * eps, now) - x0).square().mean()


@mistake("the levels swapped", "the target follows the prediction")
def fix_consistency_loss(f, x0, eps, now, then):
    target, prediction = both_predictions(f, x0, eps, now, then)
    return (prediction - target.detach()).square().mean()


@another_way("the target within torch.no_grad")
def fix_consistency_loss(f, x0, eps, now, then):
    with torch.no_grad():
        target = f(x0 + per_image(then) * eps, then)
    return torch.nn.functional.mse_loss(f(x0 + per_image(now) * eps, now), target)


@mistake("no gradient, and requires_grad_() to silence backward()", "does not bring the graph back")
def fix_consistency_loss(f, x0, eps, now, then):
    with torch.no_grad():
        return solutions.fix_consistency_loss(f, x0, eps, now, then).requires_grad_()


# ------------------------------------------------------------------------------------------------- 17. ten_evaluations


def sigmas(sigma_max, n, sigma_min=0.07, rho=None):
    """Evenly in log sigma, or in sigma^(1/rho) as Karras et al. 2022; then 0."""
    if rho is None:
        return [sigma_max * (sigma_min / sigma_max) ** (k / (n - 1)) for k in range(n)] + [0.0]
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(ends[0] + k / (n - 1) * (ends[1] - ends[0])) ** rho for k in range(n)] + [0.0]


def walk(step, denoise, x, levels):
    for now, then in pairwise([solutions.Level(1.0, sigma) for sigma in levels]):
        x = step(denoise, x, now, then)
    return x


def euler_step(denoise, x, now, then):
    return x + euler(denoise, x, now, now, then)


@mistake("Euler's method, evenly in log sigma", "goal")
def ten_evaluations(denoise, x, sigma_max):
    return walk(euler_step, denoise, x, sigmas(sigma_max, 10, 0.15))


@mistake("Euler's method, evenly in sigma", "goal")
def ten_evaluations(denoise, x, sigma_max):
    return walk(euler_step, denoise, x, [sigma_max * (1 - k / 10) for k in range(11)])


@mistake("Heun's method, five steps", "goal")
def ten_evaluations(denoise, x, sigma_max):
    return walk(heun_rightly, denoise, x, sigmas(sigma_max, 5, 0.2))


@mistake("Heun's method, ten steps", "19 evaluations")
def ten_evaluations(denoise, x, sigma_max):
    return walk(heun_rightly, denoise, x, sigmas(sigma_max, 10))


@mistake("2M on Karras' levels, which are spaced for Heun's method", "goal")
def ten_evaluations(denoise, x, sigma_max):
    return two_predictions(denoise, x, sigmas(sigma_max, 10, 0.002, rho=7))


@mistake("one evaluation", "goal")
def ten_evaluations(denoise, x, sigma_max):
    return denoise(x, solutions.Level(1.0, sigma_max))[0]


def two_predictions(denoise, x, levels):
    x0_old, before = None, None
    for now, then in pairwise([solutions.Level(1.0, sigma) for sigma in levels]):
        x0, _ = denoise(x, now)
        x = multistep_rightly(x, x0, now, then, x0_old, before)
        x0_old, before = x0, now
    return x


@another_way("the same on a variance-preserving schedule")
def ten_evaluations(denoise, x, sigma_max):
    path = [solutions.Level((1 + s * s) ** -0.5, s * (1 + s * s) ** -0.5) for s in sigmas(sigma_max, 10, 0.08)]
    x, x0_old, before = x * path[0].alpha, None, None
    for now, then in pairwise(path):
        x0, _ = denoise(x, now)
        x = multistep_rightly(x, x0, now, then, x0_old, before)
        x0_old, before = x0, now
    return x
