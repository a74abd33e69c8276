"""How much memory is free, and whether the work that is about to begin fits into it.

An operating system grants more memory than it has and ends a process that uses it (on Linux with no more than the word
"Killed"), so MemoryError alone does not protect from a batch that is somewhat too large.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from common.errors import UserError

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),  # of a container, version 2 and version 1
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_memory(device: str = "cpu") -> float:
    """Bytes that are free on a device: on the CPU the least of what the machine,
    the container and the limits of this process leave.
    """
    if device.startswith("cuda"):
        import torch

        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    return min(
        of_the_machine(), *(of_a_container(Path(limit), Path(used)) for limit, used in CGROUPS), of_this_process()
    )


def of_the_machine() -> float:
    return float(psutil.virtual_memory().available)


def of_a_container(limit: Path, used: Path) -> float:
    try:
        return float(
            int(limit.read_text(encoding="ascii"))
            - int(used.read_text(encoding="ascii"))
            + reclaimable(limit.parent / "memory.stat")
        )
    except (OSError, ValueError):  # none, or "max"
        return math.inf


def reclaimable(stat: Path) -> int:
    """Bytes of files that are kept only while nothing else needs the memory."""
    words = [line.split() for line in stat.read_text(encoding="ascii").splitlines()]
    return next((int(value) for name, value in words if name in ("inactive_file", "total_inactive_file")), 0)


def of_this_process() -> float:
    """What ulimit -v leaves."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if limit == resource.RLIM_INFINITY else float(limit - psutil.Process().memory_info().vms)


def need(size: float, what: str, lower: str, device: str = "cpu") -> None:
    """Refuse work that needs more memory than is free.
    size: bytes, at least; what: "1,000 images of 64 x 64 pixels"; lower: flags to lower.
    """
    if size > 2**26 and size > (free := free_memory(device)):  # less than 64 MiB is not checked
        raise UserError(
            f"{what} need at least {gib(size)} of memory, and {gib(free)} are free on {device}; lower {lower}"
        )


def gib(size: float) -> str:
    return f"{max(0.0, size) / 2**30:,.1f} GiB"


def need_for_batch(
    step: Callable[[dict[str, Any]], Any], batch: dict[str, Any], weights: list[Any], device: str
) -> None:
    """Refuse a batch whose activations are not going to fit:
    what autograd keeps of one image and of two says what the whole batch takes.

    step     forward pass and loss of a batch, whose gradient is going to be asked for
    weights  the network's parameters, which are there already; a gradient and two averages for each are still to come
    """
    images = len(next(iter(batch.values())))
    if images < 3 or sum(value.numel() for value in batch.values()) < 2**20:  # small enough for anything
        return
    one, two = (
        kept_for_the_gradient(step, {name: value[:n].clone() for name, value in batch.items()}) for n in (1, 2)
    )
    size = one + (images - 1) * (two - one) + 3 * sum(weight.numel() * weight.element_size() for weight in weights)
    need(
        size,
        f"{images:,} images in a batch, with all that the gradient asks for,",
        "--batch-size, the size of the images, or the widths of the network",
        device,
    )


def kept_for_the_gradient(step: Callable[[dict[str, Any]], Any], batch: dict[str, Any]) -> int:
    """Bytes of all that autograd keeps between this forward pass and the backward pass."""
    import torch

    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # holding the tensor keeps its address from being used again
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step(batch)
    return sum(size for size, _ in kept.values())
