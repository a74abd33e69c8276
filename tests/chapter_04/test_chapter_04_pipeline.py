"""Chapter 4's small Stable Diffusion: training it, drawing with it, and its folder,
which diffusers opens as we open theirs.
"""

import csv
import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from diffusers import AutoencoderKL as TheirVAE
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from common.data import load
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import add_noise, make_schedule
from common.errors import UserError
from common.evaluate.creature_classifier import load_creature_classifier
from common.evaluate.prompt_accuracy import chance_accuracy, make_prompts, measure_accuracy
from common.io.pixels import to_float
from common.models import pipeline as pipeline_module
from common.models.diffusers_configs import unet_from_diffusers, vae_from_diffusers
from common.models.model_folder import load_vae, save_vae
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.text.encoders import CLIPTextEncoder, save_text, small_text
from common.models.text.transformer import TextTransformer, text_from_transformers
from common.models.text_to_image_folder import FILES, open_latent_pipeline, save_pipeline
from common.models.unet import UNet
from common.models.unet_config import text_unet
from common.models.vae import AutoencoderKL, small_vae
from common.random import BatchRandom, Noise
from common.training.text_conditioning import Captioned, empty_text, make_network, make_text_encoder
from helpers.programs import ROOT, load_program, run_main
from latent_sd import concat_dataset, evaluation, latent_dataset
from latent_sd.flags import PROMPTS as DEFAULT_PROMPTS
from latent_sd.unet_trainer import LatentTextLoss, load_captioned

TRAIN, SAMPLE, EVALUATE = (f"04_latent_sd/{name}.py" for name in ("train", "sample", "evaluate"))
SHIPPED = ROOT / "04_latent_sd" / "pretrained"
SIZES = {128: ".", 64: "64x64"}  # pixels a side of the shipped models, and their folders
TINY = [
    "--n",
    12,
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
    "--prompts",
    "a red creature",
    "番茄炒蛋",
]
UNET, TEXT_ENCODER, VAE = (
    f"model/{part}.safetensors"
    for part in ("unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model")
)
# twice: what occurs once gets no token
CAPTIONS = 2 * ["a red creature with wings", "a blue creature without wings", "a plate of fish", "一盘番茄炒蛋，木桌"]


def tiny_vae(size: int = 16, channels: tuple[int, ...] = (8, 16), scale: float = 1.7) -> AutoencoderKL:
    """One that was never trained: f = 2, latents 4 x 8 x 8."""
    torch.manual_seed(0)
    return AutoencoderKL(dataclasses.replace(small_vae(size, 3, channels), scaling_factor=scale)).eval()


def tiny_pipeline(schedule: str = "cosine", prediction: str = "v", **changes):
    """Networks that answer something, without training."""
    vae = tiny_vae()
    encoder = small_text(CAPTIONS, dim=32, heads=1, length=24)
    unet = UNet(text_unet(8, 4, (8, 16), 32)).eval()
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "attn2" in name:
                weight *= 3  # an untrained network hardly listens
    parts = {
        "vae": vae,
        "unet": unet,
        "schedule": make_schedule(schedule),
        "prediction": prediction,
        "text_encoder": encoder.eval(),
    }
    return TextToImagePipeline(**parts | changes)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder") / "vae"
    save_vae(folder, tiny_vae())
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory, vae_folder, cache) -> Path:
    """A run of six steps on creatures and dishes. Read only."""
    folder = tmp_path_factory.mktemp("chapter_04") / "run"
    run_main(
        TRAIN,
        *TINY,
        "--vae",
        vae_folder,
        "--cache",
        cache,
        "--steps",
        6,
        "--save-every",
        3,
        "--sample-every",
        3,
        "--out",
        folder,
    )
    return folder


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------------ training


def test_a_run_leaves_everything(run, cache, vae_folder):
    for name in (
        "config.json",
        "metrics.csv",
        "samples/step-000003.png",
        "samples.png",
        "loss.png",
        "model/model_index.json",
        UNET,
        TEXT_ENCODER,
        VAE,
        "model/tokenizer/vocab.json",
        "model/scheduler/scheduler_config.json",
    ):
        assert (run / name).exists(), name
    saved = json.loads((run / "config.json").read_text())
    assert (
        saved["data"] == ["creatures", "dishes"] and saved["channels"] == [8, 16] and saved["caption_dropout"] == 0.1
    )
    assert len(rows_of(run / "metrics.csv")) == 6
    assert len(list(cache.glob("latents-*.npy"))) == 1
    before, after = (
        load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (vae_folder, run / "model" / "vae")
    )
    assert all(torch.equal(before[key], after[key]) for key in before)  # the autoencoder stays as it was
    assert load_vae(run).cfg.scaling_factor == 1.7


def test_captions_in_both_languages_belong_to_their_pictures(run):
    """After the sets were joined; and the tokenizer knows both."""
    settings = {"size": 16, "data_dir": Path("data"), "n": 4}
    images = load_captioned(("creatures", "dishes"), **settings)
    assert (
        images.captions == load("creatures", 16, n=4).captions + load("dishes", 16, n=4).captions and len(images) == 8
    )
    assert [caption.isascii() for caption in images.captions] == [True, False] * 4
    chinese = load_captioned(("creatures", "dishes"), **settings, language="zh").captions
    assert not any(caption.isascii() for caption in chinese) and chinese[1] == images.captions[1]
    assert open_latent_pipeline(run).text_encoder.tokenizer.unknown("creature 怪 盘") == []


def test_both_networks_learn(run, vae_folder):
    images = load_captioned(("creatures", "dishes"), 16, Path("data"), n=12)
    torch.manual_seed(0)
    encoder = make_text_encoder(images.captions, 32)
    net = make_network(text_unet(8, 4, (8, 16), 32), encoder)
    for prefix, file in (("unet.", UNET), ("text_encoder.transformer.", TEXT_ENCODER)):
        before = {key.removeprefix(prefix): value for key, value in net.state_dict().items() if key.startswith(prefix)}
        after = {key.removeprefix("text_model."): value for key, value in load_file(run / file).items()}
        assert after.keys() == before.keys()
        assert sum(float((after[key] - before[key]).abs().max()) > 0 for key in before) > 0.9 * len(before)


def test_a_resumed_run_is_the_same_run(run, tmp_path):
    """Thrown back to its checkpoint of step 3, it ends with the same bytes;
    the autoencoder it needs is its own copy.
    """
    again = tmp_path / "run"
    shutil.copytree(run, again)
    (again / "checkpoints" / "step-00000006.pt").unlink()
    for part in ("unet", "text_encoder", "tokenizer"):
        shutil.rmtree(again / "model" / part)
    settings = json.loads((again / "config.json").read_text())
    (again / "config.json").write_text(json.dumps(settings | {"vae": "nowhere"}))
    run_main(TRAIN, "--resume", again, "--device", "cpu")
    for name in (UNET, TEXT_ENCODER, "model/tokenizer/vocab.json", "model/tokenizer/merges.txt"):
        assert (again / name).read_bytes() == (run / name).read_bytes(), name


@pytest.mark.parametrize("what", ["weights", "scaling factor"])
def test_a_run_does_not_go_on_with_another_autoencoder(what, run, cache, tmp_path):
    """And does not encode a thing before it says so."""
    again = tmp_path / "run"
    shutil.copytree(run, again)
    other = tiny_vae(scale=1.7 if what == "weights" else 2.0)
    if what == "weights":
        with torch.no_grad():
            other.quant_conv.bias[0] += 1e-3
    save_vae(again / "start" / "vae", other)
    before = set(cache.iterdir())
    with pytest.raises(UserError, match="latents of another autoencoder"):
        run_main(TRAIN, "--resume", again, "--steps", 8, "--device", "cpu")
    assert set(cache.iterdir()) == before


def test_encoding_on_the_fly_trains_alike(run, vae_folder, cache, tmp_path):
    """The file rounds to half precision, and no more than that is the difference;
    also when a worker goes on with a resumed run.
    """
    flags = [
        *TINY,
        "--vae",
        vae_folder,
        "--cache",
        tmp_path / "none",
        "--latents",
        "on-the-fly",
        "--workers",
        1,
        "--save-every",
        3,
    ]
    run_main(TRAIN, *flags, "--steps", 6, "--out", tmp_path / "run")
    assert not (tmp_path / "none").exists()
    losses = [[float(row["loss"]) for row in rows_of(folder / "metrics.csv")] for folder in (run, tmp_path / "run")]
    np.testing.assert_allclose(*losses, rtol=2e-3)
    weights = (tmp_path / "run" / UNET).read_bytes()
    (tmp_path / "run" / "checkpoints" / "step-00000006.pt").unlink()
    run_main(TRAIN, "--resume", tmp_path / "run", "--device", "cpu")
    assert (tmp_path / "run" / UNET).read_bytes() == weights


def test_the_loss_shows_the_network_scaled_latents_and_drops_captions(vae_folder, cache):
    """What the network is shown is alpha z + sigma eps of z times the scaling factor;
    a share of --caption-dropout gets the empty caption.
    """
    seen: dict[str, torch.Tensor] = {}
    images, vae = load("creatures", 16, n=300), load_vae(vae_folder)
    encoder, schedule = small_text(images.captions, dim=32, heads=1), make_schedule("cosine")
    data = Captioned(latent_dataset.cached_latents(vae, images, cache), images.captions, encoder)
    loss = LatentTextLoss(schedule, "eps", empty_text(encoder), 0.25, vae, images)

    def net(x, t, text):
        seen.update(x=x, text=text)
        return torch.zeros_like(x)

    batch = data.batch(torch.arange(300))
    with torch.no_grad():
        z = vae.encode(images.batch(torch.arange(300))["image"])
    errors, draw = loss(net, batch, BatchRandom(0, 0)), BatchRandom(0, 0)
    z0 = vae.scale(z.sample(draw.randn(z.mean.shape)))
    u, eps = draw.stratified(300), draw.randn(z0.shape)
    torch.testing.assert_close(seen["x"], add_noise(z0, eps, schedule.sample_levels(u).like(z0)), rtol=1e-2, atol=5e-3)
    torch.testing.assert_close(errors.per_sample, eps.square().flatten(1).mean(1))
    dropped = (seen["text"] == encoder.tokenizer([""])[0]).all(1)
    assert 0.18 < float(dropped.float().mean()) < 0.32 and torch.equal(seen["text"][~dropped], batch["text"][~dropped])


def test_a_frozen_clip_can_read(vae_folder, cache, tmp_path):
    """--text FOLDER: its weights stay as they are, the folder holds it, and diffusers opens it."""
    save_text(tmp_path / "clip", small_text(CAPTIONS, dim=32, heads=1, length=24))
    run_main(
        TRAIN,
        *TINY,
        "--vae",
        vae_folder,
        "--cache",
        tmp_path / "cache",
        "--steps",
        2,
        "--text",
        tmp_path / "clip",
        "--out",
        tmp_path / "run",
    )
    before, after = CLIPTextEncoder(str(tmp_path / "clip")), CLIPTextEncoder(str(tmp_path / "run" / "model"))
    assert torch.equal(before(CAPTIONS), after(CAPTIONS))
    assert list((tmp_path / "cache").glob("text-*.safetensors"))
    ours = open_latent_pipeline(tmp_path / "run").txt2img(CAPTIONS[:1], SamplingConfig(sampler="ddim:2"))
    assert_same_picture(
        ours,
        ask(
            StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "model"), CAPTIONS[:1], 2, "", latents=noise(1)
        ),
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--caption-dropout", 1], "--caption-dropout"),
        (["--guidance", -1], "--guidance"),
        (["--prompts"], "--prompts needs"),
        (["--lr", "inf"], "--lr must be"),
        (["--steps", 4, "--minutes", 1], "not both"),
        (["--n", 0], "--n"),
        (["--workers", -1], "--workers"),
        (["--data", "nothing"], "unknown data"),
        (["--data", "digits"], "digits has no captions"),
        (["--data", "creatures", "digits"], "digits has no captions"),
        (["--vae", "nowhere"], "there is no folder nowhere"),
        (["--size", 17], "multiples of 2"),
        (["--channels", 8, 8, 8, 8], "at least 16 pixels"),
        (["--text", "./nowhere"], "there is no folder"),
        (["--prediction", "magic"], "magic"),
        (["--schedule", "flow", "--prediction", "flow"], "no place for the schedule 'flow'"),
        (["--schedule", "linear_zero_snr", "--prediction", "eps"], "zero_snr"),
        (["--sampler", "ddim:0"], "1 to 1000"),
    ],
)
def test_what_training_refuses(flags, says, vae_folder, cache, tmp_path, command_line):
    autoencoder = [] if "--vae" in flags else ["--vae", vae_folder]
    code, _, err = command_line(TRAIN, *TINY, *autoencoder, "--cache", cache, *flags, "--out", tmp_path / "run")
    assert code == 2 and says in err and err.startswith("error: ") and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_truncated_cache_and_a_folder_without_an_autoencoder(run, vae_folder, tmp_path, command_line):
    flags = [*TINY, "--cache", tmp_path, "--steps", 1, "--out", tmp_path / "run"]
    images = load_captioned(("creatures", "dishes"), 16, Path("data"), n=12)
    path = latent_dataset.cached_latents(load_vae(vae_folder), images, tmp_path).path
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = command_line(TRAIN, *flags, "--vae", vae_folder)
    assert code == 2 and path.name in err and "delete it, and it will be made again" in err
    code, _, err = command_line(TRAIN, *flags, "--vae", run / "samples")
    assert code == 2 and "holds no autoencoder" in err
    code, _, err = command_line(TRAIN, *TINY, "--vae", vae_folder, "--out", run)
    assert code == 2 and "already holds a run" in err and not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------- --start


def test_a_training_begins_with_the_weights_of_another(run, cache, tmp_path):
    """The autoencoder of that run, too, and its tokenizer, though other captions would have made another."""
    run_main(
        TRAIN, *TINY, "--n", 5, "--start", run, "--cache", cache, "--steps", 1, "--lr", 1e-6, "--out", tmp_path / "a"
    )
    for name in (UNET, TEXT_ENCODER, VAE):
        old, new = load_file(run / name), load_file(tmp_path / "a" / name)
        assert old.keys() == new.keys() and all(float((old[key] - new[key]).abs().max()) < 1e-5 for key in old), name
    assert (tmp_path / "a/model/tokenizer/vocab.json").read_bytes() == (
        run / "model/tokenizer/vocab.json"
    ).read_bytes()


def test_a_run_that_was_started_from_another_continues_without_it(run, cache, tmp_path):
    """With the tokens that it took over, though its own captions would make others."""
    other = shutil.copytree(run, tmp_path / "other")
    run_main(TRAIN, *TINY, "--n", 5, "--start", other, "--cache", cache, "--steps", 1, "--out", tmp_path / "a")
    shutil.rmtree(other)
    run_main(TRAIN, "--resume", tmp_path / "a", "--steps", 2, "--device", "cpu")
    assert len(rows_of(tmp_path / "a" / "metrics.csv")) == 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--channels", 8, 24], "another build (channels = (8, 16) against (8, 24))"),
        (["--layers", 2], "layers = 1 against 2"),
    ],
)
def test_a_start_of_another_build(flags, says, run, cache, tmp_path, command_line):
    code, _, err = command_line(
        TRAIN, *TINY, *flags, "--start", run, "--cache", cache, "--steps", 1, "--out", tmp_path / "a"
    )
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1 and not (tmp_path / "a").exists()


def test_a_start_says_how_wide_the_network_is(run, cache, tmp_path):
    i = TINY.index("--channels")
    run_main(TRAIN, *TINY[:i], *TINY[i + 3 :], "--start", run, "--cache", cache, "--steps", 1, "--out", tmp_path / "a")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["channels"] == [8, 16]


def test_a_start_that_is_not_there(tmp_path, command_line):
    code, _, err = command_line(TRAIN, *TINY, "--start", tmp_path / "nothing", "--out", tmp_path / "a")
    assert code == 2 and "nothing" in err


# ---------------------------------------------------------------------------------------------- the geometry of SD 1.5

SD_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD_VAE = {
    "sample_size": 512,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SD_TEXT = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "model_type": "clip_text_model",
}


def test_full_size_stable_diffusion_has_the_same_weights():
    """Without their numbers: 860 million of the U-Net,
    84 of the autoencoder and 123 of the text encoder, by name and shape.
    """
    plain = [
        {key: value for key, value in config.items() if key not in ("_class_name", "model_type")}
        for config in (SD_UNET, SD_VAE, SD_TEXT)
    ]
    with torch.device("meta"):
        ours = (
            UNet(unet_from_diffusers(SD_UNET)),
            AutoencoderKL(vae_from_diffusers(SD_VAE)),
            TextTransformer(text_from_transformers(SD_TEXT)),
        )
        theirs = UNet2DConditionModel(**plain[0]), TheirVAE(**plain[1]), CLIPTextModel(CLIPTextConfig(**plain[2]))
    for mine, other, millions in zip(ours, theirs, (860, 84, 123), strict=True):
        shapes = [
            {
                key.removeprefix("text_model."): value.shape
                for key, value in net.state_dict().items()
                if "position_ids" not in key
            }
            for net in (mine, other)
        ]
        assert shapes[0] == shapes[1]
        assert round(sum(p.numel() for p in mine.parameters()) / 1e6) == millions


# ------------------------------------------------------------------------------------------------- their folder, by us


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """A small folder in the layout of Stable Diffusion 1.5, written by diffusers, with random weights. Read only."""
    folder = tmp_path_factory.mktemp("theirs")
    tokens = small_text(CAPTIONS, dim=32, heads=1, length=24).tokenizer
    tokens.save(folder / "words")
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        **{key: value for key, value in SD_UNET.items() if key != "_class_name"}
        | {"sample_size": 8, "block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32, "layers_per_block": 1}
    )
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "attn2" in name:
                weight *= 6  # an untrained network hardly listens
    vae = TheirVAE(
        sample_size=16,
        block_out_channels=(32, 32),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    )
    text = CLIPTextConfig(
        vocab_size=tokens.size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=tokens.id("<|startoftext|>"),
        eos_token_id=tokens.id("<|endoftext|>"),
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe = StableDiffusionPipeline(
        vae,
        CLIPTextModel(text),
        CLIPTokenizer.from_pretrained(folder / "words"),
        unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "sd")
    index = json.loads((folder / "sd" / "model_index.json").read_text())
    # as in the original; nobody here asks for it
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "sd" / "model_index.json").write_text(json.dumps(index))
    return folder / "sd"


def noise(n: int, seed: int = 0) -> torch.Tensor:
    """The latents that SamplingConfig(seed=seed) begins with on a cosine schedule,
    where next to nothing is left of the image.
    """
    return Noise(seed, 0)(0, torch.empty(n, 4, 8, 8))


def ask(pipe, prompts: list[str], steps: int, negative: str, **more) -> torch.Tensor:
    """Their pictures (N, 3, S, S) in [-1, 1], with guidance 5."""
    pipe.set_progress_bar_config(disable=True)
    found = pipe(
        prompts,
        num_inference_steps=steps,
        guidance_scale=5.0,
        negative_prompt=[negative] * len(prompts),
        output_type="pt",
        **more,
    )
    return 2 * found.images - 1


def with_ddim(pipe):
    """Their pipeline with DDIM at our time steps (the trailing ones of Lin et al.
    2023), and down to the clean picture.
    """
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    return pipe


def assert_same_picture(ours: torch.Tensor, others: torch.Tensor) -> None:
    assert ours.shape == others.shape and float(ours.std()) > 0.05
    assert float((ours - others).abs().max()) <= 1e-3


PROMPTS, NEGATIVE = ["a red creature with wings", "一盘番茄炒蛋，木桌"], "a plate of fish"
CONFIG = SamplingConfig(5.0, negative_prompt=NEGATIVE, sampler="ddim:5")
IMAGES = (0.5 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))).clamp(-1, 1)


def test_we_open_their_folder_and_draw_the_same_picture(theirs):
    """From the same latents: with words, a negative prompt and guidance;
    other words would have given another picture.
    """
    pipeline, x = open_latent_pipeline(theirs), noise(2)
    assert pipeline.prediction == "eps" and pipeline.schedule.name == "scaled_linear" and pipeline.size == 16
    ours = pipeline.txt2img(PROMPTS, CONFIG, latents=x)
    pipe = with_ddim(StableDiffusionPipeline.from_pretrained(theirs, safety_checker=None))
    assert_same_picture(ours, ask(pipe, PROMPTS, 5, NEGATIVE, latents=x))
    for other in (
        pipeline.txt2img(PROMPTS[::-1], CONFIG, latents=x),
        pipeline.txt2img(PROMPTS, dataclasses.replace(CONFIG, negative_prompt=""), latents=x),
        pipeline.txt2img(PROMPTS, dataclasses.replace(CONFIG, guidance_scale=1.0), latents=x),
    ):
        assert float((other - ours).abs().max()) > 0.01


def test_we_change_a_picture_as_they_do(theirs, monkeypatch):
    pipe = with_ddim(StableDiffusionImg2ImgPipeline.from_pretrained(theirs, safety_checker=None))
    assert_same_change(open_latent_pipeline(theirs), pipe, monkeypatch)


def assert_same_change(pipeline, pipe, monkeypatch) -> None:
    """img2img from pixels. Theirs draws latents from what the encoder says;
    here it has to take the most probable, as ours does.

    In float64: random weights that listen this much to words make a difference of 1e-7 two thousand
    times as large in five steps.
    """
    monkeypatch.setattr(
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img.retrieve_latents",
        lambda output, generator: output.latent_dist.mode(),
    )
    for net in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        net.double()
    images, eps = (
        IMAGES.double(),
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64),
    )
    ours = pipeline.img2img(images, PROMPTS, 0.6, CONFIG, noise=eps)
    theirs = ask(
        pipe.to(torch.float64),
        PROMPTS,
        5,
        NEGATIVE,
        image=images,
        strength=0.6,
        generator=torch.Generator().manual_seed(7),
    )
    assert_same_picture(ours, theirs)
    assert float((pipeline.img2img(images, PROMPTS, 0.8, CONFIG, noise=eps) - ours).abs().max()) > 0.01


def test_the_attention_of_old_autoencoders(theirs, tmp_path):
    """Until early 2023 it had other names; Stable Diffusion's own files still have."""
    shutil.copytree(theirs, tmp_path / "sd")
    path, names = (
        tmp_path / "sd" / "vae" / "diffusion_pytorch_model.safetensors",
        {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"},
    )
    weights, changed = load_file(path), 0
    for new, old in names.items():
        for key in [key for key in weights if f"attentions.0.{new}." in key]:
            weights[key.replace(new, old)], changed = weights.pop(key), changed + 1
    save_file(weights, path, {"format": "pt"})
    assert changed == 16  # weight and bias of four layers in encoder and decoder
    pictures = [
        open_latent_pipeline(folder).txt2img(PROMPTS, CONFIG, latents=noise(2)) for folder in (theirs, tmp_path / "sd")
    ]
    assert torch.equal(*pictures)


# ------------------------------------------------------------------------------------------------- our folder, by them

PAIRS = [("cosine", "v"), ("scaled_linear", "eps"), ("linear_zero_snr", "v"), ("sigmoid", "x0")]


@pytest.mark.parametrize(("schedule", "prediction"), PAIRS)
def test_they_open_our_folder_and_draw_the_same_picture(schedule, prediction, tmp_path, monkeypatch):
    """Text to image and image to image, through the AutoPipelines, with the scheduler that is in the folder."""
    pipeline, x = tiny_pipeline(schedule, prediction), noise(2)
    save_pipeline(tmp_path, pipeline)
    pipe = AutoPipelineForText2Image.from_pretrained(tmp_path)
    assert (
        type(pipe) is StableDiffusionPipeline
        and isinstance(pipe.scheduler, DDIMScheduler)
        and pipe.safety_checker is None
    )
    assert_same_picture(pipeline.txt2img(PROMPTS, CONFIG, latents=x), ask(pipe, PROMPTS, 5, NEGATIVE, latents=x))
    assert pipe(PROMPTS[:1], num_inference_steps=2).images[0].size == (16, 16)  # with nothing chosen but the steps

    assert_same_change(pipeline, AutoPipelineForImage2Image.from_pretrained(tmp_path), monkeypatch)


def test_they_paint_into_holes_with_it(tmp_path):
    """As with any model of four channels: what is not masked is put back into the latents after every step."""
    pipeline = tiny_pipeline()
    with torch.no_grad():  # its encoder knows no doubt any more: the standard deviation of every latent is 3e-7
        pipeline.vae.quant_conv.weight[4:], pipeline.vae.quant_conv.bias[4:] = 0, -30
    save_pipeline(tmp_path, pipeline)
    pipe, hole = AutoPipelineForInpainting.from_pretrained(tmp_path), torch.zeros(2, 1, 16, 16)
    kept, repainted = (
        ask(pipe, PROMPTS, 5, NEGATIVE, image=IMAGES, mask_image=mask, height=16, width=16)
        for mask in (hole, hole + 1)
    )
    assert_same_picture(pipeline.decode(pipeline.encode(IMAGES)), kept)
    assert float((repainted - kept).abs().max()) > 0.1


def test_half_precision_on_disk(tmp_path):
    """Half the bytes; opened by either, it computes in single precision."""
    pipeline, x = tiny_pipeline(), noise(2)
    save_pipeline(tmp_path, pipeline, torch.float16)
    assert all(
        value.dtype == torch.float16 for path in tmp_path.rglob("*.safetensors") for value in load_file(path).values()
    )
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert {net.dtype for net in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    ours = open_latent_pipeline(tmp_path).txt2img(PROMPTS, CONFIG, latents=x)
    assert_same_picture(ours, ask(pipe, PROMPTS, 5, NEGATIVE, latents=x))
    # random weights magnify what rounding does
    assert float((ours - pipeline.txt2img(PROMPTS, CONFIG, latents=x)).abs().mean()) < 0.05


def test_there_and_back(tmp_path):
    pipeline = tiny_pipeline()
    save_pipeline(tmp_path / "model", pipeline)
    again = open_latent_pipeline(tmp_path)  # a run folder: the model is in model/
    assert again.unet.cfg == pipeline.unet.cfg and again.vae.cfg == pipeline.vae.cfg and again.prediction == "v"
    assert torch.equal(again.txt2img(PROMPTS, CONFIG), pipeline.txt2img(PROMPTS, CONFIG))


@pytest.mark.parametrize("size", SIZES)
def test_the_shipped_models(size):
    """At most 22 MB in half precision; each knows the words of both languages,
    and diffusers draws the same picture with it.
    """
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 22e6
    assert all(
        value.dtype == torch.float16 for path in SHIPPED.rglob("*.safetensors") for value in load_file(path).values()
    )
    folder = SHIPPED / SIZES[size]
    pipeline, prompts, x = (
        open_latent_pipeline(folder),
        [prompt for prompt in DEFAULT_PROMPTS if prompt][2:5],
        Noise(0, 0)(0, torch.empty(3, 4, size // 4, size // 4)),
    )
    assert (pipeline.size, pipeline.vae.cfg.factor) == (size, 4) and [
        pipeline.remarks(prompt) for prompt in prompts
    ] == 3 * [[]]
    for opener in (AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image):
        pipe = opener.from_pretrained(folder)
    assert type(pipe) is StableDiffusionPipeline
    ours = pipeline.txt2img(prompts, SamplingConfig(5, sampler="ddim:4"), latents=x)
    assert_same_picture(ours, ask(pipe, prompts, 4, "", latents=x))


@pytest.mark.parametrize(("size", "creatures", "dishes", "n"), [(128, 32, 27, 12), (64, 28, 24, 24)])
def test_what_the_shipped_autoencoders_promise(size, creatures, dishes, n):
    """Scaled latents of test images have unit variance; and images come back, creatures better than dishes, in dB."""
    pipeline = open_latent_pipeline(SHIPPED / SIZES[size])
    found = {
        data: evaluation.measure_vae(pipeline, data, concat_dataset.some_of((data,), size, Path("data"), "test", n))
        for data in ("creatures", "dishes")
    }
    assert sum(one["scaled_std"] ** 2 / 2 for one in found.values()) ** 0.5 == pytest.approx(1, abs=0.1)
    assert found["creatures"]["psnr"] > creatures and found["dishes"]["psnr"] > dishes


def test_schedules_that_the_folder_has_no_place_for(tmp_path):
    with pytest.raises(UserError, match="no place for the schedule 'edm'"):
        save_pipeline(tmp_path, tiny_pipeline("edm", "edm"))


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.fixture
def folder(tmp_path) -> Path:
    save_pipeline(tmp_path / "sd", tiny_pipeline())
    return tmp_path / "sd"


@pytest.mark.parametrize("file", FILES)
def test_a_folder_that_is_not_whole(file, folder):
    (folder / file).unlink()
    with pytest.raises(UserError) as problem:
        open_latent_pipeline(folder)
    assert f"it lacks {file}" in str(problem.value)


def test_folders_that_hold_something_else(folder, tmp_path, trained_run):
    shutil.rmtree(folder / "vae")
    for path, says in (
        (folder, "holds no autoencoder"),
        (tmp_path / "nothing", "there is no folder"),
        (tmp_path, "holds no model"),
        (trained_run, "holds no autoencoder"),
    ):
        with pytest.raises(UserError, match=says):
            open_latent_pipeline(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda: {"unet": UNet(text_unet(8, 3, (8, 16), 32))},
            "latents with 4 channels, but its U-Net takes 3 and gives 3",
        ),
        (
            lambda: {"vae": AutoencoderKL(small_vae(16, 3, (8, 16), 6))},
            "latents with 6 channels, but its U-Net takes 4",
        ),
        (
            lambda: {"unet": UNet(dataclasses.replace(text_unet(8, 4, (8, 16), 32), in_channels=9))},
            "one for inpainting, with 9 input channels; use it with 06_inpaint_gif/make_gif.py",
        ),
        (
            lambda: {"text_encoder": small_text(CAPTIONS, dim=64, heads=2)},
            "embeddings of width 64, but its U-Net expects 32",
        ),
        (
            lambda: {"unet": UNet(dataclasses.replace(text_unet(8, 4, (8, 16), 32), text_dim=None, heads=None))},
            "is not conditioned on text",
        ),
    ],
)
def test_networks_that_were_not_made_for_each_other(change, says, tmp_path):
    save_pipeline(tmp_path, tiny_pipeline(**change()))
    with pytest.raises(UserError, match=says):
        open_latent_pipeline(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_no_numbers_become_no_picture(bad):
    pipeline = tiny_pipeline()
    z = torch.zeros(2, 4, 8, 8)
    assert pipeline.decode(z).isfinite().all()
    z[1, 0, 3, 3] = bad
    with pytest.raises(UserError, match="the sampled latents hold NaN or infinite values"):
        pipeline.decode(z)


@pytest.mark.parametrize("program", [SAMPLE, EVALUATE])
def test_folders_that_cannot_draw_on_the_command_line(program, folder, tmp_path, command_line):
    """One sentence, exit code 2, nothing written."""
    save_pipeline(tmp_path / "mixed", tiny_pipeline(vae=AutoencoderKL(small_vae(16, 3, (8, 16), 6))))
    shutil.rmtree(folder / "vae")
    for model, says in (
        (tmp_path / "mixed", "latents with 6 channels, but its U-Net takes 4"),
        (folder, "holds no autoencoder"),
    ):
        code, said, err = command_line(
            program, *(["a"] if program == SAMPLE else []), "--model", model, "--out", tmp_path / "out" / "a.png"
        )
        assert (
            code == 2
            and says in err
            and err.startswith("error: ")
            and len(err.strip().splitlines()) == 1
            and said == ""
        )
        assert not (tmp_path / "out").exists()


def test_an_autoencoder_of_other_latents_than_the_start(run, cache, tmp_path, command_line):
    save_vae(tmp_path / "vae", AutoencoderKL(small_vae(16, 3, (8, 16), 6)))
    before = list(cache.iterdir())
    code, _, err = command_line(
        TRAIN,
        *TINY,
        "--start",
        run,
        "--vae",
        tmp_path / "vae",
        "--cache",
        cache,
        "--steps",
        1,
        "--out",
        tmp_path / "a",
    )
    assert (
        code == 2
        and "in_channels = 4 against 6" in err
        and not (tmp_path / "a").exists()
        and list(cache.iterdir()) == before
    )


# ------------------------------------------------------------------------------------------------------------- drawing


def test_a_picture_is_what_the_sampler_and_the_decoder_make_of_it():
    """Without guidance, written out: the plain denoiser, no clipping, and latents divided by the scaling factor."""
    from common.diffusion.denoiser import Denoiser

    pipeline, sampler = tiny_pipeline(), Sampler.parse("ddim:4:eta=0.5")
    denoise = Denoiser(pipeline.unet, "v", clip_x0=False, text=pipeline.text_encoder(PROMPTS))
    *_, last = sampler.run(denoise, pipeline.schedule, (2, 4, 8, 8), 5, 0)
    with torch.no_grad():
        expected = pipeline.vae.decode(last.x / 1.7).clamp(-1, 1)
    assert float(last.x.abs().max()) > 1.5
    torch.testing.assert_close(pipeline.txt2img(PROMPTS, SamplingConfig(1, sampler=str(sampler), seed=5)), expected)


def test_pictures_follow_the_words_the_scale_and_the_seed():
    pipeline, config = tiny_pipeline(), SamplingConfig(2, sampler="ddim:2")
    same = pipeline.txt2img(PROMPTS[:1], config)
    assert torch.equal(same, pipeline.txt2img(PROMPTS[:1], config))
    others = [pipeline.txt2img(["a blue creature"], config)]
    others += [
        pipeline.txt2img(PROMPTS[:1], dataclasses.replace(config, **change))
        for change in (
            {"guidance_scale": 4},
            {"seed": 1},
            {"negative_prompt": "wings"},
            {"rescale": 0.7},
            {"interval": (0.5, 2.0)},
            {"guidance_scale": lambda level: 1 + level.sigma},
        )
    ]
    assert all(float((other - same).abs().max()) > 1e-4 for other in others)


def test_picture_i_begins_with_the_same_noise_whatever_stands_beside_it(monkeypatch):
    monkeypatch.setattr(pipeline_module, "BATCH_SIZE", 2)
    # w = 0 ignores the prompts: the noise alone decides
    pipeline, config = (tiny_pipeline(), SamplingConfig(0, sampler="ddim:1"))
    for draw in (pipeline.txt2img, lambda prompts, config: pipeline.img2img(IMAGES[:1], prompts, 1.0, config)):
        a, b = draw(["a red creature"] * 4, config), draw(["x", "y", "z", "a blue creature"], config)
        torch.testing.assert_close(a, b)
        assert float((a[0] - a[2]).abs().max()) > 1e-4  # and every batch has its own


def test_other_sizes():
    pipeline = tiny_pipeline()
    assert pipeline.txt2img([""], SamplingConfig(sampler="ddim:1", size=24)).shape == (1, 3, 24, 24)
    assert pipeline.img2img(torch.zeros(1, 3, 16, 24), [""], 1.0, SamplingConfig(sampler="ddim:1")).shape == (
        1,
        3,
        16,
        24,
    )
    for size in (17, 1):
        with pytest.raises(UserError, match="multiple of 2"):
            pipeline.txt2img([""], SamplingConfig(size=size))
    with pytest.raises(UserError, match="multiples of 2"):
        pipeline.img2img(torch.zeros(1, 3, 15, 16), [""], 0.5)
    with pytest.raises(UserError, match="2 images do not go with 3 prompts"):
        pipeline.img2img(torch.zeros(2, 3, 16, 16), [""] * 3, 0.5)


@pytest.mark.parametrize(
    ("steps", "strength", "left"),
    [(10, 0.6, 6), (20, 1.0, 20), (50, 0.58, 29), (10, 0.05001, 1), (7, 0.5, 4), (4, 0.3, 1)],
)
def test_where_a_picture_begins(steps, strength, left, monkeypatch):
    """At the level from which so many steps are left, noised as much as the schedule says there."""
    pipeline, began = tiny_pipeline(), []
    monkeypatch.setattr(
        TextToImagePipeline, "reverse", lambda self, denoise, x, path, *_: iter(began.append((x, path)) or ())
    )
    eps = torch.randn(2, 4, 8, 8)
    list(pipeline.img2img_steps(IMAGES, PROMPTS, strength, SamplingConfig(sampler=f"ddim:{steps}"), noise=eps))
    ((x, path),) = began
    level = list(pipeline.schedule.noise_levels(steps))[steps - left]
    assert len(path) == left and next(iter(path)) == level
    with torch.no_grad():
        torch.testing.assert_close(x, level.alpha * 1.7 * pipeline.vae.encode(IMAGES).mean + level.sigma * eps)


@pytest.mark.parametrize(
    ("strength", "says"),
    [(0, "above 0"), (1.01, "at most 1"), (-1, "above 0"), (float("nan"), "above 0"), (0.04, "less than one step")],
)
def test_strengths_that_cannot_be(strength, says):
    with pytest.raises(UserError, match=says):
        tiny_pipeline().img2img(IMAGES, PROMPTS, strength, SamplingConfig(sampler="ddim:10"))


# ----------------------------------------------------------------------------------------------- from the command line


def test_sample_draws_rows_and_says_what_they_are(run, tmp_path, command_line):
    flags = ["--model", run, "--n", 3, "--sampler", "ddim:2", "--out", tmp_path / "a.png"]
    code, said, err = command_line(SAMPLE, "番茄炒蛋", "", "a zebra", "--sweep", "1,4", *flags, "--gif")
    assert code == 0, err
    assert said.count("row ") == 6 and "row 4: w = 4  (no words)" in said and "18 pictures" in said
    assert "the prompt is empty" in err and "unknown words: zebra" in err
    assert Image.open(tmp_path / "a.gif").n_frames > 1
    first = (tmp_path / "a.png").read_bytes()
    command_line(SAMPLE, "番茄炒蛋", "", "a zebra", "--sweep", "1,4", *flags)
    assert (tmp_path / "a.png").read_bytes() == first
    command_line(SAMPLE, "番茄炒蛋", "", "a zebra", "--sweep", "1,4", *flags, "--negative", "wings", "--size", 24)
    assert (tmp_path / "a.png").read_bytes() != first


def test_sample_begins_with_a_picture(run, tmp_path, command_line):
    """Which stands at the left of every row."""
    Image.fromarray(np.full((20, 30, 3), (200, 30, 60), np.uint8)).save(tmp_path / "red.png")
    flags = [
        "a red creature",
        "--model",
        run,
        "--n",
        2,
        "--sampler",
        "ddim:4",
        "--image",
        tmp_path / "red.png",
        "--out",
        tmp_path / "a.png",
    ]
    code, said, err = command_line(SAMPLE, *flags, "--strength", 0.5, "--sweep", "1,4")
    assert code == 0, err
    grid = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    scale = grid.shape[0] // (2 * 18 + 2)  # two rows of 16 pixels, two between them
    grid = grid[:, -scale * (3 * 18 + 2) :]  # three columns; the labels of the rows are at the left
    assert (
        grid[3 * scale : 17 * scale, 3 * scale : 17 * scale] == (200, 30, 60)
    ).all() and "2: w = 4  a red creature" in said
    assert not (grid[3 * scale : 17 * scale, 21 * scale : 35 * scale] == (200, 30, 60)).all()
    first = (tmp_path / "a.png").read_bytes()
    command_line(SAMPLE, *flags, "--strength", 1, "--sweep", "1,4")
    assert (tmp_path / "a.png").read_bytes() != first


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
        (["a", "--size", 17], "multiple of 2"),
        (["a", "--strength", 0.5], "--image"),
        (["a", "--image", "nowhere.png"], "there is no image file nowhere.png"),
        (["a", "--image", "LICENSE"], "cannot be read"),
    ],
)
def test_what_sampling_refuses(flags, says, run, tmp_path, command_line, monkeypatch):
    model = [] if "--model" in flags else ["--model", run]
    code, _, err = command_line(SAMPLE, *flags, *model, "--out", tmp_path / "a.png")
    assert (
        code == 2
        and says in err
        and err.startswith("error: ")
        and "Traceback" not in err
        and not (tmp_path / "a.png").exists()
    )


def test_strength_from_the_command_line(run, tmp_path, command_line):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "black.png")
    code, _, err = command_line(
        SAMPLE, "a", "--model", run, "--image", tmp_path / "black.png", "--strength", 1.5, "--out", tmp_path / "a.png"
    )
    assert code == 2 and "--strength must be above 0 and at most 1, not 1.5" in err


# ---------------------------------------------------------------------------------------------------------- evaluation


def test_evaluate_writes_its_tables(run, tmp_path, command_line):
    flags = ["--model", run, "--n", 6, "--sampler", "ddim:2", "--device", "cpu", "--out", tmp_path]
    code, said, err = command_line(EVALUATE, *flags, "--scales", 1, 3)
    assert code == 0, err
    rows, vae = rows_of(tmp_path / "results.csv"), rows_of(tmp_path / "vae.csv")
    assert [(row["w"], row["split"]) for row in rows] == [
        (w, split) for w in ("real", "real, decoded", "chance", "1", "3") for split in ("test", "heldout")
    ]
    real = {row["w"]: float(row["accuracy"]) for row in rows if row["split"] == "test"}
    assert real["real"] > real["chance"] and 0 <= real["1"] <= 1
    assert float(rows[0]["accuracy_low"]) <= real["real"] <= float(rows[0]["accuracy_high"])
    assert [row["set"] for row in vae] == ["creatures", "dishes"] and "dB" in said and "held-out combinations" in said
    assert Image.open(tmp_path / "grid.png").width > 6 * 16


def test_a_model_of_this_folder_is_named_without_the_folders_above(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluation.from_here(tmp_path / "a" / "b") == evaluation.from_here(Path("a/b")) == "a/b"
    assert evaluation.from_here(tmp_path.parent) == tmp_path.parent.as_posix()


def test_what_it_measures_of_the_autoencoder():
    """PSNR and spread, computed here once more."""
    pipeline = tiny_pipeline()
    found = evaluation.measure_vae(
        pipeline, "dishes", evaluation.load_sets(pipeline, ["dishes"], Path("data"), 20)["dishes"]
    )
    x = to_float(load("dishes", 16, split="test", n=20).pixels)
    z = pipeline.encode(x)
    mse = (x - pipeline.decode(z)).square().flatten(1).mean(1)
    assert (
        found["psnr"] == pytest.approx(float((10 * torch.log10(4 / mse)).mean()), abs=1e-3) and found["images"] == 20
    )
    reach = 1.96 * float((10 * torch.log10(4 / mse)).std()) / 20**0.5
    assert found["psnr_high"] - found["psnr_low"] == pytest.approx(2 * reach, rel=0.35)
    assert found["psnr_low"] < found["psnr"] < found["psnr_high"] and found["size"] == 16
    with torch.no_grad():
        posterior = pipeline.vae.encode(x)
    spread = 1.7 * ((posterior.mean.var(correction=0) + posterior.logvar.exp().mean()) ** 0.5)
    assert found["scaled_std"] == pytest.approx(float(spread), rel=0.02)


def test_real_creatures_are_right_and_others_are_not():
    prompts, judge = make_prompts("test", 40, "both", 32), load_creature_classifier()
    assert all(prompts.mentioned[:, :2].any(0)) and len(prompts.captions) == 40
    real, shuffled = (measure_accuracy(judge, prompts, pixels) for pixels in (prompts.real, prompts.real.roll(7, 0)))
    floor = chance_accuracy(judge, prompts)["accuracy"]
    assert real["accuracy"] > 0.95 and real["pair"] > 0.9
    assert shuffled["accuracy"] == pytest.approx(floor, abs=0.15) and shuffled["all_right"] < 0.1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model", "nowhere"], "there is no folder"),
        (["--n", 0], "--n"),
        (["--splits"], "--splits"),
        (["--scales", -1], "--scales must be 0 or more"),
        (["--sampler", "ddim:0"], "1 to 1000"),
        (["--rescale", 2], "rescale"),
        (["--data", "nothing"], "unknown data"),
        (["--data", "--scales"], "nothing to measure"),
    ],
)
def test_what_evaluation_refuses(flags, says, run, tmp_path, command_line):
    model = [] if "--model" in flags else ["--model", run]
    code, said, err = command_line(EVALUATE, *model, "--n", 2, "--device", "cpu", "--out", tmp_path / "out", *flags)
    assert code == 2 and says in err and err.startswith("error: ") and "Traceback" not in err
    assert said == "" and not (tmp_path / "out").exists()


def test_the_words_alone(run, tmp_path, command_line):
    """As the autoencoder alone is measured with no --scales."""
    flags = ["--model", run, "--n", 2, "--device", "cpu", "--out", tmp_path, "--splits", "test", "--sampler", "ddim:1"]
    code, said, err = command_line(EVALUATE, *flags, "--data", "--scales", 2)
    assert code == 0 and "autoencoder on test images" not in said, err
    assert (tmp_path / "results.csv").exists() and not (tmp_path / "vae.csv").exists()


def test_every_command_of_the_chapter_is_understood():
    """Its flags exist, and its numbers can be; nothing is run."""
    blocks, understood = (
        re.findall(r"```sh\n(.*?)```", (ROOT / "docs/programs.md").read_text(encoding="utf-8"), re.DOTALL),
        set(),
    )
    for words in (shlex.split(line, comments=True) for line in "".join(blocks).splitlines()):
        if program := next(
            (word for word in words if word.startswith("04_latent_sd/") and word.endswith(".py")), None
        ):
            module = load_program(program)
            args = tyro.cli(module.Args, args=words[words.index(program) + 1 :])
            getattr(module, "check_numbers", lambda args: None)(args)
            understood.add(program.removeprefix("04_latent_sd/"))
    assert understood == {"sample.py", "evaluate.py", "train_vae.py", "train.py", "benchmark_latents.py"}
