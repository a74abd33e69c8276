"""denoising_diffusion_pytorch, trained as its Trainer does and sampled with its own DDIM."""

import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA
from tqdm import tqdm

from bench.measurements.budgets import Budgets, Files
from common.data import Images
from common.io.files import write_atomically

SAMPLE_BATCH = 50


def samples_of_package(
    budgets: Budgets, data: Images, lrs: Sequence[float], weights: Sequence[str], sampling_steps: int
) -> Files:
    """Samples for every learning rate, of averaged and raw weights. All networks are trained before any is sampled."""
    for lr in lrs:
        if not all(weights_file(budgets, lr, minutes).exists() for minutes in budgets.minutes):
            print(f"denoising_diffusion_pytorch at {lr:g} for {max(budgets.minutes):g} minutes", flush=True)
            train_package(budgets, data, lr)
    files = {}
    for kind, minutes, lr in product(weights, budgets.minutes, lrs):
        path = budgets.file(f"ddp lr{lr:g} {kind} ddim{sampling_steps}", minutes)
        if not path.exists():
            print(f"samples of its {kind} weights after {minutes:g} minutes at {lr:g}", flush=True)
            save_samples(weights_file(budgets, lr, minutes), kind, path, budgets.n, sampling_steps, budgets.seed)
        files[f"denoising_diffusion_pytorch, lr {lr:g}, {kind}", minutes] = path
    return files


def weights_file(budgets: Budgets, lr: float, minutes: float) -> Path:
    return budgets.file(f"ddp lr{lr:g} weights", minutes).with_suffix(".pt")


def new_diffusion(sampling_steps: int) -> GaussianDiffusion:
    """Model and loss of the package's README."""
    return GaussianDiffusion(Unet(dim=32, channels=1), image_size=32, sampling_timesteps=sampling_steps)


def train_package(budgets: Budgets, data: Images, lr: float) -> None:
    """Train as the package's Trainer does, and write the weights at the end of each budget."""
    torch.manual_seed(budgets.seed)
    # (N, 1, 32, 32) bytes; the padding is black, like the border of every digit
    images = F.pad(data.pixels, (2, 2, 2, 2))
    diffusion = new_diffusion(sampling_steps=50)  # has no influence on the training
    optimizer = torch.optim.Adam(diffusion.parameters(), lr, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)
    bf16, seconds, remaining = budgets.resolved_precision == "bf16", 0.0, sorted(budgets.minutes)
    with tqdm(unit="step") as bar:
        while remaining:
            for indices in torch.randperm(len(images)).split(16):
                start = time.monotonic()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = diffusion(images[indices].float() / 255)  # it maps [0, 1] to [-1, 1] itself
                loss.backward()
                torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                ema.update()
                seconds += time.monotonic() - start
                bar.update()
                if seconds >= 60 * remaining[0]:
                    states = {"averaged": ema.ema_model.state_dict(), "raw": diffusion.state_dict()}
                    path = weights_file(budgets, lr, remaining.pop(0))
                    write_atomically(path, lambda file, states=states: torch.save(states, file))
                    if not remaining:
                        return


def save_samples(weights: Path, kind: str, path: Path, n: int, sampling_steps: int, seed: int) -> None:
    """Write n samples of its own DDIM, cropped to 28 pixels, as bytes (n, 28, 28, 1). kind: averaged or raw."""
    diffusion = new_diffusion(sampling_steps)
    diffusion.load_state_dict(torch.load(weights, weights_only=True)[kind])
    diffusion.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        counts = [min(SAMPLE_BATCH, n - first) for first in range(0, n, SAMPLE_BATCH)]
        batches = [diffusion.sample(count) for count in counts]  # each (b, 1, 32, 32) in [0, 1]
    images = torch.cat(batches)[:, :, 2:-2, 2:-2].clamp(0, 1)
    pixels = (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    write_atomically(path, lambda file: np.save(file, pixels))
