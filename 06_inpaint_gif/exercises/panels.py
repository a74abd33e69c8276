"""What chapter 6's exercises look like when they are right: a panel for each, drawn by common.grade.show_exercises.

Each panel is a function of (ex, right, axis): the answers to show, the solutions, and where to draw. No network is
needed: dishes are drawn, what is painted into a hole is another dish, and the curves of panel 5 come from a Gaussian,
whose ideal denoiser is known exactly.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.dishes.dataset import draw
from common.io.pixels import to_bytes, to_float

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
    axis.set_title("where the camera goes, it is blue")


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
    axis.set_title("a gentle edge; changed pixels, in blue, fill the hole")


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
    axis.set_title("each dish has its place, and its names are there")


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
    for row, name in enumerate(("noisy", "mask", "known")):
        axis.text(-2, -23 * row - 8, name, ha="right", va="center", fontsize=8)
    bare(axis, -15, 75, -67, 2)
    axis.set_title("the hole is empty, and new weights are 0.0")


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
    axis.set_title("painted curves join the known, within what is likely")


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
    axis.set_title("straight where each frame adds the same factor")
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
    axis.set_title("one row of pixels, frame below frame: no cut, no stop")


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
    axis.set_title(f"two frames, and their {K} colours")
