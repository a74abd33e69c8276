"""What does not fit into the memory is refused before it begins."""

import pytest
import torch
from torch import nn

from common.data.creatures.dataset import load_creatures
from common.errors import UserError
from common.io import memory

GIB = 2**30


@pytest.fixture
def small_machine(monkeypatch):
    """A GiB of memory, whatever this machine has."""
    monkeypatch.setattr(memory, "of_the_machine", lambda: float(GIB))


def test_what_is_free_is_positive_and_less_than_all():
    assert 0 < memory.free_memory() < 2**50


def test_the_least_counts(small_machine, tmp_path, monkeypatch):
    assert memory.free_memory() == GIB or memory.free_memory() < GIB
    for name, text in (
        ("memory.max", f"{GIB}\n"),
        ("memory.current", f"{GIB // 2}\n"),
        ("memory.stat", "anon 5\ninactive_file 1024\n"),
    ):
        (tmp_path / name).write_text(text)
    assert memory.of_a_container(tmp_path / "memory.max", tmp_path / "memory.current") == GIB // 2 + 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.of_a_container(tmp_path / "memory.max", tmp_path / "memory.current") == float("inf")
    assert memory.of_a_container(tmp_path / "nothing", tmp_path / "nothing") == float("inf")


def test_need(small_machine):
    memory.need(GIB // 4, "a little", "--n")
    with pytest.raises(
        UserError, match=r"a lot need at least 4.0 GiB of memory, and 1.0 GiB are free on cpu; lower --n"
    ):
        memory.need(4 * GIB, "a lot", "--n")


def test_a_set_that_does_not_fit(small_machine):
    with pytest.raises(
        UserError,
        match="1,000,000 creatures of 64 x 64 pixels need at least .* lower the number of pictures, or their size",
    ):
        load_creatures("train", 1_000_000, 64)


def test_a_batch_that_does_not_fit(small_machine):
    """The estimate is what autograd keeps: 30 outputs of tanh, 4 bytes each, of every number of the batch."""
    net, scale = nn.Sequential(*[nn.Tanh() for _ in range(30)]), nn.Parameter(torch.ones(1))
    step = lambda batch: net(scale * batch["image"]).mean()  # noqa: E731
    batch = {"image": torch.zeros(512, 4096)}
    memory.need_for_batch(step, batch, [], "cpu")
    with pytest.raises(UserError, match=r"8,192 images in a batch, .* need at least 3.9 GiB .* lower --batch-size"):
        memory.need_for_batch(step, {"image": torch.zeros(1, 4096).expand(8192, -1)}, [], "cpu")


def test_weights_are_not_counted_for_each_image(monkeypatch):
    found = []
    monkeypatch.setattr(memory, "need", lambda size, *_: found.append(size))
    net = nn.Linear(1024, 1024, bias=False)
    memory.need_for_batch(
        lambda batch: net(batch["image"]).sum(), {"image": torch.ones(2048, 1024)}, list(net.parameters()), "cpu"
    )
    assert found == [2048 * 4 * 1024 + 3 * 4 * 1024 * 1024]  # every image, and three times the weights
