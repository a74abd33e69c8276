"""What benchmark_latents.py does: it measures time and memory of cached latents and of encoding on the fly."""

import math
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
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
from common.models.diffusers_vae import load_vae, save_vae
from common.models.vae import AutoencoderKL, small_vae
from common.training.latents import check_fit
from latent_sd.concat_dataset import load_all
from latent_sd.latent_dataset import LatentData, OnTheFly, cached_latents, read_table, start_method, training_order


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is compared, and on what."""

    vae: Path | None  # a run folder or model folder; None: an untrained autoencoder
    data: tuple[str, ...]  # data sets
    data_dir: Path
    n: int  # the first n images of each set
    size: int | None  # pixels a side; None: the autoencoder's own, 64 without one
    channels: tuple[int, ...]  # widths of the untrained autoencoder
    batch_size: int
    epochs: int
    workers: tuple[int, ...]  # numbers of worker processes
    start: str  # their start method: auto, fork or spawn
    seed: int
    device: str


class Job(NamedTuple):
    """What a measuring process is given: paths of files, and nothing large."""

    vae: Path  # a folder
    pixels: Path  # .npy
    latents: Path  # the file of cached_latents
    shape: tuple[int, ...]  # of the array in it
    workers: int | None  # None: take the latents from the file
    start: str
    device: str
    batch: int
    epochs: int
    seed: int


class EncodingCost(NamedTuple):
    """Time and memory of one way."""

    first: float  # seconds of the first epoch, in which worker processes start
    epoch: float  # seconds of a later one, the median
    memory: int  # highest number of bytes


def run_benchmark(config: BenchmarkConfig, json: Path | None = None) -> None:
    """Measure every way in a process of its own, and print the table;
    write the numbers to a file, too, if one is given.
    """
    device = pick_device(config.device)
    if config.start == "fork" and device != "cpu":
        raise UserError(
            "--start fork cannot be used with a GPU, because a forked process cannot use its parent's connection to it; use --start spawn"
        )
    vae, images = open_both(config, device)
    side, f = images.size, vae.cfg.factor
    print(
        f"{len(images):,} images of {images.channels} x {side} x {side}, latents {vae.cfg.latent_channels} x {side // f} x {side // f}, "
        f"batches of {config.batch_size}, on {device}"
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        data = cached_latents(vae, images, Path(folder))
        made, size = time.perf_counter() - began, data.path.stat().st_size
        job = write_job(config, device, vae, images, data, Path(folder))
        costs = {"from the file": in_a_process(job)}
        for workers in config.workers:
            how = f"{plural(workers, 'worker')} ({job.start})" if workers else "no workers"
            costs[f"on the fly, {how}"] = in_a_process(job._replace(workers=workers))
    report(costs, made, size, images.pixels.numel())
    if json:
        ways = {way: cost._asdict() for way, cost in costs.items()}
        write_json(
            json,
            {"seconds_to_make": made, "bytes_of_file": size, "bytes_of_pixels": images.pixels.numel(), "ways": ways},
        )


def open_both(config: BenchmarkConfig, device: str) -> tuple[AutoencoderKL, Images]:
    """The autoencoder and the images that it encodes."""
    vae = load_vae(config.vae, device) if config.vae else None
    size, channels = (vae.cfg.size, vae.cfg.image_channels) if vae else (64, None)
    images = load_all(config.data, config.size or size, config.data_dir, n=config.n, channels=channels)
    if vae is None:
        torch.manual_seed(config.seed)
        vae = AutoencoderKL(small_vae(images.size, images.channels, config.channels)).to(device).eval()
    check_fit(vae, images)
    return vae, images


def write_job(
    config: BenchmarkConfig, device: str, vae: AutoencoderKL, images: Images, data: LatentData, folder: Path
) -> Job:
    """Everything as files, so that a new process holds what its way needs and nothing else."""
    save_vae(folder / "vae", vae)
    np.save(folder / "pixels.npy", images.pixels.numpy())
    start = start_method(device) if config.start == "auto" else config.start
    return Job(
        folder / "vae",
        folder / "pixels.npy",
        data.path,
        data.table.shape,
        None,
        start,
        device,
        config.batch_size,
        config.epochs,
        config.seed,
    )


# --------------------------------------------------------------------------------------------- in a process of its own


def in_a_process(job: Job) -> EncodingCost:
    """Measure one way in a process that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, job).result()


def measure(job: Job) -> EncodingCost:
    """Time every epoch, and observe the memory meanwhile."""
    seconds = []
    with Memory() as memory, opened(job) as data:
        order = training_order(len(data), job.batch, job.seed)
        for _ in range(job.epochs):
            began = time.perf_counter()
            for _ in range(max(1, len(data) // job.batch)):
                data.batch(next(order))
            seconds.append(time.perf_counter() - began)
    return EncodingCost(seconds[0], median(seconds[1:]), memory.peak)


@contextmanager
def opened(job: Job) -> Iterator[LatentData | OnTheFly]:
    """The latents, from the file or encoded on the fly."""
    if job.workers is None:
        yield LatentData(job.latents, read_table(job.latents, job.shape), scale=1.0)
        return
    images = Images("images", torch.from_numpy(np.load(job.pixels)))
    order = training_order(len(images), job.batch, job.seed)
    data = OnTheFly(load_vae(job.vae), images, job.workers, order, job.device, job.start)
    try:
        yield data
    finally:
        data.close()


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
