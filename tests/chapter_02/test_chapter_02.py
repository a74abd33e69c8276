"""Chapter 2's programs: training a U-Net and its text encoder together, and sampling from them."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from cfg_pokemon import ablations, evaluation, memorization
from cfg_pokemon.augmentation import augment
from cfg_pokemon.caption_sensitivity import BANDS, caption_losses
from cfg_pokemon.trainer import TextLoss
from common.data import Images, load
from common.diffusion.denoiser import Denoiser
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import make_schedule
from common.errors import UserError
from common.models import pipeline as pipeline_module
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.text.conditional import ConditionalUNet
from common.models.text.encoders import CLIPTextEncoder, save_text, small_text
from common.models.text_to_image_folder import open_pixel_pipeline, save_pipeline
from common.models.unet import UNet
from common.models.unet_config import text_unet
from common.random import BatchRandom
from common.training.text_conditioning import Captioned, empty_text, make_network, make_text_encoder
from helpers.programs import run_main

TRAIN, SAMPLE, ABLATIONS = (f"02_cfg_pokemon/{name}.py" for name in ("train", "sample", "ablations"))
TINY = [
    "--n",
    24,
    "--size",
    16,
    "--channels",
    8,
    16,
    "--text-dim",
    32,
    "--batch-size",
    8,
    "--device",
    "cpu",
    "--precision",
    "no",
    "--sampler",
    "ddim:2",
    "--sample-every",
    100,
]
UNET = "model/unet/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "model/text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of six steps. Read only."""
    folder = tmp_path_factory.mktemp("chapter_02") / "run"
    run_main(TRAIN, *TINY, "--steps", 6, "--save-every", 3, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(run):
    return open_pixel_pipeline(run)


def tiny_pipeline(seed: int = 0):
    """A network that answers something, without training."""
    torch.manual_seed(seed)
    encoder = small_text(["a red creature", "a blue creature with wings"], dim=32, heads=1)
    return TextToImagePipeline(
        UNet(text_unet(16, 3, (8, 16), 32)).eval(), make_schedule("cosine"), "v", encoder.eval(), clip_x0=True
    )


# ------------------------------------------------------------------------------------------------------------ training


def test_a_run_leaves_everything(run):
    for name in (
        "config.json",
        "metrics.csv",
        "samples.png",
        "loss.png",
        UNET,
        TEXT_ENCODER,
        "model/tokenizer/vocab.json",
    ):
        assert (run / name).exists(), name
    saved = json.loads((run / "config.json").read_text())
    assert saved["data"] == "creatures" and saved["channels"] == [8, 16] and saved["caption_dropout"] == 0.1
    assert Image.open(run / "samples.png").width > 8 * 16  # a column for each of the prompts, in two rows


def test_both_networks_learn(run):
    """The text encoder is trained along: neither is what it was."""
    images = load("creatures", 16, n=24)
    torch.manual_seed(0)
    encoder = make_text_encoder(images.captions, 32)
    net = make_network(text_unet(16, 3, (8, 16), 32), encoder)
    for prefix, file in (("unet.", UNET), ("text_encoder.transformer.", TEXT_ENCODER)):
        before = {key.removeprefix(prefix): value for key, value in net.state_dict().items() if key.startswith(prefix)}
        after = {key.removeprefix("text_model."): value for key, value in load_file(run / file).items()}
        assert after.keys() == before.keys()
        assert sum(float((after[key] - before[key]).abs().max()) > 0 for key in before) > 0.9 * len(before)


def test_a_resumed_run_is_the_same_run(run, tmp_path):
    """Thrown back to its checkpoint of step 3, it ends with the same bytes, reader and tokenizer too."""
    again = tmp_path / "run"
    shutil.copytree(run, again)
    (again / "checkpoints" / "step-00000006.pt").unlink()
    shutil.rmtree(again / "model")
    run_main(TRAIN, "--resume", again, "--device", "cpu")
    for name in (UNET, TEXT_ENCODER, "model/tokenizer/vocab.json", "model/tokenizer/merges.txt"):
        assert (again / name).read_bytes() == (run / name).read_bytes(), name


def test_captions_are_dropped_and_only_then_are_empty():
    """As many as --caption-dropout says; the words of the others reach the network as they are."""
    captions = [f"a red creature with {n} wings" for n in ("no", "two", "bat")] * 200
    encoder = small_text(captions, dim=32, heads=1)
    ids, empty, seen = encoder.tokenizer(captions), encoder.tokenizer([""])[0], []

    def net(x, t, text):
        seen.append(text)
        return x

    batch = {"image": torch.zeros(600, 3, 4, 4), "text": ids}
    TextLoss(make_schedule("cosine"), "v", empty, caption_dropout=0.25)(net, batch, BatchRandom(0, 0))
    dropped = (seen[0] == empty).all(1)
    assert 0.2 < float(dropped.float().mean()) < 0.3
    assert torch.equal(seen[0][~dropped], ids[~dropped])


def test_a_frozen_clip_can_read(tmp_path, monkeypatch):
    """--text FOLDER: its weights stay as they are, and the model folder holds it."""
    monkeypatch.chdir(tmp_path)  # the cache of embeddings goes below runs/
    encoder = small_text(load("creatures", 16, n=24).captions, dim=32, heads=1)
    save_text(tmp_path / "clip", encoder)
    run_main(TRAIN, *TINY, "--steps", 2, "--text", tmp_path / "clip", "--out", tmp_path / "run")
    kept = CLIPTextEncoder(str(tmp_path / "run" / "model"))
    torch.testing.assert_close(
        kept(["a red creature"])[0, :40], CLIPTextEncoder(str(tmp_path / "clip"))(["a red creature"])[0, :40]
    )
    assert open_pixel_pipeline(tmp_path / "run").txt2img(
        ["a red creature"], SamplingConfig(sampler="ddim:2")
    ).shape == (1, 3, 16, 16)
    assert list((tmp_path / "runs" / "02_cfg_pokemon" / "text_cache").glob("text-*.safetensors"))


def test_a_captioned_folder_and_what_is_wrong_with_it(tmp_path, command_line):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"picture {i}")
    flags = ["--data", folder, *TINY[2:], "--steps", 2]  # TINY begins with --n 24, and there are fewer
    code, _, err = command_line(TRAIN, *flags, "--out", tmp_path / "a")
    assert code == 0, err
    (folder / "03.txt").unlink()
    code, _, err = command_line(TRAIN, *flags, "--out", tmp_path / "b")
    assert code == 2 and "03.png" in err and "Traceback" not in err
    for text in folder.glob("*.txt"):
        text.unlink()
    code, _, err = command_line(TRAIN, *flags, "--out", tmp_path / "b")
    assert code == 2 and "caption" in err and not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--caption-dropout", 1], "--caption-dropout"),
        (["--prompts"], "--prompts needs"),
        (["--guidance", -1], "--guidance"),
        (["--steps", 4, "--minutes", 1], "not both"),
        (["--n", 0], "--n"),
        (["--data", "nothing"], "unknown data"),
        (["--text", "./nowhere"], "there is no folder"),
        (["--prediction", "magic"], "magic"),
        (["--language", "zh", "--data", "digits"], "caption"),
        (["--data", "digits"], "caption"),
    ],
)
def test_what_training_refuses(flags, says, tmp_path, command_line):
    code, _, err = command_line(TRAIN, *TINY, *flags, "--out", tmp_path / "run")
    assert code == 2 and says in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------- drawing


def test_without_guidance_the_pipeline_is_the_plain_denoiser():
    pipeline = tiny_pipeline()
    text = pipeline.text_encoder(["a red creature"])
    denoise = Denoiser(pipeline.unet, "v", clip_x0=True, text=text)
    *_, last = Sampler.parse("ddim:3").run(denoise, pipeline.schedule, (1, 3, 16, 16), 5, 0)
    torch.testing.assert_close(
        pipeline.txt2img(["a red creature"], SamplingConfig(1, sampler="ddim:3", seed=5)), last.x
    )


def test_pictures_follow_the_words_the_scale_and_the_seed():
    pipeline, config = tiny_pipeline(), SamplingConfig(8, sampler="ddim:2")
    same = pipeline.txt2img(["a red creature"], config)
    assert torch.equal(same, pipeline.txt2img(["a red creature"], config))
    changes = (
        {"guidance_scale": 2},
        {"seed": 1},
        {"negative_prompt": "wings"},
        {"rescale": 0.7},
        {"clip_x0": "dynamic"},
        {"interval": (0.5, 2.0)},
    )
    others = [pipeline.txt2img(["a blue creature"], config)]
    others += [pipeline.txt2img(["a red creature"], dataclasses.replace(config, **change)) for change in changes]
    assert all(float((other - same).abs().max()) > 1e-4 for other in others)


def test_picture_i_begins_with_the_same_noise_whatever_stands_beside_it(monkeypatch):
    monkeypatch.setattr(pipeline_module, "BATCH_SIZE", 2)
    # w = 0 ignores the prompts: the noise alone decides
    pipeline, config = (tiny_pipeline(), SamplingConfig(0, sampler="ddim:1"))
    a, b = (
        pipeline.txt2img(["a red creature"] * 4, config),
        pipeline.txt2img(["x", "y", "z", "a blue creature"], config),
    )
    torch.testing.assert_close(a, b)
    assert float((a[0] - a[2]).abs().max()) > 1e-4  # and every batch has its own


def test_the_folder_is_that_of_diffusers_and_transformers(run, pipeline):
    """The same answer from the same files by our modules and by theirs."""
    unet = UNet2DConditionModel.from_pretrained(run / "model" / "unet")
    text_encoder = transformers.CLIPTextModel.from_pretrained(run / "model" / "text_encoder")
    tokens = transformers.CLIPTokenizer.from_pretrained(run / "model" / "tokenizer")
    prompts, x, t = ["a red creature", "一只蓝色的小怪兽"], torch.randn(2, 3, 16, 16), torch.tensor([10.0, 600.0])
    ids = tokens(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = unet(x, t, text_encoder(ids).last_hidden_state).sample
        ours = pipeline.unet(x, t, text=pipeline.text_encoder(prompts))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_sample_draws_rows_and_says_what_they_are(run, tmp_path, command_line):
    flags = ["--model", run, "--n", 3, "--sampler", "ddim:2", "--out", tmp_path / "a.png"]
    code, said, err = command_line(SAMPLE, "a red creature", "", "a zebra", "--sweep", "1,4", *flags, "--gif")
    assert code == 0, err
    assert said.count("row ") == 6 and "row 4: w = 4  (no words)" in said and "18 pictures" in said
    assert "the prompt is empty" in err and "unknown words: zebra" in err
    assert Image.open(tmp_path / "a.gif").n_frames > 1
    first = (tmp_path / "a.png").read_bytes()
    command_line(SAMPLE, "a red creature", "", "a zebra", "--sweep", "1,4", *flags)
    assert (tmp_path / "a.png").read_bytes() == first
    code, _, err = command_line(SAMPLE, "red " * 80, *flags)
    assert code == 0 and "is cut before" in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "give a prompt"),
        (["a", "--guidance", -1], "guidance"),
        (["a", "--sweep", "1;2"], "--sweep"),
        (["a", "--n", 0], "--n"),
        (["a", "--sampler", "magic:3"], "magic"),
        (["a", "--rescale", 2], "rescale"),
        (["a", "--interval", 2, 1], "interval"),
        (["a", "--model", "nowhere"], "there is no folder"),
    ],
)
def test_what_sampling_refuses(flags, says, run, tmp_path, command_line):
    model = [] if "--model" in flags else ["--model", run]
    code, _, err = command_line(SAMPLE, *flags, *model, "--out", tmp_path / "a.png")
    assert code == 2 and says in err and "Traceback" not in err and not (tmp_path / "a.png").exists()


def test_models_that_do_not_fit(run, tmp_path, trained_run):
    with pytest.raises(UserError, match="not conditioned on text"):
        open_pixel_pipeline(trained_run)
    save_pipeline(tmp_path, tiny_pipeline())
    save_text(tmp_path, small_text(["a red creature"], dim=64, heads=2))
    with pytest.raises(UserError, match="width 64"):
        open_pixel_pipeline(tmp_path)


# ------------------------------------------------------------------------------------------------------------- --start


def test_a_training_begins_with_the_weights_of_another(run, tmp_path):
    """At another size, and with its tokenizer, though other captions would have made another;
    its text encoder learns slowly.
    """
    run_main(
        TRAIN,
        *TINY,
        "--size",
        24,
        "--n",
        5,
        "--seed",
        1,
        "--start",
        run,
        "--steps",
        1,
        "--lr",
        1e-6,
        "--out",
        tmp_path / "a",
    )
    for name in (UNET, TEXT_ENCODER):
        old, new = load_file(run / name), load_file(tmp_path / "a" / name)
        assert old.keys() == new.keys() and all(float((old[key] - new[key]).abs().max()) < 1e-5 for key in old)
    assert (tmp_path / "a/model/tokenizer/vocab.json").read_bytes() == (
        run / "model/tokenizer/vocab.json"
    ).read_bytes()
    assert open_pixel_pipeline(tmp_path / "a").size == 24


def test_a_run_that_was_started_from_another_continues_without_it(run, tmp_path):
    """With the tokens that it took over, though its own captions would make others."""
    other = shutil.copytree(run, tmp_path / "other")
    run_main(TRAIN, *TINY, "--n", 5, "--start", other, "--steps", 2, "--out", tmp_path / "a")
    shutil.rmtree(other)
    run_main(TRAIN, "--resume", tmp_path / "a", "--steps", 3, "--device", "cpu")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--channels", 8, 24], "another build .channels = "),
        (["--layers", 2], "layers = 1 against 2"),
        (["--text-dim", 64], None),
    ],
)
def test_a_start_of_another_build(run, tmp_path, command_line, flags, words):
    """Named, and nothing is left behind; but --text-dim follows the text encoder that is taken over."""
    code, _, err = command_line(TRAIN, *TINY, *flags, "--start", run, "--steps", 1, "--out", tmp_path / "a")
    if words is None:
        assert code == 0
    else:
        assert code == 2 and len(err.strip().splitlines()) == 1
        assert re.search(words, err)


def test_a_start_says_how_wide_the_network_is(run, tmp_path):
    i = TINY.index("--channels")
    run_main(TRAIN, *TINY[:i], *TINY[i + 3 :], "--start", run, "--steps", 1, "--out", tmp_path / "a")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["channels"] == [8, 16]


def test_a_start_that_is_not_there(tmp_path, command_line):
    code, _, err = command_line(TRAIN, *TINY, "--start", tmp_path / "nothing", "--out", tmp_path / "a")
    assert code == 2 and "nothing" in err


# ------------------------------------------------------------------------------------------------ caption sensitivity


class CaptionsDecide(torch.nn.Module):
    """Knows the picture of every caption, here one number for each first token:
    the perfect network where words decide everything.
    """

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))  # its device is the network's

    def forward(self, x, t, text):
        return text[:, :1, :1, None].expand_as(x)


def test_the_loss_of_right_and_wrong_captions():
    """With the right caption, such a network has no error; with another's, the difference of the two images."""
    values = {"dark": -1.0, "light": 1.0, "": 0.0}
    pipeline = TextToImagePipeline(
        CaptionsDecide(),
        make_schedule("cosine"),
        "x0",
        lambda texts: torch.tensor([[[values[text]]] for text in texts]),
    )
    images = Images(
        "two",
        torch.tensor([0, 255, 0, 255], dtype=torch.uint8)[:, None, None, None].expand(4, 3, 8, 8),
        captions=("dark", "light") * 2,
    )
    found = caption_losses(pipeline, images)
    assert set(found) == {"right", "nothing", "wrong"} and all(len(values) == len(BANDS) for values in found.values())
    for name, expected in (("right", 0.0), ("nothing", 1.0), ("wrong", 4.0)):
        assert found[name] == pytest.approx([expected] * len(BANDS), abs=1e-9), name


def test_it_prints_a_line_for_each_band(run, command_line):
    code, out, _ = command_line("02_cfg_pokemon/caption_sensitivity.py", "--model", run, "--n", 3, "--device", "cpu")
    assert code == 0 and "0.65 to 0.95" in out
    code, _, err = command_line("02_cfg_pokemon/caption_sensitivity.py", "--model", run, "--n", 1, "--device", "cpu")
    assert code == 2 and "at least 2" in err


# --------------------------------------------------------------------------------------------- augmentation, ablations


def test_augmentation():
    x0, u = load("creatures", 16, n=4).batch(torch.arange(4))["image"], torch.tensor([0.0, 0.25, 0.5, 0.99])
    assert torch.equal(augment("none", x0, u), x0)
    mirrored = augment("mirror", x0, u)
    assert torch.equal(mirrored[:2], x0[:2].flip(-1)) and torch.equal(mirrored[2:], x0[2:])
    light = ((augment("jitter", x0, u) + 1) / (x0 + 1).clamp(min=1e-6))[x0 > -0.5]
    assert light.min() >= 0.69 and light.max() <= 1.31
    torch.testing.assert_close(augment("jitter", x0, u)[2], x0[2])  # u = 1/2: as it was
    white = torch.ones(3, 3, 32, 32)
    turned = augment("turn", white, torch.tensor([0.0, 0.5, 0.99]))
    torch.testing.assert_close(turned[1], white[1])
    for k in (0, 2):
        assert turned[k, :, 0, 0].max() < -0.9 and turned[k, :, 8:-8, 8:-8].min() > 0.99  # black corners around white
    with pytest.raises(UserError, match="none, mirror, jitter, turn"):
        augment("shake", x0, u)


@pytest.mark.parametrize("kind", ["mirror", "jitter", "turn"])
def test_training_augments_the_images_and_nothing_else(kind):
    """The loss of augmented images is that of a batch which was augmented beforehand."""
    images, schedule = load("creatures", 16, n=8), make_schedule("cosine")
    pipeline = tiny_pipeline()
    net, empty = ConditionalUNet(pipeline.unet, pipeline.text_encoder), empty_text(pipeline.text_encoder)
    batch = Captioned(images, images.captions, pipeline.text_encoder).batch(torch.arange(8))
    draw = BatchRandom(0, 1)
    draw.stratified(8), draw.randn(batch["image"].shape)
    changed = batch | {"image": augment(kind, batch["image"], draw.rand(8))}
    plain, augmented = (TextLoss(schedule, "v", empty, 0.0, augmentation=name) for name in ("none", kind))
    got, expected = augmented(net, batch, BatchRandom(0, 1)), plain(net, changed, BatchRandom(0, 1))
    torch.testing.assert_close(got[0], expected[0])
    assert not torch.allclose(got[0], plain(net, batch, BatchRandom(0, 1))[0])


@pytest.mark.parametrize(("study", "rows"), [("brightness", 2 * 2 + 1), ("size", 2), ("epochs", 2)])
def test_a_study_continues_where_it_stopped(study, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "SETTINGS", ablations.SETTINGS | {"channels": (8, 16), "n": 24})
    monkeypatch.setattr(ablations, "SCALES", dict.fromkeys(ablations.SCALES, (1.0, 2.0)))
    monkeypatch.setattr(ablations, "REMEDIES", {"rescale 0.7": {"rescale": 0.7}})
    monkeypatch.setattr(
        ablations,
        "STUDIES",
        {
            "brightness": {"as it is": {}, "turned": {"augment": "turn"}},
            "size": {"8 images": {"n": 8}},
            "epochs": {"2 epochs": {"n": 32, "epochs": 2}},
        },
    )
    monkeypatch.setattr(memorization, "TEST", 20)
    flags = [study, "--steps", 2, "--n", 3, "--out", tmp_path, "--device", "cpu"]
    run_main(ABLATIONS, *flags)
    table = tmp_path / f"{study}.csv"
    first = table.read_text()
    monkeypatch.setattr(ablations, "train_model", None)  # everything is trained and drawn already
    monkeypatch.setattr(evaluation, "draw", None)
    run_main(ABLATIONS, *flags)
    assert table.read_text() == first and table.with_suffix(".png").stat().st_size > 5000
    assert len(first.splitlines()) == 1 + rows


def test_a_study_of_epochs_counts_them():
    study = ablations.AblationFlags("epochs", device="cpu")
    flags = ablations.training_flags(study, {"n": 100, "epochs": 300}, seed=1)
    assert flags["steps"] == 1875 and flags["n"] == 100 and "epochs" not in flags  # 300 * 100 / 16
