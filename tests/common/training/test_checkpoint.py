"""What is kept of a training: folders that `diffusers` opens, and files that survive a fault while being written."""

import argparse
import json
import os
import pickle
import resource
import shutil
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from safetensors.torch import save_file

from common.diffusion.denoiser import Denoiser
from common.diffusion.samplers import ddpm
from common.diffusion.schedules import make_schedule
from common.errors import LONGEST, UserError, explain
from common.io.files import read_json, write_atomically, write_json
from common.io.state_dict import read_pickle
from common.models.model_folder import Model, load_model, save_model
from common.models.unet import UNet
from common.models.unet_config import UNetConfig
from common.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from helpers.programs import TINY, TRAIN, run_main

CFG = UNetConfig(size=8, channels=(8, 16), attention=(False, True), groups=4)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def make_model(cfg: UNetConfig = CFG, schedule: str = "cosine", prediction: str = "v") -> Model:
    torch.manual_seed(0)
    return Model(UNet(cfg).eval(), make_schedule(schedule), prediction, clip_x0=True)


@pytest.fixture
def folder(tmp_path) -> Path:
    save_model(tmp_path / "model", make_model())
    return tmp_path / "model"


def answer(net: UNet, **condition) -> torch.Tensor:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return net(x, torch.tensor([3, 700]), **condition)


def one_sentence(problem) -> bool:
    return "\n" not in str(problem.value)


# ------------------------------------------------------------------------------------------------------ model folders


def test_there_and_back(folder):
    saved, loaded = make_model(), load_model(folder)
    assert loaded.net.cfg == CFG and not loaded.net.training
    assert (loaded.prediction, loaded.clip_x0) == ("v", True)
    torch.testing.assert_close(loaded.schedule.alpha_bar, saved.schedule.alpha_bar, rtol=0, atol=0)
    assert torch.equal(answer(loaded.net), answer(saved.net))


def test_a_run_folder_is_opened_too(trained_run):
    assert torch.equal(answer(load_model(trained_run).net), answer(load_model(trained_run / "model").net))


def test_the_pipeline_of_diffusers_opens_it(folder):
    pipeline = DDPMPipeline.from_pretrained(folder)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = pipeline.unet(x, torch.tensor([3, 700])).sample
    torch.testing.assert_close(theirs, answer(load_model(folder).net), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("schedule", "prediction"), [("cosine", "v"), ("linear", "eps"), ("sigmoid", "x0")])
def test_the_pipeline_draws_our_pictures(tmp_path, schedule, prediction):
    """The same noise through their pipeline and through our sampler: the whole way agrees, not only the network."""
    save_model(tmp_path, make_model(schedule=schedule, prediction=prediction))
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=2, num_inference_steps=8, generator=torch.Generator().manual_seed(5), output_type="np"
    ).images

    model, g, shape = load_model(tmp_path), torch.Generator().manual_seed(5), (2, 1, 8, 8)
    x = torch.randn(shape, generator=g)
    path = model.schedule.noise_levels(8)
    *_, step = ddpm(
        Denoiser(model.net, model.prediction, model.clip_x0), x, path, lambda k, like: torch.randn(shape, generator=g)
    )
    ours = (step.x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), rtol=0, atol=1e-3)
    assert theirs.std() > 0.05


def test_a_folder_says_only_what_it_can_keep(tmp_path):
    """DDPMPipeline knows no labels, and does not scale its input as EDM needs: such folders do not claim to be one."""
    for name, model in {
        "labels": make_model(UNetConfig(size=8, channels=(8,), attention=(False,), groups=4, classes=10)),
        "edm": make_model(schedule="edm", prediction="edm"),
    }.items():
        save_model(tmp_path / name, model)
        assert not (tmp_path / name / "model_index.json").exists(), name
        assert load_model(tmp_path / name).net.cfg == model.net.cfg
    save_model(tmp_path / "flow", make_model(schedule="flow", prediction="flow"))
    DDPMPipeline.from_pretrained(tmp_path / "flow")


def test_half_precision_on_disk_is_single_precision_in_memory(tmp_path):
    model = make_model()
    save_model(tmp_path / "half", model, torch.float16)
    save_model(tmp_path / "single", model)
    assert (tmp_path / "half" / WEIGHTS).stat().st_size < 0.7 * (tmp_path / "single" / WEIGHTS).stat().st_size
    net = load_model(tmp_path / "half").net
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    torch.testing.assert_close(answer(net), answer(model.net), rtol=0, atol=1e-2)
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "half")  # also there without any further argument
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.float32}


def test_labels_are_kept(tmp_path):
    model = make_model(UNetConfig(size=8, channels=(8,), attention=(False,), groups=4, classes=10))
    save_model(tmp_path, model)
    label = torch.tensor([3, 9])
    assert torch.equal(answer(load_model(tmp_path).net, label=label), answer(model.net, label=label))


# -------------------------------------------------------------------------------------------------- damaged folders


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*nowhere") as problem:
        load_model(tmp_path / "nowhere")
    assert one_sentence(problem)
    with pytest.raises(UserError, match="holds no model") as problem:
        load_model(tmp_path)
    assert one_sentence(problem)


@pytest.mark.parametrize("missing", ["unet/config.json", WEIGHTS, "scheduler/scheduler_config.json"])
def test_missing_files_are_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(UserError, match=f"{Path(missing).name} is missing") as problem:
        load_model(folder)
    assert one_sentence(problem)


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", ["", "{", '{"_class_name": ', "[1, 2]", "\x00\x01"])
def test_damaged_configurations_are_named(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=Path(name).name) as problem:
        load_model(folder)
    assert one_sentence(problem)


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.01, 0.5, 0.99])
def test_truncated_weights(folder, part):
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw[: int(part * len(raw))])
    found = "holds no weights: the file is empty" if part * len(raw) < 1 else "is damaged"
    with pytest.raises(UserError, match=f"diffusion_pytorch_model.safetensors {found}") as problem:
        load_model(folder)
    assert one_sentence(problem)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"<html>404 not found</html>" * 100, "it is a web page; download the file itself"),
        (b"\n<!DOCTYPE html>" * 100, "it is a web page; download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "it is a pointer of Git LFS"),
        (b"PK\x03\x04" + bytes(600), "it is in the format of torch.save, not in that of safetensors"),
    ],
)
def test_weights_that_are_no_weights(folder, content, found):
    """The message says what the file is, where its first bytes tell."""
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=f"safetensors holds no weights: {found}") as problem:
        load_model(folder)
    assert one_sentence(problem)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"block_out_channels": [16, 16]}, r"conv_in.weight is \(8, 1, 3, 3\) there, \(16, 1, 3, 3\) here"),
        (
            {"layers_per_block": 2},
            r"up_blocks.0.resnets.1.norm1.weight is \(24,\) there, \(32,\) here .and 67 more differences",
        ),
        ({"add_attention": False}, "is unknown"),
        ({"num_class_embeds": 10}, "class_embedding.weight is missing"),
    ],
)
def test_weights_of_another_architecture(folder, change, named):
    config = folder / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=f"weights of another architecture: .*{named}") as problem:
        load_model(folder)
    assert one_sentence(problem)


# ----------------------------------------------------------------------------------- files that torch.save has written


def test_settings_beside_the_weights_are_read(tmp_path):
    """Trainings store their Namespace and paths beside the weights: classes that hold values and run no code."""
    for zipped in (True, False):
        whole = {
            "w": torch.arange(3.0),
            "args": argparse.Namespace(lr=1e-5, data=Path("a/b")),
            "more": types.SimpleNamespace(n=1),
        }
        torch.save(whole, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        found = read_pickle(tmp_path / "x.pt")
        assert torch.equal(found["w"], whole["w"]) and found["args"].lr == 1e-5 and found["more"].n == 1
        assert str(found["args"].data) == "a/b"


class Own(torch.nn.Linear):
    pass


@pytest.mark.filterwarnings("error::UserWarning")
def test_what_torch_load_refuses_is_named(tmp_path):
    """In one printable sentence without torch's advice, whose escape sequences colour the terminal."""
    torch.save(Own(1, 1), tmp_path / "model.pt")
    torch.save({"w": torch.zeros(1), "best": np.float64(1)}, tmp_path / "numpy.pt")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1)), str(tmp_path / "script.pt"))
    save_file({"w": torch.zeros(1)}, tmp_path / "safe.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "numpy.pt").read_bytes()[:500])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "folder.pt").mkdir()
    for name, sentence in {
        "model": r"holds an object of [\w.]+\.Own, and only tensors",
        "numpy": "holds an object of numpy._core.multiarray.scalar",
        "script": "is a TorchScript archive",
        "safe": "is in the format of safetensors",
        "cut": r"is damaged \(PytorchStreamReader failed reading zip archive: [a-z ]+\)$",
        "text": "is damaged, or torch.save has not written it",
        "empty": "the file is empty",
        "folder": "is a folder",
        "gone": "there is no checkpoint",
    }.items():
        with pytest.raises(UserError, match=sentence) as problem:
            read_pickle(tmp_path / f"{name}.pt")
        assert one_sentence(problem) and str(problem.value).isprintable()


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (ValueError("\x1b[1mbold\x1b[0m words.\nmore"), "bold words"),
        (ValueError("\n\n  the keys:\n\n  a, b  \nc"), "the keys: a, b"),
        (ValueError("It failed. Try again. (see x)"), "It failed"),
        (ValueError("version 2.12 of x.safetensors, see a.b. then"), "version 2.12 of x.safetensors, see a.b. then"),
        (RuntimeError("50%\r100%\rno"), "50%"),
        (RuntimeError("a\x00b\x7f\u009f\ttab"), "ab tab"),
        (ValueError("番茄\udcff"), "番茄\\udcff"),
        (RuntimeError("x" * 1000), "x" * LONGEST + "..."),
        (KeyError("a"), "KeyError: 'a'"),
        (IndexError("list index out of range"), "IndexError: list index out of range"),
        (EOFError(), "EOFError"),
        (ValueError(" \n "), "ValueError"),
        (FileNotFoundError(2, "No such file or directory", "/a/b"), "No such file or directory"),
        (
            pickle.UnpicklingError(
                "Weights only load failed. Advice. WeightsUnpickler error: \n\nUnsupported operand 60\n\nMore."
            ),
            "Unsupported operand 60",
        ),
        (
            pickle.UnpicklingError("Weights only load failed. Advice.\n\n\nThe module is blocked.\n\nMore."),
            "The module is blocked",
        ),
        (OSError("a message of the hub"), "a message of the hub"),
    ],
)
def test_reasons_of_libraries_are_one_printable_line(problem, reason):
    assert explain(problem) == reason and explain(problem).isprintable()


# -------------------------------------------------------------------------------------------------------- checkpoints


def some_state(step: int) -> dict:
    return {"step": step, "seconds": 1.5, "net": {"w": torch.arange(5000.0) + step}}


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 100, 1000):
        save_checkpoint(tmp_path, some_state(step))
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000100.pt", "step-00001000.pt"]
    assert torch.equal(load_checkpoint(checkpoints(tmp_path)[-1])["net"]["w"], some_state(1000)["net"]["w"])


def test_leftovers_are_not_taken_for_checkpoints(tmp_path):
    save_checkpoint(tmp_path, some_state(5))
    for name in ("step-00000010.pt.partial", "step-x.pt", "step-00000010.txt"):
        (tmp_path / "checkpoints" / name).write_bytes(b"half")
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000005.pt"]
    assert checkpoints(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.7, 0.95, 0.9999])
def test_a_half_written_checkpoint(tmp_path, part):
    """It cannot arise from our own writing; a failing disk or a broken copy makes one all the same."""
    save_checkpoint(tmp_path, some_state(5))
    path = save_checkpoint(tmp_path, some_state(10))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(part * len(raw))])
    with pytest.raises(
        UserError, match=r"step-00000010.pt cannot be read: .*delete it and resume from step-00000005.pt"
    ) as problem:
        load_checkpoint(path)
    assert one_sentence(problem)


def test_a_damaged_checkpoint_without_an_earlier_one(tmp_path):
    path = save_checkpoint(tmp_path, some_state(10))
    path.write_bytes(b"")
    with pytest.raises(UserError, match="there is no earlier one"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_checkpoint_cannot_run_code(tmp_path):
    """Pickles can; ours are read with weights_only, so a planted one is refused."""

    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "planted"),)

    path = tmp_path / "checkpoints/step-00000001.pt"
    path.parent.mkdir()
    for write in (lambda: torch.save(Planted(), path), lambda: path.write_bytes(pickle.dumps(Planted()))):
        write()
        with pytest.raises(
            UserError,
            match="cannot be read: it (holds an object of .*mkdir|is damaged, or torch.save has not written it)",
        ):
            load_checkpoint(path)
        with pytest.raises(UserError, match="cannot be read as a checkpoint of weights"):
            read_pickle(path)
    assert not (tmp_path / "planted").exists()


def test_resuming_with_a_checkpoint_of_another_architecture(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"channels": [16, 16]}))
    with pytest.raises(UserError, match=r"step-00000012.pt holds weights of another architecture") as problem:
        run_main(TRAIN, "--resume", run, "--steps", 20)
    assert one_sentence(problem)


def test_resuming_with_a_damaged_checkpoint(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    newest = checkpoints(run)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read: .*delete it and resume from step-00000010.pt"):
        run_main(TRAIN, "--resume", run)
    newest.unlink()  # the advice works
    run_main(TRAIN, "--resume", run)
    for name in ("model/" + WEIGHTS, "samples.png"):
        assert (run / name).read_bytes() == (trained_run / name).read_bytes()


# ---------------------------------------------------------------------------------------------- faults while writing


@contextmanager
def full_disk(limit: int = 2000):
    """No file may grow beyond `limit` bytes: what a full disk does, on any machine.

    Only within the `with`: pytest itself may be writing to a file that is larger.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_no_earlier_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"before"))
    with (
        full_disk(),
        pytest.raises(UserError, match="cannot write .*file .*the file that is there stays as it was") as problem,
    ):
        write_atomically(path, lambda file: file.write(b"x" * 5000))
    assert one_sentence(problem)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path):
    run = tmp_path / "run"
    save_checkpoint(run, {"step": 5})
    with full_disk(), pytest.raises(UserError, match="step-00000010.pt"):
        save_checkpoint(run, some_state(10))
    assert load_checkpoint(checkpoints(run)[-1]) == {"step": 5}
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000005.pt"]


def test_a_full_disk_loses_no_earlier_model(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = make_model()
    with torch.no_grad():
        other.net.conv_in.weight.add_(1)
    with full_disk(), pytest.raises(UserError, match="diffusion_pytorch_model.safetensors"):
        save_model(folder, other)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_at_the_end(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"before"))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError, match="No space left on device"):
        write_atomically(path, lambda file: file.write(b"after"))
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    """Ctrl-C in the middle of writing."""

    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*Not a directory|cannot write .*File exists"):
        write_json(tmp_path / "file" / "config.json", {})


def test_json_there_and_back(tmp_path):
    write_json(tmp_path / "a/b.json", {"path": Path("x/y"), "text": "葱油生菜"})
    assert read_json(tmp_path / "a/b.json") == {"path": "x/y", "text": "葱油生菜"}


def test_a_training_whose_disk_is_full(tmp_path):
    """The command stops with a sentence; the checkpoints written so far can still be read."""
    run = tmp_path / "run"
    run_main(TRAIN, *TINY, "--steps", 4, "--save-every", 2, "--out", run)
    before = {path: path.read_bytes() for path in checkpoints(run)}
    with full_disk(50_000), pytest.raises(UserError, match="cannot write") as problem:
        run_main(TRAIN, "--resume", run, "--steps", 8)
    assert one_sentence(problem)
    assert {path: path.read_bytes() for path in checkpoints(run)} == before
    assert not list(run.rglob("*.partial"))
