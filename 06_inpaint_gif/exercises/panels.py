"""What chapter 6's exercises look like when they are right: a panel for each, drawn by common.grade.show_exercises.

Each panel is a function of (ex, right, axis): the answers to show, the solutions, and where to draw. No network is
needed: dishes are drawn, what is painted into a hole is another dish, and the curves of panel 5 come from a Gaussian,
whose ideal denoiser is known exactly.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.dishes.dataset import draw
from common.grade.checks import load
from common.io.pixels import to_bytes, to_float

public = load(Path(__file__).with_name("test_exercises.py"), "course_public_tests")

BLUE, ORANGE, GREY = "tab:blue", "tab:orange", "0.7"
PAINT = to_float(torch.tensor([31, 119, 180])).view(3, 1, 1)  # tab:blue


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plate(side: int, dish: str = "番茄炒蛋", glaze: str = "blue-and-white", table: str = "gingham") -> Tensor:
    """A stir-fried dish, seen from above. (3, side, side)"""
    looks = {"dish": dish, "style": "stir-fried", "vessel": "round plate", "glaze": glaze, "table": table}
    return to_float(torch.from_numpy(draw(looks, side, pose=1)))


def show(axis, image: Tensor, left: float, top: float, wide: float, high: float | None = None) -> None:
    """image (3 or 1, H, W) in [-1, 1], with its upper left corner at (left, top)"""
    pixels = to_bytes(image).expand(3, -1, -1).movedim(0, -1)
    axis.imshow(pixels, extent=(left, left + wide, top - (high or wide), top), interpolation="nearest")


def frame(axis, left: float, top: float, wide: float, high: float, **line) -> None:
    axis.plot([left, left + wide, left + wide, left, left], [top, top, top - high, top - high, top], **line)


def bare(axis, left: float, right: float, bottom: float, top: float) -> None:
    axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axis.axis("off")


# -------------------------------------------------------------------------------------------------------- the panels


def camera_move(ex, right, axis):
    image = plate(48)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            moved, mask = ex.camera_move(image, 14 * dx, 14 * dy)
            show(axis, moved * (1 - mask) + PAINT * mask, 52 * (dx + 1), -52 * (dy + 1), 48)
    frame(axis, 52, -52, 48, 48, color=ORANGE)
    bare(axis, -3, 155, -155, 3)
    axis.set_title("blue: new after a move to that side")


def composite(ex, right, axis):
    original, mask = plate(64), torch.zeros(1, 64, 64)
    mask[:, 20:54, 26:58] = 1
    got = ex.composite(original, plate(64, "韭菜炒蛋", "black", "slate"), mask, 6)
    changed = (got != original).any(0, keepdim=True).float()
    show(axis, got, 0, 0, 64)
    show(axis, 0.8 * (1 - changed) + PAINT * changed, 68, 0, 64)
    for left in (0, 68):
        frame(axis, left + 26, -20, 32, 34, color=ORANGE, linestyle="--" if left == 0 else "-", linewidth=1)
    bare(axis, -2, 134, -66, 2)
    axis.set_title("left: the composite; right: changed pixels in blue")


def clip_loss(ex, right, axis):
    dish = torch.arange(10) % 5
    images, texts = (noise(10, 2, seed=seed).requires_grad_() for seed in (1, 2))
    optimizer = torch.optim.Adam([images, texts], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        ex.clip_loss(images, texts, dish, torch.tensor(math.log(6))).backward()
        optimizer.step()
    turn = torch.linspace(0, 2 * math.pi, 100)
    axis.plot(turn.cos(), turn.sin(), color=GREY, linewidth=1)
    for k in range(5):
        for points, radius, mark, size in ((images, 1.0, "o", 13), (texts, 1.0, "+", 9)):
            at = radius * F.normalize(points[dish == k], dim=1).detach()
            fill = {"fillstyle": "none", "color": f"C{k}"} if mark == "o" else {"color": "black"}
            axis.plot(at[:, 0], at[:, 1], mark, markersize=size, **fill)
    axis.text(0, 0, "circles: images\ncrosses: names\ncolours: dishes", ha="center", va="center", fontsize=9)
    bare(axis, -1.25, 1.25, -1.25, 1.25)
    axis.set_title("embeddings after training with your loss")


def nine_channels(ex, right, axis):
    image, mask, mix = plate(64)[None], torch.zeros(1, 1, 64, 64), noise(4, 3, 1, 1, seed=3) / 2
    mask[..., :20, :], mask[..., 44:] = 1, 1
    weight, x = noise(32, 4, 3, 3) / 6, noise(1, 4, 16, 16)
    wide, shown = ex.nine_channels(weight, x, image, mask, lambda images: F.conv2d(F.avg_pool2d(images, 4), mix))
    for k, (channel, kernel) in enumerate(zip(shown[0], wide.movedim(1, 0), strict=True)):
        row, column = divmod(k, 4) if k < 4 else (1, 1.5) if k == 4 else (2, k - 5)
        left, top = 19 * column, -23 * row
        show(axis, channel[None] / (1 if k == 4 else 2), left, top, 16)
        frame(axis, left, top, 16, 16, color=GREY, linewidth=0.8)
        axis.text(left + 8, top - 16.5, f"weight {kernel.norm():.1f}", ha="center", va="top", fontsize=7)
    for row, name in enumerate(("noisy\nlatents", "mask of\nthe hole", "masked\npicture")):
        axis.text(-2, -23 * row - 8, name, ha="right", va="center", fontsize=8)
    bare(axis, -15, 75, -67, 2)
    axis.set_title("input channels and the norms of their weights")


def wave(n: int) -> Tensor:
    """The covariance of smooth closed curves. (n, n)"""
    away = torch.arange(n) * (2 * math.pi / n)
    return torch.exp(6 * ((away[:, None] - away).cos() - 1)) + 1e-4 * torch.eye(n)


def repaint_step(ex, right, axis):
    n, N, U, B = 48, 30, 12, 12
    angle = torch.linspace(math.pi / 2, 0, N + 1)
    alpha, sigma = angle.cos(), angle.sin()
    alpha[0], sigma[-1] = 1e-3, 0
    C, draws = wave(n), iter(noise(N * U, B, 1, 1, n, seed=5))

    def step(x: Tensor, k: int) -> Tensor:
        """DDPM with the ideal denoiser."""
        a, s, a_next, s_next = alpha[k], sigma[k], alpha[k + 1], sigma[k + 1]
        x0 = x @ torch.linalg.solve(a**2 * C + s**2 * torch.eye(n), a * C)
        variance = (s**2 - (a / a_next * s_next) ** 2) * (s_next / s) ** 2
        return (
            a_next * x0 + (s_next**2 - variance).clamp(min=0).sqrt() * (x - a * x0) / s + variance.sqrt() * next(draws)
        )

    curve = torch.linalg.cholesky(C) @ noise(n, seed=8)
    mask, z = torch.zeros(1, 1, 1, n), curve.view(1, 1, 1, n).expand(B, 1, 1, n)
    mask[..., 16:34] = 1
    hole, known = mask.flatten() > 0, mask.flatten() == 0
    x = noise(B, 1, 1, n, seed=6)
    for k in range(N):
        more = noise(2, U, B, 1, 1, n, seed=100 + k)
        x = ex.repaint_step(step, x, z * (1 - mask), mask.expand(B, 1, 1, n), k, alpha, sigma, more[0], more[1, 1:])
    to_hole = torch.linalg.solve(C[known][:, known], C[known][:, hole])  # what the known part says of the hole
    mean, std = curve[known] @ to_hole, (C[hole][:, hole] - C[hole][:, known] @ to_hole).diagonal().sqrt()
    place = torch.arange(n)
    axis.fill_between(place[hole], mean - 2 * std, mean + 2 * std, color=ORANGE, alpha=0.35, linewidth=0)
    axis.plot(place, x[:, 0, 0].T, color=BLUE, linewidth=0.7)
    axis.plot(place[:16], curve[:16], color="black", linewidth=2.5)
    axis.plot(place[34:], curve[34:], color="black", linewidth=2.5)
    axis.set(xticks=[], yticks=[], ylim=(float(curve.min()) - 2.5, float(curve.max()) + 2.5))
    axis.set_title("samples (blue), known part (black), exact ± 2 sd (orange)")


def zoom_scales(ex, right, axis):
    for first, last, color in ((1.0, 8.0, BLUE), (8.0, 1.0, "tab:green")):
        axis.semilogy(
            ex.zoom_scales(25, first, last, 0.2),
            "o",
            color=color,
            markersize=4,
            label="zoom out" if last > first else "zoom in",
        )
        start, end = (math.log(value) for value in (first, last))
        middle = [math.exp(start + (end - start) * s) for s in (0, 1)]
        axis.plot([2.4, 21.6], middle, color=ORANGE, linewidth=1, zorder=0)  # v = 1.25: from t = 0.1 to 0.9
    axis.set(xlabel="frame", ylabel="scale", yticks=[1, 2, 4, 8], yticklabels=["1", "2", "4", "8"])
    axis.minorticks_off()
    axis.set_title("scale of each frame; orange: constant factor")
    axis.legend(frameon=False, loc="center left", fontsize=8)


def looped(ex, right, axis):
    strip = plate(96)[:, 46:50].mean(1, keepdim=True)  # (3, 1, 96)
    shot = torch.stack([strip[..., 3 * k : 3 * k + 30] for k in range(22)])  # (22, 3, 1, 30)
    for left, loop, m in ((0, "pingpong", 0), (34, "seamless", 8)):
        film = ex.looped(shot, loop, m)
        times = 90 / len(film)
        whole = film.repeat(math.ceil(times), 1, 1, 1)[:84, :, 0]  # (84, 3, 30)
        show(axis, whole.movedim(1, 0), left, 0, 30, 84)
        axis.text(left + 15, -86, loop, ha="center", va="top", fontsize=8)
        for start in range(0, 84, len(film)):
            axis.plot([left - 1.5, left], [-start, -start], color="black", linewidth=1, clip_on=False)
    axis.text(-4, -42, "time", rotation=90, ha="right", va="center", fontsize=8)
    bare(axis, -8, 66, -93, 2)
    axis.set_title("one row of pixels over time: no cut, no stop")


def one_palette(ex, right, axis):
    image, K = plate(84), 10
    frames = torch.stack([to_bytes(image[:, 10:74, left : left + 64]) for left in (0, 20)])
    pixels = frames.movedim(1, -1).reshape(-1, 3).float()
    start = pixels[pixels.sum(1).argsort()[torch.linspace(0, len(pixels) - 1, K).long()]]
    palette, index = ex.one_palette(frames, start, 6)
    for k in range(2):
        show(axis, to_float(frames[k]), 68 * k, 0, 64)
        show(axis, to_float(palette[index[k]]).movedim(-1, 0), 68 * k, -68, 64)
    show(axis, to_float(palette).T[:, None], 0, -136, 132, 10)
    bare(axis, -2, 134, -148, 2)
    axis.set_title(f"two frames (above) in {K} common colours (below)")


def name_weight(ex, right, axis):
    a = torch.linspace(-6, 6, 61)
    q, k = torch.stack([a * 2, torch.zeros(61), torch.zeros(61), torch.zeros(61)], 1), torch.tensor([1.0, 0, 0, 0])
    for zeros, color, label in ((1, BLUE, "w, 1 zero token"), (8, "tab:green", "w, 8 zero tokens")):
        w, slope = ex.name_weight(q, k, zeros)
        exact = torch.cat([a[:, None], torch.zeros(61, zeros)], 1).softmax(1)[:, 0]
        axis.plot(a, w, color=color, label=label)
        axis.plot(a[::5], exact[::5], "o", color=ORANGE, markersize=4, zorder=3)
        axis.plot(a, slope, color=color, linestyle="--", linewidth=1)
    axis.set(xlabel="a", ylim=(-0.05, 1.05))
    axis.set_title("weights (dots: softmax) and derivatives (dashed)")
    axis.legend(frameon=False, fontsize=8)


def ideal_inpainting(ex, right, axis):
    n = 48
    C, hole = wave(n), torch.zeros(n, dtype=torch.bool)
    hole[16:34] = True
    curve = torch.linalg.cholesky(C) @ noise(n, seed=8)
    mean, covariance = ex.ideal_inpainting(curve[~hole][None], C, hole)
    std, place = covariance.diagonal().clamp(min=0).sqrt(), torch.arange(n)
    axis.fill_between(place[hole], mean[0] - 2 * std, mean[0] + 2 * std, color=ORANGE, alpha=0.35, linewidth=0)
    axis.plot(place[hole], mean[0], color=BLUE)
    axis.plot(place[:16], curve[:16], color="black", linewidth=2.5)
    axis.plot(place[34:], curve[34:], color="black", linewidth=2.5)
    axis.plot(place[hole], curve[hole], ":", color="black", linewidth=1)
    axis.set(xticks=[], yticks=[])
    axis.set_title("mean (blue) ± 2 sd (orange); dotted: the true curve")


def fix_outpainting(ex, right, axis):
    def paint(moved: Tensor, mask: Tensor) -> Tensor:
        soft = F.avg_pool2d(F.pad(moved[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]  # as an autoencoder does
        return torch.where(mask > 0, moved[:, :, :1], soft)

    film = ex.fix_outpainting(paint, plate(64), 4, 5)
    for k, name in ((0, "the picture"), (1, "keyframe 1"), (5, "keyframe 5")):
        left = 67 * (0, 1, 2)[(0, 1, 5).index(k)]
        show(axis, film[k], left, 0, 64)
        axis.text(left + 32, -66, name, ha="center", va="top", fontsize=8)
    bare(axis, -2, 200, -80, 2)
    axis.set_title("the plate is as sharp in the last keyframe")


def fix_candidates(ex, right, axis):
    angle = torch.tensor([0.2, 1.1, 2.0, -0.8])
    embeddings = torch.tensor([1.0, 3.0, 1.5, 2.0])[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    text = torch.tensor([1.0, 0.4])
    chosen = int(ex.fix_candidates(lambda x: x.flatten(1), lambda t: text[None], embeddings[:, :, None, None], "a"))
    for k, each in enumerate(embeddings):
        color = BLUE if k == chosen else GREY
        axis.annotate("", each, (0, 0), arrowprops={"arrowstyle": "->", "color": color, "linewidth": 2})
    axis.annotate("", 2.5 * text, (0, 0), arrowprops={"arrowstyle": "->", "color": ORANGE, "linestyle": "--"})
    bare(axis, -2, 3, -2, 3)
    axis.set_title("chosen (blue): the smallest angle to the name (orange)")


def fix_zoom(ex, right, axis):
    scales = [1.0, 0.5, 0.25]
    image = plate(48)
    frames = ex.fix_zoom(image, scales)
    for k, frame_k in enumerate(frames):
        show(axis, frame_k, 51 * k, 0, 48)
        axis.plot([51 * k + 24] * 2, [0, -48], color="white", linewidth=0.8)
        axis.plot([51 * k, 51 * k + 48], [-24, -24], color="white", linewidth=0.8)
        axis.text(51 * k + 24, -50, f"scale {scales[k]:g}", ha="center", va="top", fontsize=8)
    spot = torch.zeros(1, 48, 48)
    spot[:, 23:25, 23:25] = 1
    away = [(each[0] / each.sum() * (torch.arange(48) + 0.5)).sum() - 24 for each in ex.fix_zoom(spot, scales)]
    bare(axis, -2, 152, -60, 2)
    axis.set_title(f"the centre moves by {max(abs(float(a)) for a in away):.2f} pixels")


def fix_regions(ex, right, axis):
    w = 60
    left, second = torch.zeros(1, 1, 1, w), torch.zeros(1, 1, 1, w)
    left[..., :40], second[..., 20:] = 1, 1
    x, level = noise(1, 1, 1, w, seed=2), right.Level(0.6, 0.8)
    x0, eps = ex.fix_regions([(lambda x, _: (0 * x + 1, x), left), (lambda x, _: (0 * x - 1, x), second)], x, level)
    axis.plot(x0.flatten(), color=BLUE, label="x0 of two regions: 1 and -1")
    axis.plot(x.flatten(), color=ORANGE, linewidth=3, alpha=0.5, label="eps of both")
    axis.plot(eps.flatten(), color="black", linewidth=0.8, label="eps, joined")
    axis.axvspan(20, 40, color="0.92", zorder=0)
    axis.set(xticks=[], yticks=[-1, 0, 1], ylim=(-3, 8))
    axis.legend(frameon=False, fontsize=8, loc="upper right")
    axis.set_title("in the overlap (grey), predictions are averaged")


def own_move(ex, right, axis):
    windows = ex.own_move(48)
    for x, y, scale in windows[::6].tolist():
        frame(axis, x - scale / 2, -y + scale / 2, scale, scale, color=GREY, linewidth=0.8)
    frame(axis, -0.5, 0.5, 1, 1, color=ORANGE, linewidth=2)
    axis.scatter(windows[:, 0], -windows[:, 1], c=torch.arange(48), cmap="viridis", s=14, zorder=3)
    axis.set(aspect="equal", xticks=[], yticks=[])
    axis.set_title("centres of the frames (dots) and some windows")


def fill_the_hole(ex, right, axis):
    data = public.Curves(48, 16, 34, seed=3, B=150)
    filled, place = ex.fill_the_hole(data.denoise, data.z, data.hole, data.noise), torch.arange(48)
    hole = data.hole
    away = (filled[:, hole].double() - data.mean) / data.std
    axis.plot(place[hole], away[:40].T, color=BLUE, linewidth=0.4)
    across = data.C[hole][:, ~hole] @ torch.linalg.solve(data.C[~hole][:, ~hole], data.C[~hole][:, hole])
    exact = (data.C[hole][:, hole] - across).diagonal().sqrt() / data.std
    axis.plot(place[hole], 2 * torch.stack([exact, -exact], 1), color=ORANGE, linewidth=2)
    axis.set(xlabel="pixel of the hole", ylim=(-5, 5))
    axis.set_title(f"samples minus mean; orange: exact ± 2 sd; spread {away.square().mean().sqrt():.2f}")
