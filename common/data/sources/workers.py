"""Worker processes of a DataLoader: which signals they leave to the training process,
and the error when one of them fails.

Workers send tensors through shared memory, of which a container has little (Docker: 64 MB). A worker that finds none
left fails in a thread without a message to the training process, which would wait forever. NumPy arrays go through a
pipe instead, so give the DataLoader the collate_fn `as_arrays`, and turn what comes back into tensors with `as_tensors`.
"""

import multiprocessing
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import UserError, explain

GRACE = 30  # seconds that a worker goes on after SIGTERM, so that the training process can end its step and save
PATIENCE = 600  # seconds to wait for one batch


def leave_signals(worker: int) -> None:
    """For worker_init_fn. Ctrl-C, a closed terminal and a job's SIGTERM reach every process;
    the training process saves, then ends its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # Windows has neither
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, _end_later)


def _end_later(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(GRACE)


def started(loader: DataLoader, advice: str = "--workers 0") -> Iterator[Any]:
    """The batches of a DataLoader, whose workers begin at once.
    A worker that fails, dies or sends nothing for PATIENCE seconds raises a UserError.
    """
    try:
        if loader.num_workers:  # fail here where there is no room for locks: a half-built DataLoader would print a second error when it is deleted
            [multiprocessing.Queue() for _ in range(loader.num_workers + 3)]
        batches = iter(loader)
    except (OSError, RuntimeError) as problem:
        raise _failed(problem, advice) from problem
    return _watched(batches, advice)


def _watched(batches: Iterator[Any], advice: str) -> Iterator[Any]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except UserError:
            raise
        # what a worker raised comes here as the same type, with its traceback as the message
        except Exception as problem:
            raise _failed(problem, advice) from problem
        yield batch


def _failed(problem: Exception, advice: str) -> UserError:
    # of a worker's traceback, whose last line is the reason
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    reason = explain(problem) if isinstance(problem, OSError) or not lines else lines[-1]
    full = "shared memory" in str(problem) or "No space left" in str(problem)
    docker = "; in Docker, --shm-size 1g gives processes more shared memory" if full else ""
    return UserError(
        f"a process that prepares the batches failed ({reason}); {advice} prepares them in the training process{docker}"
    )


def as_arrays(items: Any) -> Any:
    """Tensors as arrays of numpy, and a list of items as one batch of them.
    (torch's default_collate would stack them in shared memory.)
    """
    if isinstance(items, list):
        whole = [as_arrays(item) for item in items]
        if isinstance(whole[0], dict):
            return {name: np.stack([item[name] for item in whole]) for name in whole[0]}
        return np.stack(whole)
    if isinstance(items, dict):
        return {name: as_arrays(value) for name, value in items.items()}
    return items.numpy() if isinstance(items, Tensor) else items


def as_tensors(batch: Any) -> Any:
    """Arrays of numpy as tensors."""
    if isinstance(batch, dict):
        return {name: as_tensors(value) for name, value in batch.items()}
    return torch.from_numpy(batch) if isinstance(batch, np.ndarray) else batch
