"""Images from a trained model, for sample.py."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import viz
from common.cli import pick_device
from common.diffusion.denoiser import Denoiser
from common.diffusion.sampler_spec import Sampler
from common.errors import UserError
from common.io.files import write_atomically
from common.io.pixels import to_bytes
from common.io.progress import with_progress
from common.models.model_folder import load_model


def generate(
    folder: Path,
    n: int,
    sampler: str,
    label: int | None,
    size: int | None,
    seed: int,
    batch_size: int,
    device: str,
    out: Path,
    strip: bool,
    gif: bool,
    npy: bool,
) -> None:
    """Sample n images of the model in a folder, and save them as a grid in `out`;
    strip, gif and npy are written beside it.
    """
    device = pick_device(device)
    net, schedule, prediction, clip_x0 = load_model(folder, device)
    solver = Sampler.parse(sampler)
    size, classes = size or net.cfg.size, net.cfg.classes
    if net.cfg.text_dim:
        raise UserError(
            f"{folder} is a text-to-image model; use 02_cfg_pokemon/sample.py for models of pixels, 04_latent_sd/sample.py for models of latents"
        )
    if not size:
        raise UserError(f"{folder} does not say how large its images are; give --size")
    if label is not None and not 0 <= label < (classes or 0):
        raise UserError(
            f"--label {label} does not exist: {folder} has {f'the classes 0 to {classes - 1}' if classes else 'no classes'}"
        )

    def sample(start: int, n: int) -> list[Tensor]:
        """Images start ... start + n - 1: every moment of the reverse process, each (n, C, H, W)."""
        every = torch.arange(start, start + n) % classes if label is None and classes else torch.full((n,), label or 0)
        condition = {"label": every.to(device)} if classes else {}
        denoise = Denoiser(net, prediction, clip_x0, **condition)
        return solver.frames(denoise, schedule, (n, net.cfg.in_channels, size, size), seed, start, device=device)

    began = time.perf_counter()
    frames = sample(0, min(batch_size, n))  # kept whole, for the GIF
    rest = [
        sample(start, min(batch_size, n - start))[-1]
        for start in with_progress("drawing", range(batch_size, n, batch_size), unit="batch")
    ]
    images = torch.cat([frames[-1], *rest])
    print(f"{n} images with {sampler} in {time.perf_counter() - began:.1f} s on {device}")

    print(viz.save_picture(viz.grid(images, height=480), out))
    beside = out.with_suffix("").as_posix()
    if strip:
        print(viz.save_picture(viz.strip([frame[:6] for frame in frames], height=400), Path(f"{beside}_strip.png")))
    if gif:
        print(viz.save_gif([frame[:16] for frame in frames], Path(f"{beside}.gif"), columns=8, height=120))
    if npy:
        pixels = to_bytes(images).permute(0, 2, 3, 1).numpy()
        path = Path(f"{beside}.npy")
        write_atomically(path, lambda file: np.save(file, pixels))
        print(path)
