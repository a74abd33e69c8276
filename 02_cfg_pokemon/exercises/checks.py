"""The grader's randomised checks of chapter 2:
sizes, captions and numbers are drawn anew, and compared with the solutions.

Where an answer is wrong, it is compared with the results of well-known mistakes too,
so that the message can name the mistake.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from common.grade.checks import Exercise, call, expect, expect_gradients, integer, load, numbers, tensor, uniform

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")
right = load(Path(__file__).with_name("solutions.py"), "course_solutions")


# ---------------------------------------------------------------------------------------------- random material


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng)


FAR = "; elsewhere your result is right, so look for a clamp, a constant or a threshold that only shows here"


def image_shape(rng: torch.Generator) -> tuple[int, int, int, int]:
    """(B, C, H, W), no two alike."""
    B, C, H, W = (integer(rng, low, high) for low, high in ((4, 5), (2, 3), (6, 7), (8, 9)))
    return B, C, H, W


def per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


# ------------------------------------------------------------------------------------------------------ the checks


def check_caption_dropout(ex, rng):
    for square in (True, False):
        B = integer(rng, 3, 5)
        M, D = (B, B) if square else (integer(rng, 6, 7), integer(rng, 8, 9))
        text, empty = normal(rng, B, M, D), normal(rng, M, D)
        u = (torch.randperm(B, generator=rng) + 0.1 + 0.8 * torch.rand(B, generator=rng)) / B
        p = integer(rng, 1, B - 1) / B  # between two of them, so that some are dropped and some are not
        got = call(ex.caption_dropout, text, empty, u, p)
        if isinstance(got, Tensor):
            assert len(got) == B, (
                f"of {B} captions you return {len(got)}: the images stay in the batch, and only their captions are dropped"
            )
        drop = (u < p)[:, None, None]
        wrong = {
            "one random number decided for the whole batch, and all captions were dropped; each image has its own": empty.expand_as(
                text
            ),
            "one random number decided for the whole batch, and none was dropped; each image has its own": text,
            "you dropped where u is above p, and so the share 1 - p": torch.where(drop, text, empty),
            "the empty caption is a text too, not zeros": torch.where(drop, 0.0, text),
        }
        if square:
            wrong |= {
                "each number of a token was dropped by itself, not each image: u < p must have the shape (B, 1, 1)": torch.where(
                    u < p, empty, text
                ),
                "each token was dropped by itself, not each image: u < p must have the shape (B, 1, 1)": torch.where(
                    (u < p)[:, None], empty, text
                ),
            }
        expect(
            got, torch.where(drop, empty, text), "captions with u < p become the empty one, and the others stay", wrong
        )
    text, empty = normal(rng, 2, 3, 4).requires_grad_(), normal(rng, 3, 4).requires_grad_()
    got = call(ex.caption_dropout, text, empty, torch.tensor([0.05, 0.7]), 0.1)
    goal = torch.cat([empty[None], text[1:]])
    expect(got, goal, "at p = 0.1 the caption with u = 0.05 is dropped, and that with 0.7 stays")
    expect_gradients(got, goal, {"the captions": text, "the empty caption": empty})


WORDS = ("wings", "horns", "a tail", "spots", "a hat", "teeth")
COLOURS = ("red", "blue", "green", "pink", "white")


class Encoder:
    """Gives every caption numbers of its own. Remembers what it was given."""

    def __init__(self, rng: torch.Generator):
        self.wave, self.calls = 1 + torch.rand(6, generator=rng), []

    def read(self, texts: list[str]) -> Tensor:
        number = torch.tensor([float(sum(place * ord(c) for place, c in enumerate(text, 1))) for text in texts])
        return torch.sin(number[:, None] * self.wave).view(-1, 2, 3)

    def __call__(self, texts: list[str]) -> Tensor:
        assert isinstance(texts, list | tuple), f"encode takes a list of captions, not {type(texts).__name__}"
        for text in texts:
            assert isinstance(text, str), (
                f"encode was given {text!r} as a caption; where there is no negative prompt, give it the empty one, ''"
            )
        self.calls.append(list(texts))
        return self.read(texts)


def check_negative_prompt(ex, rng):
    B, encode = integer(rng, 3, 4), Encoder(rng)
    prompts = [f"a {COLOURS[i]} monster" for i in torch.randperm(5, generator=rng)[:B]]
    words = [WORDS[i] for i in torch.randperm(6, generator=rng)[:B]]
    negatives = [*words[: B - 2], None, words[-1]]
    got = call(ex.negative_prompt, encode, list(prompts), list(negatives))
    for text in sum(encode.calls, []):
        for prompt, word in zip(prompts, negatives, strict=True):
            assert not (word and word in text and prompt in text), (
                f"the negative prompt was joined with the prompt, '{text}', which asks for {word}; it is a caption of its own"
            )
    if isinstance(got, Tensor):
        assert len(got) != 3 * B, (
            "there are three captions for each image; the negative prompt takes the place of the empty one"
        )
        assert len(got) == 2 * B, f"{B} images have {2 * B} captions, not {len(got)}"
    away = [word or "" for word in negatives]
    wrong = {
        "the halves are swapped: first what to lead away from, then the prompts": prompts + away,
        "the captions alternate; first come all to lead away from, then all prompts": [
            text for both in zip(away, prompts, strict=True) for text in both
        ],
        "the negative prompts were not used": [""] * B + prompts,
        "the first image's negative prompt was used for all": away[:1] * B + prompts,
        "None became a word; it means the empty caption, ''": [str(word) for word in negatives] + prompts,
    }
    wrong = {message: encode.read(texts) for message, texts in wrong.items()}
    expect(
        got,
        encode.read(away + prompts),
        "first the negative prompts, with '' where there is none, and then the prompts",
        wrong,
    )
    assert len(encode.calls) == 1, f"encode should be called once, with all captions, not {len(encode.calls)} times"


class Network:
    """Some function of image, time and caption. Remembers its inputs."""

    def __init__(self, rng: torch.Generator):
        self.a, self.x, self.t, self.text = uniform(rng, 0.5, 1.5), [], [], []

    def predict(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return torch.cos(self.a * x + per_image(t)) + per_image(text.mean((1, 2))) * x

    def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        assert isinstance(t, Tensor) and t.shape == (len(x),), f"{len(x)} images need {len(x)} times t, as a tensor"
        assert len(text) == len(x), f"the network was given {len(x)} images and {len(text)} captions"
        self.x.append(x.clone())
        self.t.append(t.clone())
        self.text.append(text.clone())
        return self.predict(x, t, text)


def check_guided(ex, rng):
    check_one_guidance(ex, rng, image_shape(rng), uniform(rng, 2, 6))
    for w in (0.0, 1.0, 12.0):
        check_one_guidance(ex, rng, (1, 3, 4, 5), w)


def check_one_guidance(ex, rng, shape, w):
    x, t, context, net = (
        normal(rng, *shape),
        torch.randperm(1000, generator=rng)[: shape[0]],
        normal(rng, 2 * shape[0], 3, 5),
        Network(rng),
    )
    got = call(ex.guided, net, x, t, context, w)
    assert len(net.x) == 1, f"the network should be called once, with both halves as one batch, not {len(net.x)} times"
    wrong = {"the images came as 0 0 1 1; they should come as 0 1 0 1, as the captions do": x.repeat_interleave(2, 0)}
    expect(net.x[0], torch.cat([x, x]), "the network should get all images, and then all of them again", wrong)
    expect(net.text[0], context, "the network should be given context as it is")
    assert torch.equal(net.t[0], torch.cat([t, t])), (
        f"t should be doubled as the images are: {t.tolist() * 2}, not {net.t[0].tolist()}"
    )

    uncond, cond = net.predict(x, t, context[: len(x)]), net.predict(x, t, context[len(x) :])
    wrong = {
        "the sign is wrong: guidance leads away from the caption": uncond - w * (cond - uncond),
        "this is Ho & Salimans' w, (1 + w) cond - w uncond, which guides by one more": (1 + w) * cond - w * uncond,
        "the halves are swapped: the first B predictions are uncond": cond + w * (uncond - cond),
        "the difference is all that is left: add uncond": w * (cond - uncond),
        "this is the conditional prediction, without guidance": cond,
    }
    expect(got, uncond + w * (cond - uncond), "the result should be uncond + w (cond - uncond)", wrong)


def check_dynamic_threshold(ex, rng):
    x0 = 30 * normal(rng, 1, 3, 12, 12)  # as guidance with a large scale leaves it at high noise
    s = x0.abs().flatten().quantile(0.995)
    hint = f"values up to {float(x0.abs().max()):.0f} come out otherwise{FAR}"
    wrong = {
        f"s was limited to {most}; it has no upper limit": x0.clamp(-most, most) / most for most in (2, 3, 5, 10, 20)
    }
    expect(call(ex.dynamic_threshold, x0, 0.995), x0.clamp(-s, s) / s, hint, wrong)
    x0 = 0.9 * x0 / x0.abs().max()
    expect(call(ex.dynamic_threshold, x0, 0.995), x0, "an image that lies within [-1, 1] does not change")

    B, C, H, W = image_shape(rng)
    strength = torch.linspace(0.2, 3, B)[torch.randperm(B, generator=rng)]
    x0 = (normal(rng, B, C, H, W) + 0.2) * per_image(strength) * torch.linspace(0.7, 1.3, C).view(-1, 1, 1)
    share = uniform(rng, 0.8, 0.95)

    def shrunk(s: Tensor) -> Tensor:
        return x0.clamp(-s, s) / s

    free = per_image(x0.abs().flatten(1).quantile(share, dim=1))
    s, batch = free.clamp(min=1), x0.abs().flatten().quantile(share)
    wrong = {
        "you clipped at -1 and 1 and did nothing else; clip at s, and divide by it": x0.clamp(-1, 1),
        "the division by s is missing": x0.clamp(-s, s),
        "s is below 1 for some images, which stretches them; s is at least 1": shrunk(free),
        "s is that of the whole batch; each image has its own": shrunk(batch.clamp(min=1)),
        "s is that of the whole batch, and not at least 1; each image has its own": shrunk(batch),
        "s is a quantile of |x0|, not of x0": shrunk(per_image(x0.flatten(1).quantile(share, dim=1)).clamp(min=1)),
        "you divided without clipping": x0 / s,
        "s is the largest |x0|; it should be a quantile, which a few extreme pixels hardly change": shrunk(
            x0.abs().amax((1, 2, 3), keepdim=True).clamp(min=1)
        ),
        "s is at least 1, not at most": shrunk(free.clamp(max=1)),
        "each channel was given a threshold of its own, which changes the colours": shrunk(
            x0.abs().flatten(2).quantile(share, dim=2)[:, :, None, None].clamp(min=1)
        ),
    }
    expect(call(ex.dynamic_threshold, x0, share), shrunk(s), "each image is clipped at its s and divided by it", wrong)


def check_rescale(ex, rng):
    B, C, *rest = image_shape(rng)
    phi = uniform(rng, 0.2, 0.4)
    cond = normal(rng, B, C, *rest) * per_image(1 + torch.randperm(B, generator=rng))
    contrast = torch.linspace(0.5, 2, C).view(-1, 1, 1)  # the channels differ
    guided = (normal(rng, B, C, *rest) + 1) * contrast * per_image(2 + 2 * torch.rand(B, generator=rng))

    def ratio(dims: tuple[int, ...], power: int = 1) -> Tensor:
        return (cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True)) ** power

    def mixed(factor: Tensor, phi: float = phi) -> Tensor:
        return phi * factor * guided + (1 - phi) * guided

    image, whole = (1, 2, 3), (0, 1, 2, 3)
    wrong = {
        "phi was forgotten: mix with phi rescaled + (1 - phi) guided": mixed(ratio(image), 1),
        "phi is the wrong way round: it is the share of the rescaled prediction": mixed(ratio(image), 1 - phi),
        "the ratio is upside down: multiply by std(cond) and divide by std(guided)": mixed(ratio(image, -1)),
        "you took variances; it is standard deviations": mixed(ratio(image, 2)),
        "the standard deviation is that of the whole batch; each image has its own": mixed(ratio(whole)),
        "each channel has a factor of its own; take the standard deviation over the channels, too": mixed(
            ratio((2, 3))
        ),
        "you rescaled cond; it is the guided prediction that is rescaled": phi * ratio(image, -1) * cond
        + (1 - phi) * guided,
        "you rescaled cond, and forgot phi; it is the guided prediction that is rescaled": ratio(image, -1) * cond,
        "you mixed with cond; the other part of the mixture is guided, as it was": phi * ratio(image) * guided
        + (1 - phi) * cond,
    }
    hint = "the result should be phi guided std(cond) / std(guided) + (1 - phi) guided, with the standard deviations of each image"
    expect(call(ex.rescale, guided, cond, phi), mixed(ratio(image)), hint, wrong)
    cond, guided = 0.01 * cond[:1], 0.02 * guided[:1]  # one image of little contrast
    got = tensor(call(ex.rescale, guided, cond, phi), guided)
    expect(100 * got, 100 * mixed(ratio(image)), f"for an image of little contrast, {hint}{FAR}")


def check_attribute_accuracy(ex, rng):
    asked = torch.randint(-1, 4, (600, 11), generator=rng)  # as many as chapter 2 evaluates
    check_one_accuracy(ex, torch.where(torch.rand(600, 11, generator=rng) < 0.93, asked, 3 - asked), asked)
    check_one_accuracy(ex, torch.tensor([[2, 1]]), torch.tensor([[2, -1]]))  # a single requested value
    N, K = integer(rng, 9, 14), integer(rng, 3, 5)
    asked = torch.randint(0, 4, (N, K), generator=rng)
    # some captions ask for much, some for little
    left_open = torch.rand(N, K, generator=rng) < torch.linspace(0.1, 0.8, N)[:, None]
    left_open[:, 0] = False
    asked[left_open] = -1
    n = int((asked >= 0).sum())
    for misses in (integer(rng, 2, n // 4), 0, n):
        # Which questions are missed is not by chance, so that averaging by pictures shows: the last captions ask for
        # little.
        missed = (asked >= 0).flatten().cumsum(0).view(N, K) > n - misses
        found = torch.where(
            asked >= 0, torch.where(missed, (asked + 1) % 4, asked), torch.randint(0, 4, (N, K), generator=rng)
        )
        check_one_accuracy(ex, found, asked)


def check_one_accuracy(ex, found: Tensor, asked: Tensor):
    counts, hits = asked >= 0, (found == asked) & (asked >= 0)
    n, k, N = int(counts.sum()), int(hits.sum()), len(asked)
    share, each = k / n, hits.sum(1) / counts.sum(1)

    def wilson(n: int, whole: bool = True, z: float = 1.96) -> Tensor:
        middle, reach = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
        below = 1 + z**2 / n
        return torch.tensor(
            [middle / below - reach / below, middle / below + reach / below]
            if whole
            else [middle - reach, middle + reach]
        )

    got = numbers(call(ex.attribute_accuracy, found, asked), 3, "share, low and high").float()
    right_share = torch.tensor(float(share))
    wrong = {
        "what was not requested is counted as if it were wrong": k / asked.numel(),
        "what was not requested is counted as if it were right": (k + asked.numel() - n) / asked.numel(),
        "this is the mean of the shares of the images; count requested values, not images": each.mean().item(),
        "this is the share of images in which everything is right; count requested values": (each == 1)
        .float()
        .mean()
        .item(),
        "this is k, the number found, not the share k / n": float(k),
        "this is in percent; the share lies between 0 and 1": 100 * float(share),
        "0 is a value like all others; only -1 was left open": float(
            ((found == asked) & (asked > 0)).sum() / (asked > 0).sum().clamp(min=1)
        ),
        "the share was rounded, so that its interval is another one": round(float(share), 2),
    }
    wrong = {message: torch.tensor(value) for message, value in wrong.items() if not math.isclose(value, share)}
    hint = f"{n} values were requested in all, and {k} of them were found"
    expect(1000 * got[0], 1000 * right_share, hint, {message: 1000 * value for message, value in wrong.items()}, 0.1)
    reach = 1.96 * math.sqrt(share * (1 - share) / n)
    plain = torch.tensor([share - reach, share + reach])
    wrong = {
        "the interval was rounded": torch.tensor([round(float(value), 2) for value in wilson(n)]),
        "this is the interval of 90 %; for 95 %, z is 1.96": wilson(n, z=1.645),
        "this is the interval of 99 %; for 95 %, z is 1.96": wilson(n, z=2.576),
        "this is the plain interval; take Wilson's": plain,
        "this is the plain interval, cut off at 0 and 1; take Wilson's": plain.clamp(0, 1),
        "n is the number of requested values, not of images": wilson(N),
        "n is the number of requested values, not of all found ones": wilson(asked.numel()),
        "Wilson's formula is divided by 1 + z^2/n as a whole": wilson(n, whole=False),
    }
    # n may equal N
    wrong = {message: value for message, value in wrong.items() if not torch.allclose(value, wilson(n))}
    expect(got[1:], wilson(n), f"this is not Wilson's interval for {k} of {n}", wrong)


def check_loss_guided_step(ex, rng):
    check_one_guided_step(ex, rng, image_shape(rng), uniform(rng, 0.3, 0.5), uniform(rng, 0.6, 0.8))
    for now, then in ((0.01, 0.05), (0.9, 1.0)):  # much noise, and the last step
        check_one_guided_step(ex, rng, (1, 3, 4, 5), now, then)


def check_one_guided_step(ex, rng, shape, now, then):
    strength, weight = uniform(rng, 1, 2), torch.ones((), requires_grad=True)
    wave, goal, x = uniform(rng, 0.5, 1.5), normal(rng, shape[1], 1, 1), normal(rng, *shape)
    root, sigma, sigma_s = now**0.5, (1 - now) ** 0.5, (1 - then) ** 0.5

    def predict_eps(x: Tensor) -> Tensor:
        # other pixels matter, other images do not
        return weight * torch.cos(wave * x) + x.mean((2, 3), keepdim=True)

    def loss(x0: Tensor) -> Tensor:
        return (x0.mean((2, 3), keepdim=True) - goal).square().flatten(1).sum(1) + x0.square().mean((1, 2, 3))

    def gradient(of: str) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            eps = predict_eps(y.detach() if of == "x, without the network" else y)
            x0 = (y - sigma * eps) / root
            return torch.autograd.grad(loss(x0).sum(), x0 if of == "x0" else y)[0]

    eps, true = predict_eps(x).detach(), gradient("x")

    def step(gradient: Tensor | float, factor: float = strength * sigma) -> Tensor:
        guided = eps + factor * gradient
        return then**0.5 * (x - sigma * guided) / root + sigma_s * guided

    wrong = {
        "the sign is wrong: this step makes the loss larger": step(-true),
        "the gradient is that with respect to x0; it is with respect to x, back through the network": step(
            gradient("x0")
        ),
        "the gradient did not run through the network: call predict_eps with the x that requires a gradient": step(
            gradient("x, without the network")
        ),
        "sigma_t is missing before the gradient": step(true, strength),
        "sigma_t^2 stands before the gradient; it is sigma_t": step(true, strength * sigma**2),
        "the loss was averaged over the batch; sum it, or a larger batch weakens the guidance": step(true / len(x)),
        "x0 is guided, but the noise that is added back is not: both come from eps_tilde": step(true)
        - sigma_s * strength * sigma * true,
        "the noise is guided, but x0 is not: both come from eps_tilde": step(0) + sigma_s * strength * sigma * true,
        "this is DDIM: the gradient was not used": step(0),
        "you clipped the guided x0 to [-1, 1], as some samplers do; this step does not": then**0.5
        * ((x - sigma * (eps + strength * sigma * true)) / root).clamp(-1, 1)
        + sigma_s * (eps + strength * sigma * true),
    }
    atol = 1e-4 * max(1.0, float(step(true).abs().max()))
    got = call(ex.loss_guided_step, predict_eps, loss, x, now, then, strength)
    hint = f"x_s is not the DDIM step with eps_hat + strength sigma_t times the gradient, from alpha_bar {now:.2f} to {then:.2f}"
    expect(got, step(true), hint, wrong, atol)
    assert not got.requires_grad, (
        "x_s still holds the graph of this step: return it detached, or memory grows with every step"
    )
    with torch.no_grad():
        try:
            got = call(ex.loss_guided_step, predict_eps, loss, x, now, then, strength)
        except RuntimeError as problem:
            raise AssertionError(
                f"samplers run within torch.no_grad(); take the gradient within torch.enable_grad() ({problem})"
            ) from None
    expect(got, step(true), "within torch.no_grad() the step is another one", atol=atol)


def attend(x: Tensor, text: Tensor, weights: list[Tensor], heads: int, scale: float, dim: int = -1) -> Tensor:
    q, k, v = (
        (y @ W.T).unflatten(-1, (heads, -1)).transpose(1, 2) for y, W in zip((x, text, text), weights, strict=True)
    )
    return ((q @ k.transpose(-1, -2) / scale).softmax(dim) @ v).transpose(1, 2).flatten(2)


def check_cross_attention(ex, rng):
    heads, d = integer(rng, 2, 3), integer(rng, 3, 4)
    B, C, D, N, M = integer(rng, 2, 3), heads * d, integer(rng, 5, 7), 2 * integer(rng, 4, 5), integer(rng, 3, 5)
    x, text = normal(rng, B, N, C), normal(rng, B, M, D)
    weights = [normal(rng, C, C), normal(rng, C, D), normal(rng, C, D)]
    q, k, v = x @ weights[0].T, text @ weights[1].T, text @ weights[2].T

    def by_bare_view() -> Tensor:
        a, b, c = (y.reshape(B, heads, -1, d) for y in (q, k, v))
        return ((a @ b.mT / d**0.5).softmax(-1) @ c).reshape(B, N, C)

    def alternating() -> Tensor:
        a, b, c = (y.unflatten(-1, (d, heads)).movedim(-1, 1) for y in (q, k, v))
        return ((a @ b.mT / d**0.5).softmax(-1) @ c).movedim(1, -1).flatten(2)

    goal = attend(x, text, weights, heads, d**0.5)
    wrong = {
        "the division by sqrt(d) is missing": attend(x, text, weights, heads, 1),
        "you divided by sqrt(C); a head is d = C / heads numbers wide": attend(x, text, weights, heads, C**0.5),
        "divide by sqrt(d), not by d": attend(x, text, weights, heads, d),
        "the softmax runs over the pixels; it is over the tokens, so that the attention of each pixel sums to 1": attend(
            x, text, weights, heads, d**0.5, dim=-2
        ),
        "the softmax runs over the heads; it is over the tokens": attend(x, text, weights, heads, d**0.5, dim=1),
        "this is one head, as wide as all together": attend(x, text, weights, 1, C**0.5),
        "this is one head, as wide as all together, though divided by the right sqrt(d)": attend(
            x, text, weights, 1, d**0.5
        ),
        "K and V are swapped: queries are compared with K, and the result averages V": attend(
            x, text, [weights[0], weights[2], weights[1]], heads, d**0.5
        ),
        "W_q is kept as (out, in): Q = x W_q^T": attend(x, text, [weights[0].T, *weights[1:]], heads, d**0.5),
        "a bare view mixes the pixels up: split the last axis, (B, N, heads, d), then move the axis of heads forward": by_bare_view(),
        "the heads have every other column; head 0 should have columns 0 ... d-1": alternating(),
        "before the heads are put side by side, their axis must be moved back behind the pixels": (
            goal.unflatten(-1, (heads, d)).transpose(1, 2).reshape(B, N, C)
        ),
    }
    expect(
        call(ex.cross_attention, x, text, *weights, heads),
        goal,
        "this is not softmax(Q K^T / sqrt(d)) V, head by head",
        wrong,
    )
    public.check_attention_learns(
        ex, x, text, weights, heads, lambda *inputs: attend(*inputs[:2], inputs[2:], heads, d**0.5)
    )
    public.check_large_scores(ex, x[:1], text[:1], weights, heads, lambda *args: attend(*args, heads, d**0.5))
    one = call(ex.cross_attention, x, text[:, :1], *weights, heads)
    expect(one, v[:, :1].expand_as(x), "a single token has all the attention: the result is its value")


def check_tilted_gaussian(ex, rng):
    m, s, w = uniform(rng, 0.5, 1) * (-1) ** integer(rng, 0, 1), uniform(rng, 0.4, 0.8), uniform(rng, 1.5, 5)

    def gaussian(precision: float, shift: float = w * m / s**2) -> Tensor:
        return torch.tensor([shift / precision, precision**-0.5])

    goal = gaussian(1 - w + w / s**2)
    wrong = {
        "this is N(w m, s^2): the product of the densities is not shifted by w": torch.tensor([w * m, s]),
        "this is p(x | c)^w; p(x)^(1 - w) is missing": gaussian(w / s**2),
        "p(c | x) is proportional to p(x | c) / p(x); you did not divide by p(x)": gaussian(1 + w / s**2),
        "the second number should be the standard deviation; this is the variance": torch.stack(
            [goal[0], goal[1] ** 2]
        ),
        "these are the mean and standard deviation of p(x | c), whatever w is": torch.tensor([m, s]),
    }
    got = numbers(call(ex.tilted_gaussian, m, s, w), 2, "mean and standard deviation").float()
    expect(got, goal, f"for m = {m:.2f}, s = {s:.2f} and w = {w:.2f} the product has another mean or width", wrong)
    far = 1 - 7.5 + 7.5 / 0.15**2  # a narrow blob far away, and the scale of Stable Diffusion
    cases = ((0.0, m, s, [0.0, 1.0]), (1.0, m, s, [m, s]), (7.5, 2.0, 0.15, [7.5 * 2 / 0.15**2 / far, far**-0.5]))
    for w, m, s, by_hand in cases:
        expect(
            public.two(call(ex.tilted_gaussian, m, s, w)),
            torch.tensor(by_hand),
            f"for m = {m:.2g}, s = {s:.2g} and w = {w:g} mean and standard deviation are {by_hand[0]:.3f} and {by_hand[1]:.3f}",
        )


def check_fix_training_batch(ex, rng):
    p, seed = uniform(rng, 0.2, 0.4), integer(rng, 0, 10**6)
    public.dropped_captions(ex, 2, 4, p, seed)  # as many captions as tokens and numbers
    public.check_dropped(public.dropped_captions(ex, 40, 60, p, seed), p)


def check_fix_guided_sampling(ex, rng):
    alpha_bar = torch.cat([torch.ones(1), (1 - 0.05 - 0.2 * torch.rand(9, generator=rng)).cumprod(0)])
    times = [9, integer(rng, 5, 8), integer(rng, 2, 4), 0]
    shape, w = image_shape(rng), uniform(rng, 2, 4)
    x, text, empty = normal(rng, *shape), normal(rng, shape[0], 3, 5), normal(rng, 3, 5)
    mistakes = public.guided_sampling_mistakes(w)
    wrong = {message: public.guided_sample(x, text, empty, times, alpha_bar, mix) for message, mix in mistakes.items()}
    goal = public.guided_sample(x, text, empty, times, alpha_bar, lambda u, c: u + w * (c - u))
    mix = lambda u, c: u + w * (c - u)  # noqa: E731
    wrong[public.CLIPPED] = public.guided_sample(x, text, empty, times, alpha_bar, mix, limit=1.0)
    one = call(ex.fix_guided_sampling, public.shifted_eps, x[:1], text[:1], empty, w, times, alpha_bar)
    expect(
        tensor(one, goal[:1]),
        goal[:1],
        "one image alone comes out otherwise",
        {m: v[:1] for m, v in wrong.items()},
        1e-3,
    )
    got = call(ex.fix_guided_sampling, public.shifted_eps, x, text, empty, w, times, alpha_bar)
    expect(
        got, goal, "these are not the samples of guided DDIM; is something broken that was right before?", wrong, 1e-3
    )


def check_fix_masked_attention(ex, rng):
    B, heads, N, M, d = (integer(rng, *limits) for limits in ((2, 3), (2, 3), (4, 6), (7, 9), (3, 5)))
    N = M if integer(rng, 0, 1) else N  # as many pixels as tokens: then a mask on the wrong axis goes unnoticed
    q, k, v = normal(rng, B, heads, N, d), normal(rng, B, heads, M, d), normal(rng, B, heads, M, d)
    lengths = 2 + torch.randperm(M - 2, generator=rng)[:B]
    mask = torch.arange(M) < lengths[:, None]
    scores, axis = q @ k.mT / d**0.5, mask[:, None, None]

    def of(scores: Tensor) -> Tensor:
        return scores.softmax(-1) @ v

    wrong = {
        "a score of 0 is not a share of 0: exp(0) = 1, so padding still gets attention": of(scores * axis),
        "the padding was removed after the softmax, so the shares no longer sum to 1": (scores.softmax(-1) * axis) @ v,
        "the mask is the wrong way round: it is True for the tokens of the caption": of(
            scores.masked_fill(axis, -math.inf)
        ),
        "the mask was added as 1 and 0, which hardly lowers the share of padding": of(scores + axis),
        "the mask of the first caption was used for all": of(scores.masked_fill(~axis[:1], -math.inf)),
        "padding still gets attention": of(scores),
    }
    goal = of(scores.masked_fill(~axis, -math.inf))
    expect(
        call(ex.fix_masked_attention, q, k, v, mask),
        goal,
        "this is not attention over the caption's own tokens",
        wrong,
    )
    public.check_faint_padding(ex, q, k, v, mask)
    noise = torch.where(mask[:, None, :, None], 0.0, 1.0)
    other = call(ex.fix_masked_attention, q, k + noise, v - noise, mask)
    expect(other, goal, "another content of the padding changes the result")


def check_guidance_scale(ex, rng):
    seed = integer(rng, 1, 10**6)
    public.check_goal(ex.guidance_scale, public.INSIDE - 0.01, public.SPREAD - 0.01, uniform(rng, 0, 6.28), seed)


EXERCISES = [
    Exercise("caption_dropout", 1, check_caption_dropout),
    Exercise("negative_prompt", 1, check_negative_prompt),
    Exercise("guided", 2, check_guided),
    Exercise("dynamic_threshold", 3, check_dynamic_threshold),
    Exercise("rescale", 2, check_rescale),
    Exercise("attribute_accuracy", 4, check_attribute_accuracy),
    Exercise("loss_guided_step", 5, check_loss_guided_step),
    Exercise("cross_attention", 5, check_cross_attention),
    Exercise("tilted_gaussian", 5, check_tilted_gaussian),
    Exercise("fix_training_batch", 3, check_fix_training_batch, goal=True, covers_public=True),
    Exercise("fix_guided_sampling", 3, check_fix_guided_sampling),
    Exercise("fix_masked_attention", 3, check_fix_masked_attention),
    Exercise("guidance_scale", 5, check_guidance_scale, goal=True),
]
