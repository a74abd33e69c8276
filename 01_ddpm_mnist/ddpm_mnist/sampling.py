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
from ddpm_mnist.flags import UnconditionalSampleFlags


def generate(flags: UnconditionalSampleFlags) -> None:
    """Sample images of a model, and save them as a grid; strip, GIF and array are written beside it."""
    device, n, label, batch_size = pick_device(flags.device), flags.n, flags.label, flags.batch_size
    net, schedule, prediction, clip_x0 = load_model(flags.model, device)
    solver = Sampler.parse(flags.sampler)
    size, classes = flags.size or net.cfg.size, net.cfg.classes
    if net.cfg.text_dim:
        raise UserError(
            f"{flags.model} is a text-to-image model; use 02_cfg_pokemon/sample.py for models of pixels, 04_latent_sd/sample.py for models of latents"
        )
    if not size:
        raise UserError(f"{flags.model} does not say how large its images are; give --size")
    if label is not None and not 0 <= label < (classes or 0):
        there = f"the classes 0 to {classes - 1}" if classes else "no classes"
        raise UserError(f"--label {label} does not exist: {flags.model} has {there}")

    def sample(start: int, n: int) -> list[Tensor]:
        """Images start ... start + n - 1: every moment of the reverse process, each (n, C, H, W)."""
        every = torch.arange(start, start + n) % classes if label is None and classes else torch.full((n,), label or 0)
        condition = {"label": every.to(device)} if classes else {}
        denoise = Denoiser(net, prediction, clip_x0, **condition)
        return solver.frames(denoise, schedule, (n, net.cfg.in_channels, size, size), flags.seed, start, device=device)

    began = time.perf_counter()
    frames = sample(0, min(batch_size, n))  # kept whole, for the GIF
    rest = [
        sample(start, min(batch_size, n - start))[-1]
        for start in with_progress("drawing", range(batch_size, n, batch_size), unit="batch")
    ]
    images = torch.cat([frames[-1], *rest])
    print(f"{n} images with {flags.sampler} in {time.perf_counter() - began:.1f} s on {device}")

    print(viz.save_picture(viz.grid(images, height=480), flags.out))
    beside = flags.out.with_suffix("").as_posix()
    if flags.strip:
        print(viz.save_picture(viz.strip([frame[:6] for frame in frames], height=400), Path(f"{beside}_strip.png")))
    if flags.gif:
        print(viz.save_gif([frame[:16] for frame in frames], Path(f"{beside}.gif"), columns=8, height=120))
    if flags.npy:
        pixels = to_bytes(images).permute(0, 2, 3, 1).numpy()
        path = Path(f"{beside}.npy")
        write_atomically(path, lambda file: np.save(file, pixels))
        print(path)
