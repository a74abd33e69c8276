"""Chapter 6's painting: dishes from vectors of names, networks that fill holes, RePaint, and make_gif.py that puts them to work."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from diffusers import AutoPipelineForInpainting, StableDiffusionInpaintPipeline
from PIL import Image
from safetensors.torch import load_file

from common.data import export_lmdb
from common.data.dishes.dataset import dish, draw
from common.diffusion.denoiser import Prediction
from common.diffusion.samplers import initial_noise
from common.diffusion.schedules import make_schedule
from common.errors import UserError
from common.models.diffusers_vae import load_vae
from common.models.model_folder import Model, save_model
from common.models.unet import UNet
from common.models.unet_config import small_unet, text_unet
from common.random import BatchRandom, Noise
from helpers.programs import ROOT, load_program, run_main, run_program
from helpers.tiny_pipeline import shake, write_tiny_pipeline
from inpaint_gif.animation import camera
from inpaint_gif.animation import canvas as world
from inpaint_gif.animation import metrics as figures
from inpaint_gif.animation import render as filming
from inpaint_gif.clip import dish_names
from inpaint_gif.clip import formats as clip_forms
from inpaint_gif.clip import model as clip_zh
from inpaint_gif.inpainting import backends as engines
from inpaint_gif.inpainting import edge_fill as fill
from inpaint_gif.inpainting import pipeline as artist
from inpaint_gif.inpainting import regional_prompts as regions
from inpaint_gif.inpainting import repaint
from inpaint_gif.training import hole_masks as holes
from inpaint_gif.training import inpaint as fit_inpaint
from inpaint_gif.training import latent_dataset as latent_set
from inpaint_gif.training import scenes
from inpaint_gif.training import text2dish as fit_text2dish

DISH, INPAINT, CONTROL, MAKE = (f"06_inpaint_gif/{name}.py" for name in ("train_text2dish", "train_inpaint", "train_controlnet", "make_gif"))
How = artist.How
UNET = "unet/diffusion_pytorch_model.safetensors"
QUICK = How(w=2.0, sampler="ddim:3")


def tiny_clip(dim: int = 24, seed: int = 0) -> clip_forms.Form:
    """A CLIP that was never trained, with the vocabulary of the menu."""
    words = dish_names.vocabulary([name for names in dish_names.LEARNED.values() for name in names])
    shape = clip_forms.Shape(
        embed_dim=dim, image_resolution=32, vision_layers=1, vision_width=32, vision_patch_size=16, vision_head_width=32, vocab_size=len(words),
        text_hidden_size=32, text_intermediate_size=32, text_num_attention_heads=1, text_num_hidden_layers=1, text_max_position_embeddings=52,
        text_initializer_range=0.1)  # fmt: skip
    torch.manual_seed(seed)
    net = transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(**shape.to_transformers()))
    return clip_forms.Form(shape, clip_forms.from_transformers(net.state_dict()), words, "a test")


@pytest.fixture(scope="module")
def clip() -> clip_zh.ChineseClip:
    return clip_zh.ChineseClip(tiny_clip(), "transformers")


@pytest.fixture(scope="module")
def clip_folder(clip, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    clip_forms.save_folder(folder, clip.form)
    return folder


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    """Chapter 4's folder in small: 64 x 64 pixels, latents 4 x 16 x 16."""
    return write_tiny_pipeline(tmp_path_factory.mktemp("chapter_04") / "model")


@pytest.fixture(scope="module")
def nine(sd, tmp_path_factory) -> Path:
    """An inpainting folder whose every weight matters."""
    folder, begun = tmp_path_factory.mktemp("nine"), artist.open_artist(sd)
    torch.manual_seed(1)
    wide = fit_inpaint.widened(begun.unet)
    shake(wide)
    fit_inpaint.save_inpaint(folder, dataclasses.replace(begun, unet=wide))
    return folder


TINY = ["--batch-size", 4, "--device", "cpu", "--precision", "no", "--sampler", "ddim:2", "--sample-every", 100, "--save-every", 2, "--steps", 4]


@pytest.fixture(scope="module")
def dish_run(sd, clip_folder, tmp_path_factory) -> Path:
    """A run of four steps of train_text2dish.py. Read only."""
    folder = tmp_path_factory.mktemp("text2dish") / "run"
    run_main(DISH, *TINY, "--n", 8, "--model", sd, "--clip", clip_folder, "--backend", "transformers", "--names", "番茄炒蛋", "", "--out", folder)
    return folder


@pytest.fixture(scope="module")
def hole_run(sd, tmp_path_factory) -> Path:
    """A run of four steps of train_inpaint.py. Read only."""
    folder = tmp_path_factory.mktemp("inpaint") / "run"
    run_main(INPAINT, *TINY, "--n", 4, "--windows", 2, "--model", sd, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def control_run(sd, tmp_path_factory) -> Path:
    """A run of four steps of train_controlnet.py. Read only."""
    folder = tmp_path_factory.mktemp("controlnet") / "run"
    run_main(CONTROL, *TINY, "--n", 3, "--windows", 1, "--model", sd, "--out", folder)
    return folder


def photograph(seed: int = 0, size: int = 64) -> torch.Tensor:
    """A drawn dish, (3, size, size) in [-1, 1]."""
    attributes, pose = dish(0, "test", seed)
    return torch.from_numpy(draw(attributes, size, pose)).float() / 127.5 - 1


def right_hole(size: int = 64, columns: int = 16) -> torch.Tensor:
    mask = torch.zeros(1, size, size)
    mask[:, :, -columns:] = 1
    return mask


# ----------------------------------------------------------------------------------------------------- names as vectors


def test_a_name_becomes_its_vector_and_a_zero(clip):
    read = artist.NameReader(clip)
    text = read(["番茄炒蛋", " ", "米饭"])
    assert text.shape == (3, 2, 24) and read.dim == 24
    torch.testing.assert_close(text[0, 0] / 24**0.5, clip.encode_text(["番茄炒蛋"])[0])
    assert text[0, 0].square().mean().item() == pytest.approx(1, abs=1e-4)
    assert not text[1].any() and not text[:, 1].any()
    assert (text[0, 0] - text[2, 0]).abs().max() > 0.01


def test_the_fingerprint_knows_who_reads(clip, tmp_path):
    """Other weights or words of the text half are another reader; half precision and the image half are of no importance."""
    form, known = clip.form, artist.fingerprint(clip.form)
    clip_forms.save_folder(tmp_path, form, torch.float16)
    assert artist.fingerprint(clip_forms.read_folder(tmp_path)) == known
    key = "bert.encoder.layer.0.output.dense.bias"
    assert artist.fingerprint(form._replace(state=form.state | {key: form.state[key] + 0.01})) != known
    assert artist.fingerprint(form._replace(words=(*form.words[:-1], "?"))) != known
    assert artist.fingerprint(form._replace(state=form.state | {"visual.proj": form.state["visual.proj"] + 1})) == known


# ------------------------------------------------------------------------------------------------- training from names


def test_a_run_of_text2dish_leaves_everything(dish_run, clip, sd):
    for name in ("config.json", "metrics.csv", "samples.png", "loss.png", "recognised.json", f"model/{UNET}", "model/vae/config.json",
                 "model/scheduler/scheduler_config.json", "model/text2dish.json", "model/clip/config.json", "model/clip/vocab.txt"):  # fmt: skip
        assert (dish_run / name).exists(), name
    assert set(json.loads((dish_run / "recognised.json").read_text())) == {"learned names", "held-out names"}
    drawer = artist.open_artist(dish_run)
    assert (drawer.size, drawer.factor, drawer.channels, drawer.paints_holes) == (64, 4, 3, False)
    assert drawer.unet.cfg.text_dim == 24 and drawer.prediction == "v" and drawer.schedule.name == "cosine"
    before, after = (load_vae(folder).state_dict() for folder in (sd, dish_run))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_it_begins_with_another_u_net_but_for_what_looks_at_text(sd, clip):
    args = load_program(DISH).Args(model=sd)
    unet, other = fit_text2dish.new_unet(args, load_vae(sd), clip).state_dict(), artist.open_artist(sd).unet.state_dict()
    reading = {key for key in other if "attn2.to_k" in key or "attn2.to_v" in key}
    assert reading and all(torch.equal(unet[key], other[key]) for key in other.keys() - reading)
    assert all(unet[key].shape[1] == 24 != other[key].shape[1] for key in reading)
    scratch = fit_text2dish.new_unet(dataclasses.replace(args, scratch=True, widths=(8, 16)), load_vae(sd), clip)
    assert scratch.cfg.channels == (8, 16) and not scratch.conv_out.weight.any()


def test_pictures_follow_names_scale_and_seed(dish_run):
    drawer, how = artist.open_artist(dish_run), How(w=8.0, sampler="ddim:2")
    with torch.no_grad():
        for name, weight in drawer.unet.named_parameters():
            if "attn2" in name:
                weight *= 3  # four steps teach nobody to listen
    same = drawer.draw(["番茄炒蛋"], how)
    assert same.shape == (1, 3, 64, 64) and same.abs().max() <= 1 and torch.equal(same, drawer.draw(["番茄炒蛋"], how))
    others = [drawer.draw(["米饭"], how), drawer.draw(["番茄炒蛋"], How(w=2.0, sampler="ddim:2")), drawer.draw(["番茄炒蛋"], how, seed=1),
              drawer.draw(["番茄炒蛋"], dataclasses.replace(how, negative="米饭"))]  # fmt: skip
    assert all((other - same).abs().max() > 1e-4 for other in others)
    many = drawer.draw(["番茄炒蛋"] * 33, How(w=1.0, sampler="ddim:1"))
    assert len(many) == 33 and (many[0] - many[32]).abs().max() > 1e-3  # the second batch has its own noise


def test_the_loss_tells_one_of_the_names_or_none(dish_run, sd, clip):
    args, told = load_program(DISH).Args(caption_dropout=0.3), {}
    drawer = artist.open_artist(dish_run)
    table, rows = fit_text2dish.vectors_for(clip, [("米饭", "白米饭")] * 400)
    assert table.shape == (2, 24) and rows.tolist() == [[0, 1]] * 400
    data = fit_text2dish.Named(latent_set.LatentSet(torch.randn(400, 4, 16, 16), torch.zeros(400, 4, 16, 16)), table, rows)

    def net(x, t, vector):
        told["vector"] = vector
        return torch.zeros_like(x)

    errors = fit_text2dish.NameLoss(args, drawer, clip)(net, data.batch(torch.arange(400)), BatchRandom(0, 0))
    assert errors.per_sample.shape == (400,)
    kind = [(told["vector"] - vector).abs().amax(1) < 1e-6 for vector in (torch.zeros(24), table[0], table[1])]
    shares = [float(k.float().mean()) for k in kind]
    assert sum(shares) == pytest.approx(1) and 0.22 < shares[0] < 0.38 and abs(shares[1] - shares[2]) < 0.12


@pytest.mark.parametrize("which", ["dish", "hole", "control"])
def test_a_resumed_run_is_the_same_run(which, request, tmp_path):
    """Thrown back to its checkpoint of step 2, it ends with the same bytes; what it began with may be gone, if it does not work beside it."""
    run, again = request.getfixturevalue(f"{which}_run"), tmp_path / "run"
    shutil.copytree(run, again)
    (again / "checkpoints" / "step-00000004.pt").unlink()
    settings, gone = json.loads((again / "config.json").read_text()), {"dish": ("model", "clip"), "hole": ("model",), "control": ()}[which]
    (again / "config.json").write_text(json.dumps(settings | dict.fromkeys(gone, "nowhere")))
    run_main({"dish": DISH, "hole": INPAINT, "control": CONTROL}[which], "--resume", again, "--device", "cpu")
    weights = UNET if which != "control" else Path(UNET).name
    assert (again / "model" / weights).read_bytes() == (run / "model" / weights).read_bytes()


def test_a_run_does_not_go_on_with_another_clip(dish_run, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(dish_run, again)
    clip_forms.save_folder(again / "start" / "clip", tiny_clip(seed=1))
    with pytest.raises(UserError, match="another CLIP or autoencoder"):
        run_main(DISH, "--resume", again, "--steps", 6, "--device", "cpu")


def test_own_photographs_with_chinese_captions(sd, clip_folder, tmp_path):
    """As a folder, and as the LMDB file that is written of it."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    rows = []
    for i in range(20):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{i:02}.png")
        rows.append(json.dumps({"file_name": f"{i:02}.png", "text": ("米饭", "番茄汤")[i % 2]}, ensure_ascii=False))
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    run_main(DISH, *TINY, "--data", folder, "--model", sd, "--clip", clip_folder, "--backend", "transformers", "--names", "米饭", "--out", tmp_path / "a")
    export_lmdb.main(export_lmdb.Args(str(folder), tmp_path / "photographs.lmdb"))
    run_main(INPAINT, *TINY, "--data", tmp_path / "photographs.lmdb", "--windows", 1, "--model", sd, "--out", tmp_path / "b")
    assert (tmp_path / "a" / "model" / UNET).exists() and (tmp_path / "b" / "model" / UNET).exists()
    assert not (tmp_path / "a" / "recognised.json").exists()


# --------------------------------------------------------------------------------------------------- training with holes


def test_a_run_of_inpaint_leaves_everything(hole_run, sd):
    for name in ("config.json", "metrics.csv", "samples.png", "loss.png", f"model/{UNET}", "model/model_index.json"):
        assert (hole_run / name).exists(), name
    before, after = (load_file(folder / UNET) for folder in (sd, hole_run / "model"))
    assert after["conv_in.weight"].shape[1] == 9 and after["conv_in.weight"][:, 4:].abs().max() > 0  # it begins to look
    assert sum(not torch.equal(before[key], after[key]) for key in before if key != "conv_in.weight") > 0.9 * len(before) - 1
    assert artist.open_artist(hole_run).paints_holes


def test_a_widened_network_is_the_network_it_was(sd):
    unet, x = artist.open_artist(sd).unet, torch.randn(2, 4, 16, 16)
    wide, t, text = fit_inpaint.widened(unet).eval(), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 32)
    with torch.no_grad():
        assert torch.equal(wide(torch.cat([x, torch.randn(2, 5, 16, 16)], 1), t, text), unet(x, t, text))
    assert wide.cfg.in_channels == 9


def test_the_inpainting_loss_shows_one_of_the_holes(sd):
    args, begun = load_program(INPAINT).Args(model=sd, holes=2, windows=2, caption_dropout=0.0), artist.open_artist(sd)
    views, captions = fit_inpaint.gather(args, 64, "train", 6, 2)
    assert views.shape == (12, 3, 64, 64) and len(captions) == 12 and [c.isascii() for c in captions] == [False, True] * 6
    data, told = fit_inpaint.prepare(args, begun, views, captions), {}
    batch = data.batch(torch.arange(12))
    assert batch["shown"].shape == (12, 2, 5, 16, 16) and set(batch["shown"][:, :, 0].unique().tolist()) <= {0.0, 1.0}
    expected = engines.shown_to_unet(begun, views[:1].float() / 127.5 - 1, holes.random_holes(24, 64, 64, 0)[:1].float())
    torch.testing.assert_close(batch["shown"][0, 0], expected[0], atol=5e-3, rtol=2e-3)
    torch.testing.assert_close(batch["words"], begun.reader(captions).detach(), atol=5e-3, rtol=2e-3)

    def net(x, t, words, shown):
        told["shown"] = shown
        return torch.zeros_like(x)

    fit_inpaint.make_loss(args, begun)(net, batch, BatchRandom(0, 0))
    chosen = [[torch.equal(told["shown"][i], batch["shown"][i, k]) for k in range(2)] for i in range(12)]
    assert all(any(row) for row in chosen) and len({tuple(row) for row in chosen}) > 1


def test_scenes_hold_their_picture():
    for i in range(3):
        attributes, pose = dish(0, "train", i)
        scene = scenes.wide_scene(attributes, 32, pose)
        assert scene.shape == (3, 64, 64) and np.array_equal(scene[:, 16:48, 16:48], draw(attributes, 32, pose))
        inner, outer = scene[:, 16:48, 16].astype(float), scene[:, 16:48, 15].astype(float)
        assert np.abs(inner - outer).mean() < 25  # the table goes on
    views = scenes.drawn_views("train", 3, 32, 2)
    assert views.shape == (6, 3, 32, 32) and torch.equal(views, scenes.drawn_views("train", 3, 32, 2))
    assert not torch.equal(views[0], views[1]) and not torch.equal(views, scenes.drawn_views("train", 3, 32, 2, seed=1))


def test_holes_are_of_every_kind():
    some = holes.random_holes(400, 32, 32, 7)
    share = some.float().mean((1, 2, 3))
    assert some.shape == (400, 1, 32, 32) and set(some.unique().tolist()) == {0, 1} and share.min() > 0
    assert 0.01 < float((share == 1).float().mean()) < 0.12
    assert torch.equal(some, holes.random_holes(400, 32, 32, 7)) and not torch.equal(some, holes.random_holes(400, 32, 32, 8))
    path = camera.Path.plan(camera.Move.parse("right:1"), 32, 32, 0.25)
    seen = world.World(torch.zeros(1, 32, 32)).look(path.stops()[0].window)[1]
    assert any(torch.equal(hole, (~seen).float()) for hole in holes.camera_holes(32, 32))


# -------------------------------------------------------------------------------------------------------------- ControlNet


def test_a_run_of_controlnet_leaves_everything(control_run, sd):
    """It has learned to speak; the model that listens is what it was."""
    for name in ("config.json", "metrics.csv", "samples.png", "loss.png", "model/config.json", f"model/{Path(UNET).name}"):
        assert (control_run / name).exists(), name
    state = load_file(control_run / "model" / Path(UNET).name)
    spoken = [value for key, value in state.items() if key.startswith(("controlnet_down_blocks", "controlnet_mid_block")) and key.endswith("weight")]
    assert spoken and all(value.abs().max() > 0 for value in spoken)
    saved = torch.load(control_run / "checkpoints" / "step-00000004.pt", weights_only=True)
    assert all(key.startswith("controlnet.") for key in saved["net"])


def test_what_a_controlnet_is_shown():
    image, mask = photograph()[None], right_hole()[None]
    shown = engines.shown_to_controlnet(image, mask)
    assert (shown[..., 48:] == -1).all() and torch.equal(shown[..., :48], (image[..., :48] + 1) / 2)


def test_a_controlnet_is_heard(control_run, sd):
    """The pipeline of diffusers gives it the picture as it was shown in training; without a word from it another picture comes."""
    engine = engines.open_controlled(str(sd), str(control_run), QUICK)
    heard, real = [], engine.pipe.controlnet.forward
    engine.pipe.controlnet.forward = lambda *args, **kwargs: heard.append(kwargs["controlnet_cond"]) or real(*args, **kwargs)
    image, mask = photograph(), right_hole()
    painted = engine(image, mask, "米饭", 0)
    torch.testing.assert_close(heard[0][:1], engines.shown_to_controlnet(image[None], mask[None]))
    with torch.no_grad():
        for name, weight in engine.pipe.controlnet.named_parameters():
            if name.startswith(("controlnet_down_blocks", "controlnet_mid_block")):
                weight += 0.3
    assert (engine(image, mask, "米饭", 0) - painted).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------------------- nine channels


def test_the_nine_channels_paint_what_diffusers_paints(nine):
    """StableDiffusionInpaintPipeline, from the same noise, to the picture. Its encoder draws latents: here from a cloud without width."""
    pipe = StableDiffusionInpaintPipeline.from_pretrained(nine)
    pipe.set_progress_bar_config(disable=True)
    ours = artist.open_artist(nine)
    c = ours.vae.cfg.latent_channels
    with torch.no_grad():
        for conv in (pipe.vae.quant_conv, ours.vae.quant_conv):
            conv.weight[c:], conv.bias[c:] = 0.0, -30.0
    image, mask, prompt, how = photograph(), right_hole(columns=18), "番茄炒蛋", How(w=3.0, sampler="ddim:4", negative="米饭")
    noise = initial_noise(ours.noise_levels(how), (1, c, 16, 16), Noise(5))
    theirs = pipe(prompt, image=(image[None] + 1) / 2, mask_image=mask[None], height=64, width=64, strength=1.0, num_inference_steps=4, guidance_scale=3.0,
                  negative_prompt="米饭", latents=noise, generator=torch.Generator().manual_seed(0), output_type="pt").images[0] * 2 - 1  # fmt: skip
    painted = engines.NineChannels(ours, how)(image, mask, prompt, 5)
    torch.testing.assert_close(painted, theirs, atol=2e-4, rtol=0)
    assert painted.std() > 0.05
    for other in (engines.NineChannels(ours, how)(photograph(1), mask, prompt, 5), engines.NineChannels(ours, how)(image, right_hole(columns=30), prompt, 5)):
        assert (other - painted).abs().max() > 1e-3  # picture and mask matter


def test_diffusers_opens_what_was_trained(hole_run):
    pipe = AutoPipelineForInpainting.from_pretrained(hole_run / "model")
    assert type(pipe).__name__ == "StableDiffusionInpaintPipeline" and pipe.unet.config.in_channels == 9
    assert pipe.scheduler.config.prediction_type == "v_prediction" and pipe.scheduler.config.timestep_spacing == "trailing"


# ---------------------------------------------------------------------------------------------------------------- RePaint


def test_the_walk_goes_back():
    assert repaint.walk(4, 2, 2) == [0, 1, 2, 0, 1, 2, 3, 4, 2, 3, 4]
    assert repaint.walk(5, 2, 1) == [0, 1, 2, 3, 4, 5]
    way = repaint.walk(20, 5, 4)
    assert way[0] == 0 and way[-1] == 20 and sum(b > a for a, b in zip(way, way[1:], strict=False)) == 4 * 20
    assert all(b - a in (1, -5) for a, b in zip(way, way[1:], strict=False))
    with pytest.raises(UserError, match="at least 1"):
        repaint.walk(4, 0, 2)


def gaussian_pair(rho: float):
    """The ideal denoiser for two pixels that are standard normal with this correlation."""
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]])

    def denoise(x, level):
        gain = level.alpha * covariance @ torch.linalg.inv(level.alpha**2 * covariance + level.sigma**2 * torch.eye(2))
        x0 = (x.flatten(1) @ gain.T).view(x.shape)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return denoise


def test_repaint_draws_what_goes_with_the_known():
    """One of two pixels is known to be 1.5: the other is then normal with mean 1.5 rho and variance 1 - rho^2."""
    rho, n, path = 0.9, 3000, make_schedule("cosine").noise_levels(30)
    known, mask = torch.tensor([1.5, 0.0]).expand(n, 1, 1, 2), torch.tensor([0.0, 1.0]).expand(n, 1, 1, 2)
    error = {}
    for times in (1, 6):
        *_, last = repaint.repaint(gaussian_pair(rho), torch.randn(n, 1, 1, 2, generator=torch.Generator().manual_seed(0)), path, known, mask, Noise(1), 5, times)
        assert torch.equal(last.x[..., 0], known[..., 0])  # to the last bit
        other = last.x[..., 1]
        error[times] = abs(float(other.mean()) - 1.5 * rho)
        deviation = float(other.std())
    assert error[6] < 0.1 < error[1]  # once is pasting: the hole knew too little of what lies around it
    assert deviation == pytest.approx(math.sqrt(1 - rho**2), rel=0.2)


def test_back_to_noise_is_where_the_schedule_says():
    schedule, x0 = make_schedule("cosine"), torch.full((20000,), 0.7)
    now, then = (next(iter(schedule.noise_levels(10).after(k))) for k in (8, 3))
    x = now.alpha * x0 + now.sigma * torch.randn(20000)
    back = repaint.noised(x, now, then, torch.randn(20000))
    assert float(back.mean()) == pytest.approx(then.alpha * 0.7, abs=0.03) and float(back.std()) == pytest.approx(then.sigma, rel=0.03)


def test_a_latent_is_missing_if_any_of_its_pixels_is():
    mask = torch.zeros(1, 16, 16)
    mask[:, 0, 5] = 1
    hole = engines.latent_hole(mask, 4)
    assert hole.shape == (1, 1, 4, 4) and hole.sum() == 1 and hole[0, 0, 0, 1] == 1


# ------------------------------------------------------------------------------------------------------------- engines


@pytest.fixture(scope="module")
def pixel_model(tmp_path_factory) -> Path:
    """An unconditional model of pixels, as chapter 1 trains them."""
    folder = tmp_path_factory.mktemp("pixels")
    torch.manual_seed(0)
    unet = UNet(small_unet(64, 3, (8, 8, 8)))
    shake(unet)
    save_model(folder, Model(unet, make_schedule("cosine"), "v", True))
    return folder


KINDS = ["inpaint", "repaint of names", "repaint of captions", "repaint of pixels", "controlnet", "diffusers", "diffusers without a mask", "nearest", "reflect"]


@pytest.fixture(scope="module")
def opened(nine, sd, dish_run, pixel_model, control_run, clip):
    """engine(kind, **settings)"""
    models = dict(zip(KINDS, (nine, dish_run, sd, pixel_model, sd, nine, sd, None, None), strict=True))

    def make(kind: str, **settings):
        model = models[kind] and str(models[kind])
        more = {"controlnet": str(control_run)} if kind == "controlnet" else {}
        return engines.open_engine(engines.Settings(kind.split()[0], model, how=QUICK, clip=clip, jump=2, times=2, **more, **settings))

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_leaves_known_pixels_as_they_are(kind, opened):
    """Through a chain of moves: at each keyframe what was seen is there to the last bit, and all the rest is painted."""
    engine, picture = opened(kind), photograph()
    way = camera.Path.plan(camera.Move.parse("up-right:1,zoom-out:1"), 64, 64)
    plane = world.World(picture)
    frames = list(camera.paint(plane, way, engine, "番茄炒蛋", seed=3))
    assert len(frames) >= 3 and sum(k.new > 0 for k in frames) >= 2
    for k in frames:
        known = (k.mask == 0).expand_as(k.image)
        assert torch.equal(k.image[known], k.moved[known]) and k.image.isfinite().all() and k.image.abs().max() <= 1
    again = list(camera.paint(world.World(picture), way, engine, "番茄炒蛋", seed=3))
    assert all(torch.equal(a.image, b.image) for a, b in zip(frames, again, strict=True))
    if kind not in fill.FILLS:
        other = list(camera.paint(world.World(picture), way, engine, "番茄炒蛋", seed=4))
        assert not torch.equal(frames[0].image, other[0].image)


def test_a_picture_of_the_other_kind_is_refused(opened):
    """A model of grey pictures, say, and a dish in colours."""
    for kind in ("inpaint", "repaint of pixels"):
        with pytest.raises(UserError, match=r"this model paints pictures with three channels \(colour\), and the picture has one channel \(grey\)"):
            opened(kind)(photograph()[:1], right_hole(), "", 0)


@pytest.mark.parametrize("settings", [{"crop": 4}, {"blur": 0.0}, {"blur": 6.0}])
def test_crops_and_blurs_leave_known_pixels_too(settings, opened):
    engine, image, mask = opened("inpaint", **settings), photograph(), torch.zeros(1, 64, 64)
    mask[:, 48:, 48:] = 1  # a corner: the surroundings of what reaches from edge to edge would be all there is
    painted = engine(image, mask, "番茄炒蛋", 0)
    assert torch.equal(painted[(mask == 0).expand_as(image)], image[(mask == 0).expand_as(image)])
    assert not torch.equal(painted, opened("inpaint")(image, mask, "番茄炒蛋", 0))


def test_other_sizes_are_painted_at_the_engines_own(opened):
    told = []

    def engine(image, mask, prompt, seed):
        told.append(tuple(image.shape))
        return torch.zeros_like(image)

    joined = engines.Joined(engine, native=64, blur=0, match=False)
    image, mask = photograph(size=96), right_hole(96, 30)
    painted = joined(image, mask, "", 0)
    assert told == [(3, 64, 64)] and painted.shape == image.shape
    assert torch.equal(painted[:, :, :66], image[:, :, :66]) and painted[:, :, 66:].abs().max() < 1e-6
    whole = engines.Joined(engine, native=None)(image, torch.ones(1, 96, 96), "", 0)
    assert told[-1] == (3, 96, 96) and not whole.any()


@pytest.mark.parametrize("settings", [{"native": 64}, {"native": 32}, {"native": 64, "crop": 8}])
def test_colours_are_matched_at_whatever_size_is_painted(settings):
    """An engine that paints everything darker is put right along the edge, also where its picture comes back through another size."""
    image, mask = torch.full((3, 64, 64), 0.5), right_hole()
    darker = lambda image, mask, prompt, seed: torch.full_like(image, 0.1)  # noqa: E731
    plain, matched = (engines.Joined(darker, **settings, blur=0, match=match)(image, mask, "", 0) for match in (False, True))
    assert plain[:, :, 48:].sub(0.1).abs().max() < 1e-3
    assert matched[:, :, 48].sub(0.5).abs().max() < 0.1 and torch.equal(matched[:, :, :48], image[:, :, :48])


def test_repaint_walks_a_short_way_again_too(dish_run, clip, monkeypatch):
    """Fewer steps than --jump: the whole way is walked --resample times."""
    drawer, seen = artist.open_artist(dish_run, clip=clip), []
    engine = engines.Repaint(drawer, How(w=1.0, sampler="ddpm:3"), jump=5, times=2)
    inner = artist.Artist.guided

    def watched(self, prompts, how):
        denoise = inner(self, prompts, how)
        return lambda x, level: seen.append(level) or denoise(x, level)

    monkeypatch.setattr(artist.Artist, "guided", watched)
    engine(photograph(), right_hole(), "米饭", 0)
    assert len(seen) == 6


def test_a_picture_that_grows_beyond_all_bounds(dish_run, clip):
    with pytest.raises(UserError, match="try a smaller guidance scale"):
        artist.open_artist(dish_run, clip=clip).draw(["米饭"], How(w=1e30, sampler="ddim:4"), 0)


def test_a_softened_edge_begins_with_the_colours_next_to_it():
    white = lambda image, mask, prompt, seed: torch.ones_like(image)  # noqa: E731
    image, mask = torch.full((3, 64, 64), -1.0), right_hole()
    hard, soft = (engines.Joined(white, blur=blur, match=False)(image, mask, "", 0)[0, 32] for blur in (0.0, 3.0))
    assert hard[48] == 1 and torch.equal(soft[:48], hard[:48]) and soft[48] == pytest.approx(-0.5) and soft[52] == 1


def write_other(folder: Path) -> str:
    """A Stable Diffusion folder of other widths."""
    write_tiny_pipeline(folder)
    unet = UNet(text_unet(16, 4, (8, 32), text_dim=32))
    save_model(folder, Model(unet, make_schedule("cosine"), "v", False))
    return str(folder)


def test_wrong_models_are_refused(nine, sd, dish_run, control_run, clip, tmp_path, monkeypatch):
    """Each with one sentence."""

    def refused(sentence: str, *settings, **more) -> None:
        with pytest.raises(UserError, match=sentence) as caught:
            engines.open_engine(engines.Settings(*settings, **more))
        assert "\n" not in str(caught.value)

    refused("takes no mask .* --engine repaint", "inpaint", str(sd))
    refused("paint into holes .* --engine inpaint", "repaint", str(nine))
    refused("there is no folder nowhere", "inpaint", "nowhere")
    refused("holds no model", "inpaint", str(tmp_path))
    refused("needs --model", "diffusers")
    refused("has no network", "reflect", str(sd))
    refused("has no ControlNet; leave out", "reflect", None, str(control_run))
    refused("no ControlNet of diffusers: there is no .*config.json", "controlnet", str(sd), str(tmp_path))
    refused("does not fit this model: its block_out_channels", "controlnet", write_other(tmp_path / "wide"), str(control_run))
    refused("unknown engine", "magic")
    refused("0 or more", "reflect", crop=-1)
    refused("holds no pipeline: model_index.json is missing", "diffusers", str(tmp_path))
    refused("no scheduler for the sampler dpmpp_2s; choose a --sampler of ddim", "diffusers", str(nine), how=How(sampler="dpmpp_2s:4"))
    for steps in (0, 1001):
        refused(f"--sampler ddim:{steps} must take 1 to 1000 steps with the model in", "diffusers", str(nine), how=How(sampler=f"ddim:{steps}"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused("not in the hub's cache, and http://127.0.0.1:9 did not answer", "diffusers", "nobody/nothing")
    monkeypatch.setitem(engines.DEFAULTS, "inpaint", tmp_path / "missing")
    refused("missing is missing; give the network .* --engine reflect", "inpaint")
    refused("trained with another CLIP", "repaint", str(dish_run), clip=clip_zh.ChineseClip(tiny_clip(seed=1), "transformers"))
    refused("vectors of 24 numbers, but this CLIP .* gives 16", "repaint", str(dish_run), clip=clip_zh.ChineseClip(tiny_clip(16), "transformers"))

    def changed(source: Path, part: str, **values) -> str:
        folder = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(source, folder)
        config = json.loads((folder / part / "config.json").read_text())
        (folder / part / "config.json").write_text(json.dumps(config | values))
        return str(folder)

    refused("weights of another architecture: .*conv_in.weight", "inpaint", changed(nine, "unet", in_channels=7))
    refused("weights of another architecture", "inpaint", changed(nine, "unet", block_out_channels=[16, 64]))
    refused("weights of another architecture", "inpaint", changed(nine, "vae", latent_channels=8))
    shutil.copytree(sd, tmp_path / "mute")
    shutil.rmtree(tmp_path / "mute" / "text_encoder")
    refused("holds no text encoder", "repaint", str(tmp_path / "mute"))


def test_help_waits_for_nothing_heavy():
    programs = sorted(path.stem for path in (ROOT / "06_inpaint_gif").glob("*.py") if "    run(main, Args)\n" in path.read_text(encoding="utf-8"))
    assert "make_gif" in programs and len(programs) >= 9
    done = run_program("-c", f"import sys; sys.path.insert(0, '06_inpaint_gif'); import {', '.join(programs)}; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def shipped():
    """What draws, and the CLIP that reads for it and says what it sees."""
    reads = clip_zh.load_clip("pretrained", "transformers")
    return artist.open_artist(engines.DEFAULTS["repaint"], clip=reads), reads


def test_shipped_dishes_are_recognised(shipped):
    """A tenth of what evaluate_film.py asks. Guessing is right once in 80."""
    drawer, judge = shipped
    asked = list(dish_names.LEARNED)[::4]
    seen = judge.encode_image(drawer.draw(asked, How(), 0)) @ dish_names.vectors_of(judge, dish_names.LEARNED).T
    named = [list(dish_names.LEARNED)[k] for k in seen.argmax(1)]
    assert sum(a == b for a, b in zip(named, asked, strict=True)) >= 13 and len(asked) == 20


@pytest.mark.parametrize("name", ["inpaint", "controlnet"])
def test_shipped_painters_leave_no_edge(name, shipped):
    """A seam of 1 is invisible, a hard edge 2 and more; and the hole holds what could be there."""
    test = fit_inpaint.test_holes(load_program(INPAINT).Args(), 64, 24)
    found = figures.edges(engines.open_engine(engines.Settings(name, how=How(2.0))), test)
    plain = figures.edges(fill.FILLS["reflect"], test)
    assert found.seam.value < 1.5 and found.exact and found.error.value < plain.error.value


@pytest.mark.parametrize("move", ["up-left", "zoom-out"])
def test_shipped_films_go_where_they_were_told_to(move, shipped):
    picture = shipped[0].draw(["番茄炒蛋"], How(), 0)[0]
    went = figures.went(picture, move, engines.open_engine(engines.Settings("inpaint", how=How(2.0))), "番茄炒蛋", frames=12)
    assert went.right == went.frames == 11 and went.exact


def test_what_is_shipped_stays_small():
    """Whoever clones the course downloads all of it."""
    files = [path for path in (ROOT / "06_inpaint_gif").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= 14e6
    assert sum(path.stat().st_size for path in files if path.suffix in (".gif", ".webp", ".png", ".mp4", ".jpg")) <= 6e6


# ------------------------------------------------------------------------------------------------------------ make_gif.py


def films(dish_run, nine, tmp_path) -> list:
    return ["--dish", dish_run, "--model", nine, "--engine", "inpaint", "--sampler", "ddim:2", "--device", "cpu", "--candidates", 2,
            "--frames", 6]  # fmt: skip


@pytest.mark.parametrize(("suffix", "camera_move"), [(".gif", "zoom-out"), (".webp", "right:1,zoom-out:1"), (".png", "ring"), (".mp4", "up-left")])
def test_a_film(suffix, camera_move, dish_run, nine, tmp_path, command_line):
    out = tmp_path / f"film{suffix}"
    code, said, err = command_line(MAKE, "土鸡蛋炒番茄", "--camera", camera_move, "--out", out, *films(dish_run, nine, tmp_path))
    assert code == 0, err
    assert out.exists() and (tmp_path / "film-sheet.png").exists() and "6 frames of 192 x 192" in said and "seams:" in said and "best effort" not in err
    if suffix != ".mp4":
        with Image.open(out) as picture:
            assert picture.n_frames == 6 and picture.size == (192, 192)
    with Image.open(tmp_path / "film-sheet.png") as sheet:
        assert sheet.width > 128 and sheet.height > 4 * 128


def test_films_are_functions_of_their_seed(dish_run, nine, tmp_path, command_line):
    def made(name, *flags) -> bytes:
        code, _, err = command_line(MAKE, "番茄炒蛋", *films(dish_run, nine, tmp_path), "--enlarge", 1, "--camera", "left:1", "--out", tmp_path / name, *flags)
        assert code == 0, err
        return (tmp_path / name).read_bytes()

    first = made("a.gif")
    assert first == made("b.gif") and first != made("c.gif", "--seed", 1)
    assert made("d.gif", "--loop", "once", "--max-kb", 8) != first and (tmp_path / "d.gif").stat().st_size <= 8_000


@pytest.mark.parametrize("engine", [["--engine", "repaint", "--jump", 1, "--resample", 2], ["--engine", "reflect"], ["--model", "SD", "--controlnet", "RUN"]])
def test_films_without_an_inpainting_network(engine, dish_run, sd, control_run, tmp_path, command_line):
    engine = [{"SD": sd, "RUN": control_run}.get(flag, flag) for flag in engine]
    flags = ["--dish", dish_run, "--sampler", "ddim:2", "--device", "cpu", "--candidates", 1, "--frames", 4, "--enlarge", 1]
    code, out, err = command_line(MAKE, "番茄炒蛋", *flags, *engine, "--camera", "left:1", "--size", 96, "--out", tmp_path / "film.gif")
    assert code == 0 and "enlarged to 96 x 96" in out and "4 frames of 96 x 96" in out, err


def test_a_film_never_takes_the_place_of_the_picture_it_was_made_from(tmp_path, command_line):
    for name, out in (("plate.png", "plate.png"), ("film-sheet.png", "film.gif")):
        Image.new("RGB", (48, 48), "red").save(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        code, _, err = command_line(MAKE, "我的菜", "--image", tmp_path / name, "--engine", "reflect", "--frames", 4, "--out", tmp_path / out)
        assert code == 2 and re.search("would (be written|write) over", err) and (tmp_path / name).read_bytes() == before


def test_as_many_frames_as_it_says_do(tmp_path, command_line, monkeypatch):
    """The number that a refusal names is one that works, keyframes counted."""
    monkeypatch.setattr(filming.reel.check_memory, "__defaults__", (0, 10_000_000))

    def refusal(frames: int) -> str:
        args = load_program(MAKE).Args("米饭", camera="right:6", frames=frames)
        try:
            filming.planned(args, camera.Move.parse(args.camera), 64)
        except UserError as problem:
            return str(problem)
        return ""

    most = int(re.search(r"at most --frames (\d+)", refusal(1000))[1])
    assert refusal(most) == "" and f"at most --frames {most}" in refusal(most + 1)


def test_a_picture_of_ones_own_needs_no_network(tmp_path, command_line):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(tmp_path / "plate.png")
    code, out, err = command_line(MAKE, "我的菜", "--image", tmp_path / "plate.png", "--engine", "reflect", "--camera", "right", "--size", 48, "--frames", 4,
                                  "--out", tmp_path / "film.gif")  # fmt: skip
    assert code == 0 and "4 frames of 144 x 144" in out, err


def test_a_model_goes_through_diffusers(dish_run, sd, tmp_path, command_line, monkeypatch):
    """With --model alone; it is told the English name."""
    told = []
    real = engines.Diffusers.__call__
    monkeypatch.setattr(engines.Diffusers, "__call__", lambda self, image, mask, prompt, seed: told.append(prompt) or real(self, image, mask, prompt, seed))
    flags = ["--dish", dish_run, "--model", sd, "--sampler", "ddim:2", "--device", "cpu", "--candidates", 1, "--frames", 3,
             "--camera", "down:1"]  # fmt: skip
    code, _, err = command_line(MAKE, "番茄炒蛋", *flags, "--out", tmp_path / "film.gif")
    assert code == 0 and told == ["tomato and scrambled eggs"], err
    code, _, err = command_line(MAKE, "番茄炒蛋", *flags, "--size", 36, "--out", tmp_path / "film.gif")
    assert code == 0, err
    code, _, err = command_line(MAKE, "番茄炒蛋", *flags, "--size", 50, "--out", tmp_path / "film.gif")
    assert code == 2 and "--size 50 x 50 must be divisible by 4" in err


def test_what_is_said_of_names(dish_run, nine, tmp_path, command_line):
    """An unknown dish is a best effort; a foreign name says how."""
    flags = [*films(dish_run, nine, tmp_path), "--camera", "left:1", "--out", tmp_path / "film.gif"]
    code, _, err = command_line(MAKE, "炸龘龘", *flags)
    assert code == 0 and "best effort" in err and "never read 龘" in err
    code, _, err = command_line(MAKE, "pizza", *flags)
    assert code == 0 and "is not Chinese" in err
    code, out, err = command_line(MAKE, "peking duck", *flags)
    assert code == 0 and "is read as 北京烤鸭" in err and "北京烤鸭: picture" in out


def test_without_cn_clip_its_installation_is_named(dish_run, nine, tmp_path, command_line, monkeypatch):
    """And the second backend makes the film."""
    monkeypatch.setattr(clip_zh, "installed", lambda: False)
    flags = [*films(dish_run, nine, tmp_path), "--camera", "left:1", "--out", tmp_path / "film.gif"]
    code, _, err = command_line(MAKE, "番茄炒蛋", *flags)
    assert code == 2 and clip_zh.INSTALL in err and "--backend transformers" in err and not (tmp_path / "film.gif").exists()
    code, _, err = command_line(MAKE, "番茄炒蛋", *flags, "--backend", "transformers")
    assert code == 0, err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([" "], "the name of the dish is empty"),
        (["米饭", "--camera", "spin"], "unknown camera move 'spin'; choose one of up, down, left"),
        (["米饭", "--camera", "right,,left"], "unknown camera move ''"),
        (["米饭", "--camera", "ring:3"], "ring needs 4, 8"),
        (["米饭", "--frames", 1], "--frames must be at least 2"),
        (["米饭", "--frames", 10**7], "--frames must be at most 10,000"),
        (["米饭", "--frames", 10_000, "--enlarge", 64], "GiB of memory"),
        (["米饭", "--frames", 0], "--frames must be above 0"),
        (["米饭", "--fps", 0], "--fps must be at least 0.1"),
        (["米饭", "--fps", 500], "--fps must be at most 120"),
        (["米饭", "--size", 8], "at least 16 pixels"),
        (["米饭", "--size", 100000], "--size must be at most 4,096 pixels"),
        (["米饭", "--out", "film.avi"], "end it in .gif"),
        (["米饭", "--share", 0.9], "--share must be at least 0.01 and at most 0.75"),
        (["米饭", "--loop", "round"], "--loop round needs a camera that moves straight to one side"),
        (["米饭", "--sampler", "magic:3"], "cannot read the sampler"),
        (["米饭", "--guidance", -1], "--guidance must be 0 or more, not -1; 1 is off"),
        (["米饭", "--seed", -1], "--seed must be 0 or more"),
        (["米饭", "--image", "nothing.png"], "there is no image file"),
        (["米饭", "--dish", "nowhere"], "nowhere is missing"),
        (["米饭", "--engine", "magic"], "invalid choice|expected one of|magic"),
        (["米饭", "--mask-blur", "-1", "--image", "PLATE"], "--mask-blur"),
        (["米饭", "--engine", "diffusers", "--image", "PLATE"], "needs --model"),
        (["米饭", "--mask-blur", "nan", "--image", "PLATE"], "--mask-blur must be 0 or more, not nan"),
        (["米饭", "--colours", 3, "--image", "PLATE", "--engine", "reflect"], "4 to 256 colours"),
        (["米饭", "--fps", 60, "--image", "PLATE", "--engine", "reflect"], "not show more than 50 frames a second"),
        (["米饭", "--max-kb", "inf", "--image", "PLATE", "--engine", "reflect"], "--max-kb must be at most"),
        (["米饭", "--image", "PLATE", "--engine", "reflect", "--out", "FOLDER"], "is a folder; give --out the name of a file"),
        (["米饭", "--image", "PLATE", "--engine", "reflect", "--out", "PLATE/film.gif"], "plate.png is a file, no folder that can be written to"),
    ],
)
def test_bad_input(flags, sentence, tmp_path, command_line):
    """One sentence, before anything is painted, and nothing written."""
    plate, folder = tmp_path / "plate.png", tmp_path / "folder.gif"
    Image.new("RGB", (64, 64)).save(plate)
    folder.mkdir()
    named = {"PLATE": plate, "FOLDER": folder, "PLATE/film.gif": plate / "film.gif"}
    flags = [named.get(flag, flag) for flag in flags]
    code, out, err = command_line(MAKE, *flags, *([] if "--out" in flags else ["--out", tmp_path / "film.gif"]), "--device", "cpu")
    assert code == 2 and re.search(sentence, err) and "Traceback" not in err, err
    assert not out and sorted(tmp_path.rglob("*")) == [folder, plate]


@pytest.mark.parametrize(("kind", "sentence"), [("nine", "paints into holes, so it cannot draw"), ("pixels", "reads no text, so it cannot draw")])
def test_what_cannot_draw_a_dish_is_refused(kind, sentence, nine, pixel_model, clip_folder, tmp_path, command_line):
    """By whoever is given it as --dish."""
    flags = ["--dish", {"nine": nine, "pixels": pixel_model}[kind], "--clip", clip_folder, "--backend", "transformers", "--device", "cpu"]
    for program, more in ((MAKE, ["米饭", "--engine", "reflect", "--out", tmp_path / "film.gif"]), ("06_inpaint_gif/evaluate_gif.py", ["--engines", "reflect"])):
        code, _, err = command_line(program, *more, *flags)
        assert code == 2 and sentence in err and "Traceback" not in err, err
    assert not list(tmp_path.iterdir())


def test_a_name_of_any_length_names_a_file():
    assert filming.file_name("土鸡蛋 炒番茄/") == "土鸡蛋-炒番茄" and filming.file_name("🍅") == "dish"
    assert set(filming.file_name("番" * 300)) == {"番"} and len(f"{filming.file_name('番' * 300)}-sheet.png.partial".encode()) < 150


@pytest.mark.parametrize(
    ("program", "flags", "sentence"),
    [
        (DISH, ["--caption-dropout", 1], "--caption-dropout must be"),
        (DISH, ["--seed", -1], "--seed must be 0 or more"),
        (DISH, ["--steps", 1, "--minutes", 1], "not both"),
        (DISH, ["--model", "nowhere"], "there is no folder nowhere"),
        (DISH, ["--clip", "nowhere"], "there is no CLIP 'nowhere'"),
        (DISH, ["--sampler", "ddim:5000"], "takes 1 to 1000 steps"),
        (DISH, ["--model", "NINE"], "takes 9 channels and gives 4"),
        (INPAINT, ["--holes", 0], "--holes must be above 0"),
        (INPAINT, ["--seed", -1], "--seed must be 0 or more"),
        (INPAINT, ["--model", "nowhere"], "there is no folder nowhere"),
        (INPAINT, ["--model", "PIXELS"], "is no Stable Diffusion folder"),
        (INPAINT, ["--guidance", -2], "--guidance must be 0 or more"),
        (CONTROL, ["--model", "NINE"], "cannot have a ControlNet: it lacks a U-Net that takes no mask"),
    ],
)
def test_trainings_refuse_what_cannot_be(program, flags, sentence, nine, sd, clip_folder, pixel_model, tmp_path, command_line):
    named = {"NINE": nine, "PIXELS": pixel_model}
    flags = [named.get(flag, flag) for flag in flags]
    given = {"--model": sd, **({"--clip": clip_folder} if program == DISH else {})}
    more = [part for flag, value in given.items() if flag not in flags for part in (flag, value)]
    code, _, err = command_line(program, "--n", 2, *flags, *more, "--out", tmp_path / "run", "--device", "cpu")
    assert code == 2 and sentence in err and "Traceback" not in err, err


# ------------------------------------------------------------------------------------------------------ what is measured


def test_evaluation_tells_all_three(dish_run, nine, tmp_path, command_line):
    code, out, err = command_line("06_inpaint_gif/evaluate_gif.py", "--dish", dish_run, "--inpaint", nine, "--backend", "transformers", "--sampler", "ddim:1",
                                  "--engines", "reflect", "inpaint", "--n", 3, "--frames", 5, "--device", "cpu", "--out", tmp_path / "figures.json")  # fmt: skip
    assert code == 0, err
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"dishes", "holes", "moves"} <= figures.keys() and set(figures["moves"]) == set(camera.MOVES)
    assert all(move["exact"] and move["frames"] == 4 for move in figures["moves"].values())
    assert all(0 <= found["top1"]["value"] <= 1 for found in figures["dishes"].values()) and len(figures["dishes"]) == 6
    assert figures["holes"]["inpaint"]["exact"] and figures["holes"]["reflect"]["error"]["value"] < figures["holes"]["inpaint"]["error"]["value"]
    assert "untouched" in out and "zoom-in" in out


def test_the_judge_of_directions():
    picture = photograph(3)
    for name in ("right", "up-left", "zoom-out", "zoom-in", "ring"):
        found = figures.went(picture, name, fill.FILLS["reflect"], "", frames=13)
        assert found.right >= 11 and found.exact, (name, found)
    assert not figures.as_asked("left", 0, 4, np.array([-1.0, 0.0]), 0.0) and figures.as_asked("left", 0, 4, np.array([1.0, 0.1]), 0.0)
    assert not figures.as_asked("up", 0, 4, np.array([1.0, 1.0]), 0.0)  # half-way between two directions is neither
    assert figures.as_asked("zoom-out", 0, 4, np.zeros(2), -0.02) and not figures.as_asked("zoom-out", 0, 4, np.zeros(2), 0.02)


# ------------------------------------------------------------------------------------------------- control while drawing


def test_regions_and_stages_are_the_plain_thing_where_all_say_the_same(dish_run):
    drawer = artist.open_artist(dish_run)
    how = How(w=3.0, sampler="heun:3")
    plain = drawer.guided(["米饭"], how)
    progress = regions.progress_on(drawer.noise_levels(how))
    shares = regions.weights([regions.Place.parse("right:x"), regions.Place.parse("0.1,0.2,0.5,0.9:y")], 16, 16)
    torch.testing.assert_close(sum(shares), torch.ones(1, 1, 16, 16))
    both = regions.in_regions([(plain, share) for share in shares])
    staged = regions.in_stages([(0.0, both), (0.5, plain)], progress)
    scaled = drawer.guided(["米饭"], dataclasses.replace(how, w=regions.changing(3.0, 3.0, progress)))
    *_, first = drawer.denoised(plain, 1, how, (16, 16), (0,))
    for other in (staged, scaled):
        *_, last = drawer.denoised(other, 1, how, (16, 16), (0,))
        torch.testing.assert_close(last.x, first.x, atol=1e-4, rtol=1e-4)


def test_each_place_is_told_its_own():
    """With denoisers that know one colour each, the picture is made of these colours, each at its place and in its time."""
    path = make_schedule("cosine").noise_levels(10)
    level = next(iter(path.after(3)))

    def colour(value):
        return lambda x, level: Prediction(torch.full_like(x, value), (x - level.alpha * value) / level.sigma)

    x = torch.randn(1, 4, 8, 8)
    rest, right = regions.weights([regions.Place.parse("right：米饭")], 8, 8, soft=0.0)
    guess = regions.in_regions([(colour(1.0), rest), (colour(2.0), right)])(x, level)
    assert (guess.x0[..., :4] == 1).all() and (guess.x0[..., 4:] == 2).all()
    torch.testing.assert_close(level.alpha * guess.x0 + level.sigma * guess.eps, x)
    soft = regions.weights([regions.Place.parse("right:x")], 8, 8, soft=4.0)[1][0, 0, 0]
    assert soft[0] == 0 and soft[-1] == 1 and (soft.diff() >= 0).all() and 0 < soft[3] < soft[4] < 1
    over = regions.weights([regions.Place.parse("left:x"), regions.Place.parse("middle:y")], 8, 8, soft=0.0)
    assert over[2][0, 0, 4, 3] == 1 and over[1][0, 0, 4, 3] == 0 and over[1][0, 0, 0, 0] == 1  # the later lies on the earlier

    progress = regions.progress_on(path)
    shares = [progress(level) for level in list(path)[:-1]]
    assert shares == pytest.approx([k / 10 for k in range(10)])
    staged = regions.in_stages([(0.0, colour(1.0)), (0.3, colour(2.0)), (0.8, colour(3.0))], progress)
    assert [float(staged(x, level).x0.mean()) for level in list(path)[:-1]] == [1.0] * 3 + [2.0] * 5 + [3.0] * 2
    w = regions.changing(8.0, 2.0, progress)
    assert [w(level) for level in list(path)[:-1]] == pytest.approx([8 - 0.6 * k for k in range(10)])


def test_control_from_the_command_line(dish_run, sd, nine, pixel_model, tmp_path, command_line):
    program, common = "06_inpaint_gif/generate.py", ["--n", 2, "--sampler", "ddim:4", "--device", "cpu", "--backend", "transformers", "--out", tmp_path / "rows.png"]
    code, _, err = command_line(program, "番茄炒蛋", "--model", dish_run, "--region", "right:米饭", "--then", "0.5:葱油生菜", "--guidance", "8>2",
                                "--keep", tmp_path / "one.png", *common)  # fmt: skip
    assert code == 0, err
    with Image.open(tmp_path / "one.png") as kept, Image.open(tmp_path / "rows.png") as rows:
        assert kept.size == (64, 64) and rows.size == (2 * 134, 2 * 134)
    code, _, err = command_line(program, "炸龘龘", "--model", dish_run, "--then", "0.5:米饭", *common)
    assert code == 0 and "never read" in err and "炸龘龘 is not one of the" in err and "米饭 is not" not in err
    code, _, err = command_line(program, "a bowl of rice", "--model", sd, "--sweep-then", "a red creature", *common)
    assert code == 0, err
    for flags, sentence in (
        (["--region", "米饭"], "cannot read the region '米饭'"),
        (["--region", "corner:米饭"], "is none of left, right"),
        (["--region", "0,0,2,1:米饭"], "is not within the picture"),
        (["--then", "米饭"], "cannot read the stage"),
        (["--then", "1.5:米饭"], "above 0 and below 1"),
        (["--then", "0.5:米饭", "0.5:汤"], "begin at the same share"),
        (["--guidance", "much"], "cannot read the guidance"),
        (["--guidance", "5>3>1"], "one scale or two"),
        (["--guidance", "-1"], "the guidance scale must be 0 or more and finite"),
        (["--model", nine], "paints into holes"),
        (["--model", pixel_model], "reads no text"),
        (["--soft", "nan"], "--soft must be 0 or more"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--keep", tmp_path / "one.avi"], "cannot tell the kind of picture from the name one.avi"),
    ):
        (tmp_path / "rows.png").unlink(missing_ok=True)
        code, _, err = command_line(program, "番茄炒蛋", *([] if "--model" in flags else ["--model", dish_run]), *flags, *common)
        assert code == 2 and sentence in err and "Traceback" not in err and not (tmp_path / "rows.png").exists(), err
