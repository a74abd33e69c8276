"""Worker processes: no shared memory, one sentence for a failure, signals left to the training process."""

import multiprocessing
import os
import signal
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from common.data.sources import workers
from common.data.sources.workers import as_arrays, as_tensors, leave_signals, started
from common.errors import UserError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the workers are forked")


class Squares(Dataset):
    def __init__(self, fault=None):
        self.fault = fault

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        if self.fault and i == 5:
            self.fault()
        return {"image": torch.full((3,), float(i * i)), "threads": torch.tensor(torch.get_num_threads())}


def loader(fault=None, **more) -> DataLoader:
    return DataLoader(
        Squares(fault),
        2,
        num_workers=1,
        collate_fn=as_arrays,
        worker_init_fn=leave_signals,
        multiprocessing_context="fork",
        **{"timeout": 60} | more,
    )


def no_shared_memory(*_, **__):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def test_batches_take_no_shared_memory(monkeypatch):
    """With none of it they are what the training process computes; a worker has one thread."""
    monkeypatch.setattr(torch.UntypedStorage, "_new_using_fd_cpu", no_shared_memory)
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", no_shared_memory)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", no_shared_memory)
    batches = [as_tensors(batch) for batch in started(loader())]
    expected = torch.tensor([0.0, 1, 4, 9, 16, 25, 36, 49])
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), expected[:, None].expand(8, 3))
    assert all((batch["threads"] == 1).all() for batch in batches)


def fail():
    raise ValueError("this picture cannot be read")


def end_at_once():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    signal.pause()


@pytest.mark.parametrize(
    ("fault", "more", "says"),
    [
        (fail, {}, "this picture cannot be read"),
        (end_at_once, {}, "DataLoader worker"),
        (hang, {"timeout": 1}, "timed out"),
        (no_shared_memory, {}, "--shm-size"),
    ],
)
def test_a_worker_that_fails_ends_the_run_in_a_sentence(fault, more, says):
    with pytest.raises(UserError) as problem:
        list(started(loader(fault, **more)))
    assert says in str(problem.value) and "--workers 0" in str(problem.value) and "\n" not in str(problem.value)


def test_no_room_for_the_workers_themselves(monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DataLoader, "__iter__", full)
    with pytest.raises(UserError, match="No space left on device.*--workers 0.*--shm-size"):
        started(loader())


def test_a_users_error_in_a_worker_stays_a_users_error():
    def refuse():
        raise UserError("the picture is too large")

    with pytest.raises(UserError, match="too large"):
        list(started(loader(refuse)))


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_workers_leave_signals_to_the_training(kind):
    """A signal to the whole group must not end a worker before the training process has ended its step."""
    batches = started(loader())
    first = next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, kind)
    assert torch.equal(as_tensors(next(batches))["image"][:, 0], torch.tensor([4.0, 9.0])) and first[
        "image"
    ].shape == (2, 3)
    batches.close()  # ends the workers; one that a signal ends later would be reported in another test


def test_a_worker_ends_some_seconds_after_sigterm(monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 1)
    process = multiprocessing.get_context("fork").Process(
        target=lambda: (leave_signals(0), ready.set(), signal.pause(), signal.pause())
    )
    ready = multiprocessing.get_context("fork").Event()
    process.start()
    ready.wait(60)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == -signal.SIGALRM
