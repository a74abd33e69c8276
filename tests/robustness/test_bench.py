"""The programs in bench/ work: what they set up is run at tiny size, and the commands that they start are parsed as their programs would."""

from pathlib import Path

import pytest
import torch

from bench import busy, harness, quality_at_time, sampler_overhead, sampling_time, step
from common import cli
from helpers.programs import load_program

PRINTS = "64 images with dpmpp_2m:20 in 3.1 s on cpu\n"  # what bench/sampling_time.py reads


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The commands that a bench would start; none is started. Flags that their program does not have stop the test."""
    seen = []

    def command(*words: object) -> harness.Ran:
        program, *flags = map(str, words)
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
        return harness.Ran(1.0, 100.0 + len(seen), PRINTS)

    for module in (step, quality_at_time, sampling_time):
        monkeypatch.setattr(module, "command", command)
    return seen


def test_settings_come_from_the_presets_of_the_program():
    with harness.settings_of("01_ddpm_mnist/train.py", data="mnist", channels=(8, 16)) as settings:
        assert (settings.channels, settings.device, settings.minutes) == ((8, 16), "cpu", 5)
        assert settings.out.is_dir()
    assert not settings.out.exists()


def test_step_compares_equal_networks():
    nets = {name: step.network(name, (8, 16)) for name in ("ours", "diffusers")}
    step.check_equal(nets)
    before = [p.clone() for p in nets["ours"].parameters()]
    step.training_step(nets["ours"], step.Args(batch_size=2, precision="no"))()
    assert any(not torch.equal(old, new) for old, new in zip(before, nets["ours"].parameters(), strict=True))


def test_step_measures_memory_in_processes_of_its_own(commands):
    figures = step.memory(step.Args(channels=(8, 16)))
    assert len(commands) == 9 and "ours / diffusers, without imports" in figures


def test_step_runs_the_training_program(commands, tmp_path):
    assert step.real_run(step.Args(data_dir=tmp_path)) == {"train.py, peak memory in MB": 101.0, "train.py, images/s": 20.0}
    assert commands[0][0] == "01_ddpm_mnist/train.py"


def test_busy_prints_the_seconds_of_a_step(monkeypatch, capsys):
    monkeypatch.setattr(busy, "STEPS", {"mnist": 2})
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    busy.make_steps("mnist")
    assert float(capsys.readouterr().out.split()[-1]) > 0


def test_sampler_overhead_compares_equal_samplers():
    samplers = sampler_overhead.rivals(torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)), sampler_overhead.Args().steps)
    sampler_overhead.check_equal(samplers)
    assert set(harness.turns(samplers, 1)) == set(samplers)


def test_sampling_time_reads_what_the_program_prints(commands, capsys):
    sampling_time.main(sampling_time.Args(rounds=1))
    assert [words[0] for words in commands] == ["01_ddpm_mnist/sample.py", "01_ddpm_mnist/train.py"]
    assert "3.1" in capsys.readouterr().out


def test_sample_prints_what_sampling_time_reads(command_line, trained_run, tmp_path):
    _, out, _ = command_line("01_ddpm_mnist/sample.py", "--model", trained_run, "--n", 1, "--sampler", "ddim:1", "--device", "cpu", "--out", tmp_path / "one.png")
    assert sampling_time.said(out) >= 0


def test_quality_at_time_runs_the_programs_that_a_learner_runs(commands, tmp_path):
    files = quality_at_time.ours(quality_at_time.Args(minutes=(1.0,), n=4, out=tmp_path))
    assert [words[0] for words in commands] == ["01_ddpm_mnist/train.py", "01_ddpm_mnist/sample.py"]
    assert [path.exists() for path in files.values()] == [True]


def test_quality_at_time_builds_its_rival():
    assert quality_at_time.new_theirs(quality_at_time.Args()).image_size in (32, (32, 32))
