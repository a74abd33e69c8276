"""What benchmark_latents.py does: it measures time and memory of cached latents and of encoding on the fly."""

import math
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import psutil
import torch

from common.cli import pick_device
from common.data import Images
from common.errors import UserError
from common.io.files import write_json
from common.models.model_folder import load_vae, save_vae
from common.models.vae import AutoencoderKL, small_vae
from common.training.latents import LatentDataset, check_fit
from latent_sd.concat_dataset import load_all
from latent_sd.flags import BenchmarkFlags
from latent_sd.latent_dataset import OnTheFly, cached_latents, start_method, training_order


class EncodingCost(NamedTuple):
    """Time and memory of one way."""

    first: float  # seconds of the first epoch, in which worker processes start
    epoch: float  # seconds of a later one, the median
    memory: int  # highest number of bytes


def run_benchmark(flags: BenchmarkFlags) -> None:
    """Measure every way in a process of its own, and print the table;
    write the numbers to the file of --json, too, if one is given.
    """
    device = pick_device(flags.device)
    start = start_method(device) if flags.start == "auto" else flags.start
    flags = replace(flags, device=device, start=start)
    if start == "fork" and device != "cpu":
        raise UserError(
            "--start fork cannot be used with a GPU, because a forked process cannot use its parent's connection to it; use --start spawn"
        )
    vae, images = open_both(flags)
    side, f = images.size, vae.cfg.factor
    print(
        f"{len(images):,} images of {images.channels} x {side} x {side}, latents {vae.cfg.latent_channels} x {side // f} x {side // f}, "
        f"batches of {flags.batch_size}, on {device}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        data = cached_latents(vae, images, folder)
        made, size = time.perf_counter() - began, data.path.stat().st_size
        # files, so that a new process holds what its way needs and nothing else
        save_vae(folder / "vae", vae)
        np.save(folder / "pixels.npy", images.pixels.numpy())
        costs = {"from the file": in_a_process(flags, folder, None)}
        for workers in flags.workers:
            how = f"{plural(workers, 'worker')} ({start})" if workers else "no workers"
            costs[f"on the fly, {how}"] = in_a_process(flags, folder, workers)
    report(costs, made, size, images.pixels.numel())
    if flags.json:
        ways = {way: cost._asdict() for way, cost in costs.items()}
        write_json(
            flags.json,
            {"seconds_to_make": made, "bytes_of_file": size, "bytes_of_pixels": images.pixels.numel(), "ways": ways},
        )


def open_both(flags: BenchmarkFlags) -> tuple[AutoencoderKL, Images]:
    """The autoencoder and the images that it encodes."""
    vae = load_vae(flags.vae, flags.device) if flags.vae else None
    size, channels = (vae.cfg.size, vae.cfg.image_channels) if vae else (64, None)
    images = load_all(flags.data, flags.size or size, flags.data_dir, n=flags.n, channels=channels)
    if vae is None:
        torch.manual_seed(flags.seed)
        vae = AutoencoderKL(small_vae(images.size, images.channels, flags.channels)).to(flags.device).eval()
    check_fit(vae, images)
    return vae, images


# --------------------------------------------------------------------------------------------- in a process of its own


def in_a_process(flags: BenchmarkFlags, folder: Path, workers: int | None) -> EncodingCost:
    """Measure one way in a process that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, flags, folder, workers).result()


def measure(flags: BenchmarkFlags, folder: Path, workers: int | None) -> EncodingCost:
    """Time every epoch, and observe the memory meanwhile. workers: None takes the latents from the file"""
    seconds = []
    with Memory() as memory, opened(flags, folder, workers) as data:
        order = training_order(len(data), flags.batch_size, flags.seed)
        for _ in range(flags.epochs):
            began = time.perf_counter()
            for _ in range(max(1, len(data) // flags.batch_size)):
                data.batch(next(order))
            seconds.append(time.perf_counter() - began)
    return EncodingCost(seconds[0], median(seconds[1:]), memory.peak)


@contextmanager
def opened(flags: BenchmarkFlags, folder: Path, workers: int | None) -> Iterator[LatentDataset | OnTheFly]:
    """The latents, from the file or encoded on the fly."""
    if workers is None:
        path = next(folder.glob("latents-*.npy"))
        yield LatentDataset(np.load(path, mmap_mode="r"), 1.0, path)
        return
    images = Images("images", torch.from_numpy(np.load(folder / "pixels.npy")))
    order = training_order(len(images), flags.batch_size, flags.seed)
    with closing(OnTheFly(load_vae(folder / "vae"), images, workers, order, flags.device, flags.start)) as data:
        yield data


class Memory(threading.Thread):
    """Observes the memory of this process and its workers ten times a second; `peak` is the maximum in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.over = 0, threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while True:  # at least once, however short the measurement is
            self.peak = max(self.peak, sum(held(process) for process in [me, *me.children(recursive=True)]))
            if self.over.wait(0.1):
                return

    def __enter__(self) -> "Memory":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.join()


def held(process: psutil.Process) -> int:
    """Bytes of one process: PSS where the system reports it (a shared page is divided among
    its processes), else RSS.
    """
    try:
        return getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
    except psutil.Error:  # it has ended meanwhile
        return 0


# ---------------------------------------------------------------------------------------------------------- the report


def ratio(some: float, base: float) -> str:
    """The ratio of two numbers, "-" if the base is 0, as the memory that small data take in addition may be."""
    return f"{some / base:.2f}" if base else "-"


def report(costs: dict[str, EncodingCost], made: float, size: int, pixels: int) -> None:
    """A table; every ratio is to the file."""
    base = costs["from the file"]
    print(f"\n{'':32}{'first epoch':>12}{'an epoch':>11}{'ratio':>9}{'memory':>11}{'ratio':>7}")
    for way, cost in costs.items():
        print(
            f"{way:32}{cost.first:>10.2f} s{cost.epoch:>9.3f} s{cost.epoch / base.epoch:>9.1f}{cost.memory / 1e6:>8.0f} MB"
            f"{ratio(cost.memory, base.memory):>7}"
        )
    print(f"\nthe file: {size / 1e6:.2f} MB, {size / pixels:.2f} times the pixels as bytes, made once in {made:.2f} s")
    way, best = min(((way, cost) for way, cost in costs.items() if cost is not base), key=lambda found: found[1].epoch)
    if best.epoch > base.epoch:
        epochs = plural(math.ceil(made / (best.epoch - base.epoch)), "epoch")
        print(f"against the fastest other way ({way}) it is paid for after {epochs}")
    else:
        print(f"it saves no time against {way}")


def plural(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"
