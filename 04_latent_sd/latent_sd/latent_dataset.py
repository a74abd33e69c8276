"""Images as latents, for the training of a diffusion model:
encoded once and kept in a file, or on the fly by worker processes.

    data = cached_latents(vae, images, Path("runs/04_latent_sd/latents"))     # or
    data = OnTheFly(vae, images, workers=2, order=training_order(len(images), batch=32, seed=0))
    batch = data.batch(indices)        -> {"latent": (B, C, h, w), "std": (B, C, h, w)}
    z = sample(batch, draw)            -> (B, C, h, w), of unit variance over the whole set

Both are the Data of common/training/loop.py and give the same numbers, the file to half precision; how an image is
encoded, LatentDataset and `sample` are in common/training/latents.py. The file takes 4 bytes of the disk for a latent
value, and rules out augmentation: an image is encoded once, never mirrored or cropped anew. Encoding on the fly costs
a pass of the encoder over every image in every epoch. benchmark_latents.py measures both.
"""

import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.data.dataset import Images
from common.data.sources.workers import PATIENCE, as_arrays, as_tensors, leave_signals, started
from common.errors import UserError, explain
from common.io.files import write_atomically
from common.io.pixels import to_float
from common.io.state_dict import fingerprint
from common.models.vae import AutoencoderKL, Gaussian
from common.random import batch_indices
from common.training.latents import LatentDataset, check_fit, encode_images, scaled

# ----------------------------------------------------------------------------------------------------- once, in a file


def cached_latents(vae: AutoencoderKL, images: Images, folder: Path) -> LatentDataset:
    """Open the file of these images' latents; where there is none, encode them and write it, whole or not at all.

    The name of the file is a hash of everything that its content depends on, so a file made with other weights or for
    other images is never opened. The scaling factor is not part of it: a new measurement makes no file stale.
    Where several processes train together, one has to come here before the others.
    """
    path = Path(folder) / f"latents-{latent_fingerprint(vae, images)}.npy"
    if not path.exists():
        advice = "give --latents on-the-fly, or train the autoencoder again with a larger --kl"
        table = encode_images(vae, images, advice).table
        write_atomically(path, lambda file: np.save(file, table))
    f = vae.cfg.factor
    shape = (len(images), 2, vae.cfg.latent_channels, images.pixels.shape[2] // f, images.pixels.shape[3] // f)
    return LatentDataset(read_table(path, shape), vae.cfg.scaling_factor, path)


def read_table(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Map the file into memory; one that was cut off, or holds something else, is refused."""
    try:
        table = np.lib.format.open_memmap(path, mode="r")
    except (
        OSError,
        ValueError,
        EOFError,
        SyntaxError,
    ) as problem:  # numpy's words for a damaged header or too few bytes
        raise UserError(
            f"{path} cannot be read as latents ({explain(problem)}); delete it, and it will be made again"
        ) from problem
    if table.dtype != np.float16 or table.shape != shape or path.stat().st_size != table.offset + table.nbytes:
        found = f"{table.dtype} numbers of shape {table.shape} in {path.stat().st_size:,} bytes"
        raise UserError(
            f"{path} holds {found}, not the latents {shape} in float16; delete it, and it will be made again"
        )
    return table


def latent_fingerprint(vae: AutoencoderKL, images: Images) -> str:
    """Changes with the weights and build of the autoencoder, and with the images: their pixels and number."""
    return fingerprint(vae, repr(replace(vae.cfg, scaling_factor=1.0)), images.pixels)


# ---------------------------------------------------------------------------------------------------------- on the fly


class OnTheFly:
    """Latents of images that worker processes encode while the network trains.

    workers  how many processes; 0 encodes here, when asked, whatever is asked for
    order    the indices of the batches that will be asked for, one after the other (training_order): workers encode
             ahead, and can do so only if they know what comes next
    device   where the workers encode
    start    how a worker begins. "fork" copies this process as it stands: at once, and memory is shared until somebody
             writes to it. But a process that has used CUDA must not be forked. The driver's connection to the GPU (its
             threads, its locks, its mapped memory) belongs to the process that opened it; the copy holds the handles
             and none of the threads, and the first call of the child ends with "Cannot re-initialize CUDA in forked
             subprocess. To use CUDA with multiprocessing, you must use the 'spawn' start method". "spawn" begins a new
             Python instead, which imports torch again (seconds, and some hundred MB for each worker) and opens a
             connection of its own. That is why everything given to a worker must be picklable, why the program needs
             `if __name__ == "__main__"`, why the autoencoder travels on the CPU and goes to the GPU in the worker, and
             why latents come back on the CPU. None takes fork where it is safe.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        images: Images,
        workers: int = 0,
        order: Iterator[Tensor] | None = None,
        device: str = "cpu",
        start: str | None = None,
    ):
        check_fit(vae, images)
        if workers and order is None:
            raise ValueError("worker processes encode ahead: they need the order of the batches")
        self.encoder, self.workers, self.batches = Encoding(vae, images.pixels, device), workers, None
        if workers:
            loader = DataLoader(
                self.encoder,
                sampler=(indices.tolist() for indices in order),
                batch_size=None,  # what the sampler gives is a batch already
                num_workers=workers,
                multiprocessing_context=start or start_method(device),
                generator=torch.Generator(),  # else it would draw from the global one
                collate_fn=as_they_are,
                worker_init_fn=leave_signals,
                timeout=PATIENCE,
            )
            self.batches = started(loader)

    def __len__(self) -> int:
        return len(self.encoder.pixels)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """{"latent": (B, C, h, w), "std": (B, C, h, w)}, float32, scaled, on the CPU"""
        if self.workers == 0:
            return as_tensors(self.encoder[indices.tolist()][1])
        planned, batch = next(self.batches)
        if planned != indices.tolist():
            raise ValueError("the images asked for are not those of the order that the workers were given")
        return as_tensors(batch)

    def close(self) -> None:
        """End the worker processes."""
        self.batches = None


class Encoding(Dataset):
    """The data set of a worker: a list of indices -> the same list, and the scaled latents of these images.

    All that goes from process to process is an array of numpy: a tensor would take shared memory
    (common/data/sources/workers.py).
    """

    def __init__(self, vae: AutoencoderKL, pixels: Tensor, device: str):
        self.vae, self.pixels, self.device = deepcopy(vae).cpu().eval().requires_grad_(False), pixels.numpy(), device

    @torch.no_grad()
    def __getitem__(self, indices: list[int]) -> tuple[list[int], dict[str, np.ndarray]]:
        self.vae.to(self.device)  # in the worker, the first time; afterwards it is there
        z = self.vae.encode(to_float(torch.from_numpy(self.pixels[indices])).to(self.device))
        return indices, as_arrays(scaled(Gaussian(z.mean.cpu(), z.logvar.cpu()), self.vae.cfg.scaling_factor))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"vae": (self.vae.cfg, as_arrays(self.vae.state_dict()))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        cfg, weights = state["vae"]
        vae = AutoencoderKL(cfg)
        vae.load_state_dict(as_tensors(weights))
        vars(self).update(state | {"vae": vae.eval().requires_grad_(False)})


def as_they_are(batch: Any) -> Any:
    """The batch unchanged, for collate_fn; by default it would turn arrays into tensors."""
    return batch


def start_method(device: str) -> str:
    """How worker processes begin: copied where that is safe, which it is on Linux while no GPU is in play."""
    gpu = device != "cpu" or torch.cuda.is_initialized()
    return "spawn" if gpu or not sys.platform.startswith("linux") else "fork"


def training_order(n: int, batch: int, seed: int, first: int = 0, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
    """The batches of common.training.loop.train from batch `first` on (steps done times --gradient-accumulation):
    which images, in which order.
    """
    return (batch_indices(n, batch * world, k, seed).chunk(world)[rank] for k in count(first))
