"""What a run folder tells a reader: the colours of its images, its first batch, and why a training stopped."""

import json

import pytest
import torch

from common.training.logging import logged
from common.training.loop import LossTerms, State
from common.training.optimization import Diverged
from common.training.record import colours, keep_first_batch, record_of


def test_colours_are_the_mean_of_each_channel():
    images = torch.zeros(600, 3, 2, 2, dtype=torch.uint8)
    images[:, 1] = 255
    images[:300, 2] = 51
    assert colours(images) == pytest.approx([-1, 1, -0.8])
    assert record_of(images)["colours"] == colours(images)


def test_the_first_batch_in_numbers(tmp_path):
    image = torch.stack([torch.zeros(2, 2), torch.full((2, 2), 2.0)])[None]  # (1, 2, 2, 2)
    keep_first_batch(tmp_path, {"image": image, "label": torch.tensor([3]), "none": torch.zeros(0)})
    kept = json.loads((tmp_path / "batch.json").read_text())
    assert kept["image"] == {"shape": [1, 2, 2, 2], "min": 0, "max": 2, "mean": 1, "std": 1, "channels": [0, 2]}
    assert kept["label"]["mean"] == 3 and "none" not in kept


def test_a_diverged_training_says_so_until_it_is_resumed(tmp_path):
    terms = LossTerms(torch.ones(2), torch.zeros(2))
    state = State(1, 1.0, terms, 0.1, 1.0, 2, 1.0, 1.0, 0.5, torch.nn.Linear(1, 1), False, False)

    def diverges():
        yield state
        raise Diverged("step 2: the loss is nan")

    with pytest.raises(Diverged):
        list(logged(diverges(), tmp_path, 2, quiet=True))
    assert json.loads((tmp_path / "diverged.json").read_text()) == {"message": "step 2: the loss is nan"}
    list(logged(iter([state._replace(step=2)]), tmp_path, 2, quiet=True))
    assert not (tmp_path / "diverged.json").exists()
