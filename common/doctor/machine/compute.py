"""The device, the time of a training step, and the threads that share the processor."""

import os
import time
from collections.abc import Callable, Iterator, MutableMapping

import psutil
import torch

from common.cli import pick_device, pick_precision
from common.diffusion.losses import diffusion_loss
from common.diffusion.schedules import make_schedule
from common.doctor.finding import Finding, fine, note, wrong
from common.errors import UserError
from common.models.unet import UNet
from common.models.unet_config import small_unet

REFERENCE_MS = 129  # the same step, float32, on two idle cores of an Intel Xeon (chapter 1, RESULTS.md)
MINUTES = {1: 5, 2: 60, 4: 180, 5: 5, 6: 105}  # of each chapter's default trainings, as its programs' presets say
MOST_FACTOR = 3
ROUNDS, PATIENCE = 12, 4  # steps at most, and seconds after which no further one begins


def findings(device: str) -> Iterator[Finding]:
    """Device, training step and what to expect, threads, busy-waiting, other programs."""
    try:
        name = pick_device(device)
    except UserError as problem:
        yield wrong("device", str(problem).partition(";")[0], "--device auto or cpu")
        return
    yield fine("device", f"{shown(name)}, precision {pick_precision('auto', name)}")
    logical = psutil.cpu_count() or 1
    cores = psutil.cpu_count(logical=False) or logical
    yield threads(torch.get_num_threads(), cores, logical, psutil.cpu_percent(0.3))
    yield waiting(os.environ)
    milliseconds = 1000 * step_seconds(name)
    yield fine("training step", f"{milliseconds:,.0f} ms (chapter 1's network, 32 digits, float32)")
    yield expectation(milliseconds, name)


def shown(device: str) -> str:
    """cpu -> "cpu (4 cores)", cuda -> "cuda (its name)"."""
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({psutil.cpu_count()} cores)" if device == "cpu" else device


def step_seconds(device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of forward, loss, backward and optimizer of chapter 1's network for MNIST: the fastest of some steps,
    because other programs can only slow a step down.
    """
    torch.manual_seed(0)
    net = UNet(small_unet(28, 1, (16, 32, 64))).to(device)
    optimizer, schedule = torch.optim.AdamW(net.parameters(), 1e-3), make_schedule("cosine")
    x0, eps = torch.randn(2, 32, 1, 28, 28).to(device)
    u = torch.rand(32).to(device)
    seconds: list[float] = []
    while len(seconds) <= 1 or (len(seconds) < ROUNDS and sum(seconds) < PATIENCE):
        began = clock()
        diffusion_loss(net, schedule, "v", x0, u, eps).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        x0[0, 0, 0, 0].item()  # waits for the device
        seconds.append(clock() - began)
    return min(seconds[1:])  # the first one also sets up the device


def expectation(milliseconds: float, device: str) -> Finding:
    """How long the default trainings take for as many steps as their minutes allow on the reference."""
    if device != "cpu":
        return fine(
            "what to expect",
            "budgets for this device: each program's --help; chapter 1's digits take 5 minutes or less",
        )
    factor = max(1.0, milliseconds / REFERENCE_MS)  # budgets are minutes: a faster machine takes more steps in them
    times = ", ".join(f"{minutes * factor:,.0f} (chapter {chapter})" for chapter, minutes in MINUTES.items())
    seen = f"minutes of training for the documented results: {times}"
    if factor > MOST_FACTOR:
        return note(
            "what to expect",
            seen,
            f"{factor:.0f} times the documented step: close other programs, raise --minutes, or use the shipped weights",
        )
    return fine("what to expect", seen)


def threads(used: int, cores: int, logical: int, busy: float) -> Finding:
    """used: threads of torch; cores: of the processor, each of which may count as two logical ones; busy: percent"""
    free = max(1, round(cores * (1 - busy / 100)))
    seen = f"torch computes with {used} of {cores} cores, {busy:.0f} % of which are busy"
    if used > logical:
        return wrong(
            "threads",
            f"{seen}: more threads than cores wait for each other",
            f"--threads {cores}, or unset OMP_NUM_THREADS",
        )
    if used > free:
        return note("threads", seen, f"--threads {free} while other programs run")
    if used * 2 <= free:
        return note("threads", seen, f"--threads {free}, or set OMP_NUM_THREADS to {free}")
    return fine("threads", seen)


def waiting(environment: MutableMapping[str, str]) -> Finding:
    """Threads that spin while they wait take the core that another one needs (common/io/process.py)."""
    policy, count = environment.get("OMP_WAIT_POLICY", ""), environment.get("GOMP_SPINCOUNT", "")
    if policy.lower() == "active" or (count.isdecimal() and int(count) > 100_000):
        return wrong(
            "busy-waiting",
            f"OMP_WAIT_POLICY={policy or 'unset'}, GOMP_SPINCOUNT={count or 'unset'}: threads keep cores busy while they wait",
            "unset OMP_WAIT_POLICY GOMP_SPINCOUNT",
        )
    return fine("busy-waiting", f"OMP_WAIT_POLICY={policy or 'unset'}, GOMP_SPINCOUNT={count or 'unset'}")
