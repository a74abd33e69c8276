"""Samples to be evaluated: images of a folder or an array, or drawn from a model."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from common.cli import pick_device
from common.data.sources.arrays import read_npz
from common.data.sources.decoding import UnreadableImage, decode_all, opened
from common.data.sources.listing import Tally, list_folder
from common.diffusion.denoiser import Denoiser
from common.diffusion.sampler_spec import Sampler
from common.errors import UserError, explain
from common.evaluate.evaluator import choose
from common.io.pixels import to_float
from common.models.model_folder import load_model

MODEL_SAMPLES = 500  # drawn from a model where --n is not given


def read_samples(source: Path, n: int | None, sampler: str, seed: int, device: str) -> Tensor:
    """Samples from a folder of images, a .npy file, or a model. (N, C, S, S) floats in [-1, 1]"""
    if is_model(source):
        return sample_model(source, n or MODEL_SAMPLES, sampler, seed, device)
    images = read_folder(source) if source.is_dir() else read_npy(source)
    if n is None or n == len(images):
        return images
    if n > len(images):
        raise UserError(f"{source} holds {len(images)} images, fewer than --n {n}")
    return choose(images, n, seed)


def is_model(source: Path) -> bool:
    """Whether this is a folder of a model rather than samples."""
    parts = ("unet", "model", "model_index.json", "config.json")
    return source.is_dir() and any((source / part).exists() for part in parts)


def read_folder(folder: Path) -> Tensor:
    """All images below the folder, which must be of one size."""
    listing, tally = list_folder(folder), Tally()
    names = listing.pictures
    if not names:
        raise UserError(
            f"{folder} holds neither images nor a model; give a folder of PNGs, a .npy or .npz file, or a model folder"
        )
    sizes: dict[tuple[int, int], str] = {}
    for name in names:
        with suppress(UnreadableImage), opened(folder / name) as image:  # decode_all names the unreadable ones
            sizes.setdefault(image.size, name)
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise UserError(
            f"{folder / first} is {a[0]}x{a[1]} but {folder / second} is {b[0]}x{b[1]} pixels; the samples must all be of one size"
        )
    width, height = next(iter(sizes), (28, 28))
    if width != height:
        raise UserError(f"{folder / names[0]} is {width}x{height} pixels; the samples must be square")
    pixels, kept = decode_all(listing.paths(names), width, tally=tally)
    tally.left_out += listing.holds(names)
    tally.tell(str(folder), len(kept))
    return to_float(pixels)


def read_npy(path: Path) -> Tensor:
    """uint8, or floats in [-1, 1]; (N, H, W, C) or (N, C, H, W), in a .npy,
    or an .npz as other programs save samples.
    """
    if path.suffix == ".npz":
        array = next(iter(read_npz(path).values())).images
        array = array[..., None] if array.ndim == 3 else array
        return from_array(path, array)
    if path.suffix != ".npy":
        raise UserError(
            f"the name {path} does not end in .npy or .npz; SAMPLES takes a folder of PNGs, a .npy or .npz file, or a model folder"
        )
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise UserError(f"{path} cannot be read as an array ({explain(problem)})") from problem
    return from_array(path, array)


def from_array(path: Path, array: np.ndarray) -> Tensor:
    """(N, C, H, W) floats in [-1, 1] from the samples in an array."""
    if array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] == array.shape[2]:
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise UserError(
            f"{path} has the shape {array.shape}; expected (N, H, W, C) or (N, C, H, W), where C is 1 or 3"
        )
    if array.dtype == np.uint8:
        return to_float(torch.from_numpy(np.ascontiguousarray(array)))
    if array.dtype.kind != "f":
        raise UserError(f"{path} holds {array.dtype}; expected uint8 (0 to 255) or floats in [-1, 1]")
    if not array.size:
        raise UserError(f"{path} holds no images: its shape is {array.shape}")
    low, high = float(array.min()), float(array.max())
    if low < -1.01 or high > 1.01:
        raise UserError(
            f"the floats in {path} run from {low:.3g} to {high:.3g}; expected [-1, 1], where -1 is black and 1 is white"
        )
    if low >= 0:
        raise UserError(
            f"the floats in {path} run from {low:.3g} to {high:.3g}, so black is probably 0 there; expected [-1, 1], where -1 is black (save 2 x - 1)"
        )
    return torch.from_numpy(array.astype(np.float32)).clamp(-1, 1)


def sample_model(folder: Path, n: int, sampler: str, seed: int, device: str, batch: int = 64) -> Tensor:
    """Sample a model; a class-conditional one draws its classes in turn."""
    device, solver = pick_device(device), Sampler.parse(sampler)
    net, schedule, prediction, clip_x0 = load_model(folder, device)
    if net.cfg.text_dim or not net.cfg.size:
        lack = "is a text-to-image model" if net.cfg.text_dim else "does not say how large its images are"
        raise UserError(f"{folder} {lack}; save its samples as PNGs and give that folder")
    images = []
    for start in trange(0, n, batch, desc="sampling", unit="batch", leave=False):
        count = min(batch, n - start)
        label = {"label": (torch.arange(start, start + count) % net.cfg.classes).to(device)} if net.cfg.classes else {}
        shape = (count, net.cfg.in_channels, net.cfg.size, net.cfg.size)
        *_, last = solver.run(Denoiser(net, prediction, clip_x0, **label), schedule, shape, seed, start, device=device)
        images.append(last.x.cpu())
    return torch.cat(images)
