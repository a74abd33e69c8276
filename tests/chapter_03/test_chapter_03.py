"""Chapter 3: the longhand solvers, the laboratory and its cells, and the programs."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.diffusion.denoiser import Denoiser
from common.diffusion.samplers import ddim, ddim_inverse, ddpm, euler_a
from common.diffusion.schedules import make_schedule
from common.random import Noise
from ddim_schedules import experiment as cells
from ddim_schedules import interpolation as latents
from ddim_schedules import plots, solvers
from ddim_schedules import runner as laboratory
from helpers.programs import ROOT

CHAPTER = "03_ddim_schedules"
ABLATE, INTERPOLATE, INVERT = (f"{CHAPTER}/{name}.py" for name in ("ablate", "interpolate", "invert"))
SHAPE = (2, 1, 4, 4)


def network(x, t):
    return torch.tanh(0.7 * x + 0.3 * x.roll(1, -1)) * (0.8 + 0.1 * torch.cos(3 * t.double() / 1000)).view(-1, 1, 1, 1)


def noise(k, x):
    return Noise(3)(k, x)


def pure_noise():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# -------------------------------------------------------------------------------------------------- longhand equals common


@pytest.mark.parametrize("steps", [4, 13, 50])
@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("pair", ["ddim", "ddim eta=0.5", "ddpm", "euler", "invert"])
def test_longhand_solvers_equal_common(pair, name, steps):
    schedule, x = make_schedule(name), pure_noise()
    path, tau, bar = schedule.noise_levels(steps), solvers.visited(1000, steps), schedule.alpha_bar
    denoise = Denoiser(network, "eps", clip_x0=False)
    longhand, ours = {
        "ddim": lambda: (solvers.ddim(network, x, bar, tau, noise), ddim(denoise, x, path)),
        "ddim eta=0.5": lambda: (solvers.ddim(network, x, bar, tau, noise, 0.5), ddim(denoise, x, path, 0.5, noise)),
        "ddpm": lambda: (solvers.ddpm_respaced(network, x, bar, tau, noise), ddpm(denoise, x, path, noise)),
        "euler": lambda: (solvers.euler_ancestral(network, x, bar, tau, noise), euler_a(denoise, x, path, noise)),
        "invert": lambda: (solvers.invert(network, x, bar, tau), ddim_inverse(denoise, x, path)),
    }[pair]()
    for mine, step in zip(longhand, ours, strict=True):
        torch.testing.assert_close(mine, step.x, rtol=1e-7, atol=1e-7)


def test_the_mistake_is_right_on_the_full_chain_and_wrong_on_a_short_one():
    bar, x = make_schedule("linear", 40).alpha_bar, pure_noise()

    def after(solver, steps):
        *_, end = solver(network, x, bar, solvers.visited(40, steps), noise)
        return end

    torch.testing.assert_close(after(solvers.ddpm_naive, 40), after(solvers.ddpm_respaced, 40), rtol=1e-9, atol=1e-9)
    assert float((after(solvers.ddpm_naive, 8) - after(solvers.ddpm_respaced, 8)).abs().max()) > 0.3


def test_slerp():
    a, b = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(solvers.slerp(a, b, 0.0), a)
    torch.testing.assert_close(solvers.slerp(a, b, 1.0), b)
    unit = [x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for x in (a, b)]
    for share in (0.25, 0.5, 0.8):
        middle = solvers.slerp(*unit, share)
        torch.testing.assert_close(middle.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
        whole = (unit[0] * unit[1]).flatten(1).sum(1).arccos()
        torch.testing.assert_close((unit[0] * middle).flatten(1).sum(1).arccos(), share * whole)  # even in angle, image by image
    torch.testing.assert_close(solvers.slerp(a, a, 0.3), a)
    assert float((latents.lerp(a, b, 0.5)).std()) < 0.8 < float(solvers.slerp(a, b, 0.5).std())


# ----------------------------------------------------------------------------------------------------------------- cells


def test_a_grid_has_every_combination_once():
    axes = cells.read_axes(["sampler=ddim,heun", "steps=5,10", "eta=0,1", "seed=0,1"])
    assert axes["steps"] == [5, 10] and axes["eta"] == [0.0, 1.0]
    made = cells.grid(axes)
    assert len(made) == 2 * (2 * 2 + 2)  # heun has no eta, so that its two cells are one
    assert {cell.sampling.text for cell in made} == {"ddim:5:eta=0", "ddim:5:eta=1", "ddim:10:eta=0", "ddim:10:eta=1", "heun:5", "heun:10"}


@pytest.mark.parametrize(("word", "sampler", "steps", "eta", "variance"), [
    ("ddim:50:eta=0.5", "ddim", 50, 0.5, ""), ("ddim:eta=0.5", "ddim", 20, 0.5, ""), ("DDIM_50_0p5", "ddim", 50, 0.5, ""),
    ("ddpm:variance=large", "ddpm", 20, None, "large"), ("heun:18", "heun", 18, None, ""), ("ddpm_naive", "ddpm_naive", 20, None, ""),
    ("ddpm_naive:50", "ddpm_naive", 50, None, ""), ("dpmpp_2m", "dpmpp_2m", 20, None, "")])  # fmt: skip
def test_samplers_are_spelled_as_elsewhere(word, sampler, steps, eta, variance):
    (cell,) = cells.grid({"sampler": [word]})
    got = cell.sampling
    assert (got.sampler, got.steps, got.eta, got.variance) == (sampler, steps, eta, variance)


def test_a_key_is_the_same_for_the_same_settings_only():
    a, b, c = cells.Training(), cells.Training(loss="l2"), cells.Training(loss="l1")
    assert cells.key_of(a) == cells.key_of(b) != cells.key_of(c)


def test_a_model_is_known_by_its_files(trained_run):
    import shutil

    model = trained_run / "model"
    copy = trained_run.parent / "copy"
    shutil.copytree(model, copy, dirs_exist_ok=True)
    assert cells.key_of(cells.Training(model=str(model))) == cells.key_of(cells.Training(model=str(copy)))
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon"))
    assert cells.key_of(cells.Training(model=str(model))) != cells.key_of(cells.Training(model=str(copy)))


# ------------------------------------------------------------------------------------------------------------ the laboratory

TINY = ["train_steps=4", "batch_size=8", "channels=8-16", "size=8", "n=40", "steps=2"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A small study that has been run: (folder of the lab, folder of the study, flags)."""
    folder = tmp_path_factory.mktemp("study")
    flags = ["loss=l2,l1", "seed=0,1", *TINY, "--lab", folder / "lab", "--out", folder / "out", "--device", "cpu", "--precision", "no"]
    from helpers.programs import run_main

    run_main(ABLATE, *flags)
    return folder / "lab", folder / "out", flags


def read(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_leaves_a_table_a_plot_and_pictures(done):
    _, out, _ = done
    rows = read(out / "results.csv")
    assert len(rows) == 4 and {(row["loss"], row["seed"]) for row in rows} == {(a, b) for a in ("l1", "l2") for b in "01"}
    for row in rows:
        assert float(row["frechet"]) > float(row["frechet_real"]) > 0 and float(row["frechet_sd"]) > 0
        assert 0 < float(row["brightness"]) < 1 and row["diverged"] == "False" and row["evaluations"] == "2"
    assert len({row["frechet"] for row in rows}) == 4  # four trainings, four results
    for picture in ("plot.png", "grid.png"):
        with Image.open(out / picture) as image:
            assert np.asarray(image.convert("L")).std() > 5


def test_nothing_is_done_twice(done, command_line):
    lab, out, flags = done
    before = {path: path.stat().st_mtime_ns for path in lab.rglob("*") if path.is_file()}
    table = (out / "results.csv").read_bytes()
    code, said, _ = command_line(ABLATE, *flags)
    assert code == 0 and "4 cells, 4 of them known; 0 networks to train" in said
    assert {path: path.stat().st_mtime_ns for path in lab.rglob("*") if path.is_file()} == before
    assert (out / "results.csv").read_bytes() == table


def test_another_study_uses_the_same_networks(done, command_line, tmp_path):
    lab, _, flags = done
    words = [flag for flag in flags if flag != "steps=2" and flag not in ("--out", done[1])]
    code, said, _ = command_line(ABLATE, "steps=3", *words, "--out", tmp_path, "--dry")
    assert code == 0 and "4 cells, 0 of them known; 0 networks to train" in said


def test_an_interrupted_study_goes_on_and_ends_the_same(done, tmp_path):
    """Stopped in the middle of a training, and again in the middle of the pictures."""
    (cell, *_) = cells.grid(cells.read_axes(["loss=l2", "seed=0", *TINY, "train_steps=4"]))
    lab = laboratory.Laboratory(tmp_path, device="cpu", precision="no")

    class Stopped(Exception):
        pass

    def stop_after(calls):
        left = [calls]

        def tick(_):
            left[0] -= 1
            if left[0] == 0:
                raise Stopped

        return tick

    for calls in (2, 5):  # the second training step; the first step of the pictures
        with pytest.raises(Stopped):
            lab.result(cell, stop_after(calls))
        assert lab.kept(cell) is None
    result = lab.result(cell)
    known = laboratory.Laboratory(done[0], device="cpu").result(cell)
    assert {k: v for k, v in result.items() if k != "seconds"} == {k: v for k, v in known.items() if k != "seconds"}


def test_a_training_that_diverges_is_a_result_too(command_line, tmp_path):
    flags = ["optimizer=adamw", "lr=1e-3,100", *TINY, "--lab", tmp_path / "lab", "--out", tmp_path / "out", "--device", "cpu", "--precision", "no"]
    code, said, _ = command_line(ABLATE, *flags)
    rows = {float(row["lr"]): row for row in read(tmp_path / "out" / "results.csv")}
    assert code == 0 and "diverged" in said
    assert rows[100]["diverged"] == "True" and rows[100]["frechet"] == "" and rows[1e-3]["diverged"] == "False"


def test_sgd_begins_where_adamw_ended(tmp_path):
    lab = laboratory.Laboratory(tmp_path, device="cpu", precision="no")
    (cell,) = cells.grid(cells.read_axes(["optimizer=adamw-sgd", "lr=1e-9", *TINY]))
    (first,) = cells.grid(cells.read_axes(["optimizer=adamw", *TINY]))
    polished, before = lab.network(cell.training, ema=False), lab.network(first.training, ema=False)
    for a, b in zip(polished.net.parameters(), before.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_the_weights_that_are_asked_for_are_used(done):
    lab = laboratory.Laboratory(done[0], device="cpu", precision="no")
    pair = cells.grid(cells.read_axes(["ema=yes,no", "loss=l2", "seed=0", *TINY]))
    averaged, last = (lab.draw(cell) for cell in pair)
    assert not torch.equal(averaged, last)


def test_the_mistake_runs_on_any_prediction(done):
    lab = laboratory.Laboratory(done[0], device="cpu", precision="no")
    (cell,) = cells.grid(cells.read_axes(["sampler=ddpm_naive", "loss=l2", "seed=0", *TINY]))
    assert lab.draw(cell).isfinite().all()


def test_looks():
    grey = torch.full((2, 3, 4, 4), -1.0)
    assert laboratory.look_of(grey) == {"brightness": 0, "contrast": 0, "sharpness": 0, "saturation": 0}
    board = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).tile(2, 2).expand(2, 1, 4, 4)
    assert laboratory.look_of(board) == {"brightness": 0.5, "contrast": pytest.approx(0.516, abs=1e-3), "sharpness": 1, "saturation": 0}
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert laboratory.look_of(red)["saturation"] == 1


def test_summary_of_seeds_and_of_one():
    rows = [{"frechet": value, "frechet_sd": 0.5, "diverged": False} for value in (1.0, 2.0, 3.0)]
    assert plots.summary(rows, "frechet") == (2.0, 1.0, 3) and plots.summary(rows[:1], "frechet") == (1.0, 0.5, 1)
    assert plots.summary([{"diverged": True}], "frechet")[2] == 0


@pytest.mark.parametrize(("words", "says"), [
    ([], "name what to measure: one of samplers"),
    (["sampels"], "there is no study 'sampels'; choose one of samplers"),
    (["steps"], "there is no study 'steps'"),
    (["steps=10", "eta"], "cannot read 'eta'; write what to vary as key=value"),
    (["stepps=10"], "'stepps' cannot be varied; choose one of"),
    (["steps=ten"], "steps=ten: steps must be a whole number"),
    (["sampler=ddim", "lr=nan"], "lr must be above 0, not nan"),
    (["sampler=ddim", "n=0"], "n must be above 0, not 0"),
    (["sampler=ddim", "batch_size=0"], "batch_size must be above 0"),
    (["sampler=ddim", "layers=0"], "layers must be above 0"),
    (["sampler=ddim", "channels=abc"], "channels=abc: write the width at each resolution"),
    (["sampler=ddim", "channels=12"], "multiples of 8, not 12"),
    (["sampler=ddim", "channels=8-16-16-16-16-16"], "need images of at least"),
    (["sampler=ddim", "n=1000000000"], "n must be at most 1,000,000"),
    (["sampler=ddim,dpmpp_2m", "steps=3", "n=8"], "8 samples, "),
    (["ema=maybe", "steps=10"], "ema=maybe: ema must be yes or no"),
    (["sampler=eulr", "steps=10"], "there is none called 'eulr'"),
    (["sampler=ddim:fifty"], "fifty"),
    (["steps=1001"], "takes 1 to 1000 steps, not 1001"),
    (["sampler=ddim", "eta=1.5"], "eta must be between 0 and 1"),
    (["sampler=heun:20:eta=1"], "heun has no eta"),
    (["schedule=linea"], "unknown schedule 'linea'"),
    (["loss=l3"], "unknown loss 'l3'; choose one of l2"),
    (["weight=snr"], "unknown weight 'snr'"),
    (["clip=hard"], "clip=hard: choose static, none or dynamic"),
    (["optimizer=adam"], "optimizer=adam: choose adamw"),
    (["data=nothing"], "unknown data 'nothing'"),
    (["schedule=linear_zero_snr", "prediction=eps"], "ends at pure noise"),
])  # fmt: skip
def test_bad_words(words, says, command_line, tmp_path):
    code, _, err = command_line(ABLATE, *words, "--out", tmp_path / "out", "--lab", tmp_path / "lab")
    assert code == 2 and says in err and err.count("\n") == 1
    assert not (tmp_path / "lab").exists()


def test_a_table_tells_diverged_from_never_asked():
    base = {"eta": None, "variance": "", "frechet_sd": 0.1}
    rows = [base | {"sampler": "ddpm", "steps": 9, "frechet": 2.0, "diverged": False}, base | {"sampler": "ddim", "steps": 5, "diverged": True}]
    assert plots.table(rows, ["steps", "sampler"], "frechet")[1:] == [["ddpm", "", "2 ± 0.1"], ["ddim", "diverged", ""]]


def test_a_table_that_cannot_be_written(command_line, tmp_path):
    (tmp_path / "out").write_text("a file where a folder should be")
    code, _, err = command_line(ABLATE, "steps=3", "--out", tmp_path / "out")
    assert code == 2 and "cannot write" in err
    (tmp_path / "folder" / "results.csv").mkdir(parents=True)
    code, _, err = command_line(ABLATE, *TINY, "--out", tmp_path / "folder", "--lab", tmp_path / "lab", "--device", "cpu")
    assert code == 2 and "results.csv" in err


def test_what_a_model_fixes_cannot_be_varied(command_line, trained_run, tmp_path):
    code, _, err = command_line(ABLATE, "loss=l1,l2", "--model", trained_run, "--out", tmp_path)
    assert code == 2 and "loss cannot be varied with --model" in err
    code, _, err = command_line(ABLATE, "sampler=ddim", "--model", tmp_path / "none", "--out", tmp_path)
    assert code == 2 and "there is no folder" in err


def test_samplers_of_a_given_model(command_line, trained_run, tmp_path):
    flags = ["sampler=ddim,ddpm:variance=large,ddpm_naive", "steps=2,3", "seed=0,1", "n=40", "data=digits", "--model", trained_run]
    code, said, _ = command_line(ABLATE, *flags, "--out", tmp_path / "out", "--lab", tmp_path / "lab", "--device", "cpu")
    rows = read(tmp_path / "out" / "results.csv")
    assert code == 0 and len(rows) == 12 and {row["noise_seed"] for row in rows} == {"0", "1"}
    assert "ddpm variance=large" in said and "one deviation over seeds" in said


def test_the_studies_are_complete(command_line):
    code, said, _ = command_line(ABLATE, "--list")
    from ddim_schedules.studies import STUDIES as studies

    assert code == 0 and all(name in said and study.question in said for name, study in studies.items())
    for study in studies.values():
        assert cells.grid(cells.read_axes(study.vary))
    text = " ".join(study.question for study in studies.values())
    assert all(f"Claim {k}" in text for k in (1, 2, 3, 4, 5, 6, 10))


# --------------------------------------------------------------------------------------------------- the shipped network


def test_the_shipped_network_is_small_and_opens_in_diffusers():
    from diffusers import DDPMPipeline

    folder = ROOT / CHAPTER / "pretrained"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2_000_000
    assert DDPMPipeline.from_pretrained(folder).unet.config.sample_size == 16


def test_programs_need_no_model_and_no_network(command_line, tmp_path):
    """As a newcomer types them: the shipped network, the embedded digits."""
    code, said, err = command_line(INTERPOLATE, "--frames", 4, "--steps", 5, "--method", "ddim_slerp", "--out", tmp_path)
    assert code == 0, err
    code, said, err = command_line(INVERT, "--images", "0", "1", "--steps", 5, 20, "--out", tmp_path)
    assert code == 0, err
    code, said, err = command_line(ABLATE, "samplers", "--dry", "--data-dir", tmp_path, "--out", tmp_path, "--lab", tmp_path / "lab")
    assert code == 0 and "no MNIST in" in said and "48 cells, 0 of them known; 0 networks to train" in said, err


def test_the_shipped_network_knows_its_digits(command_line, tmp_path):
    """Its samples are far nearer to real digits than those of a network that was hardly trained (which gets 50 and more)."""
    flags = ["sampler=dpmpp_2m", "steps=10", "n=200", "data=digits", "--model", ROOT / CHAPTER / "pretrained"]
    code, _, err = command_line(ABLATE, *flags, "--out", tmp_path / "out", "--lab", tmp_path / "lab", "--device", "cpu")
    (row,) = read(tmp_path / "out" / "results.csv")
    assert code == 0, err
    assert float(row["frechet"]) < 12


# ----------------------------------------------------------------------------------------------- interpolation, inversion

IDEAL = 0.3  # deviation of a Gaussian data set whose denoiser is known


def ideal(x, level):
    shrink = level.alpha * IDEAL**2 / ((level.alpha * IDEAL) ** 2 + level.sigma**2)
    return shrink * x, (x - level.alpha * shrink * x) / level.sigma


def images():
    return [IDEAL * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1)]


def test_ddim_walks_end_at_the_images():
    a, b = images()
    path = make_schedule("cosine").noise_levels(400)
    for method in ("ddim_slerp", "ddim_lerp"):
        way = latents.walk(method, ideal, ideal, path, a, b, [0.0, 0.5, 1.0], 1.0, 0)
        torch.testing.assert_close(way[:1], a, rtol=0, atol=0.02)
        torch.testing.assert_close(way[2:], b, rtol=0, atol=0.02)
    slerp, lerp = (float(latents.walk(m, ideal, ideal, path, a, b, [0.5], 1.0, 0).std()) for m in ("ddim_slerp", "ddim_lerp"))
    ends = float((a.std() + b.std()) / 2)
    assert slerp == pytest.approx(ends, rel=0.1) and lerp < 0.82 * ends


def test_the_linear_mixture_of_two_noises_is_too_weak():
    """Why the classic walk is odd in the middle: two independent noises, halved and added, have 0.71 of their deviation."""
    path = make_schedule("linear").noise_levels(50)
    seen = {}
    for method in ("ddpm", "ddpm_shared", "ddpm_slerp"):
        def spy(x, level, method=method):
            seen.setdefault(method, (x, level))
            return ideal(x, level)

        latents.walk(method, spy, spy, path, torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64), [0.5], 0.6, 0)
    for method, expected in (("ddpm", math.sqrt(0.5)), ("ddpm_shared", 1.0), ("ddpm_slerp", 1.0)):
        x, level = seen[method]
        assert float(x.std()) / level.sigma == pytest.approx(expected, rel=0.04)


def test_the_dice_are_the_same_for_all_pictures_of_a_walk():
    a, _ = images()
    path = make_schedule("linear").noise_levels(20)
    way = latents.walk("ddpm_shared", ideal, ideal, path, a, a, [0.0, 0.3, 1.0], 0.5, 0)
    torch.testing.assert_close(way[0], way[1])
    torch.testing.assert_close(way[0], way[2])


def test_strength_is_how_far_up_the_walk_goes():
    path = make_schedule("linear").noise_levels(50)
    assert len(latents.begin_at(path, 1.0)) == 50 and len(latents.begin_at(path, 0.2)) == 10
    assert latents.first_level(latents.begin_at(path, 0.2)).time == 199


def test_jumpiness():
    assert latents.jumpiness(torch.ones(5)) == 1 and latents.jumpiness(torch.tensor([0.0, 0, 4, 0])) == 4


def test_interpolate(command_line, trained_run, tmp_path):
    flags = ["--model", trained_run, "--data", "digits", "--steps", 6, "--frames", 5, "--out", tmp_path, "--device", "cpu"]
    code, said, _ = command_line(INTERPOLATE, "--a", "3", "--b", "class:7", *flags)
    assert code == 0 and all(method in said for method in latents.METHODS)
    with Image.open(tmp_path / "walk.gif") as gif:
        assert gif.n_frames == 8  # there and back
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.width / strip.height == pytest.approx(7 / 5, rel=0.05)
    assert (tmp_path / "change.png").exists()
    code, said, _ = command_line(INTERPOLATE, "--a", "3", "--b", "class:7", *flags, "--pairs", 3, "--method", "ddpm", "ddim_slerp")
    assert code == 0 and "over 3 pairs" in said and said.count(" ± ") == 1 + 2 * 2 and "nan" not in said


def test_interpolate_between_files(command_line, trained_run, tmp_path):
    for name, size, grey in (("a.png", 20, 30), ("b.png", 20, 220), ("c.png", 24, 90)):
        Image.new("RGB", (size, size), (grey,) * 3).save(tmp_path / name)
    flags = ["--model", trained_run, "--steps", 4, "--frames", 3, "--out", tmp_path / "out", "--device", "cpu", "--method", "ddim_slerp"]
    code, _, err = command_line(INTERPOLATE, "--a", tmp_path / "a.png", "--b", tmp_path / "b.png", *flags)
    assert code == 0, err
    code, _, err = command_line(INTERPOLATE, "--a", tmp_path / "a.png", "--b", tmp_path / "c.png", *flags)
    assert code == 2 and "20x20 pixels but" in err and "24x24" in err
    (tmp_path / "broken.png").write_bytes(b"no image")
    code, _, err = command_line(INTERPOLATE, "--a", tmp_path / "a.png", "--b", tmp_path / "broken.png", *flags)
    assert code == 2 and "broken.png" in err


@pytest.mark.parametrize(("flags", "says"), [
    (["--a", "9999"], "'9999' is no image: give an index from 0 to"),
    (["--a", "class:x"], "no class 'x'; its classes are 0, 1"),
    (["--a", "none.png"], "there is no image file none.png"),
    (["--frames", 2], "--frames must be at least 3"),
    (["--strength", 0], "--strength must be above 0"),
    (["--strength", 1e-9], "of 100 steps is less than one step"), (["--steps", 1001], "--steps must be at most 1,000, not 1001"),
    (["--data", "cifar10"], "CIFAR10 is not in"),
])  # fmt: skip
def test_interpolate_bad_input(flags, says, command_line, trained_run, tmp_path):
    code, _, err = command_line(INTERPOLATE, "--model", trained_run, "--data", "digits", "--data-dir", tmp_path, "--out", tmp_path, "--device", "cpu", *flags)
    assert code == 2 and says in err


def test_invert(command_line, trained_run, tmp_path):
    flags = ["--model", trained_run, "--data", "digits", "--images", "0", "5", "class:3", "--steps", 4, 40, "--out", tmp_path, "--device", "cpu"]
    code, said, _ = command_line(INVERT, *flags)
    rows = [line.split() for line in said.splitlines() if line.strip()[:1].isdigit()]
    assert code == 0 and [row[0] for row in rows] == ["4", "40"]
    assert float(rows[1][1]) < float(rows[0][1])  # more steps, less lost
    assert (tmp_path / "inversion.png").exists() and (tmp_path / "error.png").exists()


def test_invert_bad_input(command_line, trained_run, tmp_path):
    code, _, err = command_line(INVERT, "--model", trained_run, "--data", "digits", "--steps", 2000, "--out", tmp_path, "--device", "cpu")
    assert code == 2 and "--steps must be at most 1,000, not 2000" in err


def test_the_config_of_a_cell_can_be_read_back(done):
    lab, _, _ = done
    for path in (lab / "cells").glob("*.json"):
        kept = json.loads(path.read_text())
        assert kept["schedule"] == "cosine" and kept["n"] == 40 and kept["frechet"] > 0


def test_what_training_keeps_in_memory(command_line, tmp_path):
    """The bound reuses the answer: it costs a few more tensors of the image's size. To ask twice costs double."""
    flags = ["--size", 8, "--channels", 8, 16, "--batch-size", 4, "--json", tmp_path / "memory.json"]
    code, said, _ = command_line(f"{CHAPTER}/activation_memory.py", *flags)
    kept = json.loads((tmp_path / "memory.json").read_text())
    assert code == 0 and "hybrid" in said
    assert 1 < kept["hybrid"] / kept["plain"] < 1.2 and kept["twice"] / kept["hybrid"] == pytest.approx(2, rel=0.05)
    code, _, _ = command_line(f"{CHAPTER}/activation_memory.py", *flags[:-4], "--batch-size", 8, *flags[-2:])
    assert json.loads((tmp_path / "memory.json").read_text())["plain"] == pytest.approx(2 * kept["plain"], rel=0.02)
