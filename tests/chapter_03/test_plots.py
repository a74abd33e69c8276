"""Tables of studies."""

from ddim_schedules import plots


def test_summary_of_seeds_and_of_one():
    rows = [{"frechet": value, "frechet_sd": 0.5, "diverged": False} for value in (1.0, 2.0, 3.0)]
    assert plots.summary(rows, "frechet") == (2.0, 1.0, 3) and plots.summary(rows[:1], "frechet") == (1.0, 0.5, 1)
    assert plots.summary([{"diverged": True}], "frechet")[2] == 0


def test_a_table_distinguishes_diverged_from_not_run():
    base = {"eta": None, "variance": "", "frechet_sd": 0.1}
    rows = [
        base | {"sampler": "ddpm", "steps": 9, "frechet": 2.0, "diverged": False},
        base | {"sampler": "ddim", "steps": 5, "diverged": True},
    ]
    assert plots.table(rows, ["steps", "sampler"], "frechet")[1:] == [
        ["ddpm", "", "2 ± 0.1"],
        ["ddim", "diverged", ""],
    ]
