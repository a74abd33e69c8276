"""Opening pipelines, refusing what cannot be used, and schedulers by name, on a tiny random model."""

import shutil

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline

from common.errors import UserError, enough_memory
from common.io import files
from common.io.files import write_json
from common.io.weight_files import chosen_files
from finetune_diffusers import models
from finetune_diffusers.images import generators
from finetune_diffusers.schedulers import SCHEDULERS, make_scheduler
from helpers.finetune_programs import GENERATE, HERE, MNIST, PROMPT, RESTORE, refused, silent
from helpers.programs import ROOT


@pytest.fixture(scope="module")
def pipe(model):
    """Whoever changes its scheduler has a copy."""
    return silent(models.open_pipeline(model))


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("model_index.json", "model_index.json is missing"),
        ("vae", "vae is missing"),
        ("scheduler/scheduler_config.json", "scheduler/config.json"),
        ("unet/config.json", "unet/config.json"),
        ("unet/diffusion_pytorch_model.safetensors", r"unet \(weights\)"),
        ("text_encoder/model.safetensors", r"text_encoder \(weights\)"),
        ("tokenizer/vocab.json", r"tokenizer \(vocabulary\)"),
    ],
)
def test_what_is_missing_is_named(copy, gone, named):
    path = copy / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=named):
        models.find_model(copy)


def test_a_pipeline_is_found_in_a_run_folder(copy, tmp_path):
    copy.rename(tmp_path / "model")
    assert models.find_model(tmp_path) == tmp_path / "model"


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "~/nowhere"])
def test_no_such_folder(name):
    with pytest.raises(UserError, match=r"there is no folder.*--model takes"):
        models.find_model(name)


def test_a_file_is_no_folder():
    with pytest.raises(UserError, match="README.md is a file, and no file of weights by its name"):
        models.find_model(ROOT / "README.md")


def test_names_that_are_none():
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        models.find_model("not a name!")


def test_a_hub_that_does_not_answer_and_a_cache_that_holds_the_model(model, tmp_path, monkeypatch, command_line):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    err = refused(command_line(GENERATE, PROMPT, "--model", "some/model", "--device", "cpu"))
    assert all(words in err for words in ("'some/model'", "127.0.0.1:9 did not answer", "--model", "HF_ENDPOINT"))
    shot = tmp_path / "models--some--model" / "snapshots" / ("0" * 40)
    shutil.copytree(model, shot)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("0" * 40)
    assert models.find_model("some/model") == shot
    (shot / "vae" / "diffusion_pytorch_model.safetensors").unlink()  # an interrupted download
    with pytest.raises(UserError, match="did not answer"):
        models.find_model("some/model")


def test_damaged_weights(copy, command_line):
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not this")
    assert "cannot be opened" in refused(command_line(GENERATE, PROMPT, "--model", copy, "--device", "cpu"))


def test_models_for_other_tasks(inpainter, command_line, tmp_path):
    flags = ["--device", "cpu", "--out", tmp_path]
    assert "inpainting model: its U-Net has 9 input channels" in refused(
        command_line(GENERATE, PROMPT, "--model", inpainter, *flags)
    )
    assert "takes no prompt" in refused(command_line(GENERATE, PROMPT, "--model", MNIST, *flags))
    assert "--method inpaint" in refused(command_line(RESTORE, "--model", inpainter, "--n", 1, *flags))
    with pytest.raises(UserError, match="5 input channels"):
        write_json(inpainter.parent / "five" / "unet" / "config.json", {"in_channels": 5})
        for part in ("vae/config.json", "text_encoder/config.json", "model_index.json"):
            write_json(inpainter.parent / "five" / part, {})
        models.check_task(inpainter.parent / "five", "text")


def test_not_enough_memory():
    with pytest.raises(UserError, match="not enough memory on cpu.*lower --n"), enough_memory("cpu", "--n"):
        torch.empty(2**50, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shape"), enough_memory("cpu", "--n"):
        torch.ones(2).view(3)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    def half(folder):
        (folder / "one").write_text("new")
        raise OSError(28, "No space left on device")

    files.write_folder(tmp_path / "model", lambda folder: (folder / "one").write_text("old"))
    with pytest.raises(UserError, match="No space left.*untouched"):
        files.write_folder(tmp_path / "model", half)
    assert (tmp_path / "model" / "one").read_text() == "old"
    files.write_folder(tmp_path / "model", lambda folder: (folder / "two").write_text("new"))
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["two"] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if not name.endswith("-karras")])
def test_every_scheduler_draws(model, pipe, name):
    other = StableDiffusionPipeline(
        **pipe.components | {"scheduler": make_scheduler(name, dict(pipe.scheduler.config))},
        requires_safety_checker=False,
    )
    with models.count_calls(other.unet) as asked:
        latents = silent(other)(PROMPT, num_inference_steps=4, generator=generators(0, 1), output_type="latent").images
    assert latents.isfinite().all() and latents.std() > 0.1
    assert asked == [{"heun": 7, "pndm": 5}.get(name, 4)]
    assert (
        other.scheduler.config.prediction_type == "v_prediction"
        and other.scheduler.config.timestep_spacing == "trailing"
    )


def test_a_scheduler_leaves_no_trace(pipe):
    """Karras sigmas, once asked for, would stay in the configuration that the next scheduler is made from."""
    trained = dict(pipe.scheduler.config)
    fresh = dict(make_scheduler("dpm++", trained).config)
    for before in ("dpm++-karras", "dpm++-sde", "pndm"):
        after = make_scheduler("dpm++", dict(make_scheduler(before, trained).config))
        assert {key: value for key, value in after.config.items() if not key.startswith("_")} == {
            k: v for k, v in fresh.items() if not k.startswith("_")
        }


def test_a_scheduler_that_cannot_walk_this_schedule(model, tmp_path, command_line):
    err = refused(
        command_line(
            GENERATE,
            PROMPT,
            "--model",
            model,
            "--scheduler",
            "dpm++-karras",
            "--n",
            1,
            "--steps",
            4,
            "--device",
            "cpu",
            "--out",
            tmp_path,
        )
    )
    assert "'dpm++-karras' cannot take so many steps on this model's noise schedule" in err
    err = refused(
        command_line(
            GENERATE,
            PROMPT,
            "--model",
            model,
            "--scheduler",
            "euler-a",
            "--n",
            1,
            "--steps",
            3,
            "--device",
            "cpu",
            "--out",
            tmp_path,
        )
    )
    assert "NaN" in err and not list(tmp_path.iterdir())


def test_the_names_in_the_help():
    text = (ROOT / HERE / "finetune_diffusers" / "flags.py").read_text()
    assert f"was saved with), {', '.join(SCHEDULERS)}." in " ".join(text.split())
    for kind, _ in SCHEDULERS.values():
        assert hasattr(diffusers, kind)


def test_variants(model, tmp_path, command_line):
    """The variant that is asked for is opened, though weights without one are there; an unknown one is refused."""
    both = tmp_path / "both"
    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.save_pretrained(both)
    with torch.no_grad():
        pipe.unet.conv_in.weight.zero_()
    pipe.save_pretrained(both, variant="fp16")
    plain, half = (models.open_pipeline(both, variant=variant) for variant in (None, "fp16"))
    assert plain.unet.conv_in.weight.any() and not half.unet.conv_in.weight.any()
    with pytest.raises(UserError, match=r"no part of .* has weights of the variant 'bf16' \(there are fp16\)"):
        models.open_pipeline(both, variant="bf16")
    with pytest.raises(UserError, match="its weights have no variants"):
        models.find_model(model, variant="fp16")
    names = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"]
    assert chosen_files(names, "fp16") == names[1:] and chosen_files(names) == names[:1] == chosen_files(names, "bf16")


def test_revisions(model, tmp_path, monkeypatch):
    """A branch of a repository in the hub's cache is opened by its name; a local folder has none."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--some--model" / "refs").mkdir(parents=True)
    for name, digit in (("main", "0"), ("v2", "1")):
        shutil.copytree(model, tmp_path / "models--some--model" / "snapshots" / (digit * 40))
        (tmp_path / "models--some--model" / "refs" / name).write_text(digit * 40)
    assert models.find_model("some/model").name == "0" * 40
    assert models.find_model("some/model", revision="v2").name == "1" * 40
    with pytest.raises(UserError, match="--revision v2 names a version of a repository on the hub"):
        models.find_model(model, revision="v2")
