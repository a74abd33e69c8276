"""The programs of chapter 3 as a newcomer runs them, and activation_memory.py."""

import json

import pytest

ABLATE, INTERPOLATE, INVERT, ACTIVATION_MEMORY = (
    f"03_ddim_schedules/{name}.py" for name in ("ablate", "interpolate", "invert", "activation_memory")
)


def test_programs_need_no_model_and_no_network(command_line, tmp_path):
    """As a newcomer types them: the shipped network, the embedded digits."""
    code, said, err = command_line(
        INTERPOLATE, "--frames", 4, "--steps", 5, "--method", "ddim_slerp", "--out", tmp_path
    )
    assert code == 0, err
    code, said, err = command_line(INVERT, "--images", "0", "1", "--steps", 5, 20, "--out", tmp_path)
    assert code == 0, err
    code, said, err = command_line(
        ABLATE, "samplers", "--dry", "--data-dir", tmp_path, "--out", tmp_path, "--lab", tmp_path / "lab"
    )
    assert code == 0 and "48 experiments, 0 of them known; 0 networks to train" in said, err
    assert "no MNIST in" not in said  # the study takes the embedded digits, and has nothing to look for


def test_what_training_keeps_in_memory(command_line, tmp_path):
    """The bound reuses the answer: it costs a few more tensors of the image's size. To ask twice costs double."""
    flags = ["--size", 8, "--channels", 8, 16, "--batch-size", 4, "--json", tmp_path / "memory.json"]
    code, said, _ = command_line(ACTIVATION_MEMORY, *flags)
    kept = json.loads((tmp_path / "memory.json").read_text())
    assert code == 0 and "hybrid" in said
    assert 1 < kept["hybrid"] / kept["plain"] < 1.2 and kept["twice"] / kept["hybrid"] == pytest.approx(2, rel=0.05)
    code, _, _ = command_line(ACTIVATION_MEMORY, *flags[:-4], "--batch-size", 8, *flags[-2:])
    assert json.loads((tmp_path / "memory.json").read_text())["plain"] == pytest.approx(2 * kept["plain"], rel=0.02)
