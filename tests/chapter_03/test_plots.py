"""Tables and plots of studies."""

import pytest
from matplotlib.figure import Figure

from common import viz
from ddim_schedules import plots


def test_summary_of_seeds_and_of_one():
    rows = [{"frechet": value, "frechet_sd": 0.5, "diverged": False} for value in (1.0, 2.0, 3.0)]
    half = 4.3027 / 3**0.5  # the 97.5 % quantile of Student's distribution with 2 degrees of freedom, by its tables
    assert plots.summary(rows, "frechet") == (2.0, pytest.approx(half, abs=1e-4), 3)
    assert plots.summary(rows[:1], "frechet") == (1.0, pytest.approx(0.98), 1)
    assert plots.summary([{"diverged": True}], "frechet")[2] == 0


def test_a_table_distinguishes_diverged_from_not_run():
    base = {"eta": None, "variance": "", "frechet_sd": 0.1}
    rows = [
        base | {"sampler": "ddpm", "steps": 9, "frechet": 2.0, "diverged": False},
        base | {"sampler": "ddim", "steps": 5, "diverged": True},
    ]
    assert plots.table(rows, ["steps", "sampler"], "frechet")[1:] == [
        ["ddpm", "", "2 ± 0.2"],
        ["ddim", "diverged", ""],
    ]


def test_steps_are_drawn_as_network_evaluations(monkeypatch, tmp_path):
    """Heun evaluates the network twice in every step but the last."""
    drawn: list[Figure] = []
    monkeypatch.setattr(viz, "save_figure", lambda figure, path: drawn.append(figure) or path)
    base = {"eta": None, "variance": "", "frechet_sd": 0.1, "frechet_real": 1.0, "diverged": False, "n": 40}
    base |= {"seed": 0, "noise_seed": 0}
    rows = [
        base | {"sampler": name, "steps": steps, "evaluations": evaluations, "frechet": 2.0}
        for name, steps, evaluations in (("ddim", 5, 5), ("ddim", 10, 10), ("heun", 5, 9), ("heun", 10, 19))
    ]
    plots.plot(rows, ["steps", "sampler"], "frechet", tmp_path / "plot.png")
    (axis,) = drawn[0].axes
    places = {container.get_label(): container.lines[0].get_xdata() for container in axis.containers}
    assert places["ddim"] == pytest.approx([5, 10], rel=0.03) and places["heun"] == pytest.approx([9, 19], rel=0.03)
    assert axis.get_xlabel() == "network evaluations"
