"""Diffusion in the plane, for toy_2d.py and the lesson:
shapes made of points, a small network, its training, and pictures.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common import viz
from common.diffusion.denoiser import Denoiser
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import Schedule, make_schedule
from common.errors import UserError
from common.io.progress import with_progress
from common.models.unet import timestep_embedding
from common.random import BatchRandom

PREDICTION = "eps"  # what the network predicts; v and x0 work too
# Our own, with a long neck: the corners of its outline, clockwise from the tip of the tail.
DINOSAUR = """-100,24 -78,31 -57,44 -36,58 -15,65 5,63 20,57 31,60 38,76 43,100 48,125 57,140 69,144 86,138 92,128 83,122
70,122 63,114 60,95 58,70 54,46 46,30 45,15 45,0 30,0 29,16 22,22 5,19 -15,21 -20,15 -20,0 -36,0 -37,16 -44,25 -60,20 -80,16 -100,24"""


def draw_points(shape: str, n: int, seed: int = 0, jitter: float = 0.01) -> Tensor:
    """n points spread evenly along the lines of a shape, between about -0.9 and 0.9. (n, 2)"""
    turn, rng = np.pi * np.linspace(0, 1, 200)[:, None], np.random.default_rng(seed)
    moon, roll = np.hstack([np.cos(turn), np.sin(turn)]), np.pi + 3.5 * turn
    shapes = {  # name: lines, each (K, 2), in any unit
        "dinosaur": [np.array([corner.split(",") for corner in DINOSAUR.split()], float)],
        "swiss_roll": [roll * np.hstack([np.cos(roll), np.sin(roll)])],
        "two_moons": [moon, [1, 0.5] - moon],
        "letter": [np.vstack([moon, moon[:1]])[:, ::-1]],  # D, for diffusion
    }
    if shape not in shapes:
        raise UserError(f"unknown shape '{shape}'; choose one of {', '.join(shapes)}")
    # ends of segments
    a, b = (np.vstack([line[part] for line in shapes[shape]]) for part in (slice(-1), slice(1, None)))
    length = np.linalg.norm(b - a, axis=1)
    segment = rng.choice(len(a), n, p=length / length.sum())
    points = a[segment] + rng.random((n, 1)) * (b - a)[segment]
    points = 1.8 * (points - (a.min(0) + a.max(0)) / 2) / np.ptp(a, 0).max() + jitter * rng.standard_normal((n, 2))
    return torch.from_numpy(points).float()


class Net(nn.Sequential):
    """Layers for a point, its waves and its time: noisy points (B, 2) and times (B,) -> (B, 2).
    Waves of x help to draw fine lines.
    """

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = torch.pi * (x[:, :, None] * 2 ** torch.arange(5)).flatten(1)  # (B, 10)
        return super().forward(torch.cat([x, angles.sin(), angles.cos(), timestep_embedding(t, 32)], 1))  # (B, 2)


def make_net(width: int = 128, seed: int = 0) -> Net:
    """An untrained network with three hidden layers."""
    torch.manual_seed(seed)
    hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.SiLU())]
    return Net(nn.Linear(2 + 10 + 10 + 32, width), nn.SiLU(), *hidden, nn.Linear(width, 2))


def train(
    net: nn.Module, points: Tensor, schedule: Schedule, steps: int, batch: int = 512, lr: float = 1.5e-2, seed: int = 0
) -> list[float]:
    """Train net to predict the noise in noised points (N, 2). Returns the loss of every step."""
    optimizer, losses = torch.optim.AdamW(net.parameters()), []
    for step in with_progress("training", range(steps), unit="step"):
        draw = BatchRandom(seed, step)
        x0 = points[(draw.rand(batch) * len(points)).long()]
        loss = diffusion_loss(net, schedule, PREDICTION, x0, draw.stratified(batch), draw.randn(x0.shape)).mean()
        # a short rise, a long way down
        optimizer.param_groups[0]["lr"] = lr * min(20 * step / steps, 1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def run_toy(shape: str, steps: int, sampler: str, n: int, seed: int, out: Path) -> None:
    """Train on the points of a shape, sample n points, and save a row of moments (.png) or an animation (.gif)."""
    points, solver = draw_points(shape, 20_000, seed), Sampler.parse(sampler)
    net, schedule = make_net(seed=seed), make_schedule("cosine")
    losses = train(net, points, schedule, steps, seed=seed)
    print(f"loss {losses[0]:.3f} at the first step, {sum(losses[-100:]) / len(losses[-100:]):.3f} at the end")
    frames = solver.frames(Denoiser(net, PREDICTION), schedule, (n, 2), seed)

    gif, edges = out.suffix.lower() == ".gif", [torch.linspace(-1.3, 1.3, 141)] * 2
    moments = 1 - torch.linspace(1, 0, 40 if gif else 7) ** 2  # coarse steps first, fine steps at the end
    chosen = [frames[round(float(m) * (len(frames) - 1))] for m in moments]
    counts = torch.stack([torch.histogramdd(points, edges).hist.T.flip(0) for points in chosen])
    images = 2 * torch.exp(-0.7 * counts)[:, None] - 1  # (moments, 1, 140, 140), darker where points are denser
    print(viz.save_gif(images.split(1), out) if gif else viz.save_picture(viz.grid(images, 7), out))
