"""Interpolation and inversion: on Gaussian data, whose ideal denoiser is known, and as programs."""

import math

import pytest
import torch
from PIL import Image

from common.diffusion.schedules import make_schedule
from ddim_schedules.interpolation import METHODS, interpolate, levels_from, peak_to_mean

INTERPOLATE, INVERT = "03_ddim_schedules/interpolate.py", "03_ddim_schedules/invert.py"
IDEAL = 0.3  # standard deviation of a Gaussian data set whose denoiser is known


def ideal(x, level):
    shrink = level.alpha * IDEAL**2 / ((level.alpha * IDEAL) ** 2 + level.sigma**2)
    return shrink * x, (x - level.alpha * shrink * x) / level.sigma


def images():
    return [
        IDEAL * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in (0, 1)
    ]


def test_ddim_interpolations_end_at_the_images():
    a, b = images()
    path = make_schedule("cosine").noise_levels(400)
    for method in ("ddim_slerp", "ddim_lerp"):
        made = interpolate(method, ideal, ideal, path, a, b, [0.0, 0.5, 1.0], 1.0, 0)
        torch.testing.assert_close(made[:1], a, rtol=0, atol=0.02)
        torch.testing.assert_close(made[2:], b, rtol=0, atol=0.02)
    slerp, lerp = (
        float(interpolate(m, ideal, ideal, path, a, b, [0.5], 1.0, 0).std()) for m in ("ddim_slerp", "ddim_lerp")
    )
    ends = float((a.std() + b.std()) / 2)
    assert slerp == pytest.approx(ends, rel=0.1) and lerp < 0.82 * ends


def test_the_linear_mixture_of_two_noises_is_too_weak():
    """The mean of two independent noises has 0.71 of their standard deviation, so its noise level is too low."""
    path = make_schedule("linear").noise_levels(50)
    seen = {}
    for method in ("ddpm", "ddpm_shared", "ddpm_slerp"):

        def spy(x, level, method=method):
            seen.setdefault(method, (x, level))
            return ideal(x, level)

        interpolate(method, spy, spy, path, torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64), [0.5], 0.6, 0)
    for method, expected in (("ddpm", math.sqrt(0.5)), ("ddpm_shared", 1.0), ("ddpm_slerp", 1.0)):
        x, level = seen[method]
        assert float(x.std()) / level.sigma == pytest.approx(expected, rel=0.04)


def test_all_images_of_an_interpolation_get_the_same_fresh_noise():
    a, _ = images()
    path = make_schedule("linear").noise_levels(20)
    made = interpolate("ddpm_shared", ideal, ideal, path, a, a, [0.0, 0.3, 1.0], 0.5, 0)
    torch.testing.assert_close(made[0], made[1])
    torch.testing.assert_close(made[0], made[2])


def test_strength_is_the_share_of_levels_that_are_left():
    path = make_schedule("linear").noise_levels(50)
    assert len(levels_from(path, 1.0)) == 50 and len(levels_from(path, 0.2)) == 10
    assert next(iter(levels_from(path, 0.2))).time == 199


def test_peak_to_mean():
    assert peak_to_mean(torch.ones(5)) == 1 and peak_to_mean(torch.tensor([0.0, 0, 4, 0])) == 4


def test_interpolate(command_line, trained_run, tmp_path):
    flags = [
        "--model",
        trained_run,
        "--data",
        "digits",
        "--steps",
        6,
        "--frames",
        5,
        "--out",
        tmp_path,
        "--device",
        "cpu",
    ]
    code, said, _ = command_line(INTERPOLATE, "--a", "3", "--b", "class:7", *flags)
    assert code == 0 and all(method in said for method in METHODS)
    with Image.open(tmp_path / "walk.gif") as gif:
        assert gif.n_frames == 8  # there and back
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.width > 7 * 16 and strip.height > 5 * 16  # with room for labels
    assert (tmp_path / "change.png").exists()
    code, said, _ = command_line(
        INTERPOLATE, "--a", "3", "--b", "class:7", *flags, "--pairs", 3, "--method", "ddpm", "ddim_slerp"
    )
    assert code == 0 and "over 3 pairs" in said and said.count(" ± ") == 1 + 2 * 2 and "nan" not in said


def test_interpolate_between_files(command_line, trained_run, tmp_path):
    for name, size, grey in (("a.png", 20, 30), ("b.png", 20, 220), ("c.png", 24, 90)):
        Image.new("RGB", (size, size), (grey,) * 3).save(tmp_path / name)
    flags = [
        "--model",
        trained_run,
        "--steps",
        4,
        "--frames",
        3,
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
        "--method",
        "ddim_slerp",
    ]
    code, _, err = command_line(INTERPOLATE, "--a", tmp_path / "a.png", "--b", tmp_path / "b.png", *flags)
    assert code == 0, err
    code, _, err = command_line(INTERPOLATE, "--a", tmp_path / "a.png", "--b", tmp_path / "c.png", *flags)
    assert code == 2 and "20x20 pixels but" in err and "24x24" in err
    (tmp_path / "broken.png").write_bytes(b"no image")
    code, _, err = command_line(INTERPOLATE, "--a", tmp_path / "a.png", "--b", tmp_path / "broken.png", *flags)
    assert code == 2 and "broken.png" in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--a", "9999"], "'9999' is no image: give an index from 0 to"),
        (["--a", "class:x"], "no class 'x'; its classes are 0, 1"),
        (["--a", "none.png"], "there is no image file none.png"),
        (["--frames", 2], "--frames must be at least 3"),
        (["--strength", 0], "--strength must be above 0"),
        (["--strength", 1e-9], "of 100 steps is less than one step"),
        (["--steps", 1001], "--steps must be at most 1,000, not 1001"),
        (["--data", "cifar10"], "CIFAR10 is not in"),
    ],
)
def test_interpolate_bad_input(flags, says, command_line, trained_run, tmp_path):
    code, _, err = command_line(
        INTERPOLATE,
        "--model",
        trained_run,
        "--data",
        "digits",
        "--data-dir",
        tmp_path,
        "--out",
        tmp_path,
        "--device",
        "cpu",
        *flags,
    )
    assert code == 2 and says in err


def test_invert(command_line, trained_run, tmp_path):
    flags = [
        "--model",
        trained_run,
        "--data",
        "digits",
        "--images",
        "0",
        "5",
        "class:3",
        "--steps",
        4,
        40,
        "--out",
        tmp_path,
        "--device",
        "cpu",
    ]
    code, said, _ = command_line(INVERT, *flags)
    rows = [line.split() for line in said.splitlines() if line.strip()[:1].isdigit()]
    assert code == 0 and [row[0] for row in rows] == ["4", "40"]
    assert float(rows[1][1]) < float(rows[0][1])  # more steps, less lost
    assert (tmp_path / "inversion.png").exists() and (tmp_path / "error.png").exists()


def test_invert_bad_input(command_line, trained_run, tmp_path):
    code, _, err = command_line(
        INVERT, "--model", trained_run, "--data", "digits", "--steps", 2000, "--out", tmp_path, "--device", "cpu"
    )
    assert code == 2 and "--steps must be at most 1,000, not 2000" in err
