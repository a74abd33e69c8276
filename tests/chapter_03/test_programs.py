"""The programs of chapter 3 as a newcomer runs them, and activation_memory.py."""

import pytest

from common.io.tables import read_csv

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

    def kept(batch_size: int) -> dict[str, float]:
        flags = ["--size", 8, "--channels", 8, 16, "--batch-size", batch_size, "--out", tmp_path]
        code, said, _ = command_line(ACTIVATION_MEMORY, *flags)
        assert code == 0 and "hybrid" in said
        (row,) = read_csv(tmp_path / "activation_memory.csv")
        assert row["images"] == "1x8x8" and row["batch"] == str(batch_size)
        return {name: float(row[name]) for name in ("plain_mb", "hybrid_mb", "twice_mb", "hybrid_growth")}

    four = kept(4)
    assert four["hybrid_growth"] == pytest.approx(100 * (four["hybrid_mb"] / four["plain_mb"] - 1), abs=1e-6)
    assert 0 < four["hybrid_growth"] < 20 and four["twice_mb"] / four["hybrid_mb"] == pytest.approx(2, rel=0.05)
    assert kept(8)["plain_mb"] == pytest.approx(2 * four["plain_mb"], rel=0.02)
