"""The programs in bench/: what they set up is run at tiny size,
and the commands that they would run are parsed by their programs.
"""

from pathlib import Path

import pytest
import torch

from bench import harness
from bench.measurements import (
    busy_machine,
    ddim_loops,
    ddp_package,
    quality,
    step_figures,
    training_step,
    waiting_time,
)
from bench.measurements.budgets import Budgets
from bench.measurements.step_config import StepConfig
from common import cli
from helpers.programs import load_program

PRINTS = "64 images with dpmpp_2m:20 in 3.1 s on cpu\n"  # what bench/measurements/waiting_time.py reads


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The commands that a benchmark would run; none is run. A flag that the program does not have fails the test."""
    seen = []

    def run_python(*arguments: object) -> harness.ProgramRun:
        program, *flags = map(str, arguments)
        if program == "-m":
            program, *flags = [flags[0].replace(".", "/") + ".py", *flags[1:]]
        if "--help" not in flags:
            cli.parse(load_program(program).Args, flags)
        seen.append([program, *flags])
        if program.endswith("/train.py") and "--out" in flags:
            folder = Path(flags[flags.index("--out") + 1])
            folder.mkdir(parents=True)
            (folder / "metrics.csv").write_text("step,images_per_second\n1,10\n2,30\n")
        if "--npy" in flags:
            (folder := Path(flags[flags.index("--out") + 1]).parent).mkdir(parents=True, exist_ok=True)
            (folder / "drawn.npy").touch()
        return harness.ProgramRun(1.0, 100.0 + len(seen), PRINTS)

    for module in (step_figures, quality, waiting_time):
        monkeypatch.setattr(module, "run_python", run_python)
    return seen


def test_settings_come_from_the_presets_of_the_program():
    with harness.training_flags(data="mnist", channels=(8, 16)) as flags:
        assert (flags.channels, flags.device, flags.minutes) == ((8, 16), "cpu", 5)
        assert flags.out.is_dir()
    assert not flags.out.exists()


def test_step_compares_equal_networks():
    nets = {name: training_step.network(name, (8, 16)) for name in ("ours", "diffusers")}
    training_step.check_equal(nets)
    before = [p.clone() for p in nets["ours"].parameters()]
    training_step.training_step(nets["ours"], StepConfig(batch_size=2, precision="no"))()
    assert any(not torch.equal(old, new) for old, new in zip(before, nets["ours"].parameters(), strict=True))


def test_step_measures_memory_in_processes_of_its_own(commands):
    figures = step_figures.measure_memory(StepConfig(channels=(8, 16)))
    assert len(commands) == 9 and "ours / diffusers, without imports" in figures


def test_step_runs_the_training_program(commands, tmp_path):
    assert step_figures.measure_train_program(StepConfig(), tmp_path, seconds=30) == {
        "train.py, peak memory in MB": 101.0,
        "train.py, images/s": 20.0,
    }
    assert commands[0][0] == "01_ddpm_mnist/train.py"


def test_busy_prints_the_seconds_of_a_step(monkeypatch, capsys):
    monkeypatch.setattr(busy_machine, "STEPS", {"mnist": 2})
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    busy_machine.print_seconds_of_steps("mnist")
    assert float(capsys.readouterr().out.split()[-1]) > 0


def test_sampler_overhead_compares_equal_samplers():
    loops = ddim_loops.implementations(torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)), steps=50)
    ddim_loops.check_equal(loops)
    assert set(harness.interleaved_medians(loops, 1)) == set(loops)


def test_sampling_time_reads_what_the_program_prints(commands, capsys):
    waiting_time.measure_waiting(None, n=64, rounds=1, json=None)
    assert [command[0] for command in commands] == ["01_ddpm_mnist/sample.py", "01_ddpm_mnist/train.py"]
    assert "3.1" in capsys.readouterr().out


def test_sample_prints_what_sampling_time_reads(command_line, trained_run, tmp_path):
    _, out, _ = command_line(
        "01_ddpm_mnist/sample.py",
        "--model",
        trained_run,
        "--n",
        1,
        "--sampler",
        "ddim:1",
        "--device",
        "cpu",
        "--out",
        tmp_path / "one.png",
    )
    assert waiting_time.seconds_in(out) >= 0


def test_quality_at_time_runs_the_programs_that_a_learner_runs(commands, tmp_path):
    budgets = Budgets(tmp_path, "mnist", Path("data"), minutes=(1.0,), n=4, precision="auto", seed=0)
    files = quality.samples_of_course(budgets)
    assert [command[0] for command in commands] == ["01_ddpm_mnist/train.py", "01_ddpm_mnist/sample.py"]
    assert [path.exists() for path in files.values()] == [True]


def test_quality_at_time_builds_the_network_of_the_package():
    assert ddp_package.new_diffusion(sampling_steps=50).image_size in (32, (32, 32))
