"""Chapter 5's use of models: any pipeline, restoring pictures, prompt weights, two trainings of others; on a tiny random model."""

import csv
import json
import math
import re
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from compel import Compel
from diffusers import DDPMPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from common.data import load
from common.data.creatures.attributes import NAMES
from common.data.creatures.dataset import caption, mentioned
from common.errors import UserError, enough_memory
from common.evaluate.creature_classifier import load_creature_classifier
from common.io import files
from common.io.files import read_json, write_json
from common.io.pixels import to_float
from common.models.model_folder import load_model
from finetune_diffusers import models, prompt_weights, restoration
from finetune_diffusers.data import degradations
from finetune_diffusers.data.augmentation import Augmented
from finetune_diffusers.data.degradations import Degradation
from finetune_diffusers.evaluation import metrics, strength
from finetune_diffusers.generation import open_start
from finetune_diffusers.images import contact_sheet, generators, to_pil, to_tensor
from finetune_diffusers.restoration import DamagedImages, RepairSettings
from finetune_diffusers.schedulers import SCHEDULERS, make_scheduler, use_scheduler
from finetune_diffusers.training.unconditional_trainer import UnconditionalTrainer, new_scheduler, new_unet
from helpers.programs import ROOT, load_program, run_main, run_program
from helpers.tiny_pipeline import write_tiny_pipeline

HERE = "05_finetune_diffusers"
USE, RESTORE, STRENGTH, WEIGHTS, TRAIN, PACKAGE, COSTS = (
    f"{HERE}/{name}.py" for name in ("generate", "restore", "studies/strength", "studies/prompt_weighting", "train_unconditional", "ddpm_package", "studies/memory")
)
PROMPT = "a red creature with wings"
MNIST = ROOT / "01_ddpm_mnist" / "pretrained"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Read only."""
    return write_tiny_pipeline(tmp_path_factory.mktemp("use") / "model")


@pytest.fixture(scope="module")
def pipe(model):
    """Whoever changes its scheduler has a copy."""
    return silent(models.open_pipeline(model))


@pytest.fixture
def copy(model, tmp_path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture(scope="module")
def inpainter(model, tmp_path_factory) -> Path:
    """The same model with an inpainting U-Net: nine channels in."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("nine") / "inpainter"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["conv_in.weight"] = torch.cat([state["conv_in.weight"], 0.1 * torch.randn(16, 5, 3, 3)], 1)
    save_file(state, weights, metadata={"format": "pt"})
    write_json(folder / "unet" / "config.json", read_json(folder / "unet" / "config.json") | {"in_channels": 9})
    write_json(folder / "model_index.json", read_json(folder / "model_index.json") | {"_class_name": "StableDiffusionInpaintPipeline"})
    return folder


def silent(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pixels(path: Path) -> torch.Tensor:
    return to_tensor(Image.open(path))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def refused(result: tuple[int, str, str]) -> str:
    code, _, err = result
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err, result
    return err


# ------------------------------------------------------------------------------------------------------- opening a model


@pytest.mark.parametrize(("gone", "named"), [
    ("model_index.json", "model_index.json is missing"), ("vae", "vae is missing"), ("scheduler/scheduler_config.json", "scheduler/config.json"),
    ("unet/config.json", "unet/config.json"), ("unet/diffusion_pytorch_model.safetensors", r"unet \(weights\)"),
    ("text_encoder/model.safetensors", r"text_encoder \(weights\)"), ("tokenizer/vocab.json", r"tokenizer \(vocabulary\)")])  # fmt: skip
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
    err = refused(command_line(USE, PROMPT, "--model", "some/model", "--device", "cpu"))
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
    assert "cannot be opened" in refused(command_line(USE, PROMPT, "--model", copy, "--device", "cpu"))


def test_models_for_other_tasks(inpainter, command_line, tmp_path):
    flags = ["--device", "cpu", "--out", tmp_path]
    assert "inpainting model: its U-Net has 9 input channels" in refused(command_line(USE, PROMPT, "--model", inpainter, *flags))
    assert "takes no prompt" in refused(command_line(USE, PROMPT, "--model", MNIST, *flags))
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


# ------------------------------------------------------------------------------------------------------------ schedulers


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "dpm++-karras"])
def test_every_scheduler_draws(model, pipe, name):
    other = StableDiffusionPipeline(**pipe.components | {"scheduler": make_scheduler(name, dict(pipe.scheduler.config))}, requires_safety_checker=False)
    with models.count_calls(other.unet) as asked:
        latents = silent(other)(PROMPT, num_inference_steps=4, generator=generators(0, 1), output_type="latent").images
    assert latents.isfinite().all() and latents.std() > 0.1
    assert asked == [{"heun": 7, "pndm": 5}.get(name, 4)]
    assert other.scheduler.config.prediction_type == "v_prediction" and other.scheduler.config.timestep_spacing == "trailing"


def test_a_scheduler_leaves_no_trace(pipe):
    """Karras sigmas, once asked for, would stay in the configuration that the next scheduler is made from."""
    trained = dict(pipe.scheduler.config)
    fresh = dict(make_scheduler("dpm++", trained).config)
    for before in ("dpm++-karras", "dpm++-sde", "pndm"):
        after = make_scheduler("dpm++", dict(make_scheduler(before, trained).config))
        assert {key: value for key, value in after.config.items() if not key.startswith("_")} == {k: v for k, v in fresh.items() if not k.startswith("_")}


def test_a_scheduler_that_cannot_walk_this_schedule(model, tmp_path, command_line):
    err = refused(command_line(USE, PROMPT, "--model", model, "--scheduler", "dpm++-karras", "--n", 1, "--steps", 4, "--device", "cpu", "--out", tmp_path))
    assert "'dpm++-karras' cannot take so many steps on this model's noise schedule" in err
    err = refused(command_line(USE, PROMPT, "--model", model, "--scheduler", "euler-a", "--n", 1, "--steps", 3, "--device", "cpu", "--out", tmp_path))
    assert "NaN" in err and not list(tmp_path.iterdir())


def test_the_names_in_the_help():
    text = (ROOT / USE).read_text()
    assert f'"""{", ".join(SCHEDULERS)}."""' in text
    for kind, _ in SCHEDULERS.values():
        assert hasattr(diffusers, kind)


# --------------------------------------------------------------------------------------------------------------- use.py


def test_a_picture_is_that_of_plain_diffusers_and_of_its_own_seed(model, pipe, tmp_path, command_line):
    flags = ["--model", model, "--steps", 3, "--scheduler", "ddim", "--guidance", 4, "--negative", "a tail", "--device", "cpu"]
    code, out, _ = command_line(USE, PROMPT, *flags, "--n", 2, "--seed", 6, "--out", tmp_path / "two")
    assert code == 0 and "ddim" in out
    run_main(USE, PROMPT, *flags, "--n", 1, "--seed", 7, "--out", tmp_path / "one")
    # but for rounding: a batch of two is multiplied in another order than one alone
    assert (pixels(tmp_path / "two" / "seed-7.png") - pixels(tmp_path / "one" / "seed-7.png")).abs().max() <= 2 / 127.5
    plain = StableDiffusionPipeline(**pipe.components | {"scheduler": diffusers.DDIMScheduler.from_config(pipe.scheduler.config)}, requires_safety_checker=False)
    image = silent(plain)(PROMPT, negative_prompt="a tail", num_inference_steps=3, guidance_scale=4, generator=torch.Generator().manual_seed(7)).images[0]
    assert (pixels(tmp_path / "one" / "seed-7.png") - to_tensor(image)).abs().max() <= 2 / 127.5
    assert (pixels(tmp_path / "two" / "seed-6.png") - pixels(tmp_path / "two" / "seed-7.png")).abs().mean() > 0.05


def test_compare_and_size(model, tmp_path, command_line):
    code, out, err = command_line(USE, PROMPT, "红 zebra", "--model", model, "--compare", "ddim,heun", "--steps", 2, "--n", 2, "--size", "48x32",
                                  "--low-memory", "--device", "cpu", "--out", tmp_path)  # fmt: skip
    assert code == 0 and "unknown words: zebra" in err
    asked = [line.split()[:3] for line in out.splitlines()[1:5]]
    assert asked == [["ddim", "2", "2"]] * 2 + [["heun", "2", "3"]] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"sheet.png"} | {
        f"{s}-prompt-{k}-seed-{i}.png" for s in ("ddim", "heun") for k in (1, 2) for i in (0, 1)}  # fmt: skip
    assert Image.open(tmp_path / "ddim-prompt-1-seed-0.png").size == (48, 32)


def test_from_a_picture(model, pipe, tmp_path):
    """What plain diffusers makes of it, with the same strength and seed, and the steps that go with them."""
    picture = to_pil(to_float(load("creatures", 64, n=1).pixels[0]))
    picture.resize((70, 66)).save(tmp_path / "creature.png")  # cut to the nearest multiples of 8
    run_main(USE, PROMPT, "--model", model, "--image", tmp_path / "creature.png", "--strength", 0.5, "--steps", 4, "--scheduler", "ddim", "--n", 1, "--seed", 3,
             "--device", "cpu", "--out", tmp_path)  # fmt: skip
    ours = Image.open(tmp_path / "seed-3.png")
    plain = StableDiffusionImg2ImgPipeline(**pipe.components | {"scheduler": make_scheduler("ddim", dict(pipe.scheduler.config))}, requires_safety_checker=False)
    start = open_start(tmp_path / "creature.png", None)
    with models.count_calls(plain.unet) as asked:
        theirs = silent(plain)(PROMPT, image=start, strength=0.5, num_inference_steps=4, guidance_scale=3, generator=torch.Generator().manual_seed(3)).images[0]
    assert start.size == ours.size == theirs.size == (72, 64) and asked == [2]
    assert (to_tensor(ours) - to_tensor(theirs)).abs().max() <= 2 / 127.5


def test_a_contact_sheet():
    images = torch.linspace(-1, 1, 6).view(2, 3, 1, 1, 1).expand(2, 3, 3, 8, 8)
    bare = contact_sheet(images, ["", ""], ["", "", ""], height=16, gap=2)
    assert bare.size == (2 + 3 * 18, 2 + 2 * 18)
    assert bare.getpixel((2 + 18 + 8, 2 + 18 + 8)) == tuple([round((float(images[1, 1, 0, 0, 0]) + 1) * 127.5)] * 3)
    named = contact_sheet(images, ["first", "second"], ["a", "b", "a label of several words"], height=16, gap=2)
    assert named.width > bare.width + 20 and named.height > bare.height + 50  # the last label takes several lines
    corner = (named.width - bare.width + 2, named.height - bare.height + 2, named.width, named.height)
    assert named.crop(corner).tobytes() == bare.crop((2, 2, *bare.size)).tobytes()


@pytest.mark.parametrize(("flags", "says"), [
    (["--scheduler", "magic"], "ddpm, ddim, pndm, euler, euler-a, heun, dpm++"), (["--compare", "ddim,"], "unknown scheduler ''"), (["--n", 0], "--n"),
    (["--steps", 0], "--steps"), (["--guidance", 0.5], "--guidance"), (["--strength", 0], "--strength"), (["--size", "60"], "multiples of 8"), (["--size", "8x100000"], "--size must be at most 4,096 pixels, not 8x100000"),
    (["--size", "axb"], "cannot read --size"), (["--seed", -1], "--seed"), (["--image", "nowhere.png"], "there is no file"),
    (["--image", "README.md"], "cannot be read as a picture"), (["--image", "a.png", "--strength", 0.1, "--steps", 5], "less than one step"),
    (["--device", "cuda:7"], "the device 'cuda:7' cannot be used")])  # fmt: skip
def test_what_use_refuses(flags, says, model, tmp_path, command_line):
    assert says in refused(command_line(USE, PROMPT, "--model", model, *flags, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------ damage and repair


def test_damages():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 20, 28) * 2 - 1
    mask = Degradation("mosaic", fraction=0.5).mask(2, 20, 28)
    assert mask.mean() == pytest.approx(0.25) and mask[0, 0, 5:15, 7:21].all()
    tiles = degradations.mosaic(images, 8)
    assert tiles[:, :, 8:16, 8:16].flatten(2).std(2).max() < 1e-6
    torch.testing.assert_close(tiles[:, :, 9, 9], images[:, :, 8:16, 8:16].mean((2, 3)))
    torch.testing.assert_close(tiles[:, :, 17, 25], images[:, :, 16:, 24:].mean((2, 3)))  # the smaller blocks of the edge
    for kind in ("mosaic", "noise", "scratch"):
        degradation = Degradation(kind, fraction=0.5, noise=0.3, scratches=3)
        mask = degradation.mask(2, 20, 28)
        worse = degradation.corrupt(images, mask)
        assert torch.equal(worse[(mask == 0).expand_as(worse)], images[(mask == 0).expand_as(worse)])
        assert (worse - images).abs().mean() > 0.01
    assert not torch.equal(mask[0], mask[1]) and 0 < mask.mean() < 0.5
    flat = torch.zeros(1, 3, 64, 64)
    assert Degradation("noise", noise=0.3).corrupt(flat, torch.ones(1, 1, 64, 64)).std() == pytest.approx(0.3, rel=0.05)


def test_classical_repairs():
    slope = torch.linspace(-0.8, 0.8, 32).expand(1, 3, 32, 32)
    for kind in ("mosaic", "scratch"):
        degradation = Degradation(kind, fraction=1.0, scratches=4)
        mask = degradation.mask(1, 32, 32)
        worse = degradation.corrupt(slope, mask)
        better = degradation.classical_repair(worse, mask)
        assert (better - slope).square().mean() < 0.2 * (worse - slope).square().mean()
        assert torch.equal(better[(mask == 0).expand_as(better)], slope[(mask == 0).expand_as(better)])
    degradation, everywhere = Degradation("noise", noise=0.3), torch.ones(1, 1, 32, 32)
    noisy = degradation.corrupt(slope, everywhere)
    assert (degradation.classical_repair(noisy, everywhere) - slope).square().mean() < 0.4 * (noisy - slope).square().mean()


def test_a_thin_scratch_reaches_the_latents():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 3, :] = mask[..., :, 62] = 1
    grown = degradations.grow_to_blocks(mask, 4)
    small = torch.nn.functional.interpolate(grown, (16, 16))  # as diffusers does
    assert small[0, 0, 0].all() and small[0, 0, :, 15].all() and small.sum() == 31
    assert torch.nn.functional.interpolate(mask, (16, 16)).sum() < 31  # the bare mask would have missed them
    assert ((grown - mask) >= 0).all()


def work(n: int = 2, kind: str = "mosaic"):
    truth = to_float(load("creatures", 64, split="test", n=n).pixels)
    degradation = Degradation(kind, fraction=0.5, scratches=4)
    mask = degradation.mask(n, 64, 64)
    return DamagedImages(degradation.corrupt(truth, mask), mask, [PROMPT] * n, truth)


@pytest.mark.parametrize("method", ["img2img", "inpaint"])
def test_known_pixels_are_exactly_what_they_were(model, method):
    pipe, jobs = silent(models.open_pipeline(model, "inpaint")), work(2, "scratch")
    use_scheduler(pipe, "ddim")
    done = restoration.repair(pipe, jobs, RepairSettings(method, 0.5, 2.0, 4), "ddim", seed=3)
    known = (jobs.mask == 0).expand_as(done)
    assert torch.equal(done[known], jobs.damaged[known])
    assert (done - jobs.damaged)[~known].abs().mean() > 0.1
    one = restoration.repair(pipe, DamagedImages(*(part[1:] for part in jobs)), RepairSettings(method, 0.5, 2.0, 4), "ddim", seed=4)
    torch.testing.assert_close(one[0], done[1], atol=2e-4, rtol=0)  # each has a seed of its own


def test_inpainting_looks_at_the_rest_of_the_picture(model):
    """Under the mask it draws something else where the surroundings differ; and outside it would have changed nothing by itself."""
    pipe, jobs = silent(models.open_pipeline(model, "inpaint")), work(1)
    how = RepairSettings("inpaint", 1.0, 1.0, 4)
    other = jobs._replace(damaged=torch.where(jobs.mask > 0, jobs.damaged, -jobs.damaged))
    a, b = (restoration.repair(pipe, each, how, "ddim", seed=0) for each in (jobs, other))
    inside = (jobs.mask > 0).expand_as(a)
    assert (a - b)[inside].abs().mean() > 0.01


def test_chaining_in_latent_space(model):
    """The second pipeline takes the first one's latents as they are: nothing is decoded or encoded in between."""
    pipe, jobs = silent(models.open_pipeline(model, "inpaint")), work(1)
    jobs = jobs._replace(mask=torch.ones_like(jobs.mask))
    use_scheduler(pipe, "ddim")
    how = RepairSettings("img2img", 0.5, 2.0, 4)
    latents = restoration.repair_to_latents(pipe, jobs, how, seed=0)
    assert latents.shape == (1, 4, 16, 16)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(decoded, restoration.repair(pipe, jobs, how, "ddim", seed=0), atol=1e-4, rtol=0)
    chained = restoration.repair(pipe, jobs, how, "ddim", seed=1, start=latents)
    plain = silent(StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False))
    theirs = plain(PROMPT, image=latents, strength=0.5, guidance_scale=2.0, num_inference_steps=4, generator=torch.Generator().manual_seed(1), output_type="pt").images
    torch.testing.assert_close(chained, 2 * theirs - 1, atol=1e-4, rtol=0)
    assert metrics.rms_distance(chained, restoration.repair(pipe, jobs, how, "ddim", seed=1, start=decoded)) > 0.02


def test_restore_from_the_command_line(model, tmp_path, command_line):
    code, out, _ = command_line(RESTORE, "--model", model, "--n", 2, "--strength", 0.5, 1, "--guidance", 1, 2, "--steps", 2, "--device", "cpu", "--out", tmp_path)
    assert code == 0 and "img2img, 2 steps: PSNR" in out and "inpaint, 2 steps: SSIM" in out and "PSNR against the old way" in out and "two, by latents" in out
    rows = table(tmp_path / "study.csv")
    assert [row["method"] for row in rows] == ["damaged", "the old way", "through the autoencoder"] + ["img2img"] * 4 + ["inpaint"] * 4
    jobs = work(2)
    damaged = Degradation().corrupt(jobs.truth, Degradation().mask(2, 64, 64))
    error = 10 * torch.log10(4 / (damaged - jobs.truth).square().flatten(1).mean(1))
    assert float(rows[0]["psnr"]) == pytest.approx(float(error.mean()), abs=1e-3)
    assert float(rows[0]["psnr_error"]) == pytest.approx(float(error.std() / math.sqrt(2)), abs=1e-3)
    assert float(rows[0]["moved"]) == 0 and all(float(row["moved"]) > 0 for row in rows[1:])
    assert (tmp_path / "study.png").exists() and (tmp_path / "grid.png").exists()


def test_own_pictures_and_an_inpainting_model(inpainter, tmp_path, command_line):
    to_pil(work(1).damaged[0]).resize((80, 72)).save(tmp_path / "photo.png")
    hole = np.zeros((72, 80), np.uint8)
    hole[20:40, 30:60] = 255
    Image.fromarray(np.stack([hole] * 4, 2)).save(tmp_path / "mask.png")  # white strokes on a clear layer
    flags = ["--image", tmp_path / "photo.png", "--mask", tmp_path / "mask.png", "--prompt", PROMPT, "--n", 1, "--strength", 1, "--guidance", 2, "--steps", 2,
             "--model", inpainter, "--method", "inpaint", "--size", "48x40", "--device", "cpu"]  # fmt: skip
    code, out, _ = command_line(RESTORE, *flags, "--damaged", "--out", tmp_path / "out")
    assert code == 0 and "PSNR" not in out and "moved" in out
    assert "mask.png: 10.4% of the picture is to be repainted (what is painted on the transparent layer)" in out
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "mask.png")), hole)
    assert list(table(tmp_path / "out" / "study.csv")[0]) == ["method", "strength", "guidance", "steps", "moved", "moved_error"]


def test_the_mask_must_have_the_size_of_the_picture(model, tmp_path, command_line):
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    for size, colour, says in (((64, 60), 255, "is 64x60 pixels and the picture"), ((64, 64), 0, "nowhere lighter than grey 0")):
        Image.new("L", size, colour).save(tmp_path / "mask.png")
        err = refused(command_line(RESTORE, "--image", tmp_path / "photo.png", "--mask", tmp_path / "mask.png", "--model", "./never-opened", "--device", "cpu"))
        assert says in err


@pytest.mark.parametrize(("flags", "says"), [
    (["--strength", 0.5, 1.2], "--strength"), (["--guidance", 0], "--guidance"), (["--steps", 2, "--strength", 0.3], "less than one step"),
    (["--mask", "mask.png"], "name it with --image"), (["--image", "a.png", "--damaged"], "give --mask"), (["--image", "nowhere.png"], "there is no file"),
    (["--scheduler", "magic"], "unknown scheduler"), (["--mosaic-fraction", 0], "--mosaic-fraction"), (["--block", 0], "--block"), (["--n", 0], "--n")])  # fmt: skip
def test_what_restore_refuses(flags, says, model, tmp_path, command_line):
    assert says in refused(command_line(RESTORE, "--model", model, *flags, "--device", "cpu", "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------- measuring


def test_similarity():
    truth = to_float(load("creatures", 32, n=3).pixels) * 0.8
    same, lighter = metrics.similarity(truth, truth), metrics.similarity(truth + 0.2, truth)
    assert same["ssim"].min() > 0.9999 and same["perceptual"].max() < 1e-9 and same["psnr"].min() > 80
    torch.testing.assert_close(lighter["psnr"], torch.full((3,), 20.0), atol=1e-3, rtol=0)  # 20 log10(2 / 0.2)
    blurred = torch.nn.functional.avg_pool2d(truth, 5, 1, 2)
    assert (metrics.similarity(blurred, truth)["perceptual"] > lighter["perceptual"]).all()
    assert metrics.rms_distance(truth + 0.2, truth).tolist() == pytest.approx([0.2] * 3)


def test_mean_and_error():
    values = torch.tensor([1.0, 2.0, 6.0, float("nan")])
    mean, error = metrics.mean_and_error(values)
    assert (mean, error) == pytest.approx((3.0, math.sqrt(7 / 3)))
    assert metrics.format_mean(values) == "3.00 ± 1.53" and metrics.format_mean(values[:1]) == "1.00"


def test_tone():
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert {name: round(float(value), 4) for name, value in metrics.tone(red).items()} == {"brightness": 0.3333, "saturation": 1.0, "clipped": 1.0, "detail": 0.0}
    grey = metrics.tone(torch.zeros(1, 3, 8, 8) + 0.1 * (torch.arange(8) % 2))
    assert grey["clipped"] == 0 and grey["saturation"] == 0 and grey["detail"] > 0.01


# -------------------------------------------------------------------------------------------------------------- claim 13


def test_what_is_asked_of_the_pictures():
    """Where the pictures are those of the prompts, all is followed and nothing kept; where they are unchanged, the other way round."""
    pairs, classifier = strength.make_pairs(12, "test", 64), load_creature_classifier()
    assert pairs.asked.any(1).all() and not (pairs.asked & (pairs.had == pairs.wanted)).any()
    for i, prompt in enumerate(pairs.prompts):
        other = (i + 1) % 12
        assert prompt == caption(0, "test", other, "en")
        assert {name for name, asked in zip(NAMES, pairs.asked[i].tolist(), strict=True) if asked} <= set(mentioned(0, "test", other))
    unchanged = strength.measure(classifier, pairs.images, pairs)
    replaced = strength.measure(classifier, pairs.images.roll(-1, 0), pairs)
    assert unchanged["kept"].mean() > 0.97 and unchanged["followed"].mean() < 0.03 and unchanged["moved"].max() == 0
    assert replaced["followed"].mean() > 0.97 and replaced["kept"].mean() < 0.03 and replaced["moved"].min() > 0.1


def test_strength_from_the_command_line(model, tmp_path, command_line):
    code, out, _ = command_line(STRENGTH, "--model", model, "--n", 3, "--strength", 0.5, 1, "--at-guidance", 2, "--guidance", 1, 2, "--steps", 2, "--device", "cpu",
                                "--out", tmp_path)  # fmt: skip
    assert code == 0 and "over 3 pictures" in out
    rows = table(tmp_path / "strength.csv")
    assert [(row["strength"], row["guidance"]) for row in rows] == [("0.5", "2.0"), ("1.0", "2.0"), ("1.0", "1.0"), ("real creatures", "")]
    assert {path.name for path in tmp_path.iterdir()} == {"strength.csv", "strength.png", "guidance.png", "strengths.png", "scales.png"}
    assert "at least 2" in refused(command_line(STRENGTH, "--n", 1))
    assert "--at-guidance" in refused(command_line(STRENGTH, "--at-guidance", 0))


# -------------------------------------------------------------------------------------------------------- prompt weights

WEIGHTED = ["a red creature", "", "a red++ creature with (wings)1.5", "a (red)0.5 creature with (wings)0.2", "(a blue)0 creature", "a red- creature with horns--",
            "一只 (红色)1.5 的小怪兽", "一只(红色)0.3的小怪兽，长着(翅膀)2", "a one-eyed creature with (long tail)++ , wings", "red++ " * 70, "it's (red)1.2"]  # fmt: skip


@pytest.mark.parametrize("prompt", WEIGHTED)
def test_weights_by_hand_are_those_of_compel(pipe, prompt):
    theirs, ours = prompt_weights.embed_by_compel(pipe, prompt).tokens, prompt_weights.weigh(pipe.tokenizer, pipe.text_encoder, prompt_weights.read_weights(prompt))
    assert ours.shape == (1, 64, 32) and (ours - theirs).abs().max() <= 1e-6
    plain = prompt_weights.weigh(pipe.tokenizer, pipe.text_encoder, [(" ".join(text for text, _ in prompt_weights.read_weights(prompt)), 1.0)])
    assert ((ours - plain).abs().max() > 0.01) == any(w != 1 for _, w in prompt_weights.read_weights(prompt))


@pytest.mark.parametrize("prompt", [prompt for prompt in WEIGHTED if prompt.isascii() and len(prompt) < 100])
def test_weights_are_read_as_compel_reads_them(prompt):
    theirs = [(part.text, part.weight) for part in Compel.parse_prompt_string(prompt).prompts[0].children]
    assert prompt_weights.read_weights(prompt) == [(text, pytest.approx(w)) for text, w in theirs]


def test_without_weights_it_is_the_text_encoder(pipe):
    ids = pipe.tokenizer([PROMPT], padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        plain = pipe.text_encoder(ids).last_hidden_state
    torch.testing.assert_close(prompt_weights.weigh(pipe.tokenizer, pipe.text_encoder, [(PROMPT, 1.0)]), plain, atol=1e-5, rtol=0)


def test_a_word_of_weight_zero_is_as_good_as_not_there(pipe):
    """No other word may have looked at it: whatever it was, the others come out the same."""
    red, blue = (prompt_weights.weigh(pipe.tokenizer, pipe.text_encoder, [("a", 1), (word, 0.0), ("creature", 1)]) for word in ("red", "blue"))
    torch.testing.assert_close(red, blue, atol=1e-4, rtol=0)
    half = prompt_weights.weigh(pipe.tokenizer, pipe.text_encoder, [("a", 1), ("red", 0.5), ("creature", 1)])
    assert (half - red).abs().max() > 0.1


def test_weights_from_the_command_line(model, tmp_path, command_line):
    flags = ["--model", model, "--n", 1, "--steps", 2, "--device", "cpu", "--out", tmp_path]
    code, out, _ = command_line(WEIGHTS, "a red++ creature with (wings)1.5", *flags)
    largest = float(re.search(r"ours: (\S+)", out)[1])
    moved = {line.rsplit(" differs", 1)[0].strip(): float(line.split("by ")[-1].split()[0]) for line in out.splitlines() if "differs from the first" in line}
    assert code == 0 and largest <= 1e-6
    assert moved["no weights"] == 0 and moved["Compel"] == moved["by hand"] > 0.001
    code, out, _ = command_line(WEIGHTS, PROMPT, "--word", "wings", "--sweep", 1, 2, *flags)
    assert code == 0 and "(wings)1 " in out and "(wings)2 " in out


@pytest.mark.parametrize(("flags", "says"), [
    (["a ((red)1.2 creature)1.5"], "one pair of brackets"), (["a (red creature"], "cannot read the weights"), (["a red+ one", "--word", "red"], "without weights"),
    ([PROMPT, "--word", "horns"], "must occur exactly once in the prompt"), ([PROMPT, "--word", "wings", "--sweep", -1], "--sweep"), ([PROMPT, "--guidance", 0], "--guidance")])  # fmt: skip
def test_what_weights_refuses(flags, says, model, tmp_path, command_line):
    assert says in refused(command_line(WEIGHTS, *flags, "--model", model, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- train_unconditional.py

FEW = ["--n", 20, "--size", 16, "--channels", 8, 16, "--batch-size", 8, "--sample-steps", 2, "--sample-every", 100, "--device", "cpu", "--precision", "no"]
UNET = "model/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Five steps in epochs of two: saved in the middle of one. Read only."""
    folder = tmp_path_factory.mktemp("unconditional") / "run"
    run_main(TRAIN, *FEW, "--augment", "flip", "crop", "jitter", "--steps", 5, "--save-every", 3, "--out", folder)
    return folder


def losses(run: Path) -> list[str]:
    return [row["loss"] for row in table(run / "metrics.csv")]


def test_the_result_opens_in_diffusers_and_in_the_course(trained):
    pipe = DDPMPipeline.from_pretrained(trained / "model")
    assert pipe.unet.config.sample_size == 16 and pipe.scheduler.config.prediction_type == "v_prediction"
    ours = load_model(trained)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([400])
    with torch.no_grad():
        torch.testing.assert_close(ours.net(x, t), pipe.unet.eval()(x, t).sample, atol=1e-5, rtol=0)
    assert (trained / "samples.png").exists() and len(set(losses(trained))) == 5
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["step-00000003", "step-00000005"]
    raw = load_file(trained / "checkpoints" / "step-00000005" / "model.safetensors")
    assert any(not torch.equal(raw[name], value) for name, value in load_file(trained / UNET).items())  # what is saved is the average


def counted(run: Path) -> dict[str, int]:
    """What a run says that it cost, where all weights are trained: four bytes for each number, and Adam keeps two for each weight."""
    cost = read_json(run / "results.json")["cost"]
    n = cost["trained"]
    assert n == cost["weights"] and cost["weight_bytes"] == cost["gradient_bytes"] == cost["average_bytes"] == 4 * n
    assert 8 * n <= cost["optimizer_bytes"] < 8 * n + 10_000 and cost["peak"] >= cost["before"] > 10_000_000
    return cost


def test_costs_side_by_side(trained, tmp_path, command_line):
    cost, run = counted(trained), Path(shutil.copytree(trained, tmp_path / "other"))
    assert cost["trained"] == sum(w.numel() for w in load_file(trained / UNET).values())
    code, out, _ = command_line(COSTS, trained, run)
    head, line, first, second = ([cell.strip() for cell in row.strip("|").split("|")] for row in out.splitlines())
    assert code == 0 and len(head) == len(line) == len(first) == len(second) == 7 and second == ["other", *first[1:]]
    n, kept = cost["trained"], 12 * cost["trained"] + cost["optimizer_bytes"]
    assert first[1] == f"{n:,} of {n:,}" and first[2] == f"{kept / 1e3:.1f} kB" and first[5] == "5" and first[6].endswith("B")
    assert "results.json, which a training" in refused(command_line(COSTS, tmp_path))
    (run / "results.json").write_text('{"cost": {"magic": 1}}')
    assert "does not say what the run cost" in refused(command_line(COSTS, run))


def test_a_resumed_run_is_bit_equal(trained, tmp_path, command_line):
    """It was killed after step 3, in the middle of its second epoch."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "step-00000005")
    (run / UNET).unlink()
    run_main(TRAIN, "--resume", run)
    assert losses(run) == losses(trained)
    a, b = load_file(run / UNET), load_file(trained / UNET)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert "all 5 steps are done" in command_line(TRAIN, "--resume", run)[1]


def test_a_damaged_checkpoint(trained, tmp_path, command_line):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "checkpoints" / "step-00000005" / "model.safetensors").write_bytes(b"half")
    assert "delete it and resume from step-00000003" in refused(command_line(TRAIN, "--resume", run, "--steps", 8))


def test_two_processes_train_as_one(tmp_path):
    """torchrun with 4 images in each of two processes, against 8 in one; `accelerate launch` on a CPU would have started one."""
    flags = [*FEW[:4], "--channels", 8, 16, "--sample-steps", 1, "--sample-every", 100, "--device", "cpu", "--precision", "no", "--steps", 5]
    run_main(TRAIN, *flags, "--batch-size", 8, "--out", tmp_path / "one")
    done = run_program("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "--", TRAIN, *flags, "--batch-size", 4, "--out", tmp_path / "two")
    assert done.returncode == 0 and done.stdout.count("2 process(es)") == 1, done.stdout + done.stderr
    one, two = ([float(loss) for loss in losses(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4) and len(set(one)) == 5
    assert len(list((tmp_path / "two" / "checkpoints" / "step-00000005").glob("random_states_*"))) == 2
    a, b = (torch.cat([v.flatten() for v in load_file(tmp_path / name / UNET).values()]) for name in ("one", "two"))
    assert float((a - b).norm() / a.norm()) < 1e-3


def test_a_model_of_chapter_1_goes_on_unchanged(tmp_path, command_line):
    code, out, _ = command_line(TRAIN, "--model", MNIST, "--data", "digits", "--n", 8, "--batch-size", 4, "--steps", 1, "--lr", 1e-9, "--sample-steps", 1, "--device", "cpu",
                                "--precision", "no", "--out", tmp_path / "run")  # fmt: skip
    assert code == 0 and "8 images of 1x28x28" in out
    before, after = (load_model(folder) for folder in (MNIST, tmp_path / "run"))
    assert before.prediction == after.prediction and torch.equal(before.schedule.alpha, after.schedule.alpha)
    for a, b in zip(before.net.parameters(), after.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_augmentation_depends_on_its_place_alone():
    images = load("creatures", 16, n=4)
    data = Augmented(images, ("flip", "crop", "jitter"), seed=1)
    first = [data[i]["image"] for i in range(4)]
    torch.manual_seed(5)
    torch.testing.assert_close(torch.stack([data[i]["image"] for i in (3, 2, 1, 0)]).flip(0), torch.stack(first))
    data.set_epoch(1)
    assert all(not torch.equal(data[i]["image"], first[i]) for i in range(4))
    plain = Augmented(images, (), seed=1)
    torch.testing.assert_close(plain[2]["image"], to_float(images.pixels[2]), atol=1e-5, rtol=0)
    flipped = Augmented(images, ("flip",), seed=1)
    kinds = set()
    for epoch in range(12):
        flipped.set_epoch(epoch)
        image = flipped[0]["image"]
        assert torch.equal(image, plain[0]["image"]) or torch.equal(image, plain[0]["image"].flip(-1))
        kinds.add(torch.equal(image, plain[0]["image"]))
    assert kinds == {True, False}


def test_each_image_has_its_own_luck():
    images = load("creatures", 16, n=1)
    same = Augmented(replace(images, pixels=images.pixels.repeat(6, 1, 1, 1)), ("flip", "crop", "jitter"), seed=1)
    assert len({tuple(same[i]["image"].flatten().tolist()) for i in range(6)}) == 6


def test_batches_go_on_anywhere_and_no_epoch_is_like_another(tmp_path):
    kind = load_program(TRAIN).Args
    args, images = kind(batch_size=4, steps=1, out=tmp_path), load("creatures", 16, n=12)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0))
    unet = new_unet((8, 8), images, seed=0)
    trainer = UnconditionalTrainer(unet, new_scheduler("v_prediction"), images, ("flip", "crop"), 0, args, accelerator)
    nine = list(islice(trainer.batches(0), 9))  # three epochs
    assert [k for k, _ in nine] == list(range(9))
    for start in (2, 3, 7):
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(islice(trainer.batches(start), 2), nine[start:], strict=False))
    plain = {tuple(image.flatten().tolist()) for _, batch in nine for image in batch}
    assert len(plain) > 30  # shifted and mirrored anew in each epoch, so hardly an image comes twice
    orders = [torch.cat([batch.mean((1, 2, 3)) for _, batch in nine[i : i + 3]]).argsort().tolist() for i in (0, 3, 6)]
    assert orders[0] != orders[1] != orders[2]


def test_grey_and_colour():
    images = load("creatures", 16, n=2)
    grey = images.in_channels(1)
    assert grey.pixels.shape == (2, 1, 16, 16) and images.in_channels(3) is images
    again = grey.in_channels(3)
    assert again.pixels.shape == (2, 3, 16, 16) and torch.equal(again.pixels[:, 0], again.pixels[:, 2])


def test_models_that_it_cannot_train(model, tmp_path, command_line):
    flags = [*FEW, "--out", tmp_path / "out"]
    assert "finetune.py continues models that read text" in refused(command_line(TRAIN, "--model", model, *flags))
    folder = Path(shutil.copytree(MNIST, tmp_path / "labels"))
    config = read_json(folder / "unet" / "config.json")
    for change, says in (({"num_class_embeds": 10}, "is class-conditional"), ({"out_channels": 2}, "2 output channels, as with a learned variance")):
        write_json(folder / "unet" / "config.json", config | change)
        assert says in refused(command_line(TRAIN, "--model", folder, *flags))
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(("flags", "says"), [
    (["--steps", 0], "--steps"), (["--ema", 1], "--ema"), (["--channels", 7], "multiples of 8"), (["--batch-size", 21], "do not fill a batch of 21"),
    (["--size", 18, "--channels", 8, 8, 8], "multiple of 4"), (["--data", "nothing"], "unknown data"), (["--resume", "nowhere"], "config.json"),
    (["--scheduler", "magic"], "unknown scheduler"), (["--lr", 100, "--steps", 30], "smaller --lr"), (["--lr", 1e9], "--lr must be at most 100")])  # fmt: skip
def test_what_train_unconditional_refuses(flags, says, tmp_path, command_line):
    assert says in refused(command_line(TRAIN, *FEW, *flags, "--out", tmp_path / "out"))


# --------------------------------------------------------------------------------------------------------- ddpm_package.py

SMALL = ["--n", 100, "--size", 16, "--dim", 8, "--mults", 1, 2, "--samples", 4, "--sample-steps", 2, "--save-every", 2, "--device", "cpu"]


@pytest.fixture(scope="module")
def folder_of_png(tmp_path_factory) -> Path:
    from common.data.image_export import export

    folder = tmp_path_factory.mktemp("package") / "png"
    export(load("creatures", 16, n=100), folder)
    return folder


@pytest.mark.parametrize("objective", ["pred_v", "pred_noise", "pred_x0"])
def test_the_step_by_hand_is_the_packages(folder_of_png, tmp_path, objective, command_line):
    code, out, _ = command_line(PACKAGE, "--data", folder_of_png, *SMALL[2:], "--objective", objective, "--by-hand-only", "--out", tmp_path / "out")
    ours, theirs = re.search(r"their mean is (\S+); .* says (\S+)", out).groups()
    assert code == 0 and float(ours) == pytest.approx(float(theirs), rel=1e-5) and float(ours) > 0.01
    assert not (tmp_path / "out").exists()


def test_the_package_trains_and_goes_on(tmp_path, command_line):
    code, out, _ = command_line(PACKAGE, *SMALL, "--steps", 3, "--out", tmp_path / "run")
    assert code == 0 and "100 images of creatures written" in out and "half precision off" in out
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "images", "config.json", "data.json", "model-1.pt", "sample-1.png", "model-2.pt", "results.json", "samples.png"}  # fmt: skip
    assert counted(tmp_path / "run")["device"] == "cpu" and "memory of the process, peak" in out
    code, out, _ = command_line(PACKAGE, "--resume", tmp_path / "run", "--steps", 4)
    assert code == 0 and "steps 3 to 4" in out
    state = torch.load(tmp_path / "run" / "model-2.pt", weights_only=True)
    assert state["step"] == 4 and "sample-2.png" in {path.name for path in (tmp_path / "run").iterdir()}
    (tmp_path / "run" / "model-2.pt").write_bytes(b"half")
    assert "delete it to go on from model-1.pt" in refused(command_line(PACKAGE, "--resume", tmp_path / "run", "--steps", 5))


def test_the_guards_are_the_packages_own(folder_of_png, tmp_path):
    """What is refused with a sentence before is what the Trainer would have refused with an assertion."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    process = GaussianDiffusion(Unet(8, dim_mults=(1, 2)), image_size=16)
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(folder_of_png.glob("*.png"))[:99]:
        shutil.copy(path, few)
    for folder, more in ((folder_of_png, {"train_batch_size": 15}), (folder_of_png, {"num_samples": 5}), (few, {})):
        with pytest.raises(AssertionError):
            Trainer(process, str(folder), results_folder=str(tmp_path / "out"), calculate_fid=False, **more)
    Trainer(process, str(folder_of_png), results_folder=str(tmp_path / "out"), calculate_fid=False)


@pytest.mark.parametrize(("flags", "says"), [
    (["--batch-size", 5, "--gradient-accumulation", 3], "5 x --gradient-accumulation 3 = 15"), (["--samples", 5], "square number"), (["--n", 99], "needs at least 100 images"),
    (["--size", 18, "--mults", 1, 2, 4], "multiple of 4"), (["--dim", 9], "--dim"), (["--ema", 1], "--ema"), (["--data", "nothing"], "unknown data"),
    (["--resume", "nowhere"], "config.json"), (["--sample-steps", 1001], "--sample-steps")])  # fmt: skip
def test_what_the_package_program_refuses(flags, says, tmp_path, command_line):
    assert says in refused(command_line(PACKAGE, *SMALL, *flags, "--out", tmp_path / "out"))


@pytest.mark.parametrize("suffix", [".webp", ".JPG"])
def test_files_that_the_package_does_not_see(tmp_path, command_line, suffix):
    """They are written out as PNGs; hidden files, which the package would take, are not."""
    source = tmp_path / "set"
    (source / ".ipynb_checkpoints").mkdir(parents=True)
    for i in range(100):
        Image.new("RGB", (20, 16), (i, i, i)).save(source / f"{i}{suffix}")
    Image.new("RGB", (16, 16)).save(source / ".ipynb_checkpoints" / "a.png")
    code, out, _ = command_line(PACKAGE, "--data", source, *SMALL[2:], "--by-hand-only", "--out", tmp_path / "out")
    assert code == 0 and f"100 images of {source} written to {tmp_path / 'out' / 'images'}" in out
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 100
    (source / f"7{suffix}").unlink()
    err = refused(command_line(PACKAGE, "--data", source, *SMALL[2:], "--out", tmp_path / "other"))
    assert "needs at least 100 images" in err and f"{source} holds 99" in err and not (tmp_path / "other").exists()


def test_an_interrupted_run_without_a_milestone_begins_again(tmp_path):
    run_main(PACKAGE, *SMALL[:-4], "--save-every", 1000, "--device", "cpu", "--steps", 1, "--out", tmp_path / "run")
    (milestone,) = (tmp_path / "run").glob("model-*.pt")
    before = torch.load(milestone, weights_only=True)["model"]
    milestone.unlink()
    run_main(PACKAGE, "--resume", tmp_path / "run")
    after = torch.load(milestone, weights_only=True)["model"]
    assert all(torch.equal(before[key], after[key]) for key in before)


# ------------------------------------------------------------------------------------------------------------ all programs


def test_help_waits_for_nothing_heavy():
    modules = f"import sys; sys.path[:0] = [{HERE!r}, '{HERE}/studies']; import generate, restore, strength, prompt_weighting, train_unconditional, ddpm_package, memory; "
    done = run_program("-c", modules + "print([m for m in ('torch', 'diffusers', 'transformers', 'accelerate', 'numpy', 'PIL', 'compel') if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_settings_are_kept(trained):
    saved = json.loads((trained / "config.json").read_text())
    assert saved["steps"] == 5 and saved["resume"] is None and saved["augment"] == ["flip", "crop", "jitter"]
