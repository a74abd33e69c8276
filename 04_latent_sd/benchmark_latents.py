"""Claim 12: do cached latents cost disk but save time, and what do worker processes need? Measure both ways in one run.

  python 04_latent_sd/benchmark_latents.py
  python 04_latent_sd/benchmark_latents.py --vae runs/04_latent_sd/vae-creatures-dishes --n 2000 --workers 0 1 2
  python 04_latent_sd/benchmark_latents.py --device cuda --start spawn --workers 0 2 4

An epoch here is to have every image's latents once, in the order of training, and nothing else: how long a network would have to wait
for them, were it infinitely fast. Each way runs in a fresh process of its own. Memory is the most that this process and its workers hold at one
moment, with pages that several of them share counted once where the system tells (Linux); Python and torch are part of it.
Seconds are those of one machine at one moment: compare the columns of ratios.
"""

import math
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from common.cli import pick_device, run
from common.errors import UserError
from common.io.ranges import Range


@dataclass(frozen=True)
class Args:
    vae: Path | None = None
    """A run folder or model folder with an autoencoder. Without one, one that was never trained: it is as slow as a good one."""
    data: tuple[str, ...] = ("creatures", "dishes")
    """One data set or several."""
    data_dir: Path = Path("data")
    n: int = 256
    """Only the first n images of each set."""
    size: int | None = None
    """Pixels a side; by default the autoencoder's own, 64 without one."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Of the autoencoder that was never trained."""
    batch_size: int = 32
    """Images a batch."""
    epochs: Annotated[int, Range(2, 1000, hint="the first is reported by itself")] = 3
    """The first, in which worker processes begin, is reported by itself; of the others the median."""
    workers: tuple[int, ...] = (0, 2)
    """Numbers of worker processes to try on the fly; 0 encodes in the process itself."""
    start: Literal["auto", "fork", "spawn"] = "auto"
    """How worker processes begin; auto is spawn if a GPU is in play."""
    json: Path | None = None
    """Also write the figures to this file."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps: where images are encoded."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


class Job(NamedTuple):
    """What a process is told: files, and nothing large."""

    vae: Path                # a folder
    pixels: Path             # .npy
    latents: Path            # the file of cached_latents
    shape: tuple[int, ...]   # of what is in it
    workers: int | None      # None: take the latents from the file
    start: str
    device: str
    batch: int
    epochs: int
    seed: int


class Cost(NamedTuple):
    """What a way costs."""

    first: float  # seconds of the first epoch, in which worker processes begin
    epoch: float  # seconds of a later one, the median
    memory: int   # bytes at the worst moment


def main(args: Args) -> None:
    device = pick_device(args.device)
    if args.start == "fork" and device != "cpu":
        raise UserError("--start fork cannot be used with a GPU, because a forked process cannot use its parent's connection to it; use --start spawn")
    compare(args, device)


def compare(args: Args, device: str) -> None:
    import tempfile
    import time

    from latent_sd.latent_dataset import cached_latents

    vae, images = open_both(args, device)
    side, f = images.size, vae.cfg.factor
    print(f"{len(images):,} images of {images.channels} x {side} x {side}, latents {vae.cfg.latent_channels} x {side // f} x {side // f}, "
          f"batches of {args.batch_size}, on {device}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        data = cached_latents(vae, images, Path(folder))
        made, size = time.perf_counter() - began, data.path.stat().st_size
        job = write_job(args, device, vae, images, data, Path(folder))
        costs = {"from the file": in_a_process(job)}
        for workers in args.workers:
            how = f"{plural(workers, 'worker')} ({job.start})" if workers else "no workers"
            costs[f"on the fly, {how}"] = in_a_process(job._replace(workers=workers))
    report(costs, made, size, images.pixels.numel())
    if args.json:
        from common.io.files import write_json

        ways = {way: cost._asdict() for way, cost in costs.items()}
        write_json(args.json, {"seconds_to_make": made, "bytes_of_file": size, "bytes_of_pixels": images.pixels.numel(), "ways": ways})


def open_both(args: Args, device: str):
    """(autoencoder, images)"""
    import torch

    from common.models.diffusers_vae import load_vae
    from common.models.vae import AutoencoderKL, small_vae
    from latent_sd.concat_dataset import load_all
    from latent_sd.latent_dataset import check_fit

    vae = load_vae(args.vae, device) if args.vae else None
    images = load_all(args.data, args.size or (vae.cfg.size if vae else 64), args.data_dir, n=args.n, channels=vae.cfg.image_channels if vae else None)
    if vae is None:
        torch.manual_seed(args.seed)
        vae = AutoencoderKL(small_vae(images.size, images.channels, args.channels)).to(device).eval()
    check_fit(vae, images)
    return vae, images


def write_job(args: Args, device: str, vae, images, data, folder: Path) -> Job:
    """Everything as files, so that a fresh process holds what its way needs and nothing else."""
    import numpy as np

    from common.models.diffusers_vae import save_vae
    from latent_sd.latent_dataset import start_method

    save_vae(folder / "vae", vae)
    np.save(folder / "pixels.npy", images.pixels.numpy())
    start = start_method(device) if args.start == "auto" else args.start
    return Job(folder / "vae", folder / "pixels.npy", data.path, data.table.shape, None, start, device, args.batch_size, args.epochs, args.seed)


# ------------------------------------------------------------------------------------------------ in a process of its own


def in_a_process(job: Job) -> Cost:
    """Measure one way in a process that has done nothing before."""
    import multiprocessing

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, job).result()


def measure(job: Job) -> Cost:
    """Every batch of every epoch, timed; memory is looked at all the while."""
    import time
    from statistics import median

    from latent_sd.latent_dataset import training_order

    seconds = []
    with Memory() as memory, opened(job) as data:
        order = training_order(len(data), job.batch_size, job.seed)
        for _ in range(job.epochs):
            began = time.perf_counter()
            for _ in range(max(1, len(data) // job.batch_size)):
                data.batch(next(order))
            seconds.append(time.perf_counter() - began)
    return Cost(seconds[0], median(seconds[1:]), memory.peak)


@contextmanager
def opened(job: Job):
    """The latents, one way or the other."""
    import numpy as np
    import torch

    from common.data import Images
    from common.models.diffusers_vae import load_vae
    from latent_sd.latent_dataset import LatentData, OnTheFly, read_table, training_order

    if job.workers is None:
        yield LatentData(job.latents, read_table(job.latents, job.shape), scale=1.0)
        return
    images = Images("images", torch.from_numpy(np.load(job.pixels)))
    order = training_order(len(images), job.batch_size, job.seed)
    data = OnTheFly(load_vae(job.vae), images, job.workers, order, job.device, job.start)
    try:
        yield data
    finally:
        data.close()


class Memory(threading.Thread):
    """Looks, ten times a second, at how much this process and its workers hold; `peak` is the most, in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.over = 0, threading.Event()

    def run(self) -> None:
        import psutil

        me = psutil.Process()
        while True:  # once at least, however short it is
            self.peak = max(self.peak, sum(held(process) for process in [me, *me.children(recursive=True)]))
            if self.over.wait(0.1):
                return

    def __enter__(self) -> "Memory":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.join()


def held(process) -> int:
    """Bytes of one process: PSS where there is such a thing (shared pages divided among those who share them), else RSS."""
    import psutil

    try:
        return getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
    except psutil.Error:  # it ended just now
        return 0


# ----------------------------------------------------------------------------------------------------------- the verdict


def ratio(some: float, base: float) -> str:
    """A process that has room left takes no more memory for small data: then there is nothing to compare with."""
    return f"{some / base:.2f}" if base else "-"


def report(costs: dict[str, Cost], made: float, size: int, pixels: int) -> None:
    """A table; every ratio is to the file."""
    base = costs["from the file"]
    print(f"\n{'':32}{'first epoch':>12}{'an epoch':>11}{'ratio':>9}{'memory':>11}{'ratio':>7}")
    for way, cost in costs.items():
        print(f"{way:32}{cost.first:>10.2f} s{cost.epoch:>9.3f} s{cost.epoch / base.epoch:>9.1f}{cost.memory / 1e6:>8.0f} MB"
              f"{ratio(cost.memory, base.memory):>7}")  # fmt: skip
    print(f"\nthe file: {size / 1e6:.2f} MB, {size / pixels:.2f} times the pixels as bytes, made once in {made:.2f} s")
    way, best = min(((way, cost) for way, cost in costs.items() if cost is not base), key=lambda found: found[1].epoch)
    if best.epoch > base.epoch:
        epochs = plural(math.ceil(made / (best.epoch - base.epoch)), "epoch")
        print(f"against the fastest other way ({way}) it is paid for after {epochs}")
    else:
        print(f"it saves no time against {way}")


def plural(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"


if __name__ == "__main__":
    run(main, Args)
